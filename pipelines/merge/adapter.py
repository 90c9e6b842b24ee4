"""A merge written as a LoRA adapter on its base, as peft saves one: of factors where the method gives them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from conf.errors import UserError
from mergeopt_core.merging.matrices import is_selected
from mergeopt_core.spectral.decompositions import triplets
from mergeopt_core.spectral.low_rank import Low
from pipelines.checkpoints.adapters import PREFIX
from pipelines.checkpoints.fingerprint import copy_tokenizer
from pipelines.checkpoints.headers import EMBEDDING, first
from pipelines.checkpoints.write import RECIPE, new_folder
from pipelines.merge.card import model_card
from pipelines.merge.stream import Merge
from pipelines.progress import SILENT, Progress

FAN_IN_FAN_OUT = ("gpt2", "openai-gpt")
"""Architectures whose linear layers are stored ``[in, out]``."""
TIED_BY_PEFT = ("embed_tokens", "lm_head")
"""Embeddings that peft keeps tied to the head; one of another name is written for both."""


@dataclass
class Found:
    """One tensor's part of the adapter."""

    name: str
    low: Low | None
    """Its update; None where the whole tensor is kept in its place."""
    lost: float = 0.0
    """Σ σ² that the rank leaves out."""
    total: float = 0.0
    whole: Tensor | None = None


