"""Configuration files: reading, schemas with defaults, and one message for a wrong key that names the nearest right one."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import InputError, nearest
from pipeline.plain_yaml import load_yaml
from pipeline.texts import NUMBER, read_text

ROOT = Path(os.environ.get("SLIDE2SURV_CONFIG", Path(__file__).resolve().parents[2] / "config"))
MOST_YAML = 2**26  # bytes: the description of a fold with 20,000 genes has one or two million
SHARED = ("slides", "omics", "splits", "training", "evaluation", "controls", "missing")  # blocks a cohort may override key by key


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML mapping; raises `InputError` with the line where the syntax is wrong, or a key is given twice."""
    text = read_text(path, expected="a YAML file of UTF-8 text", most=MOST_YAML)
    try:
        document = load_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = {"row": mark.line + 1} if mark else {}
        tab = mark and "\t" in "".join(text.splitlines()[mark.line : mark.line + 1])  # none where the file ends
        remedy = "YAML allows no tabs: indent by spaces." if tab else ""
        raise InputError(f"not valid YAML ({getattr(error, 'problem', error)})", file=path, remedy=remedy, **where) from error
    if not isinstance(document, dict):
        raise InputError("holds no mapping", file=path, found=type(document).__name__, expected="key: value pairs")
    return document


@cache
def schema(name: str) -> dict[str, Any]:
    """The JSON schema ``config/schemas/<name>.schema.yaml``; `config` shares the blocks of `SHARED` with `cohort`."""
    document = read_yaml(ROOT / "schemas" / f"{name}.schema.yaml")
    if name == "config":
        document["properties"] |= {block: schema("cohort")["properties"][block] for block in SHARED}
    return document


def validate(document: Mapping[str, Any], name: str, file: str | Path, fill: bool = True) -> dict[str, Any]:
    """A copy of `document` with the schema's defaults filled in (not `fill`: as it is).

    Raises `InputError` at the first violation: the file, the key as a dotted path, what was found, what is allowed and, for
    a key or word that is not known, the nearest one that is.
    """
    from jsonschema import Draft202012Validator  # 0.15 s, needed only where configuration is read

    document = _typed(_quoted_null(document), schema(name))
    document = fill_defaults(document, schema(name) if fill else {})
    errors = sorted(Draft202012Validator(schema(name)).iter_errors(document), key=lambda e: [str(p) for p in e.absolute_path])
    if errors:
        raise _explain(errors[0], file)
    return document


def _quoted_null(value: Any) -> Any:
    """YAML reads an unquoted key ``null`` as nothing; `demo.null` is a key people write without quotes."""
    if isinstance(value, Mapping):
        return {"null" if k is None else k: _quoted_null(v) for k, v in value.items()}
    return [_quoted_null(v) for v in value] if isinstance(value, list) else value


def _typed(value: Any, rule: Mapping[str, Any]) -> Any:
    """Snakemake reads nested values of `--config` as text: read again as YAML what the schema wants to be no text."""
    if isinstance(value, Mapping):
        return {k: _typed(v, rule.get("properties", {}).get(k, {})) for k, v in value.items()}
    if isinstance(value, list):
        return [_typed(item, rule.get("items", {})) for item in value]
    wanted = rule.get("type", "string")
    number = "integer" in wanted and isinstance(value, str) and value.isascii() and value.isdigit()
    if isinstance(value, str) and (number or "string" not in wanted) and "enum" not in rule:
        try:
            return load_yaml(value)
        except yaml.YAMLError:  # text it stays, which the schema refuses
            return value
    return value


def check_config(file: str | Path, arguments: Sequence[str] = ()) -> None:
    """Raise `InputError` for what Snakemake would pass over without a word in `file` and in `arguments`, those of its command line:
    a key given twice, and what Python takes for a number and nobody else (``1_000``, ``12:30``, digits of another script)."""
    validate(read_yaml(file), "config", file, fill=False)
    is_config = False
    for argument in arguments:
        if argument.startswith("-"):
            is_config = argument in ("--config", "-C")
        elif is_config and _is_lenient(value := argument.partition("=")[2]):
            expected = "digits from 0 to 9, without underscores" if any(map(str.isdigit, value)) else "a finite number"
            raise InputError(f"{argument.partition('=')[0]!r} is no number", file="--config", found=value, expected=expected)


def _is_lenient(text: str) -> bool:
    """Whether `float` takes the text for a number, although it is not written as one."""
    try:
        float(text)
    except ValueError:
        return False
    return NUMBER.fullmatch(text) is None


def fill_defaults(value: Any, rule: Mapping[str, Any]) -> Any:
    """A deep copy of `value` in which absent keys take the `default` of their schema, at every depth."""
    if not isinstance(value, Mapping):
        return copy.deepcopy(value)
    other = rule.get("additionalProperties")
    parts = {**dict.fromkeys(value, other if isinstance(other, Mapping) else {}), **rule.get("properties", {})}
    filled = {k: fill_defaults(v, parts[k]) for k, v in value.items()}
    for key, part in rule.get("properties", {}).items():
        if key not in filled and "default" in part:
            filled[key] = fill_defaults(part["default"], part)
    return filled


def _explain(error: Any, file: str | Path) -> InputError:
    path = ".".join(str(p) for p in error.absolute_path)
    if error.validator == "additionalProperties":
        known = list(error.schema.get("properties", {}))
        key = next(k for k in error.instance if k not in known)
        full = f"{path}.{key}" if path else key
        return InputError(f"unknown key {full!r}", file=file, expected="one of " + ", ".join(known), remedy=nearest(key, known))
    if error.validator == "required":
        key = next(k for k in error.validator_value if k not in error.instance)
        return InputError(f"the key {(path + '.' if path else '') + key!r} is missing", file=file, expected=f"{key}: …")
    if error.validator == "enum":
        allowed = [str(v) for v in error.validator_value]
        remedy = nearest(str(error.instance), allowed)
        return InputError(
            f"{path!r} has an unknown value", file=file, found=error.instance, expected="one of " + ", ".join(allowed), remedy=remedy
        )
    expected = {"type": f"a value of type {error.validator_value}"}.get(error.validator, f"{error.validator} {error.validator_value}")
    remedy = _other_type(error.instance, error.validator_value) if error.validator == "type" else ""
    return InputError(f"{path!r} has an unusable value", file=file, found=error.instance, expected=expected, remedy=remedy)


def _other_type(found: Any, wanted: str | list[str]) -> str:
    """How to write a value that YAML reads as another type than the schema wants."""
    if wanted == "string" and isinstance(found, bool):
        return "Put it in quotes: YAML takes yes, no, on and off for true and false."
    if wanted == "string" and isinstance(found, (int, float)):
        return f"Put it in quotes: '{found}'."
    return f"Write it as a list: [{found}]." if wanted == "array" and isinstance(found, str) else ""


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `over` on top, mappings merged at every depth, everything else replaced."""
    merged = copy.deepcopy(dict(base))
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else copy.deepcopy(value)
    return merged
