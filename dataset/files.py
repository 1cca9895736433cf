"""Lists of files, and which of them are there."""

import os
from pathlib import Path

import numpy as np

from utils.errors import UserError


def exist(paths):
    """(N,) bool: which of the paths are there, by one listing of each folder rather than a look at each file."""
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
    """Lines of a text file, without blank ones.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return [line for line in Path(path).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the list {path} cannot be read ({error})") from error
