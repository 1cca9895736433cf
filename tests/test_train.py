"""Whole runs through train.main."""

import logging
import shutil
from pathlib import Path

import make_data
import numpy as np
import pytest
import torch
from make_data import ADAMW, ASAM, flags, history, record, stopped_after

import train
from dataset import VIGOR
from model import FRGeo
from utils.checkpoint import load_checkpoint, load_weights
from utils.options import UserError
from utils.seeding import KEEP_FREED, set_kernels


def weights(path):
    return load_checkpoint(path)["state_dict"]


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


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
    out, handlers = tmp_path / "deep" / "run", list(logging.getLogger().handlers)
    metrics = train.main([*flags(easy, out), *optimiser, "--epochs", "25", "--eval-every", "25", "-b", "12"])
    assert logging.getLogger().handlers == handlers
    lines = history(out)
    assert [line["epoch"] for line in lines] == list(range(1, 26))
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]
    assert lines[-1]["positive_similarity"] > lines[-1]["negative_similarity"] + 0.2
    assert metrics["R@1"] == lines[-1]["R@1"] >= recall
    about = {"queries": 12, "gallery": 12, "missing_pairs": 0, "epoch": 25, "dataset": "cvusa", "split": "val"}
    assert record(out) == record(out) | metrics | about
    log = (out / "log.txt").read_text()
    for text in ("torch 2", "arguments:", "device: cpu", "12 queries", "images/s", "positive", "lr", "R@1 "):
        assert text in log
    state = load_checkpoint(out / "checkpoint.pth.tar")
    assert (state["epoch"], state["best_acc1"], state["args"]["seed"]) == (25, metrics["R@1"], 3)
    assert state["optimizer"]["state"] and state["sampler"]
    assert "optimizer" not in load_checkpoint(out / "model_best.pth.tar")
    assert not list(out.glob("*.partial"))


def test_evaluation_reproduces_training_and_saves_descriptors(easy, tmp_path):
    out = tmp_path / "run"
    trained = train.main([*flags(easy, out), *ADAMW, "--epochs", "3"])
    args_before = (out / "args.json").read_bytes()
    # arch, pool and sizes come from the checkpoint
    plain = ["--dataset", "cvusa", "--data-root", str(easy), "--save_path", str(out), "--workers", "0", "-e"]
    assert train.main([*plain, "--weights", str(out / "checkpoint.pth.tar")]) == trained
    assert record(out)["weights"].endswith("checkpoint.pth.tar") and record(out)["epoch"] == 3
    q, r = (np.load(out / f"{name}_global_descriptor.npy") for name in ("grd", "sat"))
    assert q.shape == r.shape == (12, 256) and q.dtype == np.float32
    q, r = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q.astype(float), r.astype(float)))
    s = q @ r.T
    assert trained["R@1"] == pytest.approx(100 * np.mean((s > np.diag(s)[:, None]).sum(1) == 0))
    assert (out / "args.json").read_bytes() == args_before
    train.main(plain)
    assert record(out)["weights"].endswith("model_best.pth.tar")


def test_a_search_finds_the_north_of_turned_panoramas(easy, tmp_path):
    train.main([*flags(easy, tmp_path), *ADAMW, "--epochs", "30", "--eval-every", "30", "-b", "12"])
    turned = [*flags(easy, tmp_path), "-e", "--orientation", "unknown"]
    trusted = train.main(turned)["R@1"]
    assert train.main([*turned, "--search-north", "16"])["R@1"] > trusted + 20
    assert record(tmp_path)["search_north"] == 16
    assert trusted <= train.main([*turned, "--search-north", "4"])["R@1"]


def test_freed_memory_is_kept_where_the_c_library_is_glibc():
    libc = pytest.importorskip("ctypes").CDLL(None)
    if not hasattr(libc, "mallopt"):
        pytest.skip("the C library is not glibc, whose setting this is")
    set_kernels(deterministic=False)
    assert all(libc.mallopt(parameter, value) == 1 for parameter, value in KEEP_FREED.items())


def test_seeds_decide_a_run(roots, tmp_path):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        train.main([*flags(roots["cvusa"], tmp_path / name), *ADAMW, "--epochs", "1", "--seed", seed])
    a, b, c = (weights(tmp_path / name / "checkpoint.pth.tar") for name in "abc")
    assert equal(a, b) and not equal(a, c)


