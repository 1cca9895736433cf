"""The number of CPU threads: free cores, OMP_NUM_THREADS, and what a resumed training had before."""

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from make_data import ADAMW, flags
from test_run_files import resume

import train
from utils import distributed, workers
from utils.checkpoint import load_checkpoint


@contextmanager
def programs(count):
    """Programs that each use a core."""
    code = "print(flush=True)\nwhile True: pass"
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(count)]
    try:
        for program in running:
            program.stdout.readline()
        yield
    finally:
        for program in running:
            program.kill()
            program.wait()


@pytest.fixture
def machine(monkeypatch):
    """machine(cores, busy, **environment): what `choose_threads` finds."""

    def make(cores, busy=0.0, **environment):
        monkeypatch.setattr(distributed, "cores", lambda: cores)
        monkeypatch.setattr(distributed, "busy_cores", lambda: busy)
        for name in ("OMP_NUM_THREADS", *distributed.TORCHRUN):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    return make


def chosen(*arguments, stored=None):
    args = train.parse_args(["--data-root", ".", "--device", "cpu", *arguments])
    sentences = distributed.choose_threads(args, stored)
    return args.threads, " ".join(sentences)


def test_threads_fit_the_free_cores(machine):
    two = ["--multiprocessing-distributed", "--nprocs", "2"]
    machine(8)
    assert chosen() == (8, "") and chosen(*two) == (4, "")
    machine(8, 2.6)
    assert chosen() == (5, "other programs use 3 of 8 cores; threads of each process: 5") and chosen(*two)[0] == 2
    machine(2, 2.0)
    assert chosen()[0] == 1
    machine(8, 7.0, OMP_NUM_THREADS="6")
    assert chosen() == (None, "")
    under = {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "4"}
    machine(8, 3.0, OMP_NUM_THREADS="1", **under)  # the others of the run use the cores, and torchrun has set the 1
    assert chosen() == (2, "")
    machine(8, 3.0, OMP_NUM_THREADS="3", **under)
    assert chosen() == (None, "")
    machine(8, OMP_NUM_THREADS="1", **under | {"LOCAL_WORLD_SIZE": "1"})  # it sets none for one process on a node
    assert chosen() == (None, "")


def test_a_resumed_training_keeps_its_threads(machine):
    machine(8, 5.0)
    assert chosen(stored=8)[0] == 8
    machine(4)
    assert chosen(stored=8) == (4, "the training had 8 threads, here are 4: results differ in their last digits")
    now = torch.get_num_threads()
    machine(4, OMP_NUM_THREADS=str(now))
    assert chosen(stored=now) == (None, "")
    assert f"OMP_NUM_THREADS is {now}, before it was {now + 1}: " in chosen(stored=now + 1)[1]
    for odd in ("8", None, -1, 2.5):
        assert chosen(stored=odd) == (None, "")


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs Linux")
def test_what_other_programs_use():
    with programs(1):
        busy = workers.busy_cores(0.5)
    assert 0.5 < busy <= workers.cores() + 0.5


@pytest.mark.skipif(workers.cores() < 2, reason="needs two cores")
def test_a_training_on_a_busy_machine(roots, tmp_path):
    """It takes the free cores and a low priority; resumed on the idle machine it keeps its number of threads."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    run = [sys.executable, train.__file__, *flags(roots["cvusa"], tmp_path, *ADAMW)]
    with programs(workers.cores()):
        subprocess.run([*run, "--epochs", "1"], env=environment, check=True, capture_output=True)
    subprocess.run([*run, "--epochs", "2", *resume(tmp_path)], env=environment, check=True, capture_output=True)
    log = (tmp_path / "log.txt").read_text()
    assert "cores; threads of each process: 1" in log and log.count("(CPU, 1 threads)") == 2
    assert load_checkpoint(tmp_path / "checkpoint.pth.tar")["args"]["threads"] == 1
