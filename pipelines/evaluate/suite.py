"""What can be said of a suite before any model or lm-eval is loaded: what fixes its numbers, and what is wrong."""

from __future__ import annotations

import glob
import hashlib
import importlib.metadata
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

from conf.errors import nearest
from conf.schema import Judge, Suite, SuiteTask
from pipelines.checkpoints.content import data_hash, folder_hash
from pipelines.evaluate.attacks import DOCUMENT, attack_problem, parts, searches
from pipelines.evaluate.generation import check_generation, generation
from pipelines.evaluate.image_suite import check_images, image_fingerprint, of_images
from pipelines.evaluate.lookup import (
    OWN_TASKS,
    Definition,
    TaskIndex,
    groups,
    leaves,
    lm_eval_version,
    read_task_file,
    task_index,
)
from pipelines.evaluate.sandbox import refusal

DTYPES = ("float32", "float16", "bfloat16")
"""Dtypes that a model can be scored in."""

EVALUATION_VERSION = 1
"""Raised when the same suite would give other numbers."""

TASKS_VERSION = 2
"""Raised when lm-eval's tasks would give other numbers; the built-in skills have a version of their own."""

ATTACK_VERSION = 1
"""Raised when a searched attack would find other instructions; edits of documents go with EVALUATION_VERSION."""

ATTENTIONS = {"sdpa", "eager", "flex_attention", *(f"flash_attention_{version}" for version in (2, 3, 4))}
"""transformers' own kinds of attention; others are kernels of the hub (OWNER/NAME) or paged (paged|sdpa)."""

QUANTIZATIONS = ("8bit", "4bit")
"""How bitsandbytes may quantise a model that is scored."""

SAMPLES = ("seeded", "first")
"""Which documents a limit takes."""


OPTIONS = (
    "system_instruction",
    "enable_thinking",
    "think_end_token",
    "attn_implementation",
    "quantization",
    "predict_only",
    "generate_with",
    "batch_tokens",
)
"""Settings that are part of a key only where they are not the usual ones."""


def suite_fingerprint(suite: Suite, datasets: str | None = None, folder: str | Path | None = None) -> dict[str, Any]:
    """What fixes the numbers of a suite, as plain JSON: part of every trial's key.

    Tasks with metric, few-shots, limit and split; where their definitions and data come from (files by content: data
    of a mirror, task files that do not come with lm-eval); lm-eval's and transformers' versions; precision, batch
    size and seed. ``folder`` is a further folder of task files.
    """
    if of_images(suite):
        return image_fingerprint(suite, datasets)
    index = task_index(OWN_TASKS, suite.include_path, folder)
    attacker = parts(suite.attack)[1]
    search = {"attack_search": [ATTACK_VERSION, suite.attack_documents]} if searches(suite.attack) else {}
    return {
        "version": EVALUATION_VERSION,
        "lm_eval": lm_eval_version(),
        "transformers": importlib.metadata.version("transformers").split(".")[0],
        "tasks": {key: _task_fingerprint(key, spec, suite, index, datasets) for key, spec in suite.tasks.items()},
        "batch_size": suite.batch_size,
        "dtype": suite.dtype,
        "chat_template": suite.chat_template,
        "max_length": suite.max_length,
        "share_prefix": _shared(suite),
        "attack": suite.attack.replace(DOCUMENT, ""),  # as edits of documents were called before there was a search
        **search,
        **({"options": options} if (options := _options(suite)) else {}),
        # an attack that asks a model: a version of its own, and a local model's content
        **({"attack_model": [2, folder_hash(Path(attacker).expanduser())]} if attacker else {}),
        "seed": suite.seed,
    }


def _shared(suite: Suite) -> bool | str:
    """How prefixes are shared: in 16 bits not at all unless that is asked for."""
    if suite.dtype == "float32":
        return bool(suite.share_prefix)
    return "always" if suite.share_prefix == "always" else False


