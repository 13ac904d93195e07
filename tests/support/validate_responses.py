"""A strict validator of Responses API streams: what clients rely on, and a little more."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

Json = dict[str, Any]

PREFIXES = {
    "message": "msg_",
    "reasoning": "rs_",
    "function_call": "fc_",
    "custom_tool_call": "ctc_",
    "web_search_call": "ws_",
    "image_generation_call": "ig_",
}
LAST = {"response.completed", "response.incomplete", "response.failed"}
REQUIRED = ["id", "created_at", "model", "object", "output", "parallel_tool_calls", "tool_choice", "tools"]
EMPTY_AT_FIRST = {
    "message": ("content",),
    "reasoning": ("content", "summary"),
    "function_call": ("arguments",),
    "custom_tool_call": ("input",),
    "image_generation_call": ("result",),
}
BODIES = {  # event -> key of .done
    "response.output_text": "text",
    "response.refusal": "refusal",
    "response.reasoning_summary_text": "text",
    "response.function_call_arguments": "arguments",
    "response.custom_tool_call_input": "input",
}


def frames(stream: bytes) -> list[Json]:
    """Decode a whole stream; the `event:` line must be there and say what the payload says."""
    assert stream.endswith(b"\n\n")
    payloads = []
    for frame in stream[:-2].split(b"\n\n"):
        event, data = frame.split(b"\n")
        assert event.startswith(b"event: "), frame
        assert data.startswith(b"data: "), frame
        payload: Json = json.loads(data[6:])
        assert payload["type"] == event[7:].decode(), frame
        payloads.append(payload)
    return payloads


class Validator:
    """Follows one stream, event by event."""

    def __init__(self, own_ids: bool) -> None:
        self.own_ids = own_ids  # made by the writer, not by an upstream
        self.done: list[Json] = []
        self.item: Json | None = None
        self.part: Json | None = None  # the open content part or summary part
        self.parts: list[Json] = []  # the complete ones of the item
        self.bodies: dict[str, list[str]] = {}  # event -> deltas
        self.whole: dict[str, str] = {}  # event -> what .done said
        self.notes: list[Json] = []
        self.broken: Json | None = None

    def check(self, payload: Json) -> None:
        kind = payload["type"]
        assert self.broken is None, f"{kind} after an error"
        if "output_index" in payload:
            assert payload["output_index"] == len(self.done), payload
        if kind in {"response.output_item.added", "response.output_item.done"}:
            (self.added if kind.endswith("added") else self.finished)(payload["item"])
        elif kind == "error":
            assert payload["message"]
            assert payload["code"]
            assert "param" in payload
            self.broken = payload
        else:
            assert self.item, payload
            assert payload["item_id"] == self.item["id"], payload
            self.inner(kind, payload)

    def added(self, item: Json) -> None:
        assert self.item is None, "an item in an item"
        assert item.get("status", "in_progress") == "in_progress"
        prefix = PREFIXES.get(item["type"])
        assert not (self.own_ids and prefix) or item["id"].startswith(prefix), item
        for key in EMPTY_AT_FIRST.get(item["type"], ()):
            assert not item.get(key), item
        assert item["type"] != "message" or (item["role"], item["content"]) == ("assistant", [])
        self.item, self.parts, self.bodies, self.whole = item, [], {}, {}

    def finished(self, item: Json) -> None:
        assert self.item
        assert self.part is None
        assert [item.get(k) for k in ("id", "type")] == [self.item.get(k) for k in ("id", "type")]
        assert item.get("status") in {None, "completed", "incomplete", "searching", "generating", "failed"}, (
            item
        )
        assert "status" in item or item["type"] not in {"message", "function_call", "custom_tool_call"}
        for key in ("content", "summary"):
            if item["type"] in {"message", "reasoning"} and key in item:
                assert item[key] == self.parts
        for event, key in (("function_call_arguments", "arguments"), ("custom_tool_call_input", "input")):
            if item["type"] in {"function_call", "custom_tool_call"} and key in item:
                assert item[key] == self.whole[f"response.{event}"]
        assert item["type"] != "reasoning" or isinstance(item["summary"], list)
        self.done.append(item)
        self.item = None

    def inner(self, kind: str, payload: Json) -> None:
        event, _, step = kind.rpartition(".")
        if event in {"response.content_part", "response.reasoning_summary_part"}:
            self.content(event, step, payload)
        elif event == "response.output_text.annotation":
            assert self.part is not None
            assert payload["annotation_index"] == len(self.notes)
            self.notes.append(payload["annotation"])
        elif event in BODIES:
            self.body(event, step, payload)
        else:
            assert step in {"in_progress", "searching", "generating", "completed"}, kind

    def content(self, event: str, step: str, payload: Json) -> None:
        index = payload["content_index" if event.endswith("content_part") else "summary_index"]
        assert index == len(self.parts), payload
        part = payload["part"]
        if step == "added":
            assert self.part is None
            assert not any(v for k, v in part.items() if k != "type"), part
            assert part["type"] != "output_text" or part == {**part, "annotations": [], "logprobs": []}
            self.part, self.bodies, self.whole, self.notes = part, {}, {}, []
            return
        assert self.part
        assert part["type"] == self.part["type"]
        assert self.whole, "a part without its .done"
        ((_, whole),) = self.whole.items()
        assert whole == part.get("text", part.get("refusal"))
        assert part.get("annotations", []) == self.notes
        self.parts.append(part)
        self.part = None

    def body(self, event: str, step: str, payload: Json) -> None:
        key = BODIES[event]
        if key in {"text", "refusal"}:
            assert self.part is not None, "text outside of a part"
        if "content_index" in payload or "summary_index" in payload:
            assert payload.get("content_index", payload.get("summary_index")) == len(self.parts)
        assert event not in self.whole, "a delta after .done"
        if step == "delta":
            assert payload["delta"] or payload.get("logprobs")
            self.bodies.setdefault(event, []).append(payload["delta"])
        else:
            assert payload[key] == "".join(self.bodies.get(event, []))
            self.whole[event] = payload[key]
        assert event != "response.output_text" or isinstance(payload["logprobs"], list)
        assert event != "response.function_call_arguments" or step == "delta" or payload["name"]


def check_usage(usage: Json) -> None:
    for key in ("input_tokens", "output_tokens", "total_tokens"):
        assert isinstance(usage[key], int)
    assert isinstance(usage["input_tokens_details"]["cached_tokens"], int)
    assert isinstance(usage["input_tokens_details"]["cache_write_tokens"], int)
    assert isinstance(usage["output_tokens_details"]["reasoning_tokens"], int)


def check_response(response: Json) -> None:
    """Check a response object that is the last word on its answer."""
    assert all(key in response for key in REQUIRED)
    assert response["object"] == "response"
    assert response["id"].startswith("resp_")
    check_usage(response["usage"])
    details, error = response["incomplete_details"], response["error"]
    assert (details is not None) == (response["status"] == "incomplete")
    assert (error is not None) == (response["status"] == "failed")
    if details:
        assert details["reason"] in {"max_output_tokens", "content_filter"}
    if error:
        assert error["code"]
        assert error["message"]


def validate(stream: bytes | Iterable[bytes], *, own_ids: bool = True) -> Json:
    """Check a whole stream; return the response object of its last event."""
    payloads = frames(stream if isinstance(stream, bytes) else b"".join(stream))
    assert [p["sequence_number"] for p in payloads] == list(range(len(payloads)))
    created, running, *middle, last = payloads
    assert [created["type"], running["type"]] == ["response.created", "response.in_progress"]
    for payload in (created, running):
        assert payload["response"]["status"] == "in_progress"
        assert payload["response"]["output"] == []
        assert all(key in payload["response"] for key in REQUIRED)
    validator = Validator(own_ids)
    for payload in middle:
        validator.check(payload)
    assert last["type"] in LAST
    assert last["type"] == f"response.{last['response']['status']}"
    assert not validator.broken or last["type"] == "response.failed"
    response: Json = last["response"]
    check_response(response)
    assert response["id"] == created["response"]["id"]
    assert response["output"] == validator.done
    assert validator.broken or validator.item is None
    return response
