"""A report's page over ten thousand trials: how large it is, how long it takes to write, open, sort and filter.

    python benchmarks/page.py [MERGES]

Chromium and playwright (extra `browser`) are needed for the last three. The trials are made up: sixteen tasks of twenty
documents each, in two pools.
"""

import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "pipelines" / "report"))
from synthetic import study

from conf.schema import Statistics
from pipelines.report import TrialRow, write_report

METHODS = dict.fromkeys(("task_arithmetic", "ties", "dare", "average", "model_stock", "tsv_m", "iso_c"), 0.0)
CLICK = """column => new Promise(done => {
  const button = document.querySelectorAll('#trials th button')[column], start = performance.now();
  button.click(); document.body.offsetHeight;
  requestAnimationFrame(() => setTimeout(() => done(performance.now() - start)));
})"""
FILTER = """() => {
  const input = document.querySelector('.trials input'), start = performance.now();
  input.value = 'ties add'; input.dispatchEvent(new Event('input')); document.body.offsetHeight;
  return performance.now() - start;
}"""


def made_up(merges: int) -> list[TrialRow]:
    """Two small studies whose merges are repeated under other keys until there are enough."""
    rows: list[TrialRow] = []
    for seed, pool in enumerate(("plain", "mergopt")):
        own = study(skills=12, n=20, sizes=(2, 4, 8, 12), samples=20, methods=METHODS, pool=pool, seed=seed)
        found = [row for row in own if row.kind == "merge"]
        many = [replace(found[i % len(found)], key=f"{pool}{i:016x}") for i in range(merges // 2)]
        rows += [row for row in own if row.kind != "merge"] + many
    return rows


def main() -> None:
    """Print a line a figure."""
    rows = made_up(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        report = write_report(rows, Path(folder), statistics=Statistics(resamples=200), title="many")
        page = report.paths["report.html"]
        took, size = time.perf_counter() - start, page.stat().st_size / 1e6
        print(f"{len(rows)} trials: report in {took:.1f} s, page {size:.1f} MB")
        browse(page)


def browse(file: Path) -> None:
    """Open the page in Chromium, sort by every kind of column, filter."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        path = None
    if path is None:
        print("not opened: Chromium or playwright is missing")
        return
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        start = time.perf_counter()
        page.goto(file.as_uri())
        page.evaluate("document.body.offsetHeight")
        print(f"open: {time.perf_counter() - start:.2f} s")
        page.locator(".trials summary").click()
        for name in ("pool", "method", "experts", "score", "key"):
            column = page.locator("#trials thead th").all_inner_texts().index(name)
            print(f"sort by {name}: {page.evaluate(CLICK, column):.0f} ms")
        print(f"filter: {page.evaluate(FILTER):.0f} ms")
        browser.close()


if __name__ == "__main__":
    main()
