"""Cores, and worker processes, which leave Ctrl-C to their parent and end with it. This module needs no torch."""

import os
import signal
import threading
import time
from contextlib import contextmanager
from multiprocessing import parent_process
from pathlib import Path


def cores():
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def busy_cores(seconds=0.3):
    """How many of its cores this process does not get, as other programs use them; 0.0 where /proc does not tell."""
    try:
        before, own = _seconds_used(), time.process_time()
        time.sleep(seconds)
        return max(0.0, _seconds_used() - before - (time.process_time() - own)) / seconds
    except (OSError, ValueError):
        return 0.0


def _seconds_used():
    """Seconds since the start of the machine in which the cores of this process were in use, summed over cores."""
    names = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    rows = (line.split() for line in Path("/proc/stat").read_text().splitlines())
    user_nice_system = [sum(map(int, row[1:4])) for row in rows if row and row[0] in names]
    return sum(user_nice_system) / os.sysconf("SC_CLK_TCK")


@contextmanager
def starting_workers():
    """Processes started in this block have SIGINT blocked until `follow_parent`; a Ctrl-C waits for its end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def follow_parent():
    """Leave Ctrl-C to the process that started this one, and end with it however it ends. Nothing in a main process."""
    if (parent := parent_process()) is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        end_with(parent.pid)


def end_with(parent, seconds=0.5):
    """End this process within so many seconds after its parent has ended."""

    def watch():
        while os.getppid() == parent:
            time.sleep(seconds)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
