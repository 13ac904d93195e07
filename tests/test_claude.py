"""Room 5, CLAUDE: the Messages API, read and written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

import cliproxy as cp
from support.validate_claude import check_error, validate, validate_failure

Json = dict[str, Any]
DATA = Path(__file__).parent / "data" / "claude"
SHARED = Path(__file__).parents[2] / "shared" / "recordings"
ASKED = cp.Request("claude", "claude-opus-4-5", (), id="7f")
TARGET = cp.Target("claude", cp.Model("claude-opus-4-5"))
PIECES = [pytest.param(1, id="byte by byte"), pytest.param(7, id="by 7"), pytest.param(1 << 20, id="whole")]


def cut(data: bytes, piece: int) -> Iterator[bytes]:
    return (data[i : i + piece] for i in range(0, len(data), piece))


def read_stream(data: bytes, piece: int = 1 << 20) -> cp.Events:
    return cp.claude_read_stream(cp.sse_read(cut(data, piece)), ASKED)


def write_stream(events: Iterable[cp.Event]) -> bytes:
    return b"".join(cp.claude_write_stream(events, ASKED))


def golden(name: str) -> Json:
    loaded: Json = json.loads((DATA / name).read_text(encoding="utf-8"))
    return loaded


def ask(*messages: cp.Message, dialect: str = "chat", **fields: Any) -> cp.Request:
    return cp.Request(dialect, "m", messages, id="7f", **fields)


def write(*messages: cp.Message, dialect: str = "chat", **fields: Any) -> Json:
    return cp.claude_write_request(ask(*messages, dialect=dialect, **fields), TARGET)


def write_fitted(message: cp.Message, dialect: str = "chat") -> Json:
    fitted = cp.fit_request(ask(message, dialect=dialect), TARGET, "claude")
    return cp.claude_write_request(fitted.request, TARGET)


def user(*parts: cp.Part) -> cp.Message:
    return cp.Message("user", parts)


def assistant(*parts: cp.Part) -> cp.Message:
    return cp.Message("assistant", parts)


def text(words: str) -> cp.Part:
    return cp.Part("text", words)


def call(id: str, arguments: str = "{}", **fields: Any) -> cp.Part:
    return cp.Part("call", arguments, id=id, name="f", **fields)


def result(id: str, *parts: cp.Part, **fields: Any) -> cp.Part:
    return cp.Part("result", id=id, parts=parts, **fields)


def use(id: str, **given: Any) -> Json:
    return {"type": "tool_use", "id": id, "name": "f", "input": given}


def returned(id: str, words: str) -> Json:
    return {"type": "tool_result", "tool_use_id": id, "content": [says(words)]}


def says(words: str) -> Json:
    return {"type": "text", "text": words}


MISSING = {**returned("c1", "[no result]"), "is_error": True}


# ---- requests


@pytest.mark.parametrize("name", ["everything", "small", "agent"])
def test_a_request_comes_back_as_it_was(name: str) -> None:
    body = golden(f"request-{name}.json")
    before = json.dumps(body)
    request = cp.claude_read_request(body)
    target = cp.Target("claude", cp.Model(body["model"]))
    assert cp.claude_write_request(request, target) == body
    assert json.dumps(body) == before


def test_what_a_request_means() -> None:
    request = cp.claude_read_request(golden("request-everything.json"))
    assert request.dialect == "claude"
    assert request.stream
    assert request.params == {"max_tokens": 32000, "stop": ["END"], "user": "u-1"}
    assert request.thinking == cp.Thinking("high", 16000, "auto")
    assert request.format
    assert request.format.schema
    assert request.choice == cp.ToolChoice("none")
    assert [part.cache for part in request.system] == ["", "1h"]
    assert [(tool.name, tool.kind, tool.strict, tool.cache) for tool in request.tools] == [
        ("read_file", "function", True, "5m"),
        ("no_words", "function", None, ""),
        ("blank", "function", False, ""),
        ("web_search", "hosted", None, ""),
        ("bash_20250124", "hosted", None, ""),
        ("tool_search_tool_bm25_20251119", "hosted", None, "5m"),
    ]


def test_what_the_blocks_of_a_request_mean() -> None:
    messages = cp.claude_read_request(golden("request-everything.json")).messages
    assert [message.role for message in messages[:3]] == ["user", "system", "system"]
    answer, asked = messages[3].parts, messages[4].parts
    assert [(p.kind, p.text, p.proof, p.redacted) for p in answer[:3]] == [
        ("thinking", "hm", "c2ln", False),
        ("thinking", "", "ZW1wdHk=", False),
        ("thinking", "", "cmVk", True),
    ]
    assert answer[3].citations[0][:5] == ("https://e.example/a", "A", 0, 12, "c")
    assert [(p.kind, p.id, p.name, p.text) for p in answer[4:8]] == [
        ("hosted", "srvtoolu_1", "web_search", '{"query":"q"}'),
        ("hosted_result", "srvtoolu_1", "web_search", ""),
        ("hosted", "mcptoolu_1", "ask", "{}"),
        ("hosted_result", "mcptoolu_1", "mcp", ""),
    ]
    assert answer[8].text == '{"path":"ä \\" \u2028","n":1.0}'
    assert asked[0] == result("toolu_2", text("as a string"), error=True, extra=asked[0].extra)
    assert [(p.kind, p.cache) for p in asked[1].parts] == [
        ("text", ""),
        ("media", ""),
        ("opaque", ""),
        ("media", ""),
    ]
    assert [p.media for p in asked[3:9]] == [
        cp.Media("image", "url", "https://e.example/i.png"),
        cp.Media("image", "file_id", "file_1"),
        cp.Media("document", "base64", "JVBERi0=", "application/pdf", "P"),
        cp.Media("document", "url", "https://e.example/d.pdf"),
        cp.Media("document", "text", "c1\nc2", "text/plain", "C"),
        cp.Media("document", "text", "https://e.example/s\nfound", "text/plain", "S"),
    ]
    assert [p.kind for p in asked[9:]] == ["opaque", "opaque"]


THOUGHTS = [
    pytest.param({"type": "adaptive"}, {}, cp.Thinking(adaptive=True), id="adaptive"),
    pytest.param(
        {"type": "adaptive", "display": "omitted"},
        {"effort": "max"},
        cp.Thinking("max", None, "omitted", True),
        id="omitted",
    ),
    pytest.param({"type": "disabled"}, {}, cp.Thinking("none"), id="disabled"),
    pytest.param({"type": "enabled", "budget_tokens": 2048}, {}, cp.Thinking("", 2048), id="budget"),
    pytest.param(None, {"effort": "low"}, cp.Thinking("low"), id="effort alone"),
    pytest.param(None, None, cp.Thinking(), id="nothing"),
]


@pytest.mark.parametrize(("thinking", "config", "meant"), THOUGHTS)
def test_thinking(thinking: Json | None, config: Json | None, meant: cp.Thinking) -> None:
    body: Json = {"model": "m", "messages": [], "thinking": thinking, "output_config": config}
    assert cp.claude_read_request(body).thinking == meant
    written = write(thinking=meant)
    assert (written.get("thinking"), written.get("output_config")) == (thinking, config or None)


CONVERSATIONS = [
    pytest.param(
        [user(text("a")), user(text(" \n"), text("b"))],
        [("user", [says("a"), says("b")])],
        id="neighbours join, blanks go",
    ),
    pytest.param(
        [user(text("a")), assistant(text("")), user(text("b"))],
        [("user", [says("a"), says("b")])],
        id="an empty turn goes",
    ),
    pytest.param(
        [user(text("a")), assistant(cp.Part("opaque", extra={"gemini": {}})), user(text("b"))],
        [("user", [says("a"), says("b")])],
        id="a turn that cannot be written goes",
    ),
    pytest.param(
        [
            assistant(call("c1"), call("c2", '{"x":1}')),
            cp.Message("tool", (result("c2", text("two")),)),
            cp.Message("tool", (result("c1", text("one")),)),
            user(text("go")),
        ],
        [
            ("assistant", [use("c1"), use("c2", x=1)]),
            ("user", [returned("c1", "one"), returned("c2", "two"), says("go")]),
        ],
        id="all results in one turn",
    ),
    pytest.param(
        [assistant(call("c1")), user(text("stop"))],
        [("assistant", [use("c1")]), ("user", [MISSING, says("stop")])],
        id="a result is missing",
    ),
    pytest.param(
        [assistant(call("c1"))],
        [("assistant", [use("c1")]), ("user", [MISSING])],
        id="nothing follows the call",
    ),
    pytest.param(
        [assistant(call("c1")), user(result("c1", text("old"))), user(result("c1", text("new")))],
        [("assistant", [use("c1")]), ("user", [returned("c1", "new")])],
        id="the last repeat counts",
    ),
    pytest.param(
        [user(result("c9", text("lost")), text("a"))],
        [("user", [says("lost"), says("a")])],
        id="a result without a call",
    ),
    pytest.param(
        [assistant(call("c1")), assistant(text("b")), user(result("c1", text("late")))],
        [("assistant", [use("c1"), says("b")]), ("user", [returned("c1", "late")])],
        id="a late result",
    ),
    pytest.param(
        [assistant(call("c1")), cp.Message("system", (text("s"),)), user(result("c1", text("r")), text("a"))],
        [
            ("assistant", [use("c1")]),
            ("user", [returned("c1", "r")]),
            ("system", [says("s")]),
            ("user", [says("a")]),
        ],
        id="a system text between call and result",
    ),
    pytest.param(
        [
            assistant(call("c1")),
            user(result("c1", text("1"))),
            assistant(call("c1")),
            user(result("c1", text("2"))),
        ],
        [
            ("assistant", [use("c1")]),
            ("user", [returned("c1", "1")]),
            ("assistant", [use("c1")]),
            ("user", [returned("c1", "2")]),
        ],
        id="an id used twice",
    ),
    pytest.param(
        [assistant(cp.Part("refusal", "no"))], [("assistant", [says("no")])], id="a refusal is a text"
    ),
]


@pytest.mark.parametrize(("messages", "turns"), CONVERSATIONS)
def test_conversations_of_others(messages: list[cp.Message], turns: list[tuple[str, list[Json]]]) -> None:
    written = [(m["role"], m["content"]) for m in write(*messages)["messages"]]
    assert written == turns


ARGUMENTS = [
    pytest.param("", {}, id="nothing"),
    pytest.param(" ", {}, id="blank"),
    pytest.param('{"a":[1.0]}', {"a": [1.0]}, id="object"),
    pytest.param("[1]", {"input": [1]}, id="list"),
    pytest.param('"x"', {"input": "x"}, id="string"),
    pytest.param('{"a": "b', {"input": '{"a": "b'}, id="broken off"),
    pytest.param('{"a": NaN}', {"input": '{"a": NaN}'}, id="not a number"),
]


@pytest.mark.parametrize(("arguments", "given"), ARGUMENTS)
def test_arguments(arguments: str, given: Json) -> None:
    content = write(assistant(call("c1", arguments)))["messages"][0]["content"]
    assert content == [use("c1", **given)]


def test_a_free_text_call_is_wrapped_even_if_it_looks_like_json() -> None:
    content = write(assistant(call("c1", '{"a":1}', custom=True)))["messages"][0]["content"]
    assert content == [use("c1", input='{"a":1}')]


def media(kind: str, source: str, data: str, mime: str = "", name: str = "") -> cp.Message:
    return user(cp.Part("media", media=cp.Media(kind, source, data, mime, name)))


MEDIA = [
    pytest.param(
        media("image", "base64", "AA==", "image/jpg"),
        {"type": "image", "source": {"type": "base64", "media_type": "image/jpeg", "data": "AA=="}},
        id="jpeg",
    ),
    pytest.param(
        media("image", "url", "https://e.example/i", name="i.png"),
        {"type": "image", "source": {"type": "url", "url": "https://e.example/i"}},
        id="image by address",
    ),
    pytest.param(
        media("document", "base64", "JVBERi0=", "application/pdf", "p.pdf"),
        {
            "type": "document",
            "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="},
            "title": "p.pdf",
        },
        id="pdf",
    ),
    pytest.param(
        media("document", "url", "https://e.example/d"),
        {"type": "document", "source": {"type": "url", "url": "https://e.example/d"}},
        id="pdf by address",
    ),
    pytest.param(
        media("document", "base64", "w6Q=", "text/markdown", "a.md"),
        {
            "type": "document",
            "source": {"type": "text", "media_type": "text/plain", "data": "ä"},
            "title": "a.md",
        },
        id="text in base64",
    ),
    pytest.param(
        media("document", "text", "t", "text/html"),
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "t"}},
        id="text",
    ),
]


@pytest.mark.parametrize(("message", "block"), MEDIA)
def test_media(message: cp.Message, block: Json) -> None:
    assert write_fitted(message)["messages"][0]["content"] == [block]


REFUSED = [
    pytest.param(media("audio", "base64", "AA==", "audio/wav"), "chat", "messages", "audio", id="audio"),
    pytest.param(media("video", "url", "https://e.example/v"), "gemini", "contents", "video", id="video"),
    pytest.param(
        media("image", "base64", "AA==", "image/tiff"), "responses", "input", "image/tiff", id="tiff"
    ),
    pytest.param(media("document", "base64", "AA==", "application/zip"), "chat", "messages", "zip", id="zip"),
    pytest.param(media("document", "file_id", "file-1"), "responses", "input", "file-1", id="foreign file"),
]


@pytest.mark.parametrize(("message", "dialect", "field", "word"), REFUSED)
def test_media_that_claude_cannot_take(message: cp.Message, dialect: str, field: str, word: str) -> None:
    with pytest.raises(cp.ProxyError, match=word) as caught:
        write_fitted(message, dialect)
    assert (caught.value.kind, caught.value.param) == ("invalid_request", field)


CHOICES = [
    pytest.param(None, {}, None, id="none given"),
    pytest.param(cp.ToolChoice("auto"), {}, {"type": "auto"}, id="auto"),
    pytest.param(cp.ToolChoice("none"), {"parallel": False}, {"type": "none"}, id="none"),
    pytest.param(cp.ToolChoice("required"), {"parallel": True}, {"type": "any"}, id="any"),
    pytest.param(cp.ToolChoice("required", ("f",)), {}, {"type": "tool", "name": "f"}, id="one"),
    pytest.param(cp.ToolChoice("required", ("f", "g")), {}, {"type": "any"}, id="some"),
    pytest.param(
        None, {"parallel": False}, {"type": "auto", "disable_parallel_tool_use": True}, id="one by one"
    ),
    pytest.param(
        cp.ToolChoice("required", ("f",)),
        {"parallel": False},
        {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
        id="just one",
    ),
]


@pytest.mark.parametrize(("choice", "params", "field"), CHOICES)
def test_tool_choice(choice: cp.ToolChoice | None, params: Json, field: Json | None) -> None:
    written = write(tools=(cp.Tool("f"), cp.Tool("g")), choice=choice, params=params)
    assert written.get("tool_choice") == field
    assert "tool_choice" not in write(choice=choice, params=params)  # without tools: refused


@pytest.mark.parametrize("field", [row.values[2] for row in CHOICES if row.values[2]])
def test_reading_tool_choice(field: Json) -> None:
    body = {"model": "m", "messages": [], "tools": [{"name": "f"}], "tool_choice": field}
    request = cp.claude_read_request(body)
    assert request.choice
    assert request.choice.names == ((field["name"],) if "name" in field else ())
    assert cp.claude_write_request(request, TARGET)["tool_choice"] == field


TOOLS = [
    pytest.param(
        cp.Tool("f"), {"name": "f", "input_schema": {"type": "object", "properties": {}}}, id="no arguments"
    ),
    pytest.param(
        cp.Tool("f", "d", {"properties": {"a": {}}}, strict=True, cache="1h"),
        {
            "name": "f",
            "description": "d",
            "input_schema": {"type": "object", "properties": {"a": {}}},
            "strict": True,
            "cache_control": {"type": "ephemeral", "ttl": "1h"},
        },
        id="all fields",
    ),
    pytest.param(
        cp.Tool(
            "f",
            schema={
                "anyOf": [
                    {"properties": {"a": {}, "b": {}}, "required": ["a", "b"]},
                    {"properties": {"b": {}, "c": {}}, "required": ["b"]},
                ]
            },
        ),
        {
            "name": "f",
            "input_schema": {"type": "object", "properties": {"a": {}, "b": {}, "c": {}}, "required": ["b"]},
        },
        id="any of",
    ),
    pytest.param(
        cp.Tool(
            "f",
            schema={"allOf": [{"required": ["a"]}, {"required": ["b"]}], "properties": {"a": {}, "b": {}}},
        ),
        {
            "name": "f",
            "input_schema": {"type": "object", "properties": {"a": {}, "b": {}}, "required": ["a", "b"]},
        },
        id="all of",
    ),
    pytest.param(
        cp.Tool(
            "web_search",
            kind="hosted",
            extra={
                "responses": {
                    "type": "web_search",
                    "filters": {"allowed_domains": ["e.example"]},
                    "user_location": {"type": "approximate", "city": "X"},
                }
            },
        ),
        {
            "type": "web_search_20250305",
            "name": "web_search",
            "allowed_domains": ["e.example"],
            "user_location": {"type": "approximate", "city": "X"},
        },
        id="search of Responses",
    ),
    pytest.param(
        cp.Tool(
            "web_search",
            kind="hosted",
            extra={
                "chat": {
                    "search_context_size": "low",
                    "user_location": {"type": "approximate", "approximate": {"city": "X"}},
                }
            },
        ),
        {
            "type": "web_search_20250305",
            "name": "web_search",
            "user_location": {"type": "approximate", "city": "X"},
        },
        id="search of Chat",
    ),
    pytest.param(
        cp.Tool("web_search", kind="hosted", extra={"gemini": {"googleSearch": {}}}),
        {"type": "web_search_20250305", "name": "web_search"},
        id="search of Gemini",
    ),
    pytest.param(
        cp.Tool("file_search", kind="hosted", extra={"responses": {"type": "file_search"}}),
        None,
        id="not here",
    ),
]


@pytest.mark.parametrize(("tool", "written"), TOOLS)
def test_tools(tool: cp.Tool, written: Json | None) -> None:
    assert write(tools=(tool,)).get("tools", [None]) == [written]


PARAMS = [
    pytest.param(
        {"temperature": 1.7, "top_p": 0.5, "top_k": 3},
        cp.Thinking(),
        {"temperature": 1, "top_k": 3},
        id="hot",
    ),
    pytest.param({"top_p": 0.5}, cp.Thinking("none"), {"top_p": 0.5}, id="nucleus"),
    pytest.param({"temperature": 0.2, "top_k": 3}, cp.Thinking("", 2048), {}, id="thinking"),
    pytest.param({"top_p": 0.5}, cp.Thinking(adaptive=True), {}, id="adaptive"),
    pytest.param({"top_p": 0.97}, cp.Thinking("", 2048), {"top_p": 0.97}, id="thinking with a wide nucleus"),
    pytest.param(
        {"temperature": 0, "max_tokens": 0},
        cp.Thinking(),
        {"temperature": 0, "max_tokens": 0},
        id="zeros stay",
    ),
    pytest.param({"stop": ["", " ", "X"]}, cp.Thinking(), {"stop_sequences": ["X"]}, id="blank stops"),
    pytest.param({"stop": ["\n"], "seed": 1, "n": 1}, cp.Thinking(), {}, id="what Claude lacks"),
]


@pytest.mark.parametrize(("params", "thinking", "fields"), PARAMS)
def test_params(params: Json, thinking: cp.Thinking, fields: Json) -> None:
    written = write(params=params, thinking=thinking)
    asked = ("model", "messages", "thinking", "output_config")
    assert {key: value for key, value in written.items() if key not in asked} == fields


def test_the_rest_of_a_foreign_request() -> None:
    written = write(
        user(text("q")),
        system=(text("S"), text("D")),
        params={"user": "u"},
        format=cp.Format("json"),
        stream=True,
        extra={"chat": {"prediction": 1}},
    )
    assert written == {
        "model": "claude-opus-4-5",
        "messages": [{"role": "user", "content": [says("q")]}],
        "system": [says("S"), says("D"), says("Answer with one JSON object only.")],
        "metadata": {"user_id": "u"},
        "stream": True,
    }


def test_a_schema_for_the_answer() -> None:
    written = write(format=cp.Format("schema", "n", {"type": "object"}, strict=True))
    assert written["output_config"] == {"format": {"type": "json_schema", "schema": {"type": "object"}}}


def test_citations_go_back_only_to_who_made_them() -> None:
    own = cp.Citation("u", "t", extra={"claude": {"type": "page_location"}})
    handed_out = cp.Citation(
        "u", extra={"claude": {"type": "web_search_result_location", "encrypted_index": ""}}
    )
    part = text("a")._replace(citations=(own, handed_out, cp.Citation("u")))
    content = write(assistant(part))["messages"][0]["content"]
    assert content == [{**says("a"), "citations": [{"type": "page_location"}]}]


BAD = [
    pytest.param({"messages": []}, id="no model"),
    pytest.param({"model": "m"}, id="no messages"),
    pytest.param({"model": "m", "messages": ["hi"]}, id="message is no object"),
    pytest.param({"model": "m", "messages": [{"role": "user"}]}, id="no content"),
    pytest.param({"model": "m", "messages": [{"role": "user", "content": [{"text": "x"}]}]}, id="no type"),
    pytest.param({"model": "m", "messages": [{"role": "user", "content": 5}]}, id="content is a number"),
]


@pytest.mark.parametrize("body", BAD)
def test_malformed_requests(body: Json) -> None:
    with pytest.raises((KeyError, TypeError, AttributeError, ValueError, cp.ProxyError)):
        cp.claude_read_request(body)


# ---- answers

STREAMS = ["everything", "refusal", "omitted", "stopped"]


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_comes_back_as_it_was(name: str, piece: int) -> None:
    data = (DATA / f"{name}.sse").read_bytes()
    written = write_stream(read_stream(data, piece))
    validate(written)
    assert cp.collect(read_stream(written)) == cp.collect(read_stream(data))


def test_a_stream_and_a_full_answer_mean_the_same() -> None:
    streamed = cp.collect(read_stream((DATA / "everything.sse").read_bytes()))
    whole = cp.collect(cp.claude_read_response(golden("everything.json"), ASKED))
    calls = [part.text for part in streamed.choices[0].parts if part.kind in {"call", "hosted"}]
    assert calls == ['{"query": "q"}', "{}", '{"a": 1}']  # as they came; compact in the full one
    assert [p._replace(text="") for p in streamed.choices[0].parts] == [
        p._replace(text="") for p in whole.choices[0].parts
    ]
    assert (streamed.start, streamed.usage) == (whole.start, whole.usage)
    assert streamed.choices[0].end == whole.choices[0].end


def test_a_full_answer_comes_back_as_it_was() -> None:
    body = golden("everything.json")
    assert cp.claude_write_response(cp.collect(cp.claude_read_response(body, ASKED)), ASKED) == body


def test_the_events_of_a_stream() -> None:
    events = list(read_stream((DATA / "everything.sse").read_bytes()))
    begun = cp.MessageStart("msg_1", "claude-opus-4-5", usage=events[1])  # type: ignore[arg-type]
    assert events[0] == begun
    starts = [event for event in events if isinstance(event, cp.PartStart)]
    assert [event.at for event in starts] == list(range(9))  # the empty text block is gone
    assert [event.part.kind for event in starts] == [
        "thinking",
        "thinking",
        "text",
        "hosted",
        "hosted_result",
        "text",
        "opaque",
        "call",
        "call",
    ]
    assert all(not event.part.text and not event.part.proof for event in starts)
    assert events[-1] == cp.MessageEnd(
        "tool_calls", "", "tool_use", extra={"claude": {"container": {"id": "c1"}}}
    )
    usage = [event for event in events if isinstance(event, cp.Usage)][-1]
    assert usage[:5] == (115, 100, 5, 40, 30)
    opaque = starts[6].part.extra["claude"]
    assert opaque == {"type": "compaction", "content": "summary"}


def test_parts_never_overlap() -> None:
    open_at = None
    for event in read_stream((DATA / "everything.sse").read_bytes()):
        if isinstance(event, cp.PartStart):
            assert open_at is None
            open_at = event.at
        elif isinstance(event, (cp.PartDelta, cp.PartEnd)):
            assert event.at == open_at
            open_at = None if isinstance(event, cp.PartEnd) else open_at


def test_a_message_that_is_whole_in_its_start() -> None:
    response = cp.collect(read_stream((DATA / "after-tool.sse").read_bytes()))
    (choice,) = response.choices
    assert [(part.id, part.text) for part in choice.parts] == [("toolu_9", '{"x":2}')]
    assert choice.end.finish == "tool_calls"


def test_a_call_that_was_cut_short() -> None:
    data = (DATA / "cut-call.sse").read_bytes()
    response = cp.collect(read_stream(data))
    assert response.choices[0].end.finish == "length"
    validate(write_stream(read_stream(data)), truncated=True)
    body = cp.claude_write_response(response, ASKED)
    assert body["content"][0]["input"] == {"input": '{"a": "b'}


def sse(*payloads: Json) -> bytes:
    return b"".join(cp.sse_frame(payload, payload["type"]) for payload in payloads)


def begun(**usage: Any) -> Json:
    return {"type": "message_start", "message": {"id": "msg_1", "model": "m", "usage": usage}}


def block(kind: str, **fields: Any) -> Json:
    return {"type": "content_block_start", "index": 0, "content_block": {"type": kind, **fields}}


def delta(kind: str, **fields: Any) -> Json:
    return {"type": "content_block_delta", "index": 0, "delta": {"type": kind, **fields}}


CLOSED: Json = {"type": "content_block_stop", "index": 0}
STOP: Json = {"type": "message_stop"}
WORDS = (block("text", text=""), delta("text_delta", text="par"))


def ended(reason: str | None) -> Json:
    return {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": 1}}


FINISHES = [
    pytest.param((*WORDS, CLOSED, ended("end_turn"), STOP), "stop", "end_turn", id="stop"),
    pytest.param((*WORDS, CLOSED, ended("pause_turn"), STOP), "stop", "pause_turn", id="pause"),
    pytest.param((*WORDS, CLOSED, ended("max_tokens"), STOP), "length", "max_tokens", id="length"),
    pytest.param(
        (*WORDS, CLOSED, ended("model_context_window_exceeded"), STOP),
        "length",
        "model_context_window_exceeded",
        id="context",
    ),
    pytest.param((*WORDS, CLOSED, ended("refusal"), STOP), "content_filter", "refusal", id="refusal"),
    pytest.param(
        (*WORDS, CLOSED, ended("compaction"), STOP), "stop", "compaction", id="a word we do not know"
    ),
    pytest.param(
        (block("tool_use", id="t", name="f"), CLOSED, ended("tool_use"), STOP),
        "tool_calls",
        "tool_use",
        id="call",
    ),
    pytest.param(
        (block("tool_use", id="t", name="f"), CLOSED, ended("end_turn"), STOP),
        "tool_calls",
        "tool_use",
        id="call that says stop",
    ),
    pytest.param(
        (block("tool_use", id="t", name="f"), CLOSED, ended("max_tokens"), STOP),
        "length",
        "max_tokens",
        id="length before call",
    ),
    pytest.param((*WORDS, CLOSED, ended("end_turn")), "stop", "end_turn", id="no message_stop"),
    pytest.param((*WORDS, CLOSED, STOP), "stop", "end_turn", id="no message_delta"),
    pytest.param((*WORDS, ended("end_turn"), STOP), "stop", "end_turn", id="no content_block_stop"),
    pytest.param(
        (*WORDS, block("text"), delta("text_delta", text="x"), ended(None), STOP),
        "stop",
        "end_turn",
        id="nothing ends",
    ),
]


@pytest.mark.parametrize(("payloads", "finish", "word"), FINISHES)
def test_finish_reasons(payloads: tuple[Json, ...], finish: str, word: str) -> None:
    data = sse(begun(input_tokens=3), *payloads)
    assert cp.collect(read_stream(data)).choices[0].end.finish == finish
    events = validate(write_stream(read_stream(data)))
    assert events[-2]["delta"]["stop_reason"] == word


FAILURES = [
    pytest.param(
        [{"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}],
        "overloaded",
        "busy",
        id="overloaded",
    ),
    pytest.param(
        [{"type": "error", "error": {"type": "api_error", "message": "bug"}}],
        "upstream_error",
        "bug",
        id="bug",
    ),
    pytest.param(
        [{"type": "error", "error": {"type": "new_error", "message": "new"}}],
        "upstream_error",
        "new",
        id="a type we do not know",
    ),
    pytest.param([], "upstream_failed", "message_stop", id="cut"),
]


@pytest.mark.parametrize(("payloads", "kind", "words"), FAILURES)
@pytest.mark.parametrize("before", [(), (begun(),), (begun(), *WORDS)], ids=["first", "early", "late"])
def test_failures(before: tuple[Json, ...], payloads: list[Json], kind: str, words: str) -> None:
    data = sse(*before, *payloads)
    with pytest.raises(cp.ProxyError, match=words) as caught:
        cp.collect(read_stream(data))
    assert caught.value.kind == kind
    if not before:
        with pytest.raises(cp.ProxyError):
            write_stream(read_stream(data))
        return
    events = validate_failure(write_stream(read_stream(data)))
    assert events[-1]["error"]["type"] == cp.KINDS[kind].claude


def test_two_answers_in_one_stream() -> None:
    """A gateway that begins anew in mid-answer: nothing of it may pass as whole."""
    data = sse(begun(), *WORDS, begun(), *WORDS, CLOSED, ended("end_turn"), STOP)
    events = validate_failure(write_stream(read_stream(data)))
    assert "second answer" in events[-1]["error"]["message"]


def test_usage_overwrites() -> None:
    data = sse(
        begun(input_tokens=9, cache_read_input_tokens=2, output_tokens=1, service_tier="standard"),
        {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 3}},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn"},
            "usage": {
                "input_tokens": 4,
                "cache_creation_input_tokens": 1,
                "cache_read_input_tokens": None,
                "output_tokens": 5,
            },
        },
        STOP,
    )
    usage = cp.collect(read_stream(data)).usage
    assert usage == cp.Usage(7, 2, 1, 5, extra={"claude": {"service_tier": "standard"}})


# ---- answers of other dialects


def events_of(*parts: cp.Part, end: cp.MessageEnd = cp.MessageEnd("stop")) -> Iterator[cp.Event]:  # noqa: B008
    yield cp.MessageStart("", "")
    for at, part in enumerate(parts):
        yield from cp.part_events(at, part)
    yield end
    yield cp.Usage(115, 100, 0, 7)


URL = cp.Citation("https://e.example", "E", 0, 1, "c")
FOREIGN = [
    pytest.param([text("hi")], [says("hi")], id="text"),
    pytest.param([text("\n\n"), text("hi")], [says("\n\n"), says("hi")], id="blank text"),
    pytest.param(
        [cp.Part("thinking", "t", proof="tag")],
        [{"type": "thinking", "thinking": "t", "signature": "tag"}],
        id="thinking",
    ),
    pytest.param(
        [cp.Part("thinking", "t")], [{"type": "thinking", "thinking": "t", "signature": ""}], id="unsigned"
    ),
    pytest.param(
        [cp.Part("thinking", proof="tag")],
        [{"type": "thinking", "thinking": "", "signature": "tag"}],
        id="proof alone",
    ),
    pytest.param(
        [cp.Part("thinking", proof="tag", redacted=True)],
        [{"type": "redacted_thinking", "data": "tag"}],
        id="redacted",
    ),
    pytest.param([call("c1", '{"a":1}'), call("c2", "")], [use("c1", a=1), use("c2")], id="calls"),
    pytest.param([cp.Part("refusal", "no")], [says("no")], id="refusal"),
    pytest.param(
        [text("a")._replace(citations=(URL,))],
        [
            {
                **says("a"),
                "citations": [
                    {
                        "type": "web_search_result_location",
                        "url": "https://e.example",
                        "title": "E",
                        "cited_text": "c",
                        "encrypted_index": "",
                    }
                ],
            }
        ],
        id="citation",
    ),
    pytest.param(
        [
            text("a"),
            cp.Part("hosted", "{}", "ws_1", "web_search", extra={"responses": {}}),
            cp.Part("opaque", extra={"gemini": {}}),
            call("c1"),
        ],
        [says("a"), use("c1")],
        id="of others only",
    ),
    pytest.param(
        [cp.Part("media", media=cp.Media("image", "base64", "AA==", "image/png"))], [], id="picture"
    ),
]


@pytest.mark.parametrize(("parts", "content"), FOREIGN)
def test_answers_of_others(parts: list[cp.Part], content: list[Json]) -> None:
    body = cp.claude_write_response(cp.collect(events_of(*parts)), ASKED)
    assert body["content"] == content
    validate(write_stream(events_of(*parts)))
    again = cp.collect(read_stream(write_stream(events_of(*parts))))
    assert cp.claude_write_response(again, ASKED)["content"] == content


def test_usage_that_comes_last() -> None:
    *_, last, stop = validate(write_stream(events_of(text("hi"))))
    assert stop == STOP
    assert last["usage"] == {
        "input_tokens": 15,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 100,
        "output_tokens": 7,
    }


def test_a_message_without_a_name_gets_the_same_one_each_time() -> None:
    first, second = (cp.claude_write_response(cp.collect(events_of()), ASKED) for _ in range(2))
    assert first == second
    assert first["id"].startswith("msg_")
    assert (first["model"], first["content"]) == ("claude-opus-4-5", [])


ENDS = [
    pytest.param(cp.MessageEnd("stop", "END"), "stop_sequence", "END", id="stop sequence"),
    pytest.param(cp.MessageEnd("length", raw="length"), "max_tokens", None, id="length"),
    pytest.param(cp.MessageEnd("content_filter", raw="SAFETY"), "refusal", None, id="filter"),
    pytest.param(cp.MessageEnd("tool_calls", raw="stop"), "tool_use", None, id="calls"),
    pytest.param(cp.MessageEnd("error", raw="OTHER"), "end_turn", None, id="error"),
]


@pytest.mark.parametrize(("end", "reason", "sequence"), ENDS)
def test_ends(end: cp.MessageEnd, reason: str, sequence: str | None) -> None:
    body = cp.claude_write_response(cp.collect(events_of(text("x"), end=end)), ASKED)
    assert (body["stop_reason"], body["stop_sequence"]) == (reason, sequence)
    last = validate(write_stream(events_of(text("x"), end=end)))[-2]
    assert last["delta"] == {"stop_reason": reason, "stop_sequence": sequence}


def test_a_signature_is_last_even_if_it_was_first() -> None:
    events: list[cp.Event] = [
        cp.MessageStart("m", "m"),
        cp.PartStart(0, cp.Part("thinking")),
        cp.PartDelta(0, "proof", "tag"),
        cp.PartDelta(0, "text", "t"),
        cp.PartEnd(0),
        cp.MessageEnd("stop"),
    ]
    validate(write_stream(events))
    content = cp.claude_write_response(cp.collect(read_stream(write_stream(events))), ASKED)["content"]
    assert content == [{"type": "thinking", "thinking": "t", "signature": "tag"}]


def test_nothing_is_held_back() -> None:
    """Each event's frame is out before the next event is asked for."""
    pulled: list[cp.Event] = []

    def watch() -> Iterator[cp.Event]:
        for event in events_of(text("hi"), call("c1", "{}")):
            pulled.append(event)
            yield event

    frames = cp.claude_write_stream(watch(), ASKED)
    expected = [
        cp.MessageStart,
        cp.PartStart,
        cp.PartDelta,
        cp.PartEnd,
        cp.PartStart,
        cp.PartDelta,
        cp.PartEnd,
        cp.Usage,
    ]
    for kind in expected:
        assert next(frames)
        assert type(pulled[-1]) is kind
    assert list(frames) == []


