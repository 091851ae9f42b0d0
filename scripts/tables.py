"""The names that the scripts accept, and what they stand for."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from config import Config
from options import build

from replaykit import Buffer, benchmarks, losses, policies, retrieval
from replaykit.augment import Views
from replaykit.avalanche import FreshOptimizer, Reptile, Template
from replaykit.benchmarks import Stream
from replaykit.buffer import AnyRetrieval
from replaykit.plan import Policy
from replaykit.probe import Probe
from replaykit.strategies import (
    AGEM,
    DER,
    ER,
    ERACE,
    ERAML,
    GCR,
    GSS,
    MER,
    OCS,
    SCR,
    XDER,
    XDERCE,
    XDERRPC,
    DERpp,
    ERLwF,
    GDumb,
    GreedyCoreset,
    ICaRL,
    LatentReplay,
    MERBatched,
    RainbowMemory,
    Rehearsal,
)

T = TypeVar("T")


def choose(table: Mapping[str, T], name: str, what: str) -> T:
    if name not in table:
        raise ValueError(f"unknown {what} {name!r}; there are {', '.join(table)}")
    return table[name]


# -- streams: function, tasks that the literature uses, network ------------------------------------------


def _imbalanced_mnist(root: str, tasks: int, download: bool, per_class: int | None, **order: Any) -> Stream:
    """The rows of five blocks in batches of 125, the unit of training, as in the paper."""
    if tasks != 5 or per_class is not None or order:
        raise ValueError("imbalanced_mnist takes neither --tasks, --class-order nor --per-class")
    return benchmarks.in_batches(benchmarks.imbalanced_mnist(root, download=download), 125)


def _next_word(root: str, tasks: int, download: bool, per_class: int | None, **order: Any) -> Stream:
    if tasks != 6 or per_class is not None or order:
        raise ValueError(
            "next_word has a task for each of 6 sources; it takes neither --class-order nor --per-class"
        )
    return benchmarks.next_word()


STREAMS: dict[str, tuple[Callable[..., Stream], int, str]] = {
    "split_digits": (lambda root, download, **o: benchmarks.split_digits(**o), 5, "mlp"),
    "split_mnist": (benchmarks.split_mnist, 5, "mlp"),
    "split_fashion_mnist": (benchmarks.split_fashion_mnist, 5, "mlp"),
    "split_cifar10": (benchmarks.split_cifar10, 5, "slim_resnet18"),
    "split_cifar100": (benchmarks.split_cifar100, 10, "slim_resnet18"),
    "split_npz": (lambda root, download, **o: benchmarks.split_npz(root, **o), 5, "mlp"),
    "split_folder": (lambda root, download, **o: benchmarks.split_folder(root, **o), 5, "slim_resnet18"),
    "permuted_mnist": (benchmarks.permuted_mnist, 20, "mlp"),
    "rotated_mnist": (benchmarks.rotated_mnist, 20, "mlp"),
    "imbalanced_mnist": (_imbalanced_mnist, 5, "convnet"),
    "split_wine": (lambda root, download, **o: benchmarks.split_wine(**o), 3, "mlp"),
    "permuted_breast_cancer": (lambda root, download, **o: benchmarks.permuted_breast_cancer(**o), 5, "mlp"),
    "split_embedded_digits": (lambda root, download, **o: benchmarks.split_embedded_digits(**o), 5, "mlp"),
    "split_text": (lambda root, download, **o: benchmarks.split_text(**o), 3, "bag_of_words"),
    "next_word": (_next_word, 6, "word_window"),
}


def make_stream(config: Config) -> Stream:
    make, tasks, _ = choose(STREAMS, config.stream, "stream")
    options: dict[str, Any] = {"tasks": config.tasks or tasks, "download": config.download}
    if config.stream in ("permuted_mnist", "rotated_mnist", "permuted_breast_cancer"):
        if config.class_order is not None or config.per_class is not None:
            raise ValueError(f"{config.stream} takes neither --class-order nor --per-class")
        return make(config.data, seed=config.seed, **options)
    if config.class_order is not None:
        options |= {"order": "seed", "seed": config.class_order}
    return make(config.data, per_class=config.per_class, **options)


# -- networks ---------------------------------------------------------------------------------------------


def _fitting(stream: Stream) -> str:
    """What takes the rows of any stream of that kind."""
    return "bag_of_words or word_window" if stream.data.are_ids else "mlp"


def _mlp(stream: Stream, seed: int) -> torch.nn.Module:
    if stream.data.are_ids:
        raise ValueError(f"{stream.name} holds token ids; use --model {_fitting(stream)}")
    return benchmarks.mlp(inputs=stream.data.shape.numel(), classes=stream.classes, seed=seed)


def _image(stream: Stream) -> tuple[int, int, int]:
    """Channels, height and width in pixels."""
    if len(stream.data.shape) != 3:
        raise ValueError(
            f"{stream.name} has rows of shape {list(stream.data.shape)}, no images; use --model {_fitting(stream)}"
        )
    channels, height, width = stream.data.shape
    return channels, height, width


def _convnet(stream: Stream, seed: int) -> torch.nn.Module:
    channels, height, width = _image(stream)
    if height != width:
        raise ValueError(f"convnet needs square images, {stream.name} has {height} × {width}; use --model mlp")
    return benchmarks.convnet(stream.classes, channels, height, seed=seed)


def _slim_resnet18(stream: Stream, seed: int) -> torch.nn.Module:
    return benchmarks.slim_resnet18(stream.classes, channels=_image(stream)[0], seed=seed)


def _resnet18(stream: Stream, seed: int) -> torch.nn.Module:
    return benchmarks.resnet18(stream.classes, channels=_image(stream)[0], seed=seed)


def _text_network(pool: Literal["bag", "concatenate"], stream: Stream, seed: int) -> torch.nn.Module:
    if not stream.data.are_ids:
        raise ValueError(f"{stream.name} has no token ids: {stream.data.x_train.dtype}; use --model mlp")
    words, length = len(stream.data.vocabulary), stream.data.shape[0]
    return benchmarks.text_network(words, length, stream.classes, pool, seed=seed)


MODELS: dict[str, Callable[[Stream, int], torch.nn.Module]] = {
    "mlp": _mlp,
    "convnet": _convnet,
    "slim_resnet18": _slim_resnet18,
    "resnet18": _resnet18,
    "bag_of_words": partial(_text_network, "bag"),
    "word_window": partial(_text_network, "concatenate"),
}


def make_model(config: Config, stream: Stream) -> torch.nn.Module:
    name = config.model or STREAMS[config.stream][2]
    model = choose(MODELS, name, "model")(stream, config.seed).to(config.device)
    return model.to(memory_format=torch.channels_last) if name != "mlp" else model


# -- memories ---------------------------------------------------------------------------------------------

POLICIES: dict[str, Callable[..., Policy]] = {
    "reservoir": policies.Reservoir,
    "random_key": policies.RandomKeyReservoir,
    "chao": policies.Chao,
    "efraimidis_spirakis": policies.EfraimidisSpirakis,
    "ring": policies.RingBuffer,
    "class_balanced": policies.ClassBalancedReservoir,
    "partitioning": policies.PartitioningReservoir,
    "balanced": policies.BalancedReservoir,
    "greedy_balanced": policies.GreedyBalanced,
    "k_means": policies.KMeans,
    "mean_of_features": policies.MeanOfFeatures,
    "gss_greedy": policies.GSSGreedy,
    "gss_iqp": policies.GSSIQP,
    "gss_clust": policies.GSSClust,
    "ocs": policies.OCS,
    "shapley": policies.ShapleyReservoir,
    "lars": policies.LARS,
    "labrs": policies.LABRS,
    "abs": policies.ABS,
    "greedy_coreset": policies.GreedyCoreset,
    "bcsr": policies.BCSR,
    "gcr": policies.GCR,
    "rainbow_memory": policies.RainbowMemory,
    "herding": policies.Herding,
    "icarl": policies.ICaRLHerding,
    "k_center": policies.KCenter,
    "grad_match": policies.GradMatch,
    "craig": policies.CRAIG,
    "facility_location": policies.FacilityLocation,
    "graph_cut": policies.GraphCut,
    "log_determinant": policies.LogDeterminant,
    "moderate": policies.Moderate,
    "grand": policies.GraNd,
    "el2n": policies.EL2N,
    "least_confidence": policies.LeastConfidence,
    "margin": policies.Margin,
    "entropy": policies.Entropy,
    "forgetting": policies.Forgetting,
    "badge": policies.BADGE,
    "importance": policies.Importance,
    "xder": policies.XDERMemory,
}
RETRIEVALS: dict[str, Callable[..., AnyRetrieval]] = {
    "uniform": retrieval.Uniform,
    "class_balanced": retrieval.ClassBalanced,
    "mir": retrieval.MIR,
    "aser": retrieval.ASER,
    "grasp": retrieval.GRASP,
    "prioritised": retrieval.Prioritised,
    "least_replayed": retrieval.LeastReplayed,
    "class_matched": retrieval.ClassMatched,
    "mixed_sources": retrieval.MixedSources,
    "weighted": retrieval.Weighted,
}


#: Columns that a training step brings, whatever the data.
OF_A_STEP = ("x", "y", "t", "logits", "loss")


def make_buffer(config: Config, stream: Stream) -> Buffer:
    """The memory.

    Raises:
        ValueError: a policy by a column that the data do not have, or that writes one which they have.
    """
    policy = build(choose(POLICIES, config.policy, "policy"), config.policy_options, f"policy {config.policy!r}")
    for column in policy.columns if uses_memory(config) else ():
        if column not in (*OF_A_STEP, *(policy.writes or ()), *stream.data.columns):
            raise ValueError(
                f"policy {config.policy!r} reads a column {column!r} that {stream.name} does not have; use "
                f"another policy, or --stream split_npz with a file that has an array 'column_{column}'"
            )
    if uses_memory(config) and (both := {*(policy.writes or ())} & {*stream.data.columns}):
        raise ValueError(
            f"policy {config.policy!r} writes a column {min(both)!r}, and {stream.name} has one of that name; "
            "rename it in the file"
        )
    draw = build(
        choose(RETRIEVALS, config.retrieval, "retrieval"),
        config.retrieval_options,
        f"retrieval {config.retrieval!r}",
    )
    return Buffer(config.memory, policy, draw, device=config.device, seed=config.seed)


# -- losses -----------------------------------------------------------------------------------------------

# What is built, and the fields of the configuration that it takes under names of its own.
LOSSES: dict[str, tuple[Callable[..., losses.ReplayLoss], dict[str, str]]] = {
    "cross_entropy": (losses.CrossEntropy, {}),
    "weighted": (losses.WeightedCrossEntropy, {}),
    "logits": (losses.MSELogits, {"alpha": "alpha"}),
    "derpp": (losses.DERpp, {"alpha": "alpha", "beta": "beta"}),
    "sup_con": (losses.SupCon, {}),
    "aml": (losses.AML, {}),
}


def make_loss(config: Config) -> losses.ReplayLoss:
    make, fields = choose(LOSSES, config.loss, "loss")
    fixed = {name: getattr(config, field) for name, field in fields.items()}
    return build(make, config.loss_options, f"loss {config.loss!r}", **fixed)


# -- strategies -------------------------------------------------------------------------------------------


class Viewing(SupervisedPlugin):
    """The views of the rows where there is no replay plugin to make them."""

    def __init__(self, views: Views) -> None:
        super().__init__()
        self.views = views

    def before_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        strategy.mbatch[0] = self.views.train(strategy.mbatch[0])


def _sgd(views: Views, plugins: list[Any], **template: Any) -> Template:
    return Template(plugins=[Viewing(views), *plugins], **template)


def _latent(
    cut: str = "body", front_rate: float = 0.0, half: bool = False, probe: Any = None, **options: Any
) -> Template:
    # The scripts' probe shows rows to the whole model, and here the memory holds activations.
    dtype = torch.float16 if half else None
    return LatentReplay(cut=cut, front_rate=front_rate, dtype=dtype, **options)


def _rehearsal(buffer: Buffer, seed: int, candidates: int | None = None, **options: Any) -> Template:
    """Candidates are a number of rows here: a uniform sample of each task waits for its end."""
    if candidates is not None:
        options["candidates"] = Buffer(candidates, policies.Reservoir(), device=buffer.device, seed=seed)
    return Rehearsal(buffer=buffer, **options)


STRATEGIES: dict[str, tuple[Callable[..., Template], dict[str, str]]] = {
    "sgd": (_sgd, {}),
    "joint": (_sgd, {}),
    "rehearsal": (_rehearsal, {"seed": "seed"}),
    "er": (ER, {"joint": "joint_forward"}),
    "er_ace": (ERACE, {}),
    "er_aml": (ERAML, {}),
    "scr": (SCR, {}),
    "er_lwf": (ERLwF, {}),
    "latent": (_latent, {}),
    "der": (DER, {"alpha": "alpha"}),
    "derpp": (DERpp, {"alpha": "alpha", "beta": "beta"}),
    "gss": (GSS, {}),
    "ocs": (OCS, {}),
    "mer": (MER, {}),
    "mer_batched": (MERBatched, {}),
    "agem": (AGEM, {}),
    "gdumb": (GDumb, {}),
    "rainbow_memory": (RainbowMemory, {}),
    "gcr": (GCR, {"alpha": "alpha", "beta": "beta"}),
    "icarl": (ICaRL, {}),
    "greedy_coreset": (GreedyCoreset, {"beta": "beta", "fresh_optimizer": "fresh_optimizer"}),
    "xder": (XDER, {}),
    "xder_ce": (XDERCE, {}),
    "xder_rpc": (XDERRPC, {}),
}

#: Strategies that must know beforehand which classes belong to which task.
KNOWS_TASKS = ("xder", "xder_ce", "xder_rpc")


def make_strategy(
    config: Config, stream: Stream, model: torch.nn.Module, buffer: Buffer, views: Views, plugins: list[Any]
) -> Template:
    """The strategy of a completed configuration, with no metrics or loggers of Avalanche's."""
    make, fields = choose(STRATEGIES, config.strategy, "strategy")
    fixed = {name: getattr(config, field) for name, field in fields.items()}
    if uses_memory(config):
        fixed |= {"buffer": buffer, "batch_size_mem": config.batch_size_mem}
        fixed["probe"] = lambda strategy: Probe(strategy.model, prepare=views.eval, layers=config.layers)
    if config.strategy == "rehearsal":
        fixed["loss"] = make_loss(config)
    if config.strategy in KNOWS_TASKS:
        fixed["classes_per_task"] = stream.classes_per_task
    if config.fresh_optimizer and "fresh_optimizer" not in fields:
        plugins = [FreshOptimizer(), *plugins]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No loggers specified")
        evaluator = EvaluationPlugin()
    return build(
        make,
        config.strategy_options,
        f"strategy {config.strategy!r}",
        views=views,
        plugins=plugins,
        model=model,
        optimizer=make_optimizer(config, model),
        criterion=torch.nn.CrossEntropyLoss(),
        train_mb_size=config.train_mb_size,
        train_epochs=config.epochs,
        device=torch.device(config.device),
        evaluator=evaluator,
        **fixed,
    )


def refuse_unused(config: Config) -> None:
    """Refuse coefficients that nothing would read.

    Raises:
        ValueError: names the option and who has it.
    """
    fields = choose(STRATEGIES, config.strategy, "strategy")[1]
    if config.strategy == "rehearsal":
        fields = fields | choose(LOSSES, config.loss, "loss")[1]
    for name in ("alpha", "beta"):
        if getattr(config, name) is not None and name not in fields.values():
            having = [other for other, (_, taken) in STRATEGIES.items() if name in taken.values()]
            raise ValueError(
                f"--{name} is for {', '.join(having)} and losses of --strategy rehearsal, {config.strategy} does "
                "not read it; settings of its own go into --strategy-options"
            )


def make_reptile(config: Config) -> Reptile | None:
    return None if config.reptile_every is None else Reptile(config.reptile_every, config.reptile_rate)


def make_optimizer(config: Config, model: torch.nn.Module) -> torch.optim.Optimizer:
    if config.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=config.lr or 0.0)
    return torch.optim.SGD(model.parameters(), lr=config.lr or 0.0, momentum=config.momentum)


def uses_memory(config: Config) -> bool:
    return config.strategy not in ("sgd", "joint")
