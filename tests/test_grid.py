"""Grids of runs, and the ablation that is one."""

import csv

import pytest
from test_tables import call, folder  # noqa: F401
from test_tables import options as parsed

from scripts import run_grid

# Stands for train.py: notes its call, fails for --op broken, else leaves metrics that follow from the flags.
STUB = """
import json, pathlib, sys
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
with open(pathlib.Path(__file__).with_name("calls"), "a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
if flags["--op"] == "broken":
    sys.exit("train.py: --op broken is not known")
value = 10 * int(flags["--seed"]) + (50 if flags["--op"] == "sam" else 20)
out = pathlib.Path(flags["--save_path"])
(out / "checkpoint.pth.tar").write_text("large")
(out / "metrics.json").write_text(json.dumps({"R@1": value, "R@5": 90.0, "epoch": 3, "dataset": "cvusa"}))
"""


@pytest.fixture
def stub(tmp_path, monkeypatch):
    path = tmp_path / "train.py"
    path.write_text(STUB)
    monkeypatch.setattr(run_grid, "TRAIN", path)
    return lambda: (tmp_path / "calls").read_text().splitlines()


def flags(out, *more, variants=("base=--op adamw", "other=--op sam")):
    named = [text for variant in variants for text in ("--variant", variant)]
    return ["--out", str(out), "--data", "City A=--dataset cvusa", *named, "--common", "--op none", *more]


def test_a_grid_trains_all_once_and_sets_means_side_by_side(stub, tmp_path, capsys):
    run_grid.main(flags(tmp_path / "out", "--seeds", "0", "1", "2", "--jobs", "2"))
    assert len(stub()) == 6
    table = (tmp_path / "out" / "grid.md").read_text()
    assert "| base | 30.0 ± 10.0 | 90.0 ± 0.0 |" in table and "| other | 60.0 ± 10.0 |" in table
    with open(tmp_path / "out" / "grid.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["R@1"] for row in rows if row["variant"] == "base"] == ["20", "30", "40"]
    assert (tmp_path / "out" / "grid.png").stat().st_size > 1000 and (tmp_path / "out" / "grid.pdf").is_file()
    assert not list((tmp_path / "out").rglob("checkpoint.pth.tar"))

    run_grid.main(flags(tmp_path / "out", "--seeds", "0", "1", "2", "3", "--name", "more"))
    assert len(stub()) == 8  # the fourth seed only
    run_grid.main(flags(tmp_path / "out", "--seeds", "0", variants=("base=--op sam",)))
    assert len(stub()) == 9  # other flags under the same name are trained anew


def test_a_run_that_fails_is_named(stub, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run_grid.main(flags(tmp_path / "out", "--seeds", "4", variants=("base=--op broken",)))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "City A, base, seed 4 ended with code 1: train.py: --op broken is not known" in error


@pytest.mark.parametrize(
    ("more", "variants", "words"),
    [
        ([], ["base"], "'base' is not NAME=FLAGS"),
        ([], ["FRM +=", "FRM -=--pool gap"], "two runs would share"),
        (["--seeds", "1", "1"], ["base="], "two runs would share"),
        (["--common", "'open"], ["base="], "cannot be read as flags"),
        (["--out", "/proc/nowhere"], ["base="], "/proc/nowhere"),
    ],
)
def test_mistakes_are_told(tmp_path, capsys, more, variants, words):
    with pytest.raises(SystemExit) as stop:
        run_grid.main(flags(tmp_path, *more, variants=variants))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and words in error and error.count("\n") == 1


@pytest.mark.parametrize("more", [(), ("--full",)])
def test_the_ablation_compares_at_equal_numbers_of_gradients(folder, more):  # noqa: F811
    done, calls = call(folder, "ablation_city", *more)
    assert done.returncode == 0, done.stderr
    grids = [run_grid.parse(words[1:]) for words in calls if words[0] == "scripts/run_grid.py"]
    assert [grid.name for grid in grids] == ["geometry", "parts", "claims"]
    claims = [parsed(["train.py", *run.flags]) for run in run_grid.grid(grids[-1])]
    assert len(claims) == 3 * 3 * (5 if more else 6)
    gradients = {o["epochs"] * (2 if o["op"] == "sam" else 1) for o in claims}
    assert len(gradients) == 1
    assert {(o["dataset"], o["cross"]) for o in claims} == {("cvusa", False), ("vigor", False), ("vigor", True)}
    (turned,) = {run.variant for run in run_grid.grid(grids[0])} - {run.variant for run in run_grid.grid(grids[-1])}
    assert "turned at random" in turned


@pytest.mark.parametrize("more", [(), ("--full",)])
def test_what_goes_beyond_the_paper_costs_the_same(folder, more):  # noqa: F811
    done, calls = call(folder, "beyond", *more)
    assert done.returncode == 0, done.stderr
    (grid,) = [run_grid.parse(words[1:]) for words in calls if words[0] == "scripts/run_grid.py"]
    runs = run_grid.grid(grid)
    assert len(runs) == 3 * len(grid.variant) >= 30
    rows = {run.variant: parsed(["train.py", *run.flags]) for run in runs}
    base = rows.pop(runs[0].variant)
    assert all(row["cross"] and row["mining"] for row in rows.values())
    flags = ["label_smoothing", "learn_temperature", "augment", "colour_jitter", "patch_dropout", "coordinate_mining"]
    for flag in [*flags, "ema", "tuple_size", "arch", "vigor_guard", "regions"]:
        assert not base[flag] or flag in ("arch", "tuple_size", "vigor_guard")
        assert sum(row[flag] != base[flag] for row in rows.values()) == 1
    fewer = {"resnet10t": 4, "convnext_small": 2}
    assert all(row["epochs"] == base["epochs"] // fewer.get(row["arch"], 1) for row in rows.values())
    done, calls = call(folder, "ablation_city", *more)
    claims = [run_grid.parse(words[1:]) for words in calls if words[0] == "scripts/run_grid.py"]
    assert grid.data[0] in claims[-1].data and grid.out not in {claim.out for claim in claims}
