"""Two gloo processes against one."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from make_data import ADAMW, ASAM, flags, heed_ctrl_c, history, record
from simulated_gpu import GPU, simulated_gpu
from torch.nn.parallel import DistributedDataParallel

import train
from criterion import SoftTripletLoss, TupleLoss, WBLoss
from dataset import CVUSA
from model import FRGeo
from utils import distributed
from utils.checkpoint import load_checkpoint
from utils.evaluation import evaluate, score
from utils.geodesy import Positions
from utils.options import UserError
from utils.run_files import RUN_FILES

TRAIN = str(Path(__file__).parent.parent / "train.py")
TWO = ["--multiprocessing-distributed", "--nprocs", "2", "--device", "cpu"]
SIZES = {"ground_size": (32, 128), "aerial_size": (64, 64)}
CPU = torch.device("cpu")


# What two processes compute: they are started once, as importing torch takes seconds.


def join(rank, url, folder, root):
    torch.set_num_threads(1)
    distributed.join(url, 2, rank, "gloo")
    try:
        parts = [gradients(rank), collectives(), evaluated(rank, root), score(*scored()), sent_from_a_gpu(rank)]
        names = ["gradients", "collectives", "evaluated", "scored", "sent_from_a_gpu"]
        torch.save(dict(zip(names, parts, strict=True)), f"{folder}/{rank}.pt")
    finally:
        distributed.leave()


@pytest.fixture(scope="module")
def computed(roots, tmp_path_factory):
    """What rank 0 and rank 1 found."""
    folder = tmp_path_factory.mktemp("computed")
    mp.spawn(join, args=(f"tcp://127.0.0.1:{distributed.free_port()}", str(folder), str(roots["cvusa"])), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


LOSSES = {
    "all": TupleLoss(WBLoss(), gather=True),
    "triplet": TupleLoss(SoftTripletLoss(), gather=True),
    "tuples of 4 within a process": TupleLoss(WBLoss(), tuple_size=4),
    "tuples of 4, gathered": TupleLoss(WBLoss(), tuple_size=4, gather=True),
    "tuples of 8, gathered": TupleLoss(WBLoss(), tuple_size=8, gather=True),
    "learned temperature": TupleLoss(WBLoss(label_smoothing=0.1, learned=True), tuple_size=4).double(),
}


def gradients(rank=None):
    """{loss: its values and the gradients of all parameters}, of a rank's half of a batch or of the whole."""
    torch.manual_seed(0)
    model, found = FRGeo(arch="test_convnext", **SIZES).double(), {}
    network = model if rank is None else DistributedDataParallel(model)
    own = slice(None) if rank is None else slice(4 * rank, 4 * rank + 4)
    images = [torch.randn(8, 3, *size, dtype=torch.float64)[own] for size in SIZES.values()]
    for name, loss in LOSSES.items():
        network.zero_grad()
        loss.zero_grad()
        value = loss(*network(*images))
        value[0].backward()
        distributed.average_gradients(loss)
        grads = [p.grad.clone() for p in (*model.parameters(), *loss.parameters())]
        found[name] = torch.stack(value).detach(), grads
    return found


@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradients_equal_one_process(computed, name):
    values, grads = gradients()[name]
    parts = [part["gradients"][name] for part in computed]
    if LOSSES[name].gather:  # every process has the loss of the whole batch
        for found, _ in parts:
            torch.testing.assert_close(found, values, atol=1e-9, rtol=0)
    torch.testing.assert_close((parts[0][0] + parts[1][0]) / 2, values, atol=1e-9, rtol=0)
    for _, found in parts:
        torch.testing.assert_close(found, grads, atol=1e-9, rtol=0)


LENGTHS = (0, 1, 2, 5, 101)


def collectives():
    own = distributed.rank()
    shards = [torch.arange(3.0 * n).reshape(n, 3)[slice(*distributed.shard(n))] for n in LENGTHS]
    return {
        "ranks": (own, distributed.world_size()),
        "gathered": [distributed.gather_rows(rows, n) for rows, n in zip(shards, LENGTHS, strict=True)],
        "main": distributed.gather_to_main(torch.full((2, 1), float(own))),
        "broadcast": distributed.broadcast_object({"rank": own}),
        "mean": distributed.mean_over_ranks([own, 10.0]),
    }


