"""A running proxy of the test's own, in front of the scripted upstream."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import cliproxy as cp
from support.upstream import DEADLINE, Upstream, wait_for


class Got(NamedTuple):
    """An answer of the proxy."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def payloads(self) -> list[Any]:
        """The JSON objects of a stream, in order."""
        return list(cp.sse_read([self.body]))


class Proxy:
    """A running proxy, with a config file and a folder of credentials of its own.

    `upstream` is behind one key of each dialect, serving the models up-claude, up-chat,
    up-responses and up-gemini; `config` adds to or overrides that.
    """

    def __init__(
        self,
        folder: Path,
        upstream: Upstream,
        config: dict[str, Any],
        environ: dict[str, str],
        clock: Callable[[], float] = lambda: 0.0,  # so that no test ends with a model
    ) -> None:
        self.auth_dir, self.path, self.upstream = folder / "auth", folder / "config.json", upstream
        self.settings = {**keys_for(upstream), "auth-dir": str(self.auth_dir), "port": 0, **config}
        self.write(self.settings)
        store = cp.Store(self.auth_dir)
        store.scan()
        self.app = cp.App(cp.ConfigFile(self.path), store, environ, clock)
        self.server = cp.make_server(self.app)
        self.lines: list[str] = []  # of the log, as far as `log` has been called
        self.app.scribe.sink = self.lines.append
        self.port = self.server.port
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def write(self, config: dict[str, Any]) -> None:
        self.path.write_text(json.dumps(config), encoding="utf-8")

    def close(self) -> None:
        self.server.stop(grace=0.0)
        self._thread.join(DEADLINE)
        self.app.pool.prune(0.0)
        self.app.stats.close()

    def log(self, requests: int = 1) -> str:
        """Return the log when so many requests are in it: the line follows the answer."""

        def told() -> str:
            self.app.scribe.write()
            return "".join(self.lines)

        wait_for(lambda: told().count("rid=") >= requests)
        return told()

    def rows(self, attempts: int = 1) -> list[cp.Row]:
        """Return what the statistics know when they know of so many attempts."""

        def known() -> list[cp.Row]:
            self.app.scribe.write()
            return self.app.stats.latest()

        wait_for(lambda: len(known()) >= attempts)
        return known()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE)

    def raw(self, data: bytes) -> bytes:
        """Send bytes as they are; return all that comes back until the proxy closes."""
        with closing(self.connect()) as peer, closing(peer.makefile("rb")) as stream:
            peer.sendall(data)
            peer.shutdown(socket.SHUT_WR)
            return stream.read()

    def ask(
        self, path: str, body: Any = None, headers: Mapping[str, str] | None = None, method: str = ""
    ) -> Got:
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        with closing(client):
            client.request(method or ("GET" if data is None else "POST"), path, data, dict(headers or {}))
            reply = client.getresponse()
            return Got(reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read())


def keys_for(upstream: Upstream) -> dict[str, Any]:
    """One account a dialect, all on the scripted upstream."""
    keyed = {"api-key": "sk-upstream-key", "base-url": upstream.url}
    return {
        "claude-api-key": [{**keyed, "models": [{"name": "up-claude"}]}],
        "codex-api-key": [{**keyed, "base-url": f"{upstream.url}/v1", "models": [{"name": "up-responses"}]}],
        "gemini-api-key": [{**keyed, "models": [{"name": "up-gemini"}]}],
        "openai-compatibility": [{
            "name": "up", "base-url": f"{upstream.url}/v1", "models": [{"name": "up-chat"}],
            "api-key-entries": [{"api-key": "sk-upstream-key"}],
        }],
        "request-retry": 0,
    }  # fmt: skip


ProxyMaker = Callable[..., Proxy]
