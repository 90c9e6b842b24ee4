"""Golden cases: the selection that belongs to the project, and the full set where it stands beside the checkout."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from tests.conftest import SHARED

SELECTION = Path(__file__).parent / "golden"
FULL = SHARED / "golden" / "cases"


class Case:
    """One row of a manifest with its tensors."""

    def __init__(self, row, full):
        self.row, self.full = row, full

    def __repr__(self):
        return f"{'full' if self.full else 'selected'}-{self.row['case']}"

    def load(self, file):
        """The tensors of one of the row's files, by name."""
        if self.full:
            return load_file(FULL / file)
        arrays = _arrays()
        return {key.partition("|")[2]: torch.from_numpy(arrays[key]) for key in arrays if key.startswith(f"{file}|")}

    def inputs(self):
        """The base's tensors, and each expert's."""
        found = self.load(self.row["inputs"])
        if self.row["dtype"] == "bfloat16":
            found = {name: tensor.view(torch.bfloat16) for name, tensor in found.items()}
        names = [name.removeprefix("base/") for name in found if name.startswith("base/")]
        experts = [{name: found[f"expert{k}/{name}"] for name in names} for k in range(self.row["T"])]
        return {name: found[f"base/{name}"] for name in names}, experts

    def masks(self, base):
        """The DARE masks, by expert and tensor; none where nothing is dropped."""
        found = {}
        for name, mask in self.load(self.row["file"]).items():
            kind, _, tensor = name.partition("/")
            if kind.startswith("keep"):
                if not self.full:
                    mask = torch.from_numpy(np.unpackbits(mask.numpy(), count=base[tensor].numel()))
                found[f"e{int(kind[4:]):02d}", tensor] = mask.view(base[tensor].shape).to(torch.bool)
        return found

    def beyond_tolerance(self, base, merged):
        """Tensors whose update is further from the float64 reference than the row allows, relative to its norm."""
        expected, far = self.load(self.row["file"]), []
        assert self.row["tensor_tol"]
        for name, tolerance in self.row["tensor_tol"].items():
            wanted = expected[f"delta64/{name}"].double()
            error = float((merged[name].double() - base[name].double() - wanted).norm())
            rounding = (2**-8 if self.row["dtype"] == "bfloat16" else 2**-23) * float(base[name].double().norm())
            if not error <= tolerance["rel_fro_of_update"] * float(wanted.norm()) + rounding:
                far.append((name, error))
        return far


@cache
def _arrays():
    with np.load(SELECTION / "cases.npz") as file:
        return {key: file[key] for key in file.files}


def cases():
    """The selected cases, then those of the full set where there is one."""
    found = [Case(row, False) for row in json.loads((SELECTION / "manifest.json").read_text())]
    if FULL.is_dir():
        found += [Case(row, True) for row in json.loads((FULL / "manifest.json").read_text())["cases"]]
    return found


def merge_cases():
    return [case for case in cases() if "inputs" in case.row]
