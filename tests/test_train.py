"""Whole runs through train.main."""

import json
import logging

import make_data
import numpy as np
import pytest
import torch
from make_data import ASAM, flags, stopped_after

import train
from utils.checkpoint import load_checkpoint
from utils.launch import KEEP, keep_freed_memory

ADAMW = ["--op", "adamw", "--lr", "0.001", "--wd", "0.03", "--batch-size", "8"]
METRICS = ["R@1", "R@5", "R@10", "R@1%"]
METRES = ["median error (m)", "mean error (m)", "within 25 m", "within 50 m", "within 100 m"]


def weights(path):
    return load_checkpoint(path)["state_dict"]


@pytest.fixture(scope="module")
def easy(tmp_path_factory):
    """A CVUSA root whose training pairs are its validation pairs: a model that learns finds every one."""
    root = make_data.write_cvusa(tmp_path_factory.mktemp("easy"), train=12, val=1)
    (root / "splits/val-19zl.csv").write_text((root / "splits/train-19zl.csv").read_text())
    return root


@pytest.mark.parametrize(
    ("optimiser", "recall"), [(ADAMW, 100), (ASAM, 100), (["--op", "adam", "--lr", "1e-3"], 100), (["--op", "sgd"], 50)]
)
def test_training_learns_and_writes_every_file(easy, tmp_path, optimiser, recall):
    out = tmp_path / "deep" / "run"
    metrics = train.main([*flags(easy, out), *optimiser, "--epochs", "25", "--eval-every", "25", "-b", "12"])
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, 26))
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]
    assert lines[-1]["positive_similarity"] > lines[-1]["negative_similarity"] + 0.2
    assert metrics["R@1"] == lines[-1]["R@1"] >= recall
    record = json.loads((out / "metrics.json").read_text())
    assert record | metrics == record
    assert {k: record[k] for k in ("queries", "gallery", "missing_pairs", "epoch", "dataset", "split")} == {
        "queries": 12, "gallery": 12, "missing_pairs": 0, "epoch": 25, "dataset": "cvusa", "split": "val",
    }  # fmt: skip
    assert json.loads((out / "args.json").read_text())["seed"] == 3
    log = (out / "log.txt").read_text()
    for text in ("torch 2", "arguments:", "device: cpu", "12 queries", "images/s", "positive", "lr", "R@1 "):
        assert text in log
    state = load_checkpoint(out / "checkpoint.pth.tar")
    assert (
        state["epoch"] == 25
        and state["best_acc1"] == metrics["R@1"]
        and state["optimizer"]["state"]
        and state["sampler"]
    )
    assert "optimizer" not in load_checkpoint(out / "model_best.pth.tar")
    assert not list(out.glob("*.partial"))


def test_evaluation_reproduces_training_and_saves_descriptors(easy, tmp_path):
    out = tmp_path / "run"
    trained = train.main([*flags(easy, out), *ADAMW, "--epochs", "3"])
    args_before = (out / "args.json").read_bytes()
    # arch, pool and sizes come from the checkpoint
    plain = ["--dataset", "cvusa", "--data-root", str(easy), "--save_path", str(out), "--workers", "0", "-e"]
    found = train.main([*plain, "--weights", str(out / "checkpoint.pth.tar")])
    assert found == trained
    record = json.loads((out / "metrics.json").read_text())
    assert record["weights"].endswith("checkpoint.pth.tar") and record["epoch"] == 3
    q, r = (np.load(out / f"{name}_global_descriptor.npy") for name in ("grd", "sat"))
    assert q.shape == r.shape == (12, 256) and q.dtype == np.float32
    q, r = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q.astype(float), r.astype(float)))
    s = q @ r.T
    assert found["R@1"] == pytest.approx(100 * np.mean((s > np.diag(s)[:, None]).sum(1) == 0))
    assert (out / "args.json").read_bytes() == args_before
    train.main(plain)
    assert json.loads((out / "metrics.json").read_text())["weights"].endswith("model_best.pth.tar")


