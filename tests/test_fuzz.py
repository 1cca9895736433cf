"""Files that are damaged at random are read, or refused in one sentence; nothing else happens.

FRGEO_FUZZ is the number of cases for each kind of file (default: 50); 2,000 make a long run of 12,000.
"""

import contextlib
import io
import json
import os

import make_data
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from make_data import ADAMW, flags
from scipy.io import savemat

import train
from dataset import CVACT, CVUSA, VIGOR, Pairs
from dataset.cvusa import read_locations
from scripts import report
from scripts.common import read_rows
from scripts.plot_training import read_history
from utils.checkpoint import load_checkpoint
from utils.options import UserError

CASES = int(os.environ.get("FRGEO_FUZZ", "50"))
SIZES = {"ground_size": (32, 128), "aerial_size": (64, 64)}
ODD = [
    b"",
    b"\0",
    b"\n",
    b",",
    b" ",
    b'"',
    b"../",
    b"nan",
    b"1e999",
    b"-1",
    b"\xff\xfe",
    b"{}",
    b"[",
    b"9" * 40,
    b"\x80\x02",
]

changes = st.lists(
    st.tuples(
        st.sampled_from(["flip", "insert", "delete", "cut", "swap", "repeat"]),
        st.floats(0, 1),
        st.integers(0, 255),
        st.sampled_from(ODD),
    ),
    min_size=1,
    max_size=6,
)


def damage(content, changes):
    """The bytes of a file after some changes, each at a share of its length."""
    for kind, share, number, odd in changes:
        at = int(share * len(content))
        if kind == "flip" and content:
            at = min(at, len(content) - 1)
            content = content[:at] + bytes([content[at] ^ (number or 1)]) + content[at + 1 :]
        elif kind == "insert":
            content = content[:at] + odd + content[at:]
        elif kind == "delete":
            content = content[:at] + content[at + number :]
        elif kind == "cut":
            content = content[:at]
        elif kind == "swap":
            content = content[:at] + content[at + number : at + 2 * number] + content[at : at + number]
        elif kind == "repeat":
            content = content[: at + number] + content[at:]
    return content


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Copies of the layouts and a trained run: the folder."""
    base = tmp_path_factory.mktemp("fuzz")
    for name in ("cvusa", "cvact", "vigor", "pairs"):
        make_data.WRITERS[name](base / name, 3, 2)
    ids = np.array([f"id{i}" for i in range(40)], dtype=object)
    fields = {"panoIds": ids, "utm": np.arange(80.0).reshape(40, 2)}
    fields |= {"trainSet": {"trainInd": np.arange(1, 30)}, "valSet": {"valInd": np.arange(31, 40)}}
    savemat(base / "cvact" / "ACT_data.mat", fields, do_compression=True)
    train.main([*flags(base / "cvusa", base / "run", *ADAMW), "-b", "2", "--epochs", "1"])
    train.main(flags(base / "cvusa", base / "run", "-e"))
    (base / "cvusa" / "split_locations").mkdir()
    (base / "cvusa" / "split_locations" / "all.csv").write_text(
        "".join(f"{i},{30 + i / 9},{-90.5 - i}\n" for i in range(5))
    )
    return base


def weights(path):
    """What -e reads of a checkpoint."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as told:
        try:
            run = ["--dataset", "cvusa", "--data-root", str(path.parents[1] / "cvusa"), "--device", "cpu", "-j", "0"]
            train.main([*run, "-e", "--weights", str(path), "--save_path", str(path.parent / "out")])
        except SystemExit as stop:
            assert stop.code == 2 and told.getvalue().startswith("train.py: ")


def locations(path):
    assert read_locations(path, ["0", "1"]) is None or len(read_locations(path, ["0", "1"])) >= 2


READERS = {
    "cvusa/splits/val-19zl.csv": lambda path: CVUSA(path.parents[1], "val", **SIZES),
    "cvusa/split_locations/all.csv": locations,
    "cvact/ACT_data.mat": lambda path: CVACT(path.parent, "val", **SIZES),
    "vigor/splits/Seattle/same_area_balanced_test.txt": lambda path: VIGOR(path.parents[2], "test", **SIZES),
    "vigor/splits/Seattle/satellite_list.txt": lambda path: VIGOR(path.parents[2], "test", **SIZES),
    "pairs/val.txt": lambda path: Pairs(path.parent, "val", **SIZES),
    "run/model_best.pth.tar": weights,
    "run/checkpoint.pth.tar": load_checkpoint,
    "run/grd_global_descriptor.npy": lambda path: np.asarray(read_rows(path)),
    "run/metrics.json": lambda path: report.tabulate([report.read_result(path)]),
    "run/metrics.jsonl": lambda path: read_history(path.parent),
}


@pytest.mark.parametrize("name", READERS)
def test_damaged_files(files, name):
    path = files / name
    whole = path.read_bytes()

    @settings(max_examples=CASES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(changes)
    @example([("cut", 0.0, 0, b"")])
    def read(changes):
        path.with_name("damaged").write_bytes(damage(whole, changes))
        path.with_name("damaged").replace(path)
        with contextlib.suppress(UserError):
            READERS[name](path)

    try:
        read()
    finally:
        path.with_name("damaged").write_bytes(whole)
        path.with_name("damaged").replace(path)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=CASES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.sampled_from(["arch", "pool", "regions", "share", "ground_size", "fov", "dataset", "seed",
                                        "orientation", "cross", "eval_split", "alpha", "lr"]), values))  # fmt: skip
def test_odd_options_of_a_checkpoint(files, args):
    state = load_checkpoint(files / "run" / "model_best.pth.tar")
    torch.save(state | {"args": state["args"] | args}, files / "run" / "odd.pth.tar")
    weights(files / "run" / "odd.pth.tar")


@settings(max_examples=CASES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.sampled_from(["R@1", "R@5", "dataset", "split", "queries", "gallery", "weights", "epoch",
                                        "fov", "labels", "missing_pairs", "in_training"]), values))  # fmt: skip
def test_odd_values_of_an_evaluation(files, record):
    path = files / "odd" / "metrics.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(json.loads((files / "run" / "metrics.json").read_text()) | record))
    with contextlib.suppress(UserError):
        results = [report.read_result(path)]
        report.tabulate(results), report.remarks(results)
