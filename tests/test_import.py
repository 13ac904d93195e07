"""Logins that other programs hold, taken over."""

from __future__ import annotations

import contextlib
import json
import queue
from pathlib import Path

import pytest

import cliproxy as cp
from support.logins import Attempt
from support.world import World, jwt

Json = cp.Json


# Import


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    for vendors in cp.VENDOR_FILES.values():
        for vendor in vendors:
            monkeypatch.delenv(vendor.variable or "NONE", raising=False)
    return home


def lay(path: Path, data: Json) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    return path


def take_over(world: World, store: cp.Store, provider: str, source: str = "auto") -> tuple[Json, str]:
    attempt = Attempt(world, store, provider, source=source)
    if provider == "qwen":
        attempt.paste("ann@example.com")
    data = attempt.result().data
    with contextlib.suppress(queue.Empty):
        while True:
            attempt.text += attempt.said.get_nowait()
    return data, attempt.text


def test_import_from_codex(
    world: World, store: cp.Store, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = jwt({"exp": int(world.clock()) + 777})
    tokens = {
        "id_token": world.id_token(),
        "access_token": access,
        "refresh_token": "r",
        "account_id": "acc-1",
    }
    path = lay(
        home / "elsewhere/auth.json",
        {"OPENAI_API_KEY": None, "tokens": tokens, "last_refresh": "2026-02-09T10:40:11.1Z"},
    )
    monkeypatch.setenv("CODEX_HOME", str(path.parent))
    before = path.read_bytes()
    data, text = take_over(world, store, "codex")
    assert {key: data[key] for key in tokens} == tokens
    assert cp.expires_at(data) == world.clock() + 777
    assert (data["email"], cp.plan_of(data)) == ("ann@example.com", "plus")
    assert "log" in text
    assert "cliproxy login codex" in text
    assert path.read_bytes() == before


def test_import_from_claude_code(world: World, store: cp.Store, home: Path) -> None:
    held = {
        "accessToken": "at",
        "refreshToken": "rt",
        "expiresAt": 1770633611000,
        "subscriptionType": "pro",
        "clientId": "own-id",
    }
    lay(home / ".claude/.credentials.json", {"claudeAiOauth": held})
    owner = {"emailAddress": "bob@example.com", "accountUuid": "u", "organizationUuid": "o"}
    lay(home / ".claude.json", {"oauthAccount": owner})
    world.access["at"] = "claude"
    data, text = take_over(world, store, "claude")
    assert (data["access_token"], data["refresh_token"], data["email"]) == ("at", "rt", "bob@example.com")
    assert cp.expires_at(data) == 1770633611.0
    assert data["client_id"] == "own-id"
    assert "Claude Code and cliproxy now share" in text


def test_import_of_a_token_that_cannot_be_renewed(world: World, store: cp.Store, home: Path) -> None:
    lay(home / ".claude/.credentials.json", {"claudeAiOauth": {"accessToken": "at", "refreshToken": ""}})
    data, text = take_over(world, store, "claude")
    assert "refresh_token" not in data
    assert "share" not in text
    assert [credential.name for credential in store.credentials()] == ["claude-account.json"]


def test_import_of_an_sdk_profile(world: World, store: cp.Store, home: Path) -> None:
    folder = home / ".config/anthropic"
    held = {
        "version": "1.0",
        "type": "oauth_token",
        "access_token": "at",
        "expires_at": 1770633611,
        "refresh_token": "rt",
    }
    lay(
        folder / "credentials/default.json",
        {**held, "organization_uuid": "o", "account_email": "bob@example.com"},
    )
    way = {"type": "user_oauth", "client_id": "sdk-client"}
    lay(folder / "configs/default.json", {"version": "1.0", "base_url": world.url, "authentication": way})
    data, _ = take_over(world, store, "claude")
    assert (data["email"], data["client_id"]) == ("bob@example.com", "sdk-client")
    assert data["token_endpoint"] == f"{world.url}/v1/oauth/token"
    flow = cp.Flow(cp.LOGINS["claude"], world.config(claude={"token-url": ""}), data)
    assert (flow.row.token_url, flow.row.client_id) == (data["token_endpoint"], "sdk-client")


@pytest.mark.parametrize(
    ("provider", "path", "held"),
    [
        ("gemini", ".gemini/oauth_creds.json", {"expiry_date": 1999999999000, "token_type": "Bearer"}),
        ("qwen", ".qwen/oauth_creds.json", {"expiry_date": 1999999999000, "resource_url": "portal.qwen.ai"}),
        ("kimi", ".kimi/credentials/kimi-code.json", {"expires_at": 1999999999.0, "expires_in": 900}),
    ],
)
def test_import_of_plain_files(
    world: World, store: cp.Store, home: Path, provider: str, path: str, held: Json
) -> None:
    lay(home / path, {"access_token": "at", "refresh_token": "rt", **held})
    world.access["at"] = provider
    data, text = take_over(world, store, provider)
    assert (data["access_token"], data["refresh_token"], data["type"]) == ("at", "rt", provider)
    assert cp.expires_at(data) == 1999999999.0
    assert ("share one refresh token" in text) == (provider != "gemini")


def test_an_expired_import_from_gemini_is_renewed(world: World, store: cp.Store, home: Path) -> None:
    held = {**world.tokens("gemini"), "expiry_date": 1770633611000}
    lay(home / ".gemini/oauth_creds.json", held)
    world.access.pop(held["access_token"])
    data, _ = take_over(world, store, "gemini")
    assert data["refresh_token"] == held["refresh_token"]
    assert cp.expires_at(data) == world.clock() + 3600


def test_import_from_grok(world: World, store: cp.Store, home: Path) -> None:
    path = lay(
        home / "copy.json",
        {"https://auth.x.ai::id": {"key": "at", "refresh_token": "rt", "expires_at": 1770633611}},
    )
    data, _ = take_over(world, store, "xai", str(path))
    assert (data["access_token"], data["refresh_token"]) == ("at", "rt")


@pytest.mark.parametrize("provider", ["codex", "claude", "antigravity"])
def test_nothing_to_import(world: World, store: cp.Store, home: Path, provider: str) -> None:
    lay(home / ".claude/.credentials.json", {"claudeAiOauth": {"accessToken": "", "expiresAt": 0}})
    assert "log in instead" in str(Attempt(world, store, provider, source="auto").error())
    assert not store.scan()
