"""The benchmarks as pairs of images: CVUSA, CVACT, VIGOR, and a user's own pairs."""

from dataset.build import build_datasets
from dataset.cvact import CVACT
from dataset.cvusa import CVUSA
from dataset.pairs import Pairs
from dataset.vigor import VIGOR

__all__ = ["CVACT", "CVUSA", "VIGOR", "Pairs", "build_datasets"]
