"""The view from the street: a 360-degree panorama by marching rays over the height field, column by column.

Column 0 looks south and the centre column north: from left to right S, W, N, E, S. Rows are spaced evenly in
elevation.
"""

import numpy as np

from .blocks import CAR, HALL, HOUSE, OFFICE, PERSON, SHOP
from .film import CLOUDS, TEXTURE, cast_shadows, develop, draw_exposure, draw_traffic, fractal_noise
from .style import COLUMN, CONE, ROUND, SPECIES, SURFACE

EYE = 2.5  # metres, height of the camera
REACH = 100.0  # metres seen by the march; what lies beyond is a hazy skyline
TREE_REACH = 95.0
SHADOW_REACH = 30.0
STRIP = 1 << 16  # pixels marched at once
GLASS = np.array([0.2, 0.25, 0.31], np.float32)
TRUNK = np.array([0.3, 0.24, 0.19], np.float32)
FOG = np.array([0.74, 0.79, 0.86], np.float32)


def render_ground(raster, x, y, size, elevation, rng, heading=0.0, from_north=False):
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
    view.add(draw_traffic(view, x, y, 60.0, rng))
    width, height = size
    azimuth = np.deg2rad(180 + heading) + (np.arange(width, dtype=np.float32) + 0.5) * np.float32(2 * np.pi / width)
    low, high = np.deg2rad(elevation)
    rise = low + (np.arange(height, dtype=np.float32) + 0.5) * np.float32((high - low) / height)  # from the bottom up
    east, north = np.sin(azimuth).astype(np.float32), np.cos(azimuth).astype(np.float32)
    shadow, image = _ground_shadow(view, light.sun), _draw_sky(azimuth, rise, light, rng)
    distance = np.full((width, height), np.inf, np.float32)
    strip = max(STRIP // height, 1)
    for start in range(0, width, strip):  # a few columns at a time, which bounds the memory
        cut = np.s_[start : start + strip]
        e, n = east[cut], north[cut]
        seen, column, r = _march(view, x, y, e, n, rise, (low, high))
        z = EYE + r * np.tan(rise)[np.nonzero(seen)[1]]
        image[cut][seen] = _shade(view, x + r * e[column], y + r * n[column], z, r, shadow, light)
        distance[cut][seen] = r
    _draw_trees(image, distance, view.trees, (x, y), azimuth[0], rise, light)
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
    steps = int(np.ceil(np.log(REACH / start) / np.log1p(ratio)))
    r = np.concatenate([np.arange(0.3, start, fine), np.geomspace(start, REACH - 1.0, steps)]).astype(np.float32)

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
    far, before = r[k], np.where(k > 0, r[k - 1], 0).astype(np.float32)
    for _ in range(4):  # bisect between the last free sample and the hiding one
        middle = (before + far) * np.float32(0.5)
        blocked = height_at(middle, e, n) >= (EYE + middle * t) * 100
        far, before = np.where(blocked, middle, far), np.where(blocked, before, middle)
    return seen, column, far


def _ground_shadow(view, sun, half=50.0):
    """Cells of the ground (H, W) bool that lie in shadow, within `half` metres of the camera, on a coarser grid."""
    step, n, middle = 2 if view.cell > 0.2 else 4, int(half / view.cell), view.height.shape[0] // 2
    near = np.s_[middle - n : middle + n, middle - n : middle + n]
    top = np.maximum(view.height[near], view.canopy[near])[::step, ::step].astype(np.float32) / 100
    dark = cast_shadows(top, view.cell * step, sun, SHADOW_REACH, receiver=np.float32(0))
    shadow = np.zeros(view.height.shape, bool)
    shadow[near] = dark.repeat(step, 0).repeat(step, 1)
    return shadow


def _draw_sky(azimuth, rise, light, rng):
    """Sky, sun, clouds and, below the horizon, distant land.

    Args:
        azimuth: (W,) of the columns; rise: (H,) elevation of the rows, ascending.

    Returns:
        (W, H, 3) light.
    """
    cover = float(np.clip(1.15 - 1.6 * light.direct + rng.normal(0, 0.15), 0.05, 1))
    shift, skyline = rng.integers(512, size=2), CLOUDS[rng.integers(512)]
    zenith = np.array([0.32, 0.5, 0.82], np.float32) * (0.6 + 0.6 * light.direct)
    pale = np.array([0.78, 0.84, 0.9], np.float32)
    land = 0.45 * pale + 0.55 * np.array([0.36, 0.42, 0.36], np.float32)
    image = np.empty((azimuth.size, rise.size, 3), np.float32)
    start = int(np.searchsorted(rise, 0.0))
    image[:, :start], rise = land, rise[start:]
    sky = image[:, start:]
    sky[:] = pale + (zenith - pale) * np.sqrt(np.sin(rise))[None, :, None]
    u = (azimuth * (512 / (2 * np.pi)) + shift[0]).astype(np.int32) & 511
    v = (120 / np.maximum(np.tan(rise), 0.05) ** 0.7 + shift[1]).astype(np.int32) & 511
    cloud = np.clip((CLOUDS.T[np.ix_(u, v)] - (0.75 - 0.55 * cover)) * 4, 0, 1) * np.clip(rise / 0.12, 0, 1)
    sky += cloud[..., None] * (np.array([0.93, 0.94, 0.96], np.float32) * (0.75 + 0.35 * light.direct) - sky)
    sun = np.cos(azimuth - light.sun_azimuth)[:, None] * np.cos(rise - light.sun_altitude)[None]
    sky += (light.direct * np.clip(sun, 0, 1) ** 40 * 0.8 * (1 - 0.7 * cloud))[..., None]
    # A hazy skyline where the march ends.
    top = 0.012 + 0.05 * skyline[(azimuth * (2048 / (2 * np.pi))).astype(np.int32) & 511] ** 2
    low = int(np.searchsorted(rise, 0.08))
    sky[:, :low][rise[None, :low] < top[:, None]] = land
    return image


def _shade(view, px, py, z, r, shadow, light):
    """Light (n, 3) from points of the map seen from the street."""
    col, row = ((px - view.west) / view.cell).astype(np.int32), ((view.north - py) / view.cell).astype(np.int32)
    at = row * view.height.shape[1] + col
    owner, colour = view.owner.ravel()[at], _ground_colours(view, px, py, at, r, light)
    lit = 1 - shadow.ravel()[at].astype(np.float32)
    built = np.flatnonzero(owner)
    if built.size:
        b = view.buildings[owner[built] - 1]
        colour[built], lit[built] = _wall_colours(b, px[built], py[built], z[built], r[built], light.sun)
    colour *= ((1 - light.direct) * 0.95 + light.direct * 1.15 * lit)[:, None]
    fog = 1 - np.exp(-light.haze * r)[:, None]
    return colour * (1 - fog) + fog * FOG


def _ground_colours(view, px, py, at, r, light):
    """Surface colour (n, 3) at the cells `at`; near the camera blended between cells, so that kerbs are not stairs."""
    albedo, surface = light.albedo(), view.surface.ravel()
    colour = albedo[surface[at]]
    near = np.flatnonzero((r < 25) & (view.height.ravel()[at] == 0))
    u, v = (px[near] - view.west) / view.cell - 0.5, (view.north - py[near]) / view.cell - 0.5
    col, row = u.astype(np.int32), v.astype(np.int32)
    below = view.surface.shape[1]
    kinds = surface[(row * below + col)[None] + np.array([[0], [1], [below], [below + 1]], np.int32)]
    edge = np.flatnonzero((kinds != kinds[0]).any(0))
    kinds, near = kinds[:, edge], near[edge]
    kinds = np.where(kinds == SURFACE["roof"], surface[at[near]], kinds)  # no roof shines through at a wall's foot
    u, v = u[edge] - col[edge], v[edge] - row[edge]
    weights = np.stack([(1 - u) * (1 - v), u * (1 - v), (1 - u) * v, u * v])
    colour[near] = (weights[..., None] * albedo[kinds]).sum(0)
    u, v = (((p + 1e6) * 4.0).astype(np.int32) & 511 for p in (px, py))  # four texels per metre
    return colour * (0.82 + 0.36 * TEXTURE.ravel()[(v << 9) + u])[:, None]


def _wall_colours(b, x, y, z, r, sun):
    """What walls look like from the street: windows, doors, shop fronts, and the roof above the eaves.

    Args:
        b: (n, 17) rows of the buildings hit, see `raster.building_row`.
        x, y, z: world positions in metres; r: distance from the camera; sun: unit vector towards it.

    Returns:
        (n, 3) colours and (n,) share of sunlight received.
    """
    bx, by, cos, sin, half_length, half_width, eaves, ridge = b[:, :8].T
    wall, roofing, bay, storey = b[:, 8:11], b[:, 11:14], b[:, 15], b[:, 16]
    kind = b[:, 14].astype(np.int8)
    house, office, shop, hall = (kind == k for k in (HOUSE, OFFICE, SHOP, HALL))
    dx, dy = x - bx, y - by
    along, across = dx * cos + dy * sin, dy * cos - dx * sin
    depths = half_length - np.abs(along), half_width - np.abs(across)
    on_end = depths[0] < depths[1]  # the nearer face: a gable end, or a long side
    u, half, depth = np.where(on_end, across, along), np.where(on_end, half_width, half_length), np.minimum(*depths)
    pitched = ridge > eaves
    roof = (z > eaves - 0.15) & pitched & ~(on_end & (depth < 0.5))
    roof |= ~pitched & (depth > 0.7) & (z > eaves - 0.6)

    cell = ((u + half) / (2 * half) * np.maximum(np.round(2 * half / bay), 1)) % 1  # place in the window's bay
    floor = (z - 0.2) / storey
    up, level = floor % 1, np.floor(floor)
    aside, first, room = np.abs(cell - 0.5), level < 1, z < eaves - 0.35
    window = (aside < 0.24) & (up > 0.3) & (up < 0.8) & room & (house | office | shop)
    window |= office & (bay < 2.3) & (aside < 0.42) & (up > 0.22) & (up < 0.85) & room
    window |= shop & first & (aside < 0.43) & (up > 0.12) & (up < 0.72)
    frame = window & ((aside > 0.2) | (up < 0.34)) & (r < 35) & ~shop
    door = house & first & (np.abs(u) < 0.6) & (up < 0.68) & ~on_end
    gate = hall & (z < 3.6) & (aside < 0.32)
    sign = shop & first & (up > 0.78) & (up < 0.97)
    sheen = (0.7 + 0.5 * up + 0.25 * np.sin(7 * np.floor((u + half) / bay) + 5 * level + bx))[:, None]
    colour = wall.copy()
    colour[window] = (GLASS * sheen)[window]
    colour[frame] = 0.82
    colour[door] = (0.45 * roofing + 0.05)[door]
    colour[gate] = (0.6 * wall + 0.1)[gate]
    colour[sign] = np.clip(1.1 * roofing[:, ::-1], 0, 1)[sign]
    colour[(z > eaves - 0.3) & ~roof & (office | shop | hall)] *= 0.75
    colour[(z < 0.5) & (house | office)] *= 0.7
    colour[roof] = roofing[roof]
    tiles = roof & pitched
    colour[tiles] *= (0.9 + 0.15 * (np.floor(z * 4) % 2))[tiles, None]
    car, person = kind == CAR, kind == PERSON
    colour[car & (z > 0.92) & (z < 1.42)] = GLASS * 0.6
    colour[car & ((z < 0.25) | (z < 0.62) & (np.abs(np.abs(along) - 0.62 * half_length) < 0.36))] = 0.06  # wheels
    colour[person & (z < 0.85)] = (0.16, 0.18, 0.26)
    colour[person & (z > 1.45)] = (0.72, 0.55, 0.44)

    # Outward normals: walls along the nearer axis, pitched roofs tilted.
    side = np.where(on_end, np.sign(along), np.sign(across))
    nx, ny = np.where(on_end, cos, -sin) * side, np.where(on_end, sin, cos) * side
    facing = np.clip(nx * sun[0] + ny * sun[1], 0, 1) * 1.25
    tilt = np.clip((ridge - eaves) / half_width, 0, 2)
    facing[roof] = np.clip((facing * tilt + sun[2]) / np.sqrt(1 + tilt * tilt), 0, 1.2)[roof]
    return colour, facing.astype(np.float32)


_ROWS, _COLS = 144, 96  # of a sprite of a tree, rows from the ground up


def _make_sprite(shape, seed):
    """Opacity (bool) and brightness of one tree, and where its trunk is: three (_ROWS, _COLS) arrays."""
    noise = fractal_noise(256, (8, 16, 32, 64), seed)[:_ROWS, :_COLS]
    v = (np.arange(_ROWS) + 0.5)[:, None] / _ROWS  # 0 at the ground, 1 at the top
    u = ((np.arange(_COLS) + 0.5)[None] / _COLS) * 2 - 1
    body = {
        ROUND: 1 - (u / 0.98) ** 2 - ((v - 0.65) / 0.36) ** 2,
        CONE: np.where(v > 0.1, (1 - v) * 1.15 * (0.8 + 0.4 * ((v * 9) % 1 < 0.5)) - np.abs(u), -1.0),
        COLUMN: 1 - (u / 0.9) ** 2 - ((v - 0.55) / 0.46) ** 2,
    }[shape]
    leaf = body + 0.9 * (noise - 0.5) > 0.12
    trunk = (np.abs(u) < (0.09 if shape == ROUND else 0.12)) & (v < 0.55) & ~leaf
    shade = 0.5 + 0.5 * np.clip(v * 1.1 - 0.1, 0, 1) + 0.7 * (noise - 0.5)
    return leaf | trunk, np.clip(shade, 0.15, 1.3).astype(np.float32), trunk


_SPRITES = [[_make_sprite(shape, 20 + 5 * shape + k) for k in range(4)] for shape in (ROUND, CONE, COLUMN)]


def _draw_trees(image, distance, trees, camera, left, rise, light):
    """Paint the trees within TREE_REACH into a panorama, in place, from far to near behind what hides them.

    Args:
        image: (W, H, 3) light, rows from the bottom up.
        distance: (W, H) of what has been painted; inf for the sky.
        trees: (n, 6) x, y, height, crown radius, species, tint.
        camera: (x, y); left: azimuth of column 0 in radians; rise: (H,) elevation of the rows.
    """
    width, height = distance.shape
    dx, dy = trees[:, 0] - camera[0], trees[:, 1] - camera[1]
    r, azimuth = np.hypot(dx, dy), np.arctan2(dx, dy)
    colours, from_sun = light.crown_colours(trees), azimuth - light.sun_azimuth
    step = rise[1] - rise[0]
    centre = ((azimuth - left) % (2 * np.pi)) * width / (2 * np.pi)
    reach = np.arctan2(trees[:, 3], r) * width / (2 * np.pi)
    first, last = np.ceil(centre - reach).astype(int), np.floor(centre + reach).astype(int) + 1
    low, high = np.arctan2(-EYE, r), np.arctan2(trees[:, 2] - EYE, r)
    lower = np.maximum((low - rise[0]) / step, 0).astype(int)
    upper = np.minimum((high - rise[0]) / step + 1, height).astype(int)
    chosen = np.flatnonzero((r < TREE_REACH) & (r > 2.5) & (last > first) & (upper > lower))
    slope = np.tan(rise)
    for k in chosen[np.argsort(-r[chosen], kind="stable")]:
        cols, r0, r1 = np.arange(first[k], last[k]), lower[k], upper[k]
        z = (EYE + r[k] * slope[r0:r1]) * (_ROWS / trees[k, 2])
        v = np.minimum(np.maximum(z, 0), _ROWS - 1).astype(np.int32)
        u = ((cols - centre[k]) / reach[k] + 1) * (_COLS / 2)
        u = np.minimum(np.maximum(u, 0), _COLS - 1).astype(np.int32)
        cols %= width
        opaque, shade, trunk = _SPRITES[SPECIES[int(trees[k, 4])].shape][int(abs(trees[k, 0]) * 13) % 4]
        a, b = np.nonzero(opaque[v[None], u[:, None]] & (distance[cols, r0:r1] > r[k]))
        if not a.size:
            continue
        # The side turned to the sun is lighter: left or right of the crown, or all of it.
        lit = 1 - light.direct * (0.45 * np.cos(from_sun[k]) + 0.45 * np.sin(from_sun[k]) * (u[a] * 2 / _COLS - 1))
        tone = (shade[v[b], u[a]] * lit)[:, None]
        colour = np.where(trunk[v[b], u[a]][:, None], TRUNK, colours[k]) * tone
        fog = 1 - np.exp(-light.haze * r[k])
        image[cols[a], r0 + b] = colour * (1 - fog) + fog * FOG
        distance[cols[a], r0 + b] = r[k]
