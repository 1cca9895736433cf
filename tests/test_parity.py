"""Agreement with the published implementation, whose numbers stand in tests/parity."""

import contextlib
import json

import numpy as np
import pytest
import torch
from released import PARITY, released_state, write_released
from timm.models import register_model
from timm.models.convnext import ConvNeXt

import train
from criterion import SAM, WBLoss
from criterion.build import build_loss, build_optimizer, set_learning_rate
from model import FRGeo
from train import train_step
from utils.checkpoint import load_weights
from utils.options import parse_args

GOLDEN = np.load(PARITY / "golden.npz")
TRAJECTORY = np.load(PARITY / "trajectory.npz")


@register_model
def parity_convnext(pretrained=False, num_classes=0, **unused):
    return ConvNeXt(depths=(1, 1, 2, 1), dims=(16, 32, 64, 128), num_classes=num_classes)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    return write_released(tmp_path_factory.mktemp("released") / "model_best.pth.tar")


def images(seed, *shape):
    return torch.from_numpy(np.random.RandomState(seed).randn(*shape).astype(np.float32))


def test_descriptors_of_a_released_file(released):
    model = FRGeo().eval()
    assert model.dim == 3072
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(55.64e6, rel=1e-3)
    told = load_weights(model, released)
    assert told == {"epoch": 48, "best_acc1": 97.06}
    for memory_format in (torch.contiguous_format, torch.channels_last):
        model.to(memory_format=memory_format)
        with torch.inference_mode():
            q = model.query_net(images(11, 2, 3, 128, 512)).numpy()
            k = model.reference_net(images(12, 2, 3, 256, 256)).numpy()
        assert np.abs(q - GOLDEN["cvusa_q"]).max() < 2e-5
        assert np.abs(k - GOLDEN["cvusa_k"]).max() < 2e-5


def test_released_file_through_the_command(released, tmp_path, roots):
    metrics = train.main(
        [
            *("--dataset", "cvusa", "--data-root", str(roots["cvusa"]), "--save_path", str(tmp_path)),
            *("--dim", "3072", "-e", "--weights", str(released), "--workers", "0"),
        ]
    )
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert record["epoch"] == 48 and record["weights"] == str(released)
    assert record["R@1"] == metrics["R@1"] and record["queries"] == 7
    assert np.load(tmp_path / "grd_global_descriptor.npy").shape == (7, 3072)


def test_weighted_loss():
    a = np.random.RandomState(1).randn(16, 3072)
    b = 0.6 * a + np.random.RandomState(51).randn(16, 3072)
    a, b = (torch.from_numpy(x).requires_grad_() for x in (a, b))
    loss, positive, negative = WBLoss(10)(a, b)
    loss.backward()
    found = [loss, positive, negative, a.grad.norm(), b.grad.norm(), a.grad[0, 0], b.grad[1, 1]]
    np.testing.assert_allclose([x.item() for x in found], GOLDEN["wbl_16_3072_10"], atol=1e-9, rtol=0)


@pytest.mark.parametrize("fused", [False, True])
def test_adaptive_sam(fused):
    def numbers(seed, *shape):
        return torch.from_numpy(np.random.RandomState(seed).randn(*shape))

    w = [torch.nn.Parameter(numbers(s, *shape)) for s, shape in ((5, (6, 4)), (6, (6,)), (7, (3, 6)))]
    x, y = numbers(8, 5, 4), numbers(9, 5, 3)

    def loss():
        return ((torch.tanh(x @ w[0].T + w[1]) @ w[2].T - y) ** 2).mean()

    optimizer = SAM(w, torch.optim.AdamW, rho=2.5, adaptive=True, lr=0.01, weight_decay=0.03, fused=fused)
    for _ in range(4):
        loss().backward()
        optimizer.first_step(zero_grad=True)
        loss().backward()
        optimizer.second_step(zero_grad=True)
    for i, p in enumerate(w):
        np.testing.assert_allclose(p.detach().numpy(), GOLDEN[f"asam_True_{i}"], atol=1e-9, rtol=0)


@pytest.mark.parametrize(("kind", "flags"), [("adamw", "--op adamw"), ("asam", "--op sam --asam --rho 0.25")])
def test_training(kind, flags):
    """12 steps, 4 an epoch, in float64: loss and similarities before each step, descriptors after the last."""
    schedule = "--lr 0.001 --wd 0.03 --cos --epochs 3"
    args = parse_args(["--dataset", "cvusa", "--data-root", "unused", *flags.split(), *schedule.split()])
    model = FRGeo(arch="parity_convnext", ground_size=(64, 256), aerial_size=(128, 128)).double()
    load_weights(model, {"state_dict": released_state("trajectory_keys.json")})
    criterion = build_loss(args, share=6, world_size=1)
    optimizer = build_optimizer(args, model, criterion)
    batches = []
    for seed in range(100, 104):
        rng = np.random.RandomState(seed)
        views = [rng.randn(6, 3, *size).astype(np.float32) for size in (model.ground_size, model.aerial_size)]
        batches.append([torch.from_numpy(view).double() for view in views])
    model.train()
    found = []
    for epoch in range(3):
        set_learning_rate(optimizer, args, epoch)
        found += [
            train_step(model, criterion, optimizer, *batch, contextlib.nullcontext())[0].numpy() for batch in batches
        ]
    np.testing.assert_allclose(found, TRAJECTORY[f"train_{kind}"], atol=1e-9, rtol=0)
    with torch.inference_mode():
        descriptors = model.eval()(*batches[0])
    for view, rows in zip("qk", descriptors, strict=True):
        np.testing.assert_allclose(rows.numpy(), TRAJECTORY[f"train_{kind}_{view}"], atol=1e-9, rtol=0)
