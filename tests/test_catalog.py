"""Models over a running proxy: by which names they can be asked for, and how they are listed."""

from __future__ import annotations

import json
import os
import threading
from typing import Any

import pytest

import cliproxy as cp
from support.models import BARE_RESPONSE, CLIENTS, answers, ask_for, key, log_in, names
from support.proxy import Proxy, ProxyMaker
from support.upstream import DEADLINE, Clock, Upstream, make_reply

Json = dict[str, Any]

# --- lists of upstreams -------------------------------------------------------------------

LISTS: dict[str, tuple[str, str, Any]] = {  # setting -> path of the upstream's list, dialect, the list
    "claude-api-key": ("/v1/models", "claude", {"data": [
        {"type": "model", "id": "claude-next-9", "display_name": "Next", "created_at": "2027-01-02T00:00:00Z", "max_input_tokens": 7, "max_tokens": 5},
        {"type": "model", "id": "claude-opus-4-8", "display_name": "Opus", "created_at": "2026-01-02T00:00:00Z"},
    ]}),
    "codex-api-key": ("/models", "responses", {"object": "list", "data": [
        {"id": "gpt-next", "object": "model", "created": 1_798_848_000, "owned_by": "system"}, {"id": 7}, "junk",
    ]}),
    "gemini-api-key": ("/v1beta/models", "gemini", {"models": [
        {"name": "models/gemini-next", "displayName": "Next", "inputTokenLimit": 7, "outputTokenLimit": 5,
         "supportedGenerationMethods": ["generateContent"]},
        {"name": "models/embedder", "supportedGenerationMethods": ["embedContent"]},
    ]}),
    "openai-compatibility": ("/models", "chat", [
        {"id": "org/next", "name": "Org: Next", "context_length": 7, "top_provider": {"max_completion_tokens": 5}},
        {"id": "org/odd", "context_length": "many", "max_model_len": 7},
    ]),
}  # fmt: skip


def open_account(upstream: Upstream, setting: str) -> dict[str, Any]:
    """Settings with one account that offers whatever its upstream has."""
    entry = {"api-key": "k", "name": "up", "base-url": upstream.url, "api-key-entries": [{"api-key": "k"}]}
    return {name.replace("-", "_"): [entry] if name == setting else [] for name in LISTS}


def refresh(proxy: Proxy) -> dict[str, str]:
    failures = proxy.app.catalog.refresh(proxy.app.router.offers.accounts)
    proxy.app.poll()
    return failures


def listed(proxy: Proxy, name: str, **headers: str) -> dict[str, Any]:
    got = proxy.ask(f"/v1/models/{name}", headers={k.replace("_", "-"): v for k, v in headers.items()})
    return dict(got.json())


@pytest.mark.parametrize("setting", LISTS)
def test_upstreams_list_their_models(make_proxy: ProxyMaker, upstream: Upstream, setting: str) -> None:
    path, dialect, body = LISTS[setting]
    proxy = make_proxy(**open_account(upstream, setting))
    upstream.routes[path] = make_reply(json.dumps(body), headers={"content-type": "application/json"})
    before = names(proxy)
    assert refresh(proxy) == {}
    new = next(name for name in names(proxy) - before if name.endswith(("next", "next-9")))
    assert {"embedder", "7"}.isdisjoint(names(proxy))
    assert before <= names(proxy), "what the tables list stays"
    sent = upstream.seen[0]
    assert (sent.method, sent.headers["user-agent"], sent.body) == ("GET", cp.USER_AGENT, b"")
    assert "k" in {sent.headers.get("x-goog-api-key"), sent.headers.get("authorization", "")[7:]}
    upstream.replies = [answers]
    ask_for(proxy, dialect, new.replace("/", "%2F") if dialect == "gemini" else new)
    assert len(upstream.seen) == 2
    row = listed(proxy, new.replace("/", "%2F"))
    if setting != "codex-api-key":
        assert (row["context_length"], row["max_completion_tokens"]) == (7, 5)


