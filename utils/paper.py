"""Constants of the paper, each once: input sizes, cities, published results.

Source: Zhang and Zhu, "Aligning Geometric Spatial Layout in Cross-View Geo-Localization via Feature
Recombination", AAAI 2024 (experiments section and Tables 1 to 3), and the released README.
"""

from typing import NamedTuple


class InputSizes(NamedTuple):
    """Network input sizes in pixels, (height, width)."""

    ground: tuple[int, int]
    aerial: tuple[int, int]


INPUT_SIZES = {
    "cvusa": InputSizes(ground=(128, 512), aerial=(256, 256)),
    "cvact": InputSizes(ground=(128, 512), aerial=(256, 256)),
    "vigor": InputSizes(ground=(320, 640), aerial=(320, 320)),
    "pairs": InputSizes(ground=(128, 512), aerial=(256, 256)),  # own imagery: CVUSA's sizes
}

VIGOR_CITIES = ("NewYork", "Seattle", "SanFrancisco", "Chicago")
VIGOR_CROSS_CITIES = {"train": ("NewYork", "Seattle"), "test": ("SanFrancisco", "Chicago")}

WBL_ALPHA = 10.0
SOFT_TRIPLET_ALPHA = 20.0  # TransGeo's soft-margin triplet, the loss WBL is compared with

MINING_POOL = 40_000  # items that one epoch's hard negatives are drawn from
MINING_NEIGHBOURS = 100  # hard candidates kept per item

# Two processes, each taking the loss over its own half of the batch (see README, "Faithful to the paper").
PUBLISHED_TUPLE = {"cvusa": 16, "cvact": 16, "vigor": 8}

PUBLISHED_METRICS = {
    "cvusa": {"R@1": 97.06, "R@5": 99.25, "R@10": 99.47, "R@1%": 99.85},
    "cvact": {"R@1": 90.35, "R@5": 96.45, "R@10": 97.25, "R@1%": 98.74},
    "vigor": {"R@1": 71.26, "R@5": 91.38, "R@10": 94.32, "R@1%": 99.52, "Hit": 82.41},
    "vigor_cross": {"R@1": 37.54, "R@5": 59.58, "R@10": 67.34, "R@1%": 94.28, "Hit": 40.66},
}
