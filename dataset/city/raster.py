"""The map drawn on a fine grid: heights, surfaces, owners and tree crowns of one region."""

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

from .blocks import CAR, Building
from .style import CONE, SPECIES, SURFACE

GRIDS = ("height", "surface", "owner", "canopy", "crown")


@dataclass
class Raster:
    """Rows run from north to south, columns from west to east; heights in centimetres."""

    west: float
    north: float
    cell: float  # metres
    height: np.ndarray  # (H, W) int16, of the ground and solid things
    surface: np.ndarray  # (H, W) uint8
    owner: np.ndarray  # (H, W) uint16, 1 + the row in `buildings`, 0 for the ground
    canopy: np.ndarray  # (H, W) int16, top of the crowns, 0 for none
    crown: np.ndarray  # (H, W) uint16, 1 + the row in `trees`, 0 for none
    buildings: np.ndarray  # (buildings, 17) float32, see `building_row`
    trees: np.ndarray  # (trees, 6) float32: x, y, height, crown radius, species, tint
    slots: np.ndarray  # (slots, 3): x, y, angle
    lanes: list  # (line (points, 2), half width of the roadway)

    def window(self, x, y, half):
        """Own copy of the square of half side `half` metres around a point (cut to whole cells)."""
        n = round(half / self.cell)
        col, row = int((x - self.west) / self.cell) - n, int((self.north - y) / self.cell) - n
        if row < 0 or col < 0 or row + 2 * n > self.height.shape[0] or col + 2 * n > self.height.shape[1]:
            raise ValueError(f"a window of {half} m around ({x:.1f}, {y:.1f}) leaves the region")
        grids = {name: getattr(self, name)[row : row + 2 * n, col : col + 2 * n].copy() for name in GRIDS}
        return replace(self, west=self.west + col * self.cell, north=self.north - row * self.cell, **grids)

    def add(self, buildings):
        """Draw further buildings (cars, people)."""
        first = len(self.buildings) + 1
        if buildings:
            self.buildings = np.concatenate([self.buildings, [building_row(b) for b in buildings]]).astype(np.float32)
        for number, building in enumerate(buildings, first):
            self._stamp_building(building, number)

    def _around(self, x, y, reach):
        """Slices of the cells within `reach` of a point, and their offsets (1, w) and (h, 1) from it in metres."""
        rows, cols = self.height.shape
        c0, c1 = (min(max(int((x + d - self.west) / self.cell) + n, 0), cols) for d, n in ((-reach, 0), (reach, 1)))
        r0, r1 = (min(max(int((self.north - y + d) / self.cell) + n, 0), rows) for d, n in ((-reach, 0), (reach, 1)))
        dx = (self.west + (np.arange(c0, c1, dtype=np.float32) + 0.5) * self.cell - x)[None]
        dy = (self.north - (np.arange(r0, r1, dtype=np.float32) + 0.5) * self.cell - y)[:, None]
        return np.s_[r0:r1, c0:c1], dx, dy

    def _stamp_building(self, b, number):
        cut, dx, dy = self._around(b.x, b.y, float(np.hypot(b.half_length, b.half_width)))
        c, s = np.float32(np.cos(b.angle)), np.float32(np.sin(b.angle))
        along, across = np.abs(dx * c + dy * s), np.abs(dy * c - dx * s)
        mask = (along <= b.half_length) & (across <= b.half_width)
        height = np.full(mask.shape, b.eaves * 100, np.float32)
        if b.kind == CAR:  # bonnet and boot lower than the cabin
            height[along > 0.55 * b.half_length] = 90
        elif b.ridge > b.eaves:
            height += (b.ridge - b.eaves) * 100 * (1 - across / b.half_width)
        mask &= height >= self.height[cut]
        self.height[cut][mask] = height[mask].astype(np.int16)
        self.surface[cut][mask] = SURFACE["roof"]
        self.owner[cut][mask] = number

    def _stamp_hedge(self, points, height):
        """Raise a convex polygon, counter-clockwise."""
        centre = points.mean(0)
        points = points - centre
        cut, dx, dy = self._around(*centre, np.hypot(*points.T).max())
        mask = np.ones(np.broadcast_shapes(dx.shape, dy.shape), bool)
        for a, b in zip(points, np.roll(points, -1, axis=0), strict=True):
            mask &= (b[0] - a[0]) * (dy - a[1]) - (b[1] - a[1]) * (dx - a[0]) >= 0
        self.height[cut][mask] = int(height * 100)
        self.surface[cut][mask] = SURFACE["hedge"]

    def _stamp_tree(self, tree, number):
        x, y, height, radius, species, _ = tree.tolist()
        cut, dx, dy = self._around(x, y, radius)
        row, col = ((np.arange(n) * self.cell / 0.6).astype(int) for n in (dy.size, dx.size))
        lumps = _LUMPS[row[:, None] % 64, (col + int(abs(x) * 7)) % 64]
        inside = 1 - (dx * dx + dy * dy) / (radius * lumps) ** 2
        dome = np.maximum(inside, 0) if SPECIES[int(species)].shape == CONE else np.sqrt(np.maximum(inside, 0))
        top = ((0.45 + 0.55 * dome * lumps) * height * 100).astype(np.int16)
        mask = (inside > 0) & (top > self.canopy[cut]) & (self.height[cut] < height * 90)
        self.canopy[cut][mask] = top[mask]
        self.crown[cut][mask] = number


