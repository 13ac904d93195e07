"""Room CHAT: the Chat Completions wire, in and out, strict and sloppy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cliproxy as cp
from cliproxy import Citation, Media, Message, Part, PartDelta, PartEnd, PartStart
from support.paths import SHARED
from support.validate_chat import check_error, validate_request, validate_response, validate_stream

Json = dict[str, Any]
DATA = Path(__file__).parent / "data" / "chat"
RECORDINGS = SHARED / "recordings"
PIECES = pytest.mark.parametrize("piece", [1, 7, 1 << 20])
ASKED: Json = {"chat": {"stream_options": {"include_usage": True}, "_usage": True}}
CLIENT = cp.Request("chat", "m-1", (), extra=ASKED, id="c0ffee", created=5)
PLAIN = CLIENT._replace(extra={})


def load(name: str) -> Json:
    data: Json = json.loads((DATA / name).read_text(encoding="utf-8"))
    return data


def target(*quirks: str, model: str = "m-1") -> cp.Target:
    return cp.Target("openai", cp.Model(model), frozenset(quirks))


def cut(data: bytes, piece: int) -> Iterator[bytes]:
    return (data[at : at + piece] for at in range(0, len(data), piece))


def read(data: bytes, piece: int = 1 << 20) -> cp.Events:
    return cp.chat_read_stream(cp.sse_read(cut(data, piece), ends=True), CLIENT)


def chunks(*deltas: Json, finish: str | None = None) -> list[Json]:
    rows = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    return [*rows, {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]}]


def parts_of(payloads: list[Json]) -> tuple[Part, ...]:
    events = check_events(cp.chat_read_stream([*payloads, cp.DONE], CLIENT))
    return cp.collect(events).choices[0].parts


def check_events(events: cp.Events) -> Iterator[cp.Event]:
    """Pass events on if they keep the promises above room 4."""
    open_parts: dict[int, PartStart] = {}
    started = ended = numbers = 0
    ids = set()
    for event in events:
        assert started or isinstance(event, cp.MessageStart)
        if isinstance(event, cp.MessageStart):
            started += 1
            assert started == 1
        elif isinstance(event, PartStart):
            assert event.at == numbers
            assert all(start.choice != event.choice for start in open_parts.values())
            numbers += 1
            open_parts[event.at] = event
            if event.part.kind == "call":
                assert event.part.id
                assert event.part.id not in ids
                assert event.part.name
                ids.add(event.part.id)
        elif isinstance(event, PartDelta):
            assert event.at in open_parts
            assert event.value
        elif isinstance(event, PartEnd):
            del open_parts[event.at]
        elif isinstance(event, cp.MessageEnd):
            ended += 1
            assert not any(start.choice == event.choice for start in open_parts.values())
        yield event
    assert started == 1
    assert ended


def write(events: list[cp.Event], request: cp.Request = CLIENT) -> Json:
    data = b"".join(cp.chat_write_stream(events, request))
    usage = "chat" in request.extra and "stream_options" in request.extra["chat"]
    return validate_stream(data, usage=usage)


def answer(*parts: Part, finish: str = "stop") -> list[cp.Event]:
    """Return the events of an answer of these parts."""
    events: list[cp.Event] = [cp.MessageStart("id-1", "m-1", 3)]
    for at, part in enumerate(parts):
        events += cp.part_events(at, part)
    return [*events, cp.MessageEnd(finish)]


def whole(*parts: Part, finish: str = "stop") -> cp.Response:
    return cp.collect(answer(*parts, finish=finish))


# -- requests --------------------------------------------------------------------------


def test_a_request_round_trips() -> None:
    body = load("everything.request.json")
    copy = json.dumps(body)
    request = cp.chat_read_request(body)
    assert json.dumps(body) == copy
    written = cp.chat_write_request(request, target())
    assert written == body
    validate_request(written)


def test_streaming_asks_for_usage() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "q"}], "stream": True}
    request = cp.chat_read_request(body)
    written = cp.chat_write_request(request, target())
    assert written == {**body, "stream_options": {"include_usage": True}}
    assert cp.chat_write_request(request, target("no-stream-options")) == body
    off = {**body, "stream": False}
    assert cp.chat_write_request(cp.chat_read_request(off), target()) == off


def test_what_a_request_means() -> None:
    request = cp.chat_read_request(load("everything.request.json"))
    assert (request.dialect, request.model, request.stream) == ("chat", "m-1", False)
    assert [part.text for part in request.system] == ["S", "D1", "D2"]
    assert [part.cache for part in request.system] == ["", "5m", ""]
    assert [message.role for message in request.messages][:5] == ["user", "assistant", *["tool"] * 3]
    assert request.messages[5].role == "developer"
    user = request.messages[0].parts
    assert [part.media for part in user[1:8]] == [
        Media("image", "base64", "AAAA", "image/png", "", "low"),
        Media("image", "base64", "BBBB", "image/jpeg"),
        Media("image", "url", "https://example.test/i.png"),
        Media("audio", "base64", "CCCC", "audio/wav"),
        Media("document", "base64", "DDDD", "application/pdf", "d.pdf"),
        Media("document", "base64", "EEEE", "application/pdf"),
        Media("document", "file_id", "file-1"),
    ]
    assert (user[1].cache, user[8].kind) == ("1h", "opaque")
    thinking, first, second, third = request.messages[1].parts
    assert (thinking.kind, thinking.text, thinking.proof) == ("thinking", "hm", "")
    assert (first.id, first.name, first.text, first.proof) == ("c1", "f", '{"x": 1}', "SIG")
    assert (second.text, third.custom, third.text) == ("", True, '*** Begin\n"x"')
    result = request.messages[2].parts[0]
    assert (result.kind, result.id, cp.text_of(result.parts)) == ("result", "c2", "two")
    assert [p.kind for p in request.messages[6].parts] == ["text", "refusal"]
    assert [t.kind for t in request.tools] == ["function"] * 2 + ["custom"] * 2 + ["hosted"] * 2
    assert [t.name for t in request.tools][4:] == ["vendor:search", "web_search"]
    assert request.tools[2].grammar == {"syntax": "lark", "definition": "start: A"}
    assert request.choice == cp.ToolChoice("required", ("f",))
    assert request.thinking == cp.Thinking("high")
    assert request.format == cp.Format("schema", "r", {"type": "object"}, True, "d")
    assert request.params["max_tokens"] == 90
    assert request.params["user"] == "u1"
    assert request.params["parallel"] is False
    assert request.params["stop"] == ["X", "Y"]


def test_the_old_form_is_one_call_a_turn() -> None:
    request = cp.chat_read_request(load("old.request.json"))
    call, result = request.messages[1].parts[0], request.messages[2].parts[0]
    assert call.id == result.id
    assert call.name == "f"
    assert request.choice == cp.ToolChoice("required", ("f",))
    assert [tool.name for tool in request.tools] == ["f"]
    assert request.params == {"max_tokens": 5, "stop": ["X"], "parallel": False}
    wire = cp.chat_write_request(request, target())
    validate_request(wire)
    assert [message["role"] for message in wire["messages"]] == ["user", "assistant", "tool"]
    assert wire["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert wire["parallel_tool_calls"] is False
    event_list = answer(Part("call", '{"x":1}', "i", "f"), finish="tool_calls")
    got = write(event_list, request)
    assert got["messages"][0]["function_call"] == {"name": "f", "arguments": '{"x":1}'}
    assert got["finishes"] == ["function_call"]
    body = cp.chat_write_response(cp.collect(event_list), request)
    assert body["choices"][0]["message"]["function_call"]["arguments"] == '{"x":1}'


MINIMAL: Json = {"model": "m", "messages": [{"role": "user", "content": "q"}]}
FIELDS = [
    pytest.param({"max_tokens": 9, "max_completion_tokens": 5}, {"max_tokens": 5}, id="smaller 1"),
    pytest.param({"max_tokens": 4, "max_completion_tokens": 5}, {"max_tokens": 4}, id="smaller 2"),
    pytest.param({"stop": "X"}, {"stop": ["X"]}, id="stop text"),
    pytest.param({"stop": None, "temperature": None}, {}, id="null is absent"),
    pytest.param({"user": "a", "safety_identifier": "b"}, {"user": "b"}, id="two users"),
]


@pytest.mark.parametrize(("fields", "params"), FIELDS)
def test_params(fields: Json, params: Json) -> None:
    request = cp.chat_read_request({**MINIMAL, **fields})
    assert request.params == params
    assert cp.chat_write_request(request, target()) == {**MINIMAL, **fields}


TOOL = {"type": "function", "function": {"name": "f"}}
CUSTOM = {"type": "custom", "custom": {"name": "c"}}
NAMED = [TOOL, CUSTOM]
CHOICES = [
    pytest.param("auto", cp.ToolChoice("auto"), id="auto"),
    pytest.param("none", cp.ToolChoice("none"), id="none"),
    pytest.param("required", cp.ToolChoice("required"), id="required"),
    pytest.param(TOOL, cp.ToolChoice("required", ("f",)), id="function"),
    pytest.param(CUSTOM, cp.ToolChoice("required", ("c",)), id="custom"),
    pytest.param(
        {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": NAMED}},
        cp.ToolChoice("auto", ("f", "c")),
        id="allowed",
    ),
    pytest.param("any", cp.ToolChoice("required"), id="Mistral's"),
    pytest.param({"function": {"name": "f"}}, cp.ToolChoice("required", ("f",)), id="Hugging Face's"),
    pytest.param("most", None, id="of a vendor"),
]


@pytest.mark.parametrize(("wire", "choice"), CHOICES)
def test_tool_choice(wire: Any, choice: cp.ToolChoice | None) -> None:
    body = {**MINIMAL, "tools": [TOOL, CUSTOM], "tool_choice": wire}
    request = cp.chat_read_request(body)
    assert request.choice == choice
    assert cp.chat_write_request(request, target()) == body


def test_no_tools_no_tool_settings() -> None:
    request = cp.Request("claude", "m", (), params={"parallel": False}, choice=cp.ToolChoice("none"))
    assert cp.chat_write_request(request, target()).keys() == {"model", "messages"}


FORMATS = [
    pytest.param({"type": "json_object"}, cp.Format("json"), id="json"),
    pytest.param({"type": "text"}, None, id="text"),
    pytest.param({"type": "regex", "pattern": "a"}, None, id="of a vendor"),
]


@pytest.mark.parametrize(("wire", "form"), FORMATS)
def test_response_format(wire: Json, form: cp.Format | None) -> None:
    request = cp.chat_read_request({**MINIMAL, "response_format": wire})
    assert request.format == form
    assert cp.chat_write_request(request, target())["response_format"] == wire


def test_a_schema_gets_a_name() -> None:
    request = cp.Request("gemini", "m", (), format=cp.Format("schema", schema={}))
    form = cp.chat_write_request(request, target())["response_format"]
    assert form["json_schema"] == {"name": "response", "schema": {}}


BAD = [
    pytest.param({**MINIMAL, "messages": [{"role": "robot"}]}, cp.ProxyError, id="role"),
    pytest.param({"model": "m"}, KeyError, id="no messages"),
    pytest.param({**MINIMAL, "messages": [{"role": "tool", "content": ""}]}, KeyError, id="no id"),
]


@pytest.mark.parametrize(("body", "error"), BAD)
def test_a_bad_request(body: Json, error: type[Exception]) -> None:
    with pytest.raises(error):
        cp.chat_read_request(body)


def foreign(*messages: Message, dialect: str = "claude", **fields: Any) -> cp.Request:
    return cp.Request(dialect, "m", messages, **fields)


def written(*messages: Message, quirks: tuple[str, ...] = (), **fields: Any) -> list[Json]:
    body = cp.chat_write_request(foreign(*messages, **fields), target(*quirks))
    validate_request(body)
    found: list[Json] = body["messages"]
    return found


CALL = Part("call", '{"x":1}', "t1", "f")
IMAGE = Part("media", media=Media("image", "base64", "AA==", "image/png"))


def test_results_come_before_the_rest() -> None:
    """Conformance case 3: an error result with an image, and text before it."""
    result = Part("result", id="t1", parts=(Part("text", "bad"), IMAGE), error=True)
    turn = Message("user", (Part("text", "see"), result))
    assert written(Message("assistant", (CALL,)), turn)[1:] == [
        {"role": "tool", "tool_call_id": "t1", "content": "Error: bad"},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
                {"type": "text", "text": "see"},
            ],
        },
    ]


def test_an_error_is_marked_once() -> None:
    result = Part("result", id="t1", parts=(Part("text", "Error: bad"),), error=True)
    wire = written(Message("assistant", (CALL,)), Message("user", (result,)))
    assert wire[1]["content"] == "Error: bad"


def test_every_call_is_answered_at_once() -> None:
    """Late results move up, their images behind all of them; missing ones are made up."""
    calls = tuple(CALL._replace(id=word) for word in "abc")
    late = Message("tool", (Part("result", id="a", parts=(Part("text", "A"),)),))
    seen = Message("tool", (Part("result", id="b", parts=(IMAGE,)),))
    wire = written(
        Message("assistant", calls),
        seen,
        Message("user", (Part("text", "hi"),)),
        late,
        Message("assistant", (Part("text", "ok"),)),
    )
    roles = ["assistant", "tool", "tool", "tool", "user", "assistant"]
    assert [message["role"] for message in wire] == roles
    assert [message["tool_call_id"] for message in wire[1:4]] == ["a", "b", "c"]
    assert all(message["content"] for message in wire[1:4])
    assert [part["type"] for part in wire[4]["content"]] == ["image_url", "text"]


def test_calls_at_the_very_end_are_answered() -> None:
    wire = written(Message("assistant", (CALL,)))
    assert [message["role"] for message in wire] == ["assistant", "tool"]


def test_an_assistant_turn() -> None:
    """Texts are joined, thinking and hosted calls left out, refusals and calls kept."""
    parts = (
        Part("thinking", "hm", proof="P"),
        Part("text", "a"),
        Part("hosted", '{"query":"q"}', "h", "web_search"),
        Part("text", "b"),
        Part("refusal", "no"),
        CALL._replace(proof="SIG"),
    )
    turn = Message("assistant", parts)
    result = Message("user", (Part("result", id="t1", parts=(Part("text", "r"),)),))
    call = {"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}
    signed = {**call, "extra_content": {"google": {"thought_signature": "SIG"}}}
    expected = {"role": "assistant", "content": "ab", "refusal": "no", "tool_calls": [signed]}
    assert written(turn, result)[0] == expected
    quirky = written(turn, result, quirks=("reasoning-content",))
    assert quirky[0] == {**expected, "reasoning_content": "hm"}
    assert written(Message("assistant", parts[:1])) == []


LIMITS = [
    pytest.param("max-tokens", "m", "max_tokens", id="max-tokens"),
    pytest.param("", "m", "max_completion_tokens", id="no quirk"),
    *(
        pytest.param("max-tokens", model, "max_completion_tokens", id=model)
        for model in ("gpt-5.5", "openai/gpt-5-mini", "o3", "azure/o4-mini")
    ),
    *(
        pytest.param("max-tokens", model, "max_tokens", id=model)
        for model in ("gpt-oss-120b", "gpt-4o", "o3x", "olmo-2", "org/glm-4.7")
    ),
]


@pytest.mark.parametrize(("quirk", "model", "field"), LIMITS)
def test_the_name_of_the_limit(quirk: str, model: str, field: str) -> None:
    """Some models refuse max_tokens, whoever hosts them: Azure is such a host."""
    asked = foreign(params={"max_tokens": 7, "top_k": 1})._replace(model=model)
    expected = {"model": model, "messages": [], field: 7}
    assert cp.chat_write_request(asked, target(quirk)) == expected
    passing = {"model": model, "messages": [], "max_completion_tokens": 7}
    assert cp.chat_fitted(passing, target(quirk).quirks) == expected
    assert cp.chat_fitted(expected, target(quirk).quirks) is expected
    assert not cp.chat_odd(json.dumps(expected).encode(), target(quirk).quirks, model)
    old = {"model": model, "messages": [], "max_tokens": 7}
    fitted = cp.chat_fitted(old, target(quirk).quirks)
    assert fitted == (old if quirk == "" else expected), "qwen-code says max_tokens to everybody"


def test_quirks_of_messages() -> None:
    texts = (Part("text", "a"), Part("text", "b"))
    developer = Message("developer", texts)
    empty = Message("assistant", (CALL,))
    result = Message("user", (Part("result", id="t1"),))
    usual = written(developer, empty, result, dialect="chat")
    assert usual[0]["role"] == "developer"
    assert len(usual[0]["content"]) == 2
    assert usual[1]["content"] is None
    quirks = ("system", "string-content", "empty-content")
    odd = written(developer, empty, result, dialect="chat", quirks=quirks)
    assert odd[0] == {"role": "system", "content": "a\n\nb"}
    assert odd[1]["content"] == ""


def test_foreign_system_texts_are_one_message() -> None:
    wire = written(system=(Part("text", "a"), Part("text", "b")))
    assert [message["role"] for message in wire] == ["system"]
    assert [part["text"] for part in wire[0]["content"]] == ["a", "b"]
    assert written(system=(Part("text", "a"),)) == [{"role": "system", "content": "a"}]


MEDIA: list[Any] = [
    pytest.param(
        Media("document", "base64", "AA", "application/pdf"),
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,AA", "filename": "document.pdf"}},
        id="unnamed pdf",
    ),
    pytest.param(
        Media("audio", "base64", "AA", "audio/mpeg"),
        {"type": "input_audio", "input_audio": {"data": "AA", "format": "mp3"}},
        id="mp3",
    ),
    pytest.param(
        Media("image", "url", "https://i.test", "", "", "high"),
        {"type": "image_url", "image_url": {"url": "https://i.test", "detail": "high"}},
        id="image url",
    ),
]


@pytest.mark.parametrize(("media", "wire"), MEDIA)
def test_media(media: Media, wire: Json) -> None:
    assert written(Message("user", (Part("media", media=media),)))[0]["content"] == [wire]


def test_a_text_document_becomes_text() -> None:
    document = Part("media", media=Media("document", "text", "body", "text/plain", "Title"))
    assert written(Message("user", (document,)))[0]["content"] == "Title\nbody"


LACKING = [
    pytest.param(Media("document", "url", "https://d.test/a.pdf"), "document by its URL", id="pdf"),
    pytest.param(Media("video", "url", "https://v.test"), "video", id="video"),
    pytest.param(Media("image", "file_id", "f"), "image by its file id", id="image id"),
    pytest.param(Media("audio", "url", "https://a.test"), "audio", id="audio url"),
]


@pytest.mark.parametrize(("media", "words"), LACKING)
def test_media_that_chat_lacks(media: Media, words: str) -> None:
    with pytest.raises(cp.ProxyError, match=words) as caught:
        written(Message("user", (Part("media", media=media),)))
    assert (caught.value.kind, caught.value.param) == ("invalid_request", "messages")


DATA_URLS = [
    pytest.param("data:,a%20b", Media("image", "base64", "YSBi", "text/plain"), id="percent"),
    pytest.param("DATA:image/gif;base64,AA", Media("image", "base64", "AA", "image/gif"), id="case"),
    pytest.param("https://x.test/a,b", Media("image", "url", "https://x.test/a,b"), id="comma"),
]


@pytest.mark.parametrize(("url", "media"), DATA_URLS)
def test_data_urls(url: str, media: Media) -> None:
    part = {"type": "image_url", "image_url": {"url": url}}
    body = {**MINIMAL, "messages": [{"role": "user", "content": [part]}]}
    assert cp.chat_read_request(body).messages[0].parts[0].media == media


def test_web_search_only_for_models_made_for_it() -> None:
    tools = (cp.Tool("web_search", kind="hosted", extra={"claude": {"type": "web_search_1"}}),)
    body = cp.chat_write_request(foreign(tools=tools), target())
    assert body.keys() == {"model", "messages"}
    search = cp.Request("claude", "gpt-search", (), tools=tools)
    assert cp.chat_write_request(search, target())["web_search_options"] == {}


# -- answers ---------------------------------------------------------------------------


def test_a_response_round_trips() -> None:
    body = load("answer.response.json")
    response = cp.collect(check_events(cp.chat_read_response(body, CLIENT)))
    wire = cp.chat_write_response(response, CLIENT)
    validate_response(wire)
    assert wire == body
    assert response.usage == cp.Usage(
        115, 100, 5, 40, 30, {"chat": {"prompt_tokens_details": {"audio_tokens": 1}}}
    )


@PIECES
@pytest.mark.parametrize("name", ["text", "parallel", "sloppy", "choices"])
def test_a_stream_written_and_read_again_is_the_same(name: str, piece: int) -> None:
    data = (DATA / f"{name}.sse").read_bytes()
    first = cp.collect(check_events(read(data, piece)))
    stream = b"".join(cp.chat_write_stream(read(data, piece), CLIENT))
    validate_stream(stream, usage=True)
    again = cp.collect(check_events(read(stream, piece)))
    assert clean(again) == clean(first)
    body = cp.chat_write_response(first, CLIENT)
    validate_response(body)
    assert clean(cp.collect(cp.chat_read_response(body, CLIENT))) == clean(first)


def clean(response: cp.Response) -> cp.Response:
    """Leave out what a writer must fill in, and the upstream's own word for the end."""
    start = response.start._replace(
        id=response.start.id or f"chatcmpl-{CLIENT.id}", created=response.start.created or 5
    )
    choices = tuple(
        choice._replace(end=choice.end._replace(raw=""), parts=tuple(spread(part) for part in choice.parts))
        for choice in response.choices
    )
    return response._replace(start=start, choices=choices)


