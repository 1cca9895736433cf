"""Blocks with buildings: houses, rows, towers, halls, stores and schools."""

import numpy as np

from .grounds import any_lawn, lay_court, lay_parking, lay_path, line_with_trees, pick
from .objects import HALL, HOUSE, OFFICE, PLAIN, SHOP, disc, rectangle
from .style import SURFACE


def fill_houses(site):
    rng, block = site.rng, site.block
    block.ground = any_lawn(site)
    depth = rng.uniform(4, 8)
    species = int(rng.choice(len(site.style.species), p=np.array(site.style.species) / sum(site.style.species)))
    for k in range(4):
        s = 13.0 + rng.uniform(0, 4)
        while True:
            hl, hw = rng.uniform(4.5, 7.5), rng.uniform(3.6, 5)
            setback = depth + rng.uniform(-2, 2) + hw
            place, length = site.along(k, setback)
            if s + hl > length - 12:
                break
            if rng.random() < 0.12:  # an empty lot
                _empty_lot(site, *place(s + hl), hl, hw)
                s += 2 * hl + rng.uniform(3, 6)
                continue
            x, y, angle = place(s + hl)
            turn = np.pi / 2 if rng.random() < 0.3 else 0.0
            storeys = rng.choice([1, 1, 2, 2, 3]) * site.style.storeys**0.5
            pitched = rng.random() < site.style.pitched
            if site.build(x, y, hl, hw, angle + turn, 2.9 * storeys + 0.3, pitched, HOUSE, bay=rng.uniform(2.2, 3.4)):
                _front_garden(site, place, s, hl, hw, setback, k, species)
            s += 2 * hl + rng.uniform(3, 7)
    for _ in range(rng.poisson(3)):
        x, y = site.anywhere(0.3, 0.7)
        if site.fits(x, y, 3.2):
            if rng.random() < 0.4:
                block.patches.append((disc(x, y, rng.uniform(2.2, 3.6), 9, 0.2, rng), SURFACE["pool"]))
            else:
                site.build(x, y, 2, 1.6, rng.uniform(0, np.pi), 2.4, True, PLAIN)
    site.scatter(16, (0.15, 0.85), (0.15, 0.85))


def _empty_lot(site, x, y, angle, hl, hw):
    lot = pick(site, "soil", "gravel", "sand", "meadow")
    if site.fits(x, y, hw):
        site.block.patches.append((rectangle(x, y, hl + 1, hw + 3, angle), lot))
        site.take(x, y, hw)


def _front_garden(site, place, s, hl, hw, setback, k, species):
    """Driveway with a slot, hedge, front trees."""
    rng, block = site.rng, site.block
    if rng.random() < 0.75:
        at = s + (0.8 if rng.random() < 0.5 else 2 * hl - 0.8)
        x, y, angle = place(at, setback / 2 - 1)
        block.patches.append(
            (
                rectangle(x, y, 1.5, setback / 2 + 1.8, angle),
                pick(site, "sidewalk", "gravel", "paving_red", "asphalt_dark"),
            )
        )
        block.slots.append((x, y, angle + np.pi / 2))
    if rng.random() < 0.25:
        x, y, angle = place(s + hl, 0.8)
        block.hedges.append((rectangle(x, y, hl * 0.7, 0.5, angle), float(rng.uniform(0.8, 1.4))))
    if rng.random() < 0.45 * site.style.tree_share:
        x, y, _ = place(s + rng.uniform(0.2, 1.8) * hl, rng.uniform(1.5, max(setback - hw - 1.5, 1.6)))
        site.plant(x, y, species=species if rng.random() < 0.5 else None, gap=-1.5)


def fill_rows(site):
    rng, block = site.rng, site.block
    block.ground = SURFACE[site.style.walkway]
    court = pick(site, "lawn", "paving_tan", "paving_red", "gravel", "lawn_lush")
    inner = np.array([site.point(s, t) for s, t in ((0.26, 0.26), (0.74, 0.26), (0.74, 0.74), (0.26, 0.74))])
    block.patches.append((inner, court))
    base, hw = rng.uniform(2, 4.6) * site.style.storeys, rng.uniform(4.5, 6.5)
    for k in range(4):
        if rng.random() < 0.12:
            continue
        s = 6.0 + hw
        place, end = site.along(k, hw + 0.5)
        end -= 7 + hw
        while s < end - 4:
            hl = min(rng.uniform(3.5, 9), (end - s) / 2)
            if rng.random() < 0.14:  # a gap in the row: a yard or a pocket park
                x, y, angle = place(s + hl)
                block.patches.append((rectangle(x, y, hl, hw, angle), pick(site, "lawn", "gravel", "asphalt_light")))
                site.plant(x, y)
            else:
                x, y, angle = place(s + hl)
                storeys = max(2, round(base + rng.normal(0, 0.8)))
                pitched = rng.random() < site.style.pitched * 0.5
                extra = {"claim": min(hl, hw), "bay": rng.uniform(2, 3.2), "storey": 3.2}
                kind = SHOP if rng.random() < 0.5 else OFFICE
                site.build(x, y, hl, hw, angle, 3.2 * storeys + 0.8, pitched, kind, gap=-4, **extra)
            s += 2 * hl
    site.scatter(5, (0.3, 0.7), (0.3, 0.7))
    line_with_trees(site, 0.45)


