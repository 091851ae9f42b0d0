"""The replay plugin: which rows are replayed, what is stored, and what it leaves alone."""

import copy
import gc
import pickle
import weakref
from dataclasses import replace

import pytest
import torch
from avalanche.benchmarks import split_online_stream
from avalanche.models import IncrementalClassifier, MultiHeadClassifier, MultiTaskModule
from avalanche.training.plugins import AGEMPlugin, EWCPlugin, LwFPlugin
from small_streams import (
    CLASSES,
    DIM,
    STREAMS,
    Labelled,
    Spy,
    as_classification_dataset,
    benchmark_from_datasets,
    classic,
    mlp,
    naive,
    no_warnings,
    parameters,
    rows,
    template,
    unlabelled,
)
from torch import nn

from replaykit import Buffer, policies
from replaykit.augment import Views, views
from replaykit.avalanche import Replay
from replaykit.benchmarks import digits, split
from replaykit.losses import CrossEntropy, DERpp, MSELogits
from replaykit.retrieval import ClassBalanced, GuidedRetrieval, Uniform
from replaykit.strategies import DERpp as DERppStrategy

LOSSES = {"joint": lambda: None, "separate": CrossEntropy, "derpp": lambda: DERpp(0.3, 0.5)}


def memory(capacity: int = 12, seed: int = 0) -> Buffer:
    return Buffer(capacity, policies.Reservoir(), seed=seed)


# -- which rows ---------------------------------------------------------------------------------------


def test_memory_rows_follow_the_rows_of_the_stream() -> None:
    buffer, spy = memory(), Spy()
    held: list[set[float]] = []

    class Before(Spy):
        def before_training_iteration(self, strategy, *args, **kwargs) -> None:
            held.append(set(buffer["x"][:, 0].tolist()) if len(buffer) else set())

    naive(Before(), Replay(buffer, 7), spy).train(unlabelled().train_stream, eval_streams=[])
    assert len(spy.batches) == 16
    seen: set[float] = set()
    for i, ((x, y), from_memory) in enumerate(zip(spy.batches, spy.from_memory, strict=True)):
        stored = min(5 * i, 12)
        assert from_memory.tolist() == [False] * 5 + [True] * min(7, stored)
        assert len(x) == len(y) == len(from_memory)
        fresh = set(x[:5, 0].tolist())
        assert not fresh & seen
        seen |= fresh
        # Only what was stored before this step, without repetition inside the draw.
        replayed = x[5:, 0].tolist()
        assert set(replayed) <= held[i] and len(set(replayed)) == len(replayed)


@pytest.mark.parametrize("loss", LOSSES)
def test_replayed_rows_are_never_offered_again(loss: str) -> None:
    buffer, data = memory(), unlabelled()
    naive(Replay(buffer, loss=LOSSES[loss]()), train_epochs=2).train(data.train_stream, eval_streams=[])
    assert buffer.seen == 2 * 80


def test_the_memory_is_the_one_that_the_stream_alone_would_fill() -> None:
    buffer, twin, spy = memory(), memory(), Spy()
    naive(Replay(buffer), spy).train(unlabelled().train_stream, eval_streams=[])
    for (x, y), from_memory in zip(spy.batches, spy.from_memory, strict=True):
        twin.add({"x": x[~from_memory], "y": y[~from_memory]})
    assert torch.equal(buffer["x"], twin["x"]) and torch.equal(buffer["y"], twin["y"])


def test_short_last_batches_and_the_default_size() -> None:
    buffer, spy = memory(), Spy()
    naive(Replay(buffer), spy, train_mb_size=6).train(unlabelled(40).train_stream, eval_streams=[])
    sizes = [(int((~marks).sum()), int(marks.sum())) for marks in spy.from_memory]
    assert sizes == [(6, 0), (6, 6), (6, 6), (2, 6), (6, 6), (6, 6), (6, 6), (2, 6)]


