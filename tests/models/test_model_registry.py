import inspect
import subprocess
import sys

import pytest
import yaml

from pipeline.config import ROOT
from pipeline.errors import InputError
from pipeline.models import available_models, build_model, load_model_config, model_variants, parse_model
from pipeline.models.__main__ import main, table, variants
from pipeline.models.interface import Inputs
from pipeline.models.registry import entry


def test_the_four_models_of_the_slice_are_there():
    assert {"abmil", "mcat", "snn", "survq"} <= set(available_models())


def test_every_model_has_a_file_of_settings_and_the_other_way_round():
    assert available_models() == sorted(p.stem for p in (ROOT / "models").glob("*.yaml"))


@pytest.mark.parametrize("name", available_models())
def test_settings_name_exactly_the_constructors_arguments(name):
    arguments = [p.name for p in inspect.signature(entry(name).model.__init__).parameters.values() if p.kind is p.KEYWORD_ONLY]
    settings = load_model_config(name)
    assert list(settings["model"]) == arguments
    named = [settings["model"][need.strip("{}")] if need.startswith("{") else need for need in settings["modalities"]]
    assert set(named) - {None} == set(entry(name).modalities)


@pytest.mark.parametrize("name", available_models())
def test_every_setting_states_its_source(name):
    inside, lines = False, (ROOT / "models" / f"{name}.yaml").read_text().splitlines()
    for line in lines:
        inside = line.startswith((" ", "-")) if line.strip() else inside
        value = line.strip().partition(":")[2].strip()
        if inside and value and not line.strip().startswith("#") and not line.startswith("paper:"):
            assert " # " in line, f"{name}.yaml: {line.strip()}"


def test_a_variant_overrides_and_leaves_the_rest():
    plain, variant = load_model_config("abmil"), load_model_config("abmil", "survpath")
    assert variant["model"] == {**plain["model"], "L": 256}
    assert variant["training"]["optimizer"] == "radam"
    assert variant["training"]["loss"] == plain["training"]["loss"]
    assert load_model_config("abmil", "concat")["modalities"] == ["wsi", "omics"]


def test_a_preset_lies_under_the_variant(tmp_path):
    (tmp_path / "models").mkdir()
    document = yaml.safe_load((ROOT / "models" / "snn.yaml").read_text())
    document["presets"] = {"blca": {"model": {"dropout": 0.5}, "training": {"epochs": 7, "lr": 0.1}}}
    document["variants"] = {"slow": {"training": {"epochs": 70}}}
    (tmp_path / "models" / "snn.yaml").write_text(yaml.safe_dump(document))
    there = load_model_config("snn", "slow", preset="blca", config=tmp_path)
    assert (there["model"]["dropout"], there["training"]["epochs"], there["training"]["lr"]) == (0.5, 70, 0.1)
    elsewhere = load_model_config("snn", "slow", preset="luad", config=tmp_path)
    assert (elsewhere["model"]["dropout"], elsewhere["training"]["lr"]) == (0.25, 2e-4)


def test_a_model_may_be_written_with_its_variant():
    assert parse_model("abmil+survpath") == ("abmil", "survpath")
    assert parse_model("abmil") == ("abmil", None)


@pytest.mark.parametrize(
    "text, message",
    [
        ("abmill", r"unknown model; found 'abmill', expected one of .*\. Did you mean 'abmil'\?"),
        ("abmil+survpat", r"abmil\.yaml: unknown variant of abmil; found 'survpat', .* Did you mean 'survpath'\?"),
        ("abmil+", "unknown variant of abmil; found ''"),
        ("../registry", "unknown model"),
        ("registry", "unknown model"),
    ],
)
def test_an_unknown_model_or_variant_is_refused_with_the_nearest_right_one(text, message):
    with pytest.raises(InputError, match=message):
        parse_model(text)


