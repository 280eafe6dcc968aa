"""The features stage of a chunk of slides: every patch through an encoder."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.errors import InputError
from pipeline.machine import MachineError, read_to_end
from pipeline.slides.encoders.network import Encoder, EncoderSettings, load_encoder
from pipeline.slides.encoders.table import EncoderSpec, encoder_spec
from pipeline.slides.features import PatchFile, Progress, read_coords, read_made, read_progress, write_features, write_progress
from pipeline.slides.filesets import slide_files
from pipeline.slides.provenance import code_of, made_by, settings_digest, slide_fingerprint
from pipeline.slides.reading import PatchSource, Reading
from pipeline.slides.sealing import sealed_checksum
from pipeline.slides.stages.manifests import PATIENCE, read_passed, run_slides
from pipeline.slides.stages.supervision import StopChunkError, alive, is_retry
from pipeline.stopping import STATUS, deferred
from pipeline.tables import write_table

log = logging.getLogger(__name__)

COLUMNS = ["patches", "unreadable", "width", "reader", "checksum"]


@dataclass(frozen=True)
class ReadingSettings:
    """How patches are read.

    method: ``exact``, ``scaled`` or ``openslide`` (`pipeline.slides.reading.PatchSource`). check: compare patches with a coarser level.
    readers: threads that decode; they change no feature. max_bad_share: a slide with a larger share of unreadable patches fails.
    keep_seconds: what is done of a slide is kept at least so often, and the log says how far it is. patience: seconds without a batch
    after which a slide is tried again and then given up.
    """

    method: str = "exact"
    check: bool = True
    readers: int = 1
    max_bad_share: float = 0.1
    keep_seconds: float = 60.0
    patience: float = PATIENCE


def features_chunk(
    patches_manifest: Path | str,
    slides: pd.DataFrame,
    folder: Path | str,
    manifest: Path | str,
    encoder: str,
    *,
    overrides: Mapping[str, Mapping[str, object]] | None = None,
    running: EncoderSettings | None = None,
    reading: ReadingSettings | None = None,
) -> None:
    """Features of every slide that passed `patches_manifest` into `folder`, and the manifest.

    `overrides` changes entries of config/encoders.yaml. Patches that cannot be read are left out, counted, and listed with their reasons
    in ``<slide>.unreadable.tsv``. The encoder is loaded once, and only when a slide needs it; when that fails, the error is raised, not
    listed: it is no slide's fault. A slide that a kill interrupts is taken up again where its features were last kept.
    """
    passed = read_passed(patches_manifest, ["patches"])
    slides = slides[slides["slide_id"].isin(passed.index)]
    spec = encoder_spec(encoder, overrides)
    if len(slides):
        spec.digest()  # an absent checkpoint is no slide's fault
    running = replace(running or EncoderSettings(), patches=int(passed["patches"].sum()))
    reading = reading or ReadingSettings()
    stage = _Stage(Path(patches_manifest).parent, slides, Path(folder), spec, running, reading)
    run_slides(f"encode ({encoder})", slides, stage.process, COLUMNS, manifest, reading.patience)


@dataclass(frozen=True)
class _Place:
    """A slide on its way: its patches, the file of its features, and what these are made from."""

    slide_id: str
    slide: Path
    patches: PatchFile
    features: Path
    origin: Mapping[str, str]

    @property
    def progress(self) -> Path:
        return self.features.with_name(f".{self.slide_id}.partial.h5")

    @property
    def unreadable(self) -> Path:
        return self.features.with_name(f"{self.slide_id}.unreadable.tsv")

    @cached_property
    def made(self) -> PatchFile | None:
        """The finished features, proven once; None where they are to be made."""
        return read_made(self.features, **self.origin)


class _Stage:
    """What the slides of a chunk share: the encoder, the threads that read, and the slide that is read ahead."""

    def __init__(
        self, patches: Path, slides: pd.DataFrame, folder: Path, spec: EncoderSpec, running: EncoderSettings, reading: ReadingSettings
    ) -> None:
        self._patches, self._folder, self._spec, self._running, self._reading = patches, folder, spec, running, reading
        self._following = dict(zip(slides["slide_id"], slides[1:].to_dict("records"), strict=False))
        self._placed: dict[str, _Place] = {}  # looked at before their turn
        self._ahead: dict[str, tuple[Progress, Reading]] = {}

    @cached_property
    def _encoder(self) -> Encoder:
        try:
            return load_encoder(self._spec, self._running)
        except InputError as error:
            raise StopChunkError from error

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._reading.readers, thread_name_prefix="reader")

    def process(self, row: dict) -> dict[str, object]:
        """The row of the manifest of one slide."""
        place = self._placed.pop(row["slide_id"], None) or self._place(row)
        done = place.made or self._make(place)
        unreadable = int(done.attributes["unreadable"])
        self._check_share(place, unreadable)
        facts = {"width": self._spec.width, "reader": done.attributes["reader"], "checksum": sealed_checksum(place.features)}
        return {"patches": len(done.coords), "unreadable": unreadable, **facts}

    def _place(self, row: dict) -> _Place:
        slide_id, slide = row["slide_id"], Path(row["path"])
        with made_by("patches"):
            patches = read_coords(self._patches / f"{slide_id}.h5")
        method = [self._reading.method] if self._reading.method == "scaled" else []  # the others give the same pixels
        settings = settings_digest(self._spec.digest(), patches.attributes["settings"], patches.coords_digest, *method)
        code = code_of("pipeline.slides.encoders.network", "pipeline.slides.reading")
        found, expected = slide_fingerprint(slide), str(patches.attributes["slide_fingerprint"])
        if found != expected:
            problem = "the slide was replaced since its patches were laid"
            remedy = "Run again: its tissue and patches are then found anew."
            raise InputError(problem, file=slide, found=found, expected=f"fingerprint {expected}", remedy=remedy)
        origin = {"settings": settings, "slide_fingerprint": found, "code": code}
        return _Place(slide_id, slide, patches, self._folder / f"{slide_id}.h5", origin)

    def _make(self, place: _Place) -> PatchFile:
        """Encode what is not yet encoded of a slide, write its features, and return what else is in their file."""
        progress, reading = self._ahead.pop(place.slide_id, None) or self._begin(place)
        with reading:
            self._encode(place, progress, reading)
            reader = reading.reader
        readable = np.concatenate(progress.readable)
        if progress.faults:
            read_to_end(slide_files(place.slide))  # lest a disk that does not read passes for damage
        self._list_unreadable(place, readable, progress.faults)
        self._check_share(place, len(progress.faults))
        facts = {"encoder": self._spec.name, "unreadable": len(progress.faults), "reader": reader, **self._encoder.describe()}
        attributes = {**place.patches.attributes, **facts, **place.origin}
        done = PatchFile(place.patches.coords[readable], None, attributes)
        write_features(place.features, np.concatenate(progress.features), done.coords, attributes)
        place.progress.unlink(missing_ok=True)
        return done

    def _begin(self, place: _Place) -> tuple[Progress, Reading]:
        """Start to read a slide where it was left."""
        progress = read_progress(place.progress, place.origin)
        if progress.patches:
            log.info("slide %s: goes on after %d patches", place.slide_id, progress.patches)
        side, size = (int(place.patches.attributes[key]) for key in ("patch_size_level0", "patch_size"))
        source = partial(PatchSource, place.slide, place.patches.coords, side, size, self._reading.method, self._reading.check)
        window = self._reading.readers + 1
        batch = self._encoder.batch_size
        reading = Reading(self._pool, source, progress.patches, len(place.patches.coords), batch, window, keep=self._encoder.in_flight)
        reading.fill()
        return progress, reading

    def _encode(self, place: _Place, progress: Progress, reading: Reading) -> None:
        """Bring `progress` to the end of the slide, keeping what is done every now and then."""
        arrived: list = []

        def pixels() -> Iterator[np.ndarray]:
            for batch in reading:
                if reading.is_asked_for:
                    self._read_ahead(place.slide_id)
                arrived.append(batch)
                yield batch.pixels

        start = kept = time.monotonic()
        before = progress.patches
        encoder = self._encoder  # loading it is not put off
        try:
            with deferred() as stop_asked:
                for features in encoder.encode_all(pixels()):
                    batch = arrived.pop(0)
                    with np.errstate(over="ignore"):  # an overflow becomes inf, which write_features refuses
                        progress.features.append(features[batch.readable].astype(np.float16))
                    progress.readable.append(batch.readable)
                    progress.faults += [batch.faults[i] for i in sorted(batch.faults)]
                    alive()
                    if stop_asked():
                        write_progress(place.progress, progress, place.origin)
                        log.info("slide %s: told to stop after %d patches, which are kept", place.slide_id, progress.patches)
                        sys.exit(STATUS)
                    if time.monotonic() - kept > self._reading.keep_seconds:
                        kept = time.monotonic()
                        write_progress(place.progress, progress, place.origin)
                        _say_how_far(place, progress.patches, (progress.patches - before) / (kept - start))
        except (RuntimeError, MemoryError) as error:  # of the device: it would meet every slide
            raise StopChunkError from error

    def _read_ahead(self, slide_id: str) -> None:
        """Begin to read the slide after this one, if it needs it and is not under way; its errors are told when its turn comes."""
        row = self._following.get(slide_id)
        if row is None or row["slide_id"] in self._placed or is_retry():
            return
        try:
            place = self._place(row)
        except (InputError, MachineError, OSError):
            return
        self._placed[place.slide_id] = place
        if not place.made:
            self._ahead[place.slide_id] = self._begin(place)

    def _list_unreadable(self, place: _Place, readable: np.ndarray, faults: list[str]) -> None:
        place.unreadable.unlink(missing_ok=True)
        if faults:
            x, y = place.patches.coords[~readable].T
            write_table(pd.DataFrame({"slide_id": place.slide_id, "x": x, "y": y, "reason": faults}), place.unreadable)

    def _check_share(self, place: _Place, unreadable: int) -> None:
        patches, share = len(place.patches.coords), self._reading.max_bad_share
        if unreadable > share * patches:
            raise InputError(
                "too many patches cannot be read",
                slide=place.slide_id,
                found=f"{unreadable} of {patches}",
                expected=f"at most {share:.0%}",
                remedy=f"{place.unreadable.name} says which and why. Copy the slide again, or raise `slides.max_bad_share`.",
            )


def _say_how_far(place: _Place, done: int, rate: float) -> None:
    patches = len(place.patches.coords)
    left = (patches - done) / rate / 60 if rate else float("inf")
    log.info("slide %s: %d of %d patches, %.0f patches/s, %.1f min left", place.slide_id, done, patches, rate, left)