def test_a_separate_loss_leaves_the_minibatch_alone() -> None:
    spy, replay = Spy(), Replay(memory(), loss=CrossEntropy(2.0))
    naive(replay, spy).train(unlabelled().train_stream, eval_streams=[])
    assert all(len(x) == 5 for x, _ in spy.batches)
    assert not any(marks.any() for marks in spy.from_memory)


def test_another_retrieval_is_used_when_given() -> None:
    buffer, spy = memory(40), Spy()
    buffer.add({"x": rows(36)[0], "y": torch.tensor([0] * 35 + [3])})
    naive(Replay(buffer, 20, retrieval=ClassBalanced(replace=True)), spy).train(
        unlabelled(8, 1).train_stream, eval_streams=[]
    )
    _, y = spy.batches[0]
    assert (y[5:] == 3).sum() >= 4  # 10 expected; uniform without replacement could give 1


# -- every kind of benchmark ---------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("online", [False, True])
@pytest.mark.parametrize("name", STREAMS)
def test_every_benchmark_trains_without_a_warning(name: str, online: bool, loss: str) -> None:
    data, buffer = STREAMS[name](), memory()
    stream = data.train_stream
    if online:
        stream = split_online_stream(stream, 5, seed=0, access_task_boundaries=True)
    replay = Replay(buffer, loss=LOSSES[loss]())
    with no_warnings():
        naive(replay).train(stream, eval_streams=[])
    assert replay.loading == "sliced"
    assert buffer.seen == 80 and len(buffer) == 12
    names = {"x", "y"} | ({"t"} if name in ("classic", "task labels", "renumbered", "numbers") else set())
    assert set(buffer.store.columns) == names | ({"logits"} if loss == "derpp" else set())
    assert buffer["y"].dtype == torch.int64


@pytest.mark.parametrize("name", STREAMS)
def test_stored_rows_are_rows_of_the_stream(name: str) -> None:
    data, buffer = STREAMS[name](), memory()
    naive(Replay(buffer)).train(data.train_stream, eval_streams=[])
    samples = {float(s[0][0]): s for e in data.train_stream for s in e.dataset.eval()}
    for i, x in enumerate(buffer["x"]):
        sample = samples[x[0].item()]
        assert torch.equal(sample[0], x) and int(sample[1]) == buffer["y"][i]
        if len(sample) == 3:
            assert int(sample[2]) == buffer["t"][i]


class TwoHeads(MultiTaskModule):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(DIM, 8), MultiHeadClassifier(8, CLASSES, masking=False)

    def forward(self, x, task_labels):
        return self.head(torch.relu(self.body(x)), task_labels)


@pytest.mark.parametrize("loss", LOSSES)
def test_models_with_a_head_for_each_task_get_the_task_labels_of_replayed_rows(loss: str) -> None:
    data = classic(task_labels=True)
    torch.manual_seed(0)
    model, asked = TwoHeads(), []
    model.register_forward_hook(lambda module, args, z: asked.append(args[1].unique().tolist()))
    naive(Replay(memory(), loss=LOSSES[loss]()), model=model).train(data.train_stream, eval_streams=[])
    assert [0] in asked and ([0, 1] in asked)


def test_columns_beyond_the_label_are_stored_and_replayed() -> None:
    x, y = rows()
    data = as_classification_dataset(Labelled(x, y, torch.arange(80)))
    buffer, spy = memory(), Spy()
    stream = benchmark_from_datasets(train=[data]).train_stream
    naive(Replay(buffer), spy).train(stream, eval_streams=[])
    assert set(buffer.store.columns) == {"x", "y", "column2"}
    for bx, _, number in spy.batches:
        assert torch.equal(bx, x[number])


