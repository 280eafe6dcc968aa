"""A job of many folds: grouping changes no byte, what is finished stays, and what dies goes on to the same bytes."""

import logging
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tests.support.bad_nights import SmallDisk, apart
from tests.support.small_cohort import SmallCohort

from pipeline.config import read_yaml
from pipeline.errors import InputError
from pipeline.jobs.cores import Cores
from pipeline.jobs.finished import Unit, units_of
from pipeline.slides.features import write_features
from pipeline.tables import read_table, write_table
from pipeline.training import fold as folds
from pipeline.training.dataset import RawData
from pipeline.training.fold import FILES
from pipeline.training.job import fold_key, input_digest, train_folds
from pipeline.training.scenarios import predict_scenarios

MODEL = "mcat"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> SmallCohort:
    return SmallCohort(tmp_path_factory.mktemp("cohort"))


def train(cohort: SmallCohort, folder: Path, *jobs: str, shuffled: bool = False, files: dict | None = None, **options) -> dict[str, bytes]:
    """The files of all folds after jobs of those names, by path."""
    settings = {**cohort.settings(options.pop("name", MODEL)), **options.pop("changes", {})}
    for part in jobs:
        table = folder / f"{'shuffled' if shuffled else 'folds'}_{part}.tsv"
        units = units_of(part, 2, shuffled)
        places = {"model": folder, "table": table, "benchmarks": folder / "benchmarks"}
        cores = Cores(options.pop("workers", 1))
        train_folds(settings=settings, units=units, files=files or cohort.files, code="test", cores=cores, **places, **options)
    return {str(file.relative_to(folder)): file.read_bytes() for name in FILES for file in folder.rglob(name)}


@pytest.fixture(scope="module")
def whole(cohort, tmp_path_factory) -> tuple[Path, dict[str, bytes]]:
    """Two folds by one job."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(cohort, folder, "0-1")


@pytest.mark.parametrize("jobs, workers", [(("0", "1"), 1), (("1", "0"), 1), (("0-1",), 2)])
def test_grouping_changes_no_byte(cohort, whole, tmp_path, jobs, workers):
    assert len(whole[1]) == 8
    assert train(cohort, tmp_path, *jobs, workers=workers) == whole[1]


def test_repetitions_on_permuted_labels_are_folds_of_one_job(cohort, whole, tmp_path):
    together = train(cohort, tmp_path / "a", "0-3", shuffled=True)
    assert together == train(cohort, tmp_path / "b", "0", "1-3", shuffled=True)
    folders = {Path(name).parent.as_posix() for name in together}
    assert folders == {f"shuffled{r}/fold{k}" for r in range(2) for k in range(2)}
    weights = {together[f"{folder}/model.safetensors"] for folder in folders} | {whole[1]["fold0/model.safetensors"]}
    assert len(weights) == 5  # all on other labels


def test_only_what_is_not_finished_is_trained(cohort, whole, monkeypatch):
    """A fold of which a file is gone is made again, the other is kept; a job without work does not even read the data."""
    folder, files = whole
    before = (folder / "fold1/model.yaml").stat().st_mtime_ns
    (folder / "fold0/predictions.tsv").unlink()
    assert train(cohort, folder, "0-1") == files
    assert (folder / "fold1/model.yaml").stat().st_mtime_ns == before
    monkeypatch.setattr(folds, "train_fold", None)
    assert train(cohort, folder, "0", "1", "0-1") == files


def test_a_job_whose_folds_are_finished_does_not_import_pytorch(cohort, whole):
    folder, _ = whole
    code = f"""
