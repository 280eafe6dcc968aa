"""What a person is told whose cohort's file YAML reads otherwise than he meant it."""

import codecs
import time
from pathlib import Path

import pytest
import yaml

from pipeline.config import check_config, read_yaml, validate
from pipeline.errors import InputError

COHORT = "title: Mine\nmodels: {models}\nendpoints:\n  os: {{table: t.tsv, event_values: [{value}]}}\n"


@pytest.mark.parametrize(
    ("value", "models", "message"),
    [
        (
            "no",
            "[snn]",
            r"'endpoints.os.event_values.0' .*; found 'False', .* Put it in quotes: YAML takes yes, no, on and off for true",
        ),
        ("2", "[snn]", r"'endpoints.os.event_values.0' has an unusable value; found '2', .* Put it in quotes: '2'\."),
        ("Dead", "snn", r"'models' has an unusable value; found 'snn', expected a value of type array\. Write it as a list: \[snn\]\."),
    ],
)
def test_a_value_of_another_type_is_answered_with_how_to_write_it(value, models, message):
    with pytest.raises(InputError, match=message):
        validate(yaml.safe_load(COHORT.format(value=value, models=models)), "cohort", "c.yaml")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"slide": {}}, r"unknown key 'slide'.*Did you mean 'slides'\?"),
        ({"slides": {"encodr": "uni"}}, r"unknown key 'slides.encodr'.*Did you mean 'encoder'\?"),
        ({"training": {"selection": "lost"}}, r"'training.selection' has an unknown value; found 'lost'.*Did you mean 'last'\?"),
        ({"training": {"epochs": "0"}}, r"'training.epochs' has an unusable value; found '0', expected minimum 1"),
        ({"demo": {"patients": "many"}}, r"'demo.patients' has an unusable value; found 'many', expected a value of type integer"),
    ],
)
def test_a_wrong_key_of_the_command_line_is_named_with_the_nearest_right_one(setting, message):
    """Nested values arrive as text. How Snakemake shows it: tests/workflow/test_dag.py."""
    with pytest.raises(InputError, match=r"config/config.yaml or --config: " + message):
        validate(setting, "config", "config/config.yaml or --config")


def test_a_tab_is_named_as_what_is_wrong_with_yaml(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("title: x\nendpoints:\n\tos: {}\n")
    with pytest.raises(InputError, match=r"c.yaml, row 3: not valid YAML \(.*\)\. YAML allows no tabs: indent by spaces\."):
        read_yaml(file)


@pytest.mark.parametrize("text", ["a: [", "a: [\n", "a: {b: 1\n\n", '"a'])
def test_a_file_that_ends_too_early_is_not_valid_yaml(tmp_path, text):
    """The fault is then in a line that is not there."""
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=r"c.yaml, row \d+: not valid YAML"):
        read_yaml(file)


def test_a_key_given_twice_is_named_with_both_rows(tmp_path):
    """YAML leaves open which one counts; the loader took the last without a word."""
    file = tmp_path / "c.yaml"
    file.write_text("title: x\nslides:\n  chunks: 4\n  encoder: uni\n  chunks: 8\n")
    with pytest.raises(InputError, match=r"c.yaml, row 5: not valid YAML \(the key 'chunks' is given twice, first in row 3\)\."):
        read_yaml(file)
    file.write_text("base: &base {chunks: 4}\nslides:\n  <<: *base\n  chunks: 8\n")
    assert read_yaml(file)["slides"] == {"chunks": 8}  # what is merged is meant to be replaced


