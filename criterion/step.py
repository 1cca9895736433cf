"""One training step: forward, loss, gradients, optimiser."""

import torch

from criterion.sam import SAM
from utils import distributed


def train_step(network, criterion, optimizer, ground, aerial, autocast):
    """One step, plain or SAM.

    Args:
        network: (ground, aerial) -> (q, k) descriptors.  criterion: a `TupleLoss`.
        autocast: a context for the network.
        optimizer: one of PyTorch's, or `SAM`, for which loss and gradient are formed a second time.
        ground, aerial: (B, 3, H, W) float.

    Returns:
        (3,) float64 loss, positive and negative similarity, and the descriptors (B, dim) that they come from, all at
        the weights before the step.
    """

    def backward():
        with autocast:
            q, k = network(ground, aerial)
        loss, positive, negative = criterion(q, k)
        loss.backward()
        distributed.average_gradients(criterion.parameters())
        return torch.stack([loss, positive, negative]).detach().double(), q, k

    values, q, k = backward()
    if isinstance(optimizer, SAM):
        optimizer.first_step(zero_grad=True)
        backward()
        optimizer.second_step(zero_grad=True)
    else:
        optimizer.step()
        optimizer.zero_grad()
    return values, q.detach(), k.detach()
