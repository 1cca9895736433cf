"""Blocks between the streets: what each kind of block is filled with, and how things are placed without touching."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from .style import ROOFS, SPECIES, SURFACE, WALLS

HOUSE, OFFICE, SHOP, HALL, PLAIN, CAR, PERSON = range(7)  # kinds of buildings: what their walls look like


class Building(NamedTuple):
    """An upright box, perhaps with a pitched roof; metres, radians from east, colours in [0, 1].

    Cars and people are small buildings.
    """

    x: float
    y: float
    half_length: float  # along the angle; a ridge runs this way
    half_width: float
    angle: float
    eaves: float  # height where the walls end
    ridge: float  # height of the roof's top, equal to the eaves on a flat roof
    wall: tuple
    roof: tuple
    kind: int
    bay: float = 3.0  # distance between windows
    storey: float = 3.0


@dataclass
class Block:
    """What stands between the streets: patches of ground, buildings, trees, and slots where cars park."""

    kind: str
    outline: np.ndarray  # (points, 2), metres
    ground: int = 0  # surface
    patches: list = field(default_factory=list)  # (polygon (points, 2), surface)
    hedges: list = field(default_factory=list)  # (polygon, height)
    buildings: list = field(default_factory=list)  # Building
    trees: list = field(default_factory=list)  # (x, y, height, crown radius, species, tint)
    slots: list = field(default_factory=list)  # (x, y, angle) of parking places


def make_block(kind, sides, clear, diagonal, style, rng):
    """Make and fill a block.

    Args:
        sides: four (points, 2) lines, counter-clockwise from the south.
        clear: per side, the distance from the line that belongs to the street.
        diagonal: the street that cuts the block, or None.
    """
    block = Block(kind, np.concatenate([side[:-1] for side in sides]))
    FILL[kind](Site(block, sides, clear, diagonal, style, rng), rng)
    return block


def rectangle(x, y, half_length, half_width, angle):
    """Corners (4, 2) of a rectangle turned by an angle."""
    c, s = np.cos(angle), np.sin(angle)
    a, b = np.array([-1, 1, 1, -1]) * half_length, np.array([-1, -1, 1, 1]) * half_width
    return np.stack([x + a * c - b * s, y + a * s + b * c], 1)


def disc(x, y, radius, count=14, wobble=0.0, rng=None):
    """Polygon (count, 2) around a point, its radius varied by up to the share `wobble`."""
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    if wobble:
        radius = radius * (1 + wobble * rng.uniform(-1, 1, count))
    return np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], 1)


class Site:
    """A block under construction: its sides, what already stands there, and the colours of its neighbourhood."""

    def __init__(self, block, sides, clear, diagonal, style, rng):
        self.block, self.sides, self.clear, self.style, self.rng = block, sides, clear, style, rng
        self.corners = np.array([side[0] for side in sides])
        self._x, self._y = block.outline.T
        dx, dy = (np.roll(v, -1) - v for v in block.outline.T)
        self._y_next, self._run = self._y + dy, dx / np.where(dy == 0, 1, dy)
        self._taken = np.zeros((0, 3))  # x, y, radius
        lines = [*zip(sides, clear, strict=True)] + ([(diagonal.line, diagonal.clear)] if diagonal else [])
        self._start = np.concatenate([line[:-1] for line, _ in lines])
        self._step = np.concatenate([np.diff(line, axis=0) for line, _ in lines])
        self._square = np.maximum((self._step**2).sum(1), 1e-9)
        self._clear = np.concatenate([np.full(len(line) - 1, away) for line, away in lines])
        self._walls = [style.walls[k] for k in rng.permutation(len(style.walls))[:4]]
        self._roofs = [style.roofs[k] for k in rng.permutation(len(style.roofs))[:3]]

    def point(self, s, t):
        """Bilinear position in the block, s and t in [0, 1]."""
        a, b, c, d = self.corners
        return (1 - s) * (1 - t) * a + s * (1 - t) * b + s * t * c + (1 - s) * t * d

    def anywhere(self, low, high):
        """A random position, `low` and `high` as shares of the block's sides."""
        return self.point(*self.rng.uniform(low, high, 2))

    def spots(self, count, low, high, radius=None):
        """Those of `count` random positions where a disc fits when its turn comes (default: all of them)."""
        for _ in range(count):
            x, y = self.anywhere(low, high)
            if radius is None or self.fits(x, y, radius):
                yield x, y

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

    def fits(self, x, y, radius, gap=1.0, edge=None):
        """Whether a disc lies in the block, off the streets and off what already stands."""
        crosses = (self._y > y) != (self._y_next > y)  # inside the outline by the even-odd rule
        if not np.count_nonzero(crosses & (x < self._run * (y - self._y) + self._x)) % 2:
            return False
        d = np.array([x, y]) - self._start
        t = np.minimum(np.maximum((d * self._step).sum(1) / self._square, 0), 1)
        d -= t[:, None] * self._step
        if ((d * d).sum(1) < (self._clear + (radius + 0.5 if edge is None else edge)) ** 2).any():
            return False
        u, v, r = self._taken.T
        return not ((x - u) ** 2 + (y - v) ** 2 <= np.maximum(radius + r + gap, 0) ** 2).any()

    def take(self, x, y, radius):
        """Keep a disc free from here on."""
        self._taken = np.concatenate([self._taken, [(x, y, radius)]])

    def pick(self, *surfaces):
        """One of the named surfaces."""
        return surfaces[self.rng.integers(len(surfaces))]

    def cover(self, *surfaces):
        """Make one of the named surfaces the block's ground."""
        self.block.ground = SURFACE[self.pick(*surfaces)]

    def lay(self, polygon, *surfaces):
        """Lay a patch of one of the named surfaces."""
        self.block.patches.append((polygon, SURFACE[self.pick(*surfaces)]))

    def colours(self):
        """A wall and a roof colour: the roof shares the wall's tint only now and then."""
        rng = self.rng
        wall = WALLS[self.pick(*self._walls) if rng.random() < 0.75 else rng.choice(list(WALLS))]
        wall, roof = np.array(wall) / 255, np.array(ROOFS[self.pick(*self._roofs)]) / 255
        if rng.random() < 0.5:
            tint = np.clip(wall.mean() + 1.5 * (wall - wall.mean()), 0.05, 1)
            roof = 0.35 * roof + 0.65 * tint * rng.uniform(0.6, 0.95)
        wall = np.clip(wall * rng.uniform(0.85, 1.1) + rng.normal(0, 0.02, 3), 0.04, 0.97)
        roof = np.clip(roof * rng.uniform(0.8, 1.15) + rng.normal(0, 0.02, 3), 0.04, 0.97)
        return tuple(wall), tuple(roof)

    def build(
        self, x, y, half_length, half_width, angle, height, pitched=False, kind=OFFICE, gap=1.0, claim=None,
        colours=None, **windows
    ):  # fmt: skip
        """Put up a building if there is room; returns whether there was."""
        claim = claim if claim is not None else 0.8 * np.hypot(half_length, half_width)
        if not self.fits(x, y, claim, gap, edge=min(half_length, half_width) * 0.9):
            return False
        walls = colours or self.colours()
        ridge = height + (0.45 + 0.35 * self.rng.random()) * half_width if pitched else height
        shape = (x, y, half_length, half_width, angle, height, ridge)
        self.block.buildings.append(Building(*shape, *walls, kind, **windows))
        self.take(x, y, claim)
        if not pitched and kind in (OFFICE, SHOP, HALL) and half_width > 6:
            self._equip_roof(*shape)
        return True

    def _equip_roof(self, x, y, half_length, half_width, angle, height, _):
        """Add the machine rooms and skylights that tell a large flat roof from a car park."""
        rng, c, s = self.rng, np.cos(angle), np.sin(angle)
        for _ in range(rng.integers(1, 5)):
            a, b = rng.uniform(-0.7, 0.7, 2) * (half_length, half_width)
            grey = (float(rng.uniform(0.4, 0.85)),) * 3
            size, top = rng.uniform(0.8, 2.2, 2), height + rng.uniform(0.8, 2.2)
            place = (x + a * c - b * s, y + a * s + b * c, *size, angle, top, top)
            self.block.buildings.append(Building(*place, grey, grey, PLAIN))

    def species(self):
        """A kind of tree as common as the city's style has it."""
        weights = np.array(self.style.species, float)
        return int(self.rng.choice(len(SPECIES), p=weights / weights.sum()))

    def plant(self, x, y, height=None, species=None, check=True, gap=-0.8):
        """Plant a tree if there is room for its trunk."""
        rng = self.rng
        species = self.species() if species is None else species
        height = rng.uniform(*SPECIES[species].heights) if height is None else height
        radius = height * (0.34, 0.22, 0.15)[SPECIES[species].shape] * rng.uniform(0.8, 1.2)
        if not check or self.fits(x, y, min(radius, 1.6), gap=gap + 0.5, edge=0.6):
            self.block.trees.append((x, y, height, radius, species, float(rng.normal(0, 0.08))))

    def scatter(self, count, low=0.08, high=0.92):
        """Plant about `count` trees anywhere in a part of the block, where there is room."""
        for x, y in self.spots(self.rng.poisson(count * self.style.tree_share), low, high):
            self.plant(x, y)

    def line_with_trees(self, chance):
        """Plant rows of trees along the streets."""
        rng = self.rng
        for k in range(4):
            if rng.random() >= chance * self.style.tree_share:
                continue
            place, end = self.along(k, -1.2)
            species, gap = int(rng.choice([0, 1, 3, 6])), rng.uniform(7, 12)
            s = 10.0
            while s < end - 10:
                if rng.random() < 0.8:
                    self.plant(*place(s)[:2], rng.uniform(5, 8), species, check=False)
                s += gap

    def lay_path(self, start, end, surface, width=1.3):
        d = end - start
        self.lay(rectangle(*(start + end) / 2, np.hypot(*d) / 2 + 1, width, np.arctan2(d[1], d[0])), surface)

    def lay_court(self, x, y, angle):
        colour = self.pick("court_green", "court_red", "court_blue", "sand")
        long = self.rng.uniform(8, 13)
        self.lay(rectangle(x, y, long + 1.5, 7, angle), "court_green", "court_red", "asphalt_light")
        self.lay(rectangle(x, y, long, 5.6, angle), "mark_white")
        self.lay(rectangle(x, y, long - 0.2, 5.4, angle), colour)
        self.lay(rectangle(x, y, 0.1, 5.4, angle), "mark_white")
        self.take(x, y, 9)

    def lay_parking(self, x, y, angle, columns, rows, surface):
        """A car park of rows of slots, with white lines."""
        self.lay(rectangle(x, y, columns * 1.3 + 1, rows * 4.6 + 0.5, angle), surface)
        c, s = np.cos(angle), np.sin(angle)
        for row in range(rows):
            b = (row - (rows - 1) / 2) * 9.0
            for col in range(columns + 1):
                a = (col - columns / 2) * 2.6
                self.lay(rectangle(x + a * c - b * s, y + a * s + b * c, 0.08, 2.3, angle), "mark_white")
                if col < columns:
                    a += 1.3
                    self.block.slots.append((x + a * c - b * s, y + a * s + b * c, angle + np.pi / 2))


