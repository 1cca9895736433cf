"""The commands of the README, word for word, on roots that are wrong, empty and right."""

import shlex
from pathlib import Path

import make_data
import numpy as np
import pytest
import torch
from make_data import record

import train
from utils import distributed
from utils.run_files import RUN_FILES

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
FILES = set(RUN_FILES)
DESCRIPTORS = {"grd_global_descriptor.npy", "sat_global_descriptor.npy"}
RECALLS = ["R@1", "R@5", "R@10", "R@1%"]
METRES = ["median error (m)", "mean error (m)", "within 25 m", "within 50 m", "within 100 m"]
VIGOR = [*RECALLS, "Hit", "Hit (top-1 covers)", *METRES]
METRICS = {"cvusa": RECALLS, "cvact": RECALLS + METRES, "vigor": VIGOR, "vigor_cross": VIGOR}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FRGEO_DATA", raising=False)


def free_port():
    return ["--dist-url", f"tcp://localhost:{distributed.free_port()}"]


@pytest.mark.parametrize("name", RUNS)
def test_each_pair_of_commands_trains_and_evaluates(roots, name, monkeypatch, capfd):
    """As written, but for the data (FRGEO_DATA), one epoch and a free port; but for CVUSA also a smaller network."""
    monkeypatch.setenv("FRGEO_DATA", str(roots[name.split("_")[0]]))
    out, small, dim = Path(f"result_{name}"), make_data.SMALL, 256
    if name == "cvusa":  # ConvNeXt-T and --dim 3072
        small, dim = ["--pretrained", "none", "--ground-size", "32", "128", "--aerial-size", "64", "64"], 3072
    trained = train.main([*shlex.split(TRAIN[name]), *small, *free_port(), "--epochs", "1"])
    assert {path.name for path in out.iterdir()} == FILES
    more = small if dim == 256 else []  # else all that describes the network comes from the checkpoint
    assert train.main([*shlex.split(EVALUATE[name]), *more, *free_port()]) == trained
    assert ("--ground-size is 32 128 (from the checkpoint)" in capfd.readouterr().out) == (not more)
    assert {path.name for path in out.iterdir()} == FILES | DESCRIPTORS
    cities = {"vigor": 4, "vigor_cross": 2}.get(name)
    gallery = cities * make_data.GRID**2 if cities else make_data.TEST
    assert record(out) | trained | {"dataset": name, "epoch": 1, "gallery": gallery} == record(out)
    assert np.load(out / "sat_global_descriptor.npy").shape == (gallery, dim)
    assert list(trained) == METRICS[name]
    assert trained["R@1"] <= trained["R@5"] <= trained["R@10"] <= 100
    assert trained["R@1"] <= trained.get("Hit", 100) <= 100


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("commands", [TRAIN, EVALUATE])
@pytest.mark.parametrize("root", ["nowhere", "empty"])
def test_wrong_roots_end_with_one_sentence_and_the_expected_tree(name, commands, root, refused):
    Path("empty").mkdir()
    folder = Path(f"result_{name}")
    if commands is EVALUATE:  # weights are there, so the data are to blame
        folder.mkdir()
        torch.save({"state_dict": {"w": torch.ones(1)}}, folder / "model_best.pth.tar")
    error = refused(train.main, *shlex.split(commands[name]), "--data-root", root, *free_port())
    assert error.startswith(f"train.py: --data-root {root} is not a {name.split('_')[0].upper()} folder: it ")
    assert ("does not exist" if root == "nowhere" else "holds nothing") in error and len(error.splitlines()) >= 5
    assert folder.exists() == (commands is EVALUATE)  # nothing is written before the data are found
