"""What transformers loads of a checkpoint that others made: no code but what is trusted by name, nothing from
elsewhere, nothing too large."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch

from conf.errors import UserError
from pipelines.checkpoints import headers
from pipelines.checkpoints.checkpoint import open_checkpoint
from pipelines.checkpoints.code import check_code, runs_code
from pipelines.checkpoints.tokenizer import check_templates, check_tokenizer
from pipelines.checkpoints.untrusted import read_json
from pipelines.process import silence

NUMBERS = re.compile(r"^num_|layers?$|^n_layer")
"""Fields of a configuration that transformers counts up to."""
COUNT = 1_000_000
"""What such a field says at most."""
SLACK = 1_000_000
"""Parameters that a model may have beyond those that its files hold (constants that are not saved)."""

PARTS = {
    ("clip", ""): ("CLIPVisionModelWithProjection", "vision_config"),
    ("clip", "text"): ("CLIPTextModelWithProjection", "text_config"),
}
"""By model type and part, transformers' class and its configuration where it is no causal language model: what is
trained, merged and scored of an image classifier is its image tower; its text tower makes the head."""

Loaded = TypeVar("Loaded")


def load_config(folder: Path | str, trust: Sequence[str] = ()) -> Any:
    """transformers' configuration of a checkpoint folder. Raises UserError where it means nothing to transformers.

    Here and below, ``trust`` names the hub ids and folders whose own code may run.
    """
    from transformers import AutoConfig

    fields = read_json(Path(folder) / "config.json")
    _check_counts(fields, Path(folder))
    check_code(folder, trust)
    return _sound("model configuration", folder, lambda: AutoConfig.from_pretrained(folder, **_local(folder, trust)))


def load_tokenizer(folder: Path | str, trust: Sequence[str] = ()) -> Any:
    """transformers' tokenizer of a checkpoint folder. Raises UserError where there is none that can be read."""
    from transformers import AutoTokenizer

    check_tokenizer(Path(folder))
    local = _local(folder, trust)
    tokenizer = _sound("tokenizer", folder, lambda: AutoTokenizer.from_pretrained(folder, **local), BESIDE)
    _sound("tokenizer", folder, lambda: tokenizer("a b"), BESIDE)
    check_templates(tokenizer.chat_template, Path(folder))
    return tokenizer


def load_model(
    folder: Path | str,
    dtype: torch.dtype,
    device: str = "cpu",
    whole: bool = True,
    attention: str | None = None,
    trust: Sequence[str] = (),
    part: str = "",
    shards: int = 0,
) -> Any:
    """The causal language model of a checkpoint folder, or one of the ``PARTS``, on the CPU, its weights in ``dtype``;
    divided over so many ranks, of which each reads its part, where ``shards`` says so.

    Raises UserError for an adapter, an encoder-decoder model, a configuration that asks for other weights than the
    files hold (with ``whole``: that asks for any that they do not hold), and a model larger than the memory.
    """
    checkpoint = open_checkpoint(str(folder), allow_pickle=True)
    if checkpoint.adapter:
        raise UserError(f"{folder} is an adapter", do="give the whole model, or merge the adapter into its base first")
    config = load_config(folder, trust)
    if config.is_encoder_decoder:
        what = f"{config.model_type} is an encoder-decoder model"
        raise UserError(what, where=str(folder), do="only causal language models can be scored")
    if config.model_type in headers.PARTS:
        what = f"{config.model_type} is a part of a model, which classifies nothing by itself"
        raise UserError(what, where=str(folder), do="name its base: base.path=DIR 'experts=[…]' method=linear")
    kind, own = _class_of(config, part)
    code = runs_code(folder, trust)
    build = partial(kind, **own) if own else partial(kind.from_config, config, trust_remote_code=code)
    _check_size(config, build, sum(info.count for info in checkpoint.header.values()), len(checkpoint.header), folder)
    _check_room(checkpoint.header.values(), dtype, device, folder)
    options = {**_local(folder, trust), "dtype": dtype, "attn_implementation": attention, "output_loading_info": True}
    options |= {"distributed_config": _sharded(shards)} if shards else {}
    with silence():  # it lists what a part leaves out
        model, told = _sound("model", folder, lambda: kind.from_pretrained(folder, **own, **options))
    if whole and (missing := sorted(told["missing_keys"])):
        what = f"the files hold no {', '.join(missing[:3])}, which config.json asks for"
        raise UserError(what, where=str(folder), do="give the configuration that the weights were saved with")
    return model


