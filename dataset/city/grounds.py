"""Pieces that several kinds of blocks share: lawns, car parks, courts, paths, rows of street trees."""

import numpy as np

from .objects import rectangle
from .style import SURFACE


def any_lawn(site):
    return SURFACE[site.style.lawns[site.rng.integers(len(site.style.lawns))]]


def pick(site, *names):
    return SURFACE[names[site.rng.integers(len(names))]]


def line_with_trees(site, chance):
    rng = site.rng
    for k in range(4):
        if rng.random() < chance * site.style.tree_share:
            place, end = site.along(k, -1.2)
            s = 10.0
            species = int(rng.choice([0, 1, 3, 6]))
            gap = rng.uniform(7, 12)
            while s < end - 10:
                if rng.random() < 0.8:
                    x, y, _ = place(s)
                    site.plant(x, y, rng.uniform(5, 8), species, check=False)
                s += gap


def lay_parking(site, x, y, angle, columns, rows, surface):
    """A car park of rows of slots, with white lines."""
    block = site.block
    block.patches.append((rectangle(x, y, columns * 1.3 + 1, rows * 4.6 + 0.5, angle), surface))
    c, s = np.cos(angle), np.sin(angle)
    for row in range(rows):
        b = (row - (rows - 1) / 2) * 9.0
        for col in range(columns + 1):
            a = (col - columns / 2) * 2.6
            line = rectangle(x + a * c - b * s, y + a * s + b * c, 0.08, 2.3, angle)
            block.patches.append((line, SURFACE["mark_white"]))
            if col < columns:
                a += 1.3
                block.slots.append((x + a * c - b * s, y + a * s + b * c, angle + np.pi / 2))


def lay_court(site, x, y, angle):
    rng, block = site.rng, site.block
    colour = pick(site, "court_green", "court_red", "court_blue", "sand")
    long = rng.uniform(8, 13)
    block.patches.append(
        (rectangle(x, y, long + 1.5, 7, angle), pick(site, "court_green", "court_red", "asphalt_light"))
    )
    block.patches.append((rectangle(x, y, long, 5.6, angle), SURFACE["mark_white"]))
    block.patches.append((rectangle(x, y, long - 0.2, 5.4, angle), colour))
    block.patches.append((rectangle(x, y, 0.1, 5.4, angle), SURFACE["mark_white"]))
    site.take(x, y, 9)


def lay_path(site, start, end, surface, width=1.3):
    middle = (start + end) / 2
    d = end - start
    site.block.patches.append((rectangle(*middle, np.hypot(*d) / 2 + 1, width, np.arctan2(d[1], d[0])), surface))
