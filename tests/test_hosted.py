"""What services run themselves, as web search: asked for in one dialect, and told in another."""

from __future__ import annotations

from typing import Any

import pytest

import cliproxy as cp
from support.dialogue import frame
from support.fitting import read, up
from support.proxy import Proxy
from support.validate_claude import validate

Json = dict[str, Any]
SSE = {"content-type": "text/event-stream"}
# Claude Code's own request for a search
CLAUDE_CODE: Json = {
    "model": "m", "max_tokens": 99, "tool_choice": {"type": "tool", "name": "web_search"},
    "tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 8, "allowed_domains": ["a.org"]}],
    "messages": [{"role": "user", "content": "Perform a web search for the query: weather"}],
}  # fmt: skip
SOURCES = [("https://a.org/1", "One"), ("https://b.org/2", "Two")]
TEXT = "It rains in Rome."
GEMINI: Json = {
    "candidates": [{
        "content": {"parts": [{"text": TEXT}], "role": "model"}, "finishReason": "STOP", "index": 0,
        "groundingMetadata": {
            "webSearchQueries": ["weather", "rain rome"],
            "groundingChunks": [{"web": {"uri": url, "title": title}} for url, title in SOURCES],
            "groundingSupports": [{"segment": {"startIndex": 0, "endIndex": 8, "text": TEXT[:8]}, "groundingChunkIndices": [0]}],
        },
    }],
    "usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 4, "totalTokenCount": 9},
}  # fmt: skip
CITED = [
    {"type": "url_citation", "url": url, "title": title, "start_index": 0, "end_index": 8} for url, title in SOURCES
]  # fmt: skip
RESPONSES: Json = {
    "id": "resp_1", "object": "response", "status": "completed", "model": "m",
    "output": [
        {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "weather"}},
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
         "content": [{"type": "output_text", "text": TEXT, "annotations": CITED}]},
    ],
    "usage": {"input_tokens": 5, "output_tokens": 4, "total_tokens": 9},
}  # fmt: skip
CLAUDE: Json = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn", "stop_sequence": None,
    "content": [
        {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "weather"}},
        {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [
            {"type": "web_search_result", "url": url, "title": title, "encrypted_content": "x", "page_age": None}
            for url, title in SOURCES]},
        {"type": "text", "text": TEXT, "citations": [
            {"type": "web_search_result_location", "url": SOURCES[0][0], "title": "One", "cited_text": "rain", "encrypted_index": "i"}]},
    ],
    "usage": {"input_tokens": 5, "output_tokens": 4, "server_tool_use": {"web_search_requests": 1}},
}  # fmt: skip
ANSWERS = {"gemini": GEMINI, "responses": RESPONSES, "claude": CLAUDE}


def streamed(dialect: str) -> list[bytes]:
    """Return a stream of the answer in which the sources come as late as they do."""
    if dialect == "gemini":
        candidate = GEMINI["candidates"][0]
        first = {**candidate, "content": {"parts": [{"text": TEXT[:5]}], "role": "model"}}
        first = {key: first[key] for key in ("content", "index")}
        last = {**candidate, "content": {"parts": [{"text": TEXT[5:]}], "role": "model"}}
        return [frame({"candidates": [first]}), frame({**GEMINI, "candidates": [last]})]
    search, message = RESPONSES["output"]
    begun = {"type": "response.created", "response": {**RESPONSES, "status": "in_progress", "output": []}}
    events: list[Json] = [begun]
    for at, item in enumerate((search, {**message, "content": []})):
        events.append({"type": "response.output_item.added", "output_index": at, "item": item})
        if at:
            place = {"item_id": "msg_1", "output_index": 1, "content_index": 0}
            part = {"type": "output_text", "text": "", "annotations": []}
            events.append({"type": "response.content_part.added", **place, "part": part})
            events.append({"type": "response.output_text.delta", **place, "delta": TEXT})
            for number, note in enumerate(CITED):
                told = {**place, "annotation_index": number, "annotation": note}
                events.append({"type": "response.output_text.annotation.added", **told})
        events.append(
            {"type": "response.output_item.done", "output_index": at, "item": (search, message)[at]}
        )
    events.append({"type": "response.completed", "response": RESPONSES})
    return [frame(event, event["type"]) for event in events]