@pytest.mark.parametrize("text", ["1_000", "12:30", "0b101", "0x1f", "010", "1_0.5", "12:30.5", "١٢", "１２", "1 000"])
def test_what_only_yaml_or_python_take_for_a_number_is_none(tmp_path, text):
    file = tmp_path / "c.yaml"
    file.write_text(f"training:\n  epochs: {text}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"'training.epochs' has an unusable value; found '.*', expected a value of type integer"):
        validate(read_yaml(file), "config", file)
    with pytest.raises(InputError, match=r"'training.epochs' has an unusable value"):  # nested values of --config are text
        validate({"training": {"epochs": text}}, "config", "--config")


def test_numbers_stay_numbers(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("a: [0, -3, +4, 1.5, .5, 1., 1.0e-4, -2.5E+3, .inf, -.inf]\n")
    assert read_yaml(file)["a"] == [0, -3, 4, 1.5, 0.5, 1.0, 1e-4, -2500.0, float("inf"), float("-inf")]


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["-n", "--config", "seed=1_000"], "'seed' is no number; found '1_000', expected digits from 0 to 9, without underscores."),
        (["--config", "models=[snn]", "seed=١٢", "--cores", "2"], "'seed' is no number; found '١٢', expected digits from 0 to 9"),
        (["-C", "seed=nan"], "'seed' is no number; found 'nan', expected a finite number."),
    ],
)
def test_what_snakemake_takes_for_a_number_is_asked_for_again(tmp_path, arguments, found):
    (tmp_path / "config.yaml").write_text("{}")
    with pytest.raises(InputError) as error:
        check_config(tmp_path / "config.yaml", arguments)
    assert str(error.value).startswith(f"--config: {found}")
    check_config(tmp_path / "config.yaml", ["--config", "seed=12", "torch=gpu", "x=1e3", "--set-resources", "a=1_0"])


WRITTEN = "title: Müller\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            WRITTEN.encode("latin-1"),
            "c.yaml, row 1: cannot be read as text; found 'byte 0xfc', expected a YAML file of UTF-8 text. Save it",
        ),
        (
            WRITTEN.encode("utf-16"),
            "c.yaml, row 1: cannot be read as text; found 'UTF-16', expected a YAML file of UTF-8 text. Save it with",
        ),
        (WRITTEN.encode("utf-16-le"), "c.yaml, row 1: cannot be read as text; found"),
        (b"", "c.yaml: holds no mapping; found 'NoneType', expected key: value pairs."),
        (b"a: 2020-13-45", "c.yaml: not valid YAML (month must be in 1..12)."),
    ],
)
def test_text_in_another_encoding_and_an_empty_file_are_told(tmp_path, content, message):
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(InputError) as error:
        read_yaml(tmp_path / "c.yaml")
    assert str(error.value).replace(f"{tmp_path}/", "").startswith(message)


def test_a_byte_order_mark_is_no_part_of_a_key(tmp_path):
    (tmp_path / "c.yaml").write_bytes(codecs.BOM_UTF8 + WRITTEN.encode())
    assert read_yaml(tmp_path / "c.yaml") == {"title": "Müller"}


def test_a_folder_in_place_of_a_file_is_called_one(tmp_path):
    with pytest.raises(InputError, match=r"is no regular file; found 'a folder', expected a YAML file of UTF-8 text\."):
        read_yaml(tmp_path)
    (tmp_path / "gone.yaml").symlink_to(tmp_path / "nowhere.yaml")
    with pytest.raises(InputError, match=r"gone.yaml: no such file; it is a link to what is not there; expected a YAML file"):
        read_yaml(tmp_path / "gone.yaml")


def test_reading_configuration_stays_cheap():
    """Every job reads it, and each start of Snakemake."""
    text = Path(__file__, "../../../config/encoders.yaml").resolve()
    read_yaml(text)
    begin, fast = time.process_time(), getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    for _ in range(5):
        yaml.load(text.read_text(encoding="utf-8"), Loader=fast)
    middle = time.process_time()
    for _ in range(5):
        read_yaml(text)
    assert time.process_time() - middle < 3 * (middle - begin) + 0.01


def test_broken_yaml_on_the_command_line_is_told_by_its_key():
    with pytest.raises(InputError, match=r"'slides' has an unusable value; found '\[', expected a value of type object"):
        validate({"slides": "["}, "config", "--config")
