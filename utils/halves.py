"""A gallery in bfloat16, and products with it whose error is bounded."""

import time
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from utils.descriptors import rounding

TOO_CLOSE = 0.005  # share of a block within its bound from which bfloat16 is not worth it
PROBES = 32  # queries, and parts of the gallery, that tell whether bfloat16 can decide most comparisons
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # of x86 and ARM processors
TRIAL_ROWS = 1024  # of the square matrices that tell which product is faster
CONVERTED = 256  # rows converted at once: few enough to stay in the processor's cache
HELD_BYTES = 2**30  # of a gallery in bfloat16; a larger one is converted block by block


class Queries(NamedTuple):
    """A block of n queries, as `Halves.prepare` makes and `Halves.count` takes them."""

    rows: torch.Tensor  # (n, dim + EXTRA) bfloat16
    limits: list  # for each target (low, high), (n, 1) int16 bits of bfloat16
    bound: torch.Tensor  # (n,) float64 error of a similarity
    shift: torch.Tensor  # (n,) float64: what the product subtracts


class Halves:
    """A gallery in bfloat16, and blocks of similarities less a threshold whose error is bounded.

    Three numbers are appended to each row, so that the product itself subtracts the threshold (in three bfloat16
    parts, exact to 2**-26): what is rounded to bfloat16 at the end is the small difference, not the similarity. The
    difference is shifted by the bound, so that "may be above" is "positive"; positive bfloat16 numbers order as their
    bits do, and integers compare fast.
    """

    EXTRA = 32  # appended columns: three used, the rest keeps rows aligned

    def __init__(self, r):
        self.r, self.dim = r, r.dim
        # Largest distance between a unit row and its bfloat16 copy: the worst case, or where all are made, theirs.
        self.error, self.held = 2**-9, None
        if 2 * r.rows * (r.dim + self.EXTRA) <= HELD_BYTES:
            self.held = torch.empty(-(-r.rows // 8) * 8, r.dim + self.EXTRA, dtype=torch.bfloat16, device=r.device)
            self.held[r.rows :] = 0
            parts = [self._convert(columns, self.held[columns]) for columns in slices(r.rows, CONVERTED)]
            self.error = max(parts)

    def _convert(self, columns, own):
        """Fill `own` with the rows of the gallery; returns their largest distance from the truth."""
        unit = self.r.unit(columns, torch.float32)
        own[:, : self.dim] = unit
        own[:, self.dim : self.dim + 3] = 1
        own[:, self.dim + 3 :] = 0
        return float((unit - own[:, : self.dim]).norm(dim=1).max())

    def gallery(self, columns):
        """(at least the columns, dim + EXTRA) bfloat16; rows beyond them are 0, and their number a multiple of 8."""
        if self.held is not None:
            return self.held[columns.start : len(self.held) if columns.stop == self.r.rows else columns.stop]
        count = columns.stop - columns.start
        own = torch.zeros(-(-count // 8) * 8, self.dim + self.EXTRA, dtype=torch.bfloat16, device=self.r.device)
        self._convert(columns, own[:count])
        return own

    def prepare(self, q, rows, targets, tie):
        """What `count` needs of a block of queries."""
        count = len(targets[0])
        own = torch.zeros(count, self.dim + self.EXTRA, dtype=torch.bfloat16, device=q.device)
        error = torch.empty(count, device=q.device)
        for part in slices(count, CONVERTED):
            within = slice(rows.start + part.start, rows.start + part.stop) if isinstance(rows, slice) else rows[part]
            unit = q.unit(within, torch.float32)
            own[part, : self.dim] = unit
            error[part] = (unit - own[part, : self.dim]).norm(dim=1)
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
        return Queries(own, limits, bound, targets[0] - bound)

    def decide_most(self, q, thresholds, tie):
        """Whether bfloat16 leaves few comparisons open, from some queries against parts of the gallery."""
        rows = torch.linspace(0, q.rows - 1, min(PROBES, q.rows), device=q.device).long()
        queries = self.prepare(q, rows, [threshold[rows] for threshold in thresholds], tie)
        parts = slices(self.r.rows, 512)
        shares = []
        for columns in parts[:: -(-len(parts) // PROBES)]:
            bits = (queries.rows @ self.gallery(columns).T).view(torch.int16)
            shares.append([float(((bits > low) & (bits <= high)).double().mean()) for low, high in queries.limits])
        return max(sum(column) / len(column) for column in zip(*shares, strict=True)) <= TOO_CLOSE

    def count(self, queries, columns):
        """Block and [(above, near) for each target], None in the second place if too many are too near."""
        block = queries.rows @ self.gallery(columns).T
        bits = block.view(torch.int16)
        found = []
        for low, high in queries.limits:
            above = count_true(bits > high)
            close = count_true(bits > low) - above
            if float(close.sum()) > TOO_CLOSE * block.numel():
                return block, None
            rows = close.nonzero().squeeze(1)
            part = bits[rows]
            i, j = ((part > low[rows]) & (part <= high[rows])).nonzero(as_tuple=True)
            found.append((above, (rows[i], j)))
        return block[:, : columns.stop - columns.start], found


def count_true(mask):
    """(n,) int64: true entries of each row of an (n, m) bool tensor."""
    if mask.shape[1] % 8 or not mask.is_contiguous():
        return mask.sum(dim=1)
    lanes = mask.view(torch.int64)  # eight counters of a byte in each
    sums = [part.sum(dim=1, keepdim=True) for part in lanes.split(255, dim=1)]
    return torch.cat(sums, dim=1).view(torch.uint8).sum(dim=1, dtype=torch.int64)


def row_maximum(block):
    """(n,) largest number of each row of an (n, m) block, or 0 for a bfloat16 row that holds no positive number."""
    if block.dtype != torch.bfloat16:
        return block.amax(dim=1)
    return block.view(torch.int16).amax(dim=1).clamp_min(0).view(torch.bfloat16)  # bits compare faster than numbers


@cache
def bfloat16_is_faster(device):
    """Whether products of bfloat16 matrices are faster than float32 ones here; on a CPU that is tried out.

    Instructions for bfloat16 do not tell: some processors that have them multiply float32 twice as fast.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if not _has_bfloat16_instructions():
        return False
    own = torch.linspace(-1, 1, TRIAL_ROWS * TRIAL_ROWS, device=device).view(TRIAL_ROWS, TRIAL_ROWS)
    return _fastest(own.bfloat16()) < _fastest(own)


def _has_bfloat16_instructions():
    try:
        words = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return not BFLOAT16_FLAGS.isdisjoint(words)


def _fastest(matrix, tries=4):
    """Seconds of the fastest of a few products of a square matrix with itself."""
    seconds = []
    for _ in range(tries):
        started = time.perf_counter()
        matrix @ matrix.T
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def slices(count, width):
    return [slice(start, min(start + width, count)) for start in range(0, count, width)]


@contextmanager
def full_precision():
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
