"""Latent replay against bare PyTorch: what is stored, what joins where, and what learns."""

import pytest
import torch
from avalanche.models import MultiHeadClassifier, MultiTaskModule
from small_streams import CLASSES, DIM, classic, minibatches, parameters, template, unlabelled
from torch import nn
from torch.nn import functional

from replaykit import Buffer, policies, retrieval
from replaykit.augment import Views
from replaykit.benchmarks import Network
from replaykit.benchmarks import mlp as network
from replaykit.strategies import LatentReplay
from replaykit.strategies.latent_replay import modules_up_to


def memory(policy: policies.Reservoir | None = None) -> Buffer:
    return Buffer(12, policy or policies.Reservoir(), seed=3)


def deep(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(DIM, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, CLASSES))


def template_of(model: nn.Module, **options):
    momentum = options.pop("momentum", 0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
    return {**template(model, **options), "optimizer": optimizer}


@pytest.mark.parametrize("front_rate", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_every_step_is_the_bare_step(front_rate: float, momentum: float) -> None:
    data = unlabelled(40)
    options = {"cut": "1", "batch_size_mem": 7, "front_rate": front_rate}
    strategy = LatentReplay(buffer=memory(), **options, **template_of(deep(), momentum=momentum))
    strategy.train(data.train_stream, eval_streams=[], shuffle=False)

    model, twin = deep(), memory()
    front, back = model[:2], model[2:]
    sgd = [torch.optim.SGD(part.parameters(), lr=0.1, momentum=momentum) for part in (front, back)]
    for step, (x, y) in enumerate(minibatches(data, 5)):
        slow = step >= 4  # two tasks of four batches
        if slow:
            sgd[0].param_groups[0]["lr"] = 0.1 * front_rate
        latent = front(x)
        both, labels = latent.detach() if slow and front_rate == 0 else latent, y
        if len(twin):
            m = twin.sample(7)
            both, labels = torch.cat([both, m["x"]]), torch.cat([y, m["y"]])
        loss = functional.cross_entropy(back(both), labels)
        for part in sgd:
            part.zero_grad()
        loss.backward()
        for part in sgd:
            part.step()
        twin.add({"x": latent.detach(), "y": y})
    torch.testing.assert_close(parameters(strategy.model), parameters(model), atol=1e-6, rtol=0)
    torch.testing.assert_close(strategy.replay.buffer["x"], twin["x"])
    assert strategy.begun == 2 and strategy.frozen == (front_rate == 0)


def test_a_frozen_front_equals_training_the_back_on_features() -> None:
    """From the second task on, the same as ER over precomputed features."""
    data = unlabelled(80)
    strategy = LatentReplay(buffer=memory(), cut="1", **template_of(deep()))
    strategy.train(data.train_stream[0], eval_streams=[], shuffle=False)
    front = nn.Sequential(*strategy.model[:2])
    torch.manual_seed(1)
    back = nn.Sequential(*deep()[2:])
    back.load_state_dict(nn.Sequential(*strategy.model[2:]).state_dict())
    twin = memory()
    twin.load_state_dict(strategy.replay.buffer.state_dict())
    before = parameters(front).clone()
    strategy.train(data.train_stream[1], eval_streams=[], shuffle=False)
    assert torch.equal(parameters(front), before), "the front has not moved"

    sgd = torch.optim.SGD(back.parameters(), lr=0.1)
    for x, y in list(minibatches(data, 5))[8:]:
        features = front(x).detach()
        m = twin.sample(5)
        loss = functional.cross_entropy(back(torch.cat([features, m["x"]])), torch.cat([y, m["y"]]))
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        twin.add({"x": features, "y": y})
    torch.testing.assert_close(parameters(nn.Sequential(*strategy.model[2:])), parameters(back), atol=1e-6, rtol=0)


def test_a_frozen_front_keeps_its_statistics_and_its_modes() -> None:
    torch.manual_seed(0)
    front = nn.Sequential(nn.Linear(DIM, 8), nn.BatchNorm1d(8), nn.ReLU())
    model = nn.Sequential(front, nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES)))
    data = unlabelled()
    strategy = LatentReplay(buffer=memory(), cut="0", **template_of(model))
    strategy.train(data.train_stream[0], eval_streams=[])
    norm, other = front[1], model[1][1]
    mean, count = norm.running_mean.clone(), int(other.num_batches_tracked)
    strategy.train(data.train_stream[1], eval_streams=[])
    assert torch.equal(norm.running_mean, mean) and norm.training
    assert int(other.num_batches_tracked) == count + 8


