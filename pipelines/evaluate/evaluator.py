"""A suite built once and run on one model after another: only the weights change in between."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from torch import nn

from conf.errors import UserError, out_of_memory
from conf.schema import Suite
from mergeopt_core.randomness import random_state_restored
from pipelines.evaluate.attacked import attacked
from pipelines.evaluate.attacks import document_attack, perturb_prompt, searches
from pipelines.evaluate.build import BuiltTask, Leaf, build_task, choose, reason, remember_documents
from pipelines.evaluate.engine import common
from pipelines.evaluate.layout import lm_eval_layout, settings
from pipelines.evaluate.lookup import OWN_TASKS, task_index
from pipelines.evaluate.requests import LiveLM, NotFiniteError, Scorer
from pipelines.evaluate.samples import samples
from pipelines.evaluate.score import Evaluation, Summary
from pipelines.evaluate.vllm_engine import VllmEngine
from pipelines.process import (
    at_rest,
    fitting_threads,
    fresh_maps,
    offline,
    random_states,
    restore,
    silence,
    sow,
    threads,
)
from pipelines.progress import SILENT, Progress


class Evaluator:
    """Tasks, few-shot contexts, requests and tokens of one suite and one tokenizer, made once.

    ``evaluate`` may be called with one live module whose weights change in between, or with another module each time;
    nothing of a model is kept, and the answers to one are cleared before the next. Raises UserError for an unknown
    task; a task whose data do not load is listed in ``problems`` and marks its own cell. Scoring runs where the model
    is.
    """

    def __init__(
        self,
        suite: Suite,
        tokenizer_folder: Path,
        *,
        datasets: str | None = None,
        online: bool = False,
        threads: int | None = None,
        progress: Progress = SILENT,
        engine: VllmEngine | None = None,
    ):
        self.suite, self.threads = suite, threads
        try:
            self.attack = document_attack(suite.attack)
        except ValueError as error:
            raise UserError(str(error), where=f"suite {suite.name}") from None
        with random_state_restored(), silence(), fresh_maps(), offline(not online or datasets is not None):
            self.lm = LiveLM(Path(tokenizer_folder), suite, engine)
            index = task_index(OWN_TASKS, suite.include_path)
            with progress.step(f"building {suite.name}", len(suite.tasks)) as step:
                self.tasks = []
                for key, spec in suite.tasks.items():
                    sow(suite.seed)  # each task as if it were scored alone
                    task = build_task(key, spec, suite, index, datasets)
                    self._name_apart(task)
                    self._write_requests(task, progress)
                    task.states = random_states()
                    self.tasks.append(task)
                    step.advance()
            self.scorer = Scorer(self.lm, suite, [leaf for task in self.tasks for leaf in task.leaves])
        self.settings = settings(self.tasks, suite.seed)

    @property
    def problems(self) -> dict[str, str]:
        """Tasks that could not be built, and why."""
        return {task.key: task.error for task in self.tasks if task.error is not None}

    def evaluate(
        self,
        model: nn.Module,
        *,
        name: str | None = None,
        source: dict[str, Any] | None = None,
        progress: Progress = SILENT,
        make_room: Callable[[], bool] = bool,
    ) -> Evaluation:
        """Score a model as it stands now.

        ``source`` is what lm-eval's layout says of where the weights come from: ``{"pretrained": …}``, or a recipe.

        Raises UserError when its weights have another dtype than the suite says, or when its logits are NaN (naming
        ``name``). Out of memory halves the batch size, for this and all later models, and starts this one again, unless
        ``make_room`` says that it gave memory back.
        """
        check_dtype(model, self.suite)
        start = time.perf_counter()
        who = name or getattr(model, "name_or_path", "") or type(model).__name__
        with random_state_restored(), silence(), threads(self.threads or fitting_threads(model)), at_rest(model):
            while True:
                try:
                    tasks, scorer, found = self._asked(model, who, progress)
                    failed = self._answers(tasks, scorer, model, who, progress)
                    break
                except Exception as error:
                    if not out_of_memory(error):
                        raise
                    if not make_room():
                        self.scorer.halve(who)
            summary = Summary(tasks, failed, self.suite)
            kept = samples(summary, self.suite)
            forget_answers(tasks)
        seconds = time.perf_counter() - start
        source = source or {"model": f"{who} (in memory)"}
        return Evaluation(
            tasks=summary.scores,
            documents=summary.documents(),
            samples=kept,
            batch_size=scorer.batch_size,
            seconds=seconds,
            versions={**scorer.describe(self.settings, model), **({"attack": found} if found else {})},
            lm_eval=lm_eval_layout(summary, self.suite, scorer, model, source, seconds),
            answer_length=summary.answer_length,
        )

    def _name_apart(self, task: BuiltTask) -> None:
        """A task that stands in the suite twice (other split or metric) gets a name of its own in lm-eval's layout."""
        taken = {leaf.name for other in self.tasks for leaf in other.leaves}
        for leaf in task.leaves:
            if leaf.name in taken:
                leaf.name, task.group = f"{task.key}/{leaf.name}", None

    def _write_requests(self, task: BuiltTask, progress: Progress) -> None:
        """Write the requests of a task's chosen documents; a failure is kept as the task's error."""
        try:
            for leaf in task.leaves:
                split = leaf.task.eval_docs
                leaf.total = len(split)
                leaf.ids = choose(leaf.task.task_name, leaf.total, task.spec, self.suite)
                documents = [split[index] for index in leaf.ids]
                leaf.instances = [self._requests(leaf, *pair) for pair in zip(leaf.ids, documents)]
                leaf.task._instances = [request for requests in leaf.instances for request in requests]
                leaf.config = dict(leaf.task.dump_config())
                remember_documents(leaf.task, documents)
                if self.suite.write_out:
                    target = leaf.task.doc_to_target(documents[0])
                    progress.note(f"{leaf.name}, document {leaf.ids[0]}:\n{leaf.instances[0][0].args[0]}\n→ {target}")
        except Exception as error:
            task.error = reason(error)
            task.leaves = []

    def _requests(self, leaf: Leaf, index: int, document: Any) -> list[Instance]:
        task, chat = leaf.task, bool(self.suite.chat_template)
        template = self.lm.apply_chat_template if chat else None
        context = task.fewshot_context(
            document,
            num_fewshot=task.config.num_fewshot or 0,
            system_instruction=self.suite.system_instruction,
            apply_chat_template=chat,
            fewshot_as_multiturn=self.suite.fewshot_as_multiturn,
            chat_template=template,
            gen_prefix=task.doc_to_prefix(document),
        )
        if self.attack is not None:
            context = self._perturbed(leaf, index, document, context)
        made = task.construct_requests(
            doc=document,
            ctx=context,
            metadata=(task.config["task"], index, task.config.repeats),
            apply_chat_template=chat,
            chat_template=template,
        )
        if self.suite.enable_thinking and task.get_config("output_type") != "generate_until":
            raise UserError("thinking is for tasks that generate", where=leaf.name, do="leave it out of the suite")
        return sorted(made, key=lambda request: request.idx) if isinstance(made, list) else [made]

    def _perturbed(self, leaf: Leaf, index: int, document: Any, context: Any) -> Any:
        """A document's prompt (or its prompts, where options stand in them) under the suite's attack."""
        assert self.attack is not None
        seed = f"{self.suite.seed} {leaf.task.task_name} {index}"
        options = leaf.task.doc_to_choice(document) if leaf.task.config.doc_to_choice else []
        if isinstance(context, list):
            shared = options[0][: min(common(options[0], option) for option in options)].rpartition(" ")[0]
            return [perturb_prompt(self.attack, prompt, shared, [], seed) for prompt in context]
        return perturb_prompt(self.attack, context, leaf.task.doc_to_text(document), options, seed)

    def _asked(self, model: nn.Module, who: str, progress: Progress) -> tuple[list[BuiltTask], Scorer, dict[str, Any]]:
        """The tasks as this model is asked them, what answers them, and what an attack on its instructions found."""
        if not searches(self.suite.attack):
            return self.tasks, self.scorer, {}
        size = self.scorer.batch_size
        with self.lm.holding(model, size), progress.step(f"searching {self.suite.attack}") as step:
            try:
                tasks, found = attacked(self.tasks, self.suite, self.lm, model, size, step.advance)
            except NotFiniteError as error:
                raise UserError(str(error), where=who, do="the weights are broken") from None
        scorer = Scorer(self.lm, self.suite, [leaf for task in tasks for leaf in task.leaves])
        scorer.batch_size = size
        return tasks, scorer, found

    def _answers(
        self, tasks: list[BuiltTask], scorer: Scorer, model: nn.Module, who: str, progress: Progress
    ) -> dict[str, str]:
        """Run every request and put the answers into the task objects; failed tasks by name, with why."""
        failed = {}
        forget_answers(tasks)
        with self.lm.holding(model, scorer.batch_size):
            scorer.prepare(model)
            with progress.step("scoring", scorer.rows) as step:
                for task in tasks:
                    restore(task.states)
                    try:
                        for leaf in task.leaves:
                            scorer.run(leaf, model, step.advance)
                    except NotFiniteError as error:
                        where = f"{who}, task {task.key}"
                        raise UserError(str(error), where=where, do="the weights are broken") from None
                    except Exception as error:
                        if out_of_memory(error):
                            raise
                        failed[task.key] = reason(error)
        return failed


def check_dtype(model: nn.Module, suite: Suite) -> None:
    """UserError for a model whose weights have another dtype than the suite says."""
    dtype = str(getattr(model, "dtype", next(model.parameters()).dtype)).removeprefix("torch.")
    if dtype != suite.dtype:
        raise UserError(
            f"the model's weights are {dtype}, the suite says {suite.dtype}",
            where=f"suite {suite.name}",
            do=f"load the model in {suite.dtype}, or set suite.dtype={dtype}",
        )


def forget_answers(tasks: list[BuiltTask]) -> None:
    """Forget the answers: lm-eval would go on reading the first model's."""
    for leaf in (leaf for task in tasks for leaf in task.leaves):
        for request in leaf.task._instances or []:
            request.resps, request.filtered_resps = [], {}
