from __future__ import annotations

import h5py
import numpy as np
import pytest

import pipeline
from pipeline.errors import InputError
from pipeline.slides.features import is_valid, read_coords, read_features, write_coords, write_features

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
    assert dict(found.attributes) == {**ORIGIN, "version": pipeline.__version__}
    with h5py.File(path) as file:
        assert file["features"].chunks is None
        assert file["coords"].dtype == np.int32
    assert [p.name for p in tmp_path.iterdir()] == ["s.h5"]


def test_the_same_content_gives_the_same_bytes(tmp_path):
    for name in "ab":
        write_features(tmp_path / name, FEATURES, COORDS, ORIGIN)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


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


def test_only_a_whole_file_of_these_settings_and_this_slide_is_valid(tmp_path):
    path = tmp_path / "s.h5"
    assert not is_valid(path, "abc", "def")
    write_coords(path, COORDS, ORIGIN)
    assert is_valid(path, "abc", "def")
    assert not is_valid(path, "abd", "def")
    assert not is_valid(path, "abc", "dee")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert not is_valid(path, "abc", "def")
    with pytest.raises(InputError, match="cannot be read as HDF5"):
        read_coords(path)
