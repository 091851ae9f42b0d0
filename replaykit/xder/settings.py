"""The settings of X-DER, and the two programs that were published under its name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import Any, Literal, TypeAlias

from replaykit.xder.logits import NonPositive, Rule

BatchNorm: TypeAlias = Literal["every", "aligned", "stream"]
Variant: TypeAlias = Literal["xder", "xder_ce", "xder_rpc"]


@dataclass(frozen=True)
class Settings:
    """What can be set; the defaults are those of the preset ``"tpami"`` for 500 rows.

    Attributes:
        alpha, beta: coefficients of the stored logits and of the labels of replayed rows.
        lam: λ, coefficient of future preparation.
        eta, margin: η and m of both constraints.
        gamma: what attenuation leaves of the logit of the label.
        tau: temperature of future preparation.
        augmentations: views of each row in future preparation.
        third_draw: memory rows in future preparation.
        stream_rows: the first rows of the stream's batch that go into future preparation; 0: all.
        dp_weight: coefficient of the distances among stored logits of future heads.
        past_constraint, future_constraint, future_preparation, memory_update: whether the part is there.
        attenuation, nonpositive: `rule` and `nonpositive` of `replaykit.xder.attenuate`.
        batch_norm: which forward passes move BatchNorm's running statistics: ``"every"`` one of the stream and
            of both draws; ``"aligned"``, from the second task on, the first draw's alone, with a few rows of the
            stream beside it; the ``"stream"``'s alone. Future preparation never does.

    Raises:
        ValueError: a setting outside its range.
    """

    alpha: float = 0.3
    beta: float = 0.8
    lam: float = 0.05
    eta: float = 0.001
    margin: float = 0.7
    gamma: float = 0.85
    tau: float = 5.0
    augmentations: int = 2
    third_draw: int = 64
    stream_rows: int = 64
    dp_weight: float = 0.0
    past_constraint: bool = True
    future_constraint: bool = True
    future_preparation: bool = True
    memory_update: bool = True
    attenuation: Rule = "code"
    nonpositive: NonPositive = "compat"
    batch_norm: BatchNorm = "every"

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "lam", "eta", "margin", "dp_weight"):
            if not 0 <= getattr(self, name) < inf:
                raise ValueError(f"{name} is a finite number >= 0, got {getattr(self, name)}")
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma is a share in (0, 1], got {self.gamma}")
        if not 0 < self.tau < inf:
            raise ValueError(f"tau is a temperature, a finite number > 0, got {self.tau}")
        for name, least in (("augmentations", 1), ("third_draw", 0), ("stream_rows", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is a whole number >= {least}, got {value!r}")
        words = {
            "attenuation": ("code", "paper"),
            "nonpositive": ("compat", "safe"),
            "batch_norm": ("every", "aligned", "stream"),
        }
        for name, known in words.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is one of {', '.join(map(repr, known))}; got {getattr(self, name)!r}")
        if self.dp_weight and not self.future_preparation:
            raise ValueError("dp_weight compares views of future preparation; turn that on, or set dp_weight=0")

    def changed(self, **given: Any) -> Settings:
        """The same with the settings that are not None."""
        return replace(self, **{name: value for name, value in given.items() if value is not None})


def published(name: str, variant: str) -> Settings:
    """The published settings for Split CIFAR-100 with 500 rows.

    Args:
        name: ``"tpami"``, the release with the paper (tag tpami2023 of the authors' framework), or
            ``"mammoth"``, the present state of that framework.
        variant: ``"xder"``, ``"xder_ce"`` or ``"xder_rpc"``.
    """
    if variant not in ("xder", "xder_ce", "xder_rpc"):
        raise ValueError(f"variant is 'xder', 'xder_ce' or 'xder_rpc', got {variant!r}")
    whole = variant == "xder"
    if name == "tpami":
        return Settings(future_preparation=whole)
    if name == "mammoth":
        return Settings(
            alpha=0.3 if whole else 0.1,
            beta=0.8 if whole else 0.5,
            eta=0.005 if variant == "xder_ce" else 0.1,
            margin=0.1 if variant == "xder_ce" else 0.3,
            augmentations=4,
            stream_rows=0,
            dp_weight=3000.0 if whole else 0.0,
            past_constraint=False,
            future_preparation=whole,
            batch_norm="stream" if variant == "xder_rpc" else "aligned",
        )
    raise ValueError(f"preset is 'tpami' or 'mammoth', got {name!r}")
