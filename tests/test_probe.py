"""The probe: what a batch looks like under Avalanche's, torchvision's and plain models."""

import math
from collections.abc import Callable

import pytest
import torch
import torchvision
from avalanche.models import IncrementalClassifier, MTSimpleMLP, SimpleMLP, SlimResNet18
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import small_networks as nets
from reference.per_sample_gradients import flat, one_by_one
from torch import Tensor, nn

from replaykit.gradients import cross_entropy, squared_error
from replaykit.probe import Probe

Batch = dict[str, Tensor]


class Incremental(nn.Module):
    """A body under Avalanche's growing head, which masks the logits of classes not seen yet."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(inplace=True))
        self.head = IncrementalClassifier(8, nets.CLASSES)
        self.head.active_units[:3] = 1

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Functional(nn.Module):
    """`features` and `classifier` as methods and layers of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.classifier = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, nets.CLASSES)

    def features(self, x: Tensor) -> Tensor:
        return self.conv(x).relu().mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


def body(model: nn.Module, x: Tensor) -> Tensor:
    """Features of torchvision's residual networks: all but the last layer."""
    return nn.Sequential(*list(model.children())[:-1])(x).flatten(1)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Callable[[nn.Module, Tensor], Tensor]]] = {
    "avalanche SimpleMLP": (
        lambda: SimpleMLP(nets.CLASSES, 12, 8, 2), (12,), lambda m, x: m.get_features(x)),
    "avalanche SlimResNet18": (
        lambda: SlimResNet18(nets.CLASSES, nf=2), (3, 32, 32),
        lambda m, x: torch.nn.functional.avg_pool2d(
            m.layer4(m.layer3(m.layer2(m.layer1(m.bn1(m.conv1(x)).relu())))), 4).flatten(1)),
    "avalanche IncrementalClassifier": (Incremental, (12,), lambda m, x: m.body(x)),
    "torchvision resnet18": (
        lambda: torchvision.models.resnet18(num_classes=nets.CLASSES), (3, 32, 32), body),
    "torchvision mobilenet": (
        lambda: torchvision.models.mobilenet_v3_small(num_classes=nets.CLASSES), (3, 32, 32),
        lambda m, x: m.classifier[:3](m.avgpool(m.features(x)).flatten(1))),
    "torchvision vit": (
        lambda: torchvision.models.VisionTransformer(8, 4, 1, 2, 8, 8, num_classes=nets.CLASSES), (3, 8, 8),
        lambda m, x: m.encoder(torch.cat([m.class_token.expand(len(x), -1, -1), m._process_input(x)], 1))[:, 0]),
    "sequential": (nets.mlp, (12,), lambda m, x: m[:-1](x)),
    "features and classifier": (Functional, (3, 8, 8), lambda m, x: m.features(x)),
    "growing head": (lambda: nets.GrowingHead(nets.CLASSES), (12,), lambda m, x: m.features(x)),
}  # fmt: skip


def made(name: str, n: int = 5) -> tuple[nn.Module, Batch]:
    torch.manual_seed(0)
    build, shape, _ = MODELS[name]
    batch = nets.rows(n, *shape)
    batch["y"] %= 3
    return build().double().train(), batch


@pytest.mark.parametrize("name", MODELS)
def test_logits_losses_and_features(name: str) -> None:
    model, batch = made(name)
    probe = Probe(model)
    found = probe.logits(batch), probe.losses(batch), probe.features(batch)
    assert model.training
    with torch.no_grad():
        z, h = model.eval()(batch["x"]), MODELS[name][2](model, batch["x"])
    expected = z, torch.nn.functional.cross_entropy(z, batch["y"], reduction="none"), h
    for answer, value in zip(found, expected, strict=True):
        torch.testing.assert_close(answer, value, rtol=1e-8, atol=1e-8)
        assert not answer.requires_grad


@pytest.mark.parametrize("name", set(MODELS) - {"torchvision resnet18", "torchvision mobilenet"})
def test_gradients_of_the_whole_model_and_of_its_last_layer(name: str) -> None:
    model, batch = made(name, 3)
    single = one_by_one(model, batch, cross_entropy())
    last = flat(dict(list(single.items())[-2:]))
    torch.testing.assert_close(Probe(model).gradients(batch).gram(), flat(single) @ flat(single).T)
    torch.testing.assert_close(Probe(model, layers="last").gradients(batch).explicit(), last)
    head = list(single)[-1]
    torch.testing.assert_close(Probe(model, parameters=[head]).gradients(batch).explicit(), single[head])


