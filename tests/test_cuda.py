"""What runs otherwise on a GPU than on a CPU; without a GPU, its arithmetic alone."""

import contextlib
import copy
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before the first product, for --deterministic

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from make_data import ADAMW, ASAM, flags, history, record
from test_model import small
from torch import nn

import train
from criterion import SAM, WBLoss
from model import FRGeo
from model.convnext import FoldedBlock
from model.depthwise import DepthwiseConv2d, triton_fails
from train import compute_gradients, train_step
from utils.checkpoint import load_checkpoint
from utils.graphs import Recorded
from utils.loading import Feed
from utils.metrics import rank_queries
from utils.options import UserError

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def numbers(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def apart(a, b):
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    return float((a - b).norm() / b.norm())


def folded(block):
    other = copy.deepcopy(block)
    other.folded = True
    return other


# Blocks with their norms and layer scales folded.


def gradients(block, x, amp=False):
    block, x = copy.deepcopy(block), x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
        y = block(x)
    (y * numbers(*y.shape, seed=1).to(y)).sum().backward()
    return y, {"x": x.grad} | {name: p.grad for name, p in block.named_parameters()}


@pytest.fixture
def block():
    net = small(layer_scale=0.3).query_net.backbone.net
    found = next(module for module in net.modules() if isinstance(module, FoldedBlock))
    with torch.no_grad():
        for parameter in found.parameters():  # biases start at 0 and norms at 1
            parameter.add_(0.2 * torch.randn_like(parameter))
    return found


def test_a_folded_block_is_the_same_function(block):
    block, x = block.double(), numbers(2, block.gamma.numel(), 8, 12, dtype=torch.float64)
    (y, plain), (z, other) = gradients(block, x), gradients(folded(block), x)
    assert apart(z, y) < 1e-12 and list(other) == list(plain)
    for name, gradient in plain.items():
        assert apart(other[name], gradient) < 1e-11, name


def test_a_folded_block_in_bfloat16_is_as_near_to_float32_and_keeps_the_residual_path_wide(block):
    for dtype in (torch.float32, torch.bfloat16):  # after a downsampling convolution it starts in bfloat16
        x = numbers(4, block.gamma.numel(), 16, 16, dtype=dtype)
        exact, far = gradients(block.float(), x.float()), {}
        for name, way in (("plain", block), ("folded", folded(block))):
            y, found = gradients(way, x, amp=True)
            assert y.dtype == torch.float32
            far[name] = {key: apart(found[key], gradient) for key, gradient in exact[1].items()}
        for key in far["plain"]:
            assert far["folded"][key] < max(2 * far["plain"][key], 0.01), key


def test_only_blocks_that_can_be_folded_are():
    for arch in ("convnextv2_atto", "test_resnet"):  # a norm between the layers and no layer scale; another network
        assert not any(isinstance(m, FoldedBlock) for m in small(arch=arch).modules())
    model = small()
    assert any(isinstance(m, FoldedBlock) for m in model.modules())
    assert not any(m.folded for m in model.modules() if isinstance(m, FoldedBlock))
    keys = list(model.state_dict())
    pytest.importorskip("triton")
    model.optimize(fast_gpu=True)
    convs = [m for m in model.modules() if isinstance(m, DepthwiseConv2d)]
    assert all(m.folded for m in model.modules() if isinstance(m, FoldedBlock)) and all(m.triton for m in convs)
    assert list(model.state_dict()) == keys
    other = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8))
    DepthwiseConv2d.adopt(other)
    other[0].use_triton()
    assert not other[0].triton


# Triton's kernels.

SHAPES = [(2, 32, 4, 8), (3, 40, 5, 7), (2, 16, 2, 6), (1, 8, 1, 1), (5, 32, 9, 3)]


