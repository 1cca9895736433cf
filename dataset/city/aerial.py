"""The view from above: orthographic, north up, with shading, cast shadows and a season of its own."""

import numpy as np
from PIL import Image

from .film import TEXTURE, cast_shadows, develop, draw_exposure, draw_traffic
from .style import SURFACE

SHADOW_REACH = 32.0  # metres


def render_aerial(raster, x, y, side, size, rng, from_north=False):
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
    view.add(draw_traffic(view, x, y, side / 2 + 2, rng, keep_clear=0))
    # Heights count beyond the picture, for their shadows; colours only in it.
    n = int(SHADOW_REACH / view.cell)
    top = np.maximum(view.height, view.canopy).astype(np.float32) / 100
    shadow = cast_shadows(top, view.cell, light.sun, SHADOW_REACH)[n:-n, n:-n]
    gx = (top[n:-n, n + 1 : 1 - n] - top[n:-n, n - 1 : -n - 1]) / (2 * view.cell)
    gy = (top[n - 1 : -n - 1, n:-n] - top[n + 1 : 1 - n, n:-n]) / (2 * view.cell)  # rows run south
    gx, gy, sun = np.clip(gx, -1.2, 1.2), np.clip(gy, -1.2, 1.2), light.sun
    lit = np.clip((sun[2] - gx * sun[0] - gy * sun[1]) / (np.sqrt(1 + gx * gx + gy * gy) * sun[2]), 0, 1.6)
    lit[shadow] = 0
    view = view.window(x, y, side / 2 + 1)
    lit = lit[: view.height.shape[0], : view.height.shape[1]]
    colour = _albedo(view, light)
    colour *= ((1 - light.direct) * 0.95 + light.direct * 1.1 * lit)[..., None]
    colour *= 1 - light.haze
    colour += light.haze * np.array([0.75, 0.8, 0.86], np.float32)

    # The resize takes the exact square, to a fraction of a cell.
    left, upper = (x - side / 2 - view.west) / view.cell, (view.north - y - side / 2) / view.cell
    box = (left, upper, left + side / view.cell, upper + side / view.cell)
    image = Image.fromarray((np.clip(colour / 1.6, 0, 1) * 255).astype(np.uint8))
    enlarged = size * view.cell > side * 1.05
    image = image.resize((size, size), Image.Resampling.BICUBIC if enlarged else Image.Resampling.BILINEAR, box=box)
    return develop(np.asarray(image, np.float32) * (1.6 / 255), light, rng)


def _albedo(view, light):
    """Colour (H, W, 3) of what is seen from above, before light falls on it."""
    colour = light.albedo()[view.surface]
    rows, cols = view.surface.shape
    u = ((view.west + np.arange(cols) * view.cell) * 4).astype(np.int64) & 511  # four texels per metre
    v = ((view.north - np.arange(rows) * view.cell) * 4).astype(np.int64) & 511
    colour *= (0.82 + 0.36 * TEXTURE[np.ix_(v, u)])[..., None]
    roofs = view.surface == SURFACE["roof"]
    colour[roofs] = view.buildings[view.owner[roofs] - 1][:, 11:14]
    crowns = view.crown > 0
    speckle = TEXTURE[np.ix_((3 * v) & 511, (3 * u) & 511)][crowns]
    colour[crowns] = light.crown_colours(view.trees)[view.crown[crowns] - 1] * (0.7 + 0.6 * speckle)[:, None]
    return colour
