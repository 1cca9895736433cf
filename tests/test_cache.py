"""The cache of resized images: what it keeps, makes again and never takes, and the tool that fills it."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import make_data
import numpy as np
import pytest
import torch

import train
from dataset import CVACT, CVUSA, VIGOR
from dataset.cache import ImageCache
from dataset.transforms import ImageTransform
from scripts import build_cache
from utils.options import UserError


class Counting(ImageTransform):
    """Counts the files that are really read."""

    read = 0

    def pixels(self, path):
        self.read += 1
        return super().pixels(path)


@pytest.fixture
def paths(tmp_path):
    """Six images in one folder."""
    paths = [tmp_path / "images" / f"{i}.png" for i in range(6)]
    for i, path in enumerate(paths):
        make_data.write_image(path, (40, 24), i)
    return [str(path) for path in paths]


@pytest.fixture
def store(tmp_path):
    """store(paths): a cache in the test's folder, which counts."""
    return lambda paths, size=(8, 12): ImageCache(tmp_path / "cache", paths, Counting(size))


def read_all(cache):
    return np.stack([cache.pixels(i) for i in range(len(cache))])


@pytest.mark.parametrize("layout", [CVUSA, CVACT, VIGOR])
def test_cached_samples_equal_plain_ones(roots, tmp_path, layout):
    kwargs = {"ground_size": (16, 64), "aerial_size": (32, 32), "fov": 90}
    plain = layout(roots[layout.name], "train", **kwargs)
    for _ in range(2):  # made, then read
        cached = layout(roots[layout.name], "train", cache=tmp_path, **kwargs)
        for i in (0, 3, len(plain) - 1):
            for ours, theirs in zip(cached[i], plain[i], strict=True):
                assert torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs))
    assert cached.ground_images.present().sum() == 3


def test_what_changed_is_made_again_and_all_else_read_once(paths, store):
    first, again = store(paths), store(paths)
    np.testing.assert_array_equal(read_all(first), read_all(again))
    assert (first.transform.read, again.transform.read) == (6, 0)
    make_data.write_image(Path(paths[1]), (40, 24), 99)  # other pixels
    os.utime(paths[2], ns=(1, 1))  # another time
    cache = store(paths)
    np.testing.assert_array_equal(cache.present(), [True, False, False, True, True, True])
    np.testing.assert_array_equal(cache.pixels(1), ImageTransform((8, 12)).pixels(paths[1]))
    read_all(cache)
    assert cache.transform.read == 2 and cache.present().all()
    other = store(paths, size=(12, 8))  # another transform
    assert read_all(other).shape == (6, 12, 8, 3) and other.transform.read == 6


def kept(folder):
    """The files of a cache that hold images, by name."""
    return {path.name: path for path in (folder / "cache").rglob("*.png")}


def test_damaged_and_half_written_images_are_never_read(paths, store, tmp_path):
    good = read_all(store(paths))
    files = [kept(tmp_path)[Path(path).name] for path in paths]
    content = bytearray(files[1].read_bytes())
    content[-5] ^= 1
    files[1].write_bytes(content)
    files[3].write_bytes(files[3].read_bytes()[:-1])
    files[5].write_bytes(b"")
    cache = store(paths)
    np.testing.assert_array_equal(read_all(cache), good)
    assert cache.transform.read == 3
    files[0].write_bytes(files[2].read_bytes())  # another image's, by another job, while the cache is open
    np.testing.assert_array_equal(read_all(cache), good)
    assert cache.transform.read == 4 and not list((tmp_path / "cache").rglob("*.partial"))


def test_new_files_in_a_folder_and_files_that_are_missing(paths, store, tmp_path):
    read_all(store(paths))
    new = tmp_path / "images" / "new.png"
    late = store([*paths, str(new), str(tmp_path / "elsewhere" / "0.png")])
    assert late.present().sum() == 6
    make_data.write_image(new, (40, 24), 9)
    read_all(cache := store([*paths, str(new)]))
    assert cache.transform.read == 1  # a file more leaves the others where they are
    with pytest.raises(UserError, match="cannot be read"):
        late.pixels(7)


def test_jobs_with_other_lists_share_a_cache(paths, store, tmp_path):
    early = store(paths[:3])
    early.pixels(0)
    late = store(paths[::-1])
    both = read_all(late)
    np.testing.assert_array_equal(read_all(early), both[::-1][:3])
    assert late.transform.read == 5 and early.transform.read == 1 and len(kept(tmp_path)) == 6
    copied = pickle.loads(pickle.dumps(late))  # as a loader process that is spawned gets it
    np.testing.assert_array_equal(read_all(copied), both)


