"""Running a mergekit YAML with our methods registered, after checking what mergekit takes silently."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from conf.errors import UserError, nearest, redacted
from conf.files import read_yaml
from mergeopt_core import merging
from mergeopt_core.merging.info import check_values
from mergeopt_core.merging.mergekit_api import run_config
from pipelines.checkpoints.checkpoint import open_checkpoint
from pipelines.checkpoints.folder import locate
from pipelines.checkpoints.untrusted import check_types
from pipelines.checkpoints.write import RECIPE, new_folder, redact_files
from pipelines.merge.recipe import Recipe
from pipelines.merge.stream import Merge, check_cast
from pipelines.merge.write import write_merge
from pipelines.progress import SILENT, Progress

FIELDS = {
    "": "models slices modules base_model merge_method parameters dtype out_dtype tokenizer tokenizer_source "
    "chat_template name mergebench",
    "models": "model parameters",
    "slices": "sources base_model residual_weight parameters",
    "sources": "model layer_range parameters",
    "modules": "slices models parameters",
    "tokenizer": "source tokens pad_to_multiple_of",
    "mergebench": "base seed strict dtype reference",
}
"""mergekit's fields, by the field that they stand below (it takes others silently), and ours."""
REFERENCES = ("model", "base_model", "base", "tokenizer_source", "source")
SEED = "seed"
_UNUSED = {"slices", "modules", "chat_template"}
"""Fields that only mergekit's own runner takes."""


def run_mergekit_config(
    file: Path, out: Path, progress: Progress = SILENT, *, seed: int = 0, device: str = "cpu", online: bool = True,
    allow_pickle: bool = False,
) -> Path:  # fmt: skip
    """Run a mergekit YAML into the model folder ``out``.

    mergekit's own runner does it, in its own dtype rules. Our stream does it, to the bits of ``mergebench merge``, for
    a configuration with a table ``mergebench`` (as a model card shows it), and for a method that reads all tensors
    before the first (for example ``ties_global``), as mergekit's runner shows a kernel one tensor at a time. ``seed``
    holds where the file has none. Raises ``UserError`` for misspelt fields and parameters (with the nearest names),
    models that are not there, results that are not finite, and whatever mergekit does not accept.
    """
    text, document = _read(file)
    method = _check_method(document, file)
    for where, parameters in _parameter_tables(document):
        _check_parameters(method, parameters, f"{file}, {where}")
    seed = _seed(document, seed, file)
    local = _with_folders(document, online)
    if (info := merging.describe(method)).prepares or info.adapters or "mergebench" in document:
        recipe = _plain(local, method, seed, file)
        base, *experts = [open_checkpoint(path, allow_pickle=allow_pickle) for path in (recipe.base, *recipe.experts)]
        return write_merge(Merge(recipe, base, experts), out, progress, device=device)
    opened = [open_checkpoint(path, allow_pickle=allow_pickle) for path in _paths(local)]
    if merging.describe(method).random and merging.describe(method).ours:
        local["parameters"] = {SEED: seed, **(local.get("parameters") or {})}
    size = max((checkpoint.size_bytes for checkpoint in opened), default=0)
    with new_folder(Path(out).expanduser(), size) as beside, progress.step(f"mergekit: {method}") as step:
        _run(local, text, beside, seed, device)
        _check_written(beside)
        redact_files(beside)
        record = {"mergekit_config": document, "seed": seed}
        (beside / RECIPE).write_text(redacted(json.dumps(record, indent=2)) + "\n", encoding="utf-8")
        step.advance(1)
    return Path(out).expanduser()


def _check_written(folder: Path) -> None:
    """Raise ``UserError`` where what mergekit wrote is not finite."""
    written = open_checkpoint(str(folder))
    for name in written.header:
        check_cast(name, written.tensor(name), written.tensor(name), "look at weights and dtype")
        written.release(name)


def _seed(document: Mapping[str, Any], seed: int, file: Path) -> int:
    """The seed that the file states, else the one given; ``UserError`` where both are and differ."""
    tables = [document.get("mergebench") or {}, document.get("parameters") or {}]
    stated = next((table[SEED] for table in tables if SEED in table), seed)
    if seed and stated != seed:
        raise UserError(f"the file says seed {stated}, the command {seed}", where=str(file), do="give one of them")
    if not isinstance(stated, int):
        raise UserError(f"seed is a whole number, not {stated!r}", where=str(file), do="mend the file")
    return stated