# ---- errors

ERRORS = [
    pytest.param(
        529, {"error": {"type": "overloaded_error", "message": "busy"}}, "overloaded", "busy", id="529"
    ),
    pytest.param(529, None, "overloaded", "busy", id="529 in HTML"),
    pytest.param(
        429, {"error": {"type": "rate_limit_error", "message": "slow"}}, "rate_limited", "slow", id="429"
    ),
    pytest.param(
        400,
        {"error": {"type": "invalid_request_error", "message": "bad"}},
        "invalid_request",
        "bad",
        id="400",
    ),
    pytest.param(
        400,
        {"error": {"type": "invalid_request_error", "message": "prompt is too long: 9 > 8"}},
        "context_too_long",
        "too long",
        id="too long",
    ),
    pytest.param(
        400,
        {"error": {"type": "invalid_request_error", "message": "Your credit balance is too low"}},
        "billing",
        "credit",
        id="no credit",
    ),
    pytest.param(
        401, {"error": {"type": "authentication_error", "message": "no"}}, "unauthorized", "no", id="401"
    ),
    pytest.param(500, {"error": {"type": "api_error", "message": "bug"}}, "upstream_error", "bug", id="500"),
    pytest.param(
        504, {"error": {"type": "timeout_error", "message": "late"}}, "upstream_timeout", "late", id="504"
    ),
    pytest.param(403, {"error": "no"}, "forbidden", "no", id="a text"),
    pytest.param(404, {"message": "where"}, "not_found", "where", id="no error object"),
    pytest.param(404, {"detail": "where"}, "not_found", "where", id="detail"),
    pytest.param(503, [], "overloaded", "status 503", id="a list"),
    pytest.param(418, {}, "invalid_request", "status 418", id="a teapot"),
]


