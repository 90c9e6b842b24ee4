"""``mergebench diagnose``, ``geometry`` and ``landscape``: task vectors, and the loss between two of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from cli import terminal
from cli.options import Cfg, ConfigDir, Json, Overrides, command, compose_one

if TYPE_CHECKING:
    import pandas as pd

    from pipelines.geometry import Landscape
    from pipelines.geometry.write import GeometryReport

PANEL = "Studies"


@command(
    PANEL,
    "base.path=org/base 'experts=[out/a,out/b]' out=geometry",
    "+experiment=quickstart 'geometry.parts=[norms,cosines]'",
    "base.path=org/base 'experts=[out/a,out/b,out/c]' geometry.sample=100000 --json",
)
def geometry(overrides: Overrides = None, cfg: Cfg = False, json: Json = False, config_dir: ConfigDir = None) -> None:
    """Measure task vectors in one pass over the checkpoints: of some experts, or of every pool of a study.

    Norms (and, where the store has results, accuracy by norm), pairwise cosines, layers (tensors) with positive,
    negative and zero cosine, and Laplace and normal laws fitted to each task vector and to their sum. A study's experts
    have to be there already.
    """
    config = compose_one("geometry", overrides, config_dir, cfg)
    from pipelines.study.geometry import geometry as measure

    with terminal.listening() as progress:
        reports = measure(config, progress)
    parts = [part for report in reports for part in _geometry_parts(report)]
    terminal.answer(json, [_geometry_dict(report) for report in reports], *parts)


@command(
    PANEL,
    "base.path=org/base 'experts=[out/a,out/b]'",
    "+experiment=quickstart --json",
)
def diagnose(overrides: Overrides = None, cfg: Cfg = False, json: Json = False, config_dir: ConfigDir = None) -> None:
    """Say what speaks for and against a merge before one is made, from one pass over the checkpoints.

    Configs, tokenizers and dtypes; norms of the task vectors, cosines, signs that cancel, low ranks, and directions
    that experts share.
    """
    config = compose_one("diagnose", overrides, config_dir, cfg)
    from pipelines.study.geometry import diagnose as examine

    with terminal.listening() as progress:
        told = examine(config, progress)
    colours = {"for": "green", "against": "red", "note": "yellow"}
    parts = []
    for one in told:
        rows = [
            (f"[{colours[f.state]}]{f.state}[/]", escape(f.subject), escape(f"{f.what}; {f.do}" if f.do else f.what))
            for f in one.findings
        ]
        parts.append(terminal.table(f"for and against merging {one.pool}", ("", "what", "found"), rows))
    found = [{"pool": t.pool, "findings": [vars(f) for f in t.findings], **t.numbers} for t in told]
    terminal.answer(json, found, *parts)


def _geometry_parts(report: GeometryReport) -> Iterator[Any]:
    rows = {name: _records(frame) for name, frame in report.frames.items()}
    number = {name: f"{i} {name}" for i, name in enumerate(report.experts, 1)} | {"sum": "sum"}
    yield f"{len(report.experts)} task vectors of {report.total:,} weights in {report.layers} layers"
    if "norms" in rows:
        norms = [(escape(number[row["expert"]]), f"{row['norm']:.6g}") for row in rows["norms"]]
        yield terminal.table("norms", ("", "norm"), norms)
    if "cosines" in rows:
        cosine = [{**row, "cell": "—" if row["cosine"] is None else f"{row['cosine']:.3f}"} for row in rows["cosines"]]
        yield _matrix("cosines", cosine, number)
    if "layers" in rows:
        signs = [{**row, "cell": f"{row['positive']}/{row['negative']}"} for row in rows["layers"]]
        yield _matrix("layers by cosine: + / −", signs, number)
    if rows.get("laplace"):
        yield _laws(rows["laplace"], number)
    yield from (f"[dim]{escape(note)}[/]" for note in report.notes)
    yield f"[dim]{escape(str(report.out))}[/]"


def _matrix(title: str, pairs: list[dict[str, Any]], number: dict[str, str]) -> Any:
    """Experts by experts; columns are numbered, so that twelve stand in a line."""
    names = list(dict.fromkeys(pair["expert_1"] for pair in pairs))
    rows = [(escape(number[n]), *(pair["cell"] for pair in pairs if pair["expert_1"] == n)) for n in names]
    return terminal.table(title, ("", *(str(i + 1) for i in range(len(names)))), rows, pad_edge=False, box=None)


def _laws(fits: list[dict[str, Any]], number: dict[str, str]) -> Any:
    columns = ("", "b", "K–S", "log-lik.", "σ", "K–S", "log-lik.")
    rows = [
        (
            escape(number[fit["vector"]]), f"{fit['scale']:.3g}", f"{fit['ks_laplace']:.3f}",
            f"{fit['log_laplace']:.3f}", f"{fit['deviation']:.3g}", f"{fit['ks_normal']:.3f}",
            f"{fit['log_normal']:.3f}",
        )
        for fit in fits
    ]  # fmt: skip
    return terminal.table("laws of the entries: Laplace (b), then normal (σ)", columns, rows)


def _geometry_dict(report: GeometryReport) -> dict[str, Any]:
    shown = {name: _records(frame) for name, frame in report.frames.items() if name != "histogram"}
    about = {"experts": report.experts, "layers": report.layers, "weights": report.total, "notes": report.notes}
    return {**about, **shown, "files": [str(path) for path in report.paths]}


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON takes them: what is no number is null."""
    return [{str(k): None if v != v else v for k, v in row.items()} for row in frame.to_dict("records")]


@command(
    PANEL,
    "base=tiny 'experts=[out/a,out/b]' +task@landscape.tasks.a=skills/add +task@landscape.tasks.b=skills/count",
    "+experiment=mergopt_main 'landscape.pairs=[[cstance,fomc]]' landscape.points=21",
    "+experiment=quickstart landscape.high=0.6 landscape.points=4 landscape.examples=32",
)
def landscape(overrides: Overrides = None, cfg: Cfg = False, json: Json = False, config_dir: ConfigDir = None) -> None:
    """Compute the joint loss of two tasks at θ0 + α1 Δ1 + α2 Δ2 over a grid of (α1, α2).

    Training's loss, over examples of both experts' tasks, summed. Of a study every pool has a panel (plain beside
    MergOPT), on one colour scale; its experts have to be there already.
    """
    config = compose_one("landscape", overrides, config_dir, cfg)
    from pipelines.study.geometry import landscape as compute

    with terminal.listening() as progress:
        made = compute(config, progress)
    payload = {"summary": _records(made.summary), "losses": _records(made.frame), "files": [str(p) for p in made.paths]}
    terminal.answer(json, payload, *_landscape_parts(made))


def _landscape_parts(made: Landscape) -> Iterator[Any]:
    columns = ("", "at the base", "least", "at α1, α2", "mean", "within 10 %")
    rows = [
        (
            escape(row["panel"]), "—" if row["base"] is None else f"{row['base']:.4f}", f"{row['least']:.4f}",
            f"{row['alpha_1']:g}, {row['alpha_2']:g}", f"{row['mean']:.4f}", f"{row['near_least']:.0%}",
        )
        for row in _records(made.summary)
    ]  # fmt: skip
    yield terminal.table("joint loss L1 + L2 (nats a token)", columns, rows)
    yield "[dim]within 10 %: share of the grid whose loss is at most 1.1 times the panel's least[/]"
    yield f"[dim]{escape(str(made.out))}[/]"
