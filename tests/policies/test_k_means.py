"""Online k-means, and what it has in common with mean of features."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import feature_memories as reference
from torch import Tensor, nn

from replaykit import Batch, Buffer
from replaykit.policies.feature_memory import FeatureMemory
from replaykit.policies.k_means import KMeans
from replaykit.policies.mean_of_features import MeanOfFeatures
from replaykit.probe import Probe
from replaykit.testing import check_policy, same

Y = st.lists(st.integers(0, 4), min_size=1, max_size=60)
CUTS = st.lists(st.integers(0, 60), max_size=6)
BOTH = pytest.mark.parametrize("policy", [KMeans, MeanOfFeatures])


class Look:
    """A probe to which the features of a row are its x, plus `by` once the model has moved. Counts its rows."""

    def __init__(self, by: float = 0.0) -> None:
        self.by, self.looks = by, []

    def features(self, batch: Batch) -> Tensor:
        self.looks.append(len(batch["x"]))
        return batch["x"] + self.by

    def cached(self) -> AbstractContextManager[None]:
        return nullcontext()


def network(features: Callable[[Tensor], Tensor]) -> Probe:
    return Probe(nn.Identity(), features=features)


def fill(
    buffer: Buffer,
    features: Sequence[Sequence[float]] | np.ndarray,
    y: Sequence[int] | None = None,
    cuts: Sequence[int] = (),
    start: int = 0,
    dtype: torch.dtype = torch.float64,
    probe: Probe | Look | None = None,
) -> Buffer:
    """Offer rows whose features are their x."""
    x = torch.tensor(np.array(features), dtype=dtype)
    y = torch.tensor([0] * len(x) if y is None else list(y), dtype=torch.int64)
    edges = sorted({0, len(x), *(cut for cut in cuts if cut < len(x))})
    for low, high in pairwise(edges):
        ids = torch.arange(start + low, start + high)
        buffer.add({"id": ids, "x": x[low:high], "y": y[low:high]}, probe or Look())
    return buffer


def line(*features: float) -> list[list[float]]:
    return [[f] for f in features]


def places(buffer: Buffer, column: str = "id") -> dict[int, list]:
    """A column of each class, in the order in which its slots were taken."""
    held = dict(zip(buffer.store.filled.tolist(), buffer[column].tolist(), strict=True))
    return {label: [held[slot] for slot in slots] for label, slots in buffer.policy.slots.items()}


def memory(buffer: Buffer) -> dict:
    state = buffer.state_dict()
    return {"store": state["store"], "policy_state": state["policy_state"]}


def draw(n: int, d: int = 3, seed: int = 0) -> np.ndarray:
    """Features on a grid, so that fractions of them stay short."""
    return np.random.default_rng(seed).normal(size=(n, d)).round(2)


def check(buffer: Buffer, wanted: dict[int, list[reference.Centroid]]) -> None:
    assert places(buffer) == {c: [centroid.row for centroid in of] for c, of in wanted.items()}
    assert places(buffer, "centroid_count") == {c: [centroid.count for centroid in of] for c, of in wanted.items()}
    for name, field in (("centroid", "mean"), ("stored_feature", "feature")):
        for label, held in places(buffer, name).items():
            exact = np.array([getattr(centroid, field) for centroid in wanted[label]], float)
            assert np.allclose(held, exact, rtol=0, atol=1e-12)


# -- the law of k-means ---------------------------------------------------------------------------


def test_hand_case() -> None:
    """q = 2: seeds 0 and 10; ties between a row and the stored one keep the stored one; 1.2 replaces 0."""
    buffer = Buffer(2, KMeans(1))
    stored, centroids = [], []
    for row, f in enumerate((0, 10, 1, 9, 2, 1.2)):
        fill(buffer, line(f), start=row)
        stored.append(buffer["id"].tolist())
        centroids.append(buffer["centroid"].flatten().tolist())
    assert stored == [[0], [0, 1], [0, 1], [0, 1], [0, 1], [5, 1]]
    assert centroids[1:5] == [[0, 10], [0.5, 10], [0.5, 9.5], [1, 9.5]]
    assert centroids[5] == pytest.approx([1.05, 9.5], abs=1e-15)
    assert buffer["centroid_count"].tolist() == [4, 2]
    assert buffer["stored_feature"].tolist() == [[1.2], [10]]


def test_a_row_between_two_centroids_goes_to_the_one_seeded_first() -> None:
    assert fill(Buffer(3, KMeans(1)), line(7, 2, 0, 1))["centroid_count"].tolist() == [1, 2, 1]


@settings(max_examples=80, deadline=None)
@given(
    y=Y,
    cuts=CUTS,
    capacity=st.integers(5, 23),
    classes=st.sampled_from([None, 5]),
    d=st.integers(1, 3),
    data=st.data(),
)
def test_on_a_grid_with_all_its_ties_it_is_the_literal_loop(
    y: list[int], cuts: list[int], capacity: int, classes: int | None, d: int, data: st.DataObject
) -> None:
    vector = st.lists(st.integers(-4, 4), min_size=d, max_size=d)
    features = data.draw(st.lists(vector, min_size=len(y), max_size=len(y)))
    buffer = fill(Buffer(capacity, KMeans(classes)), features, y, cuts)
    check(buffer, reference.k_means(features, y, capacity, classes))


@settings(max_examples=80, deadline=None)
@given(y=Y, cuts=CUTS, capacity=st.integers(5, 23), seed=st.integers(0, 99), classes=st.sampled_from([None, 5]))
def test_it_is_the_literal_loop(
    y: list[int], cuts: list[int], capacity: int, seed: int, classes: int | None
) -> None:
    features = draw(len(y), seed=seed)
    buffer = fill(Buffer(capacity, KMeans(classes)), features, y, cuts)
    check(buffer, reference.k_means(features.tolist(), y, capacity, classes))


@settings(max_examples=60, deadline=None)
@given(y=Y, capacity=st.integers(5, 23), smaller=st.integers(5, 23), seed=st.integers(0, 99))
def test_counts_add_up_and_centroids_average_to_the_class_mean(
    y: list[int], capacity: int, smaller: int, seed: int
) -> None:
    """Whatever was merged: because classes came late, or because the memory shrank."""
    features = draw(len(y), seed=seed)
    buffer = fill(Buffer(capacity, KMeans()), features, y)
    for _ in range(2):
        for label, counts in places(buffer, "centroid_count").items():
            of = features[np.array(y) == label]
            centroids = np.array(places(buffer, "centroid")[label])
            assert sum(counts) == len(of) and min(counts) >= 1
            assert np.allclose(np.average(centroids, axis=0, weights=counts), of.mean(0), rtol=0, atol=1e-12)
        buffer.resize(min(capacity, smaller))


def test_a_centroid_is_the_mean_of_what_it_has_counted() -> None:
    features = draw(200)
    buffer = fill(Buffer(8, KMeans(1)), features)
    for centroid, mean in zip(
        reference.k_means(features.tolist(), [0] * 200, 8, 1)[0], buffer["centroid"], strict=True
    ):
        assert np.allclose(features[centroid.counted].mean(0), mean, rtol=0, atol=1e-12)


@pytest.mark.parametrize("classes", [None, 3])
def test_with_one_slot_a_class_it_is_the_running_mean_and_equal_to_mean_of_features(classes: int | None) -> None:
    features, y = draw(90), np.random.default_rng(1).integers(3, size=90).tolist()
    means = fill(Buffer(3, KMeans(classes)), features, y)
    nearest = fill(Buffer(3, MeanOfFeatures(classes)), features, y)
    assert places(means) == places(nearest)
    for label, (centroid,) in places(means, "centroid").items():
        assert np.allclose(centroid, features[np.array(y) == label].mean(0), rtol=0, atol=1e-12)
        assert np.allclose(centroid, nearest.policy.centres[label].mean, rtol=0, atol=1e-12)


def test_seeds_are_rows_so_that_no_centroid_is_empty() -> None:
    """Far from the origin, centroids that start there (or anywhere else) would never win."""
    buffer = fill(Buffer(5, KMeans(1)), draw(100) + 1e6)
    assert (buffer["centroid_count"] > 1).all()


def test_distances_of_insertion_time_would_freeze_the_memory() -> None:
    """Seeds have distance 0 to themselves; compared with that, nothing is ever closer."""
    features = line(-9, 9, *(centre + f for f in draw(100, 1).flatten() for centre in (-5, 5)))
    frozen = reference.k_means(features, [0] * 202, 2, 1, frozen=True)[0]
    assert [centroid.row for centroid in frozen] == [0, 1]
    buffer = fill(Buffer(2, KMeans(1)), features)
    assert min(buffer["id"].tolist()) > 1
    assert (buffer["stored_feature"] - buffer["centroid"]).abs().max() < 0.1


# -- when a class must shrink ---------------------------------------------------------------------


def test_hand_case_of_merging() -> None:
    """Four centroids 0.25, 10.25 (two rows each), 1 and 20 become two when a second class comes."""
    buffer = fill(Buffer(4, KMeans()), line(0, 10, 1, 20, 0.5, 10.5))
    assert buffer["centroid_count"].tolist() == [2, 2, 1, 1]
    fill(buffer, line(7), [1], start=6)
    assert places(buffer) == {0: [0, 1], 1: [6]}
    assert places(buffer, "centroid") == {0: [[0.5], [13.5]], 1: [[7]]}
    assert places(buffer, "centroid_count") == {0: [3, 3], 1: [1]}
    assert buffer.policy.slots == {0: [0, 1], 1: [2]}


def test_of_centroids_with_equal_counts_those_seeded_first_stay() -> None:
    buffer = fill(Buffer(4, KMeans()), line(0, 8, 2, 6, 5), [0, 0, 0, 0, 1])
    assert places(buffer) == {0: [0, 1], 1: [4]}
    assert places(buffer, "centroid") == {0: [[1], [7]], 1: [[5]]}


def test_the_last_of_many_merges_still_goes_to_the_centroid_as_it_was() -> None:
    """9 would pull the first centroid to 4.5; 6 then goes to it all the same, for it was nearer to 3 than to 9.5."""
    buffer = fill(Buffer(4, KMeans(1)), line(3, 9.5, 0, 6, 3, 9.5))
    buffer.resize(2)
    assert buffer["centroid"].tolist() == [[3], [9.5]] and buffer["centroid_count"].tolist() == [4, 2]


@settings(max_examples=60, deadline=None)
@given(y=Y, more=Y, before=st.integers(5, 20), after=st.integers(5, 20), classes=st.sampled_from([None, 5]))
def test_resizing_keeps_the_largest_centroids(
    y: list[int], more: list[int], before: int, after: int, classes: int | None
) -> None:
    features = draw(len(y) + len(more))
    buffer = fill(Buffer(before, KMeans(classes)), features[: len(y)], y)
    wanted = reference.k_means(features[: len(y)].tolist(), y, before, classes)
    buffer.resize(after, grow="naive")
    share = dict.fromkeys(wanted, after // 5) if classes else reference.shares(wanted, after)
    check(buffer, {label: reference.merged(of, share[label]) for label, of in wanted.items()})
    fill(buffer, features[len(y) :], more, start=len(y))
    offered, held = Counter(y + more), places(buffer, "centroid_count")
    assert {label: sum(counts) for label, counts in held.items()} == offered
    assert len(buffer) <= after


# -- what both promise ----------------------------------------------------------------------------


class Pixels(Look):
    """Features that are integers, the same on every device and for every size of a batch."""

    def features(self, batch: Batch) -> Tensor:
        return batch["x"].flatten(1)[:, :5].float()


@BOTH
@pytest.mark.parametrize("arguments", [{}, {"classes": 4, "refresh_every": 7}])
def test_contract(policy: type[FeatureMemory], arguments: dict) -> None:
    check_policy(partial(policy, **arguments), make_probe=lambda _: Pixels(), cut_invariant=True)


@BOTH
@pytest.mark.skipif(torch.cuda.is_available(), reason="an accelerator's features differ in the last bit")
def test_contract_with_features_of_a_network(policy: type[FeatureMemory]) -> None:
    check_policy(partial(policy, refresh_every=25))


@BOTH
@settings(max_examples=60, deadline=None)
@given(y=Y, cuts=CUTS, capacity=st.integers(5, 23), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_the_memory_does_not_depend_on_the_cuts(
    policy: type[FeatureMemory], y: list[int], cuts: list[int], capacity: int, dtype: torch.dtype
) -> None:
    """To the last bit: also the order in which slots were filled, given up and taken again."""
    features = draw(len(y))
    whole, cut, single = (
        fill(Buffer(capacity, policy()), features, y, at, dtype=dtype) for at in ((), cuts, range(len(y)))
    )
    assert same(memory(whole), memory(cut)) and same(memory(whole), memory(single))


@BOTH
@settings(max_examples=40, deadline=None)
@given(y=Y, seed=st.integers(0, 99))
def test_the_same_rows_stay_when_space_is_turned_stretched_and_moved(
    policy: type[FeatureMemory], y: list[int], seed: int
) -> None:
    features = draw(len(y), seed=seed)
    turn = np.linalg.qr(draw(3, seed=seed + 1))[0]
    plain = fill(Buffer(8, policy()), features, y)
    assert places(plain) == places(fill(Buffer(8, policy()), 3 * features @ turn + [5, -7, 1], y))


@BOTH
@pytest.mark.parametrize("classes", [None, 3])
def test_a_class_with_fewer_rows_than_slots_keeps_all(policy: type[FeatureMemory], classes: int | None) -> None:
    y = [0] * 50 + [1] * 3 + [2] * 50
    assert places(fill(Buffer(15, policy(classes)), draw(103), y))[1] == [50, 51, 52]


@BOTH
def test_shares_of_slots(policy: type[FeatureMemory]) -> None:
    """Declared: equal, the rest stays empty. Met: the rest goes to the lowest, and unmet classes have none."""
    y = [c for c in (7, 2, 9) for _ in range(20)]
    assert {c: len(of) for c, of in places(fill(Buffer(11, policy(10)), draw(60), y)).items()} == {
        7: 1,
        2: 1,
        9: 1,
    }
    declared = fill(Buffer(11, policy(3)), draw(60), [c % 3 for c in y])
    assert {c: len(of) for c, of in places(declared).items()} == {1: 3, 2: 3, 0: 3}
    y += [c for c in (7, 2, 9) for _ in range(20)]
    assert {c: len(of) for c, of in places(fill(Buffer(11, policy()), draw(120), y)).items()} == {7: 4, 2: 4, 9: 3}


@BOTH
def test_columns_in_the_type_of_the_model(policy: type[FeatureMemory]) -> None:
    for given_dtype, mean in ((torch.float64,) * 2, (torch.float32,) * 2, (torch.bfloat16, torch.float32)):
        buffer = fill(Buffer(4, policy(2)), draw(40), [0, 1] * 20, dtype=given_dtype)
        assert buffer["stored_feature"].dtype is given_dtype
        assert same(buffer["stored_feature"], buffer["x"])
        assert policy is MeanOfFeatures or buffer["centroid"].dtype is mean


def test_a_mean_of_half_precision_features_goes_on_moving() -> None:
    """In bfloat16 a step of 1 / 300 of the way from 1 to 2 would be lost."""
    buffer = fill(Buffer(1, KMeans(1)), line(*[1] * 300, *[2] * 300), dtype=torch.bfloat16)
    assert buffer["centroid"].item() == pytest.approx(1.5, abs=1e-4)


@BOTH
def test_no_generator_is_used(policy: type[FeatureMemory]) -> None:
    rng = np.random.default_rng(0)
    fill(Buffer(4, policy(), seed=rng), draw(40), [0, 1] * 20)
    assert rng.random() == np.random.default_rng(0).random()


@BOTH
def test_memories_on_every_device_agree(policy: type[FeatureMemory], device: str) -> None:
    y = np.random.default_rng(0).integers(4, size=80).tolist()
    host, other = Buffer(9, policy(refresh_every=11)), Buffer(9, policy(refresh_every=11), device=device)
    assert same(memory(fill(host, draw(80), y, [30])), memory(fill(other, draw(80), y, [30])))


# -- refreshing features --------------------------------------------------------------------------


def test_hand_case_of_a_refresh() -> None:
    """The model moves all features by 100 after three rows; the fourth row brings the refresh."""
    buffer = fill(Buffer(2, KMeans(1, refresh_every=4)), line(0, 10, 1))
    fill(buffer, line(2), start=3, probe=Look(100))
    assert buffer["id"].tolist() == [0, 1]
    assert buffer["stored_feature"].tolist() == [[100], [110]]
    assert buffer["centroid"].tolist() == [[101], [110]]
    assert buffer["centroid_count"].tolist() == [3, 1]


@BOTH
def test_a_refresh_comes_before_the_batch_that_holds_the_row_of_that_number(policy: type[FeatureMemory]) -> None:
    model = Look()
    buffer = Buffer(6, policy(refresh_every=10))
    for start, rows in ((0, 10), (10, 9), (19, 1), (20, 5), (25, 30)):
        fill(buffer, draw(rows), [c % 2 for c in range(rows)], start=start, probe=model)
    assert model.looks == [10, 9, 1, 6, 5, 30, 6]  # nothing is stored yet when the 10th row comes


@BOTH
@settings(max_examples=40, deadline=None)
@given(y=Y, cuts=CUTS, seed=st.integers(0, 99))
def test_refreshed_memories_follow_a_model_that_moves_all_features_alike(
    policy: type[FeatureMemory], y: list[int], cuts: list[int], seed: int
) -> None:
    """Also in a batch in which a class is met and others shrink."""
    features, shifts = draw(len(y), seed=seed), np.random.default_rng(seed).integers(-9, 9, size=99)
    still, moving = Buffer(8, policy()), Buffer(8, policy(refresh_every=1))
    edges = sorted({0, len(y), *(cut for cut in cuts if cut < len(y))})
    for turn, (low, high) in enumerate(pairwise(edges)):
        fill(still, features[low:high], y[low:high], start=low)
        fill(moving, features[low:high], y[low:high], start=low, probe=Look(shifts[turn]))
    assert places(still) == places(moving)
    assert np.allclose(moving["stored_feature"] - moving["x"], shifts[len(edges) - 2], rtol=0, atol=1e-12)


@BOTH
def test_without_a_refresh_the_memory_does_not_follow(policy: type[FeatureMemory]) -> None:
    for every, moved in ((None, False), (1, True)):
        buffer = fill(Buffer(4, policy(1, refresh_every=every)), draw(50))
        fill(buffer, draw(3), start=50, probe=Look(1e3))
        assert bool((buffer["stored_feature"] > 900).all()) is moved


# -- a change of capacity -------------------------------------------------------------------------


@BOTH
def test_growing_is_exact_while_nothing_was_dropped_and_else_refused(policy: type[FeatureMemory]) -> None:
    buffer = fill(Buffer(8, policy(2)), draw(6), [0, 0, 0, 1, 1, 1])
    buffer.resize(16)
    grown = fill(buffer, draw(50, seed=1), [0, 1] * 25, start=6)
    large = fill(fill(Buffer(16, policy(2)), draw(6), [0, 0, 0, 1, 1, 1]), draw(50, seed=1), [0, 1] * 25, start=6)
    assert places(grown) == places(large)
    before = memory(grown)
    with pytest.raises(ValueError, match=r"from 16 to 20 slots cannot bring back the 40 rows .* grow='naive'"):
        grown.resize(20)
    with pytest.raises(ValueError, match="grow is 'forbid' or 'naive' here, got 'bernoulli'"):
        grown.resize(20, grow="bernoulli")
    assert same(memory(grown), before)
    grown.resize(20, grow="naive")
    fill(grown, draw(3, seed=2), [0, 0, 1], start=56)
    assert [of[8:] for of in places(grown).values()] == [[56, 57], [58]]


@BOTH
def test_shrinking_below_the_number_of_classes_is_refused(policy: type[FeatureMemory]) -> None:
    for classes in (None, 3):
        buffer = fill(Buffer(6, policy(classes)), draw(30), [0, 1, 2] * 10)
        before = memory(buffer)
        with pytest.raises(ValueError, match="3 classes for 2 slots leave a quota of 0"):
            buffer.resize(2)
        assert same(memory(buffer), before)


@BOTH
def test_an_empty_memory_takes_any_size(policy: type[FeatureMemory]) -> None:
    buffer = Buffer(6, policy())
    buffer.resize(2)
    buffer.resize(4)
    assert len(fill(buffer, draw(9))) == 4


# -- errors ---------------------------------------------------------------------------------------


def refused(buffer: Buffer, match: str, offer: Callable[[], object]) -> None:
    before = memory(buffer)
    with pytest.raises(ValueError, match=match):
        offer()
    assert same(memory(buffer), before)


@BOTH
@pytest.mark.parametrize("filled", [0, 9])
def test_rows_with_features_that_are_not_numbers_are_named(policy: type[FeatureMemory], filled: int) -> None:
    buffer = fill(Buffer(4, policy()), draw(filled), [0, 1, 2] * (filled // 3)) if filled else Buffer(4, policy())
    bad = draw(8)
    bad[[1, 6], 2] = np.nan, np.inf
    refused(buffer, r"features of rows \[1, 6\] hold NaN.*leave such rows out", lambda: fill(buffer, bad, [3] * 8))
    bad[:] = np.nan
    refused(buffer, r"rows \[0, 1, 2, 3, 4\] and 3 more .*model's parameters", lambda: fill(buffer, bad))


@BOTH
def test_stored_rows_that_the_model_has_lost_are_named(policy: type[FeatureMemory]) -> None:
    buffer = fill(Buffer(4, policy(refresh_every=1)), line(1, -1, 2, 3))
    root = network(Tensor.sqrt)
    refused(buffer, r"the rows in slots \[1\] hold NaN", lambda: fill(buffer, line(1), [1], probe=root))


@BOTH
def test_features_of_another_shape_or_type_are_refused(policy: type[FeatureMemory]) -> None:
    buffer = fill(Buffer(4, policy()), draw(20))
    narrow = network(lambda x: x[:, :2])
    half = network(Tensor.half)
    refused(
        buffer,
        r"holds features \[3\] of torch.float64, .* gives \[2\]",
        lambda: fill(buffer, draw(2), probe=narrow),
    )
    refused(buffer, r"gives \[3\] of torch.float16; name a layer", lambda: fill(buffer, draw(2), probe=half))


@BOTH
def test_a_probe_is_asked_for(policy: type[FeatureMemory]) -> None:
    with pytest.raises(ValueError, match="needs features of a probe"):
        Buffer(4, policy()).add({"x": torch.zeros(2, 3), "y": torch.tensor([0, 1])})


@BOTH
def test_batches_may_not_bring_the_columns_of_the_policy(policy: type[FeatureMemory]) -> None:
    for name in policy.writes:
        batch = {"x": torch.zeros(2, 3), "y": torch.tensor([0, 1]), name: torch.zeros(2, 3)}
        with pytest.raises(ValueError, match=f"column '{name}' is written by this policy; rename"):
            Buffer(4, policy()).add(batch, Look())


@BOTH
def test_more_classes_than_slots(policy: type[FeatureMemory]) -> None:
    with pytest.raises(ValueError, match="5 classes for 4 slots leave a quota of 0; use at least 5 slots"):
        fill(Buffer(4, policy(5)), draw(1))
    buffer = fill(Buffer(3, policy()), draw(4), [0, 1, 0, 2])
    refused(buffer, "4 classes for 3 slots", lambda: fill(buffer, draw(3), [0, 1, 3]))


@BOTH
def test_labels_and_arguments_that_make_no_sense(policy: type[FeatureMemory]) -> None:
    with pytest.raises(ValueError, match="below the declared 2 classes, got 2"):
        fill(Buffer(4, policy(2)), draw(2), [0, 2])
    with pytest.raises(ValueError, match="classes >= 1, got 0"):
        policy(0)
    with pytest.raises(ValueError, match="number of rows >= 1, got 0"):
        policy(refresh_every=0)


@BOTH
def test_one_policy_cannot_serve_two_memories(policy: type[FeatureMemory]) -> None:
    shared = policy()
    fill(Buffer(4, shared), draw(3))
    with pytest.raises(ValueError, match="policy object of its own"):
        fill(Buffer(4, shared), draw(1))
    with pytest.raises(ValueError, match="policy object of its own"):
        Buffer(4, shared).resize(2)


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"slots": [0]},
        {"slots": {2: torch.tensor([0])}},
        {"slots": {"0": torch.tensor([0])}},
        {"slots": {0: [0]}},
        {"slots": {0: torch.tensor([0.0])}},
        {"slots": {0: torch.tensor([0]), 1: torch.tensor([0])}},
        {"slots": {0: torch.tensor([-1])}},
    ],
)
def test_states_that_are_not_ours_are_refused(state: dict[str, object]) -> None:
    policy = KMeans(2)
    fill(Buffer(4, policy), draw(3))
    before = policy.state_dict()
    with pytest.raises(ValueError, match="state"):
        policy.load_state_dict(state)
    assert same(policy.state_dict(), before)
