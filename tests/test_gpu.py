"""Runs on a simulated GPU: every tensor on one device, and the numbers of the CPU."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from make_data import flags
from simulated_gpu import GPU, simulated_gpu

import train
from dataset import neighbours
from dataset.neighbours import UnitRows, nearest_rows
from utils import ranking
from utils.descriptors import Turned
from utils.metrics import rank_queries

ASAM = ["--op", "sam", "--asam", "--rho", "0.1", "--mining", "--cos", "--wd", "0.03"]
RUNS = {
    "asam": ASAM,
    "average": ["--op", "adamw", "--ema", "0.9", "--label-smoothing", "0.1", "--learn-temperature"],
    "one region": ["--op", "adamw", "--pool", "gap", "--dim", "64", "--mining", "--augment"],
    "triplet": ["--op", "sgd", "--loss", "soft-triplet", "--batch-size", "16", "--tuple-size", "4"],
}


def test_a_gpu_does_not_take_what_lies_elsewhere():
    with simulated_gpu():
        rows = torch.zeros(3, device="cuda") + torch.ones(3).to(GPU)
        assert rows.device == GPU and float(rows.sum()) == 3

        def put():
            rows[torch.tensor([0, 1])] = torch.ones(2)

        for wrong in (lambda: rows + torch.ones(3), lambda: torch.ones(3)[rows.long()], rows.numpy, put):
            with pytest.raises((RuntimeError, TypeError)):
                wrong()
        assert rows.cpu().numpy().tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("name", "dataset"), [("asam", "vigor"), ("average", "vigor"), ("one region", "cvusa"), ("triplet", "cvusa")]
)
def test_a_training_keeps_its_tensors_on_the_gpu(roots, tmp_path, name, dataset):
    """Trained, resumed, evaluated and scored again from its descriptors."""

    def run(device):
        out = tmp_path / device
        common = [*RUNS[name], "--seed", "1", "--device", device]
        train.main(flags(roots[dataset], out, *common, "--epochs", "1", dataset=dataset))
        resumed = ["--epochs", "2", "--resume", str(out / "checkpoint.pth.tar")]
        trained = train.main(flags(roots[dataset], out, *common, *resumed, dataset=dataset))
        found = train.main(flags(roots[dataset], out, *common, "-e", dataset=dataset))
        more = ["-e", "--descriptors", str(out), "--device", device]
        again = train.main(["--dataset", dataset, "--data-root", str(roots[dataset]), "--save_path", str(out), *more])
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        return trained, found, again, [(line["loss"], line["positive_similarity"]) for line in lines]

    cpu = run("cpu")
    with simulated_gpu():
        assert run("cuda") == cpu


@pytest.mark.parametrize("formats", [(), ("bfloat16",), None])
def test_ranks_and_neighbours_are_found_on_the_gpu(monkeypatch, formats):
    for module in (ranking, neighbours):
        monkeypatch.setattr(module, "SMALL", 0)  # so that None asks what is faster there
    rng = np.random.default_rng(0)
    reference, labels = rng.standard_normal((3000, 96)).astype("f4"), rng.permutation(3000)[:700]
    query = (reference[labels] + 1.5 * rng.standard_normal((700, 96))).astype("f4")
    semi = rng.integers(-1, 3000, (700, 3))
    near = [(np.arange(390), labels[10:400])]
    rows = F.normalize(torch.from_numpy(reference), dim=1)
    asked = {"formats": formats, "nearest": 7}

    def found(device):
        q, r, unit = (torch.as_tensor(x).to(device) for x in (query, reference, rows))
        every = rank_queries(q, r, labels, semi, **asked)
        part = rank_queries(q, reference, torch.from_numpy(labels).to(device), semi, rows=(10, 400), near=near, **asked)
        turned = rank_queries(Turned([q], 4, "queries", torch.device(device)), r, labels, semi, **asked)
        index = torch.arange(0, 3000, 2).to(device)
        pools = (
            nearest_rows(UnitRows(unit), UnitRows(unit, index), 20, fast=formats if formats is None else bool(formats))
            .cpu()
            .numpy()
        )
        pools = [np.sort(pools, axis=1)]  # rows too near to tell apart in bfloat16 are in the order they were found
        return [array for ranks in (every, part, turned) for array in ranks if array is not None] + pools

    with simulated_gpu():
        gpu = found("cuda")
    for a, b in zip(gpu, found("cpu"), strict=True):
        np.testing.assert_array_equal(a, b)
