"""What stands on the map: buildings (cars and people are small ones), and how they are placed in a block."""

from typing import NamedTuple

import numpy as np

from .style import ROOFS, SPECIES, WALLS

HOUSE, OFFICE, SHOP, HALL, PLAIN, CAR, PERSON = range(7)  # facade kinds


class Building(NamedTuple):
    """An upright box, perhaps with a pitched roof; metres, radians from east, colours in [0, 1]."""

    x: float
    y: float
    half_length: float  # along the angle; a ridge runs this way
    half_width: float
    angle: float
    eaves: float  # height where the walls end
    ridge: float  # height of the roof's top, the eaves' for a flat roof
    wall: tuple
    roof: tuple
    kind: int
    bay: float = 3.0  # distance between windows
    storey: float = 3.0


def rectangle(x, y, half_length, half_width, angle):
    """Corners (4, 2) of a rectangle turned by an angle."""
    c, s = np.cos(angle), np.sin(angle)
    a = np.array([-1, 1, 1, -1]) * half_length
    b = np.array([-1, -1, 1, 1]) * half_width
    return np.stack([x + a * c - b * s, y + a * s + b * c], 1)


def disc(x, y, radius, count=14, wobble=0.0, rng=None):
    """Polygon (count, 2) around a point, its radius varied by up to the share `wobble`."""
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    if wobble:
        radius = radius * (1 + wobble * rng.uniform(-1, 1, count))
    return np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], 1)


