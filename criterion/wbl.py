"""Weighted (B+1)-tuple loss (WBL), the paper's loss."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from criterion.similarity import cosine_similarities, mean_similarities
from utils.paper import WBL_ALPHA

LARGEST_ALPHA = 100.0  # of a learned temperature, as in CLIP


class WBLoss(nn.Module):
    """L(q, k) = mean_i log(1 + sum_{j != i} exp(alpha (s_ij - s_ii))), averaged over both directions.

    That is the symmetric cross-entropy of alpha * s with the diagonal as targets, computed by log-sum-exp, in
    float32 under any precision of the network.

    Args:
        alpha: scale of the similarities.
        label_smoothing: of the cross-entropy (the paper: 0).
        learned: make log alpha a parameter that starts from `alpha`; alpha stays at most 100 (the paper: no).

    Shapes: q, k (B, D) un-normalised, row i of both the same place -> (loss, mean positive similarity, mean
    negative similarity), three scalars; the last two carry no gradient.

    Raises:
        ValueError: shapes that differ, or B < 2.
    """

    def __init__(self, alpha=WBL_ALPHA, label_smoothing=0.0, learned=False):
        super().__init__()
        self.label_smoothing = float(label_smoothing)
        self.log_alpha = nn.Parameter(torch.tensor(math.log(alpha))) if learned else None
        self._alpha = float(alpha)

    @property
    def alpha(self):
        """The scale: a number, or a tensor where it is learned."""
        return self._alpha if self.log_alpha is None else self.log_alpha.exp()

    def forward(self, q, k):
        if self.log_alpha is not None:
            with torch.no_grad():  # the parameter, not what follows from it: that would end its gradient
                self.log_alpha.clamp_(max=math.log(LARGEST_ALPHA))
        s = cosine_similarities(q, k)
        logits = self.alpha * s
        targets = torch.arange(len(s), device=s.device)
        sides = [F.cross_entropy(side, targets, label_smoothing=self.label_smoothing) for side in (logits, logits.T)]
        return sum(sides) / 2, *mean_similarities(s)

    def extra_repr(self):
        return f"alpha={self._alpha:g}"
