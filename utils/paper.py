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

# Two processes, each taking the loss over its own half of the batch (see docs/faithful.md).
PUBLISHED_TUPLE = {"cvusa": 16, "cvact": 16, "vigor": 8}

TRANSGEO_ARCH = "deit_small_distilled_patch16_224"  # TransGeo's stage 1, on which FRM and WBL were tried as well

PUBLISHED_METRICS = {
    "cvusa": {"R@1": 97.06, "R@5": 99.25, "R@10": 99.47, "R@1%": 99.85},
    "cvact": {"R@1": 90.35, "R@5": 96.45, "R@10": 97.25, "R@1%": 98.74},
    "cvact_test": {"R@1": 72.15, "R@5": 91.93, "R@10": 94.05, "R@1%": 98.66},
    "vigor": {"R@1": 71.26, "R@5": 91.38, "R@10": 94.32, "R@1%": 99.52, "Hit": 82.41},
    "vigor_cross": {"R@1": 37.54, "R@5": 59.58, "R@10": 67.34, "R@1%": 94.28, "Hit": 40.66},
    "cvusa_deit": {"R@1": 95.52, "R@5": 98.66, "R@10": 99.13, "R@1%": 99.74},
    "cvact_deit": {"R@1": 88.60, "R@5": 95.35, "R@10": 96.26, "R@1%": 98.13},
    "cvact_test_deit": {"R@1": 69.52, "R@5": 89.79, "R@10": 92.36, "R@1%": 98.20},
}

PUBLISHED_PROTOCOLS = {
    ("cvusa", "val"): "cvusa",
    ("cvact", "val"): "cvact",
    ("cvact", "test"): "cvact_test",
    ("vigor", "test"): "vigor",
    ("vigor_cross", "test"): "vigor_cross",
}


def published_name(dataset, split, arch=None):
    """Key of `PUBLISHED_METRICS` for an evaluation's data set, split and network; None where nothing was published."""
    name = PUBLISHED_PROTOCOLS.get((dataset, split))
    with_deit = f"{name}_deit"
    return with_deit if arch == TRANSGEO_ARCH and with_deit in PUBLISHED_METRICS else name
