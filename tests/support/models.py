"""Upstreams that serve models under several names, and how they are asked."""

from __future__ import annotations

import json
from typing import Any

import cliproxy as cp
from support.proxy import Got, Proxy
from support.upstream import Reply, Seen, Upstream, make_reply

SSE = {"content-type": "text/event-stream"}
TALK = [{"role": "user", "content": "hi"}]
ASKS_FOR: dict[str, tuple[str, dict[str, Any]]] = {  # dialect -> path, body without its model
    "claude": ("/v1/messages", {"max_tokens": 9, "messages": TALK}),
    "chat": ("/v1/chat/completions", {"messages": TALK}),
    "responses": ("/v1/responses", {"input": "hi"}),
    "gemini": (
        "/v1beta/models/{model}:generateContent",
        {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]},
    ),
}


CLIENTS = {  # who asks for models unasked, by its User-Agent
    "claude": "claude-cli/2.1.197 (external, cli)",
    "gemini": "GeminiCLI-tui/0.61.0/gemini-3-pro-preview (linux; x64; terminal)",
}


def ask_for(proxy: Proxy, dialect: str, model: str, client: str = "", **more: Any) -> Got:
    path, body = ASKS_FOR[dialect]
    headers = {"user-agent": client} if client else None
    if dialect == "gemini":
        return proxy.ask(path.replace("{model}", model), {**body, **more}, headers)
    return proxy.ask(path, {**body, "model": model, **more}, headers)


def names(proxy: Proxy) -> set[str]:
    return {row["id"] for row in proxy.ask("/v1/models").json()["data"]}


def log_in(proxy: Proxy, type: str, **fields: Any) -> None:
    """Put a credential file of a provider whose upstream is the scripted one into the auth dir."""
    data = {"type": type, "access_token": "tok", "email": "a@b.c", "base_url": proxy.upstream.url, **fields}
    (proxy.auth_dir / f"{type}-a@b.c.json").write_text(json.dumps(data), encoding="utf-8")
    proxy.app.poll()


def key(upstream: Upstream, *models: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
    return [{"api-key": "k", "base-url": upstream.url, "models": list(models), **fields}]


BARE_RESPONSE = {"id": "resp_1", "object": "response", "status": "completed", "output": []}
COMPLETED = {"type": "response.completed", "response": {**BARE_RESPONSE, "model": "real"}}


def answers(seen: Seen) -> Reply:
    """Answer any call in the dialect of its path, naming the upstream's model."""
    if seen.path.endswith("/responses"):
        return make_reply([cp.sse_frame(COMPLETED, "response.completed")], headers=SSE)
    if seen.path.endswith("/chat/completions"):
        choice = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
        return make_reply({"id": "c", "model": "real", "choices": [choice]})
    return make_reply({"type": "message", "model": "real", "content": [], "usage": {}})
