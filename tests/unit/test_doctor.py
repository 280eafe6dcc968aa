from __future__ import annotations

import faulthandler
import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import timm
import torch
import yaml

from pipeline import config as configuration
from pipeline import study as studies
from pipeline.doctor import costs, machine
from pipeline.doctor import slides as probing
from pipeline.doctor.__main__ import main
from pipeline.doctor.cohort import Cohort
from pipeline.doctor.findings import FAIL, OK, WARN, Finding, examine
from pipeline.doctor.weights import Weights
from pipeline.errors import InputError
from pipeline.files import sha256
from pipeline.slides.encoders.table import EncoderSpec
from pipeline.tables import read_table, write_table

sys.path.insert(0, str(Path(__file__).parent / "slides"))
from synthetic_slides import picture, write_svs

PATCHES = 38  # of 256 px on the tissue square: 7 × 6 less the 2 × 2 of its hole
FOLLOW_UP = {"os": {"table": "clinical.tsv", "time": "months", "event": "dead"}}


@pytest.fixture(scope="session")
def good_slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_svs(tmp_path_factory.mktemp("doctor") / "good.svs", picture(pen=None))


@pytest.fixture
def cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes config/cohorts/mine.yaml of a configuration and a working folder of the test's own; returns the data folder."""
    shutil.copytree(configuration.ROOT, tmp_path / "config")
    for file in (tmp_path / "config" / "cohorts").iterdir():
        file.unlink()
    monkeypatch.setattr(configuration, "ROOT", tmp_path / "config")
    for part in (studies.loading, studies.models, studies.slides, studies.inputs):
        monkeypatch.setattr(part, "ROOT", tmp_path / "config")
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data"
    data.mkdir()

    def write(**settings: object) -> Path:
        slides = {"folder": "slides", "pattern": "*.svs", "encoder": "stain_texture", **settings.pop("slides", {})}
        document = {"title": "Mine", "data_dir": str(data), "slides": slides, "models": ["abmil"], **settings}
        (tmp_path / "config/cohorts/mine.yaml").write_text(yaml.safe_dump(document))
        return data

    return write


@pytest.fixture
def slides(tmp_path: Path, good_slide: Path) -> Path:
    folder = tmp_path / "data" / "slides"
    folder.mkdir(parents=True)
    for name in ("a", "b"):
        shutil.copy(good_slide, folder / f"{name}.svs")
    return folder


def told(capsys: pytest.CaptureFixture[str], section: str) -> list[str]:
    """The lines of a section, with the figures that depend on the machine left out."""
    text = capsys.readouterr().out.split(f"\n{section}\n")[1].split("\n\n")[0]
    text = re.sub(r"about [\d.,]+ \w+ (with \d+ jobs of 1 threads) \(.*\)", r"about T \1 (RATES)", text)
    return re.sub(r"; [\d.,]+ [GM]B free", "; SPACE free", text).splitlines()


def test_a_cohort_is_examined_from_its_file_to_its_cost(cohort, slides, tmp_path, capsys):
    data = cohort(endpoints=FOLLOW_UP, models=["abmil", "snn"], slides={"chunks": 1}, splits={"folds": 2})
    (data / "clinical.tsv").write_text("patient_id\tmonths\tdead\na\t3\t1\nb\t50\t1\n")
    assert main(["mine", "--tsv", str(tmp_path / "slides.tsv")]) == 0
    assert told(capsys, "cohort mine") == [
        f"  OK    settings         {tmp_path / 'config/cohorts/mine.yaml'} is valid; data in {data}",
        f"  OK    follow-up        {data / 'clinical.tsv'}: 2 patients, 2 events, followed for up to 50.0 months (median 26.5)",
        "  OK    patients         2: 2 with wsi",
        "  OK    splits           kfold, 2 folds: 1 patients tested, 1 with event",
        "  WARN  splits           patients with event in the smallest test fold: 1",
        "                         → Fewer folds or another endpoint would tell more: figures of so few pairs are chance.",
        "  WARN  models           snn needs omics, which cohort mine lacks",
        "  WARN  models           coxnet+clinical needs clinical, which cohort mine lacks",
        "  OK    models           abmil will run",
        "  OK    encoder          stain_texture: 82 features, needs no weights",
        "  OK    slides           2 listed, all probed, 2 without a problem",
        "  OK    formats          2 aperio",
        "  OK    resolution       0.5 µm per pixel; 2 from header",
        "  OK    patches          about 76; 38–38 a slide, median 38",
        "  OK    time             about T with 1 jobs of 1 threads (RATES)",
        "  OK    disk             about 4.0 MB for 82 features a patch; SPACE free",
    ]
    table = read_table(tmp_path / "slides.tsv")
    assert table[["cohort", "slide_id", "patient_id", "mpp", "mpp_source", "patches"]].to_numpy().tolist() == [
        ["mine", "a", "a", "0.5", "header", "38"],
        ["mine", "b", "b", "0.5", "header", "38"],
    ]
    assert not (tmp_path / "results").exists()  # nothing is left behind


