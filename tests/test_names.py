"""What people type as a model's name, and what Claude Code adds for names it takes to be new."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from conftest import Proxy, ProxyMaker, Upstream, make_reply

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
def test_claude_code_behind_an_alias(
    make_proxy: ProxyMaker, upstream: Upstream, model: str
) -> None:
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
        {
            **proxy.settings,
            "claude-api-key": [{**proxy.settings["claude-api-key"][0], "api-key": token}],
        }
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
