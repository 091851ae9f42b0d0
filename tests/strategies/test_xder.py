"""X-DER against the literal step, and what must never change in its memory."""

from typing import Any

import numpy as np
import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils.utils import as_classification_dataset
from avalanche.core import SupervisedPlugin
from avalanche.models import MultiHeadClassifier, MultiTaskModule
from reference import xder as reference
from small_streams import Labelled, Told, classic, parameters, template, unlabelled
from torch import Tensor, nn

from replaykit import Buffer, policies
from replaykit.augment import Views
from replaykit.strategies import XDER, XDERCE, XDERRPC
from replaykit.strategies.xder_memory import VISITS, parts
from replaykit.testing import reloaded, same
from replaykit.xder import Settings, SimplexClassifier, first_of_each, published, visit

TASKS = [[4, 0], [2], [5, 1, 3]]
C, DIM = 6, 5


def data(task: int, n: int = 20) -> tuple[Tensor, Tensor]:
    """Rows of a task, float64; the first entry of each is its number."""
    g = torch.Generator().manual_seed(task)
    y = torch.tensor(TASKS[task])[torch.arange(n) % len(TASKS[task])]
    x = torch.randn(n, DIM, dtype=torch.float64, generator=g) + 2 * nn.functional.one_hot(y, DIM + 1)[:, :DIM]
    x[:, 0] = (torch.arange(n) + 100 * task) / 100
    return x, y


def benchmark(n: int = 20) -> Any:
    sets = [as_classification_dataset(Labelled(*data(task, n))) for task in range(len(TASKS))]
    return benchmark_from_datasets(train=sets, test=sets)


def network(outputs: int = C, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(DIM, 8), nn.Tanh(), nn.Linear(8, outputs)).double()


def view(x: Tensor) -> Tensor:
    """A view that differs from row to row and draws nothing."""
    return x * torch.linspace(0.8, 1.2, len(x), dtype=x.dtype)[:, None]


def memory(capacity: int = 12, seed: int = 3, policy: Any = None) -> Buffer:
    return Buffer(capacity, policy or policies.XDERMemory(), seed=seed)


def make(
    kind: type[XDER] = XDER, model: nn.Module | None = None, buffer: Buffer | None = None, **given: Any
) -> XDER:
    if kind is XDER and given.get("future_preparation") is not False:
        given.setdefault("future_view", view)
    options = template(network() if model is None else model, **given.pop("template", {}))
    options["optimizer"] = torch.optim.SGD(options["model"].parameters(), lr=given.pop("lr", 0.1))
    given.setdefault("batch_size_mem", 4)
    buffer = memory() if buffer is None else buffer
    return kind(buffer=buffer, **{"classes_per_task": TASKS, **options, **given})


def train(strategy: XDER, stream: Any = None, tasks: int = len(TASKS)) -> XDER:
    for experience in list((stream or benchmark()).train_stream)[strategy.replay.task : tasks]:
        strategy.train(experience, eval_streams=[], shuffle=False)
    return strategy


class Each(SupervisedPlugin):
    """Calls a function after every iteration."""

    def __init__(self, look: Any) -> None:
        super().__init__()
        self.look = look

    def after_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.look(strategy)


# -- the literal step ---------------------------------------------------------------------------------

CASES = {
    "tpami": {},
    "mammoth": {"preset": "mammoth", "third_draw": 5, "augmentations": 3},
    "paper": {"attenuation": "paper", "eta": 0.3, "stream_rows": 2, "third_draw": 3},
    "no update": {"memory_update": False, "eta": 0.2, "augmentations": 3},
    "no future": {"future_preparation": False, "future_constraint": False},
    "ce": {"kind": XDERCE, "eta": 0.5, "margin": 0.1},
    "rpc": {"kind": XDERRPC, "preset": "mammoth"},
}


def read(buffer: Buffer, slots: np.ndarray) -> dict[str, Tensor]:
    return {"slots": torch.from_numpy(slots), **buffer.read(slots, ("x", "y", "logits"))}