def test_every_kind_of_bad_slide_is_named_with_a_remedy(cohort, slides, tmp_path, capsys):
    cohort()
    (slides / "broken.svs").write_bytes(b"II*\0" + bytes(100))
    write_svs(slides / "coarse.svs", picture(pen=None), mpp=1.0, power=10)
    write_svs(slides / "glass.svs", picture(tissue=False, pen=None))
    write_svs(slides / "unscaled.svs", picture(pen=None), mpp=None, power=None)
    assert main(["mine", "--slides", "all", "--tsv", str(tmp_path / "slides.tsv")]) == 0
    lines = told(capsys, "cohort mine")
    at = next(i for i, line in enumerate(lines) if "listed" in line)
    assert lines[at] == "  OK    slides           6 listed, all probed, 2 without a problem"
    assert lines[at + 1].startswith(f"  WARN  slides           1 of 6 cannot be opened: broken. {slides / 'broken.svs'}: ")
    unscaled, _, coarse, coarse_remedy, glass, glass_remedy = lines[at + 3 : at + 9]
    known = "  WARN  slides           1 of 6 have no usable resolution: unscaled. slide unscaled: no resolution in the file; "
    assert unscaled.startswith(known)
    assert coarse == (
        "  WARN  slides           1 of 6 are coarser than the target: coarse. slide coarse: the scan is coarser than the target; "
        "found '1 µm per pixel', expected at most 0.625."
    )
    assert coarse_remedy == "                         → Raise `patches.target_mpp`, or leave out the slide."
    assert glass == "  WARN  slides           1 of 6 have no tissue: glass. slide glass: no tissue found."
    assert glass_remedy == "                         → Loosen `slides.tissue`, or leave out the slide."
    assert "  OK    patches          about 76; 38–38 a slide, median 38" in lines
    table = read_table(tmp_path / "slides.tsv").set_index("slide_id")
    assert table["stage"].fillna("").to_dict() == {
        **{"a": "", "b": "", "broken": "opening", "coarse": "scale"},
        **{"glass": "tissue", "unscaled": "resolution"},
    }
    assert table.at["unscaled", "width"] == "3072"  # what is known of it all the same


def ended_over_a(monkeypatch, how: signal.Signals) -> None:
    """Every process that looks at slide a ends by the signal `how`."""
    probe = probing._probe

    def end(row: dict, *arguments: object) -> None:
        if row["slide_id"] == "a":
            faulthandler.disable()
            os.kill(os.getpid(), how)
        probe(row, *arguments)

    monkeypatch.setattr(probing, "_probe", end)


def test_a_slide_that_crashes_the_reader_does_not_crash_the_doctor(cohort, slides, monkeypatch, capsys):
    cohort()

    if sys.platform != "linux":
        pytest.skip("slides are read in a process of their own on Linux")
    ended_over_a(monkeypatch, signal.SIGSEGV)
    assert main(["mine"]) == 0
    lines = told(capsys, "cohort mine")
    assert "  OK    slides           2 listed, all probed, 1 without a problem" in lines
    assert any(line.startswith("  WARN  slides           1 of 2 met an error that was not foreseen: a. slide a: ") for line in lines)


