from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from synthetic_slides import write_svs

from pipeline.slides.__main__ import main
from pipeline.slides.inspect import COLUMNS, inspect
from pipeline.slides.patches import PatchSettings
from pipeline.slides.provenance import fingerprint


def test_a_block_says_all_about_a_slide(square_slide, capsys):
    assert main(["inspect", str(square_slide)]) == 0
    assert capsys.readouterr().out == (
        f"{square_slide}\n"
        "  format       aperio\n"
        "  stored as    JPEG, 256x256\n"
        "  size         3072 x 2560 pixels = 1.5 x 1.3 mm\n"
        "  levels       3 (downsamples 1, 4, 16)\n"
        "  resolution   0.5 µm per pixel (header)\n"
        "  objective    20x\n"
        f"  fingerprint  {fingerprint(square_slide)}\n"
        "  reading      tiles directly: JPEG tiles of 256 x 256\n"
        "  tissue       found on level 2\n"
        "  patches      256 level-0 pixels a side, read from level 0; at most 120 fit\n"
    )


def test_a_row_a_slide_names_problem_and_remedy_and_the_exit_code_is_one(tmp_path, square_slide, capsys):
    broken = tmp_path / "broken.svs"
    broken.write_text("no slide")
    assert main(["inspect", "--tsv", str(square_slide), str(broken)]) == 1
    header, good, bad = (line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert header == COLUMNS
    good, bad = (dict(zip(header, cells, strict=True)) for cells in (good, bad))
    assert [good[name] for name in ("slide_id", "format", "compression", "tile", "width", "height", "downsamples")] == [
        *("square", "aperio", "JPEG", "256x256", "3072", "2560", "1.0,4.0,16.0".replace(".0", ""))
    ]
    assert [good[name] for name in ("mpp", "mpp_source", "objective_power", "tissue_level", "patch_level", "patch_side")] == [
        *("0.5", "header", "20.0", "2", "0", "256")
    ]
    assert (good["patches_at_most"], good["problem"], good["remedy"]) == ("120", "", "")
    assert bad["slide_id"] == "broken"
    assert bad["problem"] == f"{broken}: is no slide: it is text, beginning with 'no slide'."
    assert bad["remedy"] == "Name the slide instead; if this is its name, copy it again."


def test_the_options_stand_for_the_table_and_the_configuration(tmp_path, square_picture, capsys):
    path = write_svs(tmp_path / "s.svs", square_picture, mpp=None, power=None)
    assert main(["inspect", str(path)]) == 1
    assert "  PROBLEM      slide s: no resolution in the file; expected openslide.mpp-x" in capsys.readouterr().out
    assert main(["inspect", str(path), "--mpp", "0.25", "--target-mpp", "1", "--patch-size", "128"]) == 0
    out = capsys.readouterr().out
    assert "  resolution   0.25 µm per pixel (table)\n" in out
    assert "  tissue       found on level 2\n" in out
    assert "  patches      512 level-0 pixels a side, read from level 1; at most 30 fit\n" in out


def test_a_scan_too_coarse_and_a_picture_too_small_are_problems(tmp_path):
    path = tmp_path / "roi.png"
    Image.fromarray(np.zeros((200, 300, 3), np.uint8)).save(path)
    facts = inspect(path, mpp=2.0)
    assert facts["problem"] == "slide roi: the scan is coarser than the target; found '2 µm per pixel', expected at most 0.625."
    assert (facts["format"], facts["compression"], facts["tissue_level"]) == ("PNG", "PNG", 0)
    facts = inspect(path, PatchSettings(), mpp=0.5)
    assert facts["problem"] == ("slide roi: the slide is smaller than one patch; found '300 x 200 pixels', expected at least 256 x 256.")
    assert "problem" not in inspect(path, PatchSettings(patch_size=128), mpp=0.5)


@pytest.mark.parametrize("option", [["--target-mpp", "0"], ["--patch-size", "-3"], ["--target-mpp", "nan"]])
def test_settings_that_cannot_be_are_refused(square_slide, option, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["inspect", str(square_slide), *option])
    assert stop.value.code == 2
    assert f"argument {option[0]}: {option[1]} is not a positive number" in capsys.readouterr().err


def test_the_command_line_does_not_wait_for_torch(square_slide):
    code = (
        "import sys; from pipeline.slides.__main__ import main; "
        f"main(['inspect', {str(square_slide)!r}]); assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env={"PYTHONPATH": ":".join(p for p in sys.path if p)})
