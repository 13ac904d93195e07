"""A provider's answer on its way to the client: what is edited in it, what keeps it alive."""

from __future__ import annotations

import gzip
import json
import threading
from contextlib import closing
from typing import Any

import pytest

import cliproxy as cp
from support.codex import ASKS, HELLO, STREAM, sse
from support.models import ASKS_FOR, SSE, answers, ask_for, key, log_in
from support.proxy import Proxy, ProxyMaker
from support.upstream import CLOSE, Upstream

# --- the name in the answer ---------------------------------------------------------------

NAMED: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {  # dialect -> events, as sent and as they arrive
    "claude": [
        ({"type": "message_start", "message": {"id": "m", "model": "real", "content": []}},
         {"type": "message_start", "message": {"id": "m", "model": "Asked", "content": []}}),
        ({"type": "content_block_delta", "delta": {"partial_json": '{"model": "real"}', "x": {"model": "real"}}},) * 2,
        ({"type": "message_stop"},) * 2,
    ],
    "chat": [
        ({"model": "real", "choices": [{"delta": {"content": '"model":"real"', "model": "real"}}]},
         {"model": "Asked", "choices": [{"delta": {"content": '"model":"real"', "model": "real"}}]}),
    ],
    "responses": [
        ({"type": "response.created", "response": {"tools": [{"model": "real"}], "model": "real"}},
         {"type": "response.created", "response": {"tools": [{"model": "real"}], "model": "Asked"}}),
        ({"type": "response.completed", "response": {"model": "real"}}, {"type": "response.completed", "response": {"model": "Asked"}}),
    ],
    "gemini": [
        ({"candidates": [{"finishReason": "STOP", "x": {"modelVersion": "real"}}], "modelVersion": "real"},
         {"candidates": [{"finishReason": "STOP", "x": {"modelVersion": "real"}}], "modelVersion": "Asked"}),
    ],
}  # fmt: skip


def forced(upstream: Upstream, dialect: str) -> dict[str, Any]:
    """Settings under which the account of one dialect serves `real` as `Asked`, telling so."""
    row = {"name": "real", "alias": "Asked", "force-mapping": True}
    entries = {
        "claude": ("claude_api_key", key(upstream, row)),
        "chat": ("openai_compatibility", [{"name": "up", "base-url": upstream.url, "models": [row]}]),
        "responses": ("codex_api_key", key(upstream, row)),
        "gemini": ("gemini_api_key", key(upstream, row)),
    }
    return {name: entry if own == dialect else [] for own, (name, entry) in entries.items()}


@pytest.mark.parametrize("piece", [1, 7, 65_536])
@pytest.mark.parametrize("dialect", NAMED)
def test_force_mapping_names_streams(
    make_proxy: ProxyMaker, upstream: Upstream, dialect: str, piece: int
) -> None:
    proxy = make_proxy(**forced(upstream, dialect))
    upstream.piece = piece
    upstream.reply(
        [b": hello\n\n", *(cp.sse_frame(sent, "e") for sent, _ in NAMED[dialect]), b"data: [DONE]\n\n"],
        headers=SSE,
    )
    path, body = ASKS_FOR[dialect]
    path = path.replace("{model}:generateContent", "Asked:streamGenerateContent?alt=sse")
    got = proxy.ask(path, {**body, "stream": True, **({} if dialect == "gemini" else {"model": "Asked"})})
    assert (
        got.body
        == b": hello\n\n"
        + b"".join(cp.sse_frame(arrives, "e") for _, arrives in NAMED[dialect])
        + b"data: [DONE]\n\n"
    )