# -- logits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("joint", [True, False])
def test_stored_logits_are_the_outputs_of_the_step_bit_for_bit(joint: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(DIM, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, CLASSES))
    buffer, spy = Buffer(80, policies.Reservoir()), Spy()
    replay = Replay(buffer, loss=None if joint else MSELogits(0.5), store_logits=joint)
    noisy = Views(lambda x: x + torch.randn_like(x), lambda x: x)
    replay.views = noisy
    naive(replay, spy, model=model).train(unlabelled().train_stream, eval_streams=[])
    given = torch.cat([z[~marks] for z, marks in zip(spy.outputs, spy.from_memory, strict=True)])
    assert torch.equal(buffer["logits"], given)
    assert not buffer["logits"].requires_grad
    # The stored x is raw, although the view that gave the logits was not.
    assert set(buffer["x"][:, 0].tolist()) == set(rows()[0][:, 0].tolist())


def test_logits_of_the_stream_are_not_replaced_without_a_word() -> None:
    data = digits()
    stream = split(replace(data, columns={"logits": torch.zeros(len(data.y_train)).double()}), 5, as_float=True)
    made = DERppStrategy(
        buffer=Buffer(9, policies.Reservoir()), **template(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    )
    with pytest.raises(ValueError, match="the stream has a column 'logits', and this replay stores .*rename the"):
        made.train(stream.train_stream[0])


def test_growing_heads_are_matched_on_the_logits_they_had() -> None:
    model = nn.Sequential(nn.Linear(DIM, 8), nn.ReLU(), IncrementalClassifier(8, 2))
    buffer = Buffer(60, policies.Reservoir())
    spy = Spy()
    naive(Replay(buffer, loss=MSELogits(0.3)), spy, model=model).train(unlabelled().train_stream, eval_streams=[])
    batch = buffer.read(buffer.store.filled)
    assert batch["logits"].shape == (60, 4)
    assert batch["logits_width"].tolist() == [2 + 2 * int(y >= 2) for y in batch["y"]]
    assert max(spy.losses) < 20


def test_units_masked_when_a_row_came_are_no_targets_later() -> None:
    # Classes in the order 3, 0, ... : the head is 4 wide at once, with units at -1000 that wake up later.
    x, y = rows()
    held = as_classification_dataset(Labelled(x, (y + 3) % 4))
    from avalanche.benchmarks import class_incremental_benchmark

    data = class_incremental_benchmark({"train": held}, num_experiences=4, class_order=[3, 0, 1, 2])
    model = nn.Sequential(nn.Linear(DIM, 8), nn.ReLU(), IncrementalClassifier(8, 2))
    spy = Spy()
    naive(Replay(memory(), loss=MSELogits(0.3)), spy, model=model).train(data.train_stream, eval_streams=[])
    assert max(spy.losses) < 20  # a distance to -1000 would cost 300,000


# -- experiences --------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [None, 7])
def test_whole_experiences_are_offered_after_training_in_the_order_of_the_data(chunk: int | None) -> None:
    buffer, twin, spy, data = memory(), memory(), Spy(), unlabelled()
    naive(Replay(buffer, update="experience", chunk=chunk), spy).train(data.train_stream, eval_streams=[])
    assert [bool(marks.any()) for marks in spy.from_memory] == [False] * 8 + [True] * 8
    for experience in data.train_stream:
        samples = list(experience.dataset)
        twin.add({"x": torch.stack([s[0] for s in samples]), "y": torch.stack([s[1] for s in samples])})
    assert torch.equal(buffer["x"], twin["x"]) and torch.equal(buffer["y"], twin["y"])


def test_whole_experiences_with_transforms_are_stored_in_their_evaluation_view() -> None:
    data = classic(train_transform=lambda x: x + torch.rand(()), eval_transform=lambda x: -x)
    buffer = Buffer(80, policies.Reservoir())
    state = torch.random.get_rng_state()
    replay = Replay(buffer, update="experience", chunk=16)
    strategy = naive(replay, train_epochs=0)
    torch.random.set_rng_state(state)
    strategy.train(data.train_stream, eval_streams=[])
    assert "transform of x" in replay.loading
    assert torch.equal(torch.random.get_rng_state(), state)
    assert set(buffer["x"][:, 0].tolist()) == set((-rows()[0][:, 0]).tolist())


# -- views --------------------------------------------------------------------------------------------


def images(n: int = 40) -> Labelled:
    g = torch.Generator().manual_seed(0)
    return Labelled(torch.randint(256, (n, 1, 4, 4), dtype=torch.uint8, generator=g), torch.arange(n) % 4)


@pytest.mark.parametrize("loss", LOSSES)
def test_bytes_are_stored_and_views_are_trained_on(loss: str) -> None:
    data, spy, buffer = unlabelled(data=images()), Spy(), Buffer(40, policies.Reservoir())
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES))
    replay = Replay(buffer, loss=LOSSES[loss](), views=views(0.5, 0.5, crop=1, flip=True))
    evaluated: list[torch.Tensor] = []

    class Eval(Spy):
        def before_eval_forward(self, strategy, *args, **kwargs) -> None:
            evaluated.append(strategy.mb_x)

    strategy = naive(replay, spy, Eval(), model=model)
    strategy.train(data.train_stream, eval_streams=[])
    assert buffer["x"].dtype == torch.uint8
    raw = images().tensors[0]
    assert {bytes(x.flatten().tolist()) for x in buffer["x"]} == {bytes(x.flatten().tolist()) for x in raw}
    assert all(x.dtype == torch.float32 and x.min() >= -1 and x.max() <= 1 for x, _ in spy.batches)
    strategy.eval(data.test_stream)
    shown = torch.cat(evaluated)
    plain = {tuple(x.flatten().tolist()) for x in (raw / 255 - 0.5) / 0.5}
    assert {tuple(x.flatten().tolist()) for x in shown} == plain