@pytest.mark.parametrize(("status", "body", "kind", "words"), ERRORS)
def test_reading_errors(status: int, body: Any, kind: str, words: str) -> None:
    data = b"<html>busy</html>" if body is None else json.dumps(body).encode()
    error = cp.claude_read_error(status, data)
    assert (error.kind, error.status) == (kind, status)
    assert words in str(error)


@pytest.mark.parametrize("kind", cp.KINDS)
def test_writing_errors(kind: str) -> None:
    body = cp.claude_write_error(cp.ProxyError(kind, "why"))
    check_error(body)
    why = "prompt is too long: why" if kind == "context_too_long" else "why"
    assert body == {"type": "error", "error": {"type": cp.KINDS[kind].claude, "message": why}}


def test_an_error_instead_of_a_full_answer() -> None:
    with pytest.raises(cp.ProxyError, match="busy") as caught:
        list(
            cp.claude_read_response(
                {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}, ASKED
            )
        )
    assert caught.value.kind == "overloaded"


# ---- recordings, where they are

shared = pytest.mark.shared
absent = pytest.mark.skipif(not SHARED.is_dir(), reason="no recordings beside the repository")


def recorded(folder: str) -> list[Path]:
    return sorted((SHARED / folder).glob("*.json"))


@shared
@absent
@pytest.mark.parametrize("path", recorded("requests/dev/messages"), ids=lambda path: path.stem)
def test_recorded_requests(path: Path) -> None:
    body = json.loads(path.read_bytes())["body"]
    target = cp.Target("claude", cp.Model(body["model"]))
    assert cp.claude_write_request(cp.claude_read_request(body), target) == body


