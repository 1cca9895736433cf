"""The command-line tools: help, tables of results, grids, complexity, figures, and mistakes told in one sentence."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import make_data
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba
from matplotlib.image import imread
from torch import nn

import train
from dataset import VIGOR
from model import FeatureRecombination, FRGeo
from model.frgeo import Encoder
from scripts import arrange_pairs, common, complexity, report, run_grid

# isort: split
from scripts import plot_heatmap, plot_overview, plot_retrieval, plot_training, plot_tsne
from utils.options import options_of
from utils.paper import INPUT_SIZES, PUBLISHED_METRICS, TRANSGEO_ARCH

REPO = Path(__file__).parent.parent
TOOLS = sorted(path for path in (REPO / "scripts").glob("*.py") if path.name != "common.py")
GROUND, AERIAL = (32, 128), (64, 64)


def written(stem):
    """The picture of a figure that is there as PNG and PDF, (H, W, channels)."""
    assert stem.with_name(stem.name + ".pdf").read_bytes().startswith(b"%PDF")
    return imread(stem.with_name(stem.name + ".png"))


# All tools.


def test_every_tool_answers_h_from_any_folder(tmp_path):
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def call(path):
        return subprocess.run([sys.executable, path, "-h"], capture_output=True, text=True, cwd=tmp_path, env=env)

    with ThreadPoolExecutor(2) as pool:
        for path, done in zip(TOOLS, pool.map(call, TOOLS), strict=True):
            assert done.returncode == 0, done.stderr
            flags = re.findall(r'\badd(?:_argument)?\(\s*"(-[\w-]+)"', path.read_text())
            assert "usage:" in done.stdout and [flag for flag in flags if flag not in done.stdout] == []


def test_tools_share_one_module_and_import_none_of_each_other():
    for path in TOOLS:
        assert set(re.findall(r"(?:from|import) scripts(?: import |\.)(\w+)", path.read_text())) <= {"common"}, path


@pytest.mark.parametrize("runs", [1, 600])  # less and more than a pipe holds
def test_a_closed_pipe_is_no_mistake(tmp_path, runs):
    for n in range(runs):
        write_result(tmp_path / str(n), dataset=f"set {n} {'x' * 60}")
    command = [sys.executable, REPO / "scripts" / "report.py", tmp_path, "--out", tmp_path / "table.md"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode in (0, 141)  # all written, or cut off
    assert f"set {runs - 1} " in (tmp_path / "table.md").read_text()


def test_arranged_pairs_are_in_both_splits(tmp_path, capsys, refused):
    make_data.write_image(tmp_path / "a.PNG", (8, 8), 0)
    make_data.write_image(tmp_path / "b.jpg", (16, 8), 1)
    (tmp_path / "data.csv").write_text("a.PNG,b.jpg,more\n\n")
    arrange_pairs.main([str(tmp_path / "data.csv"), str(tmp_path / "out")])
    assert capsys.readouterr().out.startswith("1 pairs in")
    for split in ("train", "val"):
        line = (tmp_path / "out" / "splits" / f"{split}-19zl.csv").read_text()
        assert line == "bingmap/19/0000001.png,streetview/panos/0000001.jpg,\n"
    for content, words in (("a.PNG\n", "row 1 holds 'a.PNG'"), ("a.PNG,no.jpg\n", "no.jpg")):
        (tmp_path / "data.csv").write_text(content)
        assert words in refused(arrange_pairs.main, tmp_path / "data.csv", tmp_path / "new")
        shutil.rmtree(tmp_path / "new", ignore_errors=True)
    assert "is not an empty folder" in refused(arrange_pairs.main, tmp_path / "data.csv", tmp_path / "out")
    assert (tmp_path / "out" / "splits" / "train-19zl.csv").read_text() == line


# report.py


def write_result(folder, seed=None, dataset="cvusa", split="val", weights="checkpoint.pth.tar", epoch=5, **more):
    """A run's metrics.json and, with a seed, its args.json, in which "options" are."""
    folder.mkdir(parents=True)
    options = more.pop("options", {})
    record = {"dataset": dataset, "split": split, "queries": 20, "gallery": 200, "missing_pairs": 0, "epoch": epoch}
    record |= {"weights": str(folder / weights), "R@1": 50.0, "R@5": 70.0, "R@10": 80.0, "R@1%": 90.0}
    (folder / "metrics.json").write_text(json.dumps(record | more))
    if seed is not None:
        options = {"dataset": "cvusa", "arch": "convnext_tiny", "pool": "frm", "lr": 1e-4} | options
        (folder / "args.json").write_text(json.dumps(options | {"seed": seed, "save_path": str(folder)}))
    return folder


