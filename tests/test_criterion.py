"""Losses and SAM against their definitions written out."""

import contextlib
import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from criterion import SAM, SoftTripletLoss, TupleLoss, WBLoss
from criterion.build import build_optimizer, set_learning_rate
from model import FRGeo
from train import train_step
from utils.options import parse_args

LOSSES = pytest.mark.parametrize("loss", [WBLoss(), SoftTripletLoss()])


def pairs(b, d, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(b, d, generator=g, dtype=torch.float64)
    return q.to(dtype), (0.5 * q + torch.randn(b, d, generator=g, dtype=torch.float64)).to(dtype)


def wbl_by_definition(s, alpha):
    b, total = len(s), 0.0
    for m in (s, s.T):
        for i in range(b):
            total += np.log(1 + sum(np.exp(alpha * (m[i, j] - m[i, i])) for j in range(b) if j != i)) / b
    return total / 2


def triplet_by_definition(s, alpha):
    ordered = [(m, i, j) for m in (s, s.T) for i in range(len(s)) for j in range(len(s)) if i != j]
    return np.mean([np.log(1 + np.exp(alpha * (m[i, j] - m[i, i]))) for m, i, j in ordered])


@settings(deadline=None, max_examples=40)
@given(b=st.integers(2, 12), d=st.integers(2, 40), alpha=st.floats(0.1, 60), seed=st.integers(0, 99))
def test_losses_are_their_definitions(b, d, alpha, seed):
    q, k = pairs(b, d, seed)
    s = (normalize(q, dim=1) @ normalize(k, dim=1).T).numpy()
    for loss, definition in ((WBLoss, wbl_by_definition), (SoftTripletLoss, triplet_by_definition)):
        value, positive, negative = loss(alpha)(q, k)
        np.testing.assert_allclose(value, definition(s, alpha), atol=1e-10)
        np.testing.assert_allclose(positive, np.diag(s).mean(), atol=1e-12)
        np.testing.assert_allclose(negative, s[~np.eye(b, dtype=bool)].mean(), atol=1e-12)


@LOSSES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_loss_is_float32_under_any_precision(loss, dtype):
    q, k = pairs(8, 64, dtype=dtype)
    expected = loss(q.double(), k.double())[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(q, k)[0]
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected.item(), abs=2e-6)


def test_the_loss_stays_finite_where_exponentials_overflow():
    q = torch.eye(4)
    value = WBLoss(alpha=5000)(q, q.roll(1, 0))[0]
    assert torch.isfinite(value) and value.item() == pytest.approx(5000, rel=1e-3)


@LOSSES
def test_views_of_differing_precision_are_compared_in_the_wider(loss):
    q, k = pairs(4, 8)
    narrow = k.float()
    assert torch.equal(loss(q, narrow)[0], loss(q, narrow.double())[0])
    assert torch.equal(loss(narrow, q)[0], loss(narrow.double(), q)[0])


def test_a_tuple_needs_negatives_and_equal_shapes():
    with pytest.raises(ValueError, match="no negatives"):
        WBLoss()(torch.ones(1, 4), torch.ones(1, 4))
    with pytest.raises(ValueError, match="expected two equal"):
        WBLoss()(torch.ones(3, 4), torch.ones(2, 4))


def test_tuples_are_consecutive_parts_of_the_batch():
    q, k = pairs(12, 6)
    parts = torch.tensor([WBLoss()(q[i : i + 4], k[i : i + 4]) for i in (0, 4, 8)])
    torch.testing.assert_close(torch.stack(TupleLoss(WBLoss(), tuple_size=4)(q, k)), parts.mean(0))
    with pytest.raises(ValueError, match="tuples of 5"):
        TupleLoss(WBLoss(), tuple_size=5)(q, k)


def test_label_smoothing_is_a_mixture_with_the_uniform_target():
    q, k = pairs(6, 20)
    s = 10 * normalize(q, dim=1) @ normalize(k, dim=1).T
    target = 0.8 * torch.eye(6, dtype=torch.float64) + 0.2 / 6
    expected = sum(-(target * side.log_softmax(1)).sum(1).mean() for side in (s, s.T)) / 2
    torch.testing.assert_close(WBLoss(label_smoothing=0.2)(q, k)[0], expected)


def test_a_learned_temperature_starts_at_alpha_and_has_its_gradient():
    q, k = pairs(6, 20)
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


# Optimisers.


def options(*more):
    return parse_args(["--dataset", "cvusa", "--data-root", "unused", *more])


def test_a_temperature_neither_decays_nor_is_climbed():
    """And the climb of the model is the one without it."""
    loss, steps = WBLoss(learned=True), []
    args = options("--op", "sam", "--asam", "--rho", "2", "--lr", "0.1", "--wd", "0.5")
    for criterion in (loss, WBLoss()):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 1)
        optimizer = build_optimizer(args, model, criterion)
        for parameter in (*model.parameters(), *criterion.parameters()):
            parameter.grad = torch.ones_like(parameter)
        before = loss.log_alpha.item()
        optimizer.first_step()
        steps.append(model.weight.detach().clone())
        loss.log_alpha.grad.zero_()
        optimizer.second_step()
        assert loss.log_alpha.item() == before
    assert torch.equal(*steps)


