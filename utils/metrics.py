"""Retrieval metrics of the field, exact, and without ever holding an N x M matrix.

Similarities are compared in 8-bit, bfloat16 or float32 blocks first. Every comparison within the error bound of that
product is made again, in the end in float64 (`utils.ranking`), so the ranks are float64's for every query.
Two similarities that float64 itself cannot tell apart (equal rows of the gallery, say) are a tie; a tie outranks
nothing.
"""

from typing import NamedTuple

import numpy as np
import torch

from utils.descriptors import DescriptorError, Descriptors, Turned, exact_similarity, rounding
from utils.ranking import CHUNK, count_above


class Ranks(NamedTuple):
    """Per query (N,) int64: gallery items strictly more similar to the query than ...

    positive: ... its positive.
    hit: ... its positive, semi-positives left out (None without semi-positives).
    cover: ... the best of the tiles that cover it (None without semi-positives).

    nearest: (N, k) int64, the k gallery items most similar to each query, best first (None where not asked for).
    near: ... the best of the items that lie near it, its positive among them (None where not asked for).
    """

    positive: np.ndarray
    hit: np.ndarray | None = None
    cover: np.ndarray | None = None
    nearest: np.ndarray | None = None
    near: np.ndarray | None = None


def retrieval_metrics(query, reference, labels, semi_positives=None, chunk=CHUNK):
    """R@1, R@5, R@10, R@1% and, with semi-positives, Hit, in percent.

    Args:
        query: (N, D) float descriptors, NumPy or torch, any device, un-normalised.
        reference: (M, D) float descriptors of the gallery.
        labels: (N,) int, row of each query's positive in `reference`.
        semi_positives: (N, S) int rows of the semi-positives, -1 for none; or None.
        chunk: rows of either side compared at once; changes memory, never the result.

    Returns:
        dict: "R@1", "R@5", "R@10", "R@1%" and, with semi-positives, "Hit" (no tile but a semi-positive outranks
        the positive; the published measure) and "Hit (top-1 covers)" (the best tile of all covers the query).
        R@k counts rank < k, the rank being the number of items strictly more similar than the positive; R@1% uses
        k = max(1, M // 100).

    Raises:
        DescriptorError: NaN, infinite, zero or collapsed descriptors, or labels outside the gallery. Such sets
            would score 100 % under a strict comparison.
    """
    return summarise(rank_queries(query, reference, labels, semi_positives, chunk), len(reference))


def positive_ranks(query, reference, labels, chunk=CHUNK):
    """(N,) int64: how many gallery items are strictly more similar to each query than its positive.

    Arguments and errors as `retrieval_metrics`.
    """
    return rank_queries(query, reference, labels, chunk=chunk).positive


def summarise(ranks, gallery):
    """Metrics in percent of `Ranks` in a gallery of that size (see `retrieval_metrics`)."""
    metrics = recalls(ranks.positive, gallery)
    if ranks.hit is not None:
        metrics["Hit"] = 100.0 * float(np.mean(ranks.hit == 0))
        metrics["Hit (top-1 covers)"] = 100.0 * float(np.mean(ranks.cover == 0))
    return metrics


