"""The processes of a run: how they start, find each other and end, and the collectives they use.

A single process needs no process group: every function here works without one.
"""

import logging
import os
import socket
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from utils.options import UserError, explain
from utils.workers import cores, follow_parent, starting_workers

JOIN = timedelta(minutes=10)  # until all processes have found each other
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")  # environment variables
TIMEOUT = timedelta(hours=2)  # for one collective: rank 0 may save, plan or evaluate while the others wait


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def world_size():
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main():
    return rank() == 0


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


# Starting and ending processes.


def launch(function, args):
    """Call `function(args, device)` in every process of the run; returns rank 0's value (None on other nodes).

    Raises:
        UserError: unavailable devices, addresses or numbers of processes, or whatever `function` raised as such.
    """
    nodes, node = max(1, args.world_size), max(0, args.rank)
    torchrun = {*TORCHRUN[:3]} <= os.environ.keys()
    if (torchrun or args.multiprocessing_distributed or nodes > 1) and ":" in args.device:
        raise UserError(
            f"--device {args.device} (--gpu) names one GPU and cannot be combined with several processes; choose GPUs "
            "with the environment variable CUDA_VISIBLE_DEVICES"
        )
    args.processes_here = _processes(args)
    if torchrun:
        own, world, local, args.processes_here = (int(os.environ.get(name, 1)) for name in TORCHRUN)
        return _in_group(function, args, "env://", own, world, local)
    if not args.multiprocessing_distributed:
        if nodes == 1:
            return function(args, choose_device(args.device))
        return _in_group(function, args, args.dist_url, node, nodes, 0)

    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # no warning when it ends others
    url = args.dist_url or f"tcp://127.0.0.1:{free_port()}"
    answers = mp.get_context("spawn").SimpleQueue()
    with starting_workers():
        children = (function, args, url, node, nodes, answers)
        running = mp.spawn(_child, args=children, nprocs=args.processes_here, join=False)
    try:
        while not running.join():
            pass
    except (mp.ProcessExitedException, mp.ProcessRaisedException):
        if answers.empty():  # else one process has reported the cause
            raise
    except KeyboardInterrupt:
        for process in running.processes:
            process.terminate()
        raise
    kind, value = answers.get() if not answers.empty() else ("result", None)
    if kind == "error":
        raise UserError(value)
    return value


