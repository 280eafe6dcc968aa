"""The table of patch encoders: config/encoders.yaml and what config/config.yaml changes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from pipeline.config import read_yaml
from pipeline.errors import InputError, nearest
from pipeline.files import sha256
from pipeline.slides.provenance import settings_digest

TABLE = Path(__file__).resolve().parents[4] / "config" / "encoders.yaml"
CHOICES = {"pooling": ("network", "class_and_mean"), "interpolation": ("bilinear", "bicubic"), "access": ("", "open", "gated")}
NOTES = ("name", "licence", "access", "patch_size", "mpp", "checkpoint", "sha256")  # what no feature depends on
LATER = {"pooling": "network", "interpolation": "bilinear", "resize": None}  # keys that older digests do not know, and their defaults


@dataclass(frozen=True)
class EncoderSpec:
    """One entry of config/encoders.yaml, where the fields are explained."""

    name: str
    architecture: str
    width: int
    options: Mapping[str, object] = field(default_factory=dict)
    pooling: str = "network"
    input_size: int | None = None
    resize: int | None = None
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    patch_size: int | None = None
    mpp: float | None = None
    source: str | None = None
    checkpoint: str | None = None
    sha256: str | None = None
    unused: tuple[str, ...] = ()
    version: int = 1
    access: str = ""
    licence: str = ""

    def digest(self) -> str:
        """Changes with anything that changes a feature: the entry and the bytes of the checkpoint, not its place or the notes."""
        entry = {key: value for key, value in asdict(self).items() if key not in NOTES and LATER.get(key, ...) != value}
        weights = sha256(self.existing_checkpoint()) if self.checkpoint else self.source
        return settings_digest(entry, weights)

    def existing_checkpoint(self) -> Path:
        path = Path(str(self.checkpoint)).expanduser()
        if not path.is_file():
            raise InputError(f"encoder {self.name!r}: no such checkpoint", file=path, remedy=self.remedy)
        return path

    @property
    def remedy(self) -> str:
        """How to give weights that the network does not."""
        local = f"ive a local checkpoint in config/config.yaml: `encoders: {{{self.name}: {{checkpoint: /path/to/pytorch_model.bin}}}}`."
        if self.access != "gated":
            return f"G{local}"
        return f"The weights are gated: ask for access on the page of {self.source}, set HF_TOKEN to a token of your account, or g{local}"


def encoder_spec(name: str, overrides: Mapping[str, Mapping[str, object]] | None = None, table: str | Path = TABLE) -> EncoderSpec:
    """The entry `name` of the table, with the keys that ``overrides[name]`` changes (an override may also add a whole entry).

    Raises `InputError` for an unknown encoder, key or choice, with the nearest known one.
    """
    entries = read_yaml(table)
    for other, changes in (overrides or {}).items():
        entries[other] = {**entries.get(other, {}), **(changes or {})}
    if name not in entries:
        raise InputError("no such encoder", column="encoder", found=name, expected=", ".join(entries), remedy=nearest(name, entries))
    entry = {key: value for key, value in entries[name].items() if value is not None}
    known = [f.name for f in fields(EncoderSpec) if f.name != "name"]
    for key in entry:
        if key not in known:
            raise InputError(f"unknown key of encoder {name!r}", column="encoders", found=key, remedy=nearest(key, known))
    for key in ("architecture", "width"):
        if key not in entry:
            raise InputError(f"encoder {name!r} lacks {key!r}", column="encoders", expected=", ".join(known))
    for key, choices in CHOICES.items():
        if entry.get(key, choices[0]) not in choices:
            expected, remedy = " or ".join(filter(None, choices)), nearest(entry[key], choices)
            raise InputError(f"unknown {key} of encoder {name!r}", column="encoders", found=entry[key], expected=expected, remedy=remedy)
    return EncoderSpec(name, **{k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()})
