"""A whole study: run, repeated, extended, broken, killed, shared."""

import contextlib
import dataclasses
import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from cli import terminal
from cli.app import main
from conf.compose import compose
from conf.errors import UserError
from pipelines.merge.live import merge_into
from pipelines.progress import Silent, Within
from pipelines.store.store import Store
from pipelines.study import worker
from pipelines.study.executors.ray import _Actor
from pipelines.study.plan import make_plan
from pipelines.study.single import evaluate_model, make_trial
from pipelines.study.sources import access_of
from pipelines.study.sweep import report_together, run_study
from pipelines.study.worker import Worker

SUITE = (
    "suite=custom",
    "+suite.tasks.add.skill=add",
    "+suite.tasks.dist.skill=dist",
    "suite.limit=12",
    "executor.device=cpu",
)
METHODS = ("+method@methods.linear=linear", "+method@methods.ties=ties", "+method@methods.dare=dare_linear")


def overrides(pool, store: Path | str, *more: str) -> list[str]:
    runs = Path(store).parent / "runs"
    return [
        *pool.overrides,
        *SUITE,
        *METHODS,
        "sampler.sizes=[2,3]",
        f"store={store}",
        f"runs={runs}",
        "name=small",
        *more,
    ]


def config_of(pool, store, *more):
    ((config, _),) = compose(overrides(pool, store, *more))
    return config


@pytest.fixture
def store(tiny_pool, tmp_path) -> Path:
    """A store that holds the quick pool's checkpoints and no result."""
    for kind in ("bases", "experts"):
        (tmp_path / "store" / kind).mkdir(parents=True)
        for entry in (Path(tiny_pool.store) / kind).iterdir():
            os.symlink(entry, tmp_path / "store" / kind / entry.name)
    return tmp_path / "store"


def values(store: Path) -> dict[str, dict]:
    return {e.key: e.describe()["tasks"] for e in Store(store).entries("results")}


def test_run_repeat_extend(tiny_pool, store, monkeypatch, drawn):
    config = config_of(tiny_pool, store)
    plan = make_plan(config, access_of(config))
    assert (plan.new, plan.cached, plan.problems) == (1 + 3 + 3 * 4, 0, [])

    first = run_study(config)
    assert first.complete
    assert first.outcome.done == 16
    assert len(values(store)) == 16
    for name in ("leaderboard.csv", "leaderboard.md", "figures/score_by_experts.png", "figures/score_by_experts.svg"):
        assert (first.folder / name).stat().st_size > 0

    extended = run_study(config_of(tiny_pool, store, "+method@methods.stock=model_stock"))
    assert (extended.plan.cached, extended.outcome.done) == (16, 4)

    monkeypatch.setattr(Worker, "run", lambda *_: pytest.fail("a cached trial ran again"))
    again = run_study(config)
    assert (again.plan.cached, again.outcome.done) == (16, 0)
    assert again.report is not None


@pytest.mark.parametrize("every", [0.0, 60.0])
def test_a_trial_tells_how_far_it_is_once_it_takes_a_while(tiny_pool, store, monkeypatch, capsys, every):
    heard = []

    class Heard(Silent):
        @contextlib.contextmanager
        def step(self, label, total=None):
            yield SimpleNamespace(advance=lambda n=1, **fields: heard.append((label, total, fields.get("part"))))

    monkeypatch.setattr(Within, "EVERY", every)
    config = config_of(tiny_pool, store, "sampler.sizes=[3]", "~methods.ties", "~methods.dare")
    assert run_study(config, Heard()).complete
    parts = [part for label, _, part in heard if label == "trials" and part]
    assert any(re.fullmatch(r"scoring \d+/\d+ (add|dist)", part) for part in parts) == (every == 0.0)
    one = config_of(tiny_pool, store, f"base.path={tiny_pool.base}")
    fewer, fewest = (dataclasses.replace(one, suite=dataclasses.replace(one.suite, limit=n)) for n in (5, 3))
    evaluate_model(fewer, Heard())
    assert "scoring" in {label for label, total, _ in heard if total}, "one model has a bar of its own"
    assert capsys.readouterr().out == ""
    actor = _Actor(access_of(one), one.executor)
    assert actor.worker.progress.every >= 30.0
    actor.worker.progress.every = every
    assert actor.attempt(make_trial(fewest, actor.worker.access))[0] == "done"
    lines = capsys.readouterr().out.splitlines()  # what Ray keeps in the log of an actor
    assert any(re.fullmatch(r".+: scoring \d+/\d+ (add|dist)", line) for line in lines) == (every == 0.0)


