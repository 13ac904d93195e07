"""Room DIALECTS, and SCHEMAS: what a request needs before a foreign upstream takes it, and the way back."""

from __future__ import annotations

import base64
import json
import re
import timeit
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import cliproxy as cp
from cliproxy import (
    Format,
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

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = ("claude", "chat", "responses", "gemini")
SONNET_45 = Model("claude-sonnet-4-5", output=64_000, budget=(1024, 128_000), thinking=True)
OPUS_46 = Model(
    "claude-opus-4-6", output=128_000, budget=(1024, 128_000), levels=("low", "medium", "high", "max")
)
OPUS_47 = OPUS_46._replace(id="claude-opus-4-7", levels=("low", "medium", "high", "xhigh", "max"))
SONNET_5 = Model("claude-sonnet-5", output=128_000, levels=OPUS_47.levels)
HAIKU_35 = Model("claude-3-5-haiku", output=8192, thinking=False)
GPT_51 = Model("gpt-5.1", output=128_000, levels=("none", "low", "medium", "high"))
CODEX = Model("gpt-5.4", output=128_000, levels=("low", "medium", "high", "xhigh"), can_stop=False)
GEMINI_25 = Model("gemini-2.5-flash", output=65_536, budget=(0, 24_576))
GEMINI_25_PRO = Model("gemini-2.5-pro", output=65_536, budget=(128, 32_768), can_stop=False)
GEMINI_3 = Model(
    "gemini-3-pro-preview", output=65_536, budget=(128, 32_768), levels=("low", "high"), can_stop=False
)

CLAUDE = Target("claude", SONNET_45)
OPENAI = Target("openai", GPT_51)
TARGETS = {
    "claude": CLAUDE,
    "chat": Target("deepseek", Model("deepseek-chat")),
    "responses": Target("codex", CODEX),
    "gemini": Target("gemini", GEMINI_3),
}


def user(*parts: Part | str) -> Message:
    return Message("user", tuple(Part("text", p) if isinstance(p, str) else p for p in parts))


def assistant(*parts: Part | str) -> Message:
    return user(*parts)._replace(role="assistant")


def results(*pairs: tuple[str, str]) -> Message:
    return Message("tool", tuple(Part("result", id=key, parts=(Part("text", text),)) for key, text in pairs))


def call(name: str, id: str = "c1", text: str = "{}", **fields: Any) -> Part:
    return Part("call", text, id, name, **fields)


def ask(*messages: Message, dialect: str = "chat", **fields: Any) -> Request:
    return Request(dialect, fields.pop("model", "m"), messages or (user("q"),), **fields)


def fit(request: Request, dialect: str, target: Target | None = None) -> Request:
    return cp.fit_request(request, target or TARGETS[dialect], dialect).request


def back(
    events: list[cp.Event], request: Request, dialect: str, target: Target | None = None
) -> list[cp.Event]:
    target = target or TARGETS[dialect]
    return list(cp.fit_events(iter(events), request, cp.fit_request(request, target, dialect), target))


# --- what cannot be expressed


def media(kind: str, source: str, data: str = "AA==", mime: str = "") -> Message:
    return user(Part("media", media=Media(kind, source, data, mime)))


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
    pytest.param(ask(opaque("compaction"), dialect="responses"), "gemini", "input", id="compaction"),
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
    *[
        pytest.param(
            ask(dialect="claude", tools=(Tool("web_search", kind="hosted"),), choice=ToolChoice("required")),
            to, "tool_choice", id=f"any of hosted tools to {to}",
        )
        for to in ("chat", "gemini")
    ],
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


# --- proofs


@given(st.text(), st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True))
def test_seal_round_trip(proof: str, provider: str) -> None:
    sealed = cp.seal(proof, provider)
    assert sealed.encode().startswith(cp.PROOF_MARK)
    urlsafe = sealed.translate({ord("+"): "-", ord("/"): "_"})
    assert cp.unseal(sealed) == cp.unseal(urlsafe) == cp.unseal(urlsafe.rstrip("=")) == (provider, proof)
    base64.b64decode(sealed, validate=True)


@given(st.text())
def test_unseal_takes_anything(proof: str) -> None:
    cp.unseal(cp.PROOF_MARK.decode() + proof)
    assert cp.unseal(proof)[1] == proof or proof.startswith(cp.PROOF_MARK.decode())


def thinking(proof: str, text: str = "t", **fields: Any) -> Part:
    return Part("thinking", text, proof=proof, **fields)


PROOFS = [  # client, its part, target, what is left
    pytest.param("claude", thinking("SIG"), "claude", thinking("SIG"), id="own"),
    pytest.param("claude", thinking("SIG"), "gemini", None, id="untagged is its dialect's"),
    pytest.param("claude", thinking("SIG"), "responses", None, id="claude to codex"),
    pytest.param("claude", thinking("SIG"), "chat", None, id="claude to chat"),
    pytest.param("claude", thinking(cp.seal("E", "codex")), "responses", thinking("E"), id="sealed, back home"),
    pytest.param("claude", thinking(cp.seal("E", "openai")), "responses", thinking("E"), id="same vendor"),
    pytest.param("claude", thinking(cp.seal("E", "codex")), "claude", None, id="sealed, foreign"),
    pytest.param("claude", thinking(cp.seal("E", "codex")), "gemini", None, id="sealed, foreign to both"),
    pytest.param("responses", thinking(cp.seal("S", "claude")), "claude", thinking("S"), id="case 7"),
    pytest.param("responses", thinking(cp.seal("S", "claude")), "responses", None, id="rewritten, foreign"),
    pytest.param("responses", thinking("gAAA"), "responses", thinking("gAAA"), id="rewritten, own"),
    pytest.param("responses", thinking(""), "responses", thinking(""), id="rewritten, never signed"),
    pytest.param("claude", thinking(""), "claude", None, id="made-up signature"),
    pytest.param("claude", thinking("", "t", redacted=True), "claude", None, id="redacted without proof"),
    pytest.param("claude", thinking("D", "", redacted=True), "claude", thinking("D", "", redacted=True), id="redacted"),
    pytest.param("claude", thinking("D", "", redacted=True), "responses", None, id="redacted, foreign"),
    pytest.param("gemini", Part("text", "a", proof="U0lH"), "claude", Part("text", "a"), id="signed text"),
    pytest.param("chat", Part("text", "a"), "claude", Part("text", "a"), id="plain"),
    pytest.param("chat", thinking(""), "chat", thinking(""), id="chat to chat"),
    pytest.param("chat", thinking(""), "claude", None, id="unsigned to claude"),
    pytest.param("chat", Part("opaque", extra={"chat": {}}), "claude", None, id="opaque, foreign"),
    pytest.param("claude", Part("hosted", name="web_search"), "gemini", None, id="hosted, foreign"),
    pytest.param(
        "claude", Part("hosted", name="web_search"), "responses", Part("hosted", name="web_search"), id="hosted search"
    ),
]  # fmt: skip


