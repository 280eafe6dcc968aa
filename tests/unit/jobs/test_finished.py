"""A fold counts as finished only with the proof of its key, and while its files are as they were."""

import pytest

from pipeline.errors import InputError
from pipeline.jobs.finished import (
    PROOF,
    Unit,
    drop_tables,
    fold_folders,
    fold_settings_digest,
    is_finished,
    parts,
    prove,
    units_of,
    write_folds,
)


@pytest.fixture
def fold(tmp_path):
    folder = tmp_path / "fold0"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / name).write_text(name)
    prove(folder, "key", "settings", ["a", "b"])
    return folder


def test_a_finished_fold_is_known_by_its_key(fold):
    assert is_finished(fold, "key")
    assert not is_finished(fold, "other")


@pytest.mark.parametrize(
    "proof", ["", "key: key", "[]", "key: key\nfiles: [a]", "key: key\nfiles: {c: 00}", "\tbroken: [", "key: key\nfiles: {a: 1}"]
)
def test_a_spoilt_proof_proves_nothing(fold, proof):
    (fold / PROOF).write_text(proof)
    assert not is_finished(fold, "key")


def test_a_file_that_changed_or_is_gone_is_made_again(fold):
    (fold / "b").write_text("B")
    assert not is_finished(fold, "key")
    (fold / "b").unlink()
    assert not is_finished(fold, "key")
    assert not is_finished(fold.with_name("fold1"), "key")


@pytest.mark.parametrize("count", [1, 5, 12])
@pytest.mark.parametrize("per_job", [None, 1, 2, 5, 99])
def test_the_jobs_share_all_folds(count, per_job):
    units = [unit for part in parts(count, per_job) for unit in units_of(part, 5, shuffled=True)]
    assert units == [Unit(n % 5, n // 5) for n in range(count)]
    assert parts(0, per_job) == []


def test_the_table_tells_of_every_change_and_leads_to_the_folders(tmp_path):
    units = [Unit(0), Unit(1)]
    for unit in units:
        unit.folder(tmp_path).mkdir()
        (unit.folder(tmp_path) / "a").write_text("a")
        prove(unit.folder(tmp_path), "key", "settings", ["a"])
    write_folds(units, tmp_path, tmp_path / "folds_0-1.tsv")
    before = (tmp_path / "folds_0-1.tsv").read_text()
    assert fold_folders([tmp_path / "folds_0-1.tsv"]) == [tmp_path / "fold0", tmp_path / "fold1"]
    prove(tmp_path / "fold1", "another", "settings", ["a"])
    write_folds(units, tmp_path, tmp_path / "folds_0-1.tsv")
    assert (tmp_path / "folds_0-1.tsv").read_text() != before


def test_a_table_whose_fold_was_trained_otherwise_since_is_refused(tmp_path):
    """A study's control of two repetitions, then one with other settings of the first alone: the first table tells of another fold."""
    for unit in (units := [Unit(0, 0), Unit(0, 1)]):
        unit.folder(tmp_path).mkdir(parents=True)
        prove(unit.folder(tmp_path), "key", "settings", [])
    write_folds(units, tmp_path, tmp_path / "shuffled_0-1.tsv")
    prove(tmp_path / "shuffled0/fold0", "another", "settings", [])
    with pytest.raises(InputError, match=r"shuffled_0-1.tsv: shuffled0/fold0 is not the fold that was listed.*Delete .*shuffled_0-1.tsv"):
        fold_folders([tmp_path / "shuffled_0-1.tsv"])
    (tmp_path / "shuffled0/fold0" / PROOF).unlink()
    with pytest.raises(InputError, match="is not the fold that was listed"):
        fold_folders([tmp_path / "shuffled_0-1.tsv"])


def test_a_fold_of_other_settings_and_a_file_that_changed_since_are_refused(tmp_path):
    folder = Unit(0).folder(tmp_path)
    folder.mkdir()
    (folder / "predictions.tsv").write_text("risk\n1\n")
    prove(folder, "key", "of 300 epochs", ["predictions.tsv"])
    write_folds([Unit(0)], tmp_path, tmp_path / "folds_0.tsv")
    assert fold_folders([tmp_path / "folds_0.tsv"], "of 300 epochs") == [folder]
    with pytest.raises(InputError, match=r"folds_0.tsv: fold0 was trained with other settings than those that are asked for now.*Delete"):
        fold_folders([tmp_path / "folds_0.tsv"], "of 999 epochs")
    (folder / "predictions.tsv").write_text("risk\n2\n")
    with pytest.raises(InputError, match=r"predictions.tsv: was changed or removed since its fold was finished.*Delete .*folds_0.tsv"):
        fold_folders([tmp_path / "folds_0.tsv"])


@pytest.mark.parametrize("content", [b"", b"patient_id\nP1\n", b"folder\tproof\nfold0", b"folder\tproof\nfold0\t12\tx\n", b"\xff\xfe\x00"])
def test_a_table_that_is_none_or_was_cut_off_is_told(tmp_path, content):
    (tmp_path / "folds_0.tsv").write_bytes(content)
    with pytest.raises(InputError, match=r"folds_0\.tsv: is no whole table of folds.*Delete it and run again"):
        fold_folders([tmp_path / "folds_0.tsv"])


def test_settings_of_folds_do_not_depend_on_where_tables_lie():
    settings = {"seed": 1, "tables": {"clinical": {"file": "/a/clinical.tsv", "columns": ["age"]}}}
    moved = {"seed": 1, "tables": {"clinical": {"file": "/b/clinical.tsv", "columns": ["age"]}}}
    other = {"seed": 1, "tables": {"clinical": {"file": "/a/clinical.tsv", "columns": ["sex"]}}}
    assert fold_settings_digest(settings) == fold_settings_digest(moved) != fold_settings_digest(other)


def test_tables_of_folds_that_are_to_be_trained_anew_are_removed_and_no_others(tmp_path):
    for unit in (Unit(0), Unit(1), Unit(0, 0)):
        unit.folder(tmp_path).mkdir(parents=True)
        prove(unit.folder(tmp_path), "key", "settings", [])
    for name, units in (("folds_0-1", [Unit(0), Unit(1)]), ("folds_1", [Unit(1)]), ("shuffled_0", [Unit(0, 0)])):
        write_folds(units, tmp_path, tmp_path / f"{name}.tsv")
    drop_tables(tmp_path, [Unit(0)])
    assert sorted(file.name for file in tmp_path.glob("*.tsv")) == ["folds_1.tsv", "shuffled_0.tsv"]
