"""Blocks with few buildings: parks, squares, lakes, fields and woods."""

import numpy as np

from .grounds import any_lawn, lay_court, lay_path, line_with_trees, pick
from .objects import HALL, HOUSE, PLAIN, SHOP, disc
from .style import SURFACE


def fill_park(site):
    rng, block = site.rng, site.block
    block.ground = any_lawn(site)
    surface = pick(site, "gravel", "sand", "paving_red", "sidewalk")
    hub = site.anywhere(0.35, 0.65)
    for s, t in ((0.05, 0.05), (0.95, 0.05), (0.95, 0.95), (0.05, 0.95), (0.5, 0.04), (0.5, 0.96)):
        if rng.random() < 0.55:
            lay_path(site, hub, site.point(s, t), surface)
    block.patches.append((disc(*hub, rng.uniform(3, 7), 18), pick(site, "paving_tan", "paving_red", "water", "sand")))
    site.take(*hub, 5)
    for _ in range(rng.integers(1, 5)):
        x, y = site.anywhere(0.15, 0.85)
        if site.fits(x, y, 6):
            what = rng.random()
            if what < 0.35:
                block.patches.append((disc(x, y, rng.uniform(5, 10), 16, 0.2, rng), SURFACE["water"]))
                site.take(x, y, 7)
            elif what < 0.6:
                lay_court(site, x, y, rng.uniform(0, np.pi))
            elif what < 0.8:
                block.patches.append(
                    (disc(x, y, rng.uniform(3, 6), 12, 0.2, rng), pick(site, "sand", "soil", "court_red"))
                )
            else:
                site.build(x, y, 4, 3, rng.uniform(0, np.pi), 3.4, True, HOUSE)
    for _ in range(rng.integers(2, 6)):  # groups of one kind of tree
        x, y = site.anywhere()
        species = int(rng.integers(0, 7))
        for dx, dy in rng.normal(0, 5, (rng.integers(3, 8), 2)):
            site.plant(x + dx, y + dy, species=species)
    site.scatter(6)


def fill_square(site):
    rng, block = site.rng, site.block
    block.ground = pick(site, "paving_tan", "paving_red", "sidewalk")
    band = pick(site, "paving_red", "sidewalk", "lawn_lush", "lawn")
    a, b = sorted(rng.uniform(0.1, 0.9, 2))
    block.patches.append(
        (np.array([site.point(a, 0.1), site.point(b, 0.1), site.point(b, 0.9), site.point(a, 0.9)]), band)
    )
    x, y = site.anywhere(0.3, 0.7)
    angle = rng.uniform(0, np.pi)
    colours = site.colours()
    if rng.random() < 0.6:  # a church with its tower
        site.build(x, y, 12, 5.5, angle, 8, True, HOUSE, colours=colours, bay=4, storey=8)
        tx, ty = x + 13 * np.cos(angle), y + 13 * np.sin(angle)
        site.build(tx, ty, 3, 3, angle, rng.uniform(17, 26), True, PLAIN, gap=-12, colours=colours)
    else:
        block.patches.append((disc(x, y, rng.uniform(5, 9), 20), SURFACE["water"]))
        site.take(x, y, 8)
    for _ in range(rng.integers(2, 5)):
        px, py = site.anywhere(0.12, 0.88)
        site.build(px, py, rng.uniform(4, 8), rng.uniform(4, 6), angle, 3.2 * rng.integers(1, 5), False, SHOP, gap=2)
    line_with_trees(site, 0.6)
    site.scatter(6)


def fill_lake(site):
    rng, block = site.rng, site.block
    block.ground = any_lawn(site)
    x, y = site.anywhere(0.4, 0.6)
    size = site.style.spacing * rng.uniform(0.25, 0.36)
    block.patches.append((disc(x, y, size + 2.5, 20, 0.08, rng), pick(site, "sand", "gravel", "meadow")))
    block.patches.append((disc(x, y, size, 20, 0.08, rng), SURFACE["water"]))
    site.take(x, y, size)
    for _ in range(rng.integers(0, 4)):
        px, py = site.anywhere()
        site.build(px, py, 5, 4, rng.uniform(0, np.pi), 3.2, True, HOUSE)
    site.scatter(14)


def fill_field(site):
    rng, block = site.rng, site.block
    block.ground = pick(site, "crop", "soil", "meadow", "lawn_dry")
    a = rng.uniform(0.25, 0.75)
    corners = ((0, 0), (a, 0), (a, 1), (0, 1)) if rng.random() < 0.5 else ((0, 0), (1, 0), (1, a), (0, a))
    block.patches.append(
        (np.array([site.point(*c) for c in corners]), pick(site, "crop", "soil", "meadow", "lawn_lush"))
    )
    if rng.random() < 0.6:
        x, y = site.anywhere(0.2, 0.8)
        angle = rng.uniform(0, np.pi)
        site.build(x, y, rng.uniform(7, 11), 5, angle, 5, True, HALL)
        site.build(*site.anywhere(0.2, 0.8), 6, 4, angle, 4, True, HOUSE)
    if rng.random() < 0.4:  # an orchard in rows
        s0, t0 = rng.uniform(0.1, 0.5, 2)
        for s in np.arange(s0, s0 + 0.4, 0.09):
            for t in np.arange(t0, t0 + 0.4, 0.09):
                site.plant(*site.point(s, t), height=4.5, species=5)
    site.scatter(4)


def fill_wood(site):
    rng, block = site.rng, site.block
    block.ground = pick(site, "wood_floor", "meadow", "wood_floor")
    for _ in range(rng.integers(0, 3)):
        x, y = site.anywhere(0.15, 0.85)
        block.patches.append((disc(x, y, rng.uniform(6, 13), 12, 0.3, rng), pick(site, "meadow", "lawn", "soil")))
        site.take(x, y, 8)
    if rng.random() < 0.4:
        site.build(*site.anywhere(0.2, 0.8), 5, 4, rng.uniform(0, np.pi), 3.2, True, HOUSE)
    species = int(rng.choice([0, 2, 2, 6, 1]))
    for _ in range(int(70 * min(site.style.tree_share, 1.2))):
        site.plant(*site.anywhere(0.04, 0.96), species=species if rng.random() < 0.65 else None, gap=0)