def test_a_kill_for_want_of_memory_is_told_as_such(cohort, slides, monkeypatch, capsys):
    cohort()
    ended_over_a(monkeypatch, signal.SIGKILL)
    assert main(["mine"]) == 1
    told_so = "  FAIL  slides           not done for a cause that passes: 1 of 2 slides (a): reading it was ended 2 times (SIGKILL: "
    assert any(line.startswith(told_so) for line in told(capsys, "cohort mine"))


def test_a_cohort_without_a_usable_slide_fails(cohort, slides, capsys):
    cohort()
    for name in ("a", "b"):
        (slides / f"{name}.svs").write_text("no slide")
    assert main(["mine"]) == 1
    lines = told(capsys, "cohort mine")
    assert "  FAIL  slides           2 listed, all probed, 0 without a problem" in lines
    assert not any("patches  " in line for line in lines)


def test_a_few_slides_stand_for_many():
    slides = pd.DataFrame({"slide_id": [f"{i:04}" for i in range(1001)]})
    assert probing.sample(slides, 5)["slide_id"].tolist() == ["0000", "0250", "0500", "0750", "1000"]
    assert probing.sample(slides, 1)["slide_id"].tolist() == ["0000"]
    assert len(probing.sample(slides, None)) == len(probing.sample(slides, 2000)) == 1001
    probed = pd.DataFrame({"stage": [np.nan, np.nan, "opening", np.nan], "patches": [100.0, 200.0, np.nan, 300.0]})
    assert costs.expected_patches(probed, 1000) == 150_000


@pytest.mark.parametrize(
    ("settings", "line", "remedy"),
    [
        (
            {"slides": {"encodr": "x"}},
            "FILE: unknown key 'slides.encodr'; expected one of ",
            "Did you mean 'encoder'?",
        ),
        ({"slides": {"encoder": "stain_textur"}}, "FILE: unknown encoder; found 'stain_textur', expected one of ", "Did you mean"),
        ({"bins": 1}, "FILE: 'bins' has an unusable value; found '1', expected minimum 2.", ""),
    ],
)
def test_an_error_in_the_cohorts_file_ends_its_section(cohort, tmp_path, capsys, settings, line, remedy):
    cohort(**settings)
    assert main(["mine"]) == 1
    lines = told(capsys, "cohort mine")
    assert lines[0].startswith(f"  FAIL  settings         {line}".replace("FILE", str(tmp_path / "config/cohorts/mine.yaml")))
    assert len(lines) == 1 + bool(remedy)
    assert remedy in lines[-1]


def test_tables_that_cannot_be_used_fail(cohort, capsys):
    groups = {"families": {"file": "families.tsv"}}
    data = cohort(endpoints=FOLLOW_UP, omics={"tables": [{"file": "rna.tsv"}, {"file": "cnv.tsv"}], "groups": groups}, models=["snn"])
    (data / "clinical.tsv").write_text("patient_id\tmonths\tdead\na\t3\t1\na\t5\t0\n")
    (data / "rna.tsv").write_text("patient\tTP53_rnaseq\na\t3\n")
    assert main(["mine"]) == 1
    assert told(capsys, "cohort mine")[1:] == [
        f"  FAIL  follow-up        {data / 'clinical.tsv'}, row 3, column 'patient_id': patient appears twice (first in row 2); "
        "found 'a', expected one row a patient.",
        "                         → Keep one row; which one is right cannot be guessed.",
        f"  FAIL  omics            {data / 'rna.tsv'}: lacks the column 'patient_id'.",
        "                         → Did you mean 'patient'?",
        f"  FAIL  omics            {data / 'cnv.tsv'}: no such table; expected a TSV file.",
        "                         → Check the path and `data_dir`.",
        f"  FAIL  gene groups      {data / 'families.tsv'}: no such gene-set file; expected a GMT, TSV or CSV file.",
        "                         → Check omics.groups.families.file and data_dir, or mark the grouping optional.",
        "  WARN  models           coxnet+clinical needs clinical, which cohort mine lacks",
        "  OK    models           snn will run",
    ]