def literal_run(
    net: nn.Module, twin: Buffer, s: Settings, lr: float, mb: int, size: int
) -> list[dict[str, float]]:
    """X-DER without Avalanche; the draws are those of the strategy's buffer."""
    sgd, log = torch.optim.SGD(net.parameters(), lr=lr), []
    for t in range(len(TASKS)):
        x, y = data(t, 18)
        past = [label for labels in TASKS[:t] for label in labels]
        later = [label for labels in TASKS[t:] for label in labels]
        visits = np.zeros(twin.capacity)
        for start in range(0, len(x), mb):
            drawn: dict[str, Any] = {}
            if t:
                drawn = {name: read(twin, twin.draw(size)) for name in ("first", "second")}
                together = torch.cat([drawn["first"]["slots"], drawn["second"]["slots"]]).numpy()
                distinct = together[first_of_each(together)]
                if s.memory_update:  # before the third draw, which compares with what is stored then
                    for slot in distinct[visit(visits, distinct, twin.draws)].tolist():
                        implanted(twin, slot, net(twin.read(np.array([slot]))["x"])[0].detach(), later, s)
                if TASKS[t + 1 :] and s.future_preparation:
                    drawn["third"] = read(twin, twin.draw(s.third_draw))
            rows = slice(start, start + mb)
            found = reference.terms(net, x[rows], y[rows], TASKS, t, s, **drawn, view=view)
            sgd.zero_grad()
            sum(found.values()).backward()
            sgd.step()
            log.append({name: float(value.detach()) for name, value in found.items()})
        with torch.no_grad():
            z = net(x)
            if t:
                for i, label in enumerate(y.tolist()):
                    z[i] = reference.implanted(z[i], z[i], label, past, s.gamma, s.attenuation)
        twin.add({"x": x, "y": y, "logits": z})
        if t and s.memory_update:
            for slot in twin.store.filled.tolist():
                row = read(twin, np.array([slot]))
                if int(row["y"]) in past:
                    implanted(twin, slot, net(row["x"])[0].detach(), later, s)
    return log


def implanted(buffer: Buffer, slot: int, z: Tensor, later: list[int], s: Settings) -> None:
    row = read(buffer, np.array([slot]))
    new = reference.implanted(row["logits"][0], z, int(row["y"]), later, s.gamma, s.attenuation)
    buffer.store.revise(np.array([slot]), {"logits": new[None]})


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_step_is_the_literal_one(case: dict) -> None:
    log: list[dict[str, float]] = []
    given = dict(case)
    strategy = make(
        **given, plugins=[Each(lambda s: log.append({k: v.item() for k, v in s.replay.terms.items()}))]
    )
    train(strategy, benchmark(18))  # the last batch of every task is a short one

    kind = given.pop("kind", XDER)
    s = published(given.pop("preset", "tpami"), kind.variant).changed(**given)
    net: nn.Module = network()
    net = SimplexClassifier(net, C) if kind is XDERRPC else net
    twin = memory()
    wanted = literal_run(net, twin, s, 0.1, 5, 4)
    for step, literal in zip(log, wanted, strict=True):
        literal.pop("stream")
        assert step == pytest.approx(literal, rel=1e-8, abs=1e-10)
    torch.testing.assert_close(parameters(strategy.model), parameters(net), atol=1e-8, rtol=1e-8)
    for name in ("x", "y", "logits"):
        torch.testing.assert_close(strategy.replay.buffer[name], twin[name], atol=1e-8, rtol=1e-8)


def test_switches_change_the_run() -> None:
    runs = {
        name: parameters(train(make(**{"eta": 0.3, "gamma": 0.5, **given})).model)
        for name, given in {
            "plain": {},
            **{name: {name: False} for name in ("past_constraint", "future_constraint", "memory_update")},
            "future_preparation": {"future_preparation": False},
            "attenuation": {"attenuation": "paper"},
            "nonpositive": {"nonpositive": "safe"},
            **{name: {name: 1.5} for name in ("alpha", "beta", "lam", "tau", "dp_weight")},
            **{name: {name: 3} for name in ("augmentations", "third_draw", "stream_rows")},
            "gamma": {"gamma": 0.9},
            "margin": {"margin": 0.1},
        }.items()
    }
    names = list(runs)
    equal = [(a, b) for i, a in enumerate(names) for b in names[:i] if torch.equal(runs[a], runs[b])]
    assert not equal


