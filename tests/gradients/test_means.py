import pytest
import torch
from torch import Tensor, nn

from replaykit.gradients import group_means, last_layer_gradients, per_sample_gradients

MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), (6,)),
    "convnet": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1, stride=2),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, groups=2),
            nn.Flatten(),
            nn.Linear(16, 3),
        ),
        (2, 8, 8),
    ),
    "unknown layer": (lambda: nn.Sequential(nn.Linear(6, 5), nn.PReLU(5), nn.Linear(5, 3, bias=False)), (6,)),
}


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(7, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.words(x)).mean(1))


def problem(name: str, n: int) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    y = torch.randint(0, 3, (n,))
    if name == "embedding":
        return Words().double(), {"x": torch.randint(0, 7, (n, 5)), "y": y}
    make, shape = MODELS[name]
    return make().double().eval(), {"x": torch.randn(n, *shape, dtype=torch.float64), "y": y}


@pytest.mark.parametrize("name", [*MODELS, "embedding"])
@pytest.mark.parametrize("budget", [2**28, 100_000], ids=["in one pass", "in several"])
def test_means_are_the_means_of_the_gradients(name: str, budget: int) -> None:
    model, batch = problem(name, 120)
    gradients = per_sample_gradients(model, batch, budget=budget)
    means, true = group_means(gradients, 4), gradients.explicit().view(30, 4, -1).mean(1)
    assert len(means) == 30 and means.p == gradients.p
    torch.testing.assert_close(means.explicit(), true, rtol=0, atol=1e-12)
    torch.testing.assert_close(means.norms(), true.norm(dim=1), rtol=0, atol=1e-12)
    torch.testing.assert_close(means.gram(), true @ true.T, rtol=0, atol=1e-12)
    torch.testing.assert_close(means.inner(gradients), true @ gradients.explicit().T, rtol=0, atol=1e-12)
    torch.testing.assert_close(means.inner(true[0]), true @ true[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(means.mean(), true.mean(0), rtol=0, atol=1e-12)


def test_means_of_last_layer_gradients() -> None:
    model, batch = problem("mlp", 10)
    gradients = last_layer_gradients(model, batch)
    true = gradients.explicit().view(2, 5, -1).mean(1)
    torch.testing.assert_close(group_means(gradients, 5).gram(), true @ true.T, rtol=0, atol=1e-12)
    assert group_means(gradients, 1) is gradients


def test_rows_that_cannot_be_cut_evenly_are_refused() -> None:
    model, batch = problem("mlp", 10)
    for size in (0, 3, 11):
        with pytest.raises(ValueError, match=f"10 rows cannot be cut into groups of {size}"):
            group_means(per_sample_gradients(model, batch), size)
