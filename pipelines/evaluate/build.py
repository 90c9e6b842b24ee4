"""From a suite to lm-eval task objects: by stock name, from further task files, or from the built-in skills."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lm_eval.utils
from jinja2 import Environment
from jinja2.sandbox import SandboxedEnvironment
from lm_eval.api.group import Group
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.tasks._factory import TaskFactory
from lm_eval.tasks._index import Entry, Kind
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval.utils import handle_non_serializable, hash_string

from conf.errors import UserError, nearest
from conf.schema import Suite, SuiteTask
from pipelines.evaluate.generation import generation
from pipelines.evaluate.lookup import HUB_FILE, OWN_TASKS, PACKAGED, TaskIndex, leaves
from pipelines.evaluate.sandbox import refusal
from pipelines.evaluate.suite import data_hashes
from pipelines.process import data_cache


def _sandboxed(usual: Environment) -> Environment:
    """lm-eval's environment of templates, in which they reach no code: a task file may be a stranger's."""
    made = SandboxedEnvironment(undefined=usual.undefined, keep_trailing_newline=usual.keep_trailing_newline)
    slow = ("wordwrap", "urlize")  # hours on a long text
    made.filters = {name: apply for name, apply in usual.filters.items() if name not in slow}
    return made


lm_eval.utils.env = _sandboxed(lm_eval.utils.env)


@dataclass
class Leaf:
    """One lm-eval task: its documents' indices in the split, and the requests of each."""

    name: str
    task: Task
    total: int = 0
    ids: list[int] = field(default_factory=list)
    instances: list[list[Instance]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)

    def fingerprint(self) -> str:
        """Hash of the requests: data, prompts, few-shot examples and options."""
        digest = hashlib.sha256()
        for request in (request for requests in self.instances for request in requests):
            digest.update(repr(request.arguments).encode())
        return digest.hexdigest()[:16]

    @functools.cached_property
    def task_hash(self) -> str:
        """lm-eval's hash of a task's documents, prompts and targets."""
        parts: list[str] = []
        for requests in self.instances:
            document, prompt = requests[0].doc, requests[0].arguments[0]
            text = json.dumps(document, indent=2, default=handle_non_serializable, ensure_ascii=False)
            parts.extend(hash_string(part) for part in (text, prompt, str(self.task.doc_to_target(document))))
        return hash_string("".join(parts) * len(self.task._filters))


@dataclass
class BuiltTask:
    """One task of the suite: a leaf, or the leaves of a group or tag."""

    key: str
    spec: SuiteTask
    leaves: list[Leaf] = field(default_factory=list)
    group: Group | None = None
    sandboxed: bool = False
    """Whether it runs what the model wrote in a sandbox."""
    error: str | None = None
    states: tuple[Any, ...] = ()
    """Random states once the requests are written: what lm-eval, scoring this task alone, would go on with."""

    @property
    def metric(self) -> str:
        """The metric as the documents table names it."""
        return metric_name(self.spec.metric, self.spec.filter)


def metric_name(metric: str, filter_name: str) -> str:
    """``acc``, or ``exact_match,strict-match`` when read from a filter."""
    return metric if filter_name == "none" else f"{metric},{filter_name}"


def build_task(key: str, spec: SuiteTask, suite: Suite, index: TaskIndex, datasets: str | None) -> BuiltTask:
    """Build the lm-eval tasks behind one entry of a suite.

    Raises UserError for an unknown name and for code that may not run; what fails while data load is kept as the
    task's error.
    """
    task, name = BuiltTask(key, spec), spec.task or key
    if spec.skill is None and name not in index:
        raise UserError(f"unknown task {name!r}", where=f"suite {suite.name}", do=nearest(name, index.names()))
    try:
        if spec.skill is not None:
            built: Any = _skill(key, spec, suite)
        else:
            found = leaves(name, index)
            task.sandboxed = any(leaf.own and leaf.unsafe for leaf in found)
            registry = _Registry(index)
            factory = _Factory(datasets, spec, suite)
            with data_cache(data_hashes(found, datasets)):
                built = factory.build(registry[name], overrides=None, registry=registry)
    except UserError:
        raise
    except Exception as error:
        task.error = reason(error)
        return task
    if isinstance(built, Group):
        task.group, built = built, list(built.get_all_tasks())
    task.leaves = [Leaf(t.task_name, t) for t in (built if isinstance(built, list) else [built])]
    for leaf in task.leaves:
        _configure(leaf, spec, suite)
    return task