@pytest.fixture
def table(capsys):
    """table(*arguments): the table's rows as dicts, without those of chance, and the remarks below it."""

    def rows_and_remarks(*arguments):
        report.main([str(argument) for argument in arguments])
        text, remarks = capsys.readouterr().out.split("\n\n")
        cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
        rows = [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]
        return [row for row in rows if row["run"] != "chance"], remarks

    return rows_and_remarks


def test_means_and_spreads_over_seeds_are_those_of_plain_computation(tmp_path, table):
    values = [91.37, 88.02, 90.55, 86.01]
    folders = [write_result(tmp_path / str(seed), seed, **{"R@1": value}) for seed, value in enumerate(values)]
    (published, found), _ = table(*folders)
    assert found["R@1"] == f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"
    assert found["R@5"] == "70.00 ± 0.00"
    assert found["seeds"] == "0, 1, 2, 3" and found["queries / gallery"] == "20 / 200"
    assert {m: float(published[m]) for m in PUBLISHED_METRICS["cvusa"]} == PUBLISHED_METRICS["cvusa"]


# Runs, whose seeds are 0, 1, ..., and the rows they make: {run: seeds}.
BEST = {"weights": "model_best.pth.tar"}
TUPLES = [{"tuple_size": 16}, {"tuple_size": 16, "effective_tuple": 16}, {"nprocs": 2, "effective_tuple": 16}]
OLDER = {"vigor_guard": "strict", "ema": 0.0, "augment": False, "regions": None}
ROWS = {
    "runs that differ in the machine, and one of today's options at defaults that change nothing": (
        [{"options": {name: f"{name} {n}" for name in options_of("machine")}} for n in (0, 1)] + [{"options": OLDER}],
        {"": "0, 1, 2"},
    ),
    "what is learned": (
        [{"options": {"pool": pool}} for pool in ("frm", "gap", "frm", "gap")],
        {"`--pool frm`": "0, 2", "`--pool gap`": "1, 3"},
    ),
    "the pairs that a loss saw, which older runs tell only where --tuple-size was passed": (
        [{"options": options} for options in [*TUPLES, {"effective_tuple": 32}, {}]],
        {"loss over 16 pairs": "0, 1, 2", "loss over 32 pairs": "3", "": "4"},
    ),
    "best epochs, last epochs and an unfinished run": (
        [BEST | {"epoch": 3}, BEST | {"epoch": 4}, {}, {}, {"epoch": 2}],
        {"best epoch": "0, 1", "epoch 5": "2, 3", "epoch 2": "4"},
    ),
    "limited views and unknown north": (
        [{"fov": 360, "orientation": "aligned"}, {"orientation": "unknown"}, {"fov": 90},
         {"orientation": "unknown", "search_north": 16}],
        {"": "0", "unknown north": "1", "90 degrees": "2", "unknown north, 16 directions tried": "3"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ROWS)
def test_runs_share_a_row_if_only_seed_and_machine_differ(tmp_path, table, kind):
    runs, expected = ROWS[kind]
    for seed, run in enumerate(runs):
        write_result(tmp_path / str(seed), seed, **run)
    (_, *found), _ = table(tmp_path)
    assert {row["run"].removeprefix("convnext_tiny").strip(" ,"): row["seeds"] for row in found} == expected


def test_data_sets_and_networks_have_their_published_numbers(tmp_path, table):
    write_result(tmp_path / "0", 0, "vigor", "test", **{"Hit": 33.3, "Hit (top-1 covers)": 44.4})
    write_result(tmp_path / "1", 0, "vigor_cross", "test", **{"Hit": 22.2})
    write_result(tmp_path / "2", 0, "pairs", "val")
    write_result(tmp_path / "3", 0, "cvusa", "val", options={"arch": TRANSGEO_ARCH})
    found, remarks = table(tmp_path)
    sets = ["vigor test"] * 2 + ["vigor_cross test"] * 2 + ["pairs val"] + ["cvusa val"] * 2
    assert [row["data set"] for row in found] == sets
    assert [n for n, row in enumerate(found) if row["run"].startswith("published")] == [0, 2, 5]
    assert (found[0]["Hit"], found[1]["Hit"], found[1]["Hit (top-1 covers)"]) == ("82.41", "33.30", "44.40")
    assert found[2]["Hit"] == "40.66" and found[4]["Hit"] == ""
    assert (found[5]["run"], found[5]["R@1"]) == ("published, DeiT-S/16", "95.52")
    assert "official test split of the real data set" in remarks


def test_named_rows_stand_beside_the_published_numbers(tmp_path, table):
    write_result(tmp_path / "a", 0, "vigor", "test", **{"R@1": 71.5, "Hit": 80.0}, missing_pairs=3)
    write_result(tmp_path / "b", **{"median error (m)": 4.25})
    (a, b), remarks = table(f"vigor={tmp_path / 'a'}", f"my run={tmp_path / 'b' / 'metrics.json'}")
    assert (a["run"], a["R@1"], a["R@5"]) == ("VIGOR same-area", "71.50 (71.26, +0.24)", "70.00 (91.38, -21.38)")
    assert a["Hit"] == "80.00 (82.41, -2.41)" and a["median error (m)"] == ""
    assert (b["run"], b["R@1"], b["Hit"], b["median error (m)"]) == ("my run", "50.00", "", "4.25")
    assert "VIGOR same-area: 3 pairs were missing and are not counted." in remarks


def test_any_tile_within_5_m_has_a_second_row(tmp_path, table):
    near = {"R@1 (5 m)": 55.0, "R@5 (5 m)": 75.0, "R@10 (5 m)": 85.0, "R@1% (5 m)": 95.0}
    write_result(tmp_path / "run", 0, "cvact", "test", **near, **{"within 100 m": 60.0})
    (exact, near), _ = table(f"cvact_test={tmp_path / 'run'}")
    assert (exact["run"], near["run"]) == ("CVACT_test", "CVACT_test, any tile within 5 m")
    assert (exact["R@5"], near["R@5"]) == ("70.00 (91.93, -21.93)", "75.00 (91.93, -16.93)")
    assert (exact["within 100 m"], near["within 100 m"]) == ("60.00", "")


def test_chance_is_what_a_random_ranking_reaches(tmp_path, capsys):
    write_result(tmp_path / "run", 0, "vigor", "test", **{"Hit": 33.3, "Hit (top-1 covers)": 44.4, "within 25 m": 1.0})
    report.main([str(tmp_path)])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "chance" in line]
    values = [cell.strip() for cell in line.split("|")[5:-1]]
    assert values == ["0.50", "2.50", "5.00", "1.00", f"{100 / 197:.2f}", "2.00", ""]  # Hit leaves 3 of 200 out
    assert report.chance("R@10", 5) == 100


def test_folders_are_searched_each_file_once_and_earlier_runs_left_out(tmp_path, table, capsys):
    write_result(tmp_path / "a" / "run", 0)
    write_result(tmp_path / "a" / "run" / "previous-1", 1)
    write_result(tmp_path / "b")
    out = tmp_path / "reports" / "table.md"
    report.main([str(p) for p in (tmp_path, tmp_path / "a" / "run" / "metrics.json", "--out", out)])
    printed = capsys.readouterr().out
    assert out.read_text() == printed
    assert f"No args.json, so the settings are unknown: {tmp_path / 'b' / 'metrics.json'}" in printed
    (_, run, bare), _ = table(tmp_path)
    assert run["seeds"] == "0" and bare["seeds"] == "1 run"
    (_, earlier), _ = table(tmp_path / "a" / "run" / "previous-1")
    assert earlier["seeds"] == "1"


BROKEN = {
    None: "does not exist", "": "holds no metrics.json", "{}": "holds no evaluation", "{": "cannot be read",
    '{"R@1": "x", "dataset": "cvusa", "split": "val"}': "measures that are not numbers",
}  # fmt: skip


@pytest.mark.parametrize("content", BROKEN)
def test_mistakes_with_results(tmp_path, refused, content):
    folder = tmp_path / "run"
    if content is not None:
        folder.mkdir()
    if content:
        (folder / "metrics.json").write_text(content)
    for given in (folder, f"cvusa={folder}"):
        assert BROKEN[content] in refused(report.main, given)


# complexity.py


def test_the_published_numbers_are_met():
    """FRGeo on CVUSA and VIGOR; two DeiT-S/16 with attention products (TransGeo's 12.3), and without (11.0)."""
    model = complexity.build("cvusa", "convnext_tiny")
    for dataset, gmacs in (("cvusa", "11.64"), ("vigor", "27.27")):
        model.ground_size, model.aerial_size = INPUT_SIZES[dataset]
        parameters, macs, attention = complexity.count(model)
        assert (f"{parameters / 1e6:.2f}", f"{macs / 1e9:.2f}", attention) == ("55.64", gmacs, 0)
        assert macs / 1e9 == pytest.approx(complexity.PUBLISHED_GMACS[dataset], rel=0.01)
        assert macs < 1e9 * float(complexity.cross_check(model)) < 1.01 * macs  # ptflops counts biases as well
    model = complexity.build("cvusa", TRANSGEO_ARCH)
    parameters, macs, attention = complexity.count(model)
    assert (f"{macs / 1e9:.2f}", f"{(macs - attention) / 1e9:.1f}") == ("12.33", "11.1")
    assert parameters / 1e6 == pytest.approx(44, rel=0.02)
    tokens, width, blocks = 8 * 32 + 2, 384, 12
    assert attention == 2 * blocks * 2 * tokens**2 * width  # two views, q k and then v
    assert macs < 1e9 * float(complexity.cross_check(model)) < 1.01 * macs


def test_multiply_adds_are_counted_by_hand():
    """A convolution of 3 x 3 on 8 x 8 and a linear layer in both encoders; a norm and GELU are left out."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(256, 5), nn.LayerNorm(5), nn.GELU())
    model = nn.Module()
    model.query_net, model.reference_net, model.ground_size, model.aerial_size = net, net, (8, 8), (8, 8)
    assert complexity.count(model)[1:] == (2 * (8 * 8 * 4 * 3 * 9 + 256 * 5), 0)


def test_complexity_table_and_plot(tmp_path, capsys, monkeypatch):
    counted = (("one", "test_convnext", 97.0, "red"), ("two", "test_vit", 95.0, "blue"))
    monkeypatch.setattr(complexity, "COUNTED", counted)
    monkeypatch.setitem(sys.modules, "ptflops", None)  # not installed
    flags = "--dataset cvusa vigor --arch test_convnext --ground-size 32 128 --aerial-size 64 64 --measure --runs 3"
    complexity.main([*flags.split(), "--plot", str(tmp_path / "new" / "bubbles.png")])
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("|")]
    first, second = (dict(zip(rows[0], row, strict=True)) for row in rows[2:])
    assert (first["data set"], second["data set"]) == ("cvusa", "vigor")
    assert (first["ground"], first["published"], first["ptflops"]) == ("32 x 128", "", "not installed")
    median, fastest, slowest = map(float, re.findall(r"[\d.]+", first["ms per pair (fastest to slowest)"]))
    assert 0 < fastest <= median <= slowest
    assert re.fullmatch(r"\d+ \+ \d+", first["weights + work (MiB)"])
    assert "torch.utils.flop_counter" in out and "ptflops" in out
    assert written(tmp_path / "new" / "bubbles").shape[1] > 800


def test_mistakes_with_complexity(refused):
    for flags, words in (
        ("--arch nothing", "has no network of this name"),
        ("--arch test_convnext --aerial-size 32 32", "cannot be cut into quadrants"),
        ("--runs 0", "not a whole number of at least 1"),
        ("--dataset pairs", "invalid choice"),
    ):
        assert words in refused(complexity.main, *flags.split())


# run_grid.py

# In place of train.py: notes its call, fails for --op broken, else leaves metrics that follow from the flags.
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
def calls(tmp_path, monkeypatch):
    """The calls of train.py so far."""
    path = tmp_path / "train.py"
    path.write_text(STUB)
    monkeypatch.setattr(run_grid, "TRAIN", path)
    return lambda: (tmp_path / "calls").read_text().splitlines()


def grid_flags(out, *more, variants=("base=--op adamw", "other=--op sam")):
    chosen = [text for variant in variants for text in ("--variant", variant)]
    return ["--out", str(out), "--data", "City A=--dataset cvusa", *chosen, "--common", "--op none", *more]


def test_a_grid_trains_all_once_and_compares_means(calls, tmp_path):
    out = tmp_path / "out"
    run_grid.main(grid_flags(out, "--seeds", "0", "1", "2", "--jobs", "2"))
    assert len(calls()) == 6
    text = (out / "grid.md").read_text()
    assert "| base | 30.0 ± 10.0 | 90.0 ± 0.0 |" in text and "| other | 60.0 ± 10.0 |" in text
    with open(out / "grid.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["R@1"] for row in rows if row["variant"] == "base"] == ["20", "30", "40"]
    written(out / "grid")
    assert not list(out.rglob("checkpoint.pth.tar"))

    run_grid.main(grid_flags(out, "--seeds", "0", "1", "2", "3", "--name", "more"))
    assert len(calls()) == 8  # the fourth seed only
    run_grid.main(grid_flags(out, "--seeds", "0", variants=("base=--op sam",)))
    assert len(calls()) == 9  # other flags under the same name are trained again


def test_mistakes_with_grids(calls, tmp_path, refused):
    failed = refused(run_grid.main, *grid_flags(tmp_path, "--seeds", "4", variants=("base=--op broken",)))
    assert "City A, base, seed 4 ended with code 1: train.py: --op broken is not known" in failed
    for more, variants, words in (
        ([], ["base"], "'base' is not NAME=VALUE"),
        ([], ["FRM +=", "FRM -=--pool gap"], "two runs would share"),
        (["--seeds", "1", "1"], ["base="], "two runs would share"),
        (["--common", "'open"], ["base="], '--common: invalid flags value: "\'open"'),
        (["--out", "/proc/nowhere"], ["base="], "/proc/nowhere"),
    ):
        assert words in refused(run_grid.main, *grid_flags(tmp_path, *more, variants=variants))


# Figures of runs.


@pytest.fixture(scope="module")
def runs(roots, tmp_path_factory):
    """Runs {name: path}: "cvusa" and "gap", trained and evaluated; "cvact" and "vigor", evaluated with cvusa's."""
    base = tmp_path_factory.mktemp("runs")
    recipe = ["--op", "adamw", "--lr", "0.001", "--batch-size", "8", "--epochs", "1"]
    for name, more in (("cvusa", ["--dim", "256"]), ("gap", ["--dim", "64", "--pool", "gap"])):
        flags = make_data.flags(roots["cvusa"], base / name, *more)
        train.main([*flags, *recipe])
        train.main([*flags, "-e"])
    for name in ("cvact", "vigor"):
        weights = ["-e", "--weights", str(base / "cvusa" / "model_best.pth.tar")]
        train.main(make_data.flags(roots[name], base / name, *weights, dataset=name))
    return {name: base / name for name in ("cvusa", "gap", "cvact", "vigor")}


def changed(run, folder, file, **options):
    """A copy of a run in `folder`, with other options in one of its JSON files."""
    shutil.copytree(run, folder)
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | options))
    return folder