@shared
@absent
@pytest.mark.parametrize("path", recorded("dev/messages"), ids=lambda path: path.stem)
def test_recorded_answers(path: Path) -> None:
    answer = json.loads(path.read_bytes())["response"]
    if "sse" not in answer:
        check_recorded_body(answer["body"])
        return
    data = answer["sse"].encode()
    truth = cp.collect(read_stream(data))
    for piece in (1, 7, 1 << 20):
        written = write_stream(read_stream(data, piece))
        validate(written)
        assert cp.collect(read_stream(written, piece)) == truth


def check_recorded_body(body: Json) -> None:
    if body["type"] == "error":
        with pytest.raises(cp.ProxyError):
            list(cp.claude_read_response(body, ASKED))
        return
    truth = cp.collect(cp.claude_read_response(body, ASKED))
    written = cp.claude_write_response(truth, ASKED)
    assert cp.collect(cp.claude_read_response(written, ASKED)) == truth
    assert {key: written.get(key) for key in body} == body
    validate(write_stream(cp.claude_read_response(body, ASKED)))


def test_a_reason_at_the_start_of_a_stream_is_not_its_end() -> None:
    """After a tool of the server the message comes with the reason that the last one stopped for."""
    message = {**begun()["message"], "stop_reason": "tool_use"}
    with pytest.raises(cp.ProxyError, match="message_stop"):
        cp.collect(read_stream(sse({**begun(), "message": message}, *WORDS)))
