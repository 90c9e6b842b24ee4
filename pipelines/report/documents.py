"""Pages beside the report that show a model's kept documents: prompt, options, what it and its parents answered."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from conf.errors import UserError
from pipelines.report.data import TrialRow
from pipelines.report.panel import Panel

BEST = 20
"""Merges of a pool that get a page, the highest first; the base and all experts have one."""
MOST = 60
"""Documents of a page."""
LONGEST = 4000
"""Letters of a prompt, of which the end is shown, or of an answer."""
FOLDER = "documents"


@dataclass(frozen=True)
class Answer:
    """What one model answered to one document."""

    model: str
    text: str
    score: float | None


@dataclass
class Document:
    """One document, the answer of the page's own model and those of its base and experts."""

    task: str
    name: str
    prompt: str
    options: list[str]
    target: str
    own: Answer
    others: list[Answer] = field(default_factory=list)

    def side(self, other: Answer) -> str:
        """up where the page's model scores more than another one on this document, down where it scores less."""
        if self.own.score is None or other.score is None or self.own.score == other.score:
            return ""
        return "up" if self.own.score > other.score else "down"

    @property
    def flips(self) -> list[str]:
        """How the model's score stands to that of its base and experts, where it differs from one of them."""
        lost = [other.model for other in self.others if self.side(other) == "down"]
        won = [other.model for other in self.others if self.side(other) == "up"]
        return [f"{word} {', '.join(names)}" for word, names in (("below", lost), ("above", won)) if names]


def write_documents(panels: Iterable[Panel], out: Path, style: str) -> dict[str, str]:
    """Write a page for the base, the experts and the best merges of each panel; their paths in ``out`` by trial key.

    Only for trials that were stored with prompts and answers.
    """
    folder = out / FOLDER
    for stale in folder.glob("*.html"):
        stale.unlink()
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    template = environment.get_template("documents.html.jinja")
    written: dict[str, str] = {}
    for panel in panels:
        best = sorted(panel.merges, key=lambda place: -panel.scores[place])[:BEST]
        read = _Reader()
        for row in (panel.rows[i] for i in (*_parents(panel, None), *best) if panel.rows[i].key not in written):
            others = [panel.rows[i] for i in _parents(panel, row)] if row.kind != "base" else []
            documents = _documents(row, [other for other in others if other is not row], read)
            if not documents:
                continue
            written[row.key] = f"{FOLDER}/{row.key}.html"
            folder.mkdir(parents=True, exist_ok=True)
            page = template.render(
                row=row, panel=panel.title, documents=documents[:MOST], count=len(documents), style=style
            )
            (out / written[row.key]).write_text(page, encoding="utf-8")
    return written


def _parents(panel: Panel, row: TrialRow | None) -> list[int]:
    """The base and, of a row's experts (None: of all), those that are scored."""
    own = [(name, row.run) for name in row.experts] if row else list(panel.experts)
    base = [] if panel.base is None else [panel.base]
    return base + [panel.experts[expert] for expert in own if expert in panel.experts]


Parsed = tuple[str, list[str], str, str, float | None]
"""Prompt, options, target, answer and score."""


class _Reader:
    """Kept documents by trial, each trial read once."""

    def __init__(self) -> None:
        self.known: dict[str, dict[tuple[str, str], Parsed]] = {}

    def __call__(self, row: TrialRow) -> dict[tuple[str, str], Parsed]:
        if row.key not in self.known:
            try:
                self.known[row.key] = _read(row.samples().to_pylist() if row.samples else [], row.metrics)
            except (UserError, ValueError, LookupError, TypeError, AttributeError):
                self.known[row.key] = {}  # a damaged sample costs its page, never the report
        return self.known[row.key]


def _read(lines: Sequence[Mapping[str, Any]], metrics: Mapping[str, str]) -> dict[tuple[str, str], Parsed]:
    """By task and document; of the lines of several filters the one that the task's score is of."""
    found: dict[tuple[str, str], Parsed] = {}
    for line in lines:
        sample, place = json.loads(line["sample"]), (line["task"], line["document"])
        metric, _, chosen = metrics.get(line["task"], "").partition(",")
        if place not in found or sample["filter"] == chosen:
            found[place] = parse(sample, metric)
    return found


def parse(sample: Mapping[str, Any], metric: str) -> Parsed:
    """What lm-eval's line of a document says: of likelihoods the answer is the most likely option."""
    asked = list(sample["arguments"].values())
    contexts = [str(request.get("arg_0", "")) for request in asked]
    prompt, options = _shared(contexts), []
    if all(isinstance(request.get("arg_1"), str) for request in asked):
        options = [context[len(prompt) :] + request["arg_1"] for context, request in zip(contexts, asked)]
    answers = sample["filtered_resps"]
    if options and len(answers) == len(options) and all(isinstance(a, list) and len(a) == 2 for a in answers):
        likely = [float(answer[0]) for answer in answers]
        text = options[likely.index(max(likely))] if len(options) > 1 else f"log-likelihood {likely[0]:.4g}"
    else:
        text = "\n".join(a if isinstance(a, str) else json.dumps(a, ensure_ascii=False) for a in answers)
    score = sample.get(metric)
    value = float(score) if isinstance(score, (int, float)) else None
    return _end(prompt), options, _target(str(sample["target"]), options), _start(text), value


def _shared(texts: Sequence[str]) -> str:
    first, last = min(texts), max(texts)  # any other begins with what these two share
    return first[: next((i for i, (a, b) in enumerate(zip(first, last)) if a != b), min(len(first), len(last)))]


def _target(target: str, options: Sequence[str]) -> str:
    """The option that a target names by its place; as it is where it could be an option's text as well."""
    if target.isdigit() and int(target) < len(options) > 1 and target not in [option.strip() for option in options]:
        return options[int(target)]
    return target


def _documents(
    row: TrialRow, others: Sequence[TrialRow], read: Callable[[TrialRow], dict[Any, Parsed]]
) -> list[Document]:
    documents = []
    for (task, name), (prompt, options, target, text, score) in read(row).items():
        document = Document(task, name, prompt, options, target, Answer(row.label, text, score))
        for other in others:
            if (said := read(other).get((task, name))) and said[0] == prompt:
                document.others.append(Answer(other.label, said[3], said[4]))
        documents.append(document)
    return sorted(documents, key=lambda document: not document.flips)


def _end(text: str) -> str:
    return text if len(text) <= LONGEST else f"… {text[-LONGEST:]}"


def _start(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"
