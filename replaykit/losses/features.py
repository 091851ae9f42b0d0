"""Features of a model with their gradient: what contrastive and metric losses compare."""

from __future__ import annotations

from collections.abc import Callable
from weakref import ReferenceType, ref

from torch import Tensor, nn

from replaykit.embedding import last_layer
from replaykit.gradients.heads import entering
from replaykit.losses.base import Model, TaskAware, outputs
from replaykit.store import Batch

#: Name of a module, a function of the model's input, or None for what enters the last layer.
FeatureSource = str | Callable[[Tensor], Tensor] | None


class Features:
    """Features [n, d] of the rows of a batch, by default what enters the last layer of the model.

    The last layer is the module with parameters that a forward pass enters last; it is found with one pass of a
    single row, which leaves no trace, and again when it was replaced (heads that grow).

    Args:
        source: the name of the module whose output the features are (flattened), or a function of the model's
            input.
    """

    def __init__(self, source: FeatureSource = None) -> None:
        self.source = source
        self._found: tuple[ReferenceType[nn.Module], nn.Module] | None = None

    def __call__(self, model: Model, batch: Batch) -> Tensor:
        """Features [n, d]. Raises as `both`."""
        if callable(self.source):
            return _vectors(self.source(batch["x"]), len(batch["x"]), "the function given as features")
        return self.both(model, batch)[0]

    def both(self, model: Model, batch: Batch) -> tuple[Tensor, Tensor]:
        """Features [n, d] and outputs [n, c]; of one forward pass, unless the features are a function of x.

        Raises:
            TypeError: the model is no module, or takes task labels, and no function was given.
            ValueError: no such module, or what it gives is not one vector a row.
        """
        if callable(self.source):
            return self(model, batch), outputs(model, batch)
        if isinstance(model, TaskAware) or not isinstance(model, nn.Module):
            what = "takes task labels" if isinstance(model, TaskAware) else f"is no module: {type(model).__name__}"
            raise TypeError(f"the model {what}; its features cannot be found: pass features=, a function of x")
        seen: list[Tensor] = []
        n = len(batch["x"])
        if self.source is None:
            with entering(self._head(model, batch["x"]), seen.append):
                z = outputs(model, batch)
            return _vectors(seen[-1], n, "what enters the last layer"), z
        modules = dict(model.named_modules())
        if self.source not in modules:
            raise ValueError(f"the model has no module {self.source!r} for features; it has {list(modules)}")
        handle = modules[self.source].register_forward_hook(lambda _module, _args, output: seen.append(output))
        try:
            z = outputs(model, batch)
        finally:
            handle.remove()
        return _vectors(seen[-1].flatten(1) if seen else None, n, f"the output of {self.source!r}"), z

    def _head(self, model: nn.Module, x: Tensor) -> nn.Module:
        if self._found is not None and self._found[0]() is model:
            head = self._found[1]
            if any(module is head for module in model.modules()):
                return head
        head = last_layer(model, x)
        self._found = ref(model), head
        return head


def _vectors(value: Tensor | None, n: int, what: str) -> Tensor:
    if value is None or value.ndim != 2 or len(value) != n:
        given = "nothing" if value is None else f"shape {list(value.shape)}"
        raise ValueError(
            f"features are one vector a row, [{n}, d], but {what} has {given}; pass features=, a module's name or "
            "a function of x"
        )
    return value
