"""A scripted upstream on a real loopback socket, and a clock to turn."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from typing import Any, NamedTuple, Union

DEADLINE = 30.0  # seconds that anything may wait: less than pytest's timeout, so that it is told
CLOSE, RESET, SILENCE = "close", "reset", "silence"  # steps: FIN, RST, nothing until the peer goes
Step = Union[bytes, str, threading.Event]  # bytes are sent, an Event is waited for


class Seen(NamedTuple):
    """A request as it came over the wire."""

    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    body: bytes
    connection: int  # 0, 1, 2, ...: which connection it came on
    head: bytes  # the raw head: order and spelling of the headers

    def json(self) -> Any:
        return json.loads(self.body)


class Reply(NamedTuple):
    """What to answer, step by step. See Upstream.reply for the ways to make one."""

    steps: tuple[Step, ...]
    keep: bool = True  # the connection serves another request afterwards


Script = Callable[[Seen], Reply]


def head_of(status: int, headers: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} Scripted", *(f"{k}: {v}" for k, v in headers.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1")


def until_the_end(steps: Iterable[Step]) -> list[Step]:
    """Leave out what stands behind the step that ends the connection."""
    kept: list[Step] = []
    for step in steps:
        kept.append(step)
        if step in {CLOSE, RESET, SILENCE}:
            break
    return kept


def chunked(steps: Iterable[Step]) -> Iterator[Step]:
    """Put each piece of bytes into a chunk of its own; a hang-up leaves the body unfinished."""
    for step in steps:
        yield b"%x\r\n%b\r\n" % (len(step), step) if isinstance(step, bytes) and step else step
        if step in {CLOSE, RESET, SILENCE}:
            return
    yield b"0\r\n\r\n"


def make_reply(
    body: bytes | str | Sequence[Step] | dict[str, Any] | list[Any] = b"",
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    *,
    framing: str = "",
) -> Reply:
    """Make a reply. A dict is sent as JSON, a sequence of steps piece by piece.

    `framing` is length, chunked, close (the end of the connection ends the body) or raw (the steps
    are all there is, head included). Without it a sequence is chunked, anything else has a length.
    """
    if isinstance(body, dict):
        body, headers = json.dumps(body), {"content-type": "application/json", **(headers or {})}
    if isinstance(body, str):
        body = body.encode()
    steps: list[Step] = [body] if isinstance(body, bytes) else until_the_end(body)
    framing = framing or ("length" if isinstance(body, bytes) else "chunked")
    if framing == "raw":
        return Reply(tuple(steps))
    length = sum(len(step) for step in steps if isinstance(step, bytes))
    frame = {
        "length": {"content-length": str(length)},
        "chunked": {"transfer-encoding": "chunked"},
        "close": {"connection": "close"},
    }[framing]
    head = head_of(status, {**frame, **(headers or {})})
    return Reply((head, *(chunked(steps) if framing == "chunked" else steps)), framing != "close")


class Upstream:
    """A provider on a raw loopback socket that answers from a script and records what it saw.

    `replies` are used up one after the other, whatever the path; `routes` maps a path (without its
    query) to a Reply or to a function of the request, used again and again, and comes first. A
    request with neither is answered with 599. `piece` cuts what is sent into writes of so many
    bytes. Events to wait for: `asked` (a request was read), `hung_up` (the peer left before the
    reply was complete).
    """

    def __init__(self) -> None:
        self.replies: list[Reply | Script] = []
        self.routes: dict[str, Reply | Script] = {}
        self.seen: list[Seen] = []
        self.piece = 65_536
        self.asked, self.hung_up = threading.Event(), threading.Event()
        self._closing = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._open: list[socket.socket] = []  # guarded by _lock, as are `seen` and `replies`
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._acceptor = threading.Thread(target=self._accept)
        self._acceptor.start()

    @property
    def connections(self) -> int:
        """How many connections were made to it so far."""
        return len(self._threads)

    def reply(self, *args: Any, **kwargs: Any) -> None:
        """Append a reply to the script; arguments as of `make_reply`."""
        self.replies.append(make_reply(*args, **kwargs))

    def close(self) -> None:
        self._closing.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for peer in self._open:
                with suppress(OSError):
                    peer.shutdown(socket.SHUT_RDWR)
        for thread in (self._acceptor, *self._threads):
            thread.join(DEADLINE)

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer.settimeout(DEADLINE)
            thread = threading.Thread(target=self._serve, args=(peer, len(self._threads)))
            with self._lock:
                self._open.append(peer)
                self._threads.append(thread)
            thread.start()

    def _serve(self, peer: socket.socket, connection: int) -> None:
        try:
            with closing(peer), peer.makefile("rb") as stream:
                while (seen := read_request(stream, connection)) and self._answer(peer, seen):
                    pass
        except OSError:
            self.hung_up.set()
        finally:
            with self._lock:
                self._open.remove(peer)

    def _answer(self, peer: socket.socket, seen: Seen) -> bool:
        """Answer one request; False if the connection is of no more use."""
        reply = self._find(seen)
        self._play(peer, reply.steps)
        return reply.keep and not {CLOSE, RESET, SILENCE}.intersection(reply.steps)

    def _find(self, seen: Seen) -> Reply:
        with self._lock:
            self.seen.append(seen)
            found = self.routes.get(seen.path.partition("?")[0])
            if found is None and self.replies:
                found = self.replies.pop(0)
        self.asked.set()
        found = found or make_reply(b"nothing is scripted", 599)
        return found if isinstance(found, Reply) else found(seen)

    def _play(self, peer: socket.socket, steps: tuple[Step, ...]) -> None:
        for step in steps:
            if isinstance(step, bytes):
                send(peer, step, self.piece)
            elif isinstance(step, threading.Event):
                step.wait(DEADLINE)
            elif step == SILENCE and not peer.recv(1):
                self.hung_up.set()
            elif step == RESET:
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def send(peer: socket.socket, data: bytes, piece: int) -> None:
    for start in range(0, len(data), piece):
        peer.sendall(data[start : start + piece])


def read_request(stream: Any, connection: int) -> Seen | None:
    """Read one request; None at the end of the connection."""
    lines: list[bytes] = []
    while (line := stream.readline()).strip():
        lines.append(line)
    if not lines:
        return None
    method, path, _ = lines[0].decode("latin-1").split(" ", 2)
    pairs = (line.decode("latin-1").split(":", 1) for line in lines[1:])
    headers = {name.strip().lower(): value.strip() for name, value in pairs}
    if headers.get("transfer-encoding", "").lower() == "chunked":
        body = b"".join(read_chunks(stream))
    else:
        body = stream.read(int(headers.get("content-length", 0)))
    return Seen(method, path, headers, body, connection, b"".join(lines))


def read_chunks(stream: Any) -> Iterator[bytes]:
    while size := int(stream.readline().split(b";")[0], 16):
        yield stream.read(size)
        stream.readline()
    while stream.readline().strip():
        pass  # trailers


def wait_for(check: Callable[[], Any]) -> None:
    """Wait until something is so; it may take as long as anything may."""
    end = time.monotonic() + DEADLINE
    while not check():
        assert time.monotonic() < end, "it did not happen in time"
        threading.Event().wait(0.01)


class Clock:
    """A clock that stands still until it is turned: pass it wherever a `now` is asked for."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def turn(self, seconds: float) -> None:
        self.now += seconds
