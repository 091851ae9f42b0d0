"""What one run is configured with. The command line, the files beside the results and W&B all show this."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, fields, replace
from typing import Any, Literal


@dataclass(frozen=True)
class Config:
    stream: str = "split_digits"
    """Data and how they are cut into tasks; a name of scripts/tables.py."""
    data: str = os.environ.get("REPLAYKIT_DATA", "data")
    """Folder with the data sets; for split_npz the file, for split_folder the folder of images."""
    download: bool = False
    """Fetch a missing data set."""
    tasks: int | None = None
    """Number of tasks; default: what the stream is known for."""
    class_order: int | None = None
    """Seed of a random order of the classes; default: 0, 1, 2, ..."""
    per_class: int | None = None
    """Training rows of each class to use (2500 is half of CIFAR-10); default: all."""
    strategy: str = "derpp"
    """How the memory is used: sgd (not at all), joint (all tasks at once), er, er_ace, der, derpp, rehearsal (any
    --loss), ...; a name of scripts/tables.py."""
    policy: str = "reservoir"
    """What the memory keeps; a name of scripts/tables.py. chao, efraimidis_spirakis and forgetting read a column
    of the data (--stream split_npz)."""
    retrieval: str = "uniform"
    """What is replayed; a name of scripts/tables.py."""
    loss: str = "cross_entropy"
    """What replayed rows add to the loss of --strategy rehearsal: cross_entropy, weighted, logits, derpp, sup_con,
    aml. All other strategies have losses of their own."""
    policy_options: tuple[str, ...] = ()
    """Settings of the policy, as in --policy-options gate=sample references=5."""
    retrieval_options: tuple[str, ...] = ()
    """Settings of the retrieval, as in --retrieval-options candidates=100."""
    loss_options: tuple[str, ...] = ()
    """Settings of the loss, as in --loss-options temperature=0.1."""
    strategy_options: tuple[str, ...] = ()
    """Settings of the strategy that have no option of their own, as in --strategy-options repeats=1."""
    layers: Literal["all", "last"] = "all"
    """Whose gradients policies and retrievals compare: all trainable layers, or the last one."""
    memory: int = 100
    """Slots of the memory."""
    model: str | None = None
    """mlp, convnet, slim_resnet18, resnet18; default: what the stream is known for."""
    epochs: int = 1
    """Passes over each task."""
    train_mb_size: int = 10
    """New rows a step."""
    batch_size_mem: int | None = None
    """Replayed rows a draw; default: as in the settings below, else train_mb_size (greedy_coreset: all)."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """How to step."""
    fresh_optimizer: bool = False
    """Begin each task with a new optimiser, without momentum or moments."""
    lr: float | None = None
    """Learning rate; default: as in the settings below, else 0.05 (adam: 0.001)."""
    momentum: float = 0.0
    """Momentum of SGD."""
    alpha: float | None = None
    """Coefficient of the stored logits (der, derpp, gcr, --loss); default: as in the settings below, else 0.3."""
    beta: float | None = None
    """Coefficient of the stored labels (derpp, gcr, greedy_coreset, --loss); default: as in the settings below,
    else 0.5."""
    joint_forward: bool = True
    """er: new and replayed rows in one forward pass (BatchNorm sees them together), or in two."""
    reptile_every: int | None = None
    """Steps from one interpolation of Reptile to the next, beside any strategy; default: none."""
    reptile_rate: float = 0.3
    """How far an interpolation goes, from 0 to 1 (1 is plain training)."""
    augment: bool = False
    """Random crops and flips, of the stream and of the memory, each row its own."""
    normalise: bool = False
    """Subtract the mean of the data and divide by the deviation."""
    seed: int = 0
    """Of the network, the order of the rows and the memory."""
    device: str = "cpu"
    """Where to train and to keep the memory."""
    threads: int = 1
    """CPU threads of torch."""
    evaluate: Literal["task", "end"] = "task"
    """Evaluate after each task, or after the last one only."""
    eval_every: int | None = None
    """Evaluate also every so many iterations."""
    checkpoint_every: int = 500
    """Write a checkpoint every so many iterations, and after each task; 0: none."""
    logger: Literal["none", "wandb"] = "none"
    """A logger besides the console and metrics.jsonl."""
    wandb_mode: Literal["online", "offline", "disabled"] = "online"
    """How W&B runs; offline needs neither login nor network."""
    project: str = "replaykit"
    """W&B project."""
    name: str | None = None
    """Name of the run and of its folder; default: made of stream, strategy, policy, memory and seed."""
    out: str = "runs"
    """Folder of the runs."""
    replace: bool = False
    """Start over where a run of this name was cut."""
    resume: bool = False
    """Go on from the checkpoint in the run's folder, to the bits of a run that was not cut."""

    def __post_init__(self) -> None:
        counts = (
            "memory",
            "epochs",
            "train_mb_size",
            "batch_size_mem",
            "tasks",
            "per_class",
            "eval_every",
            "reptile_every",
            "threads",
        )
        for name in counts:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
        for name in ("lr", "momentum", "alpha", "beta", "checkpoint_every"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"--{name.replace('_', '-')} must be a finite number >= 0, got {value}")
        for name in ("seed", "class_order"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"--{name.replace('_', '-')} is a whole number >= 0, got {getattr(self, name)}")
        if not 0 <= self.reptile_rate <= 1:
            raise ValueError(f"--reptile-rate must be from 0 to 1, got {self.reptile_rate}")
        if self.strategy != "rehearsal" and (self.loss != "cross_entropy" or self.loss_options):
            raise ValueError(f"--loss is for --strategy rehearsal, {self.strategy} has a loss of its own")
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"--momentum is for sgd, got {self.momentum} with --optimizer {self.optimizer}")

    @property
    def run_name(self) -> str:
        if self.name:
            return self.name
        special = [self.retrieval] if self.retrieval != "uniform" else []
        special += ["last"] if self.layers == "last" else []
        special += [] if self.reptile_every is None else [f"reptile={self.reptile_every}"]
        special += [self.loss] if self.loss != "cross_entropy" else []
        special += [*self.loss_options, *self.policy_options, *self.retrieval_options, *self.strategy_options]
        parts = [self.stream, self.strategy, self.policy, *special, str(self.memory), str(self.seed)]
        return "-".join(parts).replace(os.sep, "_")

    def completed(self) -> Config:
        """The same with the settings below where nothing was given."""
        known = _known(self)
        general = {
            "lr": 0.05 if self.optimizer == "sgd" else 0.001,
            "batch_size_mem": None if self.strategy in WHOLE_MEMORY else self.train_mb_size,
            "alpha": 0.3,
            "beta": 0.5,
        }
        missing = {name: known.get(name, value) for name, value in general.items() if getattr(self, name) is None}
        return replace(self, **missing)


