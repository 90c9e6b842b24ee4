"""Tables that keep every name at any width: a wide one is folded into several, a very wide one into records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

GAP = 2


@dataclass(frozen=True)
class Row:
    """Names and cells of one line; a row without cells is a heading of those below it."""

    names: Sequence[Text]
    cells: Sequence[Text] = ()


@dataclass
class Folded:
    """A table of names and cells. Columns that do not fit side by side stand below others, with the names."""

    title: str
    names: Sequence[str]
    columns: Sequence[str]
    rows: list[Row] = field(default_factory=list)
    caption: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        if self.title:
            yield Text(self.title, style="italic")
        folds = self._folds(options.max_width)
        if folds is None:
            yield from self._records()
        for place, fold in enumerate(folds or ()):
            yield from [Text("")] * (place > 0)
            yield from self._tables(fold)
        if self.caption:
            yield Text(self.caption, style="dim italic")

    def _width(self, column: int, of_names: bool = False) -> int:
        """Cells that a column takes."""
        head = (self.names if of_names else self.columns)[column]
        cells = [row.names[column] if of_names else row.cells[column] for row in self.rows if row.cells]
        return max([Text(head).cell_len, *(cell.cell_len for cell in cells)])

    def _folds(self, width: int) -> list[list[int]] | None:
        """Columns that stand side by side in a width; None where names and one column do not."""
        start = sum(self._width(name, of_names=True) + GAP for name in range(len(self.names)))
        folds: list[list[int]] = [[]]
        used = start
        for column in range(len(self.columns)):
            own = self._width(column)
            if start + own > width:
                return None
            if used + own > width:
                folds.append([])
                used = start
            folds[-1].append(column)
            used += own + GAP
        return folds

    def _tables(self, fold: Sequence[int]) -> Iterator[RenderableType]:
        """The rows with some of the columns; each heading begins a table of the same widths."""
        made = self._table(fold, header=True)
        for row in self.rows:
            if row.cells:
                made.add_row(*row.names, *(row.cells[column] for column in fold))
                continue
            if made.rows or (made.show_header and fold):
                yield made
            yield row.names[0]
            made = self._table(fold, header=False)
        if made.rows:
            yield made

    def _table(self, fold: Sequence[int], header: bool) -> Table:
        made = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold", show_header=header)
        for place, name in enumerate(self.names):
            made.add_column(name, no_wrap=True, min_width=self._width(place, of_names=True))
        for column in fold:
            made.add_column(self.columns[column], justify="right", no_wrap=True, min_width=self._width(column))
        return made

    def _records(self) -> Iterator[RenderableType]:
        """Every row as its names, then a line for each column."""
        for row in self.rows:
            yield Text("")
            yield Text(" · ").join(part for part in row.names if part.plain)
            yield from (Text.assemble(f"  {name}: ", cell) for name, cell in zip(self.columns, row.cells))