def recalls(ranks, gallery):
    """R@1, R@5, R@10 and R@1% in percent of (N,) ranks in a gallery of that size."""
    cuts = {"R@1": 1, "R@5": 5, "R@10": 10, "R@1%": max(1, gallery // 100)}
    return {name: 100.0 * float(np.mean(ranks < k)) for name, k in cuts.items()}


@torch.no_grad()
def rank_queries(
    query, reference, labels, semi_positives=None, chunk=CHUNK, rows=None, nearest=0, formats=None, near=None
):
    """`Ranks` of the queries, or of rows `(start, stop)` of them. Other arguments and errors as `retrieval_metrics`.

    Args:
        query: descriptors, or `Turned` ones on the device of `reference`.
        nearest: length of the list of most similar gallery items to find as well.
        near: blocks (i, j) of (P,) int64 query rows, counted from `start`, and gallery rows that lie near them
            (`utils.geodesy.neighbours`); None for none.
        formats: number formats, narrower than float32, to compare in first (`utils.ranking.FORMATS`); None for those
            that are faster here. The ranks are the same.
    """
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; expected at least 1 row")
    device = _device(reference, query)
    q = query if isinstance(query, Turned) else Descriptors(query, "query descriptors", device)
    r = Descriptors(reference, "reference descriptors", device)
    if q.dim != r.dim:
        raise DescriptorError(f"query descriptors have {q.dim} numbers, reference descriptors {r.dim}; expected equal")
    labels = _check_labels(labels, q.rows, r.rows, "labels", lowest=0, ndim=1)
    if rows is not None:
        q, labels = q.part(*rows), labels[slice(*rows)]
        semi_positives = None if semi_positives is None else semi_positives[slice(*rows)]
    labels = labels.to(device)
    every = torch.arange(q.rows, device=device)
    positive = exact_similarity(q, r, every, labels)
    thresholds, semi = [positive], None
    if semi_positives is not None:
        semi = _check_labels(semi_positives, q.rows, r.rows, "semi-positives", lowest=-1, ndim=2).to(device)
        semi = _covering_similarity(q, r, positive, labels, semi)
        thresholds.append(semi.amax(dim=1))
    if near is not None:
        thresholds.append(_best_similarity(q, r, positive, near))
    counts, top = count_above(q, r, thresholds, chunk, formats, nearest)
    counts, hit, cover = list(counts), None, None
    if semi is not None:
        hit = counts[0] - (semi > positive[:, None] + 2 * rounding(q.dim, torch.float64)).sum(dim=1)
        cover = counts[1]
    beside = counts[-1] if near is not None else None
    return Ranks(*map(_numpy, (counts[0], hit, cover, top, beside)))


def _covering_similarity(q, r, positive, labels, semi):
    """(N, 1 + S) float64 similarities of the positive and the semi-positives, -inf for none or one named before."""
    covering = torch.cat([labels[:, None], semi], dim=1)
    every = torch.arange(q.rows, device=q.device)
    similarity = torch.full(covering.shape, -torch.inf, dtype=torch.float64, device=q.device)
    similarity[:, 0] = positive
    for column in range(1, covering.shape[1]):
        present = covering[:, column] >= 0
        similarity[present, column] = exact_similarity(q, r, every[present], covering[present, column])
        repeated = (covering[:, :column] == covering[:, column, None]).any(dim=1)  # named twice: left out once
        similarity[repeated, column] = -torch.inf
    return similarity


def _best_similarity(q, r, positive, blocks):
    """(N,) float64: the largest similarity of each query with its positive and the items that `blocks` name."""
    best = positive.clone()
    for i, j in blocks:
        i, j = (torch.as_tensor(rows, device=q.device) for rows in (i, j))
        best.scatter_reduce_(0, i, exact_similarity(q, r, i, j), "amax")
    return best


def _numpy(tensor):
    return None if tensor is None else tensor.cpu().numpy()


def _check_labels(labels, queries, gallery, name, lowest, ndim):
    labels = np.asarray(labels.cpu() if isinstance(labels, torch.Tensor) else labels)
    labels = torch.from_numpy(labels.astype(labels.dtype.newbyteorder("="), order="C"))
    if labels.ndim != ndim:
        expected = "(queries,)" if ndim == 1 else "(queries, some)"
        raise DescriptorError(f"{name} have shape {tuple(labels.shape)}; expected {expected}")
    if labels.dtype.is_floating_point or labels.dtype == torch.bool:
        raise DescriptorError(f"{name} are {labels.dtype}; expected whole numbers, rows of the gallery")
    if len(labels) != queries:
        raise DescriptorError(f"there are {len(labels)} {name} for {queries} queries; expected one row each")
    labels = labels.long()
    if labels.numel() and not (lowest <= int(labels.min()) and int(labels.max()) < gallery):
        raise DescriptorError(
            f"{name} run from {int(labels.min())} to {int(labels.max())}; expected rows of the gallery of {gallery}"
        )
    return labels


def _device(*sides):
    """The first accelerator that any of the sets lies on, else the CPU."""
    devices = [s.device for s in sides if isinstance(s, torch.Tensor)]
    return next((d for d in devices if d.type != "cpu"), torch.device("cpu"))
