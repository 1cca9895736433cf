"""What a worker process owes the process that started it."""

import os
import signal
import threading
from multiprocessing import connection, parent_process


def follow_parent():
    """Leave Ctrl-C to the parent, and end with it however it ends. Does nothing in a process that was not started."""
    parent = parent_process()
    if parent is None:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=lambda: (connection.wait([parent.sentinel]), os._exit(1)), daemon=True).start()
