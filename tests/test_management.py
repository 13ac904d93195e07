"""The management API, through real sockets: every row of its table, as its page and its GUIs call it."""

from __future__ import annotations

import errno
import json
import logging
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cliproxy as cp
from support.office import API, KEY, SECRET, YAML, Office, OfficeMaker, error_of

Json = cp.Json
OK = {"status": "ok"}
# -- the key ------------------------------------------------------------------------------


def test_without_a_key_there_is_no_api(make_office: OfficeMaker) -> None:
    office = make_office("debug: true\n", password="pw")
    assert office.call("GET", "/config", key="pw").status == 404


KEYS = [
    pytest.param({"Authorization": f"Bearer {KEY}"}, 200, id="bearer"),
    pytest.param({"Authorization": f"bEARER  {KEY}"}, 200, id="scheme in any case"),
    pytest.param({"Authorization": KEY}, 200, id="bare"),
    pytest.param({"X-Management-Key": KEY}, 200, id="own header"),
    pytest.param({"X-Api-Key": KEY}, 401, id="a client's header"),
    pytest.param({}, 401, id="none"),
    pytest.param({"Authorization": "Bearer wrong"}, 401, id="wrong"),
    pytest.param({"Authorization": f"Bearer {KEY}x"}, 401, id="longer"),
    pytest.param({"Authorization": "Bearer \xe4"}, 401, id="not ASCII"),
]


@pytest.mark.parametrize(("headers", "status"), KEYS)
def test_keys(office: Office, headers: dict[str, str], status: int) -> None:
    got = office.send("GET", f"{API}/debug", headers=headers)
    assert got.status == status
    assert got.headers["x-cpa-version"] == cp.__version__
    assert got.headers["x-cpa-support-plugin"] == "0"
    assert got.headers["access-control-allow-origin"] == "*"


def test_the_key_is_not_taken_from_the_query(office: Office) -> None:
    assert error_of(office.send("GET", f"{API}/debug?key={KEY}")) == (401, "missing management key")


def test_five_wrong_keys_shut_out_even_the_right_one(office: Office) -> None:
    answers = [error_of(office.call("GET", "/debug", key="wrong")) for _ in range(5)]
    assert answers == [(401, "invalid management key")] * 5
    status, text = error_of(office.call("GET", "/debug"))
    assert status == 403
    assert text.startswith("IP banned due to too many failed attempts. Try again in 29m5")


def test_a_right_key_clears_the_count(office: Office) -> None:
    for _ in range(3):
        for _ in range(4):
            office.call("GET", "/debug", key="wrong")
        assert office.call("GET", "/debug").status == 200


def test_a_page_of_elsewhere_cannot_lock_the_owner_out(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cp, "SLOW_ANSWER", 0.0)
    for header in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}):
        for _ in range(6):
            assert office.send("GET", f"{API}/debug", headers=header).status == 401
    assert office.call("GET", "/debug").status == 200


def test_a_page_of_elsewhere_with_the_key_is_served(office: Office) -> None:
    got = office.call("GET", "/debug", Origin="https://page.example")
    assert (got.status, got.headers["access-control-allow-origin"]) == (200, "*")
    assert "X-CPA-VERSION" in got.headers["access-control-expose-headers"]
    asked = {"Origin": "https://page.example", "Access-Control-Request-Headers": "authorization"}
    preflight = office.send("OPTIONS", f"{API}/config", headers=asked)
    assert preflight.status == 204
    assert preflight.headers["access-control-allow-headers"] == "authorization"
    assert "PATCH" in preflight.headers["access-control-allow-methods"]


def test_allow_origins_narrows(make_office: OfficeMaker) -> None:
    office = make_office(SECRET + "  allow-origins: [https://page.example]\n")
    good = office.call("GET", "/debug", Origin="https://page.example")
    assert good.headers["access-control-allow-origin"] == "https://page.example"
    other = office.call("GET", "/debug", Origin="https://other.example")
    assert "access-control-allow-origin" not in other.headers


REMOTE = [
    pytest.param("", {}, 403, "remote management disabled", id="not allowed"),
    pytest.param("  allow-remote: true\n", {}, 200, "", id="allowed"),
    pytest.param("", {"MANAGEMENT_PASSWORD": " env \n"}, 200, "", id="by the environment's password"),
]


@pytest.mark.parametrize(("more", "environ", "status", "error"), REMOTE)
def test_other_machines(
    make_office: OfficeMaker, more: str, environ: dict[str, str], status: int, error: str
) -> None:
    office = make_office(SECRET + more, environ=environ)
    headers = {"Authorization": f"Bearer {KEY}", "X-Forwarded-For": "127.0.0.1"}
    got = office.send("GET", f"{API}/debug", headers=headers, host="127.0.0.2")
    assert (got.status, got.json().get("error", "")) == (status, error)


def test_passwords(make_office: OfficeMaker) -> None:
    office = make_office("{}", environ={"MANAGEMENT_PASSWORD": "env"}, password="pw")
    assert office.call("GET", "/debug", key="env").status == 200
    assert office.call("GET", "/debug", key="pw").status == 200
    far = office.send("GET", f"{API}/debug", headers={"Authorization": "pw"}, host="127.0.0.2")
    assert far.status == 401