def test_collectives(computed):
    for rank, found in enumerate(part["collectives"] for part in computed):
        assert found["ranks"] == (rank, 2) and found["broadcast"] == {"rank": 0} and found["mean"] == [0.5, 10.0]
        assert (found["main"] is None) if rank else found["main"].ravel().tolist() == [0, 0, 1, 1]
        for rows, n in zip(found["gathered"], LENGTHS, strict=True):
            assert torch.equal(rows, torch.arange(3.0 * n).reshape(n, 3))


def sent_from_a_gpu(rank):
    """What both ways of gathering give for rows on a GPU, and the gradient of rows that were gathered."""
    with simulated_gpu():
        rows = torch.full((2, 3), rank + 1.0).to(GPU).requires_grad_()
        everything, main = distributed.all_gather_with_grad(rows), distributed.gather_to_main(rows.detach())
        (everything**2).sum().backward()
        tensors = (everything.detach(), rows.grad) if rank else (everything.detach(), rows.grad, main)
        return [tensor.device.type for tensor in tensors], [tensor.cpu() for tensor in tensors]


def test_rows_on_a_gpu_are_gathered_by_gloo(computed):
    """It gathers tensors of the CPU only: rows go there and come back."""
    both = torch.tensor([[1.0] * 3] * 2 + [[2.0] * 3] * 2)
    for rank, (devices, (everything, grad, *main)) in enumerate(part["sent_from_a_gpu"] for part in computed):
        assert set(devices) == {"cuda"}
        assert torch.equal(everything, both) and torch.equal(grad, torch.full((2, 3), 4.0 * (rank + 1)))
        assert rank or torch.equal(*main, both)


def evaluated(rank, root):
    """Descriptors of a network with batch norms after one training pass of both processes, and rank 0's own."""
    images = CVUSA(root, "train", view="ground", **SIZES)
    torch.manual_seed(0)
    model = FRGeo(arch="test_resnet", **SIZES)
    batch = torch.stack([images[i].image for i in range(rank * 8, rank * 8 + 8)])
    DistributedDataParallel(model)(batch, batch[..., :64].repeat(1, 1, 2, 1))
    args = SimpleNamespace(search_north=0, regions=4, eval_batch_size=8, amp="none", workers=0)
    q = evaluate(model, images, images.as_view("aerial"), args, CPU)[1][0]
    with torch.no_grad():
        return torch.from_numpy(q), torch.cat([model.query_net(images[i].image[None]) for i in range(len(images))])


def test_batch_norms_are_evaluated_as_they_are_saved(computed):
    torch.testing.assert_close(*computed[0]["evaluated"], atol=1e-4, rtol=0)


def scored():
    """Descriptors whose evaluation has every measure: 29 queries, 41 tiles, semi-positives, tiles within 5 m."""
    rng = np.random.default_rng(0)
    labels, gallery = rng.integers(0, 41, 29), rng.uniform(0, 25, (41, 2))
    r = rng.standard_normal((41, 16)).astype("f4")
    q = [r[labels] + 3 * rng.standard_normal((29, 16)).astype("f4") for _ in range(2)]
    positions, semi = Positions(gallery[labels], gallery, "metres"), rng.integers(-1, 41, (29, 3))
    return q, r, SimpleNamespace(labels=labels, semi_positives=semi, positions=positions, near_metres=5), CPU, 4


def test_scores_of_two_processes_equal_one(computed):
    expected = score(*scored())
    assert {"R@1", "R@5 (5 m)", "Hit", "Hit (top-1 covers)", "median error (m)"} <= expected.keys()
    assert computed[0]["scored"] == computed[1]["scored"] == expected


# Whole runs.


