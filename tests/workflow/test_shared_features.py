"""Studies of the same slides share features through Snakemake's cache between workflows, and only what is the same."""

import shutil

import numpy as np
import pytest
import tifffile
import yaml

from pipeline.identifiers import chunk_of
from pipeline.tables import read_table
from tests.workflow.conftest import ROOT, run

pytestmark = pytest.mark.slow
CHUNKS = 2
NAMES = [f"S{i}" for i in range(6)]


@pytest.fixture
def studies(tmp_path, monkeypatch):
    """Six small slides; cohorts `first` and `second` of them with the same settings, and `finer` with smaller patches."""
    folder, config, rng = tmp_path / "slides", tmp_path / "config", np.random.default_rng(0)
    folder.mkdir()
    for name in NAMES:
        pixels = np.full((1024, 1024, 3), 245, np.uint8)
        pixels[200:900, 200:900] = rng.integers((150, 60, 130), (220, 120, 190), (700, 700, 3))
        tifffile.imwrite(folder / f"{name}.tif", pixels, tile=(256, 256), compression="jpeg", photometric="rgb")
    shutil.copytree(ROOT / "config", config)
    slides = {"folder": str(folder), "encoder": "stain_texture", "mpp": 0.5, "chunks": CHUNKS, "tissue": {"min_piece_mm2": 0.0}}
    for cohort, patch_size in (("first", 256), ("second", 256), ("finer", 128)):
        study = {"title": cohort, "models": ["abmil"], "slides": {**slides, "patches": {"patch_size": patch_size}}}
        (config / f"cohorts/{cohort}.yaml").write_text(yaml.safe_dump(study))
    monkeypatch.setenv("SLIDE2SURV_CONFIG", str(config))
    monkeypatch.setenv("SNAKEMAKE_OUTPUT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    return tmp_path


def manifest(cohort: str) -> str:
    return f"results/{cohort}/slides/manifest-stain_texture.tsv"


def test_a_second_study_takes_the_features_of_the_first(studies):
    assert {chunk_of(name, CHUNKS) for name in NAMES} == {0, 1}
    one, other = studies / "one", studies / "other"  # two workflows in two folders
    run(one, "--cache", "--", manifest("first"))
    entries = sorted(p.name for p in (studies / "cache").iterdir())
    assert len(entries) == CHUNKS
    run(other, "--cache", "--", manifest("second"))
    assert sorted(p.name for p in (studies / "cache").iterdir()) == entries
    assert not list(other.glob("results/second/slides/features/stain_texture/*.h5"))  # nothing was encoded
    mine, theirs = (read_table(folder / manifest(cohort)) for folder, cohort in ((one, "first"), (other, "second")))
    assert mine["status"].tolist() == theirs["status"].tolist() == ["ok"] * len(NAMES)
    for a, b in zip(mine["features"], theirs["features"], strict=True):
        assert (one / a).samefile(other / b)


def test_other_patches_and_a_changed_slide_are_not_taken_for_the_same(studies):
    run(studies / "one", "--cache", "--", manifest("first"))
    run(studies / "other", "--cache", "--", manifest("finer"))
    assert len(list((studies / "cache").iterdir())) == 2 * CHUNKS
    shutil.copy(studies / "slides/S0.tif", studies / "slides/S1.tif")
    run(studies / "third", "--cache", "--", manifest("second"))
    assert len(list((studies / "cache").iterdir())) == 3 * CHUNKS
