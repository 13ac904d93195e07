"""Each provider's own way to log in."""

from __future__ import annotations

import json
import os
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest

import cliproxy as cp
from support.logins import Attempt, consent, sign_in
from support.world import Fault, World

# Google


def test_gemini_with_a_project_that_is_known(world: World, store: cp.Store) -> None:
    attempt = Attempt(world, store, "gemini")
    to = consent(attempt.url())
    assert to.startswith("https://codeassist.google.com/authcode")
    attempt.paste(dict(parse_qsl(urlsplit(to).query))["code"])
    credential = attempt.result()
    assert credential.name == "gemini-ann@example.com-proj-1.json"
    token = credential.data["token"]
    assert token["access_token"] == credential.data["access_token"]
    assert token["refresh_token"] == credential.data["refresh_token"]
    assert cp.expires_at(credential.data) == world.clock() + 3600
    assert "open-secret" not in json.dumps(credential.data)
    assert "2026-06-18" in attempt.text
    assert "gemini-api-key" in attempt.text


FREE = {"allowedTiers": [{"id": "free-tier", "isDefault": True}]}
STANDARD = {
    "allowedTiers": [{"id": "standard-tier", "isDefault": True, "userDefinedCloudaicompanionProject": True}]
}


def test_onboarding_of_the_free_tier(world: World, store: cp.Store) -> None:
    world.google["load"] = FREE
    attempt = Attempt(world, store, "gemini")
    attempt.paste(consent(attempt.url()))
    assert attempt.result().data["project_id"] == "free-project"


def test_onboarding_with_a_choice_of_projects(world: World, store: cp.Store) -> None:
    world.google["load"] = STANDARD
    attempt = Attempt(world, store, "gemini")
    attempt.paste(consent(attempt.url()))
    attempt.wait_for("proj-1, proj-2")
    attempt.paste("proj-2")
    assert attempt.result().name == "gemini-ann@example.com-proj-2.json"
    assert world.google["enabled"] == {"proj-2"}


def test_a_project_number_is_refused(world: World, store: cp.Store) -> None:
    world.google["load"] = STANDARD
    attempt = Attempt(world, store, "gemini")
    attempt.paste(consent(attempt.url()))
    attempt.paste("123456")
    assert "--project_id" in str(attempt.error())
    assert not store.scan()


def test_all_projects(world: World, store: cp.Store) -> None:
    world.google["load"] = STANDARD
    attempt = Attempt(world, store, "gemini", project="ALL")
    attempt.paste(consent(attempt.url()))
    credential = attempt.result()
    assert credential.name == "gemini-ann@example.com-all.json"
    assert credential.data["project_id"] == "proj-1,proj-2"


def test_an_account_that_google_does_not_serve(world: World, store: cp.Store) -> None:
    reason = {
        "reasonCode": "UNSUPPORTED_CLIENT",
        "reasonMessage": "no longer supported",
        "validationUrl": "https://x.y",
    }
    world.google["load"] = {"ineligibleTiers": [reason]}
    attempt = Attempt(world, store, "gemini")
    attempt.paste(consent(attempt.url()))
    assert "no longer supported https://x.y" in str(attempt.error())
    assert not store.scan()


