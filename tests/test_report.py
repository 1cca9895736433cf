"""Results gathered into one table."""

import json

import numpy as np
import pytest

from scripts import report
from utils.paper import PUBLISHED_METRICS, TRANSGEO_ARCH


def write_result(folder, seed=None, dataset="cvusa", split="val", weights="checkpoint.pth.tar", epoch=5, **more):
    """A run's metrics.json and, with a seed, its args.json; returns the metrics."""
    folder.mkdir(parents=True)
    options = {key: more.pop(key) for key in ("arch", "pool", "lr", "data_root") if key in more}
    metrics = {"R@1": 50.0, "R@5": 70.0, "R@10": 80.0, "R@1%": 90.0, **more}
    record = {"dataset": dataset, "split": split, "queries": 20, "gallery": 30, "missing_pairs": 0}
    record |= {"weights": str(folder / weights), "epoch": epoch}
    (folder / "metrics.json").write_text(json.dumps(record | metrics))
    if seed is not None:
        options = {"arch": "convnext_tiny", "pool": "frm", "lr": 1e-4, "cross": False, **options}
        options |= {"seed": seed, "save_path": str(folder), "workers": seed}
        (folder / "args.json").write_text(json.dumps(options))
    return metrics


def rows(text):
    """The table's rows as dicts."""
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def table(capsys, *arguments):
    report.main([str(argument) for argument in arguments])
    return rows(capsys.readouterr().out)


def test_means_and_spreads_over_seeds_are_those_of_plain_computation(tmp_path, capsys):
    values = [91.37, 88.02, 90.55, 86.01]
    for seed, value in enumerate(values):
        write_result(tmp_path / f"seed-{seed}", seed, **{"R@1": value})
    published, found = table(capsys, *(tmp_path / f"seed-{seed}" for seed in range(4)))
    assert found["R@1"] == f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"
    assert found["R@5"] == "70.00 ± 0.00"
    assert found["seeds"] == "0, 1, 2, 3" and found["queries / gallery"] == "20 / 30"
    assert published["run"] == "published"
    assert {m: float(published[m]) for m in PUBLISHED_METRICS["cvusa"]} == PUBLISHED_METRICS["cvusa"]


def test_rows_differ_by_flags_and_name_them(tmp_path, capsys):
    for pool in ("frm", "gap"):
        for seed in (0, 1):
            write_result(
                tmp_path / pool / str(seed), seed, pool=pool, **{"R@1": {"frm": 60.0, "gap": 40.0}[pool] + seed}
            )
    _, frm, gap = table(capsys, tmp_path)
    assert (frm["R@1"], gap["R@1"]) == ("60.50 ± 0.71", "40.50 ± 0.71")
    assert (frm["run"], gap["run"]) == ("convnext_tiny `--pool frm`", "convnext_tiny `--pool gap`")


def test_best_epochs_of_seeds_share_a_row_and_last_ones_do_not_join_it(tmp_path, capsys):
    for seed in (0, 1):
        write_result(tmp_path / f"best-{seed}", seed, weights="model_best.pth.tar", epoch=3 + seed)
        write_result(tmp_path / f"last-{seed}", seed, epoch=5)
    write_result(tmp_path / "unfinished", 2, epoch=2)
    _, best, last, unfinished = table(capsys, tmp_path)
    assert (best["seeds"], last["seeds"], unfinished["seeds"]) == ("0, 1", "0, 1", "2")
    assert best["run"].endswith("best epoch") and last["run"].endswith("epoch 5")


def test_limited_views_and_unknown_north_have_rows_of_their_own(tmp_path, capsys):
    write_result(tmp_path / "plain", 0, fov=360, orientation="aligned")
    write_result(tmp_path / "turned", 0, orientation="unknown")
    write_result(tmp_path / "searched", 0, orientation="unknown", search_north=16)
    write_result(tmp_path / "narrow", 0, fov=90)
    found = table(capsys, *(tmp_path / name for name in ("plain", "turned", "searched", "narrow")))
    assert [row["run"].removeprefix("convnext_tiny").strip() for row in found] == [
        "published", "", "unknown north", "unknown north, 16 directions tried", "90 degrees",
    ]  # fmt: skip


def test_protocols_stand_beside_their_published_numbers(tmp_path, capsys):
    write_result(tmp_path / "vigor", 0, "vigor", "test", **{"Hit": 33.3, "Hit (top-1 covers)": 44.4})
    write_result(tmp_path / "cross", 0, "vigor_cross", "test", **{"Hit": 22.2})
    write_result(tmp_path / "own", 0, "pairs", "val")
    write_result(tmp_path / "act", 0, "cvact", "test")
    found = table(capsys, *(tmp_path / name for name in ("vigor", "cross", "own", "act")))
    assert [(row["data set"], row["run"] == "published") for row in found] == [
        ("vigor test", True), ("vigor test", False), ("vigor_cross test", True), ("vigor_cross test", False),
        ("pairs val", False), ("cvact test", True), ("cvact test", False),
    ]  # fmt: skip
    assert (found[0]["Hit"], found[1]["Hit"], found[1]["Hit (top-1 covers)"]) == ("82.41", "33.30", "44.40")
    assert found[2]["Hit"] == "40.66" and found[4]["Hit"] == "" and found[5]["R@1"] == "72.15"


def test_the_deit_rows_have_published_numbers_of_their_own(tmp_path, capsys):
    write_result(tmp_path / "deit", 0, arch=TRANSGEO_ARCH)
    write_result(tmp_path / "frgeo", 0)
    own, frgeo, *_ = table(capsys, tmp_path / "deit", tmp_path / "frgeo")
    assert (own["run"], own["R@1"]) == ("published, DeiT-S/16", "95.52")
    assert (frgeo["run"], frgeo["R@1"]) == ("published", "97.06")


def test_folders_are_searched_each_file_once_and_earlier_runs_left_out(tmp_path, capsys):
    write_result(tmp_path / "a" / "run", 0)
    write_result(tmp_path / "a" / "run" / "previous-1", 1)
    write_result(tmp_path / "b")
    out = tmp_path / "reports" / "table.md"
    report.main([str(p) for p in (tmp_path, tmp_path / "a" / "run" / "metrics.json", "--out", out)])
    printed = capsys.readouterr().out
    _, run, bare = rows(printed)
    assert out.read_text() == printed
    assert run["seeds"] == "0" and bare["seeds"] == "1 run"
    assert "No args.json" in printed and str(tmp_path / "b") in printed


def test_missing_pairs_are_told(tmp_path, capsys):
    write_result(tmp_path / "run", 0, missing_pairs=7)
    report.main([str(tmp_path / "run")])
    assert "7 pairs were missing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "words"), [(None, "is not there"), ("", "holds no metrics.json"), ("{}", "holds no evaluation"),
                           ("{", "cannot be read")]
)  # fmt: skip
def test_mistakes_end_with_code_2(tmp_path, capsys, content, words):
    folder = tmp_path / "run"
    if content is not None:
        folder.mkdir()
    if content:
        (folder / "metrics.json").write_text(content)
    with pytest.raises(SystemExit) as stop:
        report.main([str(folder)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and words in error and len(error.strip().splitlines()) == 1
