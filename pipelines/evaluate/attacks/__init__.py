"""Perturbed prompts: instructions searched against the model under test, or documents edited alike for every model.

``deepwordbug``, ``bertattack:MODEL`` and ``stresstest`` search for the edit of a task's instruction that hurts the
model most, as PromptBench does (``instruction.py``). ``deepwordbug_document``, … are a cheaper variant: the text of
each scored document is edited by the seed alone, the same for every model; few-shot examples, options and the words
that occur in options stay.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from random import Random

from conf.errors import nearest
from pipelines.evaluate.attacks.edits import distract, misspell

Attack = Callable[[str, Set[str], Random], str]
"""(text, words to leave alone in lower case, random numbers) → perturbed text."""

KINDS = ("deepwordbug", "stresstest", "bertattack")
"""Attacks on the instruction; with ``_document`` behind it, the same edits of the document at random."""

DOCUMENT = "_document"


def parts(name: str) -> tuple[str, str]:
    """Kind of an attack and the masked language model that it names: ``bertattack:DIR`` → (bertattack, DIR)."""
    kind, _, model = name.partition(":")
    return kind, model


def searches(name: str) -> bool:
    """Whether an attack searches for the edit of the instruction that hurts the model most."""
    return parts(name)[0] in KINDS


def document_attack(name: str) -> Attack | None:
    """The edit of documents that an attack's name stands for; None where it leaves documents alone.

    Raises ValueError for an unknown name, and for BERT-Attack without a masked language model.
    """
    if problem := attack_problem(name):
        raise ValueError(problem)
    kind, model = parts(name)
    if not kind.endswith(DOCUMENT):
        return None
    if kind == f"bertattack{DOCUMENT}":
        from pipelines.evaluate.attacks.bertattack import replacer

        return replacer(model)
    return misspell if kind == f"deepwordbug{DOCUMENT}" else distract


def attack_problem(name: str) -> str | None:
    """What is wrong with an attack's name, or None."""
    kind, model = parts(name)
    names = ("none", *KINDS, *(known + DOCUMENT for known in KINDS))
    if kind not in names:
        return f"no attack is called {name!r}; {nearest(kind, names)}"
    if kind.startswith("bertattack") and not model:
        return f"{kind} needs a masked language model: name one, as in attack={kind}:bert-base-uncased"
    return None


def perturb_prompt(attack: Attack, prompt: str, text: str, options: list[str], seed: str) -> str:
    """A prompt whose last occurrence of the document's ``text`` is perturbed; reproducible from ``seed``."""
    start = prompt.rfind(text)
    if not text or start < 0:
        return prompt
    return prompt[:start] + attack(text, words_of(options), Random(seed)) + prompt[start + len(text) :]


def words_of(options: list[str]) -> set[str]:
    """The words that occur in options, in lower case: no attack touches them."""
    return {word.strip(".,:;!?'\"()").lower() for option in options for word in option.split()}
