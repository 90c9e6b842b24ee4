"""An evaluation as lm-eval's own results file lays it out, and what a result says of how it was measured."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import os
import platform
import time
from typing import Any

import torch
from lm_eval.evaluator_utils import EvalAcc, aggregate_groups
from lm_eval.loggers.evaluation_tracker import GeneralConfigTracker
from lm_eval.loggers.utils import add_tokenizer_info, get_commit_from_path
from lm_eval.result_schema import _SampleCount
from torch import nn

from conf.schema import Suite
from pipelines.evaluate.build import BuiltTask
from pipelines.evaluate.requests import Scorer
from pipelines.evaluate.sandbox import isolation
from pipelines.evaluate.score import RESAMPLES, Summary
from pipelines.process import device_of, seeds


def lm_eval_layout(
    summary: Summary, suite: Suite, scorer: Scorer, model: nn.Module, source: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """The results as ``lm_eval run`` writes them; a merge in memory says its recipe in place of a path."""
    kind = "hf" if "pretrained" in source else "mergebench"
    tracker = GeneralConfigTracker()
    template = scorer.lm.chat_template(True) if suite.chat_template else None
    tracker.log_experiment_args(kind, source, suite.system_instruction, template, suite.fewshot_as_multiturn)
    tracker.total_evaluation_time_seconds = str(seconds)
    limits = {key: suite.limit if spec.limit is None else spec.limit for key, spec in suite.tasks.items()}
    layout = _results(summary)
    layout["config"] = {
        "model": kind,
        "model_args": source,
        "model_num_parameters": sum(p.numel() for p in model.parameters()),
        "model_dtype": str(next(model.parameters()).dtype),
        "batch_size": scorer.batch_size,
        "device": str(device_of(model)),
        "limit": limits if len(set(limits.values())) > 1 else next(iter(limits.values())),
        "sample": suite.sample,
        "bootstrap_iters": RESAMPLES,
        "gen_kwargs": suite.gen_kwargs or None,
        **{f"{name}_seed": seed for name, seed in seeds(suite.seed).items()},
    }
    layout.update(date=time.time() - seconds, **_environment(), **dataclasses.asdict(tracker))
    add_tokenizer_info(layout, scorer.lm)
    layout["max_length"] = scorer.max_length
    return layout


def _results(summary: Summary) -> dict[str, Any]:
    out = EvalAcc()
    out.metrics = dict(summary.metrics)
    hashes = {}
    for task in summary.tasks:
        if task.key in summary.errors:
            continue
        if task.group is not None:
            out.groups[task.group.name] = task.group
            out.groups.update({g.name: g for g in task.group.get_all_groups()})
        for leaf in task.leaves:
            out.configs[leaf.name], out.versions[leaf.name] = leaf.config, leaf.task.VERSION
            out.num_fewshot[leaf.name] = leaf.config.get("num_fewshot", 0)
            out.higher_is_better[leaf.name] = leaf.task.higher_is_better()
            out.n_samples[leaf.name] = _SampleCount(original=leaf.total, effective=len(leaf.ids))
            hashes[leaf.name] = leaf.task_hash
    return {**aggregate_groups(out)._to_eval_results(), "task_hashes": hashes}


@functools.cache
def _environment() -> dict[str, Any]:
    """lm-eval's account of the machine, without the half second of its ``collect_env``."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    lines = {"PyTorch version": torch.__version__, "Python version": platform.python_version()}
    lines |= {"OS": platform.platform(), "CPU": platform.machine(), "GPU models": ", ".join(gpus) or "none"}
    return {
        "git_hash": get_commit_from_path(os.getcwd()),
        "pretty_env_info": "\n".join(f"{name}: {value}" for name, value in lines.items()),
        "transformers_version": importlib.metadata.version("transformers"),
        "lm_eval_version": importlib.metadata.version("lm_eval"),
    }


def settings(built: list[BuiltTask], seed: int) -> dict[str, Any]:
    """What does not change from model to model: packages, seed, sandbox, and each task's version, shots and prompts."""
    tasks = {}
    for leaf in (leaf for task in built for leaf in task.leaves):
        shots = leaf.task.get_config("num_fewshot")
        tasks[leaf.name] = {"version": leaf.task.VERSION, "num_fewshot": shots, "prompts": leaf.fingerprint()}
    packages = ("lm_eval", "transformers", "torch", "datasets", "tokenizers")
    return {
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "python": platform.python_version(),
        "seed": seed,
        "tasks": tasks,
        **({"sandbox": isolation()} if any(task.sandboxed for task in built) else {}),
    }
