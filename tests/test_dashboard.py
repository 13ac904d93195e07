"""The dashboard, through real sockets: who may look, what the page may do, and what it is told."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

import cliproxy as cp
from support.office import API, KEY, Office, OfficeMaker
from support.proxy import Got, Proxy, ProxyMaker
from support.upstream import DEADLINE, Clock, Upstream, wait_for
from support.usage import reply

HTML = {"accept": "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"}
OWN = {"sec-fetch-site": "same-origin"}
ECHO = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def office(make_office: OfficeMaker) -> Office:
    """A proxy on this machine without a management key."""
    return make_office("debug: false # mine\n")


def passes(office: Office) -> cp.Passes:
    return office.server.desk.board.passes


def enter(office: Office, token: str = "", **headers: str) -> Got:
    """Open a link as a browser does."""
    token = token or passes(office).link()
    return office.send("GET", f"/?token={token}", None, {**HTML, "sec-fetch-site": "none", **headers})


def cookie_in(got: Got) -> str:
    return got.headers["set-cookie"].partition(";")[0]


def look(office: Office, cookie: str, path: str = "/overview", method: str = "GET", **headers: str) -> Got:
    sent = {**OWN, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return office.send(method, API + path, None, {"cookie": cookie, **sent})


# -- the page ----------------------------------------------------------------------------


def test_browsers_get_the_page_and_programs_json(office: Office) -> None:
    page = office.send("GET", "/", None, HTML)
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert page.body == cp.PAGE.encode()
    assert office.send("GET", "/management.html").body == page.body
    for accept in ({}, {"accept": "*/*"}, {"accept": "application/json"}):
        assert office.send("GET", "/", None, accept).json()["message"] == "cliproxy"


def test_the_page_is_small_and_asks_nobody_else() -> None:
    assert len(cp.PAGE.encode()) < 64 * 1024
    assert not re.findall(
        r"(?:src|href)=[\"'](?!#|data:)|https?://(?!www\.w3\.org/2000/svg|localhost/)", cp.PAGE
    )
    assert not re.findall(
        r"<[^>]*\son\w+=|<[^>]*\sstyle=|innerHTML|insertAdjacent|document\.write|\beval\b", cp.PAGE
    )


def test_only_what_stands_in_the_page_may_run(office: Office) -> None:
    got = office.send("GET", "/", None, HTML)
    policy = dict(rule.split(" ", 1) for rule in got.headers["content-security-policy"].split("; "))
    for kind in ("script", "style"):
        text = re.findall(f"<{kind}>(.*?)</{kind}>", got.body.decode(), re.DOTALL)
        (digest,) = [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in text]
        assert policy.pop(f"{kind}-src") == f"'sha256-{digest}'"
    assert policy == {
        "default-src": "'none'", "connect-src": "'self'", "img-src": "data:", "base-uri": "'none'",
        "form-action": "'none'", "frame-ancestors": "'none'",
    }  # fmt: skip
    assert got.headers["referrer-policy"] == "no-referrer"
    assert got.headers["x-content-type-options"] == "nosniff"


def test_the_owner_may_switch_it_off(make_office: OfficeMaker) -> None:
    office = make_office("remote-management:\n  disable-control-panel: true\n")
    assert office.send("GET", "/", None, HTML).json()["message"] == "cliproxy"
    assert office.send("GET", "/management.html", None, HTML).status == 404


def test_an_official_page_keeps_its_address(office: Office) -> None:
    (office.auth_dir / ".cliproxy").mkdir(parents=True, exist_ok=True)
    (office.auth_dir / ".cliproxy" / "management.html").write_bytes(b"official")
    assert office.send("GET", "/management.html").body == b"official"
    assert office.send("GET", "/", None, HTML).body == cp.PAGE.encode()


# -- the one-time link -------------------------------------------------------------------


def test_a_link_opens_a_session_that_leaves_no_token_in_the_address(office: Office) -> None:
    got = enter(office)
    assert (got.status, got.headers["location"], got.body) == (303, "/", b"")
    cookie, *flags = got.headers["set-cookie"].split("; ")
    assert set(flags) == {"Path=/v0/management", "Max-Age=43200", "HttpOnly", "SameSite=Strict"}
    assert cookie.startswith(f"cliproxy_{office.server.port}=")
    assert look(office, cookie).json()["version"] == cp.__version__


def test_a_link_is_good_for_once(office: Office) -> None:
    token = passes(office).link()
    assert "set-cookie" in enter(office, token).headers
    again = enter(office, token)
    assert (again.status, again.headers["location"]) == (303, "/")
    assert "set-cookie" not in again.headers


def test_of_many_who_open_a_link_at_once_one_gets_in(office: Office) -> None:
    token, opened = passes(office).link(), []
    threads = [threading.Thread(target=lambda: opened.append(enter(office, token))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert sum("set-cookie" in got.headers for got in opened) == 1


def test_whoever_looks_at_a_link_does_not_use_it_up(office: Office) -> None:
    token = passes(office).link()
    office.send("HEAD", f"/?token={token}", None, HTML)
    office.send("GET", f"/?token={token}")  # no browser
    assert "set-cookie" in enter(office, token).headers


@pytest.mark.parametrize("change", [
    lambda token: "", lambda token: "x", lambda token: token[:-1] + ("0" if token[-1] != "0" else "1"),
    lambda token: f"9{token[1:]}", lambda token: token.replace(".", "", 1), lambda token: f"{token}0",
])  # fmt: skip
def test_what_is_no_link_opens_nothing(office: Office, change: Callable[[str], str]) -> None:
    token = change(passes(office).link()) or "."
    assert "set-cookie" not in enter(office, token).headers


def test_links_and_sessions_end(tmp_path: Path) -> None:
    clock = Clock()
    clock.now = 1.7e9
    passes = cp.Passes(tmp_path, lambda: clock.now)
    late, used = passes.link(), passes.link()
    clock.now += cp.LINK_LIFE - 1
    session = passes.redeem(used)
    assert passes.knows(session)
    clock.now += 2
    assert passes.redeem(late) == ""
    clock.now += cp.SESSION_LIFE
    assert not passes.knows(session)


def test_sessions_are_of_a_bounded_number(tmp_path: Path) -> None:
    passes = cp.Passes(tmp_path)
    sessions = [passes.redeem(passes.link()) for _ in range(cp.MOST_SESSIONS + 3)]
    assert [passes.knows(session) for session in sessions] == [False] * 3 + [True] * cp.MOST_SESSIONS


def test_the_secret_is_for_its_owner_alone_and_sessions_are_kept_as_hashes(office: Office) -> None:
    cookie = cookie_in(enter(office))
    file = office.auth_dir / ".cliproxy" / "dashboard"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert cookie.partition("=")[2] not in file.read_text(encoding="ascii")
    file.unlink()  # ends all sessions
    assert look(office, cookie).status == 404


@pytest.mark.parametrize(
    "damage",
    [b"", b"{}", b"[]", b"\xff", b'{"secret": 5}', b'{"secret": "short"}', b'{"secret": null, "links": 3}'],
)
def test_a_damaged_secret_is_replaced(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / ".cliproxy").mkdir()
    (tmp_path / ".cliproxy" / "dashboard").write_bytes(damage)
    passes = cp.Passes(tmp_path)
    assert passes.knows(passes.redeem(passes.link()))


# -- who may call ------------------------------------------------------------------------


def test_without_a_key_and_a_session_there_is_no_api(office: Office) -> None:
    for cookie in ("", f"cliproxy_{office.server.port}=", f"cliproxy_{office.server.port}=guess"):
        assert look(office, cookie).status == 404
    assert office.call("GET", "/overview").status == 404


@pytest.mark.parametrize("headers", [
    {}, {"sec-fetch-site": "none"}, {"sec-fetch-site": "same-site"}, {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-origin", "origin": "http://127.0.0.1:1"},
    {"sec-fetch-site": "same-origin", "origin": "null"}, {"origin": "http://evil.example"},
])  # fmt: skip
def test_a_session_counts_for_our_own_page_alone(office: Office, headers: dict[str, str]) -> None:
    cookie = cookie_in(enter(office))
    assert office.send("GET", f"{API}/overview", None, {"cookie": cookie, **headers}).status == 404


def test_an_old_browser_may_say_its_origin(office: Office) -> None:
    cookie, origin = cookie_in(enter(office)), f"http://127.0.0.1:{office.server.port}"
    assert office.send("GET", f"{API}/overview", None, {"cookie": cookie, "origin": origin}).status == 200


def test_the_key_works_as_well_and_a_wrong_one_does_not(make_office: OfficeMaker) -> None:
    office = make_office(f"remote-management:\n  secret-key: {KEY}\n")
    assert office.call("GET", "/overview").status == 200
    assert office.call("GET", "/overview", key="wrong").status == 401
    assert look(office, cookie_in(enter(office))).status == 200  # a session is no failure


def test_a_page_of_elsewhere_may_lead_here_but_reads_nothing(office: Office) -> None:
    cross = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert office.send("GET", "/", None, {**HTML, **cross}).status == 200
    assert (
        "access-control-allow-origin"
        not in office.send("GET", "/", None, {"origin": "http://a.example"}).headers
    )
    assert "set-cookie" in enter(office, **cross).headers


# -- what it is told ---------------------------------------------------------------------


@pytest.fixture
def busy(make_proxy: ProxyMaker, upstream: Upstream) -> Proxy:
    """A proxy that can be asked once."""
    upstream.replies.append(reply("chat", stream=False))
    return make_proxy(remote_management={"secret-key": KEY}, api_keys=["client-key"])


def tell(proxy: Proxy, path: str, body: Any = None) -> Any:
    got = proxy.ask(API + path, body, {"x-management-key": KEY})
    assert got.status == 200, got
    return got.json()


def chat(proxy: Proxy, model: str = "up-chat", **headers: str) -> Got:
    sent = {"authorization": "Bearer client-key", **headers}
    return proxy.ask("/v1/chat/completions", {**ECHO, "model": model}, sent)


def test_the_overview_tells_how_it_stands(busy: Proxy) -> None:
    chat(busy)
    busy.rows()
    told = tell(busy, "/overview")
    assert told["today"]["requests"] == 1
    account = next(one for one in told["accounts"] if one["today"]["requests"])
    assert (account["provider"], account["state"], account["file"], account["disabled"]) == (
        "up",
        "ready",
        "",
        False,
    )
    assert {row["id"] for row in told["models"]} == {"up-claude", "up-chat", "up-responses", "up-gemini"}
    assert {row["name"] for row in told["providers"]} == {*cp.LOGINS} - {"vertex"}


def test_no_token_of_an_account_is_told(busy: Proxy) -> None:
    chat(busy)
    for path in ("/overview", "/report", "/requests"):
        assert "sk-upstream" not in json.dumps(tell(busy, path))


def test_a_report_has_sums_and_a_picture(busy: Proxy) -> None:
    chat(busy)
    busy.rows()
    told = tell(busy, "/report?by=model&since=24h")
    assert [row["model"] for row in told["rows"]] == ["up-chat"]
    tokens = cp.all_tokens(told["rows"][0])
    assert (told["slot"], [row[1:] for row in told["series"]]) == ("hour", [["up-chat", tokens]])
    assert tell(busy, "/report?by=day&since=30d")["slot"] == "day"


@pytest.mark.parametrize("query", ["by=words", "since=never", "by=day,model"])
def test_a_report_of_nonsense_is_refused(busy: Proxy, query: str) -> None:
    got = busy.ask(f"{API}/report?{query}", None, {"x-management-key": KEY})
    assert (got.status, [*got.json()]) == (400, ["error"])


def test_the_latest_requests_come_first(busy: Proxy) -> None:
    for model in ("up-chat", "up-claude", "nothing"):
        chat(busy, model)
    busy.rows(3)
    told = tell(busy, "/requests?limit=2")
    rows = [dict(zip(told["columns"], row)) for row in told["rows"]]
    assert [row["asked"] for row in rows] == ["nothing", "up-claude"]
    for odd in ("0x5", "-1", "99999999999", ""):
        assert len(tell(busy, f"/requests?limit={odd}")["rows"]) == 3


def test_requests_are_told_of_where_none_are_kept(make_proxy: ProxyMaker) -> None:
    proxy = make_proxy(remote_management={"secret-key": KEY}, usage_statistics_enabled=False)
    chat(proxy)
    proxy.rows()
    assert len(tell(proxy, "/requests")["rows"]) == 1
    assert tell(proxy, "/overview")["today"]["requests"] == 0


def test_a_client_gets_the_address_and_key_and_model_that_work(busy: Proxy) -> None:
    told = tell(busy, "/clients?model=up-chat&root=http://proxy.example:8317")
    assert {row["name"] for row in told["clients"]} == {*cp.CLIENTS, *cp.INSTRUCTIONS}
    codex = next(row for row in told["clients"] if row["name"] == "codex")
    (file,) = codex["files"]
    assert file["file"].endswith("config.toml")
    assert all(word in file["text"] for word in ("http://proxy.example:8317/v1", "client-key", "up-chat"))


@pytest.mark.parametrize("root", ["javascript:alert(1)", "http://a b", 'http://x"', "ftp://x", "http://x/y"])
def test_an_odd_address_is_not_taken_for_ours(busy: Proxy, root: str) -> None:
    told = tell(busy, f"/clients?root={quote(root)}&model=none")
    assert root not in json.dumps(told)
    assert told["model"] == ""


def test_settings_are_checked_before_they_are_saved(office: Office) -> None:
    cookie = cookie_in(enter(office))

    def faults(text: bytes) -> Any:
        return office.send("POST", f"{API}/config.check", text, {"cookie": cookie, **OWN}).json()

    before = office.text
    assert faults(b"debug: true\n") == {"errors": [], "warnings": []}
    assert "debug" in faults(b"debug: maybe\n")["errors"][0]
    assert "request-retry" in faults(b"request-retries: 3\n")["warnings"][0]
    assert faults(b"\xff")["errors"]
    assert faults(b"a: [")["errors"]
    assert office.text == before


def test_settings_are_saved_where_there_is_no_key(office: Office) -> None:
    cookie, text = cookie_in(enter(office)), b"debug: true # mine\n"
    got = office.send("PUT", f"{API}/config.yaml", text, {"cookie": cookie, **OWN})
    assert (got.status, office.text, office.app.config["debug"]) == (200, text.decode(), True)


def test_a_qr_code_is_drawn_of_a_short_text(busy: Proxy) -> None:
    rows = tell(busy, "/qr?text=https://example.com/device")["rows"]
    assert rows == cp.qr_matrix(b"https://example.com/device")
    got = busy.ask(f"{API}/qr?text={'x' * 2_000}", None, {"x-management-key": KEY})
    assert got.status == 400


@pytest.mark.parametrize("name", ["nobody.json", "", "../config.json", 5])
def test_no_login_of_that_name_is_ended_or_renewed(busy: Proxy, name: Any) -> None:
    for path in ("/renew", "/logout"):
        got = busy.ask(API + path, {"name": name}, {"x-management-key": KEY})
        assert 400 <= got.status < 500, got
    assert busy.path.exists()


# -- what is live ------------------------------------------------------------------------


class Viewer:
    """Somebody who hears what happens."""

    def __init__(self, proxy: Proxy) -> None:
        self._peer = proxy.connect()
        head = f"GET {API}/live HTTP/1.1\r\nhost: 127.0.0.1\r\nx-management-key: {KEY}\r\n\r\n"
        self._peer.sendall(head.encode())
        self._stream = self._peer.makefile("rb")
        self.events = self._read()
        next(self.events)  # that it has begun

    def _read(self) -> Iterator[tuple[str, Any]]:
        name = "row"
        for line in self._stream:
            word, _, rest = line.decode().strip().partition(": ")
            if word == "data":
                yield name, json.loads(rest)
            elif line.startswith(b":"):
                yield "comment", rest
            name = rest if word == "event" else name if word else "row"

    def rows(self) -> Iterator[dict[str, Any]]:
        return (dict(zip(cp.Row._fields, data)) for name, data in self.events if name == "row")

    def close(self) -> None:
        self._stream.close()
        self._peer.close()


def test_requests_are_heard_of_as_they_end(busy: Proxy) -> None:
    chat(busy, "before")
    busy.rows()
    with closing(Viewer(busy)) as one, closing(Viewer(busy)) as other:
        chat(busy)
        busy.rows(2)
        for viewer in (one, other):
            assert next(viewer.rows())["model"] == "up-chat"


def test_who_has_left_leaves_room_for_others(busy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    busy.server.desk.board._seats = threading.Semaphore(1)
    with closing(Viewer(busy)):
        got = busy.ask(f"{API}/live", None, {"x-management-key": KEY})
        assert got.body == b"event: full\ndata: 0\n\n"
    wait_for(lambda: not busy.server.working)
    with closing(Viewer(busy)) as viewer:
        chat(busy)
        busy.rows()
        assert next(viewer.rows())["model"] == "up-chat"


def test_a_server_that_stops_ends_what_is_live(busy: Proxy) -> None:
    with closing(Viewer(busy)) as viewer:
        assert busy.server.stop(grace=DEADLINE)
        assert not list(viewer.events)


def test_a_row_is_encoded_once_for_all(busy: Proxy) -> None:
    chat(busy)
    (row,) = busy.rows()
    assert cp.row_event(row) is cp.row_event(cp.Row(*row))
    assert json.loads(cp.row_event(row)[6:]) == list(row)


# -- the command -------------------------------------------------------------------------


def test_the_command_prints_a_link_that_works(
    office: Office, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"http://127.0.0.1:{office.server.port}"
    cp.note_running(office.auth_dir, url, office.path)
    office.path.write_text(f"auth-dir: {office.auth_dir}\n", encoding="utf-8")
    assert cp.main(["dashboard", "--config", str(office.path)]) == 0
    (link,) = capsys.readouterr().out.splitlines()
    assert link.startswith(f"{url}/?token=")
    assert "set-cookie" in enter(office, link.partition("=")[2]).headers


def test_without_a_server_there_is_no_link(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text(f"auth-dir: {tmp_path}\n", encoding="utf-8")
    assert cp.main(["dashboard", "--config", str(tmp_path / "config.yaml")]) == 1
    assert "no server runs" in capsys.readouterr().err
