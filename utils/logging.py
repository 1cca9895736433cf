"""Log lines on the screen and in log.txt, from rank 0; a progress bar on a terminal."""

import json
import logging
import platform
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from utils import distributed
from utils.options import UserError, discard_output
from utils.paper import PUBLISHED_TUPLE

log = logging.getLogger(__name__)


class _Screen(logging.StreamHandler):
    """Lines above a progress bar, not through it; characters that the screen cannot show are escaped."""

    def emit(self, record):
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        line = self.format(record).encode(encoding, "backslashreplace").decode(encoding)
        try:
            tqdm.write(line, file=self.stream)
            self.stream.flush()
        except OSError:  # closed, or a full disk: log.txt has everything, so the training goes on without a screen
            logging.getLogger().removeHandler(self)
            discard_output(self.stream)


class _LogFile(logging.FileHandler):
    """log.txt; a full disk does not end the run, whose lines are on the screen as well."""

    def handleError(self, record):  # noqa: N802, logging's own name
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def start_logging(save_path=None):
    """Log to the screen and, with `save_path`, to its log.txt (appended). Ranks other than 0 only warn.

    Raises:
        UserError: log.txt cannot be opened.
    """
    root = logging.getLogger()
    stop_logging()
    handlers = [_Screen(sys.stdout)] if sys.stdout is not None else []  # closed by `>&-`
    if save_path is not None and distributed.is_main():
        path = Path(save_path) / "log.txt"
        try:
            handlers.append(_LogFile(path, encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{path} cannot be written to ({error}); choose another --save_path") from error
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        root.addHandler(handler)
    root.setLevel(logging.INFO if distributed.is_main() else logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)


def stop_logging():
    """Close what `start_logging` opened."""
    root = logging.getLogger()
    for handler in [h for h in root.handlers if isinstance(h, _Screen | _LogFile)]:
        root.removeHandler(handler)
        with suppress(OSError):  # the disk is full
            handler.close()


def log_traceback():
    """Write the traceback of the present exception to log.txt; Python itself shows it on the screen."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _LogFile):
            handler.handle(log.makeRecord(log.name, logging.ERROR, "", 0, "the run failed", (), sys.exc_info()))


def on_terminal():
    """Whether somebody sees a progress bar."""
    return sys.stderr is not None and sys.stderr.isatty()  # None: closed by `2>&-`


def progress_bar(iterable=None, label="", total=None, leave=False):
    """tqdm on rank 0 of a terminal, silent elsewhere."""
    silent = not (distributed.is_main() and on_terminal())
    return tqdm(iterable, desc=label, total=total, leave=leave, disable=silent, dynamic_ncols=True)


def versions():
    """One line: the commit of this code, whether its files were changed, and the versions that results depend on."""
    import numpy
    import PIL
    import timm
    import torch
    import torchvision

    return (
        f"{commit()}; Python {platform.python_version()}, torch {torch.__version__}, torchvision "
        f"{torchvision.__version__}, timm {timm.__version__}, NumPy {numpy.__version__}, Pillow {PIL.__version__}"
    )


def commit():
    """ "commit 1a2b3c4d, clean", "commit 1a2b3c4d, with changes", or "commit unknown" outside a git repository."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        name, changes = (
            subprocess.run([*git, *words], capture_output=True, text=True, timeout=20, check=True).stdout.strip()
            for words in (["rev-parse", "--short=8", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return "commit unknown"
    return f"commit {name}, {'with changes' if changes else 'clean'}"


def describe_metrics(metrics):
    """ "R@1 97.06 · R@5 99.25 ..." of a metrics dict."""
    return " · ".join(f"{name} {value:.2f}" for name, value in metrics.items() if not isinstance(value, bool))


def log_setup(options, device, model, datasets, notes):
    """Log what a run consists of."""
    import torch

    _, query, reference = datasets
    log.info(versions())
    log.info("arguments: %s", json.dumps(options))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    log.info("device: %s (%s), %d process(es)", device, name, distributed.world_size())
    parameters = sum(p.numel() for p in model.parameters())
    log.info("model: %s, %.2f M parameters, descriptors of %d numbers", options["arch"], parameters / 1e6, model.dim)
    for sentence in notes:
        log.info(sentence)
    log.info(
        "%s: %d queries, gallery of %d, %d pairs missing, %d tiles missing",
        query.split, len(query), len(reference), query.missing, query.missing_tiles,
    )  # fmt: skip
    if query.in_training and distributed.is_main():
        log.warning(
            "%d of the %d places of split %s are among the training's: these results say little about new places",
            query.in_training, len(query), query.split,
        )  # fmt: skip


def log_training(args, sampler, train_set, pairs):
    """Log what is trained on, and how many pairs one loss compares beside the published number."""
    log.info(
        "training: %d pairs of %d places, %d pairs missing, %d batches of %d per epoch",
        len(train_set), sampler.items, train_set.missing, len(sampler), sampler.batch_size,
    )  # fmt: skip
    if sampler.batch_size != args.batch_size and distributed.is_main():
        log.warning(
            "--batch-size %d was lowered to %d: it must be a multiple of the %d process(es) and at most the number of "
            "places without a common tile",
            args.batch_size, sampler.batch_size, distributed.world_size(),
        )  # fmt: skip
    published = PUBLISHED_TUPLE.get(args.dataset)
    note = f"; the published results used {published} (--tuple-size {published})" if published else ""
    log.info("loss over tuples of %d pairs%s", pairs, note if published != pairs else " (as published)")
