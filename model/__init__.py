"""The network: two encoders and the Feature Recombination Module."""

from model.frgeo import FRGeo
from model.recombination import FeatureRecombination

__all__ = ["FRGeo", "FeatureRecombination"]