def test_learning_rates_follow_the_schedule():
    optimizer = torch.optim.SGD([torch.ones(1)], lr=1)
    for more, expected in (
        (["--cos"], [1e-3 * 0.5 * (1 + np.cos(np.pi * epoch / 4)) for epoch in range(4)]),
        (["--schedule", "1", "3"], [1e-3, 1e-4, 1e-4, 1e-5]),
        ([], [1e-3] * 4),
    ):
        args = options("--lr", "1e-3", "--epochs", "4", *more)
        for epoch, lr in enumerate(expected):
            told = set_learning_rate(optimizer, args, epoch)
            assert told == optimizer.param_groups[0]["lr"] == pytest.approx(lr)


def sam_by_definition(params, loss, steps, rho, adaptive, lr, wd):
    """Foret et al. and Kwon et al. written out per tensor in float64, around AdamW written out as well."""
    w = [p.detach().clone() for p in params]
    m, v = [torch.zeros_like(p) for p in w], [torch.zeros_like(p) for p in w]

    def gradient(at):
        leaves = [p.clone().requires_grad_() for p in at]
        return torch.autograd.grad(loss(leaves), leaves)

    for t in range(1, steps + 1):
        g = gradient(w)
        scale = [p.abs() if adaptive else torch.ones_like(p) for p in w]
        norm = sum(((s * gi) ** 2).sum() for s, gi in zip(scale, g, strict=True)).sqrt() + 1e-12
        g = gradient([p + rho * s**2 * gi / norm for p, s, gi in zip(w, scale, g, strict=True)])
        for i, gi in enumerate(g):
            m[i] = 0.9 * m[i] + 0.1 * gi
            v[i] = 0.999 * v[i] + 0.001 * gi**2
            w[i] = w[i] * (1 - lr * wd) - lr * (m[i] / (1 - 0.9**t)) / ((v[i] / (1 - 0.999**t)).sqrt() + 1e-8)
    return w


ADAPTIVE = {"rho": 2.5, "adaptive": True, "lr": 0.02, "weight_decay": 0.03}


def problem():
    """Parameters, and a loss of theirs."""
    g = torch.Generator().manual_seed(2)
    params = [torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((5, 3), (5,), (2, 5))]
    x, y = torch.randn(7, 3, generator=g, dtype=torch.float64), torch.randn(7, 2, generator=g, dtype=torch.float64)
    return list(map(torch.nn.Parameter, params)), lambda w: ((torch.tanh(x @ w[0].T + w[1]) @ w[2].T - y) ** 2).mean()


def take(count, optimizer, params, loss):
    """So many steps of SAM."""
    for _ in range(count):
        loss(params).backward()
        optimizer.first_step(zero_grad=True)
        loss(params).backward()
        optimizer.second_step(zero_grad=True)


def straight(count):
    """The parameters after so many steps in a row."""
    params, loss = problem()
    take(count, SAM(params, torch.optim.AdamW, **ADAPTIVE), params, loss)
    return params


