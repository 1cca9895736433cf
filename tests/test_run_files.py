"""What happens to a run's files when runs follow each other, are resumed elsewhere, or are cut off."""

import errno
import json
import os
import resource
import shlex
import signal
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from make_data import ADAMW, ASAM, flags, record, stopped_after

import train
from scripts import score_descriptors
from utils.checkpoint import load_checkpoint
from utils.options import UserError, parse_args
from utils.ranking import CollapsedError, DescriptorError
from utils.run_files import DESCRIPTOR_FILES, RunFiles, warn_once

REPO = Path(__file__).parent.parent


def told(capfd, arguments, main=train.main):
    """The sentence with which train.py refuses."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    error = capfd.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in error
    return error


def history(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def scores(monkeypatch, *values):
    """Let evaluations find these R@1, one after the other; an exception among them is raised."""
    found = iter(values)

    def evaluate(*_):
        value = next(found)
        if isinstance(value, Exception):
            raise value
        return {"R@1": value}, None

    monkeypatch.setattr(train, "evaluate", evaluate)


def resume(folder):
    return ["--resume", str(folder / "checkpoint.pth.tar")]


# Resuming.


def test_a_run_resumed_elsewhere_leaves_the_run_there_whole(roots, tmp_path):
    for name, seed in (("a", "1"), ("b", "9")):
        train.main([*flags(roots["cvusa"], tmp_path / name), *ADAMW, "--epochs", "1", "--seed", seed])
        train.main([*flags(roots["cvusa"], tmp_path / name), "-e"])
    elsewhere = [*flags(roots["cvusa"], tmp_path / "b"), *ADAMW, "--epochs", "2", "--seed", "1"]
    train.main([*elsewhere, *resume(tmp_path / "a")])
    aside = tmp_path / "b" / "previous-1"
    assert load_checkpoint(aside / "checkpoint.pth.tar")["args"]["seed"] == 9
    assert (aside / DESCRIPTOR_FILES[0]).is_file() and not list((tmp_path / "b").glob("*.npy"))
    assert load_checkpoint(tmp_path / "b" / "model_best.pth.tar")["args"]["seed"] == 1
    assert [line["epoch"] for line in history(tmp_path / "b")] == [2]
    assert load_checkpoint(tmp_path / "a" / "checkpoint.pth.tar")["epoch"] == 1


def test_the_best_of_a_run_resumed_elsewhere_is_the_best_there(roots, tmp_path, monkeypatch):
    scores(monkeypatch, 50.0, 90.0, 80.0, 88.0, 85.0)
    train.main([*flags(roots["cvusa"], tmp_path / "a"), *ADAMW, "--epochs", "2"])
    train.main([*flags(roots["cvusa"], tmp_path / "b"), *ADAMW, "--epochs", "5", *resume(tmp_path / "a")])
    best = {name: load_checkpoint(tmp_path / name / "model_best.pth.tar") for name in "ab"}
    assert [(best[name]["epoch"], best[name]["best_acc1"]) for name in "ab"] == [(2, 90.0), (4, 88.0)]


def test_the_recipe_comes_from_the_checkpoint(roots, tmp_path, caplog):
    """--resume alone continues the same training; the end is that of a run that was never stopped."""
    recipe = ["--op", "adamw", "--lr", "0.001", "--wd", "0.03", "-b", "8", "--cos", "--epochs", "3", "--fov", "270"]
    recipe += ["--augment", "--ground-size", "32", "256"]
    train.main([*flags(roots["cvusa"], tmp_path / "straight"), *recipe])
    stopped_after(1, [*flags(roots["cvusa"], tmp_path / "stopped"), *recipe])
    caplog.clear()
    where = ["--data-root", str(roots["cvusa"]), "--save_path", str(tmp_path / "stopped"), "--workers", "0"]
    train.main([*where, *resume(tmp_path / "stopped")])
    assert "--lr is 0.001 (from the checkpoint)" in caplog.text and "--cos is set" in caplog.text
    a, b = (load_checkpoint(tmp_path / name / "checkpoint.pth.tar")["state_dict"] for name in ("straight", "stopped"))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert [line["loss"] for line in history(tmp_path / "straight")] == [
        line["loss"] for line in history(tmp_path / "stopped")
    ]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--rho", "9"], "--rho is 9.0 "),
        (["--wd", "0.5"], "--wd is 0.5 "),
        (["--lr", "0.1"], "--lr is 0.1 "),
        (["--op", "adamw"], "--op is adamw "),
        (["--dataset", "pairs"], "--dataset is pairs "),
        (["--fov", "90"], "--fov is 90 "),
        (["--seed", "4"], "--seed is 4 "),
        (["--amp", "bf16"], "--amp is bf16 "),
        (["--ema", "0.9"], "--ema is 0.9 "),
        (["--arch", "test_vit"], "--arch is test_vit "),
        (["--ground-size", "64", "256"], "--ground-size is 64 256 "),
    ],
)
def test_contradictions_to_the_checkpoint_are_refused(resumable, capfd, more, sentence):
    root, out = resumable
    run = ["--data-root", str(root), "--save_path", str(out), *resume(out), "--epochs", "2"]
    error = told(capfd, [*run, *more])
    assert sentence in error and "checkpoint.pth.tar: " in error and "--weights" in error
    assert [line["epoch"] for line in history(out)] == [1]


@pytest.fixture(scope="module")
def resumable(roots, tmp_path_factory):
    out = tmp_path_factory.mktemp("resumable")
    train.main([*flags(roots["cvusa"], out), *ASAM, "--epochs", "1"])
    return roots["cvusa"], out


@pytest.mark.parametrize(("number", "trained"), [(1, 2), (2, 1), (3, 1)])
def test_an_epoch_is_saved_before_it_is_evaluated(roots, tmp_path, monkeypatch, capfd, number, trained):
    """The checkpoint, the best weights, the checkpoint with the new best: a run may end at any of them."""
    run = [*flags(roots["cvusa"], tmp_path), *ADAMW, "--epochs", "3"]
    with monkeypatch.context() as patch:
        scores(patch, 50.0)
        stopped_after(1, run)
    save, calls = train.save_checkpoint, []

    def full(*args, **state):
        calls.append(args)
        if len(calls) == number:
            raise UserError("no space left")
        save(*args, **state)

    with monkeypatch.context() as patch:
        patch.setattr(train, "save_checkpoint", full)
        scores(patch, 90.0)
        assert "no space left" in told(capfd, [*run, *resume(tmp_path)])
    scores(monkeypatch, 90.0, 70.0)
    train.main([*run, *resume(tmp_path)])
    assert (tmp_path / "log.txt").read_text().count("epoch 2 step 5/5") == trained
    assert [(line["epoch"], line["R@1"]) for line in history(tmp_path)] == [(1, 50.0), (2, 90.0), (3, 70.0)]
    assert load_checkpoint(tmp_path / "model_best.pth.tar")["epoch"] == 2
    assert load_checkpoint(tmp_path / "checkpoint.pth.tar")["best_acc1"] == 90.0


def test_a_failed_evaluation_costs_no_epoch(roots, tmp_path, monkeypatch, capfd):
    run = [*flags(roots["cvusa"], tmp_path), *ADAMW, "--epochs", "2", "--print-freq", "99"]
    with monkeypatch.context() as patch:
        scores(patch, DescriptorError("query descriptors are not finite"))
        assert "not finite" in told(capfd, run)
    assert load_checkpoint(tmp_path / "checkpoint.pth.tar")["epoch"] == 1 and not (tmp_path / "metrics.jsonl").exists()
    train.main([*run, *resume(tmp_path)])
    log = (tmp_path / "log.txt").read_text()
    assert log.count("epoch 1 step") == log.count("epoch 2 step") == 1
    assert ["R@1" in line for line in history(tmp_path)] == [True, True]


def test_a_failed_evaluation_of_the_last_epoch_is_made_up_for(roots, tmp_path, monkeypatch, capfd):
    run = [*flags(roots["cvusa"], tmp_path), *ADAMW, "--epochs", "2"]
    scores(monkeypatch, 30.0, UserError("the card fell off the bus"), 40.0)
    assert "off the bus" in told(capfd, run)
    assert train.main([*run, *resume(tmp_path)]) == {"R@1": 40.0}
    assert [(line["epoch"], line["R@1"]) for line in history(tmp_path)] == [(1, 30.0), (2, 40.0)]
    assert train.main([*run, *resume(tmp_path)]) is None  # now nothing is left


def test_collapsed_descriptors_score_0_in_training_and_are_refused_by_an_evaluation(
    roots, tmp_path, monkeypatch, capfd, caplog
):
    run = [*flags(roots["cvusa"], tmp_path), *ADAMW]
    collapsed = CollapsedError("query descriptors have collapsed")
    with monkeypatch.context() as patch:
        scores(patch, collapsed, 40.0)
        train.main([*run, "--epochs", "2"])
    assert "epoch 1 scores 0: query descriptors have collapsed" in caplog.text
    assert [line["R@1"] for line in history(tmp_path)] == [0.0, 40.0] and history(tmp_path)[0]["collapsed"]
    assert load_checkpoint(tmp_path / "model_best.pth.tar")["epoch"] == 2
    scores(monkeypatch, collapsed)
    assert "have collapsed" in told(capfd, [*run, "-e"])


def test_half_a_line_of_history_does_not_stop_a_resumed_run(roots, tmp_path):
    run = [*flags(roots["cvusa"], tmp_path), *ADAMW]
    train.main([*run, "--epochs", "1"])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 2, "lo')
    train.main([*run, "--epochs", "2", *resume(tmp_path)])
    assert [line["epoch"] for line in history(tmp_path)] == [1, 2]


@pytest.mark.parametrize("lacking", ["optimizer", "best_acc1", "epoch", "sampler", "args"])
def test_half_a_checkpoint_is_not_resumed(resumable, tmp_path, capfd, caplog, lacking):
    root, out = resumable
    state = load_checkpoint(out / "checkpoint.pth.tar")
    del state[lacking]
    torch.save(state, tmp_path / "checkpoint.pth.tar")
    run = [*flags(root, tmp_path / "out"), *ASAM, "--epochs", "2", *resume(tmp_path)]
    if lacking == "args":
        assert train.main(run) is not None
        assert caplog.text.count("the checkpoint does not store its options") == 1
    else:
        assert "holds weights only" in told(capfd, run)


@pytest.mark.parametrize(
    "change", [{"optimizer": {}}, {"optimizer": []}, {"sampler": []}, {"best_acc1": None}, {"epoch": "three"}]
)
def test_a_damaged_checkpoint_is_not_resumed(resumable, tmp_path, capfd, change):
    root, out = resumable
    torch.save(load_checkpoint(out / "checkpoint.pth.tar") | change, tmp_path / "checkpoint.pth.tar")
    error = told(capfd, [*flags(root, tmp_path / "out"), *ASAM, "--epochs", "2", *resume(tmp_path)])
    assert f"its {next(iter(change))} is damaged" in error


def test_our_own_bugs_are_not_blamed_on_the_checkpoint(resumable, tmp_path, monkeypatch):
    root, out = resumable

    def broken(self, state):
        raise AttributeError("a bug")

    monkeypatch.setattr(train.MiningSampler, "load_state_dict", broken)
    with pytest.raises(AttributeError, match="a bug"):
        train.main([*flags(root, tmp_path), *ASAM, "--epochs", "2", *resume(out)])


# Evaluations.


def test_unknown_norths_are_the_same_in_every_evaluation(roots, tmp_path):
    run = [*flags(roots["cvusa"], tmp_path), "--orientation", "unknown"]
    trained = train.main([*run, *ADAMW, "--epochs", "1", "--seed", "7"])
    plain = ["--dataset", "cvusa", "--data-root", str(roots["cvusa"]), "--save_path", str(tmp_path), "--workers", "0"]
    assert train.main([*plain, "-e", "--orientation", "unknown"]) == trained
    assert json.loads((tmp_path / "metrics.json").read_text())["seed"] == 7


@pytest.mark.parametrize(
    "change",
    [{"args": "text"}, {"args": None}, {"args": {"seed": -1}}, {"args": {"seed": "x"}}, {"epoch": np.int64(3)},
     {"epoch": torch.tensor(3)}, {"epoch": "three"}],
)  # fmt: skip
def test_files_of_others_are_evaluated(resumable, tmp_path, change):
    root, out = resumable
    torch.save(load_checkpoint(out / "model_best.pth.tar") | change, tmp_path / "other.pth.tar")
    train.main([*flags(root, tmp_path), "-e", "--weights", str(tmp_path / "other.pth.tar")])
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert record["epoch"] == {"three": None}.get(change.get("epoch"), 3 if "epoch" in change else 1)


def test_an_evaluation_goes_aside_when_its_weights_are_trained_on(roots, tmp_path):
    run = flags(roots["cvusa"], tmp_path)
    train.main([*run, *ADAMW, "--epochs", "1"])
    found = train.main([*run, "-e"])
    again = [*run, *ADAMW, *resume(tmp_path)]
    assert train.main([*again, "--epochs", "1"]) is None and list(tmp_path.glob("*.npy"))  # nothing to train
    train.main([*again, "--epochs", "2"])
    assert not list(tmp_path.glob("*.npy")) and json.loads((tmp_path / "metrics.json").read_text())["epoch"] == 2
    assert score_descriptors.main([str(tmp_path / "previous-1")]) == found


def test_args_json_is_the_trainings_or_else_the_last_evaluations(roots, tmp_path):
    for pool, dim in (("frm", "256"), ("gap", "64")):
        own = ["--pool", pool, "--dim", dim]
        train.main([*flags(roots["cvusa"], tmp_path / pool), *ADAMW, "--epochs", "1", *own])
        weights = str(tmp_path / pool / "model_best.pth.tar")
        train.main([*flags(roots["cvusa"], tmp_path / "out"), "-e", "--weights", weights, "--dim", dim])
        assert json.loads((tmp_path / "out" / "args.json").read_text())["pool"] == pool
    train.main([*flags(roots["cvusa"], tmp_path / "frm"), "-e"])
    assert not json.loads((tmp_path / "frm" / "args.json").read_text())["evaluate"]
    (tmp_path / "out" / "args.json").write_text('{"dataset": "cv')  # damaged: replaced
    train.main([*flags(roots["cvusa"], tmp_path / "out"), "-e", "--weights", weights, "--dim", dim])
    assert json.loads((tmp_path / "out" / "args.json").read_text())["evaluate"]


def test_what_differs_from_the_checkpoint_is_logged(roots, tmp_path, caplog):
    run = [*flags(roots["cvusa"], tmp_path), "--op", "adamw", "--lr", "0.001", "-b", "8"]
    train.main([*run, "--orientation", "unknown", "--epochs", "1"])
    caplog.clear()
    train.main([*flags(roots["cvusa"], tmp_path / "e"), "-e", "--weights", str(tmp_path / "model_best.pth.tar")])
    assert "--orientation is not set (checkpoint: unknown)" in caplog.text and "--lr" not in caplog.text


# Saved descriptors.


def test_saved_descriptors_are_scored_as_what_they_are(resumable, tmp_path, capfd):
    root, out = resumable
    weights = str(out / "model_best.pth.tar")
    turned = [*flags(root, tmp_path / "e"), "-e", "--weights", weights, "--orientation", "unknown"]
    found = train.main(turned)
    score = score_descriptors.main
    assert score([str(tmp_path / "e"), "--out", str(tmp_path / "out")]) == found
    names = ("dataset", "orientation", "fov", "seed", "weights", "epoch")
    first, second = (json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("e", "out"))
    assert [first[n] for n in names] == [second[n] for n in names] == ["cvusa", "unknown", 360, 3, weights, 1]
    assert "--dataset is cvact (" in told(capfd, [str(tmp_path / "e"), "--dataset", "cvact"], score)
    assert "--orientation is aligned (" in told(capfd, [str(tmp_path / "e"), "--orientation", "aligned"], score)
    assert "holds a metrics.json already" in told(capfd, [str(tmp_path / "e"), "--out", str(tmp_path / "out")], score)
    assert score([str(tmp_path / "e"), "--search-north", "4"])["R@1"] >= found["R@1"]
    assert "pass --search-north 4" in told(capfd, [str(tmp_path / "e"), "--search-north", "8"], score)
    (tmp_path / "e" / "metrics.json").unlink()  # of an older evaluation: the flags describe the data
    given = [str(tmp_path / "e"), "--dataset", "cvusa", "--data-root", str(root), "--orientation", "unknown"]
    assert score(given) == found
    assert "pass --regions" in told(capfd, [*given, "--search-north", "4"], score)


@pytest.mark.parametrize("regions", ["2", "1"])
def test_saved_descriptors_are_searched_by_the_regions_they_have(roots, tmp_path, regions):
    run = [arg for arg in flags(roots["cvusa"], tmp_path) if arg not in ("--dim", "256")]
    train.main([*run, *ADAMW, "--regions", regions, "--epochs", "1"])
    found = train.main([*run, "-e", "--search-north", regions])
    assert score_descriptors.main([str(tmp_path), "--search-north", regions]) == found


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b"PK no numbers", "cannot be read"), (np.array([["a", "b"]]), "expected floats"), (np.ones(7), "expected floats"),
     (np.eye(4), "has shape (4, 4)"), (None, "lacks grd_global"), (np.full((7, 4), np.nan), "not finite")],
)  # fmt: skip
def test_files_that_hold_no_descriptors_are_told(roots, tmp_path, capfd, content, sentence):
    for name in DESCRIPTOR_FILES if content is not None else ():
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
        else:
            np.save(tmp_path / name, content)
    given = [str(tmp_path), "--dataset", "cvusa", "--data-root", str(roots["cvusa"])]
    error = told(capfd, given, score_descriptors.main)
    assert sentence in error and ("query" in error or "grd_global_descriptor.npy" in error)


# Disks, screens, folders.


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
    assert "free some space" in done.stderr
    assert not list(tmp_path.rglob("*.partial"))
    np.testing.assert_array_equal(np.load(tmp_path / "grd_global_descriptor.npy"), before)


def test_an_earlier_run_is_moved_aside_not_overwritten(roots, tmp_path):
    for seed in ("1", "2", "3"):
        train.main([*flags(roots["cvusa"], tmp_path), *ADAMW, "--epochs", "1", "--seed", seed])
    folders = (tmp_path / "previous-1", tmp_path / "previous-2", tmp_path)
    assert [json.loads((folder / "args.json").read_text())["seed"] for folder in folders] == [1, 2, 3]
    assert load_checkpoint(tmp_path / "previous-1" / "model_best.pth.tar")["epoch"] == 1


def test_a_folder_in_use_is_refused_and_left_alone(roots, tmp_path, capfd):
    run = [*flags(roots["cvusa"], tmp_path), *ADAMW, "--epochs", "1"]
    trained = train.main(run)
    other = RunFiles(tmp_path, tmp_path / "checkpoint.pth.tar")
    assert other.open(training=True) == []
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert "is in use by another training" in told(capfd, run)
    assert train.main([*run, "-e"]) == trained  # an evaluation has a folder of its own
    assert "so this evaluation is written to its evaluation/" in capfd.readouterr().out
    own = {path.name for path in (tmp_path / "evaluation").iterdir()}
    assert own == {"args.json", "log.txt", "metrics.json", *DESCRIPTOR_FILES}
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    other.close()
    train.main(run)
    assert (tmp_path / "previous-1" / "checkpoint.pth.tar").is_file()
    assert f"the files of an earlier run were moved to {tmp_path / 'previous-1'}" in (tmp_path / "log.txt").read_text()


def test_nothing_to_train_moves_nothing(roots, tmp_path, capfd):
    run = [*flags(roots["cvusa"], tmp_path), *ADAMW]
    train.main([*run, "--epochs", "1"])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for more in (["--epochs", "0"], ["--epochs", "1", *resume(tmp_path)]):
        capfd.readouterr()
        assert train.main([*run, *more]) is None
        assert "nothing to train" in capfd.readouterr().out
        assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def flip(path, name):
    """Change a byte of one part of a checkpoint, as a failing disk does."""
    with zipfile.ZipFile(path) as archive:
        part = next(i for i in archive.infolist() if i.filename.endswith(name))
    content = bytearray(path.read_bytes())
    header = content[part.header_offset : part.header_offset + 30]  # then the name and a padding, then the bytes
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    content[part.header_offset + 30 + lengths + part.file_size // 2] ^= 16
    (path.parent / "flipped").write_bytes(content)  # not over the file, from which tensors may be mapped
    (path.parent / "flipped").replace(path)


@pytest.mark.parametrize("harm", ["data.pkl", "data/7", "cut", "gone"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(roots, tmp_path, capfd, harm):
    run = [*flags(roots["cvusa"], tmp_path / "r"), *ADAMW, "--seed", "3"]
    straight = train.main([*run, "--epochs", "3", "--save_path", str(tmp_path / "straight")])
    train.main([*run, "--epochs", "2"])
    path, before = (tmp_path / "r" / name for name in ("checkpoint.pth.tar", "checkpoint_before.pth.tar"))
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:-1000])
    elif harm == "gone":
        path.unlink()
    else:
        flip(path, harm)
    again = [*run, "--epochs", "3", *resume(tmp_path / "r")]
    assert train.main(again) == straight
    log = (tmp_path / "r" / "log.txt").read_text()
    assert f"continuing from the checkpoint before it, {before}" in log
    damaged = path.with_name("checkpoint.pth.tar.damaged")
    assert damaged.exists() == (harm != "gone") == (f"{path} was renamed to {damaged.name}" in log)
    a, b = (load_checkpoint(out / path.name)["state_dict"] for out in (tmp_path / "straight", tmp_path / "r"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    flip(path, "data/7")
    flip(before, "data/7")
    error = told(capfd, [*again, "--epochs", "4"])
    assert "checkpoint_before.pth.tar is damaged: its part" in error
    flip(tmp_path / "r" / "model_best.pth.tar", "data/7")
    assert "model_best.pth.tar is damaged: its part" in told(capfd, [*run, "-e"])


@pytest.mark.parametrize("lacking", ["locks", "links", "fsync of folders"])
def test_a_file_system_that_lacks_something_is_told_of_once(roots, tmp_path, monkeypatch, lacking):
    fsync = os.fsync

    def refuse(number, sentence):
        def call(*args):
            raise OSError(number, sentence)

        return call

    def folders(number):
        if stat.S_ISDIR(os.fstat(number).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(number)

    if lacking == "locks":
        monkeypatch.setattr("fcntl.flock", refuse(errno.ENOLCK, "No locks available"))
    elif lacking == "links":
        monkeypatch.setattr("os.link", refuse(errno.EPERM, "Operation not permitted"))
    else:
        monkeypatch.setattr("os.fsync", folders)
        warn_once.cache_clear()
    train.main([*flags(roots["cvusa"], tmp_path), *ADAMW, "--epochs", "2"])
    log = (tmp_path / "log.txt").read_text()
    assert log.count("has no locks (No locks available)") == (lacking == "locks")
    assert log.count("cannot confirm that files are on disk (Invalid argument)") == (lacking == "fsync of folders")
    assert load_checkpoint(tmp_path / "checkpoint_before.pth.tar")["epoch"] in (1, 2)


@pytest.mark.parametrize("moment", range(9))
def test_a_killed_evaluation_leaves_no_mixture(tmp_path, moment):
    """Killed before the given one of its steps on files, which are 3 removals and 3 renamings."""
    files = RunFiles(tmp_path)
    files.open(training=False)
    files.write_evaluation({"number": 1.0}, [np.full((5, 2), 1.0), np.full((4, 2), 1.0)])
    child = os.fork()
    if child == 0:
        done = []

        def killed(method):
            def call(*args, **kwargs):
                done.append(method)
                if len(done) > moment:
                    os._exit(0)
                return method(*args, **kwargs)

            return call

        Path.unlink, Path.replace = killed(Path.unlink), killed(Path.replace)
        files.write_evaluation({"number": 2.0}, [np.full((5, 2), 2.0), np.full((4, 2), 2.0)])
        os._exit(0)
    os.waitpid(child, 0)
    found = [np.load(tmp_path / name)[0, 0] for name in DESCRIPTOR_FILES if (tmp_path / name).exists()]
    found += [record(tmp_path)["number"]] if files.metrics.exists() else []
    assert len(set(found)) <= 1 and (moment > 0 or found == [1.0] * 3) and (moment < 6 or found == [2.0] * 3)


@pytest.mark.parametrize("screen", ["", ">&- 2>&-", "> /dev/full", "| true"])
def test_a_screen_that_fails_costs_nothing(roots, tmp_path, screen):
    """ASCII only (the metrics have a "·"), closed, full, or a pipe whose reader has gone: log.txt has everything."""
    run = [*flags(roots["cvusa"], tmp_path), *ADAMW, "--epochs", "1"]
    command = f"set -o pipefail; {shlex.join([sys.executable, str(REPO / 'train.py'), *run])} {screen}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    assert done.returncode == 0, done.stderr
    assert ("\\xb7 R@5" in done.stdout) == (not screen)
    assert (tmp_path / "metrics.json").is_file()
    assert "· R@5" in (tmp_path / "log.txt").read_text(encoding="utf-8")


def test_a_bug_keeps_its_traceback_on_the_screen_and_in_the_log(roots, tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(5, "Input/output error", "/somewhere")  # not a file that the user named

    monkeypatch.setattr(train, "plan_epoch", broken)
    with pytest.raises(OSError, match="/somewhere"):
        train.main([*flags(roots["cvusa"], tmp_path), *ADAMW, "--epochs", "1"])
    log = (tmp_path / "log.txt").read_text()
    assert "Traceback" in log and "/somewhere" in log and "in broken" in log


def test_too_little_memory_is_told(roots, tmp_path, monkeypatch, capfd):
    def broken(*_):
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"
        )

    monkeypatch.setattr(train, "plan_epoch", broken)
    assert "too little memory" in told(capfd, [*flags(roots["cvusa"], tmp_path), *ADAMW, "--epochs", "1"])


def test_the_log_begins_with_the_commit_and_the_versions(resumable):
    first = (resumable[1] / "log.txt").read_text().splitlines()[0]
    assert "commit " in first and (", clean" in first or ", with changes" in first or "unknown" in first)
    assert f"torch {torch.__version__}" in first


def test_a_home_is_found_where_the_shell_does_not_expand_it(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    args = parse_args(["--dataset", "cvusa", "--data-root=~/d", "--save_path=~/x", "--cache=~/c"])
    assert [str(p) for p in (args.data_root, args.save_path, args.cache)] == [f"/home/someone/{n}" for n in "dxc"]
