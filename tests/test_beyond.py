"""What goes beyond the paper: each flag does what it says, and nothing where it is off."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from make_data import ASAM, flags, stopped_after

import train
from criterion import SAM, WBLoss
from criterion.build import build_optimizer
from dataset import CVUSA, VIGOR
from dataset.sampler import MiningSampler
from dataset.transforms import drop_patches, jitter_colours
from model import FRGeo
from model.average import WeightAverage
from utils.checkpoint import load_checkpoint
from utils.geodesy import Positions, haversine, nearest_places

ADAMW = ["--op", "adamw", "--lr", "0.001", "--wd", "0.03", "--batch-size", "8"]


def pairs(seed=0):
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(6, 20, generator=g, dtype=torch.float64)
    return q, q + torch.randn(6, 20, generator=g, dtype=torch.float64)


def test_label_smoothing_is_a_mixture_with_the_uniform_target():
    q, k = pairs()
    s = 10 * torch.nn.functional.normalize(q, dim=1) @ torch.nn.functional.normalize(k, dim=1).T
    target = 0.8 * torch.eye(6, dtype=torch.float64) + 0.2 / 6
    expected = sum(-(target * (side - side.logsumexp(1, keepdim=True))).sum(1).mean() for side in (s, s.T)) / 2
    torch.testing.assert_close(WBLoss(label_smoothing=0.2)(q, k)[0], expected)


def test_a_learned_temperature_starts_at_alpha_and_has_its_gradient():
    q, k = pairs()
    learned = WBLoss(alpha=7, learned=True).double()
    loss = learned(q, k)[0]
    torch.testing.assert_close(loss, WBLoss(alpha=7)(q, k)[0], atol=1e-6, rtol=0)
    loss.backward()
    step = 1e-4
    slope = (WBLoss(7 * np.exp(step))(q, k)[0] - WBLoss(7 * np.exp(-step))(q, k)[0]) / (2 * step)
    torch.testing.assert_close(learned.log_alpha.grad, slope, atol=1e-6, rtol=0)
    large = WBLoss(alpha=1e4, learned=True).double()
    large(q, k)[0].backward()
    assert large.alpha.item() == pytest.approx(100) and large.log_alpha.grad != 0
    assert not list(WBLoss().parameters())


def test_a_temperature_neither_decays_nor_is_climbed():
    model, loss = torch.nn.Linear(3, 1), WBLoss(learned=True)
    args = SimpleNamespace(op="sam", lr=0.1, weight_decay=0.5, rho=2.0, asam=True)
    optimizer = build_optimizer(args, model, loss)
    before = loss.log_alpha.item()
    for parameter in (*model.parameters(), loss.log_alpha):
        parameter.grad = torch.ones_like(parameter)
    alone = torch.nn.Linear(3, 1)
    alone.load_state_dict(model.state_dict())
    plain = SAM(alone.parameters(), torch.optim.AdamW, rho=2.0, adaptive=True, lr=0.1, weight_decay=0.5)
    for parameter in alone.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.first_step()
    plain.first_step()
    assert loss.log_alpha.item() == before
    assert torch.equal(model.weight, alone.weight)
    loss.log_alpha.grad.zero_()
    optimizer.second_step()
    assert loss.log_alpha.item() == before


@settings(deadline=None, max_examples=30)
@given(
    n=st.integers(2, 60), count=st.integers(1, 12), seed=st.integers(0, 99), kind=st.sampled_from(["degrees", "metres"])
)
def test_nearest_places_are_those_of_all_distances(n, count, seed, kind):
    rng = np.random.default_rng(seed)
    places = np.array([40.7, -74.0]) + rng.uniform(-0.05, 0.05, (n, 2))
    places[rng.integers(n)] = places[rng.integers(n)]  # two in one spot
    found = nearest_places(places, kind, count)
    assert found.shape == (n, min(count, n - 1))
    for i in range(n):
        others = np.repeat(places[i : i + 1], n, 0)
        metres = haversine(others, places) if kind == "degrees" else np.hypot(*(others - places).T)
        assert i not in found[i]
        expected = np.sort(np.delete(metres, i))[: found.shape[1]]
        np.testing.assert_allclose(np.sort(metres[found[i]]), expected, atol=1e-6)


def test_many_places_in_one_spot_have_other_neighbours():
    assert all(i not in row for i, row in enumerate(nearest_places(np.zeros((30, 2)), "metres", 4)))


def test_coordinate_mining_pairs_places_that_lie_near_in_the_first_epochs():
    line = np.stack([np.arange(400.0), np.zeros(400)], axis=1)
    sampler = MiningSampler(np.arange(400)[:, None], 8, positions=Positions(line, line, "metres"), near_epochs=2)
    for epoch, most in ((0, 101), (1, 101), (2, 400)):
        plan = sampler.plan(epoch)
        apart = np.abs(plan[:, ::2] - plan[:, 1::2])  # anchors, each followed by its partner
        assert apart.max() < most
        assert (sampler.counts["mined"] > 0) == (epoch < 2)
    assert apart.max() > 150


def test_coordinate_mining_on_vigor_keeps_false_negatives_out(roots):
    data = VIGOR(roots["vigor"], "train")
    sampler = MiningSampler(data.tiles, 6, visits=2, positions=data.positions, near_epochs=1)
    for batch in sampler.plan(0):
        tiles = data.tiles[batch]
        assert len(np.unique(tiles[tiles >= 0])) == (tiles >= 0).sum()
    assert sampler.counts["mined"] > 0


def test_jitter_scales_colours_and_leaves_grey_grey():
    image = torch.randint(0, 256, (3, 40, 80), dtype=torch.uint8)
    assert torch.equal(jitter_colours(image, 0.0, np.random.default_rng(0)), image)
    changed = jitter_colours(image, 0.4, np.random.default_rng(0))
    assert changed.dtype == torch.uint8 and not torch.equal(changed, image)
    grey = jitter_colours(torch.full((3, 8, 8), 100, dtype=torch.uint8), 0.3, np.random.default_rng(1))
    assert len(grey.unique()) == 1 and 60 <= int(grey[0, 0, 0]) <= 135


def test_dropped_patches_are_whole_and_of_the_asked_share():
    image = torch.full((3, 128, 512), 7, dtype=torch.uint8)
    dropped = drop_patches(image, 0.3, np.random.default_rng(0))
    assert torch.equal(image, torch.full_like(image, 7))
    blank = (dropped != 7).all(dim=0)
    assert torch.equal(blank, (dropped != 7).any(dim=0))
    patches = blank.unfold(0, 16, 16).unfold(1, 16, 16).flatten(2)
    assert torch.equal(patches.any(2), patches.all(2))
    assert 0.2 < patches.all(2).float().mean() < 0.4
    assert (
        abs(float((dropped[:, blank].float().mean(1) / 255 - torch.tensor([0.485, 0.456, 0.406])).abs().max())) < 0.01
    )


def test_disturbed_pairs_differ_by_epoch_and_not_by_reading_them_again(roots):
    kwargs = {"ground_size": (32, 128), "aerial_size": (32, 32), "pixels": True, "seed": 4}
    plain = CVUSA(roots["cvusa"], "train", **kwargs)
    data = CVUSA(roots["cvusa"], "train", colour_jitter=0.3, patch_dropout=0.2, **kwargs)
    first = data[3]
    assert torch.equal(first.ground, data[3].ground) and torch.equal(first.aerial, data[3].aerial)
    assert not torch.equal(first.ground, plain[3].ground) and not torch.equal(first.aerial, plain[3].aerial)
    data.set_epoch(1)
    assert not torch.equal(first.ground, data[3].ground)
    assert torch.equal(data.as_view("ground")[3].image, plain.as_view("ground")[3].image)  # evaluation sees it as it is


def test_the_average_follows_its_formula():
    model = torch.nn.Linear(2, 1, bias=False)
    average = WeightAverage(model, 0.7)
    expected = model.weight.detach().clone()
    for step in range(1, 20):
        with torch.no_grad():
            model.weight.normal_()
        average.update(model)
        decay = min(0.7, 1 - step ** (-2 / 3))
        expected = decay * expected + (1 - decay) * model.weight.detach()
        torch.testing.assert_close(average.model.weight.detach(), expected)


def test_shared_weights_are_averaged_once():
    model = FRGeo(arch="test_convnext", ground_size=(32, 128), aerial_size=(64, 64), share=True)
    average = WeightAverage(model, 0.999)
    average.update(model)
    before = average.model.query_net.backbone.norm.weight.detach().clone()
    with torch.no_grad():
        model.query_net.backbone.norm.weight.add_(1)
    average.update(model)
    moved = average.model.query_net.backbone.norm.weight - before
    torch.testing.assert_close(moved, torch.full_like(moved, 2 ** (-2 / 3)))


BEYOND = [
    *("--ema", "0.9", "--learn-temperature", "--label-smoothing", "0.1", "--colour-jitter", "0.2"),
    *("--patch-dropout", "0.1", "--augment"),
]


@pytest.mark.parametrize("optimiser", [ADAMW, ASAM])
def test_a_resumed_run_beyond_the_paper_ends_as_if_never_stopped(roots, tmp_path, optimiser):
    common = [*optimiser, *BEYOND, "--epochs", "4", "--eval-every", "2"]
    straight, out = tmp_path / "straight", tmp_path / "stopped"
    metrics = train.main([*flags(roots["cvusa"], straight), *common])
    stopped_after(2, [*flags(roots["cvusa"], out), *common])
    train.main([*flags(roots["cvusa"], out), *common, "--resume", str(out / "checkpoint.pth.tar")])
    a, b = (load_checkpoint(folder / "checkpoint.pth.tar") for folder in (straight, out))
    for part in ("state_dict", "online", "criterion"):
        assert a[part].keys() == b[part].keys() and all(torch.equal(a[part][k], b[part][k]) for k in a[part])
    assert not all(torch.equal(a["state_dict"][k], a["online"][k]) for k in a["online"])
    alphas = [json.loads(line)["alpha"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(set(alphas)) == 4 and alphas[0] == pytest.approx(10, abs=0.2)
    best = load_checkpoint(out / "model_best.pth.tar")
    assert "online" not in best and "criterion" not in best
    # Evaluating the checkpoint evaluates the average.
    weights = ["-e", "--weights", str(out / "checkpoint.pth.tar")]
    assert train.main([*flags(roots["cvusa"], out), *weights]) == metrics
    averaged = np.load(out / "grd_global_descriptor.npy")
    torch.save({"state_dict": b["online"]}, out / "online.pth")
    train.main([*flags(roots["cvusa"], out), "-e", "--weights", str(out / "online.pth")])
    assert not np.allclose(averaged, np.load(out / "grd_global_descriptor.npy"), atol=1e-3)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (["--coordinate-mining", "1"], "where the places are"),
        (["--label-smoothing", "1"], "from 0 to below 1"),
        (["--label-smoothing", "0.1", "--loss", "soft-triplet"], "belongs to --loss wbl"),
        (["--learn-temperature", "--alpha", "0"], "a number up to 100"),
        (["--learn-temperature", "--alpha", "101"], "a number up to 100"),
    ],
)
def test_what_cannot_be_is_told(roots, tmp_path, capfd, wrong, told):
    with pytest.raises(SystemExit) as end:
        train.main([*flags(roots["cvusa"], tmp_path / "run"), *ADAMW, "--epochs", "1", *wrong])
    assert end.value.code == 2
    assert told in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("flag", "told"), [(["--learn-temperature"], "is True"), (["--ema", "0.9"], "is 0.9")])
def test_what_the_checkpoint_lacks_is_told(roots, tmp_path, capfd, flag, told):
    run = [*flags(roots["cvusa"], tmp_path), *ADAMW]
    train.main([*run, "--epochs", "1"])
    with pytest.raises(SystemExit) as end:
        train.main([*run, "--epochs", "2", *flag, "--resume", str(tmp_path / "checkpoint.pth.tar")])
    assert end.value.code == 2
    assert f"{flag[0]} {told}" in capfd.readouterr().err


def test_coordinate_mining_trains(roots, tmp_path):
    run = flags(roots["vigor"], tmp_path, dataset="vigor")
    train.main([*run, *ADAMW, "--epochs", "2", "--coordinate-mining", "1", "--mining"])
    first = (tmp_path / "log.txt").read_text().split("epoch 1 step")[0]
    assert int(re.search(r"epoch 1: (\d+) hard partners", first)[1]) > 0
