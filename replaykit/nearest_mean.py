"""Nearest-mean classification: a row belongs to the class whose mean feature is closest.

Source: Mensink et al., Distance-Based Image Classification, TPAMI 2013; Rebuffi et al., iCaRL, CVPR 2017,
algorithm 1 (features and means scaled to length 1).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


class NearestMean(nn.Module):
    """Logits [n, c] are minus the squared distances to the means; classes without a mean get -inf.

    Args:
        features: inputs [n, ...] to features [n, d], such as `replaykit.embedding.Embedding`. A module is
            registered, so that the mode of this one is its mode; the means are not parameters.
        normalise: scale features and means to length 1, as iCaRL does.

    Attributes:
        means: [c, d], NaN for classes that no row was given of; None before `fit`.
    """

    def __init__(self, features: Callable[[Tensor], Tensor], normalise: bool = True) -> None:
        super().__init__()
        self.features, self.normalise = features, normalise
        self.means: Tensor | None = None

    @torch.no_grad()
    def fit(self, x: Tensor, y: Tensor, classes: int | None = None, chunk: int = 512) -> NearestMean:
        """Take the means of inputs x [n, ...], ready for the network, with labels y [n]; returns itself.

        Features are those of the evaluation mode.

        Args:
            classes: number of outputs; default: largest label + 1.
        """
        if len(y) == 0:
            raise ValueError("means of no rows are undefined; train and store something first")
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            z = torch.cat([self._embed(part) for part in torch.split(x, chunk)])
        finally:
            for module, training in modes:
                module.training = training
        y = y.to(z.device)
        c = int(y.max()) + 1 if classes is None else classes
        total = z.new_zeros(c, z.shape[1]).index_add_(0, y, z)
        count = torch.bincount(y, minlength=c).to(z)
        means = total / count[:, None]  # 0 / 0 is NaN: no mean
        self.means = functional.normalize(means, dim=1) if self.normalise else means
        return self

    def forward(self, x: Tensor) -> Tensor:
        if self.means is None:
            raise RuntimeError("this classifier has no means yet; call fit with rows of the memory first")
        distance = torch.cdist(self._embed(x), self.means.nan_to_num(0.0)).square()
        return (-distance).masked_fill(self.means.isnan().any(1), float("-inf"))

    def _embed(self, x: Tensor) -> Tensor:
        z = self.features(x).flatten(1)
        z = z.float() if z.element_size() < 4 else z  # sums of many rows do not fit into half precision
        return functional.normalize(z, dim=1) if self.normalise else z
