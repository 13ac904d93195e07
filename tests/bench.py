"""A small benchmark: one client, once straight to a mock upstream and once through the proxy.

    python tests/bench.py
    python tests/bench.py --instructions

The latter counts the instructions of a small request under valgrind, which no neighbour disturbs. The
former takes about 20 seconds, loopback only, and decides nothing: compare its columns with each other, and
only on a quiet machine. Mock, proxy and client are a process each, all of them Python, so that the
requests a second are those of the client as much as of the proxy.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 1.0  # that a measurement takes
ROUNDS = 2
STREAMS, CHUNKS, PACE = 10, 40, 0.02  # streams at once, chunks in each, seconds between two
CONNECTIONS = 8
LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
STAMP = re.compile(rb'"at:([0-9.]+)"')
ANSWER = json.dumps(
    {"id": "msg_1", "type": "message", "role": "assistant", "content": [{"type": "text", "text": "hi"}]}
).encode()
CHAT_MESSAGE = {"role": "assistant", "content": "hi"}
CHAT_ANSWER = json.dumps(
    {
        "id": "c_1",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": CHAT_MESSAGE, "finish_reason": "stop"}],
    }
).encode()
WARM, COUNTED = 100, 300  # requests of the two runs whose difference is counted


class Stream:
    """Reads messages from a socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.rest = sock, b""

    def until(self, sign: bytes) -> bytes:
        """Return the bytes up to and with `sign`; b"" if the peer closes."""
        while (at := self.rest.find(sign)) < 0:
            data = self.sock.recv(65_536)
            if not data:
                return b""
            self.rest += data
        found, self.rest = self.rest[: at + len(sign)], self.rest[at + len(sign) :]
        return found

    def message(self) -> bytes:
        """Return a head and its body, which has a length; b"" if the peer closes."""
        head = self.until(b"\r\n\r\n")
        length = LENGTH.search(head)
        pieces, left = [self.rest], (int(length[1]) if length else 0) - len(self.rest)
        while left > 0:
            pieces.append(self.sock.recv(min(left, 2**20)))
            left -= len(pieces[-1])
        self.rest = b""
        return head + b"".join(pieces)


# --- the mock upstream -------------------------------------------------------------------------


def mock(port: Any) -> None:
    """Answer for ever; run in a process of its own."""
    with socket.create_server(("127.0.0.1", 0), backlog=256) as server:
        port.value = server.getsockname()[1]
        while True:
            threading.Thread(target=mock_connection, args=(server.accept()[0],), daemon=True).start()


def mock_connection(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream = Stream(sock)
    with closing(sock), suppress(OSError):
        while request := stream.message():
            if b'"stream": true' in request[-200:]:
                mock_stream(sock)
            else:
                answer = CHAT_ANSWER if b"/chat/completions" in request[:99] else ANSWER
                sock.sendall(
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
                    % (len(answer), answer)
                )


def mock_stream(sock: socket.socket) -> None:
    """Send chunks that say when they were sent, at a steady pace."""
    sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    never, begun = threading.Event(), time.monotonic()
    for number in range(CHUNKS):
        never.wait(max(0.0, begun + number * PACE - time.monotonic()))
        data = b'event: content_block_delta\ndata: {"text":"at:%.6f"}\n\n' % time.time()
        sock.sendall(b"%x\r\n%b\r\n" % (len(data), data))
    last = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    sock.sendall(b"%x\r\n%b\r\n0\r\n\r\n" % (len(last), last))


# --- the client -----------------------------------------------------------------------------------


def request_bytes(padding: int = 0, *, stream: bool = False, model: str = "bench") -> bytes:
    words = {
        "model": model,
        "max_tokens": 99,
        "messages": [{"role": "user", "content": "x" * padding}],
        "stream": stream,
    }
    body = json.dumps(words).encode()
    head = f"POST /v1/messages HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def connect(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def latencies(port: int, request: bytes, seconds: float = SECONDS) -> list[float]:
    """Return how long each request took, one after the other on one connection."""
    with closing(connect(port)) as sock:
        stream, taken, end = Stream(sock), list[float](), time.perf_counter() + seconds
        while not taken or time.perf_counter() < end:
            begun = time.perf_counter()
            sock.sendall(request)
            if not stream.message().startswith(b"HTTP/1.1 200"):
                raise SystemExit("bench: a request failed")
            taken.append(time.perf_counter() - begun)
        return taken


def in_threads(count: int, work: Callable[[], list[Any]]) -> list[Any]:
    """Run `work` in so many threads at once; return all that they return."""
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.extend(work())) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def one_stream(port: int) -> list[tuple[float, list[float]]]:
    """Return the time to the first byte of a stream's body, and the delay of each chunk."""
    with closing(connect(port)) as sock:
        stream, delays = Stream(sock), list[float]()
        begun = time.perf_counter()
        sock.sendall(request_bytes(stream=True))
        stream.until(b"\r\n\r\n")
        first = 0.0
        while data := stream.until(b"\n\n"):
            first = first or time.perf_counter() - begun
            stamp = STAMP.search(data)
            delays += [time.time() - float(stamp[1])] if stamp else []
            if b"message_stop" in data:
                break
        return [(first, delays)]


class Row(NamedTuple):
    """One line of the table."""

    name: str
    value: float
    unit: str


