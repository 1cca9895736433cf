"""How many gallery items are more similar than a threshold: exact counts from fast blocks.

A block of similarities is formed in 8-bit or 16-bit integers, bfloat16 or float32. A comparison that lies further from
its threshold than the block's error bound is decided; the others are made again one by one, in float32 where they are
many (on a CPU), and the last few in float64. Every way gives the float64 counts.
"""

import warnings

import torch

from utils.bytes import Bytes, Words
from utils.descriptors import exact_similarity, rounding
from utils.halves import Halves
from utils.narrow import Block, count_true, faster_formats, full_precision, slices

CHUNK = 4096  # queries in one block
COLUMNS = 2048  # gallery items in one block
DEPTH = 384  # products summed at a time in float32
TOO_CLOSE = 0.03  # share of a float32 block within its bound from which the block is redone in float64
SMALL = 2e9  # multiplications below which a narrow format is not worth its preparation
MANY = 4096  # comparisons of a block to be made again from which float32 is worth its preparation, on a CPU
DOUBTFUL = 64  # queries whose lists are made from all items at once
SPARE = 4  # candidates beyond the wanted top list
FORMATS = {"int8": Bytes, "bfloat16": Halves, "int16": Words}


def count_above(q, r, thresholds, chunk=CHUNK, formats=None, nearest=0):
    """Gallery items strictly more similar to each query than its thresholds.

    Args:
        q, r: `Descriptors` of N queries and M gallery items on one device; q may be `Turned`.
        thresholds: list of (N,) float64 similarities; the first is the lowest for every query.
        chunk: rows of either side compared at once.
        formats: names of FORMATS, of which the first that decides most comparisons is used ahead of float32; None for
            those that are faster on this device.
        nearest: length of the list of most similar items to return as well.

    Returns:
        (counts, top): a list of (N,) int64; (N, min(nearest, M)) int64, the most similar item first, or None.
    """
    tie = 2 * rounding(q.dim, torch.float64)
    counts = [torch.zeros(q.rows, dtype=torch.int64, device=q.device) for _ in thresholds]
    top = _TopList(q, r, min(nearest, r.rows)) if nearest else None
    if q.ways > 1:
        formats = ()
    elif formats is None:
        formats = faster_formats(q.device) if q.rows * r.rows * q.dim > SMALL else ()
    width, chunk = min(chunk, COLUMNS), max(1, chunk // q.ways)
    columns_of = slices(r.rows, width)
    with full_precision():
        narrow = _narrow(q, r, thresholds, tie, formats, width)
        for start in range(0, q.rows, chunk):
            rows = slice(start, min(start + chunk, q.rows))
            targets = [threshold[rows] for threshold in thresholds]
            prepared = narrow.prepare(q, rows, targets, tie) if narrow else None
            q32 = None
            for columns in columns_of:
                block = found = None
                if narrow:
                    block, found = narrow.compare(prepared, columns)
                many = found is not None and q.device.type == "cpu" and max(len(near[0]) for _, near in found) > MANY
                if found is None or many:
                    q32 = list(q.units(rows, torch.float32)) if q32 is None else q32
                    r32 = r.unit(columns, torch.float32)
                if many:
                    found = [_look_closer(q32[0], r32, *pair, tie) for pair in zip(targets, found, strict=True)]
                if found is None:
                    similarity, error = _float32_block(q32, r32)
                    block = Block(similarity, torch.full_like(targets[0], error))
                    found = [_compare(similarity, target, error + tie) for target in targets]
                for count, target, (above, near) in zip(counts, targets, found, strict=True):
                    count[rows] += above
                    count[rows] += _decide(q, r, rows, columns, target + tie, near)
                if top is not None:
                    top.add(rows, columns, block)
        lists = None if top is None else top.finish()
    return counts, lists


def _narrow(q, r, thresholds, tie, formats, width):
    """The gallery in the first of the formats that decides most comparisons, or None."""
    for name in formats:
        made = FORMATS[name](r, width)
        if made.fits() and made.decide_most(q, thresholds, tie):
            made.hold()
            return made
    return None


def _float32_block(ways, r32):
    """(n, m) float32 similarities, the largest over the ways a query can look, and their error bound.

    Short sums are made and then added: the bound is that of the short ones.
    """
    best, dim = None, r32.shape[1]
    for q32 in ways:
        block = q32[:, :DEPTH] @ r32[:, :DEPTH].T
        for start in range(DEPTH, dim, DEPTH):
            block.addmm_(q32[:, start : start + DEPTH], r32[:, start : start + DEPTH].T)
        best = block if best is None else torch.maximum(best, block, out=best)
    return best, _float32_bound(dim)


def _float32_bound(dim):
    return rounding(min(DEPTH, dim) + -(-dim // DEPTH), torch.float32)


def _float64_block(q, r, rows, columns):
    """(n, m) float64 similarities."""
    other = r.unit(columns, torch.float64).T
    best = None
    for unit in q.units(rows, torch.float64):
        block = unit @ other
        best = block if best is None else torch.maximum(best, block, out=best)
    return best


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


def _look_closer(q32, r32, target, found, tie):
    """Decide in float32 the pairs that were too near to tell: (n,) items surely above, and what is still too near."""
    above, (i, j) = found
    ends = torch.zeros(len(q32) + 1, dtype=torch.int64)
    ends[1:] = torch.bincount(i, minlength=len(q32)).cumsum(0)
    similarity = torch.zeros(len(i))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR")  # "in beta state"
        for part in slices(q32.shape[1], DEPTH):
            pairs = torch.sparse_csr_tensor(ends, j, similarity, size=(len(q32), len(r32)), check_invariants=False)
            similarity = torch.sparse.sampled_addmm(pairs, q32[:, part], r32[:, part].T).values()
    gap = similarity.double() - target[i]
    bound = _float32_bound(q32.shape[1]) + tie
    left = gap.abs() <= bound
    return above.index_add(0, i, (gap > bound).long()), (i[left], j[left])


def _decide(q, r, rows, columns, threshold, near):
    """(n,) items of the near pairs (None: of the whole block) that are above the threshold in float64."""
    if near is None:
        return (_float64_block(q, r, rows, columns) > threshold[:, None]).sum(dim=1)
    i, j = near
    above = exact_similarity(q, r, i + rows.start, j + columns.start) > threshold[i]
    return torch.zeros(len(threshold), dtype=torch.int64, device=q.device).index_add_(0, i, above.long())


class _TopList:
    """The most similar items of every query, gathered block by block and put into float64 order at the end."""

    def __init__(self, q, r, wanted):
        self.q, self.r, self.wanted = q, r, wanted
        self.keep = min(wanted + SPARE, r.rows)
        self.value = torch.full((q.rows, self.keep), -torch.inf, dtype=torch.float64, device=q.device)
        self.item = torch.zeros(q.rows, self.keep, dtype=torch.int64, device=q.device)
        self.error = torch.zeros(q.rows, dtype=torch.float64, device=q.device)

    def add(self, rows, columns, block):
        """Take in a `Block` of queries `rows` and gallery items `columns`, slices."""
        largest = block.largest()
        self.error[rows] = torch.maximum(self.error[rows], block.off(largest))
        entering = (block.similarity(largest) > self.value[rows, -1]).nonzero().squeeze(1)
        block, rows = block.rows(entering), rows.start + entering
        value, item = block.values.topk(min(self.keep, block.values.shape[1]), dim=1)
        self.error[rows] = torch.maximum(self.error[rows], block.off(value[:, -1]))
        value = torch.cat([self.value[rows], block.similarity(value.T).T], dim=1)
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
            for part in doubtful.nonzero().squeeze(1).split(DOUBTFUL):
                top[part] = self._from_all(part)
        return top

    def _from_all(self, rows):
        """(n, wanted) lists of some queries, from float64 similarities with all items."""
        tie = 2 * rounding(self.q.dim, torch.float64)
        blocks = [_float64_block(self.q, self.r, rows, columns) for columns in slices(self.r.rows, COLUMNS)]
        similarity = torch.cat(blocks, dim=1)
        least = similarity.topk(self.wanted, dim=1).values[:, -1:] - tie
        top = torch.empty(len(rows), self.wanted, dtype=torch.int64, device=self.q.device)
        for row, query in enumerate(rows):  # equal items differ by where they are in a block: made again alike
            item = (similarity[row] >= least[row]).nonzero().squeeze(1)
            exact = exact_similarity(self.q, self.r, query.expand(len(item)), item)
            top[row] = item[exact.sort(descending=True, stable=True).indices[: self.wanted]]
        return top