def test_a_study_of_which_no_model_can_run_fails(cohort, capsys):
    data = cohort(endpoints=FOLLOW_UP)
    (data / "clinical.tsv").write_text("patient_id\tmonths\tdead\na\t30\t1\n")
    assert main(["mine"]) == 1
    assert told(capsys, "cohort mine")[2:] == [
        f"  WARN  models           abmil needs slides, which cohort mine lacks (no folder {data / 'slides'})",
        "  WARN  models           coxnet+clinical needs clinical, which cohort mine lacks",
        "  FAIL  models           none will run",
    ]


def patients(count: int = 30) -> pd.DataFrame:
    """Follow-up and clinical columns of `count` patients, every second of whom has the event."""
    number = np.arange(count)
    ids, months = [f"P{i:03}" for i in number], 3.0 + 2 * number
    return pd.DataFrame({"patient_id": ids, "months": months, "dead": number % 2, "age": 50 + number, "crp": number / 10})


CLINICAL = {"file": "clinical.tsv", "columns": ["age"]}


def own(cohort: Callable[..., Path], capsys: pytest.CaptureFixture[str], table: pd.DataFrame, **settings: object) -> list[str]:
    """What the doctor tells of a cohort with the tables `clinical.tsv` and `blood.tsv`, both of them `table`, after its settings."""
    base = {"endpoints": FOLLOW_UP, "tables": {"clinical": CLINICAL}, "models": ["tabular_mlp"], "splits": {"folds": 2}}
    data = cohort(**{**base, **settings})
    write_table(table, data / "clinical.tsv")
    write_table(table.drop(columns=["months", "dead"]), data / "blood.tsv")
    main(["mine"])
    return told(capsys, "cohort mine")[1:]


def test_tables_are_read_joined_and_split_as_the_workflow_will_do_it(cohort, tmp_path, capsys):
    lines = own(cohort, capsys, patients(), tables={"clinical": CLINICAL, "blood": {"file": "blood.tsv"}})
    data = tmp_path / "data"
    assert lines == [
        f"  OK    follow-up        {data / 'clinical.tsv'}: 30 patients, 15 events, followed for up to 61.0 months (median 32.0)",
        f"  OK    blood            {data / 'blood.tsv'}: 30 patients, 2 features",
        f"  OK    clinical         {data / 'clinical.tsv'}: 30 patients, 1 features",
        "  OK    patients         30: 30 with blood, 30 with clinical",
        "  OK    splits           kfold, 2 folds: 15 patients tested, 7–8 with event",
        "  OK    models           tabular_mlp, coxnet+clinical will run",
    ]
    assert not (tmp_path / "results").exists()


def test_a_unit_that_makes_nobody_die_of_age_is_asked_about(cohort, capsys):
    lines = own(cohort, capsys, patients().assign(months=lambda t: 30 * t["months"]))
    assert lines[1:3] == [
        "  WARN  follow-up        the longest follow-up is 1,830.0 months (152.5 years)",
        "                         → Is the column 'months' in months? See `unit` of the endpoint.",
    ]


@pytest.mark.parametrize("cell", ["<0.6", "0,6"])
def test_a_column_of_numbers_that_a_few_cells_turn_into_text_is_named(cohort, capsys, cell):
    table = patients().astype({"crp": object})
    table.loc[3, "crp"] = cell
    lines = own(cohort, capsys, table, tables={"clinical": CLINICAL, "blood": {"file": "blood.tsv"}})
    assert f"row 5, column 'crp': cell is not a number; found {cell!r}" in "".join(lines)


def test_a_table_whose_ids_match_nobody_fails(cohort, capsys):
    data = cohort(
        endpoints=FOLLOW_UP, models=["snn"], splits={"folds": 2}, tables={"clinical": CLINICAL}, omics={"tables": [{"file": "rna.tsv"}]}
    )
    write_table(patients(), data / "clinical.tsv")
    barcodes = [f"{patient}-01A" for patient in patients()["patient_id"]]
    write_table(pd.DataFrame({"patient_id": barcodes, "TP53_rnaseq": np.linspace(-1.5, 1.5, 30)}), data / "rna.tsv")
    assert main(["mine"]) == 1
    lines = told(capsys, "cohort mine")
    wrong = "the follow-up table and omics have no patient in common; found 'data of P000-01A, P001-01A, P002-01A, …'"
    assert any(line.startswith(f"  FAIL  patients         {wrong}") for line in lines)
    assert lines[2] == "  OK    omics            rna.tsv: 30 patients, 1 rnaseq features, zscore (detected)"


