"""Logins that are begun from a page, through real sockets, against the world of providers."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

import cliproxy as cp
from support.logins import consent, visit
from support.office import SECRET, Office, OfficeMaker, error_of
from support.upstream import DEADLINE
from support.world import World

Json = cp.Json
OK = {"status": "ok"}
PATHS = {"claude": "/anthropic-auth-url", "codex": "/codex-auth-url", "gemini": "/gemini-cli-auth-url", "iflow": "/iflow-auth-url",
         "antigravity": "/antigravity-auth-url"}  # fmt: skip
DEVICES = {"kimi": "/kimi-auth-url", "qwen": "/qwen-auth-url"}
NAMES = {
    "claude": "anthropic",
    "codex": "codex",
    "gemini": "google",
    "iflow": "iflow",
    "antigravity": "antigravity",
}


@pytest.fixture
def bureau(make_office: OfficeMaker, world: World) -> Office:
    text = f"{SECRET}providers: {json.dumps(world.config()['providers'])}\n"
    return make_office(text)


def begin(office: Office, path: str) -> Json:
    got = office.call("GET", path)
    assert got.status == 200, got
    place: Json = got.json()
    assert (place["status"], bool(place["url"]), bool(cp.STATE.fullmatch(place["state"]))) == (
        "ok",
        True,
        True,
    )
    return place


def outcome(office: Office, state: str) -> Json:
    """Poll until a login has ended, as a page does."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        told: Json = office.get(f"/get-auth-status?state={state}")
        if told["status"] != "wait":
            return told
    raise TimeoutError


def logins_of(office: Office) -> list[str]:
    return [row["type"] for row in office.get("/auth-files")["files"]]


@pytest.mark.parametrize("provider", PATHS)
def test_a_pasted_address_ends_a_login(bureau: Office, provider: str) -> None:
    place = begin(bureau, PATHS[provider])
    assert bureau.get(f"/get-auth-status?state={place['state']}") == {"status": "wait"}
    query = parse_qs(urlsplit(place["url"]).query)
    assert query["state"] == [place["state"]]
    body = {"provider": NAMES[provider], "redirect_url": consent(place["url"])}
    assert bureau.call("POST", "/oauth-callback", body).json() == OK
    assert outcome(bureau, place["state"]) == OK
    assert logins_of(bureau) == [{"gemini": "gemini-cli"}.get(provider, provider)]
    assert error_of(bureau.call("POST", "/oauth-callback", body)) == (409, "oauth flow is already completed")


@pytest.mark.parametrize("provider", ["claude", "codex"])
def test_a_code_and_a_state_end_a_login(bureau: Office, provider: str) -> None:
    place = begin(bureau, PATHS[provider])
    fields = {name: values[0] for name, values in parse_qs(urlsplit(consent(place["url"])).query).items()}
    body = {"provider": provider, "code": fields["code"], "state": fields["state"]}
    assert bureau.call("POST", "/oauth-callback", body).json() == OK
    assert outcome(bureau, place["state"]) == OK


@pytest.mark.parametrize("provider", ["claude", "codex"])
def test_the_browser_comes_back_to_the_providers_port(bureau: Office, provider: str) -> None:
    place = begin(bureau, f"{PATHS[provider]}?is_webui=true")
    status, _, text = visit(consent(place["url"]))
    assert (status, "logged in" in text) == (200, True)
    assert outcome(bureau, place["state"]) == OK
    assert logins_of(bureau) == [provider]


@pytest.mark.parametrize("provider", NAMES)
def test_the_browser_comes_back_to_the_proxy(bureau: Office, provider: str) -> None:
    place = begin(bureau, PATHS[provider])
    query = urlsplit(consent(place["url"])).query
    headers = {"Sec-Fetch-Site": "cross-site"}
    got = bureau.send("GET", f"/{NAMES[provider]}/callback?{query}", headers=headers)
    assert (got.status, b"You can close this window" in got.body) == (200, True)
    assert outcome(bureau, place["state"]) == OK


