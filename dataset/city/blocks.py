"""How each kind of block is filled: one function per kind, chosen by name."""

import numpy as np

from .objects import HALL, HOUSE, OFFICE, PLAIN, SHOP, Site, disc, rectangle
from .style import SURFACE


def fill_block(block, sides, clear, diagonal, style, rng):
    """Fill a block in place, according to its kind.

    Args:
        sides: four (points, 2) lines, counter-clockwise from the south.
        clear: per side, the distance from the line that belongs to the street.
        diagonal: the street that cuts the block, or None.
    """
    site = Site(block, sides, clear, diagonal, style, rng)
    globals()[f"_fill_{block.kind}"](site)


def _lawn(site):
    return SURFACE[site.style.lawns[site.rng.integers(len(site.style.lawns))]]


def _pick(site, *names):
    return SURFACE[names[site.rng.integers(len(names))]]


def _fill_houses(site):
    rng, block = site.rng, site.block
    block.ground = _lawn(site)
    depth = rng.uniform(4, 8)
    species = int(
        rng.choice(len(site.style.species), p=np.array(site.style.species) / sum(site.style.species))
    )
    for k in range(4):
        s = 13.0 + rng.uniform(0, 4)
        while True:
            hl, hw = rng.uniform(4.5, 7.5), rng.uniform(3.6, 5)
            setback = depth + rng.uniform(-2, 2) + hw
            place, _, end = site.frames(k, setback, 0, 12)
            if s + hl > end:
                break
            if rng.random() < 0.12:  # an empty lot
                _empty_lot(site, *place(s + hl), hl, hw)
                s += 2 * hl + rng.uniform(3, 6)
                continue
            x, y, angle = place(s + hl)
            turn = np.pi / 2 if rng.random() < 0.3 else 0.0
            storeys = rng.choice([1, 1, 2, 2, 3]) * site.style.storeys**0.5
            pitched = rng.random() < site.style.pitched
            if site.build(
                x, y, hl, hw, angle + turn, 2.9 * storeys + 0.3, pitched, HOUSE, bay=rng.uniform(2.2, 3.4)
            ):
                _front_garden(site, place, s, hl, hw, setback, k, species)
            s += 2 * hl + rng.uniform(3, 7)
    for _ in range(rng.poisson(3)):
        x, y = site.point(*rng.uniform(0.3, 0.7, 2))
        if site.fits(x, y, 3.2):
            if rng.random() < 0.4:
                block.patches.append((disc(x, y, rng.uniform(2.2, 3.6), 9, 0.2, rng), SURFACE["pool"]))
            else:
                site.build(x, y, 2, 1.6, rng.uniform(0, np.pi), 2.4, True, PLAIN)
    site.scatter(11, (0.2, 0.8), (0.2, 0.8))


def _empty_lot(site, x, y, angle, hl, hw):
    lot = _pick(site, "soil", "gravel", "sand", "meadow")
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
                _pick(site, "sidewalk", "gravel", "paving_red", "asphalt_dark"),
            )
        )
        block.slots.append((x, y, angle + np.pi / 2))
    if rng.random() < 0.25:
        x, y, angle = place(s + hl, 0.8)
        block.hedges.append((rectangle(x, y, hl * 0.7, 0.5, angle), float(rng.uniform(0.8, 1.4))))
    if rng.random() < 0.45 * site.style.tree_share:
        x, y, _ = place(s + rng.uniform(0.2, 1.8) * hl, rng.uniform(1.5, max(setback - hw - 1.5, 1.6)))
        site.plant(x, y, species=species if rng.random() < 0.5 else None, gap=-1.5)


