"""Names and ids of tools, and proofs in transit."""

from __future__ import annotations

import base64
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cliproxy as cp
from cliproxy import MessageEnd, MessageStart, Model, Part, PartStart, Request, Target, Tool, ToolChoice
from support.fitting import (
    GEMINI_3,
    TARGETS,
    ask,
    assistant,
    back,
    call,
    fit,
    media,
    results,
    signatures,
    thinking,
    user,
)

NAMES = ("claude", "chat", "responses", "gemini")
GEMINI_25 = Model("gemini-2.5-flash", output=65_536, budget=(0, 24_576))


# --- proofs


@given(st.text(), st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True))
def test_seal_round_trip(proof: str, provider: str) -> None:
    sealed = cp.seal(proof, provider)
    assert sealed.encode().startswith(cp.PROOF_MARK)
    urlsafe = sealed.translate({ord("+"): "-", ord("/"): "_"})
    assert cp.unseal(sealed) == cp.unseal(urlsafe) == cp.unseal(urlsafe.rstrip("="))
    assert cp.unseal(sealed) == cp.Proof(provider, proof)
    base64.b64decode(sealed, validate=True)


@given(st.text())
def test_unseal_takes_anything(proof: str) -> None:
    cp.unseal(cp.PROOF_MARK.decode() + proof)
    assert cp.unseal(proof).minted == proof or proof.startswith(cp.PROOF_MARK.decode())


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
    assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", events[0].part.id)
    assert cp.unpacked_id(events[0].part.id) == "functions.f:0"


@given(st.text(max_size=100))
def test_packed_ids(word: str) -> None:
    packed = cp.packed_id(word)
    if word:
        assert re.fullmatch(r"[a-zA-Z0-9_-]{1,128}", packed)
    kept = word.isascii() and len(packed) > len(word)
    assert not kept or cp.unpacked_id(packed) in {word, packed}
    assert cp.unpacked_id(packed) == word or not word.isascii() or len(word) > 40


@given(st.text(max_size=100), st.sampled_from([40, 64]))
def test_legal_ids(word: str, limit: int) -> None:
    assert re.fullmatch(r"[a-zA-Z0-9_-]+", cp.legal_id(word, limit))
    assert len(cp.legal_id(word, limit)) <= limit
