"""The listening side over real sockets: routes, keys, bodies, passing through, hanging up."""

from __future__ import annotations

import contextlib
import gc
import gzip
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import cliproxy as cp
from support.cost import beats
from support.paths import ROOT
from support.proxy import Got, Proxy, ProxyMaker
from support.upstream import CLOSE, DEADLINE, RESET, SILENCE, Reply, Upstream, wait_for

ASKS: dict[str, tuple[str, str, dict[str, Any]]] = {  # dialect -> path, upstream's path, body
    "claude": (
        "/v1/messages", "/v1/messages",
        {"model": "up-claude", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]},
    ),
    "chat": (
        "/v1/chat/completions", "/v1/chat/completions",
        {"model": "up-chat", "messages": [{"role": "user", "content": "hi"}]},
    ),
    "responses": ("/v1/responses", "/v1/responses", {"model": "up-responses", "input": "hi"}),
    "gemini": (
        "/v1beta/models/up-gemini:generateContent", "/v1beta/models/up-gemini:generateContent",
        {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]},
    ),
}  # fmt: skip
STREAMS = {  # a complete stream of each dialect, as short as it can be
    "claude": b'event: message_start\ndata: {"type":"message_start","message":{}}\n\n'
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    "chat": b'data: {"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n',
    "responses": b'event: response.completed\ndata: {"type":"response.completed","response":{"id":"r"}}\n\n',
    "gemini": b'data: {"candidates":[{"content":{"parts":[{"text":"x"}]},"finishReason":"STOP"}]}\r\n\r\n',
}
BEGUN = (  # what has been said of an answer that is not finished
    b'event: message_start\ndata: {"type":"message_start","message":{}}\n\n'
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"x"}}\n\n'
)
REST = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
SSE = {"content-type": "text/event-stream; charset=utf-8"}
DIALECT_NAMES = list(ASKS)


def ask(proxy: Proxy, dialect: str = "claude", **headers: str) -> Got:
    path, _, body = ASKS[dialect]
    return proxy.ask(path, body, {name.replace("_", "-"): value for name, value in headers.items()})


def error_of(got: Got) -> str:
    """The message of an error, in whichever dialect."""
    return str(got.json()["error"]["message"])


# --- passing through ---------------------------------------------------------------------


@pytest.mark.parametrize("dialect", DIALECT_NAMES)
def test_bytes_pass_in_both_directions(proxy: Proxy, upstream: Upstream, dialect: str) -> None:
    answer = b'{ "future" : [1,2],\n"usage": {"input_tokens":3} }'
    upstream.reply(
        answer, headers={"content-type": "application/json", "request-id": "req_1", "x-secret": "no"}
    )
    path, upstream_path, body = ASKS[dialect]
    sent = json.dumps({**body, "future_x": {"deep": [1.50, None]}}, indent=1).encode()
    got = proxy.ask(path, sent)
    assert (got.status, got.body, got.headers["request-id"]) == (200, answer, "req_1")
    assert "x-secret" not in got.headers
    assert (upstream.seen[0].path, upstream.seen[0].body) == (upstream_path, sent)


@pytest.mark.parametrize("piece", [1, 7, 65_536])
@pytest.mark.parametrize("dialect", DIALECT_NAMES)
def test_streams_pass(proxy: Proxy, upstream: Upstream, dialect: str, piece: int) -> None:
    upstream.piece = piece
    upstream.reply([STREAMS[dialect]], headers=SSE)
    got = ask(proxy, dialect)
    assert (got.status, got.body) == (200, STREAMS[dialect])
    assert got.headers["content-type"] == SSE["content-type"]


def test_a_stream_is_live(proxy: Proxy, upstream: Upstream) -> None:
    go = threading.Event()
    upstream.reply([BEGUN, go, REST], headers=SSE)
    body = json.dumps(ASKS["claude"][2]).encode()
    with closing(proxy.connect()) as peer:
        peer.sendall(
            b"POST /v1/messages HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: %d\r\n\r\n%b"
            % (len(body), body)
        )
        seen = b""
        while b"message_start" not in seen:
            seen += peer.recv(4096)
        go.set()
        while b"0\r\n\r\n" not in seen:
            seen += peer.recv(4096)
    assert b"message_stop" in seen


@pytest.mark.parametrize(
    ("sent", "arrives"),
    [
        pytest.param(b'{"model":"alias","messages":[],"x":"model"}', b'{"model":"real","messages":[],"x":"model"}', id="in front"),
        pytest.param(b'{"messages":[{"model":"alias"}], "model" : "alias" }', b'{"messages":[{"model":"alias"}], "model" : "real" }', id="behind"),
        pytest.param(b'{"a":"\\"model\\": \\"x\\"","model":"alias"}', b'{"a":"\\"model\\": \\"x\\"","model":"real"}', id="in a text"),
        pytest.param(b'{"a":[1],"model":"alias","b":[2]}', b'{"a":[1],"model":"real","b":[2]}', id="between: decoded"),
        pytest.param(b'{"model":"x","a":[],"model":"alias"}', b'{"model":"real","a":[]}', id="twice: the last counts"),
        pytest.param(b'{"model":"al\\u0069as"}', b'{"model":"real"}', id="escaped"),
    ],
)  # fmt: skip
def test_an_alias_changes_nothing_but_the_name(
    make_proxy: ProxyMaker, upstream: Upstream, sent: bytes, arrives: bytes
) -> None:
    key = {"api-key": "k", "base-url": upstream.url, "models": [{"name": "real", "alias": "alias"}]}
    proxy = make_proxy(claude_api_key=[key])
    upstream.reply({"ok": 1})
    assert proxy.ask("/v1/messages", sent).status == 200
    assert upstream.seen[0].body == arrives


def test_the_client_s_own_headers_go_on_but_not_its_key(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    proxy = make_proxy(api_keys=["sk-local"])
    upstream.reply({"ok": 1})
    ask(proxy, "claude", authorization="Bearer sk-local", x_api_key="sk-local", user_agent="claude-cli/2.1", anthropic_beta="a,b",
        x_forwarded_for="10.0.0.1", cookie="c=1", anthropic_version="2026-10-21", openai_platform="org-x")  # fmt: skip
    sent = upstream.seen[0].headers
    assert (sent["user-agent"], sent["anthropic-beta"], sent["anthropic-version"]) == (
        "claude-cli/2.1",
        "a,b",
        "2026-10-21",
    )
    assert sent["authorization"] == "Bearer sk-upstream-key"
    assert not {"x-api-key", "x-forwarded-for", "cookie", "openai-platform"} & sent.keys()
    assert b"sk-local" not in upstream.seen[0].head


@pytest.mark.parametrize(
    ("dialect", "header", "value"),
    [
        ("claude", "authorization", "Bearer sk-upstream-key"),
        ("chat", "authorization", "Bearer sk-upstream-key"),
        ("responses", "authorization", "Bearer sk-upstream-key"),
        ("gemini", "x-goog-api-key", "sk-upstream-key"),
    ],
)
def test_the_real_key_goes_upstream(
    proxy: Proxy, upstream: Upstream, dialect: str, header: str, value: str
) -> None:
    upstream.reply({"ok": 1})
    ask(proxy, dialect, authorization="Bearer dummy")
    assert upstream.seen[0].headers[header] == value


@pytest.mark.parametrize("dialect", DIALECT_NAMES)
@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 429, 500, 503, 529])
def test_an_upstream_s_refusal_passes_as_it_came(
    proxy: Proxy, upstream: Upstream, dialect: str, status: int
) -> None:
    body = b'{"error":  {"message":"no","type":"x","code":7,"status":"Y"}}'
    upstream.reply(
        body, status, {"content-type": "application/json", "retry-after": "7", "x-should-retry": "false"}
    )
    got = ask(proxy, dialect)
    assert (got.status, got.body) == (status, body)
    assert (got.headers["retry-after"], got.headers["x-should-retry"]) == ("7", "false")


SLOPPY = [  # a dialect, what its client needs beside the message
    pytest.param(
        "chat", {"code": "rate_limit_exceeded", "param": None, "type": "rate_limit_error"}, id="chat"
    ),
    pytest.param("claude", {"type": "rate_limit_error"}, id="claude"),
    pytest.param("gemini", {"code": 429, "status": "RESOURCE_EXHAUSTED"}, id="gemini"),
]


