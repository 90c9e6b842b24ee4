"""Where the packages go; pyproject.toml says all the rest.

A wheel puts one package into an environment, ``mergebench``: the others lie in its folder ``packages``, as their names
are too common to be shared. An editable installation leaves them at the top, where the checkout has them.
"""

import sys

from setuptools import find_namespace_packages, setup

ROOMS = ("cli", "conf", "pipelines", "mergeopt_core")
PREFIX = "" if "editable_wheel" in sys.argv else "mergebench.packages."

found = find_namespace_packages(
    include=[*ROOMS, *(f"{room}.*" for room in ROOMS)], exclude=["cli.mergebench", "*.__pycache__"]
)
setup(
    packages=["mergebench", *(PREFIX + name for name in found)],
    package_dir={"mergebench": "cli/mergebench", **{PREFIX + room: room for room in ROOMS}},
    package_data={"": ["*"]},
)
