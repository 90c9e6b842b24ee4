"""Attacks on the instruction, searched against the model under test, as in PromptBench.

PromptBench (Zhu et al., 2023, https://arxiv.org/abs/2306.04528) runs TextAttack's searches on the prompt instead of the
document, with the model's score on the task as the goal. DeepWordBug and BERT-Attack rank the instruction's words by
the score that is left when ``[UNK]`` stands in a word's place, then go through them once, the most important first, and
take of each word's candidates the one that leaves the lowest score, if that is lower than before. StressTest tries
three sentences behind the instruction and takes the strongest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass
from random import Random

from conf.errors import UserError
from pipelines.evaluate.attacks import parts
from pipelines.evaluate.attacks.edits import EDITS, FUNCTION_WORDS, TAUTOLOGIES, TIMES, WORD, misspelt
from pipelines.evaluate.engine import common

HOLE, BREAK = "\0", "\1"
"""In a template: where the document's own text stands, and what parts the task's description from the rest."""

PHRASES = (*TAUTOLOGIES, TAUTOLOGIES[0] * TIMES)
"""StressTest's sentences in PromptBench."""

MOST = 15
"""DeepWordBug changes this many words at most: with two letters each, the paper's bound of 30 on the edit distance."""

Score = Callable[[list[str]], list[float]]
"""Of each of some templates, what the model scores under it (higher is better)."""

Span = tuple[int, int]


@dataclass(frozen=True)
class Instruction:
    """What a task's prompts have in common: its description, and what stands before and behind a document's text."""

    description: str
    before: str
    behind: str

    @classmethod
    def of(cls, texts: list[str], description: str = "") -> Instruction:
        """The instruction of a task from its documents' texts as the task words them (whole words only).

        Raises UserError where the texts are fewer than two, or have no word in common.
        """
        before = re.sub(r"\w+\Z", "", _prefix(texts))
        rest = [text[len(before) :][::-1] for text in texts]
        behind = re.sub(r"\A\w+", "", _prefix(rest)[::-1])
        if len(set(texts)) < 2 or not WORD.search(description + before + behind):
            what = "its prompts have no instruction in common that could be attacked"
            raise UserError(what, do="attack its documents: attack=deepwordbug_document")
        return cls(description, before, behind)

    @property
    def template(self) -> str:
        """All of it as one text, with a hole for the document."""
        return f"{self.description}{BREAK}{self.before}{HOLE}{self.behind}"

    def put(self, template: str, prompt: str, text: str) -> str:
        """A document's prompt under a changed template: at its last place and in the description; examples stay.

        ``text`` is the document's text as the task words it. Raises ValueError where the prompt does not hold it.
        """
        start = prompt.rfind(text)
        if start < 0 or self.description not in prompt[:start]:
            raise ValueError("a prompt does not hold its document's text as the task words it")
        description, _, around = template.partition(BREAK)
        before, behind = around.split(HOLE)
        own = text[len(self.before) : len(text) - len(self.behind)]
        head = prompt[:start].replace(self.description, description, 1)
        return head + before + own + behind + prompt[start + len(text) :]


def strongest(name: str, template: str, spared: Set[str], score: Score, seed: str) -> tuple[str, float, float]:
    """The attacked template, and the scores before and after.

    ``spared`` are words (in lower case) that no edit touches: the options'. Random letters come from ``seed``.
    """
    kind, model = parts(name)
    if kind == "stresstest":
        end = [match.end() for match in re.finditer(r"\w+", template)][-1]
        tried = [template, *(template[:end] + phrase + template[end:] for phrase in PHRASES)]
        clean, *left = score(tried)
        return tried[1 + _lowest(left)], clean, min(left)
    if kind == "bertattack":
        from pipelines.evaluate.attacks.bertattack import replacer

        guesses = replacer(model).guesses(template.replace(HOLE, " ").replace(BREAK, " "), spared)
        return _greedy(template, spared, guesses, score, len(template))

    def misspellings(span: Span) -> list[str]:
        word = template[slice(*span)]
        return [misspelt(word, Random(f"{seed} {span[0]} {edit}"), edit) for edit in EDITS]

    return _greedy(template, spared, misspellings, score, MOST)


def _greedy(
    template: str, spared: Set[str], candidates: Callable[[Span], Iterable[str]], score: Score, most: int
) -> tuple[str, float, float]:
    """TextAttack's greedy word swap by word importance, with ``most`` changed words at most."""
    spans = [m.span() for m in WORD.finditer(template) if m.group().lower() not in FUNCTION_WORDS | spared]
    clean, *importance = score([template, *(_swapped(template, {span: "[UNK]"}) for span in spans)])
    changed: dict[Span, str] = {}
    best = clean
    for _, span in sorted(zip(importance, spans, strict=True)):
        words = [word for word in dict.fromkeys(candidates(span)) if word != template[slice(*span)]]
        if not words or len(changed) == most:
            continue
        left = score([_swapped(template, {**changed, span: word}) for word in words])
        if min(left) < best:
            best, changed[span] = min(left), words[_lowest(left)]
    return _swapped(template, changed), clean, best


def _prefix(texts: list[str]) -> str:
    """What all texts begin with."""
    first, last = min(texts), max(texts)
    return first[: common(first, last)]


def _lowest(scores: list[float]) -> int:
    return scores.index(min(scores))


def _swapped(template: str, changed: dict[Span, str]) -> str:
    for (start, end), word in sorted(changed.items(), reverse=True):
        template = template[:start] + word + template[end:]
    return template