def _known(config: Config) -> dict[str, Any]:
    """Learning rate, memory batch and coefficients known for a stream, a strategy, and perhaps a policy."""
    names = (config.stream, config.strategy)
    rows = _SETTINGS.get((*names, config.policy), _SETTINGS.get(names))
    if rows is None:
        return {}
    nearest = min(rows, key=lambda memory: abs(memory - config.memory))
    return dict(zip(("lr", "batch_size_mem", "alpha", "beta"), rows[nearest], strict=False))


#: Strategies that replay the whole memory unless they are told how many rows.
WHOLE_MEMORY = ("greedy_coreset",)

# (lr, memory batch, alpha, beta) by memory size. Published: ER, DER and DER++ on the MNIST streams (Buzzega et
# al. 2020, batches of 10 and of 128); learning rate 0.1 and batches of 10 for ER and ER-ACE in one pass over
# CIFAR. DER++ in one pass over CIFAR is what users of its official code report. Ours, not tuned: sgd and joint,
# ER-ACE on MNIST (DER's learning rate), DER in one pass over CIFAR (learning rate and alpha of DER++). The
# imbalanced stream is that of Borsos et al. 2020, with Adam, a new one for each batch, and 40 epochs; they chose
# beta by test accuracy, for a reservoir, for CBRS and for coresets. All other policies get that of the last two.
_SETTINGS: dict[tuple[str, ...], dict[int, tuple[float | None, ...]]] = {
    ("split_mnist", "sgd"): {200: (0.03,)},
    ("split_mnist", "joint"): {200: (0.03,)},
    ("split_mnist", "er"): {200: (0.01, 10), 500: (0.1, 10), 5120: (0.1, 10)},
    ("split_mnist", "er_ace"): {200: (0.03, 10)},
    ("split_mnist", "der"): {200: (0.03, 10, 0.2), 500: (0.03, 128, 1.0), 5120: (0.1, 128, 0.5)},
    ("split_mnist", "derpp"): {
        200: (0.03, 128, 0.2, 1.0),
        500: (0.03, 10, 1.0, 0.5),
        5120: (0.1, 64, 0.2, 0.5),
    },
    ("permuted_mnist", "er"): {200: (0.2, 128)},
    ("permuted_mnist", "der"): {200: (0.2, 128, 1.0), 5120: (0.2, 128, 0.5)},
    ("permuted_mnist", "derpp"): {
        200: (0.1, 128, 1.0, 1.0),
        500: (0.2, 128, 1.0, 0.5),
        5120: (0.2, 128, 0.5, 1.0),
    },
    ("rotated_mnist", "er"): {200: (0.2, 128)},
    ("rotated_mnist", "der"): {200: (0.2, 128, 1.0), 500: (0.2, 128, 0.5)},
    ("rotated_mnist", "derpp"): {200: (0.1, 128, 1.0, 0.5), 500: (0.2, 128, 0.5, 1.0), 5120: (0.2, 128, 0.5, 0.5)},
    ("imbalanced_mnist", "greedy_coreset"): {100: (5e-4, None, None, 10.0)},
    ("imbalanced_mnist", "greedy_coreset", "reservoir"): {100: (5e-4, None, None, 100.0)},
    **{
        (stream, strategy): {1000: values}
        for stream in ("split_cifar10", "split_cifar100")
        for strategy, values in {
            "sgd": (0.1,),
            "joint": (0.1,),
            "er": (0.1, 10),
            "er_ace": (0.1, 10),
            "der": (0.01, 10, 0.1),
            "derpp": (0.01, 10, 0.1, 0.5),
        }.items()
    },
}


# Fields that say how a run is carried out and shown, not what it computes.
CIRCUMSTANCES = {
    *("name", "out", "data", "download", "resume", "replace", "checkpoint_every"),
    *("logger", "wandb_mode", "project", "threads"),
}


def differences(config: Config, saved: dict[str, Any]) -> list[str]:
    """Fields in which a saved configuration asks for another run."""
    return [
        f"{field.name}: {saved.get(field.name)!r} then, {getattr(config, field.name)!r} now"
        for field in fields(config)
        if field.name not in CIRCUMSTANCES and saved.get(field.name) != getattr(config, field.name)
    ]