@pytest.mark.parametrize(
    ("sent", "arrives"),
    [
        (b'{"id" : 1.50, "model" : "real","content":[{"input":{"model":"real"}}], "usage":{}}\n',
         b'{"id" : 1.50, "model" : "Asked","content":[{"input":{"model":"real"}}], "usage":{}}\n'),
        (b'{"\\"model": 1, "a\\\\":"\\"model\\":\\"x", "model":null}', b'{"\\"model": 1, "a\\\\":"\\"model\\":\\"x", "model":null}'),
        ('{"text":"\u2028é", "model":"real"}'.encode(), '{"text":"\u2028é", "model":"Asked"}'.encode()),
        (b'{"x":"\xff", "model":"real"}', b'{"x":"\xff", "model":"Asked"}'),
    ],
)  # fmt: skip
def test_force_mapping_names_whole_answers(
    make_proxy: ProxyMaker, upstream: Upstream, sent: bytes, arrives: bytes
) -> None:
    row = {"name": "real", "alias": "Asked", "force-mapping": True}
    proxy = make_proxy(claude_api_key=key(upstream, row), codex_api_key=[])
    upstream.reply(sent, headers={"content-type": "application/json"})
    assert ask_for(proxy, "claude", "Asked").body == arrives


def test_without_force_mapping_the_bytes_pass(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    proxy = make_proxy(claude_api_key=key(upstream, {"name": "real", "alias": "asked"}))
    upstream.replies = [answers]
    assert ask_for(proxy, "claude", "asked").json()["model"] == "real"


def test_force_mapping_of_a_login(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    rows = [{"name": "gpt-5.5", "alias": "mine", "force-mapping": True}]
    proxy = make_proxy(oauth_model_alias={"codex": rows})
    log_in(proxy, "codex", prefix="p")
    upstream.replies = [answers] * 3
    assert ask_for(proxy, "responses", "mine").json()["model"] == "mine", "collected from a stream"
    assert ask_for(proxy, "responses", "p/mine", stream=True).payloads()[0]["response"]["model"] == "p/mine"
    assert ask_for(proxy, "claude", "mine").json()["model"] == "mine", "translated"


def test_gemini_s_arrays(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    """A client that did not say alt=sse reads its stream as one JSON array."""
    chunk = {
        "candidates": [{"content": {"role": "model", "parts": [{"text": "x"}]}, "finishReason": "STOP"}],
        "modelVersion": "real",
    }
    path, body = (
        ASKS_FOR["gemini"][0].replace("{model}:generateContent", "up-gemini:streamGenerateContent"),
        ASKS_FOR["gemini"][1],
    )
    proxy = make_proxy()
    upstream.reply([b"[", json.dumps(chunk).encode(), b"]"], headers={"content-type": "application/json"})
    assert proxy.ask(path, body).json() == [chunk]
    assert upstream.seen[0].path.endswith(":streamGenerateContent")
    proxy = make_proxy(**forced(upstream, "gemini"))
    upstream.reply([cp.sse_frame(chunk)], headers=SSE)
    got = proxy.ask(path.replace("up-gemini", "Asked"), body).json()
    assert {part["modelVersion"] for part in got} == {"Asked"}


CLAUDE = {"model": "up-claude", "max_tokens": 9, "messages": [HELLO]}
OK, ERROR = {"ok": 1}, {"error": {"type": "x", "message": "no"}}


# --- keep-alives ---------------------------------------------------------------------------------

STREAMS: dict[str, tuple[str, dict[str, Any], list[bytes]]] = {  # dialect -> path, body, a stream in two halves
    "claude": ("/v1/messages", {**CLAUDE, "stream": True}, sse({"type": "message_start", "message": {}}, {"type": "message_stop"})),
    "chat": (
        "/v1/chat/completions", {"model": "up-chat", "stream": True, "messages": [HELLO]},
        [b'data: {"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}]}\n\n', b"data: [DONE]\n\n"],
    ),
    "responses": ("/v1/responses", {"model": "up-responses", "stream": True, "input": "x"}, [STREAM[0], STREAM[-1]]),
    "gemini": (
        "/v1beta/models/up-gemini:streamGenerateContent?alt=sse", ASKS["gemini"][2],
        [b'data: {"candidates":[{"content":{"parts":[{"text":"x"}]}}]}\r\n\r\n', b'data: {"candidates":[{"finishReason":"STOP"}]}\r\n\r\n'],
    ),
}  # fmt: skip


@pytest.mark.parametrize("dialect", list(STREAMS))
def test_a_silent_stream_is_kept_alive(
    make_proxy: ProxyMaker, upstream: Upstream, dialect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cp, "TICK", 0.25)
    proxy = make_proxy(streaming={"keepalive-seconds": 1})
    path, body, (first, last) = STREAMS[dialect]
    go = threading.Event()
    upstream.reply([first, go, last], headers=SSE)
    sign = cp.DIALECTS[dialect].keepalive
    data = json.dumps(body).encode()
    with closing(proxy.connect()) as peer:
        head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\ncontent-length: {len(data)}\r\n\r\n"
        peer.sendall(head.encode() + data)
        seen = b""
        while sign not in seen.partition(b"\r\n\r\n")[2]:
            seen += peer.recv(4096)
        go.set()
        while more := peer.recv(4096):
            seen += more
    assert first in seen
    assert last in seen
    assert seen.endswith(b"0\r\n\r\n")
    assert list(cp.sse_read([sign])) in ([], [{"type": "ping"}])


@pytest.mark.parametrize("dialect", list(ASKS))
@pytest.mark.parametrize("fails", [False, True])
def test_a_whole_answer_that_takes_long_begins_with_blank_lines(
    make_proxy: ProxyMaker, upstream: Upstream, dialect: str, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cp, "TICK", 0.25)
    proxy = make_proxy(nonstream_keepalive_interval=1)
    path, _, body = ASKS[dialect]
    path, body = (
        path.replace("gpt-test", "up-gemini"),
        {**body, **({"model": f"up-{dialect}"} if "model" in body else {})},
    )
    go = threading.Event()
    head = b"HTTP/1.1 500 Bad\r\n" if fails else b"HTTP/1.1 200 OK\r\n"
    answer = gzip.compress(json.dumps(ERROR if fails else OK).encode())
    head += b"content-encoding: gzip\r\n"  # which cannot stand behind blank lines
    upstream.reply(
        [
            go,
            head + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(answer), answer),
        ],
        framing="raw",
    )
    data = json.dumps(body).encode()
    with closing(proxy.connect()) as peer:
        request = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\naccept-encoding: gzip\r\n"
        request += f"content-length: {len(data)}\r\n\r\n"
        peer.sendall(request.encode() + data)
        seen = b""
        while b"1\r\n\n\r\n" not in seen:
            seen += peer.recv(4096)
        go.set()
        while more := peer.recv(4096):
            seen += more
    assert seen.startswith(b"HTTP/1.1 200 OK\r\n"), "the status has gone out before it was known"
    wire = seen.partition(b"\r\n\r\n")[2]
    whole = json.loads(cp.Chunks().feed(wire))
    assert ("error" in whole) if fails else (whole == OK)


# --- the old completions API -------------------------------------------------------------------------

CHAT_ANSWER = {
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "up-chat",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop", "logprobs": {"content": []}}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
}  # fmt: skip


@pytest.mark.parametrize("prompt", ["say", ["say"]])
def test_completions(make_proxy: ProxyMaker, upstream: Upstream, prompt: Any) -> None:
    upstream.reply(CHAT_ANSWER)
    got = make_proxy().ask(
        "/v1/completions",
        {"model": "up-chat", "prompt": prompt, "max_tokens": 5, "logprobs": 3, "echo": False},
    )
    assert upstream.seen[0].path == "/v1/chat/completions"
    assert upstream.seen[0].json() == {
        "model": "up-chat",
        "max_tokens": 5,
        "messages": [{"role": "user", "content": "say"}],
    }
    assert got.json() == {
        "id": "cmpl-1", "object": "text_completion", "created": 1, "model": "up-chat", "usage": CHAT_ANSWER["usage"],
        "choices": [{"index": 0, "text": "hi", "finish_reason": "stop", "logprobs": None}],
    }  # fmt: skip


def test_a_stream_of_completions(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "up-chat"}
    deltas: list[tuple[dict[str, str], Any]] = [
        ({"role": "assistant"}, None),
        ({"content": "hi"}, None),
        ({}, "stop"),
    ]
    chunks = [
        {**chunk, "choices": [{"index": 0, "delta": delta, "finish_reason": end}]} for delta, end in deltas
    ]
    upstream.reply([*sse(*chunks), b"data: [DONE]\n\n"], headers=SSE)
    got = make_proxy().ask("/completions", {"model": "up-chat", "prompt": "say", "stream": True})
    rows = [payload["choices"][0] for payload in got.payloads()]
    assert [(row["text"], row["finish_reason"]) for row in rows] == [("", None), ("hi", None), ("", "stop")]
    assert {payload["object"] for payload in got.payloads()} == {"text_completion"}
    assert got.body.endswith(b"data: [DONE]\n\n")


def test_completions_of_a_translated_upstream(codex: Proxy, upstream: Upstream) -> None:
    upstream.reply(STREAM, headers=SSE)
    upstream.reply(STREAM, headers=SSE)
    body = {"model": "gpt-test", "prompt": "say"}
    assert codex.ask("/v1/completions", body).json()["choices"][0]["text"] == "hi there"
    got = codex.ask("/v1/completions", {**body, "stream": True})
    assert "".join(row["text"] for payload in got.payloads() for row in payload["choices"]) == "hi there"


def test_a_broken_stream_of_completions_does_not_end_well(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    upstream.reply([STREAMS["chat"][2][0], CLOSE], headers=SSE)
    got = make_proxy().ask("/v1/completions", {"model": "up-chat", "prompt": "say", "stream": True})
    assert b"[DONE]" not in got.body
    assert "error" in got.payloads()[-1]


@pytest.mark.parametrize("prompt", [[1, 2], ["a", "b"], [[1]], None, {}])
def test_prompts_that_are_no_text(make_proxy: ProxyMaker, prompt: Any) -> None:
    got = make_proxy().ask("/v1/completions", {"model": "up-chat", "prompt": prompt})
    assert (got.status, got.json()["error"]["param"]) == (400, "prompt")


def test_completions_of_echo_and_of_nobody(make_proxy: ProxyMaker) -> None:
    proxy = make_proxy()
    assert (
        proxy.ask("/v1/completions", {"model": "echo", "prompt": "hello"}).json()["choices"][0]["text"]
        == "hello"
    )
    assert proxy.ask("/v1/completions", {"model": "nope", "prompt": "hello"}).status == 404
    assert proxy.ask("/v1/completions", {"prompt": "hello"}).status == 400


def test_a_malformed_whole_completion_is_the_upstream_s_fault(
    make_proxy: ProxyMaker, upstream: Upstream
) -> None:
    upstream.reply(b"<html>", headers={"content-type": "text/html"})
    assert make_proxy().ask("/v1/completions", {"model": "up-chat", "prompt": "say"}).status == 502


def test_a_malformed_stream_is_the_upstream_s_failure(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    proxy = make_proxy()
    good = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":"x"}}]}\n\n'
    bad = b'data: {"choices":[{"index":0,"delta":{"tool_calls":"none"}}]}\n\n'
    upstream.reply([good, bad], headers={"content-type": "text/event-stream"})
    ask = {"model": "up-chat", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
    got = proxy.ask("/v1/messages", {**ask, "stream": True})
    last = got.payloads()[-1]
    assert (got.status, last["type"]) == (200, "error")
    assert "malformed" in last["error"]["message"]