def test_molecular_numbers_of_unknown_unit_and_lacking_genes_are_named(cohort, capsys):
    data = cohort(models=["snn"], omics={"tables": [{"file": "rna.tsv"}], "groups": {"families": {"file": "f.tsv", "min_coverage": 0.9}}})
    write_table(pd.DataFrame({"patient_id": ["A", "B"], "TP53_rnaseq": [70.5, 1.5], "KRAS_rnaseq": [1.0, 2.0]}), data / "rna.tsv")
    (data / "f.tsv").write_text("family\tgene\nx\tTP53\ny\tKRAS\ny\tEGFR\n")
    main(["mine"])
    assert told(capsys, "cohort mine")[1:4] == [
        "  WARN  omics            rna.tsv: 2 patients, 2 rnaseq features, of unknown unit, kept as they are",
        "                         → State `unit`, so that counts and TPM become logarithms.",
        "  WARN  gene groups      families: 1 of 2 groups, 67 % of their genes are measured: y have too few",
    ]


def test_an_option_that_the_model_lacks_fails_at_once(cohort, capsys):
    cohort(options={"tabular_mlp": {"droput": 0.5}})
    assert main(["mine"]) == 1
    lines = told(capsys, "cohort mine")
    assert "unknown option of tabular_mlp; found 'droput', expected one of modali" in lines[0]
    assert lines[1] == "                         → Did you mean 'dropout'?"


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            {"models": ["snntrans"]},
            "snntrans: SNNTrans reads 'families', a grouping of the omics features, which the cohort does not offer",
        ),
        (
            {"models": ["snn"], "omics": {"select": {"method": "variance", "features": {"cna": 3}}}},
            "snn: no feature of this kind to select",
        ),
        ({"models": ["snn"], "training": {"loss": "cox", "batch_size": 1}}, "snn: config/models/snn.yaml: the Cox loss compares the"),
    ],
)
def test_what_would_fail_every_fold_of_a_model_is_found_by_setting_one_up(cohort, capsys, tmp_path, settings, problem):
    omics = {"tables": [{"file": "rna.tsv"}], **settings.pop("omics", {})}
    (tmp_path / "data").mkdir(exist_ok=True)
    values = pd.DataFrame(np.random.default_rng(1).normal(size=(30, 3)), columns=["A_rnaseq", "B_rnaseq", "C_rnaseq"])
    write_table(values.assign(patient_id=patients()["patient_id"]), tmp_path / "data" / "rna.tsv")
    lines = own(cohort, capsys, patients(), omics=omics, **settings)
    assert any(line.startswith(f"  FAIL  models           {problem}") for line in lines), lines
    assert "  OK    models           coxnet+clinical will run" in lines


def test_lists_of_splits_and_a_condition_that_cannot_be_used_fail(cohort, tmp_path, capsys):
    lists = {"scheme": "imported", "folds": 2, "file": "fold_{fold}.tsv"}
    assert f"  FAIL  splits           {tmp_path / 'data/fold_0.tsv'}: no such file." in own(cohort, capsys, patients(), splits=lists)
    condition = {"table": "clinical.tsv", "column": "age", "values": ["abc"]}
    lines = own(cohort, capsys, patients(), include=[condition])
    assert "column 'age': no patient has this value of `include`; found 'abc'" in lines[2]
    assert not any(line[8:].startswith("splits") for line in lines)  # there is nobody to split


