"""Pictures to check the tissue contours by eye: one a slide, and contact sheets of a cohort."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from shapely.geometry import Polygon

from pipeline.files import atomic
from pipeline.machine import machine_fault

PNG = b"\x89PNG\r\n\x1a\n"
SHORTEST, LONGEST = 800, 1600  # pixels of the longer side of a picture
OUTER, HOLE, GRID = (0, 160, 0), (255, 90, 0), (0, 90, 200)  # RGB: green is in no common stain, orange tells holes apart
COLUMNS, A_PAGE = 10, 100
CELL, CAPTION = 180, 32  # pixels of a thumbnail and of the two lines beneath it
FONT, FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.33
RED, BLACK = (200, 0, 0), (0, 0, 0)


def draw_overlay(
    image: np.ndarray,
    downsample: float,
    polygons: Sequence[Polygon],
    path: str | Path,
    coords: np.ndarray | None = None,
    side: int | None = None,
) -> None:
    """Write the overview uint8 [H, W, 3] with outer contours in green and holes in orange, 800 to 1600 pixels on its longer side.

    `downsample`: level-0 pixels a pixel of `image`; polygons in level-0 pixels. `coords` [N, 2] and `side` (level-0 pixels) add the
    patches as thin blue squares.
    """
    picture, scale = fitted(image, downsample)
    if coords is not None and side is not None:
        draw_squares(picture, coords / scale, side / scale, GRID)
    for polygon in polygons:
        for ring, colour in [(polygon.exterior, OUTER), *((hole, HOLE) for hole in polygon.interiors)]:
            points = np.round(np.asarray(ring.coords) / scale - 0.5).astype(np.int32)
            cv2.polylines(picture, [points], isClosed=True, color=colour, thickness=2, lineType=cv2.LINE_AA)
    write_picture(path, picture)


def fitted(image: np.ndarray, downsample: float) -> tuple[np.ndarray, float]:
    """A copy of the overview with 800 to 1600 pixels on its longer side, and the level-0 pixels that one of its pixels covers."""
    longest = max(image.shape[:2])
    wanted = min(max(longest, SHORTEST), LONGEST)
    if wanted == longest:
        return image.copy(), downsample
    size = tuple(max(1, round(extent * wanted / longest)) for extent in image.shape[1::-1])
    way = cv2.INTER_AREA if wanted < longest else cv2.INTER_CUBIC
    return cv2.resize(image, size, interpolation=way), downsample * image.shape[1] / size[0]


def draw_squares(picture: np.ndarray, corners: np.ndarray, side: float, colour: tuple[int, int, int]) -> None:
    """Thin squares at `corners` [N, 2] (pixels of `picture`, x and y), `side` pixels wide, into `picture`."""
    for (left, top), (right, bottom) in zip(
        np.round(corners).astype(int).tolist(), np.round(corners + side).astype(int).tolist(), strict=True
    ):
        cv2.rectangle(picture, (left, top), (right, bottom), colour, 1)


def write_picture(path: str | Path, picture: np.ndarray) -> None:
    """Write RGB uint8 [H, W, 3] in the format of the suffix, atomically. Raises what Python's writing raises; OpenCV's says nothing."""
    is_encoded, content = cv2.imencode(Path(path).suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    if not is_encoded:
        raise ValueError(f"{path}: OpenCV cannot encode a picture of {picture.shape}")
    with atomic(path) as temporary:
        temporary.write_bytes(content.tobytes())


def read_picture(path: str | Path) -> np.ndarray | None:
    """RGB uint8 [H, W, 3] of a PNG; None where there is no such file or it is none. Raises `MachineError` where it cannot be read."""
    if not Path(path).is_file():
        return None
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        if fault := machine_fault(error, path):
            raise fault from error
        return None
    picture = cv2.imdecode(content, cv2.IMREAD_COLOR) if content[: len(PNG)].tobytes() == PNG else None
    return None if picture is None else cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def contact_sheet(overlays: Sequence[str | Path], labels: Sequence[str], path: str | Path, flags: Sequence[str] = ()) -> list[Path]:
    """Write thumbnails of the `overlays` with their `labels` and, in red, their `flags` beneath, 100 a page; returns the pages.

    The first page is `path`, the next ones add ``-2``, ``-3`` … to its stem. An overlay that is absent leaves an empty cell that says so.
    """
    path, flags = Path(path), list(flags) or [""] * len(labels)
    cells = list(zip(overlays, labels, flags, strict=True))
    pages = []
    for start in range(0, max(1, len(cells)), A_PAGE):
        number = start // A_PAGE + 1
        pages.append(path if number == 1 else path.with_stem(f"{path.stem}-{number}"))
        write_picture(pages[-1], _page(cells[start : start + A_PAGE]))
    return pages


def _page(cells: Sequence[tuple[str | Path, str, str]]) -> np.ndarray:
    rows = max(1, -(-len(cells) // COLUMNS))
    page = np.full((rows * (CELL + CAPTION), COLUMNS * CELL, 3), 255, np.uint8)
    for at, (overlay, label, flag) in enumerate(cells):
        top, left = at // COLUMNS * (CELL + CAPTION), at % COLUMNS * CELL
        picture = read_picture(overlay)
        if picture is not None:
            factor = (CELL - 6) / max(picture.shape[:2])
            small = cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
            page[top : top + small.shape[0], left : left + small.shape[1]] = small
        _caption(page, label, (left, top + CELL + 8), BLACK)
        _caption(page, flag if picture is not None else "; ".join(filter(None, ["no picture", flag])), (left, top + CELL + 22), RED)
    return page


def _caption(page: np.ndarray, text: str, corner: tuple[int, int], colour: tuple[int, int, int]) -> None:
    """One line of text, cut to the cell's width."""
    while text and cv2.getTextSize(text, FONT, FONT_SCALE, 1)[0][0] > CELL - 6:
        text = text[:-1]
    cv2.putText(page, text, corner, FONT, FONT_SCALE, colour, 1, cv2.LINE_AA)