HASHES = [
    pytest.param("$2b$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW", id="2b"),
    pytest.param(
        "$2a$05$./ABCDEFGHIJKLMNOPQRSeHuFvE9gEcKhQhE5QG6HxdbTwnhYYFUS", id="2a, as the reference writes"
    ),
]


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("hashed", HASHES)
def test_hashes_open(
    make_office: OfficeMaker, monkeypatch: pytest.MonkeyPatch, hashed: str, fast: bool
) -> None:
    if not fast:
        monkeypatch.setattr(cp, "fast_bcrypt", lambda: None)
    office = make_office(f"remote-management:\n  secret-key: '{hashed}'\n")
    assert [office.call("GET", "/debug", key=key).status for key in ("secret", "secre", "secret")] == [
        200,
        401,
        200,
    ]


@pytest.mark.parametrize("key", [b"", b"a", b"\xff\xa3ab", b"x" * 71, b"x" * 72, b"long" * 30])
def test_our_hashes_are_those_of_the_system(key: bytes) -> None:
    fast = cp.fast_bcrypt()
    if not fast:
        pytest.skip("this system has no bcrypt")
    setting = b"$2b$04$abcdefghijklmnopqrstuu"
    assert cp.bcrypt(key, setting) == fast(key[:72], setting)


@pytest.mark.parametrize("setting", [b"", b"$2b$04$short", b"$2b$99$abcdefghijklmnopqrstuu", b"$1$abc"])
def test_what_is_no_hash(setting: bytes) -> None:
    with pytest.raises(ValueError, match="no bcrypt hash"):
        cp.bcrypt(b"key", setting)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(
    ("text", "name"),
    [(YAML, "config.yaml"), (json.dumps({"remote-management": {"secret-key": KEY}}), "config.json")],
)
def test_a_plain_key_is_replaced_by_its_hash(
    make_office: OfficeMaker, monkeypatch: pytest.MonkeyPatch, text: str, name: str, fast: bool
) -> None:
    if not fast:
        monkeypatch.setattr(cp, "fast_bcrypt", lambda: None)
    office = make_office(text, name)
    office.server.desk.poll()
    hashed = office.app.config["remote-management.secret-key"]
    assert cp.BCRYPT_HASH.fullmatch(hashed)
    assert office.text.replace(hashed, KEY).replace(f'"{KEY}"', KEY) == text.replace(f'"{KEY}"', KEY)
    assert office.call("GET", "/debug").status == 200
    office.server.desk.poll()
    assert office.app.config["remote-management.secret-key"] == hashed


def test_one_key_is_checked_at_a_time_and_a_known_one_without_waiting(office: Office) -> None:
    assert office.call("GET", "/debug").status == 200
    with office.server.desk.guard._lock:
        assert office.call("GET", "/debug").status == 200


def test_the_first_calls_of_a_page_come_all_at_once(office: Office) -> None:
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: found.append(office.call("GET", "/debug").status)) for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [200] * 12


# -- the table -----------------------------------------------------------------------------

SHORT = st.text("ab", min_size=1, max_size=3)
SCALARS = [
    ("/debug", True, True),
    ("/logging-to-file", True, True),
    ("/usage-statistics-enabled", True, True),
    ("/request-log", True, True),
    ("/ws-auth", True, True),
    ("/force-model-prefix", True, True),
    ("/logs-max-total-size-mb", -1, 0),
    ("/logs-max-total-size-mb", 7, 7),
    ("/error-logs-max-files", -1, 10),
    ("/error-logs-max-files", 2, 2),
    ("/request-retry", 5, 5),
    ("/max-retry-interval", 9, 9),
    ("/max-retry-credentials", 2, 2),
    ("/proxy-url", "http://127.0.0.1:9", "http://127.0.0.1:9"),
    ("/quota-exceeded/switch-project", True, True),
    ("/quota-exceeded/switch-preview-model", True, True),
    ("/routing/strategy", "FF", "fill-first"),
    ("/ampcode/upstream-url", "https://amp.example/", "https://amp.example"),
    ("/ampcode/upstream-api-key", " key ", "key"),
    ("/ampcode/restrict-management-to-localhost", True, True),
    ("/ampcode/force-model-mappings", True, True),
]


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
@pytest.mark.parametrize(("path", "value", "shown"), SCALARS)
def test_scalars(office: Office, method: str, path: str, value: Any, shown: Any) -> None:
    name = path.rpartition("/")[2]
    assert type(office.get(path)[name]) is type(shown)
    got = office.call(method, path, {"value": value})
    assert (got.status, got.json()) == (200, OK)
    assert office.get(path) == {name: shown}
    assert cp.load_config(office.path).warnings == cp.parse_config(office.path, YAML).warnings
    assert office.text.startswith("# the owner's own words\n")


def test_the_table_of_scalars_is_whole() -> None:
    assert {path for path, _, _ in SCALARS} == {row.path for row in cp.SCALARS}