def test_bags_and_the_files_of_an_mri_table_are_looked_for(cohort, tmp_path, capsys):
    np.savez(cohort() / "tma.npz", features=np.ones((3, 2), np.float32), patient_id=np.array(["P000", "P000", "P001"]))
    (tmp_path / "data" / "cases.tsv").write_text("patient_id\tsequence\timage\tmask\nP000\tt2\ti.nii\tm.nii\n")
    lines = own(cohort, capsys, patients(), bags={"tma": {"file": "tma.npz"}, "mri": {"manifest": "cases.tsv"}})
    data = tmp_path / "data"
    assert lines[2:6] == [
        f"  OK    mri              {data / 'cases.tsv'}: 1 patients, 1 images of t2",
        f"  WARN  mri              2 files are absent: {data / 'i.nii'}, {data / 'm.nii'}",
        "                         → Paths count from the folder of the table.",
        f"  OK    tma              {data / 'tma.npz'}: 2 patients with 1 to 2 instances",
    ]


TINY = {"architecture": "test_vit", "width": 64, "options": {"num_classes": 0}, "input_size": 160, "unused": ["head."]}


def test_the_weights_are_loaded_and_timed(cohort, slides, tmp_path, capsys):
    cohort()
    checkpoint = tmp_path / "tiny.pt"
    torch.save(timm.create_model("test_vit", num_classes=0).state_dict(), checkpoint)
    entry = {**TINY, "checkpoint": str(checkpoint), "sha256": sha256(checkpoint)}
    assert main(["mine", "--encoder", "tiny", "--config", f"encoders={{tiny: {json.dumps(entry)}}}"]) == 0
    lines = told(capsys, "cohort mine")
    size = f"{checkpoint.stat().st_size / 1e6:.1f} MB"
    fits = f"tiny: 64 features, weights fit test_vit ({checkpoint}, {size}, sha256 as stated)"
    assert f"  OK    encoder          {fits}" in lines
    assert any(line.startswith("  OK    time             about T") for line in lines)


def weigh(**changes: object) -> list[Finding]:
    return list(Weights(EncoderSpec("tiny", **{**TINY, "unused": (), **changes})).check())


def test_a_checkpoint_that_is_absent_wrong_or_cut_off_fails(tmp_path):
    path = tmp_path / "tiny.pt"
    (absent,) = weigh(checkpoint=str(path))
    assert (absent.status, absent.text) == (FAIL, f"{path}: encoder 'tiny': no such checkpoint.")
    assert absent.remedy.startswith("Give a local checkpoint in config/config.yaml: `encoders: {tiny: {checkpoint: ")
    torch.save({"other": torch.zeros(3)}, path)
    (wrong,) = weigh(checkpoint=str(path), sha256="0" * 64)
    assert (wrong.status, wrong.text) == (
        FAIL,
        f"{path}, column 'sha256': not the expected checkpoint; found '{sha256(path)}', expected {'0' * 64}.",
    )
    (misfit,) = weigh(checkpoint=str(path))
    assert misfit.status == FAIL
    assert f"{path}: lacks weights" in misfit.text
    path.write_bytes(path.read_bytes()[:100])
    (cut,) = weigh(checkpoint=str(path))
    assert cut.status == FAIL
    assert "cannot be read as a checkpoint" in cut.text


def test_an_encoder_is_examined_without_a_cohort(capsys):
    assert main(["--encoder", "stain_texture"]) == 0
    assert told(capsys, "configuration")[1:] == ["  OK    encoder          stain_texture: 82 features, needs no weights"]
    assert main(["--encoder", "stain_textur"]) == 1
    assert "Did you mean 'stain_texture'?" in capsys.readouterr().out


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict]:
    """A hub of our own on this machine: what it answers is in the mapping; no token, no cache."""
    answer: dict = {"id": "lab/tiny", "siblings": [], "gated": False}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    yield answer
    server.shutdown()
    server.server_close()


def test_the_hub_is_asked_for_weights_that_are_not_here(hub, monkeypatch):
    what = "tiny: the weights of hf-hub:lab/tiny are not on this machine"
    (found,) = weigh(source="lab/tiny")
    assert (found.status, found.text) == (OK, f"{what}; the hub can be reached and will be asked when they are needed")
    hub["gated"] = "manual"
    (found,) = weigh(source="lab/tiny")
    assert (found.status, found.text) == (FAIL, f"{what}, and no account is logged in")
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    (found,) = weigh(source="lab/tiny", access="gated")
    assert (found.status, found.text) == (
        WARN,
        f"{what.replace('the weights', 'the gated weights')}; whether this account has access shows when they are fetched",
    )
    assert found.remedy


