"""How many gallery items are more similar than a threshold: exact counts from fast blocks.

A block of similarities is formed in bfloat16 or float32. A comparison that lies further from its threshold than the
block's error bound is decided; the few others are made again in float64. Both paths give the float64 counts.
"""

import time
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import torch

from utils.descriptors import exact_similarity, rounding

CHUNK = 4096  # queries in one block
COLUMNS = 2048  # gallery items in one block
DEPTH = 384  # products summed at a time in float32
TOO_CLOSE = 0.03  # share of a float32 block within its bound from which the block is redone in float64
TOO_CLOSE_FAST = 0.005  # share of a bfloat16 block within its bound from which it is redone in float32
PROBES = 32  # queries that tell whether bfloat16 can decide most comparisons
SMALL = 2e9  # multiplications below which bfloat16 is not worth its preparation
SPARE = 4  # candidates beyond the wanted top list


def count_above(q, r, thresholds, chunk=CHUNK, fast=None, nearest=0):
    """Gallery items strictly more similar to each query than its thresholds.

    Args:
        q, r: `Descriptors` of N queries and M gallery items on one device.
        thresholds: list of (N,) float64 similarities; the first is the lowest for every query.
        chunk: rows of either side compared at once.
        fast: bfloat16 blocks first (True), float32 only (False), whichever is faster on this device (None).
        nearest: length of the list of most similar items to return as well.

    Returns:
        (counts, top): a list of (N,) int64; (N, min(nearest, M)) int64, the most similar item first, or None.
    """
    tie = 2 * rounding(q.dim, torch.float64)
    counts = [torch.zeros(q.rows, dtype=torch.int64, device=q.device) for _ in thresholds]
    top = _TopList(q, r, min(nearest, r.rows)) if nearest else None
    if fast is None:
        fast = q.rows * r.rows * q.dim > SMALL and bfloat16_is_faster(q.device)
    width = min(chunk, COLUMNS)
    columns_of = [slice(start, min(start + width, r.rows)) for start in range(0, r.rows, width)]
    with _full_precision():
        halves = _Halves(r) if fast else None
        if fast and halves.share_too_close(q, thresholds, tie) > TOO_CLOSE_FAST:
            fast, halves = False, None
        for start in range(0, q.rows, chunk):
            rows = slice(start, min(start + chunk, q.rows))
            targets = [threshold[rows] for threshold in thresholds]
            prepared = halves.prepare(q, rows, targets, tie) if fast else None
            q32 = None
            for columns in columns_of:
                found = None
                if fast:
                    block, found = halves.count(prepared, columns)
                    shift, error = prepared.shift, prepared.bound
                if found is None:
                    q32 = q.unit(rows, torch.float32) if q32 is None else q32
                    block, error = _float32_block(q32, r.unit(columns, torch.float32))
                    error = torch.full_like(targets[0], error)
                    shift = torch.zeros_like(error)
                    found = [_compare(block, target, error + tie) for target in targets]
                for count, target, (above, near) in zip(counts, targets, found, strict=True):
                    count[rows] += above
                    count[rows] += _decide(q, r, rows, columns, target + tie, near)
                if top is not None:
                    top.add(rows, columns, block, shift, error)
        lists = None if top is None else top.finish()
    return counts, lists


