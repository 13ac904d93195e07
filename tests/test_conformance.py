"""The conformance cases of spec/dialects.md part 6 that no room's own tests hold; read(write(x)) == x."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cliproxy as cp
from cliproxy import Media, Message, Model, Part, Request, Target
from support import validate_chat, validate_claude, validate_responses
from support.dialogue import NAMES

Json = dict[str, Any]
PAIRS = [pytest.param(c, u, id=f"{c} on {u}") for c in NAMES for u in NAMES]
PROVIDERS = {"claude": "claude", "chat": "openai-chat", "responses": "openai", "gemini": "gemini"}


def target(dialect: str, model: str = "m", *quirks: str) -> Target:
    return Target(PROVIDERS[dialect], cp.model_row(model), frozenset(quirks))


def sent(client: str, upstream: str, body: Json, model: str = "m", *quirks: str) -> Json:
    """Return what an upstream gets of a client's body."""
    request = cp.DIALECTS[client].read_request({"model": model, **body})._replace(id="r", created=1)
    aim = target(upstream, model, *quirks)
    return cp.DIALECTS[upstream].write_request(cp.fit_request(request, aim, upstream).request, aim)


EMPTY: dict[str, Json] = {  # the least that a body must hold
    "claude": {"max_tokens": 9, "messages": []},
    "chat": {"messages": []},
    "responses": {"input": "q"},
    "gemini": {"contents": []},
}


def told(upstream: str, client: str, payloads: list[Json], **body: Any) -> bytes:
    """Return what a client gets of an upstream's stream."""
    request = cp.DIALECTS[client].read_request({"model": "m", "stream": True, **EMPTY[client], **body})
    request = request._replace(id="r", created=1)
    events = cp.DIALECTS[upstream].read_stream(iter(payloads), request)
    fitted = cp.fit_request(request, target(upstream), upstream)
    events = cp.fit_events(events, request, fitted, target(upstream))
    return b"".join(cp.DIALECTS[client].write_stream(events, request))


def payloads_of(data: bytes) -> list[Json]:
    return list(cp.sse_read([data]))


# --- requests


def test_case_1_system_developer_and_merging() -> None:
    texts = [{"type": "text", "text": ""}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "system", "content": "S"},
        {"role": "developer", "content": "D"},
        {"role": "user", "content": "a"},
        {"role": "user", "content": texts},
    ]
    body = sent("chat", "claude", {"messages": messages})
    assert body["system"] == [{"type": "text", "text": "S"}, {"type": "text", "text": "D"}]
    content = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert body["messages"] == [{"role": "user", "content": content}]
    assert body["max_tokens"] >= 4096


def chat_call(call_id: str, name: str, arguments: str) -> Json:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def test_case_2_parallel_tool_results() -> None:
    calls = [chat_call("c1", "f", ""), chat_call("c2", "g", '{"x":1}')]
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c2", "content": "two"},
        {"role": "tool", "tool_call_id": "c1", "content": "one"},
        {"role": "user", "content": "go"},
    ]
    _, asked, answered = sent("chat", "claude", {"messages": messages})["messages"]
    assert asked["content"] == [
        {"type": "tool_use", "id": "c1", "name": "f", "input": {}},
        {"type": "tool_use", "id": "c2", "name": "g", "input": {"x": 1}},
    ]
    *results, last = answered["content"]
    assert answered["role"] == "user"
    assert {block["type"] for block in results} == {"tool_result"}
    assert {block["tool_use_id"] for block in results} == {"c1", "c2"}
    assert last == {"type": "text", "text": "go"}


def test_case_4_calls_of_one_name_without_ids() -> None:
    calls = [{"functionCall": {"name": "f", "args": {"n": n}}} for n in (1, 2)]
    responses = [
        {"functionResponse": {"name": "f", "response": given}} for given in ({"output": "A"}, {"error": "B"})
    ]
    contents = [
        {"role": "user", "parts": [{"text": "q"}]},
        {"role": "model", "parts": calls},
        {"role": "user", "parts": responses},
    ]
    body = sent("gemini", "chat", {"contents": contents})
    _, asked, first, second = body["messages"]
    ids = [call["id"] for call in asked["tool_calls"]]
    assert len(set(ids)) == 2
    assert [call["function"]["arguments"] for call in asked["tool_calls"]] == ['{"n":1}', '{"n":2}']
    assert [(m["tool_call_id"], m["content"]) for m in (first, second)] == [
        (ids[0], "A"),
        (ids[1], "Error: B"),
    ]
    assert sent("gemini", "chat", {"contents": contents}) == body


