from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils import bytes, halves, narrow, ranking
from utils.descriptors import Descriptors, Turned, exact_similarity
from utils.metrics import DescriptorError, positive_ranks, rank_queries, retrieval_metrics, summarise

FORMATS = [(), ("int8",), ("bfloat16",), ("int16",), ("int8", "bfloat16", "int16")]  # compared in ahead of float32
HERE = [name for name in ranking.FORMATS if "int" not in name or narrow.exact_bytes()]  # that this CPU has
TIE = 1e-12  # float64 similarities closer than this are ties in the plain computation below


def plain(query, reference, labels, semi=None):
    """The definitions written out, row by row, in float64."""
    q, r = (np.asarray(x, dtype=np.float64) for x in (query, reference))
    q, r = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, r))
    ranks, hits, covers = [], [], []
    for i, label in enumerate(labels):
        s = np.array([np.sum(q[i] * row) for row in r])
        ranks.append(int(np.sum(s > s[label] + TIE)))
        if semi is not None:
            others = [j for j in range(len(r)) if j not in [k for k in semi[i] if k != label]]
            hits.append(not np.any(s[others] > s[label] + TIE))
            covering = [label, *[k for k in semi[i] if k >= 0]]
            covers.append(not np.any(np.delete(s, covering) > s[covering].max() + TIE))
    ranks, m = np.array(ranks), len(r)
    out = {f"R@{k}": 100 * np.mean(ranks < k) for k in (1, 5, 10)}
    out["R@1%"] = 100 * np.mean(ranks < max(1, m // 100))
    if semi is not None:
        out |= {"Hit": 100 * np.mean(hits), "Hit (top-1 covers)": 100 * np.mean(covers)}
    return ranks, out


@settings(deadline=None, max_examples=80)
@given(
    n=st.integers(1, 40),
    m=st.integers(5, 230),
    d=st.sampled_from([2, 3, 17, 300]),
    chunk=st.integers(1, 300),
    noise=st.floats(0, 4),
    duplicates=st.booleans(),
    dtype=st.sampled_from([np.float64, np.float32, np.float16]),
    formats=st.sampled_from(FORMATS),
    seed=st.integers(0, 10**6),
)
def test_metrics_equal_float64_on_every_query(n, m, d, chunk, noise, duplicates, dtype, formats, seed):
    rng = np.random.default_rng(seed)
    reference = rng.standard_normal((m, d)) * rng.uniform(0.5, 2, (m, 1))
    labels = rng.integers(0, m, n)
    query = reference[labels] + noise * rng.standard_normal((n, d))
    if duplicates:  # equal rows in the gallery, the positive's among them, and scaled copies
        reference[rng.integers(0, m, m // 3)] = reference[rng.choice(labels, m // 3)]
        reference[rng.integers(0, m, m // 5)] = 2 * reference[rng.choice(labels, m // 5)]
    query, reference = query.astype(dtype), reference.astype(dtype)
    semi = np.stack([(labels + s) % m for s in (1, 2, 3)], axis=1)
    semi[rng.random(semi.shape) < 0.2] = -1
    ranks, expected = plain(query, reference, labels, semi)
    np.testing.assert_array_equal(positive_ranks(query, reference, labels, chunk=chunk), ranks)
    found = rank_queries(torch.from_numpy(query), reference, torch.from_numpy(labels), semi, chunk, formats=formats)
    np.testing.assert_array_equal(found.positive, ranks)
    assert summarise(found, m) == pytest.approx(expected, abs=1e-9)
    assert retrieval_metrics(query, reference, labels, semi) == pytest.approx(expected, abs=1e-9)


def test_similarities_that_differ_beyond_float32_are_told_apart():
    """A gallery packed so tightly that float32 cannot order it."""
    rng = np.random.default_rng(0)
    base = rng.standard_normal(64)
    reference = base + 1e-3 * rng.standard_normal((300, 64))
    query = base + 1e-3 * rng.standard_normal((50, 64))
    labels = rng.integers(0, 300, 50)
    ranks, _ = plain(query, reference, labels)
    np.testing.assert_array_equal(positive_ranks(query, reference, labels, chunk=64), ranks)
    assert len(np.unique(ranks)) > 10
    q, r = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, reference))
    nearest = np.argsort(-(q @ r.T), axis=1, kind="stable")[:, :7]
    for formats in FORMATS:  # lists that only float64 can tell
        found = rank_queries(query, reference, labels, formats=formats, nearest=7)
        np.testing.assert_array_equal(found.nearest, nearest)


@pytest.mark.parametrize("held", [2**30, 0])
@pytest.mark.parametrize("formats", FORMATS)
@pytest.mark.parametrize("noise", [0.5, 3, 100])  # clear, near, chance: a narrow format decides most, few, or gives up
@pytest.mark.parametrize("many", [0, 4096])
def test_large_blocks_equal_one_float64_product(monkeypatch, formats, held, noise, many):
    monkeypatch.setattr(ranking, "COLUMNS", 104)
    monkeypatch.setattr(ranking, "MANY", many)
    monkeypatch.setattr(narrow, "HELD_BYTES", held)
    rng = np.random.default_rng(2)
    n, m, d = 700, 1111, 96
    reference, labels = rng.standard_normal((m, d)), rng.integers(0, m, n)
    query = reference[labels] + noise * rng.standard_normal((n, d))
    semi = rng.integers(0, m, (n, 3))
    q, r = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, reference))
    similarity = q @ r.T
    positive = similarity[np.arange(n), labels]
    best = np.maximum(positive, np.take_along_axis(similarity, semi, 1).max(1))
    found = rank_queries(query, reference, labels, semi, chunk=128, formats=formats, nearest=7)
    np.testing.assert_array_equal(found.positive, (similarity > positive[:, None] + TIE).sum(1))
    np.testing.assert_array_equal(found.cover, (similarity > best[:, None] + TIE).sum(1))
    np.testing.assert_array_equal(found.nearest, np.argsort(-similarity, axis=1, kind="stable")[:, :7])


@pytest.mark.parametrize("name", HERE)
def test_a_narrow_format_decides_most_comparisons(monkeypatch, name):
    rng = np.random.default_rng(4)
    reference, labels = rng.standard_normal((6000, 256)), rng.permutation(6000)[:500]
    query = reference[labels] + rng.standard_normal((500, 256))
    asked = []

    def counting(q, r, i, j):
        asked.append(len(i))
        return exact_similarity(q, r, i, j)

    monkeypatch.setattr(ranking, "exact_similarity", counting)
    monkeypatch.setattr(ranking, "_compare", None)  # float32 must not be needed
    assert (rank_queries(query, reference, labels, formats=(name,)).positive == 0).all()
    assert 500 <= sum(asked) < 600  # the positives themselves, and hardly any other


@pytest.mark.parametrize("name", HERE)
def test_many_near_comparisons_are_made_in_float32(monkeypatch, name):
    """Float64 is left with the positives themselves, and hardly any other."""
    rng = np.random.default_rng(5)
    basis = rng.standard_normal((16, 512))
    reference, labels = rng.standard_normal((6000, 16)), rng.permutation(6000)[:500]
    query = reference[labels] + (1.0 if name == "int8" else 3.0) * rng.standard_normal((500, 16))
    query, reference = query @ basis, reference @ basis
    ranks = rank_queries(query, reference, labels, formats=()).positive
    asked, closer = [], []

    def counting(q, r, i, j):
        asked.append(len(i))
        return exact_similarity(q, r, i, j)

    def look_closer(q32, r32, target, found, tie):
        closer.append(len(found[1][0]))
        return look(q32, r32, target, found, tie)

    look = ranking._look_closer
    monkeypatch.setattr(ranking, "MANY", 100)
    monkeypatch.setattr(ranking, "exact_similarity", counting)
    monkeypatch.setattr(ranking, "_look_closer", look_closer)
    monkeypatch.setattr(ranking, "_compare", None)  # no whole float32 block
    np.testing.assert_array_equal(rank_queries(query, reference, labels, formats=(name,)).positive, ranks)
    assert len(np.unique(ranks)) > 100 and sum(closer) > 1000 and 500 <= sum(asked) < 1000


@pytest.mark.parametrize("noise", [1, 30])
def test_turned_queries_score_the_best_of_all_ways(monkeypatch, noise):
    """Two sets of descriptors in four circular shifts each, against the eight products written out."""
    monkeypatch.setattr(ranking, "COLUMNS", 40)
    rng = np.random.default_rng(3)
    n, m, d, regions = 90, 130, 48, 4
    reference, labels = rng.standard_normal((m, d)), rng.integers(0, m, n)
    shifts = rng.integers(0, regions, n)
    sets = [rng.standard_normal((n, d)), np.empty((n, d))]
    for i in range(n):
        sets[1][i] = np.roll(reference[labels[i]], shifts[i] * d // regions) + noise * rng.standard_normal(d)
    semi = rng.integers(0, m, (n, 3))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (*sets, reference)]
    ways = [np.roll(x, k * d // regions, axis=1) @ unit[2].T for x in unit[:2] for k in range(regions)]
    similarity = np.max(ways, axis=0)
    positive = similarity[np.arange(n), labels]
    best = np.maximum(positive, np.take_along_axis(similarity, semi, 1).max(1))
    turned = Turned(sets, regions, "queries", torch.device("cpu"))
    assert turned.ways == 8
    found = rank_queries(turned, reference, labels, semi, chunk=200, nearest=6)
    np.testing.assert_array_equal(found.positive, (similarity > positive[:, None] + TIE).sum(1))
    np.testing.assert_array_equal(found.cover, (similarity > best[:, None] + TIE).sum(1))
    np.testing.assert_array_equal(found.nearest, np.argsort(-similarity, axis=1, kind="stable")[:, :6])
    part = rank_queries(turned, reference, labels, semi, rows=(30, 50))
    np.testing.assert_array_equal(part.positive, found.positive[30:50])
    if noise == 1:
        assert (found.positive == 0).mean() > 0.9
        assert (positive_ranks(sets[1], reference, labels) == 0).mean() < 0.5


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(HERE),
    d=st.sampled_from([2, 7, 64, 700]),
    power=st.integers(-1, 9),  # of the numbers: the larger, the fewer that make up a descriptor; -1: their signs alone
    spread=st.sampled_from([1e-4, 0.1, 1]),
    near=st.floats(-1, 1),
    held=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_what_a_narrow_format_is_sure_of_is_so(name, d, power, spread, near, held, seed):
    rng = np.random.default_rng(seed)
    n, m = 20, 45
    middle = rng.standard_normal(d)
    query, reference = (middle + spread * rng.standard_normal((k, d)) for k in (n, m))
    if power < 0:
        query, reference = np.sign(query), np.sign(reference)
    else:
        query, reference = (x ** (2 * power + 1) + 1e-30 for x in (query, reference))
    query[0], reference[0] = -query[0], -reference[0]  # not collapsed
    q, r = (Descriptors(x, "descriptors", torch.device("cpu")) for x in (query, reference))
    truth = q.unit(slice(0, n), torch.float64) @ r.unit(slice(0, m), torch.float64).T
    made = ranking.FORMATS[name](r, 32)
    with mock.patch.object(bytes, "CONVERTED", 7), mock.patch.object(halves, "CONVERTED", 7):
        assert not held or made.hold()
    every = slice(0, n)
    # Targets within the error of some similarity, on either side; the second above the first.
    error = made.product(made.prepare(q, every, [truth[:, 0]], 0.0), slice(0, 32))[2].error
    first = truth[every, rng.integers(0, 32)] + near * error
    prepared = made.prepare(q, every, [first, first + 0.1 * error], 0.0)
    for columns in (slice(0, 32), slice(32, m)):
        bits, limits, block = made.product(prepared, columns)
        width = columns.stop - columns.start
        for (low, high), target in zip(limits, (first, first + 0.1 * error), strict=True):
            assert (truth[:, columns] > target[:, None])[(bits > high)[:, :width]].all()
            assert (truth[:, columns] <= target[:, None])[(bits <= low)[:, :width]].all()
            assert not (bits > high)[:, width:].any()
        for column in range(width):
            values = block.values[:, column]
            assert ((block.similarity(values) - truth[:, columns.start + column]).abs() <= block.off(values)).all()


@pytest.mark.parametrize(
    ("seconds", "faster"),
    [
        ((1.0, 2.0), ("int8", "bfloat16", "int16")),
        ((1.5, 2.0), ("int8", "bfloat16")),  # three of its products take longer
        ((5.0, 2.0), ("bfloat16",)),
        ((1.0, 5.0), ("int8", "int16")),
        ((5.0, 5.0), ()),
    ],
)
def test_formats_are_taken_where_their_products_are_faster(monkeypatch, seconds, faster):
    taken = dict(zip((torch.int8, torch.bfloat16), seconds, strict=True)) | {torch.float32: 4.0}
    monkeypatch.setattr(narrow, "_processor_flags", lambda: {"avx512_vnni", "avx512_bf16"})
    monkeypatch.setattr(narrow, "_seconds", taken.get)
    assert narrow.faster_formats.__wrapped__(torch.device("cpu")) == faster
    monkeypatch.setattr(narrow, "_processor_flags", set)
    assert narrow.faster_formats.__wrapped__(torch.device("cpu")) == ()


def test_products_of_bytes_that_saturate_are_not_taken(monkeypatch):
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: (a.float() @ b.float()).clamp(max=2**20).int())
    exact = narrow.exact_bytes.__wrapped__
    assert not exact()
    for module in (narrow, bytes):
        monkeypatch.setattr(module, "exact_bytes", exact)
    assert narrow._seconds(torch.int8) == float("inf")
    rng = np.random.default_rng(0)
    reference = np.sign(rng.standard_normal((500, 64)))
    query, labels = reference[:100] * np.where(rng.random((100, 64)) < 0.35, -1, 1), np.arange(100)
    ranks = plain(query, reference, labels)[0]
    for formats in FORMATS:
        np.testing.assert_array_equal(rank_queries(query, reference, labels, formats=formats).positive, ranks)


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="newer than this PyTorch")
def test_precision_is_left_as_it_was_set():
    """By the attributes that come in the place of `torch.set_float32_matmul_precision`, or by that."""
    query, reference, labels = good()
    matmul = torch.backends.cuda.matmul
    try:
        matmul.fp32_precision = "tf32"
        with narrow.full_precision():
            assert matmul.fp32_precision == "ieee"
        retrieval_metrics(query, reference, labels)
        assert matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = "none"
    torch.set_float32_matmul_precision("high")
    try:
        with narrow.full_precision():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("m", [5, 8, 4096, 8 * 255 * 3 + 8])
def test_counting_true_entries(m):
    mask = torch.rand(9, m, generator=torch.Generator().manual_seed(0)) < torch.linspace(0, 1, 9)[:, None]
    mask[-1] = True
    assert torch.equal(narrow.count_true(mask), mask.sum(dim=1))


def test_nearest_of_equal_items_come_in_order_of_number():
    reference = np.repeat(np.eye(3), 4, axis=0)
    found = rank_queries(np.array([[1.0, 0.5, 0.1]]), reference, np.array([0]), nearest=20)
    np.testing.assert_array_equal(found.nearest, [np.arange(12)])
    rng = np.random.default_rng(2)
    kinds = rng.integers(0, 3, 100)
    reference = rng.standard_normal((3, 64)).astype("f4")[kinds]
    found = rank_queries(rng.standard_normal((50, 64)).astype("f4"), reference, np.zeros(50, int), chunk=32, nearest=4)
    for items in found.nearest:
        np.testing.assert_array_equal(items, np.flatnonzero(kinds == kinds[items[0]])[:4])


def test_more_queries_than_gallery_and_small_galleries():
    rng = np.random.default_rng(1)
    reference, labels = rng.standard_normal((20, 8)), rng.integers(0, 20, 90)
    query = reference[labels] + rng.standard_normal((90, 8))
    _, expected = plain(query, reference, labels)
    assert retrieval_metrics(query, reference, labels) == pytest.approx(expected)
    assert expected["R@1%"] == expected["R@1"]  # of fewer than 200 items, 1 % is one


def test_one_percent_counts_whole_items():
    """Positives at rank 2 of 299 are inside R@5 and outside R@1%; of 300 they are inside both."""
    for m, share in ((299, 0.0), (300, 100.0)):
        angles = np.linspace(0, 1, m)
        reference = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        found = retrieval_metrics(np.array([[1.0, 0.0]]), reference, np.array([2]))
        assert found["R@1%"] == share and found["R@5"] == 100.0 and found["R@1"] == 0.0


def test_hit_leaves_semi_positives_out_and_cover_asks_for_the_best_tile():
    reference = np.array([[1, 0.3], [1, 0.1], [1, 0.2], [1, 1.0]])
    query, labels = np.array([[1.0, 0.0]]), np.array([0])
    alone = retrieval_metrics(query, reference, labels, np.array([[-1, -1, -1]]))
    assert alone["R@1"] == alone["Hit"] == alone["Hit (top-1 covers)"] == 0
    one = retrieval_metrics(query, reference, labels, np.array([[1, -1, -1]]))
    assert one["Hit"] == 0 and one["Hit (top-1 covers)"] == 100  # the best covers, a stranger outranks the positive
    both = retrieval_metrics(query, reference, labels, np.array([[1, 2, 2]]))
    assert both["Hit"] == 100 and both["R@1"] == 0


def test_a_part_of_the_queries_gives_its_ranks():
    rng = np.random.default_rng(3)
    reference, labels = rng.standard_normal((50, 9)), rng.integers(0, 50, 31)
    query, semi = rng.standard_normal((31, 9)), rng.integers(0, 50, (31, 3))
    whole = rank_queries(query, reference, labels, semi)
    parts = [rank_queries(query, reference, labels, semi, rows=rows) for rows in ((0, 7), (7, 8), (8, 31))]
    for i in range(3):
        np.testing.assert_array_equal(np.concatenate([part[i] for part in parts]), whole[i])


def good():
    rng = np.random.default_rng(0)
    return rng.standard_normal((6, 4)), rng.standard_normal((6, 4)), np.arange(6)


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: np.where(np.arange(6)[:, None] == 3, np.nan, x), "not finite"),
        (lambda x: np.where(np.arange(6)[:, None] == 3, np.inf, x), "not finite"),
        (lambda x: np.where(np.arange(6)[:, None] == 3, 0, x), "zero vector"),
        (lambda x: np.ones_like(x), "collapsed"),
        (lambda x: np.outer(np.arange(1, 7), np.ones(4)), "collapsed"),  # one direction, whatever the lengths
        (lambda x: 1 + 1e-8 * x, "collapsed"),
        (lambda x: x[0], "shape"),
        (lambda x: x[:0], "shape"),
    ],
)
def test_descriptors_that_must_not_be_scored_are_refused(side, spoil, message):
    sides = list(good())
    sides[side] = spoil(sides[side])
    with pytest.raises(DescriptorError, match=message):
        retrieval_metrics(*sides)
    with pytest.raises(DescriptorError, match=message):
        positive_ranks(*(torch.as_tensor(x) for x in sides))


