"""Which panoramas share a batch."""

import copy
import re
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from make_data import ADAMW, flags

import train
from dataset import VIGOR
from dataset.mining import DescriptorMemory
from dataset.sampler import MiningSampler
from utils.geodesy import Positions
from utils.options import UserError

DIM = 16


def one_to_one(n):
    return np.arange(n)[:, None]


def vigor_ring(tiles, panoramas, seed=0):
    """Panoramas on a ring of tiles: each is covered by four neighbouring ones, the first of them positive."""
    start = np.random.default_rng(seed).integers(0, tiles, panoramas)
    return (start[:, None] + np.arange(4)) % tiles


def feed(sampler, seed=0):
    """Give the memory a descriptor of every item."""
    g = torch.Generator().manual_seed(seed)
    first = torch.tensor([p[0] for p in sampler.panoramas_of])
    q = torch.randn(sampler.items, DIM, generator=g)
    sampler.update(first, q, 0.3 * q + torch.randn(sampler.items, DIM, generator=g))


def mined(items, batch, world):
    """The samplers of all ranks, one epoch with hard negatives planned."""
    samplers = [MiningSampler(one_to_one(items), batch, 1, True, DIM, rank, world) for rank in range(world)]
    for sampler in samplers:
        sampler.plan(0)
        feed(sampler)
        sampler.plan(1)
    return samplers


def false_negatives(tiles, batch):
    rows = [set(tiles[p][tiles[p] >= 0]) for p in batch]
    return [(i, j) for i in range(len(rows)) for j in range(i) if rows[i] & rows[j]]


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(8, 90), share=st.integers(2, 7), world=st.integers(1, 3), mining=st.booleans(), ring=st.booleans(),
    seed=st.integers(0, 999),
)  # fmt: skip
def test_every_batch_is_shared_exactly_and_holds_no_false_negative(n, share, world, mining, ring, seed):
    tiles = vigor_ring(4 * n, 3 * n, seed) if ring else one_to_one(n)
    if share * world > n // 2:
        return
    samplers = [
        MiningSampler(tiles, share * world, 2 if ring else 1, mining, DIM, rank, world, seed) for rank in range(world)
    ]
    for epoch in range(3):
        for sampler in samplers:
            sampler.plan(epoch)
        parts = [list(sampler) for sampler in samplers]
        plan = samplers[0].epoch_plan
        assert len(plan) == len(samplers[0]) > 0
        for b, batch in enumerate(plan):
            assert [p for part in parts for p in part[b]] == batch.tolist()
            assert all(len(part[b]) == share for part in parts)
            assert false_negatives(tiles, batch) == []
        if epoch == 0 and mining:
            for sampler in samplers:
                feed(sampler, seed)


@pytest.mark.parametrize(("items", "batch", "mining"), [(600, 32, False), (75, 8, True)])
def test_no_item_is_an_anchor_twice_in_an_epoch(items, batch, mining):
    """What an epoch leaves over comes first in the next, and late in the cycle after it: 45 epochs, none twice."""
    sampler = MiningSampler(one_to_one(items), batch, mining=mining, dim=DIM)
    total, left = Counter(), set()
    for epoch in range(45):
        plan = sampler.plan(epoch)
        anchors = plan[:, ::2] if mining and epoch else plan  # each followed by its partner
        if epoch < 2 and not mining:
            assert left <= set(plan[0])
            left = set(range(items)) - set(plan.ravel())
        counts = Counter(anchors.ravel().tolist())
        assert max(counts.values()) == 1
        total += counts
        if mining:
            feed(sampler, epoch)
    assert max(total.values()) - min(total[i] for i in range(items)) <= 1


def test_a_random_partner_costs_no_permutation_of_all_items():
    sampler = MiningSampler(one_to_one(5000), 10, mining=True, dim=DIM)
    sampler.plan(0)
    sampler.update(torch.arange(3), torch.randn(3, DIM), torch.randn(3, DIM))  # the other items get random partners
    sampler.memory.hard_negatives = lambda anchors, *_: torch.empty(len(anchors), 0, dtype=torch.int64)
    drawn = []

    class Watched(np.random.Generator):
        def permutation(self, x, *args, **kwargs):
            drawn.append(np.size(x) if np.ndim(x) else int(x))
            return super().permutation(x, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np.random, "default_rng", lambda key: Watched(np.random.PCG64(abs(hash(key)))))
        sampler.plan(1)
    assert sampler.counts["random"] == 2500
    assert sum(size >= 5000 for size in drawn) <= 1  # the cycle of anchors


