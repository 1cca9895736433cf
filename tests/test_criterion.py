import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from criterion import SAM, SoftTripletLoss, TupleLoss, WBLoss


def pairs(b, d, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(b, d, generator=g, dtype=torch.float64)
    return q.to(dtype), (0.5 * q + torch.randn(b, d, generator=g, dtype=torch.float64)).to(dtype)


def similarities(q, k):
    q, k = q.numpy(), k.numpy()
    return (q / np.linalg.norm(q, axis=1)[:, None]) @ (k / np.linalg.norm(k, axis=1)[:, None]).T


def wbl_by_definition(s, alpha):
    b, total = len(s), 0.0
    for m in (s, s.T):
        for i in range(b):
            total += np.log(1 + sum(np.exp(alpha * (m[i, j] - m[i, i])) for j in range(b) if j != i)) / b
    return total / 2


def triplet_by_definition(s, alpha):
    b = len(s)
    terms = [
        np.log(1 + np.exp(alpha * (m[i, j] - m[i, i]))) for m in (s, s.T) for i in range(b) for j in range(b) if i != j
    ]
    return np.mean(terms)


@settings(deadline=None, max_examples=40)
@given(b=st.integers(2, 12), d=st.integers(2, 40), alpha=st.floats(0.1, 60), seed=st.integers(0, 99))
def test_losses_are_their_definitions(b, d, alpha, seed):
    q, k = pairs(b, d, seed)
    s = similarities(q, k)
    for loss, definition in ((WBLoss, wbl_by_definition), (SoftTripletLoss, triplet_by_definition)):
        value, positive, negative = loss(alpha)(q, k)
        np.testing.assert_allclose(value, definition(s, alpha), atol=1e-10)
        np.testing.assert_allclose(positive, np.diag(s).mean(), atol=1e-12)
        np.testing.assert_allclose(negative, s[~np.eye(b, dtype=bool)].mean(), atol=1e-12)


@pytest.mark.parametrize("loss", [WBLoss(), SoftTripletLoss()])
def test_gradients(loss):
    q, k = (x.requires_grad_() for x in pairs(4, 5))
    assert torch.autograd.gradcheck(lambda a, b: loss(a, b)[0], (q, k))


@pytest.mark.parametrize("loss", [WBLoss(), SoftTripletLoss()])
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


@pytest.mark.parametrize("loss", [WBLoss(), SoftTripletLoss()])
def test_views_of_differing_precision_are_compared_in_the_wider(loss):
    q, k = pairs(4, 8)
    expected = loss(q, k.float().double())[0]
    assert torch.equal(loss(q, k.float())[0], expected) and torch.equal(
        loss(k.float(), q)[0], loss(k.float().double(), q)[0]
    )


def test_a_tuple_needs_negatives_and_equal_shapes():
    with pytest.raises(ValueError, match="no negatives"):
        WBLoss()(torch.ones(1, 4), torch.ones(1, 4))
    with pytest.raises(ValueError, match="expected two equal"):
        WBLoss()(torch.ones(3, 4), torch.ones(2, 4))


def test_tuples_are_consecutive_parts_of_the_batch():
    q, k = pairs(12, 6)
    value = TupleLoss(WBLoss(), tuple_size=4)(q, k)
    parts = [WBLoss()(q[i : i + 4], k[i : i + 4]) for i in (0, 4, 8)]
    for i in range(3):
        torch.testing.assert_close(value[i], torch.stack([part[i] for part in parts]).mean())
    with pytest.raises(ValueError, match="tuples of 5"):
        TupleLoss(WBLoss(), tuple_size=5)(q, k)


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


def problem():
    g = torch.Generator().manual_seed(2)
    params = [torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((5, 3), (5,), (2, 5))]
    x, y = torch.randn(7, 3, generator=g, dtype=torch.float64), torch.randn(7, 2, generator=g, dtype=torch.float64)
    return params, lambda w: ((torch.tanh(x @ w[0].T + w[1]) @ w[2].T - y) ** 2).mean()


def two_steps(optimizer, params, loss, count=1):
    for _ in range(count):
        loss(params).backward()
        optimizer.first_step(zero_grad=True)
        loss(params).backward()
        optimizer.second_step(zero_grad=True)


@pytest.mark.parametrize(("adaptive", "rho"), [(False, 0.05), (True, 2.5), (True, 0.0), (False, 1.3)])
def test_sam_is_its_definition(adaptive, rho):
    start, loss = problem()
    expected = sam_by_definition(start, loss, 5, rho, adaptive, lr=0.02, wd=0.03)
    params = [torch.nn.Parameter(p.clone()) for p in start]
    # Two groups: the norm is over all parameters together.
    groups = [{"params": params[:1]}, {"params": params[1:]}]
    optimizer = SAM(groups, torch.optim.AdamW, rho=rho, adaptive=adaptive, lr=0.02, weight_decay=0.03)
    two_steps(optimizer, params, loss, 5)
    for p, e in zip(params, expected, strict=True):
        torch.testing.assert_close(p.detach(), e, atol=1e-10, rtol=0)


def test_sam_returns_exactly_and_climbs_rho_far():
    start, loss = problem()
    params = [torch.nn.Parameter(p.clone()) for p in start]
    optimizer = SAM(params, torch.optim.SGD, rho=0.3, adaptive=False, lr=0.0)
    loss(params).backward()
    optimizer.first_step(zero_grad=True)
    assert all(p.grad is None for p in params)
    moved = sum(((p - s) ** 2).sum() for p, s in zip(params, start, strict=True)).sqrt()
    assert moved.item() == pytest.approx(0.3, rel=1e-6)
    loss(params).backward()
    optimizer.second_step()
    assert all(torch.equal(p, s) for p, s in zip(params, start, strict=True))
    with pytest.raises(RuntimeError, match="first_step"):
        optimizer.second_step()


def test_sam_climbs_once():
    start, loss = problem()
    params = [torch.nn.Parameter(p.clone()) for p in start]
    optimizer = SAM(params, torch.optim.AdamW, rho=0.1)
    loss(params).backward()
    optimizer.first_step()
    with pytest.raises(RuntimeError, match="climbed already"):
        optimizer.first_step()


def test_sam_state_holds_the_moments():
    """Three steps, saved and restored, then three more: the same as six in a row."""
    start, loss = problem()
    kwargs = {"rho": 2.5, "adaptive": True, "lr": 0.02, "weight_decay": 0.03}
    straight = [torch.nn.Parameter(p.clone()) for p in start]
    two_steps(SAM(straight, torch.optim.AdamW, **kwargs), straight, loss, 6)

    first = [torch.nn.Parameter(p.clone()) for p in start]
    before = SAM(first, torch.optim.AdamW, **kwargs)
    two_steps(before, first, loss, 3)
    second = [torch.nn.Parameter(p.detach().clone()) for p in first]
    after = SAM(second, torch.optim.AdamW, **(kwargs | {"lr": 0.5}))
    after.load_state_dict(before.state_dict())
    assert after.param_groups[0]["lr"] == 0.02
    after.param_groups[0]["lr"] = 0.02  # what a schedule does reaches the base optimiser
    two_steps(after, second, loss, 3)
    assert all(torch.equal(a, b) for a, b in zip(straight, second, strict=True))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copied_sam_goes_on_by_itself(copied):
    start, loss = problem()
    kwargs = {"rho": 2.5, "adaptive": True, "lr": 0.02, "weight_decay": 0.03}
    first = [torch.nn.Parameter(p.clone()) for p in start]
    optimizer = SAM(first, torch.optim.AdamW, **kwargs)
    two_steps(optimizer, first, loss, 2)
    second, other = copied((first, optimizer))
    two_steps(other, second, loss, 3)
    straight = [torch.nn.Parameter(p.clone()) for p in start]
    two_steps(SAM(straight, torch.optim.AdamW, **kwargs), straight, loss, 5)
    assert all(torch.equal(a, b) for a, b in zip(straight, second, strict=True))
    two_steps(optimizer, first, loss, 3)  # has not moved meanwhile
    assert all(torch.equal(a, b) for a, b in zip(straight, first, strict=True))


def test_sam_takes_a_closure_and_skips_parameters_without_gradient():
    start, loss = problem()
    params = [torch.nn.Parameter(p.clone()) for p in start]
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
