"""All 4 x 4 pairs of dialects through the running proxy: goldens, tool loops, errors, conformance."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import cliproxy as cp
from support import validate_chat, validate_claude, validate_gemini, validate_responses
from support.dialogue import ANSWERS, CLIENTS, NAMES, PROOFS, SSE, STREAMS, Said, frame
from support.paths import DATA
from support.proxy import Got, Proxy
from support.upstream import CLOSE, RESET, Upstream

Json = dict[str, Any]
PAIRS = [pytest.param(c, u, id=f"{c} on {u}") for c in NAMES for u in NAMES]


# --- tool loops with the vendors' own SDKs

FIRST = Said("Let me see.", "I will look.", "toolu_1", "Zürich 😀")
LAST = Said(text="It is sunny.")


def script(upstream: Upstream, dialect: str, said: Said, *, stream: bool) -> None:
    """Let the upstream say something, as a stream or not."""
    if stream:
        upstream.reply(STREAMS[dialect](said), headers=SSE)
    else:
        upstream.reply(ANSWERS[dialect](said))


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize(("client", "dialect"), PAIRS)
def test_tool_loops(proxy: Proxy, upstream: Upstream, client: str, dialect: str, stream: bool) -> None:
    upstream.piece = 7
    script(upstream, dialect, FIRST, stream=stream)
    script(upstream, dialect, LAST, stream=stream)
    talk = CLIENTS[client](proxy.url, stream=stream)
    talk.ask("How is the weather?")
    assert talk.say(f"up-{dialect}") == ("I will look.", [("look", {"city": "Zürich 😀"})])
    talk.give("22 degrees")
    assert talk.say(f"up-{dialect}") == ("It is sunny.", [])
    body = upstream.seen[1].body.decode()
    assert PROOFS[dialect] in body
    assert "22 degrees" in body
    assert cp.PROOF_MARK.decode() not in body


SWITCHES = [("claude", "gemini"), ("gemini", "responses"), ("responses", "claude"), ("claude", "chat")]


@pytest.mark.parametrize("client", NAMES)
@pytest.mark.parametrize(("home", "guest"), SWITCHES)
def test_a_conversation_that_changes_its_model_halfway(
    proxy: Proxy, upstream: Upstream, client: str, home: str, guest: str
) -> None:
    """Every upstream gets its own proofs back, and no other's; nothing of ours reaches one."""
    talk = CLIENTS[client](proxy.url, stream=True)
    for number, dialect in enumerate((home, guest, home)):
        script(upstream, dialect, FIRST._replace(call=f"toolu_{number}"), stream=True)
        talk.ask("And now?")
        talk.say(f"up-{dialect}")
        talk.give("22 degrees")
    _, at_guest, at_home = (seen.body.decode() for seen in upstream.seen)
    assert PROOFS[home] not in at_guest
    assert PROOFS[home] in at_home
    assert not PROOFS[guest] or PROOFS[guest] not in at_home
    assert cp.PROOF_MARK.decode() not in at_guest + at_home


# --- goldens: every stream of every dialect, to every client, in pieces of any size


PATHS = {
    "claude": "/v1/messages",
    "chat": "/v1/chat/completions",
    "responses": "/v1/responses",
    "gemini": "/v1beta/models/up-{}:streamGenerateContent?alt=sse",
}
QUESTION: dict[str, Json] = {
    "claude": {"max_tokens": 9, "messages": [{"role": "user", "content": "q"}]},
    "chat": {"messages": [{"role": "user", "content": "q"}], "stream_options": {"include_usage": True}},
    "responses": {"input": "q"},
    "gemini": {"contents": [{"parts": [{"text": "q"}]}]},
}
ENDS_EARLY = {"error.sse", "stream-code-assist.sse"}  # an error; another envelope
MANY = {"choices", "stream-two-candidates"}  # answers at once, which are refused to the others
GOLDENS = [
    pytest.param(path, client, id=f"{path.parent.name} {path.stem} to {client}")
    for path in sorted(DATA.glob("*/*.sse"))
    for client in NAMES
    if path.name not in ENDS_EARLY and client != path.parent.name
    if path.stem not in MANY or client in {"chat", "gemini"}
]