@pytest.mark.parametrize("loss", LOSSES)
def test_every_replayed_row_is_seen_anew_in_a_training_view(loss: str) -> None:
    marked: list[tuple[int, bool]] = []

    def train(x):
        marked.append((len(x), True))
        return x

    def evaluate(x):
        marked.append((len(x), False))
        return x

    replay = Replay(memory(), 3, loss=LOSSES[loss](), views=Views(train, evaluate))
    strategy = naive(replay)
    strategy.train(unlabelled(10, 1).train_stream, eval_streams=[])
    # The second step has rows to replay: in the same batch, in one of its own, or in two.
    second = {"joint": [5 + 3], "separate": [5, 3], "derpp": [5, 3, 3]}[loss]
    assert marked == [(n, True) for n in [5, *second]]
    marked.clear()
    strategy.eval(unlabelled(10, 1).test_stream)
    assert marked == [(10, False)]


def test_a_single_function_is_the_view_of_everything() -> None:
    replay = Replay(memory(), views=torch.neg)
    assert replay.views == Views(torch.neg, torch.neg)


# -- what is left alone -------------------------------------------------------------------------------


def test_the_data_of_the_stream_is_not_modified() -> None:
    data = classic(task_labels=True)
    before = [[tuple(map(str, s)) for s in e.dataset] for e in data.train_stream]
    naive(Replay(memory(), views=lambda x: x * 2)).train(data.train_stream, eval_streams=[])
    assert [[tuple(map(str, s)) for s in e.dataset] for e in data.train_stream] == before


def test_the_memory_draws_nothing_from_global_generators() -> None:
    states = []
    for plugins in ([], [Replay(memory(), loss=MSELogits(0.0))], [Replay(memory())]):
        data = unlabelled()
        strategy = naive(*plugins)
        torch.manual_seed(0)
        strategy.train(data.train_stream, eval_streams=[])
        states.append(torch.random.get_rng_state())
    assert torch.equal(states[0], states[1]) and torch.equal(states[0], states[2])


