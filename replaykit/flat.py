"""Everything that training changes in a model, as one vector: what Reptile interpolates.

Source: Nichol, Achiam and Schulman, On First-Order Meta-Learning Algorithms, 2018 (the interpolation); Riemer et
al., ICLR 2019, whose code interpolates the full state of the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


class Flat:
    """The trainable parameters and the floating-point buffers of a model, moved into one contiguous vector.

    The tensors of the model stay the objects that they are and become views of the vector, so that modules,
    optimisers, `state_dict`, `load_state_dict` and `deepcopy` (whose result has memory of its own) work as before.
    What gives a tensor other memory (`model.to`, a module's new parameter, a parameter that is frozen) takes it
    out of the vector: ask `of` before each use. Frozen parameters and integer buffers are left where they are.

    Cost: making it copies the state once; `of` looks at every tensor, O(number of tensors).

    Attributes:
        vectors: one vector for each pair of device and dtype in use, hence nearly always one.

    Raises:
        TypeError: a trainable parameter that is complex.
        ValueError: tensors that overlap in memory (tied by a view): as parts of a vector they would fall apart.
            One `nn.Parameter` used in two modules is no such case.
    """

    def __init__(self, model: nn.Module) -> None:
        self._tensors = _changing(model)
        _refuse_overlaps(self._tensors)
        groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for tensor in self._tensors:
            groups.setdefault((tensor.device, tensor.dtype), []).append(tensor)
        self.vectors = [_joined(tensors) for tensors in groups.values()]
        self._places = _places(self._tensors)

    @classmethod
    def of(cls, model: nn.Module, held: Flat | None) -> Flat:
        """The one that is held if it still is the state of this model, otherwise a new one."""
        return held if held is not None and held.holds(model) else cls(model)

    def holds(self, model: nn.Module) -> bool:
        """Whether the vector still is the state of this model."""
        tensors = _changing(model)
        return (
            len(tensors) == len(self._tensors)
            and all(map(_same, tensors, self._tensors))
            and _places(tensors) == self._places
        )

    def copy(self, into: Sequence[Tensor] | None = None) -> list[Tensor]:
        """The present state, written into an earlier copy if there is one that fits."""
        if into is None or not self.fits(into):
            return [vector.clone() for vector in self.vectors]
        for vector, copy in zip(self.vectors, into, strict=True):
            copy.copy_(vector)
        return list(into)

    def fits(self, copy: Sequence[Tensor]) -> bool:
        """Whether this may be a copy of the state: the same numbers of entries, dtypes and devices."""
        return list(map(_kind, copy)) == list(map(_kind, self.vectors))

    def interpolate(self, start: Sequence[Tensor], rate: float) -> None:
        """state <- start + rate (state - start): one `lerp` for each vector. With rate 1 nothing changes."""
        if rate == 1:
            return
        for vector, begin in zip(self.vectors, start, strict=True):
            torch.lerp(begin, vector, rate, out=vector)


def checked_rate(name: str, rate: float) -> float:
    """The rate of an interpolation.

    Raises:
        ValueError: not a number in [0, 1].
    """
    if not (math.isfinite(rate) and 0 <= rate <= 1):
        raise ValueError(f"{name} is a rate in [0, 1], of which 1 keeps the whole step, got {rate}")
    return rate


def _changing(model: nn.Module) -> list[Tensor]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        if not parameter.is_floating_point():
            raise TypeError(
                f"a trainable parameter of shape {list(parameter.shape)} is {parameter.dtype}, not real"
            )
    return [*trained, *(buffer for buffer in model.buffers() if buffer.is_floating_point())]


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    """Move tensors of one kind into a vector; each keeps its layout (channels last, say)."""
    vector = torch.empty(sum(map(torch.numel, tensors)), device=tensors[0].device, dtype=tensors[0].dtype)
    start = 0
    for tensor in tensors:
        stride = torch.empty_like(tensor, device="meta").stride()  # dense, like the tensor where that is
        view = vector.as_strided(tensor.shape, stride, start)
        view.copy_(tensor.detach())
        tensor.data = view
        start += tensor.numel()
    return vector


def _refuse_overlaps(tensors: Sequence[Tensor]) -> None:
    end: dict[torch.device, int] = {}
    for tensor in sorted((t for t in tensors if t.numel()), key=Tensor.data_ptr):
        if tensor.data_ptr() < end.get(tensor.device, 0):
            raise ValueError(
                f"parameters or buffers of the model share memory (one of shape {list(tensor.shape)}); tie "
                "modules by giving them the same nn.Parameter"
            )
        extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        end[tensor.device] = tensor.data_ptr() + extent * tensor.element_size()


def _places(tensors: Iterable[Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other


def _kind(tensor: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return tensor.shape, tensor.dtype, tensor.device