def test_a_full_disk_is_told_once_and_training_goes_on(paths, store, monkeypatch, caplog, tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert read_all(store(paths)).shape == (6, 8, 12, 3)
    assert [r.message.count("accepts no more images") for r in caplog.records] == [1]
    assert not kept(tmp_path) and not list((tmp_path / "cache").rglob("*.partial"))


def test_a_cached_training_gives_the_same_numbers(roots, tmp_path):
    def run(name, *more):
        train.main(make_data.flags(roots["cvusa"], tmp_path / name, *make_data.ASAM, "--epochs", "2", *more))
        return torch.load(tmp_path / name / "checkpoint.pth.tar", weights_only=False)["state_dict"]

    plain = run("plain")
    for name in ("filling", "filled"):
        cached = run(name, "--cache", str(tmp_path / "cache"), "--workers", "2")
        assert all(torch.equal(plain[key], cached[key]) for key in plain)


def test_an_unwritable_cache_ends_with_one_sentence(roots, tmp_path, refused):
    (tmp_path / "file").write_text("")
    run = make_data.flags(roots["cvusa"], tmp_path / "r", "--cache", tmp_path / "file")
    assert "--cache" in refused(train.main, *run)
    assert not (tmp_path / "r").exists()


def test_processes_that_open_a_cache_at_once_do_not_disturb_each_other(paths, tmp_path):
    """As the processes of a training do, and the jobs of a grid."""
    context = multiprocessing.get_context("fork")
    together, failed = context.Barrier(4), context.Value("i", 0)

    def work():
        for number in range(50):
            together.wait()
            try:
                ImageCache(tmp_path / str(number), paths, ImageTransform((8, 12)))
            except UserError:
                with failed.get_lock():
                    failed.value += 1

    jobs = [context.Process(target=work) for _ in range(4)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert failed.value == 0


# scripts/build_cache.py

SIZES = ["--ground-size", "32", "128", "--aerial-size", "64", "64"]
SMALL = {"ground_size": (32, 128), "aerial_size": (64, 64)}


def building(root, cache, *more, dataset="cvusa"):
    """The arguments of build_cache.py."""
    return ["--dataset", dataset, "--data-root", str(root), "--cache", str(cache), *SIZES, *more]


def test_build_cache_makes_what_a_run_reads(roots, tmp_path, capsys):
    arguments = building(roots["cvusa"], tmp_path, "--jobs", "2")
    build_cache.main(arguments)
    assert f"train panoramas: {make_data.TRAIN} made" in capsys.readouterr().out
    build_cache.main(arguments)
    told = capsys.readouterr().out
    assert "made" not in told and told.count(" are there") == 4
    data = CVUSA(roots["cvusa"], "val", **SMALL, cache=tmp_path)
    assert data.ground_images.present().all() and data.aerial_images.present().all()


def test_build_cache_of_one_city_and_of_the_split_that_an_evaluation_calls_val(roots, tmp_path, capsys):
    more = ["--jobs", "1", "--vigor-cities", "Seattle", "--splits", "val"]
    build_cache.main(building(roots["vigor"], tmp_path, *more, dataset="vigor"))
    told = capsys.readouterr().out
    assert "test panoramas: " in told and "train" not in told
    data = VIGOR(roots["vigor"], "test", area=("Seattle",), **SMALL, cache=tmp_path)
    assert data.ground_images.present().all() and data.aerial_images.present().all()


def test_ctrl_c_ends_build_cache_though_workers_wait(tmp_path):
    """More workers than there is work for: they wait for the queue when the signal reaches the group."""
    make_data.write_cvusa(tmp_path / "d", train=60, val=3)
    code = (
        "import time\nfrom scripts import build_cache\nmake = build_cache.make\n"
        "def slow(images, rows):\n    print('begun', flush=True)\n    time.sleep(2)\n    return make(images, rows)\n"
        f"build_cache.make = slow\nbuild_cache.main({building(tmp_path / 'd', tmp_path / 'c', '--jobs', '8')!r})\n"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, preexec_fn=make_data.heed_ctrl_c, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    next(line for line in run.stdout if "begun" in line)
    os.killpg(run.pid, signal.SIGINT)
    _, error = run.communicate(timeout=60)
    assert run.returncode == 130 and "Traceback" not in error and "run the same command again" in error


def killed(images, rows):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_of_build_cache_is_told(tmp_path, monkeypatch, refused):
    make_data.write_cvusa(tmp_path / "d", train=4, val=3)
    monkeypatch.setattr(build_cache, "make", killed)
    assert "most likely for memory" in refused(build_cache.main, *building(tmp_path / "d", tmp_path / "c"))


def test_build_cache_names_an_image_that_cannot_be_read_and_makes_the_others(tmp_path, refused):
    make_data.write_cvusa(tmp_path / "d", train=4, val=3)
    (tmp_path / "d" / "bingmap" / "19" / "0000002.jpg").write_bytes(b"no image")
    error = refused(build_cache.main, *building(tmp_path / "d", tmp_path / "c", "--jobs", "1"))
    assert "0000002.jpg cannot be read" in error
    assert CVUSA(tmp_path / "d", "train", **SMALL, cache=tmp_path / "c").aerial_images.present().sum() == 3