def test_case_5_names_and_order_of_results() -> None:
    uses = [{"type": "tool_use", "id": "toolu_1", "name": "get_x", "input": {}},
            {"type": "tool_use", "id": "toolu_2", "name": "b", "input": {}}]  # fmt: skip
    results = [{"type": "tool_result", "tool_use_id": "toolu_2", "content": "A"},
               {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": '{"k":1}'}]}]  # fmt: skip
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": uses},
        {"role": "user", "content": results},
    ]
    body = sent("claude", "gemini", {"messages": messages, "max_tokens": 9}, "gemini-3-pro-preview")
    _, asked, answered = body["contents"]
    found = [part["functionResponse"] for part in answered["parts"]]
    assert [(part["name"], part["response"]) for part in found] == [
        ("get_x", {"k": 1}),
        ("b", {"output": "A"}),
    ]
    signatures = [part.get("thoughtSignature") for part in asked["parts"]]
    assert signatures == ["skip_thought_signature_validator", None]


SCHEMA = {
    "type": "object", "$schema": "..", "additionalProperties": False, "required": ["const", "zz"],
    "properties": {
        "const": {"const": 3}, "default": {"type": ["string", "null"]}, "n": {"$ref": "#/$defs/N"},
        "e": {"enum": [1, 2], "type": "integer"},
    },
    "$defs": {"N": {"type": "object", "properties": {"n": {"$ref": "#/$defs/N"}}}},
}  # fmt: skip


def test_case_15_schema_cleaning() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}]
    body = {"messages": [{"role": "user", "content": "q"}], "tools": tools}
    written = sent("chat", "gemini", body, "gemini-2.5-pro", "openapi-schema")
    schema = written["tools"][0]["functionDeclarations"][0]["parameters"]
    properties = schema["properties"]
    assert list(properties) == ["const", "default", "n", "e"]
    assert properties["default"] == {"type": "STRING", "nullable": True}
    assert properties["const"]["type"] == properties["e"]["type"] == "INTEGER"
    assert "3" in properties["const"]["description"]
    assert not {"const", "enum"} & (properties["const"].keys() | properties["e"].keys())
    assert schema["required"] == ["const"]
    wire = json.dumps(schema)
    assert not any(word in wire for word in ('"$ref"', '"$defs"', '"$schema"', "additionalProperties"))


FUNCTIONS = [
    {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
]
NO_CALLS = [
    ("claude", ["tool_choice"], {"type": "none"}),
    ("gemini", ["toolConfig", "functionCallingConfig", "mode"], "NONE"),
    ("responses", ["tool_choice"], "none"),
]


@pytest.mark.parametrize(("upstream", "path", "choice"), NO_CALLS)
def test_case_20_no_calls_but_the_tools_stay(upstream: str, path: list[str], choice: Any) -> None:
    messages = [{"role": "user", "content": "q"}]
    body = sent("chat", upstream, {"messages": messages, "tools": FUNCTIONS, "tool_choice": "none"})
    assert body["tools"]
    for step in path:
        body = body[step]
    assert body == choice


@pytest.mark.parametrize("upstream", ["claude", "chat", "gemini"])
def test_case_20_history_that_only_its_service_has(upstream: str) -> None:
    with pytest.raises(cp.ProxyError) as caught:
        sent("responses", upstream, {"input": "q", "previous_response_id": "resp_1"})
    assert (caught.value.kind, caught.value.param) == ("invalid_request", "previous_response_id")


# --- answers


def claude_stream(*blocks: tuple[Json, list[Json]], reason: str = "end_turn") -> list[Json]:
    head = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [],
        "usage": {"input_tokens": 3},
    }
    events: list[Json] = [{"type": "message_start", "message": head}]
    for index, (start, deltas) in enumerate(blocks):
        events.append({"type": "content_block_start", "index": index, "content_block": start})
        events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": index})
    delta = {"stop_reason": reason, "stop_sequence": None}
    return [
        *events,
        {"type": "message_delta", "delta": delta, "usage": {"output_tokens": 5}},
        {"type": "message_stop"},
    ]


THOUGHT: tuple[Json, list[Json]] = (
    {"type": "thinking", "thinking": "", "signature": ""},
    [{"type": "thinking_delta", "thinking": "abc"}, {"type": "signature_delta", "signature": "SIG"}],
)
HI: tuple[Json, list[Json]] = ({"type": "text", "text": ""}, [{"type": "text_delta", "text": "hi"}])
CASE_7 = """created in_progress output_item.added reasoning_summary_part.added reasoning_summary_text.delta
reasoning_summary_text.done reasoning_summary_part.done output_item.done output_item.added content_part.added
output_text.delta output_text.done content_part.done output_item.done completed""".split()


