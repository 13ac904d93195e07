"""Settings as users of CLIProxyAPI write them: each loads without a warning and does what it says.

What test_config.py, test_models.py, test_accounts.py and test_server.py hold of them is not
repeated here. Source: spec/config.md 2 to 8, spec/providers.md 11.2 and 12.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import cliproxy as cp
from support.proxy import Got, Proxy
from support.upstream import Reply, Seen, Upstream, make_reply

pytest.importorskip("yaml")
Json = dict[str, Any]
TALK = [{"role": "user", "content": "hi"}]
ASKS: dict[str, tuple[str, Json]] = {  # dialect -> path, body without its model
    "claude": ("/v1/messages", {"max_tokens": 77, "messages": TALK}),
    "chat": ("/v1/chat/completions", {"max_tokens": 77, "messages": TALK}),
    "responses": ("/v1/responses", {"input": "hi"}),
    "gemini": ("/v1beta/models/{}:generateContent", {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}),
}  # fmt: skip
SPOKEN: Json = {"choices": [{"message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}]}
MESSAGE: Json = {"type": "message", "role": "assistant", "model": "real", "content": [], "usage": {}}
CONTENT: Json = {"candidates": [{"content": {"parts": [{"text": "x"}]}, "finishReason": "STOP"}]}
RESPONSE: Json = {"id": "r", "object": "response", "status": "completed", "output": [], "model": "real"}


def answers(seen: Seen) -> Reply:
    """Answer any call in the dialect of its path."""
    if seen.path.endswith("/responses"):
        event = {"type": "response.completed", "response": RESPONSE}
        return make_reply([cp.sse_frame(event)], headers={"content-type": "text/event-stream"})
    if "messages" in seen.path:
        return make_reply(MESSAGE)
    if "completions" in seen.path:
        return make_reply(SPOKEN)
    body = {"response": CONTENT} if "v1internal" in seen.path else CONTENT
    if "alt=sse" in seen.path:
        return make_reply([cp.sse_frame(body)], headers={"content-type": "text/event-stream"})
    return make_reply(body)


class Written(Proxy):
    """A proxy whose settings are a text in a file: URL and HOME stand for what is only known now."""

    def __init__(self, folder: Path, upstream: Upstream, text: str, form: str) -> None:
        text = text.replace("URL", upstream.url).replace("HOME", str(folder))
        text = f"{'' if 'auth-dir:' in text else f'auth-dir: {folder}/auth'}\nport: 0\n{text}"
        self.folder, self.form, self.text = folder, form, text
        super().__init__(folder, upstream, {}, {})

    def write(self, config: Json) -> None:
        name = {"yaml": "cliproxyapi.conf", "json": "config.json"}[self.form]
        self.path = self.folder / name
        whole = self.text if self.form == "yaml" else json.dumps(cp.yaml_read(self.text))
        self.path.write_text(whole, encoding="utf-8")
        self.auth_dir = Path(cp.load_config(self.path)["auth-dir"])
        self.auth_dir.mkdir(parents=True, exist_ok=True)

    def log_in(self, type: str, **fields: Any) -> None:
        """Put a credential file whose upstream is the scripted one into the auth dir."""
        data = {
            "type": type,
            "access_token": "tok",
            "base_url": self.upstream.url,
            "project_id": "p",
            **fields,
        }
        (self.auth_dir / f"{type}-x.json").write_text(json.dumps(data), encoding="utf-8")
        self.app.poll()

    def ask_model(self, model: str, dialect: str = "chat", headers: Any = None, **more: Any) -> Got:
        path, body = ASKS[dialect]
        named = body if dialect == "gemini" else {**body, "model": model}
        return self.ask(path.format(model), {**named, **more}, headers)

    def names(self) -> set[str]:
        return {row["id"] for row in self.ask("/v1/models").json()["data"]}


Writer = Callable[[str], Written]


@pytest.fixture(params=["yaml", "json"])
def write(request: pytest.FixtureRequest, tmp_path: Path, upstream: Upstream) -> Iterator[Writer]:
    """Start proxies from the text of a file, as YAML and as JSON."""
    running: list[Written] = []

    def start(text: str) -> Written:
        folder = tmp_path / str(len(running))
        folder.mkdir()
        running.append(Written(folder, upstream, text, request.param))
        upstream.replies = [answers] * 30
        return running[-1]

    yield start
    for proxy in running:
        proxy.close()


def warnings(proxy: Proxy) -> list[str]:
    return [line.partition(": ")[2] for line in proxy.app.config.warnings]


# --- one feature a case -----------------------------------------------------------------------


def check_keys(proxy: Written, upstream: Upstream) -> None:
    assert proxy.ask_model("m").status == 401
    for headers in ({"authorization": "Bearer 0123"}, {"x-api-key": "sk two"}):
        assert proxy.ask_model("m", headers=headers).status == 200


def check_auth_dir(proxy: Written, upstream: Upstream) -> None:
    assert proxy.auth_dir == proxy.folder / "some where"
    proxy.log_in("claude")
    assert "claude-opus-4-8" in proxy.names()


def check_home(proxy: Written, upstream: Upstream) -> None:
    assert proxy.auth_dir == Path("~/.cli-proxy-api").expanduser()
    assert "~" not in str(proxy.auth_dir)
    proxy.log_in("claude")
    assert "claude-opus-4-8" in proxy.names()


def check_way_out(proxy: Written, upstream: Upstream) -> None:
    """The upstream plays the HTTP proxy; nothing listens where the base URL points."""
    assert proxy.ask_model("m").status == 200
    assert upstream.seen[0].path == "http://127.0.0.1:1/v1/chat/completions"
    assert "proxy-authorization" in upstream.seen[0].headers


def check_no_way_out(proxy: Written, upstream: Upstream) -> None:
    assert proxy.ask_model("m").status == 200
    assert upstream.seen[0].path == "/v1/chat/completions"


def check_bootstrap(proxy: Written, upstream: Upstream) -> None:
    upstream.replies = [make_reply({"error": {"message": "x"}}, 500)] * 2 + [answers]
    got = proxy.ask_model("m", stream=True)
    assert (got.status, len(upstream.seen)) == (200, 3)
    upstream.replies = [make_reply({"error": {"message": "x"}}, 500)] * 9
    assert (proxy.ask_model("m", stream=True).status, len(upstream.seen)) == (500, 6)
    assert (proxy.ask_model("m").status, len(upstream.seen)) == (500, 7), "for streams alone"


def check_served(proxy: Written, upstream: Upstream) -> None:
    assert proxy.ask_model("m").status == 200


def check_gemini(proxy: Written, upstream: Upstream) -> None:
    assert {"g/fast", "fast"} <= proxy.names()
    assert {"gemini-2.5-pro", "gemini-2.5-flash", "hidden"}.isdisjoint(proxy.names())
    got = proxy.ask("/v1beta/models/g%2Ffast:generateContent", ASKS["gemini"][1], {"x-who": "me"})
    assert got.status == 200
    seen = upstream.seen[0]
    assert seen.path == "/v1beta/models/gemini-2.5-flash:generateContent"
    assert (seen.headers["x-goog-api-key"], seen.headers["x-custom"], seen.headers["x-copied"]) == (
        "AIza1",
        "v",
        "me",
    )


def check_codex(proxy: Written, upstream: Upstream) -> None:
    assert proxy.ask_model("mine", "responses").status == 200
    seen = upstream.seen[0]
    assert (seen.path, seen.headers["authorization"]) == ("/v1/responses", "Bearer sk-1")
    assert seen.json()["model"] == "gpt-5.5"


def check_claude(proxy: Written, upstream: Upstream) -> None:
    assert proxy.ask_model("opus", "claude").status == 200
    assert upstream.seen[0].json()["model"] == "claude-opus-4-8"
    assert upstream.seen[0].json()["messages"] == TALK, "cloak and its like have no effect"
    assert "claude-cli" not in upstream.seen[0].headers["user-agent"]


def check_vertex(proxy: Written, upstream: Upstream) -> None:
    assert proxy.ask_model("v", "gemini").status == 200
    assert upstream.seen[0].path == "/v1/publishers/google/models/gemini-2.5-pro:generateContent"


def check_compatible(proxy: Written, upstream: Upstream) -> None:
    assert "off" not in proxy.names()
    for _ in range(2):
        assert proxy.ask_model("kimi").status == 200
    assert [seen.headers["authorization"] for seen in upstream.seen] == ["Bearer a", "Bearer b"]
    assert {seen.json()["model"] for seen in upstream.seen} == {"moonshotai/kimi-k2"}


def check_no_key(proxy: Written, upstream: Upstream) -> None:
    assert proxy.ask_model("m").status == 200
    assert "authorization" not in upstream.seen[0].headers


def check_disabled(proxy: Written, upstream: Upstream) -> None:
    assert proxy.names() == {"echo", "m"}


def check_priority(proxy: Written, upstream: Upstream) -> None:
    for _ in range(2):
        proxy.ask_model("m")
    assert [seen.headers["authorization"] for seen in upstream.seen] == ["Bearer high"] * 2


def check_weights(proxy: Written, upstream: Upstream) -> None:
    for _ in range(6):
        proxy.ask_model("m")
    keys = sorted(seen.headers["authorization"][7:] for seen in upstream.seen)
    assert keys == ["a", "a", "a", "a", "b", "b"]


def check_cooling(proxy: Written, upstream: Upstream) -> None:
    upstream.replies = [make_reply({"error": {"message": "x"}}, 429)] * 2
    assert proxy.ask_model("m").status == proxy.ask_model("m").status == 429
    assert len(upstream.seen) == 2, "it is asked again at once"


def check_forced_prefix(proxy: Written, upstream: Upstream) -> None:
    assert proxy.names() == {"echo", "team/m", "same", "same/same", "free"}
    assert [proxy.ask_model(name).status for name in ("m", "team/m", "same")] == [404, 200, 200]


def check_mapped(proxy: Written, upstream: Upstream) -> None:
    got = proxy.ask("/api/provider/openai/v1/chat/completions", {"model": "gpt-9", "messages": TALK})
    assert (got.status, upstream.seen[0].json()["model"]) == (200, "m")


def check_rounds(proxy: Written, upstream: Upstream) -> None:
    upstream.replies = [make_reply({"error": {"message": "x"}}, 429, {"retry-after-ms": "5"})] * 9
    assert proxy.ask_model("m").status == 429
    assert len(upstream.seen) == 3, "two more rounds; the entry may ask for none"
    assert proxy.ask_model("once").status == 429
    assert len(upstream.seen) == 4


UP = """
openai-compatibility:
  - name: up
    base-url: URL/v1
    api-key-entries: [{api-key: k}]
    models: [{name: m}]
