"""What goes into each merged tensor and what is wrong with it, decided from headers before any weight is read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipelines.merge.checkpoint import OpenCheckpoint
from pipelines.merge.headers import TensorInfo
from pipelines.merge.recipe import Recipe

HEAD = re.compile(r"(^|\.)(lm_head|embed_out)\.weight$")
EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings)\.weight$")
VOCABULARY = re.compile(
    r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings|lm_head|embed_out)\.(weight|bias)$"
)
"""Tensors with one row a token."""
BUFFERS = re.compile(r"rotary_emb\.inv_freq$|attn\.(bias|masked_bias)$|attention\.(bias|masked_bias)$|position_ids$")
"""Constants that some versions of transformers saved and others recompute: never merged into, never missed."""
SAME = ("num_attention_heads", "num_key_value_heads", "hidden_act", "hidden_activation")
"""Config fields that change what a weight means without changing its shape."""
WORTH_A_NOTE = ("rope_theta", "rope_scaling", "rope_parameters", "sliding_window")


@dataclass(frozen=True)
class Problem:
    """One thing that keeps a merge from being made: in which tensor, of which model, what, and what to do."""

    tensor: str
    """Empty where it is not about one tensor."""
    who: str
    what: str
    do: str

    def __str__(self) -> str:
        return f"{self.who}: {self.tensor + ' ' if self.tensor else ''}{self.what}; {self.do}"


@dataclass
class Layout:
    """The merged tensors and where each model keeps its part of them."""

    outputs: dict[str, TensorInfo] = field(default_factory=dict)
    """Name, dtype and shape of every merged tensor."""
    sources: list[dict[str, str]] = field(default_factory=list)
    """For the base, then each expert: merged name → its own name; absent where the base's tensor stands in."""
    untied: bool = False
    """The base's head is its embedding, an expert's is not: the merged model gets a head of its own."""
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def make_layout(recipe: Recipe, base: OpenCheckpoint, experts: Sequence[OpenCheckpoint]) -> Layout:
    """Lay a merge out from headers and configs; everything that is wrong is in ``problems``, all at once."""
    layout = Layout()
    _check_quantized([base, *experts], layout)
    for expert in experts:
        _check_config(base, expert, layout)
    names = dict(base.header)
    head = _first(HEAD, names) or next((h for e in experts if (h := _first(HEAD, e.header))), None)
    embedding = _first(EMBEDDING, names)
    if head and embedding and base.tied:
        names.pop(head, None)
        if any(head in e.header and not e.tied for e in experts):
            layout.untied = True
            names[head] = names[embedding]
            layout.notes.append(f"the base's output head is its embedding; the merged model gets {head} of its own")
    layout.outputs = {n: TensorInfo(_out_dtype(recipe, i), i.shape) for n, i in sorted(names.items())}
    for model in (base, *experts):
        layout.sources.append(_match(recipe, base, model, names, (head, embedding), layout))
    return layout


def _match(
    recipe: Recipe,
    base: OpenCheckpoint,
    model: OpenCheckpoint,
    names: dict[str, TensorInfo],
    tie: tuple[str | None, str | None],
    layout: Layout,
) -> dict[str, str]:
    """Where one model keeps each merged tensor; mismatches go to the layout's problems."""
    head, embedding = tie
    own: dict[str, str] = {}
    missing = []
    for name, info in names.items():
        source = embedding if name == head and model.tied and embedding else name
        if source in model.header:
            own[name] = source
            if problem := _compare(recipe, name, info, model.header[source], model):
                layout.problems.append(problem)
        elif not BUFFERS.search(name):
            missing.append(name)
    extra = [n for n in model.header if n not in names and n not in base.header and not BUFFERS.search(n)]
    extra = [n for n in extra if n != head]
    if recipe.strict:
        do = "use an expert made from this base, or set strict=false to take the base's tensor"
        layout.problems += [Problem(n, model.name, "is missing", do) for n in missing]
        do = "use an expert made from this base, or set strict=false to drop it"
        layout.problems += [Problem(n, model.name, "is not in the base", do) for n in extra]
    else:
        layout.notes += [f"{model.name} has no {n}: the base's is used" for n in missing]
        layout.notes += [f"{model.name}: {n} is not in the base and is dropped" for n in extra]
    return own


def _compare(recipe: Recipe, name: str, base: TensorInfo, own: TensorInfo, model: OpenCheckpoint) -> Problem | None:
    """The problem with one tensor of one model, if any."""
    if base.merged != own.merged or (not base.merged and base.dtype != own.dtype):
        what = f"is {own.dtype}, the base's is {base.dtype}"
        return Problem(name, model.name, what, "use a copy in 16 or 32-bit floating point")
    if base.shape == own.shape:
        return None
    what = f"is {list(own.shape)}, the base's is {list(base.shape)}"
    if VOCABULARY.search(name) and base.shape[1:] == own.shape[1:]:
        if recipe.vocab != "error":
            return None
        return Problem(name, model.name, what, "the vocabularies differ: set vocab=base or vocab=union")
    return Problem(name, model.name, what, "use an expert made from this base")


def _check_config(base: OpenCheckpoint, expert: OpenCheckpoint, layout: Layout) -> None:
    """Compare what the configs say about the architecture."""
    if expert.adapter:
        return
    theirs, ours = expert.config.get("model_type"), base.config.get("model_type")
    do = "use an expert made from this base"
    if theirs != ours:
        layout.problems.append(Problem("", expert.name, f"is a {theirs} model, the base a {ours} model", do))
        return
    for key in SAME:
        a, b = expert.config.get(key), base.config.get(key)
        if a is not None and b is not None and a != b:
            layout.problems.append(Problem("", expert.name, f"has {key}={a}, the base {key}={b}", do))
    for key in WORTH_A_NOTE:
        a, b = expert.config.get(key), base.config.get(key)
        if a is not None and b is not None and a != b:
            layout.notes.append(f"{expert.name} has {key}={a}, the base {key}={b}: the merged model gets the base's")


def _check_quantized(models: Sequence[OpenCheckpoint], layout: Layout) -> None:
    for model in models:
        if model.config.get("quantization_config"):
            layout.problems.append(Problem("", model.name, "holds quantized weights", "use an unquantized copy"))


def _out_dtype(recipe: Recipe, info: TensorInfo) -> str:
    """The recipe's dtype; the base's own where that is auto or the tensor is no floating-point one."""
    return info.dtype if recipe.dtype == "auto" or not info.merged else recipe.dtype


def _first(pattern: re.Pattern, names: dict[str, TensorInfo]) -> str | None:
    """The shortest name that matches."""
    return min((n for n in names if pattern.search(n)), key=len, default=None)
