"""A client's own login: it goes to its own vendor, unchanged, and nowhere else, whatever happens."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

import cliproxy as cp
from support.codex import STREAM, add_codex
from support.dialogue import ANSWERS, STREAMS, Said
from support.proxy import Got, Proxy, ProxyMaker
from support.upstream import Upstream
from support.world import jwt

SSE = {"content-type": "text/event-stream"}
OAT = "sk-ant-oat01-" + "the-clients-own-secret"
TOKEN = jwt({"sub": "the-clients-own"})
CLAUDE_CODE = {
    "authorization": f"Bearer {OAT}",
    "anthropic-version": "2023-06-01",
    "anthropic-beta": "claude-code-20250219,oauth-2025-04-20",
    "user-agent": "claude-cli/2.1.197 (external, cli)",
    "x-app": "cli",
}
CODEX = {
    "authorization": f"Bearer {TOKEN}",
    "chatgpt-account-id": "acct-own",
    "originator": "codex_exec",
    "user-agent": "codex_exec/0.171.0",
    "session-id": "s1",
}
MESSAGE = {
    "model": "claude-opus-4-5",
    "max_tokens": 9,
    "stream": False,
    "messages": [{"role": "user", "content": "hi"}],
}
RESPONSE = {
    "model": "gpt-5.5", "stream": True, "store": False, "input": [{"type": "message", "id": "msg_1", "role": "user", "content": "hi"}],
    "include": ["reasoning.encrypted_content"], "tools": [], "parallel_tool_calls": True,
}  # fmt: skip
CLIENTS = {
    "claude": ("/v1/messages?beta=true", CLAUDE_CODE, MESSAGE, OAT),
    "codex": ("/v1/responses", CODEX, RESPONSE, TOKEN),
}
LIMITED = {"anthropic-ratelimit-unified-status": "rejected", "retry-after": "600"}


@pytest.fixture
def make(make_proxy: ProxyMaker, upstream: Upstream) -> ProxyMaker:
    """Make a proxy whose vendors are on loopback."""

    def made(**settings: Any) -> Proxy:
        hosts = {"claude": {"base-url": upstream.url}, "codex": {"base-url": f"{upstream.url}/codex"}}
        return make_proxy(providers=hosts, **settings)

    return made


def reply(upstream: Upstream, client: str) -> None:
    if client == "claude":
        upstream.reply(ANSWERS["claude"](Said(text="hello")))
    else:
        upstream.reply(STREAM, headers=SSE)


def call(proxy: Proxy, client: str, more: dict[str, str] | None = None, **body: Any) -> Got:
    path, headers, whole, _ = CLIENTS[client]
    return proxy.ask(path, {**whole, **body}, {**headers, **(more or {})})


def leaks(upstream: Upstream) -> list[str]:
    """Return the requests with a client's token that were no such client's own."""
    heads = [seen.head + seen.body for seen in upstream.seen]
    return [head.decode("latin-1") for head in heads if OAT.encode() in head or TOKEN.encode() in head]


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("keys", [[], ["ours"]])
def test_it_goes_to_its_vendor_as_it_came(
    make: ProxyMaker, upstream: Upstream, client: str, keys: list[str]
) -> None:
    proxy = make(api_keys=keys)
    reply(upstream, client)
    path, headers, body, token = CLIENTS[client]
    sent = json.dumps(body, indent=2).encode()
    got = proxy.ask(path, sent, {**headers, **({"x-cliproxy-key": "ours"} if keys else {})})
    assert got.status == 200
    (seen,) = upstream.seen
    assert seen.body == sent
    assert seen.path == {"claude": "/v1/messages?beta=true", "codex": "/codex/responses"}[client]
    assert headers.items() <= seen.headers.items()
    assert seen.headers["authorization"] == f"Bearer {token}"
    assert "x-cliproxy-key" not in seen.headers
    assert "x-api-key" not in seen.headers
    assert "session_id" not in seen.headers


@pytest.mark.parametrize("client", CLIENTS)
def test_the_proxys_own_key_is_still_wanted(make: ProxyMaker, upstream: Upstream, client: str) -> None:
    got = call(make(api_keys=["ours"]), client)
    assert (got.status, "x-cliproxy-key" in got.body.decode()) == (401, True)
    assert call(make(api_keys=["ours"]), client, {"x-cliproxy-key": "wrong"}).status == 401
    assert not upstream.seen


@pytest.mark.parametrize("client", CLIENTS)
def test_it_can_be_switched_off(make: ProxyMaker, upstream: Upstream, client: str) -> None:
    assert call(make(client_login=False), client).status == 404
    assert not upstream.seen


FOREIGN = [
    "up-claude",
    "up-chat",
    "up-responses",
    "up-gemini",
    "echo",
    "claude-via-up-chat",
    "claude-aliased",
    "gpt-aliased",
]


@pytest.mark.parametrize("model", FOREIGN)
@pytest.mark.parametrize("client", CLIENTS)
def test_models_of_others_do_not_get_it(
    make: ProxyMaker, upstream: Upstream, client: str, model: str
) -> None:
    """Nor those that only look like its vendor's: their owner has given the name away."""
    rows = [
        {"name": "up-chat"},
        {"name": "m", "alias": "claude-aliased"},
        {"name": "m", "alias": "gpt-aliased"},
    ]
    copies = {"x-copy": "$authorization", "x-copy-account": "$chatgpt-account-id"}
    keyed = {
        "base-url": f"{upstream.url}/v1",
        "headers": copies,
        "models": rows,
        "api-key-entries": [{"api-key": "k"}],
    }
    proxy = make(openai_compatibility=[{"name": "up", **keyed}])
    dialect = model[3:] if model.startswith("up-") else "chat"
    upstream.reply(ANSWERS[dialect](Said(text="hello")))
    call(proxy, client, stream=False, model=model)
    assert not leaks(upstream)
    assert not any("acct-own" in seen.head.decode("latin-1") for seen in upstream.seen)


