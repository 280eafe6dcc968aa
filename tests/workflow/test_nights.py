"""Bad nights over a whole run: it ends with status 1 and the cause, and the same command then ends at the bytes of an undisturbed run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.bad_nights import SmallDisk, apart, obey_permissions, require_obedience
from tests.workflow.conftest import run

SETTINGS = ("demo={patients: 24}", "models=[snn,survq]", "splits={folds: 2}", "training={epochs: 3}")
SMALL = ("--config", *SETTINGS, "--", "results/demo/summary.tsv")
UNTIL = ("--config", *SETTINGS, "--")
RUN_SAYS = ("benchmarks", "logs", ".snakemake", "resources.tsv")  # what a run says of itself is another one each time

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    run(folder, *SMALL)
    return made(folder)


def made(folder: Path) -> dict[str, bytes]:
    """Every file of the results by path, of slides and of training."""
    results = folder / "results/demo"
    files = (path for path in results.rglob("*") if path.is_file() and not {*path.relative_to(results).parts} & {*RUN_SAYS})
    return {str(path.relative_to(results)): path.read_bytes() for path in files}


def test_a_disk_that_fills_at_several_moments_and_grows(tmp_path, undisturbed):
    def night() -> tuple[dict[str, bytes], list[str]]:
        size, told = 1 << 22, []
        disk = SmallDisk(tmp_path / "disk", size)
        for _ in range(8):
            try:
                told.append(run(disk.folder, *SMALL, fails=True))
            except AssertionError:  # it came to its end
                break
            size *= 2
            disk.resize(size)
        return made(disk.folder), told

    found, told = apart(night)
    assert found == undisturbed
    assert len(told) >= 3
    assert "the disk is full" in "".join(told)


def test_slides_that_may_not_be_read_for_a_night(tmp_path, undisturbed):
    run(tmp_path, *UNTIL, *(f"results/demo/data/made/chunk{chunk}.tsv" for chunk in range(2)))
    slides = sorted(path for path in (tmp_path / "results/demo/data/slides").iterdir() if path.is_file())
    assert slides

    def night() -> str:
        obey_permissions()
        for slide in slides:
            slide.chmod(0)
        require_obedience(slides[0])
        return run(tmp_path, *SMALL, fails=True)

    try:
        told = apart(night)
    finally:
        for slide in slides:
            slide.chmod(0o644)
    assert "permission is denied" in told
    assert not (tmp_path / "results/demo/slides/manifest-stain_texture.tsv").exists()
    run(tmp_path, *SMALL)
    assert made(tmp_path) == undisturbed


@pytest.mark.parametrize("what", ["slides/features/stain_texture/*.h5", "omics/omics.h5"])
def test_a_file_that_is_emptied_and_restored(tmp_path, undisturbed, what):
    run(tmp_path, *UNTIL, "results/demo/slides/manifest-stain_texture.tsv", "results/demo/omics/groups.tsv")
    file = min((tmp_path / "results/demo").glob(what))
    content = file.read_bytes()
    file.write_bytes(b"")
    told = run(tmp_path, *SMALL, fails=True)
    assert file.name in told
    assert not list((tmp_path / "results/demo/survq").glob("fold*/model.yaml"))
    file.write_bytes(content)
    run(tmp_path, *SMALL)
    assert made(tmp_path) == undisturbed
