"""Two hosts: network namespaces where they may be made, else two launchers on the loopback."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from make_data import ADAMW, ASAM, flags, history, record

import train
from utils import distributed
from utils.checkpoint import load_checkpoint
from utils.run_files import DESCRIPTOR_FILES

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
SLURM = Path(train.__file__).parent / "scripts" / "slurm.sh"


class Host(NamedTuple):
    """A host: what to write before a command, its address, its network interface."""

    prefix: list
    address: str
    interface: str

    def start(self, number, meeting, processes, *arguments):
        """torchrun on this host of that number; they meet at an address of the first."""
        launcher = [*TORCHRUN, "--nnodes", "2", "--nproc-per-node", str(processes), "--local-addr", self.address]
        launcher += ["--rdzv-backend", "c10d", "--rdzv-id", "x", "--rdzv-endpoint", meeting]
        launcher += ["--rdzv-conf", f"is_host={int(number == 0)}"]  # namespaces of one machine share its name
        environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": self.interface}
        pipe, command = subprocess.PIPE, [*self.prefix, *launcher, train.__file__, *map(str, arguments)]
        return subprocess.Popen(command, env=environment, stderr=pipe, text=True, start_new_session=True)


@pytest.fixture(scope="module")
def hosts():
    """Two hosts that reach each other over a network of their own."""
    names = [f"frgeo-{os.getpid()}-{k}" for k in range(2)]
    inside = [["ip", "netns", "exec", name] for name in names]
    steps = [["ip", "netns", "add", name] for name in names]
    steps.append(
        ["ip", "link", "add", "v0", "netns", names[0], "type", "veth", "peer", "name", "v0", "netns", names[1]]
    )
    for k, prefix in enumerate(inside):
        steps.append([*prefix, "ip", "addr", "add", f"10.77.0.{k + 1}/24", "dev", "v0"])
        steps += [[*prefix, "ip", "link", "set", name, "up"] for name in ("v0", "lo")]
    try:
        for step in steps:
            subprocess.run(step, check=True, capture_output=True)
        yield [Host(prefix, f"10.77.0.{k + 1}", "v0") for k, prefix in enumerate(inside)]
    except (OSError, subprocess.CalledProcessError):
        yield [Host([], "127.0.0.1", "lo")] * 2
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.fixture
def both(hosts):
    """both(processes, *arguments): train.py on both hosts, that many processes on each; the two launchers."""
    started = []

    def run(processes, *arguments):
        meeting = f"{hosts[0].address}:{distributed.free_port()}"
        launched = [host.start(number, meeting, processes, *arguments) for number, host in enumerate(hosts)]
        started.extend(launched)
        return launched

    yield run
    for launcher in started:  # and what it has started
        end(launcher, signal.SIGKILL)
        launcher.wait()


def end(launcher, number):
    """Send a signal to a host's launcher and to its processes."""
    try:
        os.killpg(launcher.pid, number)
    except ProcessLookupError:
        return
    for child in Path("/proc").glob("[0-9]*/stat"):  # torchrun gives its processes sessions of their own
        try:
            fields = child.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == launcher.pid:
            os.kill(int(child.parent.name), number)


def finished(launchers):
    errors = [launcher.communicate(timeout=240)[1] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], "\n".join(errors)


def numbers(out):
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in history(out)]


def equal(a, b):
    a, b = (load_checkpoint(out / "checkpoint.pth.tar")["state_dict"] for out in (a, b))
    return all(torch.equal(a[name], b[name]) for name in a)


def test_two_hosts_equal_one(roots, tmp_path, both):
    """Trained with two processes, and evaluated with 1, 2 and 4."""
    out = {name: tmp_path / name for name in ("one", "two")}
    run = [*ASAM, "--epochs", "2", "--dim", "256"]
    finished(both(1, *flags(roots["cvusa"], out["two"], *run)))
    train.main(flags(roots["cvusa"], out["one"], *run, "--multiprocessing-distributed", "--nprocs", "2"))
    assert numbers(out["one"]) == numbers(out["two"]) and equal(*out.values())
    assert "2 process(es)" in (out["two"] / "log.txt").read_text()
    weights = ["-e", "--weights", out["one"] / "checkpoint.pth.tar"]
    scores = [train.main([str(word) for word in flags(roots["cvusa"], tmp_path / "1", *weights)])]
    for processes in (1, 2):
        finished(both(processes, *flags(roots["cvusa"], tmp_path / f"{2 * processes}", *weights)))
        found = record(tmp_path / f"{2 * processes}")
        scores.append({name: found[name] for name in scores[0]})
        for name in DESCRIPTOR_FILES:
            assert np.array_equal(np.load(tmp_path / "1" / name), np.load(tmp_path / f"{2 * processes}" / name))
    assert scores[0] == scores[1] == scores[2]


def test_a_lost_host_ends_the_run_and_both_continue_when_started_again(roots, tmp_path, both):
    out, straight = tmp_path / "run", tmp_path / "straight"
    run = [*ASAM, "--epochs", "12", "--resume", "auto", "--print-freq", "99"]
    first, second = both(1, *flags(roots["cvusa"], out, *run))
    while not (out / "metrics.jsonl").exists() or len(history(out)) < 3:
        time.sleep(0.05)
        assert first.poll() is None and second.poll() is None
    end(second, signal.SIGKILL)
    _, error = first.communicate(timeout=60)
    assert first.returncode != 0 and "train.py: the connection to another process was lost (" in error
    assert 3 <= len(history(out)) < 12
    finished(both(1, *flags(roots["cvusa"], out, *run)))
    assert "resumed" in (out / "log.txt").read_text()
    two = ["--multiprocessing-distributed", "--nprocs", "2"]
    train.main(flags(roots["cvusa"], straight, *run, *two))
    assert numbers(out) == numbers(straight) and equal(out, straight)


def test_a_job_that_is_stopped_goes_back_into_the_queue(roots, tmp_path):
    folder = tmp_path / "bin"
    commands = {
        "scontrol": f'case $1 in show) echo 127.0.0.1 ;; *) echo "$@" >> {folder}/requeued ;; esac',
        "srun": f'shift; echo $$ > {folder}/step; exec "$@"',
    }
    folder.mkdir()
    for name, text in commands.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "n1", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_ID": str(os.getpid())}
    job |= {"SLURM_SUBMIT_DIR": str(SLURM.parents[1]), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    environment = os.environ | job | {"PATH": f"{folder}:{os.environ['PATH']}"}

    def submit(epochs):
        words = flags(roots["cvusa"], tmp_path / "run", *ADAMW, "--epochs", epochs)
        return subprocess.Popen(["bash", SLURM, *words], env=environment, stdout=subprocess.PIPE, text=True)

    attempt = submit("9999")
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        time.sleep(0.05)
        assert attempt.poll() is None
    os.kill(int((folder / "step").read_text()), signal.SIGTERM)
    told, _ = attempt.communicate(timeout=120)
    assert attempt.returncode != 0 and "goes back into the queue" in told
    assert (folder / "requeued").read_text() == f"requeue {os.getpid()}\n"
    done = load_checkpoint(tmp_path / "run" / "checkpoint.pth.tar")["epoch"]
    attempt = submit(str(done + 1))
    attempt.communicate(timeout=120)
    assert attempt.returncode == 0 and history(tmp_path / "run")[-1]["epoch"] == done + 1
    wrong = submit("no number")
    wrong.communicate(timeout=120)
    assert wrong.returncode != 0 and (folder / "requeued").read_text().count("requeue") == 1
