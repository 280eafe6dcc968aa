"""The conda environments offer what the rules' scripts import, in the versions of requirements.lock; nothing is installed here."""

import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from rattler import MatchSpec

from pipeline.provenance import CODE

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "src"
FILES = sorted((ROOT / "envs").glob("*.yaml"))
ANALYSIS, CPU, GPU = (ROOT / "envs" / f"{name}.yaml" for name in ("analysis", "torch-cpu", "torch-gpu"))
TORCH_ENV = "TORCH_ENV"  # of workflow/rules/common.smk
NOT_OF_LOCK = {"pytorch-cpu", "pytorch-gpu", "torchvision"}  # conda-forge's PyTorch is behind the index's
CONDA_NAMES = {  # module → package of conda-forge, where they differ
    "PIL": "pillow",
    "cv2": "py-opencv",
    "matplotlib": "matplotlib-base",
    "openslide": "openslide-python",
    "sklearn": "scikit-learn",
    "sksurv": "scikit-survival",
    "torch": "pytorch",
    "yaml": "pyyaml",
}
LOCK_NAMES = {"py-opencv": "opencv-python-headless", "openslide": "openslide-bin", "matplotlib-base": "matplotlib"}


def dependencies(file: Path) -> list[str]:
    return [line for line in yaml.safe_load(file.read_text())["dependencies"] if isinstance(line, str)]


def versions(file: Path) -> dict[str, str]:
    """Package → its versions: ``=3.11`` or ``>=2.2,<2.5``."""
    return {line[: line.index(sign)]: line[line.index(sign) :] for line in dependencies(file) for sign in re.findall("[>=]", line)[:1]}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_is_one_that_conda_can_read(file):
    document = yaml.safe_load(file.read_text())
    assert set(document) == {"channels", "dependencies"}
    assert document["channels"] == ["conda-forge", "nodefaults"]
    for line in dependencies(file):
        assert MatchSpec(line).version is not None
        pattern = r"python=\d+\.\d+|[a-z0-9_-]+>=\d+\.\d+,<\d+\.\d+"
        assert re.fullmatch(pattern, line), f"{line}: a range of minor versions, lest one missing build costs the whole environment"
    for requirement in (Requirement(line) for part in document["dependencies"] if isinstance(part, dict) for line in part["pip"]):
        assert requirement.specifier
        assert requirement.url is None


def test_cpu_and_gpu_differ_in_one_package():
    cpu, gpu = (file.read_text().splitlines()[1:] for file in (CPU, GPU))
    (pair,) = [lines for lines in zip(cpu, gpu, strict=True) if lines[0] != lines[1]]
    assert pair[0].replace("-cpu", "-gpu") == pair[1]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_newest_version_of_a_package_is_that_of_the_lock(file):
    lines = (line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#"))
    lock = {name.lower(): version for name, version in (line.split("==") for line in lines)}
    allowed = versions(file)
    assert allowed.pop("python").strip("=") in (ROOT / "requirements.lock").read_text().splitlines()[0]
    for package, wanted in allowed.items():
        if package not in NOT_OF_LOCK:
            major, minor = map(int, lock[LOCK_NAMES.get(package, package)].split(".")[:2])
            assert wanted.endswith(f",<{major}.{minor + 1}"), f"{package}: the newest is the lock's {major}.{minor}"
            assert f"{major}.{minor}" in SpecifierSet(wanted), package


def rules() -> Iterator[tuple[str, str, str]]:
    """(name, environment as written, script) of every rule."""
    for file in sorted((ROOT / "workflow/rules").glob("*.smk")):
        for block in re.split(r"^(?=rule )", file.read_text(), flags=re.MULTILINE)[1:]:
            name, environment = re.match(r"rule (\w+)", block)[1], re.search(r"conda:\n\s+(.+)\n", block)[1]
            yield name, environment.strip('"'), re.search(r'"\.\./(scripts/\w+\.py)"', block)[1]


def test_every_rule_names_a_file_that_exists():
    named = {environment for _, environment, _ in rules()}
    assert named == {"../../envs/analysis.yaml", TORCH_ENV}
    common = (ROOT / "workflow/rules/common.smk").read_text()
    assert """TORCH_ENV = f"../../envs/torch-{SETTINGS['torch']}.yaml\"""" in common
    allowed = yaml.safe_load((ROOT / "config/schemas/config.schema.yaml").read_text())["properties"]["torch"]["enum"]
    assert {ANALYSIS, *(ROOT / "envs" / f"torch-{word}.yaml" for word in allowed)} == set(FILES)


def third_party(*entries: str | Path) -> set[str]:
    """Top-level modules, neither ours nor Python's, that the scripts or modules and ours behind them import."""
    return CODE.imported(*entries) - sys.stdlib_module_names


def lacking(file: Path, scripts: list[Path]) -> set[str]:
    offered = {re.sub(r"^pytorch-[cg]pu$", "pytorch", package) for package in versions(file)}
    return {module for module in third_party(*scripts) if CONDA_NAMES.get(module, module) not in offered}


def test_the_analysis_environment_offers_what_its_rules_import():
    scripts = [ROOT / "workflow" / script for _, environment, script in rules() if environment != TORCH_ENV]
    assert lacking(ANALYSIS, scripts) == set()


@pytest.mark.parametrize("file", [CPU, GPU], ids=lambda file: file.stem)
def test_the_torch_environments_offer_what_their_rules_import(file):
    scripts = [ROOT / "workflow" / script for _, environment, script in rules() if environment == TORCH_ENV]
    models = sorted((SRC / "pipeline/models").glob("[a-z]*.py"))  # training imports them by their names in the configuration
    assert lacking(file, [*scripts, *models]) == set()


def test_the_rules_themselves_import_only_what_snakemake_brings(tmp_path):
    """`snakemake --use-conda` is run by a Snakemake that has neither pandas nor numpy."""
    rule_files = [ROOT / "Snakefile", *(ROOT / "workflow/rules").glob("*.smk")]
    lines = [line.strip() for file in rule_files for line in re.findall(r"^\s*from pipeline.+$", file.read_text(), re.MULTILINE)]
    assert len(lines) > 3
    (tmp_path / "rules.py").write_text("\n".join(lines))
    brought = {Requirement(line).name for line in metadata.requires("snakemake") or []}
    assert {CONDA_NAMES.get(module, module) for module in third_party(tmp_path / "rules.py")} <= brought
