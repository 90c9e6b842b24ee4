"""Perturbed prompts: the same ones for every model, so that what they cost can be compared document by document.

An attack changes the text of the document that is scored; few-shot examples, options and the words that occur in
options stay. None of them asks the model under test (the published attacks search for the words that hurt one model
most): the perturbation is a function of the text, the seed and the attack alone.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from random import Random

from conf.errors import nearest
from pipelines.evaluate.attacks.edits import distract, misspell

Attack = Callable[[str, Set[str], Random], str]
"""(text, words to leave alone in lower case, random numbers) → perturbed text."""

_PLAIN: dict[str, Attack | None] = {"none": None, "deepwordbug": misspell, "stresstest": distract}


def attack_named(name: str) -> Attack | None:
    """The attack of a configuration name: none, deepwordbug, stresstest, or bertattack:FOLDER_OR_HUB_ID.

    Raises ValueError for another name, and for bertattack without a masked language model.
    """
    if problem := attack_problem(name):
        raise ValueError(problem)
    kind, _, model = name.partition(":")
    if kind in _PLAIN:
        return _PLAIN[kind]
    from pipelines.evaluate.attacks.bertattack import Replacer

    return Replacer(model)


def attack_problem(name: str) -> str | None:
    """What is wrong with an attack's name, or None."""
    kind, _, model = name.partition(":")
    if kind == "bertattack" and not model:
        return "bertattack needs a masked language model: name one, as in attack=bertattack:bert-base-uncased"
    names = (*_PLAIN, "bertattack")
    return None if kind in names else f"no attack is called {name!r}; {nearest(kind, names)}"


def perturb_prompt(attack: Attack, prompt: str, text: str, options: list[str], seed: str) -> str:
    """A prompt whose last occurrence of the document's ``text`` is perturbed; reproducible from ``seed``."""
    start = prompt.rfind(text)
    if not text or start < 0:
        return prompt
    spared = {word.strip(".,:;!?'\"()").lower() for option in options for word in option.split()}
    return prompt[:start] + attack(text, spared, Random(seed)) + prompt[start + len(text) :]
