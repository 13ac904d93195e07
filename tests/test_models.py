"""Models over a running proxy: by which names they can be asked for, and how they are listed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import Got, Proxy, ProxyMaker, Reply, Seen, Upstream, make_reply

import cliproxy as cp

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
    data = {
        "type": type,
        "access_token": "tok",
        "email": "a@b.c",
        "base_url": proxy.upstream.url,
        **fields,
    }
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
    rows = [
        {"name": "claude-opus-4-8", "alias": "big", "fork": True, "display-name": "The Big One"}
    ]
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


def test_one_alias_over_several_models_is_a_pool(
    make_proxy: ProxyMaker, upstream: Upstream
) -> None:
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
    proxy = make_proxy(
        openai_compatibility=[*entries, {**entries[0], "name": "cc", "disabled": True}]
    )
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
        "chat": (
            "openai_compatibility",
            [{"name": "up", "base-url": upstream.url, "models": [row]}],
        ),
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
        [
            b": hello\n\n",
            *(cp.sse_frame(sent, "e") for sent, _ in NAMED[dialect]),
            b"data: [DONE]\n\n",
        ],
        headers=SSE,
    )
    path, body = ASKS[dialect]
    path = path.replace("{model}:generateContent", "Asked:streamGenerateContent?alt=sse")
    got = proxy.ask(
        path, {**body, "stream": True, **({} if dialect == "gemini" else {"model": "Asked"})}
    )
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
    assert (
        ask(proxy, "responses", "p/mine", stream=True).payloads()[0]["response"]["model"]
        == "p/mine"
    )
    assert ask(proxy, "claude", "mine").json()["model"] == "mine", "translated"


def test_gemini_s_arrays(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    """A client that did not say alt=sse reads its stream as one JSON array."""
    chunk = {
        "candidates": [
            {"content": {"role": "model", "parts": [{"text": "x"}]}, "finishReason": "STOP"}
        ],
        "modelVersion": "real",
    }
    path, body = (
        ASKS["gemini"][0].replace("{model}:generateContent", "up-gemini:streamGenerateContent"),
        ASKS["gemini"][1],
    )
    proxy = make_proxy()
    upstream.reply(
        [b"[", json.dumps(chunk).encode(), b"]"], headers={"content-type": "application/json"}
    )
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
def test_exclusions(
    make_proxy: ProxyMaker, upstream: Upstream, pattern: str, hidden: set[str]
) -> None:
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
    proxy = make_proxy(
        claude_api_key=key(upstream, *models, **{"excluded-models": ["real", "real-2"]})
    )
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
    proxy = make_proxy(
        claude_api_key=[], codex_api_key=[], gemini_api_key=[], openai_compatibility=[]
    )
    log_in(proxy, "codex")
    upstream.replies = [answers]
    got = ask(proxy, "claude", model)
    assert (got.status, got.json()["model"]) == (200, model)
    assert asked(upstream)[0].startswith("gpt-5")


def test_the_owner_s_own_stand_ins_come_first(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    proxy = make_proxy(
        model_fallbacks={"claude-haiku-*": ["missing", "up-chat"]}, claude_api_key=[]
    )
    log_in(proxy, "codex")
    upstream.reply({"choices": []})
    ask(proxy, "claude", "claude-haiku-4-5")
    assert asked(upstream) == ["up-chat"]


def test_the_name_of_an_endpoint_we_know_is_enough(
    make_proxy: ProxyMaker, upstream: Upstream
) -> None:
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