def spread(part: Part) -> Part:
    """Let a citation without an end mean the whole text, as it is written."""
    cited = (c._replace(end=c.end or len(part.text)) for c in part.citations)
    return part._replace(citations=tuple(cited))


def test_interleaved_calls_are_put_in_a_row() -> None:
    events = list(check_events(read((DATA / "parallel.sse").read_bytes())))
    kinds = [event.part.kind for event in events if isinstance(event, PartStart)]
    assert kinds == ["thinking", "text", "call", "call"]
    texts = [event.value for event in events if isinstance(event, PartDelta)]
    assert texts[2:4] == ['{"x":', "1}"]  # the first call streams
    assert "".join(texts[4:]) == '{"y":2}'


def test_a_sloppy_third_party() -> None:
    """Conformance case 19."""
    response = cp.collect(check_events(read((DATA / "sloppy.sse").read_bytes())))
    thinking, first, second = response.choices[0].parts
    assert (thinking.kind, thinking.text) == ("thinking", "r")
    assert (first.id, first.text, second.id, second.text) == ("a", '{"k":"v"}', "b", "{}")
    assert response.choices[0].end.finish == "tool_calls"
    assert response.start.id == "chatcmpl-1"


def call(**fields: Any) -> Json:
    return {"tool_calls": [fields]}


