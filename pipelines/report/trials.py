"""One line a trial."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from pipelines.report.leaderboard import MergeStanding
from pipelines.report.panel import Panel
from pipelines.report.rows import TrialRow


def trial_lines(panel: Panel, standings: dict[int, MergeStanding]) -> list[dict[str, Any]]:
    """Every trial of the panel as plain columns, best first within base, experts and merges; incomplete ones last."""
    tail = (1 - panel.statistics.confidence) / 2
    low, high = np.quantile(panel.replicates, [tail, 1 - tail], axis=1) if panel.rows else ([], [])
    rank = {"base": 0, "expert": 1, "merge": 2}
    order = sorted(range(len(panel.rows)), key=lambda i: (rank[panel.rows[i].kind], -panel.scores[i]))
    lines = []
    for i in order:
        line = _describe(panel.rows[i]) | {"score": float(panel.scores[i])}
        line |= {"score_low": float(low[i]), "score_high": float(high[i])}
        if panel.base is not None and i != panel.base:
            line["to_base"] = float(panel.scores[i] - panel.scores[panel.base])
        judged = standings.get(i)
        if judged is not None and judged.standing is not None:
            line |= {"above_base": judged.standing.above_base, "above_mean": judged.standing.above_mean}
            line |= {"constructive": judged.standing.constructive, "constructive_p": judged.p}
        if np.isfinite(panel.kept[i]):
            line["kept"] = float(panel.kept[i])
        lines.append(line | _measured(panel.rows[i]))
    for row in panel.incomplete:
        note = "incomplete: a task has no score" if row.scored else "no result yet"
        lines.append(_describe(row) | {"note": note} | _measured(row))
    return lines


def _describe(row: TrialRow) -> dict[str, Any]:
    return {
        "study": row.study,
        "pool": row.pool,
        "suite": row.suite,
        "attack": row.attack,
        "kind": row.kind,
        "method": row.method,
        "label": row.label,
        "experts": "+".join(row.experts),
        "size": len(row.experts),
        "parameters": json.dumps(dict(row.parameters), sort_keys=True, default=str) if row.parameters else "",
        "key": row.key,
        **{name: value for name, value in row.provenance.items() if name != "suite"},
    }


def _measured(row: TrialRow) -> dict[str, Any]:
    line: dict[str, Any] = {f"task.{task}": float(value) for task, value in row.scores.items()}
    line["documents"] = sum(row.n.values())
    line |= {f"seconds.{stage}": float(value) for stage, value in row.seconds.items()}
    return line | ({"weights": str(row.weights)} if row.weights else {})
