"""The named coreset memories: each is `Coreset` with the selector of its name, and those with laws of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from replaykit import Batch, Buffer, Policy, policies, selectors
from replaykit.policies.coreset import SLOT, Coreset, pool_of
from replaykit.probe import Probe
from replaykit.selectors import Pool
from replaykit.selectors import k_center as centres
from replaykit.selectors import moderate as moderates
from replaykit.selectors.gradient_matching import grad_approx
from replaykit.selectors.pool import Dense
from replaykit.testing import check_policy, example_model, example_stream, same

# Name, selector with the published settings, and whether the classes share the slots equally.
PLAIN: list[tuple[type[Coreset], selectors.Selector, bool]] = [
    (policies.BADGE, selectors.BADGE(), True),
    (policies.CRAIG, selectors.CRAIG(), True),
    (policies.EL2N, selectors.EL2N(), True),
    (policies.Entropy, selectors.Entropy(), True),
    (policies.FacilityLocation, selectors.FacilityLocation(), True),
    (policies.Forgetting, selectors.Forgetting(), True),
    (policies.GCR, selectors.GCR(), False),
    (policies.GradMatch, selectors.GradMatch(), True),
    (policies.GraNd, selectors.GraNd(), True),
    (policies.GraphCut, selectors.GraphCut(), True),
    (policies.Herding, selectors.Herding(), True),
    (policies.Importance, selectors.Importance(), True),
    (policies.KCenter, selectors.KCenter(), True),
    (policies.LeastConfidence, selectors.LeastConfidence(), True),
    (policies.LogDeterminant, selectors.LogDeterminant(), True),
    (policies.Margin, selectors.Margin(), True),
    (policies.Moderate, selectors.Moderate(), True),
]


def stream(n: int) -> Batch:
    rows = {name: column for name, column in example_stream(n).items() if name != "weight"}
    return {**rows, "forgetting": rows["id"] * 7 % 11}


def shifts(x: Tensor) -> Tensor:
    return x.roll(1, -1)


def probe(model: nn.Module | None = None) -> Probe:
    return Probe(model or example_model(), prepare=Tensor.float, views=[shifts, lambda x: x // 2], layers="last")


class Given:
    """A probe that answers at once, from the columns: `test_coreset.py` checks the frame with a real one."""

    prepare = None

    def features(self, rows: Batch) -> Tensor:
        return rows["x"].flatten(1).float() / 255 - 0.4

    def logits(self, rows: Batch) -> Tensor:
        return rows["logits"]

    def losses(self, rows: Batch) -> Tensor:
        return nn.functional.cross_entropy(rows["logits"], rows["y"], reduction="none")

    def gradients(self, rows: Batch) -> Tensor:
        error = rows["logits"].softmax(1) - nn.functional.one_hot(rows["y"], 4)
        return (error[:, :, None] * self.features(rows)[:, None]).flatten(1)

    def votes(self, rows: Batch, views: Sequence[Callable[[Tensor], Tensor]]) -> tuple[Tensor, Tensor]:
        logits = torch.stack([rows["logits"] * view(rows["x"])[:, 0, 0] for view in views])
        return nn.functional.one_hot(logits.argmax(2), 4).sum(0), logits.softmax(2).mean(0)


def given(model: nn.Module | None = None) -> Given:
    return Given()


def cut(batch: Batch, low: int, high: int) -> Batch:
    return {name: column[low:high] for name, column in batch.items()}


@pytest.mark.parametrize(
    "make",
    [
        *(policy for policy, _, _ in PLAIN),
        partial(policies.BCSR, outer_steps=3),
        partial(policies.BCSR, budget="global", draw=True, outer_steps=2, recent=2),
        partial(policies.GCR, layout="per_task"),
        partial(policies.ICaRLHerding, "x"),
        policies.ICaRLHerding,
        partial(policies.RainbowMemory, views=[shifts, shifts]),
    ],
    ids=lambda make: getattr(make, "__name__", str(make)),
)
def test_contract(make: Callable[[], Policy]) -> None:
    check_policy(make, make_stream=stream, make_probe=given, rows=30, capacity=8)


@pytest.mark.parametrize(
    ("policy", "selector", "equally"), PLAIN, ids=lambda value: getattr(value, "__name__", "")
)
def test_a_name_is_its_selector_in_the_frame(policy: type[Coreset], selector: object, equally: bool) -> None:
    """The same memory, to the bit, as the frame with the selector; options of the frame pass through."""
    for options in ({}, {"recent": 3}, {"candidates": 9, "budget": "global"}):
        frame = {"budget": "per_class" if equally else "global", **options}
        named, plain = Buffer(8, policy(**options), seed=1), Buffer(8, Coreset(selector, **frame), seed=1)
        assert named.policy.needs == plain.policy.needs
        for low, high in pairwise((0, 15, 16, 40)):
            for buffer in (named, plain):
                buffer.add(cut(stream(40), low, high), given())
        assert same({**named.state_dict(), "policy": ""}, {**plain.state_dict(), "policy": ""})


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (policies.BADGE, {"quantity": "gradients"}),
        (policies.CRAIG, {"quantity": "features"}),
        (policies.EL2N, {"order": selectors.lowest}),
        (policies.EL2N, {"skip": 3}),
        (policies.Entropy, {"skip": 2}),
        (policies.FacilityLocation, {"similarity": partial(selectors.gaussian, width=0.1)}),
        (policies.FacilityLocation, {"quantity": "x"}),
        (policies.FacilityLocation, {"engine": partial(selectors.stochastic, eps=0.9)}),
        (policies.Forgetting, {"order": selectors.lowest}),
        (policies.Forgetting, {"skip": 4}),
        (policies.Forgetting, {"column": "t"}),
        (policies.GCR, {"lam": 50.0}),
        (policies.GCR, {"relative": False, "lam": 500.0}),
        (policies.GCR, {"eps": 1e3}),
        (policies.GCR, {"layout": "per_task"}),
        (policies.GCR, {"budget": "per_class"}),
        (policies.GradMatch, {"lam": 50.0}),
        (policies.GradMatch, {"eps": 1e3}),
        (policies.GradMatch, {"mean": True}),
        (policies.GradMatch, {"relative": False, "lam": 500.0}),
        (policies.GraNd, {"order": selectors.middle}),
        (policies.GraNd, {"skip": 2}),
        (policies.GraphCut, {"lam": 0.1}),
        (policies.GraphCut, {"similarity": partial(selectors.gaussian, width=1.0)}),
        (policies.Herding, {"normalise": False}),
        (policies.Importance, {"rho": 1.0}),
        (policies.Importance, {"quantity": "losses"}),
        (policies.KCenter, {"first": centres.first_row}),
        (policies.LeastConfidence, {"skip": 2}),
        (policies.LogDeterminant, {"eps": 1e-6, "similarity": partial(selectors.gaussian, width=5.0)}),
        (policies.Margin, {"skip": 2}),
        (policies.Moderate, {"rule": moderates.nearest_to_median}),
        (policies.BCSR, {"draw": True}),
        (policies.BCSR, {"compat": True}),
        (policies.BCSR, {"sparsity": 30.0}),
        (policies.BCSR, {"budget": "global"}),
        (policies.BCSR, {"outer_rate": 1.0}),
        (policies.ICaRLHerding, {"normalise": False}),
        (policies.ICaRLHerding, {"quantity": "x"}),
        (partial(policies.RainbowMemory, views=[shifts, shifts]), {"spacing": selectors.release_ranks}),
        (partial(policies.RainbowMemory, views=[shifts, shifts]), {"compat": True}),
        (policies.RainbowMemory, {"views": [lambda x: 255 - x]}),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_every_option_reaches_the_selection(make: Callable[..., Policy], change: dict[str, object]) -> None:
    if make is policies.RainbowMemory:
        pytest.importorskip("replaykit.perturb")

    def memory(**options: object) -> dict[str, object]:
        buffer = Buffer(20, make(**options), seed=3)
        for low, high in ((0, 60), (60, 120)):
            buffer.add(cut(stream(120), low, high), given())
        return {"ids": buffer["id"], **({"weight": buffer["weight"]} if "weight" in buffer.store.columns else {})}

    assert not same(memory(), memory(**change))


# -- GCR ------------------------------------------------------------------------------------------


def test_gcr_weighs_stored_rows_as_they_stand() -> None:
    """The pool is memory and candidates, targets are weighted, and quotas follow the classes (spec 5.3, 5.4)."""
    batch, buffer = stream(60), Buffer(10, policies.GCR(lam=0.1), seed=0)
    buffer.add(cut(batch, 0, 30), probe())
    before = buffer.read(np.sort(buffer.store.filled))
    buffer.add(cut(batch, 30, 60), probe())

    rows = {name: torch.cat([before[name], batch[name][30:]]) for name in ("id", "x", "y")}
    weight = torch.cat([before["weight"], torch.ones(30).double()])
    gradients = probe().gradients(rows).explicit().double()
    expected = {}
    counts = np.bincount(rows["y"].numpy())
    quotas = selectors.quotas.largest_remainder(10, counts.astype(float), counts)
    for label, quota in enumerate(quotas):
        members = (rows["y"] == label).nonzero().flatten()
        found = grad_approx(Dense(gradients[members]), weight[members], int(quota), 0.1)
        expected |= dict(zip(rows["id"][members[found.rows]].tolist(), found.weights.tolist(), strict=True))
    kept = dict(zip(buffer["id"].tolist(), buffer["weight"].tolist(), strict=True))
    assert kept.keys() == expected.keys()
    assert [kept[i] for i in expected] == pytest.approx(list(expected.values()), rel=1e-4, abs=1e-6)


def test_a_row_alone_gets_its_weight_back() -> None:
    """Spec 5.7, T5.5, through the memory: a row that stands for 5 stands for them still."""
    buffer = Buffer(2, policies.GCR(lam=0.0, budget="per_class"), seed=0)
    batch = stream(12)
    batch["x"] = batch["x"][:1].expand(12, -1, -1, -1)
    batch["y"] = torch.tensor([0] * 5 + [1] * 7)
    buffer.add(cut(batch, 0, 8), probe())
    assert dict(zip(buffer["y"].tolist(), buffer["weight"].tolist(), strict=True)) == pytest.approx({0: 5, 1: 3})
    buffer.add(cut(batch, 8, 12), probe())
    assert dict(zip(buffer["y"].tolist(), buffer["weight"].tolist(), strict=True)) == pytest.approx({0: 5, 1: 7})


def test_the_released_layout_gives_old_tasks_a_share_each_and_the_newest_the_rest() -> None:
    batch, buffer = stream(120), Buffer(11, policies.GCR(layout="per_task"), seed=0)
    old: dict[int, set[int]] = {}
    for task in range(4):
        buffer.add(cut(batch, 30 * task, 30 * task + 30), probe())
        share = 11 // (task + 1)
        sizes = np.bincount(buffer[SLOT].numpy()).tolist()
        assert sizes == [share] * task + [11 - share * task]
        now = {number: set(buffer["id"][buffer[SLOT] == number].tolist()) for number in range(task + 1)}
        assert all(now[number] <= old[number] for number in old) and min(now[task]) >= 30 * task
        old = now
    # An old task was chosen among its own rows, which stand for what they stood for.
    assert buffer["weight"][buffer[SLOT] == 0].sum() > 5
    before = {number: buffer["rank"][buffer[SLOT] == number].sort().values.tolist() for number in range(4)}
    buffer.resize(6)
    for number in range(4):
        kept = buffer["rank"][buffer[SLOT] == number].sort().values.tolist()
        assert kept == before[number][: 1 if number < 3 else 3]
    for task in range(6):
        buffer.add(cut(batch, 10 * task, 10 * task + 10), probe())
    assert buffer[SLOT].unique().tolist() == [9] and len(buffer) == 6


def test_wrong_settings_of_gcr() -> None:
    with pytest.raises(ValueError, match="layout is 'union' or 'per_task', got 'slots'"):
        policies.GCR(layout="slots")
    with pytest.raises(ValueError, match="chooses among whole tasks"):
        policies.GCR(layout="per_task", recent=3)


# -- BCSR -----------------------------------------------------------------------------------------


def test_bcsr_weighs_all_classes_together_and_takes_the_best_of_each() -> None:
    batch, buffer = stream(60), Buffer(9, policies.BCSR(), seed=4)
    buffer.add(batch, probe())
    rng = np.random.default_rng(np.random.SeedSequence(4).spawn(2)[0])
    pool = pool_of(batch, torch.ones(60).double(), 0, probe())
    bcsr = selectors.BCSR()
    w, derivative = bcsr.weigh(bcsr.problem(pool), 60, 9, rng)
    counts = np.bincount(batch["y"].numpy())
    quotas = selectors.quotas.largest_remainder(9, np.ones(len(counts)), counts)
    expected: list[int] = []
    for label, quota in enumerate(quotas):
        members = (batch["y"] == label).nonzero().flatten().tolist()
        expected += sorted(members, key=lambda i: (w[i] <= 0, -w[i].item() if w[i] > 0 else derivative[i].item()))[
            :quota
        ]
    assert sorted(buffer["id"].tolist()) == sorted(expected)
    assert buffer["weight"].tolist() == [1.0] * 9


# -- iCaRL ----------------------------------------------------------------------------------------


def scalars(values: Sequence[float], label: int, first: int = 0) -> Batch:
    n = len(values)
    x = torch.tensor(values, dtype=torch.float64)[:, None]
    return {"id": torch.arange(first, first + n), "x": x, "y": torch.full((n,), label)}


def test_icarl_herds_a_class_once_and_cuts_its_order() -> None:
    """Scalars 0, 1, 2, 6 with mean 2.25 are herded as 2, 1, 6, 0; new classes shorten the list."""
    buffer = Buffer(6, policies.ICaRLHerding("x", normalise=False))
    kept = [6, 3, 2, 1]  # 6 // classes, but only four rows are there
    buffer.add(scalars([0.0, 1.0, 2.0, 6.0], 0))
    for label, share in enumerate(kept):
        if label:
            buffer.add(scalars([10.0, 11.0, 12.0, 16.0], label, 4 * label))
        of_first = buffer["y"] == 0
        order = buffer["x"][of_first, 0][buffer["rank"][of_first].argsort()].tolist()
        assert order == [2.0, 1.0, 6.0, 0.0][:share]
        assert np.bincount(buffer["y"].numpy()).tolist() == [min(share, 4)] * (label + 1)


def test_icarl_never_looks_at_stored_rows() -> None:
    """The model may change between tasks: what is kept of an old class is a prefix all the same."""
    batch = stream(90)
    torch.manual_seed(0)
    models = [example_model() for _ in range(3)]
    for model in models[1:]:
        for p in model.parameters():
            nn.init.normal_(p)
    asked: list[int] = []

    class Watching(Probe):
        def features(self, rows: Batch) -> Tensor:
            asked.extend(rows["id"].tolist())
            return super().features(rows)

    buffer = Buffer(12, policies.ICaRLHerding())
    orders: dict[int, list[int]] = {}
    for task, model in enumerate(models):
        rows = cut(batch, 30 * task, 30 * task + 30)
        rows["y"] = rows["y"] % 2 + 2 * task
        buffer.add(rows, Watching(model, prepare=Tensor.float))
        for label in buffer["y"].unique().tolist():
            here = buffer["y"] == label
            order = buffer["id"][here][buffer["rank"][here].argsort()].tolist()
            assert len(order) == 12 // (2 * task + 2)
            assert order == orders.setdefault(label, order)[: len(order)]
    assert asked == list(range(90))


def test_icarl_fills_the_places_that_a_stored_class_has_free() -> None:
    buffer = Buffer(4, policies.ICaRLHerding("x", normalise=False))
    buffer.add(scalars([3.0], 0))
    buffer.add(scalars([0.0, 1.0, 2.0, 6.0], 0, 1))
    assert buffer["x"][:, 0][buffer["rank"].argsort()].tolist() == [3.0, 2.0, 1.0, 6.0]
    buffer.add(scalars([5.0], 0, 5))
    assert 5.0 not in buffer["x"]


def test_icarl_shrinks_by_class_and_needs_a_slot_for_each() -> None:
    buffer = Buffer(8, policies.ICaRLHerding("x", normalise=False))
    for label in range(3):
        buffer.add(scalars([0.0, 1.0, 2.0, 6.0], label, 4 * label))
    buffer.resize(3)
    assert buffer["x"][:, 0].tolist() == [2.0] * 3 and buffer["rank"].tolist() == [0] * 3
    before = buffer.state_dict()
    with pytest.raises(ValueError, match="4 classes need at least as many slots, the memory has 3"):
        buffer.add(scalars([0.0, 1.0], 3, 12))
    wrong = scalars([0.0, float("nan")], 2, 12)
    with pytest.raises(ValueError, match=r"ICaRLHerding: Herding: x of row 1 holds NaN .* \(class 2\)"):
        Buffer(8, policies.ICaRLHerding("x")).add(wrong)
    assert same(buffer.state_dict(), before)
    with pytest.raises(ValueError, match="3 classes need at least as many slots, the memory has 2"):
        buffer.resize(2)
    with pytest.raises(ValueError, match="quantity is 'features' or 'x', got 'logits'"):
        policies.ICaRLHerding("logits")


# -- Rainbow Memory -------------------------------------------------------------------------------


def test_rainbow_asks_the_probe_for_votes_over_its_own_views() -> None:
    """A probe without views is enough; the memory is the one of a probe that has them."""
    views = [shifts, lambda x: x.flip(-1), lambda x: 255 - x]
    batch = stream(60)
    plain = Probe(example_model(), prepare=Tensor.float)
    viewing = Probe(example_model(), prepare=Tensor.float, views=views)
    own = Buffer(8, policies.RainbowMemory(views=views), seed=2)
    other = Buffer(8, Coreset(selectors.Rainbow(), "global"), seed=2)
    own.add(batch, plain)
    other.add(batch, viewing)
    assert own["id"].tolist() == other["id"].tolist()
    assert np.bincount(own["y"].numpy()).min() >= 2


def test_rainbow_perturbs_images_unless_told_otherwise() -> None:
    rows = {"x": torch.rand(20, 6), "y": torch.arange(20) % 2}
    model = nn.Linear(6, 2)
    with pytest.raises(ValueError, match=r"square images \[n, c, h, h\], these rows are \[6\]; pass views="):
        Buffer(4, policies.RainbowMemory()).add(rows, Probe(model))
    assert Buffer(4, policies.RainbowMemory(views=[Tensor.neg])).add(rows, Probe(model)) == 4
    with pytest.raises(ValueError, match="perturbations is 'vr' or 'vr_randaug', got 'cutout'"):
        policies.RainbowMemory(perturbations="cutout")


@pytest.mark.parametrize("kind", ["vr", "vr_randaug"])
def test_rainbow_resumes_with_the_perturbations_it_would_have_drawn(kind: str) -> None:
    pytest.importorskip("replaykit.perturb")
    g = torch.Generator().manual_seed(0)
    rows = {"id": torch.arange(60), "x": torch.rand(60, 3, 8, 8, generator=g), "y": torch.arange(60) % 3}
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    whole = Buffer(9, policies.RainbowMemory(perturbations=kind), seed=5)
    whole.add(cut(rows, 0, 30), Probe(model))
    resumed = Buffer(9, policies.RainbowMemory(perturbations=kind), seed=6)
    resumed.load_state_dict(whole.state_dict())
    for buffer in (whole, resumed):
        buffer.add(cut(rows, 30, 60), Probe(model))
    assert same(whole.state_dict(), resumed.state_dict())


# -- what a selector needs of the stream ----------------------------------------------------------


def test_counts_of_forgetting_are_a_column() -> None:
    counts = torch.tensor([0, 5, 2, 9, 1, 7])
    rows = {"id": torch.arange(6), "x": torch.zeros(6, 1), "y": torch.zeros(6, dtype=torch.int64)}
    buffer = Buffer(3, policies.Forgetting("lost"))
    buffer.add({**rows, "lost": counts})
    assert sorted(buffer["id"].tolist()) == [1, 3, 5]
    buffer.add({**rows, "id": rows["id"] + 6, "lost": torch.tensor([0, 0, 8, 0, 0, 0])})
    assert sorted(buffer["lost"].tolist()) == [7, 8, 9]
    with pytest.raises(ValueError, match=r"Forgetting: the selector reads columns \['lost'\], the batch has"):
        Buffer(3, policies.Forgetting("lost")).add(rows)


class OnLosses:
    """A selector of one's own that needs a column and the losses."""

    needs = ("losses", "age")

    def select(self, pool: Pool, k: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        rows = (pool.tensor("age") + 0 * pool.tensor("losses")).argsort()[:k]
        return rows, torch.ones(len(rows), dtype=torch.float64)


def test_a_selector_may_read_columns_beside_the_probe() -> None:
    policy = Coreset(OnLosses(), "global")
    assert policy.needs == ("losses",) and policy.columns == ("y", "age")
    buffer = Buffer(5, policy)
    buffer.add({**stream(30), "age": torch.arange(30).flip(0)}, probe())
    assert sorted(buffer["id"].tolist()) == [25, 26, 27, 28, 29]
