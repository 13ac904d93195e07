"""Amp's model calls: its routes, its requests as they really are, and the names in the answers.

Source: spec/clients.md "Amp", spec/providers.md 15, spec/config.md 8 and 12.
"""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

import cliproxy as cp
from support import validate_chat, validate_claude, validate_gemini, validate_responses
from support.dialogue import ANSWERS, NAMES, SSE, STREAMS, Said
from support.proxy import Proxy, ProxyMaker
from support.upstream import Upstream, make_reply
from support.world import free_port

Json = dict[str, Any]
KEY = {"authorization": "Bearer sk-one"}
GOOGLE = {**KEY, "x-goog-api-key": "placeholder"}
AMP = {"x-amp-thread-id": "T-1", "x-amp-feature": "amp.chat", "x-amp-message-id": "0"}
TEXT = {"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}
TOOL = {
    "name": "look",
    "description": "looks",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
TITLE: Json = {
    "max_tokens": 60, "temperature": 0.7, "system": "Make a title.", "messages": [{"role": "user", "content": "hi"}],
    "tools": [{**TOOL, "name": "set_title"}], "tool_choice": {"type": "tool", "name": "set_title", "disable_parallel_tool_use": True},
}  # fmt: skip
SMART: Json = {
    "max_tokens": 32_000, "stream": True, "system": [{**TEXT, "cache_control": {"type": "ephemeral", "ttl": "1h"}}], "tools": [TOOL],
    "messages": [
        {"role": "user", "content": [TEXT]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"city": "x"}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": [TEXT]}]},
    ],
}  # fmt: skip
DEEP: Json = {
    "stream": True, "store": False, "include": ["reasoning.encrypted_content"], "max_output_tokens": 32_000,
    "reasoning": {"effort": "medium", "summary": "auto"}, "prompt_cache_key": "T-1", "stream_options": {"include_obfuscation": False},
    "input": [{"role": "system", "content": "You are Amp."}, {"role": "user", "content": [{"type": "input_text", "text": "hi"}]}],
    "tools": [{"type": "function", "name": "look", "strict": False, "parameters": TOOL["input_schema"]}],
}  # fmt: skip
FINDER: Json = {
    "contents": [{"role": "user", "parts": [{"text": "find it"}]}],
    "systemInstruction": {"role": "user", "parts": [{"text": "You find things."}]},
    "tools": [{"functionDeclarations": [{"name": "look", "parameters": {"type": "OBJECT", "properties": {"city": {"type": "STRING"}}}}]}],
    "generationConfig": {"maxOutputTokens": 65_535, "seed": 1, "thinkingConfig": {"thinkingLevel": "MINIMAL", "includeThoughts": False}},
}  # fmt: skip
UNSPECIFIED = {
    **FINDER,
    "generationConfig": {"thinkingConfig": {"thinkingLevel": "THINKING_LEVEL_UNSPECIFIED"}},
}
PAINTER: Json = {
    "contents": FINDER["contents"],
    "generationConfig": {"responseModalities": ["TEXT", "IMAGE"], "imageConfig": {"aspectRatio": "1:1"}},
}
READER = {
    **FINDER,
    "generationConfig": {
        "responseMimeType": "application/json",
        "responseSchema": {"type": "OBJECT", "properties": {}},
    },
}
CHAT: Json = {"stream": True, "messages": [{"role": "user", "content": "hi"}]}
VERTEX = "google/v1beta1/publishers/google/models/{}:generateContent"
STREAMED = "google/v1beta1/publishers/google/models/{}:streamGenerateContent?alt=sse"
BETA = {"anthropic-beta": "fine-grained-tool-streaming-2025-05-14,context-1m-2025-08-07"}
MESSAGES, RESPONSES = "anthropic/v1/messages", "openai/v1/responses"
# fmt: off
SHAPES = [  # dialect, path behind /api/provider/, headers, model, body
    pytest.param("claude",    MESSAGES,  KEY,             "claude-haiku-4-5-20251001", TITLE, id="title"),
    pytest.param("claude",    MESSAGES,  {"x-api-key": "sk-one", **AMP, **BETA}, "claude-opus-4-5-20251101",
                 {**SMART, "thinking": {"type": "enabled", "budget_tokens": 4_000}}, id="smart, January"),
    pytest.param("claude",    MESSAGES,  {**KEY, **AMP},  "claude-opus-4-7",
                 {**SMART, "thinking": {"type": "adaptive", "display": "summarized"}, "output_config": {"effort": "high"}}, id="smart, May"),
    pytest.param("claude",    MESSAGES,  {**KEY, **AMP},  "claude-sonnet-4-5-20250929", {**SMART, "max_tokens": 8_000, "stream": False}, id="task"),
    pytest.param("responses", RESPONSES, {**KEY, **AMP},  "gpt-5.2-codex", DEEP, id="deep"),
    pytest.param("responses", RESPONSES, {**KEY, **AMP},  "gpt-5.1", {**DEEP, "reasoning": {"effort": "high", "summary": "detailed"}}, id="oracle"),
    pytest.param("gemini",    VERTEX,    {**GOOGLE, **AMP}, "gemini-3-flash-preview", FINDER, id="finder"),
    pytest.param("gemini",    VERTEX,    {**GOOGLE, **AMP}, "gemini-3-pro-image-preview", PAINTER, id="painter"),
    pytest.param("gemini",    VERTEX,    {**GOOGLE, **AMP}, "gemini-2.5-flash-lite-preview-09-2025", READER, id="read_thread"),
    pytest.param("gemini",    STREAMED,  GOOGLE,          "gemini-3-pro-preview", UNSPECIFIED, id="main loop on Google"),
    pytest.param("gemini",    "google/v1beta/models/{}:generateContent", GOOGLE, "gemini-2.5-pro", FINDER, id="v1beta"),
    pytest.param("chat",      "xai/v1/chat/completions",       KEY, "grok-4.5", CHAT, id="xai"),
    pytest.param("chat",      "cerebras/chat/completions",     KEY, "qwen-3-coder", CHAT, id="cerebras"),
    pytest.param("chat",      "fireworks/v1/chat/completions", KEY, "glm-4p6", {**CHAT, "stream": False}, id="fireworks"),
]
# fmt: on
SAID = Said("Hm.", "I look.", "toolu_7", "Rome")


def checked(data: bytes, dialect: str, stream: bool) -> None:
    """Check an answer as strictly as the official clients do, or more so."""
    if not stream:
        assert isinstance(json.loads(data), dict)
    elif dialect == "chat":
        validate_chat.validate_stream(data, usage=b'"usage": {' in data or b'"usage":{' in data)
    else:
        check: Any = {
            "claude": validate_claude.validate,
            "responses": lambda stream: validate_responses.validate(stream, own_ids=False),
            "gemini": validate_gemini.validate_stream,
        }[dialect]
        check(data)


def models_in(data: bytes) -> set[str]:
    """Return all the names of models that an answer tells."""
    return set(re.findall(r'"(?:model|modelVersion)"\s*:\s*"([^"]*)"', data.decode()))


def call(proxy: Proxy, path: str, headers: Json, model: str, body: Json) -> Any:
    named = body if "{}" in path else {**body, "model": model}
    return proxy.ask(f"/api/provider/{path.format(model)}", named, headers)


@pytest.mark.parametrize("home", NAMES)
@pytest.mark.parametrize(("dialect", "path", "headers", "model", "body"), SHAPES)
def test_what_amp_sends(  # noqa: PLR0917 -- a column each
    make_proxy: ProxyMaker, upstream: Upstream, dialect: str, path: str, headers: Json, model: str, body: Json, home: str
) -> None:  # fmt: skip
    mapping = {"from": model, "to": f"up-{home}"}
    proxy = make_proxy(api_keys=["sk-one"], ampcode={"model-mappings": [mapping]})
    stream = bool(body.get("stream")) or "stream" in path
    if stream:
        upstream.reply(STREAMS[home](SAID), headers=SSE)
    else:
        upstream.reply(ANSWERS[home](SAID))
    got = call(proxy, path, headers, model, body)
    assert (got.status, models_in(got.body)) == (200, {model}), got.body
    assert b"I l" in got.body
    if dialect != home:  # else it is the upstream's own, as it came
        checked(got.body, dialect, stream)
    (seen,) = upstream.seen
    asked = seen.path if home == "gemini" else seen.json()["model"]
    assert f"up-{home}" in asked
    assert "placeholder" not in json.dumps(seen.headers)
    assert "context-1m-2025-08-07" not in seen.headers.get("anthropic-beta", "")
    if dialect == home == "claude" and "anthropic-beta" in headers:
        assert seen.headers["anthropic-beta"] == "fine-grained-tool-streaming-2025-05-14"
    if dialect == home and home in {"claude", "responses", "gemini"}:
        sent = seen.json() if home == "gemini" else {**seen.json(), "model": model}
        assert sent == (body if home == "gemini" else {**body, "model": model}), "nothing is lost"
    assert "UNSPECIFIED" not in seen.body.decode() or dialect == home


KEY_LISTS = ("claude_api_key", "codex_api_key", "gemini_api_key", "openai_compatibility")
OWN = [shape for shape in SHAPES if shape.values[0] != "chat"]


@pytest.mark.parametrize(("dialect", "path", "headers", "model", "body"), OWN)
def test_a_chatgpt_plan_is_enough(  # noqa: PLR0917 -- a column each
    make_proxy: ProxyMaker, upstream: Upstream, dialect: str, path: str, headers: Json, model: str, body: Json
) -> None:  # fmt: skip
    """It only streams, and has neither Claude nor Gemini; the answer names what was asked for."""
    proxy = make_proxy(api_keys=["sk-one"], **{name: [] for name in KEY_LISTS})
    login = {"type": "codex", "access_token": "t", "email": "a@b.c", "base_url": upstream.url}
    (proxy.auth_dir / "codex-a.json").write_text(json.dumps(login), encoding="utf-8")
    proxy.app.poll()
    upstream.reply(STREAMS["responses"](SAID), headers=SSE)
    got = call(proxy, path, headers, model, body)
    assert got.status == 200, got.body
    if dialect != "responses":  # that passes as it came
        checked(got.body, dialect, bool(body.get("stream")) or "stream" in path)
    assert models_in(got.body) == {model}
    sent = upstream.seen[0].json()
    assert (sent["stream"], sent["store"], sent["model"][:4]) == (True, False, "gpt-")
    assert not {"max_output_tokens", "temperature", "stream_options"} & sent.keys()


@pytest.mark.parametrize("piece", [1, 7, 65_536])
def test_a_dated_name_of_the_upstream_is_renamed(
    make_proxy: ProxyMaker, upstream: Upstream, piece: int
) -> None:
    """Without any mapping: Anthropic answers with its full name."""
    entry = {"api-key": "k", "base-url": upstream.url, "models": [{"name": "claude-opus-4-5"}]}
    proxy = make_proxy(claude_api_key=[entry])
    upstream.piece = piece
    upstream.reply(STREAMS["claude"](SAID), headers=SSE)
    got = call(proxy, MESSAGES, {}, "claude-opus-4-5", SMART)
    assert models_in(got.body) == {"claude-opus-4-5"}
    upstream.reply(ANSWERS["claude"](SAID))
    elsewhere = proxy.ask("/v1/messages", {**TITLE, "model": "claude-opus-4-5"})
    assert models_in(elsewhere.body) == {"m"}, "other routes pass what comes"


# --- mappings -------------------------------------------------------------------------------

MAPPINGS = [
    {"from": "Gone", "to": "nobody-has-this"},
    {"from": "gone", "to": "up-claude"},
    {"from": "^big-.*", "to": "nobody-has-this", "regex": True},
    {"from": "^BIG-", "to": "up-chat(low)", "regex": True},
    {"from": "big-exact", "to": "team/up-claude"},
    {"from": "g-one", "to": "up-claude", "regex": True},
    {"from": "up-claude", "to": "up-chat"},
    {"from": "claude-opus-*", "to": "up-chat"},
    {"from": "", "to": "up-chat"},
]
# fmt: off
MAPPED = [  # asked for, by force, the upstream's model
    ("GONE",            False, "up-claude"),
    ("gone(high)",      False, "up-claude"),
    ("big-one",         False, "up-chat"),
    ("big-exact",       False, "up-claude"),
    ("a-big-one-more",  False, "up-claude"),  # a search, not a match
    ("up-claude",       False, "up-claude"),
    ("up-claude",       True,  "up-chat"),
    ("up-gemini",       True,  "up-gemini"),
    ("gemini-3-nobody", False, None),
    ("claude-opus-9",   False, "fallback"),  # a `*` is of no meaning here
]
# fmt: on


def with_mappings(make_proxy: ProxyMaker, upstream: Upstream, force: bool) -> Proxy:
    entry = {"api-key": "k", "base-url": upstream.url, "models": [{"name": "up-claude"}]}
    other = {**entry, "models": [{"name": "fallback"}]}
    return make_proxy(
        ampcode={"model-mappings": MAPPINGS, "force-model-mappings": force},
        claude_api_key=[{**entry, "prefix": "team"}, other],
        model_fallbacks={"claude-opus-9": ["fallback"], "gone": ["fallback"]},
    )


@pytest.mark.parametrize(("asked", "force", "expected"), MAPPED)
def test_model_mappings(
    make_proxy: ProxyMaker, upstream: Upstream, asked: str, force: bool, expected: str | None
) -> None:
    proxy = with_mappings(make_proxy, upstream, force)
    dialect = {"up-chat": "chat", "up-gemini": "gemini"}.get(expected or "", "claude")
    upstream.reply(ANSWERS[dialect](SAID))
    got = call(proxy, MESSAGES, {}, asked, TITLE)
    if expected is None:
        assert (got.status, got.json()["error"]["type"]) == (404, "not_found_error")
        assert asked in got.json()["error"]["message"]
        return
    assert (got.status, models_in(got.body)) == (200, {asked})
    (seen,) = upstream.seen
    assert expected in (seen.path if dialect == "gemini" else seen.json()["model"])
    if expected == "up-chat" and asked == "big-one":
        assert seen.json()["reasoning_effort"] == "low", "the target's own effort counts"
    if asked.endswith("(high)"):
        assert "disabled" in seen.body.decode() or "budget" in seen.body.decode()


def test_an_old_completion_is_mapped(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    proxy = make_proxy(ampcode={"model-mappings": [{"from": "old", "to": "up-chat"}]})
    upstream.reply({"choices": [{"message": {"content": "hello"}}], "model": "up-chat"})
    body = {"prompt": "a prompt longer than what stands in its place", "model": "old"}
    got = proxy.ask("/api/provider/openai/v1/completions", body)
    assert (got.json()["choices"][0]["text"], got.json()["model"]) == ("hello", "old")
    assert upstream.seen[0].json()["model"] == "up-chat"


def test_an_effort_is_kept_through_a_mapping(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    proxy = with_mappings(make_proxy, upstream, force=True)
    upstream.reply(ANSWERS["chat"](SAID))
    call(proxy, MESSAGES, {}, "up-claude(high)", {**TITLE, "tool_choice": {"type": "auto"}})
    assert (upstream.seen[0].json()["model"], upstream.seen[0].json()["reasoning_effort"]) == (
        "up-chat",
        "high",
    )


def test_mappings_are_amp_s_alone(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    proxy = with_mappings(make_proxy, upstream, force=True)
    upstream.replies = [make_reply(ANSWERS["claude"](SAID))] * 2
    assert proxy.ask("/v1/messages", {**TITLE, "model": "up-claude"}).status == 200
    assert proxy.ask("/v1/messages", {**TITLE, "model": "big-one"}).status == 404
    assert [seen.json()["model"] for seen in upstream.seen] == ["up-claude"]


def test_a_bad_pattern_is_told_and_left_out(tmp_path: Path) -> None:
    rows = [{"from": "a(", "to": "b", "regex": True}, {"from": "a(", "to": "b"}]
    config = cp.parse_config(tmp_path, json.dumps({"ampcode": {"model-mappings": rows}}))
    assert [row["regex"] for row in config["ampcode.model-mappings"]] == [False]
    (warning,) = config.warnings
    assert "ampcode.model-mappings" in warning
    assert "'a('" in warning


# --- routes ---------------------------------------------------------------------------------

LISTS = [
    ("/api/provider/anthropic/v1/models", "claude"),
    ("/api/provider/anthropic/models", "claude"),
    ("/api/provider/google/v1beta/models", "gemini"),
    ("/api/provider/google/models", "gemini"),
    ("/api/provider/openai/v1/models", "openai"),
    ("/api/provider/groq/models", "openai"),
    ("/api/provider/openai/v1beta/models", "openai"),
]


@pytest.mark.parametrize(
    "headers", [{}, {"x-goog-api-key": "placeholder"}, {"anthropic-version": "2023-06-01"}]
)
@pytest.mark.parametrize(("path", "shape"), LISTS)
def test_lists_by_the_provider_s_name(proxy: Proxy, path: str, shape: str, headers: dict[str, str]) -> None:
    got = proxy.ask(path, headers=headers).json()
    keys = {"claude": "has_more", "gemini": "models", "openai": "object"}
    assert [name for name, key in keys.items() if key in got] == [shape]
    rows = got.get("data") or got["models"]
    assert {"up-claude", "models/up-claude"} & {row.get("id") or row.get("name") for row in rows}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/provider/openai/v1/chat/completions", {"model": "up-claude", "messages": [{"role": "user", "content": "hi"}]}),
        ("/api/provider/openai/v1/completions", {"model": "up-claude", "prompt": "hi"}),
        ("/api/provider/anthropic/v1/responses", {"model": "up-claude", "input": "hi"}),
        ("/api/provider/google/v1/messages/count_tokens", {"model": "up-claude", "messages": [{"role": "user", "content": "hi"}]}),
    ],
)  # fmt: skip
def test_the_provider_s_name_forces_nobody(proxy: Proxy, upstream: Upstream, path: str, body: Json) -> None:
    upstream.reply({**ANSWERS["claude"](SAID), "input_tokens": 3})
    got = proxy.ask(path, body)
    assert got.status == 200, got.body
    assert upstream.seen[0].path.startswith("/v1/messages")
    assert models_in(got.body) <= {"up-claude"}


@pytest.mark.parametrize("path", ["/api/provider/openai/v1/nothing", "/api/provider", "/api/other"])
def test_what_is_not_served(proxy: Proxy, upstream: Upstream, path: str) -> None:
    assert proxy.ask(path, {}).status == 404
    assert not upstream.seen


@pytest.mark.parametrize(
    ("headers", "status"),
    [(GOOGLE, 200), ({"x-goog-api-key": "placeholder"}, 401), ({}, 401), ({**KEY, "x-api-key": "no"}, 200)],
)  # fmt: skip
def test_a_wrong_key_beside_a_right_one(
    make_proxy: ProxyMaker, upstream: Upstream, headers: dict[str, str], status: int
) -> None:
    proxy = make_proxy(api_keys=["sk-one"])
    upstream.reply(ANSWERS["gemini"](SAID))
    assert call(proxy, VERTEX, headers, "up-gemini", FINDER).status == status


# --- Amp's own server

OURS = "sk-one"
HIS = {"ok": True, "result": {"features": []}}
INFO = "/api/internal?getUserInfo"


def amp(
    make_proxy: ProxyMaker, upstream: Upstream, environ: dict[str, str] | None = None, **more: Any
) -> Proxy:
    settings = {"upstream-url": f"{upstream.url}/base/", "upstream-api-key": "amp-key", **more}
    return make_proxy(environ or {}, api_keys=[OURS, "sk-two"], ampcode=settings)


def test_what_is_no_model_call_goes_to_amp(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    headers = {"content-type": "application/json", "access-control-allow-origin": "*", "x-amp": "1"}
    upstream.reply(HIS, 207, headers)
    body = {"method": "getUserInfo", "params": {}}
    own = {"x-api-key": OURS, "x-goog-api-key": OURS, "anthropic-beta": "b", "connection": "keep-alive"}
    got = amp(make_proxy, upstream).ask(f"{INFO}&key={OURS}&a=b%20c&a=d", body, {**KEY, **own})
    assert (got.status, got.json(), got.headers["x-amp"]) == (207, HIS, "1")
    assert "access-control-allow-origin" not in got.headers
    (seen,) = upstream.seen
    assert (seen.method, seen.path) == ("POST", "/base/api/internal?getUserInfo&a=b%20c&a=d")
    assert seen.json() == body
    assert (seen.headers["authorization"], seen.headers["x-api-key"]) == ("Bearer amp-key", "amp-key")
    assert seen.headers["anthropic-beta"] == "b"
    assert OURS not in seen.head.decode(), "the key of this proxy is nobody else's business"


CALLS_TO_AMP = [
    ("GET", "/api/threads/find?q=x"), ("POST", "/api/telemetry"), ("PUT", "/api/user/settings"), ("DELETE", "/api/meta"), ("GET", "/api/ads"),
    ("GET", "/threads.rss"), ("POST", "/api/otel/v1/traces"), ("GET", "/api/provider/google/v1beta1/operations/1"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), CALLS_TO_AMP)
def test_calls_of_any_method(make_proxy: ProxyMaker, upstream: Upstream, method: str, path: str) -> None:
    proxy = amp(make_proxy, upstream)
    assert proxy.ask(path, method=method).status == 401, "without a key"
    upstream.reply(HIS)
    assert proxy.ask(path, {} if method == "POST" else None, KEY, method=method).json() == HIS
    assert [(seen.method, seen.path) for seen in upstream.seen] == [(method, f"/base{path}")]


SECRETS: dict[str, tuple[Json, dict[str, str], str]] = {  # where keys are -> the one that is sent
    "for this client":     ({"upstream-api-keys": [{"upstream-api-key": "mine", "api-keys": [OURS]}]}, {"AMP_API_KEY": "env"}, "mine"),
    "for another client":  ({"upstream-api-keys": [{"upstream-api-key": "mine", "api-keys": ["sk-two"]}]}, {}, "amp-key"),
    "of the environment":  ({"upstream-api-key": ""}, {"AMP_API_KEY": "env"}, "env"),
    "kept by Amp":         ({"upstream-api-key": ""}, {}, "kept"),
}  # fmt: skip


@pytest.mark.parametrize("where", SECRETS)
def test_whose_key_it_is(
    make_proxy: ProxyMaker, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str
) -> None:
    settings, environ, key = SECRETS[where]
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    proxy = amp(make_proxy, upstream, environ, **settings)
    upstream.reply(HIS)
    file = tmp_path / cp.AMP_SECRETS
    file.parent.mkdir(parents=True)
    if where == "kept by Amp":
        proxy.ask(INFO, {}, KEY)
        assert "authorization" not in upstream.seen.pop().headers, "there is none yet"
        upstream.reply(HIS)
    file.write_text(json.dumps({cp.AMP_SECRET: "kept"}))
    assert proxy.ask(INFO, {}, KEY).status == 200
    assert upstream.seen[0].headers["authorization"] == f"Bearer {key}"


def test_packed_bodies_both_ways(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    proxy, big = amp(make_proxy, upstream), {"params": "x" * 30_000}
    packed = gzip.compress(json.dumps(big).encode())
    upstream.reply(packed)  # which does not say that it is
    got = proxy.ask("/api/internal?uploadThread", packed, {**KEY, "content-encoding": "gzip"})
    assert got.json() == upstream.seen[0].json() == big
    upstream.reply(packed, headers={"content-encoding": "gzip"})
    got = proxy.ask("/api/threads/sync", {}, {**KEY, "accept-encoding": "gzip"})
    assert (got.headers["content-encoding"], got.body) == ("gzip", packed)


def test_an_answer_that_only_begins_as_if_packed(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    upstream.reply(gzip.compress(b"{}")[:8])
    got = amp(make_proxy, upstream).ask(INFO, {}, {**KEY, "expect": "100-continue"})
    assert (got.status, got.json()["error"]) == (502, "amp_upstream_proxy_error")
    assert "expect" not in upstream.seen[0].headers


def test_pages_are_the_browser_s(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    proxy = amp(make_proxy, upstream)
    for path in ("/threads/T-1", "/settings", "/auth/cli-login?a=b"):
        got = proxy.ask(path)
        assert (got.status, got.headers["location"]) == (302, f"{upstream.url}/base{path}")
    assert not upstream.seen


LOCKED = {"error": "Access denied: management routes restricted to localhost"}
ABSENT = {"error": "amp upstream proxy not available", "message": "set ampcode.upstream-url"}
REFUSED = [
    pytest.param("", "POST", INFO, (503, ABSENT), id="nowhere to pass it to"),
    pytest.param("", "GET", "/threads/T-1", (503, ABSENT), id="no pages"),
    pytest.param("http://127.0.0.1:9", "OPTIONS", INFO, (403, LOCKED), id="no web page may"),
]


@pytest.mark.parametrize(("url", "method", "path", "said"), REFUSED)
def test_refusals(
    make_proxy: ProxyMaker, upstream: Upstream, url: str, method: str, path: str, said: Any
) -> None:
    settings: Json = {"upstream-url": url}
    got = amp(make_proxy, upstream, **settings).ask(path, None, KEY, method=method)
    assert (got.status, got.json()) == said
    assert not upstream.seen


def test_amp_cannot_be_reached(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    nowhere: Json = {"upstream-url": f"http://127.0.0.1:{free_port()}"}
    got = amp(make_proxy, upstream, **nowhere).ask(INFO, {}, KEY)
    assert (got.status, got.json()["error"]) == (502, "amp_upstream_proxy_error")
    assert "127.0.0.1" in got.json()["message"]


def test_a_model_that_nobody_has_is_amp_s(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    asked = {"model": "amp-own", **TITLE}
    proxy = amp(make_proxy, upstream)
    upstream.reply(HIS)
    assert proxy.ask(f"/api/provider/{MESSAGES}", asked, KEY).json() == HIS
    (seen,) = upstream.seen
    assert (seen.path, seen.json()) == (f"/base/api/provider/{MESSAGES}", asked)
    assert seen.headers["x-api-key"] == "amp-key"
    assert proxy.ask("/v1/messages", asked, KEY).status == 404, "that is not for Amp"
