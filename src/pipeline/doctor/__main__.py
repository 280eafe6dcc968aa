"""``python -m pipeline.doctor [COHORT …]``: OK, WARN or FAIL, line by line, with what to do. Ends with 1 when something fails."""

from __future__ import annotations

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline import config as configuration
from pipeline import study as studies
from pipeline.doctor.cohort import Cohort
from pipeline.doctor.findings import FAIL, OK, WARN, Check, Finding, examine
from pipeline.doctor.machine import machine_checks
from pipeline.doctor.options import key_values, read_settings
from pipeline.doctor.slides import FACTS
from pipeline.doctor.weights import Weights
from pipeline.errors import nearest
from pipeline.slides.encoders.table import encoder_spec
from pipeline.tables import write_table

RESULTS = Path("results")
COLUMNS = ["cohort", "slide_id", "patient_id", "path", *FACTS]


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    logging.basicConfig(level=logging.CRITICAL)  # what the stages log of a slide stands in the findings
    statuses = _told("machine", machine_checks(RESULTS))
    settings: dict[str, Any] = {}
    command_line: dict[str, Any] = {}

    def valid_settings() -> Iterable[Finding]:
        nonlocal settings, command_line
        settings, command_line = read_settings(options.config)
        yield Finding(OK, "settings", f"{configuration.ROOT / 'config.yaml'} is valid")

    def weights() -> Iterable[Finding]:
        yield from Weights(encoder_spec(options.encoder, settings.get("encoders"))).check()

    checks = [("settings", valid_settings)] + [("encoder", weights)] * bool(options.encoder and not options.cohort)
    statuses += _told("configuration", checks)
    probed = []
    for name in options.cohort if settings else []:
        cohort = Cohort(name, settings, command_line, RESULTS / name, options.slides, options.encoder)
        statuses += _told(f"cohort {name}", cohort.checks())
        probed.append(cohort.probed.assign(cohort=name))
    if options.tsv:
        write_table(
            pd.concat(probed or [pd.DataFrame()]).reindex(columns=["cohort", "slide_id", "patient_id", "path", *FACTS]), options.tsv
        )
    sys.stdout.write(f"\n{statuses[OK]} OK, {statuses[WARN]} WARN, {statuses[FAIL]} FAIL\n")
    return int(statuses[FAIL] > 0)


def _told(section: str, checks: Iterable[Check]) -> Counter[str]:
    """Print the findings as they come; how many there are of each status."""
    sys.stdout.write(f"{section}\n")
    statuses: Counter[str] = Counter()
    for finding in examine(checks):
        sys.stdout.write(f"{finding}\n")
        sys.stdout.flush()
        statuses[finding.status] += 1
    return statuses


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pipeline.doctor", description=__doc__)
    parser.add_argument("cohort", nargs="*", help="a file of config/cohorts; none: the machine alone")
    parser.add_argument("--config", action="append", default=[], metavar="KEY=VALUE", help="as Snakemake's, e.g. data_dir=/data")
    parser.add_argument("--slides", default="50", metavar="N", help="slides to open, spread evenly over the cohort; all for every one")
    parser.add_argument("--encoder", help="an entry of config/encoders.yaml in place of the cohort's")
    parser.add_argument("--tsv", type=Path, metavar="FILE", help="write one row a slide that was opened")
    options = parser.parse_args(arguments)
    try:
        options.config = key_values(options.config)
        options.slides = None if options.slides == "all" else _positive(options.slides)
    except ValueError as error:
        parser.error(str(error))
    known = studies.cohort_names()
    for name in options.cohort:
        if name not in known:
            parser.error(f"unknown cohort {name!r}; known are {', '.join(known)}. {nearest(name, known)}".strip())
    return options


def _positive(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise ValueError(f"--slides {text}: expected a number above 0, or all")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
