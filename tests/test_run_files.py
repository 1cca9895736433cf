"""What becomes of a run's files when runs follow each other, are resumed elsewhere, or are cut off."""

import json
import os
import resource
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from make_data import ASAM, flags

import train
from criterion.build import build_loss
from utils import run_files
from utils.checkpoint import load_checkpoint
from utils.errors import UserError
from utils.options import parse_args

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


@pytest.mark.parametrize(
    "change",
    [
        {"args": "text"},
        {"args": None},
        {"args": {"seed": -1}},
        {"args": {"seed": "x"}},
        {"epoch": np.int64(3)},
        {"epoch": torch.tensor(3)},
        {"epoch": "three"},
    ],
)
def test_files_of_others_are_evaluated(roots, tmp_path, change):
    run = flags(roots["cvusa"], tmp_path)
    train.main([*run, *ADAMW, "--epochs", "1"])
    state = load_checkpoint(tmp_path / "model_best.pth.tar")
    torch.save(state | change, tmp_path / "other.pth.tar")
    train.main([*run, "-e", "--weights", str(tmp_path / "other.pth.tar")])
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert record["epoch"] == {"three": None}.get(change.get("epoch"), 3 if "epoch" in change else 1)


@pytest.mark.parametrize("lacking", ["optimizer", "best_acc1", "epoch", "sampler", "args"])
def test_half_a_checkpoint_is_not_resumed(roots, tmp_path, capfd, lacking):
    run = [*flags(roots["cvusa"], tmp_path), *ADAMW]
    train.main([*run, "--epochs", "1"])
    state = load_checkpoint(tmp_path / "checkpoint.pth.tar")
    del state[lacking]
    torch.save(state, tmp_path / "half.pth.tar")
    resume = [*run, "--epochs", "2", "--resume", str(tmp_path / "half.pth.tar")]
    if lacking == "args":
        assert train.main(resume) is not None
    else:
        assert "holds weights only" in told(capfd, resume)


def test_a_file_without_anything_is_no_checkpoint(roots, tmp_path, capfd):
    torch.save({}, tmp_path / "empty.pth.tar")
    for more in (["-e"], [*ADAMW, "--epochs", "1"]):
        run = [*flags(roots["cvusa"], tmp_path / "run"), *more, "--weights", str(tmp_path / "empty.pth.tar")]
        assert "holds no weights" in told(capfd, run)


def scores(monkeypatch, *values):
    """Let evaluations find these R@1, one after the other."""
    found = iter(values)

    def evaluate(*_):
        return {"R@1": next(found)}, None

    monkeypatch.setattr(train, "evaluate", evaluate)


def test_the_best_of_a_run_resumed_elsewhere_is_the_best_there(roots, tmp_path, monkeypatch):
    scores(monkeypatch, 50.0, 90.0, 80.0, 88.0, 85.0)
    train.main([*flags(roots["cvusa"], tmp_path / "a"), *ADAMW, "--epochs", "2"])
    resume = ["--resume", str(tmp_path / "a" / "checkpoint.pth.tar")]
    train.main([*flags(roots["cvusa"], tmp_path / "b"), *ADAMW, "--epochs", "5", *resume])
    best = {name: load_checkpoint(tmp_path / name / "model_best.pth.tar") for name in "ab"}
    assert [(best[name]["epoch"], best[name]["best_acc1"]) for name in "ab"] == [(2, 90.0), (4, 88.0)]


@pytest.mark.parametrize("stopped", ["model_best.pth.tar", "checkpoint.pth.tar"])
def test_a_run_stopped_while_it_saves_does_the_epoch_again(roots, tmp_path, monkeypatch, capfd, stopped):
    run = [*flags(roots["cvusa"], tmp_path), *ADAMW]
    scores(monkeypatch, 50.0, 90.0, 90.0, 70.0)
    train.main([*run, "--epochs", "1"])
    save = run_files.save_checkpoint

    def full(path, **state):
        if path.name == stopped:
            raise OSError(28, "No space left on device")
        save(path, **state)

    resume = ["--resume", str(tmp_path / "checkpoint.pth.tar")]
    monkeypatch.setattr(run_files, "save_checkpoint", full)
    assert "go on with --resume" in told(capfd, [*run, *resume, "--epochs", "3"])
    monkeypatch.setattr(run_files, "save_checkpoint", save)
    train.main([*run, *resume, "--epochs", "3"])
    assert [(line["epoch"], line["R@1"]) for line in history(tmp_path)] == [(1, 50.0), (2, 90.0), (3, 70.0)]
    assert load_checkpoint(tmp_path / "model_best.pth.tar")["epoch"] == 2


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
    assert "would part an anchor from its mined partner" in told(capfd, [*run, "--mining"])
    assert train.main([*run, "--epochs", "1"])


