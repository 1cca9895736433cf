"""Trainings that are stopped within an epoch, by a signal or a kill, and resumed."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from pathlib import Path

import make_data
import pytest
import timm
import torch
from make_data import ADAMW, ASAM, flags, history, record

import train
from scripts import kill_test
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.loading import Feed
from utils.options import UserError
from utils.run_files import RunFiles

# It has dropout; older versions of timm lack it.
NETWORK = ["test_vit_relpos", "384"] if timm.is_model("test_vit_relpos") else ["test_vit", "256"]
RELPOS = ["--arch", NETWORK[0], "--dim", NETWORK[1], "--ema", "0.9", "--augment", "--epochs", "3", "-b", "4"]


def numbers(out):
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in history(out)]


@pytest.fixture
def stopped(monkeypatch):
    """stopped(step, number, arguments): run train.main, the process sent a signal in that step; the exit code."""

    def run(step, number, arguments):
        count, train_step = [], train.train_step

        def step_and_signal(*args):
            count.append(1)
            if len(count) == step:
                os.kill(os.getpid(), number)
            return train_step(*args)

        with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
            patch.setattr(train, "train_step", step_and_signal)
            train.main(arguments)
        assert len(count) == step  # the step was finished, and no other begun
        return stop.value.code

    return run


@pytest.mark.parametrize(
    ("number", "code", "told"),
    [
        (signal.SIGTERM, 143, "stopped by SIGTERM; continue with --resume"),
        (signal.SIGUSR1, 138, "stopped by SIGUSR1; continue with --resume"),
        (signal.SIGINT, 130, "interrupted; continue with --resume"),
    ],
)
def test_a_signal_ends_a_training_after_its_step_and_resuming_continues_as_if_never_stopped(
    roots, tmp_path, capsys, stopped, number, code, told
):
    handler = signal.getsignal(number)
    train.main(flags(roots["cvusa"], tmp_path / "whole", *ASAM, *RELPOS))
    parts = flags(roots["cvusa"], tmp_path / "parts", *ASAM, *RELPOS, "--resume", "auto", "--print-freq", "2")
    assert stopped(14, number, parts) == code  # in the second epoch
    checkpoint = tmp_path / "parts" / "checkpoint.pth.tar"
    assert f"train.py: {told} {checkpoint}" in capsys.readouterr().err and signal.getsignal(number) == handler
    state = load_checkpoint(checkpoint)
    assert (state["epoch"], state["inside"]["step"]) == (1, 4)
    assert stopped(2, number, parts) == code  # and again
    train.main(parts)
    a, b = (load_checkpoint(tmp_path / name / "checkpoint.pth.tar") for name in ("whole", "parts"))
    for key in ("state_dict", "online"):
        assert all(torch.equal(a[key][name], b[key][name]) for name in a[key])
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole") and "inside" not in b
    assert "after epoch 1, step 4 of the next" in (tmp_path / "parts" / "log.txt").read_text()


@pytest.mark.parametrize("nprocs", [1, 2])
def test_a_training_that_is_killed_at_any_moment_ends_as_if_never_stopped(tmp_path, nprocs, capsys):
    kill_test.run(2, nprocs, 6, random.randrange(1000), tmp_path)
    assert "equal, bit for bit" in capsys.readouterr().out


def test_differences_are_found(tmp_path, roots):
    for name, seed in (("a", "1"), ("b", "2")):
        train.main(flags(roots["cvusa"], tmp_path / name, *ASAM, "--ema", "0.9", "--epochs", "1", "--seed", seed))
    found = kill_test.differences(tmp_path / "a", tmp_path / "b")
    assert "epoch 1 of metrics.jsonl" in found and sum(name.startswith("state_dict") for name in found) > 50


def test_checkpoints_within_an_epoch_by_steps_and_by_minutes(roots, tmp_path, monkeypatch):
    saved, save = [], train.save_training
    monkeypatch.setattr(train, "save_training", lambda *args: (saved.append(args[3:]), save(*args)))
    train.main(flags(roots["cvusa"], tmp_path / "steps", *ADAMW, "-b", "3", "--epochs", "1", "--checkpoint-steps", "2"))
    assert [inside[0]["step"] for inside in saved if inside] == [2, 4, 6, 8, 10, 12]
    saved.clear()
    more = ["-b", "3", "--epochs", "1", "--checkpoint-minutes", "0.0000001"]
    train.main(flags(roots["cvusa"], tmp_path / "minutes", *ADAMW, *more))
    assert [inside[0]["step"] for inside in saved if inside] == list(range(1, 13))


def test_resume_auto_starts_or_continues_and_nothing_left_moves_nothing(roots, tmp_path):
    run = flags(roots["cvusa"], tmp_path, *ADAMW, "--resume", "auto")
    train.main([*run, "--epochs", "1"])
    train.main([*run, "--epochs", "2"])
    assert [line["epoch"] for line in history(tmp_path)] == [1, 2]
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != "log.txt"}
    assert train.main([*run, "--epochs", "2"]) is None
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != "log.txt"}


def test_a_worker_that_torchrun_starts_again_continues(roots, tmp_path, monkeypatch):
    run = flags(roots["cvusa"], tmp_path, *ADAMW)
    train.main([*run, "--epochs", "1"])
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    train.main([*run, "--epochs", "2"])
    assert [line["epoch"] for line in history(tmp_path)] == [1, 2] and record(tmp_path)["epoch"] == 2


def test_other_lists_are_refused_on_resume(roots, tmp_path, refused):
    run = flags(roots["cvusa"], tmp_path / "r", *ADAMW)
    train.main([*run, "--epochs", "1"])
    again = ["--epochs", "2", "--resume", tmp_path / "r" / "checkpoint.pth.tar"]
    for split in ("train", "val"):
        other = Path(make_data.WRITERS["cvusa"](tmp_path / split))
        path = other / "splits" / f"{split}-19zl.csv"
        path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
        error = refused(train.main, *flags(other, tmp_path / "r", *ADAMW), *again)
        assert f"was trained with another list of split {split}: " in error
    moved = make_data.WRITERS["cvusa"](tmp_path / "moved")  # the same lists in another folder
    assert train.main([str(a) for a in (*flags(moved, tmp_path / "r", *ADAMW), *again)]) is not None


def test_what_a_resumed_run_does_otherwise_is_told(roots, tmp_path):
    run = [*flags(roots["cvusa"], tmp_path, *ADAMW), "--resume", "auto"]
    train.main([*run, "--epochs", "1"])
    path = tmp_path / "checkpoint.pth.tar"
    state = load_checkpoint(path)
    torch.save({key: value for key, value in state.items() if key != "lists"}, tmp_path / "other")
    (tmp_path / "other").replace(path)  # not over the file, from which the tensors are mapped
    two = ["--multiprocessing-distributed", "--nprocs", "2"]
    train.main([*run, *two, "--epochs", "2"])
    log = (tmp_path / "log.txt").read_text()
    assert "a loss compares 4 pairs, before it was 8: the number of processes differs" in log
    assert "the checkpoint does not store which lists it was trained on; they are not compared" in log


def test_a_lock_ends_with_the_process_that_holds_it(tmp_path):
    """Its forked children, such as loader processes, may live for seconds more."""
    files = RunFiles(tmp_path)
    files.open(training=True)
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    files.close()  # as the kernel does when this process is killed
    code = f"from utils.run_files import RunFiles; RunFiles({str(tmp_path)!r}).open(training=True)"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(train.__file__).parent, capture_output=True, text=True)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert done.returncode == 0, done.stderr


class Stuck(torch.utils.data.Dataset):
    """Its second image never comes."""

    collate = staticmethod(lambda samples: torch.tensor(samples))

    def samples(self, indices):
        if indices == [1]:
            time.sleep(60)
        return indices

    def files_of(self, index):
        return [f"/disk/{index}.jpg"]


def test_a_loader_that_waits_too_long_names_the_file():
    data, args = Stuck(), type("Args", (), {"workers": 1, "timeout": 0.02})
    batches = Feed([data], args, torch.device("cpu")).batches(data, [[0], [1]])
    assert next(batches).tolist() == [0]
    with pytest.raises(UserError, match=r"loader processes for 0.02 minutes .*/disk/1.jpg"):
        next(batches)


def test_a_temporary_folder_with_too_long_a_path_is_told(monkeypatch, tmp_path):
    folder = tmp_path / ("x" * 80)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with pytest.raises(UserError, match=r"has too long a path for the sockets of loader processes; set TMPDIR"):
        Feed([Stuck()], type("Args", (), {"workers": 1}), torch.device("cpu"))
    Feed([Stuck()], type("Args", (), {"workers": 0}), torch.device("cpu"))


TWO = ["--multiprocessing-distributed", "--nprocs", "2"]
LARGE = ["--ground-size", "256", "1024", "--aerial-size", "512", "512", "-j", "2"]
SMALL_SHM = "mount -t tmpfs -o size=2m tmpfs /dev/shm"


@pytest.mark.parametrize(
    ("limit", "more", "told"),
    [
        ("ulimit -v 2000000", [], "there is too little memory (lib"),  # while PyTorch is loaded
        ("ulimit -v 5500000", ["--ground-size", "2048", "8192"], "there is too little memory ("),
        ("ulimit -n 40", ["-j", "8"], "40 open files are too few for 8 loader processes"),
        ("ulimit -n 64", ["-j", "8", *TWO], " open files are too few for 4 loader processes"),
        (SMALL_SHM, LARGE, "there is too little shared memory ("),
    ],
)
def test_a_machine_with_too_little_is_told_of(roots, tmp_path, limit, more, told):
    isolated = ["unshare", "-rm"] if limit == SMALL_SHM else []
    if isolated and subprocess.run([*isolated, "sh", "-c", limit], capture_output=True).returncode:
        pytest.skip("this system lets no test mount a small /dev/shm")
    command = [sys.executable, train.__file__, *flags(roots["cvusa"], tmp_path / "run", *ADAMW), *more]
    started = [*isolated, "sh", "-c", f'{limit} && exec "$@"', "sh", *command]
    done = subprocess.run(started, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.count("train.py: ") == 1 and told in done.stderr


def test_nothing_grows_and_a_kill_leaves_nothing(roots, tmp_path):
    """Memory and open files of a training with loader processes; what it leaves in /dev/shm and the system's folder."""
    temporary, out = Path(tempfile.mkdtemp()), tmp_path / "run"  # pytest's own folder has too long a path for sockets
    command = [sys.executable, train.__file__, *flags(roots["cvusa"], out, *ASAM, "-j", "1", "--epochs", "9999")]
    before = set(Path("/dev/shm").iterdir())
    run = subprocess.Popen(command, env=os.environ | {"TMPDIR": str(temporary)}, stdout=subprocess.DEVNULL)

    def grown(epochs):
        """MiB of memory and number of open files once so many epochs are done."""
        while not (out / "metrics.jsonl").exists() or len(history(out)) < epochs:
            assert run.poll() is None
            time.sleep(0.05)
        status = Path(f"/proc/{run.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024, len(os.listdir(f"/proc/{run.pid}/fd"))

    (early, files), (late, more_files) = grown(10), grown(60)
    run.kill()
    run.wait()
    assert late < 1.03 * early and abs(more_files - files) < 12  # batches that are on their way
    for _ in range(100):  # loader processes notice within seconds that their parent has gone
        left = [*temporary.iterdir(), *(set(Path("/dev/shm").iterdir()) - before)]
        if not left:
            return temporary.rmdir()
        time.sleep(0.1)
    return pytest.fail(f"left: {left}")


def test_ctrl_c_waits_until_a_checkpoint_is_written(tmp_path):
    pressed = []

    def handler(number, frame):
        pressed.append(load_checkpoint(tmp_path / "a.pth.tar")["epoch"])
        raise KeyboardInterrupt

    class Pressed:
        def __reduce__(self):  # called while the file is written
            os.kill(os.getpid(), signal.SIGINT)
            return OrderedDict, ()

    before = signal.signal(signal.SIGINT, handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path / "a.pth.tar", epoch=3, lists=Pressed())
    finally:
        signal.signal(signal.SIGINT, before)
    assert pressed == [3]


def test_six_ctrl_c_are_as_quiet_as_one(roots, tmp_path):
    command = [sys.executable, train.__file__, *flags(roots["cvusa"], tmp_path, *ASAM, "-j", "1", "--epochs", "9999")]
    pipe = {"stderr": subprocess.PIPE, "text": True, "start_new_session": True, "preexec_fn": make_data.heed_ctrl_c}
    run = subprocess.Popen([*command, "--checkpoint-steps", "1"], stdout=subprocess.DEVNULL, **pipe)
    while not (tmp_path / "metrics.jsonl").exists():
        time.sleep(0.05)
    for _ in range(6):
        os.killpg(run.pid, signal.SIGINT)
        time.sleep(0.02)
    _, error = run.communicate(timeout=60)
    assert run.returncode == 130
    assert error == f"train.py: interrupted; continue with --resume {tmp_path}/checkpoint.pth.tar\n"
