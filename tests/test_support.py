"""The scripted upstream is what other tests trust, so it is tested too."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from support.upstream import CLOSE, DEADLINE, RESET, SILENCE, Clock, Upstream, make_reply


@pytest.fixture
def client(upstream: Upstream) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection("127.0.0.1", upstream.port, timeout=DEADLINE)
    with closing(connection):
        yield connection


def ask(client: http.client.HTTPConnection, path: str = "/x") -> tuple[int, bytes]:
    client.request("POST", path, b"{}", {"X-One": "1"})
    reply = client.getresponse()
    return reply.status, reply.read()


@pytest.mark.parametrize("piece", [1, 65_536])
@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_framings(upstream: Upstream, client: http.client.HTTPConnection, framing: str, piece: int) -> None:
    upstream.piece = piece
    upstream.reply([b"one", b"", b"two"], 201, {"x": "y"}, framing=framing)
    upstream.reply({"n": 1})
    assert ask(client) == (201, b"onetwo")
    assert ask(client) == (200, json.dumps({"n": 1}).encode())
    assert upstream.connections == (2 if framing == "close" else 1)


def test_what_it_saw(upstream: Upstream, client: http.client.HTTPConnection) -> None:
    client.request("POST", "/v1?q=1", iter([b"ab", b"c"]), {"X-One": "1"}, encode_chunked=True)
    assert client.getresponse().read() == b"nothing is scripted"
    seen = upstream.seen[0]
    assert (seen.method, seen.path, seen.headers["x-one"]) == ("POST", "/v1?q=1", "1")
    assert (seen.body, b"X-One: 1\r\n" in seen.head) == (b"abc", True)


def test_routes_are_asked_first_and_again(upstream: Upstream, client: http.client.HTTPConnection) -> None:
    upstream.routes["/token"] = lambda seen: make_reply({"path": seen.path})
    upstream.reply(b"scripted")
    assert ask(client, "/token?a")[1] == b'{"path": "/token?a"}'
    assert ask(client)[1] == b"scripted"
    assert ask(client, "/token")[0] == 200


def test_an_event_holds_a_reply_back(upstream: Upstream, client: http.client.HTTPConnection) -> None:
    go = threading.Event()
    upstream.reply([b"a", go, b"b"])
    client.request("GET", "/")
    reply = client.getresponse()
    assert reply.read(1) == b"a"
    go.set()
    assert reply.read() == b"b"


@pytest.mark.parametrize("end", [CLOSE, RESET])
def test_it_hangs_up(upstream: Upstream, client: http.client.HTTPConnection, end: str) -> None:
    upstream.reply([b"a", end, b"b"])
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        ask(client)


def test_it_is_silent_until_the_client_goes(upstream: Upstream) -> None:
    upstream.reply([SILENCE], framing="raw")
    with socket.create_connection(("127.0.0.1", upstream.port)) as peer:
        peer.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert upstream.asked.wait(DEADLINE)
        assert not upstream.hung_up.is_set()
    assert upstream.hung_up.wait(DEADLINE)


def test_the_clock_is_turned_by_hand(clock: Clock) -> None:
    before = clock()
    clock.turn(30)
    assert clock() - before == 30
