"""The benchmarks as pairs of images: CVUSA, CVACT, VIGOR, and a user's own pairs.

Names are imported when asked for, so that `dataset.city`, which needs no torch, comes without it.
"""

from importlib import import_module

HOMES = {
    "CVACT": "dataset.cvact",
    "CVUSA": "dataset.cvusa",
    "VIGOR": "dataset.vigor",
    "Pairs": "dataset.pairs",
    "build_datasets": "dataset.build",
}

__all__ = ["CVACT", "CVUSA", "VIGOR", "Pairs", "build_datasets"]


def __getattr__(name):
    if name not in HOMES:
        raise AttributeError(f"module 'dataset' has no attribute {name!r}")
    return getattr(import_module(HOMES[name]), name)