"""
# fmt: off
CASES = [
    pytest.param(UP + 'api-keys:\n  - 0123\n  - "sk two"\n', check_keys, id="api-keys"),
    pytest.param(UP + 'auth-dir: "HOME/some where"', check_auth_dir, id="auth-dir"),
    pytest.param(UP + "auth-dir: ~/.cli-proxy-api", check_home, id="auth-dir with a tilde"),
    pytest.param(UP + "host: 127.0.0.1\ntls:\n  enable: false\n  cert: \"\"\n  key: ''\n", check_served, id="host, tls"),
    pytest.param(UP + """
remote-management:
  allow-remote: false
  secret-key: ""
  disable-control-panel: false
  panel-github-repository: "https://github.example/org/panel"
  disable-auto-update-panel: false
debug: no
pprof: {enable: off, addr: "127.0.0.1:8316"}
commercial-mode: false
logging-to-file: false
logs-max-total-size-mb: 0
error-logs-max-files: 10
usage-statistics-enabled: false
request-log: false
ws-auth: true
quota-exceeded: {switch-project: true, switch-preview-model: true}
""", check_served, id="management, logs"),
    pytest.param(UP + """
plugins: {enabled: false, dir: plugins}
credential-concurrency: 0
credential-in-flight: {max: 1}
redis-usage-queue-retention-seconds: 60
passthrough-headers: false
max-retry-credentials: 0
save-cooldown-status: false
transient-error-cooldown-seconds: 0
disable-claude-cloak-mode: true
claude-code: {a: 1}
disable-image-generation: false
gpt-image-2-base-model: gpt-5.5
video-result-auth-cache-ttl: 3h
auth-auto-refresh-workers: 16
quota-exceeded: {antigravity-credits: true}
routing: {strategy: wrr, session-affinity: true, session-affinity-ttl: 1h}
codex: {}
antigravity: {}
xai: {}
antigravity-signature-cache-enabled: true
antigravity-signature-bypass-strict: false
interactions-api-key: []
xai-api-key: []
claude-header-defaults: {user-agent: x}
codex-header-defaults: {}
oauth-request-scoped-errors: {}
""", check_served, id="later keys"),
    pytest.param(UP + "gemini-api-key:\nclaude-api-key:\ncodex-api-key: ~\napi-keys:\npayload:\nampcode:\nrouting:\n", check_served, id="nulls"),
    pytest.param(UP.replace("URL", "http://127.0.0.1:1") + 'proxy-url: "http://user:pass@UPSTREAM/"', check_way_out, id="proxy-url"),
    pytest.param(UP.replace("URL", "http://127.0.0.1:1").replace("{api-key: k}", '{api-key: k, proxy-url: "http://user:pass@UPSTREAM"}'),
                 check_way_out, id="proxy-url of a key"),
    pytest.param(UP.replace("{api-key: k}", "{api-key: k, proxy-url: direct}") + "proxy-url: socks5://127.0.0.1:1", check_no_way_out, id="proxy-url: direct"),
    pytest.param(UP + "streaming:\n  keepalive-seconds: 15\n  bootstrap-retries: 2\nrequest-retry: 0\nnonstream-keepalive-interval: 0\n",
                 check_bootstrap, id="bootstrap-retries"),
    pytest.param("""
