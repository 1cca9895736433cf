"""What a wall looks like from the street: windows, doors, shop fronts, and the roof above the eaves."""

import numpy as np

from .objects import CAR, HALL, HOUSE, OFFICE, PERSON, SHOP

_GLASS = np.array([0.2, 0.25, 0.31], np.float32)


def wall_colours(b, x, y, z, r, light):
    """Colour and sunlight of points on buildings.

    Args:
        b: (n, columns) rows of the buildings hit, see `raster.building_row`.
        x, y, z: world positions in metres; r: distance from the camera.
        light: the image's Exposure.

    Returns:
        (n, 3) colours and (n,) share of sunlight received.
    """
    dx, dy = x - b[:, 0], y - b[:, 1]
    cos, sin = b[:, 2], b[:, 3]
    along, across = dx * cos + dy * sin, dy * cos - dx * sin
    on_end = b[:, 4] - np.abs(along) < b[:, 5] - np.abs(across)  # the nearer face: a gable end, or a long side
    u = np.where(on_end, across, along)
    half = np.where(on_end, b[:, 5], b[:, 4])
    kind, bay, storey = b[:, 14].astype(np.int8), b[:, 15], b[:, 16]
    pitched = b[:, 7] > b[:, 6]
    depth = np.minimum(b[:, 4] - np.abs(along), b[:, 5] - np.abs(across))
    roof = (z > b[:, 6] - 0.15) & pitched & ~(on_end & (depth < 0.5))
    roof |= ~pitched & (depth > 0.7) & (z > b[:, 6] - 0.6)

    colour = b[:, 8:11].copy()
    count = np.maximum(np.round(2 * half / bay), 1)
    cell = ((u + half) / (2 * half) * count) % 1
    floor = (z - 0.2) / storey
    up = floor % 1
    level = np.floor(floor)
    house, office, shop, hall = (kind == k for k in (HOUSE, OFFICE, SHOP, HALL))
    room = z < b[:, 6] - 0.35
    window = (np.abs(cell - 0.5) < 0.24) & (up > 0.3) & (up < 0.8) & room & (house | office | shop)
    window |= office & (bay < 2.3) & (np.abs(cell - 0.5) < 0.42) & (up > 0.22) & (up < 0.85) & room
    window |= shop & (level < 1) & (np.abs(cell - 0.5) < 0.43) & (up > 0.12) & (up < 0.72)
    door = house & (level < 1) & (np.abs(u) < 0.6) & (up < 0.68) & ~on_end
    gate = hall & (z < 3.6) & (np.abs(cell - 0.5) < 0.32)
    frame = window & ((np.abs(cell - 0.5) > 0.2) | (up < 0.34)) & (r < 35) & ~shop
    sheen = (0.7 + 0.5 * up + 0.25 * np.sin(7 * np.floor((u + half) / bay) + 5 * level + b[:, 0]))[:, None]
    colour[window] = (_GLASS * sheen)[window]
    colour[frame] = 0.82
    colour[door] = (0.45 * b[:, 11:14] + 0.05)[door]
    colour[gate] = (0.6 * b[:, 8:11] + 0.1)[gate]
    sign = shop & (level < 1) & (up > 0.78) & (up < 0.97)
    colour[sign] = np.clip(1.1 * b[:, 11:14][:, ::-1], 0, 1)[sign]
    trim = (z > b[:, 6] - 0.3) & ~roof & (office | shop | hall)
    colour[trim] *= 0.75
    base = (z < 0.5) & (house | office)
    colour[base] *= 0.7
    colour[roof] = b[:, 11:14][roof]
    tiles = roof & pitched
    colour[tiles] *= (0.9 + 0.15 * (np.floor(z * 4) % 2))[tiles, None]
    _paint_small(colour, b, z, along, kind)

    # Outward normals: walls along the nearer axis, pitched roofs tilted.
    side = np.where(on_end, np.sign(along), np.sign(across))
    nx = np.where(on_end, cos, -sin) * side
    ny = np.where(on_end, sin, cos) * side
    sun = light.sun
    facing = np.clip(nx * sun[0] + ny * sun[1], 0, 1) * 1.25
    tilt = np.clip((b[:, 7] - b[:, 6]) / b[:, 5], 0, 2)
    facing[roof] = np.clip((facing * tilt + sun[2]) / np.sqrt(1 + tilt * tilt), 0, 1.2)[roof]
    return colour, facing.astype(np.float32)


def _paint_small(colour, b, z, along, kind):
    """Glass and wheels of cars, trousers and heads of people."""
    car = kind == CAR
    if car.any():
        cabin = car & (z > 0.92) & (z < 1.42)
        colour[cabin] = _GLASS * 0.6
        wheel = car & (z < 0.62) & (np.abs(np.abs(along) - 0.62 * b[:, 4]) < 0.36)
        colour[wheel | (car & (z < 0.25))] = 0.06
    person = kind == PERSON
    if person.any():
        colour[person & (z < 0.85)] = (0.16, 0.18, 0.26)
        colour[person & (z > 1.45)] = (0.72, 0.55, 0.44)
