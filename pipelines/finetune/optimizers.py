"""The fine-tuning methods and their parameters, checked before anything is loaded, and the optimizers they become."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from conf.errors import UserError, nearest
from conf.schema import Optimizer, Task, Training
from conf.values import check_values
from pipelines.ranks import ranks

if TYPE_CHECKING:
    import torch
    from torch import nn

OPTIMIZERS = ("adamw", "sgd", "adafactor", "adamw_8bit")
SCHEDULES = ("cosine", "linear", "constant", "constant_with_warmup")
PRECISIONS = ("float32", "bf16", "bf16_masters")
REPORTERS = ("tensorboard", "wandb", "mlflow")
"""Packages, and extras of the same names."""
COMPILING_PAYS = 2e10
"""Elements × steps from which compiling the noise kernel saves more time than it takes."""


def _number(value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    number = float(value)
    if isinstance(value, bool) or not low <= number <= high or math.isinf(number):
        raise ValueError
    return number


def _count(value: Any, least: int = 1) -> int:
    if isinstance(value, bool) or int(value) != float(value) or int(value) < least:
        raise ValueError
    return int(value)


def _numbers(value: Any) -> list[float]:
    if isinstance(value, str) or not len(value) or any(not math.isfinite(float(v)) for v in value):
        raise ValueError
    return [float(v) for v in value]


def _texts(value: Any) -> list[str]:
    if isinstance(value, str) or any(not isinstance(v, str) for v in value):
        raise ValueError
    return list(value)


_READERS: dict[str, Callable[[Any], Any]] = {
    "a number": _number,
    "a number, 0 or more": lambda value: _number(value, 0.0),
    "a number, 0 or more, or fitted": lambda value: value if value == "fitted" else _number(value, 0.0),
    "a number from 0 to 1": lambda value: _number(value, 0.0, 1.0),
    "a whole number, 1 or more": _count,
    "a whole number, 0 or more": lambda value: _count(value, 0),
    "a list of one number or more": _numbers,
    "a list of name patterns": _texts,
    "a list of folders, hub ids or store keys": _texts,
}
_PATTERNS: tuple[Any, str] = ([], "a list of name patterns")
_WHICH = {"include": _PATTERNS, "exclude": _PATTERNS}
METHODS: dict[str, dict[str, tuple[Any, str]]] = {
    "plain": {},
    "mergopt": {
        "alphas": ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], "a list of one number or more"),
        "max_tasks": (7, "a whole number, 1 or more"),
        "loc": (0.0, "a number"),
        "scale": (5e-4, "a number, 0 or more, or fitted"),
        "distribution": ("laplace", "laplace or gaussian"),
        "mode": ("perturbed", "perturbed or released"),
        "own_vector": ("approximate", "approximate or exact"),
        "inner": ("sample", "sample or ascent"),
        "ascent_steps": (3, "a whole number, 1 or more"),
        "ascent_size": (0.5, "a number, 0 or more"),
        "fit_start": (5e-4, "a number, 0 or more"),
        "fit_memory": (0.9, "a number from 0 to 1"),
        "offsets": ("noise", "noise or pool or experts"),
        "rounds": (5, "a whole number, 0 or more"),
        "experts": ([], "a list of folders, hub ids or store keys"),
        **_WHICH,
    },
    "sam": {"rho": (0.05, "a number, 0 or more"), **_WHICH},
    "asam": {
        "rho": (0.5, "a number, 0 or more"),
        "eta": (0.01, "a number, 0 or more"),
        "form": ("normalised", "normalised or squared"),
        **_WHICH,
    },
    "tangent": {},
}
"""Every method's parameters, with the papers' defaults and what is valid: a reader's words, or names to choose from."""

_OF_NOISE = ("loc", "scale", "distribution", "mode", "inner", "ascent_steps", "ascent_size", "fit_start", "fit_memory")
IDLE = {"noise": ("offsets", "rounds", "experts"), "pool": (*_OF_NOISE, "experts"), "experts": (*_OF_NOISE, "rounds")}
"""By MergOPT's offsets, the parameters that are not used."""