gemini-api-key:
  - api-key: " AIza1 "
    prefix: "/g/"
    base-url: URL/
    headers:
      X-Custom: v
      X-Copied: $X-Who
    proxy-url: direct
    priority: 0
    models:
      - {name: gemini-2.5-flash, alias: fast}
      - {name: hidden}
    excluded-models: [gemini-2.5-pro, "gemini-2.0-*", "*-preview", "*IDDE*"]
""", check_gemini, id="gemini-api-key"),
    pytest.param("""
codex-api-key:
  - api-key: sk-1
    base-url: URL/v1
    models: [{name: gpt-5.5, alias: mine}]
    websockets: true
""", check_codex, id="codex-api-key"),
    pytest.param("""
claude-api-key:
  - api-key: sk-ant-1
    base-url: URL
    models: [{name: claude-opus-4-8, alias: opus}]
    cloak: {mode: always, strict-mode: true, sensitive-words: [hi], cache-user-id: true}
    fingerprint-profile: x
    experimental-cch-signing: true
    rebuild-mid-system-message: true
""", check_claude, id="claude-api-key"),
    pytest.param("""
vertex-api-key:
  - api-key: vk
    base-url: URL
    models: [{name: gemini-2.5-pro, alias: v}]
""", check_vertex, id="vertex-api-key"),
    pytest.param("""
