"""Processes: how they find each other, and the few collectives the project needs. One process works without any."""

import os
import socket
from datetime import timedelta

import torch
import torch.distributed as dist

from utils.errors import UserError

JOIN = timedelta(minutes=10)  # for all processes to find each other
TIMEOUT = timedelta(hours=2)  # rank 0 may save, plan or evaluate for a while as the others wait


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def world_size():
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main():
    return rank() == 0


def under_torchrun():
    return "TORCHELASTIC_RUN_ID" in os.environ or {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= os.environ.keys()


def local_world_size():
    """Processes of this node, under torchrun."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def join(url, world, own_rank, backend):
    """Join the process group of `world` processes as `own_rank`.

    Raises:
        UserError: the address is taken or cannot be reached, a process does not come, or the backend is not there.
    """
    if backend not in dist.Backend.backend_list or (backend == "nccl" and not torch.cuda.is_available()):
        raise UserError(f"--dist-backend {backend} is not available here; leave it out to have the fitting one chosen")
    try:
        store, own_rank, world = next(dist.rendezvous(url, own_rank, world, timeout=JOIN))
        store.set_timeout(TIMEOUT)
        dist.init_process_group(backend, store=store, world_size=world, rank=own_rank, timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:  # DistNetworkError is a RuntimeError
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"--dist-url {url} cannot be used by process {own_rank} of {world} ({first}); "
            "give an address and a free port, such as tcp://localhost:8081, the same on every node"
        ) from error


def leave():
    if not dist.is_initialized():
        return
    # ProcessGroup (of torch 2.6) holds the interpreter while it waits for its threads, and one of them may need it to
    # free a tensor. With one more reference the backend's own class ends the threads, which lets go of it.
    backend = dist.group.WORLD._get_backend(torch.device("cpu")) if dist.get_backend() == "gloo" else None
    dist.destroy_process_group()
    del backend


def barrier():
    if dist.is_initialized():
        dist.barrier()


def broadcast_object(value):
    """Rank 0's `value` on every rank."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=_transport())
    return box[0]


def mean_over_ranks(values):
    """Mean over ranks of a short list of numbers."""
    if world_size() == 1:
        return list(values)
    t = torch.tensor(values, dtype=torch.float64, device=_transport())
    dist.all_reduce(t)
    return (t / world_size()).tolist()


@torch.no_grad()
def average_gradients(parameters):
    """Mean over ranks of the gradients of parameters that DistributedDataParallel does not see."""
    for parameter in parameters if world_size() > 1 else ():
        dist.all_reduce(parameter.grad)
        parameter.grad /= world_size()


@torch.no_grad()
def share_buffers(model):
    """Give every rank the buffers of rank 0: running statistics of batch norms differ after training steps."""
    for buffer in model.buffers() if world_size() > 1 else ():
        dist.broadcast(buffer, src=0)


def shard(length):
    """This rank's contiguous part of `length` rows, as (start, stop)."""
    r, w = rank(), world_size()
    return length * r // w, length * (r + 1) // w


def gather_rows(rows, length):
    """All ranks' shards (as cut by `shard`) as one tensor of `length` rows on the CPU, on every rank.

    Sent in blocks, so that with NCCL the device holds a few blocks and never the whole.
    """
    if world_size() == 1:
        return rows.cpu()
    device, w = _transport(), world_size()
    bounds = [(length * r // w, length * (r + 1) // w) for r in range(w)]
    longest = max(stop - start for start, stop in bounds)
    out = torch.empty((length, *rows.shape[1:]), dtype=rows.dtype)
    block = max(1, 2**25 // max(1, rows[:1].numel() * rows.element_size()))  # 32 MiB a rank
    for i in range(0, longest, block):
        size = min(block, longest - i)
        own = rows[i : i + size].to(device)
        own = torch.cat([own, own.new_zeros((size - len(own), *own.shape[1:]))])
        parts = [torch.empty_like(own) for _ in range(w)]
        dist.all_gather(parts, own)
        for (start, stop), part in zip(bounds, parts, strict=True):
            count = max(0, min(size, stop - start - i))
            out[start + i : start + i + count] = part[:count].cpu()
    return out


def gather_to_main(rows):
    """Equal-sized rows of all ranks as one tensor on rank 0; None on the others."""
    if world_size() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(world_size())] if is_main() else None
    dist.gather(rows, parts, dst=0)
    return torch.cat(parts) if is_main() else None


class _AllGather(torch.autograd.Function):
    """All-gather whose backward sums, over ranks, the gradients that reach each rank's rows."""

    @staticmethod
    def forward(ctx, rows):
        parts = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(parts, rows.contiguous())
        ctx.rows = len(rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad[rank() * ctx.rows : (rank() + 1) * ctx.rows]


def all_gather_with_grad(rows):
    """(B, D) of every rank -> (world * B, D) in rank order, with gradients to every rank's rows."""
    return _AllGather.apply(rows) if world_size() > 1 else rows


def _transport():
    """The device that collectives of this backend work on."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
