"""The one way to the network: requests repeated with patience, files resumed, checked and renamed when they are whole.

Built on `requests`: proxies come from the environment (HTTPS_PROXY, NO_PROXY), certificates are verified.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import requests

from pipeline import __version__
from pipeline.errors import InputError
from pipeline.files import md5, sha256
from pipeline.retrieve.arriving import BROKEN, DrippingError, PassingError, arriving, short
from pipeline.retrieve.part import RANGE_NOT_SATISFIABLE, Part, SpoiledError
from pipeline.retrieve.settings import RetrieveSettings
from pipeline.retrieve.source import Source, read_source, write_source
from pipeline.seeds import seed_from

log = logging.getLogger(__name__)

WORTH_WAITING = (408, 429)  # and every 5xx
SPOILED = 2  # a whole file with wrong content is fetched once more, not more often (our choice): a mirror rarely changes its mind
MOST_JSON = 1 << 28  # bytes of an answer in JSON, unpacked: 256 MiB (our choice)
HEADERS = 5  # times the timeout within which an answer has to begin, whatever drips
REMEDY = "Check the connection and the proxy (HTTPS_PROXY), or fetch it by hand; the same command goes on where it stopped."
REFUSED = "The address is refused: check the names and releases under `retrieve`, and that the data are open-access."


class UnreachableError(InputError):
    """No answer at all came from a server, so that other files of it need not be tried."""


def _session() -> requests.Session:
    session = requests.Session()
    session.headers["User-Agent"] = f"slide2surv/{__version__}"
    return session


@dataclass
class Client:
    """Patience with a server.

    tries: failures in a row, without a byte gained, after which a request is given up.
    wait, longest_wait: seconds before the second try, doubled each time up to the longest; a tenth to a half of it is taken off
    by chance (from `seed`, address and try) so that many clients do not come back at once. ``Retry-After`` counts where it is
    longer; a server that asks for more than `longest_wait` is not waited for. timeout: seconds without a byte.
    """

    tries: int = 6
    wait: float = 1.0
    longest_wait: float = 300.0
    timeout: float = 60.0
    seed: int = 0
    sleep: Callable[[float], None] = time.sleep
    session: requests.Session = field(default_factory=_session, repr=False)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Client:
        """A client as the block `retrieve` of a configuration wants it."""
        settings = RetrieveSettings.of(config.get("retrieve", {}))
        return cls(tries=settings.tries, wait=settings.wait, longest_wait=settings.longest_wait, timeout=settings.timeout)

    def json(self, url: str, *, query: Mapping[str, Any] | None = None, body: Any = None) -> Any:
        """What a service answers to GET `url` with `query`, or to POST when there is a `body`, which is sent as JSON.

        Raises `InputError` with the address, the status and what to do: at once for a refusal (4xx other than 408 and 429), after
        `tries` for anything that may pass (5xx, 429, a cut connection, a page in place of JSON).
        """
        failures = 0
        while True:
            try:
                return self._json(url, query, body)
            except PassingError as fault:
                failures += 1
                self._be_patient(url, fault, failures)

    def _json(self, url: str, query: Mapping[str, Any] | None, body: Any) -> Any:
        method = "GET" if body is None else "POST"
        with self._open(method, url, params=query, json=body, headers={"Accept": "application/json"}) as response:
            content = bytearray()
            for block in arriving(response, unpacked=True):
                content += block
                if len(content) > MOST_JSON:
                    expected = f"at most {MOST_JSON:,} bytes"
                    raise InputError(f"the answer of {url} is too large", found=f"more than {len(content):,}", expected=expected)
            try:
                return json.loads(content)
            except (ValueError, RecursionError) as error:
                kind = response.headers.get("Content-Type", "of no stated type")
                raise PassingError(f"the answer is no JSON but {kind}, {content[:40].decode(errors='replace')!r}") from error

    def download(self, url: str, path: str | Path, *, size: int | None = None, digest: str | None = None) -> Source:
        """Fetch `url` to `path`, unless it is there with a source of this address, `size` (bytes) and `digest` (MD5, hex).

        The bytes gather in ``<path>.part``, with which a later call goes on where that is safe (``Range`` with ``If-Range``, or an
        MD5 that proves the result). Only a whole and proven file gets its name and its ``.source.yaml``. Proven: the length that
        the server or `size` states, `digest`, and that it is no web page and no broken gzip. Raises `InputError` as `json` does,
        and when the content is wrong twice.
        """
        path = Path(path)
        if kept := self._kept(url, path, size, digest):
            return kept
        path.parent.mkdir(parents=True, exist_ok=True)
        part = Part(url, path, size, digest)
        failures, spoiled, most = 0, 0, part.held
        while True:
            try:
                if not part.complete:
                    self._go_on(part)
                part.prove()
                return part.finish()
            except SpoiledError as fault:
                part.discard()
                spoiled += 1
                if spoiled == SPOILED:
                    raise InputError(f"cannot be used as it comes from {url}: {fault}", file=path, remedy=fault.remedy) from fault
                log.warning("%s: %s; fetched once more", url, fault)
            except PassingError as fault:
                gained = part.held > most and not isinstance(fault, DrippingError)
                failures = 1 if gained else failures + 1
                most = max(most, part.held)
                self._be_patient(url, fault, failures, path)

    def _kept(self, url: str, path: Path, size: int | None, digest: str | None) -> Source | None:
        """The source of a file that is there and right; a file that came by other means is proven by its MD5, once."""
        if not path.is_file() or size not in (None, path.stat().st_size):
            return None
        known = read_source(path)
        if known is None and digest and md5(path) == digest:
            return write_source(path, Source(url, path.stat().st_size, sha256(path), digest))
        right = known and (known.url, known.md5, known.size) == (url, digest, path.stat().st_size)
        return known if right else None

    def _go_on(self, part: Part) -> None:
        with self._open("GET", part.url, headers=part.headers()) as response:
            part.receive(response)

    def _open(self, method: str, url: str, *, headers: Mapping[str, str], **request: Any) -> requests.Response:
        """An answer with a good status (or 416 to a range); else `PassingError`, or `InputError` for a refusal."""
        try:
            response = self._answer(method, url, headers=headers, **request)
        except BROKEN as error:
            answered = isinstance(error, requests.exceptions.ChunkedEncodingError)
            raise PassingError(short(error), answered=answered) from error
        except requests.RequestException as error:
            raise InputError(f"cannot be fetched: {url} ({short(error)})", remedy="Check the addresses under `retrieve`.") from error
        if response.ok or (response.status_code == RANGE_NOT_SATISFIABLE and "Range" in headers):
            return response
        response.close()
        status = f"status {response.status_code} {response.reason}".strip()
        if response.status_code in WORTH_WAITING or response.status_code >= 500:
            raise PassingError(status, _retry_after(response))
        raise InputError(f"refused by {url}", found=status, remedy=REFUSED)

    def _answer(self, method: str, url: str, **request: Any) -> requests.Response:
        """The beginning of an answer, asked for by a thread: headers may drip for ever without one silence as long as the timeout."""
        found: list[requests.Response | BaseException] = []

        def ask() -> None:
            try:
                found.append(self.session.request(method, url, timeout=self.timeout, stream=True, **request))
            except BaseException as error:  # raised again below
                found.append(error)

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(HEADERS * self.timeout)
        if not found:
            raise DrippingError(f"no answer began within {HEADERS * self.timeout:g} s")
        if isinstance(found[0], BaseException):
            raise found[0]
        return found[0]

    def _be_patient(self, url: str, fault: PassingError, failures: int, path: Path | None = None) -> None:
        """Sleep before the next try, or raise `InputError` after the last one."""
        if failures >= self.tries or fault.wait > self.longest_wait:
            asked = f", and the server asks to wait {fault.wait:.0f} s" if fault.wait > self.longest_wait else ""
            kind = InputError if fault.answered else UnreachableError
            tries = "1 try" if failures == 1 else f"{failures} tries"
            raise kind(f"no success at {url} after {tries} ({fault}){asked}", file=path, remedy=REMEDY) from fault
        pause = min(self.wait * 2 ** (failures - 1), self.longest_wait)
        pause *= 0.9 - 0.4 * seed_from(self.seed, url, failures) / 0x7FFFFFFF
        pause = max(pause, fault.wait)
        log.info("%s: %s; again in %.1f s", url, fault, pause)
        self.sleep(pause)


def _retry_after(response: requests.Response) -> float:
    """Seconds of the header, which is a number or a date (RFC 9110, 10.2.3); 0 without it."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0
