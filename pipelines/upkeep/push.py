"""A model of the store on the hub: its weights, a card for people and for the hub, and nothing of this machine."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conf.errors import UserError, markdown_text, redacted
from conf.schema import Config
from pipelines.checkpoints.card import base_name
from pipelines.checkpoints.fingerprint import PROCESSOR_FILES
from pipelines.checkpoints.folder import HUB_ID, hub_id
from pipelines.checkpoints.headers import KEPT
from pipelines.checkpoints.untrusted import read_json
from pipelines.checkpoints.write import new_folder
from pipelines.merge.recipe import Recipe
from pipelines.progress import SILENT, Progress
from pipelines.store.provenance import markdown, provenance, scores_markdown, training_of
from pipelines.store.store import KINDS, Entry, title
from pipelines.study.sources import Access
from pipelines.upkeep.export import checkpoint_of, empty_place, fill, located, size_of

MODEL_FILES = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "*.jinja")
TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model")
RECIPE = "mergekit_config.yml"


@dataclass(frozen=True)
class Pushed:
    """What went, or would go, to the hub."""

    repo: str
    folder: str
    """Folder in which it was put together; gone where it was uploaded from a temporary one."""
    files: dict[str, int]
    """Sizes by name."""
    card: str
    notes: list[str]
    """What the card lacks, and how to add it."""
    url: str | None = None
    """Where it is now; None for a dry run."""


def push(
    key: str, repo: str, config: Config, access: Access, *, upload: bool = False, private: bool = False,
    licence: str | None = None, progress: Progress = SILENT,
) -> Pushed:  # fmt: skip
    """Put an expert or a merge together as the hub wants it and, if told to, upload it.

    Without ``upload`` nothing leaves the machine: the folder is left at ``config.out``, where that is named, to be
    looked at. The card names base and experts by hub id where they have one (by name otherwise), the licence (the
    base's, or ``licence``), scores in the hub's form, and the recipe as a mergekit file beside it.

    Raises:
        UserError: for a name that is no hub id, an entry that is no model, and where the hub refuses.
    """
    if not HUB_ID.fullmatch(repo) or "/" not in repo:
        raise UserError(f"{repo} is no name of a hub repository", where="push", do="write it as OWNER/NAME")
    entry = access.store.find(key)
    if entry.kind in ("bases", "statistics"):
        raise UserError(
            f"{entry.kind}:{entry.key[:10]} is no expert and no merge", where="push", do="name one of those"
        )
    out, source = empty_place(config.out) if config.out else None, checkpoint_of(entry, access.store)
    with new_folder(out, size_of(source)) if out else access.store.draft("push") as folder:
        fill(entry, source, folder, repo.partition("/")[2], config, access, progress)
        card, notes = _finish(entry, folder, repo, access, licence)
        files = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
        url = _upload(folder, repo, private) if upload else None
        return Pushed(repo, str(out or folder), files, card, notes, url)


TASKS = ("text-generation", "zero-shot-image-classification")
"""What the hub calls a language model's task, and an image classifier's."""


def _finish(entry: Entry, folder: Path, repo: str, access: Access, licence: str | None) -> tuple[str, list[str]]:
    """Leave what the hub needs in the folder, with a card and a recipe that name no path of this machine."""
    kept = {file for pattern in (*MODEL_FILES, *TOKENIZER_FILES, *PROCESSOR_FILES) for file in folder.glob(pattern)}
    for file in folder.iterdir():
        if file not in kept:
            shutil.rmtree(file) if file.is_dir() else file.unlink()
    about = entry.describe()
    sources = [about["base"], *about["experts"]] if "experts" in about else [about["base"]]
    models = [_public(source["path"], access) for source in sources]
    names = [name for name, _ in models]
    base = Path(located(about["base"], access.store).path)
    licence = licence or _licence(names[0] if models[0][1] and access.online else None, base)
    notes = [] if licence else ["the base names no licence: give one with --license"]
    own = [name for name, on_hub in models if not on_hub]
    notes += [f"{', '.join(dict.fromkeys(own))}: not on the hub, so the card gives names alone"] if own else []
    recipe = about.get("recipe")
    if recipe:
        portable = Recipe(**{**recipe, "base": names[0], "experts": names[1:]})
        (folder / RECIPE).write_text(portable.mergekit_yaml(), encoding="utf-8")
    pictures = read_json(folder / "config.json").get("model_type") in KEPT
    front = _front(about, repo, [name for name, on_hub in models if on_hub], licence, TASKS[pictures])
    card = front + _body(entry, about, repo, names)
    (folder / "README.md").write_text(redacted(card), encoding="utf-8")
    return card, notes


def _public(path: str, access: Access) -> tuple[str, bool]:
    """What a checkpoint is called, and whether that is a hub id."""
    kind, key = Path(path).parts[-2:] if len(Path(path).parts) > 1 else ("", "")
    if kind in KINDS and access.store.has(kind, key):
        return str(access.store.entry(kind, key).describe().get("name") or key[:10]), False
    name = path if hub_id(path) else base_name(Path(path))
    return name, hub_id(path) or name != Path(path).name


def _licence(name: str | None, folder: Path) -> str | None:
    """The licence that the base's own card gives, in its folder or on the hub; None where neither says."""
    from huggingface_hub import ModelCard
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    card = folder / "README.md"
    source = str(card) if card.is_file() else name
    try:
        data = ModelCard.load(source).data if source else None
    except (OSError, ValueError, HfHubHTTPError, OfflineModeIsEnabled):
        return None
    return data.license if data and isinstance(data.license, str) else None


def _front(about: Mapping[str, Any], repo: str, hub: list[str], licence: str | None, kind: str) -> str:
    """The hub's metadata: base models, licence, tags and results."""
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type=kind, dataset_type=task, dataset_name=task, metric_type=score["metric"],
            metric_value=score["value"], metric_name=score["metric"],
        )
        for task, score in about.get("tasks", {}).items() if score["value"] is not None
    ]  # fmt: skip
    data = ModelCardData(
        base_model=list(dict.fromkeys(hub)) or None,
        license=licence, library_name="transformers", pipeline_tag=kind,
        tags=["mergebench", *(["merge", "mergekit"] if about.get("recipe") else ["expert"])],
        model_name=repo.partition("/")[2], eval_results=results or None,
    )  # fmt: skip
    return f"---\n{data.to_yaml()}\n---\n"


def _body(entry: Entry, about: Mapping[str, Any], repo: str, names: list[str]) -> str:
    recipe = about.get("recipe")
    lines = [f"# {repo.partition('/')[2]}", "", markdown_text(title(about)), "", f"- base: {names[0]}"]
    if recipe:
        lines += [f"- method: {recipe['method']}, seed {recipe['seed']}", "- experts, in order:"]
        lines += [f"  - {name}" for name in names[1:]]
        lines += ["", "| parameter | value |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in recipe["parameters"].items()]
        lines += ["", f"`{RECIPE}` is the recipe: `mergebench merge --mergekit-config {RECIPE} out=DIR`.", ""]
    if "trial" in about:
        lines += ["", scores_markdown(about), "", markdown(provenance(about))]
    elif trained := training_of(str(entry.folder)):
        lines += ["", markdown({"training": trained["how"], "seed": trained["seed"]})]
    return "\n".join([*lines, "", "Made with mergebench.", ""])


def _upload(folder: Path, repo: str, private: bool) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload by mergebench")
    except (HfHubHTTPError, LocalTokenNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        do = "log in with `hf auth login`, or check the name"
        raise UserError(f"the hub refuses: {reason}", where=repo, do=do) from None
    return f"https://huggingface.co/{repo}"
