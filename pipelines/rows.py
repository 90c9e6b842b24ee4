"""From the store's results to the rows that a report is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pyarrow
import pyarrow.parquet as pq

from pipelines.plan import Plan
from pipelines.report.data import Kind, TrialRow
from pipelines.sources import Access
from pipelines.store.provenance import provenance
from pipelines.store.store import model_title
from pipelines.trial import Trial
from pipelines.worker import DOCUMENTS


def trial_rows(plan: Plan, access: Access) -> list[TrialRow]:
    """One row a model of the study, without scores where there is no result; documents are read when asked for."""
    rows = []
    for planned in plan.layout.planned:
        row = TrialRow(
            study=plan.name,
            pool=planned.pool,
            kind=cast(Kind, planned.kind),
            method=planned.label if planned.kind == "merge" else None,
            label=model_title("merge", planned.experts, planned.label) if planned.kind == "merge" else planned.label,
            experts=planned.experts,
            parameters=planned.parameters,
            key=planned.trial.key if planned.trial else "",
            scores={},
            n={},
            suite=planned.suite.name,
            attack=planned.suite.attack,
            reference=plan.layout.references.get(planned.pool),
        )
        scored = planned.trial is not None and access.store.has("results", planned.trial.key)
        rows.append(_scored(row, planned.trial, access) if planned.trial is not None and scored else row)
    return rows


def _scored(row: TrialRow, trial: Trial, access: Access) -> TrialRow:
    entry = access.store.entry("results", trial.key)
    about = entry.describe()
    tasks = {name: task for name, task in about["tasks"].items() if not task["error"]}
    return dataclasses.replace(
        row,
        scores={name: task["value"] for name, task in tasks.items()},
        n={name: task["n"] for name, task in tasks.items()},
        metrics={name: task["metric"] for name, task in tasks.items()},
        stderr={name: task["stderr"] for name, task in tasks.items()},
        documents=_reader(entry.folder / DOCUMENTS),
        seconds=about.get("seconds", {}),
        weights=_kept(trial, access),
        base=trial.base.fingerprint,
        provenance=provenance(about),
    )


def _kept(trial: Trial, access: Access) -> str | None:
    kept = trial.merge is not None and access.store.has("merges", trial.model_key)
    return str(access.store.folder("merges", trial.model_key)) if kept else None


def _reader(file: Path) -> Callable[[], pyarrow.Table]:
    return lambda: pq.read_table(file)