@pytest.mark.parametrize("path", [row.path for row in cp.SCALARS if row.clears])
def test_texts_are_cleared(office: Office, path: str) -> None:
    office.call("PUT", path, {"value": "http://127.0.0.1:9"})
    assert office.call("DELETE", path).json() == OK
    assert list(office.get(path).values()) == [""]


WRONG: dict[type, list[Any]] = {
    bool: ["true", 1, None, []],
    int: ["1", 1.5, True, None, {}],
    str: [1, None, ["a"]],
}


@pytest.mark.parametrize("row", cp.SCALARS, ids=lambda row: row.path)
def test_scalars_of_another_type(office: Office, row: cp.Scalar) -> None:
    bodies = [{"value": value} for value in WRONG[row.kind]]
    others: list[Any] = [{}, [], b"", b"{", b"nul\x00l", b"\xff", b"[" * 100_000]
    for body in [*bodies, *others]:
        assert error_of(office.call("PUT", row.path, body)) == (400, "invalid body")
    if not row.clears:
        assert office.call("DELETE", row.path).status == 404
    assert office.text == YAML


BAD_VALUES = [("/routing/strategy", "best", "invalid strategy"), ("/proxy-url", "ftp://x", "proxy-url")]


@pytest.mark.parametrize(("path", "value", "error"), BAD_VALUES)
def test_values_that_cannot_be(office: Office, path: str, value: str, error: str) -> None:
    status, text = error_of(office.call("PUT", path, {"value": value}))
    assert status == 400
    assert error in text
    assert office.text == YAML


API_KEYS = [
    ("PUT", "", ["a", "b"], 200, ["a", "b"]),
    ("PUT", "", {"items": ["a"]}, 200, ["a"]),
    ("PUT", "", [], 200, []),
    ("PUT", "", ["a", "a", " "], 200, ["a"]),
    ("PUT", "", {"items": []}, 400, "invalid body"),
    ("PUT", "", {"value": ["a"]}, 400, "invalid body"),
    ("PUT", "", [1], 400, "invalid body"),
    ("PUT", "", None, 400, "invalid body"),
    ("PATCH", "", {"index": 1, "value": "new"}, 200, ["one", "new"]),
    ("PATCH", "", {"old": "one", "new": "uno"}, 200, ["uno", "two"]),
    ("PATCH", "", {"old": "three", "new": "tre"}, 200, ["one", "two", "tre"]),
    ("PATCH", "", {"index": 2, "value": "new"}, 400, "missing fields"),
    ("PATCH", "", {"index": -1, "value": "new"}, 400, "missing fields"),
    ("PATCH", "", {"index": True, "value": "new"}, 400, "missing fields"),
    ("PATCH", "", {}, 400, "missing fields"),
    ("DELETE", "?index=0", None, 200, ["two"]),
    ("DELETE", "?value=two", None, 200, ["one"]),
    ("DELETE", "?value=unknown", None, 200, ["one", "two"]),
    ("DELETE", "?index=2", None, 400, "missing index or value"),
    ("DELETE", "?index=-1", None, 400, "missing index or value"),
    ("DELETE", "", None, 400, "missing index or value"),
]


def check(office: Office, path: str, call: tuple[str, str, Any, int, Any]) -> None:
    """Make a call; what it answers, and what is in force then, must be as expected."""
    method, query, body, status, expected = call
    name = path.rpartition("/")[2]
    before, text = office.get(path), office.text
    got = office.call(method, path + query, body)
    if status == 200:
        assert (got.status, got.json()) == (200, OK)
        assert cp.without_indexes(office.get(path)) == {name: expected}
        assert value_of(cp.load_config(office.path).data, path) == value_of(office.app.config.data, path)
    else:
        assert error_of(got) == (status, expected)
        assert (office.get(path), office.text) == (before, text)


def value_of(data: Any, path: str) -> Any:
    for word in path.strip("/").split("/"):
        data = data[word]
    return data


@pytest.mark.parametrize("case", API_KEYS, ids=str)
def test_api_keys(office: Office, case: tuple[str, str, Any, int, Any]) -> None:
    check(office, "/api-keys", case)


def test_an_edit_of_a_key_leaves_the_others_words(office: Office) -> None:
    office.call("PATCH", "/api-keys", {"index": 1, "value": "zwei"})
    assert office.text == YAML.replace("- two", "- zwei")
    assert office.path.with_name("config.yaml.bak").read_text() == YAML