def asked(proxy: Proxy, dialect: str, body: Json, *, stream: bool) -> Json:
    """Ask as Claude Code does; return the whole message."""
    if stream:
        proxy.upstream.reply(streamed(dialect), headers=SSE)
    else:
        proxy.upstream.reply(ANSWERS[dialect])
    got = proxy.ask("/v1/messages?beta=true", {**body, "model": f"up-{dialect}", "stream": stream})
    assert got.status == 200, got.body
    if not stream:
        message: Json = got.json()
        return message
    payloads = got.payloads()
    validate(got.body)
    request = read("claude", {**body, "model": "m"})
    answer = cp.collect(cp.claude_read_stream(payloads, request))
    return cp.claude_write_response(answer, request)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("dialect", ["gemini", "responses"])
def test_claude_code_searches(dialect: str, stream: bool, proxy: Proxy) -> None:
    message = asked(proxy, dialect, CLAUDE_CODE, stream=stream)
    kinds = [block["type"] for block in message["content"]]
    queries = ["weather", "rain rome"] if dialect == "gemini" else ["weather"]
    assert kinds == ["server_tool_use", "web_search_tool_result"] * len(queries) + ["text"]
    uses = [block for block in message["content"] if block["type"] == "server_tool_use"]
    assert [use["input"] for use in uses] == [{"query": query} for query in queries]
    results = [block for block in message["content"] if block["type"] == "web_search_tool_result"]
    assert [result["tool_use_id"] for result in results] == [use["id"] for use in uses]
    assert [(row["url"], row["title"]) for row in results[-1]["content"]] == SOURCES
    assert message["usage"]["server_tool_use"]["web_search_requests"] == len(queries)
    assert message["content"][-1]["text"] == TEXT


def test_an_unforced_search_of_gemini_s_does_not_wait(proxy: Proxy) -> None:
    body = {key: value for key, value in CLAUDE_CODE.items() if key != "tool_choice"}
    message = asked(proxy, "gemini", body, stream=True)
    assert [block["type"] for block in message["content"]][:2] == ["text", "server_tool_use"]
    assert message["usage"]["server_tool_use"]["web_search_requests"] == 2


def test_a_forced_search_is_all_that_is_sent_to_gemini() -> None:
    more = {
        **CLAUDE_CODE,
        "tools": [*CLAUDE_CODE["tools"], {"name": "f", "input_schema": {"type": "object"}}],
    }
    for body in (CLAUDE_CODE, more, {**CLAUDE_CODE, "tool_choice": {"type": "any"}}):
        sent = up("claude", body, "gemini")
        assert (sent["tools"], sent.get("toolConfig")) == ([{"googleSearch": {}}], None)


def test_a_forced_search_of_responses() -> None:
    sent = up("claude", CLAUDE_CODE, "responses")
    assert sent["tools"] == [{"type": "web_search", "filters": {"allowed_domains": ["a.org"]}}]
    assert sent["tool_choice"] == {"type": "web_search"}


def test_chat_cannot_search() -> None:
    with pytest.raises(cp.ProxyError, match="cannot be made to use web_search"):
        up("claude", CLAUDE_CODE, "chat")


@pytest.mark.parametrize("dialect", ["gemini", "responses"])
def test_what_we_told_of_searches_goes_back_to_nobody(dialect: str, proxy: Proxy) -> None:
    message = asked(proxy, dialect, CLAUDE_CODE, stream=False)
    history = [*CLAUDE_CODE["messages"], {"role": "assistant", "content": message["content"]}]
    body = {**CLAUDE_CODE, "messages": [*history, {"role": "user", "content": "and tomorrow?"}]}
    for target in ("claude", dialect):
        asked(proxy, target, body, stream=False)
        sent = proxy.upstream.seen[-1].body.decode()
        assert "srvtoolu" not in sent
        assert "CLIPROXY" not in sent
        assert TEXT in sent