def test_vigor_visits_every_tile_twice_with_varying_panoramas():
    tiles = np.repeat(np.arange(30) * 10, 5)[:, None] + np.arange(4)  # 30 tiles, five panoramas each
    sampler = MiningSampler(tiles, 5, visits=2)
    shown = [p for batch in sampler.plan(0) for p in batch]
    assert set(Counter(p // 5 for p in shown).values()) == {2}
    assert len({p % 5 for p in shown}) == 5


@pytest.mark.parametrize(("share", "world"), [(8, 1), (4, 2), (5, 2), (7, 1)])
def test_half_of_a_mined_batch_are_hard_partners_on_the_same_process(share, world):
    batch = share * world
    samplers = mined(200, batch, world)
    memory = samplers[0].memory
    similarity = memory.ground @ memory.aerial.T
    hard = [set(row.tolist()) for row in similarity.topk(100, dim=1).indices]
    partners = share // 2
    for sampler in samplers:
        for own in sampler:
            assert len(own) == share
            assert all(m in hard[a] for a, m in zip(own[: 2 * partners : 2], own[1 : 2 * partners : 2], strict=True))
    assert samplers[0].counts == {"mined": partners * world * (200 // batch), "random": 0, "short": 0}
    # hard partners are harder than random pairs
    pairs = [(own[2 * i], own[2 * i + 1]) for own in samplers[0] for i in range(partners)]
    assert np.mean([similarity[a, m] for a, m in pairs]) > similarity.mean() + similarity.std() / 2


def test_items_not_seen_yet_are_not_mined():
    sampler = MiningSampler(one_to_one(40), 4, mining=True, dim=DIM)
    sampler.plan(0)
    sampler.update(torch.arange(10), torch.randn(10, DIM), torch.randn(10, DIM))
    sampler.plan(1)
    assert len(sampler) == 10 and sampler.counts["random"] > 0


def test_an_interrupted_plan_sequence_continues_the_same():
    tiles = vigor_ring(120, 300)

    def fresh():
        return MiningSampler(tiles, 6, 2, True, DIM, seed=9)

    straight, resumed = fresh(), fresh()
    for epoch in range(3):
        straight.plan(epoch)
        feed(straight, epoch)
    state = copy.deepcopy(straight.state_dict())
    resumed.load_state_dict(state)
    for epoch in (3, 4):
        np.testing.assert_array_equal(straight.plan(epoch), resumed.plan(epoch))
        feed(straight, epoch)
        feed(resumed, epoch)
    with pytest.raises(UserError, match="this training set has"):
        MiningSampler(one_to_one(50), 6, 1, True, DIM).load_state_dict(state)


def test_plans_depend_on_the_seed_and_the_epoch():
    plans = [MiningSampler(one_to_one(60), 6, seed=seed).plan(epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({str(plan) for plan in plans}) == 4
    assert plans[0] == MiningSampler(one_to_one(60), 6, seed=0).plan(0).tolist()


def test_the_released_guard_lets_false_negatives_in_and_ours_does_not():
    """A ring of 127 tiles, as small as overlap gets in a test; both guards see the same memory."""
    tiles = vigor_ring(127, 400)
    found = {}
    for guard in ("release", "strict"):
        sampler = MiningSampler(tiles, 8, 2, True, DIM, seed=1, guard=guard)
        sampler.plan(0)
        feed(sampler)
        found[guard] = sum(bool(false_negatives(tiles, batch)) for batch in sampler.plan(1))
        assert len(sampler) > 10
    assert found["strict"] == 0 and found["release"] > 5


@pytest.mark.parametrize(("ring", "batch"), [(20, 8), (128, 32)])
def test_the_released_guard_fills_its_batches_and_counts_them(ring, batch):
    sampler = MiningSampler(vigor_ring(ring, 3 * ring), batch, 2, True, DIM, guard="release")
    for epoch in range(3):
        plan = sampler.plan(epoch)
        assert plan.shape == (2 * sampler.items // batch, batch)
        assert sampler.counts["mined"] + sampler.counts["random"] == (plan.size // 2 if epoch else 0)
        feed(sampler, epoch)


def test_batches_left_out_are_counted_once():
    sampler = MiningSampler(vigor_ring(23, 80), 5, 2, True, DIM, seed=1)
    for epoch in range(6):
        plan, counts = sampler.plan(epoch), sampler.counts
        assert len(plan) + counts["short"] == 2 * sampler.items // sampler.batch_size
        assert counts["mined"] + counts["random"] == (len(plan) * (sampler.share // 2) if epoch else 0)
        feed(sampler, epoch)


@pytest.mark.parametrize("mining", [False, True])
def test_heavy_overlap_ends_and_is_counted(mining):
    """Twelve tiles in a ring hold three places that share none; batches shrink to what fits, and planning ends."""
    tiles = vigor_ring(12, 60)
    sampler = MiningSampler(tiles, 16, 2, mining, DIM)
    assert 2 <= sampler.batch_size <= 3
    for epoch in range(4):
        plan = sampler.plan(epoch)
        assert len(plan) >= 1
        assert all(false_negatives(tiles, batch) == [] for batch in plan)
        if mining:
            feed(sampler, epoch)
        assert len(sampler.queue) <= 4 * 2 * sampler.items


def test_sets_and_batches_that_cannot_be_are_told():
    with pytest.raises(UserError, match="at least 6"):
        MiningSampler(one_to_one(30), 5, rank=0, world_size=3)
    assert MiningSampler(one_to_one(30), 8, rank=0, world_size=3).batch_size == 6
    with pytest.raises(UserError, match="at least 4"):
        MiningSampler(one_to_one(3), 8, rank=0, world_size=2)
    assert MiningSampler(one_to_one(9), 32, rank=0, world_size=2).batch_size == 8
    with pytest.raises(RuntimeError, match="plan"):
        next(iter(MiningSampler(one_to_one(30), 8)))


@pytest.mark.parametrize(("batch", "world", "size"), [(32, 1, 16), (32, 2, 8), (16, 1, 8), (10, 2, 5), (18, 1, 6)])
def test_mined_pairs_share_a_tuple(batch, world, size, monkeypatch):
    """Each item is hard for one other: a tuple must hold both, or the pair is never compared."""
    monkeypatch.setattr(DescriptorMemory, "hard_negatives", lambda self, items, _: items[:, None] ^ 1)
    samplers, together = mined(64, batch, world), 0
    for sampler in samplers:
        for own in sampler:
            tuples = [set(own[start : start + size]) for start in range(0, len(own), size)]
            together += sum(item ^ 1 in part for part in tuples for item in part) // 2
    assert together >= samplers[0].counts["mined"] > 10


def test_coordinate_mining_pairs_places_that_lie_near_in_the_first_epochs():
    line = np.stack([np.arange(400.0), np.zeros(400)], axis=1)
    sampler = MiningSampler(one_to_one(400), 8, positions=Positions(line, line, "metres"), near_epochs=2)
    for epoch, most in ((0, 101), (1, 101), (2, 400)):
        plan = sampler.plan(epoch)
        apart = np.abs(plan[:, ::2] - plan[:, 1::2])  # anchors, each followed by its partner
        assert apart.max() < most
        assert (sampler.counts["mined"] > 0) == (epoch < 2)
    assert apart.max() > 150


def test_coordinate_mining_on_vigor_keeps_false_negatives_out(roots, tmp_path):
    data = VIGOR(roots["vigor"], "train")
    sampler = MiningSampler(data.tiles, 6, visits=2, positions=data.positions, near_epochs=1)
    assert not any(false_negatives(data.tiles, batch) for batch in sampler.plan(0)) and sampler.counts["mined"] > 0
    run = flags(roots["vigor"], tmp_path, dataset="vigor")
    train.main([*run, *ADAMW, "--epochs", "2", "--coordinate-mining", "1", "--mining"])
    first = (tmp_path / "log.txt").read_text().split("epoch 1 step")[0]
    assert int(re.search(r"epoch 1: mined (\d+) hard negatives", first)[1]) > 0
