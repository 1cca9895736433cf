"""Weighted (B+1)-tuple loss (WBL), the paper's loss: similarities of a tuple, the loss, and what makes a tuple."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from utils.distributed import all_gather_with_grad
from utils.paper import WBL_ALPHA

LARGEST_ALPHA = 100.0  # limit of a learned temperature, as in CLIP


class WBLoss(nn.Module):
    """L(q, k) = mean_i log(1 + sum_{j != i} exp(alpha (s_ij - s_ii))), averaged over both directions.

    This equals the symmetric cross-entropy of alpha * s with the diagonal as targets. It is computed by log-sum-exp, in
    float32 under any precision of the network.

    Args:
        alpha: scale of the similarities.
        label_smoothing: share of the cross-entropy's targets that is spread over the tuple (the paper: 0).
        learned: make log alpha a parameter that starts from `alpha`, with alpha at most 100 (the paper: no).

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
        """The scale: a number, or a tensor if it is learned."""
        return self._alpha if self.log_alpha is None else self.log_alpha.exp()

    def forward(self, q, k):
        if self.log_alpha is not None:
            with torch.no_grad():  # clamps the parameter itself: clamping its exponential would end the gradient
                self.log_alpha.clamp_(max=math.log(LARGEST_ALPHA))
        s = cosine_similarities(q, k)
        logits = self.alpha * s
        targets = torch.arange(len(s), device=s.device)
        sides = [F.cross_entropy(side, targets, label_smoothing=self.label_smoothing) for side in (logits, logits.T)]
        return sum(sides) / 2, *mean_similarities(s)

    def extra_repr(self):
        return f"alpha={self._alpha:g}"


class TupleLoss(nn.Module):
    """Take a loss over tuples of `tuple_size` pairs instead of over whatever one process holds.

    The published numbers come from two processes that each take the loss over their own half of the batch;
    `tuple_size` gives the same loss on any number of processes.

    Args:
        loss: (q, k) -> (loss, mean positive, mean negative) over one tuple.
        tuple_size: pairs in a tuple; None takes all pairs at hand as one tuple.
        gather: take the pairs of all processes (gradients flow through the gather), rank after rank.

    Shapes: q, k (B, D) of this process -> the three scalars, averaged over tuples. With `gather` every process
    returns the loss of the global batch, and gradients averaged over processes (as DistributedDataParallel does)
    equal those of one process with the whole batch.

    Raises:
        ValueError: the pairs at hand do not divide into tuples.
    """

    def __init__(self, loss, tuple_size=None, gather=False):
        super().__init__()
        self.loss = loss
        self.tuple_size = tuple_size
        self.gather = gather

    def forward(self, q, k):
        if self.gather:
            q, k = all_gather_with_grad(q), all_gather_with_grad(k)
        size = self.tuple_size or len(q)
        if len(q) % size:
            raise ValueError(f"{len(q)} pairs cannot be cut into tuples of {size}")
        parts = [self.loss(a, b) for a, b in zip(q.split(size), k.split(size), strict=True)]
        return tuple(torch.stack(values).mean() for values in zip(*parts, strict=True))


def cosine_similarities(q, k):
    """Cosine similarity of every query with every reference of a tuple.

    Args:
        q, k: (B, D) descriptors, un-normalised, any float type; row i of both is the same place.

    Returns:
        (B, B) similarities s[i, j] = cos(q_i, k_j): float64 for float64 input, else float32, also under autocast.

    Raises:
        ValueError: shapes that differ, or fewer than two pairs (a tuple then has no negative).
    """
    if q.shape != k.shape or q.ndim != 2:
        raise ValueError(f"descriptors are {tuple(q.shape)} and {tuple(k.shape)}; expected two equal (B, D)")
    if len(q) < 2:
        raise ValueError(f"a tuple of {len(q)} pair has no negatives; expected at least 2 pairs")
    with torch.autocast(q.device.type, enabled=False):
        wide = torch.float64 if torch.float64 in (q.dtype, k.dtype) else torch.float32
        return F.normalize(q.to(wide), dim=1) @ F.normalize(k.to(wide), dim=1).T


def mean_similarities(s):
    """Mean of the positives (the diagonal) and of the negatives (the rest) of (B, B) similarities, detached."""
    s = s.detach()
    negative = (s.sum() - s.diagonal().sum()) / (s.numel() - len(s))
    return s.diagonal().mean(), negative