@pytest.mark.parametrize("provider", ["gemini", "antigravity", "iflow"])
def test_a_missing_client_secret_is_said_before_anything_else(
    world: World, store: cp.Store, provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    attempt = Attempt(world, store, provider, world.config(**{provider: {"client-secret": ""}}))
    assert f"providers.{provider}.client-secret" in str(attempt.error())
    assert not world.asks


@pytest.mark.skipif(os.name != "posix", reason="makes a symbolic link and an executable")
@pytest.mark.parametrize(
    "place",
    [
        "gemini-cli/bundle/chunk-ABC.js", "gemini-cli/node_modules/@google/gemini-cli-core/dist/src/code_assist/oauth2.js",
        "gemini-cli-core/dist/src/code_assist/oauth2.js",
    ],
)  # fmt: skip
def test_the_secret_of_the_installed_gemini_cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    package = tmp_path / "lib/node_modules/@google"
    program = package / "gemini-cli/bundle/gemini.js"
    program.parent.mkdir(parents=True)
    program.write_text("#!/usr/bin/env node\n")
    program.chmod(0o755)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/gemini").symlink_to(program)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert not cp.installed_secret()
    path = package / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('var OAUTH_CLIENT_ID = "x";\nvar OAUTH_CLIENT_SECRET = "not-really-secret";\n')
    assert cp.installed_secret() == "not-really-secret"


def test_antigravity_says_that_it_may_not_work(world: World, store: cp.Store) -> None:
    attempt = Attempt(world, store, "antigravity")
    attempt.paste(consent(attempt.url()))
    data = attempt.result().data
    assert (data["project_id"], data["expires_in"], data["timestamp"]) == (
        "proj-1",
        3600,
        world.clock() * 1000,
    )
    assert attempt.result().name == "antigravity-ann@example.com.json"
    assert "refuse" in attempt.text


def test_iflow_logs_in_for_its_key(world: World, store: cp.Store) -> None:
    credential = sign_in(world, store, "iflow")
    assert credential.data["api_key"] == f"key-of-{credential.data['access_token']}"
    renewed = cp.refresh(credential, store, world.config(), world.clock)
    assert renewed.data["api_key"] == f"key-of-{renewed.data['access_token']}" != credential.data["api_key"]


# Device flows


@pytest.mark.parametrize("provider", ["kimi", "xai", "qwen", "codex"])
def test_device_login(world: World, store: cp.Store, provider: str) -> None:
    attempt = Attempt(world, store, provider, device=True)
    states = iter(
        ["pending", "slow", "pending", "granted"] if provider != "codex" else ["pending", "granted"]
    )

    def later() -> None:
        for device in world.devices.values():
            device["state"] = next(states, "granted")

    attempt.on_pause = later
    attempt.wait_for("Waiting")
    if provider == "qwen":
        attempt.paste("ann@example.com")
    credential = attempt.result()
    assert credential.type == provider
    assert "WXYZ" in attempt.text or "ABCD-1234" in attempt.text
    assert credential.data["refresh_token"].startswith(f"{provider}-refresh")


def test_device_files(world: World, store: cp.Store) -> None:
    kimi = sign_in(world, store, "kimi")
    assert kimi.name == f"kimi-{kimi.data['timestamp']}.json"
    assert kimi.data["expired"].endswith("Z")
    assert len(kimi.data["device_id"]) == 32
    xai = sign_in(world, store, "xai")
    assert xai.name == "xai-ann@example.com.json"
    assert xai.data["token_endpoint"] == f"{world.url}/xai/token"
    qwen = sign_in(world, store, "qwen")
    assert (qwen.name, qwen.data["resource_url"]) == ("qwen-ann@example.com.json", "portal.qwen.ai")


@pytest.mark.parametrize(
    ("state", "word"), [("denied", "was refused"), ("old", "came too late"), ("pending", "took too long")]
)
def test_device_logins_that_fail(world: World, store: cp.Store, state: str, word: str) -> None:
    attempt = Attempt(world, store, "kimi")

    def later() -> None:
        for device in world.devices.values():
            device["state"] = state

    attempt.on_pause = later
    assert word in str(attempt.error())
    assert not store.scan()


def test_device_polls_survive_a_bad_line(world: World, store: cp.Store) -> None:
    world.faults["kimi/token"] += [Fault(0), Fault(502, b"<html>"), Fault(429)]
    assert sign_in(world, store, "kimi").type == "kimi"
    assert world.count("/kimi/token") == 4


def test_an_account_without_device_login(world: World, store: cp.Store) -> None:
    world.device_login = False
    assert "--no-browser" in str(Attempt(world, store, "codex", device=True).error())


def test_xai_must_name_its_own_endpoints(world: World, store: cp.Store) -> None:
    world.google["xai"] = "https://x.ai.example.com/device"
    assert "not its own" in str(Attempt(world, store, "xai").error())
