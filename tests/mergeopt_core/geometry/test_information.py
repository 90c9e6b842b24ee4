"""Fisher information and Gram matrices against closed forms and plain sums in float64."""

import pytest
import torch
from torch import nn

from mergeopt_core.geometry.information import diagonal_fisher, input_grams


def softmax_model(classes=3, features=4):
    torch.manual_seed(0)
    return nn.Linear(features, classes)


def test_fisher_of_softmax_regression_is_its_closed_form():
    """Σ_y p(y) (1[y=c] − p_c)² x_j² = p_c (1 − p_c) x_j²: take the expectation over labels exactly."""
    model = softmax_model()
    inputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))

    def weighted(live, example):
        """√p(y) · log p(y): its squared gradient, summed over y, is the expectation."""
        x, y = example
        scores = live(x).log_softmax(-1)
        return scores[y] * scores[y].detach().exp().sqrt()

    examples = [(x, y) for x in inputs for y in range(3)]
    found = diagonal_fisher(model, examples, weighted)
    p = model(inputs).softmax(-1).double().detach()  # [N, C]
    closed = torch.einsum("nc,nj->cj", p * (1 - p), inputs.double() ** 2) / len(examples)
    torch.testing.assert_close(found["weight"].double(), closed, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(found["bias"].double(), (p * (1 - p)).sum(0) / len(examples), rtol=1e-5, atol=1e-8)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_fisher_squares_the_gradient_of_each_example_by_itself():
    model = softmax_model()
    x = torch.ones(4)
    examples = [(x, 0), (-x, 0)]
    found = diagonal_fisher(model, examples, lambda live, e: live(e[0])[e[1]])
    assert torch.equal(found["weight"][0], torch.ones(4)), "the mean gradient is zero, the mean square is not"


@pytest.mark.parametrize("examples", [[], [torch.full((4,), torch.inf)]])
def test_fisher_refuses_nothing_and_numbers_that_are_none(examples):
    with pytest.raises(ValueError, match=r"no examples|weight is not finite"):
        diagonal_fisher(softmax_model(), examples, lambda live, x: live(x).log_softmax(-1)[0])


class Block(nn.Module):
    """Two layers that share an input, one on top, and a head tied to an embedding."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 5)
        self.q, self.k, self.out = nn.Linear(5, 3), nn.Linear(5, 3), nn.Linear(3, 5)
        self.head = nn.Linear(5, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids)
        return self.head(self.out(self.q(x) * self.k(x)))


def test_grams_are_the_mean_outer_products_of_all_tokens():
    torch.manual_seed(3)
    model = Block()
    data = [torch.randint(0, 7, (1, length)) for length in (4, 9, 2)]
    grams, aliases = input_grams(model, data, lambda live, ids: live(ids))
    assert sorted(grams) == ["out.weight", "q.weight"]
    assert aliases == {"k.weight": "q.weight"}
    with torch.no_grad():
        x = torch.cat([model.embed(ids)[0] for ids in data]).double()  # [T, 5]
        hidden = torch.cat([(model.q(model.embed(ids)) * model.k(model.embed(ids)))[0] for ids in data]).double()
    torch.testing.assert_close(grams["q.weight"].double(), x.mT @ x / 15, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grams["out.weight"].double(), hidden.mT @ hidden / 15, rtol=1e-5, atol=1e-6)
    assert not any(module._forward_pre_hooks for module in model.modules()), "a hook was left behind"


def test_grams_of_a_model_without_linear_layers_are_refused():
    with pytest.raises(ValueError, match="no linear layer"):
        input_grams(nn.ReLU(), [torch.ones(2)], lambda live, x: live(x))