def choose(name: str, total: int, spec: SuiteTask, suite: Suite) -> list[int]:
    """Indices of the documents of a task, of ``total`` in its split, that are scored: alike for all models.

    Those that are named; all, ``limit`` of them, or a share of them below 1 (rounded up, as in lm-eval): chosen by
    seed, or the first ones. Raises UserError for a named document that the split does not have.
    """
    limit = spec.limit if spec.limit is not None else suite.limit
    if spec.documents is not None:
        if not spec.documents or not 0 <= min(spec.documents) <= max(spec.documents) < total:
            what = f"documents={spec.documents}: its split has documents 0 to {total - 1}"
            raise UserError(what, where=name)
        return sorted(set(spec.documents))
    count = total if limit is None else math.ceil(total * limit) if limit < 1 else int(limit)
    if count >= total or suite.sample == "first":
        return list(range(total)[:count])
    return sorted(random.Random(f"{suite.seed} {name} {total}").sample(range(total), count))


def _skill(key: str, spec: SuiteTask, suite: Suite) -> Task:
    from pipelines.tiny.lmeval import skill_task
    from pipelines.tiny.skills import SKILLS

    if spec.skill not in SKILLS:
        what, hint = f"unknown skill {spec.skill!r}", nearest(str(spec.skill), SKILLS)
        raise UserError(what, where=f"suite {suite.name}", do=hint)
    limit = spec.limit if spec.limit is not None else suite.limit
    split: Any = spec.split or suite.split or "test"
    return skill_task(key, str(spec.skill), split, None if limit is None or limit < 1 else int(limit))


def _configure(leaf: Leaf, spec: SuiteTask, suite: Suite) -> None:
    """Few-shot count, seed and generation, as lm-eval's evaluation sets them. Raises UserError for images and sound."""
    task = leaf.task
    if getattr(task, "MULTIMODAL", False):
        raise UserError(f"task {leaf.name} needs images or sound", do="leave it out of the suite")
    if spec.num_fewshot is not None:
        task.set_config("num_fewshot", spec.num_fewshot)
    elif task.get_config("num_fewshot") is None:
        task.set_config("num_fewshot", 0)
    task.set_fewshot_seed(suite.seed)
    chosen = generation(spec, suite)
    if "gen_kwargs" in chosen and task.get_config("output_type") == "generate_until":
        task.set_config("generation_kwargs", chosen["gen_kwargs"], update=True)
    if "repeats" in chosen:
        task.set_config("repeats", chosen["repeats"])


class _Registry(dict[str, Entry]):
    """lm-eval's registry of task files, filled from the index when a name is asked for."""

    def __init__(self, index: TaskIndex):
        super().__init__()
        self.index = index

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or str(name) in self.index

    def __missing__(self, name: str) -> Entry:
        if name in self.index.groups:
            self[name] = Entry(name, Kind.GROUP, Path(self.index.groups[name]))
        elif name in self.index.tasks:
            self[name] = Entry(name, Kind.TASK, Path(self.index.tasks[name]))
        else:
            self[name] = Entry(name, Kind.TAG, None, tags=set(self.index.tags[name]))
        return self[name]


