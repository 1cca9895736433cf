"""The GPU's benchmark at toy sizes on the CPU: every part, and a part that fails."""

import json
import os
import subprocess
from pathlib import Path

from benchmarks import gpu

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu.sh"


def run(out, *more):
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = ["bash", SCRIPT, "--out", out, "--device", "cpu", "--toy", *more]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_every_part_finds_its_rows_and_parts_are_merged(tmp_path):
    for parts in (["step", "search"], ["data", "train"]):
        done = run(tmp_path, "--parts", *parts)
        assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert list(found) == ["step", "search", "data", "train"]
    assert not any(result["failed"] for result in found.values()), found
    table = (tmp_path / "gpu.md").read_text()
    assert done.stdout.endswith(table + "\n")
    rows = {row["what"]: row for result in found.values() for row in result["rows"]}
    assert gpu.GOALS.keys() - rows.keys() == {"first step, --compile"}
    assert "100.0 % of" in rows["ranks of VIGOR's size, random"]["note"]
    shares = [row["value"] for what, row in rows.items() if what.startswith("of the training's time")]
    assert len(shares) == 6 and 99 < sum(shares) < 130
    for name in ("step.png", "train.png"):
        assert (tmp_path / name).stat().st_size > 5000


def test_a_part_that_fails_or_takes_too_long_is_a_row_and_keeps_what_it_found(tmp_path):
    (tmp_path / "scratch" / "city").mkdir(parents=True)
    (tmp_path / "scratch" / "city" / "mine.txt").touch()  # not a city: make_city.py refuses the folder
    done = run(tmp_path, "--parts", "data", "search")
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert done.returncode == 0 and "code" in found["data"]["failed"] and not found["search"]["failed"]
    assert "| **data** | ended with code" in done.stdout
    run(tmp_path, "--parts", "step", "--minutes", "0.15")  # 3 s
    step = json.loads((tmp_path / "gpu.json").read_text())["step"]
    assert step["failed"] == "ended after its 3 s"
