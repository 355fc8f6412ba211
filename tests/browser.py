"""A headless Chromium, driven over its DevTools protocol. Its profile is thrown away.

with Browser(folder, width=1280, height=800) as browser:
    browser.open("https://localhost:8443/console")
    browser.run("document.title")
    browser.errors                       # what the page logged as an error, or threw
"""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

CHROMIUM = shutil.which("chromium")
_FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--ignore-certificate-errors")


class Browser:
    """One page. Every call waits for its answer."""

    def __init__(self, folder: Path, *, width: int = 1280, height: int = 800, dark: bool = False) -> None:
        self.errors: list[str] = []
        self.requested: list[str] = []
        self._folder, self._size, self._dark = folder, (width, height), dark
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._loop = asyncio.new_event_loop()
        self._next = 0

    def __enter__(self) -> Self:
        assert CHROMIUM is not None
        command = [CHROMIUM, *_FLAGS, "--remote-debugging-port=0", f"--user-data-dir={self._folder}", "about:blank"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._wait(self._connect(self._port()))
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{domain}.enable")
        width, height = self._size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self._ask("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if self._dark else "light"}
        self._ask("Emulation.setEmulatedMedia", features=[scheme])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wait(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._process.terminate()
        self._process.wait(20)

    def open(self, url: str) -> None:
        self._ask("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """The value of an expression. Raises `AssertionError` for one that throws."""
        answer = self._ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, script: str, *, within: float = 20.0) -> Any:
        """Wait until an expression is true, and give its value."""
        deadline = time.monotonic() + within
        while not (value := self.run(script)):
            assert time.monotonic() < deadline, f"{script}: not within {within} s; {self.errors}; {self.text[:2000]}"
            time.sleep(0.05)
        return value

    @property
    def text(self) -> str:
        """What stands on the page."""
        return str(self.run("document.body.innerText"))

    def screenshot(self, path: Path) -> None:
        """The whole page."""
        shot = self._ask("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    # --- the protocol -------------------------------------------------------------------------------------------------

    def _port(self) -> int:
        deadline = time.monotonic() + 60
        while True:
            try:
                return int((self._folder / "DevToolsActivePort").read_text().split()[0])
            except (FileNotFoundError, IndexError):
                assert time.monotonic() < deadline, "chromium did not start within 60 s"
                assert self._process.poll() is None, f"chromium ended: {self._process.returncode}"
                time.sleep(0.05)

    async def _connect(self, port: int) -> None:
        self._session = aiohttp.ClientSession()
        async with self._session.get(f"http://127.0.0.1:{port}/json/list") as answer:
            pages = await answer.json()
        (url,) = [page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page"]
        self._socket = await self._session.ws_connect(url, max_msg_size=0)
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self._socket:
            value = json.loads(message.data)
            if "id" in value:
                self._answers.pop(value["id"]).set_result(value)
            else:
                self._note(value["method"], value["params"])

    def _note(self, event: str, told: dict[str, Any]) -> None:
        if event == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(told["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.errors.append(json.dumps(told["args"]))
        elif event == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.errors.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")
        elif event == "Network.requestWillBeSent":
            self.requested.append(told["request"]["url"])

    def _ask(self, method: str, **parameters: Any) -> Any:
        value = self._wait(self._send(method, parameters))
        assert "error" not in value, value["error"]
        return value["result"]

    async def _send(self, method: str, parameters: dict[str, Any]) -> Any:
        self._next += 1
        answer = self._answers[self._next] = self._loop.create_future()
        await self._socket.send_json({"id": self._next, "method": method, "params": parameters})
        return await asyncio.wait_for(answer, 30)

    async def _close(self) -> None:
        await self._socket.close()
        await self._session.close()
        self._reader.cancel()

    def _wait(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)
