"""Resized images in memory maps, so that a file is decoded once and not once an epoch.

A cache folder has a store per image folder and transform, with a slot for each file of that folder in the order of the
names: a record in index.bin (size and time of the file, checksum of the pixels) and the pixels in images.bin, both
sparse. Jobs with other lists share a store. A slot is used if its record is that of the file and its checksum that of
the pixels; one that is half written, damaged, or older than its file is made again.
"""

import hashlib
import json
import logging
import os
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np

from dataset.transforms import ImageFiles
from utils.options import UserError

log = logging.getLogger(__name__)

RECORD = np.dtype([("size", "<i8"), ("mtime", "<i8"), ("checksum", "<u4"), ("made", "<u4")])


class ImageCache(ImageFiles):
    """The same pixels, kept in `folder` (made if it does not exist).

    Raises:
        UserError: the folder cannot be written to.
    """

    def __init__(self, folder, paths, transform):
        super().__init__(paths, transform)
        self.full, self.stores, self.slots = False, {}, []
        self.stamps = [_stamp(path) for path in paths]
        try:
            for head, name in map(os.path.split, paths):
                if head not in self.stores:
                    self.stores[head] = _Store(Path(folder).expanduser(), head, transform)
                self.slots.append((self.stores[head], self.stores[head].slots.get(name)))
        except OSError as error:
            raise UserError(f"--cache {folder} cannot be written to ({error}); choose another folder") from error

    def present(self):
        """(N,) bool: which images need not be made."""
        return np.array([store.up_to_date(slot, self.stamps[i]) for i, (store, slot) in enumerate(self.slots)])

    def pixels(self, i):
        """(H, W, 3) uint8 of image `i`, from the cache, else from its file (and so into the cache)."""
        store, slot = self.slots[i]
        pixels = store.read(slot, self.stamps[i])
        return self.make(i) if pixels is None else pixels

    def make(self, i, must=False):
        """Read image `i` from its file and keep it; on a full disk go on without, or raise OSError with `must`."""
        store, slot = self.slots[i]
        stamp = self.stamps[i] = _stamp(self.paths[i])  # before the pixels: a file changed in between is made again
        pixels = super().pixels(i)
        try:
            if slot is not None and (must or not self.full):
                store.write(slot, pixels, stamp)
        except OSError as error:
            if must:
                raise
            self.full = True
            log.warning("the cache %s accepts no more images (%s); the other images are read from their files",
                        store.folder.parent, error)  # fmt: skip
        return pixels


class _Store:
    """One image folder under one transform."""

    def __init__(self, cache, source, transform):
        names = sorted(os.listdir(source)) if os.path.isdir(source) else []
        self.slots = {name: slot for slot, name in enumerate(names)}
        self.shape, self._open = (*transform.size, 3), None
        self.bytes = int(np.prod(self.shape))
        about = {"folder": os.path.realpath(source), "transform": transform.tag}
        key = "\n".join([*about.values(), *names]).encode("utf-8", "surrogateescape")
        self.folder = cache / hashlib.sha256(key).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, size in (("index.bin", RECORD.itemsize), ("images.bin", self.bytes)):
            with open(self.folder / name, "ab") as file:
                file.truncate(len(names) * size)
        with suppress(FileExistsError), open(self.folder / "about.json", "x", encoding="utf-8") as file:
            json.dump(about, file, indent=2)

    def up_to_date(self, slot, stamp):
        record = None if slot is None else self._files()[0][slot]
        return record is not None and (record["made"], record["size"], record["mtime"]) == (1, *stamp)

    def read(self, slot, stamp):
        """The slot's pixels, or None if they are not those of a file of that size and time."""
        if not self.up_to_date(slot, stamp):
            return None
        index, images, _ = self._files()
        checksum, pixels = int(index[slot]["checksum"]), np.array(images[slot])
        return pixels if zlib.crc32(pixels) == checksum else None

    def write(self, slot, pixels, stamp):
        _, _, (index, images) = self._files()
        pixels = np.ascontiguousarray(pixels)
        record = np.array((*stamp, zlib.crc32(pixels), 1), dtype=RECORD)
        _write_all(images, pixels.tobytes(), slot * self.bytes)
        _write_all(index, record.tobytes(), slot * RECORD.itemsize)

    def _files(self):
        """Memory maps to read, descriptors to write (a full disk kills who writes to a map), opened when needed."""
        if self._open is None:
            count, names = len(self.slots), [self.folder / name for name in ("index.bin", "images.bin")]
            maps = [np.memmap(names[0], RECORD, "r", shape=count)]
            maps += [np.memmap(names[1], "u1", "r", shape=(count, *self.shape))]
            self._open = (*maps, tuple(os.open(name, os.O_WRONLY) for name in names))
        return self._open

    def __getstate__(self):
        return self.__dict__ | {"_open": None}


def _stamp(path):
    """Size in bytes and time of change in ns of a file; -1 if it does not exist."""
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _write_all(descriptor, content, offset):
    written = 0
    while written < len(content):
        written += os.pwrite(descriptor, content[written:], offset + written)