def test_a_login_is_for_its_own_dialect(make: ProxyMaker, upstream: Upstream) -> None:
    """A token of the one vendor never goes to the other, whatever the model is called."""
    proxy = make()
    proxy.ask("/v1/messages", {**MESSAGE, "model": "gpt-5.5"}, CLAUDE_CODE)
    proxy.ask("/v1/messages", MESSAGE, CODEX)
    proxy.ask("/v1/responses", {**RESPONSE, "model": "claude-opus-4-5"}, CODEX)
    proxy.ask("/v1/responses", RESPONSE, CLAUDE_CODE)
    proxy.ask("/v1/chat/completions", {"model": "claude-opus-4-5", "messages": []}, CLAUDE_CODE)
    proxy.ask("/v1/images/generations", {"model": "gpt-image-1", "prompt": "x"}, CODEX)
    assert not upstream.seen


@pytest.mark.parametrize("client", CLIENTS)
def test_no_other_host_gets_it(make_proxy: ProxyMaker, upstream: Upstream, client: str) -> None:
    """A base-url in the config is where our accounts go, not clients' logins."""
    proxy = make_proxy(providers={client: {"base-url": "https://elsewhere.example"}})
    config = proxy.app.config
    guest = cp.guest_of(CLIENTS[client][1])
    assert guest
    assert cp.guest_account(config, guest) is None
    assert call(proxy, client).status == 404
    official = cp.guest_account(cp.load_config(None), guest)
    assert official
    assert f"{official.origin.scheme}://{official.origin.host}" in cp.PROVIDERS[client].base


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("client", CLIENTS)
def test_it_follows_no_redirect(make: ProxyMaker, upstream: Upstream, client: str, status: int) -> None:
    proxy = make()
    upstream.reply(b"", status, {"location": f"{upstream.url}/elsewhere"})
    assert call(proxy, client).status == 502
    assert len(upstream.seen) == 1


@pytest.mark.parametrize("client", CLIENTS)
def test_it_is_in_no_log_and_no_file(
    make: ProxyMaker, upstream: Upstream, client: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    proxy = make(debug=True, request_log=True)
    token = CLIENTS[client][3]
    reply(upstream, client)
    call(proxy, client)
    repeated = {"type": "error", "error": {"type": "x", "message": f"Bearer {token} is bad", "code": token}}
    for status in (400, 401, 403, 429, 500, 529):
        upstream.reply(repeated, status)
        assert token not in call(proxy, client).body.decode()
    call(proxy, client, {"x-cliproxy-key": "not-needed-here"}, model=7)
    proxy.app.save_state()
    assert token not in caplog.text + proxy.log(8)
    proxy.app.stats.flush()
    files = [file for file in proxy.auth_dir.parent.rglob("*") if file.is_file()]
    assert any(b"REQUEST INFO" in file.read_bytes() for file in files)
    assert not any(token.encode() in file.read_bytes() for file in files)
    assert not any(b"not-needed-here" in file.read_bytes() for file in files)
    assert not proxy.app._guests, "nor is it kept"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 500, 529])
@pytest.mark.parametrize("client", CLIENTS)
def test_a_refusal_is_told_as_it_is(make: ProxyMaker, upstream: Upstream, client: str, status: int) -> None:
    """The client renews its own token, or repeats: nobody else is asked."""
    proxy = make()
    if client == "codex":
        add_codex(proxy, "a")
    for _ in range(2):
        upstream.reply({"type": "error", "error": {"type": "x", "message": "no"}}, status)
        assert call(proxy, client).status == status
    assert len(leaks(upstream)) == len(upstream.seen) >= 2