def _options(suite: Suite) -> dict[str, Any]:
    chosen = {name: getattr(suite, name) for name in OPTIONS if getattr(suite, name) != getattr(Suite, name)}
    if suite.generate_with == "vllm" and importlib.util.find_spec("vllm") is not None:
        chosen["vllm"] = importlib.metadata.version("vllm")
    several_turns = not suite.chat_template or suite.fewshot_as_multiturn
    return chosen if several_turns else {**chosen, "fewshot_as_multiturn": False}


def check_suite(suite: Suite, datasets: str | None = None, online: bool = True) -> list[str]:
    """Problems that can be seen without loading a model or lm-eval, one line each; empty when there are none."""
    problems = _check_settings(suite)
    if datasets is not None and not Path(datasets).expanduser().is_dir():
        problems.append(f"the mirror of data sets {datasets} is no folder")
        datasets = None
    if suite.include_path is not None and not Path(suite.include_path).expanduser().is_dir():
        return [*problems, f"include_path {suite.include_path} is no folder"]
    if of_images(suite):
        return problems + check_images(suite, datasets)
    index = task_index(OWN_TASKS, suite.include_path)
    definitions: dict[str, list[Definition]] = {}
    for key, spec in suite.tasks.items():
        name = spec.task or key
        if spec.skill is not None:
            from pipelines.tiny.skills import SKILLS

            definitions[key] = []
            if spec.skill not in SKILLS:
                hint = nearest(spec.skill, SKILLS)
                problems.append(f"task {key}: no built-in skill is called {spec.skill!r}; {hint}")
        elif name not in index:
            problems.append(f"task {key}: lm-eval has no task {name!r}; {nearest(name, index.names())}")
        else:
            found = definitions[key] = leaves(name, index)
            problems += _check_task(key, spec, suite, found)
            absent = [f"task {key}: {problem}" for problem in _check_data(found, datasets, online)]
            problems += absent or _check_split(key, spec.split or suite.split, found, datasets)
    return problems + check_generation(suite, definitions)


def _check_settings(suite: Suite) -> list[str]:
    problems = [] if suite.tasks else ["the suite has no tasks (+suite.tasks.NAME.metric=acc adds one)"]
    if problem := attack_problem(suite.attack):
        problems.append(problem)
    if suite.dtype not in DTYPES:
        problems.append(f"no dtype is called {suite.dtype!r}; {nearest(suite.dtype, DTYPES)}")
    if suite.linearised not in ("auto", True, False):
        problems.append(f"linearised is {suite.linearised!r}; it has to be auto, true or false")
    if suite.sample not in SAMPLES:
        problems.append(f"no choice of documents is called {suite.sample!r}; {nearest(suite.sample, SAMPLES)}")
    if suite.share_prefix not in (True, False, "always"):
        problems.append(f"share_prefix is {suite.share_prefix}; it has to be true, false or always")
    numbers = {name: getattr(suite, name) for name in ("batch_size", "max_length", "attack_documents", "repeats")}
    numbers |= {f"tasks.{key}.repeats": spec.repeats for key, spec in suite.tasks.items()}
    if not isinstance(suite.chat_template, (bool, str)):
        problems.append(f"chat_template is {suite.chat_template}; it has to be true, false or a template's name")
    problems += _check_quantization(suite)
    if (attention := suite.attn_implementation) and not ATTENTIONS & {attention} and not set("/|") & set(attention):
        problems.append(f"no attn_implementation is called {attention!r}; {nearest(attention, ATTENTIONS)}")
    problems += (f"{name} is {n}; it has to be 1 or more" for name, n in numbers.items() if n is not None and n < 1)
    if suite.samples not in ("all", "none") and not (isinstance(suite.samples, int) and suite.samples >= 0):
        problems.append(f"samples is {suite.samples}; it has to be all, none or a number of documents")
    if suite.enable_thinking and suite.think_end_token is None:
        problems.append("enable_thinking wants think_end_token: what ends the model's thinking, such as </think>")
    limits = {"limit": suite.limit, **{f"tasks.{key}.limit": spec.limit for key, spec in suite.tasks.items()}}
    rule = "it has to be a number of documents, or a share of them below 1"
    problems += (f"{name} is {n}; {rule}" for name, n in limits.items() if not _is_limit(n))
    shots = {key: spec.num_fewshot or 0 for key, spec in suite.tasks.items()}
    problems += (f"tasks.{key}.num_fewshot is {n}; it has to be 0 or more" for key, n in shots.items() if n < 0)
    return problems