def multi_task() -> tuple[nn.Module, Batch]:
    """Three tasks with heads of 2, 3 and 4 classes, the last one with a masked unit."""
    torch.manual_seed(0)
    model = MTSimpleMLP(input_size=12, hidden_size=7)
    heads = model.classifier
    for task, classes in enumerate((2, 3, 4)):
        heads.classifiers[str(task)] = IncrementalClassifier(7, classes, masking=False, auto_adapt=False)
        heads.register_buffer(f"active_units_T{task}", torch.ones(classes, dtype=torch.int8))
    heads.active_units_T2[1] = 0
    batch = {**nets.rows(8, 12), "t": torch.tensor([2, 0, 1, 1, 0, 2, 0, 0])}
    batch["y"] = torch.tensor([3, 0, 2, 1, 1, 0, 0, 1])
    return model.double(), batch


def test_heads_of_different_tasks() -> None:
    model, batch = multi_task()

    def call(model: nn.Module, row: Batch) -> Tensor:
        return model(row["x"], int(row["t"][0]))

    g = one_by_one(model, batch, cross_entropy(), call)
    probe, last = Probe(model), Probe(model, layers="last")
    with torch.no_grad():
        model.eval()
        rows = [call(model, {k: v[i : i + 1] for k, v in batch.items()})[0] for i in range(8)]
        assert sorted(map(len, rows)) == [2, 2, 2, 2, 3, 3, 4, 4]
        h = model.features(batch["x"])
        model.train()
    for i, row in enumerate(rows):
        torch.testing.assert_close(probe.logits(batch)[i, : len(row)], row)
    torch.testing.assert_close(probe.features(batch), h)
    torch.testing.assert_close(probe.gradients(batch).explicit(), flat(g))
    heads = flat({k: v for k, v in g.items() if k.startswith("classifier")})
    torch.testing.assert_close(last.gradients(batch).explicit(), heads)
    torch.testing.assert_close(last.gradients(batch).gram(), heads @ heads.T)
    torch.testing.assert_close(last.gradients(batch).cosine(last.gradients(batch)).diag(), torch.ones(8).double())
    with pytest.raises(ValueError, match="takes task labels; the batch needs a column 't'"):
        probe.logits({"x": batch["x"]})


def test_features_may_be_named_or_computed() -> None:
    model, batch = made("sequential")
    plain = model.eval()
    torch.testing.assert_close(Probe(model, features="1").features(batch), plain[1](plain[0](batch["x"])))
    torch.testing.assert_close(Probe(model, features=lambda x: x * 2).features(batch), batch["x"] * 2)
    maps, images = nets.convnet().double(), nets.rows(3, 3, 8, 8)
    assert Probe(maps, features="0").features(images).shape == (3, 6 * 4 * 4)
    with pytest.raises(ValueError, match="no module 'classifier'"):
        Probe(model, features="classifier").features(batch)
    with pytest.raises(ValueError, match=r"one vector a row, \[5, d\], but the function .* \[5\].*features="):
        Probe(model, features=lambda x: x.sum(1)).features(batch)