def named(name: str, arguments: Any = "") -> Json:
    return {"name": name, "arguments": arguments}


CALLS = [
    pytest.param(
        [call(index=0, id="a", function=named("f", "{")), call(index=0, id="a", function=named("f", "}"))],
        [("a", "f", "{}")],
        id="id and name repeated",
    ),
    pytest.param(
        [call(index=0, id="a", function=named("f", "1")), call(index=0, id="b", function=named("g", "2"))],
        [("a", "f", "1"), ("b", "g", "2")],
        id="new id under a used index",
    ),
    pytest.param(
        [call(index=0, id="a", function=named("f")), call(index=1, id="a", function=named("g"))],
        [("a", "f", "{}"), (None, "g", "{}")],
        id="id used twice",
    ),
    pytest.param(
        [call(index=0, id="a", function=named("", "1")), call(index=0, function=named("f", "2"))],
        [("a", "f", "12")],
        id="late name",
    ),
    pytest.param(
        [call(function=named("f", "1")), call(function={"arguments": "2"}), call(function=named("g"))],
        [(None, "f", "12"), (None, "g", "{}")],
        id="no index, no id",
    ),
    pytest.param(
        [
            call(id="a", function=named("f", "1")),
            call(id="b", function=named("g")),
            call(id="a", function={"arguments": "2"}),
        ],
        [("a", "f", "12"), ("b", "g", "{}")],
        id="by id",
    ),
    pytest.param(
        [{"function_call": named("f", "1")}, {"function_call": {"arguments": "2"}}],
        [(None, "f", "12")],
        id="old form",
    ),
    pytest.param(
        [
            call(index=0, id="a", type="custom", custom={"name": "p", "input": "x"}),
            call(index=0, custom={"input": "y"}),
        ],
        [("a", "p", "xy")],
        id="custom",
    ),
    pytest.param([call(index=3, id="a", function=named("f"))], [("a", "f", "{}")], id="index with a gap"),
]


