import numpy as np
import pytest
import torch
from released import released_state, write_released

from model import FRGeo
from utils.checkpoint import load_checkpoint, load_weights, model_options, save_checkpoint
from utils.errors import UserError

SMALL = {"arch": "test_convnext", "ground_size": (32, 128), "aerial_size": (64, 64)}


@pytest.fixture(scope="module")
def state():
    return released_state()


def test_released_files_load_with_any_scalar_and_leave_nothing_random(tmp_path, state):
    """The release's best R@1 is a NumPy scalar, pickled by NumPy 1 or 2; every weight comes from the file."""
    path = write_released(tmp_path / "a.pth.tar", best_acc1=np.float32(97.06), epoch=np.int64(3))
    raw = path.read_bytes()
    assert b"numpy" in raw
    a, b = FRGeo(), FRGeo()
    assert load_weights(a, path)["best_acc1"] == pytest.approx(97.06)
    load_weights(b, {"state_dict": state})
    assert load_weights(b, dict(b.state_dict())) == {}
    for (name, p), (_, q) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
        assert torch.equal(p, q), name
    total = sum(v.double().sum() for v in state.values())
    assert sum(p.double().sum() for p in a.state_dict().values()).item() == pytest.approx(total.item(), rel=1e-12)


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_released_files_load_strictly(tmp_path, state, change):
    state = dict(state)
    key = "module.query_net.stages.2.4.pwconv1.bias"
    if change == "missing":
        del state[key]
    elif change == "unexpected":
        state["module.query_net.head.weight"] = torch.zeros(3)
    else:
        state[key] = torch.zeros(7)
    before = FRGeo()
    kept = {k: v.clone() for k, v in before.state_dict().items()}
    with pytest.raises(UserError, match="mlp.fc1.bias|head" if change != "unexpected" else "head"):
        load_weights(before, {"state_dict": state})
    assert all(torch.equal(kept[k], v) for k, v in before.state_dict().items())


def test_own_files_load_strictly_and_say_what_they_were_trained_with(tmp_path):
    model = FRGeo(**SMALL)
    path = tmp_path / "model.pth.tar"
    args = {"arch": "test_convnext", "pool": "frm", "share": False, "lr": 0.1}
    save_checkpoint(path, epoch=2, state_dict=model.state_dict(), best_acc1=5.0, args=args)
    assert model_options(path) == {k: v for k, v in args.items() if k != "lr"}
    assert not any(key.startswith("module.") for key in load_checkpoint(path)["state_dict"])
    other = FRGeo(**SMALL)
    assert load_weights(other, path) == {"epoch": 2, "best_acc1": 5.0, "args": args}
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    with pytest.raises(UserError, match=r"other shape|missing.*arch test_convnext"):
        load_weights(FRGeo(**(SMALL | {"arch": "convnext_atto"})), path)
    wrapped = {"state_dict": {"module." + k: v for k, v in model.state_dict().items()}}
    load_weights(other, wrapped)


def test_a_shared_encoder_is_saved_and_loaded(tmp_path):
    model, other = FRGeo(share=True, **SMALL), FRGeo(share=True, **SMALL)
    save_checkpoint(tmp_path / "m.pth.tar", state_dict=model.state_dict())
    load_weights(other, tmp_path / "m.pth.tar")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert (tmp_path / "m.pth.tar").stat().st_size < 1.2 * sum(p.numel() * 4 for p in model.parameters()) + 2e5


def test_files_that_are_no_checkpoint_are_told(tmp_path):
    with pytest.raises(UserError, match="is not there"):
        load_checkpoint(tmp_path / "none.pth.tar")
    (tmp_path / "text.pth.tar").write_text("<html>quota exceeded</html>")
    with pytest.raises(UserError, match="cannot be read"):
        load_checkpoint(tmp_path / "text.pth.tar")
    torch.save([1, 2], tmp_path / "list.pth.tar")
    with pytest.raises(UserError, match="holds a list"):
        load_checkpoint(tmp_path / "list.pth.tar")
    for content in ({}, {"epoch": 1}, {"state_dict": 5}, {"state_dict": {"w": "text"}}):
        torch.save(content, tmp_path / "empty.pth.tar")
        with pytest.raises(UserError, match="holds no weights"):
            load_weights(FRGeo(**SMALL), tmp_path / "empty.pth.tar")
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
