"""Rows of files that others made, JSON lines and Parquet: measured before they take memory."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from pipelines.checkpoints.untrusted import check_file

if TYPE_CHECKING:
    import pyarrow as pa

LINE = 64 << 20
"""Characters of a line at most."""
ROWS = 20_000_000
"""Rows of a Parquet file at most."""


def room() -> int:
    """Bytes of a file at most: its rows are held in memory."""
    return psutil.virtual_memory().total // 4


def read_lines(file: Path) -> Iterator[tuple[int, str]]:
    """The lines that hold something, with their numbers. ValueError for no regular file, and for an endless line."""
    check_file(file, room(), links=True)
    with file.open(encoding="utf-8") as lines:
        for i, line in enumerate(iter(partial(lines.readline, LINE), ""), 1):
            if len(line) == LINE:
                raise ValueError(f"line {i} is longer than {LINE:,} characters")
            if line.strip():
                yield i, line


def read_parquet(file: Path) -> pa.Table:
    """A Parquet file. ValueError for none, and for one that holds more than there is room for."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    check_file(file, room(), links=True)
    try:
        about = pq.read_metadata(file)
        size = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
        if about.num_rows > ROWS or size > room():
            raise ValueError(f"it holds {about.num_rows:,} rows of {size:,} bytes")
        return pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(str(error).partition("\n")[0][:300]) from None
