"""Bytes on sockets: heads, bodies, the pool, proxies, TLS; all of it on the loopback interface."""

from __future__ import annotations

import base64
import gzip
import itertools
import math
import select
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

import cliproxy as cp
from support.cost import beats
from support.proxy import ProxyMaker
from support.upstream import CLOSE, DEADLINE, RESET, SILENCE, Clock, Upstream, make_reply, wait_for

# --- heads ---------------------------------------------------------------------------------

GOOD_HEADS = [
    pytest.param(b"GET / HTTP/1.1", {}, id="no headers"),
    pytest.param(b"GET / HTTP/1.1\r\nHost: a", {"host": "a"}, id="lower case"),
    pytest.param(b"x\r\na:\t b \t", {"a": "b"}, id="blanks around the value"),
    pytest.param(b"x\r\na:", {"a": ""}, id="empty value"),
    pytest.param(b"x\r\na: b:c", {"a": "b:c"}, id="a colon in the value"),
    pytest.param(b"x\r\na: 1\r\nA: 2", {"a": "1, 2"}, id="repeated"),
    pytest.param(b"x\r\na: \xe4", {"a": "\xe4"}, id="latin-1"),
    pytest.param(b"x\r\na!#$%&'*+.^_`|~-9: 1", {"a!#$%&'*+.^_`|~-9": "1"}, id="odd token"),
    pytest.param(b"x\r\na: b\tc", {"a": "b\tc"}, id="a tab inside"),
    pytest.param(b"x" + b"".join(b"\r\nh%d: 1" % n for n in range(256)), None, id="many headers"),
]
BAD_HEADS = [
    pytest.param(b"x\r\na b: c", id="blank in the name"),
    pytest.param(b"x\r\na : b", id="blank before the colon"),
    pytest.param(b"x\r\n: b", id="no name"),
    pytest.param(b"x\r\na", id="no colon"),
    pytest.param(b"x\r\n a: b", id="folded first line"),
    pytest.param(b"x\r\na: b\r\n\tc", id="folded"),
    pytest.param(b"x\r\na: b\rc", id="bare CR"),
    pytest.param(b"x\r\na: b\nc: d", id="bare LF"),
    pytest.param(b"x\r\na: b\n\rc: d", id="LF CR"),
    pytest.param(b"x\r\na: b\r", id="CR at the end"),
    pytest.param(b"x\r\na: \x00", id="NUL"),
    pytest.param(b"x\r\na: \x7f", id="DEL"),
    pytest.param(b"x\x1b\r\na: b", id="escape in the first line"),
    pytest.param(b"x\r\n\xe4: b", id="a name that is no token"),
    pytest.param(b"x\r\ncontent-length: 1\r\nContent-Length: 1", id="two lengths"),
    pytest.param(b"x\r\ntransfer-encoding: a\r\ntransfer-encoding: chunked", id="two encodings"),
    pytest.param(b"x\r\nhost: a\r\nhost: a", id="two hosts"),
    pytest.param(b"x" + b"".join(b"\r\nh%d: 1" % n for n in range(257)), id="too many headers"),
]


@pytest.mark.parametrize(("head", "headers"), GOOD_HEADS)
def test_good_heads(head: bytes, headers: dict[str, str] | None) -> None:
    first, found = cp.parse_head(head)
    assert first == head.split(b"\r\n")[0].decode()
    assert len(found) == 256 if headers is None else found == headers


