"""What runs trials: one live model whose weights are swapped, one evaluator whose requests are built once."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
import re
import time
import traceback
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import torch
from torch import nn

from conf.errors import UserError, disk_full, out_of_memory, redacted
from conf.schema import Executor, Suite
from pipelines.checkpoints.fingerprint import WeightHash
from pipelines.checkpoints.load import load_model, quantised, spread
from pipelines.evaluate.evaluator import Evaluator
from pipelines.evaluate.image_scorer import ImageEvaluator
from pipelines.evaluate.image_suite import of_images
from pipelines.evaluate.score import Evaluation
from pipelines.evaluate.vllm_engine import VllmEngine
from pipelines.finetune.tangent import linearised
from pipelines.merge.cache import MergeCache
from pipelines.merge.live import merge_into
from pipelines.merge.resident import DeviceTensors
from pipelines.merge.stream import Merge, single_model
from pipelines.merge.write import write_tokenizer
from pipelines.process import free_memory, give_back, threads
from pipelines.progress import SILENT, Progress
from pipelines.store.provenance import training_of
from pipelines.store.samples import DOCUMENTS, SAMPLES
from pipelines.store.store import content_key
from pipelines.study.sources import Access, Source
from pipelines.study.trial import Trial, open_merge

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

Attempt = tuple[str, str, dict[str, float]]
"""What became of a trial (done, elsewhere or failed), why it failed, and seconds by part."""


class Worker:
    """Runs trials one after another; what they share (model, requests, mapped experts) is made once."""

    def __init__(self, access: Access, executor: Executor, progress: Progress = SILENT):
        self.access, self.executor, self.progress = access, executor, progress
        self.device = find_device(executor)
        self.resident = DeviceTensors(self.device) if self.device.type == "cuda" else None
        self._open = cache(access.open)
        self._evaluators: dict[str, Evaluator | ImageEvaluator] = {}
        self._cache: tuple[str, MergeCache] | None = None
        self._live: tuple[tuple[str | None, ...], nn.Module] | None = None
        self._engine = VllmEngine(executor.vllm_memory, self._make_room)

    def attempt(self, trial: Trial) -> Attempt:
        """Run a trial unless the store holds its result; what became of it (done, elsewhere or failed)."""
        try:
            if self.access.store.has("results", trial.key, complete=True):
                return "elsewhere", "", {}
            about = self._run_twice(trial)
        except UserError as error:
            return "failed", str(error), {}
        except Exception as error:
            if disk_full(error):
                raise
            where = traceback.extract_tb(error.__traceback__)[-1].name
            return "failed", redacted(f"{type(error).__name__}: {error} [{where}]"), {}
        errors = [f"{name}: {task['error']}" for name, task in about["tasks"].items() if task["error"]]
        return ("failed", "; ".join(errors), {}) if errors else ("done", "", about["seconds"])

    def _run_twice(self, trial: Trial) -> dict[str, Any]:
        """Run a trial; where memory runs out once more, with nothing else held. UserError where that is too little."""
        try:
            return self.run(trial)
        except Exception as error:
            if not out_of_memory(error):
                raise
        self._forget()
        try:
            return self.run(trial)
        except Exception as error:
            if not out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0]
        self._forget()
        count = sum(info.count for info in self._open(trial.base.path).header.values())
        size, free = count * DTYPES[trial.suite.dtype].itemsize / 1e9, free_memory(self.device) / 1e9
        what = f"out of memory: the model takes {size:.2f} GB, {free:.2f} GB are free ({reason[:200]})"
        do = "choose suite.dtype=bfloat16, a smaller suite.batch_size or model, or another executor.device"
        raise UserError(what, where=trial.title, do=do)

    def _forget(self) -> None:
        """Give back all that trials share: it is made again where it is needed."""
        self._make_room()
        self._engine.close()
        self._live, self._cache = None, None
        self._evaluators.clear()
        self._open.cache_clear()
        give_back()

    def run(self, trial: Trial) -> dict[str, Any]:
        """Score one trial and commit its result; returns what the store's entry says of it."""
        start, before = time.perf_counter(), self._traffic()
        merge = self.merge(trial)
        merge.digest = WeightHash() if trial.merge else None
        merge.origin = None if trial.kind == "base" else self._open(trial.base.path)
        model = self.model(trial, merge)
        _check_whole(trial, self.executor)
        vector = self.vector(trial, model) if trial.linearised else None
        _check_reads(model, trial)
        merged, after = time.perf_counter(), self._traffic()
        evaluator = self.evaluator(trial, self._reader(trial, merge))
        if trial.suite.quantization:
            model = quantised(model, trial.suite.quantization)
        with linearised(model, vector), self.resident.beside() if self.resident else nullcontext():
            evaluation = evaluator.evaluate(
                model, name=trial.title, source=trial.source, progress=self.progress, make_room=self._make_room
            )
        evaluated = time.perf_counter()
        about = {**trial.about(), **_account(evaluation), "device": self.device_name}
        about["training"] = [training_of(expert.path) for expert in trial.experts]
        about["weights"] = merge.digest.hexdigest() if merge.digest else None
        about["update_norm"] = merge.update_norm
        about["bytes"] = {name: after[name] - before[name] for name in before}
        with self.access.store.commit("results", trial.key, about) as draft:
            pq.write_table(evaluation.documents, draft / DOCUMENTS, compression="zstd")
            if evaluation.samples.num_rows:
                samples = evaluation.samples  # statistics of its columns would be texts again
                pq.write_table(samples, draft / SAMPLES, compression="zstd", write_statistics=False)
            (draft / "lm_eval.json").write_text(redacted(json.dumps(evaluation.lm_eval, indent=1, default=str)))
            about["seconds"] = {
                "merge": merged - start,
                "evaluate": evaluated - merged,
                "commit": time.perf_counter() - evaluated,
            }
        return about

    def model(self, trial: Trial, merge: Merge | None = None) -> nn.Module:
        """The live model, holding the trial's weights."""
        model = self._live_model(trial.base.path, trial.suite)
        merge = merge or self.merge(trial)
        if self.resident is not None:
            self.resident.fit(merge.working_bytes, self.executor.expert_memory)
        with threads(self.executor.threads):
            while True:
                try:
                    merge_into(model, merge, progress=self.progress)
                    return model
                except torch.OutOfMemoryError:
                    if not self._make_room():
                        raise

    def _make_room(self) -> bool:
        """Give the memory of resident experts back; whether there was any."""
        return self.resident is not None and self.resident.give_way()

    def _traffic(self) -> dict[str, int]:
        """Bytes that this process has read from the disk (as far as the system tells) and copied to the device."""
        counters = getattr(psutil.Process(), "io_counters", None)
        found = {"read": counters().read_bytes} if counters else {}
        return found | ({"copied": self.resident.copied} if self.resident else {})

    def vector(self, trial: Trial, model: nn.Module) -> dict[str, torch.Tensor]:
        """θ − θ0 of a trial, in place of whose θ the live model then holds θ0.

        Raises UserError where they differ in shape.
        """
        path = trial.base.path
        vector = {name: p.detach().clone() for name, p in model.named_parameters()}
        merge_into(model, single_model(self._open(path), self._open(path)))
        for name, theta0 in model.named_parameters():
            if name not in vector or vector[name].shape != theta0.shape:
                do = "merge with vocab=base, or score it as a network with suite.linearised=false"
                raise UserError(f"{name} is not of the base's shape, so nothing is linear in it", where=path, do=do)
            vector[name] -= theta0.detach()
        return vector

    def merge(self, trial: Trial) -> Merge:
        """The trial's weights as a merge; those of a base or an expert as they are."""
        cache = self._cache_of(trial.base)
        if trial.merge is None:
            made = single_model(self._open(trial.base.path), self._open((trial.experts or (trial.base,))[0].path))
        else:
            made = open_merge(trial.merge, trial.base, trial.experts, trial.information, self._open, cache)
        made.resident = self.resident
        return made

    def _cache_of(self, base: Source) -> MergeCache:
        """What merges of a base share; that of another base is dropped."""
        if self._cache is None or self._cache[0] != base.fingerprint:
            if self.resident is not None:
                self.resident.clear()
            kind = "" if self.device.type == "cpu" else f"-{self.device.type}"
            folder = self.access.store.cache / "factors" / f"{base.fingerprint[:32]}{kind}"
            self._cache = (base.fingerprint, MergeCache(folder, device=str(self.device)))
        return self._cache[1]

    def _reader(self, trial: Trial, merge: Merge) -> str:
        """Folder of the tokenizer that the trial's model is read with; a merge of vocabularies has one of its own."""
        if trial.merge is None or trial.merge.vocab != "union":
            return trial.reader
        folder = self.access.store.cache / "tokenizers" / trial.model_key
        return str(folder) if write_tokenizer(merge, folder) else trial.reader

    def evaluator(self, trial: Trial, reader: str) -> Evaluator | ImageEvaluator:
        """The evaluator of the trial's suite and a tokenizer, its requests already built."""
        key = content_key({"suite": trial.suite_fingerprint, "tokenizer": reader})
        if key not in self._evaluators:
            where: dict[str, Any] = {"datasets": self.access.datasets, "online": self.access.online}
            where |= {"threads": self.executor.threads, "progress": self.progress}
            if of_images(trial.suite):
                made: Any = ImageEvaluator(trial.suite, Path(reader), **where, cache=self.access.store.cache)
            else:
                made = Evaluator(trial.suite, Path(reader), **where, engine=self._engine)
            self._evaluators[key] = made
        return self._evaluators[key]

    @property
    def device_name(self) -> str:
        """What a result's entry calls the device."""
        cuda = self.device.type == "cuda"
        return torch.cuda.get_device_name(self.device) if cuda else f"cpu ({platform.machine()})"

    def _live_model(self, base: str, suite: Suite) -> nn.Module:
        loaded = (base, suite.dtype, suite.attn_implementation, *suite.trust_remote_code)
        if self._live is None or self._live[0] != loaded:
            self._live = None  # free the previous base before the next one is loaded
            on = torch.device("cpu") if self.executor.device_map else self.device
            model = _load(base, suite, on)
            self._live = loaded, spread(model) if self.executor.device_map else model
        return self._live[1]


