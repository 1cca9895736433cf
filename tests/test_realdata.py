"""Real pairs and real labels, in the folder that the environment variable FRGEO_REALDATA names; else skipped."""

import os
import resource
from pathlib import Path

import pytest
from make_data import history

import train
from dataset import VIGOR
from dataset.base import read_lines
from scripts import arrange_pairs
from scripts.check_data import label_errors

REAL = Path(os.environ.get("FRGEO_REALDATA", "")).expanduser()
pytestmark = pytest.mark.skipif("FRGEO_REALDATA" not in os.environ, reason="FRGEO_REALDATA names no real samples")

RECIPES = {
    "adamw": "--op adamw --batch-size 5",
    "asam": "--op sam --asam --rho 2.5 --batch-size 5",
    "two processes": "--op adamw --batch-size 5 --multiprocessing-distributed --nprocs 2",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    out = tmp_path_factory.mktemp("real")
    arrange_pairs.main([str(REAL / "cvusa_pairs" / "data.csv"), str(out)])
    return out


@pytest.mark.parametrize("recipe", RECIPES)
def test_real_pairs_are_learned(root, tmp_path, recipe):
    run = f"--dataset cvusa --data-root {root} --save_path {tmp_path} --arch test_convnext2 --pretrained none --seed 0"
    run += " --ground-size 64 256 --aerial-size 128 128 --lr 0.001 --wd 0.03 --epochs 20 --eval-every 20 --workers 0"
    metrics = train.main([*run.split(), *RECIPES[recipe].split()])
    losses = [line["loss"] for line in history(tmp_path)]
    assert metrics["R@1"] == 100.0
    assert losses[-1] < 0.3 * losses[0]


def test_real_vigor_labels_are_read_in_little_memory_and_agree_with_the_coordinates():
    before, kwargs = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, {"labels": "corrected", "check_files": False}
    cities = ("NewYork", "Seattle", "Chicago")
    splits = [VIGOR(REAL / "vigor_labels", split, area=cities, **kwargs) for split in ("train", "test")]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # kB
    fourth = [*read_lines(REAL / "vigor_labels" / "SanFrancisco" / "satellite_list.txt").values()]
    assert sum(len(data) for data in splits) == 76_999
    assert len(splits[0].aerial) + len(fourth) == 90_618
    for data in splits:
        assert label_errors(data).max() < 6  # pixels
