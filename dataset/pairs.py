"""Your own imagery: one north-aligned panorama and one north-up aerial image per place, matched by file name."""

import os
from pathlib import Path

import numpy as np

from dataset.base import Listing, PairDataset, check_names, read_lines
from utils.options import UserError

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")


class Pairs(PairDataset):
    """Own pairs: `ground/<id>.*` and `aerial/<id>.*`, ids listed a line each in `train.txt` and `val.txt`.

    Arguments as `PairDataset`.
    """

    name = "pairs"
    splits = ("train", "val")
    tree = """\
  ground/<id>.jpg    panoramas: left edge south, centre north
  aerial/<id>.jpg    aerial images: north up, the camera at the centre
  train.txt          ids of the training pairs, a line each
  val.txt            ids of the test pairs"""

    def read(self):
        path = self.root / f"{self.split}.txt"
        lines = read_lines(path)
        check_names(path, lines)
        ids = list(lines.values())
        folders = {view: self.root / view for view in ("ground", "aerial")}
        ending = {view: _endings(folder, set(ids)) for view, folder in folders.items()}
        paths = {
            view: [f"{folder}/{name}{ending[view].get(name, '.jpg')}" for name in ids]
            for view, folder in folders.items()
        }
        return Listing(paths["ground"], paths["aerial"], np.arange(len(ids), dtype=np.int64)[:, None])

    @classmethod
    def looks_right(cls, folder):
        return all((Path(folder) / f"{split}.txt").is_file() for split in cls.splits)


def _endings(folder, ids):
    """{id: file ending} of the images in a folder. Raises UserError where an id has two."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return {}
    found = {}
    for stem, ending in map(os.path.splitext, names):
        if stem in ids and ending.lower() in IMAGE_ENDINGS:
            if stem in found:
                raise UserError(f"{folder} holds both {stem}{found[stem]} and {stem}{ending}; keep one of them")
            found[stem] = ending
    return found
