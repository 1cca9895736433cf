"""The shell scripts: the commands of their rows, grids and quickstart, and one table made on a small city."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from test_commands import EVALUATE, TRAIN

from scripts import report, run_grid
from utils.options import parse_args
from utils.paper import PUBLISHED_METRICS, TRANSGEO_ARCH

REPO = Path(__file__).parent.parent

# A python3 that notes how the scripts are called, and leaves weights as a training does.
STUB = """\
#!/bin/bash
[ "$1" != - ] || exit 0
[ "$1" != -u ] || shift
{ printf '%q ' "$@"; echo; } >> calls
while [ $# -gt 0 ]; do [ "$1" != --save_path ] || out=$2; shift; done
[ -z "$out" ] || { mkdir -p "$out" && touch "$out/model_best.pth.tar"; }
"""


@pytest.fixture
def folder(tmp_path):
    """The repository under another path, so that what scripts write stays apart."""
    for path in REPO.iterdir():
        if path.name not in ("data", "runs", ".git") and not path.name.startswith("result_"):
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").write_text(STUB)
    (tmp_path / "bin" / "python3").chmod(0o755)
    return tmp_path


def call(folder, script, *flags, python=None, **env):
    """Run a script with the stub, or with the `python` in a folder. Returns the process and the calls of the stub."""
    log = folder / "calls"
    log.write_text("")
    env = {**os.environ, "PATH": f"{python or folder / 'bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", **env}
    command = ["bash", str(folder / "scripts" / f"{script}.sh"), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=env)
    return done, [shlex.split(line) for line in log.read_text().splitlines()]


def called(folder, script, *flags, **env):
    """The calls of a script that succeeds."""
    done, calls = call(folder, script, *flags, **env)
    assert done.returncode == 0, done.stderr
    return calls


def options(words):
    """The options of a call of train.py."""
    options = vars(parse_args([*words, "--data-root", "d"]))
    return {name: value for name, value in options.items() if name != "given"}


def trainings(calls):
    """The options of the calls of train.py."""
    return [options(words) for tool, *words in calls if tool == "train.py"]


def grids(calls):
    """The grids that are trained."""
    return [run_grid.parse(words) for tool, *words in calls if tool == "scripts/run_grid.py"]


def published(command, **added):
    """The options of a README command, with what the scripts add."""
    return options(shlex.split(command)) | added


@pytest.mark.parametrize(
    ("script", "names"),
    [("table1_cvusa", ["cvusa"]), ("table2_cvact", ["cvact"]), ("table3_vigor", ["vigor", "vigor_cross"])],
)
def test_rows_are_the_readmes_commands(folder, script, names):
    calls = called(folder, script)
    found = {(c["save_path"].name, c["evaluate"]): c for c in trainings(calls)}
    for name in names:
        out = f"result_{name}"
        assert found[out, False] == published(
            TRAIN[name], tuple_size=8 if "vigor" in name else 16, checkpoint_minutes=15.0
        )
        assert found[out, True] == published(EVALUATE[name], weights=Path(out) / "model_best.pth.tar")
    deit = {(row["arch"], row["dim"]) for (out, _), row in found.items() if out.endswith("_deit")}
    assert deit == (set() if script == "table3_vigor" else {(TRANSGEO_ARCH, 1536)})
    if script == "table2_cvact":
        assert found["result_cvact_test", True]["eval_split"] == "test"
        assert str(found["result_cvact_test_deit", True]["weights"]) == "result_cvact_deit/model_best.pth.tar"
    assert calls[-1][0] == "scripts/report.py"
    assert {report.source(text)[0] for text in calls[-1][1:]} <= PUBLISHED_METRICS.keys()


def test_released_weights_are_evaluated_alone_and_rows_can_be_chosen(folder):
    done, calls = call(folder, "table2_cvact", EVAL="1")
    assert done.returncode == 2 and not calls
    assert done.stderr == "table2_cvact.sh: nothing was evaluated; put weights into ./result_<row>, or omit EVAL\n"
    (folder / "result_cvact").mkdir()
    (folder / "result_cvact" / "checkpoint.pth.tar").touch()
    done, calls = call(folder, "table2_cvact", "--data-root", "DIR", EVAL="1", ROWS="frgeo deit frgeo_test")
    assert done.returncode == 0 and "./result_cvact_deit holds no weights; cvact_deit is omitted" in done.stdout
    *calls, last = calls
    assert [vars(parse_args(c[1:]))["save_path"].name for c in calls] == ["result_cvact", "result_cvact_test"]
    assert all("-e" in c and "--resume" not in c and c[-2:] == ["--data-root", "DIR"] for c in calls)
    assert last == ["scripts/report.py", "cvact=./result_cvact", "cvact_test=./result_cvact_test"]
    done, calls = call(folder, "table2_cvact", ROWS="frgo")
    assert done.returncode == 2 and not calls
    assert done.stderr.startswith("table2_cvact.sh: ROWS: there is no row frgo; expected some of: frgeo deit")


def test_an_interrupted_row_is_resumed(folder):
    (folder / "result_cvusa").mkdir()
    (folder / "result_cvusa" / "checkpoint.pth.tar").touch()
    first, *_ = trainings(called(folder, "table1_cvusa", ROWS="frgeo"))
    assert str(first["resume"]) == "result_cvusa/checkpoint.pth.tar"


def test_transfer_and_fields_of_view_cover_their_tables(folder):
    found = trainings(called(folder, "transfer", CITIES="NewYork Chicago"))
    evaluated = {c["save_path"].name: (c["weights"].parent.name, c["vigor_cities"]) for c in found if c["evaluate"]}
    assert evaluated["result_cvusa_on_cvact"] == ("result_cvusa", None)
    assert evaluated["result_vigor_NewYork_on_Chicago"] == ("result_vigor_NewYork", ["Chicago"])
    assert len(evaluated) == 2 + 4 and len(found) == len(evaluated) + 4
    found = trainings(called(folder, "fov"))
    for way in (True, False):
        shown = {(c["fov"], c["orientation"]) for c in found if c["evaluate"] == way}
        assert shown == {(fov, o) for fov in (70, 90, 180, 360) for o in ("aligned", "unknown")}
    assert all((c["ground_size"] == [128, 768]) == (c["fov"] == 70) for c in found)


def test_a_table_is_made_on_a_small_city(folder):
    """SMOKE=1: makes a city, trains, evaluates, prints the table."""
    done, _ = call(folder, "table1_cvusa", python=Path(sys.executable).parent, SMOKE="1", ROWS="frgeo")
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((folder / "runs/smoke_table1_cvusa/result_cvusa/metrics.json").read_text())
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("| cvusa val | CVUSA ")]
    assert f"{record['R@5']:.2f} (99.25, {record['R@5'] - 99.25:+.2f})" in line


@pytest.mark.parametrize("given", [["--save_path", "runs/gap"], ["--pool", "gap", "--save-path=runs/gap"], []])
def test_the_quickstart_evaluates_what_it_has_trained(folder, given):
    done, calls = call(folder, "quickstart", *given)
    assert done.returncode == 0, done.stderr
    out = "runs/gap" if given else "runs/quickstart"
    trained, evaluated = trainings(calls)
    assert trained["save_path"] == evaluated["save_path"] == Path(out) and evaluated["evaluate"]
    assert [c[1:] for c in calls[-2:]] == [[out], [f"this run={out}"]]
    assert f"{out}/retrieval.png" in done.stdout


def test_an_environment_that_lacks_a_package_is_not_used(folder):
    """setup.sh, with this interpreter and requirements that it meets and does not meet."""
    source = f'source scripts/setup.sh /dev/null; requirements={folder}/wanted.txt; satisfied "{sys.executable}"'
    (folder / "other.txt").write_text("# a comment\n\nnumpy>=99  # too new\n")
    for requirement in ("numpy>=1.26", "numpy>=99", "no-such-package", "-r other.txt"):
        (folder / "wanted.txt").write_text(f"{requirement}\n")
        answer = subprocess.run(["bash", "-c", source], cwd=folder).returncode
        assert (answer == 0) == (requirement == "numpy>=1.26")


@pytest.mark.parametrize("more", [(), ("--full",)])
def test_the_ablation_compares_at_equal_numbers_of_gradients(folder, more):
    found = grids(called(folder, "ablation_city", *more))
    assert [grid.name for grid in found] == ["geometry", "parts", "claims"]
    claims = [options(run.flags) for run in run_grid.grid(found[-1])]
    assert len(claims) == 3 * 3 * (5 if more else 6)
    assert len({o["epochs"] * (2 if o["op"] == "sam" else 1) for o in claims}) == 1
    assert {(o["dataset"], o["cross"]) for o in claims} == {("cvusa", False), ("vigor", False), ("vigor", True)}
    (turned,) = {run.variant for run in run_grid.grid(found[0])} - {run.variant for run in run_grid.grid(found[-1])}
    assert "turned at random" in turned


@pytest.mark.parametrize("more", [(), ("--full",)])
def test_what_goes_beyond_the_paper_costs_the_same(folder, more):
    (grid,) = grids(called(folder, "beyond", *more))
    runs = run_grid.grid(grid)
    assert len(runs) == 3 * len(grid.variant) >= 30
    rows = {run.variant: options(run.flags) for run in runs}
    base = rows.pop(runs[0].variant)
    assert all(row["cross"] and row["mining"] for row in rows.values())
    flags = ["label_smoothing", "learn_temperature", "augment", "colour_jitter", "patch_dropout", "coordinate_mining"]
    for flag in [*flags, "ema", "tuple_size", "arch", "vigor_guard", "regions"]:
        assert not base[flag] or flag in ("arch", "tuple_size", "vigor_guard")
        assert sum(row[flag] != base[flag] for row in rows.values()) == 1
    fewer = {"resnet10t": 4, "convnext_small": 2}
    assert all(row["epochs"] == base["epochs"] // fewer.get(row["arch"], 1) for row in rows.values())
    claims = grids(called(folder, "ablation_city", *more))
    assert grid.data[0] in claims[-1].data and grid.out not in {claim.out for claim in claims}