@pytest.mark.parametrize(("deltas", "calls"), CALLS)
def test_tool_deltas(deltas: list[Json], calls: list[tuple[str | None, str, str]]) -> None:
    payloads = chunks(*deltas, finish="stop")
    response = cp.collect(check_events(cp.chat_read_stream([*payloads, cp.DONE], CLIENT)))
    found = response.choices[0].parts
    assert [(part.name, part.text) for part in found] == [(name, text) for _, name, text in calls]
    assert all(given in {None, part.id} for part, (given, _, _) in zip(found, calls))
    assert response.choices[0].end.finish == ("tool_calls" if calls else "stop")
    write(list(cp.chat_read_stream([*payloads, cp.DONE], CLIENT)))


def test_a_call_that_never_has_a_name_is_malformed() -> None:
    for finish in ("tool_calls", "stop"):
        with pytest.raises(cp.ProxyError, match="a call without a name"):
            list(
                cp.chat_read_stream(
                    chunks(call(index=0, id="a", function=named("", "1")), finish=finish), CLIENT
                )
            )


def test_text_between_calls_waits() -> None:
    found = parts_of(
        chunks(
            call(index=0, id="a", function=named("f", "{")),
            {"content": "hm"},
            call(index=0, function={"arguments": "}"}),
            {"content": "!"},
        )
    )
    assert [(part.kind, part.text) for part in found] == [("call", "{}"), ("text", "hm!")]


