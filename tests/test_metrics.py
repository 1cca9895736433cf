from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils import ranking
from utils.metrics import DescriptorError, Turned, positive_ranks, rank_queries, retrieval_metrics, summarise

NARROW = [torch.bfloat16, None]  # formats compared in first; None: float32
TIE = 1e-14  # float64 similarities closer than this are ties in the plain computation below


@pytest.fixture(params=NARROW, ids=str)
def narrow(request, monkeypatch):
    """Both formats, whatever this processor has."""
    monkeypatch.setattr(ranking, "narrow_dtype", lambda device: request.param)
    return request.param


def unit(rows):
    rows = np.asarray(rows, dtype=np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def plain_similarity(query, reference):
    """Row by row, so that equal rows have equal similarities."""
    q, r = unit(query), unit(reference)
    return np.array([[np.sum(a * b) for b in r] for a in q]).reshape(len(q), len(r))


def plain(similarity, labels, semi=None):
    """The definitions written out: per query the ranks, ties and whether Hit and cover hold; the metrics."""
    ranks, ties, hits, covers = [], [], [], []
    for i, label in enumerate(labels):
        s = similarity[i]
        ranks.append(int(np.sum(s > s[label] + TIE)))
        ties.append(int(np.sum(abs(s - s[label]) <= TIE)) - 1)
        if semi is not None:
            others = [j for j in range(len(s)) if j not in [k for k in semi[i] if k != label]]
            hits.append(not np.any(s[others] > s[label] + TIE))
            covering = [label, *[k for k in semi[i] if k >= 0]]
            covers.append(not np.any(np.delete(s, covering) > s[covering].max() + TIE))
    ranks, m = np.array(ranks), similarity.shape[1]
    metrics = {f"R@{k}": 100 * np.mean(ranks < k) for k in (1, 5, 10)}
    metrics["R@1%"] = 100 * np.mean(ranks < max(1, m // 100))
    if semi is not None:
        metrics |= {"Hit": 100 * np.mean(hits), "Hit (top-1 covers)": 100 * np.mean(covers)}
    return ranks, np.array(ties), metrics


def check(query, reference, labels, semi=None, nearest=3, similarity=None, **how):
    """Everything that `rank_queries` gives against the definitions. Returns the ranks."""
    similarity = plain_similarity(query, reference) if similarity is None else similarity
    ranks, ties, metrics = plain(similarity, labels, semi)
    found = rank_queries(query, reference, labels, semi, nearest=nearest, **how)
    np.testing.assert_array_equal(found.positive, ranks)
    np.testing.assert_array_equal(found.ties, ties)
    np.testing.assert_array_equal(found.nearest, np.argsort(-similarity.round(14), axis=1, kind="stable")[:, :nearest])
    assert summarise(found, similarity.shape[1]) == pytest.approx(metrics, abs=1e-9)
    return ranks


@settings(deadline=None, max_examples=100)
@given(
    n=st.integers(1, 40),
    m=st.integers(5, 130),
    d=st.sampled_from([2, 3, 17, 500]),
    chunk=st.integers(1, 200),
    noise=st.floats(0, 4),
    duplicates=st.booleans(),
    dtype=st.sampled_from([np.float64, np.float32, np.float16, np.int32]),
    narrow=st.sampled_from(NARROW),
    nearest=st.integers(1, 9),
    seed=st.integers(0, 10**6),
)
def test_metrics_equal_float64_on_every_query(n, m, d, chunk, noise, duplicates, dtype, narrow, nearest, seed):
    rng = np.random.default_rng(seed)
    scale = 1000 if dtype == np.int32 else 1
    reference = scale * rng.standard_normal((m, d)) * rng.uniform(0.5, 2, (m, 1))
    labels = rng.integers(0, m, n)
    query = reference[labels] + scale * noise * rng.standard_normal((n, d))
    query, reference = query.round(4).astype(dtype), reference.round(4).astype(dtype)
    reference[(reference == 0).all(1)] = 1  # no zero vectors among integers
    query[(query == 0).all(1)] = 1
    if duplicates:  # equal rows in the gallery, the positive's among them, and scaled copies
        reference[rng.integers(0, m, m // 3)] = reference[rng.choice(labels, m // 3)]
        reference[rng.integers(0, m, m // 5)] = 2 * reference[rng.choice(labels, m // 5)]
    semi = np.stack([(labels + s) % m for s in (1, 2, 3)], axis=1)
    semi[rng.random(semi.shape) < 0.2] = -1
    if len(np.unique(unit(reference).round(6), axis=0)) == 1 or (
        n > 1 and len(np.unique(unit(query).round(6), axis=0)) == 1
    ):
        return  # collapsed: refused
    with mock.patch.object(ranking, "narrow_dtype", lambda device: narrow):
        ranks = check(query, reference, labels, semi, nearest, chunk=chunk)
        check(torch.from_numpy(query), reference, torch.from_numpy(labels), semi, nearest)
        np.testing.assert_array_equal(positive_ranks(query, reference, labels, chunk=chunk), ranks)
        expected = plain(plain_similarity(query, reference), labels, semi)[2]
        assert retrieval_metrics(query, reference, labels, semi) == pytest.approx(expected, abs=1e-9)


def aligned(step, count):
    """A unit vector of `count` equal numbers, by a share `step` above a bfloat16 number, and one more."""
    number = (1 + step) / 16
    return np.append(np.full(count, number), np.sqrt(1 - count * number**2))


@pytest.mark.parametrize("gap", [1e-6, -1e-6])
@pytest.mark.parametrize(("step", "count"), [(0.98 * 2**-8, 254), (1.02 * 2**-8, 253)])  # all are rounded down, or up
def test_rounding_errors_that_add_up_are_within_the_bound(narrow, gap, step, count):
    """Rivals just above or below the positive, as far off in bfloat16 as the numbers of both sides can make them."""
    rng = np.random.default_rng(0)
    query = aligned(step, count)
    rivals, positives, far = [], [], rng.standard_normal((4, len(query)))
    for flipped in range(2, 60, 2):
        rival = query.copy()
        rival[rng.permutation(count)[:flipped]] *= -1
        aside = rng.standard_normal(len(query))
        aside = unit([aside - (aside @ query) * query])[0]
        target = rival @ query - gap
        rivals.append(rival)
        positives.append(target * query + np.sqrt(1 - target**2) * aside)
        with mock.patch.object(ranking, "TOO_CLOSE", 1):  # no other format is asked
            check(query[None], np.vstack([rival, positives[-1], far]), [1], nearest=1)
    n = len(rivals)
    with mock.patch.object(ranking, "TOO_CLOSE", 1):
        ranks = check(
            np.vstack([np.tile(query, (n, 1)), far]), np.vstack([rivals, positives, far]), np.arange(n, 2 * n + 4)
        )
    assert (ranks[:n] == 2 * np.arange(n) + (gap > 0)).all()


@pytest.mark.parametrize("spread", [1e-2, 1e-3])
def test_galleries_too_tight_for_any_format_are_told_apart(narrow, spread):
    rng = np.random.default_rng(0)
    base = rng.standard_normal(64)
    reference, query = (base + spread * rng.standard_normal((rows, 64)) for rows in (300, 50))
    reference[0], query[0] = -reference[0], -query[0]  # not collapsed
    ranks = check(query, reference, rng.integers(0, 300, 50), chunk=64, nearest=7)
    assert len(np.unique(ranks)) > 10


@pytest.mark.parametrize("held", [2**30, 0])
@pytest.mark.parametrize("noise", [0.5, 3, 100])  # clear, near, chance: the first format decides most, some, few
def test_many_blocks_give_what_one_product_does(narrow, monkeypatch, held, noise):
    monkeypatch.setattr(ranking, "HELD_BYTES", held)
    rng = np.random.default_rng(2)
    reference, labels = rng.standard_normal((1111, 96)), rng.integers(0, 1111, 300)
    query, semi = reference[labels] + noise * rng.standard_normal((300, 96)), rng.integers(0, 1111, (300, 3))
    check(query, reference, labels, semi, 7, similarity=unit(query) @ unit(reference).T, chunk=100)


def test_the_narrowest_format_that_decides_most_comparisons_forms_a_block(monkeypatch):
    monkeypatch.setattr(ranking, "narrow_dtype", lambda device: torch.bfloat16)
    formats, compared = set(), []

    def rounded(self, rows, dtype, plain=ranking.Descriptors.rounded):
        formats.add(dtype)
        return plain(self, rows, dtype)

    def similarity(self, r, i, j, plain=ranking.Descriptors.similarity):
        compared.append(len(i))
        return plain(self, r, i, j)

    monkeypatch.setattr(ranking.Descriptors, "rounded", rounded)
    monkeypatch.setattr(ranking.Descriptors, "similarity", similarity)
    rng = np.random.default_rng(4)
    reference, labels = rng.standard_normal((3000, 256)), rng.permutation(3000)[:200]
    rank_queries(reference[labels] + rng.standard_normal((200, 256)), reference, labels)
    assert formats == {torch.bfloat16} and sum(compared) < 500  # twice the positives, and few more
    rank_queries(rng.standard_normal((200, 256)), reference, labels)
    assert formats == {torch.bfloat16, torch.float32}
    rank_queries(reference[0] + 1e-3 * rng.standard_normal((200, 256)), reference[0] + 1e-3 * reference, labels)
    assert formats == {torch.bfloat16, torch.float32, torch.float64}


@pytest.mark.parametrize("noise", [1, 30])
def test_turned_queries_score_the_best_of_all_ways(narrow, noise):
    """Two sets of descriptors in four circular shifts each, against the eight products written out."""
    rng = np.random.default_rng(3)
    n, m, d, regions = 90, 130, 48, 4
    reference, labels = rng.standard_normal((m, d)), rng.integers(0, m, n)
    shifts = rng.integers(0, regions, n)
    sets = [rng.standard_normal((n, d)), np.empty((n, d))]
    for i in range(n):
        sets[1][i] = np.roll(reference[labels[i]], shifts[i] * d // regions) + noise * rng.standard_normal(d)
    semi = rng.integers(0, m, (n, 3))
    ways = [np.roll(x, k * d // regions, axis=1) for x in sets for k in range(regions)]
    similarity = np.max([unit(way) @ unit(reference).T for way in ways], axis=0)
    turned = Turned(sets, regions, "queries", torch.device("cpu"))
    ranks = check(turned, reference, labels, semi, 6, similarity=similarity, chunk=40)
    np.testing.assert_array_equal(rank_queries(turned, reference, labels, rows=(30, 50)).positive, ranks[30:50])
    if noise == 1:
        assert (ranks == 0).mean() > 0.9
        assert (positive_ranks(sets[1], reference, labels) == 0).mean() < 0.5
    with pytest.raises(DescriptorError, match="do not divide into 5 regions"):
        rank_queries(Turned(sets, 5, "queries", torch.device("cpu")), reference, labels)


def test_near_items_count_from_the_best_of_them(narrow):
    rng = np.random.default_rng(2)
    query, gallery = rng.standard_normal((50, 8)), rng.standard_normal((90, 8))
    labels, near = rng.integers(0, 90, 50), rng.random((50, 90)) < 0.05
    i, j = np.nonzero(near[10:45])
    found = rank_queries(query, gallery, labels, rows=(10, 45), near=[(i[:20], j[:20]), (i[20:], j[20:])], chunk=16)
    near[np.arange(50), labels] = True
    s = unit(query) @ unit(gallery).T
    best = np.where(near, s, -np.inf).max(axis=1)
    np.testing.assert_array_equal(found.near, (s > best[:, None] + TIE).sum(axis=1)[10:45])
    assert (found.near <= found.positive).all() and (found.near < found.positive).any()


def test_ties_are_counted_and_outrank_nothing(narrow):
    rng = np.random.default_rng(0)
    reference, query = rng.standard_normal((40, 64)), rng.standard_normal((5, 64))
    reference[10:30] = reference[0] * rng.uniform(0.1, 9, (20, 1))  # in one direction, but for the last digits
    reference[30] = reference[0] * (1 + 1e-6 * rng.standard_normal(64))
    found = rank_queries(query, reference, np.array([0, 12, 25, 30, 1]))
    assert found.ties.tolist() == [20, 20, 20, 0, 0]
    check(query, reference[[*range(11), *range(30, 40)]], np.array([0, 10, 1, 2, 11]))


def test_nearest_items_that_are_equal_come_in_order_of_number(narrow):
    reference = np.repeat(np.eye(3), 4, axis=0)
    found = rank_queries(np.array([[1.0, 0.5, 0.1]]), reference, np.array([0]), nearest=20)
    np.testing.assert_array_equal(found.nearest, [np.arange(12)])
    rng = np.random.default_rng(2)
    kinds = rng.integers(0, 3, 100)
    reference = rng.standard_normal((3, 64)).astype("f4")[kinds] * rng.uniform(1, 9, (100, 1))
    for chunk in (32, 1000):
        found = rank_queries(rng.standard_normal((50, 64)), reference, np.zeros(50, int), chunk=chunk, nearest=5)
        for items in found.nearest:
            np.testing.assert_array_equal(items, np.flatnonzero(kinds == kinds[items[0]])[:5])


def test_one_percent_counts_whole_items():
    """Positives at rank 2 of 299 are inside R@5 and outside R@1%; of 300 they are inside both."""
    for m, share in ((299, 0.0), (300, 100.0)):
        angles = np.linspace(0, 1, m)
        reference = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        found = retrieval_metrics(np.array([[1.0, 0.0]]), reference, np.array([2]))
        assert found == {"R@1": 0.0, "R@5": 100.0, "R@10": 100.0, "R@1%": share}


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
    whole = rank_queries(query, reference, labels, semi, nearest=2)
    cuts = ((0, 7), (7, 7), (7, 8), (8, 31))
    parts = [rank_queries(query, reference, labels, semi, rows=rows, nearest=2) for rows in cuts]
    for name in ("positive", "hit", "cover", "nearest", "ties"):
        np.testing.assert_array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name))
    assert whole.near is None


def good():
    rng = np.random.default_rng(0)
    return rng.standard_normal((6, 4)), rng.standard_normal((6, 4)), np.arange(6)


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: np.where(np.arange(6)[:, None] == 3, np.nan, x), r"not finite \(row 3 of 6\)"),
        (lambda x: np.where(np.arange(6)[:, None] == 3, np.inf, x), "not finite"),
        (lambda x: np.where(np.arange(6)[:, None] == 3, 0, x), r"zero vector \(row 3 of 6\)"),
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


def test_a_row_that_differs_from_all_others_is_no_collapse():
    query, _, labels = good()
    reference = np.ones((3000, 4))
    reference[2999, 0] = 2
    np.testing.assert_array_equal(
        positive_ranks(query, reference, labels), plain(plain_similarity(query, reference), labels)[0]
    )


@pytest.mark.parametrize(("scale", "dtype"), [(1e50, "f8"), (1e-60, "f8"), (1e-42, "f4"), (1e37, "f4")])
def test_descriptors_of_any_length_are_scored_by_their_direction(narrow, scale, dtype):
    rng = np.random.default_rng(0)
    reference, labels = rng.standard_normal((500, 16)), np.arange(50)
    query = reference[:50] + rng.standard_normal((50, 16))
    lengths = np.where(np.arange(500) % 2, scale, 1.0)[:, None]
    ranks = check(*((x * lengths[: len(x)]).astype(dtype) for x in (query, reference)), labels)
    assert 0 < np.mean(ranks == 0) < 1


@pytest.mark.parametrize(
    "labels",
    [np.arange(1, 7), np.arange(6) - 1, np.arange(5), np.arange(6) / 2, np.arange(6)[:, None], np.ones(6, bool)],
)
def test_labels_that_do_not_fit_are_refused(labels):
    query, reference, _ = good()
    with pytest.raises(DescriptorError):
        retrieval_metrics(query, reference, labels)


def test_sides_that_do_not_fit_are_refused():
    query, reference, labels = good()
    with pytest.raises(DescriptorError, match="expected equal"):
        retrieval_metrics(query[:, :3], reference, labels)
    with pytest.raises(DescriptorError, match="real numbers"):
        retrieval_metrics(query + 1j, reference, labels)
    with pytest.raises(DescriptorError, match="semi-positives have shape"):
        retrieval_metrics(query, reference, labels, labels)


def test_labels_and_descriptors_of_any_layout_are_read():
    query, reference, labels = good()
    labels, semi = labels[::-1], np.stack([labels, (labels + 1) % 6], axis=1)
    expected = retrieval_metrics(query, reference, labels.copy(), semi)
    swapped = [x.astype(x.dtype.newbyteorder()) for x in (query, reference, labels, semi)]
    assert retrieval_metrics(query, reference, labels, semi) == expected == retrieval_metrics(*swapped)
    none = np.empty((6, 0), dtype=int)
    assert retrieval_metrics(query, reference, labels, none)["R@1"] == expected["R@1"]


def test_read_only_memory_maps_are_scored_as_they_are(tmp_path):
    query, reference, labels = good()
    np.save(tmp_path / "r.npy", reference.astype(np.float16))
    mapped = np.load(tmp_path / "r.npy", mmap_mode="r")
    assert retrieval_metrics(query, mapped, labels) == retrieval_metrics(query, np.array(mapped), labels)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_tensors_are_scored_like_arrays_and_left_as_they_are(dtype):
    rng = np.random.default_rng(1)
    reference = rng.standard_normal((60, 8)) * rng.uniform(0.1, 9, (60, 1))
    query, labels = reference + rng.standard_normal((60, 8)), np.arange(60)
    sides = [torch.tensor(x).to(dtype) for x in (query, reference)]
    before = [x.clone() for x in sides]
    expected = retrieval_metrics(*(x.double().numpy() for x in sides), labels)
    assert retrieval_metrics(*sides, labels) == retrieval_metrics(*sides, torch.from_numpy(labels)) == expected
    assert all(torch.equal(a, b) for a, b in zip(sides, before, strict=True))


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="newer than this PyTorch")
def test_precision_is_left_as_it_was_set():
    """By the attributes that come in the place of `torch.set_float32_matmul_precision`, or by that."""
    matmul = torch.backends.cuda.matmul
    try:
        matmul.fp32_precision = "tf32"
        with ranking.full_precision():
            assert matmul.fp32_precision == "ieee" and not matmul.allow_bf16_reduced_precision_reduction
        retrieval_metrics(*good())
        assert matmul.fp32_precision == "tf32" and matmul.allow_bf16_reduced_precision_reduction
    finally:
        matmul.fp32_precision = "none"
    torch.set_float32_matmul_precision("high")
    try:
        with ranking.full_precision():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