def test_the_numbers_of_pairing_are_those_of_plain_computation():
    rng = np.random.default_rng(0)
    reference = common.unit(rng.normal(size=(9, 4)))
    labels = rng.integers(9, size=6)
    query = common.unit(reference[labels] + 0.4 * rng.normal(size=(6, 4)))
    ranks, ratio = plot_tsne.pairing(plot_tsne.Paired(query, reference, labels))
    distances = np.linalg.norm(query[:, None] - reference[None], axis=2)
    true = distances[np.arange(6), labels]
    np.testing.assert_array_equal(ranks, (distances < true[:, None] - 1e-12).sum(axis=1))
    assert ratio == pytest.approx(true.mean() / distances.mean())


def test_tsne_of_runs_and_of_files(runs, tmp_path, capsys):
    plot_tsne.main([str(runs["cvusa"]), str(runs["gap"]), "--names", "FRM", "GAP", "--out", str(tmp_path / "two")])
    out = capsys.readouterr().out
    assert "FRM: R@1" in out and "GAP: R@1" in out and f"drawn: {make_data.TEST} pairs" in out
    height, width, _ = written(tmp_path / "two").shape
    assert width > 1.5 * height
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(0).normal(size=(30, 5)))
    plot_tsne.main([str(tmp_path / "a.npy"), str(tmp_path / "b.npy"), "--pairs", "10"])
    assert "R@1 100.0 %, pair distance 0.000" in capsys.readouterr().out
    written(tmp_path / "tsne")


