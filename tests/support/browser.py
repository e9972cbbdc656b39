"""A real headless browser, driven over its DevTools socket: no driver binary, no extra dependency."""

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import websockets

from tests.support.processes import is_alive
from tests.support.waiting import wait_until

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-breakpad",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--remote-debugging-port=0",
)
CALL_TIMEOUT_S = 30.0
Json = dict[str, Any]


def find_browser() -> str | None:
    """Path of a Chromium, None when the machine has none."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page:
    """One tab. `complaints` collects uncaught errors, console errors and violations of the page's policy."""

    def __init__(self, browser: "Browser", session: str) -> None:
        self._browser = browser
        self._session = session
        self.complaints: list[str] = []

    async def call(self, method: str, **params: Any) -> Json:
        """One DevTools command."""
        return await self._browser.call(method, params, self._session)

    async def open(self, url: str, width: int = 1280, height: int = 800) -> None:
        """Go to `url`; returns when its modules have run."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        await self.call("Page.navigate", url=url)
        await wait_until(lambda: self.run("document.readyState === 'complete' && location.href !== 'about:blank'"))

    async def run(self, expression: str) -> Any:
        """Value of a JavaScript expression, awaited; raises AssertionError with the error it throws."""
        answer = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def heard(self, method: str, params: Json) -> None:
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.complaints.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")


class Browser:
    """A browser process and its DevTools connection."""

    def __init__(self, socket: websockets.ClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Json]] = {}
        self._pages: dict[str, Page] = {}

    async def call(self, method: str, params: Json, session: str | None = None) -> Json:
        """One DevTools command; raises AssertionError when the browser refuses it."""
        number = next(self._numbers)
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        request = {"id": number, "method": method, "params": params}
        await self._socket.send(json.dumps(request if session is None else {**request, "sessionId": session}))
        answer = await asyncio.wait_for(future, CALL_TIMEOUT_S)
        assert "error" not in answer, (method, answer["error"])
        result: Json = answer["result"]
        return result

    async def new_page(self) -> Page:
        """An empty tab."""
        target = await self.call("Target.createTarget", {"url": "about:blank"})
        attached = await self.call("Target.attachToTarget", {"targetId": target["targetId"], "flatten": True})
        session = attached["sessionId"]
        page = self._pages[session] = Page(self, session)
        for domain in ("Runtime", "Log", "Page"):
            await page.call(f"{domain}.enable")
        return page

    async def listen(self) -> None:
        """Hand out answers and events until the connection ends."""
        async for text in self._socket:
            message = json.loads(text)
            if "id" in message:
                self._waiting.pop(message["id"]).set_result(message)
            elif message.get("sessionId") in self._pages:
                self._pages[message["sessionId"]].heard(message["method"], message["params"])


@contextlib.asynccontextmanager
async def running_browser(path: str) -> AsyncIterator[Browser]:
    """Start a browser with an empty profile; at the end nothing of it is left."""
    profile = Path(tempfile.mkdtemp(prefix="ac-browser-"))
    process = await asyncio.create_subprocess_exec(
        path,
        *FLAGS,
        f"--user-data-dir={profile}",
        "about:blank",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        port_file = profile / "DevToolsActivePort"
        # Two lines, port and path; it exists for a moment before it is complete.
        await wait_until(lambda: port_file.exists() and len(port_file.read_text().splitlines()) == 2, 30.0)
        port, path_of_socket = port_file.read_text().splitlines()
        async with websockets.connect(f"ws://127.0.0.1:{port}{path_of_socket}", max_size=None) as socket:
            browser = Browser(socket)
            listening = asyncio.create_task(browser.listen())
            try:
                yield browser
            finally:
                listening.cancel()
                await asyncio.gather(listening, return_exceptions=True)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        assert not is_alive(process.pid)
        shutil.rmtree(profile, ignore_errors=True)
