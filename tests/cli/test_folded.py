"""Tables at the widths of terminals, and in a pipe."""

import io

import pytest
from rich.console import Console
from rich.text import Text

from cli.folded import Folded, Row

METHODS = ["task_arithmetic", "ties", "model_stock", "task_arithmetic_sb", "ties_sb", "tsv_m", "iso_c"]
SIZES = [2, 4, 6, 8, 10, 12]


def leaderboard():
    made = Folded("in_the_wild", ["method"], [*(f"of {n}" for n in SIZES), "constr."])
    for pool in ("llama_3b", "qwen_4b"):
        made.rows.append(Row([Text(pool)]))
        made.rows += [Row([Text(m)], [*(Text(f"0.5{i}{n:02d} ±.021") for n in SIZES), Text("10/76")])
                      for i, m in enumerate(METHODS)]  # fmt: skip
    return made


def printed(part, width):
    console = Console(width=width, file=io.StringIO())
    console.print(part)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize(("width", "folds"), [(80, 2), (120, 1), (50, 4)])
def test_every_name_stands_whole_beside_every_number(width, folds):
    lines = printed(leaderboard(), width)
    assert max(map(len, lines)) <= width
    for place, method in enumerate(METHODS):
        own = [line.split() for line in lines if line.split()[:1] == [method]]
        assert len(own) == 2 * folds  # in both pools
        numbers = [cell for line in own for cell in line if cell.startswith("0.")]
        assert numbers.count(f"0.5{place}12") == 2
        assert len(numbers) == 2 * len(SIZES)
    assert sum(line.startswith("method") for line in lines) == folds
    assert not any("…" in line for line in lines)


def test_what_not_even_one_column_fits_beside_becomes_records():
    lines = [line.strip() for line in printed(leaderboard(), 24)]
    assert lines.count("task_arithmetic_sb") == 2
    assert lines.count("of 12: 0.5312 ±.021") == 2


def test_a_pipe_is_neither_wrapped_nor_padded(run):
    done = run("sweep", "+experiment=quickstart", "--dry-run")
    assert done.returncode == 0
    assert not any(line != line.rstrip() for line in done.stdout.splitlines())
