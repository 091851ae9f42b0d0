"""Every storage with every retrieval and every loss, for a few steps on scikit-learn's digits.

The default suite has every pair of a storage and a retrieval, of a storage and a loss, and of a retrieval and a loss;
all triples are marked slow.
"""

import itertools
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from small_streams import Silent
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from replaykit import Buffer, losses, policies, retrieval
from replaykit.benchmarks import digits
from replaykit.losses import columns_of
from replaykit.plan import Policy
from replaykit.selectors import Herding
from replaykit.strategies import Rehearsal

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from avalanche.benchmarks import benchmark_from_datasets
    from avalanche.benchmarks.utils.data_attribute import DataAttribute
    from avalanche.benchmarks.utils.utils import as_classification_dataset
    from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin

CAPACITY, BATCH, MEMORY_BATCH = 9, 6, 5

# Every policy by its name, and those that want more than that.
STORAGES: dict[str, Callable[[], Policy]] = {
    **{name: kind for name in policies.__all__ if isinstance(kind := getattr(policies, name), type)},
    "Coreset": lambda: policies.Coreset(Herding(), candidates=20, recent=4),
    "GSSIQP": lambda: policies.GSSIQP(3),
    "GSSClust": lambda: policies.GSSClust(3),
    "BCSR": lambda: policies.BCSR(outer_steps=2),
}
RETRIEVALS: dict[str, Callable[[], Any]] = {
    "Uniform": retrieval.Uniform,
    "Uniform with replacement": lambda: retrieval.Uniform(replace=True),
    "ClassBalanced": retrieval.ClassBalanced,
    "Weighted": retrieval.Weighted,
    "Prioritised": lambda: retrieval.Prioritised(beta=0.4),
    "LeastReplayed": retrieval.LeastReplayed,
    "GRASP": retrieval.GRASP,
    "ClassMatched": retrieval.ClassMatched,
    "MixedSources": lambda: retrieval.MixedSources({0: 1.0, 1: 2.0}),
    "MIR": lambda: retrieval.MIR(candidates=6),
    "ASER": lambda: retrieval.ASER(per_class=1),
}


def distillation() -> losses.Distillation:
    loss = losses.Distillation()
    loss.remember(network(seed=1))
    return loss


LOSSES: dict[str, Callable[[], losses.ReplayLoss]] = {
    "CrossEntropy": losses.CrossEntropy,
    "WeightedCrossEntropy": losses.WeightedCrossEntropy,
    "importance": lambda: losses.WeightedCrossEntropy(column="importance"),
    "MSELogits": lambda: losses.MSELogits(0.3),
    "DERpp": lambda: losses.DERpp(0.3, 0.5),
    "SupCon": losses.SupCon,
    "AML": losses.AML,
    "Distillation": distillation,
    "Sum": lambda: losses.Sum(losses.CrossEntropy(0.5), losses.SupCon(0.1)),
}


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 4))


@cache
def rows() -> tuple[Tensor, Tensor]:
    """48 digits of 4 classes, two of them in each half; pixel 0, which is empty in all of them, tells their number."""
    data = digits().as_float()
    parts = [(data.y_train == label).nonzero().flatten()[:12] for label in range(4)]
    index = torch.cat([torch.stack(parts[:2], 1).flatten(), torch.stack(parts[2:], 1).flatten()])
    x, y = data.x_train[index].clone(), data.y_train[index]
    assert not x[:, 0, 0, 0].any()
    x[:, 0, 0, 0] = torch.arange(48) / 64
    return x, y


@cache
def stream(*beside: str) -> Any:
    """Two experiences with task labels, and with other columns that a policy reads."""
    x, y = rows()
    parts = []
    for task in range(2):
        half = slice(24 * task, 24 * task + 24)
        held = TensorDataset(x[half], y[half])
        held.targets = y[half]  # type: ignore[attr-defined]
        part = as_classification_dataset(held)
        columns = {"targets_task_labels": [task] * 24, **{name: [1 + i % 3 for i in range(24)] for name in beside}}
        for name, values in columns.items():
            part = part.update_data_attribute(name, DataAttribute(values, name, use_in_getitem=True))
        parts.append(part)
    return benchmark_from_datasets(train=parts)


def brings(policy: Policy) -> list[str]:
    """Columns that the stream must have for a policy beside x, y and t."""
    return [name for name in policy.columns if name not in ("x", "y", "t", "loss")]


def misfit(policy: Policy, draw: str, loss: str) -> str | None:
    """What a combination is refused with; None: it must run."""
    weighted = "weight" in (*policy.columns, *(policy.writes or ()))
    who = type(policy).__name__
    told = (
        "{} looks at a column '{}' that a memory of {} does not have.* Use another {} or a policy that writes the"
    )
    if draw == "Weighted" and not weighted:
        return told.format(draw, "weight", who, "retrieval")
    if loss == "WeightedCrossEntropy" and not weighted:
        return told.format(loss, "weight", who, "loss")
    if loss == "importance" and draw != "Prioritised":
        return told.format("WeightedCrossEntropy", "importance", who, "loss")
    return None