def test_a_responses_client_searches_with_gemini(proxy: Proxy) -> None:
    proxy.upstream.reply(GEMINI)
    body = {"model": "up-gemini", "input": "weather?", "tools": [{"type": "web_search"}]}
    output = proxy.ask("/v1/responses", body).json()["output"]
    assert sorted(item["type"] for item in output) == ["message", "web_search_call", "web_search_call"]
    assert {item["action"]["query"] for item in output if "action" in item} == {"weather", "rain rome"}
    (message,) = (item for item in output if item["type"] == "message")
    assert message["content"][0]["annotations"][0]["url"] == SOURCES[0][0]


def test_a_responses_client_searches_with_claude(proxy: Proxy) -> None:
    proxy.upstream.reply(CLAUDE)
    body = {"model": "up-claude", "input": "weather?", "tools": [{"type": "web_search"}]}
    output = proxy.ask("/v1/responses", body).json()["output"]
    assert [item["type"] for item in output] == ["web_search_call", "message"]
    assert [row["url"] for row in output[0]["action"]["sources"]] == [url for url, _ in SOURCES]


@pytest.mark.parametrize("dialect", ["claude", "responses"])
def test_a_gemini_client_searches(dialect: str, proxy: Proxy) -> None:
    body = {"contents": [{"role": "user", "parts": [{"text": "weather?"}]}], "tools": [{"googleSearch": {}}]}
    proxy.upstream.reply(ANSWERS[dialect])
    candidate = proxy.ask(f"/v1beta/models/up-{dialect}:generateContent", body).json()["candidates"][0]
    grounding = candidate["groundingMetadata"]
    assert grounding["webSearchQueries"] == ["weather"]
    assert grounding["groundingChunks"][0]["web"]["uri"] == SOURCES[0][0]


# --- code

RAN = {
    "gemini": {"candidates": [{"index": 0, "finishReason": "STOP", "content": {"role": "model", "parts": [
        {"executableCode": {"language": "PYTHON", "code": "print(6*7)"}},
        {"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "42\n"}}, {"text": TEXT}]}}],
        "usageMetadata": {"promptTokenCount": 5, "totalTokenCount": 9}},
    "responses": {**RESPONSES, "output": [
        {"type": "code_interpreter_call", "id": "ci_1", "status": "completed", "code": "print(6*7)",
         "container_id": "c", "outputs": [{"type": "logs", "logs": "42\n"}]}, RESPONSES["output"][1]]},
    "claude": {**CLAUDE, "content": [
        {"type": "server_tool_use", "id": "srvtoolu_1", "name": "code_execution", "input": {"code": "print(6*7)"}},
        {"type": "code_execution_tool_result", "tool_use_id": "srvtoolu_1", "content": {
            "type": "code_execution_result", "stdout": "42\n", "stderr": "", "return_code": 0, "content": []}},
        {"type": "text", "text": TEXT}]},
}  # fmt: skip


def code_told(proxy: Proxy, client: str, dialect: str) -> tuple[Any, Any]:
    proxy.upstream.reply(RAN[dialect])
    tools: list[Json]
    if client == "claude":
        tools = [{"type": "code_execution_20250825", "name": "code_execution"}]
        body = {**CLAUDE_CODE, "tools": tools, "tool_choice": {"type": "auto"}, "model": f"up-{dialect}"}
        use, result, _ = proxy.ask("/v1/messages", body).json()["content"]
        return use["input"]["code"], result["content"]["stdout"]
    if client == "responses":
        tools = [{"type": "code_interpreter", "container": {"type": "auto"}}]
        item = proxy.ask("/v1/responses", {"model": f"up-{dialect}", "input": "q", "tools": tools}).json()[
            "output"
        ][0]
        return item["code"], item["outputs"][0]["logs"]
    body = {"contents": [{"role": "user", "parts": [{"text": "q"}]}], "tools": [{"codeExecution": {}}]}
    answer = proxy.ask(f"/v1beta/models/up-{dialect}:generateContent", body).json()
    code, result, *_ = answer["candidates"][0]["content"]["parts"]
    return code["executableCode"]["code"], result["codeExecutionResult"]["output"]


@pytest.mark.parametrize("dialect", RAN)
@pytest.mark.parametrize("client", RAN)
def test_code_and_what_it_gave(client: str, dialect: str, proxy: Proxy) -> None:
    if client != dialect:
        assert code_told(proxy, client, dialect) == ("print(6*7)", "42\n")
