"""What hosts and models refuse, in every direction: the rules are rows, and each kind holds for all four dialects."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

import cliproxy as cp
from cliproxy import Message, Model, Request, Target
from support.dialogue import ANSWERS, Said
from support.fitting import TARGETS, ask, assistant, back, call, read, results, user
from support.proxy import ProxyMaker
from support.upstream import Upstream

Json = dict[str, Any]
HELLO = {"role": "user", "content": "q"}
GEMINI_HELLO = {"role": "user", "parts": [{"text": "q"}]}
OTHERS = Target("third", Model("m"))


def written(request: Request, dialect: str, target: Target | None = None) -> Json:
    """Return the body that goes to a target."""
    target = target or TARGETS[dialect]
    fitted = cp.fit_request(request, target, dialect)
    body: Json = cp.DIALECTS[dialect].write_request(fitted.request, target)
    return body


# -- lengths and counts ----------------------------------------------------------------

LONG = "user_" + "a" * 64 + "_account__session_" + "b" * 300
WHO = {  # dialect -> where it says who the user is, and how long that may be
    "claude": ("metadata.user_id", 256),
    "chat": ("safety_identifier", 64),
    "responses": ("safety_identifier", 64),
}


@pytest.mark.parametrize("length", [1, 64, 65, 159, 256, 257, 380])
@pytest.mark.parametrize("dialect", WHO)
@pytest.mark.parametrize("client", WHO)
def test_the_name_of_a_user_fits(client: str, dialect: str, length: int) -> None:
    path, longest = WHO[dialect]
    bodies = [
        written(ask(user(word), dialect=client, params={"user": LONG[:length]}), dialect)
        for word in ("q", "again")
    ]
    name, again = (cp.path_get(body, path) for body in bodies)
    if client != dialect:
        assert 0 < len(name) <= longest
    assert (name == LONG[:length]) is (client == dialect or length <= longest)
    assert name == again


STOPS = [
    pytest.param("chat", OTHERS, ["a", "b", "c", "d"], id="chat"),
    pytest.param("gemini", None, ["a", "b", "c", "d", "e"], id="gemini"),
    pytest.param("claude", None, ["a", "b", "c", "d", "e", "f"], id="claude"),
    pytest.param("responses", None, None, id="responses"),
    pytest.param("chat", Target("openai", Model("o3", levels=("low", "high"))), None, id="o3"),
    pytest.param("chat", Target("azure", Model("gpt-5")), None, id="gpt-5 of another host"),
    pytest.param("chat", Target("openai", Model("gpt-5.1", levels=("none", "low"))), None, id="gpt-5.1"),
]
STOP_FIELDS = ("stop", "stop_sequences", "generationConfig.stopSequences")


@pytest.mark.parametrize(("dialect", "target", "kept"), STOPS)
@pytest.mark.parametrize("client", cp.DIALECTS)
def test_stops_fit(client: str, dialect: str, target: Target | None, kept: list[str] | None) -> None:
    if client == dialect:
        return
    stops = ["", "a", " ", "b", "c", "d", "e", "f"]
    body = written(ask(dialect=client, params={"stop": stops, "temperature": 1}), dialect, target)
    assert next(filter(None, (cp.path_get(body, field) for field in STOP_FIELDS)), None) == kept


@pytest.mark.parametrize("dialect", ["claude", "chat", "gemini"])
def test_no_stops_are_no_field(dialect: str) -> None:
    body = written(ask(dialect="responses", params={"stop": ["", " "]}), dialect)
    assert all(cp.path_get(body, field) is None for field in STOP_FIELDS)


# -- ids and turns ---------------------------------------------------------------------

CLIENTS = ("claude", "responses", "gemini")
MISTRAL = Target("mistral", Model("mistral-large-latest"))
MISTRALS = [
    MISTRAL,
    Target("openrouter", Model("mistralai/devstral-small")),
    Target("x", Model("Mixtral-8x7B")),
]
LOOP = (
    user("q"),
    assistant(call("f", "toolu_1"), call("f", "call_abc")),
    results(("toolu_1", "1"), ("call_abc", "2")),
)


def ids_of(body: Json) -> list[str]:
    """Return the ids of all calls, then of all results."""
    calls = [one["id"] for message in body["messages"] for one in message.get("tool_calls") or ()]
    return [*calls, *(m["tool_call_id"] for m in body["messages"] if m["role"] == "tool")]


def check_mistral(body: Json) -> None:
    ids, roles = ids_of(body), [message["role"] for message in body["messages"]]
    assert all(re.fullmatch("[a-zA-Z0-9]{9}", one) for one in ids)
    assert ids[: len(ids) // 2] == ids[len(ids) // 2 :]
    assert len(set(ids)) == len(ids) // 2
    assert not [
        pair for pair in zip(roles, roles[1:]) if pair[0] == "tool" and pair[1] not in {"tool", "assistant"}
    ]


@pytest.mark.parametrize("target", MISTRALS, ids=lambda target: target.provider)
@pytest.mark.parametrize("client", cp.DIALECTS)
def test_mistral_gets_ids_and_turns_as_it_wants_them(client: str, target: Target) -> None:
    check_mistral(written(ask(*LOOP, user("and now?"), dialect=client), "chat", target))


def test_mistral_gets_them_from_clients_of_chat_too() -> None:
    body = written(ask(*LOOP, user("and now?"), dialect="claude"), "chat", Target("x", Model("m")))
    assert cp.chat_odd(json.dumps(body).encode(), frozenset(), "mistral-small")
    fitted = cp.chat_fitted({**body, "model": "mistral-small"}, frozenset())
    check_mistral(fitted)
    assert cp.chat_fitted(fitted, frozenset()) is fitted, "what is right stays as it is"


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    "id", ["functions.f:0", "functions.mcp__github__create_pull_request_review:12", "a b", "odd-1"]
)
def test_a_host_gets_its_own_ids_back(client: str, id: str) -> None:
    request = ask(user("q"), dialect=client)
    start = back(list(cp.part_events(0, call("f", id))), request, "chat")[0]
    assert isinstance(start, cp.PartStart)
    given = start.part.id
    assert client != "claude" or re.fullmatch("[a-zA-Z0-9_-]+", given)
    history = (user("q"), assistant(call("f", given)), results((given, "r")))
    ids = ids_of(written(ask(*history, dialect=client), "chat", OTHERS))
    assert len(set(ids)) == 1
    assert " " in id or ids[0] == id
    strict = written(ask(*history, dialect=client), "chat", Target("openai", Model("gpt-4o")))
    assert all(re.fullmatch("[a-zA-Z0-9_-]{1,64}", one) for one in ids_of(strict))


@pytest.mark.parametrize("dialect", cp.DIALECTS)
@pytest.mark.parametrize("client", cp.DIALECTS)
@pytest.mark.parametrize("id", ["call_0", "functions.f:0"])
def test_no_id_is_handed_out_twice(client: str, dialect: str, id: str) -> None:
    if client == dialect:
        return
    known = cp.packed_id(id) if client == "claude" else id
    request = ask(user("q"), assistant(call("f", known)), results((known, "r")), dialect=client)
    events = [*cp.part_events(0, call("f", id)), *cp.part_events(1, call("f", "other"))]
    starts = [event for event in back(events, request, dialect) if isinstance(event, cp.PartStart)]
    ids = [start.part.id for start in starts]
    assert len({known, *ids}) == 3
    assert ids[1] == "other"
    assert client != "claude" or all(re.fullmatch("[a-zA-Z0-9_-]+", one) for one in ids)


# -- thinking --------------------------------------------------------------------------

EFFORTS = [
    pytest.param(cp.Thinking("", 31_999), "high", id="ultrathink"),
    pytest.param(cp.Thinking("max"), "high", id="max"),
    pytest.param(cp.Thinking("xhigh"), "high", id="xhigh"),
    pytest.param(cp.Thinking("minimal"), "low", id="minimal"),
    pytest.param(cp.Thinking("medium"), "medium", id="medium"),
    pytest.param(cp.Thinking("none"), None, id="none"),
    pytest.param(cp.Thinking("", 0), None, id="no budget"),
    pytest.param(cp.Thinking("auto", adaptive=True), None, id="adaptive"),
]


@pytest.mark.parametrize(("thinking", "effort"), EFFORTS)
@pytest.mark.parametrize("client", CLIENTS)
def test_an_unknown_model_is_told_low_medium_or_high(
    client: str, thinking: cp.Thinking, effort: str | None
) -> None:
    assert written(ask(dialect=client, thinking=thinking), "chat", OTHERS).get("reasoning_effort") == effort
    known = Target("x", Model("m", levels=("none", "low", "xhigh", "max"), thinking=True))
    assert (
        cp.fit_request(
            ask(dialect=client, thinking=cp.Thinking("xhigh")), known, "chat"
        ).request.thinking.effort
        == "xhigh"
    )


@pytest.mark.parametrize("client", cp.DIALECTS)
def test_turns_of_others_have_thinking_for_hosts_that_want_it(client: str) -> None:
    """DeepSeek: "The `reasoning_content` in the thinking mode must be passed back"."""
    thought = user("q"), assistant(cp.Part("thinking", "hm", proof="p"), call("f")), results(("c1", "r"))
    target = Target("deepseek", Model("deepseek-chat"), frozenset({"reasoning-content"}))
    body = written(ask(*LOOP, *thought, assistant("so"), dialect=client), "chat", target)
    calls = [message for message in body["messages"] if message.get("tool_calls")]
    assert [bool(message.get("reasoning_content")) for message in calls] == [True, True]
    assert "reasoning_content" not in body["messages"][-1]
    plain = written(ask(*LOOP, dialect=client), "chat", OTHERS)
    assert not any("reasoning_content" in message for message in plain["messages"])


GEMINI_3 = Target("openrouter", Model("google/gemini-3-pro-preview"))
SEALED = {"type": "reasoning.encrypted", "data": "SIG", "id": "c1", "format": "google-gemini-v1", "index": 1}


def thought(text: str, **fields: Any) -> Json:
    return {"type": "reasoning.text", "text": text, "format": "anthropic-claude-v1", "index": 0, **fields}


WHOLE = [thought("hmm, so", signature="S"), SEALED]
CALL = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
DETAILS = [  # deltas, as OpenRouter streams them
    pytest.param(
        [
            {"reasoning": "hmm, ", "reasoning_details": [thought("hmm, ")]},
            {"reasoning": "so", "reasoning_details": [thought("so")]},
            {"content": "", "reasoning_details": [thought("", signature="S")]},
            {"content": "", "reasoning_details": [SEALED]},
            {"tool_calls": [CALL]},
        ],
        id="before the call",
    ),
    pytest.param(
        [
            {"reasoning": "hmm, so", "reasoning_details": [thought("hmm, so", signature="S")]},
            {"content": "I look."},
            {"tool_calls": [CALL], "reasoning_details": [SEALED]},
        ],
        id="with the call",
    ),
    pytest.param(
        [
            {"reasoning": "hmm, so", "reasoning_details": [thought("hmm, so", signature="S")]},
            {"tool_calls": [CALL]},
            {"content": "", "reasoning_details": [SEALED]},
        ],
        id="behind the call",
    ),
    pytest.param(
        [{"reasoning": "hmm, so", "content": "I look.", "reasoning_details": WHOLE, "tool_calls": [CALL]}],
        id="at once",
    ),
]


@pytest.mark.parametrize("deltas", DETAILS)
@pytest.mark.parametrize("whole", [False, True], ids=["stream", "whole"])
@pytest.mark.parametrize("client", CLIENTS)
def test_details_of_thinking_go_back_to_openrouter(client: str, whole: bool, deltas: list[Json]) -> None:
    """Gemini 3 there: a call without them is a 400, "missing a thought_signature"."""
    rows: list[Json] = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    rows.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
    if whole:
        rows = [{"choices": [{"index": 0, "message": deltas[0], "finish_reason": "tool_calls"}]}]
    if whole and len(deltas) > 1:
        return
    request = ask(user("q"), dialect=client)._replace(id="r")
    events = back(list(cp.chat_read_stream(rows, request)), request, "chat", GEMINI_3)
    answer = cp.DIALECTS[client].write_response(cp.collect(events), request)
    history = asked_again(client, answer)
    body = written(history, "chat", GEMINI_3)
    said = [message for message in body["messages"] if message["role"] == "assistant"]
    assert [entry for message in said for entry in message.get("reasoning_details", ())] == WHOLE
    assert "extra_content" not in json.dumps(body)
    for dialect in ("claude", "responses", "gemini", "chat"):
        if dialect != client:
            assert "SIG" not in json.dumps(written(history, dialect))


def asked_again(client: str, answer: Json) -> Request:
    """Return the next request of a client, with the answer in its history."""
    if client == "claude":
        result = {"type": "tool_result", "tool_use_id": "c1", "content": "r"}
        messages = [
            {"role": "assistant", "content": answer["content"]},
            {"role": "user", "content": [result]},
        ]
        return read(client, {"messages": [HELLO, *messages], "max_tokens": 9})
    if client == "responses":
        result = {"type": "function_call_output", "call_id": "c1", "output": "r"}
        return read(client, {"input": [{"type": "message", **HELLO}, *answer["output"], result]})
    given: Json = {"functionResponse": {"id": "c1", "name": "f", "response": {"output": "r"}}}
    contents = [GEMINI_HELLO, answer["candidates"][0]["content"], {"role": "user", "parts": [given]}]
    return read(client, {"contents": contents})


# -- what a refusal tells ----------------------------------------------------------------

REFUSED = [
    pytest.param("`reasoning_effort` is not supported with this model", "no-effort", id="Groq"),
    pytest.param('"llama3.2" does not support thinking', "no-effort", id="Ollama"),
    pytest.param("Model grok-4 does not support parameter reasoningEffort.", "no-effort", id="xAI"),
    pytest.param("reasoning_effort: must be one of low, medium, high", "no-effort", id="gpt-oss"),
    pytest.param("Thinking is not enabled for this model", "no-effort", id="Gemini"),
    pytest.param("This model does not support the effort parameter.", "no-effort", id="Claude"),
    pytest.param("Tool call id was toolu_1 but must be a-z, A-Z, 0-9, with a length of 9.", "short-ids", id="ids"),
    pytest.param("Unexpected role 'user' after role 'tool'", "turn-after-tool", id="roles"),
    pytest.param("The `reasoning_content` in the thinking mode must be passed back to the API.", "reasoning-content", id="DeepSeek"),
    pytest.param("thinking is enabled but reasoning_content is missing in assistant tool call message at index 2", "reasoning-content", id="Kimi"),
    pytest.param("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", "completion-tokens", id="limit"),
    pytest.param("messages: text content blocks must be non-empty", "", id="another"),
    pytest.param("max_tokens is too large: the model thinks", "", id="no word of it"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "quirk"), REFUSED)
def test_what_a_refusal_tells(words: str, quirk: str) -> None:
    body = json.dumps({"error": {"message": "Provider returned error", "metadata": {"raw": words}}})
    for raw in (body, json.dumps({"error": {"message": words}})):
        error = cp.chat_read_error(400, raw.encode())
        error.body = raw.encode()
        assert cp.lesson_of(error) == quirk
    assert not cp.lesson_of(cp.chat_read_error(429, body.encode()))


ADAPTIVE = {"output_config": {"effort": "high"}, "thinking": {"type": "adaptive"}}
BUDGET = {"generationConfig": {"thinkingConfig": {"thinkingBudget": 9000}}}
THINKS: dict[str, tuple[str, Json]] = {
    "claude": ("/v1/messages", {"max_tokens": 9, "messages": [HELLO], **ADAPTIVE}),
    "chat": ("/v1/chat/completions", {"messages": [HELLO], "reasoning_effort": "high"}),
    "responses": ("/v1/responses", {"input": "q", "reasoning": {"effort": "high"}}),
    "gemini": ("/v1beta/models/up-chat:generateContent", {"contents": [GEMINI_HELLO], **BUDGET}),
}


@pytest.mark.parametrize("client", THINKS)
def test_an_effort_that_is_refused_is_left_out_and_that_is_remembered(
    make_proxy: ProxyMaker, upstream: Upstream, client: str
) -> None:
    path, body = THINKS[client]
    upstream.reply({"error": {"message": "`reasoning_effort` is not supported with this model"}}, 400)
    for _ in range(2):
        upstream.reply(*[ANSWERS["chat"](Said(text="well"))])
    proxy = make_proxy()
    for _ in range(2):
        assert proxy.ask(path, {"model": "up-chat", **body}).status == 200
    assert ["reasoning_effort" in seen.json() for seen in upstream.seen] == [True, False, False]


def test_what_is_refused_all_the_same_is_asked_once_more_only(
    make_proxy: ProxyMaker, upstream: Upstream
) -> None:
    for _ in range(2):
        upstream.reply({"error": {"message": "`reasoning_effort` is not supported"}}, 400)
    path, body = THINKS["claude"]
    assert make_proxy().ask(path, {"model": "up-chat", **body}).status == 400
    assert len(upstream.seen) == 2


def test_each_thing_that_a_host_wants_is_learnt(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    upstream.reply({"error": {"message": "Tool call id was x but must be of a length of 9"}}, 400)
    upstream.reply({"error": {"message": "Unexpected role 'user' after role 'tool'"}}, 400)
    upstream.reply(*[ANSWERS["chat"](Said(text="well"))])
    history: list[Message] = [*LOOP, user("go on")]
    body = written(ask(*history, dialect="chat"), "claude", Target("claude", Model("c")))
    assert make_proxy().ask("/v1/messages", {**body, "model": "up-chat", "max_tokens": 9}).status == 200
    check_mistral(upstream.seen[2].json())


# -- refusals of another form --------------------------------------------------------------

ODD_BODIES = [
    '{"detail":"Unsupported parameter: foo"}',
    '{"message":"no foo"}',
    '{"error":"no foo"}',
    "<html>no foo</html>",
    "no foo",
]
PATHS = {
    "claude": "/v1/messages",
    "chat": "/v1/chat/completions",
    "responses": "/v1/responses",
    "gemini": "/v1beta/models/up-gemini:generateContent",
}


@pytest.mark.parametrize("odd", ODD_BODIES)
@pytest.mark.parametrize("dialect", PATHS)
def test_refusals_of_another_form_are_said_as_the_dialect_says_them(
    make_proxy: ProxyMaker, upstream: Upstream, dialect: str, odd: str
) -> None:
    upstream.reply(odd, 400, {"content-type": "application/json"})
    got = make_proxy().ask(PATHS[dialect], {"model": f"up-{dialect}", **THINKS[dialect][1]})
    error = got.json()["error"]
    assert got.status == 400
    assert "foo" in error["message"]
    assert error.keys() >= set(cp.ERROR_FIELDS[dialect])
