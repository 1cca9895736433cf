"""CVUSA: 35,532 training and 8,884 test pairs, one to one."""

import csv
from functools import cached_property
from pathlib import Path

import numpy as np

from dataset.base import Listing, PairDataset, check_names, read_lines
from utils.geodesy import Positions
from utils.options import UserError

LOCATIONS = ("split_locations/all.csv", "splits/all.csv")  # not part of every copy
LATITUDES, LONGITUDES = (24.0, 50.0), (-125.0, -66.0)  # degrees, the contiguous United States


class CVUSA(PairDataset):
    """Workman et al., ICCV 2015, in the split of Zhai et al., CVPR 2017. Arguments as `PairDataset`."""

    name = "cvusa"
    splits = ("train", "val")
    tree = """\
  bingmap/19/*.jpg            aerial images
  streetview/panos/*.jpg      panoramas
  splits/train-19zl.csv       lines: aerial path,ground path,annotation path
  splits/val-19zl.csv"""

    def read(self):
        return self._read(self.split)

    @cached_property
    def positions(self):
        """Latitudes and longitudes from split_locations/all.csv, where a copy has it and its columns are recognised."""
        path = next((self.root / name for name in LOCATIONS if (self.root / name).is_file()), None)
        if path is None:
            return None
        every = [_id(ground) for split in self.splits for ground in self._read(split).ground]
        known = read_locations(path, every)
        if known is None:
            return None
        place = np.array([known[_id(ground)] for ground in self.ground])
        return Positions(place, place, "degrees")  # the camera stands at the centre of its own aerial image

    def _read(self, split):
        path = self.root / "splits" / f"{split}-19zl.csv"
        ground, aerial = {}, {}
        for number, line in read_lines(path).items():
            columns = [column.strip() for column in line.split(",")]
            if len(columns) < 2 or not all(columns[:2]):
                raise UserError(f"{path} line {number} is {line[:80]!r}; expected aerial path,ground path,annotation")
            aerial[number], ground[number] = columns[:2]
            if columns[0].startswith("streetview/") or columns[1].startswith("bingmap/"):
                raise UserError(
                    f"{path} line {number} is {line[:80]!r}: its columns are swapped; expected aerial path,ground path,"
                    "annotation"
                )
        for names in (ground, aerial):
            check_names(path, names)
        ground, aerial = ([f"{self.root}/{name}" for name in names.values()] for names in (ground, aerial))
        return Listing(ground, aerial, np.arange(len(ground), dtype=np.int64)[:, None])

    @classmethod
    def looks_right(cls, folder):
        return all((Path(folder) / "splits" / f"{split}-19zl.csv").is_file() for split in cls.splits)


def read_locations(path, ids):
    """{id: (latitude, longitude)} of a CSV file with undocumented columns; None if they are not recognised.

    The columns of coordinates are those whose numbers all lie in the United States. A row belongs to the pair whose id
    one of its columns holds (a number or a path, leading zeros aside); without such a column, row k belongs to pair k,
    provided that the pairs are numbered from 1 and there is a row for each.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error):
        return None
    if rows and np.isnan(_numbers(rows[0])).all():  # names of columns
        rows = rows[1:]
    if not rows or len({len(row) for row in rows}) > 1:
        return None
    columns = list(zip(*rows, strict=True))
    numbers = [_numbers(column) for column in columns]
    latitude, longitude = (_column_within(numbers, *bounds) for bounds in (LATITUDES, LONGITUDES))
    if latitude is None or longitude is None:
        return None
    keys = [[_id(cell) for cell in column] for column in columns]
    key = next((k for k in keys if len(set(k)) == len(k) and set(ids) <= set(k)), None)
    if key is None and set(ids) == {str(k + 1) for k in range(len(rows))}:
        key = [str(k + 1) for k in range(len(rows))]
    return None if key is None else dict(zip(key, zip(latitude, longitude, strict=True), strict=True))


def _id(path):
    """The number of a pair as text: a file's stem without leading zeros."""
    return Path(path).stem.lstrip("0")


def _numbers(cells):
    """(n,) float64 of texts, NaN for what is no number."""
    out = np.full(len(cells), np.nan)
    for i, cell in enumerate(cells):
        try:
            out[i] = float(cell)
        except ValueError:
            continue
    return out


def _column_within(numbers, low, high):
    """The first column of fractions whose numbers all lie in the range, else None."""
    fitting = (c for c in numbers if ((c >= low) & (c <= high)).all() and (c != np.round(c)).any())
    return next(fitting, None)