@pytest.mark.parametrize(("client", "part", "dialect", "left"), PROOFS)
def test_proofs(client: str, part: Part, dialect: str, left: Part | None) -> None:
    messages = fit(ask(user("q"), assistant(part), user("go"), dialect=client), dialect).messages
    kept = [m.parts[0] for m in messages if m.role == "assistant"]
    assert kept == ([left] if left else [])  # with its last part a message goes too


def test_thinking_for_a_host_that_wants_it_back() -> None:
    target = Target("deepseek", Model("r"), frozenset({"reasoning-content"}))
    parts = (
        fit(ask(user("q"), assistant(thinking("SIG"), call("f")), dialect="claude"), "chat", target)
        .messages[1]
        .parts
    )
    assert parts[0] == thinking("")


def signatures(request: Request, model: Model = GEMINI_3) -> list[str | None]:
    """Return the proofs of the calls in what Gemini's writer makes of a fitted request."""
    target = Target("gemini", model)
    body = cp.gemini_write_request(fit(request, "gemini", target), target)
    parts = [part for content in body["contents"] for part in content["parts"] if "functionCall" in part]
    return [part.get("thoughtSignature") for part in parts]


def test_gemini_proof_is_put_back_on_its_call() -> None:
    history = assistant("hi", thinking(cp.seal("U0lH", "gemini"), ""), call("f"), call("g", "c2"))
    request = ask(user("q"), history, results(("c1", "A"), ("c2", "B")), dialect="claude")
    assert signatures(request) == ["U0lH", None]


@pytest.mark.parametrize(("model", "proof"), [(GEMINI_3, cp.GEMINI_SENTINEL), (GEMINI_25, None)])
def test_lost_gemini_proofs(model: Model, proof: str | None) -> None:
    step = (assistant(call("f"), call("g", "c2")), results(("c1", "A"), ("c2", "B")))
    again = (assistant(thinking("SIG"), call("f", "c3")), results(("c3", "C")))
    assert signatures(ask(user("q"), *step, *again, dialect="claude"), model) == [proof, None, proof]


# --- names and ids

WORDS = st.one_of(
    st.text(max_size=90), st.from_regex(r"mcp__[a-z]{1,60}__[a-zA-Z0-9_.-]{1,60}", fullmatch=True)
)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(["", "ns", "n s"]), WORDS), max_size=12), st.sampled_from(NAMES))
def test_names_are_legal_and_injective(keys: list[tuple[str, str]], dialect: str) -> None:
    tools = tuple(Tool(name, namespace=space) for space, name in keys)
    names = cp.name_tools(ask(tools=tools), dialect)
    assert names.keys() == set(keys)
    assert len(set(names.values())) == len(names)
    assert all(re.fullmatch(cp.NAME_RULES[dialect].legal, name) for _, name in names.values())
    assert dialect == "responses" or not any(space for space, _ in names.values())
    assert names == cp.name_tools(ask(tools=tools[::-1]), dialect)  # whatever the order


LONG = "mcp__very_long_server_name__" + "x" * 60


@pytest.mark.parametrize("dialect", ["chat", "responses"])
def test_long_names_and_ids(dialect: str) -> None:  # conformance case 16
    short = cp.legal_name(LONG, cp.NAME_RULES[dialect])
    long_id = "toolu_" + "y" * 84
    request = ask(
        user("q"), assistant(call(LONG, long_id)), results((long_id, "r")), dialect="claude",
        tools=(Tool(LONG), Tool(short)), choice=ToolChoice("required", (LONG,)),
    )  # fmt: skip
    fitted = cp.fit_request(request, TARGETS[dialect], dialect)
    first, second = (tool.name for tool in fitted.request.tools)
    assert second == short != first
    assert re.fullmatch(r"mcp__x+_[0-9a-f]{8}", first)
    assert len(first) <= 64
    assert fitted.request.choice == ToolChoice("required", (first,))
    made, result = fitted.request.messages[1].parts[0], fitted.request.messages[2].parts[0]
    assert made.name == first
    assert made.id == result.id
    assert len(made.id) <= (40 if dialect == "chat" else 64)
    assert fitted == cp.fit_request(request, TARGETS[dialect], dialect)
    answer = [MessageStart("i", "other"), *cp.part_events(0, call(first, "c9")), MessageEnd("tool_calls")]
    restored = back(answer, request, dialect)
    assert restored[0] == MessageStart("i", "m")
    assert isinstance(restored[1], PartStart)
    assert restored[1].part.name == LONG


@pytest.mark.parametrize(
    ("tools", "space", "written"),
    [
        pytest.param((Tool("run"),), "a", "run", id="declared without"),
        pytest.param((), "run", "run", id="its own"),
        pytest.param((Tool("run"), Tool("run", namespace="a")), "a", "a__run", id="declared with"),
        pytest.param((), "a", "a__run", id="not declared"),
    ],
)
def test_calls_out_of_a_tool_search(tools: tuple[Tool, ...], space: str, written: str) -> None:
    request = ask(user("q"), assistant(call("run", namespace=space)), dialect="responses", tools=tools)
    (part,) = fit(request, "chat").messages[1].parts
    assert (part.namespace, part.name) == ("", written)


