"""Which pairs one loss sees: the process's own, those of all processes, or tuples of a fixed size."""

import torch
from torch import nn

from utils.distributed import all_gather_with_grad


class TupleLoss(nn.Module):
    """Take a loss over tuples of `tuple_size` pairs instead of over whatever one process holds.

    The published numbers come from two processes that each take the loss over their own half of the batch;
    `tuple_size` gives the same loss on any number of processes.

    Args:
        loss: (q, k) -> (loss, mean positive, mean negative) over one tuple.
        tuple_size: pairs in a tuple; None takes all pairs at hand as one tuple.
        gather: take the pairs of all processes (gradients flow through the gather), rank after rank.

    Shapes: q, k (B, D) of this process -> the three scalars, averaged over tuples. With `gather` every process
    returns the loss of the global batch, and gradients averaged over processes (as DistributedDataParallel does)
    equal those of one process with the whole batch.

    Raises:
        ValueError: the pairs at hand do not divide into tuples.
    """

    def __init__(self, loss, tuple_size=None, gather=False):
        super().__init__()
        self.loss = loss
        self.tuple_size = tuple_size
        self.gather = gather

    def forward(self, q, k):
        if self.gather:
            q, k = all_gather_with_grad(q), all_gather_with_grad(k)
        size = self.tuple_size or len(q)
        if len(q) % size:
            raise ValueError(f"{len(q)} pairs cannot be cut into tuples of {size}")
        parts = [self.loss(a, b) for a, b in zip(q.split(size), k.split(size), strict=True)]
        return tuple(torch.stack(values).mean() for values in zip(*parts, strict=True))
