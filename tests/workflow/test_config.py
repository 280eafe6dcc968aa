"""Schemas, defaults and studies."""

import pytest
import yaml

from pipeline import study as studies
from pipeline.config import ROOT, merge, read_yaml, validate
from pipeline.contents import Contents
from pipeline.errors import InputError
from pipeline.training.protocol import Protocol


@pytest.fixture
def settings():
    return validate(read_yaml(ROOT / "config.yaml"), "config", "config.yaml")


@pytest.mark.parametrize("cohort", studies.cohort_names())
def test_every_shipped_cohort_is_valid_and_its_models_exist(settings, cohort):
    study = studies.load_study(settings, cohort)
    for model in studies.all_models(study):
        assert studies.model_needs(study, model)


def test_the_template_is_valid_and_explains_every_key():
    file = ROOT / "cohorts" / "template.yaml"
    document = validate(read_yaml(file), "cohort", file, fill=False)
    schema = read_yaml(ROOT / "schemas" / "cohort.schema.yaml")
    missing = set(schema["properties"]) - set(document) - {"synthetic", "data_dir", "extends"}
    assert not missing


def test_an_unquoted_null_key_is_understood():
    document = yaml.safe_load("demo: {null: true}")
    assert validate(document, "config", "x")["demo"]["null"] is True


def test_nested_text_from_the_command_line_is_read_as_what_the_schema_wants():
    document = validate({"demo": {"null": "true", "patients": "30"}, "data_dir": "1"}, "config", "x")
    assert document["demo"] == {"null": True, "patients": 30, "seed": 1}
    assert document["data_dir"] == "1"


def test_a_scenario_from_the_command_line_has_a_number_for_its_probability(settings):
    stated = validate({"missing": {"scenarios": [{"drop": "0.4"}, {"without": "wsi"}], "draws": "3"}}, "config", "--config", False)
    assert studies.load_study(settings, "demo", stated)["missing"] == {
        "scenarios": [{"drop": 0.4}, {"without": "wsi"}],
        "draws": 3,
        "fill": "native",
    }


def test_a_cohort_overrides_shared_blocks_key_by_key(settings):
    study = studies.load_study(merge(settings, {"slides": {"batch_size": 7}}), "demo")
    assert study["slides"]["batch_size"] == 7
    assert study["slides"]["encoder"] == "stain_texture"


def test_the_command_line_beats_the_cohort_which_beats_the_common_settings(settings, monkeypatch, tmp_path):
    common = merge(settings, {"training": {"epochs": 99, "lr": 0.5}})
    invented(common, monkeypatch, tmp_path, training={"epochs": 20})
    assert studies.load_study(common, "own")["training"] == {"epochs": 20, "lr": 0.5}
    assert studies.load_study(common, "own", {"training": {"epochs": 3}})["training"] == {"epochs": 3, "lr": 0.5}


def test_models_may_be_chosen_on_the_command_line(settings):
    chosen = validate({"models": "[snn, mcat+bilinear]"}, "config", "--config")["models"]
    assert studies.load_study(merge(settings, {"models": chosen}), "demo")["models"] == ["snn", "mcat+bilinear"]


def test_needs_may_name_what_the_cohort_offers_and_what_an_option_says(settings, monkeypatch, tmp_path):
    study = invented(settings, monkeypatch, tmp_path) | {"options": {"method": {"first": "clinical"}}}
    (tmp_path / "models").unlink()
    (tmp_path / "models").mkdir()
    document = {
        "paper": "x",
        "needs": ["{first}", "{second}", "{others}", "{nothing}"],
        "model": {"first": "wsi", "second": "omics", "others": ["clinical", "wsi"], "nothing": None},
        "presets": {"own": {"model": {"second": "mri"}}},
        "variants": {"all": {"needs": ["any"]}, "two": {"model": {"second": "ct"}}},
    }
    (tmp_path / "models" / "method.yaml").write_text(yaml.safe_dump(document))
    assert studies.model_needs(study, "method") == ["clinical", "mri", "wsi"]
    assert studies.model_needs(study, "method+two") == ["clinical", "ct", "wsi"]
    assert studies.model_needs(study, "method+all") == ["wsi", "omics", "clinical"]


def test_every_training_key_of_the_schema_is_one_of_the_protocol():
    keys = set(read_yaml(ROOT / "schemas" / "cohort.schema.yaml")["properties"]["training"]["properties"])
    keys.remove("folds_per_job")  # of the workflow, which changes no training
    Protocol.of({key: getattr(Protocol(), key) for key in keys})
    assert keys == set(vars(Protocol()))


@pytest.mark.parametrize("stated, usual, folds", [("auto", None, None), ("auto", 1, 1), ("3", 1, 3), (3, None, 3)])
def test_how_many_folds_a_job_takes_is_the_studys_to_say_and_no_part_of_what_is_trained(settings, stated, usual, folds):
    command_line = validate({"training": {"folds_per_job": stated}}, "config", "--config", False)
    study = studies.load_study(settings, "demo", command_line)
    assert studies.folds_per_job(study, usual) == folds
    assert studies.fold_settings(study, "snn") == studies.fold_settings(studies.load_study(settings, "demo"), "snn")


@pytest.mark.parametrize("wrong", ["two", "0", 0, "-1", 1.5])
def test_a_number_of_folds_that_is_none_is_refused(wrong):
    with pytest.raises(InputError, match=r"'training.folds_per_job' has an unusable value"):
        validate({"training": {"folds_per_job": wrong}}, "config", "--config", False)


