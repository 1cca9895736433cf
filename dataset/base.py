"""One dataset class for every layout: panoramas, aerial tiles, and which tiles cover which panorama."""

import hashlib
import os
from abc import ABC, abstractmethod
from copy import copy
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from dataset.cache import ImageCache
from dataset.transforms import (
    ImageFiles,
    ImageTransform,
    collate,
    crop_field_of_view,
    crop_to_north,
    drop_patches,
    fov_angle,
    jitter_colours,
    normalise,
    to_device,
    turn_of,
    turn_pair,
)
from utils.options import UserError, scarcity
from utils.paper import INPUT_SIZES

VIEWS = ("pair", "ground", "aerial")
ORIENTATIONS = ("aligned", "unknown")


class Pair(NamedTuple):
    """A training sample: ground (3, Hg, Wg) and aerial (3, Ha, Wa) float tensors, index of the panorama."""

    ground: torch.Tensor
    aerial: torch.Tensor
    index: int


class View(NamedTuple):
    """One image of an evaluation: (3, H, W) float tensor, its row among queries or gallery."""

    image: torch.Tensor
    index: int


class Listing(NamedTuple):
    """The images of a split, as a layout's lists name them.

    ground: N panorama paths.  aerial: M tile paths, the gallery.
    tiles: (N, T) int64 rows of `aerial` that cover each panorama, the positive first, -1 for none.
    """

    ground: list
    aerial: list
    tiles: np.ndarray


