"""A bad night over the slide stage is no result: the job fails and says why, and the same call ends at the bytes of an undisturbed one."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path

import pandas as pd
import pytest
from test_slide_stages import Stage
from tests.support.bad_nights import SmallDisk, apart, obey_permissions, require_obedience

from pipeline.machine import MachineError
from pipeline.slides.listing import list_slides, read_chunk, read_slides, write_slides


@pytest.fixture(scope="module")
def slides(tmp_path_factory, square_slide) -> pd.DataFrame:
    """Three slides, as they are listed."""
    folder = tmp_path_factory.mktemp("scans")
    for name in "abc":
        shutil.copy(square_slide, folder / f"{name}.svs")
    write_slides(list_slides(folder), folder / "slides.tsv", folder)
    return read_slides(folder / "slides.tsv", folder)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, slides) -> dict[str, bytes]:
    stage = Stage(tmp_path_factory.mktemp("undisturbed"), slides)
    stage.run()
    return stage.contents()


def until_done(stage: Stage, mend) -> list[MachineError]:
    """Run the three stages again and again, with `mend` after each fault; the faults."""
    met: list[MachineError] = []
    while len(met) < 30:
        try:
            stage.run()
            return met
        except MachineError as fault:
            met.append(fault)
            mend()
    return met


@pytest.mark.slow
def test_a_disk_that_fills_at_every_moment_and_grows(tmp_path, slides, undisturbed):
    def work() -> tuple[dict[str, bytes], list[str], list[str]]:
        disk, size = SmallDisk(tmp_path / "disk", 8192), [8192]

        def grow() -> None:
            assert not [path for path in disk.folder.rglob("*") if ".tmp" in path.name]
            size[0] = int(size[0] * 1.7)
            disk.resize(size[0])

        stage = Stage(disk.folder / "out", slides)
        met = until_done(stage, grow)
        return stage.contents(), [fault.problem for fault in met], [Path(fault.path).name for fault in met]

    contents, problems, files = apart(work)
    assert contents == undisturbed
    assert set(problems) == {"the disk is full"}
    assert len(files) >= 5
    assert {Path(file).suffix for file in files} >= {".png", ".h5"}


def test_slides_that_may_not_be_read_for_a_night(tmp_path, slides, undisturbed):
    """In every stage in turn: the others are done, no manifest is written, and with the permission back the same call goes on."""
    scans = [Path(path) for path in slides["path"]]

    def work() -> tuple[dict[str, bytes], list[str], list[list[str]]]:
        stage, told, done = Stage(tmp_path, slides), [], []
        obey_permissions()
        for run, folder, suffix, denied in [
            (stage.find, stage.tissue, "geojson", scans),
            (stage.find, stage.tissue, "geojson", scans[1:2]),
            (stage.lay, stage.patches, "h5", scans[1:2]),
            (stage.encode, stage.features, "h5", scans[:1]),
        ]:
            modes = [path.stat().st_mode for path in denied]
            try:
                for path in denied:
                    path.chmod(0)
                    require_obedience(path)
                with pytest.raises(MachineError) as raised:
                    run()
            finally:
                for path, mode in zip(denied, modes, strict=True):
                    path.chmod(mode)
            assert not (folder / "chunk0.tsv").exists()
            told.append(str(raised.value))
            done.append(sorted(path.stem for path in folder.glob(f"*.{suffix}")))
            if denied != scans:
                run()
        return stage.contents(), told, done

    contents, told, done = apart(work)
    assert contents == undisturbed
    assert told[0].startswith(
        f"not done for a cause that passes: 3 of 3 slides (a, b, c): permission is denied at {scans[0]}. Give it back"
    )
    assert told[3].startswith(f"not done for a cause that passes: 1 of 3 slides (a): permission is denied at {scans[0]}. Give it back")
    assert told[3].endswith("Then run the same command again: what is finished is kept.")
    assert done == [[], ["a", "c"], ["a", "c"], ["b", "c"]]


@pytest.mark.parametrize(
    ("limit", "few", "problem"),
    [
        (resource.RLIMIT_FSIZE, 2048, "the file would be larger than is allowed"),
        (resource.RLIMIT_NOFILE, 10, "too many files are open"),
    ],
)
def test_limits_of_a_process_stop_the_chunk_and_are_named(tmp_path, slides, undisturbed, limit, few, problem):
    def work() -> tuple[dict[str, bytes], str]:
        stage, before = Stage(tmp_path, slides), resource.getrlimit(limit)
        stage.find()
        resource.setrlimit(limit, (few, before[1]))
        try:
            stage.lay()
        except MachineError as fault:
            told = fault.problem
        finally:
            resource.setrlimit(limit, before)
        assert not list(stage.patches.glob("*.tsv"))
        stage.run()
        return stage.contents(), told

    assert apart(work) == (undisturbed, problem)


def test_a_folder_of_slides_that_is_not_mounted_fails_the_job_and_one_absent_slide_does_not(tmp_path):
    """Slides that the workflow makes itself are listed without a fingerprint."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    for name in "ab":
        (folder / f"{name}.svs").write_bytes(b"slide")
    write_slides(list_slides(folder), tmp_path / "slides.tsv", folder, None)
    (folder / "a.svs").unlink()
    assert list(read_chunk(tmp_path / "slides.tsv", 0, 1, folder)["slide_id"]) == ["a", "b"]
    (folder / "b.svs").unlink()
    for _ in range(2):
        with pytest.raises(MachineError, match=f"^{folder}: the folder of the slides is absent or empty. Mount it again"):
            read_chunk(tmp_path / "slides.tsv", 0, 1, folder)
        if folder.exists():
            folder.rmdir()


def test_a_folder_that_may_not_be_written_stops_the_chunk_at_its_first_slide(tmp_path, slides):
    def work() -> list[str]:
        obey_permissions()
        stage, begun = Stage(tmp_path, slides), []
        stage.find()
        stage.patches.mkdir()
        stage.patches.chmod(0o555)
        with pytest.raises(MachineError) as raised:
            stage.lay()
        begun.append(str(raised.value))
        return begun

    assert apart(work) == [
        f"{tmp_path}/patches/a.png: permission is denied. Give it back (ls -l); on a network disk the ticket may have expired (klist). "
        "Then run the same command again: what is finished is kept."
    ]