def check_kernels(device, shapes=SHAPES):
    """Results and gradients of the kernels against float64, by shape and format."""
    from model import depthwise_gpu
    from model.depthwise_gpu import depthwise

    depthwise_gpu.PROGRAMS = 6  # so few that each sums several images
    for n, c, h, w in shapes:
        for kind in (torch.float32, torch.bfloat16):
            x = numbers(n, c, h, w).to(device, memory_format=torch.channels_last).requires_grad_()
            weight, bias = (numbers(*s, seed=1).to(device).requires_grad_() for s in ((c, 1, 7, 7), (c,)))
            grad = numbers(n, c, h, w, seed=2).to(device, kind)
            y = depthwise(x, weight.flatten(1).T.contiguous(), bias, kind)
            y.backward(grad)
            assert y.dtype == kind and y.is_contiguous(memory_format=torch.channels_last)
            exact = [t.detach().double().cpu().requires_grad_() for t in (x, weight, bias)]
            plain = F.conv2d(*exact, padding=3, groups=c)
            plain.backward(grad.double().cpu())
            assert apart(y, plain) < (1e-6 if kind == torch.float32 else 4e-3), (n, c, h, w)
            for own, other in zip((x, weight, bias), exact, strict=True):
                assert apart(own.grad, other.grad) < 2e-6, (n, c, h, w, kind)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU runs them")
