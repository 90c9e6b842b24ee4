"""Attacks that search the instruction: the strongest edit within their rules, scored as lm-eval scores that prompt."""

import itertools
import json
import re
from random import Random

import pytest
import yaml

from conf.schema import Suite, SuiteTask
from pipelines.evaluate import suite_fingerprint
from pipelines.evaluate.attacks import edits
from pipelines.evaluate.attacks.instruction import BREAK, HOLE, PHRASES, Instruction, strongest
from pipelines.evaluate.evaluator import Evaluator
from tests.pipelines.evaluate.test_kinds import run_lm_eval

TEXTS = [f"Please classify the sentence.\nSentence: {text}\nAnswer with good or bad:" for text in ("it rains", "it is")]


def test_an_instruction_is_what_all_prompts_share_in_whole_words():
    found = Instruction.of(TEXTS, "About reviews.\n\n")
    assert found.before == "Please classify the sentence.\nSentence: it "
    assert (found.behind, found.description) == ("\nAnswer with good or bad:", "About reviews.\n\n")
    shot = f"About reviews.\n\n{TEXTS[1]} good\n\n"
    attacked = f"Abuot reviews.\n\n{BREAK}Plese classify the sentence.\nSentence: it {HOLE}\nAnswer true:"
    put = found.put(attacked, shot + TEXTS[0], TEXTS[0])
    assert put == f"Abuot reviews.\n\n{TEXTS[1]} good\n\nPlese classify the sentence.\nSentence: it rains\nAnswer true:"
    with pytest.raises(ValueError, match="does not hold"):
        found.put(attacked, shot, TEXTS[0])
    for texts in (TEXTS[:1], ["It rains.", "He came."], ["12 + 3", "12 + 4"]):
        with pytest.raises(Exception, match="no instruction in common"):
            Instruction.of(texts)


def losses(template):
    """A score to which every changed word costs its own; misspelt, not deleted, letters cost most."""
    cost = {"Please": 0.05, "classify": 0.3, "sentence": 0.1, "Answer": 0.0, "Sentence": -0.2, "good": 9, "the": 9}
    words = re.findall(r"\w+", template)
    left = 1 - sum(value for word, value in cost.items() if word not in words)
    return left - 0.001 * (sum(map(ord, template)) % 7)


def test_deepwordbug_finds_what_trying_all_edits_finds():
    """Word by word the costs add up (but for the last digit), so that greedy search finds the strongest of all."""
    template, asked = Instruction.of(TEXTS).template, []

    def score(templates):
        asked.extend(templates)
        return [losses(one) for one in templates]

    found, before, after = strongest("deepwordbug", template, {"good", "bad"}, score, "1")
    assert (before, after) == (losses(template), losses(found))
    assert asked[0] == template
    importance = [re.sub(r"\[UNK\]", "", one) for one in asked[1:] if "[UNK]" in one]
    assert len(importance) == len({*importance}) == 5  # Please, classify, sentence, Sentence, Answer
    words = re.findall(r"\w+", template)
    changed = [(a, b) for a, b in zip(words, re.findall(r"\w+", found), strict=True) if a != b]
    assert {a for a, _ in changed} >= {"Please", "classify", "sentence"}
    assert {a for a, _ in changed} <= {"Please", "classify", "sentence", "Answer"}  # of Sentence it would gain
    for word, other in changed:
        at = next(m.start() for m in re.finditer(r"\w+", template) if m.group() == word)
        assert other in {edits.misspelt(word, Random(f"1 {at} {edit}"), edit) for edit in edits.EDITS}
    tried = {w: [w, *(o for t in asked for o in re.findall(r"\w+", t)[words.index(w) :][:1])] for w, _ in changed}
    every = [
        losses(_with(template, dict(zip(tried, choice)))) for choice in itertools.product(*map(set, tried.values()))
    ]
    assert after <= min(every) + 0.007
    assert strongest("deepwordbug", template, {"good", "bad"}, score, "1")[0] == found


def _with(template, changed):
    return re.sub(r"\w+", lambda m: changed.get(m.group(), m.group()), template)


def test_stresstest_takes_the_strongest_of_its_sentences_even_where_none_hurts():
    template = Instruction.of(TEXTS).template
    found, before, after = strongest("stresstest", template, set(), lambda ts: [float(len(t)) for t in ts], "")
    assert found.endswith(f"Answer with good or bad{PHRASES[0]}:")  # the shortest
    assert (before, after) == (len(template), len(found))
    assert PHRASES[2] in strongest("stresstest", template, set(), lambda ts: [-float(len(t)) for t in ts], "")[0]


def test_bertattack_takes_the_strongest_of_the_masked_models_words(tmp_path):
    from tests.pipelines.evaluate.test_attacks import masked_model

    words = [word for word in masked_model(tmp_path) if word.isalpha()]
    template = f"{BREAK}Is the film: {HOLE}\ngood or bad?"
    costs = {word: (3 * place) % 7 for place, word in enumerate(words)} | {"film": 5}

    def score(templates):
        return [float(next((costs[word] for word in re.findall(r"\w+", one) if word in costs), 6)) for one in templates]

    found, before, after = strongest(f"bertattack:{tmp_path}", template, {"good", "bad"}, score, "")
    tried = {word: template.replace("film", word) for word in words if word != "film"}
    assert (before, after) == (5, min(score(list(tried.values()))))
    assert found in [one for one in tried.values() if score([one])[0] == after]
    spared = {"good", "bad", *(word for word in tried if costs[word] < 5)}
    assert strongest(f"bertattack:{tmp_path}", template, spared, score, "") == (template, 5, 5)  # none is stronger


