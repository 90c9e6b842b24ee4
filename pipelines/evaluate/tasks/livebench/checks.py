"""Scores of three LiveBench categories: instructions followed, typos mended, contest programs that pass their tests."""

from __future__ import annotations

import base64
import io
import json
import pickle
import re
import zlib
from typing import Any

from pipelines.evaluate.sandbox import outputs, passes

_LISTS = "def lists(value): return [lists(item) for item in value] if type(value) in (list, tuple) else value\n"
"""A test's values with tuples as the lists that JSON made of them."""

_FENCED = re.compile(r"```(?:\w+)?\n(.*?)```", re.DOTALL)


def instruction(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Mean of 'all instructions followed' and the share of instructions followed, by IFEval's checkers."""
    followed = _followed(doc, results[0])
    return {"score": (float(all(followed)) + sum(followed) / len(followed)) / 2}


def typos(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether the mended text stands in the output, line breaks aside."""
    lines = [line for line in results[0].split("\n") if line]
    return {"score": float(doc["ground_truth"] in " ".join(lines))}


def typos_only(documents: Any) -> Any:
    """The typo-mending questions of the language category."""
    return documents.filter(lambda document: document["task"] == "typos")


def contests_only(documents: Any) -> Any:
    """The contest questions of the coding category."""
    return documents.filter(lambda document: document["task"] in ("LCB_generation", "coding_completion"))


def coding(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether the last fenced program (put after the given beginning, for completions) passes every test."""
    fenced = _FENCED.findall(results[0])
    program = fenced[-1] if fenced else results[0]
    begun = doc.get("partial_solution") or ""
    if begun and not program.startswith(begun):
        program = f"{begun}\n{program}"
    tests = json.loads(doc["public_test_cases"]) + hidden_tests(doc["private_test_cases"])
    name = json.loads(doc["original_json"]["metadata"]).get("func_name")
    return {"score": float(all(_one_test(program, test, name) for test in tests))}


def hidden_tests(packed: str) -> list[dict[str, Any]]:
    """LiveCodeBench's hidden tests: JSON, or JSON pickled as a string, deflated and in base64."""
    try:
        return json.loads(packed)
    except ValueError:
        return json.loads(_OnlyStrings(io.BytesIO(zlib.decompress(base64.b64decode(packed)))).load())


class _OnlyStrings(pickle.Unpickler):
    """Reads pickled strings and numbers; refuses anything that would import something."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} has no place in test cases")


def _one_test(program: str, test: dict[str, Any], name: str | None) -> bool:
    if test["testtype"] == "stdin":
        written = outputs(program, test["input"])
        return written is not None and written.split() == test["output"].split()
    arguments = ", ".join(repr(json.loads(line)) for line in test["input"].split("\n") if line)
    owner = ["Solution"] if re.search(r"^class Solution\b", program, re.MULTILINE) else []
    call = f"{'Solution().' if owner else ''}{name}({arguments})"
    tests = f"{_LISTS}assert lists({call}) == {json.loads(test['output'])!r}\n"
    return passes(f"from typing import *\n{program}\n", tests, owner or [str(name)])


def _followed(doc: dict[str, Any], response: str) -> list[bool]:
    from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT

    followed = []
    for name, given in zip(doc["instruction_id_list"], doc["kwargs"], strict=True):
        check = INSTRUCTION_DICT[name](name)
        check.build_description(**{key: value for key, value in given.items() if value})
        if "prompt" in (check.get_instruction_args() or {}):
            check.build_description(prompt=doc["turns"][0])
        followed.append(bool(response.strip() and check.check_following(response)))
    return followed