def test_a_callback_that_nobody_waits_for_is_no_page_of_others(bureau: Office) -> None:
    got = bureau.send("GET", "/codex/callback?state=<script>&code=<script>")
    assert (got.status, b"<script>" in got.body, b"No login waits" in got.body) == (200, False, True)


@pytest.mark.parametrize("provider", DEVICES)
def test_logins_by_device(bureau: Office, world: World, provider: str) -> None:
    place = begin(bureau, DEVICES[provider])
    assert (place["flow"], bool(place["user_code"])) == ("device", True)
    got = bureau.call("DELETE", f"/oauth-session?state={place['state']}")
    assert got.json() == {"status": "ok", "cancelled": True}
    told = outcome(bureau, place["state"])
    assert (told["status"], "cancelled" in told["error"]) == ("error", True)
    assert bureau.call("DELETE", f"/oauth-session?state={place['state']}").json()["cancelled"] is False
    assert logins_of(bureau) == []


def test_a_login_in_place_of_one_that_holds_the_port(bureau: Office) -> None:
    first = begin(bureau, "/codex-auth-url?is_webui=1")
    second = begin(bureau, "/codex-auth-url?is_webui=1")
    assert outcome(bureau, first["state"])["status"] == "error"
    visit(consent(second["url"]))
    assert outcome(bureau, second["state"]) == OK


def test_two_logins_at_once_at_different_providers(bureau: Office) -> None:
    places = [begin(bureau, PATHS[provider]) for provider in ("claude", "codex")]
    for place in places:
        bureau.call("POST", "/oauth-callback", {"provider": "", "redirect_url": consent(place["url"])})
    assert [outcome(bureau, place["state"]) for place in places] == [OK, OK]


def test_what_the_user_refuses(bureau: Office, world: World) -> None:
    place = begin(bureau, "/codex-auth-url")
    body = {"provider": "codex", "state": place["state"], "error": "access_denied"}
    assert bureau.call("POST", "/oauth-callback", body).json() == OK
    told = outcome(bureau, place["state"])
    assert (told["status"], "access_denied" in told["error"]) == ("error", True)
    status, error = error_of(bureau.call("POST", "/oauth-callback", body))
    assert (status, "access_denied" in error) == (409, True)


def test_a_code_that_the_provider_refuses(bureau: Office) -> None:
    place = begin(bureau, "/codex-auth-url")
    bureau.call("POST", "/oauth-callback", {"state": place["state"], "code": "wrong-code-wrong-code"})
    told = outcome(bureau, place["state"])
    assert (told["status"], "nothing was saved" in told["error"]) == ("error", True)
    assert logins_of(bureau) == []


def test_a_login_that_lacks_a_secret(make_office: OfficeMaker) -> None:
    office = make_office()
    got = office.call("GET", "/antigravity-auth-url")
    assert error_of(got) == (500, "failed to generate authorization url")
    assert "client-secret" in got.json()["message"]


BAD = [
    ({}, 400, "state is required"),
    ({"state": "../x", "code": "c"}, 400, "invalid state"),
    ({"state": "a..b", "code": "c"}, 400, "invalid state"),
    ({"state": "x" * 129, "code": "c"}, 400, "invalid state"),
    ({"state": "abc"}, 400, "code or error is required"),
    ({"state": "abc", "code": "c"}, 404, "unknown or expired state"),
    ({"redirect_url": "http://[x"}, 400, "invalid redirect_url"),
    ({"redirect_url": "words"}, 400, "invalid redirect_url"),
    ({"redirect_url": "http://localhost/cb?code=c&state=abc"}, 404, "unknown or expired state"),
    (b"{", 400, "invalid body"),
    ([], 400, "invalid body"),
    (None, 400, "invalid body"),
]


@pytest.mark.parametrize(("body", "status", "error"), BAD)
def test_bad_callbacks(office: Office, body: Any, status: int, error: str) -> None:
    got = office.call("POST", "/oauth-callback", body)
    assert (got.status, got.json()) == (status, {"status": "error", "error": error})


