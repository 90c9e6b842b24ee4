"""Every request, letter for letter, against lm-eval's own evaluation with a model that only listens."""

import json
from pathlib import Path

import datasets.config
import huggingface_hub.constants
import lm_eval
import pytest
import yaml
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from conf.schema import Suite, SuiteTask
from pipelines.evaluate.evaluator import Evaluator
from pipelines.evaluate.lookup import task_index

DATA = {
    "allenai/ai2_arc": {"ARC-Easy": "arc_easy"},
    "Rowan/hellaswag": {"default": "hellaswag"},
    "aps/super_glue": {"boolq": "boolq"},
    "allenai/winogrande": {"winogrande_xl": "winogrande"},
    "nyu-mll/glue": {"cola": "cola"},
    "truthfulqa/truthful_qa": {"multiple_choice": "truthfulqa_mc1"},
    "tau/commonsense_qa": {"default": "commonsense_qa"},
    "allenai/openbookqa": {"main": "openbookqa"},
    "openlifescienceai/medmcqa": {"default": "medmcqa"},
    "cais/mmlu": {"anatomy": "mmlu/anatomy"},
}
ROWS = 6
"""Documents of each split that are taken."""
OTHER = {"arc_easy": "validation", "openbookqa": "validation", "mmlu_anatomy": "dev", "cola": "train"}
"""A split that a task does not score of itself."""
OWN = {"medmcqa": "test", "truthfulqa_mc1": "validation", "winogrande": "validation", "hellaswag": "validation"}
OWN |= {"boolq": "validation", "commonsense_qa": "validation"}
"""The split that it scores anyway, by name."""


class Listener(LM):
    """Answers alike to everything."""

    def loglikelihood(self, requests):
        return [(-1.0, False) for _ in requests]

    def loglikelihood_rolling(self, requests):
        return [-1.0 for _ in requests]

    def generate_until(self, requests):
        return ["" for _ in requests]


def write(folder, configs):
    """A data set as the hub has it: files by configuration and split."""
    listed = []
    for config, splits in configs.items():
        (folder / config).mkdir(parents=True, exist_ok=True)
        for split, rows in splits.items():
            (folder / config / f"{split}.jsonl").write_text("".join(rows))
        files = [{"split": split, "path": f"{config}/{split}.jsonl"} for split in splits]
        listed.append({"config_name": config, "data_files": files})
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': listed})}---\n")


@pytest.fixture(scope="module")
def hub(shared, tmp_path_factory):
    """A mirror with the first documents of real data sets, and made-up ones whose options lm-eval shuffles."""
    out = tmp_path_factory.mktemp("hub")
    for name, configs in DATA.items():
        folders = {config: sorted((shared / "data" / folder).glob("*.jsonl")) for config, folder in configs.items()}
        write(
            out / name,
            {c: {f.stem: f.read_text().splitlines(True)[:ROWS] for f in files} for c, files in folders.items()},
        )
    made = {}
    for config, count in (("gpqa_main", 40), ("gpqa_diamond", 20), ("gpqa_extended", 30)):
        rows = [{"Question": f"{config} {i}", "Correct Answer": f"right {i}"} for i in range(count)]
        wrong = [{f"Incorrect Answer {j}": f"wrong {i} {j}" for j in (1, 2, 3)} for i in range(count)]
        made[config] = {"train": [json.dumps({**row, **more}) + "\n" for row, more in zip(rows, wrong)]}
    write(out / "Idavidrein" / "gpqa", made)
    return out


