"""A gallery in integers of one byte or of two, and products with it whose error is bounded."""

from typing import NamedTuple

import torch

from utils import narrow
from utils.descriptors import rounding
from utils.narrow import CONVERTED, Block, Narrow, exact_bytes, slices, within

LARGEST = 127
LONGEST = 2**16  # numbers of a descriptor, of which twice as many products of bytes fit 32 bits
LOW = 256  # what a 1 in the higher of two bytes stands for, in ones of the lower


class Rows(NamedTuple):
    """n unit rows in integers."""

    numbers: torch.Tensor  # (n, bytes of a row) int8
    scale: torch.Tensor  # float32, () or (n, 1): what a 1 stands for
    error: torch.Tensor  # (n,) float32 distances of the rows from their copies
    low: torch.Tensor  # (n,) float32 norms of what the lower bytes stand for, 0 where there are none


class Queries(NamedTuple):
    """A block of n queries, as `Bytes.prepare` makes and `Bytes.product` takes them."""

    rows: Rows
    targets: list  # (n,) float64 each
    tie: float


class Bytes(Narrow):
    """A gallery in 8-bit integers: a scale for each query and for each block of the gallery, sums in 32 bits, exact.

    Its error is ten times that of bfloat16, its products are twice as fast. That is enough where similarities are
    spread as a trained network's are: few lie as near to the positive's.
    """

    BYTES = 1  # of a number
    TOO_CLOSE = 0.02

    def __init__(self, r, width):
        super().__init__(r, width)
        self.width, self.too_close = width, self.TOO_CLOSE

    def fits(self):
        return self.dim <= LONGEST and self.r.device.type == "cpu" and exact_bytes()

    def hold(self):
        """Convert the whole gallery at once, where all takes less than 1 GB. Returns whether it is held."""
        if self.held is None and self.r.rows * self.dim * self.BYTES <= narrow.HELD_BYTES / self.BYTES:
            self.held = [self._gallery(part) for part in self.parts]
        return self.held is not None

    def prepare(self, q, rows, targets, tie):
        """What `product` needs of a block of queries."""
        count = len(targets[0])
        made = self._empty(count, torch.empty(count, 1))
        for part in slices(count, CONVERTED):
            unit = q.unit(within(rows, part), torch.float32)
            made.scale[part] = self._scale(unit.abs().amax(dim=1, keepdim=True))
            self._fill(unit, made.scale[part], made, part)
        return Queries(made, targets, tie)

    def product(self, queries, columns):
        """Sums of products, their limits, and the `Block`; `columns` start where one of the parts does."""
        own = queries.rows
        other = self._gallery(columns) if self.held is None else self.held[columns.start // self.width]
        numbers = other.numbers[: columns.stop - columns.start]
        # |q.r - q'.r'| <= |q - q'| |r| + |q'| |r - r'|, and the product of low bytes, which is left out; then what
        # float32 rounds in unit rows and distances.
        error, farthest = own.error.double(), float(other.error.max())
        bound = 1.01 * (error + (1 + error) * farthest + own.low.double() * float(other.low.max()))
        bound += rounding(0, torch.float32) + queries.tie
        one = self._one(own.scale.squeeze(1).double() * other.scale.double())
        limits = [
            [(limit / one).floor().int()[:, None] for limit in (target - bound, target + bound)]
            for target in queries.targets
        ]
        sums = self._multiply(own.numbers, numbers)
        return sums, limits, Block(sums, bound, scale=one)

    def _gallery(self, columns):
        """`Rows` of a part of the gallery."""
        parts = slices(columns.stop - columns.start, CONVERTED)
        units = (self.r.unit(within(columns, part), torch.float32) for part in parts)
        scale = self._scale(torch.stack([unit.abs().max() for unit in units]).max())
        made = self._empty(columns.stop - columns.start, scale)
        for part in parts:
            self._fill(self.r.unit(within(columns, part), torch.float32), scale, made, part)
        return made

    def _empty(self, count, scale):
        numbers = torch.empty(count, self.BYTES * self.dim, dtype=torch.int8)
        return Rows(numbers, scale, torch.zeros(count), torch.zeros(count))

    def _scale(self, largest):
        """What a 1 stands for where `largest` is the largest number."""
        return largest / LARGEST

    def _fill(self, unit, scale, made, part):
        """Part (a slice) of `made` from unit rows."""
        numbers = (unit / scale).round_()
        made.numbers[part] = numbers
        made.error[part] = numbers.mul_(scale).sub_(unit).norm(dim=1)

    def _one(self, scale):
        """What a 1 in `_multiply` stands for, from the product of the scales."""
        return scale

    def _multiply(self, own, other):
        return torch._int_mm(own, other.T)


class Words(Bytes):
    """A gallery in integers of two bytes, high and low; the product of low bytes is left out.

    Three times the work of `Bytes`, still less than float32's, and an error near float32's: for what is too close for
    bfloat16.
    """

    BYTES = 2  # a row: its high bytes, then its low bytes
    TOO_CLOSE = 0.03
    LEAST = 3.8e-4  # what a 1 in a high byte stands for at least: 2**8 / LEAST**2 fits 31 bits

    def _scale(self, largest):
        return (largest / LARGEST).clamp_min(self.LEAST) / LOW

    def _fill(self, unit, scale, made, part):
        numbers = (unit / scale).round_()
        high = (numbers / LOW + 0.5).floor_()
        low = numbers - LOW * high  # from -128 to 127
        made.numbers[part, : self.dim], made.numbers[part, self.dim :] = high, low
        made.error[part] = numbers.mul_(scale).sub_(unit).norm(dim=1)
        made.low[part] = low.mul_(scale).norm(dim=1)

    def _one(self, scale):
        return LOW * scale

    def _multiply(self, own, other):
        high, other_high = own[:, : self.dim], other[:, : self.dim]
        sums = torch._int_mm(high, other[:, self.dim :].T)
        sums += torch._int_mm(own[:, self.dim :], other_high.T)
        return sums.add_(torch._int_mm(high, other_high.T), alpha=LOW)
