"""CVACT: Canberra, 35,532 training, 8,884 validation and 92,802 test pairs, one to one."""

import os
from functools import cached_property
from pathlib import Path

import numpy as np

from dataset.base import Listing, PairDataset, check_names
from dataset.transforms import crop_middle_half
from utils.geodesy import Positions
from utils.options import UserError, scarcity

INDEX_FIELDS = {
    "train": ("trainSet", "trainInd"),
    "val": ("valSet", "valInd"),
    "test": ("valSetAll", "valInd"),
}
IMAGE_FOLDERS = {"train": "ANU_data_small", "val": "ANU_data_small", "test": "ANU_data_test"}
LISTS = "ACT_data.mat"
LARGEST_UTM = 1e7  # metres; a northing counts from the equator, or from 10,000 km south of it
TEST_METRES = 5.0  # the test split has recalls of the exact pair, and of any tile within 5 m


class CVACT(PairDataset):
    """Liu and Li, CVPR 2019. The panorama's middle half height is used. Arguments as `PairDataset`.

    `root` may be the folder that holds ANU_data_small (and ANU_data_test), or one of those two; ACT_data.mat lies
    in the image folder or one level above it.

    Attributes:
        utm: (N, 2) float64, easting and northing of each camera in metres.
    """

    name = "cvact"
    splits = ("train", "val", "test")
    tree = """\
  ACT_data.mat                                          here or in the image folder
  ANU_data_small/streetview/<id>_grdView.jpg            panoramas of train and val
  ANU_data_small/satview_polish/<id>_satView_polish.jpg aerial images of train and val
  ANU_data_test/...                                     the same for the test split"""

    crop_ground = staticmethod(crop_middle_half)

    def read(self):
        images = self._image_folder()
        folders = (images, images.parent, self.root, *(self.root / folder for folder in IMAGE_FOLDERS.values()))
        path = next(folder / LISTS for folder in folders if (folder / LISTS).is_file())
        ids, utm, rows = read_act_data(path, self.split)
        self.utm = utm[rows]
        names = [ids[row] for row in rows]
        return Listing(
            [f"{images}/streetview/{name}_grdView.jpg" for name in names],
            [f"{images}/satview_polish/{name}_satView_polish.jpg" for name in names],
            np.arange(len(names), dtype=np.int64)[:, None],
        )

    @property
    def near_metres(self):
        return TEST_METRES if self.split == "test" else None

    @cached_property
    def positions(self):
        """Each camera stands at the centre of its own tile, so queries and gallery share the coordinates."""
        return Positions(self.utm, self.utm, "metres") if np.isfinite(self.utm).all() else None

    def _drop_missing(self, listing):
        kept = super()._drop_missing(listing)
        if len(kept.ground) < len(listing.ground):
            there = set(kept.ground)
            self.utm = self.utm[[path in there for path in listing.ground]]
        return kept

    def _image_folder(self):
        wanted = IMAGE_FOLDERS[self.split]
        if (self.root / wanted).is_dir():
            return self.root / wanted
        other = set(IMAGE_FOLDERS.values()) - {wanted}
        if (self.root / "streetview").is_dir() and self.root.name not in other:
            return self.root
        raise UserError(
            f"--data-root {self.root} has no {wanted}/, which holds the images of CVACT's {self.split} split; "
            f"expected:\n{self.tree}"
        )

    @classmethod
    def find_root(cls, root):
        return Path(os.path.abspath(super().find_root(root)))  # so that "." has a name and a folder above

    @classmethod
    def looks_right(cls, folder):
        """The .mat lies here, above or in an image folder, and there is an image folder."""
        folder = Path(os.path.abspath(folder))
        inner = [folder / name for name in dict.fromkeys(IMAGE_FOLDERS.values())]
        if any(f.is_dir() for f in inner):
            return any((f / LISTS).is_file() for f in (folder, *inner))
        return (folder / "streetview").is_dir() and any((f / LISTS).is_file() for f in (folder, folder.parent))


def read_act_data(path, split):
    """Panorama ids (strings), UTM coordinates (P, 2) in metres, and the split's 0-based rows among them.

    Raises:
        UserError: the file is not ACT_data.mat, or its indices leave the list.
    """
    from scipy.io import loadmat

    struct, field = INDEX_FIELDS[split]
    try:
        data = loadmat(path, simplify_cells=True, variable_names=["panoIds", "utm", struct])
        ids = [str(name).strip() for name in np.atleast_1d(data["panoIds"])]
        rows = np.atleast_1d(np.asarray(data[struct][field])).ravel().astype(np.int64) - 1  # MATLAB counts from 1
        utm = np.asarray(data["utm"], dtype=np.float64).reshape(-1, 2)
    except Exception as error:  # whatever SciPy's reader meets in a damaged file
        if scarcity(error):  # not the file's fault
            raise
        raise UserError(
            f"{path} cannot be read as CVACT's lists ({type(error).__name__}: {error}); expected panoIds, utm and "
            f"{struct}.{field}"
        ) from error
    if len(utm) != len(ids) or (len(rows) and not (rows.min() >= 0 and rows.max() < len(ids))):
        raise UserError(
            f"{path}: {struct}.{field} points outside the {len(ids)} panoramas, or utm has {len(utm)} rows; "
            "the file is damaged"
        )
    if (np.abs(utm) > LARGEST_UTM).any():
        raise UserError(f"{path}: utm holds {np.nanmax(np.abs(utm)):g}; expected eastings and northings in metres")
    # A line of the list is an index.
    check_names(f"{path}, {struct}.{field},", {number: ids[row] for number, row in enumerate(rows, start=1)})
    return ids, utm, rows
