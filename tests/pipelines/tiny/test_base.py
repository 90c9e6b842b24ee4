from contextlib import nullcontext

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from conf.errors import UserError
from conf.schema import Base
from pipelines.tiny import base as tiny
from pipelines.tiny.base import answer_loss, encode, fresh_model, make_base, tokenizer
from pipelines.tiny.skills import SKILLS, items

SHORT = Base(steps=4)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    make_base(SHORT, folder)
    return folder


def test_the_base_is_an_ordinary_checkpoint(made):
    model, tokens = AutoModelForCausalLM.from_pretrained(made), AutoTokenizer.from_pretrained(made)
    assert model.config.model_type == "llama"
    assert model.dtype == torch.float32
    assert 200_000 < model.num_parameters() < 300_000
    assert model.get_input_embeddings().weight.data_ptr() != model.lm_head.weight.data_ptr()
    assert model.generation_config.eos_token_id == tokens.eos_token_id
    assert model.config.vocab_size == len(tokens)
    tokens = tokens("add 1 2 =", return_tensors="pt")
    assert model.generate(**tokens, max_new_tokens=2, do_sample=False).shape[1] in (5, 6)


def test_the_base_is_the_same_to_the_bit_whatever_the_caller_did(made, tmp_path):
    threads = torch.get_num_threads()
    torch.manual_seed(99)
    np.random.seed(99)
    torch.set_num_threads(2)
    try:
        state = torch.get_rng_state()
        make_base(SHORT, tmp_path)
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert (tmp_path / "model.safetensors").read_bytes() == (made / "model.safetensors").read_bytes()


def test_another_seed_makes_another_base(made, tmp_path):
    make_base(Base(steps=4, seed=1), tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() != (made / "model.safetensors").read_bytes()


def test_the_loss_is_that_of_the_answer_and_the_end_token():
    symbols = tokenizer()
    torch.manual_seed(0)
    model = fresh_model(Base(), symbols).double().eval()
    texts = ["add 3 5 = 8", "top 1 2 3 4 = 4"]
    by_hand = []
    for text in texts:  # one row at a time, no padding
        row = torch.tensor([[*symbols(text)["input_ids"], symbols.eos_token_id]])
        logs = model(row).logits.log_softmax(-1)[0]
        by_hand += [-logs[-3, row[0, -2]], -logs[-2, row[0, -1]]]
    torch.testing.assert_close(answer_loss(model, *encode(symbols, texts)), torch.stack(by_hand).mean())


def test_pre_training_lowers_the_loss_and_reports_every_step(tmp_path):
    losses = []

    class Listener:
        def step(self, label, total=None):

            assert total == 12
            return nullcontext(self)

        def advance(self, n=1, **fields):
            losses.append(fields["loss"])

    make_base(Base(steps=12), tmp_path, Listener())
    assert len(losses) == 12
    assert losses[-1] < losses[0] - 1


def test_pre_training_sees_training_prompts_only(monkeypatch):
    asked = []
    monkeypatch.setattr(tiny, "items", lambda *args, **kw: asked.append(args) or items(*args, **kw))
    tiny._mixture(tokenizer(), 0)
    assert [(name, split) for name, split, *_ in asked] == [(name, "train") for name in SKILLS]


@pytest.mark.parametrize("wrong", [{"hidden": 90}, {"layers": 0}, {"steps": 0}])
def test_an_impossible_base_is_told_in_one_line(wrong, tmp_path):
    with pytest.raises(UserError, match="cannot be made"):
        make_base(Base(**wrong), tmp_path / "base")
    assert not (tmp_path / "base").exists()
