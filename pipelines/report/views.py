"""The words that tables and figures of a study are declared in, and whether a declaration means something."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from conf.errors import UserError, nearest
from conf.schema import FigureView, TableView, Views

COLUMNS = (
    "study", "pool", "base", "training", "optimizer", "kind", "method", "base_method", "label", "setting", "n",
    "experts", "subset", "order", "draw", "seed", "train_seed", "suite", "attack", "split", "panel", "task", "metric",
    "key",
)  # fmt: skip
"""Columns that every study's trials have, besides parameters of merge methods and settings of pools."""
OF_MODELS = (
    "kind", "method", "base_method", "label", "n", "size", "experts", "subset", "order", "draw", "seed", "parameters",
    "key", "weights", "merge_dtype", "update_norm", "trial", "unit", "value", "stderr", "setting",
)  # fmt: skip
"""Columns of a single model: a base and experts that stand beside merges have none of the merges' values there."""


class Measure(NamedTuple):
    """What a measure is called on an axis, its decimals, and whether more (1) or less (-1) is better (0: neither)."""

    title: str
    digits: int = 3
    better: int = 0


MEASURES = {
    "score": Measure("mean score", 3, 1),
    "own": Measure("mean score on the experts' own tasks", 3, 1),
    "stderr": Measure("standard error"),
    "reference": Measure("score of the reference"),
    "change": Measure("relative change in %", 2, 1),
    "difference": Measure("difference", 3, 1),
    "above": Measure("share above in %", 0, 1),
    "ratio": Measure("ratio", 2),
    "pdr": Measure("performance drop rate", 3, -1),
    "kept": Measure("share of own-skill gain kept", 2, 1),
    "kept_each": Measure("mean of the single experts' shares kept", 2, 1),
    "normalised": Measure("share of each task's own expert", 3, 1),
    "constructive": Measure("share constructive in %", 0, 1),
    "joint_share": Measure("share of joint training's gain reached", 2, 1),
    "expert_ratio": Measure("merged ÷ experts on their own tasks", 2, 1),
    "worst": Measure("score on the worst task", 3, 1),
    "answer_length": Measure("characters of a generated answer", 0),
    "models": Measure("models", 0),
    "update_norm": Measure("‖θ − θ0‖", 3),
    "seconds": Measure("seconds of merging and scoring", 1, -1),
    "train_seconds": Measure("seconds of training", 1, -1),
    "train_tokens": Measure("tokens trained on", 0),
    "train_memory": Measure("peak memory of training in bytes", 0, -1),
    "loss_sampled": Measure("loss at sampled offsets", 3),
    "loss_worst": Measure("largest loss that ascent met", 3),
    "shortfall": Measure("how far the sampled loss falls short", 3),
}
RELATIVE = ("change", "difference", "above", "ratio", "reference")
"""Measures that are taken against the view's reference, of the measure named before them (score where none is)."""
KINDS = ("lines", "bars", "scatter", "heat", "contour", "radar", "histogram", "ranks")
MODELS = ("base", "experts", "mean_expert", "best_expert", "joint")
"""Rows and lines beside those of the trials selected."""
NAMES = {"base": "pre-trained", "experts": "experts on their own tasks", "mean_expert": "mean of experts",
         "best_expert": "best expert", "joint": "joint training"}  # fmt: skip
BANDS = ("interval", "std", "seeds", "none")
GEOMETRY = ("norms", "cosines", "layers", "laplace")


def several(columns: Any) -> list[str]:
    """The columns that blocks or panels are made by: none, one, or a list of them."""
    return [] if columns is None else [columns] if isinstance(columns, str) else [str(name) for name in columns]


def measure_of(name: str) -> Measure:
    """A measure's words; a parameter's are its name."""
    return MEASURES.get(name, Measure(name, 3))


def check_views(views: Views, columns: Collection[str]) -> list[UserError]:
    """What is wrong with tables and figures of a study whose trials have ``columns`` beside those that all have."""
    known = {*COLUMNS, *columns}
    found = []
    for part, declared in (("tables", views.tables), ("figures", views.figures)):
        for name, view in declared.items():
            where = f"report.{part}.{name}"
            if not name.replace("_", "a").replace("-", "a").isalnum():
                found.append(UserError(f"{name!r} is no name of a file", where=where, do="use letters, digits and _"))
            found += [_wrong(word, what, f"{where}.{key}", valid) for key, what, word, valid in _words(view, known)
                      if word not in valid]  # fmt: skip
    found += [_wrong(part, "part of the geometry", "report.geometry", GEOMETRY)
              for part in views.geometry if part not in GEOMETRY]  # fmt: skip
    return found


def _wrong(word: str, what: str, where: str, valid: Collection[str]) -> UserError:
    return UserError(f"no {what} is called {word!r}", where=where, do=nearest(str(word), valid))


def _words(view: TableView | FigureView, columns: Collection[str]) -> Iterator[tuple[str, str, str, Collection[str]]]:
    """Every word of a view: the key it stands under, what it is to be, itself, and what it may be."""
    either = {*columns, *MEASURES}
    for key, names in _columns(view).items():
        yield from ((key, "column", name, columns) for name in names)
    for kind in [view.where["kind"]] if isinstance(view.where.get("kind"), str) else view.where.get("kind", []):
        yield "where.kind", "kind of model", kind, ("base", "expert", "joint", "merge")
    yield "band", "band", view.band, BANDS
    if isinstance(view.reference, Mapping):
        names = list(view.reference)
        place = [*view.rows, *view.columns] if isinstance(view, TableView) else [*view.lines, view.x]
        yield from (("reference", "row or column of the view", name, place) for name in names)
    else:
        yield "reference", "reference", view.reference, ("base", "best_expert", "joint")
    if isinstance(view, TableView):
        yield from (("also", "row", name, MODELS) for name in view.also)
        yield from (("measures", "measure", name, either) for name in view.measures)
        return
    yield "kind", "kind of figure", view.kind, KINDS
    yield from (("references", "reference line", name, MODELS) for name in view.references)
    yield "x", "column or measure", view.x, either
    yield "y", "column or measure", view.y, either
    yield "z", "measure", view.z, either


def _columns(view: TableView | FigureView) -> dict[str, Sequence[str]]:
    shared = {"where": list(view.where)}
    if isinstance(view, TableView):
        return {**shared, "blocks": several(view.blocks), "rows": view.rows, "columns": view.columns}
    return {**shared, "panels": several(view.panels), "lines": view.lines, "points": view.points}


def wanted(view: TableView | FigureView) -> dict[str, Any]:
    """The conditions of a view, which is of merges, and not of a selection's candidates, unless it says otherwise."""
    return {"kind": "merge", "split": None, **view.where}


def select(frame: pd.DataFrame, where: Mapping[str, Any]) -> pd.DataFrame:
    """The lines whose columns have the values asked for, one or a list; of columns that are not there: none."""
    for name, wanted in where.items():
        values = wanted if isinstance(wanted, (list, tuple)) else [wanted]
        own = frame[name] if name in frame else pd.Series(None, index=frame.index, dtype=object)
        frame = frame[own.isin(values) | (own.isna() & (None in values))]
    return frame
