"""The trials of a view sorted into cells by its columns, with bases and experts beside the merges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from pipelines.report.cells import Cell, Key, Trials
from pipelines.report.views import NAMES, OF_MODELS, select

SHARED = ["study", "pool", "suite", "attack", "task"]
"""What a base or expert and a merge have in common where they stand in one column, block or panel."""
LABELS = tuple(NAMES.values())


def group(frame: pd.DataFrame, named: Sequence[str], placed: Sequence[str]) -> dict[tuple[Key, Key], Cell]:
    """Cells by the values of the columns that name them (empty where there is none) and of those that place them.

    Lines without a value in a column that places them are left out. A base or an expert that stands in several pools,
    or on several choices of a suite's tasks, counts once.
    """
    frame = frame.dropna(subset=[name for name in placed if name in frame])
    keys = [_values(frame, name) for name in (*named, *placed)]
    found: dict[tuple[Key, Key], dict[tuple[int, str], list[str]]] = {}
    seen: set[tuple[Any, ...]] = set()
    lines = zip(*keys) if keys else [()] * len(frame)
    told = [frame[name] for name in ("trial", "unit", "task", "kind", "key", "attack")]
    for key, trial, unit, task, kind, own, attack in zip(lines, *told):
        if kind != "merge" and own:
            if (key, unit, task, own, attack) in seen:
                continue
            seen.add((key, unit, task, own, attack))
        cell = found.setdefault((key[: len(named)], key[len(named) :]), {})
        cell.setdefault((trial, unit), []).append(task)
    return {key: _cell(members) for key, members in found.items()}


def _cell(members: Mapping[tuple[int, str], list[str]]) -> Cell:
    trials, units = zip(*members)
    return Cell(trials, tuple(map(tuple, members.values())), units)


def _values(frame: pd.DataFrame, name: str) -> list[Any]:
    if name not in frame:
        return [""] * len(frame)
    return ["" if missing else value for value, missing in zip(frame[name].tolist(), frame[name].isna())]


def models(trials: Trials, name: str, where: Mapping[str, Any]) -> pd.DataFrame:
    """Lines of the base, the experts (``experts``: each on the task of its name where tasks are named so, together as
    one model), or the best one, under those of a view's conditions that hold for them."""
    frame = trials.frame[trials.frame["kind"] == (name if name in ("base", "joint") else "expert")]
    if where.get("split") is not None:  # candidates alone are scored there
        return frame.iloc[:0]
    frame = select(frame, {key: value for key, value in where.items() if _shared(frame, key)})
    if name == "experts" and (own := frame["task"] == frame["experts"]).any():
        return frame[own].assign(unit=frame["unit"].str.partition("|")[0] + "|experts")
    if name == "best_expert":
        best = [trials.best(panel) for panel in trials.panels]
        kept = [panel.trials[row] for panel, row in zip(trials.panels, best) if row is not None]
        return frame[frame["trial"].isin(kept)]
    return frame


def _shared(frame: pd.DataFrame, column: str) -> bool:
    """Whether bases or experts have values of their own in a column, as merges have."""
    return column not in OF_MODELS and column in frame and bool(frame[column].notna().any())


def beside(
    frame: pd.DataFrame, merges: pd.DataFrame, spread: Iterable[str], named: Sequence[str] = (), label: str = ""
) -> pd.DataFrame:
    """Lines of a base or experts brought to where the merges stand.

    In columns of ``spread`` that are of merges alone they stand at every value that merges of the same pool, suite,
    attack and task have. Of the columns ``named``, the first that is of merges alone takes the label, others are empty.
    """
    if frame.empty:  # a study may leave its base or its experts out
        return frame
    missing = [name for name in spread if not _shared(frame, name)]
    if missing:
        places = merges.reindex(columns=[*SHARED, *missing]).drop_duplicates()
        frame = frame.drop(columns=missing, errors="ignore").merge(places, on=SHARED)
        if "subset" in missing:
            inside = [set(own.split("+")) <= {"", *subset.split("+")} for own, subset in
                      zip(frame["experts"], frame["subset"])]  # fmt: skip
            frame = frame[inside]
    if label:
        own = [name for name in named if not _shared(frame, name)]
        shared = label == NAMES["base"] or (label == NAMES["joint"] and not own and _one_model(frame, named[0]))
        labelled = dict.fromkeys(named if shared else own, "")
        first = next(iter(own), named[0])
        told = label if own or shared else label + " · " + frame[named[0]].astype(str)
        frame = frame.assign(**labelled).assign(**{first: told})
    return frame


def _one_model(frame: pd.DataFrame, column: str) -> bool:
    """Whether the trials at every value of a column are of the same models."""
    return bool(frame.groupby(column)["key"].agg(frozenset).nunique() == 1)


def ordered(values: Iterable[Any], where: Any = None) -> list[Any]:
    """Distinct values as the view lists them; else numbers by size, others as they appear; none first."""
    found = list(dict.fromkeys(values))
    if isinstance(where, (list, tuple)):
        return sorted(found, key=lambda v: list(where).index(v) if v in where else -1)
    if all(isinstance(v, (int, float)) for v in found if v != ""):
        return sorted(found, key=lambda v: (v != "", v if v != "" else 0))
    return found


def sort_keys(keys: Iterable[Key], columns: Sequence[str], where: Mapping[str, Any]) -> list[Key]:
    """Distinct tuples of values, column by column in the order of ``ordered``."""
    distinct = list(dict.fromkeys(keys))
    places = [{v: i for i, v in enumerate(ordered((key[c] for key in distinct), where.get(name)))}
              for c, name in enumerate(columns)]  # fmt: skip
    return sorted(distinct, key=lambda key: tuple(place[v] for place, v in zip(places, key)))


def text(value: Any) -> str:
    """A value of a column as people read it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


def label_of(names: Iterable[str], values: Iterable[Any]) -> str:
    """Values of columns as people read them, a number with its column's name before it: ``ties · lambda=0.1``."""
    return " · ".join(text(v) if isinstance(v, str) else f"{name}={text(v)}" for name, v in zip(names, values))
