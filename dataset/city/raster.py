"""The map drawn on a fine grid: heights, surfaces, owners and tree crowns of one region."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from .objects import CAR, Building
from .roads import draw_streets, median_trees
from .style import ALBEDO, SEASONAL, SPECIES, SURFACE

BUILDING_COLUMNS = 17


@dataclass
class Raster:
    """Rows run from north to south, columns from west to east; heights in centimetres.

    `owner` holds 1 + the row in `buildings`, 0 for the ground; `crown` holds 1 + the row in `trees`.
    """

    west: float
    north: float
    cell: float  # metres
    height: np.ndarray  # (H, W) int16, solid things
    surface: np.ndarray  # (H, W) uint8
    owner: np.ndarray  # (H, W) uint16
    canopy: np.ndarray  # (H, W) int16, top of the crowns, 0 for none
    crown: np.ndarray  # (H, W) uint16
    buildings: np.ndarray  # (buildings, BUILDING_COLUMNS) float32, see `building_row`
    trees: np.ndarray  # (trees, 6) float32
    slots: np.ndarray  # (slots, 3)
    lanes: list  # (line (points, 2), half width of the roadway)

    def window(self, x, y, half):
        """Own copy of the square of half side `half` metres around a point (cut to whole cells)."""
        n = round(half / self.cell)
        col, row = int((x - self.west) / self.cell) - n, int((self.north - y) / self.cell) - n
        cut = np.s_[row : row + 2 * n, col : col + 2 * n]
        if row < 0 or col < 0 or row + 2 * n > self.height.shape[0] or col + 2 * n > self.height.shape[1]:
            raise ValueError(f"a window of {half} m around ({x:.1f}, {y:.1f}) leaves the region")
        arrays = [a[cut].copy() for a in (self.height, self.surface, self.owner, self.canopy, self.crown)]
        return Raster(
            self.west + col * self.cell, self.north - row * self.cell, self.cell, *arrays, self.buildings,
            self.trees, self.slots, self.lanes,
        )  # fmt: skip

    def add(self, buildings):
        """Draw further buildings (cars, people) on this raster."""
        if buildings:
            first = len(self.buildings)
            self.buildings = np.concatenate([self.buildings, [building_row(b) for b in buildings]]).astype(np.float32)
            for k, building in enumerate(buildings):
                _stamp_building(self, building, first + k + 1)


def building_row(b: Building):
    """Numbers of a building: x y cos sin half_length half_width eaves ridge wall*3 roof*3 kind bay storey."""
    shape = (b.half_length, b.half_width, b.eaves, b.ridge)
    return np.array(
        [b.x, b.y, np.cos(b.angle), np.sin(b.angle), *shape, *b.wall, *b.roof, b.kind, b.bay, b.storey], np.float32
    )


def rasterise(blocks, streets, box, cell):
    """Draw the map inside box = (west, south, east, north).

    Args:
        cell: side of a grid cell in metres; the box's sides are multiples of it.
    """
    west, south, east, north = box
    shape = (round((north - south) / cell), round((east - west) / cell))
    ground = Image.new("L", shape[::-1], SURFACE["meadow"])
    draw = ImageDraw.Draw(ground)

    def polygon(points, value):
        if len(points) >= 3:
            draw.polygon([((x - west) / cell, (north - y) / cell) for x, y in points.tolist()], fill=value)

    for block in blocks:
        polygon(block.outline, block.ground)
    for block in blocks:
        for points, surface in block.patches:
            polygon(points, surface)
    draw_streets(streets, polygon)

    buildings = [b for block in blocks for b in block.buildings]
    trees = [t for block in blocks for t in block.trees] + [t for s in streets if s.median for t in median_trees(s)]
    raster = Raster(
        west, north, cell, np.zeros(shape, np.int16), np.array(ground), np.zeros(shape, np.uint16),
        np.zeros(shape, np.int16), np.zeros(shape, np.uint16),
        np.array([building_row(b) for b in buildings], np.float32).reshape(-1, BUILDING_COLUMNS),
        np.array(trees, np.float32).reshape(-1, 6),
        np.array([s for block in blocks for s in block.slots]).reshape(-1, 3),
        [(s.line, s.width / 2) for s in streets],
    )  # fmt: skip
    for block in blocks:
        for points, height in block.hedges:
            _stamp_polygon(raster, points, height, SURFACE["hedge"])
    for k, building in enumerate(buildings):
        _stamp_building(raster, building, k + 1)
    for k, tree in enumerate(raster.trees):
        _stamp_tree(raster, tree, k + 1)
    return raster


def _patch_grid(raster, x, y, reach):
    """Slices of the cells within `reach` of a point, and their offsets from it; None where outside."""
    rows, cols = raster.height.shape
    c0 = max(int((x - reach - raster.west) / raster.cell), 0)
    c1 = min(int((x + reach - raster.west) / raster.cell) + 1, cols)
    r0 = max(int((raster.north - y - reach) / raster.cell), 0)
    r1 = min(int((raster.north - y + reach) / raster.cell) + 1, rows)
    if c0 >= c1 or r0 >= r1:
        return None
    dx = (raster.west + (np.arange(c0, c1, dtype=np.float32) + 0.5) * raster.cell - x)[None]
    dy = (raster.north - (np.arange(r0, r1, dtype=np.float32) + 0.5) * raster.cell - y)[:, None]
    return np.s_[r0:r1, c0:c1], dx, dy


def _stamp_building(raster, b, owner):
    grid = _patch_grid(raster, b.x, b.y, float(np.hypot(b.half_length, b.half_width)))
    if grid is None:
        return
    cut, dx, dy = grid
    c, s = np.float32(np.cos(b.angle)), np.float32(np.sin(b.angle))
    along, across = np.abs(dx * c + dy * s), np.abs(dy * c - dx * s)
    mask = (along <= b.half_length) & (across <= b.half_width)
    height = np.full(mask.shape, b.eaves * 100, np.float32)
    if b.kind == CAR:  # bonnet and boot lower than the cabin
        height[along > 0.55 * b.half_length] = 90
    elif b.ridge > b.eaves:
        height += (b.ridge - b.eaves) * 100 * (1 - across / b.half_width)
    mask &= height >= raster.height[cut]
    raster.height[cut][mask] = height[mask].astype(np.int16)
    raster.surface[cut][mask] = SURFACE["roof"]
    raster.owner[cut][mask] = owner


def _stamp_polygon(raster, points, height, surface):
    centre, reach = points.mean(0), np.hypot(*(points - points.mean(0)).T).max()
    grid = _patch_grid(raster, *centre, reach)
    if grid is None:
        return
    cut, dx, dy = grid
    mask = np.ones(np.broadcast_shapes(dx.shape, dy.shape), bool)
    for a, b in zip(points - centre, np.roll(points - centre, -1, axis=0), strict=True):
        mask &= (b[0] - a[0]) * (dy - a[1]) - (b[1] - a[1]) * (dx - a[0]) >= 0
    raster.height[cut][mask] = int(height * 100)
    raster.surface[cut][mask] = surface


_LUMPS = np.random.default_rng(7).uniform(0.72, 1.0, (64, 64)).astype(np.float32)


def _stamp_tree(raster, tree, index):
    x, y, height, radius, species, _ = tree.tolist()
    grid = _patch_grid(raster, x, y, radius)
    if grid is None:
        return
    cut, dx, dy = grid
    rows = (np.arange(dy.size) * raster.cell / 0.6).astype(int)[:, None] % 64
    lumps = _LUMPS[rows, ((np.arange(dx.size) * raster.cell / 0.6).astype(int)[None] + int(abs(x) * 7)) % 64]
    inside = 1 - (dx * dx + dy * dy) / (radius * lumps) ** 2
    shape = SPECIES[int(species)][3]
    dome = np.sqrt(np.maximum(inside, 0)) if shape != 1 else np.maximum(inside, 0)
    top = ((0.45 + 0.55 * dome * lumps) * height * 100).astype(np.int16)
    mask = (inside > 0) & (top > raster.canopy[cut]) & (raster.height[cut] < height * 90)
    raster.canopy[cut][mask] = top[mask]
    raster.crown[cut][mask] = index


def albedo_tables(season):
    """Surface albedo (surfaces, 3) at a season between 0 (lush) and 1 (dry)."""
    dry = ALBEDO.mean(1, keepdims=True) * np.array([1.3, 1.08, 0.68], np.float32)
    share = (season * 0.75 * SEASONAL)[:, None]
    return ((1 - share) * ALBEDO + share * dry).astype(np.float32)


def crown_colours(trees, season):
    """Crown colour (trees, 3) at a season."""
    leaf, autumn = (np.array([s[k] for s in SPECIES], np.float32) / 255 for k in (1, 2))
    kind = trees[:, 4].astype(int)
    colour = (1 - season) * leaf[kind] + season * autumn[kind]
    return np.clip(colour * (1 + trees[:, 5:6]), 0, 1)
