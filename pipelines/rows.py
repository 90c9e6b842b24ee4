"""From the store's results to the rows that a report is made of."""

from __future__ import annotations

from pipelines.plan import Plan
from pipelines.report import TrialRow
from pipelines.sources import Access


def trial_rows(plan: Plan, access: Access, suite: str) -> list[TrialRow]:
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
                kind=planned.kind,
                method=planned.trial.merge.method if planned.trial.merge else None,
                label=planned.label,
                experts=planned.experts,
                parameters=planned.parameters,
                key=planned.trial.key,
                scores={name: task["value"] for name, task in tasks.items()},
                n={name: task["n"] for name, task in tasks.items()},
                documents=entry.folder / "documents.parquet",
                suite=suite,
                seconds=about.get("seconds", {}),
            )
        )
    return rows
