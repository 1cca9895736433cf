"""Start a run's processes: one, one per GPU, several on a CPU, or those that torchrun has started."""

import ctypes
import logging
import os
import sys

import torch
import torch.multiprocessing as mp

from utils import distributed
from utils.errors import UserError, told
from utils.workers import follow_parent, starting_workers

# glibc's malloc.h: parameters of mallopt, and what they are set to.
KEEP = {-1: 2**31 - 1, -2: 2**26, -3: 2**25}  # trim threshold, top padding, mmap threshold (its maximum), in bytes


def launch(function, args):
    """Call `function(args, device)` in every process of the run; returns rank 0's value (None on other nodes).

    Raises:
        UserError: devices, addresses or numbers of processes that cannot be, or what `function` raised.
    """
    if distributed.under_torchrun():
        local, here = int(os.environ["LOCAL_RANK"]), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        return _in_group(function, args, "env://", int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), local, here)
    nodes, node = max(1, args.world_size), max(0, args.rank)
    if not args.multiprocessing_distributed:
        if nodes == 1:
            return function(args, choose_device(args.device))
        return _in_group(function, args, args.dist_url, node, nodes, 0, 1)

    here = _processes(args)
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # that it ends the others is expected
    url = args.dist_url or f"tcp://127.0.0.1:{distributed.free_port()}"
    answers = mp.get_context("spawn").SimpleQueue()
    with starting_workers():
        running = mp.spawn(_child, args=(function, args, url, node, nodes, here, answers), nprocs=here, join=False)
    try:
        while not running.join():
            pass
    except (mp.ProcessExitedException, mp.ProcessRaisedException):
        if answers.empty():  # else the others fell with the one that has told why
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
    """The torch device of a process.

    Args:
        name: "auto", "cpu", "cuda" or "cuda:N".  local_rank: number of the process on this node, where there are
            several: it takes the GPU of that number.

    Raises:
        UserError: a device that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name} is not known; expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = local_rank if local_rank is not None else device.index or 0
        if index >= count:
            raise UserError(f"--device cuda:{index} is not there: this machine shows {count} GPU(s); give --device cpu")
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    return device


def keep_freed_memory():
    """Let the C library keep freed memory for the next step; given back, the system would clear every page again.

    On a CPU that takes a tenth of a training step. Does nothing where the C library is not glibc.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return
    for parameter, value in KEEP.items():
        libc.mallopt(parameter, value)


def cores():
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def loader_workers(args):
    """Loader processes of this process: the node's share, never more than there are cores."""
    here = int(distributed.world_size() / max(1, args.world_size)) if args.multiprocessing_distributed else 1
    here = here if not distributed.under_torchrun() else distributed.local_world_size()
    wanted = min(32, cores()) if args.workers is None else args.workers
    return -(-wanted // here)


def _processes(args):
    """Processes to start on this node."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() and args.device != "cpu" else 0
    if args.nprocs is not None and 0 < gpus < args.nprocs:
        raise UserError(f"--nprocs {args.nprocs} is more than the {gpus} GPU(s) of this machine; give at most {gpus}")
    return args.nprocs or gpus or 1


def _in_group(function, args, url, rank, world, local_rank, here):
    """Join the others, call the function, leave."""
    device = choose_device(args.device.split(":")[0], local_rank)
    if device.type == "cpu" and (distributed.under_torchrun() or "OMP_NUM_THREADS" not in os.environ):
        torch.set_num_threads(max(1, cores() // here))
    distributed.join(url, world, rank, args.dist_backend or ("nccl" if device.type == "cuda" else "gloo"))
    try:
        return function(args, device)
    finally:
        distributed.leave()


def _child(local_rank, function, args, url, node, nodes, here, answers):
    """One process of this node; what it has to tell goes to the parent."""
    if sys.platform == "linux":  # for loader processes: spawned ones import torch first, at every evaluation
        mp.set_start_method("fork", force=True)
    follow_parent()
    rank = node * here + local_rank

    def tell(error):
        answers.put(("error", told(error)))
        sys.exit(2)

    def telling(args, device):
        """Say what is wrong before the group is left: the others fail as soon as this process has gone."""
        try:
            return function(args, device)
        except (UserError, OSError) as error:
            tell(error)

    try:
        result = _in_group(telling, args, url, rank, nodes * here, local_rank, here)
    except UserError as error:  # of the group itself
        tell(error)
    if rank == 0:
        answers.put(("result", result))
