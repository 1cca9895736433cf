"""Files of an earlier commit, kept in tests/earlier, are evaluated, resumed and reported."""

import json
import shutil
from pathlib import Path

import make_data
import numpy as np
import pytest
import torch

import train
from dataset.sampler import MiningSampler
from model import FRGeo
from scripts import report
from utils.checkpoint import load_checkpoint

EARLIER = Path(__file__).parent / "earlier"
DONE = 5  # epochs of 8


@pytest.fixture(params=["asam", "ema"])
def expected(request, tmp_path, monkeypatch):
    """What f9998ff found; the run lies in `run`, its data in `data`, as its args.json says."""
    monkeypatch.chdir(tmp_path)
    found = json.loads((EARLIER / request.param / "expected.json").read_text())
    found["arguments"] = found["arguments"].split()
    dataset = found["arguments"][found["arguments"].index("--dataset") + 1]
    make_data.WRITERS[dataset](Path("data"), train=16, val=7)
    found["evaluate"] = f"--dataset {dataset} --data-root data --save_path run --workers 0 --device cpu -e".split()
    shutil.copytree(EARLIER / request.param, "run")
    return found


def history(folder):
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def reported(capsys):
    """R@1 as the report's last row has it, chance aside."""
    capsys.readouterr()
    report.main(["run"])
    lines = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    lines = [line for line in lines if line[2].strip() != "chance"]
    return float(lines[-1][[cell.strip() for cell in lines[0]].index("R@1")])


def test_an_earlier_run_is_evaluated_and_reported(expected, capsys):
    assert reported(capsys) == pytest.approx(history("run")[-1]["R@1"], abs=0.005)
    metrics = train.main(expected["evaluate"])
    assert metrics == pytest.approx(expected["evaluation"], rel=1e-6)
    for view, rows in expected["descriptors"].items():
        found = np.load(f"run/{view}_global_descriptor.npy")
        found = np.column_stack([np.linalg.norm(found, axis=1), found[:, :3]])
        np.testing.assert_allclose(found, rows, atol=1e-3)
    assert reported(capsys) == pytest.approx(metrics["R@1"], abs=0.005)


def test_an_earlier_run_is_resumed_where_it_stopped(expected, monkeypatch, capsys):
    before = load_checkpoint("run/checkpoint.pth.tar")
    memory, plan = before["sampler"]["memory"], MiningSampler.plan
    mined = []

    def plan_and_look(sampler, epoch):
        if not mined:
            torch.testing.assert_close(sampler.memory.ground, memory["ground"])
            torch.testing.assert_close(sampler.memory.aerial, memory["aerial"])
        planned = plan(sampler, epoch)
        mined.append(sampler.counts["mined"])
        return planned

    monkeypatch.setattr(MiningSampler, "plan", plan_and_look)
    train.main([*expected["arguments"], "--resume", "run/checkpoint.pth.tar"])
    assert mined == [8, 8, 8]  # half of each batch
    lines, resumed = history("run"), expected["resumed"]
    assert [line["epoch"] for line in lines] == list(range(1, 9))
    assert [line["loss"] for line in lines[DONE:]] == pytest.approx(resumed["losses"], abs=1e-4)
    assert lines[-1]["R@1"] == pytest.approx(resumed["R@1"], abs=0.005)
    assert reported(capsys) == pytest.approx(resumed["R@1"], abs=0.005)
    after = load_checkpoint("run/checkpoint.pth.tar")
    assert {int(moments["step"]) for moments in after["optimizer"]["state"].values()} == {8}
    assert after["best_acc1"] == pytest.approx(max(line["R@1"] for line in lines))
    if "average_steps" in resumed:
        assert [line["alpha"] for line in lines[DONE:]] == pytest.approx(resumed["alphas"], rel=1e-4)
        assert after["average_steps"] == resumed["average_steps"] == before["average_steps"] + 3
        assert distance_of_average(after) == pytest.approx(resumed["average_apart"], rel=1e-3)


def distance_of_average(state):
    """|average - online| / |online| over all weights; running statistics of a shared encoder are no longer averaged."""
    online = {name: value.double() for name, value in state["online"].items() if value.is_floating_point()}
    online = {name: value for name, value in online.items() if "running_" not in name}
    between = sum((state["state_dict"][name] - value).square().sum() for name, value in online.items())
    return float(between / sum(value.square().sum() for value in online.values())) ** 0.5


def test_parameters_keep_the_order_of_stored_moments():
    """A checkpoint numbers the optimizer's moments: the query encoder's parameters first, then the reference's."""
    model = FRGeo(arch="test_efficientnet", ground_size=(32, 128), aerial_size=(64, 64))
    names = [name for name, _ in model.named_parameters()]
    query = [name for name in names if name.startswith("query_net.")]
    assert names == [*query, *(name.replace("query_net.", "reference_net.") for name in query)]