openai-compatibility:
  - name: OpenRouter
    prefix: ""
    disabled: false
    base-url: URL/v1
    headers: {X-Title: mine}
    support-prompt-cache-key: true
    api-key-entries:
      - api-key: a
        proxy-url: ""
      - {api-key: b, weight: 1}
    models:
      - name: moonshotai/kimi-k2
        alias: kimi
        display-name: Kimi
        max-context-length: 131072
        image: false
        input-modalities: [text]
        is-compat: true
        thinking: {levels: [low, high]}
  - {name: off, disabled: yes, base-url: URL, models: [{name: off}]}
""", check_compatible, id="openai-compatibility"),
    pytest.param("openai-compatibility: [{name: local, base-url: URL/v1, models: [{name: m}]}]", check_no_key, id="an endpoint without a key"),
    pytest.param(UP + "claude-api-key: [{api-key: k, base-url: URL, excluded-models: ['*']}]", check_disabled, id="excluded-models: *"),
    pytest.param("""
openai-compatibility:
  - {name: a, base-url: URL/v1, priority: -1, api-key-entries: [{api-key: low}], models: [{name: m}]}
  - {name: b, base-url: URL/v1, priority: 10, api-key-entries: [{api-key: high}], models: [{name: m}]}
""", check_priority, id="priority"),
    pytest.param("""
routing: {strategy: weighted-round-robin}
openai-compatibility:
  - {name: a, base-url: URL/v1, models: [{name: m}], api-key-entries: [{api-key: a, weight: 2}, {api-key: b}, {api-key: c, weight: 0}]}
""", check_weights, id="weight"),
    pytest.param(UP + "disable-cooling: true\nrequest-retry: 0", check_cooling, id="disable-cooling"),
    pytest.param(UP.replace("name: up", "name: up\n    disable-cooling: on") + "request-retry: 0", check_cooling, id="disable-cooling of an entry"),
    pytest.param("""
force-model-prefix: true
openai-compatibility:
  - {name: a, prefix: team, base-url: URL/v1, models: [{name: m}]}
  - {name: b, prefix: same, base-url: URL/v1, models: [{name: same}]}
  - {name: c, base-url: URL/v1, models: [{name: free}]}
""", check_forced_prefix, id="force-model-prefix"),
    pytest.param(UP + """
ampcode:
  upstream-url: "https://ampcode.com"
  upstream-api-key: ""
  upstream-api-keys:
    - upstream-api-key: amp-1
      api-keys: [k1, k2]
  restrict-management-to-localhost: false
  force-model-mappings: false
  model-mappings:
    - from: gpt-[89]
      to: m
      regex: true
""", check_mapped, id="ampcode"),
    pytest.param("""
request-retry: 2
max-retry-interval: 30
openai-compatibility:
  - {name: a, base-url: URL/v1, models: [{name: m}]}
  - {name: b, base-url: URL/v1, request-retry: 0, models: [{name: once}]}
""", check_rounds, id="request-retry"),
]
# fmt: on


@pytest.mark.parametrize(("text", "check"), CASES)
def test_a_feature(
    write: Writer,
    upstream: Upstream,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    check: Callable[[Written, Upstream], None],
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    proxy = write(text.replace("UPSTREAM", upstream.url.partition("//")[2]))
    assert warnings(proxy) == []
    check(proxy, upstream)


# --- channels of logins -------------------------------------------------------------------------

CHANNELS = [  # type of the file, channel, a model that it lists, dialect of its upstream
    ("claude", "claude", "claude-opus-4-8", "claude"),
    ("codex", "codex", "gpt-5.5", "responses"),
    ("gemini", "gemini-cli", "gemini-2.5-pro", "gemini"),
    ("antigravity", "antigravity", "gemini-3-flash", "gemini"),
    ("kimi", "kimi", "kimi-k2.5", "chat"),
    ("qwen", "qwen", "coder-model", "chat"),
    ("iflow", "iflow", "glm-4.6", "chat"),
    ("xai", "xai", "grok-4.5", "responses"),
]


@pytest.mark.parametrize(("type", "channel", "model", "dialect"), CHANNELS)
@pytest.mark.parametrize("key", ["oauth-model-alias", "oauth-model-mappings", "model-name-mappings"])
def test_aliases_of_every_channel(  # noqa: PLR0917 -- a column each
    write: Writer, upstream: Upstream, type: str, channel: str, model: str, dialect: str, key: str
) -> None:
    proxy = write(f"""
providers: {{antigravity: {{enabled: true}}}}
{key}:
  {channel.upper()}:
    - {{name: {model}, alias: mine}}
    - {{name: {model}, alias: also, fork: true}}
    - {{name: {model}, alias: {model.upper()}}}
    - {{name: {model}, alias: MINE}}
oauth-excluded-models:
  {channel}: ["*-nano", {model[:-1]}]
""")
    old = [] if key == "oauth-model-alias" else [f"{key} is an old spelling of oauth-model-alias"]
    assert warnings(proxy) == old
    proxy.log_in(type, api_key="k")
    assert {"mine", "also", model} <= proxy.names()
    for name in ("mine", "also", model):
        assert proxy.ask_model(name, dialect).status == 200
    for seen in upstream.seen:
        asked = seen.json().get("model") or seen.path
        assert model.removeprefix("kimi-") in asked


@pytest.mark.parametrize(("type", "channel", "model", "dialect"), CHANNELS)
def test_exclusions_of_every_channel(
    write: Writer, type: str, channel: str, model: str, dialect: str
) -> None:
    proxy = write(f"""
