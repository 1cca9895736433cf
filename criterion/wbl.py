"""Weighted (B+1)-tuple loss (WBL), the paper's loss."""

import torch
import torch.nn.functional as F
from torch import nn

from criterion.similarity import cosine_similarities, mean_similarities
from utils.paper import WBL_ALPHA


class WBLoss(nn.Module):
    """L(q, k) = mean_i log(1 + sum_{j != i} exp(alpha (s_ij - s_ii))), averaged over both directions.

    That is the symmetric cross-entropy of alpha * s with the diagonal as targets, computed by log-sum-exp, in
    float32 under any precision of the network.

    Shapes: q, k (B, D) un-normalised, row i of both the same place -> (loss, mean positive similarity, mean
    negative similarity), three scalars; the last two carry no gradient.

    Raises:
        ValueError: shapes that differ, or B < 2.
    """

    def __init__(self, alpha=WBL_ALPHA):
        super().__init__()
        self.alpha = float(alpha)

    def forward(self, q, k):
        s = cosine_similarities(q, k)
        logits = self.alpha * s
        targets = torch.arange(len(s), device=s.device)
        loss = (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
        return loss, *mean_similarities(s)

    def extra_repr(self):
        return f"alpha={self.alpha:g}"