SAID = [
    pytest.param({"reasoning": {"text": "t"}}, "thinking", '{"text":"t"}', id="reasoning object"),
    pytest.param({"reasoning": [{"text": "a"}, {"content": "b"}]}, "thinking", "ab", id="list"),
    pytest.param({"reasoning_details": [{"text": "t"}, {"summary": "s"}]}, "thinking", "ts", id="details"),
    pytest.param({"content": [{"type": "text", "text": "t"}]}, "text", "t", id="content list"),
    pytest.param({"content": [{"thinking": [{"text": "t"}]}]}, "thinking", "t", id="mistral"),
    pytest.param({"refusal": "no"}, "refusal", "no", id="refusal"),
]


@pytest.mark.parametrize(("delta", "kind", "text"), SAID)
def test_deltas(delta: Json, kind: str, text: str) -> None:
    (part,) = parts_of(chunks(delta))
    expected = "t" if kind == "thinking" and "object" in text else text
    assert (part.kind, part.text) == (kind, expected)


FINISHES = [
    pytest.param(None, "stop", id="none, with output"),
    pytest.param("", "stop", id="empty"),
    pytest.param("eos", "stop", id="eos"),
    pytest.param("end_turn", "stop", id="end_turn"),
    pytest.param("max_tokens", "length", id="max_tokens"),
    pytest.param("length", "length", id="length"),
    pytest.param("content_filter", "content_filter", id="filter"),
    pytest.param("tool_calls", "stop", id="tool_calls without any"),
    pytest.param("function_call", "stop", id="function_call without any"),
    pytest.param("error", "error", id="error"),
]


@pytest.mark.parametrize(("wire", "finish"), FINISHES)
def test_finish_reasons(wire: str | None, finish: str) -> None:
    payloads = chunks({"content": "x"}, finish=wire)
    end = cp.collect(cp.chat_read_stream([*payloads, cp.DONE], CLIENT)).choices[0].end
    assert (end.finish, end.raw) == (finish, wire or "")
    write(list(cp.chat_read_stream([*payloads, cp.DONE], CLIENT)))


def test_an_end_without_a_finish_or_done_is_a_break() -> None:
    payloads = chunks({"content": "The answer is"})
    with pytest.raises(cp.ProxyError, match="in the middle"):
        list(cp.chat_read_stream(payloads, CLIENT))
    (part,) = cp.collect(cp.chat_read_stream([*payloads, cp.DONE], CLIENT)).choices[0].parts
    assert part.text == "The answer is"


