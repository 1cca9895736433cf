"""Exact comparisons of similarities with thresholds, from fast blocks.

A block is formed in bfloat16 where the device has instructions for it, else in float32. A comparison that lies further
from its threshold than the block's error bound is decided; the others are made again one by one in float64. Where they
are too many, the block is formed in the next wider format. The results are those of float64.
"""

from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch

from utils.options import UserError

CHUNK = 2048  # queries, and gallery items, in one block
DEPTH = 384  # products summed at a time in float32: the error bound is that of short sums
PIECE = 256  # rows converted at once: few enough to stay in the processor's cache
PAIRS, PAIRS_GPU = 128, 4096  # similarities formed one by one at once
TOO_CLOSE = 0.01  # share of a block's comparisons within the bound from which the next format is faster
HELD_BYTES = 2**30  # a larger gallery is converted to bfloat16 block by block, again for each block of queries
COLLAPSED = 1e-6  # descriptors that differ by less in every normalised number are one and the same


class DescriptorError(UserError, ValueError):
    """Descriptors that must not be scored: not finite, zero or collapsed; or labels that do not fit them."""


class CollapsedError(DescriptorError):
    """Descriptors that are all the same."""


class Descriptors:
    """Descriptors of `rows` images, held as they are; rows are normalised on demand, in float64.

    Args:
        sets: (rows, dim) arrays or tensors, one for each version of the images. The largest similarity counts.
        regions: equal parts of a descriptor; each set is used in its circular shifts by whole parts.
        name: in error messages.  device: where they are compared.

    Raises:
        DescriptorError: not (N, D) with N, D >= 1; NaN, infinite or zero rows; N > 1 equal rows; unequal parts.
    """

    def __init__(self, sets, regions, name, device):
        self.sets, self.device, self.regions, self.versions = sets, device, regions, len(sets) * regions
        self.inverse_norms = [self._check(data, name) for data in sets]
        self.rows, self.dim = sets[0].shape
        if self.dim % regions:
            raise DescriptorError(f"{name} have {self.dim} numbers, which do not divide into {regions} regions")

    def _check(self, data, name):
        """(rows,) float64 inverse norms."""
        if getattr(data, "ndim", None) != 2 or 0 in data.shape:
            shape = tuple(np.shape(data))
            raise DescriptorError(f"{name} have shape {shape}; expected (rows, numbers), none of them 0")
        if data.dtype.is_complex if isinstance(data, torch.Tensor) else data.dtype.kind not in "fiub":
            raise DescriptorError(f"{name} are {data.dtype}; expected real numbers")
        parts = slices(len(data), PIECE)
        norm = torch.empty(len(data), dtype=torch.float64, device=self.device)
        for rows in parts:
            norm[rows] = self._read(data, rows).norm(dim=1)
        for row in (norm == 0).nonzero().flatten().tolist():
            raise DescriptorError(f"{name} hold a zero vector (row {row} of {len(data)}): it has no direction")
        for row in (~norm.isfinite()).nonzero().flatten().tolist():
            raise DescriptorError(f"{name} are not finite (row {row} of {len(data)}); the training has diverged")
        first = self._read(data, slice(0, 1)) / norm[0]
        units = (self._read(data, rows) / norm[rows, None] for rows in parts)
        if len(data) > 1 and all((unit - first).abs().max() < COLLAPSED for unit in units):
            raise CollapsedError(
                f"{name} have collapsed: all {len(data)} are equal to within {COLLAPSED:g}; a strict comparison "
                "would score them 100 %"
            )
        return 1 / norm

    def _read(self, data, rows):
        """Rows (a slice, or indices on the device) in float64 on the device."""
        if isinstance(data, torch.Tensor):
            return data[rows if isinstance(rows, slice) else rows.to(data.device)].to(self.device, torch.float64)
        rows = rows if isinstance(rows, slice) else rows.cpu().numpy()
        return torch.from_numpy(data[rows].astype(np.float64)).to(self.device)

    def units(self, rows):
        """L2-normalised rows (a slice, or indices on the device) in float64, one version after the other."""
        for data, inverse_norm in zip(self.sets, self.inverse_norms, strict=True):
            unit = self._read(data, rows) * inverse_norm[rows, None]
            for turn in range(self.regions):
                yield unit.roll(turn * self.dim // self.regions, dims=1) if turn else unit

    def rounded(self, rows, dtype):
        """L2-normalised rows (a slice) in `dtype`, one entry per version, and their largest distance from `units`."""
        shape = (rows.stop - rows.start, self.dim)
        versions = [torch.empty(shape, dtype=dtype, device=self.device) for _ in range(self.versions)]
        error = torch.zeros((), dtype=torch.float64, device=self.device)
        for part in slices(rows.stop, PIECE, rows.start):
            for version, unit in zip(versions, self.units(part), strict=True):
                own = version[part.start - rows.start : part.stop - rows.start].copy_(unit)
                error = torch.maximum(error, (unit - own).norm(dim=1).max())
        return versions, float(error)

    def similarity(self, r, i, j):
        """(n,) float64 cosine similarities of rows i with rows j of r, (n,) indices on the device."""
        out = torch.empty(len(i), dtype=torch.float64, device=self.device)
        for part in slices(len(i), PAIRS if self.device.type == "cpu" else PAIRS_GPU):
            (other,) = r.units(j[part])
            out[part] = torch.stack([(unit * other).sum(dim=1) for unit in self.units(i[part])]).amax(dim=0)
        return out


class Turned(Descriptors):
    """Queries whose north is not known: a set for each angle they were turned by; shifts are turns by 360 / regions."""


@contextmanager
def full_precision():
    """float32 products in float32, sums of bfloat16 products in float32: the bounds hold for no less."""
    matmul = torch.backends.cuda.matmul
    changes = [(matmul, "allow_bf16_reduced_precision_reduction", False)]
    with ExitStack() as undo:
        try:
            undo.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("highest")
        except RuntimeError:  # the attributes that come in its place have been set, and PyTorch refuses to mix the two
            changes += [(part, "fp32_precision", "ieee") for part in (matmul, torch.backends.mkldnn.matmul)]
        for part, name, value in changes:
            undo.callback(setattr, part, name, getattr(part, name))
            setattr(part, name, value)
        yield


@full_precision()
def compare(q, r, thresholds, first=0, nearest=0, chunk=CHUNK):
    """Compare the similarities of queries and all gallery items with thresholds.

    Args:
        q, r: `Descriptors` of queries and of M gallery items on one device; the gallery has one version.
        thresholds: (T, n) float64 similarities for queries first .. first + n.
        nearest: length of the list of most similar items.  chunk: rows of either side compared at once.

    Returns:
        (above, ties, top): (T, n) int64 items above each threshold; (T, n) int64 items equal to it, within twice the
        rounding error of float64; (n, min(nearest, M)) int64 items, the most similar first, equal ones by number.
    """
    tie, length = 2 * rounding(q.dim, torch.float64), min(nearest, r.rows)
    above, ties = torch.zeros(2, *thresholds.shape, dtype=torch.int64, device=q.device)
    top = np.empty((thresholds.shape[1], length), dtype=np.int64)
    narrow = narrow_dtype(q.device)
    formats = [dtype for dtype in (narrow, torch.float32, torch.float64) if dtype]
    held = r.rounded(slice(0, r.rows), narrow) if narrow and 2 * r.rows * r.dim <= HELD_BYTES else None
    for rows in slices(thresholds.shape[1], max(1, chunk // q.versions)):
        queries, targets = slice(first + rows.start, first + rows.stop), thresholds[:, rows, None]
        wider = iter(formats)
        own = q.rounded(queries, dtype := next(wider))
        best, found = torch.full_like(targets[0], -2).expand(-1, length), []  # bounds of the list, and its candidates
        for columns in slices(r.rows, chunk):
            while True:
                stored = held if dtype == narrow else None
                (other,), error = stored or r.rounded(columns, dtype)
                block, error = _multiply(*own, other[columns] if stored else other, error)
                low, high = ((targets + sign * (error + tie)).to(block.dtype) for sign in (-1, 1))
                close = [(block >= a) & (block <= b) for a, b in zip(low, high, strict=True)]
                if length:
                    last = block.topk(min(length, block.shape[1]), dim=1).values - error
                    last = torch.cat([best, last], dim=1).topk(length, dim=1).values
                    close.append(block >= (last[:, -1:] - error - tie).to(block.dtype))
                most = max(int(mask.count_nonzero()) for mask in close)
                if dtype == torch.float64 or most <= TOO_CLOSE * block.numel() + length * len(block):
                    break
                own = q.rounded(queries, dtype := next(wider))
            for t, mask in enumerate(close):
                i, j = mask.nonzero(as_tuple=True)
                similarity = q.similarity(r, i + queries.start, j + columns.start)
                if t == len(targets):
                    found.append((i, j + columns.start, similarity))
                    best = last
                    break
                gap = similarity - targets[t, i, 0]
                above[t, rows] += (block > high[t]).sum(dim=1, dtype=torch.int32)
                above[t, rows].index_add_(0, i, (gap > tie).long())
                ties[t, rows].index_add_(0, i, (gap.abs() <= tie).long())
        if length:
            columns = (torch.cat(column).cpu().numpy() for column in zip(*found, strict=True))
            top[rows] = _first_items(*columns, length, tie)
    return above, ties, top


def _first_items(i, item, similarity, length, tie):
    """(n, length) items of queries i, the most similar first, equal ones (to within `tie`) by number."""
    order = np.lexsort((item, -np.round(similarity / tie), i))
    start = np.searchsorted(i[order], np.unique(i))
    return item[order][start[:, None] + np.arange(length)]


def _multiply(versions, error, other, other_error):
    """(n, m) similarities in float32 or float64, the largest over the versions of a query, and a bound on their error.

    |q.r - q'.r'| <= |q - q'| |r| + |q'| |r - r'|, then the rounding of sums (matrix units may truncate) and, in
    bfloat16, of the similarity itself.
    """
    block, dim = None, other.shape[1]
    depth = dim if other.dtype == torch.bfloat16 else DEPTH
    for version in versions:
        product = version[:, :depth] @ other[:, :depth].T
        for start in range(depth, dim, depth):
            product.addmm_(version[:, start : start + depth], other[:, start : start + depth].T)
        block = product if block is None else torch.maximum(block, product, out=block)
    error += (1 + error) * other_error
    if other.dtype == torch.bfloat16:
        return block.float(), error + 4 * rounding(dim, torch.float32) + 2**-8
    return block, error + rounding(min(depth, dim) + -(-dim // depth), block.dtype)


def rounding(dim, dtype):
    """Bound on the error of a similarity of `dim` products that is due to rounding in `dtype`.

    Unit vectors; rounding of inputs and norms included (Higham, Accuracy and Stability of Numerical Algorithms, 3.1).
    """
    return (dim + 16) * torch.finfo(dtype).eps / 2


def narrow_dtype(device):
    """bfloat16 where the device has instructions for it, else None."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else None
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return None
    return None if {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags) else torch.bfloat16


def slices(stop, width, start=0):
    """The slices of `width` rows, the last of what is left, from start to stop."""
    return [slice(begin, min(begin + width, stop)) for begin in range(start, stop, width)]
