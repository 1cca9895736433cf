"""Resized images on disk, so that a file is decoded once and not once an epoch.

A cache folder has a folder for each image folder and transform, and there a file for each image, of the image's name:
size and time of the image file, a checksum, and the pixels. A file is written whole under another name before it gets
its own, so jobs can share a cache. One that is damaged, or older than its image file, is made again.
"""

import hashlib
import json
import logging
import os
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np

from dataset.transforms import ImageFiles
from utils.options import UserError

log = logging.getLogger(__name__)

HEADER = struct.Struct("<qqI")  # size in bytes and time of change in ns of the image file, checksum of the pixels


class ImageCache(ImageFiles):
    """The same pixels, kept in `folder` (made if it does not exist).

    Raises:
        UserError: the folder cannot be written to.
    """

    def __init__(self, folder, paths, transform):
        super().__init__(paths, transform)
        self.folder, self.full, self.shape = Path(folder).expanduser(), False, (*transform.size, 3)
        self.stamps = [_stamp(path) for path in paths]
        self.stores = {}  # image folder: its folder here
        try:
            for source in dict.fromkeys(map(os.path.dirname, paths)):
                about = {"folder": os.path.realpath(source), "transform": transform.tag}
                key = "\n".join(about.values()).encode("utf-8", "surrogateescape")
                self.stores[source] = store = self.folder / hashlib.sha256(key).hexdigest()[:16]
                store.mkdir(parents=True, exist_ok=True)
                with suppress(FileExistsError), open(store / "about.json", "x", encoding="utf-8") as file:
                    json.dump(about, file, indent=2)
        except OSError as error:
            raise UserError(f"--cache {folder} cannot be written to ({error}); choose another folder") from error

    def present(self):
        """(N,) bool: which images need not be made."""
        return np.array([self._kept(i) is not None for i in range(len(self))], dtype=bool)

    def pixels(self, i):
        """(H, W, 3) uint8 of image `i`, from the cache, else from its file (and so into the cache)."""
        kept = self._kept(i)
        return self.make(i) if kept is None else kept

    def make(self, i, must=False):
        """Read image `i` from its file and keep it; on a full disk go on without, or raise OSError with `must`."""
        self.stamps[i] = _stamp(self.paths[i])  # before the pixels: a file changed in between is made again
        pixels = super().pixels(i)
        try:
            if must or not self.full:
                self._keep(i, np.ascontiguousarray(pixels))
        except OSError as error:
            if must:
                raise
            self.full = True
            log.warning("the cache %s accepts no more images (%s); the other images are read from their files",
                        self.folder, error)  # fmt: skip
        return pixels

    def _file(self, i):
        source, name = os.path.split(self.paths[i])
        return os.path.join(self.stores[source], name)

    def _kept(self, i):
        """The pixels that are kept, or None if they are not those of the image file as it is."""
        try:
            content = np.fromfile(self._file(i), dtype=np.uint8)
        except OSError:
            return None
        if len(content) != HEADER.size + np.prod(self.shape):
            return None
        *stamp, checksum = HEADER.unpack(content[: HEADER.size].tobytes())
        pixels = content[HEADER.size :]
        return pixels.reshape(self.shape) if (*stamp,) == self.stamps[i] and zlib.crc32(pixels) == checksum else None

    def _keep(self, i, pixels):
        path = self._file(i)
        partial = os.path.join(os.path.dirname(path), f".{os.getpid()}.partial")
        try:
            with open(partial, "wb") as file:
                file.write(HEADER.pack(*self.stamps[i], zlib.crc32(pixels)))
                file.write(pixels)
            os.replace(partial, path)
        except OSError:
            with suppress(OSError):
                os.unlink(partial)
            raise


def _stamp(path):
    """Size in bytes and time of change in ns of a file; -1 if it does not exist."""
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns
