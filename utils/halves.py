"""A gallery in bfloat16, and products with it whose error is bounded."""

from typing import NamedTuple

import torch

from utils import narrow
from utils.descriptors import rounding
from utils.narrow import CONVERTED, Block, Narrow, slices


class Queries(NamedTuple):
    """A block of n queries, as `Halves.prepare` makes and `Halves.product` takes them."""

    rows: torch.Tensor  # (n, dim + EXTRA) bfloat16
    limits: list  # for each target (low, high), (n, 1) int16 bits of bfloat16
    bound: torch.Tensor  # (n,) float64 error of a similarity
    shift: torch.Tensor  # (n,) float64: what the product subtracts


class Halves(Narrow):
    """A gallery in bfloat16, and blocks of similarities less a threshold whose error is bounded.

    Three numbers are appended to each row, so that the product itself subtracts the threshold (in three bfloat16
    parts, exact to 2**-26): what is rounded to bfloat16 at the end is the small difference, not the similarity. The
    difference is shifted by the bound, so that "may be above" is "positive"; positive bfloat16 numbers order as their
    bits do, and integers compare fast.
    """

    EXTRA = 32  # appended columns: three used, the rest keeps rows aligned

    def __init__(self, r, width):
        super().__init__(r, width)
        # Largest distance between a unit row and its bfloat16 copy: the worst case, or where all are made, theirs.
        self.error = 2**-8
        self.too_close = 0.03 if r.device.type == "cpu" else 0.005  # where float32 is faster

    def fits(self):
        return True

    def hold(self):
        """Convert the whole gallery at once, where it is not too large. Returns whether it is held."""
        r = self.r
        if self.held is None and 2 * r.rows * (r.dim + self.EXTRA) <= narrow.HELD_BYTES:
            held = torch.empty(-(-r.rows // 8) * 8, r.dim + self.EXTRA, dtype=torch.bfloat16, device=r.device)
            held[r.rows :] = 0
            units = (self._fill(columns, held[columns]) for columns in slices(r.rows, CONVERTED))
            errors = [(unit - own[:, : self.dim]).norm(dim=1).max() for unit, own in units]
            self.error, self.held = float(torch.stack(errors).max()), held
        return self.held is not None

    def _fill(self, columns, own):
        """Fill `own` (n, dim + EXTRA) with rows of the gallery. Returns the unit rows in float32, and `own`."""
        unit = self.r.unit(columns, torch.float32)
        own[:, : self.dim] = unit
        own[:, self.dim : self.dim + 3] = 1
        own[:, self.dim + 3 :] = 0
        return unit, own

    def gallery(self, columns):
        """(columns, dim + EXTRA) bfloat16; the last part has rows of 0 after it, up to a multiple of 8."""
        if self.held is not None:
            return self.held[columns.start : len(self.held) if columns.stop == self.r.rows else columns.stop]
        count = columns.stop - columns.start
        own = torch.zeros(-(-count // 8) * 8, self.dim + self.EXTRA, dtype=torch.bfloat16, device=self.r.device)
        for part in slices(count, CONVERTED):
            self._fill(narrow.within(columns, part), own[part])
        return own

    def prepare(self, q, rows, targets, tie):
        """What `product` needs of a block of queries."""
        count = len(targets[0])
        own = torch.zeros(count, self.dim + self.EXTRA, dtype=torch.bfloat16, device=q.device)
        error = torch.empty(count, device=q.device)
        for part in slices(count, CONVERTED):
            unit = q.unit(narrow.within(rows, part), torch.float32)
            own[part, : self.dim] = unit
            error[part] = (unit - own[part, : self.dim]).norm(dim=1)
        # |q.r - q'.r'| <= |q - q'| |r| + |q'| |r - r'|, then what float32 rounds: the sum of products, as large as the
        # similarity and the threshold together (2; 6 for a GPU, whose matrix units may truncate), rows and norms.
        sums = (2 if q.device.type == "cpu" else 6) * rounding(self.dim + 3, torch.float32)
        bound = error + (1 + error) * self.error + sums + tie
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

    def product(self, queries, columns):
        """Bits of bfloat16 numbers (rows beyond the gallery are 0 and never above), their limits, and the `Block`."""
        block = queries.rows @ self.gallery(columns).T
        values = block[:, : columns.stop - columns.start]
        return block.view(torch.int16), queries.limits, Block(values, queries.bound, queries.shift)
