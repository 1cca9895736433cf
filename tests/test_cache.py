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
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms

import scripts.build_cache as build_cache
import train
from dataset import CVACT, CVUSA, VIGOR
from dataset.base import View
from dataset.cache import ImageCache
from dataset.transforms import ImageTransform
from utils.images import IMAGENET_MEAN, IMAGENET_STD, collate, normalise, to_device

SIZES = {"ground_size": (16, 64), "aerial_size": (32, 32)}


def write_images(folder, count, size=(40, 24)):
    paths = [folder / f"{i}.png" for i in range(count)]
    for i, path in enumerate(paths):
        make_data.write_image(path, size, i)
    return [str(path) for path in paths]


class Counting(ImageTransform):
    """Counts the files that are really read."""

    def __init__(self, size):
        super().__init__(size)
        self.read = 0

    def pixels(self, path):
        self.read += 1
        return super().pixels(path)


def read_all(cache):
    return np.stack([cache.pixels(i) for i in range(len(cache))])


def test_normalise_gives_torchvisions_numbers():
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 9, 14, 3), dtype=np.uint8))
    pixels[0, :, :, :] = torch.arange(252, dtype=torch.uint8).reshape(9, 14, 2).repeat(1, 1, 2)[..., :3]
    plain = transforms.Compose([transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
    expected = torch.stack([plain(Image.fromarray(image.numpy())) for image in pixels])
    batch = collate([View(image.movedim(-1, 0), i) for i, image in enumerate(pixels)])
    assert torch.equal(to_device(batch.image, torch.device("cpu")), expected)
    assert torch.equal(normalise(pixels[1].movedim(-1, 0)), expected[1])
    assert to_device(batch.image, torch.device("cpu")).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layout", [CVUSA, CVACT, VIGOR])
@pytest.mark.parametrize("fov", [0, 90])
def test_cached_samples_equal_plain_ones(roots, tmp_path, layout, fov):
    plain = layout(roots[layout.name], "train", fov=fov, **SIZES)
    for _ in range(2):  # made, then read
        cached = layout(roots[layout.name], "train", fov=fov, cache=tmp_path, **SIZES)
        for i in (0, 3, len(plain) - 1):
            for ours, theirs in zip(cached[i], plain[i], strict=True):
                assert torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs))
    assert cached.ground_images.present().sum() == 3


def test_an_image_is_read_once(tmp_path):
    paths = write_images(tmp_path / "a", 5)
    first = Counting((8, 12))
    made = read_all(ImageCache(tmp_path / "cache", paths, first))
    again = Counting((8, 12))
    kept = read_all(ImageCache(tmp_path / "cache", paths, again))
    assert (first.read, again.read) == (5, 0)
    np.testing.assert_array_equal(made, kept)


def test_what_changed_is_made_again(tmp_path):
    paths = write_images(tmp_path / "a", 4)
    read_all(ImageCache(tmp_path / "cache", paths, Counting((8, 12))))
    make_data.write_image(tmp_path / "a" / "1.png", (40, 24), 99)  # other pixels
    os.utime(paths[2], ns=(1, 1))  # another time
    transform = Counting((8, 12))
    cache = ImageCache(tmp_path / "cache", paths, transform)
    np.testing.assert_array_equal(cache.present(), [True, False, False, True])
    np.testing.assert_array_equal(cache.pixels(1), ImageTransform((8, 12)).pixels(paths[1]))
    read_all(cache)
    assert transform.read == 2 and cache.present().all()
    other = Counting((12, 8))  # another transform
    assert read_all(ImageCache(tmp_path / "cache", paths, other)).shape == (4, 12, 8, 3) and other.read == 4