def fill_houses(site, rng):
    site.cover(*site.style.lawns)
    depth, species = rng.uniform(4, 8), site.species()
    for k in range(4):
        s = 13.0 + rng.uniform(0, 4)
        while True:
            hl, hw = rng.uniform(4.5, 7.5), rng.uniform(3.6, 5)
            setback = depth + rng.uniform(-2, 2) + hw
            place, length = site.along(k, setback)
            if s + hl > length - 12:
                break
            x, y, angle = place(s + hl)
            if rng.random() < 0.12:  # an empty lot
                lot = site.pick("soil", "gravel", "sand", "meadow")
                if site.fits(x, y, hw):
                    site.lay(rectangle(x, y, hl + 1, hw + 3, angle), lot)
                    site.take(x, y, hw)
                s += 2 * hl + rng.uniform(3, 6)
                continue
            turn = np.pi / 2 if rng.random() < 0.3 else 0.0
            height = 2.9 * (rng.choice([1, 1, 2, 2, 3]) * site.style.storeys**0.5) + 0.3
            pitched = rng.random() < site.style.pitched
            if site.build(x, y, hl, hw, angle + turn, height, pitched, HOUSE, bay=rng.uniform(2.2, 3.4)):
                _lay_front_garden(site, rng, place, s, hl, hw, setback, species)
            s += 2 * hl + rng.uniform(3, 7)
    for x, y in site.spots(rng.poisson(3), 0.3, 0.7, 3.2):
        if rng.random() < 0.4:
            site.lay(disc(x, y, rng.uniform(2.2, 3.6), 9, 0.2, rng), "pool")
        else:
            site.build(x, y, 2, 1.6, rng.uniform(0, np.pi), 2.4, True, PLAIN)
    site.scatter(16, 0.15, 0.85)


