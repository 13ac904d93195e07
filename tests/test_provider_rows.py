"""Every row of PROVIDERS and of PRESETS, as its user has it, asked by the four vendors' SDKs.

The upstreams are the strict ones of strict.py, the token services those of world.py. What each
provider must be sent stands in strict.TERMS; what it takes to have an account, and what its
refusals come to, stands in the tables here.
"""

from __future__ import annotations

import json
import time
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

import cliproxy as cp
from support.dialogue import CLIENTS, NAMES, PROOFS, SSE, frame
from support.proxy import Proxy, ProxyMaker
from support.strict import (
    FIRST,
    LAST,
    NEXT,
    OUR_AGENT,
    PRESET_CHECKS,
    TERMS,
    THIRD_PARTY,
    StandIn,
    Terms,
    all_faults,
)  # fmt: skip
from support.upstream import Upstream, make_reply
from support.world import World

Json = dict[str, Any]
LISTS: Json = {
    name: [] for name in ("claude-api-key", "codex-api-key", "gemini-api-key", "openai-compatibility")
}


class Case(NamedTuple):
    """A way to have an account. `UP` in `config` is the upstream's address.

    `rows` maps a client's dialect to the row of PROVIDERS that serves it, "" all others; `terms`
    names those of strict.TERMS that hold, if they are not called as the row is.
    """

    rows: dict[str, str]
    model: str
    config: Json
    environ: dict[str, str] = {}  # noqa: RUF012 -- never written to
    login: str = ""  # a key of cp.LOGINS: there is a credential file of it
    terms: str = ""
    base: str = ""  # the part of the upstream's address that is a path


def key(**more: Any) -> list[Json]:
    return [{"api-key": "sk-real", "base-url": "UP", **more}]


def at(*names: str, base: str = "", **more: Any) -> Json:
    """Override addresses."""
    return {"providers": {name: {"base-url": f"UP{base}", **more} for name in names}}


# fmt: off
CASES = {
    "claude-api-key":       Case({"": "claude"}, "claude-sonnet-4-6", {"claude-api-key": key()}),
    "ANTHROPIC_API_KEY":    Case({"": "claude"}, "claude-sonnet-4-6", at("claude"), {"ANTHROPIC_API_KEY": "sk-real"}),
    "login claude":         Case({"": "claude"}, "claude-sonnet-4-6", at("claude"), login="claude", terms="claude login"),
    "login codex":          Case({"": "codex"}, "gpt-5.5", at("codex"), login="codex"),
    "codex-api-key":        Case({"": "openai"}, "gpt-5.5", {"codex-api-key": key(**{"base-url": "UP/v1"})}, base="/v1"),
    "OPENAI_API_KEY":       Case({"": "openai", "chat": "openai-chat"}, "gpt-5.5", at("openai", "openai-chat", base="/v1"),
                                 {"OPENAI_API_KEY": "sk-real"}, base="/v1"),
    "gemini-api-key":       Case({"": "gemini"}, "gemini-2.5-pro", {"gemini-api-key": key()}),
    "GEMINI_API_KEY":       Case({"": "gemini"}, "gemini-2.5-pro", at("gemini"), {"GEMINI_API_KEY": "sk-real"}),
    "GOOGLE_API_KEY":       Case({"": "gemini"}, "gemini-2.5-pro", at("gemini"), {"GOOGLE_API_KEY": "sk-real"}),
    "vertex-api-key":       Case({"": "vertex"}, "gemini-2.5-pro", {"vertex-api-key": key()}),
    "login vertex":         Case({"": "vertex"}, "gemini-2.5-pro", at("vertex"), login="vertex", terms="vertex login"),
    "login gemini":         Case({"": "gemini-cli"}, "gemini-2.5-pro", at("gemini-cli"), login="gemini"),
    "login antigravity":    Case({"": "antigravity"}, "gemini-3-flash", at("antigravity", enabled=True), login="antigravity"),
    "antigravity's Claude": Case({"": "antigravity"}, "claude-sonnet-4-6", at("antigravity", enabled=True), login="antigravity"),
    "login kimi":           Case({"": "kimi", "claude": "kimi-claude"}, "kimi-k2.5", at("kimi", "kimi-claude"), login="kimi"),
    "login qwen":           Case({"": "qwen"}, "coder-model", at("qwen", base="/v1"), login="qwen", base="/v1"),
    "login iflow":          Case({"": "iflow"}, "glm-4.6", at("iflow", base="/v1"), login="iflow", base="/v1"),
    "login xai":            Case({"": "xai"}, "grok-4.5", at("xai", base="/v1"), login="xai", base="/v1"),
    "openai-compatibility": Case({"": "openai-compatibility"}, "llama-4", {"openai-compatibility": [
                                 {"name": "mine", "base-url": "UP/v1", "models": [{"name": "llama-4"}], "api-key-entries": [{"api-key": "sk-real"}]}]},
                                 base="/v1"),
    "OPENROUTER_API_KEY":   Case({"": "openai-compatibility"}, "vendor/llama-4", at("openrouter", base="/api/v1"),
                                 {"OPENROUTER_API_KEY": "sk-real"}, base="/api/v1"),
}
# fmt: on


