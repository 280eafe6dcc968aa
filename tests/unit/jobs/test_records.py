"""Outputs without a record of Snakemake's are older than everything, unless there are no records at all."""

from base64 import urlsafe_b64encode

from pipeline.jobs.records import TIME_OF_FOLDER, expire, is_recorded


def record(records, output):
    records.mkdir(exist_ok=True)
    (records / urlsafe_b64encode(str(output).encode()).decode()).write_text("{}")


def test_what_has_no_record_expires_and_what_has_one_does_not(tmp_path):
    ours, theirs, folder, absent = (tmp_path / name for name in ("ours.tsv", "theirs.tsv", "chunk0", "absent.tsv"))
    ours.write_text(""), theirs.write_text(""), folder.mkdir(), (folder / TIME_OF_FOLDER).write_text("")
    records = tmp_path / "records"
    record(records, ours)
    assert is_recorded(ours, records)
    assert not is_recorded(theirs, records)
    assert expire([ours, theirs, folder, absent], records) == [theirs, folder]
    assert expire([ours, theirs, folder, absent], records) == []
    assert theirs.stat().st_mtime == (folder / TIME_OF_FOLDER).stat().st_mtime == 0 < ours.stat().st_mtime


def test_the_time_of_a_folder_says_nothing(tmp_path):
    (tmp_path / "chunk0").mkdir()
    (tmp_path / "chunk0" / TIME_OF_FOLDER).write_text("")
    record(tmp_path / "records", tmp_path / "chunk0")
    assert expire([tmp_path / "chunk0"], tmp_path / "records") == []
    assert (tmp_path / "chunk0" / TIME_OF_FOLDER).stat().st_mtime == 0


def test_results_without_any_record_are_left_alone(tmp_path):
    (tmp_path / "a.tsv").write_text("")
    assert expire([tmp_path / "a.tsv"], tmp_path / "records") == []
    (tmp_path / "records").mkdir()
    assert expire([tmp_path / "a.tsv"], tmp_path / "records") == []
