"""What people type as a model's name, and what Claude Code adds for names it takes to be new."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

import cliproxy as cp
from support.proxy import Proxy, ProxyMaker
from support.upstream import Reply, Seen, Upstream, make_reply

Json = dict[str, Any]
ANSWER = {"type": "message", "role": "assistant", "model": "real", "content": [], "usage": {}}
TALK = [{"role": "user", "content": "hi"}]


def claude_alone(make_proxy: ProxyMaker, upstream: Upstream, *models: Json, **more: Any) -> Proxy:
    entry = {"api-key": "k", "base-url": upstream.url, "models": list(models)}
    others: Json = {"codex_api_key": [], "gemini_api_key": [], "openai_compatibility": []}
    return make_proxy(claude_api_key=[entry], **others, **more)


# --- what Claude Code sends for names that it does not know (spec/clients.md 1.4) -----------

CODE: Json = {
    "max_tokens": 32_000,
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "do"}]},
        {"role": "system", "content": "be brief"},
    ],
    "thinking": {"type": "adaptive"},
    "output_config": {"effort": "high"},
}
BETAS = "claude-code-20250219,mid-conversation-system-2026-04-07,effort-2025-11-24"
WRAPPED = "<system-reminder>\nbe brief\n</system-reminder>"
NEW = {"claude-opus-4-8", "claude-opus-5", "claude-sonnet-5", "claude-fable-5", "claude-opus-5-5"}
ADAPTIVE = {"claude-opus-4-6", "claude-sonnet-4-6", "claude-opus-4-7"}
OLD = {"claude-sonnet-4-5", "claude-haiku-4-5-20251001", "claude-opus-4-1-20250805"}
NEVER = {"claude-3-5-haiku-20241022"}  # cannot think at all


def roles(body: Json) -> list[str]:
    return [message["role"] for message in body["messages"]]


@pytest.mark.parametrize("model", sorted(NEW | ADAPTIVE | OLD | NEVER))
def test_claude_code_behind_an_alias(make_proxy: ProxyMaker, upstream: Upstream, model: str) -> None:
    proxy = claude_alone(make_proxy, upstream, {"name": model, "alias": "mine"})
    upstream.reply(ANSWER)
    sent = {"model": "mine", **copy.deepcopy(CODE)}
    assert proxy.ask("/v1/messages", sent, {"anthropic-beta": BETAS}).status == 200
    body = upstream.seen[0].json()
    if model in NEW:
        assert body == {**sent, "model": model}, "it takes all of it: nothing else is changed"
        return
    assert roles(body) == ["user", "user"]
    assert WRAPPED in json.dumps(body["messages"][1]["content"]).replace("\\n", "\n")
    thinking, config = body.get("thinking") or {}, body.get("output_config") or {}
    if model in ADAPTIVE:
        assert (thinking.get("type"), config.get("effort")) == ("adaptive", "high")
    elif model in OLD:
        assert (thinking.get("type"), "effort" in config) == ("enabled", False)
        assert 1_024 <= thinking["budget_tokens"] < body["max_tokens"]
    else:
        assert (thinking, config) == ({}, {})


def test_the_name_itself_passes_as_it_came(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    proxy = claude_alone(make_proxy, upstream, {"name": "claude-sonnet-4-5"})
    upstream.reply(ANSWER)
    sent = {"model": "claude-sonnet-4-5", **CODE}
    proxy.ask("/v1/messages", sent)
    assert upstream.seen[0].json() == sent, "a client that names a model knows what it takes"


@pytest.mark.parametrize("content", ['{"role": "system"}', 'say "role": "system"'])
def test_system_in_a_text_is_no_reason_to_rewrite(
    make_proxy: ProxyMaker, upstream: Upstream, content: str
) -> None:
    proxy = claude_alone(make_proxy, upstream, {"name": "claude-sonnet-4-5", "alias": "mine"})
    upstream.reply(ANSWER)
    talk = [{"role": "user", "content": content}]
    sent = json.dumps({"model": "mine", "max_tokens": 9, "messages": talk, "new": 1.50})
    proxy.ask("/v1/messages", sent.encode())
    assert upstream.seen[0].body == sent.replace("mine", "claude-sonnet-4-5").encode()


CHATS = [  # a client of another dialect, with a system message in mid-conversation
    pytest.param("/v1/chat/completions", {"messages": [*TALK, {"role": "system", "content": "be brief"}]}, id="chat"),
    pytest.param("/v1/responses", {"input": [*TALK, {"role": "developer", "content": "be brief"}]}, id="responses"),
]  # fmt: skip


@pytest.mark.parametrize("model", sorted(NEW | ADAPTIVE | OLD))
@pytest.mark.parametrize(("path", "body"), CHATS)
@pytest.mark.parametrize("token", ["k", "sk-ant-oat01-x"])
def test_late_system_messages_of_others(
    make_proxy: ProxyMaker, upstream: Upstream, path: str, body: Json, model: str, token: str
) -> None:
    proxy = claude_alone(make_proxy, upstream, {"name": model})
    proxy.write(
        {**proxy.settings, "claude-api-key": [{**proxy.settings["claude-api-key"][0], "api-key": token}]}
    )
    proxy.app.poll()
    upstream.replies = [make_reply(ANSWER)] * 2
    assert proxy.ask(path, {"model": model, **body}).status == 200
    assert proxy.ask(path, {"model": model, **dict.fromkeys(body, TALK)}).status == 200
    late, plain = upstream.seen
    assert roles(late.json()) == (["user", "system"] if model in NEW else ["user"])
    said = late.json()["messages"][-1]["content"]
    assert "be brief" in json.dumps(said)
    assert (WRAPPED in json.dumps(said).replace("\\n", "\n")) is (model not in NEW)
    beta = "mid-conversation-system-2026-04-07"
    assert (beta in late.headers.get("anthropic-beta", "")) is (model in NEW)
    assert beta not in plain.headers.get("anthropic-beta", "")
    assert ("oauth-2025-04-20" in late.headers.get("anthropic-beta", "")) is (token != "k")


# --- how much to think, in the name (spec/providers.md 13) ----------------------------------

ASKS: dict[str, tuple[str, Json]] = {  # client's dialect -> path, body without its model
    "claude": ("/v1/messages", {"max_tokens": 64_000, "messages": TALK}),
    "chat": ("/v1/chat/completions", {"messages": TALK}),
    "responses": ("/v1/responses", {"input": "hi"}),
    "gemini": ("/v1beta/models/{model}:generateContent", {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}),
}  # fmt: skip
REPLY: dict[str, Json] = {  # upstream's path -> what it answers
    "messages": ANSWER,
    "completions": {"choices": [{"message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}]},
    "responses": {"id": "resp_1", "object": "response", "status": "completed", "output": [], "model": "real"},
}  # fmt: skip


def all_kinds(make_proxy: ProxyMaker, upstream: Upstream, *types: str) -> Proxy:
    """A proxy with an account of each provider that offers what its provider is known for."""
    key = [{"api-key": "k", "base-url": upstream.url}]
    chat = [{"name": "up", "base-url": upstream.url, "models": [{"name": "org/glm-9"}]}]
    proxy = make_proxy(claude_api_key=key, codex_api_key=[], gemini_api_key=key, openai_compatibility=chat)
    for type in types:
        data = {"type": type, "access_token": "tok", "base_url": upstream.url}
        (proxy.auth_dir / f"{type}-a.json").write_text(json.dumps(data), encoding="utf-8")
    proxy.app.poll()
    return proxy


def answers(seen: Seen) -> Reply:
    """Answer any call in the dialect of its path."""
    end = seen.path.partition("?")[0].rpartition("/")[2]
    if end == "responses":
        event = {"type": "response.completed", "response": REPLY[end]}
        return make_reply([cp.sse_frame(event)], headers={"content-type": "text/event-stream"})
    return make_reply(REPLY.get(end) or {"candidates": [{"content": {"parts": []}, "finishReason": "STOP"}]})


def thought(seen: Seen) -> tuple[str, Any]:
    """Return the model that an upstream was asked for, and how much it is to think."""
    body = seen.json()
    said = (body.get("generationConfig") or {}).get("thinkingConfig") or {}
    if ":generateContent" in seen.path:
        name = seen.path.rpartition("/")[2].partition(":")[0]
        return name, said.get("thinkingLevel") or said.get("thinkingBudget")
    thinking = body.get("thinking") or {}
    config = (body.get("output_config") or body.get("reasoning") or {}).get("effort")
    said = config or body.get("reasoning_effort") or thinking.get("budget_tokens")
    return body["model"], said or thinking.get("type")


# fmt: off
TYPED = [
    # name                                the upstream's model          how much
    ("gpt-5.5",                           "gpt-5.5",                    None),
    ("gpt-5.5(high)",                     "gpt-5.5",                    "high"),
    ("GPT-5.5(HIGH)",                     "gpt-5.5",                    "high"),
    ("gpt-5.5(8192)",                     "gpt-5.5",                    "medium"),
    ("gpt-5.5(100000)",                   "gpt-5.5",                    "xhigh"),
    ("gpt-5.5(none)",                     "gpt-5.5",                    "low"),
    ("gpt-5.5(0)",                        "gpt-5.5",                    "low"),
    ("gpt-5.5(auto)",                     "gpt-5.5",                    None),
    ("gpt-5.5-xhigh",                     "gpt-5.5",                    "xhigh"),
    ("gpt-5.5-minimal",                   "gpt-5.5",                    "low"),
    ("gpt-5-high",                        "gpt-5",                      "high"),
    ("gpt-5-codex-low",                   "gpt-5-codex",                "low"),
    ("gpt-5.1-codex-mini-medium",         "gpt-5.1-codex-mini",         "medium"),
    ("gpt-5.1-codex-max",                 "gpt-5.1-codex-max",          None),
    ("gpt-5.1-codex-max-high",            "gpt-5.1-codex-max",          "high"),
    ("codex-auto-review",                 "codex-auto-review",          None),
    ("codex-auto-review-low",             "codex-auto-review",          "low"),
    ("claude-sonnet-4-5",                 "claude-sonnet-4-5",          None),
    ("claude-sonnet-4-5(8192)",           "claude-sonnet-4-5",          8_192),
    ("claude-sonnet-4-5(high)",           "claude-sonnet-4-5",          24_576),
    ("claude-sonnet-4-5(none)",           "claude-sonnet-4-5",          "disabled"),
    ("claude-sonnet-4-5-thinking",        "claude-sonnet-4-5",          24_576),
    ("claude-sonnet-4-5-20250929-low",    "claude-sonnet-4-5-20250929", 1_024),
    ("claude-opus-4-6-thinking",          "claude-opus-4-6",            "high"),
    ("claude-opus-4-8(xhigh)",            "claude-opus-4-8",            "xhigh"),
    ("claude-opus-4-8(2000)",             "claude-opus-4-8",            2_000),
    ("claude-opus-4-8(auto)",             "claude-opus-4-8",            "adaptive"),
    ("claude-sonnet-5-low",               "claude-sonnet-5",            "low"),
    ("claude-3-5-haiku-20241022(high)",   "claude-3-5-haiku-20241022",  None),
    ("gemini-2.5-pro(8192)",              "gemini-2.5-pro",             8_192),
    ("gemini-2.5-pro(none)",              "gemini-2.5-pro",             128),
    ("gemini-2.5-pro(auto)",              "gemini-2.5-pro",             -1),
    ("gemini-2.5-flash(none)",            "gemini-2.5-flash",           0),
    ("gemini-2.5-flash-high",             "gemini-2.5-flash",           24_576),
    ("gemini-3-flash-preview-minimal",    "gemini-3-flash-preview",     "MINIMAL"),
    ("gemini-3-pro-preview(medium)",      "gemini-3-pro-preview",       "LOW"),
    ("org/glm-9(high)",                   "org/glm-9",                  "high"),
    ("org/glm-9-low",                     "org/glm-9",                  "low"),
    ("org/glm-9(none)",                   "org/glm-9",                  None),  # nobody knows whether it takes that word
]
# fmt: on


@pytest.mark.parametrize("client", ASKS)
@pytest.mark.parametrize(("name", "model", "much"), TYPED)
def test_efforts_in_names(
    make_proxy: ProxyMaker, upstream: Upstream, client: str, name: str, model: str, much: Any
) -> None:
    proxy = all_kinds(make_proxy, upstream, "codex")
    upstream.replies = [answers]
    path, body = ASKS[client]
    got = proxy.ask(
        path.replace("{model}", name.replace("/", "%2F")),
        body if client == "gemini" else {**body, "model": name},
    )
    assert got.status == 200, got.body
    assert thought(upstream.seen[0]) == (model, much)


# fmt: off
REAL = [  # of accounts with other models: what looks like an effort, and is none
    ("antigravity", "claude-opus-4-6-thinking"),
    ("antigravity", "claude-sonnet-4-5-thinking"),  # old, and its own all the same
    ("antigravity", "gpt-oss-120b-medium"),
    ("antigravity", "gemini-3-pro-high"),
    ("kimi",        "kimi-k2-thinking"),
]
# fmt: on


@pytest.mark.parametrize(("type", "name"), REAL)
def test_names_that_end_so(make_proxy: ProxyMaker, upstream: Upstream, type: str, name: str) -> None:
    proxy = all_kinds(make_proxy, upstream)
    proxy.write({
        **proxy.settings, "claude-api-key": [], "gemini-api-key": [], "openai-compatibility": [],
        "providers": {"antigravity": {"enabled": True}},
    })  # fmt: skip
    data = {"type": type, "access_token": "tok", "base_url": upstream.url, "project_id": "p"}
    (proxy.auth_dir / "a.json").write_text(json.dumps(data), encoding="utf-8")
    proxy.app.poll()
    upstream.replies = [answers]
    proxy.ask("/v1/chat/completions", {"model": name, "messages": TALK})
    assert name.endswith(upstream.seen[0].json()["model"])  # Kimi's service calls it k2-thinking


# --- auto -------------------------------------------------------------------------------------

DATED = {"data": [
    {"type": "model", "id": "claude-opus-4-8", "created_at": "2026-05-01T00:00:00Z"},
    {"type": "model", "id": "claude-tiny-1", "created_at": "2026-09-01T00:00:00Z"},
    {"type": "model", "id": "claude-opus-5", "created_at": "2026-07-01T00:00:00Z"},
]}  # fmt: skip


def ask_auto(proxy: Proxy, name: str = "auto") -> int:
    return proxy.ask("/v1/messages", {"model": name, **ASKS["claude"][1]}).status


def test_auto_is_the_newest_usable_model(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    proxy = claude_alone(make_proxy, upstream, models=[{"id": "zzz-9", "provider": "claude"}])
    upstream.replies = [answers] * 2
    assert (ask_auto(proxy), ask_auto(proxy, "auto(high)")) == (200, 200)
    first = next(iter(cp.models_of("claude")))
    assert thought(upstream.seen[0]) == (first, None), "without dates: the first of the table"
    assert thought(upstream.seen[1]) == (first, "high")
    upstream.routes["/v1/models"] = make_reply(DATED)
    proxy.app.catalog.refresh(proxy.app.router.offers.accounts)
    proxy.app.poll()
    upstream.seen.clear()
    upstream.reply({"error": {"type": "rate_limit_error", "message": "x"}}, 429, {"retry-after": "60"})
    upstream.replies += [answers]
    assert (ask_auto(proxy), ask_auto(proxy)) == (429, 200)
    assert [seen.json()["model"] for seen in upstream.seen] == ["claude-tiny-1", "claude-opus-5"]


@pytest.mark.parametrize("only", [{"excluded-models": ["*"]}, {"models": [{"name": "gpt-image-2"}]}])
def test_auto_without_a_model_that_talks(make_proxy: ProxyMaker, upstream: Upstream, only: Json) -> None:
    entry = {"api-key": "k", "base-url": upstream.url, **only}
    proxy = make_proxy(claude_api_key=[], gemini_api_key=[], openai_compatibility=[], codex_api_key=[entry])
    assert ask_auto(proxy) == 404
    assert not upstream.seen


def test_a_model_that_is_called_auto(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    proxy = claude_alone(make_proxy, upstream, {"name": "claude-opus-5"}, {"name": "real", "alias": "auto"})
    upstream.replies = [answers]
    assert ask_auto(proxy) == 200
    assert upstream.seen[0].json()["model"] == "real"
