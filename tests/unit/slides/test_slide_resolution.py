from __future__ import annotations

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.slides.resolution import PLAUSIBLE_MPP, POWER_TAGS, VENDOR_TAGS, resolve

MPP, MPP_Y, POWER = "openslide.mpp-x", "openslide.mpp-y", "openslide.objective-power"
OME = '<OME><Image><Pixels SizeX="9" PhysicalSizeX="{}" PhysicalSizeXUnit="{}" PhysicalSizeY="{}" PhysicalSizeYUnit="{}"/></Image></OME>'


def _tiff(per_unit: object, unit: str, description: str = "") -> dict[str, str]:
    both = {f"tiff.{axis}Resolution": str(per_unit) for axis in "XY"}
    return {**both, "tiff.ResolutionUnit": unit, "tiff.ImageDescription": description}


def test_the_table_beats_the_header_which_beats_the_objective():
    both = {MPP: "0.25", POWER: "40"}
    assert resolve(both, "s", 0.3, 0.5).source == "table"
    assert (resolve(both, "s", 0.3).mpp, resolve(both, "s").mpp, resolve({POWER: "20"}, "s").mpp) == (0.3, 0.25, 0.5)
    assert resolve(both, "s", float("nan"), 0.5).source == "header"
    assert resolve({POWER: "20"}, "s", None, 0.4).source == "objective-power"
    assert (resolve({}, "s", None, 0.4).mpp, resolve({}, "s", None, 0.4).source) == (0.4, "cohort")


def test_every_statement_is_believed_before_those_after_it():
    statements = [
        ({MPP: "0.21"}, 0.21, "header"),
        ({"aperio.MPP": "0.22"}, 0.22, "vendor"),
        (_tiff(40000, "centimeter"), 0.25, "tiff"),
        ({POWER: "40x"}, 0.25, "objective-power"),
    ]
    for at in range(len(statements)):
        properties = {key: value for facts, _, _ in reversed(statements[at:]) for key, value in facts.items()}
        found = resolve(properties, "s", None, 0.7)
        assert (found.mpp, found.source) == (pytest.approx(statements[at][1]), statements[at][2])


@pytest.mark.parametrize(
    "properties, mpp",
    [
        ({"aperio.MPP": "0,2520"}, 0.252),  # a German Windows
        ({"ventana.ScanRes": "0.465"}, 0.465),
        ({f"mirax.LAYER_0_LEVEL_0_SECTION.MICROMETER_PER_PIXEL_{axis}": "0.243" for axis in "XY"}, 0.243),
        ({"philips.DICOM_PIXEL_SPACING": '"0.000227273" "0.000226891"'}, 0.227082),
        ({"hamamatsu.XResolution": "43860", "hamamatsu.YResolution": "43860"}, 0.227998),  # per centimetre
        ({"hamamatsu.XResolution": "111404", "hamamatsu.YResolution": "111404", "hamamatsu.ResolutionUnit": "inch"}, 0.227999),
        (
            {
                **{"hamamatsu.PhysicalWidth": "22800000", "hamamatsu.PhysicalHeight": "11400000"},
                **{"openslide.level[0].width": "100000", "openslide.level[0].height": "50000"},
            },
            0.228,
        ),
        ({x: "0.00025" for tags in VENDOR_TAGS if tags[2] == 1e3 for x in tags[:2]}, 0.25),
        ({"tiff.ImageDescription": OME.format(0.5, "µm", 0.5, "µm")}, 0.5),
        ({"openslide.comment": OME.format(250, "nm", 0.00025, "mm")}, 0.25),
        ({"tiff.ImageDescription": '<OME><Pixels PhysicalSizeX="0.4"></OME>'}, 0.4),
    ],
)
def test_the_scanners_own_tags_are_read_in_their_units(properties, mpp):
    found = resolve(properties, "s")
    assert (found.mpp, found.source) == (pytest.approx(mpp, rel=1e-4), "vendor")


@pytest.mark.parametrize(
    "properties, mpp",
    [
        (_tiff(20000, "centimeter"), 0.5),
        (_tiff(50800, "inch"), 0.5),
        (_tiff(4, "none", "ImageJ=1.53\nimages=1\nunit=micron\n"), 0.25),
        (_tiff(2, "none", "ImageJ=1.53\nunit=\\u00B5m\nloop=false\n"), 0.5),
    ],
)
def test_tiff_tags_count_with_their_unit(properties, mpp):
    found = resolve(properties, "s", None, 0.9)
    assert (found.mpp, found.source) == (pytest.approx(mpp), "tiff")


@pytest.mark.parametrize(
    "properties",
    [
        *[_tiff(dpi, "inch") for dpi in (72, 96, 150, 300, 600)],
        _tiff(28.35, "centimeter"),  # 72 dpi
        _tiff(118, "centimeter"),  # 300 dpi
        _tiff(1, "none"),
        _tiff(40000, "none"),
        _tiff(0, "inch"),
        {MPP: "352.77777777777777", MPP_Y: "352.77777777777777"},  # what OpenSlide makes of 72 dpi
    ],
)
def test_the_resolution_of_a_print_is_no_statement(properties):
    assert resolve(properties, "s", None, 0.9).source == "cohort"
    assert resolve({**properties, POWER: "20"}, "s").source == "objective-power"


@pytest.mark.parametrize("tag", POWER_TAGS)
def test_the_objective_is_found_under_the_name_of_every_scanner(tag):
    found = resolve({tag: " 40x"}, "s")
    assert (found.mpp, found.source, found.objective_power) == (0.25, "objective-power", 40.0)


