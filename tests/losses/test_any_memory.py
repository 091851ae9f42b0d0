"""Every replay loss with every kind of storage and retrieval, by the plugin."""

import itertools

import pytest
import torch
from small_streams import mlp, naive, parameters, several

from replaykit import Buffer, policies, retrieval
from replaykit.avalanche import Replay
from replaykit.losses import (
    AML,
    CrossEntropy,
    DERpp,
    Distillation,
    MSELogits,
    Sum,
    SupCon,
    WeightedCrossEntropy,
    columns_of,
)
from replaykit.selectors import Herding


def distillation() -> Distillation:
    loss = Distillation()
    loss.remember(mlp(seed=3))
    return loss


LOSSES = {
    "CrossEntropy": CrossEntropy,
    "MSELogits": lambda: MSELogits(0.5),
    "DERpp": lambda: DERpp(0.5, 0.5),
    "SupCon": SupCon,
    "AML": AML,
    "Distillation": distillation,
    "Sum": lambda: Sum(CrossEntropy(0.5), SupCon(0.1), distillation()),
}
POLICIES = {
    "Reservoir": policies.Reservoir,
    "ClassBalancedReservoir": policies.ClassBalancedReservoir,
    "RingBuffer": policies.RingBuffer,
    "KMeans": policies.KMeans,
    "GSSGreedy": policies.GSSGreedy,
    "Coreset": lambda: policies.Coreset(Herding()),
}
RETRIEVALS = {
    "Uniform": retrieval.Uniform,
    "ClassBalanced": retrieval.ClassBalanced,
    "MIR": lambda: retrieval.MIR(candidates=12),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_any_loss_goes_with_any_storage_and_any_retrieval(loss: str) -> None:
    data = several(40)
    for policy, draw in itertools.product(POLICIES, RETRIEVALS):
        memory = Buffer(12, POLICIES[policy](), RETRIEVALS[draw](), seed=0)
        term = LOSSES[loss]()
        if memory.policy.per_task and "logits" in (columns_of(term) or ()):
            with pytest.raises(ValueError, match="logits belong to a training step"):
                Replay(memory, 6, loss=term)
            continue
        strategy = naive(Replay(memory, 6, loss=term), model=mlp())
        plain = naive(Replay(Buffer(12, policies.Reservoir()), 6, loss=CrossEntropy(0.0)), model=mlp())
        for each in (strategy, plain):
            torch.manual_seed(0)
            each.train(data.train_stream, eval_streams=[])
        trained = parameters(strategy.model)
        assert trained.isfinite().all() and not torch.equal(trained, parameters(plain.model)), (policy, draw)
        named = set(columns_of(term) or ())
        assert named <= set(memory.store.columns), "what a loss says it reads is stored"


def test_weights_of_a_coreset_are_used() -> None:
    memory = Buffer(12, policies.Coreset(Herding()), seed=0)
    strategy = naive(Replay(memory, 6, loss=WeightedCrossEntropy(), update="experience"), model=mlp())
    strategy.train(several(40).train_stream, eval_streams=[])
    assert memory["weight"].gt(0).all() and parameters(strategy.model).isfinite().all()


def test_logits_of_whole_experiences_are_refused_at_construction() -> None:
    for loss in (MSELogits(1.0), DERpp(1.0, 1.0), Sum(SupCon(), MSELogits(1.0))):
        with pytest.raises(ValueError, match="logits belong to a training step.*use update='iteration'"):
            Replay(Buffer(9, policies.Reservoir()), loss=loss, update="experience")
        with pytest.raises(ValueError, match="logits belong to a training step.*another policy than OCS"):
            Replay(Buffer(9, policies.OCS()), loss=loss)
