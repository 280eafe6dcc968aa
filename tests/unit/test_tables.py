import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import tables
from pipeline.errors import InputError


def written(folder: Path, text: str, name: str = "t.tsv") -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def test_reads_text_and_marks_every_spelling_of_missing(tmp_path):
    path = written(tmp_path, "id\ta\n001\t1.50\n" + "".join(f"P{i}\t{cell}\n" for i, cell in enumerate(tables.MISSING)))
    table = tables.read_table(path, patient_id="id")
    assert table["patient_id"].iloc[0] == "001"
    assert table["a"].iloc[0] == "1.50"
    assert table["a"].iloc[1:].isna().all()


@pytest.mark.parametrize("name", ["t.tsv", "t.tsv.gz", "t.csv"])
def test_reads_plain_gzipped_and_comma_separated_files_alike(tmp_path, name):
    mark = "," if name.endswith("csv") else "\t"
    path = written(tmp_path, f"\ufeffpatient_id{mark}a\r\nP1{mark}2\r\n\r\n", name)
    assert tables.read_table(path, patient_id="patient_id").to_dict("list") == {"patient_id": ["P1"], "a": ["2"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "t.tsv: is empty; expected a UTF-8, tab-separated table with a header."),
        ("a\tb\nP\t1\t2\n", "t.tsv, row 2: row has another length than the header; found '3 cells', expected 2 cells."),
        ("a\tb\tc\nP\t1\t2\nQ\t1\n", "t.tsv, row 3: row has another length than the header; found '2 cells', expected 3 cells."),
        ("a\tb\tb\nP\t1\t2\n", "t.tsv, row 1, column 'b': column appears twice; expected each column once."),
        ("a\tb\nP\t1\n\nQ\t2\n", "t.tsv, row 3: line is empty; expected 2 cells."),
        ('a\tb\n"P\t1\n', "t.tsv: cannot be read as TSV (unexpected end of data);"),
        (
            "a,b\nP,1\n",
            "t.tsv: lacks the column 'a'; found 'a,b', expected 'a'. The table seems to be separated by commas: save it as TSV",
        ),
        ("a;b\nP;1,5\n", "t.tsv: lacks the column 'a'; found 'a;b', expected 'a'. The table seems to be separated by semicolons: save"),
        ("patient\tb\nP\t1\n", "t.tsv: lacks the column 'a'; found 'patient, b', expected 'a'."),
    ],
)
def test_a_broken_table_is_named_with_its_row(tmp_path, text, message):
    path = written(tmp_path, text)
    with pytest.raises(InputError) as error:
        tables.read_table(path, ["a"])
    assert str(error.value).replace(f"{tmp_path}/", "").startswith(message)


def test_a_gzip_file_that_was_cut_short_is_an_input_error(tmp_path):
    path = tmp_path / "t.tsv.gz"
    path.write_bytes(gzip.compress(b"a\tb\n" + b"P\t1\n" * 5000)[:-20])
    with pytest.raises(InputError, match="cannot be read as text"):
        tables.read_table(path)
    path.write_bytes(b"not gzip at all")
    with pytest.raises(InputError, match="cannot be read as text"):
        tables.read_table(path)


def test_an_absent_table_and_text_that_is_not_utf8_are_input_errors(tmp_path):
    with pytest.raises(InputError, match="no such table"):
        tables.read_table(tmp_path / "none.tsv")
    (tmp_path / "latin.tsv").write_bytes("a\nMünchen\n".encode("latin-1"))
    with pytest.raises(InputError, match="cannot be read as text"):
        tables.read_table(tmp_path / "latin.tsv")


def test_a_repeated_patient_is_named_with_both_rows(tmp_path):
    path = written(tmp_path, "id\ta\nP1\t1\nP2\t2\nP1\t3\n")
    with pytest.raises(InputError) as error:
        tables.read_table(path, patient_id="id")
    assert str(error.value) == (
        f"{path}, row 4, column 'id': patient appears twice (first in row 2); found 'P1', expected one row a patient. "
        "Keep one row; which one is right cannot be guessed."
    )


def test_an_empty_id_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"row 3, column 'id': not a usable patient id"):
        tables.read_table(written(tmp_path, "id\ta\nP1\t1\n\t2\n"), patient_id="id")


def test_numbers_are_the_same_by_both_readers(tmp_path):
    path = written(tmp_path, "patient_id\tx\ty\nP1\t1.5\t-3e2\nP2\tNA\t \nP3\t7\t8\n".replace(" ", ""))
    patients, names, values = tables.read_numbers(path, lambda header: header)
    slow = tables.numeric(tables.read_table(path), ["x", "y"], path)
    assert patients == ["P1", "P2", "P3"]
    assert names == ["x", "y"]
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, slow.to_numpy(np.float32))