def test_namespaces() -> None:
    tools = (Tool("run", namespace="a"), Tool("run", namespace="b"), Tool("a__run"))
    request = ask(user("q"), assistant(call("run", namespace="a")), dialect="responses", tools=tools)
    flat = fit(request, "chat")
    assert [(t.namespace, t.name) for t in flat.tools][1:] == [("", "b__run"), ("", "a__run")]
    assert re.fullmatch(r"a__run_[0-9a-f]{8}", flat.tools[0].name)
    assert flat.messages[1].parts[0].name == flat.tools[0].name
    events = back(list(cp.part_events(0, call("b__run"))), request, "chat")
    assert isinstance(events[0], PartStart)
    assert (events[0].part.namespace, events[0].part.name) == ("b", "run")
    kept = fit(request._replace(dialect="chat"), "responses")
    assert [(t.namespace, t.name) for t in kept.tools] == [("a", "run"), ("b", "run"), ("", "a__run")]


@pytest.mark.parametrize("dialect", NAMES)
def test_names_stay_within_one_dialect(dialect: str) -> None:
    tools = (Tool("a b", namespace="n s"), Tool(LONG))
    history = (user("q"), assistant(call("a b", namespace="n s")), results(("c1", "r")))
    request = ask(*history, dialect=dialect, tools=tools, choice=ToolChoice("required", (LONG,)))
    fitted = fit(request, dialect)
    assert (fitted.tools, fitted.choice) == (request.tools, request.choice)
    assert fitted.messages is request.messages


@pytest.mark.parametrize("dialect", NAMES)
def test_what_fits_is_not_copied(dialect: str) -> None:
    request = ask(user("q"), assistant("a"), user("go"), dialect="gemini")
    assert fit(request, dialect).messages is request.messages


def test_unknown_names_come_back_as_they_are() -> None:
    events = back(list(cp.part_events(0, call("made_up"))), ask(tools=(Tool("f"),)), "claude")
    assert isinstance(events[0], PartStart)
    assert events[0].part.name == "made_up"


def ids(request: Request) -> list[str]:
    return [
        part.id for message in request.messages for part in message.parts if part.kind in {"call", "result"}
    ]


SECOND = cp.legal_id("a 2", 64)
IDS = [
    pytest.param(("a", "a"), ("a", "a"), ["a", SECOND, "a", SECOND], id="duplicates"),
    pytest.param(
        ("a", "a", "a_2"), ("a", "a", "a_2"), ["a", SECOND, "a_2"] * 2, id="as a duplicate may be called"
    ),
    pytest.param(("a", "b"), ("a", "b", "a", "b"), ["a", "b", "a", "b"], id="repeated results"),
    pytest.param(("a", "b"), ("b", "a"), ["a", "b", "b", "a"], id="order kept"),
]


def test_what_a_result_without_its_call_holds_is_kept() -> None:
    picture = media("image", "base64", mime="image/png").parts
    fitted = fit(ask(user(Part("result", id="gone", parts=picture)), dialect="claude"), "responses")
    assert [part.kind for message in fitted.messages for part in message.parts] == ["media"]


@pytest.mark.parametrize(("calls", "answers", "written"), IDS)
def test_ids(calls: tuple[str, ...], answers: tuple[str, ...], written: list[str]) -> None:
    history = (assistant("x", *(call("f", key) for key in calls)), results(*((key, "r") for key in answers)))
    assert ids(fit(ask(user("q"), *history, dialect="gemini"), "claude")) == written
    assert ids(fit(ask(user("q"), *history, dialect="claude"), "claude")) == [*calls, *answers]


def test_a_result_without_a_call_is_told_as_text() -> None:
    request = ask(user("q"), results(("z", "found")), dialect="responses")
    assert fit(request, "chat").messages[1] == user("found")


def test_adjacent_answers_are_one_in_chat() -> None:
    history = (assistant(call("f", "a")), assistant(call("g", "b")), results(("a", "A"), ("b", "B")))
    request = fit(ask(user("q"), *history, dialect="claude"), "chat")
    _, asked, *answers = cp.chat_write_request(request, TARGETS["chat"])["messages"]
    assert [made["id"] for made in asked["tool_calls"]] == ["a", "b"]
    assert [answer["tool_call_id"] for answer in answers] == ["a", "b"]


def test_base64_of_gemini() -> None:
    picture = media("image", "base64", "a-_x_w", "image/png").parts[0]
    inside = Part("result", id="c", parts=(picture,))
    request = ask(user(picture), assistant(call("f", "c")), user(inside), dialect="gemini")
    for dialect in ("claude", "chat", "responses"):
        first, _, last = fit(request, dialect).messages
        assert [p.media.data for p in (first.parts[0], last.parts[0].parts[0]) if p.media] == ["a+/x/w=="] * 2
    assert fit(request, "gemini").messages == request.messages


@pytest.mark.parametrize(
    ("mime", "source", "data"),
    [("text/csv", "text", "a,b"), ("application/pdf", "base64", "YSxi"), ("text/x", "base64", "/w==")],
)
def test_text_files_are_text_for_chat(mime: str, source: str, data: str) -> None:
    sent = data if source == "base64" else "YSxi"
    request = ask(media("document", "base64", sent, mime), dialect="gemini")
    (part,) = fit(request, "chat").messages[0].parts
    assert part.media
    assert (part.media.source, part.media.data) == (source, data)
    assert fit(request, "responses").messages == request.messages


def test_signed_media_of_gemini() -> None:
    picture = media("image", "base64", "a-_x_w", "image/png").parts[0]._replace(proof="U0lH")
    history = (user("q"), assistant(picture), user("go"))
    made = fit(ask(*history, dialect="gemini"), "claude").messages[1].parts[0]
    assert made.media
    assert (made.media.data, made.proof) == ("a+/x/w==", "")


def test_ids_of_third_parties_are_made_legal_for_claude_clients() -> None:
    request = ask(dialect="claude")
    events = back(list(cp.part_events(0, call("f", "functions.f:0"))), request, "chat")
    assert isinstance(events[0], PartStart)
    assert re.fullmatch(r"functions_f_0_[0-9a-f]{16}", events[0].part.id)


