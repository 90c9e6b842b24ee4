"""verify, gc, export and results on the store of a small study."""

import csv
import io
import json
import os
import re
import shutil
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from conf.errors import UserError
from pipelines.store.gc import collect_garbage
from pipelines.store.records import studies
from pipelines.store.results import format_of, grouped, print_rows, result_rows, write_rows
from pipelines.store.store import Store
from pipelines.study.sources import access_of
from pipelines.study.sweep import run_study
from pipelines.upkeep.export import export
from pipelines.upkeep.verify import chosen_entries, verify


@pytest.fixture
def study(small_study, own_store):
    """A study that ran, in a store whose experts may be tampered with."""
    for link in [*own_store.glob("experts/*"), *own_store.glob("bases/*")]:
        target = link.resolve()
        link.unlink()
        shutil.copytree(target, link)
    config = small_study()
    run_study(config)
    return config


def states(config, *keys):
    access = access_of(config)
    return {c.key: c.state for c in verify(chosen_entries(keys, access), access, config.executor)}


def change(file: Path) -> None:
    weights = load_file(file)
    name = sorted(weights)[0]
    weights[name].view(-1)[0] += 1.0
    save_file(weights, file, metadata={"format": "pt"})


def entries(config, kind):
    return Store(config.store).entries(kind)


def test_an_untouched_store_verifies(study):
    found = states(study)
    assert len(found) == 1 + 3 + (1 + 3 + 4)
    assert set(found.values()) == {"ok"}


def test_a_changed_expert_is_found_in_itself_and_in_what_was_made_of_it(study):
    expert = entries(study, "experts")[0]
    change(expert.folder / "model.safetensors")
    wrong = {key for key, state in states(study).items() if state == "differs"}
    used = {
        e.key
        for e in entries(study, "results")
        if expert.key in {Path(s["path"]).name for s in e.describe()["experts"]}
    }
    assert used
    assert wrong == used | {expert.key}


SEAL = ("format", "files", "checksum")
"""What entries of before do not have."""


def test_another_recorded_hash_is_found(study):
    entry = next(e for e in entries(study, "results") if e.describe()["recipe"])
    file = entry.folder / "entry.json"
    about = {k: v for k, v in json.loads(file.read_text()).items() if k not in SEAL}
    file.write_text(json.dumps({**about, "weights": "0" * 64}))
    access = access_of(study)
    (check,) = verify([entry], access, study.executor)
    assert (check.state, check.bad) == ("differs", True)
    file.write_text(json.dumps({**about, "weights": "0" * 64, "device": "NVIDIA Something"}))
    (check,) = verify([entry], access, study.executor)
    assert (check.state, check.bad) == ("unknown", False)
    assert "NVIDIA Something" in check.told


def test_a_lost_expert_is_missing(study):
    expert = entries(study, "experts")[0]
    shutil.rmtree(expert.folder)
    found = states(study)
    assert expert.key not in found
    assert "missing" in found.values()


def test_a_store_that_was_moved_still_verifies(study, tmp_path):
    shutil.move(study.store, tmp_path / "moved")
    study.store = str(tmp_path / "moved")
    assert set(states(study).values()) == {"ok"}


def test_kept_merges_are_verified_by_their_files(study, small_study):
    run_study(small_study("keep=best"))
    (kept,) = entries(study, "merges")
    assert states(study, f"merges:{kept.key}") == {kept.key: "ok"}
    change(kept.folder / "model.safetensors")
    assert states(study, f"merges:{kept.key}") == {kept.key: "differs"}


def test_gc_is_dry_until_told_and_takes_only_what_no_study_has(study, small_study):
    store = Store(study.store)
    assert collect_garbage(store).waste == []
    extra = small_study("name=other", "+method@methods.ties=ties", "sampler.samples=1", "~methods.dare")
    run_study(extra)
    assert collect_garbage(store).waste == []
    before = {e.key for e in store.entries("results")}
    forgotten = collect_garbage(store, forget=["other"])
    (waste,) = forgotten.waste
    assert (waste.kind, waste.what.split()[0], forgotten.deleted) == ("results", "ties", False)
    assert waste.size > 0
    assert {e.key for e in store.entries("results")} == before
    collect_garbage(store, forget=["other"], delete=True)
    assert before - {e.key for e in store.entries("results")} == {waste.key}
    assert collect_garbage(store).waste == []
    assert set(states(study).values()) == {"ok"}


