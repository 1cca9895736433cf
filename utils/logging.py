"""What a run says: sentences to the screen and to log.txt, from rank 0; a progress bar on a terminal."""

import json
import logging
import platform
import sys
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from utils import distributed
from utils.arguments import on_terminal
from utils.paper import PUBLISHED_TUPLE

log = logging.getLogger(__name__)


class _Screen(logging.StreamHandler):
    """Lines above a progress bar, not through it; characters that the screen does not know are escaped."""

    def emit(self, record):
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        line = self.format(record).encode(encoding, "backslashreplace").decode(encoding)
        tqdm.write(line, file=self.stream)


class _LogFile(logging.FileHandler):
    """log.txt; lines that a full disk refuses are on the screen, and what is saved next tells of it."""

    def handleError(self, record):  # noqa: N802, logging's own name
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def start_logging(save_path=None):
    """Log to the screen and, with `save_path`, to its log.txt (appended). Ranks other than 0 only warn."""
    root = logging.getLogger()
    stop_logging()
    level = logging.INFO if distributed.is_main() else logging.WARNING
    handlers = [_Screen(sys.stdout)] if sys.stdout is not None else []  # closed by `>&-`
    if save_path is not None and distributed.is_main():
        handlers.append(_LogFile(Path(save_path) / "log.txt", encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        handler.frgeo = True
        root.addHandler(handler)
    root.setLevel(level)
    logging.getLogger("httpx").setLevel(logging.WARNING)


def stop_logging():
    """Close what `start_logging` opened."""
    root = logging.getLogger()
    for handler in [h for h in root.handlers if getattr(h, "frgeo", False)]:
        root.removeHandler(handler)
        with suppress(OSError):  # a full disk has been told of by now
            handler.close()


def progress_bar(iterable=None, label="", total=None, leave=False):
    """tqdm on rank 0 of a terminal, silent elsewhere."""
    silent = not (distributed.is_main() and on_terminal())
    return tqdm(iterable, desc=label, total=total, leave=leave, disable=silent, dynamic_ncols=True)


def versions():
    """One line naming the versions that results may depend on."""
    import numpy
    import PIL
    import timm
    import torch
    import torchvision

    return (
        f"Python {platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}, "
        f"timm {timm.__version__}, NumPy {numpy.__version__}, Pillow {PIL.__version__}"
    )


def describe_metrics(metrics):
    """ "R@1 97.06 · R@5 99.25 ..." of a metrics dict."""
    return " · ".join(f"{name} {value:.2f}" for name, value in metrics.items())


def log_setup(options, device, model, datasets, taken, changed):
    """Say what this run is made of."""
    import torch

    _, query, reference = datasets
    log.info(versions())
    log.info("arguments: %s", json.dumps(options))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    log.info("device: %s (%s), %d process(es)", device, name, distributed.world_size())
    parameters = sum(p.numel() for p in model.parameters())
    log.info("model: %s, %.2f M parameters, descriptors of %d numbers", options["arch"], parameters / 1e6, model.dim)
    for sentence in taken:
        log.info("using %s", sentence)
    for sentence in changed:
        log.info("other than before: %s", sentence)
    log.info(
        "%s: %d queries, gallery of %d, %d pairs missing, %d tiles missing",
        query.split, len(query), len(reference), query.missing, query.missing_tiles,
    )  # fmt: skip


def log_training(args, training, train_set):
    """Say what is trained on, and how many pairs one loss sees beside the published number."""
    sampler, criterion, start, best = training.sampler, training.criterion, training.start, training.best
    if args.resume:
        log.info("resumed %s after epoch %d, best R@1 %.2f", args.resume, start, best)
    log.info(
        "training: %d pairs of %d places, %d pairs missing, %d batches of %d an epoch",
        len(train_set), sampler.items, train_set.missing, len(sampler), sampler.batch_size,
    )  # fmt: skip
    if sampler.batch_size != args.batch_size and distributed.is_main():
        log.warning(
            "--batch-size %d was lowered to %d: it must divide over %d process(es) and fit the places without a "
            "common tile",
            args.batch_size, sampler.batch_size, distributed.world_size(),
        )  # fmt: skip
    pairs = criterion.tuple_size or sampler.share * (distributed.world_size() if criterion.gather else 1)
    published = PUBLISHED_TUPLE.get(args.dataset)
    note = f"; the published numbers are those of {published}: --tuple-size {published}" if published else ""
    log.info("loss over tuples of %d pairs%s", pairs, note if published != pairs else " (as published)")