@pytest.mark.parametrize("variable", [("HF_ENDPOINT", "http://127.0.0.1:9"), ("HF_HUB_OFFLINE", "1")])
def test_a_hub_out_of_reach_fails_at_once(monkeypatch, variable):
    monkeypatch.setenv(*variable)
    (found,) = weigh(source="lab/tiny")
    assert found.status == FAIL
    assert found.text.startswith("tiny: the weights of hf-hub:lab/tiny are not on this machine and the hub cannot be asked (Connect")
    assert found.remedy.startswith("Give a local checkpoint")
    (nothing,) = weigh()
    assert (nothing.status, nothing.text) == (FAIL, "tiny: neither a checkpoint nor a source of weights")


def test_features_made_elsewhere_are_looked_through(tmp_path):
    for name, width in (("a", 4), ("b", 4), ("c", 3)):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["features"] = np.ones((5, width))
    (tmp_path / "d.h5").write_bytes(b"")
    made = {"folder": str(tmp_path), "format": "auto"}
    study = {"data_dir": "", "slides": {"features": made, "encoder": "uni", "table": None, "patient_id_pattern": "(.+)"}}
    good, broken, widths = Cohort("mine", {}, {}, tmp_path, study=study).features()
    assert str(good) == f"  OK    features         4 slides in {tmp_path}, 4 read, 3 without a problem"
    assert str(broken).startswith(f"  WARN  features         1 cannot be used: d. {tmp_path / 'd.h5'}: cannot be read as HDF5")
    assert (widths.status, widths.text) == (WARN, "2 of width 4, 1 of width 3")