MAPS = [
    ("excluded-models", "PUT", "", {"codex": ["Z"]}, 200, {"codex": ["z"]}),
    ("excluded-models", "PUT", "", {"items": {"codex": ["z"]}}, 200, {"codex": ["z"]}),
    ("excluded-models", "PUT", "", {}, 200, {}),
    ("excluded-models", "PUT", "", ["a"], 400, "invalid body"),
    ("excluded-models", "PATCH", "", {"provider": "Codex ", "models": ["z"]}, 200, {"claude": ["a*", "b"], "codex": ["z"]}),
    ("excluded-models", "PATCH", "", {"provider": "claude", "models": []}, 200, {}),
    ("excluded-models", "PATCH", "", {"provider": "codex", "models": []}, 404, "provider not found"),
    ("excluded-models", "PATCH", "", {"provider": " ", "models": ["z"]}, 400, "invalid provider"),
    ("excluded-models", "PATCH", "", {"provider": "codex"}, 400, "invalid body"),
    ("excluded-models", "DELETE", "?provider=claude", None, 200, {}),
    ("excluded-models", "DELETE", "?provider=codex", None, 404, "provider not found"),
    ("excluded-models", "DELETE", "", None, 400, "missing provider"),
    ("model-alias", "PUT", "", {"claude": [{"name": "a", "alias": "b"}]}, 200, {"claude": [{"name": "a", "alias": "b"}]}),
    ("model-alias", "PATCH", "", {"channel": "codex", "aliases": [{"name": "n", "alias": "m", "fork": True}]}, 200,
     {"codex": [{"name": "n", "alias": "m", "fork": True}]}),
    ("model-alias", "PATCH", "", {"provider": "codex", "aliases": []}, 200, {}),
    ("model-alias", "PATCH", "", {"channel": "claude", "aliases": []}, 404, "channel not found"),
    ("model-alias", "PATCH", "", {"channel": "", "aliases": []}, 400, "invalid channel"),
    ("model-alias", "DELETE", "?channel=codex", None, 200, {}),
    ("model-alias", "DELETE", "?provider=codex", None, 200, {}),
    ("model-alias", "DELETE", "?channel=x", None, 404, "channel not found"),
    ("model-alias", "DELETE", "", None, 400, "missing channel"),
    ("request-scoped-errors", "PUT", "", {"claude": [{"status": 400, "action": "stop"}]}, 200,
     {"claude": [{"status": 400}]}),
]  # fmt: skip


@pytest.mark.parametrize("case", MAPS, ids=str)
def test_maps(office: Office, case: tuple[Any, ...]) -> None:
    check(office, f"/oauth-{case[0]}", case[1:])


C1, C2 = {"api-key": "c1"}, {"api-key": "c1", "base-url": "https://example.org"}
G1, G2 = {"api-key": "g1", "x-mine": "kept"}, {"api-key": "g2", "base-url": "https://example.org"}
X1, V1 = (
    {"api-key": "x1", "base-url": "https://example.org/v1"},
    {"api-key": "v1", "base-url": "https://example.org"},
)
UP = {"name": "up", "base-url": "https://example.org/v1", "api-key-entries": [{"api-key": "k1"}]}
OBJECTS = [
    ("gemini-api-key", "PUT", "", [{"api-key": "n", "x-other": {"a": 1}}, {"api-key": "n"}, {}], 200,
     [{"api-key": "n", "x-other": {"a": 1}}]),
    ("gemini-api-key", "PUT", "", {"items": [{"api-key": "n"}]}, 200, [{"api-key": "n"}]),
    ("gemini-api-key", "PUT", "", {"items": []}, 400, "invalid body"),
    ("gemini-api-key", "PUT", "", ["n"], 400, "invalid body"),
    ("gemini-api-key", "PUT", "", [], 200, []),
    ("gemini-api-key", "PATCH", "", {"index": 1, "value": {"prefix": "p", "base-url": None}}, 200, [G1, {"api-key": "g2", "prefix": "p"}]),
    ("gemini-api-key", "PATCH", "", {"match": "g1", "value": {"excluded-models": ["*"]}}, 200, [{**G1, "excluded-models": ["*"]}, G2]),
    ("gemini-api-key", "PATCH", "", {"match": "g3", "value": {}}, 404, "item not found"),
    ("gemini-api-key", "PATCH", "", {"index": 2, "value": {}}, 404, "item not found"),
    ("gemini-api-key", "PATCH", "", {"index": 0}, 400, "invalid body"),
    ("gemini-api-key", "PATCH", "", {"index": 0, "value": {"api-key": "", "base-url": ""}}, 200, [G2]),
    ("gemini-api-key", "DELETE", "?api-key=g1", None, 200, [G2]),
    ("gemini-api-key", "DELETE", "?index=1", None, 200, [G1]),
    ("gemini-api-key", "DELETE", "?index=9", None, 400, "missing api-key or index"),
    ("gemini-api-key", "DELETE", "", None, 400, "missing api-key or index"),
    ("gemini-api-key", "DELETE", "?api-key=no", None, 404, "item not found"),
    ("claude-api-key", "PUT", "", [{"api-key": "n", "models": [{"name": "m", "alias": "a"}]}], 200,
     [{"api-key": "n", "models": [{"name": "m", "alias": "a"}]}]),
    ("claude-api-key", "PATCH", "", {"index": 0, "value": {"weight": 2}}, 200, [{**C1, "weight": 2}, C2]),
    ("claude-api-key", "PATCH", "", {"match": "c1", "value": {"weight": 2}}, 400, "multiple items match api-key; base-url is required"),
    ("claude-api-key", "DELETE", "?api-key=c1", None, 400, "multiple items match api-key; base-url is required"),
    ("claude-api-key", "DELETE", "?api-key=c1&base-url=", None, 200, [C2]),
    ("claude-api-key", "DELETE", "?api-key=c1&base-url=https://example.org", None, 200, [C1]),
    ("claude-api-key", "DELETE", "?api-key=no", None, 200, [C1, C2]),
    ("codex-api-key", "PUT", "", [X1, {"api-key": "lost"}], 200, [X1]),
    ("codex-api-key", "PATCH", "", {"index": 0, "value": {"base-url": ""}}, 200, []),
    ("codex-api-key", "DELETE", "?api-key=no", None, 200, [X1]),
    ("vertex-api-key", "PUT", "", [V1, V1], 200, [V1]),
    ("vertex-api-key", "PATCH", "", {"index": 0, "value": {"api-key": ""}}, 200, []),
    ("vertex-api-key", "DELETE", "?index=0", None, 200, []),
    ("openai-compatibility", "PUT", "", [{**UP, "x-mine": 1}, {"name": "lost"}], 200, [{**UP, "x-mine": 1}]),
    ("openai-compatibility", "PATCH", "", {"index": 0, "value": {"disabled": True}}, 200, [{**UP, "disabled": True}]),
    ("openai-compatibility", "PATCH", "", {"name": "up", "value": {"prefix": "p"}}, 200, [{**UP, "prefix": "p"}]),
    ("openai-compatibility", "PATCH", "", {"name": "up", "value": {"base-url": ""}}, 200, []),
    ("openai-compatibility", "PATCH", "", {"name": "down", "value": {}}, 404, "item not found"),
    ("openai-compatibility", "DELETE", "?name=up", None, 200, []),
    ("openai-compatibility", "DELETE", "?name=no", None, 200, [UP]),
    ("openai-compatibility", "DELETE", "", None, 400, "missing name or index"),
]  # fmt: skip


