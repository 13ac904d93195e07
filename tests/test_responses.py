"""The room RESPONSES: requests, answers, streams, errors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cliproxy as cp
from cliproxy import Part
from support.paths import SHARED
from support.validate_responses import check_response, frames, validate

Json = dict[str, Any]
DATA = Path(__file__).parent / "data" / "responses"
RECORDINGS = SHARED / "recordings"
TARGET = cp.Target("openai", cp.Model("m"))
ASKED = cp.Request("chat", "asked", (), id="f00d", created=7)
PIECES = [1, 7, 1 << 20]


def load(name: str) -> Any:
    return json.loads((DATA / name).read_text(encoding="utf-8"))


def cut(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def wire(*payloads: Json) -> bytes:
    return b"".join(cp.sse_frame(payload, payload.get("type", "")) for payload in payloads)


def read(*payloads: Json, request: cp.Request = ASKED) -> cp.Response:
    return cp.collect(cp.responses_read_stream(payloads, request))


def parts_of(response: cp.Response) -> list[Part]:
    return [part._replace(extra={}) for part in response.choices[0].parts]


def round_trip(body: Json) -> Json:
    return cp.responses_write_request(cp.responses_read_request(body), TARGET)


def written(messages: Iterable[cp.Message], **fields: Any) -> Json:
    request = cp.Request("claude", "m", tuple(messages), **fields)
    return cp.responses_write_request(request, TARGET)


# -- requests ------------------------------------------------------------------------

USER = {"role": "user", "content": "hi"}
BODIES = [
    pytest.param({"model": "m", "input": "hi"}, id="string"),
    pytest.param({"model": "m", "input": []}, id="nothing"),
    pytest.param({"model": "m", "prompt": {"id": "p"}, "future_x": 1}, id="no input"),
    pytest.param(
        {"model": "m", "input": [USER], "tools": [], "tool_choice": "auto", "stream": False}, id="no tools"
    ),
    pytest.param(
        {"model": "m", "input": [USER], "tool_choice": None, "reasoning": None, "text": {}}, id="nulls"
    ),
    pytest.param({"model": "m", "input": [USER], "instructions": "", "user": "u"}, id="old user"),
    pytest.param({"model": "m", "input": [USER], "user": "u", "safety_identifier": "s"}, id="two users"),
    pytest.param({"model": "m", "input": [{"role": "user", "content": []}]}, id="empty content"),
    pytest.param(
        {"model": "m", "input": [{"id": "msg_1"}, {"type": "item_reference", "id": "x"}]}, id="reference"
    ),
    pytest.param(
        {"model": "m", "input": [USER], "reasoning": {"effort": "ultra", "context": "all_turns"}}, id="ultra"
    ),
    pytest.param(
        {"model": "m", "input": [USER], "reasoning": {"effort": "odd", "generate_summary": "auto"}}, id="odd"
    ),
    pytest.param(
        {"model": "m", "input": [USER], "text": {"format": {"type": "text"}, "verbosity": "low"}}, id="text"
    ),
    pytest.param(
        {
            "model": "m",
            "input": [USER],
            "text": {"format": {"type": "json_schema", "name": "n", "schema": {}, "strict": None}},
        },
        id="format",
    ),
    pytest.param(
        {"model": "m", "input": [USER], "tool_choice": {"type": "mcp", "server_label": "x"}}, id="mcp"
    ),
    pytest.param(
        {
            "model": "m",
            "input": [
                {
                    "role": "user",
                    "content": [{"type": "input_image", "image_url": "data:image/jpg;base64,AA=="}],
                }
            ],
        },
        id="odd data URL",
    ),
    pytest.param(
        {
            "model": "m",
            "input": [
                {
                    "type": "function_call_output",
                    "call_id": "c",
                    "output": [{"type": "input_text", "text": "a"}],
                }
            ],
        },
        id="listed output",
    ),
    pytest.param(load("turns.json"), id="turns"),
    pytest.param(load("codex.json"), id="codex"),
]


@pytest.mark.parametrize("body", BODIES)
def test_bodies_come_back_as_they_were(body: Json) -> None:
    before = json.dumps(body)
    assert round_trip(body) == body
    assert json.dumps(body) == before


def test_runs_of_items_are_turns() -> None:
    request = cp.responses_read_request(load("turns.json"))
    assert [part.text for part in request.system] == ["I", "S1", "S2", "D"]
    assert [(m.role, [p.kind for p in m.parts]) for m in request.messages] == [
        ("user", ["text", "media", "media"]),
        ("assistant", ["thinking", "text", "text", "call", "call", "hosted"]),
        ("tool", ["result", "result"]),
        ("developer", ["text"]),
        ("assistant", ["thinking", "opaque", "refusal"]),
        ("user", ["text", "opaque"]),
    ]
    thinking, first, second, call, custom, search = request.messages[1].parts
    assert (thinking.text, thinking.proof) == ("a\n\nb", "gAAA")
    assert (first.text, second.text) == ("one", "two")
    assert (call.id, call.name, call.text, call.namespace) == ("c1", "f", '{"x": 1}', "ns")
    assert (custom.custom, custom.text) == (True, "free")
    assert (search.name, json.loads(search.text)) == ("web_search", {"query": "q"})
    image, document = (part.media for part in request.messages[0].parts[1:])
    assert image == cp.Media("image", "base64", "AA==", "image/png", "", "low")
    assert document == cp.Media("document", "url", "https://x/y.pdf")
    assert request.thinking == cp.Thinking("high", summary="auto")
    assert request.choice == cp.ToolChoice("required", ("f", "patch"))
    assert request.format == cp.Format("schema", "n", {"type": "object"}, True)
    assert request.params == {
        "max_tokens": 5,
        "temperature": 0.5,
        "verbosity": "low",
        "user": "u",
        "store": False,
        "parallel": False,
    }
    assert request.stream


def test_tools_of_every_kind_are_rows() -> None:
    tools = cp.responses_read_request(load("turns.json")).tools
    assert [(t.kind, t.name, t.namespace, t.strict) for t in tools] == [
        ("function", "f", "", None),
        ("custom", "patch", "", None),
        ("function", "g", "ns", False),
        ("function", "h", "ns", True),
        ("hosted", "web_search", "", None),
        ("hosted", "code_execution", "", None),
        ("hosted", "mcp", "", None),
    ]
    assert tools[1].grammar == {"syntax": "lark", "definition": "G"}


def test_tools_in_the_input_are_tools_where_they_stand() -> None:
    request = cp.responses_read_request(load("codex.json"))
    assert [(t.kind, t.name, t.namespace) for t in request.tools] == [
        ("custom", "exec", "functions"),
        ("function", "wait", "functions"),
    ]
    assert [part.text for part in request.system] == ["You are", "here"]
    assert "instructions" not in round_trip(load("codex.json"))
    foreign = request._replace(dialect="chat", extra={})
    names = [tool["name"] for tool in cp.responses_write_request(foreign, TARGET).get("tools", ())]
    assert names == []  # the item lists them


CHOICES = [
    ("none", cp.ToolChoice("none")),
    ({"type": "function", "name": "f"}, cp.ToolChoice("required", ("f",))),
    ({"type": "custom", "name": "patch"}, cp.ToolChoice("required", ("patch",))),
    ({"type": "web_search_preview"}, cp.ToolChoice("required", ("web_search",))),
    (
        {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
        cp.ToolChoice("auto", ("f",)),
    ),
]


@pytest.mark.parametrize(("choice", "expected"), CHOICES)
def test_choices(choice: Any, expected: cp.ToolChoice) -> None:
    tools = [
        {"type": "function", "name": "f", "parameters": {}, "strict": False},
        {"type": "custom", "name": "patch"},
        {"type": "web_search_preview"},
    ]
    body = {"model": "m", "input": "x", "tools": tools, "tool_choice": choice}
    request = cp.responses_read_request(body)
    assert request.choice == expected
    foreign = request._replace(dialect="chat", messages=(), extra={})
    assert cp.responses_write_request(foreign, TARGET)["tool_choice"] == choice


def test_a_foreign_conversation() -> None:
    image = cp.Media("image", "base64", "AA==", "image/png")
    pdf = cp.Media("document", "base64", "AA==", "application/pdf")
    note = cp.Media("document", "text", "body", "text/plain", "a.txt")
    messages = (
        cp.Message(
            "user",
            (
                Part("text", "look"),
                Part("media", media=image),
                Part("media", media=pdf),
                Part("media", media=note),
            ),
        ),
        cp.Message(
            "assistant",
            (
                Part("thinking", "hm", proof="gA"),
                Part("text", "a"),
                Part("text", "b"),
                Part("call", "{}", "c1", "f"),
                Part("call", "raw", "c2", "patch", custom=True),
                Part("call", "{}", "c3", "f"),
                Part("hosted", "{}", "w1", "web_search"),
                Part("media", media=image),
            ),
        ),
        cp.Message(
            "user",
            (
                Part("result", id="c1", parts=(Part("text", "bad"), Part("media", media=image)), error=True),
                Part("result", id="c2", parts=(Part("text", "Error: x"),), error=True),
                Part("result", id="c2", parts=(Part("text", "again"),)),
                Part("result", id="lost", parts=(Part("text", "orphan"),)),
                Part("text", "go on"),
            ),
        ),
    )
    tools = (
        cp.Tool("f", "does", {"type": "object"}),
        cp.Tool("none"),
        cp.Tool("patch", kind="custom", grammar={"syntax": "lark", "definition": "G"}),
        cp.Tool("web_search", kind="hosted", extra={"claude": {"type": "web_search_20250305"}}),
        cp.Tool("web_fetch", kind="hosted", extra={"claude": {}}),
    )
    body = written(
        messages,
        system=(Part("text", "S"), Part("text", "T", extra={"claude": {}})),
        tools=tools,
        choice=cp.ToolChoice("none"),
        thinking=cp.Thinking("high"),
        format=cp.Format("json"),
        params={
            "max_tokens": 3,
            "stop": ["x"],
            "top_k": 3,
            "seed": 1,
            "n": 1,
            "parallel": False,
            "verbosity": "low",
            "user": "u" * 65,
        },
        stream=True,
        extra={"claude": {"private": 1}},
    )
    assert body == load("foreign.json")


FOREIGN = [
    pytest.param({"thinking": cp.Thinking("none")}, "reasoning", {"effort": "none"}, id="no thinking"),
    pytest.param({"thinking": cp.Thinking("auto")}, "reasoning", {"summary": "auto"}, id="auto"),
    pytest.param({"thinking": cp.Thinking(adaptive=True)}, "reasoning", {"summary": "auto"}, id="adaptive"),
    pytest.param(
        {"thinking": cp.Thinking("low", summary="omitted")}, "reasoning", {"effort": "low"}, id="omitted"
    ),
    pytest.param({}, "reasoning", None, id="no word on thinking"),
    pytest.param({"params": {"parallel": True}}, "parallel_tool_calls", None, id="parallel without tools"),
    pytest.param({"choice": cp.ToolChoice("auto")}, "tool_choice", None, id="choice without tools"),
    pytest.param({"params": {"store": True}}, "store", False, id="store"),
    pytest.param({"params": {"max_tokens": 100}}, "max_output_tokens", 100, id="limit"),
    pytest.param(
        {"format": cp.Format("schema", "", {"type": "object"}, True)},
        "text",
        {"format": {"type": "json_schema", "name": "response", "schema": {"type": "object"}, "strict": True}},
        id="schema",
    ),
]


@pytest.mark.parametrize(("fields", "key", "value"), FOREIGN)
def test_foreign_settings(fields: Any, key: str, value: Any) -> None:
    body = written([cp.Message("user", (Part("text", "x"),))], **fields)
    assert body.get(key) == value


@pytest.mark.parametrize(
    "media", [cp.Media("audio", "base64", "AA==", "audio/wav"), cp.Media("video", "url", "https://x")]
)
def test_media_without_a_form_is_refused(media: cp.Media) -> None:
    request = cp.Request("claude", "m", (cp.Message("user", (Part("media", media=media),)),))
    with pytest.raises(cp.ProxyError, match=media.kind) as caught:
        cp.fit_request(request, TARGET, "responses")
    assert (caught.value.kind, caught.value.param) == ("invalid_request", "messages")


# -- reading answers -----------------------------------------------------------------


def created(**fields: Any) -> Json:
    return {
        "type": "response.created",
        "response": {"id": "resp_1", "model": "m", "created_at": 5.0, "status": "in_progress", **fields},
    }


def completed(*output: Json, **fields: Any) -> Json:
    usage = {
        "input_tokens": 3,
        "output_tokens": 2,
        "input_tokens_details": {"cached_tokens": 1},
        "total_tokens": 5,
    }
    return {
        "type": "response.completed",
        "response": {
            "id": "resp_1",
            "model": "m",
            "status": "completed",
            "output": list(output),
            "usage": usage,
            **fields,
        },
    }


def added(at: int, **item: Any) -> Json:
    return {"type": "response.output_item.added", "output_index": at, "item": item}


def done(at: int, **item: Any) -> Json:
    return {"type": "response.output_item.done", "output_index": at, "item": item}


def event(name: str, at: int, **fields: Any) -> Json:
    return {"type": f"response.{name}", "output_index": at, "item_id": f"rotating_{at}", **fields}


def message(*content: Json, **fields: Any) -> Json:
    return {
        "type": "message",
        "id": "msg_1",
        "role": "assistant",
        "status": "completed",
        "content": list(content),
        **fields,
    }


def text(words: str, **fields: Any) -> Json:
    return {"type": "output_text", "text": words, "annotations": [], "logprobs": [], **fields}


CALL = {
    "type": "function_call",
    "id": "fc_1",
    "call_id": "c",
    "name": "f",
    "arguments": '{"a":1}',
    "status": "completed",
}
CUSTOM = {"type": "custom_tool_call", "id": "ctc_1", "call_id": "c", "name": "patch", "input": "x\ny"}
REASONING = {
    "type": "reasoning",
    "id": "rs_1",
    "summary": [{"type": "summary_text", "text": "a"}, {"type": "summary_text", "text": "b"}],
    "encrypted_content": "P",
}
SUMMARY = "reasoning_summary_text.delta"
WRAPPED = '{"tool_uses":[{"recipient_name":"functions.a","parameters":{"x":1}},{"recipient_name":"b","parameters":{}}]}'
CITED = {"type": "url_citation", "url": "https://x", "title": "t", "start_index": 0, "end_index": 2}
TOKENS = [{"token": "hi", "logprob": -0.1, "bytes": None, "top_logprobs": []}]
hi = Part("text", "hi")
STREAMS = [
    pytest.param(
        [
            added(0, **message()),
            event("content_part.added", 0),
            event("output_text.delta", 0, delta="h"),
            event("output_text.delta", 0, delta="i"),
            done(0, **message(text("hi"))),
        ],
        [hi],
        id="deltas",
    ),
    pytest.param([event("output_text.delta", 0, delta="hi")], [hi], id="deltas alone"),
    pytest.param([added(0, **message()), event("output_text.done", 0, text="hi")], [hi], id="done alone"),
    pytest.param([done(0, **message(text("hi")))], [hi], id="item alone"),
    pytest.param(
        [added(0, **message()), event("output_text.delta", 0, delta="h"), done(0, **message(text("hi")))],
        [hi],
        id="a delta is missing",
    ),
    pytest.param([added(0, **message()), event("output_text.delta", 0, delta="hi")], [hi], id="no item done"),
    pytest.param([done(0, **message(text(""), text("hi")))], [hi], id="empty text"),
    pytest.param(
        [done(0, **message(text("a"), text("b")))], [Part("text", "a"), Part("text", "b")], id="two texts"
    ),
    pytest.param(
        [
            added(0, **message()),
            event("output_text.delta", 0, delta="a"),
            event("content_part.added", 0),
            event("refusal.delta", 0, delta="no"),
            done(0, **message(text("a"), {"type": "refusal", "refusal": "no"})),
        ],
        [Part("text", "a"), Part("refusal", "no")],
        id="refusal",
    ),
    pytest.param(
        [
            added(0, **CALL),
            event("function_call_arguments.delta", 0, delta='{"a"'),
            event("function_call_arguments.delta", 0, delta=":1}"),
            done(0, **CALL),
        ],
        [Part("call", '{"a":1}', "c", "f")],
        id="call",
    ),
    pytest.param(
        [
            added(0, **{**CALL, "arguments": ""}),
            event("function_call_arguments.done", 0, arguments='{"a":1}'),
        ],
        [Part("call", '{"a":1}', "c", "f")],
        id="call without deltas",
    ),
    pytest.param(
        [
            added(0, **{**CALL, "name": ""}),
            event("function_call_arguments.delta", 0, delta='{"a":1}'),
            done(0, **CALL),
        ],
        [Part("call", '{"a":1}', "c", "f")],
        id="name at the end",
    ),
    pytest.param(
        [done(0, **{**CALL, "arguments": "", "namespace": "ns"})],
        [Part("call", "{}", "c", "f", namespace="ns")],
        id="no arguments",
    ),
    pytest.param(
        [
            added(0, **CUSTOM),
            event("custom_tool_call_input.delta", 0, delta="x\n"),
            event("custom_tool_call_input.delta", 0, delta="y"),
            done(0, **CUSTOM),
        ],
        [Part("call", "x\ny", "c", "patch", custom=True)],
        id="custom call",
    ),
    pytest.param(
        [
            added(0, type="reasoning", id="rs_1", summary=[], encrypted_content="early"),
            event(SUMMARY, 0, delta="a", summary_index=0),
            event(SUMMARY, 0, delta="b", summary_index=1),
            done(0, **REASONING),
        ],
        [Part("thinking", "a\n\nb", proof="P")],
        id="reasoning",
    ),
    pytest.param(
        [done(0, **{**REASONING, "summary": []})], [Part("thinking", proof="P")], id="reasoning without text"
    ),
    pytest.param([done(0, type="reasoning", id="rs", summary=[])], [], id="reasoning without anything"),
    pytest.param(
        [
            event("reasoning_text.delta", 0, delta="raw", content_index=0),
            done(
                0, type="reasoning", id="rs", summary=[], content=[{"type": "reasoning_text", "text": "raw"}]
            ),
        ],
        [Part("thinking", "raw")],
        id="reasoning text",
    ),
    pytest.param(
        [
            added(0, **{**CALL, "name": "parallel", "arguments": ""}),
            event("function_call_arguments.delta", 0, delta=WRAPPED),
            done(0, **{**CALL, "name": "parallel", "arguments": WRAPPED}),
        ],
        [Part("call", '{"x":1}', "c_0", "a"), Part("call", "{}", "c_1", "b")],
        id="wrapper",
    ),
    pytest.param(
        [done(0, **{**CALL, "name": "parallel", "arguments": "[]"})],
        [Part("call", "[]", "c", "parallel")],
        id="no wrapper",
    ),
    pytest.param(
        [
            done(
                0,
                type="web_search_call",
                id="ws_1",
                status="completed",
                action={"type": "search", "query": "q"},
            )
        ],
        [Part("hosted", '{"query":"q"}', "ws_1", "web_search")],
        id="web search",
    ),
    pytest.param(
        [done(0, type="code_interpreter_call", id="ci_1", code="1+1")],
        [Part("hosted", '{"code":"1+1"}', "ci_1", "code_execution")],
        id="code",
    ),
    pytest.param(
        [done(0, type="compaction", id="cmp", encrypted_content="x")], [Part("opaque")], id="compaction"
    ),
    pytest.param(
        [done(0, type="image_generation_call", id="ig_1", result="AA==", output_format="webp")],
        [Part("media", media=cp.Media("image", "base64", "AA==", "image/webp"))],
        id="image",
    ),
    pytest.param(
        [
            added(0, **CALL),
            added(1, **{**CALL, "call_id": "d"}),
            event("function_call_arguments.delta", 1, delta='{"b":2}'),
            event("function_call_arguments.delta", 0, delta='{"a":1}'),
            done(1, **{**CALL, "call_id": "d", "arguments": '{"b":2}'}),
            done(0, **CALL),
        ],
        [Part("call", '{"a":1}', "c", "f"), Part("call", '{"b":2}', "d", "f")],
        id="interleaved",
    ),
    pytest.param(
        [
            {"type": "codex.rate_limits"},
            {"type": "keepalive", "sequence_number": 3},
            event("unheard.of", 0),
            done(0, **message(text("hi"))),
        ],
        [hi],
        id="noise",
    ),
]


@pytest.mark.parametrize(("payloads", "expected"), STREAMS)
def test_streams(payloads: list[Json], expected: list[Part]) -> None:
    events = list(cp.responses_read_stream([created(), *payloads, completed()], ASKED))
    assert events[0] == cp.MessageStart("resp_1", "m", 5)
    response = cp.collect(events)
    assert parts_of(response) == expected
    calls = any(part.kind == "call" for part in expected)
    assert response.choices[0].end.finish == ("tool_calls" if calls else "stop")
    assert response.usage == cp.Usage(3, 1, 0, 2, 0)
    check_invariants(events)
    again = validate(cp.responses_write_stream(iter(events), ASKED), own_ids=False)
    assert parts_of(cp.collect(cp.responses_read_response(again, ASKED))) == expected


def check_invariants(events: Iterable[cp.Event]) -> None:
    """Parts are numbered 0, 1, 2, ... and never overlap."""
    number, is_open = 0, False
    for one in events:
        if isinstance(one, cp.PartStart):
            assert (one.at, is_open) == (number, False)
            is_open = True
        elif isinstance(one, (cp.PartDelta, cp.PartEnd)):
            assert (one.at, is_open) == (number, True)
            assert not isinstance(one, cp.PartDelta) or one.value
            if isinstance(one, cp.PartEnd):
                number, is_open = number + 1, False


def test_text_streams_while_it_comes() -> None:
    payloads = iter([created(), added(0, **message()), event("output_text.delta", 0, delta="a"), completed()])
    events = cp.responses_read_stream(payloads, ASKED)
    assert [type(next(events)) for _ in range(3)] == [cp.MessageStart, cp.PartStart, cp.PartDelta]
    assert next(payloads)["type"] == "response.completed"


def test_items_that_only_the_end_tells_of() -> None:
    response = read(created(), done(1, **CALL), completed(message(text("hi")), CALL))
    assert parts_of(response) == [Part("call", '{"a":1}', "c", "f"), hi]
    assert parts_of(read(completed(message(text("hi"))))) == [hi]
    assert parts_of(read(event("output_text.delta", 0, delta="h"), completed(message(text("hi"))))) == [hi]


def test_citations_and_logprobs_come_once() -> None:
    whole = message(text("hi", annotations=[CITED], logprobs=TOKENS))
    for payloads in (
        [
            event("output_text.delta", 0, delta="hi", logprobs=TOKENS),
            event("output_text.annotation.added", 0, annotation=CITED),
        ],
        [],
    ):
        response = read(created(), added(0, **message()), *payloads, done(0, **whole), completed())
        (part,) = response.choices[0].parts
        assert part.citations == (cp.Citation("https://x", "t", 0, 2, extra={"responses": CITED}),)
        assert response.choices[0].logprobs == tuple(TOKENS)


def test_phase_and_ids_stay() -> None:
    item = message(text("hi"), phase="commentary")
    response = read(
        created(),
        added(0, **{**item, "content": []}),
        event("output_text.delta", 0, delta="hi"),
        done(0, **item),
        completed(),
    )
    output = cp.responses_write_response(response, ASKED)["output"]
    assert output == [item]


ENDS = [
    pytest.param(
        {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}, "length", id="length"
    ),
    pytest.param(
        {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}},
        "content_filter",
        id="filter",
    ),
    pytest.param({"status": "incomplete"}, "length", id="no reason"),
]


@pytest.mark.parametrize(("fields", "finish"), ENDS)
def test_incomplete_ends(fields: Json, finish: str) -> None:
    end = {**completed(CALL, **fields), "type": "response.incomplete"}
    response = read(created(), end)
    assert response.choices[0].end.finish == finish


FAILURES = [
    pytest.param(
        [{"type": "error", "code": "rate_limit_exceeded", "message": "slow", "param": None}],
        "rate_limited",
        "slow",
        id="flat",
    ),
    pytest.param(
        [
            {
                "type": "error",
                "error": {"type": "invalid_request_error", "code": None, "message": "bad", "param": "input"},
            }
        ],
        "invalid_request",
        "bad",
        id="nested",
    ),
    pytest.param(
        [{"error": {"message": "no type", "code": "server_error"}}], "upstream_error", "no type", id="untyped"
    ),
    pytest.param(
        [
            {
                "type": "response.failed",
                "response": {
                    "status": "failed",
                    "error": {"code": "context_length_exceeded", "message": "long"},
                },
            }
        ],
        "context_too_long",
        "long",
        id="failed",
    ),
    pytest.param(
        [
            {
                "type": "response.failed",
                "response": {
                    "status": "failed",
                    "error": {"code": "usage_limit_reached", "message": "m", "resets_in_seconds": 7},
                },
            }
        ],
        "rate_limited",
        "m",
        id="limit",
    ),
    pytest.param(
        [{"type": "response.cancelled", "response": {"status": "cancelled", "error": None}}],
        "upstream_failed",
        "cancelled",
        id="cancelled",
    ),
    pytest.param([completed(status="failed")], "upstream_failed", "failed", id="failed without an error"),
    pytest.param([], "upstream_failed", "closed the stream", id="nothing"),
    pytest.param(
        [created(), added(0, **message()), event("output_text.delta", 0, delta="h")],
        "upstream_failed",
        "closed the stream",
        id="cut",
    ),
]


@pytest.mark.parametrize(("payloads", "kind", "words"), FAILURES)
def test_failures(payloads: list[Json], kind: str, words: str) -> None:
    with pytest.raises(cp.ProxyError, match=words) as caught:
        read(*payloads)
    assert caught.value.kind == kind


def test_an_error_is_the_first_thing_said() -> None:
    events = cp.responses_read_stream([{"type": "error", "message": "no"}], ASKED)
    with pytest.raises(cp.ProxyError):
        next(events)


def test_a_full_answer_with_an_error() -> None:
    with pytest.raises(cp.ProxyError, match="no luck"):
        cp.collect(cp.responses_read_response({"error": {"message": "no luck"}, "output": []}, ASKED))


# -- writing answers -----------------------------------------------------------------


def said(*parts: Part, end: cp.MessageEnd | None = None, usage: cp.Usage | None = None) -> Iterator[cp.Event]:
    yield cp.MessageStart("chatcmpl-1", "m", 9)
    for at, part in enumerate(parts):
        yield from cp.part_events(at, part)
    yield end or cp.MessageEnd("stop")
    if usage:
        yield usage


ANSWER = (
    Part("thinking", "hm", proof="SIG"),
    Part("text", "hé", citations=(cp.Citation("https://x", "t", 0, 2), cp.Citation(text="nowhere"))),
    Part("refusal", "no"),
    Part("hosted", '{"query":"q"}', "srv", "web_search"),
    Part("hosted_result", id="srv"),
    Part("call", '{"a":1}', "c1", "f", namespace="ns"),
    Part("call", "", "c2", "g"),
    Part("call", "*** Begin", "c3", "patch", custom=True),
    Part("thinking", proof="SEAL"),
    Part("media", media=cp.Media("image", "base64", "AA==", "image/png")),
    Part("opaque", extra={"claude": {"type": "x"}}),
    Part("text", "bye"),
)


def test_the_whole_choreography() -> None:
    request = cp.responses_read_request(load("turns.json"))._replace(id="f00d", created=7)
    usage = cp.Usage(10, 4, 1, 6, 2)
    stream = b"".join(
        cp.responses_write_stream(said(*ANSWER, end=cp.MessageEnd("tool_calls"), usage=usage), request)
    )
    response = validate(stream)
    assert stream == (DATA / "answer.sse").read_bytes()
    assert response["usage"]["input_tokens_details"] == {"cached_tokens": 4, "cache_write_tokens": 1}
    assert (response["id"], response["created_at"], response["model"]) == ("resp_f00d", 9, "m")
    for key in (
        "instructions",
        "temperature",
        "tools",
        "tool_choice",
        "text",
        "reasoning",
        "parallel_tool_calls",
        "store",
    ):
        assert response[key] == load("turns.json")[key]
    collected = cp.collect(said(*ANSWER, end=cp.MessageEnd("tool_calls"), usage=usage))
    assert cp.responses_write_response(collected, request) == response


@pytest.mark.parametrize("piece", PIECES)
def test_what_is_written_can_be_read(piece: int) -> None:
    stream = (DATA / "answer.sse").read_bytes()
    response = cp.collect(cp.responses_read_stream(cp.sse_read(cut(stream, piece)), ASKED))
    kinds = [part.kind for part in response.choices[0].parts]
    assert kinds == [
        "thinking",
        "text",
        "refusal",
        "hosted",
        "call",
        "call",
        "call",
        "thinking",
        "media",
        "text",
    ]
    assert [part.proof for part in response.choices[0].parts if part.proof] == ["SIG", "SEAL"]
    assert response.choices[0].parts[6].text == "*** Begin"


FINISHES = [
    ("stop", "completed", None),
    ("tool_calls", "completed", None),
    ("length", "incomplete", {"reason": "max_output_tokens"}),
    ("content_filter", "incomplete", {"reason": "content_filter"}),
    ("error", "completed", None),
]


@pytest.mark.parametrize(("finish", "status", "details"), FINISHES)
def test_finishes(finish: str, status: str, details: Any) -> None:
    response = validate(cp.responses_write_stream(said(hi, end=cp.MessageEnd(finish)), ASKED))
    assert (response["status"], response["incomplete_details"]) == (status, details)
    assert response["output"][0]["status"] == ("incomplete" if details else "completed")
    assert response["usage"]["total_tokens"] == 0


CALLED = Part("call", '{"a":"lo', "c1", "f")
CUT = [  # parts, finish -> statuses of their items
    pytest.param([CALLED], "length", ["incomplete"], id="function"),
    pytest.param([CALLED._replace(text="")], "length", ["incomplete"], id="before any argument"),
    pytest.param([CALLED._replace(custom=True)], "length", ["incomplete"], id="custom"),
    pytest.param([CALLED], "content_filter", ["incomplete"], id="filter"),
    pytest.param([CALLED], "error", ["incomplete"], id="error"),
    pytest.param([hi, CALLED], "length", ["completed", "incomplete"], id="after text"),
    pytest.param(
        [CALLED, CALLED._replace(id="c2")], "length", ["completed", "incomplete"], id="the last one"
    ),
    pytest.param([CALLED, hi], "length", ["completed", "incomplete"], id="text after it"),
    pytest.param([CALLED], "tool_calls", ["completed"], id="whole"),
    pytest.param([CALLED], "stop", ["completed"], id="stopped"),
]


@pytest.mark.parametrize(("parts", "finish", "statuses"), CUT)
def test_calls_that_were_cut_off(parts: list[Part], finish: str, statuses: list[str]) -> None:
    stream = b"".join(cp.responses_write_stream(said(*parts, end=cp.MessageEnd(finish)), ASKED))
    ended = [e["item"] for e in cp.sse_read([stream]) if e["type"] == "response.output_item.done"]
    whole = cp.responses_write_response(cp.collect(said(*parts, end=cp.MessageEnd(finish))), ASKED)
    assert [item["status"] for item in ended] == statuses
    assert [item["status"] for item in whole["output"]] == statuses
    assert validate([stream])["output"] == ended


def test_an_answer_that_failed_with_nothing_said() -> None:
    response = validate(cp.responses_write_stream(said(end=cp.MessageEnd("error", raw="MALFORMED")), ASKED))
    assert response["status"] == "failed"
    assert "MALFORMED" in response["error"]["message"]


def broken(*events: cp.Event) -> Iterator[cp.Event]:
    yield from events
    raise cp.ProxyError("overloaded", "busy", param="x")


def test_an_error_after_the_first_frame_ends_the_stream() -> None:
    start = cp.MessageStart("", "")
    stream = b"".join(
        cp.responses_write_stream(
            broken(start, cp.PartStart(0, Part("text")), cp.PartDelta(0, "text", "h")), ASKED
        )
    )
    response = validate(stream)
    assert frames(stream)[-2] == {
        "type": "error",
        "sequence_number": 5,
        "code": "overloaded",
        "message": "busy",
        "param": "x",
    }
    assert response["error"] == {"code": "overloaded", "message": "busy"}
    assert (response["id"], response["model"], response["created_at"]) == ("resp_f00d", "asked", 7)


def test_an_error_before_the_first_frame_is_the_servers() -> None:
    with pytest.raises(cp.ProxyError, match="busy"):
        list(cp.responses_write_stream(broken(), ASKED))


def test_events_that_just_end_are_no_answer() -> None:
    events: list[cp.Event] = [cp.MessageStart("resp_x", "m")]
    assert validate(cp.responses_write_stream(events, ASKED))["status"] == "failed"


def test_nothing_is_held_back() -> None:
    pulled: list[cp.Event] = []

    def watch() -> Iterator[cp.Event]:
        for one in said(Part("thinking", "a"), hi):
            pulled.append(one)
            yield one

    stream = cp.responses_write_stream(watch(), ASKED)
    next(stream)
    assert len(pulled) == 1
    for frame in stream:
        if b'"delta":"hi"' in frame:
            break
    assert pulled[-1] == cp.PartDelta(1, "text", "hi")


def test_logprobs_are_written() -> None:
    events = [*said(hi)]
    events.insert(3, cp.PartDelta(0, "logprobs", TOKENS))
    response = validate(cp.responses_write_stream(events, ASKED))
    assert response["output"][0]["content"][0]["logprobs"] == TOKENS
    assert cp.responses_write_response(cp.collect(events), ASKED) == response


words = st.text(max_size=12)
texts = st.tuples(st.sampled_from(["text", "refusal"]), words.filter(bool)).map(lambda pair: Part(*pair))
thoughts = st.builds(
    lambda text, proof: Part("thinking", text, proof=proof), words, st.text("AB", min_size=1)
)
calls = st.builds(
    lambda n, text, custom: Part(
        "call", text if custom else json.dumps({"x": text}), f"c{n}", "f", custom=custom
    ),
    st.integers(0, 99),
    words,
    st.booleans(),
)


@settings(max_examples=40)
@given(st.lists(texts | thoughts | calls, max_size=5), st.sampled_from([5, 64]))
def test_any_answer_is_valid_and_comes_back(parts: list[Part], piece: int) -> None:
    stream = b"".join(cp.responses_write_stream(said(*parts), ASKED))
    validate(stream)
    response = cp.collect(cp.responses_read_stream(cp.sse_read(cut(stream, piece)), ASKED))
    assert parts_of(response) == parts


# -- errors --------------------------------------------------------------------------

ERRORS = [
    (
        400,
        {"error": {"message": "m", "type": "invalid_request_error", "param": "input", "code": None}},
        "invalid_request",
    ),
    (400, {"detail": "Unsupported parameter: temperature"}, "invalid_request"),
    (
        401,
        {"error": {"message": "m", "type": "invalid_request_error", "code": "invalid_api_key"}},
        "unauthorized",
    ),
    (
        429,
        {"error": {"type": "usage_limit_reached", "message": "m", "resets_in_seconds": 12}},
        "rate_limited",
    ),
    (429, {"error": {"type": "insufficient_quota", "message": "m", "code": "insufficient_quota"}}, "billing"),
    (503, {"error": {"code": "server_is_overloaded", "message": "m"}}, "overloaded"),
    (500, {"error": "text"}, "upstream_error"),
]


@pytest.mark.parametrize(("status", "body", "kind"), ERRORS)
def test_http_errors(status: int, body: Json, kind: str) -> None:
    error = cp.responses_read_error(status, json.dumps(body).encode())
    assert (error.kind, error.status) == (kind, status)
    assert error.retry_after == (12 if "usage" in str(body) else None)


@pytest.mark.parametrize("body", [b"", b"<html>Bad gateway</html>", b"\xff"])
def test_http_errors_that_are_not_json(body: bytes) -> None:
    error = cp.responses_read_error(502, body)
    assert (error.kind, error.status) == ("upstream_failed", 502)
    assert str(error)


@pytest.mark.parametrize("kind", cp.KINDS)
def test_written_errors(kind: str) -> None:
    body = cp.responses_write_error(cp.ProxyError(kind, "m", param="p"))
    assert body["error"] == {
        "message": "m",
        "type": cp.KINDS[kind].openai,
        "param": "p",
        "code": cp.KINDS[kind].code or None,
    }


# -- recordings ----------------------------------------------------------------------


def recordings(folder: str) -> list[Any]:
    found = sorted((RECORDINGS / folder).glob("*.json"))
    return [pytest.param(path, id=path.stem) for path in found if path.stem != "index"]


@pytest.mark.shared
@pytest.mark.parametrize("path", recordings("requests/dev/responses"))
def test_recorded_bodies_come_back(path: Path) -> None:
    body = json.loads(path.read_text(encoding="utf-8"))["body"]
    assert round_trip(body) == body


@pytest.mark.shared
@pytest.mark.parametrize("path", recordings("dev/responses"))
def test_recorded_answers_come_back(path: Path) -> None:
    answer = json.loads(path.read_text(encoding="utf-8"))["response"]
    if answer["status"] != 200:
        assert str(cp.responses_read_error(answer["status"], json.dumps(answer["body"]).encode()))
        return
    if "sse" in answer:
        stream = answer["sse"].encode()
        readings = [cp.collect(cp.responses_read_stream(cp.sse_read(cut(stream, n)), ASKED)) for n in PIECES]
        events = list(cp.responses_read_stream(cp.sse_read([stream]), ASKED))
    else:
        events = list(cp.responses_read_response(answer["body"], ASKED))
        readings = [cp.collect(events)]
    first, *others = readings
    assert all(other == first for other in others)
    check_invariants(events)
    again = validate(cp.responses_write_stream(events, ASKED), own_ids=False)
    check_response(again)
    full = cp.responses_write_response(first, ASKED)
    for body in (again, json.loads(json.dumps(full))):
        response = cp.collect(cp.responses_read_response(body, ASKED))
        assert (response.choices, response.usage) == (first.choices, first.usage)
