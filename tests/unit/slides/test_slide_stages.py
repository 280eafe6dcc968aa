from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import h5py
import numpy as np
import pandas as pd
import pytest
from synthetic_slides import break_tiles, picture, write_dicom, write_mirax, write_svs

from pipeline.cohort.loader import BagStore
from pipeline.errors import InputError
from pipeline.files import md5
from pipeline.identifiers import chunk_of
from pipeline.machine import MachineError
from pipeline.slides import features as features_file
from pipeline.slides.drawn import drawn_by_hand
from pipeline.slides.encoders import stain_texture
from pipeline.slides.encoders.network import EncoderSettings
from pipeline.slides.features import Progress, read_coords, read_features, write_coords, write_features, write_progress
from pipeline.slides.listing import list_slides, write_slides
from pipeline.slides.masks import MaskSettings
from pipeline.slides.md5sums import Md5Sums
from pipeline.slides.patches import PatchSettings
from pipeline.slides.reading import PatchSource
from pipeline.slides.sealing import sealed_checksum
from pipeline.slides.stages import features as features_stage
from pipeline.slides.stages import tissue as tissue_stage
from pipeline.slides.stages.features import ReadingSettings, features_chunk
from pipeline.slides.stages.manifests import drop_other_chunks, gather_manifests, gather_quality, publish_features
from pipeline.slides.stages.patches import patches_chunk
from pipeline.slides.stages.tissue import tissue_chunk
from pipeline.slides.tissue import TissueSettings
from pipeline.stopping import end_on_sigterm
from pipeline.tables import read_table

ENCODER = "stain_texture"


class Stage:
    """The three stages of one chunk in a folder of their own."""

    def __init__(self, root: Path, slides: pd.DataFrame) -> None:
        self.root, self.slides = root, slides
        self.tissue, self.patches, self.features = (root / name for name in ("tissue", "patches", ENCODER))

    def find(self, settings: TissueSettings | None = None, **options: object) -> pd.DataFrame:
        tissue_chunk(self.slides, self.tissue, self.tissue / "chunk0.tsv", settings, **options)
        return read_table(self.tissue / "chunk0.tsv").set_index("slide_id")

    def lay(self, settings: PatchSettings | None = None) -> pd.DataFrame:
        patches_chunk(self.tissue / "chunk0.tsv", self.slides, self.patches, self.patches / "chunk0.tsv", settings)
        return read_table(self.patches / "chunk0.tsv").set_index("slide_id")

    def encode(self, threads: int = 1, batch_size: int = 16, **reading: object) -> pd.DataFrame:
        how = {"running": EncoderSettings(threads=threads, batch_size=batch_size), "reading": ReadingSettings(**reading)}
        features_chunk(self.patches / "chunk0.tsv", self.slides, self.features, self.features / "chunk0.tsv", ENCODER, **how)
        return read_table(self.features / "chunk0.tsv").set_index("slide_id")

    def run(self) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
        return self.find(), self.lay(), self.encode()

    def gather(self) -> pd.DataFrame:
        publish_features(self.features / "chunk0.tsv", self.features / "chunk0")
        manifests = ([folder / "chunk0.tsv"] for folder in (self.tissue, self.patches))
        return gather_manifests(self.slides, *manifests, [self.features / "chunk0"], self.root / f"manifest-{ENCODER}.tsv")

    def gather_checksums(self) -> pd.Series:
        """Of the features, as training sees them."""
        self.gather()
        return read_table(self.root / f"manifest-{ENCODER}.tsv").set_index("slide_id")["checksum"]

    def listed(self) -> str:
        """``slides.tsv``, as it is now."""
        write_slides(self.slides, self.root / "slides.tsv", self.root)
        return (self.root / "slides.tsv").read_text()

    def contents(self) -> dict[str, bytes]:
        files = (path for stage in (self.tissue, self.patches, self.features) for path in stage.iterdir())
        return {str(path.relative_to(self.root)): path.read_bytes() for path in files if path.is_file()}

    def written(self) -> dict[str, int]:
        return {
            str(p.relative_to(self.root)): p.stat().st_ino
            for p in sorted(self.root.rglob("*.*"))
            if p.suffix in (".h5", ".geojson", ".png")
        }


