"""What a model is made of, read in one walk."""

from __future__ import annotations

from torch import Tensor, nn


class Structure:
    """Modules, parameters and buffers of a model at one moment.

    Attributes:
        modules: by name, each once, in the order of ``named_modules()``.
        parameters: by name, each once, in the order of ``named_parameters()``.
        shared: identities of parameters that belong to more than one module.
        buffers: (module, name, value) of every buffer.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modules: dict[str, nn.Module] = {}
        self.parameters: dict[str, Tensor] = {}
        self.shared: set[int] = set()
        self.buffers: list[tuple[nn.Module, str, Tensor]] = []
        seen: set[int] = set()
        stack: list[tuple[str, nn.Module]] = [("", model)]
        while stack:
            prefix, module = stack.pop()
            if id(module) in seen:
                continue
            seen.add(id(module))
            self.modules[prefix[:-1]] = module
            self._read(prefix, module, seen)
            children = [
                (f"{prefix}{name}.", child) for name, child in module._modules.items() if child is not None
            ]
            stack += reversed(children)
        self._parts = [self._part(module) for module in self.modules.values()]
        self._versions = [value._version for value in self._tensors()]

    def changed(self) -> bool:
        """Whether a module, a parameter or a buffer was replaced, or a value written to, since."""
        if self._parts != [self._part(module) for module in self.modules.values()]:
            return True
        return self._versions != [value._version for value in self._tensors()]

    def _read(self, prefix: str, module: nn.Module, seen: set[int]) -> None:
        for name, value in module._parameters.items():
            if value is None:
                continue
            if id(value) in seen:
                self.shared.add(id(value))
            else:
                seen.add(id(value))
                self.parameters[prefix + name] = value
        self.buffers += [(module, name, value) for name, value in module._buffers.items() if value is not None]

    def _tensors(self) -> list[Tensor]:
        return [*self.parameters.values(), *(buffer for _, _, buffer in self.buffers)]

    @staticmethod
    def _part(module: nn.Module) -> list[int]:
        groups = (module._modules, module._parameters, module._buffers)
        return [id(value) for group in groups if group for value in group.values()]