def test_numbers_of_classes_mean_nothing() -> None:
    """With classes and outputs renumbered, and tasks of other shape than slices, everything is renumbered alone."""
    to = torch.tensor([3, 5, 0, 1, 2, 4])  # old label to new
    strategy, net = make(), network()
    last = net[-1]
    with torch.no_grad():
        for parameter in (last.weight, last.bias):
            parameter[to] = parameter.clone()
    renamed = [[int(to[label]) for label in labels] for labels in TASKS]
    other = XDER(buffer=memory(), classes_per_task=renamed, future_view=view, batch_size_mem=4, **template(net))
    sets = [as_classification_dataset(Labelled(x, to[y])) for x, y in map(data, range(3))]
    train(strategy)
    train(other, benchmark_from_datasets(train=sets, test=sets))
    torch.testing.assert_close(other.model[-1].weight[to], strategy.model[-1].weight, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(other.model[0].weight, strategy.model[0].weight, atol=1e-8, rtol=1e-8)


# -- terms by task ------------------------------------------------------------------------------------


def test_first_and_last_task_lack_their_terms() -> None:
    seen: dict[int, set[frozenset[str]]] = {}
    train(make(plugins=[Each(lambda s: seen.setdefault(s.replay.task, set()).add(frozenset(s.replay.terms)))]))
    past, future = {"logits", "labels", "past_constraint"}, {"future_preparation", "future_constraint"}
    assert seen == {0: {frozenset(future)}, 1: {frozenset(past | future)}, 2: {frozenset(past)}}


def test_the_stream_trains_the_present_head_alone() -> None:
    gradients: list[Tensor] = []

    class Look(SupervisedPlugin):
        def after_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
            gradients.append(strategy.model[-1].weight.grad.abs().sum(1))

    off = dict.fromkeys(("past_constraint", "future_constraint", "future_preparation"), False)
    train(make(**off, alpha=0.0, beta=0.0, plugins=[Look()]))
    for step, gradient in enumerate(gradients):
        present = torch.zeros(C, dtype=torch.bool)
        present[TASKS[step // 4]] = True
        assert (gradient[~present] == 0).all()
        assert (gradient[present] > 0).all() or step // 4 == 1  # a softmax over one output has no gradient


def test_labels_train_the_past_heads_alone() -> None:
    gradients: list[Tensor] = []

    class Look(SupervisedPlugin):
        def after_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
            if strategy.replay.task == 1:
                gradients.append(strategy.model[-1].weight.grad.abs().sum(1))

    off = dict.fromkeys(("past_constraint", "future_constraint", "future_preparation"), False)
    train(make(**off, alpha=0.0, beta=1.0, plugins=[Look()]), tasks=2)  # the stream's own loss is 0 in task 1
    for gradient in gradients:
        assert (gradient[[4, 0]] > 0).all() and (gradient[[2, 5, 1, 3]] == 0).all()


# -- the memory ---------------------------------------------------------------------------------------


def ids(buffer: Buffer) -> list[int]:
    return (buffer["x"][:, 0] * 100).round().long().tolist()


def test_what_a_stored_row_keeps() -> None:
    """Own and earlier heads never change; in task t no head before t; entries of t are not there yet."""
    at_task_end: dict[int, dict[int, Tensor]] = {}

    def look(strategy: Any) -> None:
        buffer, t = strategy.replay.buffer, strategy.replay.task
        if t == 0:
            assert len(buffer) == 0
            return
        before = [label for labels in TASKS[:t] for label in labels]
        for number, y, logits in zip(ids(buffer), buffer["y"].tolist(), buffer["logits"], strict=True):
            assert y in before
            assert torch.equal(logits[before], at_task_end[t - 1][number][before])

    stream, first = benchmark(), {}
    strategy = make(plugins=[Each(look)], batch_size_mem=3, lr=0.5)
    for t in range(3):
        train(strategy, stream, t + 1)
        buffer = strategy.replay.buffer
        held = dict(zip(ids(buffer), buffer["logits"], strict=True))
        at_task_end[t] = {number: logits.clone() for number, logits in held.items()}
        for number, logits in held.items():
            stored = first.setdefault(number, logits.clone())
            kept = [label for labels in TASKS[: number // 100 + 1] for label in labels]
            assert torch.equal(logits[kept], stored[kept])
        changed = [not torch.equal(logits, first[n]) for n, logits in held.items() if n < 100 * t]
        assert all(changed) and len(changed) == (0, 8, 6)[t]
        assert not buffer.store.note(VISITS, 0.0).any()


@pytest.mark.parametrize("nonpositive", ["compat", "safe"])
def test_written_heads_stay_below_the_truth(nonpositive: str) -> None:
    strategy = make(nonpositive=nonpositive, lr=0.3)
    stream, checked = benchmark(), 0
    for t in range(3):
        train(strategy, stream, t + 1)
        buffer = strategy.replay.buffer
        later = [label for labels in TASKS[t:] for label in labels]
        for number, y, logits in zip(ids(buffer), buffer["y"].tolist(), buffer["logits"], strict=True):
            if number < 100 * t and (logits[y] > 0 or nonpositive == "safe"):
                assert logits[later].max() <= logits[y] + 1e-12
                checked += 1
    assert checked > 5


def test_the_memory_is_written_when_a_task_is_over() -> None:
    sizes: list[tuple[int, int]] = []
    strategy = make(plugins=[Each(lambda s: sizes.append((s.replay.task, s.replay.buffer.seen)))])
    train(strategy)
    assert set(sizes) == {(0, 0), (1, 20), (2, 40)}
    held = torch.bincount(strategy.replay.buffer["y"], minlength=C)
    assert held[[4, 0, 2]].tolist() == [2, 2, 2] and held.sum() == 12


def test_visits_are_counted_in_the_notes_of_the_store() -> None:
    counts: list[np.ndarray] = []

    def look(strategy: Any) -> None:
        if strategy.replay.task == 1:
            counts.append(strategy.replay.buffer.store.note(VISITS, 0.0).copy())

    train(make(plugins=[Each(look)]), tasks=2)
    # Two draws of 4 of 12 rows visit 4 to 8 distinct rows a step.
    steps = np.diff([np.zeros(12), *counts], axis=0)
    assert set(np.unique(steps)) == {0, 1} and all(4 <= step.sum() <= 8 for step in steps)


def test_past_heads_of_new_rows_are_attenuated_when_stored() -> None:
    strategy = make(lr=0.0, memory_update=False)
    train(strategy)
    buffer, net = strategy.replay.buffer, network()
    for x, y, logits in zip(buffer["x"], buffer["y"].tolist(), buffer["logits"], strict=True):
        t = next(i for i, labels in enumerate(TASKS) if y in labels)
        past = [label for labels in TASKS[:t] for label in labels]
        z = net(x).detach()
        wanted = reference.implanted(z, z, y, past, 0.85, "code") if past else z
        torch.testing.assert_close(logits, wanted)


def test_views_are_for_the_model_and_raw_rows_for_the_memory() -> None:
    calls: list[int] = []

    def double(x: Tensor) -> Tensor:
        calls.append(len(x))
        return 2 * x

    strategy = make(views=Views(double, lambda x: x), lr=0.0)
    train(strategy, tasks=1)
    assert calls == [5] * 8  # four batches of training, and four to make the logits
    buffer, net = strategy.replay.buffer, network()
    raw = data(0)[0]
    assert all(any(torch.equal(x, row) for row in raw) for x in buffer["x"])
    torch.testing.assert_close(buffer["logits"], net(2 * buffer["x"]).detach())


@pytest.mark.parametrize("policy", [policies.Reservoir, policies.ClassBalancedReservoir, policies.GreedyBalanced])
def test_any_policy_is_offered_whole_tasks(policy: Any) -> None:
    buffer = memory(policy=policy())
    train(make(buffer=buffer))
    assert buffer.seen == 60 and len(buffer) == 12 and buffer["logits"].shape == (12, C)


def test_losses_of_replayed_rows_come_back() -> None:
    """Those of both draws, over all outputs. The model never moves, and the first memory is that of one task."""
    retrieval, buffer = Told(), memory()
    strategy = make(XDERCE, buffer=buffer, retrieval=retrieval, lr=0.0)
    train(strategy, tasks=1)
    slots = buffer.store.filled.copy()
    z, y = strategy.model(buffer["x"]).detach(), buffer["y"]
    train(strategy, tasks=2)
    losses = nn.functional.cross_entropy(z.float(), y, reduction="none")
    assert len(retrieval.told) == 4 * 2 * 4 and retrieval.is_told(slots, losses)


# -- BatchNorm ----------------------------------------------------------------------------------------


class Normed(nn.Module):
    """Records how many rows each forward pass has whose statistics are kept."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(DIM, 8), nn.BatchNorm1d(8), nn.Tanh())
        self.classifier = nn.Linear(8, C)
        self.double()
        self.tracked: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.body[1].track_running_stats:
            self.tracked.append(len(x))
        return self.classifier(self.body(x))


@pytest.mark.parametrize(
    ("batch_norm", "steps"),
    [
        ("every", [[5], [5, 4, 4], [5, 4, 4]]),
        ("aligned", [[5], [8], [6]]),  # 4 memory rows with 4 // 1 or 4 // 2 rows of the stream
        ("stream", [[5], [5], [5]]),
    ],
)
def test_which_passes_move_the_statistics(batch_norm: str, steps: list[list[int]]) -> None:
    model = Normed()
    train(make(model=model, batch_norm=batch_norm, augmentations=3))
    assert model.tracked == [rows for step in steps for _ in range(4) for rows in step]
    assert model.body[1].num_batches_tracked == len(model.tracked)


def test_alignment_never_runs_out_of_rows() -> None:
    model, sets = Normed(), []
    for label in range(C):
        x, _ = data(label % 3)
        sets.append(as_classification_dataset(Labelled(x, torch.full((20,), label))))
    strategy = make(model=model, batch_norm="aligned", batch_size_mem=2, classes_per_task=[[c] for c in range(C)])
    train(strategy, benchmark_from_datasets(train=sets, test=sets), C)
    assert model.tracked == [rows for rows in (5, 4, 3, 3, 3, 3) for _ in range(4)]  # 2 + max(1, 2 // t)


def test_a_row_that_is_left_over_joins_a_batch() -> None:
    assert [len(part) for part in parts(np.arange(11), 5)] == [6, 5]
    assert [len(part) for part in parts(np.arange(3), 5)] == [3]
    train(make(model=Normed(), template={"train_mb_size": 11}))  # the memory has 12 rows


# -- evaluation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [XDERCE, XDERRPC])
def test_only_seen_classes_are_predicted(kind: type[XDER]) -> None:
    strategy = make(kind)
    x = torch.randn(7, DIM, dtype=torch.float64)
    assert strategy.classifier()(x).isfinite().all()  # before training: all
    stream = benchmark()
    for t in range(3):
        train(strategy, stream, t + 1)
        seen = sorted(label for labels in TASKS[: t + 1] for label in labels)
        z = strategy.classifier()(x)
        assert z.isfinite().all(0).nonzero()[:, 0].tolist() == seen
        assert torch.equal(z[:, seen], strategy.model(x)[:, seen])
    if kind is XDERRPC:
        assert isinstance(strategy.model, SimplexClassifier)


def test_avalanche_evaluates_the_same() -> None:
    outputs: list[Tensor] = []

    class Look(SupervisedPlugin):
        def after_eval_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
            outputs.append(strategy.mb_output)

    strategy = train(make(XDERCE, plugins=[Look()]), tasks=1)
    strategy.eval(benchmark().test_stream[:1])
    z = torch.cat(outputs)
    assert z.isfinite().all(0).nonzero()[:, 0].tolist() == [0, 4]
    torch.testing.assert_close(z, strategy.classifier()(data(0)[0]))


# -- saving -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [1, 2])
def test_a_strategy_saved_between_tasks_goes_on_to_the_same_bits(after: int) -> None:
    stream, strategies = (
        benchmark(),
        [make(model=Normed()), make(model=Normed()), make(model=Normed(), buffer=memory(seed=9))],
    )
    whole, first, second = strategies
    for strategy, tasks in ((whole, len(TASKS)), (first, after)):
        torch.manual_seed(5)  # of the batches in which logits are made
        train(strategy, stream, tasks)
    state = {
        "model": first.model.state_dict(),
        "buffer": first.replay.buffer.state_dict(),
        "own": first.state_dict(),
    }
    state = reloaded({**state, "torch": torch.get_rng_state()})
    second.model.load_state_dict(state["model"])
    second.replay.buffer.load_state_dict(state["buffer"])
    second.load_state_dict(state["own"])
    assert second.replay.seen == first.replay.seen
    torch.set_rng_state(state["torch"])
    train(second, stream)
    assert same(dict(whole.model.state_dict()), dict(second.model.state_dict()))
    assert same(whole.replay.buffer.state_dict(), second.replay.buffer.state_dict())


@pytest.mark.parametrize("state", [{}, {"task": -1}, {"task": 4}, {"task": 1.0}, {"task": 1, "more": 0}])
def test_a_state_that_is_none(state: dict) -> None:
    strategy = make()
    with pytest.raises(ValueError, match="not the state of X-DER"):
        strategy.load_state_dict(state)
    assert strategy.state_dict() == {"task": 0}


# -- what cannot work ---------------------------------------------------------------------------------


class Heads(MultiTaskModule):
    def __init__(self) -> None:
        super().__init__()
        self.classifier = MultiHeadClassifier(DIM)


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (XDER, {"classes_per_task": [[0, 1], [1, 2]]}, r"\[1\] are in several.*blurry"),
        (XDER, {"classes_per_task": None}, "a stream without them cannot be used"),
        (XDER, {"model": network(5)}, "needs 6 outputs from the start, the network has 5"),
        (XDERRPC, {"model": network(4)}, "needs 5 outputs from the start, the network has 4"),
        (XDER, {"model": Heads()}, "one head over all classes"),
        (XDER, {"buffer": memory(5)}, "6 classes share 5 slots; make a memory of at least 6 slots"),
        (XDER, {"buffer": [1]}, "expected a replaykit.Buffer, got list"),
        (XDER, {"preset": "paper"}, "preset is 'tpami' or 'mammoth'"),
        (XDER, {"gamma": 2.0}, "gamma is a share"),
        (XDERCE, {"dp_weight": 1.0}, "dp_weight compares views of future preparation"),
        (XDER, {"batch_size_mem": 0}, "batch_size_mem is a number of rows >= 1"),
    ],
)
def test_errors_at_construction(kind: type[XDER], given: dict, message: str) -> None:
    model = given.pop("model", network())
    options = {"buffer": memory(), "classes_per_task": TASKS, **given}
    with pytest.raises((ValueError, TypeError), match=message):
        kind(model=model, optimizer=torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1), **options)


def test_a_network_whose_outputs_cannot_be_seen_fails_in_its_first_step() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    model = Hidden()
    before = parameters(model)
    with pytest.raises(ValueError, match="has 4 outputs, the largest label is 5"):
        train(make(model=model))
    assert torch.equal(parameters(model), before)


def test_a_simplex_may_have_one_output_less() -> None:
    train(make(XDERRPC, model=network(5)), tasks=1)


def test_rows_that_are_no_images_need_a_view() -> None:
    strategy = make(future_view=None)
    before = parameters(strategy.model)
    with pytest.raises(ValueError, match=r"rows of shape \[5\] need future_view=.*future_preparation=False"):
        train(strategy)
    assert torch.equal(parameters(strategy.model), before)
    train(make(future_preparation=False), tasks=1)


def test_experiences_that_are_not_the_next_task() -> None:
    stream = list(benchmark().train_stream)
    strategy = make()
    with pytest.raises(ValueError, match=r"classes \[2\] do not belong to task 0, which has \[0, 4\]"):
        strategy.train(stream[1], eval_streams=[])
    train(strategy)
    with pytest.raises(ValueError, match="lists 3 tasks, and they are all trained"):
        strategy.train(stream[2], eval_streams=[])


@pytest.mark.parametrize("stream", [unlabelled, classic], ids=["unlabelled", "classic"])
def test_tasks_learnt_from_a_benchmark(stream: Any) -> None:
    made = stream()
    tasks = [experience.classes_in_this_experience for experience in made.train_stream]
    strategy = XDERCE(buffer=memory(), classes_per_task=tasks, **template())
    for experience in made.train_stream:
        strategy.train(experience, eval_streams=[])
    assert strategy.replay.task == 2 and len(strategy.replay.buffer) == 12
    assert strategy.replay.heads.tasks == tuple(map(tuple, tasks))
