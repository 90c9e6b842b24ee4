"""A study's report holds the geometry of its pools where the study asks for it."""

import dataclasses
import json

import pandas as pd
import pytest

from pipelines.study import geometry
from pipelines.study.sweep import run_study


def test_a_study_reports_the_geometry_of_its_pools(small_study):
    config = small_study("report.geometry=[norms,cosines]")
    folder = run_study(config).folder / "geometry" / "tiny"
    tables = {file.stem: pd.read_csv(file) for file in folder.glob("*.csv")}
    assert tables.keys() == {"norms", "cosines", "norm_accuracy"}
    experts = tables["norm_accuracy"].query("n == 1").set_index("model")["update_norm"]
    norms = tables["norms"].set_index("expert")["norm"]
    assert len(experts) == 3
    for name, norm in experts.items():  # taken as the expert was scored, and in one pass over all
        assert norms[name] == pytest.approx(norm, rel=2e-6)
    assert set(tables["norm_accuracy"].query("n == 2")["method"]) == {"linear", "dare_linear"}


def test_the_geometry_of_every_pool_stands_in_the_page(small_study, monkeypatch, drawn):
    other = "+pools.other={base:{name:tiny,steps:10},tasks:{add:{skill:add}},training:{steps:2}}"
    config = small_study(
        "report.geometry=[cosines,layers,laplace]", other, "sampler.subsets=[[add,dist]]", "sampler.sizes=[]",
        "report.landscape=[[dist,add]]", "landscape.points=2", "landscape.examples=4",
    )  # fmt: skip
    study = run_study(config)
    assert {pool.name for pool in (study.folder / "geometry").iterdir()} == {"tiny"}, "no subset is of the other"
    page, text = (study.folder / "report.html").read_text(), (study.folder / "report.md").read_text()
    for told in ("Geometry of tiny", "geometry/tiny/figures/layers.csv", "geometry/tiny/laplace.csv"):
        assert told in page
    assert "![Cosines of task vectors](geometry/tiny/figures/cosines.png)" in text
    assert "| add |" in text
    assert "landscape/figures/landscape.csv" in page
    assert "dist &amp; add · tiny" in page
    losses = pd.read_csv(study.folder / "landscape" / "losses.csv")
    apart = dataclasses.replace(config, landscape=dataclasses.replace(config.landscape, pairs=[["dist", "add"]]))
    apart = dataclasses.replace(apart, pools={"tiny": config.pools["tiny"]}, out=str(study.folder / "apart"))
    pd.testing.assert_frame_equal(losses, geometry.landscape(apart).frame)
    assert all(study.report.paths[f"geometry/tiny/figures/{name}.svg"].is_file() for name in ("cosines", "histogram"))
    json.dumps(study.report.to_dict())

    for name in ("write_geometry", "write_landscape"):
        monkeypatch.setattr(geometry, name, lambda *_, **__: pytest.fail("what was measured is measured again"))
    assert run_study(config).report.to_dict()["sections"] == study.report.to_dict()["sections"]