@pytest.mark.parametrize("head", BAD_HEADS)
def test_bad_heads(head: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 -- their words are for people
        cp.parse_head(head)


@given(st.binary(max_size=200))
def test_a_garbage_head_is_refused_or_read(head: bytes) -> None:
    with suppress(ValueError):
        first, headers = cp.parse_head(head)
        assert not set(first + "".join(headers) + "".join(headers.values())) & set("\r\n\0")


LENGTHS = [
    pytest.param({}, 0, id="none"),
    pytest.param({"content-length": "0"}, 0, id="zero"),
    pytest.param({"content-length": "007"}, 7, id="leading zeros"),
    pytest.param({"transfer-encoding": "chunked"}, None, id="chunked"),
    pytest.param({"transfer-encoding": "Chunked"}, None, id="case"),
    *(
        pytest.param({"content-length": value}, ValueError, id=f"length {value!r}")
        for value in ("", "+1", "-1", "1 ", "0x1", "1,1", "1.0", "1e3", "\u0661", "\xb2", "9" * 16, "NaN")
    ),
    *(
        pytest.param({"transfer-encoding": value}, ValueError, id=f"encoding {value!r}")
        for value in ("", "gzip", "chunked, chunked", "gzip, chunked", "chunked;q=1", "xchunked")
    ),
    pytest.param({"content-length": "1", "transfer-encoding": "chunked"}, ValueError, id="both"),
]


@pytest.mark.parametrize(("headers", "length"), LENGTHS)
def test_lengths(headers: dict[str, str], length: Any) -> None:
    if length is ValueError:
        with pytest.raises(ValueError):  # noqa: PT011
            cp.body_length(headers)
    else:
        assert cp.body_length(headers) == length


# --- chunked bodies ------------------------------------------------------------------------

EXTENSIONS = st.sampled_from([b"", b";a", b"; a=b", b' ;a="x;y"'])
CHUNKS = st.lists(st.tuples(st.binary(min_size=1, max_size=40), EXTENSIONS), max_size=6)
TRAILERS = st.lists(st.sampled_from([b"a: b", b"checksum: 9"]), max_size=2)


def encoded(chunks: list[tuple[bytes, bytes]], trailers: list[bytes]) -> bytes:
    body = b"".join(b"%X%b\r\n%b\r\n" % (len(data), extension, data) for data, extension in chunks)
    return body + b"0\r\n" + b"".join(line + b"\r\n" for line in trailers) + b"\r\n"


@given(CHUNKS, TRAILERS, st.binary(max_size=9), st.integers(1, 50))
def test_chunks_cut_anywhere(
    chunks: list[tuple[bytes, bytes]], trailers: list[bytes], behind: bytes, size: int
) -> None:
    wire, payload = encoded(chunks, trailers), b"".join(data for data, _ in chunks)
    pieces = [wire[at : at + size] for at in range(0, len(wire), size)]
    reader = cp.Chunks()
    assert b"".join(map(reader.feed, [*pieces[:-1], pieces[-1] + behind])) == payload
    assert (reader.done, reader.rest) == (True, behind)


@given(CHUNKS, TRAILERS)
def test_chunks_cut_in_two_everywhere(chunks: list[tuple[bytes, bytes]], trailers: list[bytes]) -> None:
    wire, payload = encoded(chunks, trailers), b"".join(data for data, _ in chunks)
    for at in range(len(wire)):
        reader = cp.Chunks()
        first = reader.feed(wire[:at])
        assert not reader.done
        assert first + reader.feed(wire[at:]) == payload
        assert reader.done


@given(st.lists(st.binary(max_size=30) | st.sampled_from([b"\r\n", b"5\r\n", b"0\r\n", b"\r"]), max_size=20))
def test_garbage_never_hangs_the_chunks(pieces: list[bytes]) -> None:
    reader = cp.Chunks()
    with suppress(ValueError):
        size = sum(len(reader.feed(piece)) for piece in pieces)
        assert size <= sum(map(len, pieces))


BAD_CHUNKS = [
    pytest.param(b"\r\n", id="no size"),
    pytest.param(b"x\r\n", id="no number"),
    pytest.param(b"0x5\r\n", id="a prefix"),
    pytest.param(b"-1\r\n", id="negative"),
    pytest.param(b"+1\r\n", id="signed"),
    pytest.param(b"5 5\r\n", id="two numbers"),
    pytest.param(b"1_0\r\n", id="a Python number"),
    pytest.param(b"1" * 16 + b"\r\n", id="huge"),
    pytest.param(b"1\r\nab\r\n", id="payload too long"),
    pytest.param(b"1\r\na\n0\r\n\r\n", id="payload ends in LF"),
    pytest.param(b"5;a\nb\r\n", id="LF in an extension"),
    pytest.param(b"5;a\rb\r\n", id="CR in an extension"),
    pytest.param(b"0\r\na: b\nc\r\n", id="LF in a trailer"),
    pytest.param(b"1" * 70_000, id="an endless line"),
    pytest.param(b"0\r\n" + b"a: b\r\n" * 20_000, id="endless trailers"),
    pytest.param((b"1;" + b"x" * 4_000 + b"\r\na\r\n") * 20, id="endless extensions"),
]


@pytest.mark.parametrize("data", BAD_CHUNKS)
def test_bad_chunks(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        cp.Chunks().feed(data)


# --- content encodings ----------------------------------------------------------------------

PLAIN = b"some text " * 100
GZIP, ZLIB = gzip.compress(PLAIN), zlib.compress(PLAIN)
BARE = ZLIB[2:-4]  # deflate without zlib's frame
ZSTD = base64.b64decode("KLUv/WDoAo0AAFBzb21lIHRleHQgAQDbWxUk")
UNPACKED = [
    pytest.param(GZIP, "gzip", id="gzip"),
    pytest.param(GZIP, "X-GZIP", id="its old name"),
    pytest.param(ZLIB, "deflate", id="deflate"),
    pytest.param(BARE, "deflate", id="deflate without a frame"),
    pytest.param(gzip.compress(BARE), "deflate, gzip", id="two without a frame"),
    pytest.param(PLAIN, "identity", id="identity"),
    pytest.param(PLAIN, "", id="none"),
    pytest.param(gzip.compress(ZLIB), "deflate, gzip", id="two"),
]
DAMAGED = [
    pytest.param(PLAIN, "gzip", "damaged", id="no gzip"),
    pytest.param(GZIP[:-8], "gzip", "cut off", id="cut"),
    pytest.param(b"", "gzip", "cut off", id="empty"),
    pytest.param(GZIP[:30] + b"xxxx" + GZIP[34:], "gzip", "damaged", id="damaged"),
    pytest.param(PLAIN, "br", "not supported", id="unknown"),
    pytest.param(PLAIN, "deflate", "damaged", id="no deflate"),
    pytest.param(BARE[:-1], "deflate", "cut off", id="cut deflate"),
    pytest.param(b"", "deflate", "cut off", id="empty deflate"),
    pytest.param(gzip.compress(gzip.compress(GZIP)), "gzip, gzip, gzip", "more than 2", id="three"),
    pytest.param(GZIP, "gzip," * 1_500, "more than 2", id="very many"),
    pytest.param(GZIP + b"more", "gzip", "more bytes follow", id="bytes behind it"),
    pytest.param(GZIP + GZIP, "gzip", "more bytes follow", id="another one behind it"),
]


@pytest.mark.parametrize(("data", "encoding"), UNPACKED)
def test_unpack(data: bytes, encoding: str) -> None:
    assert cp.unpack(data, encoding) == PLAIN
    assert cp.unpack(data, encoding, len(PLAIN)) == PLAIN


@pytest.mark.parametrize(("data", "encoding", "says"), DAMAGED)
def test_unpack_refuses(data: bytes, encoding: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        cp.unpack(data, encoding)


def has_zstd() -> bool:
    try:
        cp.unpacker("zstd")
    except cp.CodingError:
        return False
    return True


def large_zstd(size: int) -> bytes:
    """Return a frame of blocks of 128 KB that each repeat one byte."""
    blocks = [(2**17 << 3 | 2).to_bytes(3, "little") + b"\0"] * (size // 2**17)
    return b"\x28\xb5\x2f\xfd\x00\x58" + b"".join(blocks) + b"\x01\0\0"


@pytest.mark.skipif(not has_zstd(), reason="nothing here knows zstd")
def test_zstd() -> None:
    assert cp.unpack(ZSTD, "zstd") == cp.unpack(gzip.compress(ZSTD), "zstd, gzip") == PLAIN
    assert b"".join(cp.unpacked([ZSTD[at : at + 1] for at in range(len(ZSTD))], "zstd", 2**20)) == PLAIN
    for data, says in (
        (PLAIN, "damaged"),
        (ZSTD[:-4], "cut off"),
        (b"", "cut off"),
        (ZSTD + ZSTD, "more bytes"),
    ):
        with pytest.raises(ValueError, match=says):
            cp.unpack(data, "zstd")
    large = large_zstd(2**25)
    assert max(map(len, cp.unpacked([large], "zstd", 2**25))) <= cp.PORTION
    assert cp.unpack(large, "zstd") == bytes(2**25)
    with pytest.raises(cp.ProxyError, match="larger than 1,048,576"):
        cp.unpack(large, "zstd", 2**20)


@pytest.mark.parametrize("encoding", ["gzip", "deflate, gzip"])
def test_unpack_has_a_limit(encoding: str) -> None:
    data = GZIP if encoding == "gzip" else gzip.compress(ZLIB)
    with pytest.raises(cp.ProxyError) as caught:
        cp.unpack(data, encoding, len(PLAIN) - 1)
    assert caught.value.kind == "too_large"


def test_a_bomb_of_two_layers_is_unpacked_in_portions() -> None:
    bomb = gzip.compress(gzip.compress(bytes(2**25)))
    pieces = cp.unpacked([bomb], "gzip, gzip", 2**26)
    assert max(map(len, pieces)) <= cp.PORTION
    with pytest.raises(cp.ProxyError, match="larger than 16,777,216"):
        cp.unpack(bomb, "gzip, gzip", 2**24)


def test_what_is_packed_is_limited_though_nothing_comes_of_it() -> None:
    empty = zlib.compressobj(wbits=31)
    pieces = [empty.compress(b"") + empty.flush(zlib.Z_FULL_FLUSH), *[b"\0\0\0\xff\xff" * 100] * 100]
    with pytest.raises(cp.TooLargeError):
        list(cp.unpacked(pieces, "gzip", 40_000))
    with pytest.raises(ValueError, match="cut off"):
        list(cp.unpacked(pieces, "gzip", 60_000))


# --- one connection ---------------------------------------------------------------------------


class Quiet(Exception):  # noqa: N818 -- a signal of the tests
    """The wire called back since nothing moved."""


def give_up() -> None:
    raise Quiet


@contextmanager
def pair(patience: float = 0.05) -> Iterator[tuple[cp.Wire, socket.socket]]:
    ours, theirs = socket.socketpair()
    theirs.settimeout(DEADLINE)
    with closing(cp.Wire(ours, patience)) as wire, theirs:
        yield wire, theirs


@contextmanager
def dripping(peer: socket.socket, data: bytes, pause: float = 0.02) -> Iterator[None]:
    """Send a byte at a time, never silent for long."""
    end = threading.Event()

    def drip() -> None:
        for byte in itertools.cycle(data):
            if end.wait(pause):
                return
            with suppress(OSError):
                peer.sendall(bytes([byte]))

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join(DEADLINE)


@pytest.fixture
def wires() -> Iterator[tuple[cp.Wire, socket.socket]]:
    with pair() as both:
        yield both


Wires = tuple[cp.Wire, socket.socket]


def test_heads_one_after_the_other(wires: Wires) -> None:
    wire, peer = wires
    peer.sendall(b"\r\n\r\nGET /1 HTTP/1.1\r\n\r\n\r\nGET /2 HTTP/1.1\r\na: b\r\n\r\nrest")
    assert wire.read_head(give_up) == b"GET /1 HTTP/1.1"
    assert wire.read_head(give_up) == b"GET /2 HTTP/1.1\r\na: b"
    assert wire.rest == b"rest"


def test_a_head_in_pieces(wires: Wires) -> None:
    wire, peer = wires
    head = b"GET / HTTP/1.1\r\na: b\r\n\r\n"
    with dripping(peer, head, 0.001):
        assert wire.read_head(lambda: None) == head[:-4]


def test_a_connection_that_ends(wires: Wires) -> None:
    wire, peer = wires
    peer.shutdown(socket.SHUT_WR)
    assert wire.read_head(give_up) is None
    assert wire.peek() == b""


def test_a_head_that_breaks_off(wires: Wires) -> None:
    wire, peer = wires
    peer.sendall(b"GET /")
    peer.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionError):
        wire.read_head(give_up)


@pytest.mark.parametrize("ended", [b"", b"\r\n\r\n"])
def test_a_head_has_a_limit(wires: Wires, ended: bytes) -> None:
    wire, peer = wires
    sender = threading.Thread(target=peer.sendall, args=(b"x" * 70_000 + ended,))
    sender.start()
    with pytest.raises(cp.HeadError) as caught:
        wire.read_head(give_up)
    assert caught.value.kind == "head_too_large"
    assert wire.recv(give_up)
    sender.join(DEADLINE)


def test_a_head_has_a_deadline_though_bytes_come(wires: Wires, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cp, "HEAD_TIMEOUT", 0.1)
    wire, peer = wires
    with dripping(peer, b"x"), pytest.raises(cp.HeadError) as caught:
        wire.read_head(lambda: None)
    assert caught.value.kind == "caller_timeout"


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_has_a_pace(wires: Wires, monkeypatch: pytest.MonkeyPatch, chunked: bool) -> None:
    monkeypatch.setattr(cp, "BODY_TIMEOUT", 0.1)
    wire, peer = wires
    with dripping(peer, b"1\r\nx\r\n" if chunked else b"x"), pytest.raises(cp.ProxyError) as caught:
        wire.read_chunked(10**6, lambda: None) if chunked else wire.read_exactly(10**6, lambda: None)
    assert caught.value.kind == "caller_timeout"


def test_a_slow_but_steady_body_is_read(wires: Wires, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cp, "BODY_TIMEOUT", 0.1)
    monkeypatch.setattr(cp, "SLOWEST", 20.0)
    wire, peer = wires
    with dripping(peer, b"x", 0.01):
        assert wire.read_exactly(30, lambda: None) == b"x" * 30


@pytest.mark.parametrize("growth", [1, 10, 4_096])
@pytest.mark.parametrize("ahead", [b"", b"abc", b"abcdefghijklmnopqrstuvwxyz"])
def test_bodies_of_a_known_length(
    wires: Wires, monkeypatch: pytest.MonkeyPatch, growth: int, ahead: bytes
) -> None:
    monkeypatch.setattr(cp, "GROWTH", growth)
    wire, peer = wires
    wire.rest = ahead
    text = b"abcdefghijklmnopqrstuvwxyz"
    peer.sendall(text[len(ahead) :] + b"more")
    assert wire.read_exactly(20, give_up) == text[:20]
    assert wire.read_exactly(6, give_up) == text[20:]
    assert wire.read_exactly(4, give_up) == b"more"


def test_memory_is_not_taken_for_a_promise(wires: Wires) -> None:
    wire, _ = wires
    sizes: list[int] = []
    with suppress(MemoryError):
        with pytest.raises(Quiet):
            wire.read_exactly(10**15 - 1, give_up)
        sizes.append(1)
    assert sizes


def test_a_body_that_breaks_off(wires: Wires) -> None:
    wire, peer = wires
    peer.sendall(b"abc")
    peer.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionError):
        wire.read_exactly(4, give_up)
    with pytest.raises(ConnectionError):
        wire.read_chunked(10, give_up)


def test_a_chunked_body_has_a_limit(wires: Wires) -> None:
    wire, peer = wires
    peer.sendall(b"5\r\n12345\r\n" * 3 + b"0\r\n\r\nnext")
    with pytest.raises(cp.ProxyError) as caught:
        wire.read_chunked(14, give_up)
    assert caught.value.kind == "too_large"


def test_silence_is_counted_from_the_last_progress(wires: Wires) -> None:
    wire, peer = wires
    silences: list[float] = []

    def idle() -> None:
        silences.append(round(wire.silent, 2))
        if len(silences) in {2, 5}:
            peer.sendall(b"ab")

    assert wire.read_exactly(4, idle) == b"abab"
    assert silences == [0.05, 0.1, 0.05, 0.1, 0.15]


def test_peek_never_waits_and_keeps_what_it_saw(wires: Wires) -> None:
    wire, peer = wires
    assert wire.peek() is None
    peer.sendall(b"ab")
    assert wire.peek() == b"ab"
    assert wire.recv(give_up) == b"ab"
    assert wire.peek() is None
    peer.close()
    assert wire.peek() == b""


def test_a_peer_that_reads_nothing(wires: Wires) -> None:
    wire, _ = wires
    with pytest.raises(Quiet):
        wire.send([bytes(10**7)], give_up)


def test_a_slow_reader_gets_all(wires: Wires) -> None:
    wire, peer = wires
    got: list[bytes] = []
    silences: list[float] = []

    def idle() -> None:
        silences.append(wire.silent)
        got.append(peer.recv(2**20))

    sent = bytes(range(256)) * 20_000
    wire.send([sent[:1000], memoryview(sent)[1000:]], idle)
    wire.sock.shutdown(socket.SHUT_WR)
    while more := peer.recv(2**20):
        got.append(more)
    assert b"".join(got) == sent
    assert silences


# --- where to ---------------------------------------------------------------------------------

URLS = [
    ("https://a.example", ("https", "a.example", 443), ""),
    ("https://a.example/", ("https", "a.example", 443), ""),
    ("http://a.example:81/v1/", ("http", "a.example", 81), "/v1"),
    ("HTTP://A.example/x?y=1", ("http", "a.example", 80), "/x?y=1"),
    ("http://[::1]:8080/v1", ("http", "::1", 8080), "/v1"),
    *(
        (url, cp.ProxyError, "")
        for url in ("a.example", "ftp://a", "https://", "http://a:x", "http://a:99999", "http://[::1", "")
    ),
]


@pytest.mark.parametrize(("url", "origin", "rest"), URLS)
def test_split_url(url: str, origin: Any, rest: str) -> None:
    if origin is cp.ProxyError:
        with pytest.raises(cp.ProxyError) as caught:
            cp.split_url(url, "direct")
        assert caught.value.kind == "invalid_request"
    else:
        assert cp.split_url(url, "direct") == (cp.Origin(*origin), rest)


ENVIRONMENTS = [
    pytest.param({}, "", "", id="none"),
    pytest.param({"HTTPS_PROXY": "http://p:1"}, "", "http://p:1", id="upper case"),
    pytest.param({"https_proxy": "http://p:1"}, "", "http://p:1", id="lower case"),
    pytest.param({"HTTPS_PROXY": "p:1"}, "", "http://p:1", id="without a scheme"),
    pytest.param({"HTTP_PROXY": "http://p:1"}, "", "", id="of the other scheme"),
    pytest.param({"ALL_PROXY": "socks5://p:1"}, "", "socks5://p:1", id="all"),
    pytest.param(
        {"ALL_PROXY": "socks5://p:1", "HTTPS_PROXY": "http://q:1"},
        "",
        "http://q:1",
        id="all is the last resort",
    ),
    pytest.param({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "api.example"}, "", "", id="excepted"),
    pytest.param({"HTTPS_PROXY": "http://p:1", "NO_PROXY": ".example"}, "", "", id="domain excepted"),
    pytest.param(
        {"HTTPS_PROXY": "http://p:1", "no_proxy": "other.example"}, "", "http://p:1", id="other excepted"
    ),
    pytest.param({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*"}, "", "", id="all excepted"),
    pytest.param({"HTTPS_PROXY": "http://p:1"}, "direct", "", id="direct"),
    pytest.param({"HTTPS_PROXY": "http://p:1"}, "Direct", "", id="direct, as the settings allow it"),
    pytest.param({"HTTPS_PROXY": "http://p:1"}, "none", "", id="none asked for"),
    pytest.param({"HTTPS_PROXY": "http://p:1"}, "http://own:2", "http://own:2", id="the setting outranks it"),
    pytest.param({"NO_PROXY": "*"}, "http://own:2", "http://own:2", id="and its exceptions"),
]


@pytest.mark.parametrize(("environ", "setting", "proxy"), ENVIRONMENTS)
def test_environment(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], setting: str, proxy: str
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert cp.split_url("https://api.example/v1", setting)[0].proxy == proxy
    assert cp.split_url("https://127.0.0.1/v1", "")[0].proxy == "", "this machine needs none"


HEADS = [
    pytest.param("http://a.example", "", b"POST /x HTTP/1.1\r\nhost: a.example\r\n", id="plain"),
    pytest.param("http://a.example:81", "", b"POST /x HTTP/1.1\r\nhost: a.example:81\r\n", id="port"),
    pytest.param("https://[::1]:81", "", b"POST /x HTTP/1.1\r\nhost: [::1]:81\r\n", id="IPv6"),
    pytest.param("http://a.example", "http://p:1", b"POST http://a.example/x HTTP/1.1\r\nhost: a.example\r\n", id="absolute"),
    pytest.param(
        "http://a.example", "http://u:p%40@p:1",
        b"POST http://a.example/x HTTP/1.1\r\nhost: a.example\r\nproxy-authorization: Basic " + base64.b64encode(b"u:p@") + b"\r\n",
        id="with a user",
    ),
    pytest.param("https://a.example", "http://u:p@p:1", b"POST /x HTTP/1.1\r\nhost: a.example\r\n", id="tunnelled"),
    pytest.param("http://a.example", "socks5://p:1", b"POST /x HTTP/1.1\r\nhost: a.example\r\n", id="socks"),
]  # fmt: skip


@pytest.mark.parametrize(("url", "proxy", "begins"), HEADS)
def test_heads_of_requests(url: str, proxy: str, begins: bytes) -> None:
    origin, _ = cp.split_url(url, proxy or "direct")
    assert (
        cp.request_head("POST", "/x", origin, {"a": "b"}, 3) == begins + b"a: b\r\ncontent-length: 3\r\n\r\n"
    )


@pytest.mark.parametrize("value", ["a\r\nb: c", "a\nb", "a\rb", "a\r\n\r\nGET /"])
def test_a_header_value_stays_on_its_line(value: str) -> None:
    with pytest.raises(cp.ProxyError):
        cp.request_head("GET", "/", cp.Origin("http", "a", 80), {"x": value}, 0)


# --- the pool and the answers -----------------------------------------------------------------


def origin_of(
    upstream: Upstream, host: str = "127.0.0.1", scheme: str = "http", proxy: str = ""
) -> cp.Origin:
    return cp.Origin(scheme, host, upstream.port, proxy)


class Rig(NamedTuple):
    """A pool and the upstream that it is tried on."""

    pool: cp.Pool
    upstream: Upstream
    clock: Clock

    def open(self, method: str = "POST", body: bytes = b"{}", origin: cp.Origin | None = None) -> cp.Exchange:
        origin = origin or origin_of(self.upstream)
        return self.pool.open(origin, cp.request_head(method, "/x", origin, {}, len(body)), [body])

    def ask(
        self, method: str = "POST", body: bytes = b"{}", origin: cp.Origin | None = None
    ) -> tuple[int, bytes]:
        with closing(self.open(method, body, origin)) as exchange:
            return exchange.status, exchange.body()

    def connections(self) -> list[int]:
        return [seen.connection for seen in self.upstream.seen]


@pytest.fixture
def rig(upstream: Upstream, clock: Clock) -> Iterator[Rig]:
    pool = cp.Pool(clock)
    yield Rig(pool, upstream, clock)
    pool.prune(-math.inf)


def test_connections_are_reused_the_latest_first(rig: Rig) -> None:
    for _ in range(5):
        rig.upstream.reply(b"x")
    exchanges = [rig.open() for _ in range(3)]
    for exchange in exchanges:
        exchange.body()
    assert [rig.ask(), rig.ask()] == [(200, b"x")] * 2
    assert rig.connections() == [0, 1, 2, 2, 2]


def test_other_origins_have_other_connections(rig: Rig) -> None:
    for _ in range(3):
        rig.upstream.reply(b"x")
    rig.ask()
    rig.ask(origin=origin_of(rig.upstream, "localhost"))
    rig.ask(origin=origin_of(rig.upstream, proxy=rig.upstream.url))
    assert rig.connections() == [0, 1, 2]


def test_a_dead_connection_is_replaced_once(rig: Rig) -> None:
    rig.upstream.reply(b"1")
    rig.upstream.reply([CLOSE], framing="raw")
    rig.upstream.reply([CLOSE], framing="raw")
    rig.ask()
    with pytest.raises(cp.ProxyError, match="without an answer"):
        rig.ask()
    assert rig.connections() == [0, 0, 1]


def test_a_fresh_connection_that_dies_is_not_replaced(rig: Rig) -> None:
    rig.upstream.reply([CLOSE], framing="raw")
    with pytest.raises(cp.ProxyError, match="without an answer"):
        rig.ask()
    assert len(rig.upstream.seen) == 1


@pytest.mark.parametrize(
    "unasked", [b"", b"HTTP/1.1 408 Timeout\r\ncontent-length: 0\r\n\r\n"], ids=["closed", "spoke up"]
)
def test_what_happened_to_an_idle_connection_is_seen(rig: Rig, unasked: bytes) -> None:
    go = threading.Event()
    whole = b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx"
    rig.upstream.reply([whole, go, unasked, *([] if unasked else [CLOSE])], framing="raw")
    rig.upstream.reply(b"y")
    with closing(rig.open()) as exchange:
        assert exchange.body() == b"x"
        wire = exchange._wire
    go.set()
    wait_for(lambda: wire.peek() is not None)
    wire.rest = b""
    rig.clock.turn(cp.FRESH)
    if unasked:
        wire.rest = unasked
    assert rig.ask() == (200, b"y")
    assert rig.connections() == [0, 1]


def test_old_connections_are_closed(rig: Rig) -> None:
    for _ in range(3):
        rig.upstream.reply([make_reply(b"x").steps[0], b"x", SILENCE], framing="raw")
    rig.ask()
    rig.clock.turn(cp.IDLE_LIMIT - 1)
    rig.pool.prune()
    assert not rig.upstream.hung_up.is_set()
    rig.clock.turn(1)
    rig.pool.prune()
    assert rig.upstream.hung_up.wait(DEADLINE)


def test_an_old_connection_is_not_taken(rig: Rig) -> None:
    rig.upstream.reply(b"x")
    rig.upstream.reply(b"x")
    rig.ask()
    rig.clock.turn(cp.IDLE_LIMIT)
    rig.ask()
    assert rig.connections() == [0, 1]


def test_the_pool_is_capped(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cp, "IDLE_COUNT", 2)
    for _ in range(5):
        rig.upstream.reply(b"x")
    exchanges = [rig.open() for _ in range(3)]
    for exchange in exchanges:
        exchange.body()
    again = [rig.open(), rig.open()]
    assert rig.connections() == [0, 1, 2, 2, 1], "the oldest has gone"
    for exchange in again:
        exchange.body()


ANSWERS = [  # the raw answer, what is read of it, does the connection stay?
    pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", (200, b"ok"), True, id="length"),
    pytest.param(b"HTTP/1.1 200\r\ncontent-length: 2\r\n\r\nok", (200, b"ok"), True, id="no reason"),
    pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", (200, b""), True, id="empty"),
    pytest.param(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", (200, b"ok"), True, id="chunked"),
    pytest.param(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\na: b\r\n\r\n", (200, b""), True, id="trailer"),
    pytest.param(b"HTTP/1.1 204 No\r\n\r\n", (204, b""), True, id="204"),
    pytest.param(b"HTTP/1.1 204 No\r\ntransfer-encoding: chunked\r\n\r\n", (204, b""), True, id="204 with a framing"),
    pytest.param(b"HTTP/1.1 304 Same\r\ncontent-length: 9\r\n\r\n", (304, b""), True, id="304"),
    pytest.param(
        b"HTTP/1.1 100 Go\r\n\r\nHTTP/1.1 103 Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", (200, b"ok"), True,
        id="interim answers",
    ),
    pytest.param(b"HTTP/1.1 200 OK\r\nconnection: Close\r\ncontent-length: 2\r\n\r\nok", (200, b"ok"), False, id="close"),
    pytest.param(b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", (200, b"ok"), False, id="1.0"),
    pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokmore", (200, b"ok"), False, id="more than announced"),
    pytest.param(b"HTTP/1.1 204 No\r\n\r\nmore", (204, b""), False, id="204 with a body"),
    pytest.param(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nmore", (200, b""), False, id="more behind the chunks"),
]  # fmt: skip


@pytest.mark.parametrize("piece", [1, 65_536])
@pytest.mark.parametrize(("raw", "answer", "stays"), ANSWERS)
def test_answers(rig: Rig, raw: bytes, answer: tuple[int, bytes], stays: bool, piece: int) -> None:
    rig.upstream.piece = piece
    rig.upstream.reply([raw], framing="raw")
    rig.upstream.reply(b"next")
    assert rig.ask() == answer
    if piece > 1 or stays:  # what comes later cannot be known
        assert rig.ask() == (200, b"next")
        assert rig.connections() == [0, 0 if stays else 1]


def test_the_answer_to_head_has_no_body(rig: Rig) -> None:
    rig.upstream.reply([b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"], framing="raw")
    rig.upstream.reply(b"next")
    assert rig.ask("HEAD", b"") == (200, b"")
    assert rig.ask() == (200, b"next")
    assert rig.connections() == [0, 0]


def test_a_body_until_the_connection_closes(rig: Rig) -> None:
    rig.upstream.reply([b"one", b"two"], framing="close")
    assert rig.ask() == (200, b"onetwo")
    assert not rig.pool._idle


BROKEN = [
    pytest.param([b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok", CLOSE], "1 bytes are missing", id="cut"),
    pytest.param([b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok", RESET], ".", id="reset"),
    pytest.param([b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n", CLOSE], "last chunk", id="no last chunk"),
    pytest.param([b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxx\r\n"], "no|not", id="bad chunk"),
    pytest.param([b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n"], "not supported", id="unknown framing"),
    pytest.param([b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\nx"], "twice", id="two lengths"),
    pytest.param([b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n"], "both", id="two framings"),
    pytest.param([b"HTTP/1.1 100 Go\r\n\r\n" * 40], "without end", id="interim answers without end"),
    pytest.param([b"HTTP/2 200 OK\r\n\r\n"], "not an HTTP/1 answer", id="another protocol"),
    pytest.param([b"HTTP/1.1 abc\r\n\r\n"], "not an HTTP/1 answer", id="no status"),
    pytest.param([b"SSH-2.0-x\r\n\r\n"], "not an HTTP/1 answer", id="no HTTP"),
    pytest.param([b"HTTP/1.1 200 OK\r\na: " + b"b" * 70_000], "larger than 65,536", id="endless head"),
    pytest.param([b"HTTP/1.1 200 OK\r\nx", CLOSE], "broke off", id="cut head"),
    pytest.param([b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 3\r\n\r\nabc"], ".", id="no gzip"),
    pytest.param(
        [b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n%b" % (len(GZIP) - 9, GZIP[:-9])], "cut off",
        id="cut gzip",
    ),
    pytest.param([b"HTTP/1.1 200 OK\r\ncontent-encoding: br\r\ncontent-length: 3\r\n\r\nabc"], "not supported", id="unknown encoding"),
]  # fmt: skip


@pytest.mark.parametrize("reused", [False, True])
@pytest.mark.parametrize(("steps", "says"), BROKEN)
def test_broken_answers(rig: Rig, steps: list[Any], says: str, reused: bool) -> None:
    if reused:
        rig.upstream.reply(b"first")
        rig.ask()
    rig.upstream.reply(steps, framing="raw")
    with pytest.raises(cp.ProxyError, match=says) as caught:
        rig.ask()
    assert caught.value.kind == "upstream_failed"
    assert len(rig.upstream.seen) == 1 + reused, "nothing is asked twice once a byte has come"
    assert any(rig.pool._idle.values()) == (b"content-encoding" in steps[0]), "the framing counts"


def test_an_answer_whose_rest_was_not_read_is_not_pooled(rig: Rig) -> None:
    go = threading.Event()
    rig.upstream.reply([b"one", go, b"two"])
    rig.upstream.reply(b"next")
    with closing(rig.open()) as exchange:
        assert exchange.read() == b"one"
    go.set()
    assert rig.ask() == (200, b"next")
    assert rig.connections() == [0, 1]


def test_an_answer_whose_end_has_come_is_pooled(rig: Rig) -> None:
    """A reader of a stream stops at its last event, just before the last chunk."""
    last = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n"
    go = threading.Event()
    rig.upstream.reply([last, go, b"0\r\n\r\n"], framing="raw")
    rig.upstream.reply(b"next")
    with closing(rig.open()) as exchange:
        assert exchange.read() == b"one"
        go.set()
        wait_for(lambda: exchange._wire.peek() is not None)
    assert rig.ask() == (200, b"next")
    assert rig.connections() == [0, 0]


@pytest.mark.parametrize("piece", [1, 65_536])
def test_encoded_answers(rig: Rig, piece: int) -> None:
    rig.upstream.piece = piece
    rig.upstream.reply([GZIP[:20], GZIP[20:]], headers={"content-encoding": "gzip"})
    rig.upstream.reply(b"", headers={"content-encoding": "gzip"})
    assert rig.ask() == (200, PLAIN)
    assert rig.ask() == (200, b"")


def test_an_endless_whole_answer_is_refused(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cp, "BODY_LIMIT", 10)
    rig.upstream.reply(b"x" * 11)
    with pytest.raises(cp.ProxyError, match="more than 10 bytes"):
        rig.ask()


# --- large requests ---------------------------------------------------------------------------


@contextmanager
def listener(serve: Callable[[socket.socket], None], host: str = "127.0.0.1") -> Iterator[int]:
    """Serve one connection at a time by hand."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as server:

        def accept() -> None:
            while True:
                try:
                    peer, _ = server.accept()
                except OSError:
                    return
                peer.settimeout(DEADLINE)
                with peer, suppress(OSError):
                    serve(peer)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            server.close()
            thread.join(DEADLINE)


BIG = bytes(20 * 2**20)
TOO_LARGE = b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno"


def wait(event: threading.Event) -> None:
    event.wait(DEADLINE)


def take_little(peer: socket.socket) -> None:
    peer.recv(10)


def answer_early(peer: socket.socket, wait: Callable[[], Any]) -> None:
    peer.recv(4096)
    peer.sendall(TOO_LARGE)
    wait()


@pytest.mark.parametrize("closes", [True, False], ids=["and closes", "and waits"])
def test_an_early_answer_is_delivered(clock: Clock, closes: bool) -> None:
    go = threading.Event()
    with listener(lambda peer: answer_early(peer, (lambda: None) if closes else (lambda: wait(go)))) as port:
        pool, origin = cp.Pool(clock), cp.Origin("http", "127.0.0.1", port)
        with closing(
            pool.open(origin, cp.request_head("POST", "/", origin, {}, len(BIG)), [BIG])
        ) as exchange:
            assert (exchange.status, exchange.body()) == (413, b"no")
        go.set()
    assert not any(pool._idle.values()), "the request was not sent to its end"


def test_an_upstream_that_takes_nothing(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cp, "SEND_TIMEOUT", 0.6)
    go = threading.Event()
    with listener(lambda _: wait(go)) as port:
        pool, origin = cp.Pool(clock), cp.Origin("http", "127.0.0.1", port)
        with pytest.raises(cp.ProxyError, match="took nothing"):
            pool.open(origin, cp.request_head("POST", "/", origin, {}, len(BIG)), [BIG])
        go.set()


def test_an_upstream_that_closes_in_the_middle_of_a_request(clock: Clock) -> None:
    with listener(take_little) as port:
        pool, origin = cp.Pool(clock), cp.Origin("http", "127.0.0.1", port)
        with pytest.raises(cp.ProxyError) as caught:
            pool.open(origin, cp.request_head("POST", "/", origin, {}, len(BIG)), [BIG])
    assert caught.value.kind == "upstream_failed"


def test_a_client_that_goes_while_its_request_is_sent(clock: Clock) -> None:
    class Gone(cp.Watcher):
        def tick(self) -> None:
            raise Quiet

    go = threading.Event()
    with listener(lambda _: wait(go)) as port:
        pool, origin = cp.Pool(clock), cp.Origin("http", "127.0.0.1", port)
        with pytest.raises(Quiet):
            pool.open(origin, cp.request_head("POST", "/", origin, {}, len(BIG)), [BIG], Gone())
        go.set()


# --- no connection -----------------------------------------------------------------------------


def unused_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


UNREACHABLE = [
    pytest.param(lambda port: cp.Origin("http", "127.0.0.1", port), "refused", id="nobody listens"),
    pytest.param(
        lambda port: cp.Origin("http", "no-such-host.invalid", port),
        "no-such-host.invalid",
        id="no such host",
    ),
    pytest.param(lambda port: cp.Origin("http", "x" * 70 + ".example", port), "x.example", id="no host name"),
    pytest.param(
        lambda port: cp.Origin("http", "a", 1, f"http://u:secret@127.0.0.1:{port}"),
        r"through http://\.\.\.@127",
        id="proxy",
    ),
    pytest.param(
        lambda port: cp.Origin("http", "a", 1, "ftp://p"),
        "must start with http, https, socks5",
        id="unknown proxy",
    ),
    pytest.param(lambda port: cp.Origin("http", "a", 1, "http://"), "must start with", id="no proxy host"),
]


@pytest.mark.parametrize(("origin", "says"), UNREACHABLE)
def test_what_cannot_be_reached(rig: Rig, origin: Callable[[int], cp.Origin], says: str) -> None:
    with pytest.raises(cp.ProxyError, match=says) as caught:
        rig.ask(origin=origin(unused_port()))
    assert (caught.value.kind, caught.value.sent) == ("upstream_failed", False)
    assert "secret" not in str(caught.value)


def has_ipv6() -> bool:
    with suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")
def test_ipv6() -> None:
    heads: list[bytes] = []

    def serve(peer: socket.socket) -> None:
        heads.append(peer.recv(4096))
        peer.sendall(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok")

    with listener(serve, "::1") as port:
        assert cp.fetch("GET", f"http://[::1]:{port}/x", {}).body == b"ok"
        assert b"\r\nhost: [::1]:%d\r\n" % port in heads[0]


# --- TLS ------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


def server_context(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


class TlsUpstream(Upstream):
    """The scripted upstream behind TLS."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context
        super().__init__()
        self.url = f"https://127.0.0.1:{self.port}"

    def _serve(self, peer: socket.socket, connection: int) -> None:
        with self._lock:
            self._open.remove(peer)
        try:
            wrapped = self.context.wrap_socket(peer, server_side=True)
        except OSError:
            peer.close()
            return
        with self._lock:
            self._open.append(wrapped)
        with suppress(ValueError):  # `close` takes the TLS away from a reader
            super()._serve(wrapped, connection)


@pytest.fixture
def trusted(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Trust our authority, by the variable that OpenSSL reads."""
    file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(file))
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    cp.tls_context.cache_clear()
    yield
    cp.tls_context.cache_clear()


@pytest.fixture
def secure(authority: trustme.CA) -> Iterator[TlsUpstream]:
    with closing(TlsUpstream(server_context(authority, "127.0.0.1"))) as upstream:
        yield upstream


def secure_origin(upstream: Upstream, host: str = "127.0.0.1", proxy: str = "") -> cp.Origin:
    return cp.Origin("https", host, upstream.port, proxy)


@pytest.mark.usefixtures("trusted")
def test_tls(rig: Rig, secure: TlsUpstream) -> None:
    secure.reply([b"one", b"two"])
    secure.reply(b"x")
    origin = secure_origin(secure)
    assert rig.ask(origin=origin) == (200, b"onetwo")
    rig.clock.turn(cp.FRESH)
    assert rig.ask(origin=origin) == (200, b"x")
    assert [seen.connection for seen in secure.seen] == [0, 0], "session tickets do not count as an answer"


@pytest.mark.usefixtures("trusted")
def test_a_closed_tls_connection_is_seen(rig: Rig, secure: TlsUpstream) -> None:
    secure.reply([b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx", CLOSE], framing="raw")
    secure.reply(b"y")
    origin = secure_origin(secure)
    with closing(rig.open(origin=origin)) as exchange:
        wire = exchange._wire
        exchange.body()
    wait_for(lambda: wire.peek() == b"")
    rig.clock.turn(cp.FRESH)
    assert rig.ask(origin=origin) == (200, b"y")
    assert [seen.connection for seen in secure.seen] == [0, 1]


@pytest.mark.usefixtures("trusted")
def test_a_certificate_of_another_host_is_refused(rig: Rig, authority: trustme.CA) -> None:
    with closing(TlsUpstream(server_context(authority, "other.example"))) as upstream:
        with pytest.raises(cp.ProxyError, match=r"(?i)not valid for|doesn't match|mismatch") as caught:
            rig.ask(origin=secure_origin(upstream))
        assert not caught.value.sent
        assert not upstream.seen


def test_an_unknown_authority_is_refused(rig: Rig, secure: TlsUpstream) -> None:
    cp.tls_context.cache_clear()
    with pytest.raises(cp.ProxyError, match="set SSL_CERT_FILE to a file with") as caught:
        rig.ask(origin=secure_origin(secure))
    assert not caught.value.sent
    assert not secure.seen


def test_tls_to_a_plain_port(rig: Rig) -> None:
    with pytest.raises(cp.ProxyError, match="does it speak plain http"), listener(speak_plainly) as port:
        rig.ask(origin=cp.Origin("https", "127.0.0.1", port))


def speak_plainly(peer: socket.socket) -> None:
    peer.recv(4096)
    peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    peer.recv(4096)


@pytest.mark.usefixtures("trusted")
def test_a_large_upload_to_a_slow_reader_over_tls(
    authority: trustme.CA, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each piece has its own deadline; all of them together take longer than one."""
    monkeypatch.setattr(cp, "SEND_TIMEOUT", 1.0)
    context, received = server_context(authority, "127.0.0.1"), [0]

    def serve(peer: socket.socket) -> None:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        with context.wrap_socket(peer, server_side=True) as secured:
            while received[0] < len(BIG) // 4:
                threading.Event().wait(0.005)
                received[0] += len(secured.recv(65_536))
            secured.sendall(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok")

    with listener(serve) as port:
        pool, origin = cp.Pool(clock), cp.Origin("https", "127.0.0.1", port)
        body = BIG[: len(BIG) // 4]
        begun = time.monotonic()
        with closing(
            pool.open(origin, cp.request_head("POST", "/", origin, {}, len(body)), [body])
        ) as exchange:
            assert exchange.body() == b"ok"
        assert time.monotonic() - begun > cp.SEND_TIMEOUT
    assert received[0] >= len(body)


@pytest.mark.usefixtures("trusted")
def test_an_early_answer_over_tls(authority: trustme.CA, clock: Clock) -> None:
    context, go = server_context(authority, "127.0.0.1"), threading.Event()

    def serve(peer: socket.socket) -> None:
        with context.wrap_socket(peer, server_side=True) as secured:
            answer_early(secured, lambda: go.wait(DEADLINE))

    with listener(serve) as port:
        pool, origin = cp.Pool(clock), cp.Origin("https", "127.0.0.1", port)
        with closing(
            pool.open(origin, cp.request_head("POST", "/", origin, {}, len(BIG)), [BIG])
        ) as exchange:
            assert (exchange.status, exchange.body()) == (413, b"no")
        go.set()


# --- proxies --------------------------------------------------------------------------------------


def pump(outer: Any, inner: socket.socket) -> None:
    """Copy both ways, in one thread: TLS connections are not to be shared by two."""
    while True:
        waiting = outer.pending() if hasattr(outer, "pending") else 0
        ready = [outer] if waiting else select.select([outer, inner], [], [], DEADLINE)[0]
        for source in ready:
            data = source.recv(65_536)
            if not data:
                return
            (inner if source is outer else outer).sendall(data)


class Tunnel:
    """A proxy that leads to `port`, whatever host it is asked for; `asked` tells what that was."""

    def __init__(
        self, port: int, greet: Callable[[Any], bytes | None], context: ssl.SSLContext | None = None
    ) -> None:
        self.asked: list[bytes] = []
        self._port, self._greet, self._context = port, greet, context

    def serve(self, peer: socket.socket) -> None:
        outer: Any = self._context.wrap_socket(peer, server_side=True) if self._context else peer
        with closing(outer):
            asked = self._greet(outer)
            if asked is None:
                return
            self.asked.append(asked)
            with socket.create_connection(("127.0.0.1", self._port), timeout=DEADLINE) as inner:
                pump(outer, inner)


def take(peer: Any, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = peer.recv(count - len(data))
        if not more:
            raise ConnectionError
        data += more
    return data


def greet_http(peer: Any) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head:
        head += take(peer, 1)
    peer.sendall(b"HTTP/1.1 200 Established\r\nvia: test\r\n\r\n")
    return head


def refuse_http(peer: Any) -> None:
    peer.recv(4096)
    peer.sendall(b"HTTP/1.1 407 Who are you\r\ncontent-length: 0\r\n\r\n")


def greet_socks(peer: Any, user: bytes = b"", bound: bytes = b"\1\0\0\0\0") -> bytes:
    version, count = take(peer, 2)
    methods = take(peer, count)
    assert version == 5
    if user:
        assert 2 in methods
        peer.sendall(b"\5\2")
        name = take(peer, take(peer, 2)[1])
        password = take(peer, take(peer, 1)[0])
        right = name + b":" + password == user
        peer.sendall(b"\1\0" if right else b"\1\1")
        if not right:
            raise ConnectionError
    else:
        peer.sendall(b"\5\0")
    kind = take(peer, 4)[3]
    length = {1: 4, 4: 16}.get(kind) or take(peer, 1)[0]
    host = take(peer, length)
    port = int.from_bytes(take(peer, 2), "big")
    peer.sendall(b"\5\0\0" + bound + b"\0\0")
    return b"%d %b %d" % (kind, host if kind == 3 else b"-", port)


PROXIES = [
    pytest.param("http", greet_http, b"CONNECT api.test:443 HTTP/1.1", id="http"),
    pytest.param("https", greet_http, b"CONNECT api.test:443 HTTP/1.1", id="https"),
    pytest.param("socks5", greet_socks, b"3 api.test 443", id="socks5"),
    pytest.param(
        "socks5h",
        lambda peer: greet_socks(peer, bound=b"\4" + bytes(16)),
        b"3 api.test 443",
        id="socks5h, IPv6",
    ),
    pytest.param(
        "socks5", lambda peer: greet_socks(peer, bound=b"\3\4host"), b"3 api.test 443", id="socks5, a name"
    ),
    pytest.param(
        "socks5 u:p%20w@", lambda peer: greet_socks(peer, b"u:p w"), b"3 api.test 443", id="socks5, a user"
    ),
    pytest.param(
        "http u:p%20w@",
        greet_http,
        b"proxy-authorization: Basic " + base64.b64encode(b"u:p w"),
        id="http, a user",
    ),
]


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize(("scheme", "greet", "asked"), PROXIES)
def test_proxies_to_https(
    rig: Rig, authority: trustme.CA, scheme: str, greet: Callable[[Any], bytes], asked: bytes
) -> None:
    scheme, _, user = scheme.partition(" ")
    with closing(TlsUpstream(server_context(authority, "api.test"))) as upstream:
        upstream.reply([b"one", b"two"])
        upstream.reply(PLAIN * 1000)
        context = server_context(authority, "127.0.0.1") if scheme == "https" else None
        tunnel = Tunnel(upstream.port, greet, context)
        with listener(tunnel.serve) as port:
            origin = cp.Origin("https", "api.test", 443, f"{scheme}://{user}127.0.0.1:{port}")
            assert rig.ask(origin=origin) == (200, b"onetwo")
            rig.clock.turn(cp.FRESH)
            assert rig.ask(origin=origin, body=PLAIN * 3000) == (200, PLAIN * 1000)
            rig.pool.prune(-math.inf)
        assert asked in tunnel.asked[0]
        assert len(tunnel.asked) == 1, "a tunnel is reused"
        assert upstream.seen[0].headers["host"] == "api.test"
        assert "proxy-authorization" not in upstream.seen[0].headers
        assert upstream.seen[1].body == PLAIN * 3000


@pytest.mark.usefixtures("trusted")
def test_the_proxy_s_own_certificate_is_verified(rig: Rig, authority: trustme.CA) -> None:
    tunnel = Tunnel(1, greet_http, server_context(authority, "other.example"))
    with (
        listener(tunnel.serve) as port,
        pytest.raises(cp.ProxyError, match=r"(?i)not valid for|doesn't match|mismatch"),
    ):
        rig.ask(origin=cp.Origin("https", "api.test", 443, f"https://127.0.0.1:{port}"))


@pytest.mark.usefixtures("trusted")
def test_the_host_behind_an_https_proxy_is_verified(rig: Rig, authority: trustme.CA) -> None:
    with closing(TlsUpstream(server_context(authority, "other.test"))) as upstream:
        tunnel = Tunnel(upstream.port, greet_http, server_context(authority, "127.0.0.1"))
        with (
            listener(tunnel.serve) as port,
            pytest.raises(cp.ProxyError, match=r"(?i)not valid for|doesn't match|mismatch"),
        ):
            rig.ask(origin=cp.Origin("https", "api.test", 443, f"https://127.0.0.1:{port}"))


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_http_through_a_proxy_has_the_absolute_form(rig: Rig, authority: trustme.CA, scheme: str) -> None:
    secured = scheme == "https"
    upstream = TlsUpstream(server_context(authority, "127.0.0.1")) if secured else Upstream()
    with closing(upstream):
        upstream.reply(b"ok")
        origin = cp.Origin("http", "api.test", 80, f"{scheme}://u:p@127.0.0.1:{upstream.port}")
        assert rig.ask(origin=origin) == (200, b"ok")
        assert upstream.seen[0].path == "http://api.test/x"
        assert upstream.seen[0].headers["proxy-authorization"] == "Basic " + base64.b64encode(b"u:p").decode()
        rig.pool.prune(-math.inf)


def test_http_through_socks(rig: Rig) -> None:
    rig.upstream.reply(b"ok")
    tunnel = Tunnel(rig.upstream.port, greet_socks)
    with listener(tunnel.serve) as port:
        assert rig.ask(origin=cp.Origin("http", "api.test", 80, f"socks5://127.0.0.1:{port}")) == (200, b"ok")
        rig.pool.prune(-math.inf)
    assert rig.upstream.seen[0].path == "/x"


def refuse_socks(answer: bytes) -> Callable[[Any], None]:
    def refuse(peer: Any) -> None:
        peer.recv(3)
        peer.sendall(b"\5\0")
        peer.recv(100)
        peer.sendall(answer)

    return refuse


REFUSING = [
    pytest.param("http", refuse_http, "the proxy said 'HTTP/1.1 407", id="http refuses"),
    pytest.param(
        "http", lambda peer: peer.recv(10) and None, "closed the connection|reset", id="http hangs up"
    ),
    pytest.param(
        "socks5", refuse_socks(b"\5\4\0\1\0\0\0\0\0\0"), r"SOCKS error 4", id="socks cannot reach it"
    ),
    pytest.param(
        "socks5",
        lambda peer: peer.recv(3) and peer.sendall(b"\5\xff"),
        "refuses the log-in",
        id="socks wants a user",
    ),
    pytest.param("socks5", lambda peer: peer.recv(3) and peer.sendall(b"HTTP"), "no SOCKS 5", id="no socks"),
    pytest.param("socks5", lambda peer: peer.recv(3) and None, "closed the connection", id="socks hangs up"),
    pytest.param(
        "socks5 u:wrong@",
        lambda peer: greet_socks(peer, b"u:p"),
        "user name or password",
        id="wrong password",
    ),
    pytest.param(
        "socks5 u:" + "x" * 300 + "@",
        lambda peer: greet_socks(peer, b"u:p"),
        "through socks5",
        id="endless password",
    ),
]


@pytest.mark.parametrize(("scheme", "greet", "says"), REFUSING)
def test_proxies_that_refuse(rig: Rig, scheme: str, greet: Callable[[Any], None], says: str) -> None:
    scheme, _, user = scheme.partition(" ")
    with listener(greet) as port, pytest.raises(cp.ProxyError, match=says) as caught:
        rig.ask(origin=cp.Origin("https", "api.test", 443, f"{scheme}://{user}127.0.0.1:{port}"))
    assert not caught.value.sent
    assert "wrong" not in str(caught.value)


# --- one small call --------------------------------------------------------------------------------


def test_fetch(upstream: Upstream) -> None:
    upstream.reply(GZIP, 201, {"content-encoding": "gzip", "X-One": "1"})
    reply = cp.fetch("POST", f"{upstream.url}/token?a=b", {"user-agent": "mine"}, b"grant")
    assert (reply.status, reply.body, reply.headers["x-one"]) == (201, PLAIN, "1")
    seen = upstream.seen[0]
    assert (seen.method, seen.path, seen.body) == ("POST", "/token?a=b", b"grant")
    assert (seen.headers["user-agent"], seen.headers["accept-encoding"]) == ("mine", "gzip")


@pytest.mark.parametrize(("rest", "path"), [("", "/"), ("/", "/"), ("/a", "/a"), ("?b=1", "/?b=1")])
def test_paths_of_fetch(upstream: Upstream, rest: str, path: str) -> None:
    upstream.reply(b"")
    cp.fetch("GET", upstream.url + rest, {})
    assert upstream.seen[0].path == path


@pytest.mark.parametrize(
    "steps", [[SILENCE], [b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc", SILENCE]], ids=["head", "body"]
)
def test_fetch_has_a_timeout(upstream: Upstream, steps: list[Any]) -> None:
    upstream.reply(steps, framing="raw")
    with beats() as waited, pytest.raises(cp.ProxyError) as caught:
        cp.fetch("GET", upstream.url, {}, timeout=0.3)
    assert (caught.value.kind, caught.value.sent) == ("upstream_timeout", True)
    assert waited.seconds < 2
    assert upstream.hung_up.wait(DEADLINE)


def test_fetch_ends_though_bytes_come() -> None:
    def serve(peer: socket.socket) -> None:
        peer.recv(4096)
        peer.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
        with dripping(peer, b"x", 0.05):
            peer.recv(10)

    with listener(serve) as port, pytest.raises(cp.ProxyError) as caught:
        cp.fetch("GET", f"http://127.0.0.1:{port}/", {}, timeout=0.3)
    assert caught.value.kind == "upstream_timeout"


def test_fetch_tells_whether_anything_was_sent(upstream: Upstream) -> None:
    with pytest.raises(cp.ProxyError) as caught:
        cp.fetch("GET", f"http://127.0.0.1:{unused_port()}/", {})
    assert not caught.value.sent
    upstream.reply([CLOSE], framing="raw")
    with pytest.raises(cp.ProxyError) as caught:
        cp.fetch("GET", upstream.url, {})
    assert caught.value.sent


def test_fetch_through_a_proxy(upstream: Upstream) -> None:
    upstream.reply(b"ok")
    assert cp.fetch("GET", "http://api.test/x", {}, proxy=upstream.url).body == b"ok"
    assert upstream.seen[0].path == "http://api.test/x"


# --- serving TLS --------------------------------------------------------------------------------------

ECHO = b'{"model":"echo","messages":[{"role":"user","content":"hello"}]}'


def post(body: bytes, path: bytes = b"/v1/chat/completions", *lines: bytes) -> bytes:
    head = [b"POST " + path + b" HTTP/1.1", b"host: 127.0.0.1", b"content-length: %d" % len(body), *lines]
    return b"\r\n".join([*head, b"", b""]) + body


class Served(NamedTuple):
    """A proxy that serves TLS."""

    proxy: Any
    context: ssl.SSLContext

    def connect(self) -> ssl.SSLSocket:
        plain = socket.create_connection(("127.0.0.1", self.proxy.port), timeout=DEADLINE)
        return self.context.wrap_socket(plain, server_hostname="127.0.0.1")


@pytest.fixture
def served(make_proxy: ProxyMaker, authority: trustme.CA, tmp_path: Path) -> Served:
    issued = authority.issue_cert("127.0.0.1")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    context = ssl.create_default_context()
    authority.configure_trust(context)
    proxy = make_proxy(tls={"enable": True, "cert": str(cert), "key": str(key)})
    return Served(proxy, context)


def test_serving_tls(served: Served) -> None:
    with closing(served.connect()) as peer:
        for _ in range(2):
            peer.sendall(post(ECHO))
            assert b"hello" in peer.recv(65_536)
        peer.sendall(post(ECHO, b"/v1/chat/completions", b"connection: close"))
        answer = b""
        while more := peer.recv(65_536):  # a ragged end would raise
            answer += more
        assert b"hello" in answer


@pytest.mark.parametrize("rude", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b""])
def test_who_does_not_speak_tls_is_let_go(
    served: Served, rude: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cp, "CONNECT_TIMEOUT", 0.3)
    with closing(served.proxy.connect()) as peer:
        peer.sendall(rude)
        with suppress(ConnectionResetError):
            while peer.recv(4096):  # an alert, then the end
                pass
    with closing(served.connect()) as other:
        other.sendall(post(ECHO))
        assert b"hello" in other.recv(65_536)


@pytest.mark.parametrize("polite", [True, False], ids=["says goodbye", "just closes"])
def test_a_tls_client_that_hangs_up_ends_the_exchange(
    served: Served, upstream: Upstream, polite: bool
) -> None:
    upstream.reply([SILENCE], framing="raw")
    peer = served.connect()
    with closing(peer):
        peer.sendall(post(b'{"model":"up-claude"}', b"/v1/messages"))
        assert upstream.asked.wait(DEADLINE)
        if polite:
            with suppress(OSError):
                peer.settimeout(0.0)
                peer.unwrap()
    with beats() as waited:
        assert upstream.hung_up.wait(DEADLINE)
    assert waited.seconds < 1.5


def test_a_large_answer_over_tls_to_a_slow_client(served: Served, upstream: Upstream) -> None:
    body = b'{"content":"' + b"0123456789abcdef" * 128_000 + b'"}'
    upstream.reply(body)
    with closing(served.connect()) as peer:
        peer.sendall(post(b'{"model":"up-claude"}', b"/v1/messages", b"connection: close"))
        got = b""
        threading.Event().wait(0.2)
        while more := peer.recv(65_536):
            got += more
    assert got.partition(b"\r\n\r\n")[2] == body


def test_a_tls_client_may_pause_before_its_next_request(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cp, "TICK", 0.005)  # the patience with upstreams is not that with clients
    with closing(served.connect()) as peer:
        peer.sendall(post(ECHO))
        assert b"hello" in peer.recv(65_536)
        threading.Event().wait(0.3)
        peer.sendall(post(ECHO))
        assert b"hello" in peer.recv(65_536)


@pytest.mark.parametrize("files", [("absent.pem", "absent.pem"), ("", "")])
def test_a_bad_certificate_says_so(make_proxy: ProxyMaker, files: tuple[str, str]) -> None:
    with pytest.raises(cp.ProxyError, match=r"tls\.cert"):
        make_proxy(tls={"enable": True, "cert": files[0], "key": files[1]})
