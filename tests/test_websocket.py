"""WebSocket on /v1/responses, over real sockets: the wire, the memory, failures."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

import cliproxy as cp
from support.cost import effort
from support.dialogue import STREAMS, Said
from support.proxy import Proxy, ProxyMaker
from support.upstream import DEADLINE, Upstream

SSE = {"content-type": "text/event-stream"}
HANDSHAKE = {
    "host": "127.0.0.1",
    "upgrade": "websocket",
    "connection": "keep-alive, Upgrade",
    "sec-websocket-version": "13",
    "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
}
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # to that key: RFC 6455 1.3
MESSAGE = {
    "type": "message",
    "id": "msg_1",
    "role": "assistant",
    "content": [{"type": "output_text", "text": "hé"}],
}
ITEM = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}


def events(id: str) -> list[bytes]:
    response = {"id": id, "object": "response", "output": []}
    payloads = (
        {"type": "response.created", "response": response},
        {"type": "response.output_item.done", "output_index": 0, "item": MESSAGE},
        {"type": "response.completed", "response": {**response, "status": "completed"}},
    )
    return [cp.sse_frame(payload, str(payload["type"])) for payload in payloads]


class Client:
    """A WebSocket client that can also misbehave."""

    def __init__(self, proxy: Proxy, **headers: str) -> None:
        self.sock = socket.create_connection(("127.0.0.1", proxy.port), timeout=DEADLINE)
        lines = [
            "GET /v1/responses HTTP/1.1",
            *(f"{k}: {v}" for k, v in {**HANDSHAKE, **headers}.items()),
            "",
            "",
        ]
        self.sock.sendall("\r\n".join(lines).encode())
        self.stream = self.sock.makefile("rb")
        self.head = b""
        while not self.head.endswith(b"\r\n\r\n"):
            self.head += self.stream.readline()

    def close(self) -> None:
        self.stream.close()
        self.sock.close()

    def frame(self, opcode: int, payload: bytes, *, first: int = 0x80, mask: int = 0x80) -> None:
        length = len(payload)
        size = bytes([mask | min(length, 125)])
        if length > 125:
            size = (
                struct.pack(">BH", mask | 126, length)
                if length < 65_536
                else struct.pack(">BQ", mask | 127, length)
            )
        key = os.urandom(4) if mask else b""
        masked = bytes(byte ^ key[at % 4] for at, byte in enumerate(payload)) if mask else payload
        self.sock.sendall(bytes([first | opcode]) + size + key + masked)

    def read(self) -> tuple[int, bytes]:
        """Read a frame of the server: its opcode and its payload."""
        first, second = self.stream.read(2)
        assert (first & 0xF0, second & 0x80) == (0x80, 0), "whole, and without a mask"
        length = second
        if length > 125:
            size = 2 if length == 126 else 8
            length = int.from_bytes(self.stream.read(size), "big")
        return first & 0x0F, self.stream.read(length)

    def ask(self, **body: Any) -> list[dict[str, Any]]:
        """Send a request; return the events until its end."""
        self.frame(1, json.dumps({"type": "response.create", **body}).encode())
        return list(self.answer())

    def answer(self) -> Iterator[dict[str, Any]]:
        while True:
            opcode, payload = self.read()
            if opcode == 10:
                continue
            assert opcode == 1
            event = json.loads(payload)
            yield event
            if event["type"] in {"response.completed", "response.failed", "error"}:
                return


@pytest.fixture
def proxy(make_proxy: ProxyMaker) -> Proxy:
    return make_proxy(ws=True, api_keys=["k"], disable_cooling=True)


@pytest.fixture
def client(proxy: Proxy) -> Iterator[Client]:
    with closing(Client(proxy, authorization="Bearer k")) as connected:
        assert f"sec-websocket-accept: {ACCEPT}".encode() in connected.head
        yield connected


def types(answer: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in answer]


def test_events_come_one_a_message(client: Client, upstream: Upstream) -> None:
    upstream.reply(events("r1"), headers=SSE)
    answer = client.ask(model="up-responses", input=[ITEM], future=1)
    assert types(answer) == ["response.created", "response.output_item.done", "response.completed"]
    assert answer[1]["item"] == MESSAGE
    sent = upstream.seen[0]
    assert sent.json() == {"model": "up-responses", "input": [ITEM], "future": 1, "stream": True}
    assert not {"upgrade", "sec-websocket-key"} & sent.headers.keys()


def test_only_what_is_new_is_sent(client: Client, upstream: Upstream) -> None:
    for id in ("r1", "r2", "r3"):
        upstream.reply(events(id), headers=SSE)
    client.ask(model="up-responses", input="hi")
    client.ask(model="up-responses", input=[ITEM], previous_response_id="r1")
    client.ask(model="up-responses", input=[ITEM], previous_response_id="r1")
    first = {"type": "message", "role": "user", "content": "hi"}
    inputs = [seen.json()["input"] for seen in upstream.seen]
    assert inputs == [[first], [first, MESSAGE, ITEM], [first, MESSAGE, ITEM]]
    assert not any("previous_response_id" in seen.json() for seen in upstream.seen)


def test_a_long_conversation(client: Client, upstream: Upstream) -> None:
    """On another dialect: the last request has all turns."""
    last, turns = "", 20
    for turn in range(turns):
        upstream.reply(STREAMS["claude"](Said(text=f"answer {turn}.")), headers=SSE)
        going_on = {"previous_response_id": last} if last else {}
        client.frame(9, b"ping")
        answer = client.ask(model="up-claude", input=f"question {turn}?", **going_on)
        last = answer[-1]["response"]["id"]
    messages = upstream.seen[-1].json()["messages"]
    texts = [message["content"][0]["text"] for message in messages]
    told = [text for n in range(turns) for text in (f"question {n}?", f"answer {n}.")]
    assert texts == told[:-1]


def test_a_warm_up_asks_nobody(client: Client, upstream: Upstream) -> None:
    answer = client.ask(model="up-responses", input=[ITEM], generate=False)
    assert types(answer) == ["response.created", "response.completed"]
    assert (answer[1]["response"]["output"], upstream.seen) == ([], [])
    upstream.reply(events("r1"), headers=SSE)
    client.ask(model="up-responses", input=[], previous_response_id=answer[1]["response"]["id"])
    assert upstream.seen[0].json()["input"] == [ITEM]


def test_another_dialect_is_translated(client: Client, upstream: Upstream) -> None:
    delta = {"choices": [{"index": 0, "delta": {"content": "Hello"}, "finish_reason": "stop"}]}
    upstream.reply([cp.sse_frame(delta), b"data: [DONE]\n\n"], headers=SSE)
    answer = client.ask(model="up-chat", input=[ITEM])
    assert "response.output_text.delta" in types(answer)
    upstream.reply([cp.sse_frame(delta), b"data: [DONE]\n\n"], headers=SSE)
    client.ask(model="up-chat", input=[ITEM], previous_response_id=answer[-1]["response"]["id"])
    roles = [message["role"] for message in upstream.seen[1].json()["messages"]]
    assert roles == ["user", "assistant", "user"]


def test_failures_leave_the_connection_usable(client: Client, upstream: Upstream) -> None:
    upstream.reply({"error": {"message": "slow down"}}, 429, {"retry-after": "7"})
    (failed,) = client.ask(model="up-responses", input="hi")
    assert (failed["type"], failed["status"], failed["headers"]) == ("error", 429, {"retry-after": "7"})
    for previous in ("r9", ["r9"], {"r": 9}, 9):
        (unknown,) = client.ask(model="up-chat", input="hi", previous_response_id=previous)
        assert (unknown["status"], unknown["error"]["param"]) == (400, "previous_response_id")
    for text in (b"{", b"[]", b'{"type": "other"}', b'{"input": 1, "model": "m"}', b"\xff"):
        client.frame(1, text)
        assert next(client.answer())["status"] == 400
    upstream.reply(events("r1")[:2], headers=SSE)
    broken = client.ask(model="up-responses", input="hi")
    assert types(broken) == ["response.created", "response.output_item.done", "error"]
    assert broken[-1]["status"] == 502
    (echo,) = [
        e for e in client.ask(model="echo", input="still here") if e["type"] == "response.output_text.done"
    ]
    assert echo["text"] == "still here"


ODD = [  # events of an upstream that keeps no promises
    pytest.param({"type": "response.completed"}, id="no response"),
    pytest.param({"type": "response.completed", "response": "r1"}, id="a text for a response"),
    pytest.param({"type": "response.completed", "response": {"output": []}}, id="no id"),
    pytest.param(
        {"type": "response.completed", "response": {"id": ["r1"], "output": 7}}, id="a list for an id"
    ),
    pytest.param(
        {"type": "response.completed", "response": {"id": "r1", "output": 7}}, id="a number of items"
    ),
]


@pytest.mark.parametrize("item", [{}, {"item": None}, {"item": "text"}])
@pytest.mark.parametrize("end", ODD)
def test_odd_events_are_passed_on(client: Client, upstream: Upstream, item: Any, end: Any) -> None:
    done = {"type": "response.output_item.done", "output_index": 0, **item}
    upstream.reply([*events("r1")[:1], cp.sse_frame(done), cp.sse_frame(end)], headers=SSE)
    assert client.ask(model="up-responses", input="hi")[1:] == [done, end]
    assert client.ask(model="echo", input="still here")[-1]["type"] == "response.completed"


def test_a_lane_is_named_in_its_events_alone(client: Client, upstream: Upstream) -> None:
    upstream.reply(events("r1"), headers=SSE)
    upstream.reply({"error": {"message": "slow down"}}, 429)
    answers = (
        client.ask(model="up-responses", input="hi", stream_id="lane-a"),
        client.ask(model="up-responses", input="hi", stream_id="lane-a"),
        client.ask(model="up-responses", input="hi", stream_id="lane-a", previous_response_id="r9"),
        client.ask(model="up-responses", input="hi", stream_id="lane-a", generate=False),
    )
    assert [len(answer) for answer in answers] == [3, 1, 1, 2]
    assert {event.get("stream_id") for answer in answers for event in answer} == {"lane-a"}
    assert not any("stream_id" in seen.json() for seen in upstream.seen)
    assert "stream_id" not in client.ask(model="echo", input="hi")[0]


def test_pings_and_pieces(client: Client) -> None:
    body = json.dumps({"type": "response.create", "model": "echo", "input": "x" * 70_000}).encode()
    client.frame(1, body[:9], first=0)
    client.frame(9, b"are you there")
    client.frame(0, body[9:200], first=0)
    client.frame(10, b"unasked")
    client.frame(0, body[200:])
    assert client.read() == (10, b"are you there")
    answer = list(client.answer())
    assert len(answer[-1]["response"]["output"][0]["content"][0]["text"]) == 70_000
    client.frame(8, struct.pack(">H", 1000))
    assert client.read() == (8, struct.pack(">H", 1000))
    assert client.stream.read() == b"", "it hangs up"


FAULTS = [
    pytest.param({"opcode": 1, "mask": 0}, 1002, id="no mask"),
    pytest.param({"opcode": 1, "first": 0xC0}, 1002, id="a reserved bit"),
    pytest.param({"opcode": 3}, 1002, id="an unknown opcode"),
    pytest.param({"opcode": 0}, 1002, id="the end of nothing"),
    pytest.param({"opcode": 9, "first": 0}, 1002, id="a ping in pieces"),
    pytest.param({"opcode": 9, "payload": b"x" * 126}, 1002, id="a long ping"),
    pytest.param({"opcode": 2}, 1003, id="binary"),
]


@pytest.mark.parametrize(("frame", "code"), FAULTS)
def test_faults_of_the_wire(client: Client, frame: dict[str, Any], code: int) -> None:
    client.frame(**{"payload": b"{}", **frame})
    assert client.read() == (8, struct.pack(">H", code))


def test_a_message_in_many_pieces_costs_no_more_than_they_do(client: Client) -> None:
    def speak() -> None:
        client.frame(1, b"", first=0)
        client.sock.sendall(bytes([0, 0x80, 0, 0, 0, 0]) * 60_000)  # empty ones
        client.frame(0, b"{}")
        assert next(client.answer())["status"] == 400

    assert effort(speak) < 100


def test_a_silent_connection_keeps_no_server_from_stopping(proxy: Proxy, client: Client) -> None:
    client.ask(model="echo", input="x")
    assert proxy.server.stop(grace=1.0)


def test_a_message_may_not_be_larger_than_a_body(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cp, "BODY_LIMIT", 100)
    client.frame(1, b"x" * 60, first=0)
    client.frame(0, b"x" * 60)
    assert client.read() == (8, struct.pack(">H", 1009))


def test_what_is_stored_nowhere_is_known_to_its_connection_alone(proxy: Proxy, client: Client) -> None:
    id = client.ask(model="echo", input="x", store=False)[-1]["response"]["id"]
    going_on = {"model": "echo", "input": "x", "previous_response_id": id}
    assert client.ask(**going_on)[-1]["type"] == "response.completed"
    with closing(Client(proxy, authorization="Bearer k")) as other:
        assert other.ask(**going_on)[-1]["status"] == 400
    assert proxy.ask(f"/v1/responses/{id}", headers={"authorization": "Bearer k"}).status == 404


def test_what_is_stored_is_known_to_all_of_its_key(proxy: Proxy, client: Client) -> None:
    id = client.ask(model="echo", input="x")[-1]["response"]["id"]
    assert proxy.ask(f"/v1/responses/{id}", headers={"authorization": "Bearer k"}).json()["id"] == id


def test_a_connection_that_ends_is_forgotten(proxy: Proxy) -> None:
    with closing(Client(proxy, authorization="Bearer k")) as client:
        client.ask(model="echo", input="x", store=False)
        assert stored_answers(proxy) == 1
        client.frame(8, struct.pack(">H", 1000))
        assert client.read() == (8, struct.pack(">H", 1000))
        assert client.stream.read() == b"", "it hangs up"
    assert stored_answers(proxy) == 0


def stored_answers(proxy: Proxy) -> int:
    ((number,),) = proxy.app.stored._memory._connection.execute("SELECT count(*) FROM answers")
    return int(number)


@pytest.mark.parametrize(
    ("settings", "headers", "status"),
    [
        pytest.param({}, {}, b"426", id="off"),
        pytest.param({"ws": True}, {"sec-websocket-version": "8"}, b"426", id="an old version"),
        pytest.param({"ws": True}, {"upgrade": "h2c"}, b"426", id="another protocol"),
        pytest.param({"ws": True, "api_keys": ["k"]}, {}, b"401", id="no key"),
        pytest.param({"ws": True}, {"origin": "http://evil.example"}, b"403", id="a web page"),
    ],
)
def test_handshakes(make_proxy: ProxyMaker, settings: Any, headers: dict[str, str], status: bytes) -> None:
    with closing(Client(make_proxy(**settings), **headers)) as client:
        assert client.head.split()[1] == status


def test_pings_are_answered_while_an_answer_is_sent(
    client: Client, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFC 6455 5.5.2; what else comes meanwhile waits for its turn."""
    monkeypatch.setattr(cp, "OPENING_TIME", 0.1)  # seconds, after which `response.created` goes out
    more = threading.Event()
    created, item, completed = events("r1")
    upstream.reply([created, more, item, completed], headers=SSE)
    client.frame(1, json.dumps({"model": "up-responses", "input": "hi"}).encode())
    assert json.loads(client.read()[1])["type"] == "response.created"
    client.frame(9, b"one")
    assert client.read() == (10, b"one"), "in the midst of the answer"
    client.frame(10, b"unasked")
    client.frame(9, b"")
    assert client.read() == (10, b"")
    body = {"type": "response.create", "model": "up-responses", "input": [ITEM]}
    client.frame(1, json.dumps({**body, "previous_response_id": "r1"}).encode())
    upstream.reply(events("r2"), headers=SSE)
    more.set()
    assert types(list(client.answer())) == ["response.output_item.done", "response.completed"]
    assert len(list(client.answer())) == 3
    assert len(upstream.seen[1].json()["input"]) == 3


@pytest.mark.parametrize("last", [[], [(9, 10)], [(8, 8)]], ids=["hangs up", "has pinged", "says so"])
def test_a_client_that_leaves_ends_the_exchange(
    client: Client, upstream: Upstream, last: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cp, "OPENING_TIME", 0.1)  # seconds, after which `response.created` goes out
    upstream.reply([events("r1")[0], "silence"], headers=SSE)
    client.frame(1, json.dumps({"model": "up-responses", "input": "hi"}).encode())
    assert json.loads(client.read()[1])["type"] == "response.created"
    for opcode, answered in last:
        client.frame(opcode, struct.pack(">H", 1000))
        assert client.read()[0] == answered
    if (8, 8) not in last:
        client.close()
    assert upstream.hung_up.wait(DEADLINE)
