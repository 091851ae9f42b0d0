"""The training of Rainbow Memory against a bare loop, its learning rates and its augmentations."""

import inspect
import itertools

import pytest
import torch
from avalanche.core import SupervisedPlugin
from small_streams import (
    CLASSES,
    DIM,
    STREAMS,
    Labelled,
    Spy,
    minibatches,
    mlp,
    no_warnings,
    parameters,
    rows,
    template,
    unlabelled,
)
from torch import nn
from torch.nn import functional

from replaykit import Buffer, policies
from replaykit.augment import Views
from replaykit.strategies.rainbow_memory import RainbowMemory
from replaykit.testing import same

RATES = [0.1, 1.0, 1.0, 0.505, 1.0]  # of the first five passes


def memory(policy=None, capacity: int = 14) -> Buffer:
    return Buffer(capacity, policy or policies.Reservoir(), seed=3)


def perturbed() -> policies.RainbowMemory:
    """The method's own memory, for rows that are no images."""
    return policies.RainbowMemory(views=[lambda x: x + 0.3, lambda x: x.roll(1, 1), lambda x: -x])


def momentum(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2)


def doubles():
    x, y = rows(80)
    return unlabelled(data=Labelled(x.double(), y))


@pytest.mark.parametrize("reset", [False, True])
def test_every_step_is_the_bare_step(reset: bool) -> None:
    model, data = mlp().double(), doubles()
    options = {**template(model), "optimizer": momentum(model)}
    made = RainbowMemory(buffer=memory(), passes=5, batch_size_mem=4, reset_head=reset, **options)
    torch.manual_seed(7)
    made.train(data.train_stream, eval_streams=[], shuffle=False)

    model, twin = mlp().double(), memory()
    torch.manual_seed(7)
    torch.empty((), dtype=torch.int64).random_()  # what the loader's iterator draws
    step = lambda sgd, x, y: (sgd.zero_grad(), functional.cross_entropy(model(x), y).backward(), sgd.step())  # noqa: E731
    for i, (x, y) in enumerate(minibatches(data, 5)):
        if i % 8 == 0:
            sgd = momentum(model)
            sgd.param_groups[0]["lr"] = 0.01
            if i:
                torch.empty((), dtype=torch.int64).random_()
                if reset:
                    model[2].reset_parameters()
        old = twin.sample(4) if len(twin) else {"x": x[:0], "y": y[:0]}
        step(sgd, torch.cat([x, old["x"]]), torch.cat([y, old["y"]]))
        twin.add({"x": x, "y": y})
        if i % 8 == 7:
            for rate in RATES:
                sgd.param_groups[0]["lr"] = 0.1 * rate
                order = twin.store.filled[twin.draws.permutation(len(twin))]
                for start in range(0, len(order), 4):
                    held = twin.read(order[start : start + 4])
                    step(sgd, held["x"], held["y"])
    torch.testing.assert_close(parameters(made.model), parameters(model), atol=1e-12, rtol=0)
    assert torch.equal(made.replay.buffer["x"], twin["x"])


class Rates(SupervisedPlugin):
    """The learning rate of every step, and whether it is on the stream."""

    def __init__(self, made_optimizer: torch.optim.Optimizer) -> None:
        super().__init__()
        self.noted: list[tuple[float, bool]] = []
        self.stream = False
        step = made_optimizer.step

        def noting(*args, **kwargs):
            self.noted.append((made_optimizer.param_groups[0]["lr"], self.stream))
            return step(*args, **kwargs)

        made_optimizer.step = noting  # type: ignore[method-assign]

    def before_training_iteration(self, strategy, *args, **kwargs) -> None:
        self.stream = True

    def after_training_iteration(self, strategy, *args, **kwargs) -> None:
        self.stream = False


def test_rates_of_the_stream_and_of_every_pass() -> None:
    options = template()
    rates = Rates(options["optimizer"])
    made = RainbowMemory(buffer=memory(), passes=5, batch_size_mem=7, plugins=[rates], **options)
    made.train(unlabelled().train_stream, eval_streams=[])
    passes = [(rate * 0.1, False) for rate in RATES for _ in range(2)]  # 14 rows
    expected = [*[(0.01, True)] * 8, *passes] * 2
    assert [stream for _, stream in rates.noted] == [stream for _, stream in expected]
    assert [rate for rate, _ in rates.noted] == pytest.approx([rate for rate, _ in expected])
    assert made.optimizer.param_groups[0]["lr"] == 0.1


def test_half_of_every_mini_batch_is_from_the_memory_and_selection_comes_at_the_end() -> None:
    spy, buffer = Spy(), memory(perturbed())
    made = RainbowMemory(buffer=buffer, passes=1, plugins=[spy], **template())
    first, second = unlabelled().train_stream
    made.train(first, eval_streams=[])
    assert not any(marks.any() for marks in spy.from_memory)  # the policy takes whole tasks
    assert len(buffer) == 14 and sorted(buffer["y"].unique().tolist()) == [0, 1]
    made.train(second, eval_streams=[])
    assert all(marks.tolist() == [False] * 5 + [True] * 5 for marks in spy.from_memory[8:])
    counts = buffer["y"].bincount()
    assert counts.sum() == 14 and counts.min() >= 14 // 4  # two places are drawn among the rest


