"""How a result came about, from its entry in the store: what two results must share to be averaged."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

import conf
from conf.errors import UserError, markdown_text
from conf.schema import Lora, Optimizer, Training
from pipelines.checkpoints.card import base_name
from pipelines.store.integrity import read_entry
from pipelines.store.store import KINDS, content_key

UNKNOWN = "—"
"""What an older entry does not say, and what a checkpoint that was found does not tell."""
NO_TRAINING = ("steps", "epochs", "batch_size", "accumulation", "save_steps", "reporters")
"""Fields of a training that its description gives in another way, or that change nothing."""


def provenance(about: Mapping[str, Any]) -> dict[str, Any]:
    """Base, training, seeds, evaluation settings and machine of a result as plain columns.

    ``training`` and ``training_seed`` are those of the experts that the model is made of (None for a base),
    ``settings`` is a hash over all that an evaluation depends on. Where experts, or tasks, differ: all values.
    """
    settings, base = about["settings"], Path(about["base"]["path"])
    trained = about.get("training") or [training_of(expert["path"]) for expert in about["experts"]]
    return {
        "base": _entry(base).get("name") or base_name(base),
        **training_columns(trained),
        "linearised": about.get("linearised", False),
        "seed": about["model"].get("seed"),
        "merge_dtype": (about["recipe"] or {}).get("dtype"),
        "suite": about["suite"],
        "fewshot": None,
        "sample": None,
        "attack": _attack(settings),
        "chat_template": settings.get("chat_template", False),
        "options": None,
        "max_length": settings.get("max_length"),
        "dtype": settings["dtype"],
        "device": about.get("device") or UNKNOWN,
        "batch_size": about.get("batch_size") or UNKNOWN,
        "engine": _engine(about),
        "settings": content_key(settings)[:8],
        **asked_of(settings["tasks"], settings),
    }


def asked_of(tasks: Iterable[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that are of tasks: few-shots, sample and options, all values where they differ."""
    asked = [settings["tasks"][task] for task in tasks]
    return {
        "fewshot": joined("the task's own" if (n := t.get("num_fewshot", 0)) is None else n for t in asked),
        "sample": joined(_sample(t, settings) for t in asked),
        "options": joined(_options(t, settings) for t in asked),
    }


def _attack(settings: Mapping[str, Any]) -> str:
    """The attack by its present name: what was not searched was an edit of the documents."""
    kind, colon, model = settings.get("attack", "none").partition(":")
    return f"{kind}{'' if kind == 'none' or 'attack_search' in settings else '_document'}{colon}{model}"


