"""What an installed mergebench puts into site-packages: this one package, which finds the others for its process.

The code's packages have common names (``cli``, ``conf``, …). An installation keeps them in a folder of its own, out of
sight of other programs; importing ``mergebench`` puts that folder on the module path of the process, and then
``import pipelines`` works as it does in a checkout. ``mergebench.study`` and its like are in ``api``.
"""

import atexit
import os
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

PACKAGES = ("cli", "conf", "pipelines", "mergeopt_core")
API = ("UserError", "compare", "evaluate", "finetune", "merge", "results", "study")

_here = Path(__file__).resolve().parent
_folder = _here / "packages" if (_here / "packages").is_dir() else _here.parents[1]  # installed, or in a checkout
for _name in PACKAGES:
    _taken = getattr(sys.modules.get(_name), "__file__", None)
    if _taken and not Path(_taken).resolve().is_relative_to(_folder):
        raise ImportError(
            f"mergebench needs a package {_name} of its own, but {_taken} is loaded: import mergebench first"
        )
sys.path.insert(0, str(_folder))  # first, so that no other package of such a name is taken for ours


def __getattr__(name: str) -> Any:
    """Load a function of the API when it is asked for: the command needs none of them."""
    if name in API:
        return getattr(import_module("mergebench.api"), name)
    raise AttributeError(f"module 'mergebench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted((*globals(), *API))


def main() -> None:
    """Run the command line; a stop while it still loads, or ends, is one line, too."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
        atexit.register(signal.signal, number, signal.SIG_IGN)  # the last to be called: Python then drops handlers
    from cli.app import main

    main()


def _leave(number: int, frame: object) -> None:
    if not getattr(sys.modules.get("cli.app"), "STOPPED", None):  # else it was told
        sys.stderr.write("interrupted: what was finished is kept; the same command goes on\n")
        sys.stderr.flush()
    os._exit(128 + number)


def set_up_worker() -> None:
    """Called in each Ray worker before anything is unpickled there: importing this module was all it takes."""