@pytest.mark.parametrize("dataset", ["cvusa", "cvact", "vigor", "pairs"])
def test_every_layout_trains_with_mining(roots, tmp_path, dataset):
    metrics = train.main([*flags(roots[dataset], tmp_path, dataset=dataset), *ASAM, "--epochs", "2"])
    more = {"vigor": ["Hit", "Hit (top-1 covers)", *METRES], "cvact": METRES}.get(dataset, [])
    assert list(metrics) == METRICS + more
    assert metrics["R@1"] <= metrics["R@5"] <= metrics["R@10"] <= 100
    if dataset == "vigor":
        assert metrics["R@1"] <= metrics["Hit"] <= 100
    assert "hard partners" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize("optimiser", [ADAMW, ASAM])
def test_a_resumed_run_ends_as_if_never_stopped(roots, tmp_path, optimiser):
    """Bit for bit: weights, moments, mining memory, order of the batches, angles of view."""
    common = [*optimiser, "--epochs", "4", "--fov", "270", "--ground-size", "32", "256", "--eval-every", "2"]
    train.main([*flags(roots["cvusa"], tmp_path / "straight"), *common])
    out = tmp_path / "stopped"

    stopped_after(2, [*flags(roots["cvusa"], out), *common])
    train.main([*flags(roots["cvusa"], out), *common, "--resume", str(out / "checkpoint.pth.tar")])
    a, b = weights(tmp_path / "straight" / "checkpoint.pth.tar"), weights(out / "checkpoint.pth.tar")
    assert all(torch.equal(a[k], b[k]) for k in a)
    history = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in history] == [1, 2, 3, 4]
    straight = [json.loads(line) for line in (tmp_path / "straight" / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in history] == [line["loss"] for line in straight]


def test_a_search_finds_the_north_of_turned_panoramas(easy, tmp_path):
    out = tmp_path / "run"
    train.main([*flags(easy, out), *ADAMW, "--epochs", "30", "--eval-every", "30", "-b", "12"])
    turned = [*flags(easy, out), "-e", "--orientation", "unknown"]
    trusted = train.main(turned)["R@1"]
    found = train.main([*turned, "--search-north", "16"])["R@1"]
    assert found > trusted + 20
    assert json.loads((out / "metrics.json").read_text())["search_north"] == 16
    shifted = train.main([*turned, "--search-north", "4"])
    assert train.main([*turned, "--search-north", "4", "--descriptors", str(out)]) == shifted
    assert trusted <= shifted["R@1"]


@pytest.mark.parametrize(("model", "directions"), [(["--pool", "gap"], "1"), (["--regions", "2"], "2")])
def test_saved_descriptors_are_searched_by_the_regions_they_have(easy, tmp_path, capfd, model, directions):
    out = tmp_path / "run"
    run = [arg for arg in flags(easy, out) if arg not in ("--dim", "256")]
    train.main([*run, *ADAMW, *model, "--epochs", "1"])
    found = train.main([*run, "-e", "--search-north", directions])
    saved = [*run, "-e", "--descriptors", str(out)]
    assert train.main([*saved, "--search-north", directions]) == found
    with pytest.raises(SystemExit):
        train.main([*saved, "--search-north", "4"])
    assert f"give --search-north {directions}" in capfd.readouterr().err
    (out / "args.json").unlink()
    assert train.main([*saved, "--search-north", directions]) == found  # metrics.json tells as well
    (out / "metrics.json").unlink()
    with pytest.raises(SystemExit):
        train.main([*saved, "--search-north", directions])
    assert "give --regions" in capfd.readouterr().err


def test_freed_memory_is_kept_where_the_c_library_is_glibc():
    libc = pytest.importorskip("ctypes").CDLL(None)
    if not hasattr(libc, "mallopt"):
        pytest.skip("not glibc")
    keep_freed_memory()
    assert all(libc.mallopt(parameter, value) == 1 for parameter, value in KEEP.items())


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (["--search-north", "6"], "no multiple of the 4 regions"),
        (["--search-north", "8", "--descriptors", "."], "give --search-north 4"),
        (["--search-north", "4", "--fov", "90"], "leave it out"),
        (["--regions", "4", "--pool", "gap"], "one region"),
    ],
)
def test_a_search_that_cannot_be_is_told(easy, tmp_path, capfd, wrong, told):
    run = flags(easy, tmp_path / "run")
    if "--descriptors" in wrong:
        train.main([*run, *ADAMW, "--epochs", "1"])
        train.main([*run, "-e"])
        wrong = [str(tmp_path / "run") if word == "." else word for word in wrong]
        run.append("-e")
    with pytest.raises(SystemExit) as end:
        train.main([*run, *wrong, *([] if "-e" in run else [*ADAMW, "--epochs", "1"])])
    assert end.value.code == 2
    assert told in capfd.readouterr().err


