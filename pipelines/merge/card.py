"""The model card of a merge: from what, how, and how to make it again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mergeopt_core import merging
from pipelines.checkpoints.adapters import AdaptedCheckpoint
from pipelines.checkpoints.folder import HUB_ID

if TYPE_CHECKING:
    from pipelines.merge.recipe import Recipe
    from pipelines.merge.stream import Merge


def model_card(merge: Merge, title: str) -> str:
    """Markdown with front matter: base, experts, method, parameters, seed and the recipe as mergekit YAML."""
    recipe = merge.recipe.with_parameters(merge.parameters)
    info = merging.describe(recipe.method)
    rows = "\n".join(f"| {name} | `{value}` |" for name, value in recipe.parameters.items())
    experts = "\n".join(f"- `{expert}`" for expert in recipe.experts)
    hub = [name for name in (recipe.base, *recipe.experts) if HUB_ID.match(name) and not Path(name).exists()]
    front = ["---", "library_name: transformers", "tags:", "- merge", "- mergebench"]
    front += ["base_model:", *(f"- {name}" for name in hub)] if hub else []
    link = f"[{info.pretty}]({info.url})" if info.url else info.pretty
    return "\n".join(
        [
            *front,
            "---",
            f"# {title}",
            "",
            f"{len(recipe.experts)} experts merged with {link} (`{recipe.method}`) by mergebench.",
            "",
            f"Base: `{recipe.base}`",
            "",
            "Experts, in order:",
            "",
            experts,
            "",
            f"Seed {recipe.seed}; weights computed in float32 and stored as {_dtype(merge)}.",
            "",
            *(["| parameter | value |", "|---|---|", rows, ""] if rows else []),
            *_configuration(merge, recipe),
            "",
        ]
    )


def _configuration(merge: Merge, recipe: Recipe) -> list[str]:
    """The recipe as a mergekit configuration that gives the same bits, where there is one."""
    if needed := merging.describe(recipe.method).statistics:
        return [f"It takes {needed} statistics of every expert, which mergekit's form has no place for."]
    adapters = [path for path, expert in zip(recipe.experts, merge.experts) if isinstance(expert, AdaptedCheckpoint)]
    dtypes = {info.dtype for info in merge.layout.outputs.values() if info.merged}
    text = recipe.mergekit_yaml(_dtype(merge) if len(dtypes) == 1 else None, adapters).rstrip()
    return ["The recipe in mergekit's form (`mergebench merge --mergekit-config`):", "", "```yaml", text, "```"]


def _dtype(merge: Merge) -> str:
    """The dtype that most merged elements have."""
    counts: dict[str, int] = {}
    for info in merge.layout.outputs.values():
        counts[info.dtype] = counts.get(info.dtype, 0) + info.count
    return max(counts, key=lambda name: counts[name])
