"""Resized images in memory maps, so that a file is decoded once and not once an epoch.

A cache folder holds a store per image folder and transform: the names that have a slot (names.json), a record per slot
(index.bin: size and time of the source file, checksum) and the pixels (images.bin, sparse). Slots are only ever added,
so several jobs may share a cache. A record is written after its pixels; the first time that a process reads an image,
it compares their checksum. An image that is half written, damaged, or older than its file is made again.
"""

import fcntl
import hashlib
import json
import logging
import os
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.writing import write_json

log = logging.getLogger(__name__)

RECORD = np.dtype([("size", "<i8"), ("mtime", "<i8"), ("checksum", "<u4"), ("made", "<u4")])


class ImageFiles:
    """The (H, W, 3) uint8 pixels of a list of image files after an `ImageTransform`."""

    def __init__(self, paths, transform):
        self.paths, self.transform = paths, transform

    def __len__(self):
        return len(self.paths)

    def pixels(self, i):
        """(H, W, 3) uint8 of image `i`. Errors as `read_image`."""
        return self.transform.pixels(self.paths[i])


class ImageCache(ImageFiles):
    """The same pixels, kept in `folder` (made where it is not there).

    Raises:
        UserError: the folder cannot be written to.
    """

    def __init__(self, folder, paths, transform):
        super().__init__(paths, transform)
        names = {}
        for path in paths:
            head, tail = os.path.split(path)
            names.setdefault(head, []).append(tail)
        try:
            self.stores = {head: _Store(folder, head, tails, transform) for head, tails in names.items()}
        except OSError as error:
            raise UserError(f"--cache {folder} cannot be written to ({error}); give another folder") from error
        split = map(os.path.split, paths)
        self.slots = [(self.stores[head], self.stores[head].slots[tail]) for head, tail in split]
        self.stamps = np.array([_stamp(path) for path in paths], dtype=np.int64)  # (N, 2) size, time in ns
        self.full = False

    def present(self):
        """(N,) bool: which images need not be made."""
        records = np.array([store.record(slot) for store, slot in self.slots], dtype=RECORD)
        return _fits(records, self.stamps[:, 0], self.stamps[:, 1])

    def pixels(self, i):
        """(H, W, 3) uint8 of image `i`, from the cache, else from its file (and so into the cache)."""
        store, slot = self.slots[i]
        pixels = store.read(slot, *self.stamps[i])
        return self.make(i) if pixels is None else pixels

    def make(self, i, must=False):
        """Read image `i` from its file and keep it; on a full disk go on without, or with `must` raise OSError."""
        store, slot = self.slots[i]
        stamp = _stamp(self.paths[i])  # before the pixels: a file changed in between is made again
        pixels = super().pixels(i)
        try:
            if must or not self.full:
                store.write(slot, pixels, *stamp)
        except OSError as error:
            if must:
                raise
            self.full = True
            log.warning("the cache %s takes no more images (%s): going on from the files", store.folder.parent, error)
        self.stamps[i] = stamp
        return pixels


class _Store:
    """One image folder under one transform."""

    def __init__(self, cache, source, names, transform):
        source = os.path.realpath(source)
        self.shape = (*transform.size, 3)
        self.bytes = int(np.prod(self.shape))
        digest = hashlib.sha256(f"{source}\n{transform.tag}".encode()).hexdigest()[:16]
        self.folder = Path(cache).expanduser() / digest
        self.folder.mkdir(parents=True, exist_ok=True)
        listing = self.folder / "names.json"
        with _locked(self.folder / "lock"):
            known = _read_names(listing) if listing.exists() else []
            self.slots = {name: slot for slot, name in enumerate(known)}
            for name in names:
                self.slots.setdefault(name, len(self.slots))
            for name, size in (("index.bin", RECORD.itemsize), ("images.bin", self.bytes)):
                _grow(self.folder / name, len(self.slots) * size)
            if len(self.slots) > len(known):
                if not known:
                    write_json(self.folder / "about.json", {"folder": source, "transform": transform.tag})
                write_json(listing, list(self.slots))
        self._open = None

    def record(self, slot):
        return self._files()[0][slot]

    def read(self, slot, size, mtime):
        """The slot's pixels, or None where they are not those of a file of that size and time."""
        index, images, _ = self._files()
        record = index[slot].copy()
        if not _fits(record, size, mtime):
            return None
        pixels, checksum = np.array(images[slot]), int(record["checksum"])
        if self._checked[slot] == checksum:  # whole when last read; is it still the same image?
            return pixels if index[slot].tobytes() == record.tobytes() else None
        if zlib.crc32(pixels) != checksum:
            return None
        self._checked[slot] = checksum
        return pixels

    def write(self, slot, pixels, size, mtime):
        _, _, (index, images) = self._files()
        pixels = np.ascontiguousarray(pixels)
        record = np.array((size, mtime, zlib.crc32(pixels), 1), dtype=RECORD)
        _write_all(index, bytes(RECORD.itemsize), slot * RECORD.itemsize)
        _write_all(images, pixels.tobytes(), slot * self.bytes)
        _write_all(index, record.tobytes(), slot * RECORD.itemsize)

    def _files(self):
        """Memory maps to read, descriptors to write (a full disk kills who writes to a map), opened when needed."""
        if self._open is None:
            names, count = [self.folder / name for name in ("index.bin", "images.bin")], len(self.slots)
            maps = (
                np.memmap(names[0], RECORD, "r", shape=count),
                np.memmap(names[1], "u1", "r", shape=(count, *self.shape)),
            )
            self._checked = np.full(count, -1, dtype=np.int64)  # checksums that this process has found right
            self._open = (*maps, tuple(os.open(name, os.O_WRONLY) for name in names))
        return self._open

    def __getstate__(self):
        return self.__dict__ | {"_open": None}


def _read_names(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} of --cache is damaged ({error}); remove its folder, to be made again") from error


def _fits(record, size, mtime):
    return (record["made"] == 1) & (record["size"] == size) & (record["mtime"] == mtime)


def _stamp(path):
    """Size in bytes and time of change in ns of a file; -1 where it is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _grow(path, size):
    with open(path, "ab") as file:
        if file.tell() < size:
            file.truncate(size)


def _write_all(descriptor, content, offset):
    written = 0
    while written < len(content):
        written += os.pwrite(descriptor, content[written:], offset + written)


@contextmanager
def _locked(path):
    with open(path, "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
