"""Randomly damaged copies of a slide go through a cohort run: each comes out right or is listed with its reason."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from tests.workflow.conftest import ROOT, run

from pipeline.slides.features import read_coords, read_features
from pipeline.slides.reading import PatchSource
from pipeline.tables import read_table

KINDS = ("cut", "flipped", "zeroed", "suffix", "shuffled")
SUFFIXES = (".tif", ".png", ".jpg", ".ndpi", ".dcm")
# 25 copies hold each kind five times, and each suffix once; the tier `long` takes 300
FEW, MANY = pytest.param(25, marks=pytest.mark.slow), pytest.param(300, marks=pytest.mark.long)
NEAR = 24.0  # grey levels that a sixteenth of a kept patch may differ from the original: more is always noticed (slides/consistency.py)


def damage(content: bytes, kind: str, rng: np.random.Generator) -> bytes:
    """`content` cut off, with 1–40 random bytes, with 1–8 blocks of zeros, or with two stretches exchanged."""
    size, spoilt = len(content), bytearray(content)
    if kind == "cut":
        return content[: int(rng.integers(0, size))]
    if kind == "flipped":
        for at in rng.integers(0, size, int(rng.integers(1, 41))):
            spoilt[at] = int(rng.integers(0, 256))
    if kind == "zeroed":
        for at in rng.integers(0, size, int(rng.integers(1, 9))):
            length = int(2 ** rng.uniform(9, 15))
            spoilt[at : at + length] = bytes(min(length, size - at))
    if kind == "shuffled":
        length = int(2 ** rng.uniform(9, 15))
        a, b = (int(x) for x in rng.integers(0, size - length, 2))
        spoilt[a : a + length], spoilt[b : b + length] = content[b : b + length], content[a : a + length]
    return bytes(spoilt)


@pytest.fixture
def cohort(tmp_path, monkeypatch):
    """A function that runs the slide stages over a whole slide and its damaged copies, and returns the manifest."""

    def go(slide: Path, mpp: float | None, copies: int) -> tuple[pd.DataFrame, Path]:
        config, folder = tmp_path / "config", tmp_path / "scans"
        shutil.copytree(ROOT / "config", config)
        monkeypatch.setenv("SLIDE2SURV_CONFIG", str(config))
        folder.mkdir()
        shutil.copy(slide, folder / "whole.svs")
        content, rng = slide.read_bytes(), np.random.default_rng(11)
        for i in range(copies):
            kind = KINDS[i % len(KINDS)]
            suffix = SUFFIXES[i // len(KINDS) % len(SUFFIXES)] if kind == "suffix" else ".svs"
            (folder / f"{kind}{i:03d}{suffix}").write_bytes(damage(content, kind, rng))
        settings = {"title": "Damaged", "models": ["abmil"]}
        settings["slides"] = {"folder": str(folder), "pattern": "*", "mpp": mpp, "encoder": "stain_texture", "chunks": 2}
        (config / "cohorts" / "damaged.yaml").write_text(yaml.safe_dump(settings))
        run(tmp_path, "--", "results/damaged/slides/manifest-stain_texture.tsv", "results/damaged/slides/qc.tsv")
        results = tmp_path / "results/damaged/slides"
        return read_table(results / "manifest-stain_texture.tsv").set_index("slide_id", drop=False), results

    return go


def check(manifest: pd.DataFrame, results: Path, scans: Path, copies: int) -> pd.DataFrame:
    """What became of each copy; asserts that it is right, or listed with a reason and a remedy."""
    assert len(manifest) == copies + 1
    assert manifest.loc["whole", "status"] == "ok"
    whole = read_features(results / "features/stain_texture/whole.h5")
    places = {tuple(xy): i for i, xy in enumerate(whole.coords.tolist())}
    quality = read_table(results / "qc.tsv").set_index("slide_id")
    rows = []
    for slide in manifest.index.drop("whole"):
        outcome = manifest.loc[slide]
        row = {"slide": slide, "kind": slide[:-3], "status": outcome["status"], "reason": outcome["reason"]}
        if outcome["status"] != "ok":
            assert len(str(outcome["reason"])) > 20, outcome
            assert len(str(outcome["remedy"])) > 20, outcome
            rows.append(row)
            continue
        found = read_features(results / f"features/stain_texture/{slide}.h5")
        listed = results / f"features/stain_texture/{slide}.unreadable.tsv"
        dropped = read_table(listed) if listed.is_file() else pd.DataFrame({"x": [], "y": [], "reason": []})
        assert all(len(reason) > 10 for reason in dropped["reason"])
        told = {*map(tuple, found.coords.tolist()), *zip(dropped["x"].astype(int), dropped["y"].astype(int), strict=True)}
        assert told == set(map(tuple, read_coords(results / f"patches/{slide}.h5").coords.tolist()))
        row |= {"patches": len(found.coords), "dropped": len(dropped), "lost": len(set(places) - told)}
        assert not row["lost"] or "unreadable" in str(quality.loc[slide, "flags"])  # tissue that was not seen is told, too
        same = [i for i, xy in enumerate(found.coords.tolist()) if tuple(xy) in places]
        equal = (found.features[same] == whole.features[[places[tuple(found.coords[i].tolist())] for i in same]]).all(1)
        other = found.coords[np.array(same)[~equal]] if len(same) else found.coords
        row |= {"changed": len(other), "off": apart(scans, slide, found, other)}
        rows.append(row)
    return pd.DataFrame(rows)


def apart(scans: Path, slide: str, found, coords: np.ndarray) -> float:
    """By how many grey levels the worst sixteenth of the patches at `coords` differs from the undamaged slide's."""
    if not len(coords):
        return 0.0
    side, size = (int(found.attributes[key]) for key in ("patch_size_level0", "patch_size"))
    pixels = []
    for path in (scans / "whole.svs", next(scans.glob(f"{slide}.*"))):
        source = PatchSource(path, coords, side, size)
        pixels.append(source.read(0, len(coords)).pixels.astype(np.float32))
        source.close()
    cells = [p.reshape(len(coords), 4, size // 4, 4, size // 4, 3).mean((2, 4)) for p in pixels]
    return float(np.abs(cells[0] - cells[1]).mean(-1).max())


def verdict(outcomes: pd.DataFrame) -> None:
    print(outcomes.to_csv(sep="\t", index=False))
    print(outcomes.groupby("kind")["status"].value_counts().unstack(fill_value=0))
    ok = outcomes[outcomes["status"] == "ok"]
    assert (outcomes[outcomes["kind"] == "suffix"]["status"] == "ok").all()
    assert (ok["off"] < NEAR).all()
    assert not outcomes["reason"].fillna("").str.contains("Traceback").any()


@pytest.mark.parametrize("copies", [FEW, MANY])
def test_damaged_copies_of_a_synthetic_slide_come_out_right_or_are_listed(tmp_path, cohort, copies):
    from pipeline.demo.slides import write_slides

    slide = write_slides(tmp_path / "demo", slides=["DEMO-002-A"], patients=80)[0]
    verdict(check(*cohort(slide, None, copies), tmp_path / "scans", copies))


@pytest.mark.realdata
@pytest.mark.parametrize("copies", [FEW, MANY])
def test_damaged_copies_of_a_real_slide_come_out_right_or_are_listed(tmp_path, cohort, realdata, copies):
    slide = realdata / "slides" / "tcga-cr-7395-01a-01-ts1.svs"
    verdict(check(*cohort(slide, 0.5, copies), tmp_path / "scans", copies))