@pytest.fixture
def stage(tmp_path, slide_table):
    """Nothing done yet."""
    return Stage(tmp_path / "out", slide_table("a", "b"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory, square_slide):
    """All three stages of two copies of the square slide."""
    paths = [str(square_slide)] * 2
    slides = pd.DataFrame({"slide_id": ["a", "b"], "patient_id": ["a", "b"], "path": paths, "mpp": float("nan")})
    done = Stage(tmp_path_factory.mktemp("finished"), slides)
    done.run()
    return done.root


@pytest.fixture
def done(stage, finished):
    """All three stages done, in a copy that may be spoilt."""
    shutil.copytree(finished, stage.root)
    return stage


@pytest.fixture
def laid(done):
    """Tissue and patches done, features not."""
    shutil.rmtree(done.features)
    return done


def test_a_chunk_runs_from_slides_to_features(stage):
    tissue, patches, encoded = stage.run()
    assert tissue.loc["a", ["status", "mpp", "mpp_source", "objective_power", "width", "height", "pieces", "holes"]].tolist() == (
        ["ok", "0.5", "header", "20", "3072", "2560", "1", "1"]
    )
    assert patches.loc["a", "patches"] == "38"
    assert encoded.loc["a", ["status", "patches", "unreadable", "width"]].tolist() == ["ok", "38", "0", "82"]
    found = read_features(stage.features / "a.h5")
    assert found.features.shape == (38, 82)
    expected = {"patch_size_level0": 256, "patch_size": 256, "target_mpp": 0.5, "mpp": 0.5, "mpp_source": "header", "encoder": ENCODER}
    assert {key: found.attributes[key] for key in expected} == expected
    assert np.array_equal(found.coords, read_coords(stage.patches / "a.h5").coords)
    assert len(stage.gather()) == 0
    manifest = read_table(stage.root / f"manifest-{ENCODER}.tsv")
    assert manifest["status"].tolist() == ["ok", "ok"]
    assert [Path(p).resolve() for p in manifest["features"]] == [stage.features / f"chunk0/{name}.h5" for name in "ab"]


def test_what_is_valid_is_neither_made_again_nor_does_it_load_the_encoder(done, monkeypatch):
    first = done.run()
    before = done.written()
    manifests = [p.read_bytes() for p in sorted(done.root.rglob("chunk0.tsv"))]
    monkeypatch.setattr(features_stage, "load_encoder", lambda *a: pytest.fail("loaded for nothing"))
    again = done.run()
    assert done.written() == before
    assert manifests == [p.read_bytes() for p in sorted(done.root.rglob("chunk0.tsv"))]
    assert all(a.equals(b) for a, b in zip(first, again, strict=True))


def test_a_missing_file_of_one_slide_makes_that_slide_alone_again(done):
    before = done.written()
    (done.features / "b.h5").write_bytes(b"half a file")
    done.encode()
    after = done.written()
    assert {name for name in after if after[name] != before[name]} == {str(Path(ENCODER) / "b.h5")}
    assert len(read_features(done.features / "b.h5").features) == 38


def test_changed_settings_make_files_again_and_pass_down(done):
    digest = read_coords(done.features / "a.h5").attributes["settings"]
    assert done.lay(PatchSettings(target_mpp=1.0, min_tissue=0.75)).loc["a", "patches"] == "8"
    assert done.encode().loc["a", "patches"] == "8"
    assert read_coords(done.features / "a.h5").attributes["settings"] != digest
    assert done.find(TissueSettings(min_hole_mm2=1.0)).loc["a", "holes"] == "0"
    assert done.lay().loc["a", "patches"] == "42"
    assert done.encode().loc["a", "patches"] == "42"


def test_a_changed_slide_is_noticed(done):
    write_svs(Path(done.slides["path"][0]), picture(hole=False))
    tissue, patches, encoded = done.run()
    assert tissue["holes"].tolist() == ["0", "1"]
    assert patches["patches"].tolist() == encoded["patches"].tolist() == ["42", "38"]


def test_bad_slides_are_listed_and_do_not_stop_the_others(tmp_path, done, square_picture):
    scans = tmp_path / "scans"
    (scans / "cut.svs").write_bytes((scans / "a.svs").read_bytes()[:5000])
    write_svs(scans / "nompp.svs", square_picture, mpp=None, power=None)
    write_svs(scans / "empty.svs", picture(tissue=False), levels=1)
    write_svs(scans / "coarse.svs", square_picture, mpp=2.0, power=5)
    bad = ["absent", "cut", "nompp", "empty", "coarse"]
    more = pd.DataFrame({"slide_id": bad, "patient_id": bad, "path": [str(scans / f"{b}.svs") for b in bad], "mpp": float("nan")})
    done.slides = pd.concat([more[:3], done.slides, more[3:]], ignore_index=True)
    done.run()
    failures = done.gather().set_index("id")
    assert failures["stage"].to_dict() == {**dict.fromkeys(bad[:4], "tissue"), "coarse": "patches"}
    assert (failures["kind"] == "slide").all()
    assert failures["remedy"].str.len().min() > 10
    for slide, text in {
        "absent": "no such slide file",
        "cut": "cannot be opened as a slide",
        "nompp": "slide nompp: no resolution in the file",
        "empty": "slide empty: no tissue found; expected a stained piece of at least 0.02 mm².",
        "coarse": "slide coarse: the scan is coarser than the target",
    }.items():
        assert text in failures.loc[slide, "reason"]
    manifest = read_table(done.root / f"manifest-{ENCODER}.tsv").set_index("slide_id")
    assert manifest.index.tolist() == done.slides["slide_id"].tolist()
    assert manifest.index[manifest["status"] == "ok"].tolist() == ["a", "b"]
    assert (done.tissue / "empty.png").is_file()


def test_an_mpp_in_the_table_or_the_cohort_saves_a_slide_without_one(stage, square_picture):
    for path in stage.slides["path"]:
        write_svs(Path(path), square_picture, mpp=None, power=None)
    stage.slides.loc[0, "mpp"] = 0.25
    found = stage.find(default_mpp=0.5)
    assert found["mpp_source"].tolist() == ["table", "cohort"]
    assert stage.lay(PatchSettings(min_tissue=0.75))["patches"].tolist() == ["8", "38"]


def test_unreadable_patches_are_dropped_counted_and_in_excess_fail_the_slide(stage):
    break_tiles(Path(stage.slides["path"][0]), [(2, 2), (5, 7)])
    break_tiles(Path(stage.slides["path"][1]), [(x, 2) for x in range(2, 9)])
    stage.find()
    stage.lay()
    encoded = stage.encode(threads=2, readers=2)
    assert encoded.loc["a", ["status", "patches", "unreadable"]].tolist() == ["ok", "36", "2"]
    assert encoded.loc["b", "reason"] == "slide b: too many patches cannot be read; found '7 of 38', expected at most 10%."
    found = read_features(stage.features / "a.h5")
    assert (512, 512) not in set(map(tuple, found.coords.tolist()))
    assert stage.encode(max_bad_share=0.5)["patches"].tolist() == ["36", "31"]
    assert stage.encode(max_bad_share=0.01)["status"].tolist() == ["failed", "failed"]


def test_unreadable_patches_are_listed_with_place_and_reason(stage):
    break_tiles(Path(stage.slides["path"][0]), [(2, 2), (5, 7)])
    stage.run()
    listed = read_table(stage.features / "a.unreadable.tsv")
    assert listed[["slide_id", "x", "y"]].to_numpy().tolist() == [["a", "512", "512"], ["a", "1280", "1792"]]
    assert listed["reason"].tolist() == [f"tile {place} of level 0: holds no JPEG stream" for place in ("2, 2", "5, 7")]
    assert not (stage.features / "b.unreadable.tsv").exists()


def test_a_published_chunk_has_what_passed_and_takes_no_second_disk_space(stage):
    break_tiles(Path(stage.slides["path"][0]), [(2, 2)])
    stage.run()
    published = stage.features / "chunk0"
    for _ in range(2):  # again after a rerun
        publish_features(stage.features / "chunk0.tsv", published)
    assert sorted(p.name for p in published.iterdir()) == ["a.h5", "a.unreadable.tsv", "b.h5", "manifest.tsv"]
    assert (published / "a.h5").samefile(stage.features / "a.h5")
    assert (published / "manifest.tsv").read_bytes() == (stage.features / "chunk0.tsv").read_bytes()
    stage.encode(max_bad_share=0.0)  # a fails now
    publish_features(stage.features / "chunk0.tsv", published)
    assert sorted(p.name for p in published.iterdir()) == ["b.h5", "manifest.tsv"]


def test_chunks_of_an_earlier_number_are_removed(tmp_path):
    for name in ("tissue/chunk0.tsv", "tissue/chunk3.tsv", "tissue/chunk3b.geojson", "uni/chunk0.tsv", "uni/chunk3.tsv", "uni/chunk3/a.h5"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "uni/chunk0").mkdir()
    (tmp_path / "uni/chunk4").symlink_to(tmp_path / "cache")
    drop_other_chunks([tmp_path / "tissue/chunk0.tsv", tmp_path / "uni/chunk0"])
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*"))
    assert left == ["tissue/chunk0.tsv", "tissue/chunk3b.geojson", "uni/chunk0", "uni/chunk0.tsv"]


def test_where_the_disk_has_no_hard_links_a_chunk_is_copied(done, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    publish_features(done.features / "chunk0.tsv", done.features / "chunk0")
    assert (done.features / "chunk0/a.h5").read_bytes() == (done.features / "a.h5").read_bytes()


def test_a_killed_slide_goes_on_where_it_was_left(laid, monkeypatch):
    whole = laid.root / "whole"
    laid.encode()
    shutil.copytree(laid.features, whole)
    (laid.features / "a.h5").unlink()
    described, describe = laid.root / "described", stain_texture.describe

    def die_at_the_second_batch(patches):
        with described.open("a") as log:
            log.write(f"{len(patches)}\n")
        if described.read_text().count("\n") in (2, 3):
            time.sleep(0.5)  # the first batch is being kept
            os._exit(9)
        return describe(patches)

    monkeypatch.setattr(stain_texture, "describe", die_at_the_second_batch)
    laid.encode(keep_seconds=0.0)  # dies, and once more
    assert "ended the process 2 times (exit status 9)" in read_table(laid.features / "chunk0.tsv")["reason"][0]
    assert not (laid.features / "a.h5").exists()
    assert laid.encode(keep_seconds=0.0)["status"].tolist() == ["ok", "ok"]
    assert described.read_text().split() == ["32", "6", "6", "6"]
    assert (laid.features / "a.h5").read_bytes() == (whole / "a.h5").read_bytes()
    assert not list(laid.features.glob(".*"))


def test_a_job_told_to_stop_keeps_the_batches_it_has(laid, monkeypatch):
    """As a scheduler does: SIGTERM to the job alone, long before anything would be kept by the clock."""
    laid.encode()
    whole = (laid.features / "a.h5").read_bytes()
    (laid.features / "a.h5").unlink()
    described, describe = laid.root / "described", stain_texture.describe

    def slowly(patches):
        with described.open("a") as log:
            log.write(f"{len(patches)}\n")
        time.sleep(0.5)
        return describe(patches)

    monkeypatch.setattr(stain_texture, "describe", slowly)
    job = multiprocessing.get_context("fork").Process(target=lambda: (end_on_sigterm(), laid.encode(keep_seconds=1e9)))
    job.start()
    while not described.exists():
        time.sleep(0.01)
    os.kill(job.pid, signal.SIGTERM)
    job.join(20)
    assert job.exitcode == 143
    assert (laid.features / ".a.partial.h5").exists()
    assert laid.encode()["status"].tolist() == ["ok", "ok"]
    assert described.read_text().split().count("32") == 1  # the first batch was not described again
    assert (laid.features / "a.h5").read_bytes() == whole
    assert not list(laid.features.glob(".*"))


def test_a_slide_that_crashes_while_it_is_read_ahead_does_not_take_the_one_before_it_along(laid, monkeypatch):
    class Crashing(PatchSource):
        def __init__(self, path, *rest):
            if Path(path).stem == "b":
                os._exit(11)
            super().__init__(path, *rest)

    monkeypatch.setattr(features_stage, "PatchSource", Crashing)
    encoded = laid.encode()
    assert encoded["status"].to_dict() == {"a": "ok", "b": "failed"}
    assert "ended the process 2 times (exit status 11)" in encoded.loc["b", "reason"]


def test_progress_of_another_slide_or_setting_is_not_taken_up(laid, monkeypatch):
    laid.encode()
    expected = (laid.features / "a.h5").read_bytes()
    (laid.features / "a.h5").unlink()
    progress = Progress([np.zeros((5, 82), np.float16)], [np.ones(5, bool)], [])
    write_progress(laid.features / ".a.partial.h5", progress, {"settings": "other", "slide_fingerprint": "other"})
    laid.encode()
    assert (laid.features / "a.h5").read_bytes() == expected


def test_a_slide_replaced_after_its_patches_were_laid_is_refused(done):
    write_svs(Path(done.slides["path"][0]), picture(hole=False))
    encoded = done.encode()
    assert "a.svs: the slide was replaced since its patches were laid; found" in encoded.loc["a", "reason"]
    assert encoded.loc["a", "remedy"] == "Run again: its tissue and patches are then found anew."
    assert encoded.loc["b", "status"] == "ok"


def test_a_checksum_in_the_table_finds_any_damage(stage):
    stage.slides["md5"] = [md5(path) for path in stage.slides["path"]]
    content = bytearray(Path(stage.slides["path"][1]).read_bytes())
    content[len(content) // 2] ^= 1
    Path(stage.slides["path"][1]).write_bytes(content)
    tissue = stage.find()
    assert tissue["status"].tolist() == ["ok", "failed"]
    assert f"b.svs, column 'md5': the file is damaged or another one; found '{md5(stage.slides['path'][1])}'" in tissue.loc["b", "reason"]


def test_the_quality_of_all_slides_is_one_table_with_pictures(done):
    failed = done.slides[:1].assign(slide_id="absent", path="absent.svs")
    done.slides = pd.concat([done.slides, failed], ignore_index=True)
    done.find()
    done.lay()
    manifests = ([folder / "chunk0.tsv"] for folder in (done.tissue, done.patches))
    gather_quality(done.slides, *manifests, done.root / "qc.tsv", done.root / "sheets")
    table = read_table(done.root / "qc.tsv").set_index("slide_id")
    assert table["status"].to_dict() == {"a": "ok", "b": "ok", "absent": "failed"}
    assert float(table.loc["a", "pen_share"]) > 0.05
    assert "pen" in table.loc["a", "flags"].split(";")
    assert table.loc["a", "patches"] == "38"
    assert [p.name for p in (done.root / "sheets").iterdir()] == ["sheet.jpg"]


def test_a_mask_from_outside_is_taken_instead_and_its_change_is_noticed(done):
    folder = done.root / "masks"
    folder.mkdir()
    mask = np.zeros((160, 192), np.uint8)
    mask[32:64, 32:64] = 255
    cv2.imwrite(str(folder / "a.png"), mask)
    found = done.find(masks=MaskSettings(folder=folder))
    assert found["tissue_source"].tolist() == ["a.png", "found"]
    assert done.lay()["patches"].tolist() == ["4", "38"]
    mask[64:96, 32:64] = 255
    cv2.imwrite(str(folder / "a.png"), mask)
    done.find(masks=MaskSettings(folder=folder))
    assert done.lay()["patches"].tolist() == ["8", "38"]


def test_contours_drawn_by_hand_are_used_and_kept(done):
    path = done.tissue / "a.geojson"
    content = json.loads(path.read_text())
    del content["properties"]
    content["features"][0]["geometry"]["coordinates"] = [[[512, 512], [1024, 512], [1024, 1024], [512, 1024], [512, 512]]]
    path.write_text(json.dumps(content))
    text, (_, patches, encoded) = path.read_text(), done.run()
    assert path.read_text() == text
    assert patches.loc["a", "patches"] == encoded.loc["a", "patches"] == "4"


@pytest.mark.parametrize(("stage_of", "made"), [("tissue", {"tissue"}), ("patches", {"patches"}), ("features", {"stain_texture"})])
def test_what_other_code_made_is_made_again(done, monkeypatch, stage_of, made):
    """And what comes after it stays, where that code finds the same."""
    before = {path: path.stat().st_mtime_ns for path in done.root.rglob("[ab].*") if path.suffix in (".geojson", ".h5")}
    monkeypatch.setattr(f"pipeline.slides.stages.{stage_of}.code_of", lambda *modules: "of another version")
    done.run()
    assert {path.parent.name for path, time in before.items() if path.stat().st_mtime_ns != time} == made


def test_an_edited_drawing_is_used_anew_and_without_it_the_tissue_is_found_again(done):
    before, path = done.contents(), done.tissue / "a.geojson"
    draw(path, 512, 1024)
    assert list(drawn_by_hand(done.tissue)) == ["a"]
    first = drawn_by_hand(done.tissue)
    tissue, patches, encoded = done.run()
    assert (tissue.loc["a", "tissue_source"], patches.loc["a", "patches"], encoded.loc["a", "patches"]) == ("drawn", "4", "4")
    drawn = done.contents()
    draw(path, 512, 1280)
    assert drawn_by_hand(done.tissue).keys() == first.keys()
    assert drawn_by_hand(done.tissue) != first
    assert [table.loc["a", "patches"] for table in done.run()[1:]] == ["9", "9"]
    assert {name for name, content in done.contents().items() if content != drawn[name]} == {
        *("tissue/a.geojson", "tissue/a.png", "patches/a.h5", "patches/a.png", "stain_texture/a.h5"),
        *("tissue/chunk0.tsv", "patches/chunk0.tsv", "stain_texture/chunk0.tsv"),
    }
    path.unlink()
    done.run()
    assert done.contents() == before


def draw(path: Path, start: int, end: int, *annotations: dict) -> None:
    """A square drawn by hand, as QuPath exports it."""
    ring = [[start, start], [end, start], [end, end], [start, end], [start, start]]
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": {"objectType": "annotation"}}
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature, *annotations]}))


