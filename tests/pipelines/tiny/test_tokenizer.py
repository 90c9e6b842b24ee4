import pytest
from transformers import AutoTokenizer

from pipelines.tiny.base import tokenizer
from pipelines.tiny.skills import SKILLS, items


@pytest.fixture(scope="module", params=["built", "loaded"])
def tokens(request, tmp_path_factory):
    built = tokenizer()
    if request.param == "built":
        return built
    folder = tmp_path_factory.mktemp("tokenizer")
    built.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("skill", SKILLS)
def test_a_word_is_a_token_and_decoding_gives_the_text_back(tokens, skill):
    for item in items(skill, "test", 50):
        text = f"{item.prompt} {item.answer}"
        ids = tokens(text)["input_ids"]
        assert len(ids) == len(text.split())
        assert tokens.unk_token_id not in ids
        assert tokens.decode(ids) == text


@pytest.mark.parametrize("skill", SKILLS)
def test_context_and_continuation_split_at_the_word_border(tokens, skill):
    item = items(skill, "test", 1)[0]
    for choice in item.choices:
        context, whole = tokens(item.prompt)["input_ids"], tokens(f"{item.prompt} {choice}")["input_ids"]
        assert whole[:-1] == context
        assert tokens.decode(whole[-1]) == choice


def test_special_tokens_are_distinct_and_never_added_by_themselves(tokens):
    special = {tokens.pad_token_id, tokens.bos_token_id, tokens.eos_token_id, tokens.unk_token_id}
    assert len(special) == 4
    assert not special & set(tokens("add 1 2 = 3")["input_ids"])
    assert sorted(tokens.get_vocab().values()) == list(range(len(tokens)))


def test_text_from_elsewhere_falls_apart_into_known_pieces(tokens):
    pieces = tokens.tokenize("Which (of these) is 98.6% correct?")
    assert "".join(pieces) == "which(ofthese)is98.6%correct?"
    assert tokens.unk_token not in pieces
    assert tokens.tokenize("naïve") == [tokens.unk_token]


def test_padding_is_masked(tokens):
    batch = tokens(["add 1 2 =", "top 1 2 3 4 ="], padding=True, return_tensors="pt")
    assert set(batch) == {"input_ids", "attention_mask"}
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 0, 0], [1] * 6]
    assert batch["input_ids"][0, 4:].tolist() == [tokens.pad_token_id] * 2