def _lay_front_garden(site, rng, place, s, hl, hw, setback, species):
    """Driveway with a slot, hedge, front trees."""
    if rng.random() < 0.75:
        x, y, angle = place(s + (0.8 if rng.random() < 0.5 else 2 * hl - 0.8), setback / 2 - 1)
        site.lay(rectangle(x, y, 1.5, setback / 2 + 1.8, angle), "sidewalk", "gravel", "paving_red", "asphalt_dark")
        site.block.slots.append((x, y, angle + np.pi / 2))
    if rng.random() < 0.25:
        x, y, angle = place(s + hl, 0.8)
        site.block.hedges.append((rectangle(x, y, hl * 0.7, 0.5, angle), float(rng.uniform(0.8, 1.4))))
    if rng.random() < 0.45 * site.style.tree_share:
        x, y, _ = place(s + rng.uniform(0.2, 1.8) * hl, rng.uniform(1.5, max(setback - hw - 1.5, 1.6)))
        site.plant(x, y, species=species if rng.random() < 0.5 else None, gap=-1.5)


def fill_rows(site, rng):
    site.cover(site.style.walkway)
    inner = np.array([site.point(s, t) for s, t in ((0.26, 0.26), (0.74, 0.26), (0.74, 0.74), (0.26, 0.74))])
    site.lay(inner, "lawn", "paving_tan", "paving_red", "gravel", "lawn_lush")
    base, hw = rng.uniform(2, 4.6) * site.style.storeys, rng.uniform(4.5, 6.5)
    for k in range(4):
        if rng.random() < 0.12:
            continue
        place, end = site.along(k, hw + 0.5)
        s, end = 6.0 + hw, end - (7 + hw)
        while s < end - 4:
            hl = min(rng.uniform(3.5, 9), (end - s) / 2)
            x, y, angle = place(s + hl)
            if rng.random() < 0.14:  # a gap in the row: a yard or a pocket park
                site.lay(rectangle(x, y, hl, hw, angle), "lawn", "gravel", "asphalt_light")
                site.plant(x, y)
            else:
                height = 3.2 * max(2, round(base + rng.normal(0, 0.8))) + 0.8
                pitched = rng.random() < site.style.pitched * 0.5
                more = {"gap": -4, "claim": min(hl, hw), "bay": rng.uniform(2, 3.2), "storey": 3.2}
                kind = SHOP if rng.random() < 0.5 else OFFICE
                site.build(x, y, hl, hw, angle, height, pitched, kind, **more)
            s += 2 * hl
    site.scatter(5, 0.3, 0.7)
    site.line_with_trees(0.45)


