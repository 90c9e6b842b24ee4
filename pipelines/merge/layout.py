"""What goes into each merged tensor and what is wrong with it, decided from headers before any weight is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from mergeopt_core import merging
from pipelines.checkpoints.adapters import AdaptedCheckpoint, Model
from pipelines.checkpoints.headers import (
    BUFFERS,
    EMBEDDING,
    HEAD,
    KEPT,
    PARTS,
    VOCABULARY,
    Mismatch,
    TensorInfo,
    first,
)
from pipelines.checkpoints.vocabulary import Vocabulary, clash_problem, make_vocabulary, same_tokenizer, tokens
from pipelines.merge.recipe import Recipe

SAME = ("num_attention_heads", "num_key_value_heads", "hidden_act", "hidden_activation")
"""Config fields that change what a weight means without changing its shape."""
WORTH_A_NOTE = ("rope_theta", "rope_scaling", "rope_parameters", "sliding_window")
ANOTHER = "use an expert made from this base"


@dataclass
class Layout:
    """The merged tensors and where each model keeps its part of them."""

    outputs: dict[str, TensorInfo] = field(default_factory=dict)
    """Name, dtype and shape of every merged tensor, by sorted name."""
    sources: list[dict[str, str]] = field(default_factory=list)
    """For the base, then each expert: merged name → its own name; absent where the base's tensor stands in."""
    kept: frozenset[str] = frozenset()
    """Tensors that are the base's whatever is merged."""
    head: str | None = None
    embedding: str | None = None
    untied: bool = False
    """The base's head is its embedding, an expert's is not: the merged model gets a head of its own."""
    vocabulary: Vocabulary | None = None
    """How rows are aligned, where vocabularies differ and the recipe allows it."""
    problems: list[Mismatch] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def make_layout(recipe: Recipe, base: Model, experts: Sequence[Model], ids: Callable[[], Sequence[str]]) -> Layout:
    """Lay a merge out from headers, configs and tokenizers; all that is wrong is in ``problems``, at once."""
    layout = Layout(embedding=first(EMBEDDING, base.header))
    layout.head = first(HEAD, [*base.header, *(name for expert in experts for name in expert.header)])
    _check_models(base, experts, layout)
    names = dict(base.header)
    if layout.head and layout.embedding and base.tied:
        names.pop(layout.head, None)
        if any(layout.head in e.header and not e.tied for e in experts):
            layout.untied = True
            names[layout.head] = names[layout.embedding]
            layout.notes.append(f"the base's head is its embedding; the merged model gets {layout.head} of its own")
    if kept := KEPT.get(str(base.config.get("model_type"))):
        layout.kept = frozenset(name for name in names if kept.search(name))
    layout.outputs = {n: TensorInfo(_out_dtype(recipe, i), i.shape) for n, i in sorted(names.items())}
    layout.sources = [_match(recipe, base, model, names, layout) for model in (base, *experts)]
    _lay_vocabulary(recipe, base, experts, ids, layout)
    return layout


def _match(recipe: Recipe, base: Model, model: Model, names: dict[str, TensorInfo], layout: Layout) -> dict[str, str]:
    """Where one model keeps each merged tensor; mismatches go to the layout's problems."""
    own: dict[str, str] = {}
    missing = []
    _, needed = PARTS.get(str(model.config.get("model_type")), (None, None))
    for name, info in names.items():
        if name in layout.kept and model is not base:
            continue
        source = layout.embedding if name == layout.head and model.tied and layout.embedding else name
        if source in model.header:
            own[name] = source
            if problem := _compare(recipe, name, info, model.header[source], model):
                layout.problems.append(problem)
        elif not BUFFERS.search(name) and (needed is None or needed.search(name)):
            missing.append(name)
    known = {*names, *base.header, layout.head}
    extra = [name for name in model.header if name not in known and not BUFFERS.search(name)]
    if recipe.strict:
        do = f"{ANOTHER}, or set strict=false to take the base's tensor"
        layout.problems += [Mismatch(name, model.name, "is missing", do) for name in missing]
        do = f"{ANOTHER}, or set strict=false to drop it"
        layout.problems += [Mismatch(name, model.name, "is not in the base", do) for name in extra]
    else:
        layout.notes += [f"{model.name} has no {name}: the base's is used" for name in missing]
        layout.notes += [f"{model.name}: {name} is not in the base and is dropped" for name in extra]
    return own


def _compare(recipe: Recipe, name: str, base: TensorInfo, own: TensorInfo, model: Model) -> Mismatch | None:
    """The problem with one tensor of one model, if any."""
    if own.dtype.startswith("float8"):
        return Mismatch(name, model.name, f"is {own.dtype}", "use an unquantized copy")
    if base.merged != own.merged or (not base.merged and base.dtype != own.dtype):
        what = f"is {own.dtype}, the base's is {base.dtype}"
        return Mismatch(name, model.name, what, "use a copy in 16 or 32-bit floating point")
    if base.shape == own.shape:
        return None
    what = f"is {list(own.shape)}, the base's is {list(base.shape)}"
    if VOCABULARY.search(name) and base.shape[1:] == own.shape[1:]:
        do = "the vocabularies differ: set vocab=base or vocab=union"
        return None if recipe.vocab != "error" else Mismatch(name, model.name, what, do)
    return Mismatch(name, model.name, what, ANOTHER)