@pytest.fixture(scope="module")
def trained(roots, tmp_path_factory):
    """A run of two processes with mining, and a loss over the pairs of both."""
    out = tmp_path_factory.mktemp("two")
    return out, train.main(flags(roots["cvusa"], out, *ASAM, *TWO, "--gather", "--epochs", "3"))


def test_two_processes_train_with_mining_and_write_every_file(trained):
    out, metrics = trained
    names = set(RUN_FILES)
    assert {path.name for path in out.iterdir()} == names
    log = (out / "log.txt").read_text()
    assert "2 process(es)" in log and "hard negatives" in log and "tuples of 8 pairs" in log
    assert log.count("arguments:") == 1
    assert record(out) == record(out) | metrics and len(history(out)) == 3


def test_evaluation_by_two_processes_equals_one(trained, roots, tmp_path):
    weights = ["-e", "--weights", str(trained[0] / "checkpoint.pth.tar")]
    one = train.main(flags(roots["cvusa"], tmp_path / "one", *weights))
    two = train.main(flags(roots["cvusa"], tmp_path / "two", *weights, *TWO))
    assert one == two == trained[1]
    for name in ("grd_global_descriptor.npy", "sat_global_descriptor.npy"):
        a, b = np.load(tmp_path / "one" / name), np.load(tmp_path / "two" / name)
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_gathered_batches_train_as_one_process_does(trained, roots, tmp_path):
    """The same seed, the same global batches, one loss over all of them: the same first epoch."""
    train.main(flags(roots["cvusa"], tmp_path, *ASAM, "--epochs", "1"))
    one, two = history(tmp_path)[0], history(trained[0])[0]
    for name in ("loss", "positive_similarity", "negative_similarity"):
        assert one[name] == pytest.approx(two[name], abs=2e-5)
    assert (one["R@1"], one["R@5"]) == (two["R@1"], two["R@5"])


@pytest.mark.parametrize("op", [ASAM, [*ADAMW, "--learn-temperature"]])
def test_gradients_averaged_after_the_backward_pass_are_those_of_distributed_data_parallel(roots, tmp_path, op):
    for name in ("no-fast-gpu", "fast-gpu"):
        train.main(flags(roots["cvusa"], tmp_path / name, *op, *TWO, "--epochs", "2", f"--{name}"))
    off, on = (history(tmp_path / name) for name in ("no-fast-gpu", "fast-gpu"))
    for a, b in zip(off, on, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=2e-5) and a["R@5"] == b["R@5"]


def start(*command, **kwargs):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *command], env=env, stderr=subprocess.PIPE, text=True, **kwargs)


def test_torchrun(roots, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    node = start(*launcher, TRAIN, *flags(roots["cvusa"], tmp_path, *ASAM, "--epochs", "2", "--share", "-b", "9"))
    _, error = node.communicate(timeout=300)
    assert node.returncode == 0, error
    log = (tmp_path / "log.txt").read_text()
    for words in ("2 process(es)", "--batch-size 9 was lowered to 8", "tuples of 4 pairs"):
        assert words in log
    assert record(tmp_path)["epoch"] == 2


def test_two_nodes_of_one_process_each(roots, tmp_path):
    """--world-size counts nodes, --rank numbers them, --dist-url is where they meet."""
    url = f"tcp://127.0.0.1:{distributed.free_port()}"
    common = ["--multiprocessing-distributed", "--nprocs", "1", "--world-size", "2", "--dist-url", url, "--epochs", "1"]
    run = flags(roots["cvusa"], tmp_path, *ASAM, *common)
    other = start(TRAIN, *run, "--rank", "1")
    metrics = train.main([*run, "--rank", "0"])
    _, error = other.communicate(timeout=300)
    assert other.returncode == 0, error
    assert record(tmp_path) == record(tmp_path) | metrics and "2 process(es)" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (["-b", "4"], "--batch-size: process 0 has 8, process 1 has 4"),
        (["--ground-size", "32", "256"], "--ground-size: process 0 has [32, 128], process 1 has [32, 256]"),
        ("a tile less", "the list of split val: process 0 has 7 panoramas, 7 tiles"),
        ("another order", "the list of split train: process 0 has"),
    ],
)
def test_nodes_that_differ_end_before_anything_is_written(roots, tmp_path, refused, other, told):
    url, root = f"tcp://127.0.0.1:{distributed.free_port()}", roots["cvusa"]
    nodes = ["--world-size", "2", "--dist-url", url, "--epochs", "1", "--timeout", "1"]
    if isinstance(other, str):
        root = shutil.copytree(root, tmp_path / "data")
        if other == "a tile less":
            next(path for path in sorted((root / "bingmap" / "19").iterdir(), reverse=True)).unlink()
        else:
            path = root / "splits" / "train-19zl.csv"
            path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
        other = []
    second = start(TRAIN, *flags(root, tmp_path / "two", *ASAM, *nodes, *other, "--rank", "1"))
    error = refused(train.main, *flags(roots["cvusa"], tmp_path / "one", *ASAM, *nodes, "--rank", "0"))
    _, words = second.communicate(timeout=120)
    for text in (error, words):
        assert f"the processes differ in {told}" in text and "Traceback" not in text
    assert second.returncode == 2 and not (tmp_path / "one").exists() and not (tmp_path / "two").exists()


