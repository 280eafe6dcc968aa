"""What the plan says of a small study, reckoned by hand."""

import os
import subprocess
import sys
from pathlib import Path

import h5py
import pandas as pd
import pytest
import yaml

from pipeline import config as configuration
from pipeline import study as studies
from pipeline.errors import InputError
from pipeline.plan.__main__ import main
from pipeline.plan.costs import Costs, Stage
from pipeline.plan.hints import chunk_hint
from pipeline.plan.jobs import count_jobs
from pipeline.plan.rates import Rates
from pipeline.plan.size import measure
from pipeline.plan.training import Training
from pipeline.tables import read_table, write_table

SETTINGS = configuration.validate({}, "config", "config.yaml")
FIGURES = {
    "start_up": {"slides": 2, "training": 7, "analysis": 1},
    "slurm_job": 4,
    "other_job": 10,
    "slides": {"tissue_mm2": 16.384, "tissue_s_mm2": 0.1, "patches_s": 0.5, "reading_rate": 100},  # a thousand patches of 128 µm
    "encoders": {"cpu_gflops": 10, "gpu_gflops": 1000, "handcrafted_s": 0.25},
    "training": {"fit_s": 0.5},
    "evaluation": {"patient_s": 0.1},
    "peak_gb": {"slides": 1, "features": 2, "other": 0.5},
}
ABMIL = {"predict": [0.32, 1], "step": [0.64, 2], "peak_gb": [0.5, 0.01], "parameters": 2}
OTHER = {"predict": [0.64, 3], "step": [1.28, 4], "peak_gb": [0.7, 0.03], "parameters": 4}


def sourced(value: object) -> object:
    return {key: sourced(part) for key, part in value.items()} if isinstance(value, dict) else {"value": value, "source": "a test"}


@pytest.fixture
def rates(tmp_path: Path) -> Rates:
    document = sourced(FIGURES)
    document["encoders"]["gflop"] = {"resnet50_cut": 5, "uni": 100}
    fitted = {"predict": [0, 0], "step": [0, 0], "peak_gb": [0.5, 0], "parameters": 0}
    document["training"] |= {"source": "a test", "fitted": fitted, "models": {"abmil": ABMIL, "snn": OTHER}}
    (tmp_path / "rates.yaml").write_text(yaml.safe_dump(document))
    return Rates(tmp_path / "rates.yaml")


@pytest.fixture
def cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four slides of ten patients, one model on five folds; the path of the cohort's file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/slides").mkdir(parents=True)
    for name in "abcd":
        (tmp_path / f"data/slides/{name}.svs").touch()
    write_table(pd.DataFrame({"patient_id": [*"abcdefghij"], "months": 3, "dead": 1}), tmp_path / "data/clinical.tsv")
    document = {
        "title": "Mine",
        "data_dir": str(tmp_path / "data"),
        "endpoints": {"os": {"table": "clinical.tsv", "time": "months", "event": "dead"}},
        "slides": {"folder": "slides", "encoder": "resnet50_cut", "chunks": 2},
        "models": ["abmil"],
        "reference": None,
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(document))
    return tmp_path / "mine.yaml"


def reckoned(cohort: Path, rates: Rates, gpus: int = 0, **changes: object) -> dict[str, Stage]:
    settings = configuration.validate(changes, "config", "--config", fill=False)
    study = studies.load_study(configuration.merge(SETTINGS, settings), "mine", settings, cohort.parent)
    results = Path("results/mine")
    size = measure(study, SETTINGS["demo"], rates, results)
    return {stage.rule: stage for stage in Costs(study, size, rates, results, gpus).stages(count_jobs(study))}


def benchmark(job: str, seconds: float, cpu: float, cohort: str = "mine", peak: float = 1000.0) -> None:
    file = Path(f"results/{cohort}/benchmarks/{job}.tsv")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_table(pd.DataFrame([{"s": seconds, "max_rss": peak, "cpu_time": cpu}]), file)


def manifest(stage: str, patches: list[int], cohort: str = "mine") -> Path:
    file = Path(f"results/{cohort}/slides/{stage}/chunk0.tsv")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_table(pd.DataFrame({"slide_id": [f"s{i}" for i in range(len(patches))], "patches": patches}), file)
    return file.parent


def test_the_slides_of_a_small_study(cohort, rates):
    stages = reckoned(cohort, rates)
    assert stages["tissue"].cpu == pytest.approx(4 * 1.6384 + 2 * 2)  # four slides, the start of two jobs
    assert stages["patches"].cpu == pytest.approx(4 * 0.5 + 2 * 2)
    features = stages["features"]
    assert features.cpu == pytest.approx(4000 * (1 / 100 + 5 / 10) + 2 * 2)  # reading and 5 Gflop a patch
    assert (features.gpu, features.disk, features.jobs) == (0, pytest.approx(4000 * (2 * 1024 + 16)), 2)
    assert features.longest == pytest.approx(2000 * 0.51 + 2)
    assert features.wall(cores=1, gpus=0) == pytest.approx(features.cpu)
    assert features.wall(cores=8, gpus=0) == pytest.approx(1022)  # two jobs of one thread keep two cores busy