def test_case_7_thinking_to_responses_and_back() -> None:
    data = told("claude", "responses", claude_stream(THOUGHT, HI))
    response = validate_responses.validate(data)
    assert [payload["type"][len("response.") :] for payload in payloads_of(data)] == CASE_7
    reasoning, message = response["output"]
    assert reasoning["summary"] == [{"type": "summary_text", "text": "abc"}]
    history = {
        "input": [{"role": "user", "content": "q"}, reasoning, message, {"role": "user", "content": "go"}]
    }
    block = sent("responses", "claude", history)["messages"][1]["content"][0]
    assert block == {"type": "thinking", "thinking": "abc", "signature": "SIG"}
    for upstream in ("chat", "gemini"):
        assert reasoning["encrypted_content"] not in json.dumps(sent("responses", upstream, history))


def chunk(delta: Json | None = None, finish: str | None = None, **more: Any) -> Json:
    row = {"index": 0, "delta": delta or {}, "finish_reason": finish}
    return {
        "id": "c",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [row],
        **more,
    }


def test_case_9_late_usage() -> None:
    usage = {"prompt_tokens": 115, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 100}}
    late = {**chunk(usage=usage), "choices": []}
    data = told("chat", "claude", [chunk({"content": "x"}), chunk(finish="stop"), late])
    events = validate_claude.validate(data)
    (delta,) = (event for event in events if event["type"] == "message_delta")
    assert delta["delta"] == {"stop_reason": "end_turn", "stop_sequence": None, "stop_details": None}
    assert (
        delta["usage"].items()
        >= {"input_tokens": 15, "cache_read_input_tokens": 100, "output_tokens": 7}.items()
    )


def gemini_chunk(*parts: Json, **more: Any) -> Json:
    return {"candidates": [{"index": 0, "content": {"role": "model", "parts": list(parts)}, **more}]}


def test_case_11_signed_text_is_no_thinking() -> None:
    signed = {"text": "", "thoughtSignature": "U0lH"}
    stream = [gemini_chunk({"text": "ans"}, signed, finishReason="STOP")]
    message = validate_chat.validate_stream(told("gemini", "chat", stream), usage=False)["messages"][0]
    assert message["content"] == "ans"
    assert "reasoning_content" not in message
    blocks = [
        e["content_block"]["type"]
        for e in payloads_of(told("gemini", "claude", stream))
        if "content_block" in e
    ]
    assert blocks == ["text"]


def test_case_12_a_blocked_prompt() -> None:
    usage = {"promptTokenCount": 4, "totalTokenCount": 4}
    stream = [{"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": usage}]
    options = {"stream_options": {"include_usage": True}}
    chat = validate_chat.validate_stream(told("gemini", "chat", stream, **options), usage=True)
    assert (chat["finishes"], chat["usage"]["prompt_tokens"]) == (["content_filter"], 4)
    events = validate_claude.validate(told("gemini", "claude", stream))
    assert [event["type"] for event in events] == ["message_start", "message_delta", "message_stop"]
    assert events[1]["delta"]["stop_reason"] == "refusal"
    response = validate_responses.validate(told("gemini", "responses", stream))
    assert response["incomplete_details"] == {"reason": "content_filter"}


CUT = [
    ("claude", claude_stream(HI, reason="max_tokens")),
    ("chat", [chunk({"content": "hi"}), chunk(finish="length")]),
]


@pytest.mark.parametrize(("upstream", "stream"), CUT)
def test_case_13_length_to_responses(upstream: str, stream: list[Json]) -> None:
    data = told(upstream, "responses", stream)
    response = validate_responses.validate(data)
    assert (response["status"], response["incomplete_details"]) == (
        "incomplete",
        {"reason": "max_output_tokens"},
    )
    assert response["output"][0]["status"] == "incomplete"
    assert b"response.completed" not in data


