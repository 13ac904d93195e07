"""Credential files as pages see them, and the calls that pages have made: through real sockets."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

import cliproxy as cp
from support.keys import pem_of
from support.office import KEY, SECRET, Office, OfficeMaker, error_of
from support.proxy import Got
from support.upstream import Seen, Upstream, make_reply

Json = cp.Json
OK = {"status": "ok"}
ALWAYS = {
    "id": str, "auth_index": str, "name": str, "type": str, "provider": str, "label": str, "status": str,
    "status_message": str, "disabled": bool, "unavailable": bool, "runtime_only": bool, "source": str, "size": int,
    "modtime": str, "path": str, "success": int, "failed": int, "recent_requests": list,
}  # fmt: skip


def claude(**fields: Any) -> Json:
    ends = cp.write_time(time.time() + 3600)
    tokens = {"access_token": "sk-access-secret", "refresh_token": "sk-refresh-secret", "expired": ends}
    return {"type": "claude", "email": "a@b.example", **tokens, **fields}


def lay(office: Office, name: str = "claude-a.json", **fields: Any) -> None:
    (office.auth_dir / name).write_text(json.dumps(claude(**fields)))
    office.app.take_over()


def damage(office: Office, name: str, text: str) -> None:
    """Put a file there that is no credential, and has been for a while: who writes one may not be done."""
    path = office.auth_dir / name
    path.write_text(text)
    os.utime(path, (time.time() - 60, time.time() - 60))


def files_of(office: Office) -> dict[str, Json]:
    return {row["name"]: row for row in office.get("/auth-files")["files"]}


def form(*parts: tuple[str, str, bytes], field: str = "file") -> tuple[bytes, str]:
    """Encode a form; (field, file name or empty, data) a part."""
    lines = []
    for name, file, data in parts:
        about = f'form-data; name="{name or field}"' + (f'; filename="{file}"' if file else "")
        lines.append(f"--XX\r\nContent-Disposition: {about}\r\n\r\n".encode() + data + b"\r\n")
    return b"".join(lines) + b"--XX--\r\n", "multipart/form-data; boundary=XX"


def upload(office: Office, *names: str, data: bytes = b"") -> Got:
    data = data or json.dumps(claude()).encode()
    body, kind = form(*(("", name, data) for name in names))
    return office.call("POST", "/auth-files", body, **{"Content-Type": kind})


# -- the list --------------------------------------------------------------------------------


def test_every_entry_has_what_strict_clients_need(office: Office) -> None:
    lay(office)
    lay(office, "B.json", disabled=True)
    damage(office, "damaged.json", "{")
    damage(office, "typeless.json", "{}")
    (office.auth_dir / "codex-x.json").write_text(
        json.dumps({"type": "codex", "access_token": "t", "email": "c@d.example"})
    )
    (office.auth_dir / ".oauth-claude-1.oauth").write_text("{}")
    found = office.get("/auth-files")["files"]
    assert [row["name"] for row in found] == [
        "B.json",
        "claude-a.json",
        "codex-x.json",
        "damaged.json",
        "typeless.json",
    ]
    for row in found:
        assert {key: type(row[key]) for key in ALWAYS} == ALWAYS
        assert None not in row.values()
        assert len(row["auth_index"]) == 16
        assert len(row["recent_requests"]) == 20
        assert set(row["recent_requests"][0]) == {"time", "success", "failed"}
    assert "secret" not in json.dumps(found)


def test_the_state_of_a_file(office: Office) -> None:
    lay(office)
    lay(office, "off.json", disabled=True)
    lay(office, "dead.json", refresh_token="", expired=cp.write_time(time.time() - 60))
    rows = files_of(office)
    assert [rows[name]["status"] for name in ("claude-a.json", "off.json", "dead.json")] == [
        "active",
        "disabled",
        "error",
    ]
    assert [rows[name]["unavailable"] for name in ("claude-a.json", "off.json", "dead.json")] == [
        False,
        False,
        True,
    ]
    assert rows["claude-a.json"]["account"] == rows["claude-a.json"]["email"] == "a@b.example"
    assert rows["claude-a.json"]["account_type"] == "oauth"


def test_the_list_can_be_filtered(office: Office) -> None:
    lay(office)
    lay(office, "other.json")
    index = files_of(office)["other.json"]["auth_index"]
    for query in ("name=other.json", f"auth_index={index}"):
        assert [row["name"] for row in office.get(f"/auth-files?{query}")["files"]] == ["other.json"]


def test_the_index_is_one_everywhere(office: Office) -> None:
    lay(office)
    (account,) = [one for one in office.app.router.offers.accounts if one.credential]
    assert files_of(office)["claude-a.json"]["auth_index"] == account.auth_index


# -- upload and delete -----------------------------------------------------------------------


def test_uploads(office: Office) -> None:
    raw = json.dumps(claude(), indent=7).encode()
    got = upload(office, "one.json", data=raw)
    assert (got.status, got.json()) == (200, OK)
    assert (office.auth_dir / "one.json").read_bytes() == raw
    assert (office.auth_dir / "one.json").stat().st_mode & 0o777 == 0o600
    assert any(account.name == "one.json" for account in office.app.router.offers.accounts)
    assert upload(office, "a.json", "b.json").json() == {
        "status": "ok",
        "uploaded": 2,
        "files": ["a.json", "b.json"],
    }
    got = upload(office, "c.json", "d.txt")
    assert got.status == 207
    assert got.json() == {
        "status": "partial", "uploaded": 1, "files": ["c.json"], "failed": [{"name": "d.txt", "error": "file must be .json"}],
    }  # fmt: skip
    assert office.call("POST", "/auth-files?name=raw.json", raw).json() == OK
    assert office.call("GET", "/auth-files/download?name=raw.json").body == raw


BAD_UPLOADS = [
    pytest.param("x.txt", b"", 400, "file must be .json", id="another ending"),
    pytest.param("x.json", b"{", 400, "invalid auth file: ", id="no JSON"),
    pytest.param("x.json", b"[]", 400, "invalid auth file: ", id="a list"),
    pytest.param("x.json", b"{}", 400, "invalid auth file: ", id="no type"),
    pytest.param("x.json", b'{"type": 1}', 400, "invalid auth file: ", id="a number as type"),
    pytest.param("x.json", b'{"type": "' + b"x" * 2_000_000 + b'"}', 400, "invalid auth file: ", id="2 MB"),
    pytest.param(".hidden.json", b"", 400, "invalid name", id="hidden"),
    pytest.param("NUL.json", b"", 400, "invalid name", id="a device"),
    pytest.param("com1.json", b"", 400, "invalid name", id="another device"),
    pytest.param("config.json", b"", 400, "invalid name", id="not a credential's"),
    pytest.param("c:x.json", b"", 400, "invalid name", id="a drive"),
    pytest.param("x" * 250 + ".json", b"", 400, "invalid name", id="long"),
]


@pytest.mark.parametrize(("name", "data", "status", "error"), BAD_UPLOADS)
def test_bad_uploads_leave_nothing(office: Office, name: str, data: bytes, status: int, error: str) -> None:
    got = upload(office, name, data=data)
    assert got.status == status
    assert got.json()["error"].startswith(error)
    assert not [path for path in office.auth_dir.iterdir() if path.suffix == ".json"]


@pytest.mark.parametrize("name", ["../up.json", "/abs/up.json", "..\\up.json", "a/../../up.json"])
def test_only_the_last_part_of_a_name_counts(office: Office, name: str) -> None:
    assert upload(office, name).status == 200
    assert (office.auth_dir / "up.json").exists()
    assert not (office.auth_dir.parent / "up.json").exists()


@pytest.mark.parametrize(
    "query",
    ["", "?name=", "?name=../x.json", "?name=a%2Fx.json", "?name=x", "?name=x%00.json", "?name=..%5Cx.json"],
)
def test_raw_uploads_need_a_plain_name(office: Office, query: str) -> None:
    assert office.call("POST", f"/auth-files{query}", claude()).status == 400


@pytest.mark.parametrize("body", [b"", b"x", b"--XX--\r\n", b"--YY\r\n\r\n"])
def test_forms_that_are_none(office: Office, body: bytes) -> None:
    kind = {"Content-Type": "multipart/form-data; boundary=XX"}
    assert office.call("POST", "/auth-files", body, **kind).status == 400


def test_deletes(office: Office) -> None:
    for name in ("a.json", "b.json", "c.json", "d.json"):
        lay(office, name)
    assert office.call("DELETE", "/auth-files?name=a.json").json() == OK
    assert error_of(office.call("DELETE", "/auth-files?name=a.json")) == (404, "auth file not found")
    got = office.call("DELETE", "/auth-files", {"names": ["b.json", "b.json", "gone.json"]})
    assert got.status == 207
    assert got.json() == {
        "status": "partial", "deleted": 1, "files": ["b.json"], "failed": [{"name": "gone.json", "error": "auth file not found"}],
    }  # fmt: skip
    assert office.call("DELETE", "/auth-files", {"name": "c.json"}).json() == OK
    damage(office, "damaged.json", "{")
    assert office.call("DELETE", "/auth-files?all=true").json() == {"status": "ok", "deleted": 2}
    assert files_of(office) == {}
    assert not [account for account in office.app.router.offers.accounts if account.credential]


@pytest.mark.parametrize(
    ("query", "body", "status"),
    [("", None, 400), ("", {}, 400), ("", {"names": []}, 400), ("", {"names": [1]}, 400), ("", b"{", 400), ("", ["../x.json"], 400),
     ("?name=../../config.yaml", None, 400), ("?name=..%2Fx.json", None, 400), ("?name=x%00.json", None, 400), ("?all=no", None, 400)],
)  # fmt: skip
def test_bad_deletes(office: Office, query: str, body: Any, status: int) -> None:
    assert office.call("DELETE", f"/auth-files{query}", body).status == status
    assert office.path.exists()


DOWNLOADS = [
    ("claude-a.json", 200),
    ("gone.json", 404),
    ("../config.yaml", 400),
    ("..%2Fconfig.json", 400),
    ("", 400),
    ("x", 400),
    ("x%00.json", 400),
]


@pytest.mark.parametrize(("name", "status"), DOWNLOADS)
def test_downloads(office: Office, name: str, status: int) -> None:
    lay(office)
    got = office.call("GET", f"/auth-files/download?name={name}")
    assert got.status == status
    if status == 200:
        assert got.headers["content-disposition"] == 'attachment; filename="claude-a.json"'


# -- status and fields -----------------------------------------------------------------------


@pytest.mark.parametrize("key", ["name", "auth_index"])
def test_a_file_is_switched_off_and_on(office: Office, key: str) -> None:
    lay(office, mine=1)
    named = {key: files_of(office)["claude-a.json"][key]}
    for disabled in (True, False):
        got = office.call("PATCH", "/auth-files/status", {**named, "disabled": disabled})
        assert got.json() == {"status": "ok", "disabled": disabled}
        assert files_of(office)["claude-a.json"]["disabled"] is disabled
        data = json.loads((office.auth_dir / "claude-a.json").read_text())
        assert (data["disabled"], data["mine"]) == (disabled, 1)
        assert any(one.credential for one in office.app.router.offers.accounts) is not disabled


BAD_STATUS = [
    ({"disabled": True}, 400, "name is required"),
    ({"name": "claude-a.json"}, 400, "disabled is required"),
    ({"name": "claude-a.json", "disabled": "yes"}, 400, "disabled is required"),
    ({"name": "gone.json", "disabled": True}, 404, "auth file not found"),
    ([], 400, "invalid request body"),
    (b"{", 400, "invalid request body"),
]


@pytest.mark.parametrize(("body", "status", "error"), BAD_STATUS)
def test_bad_status(office: Office, body: Any, status: int, error: str) -> None:
    lay(office)
    assert error_of(office.call("PATCH", "/auth-files/status", body)) == (status, error)


def test_fields_are_written_into_the_file(office: Office) -> None:
    lay(office, headers={"x-a": "1", "x-b": "2"}, note="old")
    body = {
        "name": "claude-a.json", "prefix": "p", "proxy_url": "direct", "headers": {"x-a": "", "x-c": "3"}, "priority": 2,
        "weight": None, "disable-cooling": True, "note": "new", "excluded_models": ["a*"], "access_token": "evil", "deep.er": 1,
    }  # fmt: skip
    assert office.call("PATCH", "/auth-files/fields", body).json() == OK
    data = json.loads((office.auth_dir / "claude-a.json").read_text())
    assert data["headers"] == {"x-b": "2", "x-c": "3"}
    assert (data["prefix"], data["priority"], data["note"], data["excluded_models"]) == (
        "p",
        2,
        "new",
        ["a*"],
    )
    assert data["deep"] == {"er": 1}
    assert data["disable_cooling"] is True
    assert data["access_token"] == "sk-access-secret"
    (account,) = [one for one in office.app.router.offers.accounts if one.credential]
    assert (account.prefix, account.priority, account.excluded) == (
        "p",
        2,
        ["a*", "a*", "b"],
    )  # the last two of the config


def test_expired_has_the_token_renewed(office: Office) -> None:
    lay(office)
    body = {"name": "claude-a.json", "expired": cp.write_time(time.time())}
    assert office.call("PATCH", "/auth-files/fields", body).json() == OK
    (account,) = [one for one in office.app.router.offers.accounts if one.credential]
    assert account.expired(time.time())
    assert account.renewable


BAD_FIELDS = [
    ({"name": "claude-a.json"}, 400, "no fields to update"),
    ({"name": "claude-a.json", "access_token": "x"}, 400, "no fields to update"),
    ({"name": "gone.json", "note": "x"}, 404, "auth file not found"),
    ({"note": "x"}, 400, "name is required"),
    (b"", 400, "invalid request body"),
    ({"name": "claude-a.json", "headers": [1]}, 400, "headers"),
    ({"name": "claude-a.json", "proxy_url": "ftp://x"}, 400, "proxy-url"),
]


@pytest.mark.parametrize(("body", "status", "error"), BAD_FIELDS)
def test_bad_fields(office: Office, body: Any, status: int, error: str) -> None:
    lay(office)
    before = (office.auth_dir / "claude-a.json").read_text()
    got = office.call("PATCH", "/auth-files/fields", body)
    assert got.status == status
    assert error in got.json()["error"]
    assert (office.auth_dir / "claude-a.json").read_text() == before


# -- models ------------------------------------------------------------------------------------


def test_models_of_a_file(office: Office) -> None:
    lay(office)
    models = office.get("/auth-files/models?name=claude-a.json")["models"]
    assert all({"id", "owned_by"} <= set(model) for model in models)
    assert any(model["id"].startswith("claude-") for model in models)
    assert office.get("/auth-files/models?name=gone.json") == {"models": []}
    assert error_of(office.call("GET", "/auth-files/models")) == (400, "name is required")


@pytest.mark.parametrize("channel", list(cp.CHANNELS))
def test_definitions(office: Office, channel: str) -> None:
    answer = office.get(f"/model-definitions/{channel}")
    assert answer["channel"] == channel
    for model in answer["models"]:
        assert {"id", "object", "created", "owned_by", "type", "display_name"} <= set(model)


def test_definitions_of_nobody(office: Office) -> None:
    got = office.call("GET", "/model-definitions/nobody")
    assert (got.status, got.json()) == (400, {"error": "unknown channel", "channel": "nobody"})


# -- vertex ------------------------------------------------------------------------------------


def service_key(key: rsa.RSAPrivateKey) -> Json:
    return {
        "type": "service_account", "project_id": "proj-1", "private_key_id": "1", "private_key": pem_of(key),
        "client_email": "robot@proj-1.example", "token_uri": "https://oauth2.googleapis.com/token",
    }  # fmt: skip


@pytest.mark.parametrize("raw", [True, False])
def test_a_service_account_is_taken_in(office: Office, key: rsa.RSAPrivateKey, raw: bool) -> None:
    data = json.dumps(service_key(key)).encode()
    body, kind = form(("file", "k.json", data), ("location", "", b"europe-west1"))
    headers = {} if raw else {"Content-Type": kind}
    got = office.call("POST", "/vertex/import", data if raw else body, **headers)
    path = office.auth_dir / "vertex-proj-1.json"
    location = "us-central1" if raw else "europe-west1"
    about = {"project_id": "proj-1", "email": "robot@proj-1.example", "location": location}
    assert (got.status, got.json()) == (200, {"status": "ok", "auth-file": str(path), **about})
    stored = json.loads(path.read_text())
    assert (stored["type"], stored["project_id"], stored["location"]) == ("vertex", "proj-1", location)
    assert any(one.name == path.name for one in office.app.router.offers.accounts)


BAD_ACCOUNTS = [
    (b"", "file required"),
    (b"{", "invalid json"),
    (b"[]", "invalid json"),
    (b"{}", "project_id missing"),
    (b'{"project_id": "p"}', "invalid service account"),
    (b'{"project_id": "p", "client_email": "e", "private_key": "x"}', "invalid service account"),
]


@pytest.mark.parametrize(("data", "error"), BAD_ACCOUNTS)
def test_what_is_no_service_account(office: Office, data: bytes, error: str) -> None:
    assert error_of(office.call("POST", "/vertex/import", data)) == (400, error)
    assert files_of(office) == {}


# -- calls of pages ----------------------------------------------------------------------------


@pytest.fixture
def bureau(make_office: OfficeMaker, upstream: Upstream) -> Office:
    """An office whose Claude is the scripted upstream."""
    providers = f"providers:\n  claude: {{ base-url: {upstream.url}, usage-url: {upstream.url}/usage }}\n"
    office = make_office(SECRET + providers)
    lay(office)
    return office


def index_of(office: Office) -> str:
    return str(files_of(office)["claude-a.json"]["auth_index"])


@pytest.mark.parametrize("word", ["auth_index", "authIndex", "AuthIndex"])
def test_a_token_goes_to_its_provider(bureau: Office, upstream: Upstream, word: str) -> None:
    upstream.reply({"five_hour": 1}, 401)
    header = {"Authorization": "Bearer $TOKEN$", "X-Own": "1"}
    body = {
        word: index_of(bureau),
        "method": "post",
        "url": f"{upstream.url}/api/oauth/usage?a=1",
        "header": header,
        "data": "$TOKEN$ ä",
    }
    got = bureau.call("POST", "/api-call", body)
    assert got.status == 200
    answer = got.json()
    assert (answer["status_code"], json.loads(answer["body"])) == (401, {"five_hour": 1})
    assert answer["header"]["Content-Type"] == ["application/json"]
    (seen,) = upstream.seen
    assert (seen.method, seen.path) == ("POST", "/api/oauth/usage?a=1")
    assert seen.headers["authorization"] == "Bearer sk-access-secret"
    assert seen.headers["x-own"] == "1"
    assert seen.body.decode() == "$TOKEN$ ä"


def test_a_token_goes_nowhere_else(make_office: OfficeMaker, upstream: Upstream) -> None:
    office = make_office()
    lay(office)
    for url in (
        upstream.url,
        "http://api.anthropic.com/x",
        "https://api.anthropic.com.evil.example/",
        "https://api.anthropic.com@127.0.0.1/",
    ):
        body = {"auth_index": index_of(office), "method": "GET", "url": url, "header": {"a": "$TOKEN$"}}
        status, error = error_of(office.call("POST", "/api-call", body))
        assert (status, "not its provider" in error) == (400, True), url
    assert upstream.seen == []


def test_the_token_of_a_key_goes_to_its_base_url_only(make_office: OfficeMaker, upstream: Upstream) -> None:
    office = make_office(f"{SECRET}claude-api-key: [{{api-key: sk-mine, base-url: {upstream.url}}}]\n")
    (account,) = office.app.router.offers.accounts
    body = {"auth_index": account.auth_index, "method": "GET", "header": {"x-api-key": "$TOKEN$"}}
    upstream.reply({})
    assert office.call("POST", "/api-call", {**body, "url": f"{upstream.url}/v1/models"}).status == 200
    assert upstream.seen[0].headers["x-api-key"] == "sk-mine"
    assert office.call("POST", "/api-call", {**body, "url": "https://127.0.0.1:1/"}).status == 400


def test_without_an_account_the_word_stays(bureau: Office, upstream: Upstream) -> None:
    upstream.reply({})
    header = {"a": "$TOKEN$", "Host": "other.example", "Content-Length": "7", "Connection": "upgrade"}
    body = {"auth_index": "0" * 16, "method": "GET", "url": upstream.url, "header": header}
    assert bureau.call("POST", "/api-call", body).json()["status_code"] == 200
    assert upstream.seen[0].headers["a"] == "$TOKEN$"
    assert upstream.seen[0].headers["host"] == "other.example"


BAD_CALLS = [
    ({}, 400, "missing method"),
    ({"method": "GET"}, 400, "missing url"),
    ({"method": "GET", "url": "x"}, 400, "invalid url"),
    ({"method": "GET", "url": "file:///etc/passwd"}, 400, "invalid url"),
    ({"method": "GET\r\nX: y", "url": "http://127.0.0.1:1"}, 400, "invalid method"),
    ({"method": "GET", "url": "http://127.0.0.1:1", "header": ["a"]}, 400, "invalid body"),
    ({"method": "GET", "url": "http://127.0.0.1:1", "header": {"a": 1}}, 400, "invalid body"),
    ({"method": "GET", "url": "http://127.0.0.1:1", "proxy_url": "ftp://x"}, 400, "invalid proxy_url"),
    ({"method": "GET", "url": "http://127.0.0.1:1"}, 502, "request failed"),
    ({"method": "GET", "url": "http://127.0.0.1:1", "header": {"a": "b\r\nc: d"}}, 502, "request failed"),
    ([], 400, "invalid body"),
    (b"", 400, "invalid body"),
]


@pytest.mark.parametrize(("body", "status", "error"), BAD_CALLS)
def test_bad_calls(office: Office, body: Any, status: int, error: str) -> None:
    assert error_of(office.call("POST", "/api-call", body)) == (status, error)


def test_a_quota_is_reset(bureau: Office, upstream: Upstream) -> None:
    def refuse(seen: Seen) -> Any:
        return make_reply({"error": {"type": "rate_limit_error", "message": "no"}}, 429)

    upstream.routes["/v1/messages"] = refuse
    ask = {"model": "claude-sonnet-4-6", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
    assert bureau.send("POST", "/v1/messages", ask).status == 429
    (account,) = bureau.app.router.offers.accounts
    assert bureau.app.router.report(account)["cooling"]
    got = bureau.call("POST", "/reset-quota", {"auth_index": index_of(bureau)})
    assert got.json() == {"status": "ok", "auth_index": account.auth_index, "models": ["claude-sonnet-4-6"]}
    assert not bureau.app.router.report(account)["cooling"]


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        ({}, 400, "auth_index is required"),
        ({"auth_index": "x"}, 404, "auth not found"),
        (b"{", 400, "invalid request body"),
    ],
)
def test_bad_resets(office: Office, body: Any, status: int, error: str) -> None:
    assert error_of(office.call("POST", "/reset-quota", body)) == (status, error)


def test_nobody_is_asked_for_a_version(office: Office) -> None:
    assert office.get("/latest-version") == {"latest-version": f"v{cp.__version__}"}
    assert office.call("GET", "/latest-version", key=KEY).headers["x-cpa-version"] == cp.__version__