@pytest.mark.parametrize(("dialect", "added"), SLOPPY)
def test_a_sloppy_refusal_gets_what_clients_need(
    proxy: Proxy, upstream: Upstream, dialect: str, added: Any
) -> None:
    upstream.reply({"error": {"message": "no", "metadata": {}}}, 429)
    got = ask(proxy, dialect)
    assert (got.status, got.json()["error"]) == (429, {"message": "no", "metadata": {}, **added})


def test_a_sloppy_error_in_a_stream_gets_what_clients_need(proxy: Proxy, upstream: Upstream) -> None:
    text = b'data: {"choices":[{"index":0,"delta":{"content":"\\"error\\": {"}}]}\n\n'
    error = b'data: {"error":{"code":400,"message":"Token limit"},"choices":[]}\n\n'
    upstream.reply([text, error + b"data: [DONE]\n\n"], headers=SSE)
    got = ask(proxy, "chat")
    assert got.body.startswith(text)
    assert got.body.endswith(b"data: [DONE]\n\n")
    assert got.payloads()[1]["error"]["type"] == "server_error"


@pytest.mark.parametrize("piece", [1, 7])
def test_a_first_event_in_many_pieces_is_no_error(proxy: Proxy, upstream: Upstream, piece: int) -> None:
    body = b'event: response.created\ndata: {"type":"response.created","response":{"error":null}}\n\n'
    body += b'event: response.completed\ndata: {"type":"response.completed","response":{"error":null}}\n\n'
    upstream.reply([body[at : at + piece] for at in range(0, len(body), piece)], headers=SSE)
    assert ask(proxy, "responses").body == body


def test_the_next_account_answers(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    keys = [
        {"api-key": f"k{n}", "base-url": upstream.url, "models": [{"name": "up-claude"}]} for n in range(2)
    ]
    proxy = make_proxy(claude_api_key=keys)
    upstream.reply({"error": {"message": "slow down"}}, 429, {"retry-after": "60"})
    upstream.reply({"ok": 1})
    upstream.reply({"ok": 2})
    assert [ask(proxy).json() for _ in range(2)] == [{"ok": 1}, {"ok": 2}]
    assert [seen.headers["authorization"][-2:] for seen in upstream.seen] == ["k0", "k1", "k1"]


def test_an_error_as_first_event_is_an_http_error(proxy: Proxy, upstream: Upstream) -> None:
    event = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"busy"}}\n\n'
    upstream.reply([event], headers=SSE)
    got = ask(proxy)
    assert (got.status, error_of(got)) == (529, "busy")


ODD_ERRORS = [
    b'{"response":"x","error_code":1}',
    b'{"type":"error"}',
    b'{"type":"error","error":"x"}',
    b'{"error":[1]}',
    b'{"error":{"message":5,"code":{},"type":[]}}',
    b'{"type":"response.failed","response":"error"}',
    b'{"type":"response.failed","response":{"error":"x"}}',
]


@pytest.mark.parametrize("event", ODD_ERRORS)
@pytest.mark.parametrize("dialect", DIALECT_NAMES)
@pytest.mark.parametrize("late", [False, True])
def test_odd_errors_in_streams_are_the_upstream_s(
    proxy: Proxy, upstream: Upstream, dialect: str, event: bytes, late: bool, caplog: pytest.LogCaptureFixture
) -> None:
    upstream.reply([STREAMS[dialect] * late, b"data: " + event + b"\n\n"], headers=SSE)
    ask(proxy, dialect)
    assert "bug" not in caplog.text


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([BEGUN + b"even", CLOSE], id="cut"),
        pytest.param([BEGUN + b"even", RESET], id="reset"),
        pytest.param([BEGUN], id="ended cleanly in the middle"),
    ],
)
def test_a_broken_stream_ends_in_an_error_frame(proxy: Proxy, upstream: Upstream, steps: list[Any]) -> None:
    upstream.reply(steps, headers=SSE)
    got = ask(proxy)
    assert got.status == 200
    last = got.payloads()[-1]
    assert (last["type"], last["error"]["type"]) == ("error", "api_error")


DEEP = b'{"usage":{"a":%b%b},"error":{"a":%b%b}}' % ((b"[" * 99_999, b"]" * 99_999) * 2)


@pytest.mark.parametrize("dialect", DIALECT_NAMES)
@pytest.mark.parametrize("forced", [False, True])
def test_an_answer_that_is_nested_too_deeply_is_no_bug(
    make_proxy: ProxyMaker, upstream: Upstream, dialect: str, forced: bool, caplog: pytest.LogCaptureFixture
) -> None:
    proxy = make_proxy()
    path, _, body = ASKS[dialect]
    path = f"/api/provider/x{path}" if forced else path  # Amp wants its own name in the answer
    json_type = {"content-type": "application/json"}
    for reply, kind in (
        (DEEP, json_type),
        (b"data: " + DEEP + b"\n\n", SSE),
        (STREAMS[dialect] + b"data: " + DEEP + b"\n\n", SSE),
    ):
        upstream.reply(reply, headers=kind)
        proxy.ask(path, body)
    assert "bug" not in caplog.text


ENDS = ["message_stop", "response.completed", "finishReason"]


@pytest.mark.parametrize("dialect", [name for name in DIALECT_NAMES if name != "chat"])
def test_a_model_that_talks_of_the_end_has_not_ended(proxy: Proxy, upstream: Upstream, dialect: str) -> None:
    said = json.dumps({"type": "text", "text": " ".join([*ENDS, *map(json.dumps, ENDS)])})
    upstream.reply([b"data: " + said.encode() + b"\n\n"], headers=SSE)
    assert b"ended its stream in the middle" in ask(proxy, dialect).body


def test_a_list_of_models_is_not_broken_by_an_edit(proxy: Proxy) -> None:
    accounts, done = proxy.app.router.offers.accounts, threading.Event()

    def edit() -> None:
        while not done.is_set():
            proxy.app.router.configure([], proxy.app.config)
            proxy.app.router.configure(accounts, proxy.app.config)

    editor = threading.Thread(target=edit)
    editor.start()
    try:
        assert {proxy.ask("/v1/models").status for _ in range(200)} == {200}
    finally:
        done.set()
        editor.join()


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_a_broken_stream_of_known_length_ends_well_too(
    proxy: Proxy, upstream: Upstream, encoding: str
) -> None:
    """A client that was told a length would wait for the rest of it, and take the next answer."""
    packer = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    begun = BEGUN
    if encoding == "gzip":
        begun = packer.compress(begun) + packer.flush(zlib.Z_SYNC_FLUSH)
    lines = (*SSE.items(), ("content-length", "999"), ("content-encoding", encoding))
    head = b"HTTP/1.1 200 OK\r\n" + b"".join(b"%b: %b\r\n" % (k.encode(), v.encode()) for k, v in lines)
    upstream.reply([head + b"\r\n" + begun, CLOSE], framing="raw")
    got = ask(proxy, accept_encoding=encoding)
    assert "content-length" not in got.headers
    assert [payload["type"] for payload in got.payloads()] == [
        "message_start",
        "content_block_delta",
        "error",
    ]


@pytest.mark.parametrize("piece", [1, 7, 65_536])
@pytest.mark.parametrize("dialect", DIALECT_NAMES)
def test_an_error_frame_is_not_glued_to_half_an_event(
    proxy: Proxy, upstream: Upstream, dialect: str, piece: int
) -> None:
    """gemini-cli gives up at what is no JSON, and repeats after an error."""
    event = STREAMS[dialect].partition(b"data: ")[2].partition(b"\n")[0]
    upstream.piece = piece
    upstream.reply([STREAMS[dialect].replace(b"stop", b"_"), b"data: " + event[:9], CLOSE], headers=SSE)
    lines = ask(proxy, dialect).body.splitlines()
    payloads = [line[6:] for line in lines if line.startswith(b"data: {")]
    assert b'"error"' in payloads[-1]
    assert all(map(json.loads, payloads))


def test_an_event_of_any_size_passes(proxy: Proxy, upstream: Upstream) -> None:
    stream = STREAMS["claude"].replace(b"{}", b'{"x":"' + b"y" * 3_000_000 + b'"}')
    upstream.reply([stream], headers=SSE)
    assert ask(proxy).body == stream