def test_every_row_has_a_case() -> None:
    rows = {row for case in CASES.values() for row in case.rows.values()}
    assert rows == set(cp.PROVIDERS)
    entries = {case.login for case in CASES.values()} | set(CASES)
    assert entries >= {row.source for row in (*cp.KEY_LISTS, *cp.KEY_VARIABLES)} | set(cp.LOGINS)


def moment(seconds: float, *, utc: bool = False) -> str:
    """Write a time from now as credential files do."""
    form = time.gmtime if utc else time.localtime
    text = time.strftime("%Y-%m-%dT%H:%M:%S%z", form(time.time() + seconds))
    return f"{text[:-5]}Z" if utc else f"{text[:-2]}:{text[-2:]}"


def file_of(login: str, world: World, ends: float) -> tuple[str, Json]:
    """Return a credential file in the form of CLIProxyAPI, its token ending `ends` seconds from now."""
    got = world.tokens(login)
    access, renew = got["access_token"], got["refresh_token"]
    pair = {"access_token": access, "refresh_token": renew}
    last = {"last_refresh": moment(-600), "expired": moment(ends), "email": "ann@example.com"}
    token = {**pair, "token_type": "Bearer", "expiry": moment(ends), "token_uri": "https://oauth2.googleapis.com/token",
             "client_id": cp.LOGINS["gemini"].client_id, "scopes": [], "universe_domain": "googleapis.com"}  # fmt: skip
    issued = {
        "token_type": "Bearer",
        "scope": "kimi-code",
        "device_id": "d" * 32,
        "timestamp": 1_770_000_000_000,
    }
    # fmt: off
    files: dict[str, tuple[str, Json]] = {
        "claude":      ("claude-ann@example.com.json", {"id_token": "", **pair, **last}),
        "codex":       ("codex-ann@example.com-plus.json", {"id_token": world.id_token(), **pair, "account_id": "acc-1", **last}),
        "vertex":      ("vertex-proj-1.json", {"service_account": {}, "project_id": "proj-1", "location": "us-central1",
                                               "access_token": access, "expired": moment(ends), "email": "ann@example.com"}),
        "gemini":      ("ann@example.com-proj-1.json", {"token": token, "project_id": "proj-1", "email": "ann@example.com",
                                                        "auto": False, "checked": True}),
        "antigravity": ("antigravity-ann@example.com.json", {**pair, "expires_in": 3599, "timestamp": 1_770_000_000_000,
                                                            "expired": moment(ends), "email": "ann@example.com", "project_id": "proj-1"}),
        "kimi":        ("kimi-1770000000000.json", {**pair, **issued, "expired": moment(ends, utc=True)}),
        "qwen":        ("qwen-ann@example.com.json", {**pair, **last, "resource_url": "portal.qwen.ai"}),
        "iflow":       ("iflow-ann@example.com-1770000000.json", {**pair, **last, "api_key": f"key-of-{access}", "token_type": "bearer",
                                                                 "scope": "s", "cookie": ""}),
        "xai":         ("xai-ann@example.com.json", {**pair, "id_token": world.id_token(), "token_type": "Bearer", "expires_in": 21_600,
                        "expired": moment(ends, utc=True), "last_refresh": moment(-600, utc=True), "email": "ann@example.com", "sub": "sub-1",
                        "base_url": "", "redirect_uri": "", "token_endpoint": f"{world.url}/xai/token", "auth_kind": "oauth"}),
    }
    # fmt: on
    name, data = files[login]
    return name, {**data, "type": login}


