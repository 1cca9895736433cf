"""The files of a run in --save_path, and files that are complete or not there."""

import errno
import fcntl
import json
import logging
import os
import shutil
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path

import numpy as np

from utils.options import FULL_DISK, UserError

log = logging.getLogger(__name__)

DESCRIPTOR_FILES = ("grd_global_descriptor.npy", "sat_global_descriptor.npy")  # queries, gallery
RUN_FILES = (
    "checkpoint.pth.tar", "checkpoint_before.pth.tar", "model_best.pth.tar", "metrics.json", "metrics.jsonl",
    "args.json", "log.txt",
)  # fmt: skip
EVALUATION = "evaluation"  # folder for `-e` beside a training
LACKING = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK, errno.EBADF)  # what a file system cannot do
PARTIAL = ".partial"  # ending of a file that is being written
_LOCKS = set()  # descriptors of locked folders


def _close_locks():
    """In a forked process: a lock is held as long as a copy of its descriptor is open, also after its owner's death."""
    while _LOCKS:
        with suppress(OSError):
            os.close(_LOCKS.pop())


os.register_at_fork(after_in_child=_close_locks)


@contextmanager
def whole_file(path, flush=False, before=None):
    """A binary file that takes its name when the block ends, on disk by then with `flush`; removed if the block fails.

    Args:
        before: path under which a file that had the name until then is kept; None to replace it.

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
                _to_disk(file.fileno(), path)
        if before is not None and path.exists():
            _keep(path, before)
        partial.replace(path)
        if flush:  # the new name as well
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                _to_disk(folder, path)
            finally:
                os.close(folder)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        hint = "free some space" if error.errno in FULL_DISK else "choose another folder"
        raise UserError(f"{path} could not be written ({error}); {hint}") from error


def _to_disk(number, path):
    """fsync a file or folder. A file system that cannot is told of once: after a power cut, files may be incomplete."""
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in LACKING:
            raise
        warn_once(f"the file system of {path.parent} cannot confirm that files are on disk ({error.strerror})")


def _keep(path, before):
    """Give a file a second name; where a file system has no links, that name alone."""
    try:
        before.unlink(missing_ok=True)
        os.link(path, before)
    except OSError:
        path.replace(before)


@cache
def warn_once(sentence):
    """Log a warning the first time."""
    log.warning(sentence)


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


def write_array(file, array):
    """Write an array as .npy; NumPy's own `save` does not notice when a full disk cuts the file short."""
    array = np.ascontiguousarray(array)
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
    file.write(array)


class RunFiles:
    """The files of a run, their names and how they are written; an earlier run's are moved aside, never overwritten."""

    def __init__(self, folder, resume=None):
        """The files in `folder`; `resume` is the checkpoint that a training continues from, if it does."""
        self.folder, self._lock, self._resume = Path(folder), None, resume
        self._resumed = resume is not None and resume.resolve().parent == self.folder.resolve()
        names = (self.folder / name for name in RUN_FILES)
        self.checkpoint, self.before, self.best, self.metrics, self.history, self.args, self.log = names

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

    def open(self, training):
        """Make the folder. A training keeps other trainings out until `close`, and moves an earlier run aside.

        Args:
            training: whether a training begins, or an evaluation, whose files go to the folder `EVALUATION` in it
                while a training uses the folder itself.

        Returns:
            list of sentences for the log.

        Raises:
            UserError: the folder cannot be made or written to, or another training uses it.
        """
        notes = []
        try:
            self._make()
            busy = not self._lock_folder(fcntl.LOCK_EX if training else fcntl.LOCK_SH, notes)
            if not training:
                self.close()
            if busy and training:
                raise UserError(
                    f"--save_path {self.folder} is in use by another training; choose another folder, or wait until it "
                    "ends"
                )
            if busy:
                notes.append(f"a training uses {self.folder}, so this evaluation is written to its {EVALUATION}/")
                self.__init__(self.folder / EVALUATION)
                self._make()
            elif training and not self._resumed:
                if aside := self._set_aside((*RUN_FILES, *DESCRIPTOR_FILES)):
                    notes.append(f"the files of an earlier run were moved to {aside}")
            elif training and self._resume.name == self.before.name and self.checkpoint.exists():
                kept = self.checkpoint.replace(self.checkpoint.with_name(f"{self.checkpoint.name}.damaged"))
                notes.append(f"{self.checkpoint} was renamed to {kept.name}")
        except OSError as error:
            raise UserError(
                f"--save_path {self.folder} cannot be written to ({error}); choose another folder"
            ) from error
        return notes

    def _make(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / ".writable").touch()
        (self.folder / ".writable").unlink()

    def _lock_folder(self, kind, notes):
        """Lock the folder for this process alone (LOCK_EX) or with others (LOCK_SH). Returns whether it is free."""
        self._lock = os.open(self.folder, os.O_RDONLY)
        _LOCKS.add(self._lock)
        try:
            fcntl.flock(self._lock, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            return False
        except OSError as error:
            self.close()
            notes.append(
                f"the file system of {self.folder} has no locks ({error.strerror}): make sure that no other training "
                "uses the folder"
            )
        return True

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
        """metrics.json and, if given, (N, D) query and (M, D) gallery descriptors, un-normalised float32.

        Descriptors and metrics of different evaluations never lie side by side: the old metrics go before, and the new
        ones come after the descriptors.
        """
        if descriptors is None:
            return write_json(self.metrics, record)
        paths = [self.metrics, *(self.folder / name for name in DESCRIPTOR_FILES)]
        with ExitStack() as stack:  # ends with the last file first
            files = [stack.enter_context(whole_file(path)) for path in paths]
            files[0].write((json.dumps(record, indent=2) + "\n").encode("utf-8"))
            for file, rows in zip(files[1:], descriptors, strict=True):
                write_array(file, rows)
            for file in files:
                file.flush()
            for path in paths:
                path.unlink(missing_ok=True)
        return None


def _epoch(line):
    """The epoch of a line of metrics.jsonl; None for half a line."""
    try:
        return int(json.loads(line)["epoch"])
    except (ValueError, KeyError, TypeError):
        return None
