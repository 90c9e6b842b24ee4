"""Tangent-space experts: trained as the linear model, saved as θ, scored either way."""

import copy

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from pipelines.checkpoints.card import linearised_at
from pipelines.evaluate.engine import batches, forest, log_likelihoods
from pipelines.finetune.tangent import delinearise, linearise, linearised

SMALL = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "use_cache": False,
}  # fmt: skip
KINDS = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "llama-tied": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": True}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {}),
}


def make(kind):
    torch.manual_seed(0)
    config, model, more = KINDS[kind]
    return model(config(**SMALL, **more)).double().eval(), torch.randint(0, 50, (2, 7))


def shift(model, size):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p += size * torch.randn(p.shape, generator=generator, dtype=p.dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_first_order_expansion(kind):
    """Against a five-point difference of the ordinary model along the task vector (its norms compute in float32)."""
    model, ids = make(kind)
    theta0 = {n: p.detach().clone() for n, p in model.named_parameters()}
    start = model(input_ids=ids).logits.detach()
    shift(model, 0.002)
    vector = {n: p.detach() - theta0[n] for n, p in model.named_parameters()}

    def at(h):
        with torch.no_grad():
            for n, p in model.named_parameters():
                p.copy_(theta0[n] + h * vector[n])
        return model(input_ids=ids).logits.detach()

    h = 0.1
    slope = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    ordinary = at(1.0)
    linearise(model, theta0)
    out = model(input_ids=ids, labels=ids)
    torch.testing.assert_close(out.logits.detach(), start + slope, rtol=0, atol=3e-6)
    assert (out.logits - ordinary).abs().max() > 1e-4
    out.loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    delinearise(model)
    torch.testing.assert_close(model(input_ids=ids).logits.detach(), ordinary, rtol=0, atol=0)


def test_the_output_is_linear_in_the_weights():
    model, ids = make("llama")
    theta0 = {n: p.detach().clone() for n, p in model.named_parameters()}
    linearise(model, theta0)
    outs = []
    for size in (0.0, 0.1, 0.3):
        with torch.no_grad():
            for n, p in model.named_parameters():
                p.copy_(theta0[n])
        shift(model, size)
        outs.append(model(input_ids=ids).logits.detach())
    torch.testing.assert_close(outs[2] - outs[0], 3 * (outs[1] - outs[0]), rtol=1e-4, atol=3e-6)


def test_an_expert_is_saved_as_weights_with_a_flag(base, train):
    out = train("a", "tangent", steps=8, batch_size=32)
    assert linearised_at(out) == str(base.resolve())
    assert linearised_at(base) is None
    start, ordinary, linear = (AutoModelForCausalLM.from_pretrained(folder) for folder in (base, out, out))
    linearise(linear, dict(start.named_parameters()))
    ids = torch.randint(3, 40, (2, 9))
    with torch.no_grad():
        f0, f1, lin = (m(input_ids=ids).logits for m in (start, ordinary, linear))
    assert (f1 - f0).abs().max() > 1e-2
    assert 1e-6 < (lin - f1).abs().max() < (f1 - f0).abs().max()
    assert "tangent space" in (out / "README.md").read_text()


def test_weights_of_other_shapes_are_refused():
    model, _ = make("llama")
    vector = {n: p.detach()[..., :1] for n, p in model.named_parameters()}
    with pytest.raises(ValueError, match="vector lacks"):
        linearise(model, vector=vector)


def slope(model, vector, **inputs):
    """The logits of a double model along a vector, by a five-point difference."""
    theta0 = {n: p.detach().clone() for n, p in model.named_parameters()}

    def at(h):
        with torch.no_grad():
            for n, p in model.named_parameters():
                p.copy_(theta0[n] + h * vector[n])
            return model(**inputs).logits

    h = 0.01
    found = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    at(0.0)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_shared_contexts_and_generation_are_those_of_the_linear_model(kind):
    """The evaluator's trees of requests and uncached generation, against differences of the whole sequences."""
    model, _ = make(kind)
    generator = torch.Generator().manual_seed(3)
    vector = {n: 0.02 * torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in model.named_parameters()}

    def linear(ids):
        with torch.no_grad():
            return model(input_ids=ids).logits + slope(model, vector, input_ids=ids)

    context = torch.randint(3, 50, (5,), generator=generator).tolist()
    pairs = [(context, torch.randint(3, 50, (n,), generator=generator).tolist()) for n in (1, 1, 2, 3)]
    want = []
    for before, after in pairs:
        logits = linear(torch.tensor([before + after[:-1]]))[0, len(before) - 1 :].log_softmax(-1)
        want.append(sum(float(row[token]) for row, token in zip(logits, after)))
    text = torch.tensor([context])
    for _ in range(6):
        text = torch.cat([text, linear(text)[:, -1:].argmax(-1)], 1)
    model = copy.deepcopy(model).float()
    with linearised(model, {name: v.float() for name, v in vector.items()}):
        work = batches(forest(pairs, 64, 32), 4)
        assert any(batch.ends is not None for batch in work), "contexts are shared"
        got = log_likelihoods(model, work, len(pairs), lambda rows: None)
        options = {"max_new_tokens": 6, "do_sample": False, "use_cache": True, "pad_token_id": 0, "eos_token_id": 99}
        written = model.generate(input_ids=torch.tensor([context]), **options)
    assert [value for value, _ in got] == pytest.approx(want, abs=1e-4)
    assert torch.equal(written, text)
    assert not {"forward", "generate"} & set(vars(model))
