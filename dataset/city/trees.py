"""Trees seen from the street: sprites of three shapes, painted from far to near behind what hides them."""

import numpy as np

from .film import fractal_noise
from .raster import crown_colours
from .style import SPECIES

_ROWS, _COLS = 144, 96  # of a sprite, rows from the ground up
REACH = 95.0  # metres
EYE = 2.5  # metres, height of the camera


def _make_sprite(shape, seed):
    """Opacity (bool) and brightness of one tree, and where its trunk is: three (_ROWS, _COLS) arrays."""
    noise = fractal_noise(256, (8, 16, 32, 64), seed)[:_ROWS, :_COLS]
    v = (np.arange(_ROWS) + 0.5)[:, None] / _ROWS  # 0 at the ground, 1 at the top
    u = ((np.arange(_COLS) + 0.5)[None] / _COLS) * 2 - 1
    if shape == 0:  # round crown
        body = 1 - (u / 0.98) ** 2 - ((v - 0.65) / 0.36) ** 2
    elif shape == 1:  # cone
        body = np.where(v > 0.1, (1 - v) * 1.15 * (0.8 + 0.4 * ((v * 9) % 1 < 0.5)) - np.abs(u), -1.0)
    else:  # column
        body = 1 - (u / 0.9) ** 2 - ((v - 0.55) / 0.46) ** 2
    leaf = body + 0.9 * (noise - 0.5) > 0.12
    trunk = (np.abs(u) < (0.09 if shape == 0 else 0.12)) & (v < 0.55) & ~leaf
    shade = 0.5 + 0.5 * np.clip(v * 1.1 - 0.1, 0, 1) + 0.7 * (noise - 0.5)
    return leaf | trunk, np.clip(shade, 0.15, 1.3).astype(np.float32), trunk


_SPRITES = [[_make_sprite(shape, 20 + 5 * shape + k) for k in range(4)] for shape in range(3)]
_TRUNK = np.array([0.3, 0.24, 0.19], np.float32)


def draw_trees(image, distance, trees, camera, left, rise, light):
    """Paint the trees within REACH into a panorama, in place.

    Args:
        image: (W, H, 3) light, rows from the bottom up.
        distance: (W, H) of what has been painted; inf for the sky.
        trees: (n, 6) x, y, height, crown radius, species, tint.
        camera: (x, y); left: azimuth of column 0 in radians; rise: (H,) elevation of the rows.
    """
    if not len(trees):
        return
    width, height = distance.shape
    dx, dy = trees[:, 0] - camera[0], trees[:, 1] - camera[1]
    r = np.hypot(dx, dy)
    colours = crown_colours(trees, light.season)
    step = rise[1] - rise[0]
    azimuth = np.arctan2(dx, dy)
    from_sun = azimuth - light.sun_azimuth
    centre = ((azimuth - left) % (2 * np.pi)) * width / (2 * np.pi)
    reach = np.arctan2(trees[:, 3], r) * width / (2 * np.pi)
    first, last = np.ceil(centre - reach).astype(int), np.floor(centre + reach).astype(int) + 1
    low, high = np.arctan2(-EYE, r), np.arctan2(trees[:, 2] - EYE, r)
    lower = np.maximum((low - rise[0]) / step, 0).astype(int)
    upper = np.minimum((high - rise[0]) / step + 1, height).astype(int)
    chosen = np.flatnonzero((r < REACH) & (r > 2.5) & (last > first) & (upper > lower))
    slope = np.tan(rise)
    for k in chosen[np.argsort(-r[chosen], kind="stable")]:
        c0, c1, r0, r1 = first[k], last[k], lower[k], upper[k]
        cols = np.arange(c0, c1)
        z = (EYE + r[k] * slope[r0:r1]) * (_ROWS / trees[k, 2])
        v = np.minimum(np.maximum(z, 0), _ROWS - 1).astype(np.int32)
        u = ((cols - centre[k]) / reach[k] + 1) * (_COLS / 2)
        u = np.minimum(np.maximum(u, 0), _COLS - 1).astype(np.int32)
        cols %= width
        opaque, shade, trunk = _SPRITES[SPECIES[int(trees[k, 4])][3]][int(abs(trees[k, 0]) * 13) % 4]
        a, b = np.nonzero(opaque[v[None], u[:, None]] & (distance[cols, r0:r1] > r[k]))
        if not a.size:
            continue
        # The side turned to the sun is lighter: left or right of the crown, or all of it.
        lit = 1 - light.direct * (0.45 * np.cos(from_sun[k]) + 0.45 * np.sin(from_sun[k]) * (u[a] * 2 / _COLS - 1))
        tone = (shade[v[b], u[a]] * lit)[:, None]
        colour = np.where(trunk[v[b], u[a]][:, None], _TRUNK, colours[k]) * tone
        fog = 1 - np.exp(-light.haze * r[k])
        image[cols[a], r0 + b] = colour * (1 - fog) + fog * np.array([0.74, 0.79, 0.86], np.float32)
        distance[cols[a], r0 + b] = r[k]