@pytest.mark.parametrize("update", ["iteration", "experience"])
def test_a_stream_of_any_length_is_not_held(update: str) -> None:
    buffer, leaves = memory(), []
    replay = Replay(buffer, update=update)
    strategy = naive(replay)
    held = 0
    for i in range(30):
        leaf = Labelled(*rows(20, seed=i))
        leaves.append(weakref.ref(leaf.tensors[0]))
        strategy.train(
            benchmark_from_datasets(train=[as_classification_dataset(leaf)]).train_stream, eval_streams=[]
        )
        held = held or buffer.nbytes
        del leaf
    gc.collect()
    assert buffer.nbytes == held
    assert sum(leaf() is not None for leaf in leaves) <= 1


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("other", [lambda: EWCPlugin(0.1), lambda: LwFPlugin(1.0, 2.0), lambda: AGEMPlugin(10, 8)])
@pytest.mark.parametrize("first", [True, False])
def test_it_works_beside_avalanches_own_plugins(other, loss: str, first: bool) -> None:
    plugin, buffer, data = other(), memory(), classic(task_labels=False)
    replay = Replay(buffer, loss=LOSSES[loss]())
    plugins = [replay, plugin] if first else [plugin, replay]
    strategy = naive(*plugins, lr=0.05, train_epochs=2)
    strategy.train(data.train_stream, eval_streams=[])
    assert buffer.seen == 160
    assert parameters(strategy.model).isfinite().all()


# -- settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size_mem": 0}, "batch_size_mem is a number of rows >= 1, got 0"),
        ({"chunk": 0}, "chunk is a number of rows >= 1, got 0"),
        ({"update": "epoch"}, "'iteration' or 'experience', got 'epoch'"),
        ({"update": "experience", "loss": DERpp(0.1, 0.5)}, "update='experience' has none"),
        ({"update": "experience", "store_logits": True}, "update='experience' has none"),
    ],
)
def test_wrong_settings_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Replay(memory(), **options)


class Curious(policies.Reservoir):
    """A reservoir that looks at the probe it is given."""

    needs = ("logits",)

    def plan(self, arrivals, store, rng, probe=None):
        assert probe == "a probe"
        return super().plan(arrivals, store, rng, probe)


@pytest.mark.parametrize("update", ["iteration", "experience"])
def test_policies_get_the_probe_they_need(update: str) -> None:
    buffer, asked = Buffer(12, Curious()), []
    replay = Replay(buffer, update=update, probe=lambda strategy: asked.append(strategy) or "a probe")
    strategy = naive(replay)
    strategy.train(unlabelled().train_stream, eval_streams=[])
    assert buffer.seen == 80 and asked == [strategy, strategy]  # once for each experience
    untouched = Replay(memory(), probe=lambda strategy: pytest.fail("nobody asked for a probe"))
    naive(untouched).train(unlabelled().train_stream, eval_streams=[])


def test_by_default_the_probe_is_the_model_on_evaluation_views() -> None:
    seen = []

    class Scored(policies.Reservoir):
        needs = ("logits",)

        def plan(self, arrivals, store, rng, probe=None):
            seen.append((arrivals["x"], probe.logits(arrivals)))
            return super().plan(arrivals, store, rng, probe)

    twice = Views(lambda x: x + torch.randn_like(x), lambda x: 2 * x)
    strategy = naive(Replay(Buffer(12, Scored()), views=twice), lr=0.0)
    strategy.train(unlabelled().train_stream, eval_streams=[])
    assert len(seen) == 16
    for x, logits in seen:
        torch.testing.assert_close(logits, strategy.model(2 * x))


