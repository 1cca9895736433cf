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
from .trees import draw_trees

CAMERA_HEIGHT = 2.5  # metres
REACH = 120.0  # metres seen by the march; what lies beyond is a hazy skyline
SHADOW_REACH = 30.0


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
    column, slope, distance = _march(view, x, y, east, north, rise, (low, high))

    hit = np.isfinite(distance)
    image = _sky(azimuth, rise, light, rng)  # (W, H, 3)
    r, c, t = distance[hit], column[hit], slope[hit]
    image[hit] = _shade(view, x + r * east[c], y + r * north[c], CAMERA_HEIGHT + r * t, r, (x, y), light)
    draw_trees(image, distance, view.trees, (x, y), azimuth[0], rise, light)
    return develop(np.ascontiguousarray(image.transpose(1, 0, 2)[::-1]), light, rng)


def _march(view, x, y, east, north, rise, span):
    """Per pixel (W, H), rows from the bottom up: its column, its ray's slope, its distance (inf: sky)."""
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
    angle = np.maximum.accumulate((tops * np.float32(0.01) - CAMERA_HEIGHT) / r, axis=1)
    np.arctan(angle, out=angle)
    step = (span[1] - span[0]) / rise.size
    filled = np.clip(np.ceil((angle - span[0]) / step - 0.5), 0, rise.size).astype(np.int32)
    counts = np.diff(filled, axis=1, prepend=0)
    counts = np.concatenate([counts, (rise.size - filled[:, -1])[:, None]], 1)
    first = np.repeat(np.tile(np.arange(r.size + 1, dtype=np.int32), east.size), counts.ravel())
    first = first.reshape(east.size, rise.size)  # (W, H): the sample that hides this ray

    column = np.broadcast_to(np.arange(east.size)[:, None], first.shape)
    slope = np.broadcast_to(np.tan(rise)[None], first.shape)
    seen = first < r.size
    k, e, n, t = first[seen], east[column[seen]], north[column[seen]], slope[seen]
    far = r[k]
    before = np.where(k > 0, r[k - 1], 0).astype(np.float32)
    for _ in range(4):  # bisect between the last free sample and the hiding one
        middle = (before + far) * np.float32(0.5)
        blocked = height_at(middle, e, n) >= (CAMERA_HEIGHT + middle * t) * 100
        far = np.where(blocked, middle, far)
        before = np.where(blocked, before, middle)
    distance = np.full(first.shape, np.inf, np.float32)
    distance[seen] = far
    return column, slope, distance


def _shade(view, px, py, z, r, camera, light):
    """Light (n, 3) from points of the map seen from the street."""
    col = ((px - view.west) / view.cell).astype(np.int32)
    row = ((view.north - py) / view.cell).astype(np.int32)
    at = row * view.height.shape[1] + col
    owner = view.owner.ravel()[at]
    colour = _ground_colour(view, px, py, at, r, light)

    half = min(50.0, REACH)
    n, mid = int(half / view.cell), view.height.shape[0] // 2
    cut = np.s_[mid - n : mid + n, mid - n : mid + n]
    step = 2 if view.cell > 0.2 else 4
    top = np.maximum(view.height[cut][::step, ::step], view.canopy[cut][::step, ::step]).astype(np.float32) / 100
    shadow = cast_shadows(top, view.cell * step, light.sun, SHADOW_REACH, receiver=np.float32(0))
    sr, sc = (row - (mid - n)) // step, (col - (mid - n)) // step
    inside = (sr >= 0) & (sc >= 0) & (sr < shadow.shape[0]) & (sc < shadow.shape[1])
    lit = np.ones(len(r), np.float32)
    lit[inside] = ~shadow[sr[inside], sc[inside]]

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
    u, v = (u - col)[:, None], (v - row)[:, None]
    corner, below = row * view.surface.shape[1] + col, view.surface.shape[1]
    blend = np.zeros((near.size, 3), np.float32)
    for step, weight in ((0, (1 - u) * (1 - v)), (1, u * (1 - v)), (below, (1 - u) * v), (below + 1, u * v)):
        kind = surface[corner + step]
        kind = np.where(kind == SURFACE["roof"], surface[at[near]], kind)  # no roof shines through at a wall's foot
        blend += weight * albedo[kind]
    colour[near] = blend
    colour *= texture_at(px + 1e6, py + 1e6)[:, None]
    return colour


def _sky(azimuth, rise, light, rng):
    """Sky, sun, clouds and, below the horizon, distant land (W, H, 3)."""
    zenith = np.array([0.32, 0.5, 0.82], np.float32) * (0.6 + 0.6 * light.direct)
    pale = np.array([0.78, 0.84, 0.9], np.float32)
    land = 0.45 * pale + 0.55 * np.array([0.36, 0.42, 0.36], np.float32)
    image = np.empty((azimuth.size, rise.size, 3), np.float32)
    start = int(np.searchsorted(rise, 0.0))
    image[:, :start], rise = land, rise[start:]
    sky = image[:, start:]
    sky[:] = pale + (zenith - pale) * np.sqrt(np.sin(rise))[None, :, None]
    cover = float(np.clip(1.15 - 1.6 * light.direct + rng.normal(0, 0.15), 0.05, 1))
    u = (azimuth * (512 / (2 * np.pi)) + rng.integers(512)).astype(np.int32) & 511
    v = (120 / np.maximum(np.tan(rise), 0.05) ** 0.7 + rng.integers(512)).astype(np.int32) & 511
    cloud = np.clip((CLOUDS.T[np.ix_(u, v)] - (0.75 - 0.55 * cover)) * 4, 0, 1) * np.clip(rise / 0.12, 0, 1)
    sky += cloud[..., None] * (np.array([0.93, 0.94, 0.96], np.float32) * (0.75 + 0.35 * light.direct) - sky)
    sun = np.cos(azimuth - light.sun_azimuth)[:, None] * np.cos(rise - light.sun_altitude)[None]
    sky += (light.direct * np.clip(sun, 0, 1) ** 40 * 0.8 * (1 - 0.7 * cloud))[..., None]
    # A hazy skyline where the march ends.
    skyline = 0.012 + 0.05 * CLOUDS[rng.integers(512), (azimuth * (2048 / (2 * np.pi))).astype(np.int32) & 511] ** 2
    low = int(np.searchsorted(rise, 0.08))
    sky[:, :low][rise[None, :low] < skyline[:, None]] = land
    return image
