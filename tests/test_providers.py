"""Each provider as it is asked: paths, headers, bodies and envelopes, over a running proxy."""

from __future__ import annotations

import copy
import http.client
import json
import logging
import socket
from contextlib import closing
from typing import Any

import pytest

import cliproxy as cp
from support.cost import effort
from support.dialogue import Said, claude_answer, claude_stream
from support.proxy import Got, Proxy, ProxyMaker
from support.upstream import DEADLINE, Upstream, make_reply

SSE = {"content-type": "text/event-stream"}
TALK = [{"role": "user", "content": "hi"}]
CONTENTS = [{"role": "user", "parts": [{"text": "hi"}]}]
GEMINI = "/v1beta/models/gemini-2.5-pro"
ANSWER = {
    "candidates": [{"content": {"role": "model", "parts": [{"text": "Hello"}]}, "finishReason": "STOP", "index": 0}],
    "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 2, "totalTokenCount": 5},
    "modelVersion": "gemini-2.5-pro",
}  # fmt: skip


def log_in(proxy: Proxy, type: str, **fields: Any) -> None:
    """Put a credential file into the auth dir."""
    data = {"type": type, "access_token": "tok", "email": "a@b.c", **fields}
    (proxy.auth_dir / f"{type}-x.json").write_text(json.dumps(data), encoding="utf-8")
    proxy.app.poll()


def alone(make_proxy: ProxyMaker, upstream: Upstream, provider: str, **settings: Any) -> Proxy:
    """A proxy that has no keys, and whose provider is the scripted upstream."""
    lists: dict[str, Any] = {
        name: [] for name in ("claude_api_key", "codex_api_key", "gemini_api_key", "openai_compatibility")
    }
    override = {provider: {"base-url": upstream.url, **settings.pop("override", {})}}
    return make_proxy(**{**lists, "providers": override, **settings})


def chat(proxy: Proxy, model: str, **more: Any) -> Got:
    return proxy.ask("/v1/chat/completions", {"model": model, "messages": TALK, **more})


# --- Code Assist --------------------------------------------------------------------------


@pytest.mark.parametrize("type", ["gemini", "gemini-cli"])
def test_code_assist_wraps_what_passes(make_proxy: ProxyMaker, upstream: Upstream, type: str) -> None:
    proxy = alone(make_proxy, upstream, "gemini-cli")
    log_in(proxy, type, access_token="", token={"access_token": "inner"}, project_id="proj")
    exact = (
        b'{"candidates": [{"content":{"parts":[{"text":"\\u00e9 1.50"}]},"finishReason":"STOP"}] , "x":1.50}'
    )
    upstream.reply(
        b'{"traceId":"t", "response" : ' + exact + b"}", headers={"content-type": "application/json"}
    )
    body = {"contents": CONTENTS, "future": {"a": [1.5]}}
    assert proxy.ask(f"{GEMINI}:generateContent", body).body == exact
    seen = upstream.seen[0]
    assert (seen.path, seen.headers["authorization"]) == ("/v1internal:generateContent", "Bearer inner")
    sent = seen.json()
    assert sent.pop("user_prompt_id")
    assert sent == {"model": "gemini-2.5-pro", "project": "proj", "request": body}


@pytest.mark.parametrize("piece", [1, 7, 65_536])
def test_code_assist_unwraps_streams(make_proxy: ProxyMaker, upstream: Upstream, piece: int) -> None:
    proxy = alone(make_proxy, upstream, "gemini-cli")
    log_in(proxy, "gemini")
    upstream.piece = piece
    frames = [cp.sse_frame({"response": ANSWER, "traceId": "t"}).replace(b"\n", b"\r\n") for _ in range(2)]
    upstream.reply(frames, headers=SSE)
    got = proxy.ask(f"{GEMINI}:streamGenerateContent?alt=sse", {"contents": CONTENTS})
    assert got.body == cp.sse_frame(ANSWER) * 2
    assert upstream.seen[0].path == "/v1internal:streamGenerateContent?alt=sse"
    assert "project" not in upstream.seen[0].json(), "there is none"
    upstream.reply(frames, headers=SSE)
    array = proxy.ask(f"{GEMINI}:streamGenerateContent", {"contents": CONTENTS}).json()
    assert [part["candidates"][0]["content"]["parts"][0]["text"] for part in array][:2] == ["Hello", "Hello"]


@pytest.mark.parametrize("stream", [False, True])
def test_code_assist_translated(make_proxy: ProxyMaker, upstream: Upstream, stream: bool) -> None:
    payload = {
        "filter": [
            {"models": [{"name": "gemini-*", "protocol": "gemini"}], "params": ["generationConfig.topP"]}
        ]
    }
    proxy = alone(make_proxy, upstream, "gemini-cli", payload=payload)
    log_in(proxy, "gemini", project_id="proj")
    wrapped = {"response": ANSWER, "traceId": "t"}
    upstream.replies = [make_reply([cp.sse_frame(wrapped)], headers=SSE) if stream else make_reply(wrapped)]
    got = chat(proxy, "gemini-2.5-pro", stream=stream, top_p=0.5, temperature=0.5)
    assert b"Hello" in got.body
    inner = upstream.seen[0].json()["request"]
    assert inner["contents"] == CONTENTS
    assert inner["generationConfig"] == {"temperature": 0.5}, "payload rules look into the envelope"


