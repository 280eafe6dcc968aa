"""What the command lines of the doctor and the plan have in common: `--config`, and the settings that result from it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml

from pipeline import config as configuration
from pipeline.plain_yaml import load_yaml


def key_values(texts: Iterable[str]) -> dict[str, Any]:
    """``KEY=VALUE`` with a value in YAML, as Snakemake's `--config`; raises `ValueError` for anything else."""
    return dict(map(_pair, texts))


def read_settings(overrides: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """``config/config.yaml`` under `overrides`, with defaults, and the validated `overrides`; `InputError` for a bad key or value."""
    file = configuration.ROOT / "config.yaml"
    command_line = configuration.validate(overrides, "config", "--config", fill=False)
    return configuration.validate(configuration.merge(configuration.read_yaml(file), overrides), "config", file), command_line


def _pair(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--config {text}: expected KEY=VALUE")
    try:
        return key, load_yaml(value)
    except yaml.YAMLError as error:
        raise ValueError(f"--config {text}: {' '.join(str(error).split())}") from error
