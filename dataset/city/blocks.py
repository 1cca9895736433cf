"""Fill a block according to its kind."""

from . import built, open_land
from .objects import Site

FILL = {
    "houses": built.fill_houses,
    "rows": built.fill_rows,
    "towers": built.fill_towers,
    "halls": built.fill_halls,
    "park": open_land.fill_park,
    "school": built.fill_school,
    "store": built.fill_store,
    "square": open_land.fill_square,
    "lake": open_land.fill_lake,
    "field": open_land.fill_field,
    "wood": open_land.fill_wood,
}


def fill_block(block, sides, clear, diagonal, style, rng):
    """Fill a block in place, according to its kind.

    Args:
        sides: four (points, 2) lines, counter-clockwise from the south.
        clear: per side, the distance from the line that belongs to the street.
        diagonal: the street that cuts the block, or None.
    """
    FILL[block.kind](Site(block, sides, clear, diagonal, style, rng))