def test_a_model_without_a_penultimate_layer() -> None:
    fully = nn.Sequential(nn.Conv2d(3, nets.CLASSES, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    with pytest.raises(
        ValueError, match=r"what enters the last layer '0' has shape \[2, 3, 8, 8\]; name a module"
    ):
        Probe(fully).features(nets.rows(2, 3, 8, 8))
    bare = nn.Sequential(nn.Flatten())
    for answer in (Probe(bare).features, Probe(bare, layers="last").gradients):
        with pytest.raises(ValueError, match="no module with parameters|no parameters"):
            answer(nets.rows(2, 12))
    with pytest.raises(ValueError, match="layers is one of"):
        Probe(bare, layers="first")


def test_raw_rows_are_prepared() -> None:
    torch.manual_seed(0)
    model = nets.mlp()
    raw = {"x": torch.randint(256, (6, 12), dtype=torch.uint8), "y": torch.zeros(6).long()}
    prepare: Callable[[Tensor], Tensor] = lambda x: (x.float() / 255 - 0.1307) / 0.3081  # noqa: E731
    ready = {"x": prepare(raw["x"]), "y": raw["y"]}
    probe, plain = Probe(model, prepare=prepare), Probe(model)
    for question in (
        lambda p, b: p.logits(b), lambda p, b: p.losses(b), lambda p, b: p.features(b),
        lambda p, b: p.gradients(b).gram(),
    ):  # fmt: skip
        torch.testing.assert_close(question(probe, raw), question(plain, ready))
    with pytest.raises(ValueError, match="holds uint8.*prepare="):
        plain.logits(raw)


def test_another_loss() -> None:
    model, batch = made("sequential")
    batch["logits"] = torch.randn(5, nets.CLASSES).double()
    probe = Probe(model, loss=squared_error())
    expected = (probe.logits(batch) - batch["logits"]).square().mean(1)
    torch.testing.assert_close(probe.losses(batch), expected)
    g = flat(one_by_one(model, batch, squared_error()))
    torch.testing.assert_close(probe.gradients(batch).norms(), g.norm(dim=1))
    with pytest.raises(ValueError, match="one value a row"):
        Probe(model, loss=lambda z, _: z.sum()).losses(batch)
    broken = {**batch, "x": batch["x"].clone()}
    broken["x"][3, 0] = math.nan
    with pytest.raises(ValueError, match=r"losses are NaN or infinite in rows \[3\]"):
        Probe(model).losses(broken)


class Scripted(nn.Module):
    """Says the class that is written into the row."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * 9.0 * nn.functional.one_hot(x[:, 0].long(), 12)


def test_uncertainty_by_hand() -> None:
    """Votes (7, 3, 2) of twelve give u = 5/12, unanimous ones 0, twelve different ones 11/12."""
    saying = torch.tensor([[0] * 7 + [1] * 3 + [2] * 2, [4] * 12, list(range(12))])
    views = [lambda x, k=k: saying[:, k : k + 1].to(x) for k in range(12)]
    probe, batch = Probe(Scripted(), views=views), {"x": torch.zeros(3, 1)}
    u = probe.uncertainty(batch)
    assert u.dtype == torch.float64
    torch.testing.assert_close(u, torch.tensor([5 / 12, 0, 11 / 12], dtype=torch.float64))
    votes, mean = probe.votes(batch)
    assert votes[0].tolist() == [7, 3, 2] + [0] * 9 and votes.sum(1).tolist() == [12] * 3
    torch.testing.assert_close(mean.sum(1), torch.ones(3))
    top = math.exp(9) / (math.exp(9) + 11)
    assert float(mean[1, 4]) == pytest.approx(top)
    with pytest.raises(ValueError, match="needs perturbed copies"):
        Probe(Scripted()).uncertainty(batch)
    with pytest.raises(ValueError, match="at least one view"):
        probe.uncertainty(batch, views=[])


def test_a_random_view_is_drawn_anew_each_time_and_leaves_the_generator() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    noisy: Callable[[Tensor], Tensor] = lambda x: torch.randint(0, 12, (len(x), 1)).to(x)  # noqa: E731
    probe, batch = Probe(Scripted(), views=noisy), {"x": torch.zeros(50, 1)}
    u = probe.uncertainty(batch, times=24)
    assert torch.equal(torch.get_rng_state(), state)
    assert float(u.min()) > 0.4  # 24 draws of 12 classes that were all the same would give 0
    torch.testing.assert_close(probe.uncertainty(batch, times=24), u)
    own = torch.Generator().manual_seed(0)
    other: Callable[[Tensor], Tensor] = lambda x: torch.randint(0, 12, (len(x), 1), generator=own).to(x)  # noqa: E731
    assert not torch.equal(probe.uncertainty(batch, other), probe.uncertainty(batch, other))


@settings(deadline=None, max_examples=10, derandomize=True)
@given(st.integers(1, 12), st.integers(1, 40))
def test_chunked_equals_whole(n: int, rows: int) -> None:
    torch.manual_seed(n)
    model, batch = nets.convnet().double(), nets.rows(n, 3, 8, 8)
    views = [lambda x: x, lambda x: x.flip(-1), lambda x: -x]
    whole, cut = Probe(model, views=views), Probe(model, views=views, budget=rows * 100_000)
    for question in ("logits", "losses", "features", "uncertainty"):
        torch.testing.assert_close(getattr(cut, question)(batch), getattr(whole, question)(batch))
    with pytest.raises(ValueError, match="too small"):
        Probe(model, budget=10).logits(batch)


def test_answers_are_kept_within_a_plan_and_dropped_after_it() -> None:
    model, batch = made("sequential")
    passes = []
    model.register_forward_hook(lambda *_: passes.append(1))
    probe = Probe(model, views=[lambda x: -x])
    probe.logits(batch)
    with probe.cached():
        first = probe.logits(batch)
        before = len(passes)
        assert probe.logits(batch) is first and probe.gradients(batch) is probe.gradients(batch)
        assert probe.votes(batch)[0] is probe.votes(batch)[0] is not probe.votes(batch, times=3)[0]
        before += 2  # of two answers about votes
        with probe.cached():
            assert probe.logits(batch) is first
        assert len(passes) == before
        assert probe.logits({**batch}) is not first  # another batch object
        with torch.no_grad():
            model[6].bias += 1
        torch.testing.assert_close(probe.logits(batch), first + 1)
    assert probe._cache is None and probe.logits(batch) is not probe.logits(batch)


def test_a_probe_follows_a_head_that_grows() -> None:
    torch.manual_seed(0)
    model, batch = nets.GrowingHead(3).double(), nets.rows(4, 12)
    batch["y"] %= 3
    probe = Probe(model, layers="last")
    with probe.cached():
        assert probe.logits(batch).shape == (4, 3) and probe.gradients(batch).p == 27
        model.grow(5)
        assert probe.logits(batch).shape == (4, 5) and probe.gradients(batch).p == 45
    assert probe.features(batch).shape == (4, 8)


@pytest.mark.parametrize("question", ["logits", "losses", "features", "gradients", "uncertainty"])
def test_nothing_is_changed_even_when_it_fails(question: str) -> None:
    torch.manual_seed(0)
    model, batch = nets.slim_resnet18().double().train(), nets.rows(3, 3, 8, 8)
    model[1].eval()
    cross_entropy()(model(batch["x"]), batch).sum().backward()

    def trace() -> list[object]:
        bits = lambda t: t.detach().numpy().tobytes()  # noqa: E731
        return [
            [module.training for module in model.modules()],
            [(bits(p), bits(p.grad), p.requires_grad) for p in model.parameters()],
            [bits(b) for b in model.buffers()],
            [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
            (bits(torch.get_rng_state()), bits(batch["x"]), torch.is_grad_enabled()),
        ]

    before = trace()
    ask = getattr(Probe(model, views=[lambda x: x.flip(-1)]), question)
    answer = ask(batch)
    answer.norms() if question == "gradients" else None
    assert trace() == before
    fuse = model[4].conv2.register_forward_hook(lambda *_: 1 / 0)
    before = trace()
    with pytest.raises(ZeroDivisionError):
        answer = Probe(model, views=[lambda x: x.flip(-1)])
        answer = getattr(answer, question)(batch)
        answer.norms()
    assert trace() == before
    fuse.remove()


def test_a_head_that_replaced_its_buffers_keeps_the_new_ones() -> None:
    torch.manual_seed(0)
    model, batch = Incremental().double(), nets.rows(4, 12)
    probe = Probe(model, views=[lambda x: x])
    probe.uncertainty(batch)
    model.head.active_units = grown = torch.ones(nets.CLASSES, dtype=torch.int8)
    expected = model(batch["x"]).argmax(1)
    for _ in range(2):
        votes, _ = probe.votes(batch)
        assert torch.equal(votes.argmax(1), expected)
        assert model.head.active_units is grown


def test_no_rows() -> None:
    model, batch = made("sequential")
    nobody = {name: value[:0] for name, value in batch.items()}
    probe = Probe(model, views=[lambda x: x])
    assert len(probe.uncertainty(nobody)) == 0
    assert len(probe.logits(nobody)) == len(probe.losses(nobody)) == len(probe.features(nobody)) == 0
    assert len(probe.gradients(nobody).norms()) == 0


def test_answers_on_every_device(device: str) -> None:
    torch.manual_seed(0)
    model, batch = nets.convnet().double(), nets.rows(5, 3, 8, 8)
    expected = Probe(model).gradients(batch).gram(), Probe(model).features(batch)
    probe = Probe(model.to(device))
    torch.testing.assert_close(probe.gradients(batch).gram().cpu(), expected[0])
    torch.testing.assert_close(probe.features(batch).cpu(), expected[1])
    assert probe.logits(batch).device.type == device