def choose_device(name, local_rank=None):
    """The torch device for "auto", "cpu", "cuda" or "cuda:N"; the GPU of number `local_rank` if that is given.

    Raises:
        UserError: the device does not exist.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    kind, _, index = name.replace("auto", "cuda" if count else "cpu").partition(":")
    if kind == "cpu" and not index:
        return torch.device("cpu")
    if kind != "cuda" or not (index or "0").isdecimal():
        raise UserError(f"--device {name} is unknown; expected auto, cpu, cuda or cuda:N")
    index = int(index or 0) if local_rank is None else local_rank
    if index >= count:
        raise UserError(f"--device cuda:{index} does not exist: PyTorch finds {count} GPU(s); pass --device cpu")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def loader_workers(args):
    """Loader processes of this process: its share of the node's."""
    wanted = min(32, cores()) if args.workers is None else args.workers
    return -(-wanted // getattr(args, "processes_here", 1))


def _processes(args):
    """Processes to start on this node."""
    if not args.multiprocessing_distributed:
        return 1
    gpus = torch.cuda.device_count() if torch.cuda.is_available() and args.device != "cpu" else 0
    if args.nprocs is not None and 0 < gpus < args.nprocs:
        raise UserError(f"--nprocs {args.nprocs} exceeds the {gpus} GPU(s) of this machine; pass at most {gpus}")
    return args.nprocs or gpus or 1


def _in_group(function, args, url, rank, world, local_rank):
    """Join the other processes, call the function, leave."""
    device = choose_device(args.device, local_rank)
    if device.type == "cpu" and (url == "env://" or "OMP_NUM_THREADS" not in os.environ):
        torch.set_num_threads(max(1, cores() // args.processes_here))
    join(url, world, rank, args.dist_backend or ("nccl" if device.type == "cuda" else "gloo"))
    try:
        return function(args, device)
    finally:
        leave()


def _child(local_rank, function, args, url, node, nodes, answers):
    """One process of this node: sends its result, or the sentence that explains its error, to the parent."""
    if sys.platform == "linux":  # for loader processes: spawned ones would import torch again at every evaluation
        mp.set_start_method("fork", force=True)
    follow_parent()
    rank = node * args.processes_here + local_rank

    def report(error):
        if (sentence := explain(error)) is None:
            raise error
        answers.put(("error", sentence))
        sys.exit(2)

    def call(args, device):
        """Report an error before the group is left: the other processes fail as soon as this one is gone."""
        try:
            return function(args, device)
        except Exception as error:
            report(error)

    try:
        result = _in_group(call, args, url, rank, nodes * args.processes_here, local_rank)
    except UserError as error:  # while joining the group
        report(error)
    if rank == 0:
        answers.put(("result", result))


# The process group and its collectives.


def join(url, world, own_rank, backend):
    """Join the process group of `world` processes as `own_rank`.

    Raises:
        UserError: the address is taken or unreachable, a process is missing, or the backend is unavailable.
    """
    if backend not in dist.Backend.backend_list or (backend == "nccl" and not torch.cuda.is_available()):
        raise UserError(f"--dist-backend {backend} is not available; omit it (default: nccl with GPUs, else gloo)")
    try:
        store, own_rank, world = next(dist.rendezvous(url, own_rank, world, timeout=JOIN))
        store.set_timeout(TIMEOUT)
        dist.init_process_group(backend, store=store, world_size=world, rank=own_rank, timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:  # DistNetworkError is a RuntimeError
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"--dist-url {url} cannot be used by process {own_rank} of {world} ({first}); pass an address with a free "
            "port, such as tcp://localhost:8081, the same on every node"
        ) from error


def leave():
    if dist.is_initialized():
        # In torch 2.6, destroying a gloo group holds the interpreter while it waits for its threads: give them time to
        # free their last tensors, for which they need the interpreter.
        time.sleep(0.2)
        dist.destroy_process_group()


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
    total = torch.tensor(values, dtype=torch.float64, device=_transport())
    if world_size() > 1:
        dist.all_reduce(total)
    return (total / world_size()).tolist()


@torch.no_grad()
def average_gradients(parameters):
    """Mean over ranks of the gradients of parameters that DistributedDataParallel does not see, in one collective."""
    gradients = [p.grad for p in parameters if p.grad is not None] if world_size() > 1 else []
    if gradients:
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        parts = (flat / world_size()).split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view(gradient.shape))


@torch.no_grad()
def share_buffers(model):
    """Give every rank the buffers of rank 0: running statistics of batch norms differ after training steps."""
    share(model.buffers())


def share(tensors):
    """Give every rank the values that rank 0 holds."""
    for tensor in tensors if world_size() > 1 else ():
        dist.broadcast(tensor, src=0)


def shard(length, owner=None):
    """The contiguous part of `length` rows that belongs to a rank (default: this one), as (start, stop)."""
    r, w = rank() if owner is None else owner, world_size()
    return length * r // w, length * (r + 1) // w


def gather_rows(rows, length):
    """All ranks' shards (as cut by `shard`) as one tensor of `length` rows on the CPU, on every rank."""
    out = torch.empty((length, *rows.shape[1:]), dtype=rows.dtype)
    for source in range(world_size()):  # one after the other: a GPU holds one shard and never the whole
        start, stop = shard(length, source)
        part = rows.to(_transport()) if source == rank() else out[start:stop].to(_transport())
        if world_size() > 1 and stop > start:
            dist.broadcast(part, src=source)
        out[start:stop] = part
    return out


def gather_to_main(rows):
    """Equal-sized rows of all ranks as one tensor on rank 0, on the device of the rows; None on the others."""
    if world_size() == 1:
        return rows
    own = rows.to(_transport()).contiguous()
    parts = [torch.empty_like(own) for _ in range(world_size())] if is_main() else None
    dist.gather(own, parts, dst=0)
    return torch.cat(parts).to(rows.device) if is_main() else None


def all_gather_with_grad(rows):
    """(B, D) of every rank -> (world * B, D) in rank order, with gradients to every rank's rows."""
    return _AllGather.apply(rows) if world_size() > 1 else rows


class _AllGather(torch.autograd.Function):
    """All-gather whose backward sums, over ranks, the gradients that reach each rank's rows."""

    @staticmethod
    def forward(ctx, rows):
        ctx.rows, own = len(rows), rows.to(_transport()).contiguous()
        parts = [torch.empty_like(own) for _ in range(world_size())]
        dist.all_gather(parts, own)
        return torch.cat(parts).to(rows.device)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad[rank() * ctx.rows : (rank() + 1) * ctx.rows]


def _transport():
    """The device that collectives of this backend work on."""
    nccl = dist.is_initialized() and dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