def test_what_is_to_be_ignored_in_a_drawing_is_neither_measured_nor_laid(done):
    ring = [[512, 512], [768, 512], [768, 768], [512, 768], [512, 512]]
    ignored = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": {"classification": "Ignore*"}}
    draw(done.tissue / "a.geojson", 512, 1024, ignored)
    tissue, patches, _ = done.run()
    assert float(tissue.loc["a", "tissue_mm2"]) == pytest.approx((512**2 - 256**2) * (0.5 / 1000) ** 2)
    assert patches.loc["a", "patches"] == "3"


def scale_contours(path: Path) -> None:
    content = json.loads(path.read_text())
    for feature in content["features"]:
        geometry = feature["geometry"]
        geometry["coordinates"] = [[[x / 2, y / 2] for x, y in ring] for ring in geometry["coordinates"]]
    path.write_text(json.dumps(content))


def shift_coords(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["coords"][...] += 64


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def take_that_of_b(path: Path) -> None:
    shutil.copy(path.with_name(path.name.replace("a", "b", 1)), path)


@contextmanager
def said_in(path: Path) -> Iterator[None]:
    """Warnings go to a file: slides are worked on in a process of their own."""
    handler = logging.FileHandler(path)
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


SPOILT = {"tissue/a.geojson": scale_contours, "patches/a.h5": shift_coords, f"{ENCODER}/a.h5": flip_a_bit}


@pytest.mark.parametrize("spoils", [SPOILT, dict.fromkeys(SPOILT, take_that_of_b)], ids=["damaged", "another slide's"])
def test_what_does_not_belong_together_is_made_again_and_said(done, spoils):
    before = done.contents()
    for name, spoil in spoils.items():
        spoil(done.root / name)
    with said_in(done.root.parent / "log"):
        done.run()
    assert done.contents() == before
    said = [line for line in (done.root.parent / "log").read_text().splitlines() if "made again" in line]
    assert len(said) == len(spoils)
    assert all(any(str(done.root / name) in line for line in said) for name in spoils)


@pytest.mark.parametrize("spoil", [flip_a_bit, take_that_of_b, Path.unlink])
def test_a_spoilt_file_of_the_stage_before_is_no_fault_of_the_slide(done, spoil):
    for folder, name, stage, following in ((done.patches, "a.h5", "patches", done.encode), (done.tissue, "a.geojson", "tissue", done.lay)):
        spoil(folder / name)
        with pytest.raises(MachineError, match=rf"1 of 2 slides \(a\): .* at {folder / name}\. `--forcerun {stage}` makes it again\."):
            following()
    encoded = done.run()[-1]
    assert encoded["status"].tolist() == ["ok", "ok"]


def test_features_are_those_of_their_coordinates(done):
    laid = read_coords(done.patches / "a.h5")
    write_coords(done.patches / "a.h5", laid.coords[:9] + 64, laid.attributes)  # by another grid, with the same settings
    checksums = done.gather_checksums()
    encoded = done.encode()
    assert np.array_equal(read_coords(done.features / "a.h5").coords, laid.coords[:9] + 64)
    assert encoded.loc["a", "patches"] == "9"
    assert (done.gather_checksums() == checksums).to_dict() == {"a": False, "b": True}


def test_training_refuses_spoilt_features(done):
    flip_a_bit(done.features / "a.h5")
    with pytest.raises(InputError, match=r"a\.h5: is damaged: its content does not fit its checksum\. Delete the file and run its stage"):
        BagStore.open({"p": [done.features / "a.h5"]})
    take_that_of_b(done.features / "a.h5")
    with pytest.raises(InputError, match=r"a\.h5: holds another slide; found 'b', expected a\."):
        BagStore.open({"p": [done.features / "a.h5"]})


def test_training_refuses_sound_features_that_its_manifest_does_not_list(done):
    checksum, path = done.gather_checksums()["a"], done.features / "a.h5"
    assert len(BagStore.open({"p": [path]}, checksums={path: checksum}).bag("p")) == 38
    found = read_features(path)
    write_features(path, found.features + 1, found.coords, found.attributes)
    other = sealed_checksum(path)
    with pytest.raises(InputError, match=rf"a\.h5: is not the file of .* lists; found '{other}', expected the checksum {checksum}\."):
        BagStore.open({"p": [path]}, checksums={path: checksum})


def test_finished_features_are_read_once_per_job(done, monkeypatch):
    proven = done.root.parent / "proven"
    is_as_sealed = features_file.is_as_sealed

    def count(path: Path) -> bool | None:
        with proven.open("a") as log:
            log.write(f"{Path(path).relative_to(done.root)}\n")
        return is_as_sealed(path)

    monkeypatch.setattr(features_file, "is_as_sealed", count)
    (done.features / "a.h5").unlink()  # while it is encoded, b is looked at ahead of its turn
    done.encode()
    assert sorted(proven.read_text().splitlines()) == ["patches/a.h5", "patches/b.h5", f"{ENCODER}/b.h5"]


def test_moved_slides_and_results_are_not_made_again(done, tmp_path):
    before = done.contents()
    scans = Path(done.slides["path"][0]).parent
    done.root.rename(tmp_path / "moved")
    scans.rename(tmp_path / "scans elsewhere")
    moved = Stage(tmp_path / "moved", done.slides.assign(path=[str(tmp_path / "scans elsewhere" / f"{s}.svs") for s in "ab"]))
    for slide in moved.slides["path"]:
        os.utime(slide, (1, 1))
    kept = moved.written()
    moved.run()
    assert moved.written() == kept
    assert moved.contents() == before
    assert not [name for name, content in before.items() if str(tmp_path).encode() in content]


@pytest.fixture
def dicom(tmp_path, square_picture):
    """The stages of one slide that is a series of two files, of whose second only the overview is read."""
    image = np.ascontiguousarray(square_picture[256:1536, 256:1792])
    half = cv2.resize(image, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    (tmp_path / "scans/P1").mkdir(parents=True)
    write_dicom(tmp_path / "scans/P1", [(image, 0.0005), (half, 0.002)])
    return Stage(tmp_path / "out", list_slides(tmp_path / "scans", "**/*.dcm"))


def test_pixels_replaced_in_another_file_of_a_slide_are_noticed(dicom):
    *_, encoded = dicom.run()
    assert encoded["status"].to_dict() == {"P1": "ok"}
    before, side = dicom.contents(), Path(dicom.slides["path"][0]).with_name("level1.dcm")
    listed = dicom.listed()
    dicom.run()
    assert dicom.contents() == before
    content = bytearray(side.read_bytes())
    content[-200] ^= 1
    side.write_bytes(content)
    assert dicom.listed() != listed
    dicom.run()
    changed = {name for name, content in dicom.contents().items() if content != before[name]}
    assert {"tissue/P1.geojson", "patches/P1.h5", f"{ENCODER}/P1.h5"} <= changed


def test_a_mirax_that_was_copied_by_half_is_another_slide_once_it_is_whole(tmp_path):
    path = write_mirax(tmp_path / "scans/m.mrxs")
    whole = path.with_suffix("").rename(tmp_path / "the rest")
    stage = Stage(tmp_path / "out", list_slides(path.parent, "*.mrxs"))
    assert stage.find()["status"].tolist() == ["failed"]
    listed = stage.listed()
    whole.rename(path.with_suffix(""))
    assert stage.listed() != listed  # so that Snakemake tries it again


def test_md5sums_find_damage_in_any_file_of_a_slide(dicom, tmp_path):
    first = Path(dicom.slides["path"][0])
    side, sums = first.with_name("level1.dcm"), tmp_path / "sums.md5"
    sums.write_text(f"{md5(first)}  P1/level0.dcm\n{md5(side)} *P1/level1.dcm\n")
    scans = tmp_path / "scans"
    assert dicom.find(md5sums=Md5Sums(sums, scans))["status"].tolist() == ["ok"]
    expected, content = md5(side), bytearray(side.read_bytes())
    content[len(content) // 2] ^= 1
    side.write_bytes(content)
    found = dicom.find(md5sums=Md5Sums(sums, scans))
    assert found.loc["P1", "reason"] == f"{side}: the file is damaged or another one; found '{md5(side)}', expected {expected}."
    assert found.loc["P1", "remedy"] == "Copy the slide again from its source, or correct `slides.md5sums`."


def test_a_set_that_is_not_listed_whole_is_said_once(dicom, tmp_path):
    first, sums = Path(dicom.slides["path"][0]), tmp_path / "scans/sums.md5"
    sums.write_text(f"{md5(first)}  {first}\n")
    with said_in(tmp_path / "log"):
        assert dicom.find(md5sums=Md5Sums(sums, tmp_path / "elsewhere"))["status"].tolist() == ["ok"]
        dicom.find(md5sums=Md5Sums(sums, tmp_path / "elsewhere"))
    said = "slide P1: `slides.md5sums` does not list 1 of its 2 files (level1.dcm): nothing tells its damage"
    assert (tmp_path / "log").read_text().count(said) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MD5 (a.svs) = 0\n", r"row 1: is no list of checksums; found 'MD5 \(a\.svs\) = 0', expected a line of md5sum"),
        (f"{'0' * 32}  a\n\n{'1' * 32}  ./a\n", "row 3: states two checksums of one file; found './a', expected 0{32}"),
    ],
)
def test_a_list_that_is_none_is_named(tmp_path, text, message):
    (tmp_path / "sums.md5").write_text(text)
    with pytest.raises(InputError, match=message):
        Md5Sums(tmp_path / "sums.md5", tmp_path)


def test_a_slide_drawn_empty_by_hand_fails(stage):
    stage.tissue.mkdir(parents=True)
    (stage.tissue / "a.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    assert stage.find()["status"].tolist() == ["failed", "ok"]


def test_features_do_not_depend_on_threads_or_batches(done):
    first = (done.features / "a.h5").read_bytes()
    (done.features / "a.h5").unlink()
    done.encode(threads=3, batch_size=5, readers=2)
    assert (done.features / "a.h5").read_bytes() == first


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), "^memory is not enough"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "^the disk is full"),
        (RuntimeError("CUDA error"), "^CUDA error$"),
    ],
)
def test_what_would_meet_every_slide_stops_the_chunk(laid, monkeypatch, error, told):
    def fail(patches):
        raise error

    monkeypatch.setattr(stain_texture, "describe", fail)
    with pytest.raises((MachineError, RuntimeError), match=told):
        laid.encode()
    assert not (laid.features / "chunk0.tsv").exists()
    assert not list(laid.features.glob("*.h5"))


