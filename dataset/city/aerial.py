"""The view from above: orthographic, north up, with shading, cast shadows and a season of its own."""

import numpy as np
from PIL import Image

from .film import cast_shadows, develop, draw_exposure, texture_at
from .raster import albedo_tables, crown_colours
from .style import SURFACE
from .traffic import draw_traffic

SHADOW_REACH = 32.0  # metres


def render_aerial(raster, x, y, side, size, rng, from_north=False, traffic=True):
    """Picture of a square of the map.

    Args:
        raster: the region; must reach `side / 2 + SHADOW_REACH + 1` metres around the centre.
        x, y: centre in metres; side: of the square in metres; size: of the image in pixels.
        rng: draws light, season, traffic and noise.

    Returns:
        (size, size, 3) uint8, row 0 in the north.
    """
    light = draw_exposure(rng, "aerial", from_north)
    view = raster.window(x, y, side / 2 + SHADOW_REACH + 1)
    if traffic:
        view.add(draw_traffic(view, (x, y), side / 2 + 2, rng, keep_clear=0))
    colour = _albedo(view, light)
    top = np.maximum(view.height, view.canopy).astype(np.float32) / 100
    sun = light.sun
    gy, gx = top[1:-1] * 0, top[1:-1] * 0
    gx[:, 1:-1] = (top[1:-1, 2:] - top[1:-1, :-2]) / (2 * view.cell)
    gy[:, :] = (top[:-2] - top[2:]) / (2 * view.cell)  # rows run south
    np.clip(gx, -1.2, 1.2, out=gx)
    np.clip(gy, -1.2, 1.2, out=gy)
    facing = (sun[2] - gx * sun[0] - gy * sun[1]) / np.sqrt(1 + gx * gx + gy * gy)
    lit = np.zeros_like(top)
    lit[1:-1] = np.clip(facing, 0, None) / sun[2]
    np.clip(lit, 0, 1.6, out=lit)
    lit[cast_shadows(top, view.cell, sun, SHADOW_REACH)] = 0
    colour *= ((1 - light.direct) * 0.95 + light.direct * 1.1 * lit)[..., None]
    colour = colour * (1 - light.haze) + light.haze * np.array([0.75, 0.8, 0.86], np.float32)

    # The resize takes the exact square, to a fraction of a cell.
    left, upper = (x - side / 2 - view.west) / view.cell, (view.north - y - side / 2) / view.cell
    box = (left, upper, left + side / view.cell, upper + side / view.cell)
    image = Image.fromarray((np.clip(colour / 1.6, 0, 1) * 255).astype(np.uint8))
    enlarged = size * view.cell > side * 1.05
    image = image.resize(
        (size, size), Image.Resampling.BICUBIC if enlarged else Image.Resampling.BILINEAR, box=box
    )
    return develop(np.asarray(image, np.float32) * (1.6 / 255), light, rng)


def _albedo(view, light):
    """Colour (H, W, 3) of what is seen from above, before light falls on it."""
    colour = albedo_tables(light.season)[view.surface]
    rows, cols = np.indices(view.surface.shape, np.float32)
    colour *= texture_at(view.west + cols * view.cell + 1e6, view.north - rows * view.cell + 1e6)[..., None]
    roofs = view.surface == SURFACE["roof"]
    colour[roofs] = view.buildings[view.owner[roofs] - 1][:, 11:14]
    crowns = view.crown > 0
    colour[crowns] = crown_colours(view.trees, light.season)[view.crown[crowns] - 1]
    colour[crowns] *= texture_at(cols[crowns] * 3, rows[crowns] * 3)[:, None]
    return colour
