"""Answers of upstreams that tell what they used, read without the code that is tested."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import cliproxy as cp
from support.upstream import Reply, make_reply

Json = dict[str, Any]
SSE = {"content-type": "text/event-stream"}


class Told(NamedTuple):
    """Tokens as the statistics have them: input without what was cached, output with reasoning."""

    input: int = 0
    cached: int = 0
    cache_write: int = 0
    output: int = 0
    reasoning: int = 0


TOLD = Told(11, 3, 2, 7, 4)
WITHOUT_WRITE = Told(11, 3, 0, 7, 4)
USAGES: dict[str, Json] = {  # TOLD in the words of each dialect, those that have no word for writes without
    "claude": {
        "input_tokens": 11, "cache_read_input_tokens": 3, "cache_creation_input_tokens": 2, "output_tokens": 7,
        "output_tokens_details": {"thinking_tokens": 4},
    },
    "chat": {
        "prompt_tokens": 14, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 3},
        "completion_tokens_details": {"reasoning_tokens": 4},
    },
    "responses": {
        "input_tokens": 14, "output_tokens": 7, "input_tokens_details": {"cached_tokens": 3},
        "output_tokens_details": {"reasoning_tokens": 4},
    },
    "gemini": {
        "promptTokenCount": 14, "cachedContentTokenCount": 3, "candidatesTokenCount": 3, "thoughtsTokenCount": 4,
    },
}  # fmt: skip
EXPECTED = {"claude": TOLD, "chat": WITHOUT_WRITE, "responses": WITHOUT_WRITE, "gemini": WITHOUT_WRITE}


def answer(dialect: str, usage: Json | None = None) -> Json:
    """A whole answer of an upstream."""
    told = USAGES[dialect] if usage is None else usage
    return {
        "claude": {"type": "message", "role": "assistant", "content": [{"type": "text", "text": "x"}],
                   "stop_reason": "end_turn", "usage": told},
        "chat": {"choices": [{"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}],
                 "usage": told},
        "responses": {"id": "r", "object": "response", "status": "completed", "usage": told, "output": [
            {"type": "message", "id": "m", "role": "assistant", "content": [{"type": "output_text", "text": "x"}]}]},
        "gemini": {"candidates": [{"content": {"parts": [{"text": "x"}]}, "finishReason": "STOP"}],
                   "usageMetadata": told},
    }[dialect]  # fmt: skip


def events(dialect: str) -> list[Json]:
    """The payloads of an upstream's stream; the usage stands in the last but one, or in the last."""
    usage = USAGES[dialect]
    text = {"type": "output_text", "text": "x"}
    item = {"type": "message", "id": "m", "role": "assistant", "content": [text]}
    start = {key: value for key, value in usage.items() if key.startswith(("input", "cache"))}
    told: dict[str, list[Json]] = {
        "claude": [
            {"type": "message_start", "message": {"id": "m", "usage": {**start, "output_tokens": 1}}},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "x"}},
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage},
            {"type": "message_stop"},
        ],
        "chat": [
            {"id": "c", "choices": [{"index": 0, "delta": {"role": "assistant", "content": "x"}}]},
            {"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
            {"id": "c", "choices": [], "usage": usage},
        ],
        "responses": [
            {"type": "response.created", "response": {"id": "r", "status": "in_progress", "output": []}},
            {"type": "response.output_item.added", "output_index": 0, "item": {**item, "content": []}},
            {"type": "response.content_part.added", "output_index": 0, "content_index": 0, "item_id": "m",
             "part": {"type": "output_text", "text": ""}},
            {"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "item_id": "m", "delta": "x"},
            {"type": "response.output_item.done", "output_index": 0, "item": item},
            {"type": "response.completed",
             "response": {"id": "r", "status": "completed", "output": [item], "usage": usage}},
        ],
        "gemini": [
            {"candidates": [{"content": {"parts": [{"text": "x"}]}}], "usageMetadata": {"promptTokenCount": 14}},
            {"candidates": [{"content": {"parts": [{"text": ""}]}, "finishReason": "STOP"}], "usageMetadata": usage},
        ],
    }  # fmt: skip
    return told[dialect]


def reply(dialect: str, *, stream: bool) -> Reply:
    """What an upstream of this dialect answers."""
    if not stream:
        return make_reply(answer(dialect))
    return make_reply([cp.sse_frame(event, event.get("type", "")) for event in events(dialect)], headers=SSE)


def said(dialect: str, payloads: list[Json]) -> Told | None:
    """Read what a recorded answer says it used, by spec/setup.md 5; None if it says nothing."""
    usage: Json = {}
    for payload in payloads:
        for home in (payload, payload.get("message") or {}, payload.get("response") or {}):
            found = home.get("usageMetadata") if dialect == "gemini" else home.get("usage")
            if found and dialect != "claude":
                usage = {}  # which tells parts of it, one after the other
            usage.update({key: value for key, value in (found or {}).items() if value is not None})
    if not usage:
        return None

    def at(*path: str) -> int:
        value: Any = usage
        for word in path:
            value = (value or {}).get(word) if isinstance(value, dict) else None
        return value or 0

    if dialect == "claude":
        read, write = at("cache_read_input_tokens"), at("cache_creation_input_tokens")
        thought = at("output_tokens_details", "thinking_tokens")
        return Told(at("input_tokens"), read, write, at("output_tokens"), thought)
    if dialect == "gemini":
        prompt = at("promptTokenCount") + at("toolUsePromptTokenCount")
        cached, thought = at("cachedContentTokenCount"), at("thoughtsTokenCount")
        output = at("candidatesTokenCount") or max(0, at("totalTokenCount") - prompt - thought)
        return Told(prompt - cached, cached, 0, output + thought, thought)
    prompt, output = at("prompt_tokens") or at("input_tokens"), at("completion_tokens") or at("output_tokens")
    name = {"chat": ("prompt", "completion"), "responses": ("input", "output")}[dialect]
    cached, thought = (
        at(f"{name[0]}_tokens_details", "cached_tokens"),
        at(f"{name[1]}_tokens_details", "reasoning_tokens"),
    )
    write = at(f"{name[0]}_tokens_details", "cache_write_tokens")
    return Told(max(0, prompt - cached - write), cached, write, output, thought)


def payloads_of(recorded: Json) -> list[Json]:
    """The JSON objects of a recorded answer."""
    return list(cp.sse_read([recorded["sse"].encode()])) if "sse" in recorded else [recorded["body"]]


def reply_of(recorded: Json) -> Reply:
    """A recorded answer, to be given once more."""
    if "sse" in recorded:
        return make_reply([recorded["sse"].encode()], headers=SSE)
    return make_reply(json.dumps(recorded["body"]), headers={"content-type": "application/json"})