def _fill_rows(site):
    rng, block = site.rng, site.block
    block.ground = SURFACE[site.style.walkway]
    court = _pick(site, "lawn", "paving_tan", "paving_red", "gravel", "lawn_lush")
    inner = np.array([site.point(s, t) for s, t in ((0.26, 0.26), (0.74, 0.26), (0.74, 0.74), (0.26, 0.74))])
    block.patches.append((inner, court))
    base, hw = rng.uniform(2, 4.6) * site.style.storeys, rng.uniform(4.5, 6.5)
    for k in range(4):
        if rng.random() < 0.12:
            continue
        s = 6.0 + hw
        place, _, end = site.frames(k, hw + 0.5, 0, 7 + hw)
        while s < end - 4:
            hl = min(rng.uniform(3.5, 9), (end - s) / 2)
            if rng.random() < 0.14:  # a gap in the row: a yard or a pocket park
                x, y, angle = place(s + hl)
                block.patches.append(
                    (rectangle(x, y, hl, hw, angle), _pick(site, "lawn", "gravel", "asphalt_light"))
                )
                site.plant(x, y)
            else:
                x, y, angle = place(s + hl)
                storeys = max(2, round(base + rng.normal(0, 0.8)))
                site.build(
                    x, y, hl, hw, angle, 3.2 * storeys + 0.8, rng.random() < site.style.pitched * 0.5, SHOP if rng.random() < 0.5
                    else OFFICE, gap=-4, claim=min(hl, hw), bay=rng.uniform(2, 3.2), storey=3.2,
                )  # fmt: skip
            s += 2 * hl
    site.scatter(5, (0.3, 0.7), (0.3, 0.7))
    _street_trees(site, 0.35)


def _street_trees(site, chance):
    rng = site.rng
    for k in range(4):
        if rng.random() < chance * site.style.tree_share:
            place, s, end = site.frames(k, -1.2, 10, 10)
            species = int(rng.choice([0, 1, 3, 6]))
            gap = rng.uniform(7, 12)
            while s < end:
                if rng.random() < 0.8:
                    x, y, _ = place(s)
                    site.plant(x, y, rng.uniform(5, 8), species, check=False)
                s += gap


def _fill_towers(site):
    rng, block = site.rng, site.block
    block.ground = _pick(site, "sidewalk", "paving_tan", "paving_red", "lawn", "lawn")
    for _ in range(rng.integers(2, 6)):
        x, y = site.point(*rng.uniform(0.2, 0.8, 2))
        hl, hw = rng.uniform(7, 14), rng.uniform(6, 10)
        place, _, _ = site.frames(rng.integers(4), 0, 0, 0)
        site.build(
            x, y, hl, hw, place(20)[2], 3.4 * rng.integers(4, 10) * site.style.storeys**0.5, False, OFFICE, gap=4, storey=3.4,
            bay=rng.uniform(1.6, 3),
        )  # fmt: skip
    for _ in range(rng.integers(1, 4)):
        x, y = site.point(*rng.uniform(0.15, 0.85, 2))
        if site.fits(x, y, 5):
            ground = _pick(site, "lawn_lush", "water", "paving_red", "lawn")
            block.patches.append((disc(x, y, rng.uniform(4, 8), 18), ground))
    site.scatter(12)
    _street_trees(site, 0.5)


def _parking(site, x, y, angle, columns, rows, surface):
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


def _fill_halls(site):
    rng, block = site.rng, site.block
    block.ground = _pick(site, "gravel", "asphalt_light", "asphalt_brown", "meadow")
    place, _, _ = site.frames(rng.integers(4), 0, 0, 0)
    angle = place(25)[2]
    for _ in range(rng.integers(3, 7)):
        x, y = site.point(*rng.uniform(0.22, 0.78, 2))
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
        x, y = site.point(*rng.uniform(0.12, 0.88, 2))
        for n in range(rng.integers(1, 4)):
            colour = tuple(rng.uniform(0.15, 0.8, 3))
            b = n * 2.7
            site.build(
                x - b * np.sin(angle), y + b * np.cos(angle), 3.1, 1.25, angle, 2.6 * rng.integers(1, 3), False, PLAIN, gap=-2.2,
                claim=1.6, colours=(colour, colour),
            )  # fmt: skip
    x, y = site.point(*rng.uniform(0.25, 0.75, 2))
    if site.fits(x, y, 9):
        _parking(site, x, y, angle, rng.integers(5, 9), 2, _pick(site, "asphalt_dark", "asphalt_light"))
        site.take(x, y, 9)
    site.scatter(5)