def test_the_head_is_made_anew_once_an_experience_and_the_rest_stays() -> None:
    weights = []

    class Watch(SupervisedPlugin):
        def before_forward(self, strategy, *args, **kwargs) -> None:
            weights.append([p.detach().clone() for p in strategy.model.parameters()])

    made = RainbowMemory(buffer=memory(), passes=0, reset_head=True, plugins=[Watch()], **template(lr=0.0))
    made.train(unlabelled().train_stream, eval_streams=[])
    changed = [not torch.equal(a[2], b[2]) for a, b in zip(weights, weights[1:], strict=False)]
    assert changed == [step == 7 for step in range(15)]
    assert all(torch.equal(step[0], weights[0][0]) for step in weights)


def test_images_are_augmented_and_mixed_in_every_step_and_stored_raw() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randint(256, (40, 1, 8, 8), dtype=torch.uint8, generator=g)
    data = unlabelled(data=Labelled(x, torch.arange(40) % CLASSES))
    trained = []
    for options in ({}, {"auto_augment": True}, {"cutmix": 1.0}, {"cutmix": 1.0, "auto_augment": True}):
        for _ in range(2):
            torch.manual_seed(0)
            model, buffer = nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES)), memory()
            made = RainbowMemory(buffer=buffer, passes=2, views=lambda x: x / 255, **options, **template(model))
            made.train(data.train_stream, eval_streams=[], shuffle=False)
            made.eval(data.test_stream)
            trained.append(parameters(model))
            assert buffer["x"].dtype == torch.uint8
            assert {tuple(row.flatten().tolist()) for row in buffer["x"]} <= {
                tuple(row.flatten().tolist()) for row in x
            }
    assert all(torch.equal(trained[i], trained[i + 1]) for i in (0, 2, 4, 6))
    assert not any(torch.allclose(a, b, atol=1e-3) for a, b in itertools.combinations(trained[::2], 2))


def test_the_loss_of_a_mixed_batch_is_that_of_both_labels_by_their_shares() -> None:
    g = torch.Generator().manual_seed(0)
    data = unlabelled(data=Labelled(torch.rand(20, 1, 6, 6, generator=g), torch.arange(20) % CLASSES))
    torch.manual_seed(0)
    model, checked = nn.Sequential(nn.Flatten(), nn.Linear(36, CLASSES)), []

    class Check(SupervisedPlugin):
        def before_backward(self, strategy, *args, **kwargs) -> None:
            pasted, share = made.mixed
            z, y = strategy.mb_output, strategy.mb_y
            by_hand = share * functional.cross_entropy(z, y) + (1 - share) * functional.cross_entropy(z, pasted)
            torch.testing.assert_close(strategy.loss.squeeze(), by_hand)
            checked.append(float(share))

    made = RainbowMemory(buffer=memory(), passes=1, cutmix=1.0, plugins=[Check()], **template(model))
    made.train(data.train_stream, eval_streams=[])
    assert len(checked) == 4 and min(checked) < 1
    x, y = next(minibatches(data, 10))
    made.model.eval()
    made.is_training = False
    made.mbatch, made.mb_output = [x, y], made.model(x)
    torch.testing.assert_close(made.criterion(), functional.cross_entropy(made.model(x), y))


@pytest.mark.parametrize("name", STREAMS)
def test_every_benchmark_trains_without_a_warning(name: str) -> None:
    buffer = memory(perturbed())
    with no_warnings():
        made = RainbowMemory(buffer=buffer, passes=1, reset_head=True, **template())
        made.train(STREAMS[name]().train_stream, eval_streams=[])
    assert len(buffer) == 14


def test_views_are_made_of_stream_and_memory() -> None:
    spy, views = Spy(), Views(lambda x: x * 2, lambda x: x * 3)
    made = RainbowMemory(buffer=memory(), passes=1, views=views, plugins=[spy], **template())
    made.train(unlabelled().train_stream, eval_streams=[])
    raw = {tuple(row.tolist()) for row in rows(80)[0]}
    assert {tuple((row / 2).tolist()) for batch in spy.batches for row in batch[0]} <= raw


def test_its_state_says_how_far_the_experience_is() -> None:
    states = []

    class Watch(SupervisedPlugin):
        def after_training_iteration(self, strategy, *args, **kwargs) -> None:
            states.append(strategy.state_dict())

    made = RainbowMemory(buffer=memory(), passes=1, plugins=[Watch()], **template())
    made.train(unlabelled().train_stream, eval_streams=[])
    assert states == [{"batches": n} for n in range(1, 9)] * 2 and made.state_dict() == {"batches": 0}
    made.load_state_dict(states[2])
    assert same(made.state_dict(), {"batches": 3})
    for bad in ({}, {"batches": -1}, {"batches": 0.5}, {"batches": 1, "more": 1}):
        with pytest.raises(ValueError, match="not the state of Rainbow Memory's training"):
            made.load_state_dict(bad)


def test_arguments_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="passes over the memory >= 0, got -1"):
        RainbowMemory(buffer=memory(), passes=-1, **template())
    with pytest.raises(ValueError, match=r"in \[0, 1\], got 2"):
        RainbowMemory(buffer=memory(), cutmix=2, **template())
    from avalanche.models import MultiHeadClassifier

    with pytest.raises(ValueError, match="one head that all tasks share"):
        RainbowMemory(buffer=memory(), reset_head=True, **template(MultiHeadClassifier(DIM, CLASSES)))


def test_every_argument_is_documented() -> None:
    documented = (inspect.getdoc(RainbowMemory) or "").split("Args:")[1]
    assert all(
        name in documented for name in inspect.signature(RainbowMemory.__init__).parameters if name != "self"
    )
