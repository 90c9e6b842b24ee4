"""What W&B, MLflow and trackio are told of a study, with fakes of the packages' own functions."""

import csv
import sys
from types import ModuleType

import pytest
from test_sweep import config_of, store  # noqa: F401

from conf.errors import UserError
from pipelines.progress import Silent
from pipelines.study import trackers
from pipelines.study.sweep import run_study

SMALL = ("sampler.sizes=[3]", "~methods.ties", "~methods.dare")


class WandbLike(ModuleType):
    """``wandb`` or ``trackio``: init(project, name, config) → run.log(dict), run.finish(); Table and Image."""

    def __init__(self, name, fail_at=None):
        super().__init__(name)
        self.calls, self.fail_at = [], fail_at

    def init(self, *, project, name, config):
        self.calls.append(("init", project, name, config["sampler"]["sizes"]))
        print("* initialized")  # as trackio does
        return self

    def log(self, data):
        if len(self.calls) == self.fail_at:
            raise ConnectionError("the service is gone\nand more")
        self.calls.append(("log", data))

    def finish(self):
        self.calls.append(("finish",))

    def Table(self, *, dataframe, allow_mixed_types):  # noqa: N802
        return dataframe

    def Image(self, path):  # noqa: N802
        with open(path, "rb") as file:
            return file.read(4)


class MlflowLike(ModuleType):
    """``mlflow``: fluent calls on the innermost run."""

    def __init__(self):
        super().__init__("mlflow")
        self.open, self.calls = [], []

    def set_experiment(self, name):
        self.calls.append(("experiment", name))

    def start_run(self, run_name, nested=False):
        assert nested == bool(self.open)
        self.open.append(run_name)
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.open.pop()

    def end_run(self, status):
        self.calls.append(("end", self.open.pop(), status))

    def log_dict(self, settings, file):
        self.calls.append(("config", file, settings["name"]))

    def log_metrics(self, numbers):
        assert all(isinstance(value, float) for value in numbers.values())
        self.calls.append(("metrics", tuple(self.open), numbers))

    def log_artifact(self, path, folder):
        self.calls.append(("artifact", folder, path.rpartition("/")[2]))


class Notes(Silent):
    def __init__(self):
        self.said = []

    def note(self, text, level="info"):
        self.said.append(text)


@pytest.fixture
def installed(monkeypatch):
    """Put fakes in the packages' places."""

    def put(*fakes):
        for fake in fakes:
            monkeypatch.setitem(sys.modules, fake.__name__, fake)
        monkeypatch.setattr(trackers, "find_spec", lambda name: name in {fake.__name__ for fake in fakes} or None)
        for name in ("WANDB_PROJECT", "TRACKIO_PROJECT", "MLFLOW_EXPERIMENT_NAME"):
            monkeypatch.delenv(name, raising=False)

    return put


def scored(report):
    with (report.out / "trials.csv").open() as file:
        return {line["key"]: line for line in csv.DictReader(file)}


def test_every_trial_and_the_report_are_told(tiny_pool, store, installed, monkeypatch, capsys, drawn):  # noqa: F811
    wandb, trackio, mlflow = WandbLike("wandb"), WandbLike("trackio"), MlflowLike()
    installed(wandb, trackio, mlflow)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    config = config_of(tiny_pool, store, *SMALL, "trackers=[wandb,mlflow,trackio]")
    sweep = run_study(config)
    assert capsys.readouterr().out == ""
    rows = scored(sweep.report)
    assert wandb.calls[0] == ("init", "mine", "small", [3])
    assert trackio.calls[0] == ("init", "mergebench", "small", [3])
    for calls in (wandb.calls, trackio.calls):
        *trials, (_, files) = [call for call in calls if call[0] == "log"]
        assert len(trials) == len(rows) == 5
        means = sorted(float(row["score"]) for row in rows.values())
        assert sorted(data["mean"] for _, data in trials) == pytest.approx(means, abs=1e-6)
        for _, data in trials:
            assert data["mean"] == pytest.approx((data["tasks/add"] + data["tasks/dist"]) / 2)
            assert data["seconds/evaluate"] > 0
        assert sum("update_norm" in data for _, data in trials) == sum("base" not in d["trial"] for _, d in trials)
        assert {"leaderboard", "trials", "tables/by_task"} <= set(files)
        assert sorted(files["trials"]["key"]) == sorted(rows)
        assert files["figures/score_by_experts"] == b"\x89PNG"
        assert calls[-1] == ("finish",)
    metrics = [call for call in mlflow.calls if call[0] == "metrics"]
    assert sorted(m["mean"] for _, _, m in metrics) == sorted(d["mean"] for _, d in wandb.calls[1:-2])
    assert {run for _, (run, _), _ in metrics} == {"small"}
    assert ("config", "config.json", "small") in mlflow.calls
    for artifact in (("tables", "trials.csv"), ("figures", "score_by_experts.png")):
        assert ("artifact", *artifact) in mlflow.calls
    assert mlflow.calls[-1] == ("end", "small", "FINISHED")
    trackio.calls.clear()
    again = run_study(config_of(tiny_pool, store, *SMALL, "trackers=[trackio]"))
    assert again.outcome.done == 0
    assert len(trackio.calls) == 1 + 5 + 1 + 1  # what the store held is told too
    records = list((store / "studies").glob("*.json"))
    run_study(config_of(tiny_pool, store, *SMALL))
    assert list((store / "studies").glob("*.json")) == records
    assert len(records) == 1


@pytest.mark.parametrize("fail_at", [1, 3, 6])
def test_a_tracker_that_fails_is_told_once_and_loses_nothing(tiny_pool, store, installed, fail_at):  # noqa: F811
    installed(WandbLike("wandb", fail_at))
    notes = Notes()
    sweep = run_study(config_of(tiny_pool, store, *SMALL, "trackers=[wandb]"), notes)
    assert (sweep.complete, len(scored(sweep.report))) == (True, 5)
    assert [said for said in notes.said if "wandb" in said] == ["wandb is told no more: the service is gone"]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("wandb", "wandb is not installed"),
        ("wandbb", "unknown tracker 'wandbb'"),
        ("trackio", "opens no run: no account"),
    ],
)
def test_wrong_trackers_are_one_line_before_anything_runs(tiny_pool, store, installed, asked, words):  # noqa: F811
    trackio = WandbLike("trackio")
    installed(trackio)

    def init(**_):
        raise RuntimeError("no account")

    trackio.init = init
    with pytest.raises(UserError, match=words):
        run_study(config_of(tiny_pool, store, *SMALL, f"trackers=[{asked}]"))
    assert not (store / "results").exists()