def _fill_store(site):
    rng, block = site.rng, site.block
    block.ground = _pick(site, "asphalt_dark", "asphalt_light", "lawn")
    place, _, _ = site.frames(rng.integers(4), 0, 0, 0)
    angle = place(25)[2]
    x, y = site.point(*rng.uniform(0.3, 0.7, 2))
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
        x, y = site.point(*rng.uniform(0.15, 0.85, 2))
        if site.fits(x, y, 8):
            _parking(
                site,
                x,
                y,
                angle,
                rng.integers(5, 10),
                rng.integers(1, 3),
                _pick(site, "asphalt_dark", "asphalt_light"),
            )
            site.take(x, y, 8)
    site.build(*site.point(*rng.uniform(0.15, 0.85, 2)), 6, 4, angle, 4, rng.random() < 0.4, SHOP, bay=3)
    for _ in range(rng.integers(1, 4)):  # islands of lawn
        x, y = site.point(*rng.uniform(0.12, 0.88, 2))
        if site.fits(x, y, 3):
            block.patches.append((disc(x, y, rng.uniform(2.5, 5), 10, 0.2, rng), _lawn(site)))
            site.plant(x, y)
    site.scatter(4)


def _court(site, x, y, angle):
    rng, block = site.rng, site.block
    colour = _pick(site, "court_green", "court_red", "court_blue", "sand")
    long = rng.uniform(8, 13)
    block.patches.append(
        (rectangle(x, y, long + 1.5, 7, angle), _pick(site, "court_green", "court_red", "asphalt_light"))
    )
    block.patches.append((rectangle(x, y, long, 5.6, angle), SURFACE["mark_white"]))
    block.patches.append((rectangle(x, y, long - 0.2, 5.4, angle), colour))
    block.patches.append((rectangle(x, y, 0.1, 5.4, angle), SURFACE["mark_white"]))
    site.take(x, y, 9)


def _fill_school(site):
    rng, block = site.rng, site.block
    block.ground = _lawn(site)
    place, _, _ = site.frames(rng.integers(4), 0, 0, 0)
    angle = place(25)[2]
    x, y = site.point(*rng.uniform(0.25, 0.75, 2))
    hl = rng.uniform(11, 18)
    colours = site.colours()
    site.build(x, y, hl, 6, angle, 7.2, rng.random() < 0.4, OFFICE, colours=colours, bay=2.6, storey=3.5)
    wing = angle + np.pi / 2
    side = rng.choice([-1, 1])
    wx, wy = x + side * hl * 0.7 * np.cos(angle), y + side * hl * 0.7 * np.sin(angle)
    d = rng.choice([-12, 12])
    site.build(
        wx + d * np.cos(wing), wy + d * np.sin(wing), 8, 5, wing, 4, False, OFFICE, gap=-9, colours=colours
    )
    for _ in range(6):
        x, y = site.point(*rng.uniform(0.2, 0.8, 2))
        if site.fits(x, y, 9):
            _court(site, x, y, angle + (rng.random() < 0.3) * np.pi / 2)
    site.scatter(12)


def _path(site, start, end, surface, width=1.3):
    middle = (start + end) / 2
    d = end - start
    site.block.patches.append(
        (rectangle(*middle, np.hypot(*d) / 2 + 1, width, np.arctan2(d[1], d[0])), surface)
    )


def _fill_park(site):
    rng, block = site.rng, site.block
    block.ground = _lawn(site)
    surface = _pick(site, "gravel", "sand", "paving_red", "sidewalk")
    hub = site.point(*rng.uniform(0.35, 0.65, 2))
    for s, t in ((0.05, 0.05), (0.95, 0.05), (0.95, 0.95), (0.05, 0.95), (0.5, 0.04), (0.5, 0.96)):
        if rng.random() < 0.55:
            _path(site, hub, site.point(s, t), surface)
    block.patches.append(
        (disc(*hub, rng.uniform(3, 7), 18), _pick(site, "paving_tan", "paving_red", "water", "sand"))
    )
    site.take(*hub, 5)
    for _ in range(rng.integers(1, 5)):
        x, y = site.point(*rng.uniform(0.15, 0.85, 2))
        if site.fits(x, y, 6):
            what = rng.random()
            if what < 0.35:
                block.patches.append((disc(x, y, rng.uniform(5, 10), 16, 0.2, rng), SURFACE["water"]))
                site.take(x, y, 7)
            elif what < 0.6:
                _court(site, x, y, rng.uniform(0, np.pi))
            elif what < 0.8:
                block.patches.append(
                    (disc(x, y, rng.uniform(3, 6), 12, 0.2, rng), _pick(site, "sand", "soil", "court_red"))
                )
            else:
                site.build(x, y, 4, 3, rng.uniform(0, np.pi), 3.4, True, HOUSE)
    for _ in range(rng.integers(2, 6)):  # groups of one kind of tree
        x, y = site.point(*rng.uniform(0.1, 0.9, 2))
        species = int(rng.integers(0, 7))
        for dx, dy in rng.normal(0, 5, (rng.integers(3, 8), 2)):
            site.plant(x + dx, y + dy, species=species)
    site.scatter(6)


