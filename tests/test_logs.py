"""LOGS: main.log, the logs of single requests, `logs`, and what debug tells."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import cliproxy as cp
from support.models import ask_for
from support.proxy import Proxy, ProxyMaker
from support.upstream import Upstream, wait_for
from support.usage import SSE, answer, events, reply

Json = dict[str, Any]
# what management interfaces parse: spec/config.md 9
MAIN = re.compile(
    r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\] \[([0-9a-f]{8}|-{8})\] \[(info |warn |error|debug)\] \[[\w.]+:\d+\] (.*)"
)
ACCESS = re.compile(r'(\d{3}) \| +[\d.]+m?s \| +([\d.:a-f]+) \| ([A-Z]+) +"([^"]*)"')  # fmt: skip


@pytest.fixture(autouse=True)
def _all_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def logs_of(proxy: Proxy) -> Path:
    return proxy.auth_dir / "logs"


def files(proxy: Proxy, count: int = 1) -> list[Path]:
    """The logs of single requests, when there are so many."""

    def found() -> list[Path]:
        proxy.app.scribe.write()
        return sorted(path for path in logs_of(proxy).glob("*.log") if not path.name.startswith("main"))

    wait_for(lambda: len(found()) >= count)
    return found()


def command(proxy: Proxy, *words: str) -> int:
    return cp.main([words[0], "--config", str(proxy.path), *words[1:]])


# -- main.log ----------------------------------------------------------------------------


def test_main_log_is_as_interfaces_read_it(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    proxy = make_proxy(logging_to_file=True)
    upstream.replies.append(reply("claude", stream=False))
    ask_for(proxy, "claude", "up-claude")
    proxy.ask("/nowhere?key=sk-secret-key")
    record = logging.LogRecord("x", logging.WARNING, "a.py", 7, "rid=0123abcd odd\n%s", ("b",), None)
    proxy.app.scribe.put(record)

    def lines() -> list[str]:
        proxy.app.scribe.write()
        path = logs_of(proxy) / "main.log"
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []

    wait_for(lambda: len(lines()) >= 3)
    found = [MAIN.fullmatch(line) for line in lines()]
    assert all(found)
    told = sorted((match[2], match[1] == "-" * 8, match[3]) for match in found if match)
    assert told[0][2].startswith("200 | ")
    assert "account=claude-api-key[0] in=16 out=7" in told[0][2]
    access = [ACCESS.match(text) for _, _, text in told]
    assert [match and match.groups() for match in access] == [
        ("200", "127.0.0.1", "POST", "/v1/messages"),
        None,
        ("404", "127.0.0.1", "GET", "/nowhere?key=sk-s...-key"),
    ]
    assert told[1] == ("warn ", False, "odd\\nb")
    assert proxy.lines == []
    if sys.platform != "win32":
        assert (logs_of(proxy) / "main.log").stat().st_mode & 0o777 == 0o600


def test_main_log_is_put_aside_when_it_is_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cp, "MAIN_LIMIT", 100)
    logs = cp.LogFiles(tmp_path)
    for text in ("a" * 60 + "\n", "b" * 60 + "\n"):
        logs.add(text)
    aside, main = cp.main_logs(tmp_path)
    assert re.fullmatch(r"main-\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d\.\d{3}\.log", aside.name)
    assert (aside.read_text(encoding="utf-8")[0], main.read_text(encoding="utf-8")[0]) == ("a", "b")


def test_old_logs_go_when_they_are_too_many(tmp_path: Path) -> None:
    logs = cp.LogFiles(tmp_path)
    logs.add("x")
    for number in range(5):
        path = tmp_path / f"main-{number}.log"
        path.write_bytes(b"x" * 600_000)
        stamp = 1_000_000 + number
        os.utime(path, (stamp, stamp))
    logs.clean(2, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "main-2.log",
        "main-3.log",
        "main-4.log",
        "main.log",
    ]


def test_a_folder_that_is_a_file_costs_no_request(
    make_proxy: ProxyMaker, upstream: Upstream, capfd: pytest.CaptureFixture[str]
) -> None:
    proxy = make_proxy(logging_to_file=True, request_log=True)
    logs_of(proxy).write_text("a file", encoding="utf-8")
    upstream.replies += [reply("claude", stream=False)] * 2
    for count in (1, 2):
        assert ask_for(proxy, "claude", "up-claude").status == 200
        proxy.rows(count)
    proxy.app.scribe.write()
    told = capfd.readouterr().err
    assert told.count("cannot be written") == 1
    assert told.count('"/v1/messages"') == 2


def test_the_folder_is_where_the_reference_has_it(
    tmp_path: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = proxy.app.config
    monkeypatch.chdir(tmp_path)
    assert cp.log_folder(config, {}) == proxy.auth_dir / "logs"
    (tmp_path / "logs").mkdir()
    assert cp.log_folder(config, {}) == (tmp_path / "logs").resolve()
    assert cp.log_folder(config, {"WRITABLE_PATH": "/x"}) == Path("/x/logs")


# -- logs of single requests -------------------------------------------------------------

TITLES = re.compile(rb"^=== (.*) ===$", re.MULTILINE)


@pytest.mark.parametrize("client", ["claude", "chat"], ids=["passing", "translated"])
def test_a_request_is_recorded_as_it_came_and_went(
    make_proxy: ProxyMaker, upstream: Upstream, client: str
) -> None:
    proxy = make_proxy(request_log=True, api_keys=["sk-client-secret-1"])
    upstream.replies.append(reply("claude", stream=True))
    path, body = {"claude": ("/v1/messages", {"max_tokens": 9}), "chat": ("/v1/chat/completions", {})}[client]
    asked = {"model": "up-claude", "messages": [{"role": "user", "content": "hi"}], "stream": True, **body}
    got = proxy.ask(f"{path}?key=sk-client-secret-1", asked, {"authorization": "Bearer sk-client-secret-1"})
    (file,) = files(proxy)
    text = file.read_bytes()
    titles = [title.decode() for title in TITLES.findall(text)]
    assert titles == [
        "REQUEST INFO",
        "HEADERS",
        "REQUEST BODY",
        "API REQUEST 1",
        "API RESPONSE 1",
        "RESPONSE",
    ]
    id = got.headers["x-cliproxy-request-id"]
    assert re.fullmatch(rf"v1-[a-z-]+-\d{{4}}-\d\d-\d\dT\d{{6}}-{id}\.log", file.name)
    assert cp.request_log(logs_of(proxy), id) == file
    assert json.dumps(asked).encode() in text
    for event in events("claude"):
        assert cp.sse_frame(event, event["type"]).strip() in text.partition(b"=== API RESPONSE 1 ===")[2]
    assert got.body in text.partition(b"=== RESPONSE ===")[2]
    assert f"Upstream URL: {upstream.url}/v1/messages".encode() in text
    assert b"authorization: Bearer sk-c...et-1" in text
    assert b"secret" not in text
    assert b"sk-upstream-key" not in text


def test_bodies_are_kept_up_to_a_limit(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    proxy = make_proxy(request_log=True, request_log_body_kb=1)
    upstream.reply(answer("claude", {"input_tokens": 1, "padding": "y" * 5_000}))
    body = {"model": "up-claude", "max_tokens": 9, "messages": [{"role": "user", "content": "x" * 5_000}]}
    assert len(proxy.ask("/v1/messages", body).body) > 5_000
    text = files(proxy)[0].read_bytes()
    assert text.count(b"bytes more") == 4
    assert text.count(b"x" * 1_100) == text.count(b"y" * 1_100) == 0


def test_what_fails_is_recorded_anyway(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    proxy = make_proxy(error_logs_max_files=2)
    for number in range(4):
        upstream.reply({"error": {"message": f"no {number}"}}, 400)
        assert ask_for(proxy, "chat", "up-chat").status == 400
        proxy.rows(number + 1)
        found = files(proxy)
    upstream.replies.append(reply("chat", stream=False))
    ask_for(proxy, "chat", "up-chat")
    proxy.rows(5)
    found = files(proxy, 2)
    assert len(found) == 2
    text = found[-1].read_bytes()
    assert found[-1].name.startswith("error-v1-chat-completions-")
    titles = [title.decode() for title in TITLES.findall(text)]
    assert titles == [
        "REQUEST INFO",
        "HEADERS",
        "REQUEST BODY",
        "API RESPONSE",
        "API ERROR RESPONSE",
        "RESPONSE",
    ]
    assert b'"message":"no ' in text
    assert b"HTTP Status: 400" in text


def test_a_recorded_stream_is_not_held_up(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    proxy = make_proxy(request_log=True)
    go = threading.Event()
    first, *rest = [cp.sse_frame(event, event["type"]) for event in events("claude")]
    upstream.reply([first, *rest[:2], go, *rest[2:]], headers=SSE)
    body = json.dumps({
        "model": "up-claude", "max_tokens": 9, "stream": True, "messages": [{"role": "user", "content": "hi"}],
    }).encode()  # fmt: skip
    with contextlib.closing(proxy.connect()) as peer:
        peer.sendall(
            b"POST /v1/messages HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n%b"
            % (len(body), body)
        )
        seen = b""
        while b"text_delta" not in seen:
            seen += peer.recv(4_096)
        go.set()
        while b"message_stop" not in seen:
            seen += peer.recv(4_096)
    assert b"message_stop" in files(proxy)[0].read_bytes()


# -- the command -------------------------------------------------------------------------


def test_logs_of_the_file(
    make_proxy: ProxyMaker, upstream: Upstream, capsys: pytest.CaptureFixture[str]
) -> None:
    proxy = make_proxy(logging_to_file=True, request_log=True)
    upstream.replies.append(reply("claude", stream=False))
    id = ask_for(proxy, "claude", "up-claude").headers["x-cliproxy-request-id"]
    ask_for(proxy, "claude", "no-such-model")
    proxy.rows(2)
    files(proxy, 2)
    assert command(proxy, "logs") == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert command(proxy, "logs", "--errors") == 0
    assert "404 |" in capsys.readouterr().out
    assert command(proxy, "logs", id) == 0
    said = capsys.readouterr().out
    assert said.startswith("[")
    assert "=== REQUEST INFO ===" in said
    assert " 404 |" not in said.partition("===")[0]


def test_logs_without_a_file_are_the_statistics(
    proxy: Proxy, upstream: Upstream, capsys: pytest.CaptureFixture[str]
) -> None:
    upstream.replies.append(reply("claude", stream=False))
    id = ask_for(proxy, "claude", "up-claude").headers["x-cliproxy-request-id"]
    ask_for(proxy, "claude", "no-such-model")
    proxy.rows(2)
    proxy.app.stats.flush()
    assert command(proxy, "logs", id) == 0
    assert capsys.readouterr().out.count("up-claude") == 1
    assert command(proxy, "logs", "--errors", "-n", "1") == 0
    assert "(refused)" in capsys.readouterr().out


def test_a_log_is_followed_when_another_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cp, "LIVE_TICK", 0.01)
    path, stop = tmp_path / "main.log", threading.Event()
    path.write_text("old\n", encoding="utf-8")
    lines = cp.follow_file(path, stop)

    def add() -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write("new\nhalf")

    adder = threading.Timer(0.05, add)
    adder.start()
    assert next(lines) == "new"
    adder.join()
    path.replace(tmp_path / "aside")
    path.write_text("fresh\n", encoding="utf-8")
    assert next(lines) == "fresh"
    stop.set()


# -- debug -------------------------------------------------------------------------------


def test_debug_tells_who_is_asked_how_and_what_was_changed(
    make_proxy: ProxyMaker, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    proxy = make_proxy(
        debug=True, payload={"override": [{"models": [{"name": "*"}], "params": {"top_k": 5}}]}
    )
    caplog.set_level(logging.DEBUG)
    upstream.replies += [reply("claude", stream=False)] * 2
    ask_for(proxy, "claude", "up-claude")
    ask_for(proxy, "chat", "up-claude")
    assert "up-claude: asking claude-api-key[0]; not anybody else" in caplog.text
    assert f"POST {upstream.url}/v1/messages; changed in the body: top_k; headers: " in caplog.text
    assert "status 200 after 0." in caplog.text
    assert "the body translated from chat to claude" in caplog.text
    assert "sk-upstream-key" not in caplog.text
