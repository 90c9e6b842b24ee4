"""Columns of a study's tidy table beyond those that every trial has: settings of its pools, parameters, costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conf.schema import Config, Pool
from mergeopt_core.merging.mergekit_api import describe, names
from pipelines.store.provenance import training_costs
from pipelines.study.trial import Trial


def pool_columns(pool: Pool) -> dict[str, Any]:
    """How a pool's experts are trained, by dotted name: optimizer, optimizer.lr, training.steps, finetuning.scale."""
    if not pool.tasks:
        return {}
    parts = {"optimizer": vars(pool.optimizer), "training": vars(pool.training), "finetuning": pool.finetuning}
    found = {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
    found |= {"optimizer": found.pop("optimizer.name"), "budget": pool.budget}
    found.pop("finetuning.method", None)
    return {name: value for name, value in found.items() if isinstance(value, (str, int, float))}


def view_columns(config: Config) -> set[str]:
    """Names of the columns that a study's trials will have: of settings also their last word."""
    known = {name for pool in config.pools.values() for name in pool_columns(pool)}
    known |= {name.rpartition(".")[2] for name in known}
    for method in config.methods.values():
        known |= {*method, *method.get("grid", ())}
        known |= {p.name for p in describe(method["method"]).parameters} if method.get("method") in names() else set()
    return known - {"grid", "draws", "select"}


def measured(trial: Trial, about: Mapping[str, Any]) -> dict[str, Any]:
    """``base_method`` (the method that mixup is put before, or the merge's own), the norm of a model's update, its
    answers' length, and what the training of an expert took, where the store tells."""
    found: dict[str, Any] = {}
    if trial.merge is not None:
        found["base_method"] = trial.merge.parameters.get("base_method") or trial.merge.method
    found |= {name: about[name] for name in ("update_norm", "answer_length") if about.get(name) is not None}
    return found | (training_costs(trial.experts[0].path) if trial.kind == "expert" else {})
