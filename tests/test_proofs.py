"""What Claude thought, through the clients of other dialects and back: whole and as it was, or not at all."""

from __future__ import annotations

from typing import Any

import pytest

import cliproxy as cp
from support.fitting import TARGETS, ask, back, fit

Json = dict[str, Any]
CLIENTS = ("chat", "responses", "gemini")
REDACTED: Json = {"type": "redacted_thinking", "data": "REDX"}
TEXT: Json = {"type": "text", "text": "hi"}
CALL: Json = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}}


def thought(text: str, signature: str) -> Json:
    return {"type": "thinking", "thinking": text, "signature": signature}


T, U = thought("T1 T2", "SIGA"), thought("U1 U2", "SIGB")


def payloads(blocks: list[Json]) -> list[Json]:
    """Stream blocks as Claude does: a text in two pieces, the signature behind it."""
    usage = {"input_tokens": 10, "output_tokens": 1}
    said: list[Json] = [{"type": "message_start", "message": {"id": "m", "model": "c", "usage": usage}}]
    for block in blocks:
        start = {**block, **({"thinking": "", "signature": ""} if block["type"] == "thinking" else {})}
        said.append({"type": "content_block_start", "content_block": start})
        deltas: list[Json] = []
        if block["type"] == "thinking":
            pieces = filter(None, (block["thinking"][:3], block["thinking"][3:]))
            deltas += [{"type": "thinking_delta", "thinking": piece} for piece in pieces]
            deltas.append({"type": "signature_delta", "signature": block["signature"]})
        said += [{"type": "content_block_delta", "delta": delta} for delta in deltas]
        said.append({"type": "content_block_stop"})
    return [*said, {"type": "message_delta", "delta": {"stop_reason": "tool_use"}}, {"type": "message_stop"}]


def chat_history(streamed: list[Json]) -> Json:
    """Join the deltas as OpenAI's SDK does: texts grow, other fields of a call are those of its first delta."""
    message: Json = {"role": "assistant", "content": "", "reasoning_content": "", "tool_calls": []}
    for delta in (choice["delta"] for chunk in streamed for choice in chunk["choices"]):
        for field in ("content", "reasoning_content"):
            message[field] += delta.get(field) or ""
        for call in delta.get("tool_calls") or ():
            if "id" in call:
                message["tool_calls"].append({**call, "function": {**call["function"], "arguments": "{}"}})
    return {key: value for key, value in message.items() if value}


def history(client: str, blocks: list[Json], stream: bool) -> Json:
    """Return what a client of this dialect sends after an answer of these blocks, and a result."""
    request = ask(dialect=client, id="7f", created=1, stream=stream, extra={"gemini": {"_alt": "sse"}})
    row, claude = cp.DIALECTS[client], cp.DIALECTS["claude"]
    events = iter(back(list(claude.read_stream(payloads(blocks), request)), request, "claude"))
    if stream:
        said = list(cp.sse_read(row.write_stream(events, request)))
    else:
        said = [row.write_response(cp.collect(events), request)]
    if client == "gemini":
        parts = [part for chunk in said for c in chunk["candidates"] for part in c["content"]["parts"]]
        result: Json = {"functionResponse": {"id": "toolu_1", "name": "f", "response": {"output": "r"}}}
        contents: list[tuple[str, list[Json]]] = [
            ("user", [{"text": "q"}]),
            ("model", parts),
            ("user", [result]),
        ]
        return {"contents": [{"role": role, "parts": parts} for role, parts in contents]}
    if client == "responses":
        done = [e["item"] for e in said if e.get("type") == "response.output_item.done"]
        items = done if stream else said[0]["output"]
        result = {"type": "function_call_output", "call_id": "toolu_1", "output": "r"}
        return {"input": [{"role": "user", "content": "q"}, *items, result]}
    message = chat_history(said) if stream else said[0]["choices"][0]["message"]
    result = {"role": "tool", "tool_call_id": "toolu_1", "content": "r"}
    return {"messages": [{"role": "user", "content": "q"}, message, result]}


def returned(client: str, body: Json) -> list[Json]:
    """Return the answer as Claude gets it back."""
    request = cp.DIALECTS[client].read_request({"model": "m", **body})
    fitted = fit(request, "claude")
    written = cp.claude_write_request(fitted, TARGETS["claude"])["messages"][1]["content"]
    return [block for block in written if block["type"] in {"thinking", "redacted_thinking"}]


ANSWERS = [
    pytest.param([T, CALL], CLIENTS, id="before a call"),
    pytest.param([T, TEXT, CALL], CLIENTS, id="before a text"),
    pytest.param([thought("", "SIGA"), CALL], CLIENTS, id="not shown"),
    pytest.param([REDACTED, CALL], CLIENTS, id="redacted"),
    pytest.param([REDACTED, TEXT, CALL], ("responses", "gemini"), id="redacted, before a text"),
    pytest.param([T, REDACTED, CALL], ("responses", "gemini"), id="both"),
    pytest.param([T, TEXT, U, CALL], ("responses", "gemini"), id="between texts"),
    pytest.param([T, U, CALL], ("responses", "gemini"), id="twice"),
]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(("blocks", "able"), ANSWERS)
def test_claude_gets_its_thinking_back(
    blocks: list[Json], able: tuple[str, ...], client: str, stream: bool
) -> None:
    """A block that has changed would be refused: where a client cannot hold all of them, there is none."""
    thoughts = [block for block in blocks if block not in (TEXT, CALL)]
    got = returned(client, history(client, blocks, stream))
    if client in able:
        assert got == thoughts
    else:
        assert all(block in thoughts for block in got)


@pytest.mark.parametrize("client", CLIENTS)
def test_thinking_that_a_client_has_cut_or_changed_does_not_go_back(client: str) -> None:
    body = history(client, [T, CALL], True)
    for message in body.get("contents") or body.get("input") or body["messages"]:
        for part in message.get("parts") or message.get("summary") or [message]:
            field = "reasoning_content" if client == "chat" else "text"
            if part.get(field) and part[field] != "q":
                part[field] = part[field].replace("1", "one")
    assert returned(client, body) == []