@given(st.text(max_size=100), st.sampled_from([40, 64]))
def test_legal_ids(word: str, limit: int) -> None:
    assert re.fullmatch(r"[a-zA-Z0-9_-]+", cp.legal_id(word, limit))
    assert len(cp.legal_id(word, limit)) <= limit


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
THINKING = [  # asked, model, dialect, max_tokens, written
    pytest.param(HIGH, SONNET_45, "claude", 2000, Thinking(budget=1600), id="case 6"),
    pytest.param(HIGH, SONNET_45, "claude", 1000, Thinking("none"), id="no room"),
    pytest.param(HIGH, OPUS_47, "claude", 2000, Thinking("high", adaptive=True), id="adaptive"),
    pytest.param(Thinking("minimal"), OPUS_47, "claude", 0, Thinking("low", adaptive=True), id="minimal to low"),
    pytest.param(Thinking("minimal"), SONNET_45, "claude", 0, Thinking(budget=1024), id="floor"),
    pytest.param(Thinking("xhigh"), OPUS_46, "claude", 0, Thinking("high", adaptive=True), id="nearest, the lower"),
    pytest.param(Thinking("xhigh"), GPT_51, "responses", 0, Thinking("high"), id="xhigh to older"),
    pytest.param(Thinking("max"), CODEX, "responses", 0, Thinking("xhigh"), id="max to older"),
    pytest.param(Thinking("none"), GPT_51, "chat", 0, Thinking("none"), id="none"),
    pytest.param(Thinking("none"), CODEX, "responses", 0, Thinking("low", summary="omitted"), id="cannot stop: unseen"),
    pytest.param(Thinking("none"), SONNET_5, "claude", 0, Thinking("none"), id="claude always can"),
    pytest.param(Thinking("none"), GEMINI_25, "gemini", 0, Thinking("none"), id="flash off"),
    pytest.param(Thinking("none"), GEMINI_25_PRO, "gemini", 0, Thinking(budget=128, summary="omitted"), id="pro cannot"),
    pytest.param(Thinking("none"), GEMINI_3, "gemini", 0, Thinking("low", summary="omitted"), id="gemini 3 cannot"),
    pytest.param(Thinking("medium"), GEMINI_25, "gemini", 0, Thinking(budget=8192), id="gemini budget"),
    pytest.param(Thinking("max"), GEMINI_25, "gemini", 0, Thinking(budget=24_576), id="gemini's most"),
    pytest.param(Thinking("auto"), GEMINI_25, "gemini", 0, Thinking(budget=-1), id="gemini decides"),
    pytest.param(Thinking(budget=-1), GEMINI_25, "gemini", 0, Thinking(budget=-1), id="dynamic"),
    pytest.param(Thinking(budget=31_999), GEMINI_3, "gemini", 0, Thinking("high"), id="levels for gemini 3"),
    pytest.param(Thinking("auto"), CODEX, "responses", 0, Thinking(), id="auto is left out"),
    pytest.param(Thinking(budget=-1), OPUS_47, "claude", 0, Thinking(adaptive=True), id="dynamic is adaptive"),
    pytest.param(Thinking("auto"), OPUS_47, "claude", 0, Thinking(adaptive=True), id="auto adaptive"),
    pytest.param(Thinking(adaptive=True), OPUS_47, "claude", 0, Thinking(adaptive=True), id="adaptive as it is"),
    pytest.param(Thinking(adaptive=True), SONNET_45, "claude", 0, Thinking(budget=8192), id="adaptive to budget"),
    pytest.param(Thinking("high", adaptive=True), SONNET_45, "claude", 0, Thinking(budget=24_576), id="effort to budget"),
    pytest.param(Thinking("high", adaptive=True), CODEX, "responses", 0, HIGH, id="effort to codex"),
    pytest.param(Thinking(budget=0), SONNET_45, "claude", 0, Thinking("none"), id="zero"),
    pytest.param(Thinking(budget=10_000), CODEX, "responses", 0, HIGH, id="budget to level"),
    pytest.param(Thinking(budget=10_000), SONNET_5, "claude", 0, Thinking("high", adaptive=True), id="no budgets"),
    pytest.param(Thinking(budget=10_000), OPUS_46, "claude", 0, Thinking(budget=10_000), id="both: as it came"),
    pytest.param(Thinking(budget=31_999), SONNET_45, "claude", 32_000, Thinking(budget=31_999), id="Claude Code's own"),
    pytest.param(Thinking(budget=31_999), SONNET_45, "claude", 10_000, Thinking(budget=8000), id="makes room"),
    pytest.param(Thinking(budget=200_000), SONNET_45, "claude", 0, Thinking(budget=128_000), id="clamped"),
    pytest.param(HIGH, HAIKU_35, "claude", 0, Thinking(), id="cannot think"),
    pytest.param(HIGH, Model("x"), "chat", 0, HIGH, id="unknown passes"),
    pytest.param(Thinking(budget=5), Model("x"), "gemini", 0, Thinking(budget=5), id="unknown budget passes"),
    pytest.param(HIGH, Model("glm"), "claude", 0, Thinking(budget=24_576), id="unknown claude host"),
    pytest.param(HIGH, Model("claude-9"), "claude", 0, Thinking("high", adaptive=True), id="new claude"),
    pytest.param(Thinking("max"), Model("gemini-9"), "gemini", 0, HIGH, id="gemini's own words"),
    pytest.param(Thinking(summary="auto"), CODEX, "responses", 0, Thinking(summary="auto"), id="only shown"),
    pytest.param(Thinking("low", summary="auto"), CODEX, "responses", 0, Thinking("low", summary="auto"), id="shown"),
]  # fmt: skip


SUFFIX = [  # dialect, a body's effort that is none we know, model, what is written for (high)
    ("chat", {"reasoning_effort": None}, "x", {"reasoning_effort": "high"}),
    ("chat", {"reasoning_effort": "mega"}, "x", {"reasoning_effort": "high"}),
    ("responses", {"reasoning": {"effort": None, "summary": "auto"}}, "gpt-5.5", {"reasoning": {"effort": "high", "summary": "auto"}}),
    ("responses", {"reasoning": {"effort": "mega"}}, "gpt-5.5", {"reasoning": {"effort": "high"}}),
    ("gemini", {"generationConfig": {"thinkingConfig": {"thinkingLevel": "MEGA"}}}, "gemini-2.5-pro",
     {"generationConfig": {"thinkingConfig": {"thinkingBudget": 24_576}}}),
]  # fmt: skip


