"""Tables, text and frozen embeddings as streams, and the same memories over them."""

import numpy as np
import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin
from small_streams import Silent
from torch import nn

from replaykit import Buffer, policies, retrieval
from replaykit.benchmarks import (
    Data,
    breast_cancer,
    digits,
    documentation,
    embedded,
    mlp,
    next_word,
    permuted_breast_cancer,
    split,
    split_embedded_digits,
    split_text,
    split_wine,
    text_network,
    wine,
)
from replaykit.probe import Probe
from replaykit.strategies import ER, DERpp

# -- tables -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "n", "d", "classes"), [(wine, 178, 13, 3), (breast_cancer, 569, 30, 2)])
def test_tables_are_standardised_by_their_training_rows(make, n: int, d: int, classes: int) -> None:
    data, again = make(), make()
    assert data.x_train.dtype == torch.float32 and data.classes == classes == len(data.class_names)
    assert len(data.y_train) + len(data.y_test) == n and data.shape == (d,)
    torch.testing.assert_close(data.x_train.mean(0), torch.zeros(d), atol=1e-5, rtol=0)
    torch.testing.assert_close(data.x_train.std(0, correction=0), torch.ones(d), atol=1e-5, rtol=0)
    assert torch.equal(data.x_train, again.x_train) and data.x_test.abs().max() < 15
    train, test = torch.bincount(data.y_train), torch.bincount(data.y_test)
    assert torch.equal(test, -(-(train + test) // 5))  # every fifth, the first included


def test_tabular_streams() -> None:
    stream = split_wine()
    assert stream.classes_per_task == [[0], [1], [2]] and stream.tensors(1)[1].unique().tolist() == [1]
    assert stream.name == "split_wine" and len(split_wine([[0, 1], [2]])) == 2
    stream = permuted_breast_cancer(3, seed=1)
    (x, y), (other, same) = stream.tensors(0), stream.tensors(1)
    assert len(stream) == 3 and torch.equal(y, same) and not torch.equal(x, other)
    assert torch.equal(x.sort(1).values, other.sort(1).values)


# -- text ---------------------------------------------------------------------------------------------


def test_windows_of_documentation_are_token_ids() -> None:
    data, again = documentation(per_source=40), documentation(per_source=40)
    assert data.x_train.dtype == torch.int64 and data.x_train.shape == (6 * 32, 16)
    assert data.x_test.shape == (6 * 8, 16) and torch.equal(data.x_train, again.x_train)
    assert torch.bincount(data.y_train).tolist() == [32] * 6
    assert data.class_names[0] == "cluster" and data.mean == () == data.std
    assert data.are_ids and data.vocabulary[0] == "<other>"
    words = [data.vocabulary[i] for i in data.x_train.flatten()]
    count = np.bincount(data.x_train.flatten(), minlength=len(data.vocabulary))
    assert (np.diff(count[1:]) <= 0).all() and len(set(data.vocabulary)) == len(data.vocabulary)
    assert "clustering" in words


def test_the_vocabulary_is_that_of_the_training_windows() -> None:
    data = documentation(words=50, per_source=20)
    assert len(data.vocabulary) == 50 and data.x_train.max() == 49
    assert (data.x_test == 0).any() and set(data.x_test.flatten().tolist()) <= set(range(50))


def test_split_text_tells_the_source() -> None:
    stream = split_text(per_class=10)
    x, y = stream.tensors(2)
    assert len(stream) == 3 and x.shape == (20, 16) and y.unique().tolist() == [4, 5]
    (rows, labels, t) = stream.train_stream[1].dataset[3]
    assert rows.dtype == torch.int64 and int(labels) in (2, 3) and int(t) == 0


def test_next_word_is_the_word_after_the_window() -> None:
    stream = next_word(length=4, words=60, sources=("cluster", "metrics"), per_source=25)
    text = documentation(5, 60, ("cluster", "metrics"), 25)
    for task in (0, 1):
        x, y = stream.tensors(task)
        whole = text.x_train[text.y_train == task]
        assert torch.equal(x, whole[:, :4]) and torch.equal(y, whole[:, 4])
    assert stream.classes == 60 and int(stream.train_stream[1].dataset[0][2]) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length >= 1"),
        ({"words": 1}, "words >= 2"),
        ({"sources": ()}, "and a source"),
        (
            {"length": 4000, "sources": ("tree",)},
            r"sklearn.tree has 1 windows of 4000 words, asked for at least 5",
        ),
        ({"per_source": 1}, "per_source >= 2"),
        ({"sources": ("forests",)}, r"'forests' is no module of scikit-learn.*such are \['cluster'"),
    ],
)
def test_text_that_is_not_there_is_told(options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        documentation(**options)


def test_token_ids_are_checked_and_have_no_floats() -> None:
    ids, y = torch.tensor([[0, 3], [1, 2]]), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="ids 0 to 3 for a vocabulary of 3 words; give a word for every id"):
        Data("t", ids, y, ids, y, 2, vocabulary=("a", "b", "c"))
    with pytest.raises(ValueError, match="ids -1 to 2"):
        Data("t", ids - 1, y, ids - 1, y, 2, vocabulary=("a", "b", "c", "d"))
    with pytest.raises(ValueError, match=r"torch.int64 \[2, 2, 1, 1\], expected images"):
        Data("t", ids[..., None, None], y, ids[..., None, None], y, 2, vocabulary=("a", "b", "c", "d"))
    data = Data("t", ids, y, ids, y, 2, vocabulary=("a", "b", "c", "d"))
    with pytest.raises(
        TypeError, match="t holds token ids, which have no floating-point form; leave as_float out"
    ):
        split(data, 2, as_float=True)