def test_seeds_decide_a_run(roots, tmp_path):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        train.main([*flags(roots["cvusa"], tmp_path / name), *ADAMW, "--epochs", "1", "--seed", seed])
    a, b, c = (weights(tmp_path / name / "checkpoint.pth.tar") for name in "abc")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], c[k]) for k in a)


def test_learning_rates_follow_the_schedule(roots, tmp_path):
    run = [*flags(roots["cvusa"], tmp_path / "cos"), *ADAMW, "--epochs", "4", "--eval-every", "4"]
    train.main([*run, "--cos"])
    rates = [json.loads(line)["lr"] for line in (tmp_path / "cos" / "metrics.jsonl").read_text().splitlines()]
    assert rates == pytest.approx([1e-3 * 0.5 * (1 + np.cos(np.pi * e / 4)) for e in range(4)])
    train.main([*run, "--save_path", str(tmp_path / "steps"), "--schedule", "1", "3"])
    rates = [json.loads(line)["lr"] for line in (tmp_path / "steps" / "metrics.jsonl").read_text().splitlines()]
    assert rates == pytest.approx([1e-3, 1e-4, 1e-4, 1e-5])


def test_an_earlier_run_is_moved_aside_not_overwritten(roots, tmp_path):
    for seed in ("1", "2", "3"):
        train.main([*flags(roots["cvusa"], tmp_path), *ADAMW, "--epochs", "1", "--seed", seed])
    seeds = [
        json.loads((folder / "args.json").read_text())["seed"]
        for folder in (tmp_path / "previous-1", tmp_path / "previous-2", tmp_path)
    ]
    assert seeds == [1, 2, 3]
    assert load_checkpoint(tmp_path / "previous-1" / "model_best.pth.tar")["epoch"] == 1


def test_tuples_give_the_same_loss_on_one_process(roots, tmp_path):
    """Batches of 8 in tuples of 4 are learned differently from tuples of 8."""
    for name, more in (("whole", []), ("tuples", ["--tuple-size", "4"])):
        train.main([*flags(roots["cvusa"], tmp_path / name), *ADAMW, "--epochs", "1", *more])
    losses = [json.loads((tmp_path / n / "metrics.jsonl").read_text())["loss"] for n in ("whole", "tuples")]
    assert losses[0] > losses[1] > 0.5 * losses[0]


@pytest.mark.parametrize(
    "more",
    [
        ["--share"],
        ["--pool", "gap", "--dim", "64"],
        ["--regions", "2", "--dim", "128"],
        ["--arch", "test_vit"],
        ["--fov", "180"],
        ["--loss", "soft-triplet"],
        ["--alpha", "20"],
        ["--deterministic"],
        ["--print-freq", "1"],
        ["--amp", "bf16"],
        ["--augment"],
        ["--layer-scale", "0.1"],
    ],
)
def test_options_run(roots, tmp_path, more):
    more = [*more, "--ground-size", "64", "256"] if "--fov" in more else more
    metrics = train.main([*flags(roots["cvusa"], tmp_path), *ADAMW, "--epochs", "1", *more])
    assert 0 <= metrics["R@1"] <= 100
    torch.use_deterministic_algorithms(False)


