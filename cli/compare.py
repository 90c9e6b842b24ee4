"""``mergebench compare``: any two or more results on the same documents."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from cli import terminal
from cli.entries import PLAIN
from cli.options import ConfigDir, Json, command, compose_one, split_words
from conf.errors import UserError
from pipelines.store.store import Store

if TYPE_CHECKING:
    from pipelines.compare.compare import Comparison, Difference

Results = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RESULT RESULT... [OVERRIDES]...",
        help="Folders of results, or first digits of results' keys; and Hydra overrides.",
        show_default=False,
    ),
]
Metric = Annotated[
    str | None, typer.Option("--metric", metavar="NAME", help="Compare by this metric; default: each task's first.")
]
Task = Annotated[
    list[str] | None, typer.Option("--task", metavar="NAME", help="Only this task (repeatable); default: all shared.")
]
Power = Annotated[float, typer.Option("--power", help="Chance of finding a difference, for what is detectable.")]


@command("Studies", "lm-eval-out/model-a lm-eval-out/model-b", "a b c --metric acc_norm --task arc_easy out=compared")
def compare(
    results: Results = None, metric: Metric = None, task: Task = None, power: Power = 0.8,
    json: Json = False, config_dir: ConfigDir = None,
) -> None:  # fmt: skip
    """Say whether one model is better than another, from per-document scores that any of these wrote.

    Folders of `lm_eval --log_samples`, of lighteval's details, of `mergebench evaluate out=…`, or results of the store.
    Paired intervals and tests (Holm's correction), the smallest difference that these documents can tell, and how many
    would be needed for the one that was seen. With out=FOLDER the tables are written as CSV.
    """
    names, overrides = split_words(results)
    config = compose_one("compare", overrides, config_dir)
    if not 0 < power < 1:
        raise UserError(f"power {power} is no chance", where="--power", do="give a number between 0 and 1, such as 0.8")
    from pipelines.compare.compare import compare_results

    found = compare_results(names, Store(config.store), config.statistics, metric=metric, tasks=task or (), power=power)
    if config.out:
        write(found, Path(config.out).expanduser())
    payload = {
        "scores": found.scores.T.to_dict(),
        "differences": [{k: None if v != v else v for k, v in vars(d).items()} for d in found.differences],
        "notes": found.notes,
    }
    terminal.answer(json, payload, *_parts(found, config.statistics.confidence, power))


def write(found: Comparison, out: Path) -> None:
    """Write the means and the differences as CSV files."""
    import pandas as pd

    out.mkdir(parents=True, exist_ok=True)
    found.scores.rename_axis("model").to_csv(out / "scores.csv")
    pd.DataFrame([dataclasses.asdict(d) for d in found.differences]).to_csv(out / "differences.csv", index=False)


def _parts(found: Comparison, confidence: float, power: float) -> Iterator[Any]:
    pairs, numbers = found.overall, {name: str(place) for place, name in enumerate(found.scores.index, 1)}
    if len(pairs) == 1:
        yield f"A: {escape(pairs[0].a)}\nB: {escape(pairs[0].b)}"
        yield _table(found.differences, lambda d: d.task, "task")
    else:
        scores = found.scores[found.scores.columns[-1]].sort_values(ascending=False)
        rows = [(numbers[name], escape(str(name)), f"{score:.4f}") for name, score in scores.items()]
        yield terminal.table("", ("", "model", str(found.scores.columns[-1])), rows, **PLAIN)
        yield _table(pairs, lambda d: f"{numbers[d.a]}, {numbers[d.b]}", "A, B")
    for d in pairs:
        yield _sentence(d, confidence, power)
    yield from (f"[dim]{escape(note)}[/]" for note in found.notes)


def _table(rows: list[Difference], name: Any, heading: str) -> Any:
    table = terminal.table("", (), **PLAIN)
    table.add_column(heading, overflow="fold")
    for column in ("n", "A", "B", "B − A", "p", "tells", "needs"):
        table.add_column(column, justify="right", no_wrap=column != "B − A")
    for d in rows:
        gap = f"{d.difference:+.3f} [{d.low:+.3f}, {d.high:+.3f}]".replace("-", "−")
        p = "<.001" if d.p_holm < 0.001 else f"{d.p_holm:.3f}"
        needs = "–" if math.isnan(d.needed) else f"{math.ceil(d.needed):,}"
        cells = (str(d.documents), f"{d.score_a:.3f}", f"{d.score_b:.3f}", gap, p, f"{d.detectable:.3f}", needs)
        table.add_row(escape(name(d)), *map(escape, cells))
    table.caption = "p after Holm; tells: smallest detectable difference; needs: documents for the one seen"
    table.caption_justify = "left"
    return table


def _sentence(d: Difference, confidence: float, power: float) -> str:
    """What may be said of a pair."""
    a, b = escape(d.a), escape(d.b)
    if d.p_holm <= 1 - confidence and d.difference:
        better, worse = (b, a) if d.difference > 0 else (a, b)
        return f"[bold]{better}[/] is better than {worse} by {abs(d.difference):.3f} (p = {d.p_holm:.2g} after Holm)."
    more = "" if math.isnan(d.needed) or d.needed <= d.documents else (
        f" One of {abs(d.difference):.3f} would need about {math.ceil(d.needed - d.documents):,} documents more."
    )  # fmt: skip
    return (
        f"No difference between {a} and {b} is shown; these documents tell one of {d.detectable:.3f} "
        f"in {power:.0%} of cases.{more}"
    )