def test_a_last_event_without_its_blank_line_passes(proxy: Proxy, upstream: Upstream) -> None:
    upstream.reply([STREAMS["claude"].rstrip()], headers=SSE)
    assert ask(proxy).body == STREAMS["claude"].rstrip()


def test_a_broken_body_is_never_a_success(proxy: Proxy, upstream: Upstream) -> None:
    upstream.reply([b'HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"half"', CLOSE], framing="raw")
    reply = proxy.raw(wire("claude"))
    head, _, body = reply.partition(b"\r\n\r\n")
    assert b" 200 " not in head.splitlines()[0] or len(body) < 100


@pytest.mark.parametrize("accepts", ["gzip", ""])
def test_compressed_answers(proxy: Proxy, upstream: Upstream, accepts: str) -> None:
    plain = b'{"usage":{"input_tokens":1}}'
    packed = gzip.compress(plain)
    upstream.reply(packed, headers={"content-encoding": "gzip", "content-type": "application/json"})
    got = ask(proxy, "claude", accept_encoding=accepts or "identity")
    assert got.body == (packed if accepts else plain)
    assert got.headers.get("content-encoding", "") == accepts


# --- the client's request ------------------------------------------------------------------


def wire(dialect: str = "claude", *lines: str, body: bytes | None = None, length: bool = True) -> bytes:
    """A request as bytes."""
    path, _, default = ASKS[dialect]
    data = json.dumps(default).encode() if body is None else body
    head = [f"POST {path} HTTP/1.1", "host: 127.0.0.1", *lines]
    head += [f"content-length: {len(data)}"] if length else []
    return "\r\n".join([*head, "connection: close", "", ""]).encode("latin-1") + data


SMUGGLED = [
    pytest.param(wire("claude", "transfer-encoding: chunked"), id="two framings"),
    pytest.param(wire("claude", "content-length: 3"), id="two lengths"),
    pytest.param(wire("claude", "content-length: +5", length=False), id="signed length"),
    pytest.param(wire("claude", "transfer-encoding: gzip", length=False), id="unknown framing"),
    pytest.param(wire("claude", "transfer-encoding: chunked, chunked", length=False), id="chunked twice"),
    pytest.param(wire("claude", "x: a\rb"), id="bare CR"),
    pytest.param(wire("claude", "x: a\nb: c"), id="bare LF"),
    pytest.param(wire("claude", "x: a\0b"), id="NUL"),
    pytest.param(wire("claude", "x: a\r\n folded"), id="folded"),
    pytest.param(wire("claude", "x : a"), id="space before the colon"),
    pytest.param(wire("claude", "no colon"), id="no colon"),
    pytest.param(wire("claude", "host: evil"), id="two hosts"),
    pytest.param(b"GET / HTTP/2.0\r\n\r\n", id="version"),
    pytest.param(b"GET /a b HTTP/1.1\r\n\r\n", id="space in the path"),
    pytest.param(b"\x16\x03\x01\x02\x00\x01\r\n\r\n", id="TLS to a plain port"),
]


@pytest.mark.parametrize("request_bytes", SMUGGLED)
def test_what_smuggling_is_made_of(proxy: Proxy, upstream: Upstream, request_bytes: bytes) -> None:
    reply = proxy.raw(request_bytes + b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
    assert reply.startswith(b"HTTP/1.1 400 ")
    assert reply.count(b"content-length:") == 1, "the connection must not serve what follows"
    assert not upstream.seen


@pytest.mark.parametrize("request_bytes", SMUGGLED)
def test_a_head_that_was_seen_lets_none_in_that_is_like_it(
    proxy: Proxy, upstream: Upstream, request_bytes: bytes
) -> None:
    for _ in range(2):
        upstream.reply({"ok": 1})
        with closing(proxy.connect()) as peer, closing(peer.makefile("rb")) as stream:
            peer.sendall(wire("claude"))
            assert stream.read().startswith(b"HTTP/1.1 200 ")
    assert proxy.raw(request_bytes).startswith(b"HTTP/1.1 400 ")
    assert len(upstream.seen) == 2


def test_a_head_that_was_seen_may_have_another_length(proxy: Proxy, upstream: Upstream) -> None:
    for words in ("hi", "something longer", ""):
        upstream.reply({"ok": 1})
        body = {**ASKS["claude"][2], "messages": [{"role": "user", "content": words}]}
        assert proxy.ask("/v1/messages", body).status == 200
        assert upstream.seen[-1].json()["messages"] == body["messages"]
    assert proxy.ask("/v1/messages", b"").status == 400


def test_a_head_that_was_seen_needs_a_key_that_still_counts(
    make_proxy: ProxyMaker, upstream: Upstream
) -> None:
    proxy = make_proxy(api_keys=["old"])
    for _ in range(2):
        upstream.reply({"ok": 1})
        assert ask(proxy, x_api_key="old").status == 200
    assert ask(proxy, x_api_key="odd").status == 401
    proxy.write({**proxy.settings, "api-keys": ["new"]})
    proxy.app.poll()
    assert ask(proxy, x_api_key="old").status == 401


def chunks(data: bytes, size: int = 5) -> bytes:
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(b"%x;ext=1\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\nx: trailer\r\n\r\n"


BODY = json.dumps(ASKS["claude"][2]).encode()


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        pytest.param(wire("claude", "transfer-encoding: chunked", body=chunks(BODY), length=False), 200, id="chunked"),
        pytest.param(wire("claude", "content-encoding: gzip", body=gzip.compress(BODY)), 200, id="gzip"),
        pytest.param(wire("claude", "content-encoding: deflate", body=zlib.compress(BODY)), 200, id="deflate"),
        pytest.param(wire("claude", "content-encoding: gzip", body=b"no gzip"), 400, id="no gzip"),
        pytest.param(wire("claude", "content-encoding: gzip", body=gzip.compress(BODY)[:-9]), 400, id="cut gzip"),
        pytest.param(wire("claude", "content-encoding: deflate", body=zlib.compress(BODY)[2:-4]), 200, id="bare deflate"),
        pytest.param(wire("claude", "content-encoding: br", body=b"x"), 415, id="unknown encoding"),
        pytest.param(wire("claude", "transfer-encoding: chunked", body=b"zz\r\n\r\n", length=False), 400, id="bad chunk"),
        pytest.param(wire("claude", f"content-length: {10**9}", length=False), 413, id="too large"),
        pytest.param(wire("claude", "x: " + "y" * 70_000), 431, id="head too large"),
        pytest.param(wire("claude", body=b"[1]"), 400, id="no object"),
        pytest.param(wire("claude", body=b"{"), 400, id="no JSON"),
        pytest.param(wire("claude", body=b'{"model": 3}'), 400, id="model is no text"),
        pytest.param(wire("claude", body=b"{}"), 400, id="no model"),
        pytest.param(wire("claude", body=b'{"a":' * 100_000), 400, id="deep"),
    ],
)  # fmt: skip
def test_bodies(proxy: Proxy, upstream: Upstream, request_bytes: bytes, status: int) -> None:
    upstream.reply({"ok": 1})
    reply = proxy.raw(request_bytes)
    assert int(reply.split(b" ", 2)[1]) == status
    if status == 200:
        assert upstream.seen[0].body == BODY


def test_zstd_where_nothing_knows_it(
    proxy: Proxy, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cp, "ZSTD_MODULES", ("no.such_module",))
    monkeypatch.setattr(cp, "ZSTD_LIBRARIES", ("no-such-library.so",))
    got = proxy.ask("/v1/responses", b"x", {"content-encoding": "zstd"})
    assert (got.status, upstream.seen) == (415, [])
    assert "enable_request_compression = false" in got.json()["error"]["message"]


def test_a_bomb_is_refused(proxy: Proxy) -> None:
    bomb = gzip.compress(bytes(cp.BODY_LIMIT + 1), 9)
    assert proxy.raw(wire("claude", "content-encoding: gzip", body=bomb)).startswith(b"HTTP/1.1 413 ")


def test_expect_100_continue(proxy: Proxy, upstream: Upstream) -> None:
    upstream.reply({"ok": 1})
    with closing(proxy.connect()) as peer:
        head = f"POST /v1/messages HTTP/1.1\r\nhost: 127.0.0.1\r\nexpect: 100-continue\r\ncontent-length: {len(BODY)}\r\n\r\n"
        peer.sendall(head.encode())
        assert peer.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
        peer.sendall(BODY)
        assert peer.recv(4096).startswith(b"HTTP/1.1 200 OK\r\n")


