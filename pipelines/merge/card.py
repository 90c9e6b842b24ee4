"""The model card of a merge: from what, how, and how to make it again."""

from __future__ import annotations

from collections import Counter

from mergeopt_core import merging
from pipelines.checkpoints.adapters import AdaptedCheckpoint
from pipelines.checkpoints.folder import hub_id
from pipelines.merge.recipe import Recipe
from pipelines.merge.stream import Merge


def model_card(merge: Merge, title: str) -> str:
    """Markdown with front matter: base, experts, method, parameters, seed and the recipe as mergekit YAML."""
    recipe = merge.recipe.with_parameters(merge.parameters)
    info = merging.describe(recipe.method)
    hub = [name for name in (recipe.base, *recipe.experts) if hub_id(name)]
    link = f"[{info.pretty}]({info.url})" if info.url else info.pretty
    rows = [f"| {name} | `{value}` |" for name, value in recipe.parameters.items()]
    lines = ["---", "library_name: transformers", "tags:", "- merge", "- mergebench"]
    lines += ["base_model:", *(f"- {name}" for name in hub)] if hub else []
    lines += ["---", f"# {title}", ""]
    lines += [f"{len(recipe.experts)} experts merged with {link} (`{recipe.method}`) by mergebench.", ""]
    lines += [
        f"Base: `{recipe.base}`",
        "",
        "Experts, in order:",
        "",
        *(f"- `{expert}`" for expert in recipe.experts),
        "",
    ]
    lines += [f"Seed {recipe.seed}; weights computed in float32 and stored as {_dtype(merge)}.", ""]
    if merge.update_norm is not None:
        lines += [f"Norm of the update, ‖θ − θ0‖₂ over all weights: {merge.update_norm:.6g}.", ""]
    lines += ["| parameter | value |", "|---|---|", *rows, ""] if rows else []
    return "\n".join([*lines, *_configuration(merge, recipe), ""])


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
    counts: Counter[str] = Counter()
    for info in merge.layout.outputs.values():
        counts[info.dtype] += info.count
    return max(counts, key=lambda name: counts[name])
