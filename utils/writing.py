"""Files that are whole or not there: written under another name, then renamed."""

import json
from contextlib import contextmanager
from pathlib import Path

import numpy as np

PARTIAL = ".partial"  # ending of a file that is being written


@contextmanager
def whole_file(path):
    """A binary file to write to; it takes its name when the block ends, and leaves nothing behind where that fails."""
    path = Path(path)
    partial = path.with_name(path.name + PARTIAL)
    try:
        with open(partial, "wb") as file:
            yield file
        partial.replace(path)
    except BaseException:  # half a file would only take the space that a full disk lacks
        partial.unlink(missing_ok=True)
        raise


def write_text(path, text):
    """Write a text so that a reader never sees half of it."""
    with whole_file(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path, content):
    """Write JSON so that a reader never sees half of it."""
    write_text(path, json.dumps(content, indent=2, sort_keys=False) + "\n")


def save_array(path, array):
    """Write an array as .npy. NumPy's own `save` takes no notice where a full disk cuts the end off."""
    array = np.ascontiguousarray(array)
    with whole_file(path) as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array)