@pytest.mark.parametrize("client", CLIENTS)
def test_at_its_limit_nobody_else_is_left(make: ProxyMaker, upstream: Upstream, client: str) -> None:
    proxy = make(request_retry=3)
    for _ in range(2):
        upstream.reply(
            {"type": "error", "error": {"type": "rate_limit_error", "message": "limit"}}, 429, LIMITED
        )
        got = call(proxy, client)
        assert (got.status, got.headers["retry-after"]) == (429, "600")
    assert len(upstream.seen) == 2, "its vendor is asked, and says so itself"


def test_at_its_limit_another_account_of_its_vendor_answers(make: ProxyMaker, upstream: Upstream) -> None:
    keys = [{"api-key": "sk-other", "base-url": upstream.url}]
    proxy = make(claude_api_key=keys)
    upstream.reply({"type": "error", "error": {"type": "rate_limit_error", "message": "limit"}}, 429, LIMITED)
    for _ in range(2):
        reply(upstream, "claude")
        assert call(proxy, "claude").status == 200
    given = [seen.headers.get("authorization") for seen in upstream.seen]
    assert given == [f"Bearer {OAT}", "Bearer sk-other", "Bearer sk-other"]


@pytest.mark.parametrize("fallbacks", [{}, {"claude-opus-4-5": ["up-chat"]}])
def test_at_its_limit_another_model_answers_if_its_owner_says_so(
    make: ProxyMaker, upstream: Upstream, fallbacks: Any
) -> None:
    proxy = make(model_fallbacks=fallbacks)
    upstream.reply({"type": "error", "error": {"type": "rate_limit_error", "message": "limit"}}, 429, LIMITED)
    upstream.reply(ANSWERS["chat"](Said(text="hello")))
    got = call(proxy, "claude")
    assert got.status == (200 if fallbacks else 429)
    assert len(leaks(upstream)) == 1


def test_its_limits_are_learnt_and_it_is_counted_by_a_hash(
    make: ProxyMaker, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    proxy = make()
    told = {
        "anthropic-ratelimit-unified-status": "allowed",
        "anthropic-ratelimit-unified-5h-utilization": "0.5",
    }
    upstream.reply(ANSWERS["claude"](Said(text="hello")), headers=told)
    got = call(proxy, "claude")
    assert told.items() <= got.headers.items(), "the client learns them, too"
    name = f"client-login:{cp.digest('client login', OAT)[:8]}"
    assert name in proxy.log()
    assert proxy.app.router._limits.stored()[name]["windows"][0][:2] == ["5h", 50.0]


def test_tokens_are_counted_and_streams_pass(make: ProxyMaker, upstream: Upstream) -> None:
    proxy = make()
    upstream.reply({"input_tokens": 7})
    path = "/v1/messages/count_tokens?beta=true"
    assert proxy.ask(path, MESSAGE, CLAUDE_CODE).json() == {"input_tokens": 7}
    frames = STREAMS["claude"](Said(text="hello"))
    upstream.reply(frames, headers=SSE)
    assert call(proxy, "claude", stream=True).body == b"".join(frames)
    assert len(leaks(upstream)) == 2


ODD = [
    {"authorization": "Bearer sk-ant-oat01-é"}, {"authorization": "Bearer sk-ant-oat01-a b"}, {"authorization": "Bearer  "},
    {"authorization": f"Basic {OAT}"}, {"authorization": OAT}, {"authorization": f"Bearer {TOKEN}"},
    {"authorization": f"Bearer {TOKEN}", "chatgpt-account-id": "$authorization"},
    {"authorization": f"Bearer {TOKEN}", "chatgpt-account-id": "a/../b"},
    {"authorization": "Bearer eyJhbGciOi", "chatgpt-account-id": "acct"}, {"x-api-key": OAT}, {"cookie": OAT},
]  # fmt: skip


@pytest.mark.parametrize("headers", ODD)
def test_what_is_no_login_is_none(headers: dict[str, str]) -> None:
    assert cp.guest_of(headers) is None


@pytest.mark.parametrize(
    "more",
    [
        {"connection": "keep-alive, authorization"},
        {"x-forwarded-host": "elsewhere.example"},
        {"host": "127.0.0.1"},
    ],
)
def test_tricks_with_headers(make: ProxyMaker, upstream: Upstream, more: dict[str, str]) -> None:
    reply(upstream, "claude")
    assert call(make(), "claude", more).status == 200
    assert upstream.seen[0].headers["authorization"] == f"Bearer {OAT}"