def test_keep_alive_and_pipelining(proxy: Proxy, upstream: Upstream) -> None:
    request = wire("claude").replace(b"connection: close\r\n", b"")
    for number in range(3):
        upstream.reply({"ok": number})
    reply = proxy.raw(request * 3)
    assert re.findall(rb'{"ok": ?(\d)}', reply) == [b"0", b"1", b"2"]
    assert {seen.connection for seen in upstream.seen} == {0}, "the upstream's connection is kept too"


def test_http_1_0(proxy: Proxy, upstream: Upstream) -> None:
    upstream.reply([STREAMS["claude"]], headers=SSE)
    reply = proxy.raw(wire("claude").replace(b"HTTP/1.1", b"HTTP/1.0"))
    head, _, body = reply.partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert body == STREAMS["claude"]


# --- upstream connections --------------------------------------------------------------------


def test_a_dead_pooled_connection_is_replaced(proxy: Proxy, upstream: Upstream) -> None:
    upstream.reply({"n": 1})
    upstream.reply([CLOSE], framing="raw")  # closes the kept connection instead of answering
    upstream.reply({"n": 2})
    assert [ask(proxy).json()["n"] for _ in range(2)] == [1, 2]
    assert [seen.connection for seen in upstream.seen] == [0, 0, 1]


def test_nothing_is_repeated_once_a_byte_came(proxy: Proxy, upstream: Upstream) -> None:
    upstream.reply({"n": 1})
    upstream.reply([b"HTTP/1.1 2", CLOSE], framing="raw")
    upstream.reply({"n": 2})
    ask(proxy)
    assert ask(proxy).status == 502
    assert len(upstream.seen) == 2


def test_an_unreachable_upstream(make_proxy: ProxyMaker) -> None:
    with closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    key = {"api-key": "k", "base-url": f"http://127.0.0.1:{port}", "models": [{"name": "up-claude"}]}
    got = ask(make_proxy(claude_api_key=[key]))
    assert (got.status, got.json()["type"]) == (502, "error")
    assert f"127.0.0.1:{port}" in error_of(got)


def test_json_of_millions_of_values_is_refused_before_it_is_decoded(proxy: Proxy, upstream: Upstream) -> None:
    """For seconds the decoder would let no other thread run."""
    swarm = b"[" + b"[]," * (cp.VALUE_LIMIT // 2) + b"1]"
    ask = {**ASKS["claude"][2], "model": "up-chat"}
    got = proxy.ask("/v1/messages", json.dumps(ask).encode()[:-1] + b',"x":' + swarm + b"}")
    assert (got.status, upstream.seen) == (400, [])
    assert "more than 2,000,000 values" in error_of(got)
    upstream.reply(b'{"x":' + swarm + b"}", headers={"content-type": "application/json"})
    got = proxy.ask("/v1/messages", ask)
    assert got.status == 502
    assert "more than 2,000,000 values" in error_of(got)


def test_the_collector_rests_while_a_large_json_is_decoded_and_works_again_afterwards() -> None:
    large = b"[" + b"[]," * (cp.LARGE_JSON // 2) + b"1]"
    before = gc.get_stats()[2]["collections"]
    assert len(cp.decode_json(large)) == cp.LARGE_JSON // 2 + 1
    assert gc.get_stats()[2]["collections"] <= before + 1
    with pytest.raises(ValueError, match="Expecting"):
        cp.decode_json(large[:-1])
    assert gc.isenabled()


CHATTER = {  # what goes on while nothing reaches the client: head of the answer, and what is repeated
    "comments of a stream": (b"content-type: text/event-stream", b": still here\n\n"),
    "spaces of a whole answer": (b"content-type: application/json", b" "),
}
HALF_ASKS = {  # what is sent after a request: nothing, the beginning of another one, or a lot
    "": b"", "a spare line": b"\r\n", "half a request": b"POST /v1/mess", "more than is read ahead": b"x" * 500_000,
}  # fmt: skip


@pytest.mark.parametrize("more", list(HALF_ASKS))
@pytest.mark.parametrize("chatter", list(CHATTER))
@pytest.mark.parametrize("model", ["up-claude", "up-chat"])
def test_a_client_that_hangs_up_is_missed_whatever_the_upstream_sends(
    proxy: Proxy, upstream: Upstream, model: str, chatter: str, more: str
) -> None:
    kind, piece = CHATTER[chatter]
    stream = b"event-stream" in kind

    def chat(peer_left: threading.Event) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\n" + kind + b"\r\nconnection: close\r\n\r\n"
        while not peer_left.wait(0.02):
            yield piece

    path = "/v1/messages" if model == "up-claude" else "/v1/chat/completions"
    upstream.routes[path] = lambda seen: Reply(chat(upstream.hung_up), keep=False)  # type: ignore[arg-type]
    body = json.dumps({**ASKS["claude"][2], "model": model, "stream": stream}).encode()
    with closing(proxy.connect()) as peer:
        peer.sendall(wire(body=body) + HALF_ASKS[more])
        assert upstream.asked.wait(DEADLINE)
    assert upstream.hung_up.wait(DEADLINE)
    wait_for(lambda: not proxy.server.working)


@pytest.mark.parametrize("steps", [[SILENCE], [BEGUN, SILENCE]], ids=["before", "after the first event"])
def test_a_client_that_hangs_up_ends_the_exchange(proxy: Proxy, upstream: Upstream, steps: list[Any]) -> None:
    upstream.reply(steps, headers=SSE)
    with closing(proxy.connect()) as peer:
        peer.sendall(wire("claude"))
        assert upstream.asked.wait(DEADLINE)
        if len(steps) > 1:
            peer.recv(100)
    with beats() as waited:
        assert upstream.hung_up.wait(DEADLINE)
    assert waited.seconds < 1.5


def test_a_silent_upstream_has_a_deadline(
    proxy: Proxy, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cp, "SILENCE_LIMIT", 0.6)
    upstream.reply([SILENCE], framing="raw")
    got = ask(proxy)
    assert (got.status, got.json()["error"]["type"]) == (504, "timeout_error")


def test_a_slow_client_has_a_deadline(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cp, "CLIENT_TICK", 0.2)
    monkeypatch.setattr(cp, "SLOW_CLIENT", 0.4)
    with closing(proxy.connect()) as peer:
        peer.sendall(b"POST /v1/mess")
        assert peer.recv(4096).startswith(b"HTTP/1.1 408 ")


# --- who may ask -----------------------------------------------------------------------------


KEYED = [
    pytest.param({"authorization": "Bearer sk-one"}, "", 200, id="bearer"),
    pytest.param({"authorization": "bearer sk-two"}, "", 200, id="bearer, lower case"),
    pytest.param({"authorization": "sk-one"}, "", 200, id="bare"),
    pytest.param({"x-api-key": "sk-one"}, "", 200, id="x-api-key"),
    pytest.param({"x-goog-api-key": "sk-two"}, "", 200, id="x-goog-api-key"),
    pytest.param({}, "?key=sk-one", 200, id="query"),
    pytest.param(
        {"x-api-key": "placeholder", "authorization": "Bearer sk-one"}, "", 200, id="a wrong one beside"
    ),
    pytest.param({"authorization": "Bearer nope"}, "", 401, id="wrong"),
    pytest.param({"authorization": "Bearer sk-on"}, "", 401, id="a part of it"),
    pytest.param({}, "", 401, id="none"),
]


@pytest.mark.parametrize(("headers", "query", "status"), KEYED)
def test_keys(
    make_proxy: ProxyMaker, upstream: Upstream, headers: dict[str, str], query: str, status: int
) -> None:
    proxy = make_proxy(api_keys=["sk-one", "sk-two"])
    upstream.reply({"ok": 1})
    got = proxy.ask("/v1/messages" + query, ASKS["claude"][2], headers)
    assert got.status == status
    if status == 401:
        assert got.json()["error"]["type"] == "authentication_error"
        assert not upstream.seen
    else:
        assert "sk-one" not in upstream.seen[0].path


@pytest.mark.parametrize("dialect", DIALECT_NAMES)
def test_401_is_in_the_client_s_dialect(make_proxy: ProxyMaker, dialect: str) -> None:
    got = ask(make_proxy(api_keys=["sk-one"]), dialect)
    error = got.json()["error"]
    word = {"gemini": error.get("status"), "claude": error.get("type")}.get(dialect, error.get("code"))
    assert (got.status, word) == (
        401,
        {"gemini": "UNAUTHENTICATED", "claude": "authentication_error"}.get(dialect, "invalid_api_key"),
    )


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param({"host": "localhost:1"}, 200, id="localhost"),
        pytest.param({"host": "[::1]:8317"}, 200, id="IPv6"),
        pytest.param({"host": "evil.example"}, 403, id="a rebound name"),
        pytest.param({"host": "127.0.0.1.evil.example"}, 403, id="a name that looks like an address"),
        pytest.param({"origin": "http://evil.example"}, 403, id="another site"),
        pytest.param({"origin": "null"}, 403, id="a sandboxed page"),
        pytest.param({"sec-fetch-site": "cross-site"}, 403, id="cross-site"),
        pytest.param({"sec-fetch-site": "same-site"}, 403, id="same-site"),
        pytest.param({"origin": "http://127.0.0.1:9999"}, 403, id="another port of this machine"),
        pytest.param({"origin": "http://localhost:8317", "host": "127.0.0.1:8317"}, 403, id="another name"),
        pytest.param({"origin": "http://localhost:8317", "host": "localhost:8317"}, 200, id="a page of ours"),
        pytest.param({"origin": "https://localhost", "host": "localhost:443"}, 200, id="the usual port"),
        pytest.param({"origin": "vscode-webview://x"}, 200, id="an editor"),
        pytest.param({"host": "evil@127.0.0.1"}, 403, id="a user name in the host"),
        pytest.param({"host": "127.999.999.999"}, 403, id="no address"),
        pytest.param({"host": "127.0.0.1:80:80"}, 403, id="two ports"),
    ],
)
def test_pages_of_browsers(proxy: Proxy, headers: dict[str, str], status: int) -> None:
    got = proxy.ask("/v1/models", headers=headers)
    assert got.status == status
    assert "access-control-allow-origin" not in got.headers


