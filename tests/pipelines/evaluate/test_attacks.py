"""Attacks are reproducible, spare what they must, and cost what their drop rate says."""

import re
from random import Random

import numpy as np
import pytest

from conf.errors import UserError
from conf.schema import Suite, SuiteTask
from pipelines.evaluate.attacks import document_attack, perturb_prompt
from pipelines.evaluate.attacks.edits import distract, misspell
from pipelines.evaluate.evaluator import Evaluator
from pipelines.evaluate.robustness import drops
from pipelines.evaluate.score import document_table

TEXT = "The acting of the leading lady almost makes this positive melodrama worthwhile.\nQuestion: Is it good?\nAnswer:"


def edit_distance(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


@pytest.mark.parametrize("seed", range(20))
def test_deepwordbug_misspells_a_few_words_by_one_edit(seed):
    out = misspell(TEXT, {"positive"}, Random(seed))
    before, after = TEXT.split(), out.split()
    assert len(before) == len(after)
    changed = [(a, b) for a, b in zip(before, after) if a != b]
    assert 1 <= len(changed) <= 4
    for a, b in changed:
        assert edit_distance(a, b) <= 2  # a swap of neighbours counts twice
        assert a.strip(".?:").lower() not in {"positive", "the", "question", "answer"}
    assert out == misspell(TEXT, {"positive"}, Random(seed))


def test_stresstest_says_a_tautology_five_times():
    out = distract(TEXT, set(), Random(0))
    assert re.sub(r"( and true is true| and false is not true){5}", "", out) == TEXT
    assert out.splitlines()[0].endswith("true.")
    assert out.splitlines()[1:] == TEXT.splitlines()[1:]


def masked_model(folder):
    """A random masked language model of a few words, as a folder; returns the words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

    words = [
        "[PAD]",
        "[UNK]",
        "[MASK]",
        *["acting", "leading", "lady", "almost", "makes", "melodrama", "worthwhile", "great", "film", "##s", "7"],
    ]
    pieces = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    PreTrainedTokenizerFast(tokenizer_object=pieces, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertForMaskedLM(config).save_pretrained(folder)
    return words


def test_bertattack_puts_whole_words_in(tmp_path):
    words = masked_model(tmp_path)
    attack = document_attack(f"bertattack_document:{tmp_path}")
    out = attack(TEXT, {"positive"}, Random(1))
    changed = [(a, b) for a, b in zip(TEXT.split(), out.split()) if a != b]
    assert changed
    assert all(b.strip(".?:").lower() in words for _, b in changed)
    assert out == document_attack(f"bertattack_document:{tmp_path}")(TEXT, {"positive"}, Random(1))


def test_bertattack_reads_byte_level_tokenizers(tmp_path):
    """Pieces of a byte-level vocabulary begin with Ġ where a word begins; others go on with one."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaConfig, RobertaForMaskedLM, RobertaTokenizerFast

    pieces = ByteLevelBPETokenizer()
    words = ["acting", "leading", "almost", "melodrama", "worthwhile", "café"]
    pieces.train_from_iterator([" ".join(words * 9)], vocab_size=340, min_frequency=1)
    (tmp_path / "m").mkdir()
    RobertaTokenizerFast(tokenizer_object=pieces._tokenizer).save_pretrained(tmp_path / "m")
    config = RobertaConfig(
        vocab_size=350, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    RobertaForMaskedLM(config).save_pretrained(tmp_path / "m")
    attack = document_attack(f"bertattack_document:{tmp_path / 'm'}")
    text = "The acting almost makes this melodrama worthwhile."
    changed = {
        b.strip(".").lower()
        for seed in range(9)
        for a, b in zip(text.split(), attack(text, set(), Random(seed)).split(), strict=True)
        if a != b
    }
    starts = {piece for piece, _ in pieces.get_vocab().items() if piece.startswith("Ġ")}
    assert changed
    assert changed <= {pieces.decode([pieces.token_to_id(piece)]).strip() for piece in starts}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bertattack", "name one, as in attack=bertattack:"),
        ("bertattack_document", "name one, as in attack=bertattack_document:"),
        ("deepwordbag", "did you mean deepwordbug"),
    ],
)
def test_unusable_attacks_are_told(name, message, folder):
    with pytest.raises(UserError, match=message):
        Evaluator(Suite(name="s", tasks={"add": SuiteTask(skill="add")}, attack=name), folder)


def test_only_the_documents_own_text_is_perturbed():
    prompt = f"Example: {TEXT} positive\n\nExample: {TEXT}"
    out = perturb_prompt(misspell, prompt, TEXT, ["negative", "positive"], "seed")
    assert out.startswith(f"Example: {TEXT} positive\n\nExample: ")
    assert out != prompt
    assert "positive melodrama" not in out[: -len(TEXT) // 2] or "positive" in out


@pytest.mark.parametrize("attack", ["deepwordbug_document", "stresstest_document"])
def test_attacked_documents_pair_with_clean_ones(folder, mirror, model, attack):
    tasks = {"sst2": SuiteTask(limit=30), "cola": SuiteTask(metric="mcc", limit=30), "winogrande": SuiteTask(limit=10)}
    clean = Evaluator(Suite(name="s", tasks=tasks), folder, datasets=str(mirror))
    hit = Evaluator(Suite(name="s", tasks=tasks, attack=attack), folder, datasets=str(mirror))
    again = Evaluator(Suite(name="s", tasks=tasks, attack=attack), folder, datasets=str(mirror))
    for a, b, c in zip(clean.tasks, hit.tasks, again.tasks):
        asked, attacked = ([r.args for rs in t.leaves[0].instances for r in rs] for t in (a, b))
        assert sum(x != y for x, y in zip(asked, attacked)) > 0.9 * len(asked)
        assert [x[1] for x in asked] == [y[1] for y in attacked]
        assert attacked == [r.args for rs in c.leaves[0].instances for r in rs]
    rows = drops(
        clean.evaluate(model).documents, hit.evaluate(model).documents, {"sst2": "acc", "cola": "mcc"}, resamples=200
    )
    assert [r.task for r in rows] == ["sst2", "cola"]
    assert all(r.n == 30 and r.rate == pytest.approx((r.clean - r.attacked) / r.clean) for r in rows)


def test_drop_rate_and_interval_of_known_scores():
    rng = np.random.default_rng(0)
    clean = (rng.random(4000) < 0.8).astype(float)
    attacked = clean * (rng.random(4000) < 0.75)  # a quarter of what was right is lost
    tables = [document_table([("t", str(i), "acc", v) for i, v in enumerate(x)]) for x in (clean, attacked)]
    (drop,) = drops(*tables, {"t": "acc"})
    assert drop.rate == pytest.approx(1 - attacked.sum() / clean.sum())
    # given that a document was right, losing it is a coin of 1/4: the rate's standard error follows
    width = 1.96 * np.sqrt(0.25 * 0.75 / clean.sum())
    assert (drop.low, drop.high) == pytest.approx((drop.rate - width, drop.rate + width), abs=0.2 * width)
    with pytest.raises(ValueError, match="same documents"):
        drops(tables[0], tables[1].slice(1), {"t": "acc"})