@pytest.mark.parametrize("share", range(2, 7))
@pytest.mark.parametrize("world", [1, 2, 4])
def test_tuples_that_are_accepted_keep_mined_pairs_together(share, world):
    options = {"loss": "wbl", "alpha": None, "label_smoothing": 0, "learn_temperature": False, "coordinate_mining": 0}
    couple = [(rank, place // 2) for rank in range(world) for place in range(share)]  # an odd share's last is alone
    accepted = 0
    for size in range(2, share * world + 1):
        args = SimpleNamespace(**options, tuple_size=size, gather=True, mining=True)
        try:
            build_loss(args, share, world)
        except UserError:
            continue
        accepted += 1
        assert all(couple[i] != couple[i - 1] for i in range(size, len(couple), size))
    assert accepted


def test_an_evaluation_goes_aside_when_its_weights_are_trained_on(roots, tmp_path):
    run = flags(roots["cvusa"], tmp_path)
    train.main([*run, *ADAMW, "--epochs", "1", "--seed", "1"])
    found = train.main([*run, "-e"])
    again = [*run, *ADAMW, "--seed", "1", "--resume", str(tmp_path / "checkpoint.pth.tar")]
    assert train.main([*again, "--epochs", "1"]) is None and list(tmp_path.glob("*.npy"))  # nothing to train
    train.main([*again, "--epochs", "2"])
    assert not list(tmp_path.glob("*.npy")) and json.loads((tmp_path / "metrics.json").read_text())["epoch"] == 2
    aside = tmp_path / "previous-1"
    assert train.main([*flags(roots["cvusa"], tmp_path / "x"), "-e", "--descriptors", str(aside)]) == found


def test_a_rescoring_leaves_an_evaluation_whole_until_it_has_its_own(roots, tmp_path, capfd):
    train.main([*flags(roots["cvusa"], tmp_path / "run"), *ADAMW, "--epochs", "1"])
    weights = ["-e", "--weights", str(tmp_path / "run" / "model_best.pth.tar")]
    found = train.main([*flags(roots["cvusa"], tmp_path / "a"), *weights])
    train.main([*flags(roots["cvusa"], tmp_path / "b"), *weights, "--fov", "180", "--ground-size", "32", "256"])
    (tmp_path / "bad").mkdir()
    for name in run_files.DESCRIPTOR_FILES:
        np.save(tmp_path / "bad" / name, np.full_like(np.load(tmp_path / "a" / name), np.nan))
    rescore = [*flags(roots["cvusa"], tmp_path / "a"), "-e", "--descriptors"]
    assert "not finite" in told(capfd, [*rescore, str(tmp_path / "bad")])
    assert list((tmp_path / "a").glob("*.npy")) and not (tmp_path / "a" / "previous-1").exists()
    assert "turns whole panoramas" in told(capfd, [*rescore, str(tmp_path / "b"), "--search-north", "4"])
    train.main([*rescore, str(tmp_path / "b")])
    assert json.loads((tmp_path / "a" / "metrics.json").read_text())["fov"] == 180
    aside = tmp_path / "a" / "previous-1"
    assert json.loads((aside / "args.json").read_text())["fov"] == 0 and not (tmp_path / "a" / "args.json").exists()
    assert train.main([*flags(roots["cvusa"], tmp_path / "again"), "-e", "--descriptors", str(aside)]) == found


def test_a_damaged_record_of_options_is_replaced(roots, tmp_path):
    train.main([*flags(roots["cvusa"], tmp_path), *ADAMW, "--epochs", "1"])
    (tmp_path / "args.json").write_text('{"dataset": "cv')
    assert train.main([*flags(roots["cvusa"], tmp_path), "-e"])
    assert json.loads((tmp_path / "args.json").read_text())["evaluate"]


def test_an_evaluation_of_other_weights_leaves_their_options(roots, tmp_path):
    for pool, dim in (("frm", "256"), ("gap", "64")):
        own = ["--pool", pool, "--dim", dim]
        train.main([*flags(roots["cvusa"], tmp_path / pool), *ADAMW, "--epochs", "1", *own])
        weights = str(tmp_path / pool / "model_best.pth.tar")
        train.main([*flags(roots["cvusa"], tmp_path / "out"), "-e", "--weights", weights, "--dim", dim])
        assert json.loads((tmp_path / "out" / "args.json").read_text())["pool"] == pool


def test_descriptors_are_scored_as_what_they_are(roots, tmp_path, capfd):
    train.main([*flags(roots["cvusa"], tmp_path / "run"), *ADAMW, "--epochs", "1", "--seed", "1"])
    weights = str(tmp_path / "run" / "model_best.pth.tar")
    turned = [*flags(roots["cvusa"], tmp_path / "e"), "-e", "--weights", weights, "--orientation", "unknown"]
    found = train.main(turned)
    again = ["-e", "--descriptors", str(tmp_path / "e")]
    assert train.main([*flags(roots["cvusa"], tmp_path / "out"), *again]) == found
    names = ("dataset", "orientation", "fov", "seed", "weights", "epoch")
    first, second = (json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("e", "out"))
    assert [first[n] for n in names] == [second[n] for n in names] == ["cvusa", "unknown", 360, 3, weights, 1]
    assert "of dataset cvusa, not cvact" in told(
        capfd, [*flags(roots["cvact"], tmp_path / "out", dataset="cvact"), *again]
    )
    assert "of orientation unknown, not aligned" in told(
        capfd, [*flags(roots["cvusa"], tmp_path / "out"), *again, "--orientation", "aligned"]
    )


def test_options_that_a_run_is_resumed_or_evaluated_without_are_logged(roots, tmp_path):
    run = [*flags(roots["cvusa"], tmp_path), "--op", "adamw", "--wd", "0.03", "--seed", "1"]
    train.main([*run, "--lr", "0.001", "--batch-size", "8", "--cos", "--orientation", "unknown", "--epochs", "1"])
    train.main([*flags(roots["cvusa"], tmp_path / "e"), "-e", "--weights", str(tmp_path / "model_best.pth.tar")])
    log = (tmp_path / "e" / "log.txt").read_text()
    assert "--orientation aligned, in the checkpoint unknown" in log and "--lr 0" not in log
    train.main([*run, "--epochs", "2", "--batch-size", "8", "--resume", str(tmp_path / "checkpoint.pth.tar")])
    log = (tmp_path / "log.txt").read_text()
    assert "--lr 0.03, in the checkpoint 0.001" in log
    assert "--cos not set, in the checkpoint set" in log and "--batch-size" not in log


@pytest.mark.parametrize(
    "change",
    [{"optimizer": {}}, {"optimizer": []}, {"sampler": []}, {"best_acc1": None}, {"epoch": "three"}],
)
def test_a_damaged_checkpoint_is_not_resumed(roots, tmp_path, capfd, change):
    run = [*flags(roots["cvusa"], tmp_path), *ADAMW]
    train.main([*run, "--epochs", "1"])
    torch.save(load_checkpoint(tmp_path / "checkpoint.pth.tar") | change, tmp_path / "bad.pth.tar")
    error = told(capfd, [*run, "--epochs", "2", "--resume", str(tmp_path / "bad.pth.tar")])
    assert "is no whole checkpoint" in error and list(history(tmp_path))[-1]["epoch"] == 1


def test_paths_that_the_system_refuses_are_told(roots, tmp_path, capfd):
    assert "too long" in told(capfd, flags("x" * 300, tmp_path))
    assert "too long" in told(capfd, [*flags(roots["cvusa"], tmp_path), "--resume", "x" * 300])


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


def test_a_folder_in_use_is_refused_and_left_alone(roots, tmp_path, capfd):
    run = [*flags(roots["cvusa"], tmp_path), *ADAMW, "--epochs", "1"]
    trained = train.main(run)
    other = run_files.RunFiles(tmp_path)
    other.open(fresh=False, alone=True)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert "is in use by another training" in told(capfd, run)
    assert before == {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert train.main([*run, "-e"]) == trained  # evaluating does no harm
    other.close()
    train.main(run)
    assert (tmp_path / "previous-1" / "checkpoint.pth.tar").is_file()


def test_a_screen_that_knows_no_dots_or_is_not_there_costs_nothing(roots, tmp_path):
    """The line with the metrics has "·" in it; `>&-` and `2>&-` close what is written to."""
    for name, environment, closed in (("ascii", {"PYTHONIOENCODING": "ascii"}, ""), ("closed", {}, ">&- 2>&-")):
        run = [*flags(roots["cvusa"], tmp_path / name), *ADAMW, "--epochs", "1"]
        command = f"{shlex.join([sys.executable, str(REPO / 'train.py'), *run])} {closed}"
        done = subprocess.run(command, shell=True, capture_output=True, text=True, env={**os.environ, **environment})
        assert done.returncode == 0, done.stderr
        assert "\\xb7 R@5" in done.stdout if name == "ascii" else not done.stdout
        assert (tmp_path / name / "checkpoint.pth.tar").is_file()
        assert "· R@5" in (tmp_path / name / "log.txt").read_text(encoding="utf-8")


def test_a_run_is_resumed_on_its_own_evaluation_split(city_roots, tmp_path, capfd, caplog):
    run = [*flags(city_roots["cvact"], tmp_path, dataset="cvact"), *ADAMW, "--cos"]
    train.main([*run, "--epochs", "1", "--seed", "1"])
    more = [*run, "--epochs", "2", "--resume", str(tmp_path / "checkpoint.pth.tar")]
    assert "was evaluated on val" in told(capfd, [*more, "--eval-split", "test"])
    caplog.clear()
    train.main([*more, "--eval-split", "val", "--seed", "5", "--fast-decode"])
    assert all(f"--{name} " in caplog.text for name in ("epochs", "seed", "fast-decode"))
    assert len(history(tmp_path)) == 2


def test_a_home_is_found_where_the_shell_leaves_it(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    args = parse_args(["--dataset", "cvusa", "--data-root=~/d", "--save_path=~/x", "--cache=~/c"])
    assert [str(p) for p in (args.data_root, args.save_path, args.cache)] == [f"/home/someone/{n}" for n in "dxc"]
