"""Models over a running proxy: by which names they can be asked for, and how they are listed."""

from __future__ import annotations

import json
import os
import threading
from typing import Any

import pytest

import cliproxy as cp
from support.proxy import Got, Proxy, ProxyMaker
from support.upstream import DEADLINE, Clock, Reply, Seen, Upstream, make_reply

SSE = {"content-type": "text/event-stream"}
TALK = [{"role": "user", "content": "hi"}]
ASKS: dict[str, tuple[str, dict[str, Any]]] = {  # dialect -> path, body without its model
    "claude": ("/v1/messages", {"max_tokens": 9, "messages": TALK}),
    "chat": ("/v1/chat/completions", {"messages": TALK}),
    "responses": ("/v1/responses", {"input": "hi"}),
    "gemini": (
        "/v1beta/models/{model}:generateContent",
        {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]},
    ),
}
CHANNELS = {  # channel -> the dialect in which its upstream is asked, and a model that it lists
    "claude": ("claude", "claude-opus-4-8"),
    "codex": ("responses", "gpt-5.5"),
}


def ask(proxy: Proxy, dialect: str, model: str, **more: Any) -> Got:
    path, body = ASKS[dialect]
    if dialect == "gemini":
        return proxy.ask(path.replace("{model}", model), {**body, **more})
    return proxy.ask(path, {**body, "model": model, **more})


def names(proxy: Proxy) -> set[str]:
    return {row["id"] for row in proxy.ask("/v1/models").json()["data"]}


def asked(upstream: Upstream) -> list[str]:
    """The models that the upstream was asked for."""
    return [seen.json()["model"] for seen in upstream.seen]


def log_in(proxy: Proxy, type: str, **fields: Any) -> None:
    """Put a credential file of a provider whose upstream is the scripted one into the auth dir."""
    data = {"type": type, "access_token": "tok", "email": "a@b.c", "base_url": proxy.upstream.url, **fields}
    (proxy.auth_dir / f"{type}-a@b.c.json").write_text(json.dumps(data), encoding="utf-8")
    proxy.app.poll()