def strangers(rank, url, folder, run_id):
    try:
        distributed.join(url, 2, rank, "gloo", timedelta(seconds=20), run_id)
        Path(folder, f"{run_id}{rank}").write_text(str(dist.get_world_size()))
        distributed.leave()
    except UserError as error:
        Path(folder, f"{run_id}{rank}").write_text(str(error))


def test_a_process_of_another_run_is_turned_away_and_missing_ones_are_counted(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(distributed, "TOLD_AFTER", 0)
    url = f"tcp://127.0.0.1:{distributed.free_port()}"
    context = mp.get_context("fork")
    processes = []
    for rank, run in ((0, "a"), (1, "b"), (1, "a")):
        processes.append(context.Process(target=strangers, args=(rank, url, str(tmp_path), run)))
        processes[-1].start()
        if run == "b":
            processes[-1].join(60)
    for process in processes:
        process.join(60)
    assert (tmp_path / "a0").read_text() == (tmp_path / "a1").read_text() == "2"
    assert f"--dist-url {url} is in use by another run" in (tmp_path / "b1").read_text()
    assert f"train.py: waiting for the other processes at {url}: 1 of 2 have come" in capfd.readouterr().err


def test_the_rendezvous_listens_on_the_address_given():
    port = distributed.free_port()
    distributed.join(f"tcp://127.0.0.1:{port}", 1, 0, "gloo")
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port), timeout=5)
    finally:
        distributed.leave()


def test_a_taken_port_is_told(roots, tmp_path, refused):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        url = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        nodes = ["--world-size", "2", "--rank", "0", "--dist-url", url]
        error = refused(train.main, *flags(roots["cvusa"], tmp_path / "r", *ASAM, *nodes))
    assert f"--dist-url {url} cannot be used" in error


@pytest.mark.parametrize("node", ["0", "1"])
def test_a_node_that_is_alone_does_not_wait_for_hours(roots, tmp_path, refused, node):
    url = f"tcp://127.0.0.1:{distributed.free_port()}"
    nodes = ["--world-size", "2", "--rank", node, "--dist-url", url, "--timeout", "0.03"]
    error = refused(train.main, *flags(roots["cvusa"], tmp_path, *ASAM, *nodes))
    assert f"--dist-url {url} cannot be used by process {node} of 2" in error


# Runs that are stopped.


@pytest.fixture
def begun(roots, tmp_path):
    """begun(words, *more): a training without end in a process group of its own, once its log has said `words`."""
    runs = []

    def begin(words, *more):
        arguments = flags(roots["cvusa"], tmp_path, *ASAM, *more, "--epochs", "99999")
        own = {"stdout": subprocess.PIPE, "start_new_session": True, "preexec_fn": heed_ctrl_c}
        runs.append(start(TRAIN, *arguments, **own))
        next(line for line in runs[-1].stdout if words in line)
        return runs[-1]

    yield begin
    for run in runs:  # whatever a test that failed has left
        with suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)