def test_on_a_gpu_reading_and_encoding_go_side_by_side(cohort, rates):
    slow = reckoned(cohort, rates, gpus=1)["features"]
    assert (slow.cpu, slow.gpu) == (pytest.approx(4000 / 100 + 4), pytest.approx(4000 / 100))  # one reader
    fast = reckoned(cohort, rates, gpus=1, slides={"readers": 4})["features"]
    assert (fast.gpu, fast.threads) == (pytest.approx(4000 * 5 / 1000), 4)
    assert reckoned(cohort, rates, gpus=1, slides={"device": "cpu"})["features"].gpu == 0


def test_larger_patches_are_fewer(cohort, rates):
    found = reckoned(cohort, rates, slides={"patches": {"patch_size": 512, "target_mpp": 0.5}})["features"]
    assert found.cpu == pytest.approx(1000 * (4 / 100 + 5 / 10) + 4)  # a quarter of the patches of four times the pixels


def test_the_models_of_a_small_study(cohort, rates):
    stages = reckoned(cohort, rates, controls={"shuffled_labels": 2}, missing={"scenarios": [{"without": "wsi"}, {"drop": 0.4}]})
    together = (0.8 * 512 * 32 / 400) ** 0.5  # of the 32 patients of a step in a pass, of 400 patches each
    predict, step = 0.32 / together + 0.4, 0.64 / together + 2 * 0.4
    fold = 20 * (8 * step + 2 * predict)  # epochs; eight patients train, two are tested
    train, shuffled = stages["train_fold"], stages["train_shuffled"]
    assert (train.jobs, train.cpu, train.longest) == (1, pytest.approx(7 + 5 * fold), pytest.approx(7 + fold))
    assert train.wall(cores=5, gpus=0) == pytest.approx(7 + fold)  # its folds take the cores that idle
    assert train.slowest == "abmil"
    assert train.peak_gb == pytest.approx(0.5 + 0.01 * together * 0.4)
    assert train.disk == 5 * 2e6 * 4
    assert (shuffled.jobs, shuffled.cpu) == (1, pytest.approx(7 + 10 * fold))
    assert stages["predict_scenarios"].cpu == pytest.approx(7 + (1 + 1 + 10) * 5 * 2 * predict)
    assert stages["evaluate"].cpu == pytest.approx(1 + 10 * 0.1)
    assert stages["summary"].cpu == 10


def test_a_model_without_figures_takes_the_median_of_the_others(cohort, rates):
    (cohort.parent / "data/omics.tsv").touch()
    found = reckoned(cohort, rates, omics={"tables": [{"file": "omics.tsv"}]}, models=["mcat", "coxnet"])
    assert found["train_fold"].disk == 5 * 3e6 * 4
    assert rates.used["model mcat"] == "not measured; the median of the others"
    assert "model coxnet" not in rates.used  # it is fitted in one go
    assert rates.used["training.fit_s"] == "0.5 (a test)"


def test_sampled_patches_bound_a_pass(cohort, rates):
    study = studies.load_study(SETTINGS, "mine", {}, cohort.parent)
    size = measure(study, SETTINGS["demo"], rates, Path("results/mine"))
    assert Training(study, size, rates, {}).job("train_fold", "abmil+survpath").seconds == pytest.approx(
        7 + 2 * (8 * (0.64 + 2 * 0.4) + 2 * (0.32 + 0.4))  # two epochs of one patient a step
    )


def test_measured_figures_take_the_place_of_assumed_ones(cohort, rates):
    benchmark("tissue_0", 99, 10)
    manifest("tissue", [0, 0, 0, 0])
    benchmark("features_resnet50_cut_0", 99, 102, "other")
    manifest("features/resnet50_cut", [60, 40], "other")
    benchmark("features_resnet50_cut_0", 99, 1e6, "demo")  # its slides tell nothing of others
    manifest("features/resnet50_cut", [60, 40], "demo")
    benchmark("train_abmil_0", 99, 40)
    benchmark("train_abmil_1", 99, 60, peak=2000)
    stages = reckoned(cohort, rates)
    assert (stages["tissue"].cpu, stages["tissue"].known) == (pytest.approx(4 * 2 + 4), "measured on mine")
    assert (stages["features"].cpu, stages["features"].known) == (pytest.approx(4000 * 1 + 4), "measured on other")
    assert (stages["train_fold"].cpu, stages["train_fold"].known) == (5 * 50, "measured on mine")
    assert stages["train_fold"].peak_gb == pytest.approx(2000 * 2**20 / 1e9)
    assert stages["patches"].known == "assumed"


