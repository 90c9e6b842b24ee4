"""Reports of small studies, whose figures are drawn where a test asks for them."""

import pytest


@pytest.fixture
def drawn():
    """For a test that looks at figures."""


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    """Elsewhere reports have none, which takes half of their time; tests/pipelines/report draws all kinds."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr("pipelines.report.figures.draw", lambda *_: [])