def test_kernels_in_tritons_interpreter():
    version = pytest.importorskip("triton").__version__
    if tuple(map(int, version.split(".")[:2])) < (3, 7):
        pytest.skip(f"the interpreter of Triton {version} fails with today's NumPy")
    env = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "TRITON_DEFAULT_FP_FUSION": "1"}
    code = "import sys; sys.path.insert(0, 'tests'); import test_cuda; test_cuda.check_kernels('cpu')"
    root = Path(__file__).parents[1]
    run = subprocess.run([sys.executable, "-c", code], env=env, cwd=root, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@needs_gpu
def test_kernels_on_the_gpu():
    check_kernels(GPU, [*SHAPES, (5, 96, 16, 64), (2, 768, 8, 8)])


def test_without_triton_or_with_batch_norms_the_plain_ways_are_used(roots, tmp_path, monkeypatch):
    triton_fails.cache_clear()
    monkeypatch.setitem(sys.modules, "model.depthwise_gpu", None)
    assert triton_fails(CPU).startswith("Triton does not work here (ModuleNotFoundError: ")
    triton_fails.cache_clear()
    more = ["--fast-gpu", "--arch", "test_resnet", "--dim", "384", "--epochs", "1", "--op", "sgd"]
    train.main(flags(roots["cvusa"], tmp_path, *more))
    assert "--fast-gpu is not used: the network has batch norms" in (tmp_path / "log.txt").read_text()


# Recorded functions.


class FakeGraph:
    """A graph that, replayed, calls the recorded function on the recorded inputs and writes over its outputs."""

    def replay(self):
        gradients = [p.grad for p in self.recorded.parameters]
        for new, old in zip(self.recorded.function(*self.recorded.inputs), self.recorded.outputs, strict=True):
            old.copy_(new)
        for p, own, before in zip(self.recorded.parameters, self.recorded.gradients, gradients, strict=True):
            own.copy_(p.grad if before is None else p.grad - before)
            p.grad = before


@pytest.fixture
def recording(monkeypatch):
    """recording(function, ...): a `Recorded` on a GPU, or on a CPU with a graph that is not one."""

    def record(*args, **kwargs):
        recorded = Recorded(*args, **kwargs)
        if not torch.cuda.is_available():
            FakeGraph.recorded = recorded
        return recorded

    if not torch.cuda.is_available():
        stream = type("Stream", (), {"wait_stream": lambda self, other: None})
        monkeypatch.setattr(torch.cuda, "Stream", stream)
        monkeypatch.setattr(torch.cuda, "current_stream", stream)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
        monkeypatch.setattr(torch.cuda, "graph", lambda graph, **_: contextlib.nullcontext())
        monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
        monkeypatch.setattr(torch.cuda, "get_rng_state", torch.get_rng_state)
        monkeypatch.setattr(torch.cuda, "set_rng_state", torch.set_rng_state)
    return record


def test_a_recorded_function_gives_what_the_function_gives(recording):
    device = GPU if torch.cuda.is_available() else CPU
    layer, seen = nn.Linear(3, 2).to(device), torch.zeros(1, device=device)

    def function(x):
        seen.add_(1)
        y = layer(x)
        y.square().sum().backward()
        return y.detach(), x.sum()

    recorded = recording(function, layer.parameters(), [seen])
    results = []
    for i in range(3):
        x = numbers(4, 3, seed=i).to(device)
        results.append((recorded(x), layer.weight.grad.clone(), x))
        layer.zero_grad()
    assert float(seen) == 3  # calls before the recording leave no trace
    odd = recorded(numbers(5, 3).to(device))
    assert odd[0].shape == (5, 2)
    layer.zero_grad()
    for (y, total), gradient, x in results:  # earlier results are not written over
        expected = function(x)
        torch.testing.assert_close((y, total, gradient), (*expected, layer.weight.grad))
        layer.zero_grad()


def test_what_cannot_be_recorded_is_told(recording, monkeypatch):
    @contextlib.contextmanager
    def graph(_, **__):
        yield
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", graph)
    with pytest.raises(UserError, match=r"stream is capturing\); omit --fast-gpu"):
        recording(lambda x: (x,))(torch.zeros(1, device="cuda" if torch.cuda.is_available() else "cpu"))


def steps(model, images, sam, amp, fast, count=3):
    """Losses of some steps and the weights after them."""
    model = copy.deepcopy(model)
    model.optimize(fast_gpu=fast)
    settings = {"lr": 1e-4, "weight_decay": 0.03, "fused": True}
    parameters, criterion = list(model.parameters()), WBLoss()
    optimizer = (
        SAM(parameters, torch.optim.AdamW, 2.5, True, **settings) if sam else torch.optim.AdamW(parameters, **settings)
    )
    autocast = torch.autocast("cuda", dtype=torch.bfloat16, enabled=amp)
    compute = partial(compute_gradients, model, criterion, autocast)
    compute = Recorded(compute, parameters) if fast else compute
    found = [train_step(model, criterion, optimizer, *images, autocast, compute) for _ in range(count)]
    return torch.stack([values[0] for values, _, _ in found]).cpu(), found[-1][1]


@needs_gpu
@pytest.mark.parametrize("sam", [False, True])
@pytest.mark.parametrize("amp", [False, True])
def test_fast_steps_equal_the_cpus(sam, amp):
    torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    model = FRGeo(ground_size=(64, 256), aerial_size=(128, 128), layer_scale=0.1)
    images = [numbers(8, 3, *size) for size in (model.ground_size, model.aerial_size)]
    cpu, q = steps(model, images, sam, False, False)
    model.to(GPU, memory_format=torch.channels_last)
    images = [image.to(GPU, memory_format=torch.channels_last) for image in images]
    fast, fast_q = steps(model, images, sam, amp, True)
    torch.backends.cudnn.allow_tf32 = True
    assert float((fast - cpu).abs().max()) < (0.05 if amp else 2e-5)
    assert apart(fast_q, q) < (0.05 if amp else 1e-3)


@needs_gpu
def test_golden_descriptors_on_the_gpu(tmp_path):
    from released import write_released
    from test_parity import GOLDEN, images

    from utils.checkpoint import load_weights

    model = FRGeo().eval()
    load_weights(model, write_released(tmp_path / "model_best.pth.tar"))
    model.to(GPU, memory_format=torch.channels_last)
    model.optimize(fast_gpu=True)
    for allowed, amp, bound in ((False, False, 2e-5), (True, False, 0.02), (True, True, 0.2)):
        torch.backends.cudnn.allow_tf32 = allowed
        with torch.inference_mode(), torch.autocast("cuda", dtype=torch.bfloat16, enabled=amp):
            q = model.query_net(images(11, 2, 3, 128, 512).to(GPU)).float().cpu().numpy()
            k = model.reference_net(images(12, 2, 3, 256, 256).to(GPU)).float().cpu().numpy()
        assert np.abs(q - GOLDEN["cvusa_q"]).max() < bound and np.abs(k - GOLDEN["cvusa_k"]).max() < bound


@needs_gpu
def test_ranks_on_the_gpu_equal_the_cpus():
    reference, labels = numbers(9000, 512), torch.arange(5000)
    query = reference[:5000] + 3.5 * numbers(5000, 512, seed=1)
    found = [rank_queries(query.to(d), reference.to(d), labels, nearest=5) for d in (CPU, GPU)]
    np.testing.assert_array_equal(found[0].positive, found[1].positive)
    np.testing.assert_array_equal(found[0].nearest, found[1].nearest)


# Whole runs.


@needs_gpu
def test_a_resumed_run_on_the_gpu_ends_as_if_never_stopped(roots, tmp_path):
    common = [
        *ASAM,
        "--mining",
        "--device",
        "cuda",
        "--deterministic",
        "-j",
        "8",
        "--ema",
        "0.9",
        "--eval-batch-size",
        "3",
    ]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train.main([*flags(roots["cvusa"], whole), *common, "--epochs", "3"])
    train.main([*flags(roots["cvusa"], parts), *common, "--epochs", "2"])
    last = ["--epochs", "3", "--resume", str(parts / "checkpoint.pth.tar")]
    metrics = train.main([*flags(roots["cvusa"], parts), *common, *last])
    torch.use_deterministic_algorithms(False)
    a, b = (load_checkpoint(out / "checkpoint.pth.tar") for out in (whole, parts))
    assert "steps run as a CUDA graph" in (whole / "log.txt").read_text()
    for key in ("state_dict", "online"):
        assert all(torch.equal(a[key][name], b[key][name]) for name in a[key])
    weights = ["-e", "--weights", str(parts / "checkpoint.pth.tar")]
    for more in ("cuda --fast-gpu --eval-batch-size 3", "cuda", "cpu"):
        assert train.main([*flags(roots["cvusa"], parts), *weights, "--device", *more.split()]) == metrics


@needs_gpu
@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("--arch test_vit --learn-temperature --amp bf16", "as a CUDA graph"),
        ("--multiprocessing-distributed --nprocs 1", "as a CUDA graph"),
        ("--arch test_resnet --dim 384 --op sgd", "kernel by kernel (no --fast-gpu)"),
        ("--compile --grad-checkpointing --amp bf16", "kernel by kernel (--grad-checkpointing)"),
    ],
)
def test_options_on_the_gpu(roots, tmp_path, more, told):
    train.main(
        [*flags(roots["cvusa"], tmp_path), *ADAMW, "--device", "cuda", "--fast-gpu", "--epochs", "2", *more.split()]
    )
    assert f"steps run {told}" in (tmp_path / "log.txt").read_text()
    assert all(np.isfinite(line["loss"]) for line in history(tmp_path)) and record(tmp_path)["epoch"] == 2


class Numbers(torch.utils.data.Dataset):
    """The numbers from `first` on, each with the process that read it."""

    collate = staticmethod(lambda samples: torch.tensor(samples))

    def __init__(self, first):
        self.first = first

    def samples(self, indices):
        return [(self.first + index, os.getpid()) for index in indices]


def test_loader_processes_are_made_once_for_all_datasets():
    datasets, args = [Numbers(0), Numbers(100)], type("Args", (), {"workers": 2})
    feed, seen = Feed(datasets, args, CPU), set()
    for number, plan, expected in (
        (0, [range(3), range(3, 5)], [[0, 1, 2], [3, 4]]),
        (1, [[7], [1, 2], []], [[107], [101, 102], []]),
        (0, [np.array([4])], [[4]]),
    ):
        batches = list(feed.batches(datasets[number], plan))
        assert [[row[0] for row in batch.tolist()] for batch in batches] == expected
        seen |= {row[1] for batch in batches for row in batch.tolist()}
    assert len(seen) == 2 and os.getpid() not in seen
