"""What a request needs before a foreign upstream takes it, and the way back."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cliproxy as cp
from cliproxy import (
    Media,
    Message,
    MessageEnd,
    MessageStart,
    Model,
    Part,
    PartDelta,
    PartEnd,
    PartStart,
    Request,
    Target,
    Thinking,
    Tool,
    ToolChoice,
)
from support.cost import effort
from support.fitting import (
    CLAUDE,
    TARGETS,
    ask,
    assistant,
    back,
    call,
    claude_stream,
    down,
    fit,
    media,
    read,
    results,
    signatures,
    thinking,
    up,
    user,
)

NAMES = ("claude", "chat", "responses", "gemini")
OPUS_46 = Model(
    "claude-opus-4-6", output=128_000, budget=(1024, 128_000), levels=("low", "medium", "high", "max")
)
OPUS_47 = OPUS_46._replace(id="claude-opus-4-7", levels=("low", "medium", "high", "xhigh", "max"))
GPT_51 = Model("gpt-5.1", output=128_000, levels=("none", "low", "medium", "high"))
OPENAI = Target("openai", GPT_51)


def opaque(kind: str) -> Message:
    return user(Part("opaque", extra={"responses": {"type": kind}}))


REFUSED = [
    pytest.param(ask(params={"n": 2}), "claude", "n", id="n to claude"),
    pytest.param(ask(params={"n": 2}), "responses", "n", id="n to responses"),
    *[
        pytest.param(
            ask(dialect="responses", extra={"responses": {field: "x"}}), to, field, id=f"{field} to {to}"
        )
        for field in ("previous_response_id", "conversation", "prompt", "background")
        for to in ("claude", "chat", "gemini")
    ],
    pytest.param(ask(dialect="gemini", extra={"gemini": {"cachedContent": "c/1"}}), "chat", "cachedContent", id="cache"),
    pytest.param(
        ask(dialect="gemini", extra={"gemini": {"generationConfig": {"responseModalities": ["AUDIO"]}}}),
        "chat", "responseModalities", id="only audio",
    ),
    pytest.param(ask(opaque("item_reference"), dialect="responses"), "claude", "input", id="item reference"),
    pytest.param(ask(media("audio", "base64", mime="audio/wav")), "claude", "messages", id="audio to claude"),
    pytest.param(ask(media("audio", "base64", mime="audio/ogg"), dialect="gemini"), "chat", "contents", id="ogg to chat"),
    pytest.param(ask(media("video", "base64"), dialect="gemini"), "chat", "contents", id="video to chat"),
    pytest.param(ask(media("image", "base64", mime="image/tiff")), "claude", "messages", id="tiff to claude"),
    pytest.param(ask(media("document", "file_id", "file-1")), "claude", "messages", id="file id to another vendor"),
    pytest.param(ask(media("document", "url", "http://x/a.pdf"), dialect="claude"), "chat", "messages", id="pdf url"),
    pytest.param(
        ask(user(Part("result", id="c", parts=media("video", "url").parts)), dialect="gemini"),
        "claude", "contents", id="media in a result",
    ),
    pytest.param(
        ask(dialect="claude", tools=(Tool("bash_20250124", kind="hosted"),)), "chat", "tools", id="client-run tool"
    ),
    pytest.param(
        ask(dialect="claude", tools=(Tool("web_search", kind="hosted"),), choice=ToolChoice("required", ("web_search",))),
        "chat", "tool_choice", id="forced hosted tool",
    ),
    pytest.param(
        ask(dialect="claude", tools=(Tool("web_search", kind="hosted"),), choice=ToolChoice("required")),
        "chat", "tool_choice", id="any of hosted tools to chat",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("request_", "dialect", "param"), REFUSED)
def test_refused(request_: Request, dialect: str, param: str) -> None:
    with pytest.raises(cp.ProxyError) as caught:
        fit(request_, dialect)
    assert (caught.value.kind, caught.value.param) == ("invalid_request", param)


TAKEN = [
    pytest.param(ask(params={"n": 2}), "gemini", id="n to gemini"),
    pytest.param(ask(params={"n": 1}), "claude", id="one answer"),
    pytest.param(
        ask(
            dialect="claude",
            tools=(Tool("web_search", kind="hosted"), Tool("f")),
            choice=ToolChoice("required"),
        ),
        "chat",
        id="any tool, of which one is left",
    ),
    pytest.param(ask(choice=ToolChoice("required")), "claude", id="any tool of none"),
    pytest.param(
        ask(dialect="responses", extra={"responses": {"previous_response_id": "r"}}), "responses", id="own"
    ),
    pytest.param(
        ask(dialect="responses", extra={"responses": {"background": False}}), "chat", id="not background"
    ),
    pytest.param(ask(media("audio", "base64", mime="audio/wav")), "gemini", id="audio"),
    pytest.param(ask(media("image", "base64", mime="image/tiff")), "responses", id="tiff"),
    pytest.param(ask(media("document", "file_id", "f")), "responses", id="file id of the same vendor"),
]


@pytest.mark.parametrize(("request_", "dialect"), TAKEN)
def test_taken(request_: Request, dialect: str) -> None:
    assert fit(request_, dialect).messages


# --- freeform tools

PATCH = Tool("apply_patch", "Edits.", kind="custom", grammar={"syntax": "lark", "definition": "G"})


def test_freeform_tool() -> None:  # conformance case 14
    history = (
        assistant(call("apply_patch", text='a"b', custom=True)),
        Message("tool", (Part("result", id="c1", parts=(Part("text", "ok"),), custom=True),)),
    )
    request = ask(user("q"), *history, dialect="responses", tools=(PATCH,))
    for dialect in ("claude", "gemini", "chat"):
        fitted = fit(request, dialect)
        tool, made = fitted.tools[0], fitted.messages[1].parts[0]
        assert (tool.kind, tool.name, tool.grammar) == ("function", "apply_patch", None)
        assert tool.schema
        assert tool.schema["required"] == ["input"]
        assert tool.schema["properties"] == {"input": {"type": "string"}}
        assert tool.description.startswith("Edits.")
        assert tool.description.endswith("lark grammar:\nG")
        assert (made.custom, json.loads(made.text)) == (False, {"input": 'a"b'})
        assert not fitted.messages[2].parts[0].custom


@pytest.mark.parametrize(
    ("dialect", "target"),
    [
        ("responses", TARGETS["responses"]),
        ("chat", OPENAI),
        ("chat", Target("x", Model("x"), frozenset({"custom-tools"}))),
    ],
)
def test_freeform_tools_stay_where_they_are_known(dialect: str, target: Target) -> None:
    client = "chat" if dialect == "responses" else "responses"
    assert fit(ask(dialect=client, tools=(PATCH,)), dialect, target).tools == (PATCH,)


def unwrap(pieces: list[str]) -> str:
    start = PartStart(0, call("apply_patch"))
    deltas = [PartDelta(0, "text", piece) for piece in pieces]
    request = ask(dialect="responses", tools=(PATCH,))
    events = back([start, *deltas, PartEnd(0)], request, "claude")
    assert isinstance(events[0], PartStart)
    assert events[0].part.custom
    assert events[-1] == PartEnd(0)
    return "".join(event.value for event in events if isinstance(event, PartDelta))


FRAGMENTS = [
    pytest.param('{"input":"*** Begin\\n\\"x\\""}', '*** Begin\n"x"', id="case 14"),
    pytest.param(' { "input" : "\\ud83d\\ude00\\u00e9\\\\u0041\\/" } ', "😀é\\u0041/", id="escapes"),
    pytest.param('{"input":""}', "", id="empty"),
    pytest.param('{"input":"a","more":"b"}', "a", id="another key behind it"),
    pytest.param('{"first":1,"input":"a"}', "a", id="another key before it"),
    pytest.param("{}", "", id="no argument"),
    pytest.param("", "", id="nothing"),
    pytest.param('{"patch":"a"}', '{"patch":"a"}', id="another form"),
    pytest.param('"raw"', '"raw"', id="a text"),
    pytest.param("*** raw", "*** raw", id="not JSON"),
    pytest.param('{"input":["a"]}', '["a"]', id="not a text"),
    pytest.param('{"input":"cut of', "cut of", id="cut off"),
    pytest.param('{"input":"line\nbreak"}', "line\nbreak", id="raw line break"),
]


@pytest.mark.parametrize(("text", "whole"), FRAGMENTS)
def test_unwrap(text: str, whole: str) -> None:
    assert unwrap([text]) == whole
    assert unwrap(list(text)) == whole
    for at in range(len(text)):
        assert unwrap([text[:at], text[at:]]) == whole


@pytest.mark.parametrize("pieces", [(), ("",), ("*** Begin\n", '"x" ', "\\\U0001f600")])
@pytest.mark.parametrize("client", ["claude", "gemini", "chat"])
def test_a_freeform_call_that_the_client_never_declared(client: str, pieces: tuple[str, ...]) -> None:
    start = PartStart(0, call("apply_patch", custom=True))
    deltas = [PartDelta(0, "text", piece) for piece in pieces]
    began, *middle, ended = back([start, *deltas, PartEnd(0)], ask(dialect=client), "responses")
    assert began == PartStart(0, call("apply_patch"))
    assert ended == PartEnd(0)
    texts = [event.value for event in middle if isinstance(event, PartDelta)]
    assert json.loads("".join(texts)) == {"input": "".join(pieces)}


@settings(max_examples=80)
@given(st.text(), st.booleans(), st.lists(st.integers(0, 200), max_size=6))
def test_unwrap_at_any_split(text: str, ascii_only: bool, cuts: list[int]) -> None:
    wire = json.dumps({"input": text}, ensure_ascii=ascii_only)
    edges = [0, *sorted(cuts), len(wire)]
    assert unwrap([wire[a:b] for a, b in zip(edges, edges[1:])]) == text


def test_unwrap_streams() -> None:
    decoder = cp.Unwrapper()
    assert [decoder.feed(piece) for piece in ('{"inp', 'ut": "ab', "c\\", "n", '"}')] == [
        "",
        "ab",
        "c",
        "\n",
        "",
    ]


# --- thinking, limits

HIGH = Thinking("high")
ALL = {"temperature": 1.5, "top_p": 0.5, "top_k": 3, "logit_bias": {}, "seed": 1}
SAMPLING = [
    pytest.param(CLAUDE, "claude", Thinking(), ALL, id="older claude"),
    pytest.param(
        Target("claude", OPUS_47), "claude", Thinking(), {"logit_bias": {}, "seed": 1}, id="newer claude"
    ),
    pytest.param(OPENAI, "responses", Thinking(), {"seed": 1}, id="openai thinks"),
    pytest.param(
        OPENAI, "responses", Thinking("none"), {k: ALL[k] for k in ALL if k != "logit_bias"}, id="told not to"
    ),
    pytest.param(TARGETS["chat"], "chat", HIGH, ALL, id="third party"),
    pytest.param(Target("x", Model("x"), frozenset({"no-sampling"})), "chat", HIGH, {"seed": 1}, id="quirk"),
]


@pytest.mark.parametrize(("target", "dialect", "thinking_", "left"), SAMPLING)
def test_sampling(target: Target, dialect: str, thinking_: Thinking, left: dict[str, Any]) -> None:
    params = dict(fit(ask(dialect="gemini", params=ALL, thinking=thinking_), dialect, target).params)
    params.pop("max_tokens", None)
    assert params == left


# --- tools

F, G, H, SEARCH, CODE = (
    Tool("f"),
    Tool("g"),
    Tool("h"),
    Tool("web_search", kind="hosted"),
    Tool("file_search", kind="hosted"),
)
TOOLS = [  # tools, choice, dialect, names left, choice left
    pytest.param((F, G), ToolChoice("none"), "claude", "f g", ToolChoice("none"), id="none keeps the tools, claude"),
    pytest.param((F, G), ToolChoice("none"), "gemini", "f g", ToolChoice("none"), id="none keeps the tools, gemini"),
    pytest.param((F, G), ToolChoice("none"), "responses", "f g", ToolChoice("none"), id="none keeps the tools"),
    pytest.param((), ToolChoice("auto"), "claude", "", None, id="no tools, no choice"),
    pytest.param((F, G), ToolChoice("auto", ("f",)), "claude", "f", ToolChoice("auto"), id="subset"),
    pytest.param((F, G), ToolChoice("auto", ("f",)), "gemini", "f", ToolChoice("auto"), id="subset, gemini"),
    pytest.param((F, G), ToolChoice("required", ("f", "g")), "gemini", "f g", ToolChoice("required"), id="all of them"),
    pytest.param((F, G, H), ToolChoice("required", ("f", "g")), "gemini", "f g h", ToolChoice("required", ("f", "g")), id="forced"),
    pytest.param((F, G), ToolChoice("required", ("f", "g")), "claude", "f g", ToolChoice("required"), id="forced, claude"),
    pytest.param((F, G), ToolChoice("required", ("f",)), "claude", "f g", ToolChoice("required", ("f",)), id="one"),
    pytest.param((F, G), ToolChoice("auto", ("f",)), "responses", "f g", ToolChoice("auto", ("f",)), id="subset, native"),
    pytest.param((F, G), ToolChoice("auto", ("f",)), "chat", "f", ToolChoice("auto"), id="subset, third party"),
    pytest.param((F, SEARCH), None, "claude", "f web_search", None, id="search"),
    pytest.param((F, SEARCH), None, "chat", "f", None, id="no search"),
    pytest.param((CODE,), ToolChoice("auto"), "claude", "", None, id="unknown hosted tool"),
    pytest.param((F, SEARCH), None, "gemini", "f web_search", None, id="gemini 3 mixes"),
    pytest.param((SEARCH,), ToolChoice("required", ("web_search",)), "claude", "web_search",
                 ToolChoice("required", ("web_search",)), id="forced search"),
]  # fmt: skip


@pytest.mark.parametrize(("tools", "choice", "dialect", "left", "chosen"), TOOLS)
def test_tools(tools: Any, choice: Any, dialect: str, left: str, chosen: Any) -> None:
    client = "responses" if dialect != "responses" else "gemini"
    fitted = fit(ask(dialect=client, tools=tools, choice=choice, params={"parallel": False}), dialect)
    assert (" ".join(tool.name for tool in fitted.tools), fitted.choice) == (left, chosen)
    assert ("parallel" in fitted.params) is bool(left)


def test_tools_that_are_declared_twice() -> None:
    assert [tool.name for tool in fit(ask(tools=(F, G, F)), "claude").tools] == ["f", "g"]


# --- system texts and turns


def system(text: str) -> Message:
    return Message("system", (Part("text", text),))


SYSTEM = [  # messages, dialect, target, roles and texts
    pytest.param([user("a"), system("S")], "gemini", None, "user:a user:<system-reminder>\nS\n</system-reminder>", id="gemini"),
    pytest.param([user("a"), system("S")], "claude", None, "user:a user:<system-reminder>\nS\n</system-reminder>", id="claude"),
    pytest.param([user("a"), system("S")], "claude", Target("claude", OPUS_47._replace(traits=frozenset({"mid-system"}))),
                 "user:a system:S", id="newer claude"),
    pytest.param([user("a"), system("S")], "chat", None, "user:a system:S", id="chat"),
    pytest.param([user("a"), system("S")], "responses", None, "user:a system:S", id="responses"),
    pytest.param([assistant("a")], "claude", None, "user:. assistant:a", id="assistant first"),
    pytest.param([user("a"), assistant("b")], "claude", None, "user:a assistant:b", id="prefill"),
    pytest.param([user("a"), assistant("b")], "claude", Target("claude", OPUS_47),
                 "user:a assistant:b user:Continue.", id="no prefill"),
]  # fmt: skip


@pytest.mark.parametrize(("messages", "dialect", "target", "written"), SYSTEM)
def test_system(messages: list[Message], dialect: str, target: Target | None, written: str) -> None:
    client = "responses" if dialect == "chat" else "chat"
    fitted = fit(ask(*messages, dialect=client if client != dialect else "gemini"), dialect, target)
    assert " ".join(f"{m.role}:{cp.text_of(m.parts)}" for m in fitted.messages) == written


def test_system_alone_and_billing_header() -> None:
    texts = (Part("text", "x-anthropic-billing-header: cc_version=1"), Part("text", "S"))
    alone = Request("claude", "m", (), texts)
    blank = alone._replace(dialect="responses", messages=(user(""),))
    assert fit(blank, "claude").messages == (Message("user", texts),)
    assert fit(alone, "responses").messages == (Message("user", texts[1:]),)
    assert (fit(alone, "chat").system, fit(alone, "chat").messages) == (texts[1:], ())
    assert fit(alone, "claude").system == texts


# --- the way back


def gemini_answer() -> list[cp.Event]:  # conformance case 10, and a signed text
    return [
        MessageStart("r", "gemini-3"),
        *cp.part_events(0, Part("thinking", "t")),
        *cp.part_events(1, Part("text", "hi")),
        *cp.part_events(2, Part("text", "", proof="U0lH")),
        *cp.part_events(3, call("f", text='{"a":1}', proof="U0lH")),
        *cp.part_events(4, call("f", "c2")),
        MessageEnd("tool_calls"),
    ]


SEALED = cp.seal("U0lH", "gemini")
WAYS = [
    pytest.param("claude", "thinking:t:0 text:hi: thinking::S call:{\"a\":1}: call:{}:", id="claude"),
    pytest.param("responses", "thinking:t:0 text:hi: thinking::S call:{\"a\":1}: call:{}:", id="responses"),
    pytest.param("chat", "thinking:t: text:hi: call:{\"a\":1}:S call:{}:", id="chat"),
    pytest.param("gemini", "thinking:t: text:hi: text::U call:{\"a\":1}:U call:{}:", id="gemini"),
]  # fmt: skip


@pytest.mark.parametrize(("client", "parts"), WAYS)
def test_gemini_proofs_travel(client: str, parts: str) -> None:
    request = ask(dialect=client)
    events = back(gemini_answer(), request, "gemini")
    starts = [event.at for event in events if isinstance(event, PartStart)]
    assert starts == list(range(len(starts)))  # numbered without a gap
    proofs = {"": "", SEALED: "S", "U0lH": "U", cp.seal("", "gemini"): "0"}
    answer = cp.collect(events).choices[0].parts
    assert " ".join(f"{p.kind}:{p.text}:{proofs[p.proof]}" for p in answer) == parts
    again = ask(user("q"), assistant(*answer), results(("c1", "A"), ("c2", "B")), dialect=client)
    assert signatures(again) == ["U0lH", None]


def test_gemini_texts_are_not_held_back() -> None:
    events = (event for event in [PartStart(0, Part("text")), PartDelta(0, "text", "a"), RuntimeError])
    request = ask(dialect="claude")
    fitted = cp.fit_request(request, TARGETS["gemini"], "gemini")
    stream = cp.fit_events(events, request, fitted, TARGETS["gemini"])  # type: ignore[arg-type]
    assert [next(stream), next(stream)] == [PartStart(0, Part("text")), PartDelta(0, "text", "a")]


@pytest.mark.parametrize("client", NAMES)
@pytest.mark.parametrize("dialect", NAMES)
def test_proofs_of_thinking_are_sealed_for_foreign_clients(client: str, dialect: str) -> None:
    target = TARGETS[dialect]
    events = [*cp.part_events(0, thinking("P")), MessageEnd("stop")]
    part = cp.collect(back(events, ask(dialect=client), dialect)).choices[0].parts[0]
    assert cp.unseal(part.proof)[:2] == (("", "P") if client == dialect else (target.provider, "P"))


@pytest.mark.parametrize("client", NAMES)
def test_thinking_without_a_proof_is_marked(client: str) -> None:
    """Else such a block would pass to Claude or OpenAI untouched, and be refused."""
    events = [*cp.part_events(0, thinking("")), MessageEnd("stop")]
    for dialect in NAMES:
        part = cp.collect(back(events, ask(dialect=client), dialect)).choices[0].parts[0]
        marked = client in {"claude", "responses"} and client != dialect
        assert part.proof == (cp.seal("", TARGETS[dialect].provider) if marked else "")
        if marked:
            again = fit(ask(user("q"), assistant(part), user("go"), dialect=client), client)
            assert [message.role for message in again.messages] == ["user", "user"]


# --- the rows


def test_stream_errors() -> None:
    def row(name: str, body: dict[str, Any], event: str = "") -> cp.Dialect:
        none: Any = None
        return cp.Dialect(
            name, none, none, none, none, none, none, none, none, lambda _: body, (), b"", event
        )

    error = cp.ProxyError("overloaded", "busy")
    body = {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}
    assert cp.stream_error(row("claude", body, "error"), error).startswith(
        b'event: error\ndata: {"type":"error"'
    )
    assert cp.stream_error(row("gemini", {"error": {}}), error) == b'data: {"error":{}}\r\n\r\n'
    failed = {"error": {"message": "busy", "type": "server_error", "param": None, "code": "overloaded"}}
    frames = list(cp.sse_read([cp.stream_error(row("responses", failed), error)]))
    assert [frame["type"] for frame in frames] == ["error", "response.failed"]
    assert (frames[0]["code"], frames[1]["response"]["error"]["message"]) == ("overloaded", "busy")


def test_estimate() -> None:
    assert cp.estimate_tokens(ask(user("é" * 20))) == 10
    picture = user(Part("result", id="c", parts=media("image", "base64").parts))
    assert cp.estimate_tokens(ask(picture)) == 1500
    assert cp.estimate_tokens(ask(user(""), tools=(Tool("f", schema={"a": 1}),))) == 2
    assert cp.estimate_tokens(ask(media("document", "text", "x" * 40))) == 10


def test_cost_of_a_delta() -> None:
    deltas = [PartDelta(0, "text", "word ")] * 20_000
    for dialect in NAMES:
        request = ask(dialect="claude", tools=(PATCH,))
        fitted = cp.fit_request(request, TARGETS[dialect], dialect)

        def run(dialect: str = dialect, request: Request = request, fitted: cp.Fitted = fitted) -> None:
            said: list[cp.Event] = [PartStart(0, Part("text")), *deltas]
            events = (event for event in said)
            for _ in cp.fit_events(events, request, fitted, TARGETS[dialect]):
                pass

        assert effort(run, repeat=5) < 2


ASK: dict[str, dict[str, Any]] = {
    "claude": {"max_tokens": 9, "messages": [{"role": "user", "content": "q"}]},
    "chat": {"messages": [{"role": "user", "content": "q"}]},
    "responses": {"input": [{"role": "user", "content": "q"}]},
    "gemini": {"contents": [{"role": "user", "parts": [{"text": "q"}]}]},
}


def test_case_4_parallel_calls_without_ids() -> None:
    calls = [
        {"functionCall": {"name": "f", "args": {"n": 1}}},
        {"functionCall": {"name": "f", "args": {"n": 2}}},
    ]
    answers = [{"output": "A"}, {"error": "B"}]
    body = {"contents": [
        *ASK["gemini"]["contents"],
        {"role": "model", "parts": calls},
        {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": answer}} for answer in answers]},
    ]}  # fmt: skip
    written = up("gemini", body, "chat")
    _, turn, first, second = written["messages"]
    one, two = (made["id"] for made in turn["tool_calls"])
    assert one != two
    assert [made["function"]["arguments"] for made in turn["tool_calls"]] == ['{"n":1}', '{"n":2}']
    assert [(m["tool_call_id"], m["content"]) for m in (first, second)] == [(one, "A"), (two, "Error: B")]
    assert written == up("gemini", body, "chat")


def test_case_5_names_and_order_of_results() -> None:
    made = [
        {"type": "tool_use", "id": f"toolu_{n}", "name": name, "input": {}}
        for n, name in ((1, "get_x"), (2, "b"))
    ]
    told = [
        {"type": "tool_result", "tool_use_id": "toolu_2", "content": "A"},
        {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": '{"k":1}'}]},
    ]
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": made},
        {"role": "user", "content": told},
    ]
    _, model, answer = up("claude", {"max_tokens": 9, "messages": messages}, "gemini")["contents"]
    responses = [part["functionResponse"] for part in answer["parts"]]
    assert [(r["name"], r["response"]) for r in responses] == [("get_x", {"k": 1}), ("b", {"output": "A"})]
    assert [part.get("thoughtSignature") for part in model["parts"]] == [cp.GEMINI_SENTINEL, None]


CODEX_STREAM: list[dict[str, Any]] = [
    {"type": "response.created", "response": {"id": "r", "model": "x"}},
    {"type": "response.output_item.added", "output_index": 0, "item": {"id": "rs_1", "type": "reasoning", "summary": []}},
    {"type": "response.output_item.done", "output_index": 0,
     "item": {"id": "rs_1", "type": "reasoning", "summary": [], "encrypted_content": "gAAAA"}},
    {"type": "response.output_item.added", "output_index": 1,
     "item": {"id": "fc_1", "type": "function_call", "call_id": "call_1", "name": "f", "arguments": ""}},
    {"type": "response.output_item.done", "output_index": 1,
     "item": {"id": "fc_1", "type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"}},
    {"type": "response.completed", "response": {"id": "r", "status": "completed", "output": [], "usage": None}},
]  # fmt: skip


@pytest.mark.parametrize("client", ["claude", "chat", "gemini"])
def test_proofs_of_codex_come_back_through_any_client(client: str) -> None:
    request = read(client, ASK[client])
    events = back(
        list(cp.DIALECTS["responses"].read_stream(iter(CODEX_STREAM), request)), request, "responses"
    )
    body = cp.DIALECTS[client].write_response(cp.collect(events), request)
    turns: dict[str, Callable[[], dict[str, Any]]] = {
        "claude": lambda: {"max_tokens": 9, "messages": [
            *ASK["claude"]["messages"], {"role": "assistant", "content": body["content"]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "call_1", "content": "r"}]}]},
        "chat": lambda: {"messages": [
            *ASK["chat"]["messages"], body["choices"][0]["message"],
            {"role": "tool", "tool_call_id": "call_1", "content": "r"}]},
        "gemini": lambda: {"contents": [
            *ASK["gemini"]["contents"], body["candidates"][0]["content"],
            {"role": "user", "parts": [{"functionResponse": {"id": "call_1", "name": "f", "response": {}}}]}]},
    }  # fmt: skip
    again = turns[client]()
    items = up(client, again, "responses")["input"]
    assert [item.get("encrypted_content") for item in items if item.get("type") == "reasoning"] == ["gAAAA"]
    assert cp.PROOF_MARK.decode() in json.dumps(again)
    for dialect in ("claude", "gemini", "chat"):
        assert cp.PROOF_MARK.decode() not in json.dumps(up(client, again, dialect))


def test_case_14_freeform_call() -> None:
    tool = {
        "type": "custom",
        "name": "apply_patch",
        "format": {"type": "grammar", "syntax": "lark", "definition": "G"},
    }
    fragments = ["", '{"in', 'put": "***', " Begin\\", 'n\\"x\\"', '"}']
    deltas = [{"type": "input_json_delta", "partial_json": fragment} for fragment in fragments]
    start = {"type": "tool_use", "id": "A", "name": "apply_patch", "input": {}}
    frames = down(
        "responses", {**ASK["responses"], "tools": [tool]}, "claude", claude_stream((start, *deltas))
    )
    kinds = [frame["type"] for frame in frames]
    text = '*** Begin\n"x"'
    assert "response.function_call_arguments.delta" not in kinds
    assert "".join(f["delta"] for f in frames if f["type"] == "response.custom_tool_call_input.delta") == text
    item = frames[kinds.index("response.output_item.done")]["item"]
    assert (item["type"], item["call_id"], item["name"], item["input"]) == (
        "custom_tool_call",
        "A",
        "apply_patch",
        text,
    )


def test_case_20_none_and_server_state() -> None:
    tools = [{"name": "f", "input_schema": {"type": "object", "properties": {"a": {}}}}]
    body = {**ASK["claude"], "tools": tools, "tool_choice": {"type": "none"}}
    assert (
        up("claude", body, "chat")["tool_choice"] == up("claude", body, "responses")["tool_choice"] == "none"
    )
    assert up("claude", body, "gemini")["toolConfig"] == {"functionCallingConfig": {"mode": "NONE"}}
    assert all(up("claude", body, dialect)["tools"] for dialect in NAMES)
    with pytest.raises(cp.ProxyError) as caught:
        up("responses", {**ASK["responses"], "previous_response_id": "resp_1"}, "claude")
    error = cp.DIALECTS["responses"].write_error(caught.value)["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", "previous_response_id")


@pytest.mark.parametrize("client", NAMES)
@pytest.mark.parametrize("dialect", NAMES)
def test_every_pair(client: str, dialect: str) -> None:
    assert "q" in json.dumps(up(client, ASK[client], dialect))


# --- what one service alone has a form of is told as text

LOADED = "mcp__" + "x" * 70  # longer than a name may be
SEARCHED: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": [
            {"type": "tool_reference", "tool_name": LOADED}, {"type": "tool_reference", "tool_name": "gone"},
            {"type": "novelty", "x": 1},
        ]}]},
    ],
    "tools": [{"name": name, "input_schema": {"type": "object"}, "defer_loading": True} for name in ("f", LOADED)],
}  # fmt: skip


@pytest.mark.parametrize("dialect", ["chat", "responses", "gemini"])
def test_what_a_search_for_tools_found(dialect: str) -> None:
    request = fit(read("claude", SEARCHED), dialect)
    written = request.tools[1].name
    (result,) = request.messages[2].parts
    texts = [f"Loaded: {written}", "Loaded: gone", "[novelty, which cannot be shown here]"]
    assert [part.text for part in result.parts] == texts
    assert all(text in json.dumps(up("claude", SEARCHED, dialect)) for text in texts)
    assert (
        cp.claude_write_request(fit(read("claude", SEARCHED), "claude"), CLAUDE)["messages"]
        == SEARCHED["messages"]
    )


CODEX_HISTORY: list[dict[str, Any]] = [
    {"type": "compaction", "encrypted_content": "secret"},
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "q"}]},
    {
        "type": "local_shell_call", "id": "lsh_1", "call_id": "c1", "status": "completed",
        "action": {"type": "exec", "command": ["ls", "-l"], "timeout_ms": 1000},
    },
    {"type": "function_call_output", "call_id": "c1", "output": "total 0"},
    {"type": "tool_search_call", "call_id": "c2", "status": "completed", "execution": "client", "arguments": {"query": "mail"}},
    {"type": "tool_search_output", "call_id": "c2", "status": "completed", "execution": "client", "tools": [
        {"type": "namespace", "name": "mail", "description": "d", "tools": [
            {"type": "function", "name": "send", "description": "Send it", "strict": False, "parameters": {"type": "object"}}
        ]}
    ]},
    {"type": "function_call", "call_id": "c3", "name": "send", "namespace": "mail", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c3", "output": "sent"},
    {"type": "shell_call", "id": "sh_1", "call_id": "c4", "action": {"commands": ["pwd"]}},
    {"type": "shell_call_output", "call_id": "c4", "output": [{"stdout": "/tmp", "stderr": ""}]},
    {"type": "apply_patch_call", "call_id": "c5", "operation": {"type": "delete_file", "path": "a"}},
    {"type": "apply_patch_call_output", "call_id": "c5", "status": "completed", "output": "done"},
    {"type": "computer_call", "call_id": "c6", "action": {"type": "screenshot"}},
    {"type": "computer_call_output", "call_id": "c6", "output": {"type": "computer_screenshot", "image_url": "data:image/png;base64,AA=="}},
    {"type": "tool_search_call", "call_id": "c7", "arguments": '{"query":"x"}'},
    {"type": "tool_search_output", "call_id": "c7", "tools": []},
]  # fmt: skip


@pytest.mark.parametrize("dialect", ["claude", "chat", "gemini"])
def test_a_history_of_codex_goes_to_others(dialect: str) -> None:
    request = fit(read("responses", {"input": CODEX_HISTORY}), dialect)
    parts = [part for message in request.messages for part in message.parts]
    calls = [(part.name, json.loads(part.text)) for part in parts if part.kind == "call"]
    results = [part.parts for part in parts if part.kind == "result"]
    assert calls == [
        ("local_shell", CODEX_HISTORY[2]["action"]),
        ("tool_search", {"query": "mail"}),
        ("mail__send", {}),
        ("shell", {"commands": ["pwd"]}),
        ("apply_patch", {"type": "delete_file", "path": "a"}),
        ("computer", {"type": "screenshot"}),
        ("tool_search", {"query": "x"}),
    ]
    said = [
        "total 0",
        "Loaded: mail__send",
        "sent",
        '[{"stdout":"/tmp","stderr":""}]',
        "done",
        "",
        "Found no tools.",
    ]
    assert [pieces[0].text for pieces in results] == said
    assert results[5][0].media == cp.Media("image", "base64", "AA==", "image/png")
    assert (request.messages[0].role, request.messages[0].parts[0].text) == ("user", cp.COMPACTED)
    assert [tool.name for tool in request.tools] == ["mail__send"], "it can be called from now on"
    assert "secret" not in json.dumps(up("responses", {"input": CODEX_HISTORY}, dialect))


def test_a_history_of_codex_stays_what_it_was() -> None:
    assert up("responses", {"input": CODEX_HISTORY}, "responses")["input"] == CODEX_HISTORY


@pytest.mark.parametrize("kind", ["compaction", "compaction_summary", "context_compaction"])
def test_what_codex_compacted_cannot_be_read(kind: str) -> None:
    said = [{"type": kind, "encrypted_content": "secret"}, {"role": "user", "content": "q"}]
    for dialect in ("claude", "chat", "gemini"):
        sent = json.dumps(up("responses", {"input": said}, dialect))
        assert (cp.COMPACTED in sent, "secret" in sent) == (True, False)


def test_what_claude_compacted_can_be_read() -> None:
    said = [{"type": "compaction", "content": "They said hello."}, {"type": "text", "text": "Hm."}]
    body = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": said}]}
    for dialect in ("chat", "responses", "gemini"):
        assert "They said hello." in json.dumps(up("claude", body, dialect))


URL = "data:image/png;base64,QUJD"
SHOTS: list[Any] = [  # the content of a result in the forms of the dialects and of MCP, as one text
    pytest.param([{"type": "input_image", "image_url": URL}], id="responses"),
    pytest.param(
        [{"type": "text", "text": "two"}, {"type": "image_url", "image_url": {"url": URL}}], id="chat"
    ),
    pytest.param(
        [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QUJD"}}],
        id="claude",
    ),
    pytest.param(
        [{"type": "text", "text": "two"}, {"type": "image", "data": "QUJD", "mimeType": "image/png"}],
        id="mcp",
    ),
]
TEXTS = [
    pytest.param([{"type": "text", "text": "an image"}], id="no image"),
    pytest.param([{"type": "image_url"}], id="no url"),
    pytest.param([{"type": "text", "text": "x"}, {"type": "image_of_a_new_kind"}], id="unknown"),
    pytest.param(["image"], id="texts"),
    pytest.param([{"image": 1}], id="no type"),
]


def result_of(client: str, said: str, dialect: str) -> tuple[Part, ...]:
    """Return the parts of the result of a tool, as they go to a target."""
    bodies: dict[str, Any] = {
        "claude": {"messages": [
            {"role": "assistant", "content": [{"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": said}]},
        ]},
        "chat": {"messages": [
            {"role": "assistant", "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
            ]},
            {"role": "tool", "tool_call_id": "c1", "content": said},
        ]},
        "responses": {"input": [
            {"type": "custom_tool_call", "call_id": "c1", "name": "f", "input": ""},
            {"type": "custom_tool_call_output", "call_id": "c1", "output": said},
        ]},
        "gemini": {"contents": [
            {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {}}}]},
            {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {"output": said}}}]},
        ]},
    }  # fmt: skip
    request = fit(read(client, bodies[client]), dialect)
    (result,) = (part for message in request.messages for part in message.parts if part.kind == "result")
    return result.parts


@pytest.mark.parametrize("shots", SHOTS)
@pytest.mark.parametrize(("client", "dialect"), [(c, d) for c in NAMES for d in NAMES if c != d])
def test_images_in_a_text(client: str, dialect: str, shots: Any) -> None:
    media = [part.media for part in result_of(client, json.dumps(shots), dialect) if part.media]
    assert [(image.source, image.data, image.mime) for image in media] == [("base64", "QUJD", "image/png")]


@pytest.mark.parametrize("said", TEXTS)
@pytest.mark.parametrize("client", NAMES)
def test_texts_that_are_no_images(client: str, said: Any) -> None:
    text = json.dumps(said)
    assert result_of(client, text, "chat" if client == "claude" else "claude")[0].text == text


# --- how a conversation begins and ends


BLANK = user("")
ENDINGS = [  # messages, model, as Claude gets them
    pytest.param([BLANK], None, [("user", ".")], id="nothing said"),
    pytest.param([user("q"), assistant("Say: \n")], None, [("user", "q"), ("assistant", "Say:")], id="white space"),
    pytest.param(
        [user("q"), assistant("Say: ", " ")], None, [("user", "q"), ("assistant", "Say:")], id="a blank part"
    ),
    pytest.param([user("q"), assistant(" ")], None, [("user", "q")], id="a blank prefill"),
    pytest.param([BLANK, assistant("a"), user("q")], None, [("user", "."), ("assistant", "a"), ("user", "q")], id="first"),
    pytest.param([user("q"), assistant("a "), BLANK], None, [("user", "q"), ("assistant", "a")], id="a blank end"),
    pytest.param(
        [user("q"), assistant("a "), user("b")],
        None,
        [("user", "q"), ("assistant", "a "), ("user", "b")],
        id="in the middle",
    ),
    pytest.param(
        [user("q"), assistant("a "), BLANK],
        OPUS_46,
        [("user", "q"), ("assistant", "a "), ("user", "Continue.")],
        id="no prefill",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("messages", "model", "written"), ENDINGS)
def test_how_conversations_begin_and_end_at_claude(
    messages: list[Message], model: Model | None, written: list[tuple[str, str]]
) -> None:
    target = Target("claude", model) if model else CLAUDE
    body = cp.claude_write_request(fit(ask(*messages), "claude", target), target)
    said = [(m["role"], "".join(block["text"] for block in m["content"])) for m in body["messages"]]
    assert said == written


@pytest.mark.parametrize("client", NAMES)
@pytest.mark.parametrize("dialect", NAMES)
def test_an_empty_question_is_no_empty_list(client: str, dialect: str) -> None:
    if client == dialect:
        return  # it passes
    body = cp.DIALECTS[dialect].write_request(fit(ask(BLANK, dialect=client), dialect), TARGETS[dialect])
    assert body.get("messages") or body.get("input") or body.get("contents")


# --- cache marks


def marked(part: Part | Tool) -> Any:
    return part._replace(cache="5m")


def test_claude_gets_four_cache_marks_at_most() -> None:
    text, result = marked(Part("text", "x")), Part("result", id="c1", parts=(marked(Part("text", "r")),))
    request = ask(
        user(text, text), assistant(marked(call("f"))), Message("tool", (result,)), user(text),
        system=(text, text), tools=(marked(Tool("f")), marked(Tool("g"))),
    )  # fmt: skip
    body = cp.claude_write_request(fit(request, "claude"), CLAUDE)
    assert json.dumps(body).count("cache_control") == 4
    assert ["cache_control" in tool for tool in body["tools"]] == [False, True]
    assert ["cache_control" in block for block in body["system"]] == [False, True]
    *_, last = body["messages"]
    assert ["cache_control" in json.dumps(block) for block in last["content"]] == [True, True]


def test_four_cache_marks_stay_where_they_are() -> None:
    text = marked(Part("text", "x"))
    request = ask(user(text, text), assistant("a"), user(text, text))
    assert fit(request, "claude").messages == request.messages


# --- media of documents, and of answers


@pytest.mark.parametrize("dialect", ["chat", "responses", "gemini"])
@pytest.mark.parametrize("inside", [False, True], ids=["message", "result"])
def test_pictures_in_documents_are_seen_by_others(dialect: str, inside: bool) -> None:
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "UElD"}}
    content = [{"type": "text", "text": "words"}, picture]
    block: dict[str, Any] = {"type": "document", "source": {"type": "content", "content": content}}
    messages: list[dict[str, Any]] = [{"role": "user", "content": [block]}]
    if inside:
        use = {"type": "tool_use", "id": "c1", "name": "f", "input": {}}
        result = {"type": "tool_result", "tool_use_id": "c1", "content": [block]}
        messages = [{"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    body = {"model": "m", "max_tokens": 9, "messages": messages}
    written = json.dumps(up("claude", body, dialect))
    assert "words" in written
    assert "UElD" in written


PICTURE = Media("image", "base64", "AA==", "image/png")
LEFT_OUT = [  # client, what its answer has no place for, what it says instead
    pytest.param("claude", PICTURE, "[image: image/png, left out]", id="picture"),
    pytest.param("claude", Media("image", "url", "https://e.example/i"), "[image: https://e.example/i]", id="address"),
    pytest.param("responses", Media("image", "url", "https://e.example/i"), "[image: https://e.example/i]", id="by url"),
    pytest.param("responses", Media("audio", "base64", "AA==", "audio/wav"), "[audio: audio/wav, left out]", id="sound"),
    pytest.param("chat", Media("video", "base64", "AA==", "video/mp4"), "[video: video/mp4, left out]", id="film"),
]  # fmt: skip


@pytest.mark.parametrize(("client", "media", "said"), LEFT_OUT)
def test_an_answer_names_the_media_that_it_leaves_out(client: str, media: Media, said: str) -> None:
    dialect = "chat" if client != "chat" else "gemini"
    events = [*cp.part_events(0, Part("media", media=media)), MessageEnd("stop")]
    request = ask(dialect=client, id="7f", created=1)
    came = back(events, request, dialect)
    assert cp.collect(came).choices[0].parts == (Part("text", said),)
    row = cp.DIALECTS[client]
    assert said in json.dumps(row.write_response(cp.collect(came), request))
    assert said.encode() in b"".join(row.write_stream(iter(came), request))


@pytest.mark.parametrize("client", ["chat", "responses"])
def test_a_picture_is_shown_where_there_is_a_place(client: str) -> None:
    events = [*cp.part_events(0, Part("media", media=PICTURE)), MessageEnd("stop")]
    assert cp.collect(back(events, ask(dialect=client), "gemini")).choices[0].parts[0].media == PICTURE


# --- what an upstream says must be what it says it is


WRONG = [
    pytest.param(Part("text"), "text", ["x"], id="text is a list"),
    pytest.param(Part("thinking"), "text", {"x": 1}, id="thinking is an object"),
    pytest.param(call("f", text=""), "text", 5, id="arguments are a number"),
    pytest.param(Part("thinking"), "proof", ["x"], id="proof"),
    pytest.param(Part("text"), "citation", cp.Citation(url=["x"]), id="address of a source"),  # type: ignore[arg-type]
    pytest.param(Part("text"), "citation", cp.Citation("u", end="9"), id="place of a source"),  # type: ignore[arg-type]
    pytest.param(Part("text"), "logprobs", "x", id="logprobs"),
    pytest.param(Part("text"), "logprobs", ["x"], id="logprob"),
    pytest.param(Part("text"), "logprobs", [{"token": 5, "logprob": -1.0}], id="token"),
    pytest.param(Part("text"), "logprobs", [{"token": "a", "logprob": "b"}], id="probability"),
    pytest.param(Part("text"), "logprobs", [{"token": "a", "logprob": 0, "top_logprobs": ["x"]}], id="top"),
]  # fmt: skip


@pytest.mark.parametrize("client", NAMES)
@pytest.mark.parametrize("dialect", NAMES)
@pytest.mark.parametrize(("part", "field", "value"), WRONG)
def test_deltas_of_a_wrong_type_are_the_upstreams_failure(
    client: str, dialect: str, part: Part, field: str, value: Any
) -> None:
    said = PartDelta(0, "text", "a")
    events: list[cp.Event] = [
        PartStart(0, part),
        said,
        PartDelta(0, field, value),
        PartEnd(0),
        MessageEnd("stop"),
    ]
    with pytest.raises(cp.ProxyError) as caught:
        back(events, ask(dialect=client), dialect)
    assert caught.value.kind == "upstream_failed"


COUNTED: dict[str, dict[str, Any]] = {  # dialect -> usage in which nothing is a number
    "claude": {"input_tokens": "7\nforged", "output_tokens": [], "output_tokens_details": "x"},
    "chat": {"prompt_tokens": "7\nforged", "completion_tokens": {}, "prompt_tokens_details": "x"},
    "responses": {"input_tokens": "7\nforged", "output_tokens": True, "input_tokens_details": "x"},
    "gemini": {"promptTokenCount": "7\nforged", "candidatesTokenCount": [], "totalTokenCount": 1e400},
}


@pytest.mark.parametrize("dialect", NAMES)
def test_only_numbers_are_counted(dialect: str) -> None:
    assert cp.DIALECTS[dialect].read_usage(COUNTED[dialect])[:5] == (0, 0, 0, 0, 0)


# --- the tokens that an answer begins with


def test_an_answer_to_claudes_clients_begins_with_the_tokens_that_are_known() -> None:
    request = ask(user("é" * 20), dialect="claude", stream=True, id="7f")
    start = MessageStart("i", "m")
    (unknown,) = back([start], request, "chat")
    (known,) = back([start._replace(usage=cp.Usage(777))], request, "chat")
    frames = [next(cp.claude_write_stream(iter([event]), request)) for event in (unknown, known)]
    told = [next(cp.sse_read([frame]))["message"]["usage"]["input_tokens"] for frame in frames]
    assert told == [10, 777]
    assert back([start], ask(dialect="chat", stream=True), "claude")[0] == start._replace(
        id="chatcmpl-i", model="m"
    )


@pytest.mark.parametrize("dialect", ["claude", "gemini"])
def test_who_tells_its_input_at_once(dialect: str) -> None:
    usage = {"promptTokenCount": 777, "candidatesTokenCount": 1, "totalTokenCount": 778}
    payloads: dict[str, dict[str, Any]] = {
        "claude": {"type": "message_start", "message": {"usage": {"input_tokens": 777, "output_tokens": 1}}},
        "gemini": {"candidates": [{"content": {"parts": [{"text": "x"}]}}], "usageMetadata": usage},
    }
    start = next(cp.DIALECTS[dialect].read_stream(iter([payloads[dialect]]), ask(dialect="claude")))
    assert isinstance(start, MessageStart)
    assert start.usage
    assert start.usage.input == 777
