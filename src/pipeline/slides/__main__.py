"""``python -m pipeline.slides inspect SLIDE…``: what the slide stage sees in a file, as TSV."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipeline.errors import InputError
from pipeline.slides.opening import Slide
from pipeline.slides.provenance import fingerprint
from pipeline.slides.resolution import resolve

COLUMNS = ["slide_id", "vendor", "width", "height", "downsamples", "mpp", "mpp_source", "objective_power", "fingerprint", "problem"]


def inspect(path: str | Path) -> dict[str, object]:
    """One row: geometry, resolution and its source; `problem` says what is wrong and how to mend it, else it is empty."""
    path = Path(path)
    row: dict[str, object] = {"slide_id": path.stem}
    try:
        with Slide(path) as slide:
            row |= {"vendor": slide.properties.get("openslide.vendor"), "width": slide.dimensions[0], "height": slide.dimensions[1]}
            row |= {"downsamples": ",".join(f"{d:g}" for d in slide.downsamples), "fingerprint": fingerprint(path)}
            found = resolve(slide.properties, path.stem)
            row |= {"mpp": found.mpp, "mpp_source": found.source, "objective_power": found.objective_power}
    except InputError as error:
        row["problem"] = str(error)
    return row


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipeline.slides", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("inspect", help="geometry, resolution and problems of slides, one row each").add_argument("slide", nargs="+")
    rows = [inspect(path) for path in parser.parse_args(arguments).slide]
    lines = [COLUMNS, *([row.get(column) for column in COLUMNS] for row in rows)]
    sys.stdout.writelines("\t".join("" if cell is None else str(cell) for cell in line) + "\n" for line in lines)
    return int(any("problem" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
