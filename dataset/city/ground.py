"""The view from the street: a 360-degree panorama by marching rays over the height field, column by column.

Column 0 looks south and the centre column north: from left to right S, W, N, E, S. Rows are spaced evenly in
elevation.
"""

import numpy as np

from .facade import wall_colours
from .film import CLOUDS, cast_shadows, develop, draw_exposure, texture_at
from .raster import albedo_tables
from .style import SURFACE
from .traffic import draw_traffic
from .trees import EYE, draw_trees

REACH = 100.0  # metres seen by the march; what lies beyond is a hazy skyline
SHADOW_REACH = 30.0
STRIP = 1 << 16  # pixels marched at once


def render_ground(raster, x, y, size, elevation, rng, heading=0.0, from_north=False, traffic=True):
    """Panorama from a point of the map.

    Args:
        raster: the region; must reach REACH metres around the camera.
        x, y: camera in metres; size: (width, height) in pixels.
        elevation: (lowest, highest) angle in degrees, at the image's lower and upper edge.
        rng: draws light, season, traffic, clouds and noise.
        heading: degrees by which the camera's "north" is off, clockwise.

    Returns:
        (height, width, 3) uint8.
    """
    light = draw_exposure(rng, "ground", from_north)
    view = raster.window(x, y, REACH)
    if traffic:
        view.add(draw_traffic(view, (x, y), 60.0, rng))
    width, height = size
    azimuth = np.deg2rad(180 + heading) + (np.arange(width, dtype=np.float32) + 0.5) * np.float32(2 * np.pi / width)
    low, high = np.deg2rad(elevation)
    rise = low + (np.arange(height, dtype=np.float32) + 0.5) * np.float32((high - low) / height)  # from the bottom up
    east, north = np.sin(azimuth).astype(np.float32), np.cos(azimuth).astype(np.float32)
    shadow = _Shadow(view, light)
    sky = _Sky(light, rng)
    image, distance = np.empty((width, height, 3), np.float32), np.full((width, height), np.inf, np.float32)
    strip = max(STRIP // height, 1)
    for start in range(0, width, strip):  # a few columns at a time, for the sake of memory
        cut = np.s_[start : start + strip]
        e, n = east[cut], north[cut]
        seen, column, r = _march(view, x, y, e, n, rise, (low, high))
        image[cut] = sky.paint(azimuth[cut], rise)
        z = EYE + r * np.tan(rise)[np.nonzero(seen)[1]]
        image[cut][seen] = _shade(view, x + r * e[column], y + r * n[column], z, r, shadow, light)
        distance[cut][seen] = r
    draw_trees(image, distance, view.trees, (x, y), azimuth[0], rise, light)
    return develop(np.ascontiguousarray(image.transpose(1, 0, 2)[::-1]), light, rng)


def _march(view, x, y, east, north, rise, span):
    """March the rays of some columns.

    Args:
        east, north: (W,) unit directions; rise: (H,) elevations from the bottom up; span: their outer limits.

    Returns:
        seen (W, H) bool, where something of the map is hit; and for those pixels the column and the distance in metres.
    """
    fine, ratio = max(view.cell, 0.2), max(2 * np.pi / east.size, 0.008)
    start = fine / ratio
    near = np.arange(0.3, start, fine)
    count = int(np.ceil(np.log(REACH / start) / np.log1p(ratio)))
    r = np.concatenate([near, np.geomspace(start, REACH - 1.0, count)]).astype(np.float32)

    cols, stride = view.height.shape[1], np.float32(1 / view.cell)
    x0, y0 = np.float32((x - view.west) * stride), np.float32((view.north - y) * stride)
    east, north = east * stride, -north * stride  # now in cells, rows to the south
    flat = view.height.ravel()

    def height_at(r, e, n):
        return flat[(y0 + r * n).astype(np.int32) * cols + (x0 + r * e).astype(np.int32)]

    tops = height_at(r[None, :], east[:, None], north[:, None])  # (W, K) centimetres
    angle = np.maximum.accumulate((tops * np.float32(0.01) - EYE) / r, axis=1)
    np.arctan(angle, out=angle)
    step = (span[1] - span[0]) / rise.size
    filled = np.clip(np.ceil((angle - span[0]) / step - 0.5), 0, rise.size).astype(np.int32)
    counts = np.diff(filled, axis=1, prepend=0)
    counts = np.concatenate([counts, (rise.size - filled[:, -1])[:, None]], 1)
    first = np.repeat(np.tile(np.arange(r.size + 1, dtype=np.int32), east.size), counts.ravel())
    first = first.reshape(east.size, rise.size)  # (W, H): the sample that hides this ray

    seen = first < r.size
    column, row = np.nonzero(seen)
    k, e, n, t = first[seen], east[column], north[column], np.tan(rise)[row]
    far = r[k]
    before = np.where(k > 0, r[k - 1], 0).astype(np.float32)
    for _ in range(4):  # bisect between the last free sample and the hiding one
        middle = (before + far) * np.float32(0.5)
        blocked = height_at(middle, e, n) >= (EYE + middle * t) * 100
        far = np.where(blocked, middle, far)
        before = np.where(blocked, before, middle)
    return seen, column, far


class _Shadow:
    """What the sun does not reach on the ground around the camera, on a grid coarser than the map's."""

    def __init__(self, view, light, half=50.0):
        self.step = 2 if view.cell > 0.2 else 4
        n, middle = int(half / view.cell), view.height.shape[0] // 2
        self.first = middle - n
        cut = np.s_[middle - n : middle + n : self.step, middle - n : middle + n : self.step]
        top = np.maximum(view.height[cut], view.canopy[cut]).astype(np.float32) / 100
        self.mask = cast_shadows(top, view.cell * self.step, light.sun, SHADOW_REACH, receiver=np.float32(0))

    def at(self, row, col):
        """Whether cells of the view lie in shadow, bool; beyond the grid nothing does."""
        row, col = (row - self.first) // self.step, (col - self.first) // self.step
        size = self.mask.shape[0]
        inside = (row >= 0) & (col >= 0) & (row < size) & (col < size)
        return inside & self.mask[np.clip(row, 0, size - 1), np.clip(col, 0, size - 1)]


def _shade(view, px, py, z, r, shadow, light):
    """Light (n, 3) from points of the map seen from the street."""
    col = ((px - view.west) / view.cell).astype(np.int32)
    row = ((view.north - py) / view.cell).astype(np.int32)
    at = row * view.height.shape[1] + col
    owner = view.owner.ravel()[at]
    colour = _ground_colour(view, px, py, at, r, light)

    lit = 1 - shadow.at(row, col).astype(np.float32)
    built = np.flatnonzero(owner)
    if built.size:
        b = view.buildings[owner[built] - 1]
        facade, facing = wall_colours(b, px[built], py[built], z[built], r[built], light)
        colour[built] = facade
        lit[built] = facing
    colour *= ((1 - light.direct) * 0.95 + light.direct * 1.15 * lit)[:, None]
    fog = 1 - np.exp(-light.haze * r)[:, None]
    return colour * (1 - fog) + fog * np.array([0.74, 0.79, 0.86], np.float32)


def _ground_colour(view, px, py, at, r, light):
    """Surface colour (n, 3) at the cells `at`; near the camera blended between cells, so that kerbs are not stairs."""
    albedo, surface = albedo_tables(light.season), view.surface.ravel()
    colour = albedo[surface[at]]
    near = np.flatnonzero((r < 25) & (view.height.ravel()[at] == 0))
    u, v = (px[near] - view.west) / view.cell - 0.5, (view.north - py[near]) / view.cell - 0.5
    col, row = u.astype(np.int32), v.astype(np.int32)
    below = view.surface.shape[1]
    corner = row * below + col
    kinds = surface[corner[None] + np.array([[0], [1], [below], [below + 1]], np.int32)]
    edge = np.flatnonzero((kinds != kinds[0]).any(0))
    kinds, near = kinds[:, edge], near[edge]
    kinds = np.where(kinds == SURFACE["roof"], surface[at[near]], kinds)  # no roof shines through at a wall's foot
    u, v = u[edge] - col[edge], v[edge] - row[edge]
    weights = np.stack([(1 - u) * (1 - v), u * (1 - v), (1 - u) * v, u * v])
    colour[near] = (weights[..., None] * albedo[kinds]).sum(0)
    colour *= texture_at(px + 1e6, py + 1e6)[:, None]
    return colour


class _Sky:
    """Sky, sun, clouds and, below the horizon, distant land."""

    def __init__(self, light, rng):
        self.light = light
        self.cover = float(np.clip(1.15 - 1.6 * light.direct + rng.normal(0, 0.15), 0.05, 1))
        self.shift, self.skyline = rng.integers(512, size=2), CLOUDS[rng.integers(512)]

    def paint(self, azimuth, rise):
        """Light (W, H, 3) of columns at `azimuth` (W,) and rows at elevation `rise` (H,), ascending."""
        light = self.light
        zenith = np.array([0.32, 0.5, 0.82], np.float32) * (0.6 + 0.6 * light.direct)
        pale = np.array([0.78, 0.84, 0.9], np.float32)
        land = 0.45 * pale + 0.55 * np.array([0.36, 0.42, 0.36], np.float32)
        image = np.empty((azimuth.size, rise.size, 3), np.float32)
        start = int(np.searchsorted(rise, 0.0))
        image[:, :start], rise = land, rise[start:]
        sky = image[:, start:]
        sky[:] = pale + (zenith - pale) * np.sqrt(np.sin(rise))[None, :, None]
        u = (azimuth * (512 / (2 * np.pi)) + self.shift[0]).astype(np.int32) & 511
        v = (120 / np.maximum(np.tan(rise), 0.05) ** 0.7 + self.shift[1]).astype(np.int32) & 511
        cloud = np.clip((CLOUDS.T[np.ix_(u, v)] - (0.75 - 0.55 * self.cover)) * 4, 0, 1) * np.clip(rise / 0.12, 0, 1)
        sky += cloud[..., None] * (np.array([0.93, 0.94, 0.96], np.float32) * (0.75 + 0.35 * light.direct) - sky)
        sun = np.cos(azimuth - light.sun_azimuth)[:, None] * np.cos(rise - light.sun_altitude)[None]
        sky += (light.direct * np.clip(sun, 0, 1) ** 40 * 0.8 * (1 - 0.7 * cloud))[..., None]
        # A hazy skyline where the march ends.
        top = 0.012 + 0.05 * self.skyline[(azimuth * (2048 / (2 * np.pi))).astype(np.int32) & 511] ** 2
        low = int(np.searchsorted(rise, 0.08))
        sky[:, :low][rise[None, :low] < top[:, None]] = land
        return image
