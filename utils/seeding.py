"""Random numbers that follow from one seed, and the kernels that a run uses."""

import ctypes
import os
import random
from contextlib import suppress

import numpy as np
import torch

# glibc's malloc.h: M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD (at its maximum), in bytes
KEEP_FREED = {-1: 2**31 - 1, -2: 2**26, -3: 2**25}


def seed_process(seed, epoch=0, rank=0):
    """Seed Python, NumPy and torch of this process from (seed, epoch, rank).

    Called once an epoch, so that a training resumed at an epoch continues with the same numbers.
    """
    state = np.random.SeedSequence([seed, epoch, rank]).generate_state(3)
    random.seed(int(state[0]))
    np.random.seed(int(state[1]))
    torch.manual_seed(int(state[2]))


def set_kernels(deterministic, tf32=None):
    """Deterministic kernels only, or any of the device's; `tf32` "on", "off" or None for PyTorch's own.

    On a CPU, freed memory is kept for the next step: otherwise the system clears every page again, which takes a tenth
    of a training step.
    """
    if tf32 is not None:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32 == "on"
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by CUDA's matrix products
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = False  # trying every algorithm takes 5 to 25 s for each new shape on a GPU
    if not torch.cuda.is_available():
        with suppress(OSError):  # no glibc
            libc = ctypes.CDLL("libc.so.6")
            for parameter, value in KEEP_FREED.items():
                libc.mallopt(parameter, value)
