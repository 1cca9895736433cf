"""Losses over pairs of descriptors, and sharpness-aware minimisation."""

from criterion.sam import SAM
from criterion.soft_triplet import SoftTripletLoss
from criterion.tuples import TupleLoss
from criterion.wbl import WBLoss

__all__ = ["SAM", "SoftTripletLoss", "TupleLoss", "WBLoss"]
