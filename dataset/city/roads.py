"""Streets drawn on the map: sidewalks, roadways, markings, and the trees of a median strip."""

import numpy as np

from .style import SURFACE


def ribbon(line, left, right):
    """Polygon between two offsets (metres, to the left of the walking direction) of a polyline."""
    d = np.empty_like(line)
    d[1:-1], d[0], d[-1] = line[2:] - line[:-2], line[1] - line[0], line[-1] - line[-2]
    normal = np.stack([-d[:, 1], d[:, 0]], 1) / np.maximum(np.hypot(*d.T), 1e-6)[:, None]
    return np.concatenate([line + left * normal, (line + right * normal)[::-1]])


def draw_streets(streets, polygon):
    """Draw all streets; `polygon(points, surface)` fills a polygon given in metres."""
    angle = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], 1)
    for street in streets:
        if street.walk:
            polygon(ribbon(street.line, street.clear, -street.clear), SURFACE["sidewalk"])
            for end in (street.line[0], street.line[-1]):
                polygon(end + circle * street.clear, SURFACE["sidewalk"])
    for street in sorted(streets, key=lambda s: s.width):
        polygon(ribbon(street.line, street.width / 2, -street.width / 2), street.surface)
        for end in (street.line[0], street.line[-1]):
            polygon(end + circle * street.width / 2, street.surface)
    for street in streets:
        _draw_markings(street, polygon)


def _cut(line, start, end):
    """The part of a polyline between two distances from its start."""
    reach = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(line, axis=0).T))])
    at = np.concatenate([[start], reach[(reach > start) & (reach < end)], [end]])
    return np.stack([np.interp(at, reach, line[:, k]) for k in (0, 1)], 1)


def _draw_markings(street, polygon):
    length = np.hypot(*np.diff(street.line, axis=0).T).sum()
    white, yellow, half = SURFACE["mark_white"], SURFACE["mark_yellow"], street.width / 2
    if street.median and length > 40:
        polygon(ribbon(_cut(street.line, 16, length - 16), 1.6, -1.6), SURFACE["lawn"])
    if not street.marked or length < 30:
        return
    inner = _cut(street.line, 13, length - 13)
    if street.kind == "avenue":
        if not street.median:
            polygon(ribbon(inner, 0.35, 0.1), yellow)
            polygon(ribbon(inner, -0.1, -0.35), yellow)
        for side in (-1, 1):
            for s in np.arange(14, length - 16, 6.0):
                polygon(ribbon(_cut(street.line, s, s + 3), side * half / 2 + 0.1, side * half / 2 - 0.1), white)
    else:
        for s in np.arange(13, length - 16, 7.0):
            polygon(ribbon(_cut(street.line, s, s + 3.5), 0.12, -0.12), white)
    if street.kind == "avenue":
        for s in (9.0, length - 12.0):  # zebra crossings
            for offset in np.arange(-half + 0.5, half - 0.4, 1.1):
                polygon(ribbon(_cut(street.line, s, s + 3), offset + 0.55, offset), white)


def median_trees(street):
    length = np.hypot(*np.diff(street.line, axis=0).T).sum()
    step = 9 + (street.line[0, 0] * 7.3) % 5
    species = int(abs(street.line[0, 1]) * 3.1) % 4
    points = [_cut(street.line, s, s + 0.1)[0] for s in np.arange(20, length - 20, step)]
    return [(x, y, 6.5, 2.0, (0, 1, 3, 6)[species], 0.0) for x, y in points]