def fill_towers(site, rng):
    site.cover("sidewalk", "paving_tan", "paving_red", "lawn", "lawn", "lawn_lush")
    hub, path = site.anywhere(0.35, 0.65), site.pick("sidewalk", "paving_tan", "paving_red", "gravel")
    for s, t in rng.uniform(0.02, 0.98, (rng.integers(2, 6), 2)):
        site.lay_path(hub, site.point(s, t), path, width=rng.uniform(1, 3))
    for x, y in site.spots(rng.integers(2, 6), 0.2, 0.8):
        hl, hw = rng.uniform(7, 14), rng.uniform(6, 10)
        height, bay = 3.4 * rng.integers(4, 10) * site.style.storeys**0.5, rng.uniform(1.6, 3)
        site.build(x, y, hl, hw, site.street_angle(), height, gap=4, bay=bay, storey=3.4)
    for x, y in site.spots(rng.integers(1, 4), 0.15, 0.85, 5):
        surface = site.pick("lawn_lush", "water", "paving_red", "lawn")
        site.lay(disc(x, y, rng.uniform(4, 8), 18), surface)
    site.scatter(12)
    site.line_with_trees(0.5)


def fill_halls(site, rng):
    site.cover("gravel", "asphalt_light", "asphalt_brown", "meadow")
    angle = site.street_angle()
    for x, y in site.spots(rng.integers(3, 7), 0.22, 0.78):
        hl, hw, pitched = rng.uniform(8, 18), rng.uniform(6, 11), rng.random() < 0.4
        turn = (rng.random() < 0.3) * np.pi / 2
        site.build(x, y, hl, hw, angle + turn, rng.uniform(5, 9), pitched, HALL, gap=3, bay=5)
    for x, y in site.spots(rng.integers(2, 7), 0.12, 0.88):  # stacks of containers
        for n in range(rng.integers(1, 4)):
            colour, b = tuple(rng.uniform(0.15, 0.8, 3)), n * 2.7
            at, height = (x - b * np.sin(angle), y + b * np.cos(angle)), 2.6 * rng.integers(1, 3)
            site.build(*at, 3.1, 1.25, angle, height, kind=PLAIN, gap=-2.2, claim=1.6, colours=(colour, colour))
    for x, y in site.spots(1, 0.25, 0.75, 9):
        site.lay_parking(x, y, angle, rng.integers(5, 9), 2, site.pick("asphalt_dark", "asphalt_light"))
        site.take(x, y, 9)
    site.scatter(5)