def _options(task: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Settings that were chosen beyond the usual ones, such as ``gen_kwargs.temperature=0.7``; none."""
    chosen = dict(settings.get("options", {}))
    chosen |= {"trust_remote_code": " ".join(settings["code"])} if "code" in settings else {}
    chosen |= {f"gen_kwargs.{name}": value for name, value in task.get("gen_kwargs", {}).items()}
    chosen |= {name: task[name] for name in ("repeats",) if name in task}
    return " ".join(f"{name}={value}" for name, value in chosen.items()) or "none"


def training_columns(trained: Iterable[Mapping[str, Any] | None]) -> dict[str, Any]:
    """``training`` and ``training_seed`` of experts; all values where these differ."""
    experts = [training or {"how": UNKNOWN, "seed": UNKNOWN} for training in trained]
    return {"training": joined(e["how"] for e in experts), "training_seed": joined(e["seed"] for e in experts)}


def training_of(folder: str) -> dict[str, Any] | None:
    """How the expert in a folder was fine-tuned (all but defaults) and its seed; None for one not made here."""
    return training_told(_entry(Path(folder)))


def training_told(about: Mapping[str, Any]) -> dict[str, Any] | None:
    """The same from what an expert's entry says; None for another entry."""
    if "finetuning" not in about:
        return None
    method, optimizer, training = (dict(about[part]) for part in ("finetuning", "optimizer", "training"))
    name, lora = method.pop("method", "plain"), training.pop("lora")
    batch = training["batch_size"] * training["accumulation"]
    training = {key: value for key, value in training.items() if key not in NO_TRAINING}
    how = [
        _changed(name, method, _defaults(name)),
        _changed(f"{optimizer.pop('name')} lr={optimizer.pop('lr'):g}", optimizer, vars(Optimizer())),
        _changed(f"{_length(about)} of {batch}", training, vars(Training())),
        *([_changed("lora", lora, vars(Lora()))] if lora["rank"] else []),
    ]
    return {"how": ", ".join(how), "method": name, "seed": about["seed"]}


def training_costs(folder: str) -> dict[str, float]:
    """What the training of the expert in a folder took: seconds, tokens, bytes at the peak of memory (the
    accelerator's where it was trained on one, else the process's); what an older entry does not tell is left out."""
    summary = _entry(Path(folder)).get("summary", {})
    memory = summary.get("device_memory") or summary.get("memory")
    found = {"seconds": summary.get("seconds"), "tokens": summary.get("tokens"), "memory": memory}
    sampled, worst = summary.get("loss_sampled"), summary.get("loss_worst")
    losses = {"loss_sampled": sampled, "loss_worst": worst, "shortfall": worst - sampled} if sampled is not None else {}
    return {f"train_{name}": value for name, value in found.items() if value is not None} | losses


@lru_cache
def _defaults(method: str) -> dict[str, Any]:
    """The default parameters of a fine-tuning method, as its YAML gives them; none of an unknown one."""
    file = files(conf) / "finetuning" / f"{method}.yaml"
    return yaml.safe_load(file.read_text()) if file.is_file() else {}


def joined(values: Iterable[Any]) -> Any:
    """The one value that all share; otherwise all that there are, each once, as one text; None for none."""
    found = list(dict.fromkeys(value for value in values if value is not None))
    parts = dict.fromkeys(part for value in found for part in str(value).split(" + "))
    return found[0] if len(found) == 1 else " + ".join(parts) or None


def apart(
    rows: Sequence[Mapping[str, Any]], always: Collection[str], measured: Collection[str] = ()
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows for people, cut down to the columns that tell them apart, and what all of them share.

    Kept are the columns of ``always`` and ``measured``, and those in which rows differ that agree in all columns kept
    before but the measured ones. Of trainings only the method and what is not common to all of them is left.
    """
    trainings = [(row.get("training") or "").split(" + ") for row in rows]
    parts = [text.split(", ")[1:] for texts in trainings for text in texts if text]
    common = set.intersection(*map(set, parts)) if parts else set()
    cut = []
    for row, texts in zip(rows, trainings):
        own = (", ".join(part for part in text.split(", ") if part not in common) for text in texts)
        cut.append({**row, "training": joined(text or None for text in own)})
    names, same = list(always), {}
    for name in rows[0] if rows else ():
        kept = {tuple(row[n] for n in names) for row in cut}
        if len({row[name] for row in rows}) == 1:
            same[name] = rows[0][name]
        elif name not in measured and len(kept) < len({tuple(row[n] for n in (*names, name)) for row in cut}):
            names.append(name)
    if common:
        same["all training"] = ", ".join(part for part in parts[0] if part in common)
    same.pop("settings", None)
    shown = [name for name in (cut[0] if cut else ()) if name in {*names, *measured}]
    return [{name: row[name] for name in shown} for row in cut], {k: v for k, v in same.items() if k not in shown}


def said(columns: Mapping[str, Any]) -> str:
    """Columns as one line for people, without those that are not there, not known or switched off."""
    return ", ".join(
        f"{name.replace('_', ' ')} {str(value).replace(UNKNOWN, 'unknown')}".strip()
        for name, value in columns.items()
        if value not in (None, "", "none", UNKNOWN) and value is not False
    )


def markdown(columns: Mapping[str, Any]) -> str:
    """Columns as a table of a model card, without those that are not known."""
    rows = [
        f"| {name.replace('_', ' ')} | {markdown_text(value)} |" for name, value in columns.items() if value is not None
    ]
    return "\n".join(["| how | |", "|---|---|", *rows, ""])


def scores_markdown(about: Mapping[str, Any]) -> str:
    """The scores of a result as a part of a model card, each with half of its 95 % interval."""
    rows = []
    for task, score in about["tasks"].items():
        value = "failed" if score["value"] is None else f"{score['value']:.4f}"
        half = "" if score["stderr"] is None else f" ± {1.96 * score['stderr']:.4f}"
        rows.append(f"| {markdown_text(task)} | {score['metric']} | {value}{half} | {score['n']} |")
    head = ["| task | metric | score, 95 % | documents |", "|---|---|---|---|"]
    return "\n".join([f"## Scores on {markdown_text(about['suite'])}", "", *head, *rows])


@lru_cache(maxsize=4096)
def _entry(folder: Path) -> dict[str, Any]:
    """What the entry in a folder of a store says of itself; nothing of another folder, whatever it holds."""
    with contextlib.suppress(UserError):
        return read_entry(folder.parent.name, folder) if folder.parent.name in KINDS else {}
    return {}


def _length(about: Mapping[str, Any]) -> str:
    """Epochs where these were asked for, else steps (as taken, where an older entry does not say what was asked)."""
    if "epochs" not in about:
        return _count(about["summary"]["steps"], "step")
    training, epochs = about["training"], about["epochs"]
    if epochs is None and training["steps"]:
        return _count(training["steps"], "step")
    passes = training["epochs"] if epochs is None else epochs
    return _count(passes, "epoch")


def _count(number: float, noun: str) -> str:
    return f"{number if number % 1 else int(number)} {noun}{'s' * (number != 1)}"


def _changed(start: str, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """A name, and the values that are not the defaults."""
    changed = {k: re.sub(r"[ ']", "", str(v)) for k, v in values.items() if v != defaults.get(k)}
    return " ".join([start, *(f"{name}={value}" for name, value in changed.items())])


def _sample(task: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """All documents of a split, or how many of them and how they were chosen."""
    split = f" of {task['split']}" if task.get("split") else ""
    if "documents" in task:
        return f"documents {', '.join(map(str, task['documents']))}{split}"
    if task["limit"] is None:
        return f"all{split}"
    count = f"{task['limit']}" if task["limit"] >= 1 else f"{task['limit']:.0%}"
    first = task.get("sample") == "first"
    return f"first {count}{split}" if first else f"{count}{split} drawn by seed {settings['seed']}"


def _engine(about: Mapping[str, Any]) -> str:
    """What scored, and whether contexts were really computed once for all of their options."""
    settings, versions = about["settings"], about.get("versions", {})
    packages = {**settings, **versions.get("packages", {})}
    parts = [f"{name} {packages[name]}" for name in ("lm_eval", "transformers", "torch") if name in packages]
    shared = versions.get("share_prefix", settings.get("share_prefix"))
    return ", ".join([*parts, "contexts shared" if shared else "nothing shared"])