def test_tuples_are_learned_from(roots, tmp_path):
    """The loss of batches of 8 in tuples of 4 is lower than in tuples of 8: fewer negatives."""
    for name, more in (("whole", []), ("tuples", ["--tuple-size", "4"])):
        train.main([*flags(roots["cvusa"], tmp_path / name), *ADAMW, "--epochs", "1", *more])
    (whole,), (tuples,) = (history(tmp_path / name) for name in ("whole", "tuples"))
    assert whole["loss"] > tuples["loss"] > 0.5 * whole["loss"]


@pytest.mark.parametrize(
    "more",
    [
        "--share --arch test_vit --loss soft-triplet --alpha 20 --amp bf16 --print-freq 1",
        "--pool gap --dim 64 --deterministic --augment --layer-scale 0.1",
        "--regions 2 --dim 128 --fov 180 --ground-size 64 256 --mining --momentum 0.5 --op sgd",
    ],
)
def test_options_work_together_on_own_pairs(roots, tmp_path, more):
    metrics = train.main([*flags(roots["pairs"], tmp_path, dataset="pairs"), *ADAMW, "--epochs", "2", *more.split()])
    assert torch.are_deterministic_algorithms_enabled() == ("--deterministic" in more)
    torch.use_deterministic_algorithms(False)
    assert 0 <= metrics["R@1"] <= 100 and list(metrics) == ["R@1", "R@5", "R@10", "R@1%"]
    assert (tmp_path / "log.txt").read_text().count("epoch 1 step") == (5 if "--print-freq" in more else 1)


def test_training_can_start_from_weights_and_evaluate_what_they_hold(roots, tmp_path):
    train.main([*flags(roots["cvusa"], tmp_path / "a"), *ADAMW, "--epochs", "1"])
    best = tmp_path / "a" / "model_best.pth.tar"
    still = ["--op", "sgd", "--lr", "0", "--epochs", "1", "-b", "8", "--weights", str(best)]
    metrics = train.main([*flags(roots["cvusa"], tmp_path / "b"), *still])
    assert equal(weights(best), weights(tmp_path / "b" / "checkpoint.pth.tar"))
    assert record(tmp_path / "a") == record(tmp_path / "a") | metrics


def test_missing_pairs_are_logged_and_recorded(tmp_path):
    root = make_data.write_cvusa(tmp_path / "data", train=12, val=6)
    (root / "streetview/panos/0000015.jpg").unlink()
    train.main([*flags(root, tmp_path / "run"), *ADAMW, "--epochs", "1"])
    found = record(tmp_path / "run")
    assert found["missing_pairs"] == found["missing_tiles"] == 1 and found["queries"] == found["gallery"] == 5
    assert "1 pairs missing" in (tmp_path / "run" / "log.txt").read_text()


def test_a_diverged_run_stops_and_keeps_the_last_good_checkpoint(roots, tmp_path, refused, monkeypatch):
    run, path = [*flags(roots["cvusa"], tmp_path), *ADAMW], tmp_path / "checkpoint.pth.tar"
    train.main([*run, "--epochs", "1"])
    good = {key: value.clone() for key, value in weights(path).items()}
    monkeypatch.setattr(train, "set_learning_rate", lambda optimizer, *_: optimizer.param_groups[0].update(lr=1e30))
    assert "diverged" in refused(train.main, *run, "--resume", path, "--epochs", "3")
    assert equal(good, weights(path))


# Beyond the paper.


@pytest.mark.parametrize("share", [[], ["--share"]])
def test_the_average_follows_its_formula(roots, tmp_path, monkeypatch, share):
    """Step t moves it by 1 - min(0.7, 1 - t^(-2/3)) towards the weights; shared weights are moved once."""
    seen, step = [], train.train_step

    def step_and_look(network, *args):
        out = step(network, *args)
        seen.append([p.detach().double().clone() for p in network.parameters()])
        return out

    monkeypatch.setattr(train, "train_step", step_and_look)
    train.main([*flags(roots["cvusa"], tmp_path), *ADAMW, "--epochs", "2", "--ema", "0.7", *share])
    expected = seen[0]
    for t, new_weights in enumerate(seen[1:], start=2):
        decay = min(0.7, 1 - t ** (-2 / 3))
        expected = [decay * mean + (1 - decay) * new for mean, new in zip(expected, new_weights, strict=True)]
    model = FRGeo(arch="test_convnext", ground_size=(32, 128), aerial_size=(64, 64), share=bool(share))
    load_weights(model, tmp_path / "checkpoint.pth.tar")
    for mean, found in zip(expected, model.parameters(), strict=True):
        torch.testing.assert_close(found.detach().double(), mean, atol=1e-5, rtol=1e-4)


