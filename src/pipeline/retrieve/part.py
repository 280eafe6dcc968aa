"""A file on its way: what is held of it, how to go on, and the proof before it gets its name."""

from __future__ import annotations

from pathlib import Path

import requests
import yaml

from pipeline.config import read_yaml
from pipeline.errors import InputError
from pipeline.files import atomic, md5, sha256, write_text
from pipeline.retrieve.arriving import PassingError, arriving
from pipeline.retrieve.contents import damage
from pipeline.retrieve.source import Source, write_source

MOST_UNSTATED = 1 << 36  # bytes of a file whose length nobody states: 64 GiB (our choice)
RANGE_NOT_SATISFIABLE, PARTIAL = 416, 206


class SpoiledError(Exception):
    """A whole file with the wrong content, and what to do when it comes again."""

    def __init__(self, reason: str, remedy: str) -> None:
        self.remedy = remedy
        super().__init__(reason)


class Part:
    """``<path>.part`` with the bytes that are held, ``<path>.part.yaml`` with what they are a part of.

    What another address, another stated MD5 or an unknown version left there is thrown away: pieces of two files are never joined.
    """

    def __init__(self, url: str, path: Path, size: int | None, digest: str | None) -> None:
        self.url, self.path, self.total, self.digest = url, path, size, digest
        self.bytes, self.notes = (path.with_name(path.name + end) for end in (".part", ".part.yaml"))
        known = self._read_notes()
        self.validator = known.get("validator")
        if (known.get("url"), known.get("md5")) != (url, digest) or not self.provable:
            self.discard()

    def _read_notes(self) -> dict[str, str | None]:
        try:
            return read_yaml(self.notes)
        except (OSError, InputError):
            return {}

    @property
    def provable(self) -> bool:
        """Whether the next bytes will be known to belong to those that are held: by the server, or by the MD5 at the end."""
        return bool(self.validator or self.digest)

    @property
    def held(self) -> int:
        """Bytes on disk."""
        return self.bytes.stat().st_size if self.bytes.is_file() else 0

    @property
    def complete(self) -> bool:
        return self.total is not None and 0 < self.total == self.held

    def headers(self) -> dict[str, str]:
        """Ask for the file as it is stored, from the first byte that is missing (RFC 9110, 13.1.5 and 14.2)."""
        headers = {"Accept-Encoding": "identity"}
        if self.held and self.provable:
            headers["Range"] = f"bytes={self.held}-"
            headers |= {"If-Range": self.validator} if self.validator else {}
        return headers

    def receive(self, response: requests.Response) -> None:
        """Write the body behind what is held, or from the beginning where the server sends the whole file.

        Raises `PassingError` when the connection breaks, `SpoiledError` when the server tells of another file than was stated.
        """
        start, total = _range_of(response)
        if response.status_code == RANGE_NOT_SATISFIABLE:
            self._nothing_left(total)
            return
        if start not in (0, self.held):
            self.discard()
            raise PassingError(f"the server answers from byte {start}, which was not asked for")
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding != "identity" and self.path.suffix != ".gz":
            raise SpoiledError(f"the server sends it packed as {encoding!r}", "Fetch the file by hand.")
        if None not in (self.total, total) and total != self.total:
            raise SpoiledError(f"the server's file has {total} bytes, {self.total} expected", "Make the manifest anew.")
        self.total = self.total if total is None else total
        self._note(response)
        most = MOST_UNSTATED if self.total is None else self.total
        with open(self.bytes, "ab" if start else "wb") as handle:
            for block in arriving(response):
                handle.write(block)
                if handle.tell() > most:
                    handle.truncate(start)
                    stated = "it states no length" if self.total is None else f"{most} expected"
                    raise SpoiledError(f"the server sends more than {most} bytes; {stated}", "Fetch the file by hand.")
        if self.total is not None and self.held < self.total:
            raise PassingError(f"the connection ended after {self.held} of {self.total} bytes")

    def _nothing_left(self, total: int | None) -> None:
        """After 416: either the last byte was already held, or the file is shorter than the part and has to be begun anew."""
        if total == self.held:
            self.total = total
            return
        self.discard()
        raise PassingError("the server's file is shorter than the part that was held")

    def _note(self, response: requests.Response) -> None:
        tag = response.headers.get("ETag", "")
        self.validator = tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")
        write_text(self.notes, yaml.safe_dump({"url": self.url, "md5": self.digest, "validator": self.validator}))

    def prove(self) -> None:
        """Raise `SpoiledError` when the whole file is not what was stated or what its name says."""
        if self.total is not None and self.held != self.total:
            raise SpoiledError(f"{self.held} bytes came, {self.total} expected", "Make the manifest anew.")
        if self.digest and (found := md5(self.bytes)) != self.digest:
            raise SpoiledError(f"wrong MD5 {found}, expected {self.digest}", "Make the manifest anew; if it stays, tell the archive.")
        if reason := damage(self.bytes, self.path.name):
            raise SpoiledError(reason, "Open the address in a browser: a login, a proxy's page or a moved file may stand there.")

    def finish(self) -> Source:
        """Give the file its name and put its source beside it."""
        source = Source(self.url, self.held, sha256(self.bytes), self.digest)
        with atomic(self.path) as temporary:
            self.bytes.replace(temporary)
        write_source(self.path, source)
        self.discard()
        return source

    def discard(self) -> None:
        self.bytes.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)


def _range_of(response: requests.Response) -> tuple[int, int | None]:
    """First byte of the body (-1: not said) and length of the whole file (None: not said)."""
    if response.status_code in (PARTIAL, RANGE_NOT_SATISFIABLE):
        span, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        first = span.partition("-")[0]
        return int(first) if first.isdecimal() else -1, int(total) if total.isdecimal() else None
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None
