"""The settings of generated answers that a suite asks for over those of its tasks, and what is wrong with them."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from conf.errors import nearest
from conf.schema import Suite, SuiteTask
from pipelines.evaluate.lookup import Definition

LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""lm-eval's names for the tokens of an answer at most."""
NUMBERS = (*LENGTHS, "temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty", "num_beams")
"""Settings that are numbers; what they may be stands with the ranges of all values."""
GENERATORS = ("transformers", "vllm")
"""What may write answers."""
VLLM_SETTINGS = {*LENGTHS, "until", "do_sample", "temperature", "top_p", "top_k", "min_p", "repetition_penalty"}
"""Settings of generation that mean the same to vLLM and to transformers."""
OURS = {
    "max_length", "use_cache", "pad_token_id", "num_return_sequences", "return_dict_in_generate", "compile_config",
    "transformers_version", "output_scores", "output_logits", "output_attentions", "output_hidden_states",
}  # fmt: skip
"""Settings of transformers that lm-eval gives itself, or that change what generation returns; for several answers there
is ``repeats``."""


def generation(spec: SuiteTask, suite: Suite) -> dict[str, Any]:
    """Settings of a task's answers that are not its own: gen_kwargs and repeats, its entry's over the suite's."""
    repeats = spec.repeats if spec.repeats is not None else suite.repeats
    chosen = {"gen_kwargs": {**suite.gen_kwargs, **spec.gen_kwargs}, "repeats": repeats}
    return {name: value for name, value in chosen.items() if value}


def check_generation(suite: Suite, tasks: Mapping[str, list[Definition]]) -> list[str]:
    """Settings of generation that nothing would read or that transformers refuses, one line each.

    ``tasks`` are the definitions behind each entry of the suite, none behind a built-in skill; entries that name no
    task are left out.
    """
    asked = {"": suite.gen_kwargs, **{f"tasks.{key}.": spec.gen_kwargs for key, spec in suite.tasks.items()}}
    problems = [
        f"{where}gen_kwargs: {problem}"
        for where, chosen in asked.items() if chosen and (problem := _problem(chosen))
    ]  # fmt: skip
    problems += _check_generator(suite, asked) if not problems else []
    silent = [key for key, found in tasks.items() if not any(map(_generates, found))]
    problems += [f"tasks.{key}.gen_kwargs: the task generates nothing" for key in silent if suite.tasks[key].gen_kwargs]
    if suite.gen_kwargs and len(silent) == len(suite.tasks):
        problems.append("gen_kwargs: no task of the suite generates; leave it out")
    if suite.generate_with == "vllm" and len(silent) == len(tasks) == len(suite.tasks):
        problems.append("generate_with: no task of the suite generates; leave it out")
    return problems


def _check_generator(suite: Suite, asked: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What keeps a suite from being generated with what it names."""
    if suite.generate_with not in GENERATORS:
        return [f"nothing that generates is called {suite.generate_with!r}; {nearest(suite.generate_with, GENERATORS)}"]
    if suite.generate_with == "transformers":
        return []
    problems = []
    if importlib.util.find_spec("vllm") is None:
        problems.append("generate_with=vllm needs the package vllm: pip install 'mergebench[vllm]'")
    if suite.quantization is not None or suite.linearised is True:
        other = "linearised" if suite.quantization is None else "quantization"
        problems.append(f"generate_with=vllm is for whole ordinary networks; leave suite.{other} out")
    lacking = [f"{where}gen_kwargs.{name}" for where, given in asked.items() for name in given.keys() - VLLM_SETTINGS]
    return problems + [f"{name} means nothing, or something else, to vLLM; leave it out" for name in sorted(lacking)]


def _generates(task: Definition) -> bool:
    """Whether a task may ask for generated answers: a task of its own class may."""
    return "class" in task.config or task.config.get("output_type", "generate_until") == "generate_until"


def _problem(chosen: Mapping[str, Any]) -> str:
    """What is wrong with settings by name or type; empty for nothing."""
    from transformers import GenerationConfig

    known = {name for name in GenerationConfig().to_dict() if name[0] != "_"} - OURS | {*LENGTHS, "until"}
    for name, value in chosen.items():
        if name not in known:
            return f"there is no setting {name!r}; {nearest(name, known)}"
        if name in NUMBERS and (isinstance(value, bool) or not isinstance(value, (int, float))):
            return f"{name} is {value!r}; it has to be a number"
        if name == "do_sample" and not isinstance(value, bool):
            return f"do_sample is {value!r}; it has to be true or false"
    until = chosen.get("until", [])
    if all(isinstance(end, str) for end in (until if isinstance(until, list) else [until])):
        return ""
    return f"until is {until!r}; it has to be a text or a list of texts"
