"""What a tokenizer may ask for: no text that grows without end, no pattern that takes forever, no endless template."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import Environment, TemplateSyntaxError, nodes

from conf.errors import UserError
from pipelines.checkpoints.untrusted import read_json

GROWTH = 64
"""Times as long a text may become by a tokenizer's replacements."""
REPEATED = re.compile(r"\([^()]*[*+{][^()]*\)[*+{]")
"""A repeated group in which something is repeated: takes exponential time on some texts."""
LITERAL = re.compile(r"\\[pP]\{\w+\}|\\.|\[(?:\\.|[^\]\\])*\]")
WIDE = re.compile(r"%[-+ 0#]*\d{6,}|\{[^{}]*\d{6,}[^{}]*\}")
"""A format that pads to a million letters."""
LARGE = 1_000_000
"""What the numbers that a template multiplies come to at most."""


def check_tokenizer(folder: Path) -> None:
    """UserError for a tokenizer.json whose replacements blow texts up, or whose patterns repeat repetitions."""
    file = folder / "tokenizer.json"
    growth = 1.0
    for part in _parts(read_json(file)) if file.is_file() else ():
        pattern = part.get("pattern")
        text = pattern.get("Regex", pattern.get("String")) if isinstance(pattern, dict) else None
        if isinstance(pattern, dict) and "Regex" in pattern and REPEATED.search(LITERAL.sub("c", str(text))):
            raise UserError(f"the pattern {str(text)[:60]!r} may take forever", where=str(file), do="mend it")
        if part.get("type") == "Replace":
            taken = len(str(text)) if isinstance(pattern, dict) and "String" in pattern else 1
            growth *= max(1.0, len(str(part.get("content", ""))) / max(1, taken))
    if growth > GROWTH:
        raise UserError(f"replacements make a text {growth:.3g} times as long", where=str(file), do="mend it")


def _parts(node: Any) -> Iterator[dict[str, Any]]:
    """All tables within a tokenizer's steps, but for its vocabulary."""
    if isinstance(node, dict):
        yield node
        for name in node.keys() - {"vocab", "merges", "added_tokens"}:
            yield from _parts(node[name])
    elif isinstance(node, list):
        for part in node:
            yield from _parts(part)


def check_templates(templates: Any, where: Path, what: str = "chat template") -> None:
    """UserError for a template that could run on or make endless texts: powers, large products, nested ranges."""
    for text in templates.values() if isinstance(templates, dict) else [templates]:
        if isinstance(text, str) and (why := _endless(text)):
            raise UserError(f"the {what} {why}", where=str(where), do="mend it, or score without it")


def _endless(text: str) -> str:
    try:
        tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(text)
    except (TemplateSyntaxError, RecursionError):
        return ""  # told by what renders it
    constants = [c.value for product in tree.find_all(nodes.Mul) for c in product.find_all(nodes.Const)]
    constants = [abs(value) for value in constants if type(value) is int]
    ranges = [loop for loop in tree.find_all(nodes.For) if _counts(loop.iter)]
    if any(tree.find_all(nodes.Pow)) or math.prod(map(float, constants)) > LARGE:
        return "multiplies too much"
    if any(_counts(inner.iter) for loop in ranges for inner in loop.find_all(nodes.For) if inner is not loop):
        return "counts within counting"
    if any(isinstance(c.value, str) and WIDE.search(c.value) for c in tree.find_all(nodes.Const)):
        return "writes too much"
    return "joins a text to itself" if any(_doubles(assign) for assign in tree.find_all(nodes.Assign)) else ""


def _doubles(assign: nodes.Assign) -> bool:
    """Whether a name is set to itself joined to itself."""
    joins = [assign.node, *assign.node.find_all((nodes.Concat, nodes.Add))]
    operands = [
        part for join in joins if isinstance(join, (nodes.Concat, nodes.Add)) for part in join.iter_child_nodes()
    ]
    names = [part.name for part in operands if isinstance(part, nodes.Name)]
    return isinstance(assign.target, nodes.Name) and names.count(assign.target.name) > 1


def _counts(node: nodes.Node) -> bool:
    """Whether a loop goes over a range."""
    calls = (call for call in (node, *node.find_all(nodes.Call)) if isinstance(call, nodes.Call))
    return any(isinstance(call.node, nodes.Name) and call.node.name == "range" for call in calls)