@pytest.mark.parametrize(("dtype", "size"), [(None, 4), (torch.float16, 2), (torch.bfloat16, 2)])
def test_the_memory_holds_activations_in_the_bytes_asked_for(dtype, size: int) -> None:
    buffer = Buffer(20, policies.Reservoir(), seed=0)
    strategy = LatentReplay(buffer=buffer, cut="1", dtype=dtype, **template_of(deep()))
    strategy.train(unlabelled().train_stream, eval_streams=[])
    assert buffer["x"].dtype == (dtype or torch.float32) and buffer["x"].shape == (20, 8)
    plain = Buffer(20, policies.Reservoir(), seed=0)
    plain.add({"x": torch.zeros(20, 8, dtype=dtype or torch.float32), "y": torch.zeros(20, dtype=torch.int64)})
    assert buffer.nbytes == plain.nbytes and plain.store.columns["x"].nbytes == 20 * 8 * size
    assert parameters(strategy.model).isfinite().all()


def test_activations_that_float16_cannot_hold_are_refused() -> None:
    model = deep()
    with torch.no_grad():
        model[0].bias.fill_(1e6)
    strategy = LatentReplay(buffer=memory(), cut="1", dtype=torch.float16, **template_of(model))
    with pytest.raises(ValueError, match=r"do not fit into torch.float16; store them as float32 or bfloat16"):
        strategy.train(unlabelled().train_stream, eval_streams=[])
    assert len(strategy.replay.buffer) == 0


def test_task_labels_and_marks_follow_the_rows() -> None:
    strategy = LatentReplay(buffer=memory(), cut="1", **template_of(deep()))
    marks = []
    strategy._after_forward = lambda **kwargs: marks.append(
        (len(strategy.mb_output), len(strategy.mb_y), len(strategy.mb_task_id), int(strategy.from_memory.sum()))
    )
    strategy.train(classic(task_labels=True).train_stream, eval_streams=[])
    assert marks[0] == (5, 5, 5, 0) and marks[-1] == (10, 10, 10, 5)
    assert set(strategy.replay.buffer["t"].tolist()) == {0, 1}


def test_views_are_of_the_stream_and_evaluation_is_of_the_whole_model() -> None:
    data, calls = unlabelled(), []

    def view(x):
        calls.append(len(x))
        return x

    strategy = LatentReplay(buffer=memory(), cut="1", views=Views(view, view), **template_of(deep()))
    strategy.train(data.train_stream, eval_streams=[])
    assert set(calls) == {5}
    strategy.eval(data.test_stream)
    assert strategy.model(torch.zeros(3, DIM)).shape == (3, CLASSES)


def test_the_front_is_what_is_over_when_the_cut_has_its_output() -> None:
    model = network(inputs=DIM, hidden=(5, 4), classes=3, seed=0)
    assert isinstance(model, Network)
    names = {module: name for name, module in model.named_modules()}
    found = [names[module] for module in modules_up_to(model, "body.2", torch.zeros(2, DIM))]
    assert found == ["body.0", "body.1", "body.2"]
    found = [names[module] for module in modules_up_to(model, "body", torch.zeros(2, DIM))]
    assert found[-1] == "body" and "classifier" not in found


def test_a_resumed_run_is_the_uninterrupted_one() -> None:
    data = unlabelled()
    whole, first = (LatentReplay(buffer=memory(), cut="1", **template_of(deep())) for _ in range(2))
    whole.train(data.train_stream, eval_streams=[], shuffle=False)
    first.train(data.train_stream[0], eval_streams=[], shuffle=False)
    second = LatentReplay(buffer=memory(), cut="1", **template_of(deep(seed=7)))
    second.model.load_state_dict(first.model.state_dict())
    second.replay.buffer.load_state_dict(first.replay.buffer.state_dict())
    second.load_state_dict(first.state_dict())
    second.train(data.train_stream[1], eval_streams=[], shuffle=False)
    assert torch.equal(parameters(second.model), parameters(whole.model))
    with pytest.raises(ValueError, match="not the state of LatentReplay"):
        second.load_state_dict({"task": 0})