def _load(folder: str, suite: Suite, device: torch.device) -> nn.Module:
    from transformers.utils.logging import disable_progress_bar

    dtype, attention, trust = suite.dtype, suite.attn_implementation, suite.trust_remote_code
    if dtype not in DTYPES:
        raise UserError(f"no dtype is called {dtype!r}", where="suite.dtype", do=f"choose one of {', '.join(DTYPES)}")
    disable_progress_bar()
    model = load_model(folder, DTYPES[dtype], str(device), whole=False, attention=attention, trust=trust)
    return model.to(device).eval()


def _check_reads(model: nn.Module, trial: Trial) -> None:
    """UserError for a suite of pictures and a model that reads text, or the reverse."""
    pictures = getattr(model, "main_input_name", "input_ids") == "pixel_values"
    if pictures != of_images(trial.suite):
        reads, given = ("pictures", "text") if pictures else ("text", "pictures")
        what = f"the model reads {reads}, suite {trial.suite.name} is of {given}"
        raise UserError(what, where=trial.base.path, do="choose another suite, or another model")


def _check_whole(trial: Trial, executor: Executor) -> None:
    """UserError for a suite that scores something else than the live model itself, as it lies on its devices."""
    suite = trial.suite
    further = {"quantization": suite.quantization, "generate_with": suite.generate_with == "vllm"}
    names = [f"suite.{name}" for name, chosen in further.items() if chosen]
    if trial.linearised and names:
        do = f"leave {names[0]} out, or score it as a network with suite.linearised=false"
        what = "a linearised model cannot be quantised" if suite.quantization else "vLLM runs no linearised model"
        raise UserError(what, where=trial.title, do=do)
    if executor.device_map and (names or trial.linearised or of_images(suite)):
        names += ["suite.linearised"] * trial.linearised + ["the pictures"] * of_images(suite)
        what = f"{names[0]} wants the whole model on one device"
        raise UserError(what, where=trial.title, do="leave executor.device_map out")


