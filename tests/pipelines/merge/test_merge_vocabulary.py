"""Vocabularies that differ: by hand, and against mergekit's own run."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from merge_helpers import WORDS, assert_same, merge_of, perturbed, weights, word_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from pipelines.checkpoints.vocabulary import make_vocabulary
from pipelines.merge.live import merge_into
from pipelines.merge.write import write_merge, write_tokenizer


def grown(base, words, folder, seed):
    """An expert of the base whose tokenizer has these words, its rows in their order; new words get random rows."""
    model = perturbed(LlamaForCausalLM.from_pretrained(base), seed)
    old = {word: i for i, word in enumerate(WORDS)}
    generator = torch.Generator().manual_seed(seed)
    made = LlamaForCausalLM(LlamaConfig(**{**model.config.to_dict(), "vocab_size": len(words)}))
    state = model.state_dict()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        rows = [state[name][old[w]] if w in old else torch.randn(16, generator=generator) for w in words]
        state[name] = torch.stack(rows)
    made.load_state_dict(state)
    made.save_pretrained(folder)
    word_tokenizer(words).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def unlike(pool, tmp_path_factory):
    """A base, and experts with a new word, with two new words (one shared) in another order, and with its own words."""
    root = tmp_path_factory.mktemp("unlike")
    base, experts = pool
    one = grown(base, [*WORDS, "new"], root / "one", 11)
    two = grown(base, [*WORDS[:10], "own", *WORDS[10:][::-1], "new"], root / "two", 12)
    return base, [one, two, experts[2]]


def by_token(folder, name):
    matrix = weights(folder)[name]
    return {token: matrix[i] for token, i in AutoTokenizer.from_pretrained(folder).get_vocab().items()}


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
@pytest.mark.parametrize("vocab", ["union", "base"])
def test_rows_are_those_of_mergekit_by_token(unlike, tmp_path, method, vocab):
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

    base, experts = unlike
    merge = merge_of(base, experts, method, vocab=vocab)
    assert merge.problems() == []
    write_merge(merge, tmp_path / "ours")
    models = [{"model": str(e), "parameters": {"weight": 1.0}} for e in experts]
    config = {"merge_method": method, "base_model": str(base), "models": models, "dtype": "float32"}
    config["tokenizer"] = {"source": vocab}
    if method == "linear":  # mergekit's linear takes the base as one more model
        config["models"] = [*models, {"model": str(base), "parameters": {"weight": 0.0}}]
    run_merge(MergeConfiguration.model_validate(config), str(tmp_path / "theirs"), MergeOptions(quiet=True))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        ours, theirs = by_token(tmp_path / "ours", name), by_token(tmp_path / "theirs", name)
        assert ours.keys() == theirs.keys()
        assert len(ours) == (42 if vocab == "union" else 40)
        for token in ours:
            torch.testing.assert_close(ours[token], theirs[token], rtol=1e-5, atol=1e-6, msg=f"{name} {token}")
    torch.testing.assert_close(
        weights(tmp_path / "ours")["model.norm.weight"], weights(tmp_path / "theirs")["model.norm.weight"]
    )


def test_a_word_that_one_expert_has_keeps_its_row(unlike):
    base, experts = unlike
    merge = merge_of(base, experts, "task_arithmetic", vocab="union")
    rows = {token: row for token, row, _ in merge.layout.vocabulary.added}
    merged = dict(merge.tensors())["lm_head.weight"]
    torch.testing.assert_close(merged[rows["own"]], by_token(experts[1], "lm_head.weight")["own"])


def test_the_live_model_grows_shrinks_and_equals_the_written_one(unlike, tmp_path):
    base, experts = unlike
    model = AutoModelForCausalLM.from_pretrained(base)
    merge = merge_of(base, experts, "linear", vocab="union")
    merge_into(model, merge)
    write_merge(merge, tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    tokens = tokenizer("w1 new own w38", return_tensors="pt").input_ids
    assert tokens.max() >= 40
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, loaded(tokens).logits)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 42
    assert tokenizer.chat_template
    assert write_tokenizer(merge, tmp_path / "tokenizer")
    assert AutoTokenizer.from_pretrained(tmp_path / "tokenizer").get_vocab() == tokenizer.get_vocab()
    plain = merge_of(base, experts[2:], "linear")
    merge_into(model, plain)
    assert_same(dict(model.state_dict()), dict(plain.tensors()))


def test_the_order_of_experts_changes_no_bit(unlike):
    base, experts = unlike
    one = merge_of(base, experts, "task_arithmetic", vocab="union")
    other = merge_of(base, experts[::-1], "task_arithmetic", vocab="union")
    assert [a[:2] for a in one.layout.vocabulary.added] == [a[:2] for a in other.layout.vocabulary.added]
    assert_same(dict(one.tensors()), dict(other.tensors()))


@pytest.mark.parametrize("vocab", ["base", "union"])
def test_nothing_is_aligned_where_nothing_differs(pool, vocab):
    base, experts = pool
    merge = merge_of(base, experts, "ties", vocab=vocab)
    assert merge.layout.vocabulary is None
    assert_same(dict(merge.tensors()), dict(merge_of(base, experts, "ties").tensors()))


def test_the_same_words_at_other_ids_are_a_problem_though_shapes_agree(pool, tmp_path):
    base, _ = pool
    swapped = grown(base, [WORDS[0], WORDS[2], WORDS[1], *WORDS[3:]], tmp_path / "swapped", 5)
    (problem,) = merge_of(base, [swapped], "linear").problems()
    assert problem.who == "swapped"
    assert problem.what == "has a tokenizer that gives 'w1' id 1, the base's 2 (and 1 more)"
    merged = dict(merge_of(base, [swapped], "linear", vocab="base").tensors())["lm_head.weight"]
    expected = weights(swapped)["lm_head.weight"][[0, 2, 1, *range(3, 40)]]
    torch.testing.assert_close(merged, expected)


def test_a_word_in_a_padding_row_is_no_problem(pool, make_pool, tmp_path):
    base, experts = make_pool(1, vocab_size=48)
    word_tokenizer([*WORDS, "extra"]).save_pretrained(experts[0])
    assert merge_of(base, experts, "linear").problems() == []
    merge = merge_of(base, experts, "linear", vocab="union")
    assert merge.layout.vocabulary.rows == 48
    merged = dict(merge.tensors())["lm_head.weight"]
    torch.testing.assert_close(merged[40], weights(experts[0])["lm_head.weight"][40])
    torch.testing.assert_close(merged[41:], weights(base)["lm_head.weight"][41:])


def test_rows_by_hand(tmp_path):
    words = {"base": ["a", "b"], "x": ["b", "c", "a"], "y": ["a", "d", "c"]}
    for name, tokens in words.items():
        core = {"model": {"vocab": {t: i for i, t in enumerate(tokens)}}, "added_tokens": []}
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(core))
    folders = [tmp_path / name for name in words]
    made = make_vocabulary("union", folders, [2, 3, 3], ["2", "1"])  # y's id sorts first
    assert [a[:2] for a in made.added] == [("d", 2), ("c", 3)]
    base, x, y = (
        torch.tensor([[1.0], [2.0]]),
        torch.tensor([[20.0], [30.0], [10.0]]),
        torch.tensor([[100.0], [400.0], [300.0]]),
    )
    aligned = [t.flatten().tolist() for t in made.align([base, x, y])]
    assert aligned == [[1, 2, 400, 165], [10, 20, 400, 30], [100, 2, 400, 300]]
    assert make_vocabulary("base", folders, [2, 3, 3], ["2", "1"]).rows == 2


@pytest.mark.parametrize("vocab", ["base", "union"])
def test_a_base_without_a_tokenizer_is_told(unlike, tmp_path, vocab):
    base, experts = unlike
    bare = tmp_path / "bare"
    shutil.copytree(base, bare, ignore=shutil.ignore_patterns("tokenizer*"))
    (problem,) = merge_of(bare, experts, "linear", vocab=vocab).problems()
    assert f"bare has no tokenizer, by which vocab={vocab} aligns rows" in str(problem)
    merged = merge_of(bare, [experts[2], experts[2]], "linear")
    assert merged.problems() == []
    assert_same(dict(merged.tensors()), weights(experts[2]))


def test_experts_of_a_base_without_a_tokenizer_are_compared(pool, tmp_path):
    base, experts = pool
    bare, other = tmp_path / "bare", tmp_path / "other"
    shutil.copytree(base, bare, ignore=shutil.ignore_patterns("tokenizer*"))
    shutil.copytree(experts[1], other)
    word_tokenizer([WORDS[0], WORDS[2], WORDS[1], *WORDS[3:]]).save_pretrained(other)
    (problem,) = merge_of(bare, [experts[0], other], "linear").problems()
    assert "expert0's" in problem.what