def _read(file: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = read_yaml(Path(file))
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{file} is no valid YAML: {' '.join(str(error).split())}", do="mend it") from error
    if not isinstance(document, dict):
        raise UserError(f"{file} holds no table of fields", do="give a mergekit YAML file")
    if not isinstance(document.get("mergebench", {}), dict):
        raise UserError("mergebench is no table of fields", where=str(file), do="mend the file")
    _check_fields(document, "", str(file))
    check_types(document.get("mergebench") or {}, {"base": str, "dtype": str, "strict": bool}, file)
    return text, document


def _check_fields(node: Any, kind: str, where: str) -> None:
    """Every field below a node is one that mergekit knows."""
    for item in node if isinstance(node, list) else [node]:
        if not isinstance(item, dict):
            continue
        for key, value in item.items():
            if key not in FIELDS[kind].split():
                raise UserError(f"unknown field {key!r}", where=where, do=nearest(str(key), FIELDS[kind].split()))
            if key == "modules" and isinstance(value, dict):
                for name, module in value.items():
                    _check_fields(module, "modules", f"{where}, modules.{name}")
            elif key in FIELDS:
                _check_fields(value, key, f"{where}, {key}")


def _check_method(document: Mapping[str, Any], file: Path) -> str:
    method = str(document.get("merge_method", ""))
    if method not in merging.names():
        raise UserError(f"no merge method {method!r}", where=str(file), do=nearest(method, merging.names()))
    if needed := merging.describe(method).statistics:
        do = "run it with mergebench merge method="
        raise UserError(f"{method} needs {needed} statistics", where=str(file), do=do)
    return method


def _parameter_tables(node: Any, where: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every table of parameters in the configuration, with words for where it stands."""
    if isinstance(node, list):
        for index, item in enumerate(node):
            yield from _parameter_tables(item, f"{where}[{index}]")
    elif isinstance(node, dict):
        for key, value in node.items():
            if key == "parameters":
                if not isinstance(value, dict):
                    what = "parameters is no table of names and values"
                    raise UserError(what, where=where or key, do="mend the file")
                yield f"{where}.{key}".lstrip("."), value
            elif key != "tokens":
                yield from _parameter_tables(value, f"{where}.{key}".lstrip("."))


def _check_parameters(method: str, parameters: Mapping[str, Any], where: str) -> None:
    """Names against the method's declaration, and every value among filters and gradients against its type."""
    info = merging.describe(method)
    known = {parameter.name: parameter for parameter in info.parameters if parameter.name != "reference"}
    for name, setting in parameters.items():
        if name == SEED and info.random and info.ours:
            continue
        if name not in known:
            raise UserError(f"merge method {method} has no parameter {name!r}", where=where, do=nearest(name, known))
        for value in [setting] if known[name].type == "dict" else _leaves(setting):
            try:
                check_values(info, known[name], value, 1)
            except ValueError as error:
                raise UserError(str(error), where=where, do=f"see: mergebench methods {method}") from error


def _leaves(setting: Any) -> list[Any]:
    """The plain values in a setting: a value, a gradient, or values by filter."""
    if isinstance(setting, list):
        return [leaf for item in setting for leaf in _leaves(item)]
    return _leaves(setting.get("value")) if isinstance(setting, dict) else [setting]


def _with_folders(node: Any, online: bool, key: str = "") -> Any:
    """The configuration with every model as a folder on this machine; ``UserError`` where one is not there."""
    if isinstance(node, dict):
        return {k: _with_folders(v, online, k) for k, v in node.items()}
    if isinstance(node, list):
        return [_with_folders(item, online) for item in node]
    if key not in REFERENCES or not isinstance(node, str) or node in ("union", "base"):
        return node
    parts = [part.partition("@") for part in node.split("+")]
    return "+".join(str(locate(path, revision=revision or None, online=online)) for path, _, revision in parts)


def _paths(document: Mapping[str, Any]) -> set[str]:
    """Folders of the models (without adapters) in a configuration."""
    found = set()
    for key, value in document.items():
        if key in ("model", "base_model") and isinstance(value, str):
            found.add(value.partition("+")[0])
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict):
                found |= _paths(item)
    return found


def _plain(document: Mapping[str, Any], method: str, seed: int, file: Path) -> Recipe:
    """The recipe of a configuration that is one list of models with plain values."""
    own, shared = document.get("mergebench") or {}, dict(document.get("parameters") or {})
    base, tokenizer = own.get("base") or document.get("base_model"), document.get("tokenizer") or {}
    known = {p.name: p for p in merging.describe(method).parameters}
    models = [m for m in document.get("models") or [] if own or m["model"] != base or m.get("parameters")]
    structured = {
        name
        for table in (shared, *(model.get("parameters") or {} for model in models))
        for name, value in table.items()
        if isinstance(value, (list, dict)) and (name == SEED or known[name].type != "dict")
    }
    if not models or not base or structured or _UNUSED & set(document) or set(tokenizer) - {"source"}:
        what = f"{method} runs on whole models here, and takes a base_model, models and plain values only"
        do = "leave out slices, modules, filters, gradients, chat_template and tokenizer fields but source"
        raise UserError(what, where=str(file), do=do)
    shared.pop(SEED, None)
    standards = {name: p.mergekit_default for name, p in known.items() if p.mergekit_default is not None} | shared
    for name in {name for model in models for name in model.get("parameters") or {}}:
        standards[name] = [(model.get("parameters") or {}).get(name, standards.get(name)) for model in models]
    if "reference" in own:
        standards["reference"] = own["reference"]
    experts = tuple(_expert(model["model"], base, file) for model in models)
    dtype = own.get("dtype") or document.get("out_dtype") or document.get("dtype") or "auto"
    vocab = document.get("tokenizer_source") or tokenizer.get("source") or "error"
    return Recipe(base, experts, method, standards, seed, dtype, vocab, own.get("strict", True))


def _expert(model: str, base: str, file: Path) -> str:
    """A model's folder, or its adapter's, which has to be on the base."""
    whole, _, adapter = model.partition("+")
    if adapter and (whole != base or "+" in adapter):
        raise UserError(f"{model} is no single adapter on {base}", where=str(file), do="give the base that it is on")
    return adapter or whole


def _run(document: Mapping[str, Any], source: str, out: Path, seed: int, device: str) -> None:
    """mergekit's own run, its bars silenced, its errors told in one line."""
    text = yaml.safe_dump(dict(document), sort_keys=False)
    with tempfile.TemporaryDirectory() as adapters, contextlib.redirect_stderr(io.StringIO()):
        try:
            run_config(text, str(out), source=source, seed=seed, device=device, lora_cache=adapters)
        except (ValueError, RuntimeError, TypeError, KeyError, OSError) as error:
            first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            what = f"mergekit does not run this configuration: {first}"
            raise UserError(what, do="mend the configuration") from error