def find_device(executor: Executor) -> torch.device:
    """The device where trials run; ``auto`` takes a GPU where there is one. Raises UserError for one that is not here.

    Of a model that ``device_map`` spreads over several it is the one where merges are computed.
    """
    name = executor.device
    if executor.device_map is not None and (executor.device_map, name) != ("auto", "auto"):
        what = f"executor.device_map={executor.device_map} with executor.device={name}"
        raise UserError(what, where="executor.device_map", do="set it to auto, and leave executor.device out")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UserError(f"no device is called {name!r}", where="executor.device", do="choose auto, cpu, cuda or cuda:N")
    device = torch.device(name)
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        do = "choose cpu, or see `mergebench doctor`"
        raise UserError(f"this machine has no device {name}", where="executor.device", do=do)
    return device


def _number(value: float) -> float | None:
    """A number as JSON takes it: None where there is none."""
    return None if math.isnan(value) else value


def _account(evaluation: Evaluation) -> dict[str, Any]:
    """The numbers of an evaluation, as the store's entry keeps them."""
    tasks = {
        name: {**dataclasses.asdict(task), "value": _number(task.value), "stderr": _number(task.stderr)}
        for name, task in evaluation.tasks.items()
    }
    return {
        "tasks": tasks,
        "batch_size": evaluation.batch_size,
        "versions": evaluation.versions,
        "incomplete": any(task["error"] for task in tasks.values()),
        **({} if math.isnan(evaluation.answer_length) else {"answer_length": evaluation.answer_length}),
    }