def test_what_comes_after_the_finish_counts() -> None:
    payloads = [*chunks({"content": "a"}, finish="stop"), *chunks({"content": "b"}, finish="length")]
    choice = cp.collect(cp.chat_read_stream([*payloads, cp.DONE], CLIENT)).choices[0]
    assert (choice.parts[0].text, choice.end.finish) == ("ab", "length")


def test_a_message_in_place_of_deltas() -> None:
    last = {"choices": [{"index": 0, "message": {"content": "all"}, "finish_reason": "stop"}]}
    assert parts_of([last])[0].text == "all"
    assert parts_of([*chunks({"content": "all"})[:1], last])[0].text == "all"


USAGES = [
    pytest.param({"usage": {"prompt_tokens": 9, "completion_tokens": 2}, "choices": []}, id="own chunk"),
    pytest.param(
        {"choices": [{"delta": {}, "usage": {"prompt_tokens": 9, "completion_tokens": 2}}]}, id="choice"
    ),
    pytest.param({"x_groq": {"usage": {"prompt_tokens": 9, "completion_tokens": 2}}}, id="groq"),
]


@pytest.mark.parametrize("chunk", USAGES)
def test_usage_anywhere(chunk: Json) -> None:
    early = {**chunks({"content": "x"})[0], "usage": {"prompt_tokens": 1}}
    response = cp.collect(cp.chat_read_stream([early, *chunks(finish="stop"), chunk], CLIENT))
    assert response.usage == cp.Usage(9, output=2)


CACHED = [
    pytest.param({"prompt_tokens_details": {"cached_tokens": 3}}, id="openai"),
    pytest.param({"cached_tokens": 3}, id="kimi"),
    pytest.param({"prompt_cache_hit_tokens": 3}, id="deepseek"),
]


@pytest.mark.parametrize("fields", CACHED)
def test_cached_tokens(fields: Json) -> None:
    body = {"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": 9, **fields}}
    assert cp.collect(cp.chat_read_response(body, CLIENT)).usage == cp.Usage(9, 3)


def test_citations_count_from_the_start_of_the_content() -> None:
    parts = (
        Part("text", "Hé", citations=(Citation("https://a.test", "A"),)),
        Part("hosted", "{}", "h", "web_search"),
        Part("text", "llo", citations=(Citation("https://b.test", "B", 1, 2, "cited"),)),
    )
    streamed = write(answer(*parts))["messages"][0]
    body = cp.chat_write_response(whole(*parts), CLIENT)["choices"][0]["message"]
    numbered = [{"index": n, **entry} for n, entry in enumerate(body["annotations"])]
    assert streamed["annotations"] == numbered  # else OpenAI's SDK gives up on the second
    cited = [annotation["url_citation"] for annotation in body["annotations"]]
    assert [(c["start_index"], c["end_index"]) for c in cited] == [(0, 2), (3, 4)]
    assert cited[1]["content"] == "cited"
    assert "content" not in cited[0]


def test_annotations_before_their_text() -> None:
    row = {"type": "url_citation", "url_citation": {"url": "u", "start_index": 0, "end_index": 1}}
    (part,) = parts_of(chunks({"annotations": [row, {"type": "file"}]}, {"content": "x"}))
    assert part.citations == (Citation("u", "", 0, 1),)


def test_spoken_answers() -> None:
    pieces = (
        {"audio": {"id": "a1"}},
        {"audio": {"data": "AA", "transcript": "h"}},
        {"audio": {"data": "BB", "transcript": "i", "expires_at": 9}},
    )
    (part,) = parts_of(chunks(*pieces))
    assert part.media == Media("audio", "base64", "AABB", "audio/wav")
    shown = write(answer(part))["messages"][0]["audio"]
    assert shown == {"id": "a1", "data": "AABB", "transcript": "hi", "expires_at": 9}
    gemini = Part("media", media=Media("audio", "base64", "AA", "audio/pcm"))
    assert write(answer(gemini))["messages"][0]["audio"]["data"] == "AA"


ENDS = [
    pytest.param([], id="nothing"),
    pytest.param([{"choices": []}], id="no choices"),
    pytest.param(chunks({"role": "assistant", "content": ""}), id="only a role"),
]


@pytest.mark.parametrize("payloads", ENDS)
def test_an_end_without_anything(payloads: list[Json]) -> None:
    with pytest.raises(cp.ProxyError) as caught:
        list(cp.chat_write_stream(cp.chat_read_stream([*payloads, cp.DONE], CLIENT), CLIENT))
    assert caught.value.kind == "upstream_failed"


def test_a_finish_without_output_is_an_answer() -> None:
    payloads = chunks({"role": "assistant", "content": ""}, finish="content_filter")
    got = write(list(cp.chat_read_stream([*payloads, cp.DONE], CLIENT)))
    assert (got["messages"][0]["content"], got["finishes"]) == ("", ["content_filter"])


# -- writing ---------------------------------------------------------------------------


def test_calls_of_a_stream() -> None:
    """Conformance case 8: own numbers for calls, each id once, `{}` for no arguments, usage."""
    parts = (Part("thinking", "hm"), Part("text", "x"), CALL._replace(text=""), CALL._replace(id="t2"))
    usage = cp.Usage(115, 100, 5, 40, 30)
    got = write([*answer(*parts, finish="tool_calls"), usage])
    calls = got["messages"][0]["tool_calls"]
    assert [c["index"] for c in calls] == [0, 1]
    assert [c["function"]["arguments"] for c in calls] == ["{}", '{"x":1}']
    assert got["usage"]["total_tokens"] == 155
    assert got["usage"]["prompt_tokens_details"] == {"cached_tokens": 100, "cache_write_tokens": 5}
    assert write([*answer(*parts, finish="tool_calls"), usage], PLAIN)["usage"] is None
    body = cp.chat_write_response(whole(*parts, finish="tool_calls"), CLIENT)
    wanted = [c["function"] for c in calls]
    assert [c["function"] for c in body["choices"][0]["message"]["tool_calls"]] == wanted


