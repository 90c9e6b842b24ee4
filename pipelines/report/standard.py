"""Tables and figures that every report has, in the words in which studies declare their own."""

from __future__ import annotations

from conf.schema import FigureView, TableView, Views
from pipelines.report.cells import Trials

CLEAN = {"attack": "none"}


def standard(trials: Trials) -> Views:
    """The views of every study that has trials for them; every setting of a grid is a line of its own."""
    frame = trials.frame
    method = "setting" if "setting" in frame and frame["setting"].notna().any() else "method"
    joint = ["joint"] if (frame["kind"] == "joint").any() else []
    tables = {
        "by_task": TableView(
            title="Mean score by task", where=CLEAN, blocks="pool", rows=["method", "n"], columns=["task"],
            also=["base", "mean_expert", "best_expert", *joint], mean=True,
        ),
        "experts": TableView(
            title="Experts on their own task, against the base, and over the whole suite", where={"kind": "expert"},
            blocks="panel", rows=["label"], measures=["own", "reference", "difference", "score"],
        ),
        "kept": TableView(
            title="Share of the experts' gain on their own tasks that merging keeps", blocks="panel", rows=[method],
            columns=["n"], measures=["kept"], errors=True, digits=3,
        ),
    }  # fmt: skip
    if (frame["attack"] != "none").any():
        tables["robustness"] = TableView(
            title="Score and performance drop rate, (clean − attacked) / clean", blocks="pool", rows=[method, "n"],
            columns=["attack"], measures=["score", "pdr"], also=["base", "mean_expert"],
        )  # fmt: skip
    figures = {
        "score_by_experts": FigureView(
            title="Mean score by number of experts merged", lines=[method], panels="panel",
            references=["base", "best_expert", "mean_expert", *joint],
        ),
        "kept_by_experts": FigureView(
            title="Share of own-skill gain kept by number of experts merged", y="kept", lines=[method], panels="panel",
        ),
    }  # fmt: skip
    return Views(tables=tables, figures=figures)
