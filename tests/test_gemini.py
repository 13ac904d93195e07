"""The Gemini room: requests, answers, streams and errors, both ways."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import cliproxy as cp
from support.validate_gemini import Json, validate_response, validate_stream

DATA = Path(__file__).parent / "data" / "gemini"
SHARED = Path(__file__).parents[2] / "shared" / "recordings"
NEW = cp.Target("gemini", cp.Model("gemini-3-pro-preview"))
OLD = cp.Target("gemini", cp.Model("gemini-2.5-flash"))
OPENAPI = cp.Target("gemini", cp.Model("gemini-3-flash"), frozenset({"openapi-schema"}))
SSE = cp.Request("gemini", "gemini-3-pro", (), extra={"gemini": {"_alt": "sse"}}, id="r")
ARRAY = SSE._replace(extra={})
STREAMS = sorted(DATA.glob("stream-*.sse"))


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def read(data: bytes, size: int = 1 << 20) -> cp.Response:
    return cp.collect(cp.gemini_read_stream(cp.sse_read(pieces(data, size)), SSE))


def write(events: Any, request: cp.Request = SSE) -> bytes:
    return b"".join(cp.gemini_write_stream(events, request))


def ask(**fields: Any) -> cp.Request:
    """Read a body with these fields."""
    return cp.gemini_read_request({"model": "m", "contents": [], **fields})


def from_chat(*messages: tuple[str, list[cp.Part]], **fields: Any) -> cp.Request:
    return cp.Request(
        "chat", "m", tuple(cp.Message(role, tuple(parts)) for role, parts in messages), **fields
    )


def contents(request: cp.Request, target: cp.Target = NEW) -> list[Json]:
    found: list[Json] = cp.gemini_write_request(request, target)["contents"]
    return found


def text(words: str, **fields: Any) -> cp.Part:
    return cp.Part("text", words, **fields)


def result(call_id: str, *parts: cp.Part, **fields: Any) -> cp.Part:
    return cp.Part("result", id=call_id, parts=parts, **fields)


IMAGE = cp.Part("media", media=cp.Media("image", "base64", "AAAA", "image/png"))


# --- reading requests ---


@pytest.mark.parametrize("path", sorted(DATA.glob("request-*.json")), ids=lambda p: p.stem)
def test_requests_come_back_as_they_were(path: Path) -> None:
    body = json.loads(path.read_text())
    before = json.dumps(body)
    assert cp.gemini_write_request(cp.gemini_read_request(body), OLD) == body
    assert json.dumps(body) == before  # the argument is not touched


def snake(value: Any) -> Any:
    """Respell every key that we know, wherever it is ours."""
    if isinstance(value, list):
        return [snake(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        re.sub("[A-Z]", lambda m: "_" + m[0].lower(), key): item if key in cp.GEMINI_OPAQUE else snake(item)
        for key, item in value.items()
    }


def test_snake_case_is_read_and_the_users_keys_are_left_alone() -> None:
    body = json.loads((DATA / "request-everything.json").read_text())
    request = cp.gemini_read_request(snake(body))
    assert request == cp.gemini_read_request(body)
    assert cp.gemini_write_request(request, OLD) == body


def test_everything_is_understood() -> None:
    request = cp.gemini_read_request(json.loads((DATA / "request-everything.json").read_text()))
    user, model, answers, last = request.messages
    assert [part.kind for part in user.parts] == ["text", "media", "media", "media", "opaque"]
    media = [part.media for part in user.parts if part.media]
    assert [(m.kind, m.source) for m in media] == [
        ("image", "base64"),
        ("video", "url"),
        ("document", "file_id"),
    ]
    assert [(p.kind, p.text, p.proof) for p in model.parts[:3]] == [
        ("thinking", "Hm.", "VDE="),
        ("text", "I will look it up.", "VDI="),  # signed, and no thought
        ("hosted", '{"language":"PYTHON","code":"print(1)"}', "VDM="),
    ]
    calls, results = model.parts[4:], answers.parts
    assert calls[0].id == "c1"
    assert re.fullmatch(r"call_1_5_[0-9a-f]{8}", calls[1].id)
    assert [r.id for r in results] == [c.id for c in calls]
    assert [cp.text_of(r.parts) for r in results] == ['{"a": 1}', '{"output":{"a":[1,null]}}', "no such file"]
    assert [r.error for r in results] == [False, False, True]
    assert results[2].parts[1].media
    assert last.role == "user"
    assert [part.text for part in request.system] == ["Be brief.", "Be kind."]
    assert [(t.name, t.kind) for t in request.tools] == [
        ("find", "function"), ("open", "function"), ("stop", "function"),
        ("web_search", "hosted"), ("fileSearch", "hosted"), ("web_fetch", "hosted"),
    ]  # fmt: skip
    properties = {"mime_type": {"type": ["string", "null"]}, "_id": {"type": "string"}}
    assert request.tools[0].schema == {"type": "object", "properties": properties}
    assert request.tools[2].schema is None
    assert request.choice == cp.ToolChoice("auto", ("find",))
    assert request.thinking == cp.Thinking("", 512, "auto")
    assert request.format == cp.Format(
        "schema", schema={"type": "object", "properties": {"a": {"type": "integer"}}}
    )
    assert request.params["stop"] == ["END"]
    assert request.stream


SYSTEMS = [
    pytest.param("S", ["S"], id="text"),
    pytest.param({"text": "S"}, ["S"], id="part"),
    pytest.param({"parts": {"text": "S"}}, ["S"], id="one part for all"),
    pytest.param({"parts": [{"text": "S"}, {"text": "T"}]}, ["S", "T"], id="content"),
    pytest.param(None, [], id="null"),
]


@pytest.mark.parametrize(("system", "texts"), SYSTEMS)
def test_system_instructions(system: Any, texts: list[str]) -> None:
    assert [part.text for part in ask(systemInstruction=system).system] == texts


THINKING = [
    pytest.param({"thinkingLevel": "low"}, cp.Thinking("low"), id="any case"),
    pytest.param({"thinking_level": "MINIMAL", "include_thoughts": False}, cp.Thinking("minimal", None, "omitted"), id="snake"),
    pytest.param({"thinkingLevel": "THINKING_LEVEL_UNSPECIFIED"}, cp.Thinking(), id="unspecified is unset"),
    pytest.param({"thinkingLevel": "GALACTIC"}, cp.Thinking(), id="unknown level"),
    pytest.param({"thinkingBudget": -1}, cp.Thinking("", -1), id="the model decides"),
]  # fmt: skip


@pytest.mark.parametrize(("config", "thinking"), THINKING)
def test_thinking_is_read(config: Json, thinking: cp.Thinking) -> None:
    assert ask(generationConfig={"thinkingConfig": config}).thinking == thinking


SCHEMAS = [
    pytest.param({"type": "ARRAY", "items": {"type": "STRING"}, "minItems": "2"},
                 {"type": "array", "items": {"type": "string"}, "minItems": 2}, id="counts are numbers"),
    pytest.param({"any_of": [{"type": "STRING"}, {"type": "NUMBER", "nullable": False}], "propertyOrdering": ["a"]},
                 {"anyOf": [{"type": "string"}, {"type": "number"}]}, id="snake case keywords"),
    pytest.param({"type": "OBJECT", "properties": {"nullable": {"type": "BOOLEAN"}, "type": {"enum": ["OBJECT"]}}},
                 {"type": "object", "properties": {"nullable": {"type": "boolean"}, "type": {"enum": ["OBJECT"]}}},
                 id="names of properties are names"),
    pytest.param({"type": ["STRING"], "$defs": {"A": {"type": "OBJECT"}}, "additionalProperties": {"type": "STRING"}},
                 {"type": ["STRING"], "$defs": {"A": {"type": "object"}}, "additionalProperties": {"type": "string"}},
                 id="schemas by name"),
]  # fmt: skip


@pytest.mark.parametrize(("openapi", "schema"), SCHEMAS)
def test_schemas(openapi: Json, schema: Json) -> None:
    assert cp.gemini_schema(openapi) == schema


def call(name: str, **fields: Any) -> Json:
    return {"functionCall": {"name": name, "args": {}, **fields}}


def answer(name: str, value: str, **fields: Any) -> Json:
    return {"functionResponse": {"name": name, "response": {"output": value}, **fields}}


PAIRS = [  # of turns, the calls answered (by number) and the words
    pytest.param([[call("f"), call("f")], [answer("f", "A"), answer("f", "B")]], [(0, "A"), (1, "B")], id="in order"),
    pytest.param([[call("f"), call("g")], [answer("g", "G"), answer("f", "F")]], [(1, "G"), (0, "F")], id="by name"),
    pytest.param([[call("f", id="1"), call("f", id="2")], [answer("f", "B", id="2"), answer("f", "A", id="1")]],
                 [(1, "B"), (0, "A")], id="by id"),
    pytest.param([[call("f"), call("f")], [answer("f", "A", id="x"), answer("f", "B", id="y")]],
                 [(0, "A"), (1, "B")], id="ids in responses only"),
    pytest.param([[call("f", id="1"), call("f", id="2")], [answer("f", "A"), answer("f", "B")]],
                 [(0, "A"), (1, "B")], id="ids in calls only"),
    pytest.param([[call("f", id="1")], [answer("f", "A", id="1"), answer("f", "A", id="1")]], [(0, "A")], id="repeated"),
    pytest.param([[call("f")], [answer("f", "A"), answer("f", "A")]], [(0, "A")], id="repeated without ids"),
    pytest.param([[call("f"), call("g")], [answer("f", "A")], [answer("g", "B")]], [(0, "A"), (1, "B")], id="split"),
    pytest.param([[call("f")], [answer("f", "A")], [call("f")], [answer("f", "B")]], [(0, "A"), (1, "B")], id="nearest"),
]  # fmt: skip


@pytest.mark.parametrize(("wire", "pairs"), PAIRS)
def test_calls_and_responses_are_paired(wire: list[list[Json]], pairs: list[tuple[int, str]]) -> None:
    roles = ["model" if "functionCall" in parts[0] else "user" for parts in wire]
    body = {"model": "m", "contents": [{"role": r, "parts": p} for r, p in zip(roles, wire)], "stream": False}
    request = cp.gemini_read_request(body)
    parts = [part for message in request.messages for part in message.parts]
    ids = [part.id for part in parts if part.kind == "call"]
    assert len(set(ids)) == len(ids)
    found = [(ids.index(part.id), cp.text_of(part.parts)) for part in parts if part.kind == "result"]
    assert found == pairs
    assert request == cp.gemini_read_request(body)
    if "repeated" not in str(pairs) and sum(len(p) for p in wire) == len(parts):
        assert cp.gemini_write_request(request, OLD) == body  # ids that we made are not sent


def test_an_orphan_keeps_its_id() -> None:
    request = ask(contents=[{"role": "user", "parts": [answer("f", "A", id="z"), answer("g", "B")]}])
    first, second = request.messages[0].parts
    assert first.id == "z"
    assert re.fullmatch("call_[0-9a-f]{24}", second.id)


# --- writing requests ---


def test_results_are_named_ordered_and_complete() -> None:
    calls = [
        cp.Part("call", '{"n":1}', "t1", "get_x"),
        cp.Part("call", "", "t2", "b"),
        cp.Part("call", "[1]", "t3", "c"),
    ]
    request = from_chat(
        ("user", [text("q")]),
        ("assistant", calls),
        ("tool", [result("t2", text("A"))]),
        ("tool", [result("t1", text("once"))]),
        ("tool", [result("t1", text('{"k":1}')), result("lost", text("orphan"))]),
        ("user", [text("go")]),
    )
    _, model, user = contents(request)
    assert model["parts"] == [
        {
            "functionCall": {"id": "t1", "name": "get_x", "args": {"n": 1}},
            "thoughtSignature": cp.GEMINI_SENTINEL,
        },
        {"functionCall": {"id": "t2", "name": "b", "args": {}}},
        {"functionCall": {"id": "t3", "name": "c", "args": {"input": [1]}}},
    ]
    assert user["parts"] == [
        {"functionResponse": {"id": "t1", "name": "get_x", "response": {"k": 1}}},
        {"functionResponse": {"id": "t2", "name": "b", "response": {"output": "A"}}},
        {"functionResponse": {"id": "t3", "name": "c", "response": {"error": "[no result]"}}},
        {"text": "orphan"},
        {"text": "go"},
    ]


def image_result(target: cp.Target) -> list[Json]:
    calls = [cp.Part("call", "{}", "1", "shot"), cp.Part("call", "{}", "2", "fail")]
    seen = result("1", text("see"), IMAGE, name="shot")
    answers = [seen, result("2", text("no"), name="fail", error=True)]
    request = from_chat(("user", [text("q")]), ("assistant", calls), ("user", answers))
    parts: list[Json] = contents(request, target)[2]["parts"]
    return parts


def test_media_in_results() -> None:
    inline = {"inlineData": {"mimeType": "image/png", "data": "AAAA"}}
    shot = {"id": "1", "name": "shot", "response": {"output": "see"}}
    fail = {"functionResponse": {"id": "2", "name": "fail", "response": {"error": "no"}}}
    assert image_result(NEW) == [{"functionResponse": {**shot, "parts": [inline]}}, fail]
    assert image_result(OLD) == [{"functionResponse": shot}, fail, inline]


RESPONSES = [
    pytest.param([text("a"), text("b")], {"output": "a\nb"}, id="texts"),
    pytest.param([], {"output": ""}, id="nothing"),
    pytest.param([text("[1]")], {"output": "[1]"}, id="array"),
    pytest.param([text('{"a": NaN}')], {"output": '{"a": NaN}'}, id="not quite JSON"),
    pytest.param([text('{"a":')], {"output": '{"a":'}, id="half an object"),
    pytest.param([text("")], {"output": ""}, id="empty text"),
]


@pytest.mark.parametrize(("parts", "response"), RESPONSES)
def test_result_texts(parts: list[cp.Part], response: Json) -> None:
    written = cp.gemini_write_part(result("i", *parts, name="f"))
    assert written["functionResponse"]["response"] == response


def test_sentinels_only_since_the_user_last_spoke() -> None:
    step = [cp.Part("call", "{}", "1", "f"), cp.Part("call", "{}", "2", "f")]
    signed = [cp.Part("call", "{}", "3", "f", proof="VDE="), cp.Part("call", "{}", "4", "f")]
    request = from_chat(
        ("user", [text("q")]), ("assistant", step), ("user", [result("1"), result("2")]),
        ("user", [text("now")]), ("assistant", [text("ok")]), ("user", [text("really")]),
        ("assistant", step), ("user", [result("1"), result("2"), text("hint")]), ("assistant", signed),
    )  # fmt: skip

    def proofs(target: cp.Target) -> list[Any]:
        return [
            p.get("thoughtSignature")
            for c in contents(request, target)
            for p in c["parts"]
            if "functionCall" in p
        ]

    assert proofs(OLD) == [None, None, None, None, "VDE=", None]
    assert proofs(NEW) == [None, None, cp.GEMINI_SENTINEL, None, "VDE=", None]


def test_thoughts_leave_only_their_proofs() -> None:
    parts = [
        cp.Part("thinking", "secret", proof="VDA="), cp.Part("thinking", "", proof="VDE="), text("Hi", proof="VDI="),
        cp.Part("thinking", "", proof="VDM="), cp.Part("call", "{}", "1", "f"), cp.Part("hosted", "{}", "h", "web_search"),
        cp.Part("refusal", "No."), cp.Part("thinking", "unsigned"), text(""),
    ]  # fmt: skip
    written = contents(from_chat(("user", [text("q")]), ("assistant", parts)))[1]["parts"]
    assert written == [
        {"text": "", "thoughtSignature": "VDA="}, {"text": "", "thoughtSignature": "VDE="},
        {"text": "Hi", "thoughtSignature": "VDI="},
        {"functionCall": {"id": "1", "name": "f", "args": {}}, "thoughtSignature": "VDM="},
        {"text": "No."},
    ]  # fmt: skip


TURNS = [
    pytest.param([("assistant", "a")], ["user .", "model a"], id="the user begins"),
    pytest.param(
        [("user", "a"), ("user", "b"), ("developer", "c")], ["user a b c"], id="neighbours are joined"
    ),
    pytest.param([("user", "a"), ("assistant", ""), ("user", "b")], ["user a b"], id="nothing said"),
    pytest.param([], ["user S"], id="only a system text"),
]


@pytest.mark.parametrize(("messages", "expected"), TURNS)
def test_turns_alternate(messages: list[tuple[str, str]], expected: list[str]) -> None:
    request = from_chat(*((role, [text(words)]) for role, words in messages), system=(text("S"),))
    written = [" ".join([c["role"], *(p["text"] for p in c["parts"])]) for c in contents(request)]
    assert written == expected
    system = cp.gemini_write_request(request, NEW).get("systemInstruction")
    assert system == ({"parts": [{"text": "S"}]} if messages else None)


MEDIA = [
    pytest.param(cp.Media("image", "url", "https://x/a.webp?b=c.d"),
                 {"fileData": {"fileUri": "https://x/a.webp?b=c.d", "mimeType": "image/webp"}}, id="by ending"),
    pytest.param(cp.Media("video", "url", "https://youtu.be/a"), {"fileData": {"fileUri": "https://youtu.be/a", "mimeType": "video/mp4"}}, id="by kind"),
    pytest.param(cp.Media("document", "base64", "JVBE", "application/pdf", "a.pdf"),
                 {"inlineData": {"mimeType": "application/pdf", "data": "JVBE", "displayName": "a.pdf"}}, id="document"),
    pytest.param(cp.Media("document", "text", "words", "text/plain", "a.txt"), {"text": "a.txt\nwords"}, id="text"),
    pytest.param(cp.Media("document", "text", "words"), {"text": "words"}, id="text without a name"),
]  # fmt: skip


@pytest.mark.parametrize(("media", "part"), MEDIA)
def test_media(media: cp.Media, part: Json) -> None:
    assert cp.gemini_write_part(cp.Part("media", media=media)) == part


CONFIGS = [
    pytest.param({"params": {"max_tokens": 5, "stop": list("abcdefg"), "user": "u", "parallel": False, "n": 2}},
                 {"maxOutputTokens": 5, "stopSequences": list("abcde"), "candidateCount": 2}, id="params"),
    pytest.param({"params": {"stop": []}}, None, id="no empty list"),
    pytest.param({"format": cp.Format("json")}, {"responseMimeType": "application/json"}, id="json"),
    pytest.param({"format": cp.Format("schema", "n", {"type": "object"})},
                 {"responseMimeType": "application/json", "responseJsonSchema": {"type": "object"}}, id="schema"),
    pytest.param({"thinking": cp.Thinking("high", None, "auto")},
                 {"thinkingConfig": {"thinkingLevel": "HIGH", "includeThoughts": True}}, id="by name"),
    pytest.param({"thinking": cp.Thinking("", 99)}, {"thinkingConfig": {"thinkingBudget": 99, "includeThoughts": True}}, id="in tokens"),
    pytest.param({"thinking": cp.Thinking("low", 99, "omitted")},
                 {"thinkingConfig": {"thinkingLevel": "LOW", "includeThoughts": False}}, id="never both"),
    pytest.param({"thinking": cp.Thinking("none")}, {"thinkingConfig": {"thinkingBudget": 0}}, id="off"),
    pytest.param({"thinking": cp.Thinking("auto")}, {"thinkingConfig": {"thinkingBudget": -1, "includeThoughts": True}}, id="auto"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "config"), CONFIGS)
def test_generation_config(fields: Json, config: Json | None) -> None:
    request = from_chat(("user", [text("q")]), **fields)
    assert cp.gemini_write_request(request, NEW).get("generationConfig") == config


SEARCH = cp.Tool("web_search", kind="hosted", extra={"chat": {"type": "web_search"}})
FUNCTION = cp.Tool("f", "Do.", {"type": "object", "properties": {"a": {}}})
EMPTY = cp.Tool("g", schema={"type": "object", "properties": {}})
F_JSON = {"name": "f", "description": "Do.", "parametersJsonSchema": FUNCTION.schema}
TOOLS = [
    pytest.param(NEW, [FUNCTION, SEARCH, EMPTY], [{"functionDeclarations": [F_JSON, {"name": "g"}]}, {"googleSearch": {}}], id="both"),
    pytest.param(OLD, [SEARCH, FUNCTION], [{"functionDeclarations": [F_JSON]}], id="functions only"),
    pytest.param(OLD, [SEARCH], [{"googleSearch": {}}], id="search only"),
    pytest.param(NEW, [cp.Tool("file_search", kind="hosted")], None, id="unknown"),
    pytest.param(OPENAPI, [FUNCTION], [{"functionDeclarations": [{"name": "f", "description": "Do.", "parameters": FUNCTION.schema}]}], id="openapi"),
]  # fmt: skip


@pytest.mark.parametrize(("target", "tools", "written"), TOOLS)
def test_tools(target: cp.Target, tools: list[cp.Tool], written: list[Json]) -> None:
    request = from_chat(("user", [text("q")]), tools=tuple(tools))
    assert cp.gemini_write_request(request, target).get("tools") == written


@pytest.mark.parametrize("name", ["web_search", "web_fetch", "code_execution"])
def test_hosted_tools_go_both_ways(name: str) -> None:
    request = from_chat(("user", [text("q")]), tools=(cp.Tool(name, kind="hosted"),))
    assert ask(tools=cp.gemini_write_request(request, OLD)["tools"]).tools[0].name == name


CHOICES = [
    pytest.param(cp.ToolChoice("auto"), {"mode": "AUTO"}, id="auto"),
    pytest.param(cp.ToolChoice("none"), {"mode": "NONE"}, id="none"),
    pytest.param(cp.ToolChoice("required"), {"mode": "ANY"}, id="required"),
    pytest.param(
        cp.ToolChoice("required", ("f",)), {"mode": "ANY", "allowedFunctionNames": ["f"]}, id="named"
    ),
    pytest.param(cp.ToolChoice("auto", ("f",)), {"mode": "AUTO"}, id="some of them"),
]


@pytest.mark.parametrize(("choice", "written"), CHOICES)
def test_tool_choice(choice: cp.ToolChoice, written: Json) -> None:
    request = from_chat(("user", [text("q")]), choice=choice, tools=(FUNCTION,))
    assert cp.gemini_write_request(request, NEW)["toolConfig"] == {"functionCallingConfig": written}
    assert "toolConfig" not in cp.gemini_write_request(request._replace(tools=()), NEW)


def test_openapi_schema_of_the_format() -> None:
    request = from_chat(("user", [text("q")]), format=cp.Format("schema", schema={"type": "object"}))
    assert cp.gemini_write_request(request, OPENAPI)["generationConfig"]["responseSchema"] == {
        "type": "object"
    }


# --- reading answers ---


def shape(response: cp.Response) -> list[list[tuple[str, str, str]]]:
    return [[(p.kind, p.text, p.proof) for p in choice.parts] for choice in response.choices]


FINISHES = {  # stream: finish of each choice, and the shape of its parts
    "thoughts-call": ["tool_calls"],
    "signed-tail": ["stop"],
    "signed-start": ["length"],
    "vertex-arguments": ["tool_calls"],
    "grounded": ["stop"],
    "two-candidates": ["stop", "tool_calls"],
    "code-and-image": ["stop"],
    "blocked": ["content_filter"],
    "code-assist": ["stop"],
}
SHAPES = {
    "thoughts-call": [[("thinking", "t", ""), ("text", "hi", ""), ("call", '{"a":1}', "U0lH")]],
    "signed-tail": [[("text", "answér", "U0lH")]],
    "signed-start": [[("thinking", "think", "VDE="), ("text", "One two", "VDI=")]],
    "vertex-arguments": [[
        ("call", '{"dish":{"name":"Lasagne"},"steps":[{"do":"boil"},{"for min":5}],"hot":true,"note":null}', "VDE="),
        ("call", "{}", ""), ("call", "{}", ""),
    ]],
    "grounded": [[("hosted", '{"queries":["q"]}', "VDE="), ("hosted_result", "", ""), ("text", "Größe: ölig. End.", "VDI=")]],
    "two-candidates": [[("text", "aA", "")], [("text", "b", ""), ("call", "{}", "")]],
    "code-and-image": [[
        ("hosted", '{"language":"PYTHON","code":"1"}', ""), ("hosted_result", "", ""),
        ("opaque", "", ""), ("media", "", "VDE="), ("text", "", "VDI="),
    ]],
    "blocked": [[]],
    "code-assist": [[("text", "x", "")]],
}  # fmt: skip


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize("path", STREAMS, ids=lambda p: p.stem)
def test_streams(path: Path, size: int) -> None:
    name = path.stem.replace("stream-", "")
    response = read(path.read_bytes(), size)
    assert shape(response) == SHAPES[name]
    assert [choice.end.finish for choice in response.choices] == FINISHES[name]
    assert (response.start.id, response.start.model) == ("r1", "gemini-3-pro")
    calls = [p.id for c in response.choices for p in c.parts if p.kind in {"call", "hosted"}]
    assert len(set(calls)) == len(calls)
    assert all(calls)


@pytest.mark.parametrize("request_", [SSE, ARRAY], ids=["sse", "array"])
@pytest.mark.parametrize("path", STREAMS, ids=lambda p: p.stem)
def test_streams_come_back(path: Path, request_: cp.Request) -> None:
    response = read(path.read_bytes())
    payloads = list(cp.sse_read([path.read_bytes()]))
    sse = request_ is SSE
    frames = list(cp.gemini_write_stream(cp.gemini_read_stream(payloads, request_), request_))
    chunks = validate_stream(b"".join(frames), sse=sse)
    again = cp.collect(cp.gemini_read_response(chunks, SSE))  # type: ignore[arg-type]
    assert again == response
    written = validate_response(cp.gemini_write_response(response, SSE))
    assert cp.collect(cp.gemini_read_response(written, SSE)) == response


USAGES = [
    pytest.param("thoughts-call", cp.Usage(9, 0, 0, 190, 185), id="thoughts are output"),
    pytest.param("signed-tail", cp.Usage(4, 2, 0, 6, 0), id="no count of the candidates"),
    pytest.param("grounded", cp.Usage(20, 0, 0, 190, 185, {"gemini": {"toolUsePromptTokenCount": 11}}), id="tool use is input"),
    pytest.param("blocked", cp.Usage(4), id="blocked"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "usage"), USAGES)
def test_usage(name: str, usage: cp.Usage) -> None:
    assert read((DATA / f"stream-{name}.sse").read_bytes()).usage == usage


def test_citations_are_counted_in_characters() -> None:
    part = read((DATA / "stream-grounded.sse").read_bytes()).choices[0].parts[-1]
    assert [(c.url, c.title, c.text, part.text[c.start : c.end]) for c in part.citations] == [
        ("https://a.example", "A", "", "ölig."),
        ("", "B", "quoted", "ölig."),
        ("", "", "", "Größe:"[:5]),
    ]


def test_parts_of_a_whole_answer_stay_apart() -> None:
    parts = [
        {"text": "a", "thoughtSignature": "VDE="},
        {"text": "b"},
        {"text": "c", "thoughtSignature": "VDI="},
    ]
    body = {"candidates": [{"content": {"parts": parts}, "finishReason": "STOP"}]}
    assert shape(cp.collect(cp.gemini_read_response(body, SSE))) == [
        [("text", "a", "VDE="), ("text", "bc", "VDI=")]
    ]


def test_a_bare_signature_belongs_to_what_is_open() -> None:
    payloads = [chunk({"text": "a"}), chunk({"thoughtSignature": "VDE="}, finish="STOP")]
    response = cp.collect(cp.gemini_read_stream(payloads, SSE))
    assert shape(response) == [[("text", "a", "VDE=")]]


def chunk(*parts: Json, finish: str = "", **fields: Any) -> Json:
    reason = {"finishReason": finish} if finish else {}
    return {"candidates": [{"content": {"parts": list(parts)}, **reason, **fields}]}


REASONS = [
    *(
        (word, row.canonical)
        for row in cp.FINISH_REASONS[:1] + cp.FINISH_REASONS[2:]
        for word in row.gemini.split()
    ),
    ("UNEXPECTED_TOOL_CALL", "error"),
    ("A_WORD_OF_TOMORROW", "error"),
]


@pytest.mark.parametrize(("word", "finish"), REASONS)
def test_finish_reasons(word: str, finish: str) -> None:
    body = chunk({"text": "x"}, finish=word)
    response = cp.collect(cp.gemini_read_response(body, SSE))
    assert response.choices[0].end[:3] == (finish, "", word)
    assert cp.gemini_write_response(response, SSE)["candidates"][0]["finishReason"] == word
    called = cp.collect(cp.gemini_read_response(chunk(call("f"), finish=word), SSE)).choices[0].end
    assert called.finish == ("tool_calls" if finish in {"stop", "error"} else finish)


@pytest.mark.parametrize("row", cp.FINISH_REASONS, ids=lambda row: row.canonical)
def test_foreign_finish_reasons(row: cp.Words) -> None:
    end = cp.MessageEnd(row.canonical, raw="end_turn")
    response = cp.Response(cp.MessageStart("", ""), (cp.Choice((), end),))
    assert cp.gemini_write_response(response, SSE)["candidates"][0]["finishReason"] == row.gemini.split()[0]


BROKEN = [
    pytest.param([chunk({"text": "x"})], "upstream_failed", "without a finishReason", id="cut"),
    pytest.param([], "upstream_failed", "without a finishReason", id="nothing"),
    pytest.param([{"candidates": []}], "upstream_failed", "without a finishReason", id="no candidates"),
    pytest.param([chunk(finish="MALFORMED_FUNCTION_CALL", finishMessage="bad call")], "upstream_failed", "bad call", id="malformed"),
    pytest.param([chunk(finish="NO_IMAGE")], "upstream_failed", "NO_IMAGE", id="no output"),
    pytest.param([{"error": {"code": 503, "message": "busy", "status": "UNAVAILABLE"}}], "overloaded", "busy", id="error first"),
    pytest.param([chunk({"text": "x"}), {"error": {"code": 429, "message": "slow"}}], "rate_limited", "slow", id="error later"),
]  # fmt: skip


@pytest.mark.parametrize(("payloads", "kind", "words"), BROKEN)
def test_broken_answers(payloads: list[Json], kind: str, words: str) -> None:
    with pytest.raises(cp.ProxyError, match=words) as caught:
        cp.collect(cp.gemini_read_stream(payloads, SSE))
    assert caught.value.kind == kind


def test_what_comes_after_the_finish() -> None:
    late = [
        chunk({"text": "a"}, finish="STOP"),  # some services finish every chunk
        chunk({"text": "b"}, finish="STOP"),
        {"usageMetadata": {"promptTokenCount": 1, "totalTokenCount": 3}},
        {"error": {"code": 500, "message": "late"}},
    ]
    response = cp.collect(cp.gemini_read_stream(late, SSE))
    assert shape(response) == [[("text", "ab", "")]]
    assert response.usage == cp.Usage(1, output=2)


def test_calls_get_ids_of_their_own() -> None:
    parts = [call("f", id="1"), call("f", id="1"), call("f")]
    payloads = [chunk(*parts, finish="STOP")]
    ids = [part.id for part in cp.collect(cp.gemini_read_stream(payloads, SSE)).choices[0].parts]
    other = cp.collect(cp.gemini_read_stream(payloads, SSE._replace(id="s"))).choices[0].parts
    assert ids[0] == "1"
    assert len({*ids, other[1].id, other[2].id}) == 5
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", made) for made in ids)


def test_logprobs_both_ways() -> None:
    chosen = [{"token": "é", "logProbability": -0.5}, {"token": "b", "logProbability": -1.0}]
    tops = [{"candidates": [{"token": "e", "logProbability": -2.0}]}, {"candidates": []}]
    wire = {"chosenCandidates": chosen, "topCandidates": tops}
    response = cp.collect(
        cp.gemini_read_response(chunk({"text": "éb"}, finish="STOP", logprobsResult=wire), SSE)
    )
    first = response.choices[0].logprobs[0]
    top = {"token": "e", "logprob": -2.0, "bytes": [101]}
    assert first == {"token": "é", "logprob": -0.5, "bytes": [195, 169], "top_logprobs": [top]}
    assert cp.gemini_write_response(response, SSE)["candidates"][0]["logprobsResult"] == wire


# --- writing answers ---

START = cp.MessageStart("m1", "claude-x")
END = cp.MessageEnd("stop", raw="end_turn")


def whole(*parts: cp.Part, end: cp.MessageEnd = END) -> list[cp.Event]:
    events = [event for at, part in enumerate(parts) for event in cp.part_events(at, part)]
    return [START, *events, cp.Usage(10, 4, 2, 7, 3), end]


def written_parts(*parts: cp.Part) -> list[Json]:
    chunks = validate_stream(write(whole(*parts)))
    return [part for c in chunks for part in c["candidates"][0]["content"]["parts"]]


def test_a_stream_to_the_byte() -> None:
    events = whole(text('a"\n'), text("é"))
    tail = '"modelVersion":"claude-x","responseId":"m1"}'
    first = '{"candidates":[{"content":{"parts":[{"text":"a\\"\\n"}],"role":"model"},"index":0}],' + tail
    second = first.replace('a\\"\\n', "\\u00e9")
    last = (
        '{"candidates":[{"content":{"parts":[{"text":""}],"role":"model"},"finishReason":"STOP","index":0}],'
        '"usageMetadata":{"promptTokenCount":10,"cachedContentTokenCount":4,"candidatesTokenCount":4,'
        '"thoughtsTokenCount":3,"totalTokenCount":17},' + tail
    )
    frames = [f"data: {data}\r\n\r\n".encode() for data in (first, second, last)]
    assert list(cp.gemini_write_stream(events, SSE)) == frames
    array = [f"[{first}", f",\r\n{second}", f",\r\n{last}", "]"]
    assert list(cp.gemini_write_stream(events, ARRAY)) == [part.encode() for part in array]


def test_nothing_waits_for_the_next_event() -> None:
    taken: list[cp.Event] = []

    def source() -> Any:
        for event in whole(text("a"), cp.Part("call", '{"a":1}', "c", "f")):
            taken.append(event)
            yield event

    frames = cp.gemini_write_stream(source(), SSE)
    next(frames)
    assert taken[-1] == cp.PartDelta(0, "text", "a")
    next(frames)
    assert isinstance(taken[-1], cp.PartEnd)


PROOFS = [
    pytest.param([cp.Part("thinking", "t", proof="VDE="), cp.Part("call", '{"a":1}', "c", "f")],
                 [{"text": "t", "thought": True},
                  {"functionCall": {"id": "c", "name": "f", "args": {"a": 1}}, "thoughtSignature": "VDE="}, {"text": ""}],
                 id="to the call"),
    pytest.param([cp.Part("thinking", "t", proof="VDE="), text("x", proof="VDI=")],
                 [{"text": "t", "thought": True}, {"text": "", "thought": True, "thoughtSignature": "VDE="},
                  {"text": "x"}, {"text": "", "thoughtSignature": "VDI="}, {"text": ""}],
                 id="before a text"),
    pytest.param([cp.Part("thinking", "", proof="VDE=", redacted=True)],
                 [{"text": "", "thought": True, "thoughtSignature": "VDE="}], id="at the end"),
    pytest.param([cp.Part("thinking", "t", proof="VDE="), cp.Part("call", '{"a":1}', "c", "f", proof="VDI=")],
                 [{"text": "t", "thought": True}, {"text": "", "thought": True, "thoughtSignature": "VDE="},
                  {"functionCall": {"id": "c", "name": "f", "args": {"a": 1}}, "thoughtSignature": "VDI="}, {"text": ""}],
                 id="the call has its own"),
]  # fmt: skip


@pytest.mark.parametrize(("parts", "written"), PROOFS)
def test_proofs(parts: list[cp.Part], written: list[Json]) -> None:
    assert written_parts(*parts) == written


def test_other_parts() -> None:
    foreign = cp.Part("hosted", "{}", "h", "web_search", extra={"claude": {"type": "server_tool_use"}})
    assert written_parts(foreign, cp.Part("refusal", "No."), IMAGE) == [
        {"text": "No."}, {"inlineData": {"mimeType": "image/png", "data": "AAAA"}}, {"text": ""},
    ]  # fmt: skip


def test_citations_are_written_in_bytes() -> None:
    source = cp.Citation("https://a", "A", 7, 12)
    parts = (
        text("é: "),
        text("Größe: ölig.", citations=(source, source._replace(url="https://b", start=0, end=5))),
    )
    chunks = validate_stream(write(whole(*parts)))
    grounding = chunks[-1]["candidates"][0]["groundingMetadata"]
    assert grounding == {
        "groundingChunks": [
            {"web": {"uri": "https://a", "title": "A"}},
            {"web": {"uri": "https://b", "title": "A"}},
        ],
        "groundingSupports": [
            {"segment": {"startIndex": 13, "endIndex": 19, "text": "ölig."}, "groundingChunkIndices": [0]},
            {"segment": {"startIndex": 4, "endIndex": 11, "text": "Größe"}, "groundingChunkIndices": [1]},
        ],
    }
    full = cp.gemini_write_response(cp.collect(whole(*parts)), SSE)
    assert full["candidates"][0]["groundingMetadata"] == grounding
    again = cp.collect(cp.gemini_read_stream(chunks, SSE)).choices[0].parts[0]
    assert [again.text[c.start : c.end] for c in again.citations] == ["ölig.", "Größe"]


@pytest.mark.parametrize("request_", [SSE, ARRAY], ids=["sse", "array"])
def test_an_error_in_mid_stream(request_: cp.Request) -> None:
    def source(*events: cp.Event) -> Any:
        yield from events
        raise cp.ProxyError("overloaded", "busy")

    begun = whole(text("par"))[:3]
    chunks = validate_stream(write(source(*begun), request_), sse=request_ is SSE)
    assert chunks[-1] == {"error": {"code": 503, "message": "busy", "status": "UNAVAILABLE"}}
    with pytest.raises(cp.ProxyError, match="busy"):
        write(source(START), request_)


def test_a_stream_can_be_closed() -> None:
    closed = []

    def source() -> Any:
        try:
            yield from whole(text("a"), text("b"))
        finally:
            closed.append(1)

    events = source()
    frames = cp.gemini_write_stream(events, SSE)
    next(frames)
    frames.close()
    events.close()
    assert closed == [1]


# --- errors ---

KEY = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
RETRY = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34.4s"}
ERRORS = [
    pytest.param(400, {"error": {"code": 400, "message": "no", "status": "INVALID_ARGUMENT"}}, "invalid_request", None, id="invalid"),
    pytest.param(400, {"error": {"message": "no", "status": "INVALID_ARGUMENT", "details": [KEY]}}, "unauthorized", None, id="key"),
    pytest.param(400,
                 {"error": {"message": "The input token count (9) exceeds the maximum number of tokens allowed (8)."}}, "context_too_long", None, id="context"),
    pytest.param(400, {"error": {"message": "no", "status": "FAILED_PRECONDITION"}}, "invalid_request", None, id="precondition"),
    pytest.param(429, [{"error": {"message": "no", "status": "RESOURCE_EXHAUSTED", "details": [RETRY]}}], "rate_limited", 34.4, id="retry"),
    pytest.param(500, {"error": {"message": "no", "status": "INTERNAL"}}, "upstream_error", None, id="internal"),
    pytest.param(504, {"error": {"message": "no", "status": "DEADLINE_EXCEEDED"}}, "upstream_timeout", None, id="deadline"),
    pytest.param(503, {"error": "text"}, "overloaded", None, id="text"),
    pytest.param(404, {"message": "no"}, "not_found", None, id="message"),
    pytest.param(402, "odd", "billing", None, id="string"),
    pytest.param(502, None, "upstream_failed", None, id="null"),
]  # fmt: skip


@pytest.mark.parametrize(("status", "body", "kind", "retry"), ERRORS)
def test_errors_are_read(status: int, body: Any, kind: str, retry: float | None) -> None:
    error = cp.gemini_read_error(status, json.dumps(body).encode())
    assert (error.kind, error.status, error.retry_after) == (kind, status, retry)
    assert str(error)


@pytest.mark.parametrize("body", [b"", b"<html>bad gateway</html>", b"\xff\xfe"])
def test_errors_that_are_not_json(body: bytes) -> None:
    error = cp.gemini_read_error(502, body)
    assert error.kind == "upstream_failed"
    assert str(error)


@pytest.mark.parametrize("kind", cp.KINDS)
def test_errors_are_written(kind: str) -> None:
    body = cp.gemini_write_error(cp.ProxyError(kind, "why", retry_after=2.5))
    row = cp.KINDS[kind]
    full = "The input token count exceeds the maximum number of tokens allowed: why"
    why = full if kind == "context_too_long" else "why"
    assert {key: body["error"][key] for key in ("code", "message", "status")} == {
        "code": row.status, "message": why, "status": row.gemini,
    }  # fmt: skip
    assert cp.gemini_read_error(0, json.dumps(body).encode()).retry_after == 2.5
    assert "details" not in cp.gemini_write_error(cp.ProxyError(kind, "why"))["error"]


# --- calls and results in histories ---

SCHEMA_TEXT = (
    '{"inputSchema": {"properties": {"c": {"$ref": "#/$defs/C"}}, "$defs": {"C": {"type": "object"}}}}'
)
NOTE = cp.Part("media", media=cp.Media("document", "text", "found", "text/plain", "T"))
RESULTS = [  # the parts of a result, the response, and what stands beside it
    pytest.param([text('{"a": 1}')], {"a": 1}, [], id="object"),
    pytest.param([text(SCHEMA_TEXT)], {"output": SCHEMA_TEXT}, [], id="a reference would stand for a file"),
    pytest.param([NOTE], {"output": "T\nfound"}, [], id="document"),
    pytest.param([text("see"), NOTE, IMAGE], {"output": "see\nT\nfound"},
                 [{"inlineData": {"mimeType": "image/png", "data": "AAAA"}}], id="text, document, image"),
    pytest.param([IMAGE], {}, [{"inlineData": {"mimeType": "image/png", "data": "AAAA"}}], id="image"),
]  # fmt: skip


@pytest.mark.parametrize(("parts", "response", "beside"), RESULTS)
def test_results_hold_texts_and_have_files_beside(
    parts: list[cp.Part], response: Json, beside: list[Json]
) -> None:
    call = cp.Part("call", "{}", "c", "f")
    asked = from_chat(("user", [text("q")]), ("assistant", [call]), ("tool", [result("c", *parts, name="f")]))
    made = contents(asked)[2]["parts"][0]["functionResponse"]
    assert made["response"] == response
    assert made.get("parts", []) == beside
    lifted = contents(asked, OLD)[2]["parts"]
    assert lifted[0]["functionResponse"]["response"] == (response or {"output": ""})
    assert lifted[1:] == beside


def called(*calls: Json) -> Json:
    return {"role": "model", "parts": [{"functionCall": {"args": {}, **call}} for call in calls]}


def resulted(*results: Json, key: str = "functionResponse") -> Json:
    return {"role": "user", "parts": [{key: {"response": {}, **one}} for one in results]}


NAMELESS = [  # a history, and the names of its results
    pytest.param([called({"name": "grep", "id": "a"}), resulted({"id": "a", "name": ""})], ["grep"], id="by id"),
    pytest.param([called({"name": "grep", "id": "a"}), resulted({"id": "a"})], ["grep"], id="no name at all"),
    pytest.param([called({"name": "f"}, {"name": "g"}), resulted({}, {"name": ""})], ["f", "g"], id="by place"),
    pytest.param([called({"name": "f"}, {"name": "g"}), resulted({"name": "g"}, {})], ["g", "f"], id="what is left"),
    pytest.param([called({"name": "f", "id": "a"}, {"name": "g", "id": "b"}), resulted({"id": "b"}, {"id": "a"})],
                 ["g", "f"], id="out of order"),
    pytest.param([called({"name": "f"}), resulted({"name": "f"}), called({"name": "g"}), resulted({})], ["f", "g"],
                 id="of the last turn"),
    pytest.param([called({"name": "f", "id": "a"}), resulted({"id": "a"}), resulted({"id": "a"})], ["f", "f"],
                 id="repeated"),
    pytest.param([called({"name": "f"}), resulted({}, key="function_response")], ["f"], id="in snake case"),
]  # fmt: skip


def results_in(body: Json) -> list[Json]:
    parts = [part for content in body["contents"] for part in content["parts"]]
    keys = ("functionResponse", "function_response")
    return [part[key] for part in parts for key in keys if key in part]


@pytest.mark.parametrize(("history", "names"), NAMELESS)
def test_results_without_a_name_get_that_of_their_call(history: list[Json], names: list[str]) -> None:
    body = {"model": "m", "contents": history}
    before = json.dumps(body)
    assert cp.gemini_odd(before.encode(), frozenset(), "m")
    assert [one["name"] for one in results_in(cp.gemini_fitted(body, frozenset()))] == names
    counted = cp.gemini_fitted({"generateContentRequest": body}, frozenset())["generateContentRequest"]
    assert [one["name"] for one in results_in(counted)] == names
    written = cp.gemini_write_request(cp.gemini_read_request(body), OLD)
    assert {one["name"] for one in results_in(written)} == set(names)  # what is repeated is left out
    assert json.dumps(body) == before


def test_histories_that_need_no_change_are_left_alone() -> None:
    named = [{"name": "f"}, {"id": "a", "name": "f"}, {"name": "f", "id": "a"}]
    body = {"contents": [called({"name": "f"}, {"name": "f", "id": "a"}), resulted(*named)]}
    assert cp.gemini_fitted(body, frozenset()) is body
    for one in named[:2]:
        assert not cp.gemini_odd(json.dumps({"functionResponse": one}).encode(), frozenset(), "m")
    assert cp.gemini_fitted({"contents": [resulted({})]}, frozenset()) == {"contents": [resulted({})]}


def test_hosts_that_know_no_ids_get_none() -> None:
    bare = cp.Target("vertex", cp.Model("gemini-2.5-pro"), frozenset({"no-call-ids"}))
    history = [called({"name": "f", "id": "a"}), resulted({"name": "f", "id": "a"}, key="function_response")]
    own = cp.gemini_write_request(cp.gemini_read_request({"model": "m", "contents": history}), bare)
    call = cp.Part("call", "{}", "c", "f")
    foreign = from_chat(
        ("user", [text("q")]), ("assistant", [call]), ("tool", [result("c", text("r"), name="f")])
    )
    passed = cp.gemini_fitted({"contents": history}, bare.quirks)
    for body in (own, cp.gemini_write_request(foreign, bare), passed):
        assert '"id"' not in json.dumps(body)
        assert results_in(body)[0]["name"] == "f"


# --- calls that were cut off ---


def cut_events(*texts: str, finish: str = "length") -> list[cp.Event]:
    """Return the events of an answer with a call for each text of arguments."""
    calls = [cp.Part("call", words, f"c{at}", "f") for at, words in enumerate(texts)]
    parts = [event for at, call in enumerate(calls) for event in cp.part_events(at, call)]
    return [cp.MessageStart("r", "m"), *parts, cp.MessageEnd(finish)]


CUT = [  # arguments of the calls of an answer, why it ended, and those of the calls that the client gets
    pytest.param(['{"a":"lo'], "length", [], id="cut"),
    pytest.param(["{}"], "length", [], id="cut before any"),
    pytest.param(['{"a":1}'], "length", [{"a": 1}], id="complete, and then the limit"),
    pytest.param(['{"a":1}', '{"b"'], "length", [{"a": 1}], id="the second"),
    pytest.param(["{}", '{"a":1}'], "length", [{}, {"a": 1}], id="another after one without arguments"),
    pytest.param(['{"a'], "content_filter", [], id="stopped by a filter"),
    pytest.param(["{}"], "tool_calls", [{}], id="no arguments, and done"),
    pytest.param(["odd"], "tool_calls", [{"input": "odd"}], id="no JSON, and done"),
]


@pytest.mark.parametrize(("texts", "finish", "calls"), CUT)
def test_a_call_that_was_cut_off_is_none(texts: list[str], finish: str, calls: list[Json]) -> None:
    events = cut_events(*texts, finish=finish)
    whole = cp.gemini_write_response(cp.collect(events), SSE)
    chunks = list(cp.sse_read([write(events)]))
    for found in ([whole], chunks):
        parts = [part for one in found for part in one["candidates"][0]["content"]["parts"]]
        assert [part["functionCall"]["args"] for part in parts if "functionCall" in part] == calls
    word = {"length": "MAX_TOKENS", "content_filter": "SAFETY", "tool_calls": "STOP"}[finish]
    assert whole["candidates"][0]["finishReason"] == chunks[-1]["candidates"][0]["finishReason"] == word
    validate_response(whole)


def test_a_call_in_pieces_that_was_cut_off_is_none() -> None:
    piece = {"partialArgs": [{"jsonPath": "$.a", "stringValue": "lo"}], "willContinue": True}
    first = {
        "candidates": [
            {"content": {"parts": [{"functionCall": {"name": "f", "id": "c", **piece}}]}, "index": 0}
        ]
    }
    for finish, calls in (("MAX_TOKENS", []), ("STOP", ['{"a":"lo"}'])):
        last = {"candidates": [{"content": {"parts": []}, "finishReason": finish, "index": 0}]}
        choice = cp.collect(cp.gemini_read_stream([first, last], SSE)).choices[0]
        assert [part.text for part in choice.parts if part.kind == "call"] == calls


# --- recorded exchanges, where they are at hand ---


def recordings(folder: str) -> list[Any]:
    paths = sorted(path for path in (SHARED / folder / "gemini").glob("*.json") if path.name != "index.json")
    missing = pytest.param(None, id="none", marks=pytest.mark.skip(reason="no shared recordings here"))
    return [pytest.param(path, id=path.stem) for path in paths] or [missing]


def respelled(value: Any) -> Any:
    """Make all spellings of a body one: snake case is ours to correct, one may stand for a list, functions first."""
    if isinstance(value, list):
        return [respelled(item) for item in value]
    if not isinstance(value, dict):
        return value
    named = {re.sub("_([a-z])", lambda m: m[1].upper(), key): item for key, item in value.items()}
    tools = named["tools"] if isinstance(named.get("tools"), list) else [named.get("tools")]
    named["tools"] = sorted(tools, key=lambda tool: "functionDeclarations" not in (tool or {}))
    return {key: item if key in cp.GEMINI_OPAQUE else respelled(item) for key, item in named.items()}


@pytest.mark.shared
@pytest.mark.parametrize("path", recordings("requests/dev"))
def test_recorded_requests(path: Path) -> None:
    entry = json.loads(path.read_text())
    body = {**entry["body"], "model": entry["model"], "stream": entry["streaming"]}
    target = cp.Target("gemini", cp.Model(entry["model"]))
    request = cp.gemini_read_request(body)
    assert respelled(cp.gemini_write_request(request, target)) == respelled(body)
    foreign = cp.gemini_write_request(request._replace(dialect="chat"), target)
    assert foreign["contents"][0]["role"] == "user"


@pytest.mark.shared
@pytest.mark.parametrize("path", [*recordings("dev"), *recordings("flagged"), *recordings("synthetic")])
def test_recorded_answers(path: Path) -> None:
    answer = json.loads(path.read_text())["response"]
    if answer["status"] >= 400:
        error = cp.gemini_read_error(answer["status"], json.dumps(answer["body"]).encode())
        assert error.status == answer["status"]
    elif "sse" in answer:
        data = answer["sse"].encode()
        response = read(data)
        assert read(data, 1) == read(data, 7) == response
        stream = write(cp.gemini_read_stream(cp.sse_read([data]), SSE))
        validate_stream(stream)
        assert read(stream, 1) == read(stream, 7) == read(stream) == response
    else:
        response = cp.collect(cp.gemini_read_response(answer["body"], SSE))
        written = validate_response(cp.gemini_write_response(response, SSE))
        response = response._replace(start=cp.MessageStart(written["responseId"], response.start.model))
        assert cp.collect(cp.gemini_read_response(written, SSE)) == response
