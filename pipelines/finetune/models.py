"""The base ready for training, its adapters, and the expert as an ordinary checkpoint of the base's dtype.

An adapted layer computes (W + s·B·A) x. Only A and B are trained, but a merge moves W + s·B·A, so the offset is put on
the frozen W below the adapter: the gradients of A and B are then taken at W + s·B·A + ε, as a merge would put it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from conf.errors import UserError, nearest
from conf.schema import Lora, Task, Training
from mergeopt_core.finetuning.weights import Origin
from pipelines.checkpoints.fingerprint import copy_tokenizer
from pipelines.checkpoints.load import check_saves, load_config, load_model, load_tokenizer
from pipelines.checkpoints.write import redact_files
from pipelines.finetune.tangent import linearise
from pipelines.images.clip import copy_processor, whole_model
from pipelines.ranks import rank


@dataclass
class Loaded:
    """A base ready for training; ``model`` becomes the expert."""

    model: Any
    tokenizer: Any
    folder: Path
    dtype: torch.dtype
    device: str
    cache: bool

    @property
    def images(self) -> bool:
        """Whether the model is an image tower, and reads pictures."""
        return bool(self.model.main_input_name == "pixel_values")

    @property
    def context(self) -> int:
        """Longest sequence the model takes."""
        return int(getattr(self.model.config, "max_position_embeddings", None) or 1 << 30)

    @property
    def pad(self) -> int:
        """Token id that batches are filled up with; the loss never sees it."""
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)

    def gather(self, masters: Mapping[Tensor, Tensor]) -> None:
        """Put the whole model on the CPU of the first rank in place of shards, and of the masters where they exist."""
        whole = load_model(self.folder, torch.float32) if rank() == 0 else None
        targets = dict(whole.named_parameters()) if whole is not None else {}
        for name, shard in self.model.named_parameters():
            value = masters.get(shard, shard).detach().full_tensor()
            if name in targets:
                targets[name].data.copy_(value)
        self.model = whole or self.model

    def save(self, out: Path) -> None:
        """Write weights in the base's dtype, config, generation config and the base's own tokenizer files."""
        model = self.model
        if hasattr(model, "merge_and_unload"):
            model = model.merge_and_unload()
        model = model.to("cpu", self.dtype)
        if self.images:
            model = whole_model(model, self.folder, self.dtype)
        model.config.use_cache = self.cache
        model.save_pretrained(out)
        redact_files(out)
        model.config.use_cache = False
        umask = os.umask(0)
        os.umask(umask)
        for file in out.glob("*.safetensors"):
            file.chmod(0o666 & ~umask)
        copy_tokenizer(self.folder, out)
        copy_processor(self.folder, out)


def load(folder: Path, training: Training, method: str, device: str = "auto") -> Loaded:
    """Load a checkpoint folder for training: float32 weights, or bf16 ones where float32 masters are kept.

    Raises:
        UserError: A folder that transformers cannot load, or adapters on layers that are not there.
    """
    half = training.precision == "bf16_masters"
    stored = load_config(folder).dtype
    model = load_model(folder, torch.bfloat16 if half else torch.float32, shards=training.ranks * training.shard)
    check_saves(model, folder)
    tokenizer = load_tokenizer(folder)
    dtype = stored if isinstance(stored, torch.dtype) else torch.float32
    cache = bool(getattr(model.config, "use_cache", True))
    model.config.use_cache = False
    if device.startswith("cuda:") and device != "cuda:0":
        do = f"choose one with CUDA_VISIBLE_DEVICES={device[5:]} and executor.device=cuda"
        raise UserError("training runs on the first GPU that it sees", where=f"executor.device={device}", do=do)
    device = "cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu")
    if method == "tangent":  # θ0 is kept where the model is
        model = model.to(device)
    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if training.lora.rank:
        model = adapt(model, training.lora)
    if method == "tangent":
        linearise(model)
    return Loaded(model, tokenizer, folder, dtype, device, cache)


def check_kind(loaded: Loaded, task: Task) -> None:
    """UserError for pictures and a base that reads text, or the reverse."""
    if loaded.images != (task.images is not None):
        reads, given = ("pictures", "text") if loaded.images else ("text", "pictures")
        what = f"the base reads {reads}, task {task.name} is of {given}"
        raise UserError(what, where=str(loaded.folder), do="choose another base, or another task")


def adapt(model: Any, spec: Lora) -> Any:
    """Put adapters on the model's target layers.

    Raises:
        UserError: No layer has one of the target names.
    """
    from peft import LoraConfig, get_peft_model

    linear = {name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    for target in spec.targets:
        if target not in linear:
            what = f"no linear layer is called {target!r}"
            raise UserError(what, where="training.lora.targets", do=nearest(target, linear))
    config = LoraConfig(
        r=spec.rank, lora_alpha=spec.alpha, lora_dropout=spec.dropout, target_modules=list(spec.targets),
        task_type="CAUSAL_LM" if model.main_input_name == "input_ids" else None,
    )  # fmt: skip
    return get_peft_model(model, config)


def _layers(model: nn.Module) -> dict[str, Any]:
    """The adapted layers by the name of the weight below them."""
    from peft.tuners.lora import LoraLayer

    found = {name: m for name, m in model.named_modules() if isinstance(m, LoraLayer)}
    return {name.removeprefix("base_model.model.") + ".weight": m for name, m in found.items()}


def merged_weights(model: nn.Module) -> list[tuple[str, Tensor]]:
    """The weights that an offset moves: those below the adapters."""
    return [(name, layer.get_base_layer().weight) for name, layer in _layers(model).items()]


class AdapterOrigin(Origin):
    """Knows θ − θ0 of the moved weights as the adapters' s·B·A."""

    def __init__(self, model: nn.Module):
        super().__init__([])
        self.layers = {layer.get_base_layer().weight.data_ptr(): layer for layer in _layers(model).values()}

    def vector(self, i: int, weight: Tensor) -> Tensor:
        """s·B·A above the i-th moved weight."""
        return self.layers[weight.data_ptr()].get_delta_weight("default").detach().to(weight.dtype)

    def checksum(self) -> float:
        """The frozen weights are the base's own: there is nothing to confuse."""
        return 0.0
