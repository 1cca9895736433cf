"""Checkpoints: this project's files, and the released ones, of a small network in their key style."""

from pathlib import Path

import numpy as np
import pytest
import torch
from released import released_state, write_released
from test_parity import parity_convnext

from model import FRGeo
from utils.checkpoint import load_checkpoint, load_weights, save_checkpoint, stored_args
from utils.options import UserError

SMALL = {"arch": "test_convnext", "ground_size": (32, 128), "aerial_size": (64, 64)}
RELEASED, KEYS = SMALL | {"arch": parity_convnext.__name__}, "trajectory_keys.json"


@pytest.fixture
def state():
    return released_state(KEYS)


def equal(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_released_files_load_with_any_scalar_and_leave_nothing_random(tmp_path, state):
    """The release's best R@1 is a NumPy scalar, pickled by NumPy 1 or 2; every weight comes from the file."""
    scalars = {"best_acc1": np.float32(97.06), "epoch": np.int64(3)}
    path = write_released(tmp_path / "a.pth.tar", KEYS, **scalars)
    assert b"numpy" in path.read_bytes()
    a, b = FRGeo(**RELEASED), FRGeo(**RELEASED)
    assert load_weights(a, path) == {"best_acc1": pytest.approx(97.06), "epoch": 3}
    load_weights(b, {"state_dict": state})
    assert load_weights(b, dict(b.state_dict())) == {} and equal(a, b)
    total, found = (sum(value.double().sum() for value in values.values()) for values in (state, a.state_dict()))
    torch.testing.assert_close(found, total, rtol=1e-12, atol=0)


KEY = "module.query_net.stages.2.1.pwconv1.bias"


@pytest.mark.parametrize(
    ("lost", "more", "told"),
    [
        (KEY, {}, r"missing .*stages\.2\.blocks\.1\.mlp\.fc1\.bias"),
        (None, {"module.query_net.head.weight": torch.zeros(3)}, "unexpected .*head"),
        (None, {KEY: torch.zeros(7)}, r"other shape .*mlp\.fc1\.bias \(7,\) instead of \(256,\).*--arch"),
        (None, {KEY.replace("2.1", "2.2"): torch.zeros(256)}, r"unexpected .*stages\.2\.blocks\.2.*--arch"),
    ],
)
def test_released_files_load_strictly(state, lost, more, told):
    model, before = (FRGeo(**RELEASED) for _ in range(2))
    before.load_state_dict(model.state_dict())
    with pytest.raises(UserError, match=told):
        load_weights(model, {"state_dict": {key: value for key, value in state.items() if key != lost} | more})
    assert equal(model, before)


def test_a_released_file_of_another_width_or_kind_is_told(state):
    wide = {k: torch.zeros([24 if n == 16 else n for n in v.shape]) for k, v in state.items()}
    with pytest.raises(UserError, match=r"other shape .*conv_dw.weight \(24, 1, 7, 7\) instead of \(16, .*--arch"):
        load_weights(FRGeo(**RELEASED), {"state_dict": wide})
    with pytest.raises(UserError, match="does not fit this model"):
        load_weights(FRGeo(**SMALL | {"arch": "test_resnet"}), {"state_dict": state})


def test_tensors_are_mapped_from_the_file(tmp_path):
    """A mining memory of gigabytes costs a process nothing before it is used."""
    save_checkpoint(tmp_path / "m.pth.tar", sampler={"memory": torch.zeros(999)})
    state = load_checkpoint(tmp_path / "m.pth.tar")
    assert str(tmp_path / "m.pth.tar") in Path("/proc/self/maps").read_text()
    assert state["sampler"]["memory"].shape == (999,)


def test_own_files_load_strictly_and_say_what_they_were_trained_with(tmp_path):
    model, other, path = FRGeo(**SMALL), FRGeo(**SMALL), tmp_path / "model.pth.tar"
    args = {"arch": "test_convnext", "pool": "frm", "share": False, "lr": 0.1}
    save_checkpoint(path, epoch=2, state_dict=model.state_dict(), best_acc1=5.0, args=args)
    assert stored_args(load_checkpoint(path)) == args
    assert not any(key.startswith("module.") for key in load_checkpoint(path)["state_dict"])
    assert load_weights(other, path) == {"epoch": 2, "best_acc1": 5.0, "args": args} and equal(model, other)
    with pytest.raises(UserError, match=r"other shape|missing.*arch test_convnext"):
        load_weights(FRGeo(**SMALL | {"arch": "convnext_atto"}), path)
    load_weights(other, {"state_dict": {"module." + k: v for k, v in model.state_dict().items()}})


def test_a_shared_encoder_is_saved_once_and_loaded(tmp_path):
    model, other, path = FRGeo(share=True, **SMALL), FRGeo(share=True, **SMALL), tmp_path / "m.pth.tar"
    save_checkpoint(path, state_dict=model.state_dict())
    load_weights(other, path)
    assert equal(model, other)
    assert path.stat().st_size < 1.2 * sum(p.numel() * 4 for p in model.parameters()) + 2e5


def test_files_that_are_no_checkpoint_are_told(tmp_path):
    path = tmp_path / "file.pth.tar"
    with pytest.raises(UserError, match="does not exist"):
        load_checkpoint(path)
    path.write_text("<html>quota exceeded</html>")
    with pytest.raises(UserError, match="cannot be read"):
        load_checkpoint(path)
    for content in ([1, 2], {}, {"epoch": 1}, {"state_dict": 5}, {"state_dict": {"w": "text"}}):
        torch.save(content, path)
        with pytest.raises(UserError, match="holds a list" if isinstance(content, list) else "holds no weights"):
            load_weights(FRGeo(**SMALL), path)
    with pytest.raises(UserError, match="does not fit this model"):
        load_weights(FRGeo(**SMALL), {1: torch.ones(1)})


class Evil:
    def __reduce__(self):
        return (open, ("evil_was_here", "w"))


def test_code_in_a_file_is_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "best_acc1": Evil()}, "evil.pth.tar")
    with pytest.raises(UserError, match="cannot be read"):
        load_checkpoint("evil.pth.tar")
    assert not (tmp_path / "evil_was_here").exists()


def test_a_kill_while_writing_leaves_the_last_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pth.tar"
    save_checkpoint(path, epoch=1, state_dict={"w": torch.ones(3)})

    def half(state, file):
        file.write(b"PK and no more")
        raise KeyboardInterrupt

    monkeypatch.setattr("utils.checkpoint.torch.save", half)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, epoch=2, state_dict={"w": torch.zeros(3)})
    assert load_checkpoint(path)["epoch"] == 1
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # half a file would fill the disk further


def test_two_encoders_are_not_loaded_into_a_shared_one(tmp_path):
    options = {"arch": "test_convnext", "ground_size": (32, 128), "aerial_size": (64, 64)}
    save_checkpoint(tmp_path / "two.pth", state_dict=FRGeo(**options).state_dict())
    with pytest.raises(UserError, match=r"two encoders with weights of their own .*omit --share"):
        load_weights(FRGeo(**options, share=True), tmp_path / "two.pth")
    shared = FRGeo(**options, share=True)
    save_checkpoint(tmp_path / "one.pth", state_dict=shared.state_dict())
    load_weights(FRGeo(**options, share=True), tmp_path / "one.pth")
