"""Options that meet a checkpoint, and calls that cannot work, through train.py and the tools."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from make_data import ADAMW, flags

import train
from scripts import build_cache, score_descriptors
from utils.checkpoint import load_checkpoint
from utils.options import handle_errors

REPO = Path(__file__).parent.parent


def refusal(capfd, arguments, main=train.main):
    """The sentence with which a program ends."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    error = capfd.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in error
    return error


@pytest.fixture(scope="module")
def trained(roots, tmp_path_factory):
    """The data and the folder of a training that did not name --dim."""
    out = tmp_path_factory.mktemp("trained")
    run = [argument for argument in flags(roots["cvusa"], out, *ADAMW) if argument not in ("--dim", "256")]
    train.main([*run, "--epochs", "2"])
    return roots["cvusa"], out


def test_dim_is_checked_against_the_network_and_not_against_the_checkpoint(trained, tmp_path, capfd):
    root, out = trained
    weights = ["-e", "--weights", out / "model_best.pth.tar", "--workers", "0"]
    run = ["--dataset", "cvusa", "--data-root", root, "--save_path", tmp_path]
    assert train.main([str(argument) for argument in [*run, *weights, "--dim", "256"]]) is not None
    assert "--dim 255 does not fit" in refusal(capfd, [*run, *weights, "--dim", "255"])


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
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]
    assert load_checkpoint(tmp_path / "checkpoint.pth.tar")["epoch"] == 3


@pytest.mark.parametrize(
    ("more", "sentence"), [(["-e"], "--resume continues a training"), (["--weights", "w"], "cannot be combined")]
)
def test_resume_is_refused_with_what_excludes_it_before_a_file_is_read(roots, tmp_path, capfd, more, sentence):
    assert sentence in refusal(capfd, [*flags(roots["cvusa"], tmp_path), "--resume", "no such file", *more])


@pytest.mark.parametrize("flag", ["--data-root", "--weights", "--save_path"])
def test_a_home_that_does_not_exist_is_refused(roots, tmp_path, capfd, flag):
    assert f"{flag}" in refusal(capfd, [*flags(roots["cvusa"], tmp_path), f"{flag}=~nobody-has-this-name/x"])


def test_a_data_folder_without_permission_is_refused(roots, tmp_path, capfd, monkeypatch):
    def forbidden(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", forbidden)
    assert "(Permission denied)" in refusal(capfd, flags(roots["cvusa"], tmp_path, *ADAMW))


@pytest.mark.parametrize("name", ["log.txt", "metrics.jsonl"])
def test_a_run_file_that_cannot_be_opened_is_named(trained, tmp_path, capfd, name):
    root, out = trained
    (tmp_path / "checkpoint.pth.tar").write_bytes((out / "checkpoint.pth.tar").read_bytes())
    (tmp_path / name).mkdir()  # as little a file to write to as one without permission
    resume = ["--resume", tmp_path / "checkpoint.pth.tar", "--epochs", "3", "--workers", "0"]
    assert str(tmp_path / name) in refusal(capfd, ["--data-root", root, "--save_path", tmp_path, *resume])


def test_a_checkpoint_that_is_a_folder_is_refused(roots, tmp_path, capfd):
    error = refusal(capfd, [*flags(roots["cvusa"], tmp_path), "-e", "--weights", tmp_path])
    assert f"{tmp_path} is not a file" in error


def test_a_broken_pipe_that_is_not_the_screen_keeps_its_traceback():
    def broken():
        with handle_errors("train.py"):
            raise BrokenPipeError(32, "Broken pipe")  # of a loader process, say

    with pytest.raises(BrokenPipeError):
        broken()


@pytest.mark.parametrize("unbuffered", [[], ["-u"]])
def test_a_tool_whose_reader_has_gone_ends_with_141(unbuffered, roots):
    tool = [sys.executable, *unbuffered, str(REPO / "scripts" / "check_data.py"), "--dataset", "cvusa"]
    command = f"{shlex.join([*tool, '--data-root', str(roots['cvusa'])])} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=os.environ)
    assert (done.returncode, done.stderr) == (141, "")


def test_scored_descriptors_must_exist(tmp_path, capfd):
    error = refusal(capfd, [tmp_path / "nothing"], score_descriptors.main)
    assert f"{tmp_path / 'nothing'} lacks grd_global_descriptor.npy" in error


def test_a_cache_is_filled_for_the_split_that_an_evaluation_calls_val(roots, tmp_path, capfd):
    sizes = ["--ground-size", "16", "32", "--aerial-size", "16", "16", "--jobs", "1"]
    build_cache.main(["--dataset", "vigor", "--data-root", str(roots["vigor"]), "--cache", str(tmp_path), *sizes,
                      "--splits", "val"])  # fmt: skip
    assert "test panoramas: " in capfd.readouterr().out