def fill_park(site, rng):
    site.cover(*site.style.lawns)
    surface, hub = site.pick("gravel", "sand", "paving_red", "sidewalk"), site.anywhere(0.35, 0.65)
    for s, t in ((0.05, 0.05), (0.95, 0.05), (0.95, 0.95), (0.05, 0.95), (0.5, 0.04), (0.5, 0.96)):
        if rng.random() < 0.55:
            site.lay_path(hub, site.point(s, t), surface)
    site.lay(disc(*hub, rng.uniform(3, 7), 18), "paving_tan", "paving_red", "water", "sand")
    site.take(*hub, 5)
    for x, y in site.spots(rng.integers(1, 5), 0.15, 0.85, 6):
        what = rng.random()
        if what < 0.35:
            site.lay(disc(x, y, rng.uniform(5, 10), 16, 0.2, rng), "water")
            site.take(x, y, 7)
        elif what < 0.6:
            site.lay_court(x, y, rng.uniform(0, np.pi))
        elif what < 0.8:
            site.lay(disc(x, y, rng.uniform(3, 6), 12, 0.2, rng), "sand", "soil", "court_red")
        else:
            site.build(x, y, 4, 3, rng.uniform(0, np.pi), 3.4, True, HOUSE)
    for x, y in site.spots(rng.integers(2, 6), 0.1, 0.9):  # groups of one kind of tree
        species = int(rng.integers(0, 7))
        for dx, dy in rng.normal(0, 5, (rng.integers(3, 8), 2)):
            site.plant(x + dx, y + dy, species=species)
    site.scatter(6)


def fill_school(site, rng):
    site.cover(*site.style.lawns)
    angle = site.street_angle()
    (x, y), hl, colours = site.anywhere(0.25, 0.75), rng.uniform(11, 18), site.colours()
    site.build(x, y, hl, 6, angle, 7.2, rng.random() < 0.4, OFFICE, colours=colours, bay=2.6, storey=3.5)
    wing, side = angle + np.pi / 2, rng.choice([-1, 1])
    x, y, d = x + side * hl * 0.7 * np.cos(angle), y + side * hl * 0.7 * np.sin(angle), rng.choice([-12, 12])
    site.build(x + d * np.cos(wing), y + d * np.sin(wing), 8, 5, wing, 4, gap=-9, colours=colours)
    for x, y in site.spots(6, 0.2, 0.8, 9):
        site.lay_court(x, y, angle + (rng.random() < 0.3) * np.pi / 2)
    site.scatter(12)


def fill_store(site, rng):
    site.cover("asphalt_dark", "asphalt_light", "lawn")
    angle, (x, y) = site.street_angle(), site.anywhere(0.3, 0.7)
    hl, hw, height = rng.uniform(12, 18), rng.uniform(8, 12), rng.uniform(4.5, 7)
    site.build(x, y, hl, hw, angle, height, False, SHOP, bay=4, storey=5)
    for x, y in site.spots(7, 0.15, 0.85, 8):
        columns, rows = rng.integers(5, 10), rng.integers(1, 3)
        site.lay_parking(x, y, angle, columns, rows, site.pick("asphalt_dark", "asphalt_light"))
        site.take(x, y, 8)
    site.build(*site.anywhere(0.15, 0.85), 6, 4, angle, 4, rng.random() < 0.4, SHOP, bay=3)
    for x, y in site.spots(rng.integers(1, 4), 0.12, 0.88, 3):  # islands of lawn
        site.lay(disc(x, y, rng.uniform(2.5, 5), 10, 0.2, rng), *site.style.lawns)
        site.plant(x, y)
    site.scatter(4)