def fill_towers(site):
    rng, block = site.rng, site.block
    block.ground = pick(site, "sidewalk", "paving_tan", "paving_red", "lawn", "lawn", "lawn_lush")
    hub, path = site.anywhere(0.35, 0.65), pick(site, "sidewalk", "paving_tan", "paving_red", "gravel")
    for s, t in rng.uniform(0.02, 0.98, (rng.integers(2, 6), 2)):
        lay_path(site, hub, site.point(s, t), path, width=rng.uniform(1, 3))
    for _ in range(rng.integers(2, 6)):
        x, y = site.anywhere(0.2, 0.8)
        hl, hw = rng.uniform(7, 14), rng.uniform(6, 10)
        height = 3.4 * rng.integers(4, 10) * site.style.storeys**0.5
        extra = {"bay": rng.uniform(1.6, 3), "storey": 3.4}
        site.build(x, y, hl, hw, site.street_angle(), height, False, OFFICE, gap=4, **extra)
    for _ in range(rng.integers(1, 4)):
        x, y = site.anywhere(0.15, 0.85)
        if site.fits(x, y, 5):
            ground = pick(site, "lawn_lush", "water", "paving_red", "lawn")
            block.patches.append((disc(x, y, rng.uniform(4, 8), 18), ground))
    site.scatter(12)
    line_with_trees(site, 0.5)


def fill_halls(site):
    rng, block = site.rng, site.block
    block.ground = pick(site, "gravel", "asphalt_light", "asphalt_brown", "meadow")
    angle = site.street_angle()
    for _ in range(rng.integers(3, 7)):
        x, y = site.anywhere(0.22, 0.78)
        hl, hw = rng.uniform(8, 18), rng.uniform(6, 11)
        kind, pitched = (HALL, rng.random() < 0.4)
        site.build(
            x,
            y,
            hl,
            hw,
            angle + (rng.random() < 0.3) * np.pi / 2,
            rng.uniform(5, 9),
            pitched,
            kind,
            gap=3,
            bay=5,
        )
    for _ in range(rng.integers(2, 7)):  # stacks of containers
        x, y = site.anywhere(0.12, 0.88)
        for n in range(rng.integers(1, 4)):
            colour = tuple(rng.uniform(0.15, 0.8, 3))
            b = n * 2.7
            at, height = (x - b * np.sin(angle), y + b * np.cos(angle)), 2.6 * rng.integers(1, 3)
            site.build(*at, 3.1, 1.25, angle, height, kind=PLAIN, gap=-2.2, claim=1.6, colours=(colour, colour))
    x, y = site.anywhere(0.25, 0.75)
    if site.fits(x, y, 9):
        lay_parking(site, x, y, angle, rng.integers(5, 9), 2, pick(site, "asphalt_dark", "asphalt_light"))
        site.take(x, y, 9)
    site.scatter(5)


def fill_store(site):
    rng, block = site.rng, site.block
    block.ground = pick(site, "asphalt_dark", "asphalt_light", "lawn")
    angle = site.street_angle()
    x, y = site.anywhere(0.3, 0.7)
    site.build(
        x,
        y,
        rng.uniform(12, 18),
        rng.uniform(8, 12),
        angle,
        rng.uniform(4.5, 7),
        False,
        SHOP,
        bay=4,
        storey=5,
    )
    for _ in range(7):
        x, y = site.anywhere(0.15, 0.85)
        if site.fits(x, y, 8):
            lay_parking(
                site,
                x,
                y,
                angle,
                rng.integers(5, 10),
                rng.integers(1, 3),
                pick(site, "asphalt_dark", "asphalt_light"),
            )
            site.take(x, y, 8)
    site.build(*site.anywhere(0.15, 0.85), 6, 4, angle, 4, rng.random() < 0.4, SHOP, bay=3)
    for _ in range(rng.integers(1, 4)):  # islands of lawn
        x, y = site.anywhere(0.12, 0.88)
        if site.fits(x, y, 3):
            block.patches.append((disc(x, y, rng.uniform(2.5, 5), 10, 0.2, rng), any_lawn(site)))
            site.plant(x, y)
    site.scatter(4)


def fill_school(site):
    rng, block = site.rng, site.block
    block.ground = any_lawn(site)
    angle = site.street_angle()
    x, y = site.anywhere(0.25, 0.75)
    hl = rng.uniform(11, 18)
    colours = site.colours()
    site.build(x, y, hl, 6, angle, 7.2, rng.random() < 0.4, OFFICE, colours=colours, bay=2.6, storey=3.5)
    wing = angle + np.pi / 2
    side = rng.choice([-1, 1])
    wx, wy = x + side * hl * 0.7 * np.cos(angle), y + side * hl * 0.7 * np.sin(angle)
    d = rng.choice([-12, 12])
    site.build(wx + d * np.cos(wing), wy + d * np.sin(wing), 8, 5, wing, 4, False, OFFICE, gap=-9, colours=colours)
    for _ in range(6):
        x, y = site.anywhere(0.2, 0.8)
        if site.fits(x, y, 9):
            lay_court(site, x, y, angle + (rng.random() < 0.3) * np.pi / 2)
    site.scatter(12)
