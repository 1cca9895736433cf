"""Losses over pairs of descriptors, and sharpness-aware minimisation."""

from criterion.sam import SAM
from criterion.soft_triplet import SoftTripletLoss
from criterion.wbl import TupleLoss, WBLoss

__all__ = ["SAM", "SoftTripletLoss", "TupleLoss", "WBLoss"]