@pytest.mark.parametrize(("scale", "dtype"), [(1e50, "f8"), (1e-60, "f8"), (1e-42, "f4"), (1e37, "f4")])
@pytest.mark.parametrize("formats", FORMATS)
def test_descriptors_of_any_length_are_scored_by_their_direction(scale, dtype, formats):
    rng = np.random.default_rng(0)
    reference, labels = rng.standard_normal((500, 16)), np.arange(50)
    query = reference[:50] + rng.standard_normal((50, 16))
    lengths = np.where(np.arange(500) % 2, scale, 1.0)[:, None]
    sides = [(x * lengths[: len(x)]).astype(dtype) for x in (query, reference)]
    ranks = plain(*sides, labels, None)[0]
    assert 0 < np.mean(ranks == 0) < 1
    np.testing.assert_array_equal(rank_queries(*sides, labels, formats=formats).positive, ranks)


@pytest.mark.parametrize(
    "labels", [np.arange(1, 7), np.arange(6) - 1, np.arange(5), np.arange(6) / 2, np.arange(6)[:, None]]
)
def test_labels_that_do_not_fit_are_refused(labels):
    query, reference, _ = good()
    with pytest.raises(DescriptorError):
        retrieval_metrics(query, reference, labels)


def test_labels_and_descriptors_of_any_layout_are_read():
    query, reference, labels = good()
    labels, semi = labels[::-1], np.stack([labels, (labels + 1) % 6], axis=1)
    expected = retrieval_metrics(query, reference, labels.copy(), semi)
    swapped = [x.astype(x.dtype.newbyteorder()) for x in (query, reference, labels, semi)]
    assert retrieval_metrics(query, reference, labels, semi) == expected == retrieval_metrics(*swapped)
    none = np.empty((6, 0), dtype=int)
    assert retrieval_metrics(query, reference, labels, none)["R@1"] == expected["R@1"]
    for wrong in ((query, reference, labels, labels), (query + 1j, reference, labels)):
        with pytest.raises(DescriptorError):
            retrieval_metrics(*wrong)


def test_sides_of_different_width_are_refused():
    query, reference, labels = good()
    with pytest.raises(DescriptorError, match="expected equal"):
        retrieval_metrics(query[:, :3], reference, labels)


def test_read_only_memory_maps_are_scored_as_they_are(tmp_path):
    query, reference, labels = good()
    np.save(tmp_path / "r.npy", reference.astype(np.float16))
    mapped = np.load(tmp_path / "r.npy", mmap_mode="r")
    assert retrieval_metrics(query, mapped, labels) == retrieval_metrics(query, np.array(mapped), labels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors_are_scored_like_arrays_and_left_as_they_are(dtype):
    rng = np.random.default_rng(1)
    reference = rng.standard_normal((60, 8)) * rng.uniform(0.1, 9, (60, 1))
    query, labels = reference + rng.standard_normal((60, 8)), np.arange(60)
    sides = [torch.tensor(x, dtype=dtype) for x in (query, reference)]
    before = [x.clone() for x in sides]
    expected = retrieval_metrics(*(x.numpy().copy() for x in sides), labels)
    assert retrieval_metrics(*sides, labels) == retrieval_metrics(*sides, labels) == expected
    assert all(torch.equal(a, b) for a, b in zip(sides, before, strict=True))