def test_case_18_a_client_that_does_not_stream_on_an_upstream_that_only_does() -> None:
    body = {"max_tokens": 50, "temperature": 0, "stop": ["X"], "user": "u",
            "messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "q"}]}  # fmt: skip
    errand = cp.Errand(cp.DIALECTS["chat"], "generate", b"{}")
    candidate = cp.Candidate(cp.Account("a", cp.PROVIDERS["codex"], {}), "gpt-5.5")
    written = cp.prepare_codex({**sent("chat", "responses", body), "stream": True}, errand, candidate)
    assert written["stream"] is True
    assert written["store"] is False
    assert isinstance(written["instructions"], str)
    assert isinstance(written["input"], list)
    assert "reasoning.encrypted_content" in written["include"]
    assert not {"max_output_tokens", "temperature", "stop", "user", "safety_identifier"} & written.keys()
    item = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    usage = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
    stream: list[Json] = [
        {"type": "response.created", "response": {"id": "resp_1"}},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {
            "type": "response.completed",
            "response": {"id": "resp_1", "status": "completed", "output": [], "usage": usage},
        },
    ]
    request = cp.chat_read_request({"model": "m", **body})._replace(id="r", created=1)
    answer = cp.chat_write_response(cp.collect(cp.responses_read_stream(stream, request)), request)
    checked = validate_chat.validate_response(answer)
    assert (checked["finishes"], checked["messages"][0]["tool_calls"][0]["id"]) == (["tool_calls"], "c")
    assert (checked["usage"]["prompt_tokens"], checked["usage"]["completion_tokens"]) == (3, 4)


# --- read(write(x)) == x, for whatever both sides can hold

WORDS = st.text(min_size=1, max_size=12).filter(
    lambda text: text.strip() == text and not text.startswith("Error: ")
)
VALUES = st.one_of(st.none(), st.booleans(), st.integers(-9, 9), WORDS)
IMAGES = st.sampled_from(["AA==", "iVBORw=="]).map(
    lambda data: Part("media", media=Media("image", "base64", data, "image/png"))
)
TEXTS = WORDS.map(lambda text: Part("text", text))


@st.composite
def conversations(draw: st.DrawFn) -> tuple[Message, ...]:
    """Make turns that every dialect has: texts and images, then answers with calls, then their results."""
    messages: list[Message] = []
    for turn in range(draw(st.integers(1, 3))):
        messages.append(Message("user", (draw(TEXTS), *draw(st.lists(st.one_of(TEXTS, IMAGES), max_size=2)))))
        inputs = draw(st.lists(st.dictionaries(WORDS, VALUES, max_size=2), max_size=2))
        calls = [
            Part("call", cp.dumps_text(given), f"call_{turn}_{n}", f"tool_{n}")
            for n, given in enumerate(inputs)
        ]
        messages.append(Message("assistant", (draw(TEXTS), *calls)))
        results = tuple(
            Part("result", id=call.id, parts=(draw(TEXTS),), error=draw(st.booleans())) for call in calls
        )
        messages += [Message("tool", results)] if results else []
    return (*messages, Message("user", (draw(TEXTS),)))


def plain(messages: tuple[Message, ...]) -> list[Any]:
    """Return what there is to say of a conversation in every dialect: sides, texts, calls and their results."""
    said: list[Any] = []
    names: dict[str, str] = {}
    for turn in cp.turns(messages):
        for part in turn.parts:
            if part.kind == "call":
                names[part.id] = f"{len(names)} {part.name}"
                said.append((turn.role, names[part.id], json.loads(part.text)))
            elif part.kind == "result":
                said.append((turn.role, names[part.id], *result(part)))
            else:
                said.append((turn.role, part.kind, part.media.data if part.media else part.text))
    return said


def result(part: Part) -> tuple[bool, str]:
    """Return whether a result is an error, which OpenAI's dialects can only say in words, and its text."""
    text = cp.text_of(part.parts)
    return part.error or text.startswith("Error: "), re.sub("^Error: ", "", text)


@pytest.mark.parametrize(("client", "upstream"), PAIRS)
@settings(max_examples=20)
@given(messages=conversations())
def test_conversations_survive(client: str, upstream: str, messages: tuple[Message, ...]) -> None:
    """The neutral form, written for a client, read, written for an upstream, and read there."""
    own = Target(PROVIDERS[client], Model("m"))
    other = "chat" if client == "claude" else "claude"  # nothing in it is of any one dialect
    fitted = cp.fit_request(Request(other, "m", messages), own, client).request
    body = cp.DIALECTS[client].write_request(fitted, own)
    arrived = cp.DIALECTS[upstream].read_request({"model": "m", **sent(client, upstream, body)})
    assert plain(arrived.messages) == plain(messages)


def test_all_dialects_are_here() -> None:
    assert list(cp.DIALECTS) == list(NAMES)