def test_code_assist_counts(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    proxy = alone(make_proxy, upstream, "gemini-cli")
    log_in(proxy, "gemini", project_id="proj")
    body = {"contents": CONTENTS, "safetySettings": []}
    expected = {"request": {"model": "models/gemini-2.5-pro", "contents": CONTENTS}}
    for asked in (body, {"generateContentRequest": body}):
        upstream.reply({"totalTokens": 7})
        assert proxy.ask(f"{GEMINI}:countTokens", asked).json() == {"totalTokens": 7}
    upstream.reply({"totalTokens": 7})
    counted = proxy.ask("/v1/messages/count_tokens", {"model": "gemini-2.5-pro", "messages": TALK})
    assert counted.json() == {"input_tokens": 7}
    assert [seen.json() for seen in upstream.seen] == [expected] * 3


def test_each_project_is_an_account(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    proxy = alone(make_proxy, upstream, "gemini-cli", quota_exceeded={"switch-project": True})
    log_in(proxy, "gemini", project_id="one, two,")
    assert [account.name for account in proxy.app.router.offers.accounts] == [
        "gemini-x.json::one",
        "gemini-x.json::two",
    ]
    retry = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "60s"}
    spent = {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "quota", "details": [retry]}}
    upstream.reply(spent, 429)
    upstream.reply({"response": ANSWER})
    assert proxy.ask(f"{GEMINI}:generateContent", {"contents": CONTENTS}).status == 200
    assert [seen.json()["project"] for seen in upstream.seen] == ["one", "two"]


