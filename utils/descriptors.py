"""A set of descriptors as the metrics need it: checked, normalised rows on demand, similarities in float64."""

from copy import copy

import numpy as np
import torch

from utils.errors import UserError

EXACT_ROWS = 1024  # rows whose norms are formed at once
PAIRS = 128  # compared at once in float64: few enough to stay in the processor's cache
PAIRS_GPU = 4096
SMALL = 1e-30  # norms from here to its inverse leave room for products in float32
COLLAPSED = 1e-6  # descriptors that differ by less than this in every normalised number are one and the same


class DescriptorError(UserError, ValueError):
    """Descriptors that must not be scored: not finite, zero or collapsed; or labels that do not fit them."""


class Descriptors:
    """(rows, dim) descriptors, NumPy or torch, on any device, held as they are; their norms in float64.

    Raises:
        DescriptorError: not (N, D) with N, D >= 1; NaN, infinite or zero rows; N > 1 rows that are all the same.
    """

    ways = 1  # descriptors of a row

    def __init__(self, data, name, device):
        if getattr(data, "ndim", None) != 2 or 0 in data.shape:
            raise DescriptorError(
                f"{name} have shape {tuple(np.shape(data))}; expected (rows, numbers), none of them 0"
            )
        if data.dtype.is_complex if isinstance(data, torch.Tensor) else data.dtype.kind not in "fiub":
            raise DescriptorError(f"{name} are {data.dtype}; expected real numbers")
        self.data, self.device = data, device
        self.rows, self.dim = data.shape
        self.inverse_norm = torch.empty(self.rows, dtype=torch.float64, device=device)
        self.wide = False  # whether a norm is too large or too small for float32
        spread, first = 0.0, None
        for start in range(0, self.rows, EXACT_ROWS):
            block = self.block(slice(start, start + EXACT_ROWS))
            block = block if block.is_floating_point() else block.double()
            norm = torch.linalg.vector_norm(block, dim=1, dtype=torch.float64)
            if not torch.isfinite(norm).all():
                row = start + int((~torch.isfinite(norm)).nonzero()[0])
                raise DescriptorError(f"{name} are not finite (row {row} of {self.rows}); the training has diverged")
            if (norm == 0).any():
                row = start + int((norm == 0).nonzero()[0])
                raise DescriptorError(f"{name} hold a zero vector (row {row} of {self.rows}): it has no direction")
            inverse = norm.reciprocal()
            self.wide |= bool(((inverse < SMALL) | (inverse > 1 / SMALL)).any())
            self.inverse_norm[start : start + len(block)] = inverse
            for part, scale in zip(block.split(64), inverse.split(64), strict=True):
                if spread >= COLLAPSED:  # one pair of rows that differ is enough
                    break
                unit = part.double() * scale[:, None]
                first = unit[0].clone() if first is None else first
                spread = float((unit - first).abs().max())
        if self.rows > 1 and spread < COLLAPSED:
            raise DescriptorError(
                f"{name} have collapsed: all {self.rows} are equal to within {COLLAPSED:g}; such a set would score "
                "100 % and is refused"
            )

    def part(self, start, stop):
        """Rows start .. stop as a set of their own."""
        other = copy(self)
        other.data, other.inverse_norm = self.data[start:stop], self.inverse_norm[start:stop]
        other.rows = len(other.data)
        return other

    def unit(self, rows, dtype):
        """L2-normalised rows (a slice, or indices on the device) in `dtype`."""
        if self.wide:
            return (self.block(rows).double() * self.inverse_norm[rows][:, None]).to(dtype)
        return self.block(rows).to(dtype) * self.inverse_norm[rows].to(dtype)[:, None]

    def units(self, rows, dtype):
        """What a query can look like, as L2-normalised rows: here one way (see `Turned`)."""
        yield self.unit(rows, dtype)

    def similarity(self, r, i, j):
        """(n,) float64 cosine similarities of rows i with rows j of r."""
        products = torch.linalg.vecdot(self.block(i).double(), r.block(j).double())
        return products.mul_(self.inverse_norm[i]).mul_(r.inverse_norm[j])

    def block(self, rows):
        """Rows as a tensor on the device, in their own precision."""
        if isinstance(self.data, torch.Tensor):
            return self.data[rows if isinstance(rows, slice) else rows.to(self.data.device)].to(self.device)
        index = rows if isinstance(rows, slice) else rows.cpu().numpy()
        return torch.from_numpy(np.array(self.data[index], self.data.dtype.newbyteorder("="))).to(self.device)


class Turned:
    """Queries whose north is not known: several descriptors of each, and a similarity is the largest of theirs.

    Args:
        data: (N, D) descriptors of the panoramas, one set for each angle they were turned by.
        regions: R equal parts of a descriptor that a quarter turn (R = 4), or 360 / R degrees, moves by one. Each
            set is used in its R circular shifts as well.
        name, device: as of `Descriptors`.

    Attributes:
        ways: descriptors of a query, len(data) * R.

    Raises:
        DescriptorError: as `Descriptors`; parts that are not equal.
    """

    def __init__(self, data, regions, name, device):
        self.sets, self.regions = [Descriptors(rows, name, device) for rows in data], regions
        self.rows, self.dim, self.device = self.sets[0].rows, self.sets[0].dim, device
        if self.dim % regions:
            raise DescriptorError(f"{name} have {self.dim} numbers, which do not divide into {regions} regions")

    @property
    def ways(self):
        return len(self.sets) * self.regions

    def part(self, start, stop):
        """Rows start .. stop as a set of their own."""
        other = copy(self)
        other.sets = [rows.part(start, stop) for rows in self.sets]
        other.rows = other.sets[0].rows
        return other

    def units(self, rows, dtype):
        """Every way that queries can look, one after the other, as L2-normalised rows."""
        for own in self.sets:
            unit = own.unit(rows, dtype)
            for shift in range(self.regions):
                yield unit.roll(shift * self.dim // self.regions, dims=1)

    def similarity(self, r, i, j):
        """(n,) float64: the largest cosine similarity of rows i, turned in any way, with rows j of r."""
        best, other = None, r.block(j).double()
        for own in self.sets:
            block, scale = own.block(i).double(), own.inverse_norm[i]
            for shift in range(self.regions):
                found = torch.linalg.vecdot(block.roll(shift * self.dim // self.regions, dims=1), other) * scale
                best = found if best is None else torch.maximum(best, found)
        return best.mul_(r.inverse_norm[j])


def exact_similarity(q, r, i, j):
    """Cosine similarities of rows i of q with rows j of r, (n,) float64; i and j are (n,) indices on the device."""
    out = torch.empty(len(i), dtype=torch.float64, device=q.device)
    pairs = PAIRS if q.device.type == "cpu" else PAIRS_GPU
    for start in range(0, len(i), pairs):
        part = slice(start, start + pairs)
        out[part] = q.similarity(r, i[part], j[part])
    return out


def rounding(dim, dtype):
    """Bound on the error of a similarity of `dim` products that is due to rounding in `dtype`.

    Unit vectors; rounding of inputs and norms included (Higham, Accuracy and Stability of Numerical Algorithms, 3.1).
    """
    return (dim + 16) * torch.finfo(dtype).eps / 2