def theirs(pages, where, tmp_path, monkeypatch, **settings):
    """Arguments of lm-eval's requests, by task, in order; ``pages`` are tasks with what is put over their files."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "-".join(["cache", *pages])))
    monkeypatch.chdir(where)
    index = task_index()
    include = tmp_path / "pages"
    include.mkdir(exist_ok=True)
    for name, page in pages.items():
        file = index.tasks.get(name)
        if file is None:
            include = Path(index.groups[name]).parent
        else:
            (include / f"{name}.yaml").write_text(yaml.safe_dump({"include": file, "task": name, **page}))
    manager = TaskManager(include_defaults=False, include_path=str(include))
    out = lm_eval.simple_evaluate(
        model=Listener(), tasks=list(pages), bootstrap_iters=0, task_manager=manager, **settings
    )
    return {task: [s["arguments"] for s in rows] for task, rows in out["samples"].items()}


@pytest.fixture(autouse=True)
def no_tokens(monkeypatch):
    """Prompts are compared as text."""
    monkeypatch.setattr("pipelines.evaluate.evaluator.Scorer", lambda *made: None)


def ours(tasks, hub, folder, **settings):
    suite = Suite(name="s", tasks=tasks, **settings)
    evaluator = Evaluator(suite, folder, datasets=str(hub))
    assert evaluator.problems == {}
    leaves = [leaf for task in evaluator.tasks for leaf in task.leaves]
    return leaves, {leaf.name: [[r.args for r in requests] for requests in leaf.instances] for leaf in leaves}


NAMES = ["arc_easy", "hellaswag", "boolq", "winogrande", "cola", "truthfulqa_mc1", "commonsense_qa", "openbookqa"]
NAMES += ["medmcqa", "mmlu_anatomy"]


@pytest.mark.parametrize("shots", [0, 3])
def test_prompts_are_lm_evals(shots, hub, folder, tmp_path, monkeypatch):
    page = {"num_fewshot": shots}
    plain = theirs(dict.fromkeys(NAMES, page), hub, tmp_path, monkeypatch)
    for splits in ({}, OWN) if shots else ({},):
        tasks = {name: SuiteTask(num_fewshot=shots, split=splits.get(name)) for name in NAMES}
        assert ours(tasks, hub, folder)[1] == plain
    first = ours(tasks, hub, folder, limit=3, sample="first")[1]
    assert first == {name: prompts[:3] for name, prompts in plain.items()}
    leaves, chosen = ours(tasks, hub, folder, limit=3)
    samples = {leaf.name: leaf.ids for leaf in leaves}
    assert chosen == theirs(dict.fromkeys(NAMES, page), hub, tmp_path, monkeypatch, samples=samples)


def test_prompts_of_another_split_are_lm_evals(hub, folder, tmp_path, monkeypatch):
    pages = {name: {"num_fewshot": 3, "test_split": split} for name, split in OTHER.items()}
    tasks = {name: SuiteTask(num_fewshot=3, split=split, limit=0.3) for name, split in OTHER.items()}
    assert ours(tasks, hub, folder, sample="first")[1] == theirs(pages, hub, tmp_path, monkeypatch, limit=0.3)


def test_what_task_code_draws_is_what_lm_eval_draws(hub, folder, tmp_path, monkeypatch):
    spec = SuiteTask(metric="acc_norm")
    for name in ("leaderboard_gpqa", "leaderboard_gpqa_extended"):
        want = theirs({name: {}}, hub, tmp_path, monkeypatch)
        for tasks in ({name: spec}, {"hellaswag": SuiteTask(limit=5), "leaderboard_gpqa_main": spec, name: spec}):
            got = ours(tasks, hub, folder)[1]
            assert {leaf: got.get(f"{name}/{leaf}", got[leaf]) for leaf in want} == want
    seeds = [ours({"leaderboard_gpqa_main": spec}, hub, folder, seed=seed)[1] for seed in (1, 2, 1)]
    assert seeds[0] == seeds[2] != seeds[1]


def test_data_are_what_the_files_hold_now(folder, tmp_path):
    def questions(mirror, count):
        rows = [json.dumps({"sentence": f"{mirror} {i}", "label": i % 2}) + "\n" for i in range(count)]
        write(tmp_path / mirror / "nyu-mll" / "glue", {"cola": {"train": rows, "validation": rows}})
        ((_, prompts),) = ours({"cola": SuiteTask()}, tmp_path / mirror, folder)[1].items()
        return [document[0][0].partition("\n")[0] for document in prompts]

    for mirror, count in (("one", 5), ("two", 5), ("one", 7)):
        assert questions(mirror, count) == [f"{mirror} {i}" for i in range(count)]
