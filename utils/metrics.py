"""Retrieval metrics of the field, exact, and without ever holding an N x M matrix.

Similarities are compared in float32 blocks first. Every comparison that lies within the rounding bound of that
product is made again in float64, so the ranks are those of a float64 computation for every query. Two similarities
that float64 itself cannot tell apart (equal rows of the gallery, say) are a tie, and a tie outranks nothing.
"""

from contextlib import contextmanager
from copy import copy
from typing import NamedTuple

import numpy as np
import torch

from utils.errors import UserError

CHUNK = 4096  # rows of either side in one similarity block
EXACT_ROWS = 1024  # rows handled at once in float64
COLLAPSED = 1e-6  # descriptors that differ by less than this in every normalised number are one and the same
TOO_CLOSE = 0.02  # share of a block within the float32 bound from which the block is redone in float64


class DescriptorError(UserError, ValueError):
    """Descriptors that must not be scored: not finite, zero or collapsed; or labels that do not fit them."""


class Ranks(NamedTuple):
    """Per query (N,) int64: gallery items strictly more similar to the query than ...

    positive: ... its positive.
    hit: ... its positive, semi-positives left out (None without semi-positives).
    cover: ... the best of the tiles that cover it (None without semi-positives).
    """

    positive: np.ndarray
    hit: np.ndarray | None = None
    cover: np.ndarray | None = None


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
    cuts = {"R@1": 1, "R@5": 5, "R@10": 10, "R@1%": max(1, gallery // 100)}
    metrics = {name: 100.0 * float(np.mean(ranks.positive < k)) for name, k in cuts.items()}
    if ranks.hit is not None:
        metrics["Hit"] = 100.0 * float(np.mean(ranks.hit == 0))
        metrics["Hit (top-1 covers)"] = 100.0 * float(np.mean(ranks.cover == 0))
    return metrics


def check_descriptors(descriptors, name="descriptors"):
    """Refuse descriptors that a strict comparison would score 100 %.

    Raises:
        DescriptorError: not (N, D) with N, D >= 1; NaN, infinite or zero rows; N > 1 rows that are all the same.
    """
    return _Side(descriptors, name, _device(descriptors))


@torch.no_grad()
def rank_queries(query, reference, labels, semi_positives=None, chunk=CHUNK, rows=None):
    """`Ranks` of the queries, or of rows `(start, stop)` of them. Arguments and errors as `retrieval_metrics`."""
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; expected at least 1 row")
    device = _device(reference, query)
    q = _Side(query, "query descriptors", device)
    r = _Side(reference, "reference descriptors", device)
    if q.dim != r.dim:
        raise DescriptorError(f"query descriptors have {q.dim} numbers, reference descriptors {r.dim}; expected equal")
    labels = _check_labels(labels, q.rows, r.rows, "labels", lowest=0)
    if rows is not None:
        q, labels = q.part(*rows), labels[slice(*rows)]
        semi_positives = None if semi_positives is None else semi_positives[slice(*rows)]
    if semi_positives is None:
        return Ranks(_count_above(q, r, [labels.to(device)], chunk)[0].cpu().numpy())

    semi = _check_labels(semi_positives, q.rows, r.rows, "semi-positives", lowest=-1)
    covering = torch.cat([labels[:, None], semi], dim=1).to(device)  # (N, 1 + S)
    similarity = torch.full(covering.shape, -torch.inf, dtype=torch.float64, device=device)
    every = torch.arange(q.rows, device=device)
    for column in range(covering.shape[1]):
        present = covering[:, column] >= 0
        similarity[present, column] = _exact(q, r, every[present], covering[present, column])
        repeated = (covering[:, :column] == covering[:, column, None]).any(dim=1)  # named twice: left out once
        similarity[repeated, column] = -torch.inf
    best = covering.gather(1, similarity.argmax(dim=1, keepdim=True)).squeeze(1)
    above_positive, above_best = _count_above(q, r, [covering[:, 0], best], chunk)
    semi_above = (similarity > similarity[:, :1] + 2 * _rounding(q.dim, torch.float64)).sum(dim=1)
    return Ranks(above_positive.cpu().numpy(), (above_positive - semi_above).cpu().numpy(), above_best.cpu().numpy())


class _Side:
    """One descriptor set: rows on demand, norms in float64, checked."""

    def __init__(self, data, name, device):
        if getattr(data, "ndim", None) != 2 or 0 in data.shape:
            raise DescriptorError(
                f"{name} have shape {tuple(np.shape(data))}; expected (rows, numbers), none of them 0"
            )
        self.data, self.device = data, device
        self.rows, self.dim = data.shape
        self.inverse_norm = torch.empty(self.rows, dtype=torch.float64, device=device)
        spread, first = 0.0, None
        for start in range(0, self.rows, EXACT_ROWS):
            block = self._block(slice(start, start + EXACT_ROWS)).double()
            square = block.square().sum(dim=1)
            if not torch.isfinite(square).all():
                row = start + int((~torch.isfinite(square)).nonzero()[0])
                raise DescriptorError(f"{name} are not finite (row {row} of {self.rows}); the training has diverged")
            if (square == 0).any():
                row = start + int((square == 0).nonzero()[0])
                raise DescriptorError(f"{name} hold a zero vector (row {row} of {self.rows}): it has no direction")
            inverse = square.rsqrt()
            self.inverse_norm[start : start + len(block)] = inverse
            block *= inverse[:, None]
            first = block[0].clone() if first is None else first
            spread = max(spread, float((block - first).abs().max()))
        if self.rows > 1 and spread < COLLAPSED:
            raise DescriptorError(
                f"{name} have collapsed: all {self.rows} are equal to within {COLLAPSED:g}; such a set would score "
                "100 % and is refused"
            )

    def _block(self, rows):
        """Rows (a slice, or indices on the device) as a tensor on the device, in their own precision."""
        if isinstance(self.data, torch.Tensor):
            return self.data[rows if isinstance(rows, slice) else rows.to(self.data.device)].to(self.device)
        index = rows if isinstance(rows, slice) else rows.cpu().numpy()
        return torch.from_numpy(np.array(self.data[index])).to(self.device)

    def part(self, start, stop):
        """Rows start .. stop as a set of their own."""
        other = copy(self)
        other.data, other.inverse_norm = self.data[start:stop], self.inverse_norm[start:stop]
        other.rows = len(other.data)
        return other

    def unit(self, rows, dtype):
        """L2-normalised rows in `dtype`."""
        return self._block(rows).to(dtype) * self.inverse_norm[rows].to(dtype)[:, None]


def _count_above(q, r, targets, chunk):
    """For each target (N,) of gallery rows: (N,) count of gallery items strictly more similar than that row."""
    every = torch.arange(q.rows, device=q.device)
    thresholds = [_exact(q, r, every, target) for target in targets]
    counts = [torch.zeros(q.rows, dtype=torch.int64, device=q.device) for _ in targets]
    with _full_precision():
        for q_start in range(0, q.rows, chunk):
            q_rows = slice(q_start, min(q_start + chunk, q.rows))
            q32 = q.unit(q_rows, torch.float32)
            for r_start in range(0, r.rows, chunk):
                r_rows = slice(r_start, min(r_start + chunk, r.rows))
                similarity = q32 @ r.unit(r_rows, torch.float32).T
                for threshold, count in zip(thresholds, counts, strict=True):
                    count[q_rows] += _count_in_block(q, r, q_rows, r_rows, similarity, threshold[q_rows])
    return counts


def _count_in_block(q, r, q_rows, r_rows, similarity, threshold):
    """Per query of a float32 block: items above its threshold; near comparisons are decided in float64."""
    tie = 2 * _rounding(q.dim, torch.float64)
    bound = _rounding(q.dim, torch.float32) + tie
    high = (threshold + bound).float()[:, None]
    low = (threshold - bound).float()[:, None]
    near = (similarity >= low) & (similarity <= high)
    if float(near.sum()) > TOO_CLOSE * near.numel():
        exact = q.unit(q_rows, torch.float64) @ r.unit(r_rows, torch.float64).T
        return (exact > threshold[:, None] + tie).sum(dim=1)
    count = (similarity > high).sum(dim=1)
    i, j = near.nonzero(as_tuple=True)
    above = _exact(q, r, i + q_rows.start, j + r_rows.start) > threshold[i] + tie
    return count.index_add_(0, i, above.to(count.dtype))


def _exact(q, r, i, j):
    """Cosine similarities of query rows i with reference rows j, (n,) float64."""
    out = torch.empty(len(i), dtype=torch.float64, device=q.device)
    for start in range(0, len(i), EXACT_ROWS):
        part = slice(start, start + EXACT_ROWS)
        out[part] = (q.unit(i[part], torch.float64) * r.unit(j[part], torch.float64)).sum(dim=1)
    return out


def _rounding(dim, dtype):
    """Bound on the error of a similarity of `dim` products that is due to rounding in `dtype`.

    Unit vectors; rounding of inputs and norms included (Higham, Accuracy and Stability of Numerical Algorithms, 3.1).
    """
    return (dim + 16) * torch.finfo(dtype).eps / 2


def _check_labels(labels, queries, gallery, name, lowest):
    labels = torch.as_tensor(np.asarray(labels.cpu() if isinstance(labels, torch.Tensor) else labels))
    if labels.dtype.is_floating_point or labels.dtype == torch.bool:
        raise DescriptorError(f"{name} are {labels.dtype}; expected whole numbers, rows of the gallery")
    if len(labels) != queries:
        raise DescriptorError(f"there are {len(labels)} {name} for {queries} queries; expected one row each")
    labels = labels.long()
    if len(labels) and not (lowest <= int(labels.min()) and int(labels.max()) < gallery):
        raise DescriptorError(
            f"{name} run from {int(labels.min())} to {int(labels.max())}; expected rows of the gallery of {gallery}"
        )
    return labels


def _device(*sides):
    """The first accelerator that any of the sets lies on, else the CPU."""
    devices = [s.device for s in sides if isinstance(s, torch.Tensor)]
    return next((d for d in devices if d.type != "cpu"), torch.device("cpu"))


@contextmanager
def _full_precision():
    """float32 products in float32: neither TF32 nor bfloat16 passes, for which the bound would not hold."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
