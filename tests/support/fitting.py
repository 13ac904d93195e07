"""Requests, targets and conversations for the tests of the rooms that fit one to the other."""

from __future__ import annotations

from typing import Any

import cliproxy as cp
from cliproxy import Media, Message, Model, Part, Request, Target

SONNET_45 = Model("claude-sonnet-4-5", output=64_000, budget=(1024, 128_000), thinking=True)
CODEX = Model("gpt-5.4", output=128_000, levels=("low", "medium", "high", "xhigh"), can_stop=False)
GEMINI_3 = Model(
    "gemini-3-pro-preview", output=65_536, budget=(128, 32_768), levels=("low", "high"), can_stop=False
)
CLAUDE = Target("claude", SONNET_45)
TARGETS = {
    "claude": CLAUDE,
    "chat": Target("deepseek", Model("deepseek-chat")),
    "responses": Target("codex", CODEX),
    "gemini": Target("gemini", GEMINI_3),
}


def user(*parts: Part | str) -> Message:
    return Message("user", tuple(Part("text", p) if isinstance(p, str) else p for p in parts))


def assistant(*parts: Part | str) -> Message:
    return user(*parts)._replace(role="assistant")


def results(*pairs: tuple[str, str]) -> Message:
    return Message("tool", tuple(Part("result", id=key, parts=(Part("text", text),)) for key, text in pairs))


def call(name: str, id: str = "c1", text: str = "{}", **fields: Any) -> Part:
    return Part("call", text, id, name, **fields)


def ask(*messages: Message, dialect: str = "chat", **fields: Any) -> Request:
    return Request(dialect, fields.pop("model", "m"), messages or (user("q"),), **fields)


def fit(request: Request, dialect: str, target: Target | None = None) -> Request:
    return cp.fit_request(request, target or TARGETS[dialect], dialect).request


def back(
    events: list[cp.Event], request: Request, dialect: str, target: Target | None = None
) -> list[cp.Event]:
    target = target or TARGETS[dialect]
    return list(
        cp.fit_events((event for event in events), request, cp.fit_request(request, target, dialect), target)
    )


# --- what cannot be expressed


def media(kind: str, source: str, data: str = "AA==", mime: str = "") -> Message:
    return user(Part("media", media=Media(kind, source, data, mime)))


def thinking(proof: str, text: str = "t", **fields: Any) -> Part:
    return Part("thinking", text, proof=proof, **fields)


def signatures(request: Request, model: Model = GEMINI_3) -> list[str | None]:
    """Return the proofs of the calls in what Gemini's writer makes of a fitted request."""
    target = Target("gemini", model)
    body = cp.gemini_write_request(fit(request, "gemini", target), target)
    parts = [part for content in body["contents"] for part in content["parts"] if "functionCall" in part]
    return [part.get("thoughtSignature") for part in parts]


# --- the whole chain: spec/dialects.md 6


def read(client: str, body: dict[str, Any]) -> Request:
    return (
        cp.DIALECTS[client].read_request({"model": "m", "stream": True, **body})._replace(id="r", created=1)
    )


def up(client: str, body: dict[str, Any], dialect: str, target: Target | None = None) -> dict[str, Any]:
    """Translate a request body to another dialect."""
    target = target or TARGETS[dialect]
    return cp.DIALECTS[dialect].write_request(fit(read(client, body), dialect, target), target)


def down(
    client: str, body: dict[str, Any], dialect: str, payloads: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Translate the answer to that request; return the payloads that the client gets."""
    request = read(client, body)
    events = cp.DIALECTS[dialect].read_stream(iter(payloads), request)
    frames = cp.DIALECTS[client].write_stream(back(list(events), request, dialect), request)
    return list(cp.sse_read(frames))


def claude_stream(*blocks: tuple[dict[str, Any], ...]) -> list[dict[str, Any]]:
    """Return a stream of blocks, each its start and its deltas."""
    frames: list[dict[str, Any]] = [
        {"type": "message_start", "message": {"id": "msg_1", "model": "x", "usage": {}}}
    ]
    for at, (start, *deltas) in enumerate(blocks):
        frames.append({"type": "content_block_start", "index": at, "content_block": start})
        frames += [{"type": "content_block_delta", "index": at, "delta": delta} for delta in deltas]
        frames.append({"type": "content_block_stop", "index": at})
    end = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1}}
    return [*frames, end, {"type": "message_stop"}]