@pytest.fixture(scope="module")
def worded(tmp_path_factory):
    """A choice and a written answer whose instructions are words that the tiny tokenizer knows."""
    out, draw = tmp_path_factory.mktemp("worded"), Random(0)
    rows = [{"q": f"{draw.randint(1, 9)} {draw.randint(1, 9)}", "gold": draw.randrange(4)} for _ in range(60)]
    (out / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {split: str(out / "rows.jsonl") for split in ("train", "test")}
    common = {"dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test"}
    common |= {"training_split": "train", "doc_to_choice": ["1", "2", "3", "4"], "doc_to_target": "gold"}
    common["doc_to_text"] = "add most {{q}} count back close ="
    choice = {"output_type": "multiple_choice", "metric_list": [{"metric": "acc"}]}
    written = {"output_type": "generate_until", "generation_kwargs": {"until": ["\n"], "max_gen_toks": 2}}
    written |= {"metric_list": [{"metric": "exact_match"}], "description": "top odd\n"}
    for name, own in (("picks", choice), ("says", written)):
        (out / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **common, **own}))
    return out


def suite_of(worded):
    tasks = {"picks": SuiteTask(num_fewshot=0), "says": SuiteTask(metric="exact_match", num_fewshot=2, limit=30)}
    given = {"batch_size": 8, "attack": "deepwordbug", "attack_documents": 25, "include_path": str(worded)}
    return Suite(name="s", tasks=tasks, **given)


def test_an_attacked_prompt_scores_as_in_lm_eval(worded, folder, model, tmp_path, monkeypatch):
    """The instruction that was found, written into a task file of its own, gives lm-eval the same documents."""
    ours = Evaluator(suite_of(worded), folder).evaluate(model)
    found = ours.versions["attack"]["picks"]
    assert found["instruction"] == "add most {document} count back close ="
    assert found["score"][1] < found["score"][0]
    assert (found["documents"], found["queries"]) == (25, 1 + 5 + 5 * 4)
    config = yaml.safe_load((worded / "picks.yaml").read_text())
    config |= {"task": "attacked", "doc_to_text": found["attacked"].replace("{document}", "{{q}}")}
    (tmp_path / "attacked.yaml").write_text(yaml.safe_dump(config))
    theirs = run_lm_eval(folder, tmp_path, ["attacked"], None, monkeypatch, num_fewshot=0)
    said = {str(s["doc_id"]): s["acc"] for s in theirs["samples"]["attacked"]}
    rows = ours.documents.to_pylist()
    assert {r["document"]: r["value"] for r in rows if r["task"] == "picks"} == said
    assert ours.tasks["picks"].value == theirs["results"]["attacked"]["acc,none"]
    assert ours.versions["attack"]["says"]["instruction"].startswith("top odd\nadd most {document}")


def test_every_model_has_an_attack_of_its_own_and_the_same_one_again(worded, folder, model):
    import torch

    evaluator = Evaluator(suite_of(worded), folder)
    first = evaluator.evaluate(model)
    with torch.no_grad():
        model.lm_head.weight.copy_(torch.randn(model.lm_head.weight.shape, generator=torch.Generator().manual_seed(1)))
    second = evaluator.evaluate(model)
    assert second.versions["attack"] != first.versions["attack"]
    fresh = Evaluator(suite_of(worded), folder).evaluate(model)
    assert (fresh.documents, fresh.versions) == (second.documents, second.versions)
    assert first.versions["tasks"] == second.versions["tasks"]  # the clean prompts


def test_written_answers_are_attacked_and_tasks_without_an_instruction_say_so(folder, mirror, model):
    tasks = {"sst2": SuiteTask(task="promptbench_sst2", limit=6), "hellaswag": SuiteTask(metric="acc", limit=4)}
    suite = Suite(name="s", tasks=tasks, attack="stresstest", attack_documents=4, batch_size=4)
    scored = Evaluator(suite, folder, datasets=str(mirror)).evaluate(model)
    attack = scored.versions["attack"]["promptbench_sst2"]
    assert any(attack["attacked"].endswith(f"Answer{phrase}:") for phrase in PHRASES)
    assert attack["queries"] == 4
    assert scored.tasks["sst2"].n == 6
    assert "no instruction in common" in scored.errors["hellaswag"]


def test_keys_of_document_edits_stay_and_searches_have_others():
    def of(attack, **changed):
        return suite_fingerprint(Suite(name="s", tasks={"add": SuiteTask(skill="add")}, attack=attack, **changed))

    assert of("deepwordbug_document")["attack"] == "deepwordbug"  # as before there was a search
    assert "attack_search" not in of("deepwordbug_document")
    assert "attack_search" not in of("none")
    assert of("none", attack_documents=7) == of("none")
    assert of("deepwordbug") != of("deepwordbug_document")
    assert of("deepwordbug", attack_documents=7) != of("deepwordbug")