def test_damaged_and_half_written_images_are_never_read(tmp_path):
    paths = write_images(tmp_path / "a", 3)
    good = read_all(ImageCache(tmp_path / "cache", paths, Counting((8, 12))))
    (store,) = [path.parent for path in (tmp_path / "cache").rglob("images.bin")]
    content = bytearray((store / "images.bin").read_bytes())
    content[8 * 12 * 3 + 5] ^= 1  # one bit of the second image
    (store / "images.bin").write_bytes(content)
    index = bytearray((store / "index.bin").read_bytes())
    index[2 * len(index) // 3 :] = bytes(len(index) // 3)  # the third never got its record
    (store / "index.bin").write_bytes(index)
    transform = Counting((8, 12))
    np.testing.assert_array_equal(read_all(ImageCache(tmp_path / "cache", paths, transform)), good)
    assert transform.read == 2


def test_an_image_that_changes_while_it_is_read_is_not_taken(tmp_path, monkeypatch):
    paths = write_images(tmp_path / "a", 2)
    cache = ImageCache(tmp_path / "cache", paths, Counting((8, 12)))
    good = read_all(cache)
    store, slot = cache.slots[0]
    stamp = cache.stamps[0]
    np.testing.assert_array_equal(store.read(slot, *stamp), good[0])
    index, images, descriptors = store._files()

    class Rewritten:
        """The record as it was before the pixels are copied, and blank after."""

        def __init__(self):
            self.seen = 0

        def __getitem__(self, row):
            self.seen += 1
            return index[row] if self.seen == 1 else np.zeros_like(index[row])

    monkeypatch.setattr(store, "_open", (Rewritten(), images, descriptors))
    assert store.read(slot, *stamp) is None


def test_jobs_with_other_lists_share_a_cache(tmp_path):
    paths = write_images(tmp_path / "a", 6)
    early = ImageCache(tmp_path / "cache", paths[:3], Counting((8, 12)))
    early.pixels(0)
    late = ImageCache(tmp_path / "cache", paths[::-1], Counting((8, 12)))  # grows the files under the other's maps
    both = read_all(late)
    np.testing.assert_array_equal(read_all(early), both[::-1][:3])
    assert late.transform.read == 5 and early.transform.read == 1
    assert len(list((tmp_path / "cache").rglob("images.bin"))) == 1
    copied = pickle.loads(pickle.dumps(late))  # as a loader process that is spawned gets it
    np.testing.assert_array_equal(read_all(copied), both)


def test_a_full_disk_is_told_once_and_training_goes_on(tmp_path, monkeypatch, caplog):
    paths = write_images(tmp_path / "a", 3)
    cache = ImageCache(tmp_path / "cache", paths, Counting((8, 12)))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    assert read_all(cache).shape == (3, 8, 12, 3)
    assert [r.message.count("takes no more images") for r in caplog.records] == [1]


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
    assert run.returncode == 130 and "Traceback" not in error and "the same command goes on" in error


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


def test_a_cached_training_gives_the_same_numbers(roots, tmp_path):
    def run(name, *more):
        flags = make_data.flags(roots["cvusa"], tmp_path / name, *make_data.ASAM, "--epochs", "2", *more)
        train.main(flags)
        return torch.load(tmp_path / name / "checkpoint.pth.tar", weights_only=False)["state_dict"]

    plain = run("plain")
    for name in ("filling", "filled"):
        cached = run(name, "--cache", str(tmp_path / "cache"), "--workers", "2")
        assert all(torch.equal(plain[key], cached[key]) for key in plain)


def test_an_unwritable_cache_ends_with_one_sentence(roots, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stop:
        train.main(make_data.flags(roots["cvusa"], tmp_path / "out", "--cache", str(tmp_path / "file")))
    assert stop.value.code == 2 and "--cache" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_fast_decoding_keeps_the_picture(tmp_path):
    smooth = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 16, 3)).astype(np.uint8))
    smooth.resize((1024, 512), Image.BICUBIC).save(tmp_path / "a.jpg", quality=95)
    plain = ImageTransform((64, 128)).pixels(tmp_path / "a.jpg").astype(int)
    fast = ImageTransform((64, 128), fast=True).pixels(tmp_path / "a.jpg").astype(int)
    assert fast.shape == plain.shape
    assert 0 < np.abs(fast - plain).mean() < 2


def test_batches_of_loader_processes_are_channels_last(roots):
    data = CVUSA(roots["cvusa"], "train", pixels=True, **SIZES)
    for workers in (0, 1):
        batch = next(iter(DataLoader(data, batch_size=4, num_workers=workers, collate_fn=collate)))
        assert batch.ground.dtype == torch.uint8 and batch.ground.shape == (4, 3, 16, 64)
        assert batch.ground.is_contiguous(memory_format=torch.channels_last)
        assert batch.index.tolist() == [0, 1, 2, 3]