def _float32_block(q32, r32):
    """(n, m) float32 similarities and their error bound, for which short sums are made and then added."""
    block = q32[:, :DEPTH] @ r32[:, :DEPTH].T
    for start in range(DEPTH, q32.shape[1], DEPTH):
        block.addmm_(q32[:, start : start + DEPTH], r32[:, start : start + DEPTH].T)
    return block, rounding(min(DEPTH, q32.shape[1]) + -(-q32.shape[1] // DEPTH), torch.float32)


def _compare(block, target, bound):
    """Of a float32 block: (n,) items surely above the target, and which (row, column) pairs are too near to tell."""
    high, low = (target + bound).float()[:, None], (target - bound).float()[:, None]
    above = count_true(block > high)
    close = count_true(block >= low) - above
    if float(close.sum()) > TOO_CLOSE * block.numel():
        return torch.zeros_like(above), None  # all of them
    rows = close.nonzero().squeeze(1)
    part = block[rows]
    i, j = ((part >= low[rows]) & (part <= high[rows])).nonzero(as_tuple=True)
    return above, (rows[i], j)


def _decide(q, r, rows, columns, threshold, near):
    """(n,) items of the near pairs (None: of the whole block) that are above the threshold in float64."""
    if near is None:
        return (q.unit(rows, torch.float64) @ r.unit(columns, torch.float64).T > threshold[:, None]).sum(dim=1)
    i, j = near
    above = exact_similarity(q, r, i + rows.start, j + columns.start) > threshold[i]
    return torch.zeros(len(threshold), dtype=torch.int64, device=q.device).index_add_(0, i, above.long())


class _Prepared(NamedTuple):
    """A block of n queries for `_Halves.count`."""

    rows: torch.Tensor  # (n, dim + EXTRA) bfloat16
    limits: list  # for each target (low, high), (n, 1) int16 bits of bfloat16
    bound: torch.Tensor  # (n,) float64 error of a similarity
    shift: torch.Tensor  # (n,) float64: what the product subtracts


class _Halves:
    """A gallery in bfloat16, and blocks of similarities less a threshold whose error is bounded.

    Three numbers are appended to each row, so that the product itself subtracts the threshold (in three bfloat16
    parts, exact to 2**-26): what is rounded to bfloat16 at the end is the small difference, not the similarity. The
    difference is shifted by the bound, so that "may be above" is "positive"; positive bfloat16 numbers order as their
    bits do, and integers compare fast.
    """

    EXTRA = 32  # appended columns: three used, the rest keeps rows aligned

    def __init__(self, r):
        self.dim = r.dim
        self.rows = torch.zeros(-(-r.rows // 8) * 8, r.dim + self.EXTRA, dtype=torch.bfloat16, device=r.device)
        self.error = 0.0  # largest distance between a unit row and its bfloat16 copy
        for start in range(0, r.rows, 1024):
            unit = r.unit(slice(start, start + 1024), torch.float32)
            own = self.rows[start : start + len(unit)]
            own[:, : r.dim] = unit
            own[:, r.dim : r.dim + 3] = 1
            self.error = max(self.error, float((unit - own[:, : r.dim]).norm(dim=1).max()))

    def prepare(self, q, rows, targets, tie):
        """What `count` needs of a block of queries."""
        unit = q.unit(rows, torch.float32)
        own = torch.zeros(len(unit), self.dim + self.EXTRA, dtype=torch.bfloat16, device=q.device)
        own[:, : self.dim] = unit
        error = (unit - own[:, : self.dim]).norm(dim=1)
        # |q.r - q'.r'| <= |q - q'| |r| + |q'| |r - r'|, then sums of float32 products, four times Higham's bound as
        # matrix units may truncate, and float32 norms.
        bound = error + (1 + error) * self.error + 6 * rounding(self.dim + 3, torch.float32) + tie
        bound = (1.01 * bound).double()
        rest = targets[0] - bound
        for column in range(3):
            own[:, self.dim + column] = -rest.to(torch.bfloat16)
            rest = rest + own[:, self.dim + column].double()
        limits = []
        for target in targets:
            gap = target - targets[0]
            low, high = gap * (1 - 2**-6), (gap + 2 * bound) * (1 + 2**-6)
            limits.append([x.to(torch.bfloat16).view(torch.int16)[:, None] for x in (low, high)])
        return _Prepared(own, limits, bound, targets[0] - bound)

    def share_too_close(self, q, thresholds, tie):
        """The share of comparisons that bfloat16 leaves open, from a few queries against the whole gallery."""
        rows = torch.linspace(0, q.rows - 1, min(PROBES, q.rows), device=q.device).long()
        queries = self.prepare(q, rows, [threshold[rows] for threshold in thresholds], tie)
        bits = (queries.rows @ self.rows.T).view(torch.int16)
        return max(float(((bits > low) & (bits <= high)).double().mean()) for low, high in queries.limits)

    def count(self, queries, columns):
        """Block and [(above, near) for each target], None in the second place if too many are too near."""
        stop = len(self.rows) if columns.stop + 8 > len(self.rows) else columns.stop
        block = queries.rows @ self.rows[columns.start : stop].T
        bits = block.view(torch.int16)
        found = []
        for low, high in queries.limits:
            above = count_true(bits > high)
            close = count_true(bits > low) - above
            if float(close.sum()) > TOO_CLOSE_FAST * block.numel():
                return block, None
            rows = close.nonzero().squeeze(1)
            part = bits[rows]
            i, j = ((part > low[rows]) & (part <= high[rows])).nonzero(as_tuple=True)
            found.append((above, (rows[i], j)))
        return block[:, : columns.stop - columns.start], found


class _TopList:
    """The most similar items of every query, gathered block by block and put into float64 order at the end."""

    def __init__(self, q, r, wanted):
        self.q, self.r, self.wanted = q, r, wanted
        self.keep = min(wanted + SPARE, r.rows)
        self.value = torch.full((q.rows, self.keep), -torch.inf, dtype=torch.float64, device=q.device)
        self.item = torch.zeros(q.rows, self.keep, dtype=torch.int64, device=q.device)
        self.error = torch.zeros(q.rows, dtype=torch.float64, device=q.device)

    def add(self, rows, columns, block, shift, error):
        """A block of similarities less `shift` (n,), each off by at most `error` (n,) and its own last digit."""
        value, item = block.topk(min(self.keep, block.shape[1]), dim=1)
        value = value.double()
        digit = torch.finfo(block.dtype).eps * value.abs().amax(dim=1)
        self.error[rows] = torch.maximum(self.error[rows], error + digit)
        value = torch.cat([self.value[rows], value + shift[:, None]], dim=1)
        item = torch.cat([self.item[rows], item + columns.start], dim=1)
        self.value[rows], chosen = value.topk(self.keep, dim=1)
        self.item[rows] = item.gather(1, chosen)

    def finish(self):
        """(N, wanted) items, equal similarities by number."""
        item = self.item.sort(dim=1).values
        every = torch.arange(self.q.rows, device=self.q.device).repeat_interleave(self.keep)
        exact = exact_similarity(self.q, self.r, every, item.flatten()).view(item.shape)
        exact, order = exact.sort(dim=1, descending=True, stable=True)
        top = item.gather(1, order)[:, : self.wanted].contiguous()
        if self.keep < self.r.rows:  # an item left out may belong to the list
            doubtful = exact[:, self.wanted - 1] <= self.value[:, -1] + self.error
            for part in doubtful.nonzero().squeeze(1).split(256):
                top[part] = self._all_in_order(part)
        return top

    def _all_in_order(self, rows):
        unit = self.q.unit(rows, torch.float64)
        blocks = [slice(start, start + CHUNK) for start in range(0, self.r.rows, CHUNK)]
        similarity = torch.cat([unit @ self.r.unit(columns, torch.float64).T for columns in blocks], dim=1)
        return similarity.sort(dim=1, descending=True, stable=True).indices[:, : self.wanted]


def count_true(mask):
    """(n,) int64: true entries of each row of an (n, m) bool tensor."""
    if mask.shape[1] % 8 or not mask.is_contiguous():
        return mask.sum(dim=1)
    lanes = mask.view(torch.int64)  # eight counters of a byte in each
    sums = [part.sum(dim=1, keepdim=True) for part in lanes.split(255, dim=1)]
    return torch.cat(sums, dim=1).view(torch.uint8).sum(dim=1, dtype=torch.int64)


@cache
def bfloat16_is_faster(device):
    """Whether this device multiplies bfloat16 matrices clearly faster than float32 ones."""
    times = []
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.ones(512, 1024, dtype=dtype, device=device)
        best = float("inf")
        for _ in range(4):
            started = time.perf_counter()
            float((x @ x.T)[0, 0])  # waits for the device
            best = min(best, time.perf_counter() - started)
        times.append(best)
    return times[1] < 0.7 * times[0] or device.type == "cuda"


@contextmanager
def _full_precision():
    """float32 products in float32, sums of bfloat16 products in float32: the bounds hold for no less."""
    before = torch.get_float32_matmul_precision()
    matmul = torch.backends.cuda.matmul
    reduced = matmul.allow_bf16_reduced_precision_reduction
    torch.set_float32_matmul_precision("highest")
    matmul.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        matmul.allow_bf16_reduced_precision_reduction = reduced