def test_gc_takes_experts_that_no_study_uses_but_not_young_or_other_kinds(study):
    store = Store(study.store)
    for file in (store.root / "studies").iterdir():
        file.unlink()
    everything = collect_garbage(store)
    assert {w.kind for w in everything.waste} == {"bases", "experts", "results"}
    assert collect_garbage(store, days=1).waste == []
    assert {w.kind for w in collect_garbage(store, kinds=["experts"]).waste} == {"experts"}
    with pytest.raises(UserError, match="did you mean experts"):
        collect_garbage(store, kinds=["expert"])
    with store.claim("experts", store.entries("experts")[0].key):
        done = collect_garbage(store, kinds=["experts"], delete=True)
    assert (len(done.waste), len(done.busy)) == (2, 1)
    assert len(store.entries("experts")) == 1


def test_gc_takes_the_state_of_trainings_that_nothing_will_take_up(study):
    store = Store(study.store)
    known = store.entries("experts")[0].key
    day = 86400
    for name, age in ((known, 2 * day), ("nobodys", 2 * day), ("running", 0)):
        state = store.root / "work" / name / "state.pt"
        state.parent.mkdir(parents=True)
        state.write_bytes(b"state")
        for path in (state, state.parent):
            os.utime(path, (time.time() - age,) * 2)
    (record,) = studies(store)
    record.file.write_text(record.file.read_text().replace('"pending": []', '"pending": ["wanted"]'))
    wanted = store.root / "work" / "wanted"
    wanted.mkdir()
    os.utime(wanted, (time.time() - 2 * day,) * 2)
    assert {w.key for w in collect_garbage(store, delete=True).waste} == {known, "nobodys"}
    assert {p.name for p in (store.root / "work").iterdir()} == {"running", "wanted"}


def test_export_of_a_result_gives_the_weights_that_were_scored(study, small_study, tmp_path):
    access = access_of(study)
    entry = next(e for e in entries(study, "results") if e.describe()["recipe"])
    study.out = str(tmp_path / "again")
    export(entry.key, study, access)
    run_study(small_study("keep=all"))
    study.out = str(tmp_path / "kept")
    export(entry.key, study, access)
    again, kept = (load_file(tmp_path / name / "model.safetensors") for name in ("again", "kept"))
    assert again.keys() == kept.keys()
    assert all(torch.equal(again[name], kept[name]) for name in again)
    card = (tmp_path / "again" / "README.md").read_text()
    assert "## Scores on custom" in card
    assert f"{entry.describe()['tasks']['add']['value']:.4f}" in card
    assert not (tmp_path / "kept" / "entry.json").exists()
    with pytest.raises(UserError, match="not empty"):
        export(entry.key, study, access)


def test_export_of_an_expert_is_a_checkpoint_and_refuses_changed_merges(study, tmp_path):
    access = access_of(study)
    expert = entries(study, "experts")[0]
    study.out = str(tmp_path / "expert")
    export(f"experts:{expert.key}", study, access)
    assert access.open(study.out).fingerprint() == expert.describe()["fingerprint"]
    for e in entries(study, "experts"):
        change(e.folder / "model.safetensors")
    merged = next(e for e in entries(study, "results") if e.describe()["recipe"])
    study.out = str(tmp_path / "merge")
    with pytest.raises(UserError, match="other weights than those that were scored"):
        export(merged.key, study, access_of(study))
    assert not Path(study.out).exists()


def test_results_have_a_row_for_every_trial_and_task(study, tmp_path):
    store = Store(study.store)
    rows = result_rows(store)
    assert len(rows) == 8
    assert {row["studies"][0] for row in rows} == {"small"}
    dare = next(row for row in rows if row["method"] == "dare_linear")
    entry = store.entry("results", dare["key"]).describe()
    assert (dare["value"], dare["n"]) == (entry["tasks"]["add"]["value"], 8)
    assert dare["parameters"]["density"] == entry["recipe"]["parameters"]["density"]
    out = io.StringIO()
    print_rows(rows, "csv", out)
    read = list(csv.DictReader(io.StringIO(out.getvalue())))
    assert [row["key"] for row in read] == [row["key"] for row in rows]
    assert json.loads(next(r for r in read if r["method"] == "dare_linear")["parameters"]) == dare["parameters"]
    write_rows(rows, "parquet", tmp_path / "deep" / "results.parquet")
    table = pq.read_table(tmp_path / "deep" / "results.parquet")
    assert table["value"].to_pylist() == [row["value"] for row in rows]
    with pytest.raises(UserError, match="did you mean small"):
        result_rows(store, "smal")