def test_tsne_of_vigor_takes_the_tile_that_covers(runs, roots):
    paired = plot_tsne.read_run(runs["vigor"], None)
    np.testing.assert_array_equal(paired.labels, VIGOR(roots["vigor"], "test").labels)
    assert len(paired.reference) == 4 * make_data.GRID**2
    chosen = plot_tsne.draw_pairs(paired, 5, seed=0)
    assert len(set(paired.labels[chosen])) == len(chosen) == 5


def test_mistakes_with_descriptors(runs, tmp_path, refused, monkeypatch):
    for name, rows in (("a", 3), ("b", 4)):
        np.save(tmp_path / f"{name}.npy", np.ones((rows, 5)))
    (tmp_path / "c.npy").write_text("no array")
    a, b, c = (tmp_path / f"{name}.npy" for name in "abc")
    assert "lacks args.json" in refused(plot_tsne.main, tmp_path)
    assert "exactly two .npy files" in refused(plot_tsne.main, a)
    assert "has shape (3, 5)" in refused(plot_tsne.main, a, b)
    assert "cannot be read" in refused(plot_tsne.main, a, c)
    assert "collapsed" in refused(plot_tsne.main, a, a)
    assert "--names gives" in refused(plot_tsne.main, runs["cvusa"], "--names", "a", "b")
    searched = changed(runs["cvusa"], tmp_path / "searched", "metrics.json", search_north=4)
    for main in (plot_tsne.main, plot_retrieval.main):
        assert "evaluated with --search-north" in refused(main, searched)
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)  # not installed
    assert "pip install scikit-learn" in refused(plot_tsne.main, runs["cvusa"])


