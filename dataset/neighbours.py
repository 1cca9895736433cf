"""The most similar rows of a pool, exactly, without a whole similarity matrix."""

import torch

from utils.halves import Halves
from utils.logging import progress_bar
from utils.narrow import faster_formats, full_precision, slices

QUERY_BLOCK = 512  # rows of one similarity block
POOL_BLOCK = 8192  # columns of a float32 block
COLUMNS = 2048  # of a bfloat16 block
SPARE = 32  # candidates beyond the wanted ones
SAMPLE = 512  # pool rows, at least, from which the similarity of the last wanted one is guessed
SMALL = 2e9  # multiplications below which bfloat16 is not worth its preparation
GIVE_UP = 0.3  # share of a block's queries whose candidates bfloat16 cannot tell apart


class UnitRows:
    """Rows `index` (n,) of a (N, D) tensor of normalised float32 descriptors; all of them where it is None."""

    def __init__(self, data, index=None):
        self.data, self.index, self.device = data, index, data.device
        self.rows, self.dim = len(data) if index is None else len(index), data.shape[1]

    def unit(self, rows, dtype):
        """Rows (a slice, or indices) in `dtype`."""
        return self.data[rows if self.index is None else self.index[rows]].to(dtype)


@torch.no_grad()
def nearest_rows(queries, pool, k, fast=None):
    """For each query the `k` pool rows with the largest float32 products, largest first.

    Args:
        queries, pool: `UnitRows` on one device.  k: at most the rows of the pool.
        fast: find candidates in bfloat16 and decide between those too near to tell in float32 (then the list is in
            the candidates' order); None for whichever is faster here. The rows found are the same.

    Returns:
        (n, k) int64 positions in the pool.
    """
    if fast is None:
        fast = queries.rows * pool.rows * pool.dim > SMALL and "bfloat16" in faster_formats(pool.device)
    found = torch.zeros(queries.rows, k, dtype=torch.int32, device=pool.device)
    with full_precision():
        left = _fast(queries, pool, k, found) if fast else 0
        if left < queries.rows:
            _plain(queries, pool, k, found, left)
    return found.long()


def _plain(queries, pool, k, found, first):
    """Fill `found` from query `first` on: float32 blocks, merged into running lists."""
    best = torch.full((queries.rows - first, k), -torch.inf, device=pool.device)
    parts = [slice(rows.start + first, rows.stop + first) for rows in slices(queries.rows - first, QUERY_BLOCK)]
    rounds = [(columns, rows) for columns in slices(pool.rows, POOL_BLOCK) for rows in parts]
    gallery = None
    for columns, rows in progress_bar(rounds, "mining", leave=False):
        if rows.start == first:
            gallery = pool.unit(columns, torch.float32)
        own = slice(rows.start - first, rows.stop - first)
        value, position = (queries.unit(rows, torch.float32) @ gallery.T).topk(min(k, len(gallery)), dim=1)
        best[own], order = torch.cat([best[own], value], dim=1).topk(k, dim=1)
        found[rows] = torch.cat([found[rows], position.int() + columns.start], dim=1).gather(1, order)


def _fast(queries, pool, k, found):
    """Fill `found` while bfloat16 can tell most candidates apart. Returns the number of queries done."""
    halves = Halves(pool, COLUMNS)
    if pool.rows <= k + SPARE or not halves.hold():
        return 0
    count = max(SAMPLE, pool.rows // 20)
    sample = pool.unit(
        torch.linspace(0, pool.rows - 1, min(count, pool.rows), device=pool.device).long(), torch.float32
    )
    expected = k * len(sample) / pool.rows
    for rows in progress_bar(slices(queries.rows, QUERY_BLOCK), "mining", leave=False):
        own = queries.unit(rows, torch.float32)
        guess = (own @ sample.T).topk(min(len(sample), int(expected) + 2), dim=1).values[:, -1].double()
        prepared = halves.prepare(queries, rows, [guess], 0.0)
        product = [prepared.rows @ halves.gallery(columns).T for columns in slices(pool.rows, COLUMNS)]
        value, position = torch.cat(product, dim=1)[:, : pool.rows].topk(k + SPARE, dim=1)
        value = value.double()
        last = value[:, k - 1 : k]
        # Off by at most: the product of rounded rows, and the rounding of a number near the last wanted one.
        error = prepared.bound[:, None] + 2**-7 * (last.abs() + prepared.bound[:, None])
        sure, maybe = value > last + 2 * error, value >= last - 2 * error
        many = maybe[:, -1]  # further rows may belong to the list
        if many.double().mean() > GIVE_UP:
            return rows.start
        value[~maybe] = -torch.inf
        value[sure] += 4  # in front, in their order
        i, j = (maybe & ~sure).nonzero(as_tuple=True)
        value[i, j] = _products(own, pool, i, position[i, j]).double()
        order = value.topk(k, dim=1).indices
        found[rows] = position.gather(1, order).int()
        for some in many.nonzero().squeeze(1).split(64):
            blocks = [own[some] @ pool.unit(columns, torch.float32).T for columns in slices(pool.rows, COLUMNS)]
            found[rows.start + some] = torch.cat(blocks, dim=1).topk(k, dim=1).indices.int()
    return queries.rows


def _products(own, pool, i, j):
    """(n,) float32 products of rows i of `own` with rows j of the pool."""
    out = torch.empty(len(i), device=pool.device)
    for part in slices(len(i), 256):
        out[part] = torch.linalg.vecdot(own[i[part]], pool.unit(j[part], torch.float32))
    return out