@pytest.mark.parametrize(
    "model, overrides, message",
    [
        ("snn", {"droput": 0.1}, r"unknown option of snn; found 'droput', .* Did you mean 'dropout'\?"),
        ("snn", {"activation": "seluu"}, r"unknown value of the model option 'activation'; found 'seluu', .* Did you mean 'selu'\?"),
        ("abmil", {"fusion": "bilinar"}, r"option 'fusion'; found 'bilinar', expected one of none, concat, bilinear. Did you mean 'bil"),
        ("mcat", {"missing": "zero"}, r"option 'missing'; found 'zero', .* Did you mean 'zeros'\?"),
        ("survq", {"self_attn": True, "geno_queries": False}, "SurvQ mixes query tokens only"),
    ],
)
def test_a_wrong_option_is_refused_with_the_nearest_right_one(inputs, model, overrides, message):
    with pytest.raises(InputError, match=message):
        build_model(model, inputs, **overrides)


@pytest.mark.parametrize(
    "model, variant, offered, message",
    [
        ("snn", None, Inputs(bags={"wsi": 8}), "SNN reads 'omics', a vector a patient, which the cohort does not offer; found 'none'"),
        ("abmil", None, Inputs(vectors={"omics": 8}), "ABMIL reads 'wsi', a bag of instances, which the cohort does not offer"),
        ("abmil", "concat", Inputs(bags={"wsi": 8}), "ABMIL with fusion concat reads 'omics'"),
        ("mcat", None, Inputs(bags={"wsi": 8}, groups={"pathways": (1,)}), "MCAT reads 'families', .*; found 'pathways', .* omics.groups"),
        ("mcat", None, Inputs(groups={"families": (1,)}), "MCAT reads 'wsi'"),
        ("survq", None, Inputs(bags={"wsi": 8}, groups={"families": (1,)}), "SurvQ reads 'pathways'"),
    ],
)
def test_a_cohort_that_lacks_what_a_model_reads_is_told_what_to_offer(model, variant, offered, message):
    with pytest.raises(InputError, match=message):
        build_model(model, offered, variant)


def test_a_key_that_the_model_does_not_have_is_refused_in_a_variant_too(tmp_path):
    settings = yaml.safe_load((ROOT / "models" / "snn.yaml").read_text())
    settings["variants"] = {"typo": {"training": {"learning_rate": 1}}, "empty": None}
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "snn.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    assert model_variants("snn", config=tmp_path) == ["typo", "empty"]
    assert load_model_config("snn", "empty", config=tmp_path) == load_model_config("snn", config=tmp_path)
    with pytest.raises(InputError, match=r"snn\.yaml: unknown key training\.<key> in variant typo; found 'learning_rate'"):
        load_model_config("snn", "typo", config=tmp_path)


def test_listing_the_models_does_not_import_torch():
    code = "import sys; from pipeline.models import available_models; available_models(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT.parent / "src")}, check=False).returncode == 0


def test_the_table_of_models_states_the_published_figures():
    rows = table().set_index("model")
    assert list(rows.loc[["abmil", "mcat", "snn", "survq"], "parameters"]) == [920_069, 4_161_286, 982_532, 25_728_836]
    assert list(rows.loc[["abmil", "snn"], "forward_gflops"]) == [6.4490, 0.0020]
    assert rows.loc["survq", "forward_gflops"] == pytest.approx(7.243, abs=5e-4)


def test_the_variants_of_a_model_are_listed_with_what_they_read_and_cost():
    rows = variants("abmil").set_index("model")
    assert list(rows.index) == ["abmil", *(f"abmil+{name}" for name in model_variants("abmil"))]
    assert rows.loc["abmil", "parameters"] == 920_069
    assert rows.loc["abmil", "forward_gflops"] == 6.449
    assert rows.loc["abmil", "modalities"] == "wsi"


def test_a_variant_that_the_reference_input_does_not_suit_is_listed_with_the_reason():
    rows = variants("snntrans").set_index("model")
    assert "SNNTrans reads 'pathways'" in rows.loc["snntrans+pathways", "note"]
    assert rows.loc["snntrans+pathways", ["parameters", "forward_gflops"]].isna().all()


def test_the_command_line_prints_one_table_and_names_the_nearest_model(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["models", "snn"])
    main()
    assert capsys.readouterr().out.startswith("model\tmodalities\tparameters\tforward_gflops\tnote\nsnn\t")
    monkeypatch.setattr(sys, "argv", ["models", "snnn"])
    with pytest.raises(SystemExit, match="Did you mean 'snn'"):
        main()