def test_an_unforeseen_error_of_one_slide_is_listed_with_its_type(stage, monkeypatch):
    monkeypatch.setattr(tissue_stage, "find_tissue", lambda *a: 1 / 0)
    assert stage.find()["reason"].tolist() == [
        "slide a: ZeroDivisionError: division by zero",
        "slide b: ZeroDivisionError: division by zero",
    ]


def test_an_encoder_that_cannot_be_had_is_no_slides_fault(laid):
    with pytest.raises(InputError, match="no such encoder; found 'stain_textures'"):
        features_chunk(laid.patches / "chunk0.tsv", laid.slides, laid.features, laid.features / "c.tsv", "stain_textures")
    overrides = {"uni": {"checkpoint": "/absent.bin"}}
    with pytest.raises(InputError, match="no such checkpoint"):
        features_chunk(laid.patches / "chunk0.tsv", laid.slides, laid.features, laid.features / "c.tsv", "uni", overrides=overrides)


def test_features_that_are_not_finite_fail_the_slide_and_leave_no_file(laid, monkeypatch):
    monkeypatch.setattr(stain_texture, "describe", lambda patches: np.full((len(patches), 82), 1e9, np.float32))
    encoded = laid.encode()
    assert "38 of 38 patches have a feature that is not finite as float16" in encoded.loc["a", "reason"]
    assert not list(laid.features.glob("*.h5"))


