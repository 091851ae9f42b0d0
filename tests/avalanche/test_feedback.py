"""The losses of replayed rows in a training step come back to the memory."""

import pytest
import torch
from small_streams import DIM, Labelled, Spy, mlp, naive, rows, unlabelled
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from replaykit import Buffer, policies
from replaykit.augment import views
from replaykit.avalanche import Replay
from replaykit.avalanche.feedback import Feedback, cross_entropy_of_rows
from replaykit.losses import CrossEntropy, DERpp
from replaykit.retrieval import LeastReplayed, Prioritised


def joined_passes(model, draw) -> Tensor:
    """Two draws that go through the model in one pass."""
    first, second = draw(), draw()
    z = model(torch.cat((first["x"], second["x"])))
    return cross_entropy(z, torch.cat((first["y"], second["y"])))


def with_other_passes(model, draw) -> Tensor:
    """Passes of rows that nobody drew, of changed rows, and of drawn rows a second time."""
    model(torch.ones(3, DIM))
    batch = draw()
    model(batch["x"] + 1)
    loss = cross_entropy(model(batch["x"]), batch["y"])
    model(-batch["x"])
    return loss


LOSSES = {
    "joint": lambda: None,
    "separate": CrossEntropy,
    "derpp": lambda: DERpp(0.3, 0.5),
    "joined": lambda: joined_passes,
    "others": lambda: with_other_passes,
}


class Book:
    """The last loss of each row (by its number, the first entry of x) in a pass of training, and after its first."""

    def __init__(self, model: nn.Module) -> None:
        x, y = rows(80)
        self.known = {float(row[0]): (row, int(label)) for row, label in zip(x, y, strict=True)}
        self.last: dict[float, float] = {}
        self.again: dict[float, float] = {}
        model.register_forward_hook(self.saw)

    def saw(self, model: nn.Module, args: tuple[Tensor], z: Tensor) -> None:
        for x, row in zip(args[0], z.detach(), strict=True):
            number = float(x[0])
            if number in self.known and torch.equal(x, self.known[number][0]):
                loss = float(cross_entropy(row[None], torch.tensor([self.known[number][1]])))
                if number in self.last:
                    self.again[number] = loss
                self.last[number] = loss


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("policy", [policies.LARS, policies.LABRS])
def test_a_stored_loss_is_that_of_the_last_step_with_the_row(policy, name: str) -> None:
    model, buffer = mlp(), Buffer(12, policy(), seed=0)
    book = Book(model)
    strategy = naive(Replay(buffer, 4, loss=LOSSES[name]()), model=model)
    strategy.train(unlabelled().train_stream, eval_streams=[])
    wanted = torch.tensor([book.last[float(x[0])] for x in buffer["x"]])
    assert len(buffer) == 12 and buffer["loss"].dtype == torch.float32
    torch.testing.assert_close(buffer["loss"], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_priorities_are_the_losses_of_the_last_replay(name: str) -> None:
    model, buffer = mlp(), Buffer(12, policies.Reservoir(), Prioritised(), seed=0)
    book = Book(model)
    naive(Replay(buffer, 4, loss=LOSSES[name]()), model=model).train(unlabelled().train_stream, eval_streams=[])
    replayed = [place for place, x in enumerate(buffer["x"]) if float(x[0]) in book.again]
    wanted = torch.tensor([book.again[float(x[0])] for x in buffer["x"][replayed]], dtype=torch.float64)
    assert len(replayed) >= 6
    torch.testing.assert_close(buffer["priority"][replayed], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["joint", "separate"])
def test_losses_are_those_of_the_training_view(name: str) -> None:
    g = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (40, 1, 4, 4), dtype=torch.uint8, generator=g)
    data = unlabelled(data=Labelled(pictures, torch.arange(40) % 4))
    torch.manual_seed(0)
    model, buffer, seen = nn.Sequential(nn.Flatten(), nn.Linear(16, 4)), Buffer(8, policies.LARS(), seed=0), []
    model.register_forward_hook(lambda m, args, z: seen.extend(z.detach()))
    plugin = Replay(buffer, 4, loss=LOSSES[name](), views=views((0.5,), (0.25,), flip=True))
    naive(plugin, model=model).train(data.train_stream, eval_streams=[])
    possible = cross_entropy(
        torch.stack(seen).repeat_interleave(4, 0), torch.arange(4).repeat(len(seen)), reduction="none"
    )
    for loss in buffer["loss"].tolist():
        assert (possible - loss).abs().min() < 1e-5


