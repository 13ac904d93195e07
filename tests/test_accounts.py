"""Accounts in the running proxy: tokens that are renewed, who is asked, who rests, and for how long."""

from __future__ import annotations

import json
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import cliproxy as cp
from support.accounts import CLAUDE_ASK, HI, House, Json
from support.models import CLIENTS, answers, ask_for, key, log_in, names
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
    names = {account.name for account in house.proxy.app.router.offers.accounts}
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


@pytest.mark.parametrize(
    ("provider", "base", "tidy"),
    [
        ("claude", "https://h", "https://h"),
        ("claude", "https://h/v1", "https://h"),
        ("claude", "https://h/anthropic/v1/messages/", "https://h/anthropic"),
        ("claude", "https://h/v1beta", "https://h"),
        ("claude", "https://h/v10", "https://h/v10"),
        ("gemini", "https://h/v1beta", "https://h"),
        ("gemini", "https://h/v1beta/models", "https://h"),
        ("gemini", "https://h/v1beta/models/gemini-x:generateContent", "https://h"),
        ("gemini", "https://h/v1", "https://h"),
        ("openai-compatibility", "https://h/v1", "https://h/v1"),
        ("openai-compatibility", "https://h/v1/chat/completions", "https://h/v1"),
        ("openai-compatibility", "https://h/chat", "https://h/chat"),
        ("openai", "https://h/v1/responses", "https://h/v1"),
        ("vertex", "https://h/v1", "https://h"),
        ("kimi", "https://h/coding/v1", "https://h/coding"),
    ],
)
def test_base_urls_that_say_what_the_path_says_are_tidied(provider: str, base: str, tidy: str) -> None:
    account = cp.Account("x", cp.PROVIDERS[provider], {"api-key": "k", "base-url": base})
    assert account.base == tidy


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
    logins = [a for a in google.proxy.app.router.offers.accounts if a.credential]
    assert [account.renewable for account in logins] == [True, True]
    path = "/v1beta/models/gemini-2.5-pro:generateContent"
    assert [google.proxy.ask(path, GEMINI_ASK).status for _ in range(2)] == [200, 200]
    assert [seen.json()["project"] for seen in upstream.seen] == ["one", "two"]
    google.spent = "one"
    upstream.seen.clear()
    statuses = [google.proxy.ask(path, GEMINI_ASK).status for _ in range(2)]
    projects = [seen.json()["project"] for seen in upstream.seen]
    assert (statuses, projects) == (([200, 200], ["one", "two", "two"]) if switch else ([429, 429], ["one"]))


CHANNELS = {  # channel -> the dialect in which its upstream is asked, and a model that it lists
    "claude": ("claude", "claude-opus-4-8"),
    "codex": ("responses", "gpt-5.5"),
}


def asked(upstream: Upstream) -> list[str]:
    """The models that the upstream was asked for."""
    return [seen.json()["model"] for seen in upstream.seen]


# --- other names --------------------------------------------------------------------------


@pytest.mark.parametrize("channel", CHANNELS)
def test_aliases_of_a_channel(make_proxy: ProxyMaker, upstream: Upstream, channel: str) -> None:
    dialect, model = CHANNELS[channel]
    rows = [
        {"name": model.upper(), "alias": "one"},
        {"name": model, "alias": "two"},
        {"name": "brand-new", "alias": "three"},
    ]
    proxy = make_proxy(oauth_model_alias={channel: rows}, claude_api_key=[], codex_api_key=[])
    log_in(proxy, channel)
    assert {"one", "two", "three"} <= names(proxy)
    assert model not in names(proxy), "an alias replaces the name"
    upstream.replies = [answers] * 4
    for name in ("one", "TWO", "one(high)", "three"):
        assert ask_for(proxy, dialect, name).status == 200
    assert asked(upstream) == [model, model, model, "brand-new"]
    assert "high" in json.dumps(upstream.seen[2].json()), "the effort goes on through the alias"