@pytest.mark.parametrize("case", OBJECTS, ids=str)
def test_objects(office: Office, case: tuple[Any, ...]) -> None:
    check(office, f"/{case[0]}", case[1:])


def test_every_key_has_the_index_of_its_account(office: Office) -> None:
    told = {row.key: office.get(row.path)[row.key] for row in cp.OBJECTS}
    entries = told.pop("openai-compatibility")[0]["api-key-entries"]
    shown = [item["auth-index"] for items in (*told.values(), entries) for item in items]
    assert {account.auth_index for account in office.app.router.offers.accounts} == set(shown)
    office.call("PUT", "/gemini-api-key", office.get("/gemini-api-key")["gemini-api-key"])
    assert "auth-index" not in office.text


def test_a_key_is_switched_off_by_its_index(office: Office) -> None:
    index = office.get("/gemini-api-key")["gemini-api-key"][0]["auth-index"]
    for disabled in (True, False):
        got = office.call("PATCH", "/auth-files/status", {"auth_index": index, "disabled": disabled})
        about = {"via": "excluded-models", "excluded_pattern": "*"}
        assert got.json() == {"status": "ok", "disabled": disabled, **about}
        item = office.get("/config")["gemini-api-key"][0]
        assert item.get("excluded-models", []) == (["*"] if disabled else [])


