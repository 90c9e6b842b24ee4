"""No circle of imports, not even for types; imports inside functions for heavy libraries alone."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("cli", "conf", "pipelines", "mergeopt_core")
HEAVY = {
    "PIL", "accelerate", "alpaca_eval", "altair", "bitsandbytes", "contourpy", "datasets", "evaluate",
    "huggingface_hub", "hydra", "jinja2", "joblib", "lm_eval", "mergekit", "mlflow", "nltk", "numpy", "omegaconf",
    "optuna", "pandas", "peft", "pyarrow", "ray", "rich", "rouge", "rouge_score", "sacrebleu", "safetensors",
    "scipy", "sentencepiece", "tensorboard", "torch", "tqdm", "transformers", "triton", "vl_convert", "vllm",
    "wandb",
}  # fmt: skip
"""Packages that take long to import, or that an extra brings."""


JAILED = "pipelines.evaluate.sandbox."
"""Runs in a process of its own, that imports as little as it can."""


def modules() -> dict[str, Path]:
    found = {}
    for file in (file for package in PACKAGES for file in (ROOT / package).rglob("*.py")):
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = file
    return found


MODULES = modules()


def own(name: str) -> str | None:
    """The module of ours that a dotted name lies in."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or None


def imports(module: str) -> Iterator[tuple[str, bool]]:
    """Names that a module imports (``package.name`` for ``from package import name``), and whether in a function."""
    todo: list[tuple[ast.AST, bool]] = [(ast.parse(MODULES[module].read_text(encoding="utf-8")), False)]
    while todo:
        node, inside = todo.pop()
        if isinstance(node, ast.Import):
            yield from ((alias.name, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((f"{node.module}.{alias.name}", inside) for alias in node.names)
        inside = inside or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        todo += [(child, inside) for child in ast.iter_child_nodes(node)]


@cache
def heavy(module: str) -> bool:
    """Whether importing a module of ours loads a heavy package."""
    tops = [name for name, inside in imports(module) if not inside]
    if any(name.partition(".")[0] in HEAVY for name in tops):
        return True
    below = {found for name in tops if (found := own(name)) is not None and found != module}
    return any(heavy(found) for found in below)


def test_there_is_no_circle():
    edges = {m: {f for n, inside in imports(m) if not inside and (f := own(n)) and f != m} for m in MODULES}
    while ends := {m for m in edges if not edges[m] & edges.keys() or not any(m in edges[n] for n in edges)}:
        edges = {module: below for module, below in edges.items() if module not in ends}
    assert not edges, "these modules import each other: " + ", ".join(sorted(edges))


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_in_functions_are_heavy(module):
    for name, inside in imports(module):
        if inside and name.partition(".")[0] not in HEAVY and not module.startswith(JAILED):
            found = own(name)
            assert found is not None, f"{module} imports {name} in a function: put it at the top"
            assert heavy(found), f"{module} imports {found} in a function, though it is light"