@pytest.mark.parametrize("pool", ["bag", "concatenate"])
def test_the_text_network(pool) -> None:
    model = text_network(50, 6, 4, pool, seed=0)
    x = torch.randint(50, (3, 6))
    assert model(x).shape == (3, 4)
    torch.testing.assert_close(model(x), model.classifier(model.features(x)))
    assert torch.equal(model.body[0].weight, text_network(50, 6, 4, pool, seed=0).body[0].weight)
    same = torch.allclose(model(x), model(x.flip(1)), atol=1e-6)
    assert same == (pool == "bag")
    with pytest.raises(TypeError, match="got torch.float32, expected token ids, int64; leave the rows as"):
        model(x.float())
    with pytest.raises(ValueError, match="pool is 'bag' or 'concatenate', got 'max'"):
        text_network(50, 6, 4, "max")


# -- embeddings ---------------------------------------------------------------------------------------


def test_embeddings_are_computed_once_in_evaluation_mode() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Dropout(0.5), nn.BatchNorm1d(5)).train()
    data = digits().as_float()
    frozen = embedded(data, network, chunk=100)
    assert network.training and network[2].training and int(network[3].num_batches_tracked) == 0
    assert frozen.x_train.shape == (1433, 5) and frozen.x_train.dtype == torch.float32
    assert not frozen.x_train.requires_grad and frozen.name == "embedded_digits" and len(frozen.mean) == 5
    torch.testing.assert_close(frozen.x_test, network.eval()(data.x_test), atol=1e-6, rtol=1e-5)
    assert torch.equal(frozen.y_train, data.y_train)
    text = documentation(per_source=10)
    vectors = embedded(text, text_network(len(text.vocabulary), 16, 6, seed=0).features)
    assert vectors.x_train.shape == (48, 64) and not vectors.are_ids and vectors.vocabulary == ()
    with pytest.raises(
        ValueError, match=r"one vector a row, \[512, d\], got shape \[512, 1, 8, 8\]; flatten or pool"
    ):
        embedded(data, lambda x: x)


def test_a_stream_of_embedded_digits_needs_no_file() -> None:
    stream, again = split_embedded_digits(per_class=20), split_embedded_digits(per_class=20)
    x, y = stream.tensors(1)
    assert stream.name == "split_embedded_digits" and len(stream) == 5
    assert x.shape == (40, 100) and x.dtype == torch.float32 and y.unique().tolist() == [2, 3]
    torch.testing.assert_close(x, again.tensors(1)[0])
    data = stream.data
    means = torch.stack([data.x_train[data.y_train == label].mean(0) for label in range(10)])
    assert (torch.cdist(data.x_test, means).argmin(1) == data.y_test).float().mean() > 0.9, (
        "they tell digits apart"
    )


# -- the same memories over all of them ---------------------------------------------------------------


def embedded_digits():
    return split(embedded(digits(), lambda x: x.flatten(1).float() / 255), 5, per_class=20)


