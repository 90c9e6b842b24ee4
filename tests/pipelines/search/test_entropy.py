"""AdaMerging: its gradient against finite differences, its descent, and what it says no to."""

import json

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from conf.errors import UserError
from conf.schema import Search
from pipelines.search import entropy
from pipelines.search.run import run_search

ADAMERGING = ("method=adamerging", "search=adamerging", "search.documents=4", "search.lr=0.02")


def plain_entropy(model, document):
    """The entropy of a document's options, a forward pass each, without the engine."""
    likelihoods = []
    for context, option in document:
        logits = model(torch.tensor([context + option])).logits[0].log_softmax(-1)
        likelihoods.append(sum(logits[len(context) + i - 1, token] for i, token in enumerate(option)))
    p = torch.stack(likelihoods).softmax(0)
    return -(p * p.log()).sum()


@pytest.mark.parametrize("share", [True, False])
def test_slopes_are_those_of_the_entropy(share):
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=20, max_position_embeddings=32, **size)).double().eval()
    base = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    vectors = [{name: torch.randn_like(p) * 0.1 for name, p in base.items()} for _ in range(2)]
    groups = {name: entropy._group(name, True) for name in base}
    names = sorted({*groups.values()})
    documents = [[([1, 2, 3], [4]), ([1, 2, 3], [5, 6]), ([1, 2, 3], [5, 7])], [([9, 8], [7]), ([9, 8], [6])]]
    point = np.array([[0.3, 0.4], [0.2, 0.1], [0.6, 0.5]])

    def at(coefficients):
        entropy.place(model, base, vectors, groups, dict(zip(names, coefficients.tolist())))
        return sum(plain_entropy(model, document) for document in documents) / len(documents)

    wanted = np.zeros_like(point)
    for place in np.ndindex(*point.shape):
        moved = np.zeros_like(point)
        moved[place] = 1e-4
        wanted[place] = float((at(point + moved) - at(point - moved)).detach()) / 2e-4
    assert names == ["0", "1", "outside"]
    value = float(at(point).detach())
    loss = entropy.entropies(model, documents, 32, 16, 4, share).mean()
    loss.backward()
    assert float(loss.detach()) == pytest.approx(value, abs=1e-6)
    np.testing.assert_allclose(entropy.slopes(model, vectors, groups, names), wanted, rtol=1e-3, atol=1e-7)


def test_a_descent_makes_the_model_surer_and_goes_on_after_a_stop(make, other_store, monkeypatch):
    seen, step = [], entropy._Descent.step
    monkeypatch.setattr(entropy._Descent, "step", lambda self, slope: (seen.append(slope.copy()), step(self, slope))[1])
    whole = run_search(make(*ADAMERGING, "search.steps=12", store=other_store))
    (found,) = [c for c in whole.candidates if not c.default]
    parameters = found.tuning.merge.parameters
    assert sorted(parameters["blocks"]) == ["0", "1"]
    assert len(seen) == 12
    # the slope along the path that was taken is downhill
    moved = np.array([parameters["blocks"]["0"], parameters["blocks"]["1"], parameters["weight"]]) - 0.3
    assert float((seen[0] * moved).sum()) < 0
    assert found.values == {
        f"weight.{name}": pytest.approx(float(0.3 + moved.mean(axis=0)[k]), abs=1e-5)
        for k, name in enumerate(whole.experts)
    }

    def stopped(self, slope):
        if self.done == 5:
            raise KeyboardInterrupt
        step(self, slope)

    monkeypatch.setattr(entropy._Descent, "step", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_search(make(*ADAMERGING, "search.steps=12"))
    monkeypatch.setattr(entropy._Descent, "step", step)
    again = run_search(make(*ADAMERGING, "search.steps=12"))
    assert [c.tuning.key for c in again.candidates] == [c.tuning.key for c in whole.candidates]
    assert json.loads((again.folder / "descent.json").read_text())["done"] == 12


@pytest.mark.parametrize(
    "damage", ["", "[]", "{}", '{"done": 3, "raw": [[1]], "adam": {}}', '{"done": "x", "raw": 0, "adam": 0}']
)
def test_a_damaged_file_of_steps_is_begun_anew(tmp_path, damage):
    (tmp_path / "descent.json").write_text(damage)
    descent = entropy._Descent(["outside"], [0.3, 0.3], Search(), tmp_path / "descent.json")
    assert (descent.done, descent.read()) == (0, {"outside": [0.3, 0.3]})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["search=adamerging"], "adamerging searches its own coefficients"),
        ([*ADAMERGING, "+search.space.lambda={low:0,high:1}"], "leave search.space"),
        (["method=adamerging", "+method.blocks={first:[1,2]}"], "a block's index with"),
    ],
)
def test_what_it_says_no_to(make, given, words):
    with pytest.raises(UserError, match=words):
        run_search(make(*given))
