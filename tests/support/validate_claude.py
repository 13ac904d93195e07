"""A strict reader of Claude's stream: what the official clients insist on, as assertions."""

from __future__ import annotations

import json
from typing import Any

Json = dict[str, Any]

BODIES = {  # type of a block -> the deltas it may have
    "text": {"text_delta", "citations_delta"},
    "thinking": {"thinking_delta", "signature_delta"},
    "tool_use": {"input_json_delta"},
    "server_tool_use": {"input_json_delta"},
    "mcp_tool_use": {"input_json_delta"},
}
EMPTY_BODIES: dict[str, Json] = {
    "text": {"text": ""},
    "thinking": {"thinking": "", "signature": ""},
    "tool_use": {"input": {}},
    "server_tool_use": {"input": {}},
    "mcp_tool_use": {"input": {}},
}
STOP_REASONS = {
    "end_turn",
    "max_tokens",
    "stop_sequence",
    "tool_use",
    "pause_turn",
    "refusal",
    "model_context_window_exceeded",
    "compaction",
}
COUNTS = ("input_tokens", "output_tokens")


def payloads(data: bytes) -> list[Json]:
    """Split a stream into its payloads; each event must be an `event:` and a `data:` line."""
    assert data.endswith(b"\n\n"), "the last event is not complete"
    events = []
    for event in data[:-2].split(b"\n\n"):
        lines = event.split(b"\n")
        assert len(lines) == 2, event
        assert lines[0].startswith(b"event: "), event
        assert lines[1].startswith(b"data: "), event
        payload = json.loads(lines[1][6:])
        assert payload["type"] == lines[0][7:].decode(), event
        events.append(payload)
    return events


def check_usage(usage: Json) -> None:
    for key, value in usage.items():
        if key.endswith("_tokens"):
            assert isinstance(value, int), usage
            assert value >= 0, usage


def check_start(payload: Json) -> None:
    assert payload["type"] == "message_start", payload
    message = payload["message"]
    assert message["type"] == "message"
    assert message["role"] == "assistant"
    assert message["content"] == []
    assert message["id"]
    assert message["model"]
    assert message["stop_reason"] is None
    assert message["stop_sequence"] is None
    assert all(isinstance(message["usage"][key], int) for key in COUNTS)
    check_usage(message["usage"])


def check_block(events: list[Json], index: int) -> None:
    """Check the events of one block, from its start to its stop."""
    start, *deltas, stop = events
    assert start["type"] == "content_block_start", start
    assert stop == {"type": "content_block_stop", "index": index}
    assert start["index"] == index, start
    block = start["content_block"]
    kind = block["type"]
    for key, empty in EMPTY_BODIES.get(kind, {}).items():
        assert block[key] == empty, start
    if kind in {"tool_use", "server_tool_use"}:
        assert block["id"], start
        assert block["name"], start
    for delta in deltas:
        assert delta["type"] == "content_block_delta", delta
        assert delta["index"] == index, delta
        assert delta["delta"]["type"] in BODIES.get(kind, set()), (kind, delta)
    check_body(kind, [delta["delta"] for delta in deltas])


def check_body(kind: str, deltas: list[Json]) -> None:
    signatures = [delta for delta in deltas if delta["type"] == "signature_delta"]
    assert len(signatures) <= 1, "a signature comes whole"
    assert not signatures or deltas[-1] is signatures[0], "a signature comes last"
    assert all(delta["signature"] for delta in signatures)
    for delta in deltas:
        if delta["type"] == "citations_delta":
            assert delta["citation"]["type"], delta
    if BODIES.get(kind) == {"input_json_delta"}:
        text = "".join(delta["partial_json"] for delta in deltas)
        assert isinstance(json.loads(text or "{}"), dict), text


def check_end(delta: Json, stop: Json, stopped: set[str]) -> None:
    assert delta["type"] == "message_delta", delta
    assert delta["delta"]["stop_reason"] in STOP_REASONS | stopped, delta
    assert "stop_sequence" in delta["delta"], delta
    assert isinstance(delta["usage"]["output_tokens"], int), delta
    check_usage(delta["usage"])
    assert stop == {"type": "message_stop"}


def validate(data: bytes, *stopped: str, truncated: bool = False) -> list[Json]:
    """Check a whole stream and return its payloads. `stopped`: more stop reasons that may be.

    With `truncated`, the arguments of the last call may be broken off (stop reason max_tokens).
    """
    events = payloads(data)
    check_start(events[0])
    *events_of_blocks, delta, stop = events[1:]
    if stop["type"] == "error":
        check_error(stop)
        return events
    check_end(delta, stop, set(stopped))
    blocks: list[list[Json]] = []
    for event in events_of_blocks:
        if event["type"] == "content_block_start":
            blocks.append([])
        blocks[-1].append(event)
    for index, block in enumerate(blocks):
        if not (truncated and index == len(blocks) - 1):
            check_block(block, index)
    return events


def check_error(payload: Json) -> None:
    """Check the body of an error, which is the last event of a failed stream too."""
    assert payload["type"] == "error"
    assert set(payload["error"]) >= {"type", "message"}
    assert payload["error"]["message"]


def validate_failure(data: bytes) -> list[Json]:
    """Check a stream that broke off: it ends with an error, and has no other end."""
    events = payloads(data)
    check_start(events[0])
    check_error(events[-1])
    assert not {"message_delta", "message_stop"} & {event["type"] for event in events}
    return events
