"""Damaged lists, images, weights and files of runs: one sentence with the file's name, code 2, nothing overwritten."""

import importlib
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import make_data
import numpy as np
import pytest
import torch
from make_data import ADAMW, flags
from PIL import Image
from scipy.io import savemat

import train
from utils.checkpoint import load_checkpoint

REPO = Path(train.__file__).parent


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """Small copies of the layouts and an evaluated run on the first, to be copied and damaged."""
    base = tmp_path_factory.mktemp("pristine")
    for name in ("cvusa", "cvact", "vigor", "pairs"):
        make_data.WRITERS[name](base / name, 4, 3)
    train.main([*flags(base / "cvusa", base / "run", *ADAMW), "-b", "4", "--epochs", "1"])
    train.main(flags(base / "cvusa", base / "run", "-e"))
    return base


@pytest.fixture
def copy(pristine, tmp_path, monkeypatch):
    """copy(*names): the folder of a test, which holds these folders."""
    monkeypatch.chdir(tmp_path)

    def make(*names):
        for name in names:
            shutil.copytree(pristine / name, tmp_path / name)
        return tmp_path

    return make


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "log.txt" not in path.name}


def line(change):
    """A change of a list: `change` of its second line."""

    def apply(path):
        lines = path.read_text().splitlines()
        lines[1] = change(lines[1], lines)
        path.write_text("\n".join(lines) + "\n", errors="surrogateescape")

    return apply


def whole(new):
    """A change of a file: its bytes."""
    return lambda path: path.write_bytes(new if isinstance(new, bytes) else new(path.read_bytes()))


def removed(path):
    path.unlink()


def folder(path):
    path.unlink()
    path.mkdir()


def flipped(share):
    """A change of a file: a bit of the byte at that share of its length."""

    def apply(content):
        content = bytearray(content)
        content[int(share * (len(content) - 1))] ^= 8
        return bytes(content)

    return whole(apply)


def columns(order, sign=","):
    return line(lambda text, _: sign.join(text.split(sign)[i] for i in order))


# Lists: data set, file, change, words of the sentence.