class PairDataset(Dataset, ABC):
    """Panoramas with the aerial tiles that cover them; subclasses say where the files are.

    Args:
        root: folder of the data set (or one that holds it).
        split: "train", "val" or "test", see `splits`; a layout with one split to evaluate accepts "val" and "test".
        view: "pair" yields `Pair` per panorama; "ground" and "aerial" yield `View` per query or gallery tile.
        ground_size, aerial_size: network input (H, W) in pixels; default: the paper's.
        fov: horizontal field of view of the panoramas in degrees (0 or 360: all of it).
        orientation: "aligned" panoramas are centred on north; "unknown" ones are turned by an angle that is random
            in training and fixed per (seed, index) otherwise. Default: aligned if `fov` is 360, else unknown (as
            published).
        augment: turn and mirror both views of a training pair together (`turn_pair`), anew in every epoch.
        colour_jitter, patch_dropout: strength and share of `jitter_colours` and `drop_patches` on training images,
            another draw for each view and epoch.
        seed: determines the angles and augmentations.
        check_files: look for every file, leave out pairs with a missing file and count them in `missing`.
        pixels: yield uint8 pixels instead of floats; `to_device` turns a batch of them into the same floats.
        cache: folder of resized images (`ImageCache`), filled as images are read; None for none.
        fast_decode: scaled JPEG decoding, see `ImageTransform`.
        skip_bad: let another pair take the place of one that cannot be read, see `samples`.

    Attributes:
        ground, aerial: lists of paths.  tiles: (N, T) int64, see `Listing`.
        labels: (N,) row of each query's positive.  semi_positives: (N, T - 1) or None.
        missing, missing_tiles: numbers of pairs and of gallery images left out because a file is missing.
        lacking: paths of the missing files.
        bad: (N,) bool, with `skip_bad`: pairs that could not be read so far.
        in_training: number of places that are trained on as well, see `shared_with`; None if unknown.

    Raises:
        UserError: the folder does not look like the data set, a list is damaged, an image cannot be read.
    """

    collate, to_device = staticmethod(collate), staticmethod(to_device)  # how samples become batches on a device

    name = ""
    splits = ("train", "val")
    tree = ""
    one_to_one = True  # every panorama has a tile of its own, and the gallery holds no others
    crop_ground = None  # gives the part of a stored panorama that is used; None for all of it
    visits = 1  # times a training epoch sees each positive tile
    near_metres = None  # adds recalls that count any tile within this distance of the camera as right

    def __init__(
        self,
        root,
        split,
        view="pair",
        ground_size=None,
        aerial_size=None,
        fov=0,
        orientation=None,
        augment=False,
        colour_jitter=0.0,
        patch_dropout=0.0,
        seed=0,
        check_files=True,
        pixels=False,
        cache=None,
        fast_decode=False,
        skip_bad=False,
    ):
        self.view, self.split = _one_of("view", view, VIEWS), _one_of("split", self.own_split(split), self.splits)
        self.root = self.find_root(root)
        listing = self.read()
        if not listing.ground:
            raise self.wrong_root(self.root, f"its lists name no pairs of split {split}")
        self.missing, self.missing_tiles, self.lacking, self.in_training = 0, 0, [], None
        if check_files:
            listing = self._drop_missing(listing)
        self.ground, self.aerial, self.tiles = listing
        if not self.ground:
            lacking = f"looked for {self.lacking[0]}" if self.lacking else "its lists name none"
            raise self.wrong_root(self.root, f"none of the pairs of split {split} has both its images ({lacking})")
        sizes = INPUT_SIZES[self.name]
        images = ImageFiles if cache is None else partial(ImageCache, cache)
        ground_transform = ImageTransform(ground_size or sizes.ground, self.crop_ground, fast_decode)
        self.ground_images = images(self.ground, ground_transform)
        self.aerial_images = images(self.aerial, ImageTransform(aerial_size or sizes.aerial, fast=fast_decode))
        self.fov = fov or 360
        orientation = orientation or ("aligned" if self.fov == 360 else "unknown")
        self.orientation = _one_of("orientation", orientation, ORIENTATIONS)
        self.augment, self.seed, self.pixels = augment, seed, pixels
        self.colour_jitter, self.patch_dropout = colour_jitter, patch_dropout
        self._turn = 0.0
        # Loader processes share these two.
        self.bad = torch.zeros(len(self.ground), dtype=torch.bool).share_memory_() if skip_bad else None
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    # What each layout defines.

    @classmethod
    def own_split(cls, split):
        """The layout's own name of a split: "val" and "test" mean the same where there is one split to evaluate."""
        return cls.splits[1] if split in ("val", "test") and len(cls.splits) == 2 else split

    @abstractmethod
    def read(self):
        """The split's `Listing`, from `self.root`."""

    @classmethod
    def find_root(cls, root):
        """The folder that really holds the layout: `root` itself or a folder of the data set's name in it."""
        try:
            root = Path(root).expanduser()
            for name in ("", *sorted({cls.name, cls.name.upper(), cls.name.capitalize()})):
                if (root / name).is_dir() and cls.looks_right(root / name):
                    return root / name
            if root.is_dir():
                found = f"it holds {_shown(root)}"
            else:
                found = "it is not a folder" if root.exists() else "it does not exist"
        except OSError as error:  # no permission, or too long a name
            found = f"it cannot be read ({error.strerror})"
        except RuntimeError:
            found = "it is in the home of an unknown user"
        raise cls.wrong_root(root, found)

    @classmethod
    @abstractmethod
    def looks_right(cls, folder):
        """Whether `folder` holds the layout's lists."""

    @classmethod
    def wrong_root(cls, root, found):
        return UserError(
            f"--data-root {root} is not a {cls.name.upper()} folder: {found}; pass the folder that holds:\n{cls.tree}"
        )

    @cached_property
    def positions(self):
        """`utils.geodesy.Positions` of queries and gallery; None where a layout has none."""
        return None

    # Samples.

    def set_epoch(self, epoch):
        """Let random angles and augmentations differ from epoch to epoch; call before the epoch's first batch."""
        self._epoch.fill_(epoch)

    def as_view(self, view):
        """The same lists seen as another view, without reading them again."""
        other = copy(self)
        other.view = _one_of("view", view, VIEWS)
        return other

    def turned(self, degrees):
        """The same lists with every panorama turned clockwise by that many degrees, to search for north."""
        other = copy(self)
        other._turn = self._turn + degrees
        return other

    @cached_property
    def fingerprint(self):
        """Text that is equal for equal lists: names below the root, in their order, and which tiles cover what."""
        root = f"{self.root}/"
        names = "\n".join(path.removeprefix(root) for path in (*self.ground, *self.aerial))
        digest = hashlib.sha256(names.encode("utf-8", "surrogateescape") + self.tiles.astype("<i8").tobytes())
        return f"{len(self.ground)} panoramas, {len(self.aerial)} tiles, {digest.hexdigest()[:12]}"

    def shared_with(self, other):
        """Number of panoramas that another split holds too, itself or, where each has its own, its tile."""
        ground, aerial = set(other.ground), set(other.aerial) if self.one_to_one else ()
        return sum(
            path in ground or self.aerial[tile] in aerial
            for path, tile in zip(self.ground, self.labels.tolist(), strict=True)
        )

    def files_of(self, index):
        """Paths that sample `index` is read from."""
        if self.view == "aerial":
            return [self.aerial[index]]
        return [self.ground[index]] + ([self.aerial[self.tiles[index, 0]]] if self.view == "pair" else [])

    @property
    def labels(self):
        return self.tiles[:, 0]

    @property
    def semi_positives(self):
        return self.tiles[:, 1:] if self.tiles.shape[1] > 1 else None

    def __len__(self):
        return len(self.aerial) if self.view == "aerial" else len(self.ground)

    def __getitem__(self, index):
        index = range(len(self))[index]  # -1 is the last
        if self.view == "aerial":
            return View(self._finish(self.load_aerial(index)), index)
        if self.view == "ground":
            return View(self._finish(self._seen(self.load_ground(index), index)), index)
        ground, aerial, epoch = self.load_ground(index), self.load_aerial(int(self.tiles[index, 0])), int(self._epoch)
        if self.augment:
            ground, aerial = turn_pair(ground, aerial, *turn_of(self.seed, index, epoch))
        ground = self._disturb(self._seen(ground, index, epoch), (self.seed, index, epoch, 2))
        aerial = self._disturb(aerial, (self.seed, index, epoch, 3))
        return Pair(self._finish(ground), self._finish(aerial), index)

    def samples(self, indices):
        """The samples of a batch.

        With `skip_bad`, a training pair that cannot be read is noted in `bad`, and a random one that has no tile in
        common with the batch takes its place.
        """
        indices, samples = [int(index) for index in indices], []
        for place, index in enumerate(indices):
            try:
                samples.append(self[index])
            except UserError:
                if self.bad is None or self.view != "pair":
                    raise
                self.bad[index] = True
                samples.append(self._substitute(index, indices))
                indices[place] = samples[-1].index
        return samples

    def _substitute(self, index, indices):
        taken = self.tiles[indices]
        for other in np.random.default_rng((self.seed, index, int(self._epoch), 4)).permutation(len(self))[:1000]:
            tiles = self.tiles[other]
            if not np.isin(tiles[tiles >= 0], taken).any() and not self.bad[other]:
                try:
                    return self[int(other)]
                except UserError:
                    self.bad[other] = True
        raise UserError(f"{self.files_of(index)[0]} or its tile cannot be read, and no other pair can take its place")

    def load_ground(self, index):
        """(3, H, W) uint8 tensor of panorama `index`, all around."""
        return torch.from_numpy(self.ground_images.pixels(index)).movedim(-1, 0)

    def load_aerial(self, index):
        """(3, H, W) uint8 tensor of tile `index`."""
        return torch.from_numpy(self.aerial_images.pixels(index)).movedim(-1, 0)

    def _seen(self, panorama, index, epoch=None):
        """A panorama in the orientation and field of view of the data set."""
        if self.orientation == "unknown":
            panorama = crop_field_of_view(panorama, self.fov, fov_angle(self.seed, index, epoch))
        else:
            panorama = crop_to_north(panorama, self.fov)
        return crop_field_of_view(panorama, 360, self._turn) if self._turn else panorama

    def _disturb(self, image, seed):
        if not (self.colour_jitter or self.patch_dropout):
            return image
        generator = np.random.default_rng(seed)
        if self.colour_jitter:
            image = jitter_colours(image, self.colour_jitter, generator)
        return drop_patches(image, self.patch_dropout, generator) if self.patch_dropout else image

    def _finish(self, image):
        return image if self.pixels else normalise(image)

    def _drop_missing(self, listing):
        """The listing without files that are not on disk; rows of `tiles` follow the gallery."""
        has_ground, has_aerial = exist(listing.ground), exist(listing.aerial)
        for paths, there in ((listing.ground, has_ground), (listing.aerial, has_aerial)):
            self.lacking += [path for path, found in zip(paths, there, strict=True) if not found]
        keep = has_ground & has_aerial[listing.tiles[:, 0]]
        self.missing = int((~keep).sum())
        if self.one_to_one:
            has_aerial = np.zeros_like(has_aerial)
            has_aerial[listing.tiles[keep, 0]] = True
        self.missing_tiles = int((~has_aerial).sum())
        if self.missing == 0 and has_aerial.all():
            return listing
        row = np.where(has_aerial, np.cumsum(has_aerial) - 1, -1)
        tiles = np.where(listing.tiles < 0, -1, row[listing.tiles])[keep]
        ground = [path for path, kept in zip(listing.ground, keep, strict=True) if kept]
        aerial = [path for path, kept in zip(listing.aerial, has_aerial, strict=True) if kept]
        return Listing(ground, aerial, tiles)


