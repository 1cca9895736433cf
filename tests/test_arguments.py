"""What the command-line tools share."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.show_metrics import chance

REPO = Path(__file__).parent.parent


@pytest.mark.parametrize("runs", [1, 2000])  # less and more than a pipe holds
def test_a_reader_who_has_seen_enough_is_no_mistake(tmp_path, runs):
    for n in range(runs):
        (tmp_path / str(n)).mkdir()
        metrics = {"R@1": 1.0, "dataset": f"set {n} {'x' * 60}", "split": "val", "epoch": 1}
        (tmp_path / str(n) / "metrics.json").write_text(json.dumps(metrics))
    command = [sys.executable, REPO / "scripts" / "report.py", tmp_path, "--out", tmp_path / "table.md"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as report:
        report.stdout.close()
        assert report.stderr.read() == b""
    assert report.returncode in (0, 141)  # all told, or cut off
    assert f"set {runs - 1} " in (tmp_path / "table.md").read_text()


def test_chance_is_what_a_random_ranking_reaches():
    assert chance("R@1", 500) == 0.2 and chance("R@10", 5) == 100
    assert chance("Hit", 103) == 1 and chance("Hit (top-1 covers)", 100) == 4  # Hit leaves the semi-positives out
