"""Run pip-audit on constraints.txt; exits with 1 for a finding that .ci/audit-allowed.txt does not name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

CI = Path(__file__).resolve().parent
SERVICES = ("pypi", "osv")


def audited(service: str) -> list[dict[str, Any]] | None:
    """What a service says of each package; None where it does not answer."""
    command = [sys.executable, "-m", "pip_audit", "-r", "constraints.txt", "--no-deps", "--disable-pip", "-f", "json"]
    ran = subprocess.run([*command, "-s", service, "--progress-spinner", "off"], cwd=CI.parent, capture_output=True)
    try:
        found = json.loads(ran.stdout)["dependencies"]
    except (ValueError, KeyError):
        return None
    return [package for package in found if "vulns" in package] or None


def allowed(text: str) -> dict[str, str]:
    """Accepted findings with the reason of each. Raises ValueError for one without."""
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if bare := [line[0] for line in lines if len(line) < 2]:
        raise ValueError(f"no reason is given for {bare[0]}")
    return dict(lines)


def main() -> None:
    """Ask the services in turn, and say what is neither fixed nor accepted."""
    packages = next((found for service in SERVICES if (found := audited(service))), None)
    if packages is None:
        print(f"pip-audit: neither of {' and '.join(SERVICES)} answers here, nothing was audited")
        return
    accepted = allowed((CI / "audit-allowed.txt").read_text())
    found = {(p["name"], p["version"], v["id"], *v.get("aliases", ())) for p in packages for v in p["vulns"]}
    left = [one for one in sorted(found) if not accepted.keys() & set(one)]
    for name, version, *names in left:
        print(f"pip-audit: {name} {version}: {', '.join(names)}")
    print(f"pip-audit: {len(packages)} packages audited, {len(found) - len(left)} findings accepted, {len(left)} open")
    sys.exit(bool(left))


if __name__ == "__main__":
    main()