def test_an_empty_chunk_writes_empty_manifests(stage):
    stage.slides = stage.slides[:0]
    assert [len(table) for table in stage.run()] == [0, 0, 0]
    assert len(stage.gather()) == 0


def test_a_slide_that_no_manifest_knows_is_an_error(done):
    done.slides = pd.concat([done.slides, done.slides.assign(slide_id="c")[:1]])
    with pytest.raises(InputError, match="slide c: no manifest of the stage 'tissue' has this slide"):
        done.gather()


def test_files_are_stored_as_the_contract_says(done):
    with h5py.File(done.features / "a.h5") as file:
        names = {
            "patch_size_level0",
            "patch_size",
            "target_mpp",
            "mpp",
            "mpp_source",
            "encoder",
            "settings",
            "slide_fingerprint",
            "version",
        }
        assert names <= set(file.attrs)
        assert (file["features"].dtype, file["features"].chunks, file["coords"].dtype) == (np.float16, None, np.int32)
    text = (done.root / "patches" / "chunk0.tsv").read_text().splitlines()
    assert text[0].split("\t") == ["slide_id", "status", "reason", "remedy", "patches"]


def test_chunks_are_stable_and_even():
    ids = [f"TCGA-{i:04d}" for i in range(2000)]
    chunks = [chunk_of(i, 8) for i in ids]
    assert chunks[:4] == [7, 1, 3, 5]
    assert min(np.bincount(chunks)) > 200


@pytest.mark.realdata
def test_a_real_slide_goes_through_once_its_resolution_is_given(tmp_path, real_slide):
    broken = real_slide.with_name("broken.svs")
    slides = pd.DataFrame(
        {"slide_id": ["x", "real"], "patient_id": ["x", "p"], "path": [str(broken), str(real_slide)], "mpp": [np.nan, 0.5]}
    )
    stage = Stage(tmp_path, slides)
    *_, encoded = stage.run()
    assert encoded.loc["real", ["status", "patches"]].tolist() == ["ok", "155"]
    assert stage.gather()["id"].tolist() == ["x"]
