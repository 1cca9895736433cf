"""scripts/build_cache.py makes what a run with --cache reads."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import make_data
import pytest

from dataset import CVUSA, VIGOR
from scripts import build_cache


def test_build_cache_makes_what_a_run_reads(roots, tmp_path, capsys):
    sizes = ["--ground-size", "32", "128", "--aerial-size", "64", "64"]
    flags = ["--dataset", "cvusa", "--data-root", str(roots["cvusa"]), "--cache", str(tmp_path / "c"), *sizes]
    build_cache.main([*flags, "--jobs", "2"])
    assert f"train panoramas: {make_data.TRAIN} made" in capsys.readouterr().out
    build_cache.main([*flags, "--jobs", "2"])
    told = capsys.readouterr().out
    assert "made" not in told and told.count(" are there") == 4
    data = CVUSA(roots["cvusa"], "val", ground_size=(32, 128), aerial_size=(64, 64), cache=tmp_path / "c")
    assert data.ground_images.present().all() and data.aerial_images.present().all()


def test_build_cache_of_some_cities(roots, tmp_path, capsys):
    flags = ["--dataset", "vigor", "--data-root", str(roots["vigor"]), "--cache", str(tmp_path), "--jobs", "1"]
    sizes = ["--ground-size", "32", "128", "--aerial-size", "64", "64"]
    build_cache.main([*flags, *sizes, "--vigor-cities", "Seattle"])
    data = VIGOR(roots["vigor"], "test", area=("Seattle",), ground_size=(32, 128), aerial_size=(64, 64), cache=tmp_path)
    assert data.ground_images.present().all() and data.aerial_images.present().all()


def test_ctrl_c_ends_build_cache_though_workers_wait(tmp_path):
    """More workers than there is work for: they wait for the queue when the signal reaches the group."""
    make_data.write_cvusa(tmp_path / "d", train=60, val=3)
    code = (
        "import time\nfrom scripts import build_cache\nmake = build_cache.make\n"
        "def slow(images, rows):\n    print('begun', flush=True)\n    time.sleep(2)\n    return make(images, rows)\n"
        f"build_cache.make = slow\nbuild_cache.main(['--dataset', 'cvusa', '--data-root', {str(tmp_path / 'd')!r}, "
        f"'--cache', {str(tmp_path / 'c')!r}, '--jobs', '8'])\n"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, preexec_fn=make_data.heed_ctrl_c, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    for line in run.stdout:
        if "begun" in line:
            break
    os.killpg(run.pid, signal.SIGINT)
    _, error = run.communicate(timeout=60)
    assert run.returncode == 130 and "Traceback" not in error and "run the same command again" in error


def test_a_killed_worker_of_build_cache_is_told(tmp_path, monkeypatch, capsys):
    make_data.write_cvusa(tmp_path / "d", train=4, val=3)
    monkeypatch.setattr(build_cache, "make", killed)
    with pytest.raises(SystemExit) as stop:
        build_cache.main(["--dataset", "cvusa", "--data-root", str(tmp_path / "d"), "--cache", str(tmp_path / "c")])
    assert stop.value.code == 2 and "most likely for memory" in capsys.readouterr().err


def killed(images, rows):
    os.kill(os.getpid(), signal.SIGKILL)


def test_build_cache_names_an_image_that_cannot_be_read_and_makes_the_others(tmp_path, capsys):
    make_data.write_cvusa(tmp_path / "d", train=4, val=3)
    (tmp_path / "d" / "bingmap" / "19" / "0000002.jpg").write_bytes(b"no image")
    flags = ["--dataset", "cvusa", "--data-root", str(tmp_path / "d"), "--cache", str(tmp_path / "c"), "--jobs", "1"]
    with pytest.raises(SystemExit) as stop:
        build_cache.main(flags)
    assert stop.value.code == 2 and "0000002.jpg cannot be read" in capsys.readouterr().err
    assert CVUSA(tmp_path / "d", "train", cache=tmp_path / "c").aerial_images.present().sum() == 3