@pytest.mark.parametrize(("dialect", "said", "model", "written"), SUFFIX)
def test_the_name_outranks_an_effort_that_nobody_knows(
    dialect: str, said: cp.Json, model: str, written: cp.Json
) -> None:
    """Between equals a body keeps what is not modelled, but not against what the name says."""
    content = {"gemini": "contents", "responses": "input"}.get(dialect, "messages")
    parts = {"parts": [{"text": "q"}]} if dialect == "gemini" else {"content": "q"}
    body = {"model": f"{model}(high)", content: [{"role": "user", **parts}], **said}
    row, target = cp.DIALECTS[dialect], cp.Target("x", cp.model_row(model))
    fitted = cp.fit_request(row.read_request(body), target, dialect)
    got = row.write_request(fitted.request, target)
    assert {key: got[key] for key in written} == written
    plain = cp.fit_request(row.read_request({**body, "model": model}), target, dialect)
    got = row.write_request(plain.request, target)
    assert {key: got[key] for key in said} == said, "as it came, where the name says nothing"


@pytest.mark.parametrize(("asked", "model", "dialect", "max_tokens", "written"), THINKING)
def test_thinking(asked: Thinking, model: Model, dialect: str, max_tokens: int, written: Thinking) -> None:
    assert cp.resolve_thinking(asked, model, dialect, max_tokens) == written


def test_suffix_wins() -> None:
    request = ask(model="m(high)", thinking=Thinking("low", summary="auto"))
    fitted = fit(request, "responses")
    assert (fitted.model, fitted.thinking) == ("gpt-5.4", Thinking("high", summary="auto"))
    assert fit(request, "chat", Target("x", Model(""))).model == "m"
    assert back([MessageStart("i", "gpt-5.4")], request, "responses") == [MessageStart("i", "m(high)")]


FORCED = ToolChoice("required")
LIMITS = [  # request fields, target, max_tokens, thinking
    pytest.param({}, CLAUDE, 64_000, Thinking(), id="ceiling"),
    pytest.param({}, Target("claude", Model("x")), 32_000, Thinking(), id="unknown"),
    pytest.param({"params": {"max_tokens": 99_999}}, CLAUDE, 64_000, Thinking(), id="capped"),
    pytest.param({"params": {"max_tokens": 10}}, CLAUDE, 10, Thinking(), id="the client's"),
    pytest.param({"thinking": HIGH}, CLAUDE, 64_000, Thinking(budget=24_576), id="room"),
    pytest.param(
        {"thinking": Thinking("max")}, CLAUDE, 64_000, Thinking(budget=51_200), id="lowered at the ceiling"
    ),
    pytest.param(
        {"thinking": Thinking("max")}, Target("z", Model("x")), 160_000, Thinking(budget=128_000), id="raised"
    ),
    pytest.param(
        {"params": {"max_tokens": 2000}, "thinking": HIGH}, CLAUDE, 2000, Thinking(budget=1600), id="lowered"
    ),
    pytest.param(
        {"thinking": HIGH, "choice": FORCED, "tools": (Tool("f"),)},
        CLAUDE,
        64_000,
        Thinking("none"),
        id="forced",
    ),
    pytest.param(
        {"choice": FORCED, "tools": (Tool("f"),)},
        Target("claude", SONNET_5),
        128_000,
        Thinking("none"),
        id="unasked",
    ),
    pytest.param(
        {"choice": FORCED, "tools": (Tool("f"),)}, CLAUDE, 64_000, Thinking(), id="forced, not thinking"
    ),
]


@pytest.mark.parametrize(("fields", "target", "max_tokens", "thinking_"), LIMITS)
def test_limits(fields: dict[str, Any], target: Target, max_tokens: int, thinking_: Thinking) -> None:
    fitted = fit(ask(**fields), "claude", target)
    assert (fitted.params["max_tokens"], fitted.thinking) == (max_tokens, thinking_)


def test_limits_elsewhere() -> None:
    assert fit(ask(params={"max_tokens": 3}), "responses").params["max_tokens"] == 16
    assert fit(ask(params={"max_tokens": 200_000}), "chat", OPENAI).params["max_tokens"] == 128_000
    assert "max_tokens" not in fit(ask(), "gemini").params


LOOPS = [
    pytest.param([assistant(call("f")), results(("c1", "r"))], False, id="lost"),
    pytest.param(
        [assistant(thinking(cp.seal("S", "claude")), call("f")), results(("c1", "r"))], True, id="kept"
    ),
    pytest.param([assistant(call("f")), results(("c1", "r")), user("next")], True, id="a new turn"),
    pytest.param([assistant("hi"), user("next")], True, id="no call"),
]


@pytest.mark.parametrize(("history", "thinks"), LOOPS)
def test_lost_thinking(history: list[Message], thinks: bool) -> None:
    request = ask(user("q"), *history, dialect="responses", thinking=HIGH)
    assert (fit(request, "claude").thinking == Thinking(budget=24_576)) is thinks
    assert fit(request, "claude", Target("claude", OPUS_47)).thinking == Thinking("high", adaptive=True)


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


def test_codex_takes_no_minimal() -> None:
    target = Target("codex", Model("gpt-9"), frozenset({"minimal-to-low"}))
    assert fit(ask(thinking=Thinking("minimal")), "responses", target).thinking == Thinking("low")


# --- schemas

CASE_15 = {
    "type": "object",
    "$schema": "..",
    "properties": {
        "const": {"const": 3},
        "default": {"type": ["string", "null"]},
        "n": {"$ref": "#/$defs/N"},
        "e": {"enum": [1, 2], "type": "integer"},
    },
    "required": ["const", "zz"],
    "additionalProperties": False,
    "$defs": {"N": {"type": "object", "properties": {"n": {"$ref": "#/$defs/N"}}}},
}


def test_schema_of_case_15() -> None:
    cleaned = cp.openapi_schema(CASE_15)
    assert cleaned == {
        "type": "OBJECT",
        "properties": {
            "const": {"type": "INTEGER", "description": "(one of: [3])"},
            "default": {"type": "STRING", "nullable": True},
            "n": {"type": "OBJECT", "properties": {"n": {"type": "OBJECT", "description": "N"}}},
            "e": {"type": "INTEGER", "description": "(one of: [1,2])"},
        },
        "required": ["const"],
    }