def test_pages_that_the_owner_names_may_ask(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    page = "http://localhost:3000"
    proxy = make_proxy(allow_origins=[f"{page}/", "https://ui.example:443"], passthrough_headers=True)
    upstream.reply(
        {"ok": 1}, headers={"access-control-allow-origin": "*", "access-control-allow-credentials": "true"}
    )
    got = ask(proxy, origin=page, sec_fetch_site="same-site")
    assert (got.status, got.headers["access-control-allow-origin"], got.headers["vary"]) == (
        200,
        page,
        "origin",
    )
    assert "access-control-allow-credentials" not in got.headers
    asked = {"origin": page, "access-control-request-headers": "authorization,content-type"}
    got = proxy.ask("/v1/messages", headers=asked, method="OPTIONS")
    assert (got.status, got.headers["access-control-allow-headers"]) == (204, "authorization,content-type")
    assert proxy.ask("/v1/models", headers={"origin": "https://ui.example"}).status == 200
    assert proxy.ask("/v1/models", headers={"origin": "http://localhost:3001"}).status == 403
    assert proxy.ask("/v1/models", headers={"sec-fetch-site": "same-site"}).status == 403


def test_headers_that_are_meant_for_the_proxy_alone_go_no_further(proxy: Proxy, upstream: Upstream) -> None:
    upstream.reply({})
    ask(proxy, connection="x-hop, close", x_hop="1", x_end="2", range="bytes=0-1", if_none_match="x")
    sent = upstream.seen[0].headers
    assert not {"x-hop", "range", "if-none-match"} & sent.keys()
    assert sent["x-end"] == "2"


def test_no_keys_and_an_open_address_are_refused(make_proxy: ProxyMaker) -> None:
    with pytest.raises(cp.ProxyError, match="api-keys"):
        make_proxy(host="0.0.0.0")


# --- routes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/messages", "claude"), ("/v1/v1/messages", "claude"), ("/v1/messages?beta=true", "claude"), ("/v1/messages/", "claude"),
        ("/chat/completions", "chat"), ("/v1/v1/chat/completions", "chat"), ("//v1/chat/completions", "chat"),
        ("/responses", "responses"), ("/v1/v1/responses", "responses"), ("/v1beta/v1beta/models/up-gemini:generateContent", "gemini"),
        ("/v1/models/up-gemini:generateContent", "gemini"), ("/v1/v1beta/models/up-gemini:generateContent", "gemini"),
        ("/v1beta/models/models%2Fup-gemini:generateContent", "gemini"),
    ],
)  # fmt: skip
def test_paths_that_clients_make(proxy: Proxy, upstream: Upstream, path: str, dialect: str) -> None:
    upstream.reply({"ok": 1})
    assert proxy.ask(path, ASKS[dialect][2]).json() == {"ok": 1}


@pytest.mark.parametrize("path", ["/", "/health", "/healthz"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_probes(make_proxy: ProxyMaker, path: str, method: str) -> None:
    got = make_proxy(api_keys=["k"]).ask(path, method=method)
    assert (got.status, bool(got.body)) == (200, method == "GET")


MODEL_LISTS = [
    pytest.param(
        "/v1/models", {}, lambda d: [m["id"] for m in d["data"] if m["object"] == "model"], id="openai"
    ),
    pytest.param(
        "/v1/models",
        {"anthropic-version": "2023-06-01"},
        lambda d: [m["id"] for m in d["data"] if m["type"] == "model"],
        id="claude",
    ),
    pytest.param(
        "/v1/models",
        {"x-goog-api-key": "k"},
        lambda d: [m["name"][7:] for m in d["models"]],
        id="gemini by header",
    ),
    pytest.param("/v1beta/models", {}, lambda d: [m["name"][7:] for m in d["models"]], id="gemini by path"),
]


@pytest.mark.parametrize(("path", "headers", "names"), MODEL_LISTS)
def test_model_lists(proxy: Proxy, path: str, headers: dict[str, str], names: Any) -> None:
    expected = {"up-claude", "up-chat", "up-responses", "up-gemini", "echo"}
    assert set(names(proxy.ask(path, headers=headers).json())) == expected
    one = proxy.ask(f"{path}/up-chat", headers=headers).json()
    assert "up-chat" in (one.get("id"), one.get("name", "")[7:])


@pytest.mark.parametrize(
    ("method", "path", "status", "says"),
    [
        ("POST", "/v1/message", 404, "/v1/messages"), ("GET", "/nope", 404, "no route"), ("GET", "/v1/messages", 405, "POST"),
        ("GET", "/v1/models/up-chatt", 404, "up-chat"), ("POST", "/v1beta/models/up-gemini:nope", 404, "generateContent"),
        ("GET", "/v1/responses/resp_1", 404, "resp_1"), ("DELETE", "/v1/responses/resp_1", 404, "resp_1"),
        ("POST", "/v1/responses/resp_1/cancel", 404, "resp_1"), ("GET", "/v1/responses/resp_1/what", 404, "no route"),
    ],
)  # fmt: skip
def test_wrong_paths(proxy: Proxy, method: str, path: str, status: int, says: str) -> None:
    got = proxy.ask(path, {} if method == "POST" else None, method=method)
    assert got.status == status
    assert says in error_of(got)


def test_a_websocket_is_told_to_post(proxy: Proxy) -> None:
    got = proxy.ask("/v1/responses", headers={"upgrade": "websocket", "connection": "Upgrade"})
    assert got.status == 426


def test_an_unknown_model_names_the_nearest(proxy: Proxy) -> None:
    got = proxy.ask("/v1/messages", {"model": "up-cloude", "messages": []})
    assert (got.status, got.json()["error"]["type"]) == (404, "not_found_error")
    assert "up-claude" in error_of(got)


# --- echo ----------------------------------------------------------------------------------------


def test_echo_needs_no_account(make_proxy: ProxyMaker) -> None:
    proxy = make_proxy(claude_api_key=[], codex_api_key=[], gemini_api_key=[], openai_compatibility=[])
    got = proxy.ask(
        "/v1/chat/completions", {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}
    )
    assert got.json()["choices"][0]["message"]["content"] == "hello"
    body = {"model": "claude-opus-4-8", "messages": []}
    assert "ANTHROPIC_API_KEY" in error_of(proxy.ask("/v1/messages", body))


CITY = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}},
        "required": ["city", "days"]}  # fmt: skip
