"""One seed for a run; every process, epoch and loader worker gets numbers of its own from it."""

import os
import random

import numpy as np
import torch


def seed_process(seed, epoch=0, rank=0):
    """Seed Python, NumPy and torch of this process from (seed, epoch, rank).

    Called at the start of every epoch, so a run that is resumed at an epoch continues with the same numbers.
    """
    state = np.random.SeedSequence([seed, epoch, rank]).generate_state(3)
    random.seed(int(state[0]))
    np.random.seed(int(state[1]))
    torch.manual_seed(int(state[2]))


def seed_worker(_):
    """`worker_init_fn` of the loaders: Python and NumPy follow the seed torch gave this worker."""
    seed = torch.initial_seed() % 2**32
    random.seed(seed)
    np.random.seed(seed)


def loader_generator(seed, epoch=0, rank=0):
    """Generator that a loader draws its workers' seeds from."""
    state = np.random.SeedSequence([seed, epoch, rank, 1]).generate_state(1)
    return torch.Generator().manual_seed(int(state[0]))


def set_kernels(deterministic, tf32=None):
    """Deterministic kernels only (slower), or the fastest that the device has; `tf32` "on", "off" or PyTorch's."""
    if tf32 is not None:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32 == "on"
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # asked for by CUDA's matrix products
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