def key(upstream: Upstream, *models: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
    return [{"api-key": "k", "base-url": upstream.url, "models": list(models), **fields}]


RESPONSE = {"id": "resp_1", "object": "response", "status": "completed", "output": []}
COMPLETED = {"type": "response.completed", "response": {**RESPONSE, "model": "real"}}


def answers(seen: Seen) -> Reply:
    """Answer any call in the dialect of its path, naming the upstream's model."""
    if seen.path.endswith("/responses"):
        return make_reply([cp.sse_frame(COMPLETED, "response.completed")], headers=SSE)
    return make_reply({"type": "message", "model": "real", "content": [], "usage": {}})


# --- other names --------------------------------------------------------------------------


@pytest.mark.parametrize("channel", CHANNELS)
def test_aliases_of_a_channel(make_proxy: ProxyMaker, upstream: Upstream, channel: str) -> None:
    dialect, model = CHANNELS[channel]
    rows = [
        {"name": model.upper(), "alias": "one"},
        {"name": model, "alias": "two"},
        {"name": "brand-new", "alias": "three"},
    ]
    proxy = make_proxy(oauth_model_alias={channel: rows}, claude_api_key=[], codex_api_key=[])
    log_in(proxy, channel)
    assert {"one", "two", "three"} <= names(proxy)
    assert model not in names(proxy), "an alias replaces the name"
    upstream.replies = [answers] * 4
    for name in ("one", "TWO", "one(high)", "three"):
        assert ask(proxy, dialect, name).status == 200
    assert asked(upstream) == [model, model, model, "brand-new"]
    assert "high" in json.dumps(upstream.seen[2].json()), "the effort goes on through the alias"


def test_a_fork_keeps_both_names(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    rows = [{"name": "claude-opus-4-8", "alias": "big", "fork": True, "display-name": "The Big One"}]
    proxy = make_proxy(oauth_model_alias={"Claude": rows})
    log_in(proxy, "claude")
    assert {"big", "claude-opus-4-8", "up-claude"} <= names(proxy)


def test_an_alias_may_hold_an_effort(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    rows = [{"name": "gpt-5.5(low)", "alias": "quick"}]
    proxy = make_proxy(oauth_model_alias={"codex": rows})
    log_in(proxy, "codex")
    upstream.replies = [answers] * 2
    ask(proxy, "responses", "quick")
    ask(proxy, "responses", "quick(high)")
    assert [seen.json()["reasoning"]["effort"] for seen in upstream.seen] == ["low", "low"]
    assert asked(upstream) == ["gpt-5.5", "gpt-5.5"]


def test_aliases_of_a_channel_leave_keys_alone(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    rows = [{"name": "claude-opus-4-8", "alias": "big"}]
    proxy = make_proxy(oauth_model_alias={"claude": rows}, claude_api_key=key(upstream))
    assert "big" not in names(proxy)
    assert "claude-opus-4-8" in names(proxy)


def test_one_alias_over_several_models_is_a_pool(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    models = [
        {"name": "first", "alias": "pool"},
        {"name": "second", "alias": "pool"},
        {"name": "first", "alias": "pool"},
    ]
    proxy = make_proxy(claude_api_key=key(upstream, *models))
    upstream.replies = [answers] * 3
    for _ in range(3):
        ask(proxy, "claude", "pool")
    assert asked(upstream) == ["first", "second", "first"]
    upstream.seen.clear()
    upstream.reply(
        {"error": {"type": "rate_limit_error", "message": "slow down"}}, 429, {"retry-after": "60"}
    )
    upstream.replies += [answers] * 2
    assert ask(proxy, "claude", "pool").status == 200, "the next one answers"
    assert ask(proxy, "claude", "pool").status == 200
    assert asked(upstream) == ["second", "first", "first"], "who was refused rests"


def test_a_pool_of_several_endpoints(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    entries = [
        {
            "name": name,
            "base-url": f"{upstream.url}/{name}",
            "models": [{"name": f"{name}-model", "alias": "pool"}],
        }
        for name in ("aa", "bb")
    ]
    proxy = make_proxy(openai_compatibility=[*entries, {**entries[0], "name": "cc", "disabled": True}])
    upstream.routes["/aa/chat/completions"] = make_reply({"error": {"message": "down"}}, 503)
    upstream.routes["/bb/chat/completions"] = make_reply({"choices": []})
    assert ask(proxy, "chat", "pool").status == 200
    assert asked(upstream) == ["aa-model", "bb-model"]


# --- the name in the answer ---------------------------------------------------------------

NAMED: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {  # dialect -> events, as sent and as they arrive
    "claude": [
        ({"type": "message_start", "message": {"id": "m", "model": "real", "content": []}},
         {"type": "message_start", "message": {"id": "m", "model": "Asked", "content": []}}),
        ({"type": "content_block_delta", "delta": {"partial_json": '{"model": "real"}', "x": {"model": "real"}}},) * 2,
        ({"type": "message_stop"},) * 2,
    ],
    "chat": [
        ({"model": "real", "choices": [{"delta": {"content": '"model":"real"', "model": "real"}}]},
         {"model": "Asked", "choices": [{"delta": {"content": '"model":"real"', "model": "real"}}]}),
    ],
    "responses": [
        ({"type": "response.created", "response": {"tools": [{"model": "real"}], "model": "real"}},
         {"type": "response.created", "response": {"tools": [{"model": "real"}], "model": "Asked"}}),
        ({"type": "response.completed", "response": {"model": "real"}}, {"type": "response.completed", "response": {"model": "Asked"}}),
    ],
    "gemini": [
        ({"candidates": [{"finishReason": "STOP", "x": {"modelVersion": "real"}}], "modelVersion": "real"},
         {"candidates": [{"finishReason": "STOP", "x": {"modelVersion": "real"}}], "modelVersion": "Asked"}),
    ],
}  # fmt: skip


def forced(upstream: Upstream, dialect: str) -> dict[str, Any]:
    """Settings under which the account of one dialect serves `real` as `Asked`, telling so."""
    row = {"name": "real", "alias": "Asked", "force-mapping": True}
    entries = {
        "claude": ("claude_api_key", key(upstream, row)),
        "chat": ("openai_compatibility", [{"name": "up", "base-url": upstream.url, "models": [row]}]),
        "responses": ("codex_api_key", key(upstream, row)),
        "gemini": ("gemini_api_key", key(upstream, row)),
    }
    return {name: entry if own == dialect else [] for own, (name, entry) in entries.items()}


@pytest.mark.parametrize("piece", [1, 7, 65_536])
@pytest.mark.parametrize("dialect", NAMED)
def test_force_mapping_names_streams(
    make_proxy: ProxyMaker, upstream: Upstream, dialect: str, piece: int
) -> None:
    proxy = make_proxy(**forced(upstream, dialect))
    upstream.piece = piece
    upstream.reply(
        [b": hello\n\n", *(cp.sse_frame(sent, "e") for sent, _ in NAMED[dialect]), b"data: [DONE]\n\n"],
        headers=SSE,
    )
    path, body = ASKS[dialect]
    path = path.replace("{model}:generateContent", "Asked:streamGenerateContent?alt=sse")
    got = proxy.ask(path, {**body, "stream": True, **({} if dialect == "gemini" else {"model": "Asked"})})
    assert (
        got.body
        == b": hello\n\n"
        + b"".join(cp.sse_frame(arrives, "e") for _, arrives in NAMED[dialect])
        + b"data: [DONE]\n\n"
    )


@pytest.mark.parametrize(
    ("sent", "arrives"),
    [
        (b'{"id" : 1.50, "model" : "real","content":[{"input":{"model":"real"}}], "usage":{}}\n',
         b'{"id" : 1.50, "model" : "Asked","content":[{"input":{"model":"real"}}], "usage":{}}\n'),
        (b'{"\\"model": 1, "a\\\\":"\\"model\\":\\"x", "model":null}', b'{"\\"model": 1, "a\\\\":"\\"model\\":\\"x", "model":null}'),
        ('{"text":"\u2028é", "model":"real"}'.encode(), '{"text":"\u2028é", "model":"Asked"}'.encode()),
        (b'{"broken": "model", "model": "rea', b'{"broken": "model", "model": "rea'),
        (b'{"x":"\xff", "model":"real"}', b'{"x":"\xff", "model":"Asked"}'),
    ],
)  # fmt: skip
def test_force_mapping_names_whole_answers(
    make_proxy: ProxyMaker, upstream: Upstream, sent: bytes, arrives: bytes
) -> None:
    row = {"name": "real", "alias": "Asked", "force-mapping": True}
    proxy = make_proxy(claude_api_key=key(upstream, row), codex_api_key=[])
    upstream.reply(sent, headers={"content-type": "application/json"})
    assert ask(proxy, "claude", "Asked").body == arrives


def test_without_force_mapping_the_bytes_pass(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    proxy = make_proxy(claude_api_key=key(upstream, {"name": "real", "alias": "asked"}))
    upstream.replies = [answers]
    assert ask(proxy, "claude", "asked").json()["model"] == "real"


def test_force_mapping_of_a_login(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    rows = [{"name": "gpt-5.5", "alias": "mine", "force-mapping": True}]
    proxy = make_proxy(oauth_model_alias={"codex": rows})
    log_in(proxy, "codex", prefix="p")
    upstream.replies = [answers] * 3
    assert ask(proxy, "responses", "mine").json()["model"] == "mine", "collected from a stream"
    assert ask(proxy, "responses", "p/mine", stream=True).payloads()[0]["response"]["model"] == "p/mine"
    assert ask(proxy, "claude", "mine").json()["model"] == "mine", "translated"


def test_gemini_s_arrays(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    """A client that did not say alt=sse reads its stream as one JSON array."""
    chunk = {
        "candidates": [{"content": {"role": "model", "parts": [{"text": "x"}]}, "finishReason": "STOP"}],
        "modelVersion": "real",
    }
    path, body = (
        ASKS["gemini"][0].replace("{model}:generateContent", "up-gemini:streamGenerateContent"),
        ASKS["gemini"][1],
    )
    proxy = make_proxy()
    upstream.reply([b"[", json.dumps(chunk).encode(), b"]"], headers={"content-type": "application/json"})
    assert proxy.ask(path, body).json() == [chunk]
    assert upstream.seen[0].path.endswith(":streamGenerateContent")
    proxy = make_proxy(**forced(upstream, "gemini"))
    upstream.reply([cp.sse_frame(chunk)], headers=SSE)
    got = proxy.ask(path.replace("up-gemini", "Asked"), body).json()
    assert {part["modelVersion"] for part in got} == {"Asked"}


# --- exclusions, prefixes, stand-ins ------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "hidden"),
    [
        ("claude-opus-4-8", {"claude-opus-4-8"}),
        ("Claude-*", {"claude-opus-4-8", "claude-sonnet-5", "claude-haiku-4-5-20251001"}),
        ("*-4-8", {"claude-opus-4-8"}),
        ("*haiku*", {"claude-haiku-4-5-20251001"}),
        ("*", {"claude-opus-4-8", "claude-sonnet-5", "claude-haiku-4-5-20251001"}),
    ],
)
def test_exclusions(make_proxy: ProxyMaker, upstream: Upstream, pattern: str, hidden: set[str]) -> None:
    shown = {"claude-opus-4-8", "claude-sonnet-5", "claude-haiku-4-5-20251001"}
    by_key = make_proxy(claude_api_key=key(upstream, **{"excluded-models": [pattern]}))
    by_channel = make_proxy(oauth_excluded_models={"Claude": [pattern]}, claude_api_key=[])
    log_in(by_channel, "claude")
    by_file = make_proxy(claude_api_key=[])
    log_in(by_file, "claude", excluded_models=[pattern])
    for proxy in (by_key, by_channel, by_file):
        assert shown - names(proxy) == hidden


def test_exclusions_are_of_the_real_name(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    models = [{"name": "real", "alias": "asked"}, {"name": "other", "alias": "real-2"}]
    proxy = make_proxy(claude_api_key=key(upstream, *models, **{"excluded-models": ["real", "real-2"]}))
    assert {"asked", "real-2"} & names(proxy) == {"real-2"}


@pytest.mark.parametrize(("force", "bare"), [(False, 200), (True, 404)])
def test_prefixes(make_proxy: ProxyMaker, upstream: Upstream, force: bool, bare: int) -> None:
    entry = key(upstream, {"name": "real", "alias": "asked"}, prefix="/team/")
    proxy = make_proxy(claude_api_key=entry, force_model_prefix=force)
    upstream.replies = [answers] * 2
    assert ask(proxy, "claude", "team/asked").status == 200
    assert asked(upstream) == ["real"]
    assert ask(proxy, "claude", "asked").status == bare
    assert ("asked" in names(proxy)) is not force


CLAUDE_CODE = [
    "claude-haiku-4-5-20251001",
    "claude-sonnet-4-5-20250929",
    "claude-opus-4-5-20251101",
    "claude-sonnet-5[1m]",
]


@pytest.mark.parametrize("model", CLAUDE_CODE)
def test_claude_code_with_a_chatgpt_account_alone(
    make_proxy: ProxyMaker, upstream: Upstream, model: str
) -> None:
    proxy = make_proxy(claude_api_key=[], codex_api_key=[], gemini_api_key=[], openai_compatibility=[])
    log_in(proxy, "codex")
    upstream.replies = [answers]
    got = ask(proxy, "claude", model)
    assert (got.status, got.json()["model"]) == (200, model)
    assert asked(upstream)[0].startswith("gpt-5")


def test_the_owner_s_own_stand_ins_come_first(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    proxy = make_proxy(model_fallbacks={"claude-haiku-*": ["missing", "up-chat"]}, claude_api_key=[])
    log_in(proxy, "codex")
    upstream.reply({"choices": []})
    ask(proxy, "claude", "claude-haiku-4-5")
    assert asked(upstream) == ["up-chat"]


def test_the_name_of_an_endpoint_we_know_is_enough(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    override = {"groq": {"base-url": f"{upstream.url}/openai/v1"}}
    proxy = make_proxy(
        {"GROQ_API_KEY": "gsk-1"},
        openai_compatibility=[{"name": "Groq"}, {"name": "nobody"}],
        providers=override,
    )
    upstream.reply({"choices": []})
    assert ask(proxy, "chat", "llama-4").status == 200
    assert (upstream.seen[0].path, upstream.seen[0].headers["authorization"]) == (
        "/openai/v1/chat/completions",
        "Bearer gsk-1",
    )


# --- lists of upstreams -------------------------------------------------------------------

LISTS: dict[str, tuple[str, str, Any]] = {  # setting -> path of the upstream's list, dialect, the list
    "claude-api-key": ("/v1/models", "claude", {"data": [
        {"type": "model", "id": "claude-next-9", "display_name": "Next", "created_at": "2027-01-02T00:00:00Z", "max_input_tokens": 7, "max_tokens": 5},
        {"type": "model", "id": "claude-opus-4-8", "display_name": "Opus", "created_at": "2026-01-02T00:00:00Z"},
    ]}),
    "codex-api-key": ("/models", "responses", {"object": "list", "data": [
        {"id": "gpt-next", "object": "model", "created": 1_798_848_000, "owned_by": "system"}, {"id": 7}, "junk",
    ]}),
    "gemini-api-key": ("/v1beta/models", "gemini", {"models": [
        {"name": "models/gemini-next", "displayName": "Next", "inputTokenLimit": 7, "outputTokenLimit": 5,
         "supportedGenerationMethods": ["generateContent"]},
        {"name": "models/embedder", "supportedGenerationMethods": ["embedContent"]},
    ]}),
    "openai-compatibility": ("/models", "chat", [
        {"id": "org/next", "name": "Org: Next", "context_length": 7, "top_provider": {"max_completion_tokens": 5}},
        {"id": "org/odd", "context_length": "many", "max_model_len": 7},
    ]),
}  # fmt: skip


def open_account(upstream: Upstream, setting: str) -> dict[str, Any]:
    """Settings with one account that offers whatever its upstream has."""
    entry = {"api-key": "k", "name": "up", "base-url": upstream.url, "api-key-entries": [{"api-key": "k"}]}
    return {name.replace("-", "_"): [entry] if name == setting else [] for name in LISTS}


def refresh(proxy: Proxy) -> dict[str, str]:
    failures = proxy.app.catalog.refresh(proxy.app.router.accounts())
    proxy.app.poll()
    return failures


def listed(proxy: Proxy, name: str, **headers: str) -> dict[str, Any]:
    got = proxy.ask(f"/v1/models/{name}", headers={k.replace("_", "-"): v for k, v in headers.items()})
    return dict(got.json())


@pytest.mark.parametrize("setting", LISTS)
def test_upstreams_list_their_models(make_proxy: ProxyMaker, upstream: Upstream, setting: str) -> None:
    path, dialect, body = LISTS[setting]
    proxy = make_proxy(**open_account(upstream, setting))
    upstream.routes[path] = make_reply(json.dumps(body), headers={"content-type": "application/json"})
    before = names(proxy)
    assert refresh(proxy) == {}
    new = next(name for name in names(proxy) - before if name.endswith(("next", "next-9")))
    assert {"embedder", "7"}.isdisjoint(names(proxy))
    assert before <= names(proxy), "what the tables list stays"
    sent = upstream.seen[0]
    assert (sent.method, sent.headers["user-agent"], sent.body) == ("GET", cp.USER_AGENT, b"")
    assert "k" in {sent.headers.get("x-goog-api-key"), sent.headers.get("authorization", "")[7:]}
    upstream.replies = [answers]
    ask(proxy, dialect, new.replace("/", "%2F") if dialect == "gemini" else new)
    assert len(upstream.seen) == 2
    row = listed(proxy, new.replace("/", "%2F"))
    if setting != "codex-api-key":
        assert (row["context_length"], row["max_completion_tokens"]) == (7, 5)


def test_tables_keep_what_a_list_does_not_say(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    proxy = make_proxy(**open_account(upstream, "claude-api-key"))
    upstream.routes["/v1/models"] = make_reply(LISTS["claude-api-key"][2])
    refresh(proxy)
    row = listed(proxy, "claude-opus-4-8")
    assert (row["context_length"], row["display_name"], row["owned_by"]) == (1_000_000, "Opus", "anthropic")
    fact = proxy.app.router.fact("claude-opus-4-8")
    assert (fact.budget, fact.can_stop, fact.levels[-1]) == ((1_024, 128_000), True, "max")


def wait_for_lists(proxy: Proxy) -> None:
    thread = proxy.app.catalog._asking
    if thread:
        thread.join(8.0)
    proxy.app.poll()


def test_lists_are_asked_for_once_a_day(make_proxy: ProxyMaker, upstream: Upstream, clock: Clock) -> None:
    settings = open_account(upstream, "openai-compatibility")
    proxy = make_proxy(**settings)
    proxy.app.catalog._now = clock
    upstream.routes["/models"] = make_reply({"data": [{"id": "one"}]})
    for turn, count in ((0, 1), (3_600, 1), (86_000, 2), (10, 2)):
        clock.turn(turn)
        proxy.app.ask_for_models()
        wait_for_lists(proxy)
        assert len(upstream.seen) == count
    assert "one" in names(proxy)
    (file,) = (proxy.auth_dir / ".cliproxy" / "models").iterdir()
    assert (file.suffix, "k" in json.loads(file.read_text())) == (".list", False)
    store = cp.Store(proxy.auth_dir)
    again = cp.App(proxy.app.config_file, store, {})
    again.catalog._now = clock
    again.ask_for_models()
    assert ("one" in again.router.models(), again.catalog._asking, len(upstream.seen)) == (True, None, 2), (
        "it was kept"
    )
    file.write_text("{")
    assert "one" not in cp.App(proxy.app.config_file, store, {}).router.models(), "a damaged file is as none"


def test_a_failure_is_tried_again_after_an_hour(
    make_proxy: ProxyMaker, upstream: Upstream, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    proxy = make_proxy(**open_account(upstream, "openai-compatibility"))
    proxy.app.catalog._now = clock
    upstream.reply({"error": {"message": "not today"}}, 500)
    upstream.reply(b"<html>", 200)
    upstream.reply({"data": [{"id": "x", "supportedGenerationMethods": 5}]})
    upstream.reply({"data": [{"id": "one"}]})
    for turn, count in ((0, 1), (3_500, 1), (200, 2), (200, 2), (3_600, 3), (200, 3), (3_600, 4)):
        clock.turn(turn)
        proxy.app.ask_for_models()
        wait_for_lists(proxy)
        assert len(upstream.seen) == count
    assert "one" in names(proxy)
    told = [record for record in caplog.records if "no list of models" in record.message]
    assert {record.levelname for record in told} == {"DEBUG"}


def test_nobody_is_asked_for_nothing(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    proxy = make_proxy()
    proxy.app.ask_for_models()
    assert proxy.app.catalog._asking is None, "all accounts say which models they offer"
    proxy = make_proxy(**open_account(upstream, "claude-api-key"), refresh_models=False)
    proxy.app.ask_for_models()
    assert proxy.app.catalog._asking is None


def test_serving_does_not_wait_for_lists(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    go = threading.Event()
    upstream.routes["/v1/models"] = make_reply([go, b"{}"])
    upstream.replies = [answers]
    proxy = make_proxy(**open_account(upstream, "claude-api-key"))
    proxy.app.ask_for_models()
    assert upstream.asked.wait(DEADLINE)
    assert ask(proxy, "claude", "claude-opus-4-8").status == 200
    go.set()
    wait_for_lists(proxy)


# --- what is told of models ---------------------------------------------------------------

ROWS = [
    {
        "id": "mine",
        "provider": "up",
        "owner": "me",
        "name": "Mine",
        "context": 1_000,
        "output": 100,
        "levels": ["low", "high"],
    },
    {"id": "claude-opus-4-8", "context": 5},
    {"id": "up-model", "thinking": False},
    {"id": "gpt-9", "provider": "codex", "min-budget": 1, "max-budget": 9},
]


def test_the_owner_s_rows(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    endpoint = {"name": "up", "base-url": upstream.url}
    proxy = make_proxy(models=ROWS, claude_api_key=key(upstream), openai_compatibility=[endpoint])
    mine = listed(proxy, "mine")
    assert (
        mine["owned_by"],
        mine["display_name"],
        mine["context_length"],
        mine["max_completion_tokens"],
    ) == ("me", "Mine", 1_000, 100)
    assert listed(proxy, "claude-opus-4-8")["context_length"] == 5
    assert {"up-model", "gpt-9"}.isdisjoint(names(proxy)), "to know a model is not to have it"
    assert proxy.app.router.fact("claude-opus-4-8").budget == (1_024, 128_000)
    log_in(proxy, "codex")
    fact = proxy.app.router.fact("gpt-9")
    assert (fact.budget, fact.thinking) == ((1, 9), True)
    upstream.reply({"choices": [{"message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}]})
    assert (
        ask(
            proxy, "claude", "mine", thinking={"type": "enabled", "budget_tokens": 30_000}, max_tokens=64_000
        ).status
        == 200
    )
    assert upstream.seen[0].json()["reasoning_effort"] == "high", "the levels of the row count"


def test_lists_tell_limits(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    models = [
        {"name": "claude-opus-4-5-20251101", "alias": "big", "display-name": "Big One"},
        {"name": "who-knows"},
    ]
    proxy = make_proxy(claude_api_key=key(upstream, *models, {"name": "claude-opus-4-5-20251101"}))
    plain = {
        "id": "who-knows",
        "object": "model",
        "created": 0,
        "owned_by": "claude",
        "display_name": "who-knows",
    }
    assert listed(proxy, "who-knows") == plain
    assert listed(proxy, "claude-opus-4-5-20251101") == {
        "id": "claude-opus-4-5-20251101", "object": "model", "created": 1_761_955_200, "owned_by": "anthropic",
        "display_name": "Claude Opus 4.5", "context_length": 200_000, "max_completion_tokens": 64_000,
    }  # fmt: skip
    assert listed(proxy, "big", anthropic_version="2023-06-01") == {
        "type": "model", "id": "big", "display_name": "Big One", "created_at": "1970-01-01T00:00:00Z",
        "max_input_tokens": 200_000, "max_tokens": 64_000,
    }  # fmt: skip
    assert listed(proxy, "big", x_goog_api_key="k")["inputTokenLimit"] == 200_000


def test_the_vendors_sdks_read_the_lists(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    anthropic, openai = pytest.importorskip("anthropic"), pytest.importorskip("openai")
    proxy = make_proxy(claude_api_key=key(upstream))
    with anthropic.Anthropic(base_url=proxy.url, api_key="k") as client:
        models = {model.id: model for model in client.models.list()}
        assert models["claude-opus-4-8"].max_input_tokens == 1_000_000
        assert client.models.retrieve("claude-opus-4-5-20251101").created_at.year == 2025
    for base in (proxy.url, f"{proxy.url}/v1"):
        with openai.OpenAI(base_url=base, api_key="k") as client:
            assert "claude-opus-4-8" in {model.id for model in client.models.list()}


def test_models_on_the_command_line(
    make_proxy: ProxyMaker,
    upstream: Upstream,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in os.environ if name.endswith("_API_KEY")]:
        monkeypatch.delenv(name)
    entry = {"name": "up", "base-url": upstream.url, "api-key-entries": [{"api-key": "a"}, {"api-key": "b"}]}
    proxy = make_proxy(
        openai_compatibility=[entry],
        codex_api_key=key(upstream, **{"base-url": f"{upstream.url}/c"}),
        models=ROWS,
    )
    upstream.routes["/models"] = make_reply({"data": [{"id": "new-1", "context_length": 9}]})
    upstream.routes["/c/models"] = make_reply(b"", 404)
    assert cp.main(["models", "--refresh", "--config", str(proxy.path)]) == 0
    out = capsys.readouterr().out
    said = {line.split()[0]: line.split() for line in out.splitlines()}
    assert said["new-1"] == ["new-1", "9", "?", "?", "up[0],", "up[1]"]
    assert said["mine"] == ["mine", "1000", "100", "low", "high", "up[0],", "up[1]"]
    assert said["up-claude"][-1] == "claude-api-key[0]"
    assert said["codex-api-key[0]:"]
    assert cp.main(["models", "--config", str(proxy.path)]) == 0
    assert "new-1" in capsys.readouterr().out, "it was kept"


def test_a_key_for_openai_has_models_before_it_is_asked_for_them(
    make_proxy: ProxyMaker, upstream: Upstream
) -> None:
    key, more = ({"api-key": "k", "base-url": upstream.url}, {"id": "a-new-one", "provider": "codex-api-key"})
    proxy = make_proxy(**{"codex-api-key": [key]}, models=[more])
    listed = names(proxy)
    assert {"gpt-5.5", "gpt-5.6-sol", "a-new-one"} <= listed
    assert "codex-auto-review" not in listed, "a ChatGPT plan's own"
