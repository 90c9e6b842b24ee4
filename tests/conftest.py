"""What every test may ask for."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden vectors and benchmark data that may stand beside the checkout; skips where it does not."""
    if not SHARED.is_dir():
        pytest.skip("no folder of golden vectors and benchmark data beside the checkout")
    return SHARED
