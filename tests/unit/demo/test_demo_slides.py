import errno

import numpy as np
import openslide
import pytest

from pipeline.demo import slides as module
from pipeline.demo.histology import Look, draw_section
from pipeline.demo.nuclei import draw_stamps
from pipeline.demo.plan import make_plan
from pipeline.demo.slides import write_slides
from pipeline.errors import InputError
from pipeline.files import sha256
from pipeline.machine import MachineError

PLAN = {slide.slide_id: slide for slide in make_plan().slides}
SOUND = next(name for name, slide in PLAN.items() if not slide.defect)
TRUNCATED = next(name for name, slide in PLAN.items() if slide.defect == "truncated")
UNSCALED = next(name for name, slide in PLAN.items() if slide.defect == "no scale")
SMALL = (1200, 1500)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    names = sorted([SOUND, TRUNCATED, UNSCALED])
    paths = write_slides(folder, slides=names)
    return folder, dict(zip(names, paths, strict=True))


def small_drawing(m, seed, sides=SMALL):
    return draw_section(m, seed, SMALL)


def densities(image):
    """Natural-log absorbance [H, W, 3] and the tissue mask without ink: ink absorbs red, or blue, as much as green."""
    absorbance = -np.log((image.astype(float) + 1) / 246)
    red, green, blue = np.moveaxis(absorbance, -1, 0)
    return absorbance, (absorbance.mean(-1) > 0.12) & (red < 1.05 * green) & (blue < 0.75 * green)


def nuclear_share(image):
    absorbance, tissue = densities(image)
    return float((absorbance[..., 0][tissue] > 0.5).mean())


def test_openslide_reads_an_aperio_scan_of_half_a_micrometre(made):
    with openslide.OpenSlide(made[1][SOUND]) as slide:
        assert slide.properties["openslide.vendor"] == "aperio"
        assert float(slide.properties["openslide.mpp-x"]) == float(slide.properties["openslide.mpp-y"]) == 0.5
        assert slide.properties["openslide.objective-power"] == "20"
        assert all(3000 <= side <= 4500 for side in slide.dimensions)
        assert slide.level_downsamples == pytest.approx((1, 4, 16), rel=0.01)
        assert "thumbnail" in slide.associated_images


def test_the_pixels_of_all_levels_are_those_drawn(made):
    drawn = draw_section(PLAN[SOUND].morphology, PLAN[SOUND].seed).astype(float)
    with openslide.OpenSlide(made[1][SOUND]) as slide:
        assert slide.dimensions == drawn.shape[1::-1]
        width, height = slide.dimensions
        got = np.asarray(slide.read_region((width // 2, height // 4), 0, (512, 512)).convert("RGB"))
        want = drawn[height // 4 :, width // 2 :][:512, :512]
        assert np.abs(got - want).mean() < 6  # JPEG of quality 75
        for level in (1, 2):
            whole = np.asarray(slide.read_region((0, 0), level, slide.level_dimensions[level]).convert("RGB"))
            assert whole.mean((0, 1)) == pytest.approx(drawn.mean((0, 1)), abs=1.5)


def test_truncated_slide_cannot_be_read(made):
    with pytest.raises(openslide.OpenSlideError), openslide.OpenSlide(made[1][TRUNCATED]) as slide:
        slide.read_region((0, 0), 0, slide.dimensions)


def test_truncated_slide_belongs_to_a_patient_who_has_another():
    assert [name for name in PLAN if PLAN[name].patient_id == PLAN[TRUNCATED].patient_id] != [TRUNCATED]


def test_unscaled_slide_states_neither_resolution_nor_power(made):
    with openslide.OpenSlide(made[1][UNSCALED]) as slide:
        assert slide.properties["openslide.vendor"] == "aperio"
        assert "openslide.mpp-x" not in slide.properties
        assert "openslide.objective-power" not in slide.properties
        assert not {"aperio.MPP", "aperio.AppMag"} & set(slide.properties)


def test_slides_are_small_enough_for_a_laptop(made):
    assert made[1][SOUND].stat().st_size < 3_000_000


def test_the_same_plan_gives_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "draw_section", small_drawing)
    first, second = (write_slides(tmp_path / folder, slides=[SOUND, TRUNCATED]) for folder in "ab")
    assert list(map(sha256, first)) == list(map(sha256, second))
    assert sha256(first[0]) != sha256(first[1])


def test_finished_slides_are_left_alone_and_those_of_another_seed_made_again(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(module, "draw_section", lambda m, seed: drawn.append(seed) or small_drawing(m, seed))
    other = next(slide for slide in make_plan(seed=2).slides if slide.slide_id in PLAN and not PLAN[slide.slide_id].defect)
    both = [other.slide_id, TRUNCATED]
    write_slides(tmp_path, slides=both)
    write_slides(tmp_path, slides=both)
    assert sorted(drawn) == sorted(PLAN[name].seed for name in both)
    write_slides(tmp_path, slides=[other.slide_id], seed=2)
    assert drawn[2:] == [other.seed]


def test_a_write_that_fails_leaves_no_file(tmp_path, monkeypatch):
    def full_disk(path, image, slide):
        path.write_bytes(b"II*\0 half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "draw_section", small_drawing)
    monkeypatch.setattr(module, "_write_aperio", full_disk)
    with pytest.raises(MachineError, match=rf"{SOUND}\.svs: the disk is full"):
        write_slides(tmp_path, slides=[SOUND])
    assert not list((tmp_path / "slides").iterdir())


def test_an_unknown_slide_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"slide DEMO-999-A: the synthetic cohort has no such slide\."):
        write_slides(tmp_path, slides=["DEMO-999-A"])


def test_a_morphology_measure_follows_m_closely():
    m = np.random.default_rng(3).permutation(np.linspace(-2, 2, 12))
    share = [nuclear_share(draw_section(value, seed, SMALL)) for seed, value in enumerate(m)]
    assert np.corrcoef(m, share)[0, 1] > 0.95


def test_m_changes_every_trait_of_the_tumour_in_one_direction():
    low, high = Look.of(-1.5), Look.of(1.5)
    assert low.share < high.share
    assert low.radius < high.radius
    assert low.darkness < high.darkness
    assert low.spacing > high.spacing
    assert Look.of(9.0) == Look.of(2.6)


@pytest.mark.parametrize("seed", range(4))
def test_sections_have_glass_all_round_and_tissue_with_pink_and_purple(seed):
    image = draw_section(0.0, seed, SMALL)
    edge = np.concatenate([image[:8].reshape(-1, 3), image[-8:].reshape(-1, 3), image[:, :8].reshape(-1, 3), image[:, -8:].reshape(-1, 3)])
    assert np.median(edge, axis=0) == pytest.approx((244, 242, 245), abs=2)
    _, tissue = densities(image)
    assert 0.1 < tissue.mean() < 0.5
    red, green, blue = image[tissue].mean(0)
    assert red > blue > green


def test_nuclei_have_the_radius_and_darkness_asked_for():
    stamps = draw_stamps(np.random.default_rng(0), 7.0, 1.2, 1.3, np.linspace(0, 3, 64))
    areas = (stamps > 40).sum((1, 2))
    assert np.sqrt(areas.mean() / np.pi) == pytest.approx(7.0, rel=0.08)
    assert stamps[stamps > 40].mean() / 100 == pytest.approx(1.2, rel=0.2)
    assert not stamps[:, 0].any()
    assert not stamps[:, :, -1].any()
