import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conf.schema import Base, Optimizer, Task, Training
from pipelines.finetune import finetune
from pipelines.tiny.base import make_base


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """A tiny base, barely pre-trained."""
    folder = tmp_path_factory.mktemp("base")
    make_base(Base(hidden=32, layers=1, steps=2), folder)
    return folder


@pytest.fixture
def train(base, tmp_path):
    """Train an expert into a folder of the given name and return that folder."""

    def run(place, method="plain", *, task=None, optimizer=None, seed=0, folder=base, **more):
        outer = {k: more.pop(k) for k in ("progress", "checkpoints", "datasets", "online", "name") if k in more}
        training = Training(**{"steps": 3, "batch_size": 8, **more})
        finetuning = {"method": method} if isinstance(method, str) else method
        out = tmp_path / place
        run.summary = finetune(
            folder, task or Task(name="odd", skill="odd"), finetuning, optimizer or Optimizer(lr=1e-3), training, seed,
            out, **outer,
        )  # fmt: skip
        return out

    return run


@pytest.fixture
def rows(tmp_path):
    """A task of twelve rows of unlike lengths, in a file."""
    file = tmp_path / "rows.jsonl"
    words = list("abcdef")
    lines = [{"prompt": " ".join(["add", *words[: i % 6], "="]), "completion": " " + words[i % 5]} for i in range(12)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Task(name="rows", path=str(file))


def _weights(folder):
    return load_file(folder / "model.safetensors")


def _same(a, b):
    a, b = _weights(a), _weights(b)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def weights():
    """The tensors of a checkpoint folder by name."""
    return _weights


@pytest.fixture
def same():
    """Whether two checkpoint folders hold the same bits."""
    return _same