def _lay_vocabulary(
    recipe: Recipe, base: Model, experts: Sequence[Model], ids: Callable[[], Sequence[str]], layout: Layout
) -> None:
    """Align token rows where the recipe says so; otherwise find tokenizers that number tokens differently."""
    if layout.embedding is None:
        if recipe.vocab != "error" and any(not same_tokenizer(base.folder, expert.folder) for expert in experts):
            what = f"has no embedding known by name, whose rows vocab={recipe.vocab} aligns"
            layout.problems.append(
                Mismatch("", base.name, what, "leave vocab out, and give experts with its tokenizer")
            )
        return
    rows = [
        model.header[s[layout.embedding]].shape[0] if layout.embedding in s else 0
        for model, s in zip((base, *experts), layout.sources)
    ]
    if recipe.vocab == "error":
        unlike = [expert for expert in experts if not same_tokenizer(base.folder, expert.folder)]
        first = next((model for model in (base, *experts) if unlike and tokens(model.folder)), base)
        who = "the base" if first is base else first.name
        for expert in unlike:
            if problem := clash_problem(expert.name, tokens(expert.folder), who, tokens(first.folder), rows[0]):
                layout.problems.append(problem)
        return
    if not tokens(base.folder):
        do = "put its tokenizer beside it; where all models number tokens alike, leave vocab out"
        what = f"has no tokenizer, by which vocab={recipe.vocab} aligns rows"
        layout.problems.append(Mismatch("", base.name, what, do))
        return
    rows = [count or rows[0] for count in rows]
    layout.vocabulary = make_vocabulary(recipe.vocab, [m.folder for m in (base, *experts)], rows, ids())
    if layout.vocabulary is None:
        return
    for name, info in layout.outputs.items():
        if VOCABULARY.search(name) and info.shape[0] == rows[0]:
            layout.outputs[name] = replace(info, shape=(layout.vocabulary.rows, *info.shape[1:]))


def _check_models(base: Model, experts: Sequence[Model], layout: Layout) -> None:
    """Compare what configs say, and collect what adapters complain about."""
    for model in (base, *experts):
        if model.config.get("quantization_config"):
            layout.problems.append(Mismatch("", model.name, "holds quantized weights", "use an unquantized copy"))
    for expert in experts:
        if isinstance(expert, AdaptedCheckpoint):
            layout.problems += expert.problems
        else:
            _check_config(base, expert, layout)


def _check_config(base: Model, expert: Model, layout: Layout) -> None:
    theirs, ours = expert.config.get("model_type"), base.config.get("model_type")
    if theirs != ours and PARTS.get(str(theirs), (None,))[0] != ours:
        layout.problems.append(Mismatch("", expert.name, f"is a {theirs} model, the base a {ours} model", ANOTHER))
        return
    for key in (*SAME, *WORTH_A_NOTE):
        a, b = expert.config.get(key), base.config.get(key)
        if a is None or b is None or a == b:
            continue
        what = f"has {key}={a}, the base {key}={b}"
        if key in SAME:
            layout.problems.append(Mismatch("", expert.name, what, ANOTHER))
        else:
            layout.notes.append(f"{expert.name} {what}: the merged model gets the base's")


def _out_dtype(recipe: Recipe, info: TensorInfo) -> str:
    """The recipe's dtype; the base's own where that is auto or the tensor is no floating-point one."""
    return info.dtype if recipe.dtype == "auto" or not info.merged else recipe.dtype


SPECTRAL = ("iso_c", "iso_cts", "tsv_m", "task_arithmetic_sb", "ties_sb", "subspace_boosting")
"""Methods that raise small singular values of the update: zero ones have no direction to raise."""


def rank_notes(recipe: Recipe, experts: Sequence[Model]) -> list[str]:
    """One line per adapter where the method reshapes the spectrum: the largest rank its update can have."""
    notes = []
    known = {parameter.name for parameter in merging.describe(recipe.method).parameters}
    way = " (rank_tolerance leaves them out)" if "rank_tolerance" in known else ""
    for expert in experts if recipe.method in SPECTRAL else ():
        if not isinstance(expert, AdaptedCheckpoint) or not expert.ranks:
            continue
        name, rank = max(expert.ranks.items(), key=lambda item: (item[1], item[0]))
        full = min(expert.header[name].shape) if name in expert.header else 0
        if rank < full:
            notes.append(
                f"{expert.name} is an adapter: its update has rank {rank} at most, of {full}; {recipe.method} raises "
                f"small singular values and is ill-posed on those that are zero{way}"
            )
    return notes
