"""A running proxy with a management API, and who calls it."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import cliproxy as cp
from support.proxy import Got
from support.upstream import DEADLINE

KEY = "boss"  # the management key
API = "/v0/management"
SECRET = f"remote-management:\n  secret-key: {KEY} # the boss's\n"
YAML = f"""\
# the owner's own words
{SECRET}debug: false  # quiet
api-keys: # of clients
  - one # Ann
  - two
request-retry: 3
gemini-api-key:
  - api-key: g1 # first
    x-mine: kept
  - api-key: g2
    base-url: "https://example.org"
claude-api-key:
  - api-key: c1
  - api-key: c1
    base-url: https://example.org
codex-api-key:
  - api-key: x1
    base-url: https://example.org/v1
vertex-api-key:
  - api-key: v1
    base-url: https://example.org
openai-compatibility:
  - name: up
    base-url: https://example.org/v1
    api-key-entries:
      - api-key: k1
oauth-excluded-models:
  claude: [ a*, b ]
oauth-model-alias:
  codex:
    - {{ name: gpt-5, alias: five }}
x-unknown: [ 1, 2 ]
"""


class Office:
    """A proxy whose settings file has the text that a test wants, and its owner."""

    def __init__(
        self, folder: Path, text: str, name: str = "config.yaml", environ: Mapping[str, str] = cp.EMPTY,
        password: str = "",
    ) -> None:  # fmt: skip
        self.auth_dir, self.path = folder / "auth", folder / name
        self.path.write_text(text, encoding="utf-8")
        store = cp.Store(self.auth_dir)
        store.scan()
        config_file = cp.ConfigFile(self.path, {"port": 0, "auth-dir": str(self.auth_dir)})
        self.app = cp.App(config_file, store, environ)
        self.server = cp.make_server(self.app, password)
        self._thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def text(self) -> str:
        return self.path.read_bytes().decode("utf-8")

    def close(self) -> None:
        self.server.stop(grace=0.0)
        self._thread.join(DEADLINE)
        self.app.pool.prune(0.0)
        self.app.scribe.close()

    def send(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] = cp.EMPTY, host: str = "127.0.0.1"
    ) -> Got:  # fmt: skip
        """Send a request as it is; `body` is sent as JSON unless it is bytes."""
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        client = http.client.HTTPConnection(
            "127.0.0.1", self.server.port, timeout=DEADLINE, source_address=(host, 0)
        )
        with closing(client):
            client.request(method, path, data, dict(headers))
            reply = client.getresponse()
            return Got(reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read())

    def call(self, method: str, path: str, body: Any = None, key: str = KEY, **headers: str) -> Got:
        """Call the management API with its key."""
        return self.send(method, API + path, body, {"Authorization": f"Bearer {key}", **headers})

    def get(self, path: str) -> Any:
        """Return what a GET answers."""
        got = self.call("GET", path)
        assert got.status == 200, got
        return got.json()


OfficeMaker = Callable[..., Office]


def error_of(got: Got) -> tuple[int, str]:
    return got.status, got.json()["error"]