_LUMPS = np.random.default_rng(7).uniform(0.72, 1.0, (64, 64)).astype(np.float32)  # of a crown


def building_row(b: Building):
    """Numbers of a building: x y cos sin half_length half_width eaves ridge wall*3 roof*3 kind bay storey."""
    shape = (b.half_length, b.half_width, b.eaves, b.ridge)
    return np.array([b.x, b.y, np.cos(b.angle), np.sin(b.angle), *shape, *b.wall, *b.roof, *b[9:]], np.float32)


def rasterise(blocks, streets, box, cell):
    """Draw the map inside box = (west, south, east, north).

    Args:
        cell: side of a grid cell in metres; the box's sides are multiples of it.
    """
    west, south, east, north = box
    shape = (round((north - south) / cell), round((east - west) / cell))
    ground = Image.new("L", shape[::-1], SURFACE["meadow"])
    draw = ImageDraw.Draw(ground)

    def polygon(points, surface):
        if len(points) >= 3:
            draw.polygon([((x - west) / cell, (north - y) / cell) for x, y in points.tolist()], fill=surface)

    for block in blocks:
        polygon(block.outline, block.ground)
    for patch in (patch for block in blocks for patch in block.patches):
        polygon(*patch)
    _draw_streets(streets, polygon)

    trees = [t for block in blocks for t in block.trees] + [t for s in streets if s.median for t in _median_trees(s)]
    raster = Raster(
        west, north, cell,
        np.zeros(shape, np.int16), np.array(ground), np.zeros(shape, np.uint16),
        np.zeros(shape, np.int16), np.zeros(shape, np.uint16),
        np.zeros((0, 17), np.float32), np.array(trees, np.float32).reshape(-1, 6),
        np.array([s for block in blocks for s in block.slots]).reshape(-1, 3),
        [(s.line, s.width / 2) for s in streets],
    )  # fmt: skip
    for hedge in (hedge for block in blocks for hedge in block.hedges):
        raster._stamp_hedge(*hedge)
    raster.add([b for block in blocks for b in block.buildings])
    for number, tree in enumerate(raster.trees, 1):
        raster._stamp_tree(tree, number)
    return raster


def _ribbon(line, left, right):
    """Polygon between two offsets (metres, to the left of the walking direction) of a polyline."""
    d = np.empty_like(line)
    d[1:-1], d[0], d[-1] = line[2:] - line[:-2], line[1] - line[0], line[-1] - line[-2]
    normal = np.stack([-d[:, 1], d[:, 0]], 1) / np.maximum(np.hypot(*d.T), 1e-6)[:, None]
    return np.concatenate([line + left * normal, (line + right * normal)[::-1]])


def _cut(street, start, end):
    """The part of a street's centre line between two distances from its start."""
    reach = street.reach
    return street.at(np.concatenate([[start], reach[(reach > start) & (reach < end)], [end]]))


def _draw_streets(streets, polygon):
    """Draw all streets: sidewalks, then roadways, wide ones last, then markings."""
    angle = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], 1)

    def draw(street, half, surface):
        polygon(_ribbon(street.line, half, -half), surface)
        for end in (street.line[0], street.line[-1]):
            polygon(end + circle * half, surface)

    for street in streets:
        if street.walk:
            draw(street, street.clear, SURFACE["sidewalk"])
    for street in sorted(streets, key=lambda s: s.width):
        draw(street, street.width / 2, street.surface)
    for street in streets:
        _draw_markings(street, polygon)


def _draw_markings(street, polygon):
    length, half = street.reach[-1], street.width / 2
    white, yellow = SURFACE["mark_white"], SURFACE["mark_yellow"]
    if street.median and length > 40:
        polygon(_ribbon(_cut(street, 16, length - 16), 1.6, -1.6), SURFACE["lawn"])
    if not street.marked or length < 30:
        return
    if street.kind != "avenue":
        for s in np.arange(13, length - 16, 7.0):
            polygon(_ribbon(_cut(street, s, s + 3.5), 0.12, -0.12), white)
        return
    if not street.median:
        for left, right in ((0.35, 0.1), (-0.1, -0.35)):
            polygon(_ribbon(_cut(street, 13, length - 13), left, right), yellow)
    for side in (-1, 1):
        for s in np.arange(14, length - 16, 6.0):
            polygon(_ribbon(_cut(street, s, s + 3), side * half / 2 + 0.1, side * half / 2 - 0.1), white)
    for s in (9.0, length - 12.0):  # zebra crossings
        for offset in np.arange(-half + 0.5, half - 0.4, 1.1):
            polygon(_ribbon(_cut(street, s, s + 3), offset + 0.55, offset), white)


def _median_trees(street):
    step = 9 + (street.line[0, 0] * 7.3) % 5
    species = (0, 1, 3, 6)[int(abs(street.line[0, 1]) * 3.1) % 4]
    points = street.at(np.arange(20, street.reach[-1] - 20, step))
    return [(x, y, 6.5, 2.0, species, 0.0) for x, y in points]
