"""What a city is made of (surfaces, walls, roofs, cars, trees), and the traits that tell one city from another."""

from dataclasses import dataclass
from typing import NamedTuple

# Colours are 8-bit RGB. The order of the surfaces is their id on the map.
SURFACES = {
    "asphalt_dark": (72, 73, 78), "asphalt_light": (128, 127, 126), "asphalt_brown": (104, 96, 88),
    "sidewalk": (178, 174, 166), "paving_red": (166, 104, 84), "paving_tan": (196, 176, 142),
    "gravel": (160, 150, 134), "lawn_lush": (84, 132, 52), "lawn": (112, 140, 70), "lawn_dry": (164, 154, 92),
    "meadow": (136, 140, 74), "soil": (124, 92, 66), "crop": (150, 160, 62), "wood_floor": (86, 84, 50),
    "water": (58, 88, 104), "pool": (92, 190, 208), "sand": (218, 200, 152), "court_green": (52, 122, 88),
    "court_red": (172, 76, 60), "court_blue": (58, 100, 162), "mark_white": (228, 228, 224),
    "mark_yellow": (220, 176, 62), "hedge": (62, 98, 44), "roof": (150, 150, 150),
}  # fmt: skip
DRYING = {"lawn_lush": 0.6, "lawn": 0.9, "lawn_dry": 0.5, "meadow": 0.9, "crop": 0.8, "hedge": 0.3}  # share, in autumn
SURFACE = {name: index for index, name in enumerate(SURFACES)}
WALLS = {
    "white": (226, 224, 216), "cream": (222, 206, 168), "brick": (158, 82, 62), "brown": (124, 92, 70),
    "ochre": (208, 162, 78), "blue": (122, 150, 182), "sage": (146, 166, 128), "rose": (206, 146, 134),
    "grey": (156, 158, 160), "slate": (88, 94, 104), "teal": (92, 146, 146), "glass": (110, 136, 160),
}  # fmt: skip
ROOFS = {
    "tile": (168, 84, 58), "slate": (84, 88, 98), "brown": (112, 86, 68), "grey": (148, 148, 146),
    "white": (216, 216, 210), "green": (96, 124, 102), "tar": (66, 64, 64), "tan": (186, 162, 126),
    "blue": (94, 120, 152),
}  # fmt: skip
CARS = [
    (226, 226, 226), (40, 42, 46), (128, 132, 136), (168, 40, 38), (42, 76, 140), (186, 184, 176), (88, 100, 82),
]  # fmt: skip
ROUND, CONE, COLUMN = range(3)  # shapes of a tree's crown


class Species(NamedTuple):
    """A kind of tree: colours of its crown in leaf and in autumn, the crown's shape, heights in metres."""

    leaf: tuple
    autumn: tuple
    shape: int
    heights: tuple


SPECIES = [
    Species((70, 106, 44), (158, 116, 52), ROUND, (7, 13)),  # oak
    Species((88, 118, 50), (188, 78, 42), ROUND, (6, 11)),  # maple
    Species((42, 74, 54), (44, 74, 54), CONE, (8, 17)),  # spruce
    Species((104, 130, 60), (196, 168, 70), COLUMN, (10, 17)),  # poplar
    Species((104, 52, 56), (112, 54, 48), ROUND, (5, 9)),  # copper beech
    Species((130, 144, 104), (134, 140, 98), ROUND, (4, 7)),  # olive
    Species((136, 156, 74), (210, 180, 72), ROUND, (7, 12)),  # birch
]


@dataclass(frozen=True)
class Style:
    """The traits of one city; lengths in metres, weights relative to each other."""

    name: str
    spacing: float = 78.0  # mean distance between street crossings
    disorder: float = 0.2  # crossings are moved by up to this share of the spacing
    warp: float = 42.0  # amplitude of the long waves that bend the street grid
    closed: float = 0.14  # share of streets left out
    diagonal: float = 0.06  # share of blocks cut by a diagonal street
    storeys: float = 1.0  # factor on the number of storeys
    tree_share: float = 1.0  # factor on the number of trees
    pitched: float = 0.75  # share of small buildings with a pitched roof
    walls: tuple = tuple(WALLS)
    roofs: tuple = tuple(ROOFS)
    species: tuple = (4, 3, 3, 1, 1, 1, 2)  # weights, in the order of SPECIES
    lawns: tuple = ("lawn_lush", "lawn", "lawn", "lawn_dry")
    walkway: str = "sidewalk"
    weights: tuple = (9, 4, 2, 3, 3, 1.5, 2.5, 1.5, 1.2, 2, 1.2)  # of the kinds of blocks, in the order of blocks.FILL
    sun_from_north: bool = False  # southern hemisphere
    latitude: float = 40.0  # of the map's origin, degrees
    longitude: float = -90.0


TOWN = Style("Town", latitude=40.0, longitude=-83.0)
CANBERRA = Style(
    "Canberra", spacing=84, warp=60, tree_share=1.3, lawns=("lawn", "lawn_dry", "lawn_dry", "meadow"),
    species=(3, 1, 1, 1, 1, 5, 2), sun_from_north=True, latitude=-35.3, longitude=149.12,
)  # fmt: skip
VIGOR_STYLES = (
    Style(
        "NewYork", spacing=68, disorder=0.1, warp=25, closed=0.08, storeys=2.2, tree_share=0.7, pitched=0.15,
        walls=("brick", "brick", "brown", "cream", "grey", "glass", "white", "slate"),
        roofs=("grey", "tar", "white", "tan", "green"),
        weights=(2, 10, 5, 2, 2.5, 1.5, 1.5, 2, 0.6, 0.3, 0.5), latitude=40.7101, longitude=-74.0091,
    ),
    Style(
        "Seattle", spacing=76, disorder=0.2, warp=45, storeys=1.1, tree_share=1.5, pitched=0.8,
        walls=("blue", "sage", "grey", "white", "slate", "brown", "teal", "ochre"),
        roofs=("slate", "grey", "brown", "green", "tar"), species=(2, 3, 8, 1, 1, 0, 2),
        lawns=("lawn_lush", "lawn_lush", "lawn"), weights=(9, 3, 2, 3, 3, 1.5, 2, 1, 2, 1, 2.5),
        latitude=47.5583, longitude=-122.3384,
    ),
    Style(
        "SanFrancisco", spacing=70, disorder=0.14, warp=50, diagonal=0.1, storeys=1.2, tree_share=0.6,
        pitched=0.3, walls=("white", "cream", "rose", "ochre", "teal", "blue", "white", "sage"),
        roofs=("white", "tan", "grey", "tile", "tar"), species=(2, 1, 1, 2, 1, 6, 1),
        lawns=("lawn_dry", "lawn_dry", "lawn", "meadow"), walkway="paving_tan",
        weights=(7, 7, 2, 2, 2, 1.5, 2, 2, 1, 1, 0.6), latitude=37.7601, longitude=-122.4474,
    ),
    Style(
        "Chicago", spacing=80, disorder=0.06, warp=15, closed=0.1, diagonal=0.09, storeys=1.5, pitched=0.5,
        walls=("brick", "cream", "brown", "grey", "glass", "white", "rose"),
        roofs=("tar", "grey", "brown", "white", "tile"), species=(4, 5, 1, 2, 1, 0, 2),
        weights=(6, 6, 3, 5, 2, 1.5, 3, 1.5, 1, 1.5, 0.5), latitude=41.8521, longitude=-87.6912,
    ),
)  # fmt: skip