def ask(proxy: Proxy, client: str, dialect: str, *, stream: bool = True) -> Got:
    body = {**QUESTION[client], "model": f"up-{dialect}", "stream": stream}
    path = PATHS[client].format(dialect)
    if client == "gemini" and not stream:
        path = path.replace("streamGenerateContent?alt=sse", "generateContent")
    return proxy.ask(path, body)


def check(client: str, data: bytes) -> Any:
    """Run a stream through the strict reader of its dialect; return what that makes of it."""
    if client == "claude":
        return validate_claude.validate(data, "pause_turn", truncated=True)
    if client == "chat":
        return validate_chat.validate_stream(data, usage=True)
    if client == "responses":
        return validate_responses.validate(data)
    return validate_gemini.validate_stream(data)


@pytest.mark.parametrize(("path", "client"), GOLDENS)
def test_goldens(proxy: Proxy, upstream: Upstream, path: Path, client: str) -> None:
    found = []
    for piece in (1, 7, 1 << 20):
        upstream.piece = piece
        upstream.reply(path.read_bytes(), headers=SSE)
        got = ask(proxy, client, path.parent.name)
        assert got.status == 200, got.body
        found.append(re.sub(rb"[0-9a-f]{24}|\"created(_at)?\":\s*\d+", b"", got.body))
        check(client, got.body)
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("dialect", NAMES)
@pytest.mark.parametrize("client", NAMES)
def test_a_client_that_does_not_stream_gets_the_same(
    proxy: Proxy, upstream: Upstream, client: str, dialect: str
) -> None:
    said = FIRST
    script(upstream, dialect, said, stream=False)
    whole = events_of(client, ask(proxy, client, dialect, stream=False).json())
    script(upstream, dialect, said, stream=True)
    streamed = list(cp.sse_read([ask(proxy, client, dialect).body]))
    assert parts_of(cp.DIALECTS[client].read_stream(streamed, READ)) == parts_of(whole)


READ = cp.Request("chat", "m", (), id="r")


def events_of(dialect: str, body: Json) -> cp.Events:
    return cp.DIALECTS[dialect].read_response(body, READ)


def parts_of(events: Any) -> list[tuple[str, str, str]]:
    response = cp.collect(events)
    parts = response.choices[0].parts
    return [
        (p.kind, p.name, cp.dumps_text(json.loads(p.text)) if p.kind == "call" else p.text) for p in parts
    ]


# --- failures

