"""A gallery in numbers narrower than float32, whose products are faster and off by at most a bound."""

import time
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

PROBES = 32  # queries, and parts of the gallery, that tell whether a format can decide most comparisons
PROBED = 512  # gallery items in such a part
CONVERTED = 256  # rows converted at once: few enough to stay in the processor's cache
HELD_BYTES = 2**30  # of a gallery in a narrow format; a larger one is converted block by block
TRIAL_ROWS = 1024  # of the square matrices that tell which product is faster
TRIALS = {"int8": (torch.int8, 1), "bfloat16": (torch.bfloat16, 1), "int16": (torch.int8, 3)}  # and its products
INSTRUCTIONS = {  # of x86 and ARM processors
    "int8": {"avx512_vnni", "avx_vnni", "amx_int8"},
    "bfloat16": {"avx512_bf16", "amx_bf16", "bf16"},
    "int16": {"avx512_vnni", "avx_vnni", "amx_int8"},
}


class Block(NamedTuple):
    """(n, m) similarities values * scale + shift, off by at most `error` and their own last digit."""

    values: torch.Tensor  # float32, bfloat16 or int32
    error: torch.Tensor  # (n,) float64
    shift: torch.Tensor | None = None  # (n,) float64; None: 0
    scale: torch.Tensor | None = None  # (n,) float64; None: 1

    def rows(self, index):
        """The block of some of its queries."""
        return Block(*(None if part is None else part[index] for part in self))

    def largest(self):
        """(n,) largest number of each row, or 0 for a bfloat16 row that holds no positive number."""
        if self.values.dtype != torch.bfloat16:
            return self.values.amax(dim=1)
        bits = self.values.view(torch.int16).amax(dim=1).clamp_min(0)  # bits compare faster than numbers
        return bits.view(torch.bfloat16)

    def similarity(self, values):
        """(..., n) float64 that (..., n) numbers of the n rows stand for."""
        values = values.double() if self.scale is None else values.double() * self.scale
        return values if self.shift is None else values + self.shift

    def off(self, values):
        """(n,) float64: how far one number of each row may be from the truth."""
        if not values.is_floating_point():
            return self.error
        return self.error + torch.finfo(values.dtype).eps * values.double().abs()


