"""What goes together and what does not: columns that a retrieval or a loss looks at, whole tasks, training steps."""

from typing import Any

import pytest
import torch
from small_streams import DIM, naive, rows, unlabelled

from replaykit import Buffer, policies
from replaykit.avalanche import Replay
from replaykit.avalanche.fit import check_loss, check_retrieval, check_training_step, check_whole_tasks
from replaykit.losses import CrossEntropy, DERpp, MSELogits, Sum, WeightedCrossEntropy
from replaykit.retrieval import LeastReplayed, Prioritised, Uniform, Weighted
from replaykit.selectors import Herding


class Silent(policies.Reservoir):
    """A policy of one's own."""

    writes = None


def memory(policy: Any = None, **options: Any) -> Buffer:
    return Buffer(12, policy or policies.Reservoir(), seed=3, **options)


def filled(**columns: torch.Tensor) -> Buffer:
    buffer = memory()
    buffer.add({"x": torch.zeros(4, DIM), "y": torch.arange(4), **columns})
    return buffer


class Reading:
    """A retrieval by a column."""

    def __init__(self, *columns: str) -> None:
        self.columns = columns


# -- whole tasks ----------------------------------------------------------------------------------


def test_rows_are_offered_as_the_policy_takes_them() -> None:
    assert check_whole_tasks(memory(), None, None) == "iteration"
    assert check_whole_tasks(memory(), "experience", 7) == "experience"
    assert check_whole_tasks(memory(policies.OCS()), None, None) == "experience"
    with pytest.raises(ValueError, match="update is 'iteration' or 'experience', got 'epoch'"):
        check_whole_tasks(memory(), "epoch", None)
    for update, chunk in (("iteration", None), ("experience", 5), (None, 5)):
        with pytest.raises(
            ValueError, match="OCS takes every add as a whole task; use update='experience' and no"
        ):
            check_whole_tasks(memory(policies.OCS()), update, chunk)


def test_logits_and_losses_belong_to_a_step() -> None:
    for logits, loss, what in ((True, False, "logits"), (False, True, "loss"), (True, True, "logits and loss")):
        check_training_step(memory(), logits, loss, True)
        with pytest.raises(ValueError, match=f"^{what} belong to a training step.* use update='iteration'$"):
            check_training_step(memory(), logits, loss, False)
        with pytest.raises(
            ValueError, match="use update='iteration', and another policy than OCS, or keep candidates"
        ):
            check_training_step(memory(policies.OCS()), logits, loss, False)
    check_training_step(memory(policies.OCS()), False, False, False)


# -- columns --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("buffer", "column", "given"),
    [
        (memory(), "y", None),
        (memory(), "source", None),  # the stream may bring it
        (memory(), "source", ["x", "y", "source"]),
        (filled(source=torch.arange(4)), "source", None),
        (filled(source=torch.arange(4)), "source", ["x", "y"]),
        (memory(policies.GSSGreedy()), policies.GSSGreedy.writes[0], None),
        (memory(policies.LARS()), "loss", ["x", "y"]),  # the plugin stores it for the policy
        (memory(policies.Coreset(Herding())), "weight", None),
        (memory(Silent()), "anything", ["x", "y"]),  # it does not say what it writes
        (memory(count_replays=True), "replayed", None),
    ],
)
def test_columns_that_are_there_or_may_come(buffer: Buffer, column: str, given: Any) -> None:
    check_retrieval(buffer, Reading(column), given)
    check_loss(buffer, Sum(CrossEntropy(), WeightedCrossEntropy(column=column)), Uniform(), given)


@pytest.mark.parametrize(
    ("buffer", "column", "given", "has"),
    [
        (memory(), "weight", None, "Reservoir does not write it"),
        (memory(), "importance", None, "Reservoir does not write it"),
        (memory(), "source", ["y", "x"], r"the rows have \['x', 'y'\]"),
        (filled(), "source", None, r"the rows have \['x', 'y'\]"),
        (memory(policies.Coreset(Herding())), "t", ["y", "x"], r"the rows have \['x', 'y'\]"),
    ],
)
def test_columns_that_cannot_come(buffer: Buffer, column: str, given: Any, has: str) -> None:
    policy = type(buffer.policy).__name__
    for kind, name, check in (
        ("retrieval", "Reading", lambda: check_retrieval(buffer, Reading(column), given)),
        (
            "loss",
            "WeightedCrossEntropy",
            lambda: check_loss(buffer, WeightedCrossEntropy(column=column), Uniform(), given),
        ),
    ):
        message = f"{name} looks at a column '{column}' that a memory of {policy} does not have: {has}. Use another {kind}"
        with pytest.raises(
            ValueError, match=f"{message} or a policy that writes the column, or add rows that have"
        ):
            check()


def test_counts_of_replays_have_a_cure_of_their_own() -> None:
    with pytest.raises(ValueError, match=r"Reading looks at how often .* use Buffer\(..., count_replays=True\)"):
        check_retrieval(memory(), Reading("replayed"))
    check_retrieval(memory(retrieval=LeastReplayed()), LeastReplayed())


def test_what_a_step_and_a_retrieval_give_a_loss() -> None:
    for loss in (None, MSELogits(1.0), DERpp(1.0, 1.0), lambda model, draw: torch.zeros(())):
        check_loss(memory(), loss, Uniform())
        check_loss(filled(), loss, Uniform(), ["x", "y"])
    importance = WeightedCrossEntropy(column="importance")
    check_loss(memory(), importance, Prioritised(beta=0.5))
    for by in (Prioritised(), Uniform()):
        with pytest.raises(ValueError, match="WeightedCrossEntropy looks at a column 'importance'"):
            check_loss(memory(), importance, by)


# -- through the plugin ---------------------------------------------------------------------------


def test_the_plugin_refuses_at_construction_what_can_be_told_then() -> None:
    for options, name in (
        ({"retrieval": Weighted()}, "Weighted"),
        ({"loss": WeightedCrossEntropy()}, "WeightedCrossEntropy"),
    ):
        with pytest.raises(ValueError, match=f"{name} looks at a column 'weight' that a memory of Reservoir"):
            Replay(memory(), **options)
        Replay(memory(policies.Coreset(Herding())), update="experience", **options)


@pytest.mark.parametrize("what", ["retrieval", "loss"])
def test_what_only_the_stream_can_tell_is_told_before_the_first_step(what: str) -> None:
    options = (
        {"retrieval": Weighted("source")}
        if what == "retrieval"
        else {"loss": WeightedCrossEntropy(column="source")}
    )
    strategy = naive(Replay(memory(), **options))
    before = {name: value.clone() for name, value in strategy.model.state_dict().items()}
    with pytest.raises(
        ValueError, match=rf"looks at a column 'source' .* the rows have \['x', 'y'\]. Use another {what}"
    ):
        strategy.train(unlabelled().train_stream, eval_streams=[])
    assert all(torch.equal(value, before[name]) for name, value in strategy.model.state_dict().items())


def test_weights_that_the_stream_would_bring_need_rows_in_the_memory() -> None:
    """The name is one that policies write: rows that have it say that the stream brings it."""
    x, y = rows(8)
    buffer = memory()
    buffer.add({"x": x, "y": y, "weight": torch.ones(8)})
    Replay(buffer, loss=WeightedCrossEntropy())
    Replay(buffer, retrieval=Weighted())
