"""Write requirements.lock and docs/licences.md from what pip would install at the versions of constraints.txt.

``python .ci/lock.py [REPORT]`` in the environment of the tests, with what ``pip install --dry-run --ignore-installed
--report`` has written, or without: then pip is asked, which fetches metadata of some 130 packages and installs nothing.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OWN = ("mergebench", "torch")
"""What has no line in the lock: ourselves, and what comes from a source of its own."""
LOCK = """# What the tests ran with, by hash: Linux x86-64, Python 3.11, all of the dev extra. Written by .ci/lock.py.
# pip takes hashes for all packages of a command or for none, and torch comes from an index of its own. So:
#   pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
#   pip install --no-deps --require-hashes -r requirements.lock && pip install --no-deps --editable .
"""
LICENCES = """# Licences of the packages that mergebench stands on

As their own metadata say it, of all packages that `pip install '.[dev]'` brings (see `requirements.lock`); written by
`.ci/lock.py`. mergebench itself is under Apache-2.0.

**mergekit is under LGPL-3.0-only.** mergebench imports it as it is installed and copies none of its code: whoever
passes mergebench on with mergekit has to leave mergekit replaceable, and to say so. Others with conditions of their
own on changed files are marked; none restricts what is merged or measured with them.

| package | version | licence |
|---|---|---|
"""
COPYLEFT = re.compile(r"GPL|MPL|Mozilla|EPL|CDDL")


def asked() -> dict[str, Any]:
    """pip's report on what it would install."""
    torch = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report"]
        command += [str(report), "--constraint", "constraints.txt", torch, ".[dev]"]
        subprocess.run(command, cwd=ROOT, check=True)
        return json.loads(report.read_text())


def licence(name: str) -> str:
    """An installed package's licence: its SPDX expression, else its classifiers, else the first line of its text."""
    told = metadata(name)
    classified = [text.split(" :: ")[-1] for text in told.get_all("Classifier", []) if text.startswith("License ::")]
    first = (told.get("License") or "").strip().partition("\n")[0]
    short = first if len(first) < 40 else ""
    return told.get("License-Expression") or short or ", ".join(classified) or first[:60] or "not told in its metadata"


def main() -> None:
    """Write both files."""
    report = json.loads(Path(sys.argv[1]).read_text()) if sys.argv[1:] else asked()
    found = sorted(report["install"], key=lambda item: item["metadata"]["name"].lower())
    locked, rows = [], []
    for item in found:
        name, version = item["metadata"]["name"], item["metadata"]["version"]
        if name != "mergebench":
            text = licence(name)
            rows.append(
                f"| {name} | {version.partition('+')[0]} | {f'**{text}**' if COPYLEFT.search(text) else text} |"
            )
        if name not in OWN:
            locked.append(
                f"{name}=={version} --hash=sha256:{item['download_info']['archive_info']['hashes']['sha256']}"
            )
    (ROOT / "requirements.lock").write_text(LOCK + "\n".join(locked) + "\n", encoding="utf-8")
    (ROOT / "docs" / "licences.md").write_text(LICENCES + "\n".join(rows) + "\n", encoding="utf-8")
    print(f"{len(locked)} packages locked, {len(rows)} licences")


if __name__ == "__main__":
    main()
