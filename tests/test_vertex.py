"""Vertex with service accounts: their keys, the tokens they sign for, and the calls made with them."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from google import genai

import cliproxy as cp
from support.keys import LOCKED, PKCS1, PKCS8, octets, pem_of
from support.proxy import Proxy, ProxyMaker
from support.upstream import Reply, Seen, Upstream, make_reply

Json = cp.Json
EMAIL = "robot@proj-1.iam.gserviceaccount.com"
TALK = [{"role": "user", "parts": [{"text": "hi"}]}]
ANSWER = {
    "candidates": [{"content": {"role": "model", "parts": [{"text": "Hello"}]}, "finishReason": "STOP", "index": 0}],
    "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 2, "totalTokenCount": 5},
}  # fmt: skip


# --- Accounts


class Cloud:
    """Google as a service account meets it: the token URL, which checks what is signed, and Vertex."""

    def __init__(self, upstream: Upstream, key: rsa.RSAPrivateKey) -> None:
        self.upstream, self.key = upstream, key
        self.tokens: list[str] = []
        self.refusal: Json = {}
        upstream.routes["/token"] = self.token
        self.serve("us-central1")

    def serve(self, location: str) -> None:
        models = f"/v1/projects/proj-1/locations/{location}/publishers/google/models"
        for action in ("generateContent", "streamGenerateContent", "countTokens"):
            self.upstream.routes[f"{models}/gemini-2.5-pro:{action}"] = self.answer

    def key_file(self, **more: Any) -> Json:
        """The file that the Google Cloud console hands out."""
        about = {
            "type": "service_account",
            "project_id": "proj-1",
            "private_key_id": "kid-1",
            "client_id": "1",
        }
        uri = f"{self.upstream.url}/token"
        return {**about, "private_key": pem_of(self.key), "client_email": EMAIL, "token_uri": uri, **more}

    def credential(self, **more: Any) -> Json:
        """The file that CLIProxyAPI makes of it."""
        about = {
            "project_id": "proj-1",
            "email": EMAIL,
            "label": f"proj-1 ({EMAIL})",
            "base_url": self.upstream.url,
        }
        account = {"service_account": self.key_file(), "location": "us-central1"}
        return {**account, **about, "type": "vertex", **more}

    def token(self, seen: Seen) -> Reply:
        form = dict(parse_qsl(seen.body.decode(), strict_parsing=True))
        assert set(form) == {"grant_type", "assertion"}
        assert form["grant_type"] == "urn:ietf:params:oauth:grant-type:jwt-bearer"
        text, _, signature = form["assertion"].rpartition(".")
        public = self.key.public_key()
        public.verify(octets(signature), text.encode(), padding.PKCS1v15(), hashes.SHA256())
        head, claims = (json.loads(octets(part)) for part in text.split("."))
        assert head == {"alg": "RS256", "typ": "JWT", "kid": "kid-1"}
        assert claims.pop("exp") - claims["iat"] == 3600
        assert -60 < claims.pop("iat") - time.time() <= 0
        scope = "https://www.googleapis.com/auth/cloud-platform"
        assert claims == {"iss": EMAIL, "scope": scope, "aud": f"{self.upstream.url}/token"}
        if self.refusal:
            return make_reply(self.refusal, 400)
        self.tokens.append(f"ya29.{len(self.tokens)}")
        return make_reply({"access_token": self.tokens[-1], "expires_in": 3599, "token_type": "Bearer"})

    def answer(self, seen: Seen) -> Reply:
        if not self.tokens or seen.headers.get("authorization") != f"Bearer {self.tokens[-1]}":
            return make_reply({"error": {"code": 401, "status": "UNAUTHENTICATED", "message": "no"}}, 401)
        assert "x-goog-api-key" not in seen.headers
        if "countTokens" in seen.path:
            known = {"contents", "tools", "systemInstruction", "generationConfig"}
            assert seen.json().keys() <= known, "Vertex refuses what it does not know"
            return make_reply({"totalTokens": 7})
        if "stream" in seen.path:
            frames = [cp.sse_frame(ANSWER).replace(b"\n", b"\r\n")]
            return make_reply(frames, headers={"content-type": "text/event-stream"})
        return make_reply(ANSWER)

    def asked(self) -> list[str]:
        return [seen.path for seen in self.upstream.seen]


@pytest.fixture
def cloud(upstream: Upstream, key: rsa.RSAPrivateKey) -> Cloud:
    return Cloud(upstream, key)


NO_KEYS: Json = {
    name: [] for name in ("claude_api_key", "codex_api_key", "gemini_api_key", "openai_compatibility")
}


def lay(proxy: Proxy, data: Json) -> Path:
    path = proxy.auth_dir / "vertex-proj-1.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    proxy.app.poll()
    return path


def ask(proxy: Proxy, action: str = "generateContent") -> int:
    return proxy.ask(f"/v1beta/models/gemini-2.5-pro:{action}", {"contents": TALK}).status


def test_the_google_sdk_talks_to_vertex(make_proxy: ProxyMaker, cloud: Cloud) -> None:
    proxy = make_proxy(**NO_KEYS)
    path = lay(proxy, cloud.credential(note="mine"))
    options = genai.types.HttpOptions(base_url=proxy.url)
    body = {"model": "gemini-2.5-pro", "contents": "hi"}
    with closing(genai.Client(api_key="k", http_options=options)) as client:
        whole = client.models.generate_content(**body)
        stream = list(client.models.generate_content_stream(**body))
        assert client.models.count_tokens(**body).total_tokens == 7
        listed = {str(model.name).removeprefix("models/") for model in client.models.list()}
    assert [whole.text, *(chunk.text for chunk in stream)] == ["Hello", "Hello"]
    assert listed >= {"gemini-2.5-pro", "gemini-3.7-flash", "gemini-3.1-pro", "gemini-3-flash"}
    assert not listed & {"gemini-3-pro-preview", "gemini-pro-latest"}, "those are of AI Studio"
    base = "/v1/projects/proj-1/locations/us-central1/publishers/google/models/gemini-2.5-pro"
    assert cloud.asked() == [
        "/token", f"{base}:generateContent", f"{base}:streamGenerateContent?alt=sse", f"{base}:countTokens",
    ]  # fmt: skip
    data = json.loads(path.read_text())
    assert (data["access_token"], data["note"], data["service_account"]) == (
        cloud.tokens[0],
        "mine",
        cloud.key_file(),
    )
    assert 3500 < (cp.expires_at(data) or 0) - time.time() < 3600


TRANSLATED = [
    pytest.param("/v1/messages", {"max_tokens": 9}, id="messages"),
    pytest.param("/v1/messages/count_tokens", {"tools": [{"name": "f", "input_schema": {"type": "object"}}], "tool_choice": {"type": "any"}}, id="count"),
    pytest.param("/v1/chat/completions", {"stream": True}, id="chat"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "more"), TRANSLATED)
def test_other_dialects_on_vertex(make_proxy: ProxyMaker, cloud: Cloud, path: str, more: Json) -> None:
    proxy = make_proxy(**NO_KEYS)
    lay(proxy, cloud.credential())
    talk = [{"role": "user", "content": "hi"}]
    got = proxy.ask(path, {"model": "gemini-2.5-pro", "messages": talk, **more})
    assert got.status == 200, got.body
    assert got.json() == {"input_tokens": 7} if "count" in path else b"Hello" in got.body


PLACES = [
    # location,      host,                                      in the path
    (None,           "us-central1-aiplatform.googleapis.com",   "us-central1"),
    ("europe-west4", "europe-west4-aiplatform.googleapis.com",  "europe-west4"),
    ("global",       "aiplatform.googleapis.com",               "global"),
]  # fmt: skip


@pytest.mark.parametrize(("location", "host", "place"), PLACES)
def test_where_vertex_is_asked(
    tmp_path: Path, cloud: Cloud, location: str | None, host: str, place: str
) -> None:
    store = cp.Store(tmp_path)
    store.create("vertex-x.json", cloud.credential(location=location, base_url=None))
    [account] = cp.find_accounts(cp.load_config(None), store.credentials(), {})
    errand = cp.Errand(cp.DIALECTS["gemini"], "generate", b"")
    path = f"/v1/projects/proj-1/locations/{place}/publishers/google/models/{{model}}:generateContent"
    assert (account.base, cp.path_of(errand, account.provider)) == (f"https://{host}", path)


def test_a_base_url_of_the_config(make_proxy: ProxyMaker, cloud: Cloud) -> None:
    cloud.serve("europe-west4")
    proxy = make_proxy(**NO_KEYS, providers={"vertex": {"base-url": cloud.upstream.url}})
    lay(proxy, cloud.credential(location="europe-west4", base_url=None))
    assert ask(proxy) == 200


def test_one_token_for_many(make_proxy: ProxyMaker, cloud: Cloud) -> None:
    proxy = make_proxy(**NO_KEYS)
    path = lay(proxy, cloud.credential())
    with ThreadPoolExecutor(8) as pool:
        assert {job.result() for job in [pool.submit(ask, proxy) for _ in range(8)]} == {200}
    assert len(cloud.tokens) == 1
    cloud.tokens.append("ya29.another")  # the first one is revoked
    assert [ask(proxy), ask(proxy)] == [200, 200]
    assert len(cloud.tokens) == 3
    stored = json.loads(path.read_text())
    lay(proxy, {**stored, "expired": cp.write_time(time.time() - 5)})
    assert ask(proxy) == 200
    assert len(cloud.tokens) == 4


def test_tokens_are_renewed_ahead_of_need(make_proxy: ProxyMaker, cloud: Cloud) -> None:
    proxy = make_proxy(**NO_KEYS)
    path = lay(proxy, cloud.credential())
    proxy.app.renew_due()
    assert json.loads(path.read_text())["access_token"] == cloud.tokens[0]
    proxy.app.renew_due()
    assert ask(proxy) == 200
    assert len(cloud.tokens) == 1


def test_a_key_that_google_refuses(make_proxy: ProxyMaker, cloud: Cloud) -> None:
    proxy = make_proxy(**NO_KEYS)
    path = lay(proxy, cloud.credential())
    cloud.refusal = {"error": "invalid_grant", "error_description": "Invalid JWT Signature."}
    got = [proxy.ask("/v1beta/models/gemini-2.5-pro:generateContent", {"contents": TALK}) for _ in range(3)]
    assert [each.status for each in got] == [401] * 3
    for each in got:
        message = each.json()["error"]["message"]
        assert message.startswith("vertex-proj-1.json: Vertex refused: Invalid JWT Signature.")
    assert cloud.asked() == ["/token"], "it is asked once"
    proxy.app.poll()
    [account] = proxy.app.router.offers.accounts
    assert proxy.app.router.report(account)["state"] == "needs login"
    cloud.refusal = {}
    stored = json.loads(path.read_text())
    lay(proxy, {**stored, "service_account": cloud.key_file(private_key=pem_of(cloud.key, PKCS1))})
    assert ask(proxy) == 200, "another key, another chance"


def test_a_clock_that_is_wrong_is_no_end(make_proxy: ProxyMaker, cloud: Cloud) -> None:
    proxy = make_proxy(**NO_KEYS)
    lay(proxy, cloud.credential())
    words = "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe."
    cloud.refusal = {"error": "invalid_grant", "error_description": words}
    got = proxy.ask("/v1beta/models/gemini-2.5-pro:generateContent", {"contents": TALK})
    assert words in got.json()["error"]["message"]
    assert got.status == 502
    cloud.refusal = {}
    assert ask(proxy) == 200


def test_others_answer_where_no_token_can_be_had(make_proxy: ProxyMaker, cloud: Cloud) -> None:
    models = [{"name": "gemini-2.5-pro"}]
    keyed = {"api-key": "k", "base-url": cloud.upstream.url, "models": models}
    proxy = make_proxy(**{**NO_KEYS, "gemini_api_key": [keyed]})
    lay(proxy, cloud.credential())
    cloud.refusal = {"error": "invalid_request", "error_description": "try again"}
    cloud.upstream.routes["/v1beta/models/gemini-2.5-pro:generateContent"] = make_reply(ANSWER)
    assert [ask(proxy), ask(proxy)] == [200, 200]
    assert cloud.asked().count("/token") == 1


def test_a_key_that_cannot_sign(make_proxy: ProxyMaker, cloud: Cloud) -> None:
    proxy = make_proxy(**NO_KEYS)
    lay(proxy, cloud.credential(service_account=cloud.key_file(private_key=pem_of(cloud.key, PKCS8, LOCKED))))
    got = [proxy.ask("/v1beta/models/gemini-2.5-pro:generateContent", {"contents": TALK}) for _ in range(2)]
    for each in got:
        assert each.status == 401
        assert "vertex-proj-1.json: the private key is encrypted" in each.json()["error"]["message"]
    assert cloud.asked() == []
    proxy.app.poll()
    [account] = proxy.app.router.offers.accounts
    assert proxy.app.router.report(account)["state"] == "needs login"


# --- Import


@pytest.fixture
def store(tmp_path: Path) -> cp.Store:
    return cp.Store(tmp_path / "auth")


def take_over(store: cp.Store, source: Path | str, prefix: str = "") -> Json:
    wanted = cp.Options(source=str(source), prefix=prefix)
    terminal = cp.Terminal(lambda text: None)
    return cp.login("vertex", wanted, cp.load_config(None), store, terminal).data


def test_import(tmp_path: Path, store: cp.Store, cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "key.json"
    source.write_text(json.dumps(cloud.key_file(), indent=2))
    data = take_over(store, source)
    about = {"project_id": "proj-1", "email": EMAIL, "label": f"proj-1 ({EMAIL})"}
    assert data == {"type": "vertex", "service_account": cloud.key_file(), **about}
    assert [credential.name for credential in store.credentials()] == ["vertex-proj-1.json"]
    assert cloud.asked() == [], "nobody is asked"
    old = {"location": "global", "access_token": "old", "expired": "2036-01-01T00:00:00Z", "prefix": "g"}
    store.merge("vertex-proj-1.json", {**old, "last_refresh": "2026-01-01T00:00:00Z"})
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(source))
    data = take_over(store, "auto", prefix="team")
    assert (data["location"], data["prefix"]) == ("global", "team")
    assert not data.keys() & {"access_token", "expired", "last_refresh"}, "they were of an older key"
    source.write_text(json.dumps(cloud.credential(project_id="proj-2", location="asia-east1")))
    data = take_over(store, source)
    assert (data["project_id"], data["location"]) == ("proj-2", "asia-east1")
    assert [c.name for c in store.credentials()] == ["vertex-proj-1.json", "vertex-proj-2.json"]


BAD_FILES = [
    pytest.param({"type": "authorized_user", "client_id": "x"}, "no key of a service account is in", id="another login"),
    pytest.param({"client_email": None}, "no key of a service account is in", id="no email"),
    pytest.param({"project_id": ""}, "no key of a service account is in", id="no project"),
    pytest.param({"private_key": "abc"}, "the private key is no PEM: download", id="no key in it"),
    pytest.param(None, "no key of a service account is in", id="no such file"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "says"), BAD_FILES)
def test_bad_files(tmp_path: Path, store: cp.Store, cloud: Cloud, change: Json | None, says: str) -> None:
    source = tmp_path / "key.json"
    if change is not None:
        whole = change if "client_id" in change else cloud.key_file(**change)
        source.write_text(json.dumps(whole))
    with pytest.raises(cp.ProxyError, match=says) as caught:
        take_over(store, source)
    assert "\n" not in str(caught.value)
    assert store.credentials() == []


def test_vertex_has_no_page_to_log_in(store: cp.Store) -> None:
    with pytest.raises(cp.ProxyError, match="cliproxy login vertex --import FILE"):
        take_over(store, "")


# --- what Vertex knows less of than the Gemini API

HISTORY: list[Json] = [
    {"role": "user", "parts": [{"text": "q"}]},
    {"role": "model", "parts": [{"functionCall": {"id": "a", "name": "f", "args": {"id": "mine"}}}]},
    {"role": "user", "parts": [{"functionResponse": {"id": "a", "name": "", "response": {"output": "r"}}}]},
]
CALL = {"id": "toolu_1", "type": "function", "function": {"name": "f", "arguments": '{"id": "mine"}'}}
OWN = {"contents": HISTORY}
OF_CHAT = {
    "model": "gemini-2.5-pro",
    "messages": [
        {"role": "user", "content": "q"},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "toolu_1", "content": "r"},
    ],
}
LOOPS = [
    pytest.param("/v1beta/models/gemini-2.5-pro:generateContent", OWN, id="gemini"),
    pytest.param("/v1beta/models/gemini-2.5-pro:countTokens", OWN, id="gemini, counted"),
    pytest.param("/v1beta/models/gemini-2.5-pro(1024):generateContent", OWN, id="gemini, with a budget"),
    pytest.param("/v1/chat/completions", OF_CHAT, id="chat"),
]


@pytest.mark.parametrize("kind", ["login", "key"])
@pytest.mark.parametrize(("path", "body"), LOOPS)
def test_vertex_is_sent_no_ids_of_calls(
    make_proxy: ProxyMaker, cloud: Cloud, path: str, body: Json, kind: str
) -> None:
    if kind == "login":
        proxy = make_proxy(**NO_KEYS)
        lay(proxy, cloud.credential())
    else:
        for action in ("generateContent", "countTokens"):
            told = {**ANSWER, "totalTokens": 7}
            cloud.upstream.routes[f"/v1/publishers/google/models/gemini-2.5-pro:{action}"] = make_reply(told)
        models = [{"name": "gemini-2.5-pro"}]
        row = {"api-key": "vk", "base-url": cloud.upstream.url, "models": models}
        proxy = make_proxy(**NO_KEYS, vertex_api_key=[row])
    got = proxy.ask(path, body)
    assert got.status == 200, got.body
    sent = cloud.upstream.seen[-1].json()["contents"]
    assert sent[1]["parts"][0]["functionCall"] == {"name": "f", "args": {"id": "mine"}}
    assert sent[2]["parts"][0]["functionResponse"] == {"name": "f", "response": {"output": "r"}}


def test_the_gemini_api_gets_the_ids_and_a_name(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    upstream.routes["/v1beta/models/up-gemini:generateContent"] = make_reply(ANSWER)
    assert make_proxy().ask("/v1beta/models/up-gemini:generateContent", OWN).status == 200
    sent = upstream.seen[-1].json()["contents"]
    assert sent[1] == HISTORY[1]
    assert sent[2]["parts"][0]["functionResponse"] == {"id": "a", "name": "f", "response": {"output": "r"}}
