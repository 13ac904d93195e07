"""The fixtures that all tests share; what they hand out is made in tests/support."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import settings

import cliproxy as cp
from support.accounts import House
from support.codex import add_codex
from support.home import Home
from support.office import YAML, Office, OfficeMaker
from support.paths import SHARED
from support.proxy import Proxy, ProxyMaker
from support.upstream import Clock, Upstream
from support.world import World

settings.register_profile("house", max_examples=100, deadline=None)
settings.load_profile("house")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    absent = pytest.mark.skip(reason=f"there are no recordings in {SHARED}")
    for item in items:
        if item.get_closest_marker("shared") and not SHARED.is_dir():
            item.add_marker(absent)


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with closing(Upstream()) as server:
        yield server


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make_proxy(tmp_path: Path, upstream: Upstream) -> Iterator[ProxyMaker]:
    """Start proxies in front of `upstream`; arguments are settings by name, `-` written as `_`."""
    running: list[Proxy] = []

    def make(environ: dict[str, str] | None = None, **settings: Any) -> Proxy:
        config = {name.replace("_", "-"): value for name, value in settings.items()}
        folder = tmp_path / str(len(running))
        (folder / "auth").mkdir(parents=True)
        running.append(Proxy(folder, upstream, config, environ or {}))
        return running[-1]

    yield make
    for proxy in running:
        proxy.close()


@pytest.fixture
def proxy(make_proxy: ProxyMaker) -> Proxy:
    return make_proxy()


@pytest.fixture
def make_office(tmp_path: Path) -> Iterator[OfficeMaker]:
    """Start proxies with a management API whose settings file has the text that a test wants."""
    running: list[Office] = []

    def make(text: str = YAML, name: str = "config.yaml", **more: Any) -> Office:
        folder = tmp_path / f"office{len(running)}"
        folder.mkdir()
        running.append(Office(folder, text, name, **more))
        return running[-1]

    yield make
    for office in running:
        office.close()


@pytest.fixture
def office(make_office: OfficeMaker) -> Office:
    return make_office()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """All providers of logins, for a user who has a screen and no patience."""
    monkeypatch.setattr(cp, "RETRY_WAITS", (0.0, 0.0))
    for name in ("SSH_CONNECTION", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with World() as world:
        thread = threading.Thread(target=world.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield world
        world.shutdown()
        thread.join()


@pytest.fixture
def store(tmp_path: Path) -> cp.Store:
    return cp.Store(tmp_path / "auth")


@pytest.fixture
def house(world: World, make_proxy: ProxyMaker, upstream: Upstream) -> House:
    return House(world, make_proxy, upstream)


@pytest.fixture
def codex(make_proxy: ProxyMaker, upstream: Upstream) -> Proxy:
    proxy = make_proxy(providers={"codex": {"base-url": upstream.url}})
    add_codex(proxy, "a")
    return proxy


@pytest.fixture(scope="session")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture
def home(tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.endswith("API_KEY")]:
        monkeypatch.delenv(name)
    return Home(tmp_path, world)