def test_same_study_gives_the_same_numbers_in_another_store(tiny_pool, store, tmp_path):
    run_study(config_of(tiny_pool, store))
    run_study(config_of(tiny_pool, tmp_path / "other" / "store"))
    assert values(store) == values(tmp_path / "other" / "store")


def test_a_failing_trial_is_set_aside_and_tried_again_next_time(tiny_pool, store, monkeypatch):
    config = config_of(tiny_pool, store)
    run = Worker.run
    calls = []

    def flaky(self, trial):
        if trial.merge is not None and trial.merge.method == "ties":
            calls.append(trial.key)
            raise RuntimeError("boom")
        return run(self, trial)

    monkeypatch.setattr(Worker, "run", flaky)
    broken = run_study(config)
    assert not broken.complete
    assert len(broken.outcome.failures) == 4
    assert len(calls) == 8, "each failing trial is tried once more"
    assert "boom" in broken.outcome.failures[0].reason
    assert broken.outcome.done == 12
    monkeypatch.setattr(Worker, "run", run)
    mended = run_study(config)
    assert mended.complete
    assert mended.outcome.done == 4


def test_a_full_disk_keeps_what_was_finished(tiny_pool, store, monkeypatch):
    from pipelines.store import store as room

    config, written = config_of(tiny_pool, store), []
    sync = room._sync

    def full(folder: Path) -> None:
        if folder.name.split(".")[0] in keys and len(written) >= 5:
            raise OSError(errno.ENOSPC, "No space left on device", str(folder))
        written.append(folder)
        sync(folder)

    keys = {trial.key for trial in make_plan(config, access_of(config)).layout.trials}
    monkeypatch.setattr(room, "_sync", full)
    with pytest.raises(OSError, match="No space left"):
        run_study(config)
    assert len(values(store)) == 5
    monkeypatch.setattr(room, "_sync", sync)
    assert run_study(config).outcome.done == 11


def test_problems_stop_a_study_before_anything_is_spent(tiny_pool, store):
    with pytest.raises(UserError, match="density"):
        run_study(config_of(tiny_pool, store, "+methods.ties.densty=0.1"))
    assert values(store) == {}