def _check_quantization(suite: Suite) -> list[str]:
    if suite.quantization is None:
        return []
    if suite.quantization not in QUANTIZATIONS:
        return [f"no quantization is called {suite.quantization!r}; {nearest(suite.quantization, QUANTIZATIONS)}"]
    if suite.linearised is True:
        return ["a linearised model cannot be quantised; leave suite.quantization or suite.linearised out"]
    absent = [name for name in ("bitsandbytes", "accelerate") if importlib.util.find_spec(name) is None]
    return [f"quantization={suite.quantization} needs the package {name}: pip install {name}" for name in absent]


def _is_limit(n: Any) -> bool:
    number = isinstance(n, (int, float)) and not isinstance(n, bool)
    return n is None or (number and n > 0 and (n < 1 or n == int(n)))


def _check_task(key: str, spec: SuiteTask, suite: Suite, found: list[Definition]) -> list[str]:
    problems = []
    refusals = (refusal(leaf.own, suite.run_code, suite.isolate_code) for leaf in found if leaf.unsafe)
    if problem := next(filter(None, refusals), None):
        problems.append(f"task {key} {problem}")
    for leaf in found:
        lacks = f"task {key}: {leaf.name} has no"
        if leaf.metrics is not None and spec.metric not in leaf.metrics:
            problems.append(f"{lacks} metric {spec.metric!r}; {nearest(spec.metric, leaf.metrics)}")
            break
        if spec.filter not in leaf.filters:
            problems.append(f"{lacks} filter {spec.filter!r}; {nearest(spec.filter, leaf.filters)}")
            break
    if any(leaf.judged for leaf in found):
        problems += _check_judge(suite.judge)
    for package in sorted({package for leaf in found for package in leaf.requires}):
        if importlib.util.find_spec(package) is None:
            problems.append(f"task {key} needs the package {package}, which is not installed")
    return problems


def _check_judge(judge: Judge) -> list[str]:
    if judge.address is not None and judge.model is None:
        return ["judge.address wants judge.model: the name under which the judge is served"]
    spec = importlib.util.find_spec("alpaca_eval")
    if spec is None or spec.origin is None:
        return []
    known = Path(spec.origin).parent / "evaluators_configs"
    if (known / Path(judge.annotator).expanduser() / "configs.yaml").is_file():
        return []
    names = [path.parent.name for path in known.glob("*/configs.yaml")]
    return [f"alpaca_eval has no annotator {judge.annotator!r}; {nearest(judge.annotator, names)}"]


def _check_data(found: list[Definition], datasets: str | None, online: bool) -> list[str]:
    absent = sorted({name for leaf in found for name in leaf.files if _content_hash(name) is None})
    problems = [f"there is no {name} to read its data from" for name in absent]
    by_hand = {leaf.dataset: leaf.local for leaf in found if leaf.local is not None}
    for dataset in sorted({leaf.dataset for leaf in found if leaf.dataset is not None}):
        if datasets is None and dataset in by_hand:
            problems.append(f"its data are on no hub; put them into MIRROR/{by_hand[dataset]}, datasets=MIRROR")
        elif datasets is not None and not (Path(datasets).expanduser() / dataset).exists():
            problems.append(f"the mirror {datasets} has no data set {dataset}")
        elif datasets is None and not online and not _cached(dataset):
            problems.append(f"data set {dataset} is not in the local cache, and the hub may not be asked")
    return problems


