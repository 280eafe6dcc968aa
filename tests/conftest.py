"""What all tests share."""

import os
from pathlib import Path

import pytest

REALDATA = os.environ.get("SLIDE2SURV_REALDATA")


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of real cohorts; tests that need it skip where it is absent."""
    if not REALDATA or not Path(REALDATA).is_dir():
        pytest.skip("no real data here: set SLIDE2SURV_REALDATA to the folder that holds tcga_mcat/ and slides/")
    return Path(REALDATA)