@pytest.mark.parametrize("cell", ["abc", "inf", "-Infinity", "1e39", "1.5.", "1 2"])
def test_a_cell_that_is_not_a_number_is_named_with_row_and_column(tmp_path, cell):
    path = written(tmp_path, f"patient_id\tx\ty\nP1\t1\t2\nP2\t\t{cell}\n")
    expected = f"{path}, row 3, column 'y': cell is not a number; found {cell!r}, expected a finite number or an empty cell. Correct the"
    with pytest.raises(InputError) as error:
        tables.read_numbers(path, lambda header: header)
    assert str(error.value).startswith(expected)
    if cell != "1e39":  # fits float64
        with pytest.raises(InputError) as error:
            tables.numeric(tables.read_table(path), ["x", "y"], path)
        assert str(error.value).startswith(expected)


def test_an_empty_cell_is_refused_where_none_may_be(tmp_path):
    path = written(tmp_path, "x\ty\n1\t2\n\t3\n")
    with pytest.raises(InputError, match=r"row 3, column 'x': cell is not a number; found 'an empty cell', expected a finite number\."):
        tables.numeric(tables.read_table(path), "x", path, allow_missing=False)


cells = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8).filter(
    lambda s: s not in tables.MISSING
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=5))
def test_what_is_written_is_read_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("round") / "t.tsv"
    table = pd.DataFrame(rows, columns=["a", "b"])
    tables.write_table(table, path)
    pd.testing.assert_frame_equal(tables.read_table(path), table)


def test_quotes_tabs_and_missing_values_survive_and_the_bytes_are_the_same_twice(tmp_path):
    table = pd.DataFrame({"reason": ['say "no"', "a\tb", None], "n": [1, 2, 3], "x": [0.1, 1 / 3, np.nan]})
    for name in ("a.tsv", "b.tsv"):
        tables.write_table(table, tmp_path / name)
    assert (tmp_path / "a.tsv").read_bytes() == (tmp_path / "b.tsv").read_bytes()
    back = tables.read_table(tmp_path / "a.tsv")
    assert back["reason"].tolist()[:2] == ['say "no"', "a\tb"]
    assert back.isna().sum().to_dict() == {"reason": 1, "n": 0, "x": 1}
    assert back["x"].tolist()[1] == "0.3333333333"


def test_a_semicolon_table_named_csv_is_told_from_one_with_commas(tmp_path):
    path = written(tmp_path, "\ufeffpatient_id;age\r\nP1;62,8\r\n", "t.csv")
    with pytest.raises(InputError, match=r"lacks the column 'patient_id'; .*separated by semicolons: save it as TSV"):
        tables.read_table(path, patient_id="patient_id")


def test_a_table_of_genes_by_patients_is_told_that_a_row_is_a_patient(tmp_path):
    path = written(tmp_path, "gene\tA-1\tA-2\nTP53\t1\t2\n")
    with pytest.raises(InputError, match=r"lacks the column 'patient_id'; .* A table has one row a patient, and his id in this column"):
        tables.read_numbers(path, list)


@pytest.mark.parametrize(("encoding", "row", "found"), [("latin-1", 3, "byte 0xe4"), ("utf-16", 1, "UTF-16")])
@pytest.mark.parametrize("name", ["t.tsv", "t.tsv.gz"])
def test_text_in_another_encoding_is_named_with_its_row_and_utf8(tmp_path, name, encoding, row, found):
    content = "id\tsex\nP1\tweiblich\nP2\tmännlich\n".encode(encoding)
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    with pytest.raises(InputError) as error:
        tables.read_table(path)
    expected = f"cannot be read as text; found {found!r}, expected UTF-8 text, plain or gzip. Save it with the encoding UTF-8"
    assert str(error.value).startswith(f"{path}, row {row}: {expected}")


def test_a_decimal_comma_is_called_one_by_both_readers(tmp_path):
    path = written(tmp_path, "id\tage\nP1\t61.5\nP2\t62,8\n")
    message = (
        r"row 3, column 'age': cell is not a number; found '62,8', expected a finite number without a comma \(decimals have a point\) or"
    )
    with pytest.raises(InputError, match=message):
        tables.numeric(tables.read_table(path), "age", path)
    with pytest.raises(InputError, match=message):
        tables.read_numbers(path, list, patient_id="id")


@pytest.mark.parametrize("text", ["1_000", "١٢", "１２", "0x10", "1e400", "infinity", "12:30"])
def test_what_only_python_takes_for_a_number_is_none(tmp_path, text):
    path = written(tmp_path, f"id\tage\nP1\t61.5\nP2\t{text}\n")
    with pytest.raises(InputError, match=f"row 3, column 'age': cell is not a number; found '{text}'"):
        tables.numeric(tables.read_table(path), "age", path)
    with pytest.raises(InputError, match=f"row 3, column 'age': cell is not a number; found '{text}'"):
        tables.read_numbers(path, list, patient_id="id")


def test_a_folder_is_no_table(tmp_path):
    with pytest.raises(InputError, match="is no regular file; found 'a folder', expected a TSV file"):
        tables.read_table(tmp_path)
