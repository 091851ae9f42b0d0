"""Scores of OCS: the paper's numbers, both ways to compute them, and rows without a direction."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import ocs as reference
from reference import small_networks as nets
from reference.per_sample_gradients import flat, one_by_one
from torch import Tensor, nn

from replaykit.gradients import PerSampleGradients, cross_entropy
from replaykit.probe import Probe
from replaykit.selectors.ocs_scores import affinity, best_first, diversity, of_gram, scores, similarity


def vectors(rows: list[list[float]] | Tensor) -> PerSampleGradients:
    """Gradients that are these vectors, by the engine: of a linear output with respect to its weight."""
    x = torch.as_tensor(rows, dtype=torch.float64)
    model = nn.Linear(x.shape[1], 1, bias=False).double()
    return Probe(model, loss=lambda outputs, _: outputs[:, 0]).gradients({"x": x})


HAND = [[1, 0], [0.8, 0.6], [0, 1], [-1, 0]]
UP = torch.tensor([0.0, 1.0], dtype=torch.float64)


def close(a, b, tolerance: float = 5e-5) -> None:
    np.testing.assert_allclose(a, b, atol=tolerance, rtol=0)


def random_case(seed: int, n: int = 12, m: int = 5, model=nets.mlp, *shape: int):
    torch.manual_seed(seed)
    made = model().double()
    return made, nets.rows(n, *(shape or (3, 2, 2))), nets.rows(m, *(shape or (3, 2, 2)))


# -- numbers --------------------------------------------------------------------------------------


def test_hand_case() -> None:
    g = vectors(HAND)
    close(similarity(g), [0.4472, 0.8944, 0.8944, -0.4472])
    close(diversity(g), [0.0667, -0.2, -0.2, 0.6])
    close(affinity(g, UP), [0, 0.6, 1, 0])
    close(scores(g), [0.5139, 0.6944, 0.6944, 0.1528])
    close(scores(g, 10.0, UP), [0.5139, 6.6944, 10.6944, 0.1528])


@pytest.mark.parametrize(("tau", "order"), [(0.0, [1, 2, 0, 3]), (1.0, [2, 1, 0, 3]), (1000.0, [2, 1, 0, 3])])
def test_hand_order(tau: float, order: list[int]) -> None:
    g = vectors(HAND)
    assert best_first(scores(g, tau, UP), tau).tolist() == order
    gram = vectors([*HAND, [0, 1]]).gram().numpy()
    assert best_first(of_gram(gram, 4, tau), tau).tolist() == order


def test_the_released_diversity_is_a_scaled_one() -> None:
    g, b = vectors(HAND), 4
    close(diversity(g, with_self=True), (b - 1) / b * diversity(g) - 1 / b, 1e-12)
    close(scores(g, with_self=True), similarity(g) + diversity(g, with_self=True), 1e-12)


def test_the_two_diversities_can_rank_differently() -> None:
    """The released one counts for less against S: here (n-1)/n = 2/3."""
    g = vectors([[1, 0], [2, -2], [-3, 0]])
    close(scores(g), [0.1464, 0.7071, 0.8536])
    close(scores(g, with_self=True), [-0.2357, 0.3738, 0.2357])


def test_equal_gradients_score_nothing() -> None:
    g = vectors([[3, 4]] * 5)
    close(similarity(g), [1] * 5, 1e-12)
    close(diversity(g), [-1] * 5, 1e-12)
    close(scores(g), [0] * 5, 1e-12)
    assert best_first(scores(g)).tolist() == [0, 1, 2, 3, 4]


def test_duplicates_are_ranked_by_index() -> None:
    torch.manual_seed(0)
    rows = torch.randn(9, 50, dtype=torch.float64)
    both = torch.cat([rows, rows])[torch.randperm(18)]
    for gradients in (vectors(both), vectors((both * 7).float())):
        order = best_first(scores(gradients, 1000.0, rows[0]), 1000.0)
        for a, b in zip(order[::2], order[1::2], strict=True):
            assert torch.equal(both[a], both[b]) and a < b


def test_a_single_row_is_compared_with_nothing() -> None:
    g = vectors([[0.6, 0.8]])
    assert diversity(g).tolist() == [0]
    close(scores(g), [1], 1e-12)
    close(scores(g, 2.0, UP), [1 + 1.6], 1e-12)
    close(of_gram(vectors([[0.6, 0.8], [0, 2]]).gram().double().numpy(), 1, 2.0), [1 + 1.6], 1e-12)


def test_the_affinities_add_up_to_the_product_of_the_means() -> None:
    model, batch, memory = random_case(0)
    probe = Probe(model)
    g, r = probe.gradients(batch), probe.gradients(memory).mean()
    torch.testing.assert_close((affinity(g, r) * g.norms()).sum(), 12 * (g.mean() @ r) / r.norm())


# -- ways to compute them -------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["mlp", "convnet", "slim_resnet18"])
@pytest.mark.parametrize("tau", [0.0, 1.0, 1000.0])
def test_sums_and_products_are_the_literal_loop(network: str, tau: float) -> None:
    shape = (3, 2, 2) if network == "mlp" else (3, 8, 8)
    model, batch, memory = random_case(1, 7, 4, getattr(nets, network), *shape)
    formed = [flat(one_by_one(model, rows, cross_entropy())) for rows in (batch, memory)]
    probe, mean = Probe(model), formed[1].mean(0)
    for with_self in (False, True):
        ours = scores(probe.gradients(batch), tau, probe.gradients(memory).mean(), with_self)
        close(ours, reference.scores(formed[0], tau, mean, with_self), 1e-10 * max(1, tau))
        close(
            scores(probe.gradients(batch), with_self=with_self),
            reference.scores(formed[0], with_self=with_self),
            1e-10,
        )
    assert best_first(ours, tau).tolist() == reference.ranking(reference.scores(formed[0], tau, mean), tau)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 20), m=st.integers(0, 8), seed=st.integers(0, 99), tau=st.sampled_from([0.0, 1.0, 1000.0]))
def test_the_gram_matrix_gives_the_same_scores(n: int, m: int, seed: int, tau: float) -> None:
    model, batch, memory = random_case(seed, n, m)
    probe = Probe(model)
    both = {name: torch.cat([batch[name], memory[name]]) for name in batch}
    mean = probe.gradients(memory).mean() if m else None
    close(
        of_gram(probe.gradients(both).gram().double().numpy(), n, tau),
        scores(probe.gradients(batch), tau, mean),
        1e-10 * max(1, tau),
    )


@pytest.mark.parametrize("network", ["mlp", "convnet"])
def test_single_precision_gives_the_same_scores_and_order(network: str) -> None:
    shape = (3, 2, 2) if network == "mlp" else (3, 8, 8)
    model, batch, memory = random_case(5, 20, 10, getattr(nets, network), *shape)
    exact = scores(Probe(model).gradients(batch), 1000.0, Probe(model).gradients(memory).mean())
    model.float()
    batch["x"], memory["x"] = batch["x"].float(), memory["x"].float()
    probe, both = Probe(model), {name: torch.cat([batch[name], memory[name]]) for name in batch}
    summed = scores(probe.gradients(batch), 1000.0, probe.gradients(memory).mean())
    for ours in (summed, of_gram(probe.gradients(both).gram().double().numpy(), 20, 1000.0)):
        close(ours, exact, 2e-3)  # of a thousand cosines
        assert best_first(ours, 1000.0).tolist() == best_first(exact, 1000.0).tolist()


@settings(max_examples=15, deadline=None)
@given(n=st.integers(1, 40), seed=st.integers(0, 99), rows=st.integers(1, 9))
def test_chunks_do_not_matter(n: int, seed: int, rows: int) -> None:
    model, batch, memory = random_case(seed, n)
    whole, small = Probe(model), Probe(model, budget=12_000 * rows)
    r = whole.gradients(memory).mean()
    ours = scores(small.gradients(batch), 10.0, r)
    close(ours, scores(whole.gradients(batch), 10.0, r), 1e-11)
    for part in (similarity, diversity):
        close(part(small.gradients(batch)), part(whole.gradients(batch)), 1e-12)


def test_a_small_budget_does_cut() -> None:
    model, batch, _ = random_case(0, 40)
    assert len(Probe(model, budget=12_000).gradients(batch)._chunks()) > 3


def test_the_last_layer_alone() -> None:
    model, batch, _ = random_case(3)
    formed = one_by_one(model, batch, cross_entropy())
    last = torch.cat([part for name, part in formed.items() if name.startswith("6.")], 1)
    close(scores(Probe(model, layers="last").gradients(batch)), reference.scores(last), 1e-10)


def test_devices_agree(device: str) -> None:
    model, batch, memory = random_case(0)
    host = scores(Probe(model).gradients(batch), 10.0, Probe(model).gradients(memory).mean())
    there = Probe(model.to(device))
    close(scores(there.gradients(batch), 10.0, there.gradients(memory).mean()), host, 1e-10)


# -- rows without a direction ---------------------------------------------------------------------


def test_gradients_without_a_direction_are_at_right_angles_to_all() -> None:
    rows = torch.tensor([[1.0, 0], [0, 0], [0.6, 0.8], [1e-9, 0]], dtype=torch.float64)
    g = vectors(rows)
    assert g.degenerate == 2
    close(similarity(g), [similarity(g)[0], 0, similarity(g)[2], 0], 1e-12)
    close(diversity(g), [-0.2, 0, -0.2, 0], 1e-12)  # the mean still counts them
    close(scores(g, 5.0, UP), reference.scores(rows, 5.0, UP), 1e-12)
    close(
        of_gram(vectors([*rows.tolist(), [0, 1]]).gram().double().numpy(), 4, 5.0),
        reference.scores(rows, 5.0, UP),
        1e-12,
    )
    close(diversity(g, with_self=True), [-1.6 / 4, 0, -1.6 / 4, 0], 1e-12)


@pytest.mark.parametrize("rows", [[[0.0, 0.0]] * 3, [[1.0, 2.0], [-1.0, -2.0]]])
def test_a_mean_without_a_direction_has_no_similarity(rows: list[list[float]]) -> None:
    g = vectors(rows)
    assert similarity(g).tolist() == [0] * len(rows)
    close(scores(g), diversity(g), 1e-12)
    close(of_gram(g.gram().numpy(), len(rows)), diversity(g), 1e-12)


def test_a_reference_without_a_direction_has_no_affinity() -> None:
    g, none = vectors(HAND), torch.zeros(2, dtype=torch.float64)
    close(scores(g, 1000.0, none), scores(g), 1e-12)
    close(of_gram(vectors([*HAND, [1, 1], [-1, -1]]).gram().double().numpy(), 4, 1000.0), scores(g), 1e-12)


def test_nan_is_refused() -> None:
    model, batch, _ = random_case(0)
    batch["x"][3] = float("nan")
    with pytest.raises(ValueError, match=r"NaN or infinite in rows \[3\]"):
        scores(Probe(model).gradients(batch))


def test_a_reference_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"reference has shape \[3\], a gradient \[2\]"):
        scores(vectors(HAND), 1.0, torch.ones(3))