class Narrow:
    """A gallery of `Descriptors`, compared in parts of `width`; see `utils.halves.Halves` and `utils.bytes.Bytes`.

    A format gives
    - `fits()`: whether it can be used here;
    - `hold()`: converts the gallery once where that takes little memory (else it is converted part by part);
    - `prepare(q, rows, targets, tie)`: what it needs of a block of queries and their (n,) float64 targets;
    - `product(prepared, columns)`: integers (n, m), for each target (low, high) (n, 1), and the `Block`. An item whose
      integer is above `high` is surely more similar than the target, one whose integer is at most `low` surely not;
    - too_close: share of comparisons between their limits from which another format is faster: of those probed, the
      next one; of a block, float32.
    """

    def __init__(self, r, width):
        self.r, self.dim, self.held = r, r.dim, None
        self.parts = slices(r.rows, width)

    def decide_most(self, q, thresholds, tie):
        """Whether few comparisons are left open, from some queries against parts of the gallery."""
        rows = torch.linspace(0, q.rows - 1, min(PROBES, q.rows), device=q.device).long()
        prepared = self.prepare(q, rows, [threshold[rows] for threshold in thresholds], tie)
        shares = []
        for part in self.parts[:: -(-len(self.parts) // PROBES)]:
            bits, limits, _ = self.product(prepared, slice(part.start, min(part.start + PROBED, part.stop)))
            shares.append([float(((bits > low) & (bits <= high)).double().mean()) for low, high in limits])
        return max(sum(column) / len(column) for column in zip(*shares, strict=True)) <= self.too_close

    def compare(self, prepared, columns):
        """`Block` and [(above, near) for each target], None in the second place if too many are too near."""
        bits, limits, block = self.product(prepared, columns)
        found = []
        for low, high in limits:
            above = count_true(bits > high)
            close = count_true(bits > low) - above
            if float(close.sum()) > self.too_close * bits.numel():
                return block, None
            rows = close.nonzero().squeeze(1)
            part = bits[rows]
            i, j = ((part > low[rows]) & (part <= high[rows])).nonzero(as_tuple=True)
            found.append((above, (rows[i], j)))
        return block, found


def count_true(mask):
    """(n,) int64: true entries of each row of an (n, m) bool tensor."""
    if mask.shape[1] % 8 or not mask.is_contiguous():
        return mask.sum(dim=1)
    lanes = mask.view(torch.int64)  # eight counters of a byte in each
    sums = [part.sum(dim=1, keepdim=True) for part in lanes.split(255, dim=1)]
    return torch.cat(sums, dim=1).view(torch.uint8).sum(dim=1, dtype=torch.int64)


def slices(count, width):
    return [slice(start, min(start + width, count)) for start in range(0, count, width)]


def within(rows, part):
    """Part (a slice) of rows that are a slice or indices."""
    return slice(rows.start + part.start, rows.start + part.stop) if isinstance(rows, slice) else rows[part]


@contextmanager
def full_precision():
    """float32 products in float32, sums of bfloat16 products in float32: the bounds hold for no less."""
    matmul = torch.backends.cuda.matmul
    reduced = matmul.allow_bf16_reduced_precision_reduction
    try:
        before, newer = torch.get_float32_matmul_precision(), []
    except RuntimeError:  # the attributes that come in its place have been set, and PyTorch refuses to mix the two
        newer = [(part, part.fp32_precision) for part in (matmul, torch.backends.mkldnn.matmul)]
    try:
        matmul.allow_bf16_reduced_precision_reduction = False
        for part, _ in newer:
            part.fp32_precision = "ieee"
        if not newer:
            torch.set_float32_matmul_precision("highest")
        yield
    finally:
        for part, value in newer:
            part.fp32_precision = value
        if not newer:
            torch.set_float32_matmul_precision(before)
        matmul.allow_bf16_reduced_precision_reduction = reduced


@cache
def faster_formats(device):
    """Names of the formats whose products are faster than float32 ones here, the fastest first.

    On a CPU that is tried out: some processors with instructions for bfloat16 multiply float32 faster than it.
    """
    if device.type != "cpu":
        return ("bfloat16",) if torch.cuda.get_device_capability(device) >= (8, 0) else ()
    flags = _processor_flags()
    tried = [name for name in TRIALS if not INSTRUCTIONS[name].isdisjoint(flags)]
    wide = _seconds(torch.float32) if tried else 0.0
    seconds = {dtype: _seconds(dtype) for dtype, _ in (TRIALS[name] for name in tried)}
    return tuple(name for name in tried if TRIALS[name][1] * seconds[TRIALS[name][0]] < wide)


def _processor_flags():
    try:
        return set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return set()


@cache
def exact_bytes():
    """Whether products of 8-bit matrices are right on this CPU: without VNNI instructions large ones saturate."""
    rows = torch.full((64, 256), 127, dtype=torch.int8)
    rows[::2] = -127
    return torch.equal(torch._int_mm(rows, rows.T), (rows.int() @ rows.int().T))


def _seconds(dtype, tries=4):
    """Seconds of the fastest of a few products of a square matrix with its transpose; infinite where they are wrong."""
    if dtype == torch.int8 and not exact_bytes():
        return float("inf")
    matrix = torch.linspace(-127, 127, TRIAL_ROWS**2).view(TRIAL_ROWS, TRIAL_ROWS).to(dtype)
    multiply = torch._int_mm if dtype == torch.int8 else torch.matmul
    seconds = []
    for _ in range(tries):
        started = time.perf_counter()
        multiply(matrix, matrix.T)
        seconds.append(time.perf_counter() - started)
    return min(seconds)
