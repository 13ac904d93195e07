"""A strict reading of the Chat Completions wire: what the pickiest clients would refuse."""

from __future__ import annotations

import json
from typing import Any

Json = dict[str, Any]
TOP = {"id", "object", "created", "model", "choices", "usage"}
DELTA = {
    "role",
    "content",
    "refusal",
    "reasoning_content",
    "reasoning_details",
    "tool_calls",
    "function_call",
    "annotations",
    "images",
    "audio",
}
FINISHES = {"stop", "length", "tool_calls", "content_filter", "function_call"}


def frames(data: bytes) -> list[str]:
    """Split a stream that must be made of `data:` lines, each followed by a blank one."""
    assert data.endswith(b"\n\n"), "the last frame is cut"
    lines = data.decode("ascii").split("\n\n")[:-1]
    assert all(line.startswith("data: ") and "\n" not in line for line in lines), lines
    return [line[6:] for line in lines]


class Calls:
    """The tool calls of one choice, as an SDK adds them up: every text it sees is appended."""

    def __init__(self) -> None:
        self.calls: list[Json] = []

    def add(self, delta: Json) -> None:
        index = delta["index"]
        assert index in {len(self.calls), len(self.calls) - 1}, f"call {index} out of order"
        if index == len(self.calls):
            assert delta["id"], "the first delta of a call needs its id"
            assert delta["type"] in {"function", "custom"}
            assert delta[delta["type"]]["name"], "the first delta of a call needs its name"
            self.calls.append(json.loads(json.dumps(delta)))
            return
        call = self.calls[index]
        assert not delta.keys() & {"id", "type"}, "id and type come once"
        signature = delta.get("extra_content")
        assert not (signature and "extra_content" in call), "a signature comes once"
        if signature:
            call["extra_content"] = signature
            return
        body, field = (delta[call["type"]], {"function": "arguments", "custom": "input"}[call["type"]])
        assert body.keys() == {field}, "name comes once"
        call[call["type"]][field] += body[field]


class Choice:
    def __init__(self) -> None:
        self.message: Json = {}
        self.calls = Calls()
        self.finish: str | None = None

    def add(self, row: Json) -> None:
        assert row.keys() == {"index", "delta", "logprobs", "finish_reason"}, row
        assert self.finish is None, "a choice goes on after its end"
        delta = row["delta"]
        assert not delta.keys() - DELTA, delta
        assert ("role" in delta) == (not self.message), "the role comes once, and first"
        for key, value in delta.items():
            if key == "tool_calls":
                for call in value:
                    self.calls.add(call)
            elif isinstance(value, str) and isinstance(self.message.get(key), str):
                self.message[key] += value
            elif isinstance(value, list):
                assert value, f"{key} is empty"
                self.message.setdefault(key, []).extend(value)
            elif key == "function_call" and key in self.message:
                assert value.keys() == {"arguments"}
                self.message[key]["arguments"] += value["arguments"]
            else:
                self.message[key] = value
        self.finish = row["finish_reason"]
        assert self.finish is None or (self.finish in FINISHES and not delta)

    def whole(self) -> Json:
        assert self.finish, "a choice never ends"
        calls = self.calls.calls
        assert self.finish != "tool_calls" or calls, "tool_calls without any"
        return {**self.message, **({"tool_calls": calls} if calls else {})}


def validate_stream(data: bytes, *, usage: bool) -> Json:
    """Check a whole stream; return {messages, finishes, usage} or {error}."""
    *chunks, last = frames(data)
    payloads = [json.loads(chunk) for chunk in chunks]
    if last != "[DONE]":
        error = json.loads(last)
        check_error(error)
        assert all("error" not in payload for payload in payloads), "an error must be the last frame"
        payloads = payloads or [error]
        assert all(not p.get("usage") for p in payloads), "no success before an error"
        return error  # type: ignore[no-any-return]
    heads = {json.dumps([p["id"], p["created"], p["model"], p["object"]]) for p in payloads}
    assert len(heads) == 1, "id, created and model stay the same"
    assert all(not payload.keys() - TOP for payload in payloads)
    first = payloads[0]
    assert first["id"]
    assert first["model"]
    assert first["object"] == "chat.completion.chunk"
    assert isinstance(first["created"], int)
    told = None
    if usage and payloads[-1]["choices"] == []:
        told = payloads.pop()["usage"]
        check_usage(told)
    choices: dict[int, Choice] = {}
    for payload in payloads:
        assert payload.get("usage", "absent") == (None if usage else "absent")
        (row,) = payload["choices"]
        choices.setdefault(row["index"], Choice()).add(row)
    assert sorted(choices) == list(range(len(choices)))
    ordered = [choices[number] for number in sorted(choices)]
    messages = [choice.whole() for choice in ordered]
    return {"messages": messages, "finishes": [c.finish for c in ordered], "usage": told}


def check_usage(usage: Json) -> None:
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert isinstance(usage["prompt_tokens_details"]["cached_tokens"], int)
    assert isinstance(usage["completion_tokens_details"]["reasoning_tokens"], int)


def check_error(body: Json) -> None:
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    assert body["error"]["type"]


def validate_response(body: Json) -> Json:
    """Check a whole answer; return the same as validate_stream."""
    assert not body.keys() - TOP
    assert body["object"] == "chat.completion"
    assert body["id"]
    assert body["model"]
    assert isinstance(body["created"], int)
    for number, choice in enumerate(body["choices"]):
        assert choice.keys() == {"index", "message", "logprobs", "finish_reason"}
        assert choice["index"] == number
        assert choice["finish_reason"] in FINISHES
        message = choice["message"]
        assert message["role"] == "assistant"
        assert {"content", "refusal"} <= message.keys()
        for call in message.get("tool_calls", ()):
            assert call["id"]
            assert call[call["type"]]["name"]
    if "usage" in body:
        check_usage(body["usage"])
    messages = [choice["message"] for choice in body["choices"]]
    finishes = [choice["finish_reason"] for choice in body["choices"]]
    return {"messages": messages, "finishes": finishes, "usage": body.get("usage")}


def validate_request(body: Json) -> None:
    """Check the order rule, and what OpenAI answers with a 400."""
    due: list[str] = []
    for message in body["messages"]:
        role = message["role"]
        assert role in {"system", "developer", "user", "assistant", "tool", "function"}
        if role == "tool":
            assert message["tool_call_id"] in due, "a result nobody asked for"
            due.remove(message["tool_call_id"])
            continue
        assert not due, f"calls {due} are not answered at once"
        assert message.get("content") is not None or role == "assistant"
        assert message.get("content") != []
        due = [call["id"] for call in message.get("tool_calls") or ()]
        if role == "assistant" and not message.get("content"):
            others = {"tool_calls", "function_call", "refusal", "audio"}
            assert "content" in message or message.keys() & others
    assert not due
    assert "parallel_tool_calls" not in body or body.get("tools")
    assert "tool_choice" not in body or body.get("tools")
    assert "stream_options" not in body or body.get("stream")
    assert not any(key.startswith("_") for key in walk(body)), "a note has leaked"


def walk(data: Any) -> list[str]:
    if isinstance(data, dict):
        return [*data, *(key for value in data.values() for key in walk(value))]
    return [key for item in data for key in walk(item)] if isinstance(data, list) else []