def test_a_disk_that_is_too_small_fails(monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")
    probed = pd.DataFrame({"stage": [np.nan], "patches": [10_000.0], "seconds": [2.0]})
    settings = {"threads": 1, "readers": 1, "chunks": 1}

    def disk(free: float) -> Finding:
        monkeypatch.setattr(costs.shutil, "disk_usage", lambda folder: usage(0, 0, free))
        return [*costs.estimate(probed, 1000, costs.Rates(1000.0, 100.0), settings, 1024, tmp_path)][-1]

    # ten million patches of 1024 float16 and 16 bytes of coordinates, and 2 MB a slide
    assert str(disk(1e12)) == "  OK    disk             about 22.6 GB for 1024 features a patch; 1,000.0 GB free"
    assert disk(30e9).status == WARN
    assert disk(20e9).status == FAIL
    assert disk(20e9).remedy == "Free some space, or link `results` to a larger disk."


def test_the_time_follows_from_the_rates(monkeypatch, tmp_path):
    monkeypatch.setattr(costs, "cores", lambda: 8)
    probed = pd.DataFrame({"stage": [np.nan], "patches": [9_000.0], "seconds": [0.0]})

    def time(rates: costs.Rates, **settings: int) -> str:
        return next(
            f.text
            for f in costs.estimate(probed, 1000, rates, {"threads": 1, "readers": 1, "chunks": 4, **settings}, 1, tmp_path)
            if f.subject == "time"
        )

    each = "(1,000 patches/s a thread, encoder 100.0 patches/s)"
    assert time(costs.Rates(1000.0, 100.0)) == f"about 6.9 h with 4 jobs of 1 threads {each}"  # 9e6 · (0.01 + 0.001) s / 4
    assert time(costs.Rates(1000.0, 100.0), chunks=100) == f"about 3.4 h with 8 jobs of 1 threads {each}"
    assert time(costs.Rates(1000.0, 100.0), threads=4).startswith("about 13.8 h with 2 jobs of 4 threads")
    gpu = costs.Rates(1000.0, 9000.0, on_gpu=True)
    assert time(gpu).startswith("about 2.5 h on the GPU, 1 readers")  # the reading takes longer
    assert time(gpu, readers=8).startswith("about 18.8 min on the GPU, 8 readers")
    assert time(costs.Rates(None, None)) == "reading rate unknown; the encoder's rate is unknown without its weights"


def test_libraries_are_held_against_the_projects_ranges(tmp_path):
    project = tmp_path / "pyproject.toml"
    wanted = ["numpy>=1", "h5py>=99", "no-such-library", "alsono; python_version < '3'"]
    project.write_text(f'[project]\nrequires-python = ">=3.99"\ndependencies = {wanted}\n')
    version = h5py.__version__
    assert [str(f) for f in machine.libraries(project)] == [
        f"  WARN  h5py             {version} is installed, >=99 was tested\n{'':25}→ pip install 'h5py>=99'",
        f"  FAIL  no-such-library  is not installed\n{'':25}→ pip install 'no-such-library'",
        "  OK    libraries        1 of 3 as required",
    ]
    (python,) = machine.python(project)
    assert (python.status, python.remedy) == (FAIL, "Use Python >=3.99.")


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a GPU")
def test_a_driver_that_sees_more_than_torch_is_a_warning(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 470.1'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (found,) = machine.graphics()
    assert found.status == WARN
    assert found.text.startswith(f"the driver sees NVIDIA H100 80GB HBM3 driver 470.1, but torch {torch.__version__} is built for ")
    tool.write_text("#!/bin/sh\nexit 9\n")
    (found,) = machine.graphics()
    assert found.status == OK


def test_little_memory_is_a_warning(tmp_path):
    (tmp_path / "memory.max").write_text("4000000000\n")
    (found,) = machine.memory(tmp_path / "memory.max")
    assert str(found) == f"  WARN  memory           4.0 GB\n{'':25}→ A job of the features stage asks for 8.0 GB."


def test_results_that_cannot_be_written_fail(tmp_path):
    (found,) = machine.writing(tmp_path / "results" / "mine")
    assert found.text.startswith(f"{tmp_path}: files are written and renamed whole; ")
    assert not list(tmp_path.iterdir())
    if sys.platform == "linux":
        (found,) = machine.writing(Path("/proc/results"))
        assert found.status == FAIL
        assert found.text.startswith("/proc cannot be written to (")


def test_a_check_that_breaks_stops_no_other():
    def breaks() -> Iterator[Finding]:
        yield Finding(OK, "one", "fine")
        raise ZeroDivisionError("by\nzero")

    def refuses() -> Iterator[Finding]:
        raise InputError("is odd", file="f", remedy="Even it.")

    found = list(examine([("one", breaks), ("two", refuses), ("three", lambda: [Finding(OK, "three", "fine")])]))
    assert [(f.status, f.subject, f.text) for f in found] == [
        (OK, "one", "fine"),
        (WARN, "one", "could not be checked (ZeroDivisionError: by zero)"),
        (FAIL, "two", "f: is odd."),
        (OK, "three", "fine"),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["min"], "unknown cohort 'min'; known are mine. Did you mean 'mine'?"),
        (["--slides", "0"], "--slides 0: expected a number above 0, or all"),
        (["--config", "data_dir"], "--config data_dir: expected KEY=VALUE"),
        (["--config", "encoders={"], "--config encoders={: while parsing"),
    ],
)
def test_a_usage_error_ends_with_2(cohort, capsys, words, message):
    cohort()
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_a_wrong_key_on_the_command_line_fails_and_spares_the_cohorts(cohort, capsys):
    cohort()
    assert main(["mine", "--config", "sed=1"]) == 1
    said = capsys.readouterr().out
    assert "FAIL  settings         --config: unknown key 'sed'" in said
    assert "→ Did you mean 'seed'?" in said
    assert "cohort mine" not in said


def test_the_machine_alone_takes_seconds_and_no_snakemake():
    code = "import sys; from pipeline.doctor.__main__ import main; main([]); sys.exit(2 * ('snakemake' in sys.modules))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("machine\n  OK    Python ")
    assert re.search(r"\n\d+ OK, \d+ WARN, \d+ FAIL\n$", done.stdout)
