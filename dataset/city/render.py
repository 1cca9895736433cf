"""The two renderers of the same map, and a stage on which single things can be placed."""

import numpy as np

from .aerial import render_aerial
from .ground import REACH, render_ground
from .objects import Building
from .plan import Block
from .raster import rasterise
from .style import SURFACE

__all__ = ["MARGIN", "region_raster", "render_aerial", "render_ground", "stage_raster"]

MARGIN = REACH + 12.0  # metres a region's raster reaches beyond the cameras in it


def region_raster(city, box, cell):
    """Raster of a box = (west, south, east, north) of the city and of MARGIN metres around it."""
    reach = int(np.ceil(MARGIN / cell)) * cell
    wide = (box[0] - reach, box[1] - reach, box[2] + reach, box[3] + reach)
    return rasterise(city.blocks_in(wide), city.streets_in(wide), wide, cell)


def stage_raster(buildings=(), trees=(), ground="lawn", half=160.0, cell=0.25):
    """An empty plain of 2 * half metres around (0, 0) with nothing on it but what is given.

    Args:
        buildings: `Building`s; see `landmark` for a plain box.
        trees: rows (x, y, height, crown radius, species, tint).
        ground: name of the plain's surface.
    """
    square = np.array([[-half, -half], [half, -half], [half, half], [-half, half]])
    block = Block("square", square, SURFACE[ground], buildings=list(buildings), trees=list(trees))
    return rasterise([block], [], (-half, -half, half, half), cell)


def landmark(x, y, height=12.0, half=6.0, colour=(0.85, 0.1, 0.75), angle=0.0):
    """A square building of one colour, walls and roof."""
    return Building(x, y, half, half, angle, height, height, tuple(colour), tuple(colour), 4)
