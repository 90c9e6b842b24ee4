"""Tiny random Llama checkpoints, made on the spot."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parent))  # for merge_helpers

from merge_helpers import SMALL, perturbed, save


@pytest.fixture(scope="session")
def make_pool(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, list[Path]]]:
    """make_pool(experts=3, dtype=…, **config) → folders of a base and its experts."""

    def make(experts: int = 3, dtype: torch.dtype = torch.float32, **config: object) -> tuple[Path, list[Path]]:
        torch.manual_seed(0)
        root = tmp_path_factory.mktemp("pool")
        base = LlamaForCausalLM(LlamaConfig(**{**SMALL, **config}))
        made = [save(perturbed(base, k + 1), root / f"expert{k}", dtype) for k in range(experts)]
        return save(base, root / "base", dtype), made

    return make


@pytest.fixture(scope="session")
def pool(make_pool: Callable[..., tuple[Path, list[Path]]]) -> tuple[Path, list[Path]]:
    """A float32 base and three experts; read, never written."""
    return make_pool()
