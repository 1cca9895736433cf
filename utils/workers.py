"""Worker processes leave Ctrl-C to the process that started them, and end with it."""

import os
import signal
import threading
from contextlib import contextmanager
from multiprocessing import connection, parent_process


@contextmanager
def starting_workers():
    """Processes started herein are born with SIGINT blocked, until `follow_parent` has it ignored.

    Here a Ctrl-C waits until the block is left.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def follow_parent():
    """Leave Ctrl-C to the parent, and end with it however it ends. Does nothing in a process that was not started."""
    parent = parent_process()
    if parent is None:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=lambda: (connection.wait([parent.sentinel]), os._exit(1)), daemon=True).start()
