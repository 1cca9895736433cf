"""The commands of the README, word for word, on roots that are wrong, empty and right."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import make_data
import numpy as np
import pytest

import train
from utils import distributed
from utils.flags import build_parser

REPO = Path(__file__).parent.parent
LAUNCH = "--dist-url 'tcp://localhost:8080' --multiprocessing-distributed --world-size 1 --rank 0"
RECIPE = "--op sam --wd 0.03 --mining --cos --dim 3072 --asam --rho 2.5"
RUNS = {"cvusa": "cvusa", "cvact": "cvact", "vigor": "vigor", "vigor_cross": "vigor --cross"}
TRAIN = {
    name: f"--lr {'0.00005 --batch-size 16' if 'vigor' in name else '0.0001 --batch-size 32'} {LAUNCH} --epochs 50 "
    f"--save_path ./result_{name} {RECIPE} --dataset {dataset}"
    for name, dataset in RUNS.items()
}
EVALUATE = {
    name: f"{LAUNCH} --save_path ./result_{name} --dim 3072 -e --dataset {dataset}" for name, dataset in RUNS.items()
}
FILES = {"checkpoint.pth.tar", "model_best.pth.tar", "log.txt", "args.json", "metrics.jsonl", "metrics.json"}
DESCRIPTORS = {"grd_global_descriptor.npy", "sat_global_descriptor.npy"}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FRGEO_DATA", raising=False)


def free_port():
    return ["--dist-url", f"tcp://localhost:{distributed.free_port()}"]


def shell(command, **env):
    """Run `python -u train.py ...` as a user's shell would."""
    return subprocess.run(
        [sys.executable, "-u", str(REPO / "train.py"), *shlex.split(command)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.parametrize(("data", "tiles"), [("roots", make_data.GRID**2), ("city_roots", make_data.CITY_TILES)])
@pytest.mark.parametrize("name", RUNS)
def test_each_pair_of_commands_trains_and_evaluates(request, data, tiles, name):
    """As written, but for the data, a smaller network with its --dim, one epoch, and a free port."""
    root = str(request.getfixturevalue(data)[name.split("_")[0]])
    small = ["--data-root", root, *make_data.SMALL, *free_port()]
    out = Path(f"result_{name}")
    trained = train.main([*shlex.split(TRAIN[name]), *small, "--epochs", "1"])
    assert {path.name for path in out.iterdir()} == FILES
    found = train.main([*shlex.split(EVALUATE[name]), *small])
    assert {path.name for path in out.iterdir()} == FILES | DESCRIPTORS
    assert found == trained
    record = json.loads((out / "metrics.json").read_text())
    cities = {"vigor": 4, "vigor_cross": 2}.get(name)
    assert record["dataset"] == name and record["epoch"] == 1
    assert record["gallery"] == (cities * tiles if cities else make_data.TEST)
    assert np.load(out / "sat_global_descriptor.npy").shape == (record["gallery"], 256)
    if cities:
        assert record["R@1"] <= record["Hit"] <= 100


def test_the_published_network_runs_word_for_word(roots):
    """ConvNeXt-T and --dim 3072, from the shell, with FRGEO_DATA; only weights, epochs and image sizes are given."""
    small = " --pretrained none --epochs 1 --ground-size 32 128 --aerial-size 64 64 "
    data = {"FRGEO_DATA": str(roots["cvusa"])}
    done = shell(TRAIN["cvusa"] + small + shlex.join(free_port()), **data)
    assert done.returncode == 0, done.stderr
    done = shell(EVALUATE["cvusa"] + " " + shlex.join(free_port()), **data)
    assert done.returncode == 0, done.stderr
    out = Path("result_cvusa")
    assert {path.name for path in out.iterdir()} == FILES | DESCRIPTORS
    assert np.load(out / "grd_global_descriptor.npy").shape == (make_data.TEST, 3072)
    assert "using --ground-size 32 128" in done.stdout


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("commands", [TRAIN, EVALUATE])
@pytest.mark.parametrize("root", ["nowhere", "empty"])
def test_wrong_roots_end_with_one_sentence_and_code_2(roots, name, commands, root, capfd):
    Path("empty").mkdir()
    if commands is EVALUATE:  # weights are there, so the data are to blame
        folder = Path(f"result_{name}")
        folder.mkdir()
        import torch

        torch.save({"state_dict": {"w": torch.ones(1)}}, folder / "model_best.pth.tar")
    with pytest.raises(SystemExit) as stop:
        train.main([*shlex.split(commands[name]), "--data-root", root, *free_port()])
    assert stop.value.code == 2
    error = capfd.readouterr().err
    first, *tree = error.strip().splitlines()
    assert first.startswith(f"train.py: --data-root {root} is not a {name.split('_')[0].upper()} folder: it ")
    assert ("does not exist" if root == "nowhere" else "holds nothing") in first
    assert len(tree) >= 4 and "Traceback" not in error
    if commands is TRAIN:
        assert not Path(f"result_{name}").exists()  # nothing is written before the data are found


def refusal(capfd, *arguments):
    with pytest.raises(SystemExit) as stop:
        train.main(list(arguments))
    assert stop.value.code == 2
    error = capfd.readouterr().err.strip()
    assert "Traceback" not in error
    return error


def test_mistakes_are_told_in_one_sentence(roots, capfd):
    def run(*more, dataset="cvusa"):
        return refusal(
            capfd, "--dataset", dataset, "--data-root", str(roots[dataset]), "--save_path", "r", *make_data.SMALL,
            "--op", "adamw", "--lr", "1e-3", "--epochs", "1", "-b", "8", *more,
        )  # fmt: skip

    assert "no data: give --data-root DIR, or set FRGEO_DATA" in refusal(capfd, "--dataset", "cvusa")
    assert "--dim 3072 does not fit" in run("--dim", "3072") and "--dim 256" in run("--dim", "3072")
    assert "no network of this name" in run("--arch", "convnxt")
    assert "neither model_best.pth.tar nor checkpoint.pth.tar" in run("-e")
    assert "not_there.pth.tar is not there" in run("-e", "--weights", "not_there.pth.tar")
    assert "is not there" in run("--resume", "nothing.pth.tar")
    assert "belongs to --dataset vigor" in run("--cross")
    assert "belongs to --dataset vigor" in run("--vigor-cities", "Seattle")
    assert "invalid choice: 'Paris'" in run("--vigor-cities", "Paris", dataset="vigor")
    assert "--cross names VIGOR's cities itself" in run("--vigor-cities", "Seattle", "--cross", dataset="vigor")
    assert "--eval-split test is not there for cvusa; expected val" in run("--eval-split", "test")
    assert "--eval-split val is not there for vigor; expected test" in run("--eval-split", "val", dataset="vigor")
    assert "invalid choice: 'train'" in run("--eval-split", "train", dataset="cvact")
    assert "has no ANU_data_test/, which holds the images of CVACT's test split" in run(
        "--eval-split", "test", dataset="cvact"
    )
    assert "--asam needs --op sam" in run("--asam")
    assert "invalid choice: 'adamax'" in run("--op", "adamax")
    assert "--fov 400" in run("--fov", "400")
    assert "fewer than the 4 columns" in run("--fov", "140", "--ground-size", "32", "256")
    assert "cannot be cut into quadrants" in run("--aerial-size", "32", "32")
    assert "not a whole number" in run("-b", "0")
    assert "--augment turns by quarters" in run("--augment", "--aerial-size", "64", "96")
    assert "--layer-scale is for random weights" in run("--layer-scale", "0.1", "--pretrained", "imagenet")
    assert "--tuple-size 3 does not divide" in run("--tuple-size", "3")
    assert "--device cuda:7" in run("--device", "cuda:7")
    assert "--device tpu" in run("--device", "tpu")
    assert "--nprocs needs --multiprocessing-distributed" in run("--nprocs", "2")
    assert "--rank 5 is not a node" in run("--world-size", "2", "--rank", "5")
    assert "give --vigor-labels original" in run("--vigor-labels", "corrected", dataset="vigor")
    assert "--lr -1" in run("--lr", "-1")
    assert not Path("r").exists()
    Path("file").write_text("")
    assert "cannot be written to" in run("--save_path", "file/run")


def test_a_best_model_is_not_taken_for_a_checkpoint(roots, capfd):
    base = ["--dataset", "cvusa", "--data-root", str(roots["cvusa"]), "--save_path", "r", *make_data.SMALL]
    base += ["--op", "adamw", "--lr", "1e-3", "-b", "8"]
    train.main([*base, "--epochs", "1"])
    kept = {path.name: path.read_bytes() for path in Path("r").iterdir() if path.name != "log.txt"}
    capfd.readouterr()
    assert "holds weights only" in refusal(capfd, *base, "--resume", "r/model_best.pth.tar")
    assert "was trained with adamw" in refusal(capfd, *base, "--resume", "r/checkpoint.pth.tar", "--op", "sgd")
    assert "was trained with test_convnext" in refusal(
        capfd, *base, "--resume", "r/checkpoint.pth.tar", "--arch", "test_vit"
    )
    assert kept == {path.name: path.read_bytes() for path in Path("r").iterdir() if path.name != "log.txt"}


def test_help_explains_every_flag_in_titled_groups():
    done = shell("-h")
    assert done.returncode == 0
    for title in ("data:", "model:", "loss:", "optimiser and schedule:", "run:", "device and processes:"):
        assert f"\n{title}\n" in done.stdout
    for action in build_parser()._actions:
        assert action.help and len(action.help) > 10
        assert action.option_strings[0] in done.stdout


def test_published_flags_keep_names_short_forms_and_defaults():
    published = {
        "epochs": 200, "start_epoch": None, "batch_size": 256, "lr": 0.03, "momentum": 0.9, "weight_decay": 1e-4,
        "print_freq": 10, "resume": None, "world_size": -1, "rank": -1, "seed": None, "gpu": None,
        "multiprocessing_distributed": False, "evaluate": False, "dim": None, "cos": False, "cross": False,
        "dataset": "vigor", "op": "adam", "mining": False, "asam": False, "rho": 0.05, "fov": 0,
    }  # fmt: skip
    parser = build_parser()
    plain = vars(parser.parse_args([]))
    assert {name: plain[name] for name in published} == published
    flags = "-j 3 -b 4 --wd 0.5 --learning-rate 0.1 -p 7 -e --share --schedule 3 4"
    short = parser.parse_args(flags.split())
    assert (short.workers, short.batch_size, short.weight_decay, short.lr, short.print_freq) == (3, 4, 0.5, 0.1, 7)
    assert short.evaluate and short.share and short.schedule == [3, 4]
