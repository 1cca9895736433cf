"""The files of a run in --save_path, named once."""

import fcntl
import json
import math
import os
import shutil
import zipfile
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from utils.checkpoint import ONLY_TO_RESUME, save_checkpoint
from utils.errors import UserError
from utils.writing import save_array, write_json, write_text

WRITTEN_BY_TRAINING = (
    "checkpoint.pth.tar",
    "model_best.pth.tar",
    "log.txt",
    "args.json",
    "metrics.jsonl",
    "metrics.json",
)
DESCRIPTOR_FILES = ("grd_global_descriptor.npy", "sat_global_descriptor.npy")  # of queries and gallery


class RunFiles:
    """Names and writes a run's files; an earlier run in the same folder is moved aside, never overwritten."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.checkpoint = self.folder / "checkpoint.pth.tar"
        self.best = self.folder / "model_best.pth.tar"
        self.metrics = self.folder / "metrics.json"
        self.history = self.folder / "metrics.jsonl"
        self.args = self.folder / "args.json"
        self._lock = None

    def weights_to_evaluate(self, given=None):
        """The file to evaluate: the one given, else the best model, else the last checkpoint of the folder.

        Raises:
            UserError: none of them is there.
        """
        for path in (given,) if given else (self.best, self.checkpoint):
            if path.is_file():
                return path
        if given:
            raise UserError(f"--weights {given} is not there; give an existing checkpoint")
        raise UserError(
            f"--save_path {self.folder} holds neither {self.best.name} nor {self.checkpoint.name} to evaluate; "
            "train first, put released weights there, or give --weights PATH"
        )

    def evaluation(self):
        """metrics.json of the folder's last evaluation; {} where it is not there."""
        return self._read(self.metrics)

    def model_options(self):
        """{option: value} of how the folder's descriptors are made up: as their evaluation noted, else the run's
        args.json; {} where neither tells."""
        for path in (self.metrics, self.args):
            recorded = self._read(path)
            if recorded.get("pool") is not None:
                return {name: recorded.get(name) for name in ("pool", "regions")}
        return {}

    def _read(self, path):
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{path} cannot be read ({error}); evaluate again, or give a whole folder") from error

    def open(self, fresh, alone=False):
        """Make the folder; with `fresh`, move the files of an earlier run to previous-1, previous-2, ...

        With `alone`, other trainings are kept out until `close`.

        Raises:
            UserError: the folder cannot be made or written to, or another training writes there.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if alone:
                self._keep_others_out()
            probe = self.folder / ".writable"
            probe.touch()
            probe.unlink()
            if fresh:
                self._set_aside((*WRITTEN_BY_TRAINING, *DESCRIPTOR_FILES))
        except OSError as error:
            raise UserError(f"--save_path {self.folder} cannot be written to ({error}); give another folder") from error

    def _keep_others_out(self):
        self._lock = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise UserError(
                f"--save_path {self.folder} is in use by another training; give another folder, or wait for its end"
            ) from None
        except OSError:  # a file system without locks
            self.close()

    def close(self):
        """Let others in again."""
        if self._lock is not None:
            with suppress(OSError):
                fcntl.flock(self._lock, fcntl.LOCK_UN)  # for loader processes, which share it, too
            os.close(self._lock)
            self._lock = None

    def set_evaluation_aside(self):
        """Move descriptors, and the metrics that belong to them, to previous-N: other metrics are about to come."""
        if any((self.folder / name).exists() for name in DESCRIPTOR_FILES):
            with _writing(self.folder):
                names = [*DESCRIPTOR_FILES, self.metrics.name]
                own = self.args.exists() and not self._trained_here()
                aside = self._set_aside([*names, self.args.name] if own else names)
                if self.args.exists():  # a training's, which stays
                    shutil.copyfile(self.args, aside / self.args.name)

    def _trained_here(self):
        """Whether args.json is a training's, not an evaluation's."""
        try:
            return not self._read(self.args).get("evaluate", True)
        except UserError:  # damaged
            return False

    def _set_aside(self, names):
        """Move the files of these names that are there; returns the folder they are in now."""
        earlier = [self.folder / name for name in names if (self.folder / name).exists()]
        if not earlier:
            return None
        number = 1
        while (self.folder / f"previous-{number}").exists():
            number += 1
        aside = self.folder / f"previous-{number}"
        aside.mkdir()
        for path in earlier:
            path.rename(aside / path.name)
        return aside

    def keep_args(self, args):
        """Write args.json for an evaluation, unless a training has left its own."""
        if not self._trained_here():
            with _writing(self.args):
                write_json(self.args, args)

    def start(self, args, first_epoch):
        """Write args.json, set an evaluation aside that a resumed run leaves behind, and drop from metrics.jsonl the
        epochs that it will train again."""
        self.set_evaluation_aside()
        with _writing(self.folder):
            write_json(self.args, args)
            if self.history.exists():
                lines = self.history.read_text(encoding="utf-8").splitlines()
                kept = [line for line in lines if _epoch(line) <= first_epoch]
                write_text(self.history, "".join(line + "\n" for line in kept))

    def save_epoch(self, line, is_best, **state):
        """Save the weights alone where they are the best so far, append the epoch's line, save the whole state."""
        with _writing(self.folder, "free some space and go on with --resume"):
            if is_best:
                save_checkpoint(self.best, **{k: v for k, v in state.items() if k not in ONLY_TO_RESUME})
            with open(self.history, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            save_checkpoint(self.checkpoint, **state)  # last: a run stopped before it does the epoch again

    def write_evaluation(self, record, descriptors=None):
        """metrics.json and, where given, (N, D) query and (M, D) gallery descriptors, un-normalised float32."""
        with _writing(self.folder):
            for name, rows in zip(DESCRIPTOR_FILES, descriptors or (), strict=descriptors is not None):
                save_array(self.folder / name, rows)
            write_json(self.metrics, record)


@contextmanager
def _writing(path, then="free some space, or give another --save_path"):
    """A full disk, or one that fails, is told in one sentence."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} could not be written ({error}); {then}") from error


def _epoch(line):
    """The epoch of a line of metrics.jsonl; infinite for half a line, which a kill has left."""
    try:
        return json.loads(line)["epoch"]
    except (ValueError, KeyError, TypeError):
        return math.inf


def read_rows(path):
    """The (rows, numbers) descriptors of a .npy file, as a memory map.

    Raises:
        UserError: no such file, or not a matrix.
    """
    try:
        rows = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} cannot be read as descriptors ({error}); give a folder that train.py -e has written"
        ) from error
    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.dtype.kind != "f":
        found = f"{rows.dtype} {rows.shape}" if isinstance(rows, np.ndarray) else "several arrays"
        raise UserError(f"{path} holds {found}; expected float (rows, numbers), as train.py -e writes")
    return rows
