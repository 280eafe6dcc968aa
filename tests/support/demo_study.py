"""Models on the files of a finished demo, trained in this process, where the workflow would start one (and PyTorch) for each job."""

from pathlib import Path

from pipeline import study as studies
from pipeline.config import ROOT, read_yaml, validate
from pipeline.training.dataset import RawData
from pipeline.training.fold import train_fold


def study_of(**settings: object) -> dict:
    """The demo's study, changed by `settings`."""
    return {**studies.load_study(validate(read_yaml(ROOT / "config.yaml"), "config", "x"), "demo"), **settings}


def raw_of(folder: Path, study: dict, model: str, splits: Path | None = None) -> RawData:
    """What the model reads of the demo that has run in `folder`, which must be the current one; `splits` in place of its own."""
    results = folder / "results/demo"
    files = {"patients": "cohort/patients.tsv", "splits": "cohort/splits.tsv", "matrix": "omics/omics.h5", "groups": "omics/groups.tsv"}
    files = {key: results / file for key, file in files.items()} | {"bags": {}, "manifest": results / "slides/manifest-stain_texture.tsv"}
    return RawData.read(files | ({"splits": splits} if splits else {}), studies.fold_settings(study, model))


def trained(raw: RawData, study: dict, model: str, fold: int, output: Path) -> Path:
    """The folder of a trained fold, below `output`."""
    folder = output / model / f"fold{fold}"
    folder.mkdir(parents=True)
    train_fold(settings=studies.fold_settings(study, model), fold=fold, raw=raw, folder=folder, code="test", key="test")
    return folder
