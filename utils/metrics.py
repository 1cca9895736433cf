"""Retrieval metrics of the field, exact, and without ever holding an N x M matrix.

The ranks are those of float64 for every query (`utils.ranking`). Two similarities that float64 itself cannot tell apart
(equal rows of the gallery, say) are a tie; a tie outranks nothing.
"""

from typing import NamedTuple

import numpy as np
import torch

from utils.ranking import CHUNK, DescriptorError, Descriptors, Turned, compare, rounding


class Ranks(NamedTuple):
    """Columns with a row per query, (N,) int64; None for what was not requested or needs semi-positives.

    positive, hit, cover, near: number of gallery items that are strictly more similar to the query than: its positive;
        its positive, not counting semi-positives; the best tile that covers it; the best item near it.
    nearest: (N, k) the most similar items, the best first.
    ties: number of other items as similar as the positive, within the rounding of float64.
    """

    positive: np.ndarray
    hit: np.ndarray | None = None
    cover: np.ndarray | None = None
    nearest: np.ndarray | None = None
    near: np.ndarray | None = None
    ties: np.ndarray | None = None


def retrieval_metrics(query, reference, labels, semi_positives=None, chunk=CHUNK):
    """R@1, R@5, R@10, R@1% and, with semi-positives, Hit, in percent.

    Args:
        query: (N, D) float descriptors, NumPy or torch, any device, un-normalised.
        reference: (M, D) float descriptors of the gallery.
        labels: (N,) int, row of each query's positive in `reference`.
        semi_positives: (N, S) int rows of the semi-positives, -1 for none; or None.
        chunk: rows of either side compared at once; changes memory, never the result.

    Returns:
        dict: "R@1", "R@5", "R@10", "R@1%": R@k counts rank < k, the rank being the number of items strictly more
        similar than the positive; R@1% has k = max(1, M // 100). With semi-positives also "Hit" (no tile but a
        semi-positive outranks the positive; the published measure) and "Hit (top-1 covers)" (the best tile covers).

    Raises:
        DescriptorError: NaN, infinite, zero or collapsed descriptors, which a strict comparison would score 100 %, or
            labels outside the gallery.
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
def rank_queries(query, reference, labels, semi_positives=None, chunk=CHUNK, rows=None, nearest=0, near=None):
    """`Ranks` of the queries, or of rows `(start, stop)` of them. Other arguments and errors as `retrieval_metrics`.

    Args:
        query: descriptors, or `Turned` ones.
        nearest: length of the list of most similar gallery items to find as well, equal ones by number.
        near: blocks (i, j) of (P,) int64 query rows, counted from `start`, and gallery rows that lie near them
            (`utils.geodesy.neighbours`); None for none.
    """
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; expected at least 1 row")
    tensors = [x.device for x in (query, reference) if isinstance(x, torch.Tensor | Turned)]
    device = next((d for d in tensors if d.type != "cpu"), torch.device("cpu"))
    q = query if isinstance(query, Turned) else Descriptors([query], 1, "query descriptors", device)
    r = Descriptors([reference], 1, "reference descriptors", device)
    if q.dim != r.dim:
        raise DescriptorError(f"query descriptors have {q.dim} numbers, reference descriptors {r.dim}; expected equal")
    tiles = _check_labels(labels, q.rows, r.rows, "labels", lowest=0, ndim=1)[:, None]
    if semi_positives is not None:
        semi = _check_labels(semi_positives, q.rows, r.rows, "semi-positives", lowest=-1, ndim=2)
        tiles = torch.cat([tiles, semi], dim=1)
    start, stop = rows or (0, q.rows)
    similarity = _tile_similarity(q, r, tiles[start:stop].to(device), start)
    thresholds = {"positive": similarity[:, 0]}
    if semi_positives is not None:
        thresholds["cover"] = similarity.amax(dim=1)
    if near is not None:
        best = thresholds["near"] = similarity[:, 0].clone()
        for i, j in near:
            i, j = (torch.as_tensor(rows, device=device) for rows in (i, j))
            best.scatter_reduce_(0, i, q.similarity(r, i + start, j), "amax")
    above, ties, top = compare(q, r, torch.stack(list(thresholds.values())), start, nearest, chunk)
    ranks = Ranks(**dict(zip(thresholds, above.cpu().numpy(), strict=True)), ties=ties[0].cpu().numpy() - 1)
    if semi_positives is not None:
        more = similarity > similarity[:, :1] + 2 * rounding(q.dim, torch.float64)
        ranks = ranks._replace(hit=ranks.positive - more.sum(dim=1).cpu().numpy())
    return ranks._replace(nearest=top) if nearest else ranks


def _tile_similarity(q, r, tiles, start):
    """(n, S) float64 similarities of queries from `start` on with (n, S) tiles, -inf for none or one named before."""
    similarity = torch.full(tiles.shape, -torch.inf, dtype=torch.float64, device=q.device)
    repeated = (tiles[:, :, None] == tiles[:, None]).tril(-1).any(dim=2)
    i, column = ((tiles >= 0) & ~repeated).nonzero(as_tuple=True)
    similarity[i, column] = q.similarity(r, i + start, tiles[i, column])
    return similarity


def _check_labels(labels, queries, gallery, name, lowest, ndim):
    labels = np.asarray(labels.cpu() if isinstance(labels, torch.Tensor) else labels)
    if labels.ndim != ndim:
        expected = "(queries,)" if ndim == 1 else "(queries, some)"
        raise DescriptorError(f"{name} have shape {labels.shape}; expected {expected}")
    if labels.dtype.kind not in "iu":
        raise DescriptorError(f"{name} are {labels.dtype}; expected whole numbers, rows of the gallery")
    if len(labels) != queries:
        raise DescriptorError(f"there are {len(labels)} {name} for {queries} queries; expected one row each")
    if labels.size and not (lowest <= labels.min() and labels.max() < gallery):
        raise DescriptorError(
            f"{name} run from {labels.min()} to {labels.max()}; expected rows of the gallery of {gallery}"
        )
    return torch.from_numpy(labels.astype(np.int64))
