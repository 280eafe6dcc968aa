from __future__ import annotations

import shutil
import time

import h5py
import numpy as np
import pytest

import pipeline
from pipeline.errors import InputError
from pipeline.slides.features import map_features, read_coords, read_features, read_made, write_coords, write_features
from pipeline.slides.provenance import SpoiltError
from pipeline.slides.sealing import is_as_sealed, seal

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(5, 3)).astype(np.float32)
COORDS = np.arange(10).reshape(5, 2) * 256
ORIGIN = {"settings": "abc", "slide_fingerprint": "def", "patch_size_level0": 256, "target_mpp": 0.5}


def test_features_survive_a_round_trip_as_contiguous_float16(tmp_path):
    path = tmp_path / "s.h5"
    write_features(path, FEATURES, COORDS, ORIGIN)
    found = read_features(path)
    assert found.features.dtype == np.float16
    assert np.array_equal(found.features, FEATURES.astype(np.float16))
    assert np.array_equal(found.coords, COORDS)
    assert dict(found.attributes) == {**ORIGIN, "slide_id": "s", "version": pipeline.__version__}
    with h5py.File(path) as file:
        assert file["features"].chunks is None
        assert file["coords"].dtype == np.int32
    assert [p.name for p in tmp_path.iterdir()] == ["s.h5"]


def test_the_same_content_gives_the_same_bytes(tmp_path):
    for name in "ab":
        write_features(tmp_path / name / "s.h5", FEATURES, COORDS, ORIGIN)
    assert (tmp_path / "a/s.h5").read_bytes() == (tmp_path / "b/s.h5").read_bytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf, 7e4])
def test_what_is_not_finite_as_float16_is_never_written(tmp_path, bad):
    features = FEATURES.copy()
    features[3, 1] = bad
    with pytest.raises(InputError, match="row 3: 1 of 5 patches have a feature that is not finite as float16"):
        write_features(tmp_path / "s.h5", features, COORDS, ORIGIN)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("batched_features", [False, True])
@pytest.mark.parametrize("batched_coords", [False, True])
def test_files_of_clam_and_trident_are_read(tmp_path, batched_features, batched_coords):
    path = tmp_path / "other.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=FEATURES[None] if batched_features else FEATURES, chunks=True)
        file.create_dataset("coords", data=COORDS[None] if batched_coords else COORDS).attrs["patch_size_level0"] = 512
        file["annots"] = np.zeros(3)
    found = read_features(path)
    assert np.array_equal(found.features, FEATURES)
    assert np.array_equal(found.coords, COORDS)
    assert found.attributes["patch_size_level0"] == 512


def test_features_without_coordinates_are_read(tmp_path):
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["features"] = FEATURES
    assert read_features(tmp_path / "f.h5").coords is None
    with pytest.raises(InputError, match="has no coordinates"):
        read_coords(tmp_path / "f.h5")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"coords": COORDS}, "has no features"),
        ({"features": FEATURES, "coords": COORDS[:4]}, "found '5 rows of features, 4 of coordinates'"),
        ({"features": FEATURES[:, 0]}, r"dataset '/features' has another shape; found '\[5\]', expected \[N, d\]"),
        ({"features": FEATURES[None, None]}, "has another shape"),
        ({"features": FEATURES, "coords": FEATURES}, r"expected \[N, 2\]"),
        ({"features": FEATURES * np.nan}, "5 of 5 patches have a feature that is not finite"),
    ],
)
def test_a_file_of_another_shape_is_named(tmp_path, arrays, message):
    path = tmp_path / "odd.h5"
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
    with pytest.raises(InputError, match=message) as error:
        read_features(path)
    assert "odd.h5" in str(error.value)


def test_only_a_whole_file_of_these_settings_and_this_slide_is_taken(tmp_path, caplog):
    path = tmp_path / "s.h5"
    assert read_made(path, **ORIGIN) is None
    write_coords(path, COORDS, ORIGIN)
    assert np.array_equal(read_made(path, **ORIGIN).coords, COORDS)
    assert read_made(path, **{**ORIGIN, "settings": "abd"}) is None
    assert read_made(path, **{**ORIGIN, "slide_fingerprint": "dee"}) is None
    assert not caplog.messages  # what is stale is made again without a word
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert read_made(path, **ORIGIN) is None
    assert caplog.messages == [f"{path} is damaged, or was written by another version: it is made again"]
    with pytest.raises(InputError, match="cannot be read as HDF5"):
        read_coords(path)


def test_features_of_a_finished_file_are_mapped(tmp_path):
    write_features(tmp_path / "s.h5", FEATURES, None, ORIGIN)
    made = read_made(tmp_path / "s.h5", **ORIGIN)
    assert isinstance(made.features, np.memmap)
    assert made.coords is None
    assert np.array_equal(made.features, FEATURES.astype(np.float16))


@pytest.mark.parametrize("kind", ["features", "coords"])
def test_no_bit_flips_without_a_word(tmp_path, kind):
    path, rng = tmp_path / "s.h5", np.random.default_rng(6)
    if kind == "features":
        write_features(path, FEATURES, COORDS, ORIGIN)
    else:
        write_coords(path, COORDS, ORIGIN)
    whole = path.read_bytes()
    readers = {"features": (read_features, map_features, read_coords), "coords": (read_coords,)}[kind]
    for bit in rng.choice(8 * len(whole), 300, replace=False):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        for read in readers:
            with pytest.raises(SpoiltError):
                read(path)
        assert read_made(path, **ORIGIN) is None


def test_damage_names_the_file_and_the_remedy(tmp_path):
    path = tmp_path / "s.h5"
    write_features(path, FEATURES, COORDS, ORIGIN)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"def", b"dee"))
    remedy = "Delete the file and run its stage again (`--forcerun patches` or `features`)."
    with pytest.raises(SpoiltError) as error:
        read_features(path)
    assert str(error.value) == f"{path}: is damaged: its content does not fit its checksum. {remedy}"
    path.write_bytes(whole[:-3])
    with pytest.raises(SpoiltError) as error:
        map_features(path)
    assert str(error.value) == f"{path}: has no checksum at its end: it was cut off, changed, or written by an older version. {remedy}"
    path.write_bytes(whole)
    with h5py.File(path, "r+") as file:
        file["coords"][...] += 64
    with pytest.raises(SpoiltError, match="has no checksum at its end"):  # HDF5 cuts off what is behind its own end
        read_coords(path)


def test_another_slides_file_under_this_name_is_refused(tmp_path, caplog):
    write_features(tmp_path / "a.h5", FEATURES, COORDS, ORIGIN)
    shutil.copy(tmp_path / "a.h5", tmp_path / "b.h5")
    for read in (read_features, map_features, read_coords):
        with pytest.raises(SpoiltError, match=r"b\.h5: holds another slide; found 'a', expected b\."):
            read(tmp_path / "b.h5")
    assert read_made(tmp_path / "b.h5", **ORIGIN) is None
    assert caplog.messages == [f"{tmp_path / 'b.h5'} holds the slide a: it is made again"]


def test_proving_a_seal_takes_a_second_per_gigabyte_at_most(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(bytes(range(256)) * (1 << 18))  # 64 MiB
    assert is_as_sealed(path) is None
    seal(path)
    start = time.process_time()
    assert is_as_sealed(path)
    assert time.process_time() - start < 64 / 1000 * 2  # here a quarter of a second per gigabyte; this machine may be busy
