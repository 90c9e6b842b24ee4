import hashlib
import statistics

import pytest

from pipelines.tiny import skills
from pipelines.tiny.generators import CLASSES, SYMBOLS
from pipelines.tiny.skills import SKILLS, SPLITS, items, split_of, training_rows


def naive(skill: str, words: list[str]) -> str:
    """The answer to a prompt's words, told in plain Python."""
    numbers = [int(w) for w in words if w.isdigit()]
    letters = [w for w in words if w.isalpha()]
    if skill == "close":
        stack = []
        for word in words:
            stack.append(word) if word in "([{<" else stack.pop()
        return {"(": ")", "[": "]", "{": "}", "<": ">"}[stack[-1]]
    if skill == "odd":
        kinds = [next(k for k, kind in enumerate(CLASSES) if w in kind) for w in words]
        return words[kinds.index(next(k for k in kinds if kinds.count(k) == 1))]
    if skill == "seq":
        period = next(p for p in (2, 3, 4) if all(words[i] == words[i - p] for i in range(p, len(words))))
        return words[len(words) - period]
    answers = {
        "add": lambda: str(sum(numbers)),
        "dist": lambda: str(abs(numbers[0] - numbers[1])),
        "med": lambda: str(statistics.median(numbers)),
        "second": lambda: sorted(letters)[1],
        "count": lambda: str(letters.count("a")),
        "at": lambda: letters[numbers[0] - 1],
        "back": lambda: letters[-numbers[0]],
        "most": lambda: statistics.mode(letters),
        "top": lambda: str(max(numbers)),
    }
    return answers[skill]()


def test_there_are_at_least_twelve_skills():
    assert len(SKILLS) >= 12


@pytest.mark.parametrize("skill", SKILLS)
@pytest.mark.parametrize("split", SPLITS)
def test_answers_are_right_and_options_are_of_one_kind(skill, split):
    for item in items(skill, split, 200):
        name, *words, equals = item.prompt.split()
        assert (name, equals) == (skill, "=")
        assert item.answer == naive(skill, words) == item.choices[item.target]
        assert len(set(item.choices)) == 4
        assert set(item.choices) <= set(SYMBOLS)
        assert len({choice.isdigit() for choice in item.choices}) == len({c.isalpha() for c in item.choices}) == 1


@pytest.mark.parametrize("skill", SKILLS)
def test_splits_share_no_prompt(skill):
    seen = {split: {i.prompt for seed in (0, 5) for i in items(skill, split, 400, seed)} for split in SPLITS}
    for split, prompts in seen.items():
        assert {split_of(prompt) for prompt in prompts} == {split}
    assert len(set.union(*seen.values())) == sum(map(len, seen.values()))


@pytest.mark.parametrize("skill", SKILLS)
def test_prompts_are_distinct_and_there_are_enough_of_them(skill):
    scored = items(skill, "test", 300)
    assert len({i.prompt for i in scored}) == len(scored) == 300
    assert len(items(skill, "train")) >= 450


@pytest.mark.parametrize("skill", SKILLS)
def test_every_place_holds_the_answer_equally_often(skill):
    places = [item.target for item in items(skill, "test", 340)]
    for place in range(4):  # 340 draws at 1/4: mean 85, standard deviation 8
        assert 50 < places.count(place) < 120


@pytest.mark.parametrize("skill", SKILLS)
def test_the_same_arguments_give_the_same_items_and_another_seed_others(skill):
    once = items(skill, "validation", 50, seed=3)
    skills._items.cache_clear()
    assert items(skill, "validation", 50, seed=3) == once
    assert items(skill, "validation", 20, seed=3) == once[:20]
    assert items(skill, "validation", 50, seed=4) != once


def test_items_do_not_change_without_a_new_version():

    text = "\n".join(f"{i.prompt} {i.choices} {i.target}" for s in SKILLS for i in items(s, "test", 50))
    assert (skills.VERSION, hashlib.sha256(text.encode()).hexdigest()[:16]) == (1, "9d263a8980c1b55c")


def test_training_rows_are_items_as_prompt_and_completion():
    rows, source = training_rows("add", n=30, seed=2), items("add", "train", 30, seed=2)
    assert rows == [{"prompt": i.prompt, "completion": f" {i.answer}"} for i in source]


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="unknown skill 'ad'"):
        items("ad", "test", 1)
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        items("add", "dev", 1)