@pytest.mark.parametrize(
    ("provider", "error"), [("nobody", "unsupported provider"), ("claude", "provider does not match state")]
)
def test_callbacks_for_another_provider(bureau: Office, provider: str, error: str) -> None:
    place = begin(bureau, "/codex-auth-url")
    body = {"provider": provider, "state": place["state"], "code": "c" * 30}
    assert error_of(bureau.call("POST", "/oauth-callback", body)) == (400, error)
    assert bureau.get(f"/get-auth-status?state={place['state']}") == {"status": "wait"}


STATES = [("", 200, OK), ("?state=abc", 200, {"status": "error", "error": "unknown or expired state"}),
          ("?state=a%2Fb", 400, {"status": "error", "error": "invalid state"})]  # fmt: skip


@pytest.mark.parametrize(("query", "status", "told"), STATES)
def test_states_of_nothing(office: Office, query: str, status: int, told: Json) -> None:
    got = office.call("GET", f"/get-auth-status{query}")
    assert (got.status, got.json()) == (status, told)


def test_states_need_the_key(office: Office) -> None:
    assert office.send("GET", f"/v0/management/get-auth-status?{urlencode({'state': 'abc'})}").status == 401


# -- what desktop programs ask for -----------------------------------------------------------


def test_keep_alive(make_office: OfficeMaker) -> None:
    office = make_office(password="pw")
    assert office.send("GET", "/keep-alive", headers={"Authorization": "Bearer pw"}).json() == OK
    assert office.send("GET", "/keep-alive", headers={"X-Local-Password": "pw"}).json() == OK
    got = office.send("GET", "/keep-alive", headers={"Authorization": "Bearer no"})
    assert (got.status, got.json()) == (401, {"error": "invalid password"})
    assert not office.server.desk.abandoned


def test_without_a_password_nobody_keeps_alive(office: Office) -> None:
    assert office.send("GET", "/keep-alive").status == 404
    assert not office.server.desk.abandoned


def test_a_server_ends_when_nobody_calls(make_office: OfficeMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    office = make_office(password="pw")
    monkeypatch.setattr(cp, "HEARTBEAT", 0.0)
    thread = threading.Thread(target=cp.poll_until_asked, args=(office.server, office.app, SimpleQueue()))
    thread.start()
    thread.join(DEADLINE)
    assert not thread.is_alive()


def test_there_is_no_terminal_interface(capsys: pytest.CaptureFixture[str]) -> None:
    assert cp.main(["-tui"]) == 1
    assert "management.html" in capsys.readouterr().err


def test_the_official_page_is_served_if_it_is_there(make_office: OfficeMaker, tmp_path: Path) -> None:
    office = make_office()
    assert b"official" not in office.send("GET", "/management.html").body
    folder = office.auth_dir / ".cliproxy"
    folder.mkdir(exist_ok=True)
    (folder / "management.html").write_text("<html>official</html>")
    got = office.send("GET", "/management.html", headers={"Sec-Fetch-Site": "cross-site"})
    assert (got.status, got.body) == (200, b"<html>official</html>")
    assert got.headers["content-type"] == "text/html; charset=utf-8"
    assert got.headers["x-frame-options"] == "DENY"
    for place in (tmp_path, tmp_path / "management.html"):
        (tmp_path / "management.html").write_text("<html>own</html>")
        other = make_office(environ={"MANAGEMENT_STATIC_PATH": str(place)})
        assert other.send("GET", "/management.html").body == b"<html>own</html>"


def test_the_page_can_be_switched_off(make_office: OfficeMaker) -> None:
    office = make_office(SECRET + "  disable-control-panel: true\n")
    (office.auth_dir / ".cliproxy").mkdir(exist_ok=True)
    (office.auth_dir / ".cliproxy" / "management.html").write_text("x")
    assert office.send("GET", "/management.html").status == 404
