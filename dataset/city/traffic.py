"""Cars and people: drawn anew for every image, because the two views were never taken at the same moment."""

import numpy as np

from .objects import CAR, PERSON, Building
from .style import CARS


def _car(x, y, angle, rng):
    colour = tuple(CARS[rng.integers(len(CARS))] * rng.uniform(0.85, 1.1))
    return Building(x, y, rng.uniform(1.9, 2.4), rng.uniform(0.85, 1.0), angle, 1.5, 1.5, colour, colour, CAR)


def draw_traffic(raster, centre, reach, rng, keep_clear=6.0):
    """Cars on slots and lanes and people on sidewalks within `reach` metres of a point: a list of buildings."""
    found = []
    near = lambda x, y: (  # noqa: E731
        abs(x - centre[0]) < reach and abs(y - centre[1]) < reach
        and np.hypot(x - centre[0], y - centre[1]) > keep_clear
    )  # fmt: skip
    slots = raster.slots
    close = (np.abs(slots[:, :2] - centre) < reach).all(1)
    for x, y, angle in slots[close]:
        if rng.random() < 0.45 and near(x, y):
            found.append(_car(x, y, angle + rng.normal(0, 0.04), rng))
    for line, half in raster.lanes:
        middle, span = line[len(line) // 2], reach + 60
        if abs(middle[0] - centre[0]) > span or abs(middle[1] - centre[1]) > span:
            continue
        for _ in range(rng.poisson(0.5 + 0.12 * half)):
            x, y, angle = _beside(line, rng.uniform(0.15, 0.85), (half * 0.5) * (2 * rng.integers(2) - 1))
            if near(x, y):
                found.append(_car(x, y, angle, rng))
        for _ in range(rng.poisson(0.7)):
            x, y, angle = _beside(line, rng.uniform(0.1, 0.9), (half + 1.2) * (2 * rng.integers(2) - 1))
            if near(x, y):
                shirt = tuple(rng.uniform(0.1, 0.85, 3))
                found.append(Building(x, y, 0.3, 0.3, angle, 1.7, 1.7, shirt, shirt, PERSON))
    return found


def _beside(line, t, offset):
    """Position and heading at the share t of a polyline, `offset` metres to its left."""
    at = t * (len(line) - 1)
    k = min(int(at), len(line) - 2)
    d = line[k + 1] - line[k]
    d = d / max(np.hypot(*d), 1e-6)
    p = line[k] + (at - k) * (line[k + 1] - line[k]) + offset * np.array([-d[1], d[0]])
    return p[0], p[1], float(np.arctan2(d[1], d[0]))