BUSY: dict[str, list[bytes]] = {  # a mid-stream error of each dialect
    "claude": [frame({"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}, "error")],
    "chat": [
        frame({"error": {"message": "busy", "type": "server_error", "code": "overloaded", "param": None}})
    ],
    "responses": [
        frame({"type": "error", "code": "server_is_overloaded", "message": "busy", "param": None}, "error")
    ],
    "gemini": [b'data: {"error": {"code": 503, "message": "busy", "status": "UNAVAILABLE"}}\r\n\r\n'],
}
STATUS = {"claude": 529, "chat": 503, "responses": 503, "gemini": 503}
ENDED = {"message_delta", "message_stop", "response.completed"}


def beginning(dialect: str) -> list[bytes]:
    """Return the frames of an answer up to its first text."""
    frames = STREAMS[dialect](Said(text="partial"))
    return frames[: next(n for n, data in enumerate(frames, 1) if b'"par"' in data)]


def failure(client: str, data: bytes) -> str:
    """Check a stream that broke off: an error at its end, and no other end. Return its message."""
    payloads = list(cp.sse_read([data]))
    assert b"[DONE]" not in data
    assert not ENDED & {str(payload.get("type")) for payload in payloads}
    assert not re.search(rb'"finish_?[rR]eason": ?"', data)
    if client == "claude":
        payloads = validate_claude.validate_failure(data)
    elif client == "responses":
        error = payloads[-1]["response"]["error"]
        assert payloads[-1]["type"] == "response.failed"
        return str(error["message"])
    elif client == "gemini":
        validate_gemini.validate_stream(data)
    return str(payloads[-1]["error"]["message"])


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
@pytest.mark.parametrize(("client", "dialect"), [p for p in PAIRS if p.values[0] != p.values[1]])
def test_an_error_in_the_middle(
    proxy: Proxy, upstream: Upstream, client: str, dialect: str, piece: int
) -> None:
    """Conformance case 17."""
    upstream.piece = piece
    upstream.reply([*beginning(dialect), *BUSY[dialect]], headers=SSE)
    got = ask(proxy, client, dialect)
    assert got.status == 200
    assert "par" in got.body.decode()
    assert failure(client, got.body) == "busy"


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
@pytest.mark.parametrize(("client", "dialect"), PAIRS)
def test_an_error_as_the_first_event(
    proxy: Proxy, upstream: Upstream, client: str, dialect: str, piece: int
) -> None:
    upstream.piece = piece
    upstream.reply(BUSY[dialect], headers=SSE)
    got = ask(proxy, client, dialect)
    assert (got.status, got.json()["error"]["message"]) == (STATUS[client], "busy")
    assert got.headers["content-type"] == "application/json"


@pytest.mark.parametrize("wrong", [b'["x"]', b'{"x": 1}', b"5", b"true"])
@pytest.mark.parametrize(("client", "dialect"), [p for p in PAIRS if p.values[0] != p.values[1]])
def test_a_text_that_is_no_text(
    proxy: Proxy,
    upstream: Upstream,
    client: str,
    dialect: str,
    wrong: bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The client is told in its dialect, and nothing of ours breaks."""
    if dialect == "chat" and wrong != b'["x"]':
        pytest.skip("some hosts send other values for a text: they are taken for its JSON")
    begun = beginning(dialect)
    upstream.reply([*begun, begun[-1].replace(b'"par"', wrong)], headers=SSE)
    got = ask(proxy, client, dialect)
    assert got.status == 200
    assert failure(client, got.body)
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("step", [CLOSE, RESET, b""], ids=["closed", "reset", "ended"])
@pytest.mark.parametrize(("client", "dialect"), PAIRS)
def test_a_stream_that_breaks_off(
    proxy: Proxy, upstream: Upstream, client: str, dialect: str, step: Any
) -> None:
    if dialect == "chat" and step == b"":
        pytest.skip("some Chat endpoints end without a finish: spec 2.11")
    upstream.reply([*beginning(dialect), *([step] if step else [])], headers=SSE)
    got = ask(proxy, client, dialect)
    assert got.status == 200
    assert failure(client, got.body)


# --- numbers that Python knows and JSON does not

HUGE = 1234567890123  # stands for 1e400, which Python reads as Infinity
SCHEMA: Json = {"type": "object", "properties": {"a": {"type": "number", "maximum": HUGE}}}
NUMBERS: dict[str, Json] = {  # client -> a body with such numbers in a schema, in arguments and in a parameter
    "claude": {
        "max_tokens": 9, "temperature": HUGE, "tools": [{"name": "f", "input_schema": SCHEMA}],
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": HUGE}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "r"}]},
        ],
    },
    "chat": {
        "temperature": HUGE, "tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}],
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": f'{{"a":{HUGE}}}'}}
            ]},
            {"role": "tool", "tool_call_id": "c1", "content": f'{{"a":{HUGE}}}'},
        ],
    },
    "responses": {
        "temperature": HUGE, "tools": [{"type": "function", "name": "f", "parameters": SCHEMA, "strict": False}],
        "input": [
            {"role": "user", "content": "q"},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": f'{{"a":{HUGE}}}'},
            {"type": "function_call_output", "call_id": "c1", "output": f'{{"a":{HUGE}}}'},
        ],
    },
    "gemini": {
        "generationConfig": {"temperature": HUGE}, "tools": [{"functionDeclarations": [{"name": "f", "parametersJsonSchema": SCHEMA}]}],
        "contents": [
            {"role": "user", "parts": [{"text": "q"}]},
            {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {"a": HUGE}}}]},
            {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {"a": HUGE}}}]},
        ],
    },
}  # fmt: skip


def exact(data: bytes) -> Any:
    """Decode JSON as everybody but Python does."""
    return json.loads(data, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def ask_for_numbers(proxy: Proxy, client: str, dialect: str, number: str) -> Got:
    body: Json = {"model": f"up-{dialect}", **NUMBERS[client]}
    path = PATHS[client].format(dialect).replace("streamGenerateContent?alt=sse", "generateContent")
    return proxy.ask(path, json.dumps(body).replace(str(HUGE), number).encode())


@pytest.mark.parametrize(("client", "dialect"), [p for p in PAIRS if p.values[0] != p.values[1]])
def test_numbers_that_are_too_large(proxy: Proxy, upstream: Upstream, client: str, dialect: str) -> None:
    said = json.dumps(ANSWERS[dialect](Said(text="x", call="toolu_1", input="HUGE")))
    upstream.reply(re.sub(r'\\?"HUGE\\?"', "1e400", said).encode())
    got = ask_for_numbers(proxy, client, dialect, "1e400")
    assert got.status == 200
    exact(upstream.seen[0].body)
    exact(got.body)
    assert "Infinity" not in upstream.seen[0].body.decode() + got.body.decode()


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("client", NAMES)
def test_numbers_that_are_none(proxy: Proxy, upstream: Upstream, client: str, word: str) -> None:
    got = ask_for_numbers(proxy, client, "gemini" if client == "claude" else "claude", word)
    assert (got.status, upstream.seen) == (400, [])
    assert word in got.json()["error"]["message"]


def test_numbers_that_are_none_within_texts(proxy: Proxy, upstream: Upstream) -> None:
    script(upstream, "claude", Said(text="x"), stream=False)
    got = proxy.ask(
        "/v1/chat/completions", {"model": "up-claude", "messages": [{"role": "user", "content": "NaN?"}]}
    )
    assert got.status == 200


# --- answers that failed with nothing to show


def chat_row(stream: bool, finish: str, **said: Any) -> Json:
    row = {
        "index": 0,
        "delta" if stream else "message": {"role": "assistant", **said},
        "finish_reason": finish,
    }
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [row]}


def gemini_parts(finish: str, *parts: Json) -> Json:
    candidate = {"content": {"role": "model", "parts": list(parts)}, "finishReason": finish, "index": 0}
    return {"candidates": [candidate], "usageMetadata": {"promptTokenCount": 1, "totalTokenCount": 1}}


def claude_call(stream: bool) -> list[Json]:
    block = {"type": "tool_use", "id": "t", "name": "", "input": {}}
    head = {"id": "m", "type": "message", "role": "assistant", "model": "m", "stop_sequence": None,
            "usage": {"input_tokens": 1, "output_tokens": 1}}  # fmt: skip
    if not stream:
        return [{**head, "content": [block], "stop_reason": "tool_use"}]
    return [
        {"type": "message_start", "message": {**head, "content": [], "stop_reason": None}},
        {"type": "content_block_start", "index": 0, "content_block": block},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 2}},
        {"type": "message_stop"},
    ]


def responses_call(stream: bool) -> list[Json]:
    item = {
        "type": "function_call",
        "id": "fc",
        "call_id": "c",
        "name": "",
        "arguments": "{}",
        "status": "completed",
    }
    whole = {
        "id": "r",
        "object": "response",
        "created_at": 1,
        "model": "m",
        "status": "completed",
        "output": [item],
    }
    if not stream:
        return [whole]
    return [
        {"type": "response.created", "response": {**whole, "status": "in_progress", "output": []}},
        {"type": "response.output_item.added", "output_index": 0, "item": {**item, "arguments": ""}},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": whole},
    ]


NAMELESS = {
    "tool_calls": [
        {"index": 0, "id": "c", "type": "function", "function": {"name": "", "arguments": '{"a":1}'}}
    ]
}
STRAY = {"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"arguments": ""}}]}
SIGNED = {"text": "", "thoughtSignature": "c2ln"}
THOUGHT = {"text": "hm", "thought": True}
NOTHING = [  # dialect of the upstream, and what it says, as a stream or whole
    pytest.param("chat", lambda stream: [chat_row(stream, "error", content="")], id="error"),
    pytest.param("chat", lambda stream: [chat_row(stream, "error", reasoning_content="hm")], id="only thought"),
    pytest.param("chat", lambda stream: [chat_row(stream, "tool_calls", **NAMELESS)], id="nameless in Chat"),
    pytest.param("chat", lambda stream: [chat_row(stream, "stop", **NAMELESS)], id="nameless, said to stop"),
    pytest.param("chat", lambda stream: [chat_row(stream, "tool_calls", **STRAY)], id="no call that was announced"),
    pytest.param("claude", claude_call, id="nameless of Claude"),
    pytest.param("responses", responses_call, id="nameless in Responses"),
    pytest.param("gemini", lambda _: [gemini_parts("MALFORMED_FUNCTION_CALL")], id="malformed"),
    pytest.param("gemini", lambda _: [gemini_parts("MALFORMED_FUNCTION_CALL", SIGNED)], id="signature only"),
    pytest.param("gemini", lambda _: [gemini_parts("OTHER", THOUGHT, SIGNED)], id="thought and signature"),
    pytest.param("gemini", lambda _: [gemini_parts("STOP", {"functionCall": {"args": {}}})], id="nameless of Gemini"),
]  # fmt: skip


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("client", NAMES)
@pytest.mark.parametrize(("dialect", "say"), NOTHING)
def test_what_failed_with_nothing_to_show_is_an_error(
    proxy: Proxy, upstream: Upstream, client: str, dialect: str, say: Any, stream: bool
) -> None:
    if client == dialect:
        pytest.skip("its bytes pass: the client knows the words of its own dialect")
    payloads = say(stream)
    if stream:
        upstream.reply([frame(payload, payload.get("type", "")) for payload in payloads], headers=SSE)
    else:
        upstream.reply(payloads[0])
    got = ask(proxy, client, dialect, stream=stream)
    assert got.status >= 500 or failure(client, got.body)


ANYWAY = [
    pytest.param("chat", lambda stream: [chat_row(stream, "error", content="some")], id="something said"),
    pytest.param("chat", lambda stream: [chat_row(stream, "stop", content="some", **STRAY)], id="a stray piece of a call"),
    pytest.param("chat", lambda stream: [chat_row(stream, "stop", content="")], id="nothing, and done"),
    pytest.param("chat", lambda stream: [chat_row(stream, "length", reasoning_content="hm")], id="cut while thinking"),
    pytest.param("gemini", lambda _: [gemini_parts("STOP", THOUGHT)], id="a thought, and done"),
]  # fmt: skip


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("client", ["claude", "responses"])
@pytest.mark.parametrize(("dialect", "say"), ANYWAY)
def test_what_ended_well_is_an_answer_however_little_it_says(
    proxy: Proxy, upstream: Upstream, client: str, dialect: str, say: Any, stream: bool
) -> None:
    if stream:
        upstream.reply([*map(frame, say(True)), b"data: [DONE]\n\n"], headers=SSE)
    else:
        upstream.reply(say(False)[0])
    got = ask(proxy, client, dialect, stream=stream)
    assert got.status == 200
    assert b'"error"' not in got.body.replace(b'"error":null', b"").replace(b'"error": null', b"")