class Losses(SupervisedPlugin):
    """Keeps the loss of every step."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def after_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.seen.append(strategy.loss.detach())


def combine(storage: str, draw: str, loss: str) -> None:
    policy, term = STORAGES[storage](), LOSSES[loss]()
    memory = Buffer(CAPACITY, policy, RETRIEVALS[draw](), seed=0)
    # Whole tasks have no logits of training steps; candidates that wait for the end of a task have.
    waits = policy.per_task and "logits" in (columns_of(term) or ())
    model, watch = network(), Losses()

    def make() -> Rehearsal:
        return Rehearsal(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
            buffer=memory,
            loss=term,
            batch_size_mem=MEMORY_BATCH,
            candidates=Buffer(20, policies.Reservoir(), seed=1) if waits else None,
            train_mb_size=BATCH,
            plugins=[watch],
            evaluator=EvaluationPlugin(loggers=[Silent()]),
        )

    if (message := misfit(policy, draw, loss)) is not None:
        with pytest.raises(ValueError, match=message):
            make()
        return
    strategy = make()
    for experience in stream(*brings(policy)).train_stream:
        strategy.train(experience)
        assert len(watch.seen) % 4 == 0 and torch.stack(watch.seen).isfinite().all()
        assert all(p.isfinite().all() for p in model.parameters())
        check_memory(memory, columns_of(term) or ())


def check_memory(memory: Buffer, read: tuple[str, ...]) -> None:
    """Rows of the stream, each once, whole, within the slots and their bytes, with what the loss reads."""
    x, y = rows()
    assert 0 < len(memory) <= memory.capacity == CAPACITY
    number = (memory["x"][:, 0, 0, 0] * 64).round().long()
    assert len(number.unique()) == len(memory)
    assert torch.equal(memory["x"], x[number]) and torch.equal(memory["y"], y[number])
    assert set(read) - {"importance"} <= set(memory.store.columns)
    store = memory.store
    row = sum(memory[name][0].nbytes for name in store.columns)
    # A slot beside its row: whether it is filled, its place in the order, and a number for each note or width.
    assert memory.nbytes <= CAPACITY * (row + 16 + 8 * (len(store.notes) + len(store.widths)))
    assert held_bytes(memory.policy.state_dict()) <= CAPACITY * row


def held_bytes(state: Any) -> int:
    """Of the tensors and numbers of a state."""
    if isinstance(state, Tensor):
        return state.nbytes
    if isinstance(state, dict):
        return sum(map(held_bytes, state.values()))
    return sum(map(held_bytes, state)) if isinstance(state, (list, tuple)) else 8


@pytest.mark.parametrize("storage", STORAGES)
def test_every_pair(storage: str) -> None:
    """With every retrieval, the losses in turn; the next storage begins with the next loss."""
    first, names = list(STORAGES).index(storage), list(LOSSES)
    for turn, draw in enumerate(RETRIEVALS):
        combine(storage, draw, names[(first + turn) % len(names)])


def test_the_pairs_are_all_there() -> None:
    """What the test above leaves to arithmetic."""
    losses_of, names = len(LOSSES), range(len(LOSSES))
    turns = [(s, d, (s + d) % losses_of) for s in range(len(STORAGES)) for d in range(len(RETRIEVALS))]
    assert {(s, k) for s, _, k in turns} == set(itertools.product(range(len(STORAGES)), names))
    assert {(d, k) for _, d, k in turns} == set(itertools.product(range(len(RETRIEVALS)), names))


@pytest.mark.slow
@pytest.mark.parametrize("storage", STORAGES)
def test_every_triple(storage: str) -> None:
    for draw, loss in itertools.product(RETRIEVALS, LOSSES):
        combine(storage, draw, loss)


def test_a_policy_of_whole_tasks_and_stored_logits_need_candidates() -> None:
    """Refused before any training, with the cure."""
    for loss in ("MSELogits", "DERpp"):
        with pytest.raises(
            ValueError,
            match=rf"belong to a training step.*{loss} reads them.*another policy than Herding, or keep",
        ):
            Rehearsal(model=network(), optimizer=None, buffer=Buffer(9, policies.Herding()), loss=LOSSES[loss]())
    memory = Buffer(9, policies.Reservoir())
    with pytest.raises(ValueError, match="candidates are a buffer of their own"):
        Rehearsal(model=network(), optimizer=None, buffer=memory, candidates=memory)
    with pytest.raises(ValueError, match="candidates are a buffer of their own"):
        Rehearsal(
            model=network(),
            optimizer=None,
            buffer=memory,
            candidates=Buffer(9, policies.Reservoir()),
            update="iteration",
        )
