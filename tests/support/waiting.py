"""Waiting with a bound. A test never sleeps and hopes: it says what it waits for."""

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

INTERVAL_S = 0.01


async def wait_until(condition: Callable[[], Any], timeout_s: float = 10.0, what: str = "") -> Any:
    """Poll a function, plain or async, until it returns something true; that is the result.

    Raises AssertionError after `timeout_s`. An AssertionError raised by `condition` counts as "not yet" and is the
    cause of ours, so that conditions may be written as asserts.
    """
    deadline = time.monotonic() + timeout_s
    cause: AssertionError | None = None
    while True:
        try:
            value = condition()
            result = await value if inspect.isawaitable(value) else value
            if result:
                return result
            cause = None
        except AssertionError as error:
            cause = error
        if time.monotonic() > deadline:
            raise AssertionError(_text(condition, timeout_s, what)) from cause
        await asyncio.sleep(INTERVAL_S)


def wait_until_sync(condition: Callable[[], T], timeout_s: float = 10.0, what: str = "") -> T:
    """`wait_until` for tests without an event loop."""
    deadline = time.monotonic() + timeout_s
    cause: AssertionError | None = None
    while True:
        try:
            result = condition()
            if result:
                return result
            cause = None
        except AssertionError as error:
            cause = error
        if time.monotonic() > deadline:
            raise AssertionError(_text(condition, timeout_s, what)) from cause
        time.sleep(INTERVAL_S)


def _text(condition: Callable[..., object], timeout_s: float, what: str) -> str:
    return f"not within {timeout_s:g} s: {what or getattr(condition, '__qualname__', condition)}"