def fill_square(site, rng):
    site.cover("paving_tan", "paving_red", "sidewalk")
    band = site.pick("paving_red", "sidewalk", "lawn_lush", "lawn")
    a, b = sorted(rng.uniform(0.1, 0.9, 2))
    site.lay(np.array([site.point(a, 0.1), site.point(b, 0.1), site.point(b, 0.9), site.point(a, 0.9)]), band)
    (x, y), angle, colours = site.anywhere(0.3, 0.7), rng.uniform(0, np.pi), site.colours()
    if rng.random() < 0.6:  # a church with its tower
        site.build(x, y, 12, 5.5, angle, 8, True, HOUSE, colours=colours, bay=4, storey=8)
        x, y = x + 13 * np.cos(angle), y + 13 * np.sin(angle)
        site.build(x, y, 3, 3, angle, rng.uniform(17, 26), True, PLAIN, gap=-12, colours=colours)
    else:
        site.lay(disc(x, y, rng.uniform(5, 9), 20), "water")
        site.take(x, y, 8)
    for x, y in site.spots(rng.integers(2, 5), 0.12, 0.88):
        site.build(x, y, rng.uniform(4, 8), rng.uniform(4, 6), angle, 3.2 * rng.integers(1, 5), False, SHOP, gap=2)
    site.line_with_trees(0.6)
    site.scatter(6)


def fill_lake(site, rng):
    site.cover(*site.style.lawns)
    (x, y), size = site.anywhere(0.4, 0.6), site.style.spacing * rng.uniform(0.25, 0.36)
    site.lay(disc(x, y, size + 2.5, 20, 0.08, rng), "sand", "gravel", "meadow")
    site.lay(disc(x, y, size, 20, 0.08, rng), "water")
    site.take(x, y, size)
    for x, y in site.spots(rng.integers(0, 4), 0.1, 0.9):
        site.build(x, y, 5, 4, rng.uniform(0, np.pi), 3.2, True, HOUSE)
    site.scatter(14)


def fill_field(site, rng):
    site.cover("crop", "soil", "meadow", "lawn_dry")
    a = rng.uniform(0.25, 0.75)
    corners = ((0, 0), (a, 0), (a, 1), (0, 1)) if rng.random() < 0.5 else ((0, 0), (1, 0), (1, a), (0, a))
    site.lay(np.array([site.point(*corner) for corner in corners]), "crop", "soil", "meadow", "lawn_lush")
    if rng.random() < 0.6:
        (x, y), angle = site.anywhere(0.2, 0.8), rng.uniform(0, np.pi)
        site.build(x, y, rng.uniform(7, 11), 5, angle, 5, True, HALL)
        site.build(*site.anywhere(0.2, 0.8), 6, 4, angle, 4, True, HOUSE)
    if rng.random() < 0.4:  # an orchard in rows
        s0, t0 = rng.uniform(0.1, 0.5, 2)
        for s in np.arange(s0, s0 + 0.4, 0.09):
            for t in np.arange(t0, t0 + 0.4, 0.09):
                site.plant(*site.point(s, t), height=4.5, species=5)
    site.scatter(4)


def fill_wood(site, rng):
    site.cover("wood_floor", "meadow", "wood_floor")
    for x, y in site.spots(rng.integers(0, 3), 0.15, 0.85):
        site.lay(disc(x, y, rng.uniform(6, 13), 12, 0.3, rng), "meadow", "lawn", "soil")
        site.take(x, y, 8)
    if rng.random() < 0.4:
        site.build(*site.anywhere(0.2, 0.8), 5, 4, rng.uniform(0, np.pi), 3.2, True, HOUSE)
    species = int(rng.choice([0, 2, 2, 6, 1]))
    for x, y in site.spots(int(70 * min(site.style.tree_share, 1.2)), 0.04, 0.96):
        site.plant(x, y, species=species if rng.random() < 0.65 else None, gap=0)


FILL = {
    "houses": fill_houses, "rows": fill_rows, "towers": fill_towers, "halls": fill_halls, "park": fill_park,
    "school": fill_school, "store": fill_store, "square": fill_square, "lake": fill_lake, "field": fill_field,
    "wood": fill_wood,
}  # fmt: skip
