"""The map of a city: streets, crossings, districts and blocks, and where cameras stand on it.

World coordinates are metres, x to the east and y to the north. Streets follow a grid whose crossings are displaced
by long waves and by chance; every crossing, street and block draws from a generator of its own, seeded by the city
and its grid indices, so any part of the endless map can be made alone and is always the same.
"""

from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from itertools import count

import numpy as np

from .blocks import FILL, make_block
from .style import SURFACE

_OFFSET = 1 << 20  # generators take no negative numbers
_NODE, _STREET, _BLOCK, _LINE, _FIELD, _WAVES, _CAMERA, _WARD, PANORAMA = range(9)  # what a generator is for
WARD = 400.0  # metres


@dataclass(frozen=True)
class Street:
    """One street between two crossings; metres."""

    line: np.ndarray  # (points, 2) centre line
    width: float  # of the roadway
    walk: float  # width of the sidewalk on either side, 0 for none
    kind: str  # avenue | street | lane
    surface: int
    marked: bool
    median: bool  # a strip of lawn with trees along the middle

    @property
    def clear(self):
        """Distance from the centre line that buildings keep."""
        return self.width / 2 + self.walk

    @cached_property
    def reach(self):
        """(points,) distance of the line's points from its start."""
        return np.concatenate([[0], np.cumsum(np.hypot(*np.diff(self.line, axis=0).T))])

    def at(self, distance):
        """(n, 2) points of the centre line at distances (n,) from its start."""
        return np.stack([np.interp(distance, self.reach, self.line[:, k]) for k in (0, 1)], 1)