def test_ctrl_c_does_not_point_at_an_earlier_run(trained, roots, tmp_path, capsys, monkeypatch):
    done = trained[0] / "checkpoint.pth.tar"
    (tmp_path / "checkpoint.pth.tar").touch()
    os.utime(tmp_path / "checkpoint.pth.tar", (0, 0))

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(distributed, "launch", interrupted)
    for more, told in (([], ""), (["--resume", str(done)], f"; continue with --resume {done}")):
        with pytest.raises(SystemExit) as stop:
            train.main(flags(roots["cvusa"], tmp_path, *ASAM, *more))
        assert stop.value.code == 130 and capsys.readouterr().err == f"train.py: interrupted{told}\n"


@pytest.mark.parametrize("more", [[], TWO])
def test_ctrl_c_ends_with_one_line_and_a_way_to_go_on(begun, tmp_path, more):
    run = begun("epoch 3 step", *more)
    os.killpg(run.pid, signal.SIGINT)  # what a terminal does: every process of the group gets it
    _, error = run.communicate(timeout=120)
    assert run.returncode == 130
    assert error.startswith(f"train.py: interrupted; continue with --resume {tmp_path}/checkpoint.pth.tar\n")
    assert "Traceback" not in error
    assert load_checkpoint(tmp_path / "checkpoint.pth.tar")["epoch"] >= 2


def test_a_killed_torchrun_takes_its_processes_with_it(roots, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = start(*launcher, TRAIN, *flags(roots["cvusa"], tmp_path, *ASAM, "--epochs", "99999"), stdout=subprocess.PIPE)
    next(line for line in run.stdout if "epoch 2 step" in line)
    run.kill()
    run.communicate(timeout=30)  # ends when the last process that holds its stdout has gone


def test_a_killed_parent_takes_its_processes_with_it(begun):
    run = begun("epoch 2 step", *TWO, "--print-freq", "1")
    run.kill()  # as a scheduler does: the processes cannot be told
    rest, _ = run.communicate(timeout=60)  # ends when the last process that holds its stdout has gone
    assert run.returncode == -signal.SIGKILL
    assert rest.count("epoch") < 500


def ranks(run):
    """Process numbers of the two processes of a run."""
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    found = [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(found) == 2
    return found


def test_a_stopped_process_does_not_keep_a_run_from_ending(begun, tmp_path):
    run = begun("epoch 2 step", *TWO)
    os.kill(ranks(run)[1], signal.SIGSTOP)
    time.sleep(0.5)
    os.killpg(run.pid, signal.SIGINT)
    _, error = run.communicate(timeout=distributed.STOPPING)  # long before the rest would be killed
    assert run.returncode == 130
    assert error.startswith(f"train.py: interrupted; continue with --resume {tmp_path}/checkpoint.pth.tar\n")


def test_a_killed_process_ends_the_run_with_one_sentence(begun):
    run = begun("epoch 2 step", *TWO)
    os.kill(ranks(run)[1], signal.SIGKILL)
    _, error = run.communicate(timeout=120)
    assert run.returncode == 2
    told = [line for line in error.splitlines() if line.startswith("train.py:")]
    assert len(told) == 1 and "a process was killed" in told[0] and "most likely for lack of memory" in told[0]


def test_a_mistake_that_one_process_finds_ends_with_one_sentence(roots, tmp_path, capfd):
    """A damaged image lies in one process's share; the other fails for want of it."""
    broken = tmp_path / "data"
    shutil.copytree(roots["cvusa"], broken)
    first = sorted((broken / "streetview" / "panos").iterdir())[5]
    first.write_bytes(b"no image")
    with pytest.raises(SystemExit) as stop:
        train.main(flags(broken, tmp_path / "run", *ASAM, *TWO))
    error = capfd.readouterr().err
    assert stop.value.code == 2 and f"{first} cannot be read as an image" in error and "Traceback" not in error