def test_a_file_that_is_mounted_by_itself_is_written_in_place(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = cp.write_atomic

    def busy(path: Path, data: bytes, mode: int = 0o600) -> None:
        if path == office.path:
            raise OSError(errno.EBUSY, "Device or resource busy")
        real(path, data, mode)

    monkeypatch.setattr(cp, "write_atomic", busy)
    assert office.call("PUT", "/debug", {"value": True}).json() == OK
    assert office.get("/debug") == {"debug": True}
    assert office.text == YAML.replace("debug: false", "debug: true")


M1, M2 = {"from": "a", "to": "b"}, {"from": "c", "to": "d", "regex": True}
K1, K2 = {"upstream-api-key": "u", "api-keys": ["one"]}, {"upstream-api-key": "w", "api-keys": ["two"]}
AMP = [
    ("model-mappings", "PUT", "", {"value": [M2]}, 200, [M2]),
    ("model-mappings", "PUT", "", {"value": "x"}, 400, "invalid body"),
    (
        "model-mappings",
        "PATCH",
        "",
        {"value": [{"from": "a", "to": "z"}, M2]},
        200,
        [{"from": "a", "to": "z"}, M2],
    ),
    ("model-mappings", "DELETE", "", {"value": ["a"]}, 200, []),
    ("model-mappings", "DELETE", "", {"value": ["x"]}, 200, [M1]),
    ("model-mappings", "DELETE", "", None, 200, []),
    ("model-mappings", "DELETE", "", {"value": []}, 200, []),
    ("upstream-api-keys", "PUT", "", {"value": [K2]}, 200, [K2]),
    ("upstream-api-keys", "PATCH", "", {"value": [K2]}, 200, [K1, K2]),
    ("upstream-api-keys", "DELETE", "", {"value": ["u"]}, 200, []),
    ("upstream-api-keys", "DELETE", "", {"value": []}, 200, []),
    ("upstream-api-keys", "DELETE", "", None, 400, "invalid body"),
    ("upstream-api-keys", "DELETE", "", {}, 400, "missing value"),
    ("upstream-api-keys", "DELETE", "", {"value": [" "]}, 400, "empty value"),
]


@pytest.mark.parametrize("case", AMP, ids=str)
def test_lists_of_amp(make_office: OfficeMaker, case: tuple[Any, ...]) -> None:
    office = make_office(
        SECRET + f"ampcode:\n  model-mappings: [{json.dumps(M1)}]\n  upstream-api-keys: [{json.dumps(K1)}]\n"
    )
    check(office, f"/ampcode/{case[0]}", case[1:])
    assert set(office.get("/ampcode")["ampcode"]) >= {"upstream-url", "model-mappings", "upstream-api-keys"}


def test_every_endpoint_of_a_shape_has_its_verbs() -> None:
    shaped = {(row.method, row.path) for row in cp.ENDPOINT_ROWS if row.row is not None}
    rows: list[Any] = [*cp.SCALARS, *cp.TEXTS, *cp.MAPS, *cp.OBJECTS, *cp.AMP_LISTS]
    assert shaped >= {(method, row.path) for row in rows for method in ("GET", "PUT", "PATCH")}


# -- the whole config ------------------------------------------------------------------------


def test_config_is_as_pages_read_it(office: Office) -> None:
    config = office.get("/config")
    assert not {"host", "port", "auth-dir", "remote-management"} & set(config)
    for name in ("debug", "request-log", "logging-to-file", "ws-auth", "force-model-prefix"):
        assert isinstance(config[name], bool)
    assert config["api-keys"] == ["one", "two"]
    assert config["gemini-api-key"] == [G1, G2]
    assert config["oauth-model-alias"] == {"codex": [{"name": "gpt-5", "alias": "five"}]}
    assert config["x-unknown"] == [1, 2]
    assert None not in config.values()


def test_lists_are_empty_and_not_null(make_office: OfficeMaker) -> None:
    office = make_office(SECRET)
    for row in (*cp.TEXTS, *cp.OBJECTS, *cp.AMP_LISTS):
        assert office.get(row.path) == {row.name: []}
    for row in cp.MAPS:
        assert office.get(row.path) == {row.name: {}}


def test_the_text_is_byte_exact(office: Office) -> None:
    got = office.call("GET", "/config.yaml")
    assert got.body.decode() == YAML
    assert got.headers["content-type"] == "application/yaml; charset=utf-8"
    assert (got.headers["cache-control"], got.headers["x-content-type-options"]) == ("no-store", "nosniff")
    new = YAML.replace("debug: false", "debug:   true").replace("\n", "\r\n").encode()
    assert office.call("PUT", "/config.yaml", new).json() == {"ok": True, "changed": ["config"]}
    assert office.path.read_bytes() == new
    assert office.get("/debug") == {"debug": True}


BAD_TEXTS = [
    pytest.param(b"", 400, "invalid_yaml", id="empty"),
    pytest.param(b"  \n# nothing\n", 400, "invalid_yaml", id="a comment"),
    pytest.param(b"- a\n", 400, "invalid_yaml", id="a list"),
    pytest.param(b"words", 400, "invalid_yaml", id="a text"),
    pytest.param(b"a: [1", 400, "invalid_yaml", id="no YAML"),
    pytest.param(b"debug: true\ndebug: false\n", 400, "invalid_yaml", id="a key twice"),
    pytest.param(b"debug: [1]\n", 400, "invalid_yaml", id="a wrong type"),
    pytest.param(b"\xff\xfe", 400, "invalid_yaml", id="no UTF-8"),
    pytest.param(b"debug: true\n", 422, "invalid_config", id="without the key"),
    pytest.param(b"{}", 422, "invalid_config", id="an empty mapping"),
    pytest.param(b"port: 99999\n", 422, "invalid_config", id="out of range"),
    pytest.param(b"routing:\n  strategy: best\n", 422, "invalid_config", id="no such word"),
    pytest.param(b"a: " + b"x" * 10_000_000, 413, "invalid_yaml", id="10 MB"),
]


@pytest.mark.parametrize(("body", "status", "error"), BAD_TEXTS)
def test_bad_texts_change_nothing(office: Office, body: bytes, status: int, error: str) -> None:
    got = office.call("PUT", "/config.yaml", body)
    assert error_of(got) == (status, error)
    assert got.json()["message"]
    assert office.text == YAML
    assert office.get("/api-keys") == {"api-keys": ["one", "two"]}


def test_a_page_adds_keys_without_quotes_to_a_file_of_json(make_office: OfficeMaker) -> None:
    office = make_office(json.dumps({"remote-management": {"secret-key": KEY}}), "config.json")
    text = office.text.replace("}}", "}, request-retry: 3 }")
    assert office.call("PUT", "/config.yaml", text.encode()).status == 200
    assert json.loads(office.text)["request-retry"] == 3
    assert office.get("/request-retry") == {"request-retry": 3}


def test_what_changed_on_disk_is_not_lost(office: Office) -> None:
    office.path.write_text(YAML + "proxy-url: direct\n")
    office.call("PUT", "/debug", {"value": True})
    assert office.text == YAML.replace("debug: false", "debug: true") + "proxy-url: direct\n"
    assert office.get("/proxy-url") == {"proxy-url": "direct"}


def test_a_file_that_is_broken_now_is_left_alone(office: Office) -> None:
    office.path.write_text("a: [1\n")
    status, text = error_of(office.call("PUT", "/debug", {"value": True}))
    assert (status, text.startswith("failed to save config: ")) == (500, True)
    assert office.text == "a: [1\n"
    assert office.get("/api-keys") == {"api-keys": ["one", "two"]}
    assert office.call("GET", "/config.yaml").body == b"a: [1\n"


def test_a_file_that_vanished(office: Office) -> None:
    office.path.unlink()
    assert error_of(office.call("GET", "/config.yaml")) == (404, "not_found")
    assert office.call("PUT", "/debug", {"value": True}).status == 404
    assert office.get("/debug") == {"debug": False}
    assert not office.path.exists()


def test_two_writers_lose_nothing(office: Office) -> None:
    paths = [row.path for row in cp.SCALARS if row.kind is bool]
    threads = [threading.Thread(target=office.call, args=("PUT", path, {"value": True})) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [list(office.get(path).values()) for path in paths] == [[True]] * len(paths)


def test_the_mode_stays_and_a_link_is_followed(office: Office) -> None:
    real = office.path.with_name("real.yaml")
    office.path.rename(real)
    office.path.symlink_to(real)
    real.chmod(0o640)
    assert office.call("PUT", "/debug", {"value": True}).status == 200
    assert office.path.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert "debug: true" in real.read_text()


def test_old_spellings_do_not_bring_back_what_was_deleted(make_office: OfficeMaker) -> None:
    old = (
        "auth: {providers: [{type: config-api-key, api-keys: [k1, k2]}]}\ngenerative-language-api-key: [g1]\n"
    )
    office = make_office(SECRET + old)
    assert office.get("/api-keys") == {"api-keys": ["k1", "k2"]}
    office.call("DELETE", "/api-keys?value=k1")
    assert office.get("/api-keys") == {"api-keys": ["k2"]}
    office.call("DELETE", "/gemini-api-key?index=0")
    assert office.get("/gemini-api-key") == {"gemini-api-key": []}
    assert cp.load_config(office.path)["api-keys"] == ["k2"]


def test_what_would_open_the_proxy_to_everybody_is_refused(make_office: OfficeMaker) -> None:
    office = make_office(SECRET + "host: ''\napi-keys: [k]\n")
    status, text = error_of(office.call("PUT", "/api-keys", []))
    assert (status, "lets other machines in" in text) == (400, True)
    assert office.get("/api-keys") == {"api-keys": ["k"]}


def test_keys_of_upstreams_are_in_force_at_once(office: Office) -> None:
    office.call("PUT", "/claude-api-key", [{"api-key": "new", "models": [{"name": "mine"}]}])
    models = office.send("GET", "/v1/models", headers={"Authorization": "Bearer one"}).json()["data"]
    assert "mine" in [model["id"] for model in models]


PATHS = ["/", "/nothing", "/debug/x", "/configs", "/../config", "//config", "/config%00"]


@pytest.mark.parametrize("path", PATHS)
def test_unknown_paths(office: Office, path: str) -> None:
    assert office.call("GET", path).status == 404
    assert office.send("GET", API + path).status == 401


def test_head_is_not_served(office: Office) -> None:
    got = office.call("HEAD", "/config")
    assert (got.status, got.body) == (404, b"")


def test_no_secret_is_logged(office: Office, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        office.server.desk.poll()
        office.call("GET", "/debug", key="hunter2-secret")
        for _ in range(5):
            office.call("GET", "/debug", key="hunter2-secret")
    assert KEY not in caplog.text
    assert "hunter2" not in caplog.text
    assert "shut out for 30m0s" in caplog.text


# -- edits of the text ---------------------------------------------------------------------

COMMENT = st.sampled_from(["", " # why", "  # 'quoted' [x"])
VALUES = {
    bool: st.booleans(),
    int: st.integers(0, 99),
    str: st.sampled_from(["", "direct", "http://127.0.0.1:1"]),
}
PLAIN = [row for row in cp.SCALARS if row.kind is not str and "." not in row.key and row.key != "ws-auth"]


@st.composite
def files(draw: st.DrawFn) -> tuple[str, str]:
    """A settings file with comments, of YAML or JSON."""
    rows = draw(st.lists(st.sampled_from(PLAIN), unique=True, max_size=5))
    fields = {row.key: draw(VALUES[row.kind]) for row in rows}
    keys = draw(st.lists(st.text("abc", min_size=1, max_size=3), unique=True, max_size=4))
    secret = {"remote-management": {"secret-key": KEY}}
    if draw(st.booleans()):
        indent = draw(st.sampled_from([None, 2, 4]))
        return json.dumps({**secret, **fields, "api-keys": keys}, indent=indent), "config.json"
    lines = [f"{key}: {json.dumps(value)}{draw(COMMENT)}" for key, value in fields.items()]
    listed = [f"  - {key}{draw(COMMENT)}" for key in keys]
    lines += ["api-keys:", *listed] if keys else ["api-keys: []"]
    lines.insert(draw(st.integers(0, len(fields))), "# alone")
    return "\n".join([*lines, SECRET]), "config.yaml"


@settings(max_examples=30)
@given(files(), st.sampled_from(PLAIN), st.data())
def test_an_edit_changes_its_setting_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, file: tuple[str, str], row: cp.Scalar, data: st.DataObject
) -> None:
    text, name = file
    folder = tmp_path_factory.mktemp("edit")
    (folder / name).write_text(text)
    app = cp.App(cp.ConfigFile(folder / name), cp.Store(folder / "auth"), {})
    value = data.draw(VALUES[row.kind])
    cp.Pen(app).edit(row.key, lambda _: value)
    edited = (folder / name).read_text()
    before, after = cp.parse_config(None, text).data, cp.parse_config(None, edited).data
    assert after == {**before, row.key: value}
    assert app.config.data[row.key] == after[row.key]
    kept = [line for line in text.splitlines() if row.key not in line]
    if name.endswith("yaml"):
        assert [line for line in edited.splitlines() if row.key not in line] == kept


@settings(max_examples=30)
@given(files(), st.lists(st.text("abcd", min_size=1, max_size=3), unique=True, max_size=4))
def test_an_edit_of_a_list_keeps_what_stays(
    tmp_path_factory: pytest.TempPathFactory, file: tuple[str, str], keys: list[str]
) -> None:
    text, name = file
    folder = tmp_path_factory.mktemp("edit")
    (folder / name).write_text(text)
    app = cp.App(cp.ConfigFile(folder / name), cp.Store(folder / "auth"), {})
    cp.Pen(app).edit("api-keys", lambda _: keys)
    after = cp.parse_config(None, (folder / name).read_text()).data
    assert after == {**cp.parse_config(None, text).data, "api-keys": keys}


LARGE = [
    ("PUT", "/api-keys"),
    ("PATCH", "/gemini-api-key"),
    ("PUT", "/debug"),
    ("POST", "/oauth-callback"),
    ("POST", "/api-call"),
]


@pytest.mark.parametrize(("method", "path"), LARGE)
def test_bodies_of_ten_megabytes(office: Office, method: str, path: str) -> None:
    got = office.call(method, path, json.dumps(["x" * 1_000] * 10_000).encode())
    assert got.status in {400, 413}
    assert got.json()["error"]
    assert office.text == YAML


@st.composite
def key_files(draw: st.DrawFn) -> tuple[str, list[list[str]]]:
    """A settings file with a list of keys, each with comments; and the lines of each."""
    entries = []
    for number in range(draw(st.integers(1, 4))):
        lines = [f"  - api-key: k{number}{draw(COMMENT)}"]
        lines += [f"    prefix: p{number}{draw(COMMENT)}"] if draw(st.booleans()) else []
        lines += [f"    # note {number}", f"    x-mine: [ 1, {number} ]"] if draw(st.booleans()) else []
        entries.append(lines)
    lines = [line for entry in entries for line in entry]
    return "\n".join(
        [SECRET.rstrip(), "gemini-api-key: # of Google", *lines, "debug: true # last", ""]
    ), entries


@settings(max_examples=30)
@given(key_files(), st.data())
def test_an_edit_of_a_key_keeps_the_lines_of_all_others(
    tmp_path_factory: pytest.TempPathFactory, file: tuple[str, list[list[str]]], data: st.DataObject
) -> None:
    text, entries = file
    folder = tmp_path_factory.mktemp("edit")
    (folder / "c.yaml").write_text(text)
    app = cp.App(cp.ConfigFile(folder / "c.yaml"), cp.Store(folder / "auth"), {})
    at = data.draw(st.integers(0, len(entries) - 1))
    what = data.draw(st.sampled_from(["change", "delete", "add"]))

    def step(items: list[Json]) -> list[Json]:
        if what == "add":
            return [*items, {"api-key": "fresh"}]
        changed = [{**items[at], "weight": 3}] if what == "change" else []
        return [*items[:at], *changed, *items[at + 1 :]]

    before = cp.parse_config(None, text).data["gemini-api-key"]
    cp.Pen(app).edit("gemini-api-key", step)
    edited = (folder / "c.yaml").read_text()
    after = cp.parse_config(None, edited).data
    for number, (entry, lines) in enumerate(zip(before, entries)):
        if number != at or what == "add":
            assert entry in after["gemini-api-key"]
            assert all(line in edited.splitlines() for line in lines if "#" not in line or "note" not in line)
    assert len(after["gemini-api-key"]) == len(entries) + {"add": 1, "delete": -1, "change": 0}[what]
    assert edited.endswith("debug: true # last\n")
    assert edited.startswith(SECRET)
