"""The ChatGPT backend as the scripted upstream plays it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cliproxy as cp
from support.proxy import Got, Proxy

HELLO = {"role": "user", "content": "hello"}


def sse(*payloads: dict[str, Any]) -> list[bytes]:
    return [cp.sse_frame(payload, payload.get("type", "")) for payload in payloads]


ITEM = {
    "type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
    "content": [{"type": "output_text", "text": "hi there", "annotations": [], "logprobs": []}],
}  # fmt: skip
USAGE = {
    "input_tokens": 7, "output_tokens": 3, "total_tokens": 10,
    "input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0},
}  # fmt: skip
RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1,
    "model": "gpt-test",
    "status": "in_progress",
    "output": [],
}
OPENED = {**ITEM, "status": "in_progress", "content": []}
PLACE = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
PAYLOADS: list[dict[str, Any]] = [
    {"type": "response.created", "response": RESPONSE},
    {"type": "response.output_item.added", "output_index": 0, "item": OPENED},
    {
        "type": "response.content_part.added",
        **PLACE,
        "part": {"type": "output_text", "text": "", "annotations": []},
    },
    {"type": "response.output_text.delta", **PLACE, "delta": "hi "},
    {"type": "response.output_text.delta", **PLACE, "delta": "there"},
    {"type": "response.output_text.done", **PLACE, "text": "hi there"},
    {"type": "response.content_part.done", **PLACE, "part": ITEM["content"][0]},
    {"type": "response.output_item.done", "output_index": 0, "item": ITEM},
    {
        "type": "response.completed",
        "response": {**RESPONSE, "status": "completed", "usage": USAGE},
    },  # output is empty, as it is there
]
STREAM = sse(*PAYLOADS)


def add_codex(proxy: Proxy, name: str, **more: Any) -> Path:
    file = proxy.auth_dir / f"codex-{name}@example.com.json"
    data = {
        "type": "codex",
        "access_token": f"token-{name}",
        "account_id": f"acct-{name}",
        "email": f"{name}@example.com",
        **more,
    }
    file.write_text(json.dumps(data), encoding="utf-8")
    proxy.app.poll()
    return file


ASKS: dict[str, tuple[str, str, dict[str, Any]]] = {  # dialect -> path, path of a stream, body
    "responses": ("/v1/responses", "/v1/responses", {"model": "gpt-test", "input": "hello"}),
    "chat": ("/v1/chat/completions", "/v1/chat/completions", {"model": "gpt-test", "messages": [HELLO]}),
    "claude": ("/v1/messages", "/v1/messages", {"model": "gpt-test", "max_tokens": 9, "messages": [HELLO]}),
    "gemini": (
        "/v1beta/models/gpt-test:generateContent", "/v1beta/models/gpt-test:streamGenerateContent?alt=sse",
        {"contents": [{"role": "user", "parts": [{"text": "hello"}]}]},
    ),
}  # fmt: skip


def ask(proxy: Proxy, dialect: str, *, stream: bool = False) -> Got:
    path, stream_path, body = ASKS[dialect]
    if stream:
        return proxy.ask(stream_path, body if dialect == "gemini" else {**body, "stream": True})
    return proxy.ask(path, body)
