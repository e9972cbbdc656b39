"""Sends requests to an ingest and repeats what may be repeated: everything that carries its own ids."""

import asyncio
import random
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec
from msgspec import Struct

from core.errors import Fatal
from core.local.recording import JSON

REQUEST_TIMEOUT_S = 10.0
GIVE_UP_AFTER_S = 60.0
_PAUSE_FIRST_S = 0.1
_PAUSE_MAX_S = 5.0
_REPEAT = {429, 502, 503, 504}


class Sums(Struct):
    """What the ingest answered."""

    requests: int = 0
    accepted: int = 0
    duplicates: int = 0
    refused: int = 0
    repeats: int = 0
    first_refusal: str = ""


class _Answer(Struct):
    accepted: int = 0
    duplicates: int = 0


class Sender:
    """One ingest and the key to it."""

    def __init__(self, base_url: str, key: str, *, give_up_after_s: float = GIVE_UP_AFTER_S) -> None:
        self.sums = Sums()
        self._base_url = base_url.rstrip("/")
        self._give_up_after_s = give_up_after_s
        if not _is_http_url(base_url):
            raise Fatal(f"{base_url!r} is not the URL of an ingest: http://HOST:PORT is expected")
        self._client = httpx.AsyncClient(
            base_url=self._base_url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=REQUEST_TIMEOUT_S,
            trust_env=False,  # a proxy of the environment has no business between us and an ingest on loopback
        )

    async def __aenter__(self) -> "Sender":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def send(self, method: str, path: str, body: bytes, content_type: str = JSON) -> int:
        """Send one request until it is answered; the status. Counts the answer in `sums`.

        Raises Fatal for a wrong key and when the ingest stays away for `give_up_after_s`.
        """
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self._give_up_after_s
        pause_s = _PAUSE_FIRST_S
        while True:
            wait_s = pause_s
            try:
                response = await self._client.request(
                    method, path, content=body, headers={"Content-Type": content_type} if body else {}
                )
            except httpx.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
            except httpx.InvalidURL as error:
                raise Fatal(f"{path!r} is not a path") from error
            else:
                if response.status_code not in _REPEAT:
                    self._count(response)
                    return response.status_code
                problem = f"status {response.status_code}"
                wait_s = _retry_after_s(response, pause_s)
            if loop.time() + wait_s > give_up_at:
                raise Fatal(f"{self._base_url} does not take what is sent to it: {problem}")
            self.sums.repeats += 1
            await asyncio.sleep(wait_s * random.uniform(0.8, 1.2))  # noqa: S311 - jitter, no secret
            pause_s = min(_PAUSE_MAX_S, pause_s * 2)

    def _count(self, response: httpx.Response) -> None:
        self.sums.requests += 1
        if response.status_code == 401:
            raise Fatal(f"{self._base_url} refuses the key (ARENACAST_INGEST_KEY, or its file in the data directory)")
        if response.is_success:
            answer = _decode_answer(response.content)
            self.sums.accepted += answer.accepted
            self.sums.duplicates += answer.duplicates
            return
        self.sums.refused += 1
        if not self.sums.first_refusal:
            self.sums.first_refusal = f"{response.request.url.path}: {response.status_code} {response.text[:300]}"


def encode(value: Any) -> bytes:
    """A body as JSON."""
    return msgspec.json.encode(value)


def _is_http_url(text: str) -> bool:
    try:
        url = urlsplit(text)
        return url.scheme in ("http", "https") and bool(url.hostname) and (url.port is None or url.port > 0)
    except ValueError:
        return False


def _decode_answer(content: bytes) -> _Answer:
    try:
        return msgspec.json.decode(content, type=_Answer)
    except msgspec.DecodeError:  # a hook answers as its platform expects
        return _Answer()


def _retry_after_s(response: httpx.Response, default_s: float) -> float:
    text = response.headers.get("Retry-After", "")
    return min(_PAUSE_MAX_S, float(text)) if text.isdecimal() else default_s