PROOFS = [
    pytest.param((CALL._replace(proof="SIG"),), ["SIG"], id="of the call"),
    pytest.param((Part("thinking", "t", proof="P"), CALL), ["P"], id="of the thinking before"),
    pytest.param((Part("thinking", proof="P", redacted=True), CALL), ["P"], id="redacted"),
    pytest.param(
        (Part("thinking", "t", proof="P"), Part("text", "x"), CALL, CALL._replace(id="t2")),
        ["P", ""],
        id="once",
    ),
]


@pytest.mark.parametrize(("parts", "proofs"), PROOFS)
def test_proofs_travel_on_calls(parts: tuple[Part, ...], proofs: list[str]) -> None:
    streamed = write(answer(*parts, finish="tool_calls"))["messages"][0]["tool_calls"]
    body = cp.chat_write_response(whole(*parts, finish="tool_calls"), CLIENT)
    for calls in (streamed, body["choices"][0]["message"]["tool_calls"]):
        assert [cp.chat_proof(item) for item in calls] == proofs


def test_what_chat_cannot_show_is_left_out() -> None:
    parts = (
        Part("hosted", "{}", "h", "web_search"),
        Part("hosted_result", id="h", extra={"claude": {}}),
        Part("opaque", extra={"gemini": {}}),
        Part("media", media=Media("video", "url", "https://v.test")),
        Part("text", "x"),
    )
    message = write(answer(*parts))["messages"][0]
    assert message == {"role": "assistant", "content": "x"}
    body = cp.chat_write_response(whole(*parts), CLIENT)
    assert body["choices"][0]["message"]["content"] == "x"


def test_ids_that_nobody_gave() -> None:
    events = [cp.MessageStart("", ""), *answer(Part("text", "x"))[1:]]
    data = b"".join(cp.chat_write_stream(events, PLAIN))
    validate_stream(data, usage=False)
    first = json.loads(data.split(b"\n\n")[0][6:])
    assert (first["id"], first["created"], first["model"]) == ("chatcmpl-c0ffee", 5, "m-1")


def failing(*events: cp.Event) -> Iterator[cp.Event]:
    yield from events
    raise cp.ProxyError("overloaded", "busy")


def test_an_error_in_mid_stream() -> None:
    """Conformance case 17: no finish, no `[DONE]`."""
    got = write(list(read((DATA / "text.sse").read_bytes())))  # the good case first
    assert got["finishes"] == ["stop"]
    begun = answer(Part("text", "par"))[:-1]
    data = b"".join(cp.chat_write_stream(failing(*begun), CLIENT))
    error = validate_stream(data, usage=True)
    assert error["error"]["message"] == "busy"
    assert b"DONE" not in data
    stream = b"".join(cp.chat_write_stream(read((DATA / "error.sse").read_bytes()), CLIENT))
    assert validate_stream(stream, usage=True)["error"]["message"] == "busy"


HALF_A_CALL = {"index": 0, "id": "i", "function": {"name": "f", "arguments": '{"a": {"b": 1}, "c'}}


@pytest.mark.parametrize("after", [{}, {**HALF_A_CALL, "index": 1, "id": "j"}], ids=["one", "two"])
def test_an_end_in_the_middle_of_a_call(after: Json) -> None:
    """Some end without a finish, but for `[DONE]` (4.4); what has been cut off is no call."""
    first = {**HALF_A_CALL, "function": {"name": "f", "arguments": "{}"}} if after else HALF_A_CALL
    rows = chunks({"tool_calls": [first]}, *([{"tool_calls": [after]}] if after else []))[:-1]
    with pytest.raises(cp.ProxyError, match="middle"):
        list(cp.chat_read_stream(rows, CLIENT))
    whole_call = {"index": 0, "function": {"arguments": '": 2}'}}
    if not after:
        assert list(cp.chat_read_stream([*rows, *chunks({"tool_calls": [whole_call]}), cp.DONE], CLIENT))


def test_an_error_before_anything_is_shown() -> None:
    with pytest.raises(cp.ProxyError, match="busy"):
        list(cp.chat_write_stream(failing(cp.MessageStart("i", "m")), CLIENT))


def test_a_failure_without_output_is_an_error() -> None:
    events: list[cp.Event] = [
        cp.MessageStart("i", "m"),
        cp.MessageEnd("error", raw="MALFORMED_FUNCTION_CALL"),
    ]
    with pytest.raises(cp.ProxyError, match="MALFORMED"):
        list(cp.chat_write_stream(events, CLIENT))
    with pytest.raises(cp.ProxyError, match="MALFORMED"):
        cp.chat_write_response(cp.collect(events), CLIENT)


def test_each_event_is_written_before_the_next_is_pulled() -> None:
    pulled: list[cp.Event] = []

    def events() -> Iterator[cp.Event]:
        for event in answer(Part("text", "x"), CALL, finish="tool_calls"):
            pulled.append(event)
            yield event

    frames = cp.chat_write_stream(events(), PLAIN)
    seen = [(type(pulled[-1]).__name__, b'"x"' in frame) for frame in frames]
    assert ("PartStart", False) in seen
    assert ("PartDelta", True) in seen
    assert seen[-2][0] == "MessageEnd"


# -- errors ----------------------------------------------------------------------------


def error_body(**fields: Any) -> bytes:
    return json.dumps({"error": {"message": "m", **fields}}).encode()