def check_finetuning(finetuning: dict[str, Any]) -> dict[str, Any]:
    """The complete description of a method: its name under ``method`` and each parameter that changes a number.

    Raises:
        UserError: An unknown method or parameter, with the nearest valid names, or a value that means nothing.
    """
    given = dict(finetuning)
    name = str(given.pop("method", "plain"))
    if name not in METHODS:
        raise UserError(f"unknown fine-tuning method {name!r}", where="finetuning.method", do=nearest(name, METHODS))
    known = METHODS[name]
    for key in given:
        if key not in known:
            do = nearest(str(key), known) if known else f"{name} has no parameters"
            raise UserError(f"{name} has no parameter {key!r}", where=f"finetuning.{key}", do=do)
    full = {key: _read(key, given.get(key, default), valid) for key, (default, valid) in known.items()}
    if full.get("own_vector") == "exact" and full.get("inner") == "ascent":
        do = "choose one: the ascent moves one z, the exact own vector draws several"
        raise UserError("own_vector=exact and inner=ascent do not go together", where="finetuning", do=do)
    if (offsets := full.get("offsets", "noise")) != "noise":
        for key, value in (("inner", "ascent"), ("mode", "released")):
            if full[key] == value:
                what = f"{key}={value} draws noise, and offsets={offsets} takes experts' task vectors"
                raise UserError(what, where="finetuning", do="choose one of them")
    return {"method": name, **_relevant(full)}


def _read(key: str, value: Any, valid: str) -> Any:
    try:
        if valid in _READERS:
            return _READERS[valid](value)
        if value in valid.split(" or "):
            return str(value)
    except (TypeError, ValueError):
        pass
    raise UserError(f"{value!r} is no value of {key}", where=f"finetuning.{key}", do=f"give {valid}")


def _relevant(full: dict[str, Any]) -> dict[str, Any]:
    """Without the parameters that cannot change a number, so that keys do not split over them."""
    if full.get("mode") == "released":
        return {"mode": "released"}
    idle = set(IDLE.get(full.get("offsets", ""), ()))
    if full.get("inner") == "sample":
        idle |= {"ascent_steps", "ascent_size"}
    if full.get("scale") != "fitted":
        idle |= {"fit_start", "fit_memory"}
    if full.get("form") == "squared":
        idle |= {"eta"}
    return {key: value for key, value in full.items() if key not in idle}


def check_training(training: Training, method: str) -> None:
    """Refuse training options that mean nothing, or nothing together.

    Raises:
        UserError: Naming the option and what is valid.
    """

    def refuse(what: str, name: str, do: str) -> None:
        raise UserError(what, where=f"training.{name}", do=do)

    check_values(training, "training")
    for name, known in (("schedule", SCHEDULES), ("precision", PRECISIONS)):
        if getattr(training, name) not in known:
            refuse(f"unknown {name} {getattr(training, name)!r}", name, nearest(getattr(training, name), known))
    for reporter in training.reporters:
        if reporter not in REPORTERS:
            refuse(f"unknown reporter {reporter!r}", "reporters", f"valid names: {', '.join(REPORTERS)}")
        if find_spec(reporter) is None:
            refuse(f"{reporter} is not installed", "reporters", f"pip install 'mergebench[{reporter}]'")
    if training.shard:
        _check_shards(training, method, refuse)
    if method != "tangent":
        return
    for wrong, name in (
        (training.lora.rank > 0, "lora"), (training.gradient_checkpointing, "gradient_checkpointing"),
        (training.precision != "float32", f"precision={training.precision}"),
    ):  # fmt: skip
        if wrong:
            refuse("the tangent space takes all weights in float32", name, "leave it out")


def _check_shards(training: Training, method: str, refuse: Callable[[str, str, str], None]) -> None:
    if training.ranks == 1:
        refuse("weights are divided over several ranks", "shard", "torchrun --nproc-per-node 8 mergebench finetune …")
    for wrong, name in (
        (method == "tangent", "shard"), (training.lora.rank > 0, "lora"), (training.save_steps, "save_steps"),
    ):  # fmt: skip
        if wrong:
            refuse("shards go with all weights, without resumable checkpoints, and not in the tangent space", name,
                   "leave it out, or training.shard=false")  # fmt: skip


def settings_that_matter(training: Training) -> dict[str, Any]:
    """The training options that change the weights; the ranks where there are several."""
    aside = {"reporters", "save_steps", "shard"} | ({"ranks"} if training.ranks == 1 else set())
    return {name: value for name, value in asdict(training).items() if name not in aside}