@pytest.mark.parametrize(("adaptive", "rho"), [(False, 0.05), (True, 2.5), (True, 0.0), (False, 1.3)])
def test_sam_is_its_definition(adaptive, rho):
    params, loss = problem()
    expected = sam_by_definition(params, loss, 5, rho, adaptive, lr=0.02, wd=0.03)
    groups = [{"params": params[:1]}, {"params": params[1:]}]  # the norm is over all parameters together
    take(5, SAM(groups, torch.optim.AdamW, rho=rho, adaptive=adaptive, lr=0.02, weight_decay=0.03), params, loss)
    for p, e in zip(params, expected, strict=True):
        torch.testing.assert_close(p.detach(), e, atol=1e-10, rtol=0)


def test_sam_climbs_rho_far_once_and_returns_exactly():
    params, loss = problem()
    start = [p.detach().clone() for p in params]
    optimizer = SAM(params, torch.optim.SGD, rho=0.3, adaptive=False, lr=0.0)
    loss(params).backward()
    optimizer.first_step(zero_grad=True)
    assert all(p.grad is None for p in params)
    moved = sum(((p - s) ** 2).sum() for p, s in zip(params, start, strict=True)).sqrt()
    assert moved.item() == pytest.approx(0.3, rel=1e-6)
    with pytest.raises(RuntimeError, match="climbed already"):
        optimizer.first_step()
    loss(params).backward()
    optimizer.second_step()
    assert all(torch.equal(p, s) for p, s in zip(params, start, strict=True))
    with pytest.raises(RuntimeError, match="first_step"):
        optimizer.second_step()


def test_sam_state_holds_the_moments():
    """Three steps, saved and restored, then three more: the same as six in a row."""
    first, loss = problem()
    before = SAM(first, torch.optim.AdamW, **ADAPTIVE)
    take(3, before, first, loss)
    second = [torch.nn.Parameter(p.detach().clone()) for p in first]
    after = SAM(second, torch.optim.AdamW, **ADAPTIVE | {"lr": 0.5})
    after.load_state_dict(before.state_dict())
    assert after.param_groups[0]["lr"] == 0.02
    after.param_groups[0]["lr"] = 0.02  # what a schedule does reaches the base optimiser
    take(3, after, second, loss)
    assert all(torch.equal(a, b) for a, b in zip(straight(6), second, strict=True))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copied_sam_goes_on_by_itself(copied):
    first, loss = problem()
    optimizer = SAM(first, torch.optim.AdamW, **ADAPTIVE)
    take(2, optimizer, first, loss)
    second, other = copied((first, optimizer))
    take(3, other, second, loss)
    take(3, optimizer, first, loss)  # has not moved meanwhile
    for params in (first, second):
        assert all(torch.equal(a, b) for a, b in zip(straight(5), params, strict=True))


def test_sam_takes_a_closure_and_skips_parameters_without_gradient():
    params, loss = problem()
    unused = torch.nn.Parameter(torch.ones(3))
    optimizer = SAM([*params, unused], torch.optim.AdamW, rho=0.1, adaptive=True, lr=0.01)

    def closure():
        optimizer.zero_grad()
        value = loss(params)
        value.backward()
        return value

    values = []
    for _ in range(20):
        closure()
        values.append(optimizer.step(closure).item())
    assert values[-1] < values[0] and torch.equal(unused, torch.ones(3))


@pytest.mark.parametrize("arch", ["test_resnet", "test_efficientnet"])
def test_a_sam_step_moves_the_running_statistics_of_batch_norms_once(arch):
    """They follow the first pass, at w: the pass at w + e leaves them alone."""
    torch.manual_seed(0)
    model = FRGeo(arch=arch, ground_size=(32, 128), aerial_size=(64, 64)).train()
    images = torch.randn(4, 3, 32, 128), torch.randn(4, 3, 64, 64)
    once = copy.deepcopy(model)
    once(*images)
    optimizer = SAM(model.parameters(), torch.optim.AdamW, rho=2.0, lr=1e-3)
    train_step(model, WBLoss(), optimizer, *images, contextlib.nullcontext())
    buffers = dict(model.named_buffers())
    assert any(name.endswith("num_batches_tracked") for name in buffers)
    for name, expected in once.named_buffers():
        assert torch.equal(buffers[name], expected), name
    train_step(model, WBLoss(), optimizer, *images, contextlib.nullcontext())
    assert all(int(b) == 2 for name, b in model.named_buffers() if name.endswith("num_batches_tracked"))