def test_formats_by_name_and_by_ending():
    assert (format_of(None, None), format_of(None, "a.parquet"), format_of("json", "a.csv")) == (
        "csv",
        "parquet",
        "json",
    )
    with pytest.raises(UserError, match="parquet"):
        format_of("parqet", None)
    with pytest.raises(UserError, match="out=FILE"):
        format_of("parquet", None)


def test_every_result_says_how_it_came_about(study, tmp_path):
    rows = result_rows(Store(study.store))
    merge = next(row for row in rows if row["method"] == "dare_linear")
    assert (merge["pool"], merge["base"], merge["suite"], merge["seed"]) == ("tiny", "tiny", "custom", 0)
    assert merge["training"].startswith("plain, adamw lr=0.001")
    assert "3 steps of 8" in merge["training"]
    assert (merge["training_seed"], merge["limit"], merge["fewshot"]) == (0, 8, "the task's own")
    assert merge["sample"] == "8 drawn by seed 1234"
    assert (merge["dtype"], merge["batch_size"]) == ("float32", 32)
    assert merge["device"].startswith("cpu")
    assert re.match(r"lm_eval \S+, transformers \S+, torch \S+, (contexts|nothing) shared", merge["engine"])
    base = next(row for row in rows if row["kind"] == "base")
    assert (base["training"], base["training_seed"], base["seed"]) == (None, None, None)
    study.out = str(tmp_path / "card")
    export(merge["key"], study, access_of(study))
    card = (tmp_path / "card" / "README.md").read_text()
    for name in (
        "pool",
        "base",
        "training",
        "seed",
        "suite",
        "fewshot",
        "sample",
        "dtype",
        "device",
        "batch size",
        "engine",
    ):
        assert f"| {name} | " in card
    assert f"| training | {merge['training']} |" in card


def test_trials_of_another_pool_training_seed_or_limit_are_not_averaged(study, small_study):
    recipe = ("~methods.dare", "sampler.singles=false")
    add = ("+pools.tiny.finetuning.method=sam", "name=sam")
    for more in (add, ("+pools.tiny.seed=1", "name=seeded"), ("suite.limit=6", "name=short")):
        config = small_study(*recipe, *more)
        run_study(config)
    lines, same = grouped(result_rows(Store(study.store)))
    linear = [line for line in lines if line["method"] == "linear"]
    assert [line["models"] for line in linear] == [2, 2, 2, 2]
    assert len({(line["training"], line["training_seed"], line["sample"]) for line in linear}) == 4
    assert {line["training"] for line in linear} == {"plain", "sam"}
    assert same["suite"] == "custom"
    means = {line["mean"] for line in linear}
    own = [r for r in result_rows(Store(study.store), "short") if r["method"] == "linear"]
    assert sum(r["value"] for r in own) / 2 in means


def test_an_older_entry_is_read_with_what_it_does_not_say_as_unknown(study):
    for entry in entries(study, "results"):
        about = entry.describe()
        about = {k: v for k, v in about.items() if k not in ("training", "device", "batch_size", "versions", *SEAL)}
        about["experts"] = [{**e, "path": "/gone"} for e in about["experts"]]
        (entry.folder / "entry.json").write_text(json.dumps(about))
    (record,) = studies(Store(study.store))
    old = {k: v for k, v in json.loads(record.file.read_text()).items() if k != "pools"}
    record.file.write_text(json.dumps(old))
    merge = next(row for row in result_rows(Store(study.store)) if row["method"] == "linear")
    assert merge["pool"] is None
    assert [merge[name] for name in ("training", "training_seed", "device", "batch_size")] == ["—"] * 4
    assert merge["engine"].startswith("lm_eval ")
    lines, _ = grouped(result_rows(Store(study.store)))
    assert sum(line["models"] for line in lines) == 8


def test_on_80_columns_no_word_is_cut(study, monkeypatch):
    from cli.store import entries_table, listed, results_table

    store = Store(study.store)
    screen = Console(width=80, record=True, file=io.StringIO())
    screen.print(results_table(*grouped(result_rows(store))))
    screen.print(entries_table([(e, about) for e, about in listed(store) if e.kind == "results"], study.store))
    text = screen.export_text()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    for word in ("pool", "training", "plain", "base tiny", "suite custom", "dtype float32", "batch size 32"):
        assert word in " ".join(text.split())