BEYOND = """--ema 0.9 --learn-temperature --label-smoothing 0.1 --colour-jitter 0.2 --patch-dropout 0.1 --augment
    --fov 270 --ground-size 32 256 --epochs 4 --eval-every 2"""


def test_a_resumed_run_ends_as_if_never_stopped(roots, tmp_path):
    """Bit for bit: weights and their average, moments, mining memory, order of the batches, angles, augmentations."""
    common, straight, out = [*ASAM, *BEYOND.split()], tmp_path / "straight", tmp_path / "stopped"
    run, checkpoint = [*flags(roots["cvusa"], out), *common], str(out / "checkpoint.pth.tar")
    metrics = train.main([*flags(roots["cvusa"], straight), *common])
    stopped_after(2, run)
    train.main([*run, "--resume", checkpoint])
    a, b = load_checkpoint(straight / "checkpoint.pth.tar"), load_checkpoint(checkpoint)
    assert all(equal(a[part], b[part]) for part in ("state_dict", "online", "criterion"))
    assert not equal(a["state_dict"], a["online"])
    assert [line["epoch"] for line in history(out)] == [1, 2, 3, 4]
    assert [line["loss"] for line in history(out)] == [line["loss"] for line in history(straight)]
    alphas = [line["alpha"] for line in history(out)]
    assert len(set(alphas)) == 4 and alphas[0] == pytest.approx(10, abs=0.2)
    assert not {"online", "criterion"} & load_checkpoint(out / "model_best.pth.tar").keys()
    # Evaluating the checkpoint evaluates the average.
    evaluation = [*flags(roots["cvusa"], out), "--ground-size", "32", "256", "--fov", "270", "-e", "--weights"]
    assert train.main([*evaluation, checkpoint]) == metrics
    averaged = np.load(out / "grd_global_descriptor.npy")
    torch.save(a | {"state_dict": a["online"]}, out / "online.pth")
    train.main([*evaluation, str(out / "online.pth")])
    assert not np.allclose(averaged, np.load(out / "grd_global_descriptor.npy"), atol=1e-3)


# Damaged images.


@pytest.fixture
def damaged(roots, tmp_path):
    """damaged(split, number, view): a copy of the CVUSA pairs in which one image cannot be read; its path."""

    def make(split, number, view):
        root = tmp_path / "data"
        shutil.copytree(roots["cvusa"], root)
        line = (root / "splits" / f"{split}-19zl.csv").read_text().splitlines()[number]
        path = root / line.split(",")[view == "ground"]
        path.write_bytes(path.read_bytes()[:200])
        return root, path

    return make


@pytest.mark.parametrize("view", ["ground", "aerial"])
@pytest.mark.parametrize("more", [[], ["-j", "1"]])
def test_a_damaged_evaluation_image_is_found_before_training(damaged, tmp_path, refused, view, more):
    root, path = damaged("val", 4, view)
    error = refused(train.main, *flags(root, tmp_path / "run", *ADAMW, *more))
    assert f"{path} cannot be read as an image" in error
    assert "epoch 1 step" not in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize("more", [[], ["-j", "2"], ["--multiprocessing-distributed", "--nprocs", "2"]])
def test_a_pair_that_cannot_be_read_is_replaced_if_asked(damaged, tmp_path, refused, more):
    root, path = damaged("train", 5, "aerial")
    run = flags(root, tmp_path / "run", *ASAM, *more, "--epochs", "2")
    if not more:
        assert f"{path} cannot be read as an image" in refused(train.main, *run)
    train.main([*run, "--on-bad-image", "skip"])
    assert [line["bad_pairs"] for line in history(tmp_path / "run")] == [1, 1]
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("a pair was left out, ") == 1 and f"{path}, which cannot be read" in log