def test_errors_of_code_assist_pass(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    proxy = alone(make_proxy, upstream, "gemini-cli")
    log_in(proxy, "gemini")
    error = {"error": {"code": 400, "status": "INVALID_ARGUMENT", "message": "no such thing"}}
    upstream.reply(error, 400)
    got = proxy.ask(f"{GEMINI}:generateContent", {"contents": CONTENTS})
    assert (got.status, got.json()) == (400, error)


# --- Code Assist, as a client wants it -----------------------------------------------------

ASSIST = {"model": "gemini-2.5-pro", "project": "p", "user_prompt_id": "u"}
INNER = {"contents": CONTENTS, "systemInstruction": {"parts": [{"text": "Be brief."}]}, "session_id": "s"}


@pytest.mark.parametrize("provider", ["gemini", "gemini-cli", "claude"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_of_code_assist(
    make_proxy: ProxyMaker, upstream: Upstream, provider: str, stream: bool
) -> None:
    keyed = {"api-key": "k", "base-url": upstream.url, "models": [{"name": "gemini-2.5-pro"}]}
    lists = {f"{name}_api_key": [keyed] if name == provider else [] for name in ("gemini", "claude")}
    proxy = alone(make_proxy, upstream, "gemini-cli", **lists)
    if provider == "gemini-cli":
        log_in(proxy, "gemini", project_id="proj")
    said = {"response": ANSWER} if provider == "gemini-cli" else ANSWER
    whole, frames = said, [cp.sse_frame(said)] * 2
    if provider == "claude":
        whole, frames = claude_answer(Said(text="Hello")), claude_stream(Said(text="Hello"))
    upstream.reply(frames if stream else whole, headers=SSE if stream else {})
    verb = "streamGenerateContent?alt=sse" if stream else "generateContent"
    got = proxy.ask(f"/v1internal:{verb}", {**ASSIST, "request": INNER})
    assert got.status == 200, got.body
    answers = got.payloads() if stream else [got.json()]
    assert {frozenset(answer) for answer in answers} == {frozenset({"response"})}
    if provider != "claude":
        assert answers == [{"response": ANSWER}] * len(answers)
    text = "".join(
        part.get("text", "") for a in answers for part in a["response"]["candidates"][0]["content"]["parts"]
    )
    assert text == "Hello" * (2 if stream and provider != "claude" else 1)
    sent = upstream.seen[0].json()
    sent = sent["request"] if provider == "gemini-cli" else sent
    assert "session_id" not in sent, "the Gemini API refuses it"
    assert "Be brief." in json.dumps(sent)


def test_code_assist_counts_for_a_client(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    models = [{"name": "gemini-2.5-pro"}]
    proxy = make_proxy(gemini_api_key=[{"api-key": "k", "base-url": upstream.url, "models": models}])
    upstream.reply({"totalTokens": 7})
    body = {"request": {"model": "models/gemini-2.5-pro", "contents": CONTENTS}}
    assert proxy.ask("/v1internal:countTokens", body).json() == {"totalTokens": 7}
    assert upstream.seen[0].path == "/v1beta/models/gemini-2.5-pro:countTokens"
    assert upstream.seen[0].json() == {"contents": CONTENTS}


SETUP = [
    ("loadCodeAssist",    lambda said: said["currentTier"]["id"] and said["cloudaicompanionProject"]),
    ("onboardUser",       lambda said: said["done"] and said["response"]["cloudaicompanionProject"]["id"]),
    ("retrieveUserQuota", lambda said: {"modelId": "gemini-3-pro-preview"} in said["buckets"]),
    ("listExperiments",   lambda said: said["experimentIds"] == said["flags"] == []),
]  # fmt: skip


@pytest.mark.parametrize(("method", "right"), SETUP)
def test_what_code_assist_is_asked_first(proxy: Proxy, method: str, right: Any) -> None:
    got = proxy.ask(f"/v1internal:{method}", {"metadata": {}})
    assert got.status == 200
    assert right(got.json())


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("frob", {}, 404),
        ("generateContent", {**ASSIST}, 400),
        ("generateContent", {**ASSIST, "request": []}, 400),
        ("generateContent", {"request": INNER}, 400),
        ("generateContent", b"{", 400),
        ("generateContent", {**ASSIST, "model": "nobody-has-it", "request": INNER}, 404),
    ],
)
def test_bad_calls_of_code_assist(proxy: Proxy, path: str, body: Any, status: int) -> None:
    got = proxy.ask(f"/v1internal:{path}", body)
    assert (got.status, got.json()["error"]["code"]) == (status, status), "in Google's words"


def test_code_assist_wants_a_key_too(make_proxy: ProxyMaker) -> None:
    proxy = make_proxy(api_keys=["secret"])
    for key, status in (("", 401), ("google-token", 401), ("secret", 200)):
        got = proxy.ask("/v1internal:loadCodeAssist", {}, {"authorization": f"Bearer {key}"})
        assert got.status == status
    assert "error" in proxy.ask("/v1internal:loadCodeAssist", {}).json()


def own_address() -> str:
    """An address of this machine that is not its loopback; nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("there is only the loopback")
        return str(probe.getsockname()[0])


def test_code_assist_is_for_this_machine(make_proxy: ProxyMaker) -> None:
    proxy = make_proxy(host="0.0.0.0", api_keys=["secret"])
    for host, status in (("127.0.0.1", 200), (own_address(), 403)):
        with closing(http.client.HTTPConnection(host, proxy.port, timeout=DEADLINE)) as client:
            headers = {"authorization": "Bearer secret"}
            client.request("POST", "/v1internal:loadCodeAssist", b"{}", headers)
            assert client.getresponse().status == status


# --- Antigravity, Vertex ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type", "says"),
    [
        ("antigravity", "providers.antigravity.enabled"),
        ("service_account", "cliproxy login vertex --import"),  # as Google hands it out
    ],
)
def test_what_is_not_used_is_said(
    make_proxy: ProxyMaker, upstream: Upstream, caplog: pytest.LogCaptureFixture, type: str, says: str
) -> None:
    caplog.set_level(logging.WARNING)
    proxy = alone(make_proxy, upstream, type)
    log_in(proxy, type, project_id="p", service_account={"private_key": "secret"})
    proxy.app.reload()
    told = [record.message for record in caplog.records if "is not used" in record.message]
    assert len(told) == 1, "once"
    assert says in told[0]
    assert proxy.app.router.offers.accounts == []


def test_antigravity_under_our_own_name(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    proxy = alone(make_proxy, upstream, "antigravity", override={"enabled": True})
    log_in(proxy, "antigravity", project_id="proj")
    for model in ("gemini-3.7-flash-high", "claude-sonnet-4-6"):
        upstream.reply([cp.sse_frame({"response": ANSWER})], headers=SSE)
        got = chat(proxy, model, max_tokens=99, tools=[{"type": "function", "function": {"name": "f"}}])
        assert got.json()["choices"][0]["message"]["content"] == "Hello"
    upstream.reply([cp.sse_frame({"response": ANSWER})], headers=SSE)
    body = {"contents": CONTENTS, "safetySettings": [], "generationConfig": {"maxOutputTokens": 9}}
    whole = proxy.ask("/v1beta/models/gemini-3.7-flash-high:generateContent", body).json()
    assert whole["candidates"][0]["content"]["parts"][0]["text"] == "Hello", "collected from a stream"
    google, claude, own = [seen.json() for seen in upstream.seen]
    assert {seen.path for seen in upstream.seen} == {"/v1internal:streamGenerateContent?alt=sse"}
    assert (google["project"], google["userAgent"], google["requestType"]) == ("proj", "cliproxy", "agent")
    assert upstream.seen[0].headers["user-agent"] == cp.USER_AGENT
    assert "maxOutputTokens" not in google["request"].get("generationConfig", {})
    assert claude["request"]["generationConfig"]["maxOutputTokens"] == 99
    assert claude["request"]["toolConfig"]["functionCallingConfig"]["mode"] == "VALIDATED"
    assert "safetySettings" not in own["request"]
    assert google["request"]["sessionId"] == claude["request"]["sessionId"]


def google_error(code: int, message: str, *details: dict[str, Any]) -> bytes:
    words = {429: "RESOURCE_EXHAUSTED", 503: "UNAVAILABLE", 403: "PERMISSION_DENIED"}
    status = words.get(code, "FAILED_PRECONDITION")
    error = {"code": code, "status": status, "message": message, "details": details}
    return json.dumps({"error": error}).encode()


RETRY = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "600s"}
FULL = google_error(429, "quota", RETRY)
TOO_OLD = "This version of Antigravity is no longer supported. Please update."
CROWDED = google_error(503, "No capacity available for model x on the server")
BASES = [  # what is answered; the client's status, who is asked, whether the account rests
    pytest.param([200],                               (200, ["one"],        False), id="the first answers"),
    pytest.param([FULL, 200],                         (200, ["one", "two"], False), id="429"),
    pytest.param([CROWDED, 200],                      (200, ["one", "two"], False), id="503, no capacity"),
    pytest.param([FULL, FULL],                        (429, ["one", "two"], True),  id="429 from both"),
    pytest.param([CROWDED, FULL],                     (429, ["one", "two"], True),  id="503, then 429"),
    pytest.param([CROWDED, CROWDED],                  (503, ["one", "two"], False), id="503 from both: tried for want of another"),
    pytest.param([google_error(503, "down for now")], (503, ["one"],        False), id="503 for another reason"),
    pytest.param([google_error(500, "oh")],           (500, ["one"],        False), id="500"),
    pytest.param([google_error(403, "no")],           (403, ["one"],        True),  id="403"),
    pytest.param([google_error(400, TOO_OLD)],        (400, ["one"],        True),  id="400, this program"),
    pytest.param([google_error(503, TOO_OLD)],        (503, ["one"],        True),  id="503, this program"),
]  # fmt: skip


def antigravity(make_proxy: ProxyMaker, upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> Proxy:
    """A proxy with one login, whose provider has two addresses."""
    row = cp.PROVIDERS["antigravity"]
    assert row.others == ("https://cloudcode-pa.googleapis.com",)
    row = row._replace(base=f"{upstream.url}/one", others=(f"{upstream.url}/two",))
    monkeypatch.setitem(cp.PROVIDERS, "antigravity", row)
    proxy = alone(make_proxy, upstream, "antigravity", override={"enabled": True, "base-url": ""})
    log_in(proxy, "antigravity", project_id="proj")
    return proxy


@pytest.mark.parametrize(("answers", "expected"), BASES)
def test_antigravity_has_two_addresses(
    make_proxy: ProxyMaker,
    upstream: Upstream,
    monkeypatch: pytest.MonkeyPatch,
    answers: list[Any],
    expected: tuple[int, list[str], bool],
) -> None:
    proxy = antigravity(make_proxy, upstream, monkeypatch)
    for answer in [*answers, 200]:
        if answer == 200:
            upstream.reply([cp.sse_frame({"response": ANSWER})], headers=SSE)
        else:
            upstream.reply(answer, json.loads(answer)["error"]["code"])
    status = chat(proxy, "claude-sonnet-4-6").status
    asked = [seen.path.split("/")[1] for seen in upstream.seen]
    rests = chat(proxy, "claude-sonnet-4-6").status != 200
    assert (status, asked, rests) == expected


@pytest.mark.parametrize(("asked", "own"), cp.DEFAULT_ALIASES["antigravity"].items())
def test_names_that_cliproxyapi_gave_antigravity_s_models(
    make_proxy: ProxyMaker, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, asked: str, own: str
) -> None:
    proxy = antigravity(make_proxy, upstream, monkeypatch)
    upstream.reply([cp.sse_frame({"response": ANSWER})], headers=SSE)
    assert chat(proxy, asked).status == 200
    assert upstream.seen[0].json()["model"] == own
    assert asked not in proxy.app.router.offers.names(), "lists have the service's own names"


def test_an_address_of_the_owner_is_the_only_one(
    make_proxy: ProxyMaker, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    antigravity(make_proxy, upstream, monkeypatch)
    proxy = alone(make_proxy, upstream, "antigravity", override={"enabled": True})
    log_in(proxy, "antigravity", project_id="proj")
    upstream.reply(FULL, 429)
    assert chat(proxy, "claude-sonnet-4-6").status == 429
    assert len(upstream.seen) == 1


@pytest.mark.parametrize(
    ("action", "query"), [("generateContent", ""), ("streamGenerateContent", "?alt=sse"), ("countTokens", "")]
)
def test_vertex_keys(make_proxy: ProxyMaker, upstream: Upstream, action: str, query: str) -> None:
    models = [{"name": "gemini-3-pro", "alias": "pro"}]
    proxy = make_proxy(vertex_api_key=[{"api-key": "vk", "base-url": upstream.url, "models": models}])
    upstream.reply([cp.sse_frame(ANSWER)], headers=SSE) if "stream" in action else upstream.reply(ANSWER)
    assert proxy.ask(f"/v1beta/models/pro:{action}{query}", {"contents": CONTENTS}).status == 200
    seen = upstream.seen[0]
    assert seen.path == f"/v1/publishers/google/models/gemini-3-pro:{action}{query}"
    assert seen.headers["x-goog-api-key"] == "vk"


# --- Kimi, xAI, iFlow ---------------------------------------------------------------------

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
DONE = {"role": "tool", "tool_call_id": "c1", "content": "ok"}
KIMI = [
    ({"role": "assistant", "content": "text", "tool_calls": [CALL]}, "text"),
    ({"role": "assistant", "content": None, "tool_calls": [CALL]}, "..."),
    ({"role": "assistant", "content": "x", "reasoning_content": "own", "tool_calls": [CALL]}, "own"),
]


@pytest.mark.parametrize(("message", "expected"), KIMI)
def test_kimi_gets_reasoning_with_calls(
    make_proxy: ProxyMaker, upstream: Upstream, message: dict[str, Any], expected: str
) -> None:
    proxy = alone(make_proxy, upstream, "kimi")
    log_in(proxy, "kimi", device_id="d")
    upstream.reply({"choices": [{}]})
    more = [{"role": "assistant", "content": None, "tool_calls": [CALL]}, DONE]
    chat(proxy, "kimi-k2.5", messages=[*TALK, message, DONE, *more], stream=True)
    sent = upstream.seen[0].json()
    calls = [m["reasoning_content"] for m in sent["messages"] if m.get("tool_calls")]
    assert calls == [expected, "own" if expected == "own" else "..."]
    assert (sent["model"], sent["stream_options"]) == ("k2.5", {"include_usage": True})


EFFORTS = [("high", {"type": "enabled", "effort": "high"}), ("none", {"type": "disabled"}), ("", None)]


@pytest.mark.parametrize(("effort", "expected"), EFFORTS)
def test_kimi_s_thinking(make_proxy: ProxyMaker, upstream: Upstream, effort: str, expected: Any) -> None:
    proxy = alone(make_proxy, upstream, "kimi")
    log_in(proxy, "kimi", device_id="d")
    upstream.replies = [make_reply({"choices": []})] * 2
    chat(proxy, "kimi-k2.5", **({"reasoning_effort": effort} if effort else {}))
    chat(proxy, f"kimi-k2.5({effort})" if effort else "kimi-k2.5")
    for seen in upstream.seen:
        assert seen.json().get("thinking") == expected
        assert "reasoning_effort" not in seen.json()
        assert (seen.headers["x-msh-platform"], seen.headers["user-agent"].partition("/")[0]) != (
            "kimi_cli",
            "KimiCLI",
        )


@pytest.mark.parametrize(
    ("model", "expected"), [("grok-4.6", {"effort": "low", "x": 1}), ("grok-build-0.1", {"x": 1})]
)
def test_xai_s_bodies(make_proxy: ProxyMaker, upstream: Upstream, model: str, expected: Any) -> None:
    proxy = alone(make_proxy, upstream, "xai")
    log_in(proxy, "xai", sub="s")
    upstream.reply({"id": "r", "output": []})
    more = {
        "reasoning": {"effort": "low", "x": 1},
        "prompt_cache_retention": "24h",
        "prompt_cache_key": "conv",
    }
    assert proxy.ask("/v1/responses", {"model": model, "input": "hi", **more}).status == 200
    seen = upstream.seen[0]
    assert seen.json() == {"model": model, "input": "hi", "reasoning": expected, "prompt_cache_key": "conv"}
    assert seen.headers["x-grok-conv-id"] == "conv"


IFLOW = [
    ("glm-4.6", "high", {"chat_template_kwargs": {"enable_thinking": True, "clear_thinking": False}}),
    ("glm-4.6", "none", {"chat_template_kwargs": {"enable_thinking": False}}),
    ("deepseek-v3.2", "low", {"chat_template_kwargs": {"enable_thinking": True}}),
    ("minimax-m2", "low", {"reasoning_split": True}),
    ("qwen3-max", "low", {}),
]


@pytest.mark.parametrize(("model", "effort", "expected"), IFLOW)
def test_iflow_s_switches(
    make_proxy: ProxyMaker, upstream: Upstream, model: str, effort: str, expected: dict[str, Any]
) -> None:
    alias = [{"name": model, "alias": "m"}]
    proxy = alone(make_proxy, upstream, "iflow", oauth_model_alias={"iflow": alias})
    log_in(proxy, "iflow", api_key="key-of-the-account")
    upstream.reply({"choices": [{}]})
    chat(proxy, "m", reasoning_effort=effort)
    seen = upstream.seen[0]
    assert seen.json() == {"model": model, "messages": TALK, **expected}
    assert (seen.path, seen.headers["authorization"]) == ("/chat/completions", "Bearer key-of-the-account")


# --- what is none, what is odd --------------------------------------------------------------

NO_REQUESTS: list[tuple[str, str, dict[str, Any]]] = [
    ("codex", "/v1/responses", {"model": "gpt-5.5", "input": [1]}),
    ("codex", "/v1/responses", {"model": "gpt-5.5", "input": "x", "reasoning": 3}),
    ("kimi", "/v1/chat/completions", {"model": "kimi-k2.5", "messages": 5}),
    ("kimi", "/v1/chat/completions", {"model": "kimi-k2.5", "messages": ["tool_calls"]}),
    ("qwen", "/v1/chat/completions", {"model": "coder-model", "messages": ["developer"]}),
]


@pytest.mark.parametrize(("type", "path", "body"), NO_REQUESTS)
def test_what_is_no_request_is_the_client_s_fault(
    make_proxy: ProxyMaker, upstream: Upstream, type: str, path: str, body: dict[str, Any]
) -> None:
    proxy = alone(make_proxy, upstream, type)
    log_in(proxy, type)
    got = proxy.ask(path, body)
    assert (got.status, got.json()["error"]["type"]) == (400, "invalid_request_error")
    assert upstream.seen == []


ODD: dict[str, tuple[set[str], dict[str, Any]]] = {  # preset -> fields that are left out, that are changed
    "deepseek": ({"max_completion_tokens", "store"}, {"max_tokens": 9}),
    "groq": ({"store"}, {}),
    "mistral": ({"max_completion_tokens", "store", "stream_options", "prompt_cache_key", "verbosity"}, {"max_tokens": 9}),
    "openai": (set(), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_what_a_host_does_not_know_is_said_otherwise(
    make_proxy: ProxyMaker, upstream: Upstream, name: str
) -> None:
    entry = {"name": name, "api-key-entries": [{"api-key": "k"}]}
    proxy = alone(make_proxy, upstream, name, openai_compatibility=[entry])
    body: dict[str, Any] = {"model": "m", "max_completion_tokens": 9, "future": 1.50, "stream": True}
    body.update(stream_options={"include_usage": True}, store=False, prompt_cache_key="k", verbosity="low")
    body["messages"] = [{"role": "developer", "content": "x", "future": 1}, *TALK]
    upstream.reply({"choices": [{}]})
    assert proxy.ask("/v1/chat/completions", body).status == 200
    gone, changed = ODD[name]
    role = "developer" if name == "openai" else "system"
    messages = [{**body["messages"][0], "role": role}, *TALK]
    kept = {key: value for key, value in body.items() if key not in gone}
    assert upstream.seen[0].json() == {**kept, "messages": messages, **changed}


def test_what_a_host_knows_passes_as_it_came(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    entry = {"name": "deepseek", "api-key-entries": [{"api-key": "k"}]}
    proxy = alone(make_proxy, upstream, "deepseek", openai_compatibility=[entry])
    sent = b'{ "messages": [{"role":"user","content":"hi"}], "model": "m", "x":1.50}'
    upstream.reply({"choices": [{}]})
    proxy.ask("/v1/chat/completions", sent)
    assert upstream.seen[0].body == sent


# --- headers ------------------------------------------------------------------------------


def test_headers_of_a_key(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    headers = {"X-Team": "blue", "X-Copy": "$X-From-Client", "User-Agent": "mine/1", "X-Gone": "$X-Missing"}
    entry = {"api-key": "k", "base-url": upstream.url, "models": [{"name": "m"}], "headers": headers}
    proxy = make_proxy(claude_api_key=[entry])
    upstream.replies = [make_reply({"ok": 1})] * 2
    body = {"model": "m", "messages": TALK, "max_tokens": 9}
    proxy.ask("/v1/messages", body, {"x-from-client": "hello", "user-agent": "client/9"})
    chat(proxy, "m")
    same, other = (seen.headers for seen in upstream.seen)
    assert (same["x-team"], same["x-copy"], same["user-agent"]) == ("blue", "hello", "mine/1")
    assert (other["x-team"], other["user-agent"], "x-gone" in other) == ("blue", "mine/1", False)


CLAUDE_KEYS = [  # key, base URL, the header it goes in, whether that of a login goes along
    pytest.param("sk-ant-api03-x", "", "x-api-key", False, id="a key, at home"),
    pytest.param("sk-ant-api03-x", "https://claude.example", "authorization", False, id="a key, elsewhere"),
    pytest.param("sk-ant-api03-x", "http://api.anthropic.com", "authorization", False, id="a key, without TLS"),
    pytest.param("sk-ant-oat01-x", "", "authorization", True, id="a token in the place of a key"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "base", "header", "beta"), CLAUDE_KEYS)
def test_where_anthropic_wants_a_key(key: str, base: str, header: str, beta: bool) -> None:
    """Without a socket: its own host is not to be reached from here."""
    account = cp.Account("a", cp.PROVIDERS["claude"], {"api-key": key, "base-url": base})
    errand = cp.Errand(cp.DIALECTS["claude"], "generate", b"{}")
    headers = cp.upstream_headers(errand, account, account.provider, same=True)
    assert headers[header].removeprefix("Bearer ") == key
    assert len({"x-api-key", "authorization"} & headers.keys()) == 1
    assert (headers.get("anthropic-beta") == "oauth-2025-04-20") is beta


# --- the rest of OpenAI's API -------------------------------------------------------------

FORM = (
    b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n\x00\x01\r\n\xff'
    b'\r\n--xyz\r\nContent-Disposition: form-data; name="model"\r\n\r\nasked\r\n--xyz--\r\n'
)
MULTIPART = {"content-type": "multipart/form-data; boundary=xyz"}
JSON_CALLS = ["/embeddings", "/images/generations", "/audio/speech"]
FORM_CALLS = ["/images/edits", "/images/variations", "/audio/transcriptions", "/audio/translations"]
OPENAI_LIKE = ["codex-api-key", "openai-compatibility"]


def openai_like(make_proxy: ProxyMaker, upstream: Upstream, setting: str, **more: Any) -> Proxy:
    row = {"name": "real", "alias": "asked"}
    entry = {"api-key": "k", "name": "up", "base-url": f"{upstream.url}/v1", "models": [row]}
    entry["api-key-entries"] = [{"api-key": "k"}]
    return make_proxy(**{setting.replace("-", "_"): [entry]}, **more)


@pytest.mark.parametrize("setting", OPENAI_LIKE)
@pytest.mark.parametrize("path", JSON_CALLS)
def test_other_calls_pass(make_proxy: ProxyMaker, upstream: Upstream, setting: str, path: str) -> None:
    rule = {"models": [{"name": "*"}], "params": {"temperature": 1}}
    proxy = openai_like(make_proxy, upstream, setting, payload={"override": [rule]})
    upstream.reply(b"\x00\xff audio", headers={"content-type": "audio/mpeg", "x-extra": "1"})
    got = proxy.ask(f"/v1{path}", b'{"input": "hi", "model" : "asked", "x":1.50}')
    assert (got.status, got.body, got.headers["content-type"]) == (200, b"\x00\xff audio", "audio/mpeg")
    seen = upstream.seen[0]
    assert (seen.path, seen.body) == (f"/v1{path}", b'{"input": "hi", "model" : "real", "x":1.50}')
    assert seen.headers["authorization"] == "Bearer k"


@pytest.mark.parametrize("path", FORM_CALLS)
def test_forms_pass(make_proxy: ProxyMaker, upstream: Upstream, path: str) -> None:
    proxy = openai_like(make_proxy, upstream, "openai-compatibility")
    upstream.reply({"error": {"message": "slow down"}}, 429)
    upstream.reply({"text": "hello"})
    assert proxy.ask(path, FORM, MULTIPART).status == 429
    proxy = openai_like(make_proxy, upstream, "openai-compatibility")
    assert proxy.ask(f"/v1{path}", FORM, MULTIPART).json() == {"text": "hello"}
    seen = upstream.seen[1]
    assert seen.body == FORM.replace(b"asked", b"real")
    assert seen.headers["content-type"] == MULTIPART["content-type"]


def test_a_form_without_a_model(proxy: Proxy) -> None:
    got = proxy.ask("/v1/audio/transcriptions", FORM.replace(b'"model"', b'"other"'), MULTIPART)
    assert (got.status, got.json()["error"]["param"]) == (400, "model")


TRAPS = [  # for a search that begins anew at each place where a field may begin
    pytest.param(b"\r\ncontent-disposition:;name=model" * 30_000, id="many fields"),
    pytest.param(b"\r\ncontent-disposition:" + b";name=model" * 90_000, id="many names"),
    pytest.param(b"\r\ncontent-disposition:;name=model\r\n" + b"\r\nx" * 300_000, id="many lines"),
    pytest.param(b"\r\ncontent-disposition:;" + b" " * 1_000_000, id="many spaces"),
]


@pytest.mark.parametrize("body", TRAPS)
def test_a_form_is_searched_in_one_go(proxy: Proxy, body: bytes) -> None:
    def search() -> None:
        assert proxy.ask("/v1/images/edits", body, MULTIPART).status == 400

    assert effort(search) < 60


NAMES = [
    pytest.param("x" * 4_000_000, id="endless"),
    pytest.param("gemini-" + "9" * 1_000, id="long"),
    pytest.param("gemini-\ud800", id="half a character"),
    pytest.param("gemini-\n", id="two lines"),
    pytest.param("", id="empty"),
    pytest.param(5, id="a number"),
]


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/chat/completions"])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_name_of_a_model(make_proxy: ProxyMaker, upstream: Upstream, name: Any, path: str) -> None:
    proxy = make_proxy(gemini_api_key=[{"api-key": "k", "base-url": upstream.url}])

    def ask() -> None:
        got = proxy.ask(path, {"model": name, "max_tokens": 9, "messages": TALK})
        assert (got.status, got.json()["error"]["message"]) == (400, "'model' is missing or no name")

    assert effort(ask) < 30


@pytest.mark.parametrize("model", ["up-claude", "up-gemini", "echo"])
@pytest.mark.parametrize("path", [*JSON_CALLS, *FORM_CALLS])
def test_other_calls_are_for_openai_s_dialects(proxy: Proxy, path: str, model: str) -> None:
    got = proxy.ask(f"/v1{path}", {"model": model, "input": "hi"})
    assert (got.status, got.json()["error"]["code"]) == (501, "not_implemented")


def test_embeddings_by_openai_s_sdk(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    openai = pytest.importorskip("openai")
    lists: dict[str, Any] = {
        name: [] for name in ("claude_api_key", "codex_api_key", "gemini_api_key", "openai_compatibility")
    }
    own = {"openai": {"base-url": f"{upstream.url}/v1"}}
    proxy = make_proxy({"OPENAI_API_KEY": "sk-1"}, providers=own, **lists)
    row = {"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}
    usage = {"prompt_tokens": 1, "total_tokens": 1}
    upstream.reply({"object": "list", "data": [row], "model": "text-embedding-3-small", "usage": usage})
    upstream.reply({"created": 1, "data": [{"b64_json": "AA=="}]})
    with openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="k") as client:
        found = client.embeddings.create(model="text-embedding-3-small", input="hi", encoding_format="float")
        assert found.data[0].embedding == [0.5, 0.25]
        picture = client.images.edit(
            model="gpt-image-1", image=("a.png", b"\x89PNG", "image/png"), prompt="x"
        )
        assert picture.data[0].b64_json == "AA=="
    assert [seen.path for seen in upstream.seen] == ["/v1/embeddings", "/v1/images/edits"]


@pytest.mark.parametrize("all", [False, True])
def test_passthrough_headers(make_proxy: ProxyMaker, upstream: Upstream, all: bool) -> None:
    proxy = make_proxy(passthrough_headers=all)
    headers = {"x-new": "1", "set-cookie": "a=b", "request-id": "r", "content-type": "application/json"}
    upstream.reply(b'{"ok":1}', headers=headers)
    upstream.reply(b'{"type":"error","error":{"type":"x","message":"m"}}', 400, headers)
    for _ in range(2):
        got = proxy.ask("/v1/messages", {"model": "up-claude", "messages": TALK})
        assert ("x-new" in got.headers, "set-cookie" in got.headers) == (all, False)
        assert (got.headers["request-id"], got.headers["content-length"]) == ("r", str(len(got.body)))


# --- payload rules --------------------------------------------------------------------------

CASE = cp.PayloadCase(("gpt-5", "my/gpt", "my/gpt(high)"), "openai", "claude", {"x-tier": "paid-7"})
BODY: dict[str, Any] = {"model": "gpt-5", "a": {"b": 1}, "tools": [{"name": "x"}]}
ANY = [{"name": "*"}]


def apply(rules: Any, body: Any = BODY, case: cp.PayloadCase = CASE, original: Any = None) -> Any:
    """Apply rules as they stand in a config file."""
    before = copy.deepcopy(body)
    rules = cp.parse_config(None, json.dumps({"payload": rules}))["payload"]
    got = cp.apply_payload(rules, body, body if original is None else original, case)
    assert body == before
    return got


RULES = [
    pytest.param({"default": {"c": 1}}, {**BODY, "c": 1}, id="default"),
    pytest.param({"default": {"a.b": 2}}, BODY, id="default of what is there"),
    pytest.param({"default": {"tools.-1": 2}}, {**BODY, "tools": [{"name": "x"}, 2]}, id="default appends"),
    pytest.param({"default": {"tools.#.strict": True}}, BODY, id="default never creates by a query"),
    pytest.param({"default-raw": {"c": '{"d": [1]}'}}, {**BODY, "c": {"d": [1]}}, id="raw default"),
    pytest.param({"override": {"a.b": 2}}, {**BODY, "a": {"b": 2}}, id="override"),
    pytest.param({"override": {"a.b": 1}}, BODY, id="override with the same"),
    pytest.param({"override": {"c": "[1]"}}, {**BODY, "c": "[1]"}, id="a text is a text"),
    pytest.param({"override-raw": {"c": "[1]"}}, {**BODY, "c": [1]}, id="raw override"),
    pytest.param({"override-raw": {"c": '"x"'}}, {**BODY, "c": "x"}, id="raw text"),
    pytest.param({"override-raw": {"c": '"1"'}}, {**BODY, "c": "1"}, id="raw text of digits"),
    pytest.param({"override-raw": {"c": 5}}, {**BODY, "c": 5}, id="raw value that is no text"),
    pytest.param(
        {"override-raw": {"c": "1", "d": "{"}}, {**BODY, "c": 1}, id="a bad raw value leaves the others"
    ),
    pytest.param({"filter": ["a.b", "nothing.x"]}, {**BODY, "a": {}}, id="filter"),
    pytest.param({"filter": ["tools.#.name"]}, BODY, id="filter by a query is refused"),
    pytest.param({"filter": None}, BODY, id="no parameters"),
]


@pytest.mark.parametrize(("rules", "wanted"), RULES)
def test_rule(rules: dict[str, Any], wanted: Any) -> None:
    got = apply({kind: [{"models": ANY, "params": params}] for kind, params in rules.items()})
    assert got == wanted
    assert (got is BODY) is (wanted == BODY)


def test_order_and_who_wins() -> None:
    def rules(*params: Any) -> list[Any]:
        return [{"models": ANY, "params": each} for each in params]

    every = {
        "filter": [{"models": ANY, "params": ["gone"]}],
        "override-raw": rules({"o": "3", "gone": "1"}),
        "override": rules({"o": 1}, {"o": 2, "p": 2}, {"p": 3}),
        "default-raw": rules({"d": "9", "e": "4"}),
        "default": rules({"d": 1}, {"d": 2, "o": 0}),
    }
    assert apply(every, {}) == {"d": 1, "o": 3, "p": 3, "e": 4}


def test_a_default_looks_at_what_was_first_translated() -> None:
    rule = {"default": [{"models": ANY, "params": {"a": 1}}]}
    assert apply(rule, {"a": 5}, original={}) == {"a": 1}
    assert apply(rule, {}, original={"a": 5}) == {}


ENTRIES: list[tuple[dict[str, Any], bool]] = [
    ({"name": "gpt-*"}, True),
    ({"name": "GPT-*"}, False),
    ({"name": "my/gpt"}, True),
    ({"name": "my/gpt(high)"}, True),
    ({"name": "other"}, False),
    ({}, False),
    ({"name": "*", "protocol": "OpenAI"}, True),
    ({"name": "*", "protocol": ""}, True),
    ({"name": "*", "protocol": "gemini"}, False),
    ({"name": "*", "from-protocol": "claude"}, True),
    ({"name": "*", "from-protocol": "openai"}, False),
    ({"name": "*", "headers": {"X-Tier": "paid-*"}}, True),
    ({"name": "*", "headers": {"X-Tier": "paid-*", "X-No": "*"}}, False),
    ({"name": "*", "headers": {"X-Tier": "free"}}, False),
    ({"name": "*", "match": {"a.b": 1}}, True),
    ({"name": "*", "match": [{"a.b": 1}, {"model": "gpt-5"}]}, True),
    ({"name": "*", "match": {"a.b": 1, "model": "x"}}, False),
    ({"name": "*", "match": {"a.b": True}}, False),
    ({"name": "*", "match": {"none": None}}, False),
    ({"name": "*", "match": {'tools.#(name=="x").name': "x"}}, True),
    ({"name": "*", "not-match": {"a.b": 2}}, True),
    ({"name": "*", "not-match": [{"none": 1}]}, True),
    ({"name": "*", "not-match": {"a.b": 2, "model": "gpt-5"}}, False),
    ({"name": "*", "exist": ["a", "a.b"]}, True),
    ({"name": "*", "exist": ["a", "none"]}, False),
    ({"name": "*", "exist": ['tools.#(name=="x")']}, True),
    ({"name": "*", "not-exist": ["none"]}, True),
    ({"name": "*", "not-exist": ["none", "a"]}, False),
    ({"name": "*", "exist": [], "match": {}, "headers": None}, True),
]


@pytest.mark.parametrize(("entry", "fits"), ENTRIES)
def test_condition(entry: dict[str, Any], fits: bool) -> None:
    got = apply({"override": [{"models": [entry], "params": {"c": 1}}]})
    assert (got is not BODY) is fits


def test_every_condition_is_tried() -> None:
    assert {key for entry, _ in ENTRIES for key in entry} == {*cp.PAYLOAD_CONDITIONS, "name"}


def test_any_of_the_models_will_do_and_none_never_does() -> None:
    rule = {"params": {"c": 1}}
    assert apply({"override": [{**rule, "models": [{"name": "x"}, {"name": "gpt-5"}]}]})["c"] == 1
    assert apply({"override": [{**rule, "models": []}]}) is BODY
    assert apply({"override": [rule]}) is BODY
    assert apply({}) is BODY
    assert apply({"override": None}) is BODY


def test_paths_inside_a_wrapped_body() -> None:
    case = CASE._replace(root="request")
    body = {"project": "p", "request": {"a": 1}}
    rules = {"override": [{"models": [{"name": "*", "exist": ["a"]}], "params": {"b.c": 1}}]}
    assert apply(rules, body, case) == {"project": "p", "request": {"a": 1, "b": {"c": 1}}}
    dotted = {
        "override": [{"models": ANY, "params": {".b.c": 1}}],
        "filter": [{"models": ANY, "params": [".a"]}],
    }
    assert apply(dotted, body, case) == {"project": "p", "request": {"b": {"c": 1}}}
    assert apply({"filter": [{"models": ANY, "params": ["project"]}]}, body, case) is body
    assert apply({"override": [{"models": ANY, "params": {".b": 1}}]}, {}) == {"": {"b": 1}}