def test_tables_keep_what_a_list_does_not_say(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    proxy = make_proxy(**open_account(upstream, "claude-api-key"))
    upstream.routes["/v1/models"] = make_reply(LISTS["claude-api-key"][2])
    refresh(proxy)
    row = listed(proxy, "claude-opus-4-8")
    assert (row["context_length"], row["display_name"], row["owned_by"]) == (1_000_000, "Opus", "anthropic")
    fact = proxy.app.router.offers.fact("claude-opus-4-8")
    assert (fact.budget, fact.can_stop, fact.levels[-1]) == ((1_024, 128_000), True, "max")


def wait_for_lists(proxy: Proxy) -> None:
    thread = proxy.app.catalog._asking
    if thread:
        thread.join(DEADLINE)
    proxy.app.poll()


def test_lists_are_asked_for_once_a_day(make_proxy: ProxyMaker, upstream: Upstream, clock: Clock) -> None:
    settings = open_account(upstream, "openai-compatibility")
    proxy = make_proxy(**settings)
    proxy.app.catalog._now = clock
    upstream.routes["/models"] = make_reply({"data": [{"id": "one"}]})
    for turn, count in ((0, 1), (3_600, 1), (86_000, 2), (10, 2)):
        clock.turn(turn)
        proxy.app.ask_for_models()
        wait_for_lists(proxy)
        assert len(upstream.seen) == count
    assert "one" in names(proxy)
    (file,) = (proxy.auth_dir / ".cliproxy" / "models").iterdir()
    assert (file.suffix, "k" in json.loads(file.read_text())) == (".list", False)
    store = cp.Store(proxy.auth_dir)
    again = cp.App(proxy.app.config_file, store, {})
    again.catalog._now = clock
    again.ask_for_models()
    assert ("one" in again.router.offers.names(), again.catalog._asking, len(upstream.seen)) == (
        True,
        None,
        2,
    ), "it was kept"
    file.write_text("{")
    assert "one" not in cp.App(proxy.app.config_file, store, {}).router.offers.names(), (
        "a damaged file is as none"
    )


def test_a_failure_is_tried_again_after_an_hour(
    make_proxy: ProxyMaker, upstream: Upstream, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    proxy = make_proxy(**open_account(upstream, "openai-compatibility"))
    proxy.app.catalog._now = clock
    upstream.reply({"error": {"message": "not today"}}, 500)
    upstream.reply(b"<html>", 200)
    upstream.reply({"data": [{"id": "x", "supportedGenerationMethods": 5}]})
    upstream.reply({"data": [{"id": "one"}]})
    for turn, count in ((0, 1), (3_500, 1), (200, 2), (200, 2), (3_600, 3), (200, 3), (3_600, 4)):
        clock.turn(turn)
        proxy.app.ask_for_models()
        wait_for_lists(proxy)
        assert len(upstream.seen) == count
    assert "one" in names(proxy)
    told = [record for record in caplog.records if "no list of models" in record.message]
    assert {record.levelname for record in told} == {"DEBUG"}


def test_nobody_is_asked_for_nothing(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    proxy = make_proxy()
    proxy.app.ask_for_models()
    assert proxy.app.catalog._asking is None, "all accounts say which models they offer"
    proxy = make_proxy(**open_account(upstream, "claude-api-key"), refresh_models=False)
    proxy.app.ask_for_models()
    assert proxy.app.catalog._asking is None


def test_serving_does_not_wait_for_lists(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    go = threading.Event()
    upstream.routes["/v1/models"] = make_reply([go, b"{}"])
    upstream.replies = [answers]
    proxy = make_proxy(**open_account(upstream, "claude-api-key"))
    proxy.app.ask_for_models()
    assert upstream.asked.wait(DEADLINE)
    assert ask_for(proxy, "claude", "claude-opus-4-8").status == 200
    go.set()
    wait_for_lists(proxy)


# --- what is told of models ---------------------------------------------------------------

ROWS = [
    {
        "id": "mine",
        "provider": "up",
        "owner": "me",
        "name": "Mine",
        "context": 1_000,
        "output": 100,
        "levels": ["low", "high"],
    },
    {"id": "claude-opus-4-8", "context": 5},
    {"id": "up-model", "thinking": False},
    {"id": "gpt-9", "provider": "codex", "min-budget": 1, "max-budget": 9},
]


def test_the_owner_s_rows(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    endpoint = {"name": "up", "base-url": upstream.url}
    proxy = make_proxy(models=ROWS, claude_api_key=key(upstream), openai_compatibility=[endpoint])
    mine = listed(proxy, "mine")
    assert (
        mine["owned_by"],
        mine["display_name"],
        mine["context_length"],
        mine["max_completion_tokens"],
    ) == ("me", "Mine", 1_000, 100)
    assert listed(proxy, "claude-opus-4-8")["context_length"] == 5
    assert {"up-model", "gpt-9"}.isdisjoint(names(proxy)), "to know a model is not to have it"
    assert proxy.app.router.offers.fact("claude-opus-4-8").budget == (1_024, 128_000)
    log_in(proxy, "codex")
    fact = proxy.app.router.offers.fact("gpt-9")
    assert (fact.budget, fact.thinking) == ((1, 9), True)
    upstream.reply({"choices": [{"message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}]})
    assert (
        ask_for(
            proxy, "claude", "mine", thinking={"type": "enabled", "budget_tokens": 30_000}, max_tokens=64_000
        ).status
        == 200
    )
    assert upstream.seen[0].json()["reasoning_effort"] == "high", "the levels of the row count"


def test_lists_tell_limits(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    models = [
        {"name": "claude-opus-4-5-20251101", "alias": "big", "display-name": "Big One"},
        {"name": "who-knows"},
    ]
    proxy = make_proxy(claude_api_key=key(upstream, *models, {"name": "claude-opus-4-5-20251101"}))
    plain = {
        "id": "who-knows",
        "object": "model",
        "created": 0,
        "owned_by": "claude",
        "display_name": "who-knows",
    }
    assert listed(proxy, "who-knows") == plain
    assert listed(proxy, "claude-opus-4-5-20251101") == {
        "id": "claude-opus-4-5-20251101", "object": "model", "created": 1_761_955_200, "owned_by": "anthropic",
        "display_name": "Claude Opus 4.5", "context_length": 200_000, "max_completion_tokens": 64_000,
    }  # fmt: skip
    assert listed(proxy, "big", anthropic_version="2023-06-01") == {
        "type": "model", "id": "big", "display_name": "Big One", "created_at": "1970-01-01T00:00:00Z",
        "max_input_tokens": 200_000, "max_tokens": 64_000,
    }  # fmt: skip
    assert listed(proxy, "big", x_goog_api_key="k")["inputTokenLimit"] == 200_000


def test_the_vendors_sdks_read_the_lists(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    anthropic, openai = pytest.importorskip("anthropic"), pytest.importorskip("openai")
    proxy = make_proxy(claude_api_key=key(upstream))
    with anthropic.Anthropic(base_url=proxy.url, api_key="k") as client:
        models = {model.id: model for model in client.models.list()}
        assert models["claude-opus-4-8"].max_input_tokens == 1_000_000
        assert client.models.retrieve("claude-opus-4-5-20251101").created_at.year == 2025
    for base in (proxy.url, f"{proxy.url}/v1"):
        with openai.OpenAI(base_url=base, api_key="k") as client:
            assert "claude-opus-4-8" in {model.id for model in client.models.list()}


def test_models_on_the_command_line(
    make_proxy: ProxyMaker,
    upstream: Upstream,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in os.environ if name.endswith("_API_KEY")]:
        monkeypatch.delenv(name)
    entry = {"name": "up", "base-url": upstream.url, "api-key-entries": [{"api-key": "a"}, {"api-key": "b"}]}
    proxy = make_proxy(
        openai_compatibility=[entry],
        codex_api_key=key(upstream, **{"base-url": f"{upstream.url}/c"}),
        models=ROWS,
    )
    upstream.routes["/models"] = make_reply({"data": [{"id": "new-1", "context_length": 9}]})
    upstream.routes["/c/models"] = make_reply(b"", 404)
    assert cp.main(["models", "--refresh", "--config", str(proxy.path)]) == 0
    out, err = capsys.readouterr()
    said = {line.split()[0]: line.split() for line in out.splitlines()}
    assert said["new-1"] == ["new-1", "9", "?", "?", "up[0],", "up[1]"]
    assert said["mine"] == ["mine", "1000", "100", "low", "high", "up[0],", "up[1]"]
    assert said["up-claude"][-1] == "claude-api-key[0]"
    assert "codex-api-key[0]: no list of models" in err
    assert cp.main(["models", "--config", str(proxy.path)]) == 0
    assert "new-1" in capsys.readouterr().out, "it was kept"


def test_a_key_for_openai_has_models_before_it_is_asked_for_them(
    make_proxy: ProxyMaker, upstream: Upstream
) -> None:
    key, more = ({"api-key": "k", "base-url": upstream.url}, {"id": "a-new-one", "provider": "codex-api-key"})
    proxy = make_proxy(**{"codex-api-key": [key]}, models=[more])
    listed = names(proxy)
    assert {"gpt-5.5", "gpt-5.6-sol", "a-new-one"} <= listed
    assert "codex-auto-review" not in listed, "a ChatGPT plan's own"


# --- Claude Code, which shows no model whose name does not begin with claude


def test_claude_code_finds_foreign_models(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    proxy = make_proxy()
    asks = {"user-agent": CLIENTS["claude"], "anthropic-version": "2023-06-01"}
    listed = [row["id"] for row in proxy.ask("/v1/models?limit=1000", headers=asks).json()["data"]]
    assert {"up-chat", "claude-via-up-chat", "claude-via-up-gemini", "claude-via-echo"} <= set(listed)
    assert proxy.ask("/v1/models/claude-via-up-chat", headers=asks).json()["id"] == "claude-via-up-chat"
    assert not [name for name in names(proxy) if name.startswith("claude-via-")], "others need none"


@pytest.mark.parametrize("ending", ["", "[1m]"])
def test_an_alias_of_claude_code_s_leads_to_its_model(
    ending: str, make_proxy: ProxyMaker, upstream: Upstream
) -> None:
    proxy = make_proxy()
    upstream.replies = [answers]
    got = ask_for(proxy, "claude", f"claude-via-up-chat{ending}", CLIENTS["claude"])
    assert (got.status, got.headers["x-cliproxy-model"]) == (200, "up-chat")
    assert got.json()["model"] == f"claude-via-up-chat{ending}"
    assert upstream.seen[0].json()["model"] == "up-chat"
    assert ask_for(proxy, "claude", "claude-via-nothing", CLIENTS["claude"]).status == 404
    assert ask_for(proxy, "claude", "claude-via-echo", CLIENTS["claude"]).status == 200


CUT: dict[str, Json] = {  # what upstreams answer to one token
    "chat": {"choices": [{"index": 0, "message": {"role": "assistant", "content": ""}, "finish_reason": "length"}],
             "usage": {"prompt_tokens": 5, "completion_tokens": 1}},
    "responses": {**BARE_RESPONSE, "status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"},
                  "usage": {"input_tokens": 5, "output_tokens": 16}},
    "gemini": {"candidates": [{"content": {"role": "model"}, "finishReason": "MAX_TOKENS", "index": 0}],
               "usageMetadata": {"promptTokenCount": 5, "totalTokenCount": 6}},
}  # fmt: skip


@pytest.mark.parametrize("dialect", CUT)
def test_a_probe_is_answered(dialect: str, make_proxy: ProxyMaker, upstream: Upstream) -> None:
    proxy = make_proxy()
    upstream.reply(CUT[dialect])
    body = {"model": f"up-{dialect}", "max_tokens": 1, "messages": [{"role": "user", "content": "quota"}]}
    got = proxy.ask("/v1/messages?beta=true", body, {"user-agent": CLIENTS["claude"]})
    assert (got.status, got.json()["stop_reason"]) == (200, "max_tokens")