providers: {{antigravity: {{enabled: true}}}}
oauth-excluded-models:
  {channel}:
    - {model[:5].upper()}*
""")
    assert warnings(proxy) == []
    proxy.log_in(type, api_key="k")
    assert model not in proxy.names()


# --- payload ------------------------------------------------------------------------------------

BOTH = """
claude-api-key: [{api-key: k, base-url: URL, models: [{name: m-claude}]}]
openai-compatibility: [{name: up, base-url: URL/v1, models: [{name: m-chat, alias: "org/chat"}]}]
"""
RULES = """
payload:
  default:
    - models: [{name: "m-*"}]
      params: {temperature: 0.5, "metadata.who": me, max_tokens: 5}
    - models: [{name: "m-*"}]
      params: {temperature: 0.1}
  default-raw:
    - models: [{name: "m-*", protocol: ""}]
      params:
        stop_sequences: '["x"]'
  override:
    - models: [{name: "m-*"}]
      params: {top_p: 0.25, 'messages.0.a\\.b': true, messages.-1: {role: user, content: more}}
  override-raw:
    - models: [{name: "m-*"}]
      params:
        cache: '{"ttl": "1h", "n": 1.5}'
        plain: 7
  filter:
    - models: [{name: "m-*"}]
      params: [user, nothing.there, messages.0.name]
"""
LANES = [("claude", "m-claude"), ("chat", "m-claude"), ("chat", "org/chat"), ("claude", "org/chat")]


@pytest.mark.parametrize(("client", "model"), LANES)
def test_payload_on_both_lanes(write: Writer, upstream: Upstream, client: str, model: str) -> None:
    proxy = write(BOTH + RULES)
    assert warnings(proxy) == []
    assert proxy.ask_model(model, client, user="u").status == 200
    body = upstream.seen[0].json()
    assert (body["temperature"], body["metadata"]["who"], body["max_tokens"]) == (0.5, "me", 77)
    assert body["stop_sequences"] == ["x"]
    assert (body["top_p"], body["cache"], body["plain"]) == (0.25, {"ttl": "1h", "n": 1.5}, 7)
    assert [message.get("a.b") for message in body["messages"]] == [True, None]
    assert "user" not in body


# fmt: off
CONDITIONS = [  # in a `models` entry; does it hold for Claude's client, for Chat's client? the upstream is Claude
    ("name: m-claude",                              True,  True),
    ("name: M-*",                                   False, False),
    ("name: team/m-*",                              True,  True),   # as the client wrote it
    ('name: "*(high)"',                             False, False),
    ("name: '*', protocol: Claude",                 True,  True),
    ("name: '*', protocol: openai",                 False, False),
    ("name: '*', from-protocol: claude",            True,  False),
    ("name: '*', from-protocol: OpenAI",            False, True),
    ("name: '*', headers: {X-Tier: 'paid-*'}",      True,  True),
    ("name: '*', headers: [{X-Tier: paid-7}, {x-other: no}]", False, False),
    ("name: '*', headers: {X-Tier: free}",          False, False),
    ("name: '*', match: {max_tokens: 77}",          True,  True),
    ("name: '*', match: [{max_tokens: 77}, {messages.0.role: user}]", True, True),
    ("name: '*', match: {max_tokens: 78}",          False, False),
    ("name: '*', match: {'messages.#(role==\"user\").role': user}", True, True),
    ("name: '*', not-match: {max_tokens: 78}",      True,  True),
    ("name: '*', not-match: [{max_tokens: 77}]",    False, False),
    ("name: '*', exist: [messages.0.content]",      True,  True),
    ("name: '*', exist: [messages, nothing]",       False, False),
    ("name: '*', not-exist: [nothing]",             True,  True),
    ("name: '*', not-exist: [messages]",            False, False),
    ("name: '*', exist: [], match: {}, headers: ~", True,  True),
]
# fmt: on


@pytest.mark.parametrize(("condition", "same", "other"), CONDITIONS)
def test_payload_conditions(
    write: Writer, upstream: Upstream, condition: str, same: bool, other: bool
) -> None:
    proxy = write(f"""
claude-api-key: [{{api-key: k, base-url: URL, prefix: team, models: [{{name: m-claude}}]}}]
payload:
  override:
    - models:
        - {{{condition}}}
      params: {{top_p: 0.25}}
  filter:
    - models: [{{{condition}}}]
      params: [max_tokens]
