"""Soft-margin triplet loss of TransGeo, the loss that WBL is compared with."""

import torch
import torch.nn.functional as F
from torch import nn

from criterion.wbl import cosine_similarities, mean_similarities
from utils.paper import SOFT_TRIPLET_ALPHA


class SoftTripletLoss(nn.Module):
    """Mean over ordered pairs i != j of log(1 + exp(alpha (s_ij - s_ii))), averaged over both directions.

    Shapes and errors as `WBLoss`.
    """

    def __init__(self, alpha=SOFT_TRIPLET_ALPHA):
        super().__init__()
        self.alpha = float(alpha)

    def forward(self, q, k):
        s = cosine_similarities(q, k)
        positive = s.diagonal()
        negatives = ~torch.eye(len(s), dtype=torch.bool, device=s.device)
        by_query = F.softplus(self.alpha * (s - positive[:, None]))[negatives].mean()
        by_reference = F.softplus(self.alpha * (s - positive[None, :]))[negatives].mean()
        return (by_query + by_reference) / 2, *mean_similarities(s)

    def extra_repr(self):
        return f"alpha={self.alpha:g}"
