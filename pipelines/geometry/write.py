"""From checkpoints to the tables and figures of their geometry, in one folder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from conf.errors import UserError, nearest
from conf.schema import Geometry
from pipelines.checkpoints.checkpoint import OpenCheckpoint
from pipelines.geometry import tables
from pipelines.geometry.measure import Measured, measure
from pipelines.progress import SILENT, Progress
from pipelines.report.figures import draw
from pipelines.report.plot import View

Drawings = dict[str, tuple[View, pd.DataFrame]]
"""Figures by file name: what each is drawn as, and its data."""

PARTS = ("norms", "cosines", "layers", "laplace")


@dataclass
class GeometryReport:
    """What was measured of a pool's task vectors, and where it is written."""

    out: Path
    experts: list[str]
    layers: int
    total: int
    frames: dict[str, pd.DataFrame]
    """Tables by file name: norms, cosines, layers, laplace, histogram, norm_accuracy."""
    notes: list[str] = field(default_factory=list)
    paths: list[Path] = field(default_factory=list)


def check_geometry(config: Geometry) -> None:
    """UserError for a part that there is not, and a sample of nothing."""
    for part in config.parts:
        if part not in PARTS:
            raise UserError(f"geometry has no part {part!r}", where="geometry.parts", do=nearest(part, PARTS))
    if not config.parts:
        raise UserError("nothing is asked for", where="geometry.parts", do=f"name some of {', '.join(PARTS)}")
    if config.sample < 2:
        raise UserError(
            f"a law cannot be fitted to {config.sample} entries", where="geometry.sample", do="give 1000000"
        )


def write_geometry(
    base: OpenCheckpoint,
    experts: Mapping[str, OpenCheckpoint],
    out: Path,
    config: Geometry,
    scores: pd.DataFrame | None = None,
    progress: Progress = SILENT,
    **match: Any,
) -> GeometryReport:
    """Measure the task vectors of a pool's experts in one pass and write ``config.parts`` into a folder.

    ``scores`` (columns model, method, n, suite, update_norm, score) is written beside the norms. Files are written
    when all is measured, each whole or not at all. ``match`` are a recipe's ``vocab`` and ``strict``.
    Raises ``UserError`` for experts that are not the base's.
    """
    check_geometry(config)
    measured = measure(base, experts, config.sample if "laplace" in config.parts else 0, config.seed, progress, **match)
    report = GeometryReport(out, measured.experts, len(measured.layers), measured.total, {}, list(_notes(measured)))
    if "norms" in config.parts:
        report.frames["norms"] = tables.norms(measured)
        if scores is not None and len(scores):
            report.frames["norm_accuracy"] = scores
    if "cosines" in config.parts:
        report.frames["cosines"] = tables.pair_cosines(measured)
    if "layers" in config.parts:
        report.frames["layers"] = tables.layer_signs(measured)
    if "laplace" in config.parts:
        report.frames["laplace"], report.frames["histogram"] = tables.laws(measured)
    report.paths = write_files(out, report.frames, drawings(report.frames))
    return report


def drawings(frames: Mapping[str, pd.DataFrame]) -> Drawings:
    """Figures of the tables: heat maps of pairs, experts numbered in order, histograms with the fitted densities."""
    found: Drawings = {}
    for name in ("cosines", "layers"):
        if name in frames:
            found[name] = View(PAIRS[name], "heat", "", ""), _heat(frames[name])
    if len(frames.get("histogram", ())):
        found["histogram"] = (
            View("Entries of task vectors and fitted laws", "histogram", "entry", "density"),
            (frames["histogram"].rename(columns={"vector": "panel", "curve": "line"})),
        )
    if "norm_accuracy" in frames:
        scores = frames["norm_accuracy"].fillna({"method": "expert"})
        columns = {"suite": "panel", "method": "line", "update_norm": "x", "score": "y"}
        view = View("Score by the norm of the update", "scatter", "update_norm", "score")
        found["norm_accuracy"] = view, scores.rename(columns=columns)[["panel", "line", "x", "y", "model"]]
    return found


PAIRS = {"cosines": "Cosines of task vectors", "layers": "Layers whose cosine is positive, and negative"}


def _heat(frame: pd.DataFrame) -> pd.DataFrame:
    """One panel per measure; rows carry number and name, columns the number, as in a list of checkpoints."""
    place = {name: str(i) for i, name in enumerate(dict.fromkeys(frame["expert_1"]), 1)}
    where = {"x": frame["expert_2"].map(place), "y": frame["expert_1"].map(lambda name: f"{place[name]} {name}")}
    measures = [name for name in ("cosine", "positive", "negative") if name in frame]
    panels = [pd.DataFrame({"panel": m, "line": "", **where, "z": frame[m].astype(float)}) for m in measures]
    return pd.concat(panels, ignore_index=True).dropna(subset=["z"])


def _notes(measured: Measured) -> Iterator[str]:
    for name in measured.still:
        yield f"{name} is the base itself: its task vector is zero, and its cosines and laws are unknown"
    if 0 < (sample := measured.entries.shape[1]) < measured.total:
        yield f"laws are fitted to {sample:,} entries of {measured.total:,}, by seed; norms and cosines are of all"


def write_files(out: Path, frames: Mapping[str, pd.DataFrame], figures: Drawings) -> list[Path]:
    """Write tables as ``NAME.csv`` and figures below ``figures/``, each file whole or not at all; returns the files."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", suffix=".part", dir=out) as scratch:
            beside = Path(scratch)
            for name, frame in frames.items():
                frame.to_csv(beside / f"{name}.csv", index=False, lineterminator="\n")
            for name, (view, data) in figures.items():
                draw(view, data, None, beside / "figures" / name)
            made = sorted(file.relative_to(beside) for file in beside.rglob("*") if file.is_file())
            for file in made:
                (out / file).parent.mkdir(exist_ok=True)
                os.replace(beside / file, out / file)
    except OSError as error:
        raise UserError(
            f"cannot write to {out}", where=error.strerror or "", do="name another folder with out=…"
        ) from None
    return [out / file for file in made]