import sys
from pathlib import Path
from pipeline.jobs.cores import Cores
from pipeline.jobs.finished import units_of
from pipeline.training.job import train_folds
folder = Path({str(folder)!r})
settings, files = {cohort.settings(MODEL)!r}, {cohort.files!r}
places = dict(model=folder, table=folder / "folds_0-1.tsv", benchmarks=folder / "benchmarks")
train_folds(settings=settings, units=units_of("0-1", 2), files=files, code="test", cores=Cores(), **places)
sys.exit("torch" in sys.modules)
""".replace("PosixPath(", "Path(")
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(Path(__file__).parents[3] / "src")})


def test_what_a_fold_depends_on_is_its_key(cohort, tmp_path):
    settings, digest = cohort.settings(MODEL), input_digest(cohort.files, cohort.settings(MODEL))
    keys = {fold_key(settings, Unit(0), digest, "code")}
    keys |= {fold_key(settings, Unit(0, 0), digest, "code"), fold_key(settings, Unit(1), digest, "code")}
    keys |= {fold_key({**settings, "seed": 2}, Unit(0), digest, "code"), fold_key(settings, Unit(0), digest, "other")}
    replaced = {}
    for name in ("patients", "splits", "groups", "manifest", "matrix"):
        replaced[name] = tmp_path / name
        replaced[name].write_bytes(Path(cohort.files[name]).read_bytes())
    assert input_digest(cohort.files | replaced, settings) == digest  # the same bytes in another place
    for name, file in replaced.items():
        file.write_bytes(file.read_bytes() + b"\n")
        keys.add(fold_key(settings, Unit(0), input_digest(cohort.files | {name: file}, settings), "code"))
    bags = {"bags": {"mri": replaced["patients"]}}
    keys.add(fold_key(settings, Unit(0), input_digest(cohort.files | bags, {**settings, "modalities": ["mri"]}), "code"))
    table = {**settings, "modalities": ["clinical"], "tables": {"clinical": {"file": replaced["splits"]}}}
    keys.add(fold_key(settings, Unit(0), input_digest(cohort.files, table), "code"))
    assert len(keys) == 12
    of_genes = input_digest(cohort.files, cohort.settings("snn"))
    assert input_digest(cohort.files | {"manifest": replaced["manifest"]}, cohort.settings("snn")) == of_genes  # which reads no slides


def test_features_that_are_others_than_their_manifest_lists_are_refused(cohort, tmp_path):
    rows = read_table(cohort.files["manifest"])
    made_anew = tmp_path / f"{rows['slide_id'][0]}.h5"
    write_features(made_anew, np.ones((3, 8), np.float32), None, {"encoder": "noise"})
    listed = rows["checksum"][0]
    write_table(rows.assign(features=[str(made_anew), *rows["features"][1:]]), tmp_path / "manifest.tsv")
    message = rf"{made_anew.name}: is not the file of features that its manifest lists; .*expected the checksum {listed}"
    with pytest.raises(InputError, match=message):
        RawData.read({**cohort.files, "manifest": tmp_path / "manifest.tsv"}, cohort.settings(MODEL))


def test_a_fold_without_an_event_fails_alone(cohort, tmp_path):
    """The events of fold 0's training side are taken away."""
    splits, patients = read_table(cohort.files["splits"]), read_table(cohort.files["patients"])
    trained = set(splits.patient_id[(splits.fold == "0") & (splits.set == "train")])
    write_table(patients.assign(event=patients.event.where(~patients.patient_id.isin(trained), "0")), tmp_path / "patients.tsv")
    train(cohort, tmp_path, "0-1", files=cohort.files | {"patients": tmp_path / "patients.tsv"})
    failures = [read_yaml(tmp_path / f"fold{k}/model.yaml")["failure"] for k in range(2)]
    assert "event" in failures[0]
    assert failures[1] is None
    assert len(read_table(tmp_path / "fold1/predictions.tsv")) == 20
    assert len(read_table(tmp_path / "folds_0-1.tsv")) == 2


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_job_keeps_its_finished_fold_and_the_other_goes_on_to_the_same_bytes(cohort, tmp_path, how):
    """The job is ended while it trains its second fold; SIGKILL as by the kernel or a `kill -9`, SIGTERM as by a scheduler."""
    options = {"name": "snn", "changes": {"training": {"epochs": 100, "checkpoint_seconds": 0.1}}}
    undisturbed = train(cohort, tmp_path / "a", "0-1", **options)
    job = multiprocessing.get_context("fork").Process(target=_job, args=(cohort, tmp_path / "b", options))
    job.start()
    until = time.monotonic() + 60
    while not (tmp_path / "b/fold1/checkpoint.pt").exists():
        assert time.monotonic() < until
        assert job.is_alive()
        time.sleep(0.005)
    os.kill(job.pid, how)
    job.join()
    assert job.exitcode
    kept = (tmp_path / "b/fold0/finished.yaml").stat().st_mtime_ns
    assert (tmp_path / "b/fold1/checkpoint.pt").exists()
    assert train(cohort, tmp_path / "b", "0-1", **options) == undisturbed
    assert (tmp_path / "b/fold0/finished.yaml").stat().st_mtime_ns == kept


def _job(cohort: SmallCohort, folder: Path, options: dict) -> None:
    from pipeline.stopping import end_on_sigterm

    end_on_sigterm()
    train(cohort, folder, "0-1", **options)


