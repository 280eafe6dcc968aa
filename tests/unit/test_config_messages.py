"""What a person is told whose cohort's file YAML reads otherwise than he meant it."""

import pytest
import yaml

from pipeline.config import read_yaml, validate
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