def _fill_square(site):
    rng, block = site.rng, site.block
    block.ground = _pick(site, "paving_tan", "paving_red", "sidewalk")
    band = _pick(site, "paving_red", "sidewalk", "lawn_lush", "lawn")
    a, b = sorted(rng.uniform(0.1, 0.9, 2))
    block.patches.append(
        (np.array([site.point(a, 0.1), site.point(b, 0.1), site.point(b, 0.9), site.point(a, 0.9)]), band)
    )
    x, y = site.point(*rng.uniform(0.3, 0.7, 2))
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
        px, py = site.point(*rng.uniform(0.12, 0.88, 2))
        site.build(
            px, py, rng.uniform(4, 8), rng.uniform(4, 6), angle, 3.2 * rng.integers(1, 5), False, SHOP, gap=2
        )
    _street_trees(site, 0.6)
    site.scatter(6)


def _fill_lake(site):
    rng, block = site.rng, site.block
    block.ground = _lawn(site)
    x, y = site.point(*rng.uniform(0.4, 0.6, 2))
    size = site.style.spacing * rng.uniform(0.25, 0.36)
    block.patches.append((disc(x, y, size + 2.5, 20, 0.08, rng), _pick(site, "sand", "gravel", "meadow")))
    block.patches.append((disc(x, y, size, 20, 0.08, rng), SURFACE["water"]))
    site.take(x, y, size)
    for _ in range(rng.integers(0, 4)):
        px, py = site.point(*rng.uniform(0.1, 0.9, 2))
        site.build(px, py, 5, 4, rng.uniform(0, np.pi), 3.2, True, HOUSE)
    site.scatter(14)


def _fill_field(site):
    rng, block = site.rng, site.block
    block.ground = _pick(site, "crop", "soil", "meadow", "lawn_dry")
    a = rng.uniform(0.25, 0.75)
    corners = ((0, 0), (a, 0), (a, 1), (0, 1)) if rng.random() < 0.5 else ((0, 0), (1, 0), (1, a), (0, a))
    block.patches.append(
        (np.array([site.point(*c) for c in corners]), _pick(site, "crop", "soil", "meadow", "lawn_lush"))
    )
    if rng.random() < 0.6:
        x, y = site.point(*rng.uniform(0.2, 0.8, 2))
        angle = rng.uniform(0, np.pi)
        site.build(x, y, rng.uniform(7, 11), 5, angle, 5, True, HALL)
        site.build(*site.point(*rng.uniform(0.2, 0.8, 2)), 6, 4, angle, 4, True, HOUSE)
    if rng.random() < 0.4:  # an orchard in rows
        s0, t0 = rng.uniform(0.1, 0.5, 2)
        for s in np.arange(s0, s0 + 0.4, 0.09):
            for t in np.arange(t0, t0 + 0.4, 0.09):
                site.plant(*site.point(s, t), height=4.5, species=5)
    site.scatter(4)


def _fill_wood(site):
    rng, block = site.rng, site.block
    block.ground = _pick(site, "wood_floor", "meadow", "wood_floor")
    for _ in range(rng.integers(0, 3)):
        x, y = site.point(*rng.uniform(0.15, 0.85, 2))
        block.patches.append(
            (disc(x, y, rng.uniform(6, 13), 12, 0.3, rng), _pick(site, "meadow", "lawn", "soil"))
        )
        site.take(x, y, 8)
    if rng.random() < 0.4:
        site.build(*site.point(*rng.uniform(0.2, 0.8, 2)), 5, 4, rng.uniform(0, np.pi), 3.2, True, HOUSE)
    species = int(rng.choice([0, 2, 2, 6, 1]))
    for _ in range(int(70 * min(site.style.tree_share, 1.2))):
        site.plant(
            *site.point(*rng.uniform(0.04, 0.96, 2)), species=species if rng.random() < 0.65 else None, gap=0
        )
