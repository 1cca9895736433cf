"""Where the cameras of CVUSA and CVACT stand: on streets, training and test places apart.

The city is cut into square wards, and each belongs to one split by the seed alone. Two cameras of a split are at
least half a tile apart (in x or in y), and a camera whose tile could touch that of a camera of a split held out from
it is left out: no training tile overlaps a test tile anywhere.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from .plan import CAMERA, WARD_ROLE

WARD = 400.0  # metres


@dataclass(frozen=True)
class Place:
    """A camera's position in metres and the ward it is in."""

    x: float
    y: float
    ward: tuple


def street_places(city, box, step=12.0):
    """Candidate cameras [(x, y)] on the streets in box = (west, south, east, north), in random order."""
    found = []
    for i, j in city.cells_in(box):
        for axis in range(3):
            street = city.street(axis, i, j)
            if street is None:
                continue
            rng = city.rng(CAMERA + 16 * (axis + 1), i, j)
            reach = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(street.line, axis=0).T))])
            at = np.arange(rng.uniform(0, step), reach[-1] - 2, step)
            at = np.clip(at + rng.uniform(-3, 3, at.size), 0.5, reach[-1] - 0.5)
            low = 0.2 if street.median else 0.05
            offset = street.width * rng.uniform(low, 0.3, at.size) * rng.choice([-1, 1], at.size)
            x, y = (np.interp(at, reach, street.line[:, k]) for k in (0, 1))
            dx, dy = (np.interp(at + 1, reach, street.line[:, k]) for k in (0, 1))
            dx, dy = dx - x, dy - y
            norm = np.maximum(np.hypot(dx, dy), 1e-3)
            x, y = x - offset * dy / norm, y + offset * dx / norm
            keep = (x >= box[0]) & (x < box[2]) & (y >= box[1]) & (y < box[3])
            found += list(zip(x[keep].tolist(), y[keep].tolist(), strict=True))
    order = city.rng(CAMERA, int(box[0] // 10), int(box[1] // 10)).permutation(len(found))
    return [found[k] for k in order]


def spiral(count):
    """Endless-grid cells (a, b) around the origin, ring by ring: the first `count` rings."""
    for ring in range(count):
        if ring == 0:
            yield 0, 0
        for k in range(-ring, ring):
            yield k, -ring
            yield ring, k
            yield -k, ring
            yield -ring, -k


def ward_of(x, y):
    return int(np.floor(x / WARD)), int(np.floor(y / WARD))


def ward_box(a, b):
    return a * WARD, b * WARD, (a + 1) * WARD, (b + 1) * WARD


def choose_places(city, counts, tile, away=0.0):
    """Pick cameras for each split.

    Args:
        counts: {split: how many}, in the order from training to the split held out most strictly.
        tile: side of the aerial image in metres.
        away: metres that its centre may lie from the camera.

    Returns:
        {split: list of Place}, each in the order they were drawn.
    """
    names, reach = list(counts), tile + 2 * away
    total = max(sum(counts.values()), 1)
    limits = np.cumsum([counts[n] / total for n in names])

    @cache
    def role(a, b):
        return min(int(np.searchsorted(limits, city.rng(WARD_ROLE, a, b).random(), side="right")), len(names) - 1)

    chosen = {name: [] for name in names}
    taken = {}  # cells of half a tile -> positions, per split
    for a, b in spiral(4000):
        if all(len(chosen[n]) >= counts[n] for n in names):
            break
        own = role(a, b)
        name = names[own]
        if len(chosen[name]) >= counts[name]:
            continue
        for x, y in street_places(city, ward_box(a, b)):
            if len(chosen[name]) >= counts[name]:
                break
            corners = {ward_of(x + u, y + v) for u in (-reach, reach) for v in (-reach, reach)}
            if any(role(*w) > own for w in corners) or _crowded(taken, own, x, y, tile / 2):
                continue
            taken.setdefault((own, int(x // (tile / 2)), int(y // (tile / 2))), []).append((x, y))
            chosen[name].append(Place(x, y, (a, b)))
    return chosen


def _crowded(taken, own, x, y, gap):
    i, j = int(x // gap), int(y // gap)
    return any(
        max(abs(x - u), abs(y - v)) < gap
        for di in (-1, 0, 1)
        for dj in (-1, 0, 1)
        for u, v in taken.get((own, i + di, j + dj), ())
    )
