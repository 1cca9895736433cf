"""Worker processes leave Ctrl-C to the process that started them, and end with it. This module needs no torch."""

import os
import signal
import threading
from contextlib import contextmanager
from multiprocessing import connection, parent_process


def cores():
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def starting_workers():
    """Processes started in this block have SIGINT blocked until `follow_parent`; a Ctrl-C waits for its end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def follow_parent():
    """Leave Ctrl-C to the parent process, and end with it however it ends. Does nothing in a main process."""
    parent = parent_process()
    if parent is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=lambda: (connection.wait([parent.sentinel]), os._exit(1)), daemon=True).start()
