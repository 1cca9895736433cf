"""The command line: help, the table of options, options that meet a checkpoint, and mistakes told in one sentence."""

import argparse
import multiprocessing
import pickle
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from make_data import ADAMW, flags, history

import train
from scripts import score_descriptors
from utils.checkpoint import load_checkpoint
from utils.options import KINDS, build_parser, handle_errors, options_of

CHECK_DATA = Path(__file__).parent.parent / "scripts" / "check_data.py"

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
    "--rho 0.1 --op adamw": "--rho requires --op sam, not adamw",
    "--momentum 0.5 --op adam": "--momentum requires --op sgd, not adam",
    "--pretrained imagenet --weights w.pth": "--pretrained and --weights cannot be combined",
    "--timeout 0": "--timeout is 0",
    "--save_path=": "it is empty",
    "--pretrained=": "it is empty",
    "--resume=": "it is empty",
    "--cache a\0b": "holds characters that no path can have",
    "--data-root=~nobody-here/x": "home of an unknown user",
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FRGEO_DATA", raising=False)


def arguments(roots, mistake=""):
    """A training's arguments with a mistake in them."""
    words = mistake.split()
    dataset = words[1] if "--dataset" in words else "cvusa"
    return [*flags(roots[dataset], "r", *ADAMW, dataset=dataset), "--epochs", "1", *words]


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
    given = "-j 3 -b 4 --wd 0.5 --learning-rate 0.1 -p 7 -e --share --schedule 3 4"
    short = parser.parse_args(given.split())
    assert (short.workers, short.batch_size, short.weight_decay, short.lr, short.print_freq) == (3, 4, 0.5, 0.1, 7)
    assert short.evaluate and short.share and short.schedule == [3, 4]


# Options that meet a checkpoint, and calls that cannot work.


@pytest.fixture(scope="module")
def trained(roots, tmp_path_factory):
    """The data and the folder of a training that did not name --dim."""
    out = tmp_path_factory.mktemp("trained")
    run = [argument for argument in flags(roots["cvusa"], out, *ADAMW) if argument not in ("--dim", "256")]
    train.main([*run, "--epochs", "2"])
    return roots["cvusa"], out


def test_dim_is_checked_against_the_network_and_not_against_the_checkpoint(trained, tmp_path, refused):
    root, out = trained
    weights = ["-e", "--weights", out / "model_best.pth.tar", "--workers", "0"]
    run = ["--dataset", "cvusa", "--data-root", root, "--save_path", tmp_path]
    assert train.main([str(argument) for argument in [*run, *weights, "--dim", "256"]]) is not None
    assert "--dim 255 does not fit" in refused(train.main, *run, *weights, "--dim", "255")


def test_what_the_data_do_not_have_is_no_difference(trained, roots, tmp_path, caplog):
    """--eval-split and VIGOR's options say nothing about CVUSA's checkpoint."""
    weights = ["-e", "--weights", str(trained[1] / "model_best.pth.tar"), "--workers", "0", "--save_path"]
    for name in ("cvact", "vigor"):
        train.main(["--dataset", name, "--data-root", str(roots[name]), *weights, str(tmp_path / name)])
    assert "--dataset is cvact (checkpoint: cvusa)" in caplog.text
    assert "not set (checkpoint: not set)" not in caplog.text and "--eval-split" not in caplog.text


@pytest.mark.parametrize("first", [0, 1])
def test_a_training_that_starts_again_from_an_earlier_epoch_has_one_line_for_each(trained, tmp_path, first):
    root, out = trained
    for path in out.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    again = ["--resume", tmp_path / "checkpoint.pth.tar", "--start-epoch", first, "--epochs", "3", "--workers", "0"]
    train.main([str(argument) for argument in ["--data-root", root, "--save_path", tmp_path, *again]])
    assert [line["epoch"] for line in history(tmp_path)] == [1, 2, 3]
    assert load_checkpoint(tmp_path / "checkpoint.pth.tar")["epoch"] == 3


@pytest.mark.parametrize(
    ("more", "sentence"), [(["-e"], "--resume continues a training"), (["--weights", "w"], "cannot be combined")]
)
def test_resume_is_refused_with_what_excludes_it_before_a_file_is_read(roots, tmp_path, refused, more, sentence):
    assert sentence in refused(train.main, *flags(roots["cvusa"], tmp_path), "--resume", "no such file", *more)


@pytest.mark.parametrize("flag", ["--data-root", "--weights", "--save_path"])
def test_a_home_that_does_not_exist_is_refused(roots, tmp_path, refused, flag):
    assert flag in refused(train.main, *flags(roots["cvusa"], tmp_path), f"{flag}=~nobody-has-this-name/x")


def test_a_data_folder_without_permission_is_refused(roots, tmp_path, refused, monkeypatch):
    def forbidden(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", forbidden)
    assert "(Permission denied)" in refused(train.main, *flags(roots["cvusa"], tmp_path, *ADAMW))


@pytest.mark.parametrize("name", ["log.txt", "metrics.jsonl"])
def test_a_run_file_that_cannot_be_opened_is_named(trained, tmp_path, refused, name):
    root, out = trained
    (tmp_path / "checkpoint.pth.tar").write_bytes((out / "checkpoint.pth.tar").read_bytes())
    (tmp_path / name).mkdir()  # as little a file to write to as one without permission
    resume = ["--resume", tmp_path / "checkpoint.pth.tar", "--epochs", "3", "--workers", "0"]
    assert str(tmp_path / name) in refused(train.main, "--data-root", root, "--save_path", tmp_path, *resume)


def test_a_checkpoint_that_is_a_folder_is_refused(roots, tmp_path, refused):
    assert f"{tmp_path} is not a file" in refused(
        train.main, *flags(roots["cvusa"], tmp_path), "-e", "--weights", tmp_path
    )


def test_a_broken_pipe_that_is_not_the_screen_keeps_its_traceback():
    def broken():
        with handle_errors("train.py"):
            raise BrokenPipeError(32, "Broken pipe")  # of a loader process, say

    with pytest.raises(BrokenPipeError):
        broken()


def interrupted_save():
    try:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
    except RuntimeError:
        raise RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 64 vs 0")  # noqa: B904


def lost_connection():
    ours, theirs = multiprocessing.Pipe()
    theirs.close()
    ours.recv()


@pytest.mark.parametrize(("fail", "sentence"), [(interrupted_save, "worker (pid 7)"), (lost_connection, "EOFError")])
def test_a_killed_loader_process_ends_with_one_sentence_wherever_it_is_noticed(capsys, fail, sentence):
    with pytest.raises(SystemExit) as stop, handle_errors("train.py"):
        fail()
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "process was killed" in error and sentence in error


def test_an_end_of_file_that_is_no_killed_process_keeps_its_traceback():
    with pytest.raises(EOFError), handle_errors("train.py"):
        pickle.loads(b"")


@pytest.mark.parametrize("unbuffered", [[], ["-u"]])
def test_a_tool_whose_reader_has_gone_ends_with_141(unbuffered, roots):
    tool = [sys.executable, *unbuffered, str(CHECK_DATA), "--dataset", "cvusa"]
    command = f"{shlex.join([*tool, '--data-root', str(roots['cvusa'])])} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (141, "")


def test_scored_descriptors_must_exist(tmp_path, refused):
    error = refused(score_descriptors.main, tmp_path / "nothing")
    assert f"{tmp_path / 'nothing'} lacks grd_global_descriptor.npy" in error