def write_adapter(merge: Merge, out: Path, rank: int, progress: Progress = SILENT, *, device: str = "cpu") -> Path:
    """Write the merged update as a LoRA adapter of rank ``rank``: exact where it reaches, else the nearest one.

    Linear layers become B and A, and keep their changed biases; other modules that the merge changes are kept whole
    (``modules_to_save``). The share
    of the squared norm that the rank leaves out is told, and stands in the adapter's card. Raises ``UserError`` where
    that is no adapter: no tensor is changed, rows were added to the vocabulary, or what ``Merge.check`` finds.
    """
    out = Path(out).expanduser()
    merge.check()
    if rank < 1:
        raise UserError(f"out_adapter={rank}", do="give the adapter a rank of 1 or more")
    if merge.layout.vocabulary is not None or merge.layout.untied:
        what = "an adapter cannot hold another vocabulary or a head of its own"
        raise UserError(what, where="out_adapter", do="write the whole model: leave out_adapter out")
    with progress.step("merge", total=len(merge.layout.outputs)) as step:
        found = []
        for one in _updates(merge, rank, device):
            step.advance(1, tensor=one.name)
            found += [one] if one.low is not None or one.whole is not None else []
    if not found:
        raise UserError("the merge changes nothing: there is nothing to write", where=str(out), do="check the experts")
    config, tensors = _as_peft(merge, found, rank)
    line = _lost(found, rank)
    progress.note(line, "warning" if any(one.lost > 1e-10 * one.total for one in found) else "info")
    with new_folder(out, sum(tensor.nbytes for tensor in tensors.values())) as beside:
        save_file(tensors, beside / "adapter_model.safetensors", metadata={"format": "pt"})
        (beside / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        copy_tokenizer(merge.base.folder, beside)
        card = model_card(merge, out.name).rstrip() + f"\n\n{line}\n"
        (beside / "README.md").write_text(card.replace("library_name: transformers", "library_name: peft"))
        record = {"recipe": merge.recipe.with_parameters(merge.parameters).to_dict(), "out_adapter": rank}
        record |= {"base": merge.base_id, "experts": merge.ids}
        (beside / RECIPE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return out


def _updates(merge: Merge, rank: int, device: str) -> Iterator[Found]:
    """Every merged tensor's part: from the experts' factors where all have them and the method takes them."""
    dense = []
    for name, info in merge.layout.outputs.items():
        low = None
        if is_selected(name, info.shape, "linear") and (factors := merge.factors(name, device)) is not None:
            low = merge.method.factored(name, factors)
        if low is None:
            dense.append(name)
        else:
            yield _cut(name, low, rank)
    for name, merged in merge.tensors(device, dense):
        base = merge.base.tensor(name).to(merged.device)
        if torch.equal(merged, base.to(merged.dtype)):
            yield Found(name, None)
        elif is_selected(name, merged.shape, "linear"):
            u, sigma, v = triplets(merged.float() - base.float(), rank)
            root, squares = sigma[: u.shape[1]].sqrt(), sigma.double().square()
            low, lost = Low((u * root).float(), (v * root).mT.float()), float(squares[rank:].sum())
            yield Found(name, low, lost, float(squares.sum()))
        else:
            yield Found(name, None, whole=merged.cpu().clone())


def _cut(name: str, low: Low, rank: int) -> Found:
    if not low.b.shape[1] or not bool(low.b.any()) or not bool(low.a.any()):
        return Found(name, None)
    cut, lost, total = low.truncated(rank)
    return Found(name, cut, lost, total)


def _lost(found: list[Found], rank: int) -> str:
    """One sentence on what the rank leaves out."""
    total, lost = math.fsum(one.total for one in found), math.fsum(one.lost for one in found)
    if lost <= 1e-10 * total:
        return f"The adapter of rank {rank} holds the whole update."
    worst = max(found, key=lambda one: one.lost / one.total if one.total else 0.0)
    share = worst.lost / worst.total
    return (
        f"Rank {rank} leaves out {lost / total:.2%} of the squared norm of the linear layers' update, most in "
        f"{worst.name}: {share:.2%}."
    )


def _as_peft(merge: Merge, found: list[Found], rank: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """adapter_config.json, and the tensors by the names that peft gives them."""
    turned = merge.base.config.get("model_type") in FAN_IN_FAN_OUT
    tensors: dict[str, Tensor] = {}
    low, kept = [one for one in found if one.low is not None], [one for one in found if one.whole is not None]
    for one in low:
        assert one.low is not None
        b, a = (one.low.a.T, one.low.b.T) if turned else one.low
        padded_b, padded_a = torch.zeros(b.shape[0], rank), torch.zeros(rank, a.shape[1])
        padded_b[:, : b.shape[1]], padded_a[: a.shape[0]] = b.cpu(), a.cpu()
        module = PREFIX + one.name.removesuffix(".weight")
        tensors |= {f"{module}.lora_A.weight": padded_a, f"{module}.lora_B.weight": padded_b}
    adapted = {one.name.removesuffix(".weight") for one in low}
    biases = {one.name: one.whole for one in kept if one.name.rpartition(".")[0] in adapted and one.whole is not None}
    tensors |= {PREFIX + ".base_layer.".join(name.rsplit(".", 1)): bias for name, bias in biases.items()}
    whole = {one.name: one.whole for one in kept if one.whole is not None and one.name not in biases}
    modules = {name.rpartition(".")[0] for name in whole}
    for name in merge.layout.outputs:
        if name.rpartition(".")[0] in modules:  # a module is kept with all of its tensors
            tensors[PREFIX + name] = whole.get(name, merge.base.tensor(name)).clone()
    embedding = first(EMBEDDING, whole)
    if merge.base.tied and embedding and embedding.split(".")[-2] not in TIED_BY_PEFT:
        tensors[PREFIX + "lm_head.weight"] = whole[embedding].clone()
        modules.add("lm_head")
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": merge.recipe.base,
        "r": rank, "lora_alpha": rank, "lora_dropout": 0.0, "bias": "all" if biases else "none",
        "fan_in_fan_out": turned,
        "target_modules": _targets(merge, [one.name for one in low]), "modules_to_save": sorted(modules) or None,
        "ensure_weight_tying": merge.base.tied and bool(modules),
        "use_rslora": False, "use_dora": False, "init_lora_weights": True, "inference_mode": True,
    }  # fmt: skip
    return config, tensors


def _targets(merge: Merge, names: list[str]) -> list[str]:
    """The adapted modules by their last names, or by whole ones where some of a last name are not adapted."""
    modules = {name.removesuffix(".weight") for name in names}
    short = {module.rpartition(".")[2] for module in modules}
    others = {name.removesuffix(".weight") for name in merge.layout.outputs} - modules
    return sorted(modules if any(module.rpartition(".")[2] in short for module in others) else short)