def exist(paths):
    """(N,) bool: which of the paths are files, by one listing of each folder rather than a look at each file."""
    listed = {}
    found = np.empty(len(paths), dtype=bool)
    for i, path in enumerate(paths):
        folder, name = os.path.split(path)
        if folder not in listed:
            try:
                with os.scandir(folder) as entries:
                    listed[folder] = {entry.name for entry in entries if entry.is_file()}
            except OSError:
                listed[folder] = set()
        found[i] = name in listed[folder]
    return found


def read_lines(path):
    """{number, from 1: line} of a text file, without blank lines. Raises UserError if it is empty or unreadable."""
    try:
        lines = enumerate(Path(path).read_text(encoding="utf-8-sig").split("\n"), start=1)
        if found := {number: line.strip() for number, line in lines if line.strip()}:
            return found
        raise UserError(f"the list {path} is empty; copy it again")
    except (OSError, UnicodeDecodeError) as error:
        if scarcity(error):  # not the file's fault
            raise
        raise UserError(f"the list {path} cannot be read ({error}); copy it again") from error


def check_names(path, names):
    """Raises UserError if a list names something twice, or a file outside of the data set.

    Args:
        path: of the list.  names: {number of the line: name}.
    """
    first = {}
    for number, name in names.items():
        if first.setdefault(name, number) != number:
            raise UserError(
                f"{path} line {number} names {name[:200]} again, after line {first[name]}: each may be listed once; "
                "remove one of the lines"
            )
        if "/../" in f"/{name}/" or "\0" in name:
            raise UserError(f"{path} line {number} names {name[:200]!r}; expected a path below the data set's folder")


def _one_of(name, value, allowed):
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(allowed)}")
    return value


def _shown(folder, most=8):
    names = sorted(p.name + ("/" if p.is_dir() else "") for p in folder.iterdir())
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "nothing"
