"""Real pairs and real labels, where a copy lies beside the repository; skipped elsewhere."""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

import train

REPO = Path(__file__).parent.parent
REAL = REPO.parent / "shared" / "realdata"
pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason="no real samples beside the repository")

RECIPES = {
    "adamw": ["--op", "adamw", "--batch-size", "5"],
    "asam": ["--op", "sam", "--asam", "--rho", "2.5", "--batch-size", "5"],
    "two processes": ["--op", "adamw", "--batch-size", "5", "--multiprocessing-distributed", "--nprocs", "2"],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    out = tmp_path_factory.mktemp("real")
    script = [sys.executable, "scripts/arrange_pairs.py", str(REAL / "cvusa_pairs" / "data.csv"), str(out)]
    done = subprocess.run(script, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("5 pairs"), done.stderr
    return out


@pytest.mark.parametrize("recipe", RECIPES)
def test_real_pairs_are_learned(root, tmp_path, recipe):
    metrics = train.main(
        [
            *("--dataset", "cvusa", "--data-root", str(root), "--save_path", str(tmp_path), "--seed", "0"),
            *("--arch", "test_convnext2", "--pretrained", "none", "--workers", "0", "--lr", "0.001", "--wd", "0.03"),
            *("--ground-size", "64", "256", "--aerial-size", "128", "128", "--epochs", "20", "--eval-every", "20"),
            *RECIPES[recipe],
        ]
    )
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert metrics["R@1"] == 100.0
    assert losses[-1] < 0.3 * losses[0]


def test_real_vigor_labels_are_read_fast_and_agree_with_the_coordinates():
    from dataset import VIGOR
    from dataset.files import read_lines
    from scripts.check_data import label_errors

    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cities = ("NewYork", "Seattle", "Chicago")
    splits = [
        VIGOR(REAL / "vigor_labels", split, labels="corrected", area=cities, check_files=False)
        for split in ("train", "test")
    ]
    assert time.perf_counter() - started < 20  # seconds; about 2 on an idle core
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # kB
    fourth = read_lines(REAL / "vigor_labels" / "SanFrancisco" / "satellite_list.txt")
    assert sum(len(data) for data in splits) == 76_999
    assert len(splits[0].aerial) + len(fourth) == 90_618
    for data in splits:
        assert label_errors(data).max() < 6  # pixels
