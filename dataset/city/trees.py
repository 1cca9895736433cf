"""Trees seen from the street: sprites of three shapes, painted from far to near behind what hides them."""

import numpy as np

from .film import fractal_noise
from .raster import crown_colours
from .style import SPECIES

_ROWS, _COLS = 144, 96  # of a sprite, rows from the ground up
REACH = 95.0  # metres


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
    from_sun = np.arctan2(dx, dy) - light.sun_azimuth
    chosen = np.flatnonzero((r < REACH) & (r > 2.5))
    for k in chosen[np.argsort(-r[chosen], kind="stable")]:
        azimuth, half = np.arctan2(dx[k], dy[k]), np.arctan2(trees[k, 3], r[k])
        centre = ((azimuth - left) % (2 * np.pi)) * width / (2 * np.pi)
        reach = half * width / (2 * np.pi)
        c0, c1 = int(np.ceil(centre - reach)), int(np.floor(centre + reach)) + 1
        low, high = np.arctan2(-2.5, r[k]), np.arctan2(trees[k, 2] - 2.5, r[k])
        r0, r1 = max(int((low - rise[0]) / step), 0), min(int((high - rise[0]) / step) + 1, height)
        if c1 <= c0 or r1 <= r0:
            continue
        z = (2.5 + r[k] * np.tan(rise[r0:r1])) / trees[k, 2]
        v = np.clip((z * _ROWS).astype(np.int32), 0, _ROWS - 1)
        u = np.clip(((np.arange(c0, c1) - centre) / reach * 0.5 + 0.5) * _COLS, 0, _COLS - 1).astype(np.int32)
        opaque, shade, trunk = _SPRITES[SPECIES[int(trees[k, 4])][3]][int(abs(trees[k, 0]) * 13) % 4]
        pick = np.ix_(v, u)
        cols = np.arange(c0, c1) % width
        free = distance[cols, r0:r1] > r[k]
        mask = opaque[pick].T & free
        if not mask.any():
            continue
        a, b = np.nonzero(mask)
        # The side turned to the sun is lighter: left or right of the crown, or all of it.
        lit = 1 - light.direct * (0.45 * np.cos(from_sun[k]) + 0.45 * np.sin(from_sun[k]) * (u[a] * 2 / _COLS - 1))
        tone = (shade[v[b], u[a]] * lit)[:, None]
        colour = np.where(trunk[v[b], u[a]][:, None], _TRUNK, colours[k]) * tone
        fog = 1 - np.exp(-light.haze * r[k])
        image[cols[a], r0 + b] = colour * (1 - fog) + fog * np.array([0.74, 0.79, 0.86], np.float32)
        distance[cols[a], r0 + b] = r[k]
