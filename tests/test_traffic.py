"""What was used and said, as pages and collectors read it: through real sockets, after real requests."""

from __future__ import annotations

import json
import logging
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import cliproxy as cp
from support.office import SECRET, Office, OfficeMaker, error_of
from support.upstream import Upstream, make_reply

Json = cp.Json
ANSWER = {
    "id": "x", "object": "chat.completion", "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi"}}],
    "usage": {"prompt_tokens": 11, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 3}, "total_tokens": 18},
}  # fmt: skip
ASK = {"model": "up-chat", "messages": [{"role": "user", "content": "hi"}]}
KEYED = {"Authorization": "Bearer client-key-1"}


@pytest.fixture
def bureau(
    make_office: OfficeMaker, upstream: Upstream, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> Office:
    """An office that has answered three requests, and failed one."""
    caplog.set_level(logging.INFO)
    entry = {
        "name": "Up",
        "base-url": f"{upstream.url}/v1",
        "api-key-entries": [{"api-key": "sk-up"}],
        "models": [{"name": "up-chat"}],
    }
    text = f"{SECRET}request-retry: 0\nlogging-to-file: true\napi-keys: [client-key-1]\nopenai-compatibility: [{json.dumps(entry)}]\n"
    office = make_office(text, environ={"WRITABLE_PATH": str(tmp_path)})
    for _ in range(3):
        upstream.reply(ANSWER)
        assert office.send("POST", "/v1/chat/completions", ASK, KEYED).status == 200
    upstream.reply({"error": {"message": "no"}}, 400)
    assert office.send("POST", "/v1/chat/completions", ASK, KEYED).status == 400
    assert office.send("POST", "/v1/chat/completions", {**ASK, "model": "unknown"}, KEYED).status == 404
    return office


def usage_of(office: Office) -> Json:
    """Return the usage when the last request, whose row follows its answer, is in it."""
    for _ in range(200):
        told: Json = office.get("/usage")
        if told["usage"]["total_requests"] >= 4:
            return told
        threading.Event().wait(0.01)
    raise TimeoutError


def test_usage_is_as_the_page_of_the_first_generation_reads_it(bureau: Office) -> None:
    told = usage_of(bureau)
    usage = told["usage"]
    assert told["failed_requests"] == 1
    totals = [usage[key] for key in ("total_requests", "success_count", "failure_count", "total_tokens")]
    assert totals == [4, 3, 1, 54]
    ((key, api),) = usage["apis"].items()
    assert key == cp.key_mark("client-key-1")
    assert (api["total_requests"], api["total_tokens"]) == (4, 54)
    model = api["models"]["up-chat"]
    assert (model["total_requests"], model["total_tokens"]) == (4, 54)
    first, *_, last = model["details"]
    tokens = {
        "input_tokens": 11,
        "output_tokens": 7,
        "reasoning_tokens": 0,
        "cached_tokens": 3,
        "total_tokens": 18,
    }
    assert (first["tokens"], first["failed"], last["failed"]) == (tokens, False, True)
    (account,) = bureau.app.router.offers.accounts
    assert (first["source"], first["auth_index"]) == (account.name, account.auth_index)
    assert abs((cp.read_time(first["timestamp"]) or 0) - time.time()) < 60
    for word in ("day", "hour"):
        assert sum(usage[f"requests_by_{word}"].values()) == 4
        assert sum(usage[f"tokens_by_{word}"].values()) == 54
    assert "client-key-1" not in json.dumps(told)


def test_an_export_is_imported_once(bureau: Office, make_office: OfficeMaker) -> None:
    usage_of(bureau)
    export = bureau.get("/usage/export")
    assert (export["version"], export["usage"]["total_requests"]) == (1, 4)
    again = {"added": 0, "skipped": 4, "total_requests": 4, "failed_requests": 1}
    assert bureau.call("POST", "/usage/import", export).json() == again
    other = make_office()
    assert other.call("POST", "/usage/import", export).json() == {**again, "added": 4, "skipped": 0}
    assert other.call("POST", "/usage/import", export).json() == again
    usage = other.get("/usage")["usage"]
    for key in ("total_requests", "total_tokens", "success_count", "requests_by_day", "tokens_by_hour"):
        assert usage[key] == export["usage"][key]


IMPORTS = [
    (b"{", 400, "invalid json"), ([], 400, "invalid json"), ({"version": 2}, 400, "unsupported version"),
    ({"usage": {"apis": []}}, 400, "invalid json"), ({"usage": {"apis": {"a": {"models": {"m": {"details": [1]}}}}}}, 400, "invalid json"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "status", "error"), IMPORTS)
def test_bad_imports(office: Office, body: Any, status: int, error: str) -> None:
    assert error_of(office.call("POST", "/usage/import", body)) == (status, error)
    assert office.get("/usage")["usage"]["total_requests"] == 0


def test_odd_imports_are_made_to_fit(office: Office) -> None:
    detail = {"tokens": {"input_tokens": -5, "output_tokens": "x", "cached_tokens": 1e400}}
    body = {"usage": {"apis": {"POST /v1/messages": {"models": {" ": {"details": [detail]}}}}}}
    assert office.call("POST", "/usage/import", json.dumps(body).encode()).json()["added"] == 1
    api = office.get("/usage")["usage"]["apis"]["POST /v1/messages"]
    assert (api["total_tokens"], list(api["models"])) == (0, ["unknown"])


def test_records_are_popped_once(bureau: Office) -> None:
    usage_of(bureau)
    (first,) = bureau.get("/usage-queue")
    assert {
        "timestamp",
        "latency_ms",
        "ttft_ms",
        "client_ip",
        "user_agent",
        "provider",
        "alias",
        "endpoint",
        "request_id",
    } <= set(first)
    assert (first["model"], first["failed"], first["tokens"]["total_tokens"]) == ("up-chat", False, 18)
    assert first["endpoint"] == "POST /v1/chat/completions"
    rest = bureau.get("/usage-queue?count=100")
    assert [row["failed"] for row in rest] == [False, False, True]
    assert rest[-1]["fail"]["status_code"] == 400
    assert bureau.get("/usage-queue?count=100") == []


@pytest.mark.parametrize("word", ["0", "-1", "x", "1.5", "9" * 30])
def test_bad_counts(office: Office, word: str) -> None:
    assert error_of(office.call("GET", f"/usage-queue?count={word}")) == (
        400,
        "count must be a positive integer",
    )


def test_usage_by_key(bureau: Office, upstream: Upstream) -> None:
    usage_of(bureau)
    told = bureau.get("/api-key-usage")
    row = told["up"][f"{upstream.url}/v1|sk-up"]
    assert (row["success"], row["failed"], len(row["recent_requests"])) == (3, 1, 20)
    assert sum(slot["success"] for slot in row["recent_requests"]) == 3


def test_every_key_of_the_config_is_there(office: Office) -> None:
    told = office.get("/api-key-usage")
    assert {name: list(rows) for name, rows in told.items()} == {
        "claude": ["|c1", "https://example.org|c1"],
        "codex": ["https://example.org/v1|x1"],
        "gemini": ["|g1", "https://example.org|g2"],
        "vertex": ["https://example.org|v1"],
        "up": ["https://example.org/v1|k1"],
    }


def test_files_tell_what_became_of_their_requests(make_office: OfficeMaker, upstream: Upstream) -> None:
    office = make_office(f"{SECRET}request-retry: 0\nproviders:\n  claude: {{ base-url: {upstream.url} }}\n")
    data = {
        "type": "claude",
        "email": "a@b.example",
        "access_token": "t",
        "expired": cp.write_time(time.time() + 3600),
    }
    (office.auth_dir / "claude-a.json").write_text(json.dumps(data))
    office.app.take_over()
    said = {"type": "message", "role": "assistant", "content": [{"type": "text", "text": "hello"}]}
    upstream.routes["/v1/messages"] = make_reply(said)
    ask = {"model": "claude-sonnet-4-6", "max_tokens": 9, "messages": ASK["messages"]}
    assert office.send("POST", "/v1/messages", ask).status == 200
    for _ in range(200):
        (row,) = office.get("/auth-files")["files"]
        if row["success"]:
            break
        threading.Event().wait(0.01)
    assert (
        row["success"],
        row["failed"],
        row["recent_requests"][-1]["success"] + row["recent_requests"][-2]["success"],
    ) == (1, 0, 1)


# -- logs --------------------------------------------------------------------------------------


def test_logs_are_read_and_cleared(bureau: Office, tmp_path: Path) -> None:
    usage_of(bureau)
    told = bureau.get("/logs?limit=10000")
    assert told["line-count"] == len(told["lines"]) >= 5
    assert all(cp.LINE_TIME.match(line) for line in told["lines"])
    assert any('POST    "/v1/chat/completions"' in line for line in told["lines"])
    assert abs(told["latest-timestamp"] - time.time()) < 60
    assert bureau.get("/logs?limit=2")["line-count"] == 2
    later = told["latest-timestamp"] + 100
    assert bureau.get(f"/logs?after={later}") == {"lines": [], "line-count": 0, "latest-timestamp": later}
    assert bureau.get("/logs?after=words&limit=1")["line-count"] == 1
    (tmp_path / "logs" / "main-2026-01-01T00-00-00.000.log").write_text(
        "[2026-01-01 00:00:00] old\n  more of it\n"
    )
    assert bureau.get("/logs")["lines"][:2] == ["[2026-01-01 00:00:00] old", "  more of it"]
    got = bureau.call("DELETE", "/logs")
    assert got.json() == {"success": True, "message": "Logs cleared successfully", "removed": 1}
    assert (tmp_path / "logs" / "main.log").exists()
    assert not any("old" in line for line in bureau.get("/logs")["lines"])


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_without_files_there_are_no_logs(office: Office, method: str) -> None:
    assert error_of(office.call(method, "/logs")) == (400, "logging to file disabled")


LIMITS = [
    ("0", "must be greater than zero"),
    ("-5", "must be greater than zero"),
    ("x", "must be a positive integer"),
    ("1.5", "must be a positive integer"),
]


@pytest.mark.parametrize(("limit", "error"), LIMITS)
def test_bad_limits(bureau: Office, limit: str, error: str) -> None:
    assert error_of(bureau.call("GET", f"/logs?limit={limit}")) == (400, f"invalid limit: {error}")


def test_logs_of_failed_requests(bureau: Office) -> None:
    usage_of(bureau)
    files = bureau.get("/request-error-logs")["files"]
    assert files
    assert {key: type(value) for key, value in files[0].items()} == {
        "name": str,
        "size": int,
        "modified": int,
    }
    times = [file["modified"] for file in files]
    assert times == sorted(times, reverse=True)
    got = bureau.call("GET", f"/request-error-logs/{files[0]['name']}")
    assert (got.status, len(got.body)) == (200, files[0]["size"])
    assert "attachment" in got.headers["content-disposition"]
    id = files[0]["name"].removesuffix(".log").rpartition("-")[2]
    assert bureau.call("GET", f"/request-log-by-id/{id}").status == 200
    bureau.call("PUT", "/request-log", {"value": True})
    assert bureau.get("/request-error-logs") == {"files": []}


LOG_NAMES = [
    ("/request-error-logs/error-none.log", 404, "log file not found"),
    ("/request-error-logs/main.log", 404, "log file not found"),
    ("/request-error-logs/..%2F..%2Fconfig.yaml", 400, "invalid log file name"),
    ("/request-error-logs/error-%5C..%5Cx.log", 400, "invalid log file name"),
    ("/request-error-logs/error-%00.log", 400, "invalid log file name"),
    ("/request-log-by-id/00000000", 404, "log file not found for the given request ID"),
    ("/request-log-by-id/..%2Fx", 400, "invalid request ID"),
    ("/request-log-by-id/*", 400, "invalid request ID"),
]


@pytest.mark.parametrize(("path", "status", "error"), LOG_NAMES)
def test_bad_names_of_logs(bureau: Office, path: str, status: int, error: str) -> None:
    assert error_of(bureau.call("GET", path)) == (status, error)


# -- the official page -------------------------------------------------------------------------

PAGE = {"Origin": "https://page.example", "Accept": "application/json"}
ON_LOAD = [  # page, calls, fields that it reads. Source: spec/management.md 15, 17
    ("login", "/config", ["debug", "proxy-url", "request-retry", "quota-exceeded", "request-log", "logging-to-file", "ws-auth",
                          "logs-max-total-size-mb", "force-model-prefix", "routing", "api-keys", "openai-compatibility"]),
    ("frame", "/auth-files", ["files"]),
    ("dashboard", "/api-key-usage", ["up"]),
    ("providers", "/vertex-api-key", ["vertex-api-key"]),
    ("providers", "/openai-compatibility", ["openai-compatibility"]),
    ("files", "/oauth-excluded-models", ["oauth-excluded-models"]),
    ("files", "/oauth-model-alias", ["oauth-model-alias"]),
    ("editors", "/model-definitions/codex", ["channel", "models"]),
    ("logs", "/logs?limit=10000", ["lines", "line-count", "latest-timestamp"]),
    ("logs", "/request-error-logs", ["files"]),
    ("system", "/latest-version", ["latest-version"]),
]  # fmt: skip


@pytest.mark.parametrize(("page", "path", "fields"), ON_LOAD)
def test_what_each_page_loads(bureau: Office, page: str, path: str, fields: list[str]) -> None:
    got = bureau.call("GET", path, **PAGE)
    assert got.status == 200, page
    assert got.headers["access-control-allow-origin"] == "*"
    assert set(fields) <= set(got.json())
    assert None not in got.json().values()


def test_the_page_saves_its_settings(bureau: Office) -> None:
    """Preview, check for conflicts, save, and read again: the text must be the same each time."""
    first = bureau.call("GET", "/config.yaml", **PAGE).body
    assert bureau.call("GET", "/config.yaml", **PAGE).body == first
    changed = first.replace(b"request-retry: 0", b"request-retry: 2 # more")
    kind = {"Content-Type": "application/yaml"}
    assert bureau.call("PUT", "/config.yaml", changed, **PAGE, **kind).json()["ok"] is True
    assert bureau.call("GET", "/config.yaml", **PAGE).body == changed
    assert bureau.get("/config")["request-retry"] == 2


def test_the_page_switches_a_key_off_and_on(office: Office) -> None:
    for globs in (["*"], []):
        items = office.get("/config")["gemini-api-key"]
        items[0]["excluded-models"] = globs
        assert office.call("PUT", "/gemini-api-key", items, **PAGE).status == 200
        shown = office.get("/config")["gemini-api-key"][0]
        assert shown.get("excluded-models", []) == globs
        assert shown["x-mine"] == "kept"


def test_the_page_switches_a_provider_off(office: Office) -> None:
    assert (
        office.call(
            "PATCH", "/openai-compatibility", {"index": 0, "value": {"disabled": True}}, **PAGE
        ).status
        == 200
    )
    assert office.get("/openai-compatibility")["openai-compatibility"][0]["disabled"] is True
    assert not any(account.provider.name == "up" for account in office.app.router.offers.accounts)


def test_no_endpoint_says_401_but_for_the_key(office: Office) -> None:
    bodies: list[Any] = [None, b"", b"{", {}, [], {"value": None}, b"\x00" * 100]
    for row in cp.ENDPOINT_ROWS:
        path = row.path.replace("*", "x")
        for body in bodies:
            if path.endswith("-auth-url") or row.answer is cp.tell_page:  # they ask others
                continue
            got = office.call(row.method, path, body)
            assert got.status in {200, 207, 400, 404, 409, 413, 422, 500, 502}, (row, body)
            if got.status >= 400:
                assert isinstance(got.json()["error"], str)


def test_a_disk_that_takes_nothing(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(30, "Read-only file system")

    text = office.text
    monkeypatch.setattr(cp, "write_atomic", fail)
    status, error = error_of(office.call("PUT", "/debug", {"value": True}))
    assert (status, error) == (500, "failed to save config: Read-only file system")
    body = json.dumps({"type": "claude"}).encode()
    assert office.call("POST", "/auth-files?name=x.json", body).status == 500
    assert (office.text, office.get("/debug"), office.get("/auth-files")) == (
        text,
        {"debug": False},
        {"files": []},
    )
