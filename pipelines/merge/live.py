"""From the stream into a live model."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from conf.errors import UserError
from pipelines.merge.stream import Merge, check_cast
from pipelines.process import device_of
from pipelines.progress import SILENT, Progress


def merge_into(
    model: nn.Module, merge: Merge, device: str | torch.device | None = None, progress: Progress = SILENT
) -> None:
    """Copy a merge into a live model built from the base's config: the bits that loading it from disk would give.

    Each tensor is cast to the recipe's dtype, then to the parameter's, and is renamed and packed as transformers does
    on loading. Arithmetic runs on ``device`` (default: the model's). A tied head follows its embedding; the model is
    given a head of its own, or other vocabulary rows, where the merge has them. Of a model that accelerate spread over
    several devices, what lies in host memory is written there. Raises ``UserError`` where merge and
    model do not fit, and where a value overflows the parameter's dtype.
    """
    loading = Loading(model, merge.layout.outputs)
    _fit(model, merge, loading)
    targets = model.state_dict(keep_vars=True) | _offloaded(model)
    device = device if device is not None else device_of(model)
    with progress.step("merging", len(merge.layout.outputs)) as step:
        for name, tensor in merge.tensors(device):
            for live, value in loading.take(name, tensor):
                _copy(targets[live], live, value)
            step.advance()
    _complete(model, targets, merge, loading)


class Loading:
    """What transformers makes of the tensors of a checkpoint (``names``) as it loads them into a model.

    Raises ``UserError`` for a module that is no transformers model and does not have the names.
    """

    def __init__(self, model: Any, names: Iterable[str]):
        self._model = model
        self._known: dict[str, Tensor] = model.state_dict()
        self.live: dict[str, str] = {}
        """Names on disk that go into the model → live names; that of a packed tensor is its pack's first."""
        self.written: set[str] = set()
        """Live names of what ``take`` has given so far."""
        self._packers: dict[str, tuple[str, Any]] = {}  # name on disk → its pattern, the converter that packs it
        self._packs: dict[str, dict[str, Tensor | None]] = {}  # live name → name on disk → tensor, once it has come
        if hasattr(model, "base_model_prefix"):
            self._ask_transformers(names)
        elif missing := [name for name in names if name not in self._known]:
            raise UserError(f"the model has no {', '.join(missing[:3])}", do="build the model from the base's config")
        else:
            self.live = {name: name for name in names}

    def _ask_transformers(self, names: Iterable[str]) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

        mapping = get_model_conversion_mapping(self._model)
        renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
        for name in sorted(names, key=dot_natural_key):  # the order in which loading packs them
            for steps in ((renamings, converters), ([], [])):  # a name that is live already may be no source
                live, pattern = rename_source_key(name, *steps, self._model.base_model_prefix, self._known)
                if live in self._known:
                    self.live[name] = live
                    if pattern is not None:
                        self._packers[name] = pattern, by_pattern[pattern]
                        self._packs.setdefault(live, {})[name] = None
                    break

    def take(self, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Live names and tensors that are complete with this one from disk; nothing for one that loading ignores."""
        live = self.live.get(name)
        if live is None:
            return
        made = {live: tensor}
        if name in self._packers:
            pack = self._packs[live]
            pack[name] = tensor.to(self._known[live].dtype, copy=True)  # loading casts, then packs
            if any(part is None for part in pack.values()):
                return
            made = self._packed(live)
        for target, value in made.items():
            self.written.add(target)
            yield target, value[0] if isinstance(value, list) else value

    def _packed(self, live: str) -> dict[str, Any]:
        pack = self._packs.pop(live)
        converter = copy.deepcopy(self._packers[next(iter(pack))][1])
        for name, tensor in pack.items():
            converter.add_tensor(live, name, self._packers[name][0], tensor)
        return converter.convert(live, model=self._model, config=self._model.config)


def _offloaded(model: nn.Module) -> dict[str, Tensor]:
    """The weights that accelerate keeps in host memory for a model, by their live names."""
    found = {}
    for prefix, module in model.named_modules():
        weights = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
        for name, parameter in module.named_parameters(recurse=False):
            if weights is not None and parameter.is_meta:
                found[f"{prefix}.{name}".lstrip(".")] = weights[name]
    return found


def _copy(target: Tensor, name: str, tensor: Tensor) -> None:
    if target.shape != tensor.shape:
        raise UserError(f"{name} is {list(tensor.shape)} in the merge and {list(target.shape)} in the model")
    target.data.copy_(tensor)
    if target.dtype != tensor.dtype:
        check_cast(name, tensor, target.data, "choose suite.dtype=bfloat16 or float32")


def _ends(model: Any) -> tuple[Any, Any]:
    """The head's and the embedding's weight, None where there is none."""
    if not hasattr(model, "get_input_embeddings"):
        return None, None
    head = model.get_output_embeddings()
    return getattr(head, "weight", None), model.get_input_embeddings().weight


def _fit(model: Any, merge: Merge, loading: Loading) -> None:
    """Give the model the vocabulary rows and the separate head that the merge has."""
    head, embedding = _ends(model)
    spread = hasattr(model, "_hf_hook")  # then a tied pair is not one object once it has been away
    tied = head is embedding or (spread and model.config.get_text_config().tie_word_embeddings)
    state = model.state_dict(keep_vars=True)
    ends = {name for name, tensor in state.items() if tensor is embedding or (tied and tensor is head)}
    given = [merge.layout.outputs[name] for name, live in loading.live.items() if live in ends]
    grown, untied = given and given[0].shape[0] != embedding.shape[0], tied and len(given) > 1
    if spread and (grown or untied):
        what = "the merge has other vocabulary rows, or a head of its own, and the model lies on several devices"
        raise UserError(what, do="merge with vocab=base, or leave executor.device_map out")
    if grown:
        model.resize_token_embeddings(given[0].shape[0], mean_resizing=False)
        embedding = model.get_input_embeddings().weight
    if untied:
        model.get_output_embeddings().weight = nn.Parameter(embedding.detach().clone())
        model.config.tie_word_embeddings = False


def _complete(model: Any, targets: dict[str, Tensor], merge: Merge, loading: Loading) -> None:
    """Give a head that an earlier merge untied the embedding's values, where the merge has no head of its own.

    Raises ``UserError`` for parameters that the merge did not give.
    """
    given = {targets[name].data_ptr() for name in loading.written}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    ignored = getattr(model, "_keys_to_ignore_on_load_missing", None) or []
    head, embedding = _ends(model)
    for name, tensor in targets.items():
        if tensor.data_ptr() in given or name not in parameters or any(re.search(i, name) for i in ignored):
            continue
        if parameters[name] is not head or not merge.base.tied:
            raise UserError(f"the merge has no {name}, which the model needs", do="give a base that has it")
        source = next(other for other, parameter in parameters.items() if parameter is embedding)
        tensor.data.copy_(targets[source].data)