CSV = ("splits/train-19zl.csv", "splits/val-19zl.csv")
LISTS = [
    *[("cvusa", csv, *case) for csv in CSV for case in (
        (whole(b""), "is empty"),
        (whole(b"\n \n"), "is empty"),
        (whole(b"\xff\xfe\x00a"), "cannot be read"),
        (whole(b"\x00" * 50), "line 1 is"),
        (removed, "is not a CVUSA folder"),
        (folder, "is not a CVUSA folder"),
        (line(lambda text, _: text.split(",")[0]), "line 2 is"),
        (line(lambda text, _: "," + text.split(",")[1]), "line 2 is"),
        (line(lambda _, lines: lines[0]), "line 2 names streetview"),
        (line(lambda text, lines: f"{lines[0].split(',')[0]},{text.split(',')[1]},x"), "line 2 names bingmap"),
        (line(lambda text, lines: f"{text.split(',')[0]},{lines[0].split(',')[1]},x"), "line 2 names streetview"),
        (columns((1, 0, 2)), "line 2 is"),
        (line(lambda text, _: f"../../{text}"), "line 2 names '../../"),
        (line(lambda text, _: text.replace(".jpg", "\0.jpg")), "line 2 names"),
        (whole(lambda old: old.replace(b"bingmap", b'"bingmap')), "none of the pairs of split"),
        (whole(lambda old: old.replace(b"/", b"\\")), "none of the pairs of split"),
        (whole(lambda old: old.replace(b"bingmap", b"/somewhere/bingmap")), "none of the pairs of split"),
    )],
    *[("pairs", name, *case) for name in ("train.txt", "val.txt") for case in (
        (whole(b""), "is empty"),
        (removed, "is not a PAIRS folder"),
        (line(lambda _, lines: lines[0]), "line 2 names"),
        (line(lambda _, lines: "../../etc/passwd"), "line 2 names '../../etc/passwd'"),
        (line(lambda _, lines: "a\0b"), "line 2 names"),
        (whole(b"x\ny\n"), "none of the pairs of split"),
    )],
    *[("vigor", f"splits/Seattle/same_area_balanced_{split}.txt", *case) for split in ("train", "test") for case in (
        (whole(b""), "is empty"),
        (removed, "of Seattle"),
        (line(lambda text, _: text.rsplit(" ", 1)[0]), "line 2 has 12 columns"),
        (line(lambda text, _: text.rsplit(" ", 1)[0] + " north"), "line 2 holds a delta"),
        (line(lambda text, _: text.rsplit(" ", 1)[0] + " nan"), "line 2 holds a delta"),
        (line(lambda text, _: text.rsplit(" ", 1)[0] + " -inf"), "line 2 holds a delta"),
        (line(lambda text, _: text.rsplit(" ", 1)[0] + " 1e99"), "line 2 holds a delta"),
        (line(lambda text, _: text.rsplit(" ", 1)[0] + " 5000"), "line 2 holds a delta"),
        (line(lambda _, lines: lines[0]), "line 2 names"),
        (columns((1, 0, *range(2, 13)), " "), "names the tile"),
        (line(lambda text, _: f"../../{text}"), "line 2 names '../../"),
        (line(lambda text, _: text.replace("satellite_", "satellite_9")), "names the tile"),
    )],
    *[("vigor", "splits/Chicago/satellite_list.txt", *case) for case in (
        (whole(b""), "is empty"),
        (removed, "of Chicago"),
        (line(lambda _, lines: lines[0]), "line 2 names"),
        (line(lambda text, _: f"../{text}"), "line 2 names '../"),
        (whole(lambda old: b"\n".join(old.split(b"\n")[:3])), "names the tile"),
    )],
    *[("cvact", "ACT_data.mat", *case) for case in (
        (whole(b""), "cannot be read as CVACT's lists"),
        (whole(b"no MATLAB file" * 99), "cannot be read as CVACT's lists"),
        (whole(lambda old: old[: len(old) // 2]), "cannot be read as CVACT's lists"),
        (removed, "is not a CVACT folder"),
    )],
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(LISTS)))
def test_damaged_lists(copy, refused, number):
    dataset, name, change, words = LISTS[number]
    root = copy(dataset) / dataset
    change(root / name)
    before = content(root)
    error = refused(train.main, *flags(root, "run", *ADAMW, dataset=dataset))
    assert words in error and (str(root / name) in error or str(root) in error)
    assert "line" not in words or str(root / name) in error
    assert before == content(root) and not Path("run").exists()


def act_data(**changes):
    """The fields of an ACT_data.mat of four pairs, with changes."""
    ids = np.array([f"id{i}" for i in range(8)], dtype=object)
    fields = {"panoIds": ids, "utm": np.arange(16.0).reshape(8, 2)}
    return fields | {"trainSet": {"trainInd": np.arange(1, 4)}, "valSet": {"valInd": np.arange(1, 4)}} | changes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"valSet": {"valInd": np.array([1, 2, 2])}}, "line 3 names id1 again, after line 2"),
        ({"valSet": {"valInd": np.array([0, 1])}}, "points outside the 8 panoramas"),
        ({"valSet": {"valInd": np.array([1, 99])}}, "points outside the 8 panoramas"),
        ({"valSet": {"valInd": np.array([1.0, np.nan])}}, "points outside the 8 panoramas"),
        ({"valSet": {"valInd": np.array(["a", "b"])}}, "cannot be read as CVACT's lists"),
        ({"valSet": {"other": np.array([1])}}, "cannot be read as CVACT's lists"),
        ({"valSet": 3}, "cannot be read as CVACT's lists"),
        ({"valSet": {"valInd": np.array([])}}, "name no pairs of split val"),
        ({"utm": np.arange(14.0).reshape(7, 2)}, "utm has 7 rows"),
        ({"utm": np.arange(15.0)}, "cannot be read as CVACT's lists"),
        ({"utm": np.full((8, 2), 1e300)}, "utm holds 1e+300"),
        ({"utm": np.full((8, 2), np.inf)}, "utm holds inf"),
        ({"panoIds": np.array(["../../x", *"bcdefgh"], dtype=object)}, "names '../../x'"),
        ({"panoIds": np.array([*"abcdefgh"], dtype=object)}, "none of the pairs"),
    ],
)
def test_damaged_fields_of_cvact(copy, refused, changes, words):
    root = copy("cvact") / "cvact"
    savemat(root / "ACT_data.mat", act_data(**changes))
    error = refused(train.main, *flags(root, "run", *ADAMW, dataset="cvact"))
    assert words in error and str(root) in error and not Path("run").exists()


@pytest.mark.parametrize("share", np.linspace(0.1, 0.95, 12).round(2))
def test_flipped_bits_of_a_compressed_mat_file(copy, capsys, share):
    """A flip may go unnoticed, in a coordinate; whatever it does, there is no traceback."""
    root = copy("cvact") / "cvact"
    ids = np.array([f"id{i}" for i in range(400)], dtype=object)
    utm = np.random.default_rng(0).normal(0, 1e5, (400, 2))
    savemat(root / "ACT_data.mat", act_data(panoIds=ids, utm=utm), do_compression=True)
    flipped(share)(root / "ACT_data.mat")
    with pytest.raises(SystemExit) as stop:  # if nothing else: none of these images is there
        train.main(flags(root, "run", *ADAMW, dataset="cvact"))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and str(root) in error and error.startswith("train.py: ")


