"""The command line: help, the table of options, and mistakes, each told in one sentence."""

import argparse
from pathlib import Path

import make_data
import pytest
import torch

import train
from utils.options import KINDS, build_parser, options_of

# The flags of a mistake, and what its sentence says.
MISTAKES = {
    "--dim 3072": "--dim 3072 does not fit",
    "--arch convnext_tin": "no network of this name; similar names:",
    "-e": "neither model_best.pth.tar nor checkpoint.pth.tar",
    "-e --weights not_there.pth.tar": "not_there.pth.tar does not exist",
    "--resume nothing.pth.tar": "nothing.pth.tar does not exist",
    "--cross": "--cross requires --dataset vigor, not cvusa",
    "--vigor-cities Seattle": "--vigor-cities requires --dataset vigor",
    "--dataset vigor --vigor-cities Paris": "invalid choice: 'Paris'",
    "--dataset vigor --vigor-cities Seattle --cross": "--cross and --vigor-cities cannot be combined",
    "--dataset vigor --vigor-labels corrected": "pass --vigor-labels original",
    "--dataset cvact --eval-split train": "invalid choice: 'train'",
    "--dataset cvact --eval-split test": "has no ANU_data_test/, which holds the images of CVACT's test split",
    "--op adamax": "invalid choice: 'adamax'",
    "--asam": "--asam requires --op sam",
    "--lr=-1": "'-1' is not a number of at least 0",
    "-b 0": "not a whole number",
    "--tuple-size 3": "--tuple-size 3 does not divide",
    "--mining -b 10 --tuple-size 5": "--tuple-size 5 would separate an anchor from its hard negative",
    "--label-smoothing 1": "from 0 to below 1",
    "--label-smoothing 0.1 --loss soft-triplet": "requires --loss wbl",
    "--learn-temperature --alpha 0": "above 0, up to 100",
    "--learn-temperature --alpha 101": "above 0, up to 100",
    "--coordinate-mining 1": "requires the positions of the places",
    "--layer-scale 0.1 --pretrained imagenet": "--layer-scale sets random weights",
    "--regions 4 --pool gap": "one region",
    "--fov 400": "--fov 400",
    "--fov 140 --ground-size 32 256": "fewer than the 4 columns",
    "--aerial-size 32 32": "cannot be cut into quadrants",
    "--augment --aerial-size 64 96": "--augment turns by quarter turns",
    "--search-north 6": "not a multiple of the 4 regions",
    "--search-north 4 --fov 90": "cannot be combined with --fov 90",
    "--device cuda:7": "--device cuda:7",
    "--device tpu": "--device tpu is unknown",
    "--nprocs 2": "--nprocs requires --multiprocessing-distributed",
    "--world-size 2 --rank 5": "--rank 5 is not a node",
    "--rank 1": "--rank 1 is not a node",
    "-e --descriptors there": "python scripts/score_descriptors.py there",
    "--data-root " + "x" * 300: "too long",
    "--resume " + "x" * 300: "too long",
    "--save_path file/run": "cannot be written to",
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FRGEO_DATA", raising=False)


def arguments(roots, mistake=""):
    """A training's arguments with a mistake in them."""
    words = mistake.split()
    dataset = words[1] if "--dataset" in words else "cvusa"
    return [*make_data.flags(roots[dataset], "r", *make_data.ADAMW, dataset=dataset), "--epochs", "1", *words]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake[:40])
def test_mistakes_are_told_in_one_sentence(roots, refused, mistake):
    Path("file").touch()
    assert MISTAKES[mistake] in refused(train.main, *arguments(roots, mistake))
    assert not Path("r").exists()


def test_data_must_be_named(refused):
    assert "no data: pass --data-root DIR or set FRGEO_DATA" in refused(train.main, "--dataset", "cvusa")


@pytest.mark.parametrize("several", ["--multiprocessing-distributed", "--world-size 2 --rank 0 --dist-url tcp://x:1"])
@pytest.mark.parametrize("one", ["--gpu 1", "--device cuda:1"])
def test_one_gpu_for_several_processes_is_refused(roots, refused, monkeypatch, several, one):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    error = refused(train.main, *arguments(roots, f"{one} {several}"))
    assert "--device cuda:1 (--gpu) names one GPU and cannot be combined" in error


def test_a_best_model_is_not_taken_for_a_checkpoint(roots, refused):
    train.main(arguments(roots))
    kept = {path.name: path.read_bytes() for path in Path("r").iterdir() if path.name != "log.txt"}
    assert "holds weights only" in refused(train.main, *arguments(roots, "--resume r/model_best.pth.tar"))
    assert kept == {path.name: path.read_bytes() for path in Path("r").iterdir() if path.name != "log.txt"}


def test_help_explains_every_flag_in_titled_groups(capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(["-h"])
    told = capsys.readouterr().out
    assert stop.value.code == 0
    for title in ("data:", "model:", "loss:", "optimiser and schedule:", "run:", "device and processes:"):
        assert f"\n{title}\n" in told
    for action in build_parser()._actions:
        if action.help != argparse.SUPPRESS:
            assert len(action.help) > 10 and action.option_strings[0] in told


def test_every_option_has_its_place():
    """The table that checkpoints, --resume and report.py are guided by knows every option, once."""
    assert sorted(name for kind in KINDS for name in options_of(kind)) == sorted(vars(build_parser().parse_args([])))
    assert {"lr", "mining", "amp", "ema"} <= set(options_of("recipe")) and {"arch", "share"} <= set(options_of("model"))
    assert {"nprocs", "world_size", "grad_checkpointing", "eval_every", "data_root"} <= set(options_of("machine"))


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