def test_arrivals_have_the_loss_of_their_step_before_it() -> None:
    model, buffer, spy = mlp(), Buffer(80, policies.LARS(), seed=0), Spy()
    strategy = naive(Replay(buffer, 1, loss=CrossEntropy(0.0)), spy, model=model)
    strategy.train(unlabelled().train_stream, eval_streams=[])
    wanted = torch.cat(
        [cross_entropy(z, y, reduction="none") for z, (_, y) in zip(spy.outputs, spy.batches, strict=True)]
    )
    torch.testing.assert_close(buffer["loss"], wanted, rtol=1e-4, atol=1e-5)


def test_another_loss_of_rows() -> None:
    def confidence(z: Tensor, y: Tensor) -> Tensor:
        return 1 - z.softmax(1).amax(1)

    model, buffer = mlp(), Buffer(80, policies.LARS(), seed=0)
    naive(Replay(buffer, 4, row_loss=confidence), model=model, lr=0.0).train(
        unlabelled().train_stream, eval_streams=[]
    )
    with torch.no_grad():
        wanted = confidence(model(buffer["x"]), buffer["y"])
    torch.testing.assert_close(buffer["loss"], wanted, rtol=1e-4, atol=1e-5)


def test_whole_experiences_have_the_losses_of_a_probe() -> None:
    model, buffer = mlp(), Buffer(80, policies.LABRS(), seed=0)
    naive(Replay(buffer, 4, update="experience"), model=model, lr=0.0).train(
        unlabelled().train_stream, eval_streams=[]
    )
    with torch.no_grad():
        wanted = cross_entropy(model(buffer["x"]), buffer["y"], reduction="none")
    assert len(buffer) == 80
    torch.testing.assert_close(buffer["loss"], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["separate", "derpp"])
def test_the_model_keeps_no_hooks(name: str) -> None:
    model = mlp()
    plugin = Replay(Buffer(12, policies.LARS(), seed=0), 4, loss=LOSSES[name]())
    naive(plugin, model=model).train(unlabelled().train_stream, eval_streams=[])
    assert not any(m._forward_hooks for m in model.modules())


def test_a_loss_that_fails_leaves_no_hook() -> None:
    def broken(model, draw) -> Tensor:
        draw()
        raise ZeroDivisionError

    model = mlp()
    with pytest.raises(ZeroDivisionError):
        naive(Replay(Buffer(12, policies.LARS(), seed=0), 4, loss=broken), model=model).train(
            unlabelled().train_stream, eval_streams=[]
        )
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("retrieval", [None, LeastReplayed()])
def test_nobody_is_told_who_does_not_look(retrieval) -> None:
    plugin = Replay(Buffer(12, policies.Reservoir(), seed=0), 4, retrieval=retrieval)
    assert plugin._feedback is None
    naive(plugin).train(unlabelled().train_stream, eval_streams=[])
    assert "loss" not in plugin.buffer.store.columns


def test_memories_by_loss_train_and_stay_whole() -> None:
    """ABS by the number of classes a task, with losses that come back."""
    model, buffer = mlp(), Buffer(12, policies.ABS(0.5, task=2), seed=0)
    book = Book(model)
    naive(Replay(buffer, 4), model=model).train(unlabelled().train_stream, eval_streams=[])
    wanted = torch.tensor([book.last[float(x[0])] for x in buffer["x"]])
    torch.testing.assert_close(buffer["loss"], wanted, rtol=1e-4, atol=1e-5)
    assert buffer.policy.offered == 16 * 2  # round(0.5 · 5) = 2 of each batch


@pytest.mark.parametrize("shape", [(4, 3, 2), (4,), (5, 3)])
def test_outputs_that_have_no_cross_entropy(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=r"outputs \[.*\] for 4 rows have no cross-entropy; pass Replay\(row_loss="
    ):
        cross_entropy_of_rows(torch.zeros(shape), torch.zeros(4, dtype=torch.int64))


def test_of_two_draws_with_a_row_in_common_the_last_loss_counts() -> None:
    buffer = Buffer(3, policies.LARS(), seed=0)
    buffer.add({"x": torch.zeros(3, 2), "y": torch.zeros(3, dtype=torch.int64), "loss": torch.ones(3)})
    feedback = Feedback(buffer, None, lambda z, y: z[:, 0])
    slots = buffer.store.filled.copy()
    feedback.saw(slots[:2], torch.tensor([[2.0], [3.0]]), torch.zeros(2))
    feedback.saw(slots[1:], torch.tensor([[4.0], [5.0]]), torch.zeros(2))
    feedback.deliver()
    assert buffer["loss"].tolist() == [2, 4, 5]
    feedback.deliver()  # nothing is told twice
    assert buffer["loss"].tolist() == [2, 4, 5]