def test_an_unknown_model_and_variant_name_the_nearest(settings):
    study = studies.load_study(settings, "demo")
    with pytest.raises(InputError, match=r"unknown model 'mcatt' under models.*Did you mean 'mcat'\?"):
        studies.model_needs(study, "mcatt")
    with pytest.raises(InputError, match=r"unknown variant 'abmil\+survpat' under models.*Did you mean 'survpath'\?"):
        studies.model_needs(study, "abmil+survpat")


def test_bad_yaml_names_the_line(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("title: x\nmodels: [a\nslides: {}\n")
    with pytest.raises(InputError, match=r"c.yaml, row 3: not valid YAML"):
        read_yaml(file)


def invented(settings, monkeypatch, tmp_path, **changes):
    """The demo's study with `changes`, as a cohort of one's own."""
    for part in ("models", "schemas", "encoders.yaml"):
        (tmp_path / part).symlink_to(ROOT / part)
    document = merge(read_yaml(ROOT / "cohorts" / "demo.yaml"), changes)
    (tmp_path / "cohorts").mkdir()
    (tmp_path / "cohorts" / "own.yaml").write_text(yaml.safe_dump(document))
    for part in (studies.loading, studies.models):
        monkeypatch.setattr(part, "ROOT", tmp_path)
    return studies.load_study(settings, "own")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"tables": {"wsi": {"file": "a.tsv"}}}, r"tables.wsi has a name that is taken; found 'wsi: the slides'"),
        ({"bags": {"omics": {"file": "a.npz"}}}, r"bags.omics has a name that is taken; found 'omics: the molecular tables'"),
        ({"bags": {"mri": {"file": "a.npz"}}, "tables": {"mri": {"file": "a.tsv"}}}, r"tables.mri has a name .*; found 'mri: one of bags'"),
        ({"options": {"coxnett": {"alpha": 1.0}}}, r"unknown model 'coxnett' under options.*Did you mean 'coxnet'\?"),
        ({"options": {"abmil+survpat": {}}}, r"unknown variant 'abmil\+survpat' under options"),
    ],
)
def test_names_that_clash_and_options_of_nobody_are_refused(settings, monkeypatch, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        invented(settings, monkeypatch, tmp_path, **changes)


@pytest.mark.parametrize("scheme", ["imported", "monte_carlo"])
def test_repeats_of_a_scheme_that_has_none_are_refused(settings, monkeypatch, tmp_path, scheme):
    study = invented(settings, monkeypatch, tmp_path, splits={"scheme": scheme, "file": "list_{fold}.tsv", "repeats": 3})
    with pytest.raises(InputError, match=rf"splits.repeats does nothing with the scheme '{scheme}'; found '3', expected 1"):
        studies.fold_count(study)


def test_a_list_whose_number_cannot_be_filled_in_is_named(settings, monkeypatch, tmp_path):
    study = invented(settings, monkeypatch, tmp_path, splits={"scheme": "imported", "file": "list_{k}.tsv"})
    with pytest.raises(InputError, match=r"contains a placeholder other than \{fold\}; found '.*list_\{k\}.tsv', expected \{fold\}"):
        studies.split_files(study)


def test_cohorts_that_extend_each_other_are_refused(settings, monkeypatch, tmp_path):
    (tmp_path / "cohorts").mkdir()
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / "cohorts" / f"{name}.yaml").write_text(f"extends: {other}\n")
    monkeypatch.setattr(studies.loading, "ROOT", tmp_path)
    with pytest.raises(InputError, match=r"b.yaml: extends no other cohort; found 'a'"):
        studies.load_study(settings, "a")


@pytest.mark.parametrize("other", ["../cohorts/_tcga", "cohorts/demo", "/etc/passwd", "", ["demo"]])
def test_what_a_cohort_extends_is_a_name_beside_it(settings, monkeypatch, tmp_path, other):
    (tmp_path / "cohorts").mkdir()
    (tmp_path / "cohorts" / "a.yaml").write_text(yaml.safe_dump({"extends": other}))
    monkeypatch.setattr(studies.loading, "ROOT", tmp_path)
    with pytest.raises(InputError, match=r"a.yaml: extends no other cohort; found ['\"]"):
        studies.load_study(settings, "a")


@pytest.mark.parametrize("file", ["a{fold:>1000000000}.tsv", "a{fold.__class__}.tsv", "a{fold!r}.tsv", "a{}.tsv", "a{fold.tsv"])
def test_a_place_in_a_name_takes_a_number_and_nothing_else(settings, monkeypatch, tmp_path, file):
    """Python's format would make a name of a gigabyte of the first."""
    study = invented(settings, monkeypatch, tmp_path, splits={"scheme": "imported", "file": file})
    with pytest.raises(InputError) as error:
        studies.split_files(study)
    assert str(error.value).startswith(f"{tmp_path}/cohorts/own.yaml: contains a placeholder other than {{fold}}; found '")


def test_braces_in_paths_are_told_before_snakemake_takes_them_for_wildcards(settings, monkeypatch, tmp_path):
    study = invented(settings, monkeypatch, tmp_path, slides={"folder": "scans {2021}"})
    with pytest.raises(InputError, match=r"own.yaml: path with braces, which Snakemake takes for wildcards; found '.*scans \{2021\}'\."):
        studies.slide_folder(study)
    study["data_dir"] = "/data/{x}"
    with pytest.raises(InputError, match=r"path with braces.*Rename or move it, or give a link to it\."):
        studies.endpoint(study)


def test_a_pattern_of_slides_that_is_absolute_is_told(settings, monkeypatch, tmp_path):
    study = invented(settings, monkeypatch, tmp_path, slides={"folder": str(tmp_path), "pattern": "/data/*.svs"}, synthetic=False)
    with pytest.raises(InputError, match=r"is no pattern of files .*; found '/data/\*.svs', expected a pattern below the folder, such as"):
        studies.folder_listing(study, Contents())