def start(pool, store) -> subprocess.Popen:
    command = [sys.executable, "-c", "from cli.app import main; main()", "sweep", *overrides(pool, store)]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def test_a_stop_loses_at_most_the_current_trial(tiny_pool, store, tmp_path):
    undisturbed = tmp_path / "calm" / "store"
    run_study(config_of(tiny_pool, undisturbed))
    done = 0
    for number in (signal.SIGKILL, signal.SIGINT):
        process, enough = start(tiny_pool, store), done + 2
        while process.poll() is None and done < enough:
            time.sleep(0.005)
            done = len(list(store.glob("results/*/entry.json")))
        assert process.poll() is None, "it ended before it could be stopped"
        os.killpg(process.pid, number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == -9 or process.returncode in (1, 130), errors
        assert "Traceback" not in errors
    before = {e.key: e.describe()["made"] for e in Store(store).entries("results")}
    assert 4 <= len(before) < 16
    assert all("tasks" in e.describe() for e in Store(store).entries("results"))
    last = run_study(config_of(tiny_pool, store))
    assert last.outcome.done == 16 - len(before)
    after = {e.key: e.describe()["made"] for e in Store(store).entries("results")}
    assert {key: after[key] for key in before} == before, "a committed trial was computed again"
    assert values(store) == values(undisturbed)


def test_two_processes_share_a_store(tiny_pool, store):
    both = [start(tiny_pool, store) for _ in range(2)]
    for process in both:
        assert process.wait(timeout=240) == 0, process.stderr.read()
    assert len(values(store)) == 16
    logs = (store.parent / "runs" / "small" / "log.txt").read_text()
    assert logs.count("became done") == 16, "a trial was computed by both"


def test_json_says_what_ran(tiny_pool, store, monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["mergebench", "-q", "sweep", *overrides(tiny_pool, store), "--json"])
    try:
        with pytest.raises(SystemExit) as done:
            main()
    finally:
        terminal.set_verbosity(terminal.NORMAL)
    out, err = capfd.readouterr()
    told = json.loads(out)[0]
    assert (done.value.code or 0, told["run"], told["complete"], err) == (0, 16, True, "")


def test_a_swept_value_makes_studies_that_are_reported_together(tiny_pool, store):
    composed = compose(
        overrides(tiny_pool, store, "sampler.sizes=[2]", "~methods.dare", "methods.ties.density=0.1,0.9")
    )
    configs = [config for config, _ in composed]
    sweeps = [run_study(config) for config in configs]
    assert [s.folder.name for s in sweeps] == ["methods.ties.density=0.1", "methods.ties.density=0.9"]
    assert sweeps[1].plan.cached == 1 + 3 + 3, "base, experts and linear merges are shared"
    together = report_together(configs, sweeps)
    assert together is not None
    assert {row["study"] for row in together.trials} == {s.name for s in sweeps}
    assert (store.parent / "runs" / "small" / "leaderboard.csv").is_file()


@pytest.mark.parametrize("count", [1, 3])
def test_merges_have_the_executors_threads(tiny_pool, store, monkeypatch, count):
    seen = []

    def heard(model, merge, **more):
        seen.append(torch.get_num_threads())
        merge_into(model, merge, **more)

    monkeypatch.setattr(worker, "merge_into", heard)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run_study(config_of(tiny_pool, store, f"executor.threads={count}"))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {count}


def test_what_cannot_run_is_refused_and_what_runs_in_part_is_said(tiny_pool, store):
    one = "+method@methods.slerp=slerp"
    for more, message in (
        (["sampler.sizes=[7]"], r"no pool has 7 experts: tiny \(3\)"),
        ([one], "slerp merges 1 expert, and subsets are of 2, 3"),
    ):
        config = config_of(tiny_pool, store, *more)
        with pytest.raises(UserError, match=message):
            run_study(config)
        assert any(re.search(message, p.what) for p in make_plan(config, access_of(config)).problems)
    assert values(store) == {}
    config = config_of(tiny_pool, store, one, "sampler.sizes=[1,2]", "~methods.ties", "~methods.dare")
    done = run_study(config)
    note = "Left out: slerp of 2 experts, because slerp merges 1 expert."
    assert make_plan(config, access_of(config)).to_dict()["notes"] == [note]
    assert (done.complete, done.report.left_out) == (True, [note])
    assert note in (done.folder / "report.html").read_text()


def test_a_narrower_study_leaves_the_fuller_report_and_a_wider_one_takes_its_place(tiny_pool, store):
    full = run_study(config_of(tiny_pool, store))
    before = (full.folder / "trials.csv").read_bytes()
    narrow = run_study(config_of(tiny_pool, store, "sampler.sizes=[2]"))
    other = run_study(config_of(tiny_pool, store, "methods.ties.density=0.9"))
    assert len({full.folder, narrow.folder, other.folder}) == 3
    assert narrow.folder.parent == full.folder.parent
    assert (full.folder / "trials.csv").read_bytes() == before
    assert "tells of 3 trials that this study does not have" in narrow.report.left_out[0]
    assert run_study(config_of(tiny_pool, store, "sampler.sizes=[2]")).folder == narrow.folder
    wide = run_study(config_of(tiny_pool, store, "+method@methods.stock=model_stock"))
    assert wide.folder == full.folder
    assert wide.report.left_out == []


def test_a_stopped_study_is_reported_as_partial(tiny_pool, store, monkeypatch):
    run, ran = Worker.run, []

    def stopped(self, trial):
        if len(ran) == 5:
            raise KeyboardInterrupt
        ran.append(trial)
        return run(self, trial)

    monkeypatch.setattr(Worker, "run", stopped)
    screen = Console(width=100, record=True, file=io.StringIO(), force_terminal=True)
    monkeypatch.setattr(terminal, "err", screen)
    monkeypatch.setattr(terminal, "verbosity", terminal.NORMAL)
    with terminal.listening() as progress:
        part = run_study(config_of(tiny_pool, store), progress)
    assert "! trials (5 of 16)" in screen.export_text()
    assert (part.complete, part.outcome.interrupted) == (False, True)
    assert (part.report.scored, part.report.planned) == (5, 16)
    assert part.report.verdicts[0].startswith("Partial: 5 of 16 trials have a result")
    assert "Partial: 5 of 16" in (part.folder / "report.html").read_text()
    assert (part.folder / "trials.csv").read_text().count("no result yet") == 11
    monkeypatch.setattr(Worker, "run", run)
    whole = run_study(config_of(tiny_pool, store))
    assert (whole.report.partial, whole.folder) == ("", part.folder)