LEAST = {"city": "", "days": 1}
SAYS = [{"role": "user", "content": "hello"}]
FORCED: dict[str, tuple[str, Any, Callable[[Any], Any]]] = {  # dialect -> path, body, where the arguments are
    "claude": ("/v1/messages", {
        "max_tokens": 9, "messages": SAYS, "tools": [{"name": "look", "input_schema": CITY}], "tool_choice": {"type": "any"},
    }, lambda told: told["content"][0]["input"]),
    "chat": ("/v1/chat/completions", {
        "messages": SAYS, "tools": [{"type": "function", "function": {"name": "look", "parameters": CITY}}],
        "tool_choice": "required",
    }, lambda told: json.loads(told["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"])),
    "responses": ("/v1/responses", {
        "input": "hello", "tools": [{"type": "function", "name": "look", "parameters": CITY}], "tool_choice": "required",
    }, lambda told: json.loads(told["output"][0]["arguments"])),
    "gemini": ("/v1beta/models/echo:generateContent", {
        "contents": [{"role": "user", "parts": [{"text": "hello"}]}],
        "tools": [{"functionDeclarations": [{"name": "look", "parameters": CITY}]}],
        "toolConfig": {"functionCallingConfig": {"mode": "ANY"}},
    }, lambda told: told["candidates"][0]["content"]["parts"][0]["functionCall"]["args"]),
}  # fmt: skip


@pytest.mark.parametrize("dialect", FORCED)
def test_echo_fills_a_forced_tool(dialect: str, proxy: Proxy) -> None:
    path, body, arguments = FORCED[dialect]
    assert arguments(proxy.ask(path, {"model": "echo", **body}).json()) == LEAST


def test_echo_fills_a_schema(proxy: Proxy) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}}
    body = {"model": "echo", "messages": SAYS, "response_format": form}
    told = proxy.ask("/v1/chat/completions", body).json()["choices"][0]["message"]["content"]
    assert json.loads(told) == LEAST


# --- living ----------------------------------------------------------------------------------------


def test_a_changed_config_is_taken_over(proxy: Proxy) -> None:
    other = proxy.path.with_suffix(".new")
    other.write_text(json.dumps({**proxy.settings, "api-keys": ["fresh"]}), encoding="utf-8")
    other.replace(proxy.path)
    proxy.app.poll()
    assert ask(proxy).status == 401
    proxy.write({**proxy.settings, "port": "not a number"})
    proxy.app.poll()
    assert ask(proxy).status == 401, "a bad edit keeps the running configuration"


def test_an_open_address_stays_closed_without_keys(make_proxy: ProxyMaker) -> None:
    proxy = make_proxy(host="0.0.0.0", api_keys=["k"])
    for host in ("0.0.0.0", "127.0.0.1"):
        proxy.write({**proxy.settings, "host": host, "api-keys": []})
        proxy.app.poll()
        assert ask(proxy).status == 401


def test_credential_files_come_and_go(proxy: Proxy, upstream: Upstream) -> None:
    file = proxy.auth_dir / "claude-a@b.c.json"
    data = {"type": "claude", "access_token": "sk-ant-oat01-x", "email": "a@b.c", "base_url": upstream.url}
    file.write_text(json.dumps(data), encoding="utf-8")
    proxy.app.poll()
    upstream.reply({"ok": 1})
    assert proxy.ask("/v1/messages", {"model": "claude-opus-4-8", "messages": []}).status == 200
    sent = upstream.seen[0].headers
    assert (sent["authorization"], sent["anthropic-beta"]) == ("Bearer sk-ant-oat01-x", "oauth-2025-04-20")
    file.unlink()
    proxy.app.poll()
    assert proxy.ask("/v1/messages", {"model": "claude-opus-4-8", "messages": []}).status == 404


