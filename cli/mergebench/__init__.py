"""What an installed mergebench puts into site-packages: this one package, which finds the others for its process.

The code's packages have common names (``cli``, ``conf``, …). An installation keeps them in a folder of its own, out of
sight of other programs; importing ``mergebench`` puts that folder on the module path of the process, and then
``import pipelines`` works as it does in a checkout.
"""

import sys
from pathlib import Path

PACKAGES = ("cli", "conf", "pipelines", "mergeopt_core")

_here = Path(__file__).resolve().parent
_folder = _here / "packages" if (_here / "packages").is_dir() else _here.parents[1]  # installed, or in a checkout
for _name in PACKAGES:
    _taken = getattr(sys.modules.get(_name), "__file__", None)
    if _taken and not Path(_taken).resolve().is_relative_to(_folder):
        raise ImportError(
            f"mergebench needs a package {_name} of its own, but {_taken} is loaded: import mergebench first"
        )
sys.path.insert(0, str(_folder))  # first, so that no other package of such a name is taken for ours


def main() -> None:
    """Run the command line."""
    from cli.app import main

    main()


def set_up_worker() -> None:
    """Called in each Ray worker before anything is unpickled there: importing this module was all it takes."""