class Rig:
    """A proxy with the account of a case, and its strict upstream."""

    def __init__(
        self, case: Case, make_proxy: ProxyMaker, upstream: Upstream, world: World, **more: Any
    ) -> None:
        config = json.loads(json.dumps({**LISTS, **case.config}).replace('"UP', f'"{upstream.url}'))
        providers = world.config().data["providers"] if case.login else {}
        for name, section in config.pop("providers", {}).items():
            providers[name] = {**providers.get(name, {}), **section}
        settings = {name.replace("-", "_"): value for name, value in {**config, **more}.items()}
        self.case, self.upstream, self.world = case, upstream, world
        self.proxy: Proxy = make_proxy(case.environ, providers=providers, **settings)
        self.stand_ins = {client: self.stand_in(row) for client, row in case.rows.items()}

    def stand_in(self, row: str) -> StandIn:
        known = "openai-compatibility" not in self.case.config or row == "openai-compatibility"
        terms = TERMS[self.case.terms or row] if known else preset_terms(row)
        stand_in = StandIn(self.upstream, terms, self.accepts, self.case.base)
        stand_in.open(self.case.model)
        return stand_in

    def accepts(self, token: str) -> bool:
        login = self.case.login
        token = token.replace("key-of-", "") if login == "iflow" else token
        keyed = self.case.environ or self.case.config
        known = "sk-real" if "sk-real" in json.dumps(keyed) else ""
        return self.world.access.get(token) == login if login else token == known

    def serving(self, client: str) -> StandIn:
        return self.stand_ins.get(client) or self.stand_ins[""]

    def log_in(self, ends: float = 3_000.0, name: str = "", **more: Any) -> str:
        """Put the case's credential file there; return its name."""
        own, data = file_of(self.case.login, self.world, ends)
        (self.proxy.auth_dir / (name or own)).write_text(json.dumps({**data, **more}), encoding="utf-8")
        self.proxy.app.poll()
        return name or own


def converse(rig: Rig, client: str, *, stream: bool) -> None:
    """Hold a conversation of two questions, the first of which takes a tool."""
    talk = CLIENTS[client](rig.proxy.url, stream=stream, system="Be brief.", limit=4096)
    talk.ask("How is the weather?")
    said, stand_in = talk.say(rig.case.model), rig.serving(client)
    assert said == (FIRST.text, [("look", {"city": FIRST.input})]), all_faults(rig.stand_ins.values())
    talk.give("22 degrees")
    assert talk.say(rig.case.model) == (LAST.text, []), stand_in.refused
    talk.ask("And tomorrow?")
    assert talk.say(rig.case.model) == (NEXT.text, []), stand_in.refused
    assert [len(stand_in.bodies), all_faults(rig.stand_ins.values())] == [3, []]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("client", NAMES)
@pytest.mark.parametrize("name", CASES)
def test_every_provider_by_every_sdk(
    make_proxy: ProxyMaker, upstream: Upstream, world: World, name: str, client: str, stream: bool
) -> None:
    case = CASES[name]
    rig = Rig(case, make_proxy, upstream, world)
    if case.login:
        rig.log_in()
    converse(rig, client, stream=stream)
    terms = rig.serving(client).terms
    for seen in upstream.seen:
        sent = seen.body.decode()
        assert "Be brief." in sent
        assert cp.PROOF_MARK.decode() not in sent
        assert terms.dialect == client or OUR_AGENT.fullmatch(seen.headers["user-agent"])
    if (client, terms.dialect) != ("chat", "claude"):  # which has no place for it
        assert PROOFS[terms.dialect] in upstream.seen[1].body.decode()


# --- services of openai-compatibility that are known by name


def preset_terms(name: str) -> Terms:
    checks = PRESET_CHECKS.get(name, THIRD_PARTY)
    own = {"openai": ["store", "prompt_cache_key"], "litellm": ["store"]}.get(name, [])
    return TERMS["openai-compatibility"]._replace(checks=checks, own=frozenset(own))


def preset_case(name: str) -> Case:
    """Return the case of a user who gives no more than its name, and its key in the environment."""
    preset = cp.PRESETS[name]
    base = urlsplit(preset.base).path
    config = {"openai-compatibility": [{"name": name}], **at(name, base=base)}
    return Case({"": name}, "some-model", config, dict.fromkeys(preset.keys[-1:], "sk-real"), base=base)


