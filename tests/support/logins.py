"""A user in front of a login, and the folder that it fills."""

from __future__ import annotations

import contextlib
import http.client
import queue
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable
from urllib.parse import urlsplit

import cliproxy as cp
from support.upstream import DEADLINE
from support.world import World

URL = re.compile(r"^https?://\S+$", re.MULTILINE)


def visit(url: str, **headers: str) -> tuple[int, str, str]:
    """GET a URL as a browser does, without following; return status, location and text."""
    parts = urlsplit(url)
    with contextlib.closing(
        http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=DEADLINE)
    ) as wire:
        wire.request("GET", f"{parts.path}?{parts.query}", headers={"user-agent": "test", **headers})
        reply = wire.getresponse()
        return reply.status, reply.headers["location"] or "", reply.read().decode()


class Attempt:
    """A login under way in its own thread, and the user in front of it."""

    def __init__(
        self, world: World, store: cp.Store, provider: str, config: cp.Config | None = None, **options: Any
    ) -> None:
        self.said: queue.Queue[str] = queue.Queue()
        self.text = ""
        self.terminal = cp.Terminal(self.said.put, screen=options.pop("screen", (0, 0)))
        self.terminal.pause = self.pause
        self.on_pause: Callable[[], None] = lambda: None
        self.world = world
        config = config or world.config()
        options = {"browser": False, **options}
        pool = ThreadPoolExecutor(1)
        self.future = pool.submit(
            cp.login, provider, cp.Options(**options), config, store, self.terminal, world.clock
        )
        pool.shutdown(wait=False)

    def pause(self, seconds: float) -> None:
        self.world.clock.advance(seconds)
        self.on_pause()

    def wait_for(self, pattern: str) -> str:
        """Return the first match in what the program says."""
        while not (match := re.search(pattern, self.text, re.MULTILINE)):
            self.text += self.said.get(timeout=DEADLINE) + "\n"
        return str(match[0])

    def url(self, at: int = 0) -> str:
        self.wait_for(r"ssh -N -L")
        return str(URL.findall(self.text)[at])

    def paste(self, line: str | None) -> None:
        self.terminal.inbox.put(cp.Arrival(line))

    def result(self) -> cp.Credential:
        return self.future.result(timeout=DEADLINE)

    def error(self) -> cp.ProxyError:
        error = self.future.exception(timeout=DEADLINE)
        assert isinstance(error, cp.ProxyError), error
        return error


def consent(url: str) -> str:
    """Let the user consent at the provider; return where the browser is sent."""
    status, location, text = visit(url)
    assert status == 302, text
    return location


def sign_in(world: World, store: cp.Store, provider: str, **options: Any) -> cp.Credential:
    """Log in the shortest way, to have a credential to work with."""
    attempt = Attempt(world, store, provider, **options)
    if options.get("device") or not cp.LOGINS[provider].redirect_path:
        attempt.wait_for("Waiting")
        for device in world.devices.values():
            device["state"] = "granted"
        if provider == "qwen":
            attempt.paste("ann@example.com")
    else:
        attempt.paste(consent(attempt.url()))
    return attempt.result()