def synthetic(regions=4):
    """Two encoders that average blocks of 32 x 32 pixels, with three channels."""
    blocks = nn.AvgPool2d(32)
    blocks.width, blocks.norm = 3, nn.LayerNorm(3, eps=1e-6)
    blocks.map_shape = lambda size: (3, size[0] // 32, size[1] // 32)
    model = nn.Module()
    model.query_net = Encoder(blocks, FeatureRecombination("ground", regions), (128, 512))
    model.reference_net = Encoder(blocks, FeatureRecombination("aerial", regions), (256, 256))
    return model


def test_heat_lies_where_both_views_agree():
    """A green sign in the panorama's north-west; one in the aerial image's north-west and one in its south-east."""
    pair = torch.zeros(1, 3, 128, 512), torch.zeros(1, 3, 256, 256)
    pair[0][0, 1, 32:64, 160:192] = 1  # cell (1, 5) of 4 x 16
    for row, column in ((2, 1), (6, 6)):  # of 8 x 8
        pair[1][0, 1, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32] = 1
    ground, aerial, _ = plot_heatmap.attend(synthetic(), *pair)
    assert ground.shape == (1, 4, 16) and aerial.shape == (1, 8, 8)
    assert (ground[0] > 1e-4).nonzero().tolist() == [[1, 5]]
    assert (aerial[0] > 1e-4).nonzero().tolist() == [[2, 1]]  # the panorama's south-east holds no sign
    over = plot_heatmap.enlarge(aerial[0], (256, 256))
    assert over.shape == (256, 256) and over.max() <= 1
    assert over[80, 48] > 0.9 and over[208, 208] < 1e-4
    _, aerial, similarity = plot_heatmap.attend(synthetic(regions=1), *pair)
    assert (aerial[0] > 1e-4).nonzero().tolist() == [[2, 1], [6, 6]]  # one average cannot tell the quadrants apart
    assert aerial[0, 2, 1] == pytest.approx(float(aerial[0, 6, 6]))
    assert similarity == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("pool", ["frm", "gap"])
def test_the_cells_of_a_real_network_add_up_to_the_similarity(pool):
    torch.manual_seed(0)
    model = FRGeo("cvusa", "test_convnext", pool=pool, ground_size=GROUND, aerial_size=AERIAL).eval()
    for encoder in (model.query_net, model.reference_net):
        nn.init.normal_(encoder.backbone.norm.weight, 1, 0.3)
    images = torch.randn(3, 3, *GROUND), torch.randn(3, 3, *AERIAL)
    ground, aerial, similarity = plot_heatmap.attend(model, *images)
    with torch.no_grad():
        torch.testing.assert_close(similarity, nn.functional.cosine_similarity(*model(*images)))
    torch.testing.assert_close(ground.sum((1, 2)), similarity, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(aerial.sum((1, 2)), similarity, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("regions", [1, 2, 4, 8])
def test_borders_part_what_falls_into_different_regions(regions):
    """A cell beside each border belongs to another region than its neighbour, and there are no other borders."""
    near = nn.MaxPool2d(3, stride=1, padding=1)
    for view, size in (("ground", (8, 64)), ("aerial", (64, 64))):
        cells = torch.eye(size[0] * size[1]).view(-1, 1, *size)
        region = FeatureRecombination(view, regions)(cells)[:, :, 0].argmax(dim=1).view(1, *size).float()
        parted, drawn = near(region) != -near(-region), torch.zeros(1, *size)
        for border in plot_heatmap.borders(view, regions):
            x, y = (np.linspace(*ends, 400)[1:-1] for ends in border)
            drawn[0, (y * size[0]).astype(int), (x * size[1]).astype(int)] = 1
        assert len(region.unique()) == regions
        assert not (drawn.bool() & ~parted).any() and not (parted & ~near(drawn).bool()).any()


def test_heatmaps_of_runs(runs, tmp_path):
    plot_heatmap.main([str(runs["gap"]), str(runs["cvusa"]), "--queries", "5", "0", "--out", str(tmp_path / "two")])
    two = written(tmp_path / "two")
    assert np.ptp(two[..., :3], axis=2).max() > 0.3  # there is colour
    plot_heatmap.main([str(runs["cvusa"]), "--count", "1", "--out", str(tmp_path / "one")])
    assert written(tmp_path / "one").shape[1] < two.shape[1]
    for layout in ("cvact", "vigor"):  # their weights are in another folder
        plot_heatmap.main([str(runs[layout]), "--count", "1"])
        written(runs[layout] / "heatmap")


def test_mistakes_with_heatmaps(runs, tmp_path, refused):
    assert "lacks args.json" in refused(plot_heatmap.main, tmp_path)
    assert "--queries 99 is not a query" in refused(plot_heatmap.main, runs["cvusa"], "--queries", "99")
    assert "dataset is cvact, not cvusa" in refused(plot_heatmap.main, runs["cvact"], runs["cvusa"])
    other = changed(runs["gap"], tmp_path / "fov", "args.json", fov=180)
    assert "fov is 180, not 0" in refused(plot_heatmap.main, other, runs["cvusa"])
    turned = [changed(runs["gap"], tmp_path / f"{n}", "args.json", orientation="unknown", seed=n) for n in (7, 8)]
    assert "seed is 7, not 8" in refused(plot_heatmap.main, *turned)
    for name in ("model_best.pth.tar", "checkpoint.pth.tar", "metrics.json"):
        (other / name).unlink()
    assert "to evaluate" in refused(plot_heatmap.main, other)


def test_training_curves(runs, tmp_path, refused):
    lines = [{"epoch": e, "loss": 1 / e} | ({"R@1": 10.0 + e} if e % 2 else {}) for e in range(1, 31)]
    assert plot_training.curve(lines[:3], "R@1") == ([1, 3], [11.0, 13.0])
    assert plot_training.curve(lines, "Hit") == ([], [])
    names = [f"run {n} of a name that is long enough to fill a line of its own, and more {n}" for n in range(12)]
    figure = plot_training.draw(dict.fromkeys(names, lines))
    assert [len(axis.lines) for axis in figure.axes] == [12, 24, 36]
    assert len({tuple(line.get_color()) for line in figure.axes[0].lines}) == 12
    plot_training.main([str(runs["cvusa"]), str(runs["gap"]), "--names", "FRM", "one average"])
    written(runs["cvusa"] / "training")
    assert "lacks metrics.jsonl" in refused(plot_training.main, tmp_path)
    for content, words in (("", "holds 0 lines"), ("{", "cannot be read"), ('{"loss": 1}\n', "each with its epoch")):
        (tmp_path / "metrics.jsonl").write_text(content)
        assert words in refused(plot_training.main, tmp_path)


def test_retrieval_of_a_run_and_of_its_files(runs, roots, tmp_path):
    for layout in ("cvusa", "cvact", "vigor"):
        files = [str(runs[layout] / f"{view}_global_descriptor.npy") for view in ("grd", "sat")]
        data = ["--dataset", layout, "--data-root", str(roots[layout])]
        one, other = common.load_evaluation(runs[layout]), common.load_files(*files, data)
        for array, same in zip(one[:2], other[:2], strict=True):
            np.testing.assert_array_equal(array, same)
            np.testing.assert_allclose(np.linalg.norm(array, axis=1), 1, rtol=1e-5)
        assert (one[2].ground, one[3].aerial) == (other[2].ground, other[3].aerial)
    plot_retrieval.main([*files, *data, "--count", "2", "--failures", "--out", str(tmp_path / "files")])
    plot_retrieval.main([str(runs["vigor"]), "--count", "2", "--failures", "--out", str(tmp_path / "run")])
    for name in ("retrieval", "recall"):
        np.testing.assert_array_equal(written(tmp_path / "files" / name), written(tmp_path / "run" / name))


def test_true_tiles_are_framed_red_and_semi_positives_green(roots):
    query = VIGOR(roots["vigor"], "test", view="ground")
    reference = query.as_view("aerial")
    rows = np.eye(len(reference), dtype=np.float32)
    true, *semi = query.tiles[3]
    q = (rows[true] + 2 * rows[semi[0]] + 3 * rows[semi[2]])[None].repeat(4, axis=0)  # the third is the true one
    figure = plot_retrieval.draw_examples(q, rows, query, reference, [3], [0, 0, 0, 2])
    left, *right = figure.axes
    assert left.get_ylabel() == "rank 3"
    frames = [axis.spines["left"].get_edgecolor() for axis in right]
    colours = [common.GREEN, common.GREEN, common.RED, common.GREY, common.GREY]
    assert frames == [to_rgba(colour) for colour in colours]


def test_mistakes_with_retrieval(runs, tmp_path, refused):
    main = plot_retrieval.main
    error = refused(main, runs["cvusa"], "--queries", "0", "99", "--out", tmp_path)
    assert "--queries 99 is not a query" in error and not list(tmp_path.iterdir())
    assert "exactly two .npy files" in refused(main, runs["cvusa"] / "grd_global_descriptor.npy")
    assert "says what it evaluated" in refused(main, runs["cvusa"], "--dataset", "cvusa")
    assert "the folder of one run" in refused(main, runs["cvusa"], runs["gap"])
    other = make_data.write_cvusa(tmp_path / "other", train=2, val=3)
    error = refused(main, runs["cvusa"], "--data-root", other)
    assert f"descriptors of {make_data.TEST} queries" in error and "has 3 and 3" in error


def test_figures_show_the_data_of_the_evaluation(runs, roots, tmp_path):
    """A run trained on one data set and evaluated on another."""
    shutil.copytree(runs["cvusa"], tmp_path / "mixed")
    weights = str(runs["cvusa"] / "model_best.pth.tar")
    train.main(make_data.flags(roots["cvact"], tmp_path / "mixed", "-e", "--weights", weights, dataset="cvact"))
    assert json.loads((tmp_path / "mixed" / "args.json").read_text())["dataset"] == "cvusa"
    *_, query, reference = common.load_evaluation(tmp_path / "mixed")
    assert query.name == reference.name == "cvact" and str(roots["cvact"]) in query.ground[0]


def test_overview(roots, tmp_path, refused):
    images = sorted((roots["pairs"] / "ground").iterdir())[0], sorted((roots["pairs"] / "aerial").iterdir())[0]
    plot_overview.main(["--ground", str(images[0]), "--aerial", str(images[1]), "--out", str(tmp_path / "o.pdf")])
    assert written(tmp_path / "o").shape[1] > 1500
    assert "pass both or neither" in refused(plot_overview.main, "--ground", images[0])
    flags = ["--ground", tmp_path / "no.jpg", "--aerial", images[1]]
    assert "cannot be read as an image" in refused(plot_overview.main, *flags)


def test_nothing_overlaps_in_the_overview():
    """No text of the figure covers another one."""
    figure = plot_overview.draw(np.zeros((10, 40, 3)), np.zeros((10, 10, 3)))
    figure.canvas.draw()
    boxes = [(text.get_text(), text.get_window_extent()) for text in figure.axes[0].texts]
    assert len(boxes) > 40
    for k, (name, box) in enumerate(boxes):
        assert figure.bbox.contains(*box.min) and figure.bbox.contains(*box.max), name
        for other, near in boxes[:k]:
            assert not box.overlaps(near), (name, other)