class City:
    """A city without borders.

    Args:
        seed: of the whole data set.
        index: which city of the set.
        style: the city's traits, a `Style`.
    """

    def __init__(self, seed, index, style):
        self.seed, self.index, self.style = int(seed), int(index), style
        waves = self.rng(_WAVES, 0, 0)
        self._phase, self._length = waves.uniform(0, 2 * np.pi, (2, 2)), waves.uniform(380, 760, (2, 2))
        self.node = lru_cache(1 << 14)(self._make_node)
        self.lattice = lru_cache(1 << 12)(lambda layer, i, j: self.rng(_FIELD + 16 * layer, i, j).random())
        self.street = lru_cache(1 << 14)(self._make_street)
        self.block = lru_cache(1024)(self._make_block)

    def rng(self, kind, i, j):
        """The generator of one thing at grid indices (i, j)."""
        return np.random.default_rng((self.seed, self.index, kind, i + _OFFSET, j + _OFFSET))

    def _make_node(self, i, j):
        """Position (2,) of crossing (i, j)."""
        s = self.style
        x, y = (np.array([i, j]) + self.rng(_NODE, i, j).uniform(-s.disorder, s.disorder, 2)) * s.spacing
        bend = np.sin(2 * np.pi * np.array([[y, x * 0.6 + y], [x, y * 0.6 - x]]) / self._length + self._phase)
        return np.array([x, y]) + s.warp * (bend @ [0.75, 0.25])

    def _make_street(self, axis, i, j):
        """Street from crossing (i, j) eastwards (axis 0), northwards (1) or to (i + 1, j + 1) (2), or None."""
        s, rng = self.style, self.rng(_STREET + 16 * (axis + 1), i, j)
        # A line of the grid keeps its rank over some blocks, so that avenues run on.
        along, across = (i, j) if axis == 0 else (j, i)
        line_rng = self.rng(_LINE + 16 * (axis + 1), across, along // 6)
        rank, tone = line_rng.random(), int(line_rng.integers(3))
        if axis == 2:
            exists, rank = rng.random() < s.diagonal, 0.6
        else:
            exists = rng.random() >= s.closed or rank < 0.2
        if not exists:
            return None
        start, end = self.node(i, j), self.node(*((i + 1, j), (i, j + 1), (i + 1, j + 1))[axis])
        step = end - start
        bow = rng.normal(0, 0.05) * np.array([-step[1], step[0]])
        t = np.linspace(0, 1, 6)[:, None]
        line = start + t * step + 4 * t * (1 - t) * bow
        if rank < 0.2:
            return Street(line, rng.choice([13.0, 15.0, 17.0]), 4.0, "avenue", tone, True, rng.random() < 0.45)
        if rank < 0.72:
            return Street(line, rng.choice([7.5, 9.0, 10.5]), 2.5, "street", tone, rng.random() < 0.6, False)
        surface = SURFACE["gravel"] if rng.random() < 0.25 else tone
        return Street(line, rng.choice([5.0, 6.0]), rng.choice([0.0, 1.5]), "lane", surface, False, False)

    def _field(self, layer, i, j, length=5.0):
        """Smooth random field in [0, 1] over the grid of blocks: what makes districts."""
        u, v = i / length, j / length
        iu, iv = int(np.floor(u)), int(np.floor(v))
        corners = np.array([[self.lattice(layer, iu + a, iv + b) for b in (0, 1)] for a in (0, 1)])
        fu, fv = ((f * f * (3 - 2 * f)) for f in (u - iu, v - iv))
        return float(np.array([1 - fu, fu]) @ corners @ np.array([1 - fv, fv]))

    def _block_kind(self, i, j, rng):
        urban, green, trade = (np.exp(4.0 * (self._field(layer, i, j) - 0.5)) for layer in (1, 2, 3))
        pull = {
            "houses": 1 / urban, "rows": urban, "towers": urban**1.5, "halls": trade**1.3, "park": green, "school": 1.0,
            "store": trade, "square": urban, "lake": green, "field": green / urban, "wood": green / urban,
        }  # fmt: skip
        weights = np.array([weight * pull[kind] for weight, kind in zip(self.style.weights, FILL, strict=True)])
        return list(FILL)[rng.choice(len(FILL), p=weights / weights.sum())]

    def _make_block(self, i, j):
        """Block between crossings (i, j) and (i + 1, j + 1)."""
        rng = self.rng(_BLOCK, i, j)
        around = self.street(0, i, j), self.street(1, i + 1, j), self.street(0, i, j + 1), self.street(1, i, j)
        corners = [self.node(i, j), self.node(i + 1, j), self.node(i + 1, j + 1), self.node(i, j + 1)]
        sides, clear = [], []
        for k, street in enumerate(around):  # counter-clockwise: south, east, north, west
            if street is None:
                sides.append(np.array([corners[k], corners[(k + 1) % 4]]))
            else:
                sides.append(street.line if k < 2 else street.line[::-1])
            clear.append(street.clear if street is not None else 1.5)
        return make_block(self._block_kind(i, j, rng), sides, clear, self.street(2, i, j), self.style, rng)

    def cells_in(self, box):
        """Grid indices (i, j) whose street or block may touch box = (west, south, east, north)."""
        s = self.style
        slack = s.warp + s.spacing * (s.disorder + 0.4)
        i0, j0 = (int(np.floor((v - slack) / s.spacing)) - 1 for v in box[:2])
        i1, j1 = (int(np.ceil((v + slack) / s.spacing)) for v in box[2:])
        return [(i, j) for j in range(j0, j1 + 1) for i in range(i0, i1 + 1)]

    def streets_in(self, box):
        """Streets whose bounding box, sidewalks included, touches the box, in a fixed order."""
        streets = [self.street(axis, i, j) for i, j in self.cells_in(box) for axis in range(3)]
        return [s for s in streets if s is not None and _touches(s.line, box, s.clear + 1)]

    def blocks_in(self, box):
        """Blocks whose outline touches the box, in a fixed order."""
        spans = ((i, j, np.array([self.node(i, j), self.node(i + 1, j + 1)])) for i, j in self.cells_in(box))
        blocks = [self.block(i, j) for i, j, span in spans if _touches(span, box, self.style.spacing)]
        return [block for block in blocks if _touches(block.outline, box, 12)]


def _touches(points, box, slack):
    low, high = points.min(0) - slack, points.max(0) + slack
    return low[0] < box[2] and high[0] > box[0] and low[1] < box[3] and high[1] > box[1]


def street_places(city, box, step=12.0):
    """Candidate cameras [(x, y)] on the streets in box = (west, south, east, north), in random order."""
    found = []
    for i, j in city.cells_in(box):
        for axis in range(3):
            street = city.street(axis, i, j)
            if street is None:
                continue
            rng = city.rng(_CAMERA + 16 * (axis + 1), i, j)
            end = street.reach[-1]
            at = np.arange(rng.uniform(0, step), end - 2, step)
            at = np.clip(at + rng.uniform(-3, 3, at.size), 0.5, end - 0.5)
            low = 0.2 if street.median else 0.05
            offset = street.width * rng.uniform(low, 0.3, at.size) * rng.choice([-1, 1], at.size)
            x, y = street.at(at).T
            dx, dy = (street.at(at + 1) - street.at(at)).T
            norm = np.maximum(np.hypot(dx, dy), 1e-3)
            x, y = x - offset * dy / norm, y + offset * dx / norm
            keep = (x >= box[0]) & (x < box[2]) & (y >= box[1]) & (y < box[3])
            found += list(zip(x[keep].tolist(), y[keep].tolist(), strict=True))
    order = city.rng(_CAMERA, int(box[0] // 10), int(box[1] // 10)).permutation(len(found))
    return [found[k] for k in order]


def spiral():
    """The cells (a, b) of an endless grid, ring by ring around the origin."""
    yield 0, 0
    for ring in count(1):
        for k in range(-ring, ring):
            yield from ((k, -ring), (ring, k), (-k, ring), (-ring, -k))


def ward_of(x, y):
    """The ward, a square of side WARD, that a point lies in."""
    return int(np.floor(x / WARD)), int(np.floor(y / WARD))


def ward_box(a, b):
    """(west, south, east, north) of a ward in metres."""
    return a * WARD, b * WARD, (a + 1) * WARD, (b + 1) * WARD


def choose_places(city, counts, tile, away=0.0):
    """Choose the cameras of each split on the streets.

    Each ward belongs to one split by the seed alone. Two cameras of a split are at least half a tile apart (in x or in
    y), and a camera whose tile could touch that of a camera of a split held out from it is left out: no training tile
    overlaps a test tile anywhere.

    Args:
        counts: {split: how many}, in the order from training to the split held out most strictly.
        tile: side of the aerial image in metres.
        away: metres that its centre may lie from the camera.

    Returns:
        {split: list of (x, y, ward)}, each in the order they were drawn.
    """
    names, reach, gap = list(counts), tile + 2 * away, tile / 2
    limits = np.cumsum([counts[n] / sum(counts.values()) for n in names])

    @cache
    def role(a, b):
        return min(int(np.searchsorted(limits, city.rng(_WARD, a, b).random(), side="right")), len(names) - 1)

    def crowded(own, x, y):
        cells = [(own, int(x // gap) + di, int(y // gap) + dj) for di in (-1, 0, 1) for dj in (-1, 0, 1)]
        return any(max(abs(x - u), abs(y - v)) < gap for cell in cells for u, v in taken.get(cell, ()))

    chosen = {name: [] for name in names}
    taken = {}  # cells of half a tile -> positions, per split
    for a, b in spiral():
        if all(len(chosen[n]) == counts[n] for n in names):
            return chosen
        own = role(a, b)
        found = chosen[names[own]]
        for x, y in street_places(city, ward_box(a, b)) if len(found) < counts[names[own]] else ():
            if len(found) == counts[names[own]]:
                break
            wards = {ward_of(x + u, y + v) for u in (-reach, reach) for v in (-reach, reach)}
            if not any(role(*ward) > own for ward in wards) and not crowded(own, x, y):
                taken.setdefault((own, int(x // gap), int(y // gap)), []).append((x, y))
                found.append((x, y, (a, b)))
