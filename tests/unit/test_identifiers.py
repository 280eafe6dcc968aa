import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.identifiers import check_id


@pytest.mark.parametrize("value", ["TCGA-2F-A9KO", "001", "TCGA-2F-A9KO-01Z-00-DX1.195576CF-B739", "a_b+c"])
def test_usual_ids_pass_unchanged(value):
    assert check_id(value, "patient") == value


@pytest.mark.parametrize(
    "value", ["../x", "a/../b", "a/b", "a\\b", "..", ".", ".hidden", "-rf", "", " P1", "P1\n", "P 1", "P1;P2", "a..b", "é"]
)
def test_ids_that_could_leave_the_folder_or_break_a_table_are_refused(value):
    with pytest.raises(InputError, match="not a usable patient id"):
        check_id(value, "patient")


def test_the_message_says_where():
    with pytest.raises(InputError) as error:
        check_id("../x", "patient", file="f.tsv", row=3, column="id")
    assert str(error.value) == (
        "f.tsv, row 3, column 'id': not a usable patient id; found '../x', expected letters, digits, '.', '_', '+', '-', starting with a "
        "letter or digit, without '..'. Rename the patient in every table; ids become file names and are never followed out of the "
        "results folder."
    )


@given(st.text(max_size=12))
def test_an_id_that_passes_is_one_plain_file_name(tmp_path_factory, value):
    try:
        check_id(value, "slide")
    except InputError:
        return
    folder = tmp_path_factory.getbasetemp()
    assert (folder / f"{value}.h5").resolve().parent == folder.resolve()
