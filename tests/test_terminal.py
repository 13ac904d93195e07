"""What a terminal is told and asked, and the pictures it can draw."""

from __future__ import annotations

import os
import socket
import sys
import time

import pytest

import cliproxy as cp
from support.logins import Attempt, consent
from support.upstream import DEADLINE
from support.world import World


@pytest.mark.parametrize(
    ("environment", "headless"),
    [({"SSH_CONNECTION": "1.2.3.4 5 6.7.8.9 22", "DISPLAY": ":0"}, True), ({"DISPLAY": ":0"}, False), ({"WAYLAND_DISPLAY": "w"}, False)],
)  # fmt: skip
def test_when_no_browser_can_open(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], headless: bool
) -> None:
    for name in ("SSH_CONNECTION", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert cp.is_headless() == sys.platform.startswith("linux")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cp.is_headless() == headless


def test_the_tunnel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "ann")
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.1 51000 10.0.0.2 2222")
    assert cp.tunnel(1455, 1455) == "ssh -N -L 1455:127.0.0.1:1455 -p 2222 ann@10.0.0.2"
    monkeypatch.delenv("SSH_CONNECTION")
    assert cp.tunnel(1455, 99) == f"ssh -N -L 1455:127.0.0.1:99 ann@{socket.gethostname()}"


def test_lines_of_a_terminal() -> None:
    reading, writing = os.pipe()
    terminal = cp.Terminal(lambda text: None, reading)
    os.write(writing, b"one\r\ntw")
    os.write(writing, "o \u00fc\nlast".encode())
    os.close(writing)
    got = [terminal.take(time.monotonic() + DEADLINE).text for _ in range(4)]
    assert got == ["one", "two \u00fc", "last", None]
    os.close(reading)


# QR codes: golden matrices, checked once with a decoder (zxing), kept as digests


@pytest.mark.parametrize(("size", "modules", "seal"), [
    (17, 21, "bdde646f1f4da712810e0f78"),
    (18, 25, "4406b71767061cabf72de48b"),
    (134, 41, "9112918b93f44a8a9c10fd28"),
    (420, 69, "5a9bbc3eadcfd82838a1686e"),
    (858, 97, "15520edb47989767454501fe"),
])  # fmt: skip
def test_qr_codes(size: int, modules: int, seal: str) -> None:
    rows = cp.qr_matrix(("https://example.com/?" + "abcDEF123-_~" * 80)[:size].encode())
    assert len(rows) == modules
    assert cp.digest(rows) == seal


def test_qr_limits() -> None:
    with pytest.raises(ValueError, match="too long"):
        cp.qr_matrix(b"x" * 859)


def test_no_qr_is_shown_where_a_phone_cannot_finish(world: World, store: cp.Store) -> None:
    """The last page of this login is on this machine."""
    attempt = Attempt(world, store, "codex", screen=(200, 60))
    attempt.url()
    assert "\u2580" not in attempt.text
    attempt.paste(consent(attempt.url()))
    attempt.result()


def test_qr_is_shown_when_it_fits(world: World, store: cp.Store) -> None:
    for screen, shown in (((200, 60), True), ((60, 60), False), ((200, 24), False), ((0, 0), False)):
        attempt = Attempt(world, store, "claude", screen=screen)
        attempt.url()
        assert ("\u2580" in attempt.text) == shown
        attempt.paste(consent(attempt.url()))
        attempt.result()
