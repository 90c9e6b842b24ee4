"""Choose the golden cases that the project carries from the full set: ``python select_cases.py FULL_SET_FOLDER``.

One merge case of every method, variant and choice of words and switches (numbers aside), on the smallest inputs that
have it, some more on bfloat16, low-rank and edge inputs, and every optimizer case. Inputs are whole; of the expected
updates some tensors are left out (``kept``), and the others are the float32 nearest to the float64 reference, 300 times
finer than the tightest tolerance. Optimizer trajectories stay in float64.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

SETS = ("p01", "p02", "p05", "p07", "p08")
"""Inputs, smallest first: two gaussian experts, three Laplace, three of rank 4, three in bfloat16, edge cases."""

ALSO = ("p07_mstock_mk", "p07_tsvm_study", "p08_isocts_off_f0.8", "p08_mstock_mk", "p08_tsvm_study")


def words(row):
    """What a case is about, numbers aside."""
    switches = {k: v for k, v in row["params"].items() if isinstance(v, (bool, str))}
    return json.dumps([row["method"], row["variant"], switches, sorted(row["params"])])


def selected(rows):
    merges = sorted((r for r in rows if r.get("set") in SETS), key=lambda r: SETS.index(r["set"]))
    first = {}
    for row in merges:
        first.setdefault(words(row), row["case"])
    chosen = {*first.values(), *ALSO}
    return [r for r in rows if r["case"] in chosen or "inputs" not in r or r["method"] == "tangent"]


def kept(row, number):
    """Tensors whose expected update is kept: elementwise methods treat all alike, others alternate tall and wide."""
    elementwise = row["method"] in ("task_arithmetic", "weight_average", "ties", "dare", "m3", "model_stock")
    dropped = ["lm_head", "up_proj.weight" if elementwise or number % 2 else "down_proj.weight"]
    dropped += ["embed_tokens"] if elementwise else []
    return [name for name in row["tensor_tol"] if not any(part in name for part in dropped)]


def main(full):
    rows = selected(json.loads((full / "manifest.json").read_text())["cases"])
    arrays = {}
    for inputs in sorted({row["inputs"] for row in rows if "inputs" in row}):
        for name, tensor in load_file(full / inputs).items():
            bits = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
            arrays[f"{inputs}|{name}"] = bits.numpy()
    for number, row in enumerate(rows):
        row.pop("tolerance")
        if "inputs" in row:
            row["tensor_tol"] = {name: row["tensor_tol"][name] for name in kept(row, number)}
        for name, tensor in load_file(full / row["file"]).items():
            kind, _, rest = name.partition("/")
            if "inputs" not in row:
                if kind != "grad" or row["method"] == "tangent":
                    arrays[f"{row['file']}|{name}"] = tensor.numpy()
            elif kind == "delta64" and rest in row["tensor_tol"]:
                arrays[f"{row['file']}|{name}"] = tensor.float().numpy()
            elif kind.startswith("keep"):
                arrays[f"{row['file']}|{name}"] = np.packbits(tensor.numpy().astype(bool))
    here = Path(__file__).parent
    np.savez_compressed(here / "cases.npz", **arrays)
    (here / "manifest.json").write_text("\n".join(["[", ",\n".join(map(json.dumps, rows)), "]"]) + "\n")
    print(len(rows), "cases", (here / "cases.npz").stat().st_size, (here / "manifest.json").stat().st_size)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