def test_what_a_gpu_took_says_nothing_of_a_cpu(cohort, rates):
    benchmark("features_resnet50_cut_0", 42, 22)
    folder = manifest("features/resnet50_cut", [60, 40])
    with h5py.File(folder / "s0.h5", "w") as file:
        file.attrs["device"] = "cuda"
    assert reckoned(cohort, rates)["features"].known == "assumed"
    found = reckoned(cohort, rates, gpus=1)["features"]
    assert (found.cpu, found.gpu) == (pytest.approx(4000 * 0.2 + 4), pytest.approx(4000 * 0.4))


def test_patches_that_are_laid_are_counted(cohort, rates):
    manifest("patches", [300, 100])
    assert reckoned(cohort, rates)["features"].cpu == pytest.approx(800 * 0.51 + 4)


def chunked(chunks: int, work: float, start: float = 2.0) -> list[Stage]:
    """The features of a study with so many CPU seconds of work."""
    return [Stage("features", chunks, work + chunks * start, work / chunks + start, 1.0, start=chunks * start)]


def test_chunks_that_are_too_long_or_too_short_are_told_with_a_better_number():
    assert [*chunk_hint(chunked(4, 4 * 6 * 3600), 4)] == []
    (few,) = chunk_hint(chunked(4, 4 * 24 * 3600 - 8), 4)
    assert few == "slides.chunks 4 is few: a chunk takes 24.0 h. With slides.chunks: 16 it takes about 6.0 h."
    (many,) = chunk_hint(chunked(1000, 12_000), 4)
    assert many == "slides.chunks 1000 is many: starting its jobs takes 100.0 min, the work 3.3 h. slides.chunks: 100 would do."
    assert [*chunk_hint(chunked(50, 500), 4)] == []  # five minutes are not worth a word
    assert [*chunk_hint([], 4)] == []


def test_the_plan_is_told_and_written(cohort, capsys, tmp_path):
    words = [str(cohort), "--config", "controls={shuffled_labels: 1}", "--cores", "4", "--tsv", str(tmp_path / "plan.tsv")]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert said.startswith("mine: Mine\n\nstage ")
    for part in (
        "Total: 18 jobs, ",
        " with 4 cores and 0 GPUs, one stage after the other; the longest job ",
        " (features)\n",
        "On SLURM: 26 jobs, 2.1 min of processor time more, 3.9 s a job and what starts anew\n",
        "→ With a GPU (--gpus 1) the encoder takes about ",
        "  4 slides, listed by ",
        "  10 patients, rows of ",
        "  15,259 patches a slide, assumed: 250 mm² of tissue, a patch every 128 µm\n",
        "  encoders.gpu_gflops: 50,000 (assumed: ",
    ):
        assert part in said
    table = read_table(tmp_path / "plan.tsv")
    assert table["stage"].tolist()[:4] == ["list_slides", "tissue", "patches", "features"]
    assert table["jobs"].astype(int).sum() == 18
    assert not (tmp_path / "results").exists()


def test_slides_without_follow_up_are_planned_up_to_their_features(cohort, capsys):
    document = yaml.safe_load(cohort.read_text())
    del document["endpoints"]
    cohort.write_text(yaml.safe_dump(document))
    assert main([str(cohort), "--gpus", "1"]) == 0
    said = capsys.readouterr().out
    assert "Total: 9 jobs" in said
    assert "no follow-up: features alone" in said
    assert "With a GPU" not in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["blcaa"], "unknown cohort 'blcaa'"),
        (["demo", "--config", "sed=1"], "--config: unknown key 'sed'"),
        (["demo", "--config", "models=[abmill]"], "unknown model 'abmill' under models"),
    ],
)
def test_bad_input_is_one_message(capsys, words, message):
    assert main(words) == 1
    said = capsys.readouterr()
    assert (message in said.err, said.err.count("\n"), said.out) == (True, 1, "")
    assert "Did you mean" in said.err


def test_a_figure_that_is_missing_or_without_a_source_is_named(tmp_path):
    (tmp_path / "rates.yaml").write_text("start_up: {slides: 2}\n")
    with pytest.raises(InputError, match=r"rates\.yaml: start_up\.slides is no figure; found '2'"):
        Rates(tmp_path / "rates.yaml").of("start_up.slides")
    with pytest.raises(InputError, match=r"the figure 'start_up\.slide' is missing.*Did you mean 'slides'\?"):
        Rates(tmp_path / "rates.yaml").of("start_up.slide")


def test_every_shipped_figure_has_a_source_and_every_model_and_encoder_its_own():
    rates = Rates()
    for name in configuration.read_yaml(configuration.ROOT / "encoders.yaml"):
        rates.gflop(name)
    assert [name for name in rates.used if name.startswith("encoder")] == ["encoder stain_texture"]  # no network
    trained = {file.stem for file in (configuration.ROOT / "models").glob("*.yaml") if configuration.read_yaml(file)["training"]["epochs"]}
    assert set(rates.document["training"]["models"]) == trained


def test_the_plan_needs_no_torch():
    code = "import sys; from pipeline.plan.__main__ import main; main(['demo']); sys.exit(2 * ('torch' in sys.modules))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=120, check=True)
