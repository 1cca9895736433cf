"""The processes of a run: how they start, find each other and end, and the collectives they use.

A single process needs no process group: every function here works without one.
"""

import hashlib
import logging
import os
import socket
import sys
import time
import uuid
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from utils.options import StoppedError, UserError, explain, scarcity
from utils.stopping import forwarding, kill
from utils.workers import busy_cores, cores, end_with, follow_parent, starting_workers

# Words of gloo and NCCL where a process has ended.
LOST = ("Connection reset", "Connection closed", "Broken pipe", "remote process", "socketProgress", "Socket Timeout")
POLITE = 15  # niceness of a training that begins beside other programs, which then keep most of their speed
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")  # environment variables
STOPPING = 60  # seconds from a signal until processes that still run are killed
TOLD_AFTER, TOLD_AGAIN = 10, 60  # seconds of waiting for other processes before a line about it, and the next


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
    nodes, node, torchrun = max(1, args.world_size), max(0, args.rank), _under_torchrun()
    if (torchrun or args.multiprocessing_distributed or nodes > 1) and ":" in args.device:
        raise UserError(
            f"--device {args.device} (--gpu) names one GPU and cannot be combined with several processes; choose GPUs "
            "with the environment variable CUDA_VISIBLE_DEVICES"
        )
    args.processes_here = _processes(args)
    if torchrun:
        end_with(os.getppid())
        own, world, local, args.processes_here = (int(os.environ.get(name, 1)) for name in TORCHRUN)
        return _in_group(function, args, "env://", own, world, local)
    if not args.multiprocessing_distributed:
        if nodes == 1:
            device = choose_device(args.device)
            _set_threads(args)
            return function(args, device)
        return _in_group(function, args, args.dist_url, node, nodes, 0)

    args.run_id = uuid.uuid4().hex if nodes == 1 else ""
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # no warning when it ends others
    url = args.dist_url or f"tcp://127.0.0.1:{free_port()}"
    answers = mp.get_context("spawn").SimpleQueue()
    with starting_workers():
        children = (function, args, url, node, nodes, answers)
        running = mp.spawn(_child, args=children, nprocs=args.processes_here, join=False)
    with forwarding(running.processes) as signals:
        try:
            while not running.join(timeout=1, grace_period=2):  # the rest ends within seconds after one has failed
                if signals and time.monotonic() - signals[0][1] > STOPPING:
                    kill(running.processes)
        except (mp.ProcessExitedException, mp.ProcessRaisedException):
            if answers.empty() and not signals:  # else one process has reported the cause
                raise
    kind, value = answers.get() if not answers.empty() else ("result", None)
    if kind == "error":
        raise UserError(value)
    if signals:
        raise StoppedError(signals[0][0], value if kind == "stopped" else "nothing was saved since the last checkpoint")
    return value


def _under_torchrun():
    return {*TORCHRUN[:3]} <= os.environ.keys()


