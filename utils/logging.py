"""What a run says: sentences to the screen and to log.txt, from rank 0; a progress bar on a terminal."""

import json
import logging
import platform
import sys
from pathlib import Path

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from utils import distributed


def start_logging(save_path=None):
    """Log to the screen and, with `save_path`, to its log.txt (appended). Ranks other than 0 only warn."""
    root = logging.getLogger()
    stop_logging()
    level = logging.INFO if distributed.is_main() else logging.WARNING
    handlers = [logging.StreamHandler(sys.stdout)]
    if save_path is not None and distributed.is_main():
        handlers.append(logging.FileHandler(Path(save_path) / "log.txt", encoding="utf-8"))
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
        handler.close()


def progress_bar(iterable=None, label="", total=None, leave=False):
    """tqdm on rank 0 of a terminal, silent elsewhere."""
    silent = not (distributed.is_main() and sys.stderr.isatty())
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


def write_json(path, content):
    """Write JSON so that a reader never sees half of it."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2, sort_keys=False) + "\n", encoding="utf-8")
    partial.replace(path)


__all__ = [
    "describe_metrics",
    "logging_redirect_tqdm",
    "progress_bar",
    "start_logging",
    "stop_logging",
    "versions",
    "write_json",
]
