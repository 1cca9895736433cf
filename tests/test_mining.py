import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dataset import mining
from dataset.mining import DescriptorMemory
from utils.options import UserError


@pytest.fixture(params=[torch.bfloat16, None], ids=str)
def narrow(request, monkeypatch):
    """Both formats, whatever this processor has."""
    monkeypatch.setattr(mining, "narrow_dtype", lambda device: request.param)


def filled(items, dim, mean_cosine=0.0, seen=None):
    """A memory of random pairs that share a direction; and its float64 similarities, items x items."""
    g = torch.Generator().manual_seed(0)
    shared = (mean_cosine / (1 - mean_cosine)) ** 0.5 * F.normalize(torch.randn(dim, generator=g), dim=0)
    aerial = torch.randn(items, dim, generator=g)
    ground = aerial + torch.randn(items, dim, generator=g)
    memory = DescriptorMemory(items, dim)
    memory.update(torch.arange(items)[:seen], *(F.normalize(x, dim=1)[:seen] + shared for x in (ground, aerial)))
    return memory, memory.ground.double() @ memory.aerial.double().T


def in_common(found, exact):
    """How many of its list each anchor shares with the exact one, on average."""
    return np.mean([len(set(a) & set(b)) for a, b in zip(found.tolist(), exact.tolist(), strict=True)])


@pytest.mark.parametrize("mean_cosine", [0.0, 0.95])
def test_hard_lists_are_nearly_the_exact_ones_wherever_the_descriptors_crowd(narrow, monkeypatch, mean_cosine):
    monkeypatch.setattr(mining, "ANCHORS", 150)
    monkeypatch.setattr(mining, "ROWS", 700)
    memory, similarity = filled(3000, 256, mean_cosine)
    assert similarity.mean() == pytest.approx(mean_cosine, abs=0.01)
    anchors = torch.arange(1, 3000, 8)
    found = memory.hard_negatives(anchors, np.random.default_rng(0))
    assert found.shape == (len(anchors), 100) and all(len(row.unique()) == 100 for row in found)
    assert in_common(found, similarity[anchors].topk(100, dim=1).indices) > 97
    assert 0.47 < found.double().mean() / 3000 < 0.53  # no favour of low or high numbers
    values = similarity[anchors].gather(1, found)
    assert (values[:, :10].mean() > values[:, 10:50].mean() > values[:, 50:].mean()) and (found[:, 0] == anchors).all()


def test_the_pool_is_drawn_of_the_items_seen(narrow):
    memory, similarity = filled(130, 16, seen=120)
    anchors = torch.arange(5, 90, 2)
    found = memory.hard_negatives(anchors, np.random.default_rng(0))
    assert in_common(found, similarity[anchors, :120].topk(100, dim=1).indices) > 98 and found.max() < 120
    few = memory.hard_negatives(anchors, np.random.default_rng(0), pool_size=50, neighbours=20)
    pool = np.random.default_rng(0).choice(120, 50, replace=False)
    assert np.isin(few.numpy(), pool).all()
    assert in_common(few, torch.from_numpy(pool)[similarity[anchors][:, pool].topk(20, dim=1).indices]) > 19
    assert memory.hard_negatives(anchors, np.random.default_rng(0), pool_size=7).shape == (len(anchors), 7)


@pytest.mark.parametrize("backwards", [False, True])
def test_the_last_of_equal_items_is_kept_in_whatever_order_rows_are_written(monkeypatch, backwards):
    write = torch.Tensor.index_copy_

    def index_copy(self, dim, index, rows):  # which of equal indices wins is undefined on a GPU
        return write(self, dim, index.flip(0), rows.flip(0)) if backwards else write(self, dim, index, rows)

    monkeypatch.setattr(torch.Tensor, "index_copy_", index_copy)
    memory = DescriptorMemory(6, 3)
    items = torch.tensor([4, 1, 4, 0, 1, 4])
    ground, aerial = torch.randn(2, 6, 3, dtype=torch.float64)
    memory.update(items, ground, aerial)
    for item, last in ((4, 5), (1, 4), (0, 3)):
        torch.testing.assert_close(memory.ground[item], F.normalize(ground[last], dim=0).float())
        torch.testing.assert_close(memory.aerial[item], F.normalize(aerial[last], dim=0).float())
    assert memory.seen.tolist() == [True, True, False, False, True, False]


def test_a_memory_is_restored_from_its_state_and_from_no_other():
    memory, _ = filled(20, 4, seen=15)
    state = {name: rows.clone() for name, rows in memory.state_dict().items()}
    assert set(state) == {"ground", "aerial", "seen"}
    other = DescriptorMemory(20, 4)
    other.load_state_dict(state)
    for name in state:
        assert torch.equal(getattr(other, name), getattr(memory, name))
    with pytest.raises(UserError, match="mining memory is"):
        DescriptorMemory(20, 5).load_state_dict(state)
