"""A study's report holds the geometry of its pools where the study asks for it."""

import pandas as pd
import pytest

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