def test_a_fork_keeps_both_names(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    rows = [{"name": "claude-opus-4-8", "alias": "big", "fork": True, "display-name": "The Big One"}]
    proxy = make_proxy(oauth_model_alias={"Claude": rows})
    log_in(proxy, "claude")
    assert {"big", "claude-opus-4-8", "up-claude"} <= names(proxy)


def test_an_alias_may_hold_an_effort(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    rows = [{"name": "gpt-5.5(low)", "alias": "quick"}]
    proxy = make_proxy(oauth_model_alias={"codex": rows})
    log_in(proxy, "codex")
    upstream.replies = [answers] * 2
    ask_for(proxy, "responses", "quick")
    ask_for(proxy, "responses", "quick(high)")
    assert [seen.json()["reasoning"]["effort"] for seen in upstream.seen] == ["low", "low"]
    assert asked(upstream) == ["gpt-5.5", "gpt-5.5"]


def test_aliases_of_a_channel_leave_keys_alone(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    rows = [{"name": "claude-opus-4-8", "alias": "big"}]
    proxy = make_proxy(oauth_model_alias={"claude": rows}, claude_api_key=key(upstream))
    assert "big" not in names(proxy)
    assert "claude-opus-4-8" in names(proxy)


def test_one_alias_over_several_models_is_a_pool(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    models = [
        {"name": "first", "alias": "pool"},
        {"name": "second", "alias": "pool"},
        {"name": "first", "alias": "pool"},
    ]
    proxy = make_proxy(claude_api_key=key(upstream, *models))
    upstream.replies = [answers] * 3
    for _ in range(3):
        ask_for(proxy, "claude", "pool")
    assert asked(upstream) == ["first", "second", "first"]
    upstream.seen.clear()
    upstream.reply(
        {"error": {"type": "rate_limit_error", "message": "slow down"}}, 429, {"retry-after": "60"}
    )
    upstream.replies += [answers] * 2
    assert ask_for(proxy, "claude", "pool").status == 200, "the next one answers"
    assert ask_for(proxy, "claude", "pool").status == 200
    assert asked(upstream) == ["second", "first", "first"], "who was refused rests"


def test_a_pool_of_several_endpoints(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    entries = [
        {
            "name": name,
            "base-url": f"{upstream.url}/{name}",
            "models": [{"name": f"{name}-model", "alias": "pool"}],
        }
        for name in ("aa", "bb")
    ]
    proxy = make_proxy(openai_compatibility=[*entries, {**entries[0], "name": "cc", "disabled": True}])
    upstream.routes["/aa/chat/completions"] = make_reply({"error": {"message": "down"}}, 503)
    upstream.routes["/bb/chat/completions"] = make_reply({"choices": [{}]})
    assert ask_for(proxy, "chat", "pool").status == 200
    assert asked(upstream) == ["aa-model", "bb-model"]


# --- exclusions, prefixes, stand-ins ------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "hidden"),
    [
        ("claude-opus-4-8", {"claude-opus-4-8"}),
        ("Claude-*", {"claude-opus-4-8", "claude-sonnet-5", "claude-haiku-4-5-20251001"}),
        ("*-4-8", {"claude-opus-4-8"}),
        ("*haiku*", {"claude-haiku-4-5-20251001"}),
        ("*", {"claude-opus-4-8", "claude-sonnet-5", "claude-haiku-4-5-20251001"}),
    ],
)
def test_exclusions(make_proxy: ProxyMaker, upstream: Upstream, pattern: str, hidden: set[str]) -> None:
    shown = {"claude-opus-4-8", "claude-sonnet-5", "claude-haiku-4-5-20251001"}
    by_key = make_proxy(claude_api_key=key(upstream, **{"excluded-models": [pattern]}))
    by_channel = make_proxy(oauth_excluded_models={"Claude": [pattern]}, claude_api_key=[])
    log_in(by_channel, "claude")
    by_file = make_proxy(claude_api_key=[])
    log_in(by_file, "claude", excluded_models=[pattern])
    for proxy in (by_key, by_channel, by_file):
        assert shown - names(proxy) == hidden


def test_exclusions_are_of_the_real_name(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    models = [{"name": "real", "alias": "asked"}, {"name": "other", "alias": "real-2"}]
    proxy = make_proxy(claude_api_key=key(upstream, *models, **{"excluded-models": ["real", "real-2"]}))
    assert {"asked", "real-2"} & names(proxy) == {"real-2"}


@pytest.mark.parametrize(("force", "bare"), [(False, 200), (True, 404)])
def test_prefixes(make_proxy: ProxyMaker, upstream: Upstream, force: bool, bare: int) -> None:
    entry = key(upstream, {"name": "real", "alias": "asked"}, prefix="/team/")
    proxy = make_proxy(claude_api_key=entry, force_model_prefix=force)
    upstream.replies = [answers] * 2
    assert ask_for(proxy, "claude", "team/asked").status == 200
    assert asked(upstream) == ["real"]
    assert ask_for(proxy, "claude", "asked").status == bare
    assert ("asked" in names(proxy)) is not force


CLAUDE_CODE = [
    "claude-haiku-4-5-20251001",
    "claude-sonnet-4-5-20250929",
    "claude-opus-4-5-20251101",
    "claude-sonnet-5[1m]",
]


@pytest.mark.parametrize("model", CLAUDE_CODE)
def test_claude_code_with_a_chatgpt_account_alone(
    make_proxy: ProxyMaker, upstream: Upstream, model: str
) -> None:
    proxy = make_proxy(claude_api_key=[], codex_api_key=[], gemini_api_key=[], openai_compatibility=[])
    log_in(proxy, "codex")
    upstream.replies = [answers]
    got = ask_for(proxy, "claude", model, CLIENTS["claude"])
    assert (got.status, got.json()["model"]) == (200, model)
    assert asked(upstream)[0].startswith("gpt-6")
    assert got.headers["x-cliproxy-model"] == asked(upstream)[0]
    assert ask_for(proxy, "claude", model).status == 404, "who chooses a model means it"


# who is not meant is not asked: what the keys of Claude and OpenRouter say, who asks, for what -> who answers
CLOSED: Json = {"*": []}
OPUS_OFF = {"excluded-models": ["*opus*"]}
# fmt: off
MEANT = [
    pytest.param(OPUS_OFF, {}, "claude", "claude-opus-4-7", "", id="an excluded model"),
    pytest.param(OPUS_OFF, {}, "claude", "claude-opus-9(high)", "", id="an excluded model that no list has"),
    pytest.param(OPUS_OFF, {"claude-opus-*": ["kimi-k2"]}, "claude", "claude-opus-4-7", "", id="excluded, whatever else is wanted"),
    pytest.param({"excluded-models": ["claude-opus-4-7"]}, {}, "claude", "Claude-Opus-4-7", "", id="excluded, in capitals"),
    pytest.param({"excluded-models": ["*haiku*"]}, {}, "claude", "claude-opus-9", "claude-opus-9", id="another is excluded"),
    pytest.param({"models": [{"name": "claude-sonnet-5"}]}, {}, "claude", "claude-opus-5", "claude-sonnet-5", id="the same vendor first"),
    pytest.param({"models": [{"name": "claude-sonnet-5"}]}, {"claude-opus-5": []}, "claude", "claude-opus-5", "", id="switched off for a name"),
    pytest.param({"models": [{"name": "claude-sonnet-5"}]}, CLOSED, "claude", "claude-opus-5", "", id="switched off for all"),
    pytest.param({"models": [{"name": "x"}]}, {}, "claude", "claude-opus-5", "moonshotai/kimi-k2:free", id="Claude Code's own names"),
    pytest.param({"models": [{"name": "x"}]}, CLOSED, "claude", "claude-opus-5", "", id="not even these"),
    pytest.param({"models": [{"name": "x"}]}, {}, "", "claude-opus-5", "", id="an SDK means what it says"),
    pytest.param({}, {}, "", "gemini-2.5-pro", "", id="also of another vendor"),
    pytest.param({}, {}, "gemini", "gemini-2.5-pro", "claude-opus-5-5", id="but gemini-cli does not"),
    pytest.param({}, {"gemini-2.5-pro": ["kimi-k2"]}, "", "gemini-2.5-pro", "moonshotai/kimi-k2:free", id="the owner may want it"),
]
# fmt: on


@pytest.mark.parametrize(("claude", "fallbacks", "client", "model", "served"), MEANT)
def test_nobody_is_asked_but_who_was_meant(  # noqa: PLR0917 -- a column each
    make_proxy: ProxyMaker,
    upstream: Upstream,
    claude: Json,
    fallbacks: Json,
    client: str,
    model: str,
    served: str,
) -> None:
    router = {
        "name": "openrouter", "base-url": f"{upstream.url}/v1", "api-key-entries": [{"api-key": "k"}],
        "models": [{"name": "moonshotai/kimi-k2:free", "alias": "kimi-k2"}],
    }  # fmt: skip
    proxy = make_proxy(
        claude_api_key=[{"api-key": "k", "base-url": upstream.url, **claude}],
        openai_compatibility=[router],
        model_fallbacks=fallbacks,
        codex_api_key=[],
        gemini_api_key=[],
    )
    upstream.replies = [answers]
    got = ask_for(proxy, "claude", model, CLIENTS.get(client, "anthropic-sdk/1"))
    found = (got.status, got.headers.get("x-cliproxy-model"), asked(upstream))
    assert found == ((200, served, [served]) if served else (404, None, []))


def test_the_log_names_who_answered(
    make_proxy: ProxyMaker, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    proxy = make_proxy(claude_api_key=key(upstream, {"name": "claude-sonnet-5"}))
    upstream.replies = [answers, answers]
    ask_for(proxy, "claude", "claude-opus-5")
    ask_for(proxy, "claude", "claude-sonnet-5")
    told = proxy.log(2)
    assert "claude-opus-5=claude-sonnet-5 account=" in told
    assert " claude-sonnet-5 account=" in told


def test_an_excluded_model_is_not_asked_of_a_service_for_all(
    make_proxy: ProxyMaker, upstream: Upstream
) -> None:
    """OpenRouter without a list of models takes any name; the one that the owner excludes is none of its."""
    proxy = make_proxy(
        claude_api_key=[{"api-key": "k", "base-url": upstream.url, **OPUS_OFF}],
        openai_compatibility=[{"name": "openrouter", "base-url": f"{upstream.url}/v1", "api-key-entries": [{"api-key": "k"}]}],
    )  # fmt: skip
    got = ask_for(proxy, "claude", "claude-opus-4-7")
    assert (got.status, upstream.seen) == (404, [])
    assert "excluded models of claude-api-key[0]" in got.json()["error"]["message"]


def test_the_owner_s_own_stand_ins_come_first(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    proxy = make_proxy(model_fallbacks={"claude-haiku-*": ["missing", "up-chat"]}, claude_api_key=[])
    log_in(proxy, "codex")
    upstream.reply({"choices": [{}]})
    ask_for(proxy, "claude", "claude-haiku-4-5")
    assert asked(upstream) == ["up-chat"]


def test_the_name_of_an_endpoint_we_know_is_enough(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    override = {"groq": {"base-url": f"{upstream.url}/openai/v1"}}
    proxy = make_proxy(
        {"GROQ_API_KEY": "gsk-1"},
        openai_compatibility=[{"name": "Groq"}, {"name": "nobody"}],
        providers=override,
    )
    upstream.reply({"choices": [{}]})
    assert ask_for(proxy, "chat", "llama-4").status == 200
    assert (upstream.seen[0].path, upstream.seen[0].headers["authorization"]) == (
        "/openai/v1/chat/completions",
        "Bearer gsk-1",
    )


# --- models that their vendors have ended


AFTER = 1_798_000_000.0  # 2026-12-23


def later_proxy(tmp_path: Path, upstream: Upstream, **settings: Any) -> Proxy:
    only: Json = {"claude-api-key": [], "codex-api-key": [], "gemini-api-key": [], "openai-compatibility": []}
    (tmp_path / "later" / "auth").mkdir(parents=True)
    return Proxy(tmp_path / "later", upstream, {**only, **settings}, {}, lambda: AFTER)


def test_what_a_vendor_has_ended_is_not_listed(tmp_path: Path, upstream: Upstream) -> None:
    with closing(later_proxy(tmp_path, upstream, **{"claude-api-key": key(upstream)})) as proxy:
        listed = names(proxy)
        assert "claude-opus-5-5" in listed
        assert not {"claude-opus-4-1-20250805", "claude-sonnet-4-5-20250929"} & listed
        upstream.replies = [answers]
        got = ask_for(proxy, "claude", "claude-opus-4-1")
        assert (asked(upstream), got.headers["x-cliproxy-model"]) == (["claude-opus-5-5"], "claude-opus-5-5")


def test_a_successor_is_named(tmp_path: Path, upstream: Upstream) -> None:
    keys = key(upstream)
    fallbacks: Json = {"claude-*": []}
    with closing(
        later_proxy(tmp_path, upstream, **{"claude-api-key": keys, "model-fallbacks": fallbacks})
    ) as proxy:
        got = ask_for(proxy, "claude", "claude-3-7-sonnet-20250219")
        assert got.status == 404
        assert "retired by its vendor on 2026-02-19; ask for 'claude-sonnet-5-5'" in got.body.decode()


def test_what_an_upstream_lists_is_not_ended(tmp_path: Path, upstream: Upstream) -> None:
    upstream.routes["/v1/models"] = make_reply({
        "data": [{"id": name} for name in ("gpt-5", "gpt-5-codex", "codex-mini-latest")]
    })  # fmt: skip
    keys = [{"api-key": "k", "base-url": f"{upstream.url}/v1"}]
    with closing(later_proxy(tmp_path, upstream, **{"codex-api-key": keys})) as proxy:
        assert not {"gpt-5", "gpt-5-codex", "codex-mini-latest"} & names(proxy)
        assert proxy.app.catalog.refresh(proxy.app.router.offers.accounts) == {}
        proxy.app.poll()
        assert {"gpt-5", "gpt-5-codex", "codex-mini-latest"} <= names(proxy)
        upstream.replies = [answers]
        assert ask_for(proxy, "responses", "gpt-5-codex").status == 200
        assert upstream.seen[-1].json()["model"] == "gpt-5-codex"