def test_the_nominal_magnification_of_ome_is_the_objective():
    assert resolve({"tiff.ImageDescription": '<OME><Objective NominalMagnification="20.0"/></OME>'}, "s").objective_power == 20


def test_a_slide_without_resolution_is_refused_with_the_remedy():
    with pytest.raises(InputError) as error:
        resolve({MPP: "nan", POWER: "unknown"}, "TCGA-1")
    assert str(error.value) == (
        "slide TCGA-1: no resolution in the file; expected openslide.mpp-x, a scanner's or TIFF tag, or openslide.objective-power. "
        "Add an mpp column for this slide in the slide table or `slides.mpp` in the cohort file."
    )


@pytest.mark.parametrize(
    "properties, found, hint",
    [
        ({MPP: "250"}, "250 µm per pixel (header)", " Perhaps it is in nanometres: that would be 0.25 µm."),
        ({MPP: "0.0005"}, "0.0005 µm per pixel (header)", " Perhaps it is in millimetres: that would be 0.5 µm."),
        ({"aperio.MPP": "2.5e-7"}, "2.5e-07 µm per pixel (vendor)", " Perhaps it is in metres: that would be 0.25 µm."),
        ({MPP: "40000"}, "40000 µm per pixel (header)", " Perhaps it is in pixels per centimetre: that would be 0.25 µm."),
        ({MPP: "40"}, "40 µm per pixel (header)", " Perhaps it is an objective power: that would be 0.25 µm."),
        ({POWER: "1"}, "10 µm per pixel (objective-power)", ""),
        ({MPP: "0.01"}, "0.01 µm per pixel (header)", ""),
        ({MPP: "0.25", MPP_Y: "250"}, "250 µm per pixel (header)", " Perhaps it is in nanometres: that would be 0.25 µm."),
    ],
)
def test_an_implausible_resolution_of_the_file_is_refused_but_a_person_is_believed(properties, found, hint):
    with pytest.raises(InputError) as error:
        resolve(properties, "s", None, 0.5)
    assert str(error.value) == (
        f"slide s: implausible resolution in the file; found '{found}', expected 0.05 to 4. "
        f"Add an mpp column with the right value for this slide in the slide table.{hint}"
    )
    assert resolve(properties, "s", 5.0).mpp == 5.0


@pytest.mark.parametrize("mpp", [-0.5, 0.0, math.inf])
def test_a_person_is_not_believed_what_cannot_be(mpp):
    with pytest.raises(InputError, match="resolution is not positive"):
        resolve({}, "s", mpp)
    with pytest.raises(InputError, match="resolution is not positive"):
        resolve({}, "s", None, mpp)


def test_uneven_pixels_give_the_geometric_mean_a_warning_or_a_refusal(caplog):
    assert resolve({MPP: "0.2500", MPP_Y: "0.2501"}, "s").mpp == pytest.approx(0.25005)
    assert not caplog.records
    assert resolve({MPP: "0.25", MPP_Y: "0.28"}, "s").mpp == pytest.approx(math.sqrt(0.07))
    assert caplog.messages == ["slide s: 0.25 × 0.28 µm per pixel; the geometric mean 0.2646 is used"]
    with pytest.raises(InputError) as error:
        resolve({MPP: "0.25", MPP_Y: "0.5"}, "s")
    assert str(error.value) == (
        "slide s: the pixels are not square; found '0.25 × 0.5 µm per pixel (header)', expected at most 20% apart. "
        "Add an mpp column for this slide in the slide table if one figure is wrong; else resample the slide."
    )


def test_a_resolution_that_does_not_go_with_the_objective_is_warned_of(caplog):
    assert resolve({MPP: "0.25", POWER: "10"}, "s").mpp == 0.25
    assert caplog.messages == ["slide s: 0.25 µm per pixel does not go with its 10x objective; the former is used"]


KEYS = [MPP, MPP_Y, POWER, "aperio.MPP", "philips.DICOM_PIXEL_SPACING", "hamamatsu.XResolution", "hamamatsu.PhysicalWidth"]
KEYS += ["hamamatsu.PhysicalHeight", "hamamatsu.ResolutionUnit", "openslide.level[0].width", "openslide.level[0].height"]
KEYS += ["tiff.XResolution", "tiff.YResolution", "tiff.ResolutionUnit", "tiff.ImageDescription"]
NUMBERS = st.floats(min_value=1e-320, max_value=1e308).map(repr) | st.sampled_from(["0.25", "0,25", "1e-400", "1e400", "250", "0.0005"])
WORDS = st.text(max_size=12) | st.sampled_from(["inch", "centimeter", "none", "٣", "²", "NaN", "inf", '"1e308" "1e308"', "unit=µm"])
DESCRIPTIONS = st.builds(OME.format, NUMBERS, WORDS, NUMBERS, WORDS)


@given(properties=st.dictionaries(st.sampled_from(KEYS), NUMBERS | WORDS | DESCRIPTIONS, max_size=6))
@example(properties={MPP: "1e-320", MPP_Y: "1e308"})
@example(properties={"tiff.XResolution": "1e-320", "tiff.ResolutionUnit": "inch"})
@example(properties={"tiff.XResolution": "1e308", "tiff.ResolutionUnit": "centimeter"})
@example(properties={POWER: "1e-320"})
@settings(max_examples=150, deadline=None)
def test_whatever_the_file_says_the_answer_is_plausible_or_a_refusal(properties):
    try:
        found = resolve(properties, "s")
    except InputError:
        return
    assert PLAUSIBLE_MPP[0] <= found.mpp <= PLAUSIBLE_MPP[1]
    assert found.source in ("header", "vendor", "tiff", "objective-power")