@pytest.mark.parametrize("client", NAMES)
@pytest.mark.parametrize("name", cp.PRESETS)
def test_every_preset_by_every_sdk(
    make_proxy: ProxyMaker, upstream: Upstream, world: World, name: str, client: str
) -> None:
    rig = Rig(preset_case(name), make_proxy, upstream, world)
    stream = (list(cp.PRESETS).index(name) + NAMES.index(client)) % 2 == 0  # each four have both
    converse(rig, client, stream=stream)
    sent = {seen.headers.get("authorization") for seen in upstream.seen}
    assert sent == ({"Bearer sk-real"} if cp.PRESETS[name].keys else {None})


def test_every_peculiar_preset_is_one() -> None:
    assert PRESET_CHECKS.keys() <= cp.PRESETS.keys()


# --- tokens that have ended


def say_hi(rig: Rig) -> None:
    talk = CLIENTS["chat"](rig.proxy.url, stream=False)
    talk.ask("How is the weather?")
    assert talk.say(rig.case.model)[0] == FIRST.text, all_faults(rig.stand_ins.values())


CHANGING = {  # what a new token brings with it
    "access_token", "refresh_token", "api_key", "expired", "last_refresh", "timestamp", "expires_in", "expiry", "token",
}  # fmt: skip
LOGGED_IN = {  # vertex signs for its tokens: tests/test_vertex.py
    case.login: case for case in CASES.values() if case.login and case.login != "vertex"
}
ROTATES = set(LOGGED_IN) - {"gemini", "antigravity"}  # Google's refresh tokens stay


@pytest.mark.parametrize("ends", [-60.0, 3_000.0], ids=["expired", "refused"])
@pytest.mark.parametrize("login", LOGGED_IN)
def test_a_token_that_has_ended_is_renewed(
    make_proxy: ProxyMaker, upstream: Upstream, world: World, login: str, ends: float
) -> None:
    rig = Rig(LOGGED_IN[login], make_proxy, upstream, world)
    file = rig.proxy.auth_dir / rig.log_in(ends, note="kept")
    old = json.loads(file.read_text())
    world.access.clear()  # of either it is told only when it is used, or not even then
    say_hi(rig)
    new = json.loads(file.read_text())
    renewals = [ask for ask in world.asks if "refresh_token" in ask.body]
    assert (len(renewals), len(upstream.seen)) == (1, 1 if ends < 0 else 2)
    inner = new.get("token", new)
    assert world.access[inner["access_token"]] == login
    held = old.get("token", old)["refresh_token"]
    assert (inner["refresh_token"] != held) is (login in ROTATES)
    kept = old.keys() - cp.LOGINS[login].keep.split() - CHANGING
    assert {key: new[key] for key in kept} == {key: old[key] for key in kept}
    assert kept >= {"note", "type"}
    say_hi(rig)
    assert len([ask for ask in world.asks if "refresh_token" in ask.body]) == 1


@pytest.mark.parametrize("login", LOGGED_IN)
def test_a_login_that_has_ended_is_told_with_what_to_run(
    make_proxy: ProxyMaker, upstream: Upstream, world: World, login: str
) -> None:
    rig = Rig(LOGGED_IN[login], make_proxy, upstream, world)
    rig.log_in(-60)
    world.live.clear()
    body = {"model": rig.case.model, "messages": [{"role": "user", "content": "hi"}]}
    got = rig.proxy.ask("/v1/chat/completions", body)
    assert (got.status, got.json()["error"]["type"]) == (401, "authentication_error")
    assert f"run `cliproxy login {login}`" in got.json()["error"]["message"]
    assert upstream.seen == []


# --- what each provider says when it refuses, and what that comes to


class Refusal(NamedTuple):
    """An upstream's error, and what is to be seen of it by a client of Chat Completions."""

    case: str
    status: int
    body: Any
    got: tuple[int, str]  # the status, and the `type` of the error
    rest: float = 0.0  # seconds, of this model; negative: of the whole account; 0: none
    headers: dict[str, str] = {}  # noqa: RUF012 -- never written to


def openai_error(code: str, message: str = "no", **more: Any) -> Json:
    return {"error": {"message": message, "type": code, "code": code, **more}}


def google_error(status: str, message: str = "no", *details: Json) -> Json:
    return {"error": {"code": 0, "message": message, "status": status, "details": list(details)}}


