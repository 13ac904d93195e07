"""What the real clients send, and what they need; the README's snippets; the SDKs for Node.

The requests are small ones of ours in the shapes that were seen on the wire (spec/clients.md): the
second turn of a conversation, with all that is odd about it.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, Callable, NamedTuple

import anthropic
import openai
import pytest
from google import genai

import cliproxy as cp
from support import validate_chat, validate_claude, validate_gemini, validate_responses
from support.dialogue import ANSWERS, NAMES, PROOFS, SCHEMA, SSE, STREAMS, Said
from support.paths import ROOT
from support.proxy import Proxy, ProxyMaker
from support.upstream import Seen, Upstream, make_reply

Json = dict[str, Any]
KEY = "KEY"  # as the README calls it
SAID = Said("Let me see.", "I will look.", "toolu_2", "Bern")
STRICT = {"$schema": "http://json-schema.org/draft-07/schema#", "additionalProperties": False, **SCHEMA}  # fmt: skip
RESULT = "22 degrees"


# --- what they send


class Client(NamedTuple):
    """A client as it is on the wire: `paths` by what its base URL ends in, `body` by the model's name."""

    dialect: str
    paths: dict[str, str]
    headers: dict[str, str]
    body: Callable[[str], Json]
    namespace: str = ""  # in which its tools are


STAINLESS = {"x-stainless-lang": "js", "x-stainless-retry-count": "0", "accept": "application/json"}
BETAS = "claude-code-20250219,interleaved-thinking-2025-05-14,context-management-2025-06-27,mid-conversation-system-2026-04-07,effort-2025-11-24"
CACHED = {"cache_control": {"type": "ephemeral"}}
CLAUDE_CALL = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"city": "Zürich"}}


def claude_code(model: str) -> Json:
    """A model that it does not know: a system message in the middle, adaptive thinking, effort."""
    return {
        "model": model, "max_tokens": 32000, "stream": True, "thinking": {"type": "adaptive"}, "output_config": {"effort": "high"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "metadata": {"user_id": json.dumps({"device_id": "d", "account_uuid": "", "session_id": "s"})},
        "system": [{"type": "text", "text": "x-header: cc_version=2"}, {"type": "text", "text": "You are an agent.", **CACHED}],
        "tools": [{"name": "look", "description": "Looks.", "input_schema": {**STRICT, "propertyNames": {"type": "string"}}}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "<reminder>"}, {"type": "text", "text": "How is it?"}]},
            {"role": "system", "content": "There are agents."},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm.", "signature": "c2Vsdi1tYWRl"}, CLAUDE_CALL]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": RESULT, **CACHED}]},
        ],
    }  # fmt: skip


def droid_claude(model: str) -> Json:
    """Two user messages at the start, and as many cache marks as the API takes."""
    body = claude_code(model)
    del body["output_config"], body["context_management"], body["metadata"], body["messages"][1]
    blocks = [{"type": "text", "text": "<reminder>", **CACHED}, {"type": "text", "text": "<info>", **CACHED}]  # fmt: skip
    return {
        **body, "thinking": {"type": "enabled", "budget_tokens": 24576},
        "messages": [{"role": "user", "content": blocks}, *body["messages"]],
    }  # fmt: skip


RESPONSES_TOOL = {"type": "function", "name": "look", "description": "Looks.", "parameters": STRICT, "strict": False}  # fmt: skip
RESPONSES_CALL = {"type": "function_call", "id": "fc_1", "name": "look", "arguments": '{"city":"Zürich"}', "call_id": "call_1"}  # fmt: skip