def _check_split(key: str, split: str | None, found: list[Definition], datasets: str | None) -> list[str]:
    """A split that a task's data lack; data sets are asked for theirs only where the task file does not name it."""
    asked: dict[str, Definition] = {}
    for leaf in found if split is not None else ():
        if leaf.split(split) not in leaf.splits:
            asked.setdefault(leaf.dataset or leaf.name, leaf)
    for leaf in asked.values():
        known = _data_splits(leaf, datasets)
        if known and (wanted := str(leaf.split(split))) not in known:
            return [f"task {key}: {leaf.name} has no split {wanted!r}; {nearest(wanted, known)}"]
    return []


def _data_splits(leaf: Definition, datasets: str | None) -> list[str]:
    """Names of the splits of a task's data, from the mirror or the hub; none where they cannot be told."""
    files = (leaf.config.get("dataset_kwargs") or {}).get("data_files")
    if files is not None:
        return list(files) if isinstance(files, dict) else ["train"]
    if leaf.dataset is None:
        return []
    from datasets import get_dataset_split_names

    path = str(Path(datasets).expanduser().resolve() / str(leaf.dataset)) if datasets is not None else leaf.dataset
    try:
        return list(get_dataset_split_names(path, leaf.config.get("dataset_name")))
    except Exception:  # no connection, a script, a form of its own: running it will tell
        return []


def _cached(dataset: str) -> bool:
    """Whether the hub's libraries have a copy of a data set on this machine."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub") / f"datasets--{dataset.replace('/', '--')}"
    built = Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets") / dataset.replace("/", "___")
    return Path(dataset).exists() or hub.is_dir() or built.is_dir()


def _task_fingerprint(
    key: str, spec: SuiteTask, suite: Suite, index: TaskIndex, datasets: str | None
) -> dict[str, Any]:
    limit = spec.limit if spec.limit is not None else suite.limit
    common = {
        "metric": spec.metric,
        "filter": spec.filter,
        "num_fewshot": spec.num_fewshot,
        "limit": limit,
        "split": spec.split or suite.split,
        **({"sample": suite.sample} if limit is not None and suite.sample != SAMPLES[0] else {}),
        **({"documents": sorted(set(spec.documents))} if spec.documents is not None else {}),
        **generation(spec, suite),
    }
    if spec.skill is not None:
        from pipelines.tiny.skills import VERSION

        return {**common, "skill": spec.skill, "version": VERSION}
    name = spec.task or key
    found = leaves(name, index) if name in index else []
    above = [Definition(group, path, read_task_file(path)) for group, path in groups(name, index).items()]
    own = {part.name: _definition_hash(part) for part in (*above, *found) if not _stock(part.path)}
    data = data_hashes(found, datasets)
    if any(leaf.judged for leaf in found):  # the address serves the model that is named
        judge, folder = suite.judge, Path(suite.judge.annotator).expanduser()
        common["judge"] = [judge.annotator, judge.model, folder_hash(folder) if folder.is_absolute() else None]
    return {**common, "task": name, "version": TASKS_VERSION, "definitions": own, "data": data}


def data_hashes(found: list[Definition], datasets: str | None) -> dict[str, str | None]:
    """Hashes of what tasks read on this machine, by name; "hub" for a data set that comes from there."""
    data = {file: _content_hash(file) for leaf in found for file in leaf.files}
    for name in {leaf.dataset for leaf in found if leaf.dataset is not None}:
        local = Path(datasets or "").expanduser() / name
        here = datasets is not None or local.exists()  # load_dataset prefers a folder to the hub
        data[name] = folder_hash(local) if here else "hub"
    return data


def _definition_hash(part: Definition) -> str:
    """Hash of a task file that does not come with lm-eval, and of the Python files that it may run."""
    code = sorted(data_hash(path) for path in part.code if not _stock(path))
    text = json.dumps([part.config, code], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _stock(path: Path) -> bool:
    return "lm_eval" in path.parts and "site-packages" in path.parts


def _content_hash(name: str) -> str | None:
    """Hash of the files and folders that a name or a pattern stands for; None where there are none."""
    found = [folder_hash(Path(path)) for path in sorted(glob.glob(name, recursive=True))]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16] if found else None
