"""A gallery in 8-bit integers, and products with it whose error is bounded."""

from typing import NamedTuple

import torch

from utils import narrow
from utils.descriptors import rounding
from utils.narrow import CONVERTED, Block, Narrow, slices

LARGEST = 127
LONGEST = 2**16  # numbers of a descriptor whose products still fit 32 bits


class Queries(NamedTuple):
    """A block of n queries, as `Bytes.prepare` makes and `Bytes.product` takes them."""

    rows: torch.Tensor  # (n, dim) int8
    scale: torch.Tensor  # (n,) float64: what a 1 stands for
    error: torch.Tensor  # (n,) float64: distance of a unit row from its copy
    targets: list  # (n,) float64 each
    tie: float


class Bytes(Narrow):
    """A gallery in 8-bit integers: a scale for each query and for each block of the gallery, sums in 32 bits, exact.

    Its error is ten times that of bfloat16, its products are twice as fast. That is enough where similarities are
    spread as a trained network's are: few lie as near to the positive's.
    """

    def __init__(self, r, width):
        super().__init__(r, width)
        self.width = width
        self.too_close = 0.02  # where bfloat16 is faster

    def fits(self):
        return self.dim <= LONGEST and self.r.device.type == "cpu"

    def hold(self):
        """Convert the whole gallery at once, where it is not too large. Returns whether it is held."""
        if self.held is None and self.r.rows * self.dim <= narrow.HELD_BYTES:
            self.held = [self._convert(part) for part in self.parts]
        return self.held is not None

    def gallery(self, columns):
        """(columns, dim) int8, what a 1 stands for (), and the largest distance of a unit row from its copy."""
        if self.held is None:
            return self._convert(columns)
        rows, scale, error = self.held[columns.start // self.width]
        return rows[: columns.stop - columns.start], scale, error

    def _convert(self, columns):
        rows = torch.empty(columns.stop - columns.start, self.dim, dtype=torch.int8)
        parts = slices(len(rows), CONVERTED)
        largest = [self.r.unit(narrow.within(columns, part), torch.float32).abs().max() for part in parts]
        scale = torch.stack(largest).max() / LARGEST
        error = 0.0
        for part in parts:
            unit = self.r.unit(narrow.within(columns, part), torch.float32)
            error = max(error, float(_to_bytes(unit, scale, rows[part]).max()))
        return rows, scale, error

    def prepare(self, q, rows, targets, tie):
        """What `product` needs of a block of queries."""
        count = len(targets[0])
        own = torch.empty(count, self.dim, dtype=torch.int8)
        scale, error = torch.empty(count), torch.empty(count)
        for part in slices(count, CONVERTED):
            unit = q.unit(narrow.within(rows, part), torch.float32)
            scale[part] = unit.abs().amax(dim=1) / LARGEST
            error[part] = _to_bytes(unit, scale[part][:, None], own[part])
        return Queries(own, scale.double(), error.double(), targets, tie)

    def product(self, queries, columns):
        """Sums of products, their limits, and the `Block`."""
        gallery, scale, error = self.gallery(columns)
        sums = torch._int_mm(queries.rows, gallery.T)
        # |q.r - q'.r'| <= |q - q'| |r| + |q'| |r - r'|, then what float32 rounds in unit rows and distances.
        bound = 1.01 * (queries.error + (1 + queries.error) * error) + rounding(self.dim, torch.float32) + queries.tie
        one = queries.scale * scale.double()
        limits = [
            [(limit / one).floor().int()[:, None] for limit in (target - bound, target + bound)]
            for target in queries.targets
        ]
        return sums, limits, Block(sums, bound, scale=one)


def _to_bytes(unit, scale, out):
    """Fill `out` (n, dim) int8 with rows (n, dim) in units of `scale`. Returns (n,) their distances from the rows."""
    numbers = (unit / scale).round_()
    out.copy_(numbers)
    return numbers.mul_(scale).sub_(unit).norm(dim=1)
