"""What every test may ask for."""

import dataclasses
from pathlib import Path

import pytest

from tests import own_documents

SHARED = Path(__file__).resolve().parents[2] / "shared"
"""Golden vectors and benchmark files that may stand beside the checkout."""


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder that may stand beside the checkout, for tests of single real documents; skips where it does not."""
    if not SHARED.is_dir():
        pytest.skip("no folder of golden vectors and benchmark data beside the checkout")
    return SHARED


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of benchmark files: the real ones where they stand beside the checkout, else some of our own making."""
    if (SHARED / "data").is_dir():
        return SHARED / "data"
    folder = tmp_path_factory.mktemp("data")
    own_documents.write(folder)
    return folder


@dataclasses.dataclass(frozen=True)
class TinyPool:
    """A small base and three experts of the built-in world, trained far too briefly, in a store of their own."""

    store: str
    base: str
    experts: tuple[str, ...]
    overrides: tuple[str, ...]


QUICK = (
    *(f"+pools.tiny.tasks.{skill}.skill={skill}" for skill in ("add", "dist", "count")),
    "+pools.tiny.base.name=tiny",
    "+pools.tiny.base.steps=10",
    "+pools.tiny.training.steps=3",
    "+pools.tiny.optimizer.lr=0.001",
)


@pytest.fixture(scope="session")
def tiny_pool(tmp_path_factory: pytest.TempPathFactory) -> TinyPool:
    """The quick pool, made once for all tests."""
    from conf.compose import compose
    from pipelines.study.collect import make_pools
    from pipelines.study.layout import lay_out
    from pipelines.study.sources import Source, access_of

    store = str(tmp_path_factory.mktemp("pool") / "store")
    ((config, _),) = compose([*QUICK, f"store={store}"])
    access = access_of(config)
    make_pools(config, access)
    singles = [p.trial for p in lay_out(config, access).planned if p.kind == "expert"]
    assert all(trial is not None for trial in singles)
    experts = [trial.experts[0] for trial in singles if trial is not None]
    assert all(isinstance(e, Source) for e in experts)
    return TinyPool(store, singles[0].base.path, tuple(e.path for e in experts), QUICK)


@pytest.fixture
def own_store(tiny_pool: TinyPool, tmp_path: Path) -> Path:
    """A store of the test's own that holds the quick pool's checkpoints and nothing else."""
    for kind in ("bases", "experts"):
        (tmp_path / "store" / kind).mkdir(parents=True)
        for entry in (Path(tiny_pool.store) / kind).iterdir():
            (tmp_path / "store" / kind / entry.name).symlink_to(entry)
    return tmp_path / "store"
