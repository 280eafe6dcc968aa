"""Content decides what is made again: not times, not places; and every edit that matters is noticed."""

import re
import shutil
from pathlib import Path

import pytest

from tests.workflow.conftest import ROOT, TARGETS, run


@pytest.fixture(scope="module")
def moved(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The workflow at another path, and the finished demo copied to another; all times are new."""
    root, study = tmp_path_factory.mktemp("elsewhere") / "workflow", tmp_path_factory.mktemp("copied") / "demo"
    for name in ("src", "workflow", "config", "envs"):
        shutil.copytree(ROOT / name, root / name, copy_function=shutil.copyfile, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "Snakefile", root / "Snakefile")
    shutil.copytree(demo, study, copy_function=shutil.copyfile, ignore=shutil.ignore_patterns("*.svs", "*.png"))
    return root, study


def planned(moved: tuple[Path, Path]) -> dict[str, int]:
    """Rule → number of jobs that a dry run lists."""
    root, study = moved
    text = run(study, "-n", "--quiet", "rules", "--", *TARGETS, root=root)
    return {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", text, flags=re.MULTILINE)}


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


@pytest.mark.slow
def test_moving_and_copying_change_nothing(moved):
    assert planned(moved) == {}


@pytest.mark.slow
def test_a_hyperparameter_trains_its_model_again_and_no_other(moved):
    """A comment in another model's file and a new file that nobody imports train nothing."""
    root = moved[0]
    edit(root / "config/models/abmil.yaml", "weight_decay: 1.0e-5", "weight_decay: 1.0e-4")
    edit(root / "src/pipeline/models/mcat.py", "WIDTH = 256", "WIDTH = 256  # as the paper has it")
    (root / "src/pipeline/models/draft.py").write_text("VALUE = 1\n")
    once = ("train_fold", "predict_scenarios", "evaluate", "compare", "summary", "scenarios", "resources", "report_page")
    assert planned(moved) == dict.fromkeys(once, 1) | {"total": len(once)}
    edit(root / "config/models/abmil.yaml", "weight_decay: 1.0e-4", "weight_decay: 1.0e-5")


@pytest.mark.slow
def test_the_entry_of_an_encoder_makes_features_again_and_keeps_tissue_and_patches(moved):
    edit(moved[0] / "config/encoders.yaml", "width: 82\n  version: 1", "width: 82\n  version: 2")
    found = planned(moved)
    assert found["features"] == 2
    assert found["train_fold"] == 9
    assert not {"tissue", "patches", "list_slides", "omics_matrix"} & set(found)