class Around(nn.Module):
    """A connection around the first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(DIM, DIM), nn.Linear(DIM, CLASSES)

    def forward(self, x):
        return self.last(x + self.first(x))


def test_a_connection_around_the_cut_is_told() -> None:
    strategy = LatentReplay(buffer=memory(), cut="first", **template_of(Around()))
    with pytest.raises(RuntimeError, match=r"joined behind 'first': cut where everything behind depends on"):
        strategy.train(unlabelled().train_stream, eval_streams=[])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cut": "body"}, r"no module 'body' to cut at; it has \['0', '1'"),
        ({"front_rate": 1.5}, "share in .0, 1., got 1.5"),
        ({"dtype": torch.int8}, "floating point, got torch.int8"),
        ({"buffer": Buffer(9, policies.OCS())}, "LatentReplay .*OCS takes every add as a whole task; use another"),
        ({"buffer": Buffer(9, policies.KMeans())}, "LatentReplay .*KMeans shows stored rows .* pass probe="),
        ({"retrieval": retrieval.MIR()}, "LatentReplay .*MIR shows stored rows .* pass probe="),
    ],
)
def test_what_does_not_fit_is_refused_before_training(options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LatentReplay(**{"buffer": memory(), "cut": "1", **options, **template_of(deep())})


def test_a_probe_that_starts_from_activations_lets_policies_look() -> None:
    from replaykit.probe import Probe

    buffer = Buffer(12, policies.KMeans(), seed=0)
    options = {"cut": "1", "probe": lambda strategy: Probe(nn.Sequential(*strategy.model[2:]))}
    strategy = LatentReplay(buffer=buffer, **options, **template_of(deep()))
    strategy.train(unlabelled().train_stream, eval_streams=[])
    assert len(buffer) == 12 and buffer["x"].shape == (12, 8)


@pytest.mark.parametrize("front_rate", [0.0, 0.5])
def test_heads_of_their_own_for_each_task(front_rate: float) -> None:
    class TwoHeads(MultiTaskModule):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Sequential(nn.Linear(DIM, 8), nn.ReLU()), MultiHeadClassifier(8, CLASSES)

        def forward(self, x, task_labels):
            return self.head(self.body(x), task_labels)

    torch.manual_seed(0)
    model, data = TwoHeads(), classic(task_labels=True)
    strategy = LatentReplay(buffer=memory(), cut="body", front_rate=front_rate, **template_of(model))
    strategy.train(data.train_stream[0], eval_streams=[])
    before = parameters(model.body).clone()
    strategy.train(data.train_stream[1], eval_streams=[])
    assert torch.equal(parameters(model.body), before) == (front_rate == 0)
    assert strategy.front() == [model.body[0], model.body[1], model.body]
    assert strategy.replay.buffer["x"].shape == (12, 8)


def test_finding_the_front_is_no_step() -> None:
    """The pass that finds it neither joins rows of the memory nor becomes what is stored."""
    strategy, joined = LatentReplay(buffer=memory(), cut="1", **template_of(deep())), []
    join = strategy.replay.join
    strategy.replay.join = lambda latent: joined.append(len(latent)) or join(latent)
    strategy.train(unlabelled().train_stream, eval_streams=[])
    assert strategy.frozen and joined == [5] * 16


def test_sub_experiences_belong_to_their_experience() -> None:
    from avalanche.benchmarks import split_online_stream

    strategy = LatentReplay(buffer=memory(), cut="1", **template_of(deep()))
    begun = []
    stream = unlabelled(40).train_stream
    for experience in split_online_stream(stream, experience_size=10, access_task_boundaries=True):
        strategy.train(experience, eval_streams=[])
        begun.append(strategy.begun)
    assert begun == [1, 1, 2, 2] and strategy.frozen
    for experience in split_online_stream(stream, experience_size=10):
        strategy.train(experience, eval_streams=[])
        begun.append(strategy.begun)
    assert begun[4:] == [3, 4, 5, 6], "hidden boundaries: every sub-experience is a task"


def test_layers_that_work_in_place_behind_the_cut_do_not_touch_what_is_stored() -> None:
    front, back = nn.Linear(DIM, 8), nn.Sequential(nn.Hardswish(inplace=True), nn.Linear(8, CLASSES))
    strategy = LatentReplay(
        buffer=Buffer(80, policies.Reservoir(), seed=3), cut="0", **template(nn.Sequential(front, back), lr=0.0)
    )
    data = unlabelled(40)
    strategy.train(data.train_stream, eval_streams=[], shuffle=False)
    x = torch.cat([x for x, _ in minibatches(data, 5)])
    torch.testing.assert_close(strategy.replay.buffer["x"], front(x).detach())


def test_a_penalty_on_all_parameters_does_not_move_a_frozen_front() -> None:
    from avalanche.training.plugins import EWCPlugin

    options = template_of(deep(), momentum=0.9, plugins=[EWCPlugin(1.0)])
    strategy = LatentReplay(buffer=memory(), cut="1", **options)
    data = unlabelled(40)
    strategy.train(data.train_stream[0], eval_streams=[])
    front, back = (parameters(part).clone() for part in (strategy.model[:2], strategy.model[2:]))
    strategy.train(data.train_stream[1], eval_streams=[])
    assert torch.equal(parameters(strategy.model[:2]), front)
    assert not torch.equal(parameters(strategy.model[2:]), back)


def test_a_parameter_that_two_layers_of_the_front_share_takes_its_share_of_a_step_once() -> None:
    def tied() -> nn.Module:
        torch.manual_seed(0)
        first, second = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        second.weight = first.weight
        return nn.Sequential(nn.Sequential(first, second), nn.Linear(DIM, CLASSES))

    data, moved = unlabelled(10, tasks=1), []
    for rate in (1.0, 0.5):
        strategy = LatentReplay(
            buffer=Buffer(4, policies.Reservoir()), cut="0", front_rate=rate, **template(tied(), train_mb_size=10)
        )
        strategy.load_state_dict({"begun": 2, "task": 0})
        strategy.train(data.train_stream, eval_streams=[], shuffle=False)
        moved.append(strategy.model[0][0].weight.detach() - tied()[0][0].weight.detach())
    torch.testing.assert_close(moved[1], moved[0] / 2)