def serve(folder: Path, *arguments: str, **environ: str) -> subprocess.Popen[str]:
    """Start the command line; wait until it says where it listens."""
    command = [sys.executable, str(ROOT / "cliproxy.py"), "serve", "--port", "0", *arguments]
    plain = {k: v for k, v in os.environ.items() if not k.endswith("_API_KEY")}
    return subprocess.Popen(
        command, cwd=folder, env={**plain, "HOME": str(folder), "USERPROFILE": str(folder), **environ},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def port_of(process: subprocess.Popen[str]) -> int:
    assert process.stdout
    found = re.search(r"listens on http://127\.0\.0\.1:(\d+)", process.stdout.readline())
    assert found
    return int(found[1])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk is full")
def test_a_full_disk_under_the_log_is_no_reason_to_end(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    written, scribe = 0, cp.Scribe(proxy.app.stats)
    with contextlib.suppress(OSError), Path("/dev/full").open("w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stderr", full)
        for _ in range(2):
            scribe.write(cp.Visited(0.0, "GET", "/", 200, 0.1))
            written += 1
    assert written == 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
def test_serving_and_stopping(tmp_path: Path, upstream: Upstream) -> None:
    config = tmp_path / "c.json"
    key = {"api-key": "sk-ant-api03-secret", "base-url": upstream.url, "models": [{"name": "up-claude"}]}
    config.write_text(
        json.dumps({"claude-api-key": [key], "auth-dir": str(tmp_path / "auth"), "refresh-models": False}),
        encoding="utf-8",
    )
    go = threading.Event()
    upstream.reply([BEGUN, go, REST], headers=SSE)
    with serve(tmp_path, "--config", str(config), OPENROUTER_API_KEY="sk-or-secret") as process:
        port = port_of(process)
        with closing(socket.create_connection(("127.0.0.1", port), timeout=DEADLINE)) as peer:
            peer.sendall(wire("claude"))
            seen = peer.recv(4096)
            process.send_signal(signal.SIGTERM)
            wait_for(lambda: refuses(port))
            go.set()
            while more := peer.recv(4096):
                seen += more
        assert seen.endswith(b"0\r\n\r\n"), "a running stream may finish"
        assert process.wait(DEADLINE) == 0
        output = process.communicate()[0]
    assert "OPENROUTER_API_KEY" in output
    assert "up-claude account=claude-api-key[0] status=200" in output
    assert "secret" not in output


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return True
    return False


def test_secrets_never_reach_the_log(
    make_proxy: ProxyMaker, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    proxy = make_proxy(api_keys=["sk-local-secret"])
    upstream.reply({"error": {"message": "no"}}, 500)
    proxy.ask(
        "/v1/messages?key=sk-local-secret", ASKS["claude"][2], {"authorization": "Bearer sk-wrong-secret"}
    )
    lines = caplog.text + proxy.log()
    assert "/v1/messages" in lines
    assert "secret" not in lines
    assert "sk-upstream-key" not in lines


ECHOES = {  # what an upstream says that repeats the key it was sent, in each of the ways there are
    "refusal": (400, b'{"error":{"message":"bad key sk-upstream-key here"}}'),
    "no JSON": (500, b"<h1>sk-upstream-key</h1>"),
    "a stream's": (200, b'data: {"error":{"message":"bad key sk-upstream-key here"}}\n\n'),
    "a stream's, late": (200, b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\ndata: {"error":{"message":"bad key sk-upstream-key here"}}\n\n'),
}  # fmt: skip


@pytest.mark.parametrize("client", ["claude", "chat"])
@pytest.mark.parametrize("way", [way for way in ECHOES if "late" not in way])
def test_no_upstream_can_make_us_tell_its_key(
    make_proxy: ProxyMaker, upstream: Upstream, caplog: pytest.LogCaptureFixture, way: str, client: str
) -> None:
    proxy = make_proxy(api_keys=["sk-local-key"])
    status, said = ECHOES[way]
    upstream.reply(said + b" sk-local-key", status, {**(SSE if status == 200 else {}), "x-served": "sk-x"})
    path, _, body = ASKS[client]
    got = proxy.ask(
        path, {**body, "model": "up-chat", "stream": status == 200}, {"x-api-key": "sk-local-key"}
    )
    assert b"sk-upstream-key" not in got.body
    assert b"sk-local-key" not in got.body
    assert "sk-upstream-key" not in caplog.text
    assert "sk-local-key" not in caplog.text


def test_no_upstream_can_make_us_tell_its_key_late_in_a_translated_stream(
    proxy: Proxy, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    upstream.reply(ECHOES["a stream's, late"][1], headers=SSE)
    got = proxy.ask("/v1/messages", {**ASKS["claude"][2], "model": "up-chat", "stream": True})
    assert b"bad key sk-u...-key here" in got.body
    assert "sk-upstream-key" not in caplog.text


def test_counts_of_tokens_in_the_log_are_numbers(
    proxy: Proxy, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    usage = {"input_tokens": "7\n2026-01-01 CRITICAL forged", "output_tokens": {"a": 1}}
    upstream.reply({"type": "message", "content": [], "usage": usage})
    proxy.ask("/v1/messages", ASKS["claude"][2])
    assert proxy.log().count("\n") == 1
    assert proxy.log().endswith(" in=0 out=0\n")


def test_a_message_is_one_line_of_the_log() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 1, "a\nforged %s", ("b\x1b[31m\r",), None)
    assert cp.OneLine("%(message)s").format(record) == "a\\nforged b\\u001b[31m\\r"


RESPONSES_COUNT = "response.input_tokens"
COUNTS = [
    pytest.param("claude", "up-gemini", {"totalTokens": 42}, "/v1beta/models/up-gemini:countTokens", {"input_tokens": 42}, id="claude on gemini"),
    pytest.param("claude", "up-claude", {"input_tokens": 7}, "/v1/messages/count_tokens", {"input_tokens": 7}, id="passed through"),
    pytest.param("claude", "up-responses", {"input_tokens": 9}, "/v1/responses/input_tokens", {"input_tokens": 9}, id="claude on responses"),
    pytest.param("claude", "up-chat", None, "", {"input_tokens": 6}, id="claude on chat: estimated"),
    pytest.param("gemini", "up-claude", {"input_tokens": 5}, "/v1/messages/count_tokens", {"totalTokens": 5}, id="gemini on claude"),
    pytest.param("responses", "up-claude", {"input_tokens": 5}, "/v1/messages/count_tokens", {"input_tokens": 5, "object": RESPONSES_COUNT},
                 id="responses on claude"),
]  # fmt: skip


@pytest.mark.parametrize(("client", "model", "reply", "path", "expected"), COUNTS)
def test_token_counts(  # noqa: PLR0917 -- a column each
    proxy: Proxy, upstream: Upstream, client: str, model: str, reply: Any, path: str, expected: Any
) -> None:
    ways = {
        "claude": (
            "/v1/messages/count_tokens",
            {"model": model, "messages": [{"role": "user", "content": "count these words"}]},
        ),
        "gemini": (
            f"/v1beta/models/{model}:countTokens",
            {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]},
        ),
        "responses": ("/v1/responses/input_tokens", {"model": model, "input": "hi"}),
    }
    if reply:
        upstream.reply(reply)
    got = proxy.ask(*ways[client])
    seen = [one.path for one in upstream.seen]
    assert (got.status, seen) == (200, [path] if path else [])
    assert got.json().keys() == expected.keys()
    assert ("x-cliproxy-estimate" in got.headers) == (not path)
    if path:
        assert got.json() == expected
        assert not {"max_tokens", "stream"} & upstream.seen[0].json().keys()


def test_a_host_that_cannot_count_is_no_reason_to_rest(proxy: Proxy, upstream: Upstream) -> None:
    upstream.reply({"error": {"message": "no such route"}}, 404)
    got = proxy.ask("/v1/responses/input_tokens", {"model": "up-responses", "input": "hi"})
    assert (got.status, got.headers["x-cliproxy-estimate"]) == (200, "bytes/4")
    upstream.reply({"ok": 1})
    assert ask(proxy, "responses").json() == {"ok": 1}


# --- clients that misbehave --------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_line",
    ["GET /v1/models", "POST /health", "HEAD /v1/messages", "OPTIONS /v1/messages", "GET /nope"],
)
def test_a_body_that_nobody_reads_is_not_the_next_request(proxy: Proxy, request_line: str) -> None:
    smuggled = b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
    head = f"{request_line} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(smuggled)}\r\n\r\n".encode()
    last = b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
    reply = proxy.raw(head + smuggled + last)
    assert reply.count(b"HTTP/1.1 ") == 2
    assert reply.count(b'{"status":"ok",') == 1


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("encoding", ["br", "gzip", "identity"])
def test_a_refusal_reads_no_more_of_a_body_than_it_must(
    make_proxy: ProxyMaker, encoding: str, keep: bool
) -> None:
    request = wire("claude", f"content-encoding: {encoding}")
    request = request.replace(b"connection: close\r\n", b"") if keep else request
    reply = make_proxy(api_keys=["k"]).raw(request + request * keep)
    assert re.findall(rb"HTTP/1.1 (\d+)", reply) == [b"401", b"401"][: 1 + keep]


def test_a_refusal_is_told_though_the_body_stalls(
    make_proxy: ProxyMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cp, "CLIENT_TICK", 0.2)
    monkeypatch.setattr(cp, "SLOW_CLIENT", 0.4)
    proxy = make_proxy(api_keys=["k"])
    for key, status in (("nope", b"401"), ("k", b"408")):
        with closing(proxy.connect()) as peer:
            request = wire("claude", f"x-api-key: {key}").replace(b"connection: close\r\n", b"")
            peer.sendall(request[:-5])
            assert peer.recv(65_536)[:12] == b"HTTP/1.1 " + status


@pytest.mark.parametrize("framing", [f"content-length: {2**22}", "transfer-encoding: chunked"])
def test_a_large_body_that_nobody_reads_ends_the_connection(proxy: Proxy, framing: str) -> None:
    reply = proxy.raw(
        f"GET /v1/models HTTP/1.1\r\nhost: 127.0.0.1\r\n{framing}\r\n\r\n".encode() + bytes(2**20)
    )
    assert reply.count(b"HTTP/1.1 ") == 1


def test_a_refused_request_is_not_asked_to_continue(make_proxy: ProxyMaker) -> None:
    proxy = make_proxy(api_keys=["k"])
    reply = proxy.raw(
        wire("claude", "expect: 100-continue").replace(b"connection: close\r\n", b"")[: -len(BODY)]
    )
    assert reply.startswith(b"HTTP/1.1 401 ")
    assert b"connection: close\r\n" in reply


def test_no_body_is_waited_for_again_after_it_was_too_slow(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cp, "BODY_TIMEOUT", -1.0)
    monkeypatch.setattr(cp, "SLOWEST", 1e9)
    with closing(proxy.connect()) as peer:
        peer.sendall(wire("claude").replace(b"connection: close\r\n", b"")[:-5])
        wait_for(lambda: proxy.server.working)
        peer.sendall(b"x")
        seen = b""
        while more := peer.recv(4096):
            seen += more
    assert seen.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in seen


def test_blank_lines_are_idleness(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cp, "BLANK_TIMEOUT", 0.1)
    with closing(proxy.connect()) as peer, contextlib.suppress(ConnectionError):
        peer.settimeout(0.05)
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            peer.sendall(b"\r\n")
            with contextlib.suppress(socket.timeout):
                assert peer.recv(1) == b""
                break
        else:
            pytest.fail("it was never closed")


def test_tls_on_a_plain_port_is_told(proxy: Proxy) -> None:
    reply = proxy.raw(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300))
    assert b"use http://" in reply


def test_an_endless_refusal_is_only_its_status(proxy: Proxy, upstream: Upstream) -> None:
    upstream.reply(b'{"error":{"message":"' + b"x" * cp.ERROR_LIMIT + b'"}}', 400)
    got = ask(proxy)
    assert (got.status, len(got.body) < 1_000) == (400, True)


NO_ROUTES = [
    ("/v1/mesages", "did you mean /v1/messages?"),
    ("/v1/chat/completion", "did you mean /v1/chat/completions?"),
    ("/api/tags", "Ollama"),
    ("/v1/generate", "generateContent"),
    ("/v0/management/config", "remote-management.secret-key"),
    ("/model/info", "/v1/models"),
    ("/nothing/like/it", ""),
]


@pytest.mark.parametrize(("path", "hint"), NO_ROUTES)
def test_a_path_that_is_none_gets_a_hint_only_if_one_is_near(proxy: Proxy, path: str, hint: str) -> None:
    got = proxy.ask(path)
    assert got.status == 404
    assert hint in error_of(got)
    assert ("; " in error_of(got)) == bool(hint)


def test_what_a_request_lacks_is_told_in_words(proxy: Proxy) -> None:
    for body in (
        {},
        {"messages": 5},
        {"messages": [5]},
        {"messages": [{"role": "x"}]},
        {"messages": {"a": 1}},
    ):
        got = proxy.ask("/v1/messages", {"model": "up-chat", "max_tokens": 1, **body})
        assert got.status == 400
        assert "Error" not in error_of(got)
        assert "object" not in error_of(got)
    assert "it lacks 'messages'" in error_of(proxy.ask("/v1/messages", {"model": "up-chat", "max_tokens": 1}))


def test_reloads_and_logins_leave_a_line(proxy: Proxy, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    proxy.write({**proxy.settings, "debug": True, "port": 1, "request-retry": 7})
    proxy.app.poll()
    assert "config.json was read again; changed: " in caplog.text
    assert "debug" in caplog.text
    assert "config.json: port takes effect at the next start" in caplog.text
    file = proxy.auth_dir / "claude-ann.json"
    file.write_text(json.dumps({"type": "claude", "access_token": "x" * 20}), encoding="utf-8")
    proxy.app.poll()
    file.unlink()
    proxy.app.poll()
    assert "claude-ann.json: this login was picked up" in caplog.text
    assert "claude-ann.json: this login is gone" in caplog.text


@pytest.mark.parametrize("lines", [["host: ["], ["host: [::1"], ["host: 127.0.0.1", "origin: http://["]])
def test_a_malformed_host_is_refused(proxy: Proxy, lines: list[str]) -> None:
    reply = proxy.raw("\r\n".join(["GET /health HTTP/1.1", *lines, "", ""]).encode())
    assert reply.startswith(b"HTTP/1.1 403 ")


def test_http_1_0_has_no_chunks(proxy: Proxy) -> None:
    request = wire("claude", "transfer-encoding: chunked", body=chunks(BODY), length=False)
    assert proxy.raw(request.replace(b"HTTP/1.1", b"HTTP/1.0")).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    "target", ["http://127.0.0.1/health?x=1", "https://other/health", "/health?a=%zz&&=", "//health"]
)
def test_targets(proxy: Proxy, target: str) -> None:
    assert proxy.raw(f"GET {target} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode()).startswith(
        b"HTTP/1.1 200 "
    )


@pytest.mark.parametrize("target", ["health", "http://[", "ftp://a/health"])
def test_bad_targets(proxy: Proxy, target: str) -> None:
    assert proxy.raw(f"GET {target} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode()).startswith(
        b"HTTP/1.1 400 "
    )


@pytest.mark.parametrize(
    ("method", "status"), [("HEAD", 405), ("OPTIONS", 204), ("PUT", 405), ("DELETE", 405)]
)
def test_methods_that_clients_probe_with(proxy: Proxy, method: str, status: int) -> None:
    got = proxy.ask("/v1/messages", method=method)
    assert (got.status, bool(got.body)) == (status, status == 405 and method != "HEAD")
    assert ("content-length" in got.headers) is (status != 204)


def test_a_slow_but_steady_body_is_served(
    proxy: Proxy, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silences are not summed up: each byte begins a new one."""
    monkeypatch.setattr(cp, "CLIENT_TICK", 0.05)
    monkeypatch.setattr(cp, "SLOW_CLIENT", 0.2)
    upstream.reply({"ok": 1})
    request = wire("claude")
    with closing(proxy.connect()) as peer:
        for at in range(0, len(request), len(request) // 6):
            peer.sendall(request[at : at + len(request) // 6])
            threading.Event().wait(0.1)
        assert peer.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_a_dripping_head_has_a_deadline(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cp, "HEAD_TIMEOUT", 0.2)
    with closing(proxy.connect()) as peer:
        peer.settimeout(0.02)
        reply, end = b"", time.monotonic() + DEADLINE
        while not reply and time.monotonic() < end:
            peer.sendall(b"x")
            with contextlib.suppress(socket.timeout):
                reply = peer.recv(4096)
    assert reply.startswith(b"HTTP/1.1 408 ")


def handlers() -> int:
    """How many threads serve connections."""
    return sum(
        "process_request_thread" in thread.name or "Thread-" in thread.name
        for thread in threading.enumerate()
    )


def test_a_client_that_never_reads_is_given_up(
    proxy: Proxy, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cp, "CLIENT_TICK", 0.1)
    monkeypatch.setattr(cp, "SEND_TIMEOUT", 0.3)
    forever = [b'data: {"type":"ping"}\n\n' * 2_000] * 2_000
    upstream.reply(forever, headers=SSE)
    with closing(proxy.connect()) as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        peer.sendall(wire("claude"))
        assert upstream.hung_up.wait(DEADLINE)


def test_threads_end_with_their_clients(proxy: Proxy, upstream: Upstream) -> None:
    before = handlers()
    for _ in range(5):
        upstream.reply([SILENCE], headers=SSE)
    peers = [proxy.connect() for _ in range(10)]
    for peer in peers[:5]:
        peer.sendall(wire("claude"))
    wait_for(lambda: len(upstream.seen) == 5)
    assert handlers() > before
    for peer in peers:
        peer.close()
    wait_for(lambda: handlers() <= before + 5)  # the upstream's own have a connection each
    upstream.close()
    wait_for(lambda: handlers() <= before)


def test_many_headers_are_refused(proxy: Proxy) -> None:
    lines = [f"x{number}: 1" for number in range(300)]
    assert proxy.raw(wire("claude", *lines)).startswith(b"HTTP/1.1 400 ")


def test_an_upstream_s_endless_head_is_its_own_fault(proxy: Proxy, upstream: Upstream) -> None:
    upstream.reply([b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000], framing="raw")
    assert ask(proxy).status == 502


def test_an_early_refusal_is_delivered(proxy: Proxy, upstream: Upstream) -> None:
    """The upstream answers 413 and closes without reading the body."""
    refusal = b'{"error":{"type":"request_too_large","message":"too large"}}'
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        key = {
            "api-key": "k",
            "base-url": f"http://127.0.0.1:{listener.getsockname()[1]}",
            "models": [{"name": "up-claude"}],
        }
        proxy.write({**proxy.settings, "claude-api-key": [key]})
        proxy.app.poll()

        def serve() -> None:
            peer, _ = listener.accept()
            with closing(peer):
                peer.recv(1_000)
                peer.sendall(b"HTTP/1.1 413 No\r\ncontent-length: %d\r\n\r\n%b" % (len(refusal), refusal))

        thread = threading.Thread(target=serve)
        thread.start()
        got = proxy.ask("/v1/messages", {**ASKS["claude"][2], "padding": "x" * 30_000_000})
        thread.join(DEADLINE)
    assert (got.status, got.body) == (413, refusal)


def test_an_answer_without_a_body_is_a_failure(proxy: Proxy, upstream: Upstream) -> None:
    upstream.reply([b"HTTP/1.1 204 None\r\n\r\n"], framing="raw")
    assert ask(proxy).status == 502


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_want_of_file_descriptors_does_not_spin(tmp_path: Path) -> None:
    environ = {**os.environ, "HOME": str(tmp_path)}
    limited = f"import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40)); sys.path.insert(0, {str(ROOT)!r})"
    code = f"{limited}; import cliproxy; sys.exit(cliproxy.main(['serve', '--port', '0']))"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process, contextlib.ExitStack() as stack:
        stack.callback(process.kill)
        port = port_of(process)
        peers = [
            stack.enter_context(closing(socket.create_connection(("127.0.0.1", port), timeout=DEADLINE)))
            for _ in range(60)
        ]
        wait_for(lambda: len(os.listdir(f"/proc/{process.pid}/fd")) >= 39)  # noqa: PTH208
        before, begun = cpu_seconds(process.pid), time.monotonic()
        threading.Event().wait(1.0)
        spent, passed = cpu_seconds(process.pid) - before, time.monotonic() - begun
        assert spent / passed < 0.2
        for peer in peers:
            peer.close()
        with closing(socket.create_connection(("127.0.0.1", port), timeout=DEADLINE)) as peer:
            peer.sendall(b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
            assert peer.recv(4096).startswith(b"HTTP/1.1 200 ")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
