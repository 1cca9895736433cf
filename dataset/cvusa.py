"""CVUSA: 35,532 training and 8,884 test pairs, one to one."""

from pathlib import Path

import numpy as np

from dataset.base import Listing, PairDataset, read_lines
from utils.errors import UserError


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
        path = self.root / "splits" / f"{self.split}-19zl.csv"
        root = str(self.root)
        ground, aerial = [], []
        for number, line in enumerate(read_lines(path), start=1):
            columns = [column.strip() for column in line.split(",")]
            if len(columns) < 2 or not all(columns[:2]):
                raise UserError(f"{path} line {number} is {line[:80]!r}; expected aerial path,ground path,annotation")
            aerial.append(f"{root}/{columns[0]}")
            ground.append(f"{root}/{columns[1]}")
        if not ground:
            raise UserError(f"{path} holds no pairs; expected lines of aerial path,ground path,annotation path")
        return Listing(ground, aerial, np.arange(len(ground), dtype=np.int64)[:, None])

    @classmethod
    def looks_right(cls, folder):
        return all((Path(folder) / "splits" / f"{split}-19zl.csv").is_file() for split in cls.splits)
