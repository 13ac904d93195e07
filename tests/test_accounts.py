"""Accounts in the running proxy: tokens that are renewed, who is asked, who rests, and for how long."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

import cliproxy as cp
from support.accounts import CLAUDE_ASK, HI, House, Json
from support.proxy import Proxy, ProxyMaker
from support.upstream import Reply, Seen, Upstream, make_reply

# Files of other providers

# fmt: off
FILES = [
    pytest.param("kimi", {"device_id": "d" * 32}, "/v1/chat/completions", "/v1/chat/completions", "kimi-k2.5", "k2.5", id="kimi"),
    pytest.param("kimi", {"device_id": "d" * 32}, "/v1/messages",         "/v1/messages",         "kimi-k2.5", "k2.5", id="kimi, Claude's dialect"),
    pytest.param("qwen", {},                      "/v1/chat/completions", "/chat/completions",    "coder-model", "coder-model", id="qwen"),
    pytest.param("iflow", {"api_key": "tok", "access_token": "other"}, "/v1/chat/completions", "/chat/completions", "glm-4.6", "glm-4.6", id="iflow"),
    pytest.param("xai",  {"sub": "s"},            "/v1/responses",        "/responses",           "grok-4.5", "grok-4.5", id="xai"),
]
# fmt: on


@pytest.mark.parametrize(("type", "fields", "path", "upstream_path", "model", "sent"), FILES)
def test_files_of_other_providers(  # noqa: PLR0917 -- a column each
    make_proxy: ProxyMaker,
    upstream: Upstream,
    type: str,
    fields: Json,
    path: str,
    upstream_path: str,
    model: str,
    sent: str,
) -> None:
    names = {type: {"base-url": upstream.url}}
    proxy = make_proxy(providers=names)
    data = {
        "type": type,
        "access_token": "tok",
        "refresh_token": "r",
        "expired": cp.write_time(time.time() + 3600),
        **fields,
    }
    (proxy.auth_dir / f"{type}-x.json").write_text(json.dumps(data))
    proxy.app.poll()
    upstream.routes[upstream_path] = make_reply({"ok": True})
    body = (
        {"model": model, "messages": HI, "max_tokens": 9}
        if "responses" not in path
        else {"model": model, "input": "hi", "stop": "x"}
    )
    assert proxy.ask(path, body).status == 200
    (seen,) = upstream.seen
    assert (seen.path.partition("?")[0], seen.json()["model"]) == (upstream_path, sent)
    assert seen.headers["authorization"] == "Bearer tok"
    assert "stop" not in seen.json()
    assert ("x-msh-device-id" in seen.headers) == (type == "kimi")


def test_every_login_can_be_used() -> None:
    assert set(cp.LOGINS) <= set(cp.FILE_PROVIDERS)
    rows = [name for names in cp.FILE_PROVIDERS.values() for name in names if name]
    assert set(rows) <= set(cp.PROVIDERS)


def test_qwen_goes_where_its_login_said(tmp_path: Path) -> None:
    data = {"type": "qwen", "access_token": "t", "resource_url": "portal.example.com"}
    credential = cp.Credential("qwen-x.json", tmp_path, "qwen", data, (0, 0, 0))
    (account,) = cp.find_accounts(cp.load_config(None), [credential], {})
    assert (account.origin.host, account.path) == ("portal.example.com", "/v1")


def test_fields_of_files(tmp_path: Path) -> None:
    data = {
        "type": "claude", "access_token": "t", "priority": "3", "weight": "2", "request_retry": 1, "disable-cooling": True,
        "prefix": "work", "excluded_models": ["claude-3*"], "excluded-models": ["*"],
    }  # fmt: skip
    credential = cp.Credential("claude-x.json", tmp_path, "claude", data, (0, 0, 0))
    (account,) = cp.find_accounts(cp.load_config(None), [credential], {})
    assert (account.priority, account.weight, account.retries, account.disable_cooling) == (3, 2, 1, True)
    assert (account.prefix, account.excluded) == ("work", ["claude-3*"])


UNFIT = [
    pytest.param("excluded_models", 5, id="no list"),
    pytest.param("excluded_models", [[]], id="no texts in it"),
    pytest.param("headers", "x", id="no mapping"),
    pytest.param("model_aliases", ["x"], id="no mappings in it"),
    pytest.param("model_aliases", {"a": "b"}, id="a mapping of aliases"),
    pytest.param("request_scoped_errors", ["x"], id="no rule"),
    pytest.param("prefix", {}, id="no text"),
    pytest.param("proxy_url", "10.0.0.1:8080", id="no proxy"),
    pytest.param("base_url", "localhost:8080", id="no URL"),
    pytest.param("resource_url", "http://[", id="no URL that is made"),
]


@pytest.mark.parametrize(("key", "value"), UNFIT)
def test_a_file_that_says_what_cannot_be_stops_nobody(
    house: House, caplog: pytest.LogCaptureFixture, key: str, value: Any
) -> None:
    kind = "qwen" if key == "resource_url" else "claude"
    unfit = {"type": kind, "access_token": "t", key: value}
    (house.proxy.auth_dir / "unfit.json").write_text(json.dumps(unfit))
    house.proxy.app.poll()
    names = {account.name for account in house.proxy.app.router.accounts()}
    assert "unfit.json" not in names
    assert names, "of the others"
    assert "unfit.json is not used: " in caplog.text


def test_what_a_file_says_that_means_nothing_here(tmp_path: Path) -> None:
    data = {
        "type": "claude",
        "access_token": "t",
        "models": 5,
        "quirks": 5,
        "also": [],
        "priority": "x",
        "weight": [],
    }
    credential = cp.Credential("claude-x.json", tmp_path, "claude", data, (0, 0, 0))
    (account,) = cp.find_accounts(cp.load_config(None), [credential], {})
    assert (account.models, account.priority, account.weight) == (None, 0, 1)


def test_an_endpoint_with_a_key_that_nobody_knows() -> None:
    """It is kept, with a warning: there may be anything in it."""
    row = {"name": "up", "base-url": "http://h/v1", "api-key-entries": [{"api-key": "k", "models": [{}]}]}
    config = cp.parse_config(None, json.dumps({"openai-compatibility": [row]}))
    assert [account.key for account in cp.find_accounts(config, [], {})] == ["k"]


# Google's Code Assist

WRAPPED = {
    "response": {
        "candidates": [{"content": {"role": "model", "parts": [{"text": "hello"}]}, "finishReason": "STOP"}],
        "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 1, "totalTokenCount": 4},
    },
    "traceId": "t",
}
WRAPPED_STREAM = f"data: {json.dumps(WRAPPED)}\r\n\r\n".encode()
GEMINI_ASK = {
    "contents": [{"role": "user", "parts": [{"text": "hi"}]}],
    "generationConfig": {"maxOutputTokens": 9},
}


class CodeAssist:
    """A proxy with one Google login of some projects, the upstream being Code Assist."""

    def __init__(
        self, make_proxy: ProxyMaker, upstream: Upstream, type: str, projects: str, **config: Any
    ) -> None:
        self.upstream, self.spent = upstream, ""
        upstream.routes["/v1internal:generateContent"] = self.serve
        upstream.routes["/v1internal:streamGenerateContent"] = self.serve
        names = {name: {"base-url": upstream.url, "enabled": True} for name in ("gemini-cli", "antigravity")}
        self.proxy: Proxy = make_proxy(providers=names, gemini_api_key=[], request_retry=0, **config)
        token = {"access_token": "tok", "refresh_token": "r", "expiry": cp.write_time(time.time() + 3600)}
        data = {"type": type, "email": "a@b.c", "project_id": projects, "token": token}
        (self.proxy.auth_dir / f"{type}-a.json").write_text(json.dumps(data))
        self.proxy.app.poll()

    def serve(self, seen: Seen) -> Reply:
        if seen.json()["project"] == self.spent:
            details = [{"@type": "x/google.rpc.RetryInfo", "retryDelay": "30s"}]
            error = {"code": 429, "message": "spent", "status": "RESOURCE_EXHAUSTED", "details": details}
            return make_reply({"error": error}, 429)
        if "stream" in seen.path:
            return make_reply(WRAPPED_STREAM, headers={"content-type": "text/event-stream"})
        return make_reply(WRAPPED)


@pytest.mark.parametrize("type", ["gemini", "antigravity"])
@pytest.mark.parametrize("stream", [False, True])
def test_code_assist(make_proxy: ProxyMaker, upstream: Upstream, type: str, stream: bool) -> None:
    model = "gemini-3-flash" if type == "antigravity" else "gemini-2.5-pro"
    google = CodeAssist(make_proxy, upstream, type, "proj-1")
    action = "streamGenerateContent?alt=sse" if stream else "generateContent"
    got = google.proxy.ask(f"/v1beta/models/{model}:{action}", GEMINI_ASK)
    assert got.status == 200, got.body
    answer = got.payloads()[0] if stream else got.json()
    assert answer["candidates"][0]["content"]["parts"][0]["text"] == "hello"
    assert "traceId" not in answer
    got = google.proxy.ask("/v1/messages", {**CLAUDE_ASK, "model": model, "stream": stream})
    assert got.status == 200, got.body
    assert b"hello" in got.body
    for seen in upstream.seen:
        body = seen.json()
        assert (body["project"], body["model"]) == ("proj-1", model)
        assert body["request"]["contents"][0]["parts"][0]["text"] == "hi"
        assert seen.headers["authorization"] == "Bearer tok"
        assert ("maxOutputTokens" in body["request"].get("generationConfig", {})) == (type == "gemini")
        assert body.get("userAgent", "cliproxy") == "cliproxy"


@pytest.mark.parametrize("type", ["gemini", "gemini-cli"])
@pytest.mark.parametrize("switch", [False, True])
def test_the_projects_of_one_login(
    make_proxy: ProxyMaker, upstream: Upstream, switch: bool, type: str
) -> None:
    google = CodeAssist(make_proxy, upstream, type, "one, two", quota_exceeded={"switch-project": switch})
    logins = [a for a in google.proxy.app.router.accounts() if a.credential]
    assert [account.renewable for account in logins] == [True, True]
    path = "/v1beta/models/gemini-2.5-pro:generateContent"
    assert [google.proxy.ask(path, GEMINI_ASK).status for _ in range(2)] == [200, 200]
    assert [seen.json()["project"] for seen in upstream.seen] == ["one", "two"]
    google.spent = "one"
    upstream.seen.clear()
    statuses = [google.proxy.ask(path, GEMINI_ASK).status for _ in range(2)]
    projects = [seen.json()["project"] for seen in upstream.seen]
    assert (statuses, projects) == (([200, 200], ["one", "two", "two"]) if switch else ([429, 429], ["one"]))
