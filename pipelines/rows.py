"""From the store's results to the rows that a report is made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pyarrow
import pyarrow.parquet as pq

from pipelines.plan import Plan
from pipelines.report.rows import Kind, TrialRow
from pipelines.sources import Access
from pipelines.study import Planned
from pipelines.trial import Trial
from pipelines.worker import DOCUMENTS


def trial_rows(plan: Plan, access: Access) -> list[TrialRow]:
    """One row for each model of the study whose result the store holds; documents are read when asked for."""
    rows = []
    for planned in plan.layout.planned:
        if planned.trial is None or not access.store.has("results", planned.trial.key):
            continue
        entry = access.store.entry("results", planned.trial.key)
        about = entry.describe()
        tasks = {name: task for name, task in about["tasks"].items() if not task["error"]}
        rows.append(
            TrialRow(
                study=plan.name,
                pool=planned.pool,
                kind=cast(Kind, planned.kind),
                method=planned.label if planned.kind == "merge" else None,
                label=_title(planned),
                experts=planned.experts,
                parameters=planned.parameters,
                key=planned.trial.key,
                scores={name: task["value"] for name, task in tasks.items()},
                n={name: task["n"] for name, task in tasks.items()},
                documents=_reader(entry.folder / DOCUMENTS),
                suite=planned.trial.suite.name,
                seconds=about.get("seconds", {}),
                attack=planned.trial.suite.attack,
                weights=_kept(planned.trial, access),
                base=planned.trial.base.fingerprint,
                reference=plan.layout.references.get(planned.pool),
            )
        )
    return rows


def _kept(trial: Trial, access: Access) -> str | None:
    kept = trial.merge is not None and access.store.has("merges", trial.model_key)
    return str(access.store.folder("merges", trial.model_key)) if kept else None


def _title(planned: Planned) -> str:
    return f"{planned.label} of {', '.join(planned.experts)}" if planned.kind == "merge" else planned.label


def _reader(file: Path) -> Callable[[], pyarrow.Table]:
    return lambda: pq.read_table(file)
