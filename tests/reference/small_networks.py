"""Small networks that between them have every kind of layer the gradient engine treats apart."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 5


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(12, 9), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(9, 7, bias=False),
        nn.Tanh(), nn.Linear(7, CLASSES),
    )  # fmt: skip


def convnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(inplace=True),
        nn.Conv2d(6, 8, 3, padding=2, dilation=2, groups=2), nn.GroupNorm(2, 8), nn.ReLU(),
        nn.Conv2d(8, 8, (1, 3), padding="same", bias=False, padding_mode="circular"), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(), nn.Linear(8 * 2 * 2, CLASSES),
    )  # fmt: skip


class Residual(nn.Module):
    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut = nn.Sequential()
        if stride != 1 or width != out:
            self.shortcut = nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        out += self.shortcut(x)
        return F.relu(out)


def slim_resnet18(nf: int = 3) -> nn.Module:
    """ResNet-18 with nf channels in its first stage, and running statistics that are not the initial ones."""
    widths, layers = [nf, 2 * nf, 4 * nf, 8 * nf], []
    before = nf
    for stage, width in enumerate(widths):
        layers += [Residual(before, width, 2 if stage else 1), Residual(width, width, 1)]
        before = width
    stem = [nn.Conv2d(3, nf, 3, 1, 1, bias=False), nn.BatchNorm2d(nf), nn.ReLU()]
    model = nn.Sequential(*stem, *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * nf, CLASSES))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    return model


class Transformer(nn.Module):
    """Tokens int64 [n, T] -> logits."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.embed = nn.Embedding(11, 8, padding_idx=0)
        self.position = nn.Parameter(torch.randn(6, 8) * 0.1)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=batch_first)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens) + self.position[: tokens.shape[1]]
        if not self.batch_first:
            h = h.transpose(0, 1)
        h = self.norm(self.encoder(h))
        return self.head(h.mean(1 if self.batch_first else 0))


class Shared(nn.Module):
    """One layer called twice, on different inputs and numbers of tokens, and tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 8)
        self.twice = nn.Linear(8, 8)
        self.tied = nn.Linear(8, 8, bias=False)
        self.tied.weight = nn.Parameter(torch.randn(8, 8))
        self.other = nn.Linear(8, 8)
        self.other.weight = self.tied.weight
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x.flatten(1)).tanh()
        h = self.twice(self.twice(h).tanh())
        h = h + self.twice(torch.stack([h, h.square(), h.sin()], 1)).sum(1)
        return self.head(self.other(self.tied(h).tanh()))


class GrowingHead(nn.Module):
    """A head that can gain classes, as in class-incremental learning."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU())
        self.classifier = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))

    def grow(self, classes: int) -> None:
        old = self.classifier
        self.classifier = nn.Linear(8, classes).to(old.weight)
        with torch.no_grad():
            self.classifier.weight[: old.out_features] = old.weight
            self.classifier.bias[: old.out_features] = old.bias


class WeightsBehindTheBack(nn.Module):
    """A linear layer that is called, and whose weight is used once more without a call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 12)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x.flatten(1)).tanh()
        return self.head(F.linear(h, self.layer.weight))


class RowsOnTheSecondAxis(nn.Module):
    """Tokens [n, T, d] are worked on as [T, n, d]; with T = n shapes alone do not tell."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x.transpose(0, 1)).tanh().sum(0))


class Branching(nn.Module):
    """Control flow that depends on the data: rows cannot be mapped over."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(12))
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = x.flatten(1) * self.scale
        if float(h.detach().sum()) > 0:
            h = h.tanh()
        return self.head(h)


def tokens(n: int) -> dict[str, Tensor]:
    return {"x": torch.randint(11, (n, 6)), "y": torch.randint(CLASSES, (n,))}


def rows(n: int, *shape: int) -> dict[str, Tensor]:
    return {"x": torch.randn(n, *shape, dtype=torch.float64), "y": torch.randint(CLASSES, (n,))}