def codex(model: str) -> Json:
    """A model that it does not know: no instructions, a namespace and a hosted tool among the tools."""
    spawn = {"type": "function", "name": "spawn", "description": "Spawns.", "parameters": STRICT, "strict": False}  # fmt: skip
    return {
        "model": model, "stream": True, "store": False, "tool_choice": "auto", "parallel_tool_calls": False,
        "include": ["reasoning.encrypted_content"], "reasoning": {"summary": "auto"}, "prompt_cache_key": "uuid",
        "client_metadata": {"thread_id": "uuid"},
        "tools": [
            RESPONSES_TOOL, {"type": "namespace", "name": "multi_agent_v1", "description": "Agents.", "tools": [spawn]},
            {"type": "web_search", "external_web_access": True},
        ],
        "input": [
            {"type": "message", "id": "msg_1", "role": "developer", "content": [{"type": "input_text", "text": "You are Codex."}]},
            {"type": "message", "id": "msg_2", "role": "user", "content": [{"type": "input_text", "text": "How is it?"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": None, "encrypted_content": "c2Vsdi1tYWRl"},
            RESPONSES_CALL, {"type": "function_call_output", "id": "fco_1", "call_id": "call_1", "output": RESULT},
        ],
    }  # fmt: skip


def codex_lite(model: str) -> Json:
    """One of its default models: the tools ride in the input, in a namespace; results are lists."""
    body = codex(model)
    tools = {"type": "namespace", "name": "functions", "description": "Tools.", "tools": [RESPONSES_TOOL]}  # fmt: skip
    said = {"type": "custom_tool_call", "id": "ctc_1", "name": "exec", "namespace": "functions", "input": "1", "call_id": "call_0"}  # fmt: skip
    output = [{"type": "input_text", "text": RESULT}]
    del body["tools"]
    return {**body, "reasoning": {"effort": "medium", "context": "all_turns"}, "input": [
        {"type": "additional_tools", "id": "at_1", "role": "developer", "tools": [tools]}, *body["input"][:2],
        said, {"type": "custom_tool_call_output", "id": "ctco_1", "call_id": "call_0", "output": output},
    ]}  # fmt: skip


def droid_responses(model: str) -> Json:
    """Messages without a type, items without ids."""
    body = codex(model)
    call = {key: value for key, value in RESPONSES_CALL.items() if key != "id"}
    user = [{"role": "user", "content": [{"type": "input_text", "text": text}]} for text in ("<info>", "How is it?")]  # fmt: skip
    items = [*user, {"type": "reasoning", "encrypted_content": "c2Vsdi1tYWRl", "summary": []}, call]
    del body["client_metadata"], body["tools"][1:]
    return {
        **body, "instructions": "You are Droid.", "text": {"verbosity": "low"}, "safety_identifier": "uuid",
        "input": [*items, {"type": "function_call_output", "call_id": "call_1", "output": RESULT}],
    }  # fmt: skip


CHAT_TOOL = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": STRICT}}  # fmt: skip
CHAT_CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"city":"Zürich"}'}}  # fmt: skip


def chat(model: str, *messages: Json, **fields: Any) -> Json:
    call = {"role": "assistant", "content": None, "tool_calls": [CHAT_CALL]}
    result = {"role": "tool", "tool_call_id": "call_1", "content": RESULT}
    return {
        "model": model, "stream": True, "stream_options": {"include_usage": True}, "tools": [CHAT_TOOL],
        "messages": [*messages, {**call, **fields.pop("call", {})}, {**result, **fields.pop("result", {})}], **fields,
    }  # fmt: skip


def droid_chat(model: str) -> Json:
    info = {"role": "user", "content": [{"type": "text", "text": "<info>"}]}
    question = {"role": "user", "content": "How is it?"}
    system = {"role": "system", "content": "You are Droid."}
    return chat(model, system, info, question, max_tokens=32000, temperature=1)


def qwen_code(model: str) -> Json:
    thanks = {"role": "assistant", "content": "Thanks for the context!"}
    question = {"role": "user", "content": [{"type": "text", "text": "How is it?"}]}
    result = {"content": [{"type": "text", "text": RESULT}]}
    context = {"role": "user", "content": "<context>"}
    system = {"role": "system", "content": "You are Qwen."}
    thought = {"reasoning_content": "Hm.", "content": ""}
    return chat(model, system, context, thanks, question, call=thought, result=result, max_tokens=8000)  # fmt: skip


def pi(model: str) -> Json:
    developer = {"role": "developer", "content": "You are pi."}
    fields = {"store": False, "max_completion_tokens": 32000, "reasoning_effort": "medium"}
    return chat(model, developer, {"role": "user", "content": "How is it?"}, **fields)


GEMINI_CALL = {"functionCall": {"id": "look_1_0", "name": "look", "args": {"city": "Zürich"}}}
GEMINI_RESULT = {"functionResponse": {"id": "look_1_0", "name": "look", "response": {"output": RESULT}}}  # fmt: skip


def gemini_cli(model: str) -> Json:
    """After --resume: the result twice, and a mark in place of a signature."""
    call = {**GEMINI_CALL, "thoughtSignature": "skip_thought_signature_validator"}
    declared = {"name": "look", "description": "Looks.", "parametersJsonSchema": STRICT}
    thinking = {"includeThoughts": True, "thinkingBudget": 8192}
    return {
        "systemInstruction": {"role": "user", "parts": [{"text": "You are a CLI."}]}, "tools": [{"functionDeclarations": [declared]}],
        "generationConfig": {"temperature": 1, "topP": 0.95, "topK": 64, "thinkingConfig": thinking},
        "contents": [
            {"role": "user", "parts": [{"text": "<context>"}, {"text": "How is it?"}]}, {"role": "model", "parts": [call]},
            {"role": "user", "parts": [GEMINI_RESULT, GEMINI_RESULT]},
        ],
    }  # fmt: skip


def opencode(model: str) -> Json:
    """Of Google's AI SDK: OpenAPI schemas, thoughts sent back, no ids."""
    body = gemini_cli(model)
    declared = {"name": "look", "description": "Looks.", "parameters": SCHEMA}
    call = {"functionCall": {"name": "look", "args": {"city": "Zürich"}}, "thoughtSignature": "c2Vsdi1tYWRl"}  # fmt: skip
    result = {"functionResponse": {"name": "look", "response": {"name": "look", "content": RESULT}}}
    parts = [{"text": "Hm.", "thought": True, "thoughtSignature": "c2Vsdi1tYWRl"}, call]
    contents = [body["contents"][0], {"role": "model", "parts": parts}, {"role": "user", "parts": [result]}]  # fmt: skip
    return {
        **body, "tools": [{"functionDeclarations": [declared]}], "contents": contents,
        "toolConfig": {"functionCallingConfig": {"mode": "AUTO"}}, "generationConfig": {"maxOutputTokens": 32000},
    }  # fmt: skip


STREAM = "models/{}:streamGenerateContent?alt=sse"
BEARER = {"authorization": f"Bearer {KEY}"}
CODEX = {**BEARER, "originator": "codex_exec", "user-agent": "codex_exec/0.169.0", "accept": "text/event-stream", "session-id": "uuid"}  # fmt: skip
DROID = {**STAINLESS, "user-agent": "factory-cli/0.225.2"}
# fmt: off
CLIENTS = {
    "Claude Code":     Client("claude", {"": "/v1/messages?beta=true", "/v1": "/v1/v1/messages?beta=true"},
                              {**BEARER, **STAINLESS, "anthropic-version": "2023-06-01", "anthropic-beta": BETAS, "x-app": "cli",
                               "anthropic-dangerous-direct-browser-access": "true", "user-agent": "claude-cli/2.1.197 (external, sdk-cli)"}, claude_code),
    "Droid, claude":   Client("claude", {"": "/v1/messages", "/v1": "/v1/v1/messages"},
                              {**DROID, "x-api-key": KEY, "anthropic-version": "2023-06-01", "anthropic-beta": "interleaved-thinking-2025-05-14"},
                              droid_claude),
    "Droid, openai":   Client("responses", {"": "/responses", "/v1": "/v1/responses"}, {**DROID, **BEARER, "openai-platform": "org-x"}, droid_responses),
    "Droid, chat":     Client("chat", {"": "/chat/completions", "/v1": "/v1/chat/completions"}, {**DROID, **BEARER}, droid_chat),
    "Codex":           Client("responses", {"": "/responses", "/v1": "/v1/responses"}, CODEX, codex),
    "Codex, its own":  Client("responses", {"": "/responses", "/v1": "/v1/responses"},
                              {**CODEX, "x-openai-internal-codex-responses-lite": "true"}, codex_lite, "functions"),
    "gemini-cli":      Client("gemini", {"": f"/v1beta/{STREAM}", "/v1": f"/v1/v1beta/{STREAM}", "/v1beta": f"/v1beta/v1beta/{STREAM}"},
                              {"x-goog-api-key": KEY, "user-agent": "GeminiCLI-tui/0.61.0/m (linux; x64; terminal)"}, gemini_cli),
    "opencode":        Client("gemini", {"": f"/{STREAM}", "/v1": f"/v1/{STREAM}", "/v1beta": f"/v1beta/{STREAM}"}, {"x-goog-api-key": KEY}, opencode),
    "qwen-code":       Client("chat", {"": "/chat/completions", "/v1": "/v1/chat/completions"}, {**STAINLESS, **BEARER}, qwen_code),
    "pi":              Client("chat", {"": "/chat/completions", "/v1": "/v1/chat/completions"}, {**BEARER, **STAINLESS}, pi),
}
# fmt: on


# --- what they need


def calls_of(dialect: str, payloads: list[Json]) -> list[tuple[str, str, Json]]:
    """Return the calls of a stream as a client finds them: namespace, name, arguments."""
    if dialect == "claude":
        starts = {p["index"]: p["content_block"] for p in payloads if p["type"] == "content_block_start"}  # fmt: skip
        texts = [p for p in payloads if p.get("delta", {}).get("type") == "input_json_delta"]
        return [
            ("", block["name"], json.loads("".join(p["delta"]["partial_json"] for p in texts if p["index"] == at)))
            for at, block in starts.items() if block["type"] == "tool_use" and block["id"]
        ]  # fmt: skip
    if dialect == "responses":  # Codex takes all from the items that are done
        done = [p["item"] for p in payloads if p["type"] == "response.output_item.done"]
        return [
            (item.get("namespace", ""), item["name"], json.loads(item["arguments"]))
            for item in done
            if item["type"] == "function_call" and item["call_id"]
        ]
    if dialect == "chat":
        rows = [row["delta"] for p in payloads for row in p["choices"]]
        pieces = [piece for row in rows for piece in row.get("tool_calls") or ()]
        text = "".join(piece["function"].get("arguments") or "" for piece in pieces)
        assert {piece["index"] for piece in pieces} <= {0}
        return [("", p["function"]["name"], json.loads(text)) for p in pieces if p.get("id")]
    parts = [part for p in payloads for c in p["candidates"] for part in c["content"]["parts"]]
    calls = [part["functionCall"] for part in parts if "functionCall" in part]
    return [("", call["name"], call["args"]) for call in calls]


VALIDATE: dict[str, Callable[[bytes], Any]] = {
    "claude": validate_claude.validate,
    "chat": lambda data: validate_chat.validate_stream(data, usage=True),
    "responses": validate_responses.validate,
    "gemini": validate_gemini.validate_stream,
}


def saying(dialect: str) -> Callable[[Seen], Any]:
    """An upstream that calls the client's tool by the name that reached it."""

    def answer(seen: Seen) -> Any:
        names = re.findall(rb'"name": ?("(?:[a-z]+__)?look")', seen.body)
        frames = [frame.replace(b'"look"', names[0]) for frame in STREAMS[dialect](SAID)]
        return make_reply(frames, headers=SSE)

    return answer


@pytest.fixture
def locked(make_proxy: ProxyMaker) -> Proxy:
    return make_proxy(api_keys=[KEY])


PAIRS = [pytest.param(c, u, id=f"{c} on {u}") for c in CLIENTS for u in NAMES]


@pytest.mark.parametrize(("name", "dialect"), PAIRS)
def test_a_turn_of_each_client(locked: Proxy, upstream: Upstream, name: str, dialect: str) -> None:
    client = CLIENTS[name]
    upstream.replies.append(saying(dialect))
    path = client.paths.get("/v1", "").format(f"up-{dialect}")
    got = locked.ask(path, client.body(f"up-{dialect}"), client.headers)
    assert got.status == 200, got.body
    assert got.headers["content-type"].startswith("text/event-stream")
    if client.dialect == dialect:
        frames = STREAMS[dialect](SAID)
        assert got.body == b"".join(frames)
    else:
        VALIDATE[client.dialect](got.body)
        wanted = (client.namespace, "look", {"city": "Bern"})
        assert calls_of(client.dialect, got.payloads()) == [wanted]
    (seen,) = upstream.seen
    check_asked(client, dialect, seen)


def check_asked(client: Client, dialect: str, seen: Seen) -> None:
    """Is what reached the upstream what it takes, and nothing of it lost?"""
    body, text = seen.json(), seen.body.decode()
    assert KEY not in [*seen.headers.values(), seen.headers.get("authorization", "")[7:]]
    assert RESULT in text
    assert "How is it?" in text
    assert "openai-platform" not in seen.headers
    if client.dialect == dialect:
        return
    assert "c2Vsdi1tYWRl" not in text, "a proof that the provider never made"
    assert text.count(RESULT) == 1, "a result twice"
    if dialect == "claude":
        assert {message["role"] for message in body["messages"]} == {"user", "assistant"}
        assert text.count('"cache_control"') <= 4
        assert body["max_tokens"]
    elif dialect == "chat":
        validate_chat.validate_request(body)
    elif dialect == "responses":
        assert body["store"] is False
        assert all(item.get("type") for item in body["input"])
    else:
        assert {content["role"] for content in body["contents"]} == {"user", "model"}


@pytest.mark.parametrize("dialect", NAMES)
def test_gemini_cli_as_of_code_assist(locked: Proxy, upstream: Upstream, dialect: str) -> None:
    """With CODE_ASSIST_ENDPOINT it sends the same turn in an envelope, and wants one back."""
    client = CLIENTS["gemini-cli"]
    turn = {**client.body(""), "session_id": "uuid"}
    body = {"model": f"up-{dialect}", "project": "p", "user_prompt_id": "uuid", "request": turn}
    upstream.replies.append(saying(dialect))
    got = locked.ask("/v1internal:streamGenerateContent?alt=sse", body, BEARER)
    assert got.status == 200, got.body
    assert {frozenset(payload) for payload in got.payloads()} == {frozenset({"response"})}
    answers = [payload["response"] for payload in got.payloads()]
    VALIDATE["gemini"](b"".join(f"data: {json.dumps(a)}\r\n\r\n".encode() for a in answers))
    assert calls_of("gemini", answers) == [("", "look", {"city": "Bern"})]
    (seen,) = upstream.seen
    check_asked(client, dialect, seen)
    assert "uuid" not in seen.body.decode()


BASES = [pytest.param(c, base, id=f"{c} at {base or '/'}") for c, row in CLIENTS.items() for base in row.paths]  # fmt: skip


@pytest.mark.parametrize(("name", "base"), BASES)
def test_base_urls(locked: Proxy, upstream: Upstream, name: str, base: str) -> None:
    """With and without a version: users put either there."""
    client = CLIENTS[name]
    upstream.reply(STREAMS[client.dialect](SAID), headers=SSE)
    model = f"up-{client.dialect}"
    got = locked.ask(client.paths[base].format(model), client.body(model), client.headers)
    assert got.status == 200, got.body
    assert got.body == b"".join(STREAMS[client.dialect](SAID))


PROBES = [  # what they ask beside, or when they start
    ("HEAD", "/", {}, 200, ""),
    ("HEAD", "/api/hello", {"user-agent": "Bun/1.4.0"}, 404, ""),
    ("GET", "/v1/models?limit=1000", {**BEARER, "anthropic-version": "2023-06-01"}, 200, '"type":"model"'),
    ("GET", "/v1/models?client_version=0.169.0", {**CODEX}, 200, '{"models":[{"slug":'),
    ("GET", "/v1/responses", {**CODEX, "upgrade": "websocket", "connection": "Upgrade", "openai-beta": "responses_websockets=2026-02-06"}, 426, "POST"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "headers", "status", "says"), PROBES)
def test_probes(
    locked: Proxy, method: str, path: str, headers: dict[str, str], status: int, says: str
) -> None:
    got = locked.ask(path, headers=headers, method=method)
    assert got.status == status
    assert says in got.body.decode()


def test_claude_code_shows_our_errors(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    """It says "Not logged in" in place of any message with x-api-key in it, as codex-api-key has."""
    proxy = make_proxy(api_keys=[KEY], request_retry=0)
    client = CLIENTS["Claude Code"]
    upstream.reply({"error": {"message": "no such key"}}, 401)
    refused = [
        proxy.ask("/v1/messages", client.body("up-responses"), {**client.headers, **headers})
        for headers in ({"authorization": "Bearer no"}, {}, {})
    ]
    assert [got.status for got in refused] == [401, 401, 403]
    says = [got.json()["error"]["message"] for got in refused]
    assert not any("x-api-key" in text.lower() for text in says)
    assert "codex-api key[0] is free first" in says[2]


# --- the README's snippets, as written but for the port

ADDRESS = "http://127.0.0.1:8317"
README = (ROOT / "README.md").read_text(encoding="utf-8")
NAMED = ("claude-sonnet-5", "gpt-5.5", "gemini-2.5-pro")  # the models that it asks for


def section(title: str) -> str:
    (found,) = re.findall(rf"(?ms)^### {re.escape(title)}\n(.*?)^##", README)
    return str(found)


def block(title: str, language: str) -> str:
    (found,) = re.findall(rf"(?ms)^```{language}\n(.*?)^```", section(title))
    return str(found)


def exports(title: str) -> dict[str, str]:
    return dict(re.findall(r"(?m)^    export (\w+)=(\S+)$", section(title)))


KEYS_OF: dict[str, tuple[str, Json]] = {
    "claude": ("claude_api_key", {"api-key": "k"}),
    "responses": ("codex_api_key", {"api-key": "k"}),
    "gemini": ("gemini_api_key", {"api-key": "k"}),
    "chat": ("openai_compatibility", {"name": "up", "api-key-entries": [{"api-key": "k"}]}),
}


@pytest.fixture(params=NAMES)
def served(request: pytest.FixtureRequest, make_proxy: ProxyMaker, upstream: Upstream) -> Proxy:
    """A proxy that serves the README's models, each from an upstream of this dialect."""
    upstream.replies += [make_reply(ANSWERS[request.param](Said(text="It is sunny.")))] * 9
    names = [{"name": f"up-{request.param}", "alias": name} for name in NAMED]
    key = {**KEYS_OF[request.param][1], "base-url": upstream.url, "models": names}
    accounts: Json = {setting: [] for setting, _ in KEYS_OF.values()}
    return make_proxy(api_keys=[KEY], **{**accounts, KEYS_OF[request.param][0]: [key]})


def by_claude(url: str | None, model: str, **options: Any) -> str:
    with anthropic.Anthropic(base_url=url, max_retries=0, **options) as client:
        asked: list[Any] = [{"role": "user", "content": "How is it?"}]
        message = client.messages.create(model=model, max_tokens=99, messages=asked)
        return str(message.content[0].text)


def by_responses(url: str, model: str, **options: Any) -> str:
    with openai.OpenAI(base_url=url, max_retries=0, **options) as client:
        return str(client.responses.create(model=model, input="How is it?").output_text)


def by_chat(url: str, model: str, **options: Any) -> str:
    with openai.OpenAI(base_url=url, max_retries=0, **options) as client:
        asked: list[Any] = [{"role": "user", "content": "How is it?"}]
        answer = client.chat.completions.create(model=model, messages=asked)
        return str(answer.choices[0].message.content)


def by_gemini(url: str | None, model: str, **options: Any) -> str:
    http = genai.types.HttpOptions(base_url=url) if url else None
    with closing(genai.Client(http_options=http, **options)) as client:
        return str(client.models.generate_content(model=model, contents="How is it?").text)


def test_claude_code_s_snippet(served: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK reads the variables that Claude Code reads."""
    environ = exports("Claude Code")
    assert environ == {"ANTHROPIC_BASE_URL": ADDRESS, "ANTHROPIC_AUTH_TOKEN": KEY}
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value.replace(ADDRESS, served.url))
    (model,) = re.findall(r"claude --model (\S+)", section("Claude Code"))
    assert by_claude(None, model) == "It is sunny."


def test_gemini_cli_s_snippet(served: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    environ = exports("gemini-cli")
    assert environ.pop("CODE_ASSIST_ENDPOINT") == ADDRESS
    assert environ == {"GOOGLE_GEMINI_BASE_URL": ADDRESS, "GEMINI_API_KEY": KEY}
    monkeypatch.delenv("GOOGLE_API_KEY", raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value.replace(ADDRESS, served.url))
    settings = json.loads(block("gemini-cli", "json"))  # without them: "Invalid auth method selected"
    assert settings["security"]["auth"]["selectedType"] == "gemini-api-key"
    (model,) = re.findall(r"gemini -m (\S+)", section("gemini-cli"))
    assert by_gemini(None, model) == "It is sunny."


def test_codex_s_snippet(served: Proxy) -> None:
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    settings = toml.loads(block("Codex CLI", "toml"))
    provider = settings["model_providers"][settings["model_provider"]]
    assert provider["wire_api"] == "responses"  # it refuses "chat"
    assert f"`{provider['env_key']}={KEY} codex`" in section("Codex CLI")
    url = provider["base_url"].replace(ADDRESS, served.url)
    assert by_responses(url, settings["model"], api_key=KEY) == "It is sunny."


DROID_KINDS = {"anthropic": by_claude, "openai": by_responses, "generic-chat-completion-api": by_chat}


@pytest.mark.parametrize("kind", DROID_KINDS)
def test_droid_s_snippet(served: Proxy, kind: str) -> None:
    rows = json.loads(block("Droid", "json"))["customModels"]
    assert [row["provider"] for row in rows] == list(DROID_KINDS)
    (row,) = [row for row in rows if row["provider"] == kind]
    url = row["baseUrl"].replace(ADDRESS, served.url)
    assert DROID_KINDS[kind](url, row["model"], api_key=row["apiKey"]) == "It is sunny."


SDKS: dict[str, list[Callable[..., str]]] = {
    "anthropic": [by_claude],
    "openai": [by_responses, by_chat],
    "google-genai": [by_gemini],
}


@pytest.mark.parametrize("ending", ["", "/", "/v1"])
@pytest.mark.parametrize("sdk", SDKS)
def test_base_urls_of_sdks(served: Proxy, sdk: str, ending: str) -> None:
    """As the README has it, and as people write it; google-genai 3 puts its version in itself."""
    rows = dict(re.findall(rf"(?m)^\| (\S+) \| `{ADDRESS}(/?\w*)`", section("SDKs")))
    assert rows == {"anthropic": "", "openai": "/v1", "google-genai": ""}
    for ask in SDKS[sdk]:
        for url in {served.url + ending, served.url + rows[sdk]}:
            assert ask(url, "gpt-5.5", api_key=KEY) == "It is sunny."


def test_model_lists_of_sdks(served: Proxy) -> None:
    expected = {*NAMED, "echo"}
    with anthropic.Anthropic(base_url=served.url, api_key=KEY) as claude:
        assert {model.id for model in claude.models.list()} == expected
    for ending in ("", "/v1"):
        with openai.OpenAI(base_url=served.url + ending, api_key=KEY) as chatty:
            assert {model.id for model in chatty.models.list()} == expected
    options = genai.types.HttpOptions(base_url=served.url)
    with closing(genai.Client(api_key=KEY, http_options=options)) as google:
        assert {model.name for model in google.models.list()} == {f"models/{n}" for n in expected}


# --- the SDKs for Node

PACKAGES = ("openai", "@anthropic-ai/sdk", "@google/genai")
MODULES = Path(os.environ.get("CLIPROXY_NODE_MODULES", "node_modules")).absolute()
WITHOUT = [name for name in PACKAGES if not (MODULES / name).is_dir()]
needs_node = pytest.mark.skipif(
    not shutil.which("node") or bool(WITHOUT),
    reason=f"needs node and, in CLIPROXY_NODE_MODULES, {', '.join(WITHOUT) or 'nothing more'}",
)
NODE_CLIENTS = ("claude", "chat", "responses", "gemini")
LOST_THINKING = {"chat"}  # Chat's SDK drops fields that it does not know


def in_turn(dialect: str) -> Callable[[Seen], Any]:
    """An upstream that calls a tool until it has its result."""

    def answer(seen: Seen) -> Any:
        said = Said(text="It is sunny.") if RESULT.encode() in seen.body else SAID
        if b'"stream": true' in seen.body or b'"stream":true' in seen.body or "stream" in seen.path:
            return make_reply(STREAMS[dialect](said), headers=SSE)
        return make_reply(ANSWERS[dialect](said))

    return answer


@pytest.fixture
def looping(make_proxy: ProxyMaker, upstream: Upstream) -> Proxy:
    """A proxy before an upstream that speaks all dialects, each on its own path."""
    for path, dialect in (
        ("/v1/messages", "claude"), ("/v1/chat/completions", "chat"), ("/v1/responses", "responses"),
        ("/v1beta/models/up-gemini:generateContent", "gemini"), ("/v1beta/models/up-gemini:streamGenerateContent", "gemini"),
    ):  # fmt: skip
        upstream.routes[path] = in_turn(dialect)
    return make_proxy(api_keys=[KEY])


@needs_node
@pytest.mark.parametrize("client", NODE_CLIENTS)
def test_node_sdks(looping: Proxy, upstream: Upstream, client: str) -> None:
    """Tool loops on each upstream, streamed and whole, and the list of models."""
    script = Path(__file__).parent / "support/clients.mjs"
    models = [f"up-{name}" for name in NAMES]
    run = subprocess.run(
        ["node", script, str(MODULES), looping.url, KEY, client, *models],
        capture_output=True, text=True, timeout=50, check=False, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    told = json.loads(run.stdout)
    assert set(told.pop("models")) == {*models, "echo"}
    loop = ["I will look.", "look", {"city": "Bern"}, "It is sunny."]
    assert told == {f"{model} {how}": loop for model in models for how in ("stream", "whole")}
    for name, proof in PROOFS.items():
        second = [s.body.decode() for s in upstream.seen if RESULT.encode() in s.body and path_of(s) == name]  # fmt: skip
        assert len(second) == 2
        assert all(proof in text for text in second) or client in LOST_THINKING
        assert all(cp.PROOF_MARK.decode() not in text for text in second)


def path_of(seen: Seen) -> str:
    """The dialect of an upstream's path."""
    words = {"messages": "claude", "completions": "chat", "responses": "responses"}
    return words.get(seen.path.split("?")[0].rsplit("/", 1)[1], "gemini")