STREAMS = {
    "text": lambda: (split_text(per_class=40), lambda data: text_network(len(data.vocabulary), 16, 6, seed=0)),
    "table": lambda: (split_wine(), lambda data: mlp(inputs=13, classes=3, seed=0)),
    "embeddings": lambda: (embedded_digits(), lambda data: mlp(inputs=64, classes=10, seed=0)),
}
POLICIES = {
    "reservoir": policies.Reservoir,
    "class_balanced": policies.ClassBalancedReservoir,
    "k_means": policies.KMeans,
    "ring": policies.RingBuffer,
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", STREAMS)
def test_memories_keep_rows_as_they_are(kind: str, policy: str) -> None:
    stream, network = STREAMS[kind]()
    model = network(stream.data)
    memory, probe = Buffer(30, POLICIES[policy](), seed=0), Probe(model)
    for task in range(len(stream)):
        x, y = stream.tensors(task)
        for rows, labels in zip(x.split(10), y.split(10), strict=True):
            memory.add({"x": rows, "y": labels}, probe)
    assert 20 <= len(memory) <= 30 and memory["x"].dtype == stream.data.x_train.dtype
    known = {
        (tuple(row.tolist()), int(label))
        for row, label in zip(stream.data.x_train, stream.data.y_train, strict=True)
    }
    held = {(tuple(row.tolist()), int(label)) for row, label in zip(memory["x"], memory["y"], strict=True)}
    assert held <= known
    counts = torch.bincount(memory["y"])
    if policy in ("class_balanced", "ring"):
        assert counts.max() - counts.min() <= 1 + (30 % stream.classes > 0)


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("strategy", [ER, DERpp])
def test_a_few_steps_learn_and_replay_remembers(kind: str, strategy: type) -> None:
    stream, network = STREAMS[kind]()
    model = network(stream.data)
    memory = Buffer(60, policies.ClassBalancedReservoir(), seed=0)
    trainer = strategy(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.3 if kind == "text" else 0.1),
        buffer=memory,
        train_mb_size=10,
        batch_size_mem=20,
        train_epochs=3,
        evaluator=EvaluationPlugin(loggers=[Silent()]),
    )
    x, y = (torch.cat(part) for part in zip(*(stream.tensors(t) for t in range(len(stream))), strict=True))
    before = nn.functional.cross_entropy(model(x), y).item()
    torch.manual_seed(0)
    for experience in stream.train_stream:
        trainer.train(experience, eval_streams=[])
    model.eval()
    assert nn.functional.cross_entropy(model(memory["x"]), memory["y"]).item() < 0.6 * before
    assert nn.functional.cross_entropy(model(x), y).item() < before
    assert memory["x"].dtype == stream.data.x_train.dtype


def test_per_sample_gradients_of_a_text_network() -> None:
    stream = split_text(per_class=5)
    x, y = stream.tensors(0)
    model = text_network(len(stream.data.vocabulary), 16, 6, seed=0)
    gradients = Probe(model).gradients({"x": x, "y": y})
    loss = nn.functional.cross_entropy(model(x[:1]), y[:1])
    alone = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    assert gradients.norms()[0].item() == pytest.approx(alone.norm().item(), rel=1e-4)


def test_mixing_by_source() -> None:
    """Language modelling on one source after another; every memory batch holds the earlier ones in fixed shares."""
    stream = next_word(length=4, words=80, sources=("cluster", "metrics", "ensemble"), per_source=150)
    model = text_network(80, 4, 80, "concatenate", seed=0)
    memory = Buffer(90, policies.ClassBalancedReservoir(column="t"), seed=0)
    drawn: list[list[int]] = []
    draw = memory.draw

    def watched(*args, **kwargs):
        slots = draw(*args, **kwargs)
        drawn.append(torch.bincount(memory.read(slots)["t"], minlength=3).tolist())
        return slots

    memory.draw = watched
    trainer = ER(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.2),
        buffer=memory,
        retrieval=retrieval.MixedSources({0: 0.5, 1: 0.3, 2: 0.2}),
        train_mb_size=10,
        evaluator=EvaluationPlugin(loggers=[Silent()]),
    )
    x, y = stream.tensors(0)
    before = nn.functional.cross_entropy(model(x), y).item()
    torch.manual_seed(0)
    for experience in stream.train_stream:
        trainer.train(experience, eval_streams=[])
    assert drawn[5] == [10, 0, 0] and drawn[-1] == [5, 3, 2]
    assert torch.bincount(memory["t"]).tolist() == [30, 30, 30] and memory["x"].dtype == torch.int64
    assert nn.functional.cross_entropy(model(x), y).item() < before
