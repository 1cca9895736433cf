"""Two gloo processes against one."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from make_data import ASAM, flags, heed_ctrl_c
from torch.nn.parallel import DistributedDataParallel

import train
from criterion import SoftTripletLoss, TupleLoss, WBLoss
from dataset import CVUSA
from model import FRGeo
from utils import distributed
from utils.checkpoint import load_checkpoint
from utils.evaluation import evaluate
from utils.launch import launch
from utils.options import parse_args

REPO = Path(__file__).parent.parent


def in_two_processes(function, *args):
    mp.spawn(_join, args=(function, f"tcp://127.0.0.1:{distributed.free_port()}", args), nprocs=2)


def _join(rank, function, url, args):
    torch.set_num_threads(1)
    distributed.join(url, 2, rank, "gloo")
    try:
        function(rank, *args)
    finally:
        distributed.leave()


def make_model():
    torch.manual_seed(0)
    return FRGeo(arch="test_convnext", ground_size=(32, 128), aerial_size=(64, 64)).double()


def make_batch(size=8):
    g = torch.Generator().manual_seed(1)
    shapes = (size, 3, 32, 128), (size, 3, 64, 64)
    return tuple(torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes)


def losses():
    return {
        "all": TupleLoss(WBLoss(), gather=True),
        "triplet": TupleLoss(SoftTripletLoss(), gather=True),
        "tuples of 4 within a process": TupleLoss(WBLoss(), tuple_size=4),
        "tuples of 4, gathered": TupleLoss(WBLoss(), tuple_size=4, gather=True),
        "tuples of 8, gathered": TupleLoss(WBLoss(), tuple_size=8, gather=True),
        "learned temperature": TupleLoss(WBLoss(label_smoothing=0.1, learned=True), tuple_size=4).double(),
    }


def _gradients(rank, folder):
    network = DistributedDataParallel(make_model())
    ground, aerial = (x[rank * 4 : rank * 4 + 4] for x in make_batch())
    for name, loss in losses().items():
        network.zero_grad()
        value = loss(*network(ground, aerial))
        value[0].backward()
        distributed.average_gradients(loss.parameters())
        found = {
            "values": torch.stack(value).detach(),
            "grads": [p.grad.clone() for p in (*network.module.parameters(), *loss.parameters())],
        }
        torch.save(found, f"{folder}/{name}-{rank}.pt")


def test_loss_and_gradients_equal_one_process(tmp_path):
    in_two_processes(_gradients, str(tmp_path))
    for name, loss in losses().items():
        model = make_model()
        value = loss(*model(*make_batch()))
        value[0].backward()
        grads = [p.grad for p in (*model.parameters(), *loss.parameters())]
        parts = [torch.load(tmp_path / f"{name}-{rank}.pt") for rank in (0, 1)]
        if loss.gather:  # every process has the loss of the whole batch
            for part in parts:
                torch.testing.assert_close(part["values"], torch.stack(value).detach(), atol=1e-9, rtol=0)
        mean = torch.stack([part["values"] for part in parts]).mean(0)
        torch.testing.assert_close(mean, torch.stack(value).detach(), atol=1e-9, rtol=0)
        for part in parts:
            for found, expected in zip(part["grads"], grads, strict=True):
                torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


def _collectives(rank):
    assert distributed.world_size() == 2 and distributed.rank() == rank
    for length in (0, 1, 2, 5, 101):
        whole = torch.arange(3.0 * length).reshape(length, 3)
        start, stop = distributed.shard(length)
        assert torch.equal(distributed.gather_rows(whole[start:stop], length), whole)
    wide = torch.arange(2.0 * 2**23 + 3)[:, None].repeat(1, 4)  # more than one block of 32 MiB a rank
    start, stop = distributed.shard(len(wide))
    assert torch.equal(distributed.gather_rows(wide[start:stop], len(wide)), wide)
    rows = distributed.gather_to_main(torch.full((2, 1), float(rank)))
    assert (rows is None) if rank else rows.ravel().tolist() == [0, 0, 1, 1]
    assert distributed.broadcast_object({"rank": rank}) == {"rank": 0}
    assert distributed.mean_over_ranks([rank, 10.0]) == [0.5, 10.0]


def test_collectives():
    in_two_processes(_collectives)


TWO = ["--multiprocessing-distributed", "--nprocs", "2"]


@pytest.fixture(scope="module")
def trained(roots, tmp_path_factory):
    """A run of two processes with mining."""
    out = tmp_path_factory.mktemp("two")
    return out, train.main(flags(roots["cvusa"], out, *ASAM, *TWO, "--epochs", "3"))


def test_two_processes_train_with_mining_and_write_every_file(trained):
    out, metrics = trained
    names = {"checkpoint.pth.tar", "model_best.pth.tar", "log.txt", "args.json", "metrics.jsonl", "metrics.json"}
    assert {path.name for path in out.iterdir()} == names
    log = (out / "log.txt").read_text()
    assert "2 process(es)" in log and "hard partners" in log and "tuples of 4 pairs" in log
    assert log.count("arguments:") == 1
    assert metrics == {k: v for k, v in json.loads((out / "metrics.json").read_text()).items() if k in metrics}
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 3


def test_evaluation_by_two_processes_equals_one(trained, roots, tmp_path):
    weights = ["-e", "--weights", str(trained[0] / "checkpoint.pth.tar")]
    one = train.main(flags(roots["cvusa"], tmp_path / "one", *weights))
    two = train.main(flags(roots["cvusa"], tmp_path / "two", *weights, *TWO))
    assert one == two == trained[1]
    for name in ("grd_global_descriptor.npy", "sat_global_descriptor.npy"):
        a, b = np.load(tmp_path / "one" / name), np.load(tmp_path / "two" / name)
        np.testing.assert_allclose(a, b, atol=1e-5)


def _evaluated(rank, root, folder):
    """Descriptors of a network with batch norms after one training pass of both processes."""
    images = CVUSA(root, "train", view="ground", ground_size=(32, 128), aerial_size=(64, 64))
    torch.manual_seed(0)
    model = FRGeo(arch="test_resnet", ground_size=(32, 128), aerial_size=(64, 64))
    network = DistributedDataParallel(model)
    batch = torch.stack([images[i].image for i in range(rank * 8, rank * 8 + 8)])
    network(batch, batch[..., :64].repeat(1, 1, 2, 1))
    options = {"search_north": 0, "regions": 4, "eval_batch_size": 8, "amp": "off", "workers": 0}
    args = SimpleNamespace(**options, multiprocessing_distributed=False, world_size=1)
    q = evaluate(model, images, images.as_view("aerial"), args, torch.device("cpu"))[1][0]
    if rank == 0:
        rows = [model.eval().query_net(images[i].image[None]) for i in range(len(images))]
        torch.testing.assert_close(torch.from_numpy(q), torch.cat(rows), atol=1e-4, rtol=0)
        Path(folder, "seen").touch()


def test_batch_norms_are_evaluated_as_they_are_saved(roots, tmp_path):
    in_two_processes(_evaluated, str(roots["cvusa"]), str(tmp_path))
    assert (tmp_path / "seen").exists()


def _start_method(args, device):
    return multiprocessing.get_start_method()


@pytest.mark.skipif(sys.platform != "linux", reason="forked where that is safe")
def test_processes_fork_their_loader_processes(roots, tmp_path):
    args = parse_args(flags(roots["cvusa"], tmp_path, *ASAM, *TWO))
    assert launch(_start_method, args) == "fork"


def test_gathered_batches_train_as_one_process_does(roots, tmp_path):
    """The same seed, the same global batches, one loss over all of them: the same first epoch."""
    recipe = ["--op", "sgd", "--lr", "0.01", "--batch-size", "8", "--epochs", "1", "--momentum", "0"]
    train.main(flags(roots["cvusa"], tmp_path / "one", *recipe))
    train.main(flags(roots["cvusa"], tmp_path / "two", *recipe, *TWO, "--gather"))
    one, two = (json.loads((tmp_path / n / "metrics.jsonl").read_text()) for n in ("one", "two"))
    for name in ("loss", "positive_similarity", "negative_similarity"):
        assert one[name] == pytest.approx(two[name], abs=2e-5)
    assert {k: one[k] for k in ("R@1", "R@5")} == {k: two[k] for k in ("R@1", "R@5")}


def test_torchrun(roots, tmp_path):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(REPO / "train.py"),
    ]
    done = subprocess.run(
        [*command, *flags(roots["cvusa"], tmp_path, *ASAM, "--epochs", "2", "--share", "-b", "9")],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "log.txt").read_text()
    assert "2 process(es)" in log and "--batch-size 9 was lowered to 8" in log
    assert json.loads((tmp_path / "metrics.json").read_text())["epoch"] == 2


def test_two_nodes_of_one_process_each(roots, tmp_path):
    """--world-size counts nodes, --rank numbers them, --dist-url is where they meet."""
    url = f"tcp://127.0.0.1:{distributed.free_port()}"
    common = ["--multiprocessing-distributed", "--nprocs", "1", "--world-size", "2", "--dist-url", url, "--epochs", "1"]
    nodes = [
        subprocess.Popen(
            [sys.executable, "train.py", *flags(roots["cvusa"], tmp_path, *ASAM, *common, "--rank", rank)], cwd=REPO,
            env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        )
        for rank in "01"
    ]  # fmt: skip
    for node in nodes:
        _, error = node.communicate(timeout=300)
        assert node.returncode == 0, error
    assert "2 process(es)" in (tmp_path / "log.txt").read_text()


def test_mistakes_inside_processes_end_with_one_sentence(roots, tmp_path, capfd):
    with pytest.raises(SystemExit) as stop:
        train.main(flags(roots["cvusa"], tmp_path / "r", *ASAM, *TWO, "--batch-size", "3"))
    assert stop.value.code == 2
    error = capfd.readouterr().err
    assert "--batch-size 3 leaves 2 process(es) fewer than two pairs each; give at least 4" in error
    assert "Traceback" not in error


def test_a_taken_port_is_told(roots, tmp_path, capfd):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        url = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(SystemExit) as stop:
            train.main(flags(roots["cvusa"], tmp_path / "r", *ASAM, *TWO, "--dist-url", url))
    assert stop.value.code == 2
    assert f"--dist-url {url} cannot be used" in capfd.readouterr().err


@pytest.mark.parametrize("node", ["0", "1"])
def test_a_node_that_is_alone_does_not_wait_for_hours(roots, tmp_path, capsys, monkeypatch, node):
    monkeypatch.setattr(distributed, "JOIN", timedelta(seconds=2))
    url = f"tcp://127.0.0.1:{distributed.free_port()}"
    with pytest.raises(SystemExit) as stop:
        train.main(flags(roots["cvusa"], tmp_path, *ASAM, "--world-size", "2", "--rank", node, "--dist-url", url))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert f"--dist-url {url} cannot be used by process {node} of 2" in error and "Traceback" not in error


def begun(words, root, folder, *more, **streams):
    """A training without end in a process group of its own, once its log has said `words`."""
    run = subprocess.Popen(
        [sys.executable, str(REPO / "train.py"), *flags(root, folder, *ASAM, *more, "--epochs", "99999")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed_ctrl_c,
        **streams,
    )
    for line in run.stdout:
        if words in line:
            break
    return run


def test_ctrl_c_does_not_point_at_an_earlier_run(roots, tmp_path, capfd, monkeypatch):
    (tmp_path / "checkpoint.pth.tar").touch()
    os.utime(tmp_path / "checkpoint.pth.tar", (0, 0))

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "launch", interrupted)
    for more, told in (([], ""), (["--resume", "a.pth.tar"], "; go on with --resume a.pth.tar")):
        with pytest.raises(SystemExit) as stop:
            train.main(flags(roots["cvusa"], tmp_path, *ASAM, *more))
        assert stop.value.code == 130 and capfd.readouterr().err == f"train.py: interrupted{told}\n"


@pytest.mark.parametrize("more", [[], TWO])
def test_ctrl_c_ends_with_one_line_and_a_way_to_go_on(roots, tmp_path, more):
    run = begun("epoch 3 step", roots["cvusa"], tmp_path, *more, stderr=subprocess.PIPE)
    os.killpg(run.pid, signal.SIGINT)  # what a terminal does: every process of the group gets it
    _, error = run.communicate(timeout=120)
    assert run.returncode == 130
    assert error.startswith(f"train.py: interrupted; go on with --resume {tmp_path}/checkpoint.pth.tar\n")
    assert "Traceback" not in error
    assert load_checkpoint(tmp_path / "checkpoint.pth.tar")["epoch"] >= 2


def test_a_killed_parent_takes_its_processes_with_it(roots, tmp_path):
    more = [*TWO, "--print-freq", "1"]
    run = begun("epoch 2 step", roots["cvusa"], tmp_path, *more, stderr=subprocess.DEVNULL)
    run.kill()  # as a scheduler does: the processes cannot be told
    rest = run.stdout.read()  # ends when the last process that holds it has gone
    assert run.wait(timeout=60) == -signal.SIGKILL
    assert rest.count("epoch") < 500


def test_a_mistake_that_one_process_finds_ends_with_one_sentence(roots, tmp_path, capfd):
    """A damaged image lies in one process's share; the other fails for want of it."""
    broken = tmp_path / "data"
    shutil.copytree(roots["cvusa"], broken)
    first = sorted((broken / "streetview" / "panos").iterdir())[5]
    first.write_bytes(b"no image")
    for attempt in range(2):
        with pytest.raises(SystemExit) as stop:
            train.main(flags(broken, tmp_path / f"r{attempt}", *ASAM, *TWO))
        assert stop.value.code == 2
        error = capfd.readouterr().err
        assert f"{first} cannot be read as an image" in error and "Traceback" not in error