""")
    assert warnings(proxy) == []
    for client, holds in (("claude", same), ("chat", other)):
        upstream.seen.clear()
        assert proxy.ask_model("team/m-claude", client, {"x-tier": "paid-7"}).status == 200
        body = upstream.seen[0].json()
        assert (body.get("top_p"), body.get("max_tokens")) == ((0.25, None) if holds else (None, 77))


def test_every_condition_is_a_setting_and_is_tried() -> None:
    keys = [row.key for row in cp.MATCH]
    assert keys == ["name", *cp.PAYLOAD_CONDITIONS]
    assert all(any(f"{key}:" in text for text, _, _ in CONDITIONS) for key in keys)


@pytest.mark.parametrize(
    ("entry", "allowed"),
    [
        ({"match": "a"}, "a mapping"), ({"not-match": [1]}, "a mapping"), ({"headers": 7}, "a mapping"),
        ({"exist": "a"}, "a list"), ({"not-exist": {}}, "a list"), ({"from-protocol": []}, "a text"),
    ],
)  # fmt: skip
def test_conditions_that_cannot_be(entry: Json, allowed: str) -> None:
    rule = {"models": [{"name": "*", **entry}], "params": {"a": 1}}
    (key,) = entry
    with pytest.raises(
        cp.ProxyError, match=rf"payload\.default\[0\]\.models\[0\]\.{key}: .*allowed: {allowed}"
    ):
        cp.parse_config(None, json.dumps({"payload": {"default": [rule]}}))


PROTOCOLS = {
    "claude": "claude", "codex": "codex", "gemini": "gemini", "antigravity": "antigravity", "kimi": "openai", "qwen": "openai",
    "iflow": "openai", "xai": "codex",
}  # fmt: skip


@pytest.mark.parametrize(("type", "channel", "model", "dialect"), CHANNELS)
def test_protocols_of_payload_rules(
    write: Writer, upstream: Upstream, type: str, channel: str, model: str, dialect: str
) -> None:
    words = ["openai", "gemini", "claude", "codex", "antigravity"]
    rules = "\n".join(
        f"    - {{models: [{{name: '*', protocol: {word}}}], params: {{x-{word}: 1}}}}" for word in words
    )
    proxy = write(f"providers: {{antigravity: {{enabled: true}}}}\npayload:\n  override:\n{rules}\n")
    proxy.log_in(type, api_key="k")
    assert proxy.ask_model(model, dialect).status == 200
    body = upstream.seen[0].json()
    inner = body.get("request", body)
    assert [word for word in words if f"x-{word}" in inner] == [PROTOCOLS[type]]


# --- request-scoped-errors ------------------------------------------------------------------------

TYPES = {400: "invalid_request_error", 403: "permission_error", 429: "rate_limit_error", 503: "api_error"}


def team_error(status: int) -> Reply:
    error = {"type": TYPES[status], "message": "quota of team 7 is used up"}
    return make_reply({"type": "error", "error": error}, status, {"retry-after": "9"})


# fmt: off
ACTIONS = [  # the rules, the upstream's status, who is asked, does the first rest?
    ("[]",                                                                            400, "a",  False),
    ("[]",                                                                            429, "ab", True),
    ("[{status: 429, action: stop}]",                                                 429, "a",  False),
    ("[{status: 429, match: team 7, action: stop-and-cooldown}]",                     429, "a",  True),
    ("[{status: 400, match-regexr: 'quota.*[0-9] is', action: continue}]",            400, "ab", False),
    ("[{status: 400, action: continue-and-cooldown}]",                                400, "ab", True),
    ("[{match: team 7, action: continue}]",                                           503, "ab", False),
    ("[{status: 400, match: other, action: continue}]",                               400, "a",  False),
    ("[{status: 400, match: team 7, match-regexr: ^no, action: continue}]",           400, "a",  False),
    ("[{status: 500, action: stop}, {action: continue}, {status: 429, action: stop}]", 429, "ab", False),
    ("[{status: 403}]",                                                               403, "a",  False),
]
# fmt: on


@pytest.mark.parametrize(("rules", "status", "asked", "rests"), ACTIONS)
def test_request_scoped_errors(
    write: Writer, upstream: Upstream, rules: str, status: int, asked: str, rests: bool
) -> None:
    proxy = write(f"""
request-retry: 3
routing: {{strategy: fill-first}}
claude-api-key:
  - {{api-key: a, base-url: URL, models: [{{name: m}}], request-scoped-errors: {rules}}}
  - {{api-key: b, base-url: URL, models: [{{name: m}}]}}
""")
    assert warnings(proxy) == []
    upstream.replies = [team_error(status), answers, answers]
    got = proxy.ask_model("m", "claude")
    assert got.status == (200 if asked == "ab" else status)
    keys = [seen.headers["authorization"][-1] for seen in upstream.seen]
    assert "".join(keys) == asked
    proxy.ask_model("m", "claude")
    assert upstream.seen[-1].headers["authorization"][-1] == ("b" if rests else "a")


@pytest.mark.parametrize("place", ["channel", "file"])
def test_request_scoped_errors_of_logins(write: Writer, upstream: Upstream, place: str) -> None:
    rules = [{"status": 429, "match": "team", "action": "stop"}]
    setting = f"oauth-request-scoped-errors: {json.dumps({'claude': rules})}"
    proxy = write(setting if place == "channel" else "")
    bad = [{"match-regexr": "(", "action": "continue"}, {"match": 7}]
    proxy.log_in("claude", **({} if place == "channel" else {"request_scoped_errors": bad + rules}))
    upstream.replies = [team_error(429), answers]
    assert proxy.ask_model("claude-opus-4-8", "claude").status == 429
    assert proxy.ask_model("claude-opus-4-8", "claude").status == 200, "it does not rest"


@pytest.mark.parametrize(
    ("rule", "message"),
    [({"action": "go"}, "stop-and-cooldown"), ({"match-regexr": "("}, "a regular expression")],
)
def test_rules_that_cannot_be(rule: Json, message: str) -> None:
    with pytest.raises(cp.ProxyError, match=message):
        cp.parse_config(None, json.dumps({"claude-api-key": [{"request-scoped-errors": [rule]}]}))


# --- old spellings, and all at once -----------------------------------------------------------------

OLD = """
auth:
  providers:
    - name: default
      type: config-api-key
      api-keys: [sk-one]
