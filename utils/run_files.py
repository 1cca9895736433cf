"""The files of a run in --save_path, and files that are complete or not there."""

import fcntl
import json
import os
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from utils.options import FULL_DISK, UserError

DESCRIPTOR_FILES = ("grd_global_descriptor.npy", "sat_global_descriptor.npy")  # queries, gallery
RUN_FILES = ("checkpoint.pth.tar", "model_best.pth.tar", "metrics.json", "metrics.jsonl", "args.json", "log.txt")
PARTIAL = ".partial"  # ending of a file that is being written
_LOCKS = set()  # descriptors of locked folders


def _close_locks():
    """In a forked process: a lock is held as long as a copy of its descriptor is open, also after its owner's death."""
    while _LOCKS:
        with suppress(OSError):
            os.close(_LOCKS.pop())


os.register_at_fork(after_in_child=_close_locks)


@contextmanager
def whole_file(path, flush=False):
    """A binary file that takes its name when the block ends, on disk by then with `flush`; removed if the block fails.

    Raises:
        UserError: the disk is full, or the file cannot be written.
    """
    path = Path(path)
    partial = path.with_name(path.name + PARTIAL)
    try:
        with open(partial, "wb") as file:
            yield file
            if flush:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
        if flush:  # the new name as well
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        hint = "free some space" if error.errno in FULL_DISK else "choose another folder"
        raise UserError(f"{path} could not be written ({error}); {hint}") from error


def write_text(path, text):
    with whole_file(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path, content):
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path):
    """The dict of a JSON file, {} if there is none. Raises UserError if it cannot be read."""
    try:
        return dict(json.loads(Path(path).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); pass the folder of a run of train.py") from error


def save_array(path, array):
    """Write an array as .npy; NumPy's own `save` does not notice when a full disk cuts the file short."""
    array = np.ascontiguousarray(array)
    with whole_file(path) as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array)


class RunFiles:
    """The files of a run, their names and how they are written; an earlier run's are moved aside, never overwritten."""

    def __init__(self, folder):
        self.folder, self._lock, self._resumed = Path(folder), None, False
        self.checkpoint, self.best, self.metrics, self.history, self.args, _ = (self.folder / n for n in RUN_FILES)

    def weights_to_evaluate(self, given=None):
        """The file given, else the best model, else the last checkpoint. Raises UserError if none exists."""
        if given:
            return given
        for path in (self.best, self.checkpoint):
            if os.path.isfile(path):
                return path
        raise UserError(
            f"--save_path {self.folder} holds neither {self.best.name} nor {self.checkpoint.name} to evaluate; train "
            "first, copy released weights there, or pass --weights PATH"
        )

    def open(self, training, resumed=False):
        """Make the folder. A training keeps other trainings out until `close`, and moves an earlier run aside.

        Raises:
            UserError: the folder cannot be made or written to, or another training uses it.
        """
        self._resumed = resumed
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / ".writable").touch()
            (self.folder / ".writable").unlink()
            if training:
                self._keep_others_out()
            if training and not resumed:
                self._set_aside((*RUN_FILES, *DESCRIPTOR_FILES))
        except OSError as error:
            raise UserError(
                f"--save_path {self.folder} cannot be written to ({error}); choose another folder"
            ) from error

    def _keep_others_out(self):
        self._lock = os.open(self.folder, os.O_RDONLY)
        _LOCKS.add(self._lock)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise UserError(
                f"--save_path {self.folder} is in use by another training; choose another folder, or wait until it ends"
            ) from None
        except OSError:  # a file system without locks
            self.close()

    def close(self):
        """Let other trainings use the folder."""
        if self._lock is not None:
            _LOCKS.discard(self._lock)
            os.close(self._lock)
            self._lock = None

    def _set_aside(self, names):
        """Move the files that exist to previous-1, previous-2, ..., which appears complete. Returns it, or None."""
        earlier = [self.folder / name for name in names if (self.folder / name).exists()]
        if not earlier:
            return None
        number = 1 + sum(1 for _ in self.folder.glob("previous-*"))
        while (aside := self.folder / f"previous-{number}").exists():
            number += 1
        moving = self.folder / f".previous{PARTIAL}"
        moving.mkdir(exist_ok=True)
        for path in earlier:
            path.rename(moving / path.name)
        return moving.rename(aside)

    def start_training(self, args, epochs_done):
        """Write args.json, and drop from metrics.jsonl the epochs that are trained again.

        Descriptors of an earlier evaluation are moved aside with its metrics, as new metrics will be written.
        """
        if any((self.folder / name).exists() for name in DESCRIPTOR_FILES):
            aside = self._set_aside((*DESCRIPTOR_FILES, self.metrics.name))
            if self.args.exists():
                shutil.copy(self.args, aside)
        write_json(self.args, args)
        lines = [f"{line}\n" for epoch, line in self._lines().items() if epoch <= epochs_done]
        if self.history.exists():
            write_text(self.history, "".join(lines))

    def lacks_epoch(self, epoch):
        """Whether the run is continued here, and metrics.jsonl has no line for that epoch."""
        return self._resumed and epoch not in self._lines()

    def _lines(self):
        """{epoch: line} of metrics.jsonl, without the half line that a kill can leave."""
        try:
            lines = self.history.read_text(encoding="utf-8").splitlines() if self.history.exists() else []
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{self.history} cannot be read ({error}); move it to another folder") from error
        return {epoch: line for line in lines if (epoch := _epoch(line)) is not None}

    def start_evaluation(self, args):
        """Write args.json, unless the folder holds that of a training."""
        try:
            trained = not read_json(self.args).get("evaluate", True)
        except UserError:  # damaged
            trained = False
        if not trained:
            write_json(self.args, args)

    def add_epoch(self, line):
        """Append an epoch's line to metrics.jsonl."""
        try:
            with open(self.history, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise UserError(f"{self.history} could not be written ({error}); free some space and resume") from error

    def write_evaluation(self, record, descriptors=None):
        """metrics.json and, if given, (N, D) query and (M, D) gallery descriptors, un-normalised float32."""
        for name, rows in zip(DESCRIPTOR_FILES, descriptors or (), strict=descriptors is not None):
            save_array(self.folder / name, rows)
        write_json(self.metrics, record)


def _epoch(line):
    """The epoch of a line of metrics.jsonl; None for half a line."""
    try:
        return int(json.loads(line)["epoch"])
    except (ValueError, KeyError, TypeError):
        return None
