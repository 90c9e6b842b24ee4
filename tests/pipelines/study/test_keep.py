"""keep=best|all: merged checkpoints in the store, the same bits as those that were scored; records of studies."""

import json

import pytest

from conf.errors import UserError
from pipelines.checkpoints.fingerprint import WeightHash
from pipelines.store.records import studies
from pipelines.store.store import Store
from pipelines.study.plan import make_plan
from pipelines.study.sources import access_of
from pipelines.study.sweep import run_study, trial_rows


@pytest.fixture
def sweep(small_study):
    def run(*more):
        config = small_study(*more)
        return config, run_study(config)

    return run


def on_disk(access, folder):
    checkpoint, digest = access.open(str(folder)), WeightHash()
    for name in sorted(checkpoint.header):
        digest.add(name, checkpoint.tensor(name))
    return digest.hexdigest()


def test_best_keeps_the_highest_mean_and_its_bits(sweep):
    config, done = sweep("keep=best")
    access = access_of(config)
    (kept,) = access.store.entries("merges")
    scores = {}
    for entry in access.store.entries("results"):
        about = entry.describe()
        if about["recipe"]:
            values = [task["value"] for task in about["tasks"].values()]
            scores[about["weights"]] = sum(values) / len(values)
    assert scores[kept.describe()["weights"]] == max(scores.values())
    assert on_disk(access, kept.folder) == kept.describe()["weights"]
    rows = trial_rows(make_plan(config, access), access)
    assert [row.weights for row in rows if row.weights] == [str(kept.folder)]
    assert access.open(f"{kept.folder}").config["model_type"] == "llama"
    assert kept.describe()["name"].split(" of ")[0] in (kept.folder / "README.md").read_text()
    card = (kept.folder / "README.md").read_text()
    assert "| pool | tiny |\n| training | plain, adamw lr=0.001" in card
    assert "| training seed | 0 |" in card
    (record,) = studies(access.store)
    assert record.keys["merges"] == [kept.key]
    assert done.complete


def test_all_keeps_every_merge_once(sweep):
    config, _ = sweep()
    store = Store(config.store)
    assert store.entries("merges") == []
    config, _ = sweep("keep=all")
    merges = {e.key: e.describe() for e in store.entries("merges")}
    assert len(merges) == 4
    hashes = {e.describe()["weights"] for e in store.entries("results") if e.describe()["recipe"]}
    assert {about["weights"] for about in merges.values()} == hashes
    made = {key: about["made"] for key, about in merges.items()}
    sweep("keep=all")
    assert {e.key: e.describe()["made"] for e in store.entries("merges")} == made


def test_a_study_records_what_it_refers_to(sweep, own_store):
    config, done = sweep()
    (record,) = studies(Store(config.store))
    assert (record.name, record.kind) == ("small", "sweep")
    assert set(record.keys["results"]) == {trial.key for trial in done.plan.layout.trials}
    assert {len(record.keys[kind]) for kind in ("bases", "experts")} == {1, 3}
    sweep("statistics.seed=3")
    assert len(studies(Store(config.store))) == 1, "where the report goes makes no other study"
    sweep("sampler.samples=1")
    assert len(studies(Store(config.store))) == 2
    assert json.loads(record.file.read_text())["keys"]["results"]


def test_a_choice_that_is_none_is_refused(small_study):
    with pytest.raises(UserError, match=r"keep=some.*none"):
        run_study(small_study("keep=some"))


def test_hashing_the_tiny_model_is_cheap(tiny_pool):
    import time

    from pipelines.checkpoints.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(tiny_pool.base)
    tensors = [(name, checkpoint.tensor(name).clone()) for name in sorted(checkpoint.header)]
    took = []
    for _ in range(5):
        digest, start = WeightHash(), time.perf_counter()
        for name, tensor in tensors:
            digest.add(name, tensor)
        digest.hexdigest()
        took.append(time.perf_counter() - start)
    assert min(took) < 0.010