def measure(port: int) -> list[Row]:
    small = latencies(port, request_bytes())
    large = latencies(port, request_bytes(2**20))
    many = in_threads(CONNECTIONS, lambda: latencies(port, request_bytes()))
    streams = in_threads(STREAMS, lambda: one_stream(port))
    delays = sorted(delay for _, stream in streams for delay in stream)
    return [
        Row("small request, p50", statistics.median(small) * 1e3, "ms"),
        Row("1 MB request, p50", statistics.median(large) * 1e3, "ms"),
        Row(f"small requests, {CONNECTIONS} connections", len(many) / SECONDS, "/s"),
        Row("time to first byte, p50", statistics.median(first for first, _ in streams) * 1e3, "ms"),
        Row(f"delay of a chunk, {STREAMS} streams, p50", statistics.median(delays) * 1e3, "ms"),
        Row(f"delay of a chunk, {STREAMS} streams, p99", delays[int(len(delays) * 0.99)] * 1e3, "ms"),
    ]


# --- both, side by side --------------------------------------------------------------------------


@contextmanager
def mock_running() -> Iterator[int]:
    port = multiprocessing.Value("i", 0)
    process = multiprocessing.Process(target=mock, args=(port,), daemon=True)
    process.start()
    end = time.monotonic() + 10
    while not port.value and time.monotonic() < end:
        threading.Event().wait(0.01)
    yield port.value
    process.terminate()
    process.join()


SCRIPT = (sys.executable, str(ROOT / "cliproxy.py"))


@contextmanager
def proxy_running(upstream: int, start: tuple[str, ...] = SCRIPT) -> Iterator[tuple[int, int]]:
    """Yield the port and the process id of a proxy in front of the mock."""
    with tempfile.TemporaryDirectory() as folder:
        key = {
            "api-key": "sk-bench",
            "base-url": f"http://127.0.0.1:{upstream}",
            "models": [{"name": "bench"}],
        }
        config = Path(folder, "config.json")
        chat = {
            "name": "bench",
            "base-url": f"http://127.0.0.1:{upstream}/v1",
            "api-key-entries": [{"api-key": "sk-bench"}],
            "models": [{"name": "chat"}],
        }
        settings = {"claude-api-key": [key], "openai-compatibility": [chat], "auth-dir": folder}
        config.write_text(json.dumps(settings), encoding="utf-8")
        command = [*start, "serve", "--port", "0", "--config", str(config)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        with process:
            found = re.search(
                r"http://127\.0\.0\.1:(\d+)", process.stdout.readline() if process.stdout else ""
            )
            try:
                yield int(found[1]) if found else 0, process.pid
            finally:
                process.terminate()


def resident(pid: int) -> str:
    """Return the memory of a process where the system tells."""
    with suppress(OSError):
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
        return f"memory of the proxy: {pages * os.sysconf('SC_PAGE_SIZE') / 2**20:.0f} MB\n"
    return ""


def ask_often(port: int, request: bytes, requests: int) -> None:
    """Send a request so many times on one connection."""
    with closing(connect(port)) as sock:
        stream = Stream(sock)
        for _ in range(requests):
            sock.sendall(request)
            if not stream.message().startswith(b"HTTP/1.1 200"):
                raise SystemExit("bench: a request failed")


def instructions(upstream: int, model: str, requests: int) -> int:
    """Return the instructions in user space of a proxy that answers so many small requests, its start included."""
    with tempfile.TemporaryDirectory() as folder:
        code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.dont_write_bytecode = False; sys.pycache_prefix = {folder!r}; import cliproxy"
        subprocess.run([sys.executable, "-c", code], check=True)  # compiled once, and not under valgrind
        out = Path(folder, "out")
        tool = ("valgrind", "--tool=cachegrind", "--cache-sim=no", f"--cachegrind-out-file={out}")
        start = (*tool, sys.executable, "-c", f"{code}; sys.exit(cliproxy.main())")
        with proxy_running(upstream, start) as (port, _):
            ask_often(port, request_bytes(model=model), requests)
        found = re.search(r"^summary: (\d+)", out.read_text(encoding="ascii", errors="replace"), re.MULTILINE)
        return int(found[1]) if found else 0


def count_instructions() -> None:
    """Print what a small request costs; say why not where valgrind is absent."""
    if not shutil.which("valgrind"):
        sys.stdout.write("skipped: valgrind is not installed\n")
        return
    with mock_running() as upstream:
        for name, model in (("small request, passed", "bench"), ("small request, translated", "chat")):
            few, many = (instructions(upstream, model, number) for number in (WARM, COUNTED))
            sys.stdout.write(f"{name:36}{(many - few) / (COUNTED - WARM):>12,.0f} instructions\n")


def main() -> None:
    if "--instructions" in sys.argv[1:]:
        count_instructions()
        return
    with mock_running() as upstream, proxy_running(upstream) as (proxy, pid):
        latencies(proxy, request_bytes(), 0.2)  # imports, first connections
        direct, through = list[list[Row]](), list[list[Row]]()
        for _ in range(ROUNDS):
            direct.append(measure(upstream))
            through.append(measure(proxy))
        memory = resident(pid)
    say = sys.stdout.write
    say(f"{'':36}{'direct':>12}{'proxy':>12}{'added':>10}{'ratio':>8}\n")
    for columns in zip(zip(*direct), zip(*through)):
        first, second = (statistics.median(row.value for row in rows) for rows in columns)
        name, _, unit = columns[0][0]
        added = f"{second - first:.2f}" if unit == "ms" else ""
        say(f"{name:36}{first:>9.2f} {unit:2}{second:>9.2f} {unit:2}{added:>10}{second / first:>8.2f}\n")
    say(memory)


if __name__ == "__main__":
    main()
