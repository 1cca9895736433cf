"""The map of a city: streets, crossings, districts and blocks, defined everywhere by a seed.

World coordinates are metres, x to the east and y to the north. Streets follow a grid whose crossings are displaced
by long waves and by chance; every crossing, street and block draws from a generator of its own, seeded by the city
and its grid indices, so any part of the map can be made alone and is always the same.
"""

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from .blocks import fill_block
from .style import BLOCK_KINDS, SURFACE, Style

_OFFSET = 1 << 20  # generators take no negative numbers
_NODE, _STREET, _BLOCK, _LINE, _FIELD, _WAVES = range(6)
CAMERA, WARD_ROLE, PANORAMA = 6, 7, 8


@dataclass(frozen=True)
class Street:
    """One street between two crossings."""

    line: np.ndarray  # (points, 2) centre line
    width: float  # roadway
    walk: float  # sidewalk on either side, 0 for none
    kind: str  # avenue | street | lane
    surface: int
    marked: bool
    median: bool  # a strip of lawn with trees along the middle

    @property
    def clear(self):
        """Distance from the centre line that buildings keep."""
        return self.width / 2 + self.walk


@dataclass
class Block:
    """What stands between the streets: patches of ground, buildings, trees, and slots where cars park."""

    kind: str
    outline: np.ndarray  # (points, 2)
    ground: int
    patches: list = field(default_factory=list)  # (polygon (points, 2), surface)
    hedges: list = field(default_factory=list)  # (polygon, height)
    buildings: list = field(default_factory=list)  # Building
    trees: list = field(default_factory=list)  # (x, y, height, crown radius, species, tint)
    slots: list = field(default_factory=list)  # (x, y, angle) of parking places


class City:
    """A city without borders, made from a seed.

    Args:
        seed: of the whole data set.
        index: which city of the set.
        style: the city's traits.
    """

    def __init__(self, seed, index, style: Style):
        self.seed, self.index, self.style = int(seed), int(index), style
        waves = self.rng(_WAVES, 0, 0)
        self._phase = waves.uniform(0, 2 * np.pi, (2, 2))
        self._length = waves.uniform(380, 760, (2, 2))
        self.node = lru_cache(1 << 14)(self._make_node)
        self.lattice = lru_cache(1 << 12)(lambda layer, i, j: self.rng(_FIELD + 16 * layer, i, j).random())
        self.street = lru_cache(1 << 14)(self._make_street)
        self.block = lru_cache(1024)(self._make_block)

    def rng(self, kind, i, j):
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
        rank, tone = line_rng.random(), line_rng.integers(3)
        if axis == 2:
            exists = rng.random() < s.diagonal
            rank = 0.6
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
            return Street(line, rng.choice([13.0, 15.0, 17.0]), 4.0, "avenue", int(tone), True, rng.random() < 0.45)
        if rank < 0.72:
            return Street(line, rng.choice([7.5, 9.0, 10.5]), 2.5, "street", int(tone), rng.random() < 0.6, False)
        surface = SURFACE["gravel"] if rng.random() < 0.25 else int(tone)
        return Street(line, rng.choice([5.0, 6.0]), rng.choice([0.0, 1.5]), "lane", surface, False, False)

    def _field(self, layer, i, j, length=5.0):
        """Smooth random field in [0, 1] over the grid of blocks: what makes districts."""
        u, v = i / length, j / length
        iu, iv = int(np.floor(u)), int(np.floor(v))
        corners = np.array([[self.lattice(layer, iu + a, iv + b) for b in (0, 1)] for a in (0, 1)])
        fu, fv = ((f * f * (3 - 2 * f)) for f in (u - iu, v - iv))
        return float(np.array([1 - fu, fu]) @ corners @ np.array([1 - fv, fv]))

    def _block_kind(self, i, j, rng):
        urban, green, trade = (self._field(layer, i, j) for layer in (1, 2, 3))
        lift = lambda value: np.exp(4.0 * (value - 0.5))  # noqa: E731
        pull = {
            "houses": 1 / lift(urban), "rows": lift(urban), "towers": lift(urban) ** 1.5,
            "halls": lift(trade) ** 1.3, "park": lift(green), "school": 1.0, "store": lift(trade),
            "square": lift(urban),
            "lake": lift(green), "field": lift(green) / lift(urban), "wood": lift(green) / lift(urban),
        }  # fmt: skip
        weights = np.array([w * pull[k] for w, k in zip(self.style.weights, BLOCK_KINDS, strict=True)])
        return BLOCK_KINDS[rng.choice(len(BLOCK_KINDS), p=weights / weights.sum())]

    def _make_block(self, i, j):
        """Block between crossings (i, j) and (i + 1, j + 1)."""
        rng = self.rng(_BLOCK, i, j)
        around = [
            self.street(0, i, j),
            self.street(1, i + 1, j),
            self.street(0, i, j + 1),
            self.street(1, i, j),
        ]
        corners = [self.node(i, j), self.node(i + 1, j), self.node(i + 1, j + 1), self.node(i, j + 1)]
        sides, clear = [], []
        for k, street in enumerate(around):  # counter-clockwise: south, east, north, west
            line = np.array([corners[k], corners[(k + 1) % 4]])
            if street is not None:
                line = street.line if k < 2 else street.line[::-1]
            sides.append(line)
            clear.append(street.clear if street is not None else 1.5)
        block = Block(self._block_kind(i, j, rng), np.concatenate([side[:-1] for side in sides]), 0)
        fill_block(block, sides, clear, self.street(2, i, j), self.style, rng)
        return block

    def cells_in(self, box):
        """Grid indices (i, j) whose street or block may touch box = (west, south, east, north)."""
        s = self.style
        slack = s.warp + s.spacing * (s.disorder + 0.4)
        i0, j0 = (int(np.floor((v - slack) / s.spacing)) - 1 for v in box[:2])
        i1, j1 = (int(np.ceil((v + slack) / s.spacing)) for v in box[2:])
        return [(i, j) for j in range(j0, j1 + 1) for i in range(i0, i1 + 1)]

    def streets_in(self, box):
        """Streets whose bounding box, sidewalks included, touches the box, in a fixed order."""
        found = []
        for i, j in self.cells_in(box):
            for axis in range(3):
                street = self.street(axis, i, j)
                if street is not None and _touches(street.line, box, street.clear + 1):
                    found.append(street)
        return found

    def blocks_in(self, box):
        """Blocks whose outline touches the box, in a fixed order."""
        cells = [(i, j) for i, j in self.cells_in(box)]
        return [
            b for b in (self.block(i, j) for i, j in cells if self._near(i, j, box)) if _touches(b.outline, box, 12)
        ]

    def _near(self, i, j, box):
        return _touches(np.array([self.node(i, j), self.node(i + 1, j + 1)]), box, self.style.spacing)


def _touches(points, box, slack):
    low, high = points.min(0) - slack, points.max(0) + slack
    return low[0] < box[2] and high[0] > box[0] and low[1] < box[3] and high[1] > box[1]