def test_training_can_start_from_weights_and_evaluate_what_they_hold(roots, tmp_path):
    train.main([*flags(roots["cvusa"], tmp_path / "a"), *ADAMW, "--epochs", "1"])
    best = tmp_path / "a" / "model_best.pth.tar"
    metrics = train.main(
        [
            *flags(roots["cvusa"], tmp_path / "b"),
            "--op",
            "sgd",
            "--lr",
            "0",
            "--epochs",
            "1",
            "-b",
            "8",
            "--weights",
            str(best),
            "--pretrained",
            "imagenet",
        ]
    )
    a, b = weights(best), weights(tmp_path / "b" / "checkpoint.pth.tar")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert metrics == {
        k: v for k, v in json.loads((tmp_path / "a" / "metrics.json").read_text()).items() if k in metrics
    }


def test_missing_pairs_are_logged_and_recorded(tmp_path):
    root = make_data.write_cvusa(tmp_path / "data", train=12, val=6)
    (root / "streetview/panos/0000015.jpg").unlink()
    train.main([*flags(root, tmp_path / "run"), *ADAMW, "--epochs", "1"])
    record = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert record["missing_pairs"] == record["missing_tiles"] == 1 and record["queries"] == record["gallery"] == 5
    assert "1 pairs missing" in (tmp_path / "run" / "log.txt").read_text()


def test_a_diverged_run_stops_and_keeps_the_last_good_checkpoint(roots, tmp_path, capsys):
    train.main([*flags(roots["cvusa"], tmp_path), *ADAMW, "--epochs", "1"])
    good = weights(tmp_path / "checkpoint.pth.tar")
    resume = ["--resume", str(tmp_path / "checkpoint.pth.tar"), "--epochs", "3", "--op", "adamw", "--lr", "1e30"]
    with pytest.raises(SystemExit) as stop:
        train.main([*flags(roots["cvusa"], tmp_path), "-b", "8", *resume])
    assert stop.value.code == 2
    assert "diverged" in capsys.readouterr().err
    kept = weights(tmp_path / "checkpoint.pth.tar")
    assert all(torch.equal(good[k], kept[k]) for k in good)


def test_logging_leaves_no_handlers_behind(roots, tmp_path):
    before = list(logging.getLogger().handlers)
    train.main([*flags(roots["cvusa"], tmp_path), *ADAMW, "--epochs", "1"])
    assert logging.getLogger().handlers == before


@pytest.mark.parametrize("dataset", ["cvusa", "vigor"])
def test_descriptors_are_scored_without_a_model(roots, tmp_path, dataset):
    trained = flags(roots[dataset], tmp_path / "r", *ADAMW, "--epochs", "1", dataset=dataset)
    train.main(trained)
    found = train.main([*flags(roots[dataset], tmp_path / "r", dataset=dataset), "-e"])
    for path in tmp_path.rglob("*.pth.tar"):
        path.unlink()
    again = ["--dataset", dataset, "--data-root", str(roots[dataset]), "--save_path", str(tmp_path / "again")]
    assert train.main([*again, "-e", "--descriptors", str(tmp_path / "r")]) == found
    record = json.loads((tmp_path / "again" / "metrics.json").read_text())
    assert record["weights"] == str(tmp_path / "r" / "model_best.pth.tar") and record["epoch"] == 1


def test_descriptors_that_do_not_fit_the_data_are_refused(roots, tmp_path, capsys):
    np.save(tmp_path / "grd_global_descriptor.npy", np.eye(4))
    common = ["--dataset", "cvusa", "--data-root", str(roots["cvusa"]), "--descriptors", str(tmp_path)]
    for more, message in (([], "add -e"), (["-e"], "has shape (4, 4)"), (["-e", "--weights", "w"], "give one of them")):
        with pytest.raises(SystemExit) as stop:
            train.main([*common, *more])
        assert stop.value.code == 2 and message in capsys.readouterr().err
