from __future__ import annotations

import re

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cohort.bags import BagRows, gather_bags, import_bags, read_bags, read_rows, write_bags
from pipeline.cohort.loader import BagStore, CohortData
from pipeline.errors import InputError

RNG = np.random.default_rng(0)
IDS = np.array(["007", "a-1", "a-1", "007", "b.2", "007"])
ARRAYS = {
    "features": RNG.normal(size=(6, 3)).astype(np.float32),
    "patient_id": IDS,
    "marker": np.array(["HE", "CD3", "HE", "CD3", "HE", "Ki-67 µ"]),
    "tile": np.array([0, 1, 0, 0, 0, 1], np.int8),
}


def npz(path, **changes):
    np.savez(path, **{**ARRAYS, **changes})
    return path


def h5(path, **changes):
    with h5py.File(path, "w") as file:
        for name, values in {**ARRAYS, **changes}.items():
            file[name] = values.astype(h5py.string_dtype()) if values.dtype.kind == "U" else values
    return path


def imported(source, **names):
    output = source.with_name(source.name + ".bags.h5")
    import_bags(source, output, **names)
    return output


def test_every_patient_gets_his_own_rows(tmp_path):
    bags = read_bags(imported(npz(tmp_path / "tma.npz")))
    assert list(bags) == ["007", "a-1", "b.2"]
    for patient, bag in bags.items():
        rows = ARRAYS["features"][patient == IDS]
        assert sorted(map(tuple, bag)) == sorted(map(tuple, rows))


def test_columns_stay_with_their_rows(tmp_path):
    rows = read_rows(imported(npz(tmp_path / "tma.npz")))
    assert set(rows.columns) == {"marker", "tile"}
    for features, patient, marker, tile in zip(rows.features, rows.patients, rows.columns["marker"], rows.columns["tile"], strict=True):
        at = int(np.flatnonzero((ARRAYS["features"] == features).all(axis=1))[0])
        assert (patient, marker, tile) == (IDS[at], ARRAYS["marker"][at], ARRAYS["tile"][at])


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(6)), st.sampled_from([("marker", "tile"), ("tile",), ()]))
def test_the_order_of_the_rows_changes_no_byte(tmp_path_factory, order, kept):
    folder = tmp_path_factory.mktemp("order")
    arrays = {name: ARRAYS[name] for name in ("features", "patient_id", *kept)}
    np.savez(folder / "given.npz", **arrays)
    np.savez(folder / "shuffled.npz", **{name: values[list(order)] for name, values in arrays.items()})
    assert imported(folder / "given.npz").read_bytes() == imported(folder / "shuffled.npz").read_bytes()


def test_npz_and_hdf5_give_the_same_bytes(tmp_path):
    assert imported(npz(tmp_path / "a.npz")).read_bytes() == imported(h5(tmp_path / "a.h5")).read_bytes()


def test_a_file_of_ours_can_be_imported_again(tmp_path):
    once = imported(npz(tmp_path / "a.npz"))
    assert imported(once).read_bytes() == once.read_bytes()


def test_float16_stays_and_everything_else_becomes_float32(tmp_path):
    for dtype, expected in ((np.float16, np.float16), (np.float64, np.float32), (np.uint8, np.float32)):
        source = npz(tmp_path / "x.npz", features=np.arange(18).reshape(6, 3).astype(dtype))
        assert read_rows(imported(source)).features.dtype == expected


def test_arrays_of_another_length_are_left_out_and_named(tmp_path, caplog):
    with caplog.at_level("INFO"):
        rows = read_rows(imported(npz(tmp_path / "x.npz", names=np.array(["f1", "f2", "f3"]), coords=np.zeros((6, 2)))))
    assert set(rows.columns) == {"marker", "tile"}
    assert "left out: coords, names" in caplog.text


def test_the_arrays_may_have_other_names(tmp_path):
    np.savez(tmp_path / "x.npz", embedding=ARRAYS["features"], case=IDS)
    assert len(read_bags(imported(tmp_path / "x.npz", features="embedding", patient_id="case"))) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": np.zeros(6)}, "the features have another shape or type; found '[6] of float64', expected numbers [N, d]."),
        ({"features": np.zeros((6, 0))}, "the features have another shape or type; found '[6, 0] of float64'"),
        ({"features": np.array([["x"]] * 6)}, "the features have another shape or type; found '[6, 1] of <U1'"),
        ({"features": np.full((6, 2), np.nan)}, "row 0, column 'features': 6 of 6 rows have a feature that is not finite"),
        ({"features": np.full((6, 2), 1e300)}, "row 0, column 'features': 6 of 6 rows have a feature that is not finite"),
        (
            {"patient_id": np.arange(6)},
            "column 'patient_id': the patient ids are no text; found 'int64', expected text. Store the ids as text",
        ),
        ({"patient_id": IDS[:5]}, "column 'patient_id': not one patient id a row; found '[5]', expected [6]."),
        ({"patient_id": np.array(["a", "a", "../b", "a", "a", "a"])}, "row 2, column 'patient_id': not a usable patient id; found '../b'"),
        ({"patient_id": np.array(["a", "", "b", "a", "a", "a"])}, "row 1, column 'patient_id': not a usable patient id"),
    ],
)
def test_unusable_arrays_are_refused(tmp_path, changes, message):
    for source in (npz(tmp_path / "x.npz", **changes), h5(tmp_path / "x.h5", **changes)):
        with pytest.raises(InputError) as error:
            imported(source)
        assert str(error.value).startswith(str(source))
        assert message.replace("<U1", "<U1" if source.suffix == ".npz" else "object") in str(error.value)


