"""Figures of runs: what they show, that they are written, and mistakes told."""

import json
import shutil
from functools import partial

import make_data
import numpy as np
import pytest
import torch
from matplotlib.image import imread
from torch import nn

import train
from model import FeatureRecombination, FRGeo
from model.frgeo import Encoder
from scripts import plot_heatmap, plot_overview, plot_retrieval, plot_training, plot_tsne, tsne
from scripts.figures import load_evaluation
from utils.checkpoint import save_checkpoint
from utils.flags import build_parser
from utils.options import recorded

GROUND, AERIAL = (32, 128), (64, 64)
LAYOUTS = ("cvusa", "cvact", "vigor")


def write_run(folder, root, dataset, pool="frm", weights=True):
    """A run's folder with random weights, as train.py and its -e leave it."""
    from dataset.build import build_datasets

    folder.mkdir(parents=True)
    flags = make_data.flags(root, folder, "--pool", pool, "-e", dataset=dataset)
    args = build_parser().parse_args([flag for flag in flags if flag not in ("--dim", "256")])
    (folder / "args.json").write_text(json.dumps(recorded(args)))
    model = FRGeo(dataset, "test_convnext", pool=pool, ground_size=GROUND, aerial_size=AERIAL)
    if weights:
        save_checkpoint(folder / "model_best.pth.tar", epoch=1, state_dict=model.state_dict(), args=recorded(args))
    _, query, reference = build_datasets(args)
    rng = np.random.default_rng(0)
    np.save(folder / "grd_global_descriptor.npy", rng.normal(size=(len(query), 8)).astype(np.float32))
    np.save(folder / "sat_global_descriptor.npy", rng.normal(size=(len(reference), 8)).astype(np.float32))
    (folder / "metrics.json").write_text(json.dumps({"R@1": 1.0, "dataset": dataset, "split": query.split}))
    return folder


@pytest.fixture(scope="module")
def runs(roots, tmp_path_factory):
    """A run folder of each layout, and one with one average of CVUSA: {"cvusa": path, ..., "gap": path}."""
    base = tmp_path_factory.mktemp("runs")
    made = {name: write_run(base / name, roots[name], name) for name in LAYOUTS}
    return made | {"gap": write_run(base / "gap", roots["cvusa"], "cvusa", pool="gap")}


def written(stem):
    """The picture of a figure of which PNG and PDF are there, (H, W, channels)."""
    assert stem.with_name(stem.name + ".pdf").read_bytes().startswith(b"%PDF")
    return imread(stem.with_name(stem.name + ".png"))


