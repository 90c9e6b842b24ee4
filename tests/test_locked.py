"""The lock with hashes, the constraints and the page of licences are of the same packages."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def pins(text: str, pattern: str) -> dict[str, str]:
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in re.findall(pattern, text, re.MULTILINE)}


def test_the_lock_pins_the_versions_of_the_constraints_by_hash():
    locked = pins((ROOT / "requirements.lock").read_text(), r"^([\w.-]+)==(\S+) --hash=sha256:[0-9a-f]{64}$")
    told = pins((ROOT / "constraints.txt").read_text(), r"^([\w.-]+)==(\S+)$")
    assert len(locked) > 100
    assert {name: version for name, version in locked.items() if told.get(name, version) != version} == {}
    assert "torch" in told
    assert "torch" not in locked


def test_every_locked_package_has_a_licence():
    locked = pins((ROOT / "requirements.lock").read_text(), r"^([\w.-]+)==(\S+) --hash")
    page = (ROOT / "docs" / "licences.md").read_text()
    listed = pins(page, r"^\| ([\w.-]+) \| (\S+) \| [^|]+ \|$")
    assert {name: listed.get(name) for name in locked} == locked
    assert "| mergekit | 0.1.5 | **LGPL-3.0-only** |" in page