# Images.


def tiff(mode):
    def write(path):
        Image.fromarray(np.ones((64, 64), dtype=mode)).save(path, "TIFF")

    return write


LARGE_PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\xff\xff\0\0\xff\xff\x08\x02\0\0\0" + b"\0" * 60
IMAGES = [
    (whole(b""), "cannot be read as an image"),
    (whole(b"no image"), "cannot be read as an image"),
    (whole(lambda old: old[: len(old) // 2]), "cannot be read as an image"),
    (tiff(np.float32), "32-bit numbers are not colours"),
    (whole(LARGE_PNG), "cannot be read as an image"),
]


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("number", range(len(IMAGES)))
def test_damaged_images(copy, refused, number, split):
    change, words = IMAGES[number]
    root = copy("cvusa") / "cvusa"
    path = root / (root / "splits" / f"{split}-19zl.csv").read_text().split(",")[number % 2]
    change(path)
    error = refused(train.main, *flags(root, "run", *ADAMW, "-b", "4"))
    assert words in error and str(path) in error and not list(Path("run").glob("*.pth.tar"))


# Weights and checkpoints.


class Code:
    def __reduce__(self):
        return (print, ("this ran",))


def state(**changes):
    """A change of a checkpoint: of its entries; a value that is a function gets the old one."""

    def apply(path):
        old = load_checkpoint(path)
        new = {k: v(old[k]) if callable(v) else v for k, v in changes.items()}
        torch.save({k: v for k, v in (old | new).items() if v is not None}, path.with_name("new"))
        path.with_name("new").replace(path)  # tensors are mapped from the file

    return apply


def options(**changes):
    return state(args=lambda old: old | changes)


def weight(change):
    """A change of a checkpoint's first weight."""

    def apply(old):
        name = next(iter(old))
        return {key: value for key, value in (old | {name: change(old[name])}).items() if value is not None}

    return state(state_dict=apply)


def sampler(**changes):
    return state(sampler=lambda old: old | changes)


WEIGHTS = [
    (whole(b""), "cannot be read as a checkpoint"),
    (whole(b"weights"), "cannot be read as a checkpoint"),
    (whole(lambda old: old[: len(old) // 2]), "cannot be read as a checkpoint"),
    (whole(lambda old: pickle.dumps({"state_dict": Code()})), "cannot be read as a checkpoint"),
    (lambda path: torch.save({"state_dict": Code()}, path), "cannot be read as a checkpoint"),
    (lambda path: torch.save([1, 2], path), "holds a list"),
    (lambda path: torch.save({}, path), "holds no weights"),
    (lambda path: torch.save({"state_dict": 3}, path), "holds no weights"),
    (flipped(0.3), "is damaged: its part"),
    (flipped(0.6), "is damaged: its part"),
    (removed, "does not exist"),
    (folder, "is not a file"),
    (state(state_dict=lambda old: dict(list(old.items())[3:])), "does not fit this model: missing"),
    (state(state_dict=lambda old: old | {"more": torch.ones(2)}), "does not fit this model: unexpected more"),
    (weight(lambda value: value[:1]), "does not fit this model: other shape"),
    (weight(lambda value: value.to("meta")), "weights without values"),
    (weight(lambda value: value.to_sparse()), "weights without values"),
    (weight(lambda value: "text"), "does not fit this model: missing"),
    (weight(lambda value: value.to(torch.complex64)), "weights without values"),
    (options(arch=5), "stores --arch 5"),
    (options(arch="no_such_net"), "no network of this name"),
    (options(pool="max"), "stores --pool max"),
    (options(regions=3), "stores --regions 3"),
    (options(ground_size="large"), "stores --ground-size large"),
    (options(ground_size=[0, 5]), "stores --ground-size"),
    (options(aerial_size=[-1, 64]), "stores --aerial-size"),
    (options(share="yes"), "stores --share yes"),
    (options(fov="wide"), "stores --fov wide"),
]


@pytest.mark.parametrize("number", range(len(WEIGHTS)))
def test_damaged_weights(copy, refused, number):
    change, words = WEIGHTS[number]
    root = copy("cvusa", "run")
    path = root / "run" / "model_best.pth.tar"
    change(path)
    before = content(root)
    run = ["--dataset", "cvusa", "--data-root", "cvusa", "--save_path", "out", "--device", "cpu", "-j", "0"]
    error = refused(train.main, *run, "-e", "--weights", path)
    assert words in error and (str(path) in error or "no network" in words)
    assert before == content(root) and not Path("out").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (state(epoch=-3), "its epoch is damaged"),
        (state(epoch="two"), "its epoch is damaged"),
        (state(best_acc1="high"), "its best_acc1 is damaged"),
        (state(best_acc1=float("nan")), "its best_acc1 is damaged"),
        (state(optimizer={}), "its optimizer is damaged"),
        (state(optimizer={"state": {}, "param_groups": []}), "its optimizer is damaged"),
        (state(optimizer=None), "holds weights only"),
        (state(sampler={"epoch": 1}), "its sampler is damaged"),
        (options(seed="x"), "stores --seed x"),
        (options(batch_size=-4), "stores --batch-size -4"),
        (options(lr="fast"), "stores --lr fast"),
        (options(op="lion"), "stores --op lion"),
        (options(dataset="moon"), "stores --dataset moon"),
    ],
)
def test_damaged_checkpoints(copy, refused, change, words):
    root = copy("cvusa", "run")
    path = root / "run" / "checkpoint.pth.tar"
    (root / "run" / "checkpoint_before.pth.tar").unlink(missing_ok=True)
    change(path)
    before = content(root)
    run = ["--data-root", "cvusa", "--save_path", "out", "--device", "cpu", "-j", "0", "--epochs", "3"]
    error = refused(train.main, *run, "--resume", path)
    assert words in error and str(path) in error
    assert before == content(root) and not Path("out").exists()


# Tools: module, arguments, what is changed in the run's folder, words of the sentence.

NPY = "run/grd_global_descriptor.npy"
TOOLS = [
    *[(tool, f"{words} --out=", None, "it is empty") for tool, words in (
        ("plot_training", "run"), ("plot_retrieval", "run"), ("plot_heatmap", "run"), ("plot_tsne", "run"),
        ("plot_overview", ""), ("report", "run"), ("city_figures", ""), ("score_descriptors", "run"),
        ("make_city", "--layout cvusa"), ("run_grid", "--data a= --variant b="), ("kill_test", ""),
    )],
    *[(tool, f"{words} --out=a\0b", None, "no path can have") for tool, words in (
        ("plot_training", "run"), ("report", "run"), ("make_city", "--layout cvusa"),
    )],
    *[(tool, "nowhere", None, "nowhere") for tool in (
        "plot_training", "plot_retrieval", "plot_heatmap", "plot_tsne", "report", "score_descriptors",
    )],
    *[(tool, "run", (NPY, change), NPY) for tool in ("plot_retrieval", "score_descriptors") for change in (
        whole(b""), whole(b"\x93NUMPY\x01\x00v\x00{broken"), whole(lambda old: old[:200]), whole(b"text"),
        lambda path: np.save(path, np.ones(5)), lambda path: np.save(path, np.ones((7, 4), int)),
        lambda path: np.save(path, np.array([{}], dtype=object), allow_pickle=True),
        whole(lambda old: old.replace(b"False", b"1 / 0", 1)),
    )],
    *[("report", "run", ("run/metrics.json", whole(text)), "metrics.json") for text in (
        b"", b"{", b"[]", b"3", b'{"R@1": "high", "dataset": "cvusa", "split": "val"}', b"\xff\xfe",
        b'{"R@1": 3.0, "dataset": "cvusa", "split": "val", "gallery": -1}',
        b'{"R@1": 3.0, "dataset": ["cvusa"], "split": "val"}', b'{"R@1": null, "dataset": "cvusa", "split": "val"}',
    )],
    *[("plot_training", "run", ("run/metrics.jsonl", whole(text)), "metrics.jsonl") for text in (
        b"", b"{}\n", b'{"epoch": 1, "loss": "low"}\n', b"[1]\n", b"\xff\xfe\n",
    )],
    *[(tool, "run", ("run/args.json", whole(text)), "args.json") for tool in ("plot_heatmap", "plot_retrieval")
      for text in (b"", b"[]", b'{"dataset": "moon"}')],
    ("build_cache", "--dataset cvusa --data-root cvusa --cache c --ground-size 1000000000 1000000000", None, "pixels"),
    ("build_cache", "--dataset cvusa --data-root cvusa --cache=", None, "it is empty"),
    ("build_cache", "--dataset cvusa --data-root cvusa --cache c --cross", None, "require --dataset vigor"),
    ("build_cache", "--dataset cvusa --data-root cvusa --cache c --vigor-labels corrected", None, "require --dataset"),
    ("build_cache", "--dataset cvusa --data-root cvusa --cache c --jobs 0", None, "not a whole number"),
    ("build_cache", "--dataset cvusa --data-root cvusa --cache cvusa/splits/val-19zl.csv", None, "--cache"),
    ("check_data", "--dataset cvusa --data-root nowhere", None, "does not exist"),
    ("check_data", "--dataset cvusa --data-root cvusa --labels corrected", None, "requires --dataset vigor"),
    ("complexity", "--arch no_such_net", None, "no network of this name"),
    ("complexity", "--ground-size 8 8 --dataset cvusa", None, "--ground-size"),
    ("make_city", "--layout cvusa --out cvusa", None, "cvusa"),
    ("make_city", "--layout cvusa --out c --jitter-metres nan", None, "not a number"),
    ("arrange_pairs", "nowhere.csv out", None, "nowhere.csv"),
    ("arrange_pairs", "cvusa/splits/val-19zl.csv cvusa", None, "cvusa"),
    ("score_descriptors", "run --eval-split test --dataset vigor", None, "--dataset is vigor"),
    ("plot_retrieval", "run --queries 999", None, "--queries 999 is not a query"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(TOOLS)))
def test_tools(copy, refused, number):
    tool, words, change, told = TOOLS[number]
    root = copy("cvusa", "run")
    if change:
        change[1](root / change[0])
    before = content(root)
    error = refused(importlib.import_module(f"scripts.{tool}").main, *words.split(" "))
    assert told in error and before == content(root)


def test_views_that_are_exchanged_and_shared_places_are_found(copy, capsys, refused):
    from scripts import check_data

    root = copy("pairs", "cvusa")
    call = ["--dataset", "pairs", "--data-root", "pairs"]
    check_data.main(call)
    assert "exchanged" not in capsys.readouterr().out
    (root / "pairs" / "ground").rename(root / "pairs" / "x")
    (root / "pairs" / "aerial").rename(root / "pairs" / "ground")
    (root / "pairs" / "x").rename(root / "pairs" / "aerial")
    (root / "pairs" / "val.txt").write_text("\n".join((root / "pairs" / "train.txt").read_text().split()[:3]))
    check_data.main(call)
    told = capsys.readouterr().out
    assert "val: the panoramas are not wide and the aerial images are: the views seem to be exchanged" in told
    assert "3 of the 3 places of val are also in train" in told
    train.main([*flags(root / "pairs", "run", *ADAMW, dataset="pairs"), "-b", "4", "--epochs", "1"])
    assert "3 of the 3 places of split val are among the training's" in Path("run/log.txt").read_text()
    assert json.loads(Path("run/metrics.json").read_text())["in_training"] == 3
    image = sorted((root / "cvusa" / "streetview" / "panos").iterdir())[2]
    image.write_bytes(image.read_bytes()[:150])
    error = refused(check_data.main, "--dataset", "cvusa", "--data-root", "cvusa", "--deep")
    assert "1 images cannot be read" in error and image.name in error


COMMANDS = {
    "train.py --dataset cvusa --data-root nowhere": "does not exist",
    "train.py --dataset cvusa --data-root cvusa --batch-size 4 --save_path run/args.json/x --pretrained none --arch "
    "test_resnet --device cpu": "cannot be written to",
    "train.py -e --dataset cvusa --data-root cvusa --save_path run --weights run/args.json": "cannot be read",
    "train.py --lr x": "--lr",
    "train.py --data-root cvusa --resume run/model_best.pth.tar": "holds weights only",
    "scripts/report.py nowhere": "nowhere does not exist",
    "scripts/plot_training.py run --out=": "it is empty",
    "scripts/plot_heatmap.py nowhere": "nowhere lacks args.json",
    "scripts/check_data.py --dataset cvact --data-root cvusa": "is not a CVACT folder",
    "scripts/build_cache.py --dataset cvusa --data-root nowhere --cache c": "does not exist",
    "scripts/score_descriptors.py nowhere": "nowhere lacks",
    "scripts/complexity.py --arch no_such_net": "no network of this name",
    "scripts/make_city.py --layout cvusa --out run": "run",
    "scripts/run_grid.py --out g --data a --variant b=": "is not NAME=VALUE",
    "scripts/arrange_pairs.py nowhere.csv out": "nowhere.csv",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(copy, command):
    root = copy("cvusa", "run")
    before = content(root)
    script, *words = command.split(" ")
    done = subprocess.run([sys.executable, REPO / script, *words], capture_output=True, text=True)
    assert done.returncode == 2 and COMMANDS[command] in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.startswith(f"{Path(script).name}: ") and before == content(root)
