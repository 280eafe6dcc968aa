"""The version of what a script runs changes with every module that it reaches, and with nothing else."""

import ast
import re
import shutil
from modulefinder import ModuleFinder
from pathlib import Path

import pytest

from pipeline.provenance import SOURCE, Code

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "workflow/scripts").glob("*.py"))
FILES = {
    "pipeline/__init__.py": "",
    "pipeline/a.py": "from pipeline import b\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pipeline.unused\n",
    "pipeline/b.py": "def lazily():\n    from pipeline.deep.c import VALUE\n    return VALUE\n",
    "pipeline/deep/__init__.py": '"""Rooms."""\n',
    "pipeline/deep/c.py": 'VALUE = 1\nTEMPLATE = "page.j2"\n',
    "pipeline/deep/page.j2": "{{ x }}",
    "pipeline/unused.py": "",
    "script.py": "import pipeline.a\n",
}


@pytest.fixture
def tree(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def version(tree: Path) -> str:
    return Code(tree).version(tree / "script.py")


@pytest.mark.parametrize("name", [name for name in FILES if name != "pipeline/unused.py"])
def test_an_edit_of_whatever_a_script_reaches_changes_its_version(tree, name):
    before = version(tree)
    (tree / name).write_text(FILES[name] + "\nMORE = 1\n")
    assert version(tree) != before


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pipeline/unused.py", "MORE = 1"),
        ("pipeline/deep/new.py", "MORE = 1"),
        ("pipeline/deep/c.py", "# why\nVALUE = 1  # because\n\nTEMPLATE = 'page.j2'"),
        ("pipeline/b.py", 'def lazily():\n    """Say what."""\n    from pipeline.deep.c import VALUE\n    return VALUE'),
        ("pipeline/deep/__init__.py", '"""Other words."""'),
    ],
)
def test_comments_docstrings_and_what_is_not_reached_change_nothing(tree, name, text):
    before = version(tree)
    (tree / name).write_text(text)
    assert version(tree) == before


@pytest.mark.parametrize(
    ("old", "new"),
    [("VALUE = 1", "VALUE = 1.0"), ("VALUE = 1", "VALUE = True"), ("VALUE = 1", "VALUE = -1"), ("VALUE = 1", "VALUE: int = 1")],
)
def test_what_the_code_says_is_told_apart(tree, old, new):
    before = version(tree)
    (tree / "pipeline/deep/c.py").write_text(FILES["pipeline/deep/c.py"].replace(old, new))
    assert version(tree) != before


def test_the_place_of_the_repository_is_no_part_of_it(tree):
    before = version(tree)
    moved = tree.rename(tree.with_name("moved"))
    assert version(moved) == before


def test_a_module_that_does_not_exist_is_named(tree):
    with pytest.raises(FileNotFoundError, match=r"no module pipeline\.none below"):
        Code(tree).version("pipeline.none")


def reached(script: Path) -> set[Path]:
    """Files of the package behind a script by Python's own finder, which follows every import statement, without running any."""
    finder = ModuleFinder(path=[str(SOURCE)])
    finder.run_script(str(script))
    return {Path(module.__file__) for name, module in finder.modules.items() if module.__file__ and name.startswith("pipeline")}


def test_the_closure_of_every_script_is_what_python_itself_finds():
    """But for imports that only type checkers see, which the finder follows too."""
    code = Code()
    for script in SCRIPTS:
        mine, found = code.closure(script) - {script}, reached(script)
        assert mine <= found, script.name
        for file in found - mine:
            importers = [other for other in mine | {script} if file.stem in only_for_types(other)]
            assert importers or not any(file in code.closure(m) for m in mine), (script.name, file)


def only_for_types(file: Path) -> set[str]:
    guarded = [n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    return {name.module.rpartition(".")[2] for block in guarded for name in block.body if isinstance(name, ast.ImportFrom)}


def test_an_edit_of_each_module_is_seen_by_the_scripts_that_reach_it_and_by_no_others(tmp_path):
    """A comment in all of them, then every module in turn; each time one file is read anew."""
    shutil.copytree(SOURCE / "pipeline", tmp_path / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    code = Code(tmp_path)
    before = {script: code.version(script) for script in SCRIPTS}
    reaching = {script: code.closure(script) for script in SCRIPTS}
    files = {file: file.read_text() + "# a comment\n" for file in sorted((tmp_path / "pipeline").rglob("*.py"))}
    for file, text in files.items():
        file.write_text(text)
    assert {script: code.version(script) for script in SCRIPTS} == before
    for file, text in files.items():
        file.write_text(text + "MORE = 1\n")
        assert {script for script in SCRIPTS if code.version(script) != before[script]} == {s for s in SCRIPTS if file in reaching[s]}, file
        file.write_text(text)


def test_training_one_model_depends_on_its_file_and_on_no_other_models():
    closure = Code().closure(ROOT / "workflow/scripts/train_fold.py", "pipeline.models.abmil")
    assert {file.stem for file in closure if file.parent.name == "models"} == {"abmil", "__init__", "interface", "registry"}


def test_every_rule_carries_the_version_of_its_own_script():
    """But for those that fetch what lies elsewhere: it stays, whatever a new version would fetch today."""
    fetching = set()
    for file in sorted((ROOT / "workflow/rules").glob("*.smk")):
        for block in re.split(r"^(?=rule )", file.read_text(), flags=re.MULTILINE)[1:]:
            rule, script = re.match(r"rule (\w+)", block)[1], re.search(r'"\.\./scripts/(\w+)\.py"', block)[1]
            carried = re.search(r"^ +code=code(?:_of_model)?\(\"(\w+)\"\)", block, re.MULTILINE)
            if carried:
                assert carried[1] == script, rule
            else:
                fetching.add(rule)
    assert all(rule.startswith("retrieve_") for rule in fetching)
    assert len(fetching) == 7
