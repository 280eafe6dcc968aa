from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic_slides import picture, write_svs


@pytest.fixture(scope="session")
def square_picture() -> np.ndarray:
    return picture()


@pytest.fixture(scope="session")
def square_slide(tmp_path_factory: pytest.TempPathFactory, square_picture: np.ndarray) -> Path:
    """A tissue square of 1792 × 1536 pixels with a hole of 512 × 512 and a pen stroke, 0.5 µm per pixel."""
    return write_svs(tmp_path_factory.mktemp("slides") / "square.svs", square_picture)


@pytest.fixture
def slide_table(tmp_path: Path, square_slide: Path) -> Callable[..., pd.DataFrame]:
    """Copies of the square slide under the given ids, as a table of slides."""

    def make(*ids: str) -> pd.DataFrame:
        (tmp_path / "scans").mkdir(exist_ok=True)
        paths = [shutil.copy(square_slide, tmp_path / "scans" / f"{slide}.svs") for slide in ids]
        return pd.DataFrame({"slide_id": ids, "patient_id": ids, "path": [str(p) for p in paths], "mpp": float("nan")})

    return make


@pytest.fixture(scope="session")
def real_slide() -> Path:
    folder = os.environ.get("SLIDE2SURV_REALDATA")
    if not folder:
        pytest.skip("SLIDE2SURV_REALDATA does not name a folder of real data")
    path = Path(folder) / "slides" / "tcga-cr-7395-01a-01-ts1.svs"
    if not path.is_file():
        pytest.skip(f"{path.name} is not in the folder of real data")
    return path
