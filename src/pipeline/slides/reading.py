"""Reading the patches of one slide, in order, with bounded memory, whatever tile is broken.

Two ways lead to the same pixels: decoding the slide's own tiles (`pipeline.slides.tiles`), each once although several patches lie on it,
and OpenSlide, for every format that the first does not serve. The first is used when it gives what OpenSlide gives on patches spread
over the slide.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np

from pipeline.slides.consistency import TOLERANCE, Consistency
from pipeline.slides.opening import Slide, UnreadableRegionError
from pipeline.slides.tiles import AbsentTileError, NotServedError, Tiles, TileStore, View

log = logging.getLogger(__name__)

METHODS = ("exact", "scaled", "openslide")
PROBES = 16  # patches compared with OpenSlide
SCALED_TOLERANCE = 1.5  # mean grey levels by which scaled decoding may differ from averaging pixels; about 0.1 is usual
MAX_UPSAMPLING = 1.25  # a coarser level may stand in for a broken tile when it is at most this much too coarse


@dataclass(frozen=True)
class Patches:
    """A batch as read: pixels uint8 [B, size, size, 3], readable bool [B] (False: pixels are blank and must not be used), and for each
    unreadable one, by its place in the batch, why."""

    pixels: np.ndarray
    readable: np.ndarray
    faults: dict[int, str] = field(default_factory=dict)


class PatchSource:
    """The pixels of the patches at `coords` [N, 2] (level-0 corners, `side` level-0 pixels wide) as images of `size` pixels.

    `method`: ``exact`` (what OpenSlide gives, directly where the format allows), ``scaled`` (JPEG tiles decoded at a half, a quarter or an
    eighth where the target is coarser; pixels differ by about 0.1 grey levels) or ``openslide``. `reader` says which way was taken.
    With `check`, patches that look otherwise at another level count as unreadable (`pipeline.slides.consistency`).
    Any number of threads may read at a time, each with an OpenSlide handle of its own. Raises `InputError` when the slide cannot be opened.
    """

    def __init__(self, path: str | Path, coords: np.ndarray, side: int, size: int, method: str = "exact", check: bool = False) -> None:
        self._path, self._coords, self._side, self.size = Path(path), coords.tolist(), side, size
        self._own = threading.local()
        self._open = ExitStack()
        self._tiles: Tiles | None = None
        self._store: TileStore | None = None
        slide = self._slide()
        self._downsamples = slide.downsamples
        self._level = slide.level_for(side / size)
        self._check = Consistency(slide, coords, side, self._level) if check else None
        self.reader = "openslide"
        if method == "openslide":
            return
        try:
            self._serve(slide, coords, method)
        except NotServedError as reason:
            self._tiles = None
            log.info("%s is read through OpenSlide: %s", self._path.name, reason)

    def close(self) -> None:
        self._open.close()

    def read(self, start: int, stop: int, pixels: np.ndarray | None = None) -> Patches:
        """The patches `start` to `stop`, in the first of `pixels` [≥ stop − start, size, size, 3] where given."""
        corners = self._coords[start:stop]
        pixels = np.empty((len(corners), self.size, self.size, 3), np.uint8) if pixels is None else pixels[: len(corners)]
        readable, faults = np.ones(len(corners), bool), {}
        for i, (x, y) in enumerate(corners):
            try:
                self._read(x, y, pixels[i])
            except UnreadableRegionError as error:
                if not self._rescue(x, y, pixels[i]):
                    pixels[i], readable[i], faults[i] = 0, False, str(error)
        if self._check:
            difference = self._check.difference(start, pixels)
            for i in np.flatnonzero((difference > TOLERANCE) & readable).tolist():
                readable[i], faults[i] = False, f"differs by {difference[i]:.0f} grey levels from the same place at another level"
        return Patches(pixels, readable, faults)

    def _slide(self) -> Slide:
        """This thread's handle."""
        if not hasattr(self._own, "slide"):
            self._own.slide = self._open.enter_context(Slide(self._path))
        return self._own.slide

    def _read(self, x: int, y: int, out: np.ndarray) -> None:
        if self._tiles is None:
            self._through_openslide(self._level, x, y, out)
            return
        try:
            self._from_tiles(self._view, x, y, out)
        except AbsentTileError:
            self._through_openslide(self._level, x, y, out)

    def _through_openslide(self, level: int, x: int, y: int, out: np.ndarray) -> None:
        extent = max(1, round(self._side / self._downsamples[level]))
        _fit(self._slide().read_rgb((x, y), level, (extent, extent)), out)

    def _rescue(self, x: int, y: int, out: np.ndarray) -> bool:
        """Whether another level gave the patch: a finer one, the nearest first, or one that is hardly too coarse."""
        coarser = [i for i, d in enumerate(self._downsamples) if i > self._level and d <= MAX_UPSAMPLING * self._side / self.size]
        for level in (*range(self._level - 1, -1, -1), *coarser):
            try:
                view = self._view_of(level, 1) if self._tiles else None
                if view:
                    self._from_tiles(view, x, y, out)
                else:
                    self._through_openslide(level, x, y, out)
            except (UnreadableRegionError, AbsentTileError):
                continue
            return True
        return False

    def _serve(self, slide: Slide, coords: np.ndarray, method: str) -> None:
        """Read from tiles from here on; raises `NotServedError` when that cannot give OpenSlide's pixels."""
        self._tiles = self._open.enter_context(Tiles(slide))
        views = [self._view_of(self._level, reduce) for reduce in ((8, 4, 2, 1) if method == "scaled" else (1,))]
        views = [view for view in views if view and view.extent >= self.size]
        if not views:
            raise NotServedError(f"the patches do not lie on whole pixels of level {self._level}, between which OpenSlide interpolates")
        for view in views:
            self._view = view
            try:
                self._prove()
                break
            except NotServedError:
                if view.reduce == 1:
                    raise
        self._store = TileStore(self._tiles, view, self._uses(coords))
        self.reader = "tiles" if view.reduce == 1 else f"tiles at 1/{view.reduce}"

    def _view_of(self, level: int, reduce: int) -> View | None:
        """The view of a level, if its tiles are at hand and every patch lies on whole pixels of it."""
        grid = self._tiles.levels.get(level) if self._tiles else None
        step = self._downsamples[level] * reduce
        if grid is None or not grid.scales(reduce) or step != int(step):
            return None
        step = int(step)
        if self._side % step or any(x % step or y % step for x, y in self._coords):
            return None
        return View(level, reduce, step, self._side // step, *(side // reduce for side in grid.tile), grid.across)

    def _uses(self, coords: np.ndarray) -> np.ndarray:
        """How many patches lie on each tile."""
        view = self._view
        columns, rows = (coords[:, i] // view.step for i in (0, 1))
        uses = np.zeros(len(self._tiles.levels[view.level].offsets), np.int64)
        for down in range(-(-view.extent // view.tile_height) + 1):
            for right in range(-(-view.extent // view.tile_width) + 1):
                column, row = columns // view.tile_width + right, rows // view.tile_height + down
                lies = (column * view.tile_width < columns + view.extent) & (row * view.tile_height < rows + view.extent)
                np.add.at(uses, (row * view.across + column)[lies], 1)
        return uses

    def _from_tiles(self, view: View, x: int, y: int, out: np.ndarray) -> None:
        left, top = x // view.step, y // view.step
        column, across = divmod(left, view.tile_width)
        row, down = divmod(top, view.tile_height)
        corner = row * view.across + column
        store = self._store if view is self._view else None
        if across == down == 0 and view.tile_width == view.tile_height == view.extent == self.size:  # the patch is a tile
            if store is None or store.is_alone(corner):
                self._tiles.decode(view.level, corner, view.reduce, out)
            else:
                out[:] = store.take(corner)
                store.release(corner)
            return
        patch = out if view.extent == self.size else self._scratch(view.extent)
        for step, into, part in _pieces(view, across, down):
            if store is None:
                patch[into] = self._tiles.decode(view.level, corner + step, view.reduce)[part]
            else:
                patch[into] = store.take(corner + step)[part]
                store.release(corner + step)
        if patch is not out:
            _fit(patch, out)

    def _scratch(self, extent: int) -> np.ndarray:
        """This thread's room for a patch before it is reduced."""
        patch = getattr(self._own, "patch", None)
        if patch is None or len(patch) != extent:
            patch = self._own.patch = np.empty((extent, extent, 3), np.uint8)
        return patch

    def _prove(self) -> None:
        """Compare patches spread over the slide with OpenSlide's; raises `NotServedError` where they differ."""
        patches = len(self._coords)
        chosen = np.random.default_rng(patches).choice(patches, min(PROBES, patches), replace=False)
        verdicts = [self._probe(*self._coords[i]) for i in sorted(chosen)]
        compared = [v for v in verdicts if v is not None]
        if compared and all(v == "warned" for v in compared):  # the scanner's habit, no damage
            log.info("%s: libjpeg warns about its tiles, whose pixels are the same as OpenSlide's", self._path.name)
            self._tiles.strict = False
        if "differs" in compared:
            raise NotServedError(f"{compared.count('differs')} of {len(compared)} patches differ from what OpenSlide gives")

    def _probe(self, x: int, y: int) -> str | None:
        """How one patch compares: ``equal``, ``differs``, ``warned`` (equal, but libjpeg warns) or None (not comparable)."""
        found, expected = (np.empty((self.size, self.size, 3), np.uint8) for _ in range(2))
        try:
            self._through_openslide(self._level, x, y, expected)
        except UnreadableRegionError:
            return None
        verdict = "equal"
        try:
            try:
                self._from_tiles(self._view, x, y, found)
            except UnreadableRegionError:
                verdict, self._tiles.strict = "warned", False
                self._from_tiles(self._view, x, y, found)
        except AbsentTileError:
            return None
        except UnreadableRegionError:  # OpenSlide reads what we cannot
            return "differs"
        finally:
            self._tiles.strict = True
        difference = np.abs(found.astype(np.int16) - expected).mean()
        return verdict if difference <= (SCALED_TOLERANCE if self._view.reduce > 1 else 0) else "differs"


@lru_cache(maxsize=4096)  # on a grid the same few places come again and again
def _pieces(view: View, across: int, down: int) -> list[tuple[int, tuple[slice, slice], tuple[slice, slice]]]:
    """The tiles under a patch that begins `across` and `down` pixels into its first tile: each one's place in the row of all tiles,
    counted from the first, where its pixels go, and which they are."""

    def spans(begin: int, tile: int) -> list[tuple[slice, slice]]:
        edges = [*range(0, begin + view.extent, tile), begin + view.extent]
        ends = [(max(a, begin), b, a) for a, b in pairwise(edges)]
        return [(slice(a - begin, b - begin), slice(a - start, b - start)) for a, b, start in ends]

    rows, columns = spans(down, view.tile_height), spans(across, view.tile_width)
    return [
        (i * view.across + j, (rows[i][0], columns[j][0]), (rows[i][1], columns[j][1]))
        for i in range(len(rows))
        for j in range(len(columns))
    ]


def _fit(patch: np.ndarray, out: np.ndarray) -> None:
    """Copy a square patch into a square image, averaging its pixels where it is larger."""
    if patch.shape == out.shape:
        out[:] = patch
    else:
        cv2.resize(patch, out.shape[1::-1], dst=out, interpolation=cv2.INTER_AREA)


class Reading:
    """Batches of the patches `first` to `end` of one slide, read ahead by the threads of `pool`; iterate once, then `close` or use `with`.

    `fill` begins to open the slide and to read its first batches, so that they are there when the slide before it is done. At most
    `window` batches are held besides the `keep` last ones that were given out: the pixels of a batch are overwritten when `keep` more have
    been asked for. Memory is thus bounded whatever N, and no time goes into fetching it. Raises `InputError` from iteration or `reader`
    when the slide cannot be opened.
    """

    def __init__(
        self, pool: ThreadPoolExecutor, source: Callable[[], PatchSource], first: int, end: int, batch: int, window: int = 4, keep: int = 1
    ) -> None:
        self._pool, self._end, self._batch, self._window, self._keep = pool, end, batch, window, keep
        self._starts = deque(range(first, end, batch))
        self._ahead: deque[Future[Patches]] = deque()
        self._given: deque[Patches] = deque()
        self._free: list[np.ndarray] = []
        self._source = pool.submit(source)

    def __enter__(self) -> Reading:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        wait([batch for batch in self._ahead if not batch.cancel()])
        if self._source.exception() is None:
            self._source.result().close()

    @property
    def reader(self) -> str:
        """``tiles``, ``tiles at 1/2`` or ``openslide``."""
        return self._source.result().reader

    @property
    def is_asked_for(self) -> bool:
        """Whether all batches are under way or read."""
        return not self._starts

    def __iter__(self) -> Iterator[Patches]:
        self.fill()
        while self._ahead:
            batch = self._ahead.popleft().result()
            self.fill()
            yield batch
            self._given.append(batch)
            if len(self._given) > self._keep:
                self._free.append(self._given.popleft().pixels.base)

    def fill(self) -> None:
        """Ask for batches until `window` of them are under way."""
        while self._starts and len(self._ahead) < self._window:
            self._ahead.append(self._pool.submit(self._read, self._starts.popleft()))

    def _read(self, start: int) -> Patches:
        source = self._source.result()
        pixels = self._free.pop() if self._free else np.empty((self._batch, source.size, source.size, 3), np.uint8)
        return source.read(start, min(start + self._batch, self._end), pixels)
