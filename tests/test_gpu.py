"""Runs on a simulated GPU: every tensor on one device, and the numbers of the CPU."""

import numpy as np
import pytest
import torch
from make_data import flags, history
from simulated_gpu import GPU, simulated_gpu

import train
from dataset import mining
from dataset.mining import DescriptorMemory
from scripts import score_descriptors
from utils import ranking
from utils.metrics import Turned, rank_queries

RUNS = {
    "vigor": "--op sam --asam --rho 0.1 --mining --cos --wd 0.03",
    "cvact": "--op adamw --label-smoothing 0.1 --learn-temperature --pool gap --dim 64 --augment",
    "cvusa": "--op sgd --loss soft-triplet --batch-size 16 --tuple-size 4",
}


def test_a_gpu_does_not_take_what_lies_elsewhere():
    with simulated_gpu():
        rows = torch.zeros(3, device=GPU) + torch.ones(3).to(GPU)
        assert rows.device == GPU and float(rows.sum()) == 3

        def put():
            rows[torch.tensor([0, 1])] = torch.ones(2)

        for wrong in (lambda: rows + torch.ones(3), lambda: torch.ones(3)[rows.long()], rows.numpy, put):
            with pytest.raises((RuntimeError, TypeError)):
                wrong()
        assert rows.cpu().numpy().tolist() == [1, 1, 1]


@pytest.mark.parametrize("dataset", RUNS)
def test_a_training_keeps_its_tensors_on_the_gpu(roots, tmp_path, dataset):
    """Trained, resumed, evaluated and scored again from its descriptors."""

    def run(device):
        out, common = tmp_path / device, [*RUNS[dataset].split(), "--seed", "1", "--device", device]
        for more in (["--epochs", "1"], ["--epochs", "2", "--resume", str(out / "checkpoint.pth.tar")], ["-e"]):
            metrics = train.main(flags(roots[dataset], out, *common, *more, dataset=dataset))
        assert score_descriptors.main([str(out), "--device", device]) == metrics
        return metrics, [(line["loss"], line["positive_similarity"]) for line in history(out)]

    metrics, lines = run("cpu")
    with simulated_gpu():
        on_gpu = run("cuda")
    assert on_gpu[0] == metrics
    np.testing.assert_allclose(on_gpu[1], lines, atol=1e-5)  # depthwise convolutions run channels first there


@pytest.mark.parametrize("narrow", [torch.bfloat16, None])
def test_ranks_and_neighbours_are_found_on_the_gpu(monkeypatch, narrow):
    for module in (ranking, mining):
        monkeypatch.setattr(module, "narrow_dtype", lambda device: narrow)
    rng = np.random.default_rng(0)
    reference, labels = rng.standard_normal((3000, 96)).astype("f4"), rng.permutation(3000)[:700]
    query = (reference[labels] + 1.5 * rng.standard_normal((700, 96))).astype("f4")
    semi = rng.integers(-1, 3000, (700, 3))
    near = [(np.arange(390), labels[10:400])]

    def found(device):
        q, r, own = (torch.as_tensor(x).to(device) for x in (query, reference, labels))
        every = rank_queries(q, r, labels, semi, nearest=7)
        part = rank_queries(q, reference, own, semi, rows=(10, 400), near=near, nearest=7)
        turned = rank_queries(Turned([q], 4, "queries", device), r, labels, semi, nearest=7)
        memory = DescriptorMemory(3000, 96, device)
        memory.update(torch.from_numpy(labels), q, r[own])  # items on the CPU, and below on the GPU
        memory.update(own[:5], q[:5].cpu(), r[own[:5]].cpu())
        lists = memory.hard_negatives(torch.from_numpy(labels[::3]), np.random.default_rng(0), 600, 20).numpy()
        return [array for ranks in (every, part, turned) for array in ranks if array is not None] + [lists]

    with simulated_gpu():
        gpu = found(GPU)
    for a, b in zip(gpu, found(torch.device("cpu")), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("capability", "narrow"), [((8, 0), torch.bfloat16), ((7, 5), None)])
def test_older_gpus_compare_in_float32(monkeypatch, capability, narrow):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert ranking.narrow_dtype(torch.device("cuda")) == narrow
