"""The encoder: are its weights here, whole, and do they fit its architecture."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from pipeline.amounts import gigabytes
from pipeline.doctor.findings import FAIL, OK, WARN, Finding
from pipeline.errors import InputError
from pipeline.slides.encoders.network import HANDCRAFTED, Encoder, EncoderSettings, load_encoder
from pipeline.slides.encoders.table import EncoderSpec

SECONDS = 5.0


@dataclass
class Weights:
    """The encoder of a cohort: its entry and, once `check` has loaded it, itself."""

    spec: EncoderSpec
    settings: EncoderSettings = field(default_factory=EncoderSettings)
    encoder: Encoder | None = None

    def check(self) -> Iterator[Finding]:
        """Weights from a checkpoint or the hub's local cache are loaded; else the hub is asked whether it would give them."""
        spec = self.spec
        if spec.architecture != HANDCRAFTED and not spec.checkpoint and not _cached(spec):
            yield _hub(spec)
            return
        try:
            self.encoder = load_encoder(spec, self.settings)
        except InputError as error:
            yield Finding(FAIL, "encoder", error.reason, error.remedy)
            return
        if spec.architecture == HANDCRAFTED:
            yield Finding(OK, "encoder", f"{spec.name}: {spec.width} features, needs no weights")
            return
        where = f"{spec.existing_checkpoint()}, {gigabytes(spec.existing_checkpoint().stat().st_size)}" if spec.checkpoint else "hub cache"
        checked = ", sha256 as stated" if spec.checkpoint and spec.sha256 else ""
        yield Finding(OK, "encoder", f"{spec.name}: {spec.width} features, weights fit {spec.architecture} ({where}{checked})")


def _cached(spec: EncoderSpec) -> bool:
    from huggingface_hub import try_to_load_from_cache

    from pipeline.slides.encoders.weights import HUB_FILES

    name, _, revision = (spec.source or "").partition("@")
    return bool(name) and any(isinstance(try_to_load_from_cache(name, file, revision=revision or None), str) for file in HUB_FILES)


def _hub(spec: EncoderSpec) -> Finding:
    """Whether the hub can be reached and gives these weights to whoever asks."""
    from huggingface_hub import HfApi, get_token

    if not spec.source:
        return Finding(FAIL, "encoder", f"{spec.name}: neither a checkpoint nor a source of weights", spec.remedy)
    gated = spec.access == "gated"
    what = f"{spec.name}: the {'gated ' * gated}weights of hf-hub:{spec.source} are not on this machine"
    repository, _, revision = spec.source.partition("@")
    try:
        if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
            raise ConnectionError("HF_HUB_OFFLINE is set")
        known = HfApi(endpoint=os.environ.get("HF_ENDPOINT")).model_info(repository, revision=revision or None, timeout=SECONDS)
    except Exception as error:  # what a refused or absent connection raises is the choice of three libraries
        why = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        return Finding(FAIL, "encoder", f"{what} and the hub cannot be asked ({why})", spec.remedy)
    if not (gated or known.gated):
        return Finding(OK, "encoder", f"{what}; the hub can be reached and will be asked when they are needed")
    if not get_token():
        return Finding(FAIL, "encoder", f"{what}, and no account is logged in", spec.remedy)
    return Finding(WARN, "encoder", f"{what}; whether this account has access shows when they are fetched", spec.remedy)