def info(reason: str, **metadata: str) -> Json:
    return {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "metadata": metadata}


def in_a_minute(_: Any = None) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 60))


RETRY = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "37.5s"}
SPENT = "RESOURCE_EXHAUSTED"
MALFORMED = (400, "invalid_request_error")
LIMITED, BUSY = (429, "rate_limit_error"), (503, "server_error")
CODEX, QUOTA = "login codex", "insufficient_quota"
# fmt: off
REFUSALS = {
    "Codex, try again in":        Refusal(CODEX, 429, openai_error("rate_limit_exceeded", "Rate limit reached. Please try again in 1h2m3s."), LIMITED, 3_723),
    "Codex, in milliseconds":     Refusal(CODEX, 429, openai_error("rate_limit_exceeded", "Please try again in 2500ms."), LIMITED, 2.5),
    "Codex, usage_not_included":  Refusal(CODEX, 429, openai_error("usage_not_included"), (429, "permission_error"), -120),
    "Codex, at capacity":         Refusal(CODEX, 400, {"detail": "Selected model is at capacity. Please try a different model."}, MALFORMED, 1),
    "Codex, context":             Refusal(CODEX, 400, openai_error("context_length_exceeded"), MALFORMED),
    "Codex, policy":              Refusal(CODEX, 400, openai_error("cyber_policy"), MALFORMED),
    "Codex, prompt":              Refusal(CODEX, 400, openai_error("invalid_prompt"), MALFORMED),
    "Codex, foreign proof":       Refusal(CODEX, 400, openai_error("invalid_encrypted_content"), MALFORMED),
    "Codex, parameter":           Refusal(CODEX, 400, {"detail": "Unsupported parameter: temperature"}, MALFORMED),
    "Codex, overloaded":          Refusal(CODEX, 503, openai_error("server_is_overloaded"), BUSY, 60),
    "OpenAI, quota":              Refusal("OPENAI_API_KEY", 429, openai_error(QUOTA), (429, QUOTA), -120),
    "OpenAI, key":                Refusal("codex-api-key", 401, openai_error("invalid_api_key"), (401, "authentication_error"), -1_800),
    "Claude, only for its own":   Refusal("login claude", 400, {"type": "error", "error": {"type": "invalid_request_error",
                                          "message": "This credential is only authorized for use with Claude Code and cannot be used"}}, MALFORMED),
    "Claude, extra usage":        Refusal("login claude", 400, {"type": "error", "error": {"type": "invalid_request_error",
                                          "message": "Third-party apps now draw from your extra usage, not your plan limits."}}, MALFORMED, -1_800),
    "Gemini, RetryInfo":          Refusal("gemini-api-key", 429, google_error(SPENT, "no", RETRY), LIMITED, 37.5),
    "Gemini, quotaResetDelay":    Refusal("gemini-api-key", 429, google_error(SPENT, "no", info("QUOTA_EXHAUSTED", quotaResetDelay="1h16m0.6s")),
                                          LIMITED, 4_560),
    "Gemini, in its words":       Refusal("gemini-api-key", 429, google_error(SPENT, "Your quota will reset after 12s."), LIMITED, 12),
    "Gemini, no hint":            Refusal("gemini-api-key", 429, google_error(SPENT), LIMITED, 1),
    "Gemini, key":                Refusal("GEMINI_API_KEY", 400, google_error("INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.",
                                          info("API_KEY_INVALID")), (400, "authentication_error"), -1_800),
    "Gemini, argument":           Refusal("gemini-api-key", 400, google_error("INVALID_ARGUMENT"), MALFORMED),
    "Vertex, overloaded":         Refusal("vertex-api-key", 503, google_error("UNAVAILABLE", "The model is overloaded."), BUSY, 60),
    "Gemini CLI, capacity":       Refusal("login gemini", 429, google_error(SPENT, "no", info("MODEL_CAPACITY_EXHAUSTED"), RETRY), LIMITED, 37.5),
    "Gemini CLI, time of reset":  Refusal("login gemini", 429, google_error(SPENT, "no", info("QUOTA_EXHAUSTED", quotaResetTimeStamp="MINUTE")), LIMITED, 60),
    "Gemini CLI, verify":         Refusal("login gemini", 403, google_error("PERMISSION_DENIED", "verify", info("VALIDATION_REQUIRED")),
                                          (403, "permission_error"), 1_800),
    "Gemini CLI, cancelled":      Refusal("login gemini", 499, google_error("CANCELLED"), (499, "server_error"), 60),
    "Antigravity, forbidden":     Refusal("login antigravity", 403, google_error("PERMISSION_DENIED", "no", info("SERVICE_DISABLED")),
                                          (403, "permission_error"), 1_800),
    "Kimi, coding agents only":   Refusal("login kimi", 403, {"error": {"type": "access_terminated_error",
                                          "message": "Kimi For Coding is currently only available for Coding Agents"}},
                                          (403, "access_terminated_error"), 1_800),
    "Kimi, 429":                  Refusal("login kimi", 429, openai_error("rate_limit_reached_error"),
                                          (429, "rate_limit_reached_error"), 9, {"retry-after": "9"}),
    "Qwen, quota as 403":         Refusal("login qwen", 403, openai_error(QUOTA, "Free allocated quota exceeded."), (403, QUOTA), -120),
    "Qwen, quota, retry-after":   Refusal("login qwen", 403, openai_error("quota_exceeded"), (403, "quota_exceeded"), -55, {"retry-after": "55"}),
    "Qwen, quota in words":       Refusal("login qwen", 429, openai_error("x", "Free allocated quota exceeded."), (429, "x"), -120),
    "xAI, spending limit":        Refusal("login xai", 402, openai_error("personal-team-blocked:spending-limit"), (402, QUOTA), 1_800),
    "xAI, free usage":            Refusal("login xai", 429, openai_error("free-usage-exhausted"), LIMITED, -86_400),
}
# fmt: on


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_in_the_provider_s_words(
    make_proxy: ProxyMaker, upstream: Upstream, world: World, name: str
) -> None:
    refusal = REFUSALS[name]
    rig = Rig(CASES[refusal.case], make_proxy, upstream, world, request_retry=0)
    if rig.case.login:
        rig.log_in()
    body = json.dumps(refusal.body).replace("MINUTE", in_a_minute())
    headers = {"content-type": "application/json", **refusal.headers}
    answer = make_reply(body, refusal.status, headers)
    rig.serving("chat").refusal = lambda _: answer
    ask = {"model": rig.case.model, "messages": [{"role": "user", "content": "hi"}]}
    got = rig.proxy.ask("/v1/chat/completions", ask)
    assert (got.status, got.json()["error"]["type"]) == refusal.got
    rests = (rig.proxy.app.router.state() or {"cooldowns": []})["cooldowns"]
    told = [(row["model"] == "", row["end"] - time.time()) for row in rests]
    if not refusal.rest:
        assert told == []
        return
    ((whole, left),) = told
    assert whole is (refusal.rest < 0)
    assert abs(refusal.rest) - 3 <= left <= abs(refusal.rest) + 1


