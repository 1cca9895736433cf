#!/usr/bin/env python
"""Ranks of all queries in a gallery: the whole similarity matrix (as published) against blocks (`rank_queries`).

    python -m benchmarks.evaluation [--scale small|cvusa|vigor] [--device cpu|cuda]

Descriptors are drawn like a trained network's (similarities of strangers spread by 0.2) or at random. The plain way is
the published one: descriptors and similarities in float64, a comparison per row in Python (with --device cuda: float32,
one comparison). At VIGOR's size it is measured on 4,000 and on 8,000 queries, and what these add is scaled. Ours has no
matrix, and the same ranks.
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from benchmarks.measure import Measure, in_turns, print_table, row
from utils.metrics import rank_queries

SIZES = {"small": (4_000, 4_000), "cvusa": (8_884, 8_884), "vigor": (52_605, 90_618)}
DIRECTIONS = 24
PLAIN_QUERIES = 4_000  # of the plain way's slice where the gallery is VIGOR's


def descriptors(queries, gallery, dim, trained, device):
    """Queries, gallery and labels. Trained: 24 strong directions, as similarities spread by 0.2, and 0.7 of a pair."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(DIRECTIONS, dim, generator=generator)
    labels = torch.randperm(gallery, generator=generator)[:queries]
    place = torch.randn(gallery, DIRECTIONS, generator=generator)
    reference, query = torch.empty(gallery, dim), torch.empty(queries, dim)
    for rows, own in ((reference, place), (query, place[labels])):
        for part, seen in zip(rows.split(4096), own.split(4096), strict=True):  # parts keep the peak low
            part.normal_(generator=generator)
            if trained:
                part.add_((seen + 0.5 * torch.randn(seen.shape, generator=generator)) @ basis)
    return query.to(device), reference.to(device), labels


def plain_ranks(query, reference, labels):
    """The definition, as the published code computes it: a whole float64 matrix, compared row by row."""
    if query.device.type != "cpu":
        q, r = (torch.nn.functional.normalize(rows, dim=1) for rows in (query, reference))
        similarity = q @ r.T
        return (similarity > similarity.gather(1, labels.to(q.device)[:, None])).sum(1).cpu()
    q, r = normalised(query), normalised(reference)
    similarity = q @ r.T
    return torch.tensor([np.sum(row > row[label]) for row, label in zip(similarity, labels.numpy(), strict=True)])


def normalised(rows):
    rows = rows.double().numpy()
    return rows / np.sqrt(np.sum(rows**2, axis=1, keepdims=True))


def run(scale="small", device="cpu", dim=3072, rounds=3):
    """Lines of the table, as they come."""
    for name in ("trained", "untrained"):
        yield compare(name, scale, device, dim, rounds)


def compare(name, scale, device, dim, rounds):
    queries, gallery = SIZES[scale]
    query, reference, labels = descriptors(queries, gallery, dim, name == "trained", device)
    ours_way = {"here": lambda: torch.from_numpy(rank_queries(query, reference, labels).positive)}
    if scale == "vigor" and device == "cpu":
        first, second = PLAIN_QUERIES, 2 * PLAIN_QUERIES
        parts = {n: partial(plain_ranks, query[:n], reference, labels[:n]) for n in (first, second)}
        best = in_turns(parts, 2, device) | in_turns(ours_way, 1, device)
        times = queries / first - 1
        grown = (a + times * (b - a) for a, b in zip(best[first][1:], best[second][1:], strict=True))
        plain = Measure(best[second].result, *grown)  # the gallery's own part does not grow
    else:
        plain_way = {"plain": partial(plain_ranks, query, reference, labels)}
        best = in_turns(plain_way | ours_way, rounds, device)
        plain = best["plain"]
    ours = best["here"]
    equal = (plain.result == ours.result[: len(plain.result)]).double().mean().item()
    recall = 100 * (ours.result == 0).double().mean().item()
    what = f"evaluation, {queries:,} x {gallery:,}, {name} (R@1 {recall:.0f} %)"
    return row(what, plain, ours, f"{100 * equal:.2f} % of ranks")


if __name__ == "__main__":
    print_table(__doc__, SIZES, run)
