"""A whole training against the same training written out plainly, and the benchmarks' two ways against each other."""

import math
import re

import make_data
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision import transforms

import train
from benchmarks import evaluation, growth, mining
from benchmarks.step import plain_descriptors
from dataset import CVUSA
from dataset.sampler import MiningSampler
from dataset.transforms import IMAGENET_MEAN, IMAGENET_STD
from model import FRGeo
from utils.checkpoint import load_weights

LR, DECAY, RHO, EPOCHS, BATCH, SEED = 1e-3, 0.03, 0.5, 3, 8, 3
SHAPES = {"ground_size": (32, 128), "aerial_size": (64, 64)}
ONE_WAY = ["--op", "sam", "--asam", "--rho", str(RHO), "--lr", str(LR), "--wd", str(DECAY), "--mining", "--cos"]
ONE_WAY += ["--batch-size", str(BATCH), "--epochs", str(EPOCHS), "--eval-every", "99"]


def tensor(path, size):
    image = Image.open(path).convert("RGB")
    steps = [transforms.Resize(size), transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    return transforms.Compose(steps)(image)


def plain_loss(q, k, alpha=10):
    """Equation of the (B+1)-tuple, exponentials and all."""
    s = F.normalize(q, dim=1) @ F.normalize(k, dim=1).T
    losses = []
    for rows in (s, s.T):
        margins = torch.exp(alpha * (rows - rows.diag()[:, None]))
        losses.append(torch.log(1 + margins.sum(1) - margins.diag()).mean())
    return sum(losses) / 2


def plain_training(root, model):
    """Epoch losses of a training without any of the fast ways; `model` is left trained."""
    data = CVUSA(root, "train", **SHAPES)
    ground = torch.stack([tensor(path, SHAPES["ground_size"]) for path in data.ground])
    aerial = torch.stack([tensor(data.aerial[j], SHAPES["aerial_size"]) for j in data.labels])
    sampler = MiningSampler(data.tiles, BATCH, mining=True, dim=model.dim, seed=SEED)
    parameters = list(model.parameters())
    adamw = torch.optim.AdamW(parameters, lr=LR, weight_decay=DECAY, foreach=False)
    epochs = []
    for epoch in range(EPOCHS):
        for group in adamw.param_groups:
            group["lr"] = LR * 0.5 * (1 + math.cos(math.pi * epoch / EPOCHS))
        sampler.plan(epoch)
        losses = []
        for batch in sampler:
            for climbing in (True, False):
                q = plain_descriptors(model.query_net, ground[batch])
                k = plain_descriptors(model.reference_net, aerial[batch])
                adamw.zero_grad()
                loss = plain_loss(q, k)
                loss.backward()
                if climbing:
                    losses.append(loss.item())
                    sampler.update(torch.tensor(batch), q.detach(), k.detach())
                    start = [p.detach().clone() for p in parameters]
                    norm = math.sqrt(sum((p.detach().abs() * p.grad).double().square().sum() for p in parameters))
                    with torch.no_grad():
                        for p in parameters:
                            p += p.abs() ** 2 * p.grad * (RHO / (norm + 1e-12))
            with torch.no_grad():
                for p, value in zip(parameters, start, strict=True):
                    p.copy_(value)
            adamw.step()
        epochs.append(np.mean(losses))
    return epochs


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.fixture(scope="module")
def plain(roots, tmp_path_factory):
    """Untrained weights and their file, the weights after plain training, and its epoch losses."""
    torch.manual_seed(SEED)
    model = FRGeo(arch="test_convnext", layer_scale=0.5, **SHAPES)
    start, before = tmp_path_factory.mktemp("plain") / "start.pth.tar", weights(model)
    torch.save({"state_dict": model.state_dict()}, start)
    losses = plain_training(roots["cvusa"], model)
    return start, before, weights(model), losses


@pytest.mark.parametrize("fast", ["", "--cache cache --grad-checkpointing"])
def test_a_seeded_training_is_the_plain_one(roots, plain, tmp_path, monkeypatch, fast):
    start, before, after, losses = plain
    monkeypatch.chdir(tmp_path)
    train.main([*make_data.flags(roots["cvusa"], "run"), *ONE_WAY, "--weights", str(start), *fast.split()])
    assert [line["loss"] for line in make_data.history(tmp_path / "run")] == pytest.approx(losses, rel=1e-4)
    model = FRGeo(arch="test_convnext", **SHAPES)
    load_weights(model, tmp_path / "run" / "checkpoint.pth.tar")
    assert (weights(model) - after).norm() < 0.01 * (after - before).norm()


def test_benchmarks_compare_the_same_results(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(evaluation.SIZES, "small", (300, 500))
    monkeypatch.setitem(mining.ITEMS, "small", 400)
    assert all("100.00 % of ranks" in line for line in evaluation.run(dim=64, rounds=1))
    common = [re.search(r"([\d.]+) of 100 neighbours", line)[1] for line in mining.run(dim=64, rounds=1)]
    assert len(common) == 2 and min(map(float, common)) > 95
    monkeypatch.setattr(growth, "ON_DISK", 3_000)
    out = tmp_path / "growth"
    growth.main(["--largest", "3000", "--queries", "50", "--dim", "32", "--out", str(out), "--scratch", str(tmp_path)])
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()[2:4]] == ["1,000", "3,000"]
    assert out.with_suffix(".png").is_file() and out.with_suffix(".pdf").is_file()
