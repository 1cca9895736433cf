"""VIGOR: four cities, 105,214 panoramas and 90,618 aerial tiles, panoramas anywhere in their tiles."""

import os
from functools import cached_property
from pathlib import Path

import numpy as np

from dataset.base import Listing, PairDataset, check_names, read_lines
from utils.geodesy import Positions
from utils.options import UserError
from utils.paper import VIGOR_CITIES, VIGOR_CROSS_CITIES

TILE_PIXELS = 640
COVERING = 4  # tiles named for each panorama: the positive and three semi-positives
LABEL_FOLDERS = {"original": ("splits", "."), "corrected": ("splits__corrected", "splits", ".")}
LABEL_SUFFIXES = {"original": "", "corrected": "__corrected"}
TILE_LIST = "satellite_list.txt"


class VIGOR(PairDataset):
    """Zhu et al., CVPR 2021; corrected labels of SliceMatch (Lentsch et al., CVPR 2023).

    Args beyond `PairDataset`:
        cross: train on NewYork and Seattle, test on SanFrancisco and Chicago; else the four cities' same-area lists.
        labels: "original" (as published) or "corrected".
        area: cities that make up the split, queries and gallery alike, instead of the protocol's.

    Attributes:
        deltas: (N, 4, 2) float32, rows and columns in pixels of the 640-pixel tile: the camera stands at row
            320 + delta row, column 320 - delta column of each covering tile.
    """

    name = "vigor"
    splits = ("train", "test")
    one_to_one = False
    visits = 2  # method: an epoch visits every tile that is some panorama's positive twice
    tree = """\
  <City>/panorama/<id>,<lat>,<lng>,.jpg          or ground/<City>/...
  <City>/satellite/satellite_<lat>_<lng>.png     or satellite/<City>/...
  splits/<City>/satellite_list.txt               also splits__corrected/<City>/
  splits/<City>/same_area_balanced_{train,test}.txt, pano_label_balanced.txt
                                                 (corrected labels: the same names with __corrected.txt)
  for the cities NewYork, Seattle, SanFrancisco, Chicago"""

    def __init__(self, root, split, view="pair", cross=False, labels="original", area=None, **kwargs):
        if labels not in LABEL_SUFFIXES:
            raise ValueError(f"labels is {labels!r}; expected one of {', '.join(LABEL_SUFFIXES)}")
        self.cross, self.label_version = cross, labels
        protocol = VIGOR_CROSS_CITIES.get(self.own_split(split), ()) if cross else VIGOR_CITIES
        self.cities = tuple(c for c in protocol if area is None or c in area)
        super().__init__(root, split, view, **kwargs)

    def read(self):
        aerial, row_of = [], {}
        for city in self.cities:
            folder = self._image_folder(city, "satellite")
            path = self._list(city, TILE_LIST)
            names = read_lines(path)
            check_names(path, names)
            for name in names.values():
                row_of[city, name] = len(aerial)
                aerial.append(f"{folder}/{name}")
        ground, tiles, deltas = [], [], []
        for city in self.cities:
            path = self._list(city, self._label_file())
            folder = self._image_folder(city, "panorama")
            names, tile_names, city_deltas = read_labels(path)
            try:
                tiles += [[row_of[city, name] for name in row] for row in tile_names]
            except KeyError as error:
                raise UserError(f"{path} names the tile {error.args[0][1]}, which {city}'s {TILE_LIST} lacks") from None
            ground += [f"{folder}/{name}" for name in names]
            deltas.append(city_deltas)
        self.deltas = np.concatenate(deltas) if deltas else np.empty((0, COVERING, 2), np.float32)
        return Listing(ground, aerial, np.array(tiles, dtype=np.int64).reshape(-1, COVERING))

    @cached_property
    def positions(self):
        """The cameras' and the tile centres' latitudes and longitudes, which the file names hold."""
        try:
            query = [os.path.basename(path).split(",")[1:3] for path in self.ground]
            gallery = [os.path.splitext(os.path.basename(path))[0].split("_")[1:3] for path in self.aerial]
            query, gallery = (np.array(texts, dtype=np.float64) for texts in (query, gallery))
        except ValueError:  # names of another style
            return None
        return Positions(query, gallery, "degrees") if query.shape[1] == gallery.shape[1] == 2 else None

    def _drop_missing(self, listing):
        kept = super()._drop_missing(listing)
        if len(kept.ground) < len(listing.ground):
            there = set(kept.ground)
            self.deltas = self.deltas[[path in there for path in listing.ground]]
        return kept

    def _label_file(self):
        stem = "pano_label_balanced" if self.cross else f"same_area_balanced_{self.split}"
        return f"{stem}{LABEL_SUFFIXES[self.label_version]}.txt"

    def _list(self, city, name):
        """Path of a city's list, wherever the layouts in use put it."""
        folders = LABEL_FOLDERS[self.label_version] if name != TILE_LIST else LABEL_FOLDERS["corrected"]
        for folder in folders:
            path = self.root / folder / city / name
            if path.is_file():
                return path
        other = {"original": "corrected", "corrected": "original"}[self.label_version]
        there = any((self.root / f / city / name).is_file() for f in ("splits", "splits__corrected", "."))
        plain = name.replace("__corrected", "") if self.label_version == "corrected" else name[:-4] + "__corrected.txt"
        there = there or any((self.root / f / city / plain).is_file() for f in LABEL_FOLDERS["corrected"])
        hint = f"; the {other} labels are there: pass --vigor-labels {other}" if there else ""
        raise UserError(
            f"--data-root {self.root} lacks {name} of {city} (looked in {', '.join(f'{f}/{city}' for f in folders)})"
            f"{hint}; expected:\n{self.tree}"
        )

    def _image_folder(self, city, kind):
        """Folder of a city's images: <City>/panorama or ground/<City>; <City>/satellite or satellite/<City>."""
        other = self.root / ("ground" if kind == "panorama" else "satellite") / city
        return other if other.is_dir() else self.root / city / kind

    @classmethod
    def looks_right(cls, folder):
        folder = Path(folder)
        return any(
            (folder / f / city / TILE_LIST).is_file() for f in LABEL_FOLDERS["corrected"] for city in VIGOR_CITIES
        )


def read_labels(path):
    """A label list: N panorama names, N x 4 tile names, (N, 4, 2) float32 deltas (row, column) in pixels.

    Raises:
        UserError: a line has not 13 columns, names the panorama of another line, or holds a delta that is not a number
            of pixels within a tile's side.
    """
    lines = {number: line.split() for number, line in read_lines(path).items()}
    for number, row in lines.items():
        if len(row) != 1 + 3 * COVERING:
            raise UserError(
                f"{path} line {number} has {len(row)} columns; expected 13: panorama, then four times tile, "
                "delta row, delta column"
            )
    check_names(path, {number: row[0] for number, row in lines.items()})
    deltas = np.array([[_delta(text) for text in (*row[2::3], *row[3::3])] for row in lines.values()], np.float32)
    if not (within := (np.abs(deltas) <= TILE_PIXELS).all(1)).all():  # False for NaN
        number = list(lines)[int(np.argmin(within))]
        raise UserError(
            f"{path} line {number} holds a delta that is not a number of pixels from -{TILE_PIXELS} to {TILE_PIXELS}: "
            f"{' '.join(lines[number])[:200]}"
        )
    names = [row[0] for row in lines.values()]
    tiles = [row[1::3] for row in lines.values()]
    return names, tiles, deltas.reshape(-1, 2, COVERING).transpose(0, 2, 1)


def _delta(text):
    try:
        return float(text)
    except ValueError:
        return float("nan")