def spread(model: Any, memory: dict[int | str, int] | None = None) -> Any:
    """A model in host memory, spread over all GPUs by accelerate; what does not fit them stays and visits the first.

    ``memory`` is what there is, in bytes by device. Raises UserError for a model that fits neither.
    """
    from accelerate import dispatch_model, infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    kept = {"dtype": model.dtype, "no_split_module_classes": list(model._no_split_modules or [])}
    places = infer_auto_device_map(model, max_memory=get_balanced_memory(model, memory, **kept), **kept)
    if "disk" in places.values():
        what = "the model fits neither the GPUs nor host memory: on disk every merge would be written anew"
        raise UserError(what, where="executor.device_map", do="choose suite.dtype=bfloat16, or a larger machine")
    return dispatch_model(model, places)


def check_saves(model: Any, folder: Path | str) -> None:
    """UserError for a model whose configuration transformers would not save."""
    _sound("model configuration", folder, getattr(model.config, "validate", lambda: None))


def _sharded(shards: int) -> Any:
    try:
        from transformers.distributed import DistributedConfig

        return DistributedConfig(fsdp_size=shards)
    except (ImportError, TypeError):
        what, do = "this version of transformers does not divide models", "pip install -U transformers"
        raise UserError(what, where="training.shard", do=do) from None


def quantised(model: Any, how: str) -> Any:
    """A live model's copy in 8bit or 4bit, as bitsandbytes quantises a checkpoint of its weights on loading."""
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig(load_in_8bit=how == "8bit", load_in_4bit=how == "4bit")
    options = {"dtype": model.dtype, "device_map": {"": model.device}, "quantization_config": settings}
    options |= {"config": model.config, "state_dict": model.state_dict()}
    return _sound(f"{how} model", model.name_or_path, lambda: type(model).from_pretrained(None, **options).eval(), BITS)


def _class_of(config: Any, part: str) -> tuple[Any, dict[str, Any]]:
    """transformers' class for a configuration, and the configuration of a part, where it is one."""
    import transformers

    if (config.model_type, part) not in PARTS:
        return transformers.AutoModelForCausalLM, {}
    name, fields = PARTS[config.model_type, part]
    own = getattr(config, fields)
    own.projection_dim = config.projection_dim
    return getattr(transformers, name), {"config": own}


SAVED = "give a transformers checkpoint as it was saved"
BESIDE = "put the tokenizer's files beside the weights"
BITS = "leave suite.quantization out, or see what bitsandbytes wants of this machine"


def _local(folder: Path | str, trust: Sequence[str]) -> dict[str, Any]:
    return {"trust_remote_code": runs_code(folder, trust), "local_files_only": True}


def _sound(what: str, folder: Path | str, load: Callable[[], Loaded], do: str = SAVED) -> Loaded:
    """What transformers loads; anything that it raises for a broken file is one line."""
    try:
        return load()
    except UserError:
        raise
    except BaseException as error:  # whatever the many readers below raise; tokenizers' Rust panics are no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
        raise UserError(f"there is no {what} that can be read: {reason[:300]}", where=str(folder), do=do) from error


def _check_counts(fields: Any, folder: Path) -> None:
    for name, value in fields.items():
        if isinstance(value, dict):
            _check_counts(value, folder)
        elif isinstance(value, (int, float)) and NUMBERS.search(str(name)) and not value <= COUNT:
            raise UserError(f"{name} is {value}", where=str(folder / "config.json"), do="give a real model")


def _check_size(config: Any, build: Callable[[], Any], stored: int, tensors: int, folder: Path | str) -> None:
    """UserError where the configuration describes a larger model than the files hold: it is built without memory."""
    inner = config.get_text_config()
    layers = getattr(inner, "num_hidden_layers", None)
    do = "give the configuration that the weights were saved with"
    if isinstance(layers, int) and layers > tensors:
        raise UserError(f"config.json asks for {layers} layers of {tensors} tensors", where=str(folder), do=do)
    if getattr(config, "quantization_config", None):
        return
    with torch.device("meta"):
        empty = _sound("model", folder, build)
    asked = sum(p.numel() for p in empty.parameters())
    if asked > stored + SLACK:
        what = f"config.json describes a model of {asked:,} parameters, the files hold {stored:,}"
        raise UserError(what, where=str(folder), do=do)


def _check_room(tensors: Any, dtype: torch.dtype, device: str, folder: Path | str) -> None:
    needed = sum(info.count for info in tensors) * dtype.itemsize
    cuda = torch.device(device).type == "cuda"
    room = torch.cuda.get_device_properties(device).total_memory if cuda else psutil.virtual_memory().total
    if needed > room:
        what = f"the model takes {needed / 1e9:.1f} GB, {device} has {room / 1e9:.1f} GB"
        raise UserError(what, where=str(folder), do="choose a smaller model, another device or suite.dtype=bfloat16")