ANY = {"type": "STRING", "description": "any JSON value"}
CLEANED = [  # the schema of a property, and what becomes of it
    pytest.param({"$ref": "#/$defs/a~1b%20c", "description": "mine"}, {"type": "INTEGER", "description": "mine"}, id="ref"),
    pytest.param({"$ref": "#/$defs/gone"}, {"type": "OBJECT", "description": "gone"}, id="unresolvable"),
    pytest.param({"$ref": "http://x/y"}, {"type": "OBJECT", "description": "y"}, id="remote"),
    pytest.param({"type": "string", "x-a": 1, "readOnly": True, "examples": []}, {"type": "STRING"}, id="dropped"),
    pytest.param({"type": "string", "not": {"enum": ["a"]}},
                 {"type": "STRING", "description": '(not: {"type":"STRING","enum":["a"]})'}, id="noted") ,
    pytest.param({"const": "a"}, {"type": "STRING", "enum": ["a"]}, id="const"),
    pytest.param({"enum": ["a", None]}, {"type": "STRING", "nullable": True, "enum": ["a"]}, id="null entry"),
    pytest.param({"enum": ["a", 1]}, {"type": "STRING", "enum": ["a", "1"]}, id="mixed"),
    pytest.param({"enum": [True]}, {"type": "BOOLEAN", "description": "(one of: [true])"}, id="boolean"),
    pytest.param({"enum": [1, 2.5]}, {"type": "NUMBER", "description": "(one of: [1,2.5])"}, id="numbers"),
    pytest.param({"enum": [], "type": "string"}, {"type": "STRING"}, id="empty enum"),
    pytest.param({"enum": [None]}, {**ANY, "nullable": True}, id="only null"),
    pytest.param({"type": ["string", "integer"]}, {"anyOf": [{"type": "STRING"}, {"type": "INTEGER"}]}, id="types"),
    pytest.param({"type": "null"}, {"type": "STRING", "nullable": True}, id="null"),
    pytest.param({"type": ["null"]}, {"type": "STRING", "nullable": True}, id="list of null"),
    pytest.param(True, ANY, id="true"),
    pytest.param({}, ANY, id="any"),
    pytest.param({"description": "d"}, {"type": "STRING", "description": "d"}, id="described"),
    pytest.param({"allOf": [{"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]},
                            {"properties": {"b": {"type": "number"}}, "required": ["b"]}]},
                 {"type": "OBJECT", "properties": {"a": {"type": "STRING"}, "b": {"type": "NUMBER"}},
                  "required": ["a", "b"]}, id="allOf"),
    pytest.param({"oneOf": [{"type": "string"}, {"type": "integer"}]},
                 {"anyOf": [{"type": "STRING"}, {"type": "INTEGER"}]}, id="oneOf"),
    pytest.param({"anyOf": [{"type": "string"}, {"type": "null"}], "description": "d"},
                 {"type": "STRING", "description": "d", "nullable": True}, id="optional"),
    pytest.param({"anyOf": [{"type": "null"}]}, {"type": "STRING", "nullable": True}, id="nothing but null"),
    pytest.param({"type": "string", "minLength": 1, "anyOf": [{"format": "enum"}, {"enum": ["b"]}]},
                 {"anyOf": [{"type": "STRING", "format": "enum"}, {"type": "STRING", "enum": ["b"]}]}, id="siblings"),
    pytest.param({"properties": {"a": {}, "b": {}}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
                 {"type": "OBJECT", "properties": {"a": ANY, "b": ANY}}, id="one of them required"),
    pytest.param({"type": "object", "anyOf": [{"anyOf": [{}, {}]}]},
                 {"anyOf": [{"type": "OBJECT"}, {"type": "OBJECT"}]}, id="alternatives in the only one"),
    pytest.param({"type": "string", "anyOf": [{"anyOf": [{"format": "enum"}, {"pattern": "x"}]}, {"enum": ["b"]}]},
                 {"anyOf": [{"anyOf": [{"type": "STRING", "format": "enum"}, {"type": "STRING", "pattern": "x"}]},
                            {"type": "STRING", "enum": ["b"]}]}, id="alternatives in one of them"),
    pytest.param({"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 9},
                 {"type": "INTEGER", "minimum": 1, "maximum": 8}, id="exclusive"),
    pytest.param({"type": "number", "exclusiveMinimum": 0},
                 {"type": "NUMBER", "description": "(exclusiveMinimum: 0)"}, id="exclusive number"),
    pytest.param({"type": "integer", "multipleOf": 2}, {"type": "INTEGER", "description": "(multipleOf: 2)"}, id="multiple"),
    pytest.param({"type": "array"}, {"type": "ARRAY", "items": ANY}, id="no items"),
    pytest.param({"type": "array", "items": True}, {"type": "ARRAY", "items": ANY}, id="any items"),
    pytest.param({"items": [{"type": "string"}, {"type": "integer"}]},
                 {"type": "ARRAY", "items": {"anyOf": [{"type": "STRING"}, {"type": "INTEGER"}]}}, id="tuple"),
    pytest.param({"prefixItems": [{"type": "string"}], "type": "array"},
                 {"type": "ARRAY", "items": {"type": "STRING"}}, id="prefix items"),
    pytest.param({"type": "object"}, {"type": "OBJECT"}, id="free object"),
    pytest.param({"type": "object", "properties": {}, "required": []}, {"type": "OBJECT"}, id="empty object"),
    pytest.param({"properties": {"a": False, "b": True}, "required": ["a"]},
                 {"type": "OBJECT", "properties": {"b": ANY}}, id="boolean schemas"),
    pytest.param({"type": "string", "format": "uri"}, {"type": "STRING", "description": '(format: "uri")'}, id="format"),
    pytest.param({"type": "string", "format": "date-time"}, {"type": "STRING", "format": "date-time"}, id="date"),
    pytest.param({"properties": {"$ref": {"type": "string"}, "title": {"type": "string"}}},
                 {"type": "OBJECT", "properties": {"$ref": {"type": "STRING"}, "title": {"type": "STRING"}}}, id="names"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "cleaned"), CLEANED)
def test_cleaned_schemas(schema: Any, cleaned: Any) -> None:
    root = {"type": "object", "properties": {"p": schema}, "$defs": {"a/b c": {"type": "integer"}}}
    before = json.dumps(root)
    assert cp.openapi_schema(root)["properties"]["p"] == cleaned
    assert json.dumps(root) == before  # the client's own schema is left alone


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.sampled_from(["a", "#/$defs/A", "b"]))
KEYWORDS = st.sampled_from(["$ref", "const", "default", "title", "format", "type", "properties", "a"])


def schemas(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    many = st.lists(inner, max_size=2)
    return st.fixed_dictionaries({}, optional={
        "type": st.sampled_from(["object", "string", "array", "null", "integer", ["string", "null"], ["array", "object"]]),
        "properties": st.dictionaries(KEYWORDS, inner, max_size=3), "required": st.one_of(st.booleans(), st.lists(KEYWORDS, max_size=3)),
        "anyOf": many, "oneOf": many, "allOf": many, "items": st.one_of(inner, many), "prefixItems": many,
        "$ref": st.sampled_from(["#", "#/$defs/A", "#/$defs/B", "#/properties/a", "#/nowhere"]),
        "const": SCALARS, "enum": st.lists(SCALARS, max_size=3), "not": st.just({}), "additionalProperties": st.booleans(),
        "format": st.sampled_from(["uri", "int32"]), "minItems": st.integers(0, 3), "pattern": st.just("x"),
        "$defs": st.fixed_dictionaries({"A": inner, "B": inner}), "exclusiveMinimum": st.integers(), "x-y": SCALARS,
    })  # fmt: skip


SCHEMAS = schemas(st.recursive(st.one_of(st.booleans(), st.just({})), schemas, max_leaves=4))


def check_subset(node: Any) -> None:
    assert set(node) <= cp.OPENAPI_KEYWORDS
    assert ("type" in node) != ("anyOf" in node)
    assert node.get("type", "OBJECT") in {"OBJECT", "STRING", "ARRAY", "INTEGER", "NUMBER", "BOOLEAN"}
    assert all(isinstance(value, str) for value in node.get("enum", ()))
    assert set(node.get("required", ())) <= set(node.get("properties", ()))
    assert node.get("type") != "ARRAY" or "items" in node
    inner = [
        *node.get("properties", {}).values(),
        *node.get("anyOf", ()),
        *([node["items"]] if "items" in node else []),
    ]
    for child in inner:
        check_subset(child)


@settings(max_examples=40, deadline=None)
@given(SCHEMAS)
@example({"type": "object", "anyOf": [{"anyOf": [{}, False]}]})
@example({"type": "object", "anyOf": [{"anyOf": [{}, False]}, {}]})
@example({"type": "object", "properties": {"a": {}}, "anyOf": [{"anyOf": [{}, False]}]})
def test_any_schema_can_be_cleaned(schema: dict[str, Any]) -> None:
    check_subset(cp.openapi_schema(schema))
    cp.walk_schema(schema, cp.gemini_node)
    cp.walk_schema(schema, cp.claude_node)


@settings(max_examples=60)
@given(
    st.dictionaries(st.text(max_size=9), st.sampled_from([{"type": "string"}, {"type": ["integer", "null"]}]))
)
def test_property_names_are_kept(properties: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": properties}
    assert cp.openapi_schema(schema).get("properties", {}).keys() == properties.keys()
    assert cp.walk_schema(schema, cp.gemini_node)["properties"].keys() == properties.keys()
    assert cp.walk_schema(schema, cp.claude_node)["properties"].keys() == properties.keys()


def test_schemas_without_end() -> None:
    bomb: dict[str, Any] = {
        "$defs": {"z": {"type": "string"}},
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/0"}},
    }
    for at in range(12):  # each refers eight times to the next: 8 ** 12
        bomb["$defs"][str(at)] = {"properties": {str(n): {"$ref": f"#/$defs/{at + 1}"} for n in range(8)}}
    assert len(json.dumps(cp.openapi_schema(bomb))) < 1_000_000
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(300):
        deep = {"type": "object", "properties": {"a": deep}}
    for clean in (cp.openapi_schema, lambda s: cp.walk_schema(s, cp.gemini_node)):
        assert clean(deep)["properties"]
    loop = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}
    assert cp.openapi_schema(loop)["type"] == "OBJECT"


ROOTS = [
    pytest.param(None, {"type": "object", "properties": {}}, id="none"),
    pytest.param({"additionalProperties": False},
                 {"type": "object", "properties": {}, "additionalProperties": False}, id="no type"),
    pytest.param({"allOf": [{"properties": {"a": {}}, "required": ["a"]}, {"properties": {"b": {}}}]},
                 {"type": "object", "properties": {"a": {}, "b": {}}, "required": ["a"]}, id="allOf"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "root"), ROOTS)
@pytest.mark.parametrize("dialect", ["claude", "chat", "responses"])
def test_root_of_arguments(schema: Any, root: Any, dialect: str) -> None:
    assert fit(ask(dialect="gemini", tools=(Tool("f", schema=schema),)), dialect).tools[0].schema == root


def test_tool_schemas_for_gemini() -> None:
    schema = {
        "type": "object",
        "properties": {
            "a": {"const": 1, "exclusiveMinimum": 0, "$ref": "#/definitions/x"},
            "const": {"type": "string"},
        },
        "definitions": {"x": {"type": "string", "pattern": "y"}},
    }
    request = ask(
        tools=(Tool("f", schema=schema), Tool("g", schema={"type": "object", "properties": {}}), Tool("h"))
    )
    plain = fit(request, "gemini").tools
    assert plain[0].schema == {
        "type": "object",
        "properties": {"a": {"enum": [1], "$ref": "#/$defs/x"}, "const": {"type": "string"}},
        "$defs": {"x": {"type": "string"}},
    }
    target = Target("gemini-cli", GEMINI_3, frozenset({"openapi-schema"}))
    strict = fit(request, "gemini", target).tools
    assert strict[0].schema
    assert strict[0].schema["properties"]["a"]["type"] == "STRING"
    own = request._replace(dialect="gemini")
    assert fit(own, "gemini", target).tools == own.tools


def test_answer_formats() -> None:
    schema = {
        "type": "object",
        "properties": {
            "a": {"type": "string", "maxLength": 3, "format": "uri", "description": "d"},
            "b": {"oneOf": [{"type": "object", "properties": {}}, {"type": "array", "minItems": 2}]},
            "c": {"$ref": "#/$defs/C", "description": "dropped"},
            "d": {"type": "string", "format": "regex"},
        },
        "$defs": {"C": {"type": "object"}},
    }
    request = ask(format=Format("schema", "n", schema))
    written = fit(request, "claude").format
    assert written
    assert written.schema == {
        "type": "object",
        "properties": {
            "a": {"type": "string", "format": "uri", "description": "d (maxLength: 3)"},
            "b": {"anyOf": [
                {"type": "object", "properties": {}, "additionalProperties": False},
                {"type": "array", "description": "(minItems: 2)"},
            ]},
            "c": {"$ref": "#/$defs/C"},
            "d": {"type": "string", "description": '(format: "regex")'},
        },
        "$defs": {"C": {"type": "object", "additionalProperties": False}},
        "additionalProperties": False,
    }  # fmt: skip
    assert fit(request, "responses").format == request.format
    form = fit(request, "gemini").format
    assert form
    assert form.schema
    assert "maxLength" not in form.schema["properties"]["a"]
    assert fit(ask(format=Format("json")), "claude").format == Format("json")


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
    pytest.param([user("a"), system("S")], "claude", Target("claude", OPUS_47._replace(traits=("mid-system",))),
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
    events = iter([PartStart(0, Part("text")), PartDelta(0, "text", "a"), RuntimeError])
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
    assert part.proof == ("P" if client == dialect else cp.seal("P", target.provider))


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
            for _ in cp.fit_events([PartStart(0, Part("text")), *deltas], request, fitted, TARGETS[dialect]):
                pass

        assert min(timeit.repeat(run, number=1, repeat=5)) / 20_000 < 2e-6  # 0.2 on an idle machine


# --- the whole chain: spec/dialects.md 6


def read(client: str, body: dict[str, Any]) -> Request:
    return (
        cp.DIALECTS[client].read_request({"model": "m", "stream": True, **body})._replace(id="r", created=1)
    )


def up(client: str, body: dict[str, Any], dialect: str, target: Target | None = None) -> dict[str, Any]:
    """Translate a request body to another dialect."""
    target = target or TARGETS[dialect]
    return cp.DIALECTS[dialect].write_request(fit(read(client, body), dialect, target), target)


def down(
    client: str, body: dict[str, Any], dialect: str, payloads: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Translate the answer to that request; return the payloads that the client gets."""
    request = read(client, body)
    events = cp.DIALECTS[dialect].read_stream(iter(payloads), request)
    frames = cp.DIALECTS[client].write_stream(back(list(events), request, dialect), request)
    return list(cp.sse_read(frames))


def claude_stream(*blocks: tuple[dict[str, Any], ...]) -> list[dict[str, Any]]:
    """Return a stream of blocks, each its start and its deltas."""
    frames: list[dict[str, Any]] = [
        {"type": "message_start", "message": {"id": "msg_1", "model": "x", "usage": {}}}
    ]
    for at, (start, *deltas) in enumerate(blocks):
        frames.append({"type": "content_block_start", "index": at, "content_block": start})
        frames += [{"type": "content_block_delta", "index": at, "delta": delta} for delta in deltas]
        frames.append({"type": "content_block_stop", "index": at})
    end = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1}}
    return [*frames, end, {"type": "message_stop"}]


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


FUNCTION = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}},
}


@pytest.mark.parametrize(
    ("more", "model", "written"),
    [
        (
            {},
            SONNET_45,
            {"thinking": {"type": "enabled", "budget_tokens": 1600}, "tool_choice": {"type": "auto"}},
        ),
        (
            {"tool_choice": "required"},
            SONNET_45,
            {"thinking": {"type": "disabled"}, "tool_choice": {"type": "any"}},
        ),
        ({"max_completion_tokens": 1000}, SONNET_45, {"thinking": {"type": "disabled"}}),
        ({}, OPUS_47, {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}}),
    ],
)
def test_case_6_effort(more: dict[str, Any], model: Model, written: dict[str, Any]) -> None:
    asked = {
        "reasoning_effort": "high",
        "max_completion_tokens": 2000,
        "temperature": 0.2,
        "tool_choice": "auto",
    }
    body = up(
        "chat", {**ASK["chat"], **asked, "tools": [FUNCTION], **more}, "claude", Target("claude", model)
    )
    assert written.items() <= body.items()
    assert ("temperature" in body) is (body["thinking"]["type"] == "disabled")


def test_case_7_thinking_through_responses() -> None:
    thought = (
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "thinking_delta", "thinking": "abc"},
        {"type": "signature_delta", "signature": "SIG"},
    )
    text = ({"type": "text", "text": ""}, {"type": "text_delta", "text": "hi"})
    frames = down("responses", ASK["responses"], "claude", claude_stream(thought, text))
    items = frames[-1]["response"]["output"]
    assert [item["type"] for item in items] == ["reasoning", "message"]
    body = {"input": [*ASK["responses"]["input"], *items, {"role": "user", "content": "more"}]}
    assert up("responses", body, "claude")["messages"][1]["content"][0] == {
        "type": "thinking", "thinking": "abc", "signature": "SIG",
    }  # fmt: skip
    for dialect in ("chat", "gemini", "responses"):
        assert items[0]["encrypted_content"] not in json.dumps(up("responses", body, dialect))


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


def test_case_15_schema_on_the_wire() -> None:
    target = Target("gemini-cli", GEMINI_25_PRO, frozenset({"openapi-schema"}))
    tool = {"type": "function", "function": {"name": "f", "parameters": CASE_15}}
    written = up("chat", {**ASK["chat"], "tools": [tool]}, "gemini", target)
    assert written["tools"][0]["functionDeclarations"][0]["parameters"] == cp.openapi_schema(CASE_15)


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