def test_a_fold_that_is_killed_for_memory_costs_no_other_and_is_no_result(cohort, whole, tmp_path, monkeypatch, caplog):
    """The kernel kills the process of fold 0: fold 1 is trained, the job fails, and the next one makes what is missing."""
    real = folds.train_fold

    def killed(**arguments) -> None:
        if arguments["fold"] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        real(**arguments)

    monkeypatch.setattr(folds, "train_fold", killed)
    with pytest.raises(SystemExit):
        train(cohort, tmp_path, "0-1")
    assert "fold 0 was not finished: its process ended (SIGKILL: perhaps out of memory)" in caplog.text
    assert (tmp_path / "fold1/finished.yaml").exists()
    assert not (tmp_path / "folds_0-1.tsv").exists()
    assert not (tmp_path / "fold0/model.yaml").exists()
    monkeypatch.setattr(folds, "train_fold", real)
    assert train(cohort, tmp_path, "0-1") == whole[1]


def test_a_modality_that_nobody_has_fails_the_folds_of_its_models_and_says_why(cohort, tmp_path):
    """No slide could be used: the study's other models and its summary do not wait for this one."""
    patients = read_table(cohort.files["patients"])
    write_table(patients.assign(slides=""), tmp_path / "patients.tsv")
    files = cohort.files | {"patients": tmp_path / "patients.tsv"}
    train(cohort, tmp_path, "0-1", files=files)
    folders = [tmp_path / f"fold{k}" for k in range(2)]
    assert {read_yaml(folder / "model.yaml")["failure"] for folder in folders} == {"no patient of the cohort has features of slides."}
    assert len(read_table(tmp_path / "folds_0-1.tsv")) == 2
    missing = {"scenarios": [{"name": "no genes", "without": "omics"}], "draws": 1, "fill": "native"}
    predict_scenarios(settings=cohort.settings(MODEL), missing=missing, folds=folders, files=files, output=tmp_path / "scenarios.tsv")
    assert set(read_table(tmp_path / "scenarios.tsv")["reason"]) == {"the fold failed: no patient of the cohort has features of slides."}


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["memory", "disk"])
def test_a_fold_that_lacks_memory_or_disk_is_no_result_and_is_told(cohort, whole, tmp_path, monkeypatch, fault):
    """The address space of the process is bounded once all is loaded; its files lie on a disk of 16 kB that then grows."""
    real = folds.train_fold

    def bounded(**arguments) -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 26), resource.RLIM_INFINITY))
        np.ones(1 << 28)  # as a pass over long bags asks for it
        real(**arguments)

    def night() -> tuple[dict[str, bytes], str, bool]:
        disk, log = SmallDisk(tmp_path / "disk", 1 << 14 if fault == "disk" else 1 << 27), tmp_path / "log"
        logging.basicConfig(filename=log, force=True)
        monkeypatch.setattr(folds, "train_fold", bounded if fault == "memory" else real)
        with pytest.raises(SystemExit):
            train(cohort, disk.folder, "0-1")
        is_result = bool([*disk.folder.glob("folds_*.tsv"), *disk.folder.glob("fold*/finished.yaml")])
        monkeypatch.setattr(folds, "train_fold", real)
        disk.resize(1 << 27)
        return train(cohort, disk.folder, "0-1"), log.read_text(), is_result

    found, told, is_result = apart(night)
    assert found == whole[1]
    assert not is_result
    assert ("fold 0: memory is not enough. Give the job more" if fault == "memory" else "the disk is full. Free space on it") in told
    assert "Traceback" not in told


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def test_a_file_that_every_fold_reads_fails_the_job_and_no_fold(cohort, whole, tmp_path):
    """What was finished stays; with the files restored, the same job ends at the same bytes."""
    train(cohort, tmp_path, "0")
    before = (tmp_path / "fold0/finished.yaml").stat().st_mtime_ns
    of_slides = Path(read_table(cohort.files["manifest"])["features"][0])
    for path in [of_slides, *(Path(cohort.files[name]) for name in ("matrix", "groups", "manifest", "patients", "splits"))]:
        kept = path.read_bytes()
        for fault in (emptied, Path.unlink):
            fault(path)
            with pytest.raises((InputError, FileNotFoundError), match=path.name):
                train(cohort, tmp_path, "1")
            path.write_bytes(kept)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["benchmarks", "fold0", "folds_0.tsv"]
    assert train(cohort, tmp_path, "0-1") == whole[1]
    assert (tmp_path / "fold0/finished.yaml").stat().st_mtime_ns == before


def test_training_otherwise_drops_the_table_of_before(cohort, tmp_path):
    train(cohort, tmp_path, "0", "1", name="snn")
    train(cohort, tmp_path, "0", name="snn", changes={"seed": 9})
    assert sorted(file.name for file in tmp_path.glob("*.tsv")) == ["folds_0.tsv", "folds_1.tsv"]
    train(cohort, tmp_path, "0-1", name="snn", changes={"seed": 10})
    assert [file.name for file in tmp_path.glob("*.tsv")] == ["folds_0-1.tsv"]