def test_a_copy_of_a_strategy_goes_on_like_the_original() -> None:
    data = unlabelled()
    strategy = DERppStrategy(buffer=memory(), plugins=[EWCPlugin(0.1)], **template())
    strategy.train(data.train_stream[0], eval_streams=[])
    copies = [copy.deepcopy(strategy), pickle.loads(pickle.dumps(strategy))]
    for each in (strategy, *copies):
        torch.manual_seed(0)
        each.train(data.train_stream[1], eval_streams=[])
    for other in copies:
        assert torch.equal(parameters(other.model), parameters(strategy.model))
        assert torch.equal(other.replay.buffer["logits"], strategy.replay.buffer["logits"])
        assert other.replay.buffer is not strategy.replay.buffer


def test_something_that_is_no_buffer_is_refused() -> None:
    with pytest.raises(TypeError, match=r"replaykit\.Buffer, got int"):
        Replay(200)


def test_a_loss_that_asks_for_an_unknown_column_names_what_there_is() -> None:
    from replaykit.losses import WeightedCrossEntropy

    class Silent(policies.Reservoir):
        writes = None  # it does not say, so only the first draw can tell

    strategy = naive(Replay(Buffer(12, Silent()), loss=WeightedCrossEntropy()))
    with pytest.raises(KeyError, match=r"no column 'weight'; the memory holds \['x', 'y'\]"):
        strategy.train(unlabelled().train_stream, eval_streams=[])


def test_a_plain_function_is_a_loss_and_sees_every_column() -> None:
    asked = []

    def loss(model, draw):
        batch = draw()
        asked.append(set(batch))
        return model(batch["x"]).square().mean()

    naive(Replay(memory(), loss=loss, store_logits=True), model=mlp()).train(
        classic().train_stream, eval_streams=[]
    )
    assert len(asked) == 15 and all(names == {"x", "y", "t", "logits"} for names in asked)


class Tasks(policies.Reservoir):
    """Takes every add as a whole task."""

    per_task = True


def test_policies_that_take_whole_tasks_are_offered_whole_tasks() -> None:
    buffer = Buffer(12, Tasks())
    naive(Replay(buffer)).train(unlabelled().train_stream, eval_streams=[])
    assert buffer.seen == 80
    for options in ({"update": "iteration"}, {"chunk": 5}):
        with pytest.raises(ValueError, match="Tasks takes every add as a whole task; use update='experience'"):
            Replay(Buffer(12, Tasks()), **options)
    with pytest.raises(ValueError, match="logits belong to a training step.*another policy than Tasks"):
        DERppStrategy(buffer=Buffer(12, Tasks()), **template())


class Nearby(GuidedRetrieval):
    """Looks at the stream's rows and at the model, and draws uniformly."""

    def __init__(self) -> None:
        self.seen = []

    def rows(self, store, n, rng, arrivals, probe):
        self.seen.append((arrivals["x"].shape[0], probe.losses(arrivals).shape))
        return Uniform().rows(store, n, rng)


@pytest.mark.parametrize("where", ["plugin", "buffer"])
def test_retrievals_see_the_rows_of_the_stream_and_the_model(where: str) -> None:
    nearby = Nearby()
    own = {"retrieval": nearby} if where == "buffer" else {}
    replay = Replay(Buffer(12, policies.Reservoir(), **own), retrieval=None if own else nearby)
    naive(replay).train(unlabelled().train_stream, eval_streams=[])
    assert len(nearby.seen) == 15 and set(nearby.seen) == {(5, (5,))}


def test_a_guided_retrieval_names_what_it_lacks() -> None:
    from replaykit.probe import Probe

    buffer = Buffer(4, policies.Reservoir(), Nearby())
    buffer.add({"x": torch.zeros(2, 3)})
    with pytest.raises(ValueError, match="Nearby chooses by the model and the rows of the stream; pass"):
        buffer.sample(2)
    with pytest.raises(ValueError, match=r"Nearby needs columns \['x', 'y'\]; the memory lacks \['y'\]"):
        buffer.sample(2, arrivals={"x": torch.zeros(1, 3)}, probe=Probe(torch.nn.Linear(3, 2)))
