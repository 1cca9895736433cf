#!/usr/bin/env python
"""One epoch's mining plan: the whole product and its argsort (as published) against `MiningSampler.plan`.

    python -m benchmarks.mining [--scale small|cvusa|vigor] [--device cpu|cuda]

The plain way lists the 100 hardest items of every item, from the whole similarity matrix; the plan lists those of the
items that are anchors in the epoch, half of all, block by block, and lays out the batches. At CVUSA's size and beyond
the plain way is measured on some items and scaled. "Trained" descriptors vary along 24 directions, which gives
their similarities the spread of a trained network's (0.2); "untrained" ones vary along all.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from benchmarks.measure import Measure, in_turns, print_table, row
from dataset.sampler import MiningSampler
from utils.paper import MINING_NEIGHBOURS

ITEMS = {"small": 8_884, "cvusa": 35_532, "vigor": 40_000}  # VIGOR's places (about 49,000) are cut to the pool
PLAIN_ITEMS = 4_000  # of the plain way's slice
BATCH = 32
DIRECTIONS = 24


def filled_sampler(items, dim, device, trained):
    """A sampler after its first epoch, with a descriptor of every item in its memory."""
    sampler = MiningSampler(np.arange(items)[:, None], BATCH, mining=True, dim=dim, device=device)
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(DIRECTIONS if trained else dim, dim if trained else 1, generator=generator)
    for rows in torch.arange(items).split(2048):
        ground = torch.randn(len(rows), len(basis), generator=generator)
        aerial = ground + torch.randn(ground.shape, generator=generator)
        sampler.memory.update(rows, *(x @ basis if trained else x for x in (ground, aerial)))
    sampler.plan(0)
    return sampler


def plain_lists(ground, aerial):
    """The hardest items of each, most similar first, by the definition."""
    similarity = ground @ aerial.T
    if similarity.device.type == "cpu":
        return torch.from_numpy(np.argsort(-similarity.numpy(), axis=1)[:, :MINING_NEIGHBOURS].copy())
    return similarity.argsort(dim=1, descending=True)[:, :MINING_NEIGHBOURS].clone()


def run(scale="small", device="cpu", dim=3072, rounds=2):
    """Lines of the table, as they come."""
    for name in ("trained", "untrained"):
        yield compare(name, scale, device, dim, rounds)


def compare(name, scale, device, dim, rounds):
    items = ITEMS[scale]
    sampler = filled_sampler(items, dim, device, name == "trained")
    memory = sampler.memory
    count = items if scale == "small" else PLAIN_ITEMS
    queue = sampler.queue

    def plan():
        sampler.queue = queue
        return sampler.plan(1)

    ways = {"plain": lambda: plain_lists(memory.ground[:count], memory.aerial), "here": plan}
    best = in_turns(ways, rounds, device)
    plain, ours = best["plain"], best["here"]
    some = torch.arange(min(500, count))
    lists = memory.hard_negatives(some, np.random.default_rng(0))
    same = np.mean([len(set(a) & set(b)) for a, b in zip(lists.tolist(), plain.result[some].tolist(), strict=True)])
    if count < items:
        plain = Measure(plain.result, *(x * items / count for x in plain[1:]))
    what = f"mining plan of {items:,} places, {name}"
    return row(what, plain, ours, f"{same:.2f} of {MINING_NEIGHBOURS} neighbours in common")


if __name__ == "__main__":
    print_table(__doc__, ITEMS, run)