class Site:
    """A block under construction: its sides, what is already there, and the colours of its neighbourhood."""

    def __init__(self, block, sides, clear, diagonal, style, rng):
        self.block, self.sides, self.clear, self.diagonal = block, sides, clear, diagonal
        self.style, self.rng = style, rng
        self.corners = np.array([side[0] for side in sides])
        self._x, self._y = block.outline.T
        dx, dy = (np.roll(v, -1) - v for v in block.outline.T)
        self._y_next, self._run = self._y + dy, dx / np.where(dy == 0, 1, dy)
        self.taken = np.zeros((0, 3))  # x, y, radius
        lines = [*zip(sides, clear, strict=True)] + ([(diagonal.line, diagonal.clear)] if diagonal else [])
        self._start = np.concatenate([line[:-1] for line, _ in lines])
        self._step = np.concatenate([np.diff(line, axis=0) for line, _ in lines])
        self._square = np.maximum((self._step**2).sum(1), 1e-9)
        self._clear = np.concatenate([np.full(len(line) - 1, away) for line, away in lines])
        palette = rng.permutation(len(style.walls))[:4]
        self.walls = [style.walls[k] for k in palette]
        self.roofs = [style.roofs[k] for k in rng.permutation(len(style.roofs))[:3]]

    def point(self, s, t):
        """Bilinear position in the block, s and t in [0, 1]."""
        a, b, c, d = self.corners
        return (1 - s) * (1 - t) * a + s * (1 - t) * b + s * t * c + (1 - s) * t * d

    def holds(self, x, y):
        """Whether a point lies inside the block's outline (even-odd rule)."""
        crosses = (self._y > y) != (self._y_next > y)
        return bool(np.count_nonzero(crosses & (x < self._run * (y - self._y) + self._x)) % 2)

    def fits(self, x, y, radius, gap=1.0, edge=None):
        """Whether a disc lies in the block, off the streets and off what already stands."""
        edge = radius + 0.5 if edge is None else edge
        if not self.holds(x, y):
            return False
        d = np.array([x, y]) - self._start
        t = np.minimum(np.maximum((d * self._step).sum(1) / self._square, 0), 1)
        d -= t[:, None] * self._step
        if ((d * d).sum(1) < (self._clear + edge) ** 2).any():
            return False
        u, v, r = self.taken.T
        return not ((x - u) ** 2 + (y - v) ** 2 <= np.maximum(radius + r + gap, 0) ** 2).any()

    def take(self, x, y, radius):
        """Keep a disc free from here on."""
        self.taken = np.concatenate([self.taken, [(x, y, radius)]])

    def along(self, k, setback):
        """Walk along side k, `setback` metres inside its sidewalk.

        Returns:
            place(s, depth=setback) -> (x, y, angle of the street), and the walk's length in metres.
        """
        side = self.sides[k]
        steps = np.hypot(*np.diff(side, axis=0).T)
        reach = np.concatenate([[0], np.cumsum(steps)])

        def place(s, depth=setback):
            m = min(max(np.searchsorted(reach, s) - 1, 0), len(steps) - 1)
            d = (side[m + 1] - side[m]) / max(steps[m], 1e-6)
            p = side[m] + d * (s - reach[m]) + np.array([-d[1], d[0]]) * (self.clear[k] + depth)
            return p[0], p[1], float(np.arctan2(d[1], d[0]))

        return place, reach[-1]

    def street_angle(self):
        """Direction of one of the streets around, in radians."""
        place, length = self.along(self.rng.integers(4), 0)
        return place(length / 2)[2]

    def anywhere(self, low=0.1, high=0.9):
        """A random position, `low` and `high` as shares of the block's sides."""
        return self.point(*self.rng.uniform(low, high, 2))

    def colours(self, loose=0.5):
        """A wall and a roof colour: the roof shares the wall's tint only now and then."""
        rng = self.rng
        name = self.walls[rng.integers(len(self.walls))] if rng.random() < 0.75 else rng.choice(list(WALLS))
        wall = np.array(WALLS[name], np.float64) / 255
        roof = np.array(ROOFS[self.roofs[rng.integers(len(self.roofs))]], np.float64) / 255
        if rng.random() < loose:
            roof = 0.35 * roof + 0.65 * np.clip(wall.mean() + 1.5 * (wall - wall.mean()), 0.05, 1) * rng.uniform(
                0.6, 0.95
            )
        wall = np.clip(wall * rng.uniform(0.85, 1.1) + rng.normal(0, 0.02, 3), 0.04, 0.97)
        roof = np.clip(roof * rng.uniform(0.8, 1.15) + rng.normal(0, 0.02, 3), 0.04, 0.97)
        return tuple(wall), tuple(roof)

    def build(
        self,
        x,
        y,
        half_length,
        half_width,
        angle,
        height,
        pitched=False,
        kind=OFFICE,
        gap=1.0,
        claim=None,
        **extra,
    ):
        """Put up a building if there is room; returns whether there was."""
        claim = claim if claim is not None else 0.8 * np.hypot(half_length, half_width)
        if not self.fits(x, y, claim, gap, edge=min(half_length, half_width) * 0.9):
            return False
        wall, roof = extra.pop("colours", None) or self.colours()
        ridge = height + (0.45 + 0.35 * self.rng.random()) * half_width if pitched else height
        self.block.buildings.append(
            Building(x, y, half_length, half_width, angle, height, ridge, wall, roof, kind, **extra)
        )
        self.take(x, y, claim)
        if not pitched and kind in (OFFICE, SHOP, HALL) and half_width > 6:
            self._roof_plant(x, y, half_length, half_width, angle, height)
        return True

    def _roof_plant(self, x, y, half_length, half_width, angle, height):
        """Machine rooms and skylights that tell a large flat roof from a car park."""
        c, s = np.cos(angle), np.sin(angle)
        for _ in range(self.rng.integers(1, 5)):
            a, b = self.rng.uniform(-0.7, 0.7, 2) * (half_length, half_width)
            grey = (float(self.rng.uniform(0.4, 0.85)),) * 3
            size = self.rng.uniform(0.8, 2.2, 2)
            top = height + self.rng.uniform(0.8, 2.2)
            self.block.buildings.append(
                Building(x + a * c - b * s, y + a * s + b * c, size[0], size[1], angle, top, top, grey, grey, PLAIN)
            )

    def plant(self, x, y, height=None, species=None, radius=None, check=True, gap=-0.8):
        """Plant a tree if there is room for its trunk."""
        rng, style = self.rng, self.style
        if species is None:
            weights = np.array(style.species, float)
            species = int(rng.choice(len(SPECIES), p=weights / weights.sum()))
        if height is None:
            height = rng.uniform(*SPECIES[species][4])
        if radius is None:
            radius = height * (0.34, 0.22, 0.15)[SPECIES[species][3]] * rng.uniform(0.8, 1.2)
        if check and not self.fits(x, y, min(radius, 1.6), gap=gap + 0.5, edge=0.6):
            return False
        self.block.trees.append((x, y, height, radius, species, float(rng.normal(0, 0.08))))
        return True

    def scatter(self, count, s=(0.08, 0.92), t=(0.08, 0.92), **tree):
        """Plant up to `count` trees anywhere in a part of the block."""
        for _ in range(self.rng.poisson(count * self.style.tree_share)):
            x, y = self.point(self.rng.uniform(*s), self.rng.uniform(*t))
            self.plant(x, y, **tree)