def refused(main, capsys, *arguments):
    """The one sentence of a mistake that ends with code 2."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert "Traceback" not in error and len(error.strip().splitlines()) == 1
    return error


# t-SNE.


def clusters(count=40, dim=12, seed=1):
    rng = np.random.default_rng(seed)
    centres = np.zeros((2, dim))
    centres[1, 0] = 8
    return np.repeat(centres, count, axis=0) + rng.normal(size=(2 * count, dim)), np.repeat([0, 1], count)


@pytest.mark.parametrize("perplexity", [3, 15, 40])
def test_neighbourhoods_have_the_perplexity_asked_for(perplexity):
    points, _ = clusters()
    p = tsne.neighbourhoods(tsne.squared_distances(points), perplexity)
    entropy = -(p * np.log2(np.maximum(p, 1e-300))).sum(axis=1)
    np.testing.assert_allclose(2**entropy, perplexity, rtol=1e-6)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    assert (np.diag(p) == 0).all()


def test_the_gradient_is_that_of_the_divergence():
    points, _ = clusters(count=6)
    target = tsne.affinities(points, 4)
    position = np.random.default_rng(0).normal(size=(12, 2))
    gradient, _ = tsne.descend(target, position, 1.0)
    for i, j in ((0, 0), (3, 1), (11, 0)):
        step = np.zeros_like(position)
        step[i, j] = 1e-5
        up, down = (tsne.descend(target, position + sign * step, 1.0)[1] for sign in (1, -1))
        assert gradient[i, j] == pytest.approx((up - down) / 2e-5, rel=1e-4, abs=1e-9)


def test_tsne_lowers_the_divergence_and_separates_two_clusters():
    points, labels = clusters()
    position, divergence = tsne.tsne(points, perplexity=15)
    assert position.shape == (80, 2) and np.isfinite(position).all()
    assert divergence[-1] < 0.5 * divergence[0]
    blocks = divergence[tsne.EARLY :].reshape(-1, 50).mean(axis=1)  # momentum lets single steps rise
    assert (np.diff(blocks) < 0).all()
    distances = tsne.squared_distances(position) + np.diag(np.full(80, np.inf))
    assert (labels[distances.argmin(axis=1)] == labels).all()
    centres = np.stack([position[labels == k].mean(axis=0) for k in (0, 1)])
    radius = max(np.linalg.norm(position[labels == k] - centres[k], axis=1).max() for k in (0, 1))
    assert np.linalg.norm(centres[0] - centres[1]) > radius
    np.testing.assert_array_equal(position, tsne.tsne(points, perplexity=15)[0])


def test_points_that_coincide_do_not_break_it():
    position, divergence = tsne.tsne(np.ones((5, 3)), iterations=30)
    assert np.isfinite(position).all() and np.isfinite(divergence).all()


# Pairs in the plane.


def test_the_numbers_of_pairing_are_those_of_plain_computation():
    rng = np.random.default_rng(0)
    reference = plot_tsne.unit(rng.normal(size=(9, 4)))
    labels = rng.integers(9, size=6)
    query = plot_tsne.unit(reference[labels] + 0.4 * rng.normal(size=(6, 4)))
    ranks, ratio = plot_tsne.pairing(plot_tsne.Paired(query, reference, labels))
    distances = np.linalg.norm(query[:, None] - reference[None], axis=2)
    true = distances[np.arange(6), labels]
    np.testing.assert_array_equal(ranks, (distances < true[:, None] - 1e-12).sum(axis=1))
    assert ratio == pytest.approx(true.mean() / distances.mean())


def test_tsne_of_runs_and_of_files(runs, tmp_path, capsys):
    plot_tsne.main([str(runs["cvusa"]), str(runs["gap"]), "--names", "FRM", "GAP", "--out", str(tmp_path / "two")])
    out = capsys.readouterr().out
    assert "FRM: R@1" in out and "GAP: R@1" in out and f"drawn: {make_data.TEST} pairs" in out
    one_panel_high, width, _ = written(tmp_path / "two").shape
    assert width > 1.5 * one_panel_high
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(0).normal(size=(30, 5)))
    plot_tsne.main([str(tmp_path / "a.npy"), str(tmp_path / "b.npy"), "--pairs", "10"])
    assert "R@1 100.0 %, pair distance 0.000" in capsys.readouterr().out
    written(tmp_path / "tsne")


def test_tsne_of_vigor_takes_the_tile_that_covers(runs, roots):
    from dataset import VIGOR

    paired = plot_tsne.read_run(runs["vigor"], None)
    np.testing.assert_array_equal(paired.labels, VIGOR(roots["vigor"], "test").labels)
    assert len(paired.reference) == 4 * make_data.GRID**2
    chosen = plot_tsne.draw_pairs(paired, 5, seed=0)
    assert len(set(paired.labels[chosen])) == len(chosen) == 5


def test_mistakes_with_descriptors(runs, tmp_path, capsys):
    np.save(tmp_path / "a.npy", np.ones((3, 5)))
    np.save(tmp_path / "b.npy", np.ones((4, 5)))
    (tmp_path / "c.npy").write_text("no array")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "lacks args.json" in refused(plot_tsne.main, capsys, empty)
    assert "exactly two .npy files" in refused(plot_tsne.main, capsys, tmp_path / "a.npy")
    assert "has shape (3, 5)" in refused(plot_tsne.main, capsys, tmp_path / "a.npy", tmp_path / "b.npy")
    assert "cannot be read" in refused(plot_tsne.main, capsys, tmp_path / "a.npy", tmp_path / "c.npy")
    assert "--names gives" in refused(plot_tsne.main, capsys, runs["cvusa"], "--names", "a", "b")
    assert "at most 1000" in refused(plot_tsne.main, capsys, runs["cvusa"], "--pairs", "1001")
    assert "collapsed" in refused(plot_tsne.main, capsys, tmp_path / "a.npy", tmp_path / "a.npy")


# Heatmaps.


class Blocks(nn.Module):
    """A network that averages blocks of 32 x 32 pixels, with three channels."""

    width = 3

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(3, eps=1e-6)

    def forward(self, images):
        return nn.functional.avg_pool2d(images, 32)

    def map_shape(self, image_size):
        return 3, image_size[0] // 32, image_size[1] // 32


class Synthetic(nn.Module):
    """Two encoders of blocks with FRM or one average."""

    def __init__(self, pooling):
        super().__init__()
        self.query_net = Encoder(Blocks(), pooling("ground"), (128, 512))
        self.reference_net = Encoder(Blocks(), pooling("aerial"), (256, 256))


@pytest.fixture
def signed_pair():
    """A green sign in the panorama's north-west; one in the aerial image's north-west and one in its south-east."""
    ground, aerial = torch.zeros(1, 3, 128, 512), torch.zeros(1, 3, 256, 256)
    ground[0, 1, 32:64, 160:192] = 1  # cell (1, 5) of 4 x 16
    for row, column in ((2, 1), (6, 6)):  # of 8 x 8
        aerial[0, 1, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32] = 1
    return ground, aerial


def test_heat_lies_where_both_views_agree(signed_pair):
    ground, aerial, _ = plot_heatmap.attend(Synthetic(FeatureRecombination), *signed_pair)
    assert ground.shape == (1, 4, 16) and aerial.shape == (1, 8, 8)
    assert (ground[0] > 1e-4).nonzero().tolist() == [[1, 5]]
    assert (aerial[0] > 1e-4).nonzero().tolist() == [[2, 1]]  # the panorama's south-east holds no sign
    over = plot_heatmap.enlarge(aerial[0], (256, 256))
    assert over.shape == (256, 256) and over.max() <= 1
    assert over[80, 48] > 0.9 and over[208, 208] < 1e-4


def test_one_average_cannot_tell_the_quadrants_apart(signed_pair):
    _, aerial, similarity = plot_heatmap.attend(Synthetic(partial(FeatureRecombination, regions=1)), *signed_pair)
    assert (aerial[0] > 1e-4).nonzero().tolist() == [[2, 1], [6, 6]]
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


def test_heatmaps_of_two_runs_side_by_side(runs, tmp_path):
    plot_heatmap.main([str(runs["gap"]), str(runs["cvusa"]), "--queries", "5", "0", "--out", str(tmp_path / "two")])
    first = written(tmp_path / "two")
    assert np.ptp(first[..., :3], axis=2).max() > 0.3  # there is colour
    plot_heatmap.main([str(runs["cvusa"]), "--count", "1", "--out", str(tmp_path / "one")])
    assert written(tmp_path / "one").shape[1] < first.shape[1]


def test_heatmaps_of_weights_that_lie_elsewhere(runs, roots, tmp_path):
    weights = str(runs["cvusa"] / "model_best.pth.tar")
    train.main([*make_data.flags(roots["cvact"], tmp_path / "e", "-e", "--weights", weights, dataset="cvact")])
    plot_heatmap.main([str(tmp_path / "e"), "--count", "1"])
    written(tmp_path / "e" / "heatmap")


@pytest.mark.parametrize("regions", [1, 2, 4, 8])
def test_borders_part_what_falls_into_different_regions(regions):
    """A cell on either side of each border belongs to another region, and there are no other borders."""
    for view, size in (("ground", (8, 64)), ("aerial", (64, 64))):
        cells = torch.eye(size[0] * size[1]).view(-1, 1, *size)
        region = FeatureRecombination(view, regions)(cells)[:, :, 0].argmax(dim=1).view(size)
        drawn = torch.zeros(size, dtype=torch.bool)
        for x, y in plot_heatmap.borders(view, regions):
            for share in np.linspace(0.01, 0.99, 400):
                column, row = (a[0] + share * (a[1] - a[0]) for a in (x, y))
                column, row = column * size[1], row * size[0]
                drawn[int(row - 1e-6) : int(row + 1e-6) + 1, int(column - 1e-6) : int(column + 1e-6) + 1] = True
        parted = torch.zeros(size, dtype=torch.bool)
        across, down = region[:, 1:] != region[:, :-1], region[1:] != region[:-1]
        parted[:, 1:] |= across
        parted[:, :-1] |= across
        parted[1:] |= down
        parted[:-1] |= down
        assert len(region.unique()) == regions
        assert not (drawn & ~torch.nn.functional.max_pool2d(parted[None].float(), 3, 1, 1)[0].bool()).any()
        assert not (parted & ~torch.nn.functional.max_pool2d(drawn[None].float(), 3, 1, 1)[0].bool()).any()


@pytest.mark.parametrize("layout", ["cvact", "vigor"])
def test_heatmaps_of_the_other_layouts(runs, layout):
    plot_heatmap.main([str(runs[layout]), "--count", "2"])
    written(runs[layout] / "heatmap")


def test_mistakes_with_heatmaps(runs, roots, tmp_path, capsys):
    bare = write_run(tmp_path / "bare", roots["cvusa"], "cvusa", weights=False)
    assert "to evaluate" in refused(plot_heatmap.main, capsys, bare)
    assert "lacks args.json" in refused(plot_heatmap.main, capsys, tmp_path)
    assert "--queries 99 is not a query" in refused(plot_heatmap.main, capsys, runs["cvusa"], "--queries", "99")
    assert "dataset is cvact and cvusa" in refused(plot_heatmap.main, capsys, runs["cvact"], runs["cvusa"])
    args = json.loads((runs["gap"] / "args.json").read_text())
    for changed in ({"fov": 180}, {"orientation": "unknown", "seed": 7}, {"vigor_cities": ["Seattle"]}):
        for name, options in (("other", args | changed), ("same", args | changed | {"seed": 8})):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "args.json").write_text(json.dumps(options))
            shutil.copy(runs["gap"] / "model_best.pth.tar", tmp_path / name)
        last = tmp_path / "same" if "seed" in changed else runs["gap"]
        assert "look at different images" in refused(plot_heatmap.main, capsys, tmp_path / "other", last)


# Curves, retrieval, overview.


def test_training_curves(tmp_path):
    for name, epochs in (("a", 3), ("b", 30)):
        (tmp_path / name).mkdir()
        lines = [
            {"epoch": e + 1, "loss": 1 / (e + 1), "positive_similarity": 0.5, "negative_similarity": 0.1}
            | ({"R@1": 10.0 + e, "R@5": 20.0, "R@10": 30.0} if e % 2 == 0 else {})
            for e in range(epochs)
        ]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    history = plot_training.read_history(tmp_path / "a")
    assert plot_training.curve(history, "R@1") == ([1, 3], [10.0, 12.0])
    assert plot_training.curve(history, "Hit") == ([], [])
    figure = plot_training.draw({"a": history, "b": plot_training.read_history(tmp_path / "b")})
    assert [len(axis.lines) for axis in figure.axes] == [2, 4, 6]
    plot_training.main([str(tmp_path / "a"), str(tmp_path / "b"), "--names", "FRM", "one average"])
    written(tmp_path / "a" / "training")


def test_mistakes_with_curves(tmp_path, capsys):
    assert "lacks metrics.jsonl" in refused(plot_training.main, capsys, tmp_path)
    for content, words in (("", "holds 0 lines"), ("{", "cannot be read"), ('{"loss": 1}\n', "each with its epoch")):
        (tmp_path / "metrics.jsonl").write_text(content)
        assert words in refused(plot_training.main, capsys, tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_retrieval_examples(runs, layout, tmp_path):
    plot_retrieval.main([str(runs[layout]), "--count", "2", "--failures", "--out", str(tmp_path)])
    two = written(tmp_path / "retrieval")
    written(tmp_path / "recall")
    plot_retrieval.main([str(runs[layout]), "--queries", "5", "1", "3", "--out", str(tmp_path)])
    assert written(tmp_path / "retrieval").shape[0] > two.shape[0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_retrieval_of_two_files(runs, roots, layout, tmp_path, capsys):
    files = [str(runs[layout] / f"{view}_global_descriptor.npy") for view in ("grd", "sat")]
    data = ["--dataset", layout, "--data-root", str(roots[layout])]
    plot_retrieval.main([*files, *data, "--count", "2", "--out", str(tmp_path / "files")])
    plot_retrieval.main([str(runs[layout]), "--count", "2", "--out", str(tmp_path / "run")])
    for name in ("retrieval", "recall"):
        np.testing.assert_array_equal(written(tmp_path / "files" / name), written(tmp_path / "run" / name))
    assert "exactly two .npy files" in refused(plot_retrieval.main, capsys, files[0])
    assert "says itself what it evaluated" in refused(plot_retrieval.main, capsys, runs[layout], *data[:2])


def test_turned_descriptors_that_are_not_saved_are_not_shown(runs, tmp_path, capsys):
    shutil.copytree(runs["cvusa"], tmp_path / "run")
    metrics = json.loads((runs["cvusa"] / "metrics.json").read_text()) | {"search_north": 4}
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(metrics))
    for main in (plot_tsne.main, plot_retrieval.main):
        assert "evaluated with --search-north" in refused(main, capsys, tmp_path / "run")


def test_retrieval_refuses_queries_that_are_not_there(runs, tmp_path, capsys):
    error = refused(plot_retrieval.main, capsys, runs["cvusa"], "--queries", "0", "99", "--out", str(tmp_path))
    assert "--queries 99 is not a query" in error and not list(tmp_path.iterdir())


def test_figures_show_the_data_of_the_evaluation(runs, roots, tmp_path, capsys):
    """A run trained on one data set and evaluated on another of as many pairs."""
    mixed = tmp_path / "mixed"
    shutil.copytree(runs["cvusa"], mixed)
    metrics = json.loads((mixed / "metrics.json").read_text())
    data = {"dataset": "cvact", "data_root": str(roots["cvact"]), "orientation": "aligned"}
    (mixed / "metrics.json").write_text(json.dumps(metrics | {"dataset": "cvact", "data": data}))
    _, _, query, reference = load_evaluation(mixed)
    assert query.name == reference.name == "cvact" and str(roots["cvact"]) in query.ground[0]
    plot_retrieval.main([str(mixed), "--count", "1"])
    plot_tsne.main([str(mixed)])


def test_many_runs_have_a_colour_each():
    names = [f"run {n} of a name that is long enough to fill a line of its own, and more {n}" for n in range(12)]
    history = [{"epoch": e, "loss": 1 / e, "R@1": 10.0} for e in (1, 2)]
    figure = plot_training.draw(dict.fromkeys(names, history))
    colours = {tuple(line.get_color()) for line in figure.axes[0].lines}
    assert len(colours) == 12


def test_retrieval_refuses_other_data(runs, roots, tmp_path, capsys):
    other = make_data.write_cvusa(tmp_path / "other", train=2, val=3)
    error = refused(plot_retrieval.main, capsys, runs["cvusa"], "--data-root", other)
    assert f"descriptors of {make_data.TEST} queries" in error and "has 3 and 3" in error


def test_overview(roots, tmp_path, capsys):
    images = sorted((roots["pairs"] / "ground").iterdir())[0], sorted((roots["pairs"] / "aerial").iterdir())[0]
    plot_overview.main(["--ground", str(images[0]), "--aerial", str(images[1]), "--out", str(tmp_path / "o.pdf")])
    assert written(tmp_path / "o").shape[1] > 1500
    assert "give both or neither" in refused(plot_overview.main, capsys, "--ground", images[0])
    assert "cannot be read as an image" in refused(
        plot_overview.main, capsys, "--ground", tmp_path / "no.jpg", "--aerial", images[1]
    )


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