@pytest.mark.parametrize("words", ["bad-credentials", "The access token could not be validated."])
def test_xai_says_forbidden_for_a_token_that_has_ended(
    make_proxy: ProxyMaker, upstream: Upstream, world: World, words: str
) -> None:
    rig = Rig(LOGGED_IN["xai"], make_proxy, upstream, world)
    rig.log_in()
    (ended,) = world.access
    refused = make_reply({"code": words, "error": words}, 403)
    rig.serving("chat").refusal = lambda seen: refused if ended in str(seen.headers) else None
    say_hi(rig)
    assert len(upstream.seen) == 2


OVERLOADED = {"code": "server_is_overloaded", "message": "Our servers are currently overloaded."}


def test_codex_is_overloaded_after_it_has_begun(
    make_proxy: ProxyMaker, upstream: Upstream, world: World
) -> None:
    """A whole answer is not begun yet: the next account is asked."""
    rig = Rig(LOGGED_IN["codex"], make_proxy, upstream, world)
    rig.log_in()
    rig.log_in(name="codex-bob@example.com-plus.json")
    first = frame(
        {"type": "response.created", "response": {"id": "r", "status": "in_progress", "output": []}}
    )
    failed = {"id": "r", "status": "failed", "output": [], "error": OVERLOADED}
    busy = make_reply([first, frame({"type": "response.failed", "response": failed})], headers=SSE)
    rig.serving("chat").refusal = lambda _: busy if len(upstream.seen) == 1 else None
    say_hi(rig)
    assert len(upstream.seen) == 2
