"""Multiply-adds, parameters, time and the bubble plot."""

import pytest
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from scripts import complexity

DEIT = "deit_small_distilled_patch16_224"


@pytest.mark.parametrize(
    ("dataset", "arch", "gmacs"),
    [("cvusa", "convnext_tiny", 11.64), ("vigor", "convnext_tiny", 27.3), ("cvusa", DEIT, 12.3)],
)
def test_published_numbers_within_one_percent(dataset, arch, gmacs):
    """The last is TransGeo's, whose backbone it is."""
    found = complexity.count(complexity.build(dataset, arch))
    assert found.macs / 1e9 == pytest.approx(gmacs, rel=0.01)
    if arch == "convnext_tiny":
        assert found.parameters / 1e6 == pytest.approx(55.64, rel=0.01)
        assert found.ground == (found.aerial if dataset == "cvusa" else 2 * found.aerial)
        assert found.attention == 0
    else:  # published of FRM and WBL on it: 44 M, 11.0; its products are left out of the latter
        assert found.parameters / 1e6 == pytest.approx(44, rel=0.02)
        assert (found.macs - found.attention) / 1e9 == pytest.approx(11.0, rel=0.02)
        tokens, width, blocks = 8 * 32 + 2, 384, 12
        assert found.attention == 2 * blocks * 2 * tokens**2 * width  # two views, q k and then v


@pytest.mark.parametrize("pool", ["frm", "gap"])
@pytest.mark.parametrize("arch", ["test_convnext", "test_vit", "resnet10t"])
def test_counts_agree_with_another_counter(arch, pool):
    """PyTorch's own counter knows the same operations and counts a multiply-add as two."""
    model = complexity.build("cvusa", arch, pool, (64, 128), (96, 96))
    plain = sdpa_kernel(SDPBackend.MATH)  # fused attention on a CPU is unknown to the counter of older versions
    with plain, FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 64, 128), torch.zeros(1, 3, 96, 96))
    found = complexity.count(model)
    assert 2 * found.macs == counter.get_total_flops()
    assert found.parameters == sum(p.numel() for p in model.parameters())


def test_what_is_left_out_is_counted_by_hand():
    """A convolution of 3 x 3 on 8 x 8, a linear layer, a norm and GELU."""
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(256, 5), torch.nn.LayerNorm(5),
        torch.nn.GELU(),
    )  # fmt: skip
    left_out = complexity.Counter()
    assert complexity.count_macs(net, (8, 8), left_out) == 8 * 8 * 4 * 3 * 9 + 256 * 5
    assert left_out == {"biases": 8 * 8 * 4 + 5, "layer norms": 2 * 5, "GELU": 5}


def test_table_and_plot(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(complexity, "COUNTED", (("one", "test_convnext", 97.0), ("two", "test_vit", 95.0)))
    flags = "--dataset cvusa vigor --arch test_convnext --ground-size 32 128 --aerial-size 64 64 --measure --runs 3"
    complexity.main([*flags.split(), "--plot", str(tmp_path / "new" / "bubbles.png")])
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("|")]
    head, first, second = (dict(zip(rows[0], row, strict=True)) for row in (rows[0], *rows[2:]))
    assert (first["data set"], second["data set"]) == ("cvusa", "vigor")
    assert first["ground"] == "32 x 128" and first["published"] == ""
    milliseconds, fastest, slowest = (
        float(word.strip("()")) for word in first["ms per pair (fastest to slowest)"].replace("to", "").split()
    )
    assert 0 < fastest <= milliseconds <= slowest
    assert len(head) == 11 and "multiply-adds" in out and "Left out" in out
    with Image.open(tmp_path / "new" / "bubbles.png") as image:
        assert image.width > 800
    assert (tmp_path / "new" / "bubbles.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--arch nothing", "has no network of this name"),
        ("--arch test_convnext --aerial-size 32 32", "cannot be cut into quadrants"),
        ("--runs 0", "not a whole number of at least 1"),
        ("--dataset pairs", "invalid choice"),
    ],
)
def test_mistakes_end_with_code_2(flags, words, capsys):
    with pytest.raises(SystemExit) as stop:
        complexity.main([*flags.split(), *([] if "--dataset" in flags else ["--dataset", "cvusa"])])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and words in error and len(error.strip().splitlines()) == 1