class _Factory(TaskFactory):
    """lm-eval's factory, with the data taken from a mirror and the split from the suite."""

    def __init__(self, mirror: str | None, spec: SuiteTask, suite: Suite):
        super().__init__()
        self.mirror, self.split, self.metric, self.suite = mirror, spec.split or suite.split, spec.metric, suite

    def _load_full_config(self, entry: Entry, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
        path = entry.yaml_path
        if path is not None and load_yaml(path, resolve_func=False).get("unsafe_code"):
            own = path.is_relative_to(OWN_TASKS)
            if problem := refusal(own, self.suite.run_code, self.suite.isolate_code):
                raise UserError(f"task {entry.name} {problem}")
        config = super()._load_full_config(entry, overrides)
        if entry.kind is Kind.GROUP:
            return config
        if (config.get("metadata") or {}).get("judged"):
            judging = {"judge": self.suite.judge, "metric": self.metric, "mirror": self.mirror}
            metrics = config["metric_list"]
            config["metric_list"] = [
                {**m, "aggregation": functools.partial(m["aggregation"], **judging)} for m in metrics
            ]
        if self.split is not None:
            _score_on(self.split, config)
        if callable(config.get("process_docs")):
            config["process_docs"] = _once(config["process_docs"])
        if self.mirror is not None and config.get("dataset_path"):
            config["dataset_path"] = mirrored(config["dataset_path"], self.mirror)
            config["dataset_kwargs"] = _mirrored_files(config.get("dataset_kwargs"), self.mirror)
        elif self.mirror is not None and getattr(kind := config.get("class"), "DATASET_PATH", None):
            config["class"] = type(kind.__name__, (kind,), {"DATASET_PATH": mirrored(kind.DATASET_PATH, self.mirror)})
        return config


def _score_on(split: str, config: dict[str, Any]) -> None:
    """Have another split scored than the task's own; a document is never among its own few-shot examples."""
    wanted = config.get(f"{split}_split") or split
    if wanted == (config.get("test_split") or config.get("validation_split")):
        return
    config["test_split"] = wanted
    fewshot = config.get("fewshot_config") or {}
    named = (config.get("training_split"), config.get("fewshot_split"), fewshot.get("split"), fewshot.get("samples"))
    if not any(named) and wanted == config.get("validation_split"):
        config["fewshot_split"] = wanted


def _once(process: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Call ``process_docs`` once per split, as lm-eval with a cache of maps does: a second call would draw again."""
    cache: dict[int, tuple[Any, Any]] = {}

    @functools.wraps(process)
    def processed(split: Any) -> Any:
        if id(split) not in cache:
            cache[id(split)] = split, process(split)  # the split stays alive, so that its id stays its own
        return cache[id(split)][1]

    return processed


def mirrored(dataset: str, mirror: str) -> str:
    """Where a hub data set lies in a local mirror. Raises FileNotFoundError when it is not there."""
    if dataset in PACKAGED or Path(dataset).is_absolute():
        return dataset
    folder = Path(mirror).expanduser().resolve() / dataset
    if not folder.exists():
        raise FileNotFoundError(f"the mirror {mirror} has no data set {dataset}")
    return str(folder)


def _mirrored_files(kwargs: Any, mirror: str) -> Any:
    """Loading arguments with single files of hub data sets taken from the mirror."""
    if isinstance(kwargs, dict):
        return {key: _mirrored_files(value, mirror) for key, value in kwargs.items()}
    if isinstance(kwargs, list):
        return [_mirrored_files(value, mirror) for value in kwargs]
    if isinstance(kwargs, str) and kwargs.startswith(HUB_FILE):
        return mirrored(kwargs.removeprefix(HUB_FILE), mirror)
    return kwargs


def reason(error: BaseException) -> str:
    """One line for why a task failed."""
    if isinstance(error, UserError):
        return str(error)
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def remember_documents(task: Task, documents: list[Any]) -> None:
    """Keep what ``doc_to_text``, ``doc_to_choice`` and ``doc_to_target`` say of these very documents.

    lm-eval asks for them again in every ``process_results``, through a template engine. Other documents (few-shot
    examples) and calls that override the template are asked as before.
    """
    if not isinstance(task, ConfigurableTask):
        return
    known = {id(document): document for document in documents}
    for method in ("doc_to_text", "doc_to_choice", "doc_to_target"):
        setattr(task, method, _remembering(getattr(task, method), known))


def _remembering(ask: Callable[..., Any], known: dict[int, Any]) -> Callable[..., Any]:
    answers: dict[int, Any] = {}

    def answer(document: Any, *args: Any, **kwargs: Any) -> Any:
        key = id(document)
        if args or kwargs or known.get(key) is not document:
            return ask(document, *args, **kwargs)
        if key not in answers:
            answers[key] = ask(document)
        value = answers[key]
        return list(value) if isinstance(value, list) else value

    return answer