def choose_threads(args, stored=None, polite=False):
    """Set `args.threads`, the CPU threads of each process: as many as it has cores that no other program uses.

    OMP_NUM_THREADS decides if it is set, though torchrun's own 1 does not. Otherwise it is the number that a resumed
    training had before, since sums over other parts of a tensor differ in their last digits.

    Args:
        stored: that number, or None.
        polite: on a busy machine, also lower this process's priority, for good.

    Returns:
        list of sentences for the log.
    """
    torchrun, args.threads = _under_torchrun(), None
    stored = stored if isinstance(stored, int) and stored > 0 else None
    if args.device.startswith("cuda") or (args.device == "auto" and torch.cuda.is_available()):
        return []
    processes = int(os.environ.get(TORCHRUN[3], 1)) if torchrun else _processes(args)
    given = os.environ.get("OMP_NUM_THREADS")
    if given and not (torchrun and processes > 1 and given == "1"):
        differs = stored is not None and stored != torch.get_num_threads()
        return [f"OMP_NUM_THREADS is {given}, before it was {stored}: results differ in their last digits"] * differs
    busy, most, sentences = 0 if torchrun else round(busy_cores()), max(1, cores() // processes), []
    args.threads = max(1, (cores() - busy) // processes)
    if stored is not None and stored > most:
        sentences.append(f"the training had {stored} threads, here are {most}: results differ in their last digits")
        args.threads = most
    elif stored is not None:
        args.threads = stored
    if busy:
        if polite:
            os.nice(POLITE)
        sentences.append(f"other programs use {busy} of {cores()} cores; threads of each process: {args.threads}")
    return sentences


def _set_threads(args):
    if getattr(args, "threads", None):
        torch.set_num_threads(args.threads)


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
    _set_threads(args)
    backend = args.dist_backend or ("nccl" if device.type == "cuda" else "gloo")
    join(url, world, rank, backend, timedelta(minutes=args.timeout), getattr(args, "run_id", ""))
    try:
        return function(args, device)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else ""
        # Processes that this program has started are watched by it, and it knows what became of one.
        watched = url != "env://" and world == args.processes_here
        if "Timed out waiting" in reason or (any(words in reason for words in LOST) and not watched):
            raise UserError(
                f"the connection to another process was lost ({reason}): it has ended, hangs, or its node is gone; see "
                "its log, and start all processes again with --resume auto"
            ) from error
        raise
    finally:
        leave()


def _child(local_rank, function, args, url, node, nodes, answers):
    """One process of this node: sends its result, or the sentence that explains its error, to the parent."""
    if sys.platform == "linux":  # for loader processes: spawned ones would import torch again at every evaluation
        mp.set_start_method("fork", force=True)
    follow_parent()
    rank = node * args.processes_here + local_rank

    def report(error):
        if isinstance(error, StoppedError):
            answers.put(("stopped", error.how))
            sys.exit(0)
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


def join(url, world, own_rank, backend, limit=timedelta(minutes=30), run_id=""):
    """Join the process group of `world` processes as `own_rank`; says on stderr how many have come while it waits.

    Args:
        limit: timedelta after which waiting ends, here and in every collective.
        run_id: equal for the processes of one run; "" if unknown.

    Raises:
        UserError: the address is taken, unreachable, or another run's, a process is missing, or the backend is
            unavailable.
    """
    if backend not in dist.Backend.backend_list or (backend == "nccl" and not torch.cuda.is_available()):
        raise UserError(f"--dist-backend {backend} is not available; omit it (default: nccl with GPUs, else gloo)")
    try:
        store, own_rank, world = _meet(url, own_rank, world, limit)
        _check_run(store, own_rank, run_id, url)
        _wait_for_all(store, own_rank, world, url, limit)
        store.set_timeout(limit)
        dist.init_process_group(backend, store=store, world_size=world, rank=own_rank, timeout=limit)
    except (RuntimeError, ValueError, OSError) as error:  # DistNetworkError is a RuntimeError
        if scarcity(error):  # not the address's fault
            raise
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"--dist-url {url} cannot be used by process {own_rank} of {world} ({first}); pass an address with a free "
            "port, such as tcp://localhost:8081, the same on every node"
        ) from error


def _meet(url, own_rank, world, limit):
    """(store, rank, world): where the processes meet. Does not wait for any but the one that keeps the store."""
    address = urlsplit(url)
    if address.scheme != "tcp":  # torchrun's environment, or a file
        return next(dist.rendezvous(url, own_rank, world, timeout=limit))
    if not address.hostname or not address.port:
        raise ValueError("it names no host and port")
    own = {"is_master": own_rank == 0, "timeout": limit, "wait_for_workers": False}
    if own_rank == 0:  # by itself, PyTorch would listen on every address of this machine
        family, *_, (found, *_) = socket.getaddrinfo(address.hostname, address.port, type=socket.SOCK_STREAM)[0]
        # Some systems let a machine's own name mean an address that no other machine reaches.
        own_name = found.startswith("127.") and address.hostname not in ("localhost", found)
        listening = socket.create_server(("" if own_name else found, address.port), family=family, backlog=2048)
        own["master_listen_fd"] = listening.detach()
    return dist.TCPStore(address.hostname, address.port, world, **own), own_rank, world


def _check_run(store, own_rank, run_id, url):
    """Raises UserError if the processes that meet here are another run's."""
    if own_rank == 0:
        store.set("run", run_id)
    elif (found := store.get("run").decode()) != run_id and found and run_id:
        raise UserError(f"--dist-url {url} is in use by another run; pass an address with a free port, or omit it")


def _wait_for_all(store, own_rank, world, url, limit):
    """Wait until every process has come."""
    store.add("come", 1)
    started, told = time.monotonic(), TOLD_AFTER - TOLD_AGAIN
    while (come := store.add("come", 0)) < world:
        waited = time.monotonic() - started
        if waited > limit.total_seconds():
            raise ValueError(f"{come} of {world} processes have come within {limit.total_seconds() / 60:g} minutes")
        if waited >= told + TOLD_AGAIN and own_rank == 0:
            told = waited
            # Logging starts once the processes have met and agreed.
            print(f"train.py: waiting for the other processes at {url}: {come} of {world} have come", file=sys.stderr)
        time.sleep(0.05)


def agree(facts):
    """Compare what must be equal on all processes.

    Args:
        facts: {what: value}, values of any type that can be pickled; the code and PyTorch's version are added.

    Raises:
        UserError: on every process, if a value differs; says which, and where.
    """
    if world_size() == 1:
        return
    facts = {"the version of PyTorch": torch.__version__, "the code": _code()} | facts
    every = gather_objects(facts)
    for other, theirs in enumerate(every[1:], start=1):
        for what in every[0].keys() | theirs.keys():
            first, value = every[0].get(what), theirs.get(what)
            if first != value:
                raise UserError(
                    f"the processes differ in {what}: process 0 has {first}, process {other} has {value}; start all "
                    "of them with the same code, options and data"
                )


def _code():
    """Text that is equal for equal code of the training."""
    root, digest = Path(__file__).resolve().parents[1], hashlib.sha256()
    rooms = (root / room for room in ("model", "dataset", "criterion", "utils"))
    for path in [root / "train.py", *sorted(path for room in rooms for path in room.glob("*.py"))]:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]


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


def gather_objects(value):
    """The values of all ranks as a list, on every rank."""
    every = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(every, value)
    return every


def mean_over_ranks(values):
    """Mean over ranks of a short list of numbers."""
    total = torch.tensor(values, dtype=torch.float64, device=_transport())
    if world_size() > 1:
        dist.all_reduce(total)
    return (total / world_size()).tolist()


@torch.no_grad()
def average_gradients(*modules):
    """Mean over ranks of the gradients of modules that DistributedDataParallel does not see, in one collective."""
    if world_size() == 1:
        return
    if gradients := [p.grad for module in modules for p in module.parameters() if p.grad is not None]:
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
