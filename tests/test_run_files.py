"""What becomes of a run's files when runs follow each other, are resumed elsewhere, or are cut off."""

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from make_data import ASAM, flags

import train
from utils.checkpoint import load_checkpoint

REPO = Path(__file__).parent.parent
ADAMW = ["--op", "adamw", "--lr", "0.001", "--wd", "0.03", "--batch-size", "8"]


def told(capfd, arguments):
    """The sentence with which train.py refuses."""
    with pytest.raises(SystemExit) as stop:
        train.main(arguments)
    error = capfd.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in error
    return error


def history(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_unknown_norths_are_the_same_in_every_evaluation(roots, tmp_path):
    run = [*flags(roots["cvusa"], tmp_path), "--orientation", "unknown"]
    trained = train.main([*run, *ADAMW, "--epochs", "1", "--seed", "7"])
    plain = ["--dataset", "cvusa", "--data-root", str(roots["cvusa"]), "--save_path", str(tmp_path), "--workers", "0"]
    assert train.main([*plain, "-e", "--orientation", "unknown"]) == trained
    assert json.loads((tmp_path / "metrics.json").read_text())["seed"] == 7


def test_a_run_resumed_elsewhere_leaves_the_run_there_whole(roots, tmp_path):
    for name, seed in (("a", "1"), ("b", "9")):
        train.main([*flags(roots["cvusa"], tmp_path / name), *ADAMW, "--epochs", "1", "--seed", seed])
        train.main([*flags(roots["cvusa"], tmp_path / name), "-e"])
    last = tmp_path / "a" / "checkpoint.pth.tar"
    more = [*ADAMW, "--epochs", "2", "--seed", "1"]
    train.main([*flags(roots["cvusa"], tmp_path / "b"), *more, "--resume", str(last)])
    aside = tmp_path / "b" / "previous-1"
    assert load_checkpoint(aside / "checkpoint.pth.tar")["args"]["seed"] == 9
    assert (aside / "grd_global_descriptor.npy").is_file() and not list((tmp_path / "b").glob("*.npy"))
    assert load_checkpoint(tmp_path / "b" / "model_best.pth.tar")["args"]["seed"] == 1
    assert [line["epoch"] for line in history(tmp_path / "b")] == [2]
    assert load_checkpoint(last)["epoch"] == 1


def test_half_a_line_of_history_does_not_stop_a_resumed_run(roots, tmp_path):
    run = [*flags(roots["cvusa"], tmp_path), *ADAMW]
    train.main([*run, "--epochs", "1"])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 2, "lo')
    train.main([*run, "--epochs", "2", "--resume", str(tmp_path / "checkpoint.pth.tar")])
    assert [line["epoch"] for line in history(tmp_path)] == [1, 2]


@pytest.mark.parametrize("more", [["--rho", "9"], ["--wd", "0.5"], ["--dataset", "pairs"], ["--op", "adamw"]])
def test_what_a_resumed_run_cannot_change_is_told(roots, tmp_path, capfd, more):
    train.main([*flags(roots["cvusa"], tmp_path), *ASAM, "--epochs", "1"])
    run = flags(roots["pairs" if "pairs" in more else "cvusa"], tmp_path)
    asam = ASAM[:1] + ASAM[1:] if more[0] != "--op" else [word for word in ASAM if word != "--asam"]
    error = told(capfd, [*run, *asam, *more, "--epochs", "2", "--resume", str(tmp_path / "checkpoint.pth.tar")])
    assert f"{'--weight-decay' if more[0] == '--wd' else more[0]} is" in error and "resume as it was trained" in error


def test_evaluations_say_what_their_descriptors_are_made_of(roots, tmp_path, capfd):
    run = [word for word in flags(roots["cvusa"], tmp_path / "x") if word not in ("--dim", "256")]
    for regions in ("4", "2"):
        run[run.index("--save_path") + 1] = str(tmp_path / regions)
        train.main([*run, *ADAMW, "--epochs", "1", "--regions", regions])
    run[run.index("--save_path") + 1] = str(tmp_path / "both")
    for regions in ("4", "2"):
        train.main([*run, "-e", "--weights", str(tmp_path / regions / "checkpoint.pth.tar")])
    scored = [*run, "-e", "--descriptors", str(tmp_path / "both"), "--search-north"]
    assert "give --search-north 2" in told(capfd, [*scored, "4"])
    assert "R@1" in train.main([*scored, "2"])


@pytest.mark.parametrize(
    "content", [b"PK no numbers", np.array([["a", "b"]]), np.ones((7, 4), dtype=complex), np.ones(7)]
)
def test_files_that_hold_no_descriptors_are_told(roots, tmp_path, capfd, content):
    for name in ("grd_global_descriptor.npy", "sat_global_descriptor.npy"):
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
        else:
            np.save(tmp_path / name, content)
    error = told(capfd, [*flags(roots["cvusa"], tmp_path / "out"), "-e", "--descriptors", str(tmp_path)])
    assert "grd_global_descriptor.npy" in error and "train.py -e" in error


def test_a_rank_that_no_node_has_is_told(roots, tmp_path, capfd):
    assert "--rank 1 is not a node" in told(capfd, [*flags(roots["cvusa"], tmp_path), *ADAMW, "--rank", "1"])


def test_an_odd_tuple_that_would_part_mined_pairs_is_told(roots, tmp_path, capfd):
    run = [*flags(roots["cvusa"], tmp_path), *ADAMW, "-b", "9", "--tuple-size", "3"]
    assert "give an even divisor" in told(capfd, [*run, "--mining"])
    assert train.main([*run, "--epochs", "1"])


@pytest.mark.parametrize(("limit", "more"), [(6_000, ["-e"]), (50_000, [*ADAMW, "--epochs", "2"])])
def test_a_full_disk_is_told_and_leaves_no_half_files(roots, tmp_path, limit, more):
    train.main([*flags(roots["cvusa"], tmp_path), *ADAMW, "--epochs", "1"])
    train.main([*flags(roots["cvusa"], tmp_path), "-e"])
    before = np.load(tmp_path / "grd_global_descriptor.npy")

    def fill_disk():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    again = flags(roots["cvusa"], tmp_path if "-e" in more else tmp_path / "new", *more)
    done = subprocess.run(
        [sys.executable, REPO / "train.py", *again], capture_output=True, text=True, preexec_fn=fill_disk
    )
    assert done.returncode == 2 and "could not be written" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.partial"))
    np.testing.assert_array_equal(np.load(tmp_path / "grd_global_descriptor.npy"), before)