generative-language-api-key: [AIza1]
openai-compatibility: [{name: up, base-url: URL/v1, api-keys: [k], models: [{name: m}]}]
amp-upstream-url: https://ampcode.com
amp-model-mappings: [{from: gpt-9, to: m}]
providers: {gemini: {base-url: URL}}
allow-localhost-unauthenticated: true
force-gpt-5-codex: true
gemini-web: {context: true}
codex-instructions-enabled: false
"""


def test_old_spellings(write: Writer, upstream: Upstream) -> None:
    proxy = write(OLD)
    assert all("is an old spelling of ampcode" in line for line in warnings(proxy))
    key = {"authorization": "Bearer sk-one"}
    assert [proxy.ask_model("m", headers=h).status for h in (None, key)] == [401, 200]
    assert proxy.ask_model("gemini-2.5-pro", "gemini", key).status == 200
    got = proxy.ask("/api/provider/x/chat/completions", {"model": "gpt-9", "messages": TALK}, key)
    assert got.status == 200
    assert [seen.headers.get("authorization") for seen in upstream.seen] == ["Bearer k", None, "Bearer k"]


WHOLE = """\
# Everything at once, in the order of CLIProxyAPI's own example.
host: "127.0.0.1"   # bind address
tls:
  enable: false
  cert: ""
  key: ""
remote-management:
  allow-remote: false
  secret-key: ""
  disable-control-panel: false
  panel-github-repository: "https://github.example/org/panel"
api-keys:
  - "sk-one"
  - "sk-two"
debug: false
pprof:
  enable: false
  addr: "127.0.0.1:8316"
plugins: {}
commercial-mode: false
logging-to-file: false
logs-max-total-size-mb: 0
error-logs-max-files: 10
usage-statistics-enabled: false
redis-usage-queue-retention-seconds: 60
proxy-url: ""
force-model-prefix: false
passthrough-headers: false
request-log: false
request-retry: 3
max-retry-credentials: 0
max-retry-interval: 30
disable-cooling: false
save-cooldown-status: false
transient-error-cooldown-seconds: 0
auth-auto-refresh-workers: 16
credential-concurrency: 0
credential-in-flight: 0
disable-image-generation: false
gpt-image-2-base-model: ""
video-result-auth-cache-ttl: 3h
disable-claude-cloak-mode: false
claude-code: {}
quota-exceeded:
  switch-project: true
  switch-preview-model: true
  antigravity-credits: false
routing:
  strategy: "round-robin" # or fill-first
  session-affinity: false
  session-affinity-ttl: "1h"
ws-auth: true
nonstream-keepalive-interval: 0
streaming:
  keepalive-seconds: 15
  bootstrap-retries: 1
antigravity-signature-cache-enabled: true
antigravity-signature-bypass-strict: false
antigravity: {}
codex: {}
xai: {}
claude-header-defaults: {}
codex-header-defaults: {}
interactions-api-key: []
xai-api-key: []
gemini-web: {}
force-gpt-5-codex: false
codex-instructions-enabled: false
allow-localhost-unauthenticated: true
gemini-api-key:
  - api-key: "AIzaSy...01"
    prefix: "test"
    base-url: "URL"
    headers:
      X-Custom-Header: "custom-value"
    proxy-url: "direct"
    models:
      - name: "gemini-2.5-flash"
        alias: "gemini-flash"
    excluded-models:
      - "gemini-2.5-pro"
      - "gemini-1.5-*"
      - "*-preview"
      - "*imagen*"
  - api-key: "AIzaSy...02"
    excluded-models: ["*"]
codex-api-key:
  - api-key: "sk-atSM..."
    prefix: "test"
    base-url: "URL/codex"
    headers: {X-Custom-Header: "custom-value"}
    models:
      - {name: "gpt-5.5", alias: "codex-latest"}
    excluded-models: ["gpt-5.1", "gpt-5-*", "*-mini", "*codex*"]
claude-api-key:
  - api-key: "sk-atSM..."
    base-url: "URL"
    models:
      - {name: "claude-sonnet-4-5-20250929", alias: "claude-sonnet-latest", force-mapping: true}
    cloak:
      mode: "never"
      strict-mode: false
      sensitive-words: ["API", "proxy"]
    weight: 1
    request-retry: 1
    disable-cooling: false
    request-scoped-errors:
      - {status: 400, match: "context", action: stop}