def total_steps(task: Task, training: Training, sequences: int) -> int:
    """Optimizer steps: ``training.steps``, or as many as the epochs take (a task's own epochs come first)."""
    if training.steps and not task.epochs:
        return training.steps
    batches = math.ceil(sequences / (training.batch_size * training.ranks))
    return max(1, math.ceil((task.epochs or training.epochs) * math.ceil(batches / training.accumulation)))


def base_optimizer(spec: Optimizer, model: nn.Module, masters: bool = False) -> torch.optim.Optimizer:
    """The optimizer that steps at θ; vectors (norms, biases) are not decayed, as the Trainer does it.

    Raises:
        UserError: An unknown name, a negative learning rate, or 8-bit without bitsandbytes.
    """
    from mergeopt_core.finetuning import MasterWeights

    check_values(spec, "optimizer")
    base = _make(spec, _groups(model.parameters(), spec.weight_decay))
    return MasterWeights(base) if masters else base


def _groups(parameters: Iterable[nn.Parameter], decay: float) -> list[dict[str, Any]]:
    trained = [p for p in parameters if p.requires_grad]
    matrices, vectors = [p for p in trained if p.dim() > 1], [p for p in trained if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    return [g for g in groups if g["params"]]


def _make(spec: Optimizer, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    import torch

    if spec.name == "sgd":
        return torch.optim.SGD(groups, lr=spec.lr, momentum=spec.momentum)
    if spec.name == "adafactor":
        return torch.optim.Adafactor(groups, lr=spec.lr)
    if spec.name not in OPTIMIZERS:
        raise UserError(f"unknown optimizer {spec.name!r}", where="optimizer.name", do=nearest(spec.name, OPTIMIZERS))
    if len(spec.betas) != 2 or any(not 0 <= b < 1 for b in spec.betas):
        raise UserError(f"betas are {spec.betas}", where="optimizer.betas", do="give two numbers from 0 to below 1")
    options: dict[str, Any] = {"lr": spec.lr, "betas": tuple(spec.betas), "eps": spec.eps}
    if spec.name == "adamw":
        return torch.optim.AdamW(groups, **options, fused=True)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        do = "pip install 'mergebench[bitsandbytes]'"
        raise UserError("adamw_8bit needs bitsandbytes", where="optimizer.name", do=do) from None
    return AdamW8bit(groups, **options)


def wrap(
    base: torch.optim.Optimizer, method: dict[str, Any], model: nn.Module, seed: int, steps: int, lora: bool = False,
    origin: Any = None,
) -> torch.optim.Optimizer:  # fmt: skip
    """The base optimizer inside the training method that ``check_finetuning`` described.

    ``origin`` knows θ − θ0 where it is not a copy of the weights now.

    Raises:
        UserError: Patterns of ``include`` or ``exclude`` that match nothing, or adapters where ranks could not agree.
    """
    from mergeopt_core.finetuning import ASAM, SAM, MergOPT
    from pipelines.finetune.models import AdapterOrigin, merged_weights

    aside = ("method", "mode", "offsets", "rounds", "experts")
    name, options = method["method"], {k: v for k, v in method.items() if k not in aside}
    if name in ("plain", "tangent") or method.get("mode") == "released":
        return base
    options |= {"named_parameters": list(model.named_parameters()), "masters": getattr(base, "masters", None)}
    if lora:
        if ranks() > 1 and (name != "mergopt" or options.get("inner") == "ascent"):
            do = "use one process: gradients of the frozen weights are not exchanged"
            raise UserError(f"{name} with adapters does not run on several ranks", where="training.lora", do=do)
        options |= {"named_parameters": merged_weights(model), "frozen": True}
        origin = AdapterOrigin(model)
    if method.get("own_vector") == "exact" or method.get("scale") == "fitted":
        options["theta0"] = origin
    if method.get("offsets"):
        options["others"] = []  # none before the first exchange
    try:
        if name != "mergopt":
            return (SAM if name == "sam" else ASAM)(base, **options)
        moving = sum(p.numel() for _, p in options["named_parameters"])
        kernel = "plain" if moving * steps < COMPILING_PAYS else "compiled"
        return MergOPT(base, **options, seed=seed, kernel=kernel)
    except ValueError as error:
        raise UserError(str(error), where="finetuning", do="see `mergebench methods` for names and values") from None
