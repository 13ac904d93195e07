"""A strict reader of what a Gemini client is sent. Source: spec 1D.5 and 6.1; google-genai 3.4.

Every rule is an assertion with the offending piece as its message.
"""

from __future__ import annotations

import base64
import json
from typing import Any

Json = dict[str, Any]
FIELDS = {  # exactly one of them in a part
    "text", "inlineData", "fileData", "functionCall", "executableCode", "codeExecutionResult", "toolCall",
    "toolResponse",
}  # fmt: skip
CHUNK = {"candidates", "usageMetadata", "modelVersion", "responseId", "promptFeedback", "error"}
TOTAL = ("promptTokenCount", "candidatesTokenCount", "thoughtsTokenCount", "toolUsePromptTokenCount")


def chunks_of(data: bytes, *, sse: bool = True) -> list[Json]:
    """Take a stream apart as the strictest clients do."""
    if not sse:
        chunks = json.loads(data)
        assert isinstance(chunks, list)
        return chunks
    text = data.decode("utf-8")
    assert text.endswith("\r\n\r\n"), text[-40:]
    found = []
    for event in text.removesuffix("\r\n\r\n").split("\r\n\r\n"):
        assert event.startswith("data: "), event[:80]
        assert "\n" not in event, event[:80]  # one field an event, no comment
        assert event != "data: [DONE]"
        found.append(json.loads(event[len("data: ") :]))
    return found


def check_part(part: Json) -> None:
    """One kind of content, a whole call, a proof that can be decoded."""
    assert len(part.keys() & FIELDS) == 1, part
    if call := part.get("functionCall"):
        assert call["name"], part
        assert isinstance(call.get("args", {}), dict), part
        assert not call.keys() & {"partialArgs", "willContinue"}, part
    if "thoughtSignature" in part:
        base64.urlsafe_b64decode(part["thoughtSignature"].replace("+", "-").replace("/", "_") + "==")
    if part.get("text") == "":
        assert part.keys() <= {"text", "thought", "thoughtSignature"}, part


def check_usage(usage: Json) -> None:
    assert usage["totalTokenCount"] == sum(usage.get(key, 0) for key in TOTAL), usage
    assert all(value >= 0 for value in usage.values() if isinstance(value, int)), usage


def check_chunk(chunk: Json, ended: set[int]) -> None:
    """Check a chunk that is no error; `ended` are the candidates that may not go on."""
    assert chunk.keys() <= CHUNK, chunk.keys()
    assert chunk["responseId"]
    assert chunk["modelVersion"]
    for candidate in chunk["candidates"]:
        assert candidate["index"] not in ended, candidate
        assert candidate["content"]["role"] == "model", candidate
        for part in candidate["content"]["parts"]:
            check_part(part)
        if "finishReason" in candidate:
            assert candidate["finishReason"].isupper(), candidate
            ended.add(candidate["index"])
    if "usageMetadata" in chunk:
        check_usage(chunk["usageMetadata"])


def validate_stream(data: bytes, *, sse: bool = True) -> list[Json]:
    """Check a whole stream and return its chunks; one that ends in an error has no finish."""
    chunks = chunks_of(data, sse=sse)
    assert chunks
    ended: set[int] = set()
    seen: set[int] = set()
    for chunk in chunks[:-1]:
        assert "error" not in chunk, chunk
        assert "usageMetadata" not in chunk, chunk
        check_chunk(chunk, ended)
        seen |= {candidate["index"] for candidate in chunk["candidates"]}
    assert not ended
    last = chunks[-1]
    if "error" in last:
        assert next(iter(last)) == "error", last
        assert last["error"].keys() >= {"code", "message", "status"}, last
        return chunks
    check_chunk(last, ended)
    assert ended >= seen, (ended, seen)
    return chunks


def validate_response(data: Json) -> Json:
    """Check a full answer."""
    ended: set[int] = set()
    check_chunk(data, ended)
    assert len(ended) == len(data["candidates"])
    return data
