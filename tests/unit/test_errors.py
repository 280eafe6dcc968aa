import pickle

import pytest

from pipeline.errors import InputError, nearest


def test_the_message_names_file_row_column_found_expected_and_remedy_in_that_order():
    error = InputError("time is negative", file="f.tsv", row=3, column="time", found=-1, expected="0 or more", remedy="Correct it.")
    assert str(error) == "f.tsv, row 3, column 'time': time is negative; found '-1', expected 0 or more. Correct it."
    assert error.reason == "f.tsv, row 3, column 'time': time is negative; found '-1', expected 0 or more."


def test_parts_that_are_not_given_leave_no_trace():
    assert str(InputError("nothing is left")) == "nothing is left."
    assert str(InputError("cannot be opened", slide="S1")) == "slide S1: cannot be opened."


def test_zero_and_the_empty_string_count_as_found():
    assert "found '0'" in str(InputError("bad", found=0))
    assert "found ''" in str(InputError("bad", found=""))


def test_the_reason_stays_on_one_line():
    assert InputError("broken\n  header\tat byte 3").reason == "broken header at byte 3."


def test_an_error_crosses_a_process_boundary_whole():
    error = InputError("bad", file="f.tsv", row=2, column="c", slide="s", found=1, expected="2", remedy="Mend it.")
    error.add_note("seen in worker 3")
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error)
    assert (copy.file, copy.row, copy.remedy) == ("f.tsv", 2, "Mend it.")


@pytest.mark.parametrize(("word", "hint"), [("os_month", "Did you mean 'os_months'?"), ("zzz", "")])
def test_the_nearest_known_word_is_offered_only_when_near(word, hint):
    assert nearest(word, ["os_months", "event"]) == hint