ERRORS = [
    pytest.param(400, error_body(code="context_length_exceeded"), "context_too_long", id="context"),
    pytest.param(400, error_body(type="invalid_request_error"), "invalid_request", id="request"),
    pytest.param(401, error_body(code="invalid_api_key"), "unauthorized", id="key"),
    pytest.param(404, error_body(code="model_not_found"), "model_not_found", id="model"),
    pytest.param(429, error_body(type="insufficient_quota"), "billing", id="quota"),
    pytest.param(429, error_body(type="tokens", code="rate_limit_exceeded"), "rate_limited", id="rate"),
    pytest.param(500, error_body(code=503), "upstream_error", id="status wins over a number"),
    pytest.param(503, b"", "overloaded", id="empty"),
    pytest.param(502, b"<html><h1>Bad  gateway</h1></html>", "upstream_failed", id="html"),
    pytest.param(400, b'[{"error":{"message":"m"}}]', "invalid_request", id="list"),
    pytest.param(400, b'{"error":"m"}', "invalid_request", id="text"),
    pytest.param(422, b'{"detail":[{"msg":"m"}]}', "unprocessable", id="detail"),
    pytest.param(403, b'{"message":"m"}', "forbidden", id="message"),
    pytest.param(400, b"null", "invalid_request", id="null"),
]


@pytest.mark.parametrize(("status", "body", "kind"), ERRORS)
def test_read_error(status: int, body: bytes, kind: str) -> None:
    error = cp.chat_read_error(status, body)
    assert (error.kind, error.status) == (kind, status)
    assert str(error)
    assert "<" not in str(error)
    check_error(cp.chat_write_error(error))


WAITS = [("20s", 20), ("1m20.5s", 80.5), ("345ms", 0.345), ("2h", 7200)]


@pytest.mark.parametrize(("words", "seconds"), WAITS)
def test_retry_after(words: str, seconds: float) -> None:
    body = error_body(code="rate_limit_exceeded", message=f"Please try again in {words}.")
    assert cp.chat_read_error(429, body).retry_after == pytest.approx(seconds)


IN_200 = [
    pytest.param({"error": {"message": "m", "code": 429}}, "rate_limited", id="number"),
    pytest.param({"error": "m"}, "upstream_error", id="text"),
    pytest.param({"error": {"message": "m", "type": "invalid_request_error"}}, "invalid_request", id="type"),
    pytest.param({"object": "error", "message": "m", "code": 400}, "invalid_request", id="vllm"),
    pytest.param({"choices": [{"error": {"message": "m", "code": 502}}]}, "upstream_failed", id="choice"),
]


@pytest.mark.parametrize(("payload", "kind"), IN_200)
def test_an_error_in_a_200(payload: Json, kind: str) -> None:
    with pytest.raises(cp.ProxyError, match="m") as caught:
        cp.collect(cp.chat_read_response(payload, CLIENT))
    assert caught.value.kind == kind


@pytest.mark.parametrize("kind", list(cp.KINDS))
def test_write_error(kind: str) -> None:
    error = cp.ProxyError(kind, "why", param="p")
    body = cp.chat_write_error(error)
    check_error(body)
    again = cp.chat_read_error(error.status, json.dumps(body).encode())
    assert (str(again), again.status, again.param) == ("why", error.status, "p")


# -- anything at all -------------------------------------------------------------------

TEXT = st.text(max_size=8)
DELTA = st.one_of(
    st.builds(lambda text: {"content": text}, st.none() | TEXT),
    st.builds(lambda text: {"reasoning_content": text}, TEXT),
    st.builds(lambda text: {"refusal": text}, TEXT),
    st.builds(
        lambda index, given, name, text: {
            "tool_calls": [{"index": index, "id": given, "function": {"name": name, "arguments": text}}]
        },
        st.none() | st.integers(0, 3),
        st.none() | st.sampled_from(["", "a", "b"]),
        st.none() | st.sampled_from(["", "f", "g"]),
        st.none() | TEXT,
    ),
)


@given(st.lists(st.tuples(st.integers(0, 1), DELTA), max_size=12))
def test_any_deltas_make_a_clean_stream(deltas: list[tuple[int, Json]]) -> None:
    payloads = [{"choices": [{"index": n, "delta": delta}]} for n, delta in deltas]
    ends: list[Json] = [{"choices": [{"index": n, "delta": {}, "finish_reason": "stop"}]} for n in (0, 1)]
    try:
        events = list(check_events(cp.chat_read_stream([*payloads, *ends], CLIENT)))
    except cp.ProxyError as error:
        assert str(error) == cp.NAMELESS  # noqa: PT017
        return
    got = write(events)
    assert len(got["messages"]) == 2
    validate_response(cp.chat_write_response(cp.collect(events), CLIENT))


# -- recordings ------------------------------------------------------------------------


def recorded(folder: str) -> list[Path]:
    return sorted((RECORDINGS / folder / "chat").glob("*.json"))


@pytest.mark.shared
def test_recorded_requests_round_trip() -> None:
    for path in recorded("requests/dev"):
        body = json.loads(path.read_text(encoding="utf-8"))["body"]
        wanted = dict(body)
        if body.get("stream"):
            wanted["stream_options"] = {**body.get("stream_options", {}), "include_usage": True}
        wire = cp.chat_write_request(cp.chat_read_request(body), target())
        assert wire == wanted, path.name


@PIECES
@pytest.mark.shared
def test_recorded_answers_round_trip(piece: int) -> None:
    for path in [*recorded("dev"), *recorded("synthetic"), *recorded("flagged")]:
        answer = json.loads(path.read_text(encoding="utf-8"))["response"]
        if answer["status"] >= 400 or '"error"' in answer.get("sse", ""):
            continue
        if "sse" not in answer and piece > 1:
            continue
        check_answer(answer, piece)


def check_answer(answer: Json, piece: int) -> None:
    def events() -> cp.Events:
        if "sse" in answer:
            return read(answer["sse"].encode(), piece)
        return cp.chat_read_response(answer["body"], CLIENT)

    first = cp.collect(check_events(events()))
    stream = b"".join(cp.chat_write_stream(events(), CLIENT))
    validate_stream(stream, usage=True)
    body = cp.chat_write_response(first, CLIENT)
    validate_response(body)
    assert clean(cp.collect(read(stream, piece))) == clean(first)
    assert clean(cp.collect(cp.chat_read_response(body, CLIENT))) == clean(first)
