from pathlib import Path

import pytest
import torch

from conf.schema import Base
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
