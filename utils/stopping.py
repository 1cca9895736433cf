"""Signals that ask a training to stop: it finishes its step, writes a checkpoint, and says how to continue."""

import os
import signal
import threading
import time
from contextlib import contextmanager

import torch
import torch.distributed as dist

HEEDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Stopping:
    """Signals of this process, and what all processes of a run make of them.

    The first signal is noted; a second of its kind does at once what it does to any program. In a process that
    `torch.multiprocessing` or torchrun started, SIGINT stays with the parent.
    """

    def __init__(self):
        self._signal = 0
        # One number a step, on the CPU: waiting for it does not hold up a GPU.
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() and dist.get_world_size() > 1 else None

    @contextmanager
    def heeding(self):
        """Note signals in this block instead of ending."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in HEEDED}
        heeded = [number for number in HEEDED if before[number] is not signal.SIG_IGN]

        def note(number, frame):
            self._signal = number
            signal.signal(number, _interrupt_once if number == signal.SIGINT else signal.SIG_DFL)

        for number in heeded:
            signal.signal(number, note)
        try:
            yield
        finally:
            for number in heeded:
                signal.signal(number, before[number])

    def agreed(self, wish=False):
        """What all processes do now, as the most urgent asks: (save, signal number or 0). Every process calls it."""
        own = 2 * self._signal + wish
        if self._group is not None:
            asked = torch.tensor(own)
            dist.all_reduce(asked, dist.ReduceOp.MAX, group=self._group)
            own = int(asked)
        return bool(own), own // 2


def _interrupt_once(number, frame):
    """Raise KeyboardInterrupt; more signals do not disturb what it sets off."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


@contextmanager
def ctrl_c_waits():
    """Let a Ctrl-C in this block have its effect when the block ends: PyTorch's file writer does not survive one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came, before = [], signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, lambda *_: came.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came and callable(before):
            before(signal.SIGINT, None)


def ignore_in_loader(_):
    """For loader processes: they end when their process does, not before it has finished its step."""
    for number in HEEDED:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def forwarding(processes):
    """Pass signals on to a run's processes, which stop together; a second one kills them.

    Yields:
        list of (signal number, time on the monotonic clock), as they come.
    """
    seen = []

    def forward(number, frame):
        seen.append((number, time.monotonic()))
        kill(processes, signal.SIGTERM if len(seen) == 1 else signal.SIGKILL)

    before = {number: signal.getsignal(number) for number in HEEDED}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, forward)
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def kill(processes, number=signal.SIGKILL):
    """Send a signal to those processes that are alive; those that were stopped (SIGSTOP) go on, to receive it."""
    for process in processes:
        if process.is_alive():
            os.kill(process.pid, number)
            os.kill(process.pid, signal.SIGCONT)
