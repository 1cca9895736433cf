"""The cosine similarities that both losses start from."""

import torch
import torch.nn.functional as F


def cosine_similarities(q, k):
    """Cosine similarity of every query with every reference of a tuple, in float32 or wider.

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
        q, k = q.to(wide), k.to(wide)
        return F.normalize(q, dim=1) @ F.normalize(k, dim=1).T


def mean_similarities(s):
    """Mean of the positives (the diagonal) and of the negatives (the rest) of (B, B) similarities, detached."""
    s = s.detach()
    positive = s.diagonal().mean()
    negative = (s.sum() - s.diagonal().sum()) / (s.numel() - len(s))
    return positive, negative