vertex-api-key:
  - api-key: "vk-123..."
    base-url: "URL/vertex"
    models:
      - {name: "gemini-2.5-pro", alias: "vertex-pro"}
openai-compatibility:
  - name: "openrouter"
    prefix: "or"
    base-url: "URL/v1"
    headers: {X-Custom-Header: "custom-value"}
    api-key-entries:
      - api-key: "sk-or-v1-a"
        proxy-url: ""
      - api-key: "sk-or-v1-b"
    models:
      - {name: "moonshotai/kimi-k2:free", alias: "kimi-k2"}
oauth-model-alias:
  claude:
    - {name: "claude-opus-4-8", alias: "opus", fork: true}
oauth-excluded-models:
  claude: ["claude-3-5-haiku-20241022", "claude-sonnet-*", "*-4-1-*"]
oauth-request-scoped-errors: {}
ampcode:
  upstream-url: "https://ampcode.com"
  upstream-api-key: ""
  upstream-api-keys: []
  restrict-management-to-localhost: false
  force-model-mappings: false
  model-mappings:
    - {from: "claude-sonnet-5", to: "kimi-k2"}
payload:
  default:
    - models: [{name: "gemini-2.5-*", protocol: "gemini"}]
      params:
        "generationConfig.thinkingConfig.thinkingBudget": 32768
  default-raw:
    - models: [{name: "gemini-2.5-*"}]
      params:
        "generationConfig.responseJsonSchema": '{"type":"object","properties":{"answer":{"type":"string"}}}'
  override:
    - models:
        - name: "gpt-*"
          protocol: "codex"
      params: {"reasoning.effort": "high"}
  override-raw:
    - models: [{name: "moonshotai/*", protocol: openai, from-protocol: claude, headers: {X-Tier: "*"}, exist: [messages]}]
      params: {response_format: '{"type":"json_object"}'}
  filter:
    - models: [{name: "claude-*", match: {max_tokens: 77}, not-exist: [nothing]}]
      params: ["temperature"]
"""


def test_the_whole_file_uses_every_section() -> None:
    data = cp.yaml_read(WHOLE.replace("URL", "http://h"))
    ours = {"port", "auth-dir"}  # which the fixture writes
    rows = [row for row in cp.SETTINGS if row.status not in {"new", "old"}]
    assert {row.key.partition(".")[0] for row in rows} - ours == data.keys()


def test_everything_at_once(write: Writer, upstream: Upstream) -> None:
    proxy = write(WHOLE)
    assert warnings(proxy) == []
    proxy.log_in("claude", access_token="sk-ant-oat01-x")
    key = {"authorization": "Bearer sk-two", "x-tier": "1"}
    listed = {row["id"] for row in proxy.ask("/v1/models", headers=key).json()["data"]}
    assert {
        "gemini-flash", "test/gemini-flash", "codex-latest", "test/codex-latest", "claude-sonnet-latest", "vertex-pro", "kimi-k2",
        "or/kimi-k2", "opus", "claude-opus-4-8",
    } <= listed  # fmt: skip
    assert {"claude-sonnet-5", "claude-opus-4-1-20250805", "gemini-2.5-pro"}.isdisjoint(listed)
    assert proxy.ask_model("opus", "claude").status == 401
    got = {
        "gemini": proxy.ask_model("gemini-flash", "gemini", key),
        "codex": proxy.ask_model("codex-latest", "responses", key, stream=True),
        "claude": proxy.ask_model("claude-sonnet-latest", "claude", key, temperature=1),
        "vertex": proxy.ask_model("vertex-pro", "gemini", key),
        "chat": proxy.ask_model("or/kimi-k2", "claude", key),
        "oauth": proxy.ask_model("opus", "claude", key, temperature=1, max_tokens=78),
        "amp": proxy.ask("/api/provider/anthropic/v1/messages", {**ASKS["claude"][1], "model": "claude-sonnet-5"}, key),
    }  # fmt: skip
    assert {name: answer.status for name, answer in got.items()} == dict.fromkeys(got, 200)
    seen = dict(zip(got, upstream.seen))
    bodies = {name: each.json() for name, each in seen.items()}
    assert seen["gemini"].path == "/v1beta/models/gemini-2.5-flash:generateContent"
    config = bodies["gemini"]["generationConfig"]
    assert (config["thinkingConfig"]["thinkingBudget"], config["responseJsonSchema"]["type"]) == (
        32_768,
        "object",
    )
    assert seen["vertex"].path.startswith("/vertex/v1/publishers/google/models/gemini-2.5-pro")
    assert (seen["codex"].path, bodies["codex"]["reasoning"]) == ("/codex/responses", {"effort": "high"})
    assert got["claude"].json()["model"] == "claude-sonnet-latest"
    assert ("temperature" in bodies["claude"], "temperature" in bodies["oauth"]) == (False, True)
    assert bodies["chat"]["model"] == "moonshotai/kimi-k2:free"
    assert bodies["chat"]["response_format"] == {"type": "json_object"}
    assert seen["chat"].headers["x-custom-header"] == "custom-value"
    assert (bodies["amp"]["model"], got["amp"].json()["model"]) == (
        "moonshotai/kimi-k2:free",
        "claude-sonnet-5",
    )