def test_a_lacking_array_is_named_with_the_nearest(tmp_path):
    np.savez(tmp_path / "x.npz", feature=ARRAYS["features"], patient_id=IDS)
    with pytest.raises(InputError, match=re.escape("lacks the array 'features'; found 'feature, patient_id'")) as error:
        imported(tmp_path / "x.npz")
    assert error.value.remedy == "Did you mean 'feature'?"


def test_pickled_objects_are_not_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").touch, ())

    np.savez(tmp_path / "x.npz", features=ARRAYS["features"], patient_id=IDS, other=np.array([Trap()], dtype=object))
    with pytest.raises(InputError, match="pickled objects are not loaded"):
        imported(tmp_path / "x.npz")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("make", [npz, h5])
def test_a_file_that_is_cut_off_is_refused(tmp_path, make):
    source = make(tmp_path / ("x.npz" if make is npz else "x.h5"))
    source.write_bytes(source.read_bytes()[:-200])
    with pytest.raises(InputError, match="cannot be read"):
        imported(source)


def test_absent_files_and_other_formats_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file of instances"):
        imported(tmp_path / "x.npz")
    (tmp_path / "x.csv").write_text("a,b\n")
    with pytest.raises(InputError, match=re.escape("not a format of instances; found '.csv', expected .npz, .h5 or .hdf5.")):
        imported(tmp_path / "x.csv")


def test_bags_are_mapped_from_disk(tmp_path):
    path = imported(npz(tmp_path / "x.npz"))
    bag = read_bags(path)["a-1"]
    assert isinstance(bag, np.memmap)
    assert not bag.flags.writeable


@pytest.mark.parametrize("damage", ["no hdf5", "foreign", "unsorted"])
def test_what_is_no_file_of_bags_is_refused(tmp_path, damage):
    path = tmp_path / "x.h5"
    if damage == "no hdf5":
        path.write_text("text")
    elif damage == "foreign":
        h5py.File(path, "w").close()
    else:
        h5(path)
    with pytest.raises(InputError, match="Delete the file, so that it is made again"):
        read_bags(path)


def test_gathered_files_are_the_file_of_all_rows(tmp_path):
    order = np.argsort(IDS, kind="stable")
    rows = BagRows(ARRAYS["features"][order], IDS[order], {"tile": ARRAYS["tile"][order]}, {"encoder": "x"})
    write_bags(tmp_path / "all.h5", rows)
    files = []
    for number, patient in enumerate(np.unique(IDS)):
        at = rows.patients == patient
        files.append(tmp_path / f"{patient}.h5")
        write_bags(
            files[-1], BagRows(rows.features[at], rows.patients[at], {"tile": rows.columns["tile"][at]}, {"encoder": "x", "inputs": number})
        )
    gather_bags(files, tmp_path / "gathered.h5")
    assert (tmp_path / "gathered.h5").read_bytes() == (tmp_path / "all.h5").read_bytes()
    assert "inputs" not in read_rows(tmp_path / "gathered.h5").attributes


def test_bags_of_different_widths_are_not_gathered(tmp_path):
    for name, width in (("a", 3), ("b", 4)):
        write_bags(tmp_path / f"{name}.h5", BagRows(np.ones((2, width), np.float32), np.array([name, name])))
    with pytest.raises(InputError, match="has another width or other columns"):
        gather_bags([tmp_path / "a.h5", tmp_path / "b.h5"], tmp_path / "both.h5")
    assert not (tmp_path / "both.h5").exists()


def test_the_loader_takes_a_file_of_bags(tmp_path):
    store = BagStore.of_bags(read_bags(imported(npz(tmp_path / "x.npz"))))
    batch = CohortData(bags={"tma": store}).batch(["a-1", "nobody", "007"])
    assert batch.bags["tma"].features.shape == (3, 3, 3)
    assert batch.bags["tma"].mask.sum(1).tolist() == [2, 0, 3]
    assert batch.present["tma"].tolist() == [True, False, True]


def test_features_that_do_not_fit_into_memory_stay_on_disk(tmp_path):
    path = imported(npz(tmp_path / "x.npz"))
    held, mapped = BagStore.of_bags(read_bags(path)), BagStore.of_bags(read_bags(path), resident=1)
    assert isinstance(mapped.slides["007"][0], np.memmap)
    assert not isinstance(held.slides["007"][0], np.memmap)
    np.testing.assert_array_equal(mapped.bag("007"), held.bag("007"))


@pytest.mark.realdata
def test_the_tissue_arrays_of_hancock_become_bags(realdata, tmp_path):
    source = realdata / "hancock" / "tma_dtr_bags.npz"
    import_bags(source, tmp_path / "tma.h5")
    bags = read_bags(tmp_path / "tma.h5")
    assert len(bags) == 760
    assert {len(bag) for bag in bags.values()} == {14, 15, 16}
    assert sum(len(bag) == 16 for bag in bags.values()) == 742
    with np.load(source) as file:
        features, patients = file["features"], file["patient_id"]
    for patient in ("001", "500", "763"):
        np.testing.assert_array_equal(np.sort(bags[patient], axis=0), np.sort(features[patients == patient], axis=0))
    with np.load(realdata / "hancock" / "tma_dtr" / "tma_tile_dtr_256_HE.npz") as originals:
        rows = read_rows(tmp_path / "tma.h5")
        stained = rows.features[(rows.patients == "001") & (rows.columns["marker"] == "HE")]
        np.testing.assert_array_equal(np.sort(stained, axis=0), np.sort(originals["001"].reshape(2, 256).astype(np.float32), axis=0))