def test_a_substitute_shares_no_tile_with_the_batch(roots, tmp_path):
    root = make_data.write_vigor(tmp_path)
    data = VIGOR(root, "train", ground_size=(32, 64), aerial_size=(32, 32), skip_bad=True)
    for index in (0, 3):
        Path(data.ground[index]).write_bytes(b"")
    batch = [0, *range(1, 3)]
    samples = data.samples(batch)
    assert [sample.index for sample in samples[1:]] == batch[1:] and samples[0].index not in (0, 3)
    own, others = data.tiles[samples[0].index], data.tiles[batch]
    assert not np.isin(own, others).any() and data.bad.nonzero().flatten().tolist()[0] == 0
    for path in data.ground:
        Path(path).write_bytes(b"")
    with pytest.raises(UserError, match="no other pair can take its place"):
        data.samples(batch)


# Numbers that are not finite.


@pytest.fixture
def spoiled(monkeypatch):
    """spoiled(*passes, what): make the gradients, or the loss, of these backward passes NaN, counted from 1."""

    def spoil(*passes, what="gradient"):
        compute, count = train.compute_gradients, []

        def computed(network, criterion, *rest):
            values, q, k = compute(network, criterion, *rest)
            count.append(1)
            if len(count) in passes and what == "gradient":
                for parameter in network.parameters():
                    parameter.grad.mul_(float("nan"))
            return values * float("nan") if len(count) in passes and what == "loss" else values, q, k

        monkeypatch.setattr(train, "compute_gradients", computed)

    return spoil


@pytest.mark.parametrize(("recipe", "passes"), [(ADAMW, 1), (ASAM, 2)])
@pytest.mark.parametrize("what", ["gradient", "loss"])
def test_what_is_not_finite_is_told_with_its_files(roots, tmp_path, refused, spoiled, recipe, passes, what):
    run = [*flags(roots["cvusa"], tmp_path, *recipe), "--print-freq", "4"]
    spoiled(5 * passes + 2 * passes - (passes - 1) * (what == "loss"), what=what)  # epoch 2, step 2 of 5
    error = refused(train.main, *run)
    assert "the loss or its gradient is not finite in epoch 2, step 2 (a batch of 8 pairs, " in error
    assert f"the last checkpoint is {tmp_path}/checkpoint.pth.tar" in error
    told = next(line for line in (tmp_path / "log.txt").read_text().splitlines() if "the batch of epoch 2" in line)
    assert told.count("streetview/panos/") == told.count("bingmap/19/") == 8
    assert load_checkpoint(tmp_path / "checkpoint.pth.tar")["epoch"] == 1


@pytest.mark.parametrize(("recipe", "passes"), [(ADAMW, (3, 4)), (ASAM, (5, 8))])
def test_patience_leaves_bad_steps_out(roots, tmp_path, refused, spoiled, recipe, passes):
    """The first of SAM's passes, or the second. What came before a bad step is there afterwards, bit for bit."""
    run = [*flags(roots["cvusa"], tmp_path, *recipe), "--nan-patience", "2", "--epochs", "1", "--print-freq", "1"]
    seen, step = [], train.train_step

    def watched(network, *rest):
        before = {key: value.clone() for key, value in network.state_dict().items()}
        result = step(network, *rest)
        seen.append((equal(before, network.state_dict()), bool(result[0].isfinite().all())))
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "train_step", watched)
        spoiled(*passes)
        train.main(run)
    assert seen == [(False, True)] * 2 + [(True, False)] * 2 + [(False, True)]
    log = (tmp_path / "log.txt").read_text()
    assert log.count("the step is left out") == 2 and np.isfinite(history(tmp_path)[0]["loss"])
    spoiled(*range(1, 9))
    assert "so it was 3 times in a row (--nan-patience)" in refused(train.main, *run)


def test_collapsing_descriptors_are_told(roots, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "COLLAPSED", -1.0)
    train.main([*flags(roots["cvusa"], tmp_path, *ADAMW), "--epochs", "1", "--print-freq", "1"])
    assert (tmp_path / "log.txt").read_text().count("descriptors are collapsing") == 1
