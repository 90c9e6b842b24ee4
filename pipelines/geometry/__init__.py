"""The geometry of task vectors, and the loss of two tasks over merging coefficients."""

from pipelines.geometry.landscape import Landscape, Panel, write_landscape
from pipelines.geometry.write import PARTS, check_geometry, write_geometry

__all__ = ["PARTS", "Landscape", "Panel", "check_geometry", "write_geometry", "write_landscape"]
