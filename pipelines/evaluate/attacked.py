"""A suite's tasks under an attack on their instructions: searched for one model, and put into its prompts."""

from __future__ import annotations

import copy
import dataclasses
from random import Random
from typing import Any

from lm_eval.api import metrics
from lm_eval.api.instance import Instance
from torch import nn

from conf.errors import UserError, out_of_memory
from conf.schema import Suite
from pipelines.evaluate.attacks import words_of
from pipelines.evaluate.attacks.instruction import BREAK, HOLE, Instruction, strongest
from pipelines.evaluate.build import BuiltTask, Leaf, reason
from pipelines.evaluate.requests import LiveLM, NotFiniteError, Scorer, Tick
from pipelines.evaluate.score import per_document
from pipelines.process import restore


def attacked(
    tasks: list[BuiltTask], suite: Suite, lm: LiveLM, model: nn.Module, batch_size: int, tick: Tick
) -> tuple[list[BuiltTask], dict[str, Any]]:
    """The tasks with the attacked instruction in every prompt, and what the search found, by lm-eval task.

    ``lm`` holds the model. A task that cannot be attacked has the reason as its error.
    """
    out: list[BuiltTask] = []
    found: dict[str, Any] = {}
    for task in tasks:
        restore(task.states)  # answers that are drawn are the same ones again
        try:
            searches = [_Search(task, leaf, suite, lm, model, batch_size, tick) for leaf in task.leaves]
            out.append(dataclasses.replace(task, leaves=[search.run(found) for search in searches]))
        except NotFiniteError:
            raise
        except Exception as error:
            if out_of_memory(error):
                raise
            out.append(dataclasses.replace(task, leaves=[], error=reason(error)))
    return out, found


class _Search:
    """The search on one lm-eval task: scored on a seeded sample of its documents, put into the prompts of all."""

    def __init__(
        self, task: BuiltTask, leaf: Leaf, suite: Suite, lm: LiveLM, model: nn.Module, batch_size: int, tick: Tick
    ):
        self.spec, self.leaf, self.suite, self.lm, self.model = task.spec, leaf, suite, lm, model
        self.batch_size, self.tick, self.queries = batch_size, tick, 0
        self.texts = [leaf.task.doc_to_text(requests[0].doc) for requests in leaf.instances]
        if not all(isinstance(text, str) for text in self.texts):
            raise UserError("its options stand in its prompts", where=leaf.name, do="attack its documents instead")
        self.instruction = Instruction.of(self.texts, leaf.task.get_config("description") or "")
        self.seed = f"{suite.seed} {leaf.task.task_name}"
        count = len(self.texts)
        self.sample = sorted(Random(self.seed).sample(range(count), min(suite.attack_documents, count)))

    def run(self, found: dict[str, Any]) -> Leaf:
        """The task with the strongest attacked instruction in its prompts; ``found`` is told of it."""
        task, document = self.leaf.task, self.leaf.instances[0][0].doc
        spared = words_of(task.doc_to_choice(document) if task.config.doc_to_choice else [])
        clean = self.instruction.template
        template, before, after = strongest(self.suite.attack, clean, spared, self._scores, self.seed)
        found[self.leaf.name] = {
            "instruction": _shown(clean),
            "attacked": _shown(template),
            "score": [self._sign * before, self._sign * after],
            "queries": self.queries,
            "documents": len(self.sample),
        }
        return self._leaf([self._requests(template, place) for place in range(len(self.texts))])

    @property
    def _sign(self) -> int:
        return 1 if self.leaf.task.higher_is_better().get(self.spec.metric, True) else -1

    def _scores(self, templates: list[str]) -> list[float]:
        """The task's metric on the sample under each template."""
        asked = [[self._requests(template, place) for place in self.sample] for template in templates]
        probe = self._leaf([requests for part in asked for requests in part])
        scorer = Scorer(self.lm, self.suite, [probe])
        scorer.batch_size = self.batch_size
        scorer.prepare(self.model)
        scorer.run(probe, self.model, self.tick)
        self.queries += len(templates)
        aggregate = probe.task.aggregation().get(self.spec.metric, metrics.mean)
        metric = self.spec.metric, self.spec.filter
        values = [per_document(dataclasses.replace(probe, instances=part))[metric] for part in asked]
        return [self._sign * float(aggregate(part)) for part in values]

    def _requests(self, template: str, place: int) -> list[Instance]:
        """A document's requests with its prompt under a template."""
        clean = self.leaf.instances[place]
        prompt = clean[0].args[0]
        attacked = self.instruction.put(template, prompt, self.texts[place])
        return [_asking(request, attacked) if request.args[0] == prompt else _asking(request) for request in clean]

    def _leaf(self, instances: list[list[Instance]]) -> Leaf:
        leaf = dataclasses.replace(self.leaf, task=copy.copy(self.leaf.task), instances=instances)
        leaf.task._instances = [request for requests in instances for request in requests]
        return leaf


def _asking(request: Instance, prompt: str | None = None) -> Instance:
    """The request, unanswered, with another prompt."""
    new = copy.copy(request)
    new.resps, new.filtered_resps = [], {}
    if prompt is not None:
        new.arguments = (prompt, *request.args[1:])
    return new


def _shown(template: str) -> str:
    return template.replace(BREAK, "").replace(HOLE, "{document}")
