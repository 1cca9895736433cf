"""The scripts of the paper's tables: their commands, and one of them run whole on a small city."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from test_commands import EVALUATE, TRAIN
from test_report import write_result

from scripts import compare
from utils.options import parse_args
from utils.paper import PUBLISHED_METRICS, TRANSGEO_ARCH

REPO = Path(__file__).parent.parent

# A python3 that notes how train.py and compare.py are called, and leaves weights as a training does.
STUB = """\
#!/bin/bash
[ "$1" != scripts/check_environment.py ] || exit 0
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
    return tmp_path


def call(folder, script, *flags, stub=True, **env):
    path = os.environ["PATH"]
    if stub:
        (folder / "bin").mkdir(exist_ok=True)
        (folder / "bin" / "python3").write_text(STUB)
        (folder / "bin" / "python3").chmod(0o755)
        path = f"{folder / 'bin'}:{path}"
    else:
        path = f"{Path(sys.executable).parent}:{path}"
    (folder / "calls").unlink(missing_ok=True)
    done = subprocess.run(
        ["bash", str(folder / "scripts" / f"{script}.sh"), *flags], capture_output=True, text=True, timeout=600,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **env},
    )  # fmt: skip
    calls = (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []
    return done, [shlex.split(line) for line in calls]


def options(call):
    return vars(parse_args([*call[1:], "--data-root", "d"]))


def published(command, tuple_size=None, weights=None):
    """The options of a README command, with what the scripts add."""
    expected = options(["train.py", *shlex.split(command)])
    return expected | {"tuple_size": tuple_size, "weights": weights}


@pytest.mark.parametrize(
    ("script", "names"),
    [("table1_cvusa", ["cvusa"]), ("table2_cvact", ["cvact"]), ("table3_vigor", ["vigor", "vigor_cross"])],
)
def test_rows_are_the_readmes_commands(folder, script, names):
    done, calls = call(folder, script)
    assert done.returncode == 0, done.stderr
    found = {(c["save_path"].name, c["evaluate"]): c for c in (options(c) for c in calls if c[0] == "train.py")}
    for name in names:
        out = f"result_{name}"
        assert found[out, False] == published(TRAIN[name], 8 if "vigor" in name else 16)
        assert found[out, True] == published(EVALUATE[name], weights=Path(out) / "model_best.pth.tar")
    deit = [key for key in found if key[0].endswith("_deit")]
    assert bool(deit) == (script != "table3_vigor")
    for key in deit:
        assert (found[key]["arch"], found[key]["dim"]) == (TRANSGEO_ARCH, 1536)
    if script == "table2_cvact":
        assert found["result_cvact_test", True]["eval_split"] == "test"
        assert str(found["result_cvact_test_deit", True]["weights"]) == "result_cvact_deit/model_best.pth.tar"
    assert calls[-1][0] == "scripts/compare.py"
    assert {text.split("=")[0] for text in calls[-1][1:]} <= PUBLISHED_METRICS.keys()


def test_released_weights_are_evaluated_alone_and_rows_can_be_chosen(folder):
    done, calls = call(folder, "table2_cvact", EVAL="1")
    assert done.returncode == 2 and not calls
    assert done.stderr == "table2_cvact.sh: nothing was evaluated; put weights into ./result_<row>, or leave EVAL out\n"
    (folder / "result_cvact").mkdir()
    (folder / "result_cvact" / "checkpoint.pth.tar").touch()
    done, calls = call(folder, "table2_cvact", "--data-root", "DIR", EVAL="1", ROWS="frgeo deit frgeo_test")
    assert done.returncode == 0 and "./result_cvact_deit holds no weights: cvact_deit is left out" in done.stdout
    *calls, last = calls
    assert [vars(parse_args(c[1:]))["save_path"].name for c in calls] == ["result_cvact", "result_cvact_test"]
    assert all("-e" in c and "--resume" not in c and c[-2:] == ["--data-root", "DIR"] for c in calls)
    assert last == ["scripts/compare.py", "cvact=./result_cvact", "cvact_test=./result_cvact_test"]
    done, calls = call(folder, "table2_cvact", ROWS="frgo")
    assert done.returncode == 2 and not calls
    assert done.stderr.startswith("table2_cvact.sh: ROWS: there is no row frgo; expected some of: frgeo deit")


def test_an_interrupted_row_goes_on(folder):
    (folder / "result_cvusa").mkdir()
    (folder / "result_cvusa" / "checkpoint.pth.tar").touch()
    _, calls = call(folder, "table1_cvusa", ROWS="frgeo")
    assert str(options(calls[0])["resume"]) == "result_cvusa/checkpoint.pth.tar"


def test_transfer_and_fields_of_view_cover_their_tables(folder):
    done, calls = call(folder, "transfer", CITIES="NewYork Chicago")
    assert done.returncode == 0, done.stderr
    found = [options(c) for c in calls if c[0] == "train.py"]
    evaluated = {c["save_path"].name: (c["weights"].parent.name, c["vigor_cities"]) for c in found if c["evaluate"]}
    assert evaluated["result_cvusa_on_cvact"] == ("result_cvusa", None)
    assert evaluated["result_vigor_NewYork_on_Chicago"] == ("result_vigor_NewYork", ["Chicago"])
    assert len(evaluated) == 2 + 4 and len(found) == len(evaluated) + 4
    done, calls = call(folder, "fov")
    found = [options(c) for c in calls if c[0] == "train.py"]
    for way in (True, False):
        shown = {(c["fov"], c["orientation"]) for c in found if c["evaluate"] == way}
        assert shown == {(fov, o) for fov in (70, 90, 180, 360) for o in ("aligned", "unknown")}
    assert all((c["ground_size"] == [128, 768]) == (c["fov"] == 70) for c in found)


def test_a_table_is_made_whole_on_a_small_city(folder):
    """SMOKE=1: trains, evaluates both splits, compares."""
    done, _ = call(folder, "table2_cvact", stub=False, SMOKE="1", ROWS="frgeo frgeo_test")
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((folder / "runs/smoke_table2_cvact/result_cvact_test/metrics.json").read_text())
    assert record["split"] == "test" and record["R@1 (5 m)"] >= record["R@1"]
    lines = [line for line in done.stdout.splitlines() if line.startswith("| CVACT")]
    assert [line.split("|")[1].strip() for line in lines] == [
        "CVACT_val", "CVACT_test", "CVACT_test, any tile within 5 m",
    ]  # fmt: skip
    assert f"{record['R@5']:.2f} (91.93, {record['R@5'] - 91.93:+.2f})" in lines[1]


def test_differences_from_the_published_numbers(tmp_path, capsys):
    write_result(tmp_path / "a", 0, "vigor", "test", **{"R@1": 71.5, "Hit": 80.0}, missing_pairs=3)
    write_result(tmp_path / "b")
    compare.main([f"vigor={tmp_path / 'a'}", f"my run={tmp_path / 'b' / 'metrics.json'}"])
    head, _, a, b, *rest = capsys.readouterr().out.splitlines()
    assert head == "|  | queries / gallery | R@1 | R@5 | R@10 | R@1% | Hit |"
    assert a.startswith("| VIGOR same-area | 20 / 30 | 71.50 (71.26, +0.24) | 70.00 (91.38, -21.38) |")
    assert a.endswith("| 80.00 (82.41, -2.41) |")
    assert b == "| my run | 20 / 30 | 50.00 | 70.00 | 80.00 | 90.00 |  |"
    assert "VIGOR same-area: 3 pairs were missing and are not counted." in rest


@pytest.mark.parametrize(("argument", "words"), [("cvusa", "is not NAME=RESULT"), ("cvusa=none", "cannot be read")])
def test_mistakes_end_with_code_2(capsys, argument, words):
    with pytest.raises(SystemExit) as stop:
        compare.main([argument])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert words in error and len(error.strip().splitlines()) == 1


@pytest.mark.parametrize("given", [["--save_path", "runs/gap"], ["--pool", "gap", "--save-path=runs/gap"], []])
def test_the_quickstart_evaluates_what_it_has_trained(folder, given):
    done, calls = call(folder, "quickstart", *given)
    assert done.returncode == 0, done.stderr
    out = "runs/gap" if given else "runs/quickstart"
    trained, evaluated = (options(c) for c in calls if c[0] == "train.py")
    assert trained["save_path"] == evaluated["save_path"] == Path(out) and evaluated["evaluate"]
    assert all(out in c for c in calls if c[0] in ("scripts/plot_retrieval.py", "scripts/show_metrics.py"))
    assert f"{out}/retrieval.png" in done.stdout
