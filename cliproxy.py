#!/usr/bin/env python3
# /// script
# requires-python = ">=3.9"
# dependencies = []
# ///
"""cliproxy: one file, no dependencies: any LLM client with any LLM account its owner has.

Contents (each room uses only rooms above it; [pure] ones touch no clock, socket, file or thread):

    1. PRIMITIVES    SSE framing, JSON, ids, wildcards, masking          [pure]
    2. ERRORS        ProxyError and the KINDS table                      [pure]
    3. FACTS         providers, models, parameters, finish reasons       [pure]
    4. CONVERSATION  the request, its parts, and the events of answers   [pure]
    5. TYPES         what was read is of the type that it must have      [pure]
    6. SCHEMAS       JSON Schema in the keywords of each service         [pure]
    7. CLAUDE        Anthropic Messages                                  [pure]
    8. CHAT          OpenAI Chat Completions                             [pure]
    9. RESPONSES     OpenAI Responses, also of Codex                     [pure]
   10. GEMINI        Google generateContent                              [pure]
   11. THINKING      how much a model is asked to think                  [pure]
   12. NAMES         names and ids of tools, and proofs in transit       [pure]
   13. DIALECTS      the dialects as rows; fitting a request to a target [pure]
   14. YAML          texts of settings, with places; edits in place      [pure]
   15. FOREIGN       configurations of LiteLLM and claude-code-router    [pure]
   16. CONFIG        the settings file: load, check, watch
   17. NETWORK       HTTP/1.1 over sockets, both sides
   18. STORE         credential files
   19. TERMINAL      prompts, the browser's way back, QR codes
   20. TOKENS        what is in tokens, and how they are signed          [pure]
   21. BCRYPT        hashes of the management key, without a dependency  [pure]
   22. LOGINS        each provider's login as a row
   23. RENEWAL       new tokens for old ones
   24. IMPORT        logins that other programs hold
   25. LOGIN         the way through a login, and out
   26. ACCOUNTS      credentials as accounts, and the models they offer
   27. REFUSALS      what a refusal means                                [pure]
   28. ROUTING       which account serves which model, and which rests
   29. USAGE         what was asked, of whom, and what it cost
   30. LOGS          what happened, for people
   31. ERRANDS       what a client sent us out for
   32. PROVIDERS     the headers and bodies that each provider wants
   33. CATALOG       the models that upstreams list, and as clients read them
   34. ANSWERS       what goes back to the client, passed on or edited as bytes
   35. UPSTREAM      asking a provider
   36. AMP           what Amp asks its own server for
   37. WEBSOCKET     RFC 6455, and the conversation that a connection remembers
   38. MANAGEMENT    CLIProxyAPI's management API
   39. SERVER        the listening side
   40. OUTPUT        lines, tables and colours as people see them
   41. SERVICE       units, agents and tasks that keep it running; completion
   42. COMMANDS      the command line
"""

from __future__ import annotations

import argparse
import base64
import codecs
import collections
import contextlib
import errno
import functools
import gc
import hashlib
import hmac
import importlib
import io
import itertools
import json
import logging
import math
import operator
import os
import re
import secrets
import signal
import socket
import socketserver
import stat
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from email.utils import parsedate_to_datetime
from enum import Enum
from functools import partial, reduce
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from itertools import count, islice
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, ClassVar, NamedTuple, NoReturn, Protocol, Union
from urllib.parse import parse_qs, parse_qsl, unquote, unquote_to_bytes, urlencode, urlsplit
from urllib.parse import quote as urlquote

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C needs no traceback; main() takes over
if sys.version_info < (3, 9):  # noqa: UP036 -- a copied file meets old interpreters
    raise SystemExit("cliproxy needs Python 3.9 or newer")

__version__ = "0.1.0"
__all__ = ["DIALECTS", "ProxyError", "main", "make_server"]
USER_AGENT = f"cliproxy/{__version__}"

Json = dict[str, Any]  # a decoded JSON object
Frames = Generator[bytes, None, None]  # encoded pieces of an answer's body
log = logging.getLogger("cliproxy")


########################################################################################
# 1. PRIMITIVES                                                                   [pure]
########################################################################################
# Small functions that know no dialect, no provider and no socket.

encode_wire = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
encode_text = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode
read_json = json.JSONDecoder().raw_decode  # json.loads without what it does beside: half the time
quote = json.encoder.encode_basestring_ascii  # a text as a JSON string, for templates
LARGE_JSON = 2**20  # bytes from which on it is looked at before it is decoded
VALUE_LIMIT = 2_000_000  # values in one JSON document: the most that does not stop all threads for long


def dumps(data: Any) -> str:
    """Encode data for the wire: ASCII, the fastest form."""
    try:
        return encode_wire(data)
    except ValueError:
        return encode_wire(finite(data))


def dumps_text(data: Any) -> str:
    """Encode data as a text in which people can read all letters."""
    try:
        return encode_text(data)
    except ValueError:
        return encode_text(finite(data))


def finite(data: Any) -> Any:
    """Return data without what JSON has no word for: 1e400 is the largest number there is, NaN null."""
    if isinstance(data, dict):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return list(map(finite, data))
    if not isinstance(data, float) or math.isfinite(data):
        return data
    return None if math.isnan(data) else math.copysign(sys.float_info.max, data)


def no_number(word: str) -> None:
    raise ValueError(f"{word} is no number")


decode_exact = json.JSONDecoder(parse_constant=no_number).decode  # without the NaN and Infinity of Python


def decode_own(body: bytes | bytearray) -> Any:
    """Decode a client's JSON, in which NaN and Infinity, that Python knows, are mistakes. Raises ValueError."""
    decoded = decode_json(body)
    if b"NaN" in body or b"Infinity" in body:  # in a text, most likely
        json.loads(body, parse_constant=no_number)
    return decoded


def decode_json(body: bytes | bytearray) -> Any:
    """Decode JSON from elsewhere. Raises ValueError if it is none, or has more than VALUE_LIMIT values.

    The decoder lets no other thread run, and the garbage collector would walk through all that has
    been decoded again and again: 20 MB of `[],` stopped everybody for five seconds.
    """
    if len(body) < LARGE_JSON:
        return json.loads(body)
    if sum(map(body.count, (b",", b"[", b"{"))) > VALUE_LIMIT:  # those within texts are few beside them
        raise ValueError(f"more than {VALUE_LIMIT:,} values in one JSON document")
    collects = gc.isenabled()
    gc.disable()
    try:
        return json.loads(body)
    finally:
        if collects:
            gc.enable()


def sse_frame(data: Json, event: str = "") -> bytes:
    """Encode one server-sent event; the `event:` line is left out when `event` is empty."""
    head = f"event: {event}\n" if event else ""
    return f"{head}data: {dumps(data)}\n\n".encode("ascii")


def sse_strip_mark(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Drop the byte order mark that a stream may begin with."""
    mark = b"\xef\xbb\xbf"
    left = iter(chunks)
    head = b""
    while len(head) < len(mark) and mark.startswith(head):
        chunk = next(left, None)
        if chunk is None:
            break
        head += chunk
    yield head.removeprefix(mark)
    yield from left


EVENT_LIMIT = 2**24  # bytes


def sse_split(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Group the bytes of a stream, cut anywhere, into whole events without their blank line.

    All three line ends are accepted and come out as LF. The last event needs no blank line. Raises
    ValueError for an event that is longer than any.
    Source: html.spec.whatwg.org 9.2.6.
    """
    pieces: list[bytes] = []  # of the event that is still incomplete: joined once
    size = 0  # of these
    after_cr = False
    for chunk in sse_strip_mark(chunks):
        text = chunk
        if chunk and (after_cr or b"\r" in chunk):
            if after_cr:
                text = text.removeprefix(b"\n")  # of a CR LF in two chunks: the CR has ended the line
            after_cr = chunk.endswith(b"\r")
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        seam = pieces[-1][-1:] + text[:1] if pieces else b""
        if b"\n\n" in text or seam == b"\n\n":
            *events, rest = b"".join((*pieces, text)).split(b"\n\n")
            yield from filter(bytes.strip, events)  # more blank lines than one make no event
            pieces = [rest] if rest else []
            size = len(rest)
        elif text:
            pieces.append(text)
            size += len(text)
            if size > EVENT_LIMIT:
                raise ValueError(f"an event of more than {EVENT_LIMIT:,} bytes")
    rest = b"".join(pieces)
    if rest.strip(b"\n"):
        yield rest


def sse_data(event: bytes) -> bytes:
    """Return the joined `data:` fields of one event; empty for a comment."""
    if event.startswith(b"data:") and b"\n" not in event:  # the common case first
        return event[5:].strip()
    lines = event.split(b"\n")
    return b"\n".join(line[5:].strip() for line in lines if line.startswith(b"data:"))


def without(data: Mapping[str, Any], known: frozenset[str]) -> Json:
    """Return what `data` holds beside the `known` keys: what a reader keeps in `extra`."""
    if data.keys() <= known:
        return {}
    return {key: value for key, value in data.items() if key not in known}  # in their order


def digest(*words: object) -> str:
    """Return 24 hex digits that depend on `words` alone: ids that are the same every time."""
    return hashlib.sha256("\0".join(map(str, words)).encode("utf-8", "replace")).hexdigest()[:24]


def wildcard(pattern: str, name: str) -> bool:
    """Tell whether `name` matches `pattern`, in which `*` is any run of characters."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name, re.DOTALL) is not None


LONGEST_REST = 7 * 86_400.0  # seconds: no hint to come back later than that is believed


def wait_in_headers(headers: Mapping[str, str], now: float) -> float | None:
    """Return the seconds until the upstream wants to be asked again, None if it does not say.

    Reads `retry-after-ms`, and `retry-after` in seconds or as an HTTP date. `now` is Unix time;
    the result is neither negative nor longer than anybody waits. Garbage is None. Source: RFC 9110 10.2.3.
    """
    for name, unit in (("retry-after-ms", 1_000.0), ("retry-after", 1.0)):
        with contextlib.suppress(ValueError):
            return min(max(0.0, float(headers.get(name, "")) / unit), LONGEST_REST)
    try:
        end = parsedate_to_datetime(headers.get("retry-after", "")).timestamp()
    except (TypeError, ValueError, IndexError, OverflowError):
        return None  # TypeError and IndexError: 3.9 raises them where later versions do not
    return min(max(0.0, end - now), LONGEST_REST)


DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0}


def read_duration(text: str) -> float:
    """Return the seconds in `1h16m0.6s` or `373.8ms`, as Go writes durations; 0 for other texts."""
    parts = re.findall(r"(\d*\.?\d+)(ms|s|m|h)", text)
    whole = "".join(map("".join, parts)) == text.strip()
    return sum(float(number) * DURATION_UNITS[unit] for number, unit in parts) if whole else 0.0


LOOPBACK = re.compile(r"127(\.(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)){3}")


@functools.lru_cache(maxsize=64)
def is_loopback(host: str) -> bool:
    """Tell whether a host name or address is this machine itself."""
    return host in {"localhost", "::1", "[::1]"} or bool(LOOPBACK.fullmatch(host))


def masked(secret: str) -> str:
    """Shorten a secret to what identifies it: `sk-a...wxyz`. Source: spec/config.md 9."""
    shown = ((8, 4), (4, 2), (2, 1))  # longer than this: so many characters on either side
    keep = next((keep for length, keep in shown if len(secret) > length), 0)
    return f"{secret[:keep]}...{secret[-keep:]}" if keep else "..."


def hide(text: str, words: Iterable[str]) -> str:
    """Mask these words wherever they stand in a text; shorter ones than 8 characters might be words."""
    for secret in words:
        if len(secret) >= 8 and secret in text:
            text = text.replace(secret, masked(secret))
    return text


def one_line(text: str) -> str:
    """Return a text without control characters, written as in JSON."""
    return "".join(c if c.isprintable() else quote(c)[1:-1] for c in text)


class Step(NamedTuple):
    """One step of a JSON path: into an object, an array, or those elements that pass a test.

    `kind`: key (of an object, or index of an array), name (of an object only), glob (the first
    key that fits a pattern), first and all (elements that pass the test in `word`).
    """

    kind: str
    word: str


PATH_STEP = re.compile(
    r"""\#\((?P<test>(?:"(?:[^"\\]|\\.)*"|[^"])*?)\)(?P<all>\#?)(?=[.|]|$)"""
    r"""|(?P<word>(?:\\.?|[^.|\\])*)""",
    re.DOTALL,
)
PATH_TEST = re.compile(r"(?P<path>.*?)\s*(?P<operator>==?|!=|!?%)\s*(?P<value>.*)", re.DOTALL)
MISSING = object()  # what is at a path where nothing is


def path_steps(path: str) -> list[Step]:
    """Split a JSON path at its dots. The syntax is gjson's. Source: spec/config.md 7."""
    steps, at = [], 0
    while at <= len(path) and (found := PATH_STEP.match(path, at)):
        at = found.end() + 1
        word = found["word"]
        if word is None:
            steps.append(Step("all" if found["all"] else "first", found["test"]))
        elif word == "#":
            steps.append(Step("all", ""))
        elif re.fullmatch(":-?[0-9]+", word):
            steps.append(Step("name", word[1:]))
        elif re.search(r"[*?]", re.sub(r"\\.", "", word)):
            steps.append(Step("glob", word))
        else:
            steps.append(Step("key", re.sub(r"\\(.)", r"\1", word)))
    return steps


def path_is_query(path: str) -> bool:
    """Tell whether a path searches: it then finds what is there, and creates nothing."""
    return re.search(r"[#*?|@]", re.sub(r"\\.", "", path, flags=re.DOTALL)) is not None


def path_index(step: Step) -> int | None:
    """Return the array index that a step stands for; -1 is one past the end, or the last."""
    fits = step.kind == "key" and re.fullmatch("-1|[0-9]{1,4}", step.word)
    return int(step.word) if fits else None


def path_keys(node: Json, step: Step) -> list[str]:
    """Return the keys of an object that a step leads to: one, or none."""
    if step.kind == "glob":
        parts = re.findall(r"\\.|.", step.word, re.DOTALL)
        pattern = "".join({"*": ".*", "?": "."}.get(c) or re.escape(c[-1]) for c in parts)
        return [key for key in node if re.fullmatch(pattern, key, re.DOTALL)][:1]
    return [step.word] if step.kind in {"key", "name"} and step.word in node else []


def path_children(node: Any, step: Step) -> Iterator[tuple[str | int, Any]]:
    """Yield the keys and values in `node` that one step leads to."""
    if isinstance(node, dict):
        yield from ((key, node[key]) for key in path_keys(node, step))
    elif isinstance(node, list):
        index = path_index(step)
        if index is not None and 0 <= index < len(node):
            yield index, node[index]
        elif step.kind in {"first", "all"}:
            fits = ((at, item) for at, item in enumerate(node) if path_test(item, step.word))
            yield from islice(fits, 1 if step.kind == "first" else None)


def path_test(item: Any, test: str) -> bool:
    """Tell whether an element passes the test of `#(test)`: a path, or a path and a comparison."""
    found = PATH_TEST.fullmatch(test)
    if not found:
        return not test or path_exists(item, test)
    try:
        value = json.loads(found["value"])
    except ValueError:
        value = found["value"]  # quotes may be left out
    fits = path_is(item, found["path"], value, like=found["operator"].endswith("%"))
    return fits != found["operator"].startswith("!")


def path_find(node: Any, steps: list[Step]) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Yield every place that a path leads to, as keys from the root, and the value there."""
    if not steps:
        yield (), node
        return
    for key, child in path_children(node, steps[0]):
        for place, value in path_find(child, steps[1:]):
            yield (key, *place), value


def path_exists(data: Any, path: str) -> bool:
    """Tell whether there is anything at a path, be it null."""
    return any(True for _ in path_find(data, path_steps(path)))


def path_is(data: Any, path: str, value: Any, *, like: bool = False) -> bool:
    """Tell whether `value` is at a path, or any value that it is a wildcard for; "" is `data`."""
    found = [there for _, there in path_find(data, path_steps(path) if path else [])]
    if like:
        return any(isinstance(there, str) and wildcard(str(value), there) for there in found)
    return any(same_json(there, value) for there in found)


def path_get(data: Any, path: str, default: Any = None) -> Any:
    """Return what is at a path: a list if the path asks for all of something."""
    steps = path_steps(path)
    values = [value for _, value in path_find(data, steps)]
    if any(step.kind == "all" for step in steps):
        return values
    return values[0] if values else default


def path_set(data: Any, path: str, value: Any) -> Any:
    """Return `data` with `value` at a path; `data` itself if that changes nothing.

    The argument is never changed: what leads to the path is copied, the rest is shared. Objects
    and arrays are made as needed, unless the path searches.
    """
    if not path_is_query(path):
        return path_put(data, path_steps(path), value) if path else data
    for place, _ in list(path_find(data, path_steps(path))):
        steps = [Step("name" if isinstance(key, str) else "key", str(key)) for key in place]
        data = path_put(data, steps, value)
    return data


def path_put(node: Any, steps: list[Step], value: Any) -> Any:
    """Return `node` with `value` where the steps lead, or `node` itself."""
    if not steps:
        return node if node is not MISSING and same_json(node, value) else value
    index = path_index(steps[0])
    if isinstance(node, dict):
        key = steps[0].word
        child = node.get(key, MISSING)
        grown = path_put(child, steps[1:], value)
        return node if grown is child else {**node, key: grown}
    if not isinstance(node, list):  # nothing there, or a plain value in the way
        return path_put({} if index is None else [], steps, value)
    if index is None:
        return node
    at = len(node) if index < 0 else index
    child = node[at] if at < len(node) else MISSING
    grown = path_put(child, steps[1:], value)
    if grown is child:
        return node
    items = [*node, *[None] * (at + 1 - len(node))]
    items[at] = grown
    return items


def path_delete(data: Any, path: str) -> Any:
    """Return `data` without what is at a path; `data` itself if that changes nothing.

    The argument is never changed. A path that searches deletes nothing.
    """
    return data if path_is_query(path) else path_cut(data, path_steps(path))


def path_cut(node: Any, steps: list[Step]) -> Any:
    """Return `node` without what the steps lead to, or `node` itself."""
    key: Any = steps[0].word
    there: Any = node if isinstance(node, dict) else ()
    if isinstance(node, list):
        there = range(len(node))
        index = path_index(steps[0])
        key = len(node) - 1 if index == -1 else index
    if key not in there:
        return node
    copy = node.copy()
    if len(steps) == 1:
        del copy[key]
        return copy
    copy[key] = path_cut(node[key], steps[1:])
    return node if copy[key] is node[key] else copy


def same_json(one: Any, other: Any) -> bool:
    """Tell whether two values are the same JSON: 1 and 1.0 are, 1 and true are not."""
    numbers = {type(one), type(other)} <= {int, float}
    return one == other if numbers else dumps(one) == dumps(other)


########################################################################################
# 2. ERRORS                                                                       [pure]
########################################################################################
# One exception, and one table that says what each kind of failure is called on each wire.


class Kind(NamedTuple):
    """One way to fail: its HTTP status, whether another account may do better, its names."""

    status: int
    retry: bool
    claude: str
    openai: str
    code: str  # OpenAI's `code`, empty for null
    gemini: str


# fmt: off
KINDS = {
    #                          status  retry  claude                   openai                   code                       gemini
    "invalid_request":    Kind(400,    False, "invalid_request_error", "invalid_request_error", "",                        "INVALID_ARGUMENT"),
    "context_too_long":   Kind(400,    False, "invalid_request_error", "invalid_request_error", "context_length_exceeded", "INVALID_ARGUMENT"),
    "unauthorized":       Kind(401,    True,  "authentication_error",  "authentication_error",  "invalid_api_key",         "UNAUTHENTICATED"),
    "billing":            Kind(402,    True,  "billing_error",         "insufficient_quota",    "insufficient_quota",      "FAILED_PRECONDITION"),
    "forbidden":          Kind(403,    True,  "permission_error",      "permission_error",      "",                        "PERMISSION_DENIED"),
    "not_found":          Kind(404,    True,  "not_found_error",       "invalid_request_error", "",                        "NOT_FOUND"),
    "model_not_found":    Kind(404,    True,  "not_found_error",       "invalid_request_error", "model_not_found",         "NOT_FOUND"),
    "method_not_allowed": Kind(405,    False, "invalid_request_error", "invalid_request_error", "",                        "INVALID_ARGUMENT"),
    "caller_timeout":     Kind(408,    True,  "timeout_error",         "server_error",          "timeout",                 "DEADLINE_EXCEEDED"),
    "conflict":           Kind(409,    False, "conflict_error",        "invalid_request_error", "",                        "ABORTED"),
    "too_large":          Kind(413,    False, "request_too_large",     "invalid_request_error", "",                        "INVALID_ARGUMENT"),
    "unsupported_media":  Kind(415,    False, "invalid_request_error", "invalid_request_error", "",                        "INVALID_ARGUMENT"),
    "unprocessable":      Kind(422,    False, "invalid_request_error", "invalid_request_error", "",                        "INVALID_ARGUMENT"),
    "upgrade_required":   Kind(426,    False, "invalid_request_error", "invalid_request_error", "upgrade_required",        "FAILED_PRECONDITION"),
    "rate_limited":       Kind(429,    True,  "rate_limit_error",      "rate_limit_error",      "rate_limit_exceeded",     "RESOURCE_EXHAUSTED"),
    "head_too_large":     Kind(431,    False, "invalid_request_error", "invalid_request_error", "",                        "INVALID_ARGUMENT"),
    "internal":           Kind(500,    False, "api_error",             "server_error",          "",                        "INTERNAL"),
    "upstream_error":     Kind(500,    True,  "api_error",             "server_error",          "",                        "INTERNAL"),
    "not_implemented":    Kind(501,    False, "api_error",             "server_error",          "not_implemented",         "UNIMPLEMENTED"),
    "upstream_failed":    Kind(502,    True,  "api_error",             "server_error",          "",                        "INTERNAL"),
    "overloaded":         Kind(503,    True,  "overloaded_error",      "server_error",          "overloaded",              "UNAVAILABLE"),
    "upstream_timeout":   Kind(504,    True,  "timeout_error",         "server_error",          "",                        "DEADLINE_EXCEEDED"),
}
# fmt: on
KIND_BY_STATUS = {kind.status: name for name, kind in reversed(KINDS.items())} | {
    499: "upstream_failed",
    500: "upstream_error",
    529: "overloaded",
}


class ProxyError(Exception):
    """A failure the client gets to see: `kind` for programs, the message for people.

    `retry_after` is in seconds; `param` names the field of the request that is at fault. `status`
    is the upstream's own where it differs from the kind's; `body` and `headers` are the upstream's
    answer as it came, for a client that speaks its dialect. Raise it anywhere; only SERVER, and a
    stream writer after its first event, render it.
    """

    def __init__(self, kind: str, message: str, *, retry_after: float | None = None, param: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.retry_after = retry_after
        self.param = param
        self.status = KINDS[kind].status
        self.headers: Mapping[str, str] = {}
        self.body = b""
        self.dialect = ""  # of `body`
        self.sent = True  # may the upstream have received the request?
        self.final = False  # is nobody else to be asked?


# what readers raise, which index freely
MALFORMED = (KeyError, TypeError, AttributeError, ValueError, IndexError, OverflowError, RecursionError)


def error_of_status(status: int, message: str) -> ProxyError:
    """Return the error that an upstream's HTTP status stands for, whatever its body says."""
    fallback = "invalid_request" if 400 <= status < 500 else "upstream_failed"
    error = ProxyError(KIND_BY_STATUS.get(status, fallback), message)
    error.status = status if status >= 400 else error.status
    return error


def error_said(body: Any) -> Json:
    """Return the error object of a body or payload, in any of the shapes in use."""
    body = body[0] if isinstance(body, list) and body else body
    error = (body.get("error") or body) if isinstance(body, dict) else body
    return error if isinstance(error, dict) else {"message": error}


def error_body(status: int, body: bytes) -> Any:
    """Decode the body of an error answer. Of what is no JSON, often HTML, the first words stay."""
    with contextlib.suppress(*MALFORMED):
        return json.loads(body) or f"the upstream answered with status {status}"
    words = re.sub(r"<[^<>]*>", " ", body.decode("utf-8", "replace")).split()
    return " ".join(words)[:300] or f"the upstream answered with status {status}"


def error_words(error: Json, fallback: str = "the upstream gave no reason") -> str:
    """Return what an error object says to people: a text, or as FastAPI has it a list of faults."""
    said = error.get("message") or error.get("detail") or error or fallback
    if isinstance(said, list) and all(isinstance(one, dict) and one.get("msg") for one in said):
        said = "; ".join(str(one["msg"]) for one in said)
    return said if isinstance(said, str) else dumps_text(said)


FULL_SAID = re.compile(  # how hosts say that a context is full
    r"context[ _-]?(length|window|size|limit)\b.{0,120}exceed|(exceed|maximum|longer).{0,80}context[ _-]?(length|window|size|limit)"
    r"|(prompt|input)( is|s are)? too long|(prompt|input)[\w ]{0,20} exceeds? the (maximum|limit|available|model)"
    r"|prompt exceeds max length|exceeds the maximum number of tokens|too many (input |prompt )?tokens"
    r"|maximum (prompt|input) length|range of input length|exceed\w* model token limit",
    re.IGNORECASE | re.DOTALL,
)
FULL_KINDS = frozenset(
    {"invalid_request", "too_large", "unprocessable", "upstream_error"}
)  # as which they say it
FULL_WORDS = {  # dialect -> what its clients act upon, as OpenAI's do upon the code: the sign in a message, the message with numbers and without
    "claude": (
        "prompt is too long", "prompt is too long: {} tokens > {} maximum ({})", "prompt is too long: {}",
    ),
    "gemini": (
        "exceeds the maximum number of tokens", "The input token count ({}) exceeds the maximum number of tokens allowed ({}): {}",
        "The input token count exceeds the maximum number of tokens allowed: {}",
    ),
}  # fmt: skip
FULL_COUNT = re.compile(r"(?<![\w-])\d[\d,]{3,11}(?![\w-])")  # of tokens; no year, and no part of a name


def told_full(error: ProxyError) -> ProxyError:
    """Return an error as one of a full context, if that is what its words say."""
    if error.kind in FULL_KINDS and FULL_SAID.search(str(error)[:2_000]):
        error.kind = "context_too_long"
    if error.kind == "context_too_long":
        error.status = KINDS[error.kind].status
    return error


def full_signs(error: Json) -> Json:
    """Return what of an error in a dialect's form tells its clients that the context is full."""
    return {key: error[key] for key in ("code", "message") if key in error}


def words_for(error: ProxyError, dialect: str) -> str:
    """Return an error's message for the clients of a dialect: of a full context, with the words they act upon."""
    said = str(error)
    sign, numbered, plain = FULL_WORDS[dialect]
    if error.kind != "context_too_long" or sign in said.lower():
        return said
    counts = sorted({int(count.replace(",", "")) for count in FULL_COUNT.findall(said)}, reverse=True)
    return numbered.format(*counts[:2], said) if len(counts) > 1 else plain.format(said)


ERROR_WAITS: tuple[
    tuple[re.Pattern[str], Callable[[str], float] | None], ...
] = (  # the first that tells counts
    (re.compile(r'"resets_at"\s*:\s*"?([^",}\s]+)'), None),  # None: a moment, no span
    (re.compile(r'"resets_in_seconds"\s*:\s*"?(\d{1,9})'), float),
    (re.compile(r'"retryDelay"\s*:\s*"([\d.hms]+)"'), read_duration),
    (re.compile(r"(?:try again in|reset after) ([\d.hms]*[hms])\b"), read_duration),  # OpenAI, Groq; Google
    (re.compile(r'quotaResetDelay"\s*:\s*"([\d.hms]+)"'), read_duration),
    (re.compile(r'quotaResetTimeStamp"\s*:\s*"([^"]+)"'), None),
)


def error_wait(text: str, until: Callable[[str], float | None] | None = None) -> float | None:
    """Return the seconds after which the text of an error body asks us to come back; None if it does not.

    `until` gives the seconds to a moment: whoever knows no clock is told of spans only.
    """
    for pattern, span in ERROR_WAITS:
        found, read = pattern.search(text), span or until
        wait = read(found[1]) if found and read else None
        if wait:
            return wait
    return None


DONE: Json = {"object": "[DONE]"}  # stands for the sentinel of Chat's streams


def sse_read(chunks: Iterable[bytes], *, ends: bool = False) -> Iterator[Json]:
    """Decode the JSON objects in the `data:` fields of a stream of bytes, cut anywhere.

    Comments and `event:` lines are skipped: every dialect repeats the event name inside the payload;
    so is the `[DONE]` sentinel, unless `ends` asks for DONE in its place. Raises ProxyError("upstream_failed") for what is not JSON.
    """
    for event in sse_split(chunks):
        data = sse_data(event)
        if data and data != b"[DONE]":
            try:
                payload, _ = read_json(data.decode("utf-8"))
            except MALFORMED as exc:
                raise ProxyError("upstream_failed", f"the upstream sent {data[:80]!r}") from exc
            if isinstance(payload, dict):
                yield payload
        elif data and ends:
            yield DONE


########################################################################################
# 3. FACTS                                                                        [pure]
########################################################################################
# What is true of the services, as rows. To add a provider, a model or a word, add a row.


class Words(NamedTuple):
    """One concept in every dialect. A cell lists the names we read; we write the first."""

    canonical: str
    claude: str
    chat: str
    responses: str
    gemini: str


# fmt: off
PARAMS = (  # an empty cell: the dialect has no such plain field. gemini: inside generationConfig
    #     canonical            claude            chat                                responses                   gemini
    Words("max_tokens",        "max_tokens",     "max_completion_tokens max_tokens", "max_output_tokens",        "maxOutputTokens"),
    Words("temperature",       "temperature",    "temperature",                      "temperature",              "temperature"),
    Words("top_p",             "top_p",          "top_p",                            "top_p",                    "topP"),
    Words("top_k",             "top_k",          "",                                 "",                         "topK"),
    Words("stop",              "stop_sequences", "stop",                             "",                         "stopSequences"),
    Words("seed",              "",               "seed",                             "",                         "seed"),
    Words("presence_penalty",  "",               "presence_penalty",                 "",                         "presencePenalty"),
    Words("frequency_penalty", "",               "frequency_penalty",                "",                         "frequencyPenalty"),
    Words("logit_bias",        "",               "logit_bias",                       "",                         ""),
    Words("n",                 "",               "n",                                "",                         "candidateCount"),
    Words("verbosity",         "",               "verbosity",                        "",                         ""),
    Words("user",              "",               "safety_identifier user",           "safety_identifier user",   ""),
    Words("metadata",          "",               "metadata",                         "metadata",                 ""),
    Words("cache_key",         "",               "prompt_cache_key",                 "prompt_cache_key",         ""),
    Words("cache_retention",   "",               "prompt_cache_retention",           "prompt_cache_retention",   ""),
    Words("service_tier",      "",               "service_tier",                     "service_tier",             ""),
    Words("parallel",          "",               "parallel_tool_calls",              "parallel_tool_calls",      ""),
    Words("store",             "",               "store",                            "store",                    ""),
)
FINISH_REASONS = (  # gemini's cells: spec/dialects.md 2.7
    #     canonical         claude                                      chat                        responses            gemini
    Words("stop",           "end_turn stop_sequence pause_turn",        "stop",                     "completed",         "STOP FINISH_REASON_UNSPECIFIED"),
    Words("tool_calls",     "tool_use",                                 "tool_calls function_call", "completed",         "STOP"),
    Words("length",         "max_tokens model_context_window_exceeded", "length",                   "max_output_tokens", "MAX_TOKENS"),
    Words("content_filter", "refusal",                                  "content_filter",           "content_filter",
          "SAFETY RECITATION BLOCKLIST PROHIBITED_CONTENT SPII IMAGE_SAFETY IMAGE_PROHIBITED_CONTENT IMAGE_RECITATION MODEL_ARMOR"),
    Words("error",          "end_turn",                                 "stop error",               "failed",            "OTHER"),
)
EFFORTS = {  # effort -> thinking budget in tokens; -1: the model decides
    "none": 0, "auto": -1, "minimal": 512, "low": 1_024, "medium": 8_192, "high": 24_576, "xhigh": 32_768, "max": 128_000,
}
# fmt: on


def words_read(table: Iterable[Words], dialect: str) -> dict[str, str]:
    """Map each name a dialect uses to its canonical one; the first row to claim a name wins."""
    pairs = [(name, row.canonical) for row in table for name in getattr(row, dialect).split()]
    return dict(reversed(pairs))


def words_write(table: Iterable[Words], dialect: str) -> dict[str, str]:
    """Map each canonical name to the one to write, leaving out what the dialect lacks."""
    return {row.canonical: cell.split()[0] for row in table if (cell := getattr(row, dialect))}


def words_in(cell: str, table: Mapping[str, str]) -> frozenset[str]:
    """Return the words of a cell. Raises KeyError for one that the table does not explain."""
    return frozenset(word for word in cell.split() if table[word])


QUIRKS = {  # what a service does unlike the others of its dialect; most are of OpenAI's Chat Completions
    "max-tokens": "calls the limit of an answer max_tokens",
    "completion-tokens": "calls it max_completion_tokens, and takes neither stops nor sampling hints",
    "system": "knows the role system, but not developer",
    "reasoning-content": "wants its reasoning_content back with the calls that came of it",
    "string-content": "takes the content of a message as a string only",
    "empty-content": "wants an empty string for the content that a message of calls lacks",
    "no-stream-options": "refuses stream_options",
    "custom-tools": "has tools that take free text",
    "no-sampling": "refuses temperature, top_p and top_k",
    "minimal-to-low": "has no effort below low",
    "openapi-schema": "takes the schema of a tool in Gemini's older form only",
    "stream": "answers with streams only",
    "no-call-ids": "knows no ids of calls, and refuses them as unknown fields",
    "no-proofs": "has refused the proofs of thinking in this conversation",
    "no-effort": "has refused to be told how much to think",
    "no-cache-marks": "gets no cache marks but the client's own: its owner wants none",
    "short-ids": "wants ids of calls of nine letters or digits",
    "turn-after-tool": "wants the assistant's turn after the results of tools",
}


class Provider(NamedTuple):
    """One upstream service. Paths follow its base URL; `{model}` is filled in.

    `auth` names the header that carries the credential. `family` are wildcards of the model names
    that it serves though no table lists them yet. `only_streams`: it refuses other calls. `wrapped`:
    requests go in a member `request`, answers come in a member `response`.
    `whole`: the rest of OpenAI's API, as embeddings, is under the same base URL. `others` are base
    URLs to ask when the first one has no room.
    """

    name: str
    dialect: str
    base: str
    generate: str
    stream: str  # empty: as `generate`
    counting: str  # empty: it cannot count tokens
    models: str
    auth: str
    headers: Mapping[str, str]
    family: tuple[str, ...]
    only_streams: bool = False
    quirks: frozenset[str] = frozenset()
    wrapped: bool = False
    whole: bool = False
    others: tuple[str, ...] = ()


# fmt: off
PROVIDERS = {row.name: row for row in (
    #        name                    dialect      base                                         generate, stream, count, models
    Provider("claude",               "claude",    "https://api.anthropic.com",
             "/v1/messages", "", "/v1/messages/count_tokens", "/v1/models?limit=1000",
             "bearer", {"anthropic-version": "2023-06-01"}, ("claude-*",)),
    Provider("codex",                "responses", "https://chatgpt.com/backend-api/codex",
             "/responses", "", "", "",
             "bearer", {"originator": "cliproxy"}, ("gpt-*", "codex-*"), True, words_in("minimal-to-low", QUIRKS)),
    Provider("openai",               "responses", "https://api.openai.com/v1",
             "/responses", "", "/responses/input_tokens", "/models",
             "bearer", {}, ("gpt-*", "o1*", "o3*", "o4*", "codex-*", "chatgpt-*",
                            "text-embedding-*", "whisper-*", "tts-*", "dall-e-*"), whole=True),
    Provider("gemini",               "gemini",    "https://generativelanguage.googleapis.com",
             "/v1beta/models/{model}:generateContent", "/v1beta/models/{model}:streamGenerateContent?alt=sse",
             "/v1beta/models/{model}:countTokens", "/v1beta/models?pageSize=1000",
             "x-goog-api-key", {}, ("gemini-*", "gemma-*", "imagen-*")),
    Provider("vertex",               "gemini",    "https://aiplatform.googleapis.com",
             "/v1/publishers/google/models/{model}:generateContent",
             "/v1/publishers/google/models/{model}:streamGenerateContent?alt=sse",
             "/v1/publishers/google/models/{model}:countTokens", "",
             "x-goog-api-key", {}, ("gemini-*", "imagen-*"), quirks=words_in("no-call-ids", QUIRKS)),
    Provider("gemini-cli",           "gemini",    "https://cloudcode-pa.googleapis.com",
             "/v1internal:generateContent", "/v1internal:streamGenerateContent?alt=sse", "/v1internal:countTokens", "",
             "bearer", {}, ("gemini-*",), wrapped=True),
    Provider("antigravity",          "gemini",    "https://daily-cloudcode-pa.googleapis.com",
             "/v1internal:generateContent", "/v1internal:streamGenerateContent?alt=sse", "/v1internal:countTokens", "",
             "bearer", {}, (), quirks=words_in("stream openapi-schema", QUIRKS), wrapped=True,
             others=("https://cloudcode-pa.googleapis.com",)),
    Provider("openai-compatibility", "chat",      "",
             "/chat/completions", "", "", "/models",
             "bearer", {}, (), whole=True),
    Provider("kimi",                 "chat",      "https://api.kimi.com/coding",
             "/v1/chat/completions", "", "", "/v1/models",
             "bearer", {}, ("kimi-*",), quirks=words_in("max-tokens system reasoning-content", QUIRKS)),
    Provider("kimi-claude",          "claude",    "https://api.kimi.com/coding",
             "/v1/messages", "", "/v1/messages/count_tokens", "",
             "bearer", {"anthropic-version": "2023-06-01"}, ()),
    Provider("qwen",                 "chat",      "https://portal.qwen.ai/v1",
             "/chat/completions", "", "", "/models",
             "bearer", {}, ("qwen*", "coder-model", "vision-model"), quirks=words_in("max-tokens system", QUIRKS)),
    Provider("iflow",                "chat",      "https://apis.iflow.cn/v1",
             "/chat/completions", "", "", "",
             "bearer", {}, (), quirks=words_in("max-tokens system", QUIRKS)),
    Provider("xai",                  "responses", "https://api.x.ai/v1",
             "/responses", "", "", "/models",
             "bearer", {}, ("grok-*",)),
    Provider("openai-chat",          "chat",      "https://api.openai.com/v1",
             "/chat/completions", "", "", "/models",
             "bearer", {}, (), whole=True),
)}
# fmt: on


TRAITS = {
    "text": "reads text only",
    "image": "answers with images too",
    "media": "makes images or videos, and holds no conversation",
    "mid-system": "takes system messages anywhere in a conversation, in Claude's dialect",
    "old": "no longer listed by its provider; tried when somebody asks for it",
}


class Model(NamedTuple):
    """What is known of a model. Zero and empty mean unknown, and nothing is limited by them."""

    id: str
    owner: str = ""
    name: str = ""  # as people call it
    context: int = 0  # tokens
    output: int = 0  # tokens
    budget: tuple[int, int] = (0, 0)  # thinking tokens, least and most
    levels: tuple[str, ...] = ()  # efforts it takes by name
    thinking: bool | None = None  # can it think? None: unknown
    can_stop: bool = True  # can thinking be switched off?
    dynamic: bool = False  # may the model decide how much to think?
    providers: tuple[str, ...] = ()  # who serves it
    traits: frozenset[str] = frozenset()  # words of TRAITS
    plans: tuple[str, ...] = ()  # the ChatGPT plans that include it; empty: all
    created: int = 0  # Unix time


class Target(NamedTuple):
    """What a writer must know of the upstream that it writes for.

    `quirks` are words that dialect rooms test for; the QUIRKS comment beside each test says what
    it changes. `provider` is who mints and takes proofs: claude, codex, gemini, ...
    """

    provider: str
    model: Model
    quirks: frozenset[str] = frozenset()


# fmt: off
OWNERS = {  # of the models of each provider, as lists of models name them
    "claude": "anthropic", "codex": "openai", "openai": "openai", "gemini": "google", "gemini-cli": "google",
    "vertex": "google", "antigravity": "antigravity", "qwen": "qwen", "kimi": "moonshot", "xai": "xai", "iflow": "iflow",
}
SPELLINGS = {  # words of model ids that are not simply capitalised
    "gpt": "GPT", "glm": "GLM", "deepseek": "DeepSeek", "oss": "OSS", "iflow": "iFlow", "minimax": "MiniMax",
}
# fmt: on


def undated(id: str) -> str:
    """Return a model id without the date or `latest` that some end in."""
    return re.sub(r"[-@](?:[0-9]{8}|[0-9]{4}-[0-9]{2}-[0-9]{2}|latest)$", "", id)


def spell(id: str) -> str:
    """Return the name that people use for a model: claude-opus-4-8 is Claude Opus 4.8."""
    words = re.sub(r"(?<=-[0-9])-(?=[0-9](?:-|$))", ".", undated(id)).split("-")
    return " ".join(SPELLINGS.get(word, word[:1].upper() + word[1:]) for word in words)


def as_model(  # noqa: PLR0913 -- an argument a column
    id: str,
    providers: str,
    context: int = 0,
    output: int = 0,
    thinking: str = "",
    levels: str = "",
    *,
    plans: str = "",
    traits: str = "",
    name: str = "",
) -> Model:
    """Read one row of a table of models; cells of several words are split here.

    `thinking` holds the budget as least-most, `off` if it can be switched off, `auto` if the
    model may decide; `-` alone: it does not think. Nothing there nor in `levels`: unknown.
    """
    served = tuple(providers.split())
    words = thinking.split()
    efforts = tuple(levels.split())
    least, _, most = next((word for word in words if word[0] in "0123456789"), "0-0").partition("-")
    thinks = words != ["-"] if words or efforts else None
    return Model(
        id,
        OWNERS[served[0]],
        name or spell(id),
        context,
        output,
        (int(least), int(most)),
        efforts,
        thinks,
        can_stop=not thinks or "off" in words or "none" in efforts,
        dynamic="auto" in words,
        providers=served,
        traits=words_in(traits, TRAITS),
        plans=tuple(plans.split()),
    )


# fmt: off
ANY = "none auto minimal low medium high xhigh"  # of iFlow: all but the first two mean the same
MODEL_ROWS = (  # of several rows with one id the first counts, unless the provider is known. Source: spec/providers.md 14
    #   id, providers, context, output, thinking, levels
    as_model("claude-fable-5",             "claude", 1_000_000, 128_000, "1024-128000 off", "low medium high xhigh max", traits="mid-system"),
    as_model("claude-opus-5",              "claude", 1_000_000, 128_000, "off auto",        "low medium high xhigh max", traits="mid-system"),
    as_model("claude-sonnet-5",            "claude", 1_000_000, 128_000, "off auto",        "low medium high xhigh max", traits="mid-system"),
    as_model("claude-opus-4-8",            "claude", 1_000_000, 128_000, "1024-128000 off", "low medium high xhigh max", traits="mid-system"),
    as_model("claude-opus-4-7",            "claude", 1_000_000, 128_000, "1024-128000 off", "low medium high xhigh max"),
    as_model("claude-opus-4-6",            "claude", 1_000_000, 128_000, "1024-128000 off", "low medium high max"),
    as_model("claude-sonnet-4-6",          "claude", 200_000,   64_000,  "1024-128000 off", "low medium high max"),
    as_model("claude-opus-4-5-20251101",   "claude", 200_000,   64_000,  "1024-128000 off"),
    as_model("claude-sonnet-4-5-20250929", "claude", 200_000,   64_000,  "1024-128000 off"),
    as_model("claude-haiku-4-5-20251001",  "claude", 200_000,   64_000,  "1024-128000 off"),
    as_model("claude-opus-4-1-20250805",   "claude", 200_000,   32_000,  "1024-128000 off"),
    as_model("claude-opus-4-20250514",     "claude", 200_000,   32_000,  "1024-128000 off"),
    as_model("claude-sonnet-4-20250514",   "claude", 200_000,   64_000,  "1024-128000 off"),
    as_model("claude-3-7-sonnet-20250219", "claude", 128_000,   8_192,   "1024-128000 off"),
    as_model("claude-3-5-haiku-20241022",  "claude", 128_000,   8_192,   "-"),
    as_model("claude-3-haiku-20240307",    "claude", 200_000,   4_096,   "-", traits="old"),
    as_model("gpt-5.6-sol",         "codex",        372_000,   128_000, "",  "low medium high xhigh max", plans="team plus"),
    as_model("gpt-5.6-sol",         "codex openai", 921_000,   128_000, "",  "low medium high xhigh max", plans="pro"),
    as_model("gpt-5.6-terra",       "codex",        372_000,   128_000, "",  "low medium high xhigh max", plans="free team plus"),
    as_model("gpt-5.6-terra",       "codex openai", 921_000,   128_000, "",  "low medium high xhigh max", plans="pro"),
    as_model("gpt-5.6-luna",        "codex",        372_000,   128_000, "",  "low medium high xhigh max", plans="free team plus"),
    as_model("gpt-5.6-luna",        "codex openai", 921_000,   128_000, "",  "low medium high xhigh max", plans="pro"),
    as_model("gpt-5.5",             "codex openai", 272_000,   128_000, "",  "low medium high xhigh"),
    as_model("gpt-5.4",             "codex openai", 1_050_000, 128_000, "",  "low medium high xhigh", plans="team plus pro"),
    as_model("gpt-5.4-mini",        "codex openai", 400_000,   128_000, "",  "low medium high xhigh"),
    as_model("gpt-5.3-codex-spark", "codex",        128_000,   128_000, "",  "low medium high xhigh", plans="plus pro", traits="text"),
    as_model("codex-auto-review",   "codex",        272_000,   128_000, "",  "low medium high xhigh"),
    as_model("gpt-image-2",         "codex openai", 0,         0,       "-", plans="team plus pro", traits="media"),
    as_model("gpt-image-1.5",       "codex openai", 0,         0,       "-", plans="team plus pro", traits="media"),
    as_model("gpt-5.3-codex",       "codex",        400_000,   128_000, "",  "low medium high xhigh", traits="old"),
    as_model("gpt-5.2-codex",       "codex",        400_000,   128_000, "",  "low medium high xhigh", traits="old"),
    as_model("gpt-5.2",             "codex",        400_000,   128_000, "",  "none low medium high xhigh", traits="old"),
    as_model("gpt-5.1-codex-max",   "codex",        400_000,   128_000, "",  "low medium high xhigh", traits="old"),
    as_model("gpt-5.1-codex-mini",  "codex",        400_000,   128_000, "",  "low medium high", traits="old"),
    as_model("gpt-5.1-codex",       "codex",        400_000,   128_000, "",  "low medium high", traits="old"),
    as_model("gpt-5.1",             "codex",        400_000,   128_000, "",  "none low medium high", traits="old"),
    as_model("gpt-5-codex-mini",    "codex",        400_000,   128_000, "",  "low medium high", traits="old"),
    as_model("gpt-5-codex",         "codex",        400_000,   128_000, "",  "low medium high", traits="old"),
    as_model("gpt-5",               "codex",        400_000,   128_000, "",  "minimal low medium high", traits="old"),
    as_model("gemini-3.7-flash",               "gemini vertex",            1_048_576, 65_536, "128-65535 auto",     "minimal low medium high"),
    as_model("gemini-3.6-flash",               "gemini vertex",            1_048_576, 65_536, "128-32768 auto",     "minimal low medium high"),
    as_model("gemini-3.5-flash",               "gemini vertex",            1_048_576, 65_536, "128-32768 auto",     "minimal low medium high"),
    as_model("gemini-3.5-flash-lite",          "gemini vertex",            1_048_576, 65_536, "128-32768 auto",     "minimal low medium high"),
    as_model("gemini-3.1-pro-preview",         "gemini gemini-cli",        1_048_576, 65_536, "128-32768 auto",     "low medium high"),
    as_model("gemini-3.1-flash-lite-preview",  "gemini",                   1_048_576, 65_536, "128-32768 auto",     "minimal high"),
    as_model("gemini-3.1-flash-lite-preview",  "gemini-cli",               1_048_576, 65_536, "128-32768 auto",     "minimal low medium high"),
    as_model("gemini-3.1-flash-image-preview", "gemini",                   1_048_576, 65_536, "128-32768 auto",     "minimal high", traits="image"),
    as_model("gemini-3-pro-preview",           "gemini gemini-cli",        1_048_576, 65_536, "128-32768 auto",     "low high"),
    as_model("gemini-3-flash-preview",         "gemini gemini-cli",        1_048_576, 65_536, "128-32768 auto",     "minimal low medium high"),
    as_model("gemini-3-pro-image-preview",     "gemini",                   1_048_576, 65_536, "128-32768 auto",     "low high", traits="image"),
    as_model("gemini-3.1-pro",                 "vertex",                   1_048_576, 65_536, "128-32768 auto",     "low medium high"),
    as_model("gemini-3.1-flash-lite",          "vertex",                   1_048_576, 65_536, "128-32768 auto",     "minimal low medium high"),
    as_model("gemini-3.1-flash-image",         "vertex",                   1_048_576, 65_536, "128-32768 auto",     "minimal high", traits="image"),
    as_model("gemini-3-pro",                   "vertex",                   1_048_576, 65_536, "128-32768 auto",     "low high"),
    as_model("gemini-3-pro-image",             "vertex",                   1_048_576, 65_536, "128-32768 auto",     "low high", traits="image"),
    as_model("gemini-3-flash",                 "vertex",                   1_048_576, 65_536, "128-32768 auto",     "minimal low medium high"),
    as_model("gemini-2.5-pro",                 "gemini gemini-cli vertex", 1_048_576, 65_536, "128-32768 auto"),
    as_model("gemini-2.5-flash",               "gemini gemini-cli vertex", 1_048_576, 65_536, "0-24576 off auto"),
    as_model("gemini-2.5-flash-lite",          "gemini gemini-cli vertex", 1_048_576, 65_536, "0-24576 off auto"),
    as_model("gemini-2.5-flash-image",         "gemini",                   1_048_576, 8_192,  "-", traits="image"),
    as_model("gemini-2.5-flash-image",         "vertex",                   1_048_576, 65_536, "0-24576 off auto", traits="image"),
    as_model("gemini-pro-latest",              "gemini",                   1_048_576, 65_536, "128-32768 auto"),
    as_model("gemini-flash-latest",            "gemini",                   1_048_576, 65_536, "0-24576 off auto"),
    as_model("gemini-flash-lite-latest",       "gemini",                   1_048_576, 65_536, "512-24576 off auto"),
    as_model("imagen-4.0-generate-001",        "vertex",                   0,         0,      "-", traits="media"),
    as_model("imagen-4.0-ultra-generate-001",  "vertex",                   0,         0,      "-", traits="media"),
    as_model("imagen-4.0-fast-generate-001",   "vertex",                   0,         0,      "-", traits="media"),
    as_model("imagen-3.0-generate-002",        "vertex",                   0,         0,      "-", traits="media"),
    as_model("imagen-3.0-fast-generate-001",   "vertex",                   0,         0,      "-", traits="media"),
    as_model("claude-opus-4-6-thinking",   "antigravity", 200_000,   64_000, "1024-64000 off auto"),
    as_model("claude-sonnet-4-6",          "antigravity", 200_000,   64_000, "1024-64000 off auto"),
    as_model("claude-opus-4-5-thinking",   "antigravity", 0,         64_000, "1024-128000 off auto", traits="old"),
    as_model("claude-sonnet-4-5-thinking", "antigravity", 0,         64_000, "1024-128000 off auto", traits="old"),
    as_model("claude-sonnet-4-5",          "antigravity", 0,         64_000, "-", traits="old"),
    as_model("gemini-pro-agent",           "antigravity", 1_048_576, 65_535, "1-65535 auto",         "low medium high", name="Gemini 3.1 Pro (High)"),
    as_model("gemini-3.1-pro-low",         "antigravity", 1_048_576, 65_535, "1-65535 auto",         "low medium high"),
    as_model("gemini-3.7-flash-high",      "antigravity", 1_048_576, 65_536, "1-65535 auto",         "minimal low medium high"),
    as_model("gemini-3.6-flash-high",      "antigravity", 1_048_576, 65_536, "1-65535 auto",         "minimal low medium high"),
    as_model("gemini-3-flash-agent",       "antigravity", 1_048_576, 65_536, "128-32768 auto",       "minimal low medium high", name="Gemini 3.5 Flash (High)"),
    as_model("gemini-3.5-flash-low",       "antigravity", 1_048_576, 65_535, "1-65535 auto",         "low medium high", name="Gemini 3.5 Flash (Medium)"),
    as_model("gemini-3.5-flash-extra-low", "antigravity", 1_048_576, 65_535, "1-65535 auto",         "low medium high", name="Gemini 3.5 Flash (Low)"),
    as_model("gemini-3-flash",             "antigravity", 1_048_576, 65_536, "128-32768 auto",       "minimal low medium high"),
    as_model("gemini-3.1-flash-lite",      "antigravity", 1_048_576, 65_535, "1-65535 off auto",     "minimal low medium high"),
    as_model("gemini-3.1-flash-image",     "antigravity", 0,         0,      "128-32768 auto",       "minimal high", traits="image"),
    as_model("gemini-3-pro-high",          "antigravity", 1_048_576, 65_536, "128-32768 auto",       "low high", traits="old"),
    as_model("gemini-3-pro-image",         "antigravity", 1_048_576, 65_536, "128-32768 auto",       "low high", traits="image old"),
    as_model("gemini-2.5-flash",           "antigravity", 1_048_576, 65_536, "0-24576 off auto", traits="old"),
    as_model("gemini-2.5-flash-lite",      "antigravity", 1_048_576, 65_536, "0-24576 off auto", traits="old"),
    as_model("gpt-oss-120b-medium",        "antigravity", 114_000,   32_768, "-"),
    as_model("tab_flash_lite_preview",     "antigravity", 0,         0,      "-", traits="old"),
    as_model("rev19-uic3-1p",              "antigravity", traits="old"),
    as_model("coder-model",       "qwen", 1_048_576, 65_536, "-", name="Qwen 3.6 Plus"),
    as_model("qwen3-coder-plus",  "qwen", 32_768,    8_192,  "-", traits="old"),
    as_model("qwen3-coder-flash", "qwen", 8_192,     2_048,  "-", traits="old"),
    as_model("vision-model",      "qwen", 32_768,    2_048,  "-", traits="old", name="Qwen3 Vision Model"),
    as_model("kimi-k3",                  "kimi", 1_048_576, 65_536, "",    "low high max"),
    as_model("kimi-k3-256k",             "kimi", 262_144,   65_536, "",    "low high max"),
    as_model("kimi-k2.7-code",           "kimi", 262_144,   65_536, "",    "low high"),
    as_model("kimi-k2.7-code-highspeed", "kimi", 262_144,   65_536, "",    "low high"),
    as_model("kimi-k2.6",                "kimi", 262_144,   65_536, "off", "low high"),
    as_model("kimi-k2.5",                "kimi", 262_144,   32_768, "off", "low high"),
    as_model("kimi-k2-thinking",         "kimi", 131_072,   32_768, "off", "low high"),
    as_model("kimi-k2",                  "kimi", 131_072,   32_768, "-"),
    as_model("grok-4.6",                       "xai", 500_000,   65_536,  "",    "low medium high xhigh"),
    as_model("grok-4.5",                       "xai", 500_000,   65_536,  "",    "low medium high"),
    as_model("grok-4.3",                       "xai", 1_000_000, 65_536,  "off", "none low medium high"),
    as_model("grok-4.20-0309-reasoning",       "xai", 2_000_000, 65_536,  "-"),
    as_model("grok-4.20-0309-non-reasoning",   "xai", 2_000_000, 65_536,  "-"),
    as_model("grok-4.20-multi-agent-0309",     "xai", 2_000_000, 65_536,  "",    "low medium high"),
    as_model("grok-build-0.1",                 "xai", 256_000,   256_000, "-"),
    as_model("grok-3-mini",                    "xai", 131_072,   32_768,  "",    "low medium high", traits="text"),
    as_model("grok-3-mini-fast",               "xai", 131_072,   32_768,  "",    "low medium high", traits="text"),
    as_model("grok-composer-2.5-fast",         "xai", 200_000,   32_768,  "-", name="Composer 2.5 Fast"),
    as_model("grok-imagine-image",             "xai", 0,         0,       "-", traits="media"),
    as_model("grok-imagine-image-quality",     "xai", 0,         0,       "-", traits="media"),
    as_model("grok-imagine-image-2.0",         "xai", 0,         0,       "-", traits="media"),
    as_model("grok-imagine-video",             "xai", 0,         0,       "-", traits="media"),
    as_model("grok-imagine-video-1.5",         "xai", 0,         0,       "-", traits="media"),
    as_model("grok-imagine-video-1.5-preview", "xai", 0,         0,       "-", traits="media"),
    as_model("qwen3-max-preview",             "iflow", 0, 0, "off auto", ANY),
    as_model("glm-4.6",                       "iflow", 0, 0, "off auto", ANY),
    as_model("glm-4.7",                       "iflow", 0, 0, "off auto", ANY, traits="old"),
    as_model("deepseek-v3.2",                 "iflow", 0, 0, "off auto", ANY),
    as_model("deepseek-v3.1",                 "iflow", 0, 0, "off auto", ANY),
    as_model("minimax-m2",                    "iflow", 0, 0, "off auto", ANY, traits="old"),
    as_model("minimax-m2.1",                  "iflow", 0, 0, "off auto", ANY, traits="old"),
    as_model("kimi-k2.5",                     "iflow", 0, 0, "off auto", ANY, traits="old"),
    as_model("tstars2.0",                     "iflow", traits="old"),
    as_model("qwen3-coder-plus",              "iflow"),
    as_model("qwen3-max",                     "iflow"),
    as_model("qwen3-vl-plus",                 "iflow"),
    as_model("kimi-k2-0905",                  "iflow", traits="old"),
    as_model("kimi-k2",                       "iflow"),
    as_model("kimi-k2-thinking",              "iflow", traits="old"),
    as_model("deepseek-v3.2-chat",            "iflow", traits="old"),
    as_model("deepseek-v3.2-reasoner",        "iflow", traits="old"),
    as_model("deepseek-r1",                   "iflow"),
    as_model("deepseek-v3",                   "iflow"),
    as_model("qwen3-32b",                     "iflow"),
    as_model("qwen3-235b-a22b-thinking-2507", "iflow"),
    as_model("qwen3-235b-a22b-instruct",      "iflow"),
    as_model("qwen3-235b",                    "iflow"),
    as_model("iflow-rome-30ba3b",             "iflow"),
)
FAMILIES = (  # what to assume of an id that has no row: the first match counts; limits stay unknown
    as_model("claude-2*",         "claude",                   0, 0, "-", traits="old"),
    as_model("claude-instant*",   "claude",                   0, 0, "-", traits="old"),
    as_model("claude-3-7-*",      "claude",                   0, 0, "1024-128000 off", traits="old"),
    as_model("claude-3-*",        "claude",                   0, 0, "-", traits="old"),
    as_model("claude-*-4-0",      "claude",                   0, 0, "1024-128000 off"),
    as_model("claude-*",          "claude",                   0, 0, "off auto",           "low medium high xhigh max", traits="mid-system"),
    as_model("gpt-3*",            "openai",                   0, 0, "-"),
    as_model("gpt-4*",            "openai",                   0, 0, "-"),
    as_model("gpt-5*-chat*",      "codex",                    0, 0, "-"),
    as_model("gpt-image*",        "codex",                    0, 0, "-", traits="media"),
    as_model("gpt-5-pro*",        "codex",                    0, 0, "",                   "high"),
    as_model("gpt-5-codex*",      "codex",                    0, 0, "",                   "low medium high"),
    as_model("gpt-5-*",           "codex",                    0, 0, "",                   "minimal low medium high"),
    as_model("gpt-5.1*",          "codex",                    0, 0, "",                   "low medium high"),
    as_model("gpt-oss*",          "openai",                   0, 0, "",                   "low medium high", traits="text"),
    as_model("gpt-*",             "codex",                    0, 0, "",                   "low medium high xhigh"),
    as_model("o1*",               "openai",                   0, 0, "",                   "low medium high"),
    as_model("o3*",               "openai",                   0, 0, "",                   "low medium high"),
    as_model("o4*",               "openai",                   0, 0, "",                   "low medium high"),
    as_model("gemini-1*",         "gemini vertex",            0, 0, "-"),
    as_model("gemini-2.0*",       "gemini vertex",            0, 0, "-"),
    as_model("gemini-2.5-pro*",   "gemini gemini-cli vertex", 0, 0, "128-32768 auto"),
    as_model("gemini-2.5-flash*", "gemini gemini-cli vertex", 0, 0, "512-24576 off auto"),
    as_model("gemini-3-pro*",     "gemini gemini-cli vertex", 0, 0, "128-32768 auto",     "low high"),
    as_model("gemini-*-pro*",     "gemini gemini-cli vertex", 0, 0, "128-32768 auto",     "low medium high"),
    as_model("gemini-*-flash*",   "gemini gemini-cli vertex", 0, 0, "128-32768 auto",     "minimal low medium high"),
    as_model("gemini-*",          "gemini gemini-cli vertex"),
    as_model("imagen-*",          "vertex",                   0, 0, "-", traits="media"),
    as_model("kimi-*",            "kimi",                     0, 0, "off",                "low high"),
    as_model("grok-*",            "xai"),
)
# fmt: on
MODEL_INDEX = {  # (provider or empty, id with or without its date) -> model
    (provider, name): model
    for model in reversed(MODEL_ROWS)  # so that the first one stays
    for name in (undated(model.id), model.id)
    for provider in (*model.providers, "")
}
MODELS = {model.id: MODEL_INDEX["", model.id]._replace(id=model.id) for model in MODEL_ROWS}


@functools.lru_cache(maxsize=1024)
def model_row(id: str, provider: str = "") -> Model:
    """Return what is known of a model, under the id asked for.

    Looked up among those of `provider` first, with the date its id ends in or without; failing
    that its family tells a little, and of the others nothing is known.
    """
    keys = ((who, name) for who in (provider, "") for name in (id, undated(id)))
    found = next((MODEL_INDEX[key] for key in keys if key in MODEL_INDEX), None)
    if found:
        return found._replace(id=id)
    family = next((model for model in FAMILIES if wildcard(model.id, id)), None)
    return family._replace(id=id, name=spell(id)) if family else Model(id)


def models_of(provider: str, plan: str = "") -> dict[str, Model]:
    """Return the models that a provider lists, by id. A plan we do not know gets those of pro."""
    plan = plan if plan in {"free", "team", "plus"} else "pro"
    return {
        model.id: model
        for model in MODEL_ROWS
        if provider in model.providers
        and "old" not in model.traits
        and (not model.plans or plan in model.plans)
    }


class Effort(NamedTuple):
    """How much to think, as said in a model's name: the first two fields of Thinking."""

    effort: str = ""  # a key of EFFORTS
    budget: int | None = None  # tokens


def split_suffix(name: str) -> tuple[str, Effort | None]:
    """Take `model(high)` or `model(8192)` apart: what is in the last parentheses is the effort.

    What is no effort stays part of the name. Source: spec/providers.md 13.
    """
    base, _, word = name.rpartition("(")
    word = {"-1": "auto", "0": "none"}.get(word[:-1].lower(), word[:-1].lower())
    if not base or not name.endswith(")"):
        return name, None
    if word in EFFORTS:
        return base, Effort(word)
    if re.fullmatch("[0-9]{1,9}", word):
        return base, Effort(budget=int(word))
    return name, None


# fmt: off
VARIANTS = {  # endings that people put on a model's name; some real names end so, too
    "-minimal": "minimal", "-low": "low", "-medium": "medium", "-high": "high", "-xhigh": "xhigh", "-thinking": "high",
}
# fmt: on


def effort_variant(name: str, known: Collection[str]) -> tuple[str, Effort | None]:
    """Take `gpt-5-high` apart, if `gpt-5` is in a table or `known`, and the whole is not `known`.

    Source: spec/providers.md 13.
    """
    ending = next((ending for ending in VARIANTS if name.endswith(ending)), "")
    base = name[: len(name) - len(ending)]
    if not ending or name in known:
        return name, None
    in_table = ("", base.rpartition("/")[2]) in MODEL_INDEX
    if in_table or base in known or base in {undated(model) for model in known}:
        return base, Effort(VARIANTS[ending])
    return name, None


class Preset(NamedTuple):
    """A service with an API like OpenAI's, so that its name in the config is enough."""

    base: str
    keys: tuple[str, ...]  # the environment variables its key may be in
    quirks: frozenset[str]  # words of QUIRKS


MODEL_QUIRKS = (  # names of models -> what these want of any host
    (re.compile(r"(^|/)(gpt-5|o[134]\b)"), words_in("completion-tokens", QUIRKS)),
    (
        re.compile(r"(^|[/:])(open-)?(mis|mix|minis|magis|codes|devs|pix|vox)tral", re.IGNORECASE),
        words_in("short-ids turn-after-tool", QUIRKS),
    ),
)


def model_quirks(model: str) -> frozenset[str]:
    """Return the quirks that a model of Chat Completions has wherever it is served."""
    return frozenset().union(*(quirks for pattern, quirks in MODEL_QUIRKS if pattern.search(model)))


# fmt: off
PRESET_ROWS = {  # `unverified` stands where we know no more than that such services usually are so
    # name               base                                                variables of the key             quirks
    "openai":           ("https://api.openai.com/v1",                         "OPENAI_API_KEY",                "custom-tools"),
    "openrouter":       ("https://openrouter.ai/api/v1",                      "OPENROUTER_API_KEY",            "max-tokens system"),
    "deepseek":         ("https://api.deepseek.com/v1",                       "DEEPSEEK_API_KEY",              "max-tokens system reasoning-content"),
    "groq":             ("https://api.groq.com/openai/v1",                    "GROQ_API_KEY",                  "system"),
    "mistral":          ("https://api.mistral.ai/v1",                         "MISTRAL_API_KEY",               "max-tokens system no-stream-options"),
    "zai":              ("https://api.z.ai/api/paas/v4",                      "ZAI_API_KEY",                   "max-tokens system reasoning-content"),
    "zai-coding":       ("https://api.z.ai/api/coding/paas/v4",               "ZAI_API_KEY",                   "max-tokens system reasoning-content"),
    "glm":              ("https://open.bigmodel.cn/api/paas/v4",              "ZHIPU_API_KEY ZHIPUAI_API_KEY", "max-tokens system reasoning-content"),
    "moonshot":         ("https://api.moonshot.ai/v1",                        "MOONSHOT_API_KEY",              "max-tokens system reasoning-content"),
    "moonshot-cn":      ("https://api.moonshot.cn/v1",                        "MOONSHOT_API_KEY",              "max-tokens system reasoning-content"),
    "together":         ("https://api.together.xyz/v1",                       "TOGETHER_API_KEY",              "max-tokens system"),
    "fireworks":        ("https://api.fireworks.ai/inference/v1",             "FIREWORKS_API_KEY",             "max-tokens system"),
    "cerebras":         ("https://api.cerebras.ai/v1",                        "CEREBRAS_API_KEY",              "system"),
    "xai":              ("https://api.x.ai/v1",                               "XAI_API_KEY",                   "system"),
    "perplexity":       ("https://api.perplexity.ai",                         "PERPLEXITY_API_KEY",            "max-tokens system"),
    "nvidia":           ("https://integrate.api.nvidia.com/v1",               "NVIDIA_API_KEY",                "max-tokens system"),
    "siliconflow":      ("https://api.siliconflow.com/v1",                    "SILICONFLOW_API_KEY",           "max-tokens system"),
    "siliconflow-cn":   ("https://api.siliconflow.cn/v1",                     "SILICONFLOW_API_KEY",           "max-tokens system"),
    "dashscope":        ("https://dashscope-intl.aliyuncs.com/compatible-mode/v1", "DASHSCOPE_API_KEY",        "max-tokens system"),
    "dashscope-cn":     ("https://dashscope.aliyuncs.com/compatible-mode/v1", "DASHSCOPE_API_KEY",             "max-tokens system"),
    "minimax":          ("https://api.minimax.io/v1",                         "MINIMAX_API_KEY",               "system"),
    "minimax-cn":       ("https://api.minimaxi.com/v1",                       "MINIMAX_API_KEY",               "system"),
    "github":           ("https://models.github.ai/inference",                "GITHUB_TOKEN",                  "max-tokens system"),  # unverified: quirks
    "novita":           ("https://api.novita.ai/openai/v1",                   "NOVITA_API_KEY",                "max-tokens system"),  # unverified: quirks
    "deepinfra":        ("https://api.deepinfra.com/v1/openai",               "DEEPINFRA_API_KEY",             "max-tokens system"),  # unverified: quirks
    "huggingface":      ("https://router.huggingface.co/v1",                  "HF_TOKEN",                      "max-tokens system"),  # unverified: quirks
    "sambanova":        ("https://api.sambanova.ai/v1",                       "SAMBANOVA_API_KEY",             "max-tokens system"),  # unverified: quirks
    "cohere":           ("https://api.cohere.ai/compatibility/v1",            "COHERE_API_KEY CO_API_KEY",     "max-tokens"),  # unverified: quirks
    "gemini":           ("https://generativelanguage.googleapis.com/v1beta/openai", "GEMINI_API_KEY",          "system"),  # unverified: quirks
    "ollama":           ("http://127.0.0.1:11434/v1",                         "",                              "max-tokens system"),
    "ollama-cloud":     ("https://ollama.com/v1",                             "OLLAMA_API_KEY",                "max-tokens system"),
    "vllm":             ("http://127.0.0.1:8000/v1",                          "VLLM_API_KEY",                  "system"),
    "sglang":           ("http://127.0.0.1:30000/v1",                         "",                              "system"),  # unverified: quirks
    "lmstudio":         ("http://127.0.0.1:1234/v1",                          "",                              "max-tokens system"),
    "llamacpp":         ("http://127.0.0.1:8080/v1",                          "LLAMA_API_KEY",                 "max-tokens system"),
    "litellm":          ("http://127.0.0.1:4000/v1",                          "LITELLM_API_KEY LITELLM_MASTER_KEY", ""),
}
PRESET_NAMES = {  # other names of these
    "kimi": "moonshot", "zhipu": "glm", "z.ai": "zai", "qwen": "dashscope", "github-models": "github", "grok": "xai",
    "lm-studio": "lmstudio", "llama.cpp": "llamacpp",
}
PRESETS = {
    name: Preset(base, tuple(keys.split()), words_in(quirks, QUIRKS)) for name, (base, keys, quirks) in PRESET_ROWS.items()
}
PRESETS.update({name: PRESETS[same] for name, same in PRESET_NAMES.items()})
LARGE = (
    "claude-opus-* gpt-5.6-sol gpt-5.5 gemini-pro-agent gemini-3.1-pro* gemini-3-pro-preview gemini-3-pro gemini-2.5-pro"
    " kimi-k3 grok-4.6 grok-4.5"
)
MEDIUM = (
    "claude-sonnet-* gpt-5.6-terra gpt-5.5 gemini-3.7-flash* gemini-3.1-pro* gemini-3.6-flash* gemini-3-flash*"
    " gemini-2.5-pro kimi-k3 grok-4.5"
)
SMALL = (
    "claude-haiku-* gpt-5.6-luna gpt-5.4-mini gemini-3.5-flash-lite gemini-3.1-flash-lite* gemini-3-flash* gemini-2.5-flash"
    " grok-3-mini-fast"
)
OTHERS = "gpt-5* gemini-*-flash kimi-* grok-4* glm-* deepseek-* qwen3* minimax-* coder-model claude-*"  # better than nothing
KIN_ROWS = (  # for a model that no account lists: those of its vendor to try, the nearest first; a wildcard is the highest version
    ("claude-*opus*",          "claude-opus-* claude-sonnet-* claude-*"),
    ("claude-*haiku*",         "claude-haiku-* claude-*-haiku-* claude-sonnet-* claude-*"),
    ("claude-*",               "claude-sonnet-* claude-*"),
    ("gpt-*-nano",             "gpt-*-nano gpt-*-luna gpt-*-mini"),
    ("gpt-*-mini",             "gpt-*-luna gpt-*-mini"),
    ("gemini-*-flash-lite*",   "gemini-*-flash-lite* gemini-*-flash gemini-*-flash*"),
    ("gemini-*-flash*",        "gemini-*-flash gemini-*-flash-preview* gemini-*-flash*"),
    ("gemini-3-pro-preview",   "gemini-3.1-pro-preview gemini-3-pro gemini-3.1-pro"),
    ("gemini-3.1-pro-preview", "gemini-3-pro-preview gemini-3.1-pro gemini-pro-agent"),
    ("gemini-*-pro*",          "gemini-pro-agent gemini-3.1-pro* gemini-3-pro-preview gemini-3-pro gemini-*-pro* gemini-*-flash"),
)
KIN = tuple((name, tuple(cell.split())) for name, cell in KIN_ROWS)
UNASKED_ROWS = (  # what clients ask for unasked, and cannot be told otherwise: models of other vendors may take its place
    # User-Agent      name                    those to try, best first. Source: spec/clients.md; amp is known by its paths
    ("claude-cli/*", "claude-*opus*",        f"{LARGE} {OTHERS}"),
    ("claude-cli/*", "claude-*sonnet*",      f"{MEDIUM} {LARGE} {OTHERS}"),
    ("claude-cli/*", "claude-*haiku*",       f"{SMALL} {OTHERS}"),
    ("geminicli*",   "gemini-*-flash*",      SMALL),
    ("geminicli*",   "gemini-*-pro*",        f"{LARGE} {OTHERS}"),
    ("amp",          "claude-*haiku*",       f"{SMALL} {OTHERS}"),
    ("amp",          "claude-*opus*",        f"{LARGE} {OTHERS}"),
    ("amp",          "claude-*sonnet*",      f"{MEDIUM} {LARGE} {OTHERS}"),
    ("amp",          "gpt-*-nano",           SMALL),
    ("amp",          "gpt-*-mini",           SMALL),
    ("amp",          "gemini-*-flash*",      SMALL),
    ("amp",          "gemini-*-pro*",        f"{LARGE} {OTHERS}"),
)
UNASKED = tuple((client, name, tuple(cell.split())) for client, name, cell in UNASKED_ROWS)
# fmt: on


def by_version(name: str) -> list[tuple[bool, int, str]]:
    """Return a sort key that counts the numbers in a name as numbers: 4.10 is above 4.9."""
    words = re.split("([0-9]+)", undated(name))
    return [(word.isdecimal(), int(word) if word.isdecimal() else 0, word) for word in words]


def stand_ins(name: str, client: str, wanted: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield wildcards of what may take the place of a model that nobody serves, the best first.

    What the owner wants, the setting `model-fallbacks`, of which the closest pattern counts first;
    models of the same vendor; then what `client`, by its User-Agent in lower case, asks for unasked.
    An empty list of the owner's ends it.
    """
    rules = (rule for rule in wanted if wildcard(rule, name))
    for rule in sorted(rules, key=lambda rule: (rule != name, -len(rule))):
        if not wanted[rule]:
            return
        yield from wanted[rule]
    for rule, choices in KIN:
        if wildcard(rule, name):
            yield from choices
    for who, rule, choices in UNASKED:
        if wildcard(who, client) and wildcard(rule, name):
            yield from choices


def stand_in_for(
    name: str, available: Collection[str], client: str, wanted: Mapping[str, Sequence[str]]
) -> str | None:
    """Return the available model that takes the place of `name`, None if none may."""
    for choice in stand_ins(name, client, wanted):
        found = [model for model in available if wildcard(choice, model)]
        if found:
            return max(found, key=by_version)
    return None


########################################################################################
# 4. CONVERSATION                                                                 [pure]
########################################################################################
# The one model between all dialects: a Request of Messages of Parts going in, Events coming out.
# Readers keep these promises, so that writers stay dumb (spec/dialects.md 5.2):
#   - parts are numbered 0, 1, 2, ... over all choices, and those of one choice never overlap;
#   - a call starts with its full name and a unique id; its deltas join to its arguments as text;
#   - a proof comes whole, before the end of its part; no part is empty, save one with a proof or a call;
#   - MessageStart is first; MessageEnd comes once a choice; Usage is a snapshot, and the last one counts.

EMPTY: Json = {}  # the `extra` of what has none; never written to


class Media(NamedTuple):
    """An image, audio, video or document, and where its bytes are."""

    kind: str  # image, audio, video, document
    source: str  # base64, url, file_id, text
    data: str  # what `source` says
    mime: str = ""
    name: str = ""  # file name or title
    detail: str = ""  # low, high, auto


class Citation(NamedTuple):
    """A source that a text part refers to; `start` and `end` are code points in that part."""

    url: str = ""
    title: str = ""
    start: int = 0
    end: int = 0
    text: str = ""  # the cited words of the source
    extra: Mapping[str, Any] = EMPTY  # {dialect: the citation as it came}


class Part(NamedTuple):
    """One piece of a message. Which fields count depends on `kind`.

    text: text, citations. media: media; parts, what else a document holds. thinking: text, proof.
    refusal: text. opaque: extra; with a name, and a namespace, it stands for that tool.
    call: id, name, text (its arguments: JSON, or free text when `custom`). result: id (of the
    call), name, parts, error. hosted: id, name, text (arguments), a call that the upstream itself
    ran; `hosted_result`: what it returned, id as the call's. `extra[dialect]` holds the fields of
    that dialect's object that have no name here; of hosted and opaque parts the whole object.
    """

    kind: str
    text: str = ""
    id: str = ""
    name: str = ""
    parts: tuple[Part, ...] = ()
    media: Media | None = None
    proof: str = ""  # signature, encrypted content or thought signature: goes back untouched
    redacted: bool = False  # of thinking: the proof is all there is
    error: bool = False  # of a result
    custom: bool = False  # of a call or result: free text instead of JSON
    namespace: str = ""  # of a call
    citations: tuple[Citation, ...] = ()
    cache: str = ""  # a cache breakpoint ends here: 5m or 1h
    extra: Mapping[str, Json] = EMPTY


class Message(NamedTuple):
    """One turn on the wire. A tool message has the role tool and result parts."""

    role: str  # system, developer, user, assistant, tool
    parts: tuple[Part, ...]
    extra: Mapping[str, Json] = EMPTY


class Tool(NamedTuple):
    """A tool that the model may call. `hosted` ones are run by the upstream itself."""

    name: str  # hosted: web_search, web_fetch, code_execution, or the dialect's own word
    description: str = ""
    schema: Json | None = None  # JSON Schema of the arguments; None: it takes none
    kind: str = "function"  # function, custom, hosted
    strict: bool | None = None
    grammar: Json | None = None  # of a custom tool: {syntax, definition}
    namespace: str = ""
    cache: str = ""
    extra: Mapping[str, Json] = EMPTY


class ToolChoice(NamedTuple):
    """`mode` is auto, none or required; `names` narrows it to these tools."""

    mode: str
    names: tuple[str, ...] = ()


class Format(NamedTuple):
    """The form the answer's text must have: any JSON (`json`), or that of a schema (`schema`)."""

    kind: str
    name: str = ""
    schema: Json | None = None
    strict: bool | None = None
    description: str = ""


class Thinking(NamedTuple):
    """How much to think: by name or in tokens, as the client said it; and how much to show."""

    effort: str = ""  # a key of EFFORTS, empty if not said
    budget: int | None = None  # tokens
    summary: str = ""  # shown: auto, detailed, concise; omitted; empty if not said
    adaptive: bool = False  # Claude's {"type": "adaptive"}


class Request(NamedTuple):
    """What a client asked for, whichever dialect it asked in."""

    dialect: str
    model: str
    messages: tuple[Message, ...]
    system: tuple[Part, ...] = ()  # the leading system or developer texts only
    tools: tuple[Tool, ...] = ()
    choice: ToolChoice | None = None
    params: Mapping[str, Any] = EMPTY  # canonical names of PARAMS; `stop` is a list
    thinking: Thinking = Thinking()
    format: Format | None = None
    stream: bool = False
    extra: Mapping[str, Json] = EMPTY
    id: str = ""  # random hex, set by SERVER: seeds every id that nobody else gives
    created: int = 0  # Unix time, set by SERVER


class MessageStart(NamedTuple):
    """The answer begins. Empty fields: the upstream did not say."""

    id: str
    model: str
    created: int = 0
    usage: Usage | None = None  # what is known of it already


class PartStart(NamedTuple):
    """A part begins: its kind, ids and name; its body comes in deltas."""

    at: int  # number of the part
    part: Part
    choice: int = 0


class PartDelta(NamedTuple):
    """More of the open part. Most are `text`, which appends to Part.text, whatever the kind.

    The others: `proof` (str, whole), `citation` (Citation), `logprobs` (list, OpenAI's form),
    `extra` ({dialect: {...}}, replaces the part's).
    """

    at: int
    field: str
    value: Any


class PartEnd(NamedTuple):
    at: int


class Usage(NamedTuple):
    """Tokens so far. `input` includes both cache numbers, `output` includes `reasoning`."""

    input: int = 0
    cache_read: int = 0
    cache_write: int = 0
    output: int = 0
    reasoning: int = 0
    extra: Mapping[str, Json] = EMPTY


class MessageEnd(NamedTuple):
    """A choice is complete. `finish` is a canonical name of FINISH_REASONS."""

    finish: str
    stop_sequence: str = ""
    raw: str = ""  # the upstream's own word
    choice: int = 0
    extra: Mapping[str, Json] = EMPTY


Event = Union[MessageStart, PartStart, PartDelta, PartEnd, Usage, MessageEnd]
Events = Generator[Event, None, None]  # a Generator, not an Iterator: it can be closed


class Choice(NamedTuple):
    """One complete alternative of an answer."""

    parts: tuple[Part, ...]
    end: MessageEnd
    logprobs: tuple[Json, ...] = ()


class Response(NamedTuple):
    """A complete answer, collected from its events."""

    start: MessageStart
    choices: tuple[Choice, ...]
    usage: Usage | None = None


def part_with(part: Part, delta: PartDelta) -> Part:
    """Return `part` with a delta other than text or logprobs applied."""
    if delta.field == "citation":
        return part._replace(citations=(*part.citations, delta.value))
    return part._replace(**{delta.field: delta.value})


def collect(events: Iterable[Event]) -> Response:
    """Fold the events of one answer. Raises the reader's ProxyError if it broke off."""
    start, usage = MessageStart("", ""), None
    open_parts: dict[int, tuple[int, Part]] = {}  # part number -> its choice, and itself
    texts: dict[int, list[str]] = {}
    logprobs: dict[int, list[Json]] = {}
    ends: dict[int, MessageEnd] = {}
    for event in events:
        if isinstance(event, PartDelta):
            choice, part = open_parts[event.at]
            if event.field == "text":
                texts[event.at].append(event.value)
            elif event.field == "logprobs":
                logprobs.setdefault(choice, []).extend(event.value)
            else:
                open_parts[event.at] = choice, part_with(part, event)
        elif isinstance(event, PartStart):
            open_parts[event.at], texts[event.at] = (event.choice, event.part), [event.part.text]
        elif isinstance(event, MessageStart):
            start = event._replace(usage=None)  # all of it is known at the end
        elif isinstance(event, Usage):
            usage = event
        elif isinstance(event, MessageEnd):
            ends[event.choice] = event
    parts: dict[int, list[Part]] = {}
    for at, (choice, part) in open_parts.items():
        parts.setdefault(choice, []).append(part._replace(text="".join(texts[at])))
    choices = [
        Choice(tuple(parts.get(number, ())), end, tuple(logprobs.get(number, ())))
        for number, end in sorted(ends.items())
    ]
    return Response(start, tuple(choices), usage)


def part_events(at: int, part: Part, choice: int = 0) -> Iterator[Event]:
    """Yield the events of a part that arrived whole."""
    yield PartStart(at, part._replace(text="", proof="", citations=()), choice)
    if part.text:
        yield PartDelta(at, "text", part.text)
    for citation in part.citations:
        yield PartDelta(at, "citation", citation)
    if part.proof:
        yield PartDelta(at, "proof", part.proof)
    yield PartEnd(at)


def response_events(response: Response) -> Iterator[Event]:
    """Yield the events of a collected answer again; logprobs come with the first text."""
    yield response.start._replace(usage=response.usage)
    numbers = itertools.count()
    for choice in response.choices:
        logprobs = list(choice.logprobs)
        for part, at in zip(choice.parts, numbers):
            *begin, end = part_events(at, part, choice.end.choice)
            yield from begin
            if logprobs and part.kind == "text":
                yield PartDelta(at, "logprobs", logprobs)
                logprobs = []
            yield end
        yield choice.end
    if response.usage:
        yield response.usage


class Turn(NamedTuple):
    """Adjacent messages of one side, joined. On the user's side results come first."""

    role: str  # user or assistant; system for one that stands in mid-conversation
    parts: tuple[Part, ...]


SIDES = {"assistant": "assistant", "system": "system", "developer": "system"}  # else user


def turns(messages: Iterable[Message]) -> list[Turn]:
    """Join messages into alternating turns, as Claude and Gemini want them."""
    joined: list[Turn] = []
    for message in messages:
        side = SIDES.get(message.role, "user")
        if joined and joined[-1].role == side:
            joined[-1] = Turn(side, joined[-1].parts + message.parts)
        else:
            joined.append(Turn(side, message.parts))
    return [
        Turn(turn.role, tuple(sorted(turn.parts, key=lambda p: p.kind != "result")))
        if turn.role == "user"
        else turn
        for turn in joined
    ]


def text_of(parts: Iterable[Part], joint: str = "\n") -> str:
    """Join the texts among `parts`; other kinds are left out."""
    return joint.join(part.text for part in parts if part.kind == "text")


# The `extra` of what a dialect reads holds what the model has no name for, and notes on the form
# it had: keys that begin with `_`, never written. `_gone` are keys that the writer must not add.


def filled(**fields: Any) -> Json:
    """Return the fields that say something."""
    return {key: value for key, value in fields.items() if value not in (None, "", [], {})}


def extra_of(dialect: str, rest: Json) -> Mapping[str, Json]:
    return {dialect: rest} if rest else EMPTY


def rest_of(wire: Json, written: Json) -> Json:
    """Return what `restored` needs to make `wire` of what the writer would write, at any depth."""
    rest: Json = {}
    for key, value in wire.items():
        made = written.get(key, MISSING)
        if value != made:
            both = isinstance(value, dict) and isinstance(made, dict)
            rest[key] = rest_of(value, made) if both else value
    gone = [key for key in written if key not in wire]
    return {**rest, "_gone": gone} if gone else rest


def restored(written: Json, rest: Mapping[str, Any]) -> Json:
    """Return `written` with what `rest_of` kept; notes stay behind."""
    gone = rest.get("_gone", ())
    whole = {key: value for key, value in written.items() if key not in gone}
    for key, value in rest.items():
        if key[:1] != "_":
            both = isinstance(value, dict) and isinstance(whole.get(key), dict)
            whole[key] = restored(whole[key], value) if both else value
    return whole


# -- what a reader of a wire needs -----------------------------------------------------


def first_said(data: Json, *names: str) -> Any:
    """Return the first of these fields that says something, else an empty text."""
    return next((data[name] for name in names if data.get(name)), "")


def object_in(data: Json, *names: str) -> Json:
    """Return an object in an object, an empty one if it is not there."""
    return reduce(lambda found, name: found.get(name) or EMPTY, names, data)


def params_of(data: Mapping[str, Any], names: Mapping[str, str]) -> Json:
    """Return the fields that a table has a name for, under that name; null says nothing. Works both ways."""
    return {names[key]: value for key, value in data.items() if key in names and value is not None}


def number_at(data: Any, path: tuple[str, ...]) -> int:
    """Return the number at the end of a path; 0 if there is none, or something else."""
    for name in path:
        data = data.get(name) if isinstance(data, dict) else None
    return data if type(data) in {int, float} and math.isfinite(data) else 0


UNSEEN = frozenset({"thinking", "opaque"})  # an answer that has no other parts shows nothing
NAMELESS = "the upstream's answer is malformed: a call without a name"


class Parts:
    """The parts of one choice, as a reader tells of them: one is open at a time.

    A part begins with the first that is said of it, or at once by `begin`; it ends before the next.
    """

    def __init__(self, numbers: Iterator[int], choice: int = 0) -> None:
        self.numbers, self.choice = numbers, choice  # all choices of an answer share the numbers
        self.part: Part | None = None  # the open one
        self.at = -1  # its number, once it has begun
        self.begun = False  # is its PartStart out?
        self.texts: list[str] = []  # what was said of it
        self.kinds: set[str] = set()  # of all parts that have begun

    def open(self, part: Part) -> Iterator[Event]:
        """End the open part; `part` is the next one, and its body is yet to be said."""
        yield from self.close()
        self.part = part

    def begin(self) -> Iterator[Event]:
        """Begin the open part, if it has not begun."""
        if self.part and not self.begun:
            self.at, self.begun = next(self.numbers), True
            self.kinds.add(self.part.kind)
            yield PartStart(self.at, self.part._replace(text="", proof="", citations=()), self.choice)

    def add(self, field: str, value: Any) -> Iterator[Event]:
        """Say something of the open part: a PartDelta, unless the value is empty."""
        if value and self.part:
            yield from self.begin()
            if field == "text":
                self.texts.append(value)
            yield PartDelta(self.at, field, value)

    def say(self, part: Part) -> Iterator[Event]:
        """Go on with a text, thinking or refusal, or open one."""
        if part.text and not (self.part and self.part.kind == part.kind):
            yield from self.open(part)
        yield from self.add("text", part.text)

    def whole(self, part: Part) -> Iterator[Event]:
        """Tell of a part that arrived whole."""
        yield from self.open(part)
        yield from self.begin()
        yield from self.add("text", part.text)
        for citation in part.citations:
            yield from self.add("citation", citation)
        yield from self.add("proof", part.proof)
        yield from self.close()

    def close(self) -> Iterator[Event]:
        """End the open part, if there is one. A call without arguments gets `{}`."""
        part = self.part
        if part and self.begun:
            if part.kind == "call" and not part.custom and not self.texts:
                yield PartDelta(self.at, "text", "{}")
            yield PartEnd(self.at)
        self.part = None
        self.begun = False
        self.texts = []


class FrameWriter(Protocol):
    """What a dialect writes its streams with. `takes`: type of an event -> what it becomes."""

    takes: ClassVar[Mapping[type, Callable[[Any, Any], Iterable[bytes]]]]
    begun: bool  # is anything out? until then an error is an HTTP error

    def text(self, event: PartDelta) -> bytes:
        """Return the frame of a text delta, as nearly all events are; empty: there is none."""

    def finish(self) -> Iterable[bytes]:
        """Return the last frames, when nothing more can come: usage may be late."""

    def fail(self, error: ProxyError) -> Iterable[bytes]:
        """Return the frames that end a stream which broke off."""


def frames_of(writer: FrameWriter, events: Iterable[Event]) -> Frames:
    takes = writer.takes
    for event in events:
        if type(event) is PartDelta and event.field == "text":
            frame = writer.text(event)
            if frame:
                yield frame
        else:
            yield from takes[type(event)](writer, event)
    yield from writer.finish()


def write_frames(writer: FrameWriter, events: Iterable[Event]) -> Frames:
    """Write events as frames, each before the next is pulled; the one loop of all dialects."""
    try:
        yield from frames_of(writer, events)
    except ProxyError as error:
        if not writer.begun:
            raise
        yield from writer.fail(error)


NO_RESULT = Part("result", parts=(Part("text", "[no result]"),), error=True)


Results = dict[str, Union[Part, None]]  # by the id of the call; None: not there yet


def with_results(messages: Iterable[Message]) -> list[Message]:
    """Put the results of all calls of one message behind it.

    A result may have stood anywhere after its call, and the last of several counts. A call
    without a result gets an error; a result without a call becomes what it holds.
    """
    arranged: list[tuple[Message, Results]] = []  # with the results of its calls
    pending: dict[str, tuple[Part, Results]] = {}  # by id: call, its results' place
    for message in messages:
        kept: list[Part] = []
        for part in message.parts:
            if part.kind != "result":
                kept.append(part)
            elif part.id in pending:
                call, results = pending[part.id]
                results[part.id] = result_of(call, part)
            else:
                kept.extend(part.parts)
        results = dict.fromkeys(part.id for part in kept if part.kind == "call")
        pending.update((part.id, (part, results)) for part in kept if part.kind == "call")
        bare = any(part.kind == "result" for part in message.parts)
        arranged.append((message._replace(parts=tuple(kept)) if bare else message, results))
    done: list[Message] = []
    for message, results in arranged:
        if message.parts:
            done.append(message)
        if results:
            done.append(Message("tool", tuple(all_results(results, pending))))
    return done


def all_results(results: Results, calls: Mapping[str, tuple[Part, Results]]) -> Iterator[Part]:
    """Yield the results of the calls of one message; an error for a lost one."""
    for id, result in results.items():
        yield result or result_of(calls[id][0], NO_RESULT)


def result_of(call: Part, result: Part) -> Part:
    """Return a result as that of a call: it has the id, the name and the form of the call."""
    told = (result.id, result.name, result.custom)
    if told == (call.id, call.name, call.custom):
        return result
    return result._replace(id=call.id, name=call.name, custom=call.custom)


def answered_turns(messages: Iterable[Message]) -> list[Turn]:
    """Join messages into turns with the results of all calls of one turn in the next."""
    joined = turns(messages)
    if in_place(joined):
        return joined
    return turns(with_results(Message(*turn) for turn in joined))


def in_place(joined: Iterable[Turn]) -> bool:
    """Tell whether every call has its result right behind it, as most have."""
    waiting: list[str] = []
    for turn in joined:
        if not turn.parts or waiting != [part.id for part in turn.parts if part.kind == "result"]:
            return False
        waiting = [part.id for part in turn.parts if part.kind == "call"]
    return not waiting


def json_of(text: str) -> Any:
    """Return the value that a text is the JSON of; any other text is a value itself."""
    try:
        return decode_exact(text)
    except (ValueError, RecursionError):
        return text


def arguments_of(text: str) -> Json:
    """Return a call's arguments as an object; a model wrote them: no reason to refuse others."""
    value = json_of(text) if text.strip() else {}
    return value if isinstance(value, dict) else {"input": value}


########################################################################################
# 5. TYPES                                                                        [pure]
########################################################################################
# What readers take over as it came, and all that comes after counts on: a field of the wrong type is
# named here, before it can do harm.

TEXT, NUMBER = frozenset([str]), frozenset([int, float])
OBJECT, WHOLE = frozenset([dict, type(None)]), frozenset([int, type(None)])
LIST = frozenset([list])
ROLES = frozenset(["system", "developer", "user", "assistant", "tool"])
MODES = frozenset(["auto", "none", "required"])
WRONG = {TEXT: "no text", NUMBER: "no number", OBJECT: "no object", WHOLE: "no whole number", LIST: "no list"}
# fmt: off
TYPES: dict[type, tuple[tuple[str, frozenset[Any]], ...]] = {  # field, and its types, or the words that there are
    kind: tuple((name, wanted) for wanted, names in row for name in names.split()) for kind, row in {
        Message:      ((ROLES, "role"),),
        Part:         ((TEXT, "text id name proof namespace"),),
        Media:        ((TEXT, "data mime name detail"),),
        Tool:         ((TEXT, "name description namespace"), (OBJECT, "schema grammar")),
        ToolChoice:   ((MODES, "mode"),),
        Format:       ((TEXT, "name description"), (OBJECT, "schema")),
        Thinking:     ((TEXT, "effort summary"), (WHOLE, "budget")),
        MessageStart: ((TEXT, "id model"), (NUMBER, "created")),
        Citation:     ((TEXT, "url title text"), (NUMBER, "start end")),
        Usage:        ((NUMBER, "input cache_read cache_write output reasoning"),),
        MessageEnd:   ((TEXT, "stop_sequence raw"),),
    }.items()
}
DELTA_TYPES = {"text": TEXT, "proof": TEXT, "logprobs": LIST}
PARAM_TYPES = {
    "max_tokens": NUMBER, "temperature": NUMBER, "top_p": NUMBER, "top_k": NUMBER, "n": WHOLE, "stop": LIST, "user": TEXT,
}
# fmt: on


def wrong_type(name: str, value: Any, wanted: frozenset[Any], kind: str) -> None:
    """Raise a ProxyError of this kind, unless the value is one of the words that are wanted."""
    if not isinstance(value, str) or value not in wanted:
        why = WRONG.get(wanted) or f"none of {', '.join(sorted(wanted))}"
        raise ProxyError(kind, f"{name}: {dumps_text(value)[:80]} is {why}", param=name)


def check_fields(thing: Any, kind: str) -> None:
    """Check the fields of one thing. Raises a ProxyError of this kind."""
    for name, wanted in TYPES.get(type(thing), ()):
        value = getattr(thing, name)
        if type(value) not in wanted:
            wrong_type(name, value, wanted, kind)


def check_types(things: Iterable[Any], kind: str) -> None:
    """Check the fields of things, and of what is in them. Raises a ProxyError of this kind."""
    left = list(things)
    while left:
        thing = left.pop()
        check_fields(thing, kind)
        if type(thing) is Part or type(thing) is Message:
            left += thing.parts
        if type(thing) is Part and thing.media:
            left.append(thing.media)


def check_delta(delta: PartDelta, kind: str) -> None:
    """Check what a delta says. Raises a ProxyError of this kind."""
    wanted = DELTA_TYPES.get(delta.field)
    if wanted and type(delta.value) not in wanted:
        wrong_type(delta.field, delta.value, wanted, kind)
    if delta.field == "citation":
        check_fields(delta.value, kind)
    if delta.field == "logprobs":
        check_logprobs(delta.value, kind)


def check_logprobs(tokens: list[Any], kind: str) -> None:
    """Check log probabilities in OpenAI's form: each token, and the likeliest others in its place."""
    for token in tokens:
        fine = isinstance(token, dict) and type(token.get("token")) is str
        if not fine or type(token.get("logprob")) not in NUMBER:
            raise ProxyError(kind, f"logprobs: {dumps_text(token)[:80]} is no token", param="logprobs")
        check_logprobs(token.get("top_logprobs") or [], kind)


def checked(request: Request) -> Request:
    """Return a request as it was read. Raises ProxyError("invalid_request") for wrong types."""
    given, wrong = request.params, "invalid_request"
    found = [(name, given[name], PARAM_TYPES[name]) for name in PARAM_TYPES.keys() & given.keys()]
    found += [("stop", word, TEXT) for word in given.get("stop", ())]
    found += [("tool_choice", name, TEXT) for name in request.choice.names] if request.choice else []
    for name, value, wanted in found:
        if type(value) not in wanted:
            wrong_type(name, value, wanted, wrong)
    whole = (request.choice, request.format, request.thinking, *request.tools, *request.system)
    check_types((*whole, *request.messages), wrong)
    return request


########################################################################################
# 6. SCHEMAS                                                                      [pure]
########################################################################################
# JSON Schema, of a tool's arguments or an answer, in the keywords that each service takes. A rewrite
# is a function of one schema that `walk_schema` applies to all that are in it; a property that is
# called like a keyword is left alone, and so is the schema that came. Source: spec/dialects.md 2.4.

# fmt: off
SCHEMA_MAPS = frozenset("properties $defs definitions patternProperties dependentSchemas".split())  # by name
SCHEMA_LISTS = frozenset("anyOf oneOf allOf prefixItems".split())
SCHEMA_INNER = SCHEMA_LISTS | frozenset("items additionalProperties not contains propertyNames if then else".split())
SCHEMA_SHAPES: dict[str, type | tuple[type, ...]] = {  # what does not have it is left out: clients err
    **dict.fromkeys(SCHEMA_MAPS, dict), **dict.fromkeys(SCHEMA_LISTS | {"enum", "required"}, list),
    "items": (list, dict, bool), "type": (str, list), "$ref": str, "description": str, "format": str,
}
SCHEMA_DEPTH = 40  # at most: schemas in schemas,
SCHEMA_REFS = 16  # references in references,
SCHEMA_NODES = 5_000  # and schemas in all
SCHEMA_ALONE = frozenset("$ref $defs definitions description".split())  # what a reference may stand beside,
SCHEMA_NOTES = SCHEMA_ALONE.union(  # and what it loses there, for it says nothing of the values
    "title default examples deprecated readOnly writeOnly $id $anchor $schema $comment".split()
)
SCHEMA_JOINTS = frozenset("$ref allOf $defs definitions".split())
JSON_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}
# fmt: on


def shaped(node: Json) -> Json:
    """Leave out what is not of the type that its keyword wants: clients err."""
    return {key: value for key, value in node.items() if isinstance(value, SCHEMA_SHAPES.get(key, object))}


def map_schema(node: Json, change: Callable[[Any], Any]) -> Json:
    """Apply `change` to the schemas right inside one."""
    done = shaped(node)
    for key, value in done.items():
        if key in SCHEMA_MAPS:
            done[key] = {name: change(child) for name, child in value.items()}
        elif key in SCHEMA_INNER and isinstance(value, list):
            done[key] = [change(child) for child in value]
        elif key in SCHEMA_INNER:
            done[key] = change(value)
    return done


def walk_schema(node: Any, change: Callable[[Json], Json], depth: int = SCHEMA_DEPTH) -> Any:
    """Apply `change` to every schema in `node`, the innermost first."""
    if not isinstance(node, dict):
        return node
    inner = map_schema(node, lambda child: walk_schema(child, change, depth - 1)) if depth else {}
    return change(inner)


def union_of(schemas: Iterable[Json]) -> Json:
    """Join schemas that must all hold: the union of what they say; later ones win."""
    done: Json = {}
    for schema in map(shaped, schemas):
        named = {**(done.get("properties") or {}), **(schema.get("properties") or {})}
        needed = [*(done.get("required") or ()), *(schema.get("required") or ())]
        done.update(schema)
        if named:
            done["properties"] = named
        if needed:
            done["required"] = list(dict.fromkeys(name for name in needed if isinstance(name, str)))
    return done


def all_of(node: Json) -> Json:
    """Do without `allOf` and `const`: the branches are joined."""
    bare = without(node, frozenset({"allOf", "const"}))
    if "const" in node:
        bare["enum"] = [node["const"]]
    branches = [branch for branch in node.get("allOf") or () if isinstance(branch, dict)]
    return union_of((bare, *branches)) if branches else bare


def referred(root: Json, ref: str) -> Json | None:
    """Return what a local reference, `#/$defs/Name`, stands for. Source: RFC 6901."""
    node: Any = root if ref.startswith("#") else None
    for word in filter(None, unquote(ref[2:]).split("/")):
        name = word.replace("~1", "/").replace("~0", "~")
        node = node.get(name) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else None


def hoisted(node: Json) -> Json:
    """Let a reference that is the one branch of an `allOf`, as Pydantic 1 has it, stand there itself."""
    branches = node.get("allOf")
    if "$ref" in node or not isinstance(branches, list) or len(branches) != 1:
        return node
    only = branches[0]
    named = isinstance(only, dict) and "$ref" in only
    return {**only, **without(node, frozenset({"allOf"}))} if named else node


def spread(root: Json, node: Json, path: tuple[str, ...]) -> tuple[Json, tuple[str, ...]]:
    """Join a schema with what it refers to, itself and in its `allOf`; `path` are references that stay out."""
    found: list[Json] = []
    left = [node]
    for one in left:
        found.append(without(one, SCHEMA_JOINTS if found else frozenset({"$ref", "allOf"})))
        left += [branch for branch in shaped(one).get("allOf", ()) if isinstance(branch, dict)]
        ref = one.get("$ref")
        if isinstance(ref, str) and ref not in path and len(path) < SCHEMA_REFS:
            path = (*path, ref)
            left.append(referred(root, ref) or {})
    return union_of(reversed(found)), path


def lone_refs(schema: Json) -> Json:
    """Leave references where they stand alone, for Claude and Gemini refuse them beside anything that counts.

    Elsewhere what they name is joined with what stands there; one within itself stays, alone.
    """
    total = count(1)

    def change(node: Any, path: tuple[str, ...], depth: int) -> Any:
        if not isinstance(node, dict) or not depth:
            return node
        full, node = next(total) > SCHEMA_NODES, hoisted(node)
        ref = node.get("$ref")
        if ref is not None and (full or ref in path or node.keys() <= SCHEMA_NOTES):
            node = {key: value for key, value in node.items() if key in SCHEMA_ALONE}
        elif full:
            return {"type": "object"}
        elif ref is not None or "allOf" in node:
            node, path = spread(schema, node, path)
        return map_schema(node, lambda child: change(child, path, depth - 1))

    return dict(change(schema, (), SCHEMA_DEPTH))


def plain_root(schema: Json | None) -> Json:
    """Return a schema whose root is an object without combinators: their branches are joined."""
    done = {**all_of(schema or {}), "type": "object"}
    for word in ("anyOf", "oneOf"):
        branches = [branch for branch in done.pop(word, None) or () if isinstance(branch, dict)]
        if branches:
            done = all_of({**done, "allOf": [*any_of(branches)]})
    return {**done, "properties": done.get("properties") or {}}


def any_of(branches: list[Json]) -> Iterator[Json]:
    """Yield what holds of an object that is one of these: all properties, and what each of them requires."""
    for branch in branches:
        yield {"properties": branch.get("properties")}
    needs = set.intersection(*(set(branch.get("required") or ()) for branch in branches))
    yield {"required": sorted(needs)}


def noted(node: Json, lost: Collection[str], formats: Collection[str]) -> Json:
    """Leave keywords out, and a format that is none of `formats`; say so in the description."""
    gone = {k: v for k, v in node.items() if k in lost or (k == "format" and v not in formats)}
    if not gone:
        return node
    notes = "; ".join(f"{key}: {dumps_text(value)[:120]}" for key, value in gone.items())
    description = f"{node.get('description', '')} ({notes})".lstrip()
    return {**without(node, frozenset(gone)), "description": description}


# --- for Claude's answers -----------------------------------------------------------------
# fmt: off
CLAUDE_FORMATS = frozenset("date-time time date duration email hostname uri ipv4 ipv6 uuid".split())
CLAUDE_LOST = frozenset(
    "minimum maximum exclusiveMinimum exclusiveMaximum multipleOf minLength maxLength pattern maxItems uniqueItems not".split()
)
# fmt: on


def claude_clean(schema: Json) -> Json:
    """Rewrite a whole schema, of an answer or of a strict tool."""
    return dict(walk_schema(lone_refs(schema), claude_node))


def claude_node(node: Json) -> Json:
    """Rewrite one schema: objects are closed, and a reference stands alone."""
    if "$ref" in node:
        return {key: node[key] for key in ("$ref", "$defs", "definitions") if key in node}
    lost = CLAUDE_LOST if node.get("minItems") in (0, 1) else CLAUDE_LOST | {"minItems"}
    done = dict(noted(node, lost, CLAUDE_FORMATS))
    if "oneOf" in done:
        done["anyOf"] = [*done.get("anyOf", ()), *done.pop("oneOf")]
    if done.get("type") == "object" or "properties" in done:
        done["additionalProperties"] = False
    return done


# --- for Gemini: as JSON Schema, and in the older form of OpenAPI -----------------------------
# fmt: off
GEMINI_BASICS = frozenset(
    "type format title description enum items minItems maxItems minimum maximum anyOf properties required".split()
)
GEMINI_KEYWORDS = GEMINI_BASICS.union("$id $defs $ref $anchor prefixItems oneOf additionalProperties".split())
OPENAPI_KEYWORDS = GEMINI_BASICS.union("nullable minLength maxLength pattern default example propertyOrdering".split())
OPENAPI_LOST = frozenset(
    "multipleOf uniqueItems not patternProperties propertyNames contains dependentRequired exclusiveMinimum exclusiveMaximum".split()
) | {"one of"}
OPENAPI_FORMATS = frozenset("int32 int64 float double enum date-time".split())
OPENAPI_SHOWN = frozenset("title description nullable".split())  # may stand beside anyOf
OPENAPI_INNER = frozenset("properties required prefixItems items".split())
OPENAPI_BOUNDS = (("exclusiveMinimum", "minimum", 1), ("exclusiveMaximum", "maximum", -1))
# fmt: on


def gemini_node(node: Json) -> Json:
    """Rewrite one schema in Gemini's keywords."""
    done = all_of(node)
    if "definitions" in done:
        done["$defs"] = {**done["definitions"], **done.get("$defs", {})}
    if "$ref" in done:
        done["$ref"] = done["$ref"].replace("#/definitions/", "#/$defs/")
    return {key: value for key, value in done.items() if key in GEMINI_KEYWORDS}


def gemini_clean(schema: Json) -> Json:
    """Rewrite a whole schema for `parametersJsonSchema` and `responseJsonSchema`."""
    return dict(walk_schema(lone_refs(schema), gemini_node))


def openapi_schema(schema: Json) -> Json:
    """Rewrite a whole schema for Gemini's `parameters` and `responseSchema`. Source: 2.4."""
    return dict(walk_schema(walk_schema(inlined(schema), openapi_shape), openapi_node))


def inlined(schema: Json) -> Json:
    """Write out all references; one that has no end becomes an object that is called like it."""
    total = count(1)

    def inline(node: Any, path: tuple[str, ...], depth: int) -> Json:
        if not isinstance(node, dict):
            return {}
        full = next(total) > SCHEMA_NODES
        while isinstance(ref := node.get("$ref"), str):
            found = referred(schema, ref)
            if found is None or ref in path or len(path) >= SCHEMA_REFS:
                return {"type": "object", "description": ref.rpartition("/")[2]}
            node, path = union_of((found, without(node, frozenset({"$ref"})))), (*path, ref)
        if depth <= 0 or full:
            return {"type": "object"}
        bare = without(node, frozenset({"$defs", "definitions"}))
        if isinstance(named := bare.get("properties"), dict):
            bare["properties"] = {name: named[name] for name in named if named[name] is not False}
        return map_schema(bare, lambda child: inline(child, path, depth - 1))

    return inline(schema, (), SCHEMA_DEPTH)


def openapi_shape(node: Json) -> Json:
    """Do without allOf, oneOf, const, lists of types, null among alternatives (rules 3 to 5)."""
    done = all_of(node)
    branches = [*done.pop("anyOf", ()), *done.pop("oneOf", ())]
    kinds = done.get("type")
    if isinstance(kinds, list):
        solid = [kind for kind in kinds if kind != "null"]
        done["type"] = (solid or ["null"])[0]
        if "null" in kinds:
            done["nullable"] = True
        if len(solid) > 1:
            branches = [{**without(done, OPENAPI_SHOWN), "type": kind} for kind in solid]
    return openapi_branches(done, branches) if branches else done


def openapi_branches(node: Json, branches: list[Json]) -> Json:
    """Leave nothing but a description beside alternatives, and no single one."""
    solid = [part for part in branches if part.get("type") != "null" and part.get("enum") != [None]]
    shown: Json = {key: value for key, value in node.items() if key in OPENAPI_SHOWN}
    if len(solid) < len(branches):
        shown["nullable"] = True
    if len(solid) < 2:  # shaped again: the one that is left may consist of alternatives
        return {**openapi_shape({**node, "allOf": solid or [{"type": "null"}]}), **shown}
    if "properties" in node:
        return {**plain_root({**node, "anyOf": solid}), **shown}
    kind = {"type": node["type"]} if "type" in node else {}
    return {**shown, "anyOf": [part if "anyOf" in part else {**kind, **part} for part in solid]}


def openapi_node(node: Json) -> Json:
    """Rewrite one schema that has its shape (rules 2, 3 and 6 to 9)."""
    done = openapi_inner(openapi_enum(node))
    for key, bound, step in OPENAPI_BOUNDS:
        if type(done.get(key)) is int and done.get("type") == "integer":
            done[bound] = done.pop(key) + step
    done = noted(done, OPENAPI_LOST, OPENAPI_FORMATS)
    return openapi_type({key: value for key, value in done.items() if key in OPENAPI_KEYWORDS})


def openapi_type(node: Json) -> Json:
    """Name a type as the service does, and guess one that is not said."""
    kind = node.get("type")
    if kind == "null":
        return {**node, "type": "STRING", "nullable": True}
    if kind in JSON_TYPES.values() or "anyOf" in node:
        return {**node, "type": kind.upper()} if kind else node
    if "properties" in node:
        return {**node, "type": "OBJECT"}
    if "items" in node:
        return {**node, "type": "ARRAY"}
    told = {} if node.keys() - OPENAPI_SHOWN else {"description": "any JSON value"}
    return {**told, **node, "type": "STRING"}


def openapi_enum(node: Json) -> Json:
    """Keep enumerations of texts; list other values in the description, so that they keep their type."""
    values = node.get("enum", ())
    solid = [value for value in values if value is not None]
    done = without(node, frozenset({"enum"}))
    if len(solid) < len(values):
        done["nullable"] = True
    kinds = {JSON_TYPES[type(value)] for value in solid}
    if len(kinds - {"integer"}) > 1 or "string" in kinds:
        texts = [value if isinstance(value, str) else dumps_text(value) for value in solid]
        return {**done, "type": "string", "enum": texts}
    return {"type": max(kinds), **done, "one of": solid} if kinds else done  # number beats integer


def openapi_inner(node: Json) -> Json:
    """Tidy what is inside objects and arrays: `required`, tuples, no items."""
    done, items = without(node, OPENAPI_INNER), openapi_items(node)
    if "properties" in node:
        done.setdefault("type", "object")
        done["properties"] = node["properties"]
        done["required"] = [name for name in node.get("required", ()) if name in node["properties"]]
    if items or done.get("type") == "array":
        done["items"] = items or openapi_node({})
    return {key: value for key, value in done.items() if value or key not in OPENAPI_INNER}


def openapi_items(node: Json) -> Any:
    """Return what an array may hold: of a tuple, any of its places."""
    items = node.get("prefixItems") or node.get("items")
    if not isinstance(items, list):
        return items
    if len(items) > 1:
        return {"anyOf": items}
    return items[0] if items else None


########################################################################################
# 7. CLAUDE                                                                       [pure]
########################################################################################
# The Anthropic Messages API. Only this room knows its field names. Source: spec/dialects.md 1C.
#
# `extra["claude"]` of a part is either what its block held beside the modelled fields, or, told
# by its "type", the whole block, which then is written as it came. Keys that begin with "_" are
# notes on the form of the original: `_string`, a `content` or `system` that was one string.


# -- tables ----------------------------------------------------------------------------

CLAUDE_PARAMS = words_read(PARAMS, "claude")
CLAUDE_PARAMS_WRITE = words_write(PARAMS, "claude")
CLAUDE_MODES = {"auto": "auto", "any": "required", "tool": "required", "none": "none"}
CLAUDE_MODES_WRITE = {mode: word for word, mode in reversed(CLAUDE_MODES.items())}
CLAUDE_FINISH = words_read(FINISH_REASONS, "claude")
CLAUDE_FINISH_WRITE = words_write(FINISH_REASONS, "claude")
CLAUDE_USAGE = {  # field of Usage -> where it stands
    "input": ("input_tokens",),  # without what the cache held: spec/dialects.md 2.10
    "cache_read": ("cache_read_input_tokens",),
    "cache_write": ("cache_creation_input_tokens",),
    "output": ("output_tokens",),
    "reasoning": ("output_tokens_details", "thinking_tokens"),
}
CLAUDE_DISPLAYS = {"summarized": "auto", "omitted": "omitted"}
CLAUDE_HOSTED = {  # what we write for another dialect's tool; read: any date
    "web_search": "web_search_20250305",
    "web_fetch": "web_fetch_20250910",
    "code_execution": "code_execution_20250825",
}
# a kind of `source` -> the field of it that holds the data
CLAUDE_SOURCES = {"base64": "data", "text": "data", "url": "url", "file": "file_id"}
# kind of a part whose body comes in deltas -> type of the delta, and its field
CLAUDE_TEXTS = {
    "text": ("text_delta", "text"),
    "refusal": ("text_delta", "text"),
    "thinking": ("thinking_delta", "thinking"),
    "call": ("input_json_delta", "partial_json"),
    "hosted": ("input_json_delta", "partial_json"),
}
CLAUDE_JSON = "Answer with one JSON object only."  # there is no such mode: spec/dialects.md 2.9
# fmt: off
CLAUDE_MODELLED = {name: frozenset(words.split()) for name, words in {
    # The fields that have a place in the model; the rest of an object is kept in `extra`.
    "request":       "model messages system tools tool_choice thinking output_config metadata stream "
                     + " ".join(CLAUDE_PARAMS),
    "tool_choice":   "type name disable_parallel_tool_use",
    "thinking":      "type budget_tokens display",
    "output_config": "effort format",
    "metadata":      "user_id",
    "tool":          "name description input_schema strict",
    "message":       "role content",
    "answer":        "id type role model content usage",
    "usage":         " ".join(path[0] for path in CLAUDE_USAGE.values() if len(path) == 1),
}.items()}
# fmt: on


def claude_own(thing: Any) -> Json:
    """Return what Claude's own form of a thing held beside the modelled fields."""
    own: Json = thing.extra.get("claude", EMPTY)
    return own


def claude_rest(data: Json, known: frozenset[str]) -> Json:
    """Return what the model has no place for: unknown fields, and empty forms of known ones."""
    rest: Json = {}
    if not (data.keys() <= known and all(data.values())):  # most are
        empty: tuple[Any, ...] = (None, [], "")
        rest = {k: v for k, v in data.items() if k not in known or v is False or v in empty}
    if type(data.get("content")) is str or type(data.get("system")) is str:
        rest["_string"] = True
    return rest


def claude_merge(fresh: Json, rest: Mapping[str, Any]) -> Json:
    """Put back what `claude_rest` kept; `fresh` wins, and objects are merged."""
    for key, value in rest.items():
        if key not in fresh and not key.startswith("_"):
            fresh[key] = value
        elif isinstance(value, dict) and isinstance(fresh.get(key), dict):
            claude_merge(fresh[key], value)
    return fresh


# -- parts and messages, read ----------------------------------------------------------


def claude_read_cache(data: Json) -> str:
    control = data.get("cache_control")
    return (control.get("ttl") or "5m") if control else ""


def claude_read_text(block: Json) -> Part:
    text = block.get("text") or ""
    citations = tuple(claude_read_citation(c, len(text)) for c in block.get("citations") or ())
    return Part("text", text, citations=citations)


def claude_read_media(block: Json) -> Part:
    """Read an image or a document; one made of blocks is a text and images for everybody else."""
    source, title = block["source"], block.get("title") or ""
    kind = source["type"]
    if kind not in CLAUDE_SOURCES:
        held = claude_read_content(source.get("content"))
        media = Media("document", "text", text_of(held), "text/plain", title)
        return Part("media", media=media, parts=tuple(part for part in held if part.media))
    name = "file_id" if kind == "file" else kind
    data, mime = source[CLAUDE_SOURCES[kind]], source.get("media_type") or ""
    return Part("media", media=Media(block["type"], name, data, mime, title))


def claude_read_search_result(block: Json) -> Part:
    """Read a search result: for everybody else a text with a title and where it is from."""
    text = "\n".join((block["source"], text_of(claude_read_content(block["content"]))))
    return Part("media", media=Media("document", "text", text, "text/plain", block["title"]))


def claude_read_thought(block: Json) -> Part:
    return Part("thinking", block.get("thinking") or "", proof=block.get("signature") or "")


def claude_read_call(block: Json, kind: str = "call") -> Part:
    return Part(kind, dumps_text(block.get("input") or {}), block["id"], block["name"])


def claude_read_result(block: Json) -> Part:
    parts, error = claude_read_content(block.get("content")), bool(block.get("is_error"))
    return Part("result", id=block["tool_use_id"], parts=parts, error=error)


# fmt: off
CLAUDE_READERS: tuple[tuple[str, Callable[[Json], Part], str], ...] = (
    # type of a block      its reader                 the fields that are modelled; if none, the block is kept whole
    ("text",               claude_read_text,          "type text citations"),
    ("image",              claude_read_media,         "type source"),
    ("document",           claude_read_media,         "type source title"),
    ("tool_use",           claude_read_call,          "type id name input"),
    ("tool_result",        claude_read_result,        "type tool_use_id content is_error"),
    ("thinking",           claude_read_thought,       "type thinking signature"),
    ("redacted_thinking",  lambda block: Part("thinking", proof=block["data"], redacted=True), "type data"),
    ("search_result",      claude_read_search_result, ""),
    ("server_tool_use",    lambda block: claude_read_call(block, "hosted"), ""),
    ("mcp_tool_use",       lambda block: claude_read_call(block, "hosted"), ""),
    ("tool_reference",     lambda block: Part("opaque", name=block.get("tool_name") or ""), ""),
    ("*_tool_result",      lambda block: Part("hosted_result", id=block["tool_use_id"], name=block["type"][:-12]), ""),
    ("*",                  lambda block: Part("opaque"), ""),
)
# fmt: on
CLAUDE_BLOCKS = {kind: (read, frozenset(known.split())) for kind, read, known in CLAUDE_READERS}


def claude_read_part(block: Json) -> Part:
    """Read a content block, of a request or of an answer."""
    kind = block["type"]
    if kind not in CLAUDE_BLOCKS:
        kind = "*_tool_result" if kind.endswith("_tool_result") else "*"
    read, known = CLAUDE_BLOCKS[kind]
    if kind == "document" and block["source"]["type"] not in CLAUDE_SOURCES:
        known = frozenset()
    part = read(block)
    rest = claude_rest(block, known) if known else block
    return part._replace(cache=claude_read_cache(block), extra={"claude": rest}) if rest else part


def claude_read_content(content: str | list[Json] | None) -> tuple[Part, ...]:
    if isinstance(content, str):
        return (Part("text", content),) if content else ()
    return tuple(map(claude_read_part, content or ()))


def claude_read_message(message: Json) -> Message:
    rest = claude_rest(message, CLAUDE_MODELLED["message"])
    return Message(message["role"], claude_read_content(message["content"]), extra_of("claude", rest))


# -- parts and messages, written -------------------------------------------------------


def claude_write_cache(cache: str) -> Json:
    return {"type": "ephemeral", "ttl": cache} if cache == "1h" else {"type": "ephemeral"}


def claude_write_text(part: Part) -> Json:
    """Write a text. Only citations that Claude made can go back to it."""
    own = map(claude_own, part.citations)
    citations = [c for c in own if c and c.get("encrypted_index") != ""]
    return {"type": "text", "text": part.text, **filled(citations=citations)}


def claude_write_thought(part: Part) -> Json:
    if part.redacted:
        return {"type": "redacted_thinking", "data": part.proof}
    return {"type": "thinking", "thinking": part.text, "signature": part.proof}


def claude_write_media(part: Part) -> Json:
    """Write an image or a document."""
    media = part.media or Media("document", "text", part.text)
    kind = "file" if media.source == "file_id" else media.source
    source = {"type": kind, CLAUDE_SOURCES[kind]: media.data}
    if kind == "base64":
        source["media_type"] = media.mime
    if kind == "text":
        source["media_type"] = "text/plain"
    title = media.name if media.kind == "document" else ""
    return {"type": media.kind, "source": source, **filled(title=title)}


def claude_write_call(part: Part) -> Json:
    arguments = {"input": part.text} if part.custom else arguments_of(part.text)
    return {"type": "tool_use", "id": part.id, "name": part.name, "input": arguments}


def claude_write_result(part: Part) -> Json:
    block: Json = {"type": "tool_result", "tool_use_id": part.id}
    content = claude_write_content(part.parts, claude_own(part))
    return {**block, **filled(content=content, is_error=part.error or None)}


CLAUDE_WRITERS: dict[str, Callable[[Part], Json]] = {  # another kind is not written
    "text": claude_write_text,
    "refusal": claude_write_text,
    "thinking": claude_write_thought,
    "call": claude_write_call,
    "result": claude_write_result,
    "media": claude_write_media,
}


def claude_writable(part: Part) -> bool:
    """Tell whether Claude has a block for a part, or made it."""
    return part.kind in CLAUDE_WRITERS or "type" in claude_own(part)


def claude_takes_back(part: Part) -> bool:
    """Tell whether a part can stand in a request: a text must not be blank."""
    return claude_writable(part) and (part.kind != "text" or bool(part.text.strip()))


def claude_write_part(part: Part) -> Json:
    """Write a content block, of a request or of an answer."""
    own = claude_own(part)
    if "type" in own:
        return own
    block = CLAUDE_WRITERS[part.kind](part)
    if part.cache and part.kind != "thinking":
        block["cache_control"] = claude_write_cache(part.cache)
    return claude_merge(block, own)


def claude_write_content(parts: Iterable[Part], own: Json) -> str | list[Json]:
    if "_string" in own:
        return text_of(parts, "")
    return [claude_write_part(part) for part in parts if claude_takes_back(part)]


def claude_write_message(message: Message) -> Json:
    own = claude_own(message)
    content = claude_write_content(message.parts, own)
    return claude_merge({"role": SIDES.get(message.role, "user"), "content": content}, own)


# -- requests, read --------------------------------------------------------------------


def claude_read_tool(tool: Json) -> Tool:
    """Read a tool. Those with a dated type are built in, and kept whole."""
    kind, cache = tool.get("type") or "custom", claude_read_cache(tool)
    if kind != "custom":
        name = next((name for name in CLAUDE_HOSTED if kind.startswith(f"{name}_")), kind)
        return Tool(name, kind="hosted", cache=cache, extra={"claude": tool})
    return Tool(
        tool["name"],
        tool.get("description") or "",
        tool.get("input_schema"),
        strict=tool.get("strict"),
        cache=cache,
        extra=extra_of("claude", claude_rest(tool, CLAUDE_MODELLED["tool"])),
    )


def claude_read_choice(choice: Json) -> ToolChoice | None:
    if not choice:
        return None
    names = (choice["name"],) if choice["type"] == "tool" else ()
    return ToolChoice(CLAUDE_MODES[choice["type"]], names)


def claude_read_format(form: Json) -> Format | None:
    return Format("schema", schema=form["schema"]) if form else None


def claude_read_params(body: Json) -> Json:
    params = params_of(body, CLAUDE_PARAMS)
    user = object_in(body, "metadata").get("user_id")
    if user:
        params["user"] = user
    if object_in(body, "tool_choice").get("disable_parallel_tool_use"):
        params["parallel"] = False
    return params


def claude_read_thinking(body: Json) -> Thinking:
    """Read `thinking` and the effort, which is a part of `output_config`."""
    thinking, effort = object_in(body, "thinking"), object_in(body, "output_config").get("effort")
    kind = thinking.get("type")
    if kind == "disabled":
        effort = "none"
    elif effort not in EFFORTS:
        effort = ""
    summary = CLAUDE_DISPLAYS.get(thinking.get("display", ""), "")
    return Thinking(effort, thinking.get("budget_tokens"), summary, kind == "adaptive")


def claude_read_rest(body: Json) -> Json:
    """Return what the model has no place for, of the body and of the objects in it."""
    rest = claude_rest(body, CLAUDE_MODELLED["request"])
    for key in ("tool_choice", "thinking", "output_config", "metadata"):
        below = claude_rest(object_in(body, key), CLAUDE_MODELLED[key])
        if below:
            rest[key] = below
    if object_in(body, "thinking").get("type") == "disabled" and body.get("output_config"):
        rest["output_config"] = without(body["output_config"], frozenset({"format"}))
    return rest


def claude_read_request(body: Json) -> Request:
    """Read the body of POST /v1/messages."""
    return Request(
        dialect="claude",
        model=body["model"],
        messages=tuple(map(claude_read_message, body["messages"])),
        system=claude_read_content(body.get("system")),
        tools=tuple(map(claude_read_tool, body.get("tools") or ())),
        choice=claude_read_choice(object_in(body, "tool_choice")),
        params=claude_read_params(body),
        thinking=claude_read_thinking(body),
        format=claude_read_format(object_in(body, "output_config", "format")),
        stream=bool(body.get("stream")),
        extra=extra_of("claude", claude_read_rest(body)),
    )


# -- requests, written -----------------------------------------------------------------


def claude_write_messages(request: Request) -> list[Json]:
    """Write the messages; those that were Claude's already keep their order and number."""
    messages: Iterable[Message] = request.messages
    if request.dialect != "claude":
        kept = (m._replace(parts=tuple(filter(claude_takes_back, m.parts))) for m in messages)
        messages = [Message(*turn) for turn in answered_turns(kept)]
    written = map(claude_write_message, messages)
    return [message for message in written if message["content"]]


def claude_write_system(request: Request) -> str | list[Json]:
    lines = request.system
    if request.format and request.format.kind == "json":
        lines = (*lines, Part("text", CLAUDE_JSON))
    return claude_write_content(lines, claude_own(request))


def claude_hosted_tool(tool: Tool) -> Json | None:
    """Write a tool that another dialect's service runs, if Claude's has one like it."""
    if tool.name not in CLAUDE_HOSTED:
        return None
    definition = next(iter(tool.extra.values()), EMPTY)
    domains, place = (
        object_in(definition, "filters").get("allowed_domains"),
        object_in(definition, "user_location"),
    )
    if place:  # Chat nests it once more
        place = {"type": "approximate", **place.get("approximate", place)}
    written = {"type": CLAUDE_HOSTED[tool.name], "name": tool.name}
    return {**written, **filled(allowed_domains=domains, user_location=place)}


def claude_write_tool(tool: Tool, request: Request) -> Json | None:
    """Write a tool; None for one that only another service can run."""
    own = claude_own(tool)
    if tool.kind == "hosted":
        return own or claude_hosted_tool(tool)
    schema = tool.schema if request.dialect == "claude" else plain_root(tool.schema)
    cache = tool.cache and claude_write_cache(tool.cache)
    written = filled(
        name=tool.name,
        description=tool.description,
        input_schema=schema,
        strict=tool.strict or None,
        cache_control=cache,
    )
    return claude_merge(written, own)


def claude_write_choice(request: Request, tools: list[Json]) -> Json | None:
    serial = request.params.get("parallel") is False
    choice = request.choice or ToolChoice("auto" if serial else "")
    if not choice.mode or not tools:
        return None
    written: Json = {"type": CLAUDE_MODES_WRITE[choice.mode]}
    if choice.mode == "required" and len(choice.names) == 1:
        written = {"type": "tool", "name": choice.names[0]}
    if serial and choice.mode != "none":
        written["disable_parallel_tool_use"] = True
    return written


def claude_write_format(form: Format | None) -> Json:
    if form is None or form.kind != "schema":
        return {}
    return {"type": "json_schema", "schema": form.schema}


def claude_write_params(request: Request, thinks: bool) -> Json:
    """Write the plain parameters that Claude takes together. Source: spec/dialects.md 1C.1."""
    params = params_of(request.params, CLAUDE_PARAMS_WRITE)
    if "temperature" in params:
        params["temperature"] = min(params["temperature"], 1)
        if request.dialect != "claude":
            params.pop("top_p", None)
    if thinks:
        least = {"temperature": 1, "top_p": 0.95, "top_k": math.inf}
        params = {k: v for k, v in params.items() if k not in least or v >= least[k]}
    params["stop_sequences"] = [s for s in params.pop("stop_sequences", ()) if s.strip()]
    return params


def claude_write_thinking(thinking: Thinking) -> Json:
    """Write `thinking`; the effort stands elsewhere."""
    if thinking.effort == "none":
        return {"type": "disabled"}
    if thinking.budget is None and not thinking.adaptive:
        return {}
    written: Json = {"type": "adaptive"}
    if thinking.budget is not None:
        written = {"type": "enabled", "budget_tokens": thinking.budget}
    if thinking.summary:
        written["display"] = "omitted" if thinking.summary == "omitted" else "summarized"
    return written


def claude_write_request(request: Request, target: Target) -> Json:
    """Write the body of POST /v1/messages."""
    tools = [written for tool in request.tools if (written := claude_write_tool(tool, request))]
    thinking = claude_write_thinking(request.thinking)
    effort = request.thinking.effort if request.thinking.effort != "none" else ""
    body: Json = {
        "model": target.model.id or request.model,
        "messages": claude_write_messages(request),
        "system": claude_write_system(request),
        "tools": tools,
        "tool_choice": claude_write_choice(request, tools),
        "thinking": thinking,
        "output_config": filled(effort=effort, format=claude_write_format(request.format)),
        "metadata": filled(user_id=request.params.get("user")),
        **claude_write_params(request, thinking.get("type") in {"enabled", "adaptive"}),
        "stream": request.stream or None,
    }
    fresh = {key: value for key, value in body.items() if value or value == 0 or key == "messages"}
    body = claude_merge(fresh, claude_own(request))
    typed = ("thinking", "tool_choice")  # without a type, they are what is left of a dropped one
    return {k: value for k, value in body.items() if k not in typed or (value and "type" in value)}


# -- answers, read ---------------------------------------------------------------------

CLAUDE_DELTAS = dict(CLAUDE_TEXTS.values())


def claude_read_usage(usage: Json) -> Usage:
    """Read token counts; Claude's input is without what the cache held. spec/dialects.md 2.10."""
    fresh, read, write, output, reasoning = (number_at(usage, path) for path in CLAUDE_USAGE.values())
    rest = without(usage, CLAUDE_MODELLED["usage"])
    return Usage(fresh + read + write, read, write, output, reasoning, extra_of("claude", rest))


def claude_read_citation(citation: Json, length: int = 0) -> Citation:
    """Read a citation. It is about the whole block: from 0 to the block's `length`."""
    return Citation(
        url=first_said(citation, "url", "source"),
        title=first_said(citation, "title", "document_title"),
        end=length,
        text=citation.get("cited_text") or "",
        extra={"claude": citation},
    )


class ClaudeReader:
    """One answer on its way in: the parts, and what its end will need."""

    def __init__(self) -> None:
        self.parts = Parts(count())
        self.citations: list[Json] = []  # of the open block
        self.called = False  # is there a call that the client must answer?
        self.usage: Json = {}
        self.end: Json = {}
        self.ended = False  # has a stream said why? an answer may say it at its start, of what was before

    def message_start(self, payload: Json) -> Iterator[Event]:
        if self.parts.kinds:
            raise ProxyError("upstream_failed", "the upstream began a second answer within one")
        message = payload["message"]
        usage = [*self.read_usage(message)]
        yield MessageStart(message.get("id") or "", message.get("model") or "", usage=next(iter(usage), None))
        yield from usage
        self.end.update(without(message, CLAUDE_MODELLED["answer"]))
        for block in message.get("content") or ():  # whole, also in a stream after a server tool
            yield from self.content_block_start({"content_block": block})
            yield from self.content_block_stop(payload)

    def content_block_start(self, payload: Json) -> Iterator[Event]:
        yield from self.content_block_stop(payload)  # some gateways forget it
        block = payload["content_block"]
        if block["type"] in {"text", "thinking"}:
            block = {key: value for key, value in block.items() if value}  # its body is to come
        part = claude_read_part(block)
        yield from self.parts.open(part)
        self.citations = list(block.get("citations") or ())
        if part.kind in {"call", "hosted"}:
            yield from self.parts.begin()
            caller = object_in(block, "caller").get("type", "direct")  # of a call by code: it has its result
            self.called = self.called or (part.kind == "call" and caller == "direct")
        elif part.kind in CLAUDE_TEXTS:
            yield from self.parts.add("text", part.text)
            yield from self.parts.add("proof", part.proof)

    def content_block_delta(self, payload: Json) -> Iterator[Event]:
        delta, part = payload["delta"], self.parts.part or Part("")
        kind = delta["type"]
        if kind in CLAUDE_DELTAS and part.kind in CLAUDE_TEXTS:
            yield from self.parts.add("text", delta[CLAUDE_DELTAS[kind]])
        elif kind == "signature_delta" and part.kind == "thinking":
            yield from self.parts.add("proof", delta["signature"])
        elif kind == "citations_delta":
            self.citations.append(delta["citation"])
        elif part.kind == "opaque":
            whole = {**claude_own(part), **without(delta, frozenset({"type"}))}
            self.parts.part = part._replace(extra={"claude": whole})

    def content_block_stop(self, _payload: Json) -> Iterator[Event]:
        """End the open part. Arguments that came in no delta are those of the block's start."""
        parts, part = self.parts, self.parts.part
        if part is None:
            return
        if part.kind not in CLAUDE_TEXTS:
            yield from parts.whole(part)
            return
        if part.kind in {"call", "hosted"} and not parts.texts:
            yield from parts.add("text", part.text)
        text = "".join(parts.texts)
        if part.kind == "hosted":
            yield from parts.add("extra", {"claude": {**claude_own(part), "input": arguments_of(text)}})
        for citation in self.citations:
            yield from parts.add("citation", claude_read_citation(citation, len(text)))
        yield from parts.close()

    def read_usage(self, data: Json) -> Iterator[Usage]:
        """Overwrite the counts that `data` has; they are running totals."""
        counts = {key: n for key, n in object_in(data, "usage").items() if n is not None}
        self.usage.update(counts)
        if counts:
            yield claude_read_usage(self.usage)

    def message_delta(self, payload: Json) -> Iterator[Event]:
        self.end.update(without(payload, frozenset({"type", "delta", "usage"})))
        delta = object_in(payload, "delta")
        self.ended = bool(delta.get("stop_reason"))
        self.end.update(delta)
        yield from self.read_usage(payload)

    def message_stop(self, payload: Json) -> Iterator[Event]:
        """End the answer. Source of the precedence: spec/dialects.md 2.7."""
        yield from self.content_block_stop(payload)
        rest = dict(self.end)
        raw, sequence = rest.get("stop_reason") or "", rest.pop("stop_sequence", None) or ""
        finish = CLAUDE_FINISH.get(raw, "stop")
        if raw in CLAUDE_FINISH or not raw:
            rest.pop("stop_reason", None)  # any other has no row: for Claude's writer only
        if self.called and finish == "stop":
            finish = "tool_calls"
        yield MessageEnd(finish, sequence, raw, extra=extra_of("claude", rest))

    def error(self, payload: Json) -> Iterator[Event]:
        raise claude_error(payload)


CLAUDE_EVENTS: dict[str, Callable[[ClaudeReader, Json], Iterator[Event]]] = {  # skipped: others
    "message_start": ClaudeReader.message_start,
    "content_block_start": ClaudeReader.content_block_start,
    "content_block_delta": ClaudeReader.content_block_delta,
    "content_block_stop": ClaudeReader.content_block_stop,
    "message_delta": ClaudeReader.message_delta,
    "error": ClaudeReader.error,
}


def claude_read_response(body: Json, _request: Request) -> Events:
    """Read a whole answer."""
    if body.get("type") != "message":
        raise claude_error(body)
    reader = ClaudeReader()
    yield from reader.message_start({"message": body})
    yield from reader.message_stop(body)


def claude_read_stream(payloads: Iterable[Json], _request: Request) -> Events:
    """Read the payloads of a stream. Raises ProxyError for an error event, or if it ends early."""
    # `index` is not looked at: blocks never overlap, and some gateways leave it out.
    reader, kind = ClaudeReader(), ""
    parts = reader.parts
    for payload in payloads:
        kind = payload.get("type") or "error"
        if kind == "content_block_delta" and parts.begun:  # nearly all of them
            delta = payload["delta"]
            text = delta.get(CLAUDE_DELTAS.get(delta["type"]))
            if text:
                parts.texts.append(text)
                yield PartDelta(parts.at, "text", text)
                continue
        if kind == "message_stop":
            break
        if kind in CLAUDE_EVENTS:
            yield from CLAUDE_EVENTS[kind](reader, payload)
    if kind != "message_stop" and not reader.ended:
        raise ProxyError("upstream_failed", "the upstream closed the stream before message_stop")
    yield from reader.message_stop({})


# -- answers, written ------------------------------------------------------------------


def claude_write_usage(usage: Usage) -> Json:
    """Usage -> the three kinds of input, which add up to all of it.

    OpenRouter reports the same tokens as read from and written to the cache (recorded, 2026).
    """
    uncached = usage.input - usage.cache_read
    written_too = max(0, min(usage.cache_write, uncached))
    written: Json = {
        "input_tokens": max(0, uncached - written_too),
        "cache_read_input_tokens": usage.cache_read,
        "cache_creation_input_tokens": written_too,
        "output_tokens": usage.output,
    }
    if usage.reasoning:
        written["output_tokens_details"] = {"thinking_tokens": usage.reasoning}
    return claude_merge(written, claude_own(usage))


def claude_write_citation(citation: Citation) -> Json:
    """Write a citation; one from elsewhere has no index that Claude could take back."""
    source = {"url": citation.url, "title": citation.title, "cited_text": citation.text}
    made = {"type": "web_search_result_location", **source, "encrypted_index": ""}
    return claude_own(citation) or made


def claude_write_end(end: MessageEnd) -> Json:
    """Write why the answer ended: Claude's own word if it was Claude that ended it."""
    reason = "stop_sequence" if end.stop_sequence else CLAUDE_FINISH_WRITE[end.finish]
    if CLAUDE_FINISH.get(end.raw) == end.finish:
        reason = end.raw
    return {"stop_reason": reason, "stop_sequence": end.stop_sequence or None, **claude_own(end)}


def claude_write_start(start: MessageStart, request: Request) -> Json:
    """Write an answer in which there is nothing yet."""
    return {
        "id": start.id or f"msg_{digest(request.id, 'message')}",
        "type": "message",
        "role": "assistant",
        "model": start.model or request.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": claude_write_usage(start.usage or Usage()),
    }


def claude_shown(part: Part) -> Part | None:
    """Return a part of an answer if Claude has a block for it."""
    return part if part.kind != "media" and claude_writable(part) else None


class ClaudeWriter:
    """One stream on its way out: the open block, and what each of its text deltas begins with."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.begun = False
        self.at = -1  # index of the last block that was started
        self.part = Part("")  # the open one
        self.open = False  # is its block started?
        self.head = b""  # empty: no block is open, or none that takes deltas
        self.usage = Usage()
        self.end = MessageEnd("stop")

    def text(self, event: PartDelta) -> bytes:
        return self.head + quote(event.value).encode("ascii") + b"}}\n\n" if self.head else b""

    def delta(self, **delta: Any) -> bytes:
        return claude_frame("content_block_delta", index=self.at, delta=delta)

    def message_start(self, event: MessageStart) -> Iterator[bytes]:
        self.begun = True
        yield claude_frame("message_start", message=claude_write_start(event, self.request))

    def start(self, part: Part) -> bytes:
        """Start a block."""
        block = claude_write_part(part)
        if part.kind == "hosted":
            block = {**block, "input": {}}  # comes in deltas, like that of any call
        self.at, self.open = self.at + 1, True
        if part.kind in CLAUDE_TEXTS:
            self.head = CLAUDE_HEAD % (self.at, *(word.encode() for word in CLAUDE_TEXTS[part.kind]))
        return claude_frame("content_block_start", index=self.at, content_block=block)

    def part_start(self, event: PartStart) -> Iterator[bytes]:
        """Start a block, unless it must wait for its proof."""
        shown = claude_shown(event.part)
        self.part = shown or Part("")
        if shown and not shown.redacted:
            yield self.start(shown._replace(text=""))

    def part_delta(self, event: PartDelta) -> Iterator[bytes]:
        if event.field == "citation" and self.part.kind == "text":
            yield self.delta(type="citations_delta", citation=claude_write_citation(event.value))
        if event.field == "proof":  # of redacted thinking it is all there is; else it comes last
            self.part = self.part._replace(proof=event.value)
            if self.part.redacted:
                yield self.start(self.part)

    def part_end(self, _event: PartEnd) -> Iterator[bytes]:
        if self.part.kind == "thinking" and self.part.proof and not self.part.redacted:
            yield self.delta(type="signature_delta", signature=self.part.proof)
        if self.open:
            yield claude_frame("content_block_stop", index=self.at)
        self.head, self.open = b"", False

    def take_usage(self, event: Usage) -> Iterable[bytes]:
        self.usage = event
        return ()

    def message_end(self, event: MessageEnd) -> Iterable[bytes]:
        self.end = event
        return ()

    takes: ClassVar[Mapping[type, Callable[[Any, Any], Iterable[bytes]]]] = {
        MessageStart: message_start,
        PartStart: part_start,
        PartDelta: part_delta,
        PartEnd: part_end,
        Usage: take_usage,
        MessageEnd: message_end,
    }

    def finish(self) -> Iterator[bytes]:
        end, usage = claude_write_end(self.end), claude_write_usage(self.usage)
        aside = {key: end.pop(key) for key in ("context_management",) if key in end}
        last = claude_frame("message_delta", delta=end, usage=usage, **aside)
        yield last + claude_frame("message_stop")

    def fail(self, error: ProxyError) -> Iterator[bytes]:
        yield sse_frame(claude_write_error(error), "error")


CLAUDE_HEAD = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":"%b","%b":'
)


def claude_frame(kind: str, **fields: Any) -> bytes:
    return sse_frame({"type": kind, **fields}, kind)


def claude_write_answer(part: Part) -> Json:
    return {**claude_write_part(part), **filled(citations=[*map(claude_write_citation, part.citations)])}


def claude_write_response(response: Response, request: Request) -> Json:
    """Write a whole answer."""
    message = claude_write_start(response.start, request)
    for choice in response.choices[:1]:
        known = filter(None, map(claude_shown, choice.parts))
        message["content"] = [claude_write_answer(part) for part in known]
        message.update(claude_write_end(choice.end))
    message["usage"] = claude_write_usage(response.usage or Usage())
    return message


def claude_write_stream(events: Iterable[Event], request: Request) -> Frames:
    """Write events as frames; an error after the first becomes an `error` event, and the end."""
    return write_frames(ClaudeWriter(request), events)


# -- errors ----------------------------------------------------------------------------

CLAUDE_KINDS = {kind.claude: name for name, kind in reversed(KINDS.items())}
CLAUDE_KINDS.update(api_error="upstream_error", timeout_error="upstream_timeout")
CLAUDE_PHRASES = (  # a finer kind than the type tells
    ("exceed context limit", "context_too_long"),
    ("credit balance is too low", "billing"),
)


def claude_error(body: Any, status: int = 0) -> ProxyError:
    """Return the error in a body or an `error` event: the kind is told by its type, else by the HTTP status.

    `status` 0: it came with a 200.
    """
    said = error_said(body)
    message = error_words(said)
    error = error_of_status(status, message) if status else ProxyError("upstream_error", message)
    kind = CLAUDE_KINDS.get(str(said.get("type")), error.kind)
    error.kind = next((finer for phrase, finer in CLAUDE_PHRASES if phrase in message), kind)
    error.status = error.status if status else KINDS[error.kind].status
    return told_full(error)


def claude_read_error(status: int, body: bytes) -> ProxyError:
    """Read an error answer."""
    return claude_error(error_body(status, body), status)


def claude_write_error(error: ProxyError) -> Json:
    """Write the body of an error answer, which is that of an `error` event too."""
    message = words_for(error, "claude").replace(
        "x-api-key", "x-api key"
    )  # else Claude Code says "Not logged in"
    return {"type": "error", "error": {"type": KINDS[error.kind].claude, "message": message}}


########################################################################################
# 8. CHAT                                                                         [pure]
########################################################################################
# The Chat Completions API, OpenAI's own and that of the many who follow it, each in its own way.
# What a client of Chat said goes to an upstream of Chat as it came: the `extra` of what was read is that
# object; the settings of a request are written anew, and restored. Keys that begin with "_" are notes.
# QUIRKS of a target: max-tokens (knows no max_completion_tokens), system (no developer role),
# string-content (no lists of texts), empty-content (no null), no-stream-options,
# reasoning-content (wants the thinking of earlier turns back), short-ids, turn-after-tool (Mistral),
# completion-tokens, no-effort. Source: spec/dialects.md 1A, 4.4.


# -- tables ----------------------------------------------------------------------------


Quirks = frozenset[str]  # of a target

CHAT_PARAMS = words_read(PARAMS, "chat")
CHAT_PARAMS_WRITE = words_write(PARAMS, "chat")
CHAT_MODES = {  # tool_choice -> mode; any: Mistral's
    "auto": "auto", "none": "none", "required": "required", "any": "required",
}  # fmt: skip
CHAT_FORMATS = {"json_object": "json", "json_schema": "schema"}
CHAT_ROLES = ("system", "developer", "user", "assistant", "tool")
CHAT_FORMS = {"mpeg": "mp3", "x-wav": "wav", "wave": "wav"}  # MIME subtype of sound -> format
CHAT_FINISH = {  # beside OpenAI's: Mistral's model_length, OpenRouter's error
    **words_read(FINISH_REASONS, "chat"), "max_tokens": "length", "model_length": "length", "error": "error",
}  # fmt: skip
CHAT_FINISH_WRITE = words_write(FINISH_REASONS, "chat")
# fmt: off
CHAT_USAGE = (
    # field of Usage  details that have it         its names, the first that is filled; or of the usage itself, as Kimi and DeepSeek have it
    ("input",         "",                          ("prompt_tokens",)),
    ("cache_read",    "prompt_tokens_details",     ("cached_tokens", "prompt_cache_hit_tokens")),
    ("cache_write",   "prompt_tokens_details",     ("cache_write_tokens",)),
    ("output",        "",                          ("completion_tokens",)),
    ("reasoning",     "completion_tokens_details", ("reasoning_tokens",)),
)
# fmt: on
CHAT_COUNTS = frozenset(["total_tokens", *(name for *_, names in CHAT_USAGE for name in names)])
CHAT_SAYS = {"text": "content", "thinking": "reasoning_content", "refusal": "refusal"}
CHAT_WHERE = {"url": "by its URL", "file_id": "by its file id"}
CHAT_LATE = "See the attachment in the next message."  # a result that is all image


def chat_own(thing: Request | Message | Part | Tool | Usage) -> Json:
    return thing.extra.get("chat", EMPTY)


def chat_text(value: Any) -> str:
    """Return a text that some send as null, as an object, or as a list of texts."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        fields = ("text", "content", "summary")
        return "".join(chat_text(next(filter(None, map(item.get, fields)), "")) for item in value)
    return dumps_text(value)


def chat_cache(data: Json) -> str:
    """Return the cache breakpoint of a part or tool: OpenAI's mark, or (OpenRouter) Claude's."""
    mark = data.get("cache_control") or data.get("prompt_cache_breakpoint")
    if not mark:
        return ""
    return "1h" if mark.get("ttl") == "1h" else "5m"


# -- parts and messages, read ----------------------------------------------------------


def chat_media(kind: str, url: str, name: str = "", detail: str = "") -> Part:
    """Return the media behind a URL, which may hold the bytes themselves. Source: RFC 2397."""
    head, comma, data = url.partition(",")
    if not comma or head[:5].lower() != "data:":
        return Part("media", media=Media(kind, "url", url, "", name, detail))
    mime, *options = head[5:].lower().split(";")
    mime = "image/jpeg" if mime == "image/jpg" else mime or "text/plain"
    if "base64" not in options:
        data = base64.b64encode(unquote_to_bytes(data)).decode("ascii")
    return Part("media", media=Media(kind, "base64", data, mime, name, detail))


def chat_read_image(image: Json | str) -> Part:
    if isinstance(image, str):
        return chat_media("image", image)
    return chat_media("image", image["url"], detail=image.get("detail") or "")


def chat_read_sound(sound: Json) -> Part:
    return Part("media", media=Media("audio", "base64", sound["data"], f"audio/{sound['format']}"))


def chat_read_file(file: Json) -> Part:
    """Read a document. One by URL is OpenRouter's, and written for those who sent one."""
    name = file.get("filename") or ""
    if file.get("file_id"):
        return Part("media", media=Media("document", "file_id", file["file_id"], "", name))
    return chat_media("document", file["file_data"], name)


CHAT_PARTS: dict[str, Callable[[Any], Part]] = {  # type -> how the field that is named like it is read
    "text": partial(Part, "text"),
    "refusal": partial(Part, "refusal"),
    "image_url": chat_read_image,
    "input_audio": chat_read_sound,
    "file": chat_read_file,
}


def chat_read_part(part: Json) -> Part:
    kind = part["type"]
    if kind not in CHAT_PARTS:
        return Part("opaque", extra={"chat": part})
    return CHAT_PARTS[kind](part[kind])._replace(cache=chat_cache(part), extra={"chat": part})


def chat_read_content(content: str | list[Json] | None) -> tuple[Part, ...]:
    if isinstance(content, str):
        return (Part("text", content),)
    return tuple(map(chat_read_part, content or ()))


def chat_proof(data: Json) -> str:
    """Return a thought signature, in the slot of Google's compatibility endpoint."""
    return object_in(data, "extra_content", "google").get("thought_signature") or ""


def chat_read_call(call: Json) -> Part:
    """Read a call, or a delta of one."""
    custom = call.get("type") == "custom" or "function" not in call
    body = object_in(call, "custom" if custom else "function")
    text, name = chat_text(body.get("input" if custom else "arguments")), first_said(body, "name")
    return Part("call", text, first_said(call, "id"), name, proof=chat_proof(call), custom=custom)


def chat_read_said(message: Json) -> Iterator[Part]:
    """Read what an assistant said. Thinking comes as a text in one of two fields, or in both."""
    thought = message.get("reasoning_content") or message.get("reasoning")
    if thought and isinstance(thought, str):
        yield Part("thinking", thought)
    yield from chat_read_content(message.get("content"))
    if message.get("refusal") and not isinstance(message.get("content"), list):
        yield Part("refusal", message["refusal"])
    for call in message.get("tool_calls") or ():
        yield chat_read_call(call)._replace(id=call["id"], extra={"chat": call})


def chat_read_message(message: Json) -> Message:
    role = message["role"]
    if role not in CHAT_ROLES:
        words = f"unknown role {role!r}, not one of {', '.join(CHAT_ROLES)}"
        raise ProxyError("invalid_request", words, param="messages")
    if role == "assistant":
        return Message(role, tuple(chat_read_said(message)), {"chat": message})
    parts = chat_read_content(message.get("content"))
    if role == "tool":
        parts = (Part("result", id=message["tool_call_id"], parts=parts),)
    return Message(role, parts, {"chat": message})


# -- parts and messages, written -------------------------------------------------------


def chat_url(media: Media) -> str:
    return media.data if media.source == "url" else f"data:{media.mime};base64,{media.data}"


def chat_write_media(media: Media) -> Json:
    """Write media, a text document as text. Raises ProxyError for those that have no place."""
    where, form = (media.kind, media.source), media.mime.partition("/")[2]
    if media.source == "text":
        return {"type": "text", "text": f"{media.name}\n{media.data}".lstrip("\n")}
    if where in {("image", "base64"), ("image", "url")}:
        return {"type": "image_url", "image_url": filled(url=chat_url(media), detail=media.detail)}
    if where == ("audio", "base64"):
        sound = {"data": media.data, "format": CHAT_FORMS.get(form, form)}
        return {"type": "input_audio", "input_audio": sound}
    if where == ("document", "base64"):
        file = {"file_data": chat_url(media), "filename": media.name or "document.pdf"}
        return {"type": "file", "file": file}
    if where == ("document", "file_id"):
        return {"type": "file", "file": {"file_id": media.data}}
    message = f"this upstream takes no {media.kind} {CHAT_WHERE.get(media.source, '')}"
    raise ProxyError("invalid_request", f"{message}: send another", param="messages")


def chat_write_part(part: Part) -> Json:
    """Write a part; empty: a hosted call of another dialect, which has no place."""
    own = chat_own(part)
    if own or part.kind == "opaque":
        return own
    if part.media:
        return chat_write_media(part.media)
    return {"type": part.kind, part.kind: part.text}


def chat_write_parts(parts: Iterable[Part]) -> list[Json]:
    """Write what has a place in a message."""
    placed = (part for part in parts if part.media or part.kind in {"text", "refusal", "opaque"})
    return list(filter(None, map(chat_write_part, placed)))


def chat_write_content(parts: Iterable[Part]) -> str | list[Json]:
    """Write parts: a single plain text as a string, else a list."""
    wire = chat_write_parts(parts)
    plain = len(wire) == 1 and wire[0].keys() == {"type", "text"}
    return wire[0]["text"] if plain else wire


def chat_write_proof(proof: str) -> Json:
    return {"extra_content": {"google": {"thought_signature": proof}}} if proof else {}


def chat_write_call(part: Part) -> Json:
    """Write a call; of one that came from Chat the proof alone may have changed."""
    own = chat_own(part)
    if own and chat_proof(own) == part.proof:
        return own
    if own:
        return {**without(own, frozenset(["extra_content"])), **chat_write_proof(part.proof)}
    kind, field = ("custom", "input") if part.custom else ("function", "arguments")
    body = {"name": part.name, field: part.text}
    return {"id": part.id, "type": kind, kind: body, **chat_write_proof(part.proof)}


def chat_write_result(part: Part) -> Json:
    """Write a result as a text; the images that it shows come later."""
    wire = chat_write_parts(part.parts)
    texts = [item["text"] for item in wire if item["type"] == "text"]
    text = "\n".join(texts) if texts or not wire else CHAT_LATE
    if part.error and not text.startswith("Error: "):
        text = f"Error: {text}"
    return {"role": "tool", "tool_call_id": part.id, "content": text}


def chat_write_turn(message: Message) -> Iterator[Json]:
    """Write any message but an assistant's: results first, then their images and the rest."""
    rest: list[Part] = []
    for part in message.parts:
        if part.kind == "result":
            yield chat_write_result(part)
            rest += [item for item in part.parts if item.media and item.media.source != "text"]
    rest += [part for part in message.parts if part.kind != "result"]
    content = chat_write_content(rest)
    if content:
        yield {"role": "user" if message.role == "tool" else message.role, "content": content}


def chat_details(part: Part) -> list[Json]:
    """Return OpenRouter's details of thinking, if these are the proof of a part."""
    found = json_of(part.proof) if part.proof.startswith("[{") else []
    return found if isinstance(found, list) else []


def chat_write_said(parts: Iterable[Part], quirks: Quirks) -> Json:
    """Return the fields for what an assistant said, each of them a text."""
    written: Json = {}
    for part in parts:
        field = CHAT_SAYS.get(part.kind)
        hidden = part.kind == "thinking" and "reasoning-content" not in quirks
        if field and not hidden and (part.text or part.kind == "text"):
            written[field] = written.get(field, "") + part.text
    return {**written, "content": written.get("content")}


def chat_write_assistant(message: Message, quirks: Quirks) -> Iterator[Json]:
    parts = [part._replace(proof="") if chat_details(part) else part for part in message.parts]
    written = chat_write_said(parts, quirks)
    calls = [chat_write_call(part) for part in parts if part.kind == "call"]
    if calls:
        written["tool_calls"] = calls
    details = [entry for part in message.parts for entry in chat_details(part)]
    if details:
        written["reasoning_details"] = details
    if any(written.values()):
        yield {"role": "assistant", **written}


def chat_write_message(message: Message, quirks: Quirks) -> Iterable[Json]:
    """Write a message, as several if it holds results."""
    own = chat_own(message)
    if own:
        calls = [chat_write_call(part) for part in message.parts if part.kind == "call"]
        return [{**own, "tool_calls": calls} if calls else own]
    if message.role == "assistant":
        return chat_write_assistant(message, quirks)
    return chat_write_turn(message)


# -- requests, read --------------------------------------------------------------------


def chat_modern_messages(messages: Iterable[Json]) -> Iterator[Json]:
    last = ""
    for number, message in enumerate(messages):
        old = message.get("function_call")
        if old and message["role"] == "assistant":
            last = f"call_{digest('function_call', number, old['name'])}"
            calls = [{"id": last, "type": "function", "function": old}]
            yield {**without(message, frozenset({"function_call"})), "tool_calls": calls}
        elif message["role"] == "function":
            yield {"role": "tool", "tool_call_id": last, "content": message["content"]}
        else:
            yield message


def chat_modern(body: Json) -> Json:
    """Return a body in today's form: before November 2023 there were functions, one call a turn."""
    modern = {**body, "messages": list(chat_modern_messages(body["messages"]))}
    if body.get("functions"):
        tools = [{"type": "function", "function": function} for function in modern.pop("functions")]
        modern.update(tools=[*(body.get("tools") or ()), *tools], parallel_tool_calls=False)
    asked = modern.pop("function_call", None)
    if asked and not body.get("tool_choice"):
        named = isinstance(asked, dict)
        modern["tool_choice"] = {"type": "function", "function": asked} if named else asked
    return modern


def chat_read_tool(tool: Json) -> Tool:
    kind = tool.get("type", "function")
    if kind not in {"function", "custom"}:
        return Tool(kind, kind="hosted", extra={"chat": tool})
    body = tool[kind]
    schema, grammar = body.get("parameters"), object_in(body, "format").get("grammar")
    about, strict = first_said(body, "description"), body.get("strict")
    mark = chat_cache(tool)
    return Tool(body["name"], about, schema, kind, strict, grammar, cache=mark, extra={"chat": tool})


def chat_read_tools(body: Json) -> Iterator[Tool]:
    yield from map(chat_read_tool, body.get("tools") or ())
    if body.get("web_search_options") is not None:
        own = {"web_search_options": body["web_search_options"]}
        yield Tool("web_search", kind="hosted", extra={"chat": own})


def chat_read_choice(choice: Any) -> ToolChoice | None:
    """Read `tool_choice`; None for what has no counterpart."""
    if not isinstance(choice, dict):
        return ToolChoice(CHAT_MODES[choice]) if choice in CHAT_MODES else None
    kind = choice.get("type") or next(iter(choice), None)  # Hugging Face's has no type
    if kind == "allowed_tools":
        tools = [object_in(tool, tool["type"]) for tool in choice[kind]["tools"]]
        return ToolChoice(choice[kind]["mode"], tuple(tool["name"] for tool in tools if tool))
    named = kind in {"function", "custom"}
    return ToolChoice("required", (choice[kind]["name"],)) if named else None


def chat_read_format(form: Json) -> Format | None:
    if form.get("type") not in CHAT_FORMATS:
        return None
    kind, schema = CHAT_FORMATS[form["type"]], object_in(form, "json_schema")
    name, description = first_said(schema, "name"), first_said(schema, "description")
    return Format(kind, name, schema.get("schema"), schema.get("strict"), description)


def chat_read_params(body: Json) -> Json:
    """Return the parameters. Of two names for one the first of PARAMS counts; the smaller limit."""
    given = {name: body[name] for name in CHAT_PARAMS if body.get(name) is not None}
    params = {CHAT_PARAMS[name]: value for name, value in given.items()}
    limits = [given[name] for name in given if CHAT_PARAMS[name] == "max_tokens"]
    if limits:
        params["max_tokens"] = min(limits)
    if isinstance(params.get("stop"), str):
        params["stop"] = [params["stop"]]
    return params


def chat_read_request(body: Json) -> Request:
    """POST /v1/chat/completions body -> Request. Source: spec/dialects.md 1A.1 to 1A.3."""
    wire = chat_modern(body)
    messages = list(map(chat_read_message, wire.pop("messages")))
    lead = next((n for n, m in enumerate(messages) if SIDES.get(m.role) != "system"), len(messages))
    effort = wire.get("reasoning_effort")
    request = Request(
        "chat",
        wire["model"],
        tuple(messages[lead:]),
        system=tuple(part for message in messages[:lead] for part in message.parts),
        tools=tuple(chat_read_tools(wire)),
        choice=chat_read_choice(wire.get("tool_choice")),
        params=chat_read_params(wire),
        thinking=Thinking(effort if effort in EFFORTS else ""),
        format=chat_read_format(wire.get("response_format") or EMPTY),
        stream=bool(wire.get("stream")),
    )
    notes = {
        "_system": messages[:lead],
        "_old": bool(body.get("functions")),
        "_usage": object_in(wire, "stream_options").get("include_usage"),
    }
    rest = rest_of(wire, chat_write_settings(request))
    rest.update((key, value) for key, value in notes.items() if value)
    return request._replace(extra=extra_of("chat", rest))


# -- requests, written -----------------------------------------------------------------


def chat_write_tool(tool: Tool) -> Json:
    """Write a tool; empty: one that another upstream runs itself."""
    own = chat_own(tool)
    if own or tool.kind == "hosted":
        return own
    body = filled(name=tool.name, description=tool.description, parameters=tool.schema)
    form = tool.grammar and {"type": "grammar", "grammar": tool.grammar}
    body.update(filled(strict=tool.strict, format=form))
    return {"type": tool.kind, tool.kind: body}


def chat_write_tools(request: Request) -> Json:
    """Return the fields that hold tools. Of hosted ones those that came from Chat, and web search.

    That only for models made for it: others answer 400 "not supported with this model".
    """
    written = list(map(chat_write_tool, request.tools))
    tools = [tool for tool in written if tool and "web_search_options" not in tool]
    searches = [tool for tool in written if "web_search_options" in tool]
    wanted = any(tool.kind == "hosted" and tool.name == "web_search" for tool in request.tools)
    if wanted and "search" in request.model:
        searches.append({"web_search_options": {}})
    fields: Json = dict(searches[0]) if searches else {}
    if tools:
        fields["tools"] = tools
    return fields


def chat_write_choice(choice: ToolChoice, request: Request) -> Json | str:
    customs = {tool.name for tool in request.tools if tool.kind == "custom"}
    kinds = [(name, "custom" if name in customs else "function") for name in choice.names]
    named = [{"type": kind, kind: {"name": name}} for name, kind in kinds]
    if len(named) == 1 and choice.mode == "required":
        return named[0]
    allowed = {"mode": choice.mode, "tools": named}
    return {"type": "allowed_tools", "allowed_tools": allowed} if named else choice.mode


def chat_write_format(form: Format) -> Json:
    if form.kind == "json":
        return {"type": "json_object"}
    schema = {} if form.schema is None else {"schema": form.schema}
    more = filled(strict=form.strict, description=form.description)
    named = {"name": form.name or "response", **schema, **more}
    return {"type": "json_schema", "json_schema": named}


def chat_write_params(request: Request) -> Json:
    named = ((CHAT_PARAMS_WRITE.get(key), value) for key, value in request.params.items())
    written = {name: value for name, value in named if name}
    if all(tool.kind == "hosted" for tool in request.tools):
        written.pop("parallel_tool_calls", None)  # a 400 without tools
    if request.thinking.effort not in {"", "auto"}:
        written["reasoning_effort"] = request.thinking.effort
    return written


def chat_write_settings(request: Request) -> Json:
    """Write all of a body but its messages and the form of the answer."""
    body = {**chat_write_params(request), **chat_write_tools(request)}
    body["model"] = request.model
    if request.choice and "tools" in body:
        body["tool_choice"] = chat_write_choice(request.choice, request)
    if request.format:
        body["response_format"] = chat_write_format(request.format)
    return body


CHAT_REFUSED = {  # quirk -> words that hosts with it refuse: fields, and a role. Reports of 2026-04 name Mistral and Gemini
    "max-tokens": frozenset(["store"]), "system": frozenset(["store", "developer"]),
    "no-stream-options": frozenset(
        "stream_options prompt_cache_key prompt_cache_retention safety_identifier service_tier verbosity".split()
    ),
    "no-effort": frozenset(["reasoning_effort"]),
}  # fmt: skip
CHAT_LOOKS = {  # quirk -> what a body may hold that such hosts want otherwise
    **CHAT_REFUSED, "reasoning-content": frozenset(["tool_calls"]), "short-ids": frozenset(["tool_calls"]),
    "turn-after-tool": frozenset(["tool"]),
}  # fmt: skip
CHAT_BETWEEN: Json = {"role": "assistant", "content": "Done."}  # tools and the user
CHAT_UNTHOUGHT = "..."  # the thinking of a turn of another model: DeepSeek and Kimi refuse to have none
SHORT_ID = re.compile(r"[a-zA-Z0-9]{9}")


def chat_limit(quirks: Quirks) -> tuple[str, str]:
    """Return what the limit of an answer must be called, and what not; empty if it does not matter."""
    if "completion-tokens" in quirks:
        return "max_completion_tokens", "max_tokens"
    return ("max_tokens", "max_completion_tokens") if "max-tokens" in quirks else ("", "")


def chat_odd(raw: bytes | bytearray, quirks: Quirks, model: str) -> bool:
    """Tell whether a body, not decoded, may hold what the model, or a host with such quirks, refuses."""
    quirks |= model_quirks(model)
    words = [word for quirk in CHAT_LOOKS if quirk in quirks for word in CHAT_LOOKS[quirk]]
    words += filter(None, chat_limit(quirks)[1:])
    return any(f'"{word}"'.encode() in raw for word in words)


def chat_short_id(id: str) -> str:
    return id if SHORT_ID.fullmatch(id) else digest(id)[:9]


def chat_fit_calls(message: Json, quirks: Quirks) -> Json:
    """Return the fields of a message with calls, or a result of one, that a host wants otherwise."""
    changed: Json = {}
    calls, result = message.get("tool_calls") or (), message.get("tool_call_id")
    if "short-ids" in quirks:
        short = [{**call, "id": chat_short_id(call["id"])} for call in calls]
        if short:
            changed["tool_calls"] = short
        if result:
            changed["tool_call_id"] = chat_short_id(result)
    return changed


def chat_with_thoughts(messages: Iterable[Json]) -> Iterator[Json]:
    """Yield messages, those with calls with the thinking that must not be empty there.

    Where none came, it is the latest one, else the text beside the calls. Source: spec/providers.md 8.
    """
    latest = ""
    for message in messages:
        told = message.get("reasoning_content")
        latest = told or message.get("reasoning") or latest
        if told or not message.get("tool_calls"):
            yield message
            continue
        content = message.get("content")
        text = content if isinstance(content, str) else ""
        yield {**message, "reasoning_content": latest or text or CHAT_UNTHOUGHT}


def chat_fit_message(message: Json, quirks: Quirks) -> Json:
    """Return a message as a host with such quirks takes it; `message` itself if so it is."""
    content, changed = message.get("content"), chat_fit_calls(message, quirks)
    if message["role"] == "developer" and "system" in quirks:
        changed["role"] = "system"
    if content is None and "empty-content" in quirks:
        changed["content"] = ""
    if isinstance(content, list) and "string-content" in quirks:
        texts = [part.get("text") for part in content if part.get("type") == "text"]
        if len(texts) == len(content):
            changed["content"] = "\n\n".join(texts)
    same = all(message.get(key) == value for key, value in changed.items())
    return message if same else {**message, **changed}


def chat_fit_messages(messages: list[Json], quirks: Quirks) -> Iterator[Json]:
    last = ""
    for message in messages:
        role = message["role"]
        if "turn-after-tool" in quirks and last == "tool" and role not in {"tool", "assistant"}:
            yield CHAT_BETWEEN
        yield chat_fit_message(message, quirks)
        last = role


def chat_fitted(body: Json, quirks: Quirks) -> Json:
    """Return a body as its model and a host with such quirks take it; `body` itself if so it is."""
    fitted, quirks = body, quirks | model_quirks(str(body.get("model")))
    right, wrong = chat_limit(quirks)
    for quirk, refused in CHAT_REFUSED.items():
        if quirk in quirks and not refused.isdisjoint(fitted):
            fitted = without(fitted, refused)
    if wrong in body:
        limit = body.get("max_completion_tokens", body.get("max_tokens"))
        fitted = {**without(fitted, frozenset([wrong])), right: limit}
    said = body.get("messages") or []
    thought = list(chat_with_thoughts(said)) if "reasoning-content" in quirks else said
    messages = list(chat_fit_messages(thought, quirks))
    if len(messages) > len(said) or any(new is not old for new, old in zip(messages, said)):
        fitted = {**fitted, "messages": messages}
    return fitted


def chat_write_request(request: Request, target: Target) -> Json:
    """Request -> POST /v1/chat/completions body."""
    own, quirks = chat_own(request), target.quirks
    whole = [*(own.get("_system") or [Message("system", request.system)]), *request.messages]
    if request.dialect != "chat":
        whole = [
            Message("system", request.system),
            *(Message(*turn) for turn in answered_turns(request.messages)),
        ]
    body = restored(chat_write_settings(request), own)
    body["messages"] = [wire for message in whole for wire in chat_write_message(message, quirks)]
    if request.stream:
        options = body.pop("stream_options", None) or EMPTY
        body.update(stream=True, stream_options={**options, "include_usage": True})
    return chat_fitted(body, quirks)


# -- answers, read ---------------------------------------------------------------------


def chat_read_usage(usage: Json) -> Usage:
    """Read `usage`; what it says beside the numbers is kept."""
    counts: Json = {}
    for field, details, names in CHAT_USAGE:
        paths = [*((details, name) for name in names), *((name,) for name in names)]
        counts[field] = next(filter(None, (number_at(usage, path) for path in paths)), 0)
    rest = without(usage, CHAT_COUNTS)
    for details in ("prompt_tokens_details", "completion_tokens_details"):
        told = usage.get(details)
        rest[details] = without(told, CHAT_COUNTS) if isinstance(told, dict) else {}
    return Usage(**counts, extra=extra_of("chat", {key: value for key, value in rest.items() if value}))


def chat_read_citation(annotation: Json) -> Citation | None:
    cited = object_in(annotation, "url_citation")
    start, end = cited.get("start_index") or 0, cited.get("end_index") or 0
    url, title, text = (first_said(cited, name) for name in ("url", "title", "content"))
    return Citation(url, title, start, end, text) if cited else None


CHAT_DETAILS = {
    "reasoning.text": "text",
    "reasoning.summary": "summary",
}  # type of an entry -> what comes in pieces


def chat_joined_details(pieces: Iterable[Json]) -> list[Json]:
    """Join OpenRouter's details of thinking: a text comes in many pieces, its signature with the last."""
    joined: list[Json] = []
    texts: list[list[str]] = []
    for piece in pieces:
        last = joined[-1] if joined else EMPTY
        field = CHAT_DETAILS.get(piece.get("type") or "", "")
        if not field or any(piece.get(key) != last.get(key) for key in ("type", "index")):
            joined.append({})
            texts.append([])
        joined[-1].update((key, value) for key, value in piece.items() if value is not None)
        texts[-1].append(piece.get(field) or "")
    for entry, said in zip(joined, texts):
        if entry.get("type") in CHAT_DETAILS:
            entry[CHAT_DETAILS[entry["type"]]] = "".join(said)
    return joined


class ChatLane:
    """A call under way, or what came after one: what is said of it waits until it flows."""

    def __init__(self, part: Part, index: Any = None) -> None:
        self.part, self.index = part, index
        self.given = part.id  # on the wire
        self.said: list[tuple[str, Any]] = []  # fields and values that wait
        self.flows = False
        self.tail = ""  # the last piece of its text


class ChatChoice:
    """One choice of an answer under way.

    Calls may be added to until the end, though the wire interleaves them: the oldest flows, the others
    and all that comes after them wait in a row behind it. Source: spec/dialects.md 5.2.
    """

    def __init__(self, number: int, reader: ChatReader) -> None:
        self.reader, self.parts = reader, Parts(reader.numbers, number)
        self.row: list[ChatLane] = []  # the first one is a call, and flows once its name is known
        self.citations: list[Citation] = []  # that came before their text
        self.thought = ""  # the field that thinking comes in
        self.details: list[Json] = []  # OpenRouter's, of thinking: the proof of it
        self.audio: Json = {}
        self.finish = ""

    def flow(self) -> Iterator[Event]:
        """Tell what is known of the first in the row."""
        lane, parts = self.row[0], self.parts
        if not lane.flows and (lane.part.name or lane.part.kind != "call"):
            lane.flows = True
            yield from parts.open(lane.part)
            yield from parts.begin()
        if lane.flows:
            for field, value in lane.said:
                yield from parts.add(field, value)
            lane.said.clear()

    def add(self, field: str, value: Any, lane: ChatLane | None = None) -> Iterator[Event]:
        """Say something of a call, or else of the last part."""
        lane = lane or (self.row[-1] if self.row else None)
        if lane is None:
            yield from self.parts.add(field, value)
        elif value:
            lane.said.append((field, value))
            lane.tail = value if field == "text" else lane.tail
            if lane is self.row[0]:
                yield from self.flow()

    def vouch(self) -> Iterator[Event]:
        """Put the proof of thinking on the last part if it is that, else on an empty one."""
        if not self.details:
            return
        proof = dumps(chat_joined_details(self.details))
        self.details = []
        last = self.row[-1].part if self.row else self.parts.part
        if last is None or last.kind != "thinking":
            yield from self.open(Part("thinking"))
        yield from self.add("proof", proof)

    def open(self, part: Part) -> Iterator[Event]:
        """Let a part follow, of which more is to be said."""
        if self.row:
            self.row.append(ChatLane(part))
        else:
            yield from self.parts.open(part)

    def say(self, kind: str, text: str) -> Iterator[Event]:
        """Go on with a text, thinking or refusal, or begin one."""
        if text and kind != "thinking":
            yield from self.vouch()
        if text and not self.row:
            yield from self.parts.say(Part(kind, text))
        elif text:
            if self.row[-1].part.kind != kind:
                self.row.append(ChatLane(Part(kind)))
            yield from self.add("text", text)
        while text and kind == "text" and self.citations:
            yield from self.add("citation", self.citations.pop(0))

    def show(self, part: Part) -> Iterator[Event]:
        """Tell of media, which come whole."""
        yield from self.vouch()
        if self.row:
            self.row.append(ChatLane(part))
        else:
            yield from self.parts.whole(part)

    def end(self) -> Iterator[Event]:
        calls = [lane for lane in self.row if lane.part.kind == "call"]
        if not self.finish and any(lane.tail.rstrip()[-1:] not in {"", "}"} for lane in calls):
            raise ProxyError("upstream_failed", "the upstream ended its stream in the middle")
        if self.audio:
            form = object_in(chat_own(self.reader.request), "audio").get("format", "wav")
            media = Media("audio", "base64", first_said(self.audio, "data"), f"audio/{form}")
            yield from self.show(Part("media", media=media, extra={"chat": self.audio}))
        yield from self.vouch()
        while self.row:
            lane = self.row[0]
            if lane.part.kind == "call" and lane.tail and not lane.part.name:
                raise ProxyError("upstream_failed", NAMELESS)
            yield from self.flow()
            yield from self.parts.close()
            del self.row[0]
        yield from self.parts.close()

    def reason(self) -> str:
        """Derive why it ended from what came: some say `stop`, or nothing, after calls."""
        finish = CHAT_FINISH.get(self.finish, "stop")
        if finish == "tool_calls" and self.parts.kinds <= UNSEEN:
            return "error"
        usual = "tool_calls" if "call" in self.parts.kinds else "stop"
        return usual if finish in {"stop", "tool_calls"} else finish

    def read_texts(self, delta: Json) -> Iterator[Event]:
        """Read thinking, of which vendors fill several fields alike, text and refusal.

        `content` is a text, or (Mistral) a list of texts and thinking.
        """
        told = (field for field in CHAT_THOUGHTS if chat_text(delta.get(field)))
        self.thought = self.thought or next(told, "")
        yield from self.say("thinking", chat_text(delta.get(self.thought)))
        self.details += delta.get("reasoning_details") or ()
        content = delta.get("content")
        for item in content if isinstance(content, list) else ({"text": content},):
            yield from self.say("thinking", chat_text(item.get("thinking")))
            yield from self.say("text", chat_text(item.get("text")))
        yield from self.say("refusal", chat_text(delta.get("refusal")))

    def read_annotations(self, delta: Json) -> Iterator[Event]:
        for annotation in delta.get("annotations") or ():
            citation = chat_read_citation(annotation)
            last = self.row[-1].part if self.row else self.parts.part
            if citation and last and last.kind == "text":
                yield from self.add("citation", citation)
            elif citation:
                self.citations.append(citation)

    def read_shown(self, delta: Json) -> Iterator[Event]:
        """Read the generated images of OpenRouter, and gather the pieces of a spoken answer."""
        for image in delta.get("images") or ():
            yield from self.show(chat_read_part(image))
        for key, value in (delta.get("audio") or EMPTY).items():
            if value and key in {"data", "transcript"}:
                self.audio[key] = self.audio.get(key, "") + value
            elif value:
                self.audio[key] = value

    def find_call(self, index: Any, part: Part) -> ChatLane | None:
        """Return the call that a delta goes on with, by index, else by id, else the last; None: a new one."""
        calls = [lane for lane in self.row if lane.part.kind == "call"]
        if index is None and not part.id:
            return calls[-1] if calls and not part.name else None
        same = [lane for lane in calls if (lane.given == part.id if index is None else lane.index == index)]
        return same[-1] if same and (not part.id or same[-1].given in {"", part.id}) else None

    def read_calls(self, delta: Json) -> Iterator[Event]:
        """Read pieces of calls, or of the one call that there was before November 2023."""
        old = delta.get("function_call") or EMPTY
        olds = [{"index": 0, "function": old}] if any(old.values()) else []
        for call in delta.get("tool_calls") or olds:
            part, index = chat_read_call(call), call.get("index")
            lane = self.find_call(index, part)
            if lane is None:
                yield from self.vouch()
                yield from () if self.row else self.parts.close()
                lane = ChatLane(part, index)
                lane.part = part._replace(id=self.reader.id_of(part.id), text="", proof="")
                self.row.append(lane)
            elif not lane.part.name:
                lane.part = lane.part._replace(name=part.name)
            if lane is self.row[0]:
                yield from self.flow()
            yield from self.add("text", part.text, lane)
            yield from self.add("proof", part.proof, lane)

    def read(self, row: Json) -> Iterator[Event]:
        whole = None if self.parts.kinds else row.get("message")  # not streamed, or all at the end
        delta = row.get("delta") or whole or EMPTY
        for fields, read in CHAT_DELTAS:
            if not fields.isdisjoint(delta):
                yield from read(self, delta)
        tokens = object_in(row, "logprobs").get("content")
        if tokens and self.parts.begun:
            yield from self.parts.add("logprobs", tokens)
        self.finish = row.get("finish_reason") or self.finish


CHAT_THOUGHTS = ("reasoning_content", "reasoning", "reasoning_details")  # the first that is filled
CHAT_DELTAS = (  # in the order in which their parts stand in the answer
    (frozenset([*CHAT_THOUGHTS, "content", "refusal"]), ChatChoice.read_texts),
    (frozenset(["annotations"]), ChatChoice.read_annotations),
    (frozenset(["images", "audio"]), ChatChoice.read_shown),
    (frozenset(["tool_calls", "function_call"]), ChatChoice.read_calls),
)


class ChatReader:
    """Reads one answer: its choices, and what is known of all of them."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.numbers = itertools.count()  # of the parts of all choices
        self.ids: set[str] = set()  # of calls
        self.choices: dict[int, ChatChoice] = {}
        self.texts: dict[int, int] = {}  # choice -> number of its text part, while that flows
        self.usage: Usage | None = None
        self.done = False  # has the upstream said that nothing more comes?

    def id_of(self, given: str) -> str:
        """Return a call's id, or another one if it is missing or taken."""
        made = f"call_{digest(self.request.id, len(self.ids), given)}"
        name = given if given and given not in self.ids else made
        self.ids.add(name)
        return name

    def quick(self, chunk: Json) -> PartDelta | None:
        """Return the event of the commonest of chunks, one more piece of text; None for others."""
        try:
            (choice,) = chunk["choices"]
            delta = choice["delta"]
            text = delta["content"]
            at = self.texts[choice["index"]]
        except (LookupError, TypeError, ValueError):
            return None
        if len(delta) > 1 or not text or choice.get("finish_reason") or choice.get("logprobs"):
            return None
        if type(text) is not str or chunk.get("usage"):
            return None
        return PartDelta(at, "text", text)

    def check(self, chunk: Json, rows: Iterable[Json]) -> None:
        """Raise ProxyError if a chunk holds an error, in any of the places in use."""
        failed = next((holder for holder in (chunk, *rows) if holder.get("error")), None)
        bare = chunk.get("object") == "error" or ("detail" in chunk and "choices" not in chunk)
        if failed or bare:
            raise chat_error(failed or chunk)

    def read(self, chunk: Json) -> Iterator[Event]:
        self.done = self.done or chunk == DONE
        rows = chunk.get("choices") or ()
        self.check(chunk, rows)
        for holder in (chunk, *rows, chunk.get("x_groq") or EMPTY):
            if holder.get("usage"):
                self.usage = chat_read_usage(holder["usage"])
        if rows and not self.choices:
            created = chunk.get("created") or 0
            yield MessageStart(first_said(chunk, "id"), first_said(chunk, "model"), created)
        for row in rows:
            number = row.get("index") or 0
            choice = self.choices.setdefault(number, ChatChoice(number, self))
            yield from choice.read(row)
            parts = choice.parts
            self.texts.pop(number, None)
            if parts.begun and parts.part and parts.part.kind == "text":
                self.texts[number] = parts.at

    def end(self) -> Iterator[Event]:
        choices = sorted(self.choices.items())
        for _, choice in choices:
            yield from choice.end()
        if not any(choice.finish or choice.parts.kinds for _, choice in choices):
            raise ProxyError("upstream_failed", "the upstream's answer ended before it began")
        if not self.done and not all(choice.finish for _, choice in choices):
            raise ProxyError("upstream_failed", "the upstream ended its stream in the middle")
        if self.usage:
            yield self.usage
        for number, choice in choices:
            yield MessageEnd(choice.reason(), raw=choice.finish, choice=number)


def chat_read_response(body: Json, request: Request) -> Events:
    """Read a whole answer: a stream of one chunk, with messages instead of deltas."""
    return chat_read_stream((body, DONE), request)


def chat_read_stream(chunks: Iterable[Json], request: Request) -> Events:
    """Chunks -> events. An end without a finish is fine after DONE, if there was output (4.4)."""
    reader = ChatReader(request)
    for chunk in chunks:
        event = reader.quick(chunk)
        if event:
            yield event
        else:
            yield from reader.read(chunk)
    yield from reader.end()


# -- answers, written ------------------------------------------------------------------


def chat_write_usage(usage: Usage) -> Json:
    counts: Json = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": usage.input + usage.output}
    for field, details, (name, *_) in CHAT_USAGE:
        holder = counts.setdefault(details, {}) if details else counts
        holder[name] = getattr(usage, field)
    return restored(counts, chat_own(usage))


def chat_write_citation(citation: Citation, before: int, length: int) -> Json:
    """Write a citation in a text of `length`, with `before` code points of text before it."""
    start, end = before + citation.start, before + (citation.end or length)
    cited = {"url": citation.url, "title": citation.title, "start_index": start, "end_index": end}
    cited.update(filled(content=citation.text))
    return {"type": "url_citation", "url_citation": cited}


def chat_write_shown(part: Part) -> Json:
    """Write generated media: images in OpenRouter's field, sound in OpenAI's, no other."""
    media = part.media or Media("", "", "")
    if media.kind == "audio":
        sound = {"id": f"audio_{digest(media.data)}", "data": media.data}
        return {"audio": {**sound, "transcript": "", "expires_at": 0, **chat_own(part)}}
    return {"images": chat_write_parts([part])} if media.kind == "image" else {}


class ChatOut:
    """What was written of one choice, and the part that is open."""

    begun = False
    calls = 0  # before the open part
    before = 0  # code points of text before it
    cited = 0  # annotations: the SDK wants them numbered in a stream
    proof = ""  # of thinking, for the next call: it has no slot for its own
    part = Part("text")  # the open one; what waits for its end is added to it
    shown = False  # is it?
    size = 0  # code points of its text so far
    frame: tuple[str, str] | None = None  # around each piece of its text in a stream

    def __init__(self, choice: int) -> None:
        self.choice = choice

    def open(self, part: Part) -> None:
        self.part, self.size = part, 0
        self.frame = None
        self.shown = part.kind in {*CHAT_SAYS, "call", "media"} and not part.redacted


class ChatWriter:
    """Turns events into rows of `choices`, each with a delta, for streams and whole answers alike."""

    def __init__(self, request: Request) -> None:
        own = chat_own(request)
        self.request = request
        self.old = "_old" in own  # a client of before November 2023
        self.asked = "_usage" in own
        self.begun = False
        self.choices: dict[int, ChatOut] = {}
        self.parts: dict[int, ChatOut] = {}  # number of an open part -> its choice
        self.head: Json = {}
        self.usage: Usage | None = None

    def row(self, out: ChatOut, delta: Json, finish: str | None = None, tokens: Any = None) -> Json:
        logprobs = {"content": tokens, "refusal": None} if tokens else None
        return {"index": out.choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish}

    def call(self, out: ChatOut, call: Json) -> Json:
        if self.old:
            return self.row(out, {"function_call": call["function"]})
        return self.row(out, {"tool_calls": [{"index": out.calls, **call}]})

    def body(self, out: ChatOut, text: str, **fields: Any) -> Json:
        """Return the row that adds to the body of a part."""
        if out.part.kind == "call":
            kind, field = ("custom", "input") if out.part.custom else ("function", "arguments")
            return self.call(out, {kind: {field: text}, **fields})
        return self.row(out, {CHAT_SAYS[out.part.kind]: text})

    def begin(self, out: ChatOut, content: str | None) -> Iterator[Json]:
        """Name the role, in the first delta of a choice."""
        if not out.begun:
            out.begun = self.begun = True
            yield self.row(out, {"role": "assistant", "content": content})

    def message_start(self, event: MessageStart) -> Iterator[Json]:
        self.head = {
            "id": event.id or f"chatcmpl-{self.request.id}",
            "object": "chat.completion.chunk",
            "created": event.created or self.request.created,
            "model": event.model or self.request.model,
        }
        return iter(())

    def part_start(self, event: PartStart) -> Iterator[Json]:
        part, out = event.part, self.choices.setdefault(event.choice, ChatOut(event.choice))
        self.parts[event.at] = out
        out.open(part)
        if out.shown:
            yield from self.begin(out, "" if part.kind == "text" else None)
        if part.kind == "call":
            yield self.call(out, chat_write_call(part._replace(text="", proof=out.proof)))
        elif part.kind == "media":
            yield self.row(out, chat_write_shown(part))

    def part_delta(self, event: PartDelta) -> Iterator[Json]:
        out = self.parts[event.at]
        if event.field == "text" and out.shown:
            out.size += len(event.value)
            yield self.body(out, event.value)
        elif event.field == "logprobs" and out.shown:
            yield self.row(out, {}, tokens=event.value)
        elif event.field in {"citation", "proof"}:
            out.part = part_with(out.part, event)

    def part_end(self, event: PartEnd) -> Iterator[Json]:
        out = self.parts.pop(event.at)
        details = chat_details(out.part)
        if details:
            yield self.row(out, {"reasoning_details": details})
        elif out.part.kind == "thinking":
            out.proof = out.part.proof or out.proof
        elif out.part.kind == "text":
            yield from self.end_text(out)
        elif out.part.kind == "call":
            yield from self.end_call(out)

    def end_text(self, out: ChatOut) -> Iterator[Json]:
        cited = [chat_write_citation(one, out.before, out.size) for one in out.part.citations]
        if cited:
            entries = [{"index": at, **one} for at, one in enumerate(cited, out.cited)]
            yield self.row(out, {"annotations": entries})
        out.cited += len(cited)
        out.before += out.size

    def end_call(self, out: ChatOut) -> Iterator[Json]:
        part = out.part
        if not out.size and not part.custom:
            yield self.body(out, "{}")
        if part.proof and not out.proof and not self.old:
            # with empty arguments, for the SDK asserts that there is a function
            yield self.body(out, "", **chat_write_proof(part.proof))
        out.calls += 1
        out.proof = ""

    def count(self, event: Usage) -> Iterator[Json]:
        self.usage = event
        return iter(())

    def message_end(self, event: MessageEnd) -> Iterator[Json]:
        """Write why it ended. A failure that left nothing is an error: a retry may do better."""
        out = self.choices.setdefault(event.choice, ChatOut(event.choice))
        if event.finish == "error" and not out.begun:
            words = f"the upstream gave no answer: {event.raw or 'error'}"
            raise ProxyError("upstream_failed", words)
        yield from self.begin(out, "")
        finish = CHAT_FINISH_WRITE[event.finish]
        old = self.old and finish == "tool_calls"
        yield self.row(out, {}, "function_call" if old else finish)

    rows: ClassVar[Mapping[type, Callable[..., Iterator[Json]]]] = {
        MessageStart: message_start, PartStart: part_start, PartDelta: part_delta, PartEnd: part_end,
        Usage: count, MessageEnd: message_end,
    }  # fmt: skip

    def write(self, event: Event) -> Iterator[Json]:
        """Return the rows of `choices` that an event becomes."""
        return self.rows[type(event)](self, event)

    def frame(self, row: Json) -> bytes:
        chunk = {**self.head, "choices": [row]}
        if self.asked:
            chunk["usage"] = None
        return sse_frame(chunk)

    def frames(self, event: Event) -> Iterator[bytes]:
        return map(self.frame, self.write(event))

    takes: ClassVar[Mapping[type, Callable[[Any, Any], Iterable[bytes]]]] = dict.fromkeys(rows, frames)

    def text(self, event: PartDelta) -> bytes:
        """Return the frame of a piece of text: nearly all are."""
        out, text = self.parts[event.at], event.value
        if out.shown:
            before, after = out.frame or self.wrap(out)
            out.size += len(text)
            return f"{before}{quote(text)}{after}".encode("ascii")
        return b""

    def wrap(self, out: ChatOut) -> tuple[str, str]:
        """Return what stands around a piece of text in its frame: made once a part."""
        before, _, after = self.frame(self.body(out, "\0")).decode("ascii").rpartition('"\\u0000"')
        out.frame = before, after
        return out.frame

    def finish(self) -> Iterator[bytes]:
        if self.usage and self.asked:
            yield sse_frame({**self.head, "choices": [], "usage": chat_write_usage(self.usage)})
        yield b"data: [DONE]\n\n"

    def fail(self, error: ProxyError) -> Iterator[bytes]:
        yield sse_frame(chat_write_error(error))


CHAT_INDEX = frozenset({"index"})  # of an entry of a list: only streams have it


def chat_fold(message: Json, delta: Json) -> None:
    """Add a delta to a message, as clients do: texts join, entries of lists are told by index."""
    for key, value in delta.items():
        before = message.get(key)
        if key == "reasoning_details":
            message[key] = [*(before or ()), *value]
        elif isinstance(value, list):
            entries = message.setdefault(key, [])
            for entry in value:
                at = entry.get("index", len(entries))
                entries[at:] = entries[at:] or [{}]
                chat_fold(entries[at], without(entry, CHAT_INDEX))
        elif isinstance(value, dict):
            chat_fold(message.setdefault(key, {}), value)
        else:
            message[key] = before + value if isinstance(before, str) else value


def chat_write_choice_whole(choice: Choice, numbers: Iterator[int], writer: ChatWriter) -> Json:
    """Return a whole choice: what its rows become where a client puts them together."""
    message: Json = {"refusal": None}
    events = (event for part in choice.parts for event in part_events(next(numbers), part, choice.end.choice))
    rows = [row for event in (*events, choice.end) for row in writer.write(event)]
    for row in rows:
        chat_fold(message, row.pop("delta"))
    tokens = {"content": [*choice.logprobs], "refusal": None} if choice.logprobs else None
    return {**rows[-1], "message": message, "logprobs": tokens}


def chat_write_response(response: Response, request: Request) -> Json:
    """Response -> chat.completion object. Source: spec/dialects.md 1A.4."""
    writer, numbers = ChatWriter(request), itertools.count()
    writer.message_start(response.start)
    choices = [chat_write_choice_whole(choice, numbers, writer) for choice in response.choices]
    body = {**writer.head, "object": "chat.completion", "choices": choices}
    if response.usage:
        body["usage"] = chat_write_usage(response.usage)
    return body


def chat_write_stream(events: Iterable[Event], request: Request) -> Frames:
    """Events -> frames of chunks, each sent before the next event is pulled."""
    return write_frames(ChatWriter(request), events)


# -- errors ----------------------------------------------------------------------------


CHAT_KINDS = {  # an error's `code` or `type` -> kind
    **{row.code: kind for kind, row in KINDS.items() if row.code},
    "authentication_error": "unauthorized", "permission_error": "forbidden", "not_found_error": "not_found",
    "rate_limit_error": "rate_limited", "requests": "rate_limited", "tokens": "rate_limited",
    "overloaded_error": "overloaded", "service_unavailable": "overloaded",
}  # fmt: skip


def chat_error(body: Any, status: int = 0) -> ProxyError:
    """Return the error in a body or payload; `status` 0: it came with a 200."""
    error = error_said(body)
    message, words = error_words(error), [str(error.get(key)) for key in ("code", "type")]
    numbers = (error.get(key) for key in ("status_code", "code", "status"))
    told = (number for number in numbers if isinstance(number, int) and 400 <= number < 600)
    status = status if status >= 400 else next(told, 0)
    kind = next((CHAT_KINDS[word] for word in words if word in CHAT_KINDS), "")
    if not kind and not status:
        kind = "invalid_request" if "invalid_request_error" in words else "upstream_error"
    usual = error_of_status(status, message)
    wait, param = error_wait(dumps(error)), error.get("param") or ""
    made = ProxyError(kind or usual.kind, message, retry_after=wait, param=param)
    made.status = status or made.status
    return told_full(made)


def chat_read_error(status: int, body: bytes) -> ProxyError:
    """HTTP status and body -> error."""
    return chat_error(error_body(status, body), status)


def chat_write_error(error: ProxyError) -> Json:
    kind = KINDS[error.kind]
    fields = {"message": str(error), "type": kind.openai}
    return {"error": {**fields, "param": error.param or None, "code": kind.code or None}}


########################################################################################
# 9. RESPONSES                                                                    [pure]
########################################################################################
# The OpenAI Responses API, also of the Codex backend. Requests and answers hold the same items, so
# one reader and one writer per kind of part serve both. What the writer would not write by itself
# of an object is kept in `extra`, so that reading and writing lose nothing. Source: spec/dialects.md 1B.
#
# Notes in `extra["responses"]`, beside what `rest_of` keeps: `_item` the message item that begins
# with this part; `_string`, `_list` a form of the wire that is not ours; `_content` an opaque part
# of a message; `_at` where a leading item stood; `_listed` a tool that an item holds; `_namespace`.


# -- tables ----------------------------------------------------------------------------


class Shape(NamedTuple):
    """One type of item or content part whose body streams: EVENT.delta, then EVENT.done with it whole."""

    type: str
    kind: str  # of the part
    event: str
    key: str  # of the body in EVENT.done
    segment: str  # of its item, that the body is in: SEGMENT.added and SEGMENT.done are around it
    place: str  # the segment's number


# fmt: off
RESPONSES_PARAMS = {**words_read(PARAMS, "responses"), "verbosity": "verbosity"}  # this one stands in `text`
RESPONSES_PARAMS_WRITE = words_write(PARAMS, "responses")
RESPONSES_EFFORTS = {"ultra": "max"}  # of Codex alone
RESPONSES_FINISH = {"max_output_tokens": "length", "content_filter": "content_filter"}  # why it is incomplete
RESPONSES_FINISH_WRITE = words_write(FINISH_REASONS, "responses")
RESPONSES_USAGE = {  # field of Usage -> where it stands
    "input": ("input_tokens",), "cache_read": ("input_tokens_details", "cached_tokens"),
    "cache_write": ("input_tokens_details", "cache_write_tokens"),
    "output": ("output_tokens",), "reasoning": ("output_tokens_details", "reasoning_tokens"),
}
RESPONSES_COUNTED = frozenset({"total_tokens", *(path[0] for path in RESPONSES_USAGE.values())})
RESPONSES_SHAPES = (
    #     type                kind        event                              key          segment                            place
    Shape("output_text",      "text",     "response.output_text",             "text",      "response.content_part",           "content_index"),
    Shape("refusal",          "refusal",  "response.refusal",                 "refusal",   "response.content_part",           "content_index"),
    Shape("reasoning",        "thinking", "response.reasoning_summary_text",  "text",      "response.reasoning_summary_part", "summary_index"),
    Shape("",                 "thinking", "response.reasoning_text",          "text",      "",                                "content_index"),
    Shape("function_call",    "call",     "response.function_call_arguments", "arguments", "",                                ""),
    Shape("custom_tool_call", "call",     "response.custom_tool_call_input",  "input",     "",                                ""),
)
RESPONSES_WRITTEN = {row.type: row for row in RESPONSES_SHAPES if row.type}
RESPONSES_BODIES = {row.event: row for row in RESPONSES_SHAPES}
RESPONSES_SPOKEN = frozenset({"text", "refusal"})  # kinds in the message items of answers
RESPONSES_CONTENT = RESPONSES_SPOKEN | {"media"}  # and of requests
RESPONSES_RUNNING = frozenset({"in_progress", "completed"})  # statuses that say nothing new
RESPONSES_ITEMS = {  # type -> how its id begins, and the events between its beginning and its end
    "message": ("msg_",), "reasoning": ("rs_",), "function_call": ("fc_",), "custom_tool_call": ("ctc_",),
    "web_search_call": ("ws_", "in_progress", "searching", "completed"),
    "image_generation_call": ("ig_", "in_progress", "generating", "completed"),
}
RESPONSES_OUTPUTS = {"function_call": "function_call_output", "custom_tool_call": "custom_tool_call_output"}
RESPONSES_LISTS = frozenset({"additional_tools", "tool_search_output"})  # items that hold tools
RESPONSES_COMPACTED = frozenset({"compaction", "compaction_summary", "context_compaction"})
RESPONSES_SHELL: Json = {  # what the official client expects of a response, where the request says nothing
    "object": "response", "status": "in_progress", "background": False, "error": None, "incomplete_details": None,
    "instructions": None, "max_output_tokens": None, "metadata": {}, "output": [], "parallel_tool_calls": True,
    "previous_response_id": None, "reasoning": {"effort": None, "summary": None}, "store": True, "temperature": 1.0,
    "text": {"format": {"type": "text"}}, "tool_choice": "auto", "tools": [], "top_p": 1.0, "truncation": "disabled",
    "usage": None, "user": None,
}
RESPONSES_HOSTED = {"code_interpreter": "code_execution"}  # their word -> ours
RESPONSES_HOSTED_TOOLS: dict[str, Json] = {
    "web_search": {"type": "web_search"},
    "code_execution": {"type": "code_interpreter", "container": {"type": "auto"}},
}
RESPONSES_MEDIA = {  # kind and source of media -> type of the part, and the key of its body
    ("image", "url"): ("input_image", "image_url"), ("document", "url"): ("input_file", "file_url"),
    ("image", "base64"): ("input_image", "image_url"), ("document", "base64"): ("input_file", "file_data"),
    ("image", "file_id"): ("input_image", "file_id"), ("document", "file_id"): ("input_file", "file_id"),
}
# fmt: on


def responses_own(thing: Request | Part | Tool | Usage | Citation) -> Mapping[str, Any]:
    """Return what a thing holds of this dialect alone."""
    return thing.extra.get("responses", EMPTY)


def responses_noted(part: Part, **notes: Any) -> Part:
    return part._replace(extra={"responses": {**responses_own(part), **notes}})


def responses_type(item: Json) -> str:
    """Return the type of an item; a message may leave it out."""
    return str(item.get("type") or ("message" if "role" in item else "item_reference"))


def responses_hosted(kind: str) -> str:
    """Return our word for a hosted tool; web searches have dated names."""
    return "web_search" if kind.startswith("web_search") else RESPONSES_HOSTED.get(kind, kind)


# -- parts and messages, read ----------------------------------------------------------


def responses_read_media(data: Json) -> Part:
    """input_image or input_file -> Part. An `image_url` is a string, other than in Chat Completions."""
    kind = "image" if data["type"] == "input_image" else "document"
    name, detail = data.get("filename") or "", data.get("detail") or ""
    url = data.get("image_url") or data.get("file_data") or data.get("file_url")
    if url:
        return Part("media", media=chat_media(kind, url, name, detail).media)
    return Part("media", media=Media(kind, "file_id", data["file_id"], "", name, detail))


def responses_read_result(item: Json) -> Part:
    output, custom = item["output"], item["type"] == "custom_tool_call_output"
    part = Part("result", id=item["call_id"], custom=custom)
    if isinstance(output, str):
        return part._replace(parts=(Part("text", output),) if output else ())
    parts = tuple(responses_read_part(piece, "tool") for piece in output)
    return responses_noted(part._replace(parts=parts), _list=True)


def responses_read_call(item: Json) -> Part:
    custom = item["type"] == "custom_tool_call"
    text = item.get("input") if custom else item.get("arguments") or "{}"
    space = item.get("namespace") or ""
    return Part("call", text or "", item["call_id"], item["name"], custom=custom, namespace=space)


def responses_read_reasoning(item: Json) -> Part:
    segments = [*(item.get("summary") or ()), *(item.get("content") or ())]
    text = "\n\n".join(segment["text"] for segment in segments)
    return Part("thinking", text, proof=item.get("encrypted_content") or "")


def responses_read_hosted(item: Json) -> Part:
    """Keep an item whole that has no form of ours: a call of a hosted tool, or opaque."""
    kind, extra = responses_type(item), {"responses": item}
    if not kind.endswith("_call"):
        return Part("opaque", extra=extra)
    text = item.get("arguments")
    if not text:
        fields = {**item, **object_in(item, "action")}
        text = {key: fields[key] for key in ("query", "url", "code") if fields.get(key)}
    if not isinstance(text, str):
        text = dumps_text(text)
    return Part("hosted", text, item.get("id") or "", responses_hosted(kind[:-5]), extra=extra)


def responses_read_action(item: Json) -> Part:
    """Read a call of one of the service's own tools that the client ran itself, as of its shell."""
    said = item.get("arguments") or item.get("action") or item.get("operation") or {}
    text = said if isinstance(said, str) else dumps_text(said)
    return Part("call", text, item["call_id"], item["type"][: -len("_call")])


def responses_read_reaction(item: Json) -> Part:
    """Read what the client answered to such a call; a search for tools has found some."""
    part, output = Part("result", id=item["call_id"]), item.get("output")
    if isinstance(item.get("tools"), list):
        tools = responses_read_tools(item["tools"])
        found = tuple(Part("opaque", name=tool.name, namespace=tool.namespace) for tool in tools)
        return part._replace(parts=found or (Part("text", "Found no tools."),))
    if isinstance(output, dict) and output.get("image_url"):
        return part._replace(parts=(responses_read_media({**output, "type": "input_image"}),))
    text = output if isinstance(output, str) else dumps_text(output)
    return part._replace(parts=(Part("text", text),))


RESPONSES_READERS: dict[str, Callable[[Json], Part]] = {  # content parts and items
    **dict.fromkeys(("input_text", "output_text", "text"), lambda data: Part("text", data["text"])),
    "refusal": lambda data: Part("refusal", data["refusal"]),
    **dict.fromkeys(("input_image", "input_file"), responses_read_media),
    "reasoning": responses_read_reasoning,
    **dict.fromkeys(RESPONSES_OUTPUTS.keys(), responses_read_call),
    **dict.fromkeys(RESPONSES_OUTPUTS.values(), responses_read_result),
}


def responses_read_part(data: Json, role: str = "") -> Part:
    """Read an item or content part, with what its writer would not write of it."""
    kind = data.get("type")
    if kind not in RESPONSES_READERS:
        return responses_read_hosted(data)
    return responses_whole(RESPONSES_READERS[kind](data), data, role)


def responses_read_item(item: Json) -> Part:
    """Read an item of a request other than a message."""
    kind = responses_type(item)
    if kind not in RESPONSES_READERS and isinstance(item.get("call_id"), str):
        if kind.endswith("_call"):
            return responses_whole(responses_read_action(item), item)
        if kind.endswith("_output"):
            return responses_whole(responses_read_reaction(item), item)
    return responses_read_part(item)


def responses_whole(part: Part, data: Json, role: str = "") -> Part:
    """Note on a part what its writer would not write by itself of what it was read from."""
    rest = rest_of(data, responses_write_part(part, role))
    return responses_noted(part, **rest) if rest else part


def responses_read_message(item: Json) -> list[Part]:
    """Read a message item; what it holds beside the content is noted in its first part."""
    content, head = item.get("content"), without(item, frozenset({"content"}))
    if isinstance(content, str):
        return [responses_noted(Part("text", content), _item=head, _string=True)]
    parts = [responses_read_part(piece, item["role"]) for piece in content or ()]
    parts = [responses_noted(p, _content=True) if p.kind == "opaque" else p for p in parts]
    if not parts:
        return [Part("opaque", extra={"responses": item})]
    return [responses_noted(parts[0], _item=head), *parts[1:]]


# -- parts and messages, written -------------------------------------------------------


def responses_write_text(part: Part, role: str) -> Json:
    return {"type": "output_text" if role == "assistant" else "input_text", "text": part.text}


def responses_write_media(part: Part, _role: str) -> Json:
    """Part -> input_image, input_file, or the text of a text document."""
    media = part.media or Media("", "", "")
    if media.source == "text":
        return {"type": "input_text", "text": f"{media.name}\n{media.data}".lstrip("\n")}
    kind, key = RESPONSES_MEDIA[media.kind, media.source]
    written = {"type": kind, key: media.data}
    if media.source == "base64":
        written[key] = f"data:{media.mime};base64,{media.data}"
    if media.kind == "image":
        written["detail"] = media.detail or "auto"
    elif media.source == "base64":
        written["filename"] = media.name or "document.pdf"
    return written


def responses_write_reasoning(part: Part, _role: str) -> Json:
    summary = [{"type": "summary_text", "text": part.text}] if part.text else []
    return {"type": "reasoning", "summary": summary, **filled(encrypted_content=part.proof)}


def responses_write_call(part: Part, _role: str) -> Json:
    kind, key = ("custom_tool_call", "input") if part.custom else ("function_call", "arguments")
    call = {"type": kind, "call_id": part.id, "name": part.name, key: part.text}
    return {**call, **filled(namespace=part.namespace)}


def responses_write_result(part: Part, _role: str) -> Json:
    """Part -> *_output item: a text, or a list if there is more than text. Errors have no flag."""
    kind = RESPONSES_OUTPUTS["custom_tool_call" if part.custom else "function_call"]
    text, pieces = text_of(part.parts), part.parts
    others = tuple(piece for piece in pieces if piece.kind != "text")
    if part.error and not text.startswith("Error: "):
        text = f"Error: {text}"
        pieces = (Part("text", text), *others)
    if others or "_list" in responses_own(part):
        listed = filter(None, (responses_write_part(piece, "tool") for piece in pieces))
        return {"type": kind, "call_id": part.id, "output": [*listed]}
    return {"type": kind, "call_id": part.id, "output": text}


RESPONSES_WRITERS: dict[str, Callable[[Part, str], Json]] = {  # of others, `extra` is all there is
    "text": responses_write_text,
    "refusal": lambda part, _role: {"type": "refusal", "refusal": part.text},
    "media": responses_write_media,
    "thinking": responses_write_reasoning,
    "call": responses_write_call,
    "result": responses_write_result,
}


def responses_write_part(part: Part, role: str = "assistant") -> Json:
    """Part -> item or content part; empty for what only another dialect can say."""
    write = RESPONSES_WRITERS.get(part.kind)
    return restored(write(part, role) if write else {}, responses_own(part))


def responses_write_message(message: Message) -> list[Json]:
    """Message -> items: parts of the kinds RESPONSES_CONTENT share message items."""
    items: list[Json] = []
    shared = ""  # role of the message item that takes more content
    for part in message.parts:
        own, wire = responses_own(part), responses_write_part(part, message.role)
        if part.kind not in RESPONSES_CONTENT and "_content" not in own:
            items += [wire] if wire else []
            shared = ""
            continue
        speaker = responses_speaker(message.role, part)
        if "_item" in own or shared != speaker:
            head = own.get("_item", {"type": "message"})
            items.append({"role": speaker, **head, "content": []})
        if "_string" in own:
            items[-1]["content"], shared = wire["text"], ""
        else:
            items[-1]["content"].append(wire)
            shared = speaker
    return items


def responses_speaker(role: str, part: Part) -> str:
    """Return who says a part: an assistant cannot send media, nor `tool` anything."""
    moved = role == "tool" or (role == "assistant" and part.kind == "media")
    return "user" if moved else role


# -- requests, read --------------------------------------------------------------------


def responses_role(item: Json, part: Part) -> str:
    """Return who an item is from; only messages say it. What was compacted, both sides have said."""
    kind = responses_type(item)
    if kind == "message":
        return str(item["role"])
    if kind in RESPONSES_COMPACTED:
        return "user"
    return "tool" if part.kind == "result" else "assistant"


def responses_read_items(items: Iterable[Json]) -> tuple[list[Part], list[Message]]:
    """Read the input: leading system items, then runs of items of one side as messages."""
    system: list[Part] = []
    runs: list[tuple[str, list[Part]]] = []
    leading = True  # until somebody else speaks; opaque items do not
    for at, item in enumerate(items):
        said = responses_type(item) == "message"
        parts = responses_read_message(item) if said else [responses_read_item(item)]
        role = responses_role(item, parts[0])
        ruled = role in {"system", "developer"}
        leading = leading and (ruled or parts[0].kind == "opaque")
        if leading and ruled:
            system += [responses_noted(part, _at=at) for part in parts]
        elif runs and runs[-1][0] == role and role in {"assistant", "tool"}:
            runs[-1][1].extend(parts)
        else:
            runs.append((role, parts))
    return system, [Message(role, tuple(parts)) for role, parts in runs]


def responses_read_tool(tool: Json, **notes: Any) -> Tool:
    kind, description = tool["type"], tool.get("description") or ""
    if kind not in {"function", "custom"}:
        return Tool(responses_hosted(kind), kind="hosted", extra={"responses": {**tool, **notes}})
    form = object_in(tool, "format")
    grammar = {k: form[k] for k in ("syntax", "definition")} if "definition" in form else None
    read = Tool(tool["name"], description, tool.get("parameters"), kind, tool.get("strict"), grammar)
    rest = {**rest_of(tool, responses_write_tool(read)), **notes}
    return read._replace(extra=extra_of("responses", rest))


def responses_read_tools(tools: Iterable[Json] | None, **notes: Any) -> Iterator[Tool]:
    """Read tools, those of a namespace one by one; the first of them notes the namespace itself."""
    for tool in tools or ():
        if tool["type"] != "namespace" or not tool.get("tools"):
            yield responses_read_tool(tool, **notes)
            continue
        head = {"_namespace": without(tool, frozenset({"tools"}))}
        for child in tool["tools"]:
            yield responses_read_tool(child, **notes, **head)._replace(namespace=tool["name"])
            head = {}


def responses_read_choice(choice: Any) -> ToolChoice | None:
    """tool_choice -> ToolChoice: a word, one tool, or `allowed_tools`."""
    if not choice or isinstance(choice, str):
        return ToolChoice(choice) if choice else None
    tools = choice.get("tools") or [choice]
    names = (tool.get("name") or responses_hosted(tool["type"]) for tool in tools)
    return ToolChoice(choice.get("mode") or "required", tuple(names))


def responses_read_format(form: Json) -> Format | None:
    """text.format -> Format: as in Chat Completions, but not nested."""
    return chat_read_format({**form, "json_schema": form})


def responses_read_params(body: Json) -> Json:
    said = {**body, "verbosity": object_in(body, "text").get("verbosity")}
    return {ours: said[name] for name, ours in RESPONSES_PARAMS.items() if said.get(name) is not None}


def responses_read_thinking(reasoning: Mapping[str, Any]) -> Thinking:
    effort = reasoning.get("effort") or ""
    effort = RESPONSES_EFFORTS.get(effort, effort)
    return Thinking(effort if effort in EFFORTS else "", summary=reasoning.get("summary") or "")


def responses_read_request(body: Json) -> Request:
    """POST /v1/responses body -> Request. Codex lists its tools in an item of the input."""
    given, lead = body.get("input") or [], body.get("instructions")
    items: list[Json] = [{"role": "user", "content": given}] if isinstance(given, str) else given
    system, messages = responses_read_items(items)
    if lead and isinstance(lead, str):
        system.insert(0, Part("text", lead))
    tools = [*responses_read_tools(body.get("tools"))]
    for item in items:
        if item.get("type") in RESPONSES_LISTS:
            tools += responses_read_tools(item.get("tools"), _listed=True)
    request = Request(
        "responses",
        body["model"],
        tuple(messages),
        tuple(system),
        tuple(tools),
        responses_read_choice(body.get("tool_choice")),
        responses_read_params(body),
        responses_read_thinking(object_in(body, "reasoning")),
        responses_read_format(object_in(body, "text", "format")),
        bool(body.get("stream")),
    )
    rest = rest_of(body, {**responses_write_settings(request), "input": body.get("input")})
    if isinstance(given, str):
        rest["_string"] = True
    return request._replace(extra=extra_of("responses", rest))


# -- requests, written -----------------------------------------------------------------


def responses_write_tool(tool: Tool) -> Json:
    """Tool -> tool definition; empty for a hosted tool that only another dialect knows."""
    own = responses_own(tool)
    if tool.kind == "hosted":
        return restored({} if own else RESPONSES_HOSTED_TOOLS.get(tool.name, {}), own)
    written: Json = {"type": tool.kind, "name": tool.name, "description": tool.description}
    if tool.kind == "custom":
        grammar = tool.grammar
        written["format"] = {"type": "grammar", **grammar} if grammar else {"type": "text"}
    else:  # a missing `strict` would be taken for true
        written["parameters"] = tool.schema or {"type": "object", "properties": {}}
        written["strict"] = bool(tool.strict)
    return restored(written, own)


def responses_write_tools(tools: Iterable[Tool]) -> list[Json]:
    """Write the tools that no item lists; neighbours of one namespace share its definition."""
    written: list[Json] = []
    told = (tool for tool in tools if "_listed" not in responses_own(tool))
    for space, group in itertools.groupby(told, operator.attrgetter("namespace")):
        first, *others = group
        wires = [wire for tool in (first, *others) if (wire := responses_write_tool(tool))]
        head = responses_own(first).get("_namespace") or {"type": "namespace", "name": space}
        written += [{**head, "tools": wires}] if space else wires
    return written


def responses_write_choice(choice: ToolChoice, tools: Iterable[Tool]) -> Any:
    """ToolChoice -> a word, one tool, or `allowed_tools`."""
    declared = {tool.name: tool for tool in tools}
    named = []
    for name in choice.names:
        tool = declared.get(name) or Tool(name)
        kind = responses_write_tool(tool).get("type") or tool.kind
        named.append({"type": kind} if tool.kind == "hosted" else {"type": kind, "name": name})
    if len(named) == 1 and choice.mode == "required":
        return named[0]
    allowed = {"type": "allowed_tools", "mode": choice.mode, "tools": named}
    return allowed if named else choice.mode


def responses_write_format(form: Format | None) -> Json:
    """Format -> text.format: as in Chat Completions, but not nested."""
    nested = chat_write_format(form) if form else EMPTY
    return {**without(nested, frozenset({"json_schema"})), **object_in(nested, "json_schema")}


def responses_write_params(request: Request) -> Json:
    words = RESPONSES_PARAMS_WRITE.items()
    params = {name: request.params[ours] for ours, name in words if ours in request.params}
    if request.dialect == "responses":
        return params
    if "max_output_tokens" in params:
        params["max_output_tokens"] = max(16, params["max_output_tokens"])  # less is refused
    if len(params.get("safety_identifier", "")) > 64:  # so is more
        params["safety_identifier"] = digest(params["safety_identifier"])
    if not request.tools:
        params.pop("parallel_tool_calls", None)
    return {**params, "store": False, "include": ["reasoning.encrypted_content"]}


def responses_write_thinking(request: Request) -> Json:
    """Thinking -> `reasoning`. No summary is sent unless asked for, so foreign clients ask."""
    effort, _, summary, adaptive = request.thinking
    if request.dialect != "responses" and not summary and (adaptive or effort not in {"", "none"}):
        summary = "auto"
    shown, named = summary != "omitted", effort != "auto"
    return filled(effort=effort if named else "", summary=summary if shown else "")


def responses_write_settings(request: Request) -> Json:
    """Write all but the input."""
    choice = request.choice if request.tools or request.dialect == "responses" else None
    told = filled(
        text=filled(format=responses_write_format(request.format), verbosity=request.params.get("verbosity")),
        reasoning=responses_write_thinking(request),
        tools=responses_write_tools(request.tools),
        tool_choice=responses_write_choice(choice, request.tools) if choice else None,
        instructions=text_of((p for p in request.system if "_at" not in responses_own(p)), "\n\n"),
        stream=request.stream or None,
    )
    return {"model": request.model, **responses_write_params(request), **told}


def responses_write_input(request: Request) -> Any:
    own = request.dialect == "responses"
    messages = request.messages if own else with_results(request.messages)
    items = [item for message in messages for item in responses_write_message(message)]
    leading = tuple(part for part in request.system if "_at" in responses_own(part))
    places = dict.fromkeys(responses_own(part)["_at"] for part in leading)
    for at, item in zip(places, responses_write_message(Message("system", leading))):
        items.insert(at, item)
    alone = "_string" in responses_own(request) and len(items) == 1
    return items[0]["content"] if alone else items


def responses_write_request(request: Request, _target: Target) -> Json:
    """Request -> POST /v1/responses body. Item ids are left out, save those that the client sent."""
    body = {**responses_write_settings(request), "input": responses_write_input(request)}
    own = responses_own(request)  # what has been decided since, counts more
    return restored(body, {k: v for k, v in own.items() if k not in body or isinstance(v, dict)})


# -- answers, read ---------------------------------------------------------------------


def responses_read_usage(usage: Json) -> Usage:
    """Response.usage -> Usage; both count the same way."""
    counts = (number_at(usage, path) for path in RESPONSES_USAGE.values())
    return Usage._make((*counts, extra_of("responses", without(usage, RESPONSES_COUNTED))))


def responses_read_citation(data: Json) -> Citation:
    title = data.get("title") or data.get("filename") or ""
    span = data.get("start_index") or 0, data.get("end_index") or 0
    return Citation(data.get("url") or "", title, *span, extra={"responses": data})


def responses_read_output(item: Json) -> list[tuple[Part, Json]]:
    """Read an item of an answer: its parts, each with the content object it came from."""
    kind = responses_type(item)
    if kind == "image_generation_call" and item.get("result"):
        return [(responses_read_picture(item), EMPTY)]
    if kind in {"message", *RESPONSES_READERS} and item.get("status") in RESPONSES_RUNNING:
        item = without(item, frozenset({"status"}))
    if kind == "message":
        contents = [c for c in item.get("content") or () if c.get("text") or c.get("refusal")]
        bare = [without(c, frozenset({"annotations", "logprobs"})) for c in contents]
        return list(zip(responses_read_message({**item, "content": bare}), contents))
    if kind == "function_call" and not item.get("arguments"):
        item = {**item, "arguments": "{}"}
    part = responses_read_part(item)
    if part.kind == "thinking":  # its texts are one text from here on
        rest = without(item, frozenset({"type", "summary", "content", "encrypted_content"}))
        part = part._replace(extra=extra_of("responses", rest))
    return [(part, EMPTY)]


def responses_read_picture(item: Json) -> Part:
    """Read an image that the upstream made."""
    mime = f"image/{item.get('output_format') or 'png'}"
    media = Media("image", "base64", item["result"], mime)
    return Part("media", media=media, extra={"responses": without(item, frozenset({"result"}))})


WRAPPERS = frozenset({"parallel", "multi_tool_use.parallel"})  # made up by OpenAI's models


def is_wrapper(call: Part, declared: Collection[str]) -> bool:
    """Tell whether a call holds several calls, and is of no tool that the client declared."""
    return call.name in WRAPPERS and call.name not in declared


def unwrapped(call: Part) -> list[Part]:
    """Split the call of a wrapper: {tool_uses: [{recipient_name, parameters}]}."""
    try:
        uses = arguments_of(call.text)["tool_uses"]
        names = [use["recipient_name"].rpartition(".")[2] for use in uses]
        texts = [dumps_text(use["parameters"]) for use in uses]
        pairs = enumerate(zip(texts, names))
        return [Part("call", text, f"{call.id}_{n}", name) for n, (text, name) in pairs]
    except (KeyError, TypeError, AttributeError):
        return [call]


class ResponsesReader:
    """Reads one answer, of which the items come one after the other."""

    def __init__(self, request: Request) -> None:
        self.tools = frozenset(tool.name for tool in request.tools)
        self.parts = Parts(itertools.count())
        self.done: list[int | None] = []  # output indexes of the items that came whole
        self.ended = False
        self.reset()

    def reset(self, at: int | None = None) -> None:
        """Forget the current item, and begin another one."""
        self.item_at = at
        self.first = Part("")  # what its first part is known to be
        self.told = 0  # how many of its parts were begun
        self.place: tuple[Any, ...] = ()  # the segment that its last delta belongs to
        self.text_at: Any = MISSING  # the number of that segment, if it is text
        self.cited = self.logged = 0  # how many citations and logprobs of the open part were sent

    def begin(self, part: Part) -> Iterator[Event]:
        """End the open part, and begin the next one of the item."""
        self.told += 1
        self.cited = self.logged = 0
        yield from self.parts.open(part)
        yield from self.parts.begin()

    def log(self, logprobs: list[Json]) -> Iterator[Event]:
        self.logged += len(logprobs)
        yield from self.parts.add("logprobs", logprobs)

    def cite(self, annotations: Iterable[Json]) -> Iterator[Event]:
        for annotation in annotations:
            self.cited += 1
            yield from self.parts.add("citation", responses_read_citation(annotation))

    def is_open(self, kind: str) -> bool:
        return self.parts.part is not None and self.parts.part.kind == kind

    def read_added(self, payload: Json) -> Iterator[Event]:
        """Begin an item. A call begins with its name, other parts with their first delta."""
        yield from self.parts.close()
        self.reset(payload.get("output_index"))
        item, kind = payload["item"], responses_type(payload["item"])
        if kind == "message":  # its content is yet to come
            item = {**item, "content": [{"type": "output_text", "text": "..."}]}
        if kind not in RESPONSES_OUTPUTS or (item.get("name") and item.get("call_id")):
            (self.first, _), *_ = responses_read_output(item)
        if self.first.kind == "call" and not is_wrapper(self.first, self.tools):
            yield from self.begin(self.first)

    def read_body(self, payload: Json) -> Iterator[Event]:
        """Read a delta, or a whole body, which counts only where no deltas came."""
        event, _, step = payload["type"].rpartition(".")
        row = RESPONSES_BODIES[event]
        text, logprobs = payload.get("delta") or "", payload.get("logprobs") or []
        if step == "done":  # its logprobs follow with the item
            text, logprobs = payload.get(row.key) or "", []
        if (text or logprobs) and not (step == "done" and self.parts.texts):
            yield from self.move(row, payload.get(row.place))
            if self.is_open(row.kind):
                yield from self.parts.add("text", text)
                yield from self.log(logprobs)

    def move(self, row: Shape, at: Any) -> Iterator[Event]:
        """Go to a segment of the item: one of the part that is open, or of the next one."""
        place = (row.event, at)
        moved, self.place = place != self.place, place
        self.text_at = at if row.kind == "text" else MISSING
        if self.is_open(row.kind) and not (moved and row.kind in RESPONSES_SPOKEN):
            if moved and self.parts.texts:
                yield from self.parts.add("text", "\n\n")
        elif row.kind != "call":  # one without a name waits for its end
            yield from self.begin(Part(row.kind, extra=EMPTY if self.told else self.first.extra))

    def read_citation(self, payload: Json) -> Iterator[Event]:
        if self.is_open("text"):
            yield from self.cite([payload["annotation"]])

    def read_item(self, payload: Json) -> Iterator[Event]:
        """End an item."""
        yield from self.finish(payload["item"])
        self.done.append(payload.get("output_index"))

    def finish(self, item: Json) -> Iterator[Event]:
        """Send what is still to say of the parts of an item that is known whole, and end them."""
        parts = responses_read_output(item)
        if parts and is_wrapper(parts[0][0], self.tools):
            parts = [(call, EMPTY) for call in unwrapped(parts[0][0])]
        for part, content in parts[max(0, self.told - 1) :]:  # those before are ended
            if part.kind == "thinking" and not (part.text or part.proof):
                continue  # there is nothing to tell
            if not self.is_open(part.kind):
                yield from self.begin(part)
            yield from self.complete(part, content)
        yield from self.parts.close()
        self.reset()

    def complete(self, part: Part, content: Json) -> Iterator[Event]:
        """End the open part with what did not come in deltas."""
        parts, sent = self.parts, "".join(self.parts.texts)
        if part.text.startswith(sent):
            yield from parts.add("text", part.text[len(sent) :])
        yield from self.log((content.get("logprobs") or [])[self.logged :])
        yield from self.cite((content.get("annotations") or [])[self.cited :])
        yield from parts.add("proof", part.proof)
        if parts.part and parts.part.extra != part.extra:
            yield PartDelta(parts.at, "extra", part.extra)
        yield from parts.close()

    def read_end(self, payload: Json) -> Iterator[Event]:
        """End the answer. Its items count where no events told of them."""
        response = payload["response"]
        if response.get("status") in {"failed", "cancelled"}:
            self.read_failure(payload)
        output = response.get("output") or []
        complete = len(self.done) >= len(output)
        for at, item in enumerate(output):
            if complete or at in self.done:
                continue
            if self.item_at not in {None, at}:
                yield from self.parts.close()
                self.reset()
            yield from self.finish(item)
        yield from self.parts.close()
        if response.get("usage"):
            yield responses_read_usage(response["usage"])
        self.ended = True
        yield self.end_of(response)

    def end_of(self, response: Json) -> MessageEnd:
        if response.get("status") == "incomplete":
            reason = object_in(response, "incomplete_details").get("reason") or "incomplete"
            return MessageEnd(RESPONSES_FINISH.get(reason, "length"), raw=reason)
        called = "call" in self.parts.kinds
        return MessageEnd("tool_calls" if called else "stop", raw="completed")

    def read_failure(self, payload: Json) -> Iterator[Event]:
        """Raise the error of a payload, or of the response in it."""
        body = payload.get("response") or payload
        if "status" in body and not body.get("error"):
            raise ProxyError("upstream_failed", f"the upstream's answer is {body['status']!r}")
        raise responses_error(body)


RESPONSES_EVENTS: dict[str, Callable[[ResponsesReader, Json], Iterable[Event]]] = {
    **{f"{event}.{step}": ResponsesReader.read_body for event in RESPONSES_BODIES for step in ("delta", "done")},
    **dict.fromkeys(("response.created", "response.in_progress"), lambda *_: ()),
    "response.output_item.added": ResponsesReader.read_added,
    "response.output_text.annotation.added": ResponsesReader.read_citation,
    "response.output_item.done": ResponsesReader.read_item,
    **dict.fromkeys(("response.completed", "response.incomplete"), ResponsesReader.read_end),
    **dict.fromkeys(("response.failed", "response.cancelled", "error"), ResponsesReader.read_failure),
}  # fmt: skip


def responses_in_order(payloads: Iterable[Json]) -> Iterator[Json]:
    """Put items that come at the same time one after the other: the younger ones wait."""
    waiting: dict[int, list[Json]] = {}  # output index -> payloads; the oldest item is first
    live: int | None = None  # the item that may go on
    for payload in payloads:
        kind, at = payload.get("type", ""), payload.get("output_index")
        if at is not None and live not in {None, at}:
            waiting.setdefault(at, []).append(payload)
            continue
        if RESPONSES_EVENTS.get(kind) is ResponsesReader.read_end:
            yield from itertools.chain(*waiting.values())
        yield payload
        live = at if live is None else live
        while kind == "response.output_item.done":  # the next one is due, with what came of it
            live = next(iter(waiting), None)
            held = [] if live is None else waiting.pop(live)
            yield from held
            kind = held[-1].get("type", "") if held else ""


def responses_read_response(body: Json, request: Request) -> Events:
    """Full answer -> Events, as a stream that holds nothing but its end."""
    if body.get("error") or "output" not in body:
        raise responses_error(body)
    yield from responses_read_stream([{"type": "response.completed", "response": body}], request)


def responses_read_stream(payloads: Iterable[Json], request: Request) -> Events:
    """Stream payloads -> Events. Unknown ones are skipped: the service adds some every month."""
    reader, started = ResponsesReader(request), False
    parts = reader.parts
    for payload in responses_in_order(payloads):
        kind = payload.get("type", "error" if "error" in payload else "")
        if (
            kind == "response.output_text.delta"  # the common case first
            and payload.get("content_index") == reader.text_at
            and payload["delta"]
            and not payload.get("logprobs")
        ):
            parts.texts.append(payload["delta"])
            yield PartDelta(parts.at, "text", payload["delta"])
            continue
        read = RESPONSES_EVENTS.get(kind)
        if read and not started and read is not ResponsesReader.read_failure:
            started = True
            yield responses_read_start(object_in(payload, "response"))
        if read:
            yield from read(reader, payload)
        if reader.ended:
            return
    raise ProxyError("upstream_failed", "the upstream closed the stream before response.completed")


def responses_read_start(response: Json) -> MessageStart:
    created = int(response.get("created_at") or 0)
    return MessageStart(response.get("id") or "", response.get("model") or "", created)


# -- answers, written ------------------------------------------------------------------


def responses_write_usage(usage: Usage) -> Json:
    written: Json = {}
    for (holder, *names), tokens in zip(RESPONSES_USAGE.values(), usage):
        if names:
            written.setdefault(holder, {})[names[0]] = tokens
        else:
            written[holder] = tokens
    return {**written, "total_tokens": usage.input + usage.output, **responses_own(usage)}


def responses_write_citation(citation: Citation) -> Json:
    """Citation -> annotation; empty for a foreign one without a URL."""
    if "responses" in citation.extra or not citation.url:
        return dict(responses_own(citation))
    span = {"start_index": citation.start, "end_index": citation.end}
    return {"type": "url_citation", **span, "title": citation.title, "url": citation.url}


def responses_write_whole(part: Part) -> Json:
    """Part -> item that comes without deltas; empty for what this dialect cannot say."""
    own, media = responses_own(part), part.media
    if media and media.kind == "image" and media.source == "base64":
        mime = {"output_format": media.mime.rpartition("/")[2] or "png"}
        made = {"type": "image_generation_call", "status": "completed", **mime}
        return {**(own or made), "result": media.data}
    if part.kind == "hosted" and part.name == "web_search" and not own:
        action = {"type": "search", "query": arguments_of(part.text).get("query", part.text)}
        return {"type": "web_search_call", "status": "completed", "action": action}
    return dict(own) if part.kind in {"hosted", "opaque"} else {}


class ResponsesBody:
    """The open part of an answer that is written, and how its body streams."""

    def __init__(self, part: Part, row: Shape | None) -> None:
        self.part, self.row = part, row  # without a row it is written at its end
        self.texts: list[str] = []  # its deltas
        self.logprobs: list[Json] = []
        self.place: Json = EMPTY  # the number of its segment
        self.head = self.middle = self.tail = ""  # of a delta's frame, around its number and text

    def whole(self) -> Part:
        return self.part._replace(text="".join(self.texts))

    def segment(self) -> Json:
        """Return the segment of the item that the part is, as far as it is known."""
        part = self.whole()
        if part.kind == "thinking":
            return {"type": "summary_text", "text": part.text}
        written = responses_write_part(part)
        if part.kind == "text":
            notes = [note for c in part.citations if (note := responses_write_citation(c))]
            written = {**written, "annotations": notes, "logprobs": self.logprobs}
        return written

    def begin(self, item: Json, at: int, row: Shape) -> None:
        """Make the template for the deltas: they add to this item, the one of this number."""
        if row.place:
            self.place = {row.place: len(item.get("content", ()))}
        place = {"item_id": item["id"], "output_index": at, **self.place}
        event = f"{row.event}.delta"
        self.head = f'event: {event}\ndata: {{"type":"{event}","sequence_number":'
        self.middle = f',{dumps(place)[1:-1]},"delta":'
        self.tail = ',"logprobs":[]}\n\n' if row.kind == "text" else "}\n\n"


class ResponsesWriter:
    """Writes one answer: it numbers the frames and keeps the items for the last of them."""

    def __init__(self, request: Request) -> None:
        asked = restored(responses_write_settings(request), responses_own(request))
        echoed = {k: asked[k] for k in RESPONSES_SHELL if asked.get(k) is not None}
        named = {"id": f"resp_{request.id}", "created_at": request.created, "model": request.model}
        self.response = {**RESPONSES_SHELL, **echoed, **named}
        self.begun = False
        self.seed = request.id
        self.number = 0  # of the next frame
        self.items: list[Json] = []  # the complete ones
        self.item: Json = EMPTY  # the open one, as it was added
        self.body = ResponsesBody(Part(""), None)  # the open part
        self.usage = Usage()
        self.end: MessageEnd | None = None

    def frame(self, kind: str, **fields: Any) -> bytes:
        payload = {"type": kind, "sequence_number": self.number, **fields}
        self.number += 1
        return sse_frame(payload, kind)

    def item_frame(self, kind: str, **fields: Any) -> bytes:
        """Write a frame about the open item."""
        return self.frame(kind, item_id=self.item["id"], output_index=len(self.items), **fields)

    def write_start(self, event: MessageStart) -> Frames:
        given = event.id if event.id.startswith("resp_") else ""
        told = filled(id=given, model=event.model, created_at=event.created or None)
        self.response.update(told)
        self.begun = True
        yield self.frame("response.created", response=self.response)
        yield self.frame("response.in_progress", response=self.response)

    def write_begin(self, event: PartStart) -> Frames:
        """Begin a part. Adjacent texts and refusals share one message item."""
        item, own = responses_write_part(event.part), responses_own(event.part)
        row = RESPONSES_WRITTEN.get(item.get("type", ""))  # how it streams
        self.body = ResponsesBody(event.part, row)
        spoken = event.part.kind in RESPONSES_SPOKEN
        goes_on = spoken and "_item" not in own and self.item.get("type") == "message"
        if self.item and not goes_on:
            yield self.settle("completed")
        if spoken:
            head = {"type": "message", "role": "assistant", **own.get("_item", EMPTY)}
            item = {**head, "status": "in_progress", "content": []}
        if row and not self.item:
            yield self.add({**item, "status": "in_progress"})
        if row and row.kind != "thinking":  # whose text may never come
            yield from self.begin_body(row)

    def add(self, item: Json) -> bytes:
        """Open an item. Its id stays, whatever the part learns later."""
        at, (prefix, *_) = len(self.items), RESPONSES_ITEMS.get(item["type"], ("item_",))
        self.item = {"id": f"{prefix}{digest(self.seed, at)}", **item}
        return self.frame("response.output_item.added", output_index=at, item=self.item)

    def close(self, item: Json) -> bytes:
        """End the open item, which now is `item`."""
        at, item = len(self.items), {**item, "id": self.item["id"]}
        self.items.append(item)
        self.item = EMPTY
        return self.frame("response.output_item.done", output_index=at, item=item)

    def settle(self, status: str) -> bytes:
        """End the open message or call; a call may have said itself how it ended."""
        told = self.item["status"]
        return self.close({**self.item, "status": status if told == "in_progress" else told})

    def begin_body(self, row: Shape) -> Frames:
        """Begin the segment that the body is in."""
        self.body.begin(self.item, len(self.items), row)
        if row.segment:
            yield self.item_frame(f"{row.segment}.added", **self.body.place, part=self.body.segment())

    def text(self, event: PartDelta) -> bytes:
        body, number = self.body, self.number
        if not body.head:
            return self.first_text(event)
        body.texts.append(event.value)
        self.number += 1
        return f"{body.head}{number}{body.middle}{quote(event.value)}{body.tail}".encode("ascii")

    def first_text(self, event: PartDelta) -> bytes:
        """Begin a body with its first delta. Hosted, media and opaque parts are written at their end."""
        row = self.body.row
        if row:
            return b"".join(self.begin_body(row)) + self.text(event)
        self.body.texts.append(event.value)
        return b""

    def write_delta(self, event: PartDelta) -> Frames:
        if event.field == "text":
            yield self.text(event)
        elif event.field not in {"citation", "logprobs"}:
            self.body.part = part_with(self.body.part, event)
        elif self.body.part.kind == "text":
            yield from self.write_note(event)

    def write_note(self, event: PartDelta) -> Frames:
        body = self.body
        if event.field == "logprobs":
            body.logprobs += event.value
            fields = {**body.place, "delta": "", "logprobs": event.value}
            yield self.item_frame("response.output_text.delta", **fields)
        elif note := responses_write_citation(event.value):
            count = len(body.segment()["annotations"])
            fields = {**body.place, "annotation_index": count, "annotation": note}
            yield self.item_frame("response.output_text.annotation.added", **fields)
            body.part = part_with(body.part, event)

    def write_end(self, event: PartEnd) -> Frames:
        """End a part; a message item stays open for the next text, a call until something follows."""
        body = self.body
        if body.part.kind == "call" and not body.texts and not body.part.custom:
            yield self.text(PartDelta(event.at, "text", "{}"))
        if body.row and body.head:
            yield from self.end_body(body.row)
        part = body.whole()
        if part.kind in RESPONSES_SPOKEN:
            self.item = {**self.item, "content": [*self.item["content"], body.segment()]}
        elif part.kind == "call":  # whether it was cut off is told by what comes next
            item = {"status": "in_progress", **responses_write_part(part)}
            self.item = {**item, "id": self.item["id"]}
        elif body.row:
            yield self.close(responses_write_part(part))
        elif item := responses_write_whole(part):
            yield from self.write_whole(item)

    def end_body(self, row: Shape) -> Frames:
        body, part = self.body, self.body.whole()
        said: Json = {row.key: part.text}
        if row.kind == "text":
            said["logprobs"] = body.logprobs
        if row.key == "arguments" and part.name:
            said["name"] = part.name
        yield self.item_frame(f"{row.event}.done", **body.place, **said)
        if row.segment:
            yield self.item_frame(f"{row.segment}.done", **body.place, part=body.segment())

    def write_whole(self, item: Json) -> Frames:
        """Write an item that has no deltas."""
        begun = {"status": "in_progress", "result": None}
        yield self.add({**item, **{key: value for key, value in begun.items() if key in item}})
        for word in RESPONSES_ITEMS.get(item["type"], ())[1:]:
            yield self.item_frame(f"response.{item['type']}.{word}")
        yield self.close(item)

    def write_usage(self, event: Usage) -> Frames:
        self.usage = event
        yield from ()

    def write_finish(self, event: MessageEnd) -> Frames:
        self.end = event
        cut = event.finish in RESPONSES_FINISH.values()
        if self.body.part.kind == "call":  # a client may run whatever is not marked as cut off
            cut = cut or event.finish == "error"
        if self.item:
            yield self.settle("incomplete" if cut else "completed")

    def whole(self, status: str, **fields: Any) -> Json:
        """Return the response object as it is at the end."""
        usage = responses_write_usage(self.usage)
        return {**self.response, "status": status, "output": self.items, "usage": usage, **fields}

    def last(self) -> Json:
        """Return the response object of a finished answer."""
        if not self.end:
            raise ProxyError("upstream_failed", "the upstream ended the answer without saying why")
        word = RESPONSES_FINISH_WRITE[self.end.finish]
        if word == "failed" and not self.items:
            message = f"the model's answer failed: {self.end.raw or 'error'}"
            return self.whole("failed", error={"code": "server_error", "message": message})
        if word in RESPONSES_FINISH:
            return self.whole("incomplete", incomplete_details={"reason": word})
        return self.whole("completed")

    def finish(self) -> Frames:
        response = self.last()
        yield self.frame(f"response.{response['status']}", response=response)

    def fail(self, error: ProxyError) -> Frames:
        """End a stream that broke off. Flat, since the client raises at a nested `error`."""
        fault = {"code": KINDS[error.kind].code or KINDS[error.kind].openai, "message": str(error)}
        yield self.frame("error", **fault, param=error.param or None)
        yield self.frame("response.failed", response=self.whole("failed", error=fault))

    takes: ClassVar[Mapping[type, Callable[[Any, Any], Iterable[bytes]]]] = {
        MessageStart: write_start, PartStart: write_begin, PartDelta: write_delta, PartEnd: write_end,
        Usage: write_usage, MessageEnd: write_finish,
    }  # fmt: skip


def responses_write_response(response: Response, request: Request) -> Json:
    """Response -> full answer, which is what the last frame of its stream would hold."""
    writer = ResponsesWriter(request)
    for event in response_events(response._replace(choices=response.choices[:1])):
        for _ in writer.takes[type(event)](writer, event):
            pass
    return writer.last()


def responses_write_stream(events: Iterable[Event], request: Request) -> Frames:
    """Events -> frames; the last one waits until all events are there, for late usage."""
    return write_frames(ResponsesWriter(request), events)


# -- errors ----------------------------------------------------------------------------


RESPONSES_KINDS = {  # an error's `code` or `type` that only this API knows, most of them Codex's -> kind
    "usage_limit_reached": "rate_limited",
    "usage_not_included": "forbidden",
    "invalid_prompt": "invalid_request",
    "bio_policy": "invalid_request",
    "server_is_overloaded": "overloaded",
    "slow_down": "overloaded",
}


def responses_error(body: Any, status: int = 0) -> ProxyError:
    """Return the error in a body or payload; `status` 0: it came with a 200."""
    made, said = chat_error(body, status), error_said(body)
    kinds = (RESPONSES_KINDS.get(str(said.get(key))) for key in ("code", "type"))
    made.kind = next(filter(None, kinds), made.kind)
    made.status = status or KINDS[made.kind].status
    return told_full(made)


def responses_read_error(status: int, body: bytes) -> ProxyError:
    """HTTP status and body -> error."""
    return responses_error(error_body(status, body), status)


def responses_write_error(error: ProxyError) -> Json:
    """ProxyError -> HTTP body."""
    return chat_write_error(error)


########################################################################################
# 10. GEMINI                                                                      [pure]
########################################################################################
# The Gemini API, generateContent, of AI Studio, Vertex and Code Assist. Only this room knows its
# field names. A part that came in this dialect, and is no text, is kept as it came: it goes out in
# this dialect as it is, and in others by its fields. Source: spec/dialects.md 1D and 4.3.

# -- tables ----------------------------------------------------------------------------
# fmt: off
GEMINI_PARAMS = words_read(PARAMS, "gemini")  # all of them inside generationConfig
GEMINI_PARAMS_WRITE = words_write(PARAMS, "gemini")
GEMINI_MODES = {"AUTO": "auto", "ANY": "required", "NONE": "none"}  # VALIDATED: auto
GEMINI_MODES_WRITE = {mode: word for word, mode in GEMINI_MODES.items()}
GEMINI_FINISH = words_read(FINISH_REASONS, "gemini")
GEMINI_FINISH_WRITE = words_write(FINISH_REASONS, "gemini")
GEMINI_USAGE = {  # canonical field -> where usageMetadata says it: its output is without the thoughts
    "input": "promptTokenCount", "cache_read": "cachedContentTokenCount", "output": "candidatesTokenCount",
    "reasoning": "thoughtsTokenCount",
}
GEMINI_COUNTED = frozenset({*GEMINI_USAGE.values(), "totalTokenCount"})
GEMINI_SUMMARIES = {None: "", False: "omitted", True: "auto"}  # includeThoughts
GEMINI_HOSTED = {  # what the service itself runs: key of a tool, or toolType of a call -> canonical name
    "googleSearch": "web_search", "urlContext": "web_fetch", "codeExecution": "code_execution",
    "googleSearchRetrieval": "web_search", "GOOGLE_SEARCH_WEB": "web_search", "URL_CONTEXT": "web_fetch",
}
GEMINI_HOSTED_WRITE = {name: key for key, name in reversed(GEMINI_HOSTED.items()) if key[0].islower()}
GEMINI_MIMES = {  # of a URL that comes without one: by its ending, or by what it is
    "png": "image/png", "gif": "image/gif", "webp": "image/webp", "heic": "image/heic", "image": "image/jpeg",
    "wav": "audio/wav", "audio": "audio/mpeg", "webm": "video/webm", "mov": "video/quicktime", "video": "video/mp4",
    "txt": "text/plain", "document": "application/pdf",
}
GEMINI_OPAQUE = frozenset({  # the keys inside these are the user's
    "args", "response", "parameters", "parametersJsonSchema", "responseSchema", "responseJsonSchema", "labels",
    "headers", "partMetadata",
})
GEMINI_SCHEMA = {  # keyword of OpenAPI, as Google may spell it -> of JSON Schema; empty: dropped
    "any_of": "anyOf", "min_items": "minItems", "max_items": "maxItems", "min_length": "minLength",
    "max_length": "maxLength", "nullable": "", "propertyOrdering": "", "property_ordering": "",
}
# fmt: on
GEMINI_TAKES = (*SCHEMA_MAPS, "anyOf", "oneOf", "allOf", "$ref", "additionalProperties")
GEMINI_TEXTS = frozenset({"text", "thinking", "refusal"})  # parts that are written as they come
GEMINI_SENTINEL = "skip_thought_signature_validator"  # the service's own, for a lost signature
GEMINI_SNAKE = re.compile(r"(?<=\w)_([a-z])")
GEMINI_APART = frozenset({"model", "stream", "contents", "systemInstruction", "tools"})  # of a body
GEMINI_CANDIDATE = frozenset({"content", "index", "finishReason", "logprobsResult"})
GEMINI_PIECES = frozenset({"partialArgs", "willContinue"})
# a step of a path: .name [0] ['name']
GEMINI_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]|\[['\"](.*?)['\"]\]")
# a result, and one whose name stands where clients have it: only the others have to be looked at
GEMINI_RESULT = re.compile(rb'"function_?[rR]esponse"\s*:')
GEMINI_NAMED = re.compile(
    GEMINI_RESULT.pattern + rb'\s*\{\s*(?:"id"\s*:\s*"[^"]*"\s*,\s*)?"name"\s*:\s*"[^"]'
)
GEMINI_CALLS = frozenset({"functionCall", "function_call"})  # in both spellings
GEMINI_RESULTS = frozenset({"functionResponse", "function_response"})
GEMINI_VALUES = ("stringValue", "numberValue", "boolValue")


def gemini_camel(value: Any) -> Any:
    """Copy a body with its keys in camelCase: both spellings are read (proto3 JSON)."""
    if isinstance(value, list):
        return [gemini_camel(item) for item in value]
    if not isinstance(value, dict):
        return value
    copy = {}
    for key, item in value.items():
        name = GEMINI_SNAKE.sub(lambda found: found[1].upper(), key) if "_" in key else key
        copy[name] = item if name in GEMINI_OPAQUE else gemini_camel(item)
    return copy


def gemini_list(value: Any) -> list[Any]:
    """Return a repeated field; one value may stand for itself (proto3 JSON)."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def gemini_own(thing: Request | Message | Part | Tool | Usage | MessageEnd) -> Json:
    return thing.extra.get("gemini", EMPTY)


def gemini_is_new(model: str) -> bool:
    """Tell whether a model is Gemini 3 or newer: they check signatures and see media in results."""
    return any(int(major) >= 3 for major in re.findall(r"gemini-(\d+)", model))


def gemini_schema(schema: Any) -> Any:
    """Turn an OpenAPI schema into JSON Schema: lower-case types, `nullable` as one of them."""
    if not isinstance(schema, dict):
        return schema
    named = ((GEMINI_SCHEMA.get(key, key), value) for key, value in schema.items())
    lowered = {key: gemini_keyword(key, value) for key, value in named if key}
    if schema.get("nullable") and isinstance(lowered.get("type"), str):
        lowered["type"] = [lowered["type"], "null"]
    return map_schema(lowered, gemini_schema)


def gemini_keyword(key: str, value: Any) -> Any:
    """Return the value of a plain keyword; a count is a string in proto3 JSON."""
    if key == "type" and isinstance(value, str):
        return value.lower()
    counts = key.startswith(("min", "max")) and isinstance(value, str) and value.isdecimal()
    return int(value) if counts else value


def gemini_mime(media: Media) -> str:
    """Return the type of a medium; that of a URL is guessed by its ending, then by its kind."""
    ending = media.data.partition("?")[0][-6:].rpartition(".")[2].lower()
    return media.mime or GEMINI_MIMES.get(ending) or GEMINI_MIMES[media.kind]


# -- parts and messages, read ----------------------------------------------------------
def gemini_read_media(data: Json) -> Part:
    """Read inlineData, or fileData: a URL, or a file that only Google has."""
    mime, name = data.get("mimeType", ""), data.get("displayName", "")
    uri = data.get("fileUri", "")
    if not uri:
        media = Media("document", "base64", data["data"], mime, name)
    elif uri.startswith("gs:") or "generativelanguage" in uri:
        media = Media("document", "file_id", uri, mime, name)
    else:
        media = Media("document", "url", uri, mime, name)
    family = gemini_mime(media).partition("/")[0]
    if family in {"image", "audio", "video"}:
        media = media._replace(kind=family)
    return Part("media", media=media)


def gemini_read_call(data: Json) -> Part:
    return Part("call", dumps_text(data.get("args") or {}), data.get("id") or "", data.get("name", ""))


def gemini_read_result(data: Json) -> Part:
    """Read a functionResponse. A text that is its one `output` or `error` is unwrapped."""
    response: Json = data.get("response") or {}
    key, text = next(iter(response.items())) if len(response) == 1 else ("", None)
    if key not in {"output", "error"} or not isinstance(text, str):
        text = dumps_text(response)
    parts = tuple(map(gemini_read_part, gemini_list(data.get("parts"))))
    if response or not parts:
        parts = (Part("text", text), *parts)
    name = data.get("name") or ""
    return Part("result", "", data.get("id") or "", name, parts, error=key == "error")


def gemini_read_hosted(data: Json) -> Part:
    """Read what the service itself called."""
    kind = data.get("toolType", "codeExecution")
    arguments = data.get("args") or {k: data[k] for k in ("language", "code") if k in data}
    name = GEMINI_HOSTED.get(kind, kind.lower())
    return Part("hosted", dumps_text(arguments), data.get("id") or "", name)


def gemini_read_hosted_result(data: Json) -> Part:
    return gemini_read_hosted(data)._replace(kind="hosted_result", text="")


GEMINI_READERS: dict[str, Callable[[Json], Part]] = {  # what has none of these fields is opaque
    "inlineData": gemini_read_media,
    "fileData": gemini_read_media,
    "functionCall": gemini_read_call,
    "functionResponse": gemini_read_result,
    "executableCode": gemini_read_hosted,
    "codeExecutionResult": gemini_read_hosted_result,
    "toolCall": gemini_read_hosted,
    "toolResponse": gemini_read_hosted_result,
}


def gemini_read_text(data: Json, proof: str) -> Part:
    kind = "thinking" if data.get("thought") else "text"
    rest = {
        key: value for key, value in data.items() if key != "text" and (key != "thought" or value is not True)
    }
    return Part(kind, data["text"], proof=proof, extra=extra_of("gemini", rest))


def gemini_read_part(data: Json) -> Part:
    """Read one part. A signature may be on any, and does not make a text a thought."""
    proof = data.get("thoughtSignature") or ""
    body = {key: value for key, value in data.items() if key != "thoughtSignature"} or {"text": ""}
    if isinstance(body.get("text"), str):
        return gemini_read_text(body, proof)
    field = next((key for key in body if key in GEMINI_READERS), "")
    draft = field == "inlineData" and body.get("thought")  # of an image
    part = GEMINI_READERS[field](body[field]) if field and not draft else Part("opaque")
    return part._replace(proof=proof, extra={"gemini": body})


def gemini_read_message(content: Json) -> Message:
    parts = tuple(map(gemini_read_part, gemini_list(content.get("parts"))))
    role = "model" if content.get("role") == "model" else "user"
    rest = rest_of(without(content, frozenset({"parts"})), {"role": role})
    return Message("assistant" if role == "model" else "user", parts, extra_of("gemini", rest))


def gemini_pair(messages: Iterable[Message]) -> Iterator[Message]:
    """Give every call an id, and every result that of its call; drop repeated results.

    The ids depend on the place alone: they are the same when the conversation comes again.
    gemini-cli repeats the responses of a resumed conversation, and qwen-code splits them over
    contents (spec/clients.md 1.11).
    """
    calls: list[Part] = []  # of the nearest turn of the model
    done: set[str] = set()
    before = ""
    for turn, message in enumerate(messages):
        calls = [] if message.role == "assistant" != before else calls
        before = message.role
        parts: list[Part] = []
        for at, part in enumerate(message.parts):
            if part.kind == "call":
                parts.append(part._replace(id=part.id or f"call_{turn}_{at}_{digest(part.name)[:8]}"))
                calls.append(parts[-1])
            elif part.kind != "result":
                parts.append(part)
            elif (id := gemini_answered(part, calls, done)) not in done:
                parts.append(part._replace(id=id))
                done.add(id)
        yield message._replace(parts=tuple(parts))


def gemini_answered(result: Part, calls: Iterable[Part], done: Collection[str]) -> str:
    """Return the id of the call of a result: its own if a call has it, else the next so named."""
    if result.id in {call.id for call in calls}:
        return result.id
    named = [call.id for call in calls if call.name == result.name]
    waiting = [id for id in named if id not in done]
    lost = result.id or f"call_{digest(result.name)}"
    return [*waiting, *named, lost][0]


# -- parts and messages, written -------------------------------------------------------
def gemini_plain(media: Media) -> str:
    """Return a document that came as a text: it is one here, too."""
    return f"{media.name}\n{media.data}" if media.name else media.data


def gemini_write_media(part: Part) -> Json:
    media = part.media or Media("document", "text", "")
    if media.source == "text":
        return {"text": gemini_plain(media)}
    mime = {"mimeType": gemini_mime(media)}
    if media.source == "base64":
        return {"inlineData": {**mime, "data": media.data, **filled(displayName=media.name)}}
    return {"fileData": {"fileUri": media.data, **mime}}


def gemini_write_call(part: Part) -> Json:
    named = {**filled(id=part.id), "name": part.name}
    return {"functionCall": {**named, "args": arguments_of(part.text)}}


def gemini_is_file(part: Part) -> bool:
    return part.media is not None and part.media.source != "text"


def gemini_output(parts: Iterable[Part]) -> str:
    """Return the texts of a result, among them those of documents: beside it there may be files only."""
    said = (part for part in parts if part.kind in {"text", "media"} and not gemini_is_file(part))
    return "\n".join(gemini_plain(part.media) if part.media else part.text for part in said)


def gemini_write_result(part: Part) -> Json:
    """Write a functionResponse: an object as it is, a text as its `output` or `error`.

    A `$ref` in it would stand for a file among its `parts`: an object that has one stays a text.
    """
    text = gemini_output(part.parts)
    media = [gemini_write_media(inner) for inner in part.parts if gemini_is_file(inner)]
    response = "" if '"$ref"' in text else json_of(text)
    if part.error:
        response = {"error": text}
    elif not isinstance(response, dict):
        response = {"output": text} if text or not media else {}
    written = {**filled(id=part.id), "name": part.name, "response": response}
    return {"functionResponse": {**written, **filled(parts=media)}}


# fmt: off
GEMINI_WRITERS: dict[str, Callable[[Part], Json]] = {  # other kinds are only written as they came
    "text":     lambda part: {"text": part.text},
    "thinking": lambda part: {"text": part.text, "thought": True},
    "refusal":  lambda part: {"text": part.text},
    "media":    gemini_write_media,
    "call":     gemini_write_call,
    "result":   gemini_write_result,
}
# fmt: on


def gemini_write_part(part: Part) -> Json:
    """Write one part; empty if this dialect has no such part."""
    own, write = gemini_own(part), GEMINI_WRITERS.get(part.kind)
    written = {**own}
    if write and (part.kind in GEMINI_TEXTS or not own):
        written = {**write(part), **own}
    if part.proof and written:
        written["thoughtSignature"] = part.proof
    return written


def gemini_write_parts(parts: Iterable[Part]) -> list[Json]:
    return list(filter(None, map(gemini_write_part, parts)))


def gemini_write_kept(parts: Iterable[Part]) -> list[Json]:
    """Write parts but texts that say nothing, which are refused."""
    said = (part for part in parts if part.kind not in GEMINI_TEXTS or part.text or part.proof)
    return gemini_write_parts(said)


def gemini_move_proofs(parts: Iterable[Part]) -> list[Part]:
    """Move the proof of a thought that stands directly before a call to that call."""
    moved: list[Part] = []
    for part in parts:
        thought = moved[-1] if moved and moved[-1].kind == "thinking" else Part("")
        if part.kind == "call" and thought.proof and not part.proof:
            moved[-1] = thought._replace(proof="")
            moved.append(part._replace(proof=thought.proof))
        else:
            moved.append(part)
    return moved


def gemini_lift_media(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """Take the files out of results, and put them behind the last one."""
    files = [inner for part in parts for inner in part.parts if gemini_is_file(inner)]
    kept = [
        part._replace(parts=tuple(inner for inner in part.parts if not gemini_is_file(inner)))
        for part in parts
    ]
    return tuple(sorted((*files, *kept), key=lambda part: part.kind != "result"))


def gemini_write_message(message: Message) -> Json:
    """Write a message of this dialect as it was."""
    content = {"role": "model" if message.role == "assistant" else "user"}
    return restored({**content, "parts": gemini_write_parts(message.parts)}, gemini_own(message))


def gemini_write_turn(turn: Turn, new: bool) -> Json:
    """Write a turn of a foreign dialect. Of thoughts, only their proofs go back."""
    if turn.role == "assistant":
        moved = gemini_move_proofs(turn.parts)
        bare = (p._replace(kind="text", text="") if p.kind == "thinking" else p for p in moved)
        return {"role": "model", "parts": gemini_write_kept(bare)}
    parts = turn.parts if new else gemini_lift_media(turn.parts)
    return {"role": "user", "parts": gemini_write_kept(parts)}


def gemini_write_turns(messages: Iterable[Message], new: bool) -> list[Json]:
    """Write messages of a foreign dialect: contents that alternate and begin with the user's.

    Older models see no media in results: they follow.
    """
    contents: list[Json] = [{"role": "user", "parts": []}]
    sides = (m if m.role == "assistant" else m._replace(role="user") for m in messages)
    for turn in answered_turns(sides):
        content = gemini_write_turn(turn, new)
        if content["parts"] and contents[-1]["role"] == content["role"]:
            contents[-1]["parts"] += content["parts"]
        elif content["parts"]:
            contents.append(content)
    contents[0]["parts"] = contents[0]["parts"] or [{"text": "."}]
    return contents


def gemini_add_sentinels(contents: list[Json]) -> None:
    """Sign the first call of each step since the user last spoke: Gemini 3 answers 400 if not."""
    for content in reversed(contents):
        calls = [part for part in content["parts"] if "functionCall" in part]
        answers = any("functionResponse" in part for part in content["parts"])
        if calls:
            calls[0].setdefault("thoughtSignature", GEMINI_SENTINEL)
        elif content.get("role") != "model" and not answers:
            return


class GeminiHistory:
    """Fits a history, as it stands on the wire, to the service, or to a host with such quirks.

    A result without a name, which is refused, gets that of its call: known by the id, else by the place.
    """

    def __init__(self, quirks: Quirks) -> None:
        # QUIRKS no-call-ids: calls and results of one name are told apart by their order alone
        self.bare = "no-call-ids" in quirks
        self.names: dict[Any, str] = {}  # by id
        self.waiting: list[Json] = []  # the calls of the model's last turn that have no result yet
        self.role: Any = ""

    def fit(self, contents: list[Json]) -> list[Json]:
        """Return fitted contents, those themselves that need no change."""
        return [self.fit_content(content) for content in contents]

    def fit_content(self, content: Json) -> Json:
        role = content.get("role")
        if role == "model" != self.role:
            self.waiting = []
        self.role = role
        parts = gemini_list(content.get("parts"))
        fitted = [self.fit_part(part) for part in parts]
        same = all(new is old for new, old in zip(fitted, parts))
        return content if same else {**content, "parts": fitted}

    def fit_part(self, part: Json) -> Json:
        field = next((key for key in part if key in GEMINI_CALLS or key in GEMINI_RESULTS), "")
        if not field:
            return part
        data = fitted = part[field]
        if field in GEMINI_CALLS:
            self.waiting.append(data)
            if data.get("id"):
                self.names[data["id"]] = data.get("name") or ""
        else:
            call = self.call_of(data)
            if call and not data.get("name"):
                fitted = {**data, "name": call}
        if self.bare and "id" in fitted:
            fitted = without(fitted, frozenset({"id"}))
        return part if fitted is data else {**part, field: fitted}

    def call_of(self, result: Json) -> str:
        """Return the name of the call that a result is of, which no longer waits for it."""
        id, name = result.get("id"), result.get("name")
        if id in self.names:
            fits = [call for call in self.waiting if call.get("id") == id]
        else:
            fits = [call for call in self.waiting if not name or call.get("name") == name]
        if fits:
            self.waiting.remove(fits[0])
        return self.names.get(id) or (fits[0].get("name") or "" if fits else "")


# -- requests, read --------------------------------------------------------------------
def gemini_read_tools(tools: Iterable[Json]) -> Iterator[Tool]:
    """Read functions and the service's own tools, however they are grouped."""
    for group in tools:
        yield from map(gemini_read_tool, gemini_list(group.get("functionDeclarations")))
        for key, value in without(group, frozenset({"functionDeclarations"})).items():
            yield Tool(GEMINI_HOSTED.get(key, key), kind="hosted", extra={"gemini": {key: value}})


def gemini_read_tool(data: Json) -> Tool:
    schema = gemini_schema(data.get("parameters") or data.get("parametersJsonSchema"))
    tool = Tool(data["name"], data.get("description") or "", schema)
    return tool._replace(extra=extra_of("gemini", rest_of(data, gemini_write_tool(tool))))


def gemini_read_choice(config: Json) -> ToolChoice | None:
    """Read the tool choice; VALIDATED, which nobody else knows, is `auto` to them."""
    calling = config.get("functionCallingConfig")
    if calling is None:
        return None
    mode = GEMINI_MODES.get(calling.get("mode"), "auto")
    return ToolChoice(mode, tuple(calling.get("allowedFunctionNames") or ()))


def gemini_read_format(config: Json) -> Format | None:
    if config.get("responseMimeType") != "application/json":  # text/plain, or an enum
        return None
    schema = gemini_schema(config.get("responseSchema") or config.get("responseJsonSchema"))
    return Format("json" if schema is None else "schema", schema=schema)


def gemini_read_params(config: Json) -> Json:
    return {GEMINI_PARAMS[word]: config[word] for word in config if word in GEMINI_PARAMS}


def gemini_read_thinking(config: Json) -> Thinking:
    level = str(config.get("thinkingLevel") or "").lower()
    summary = GEMINI_SUMMARIES[config.get("includeThoughts")]
    return Thinking(level if level in EFFORTS else "", config.get("thinkingBudget"), summary)


def gemini_read_system(system: Any) -> Json:
    """Return a systemInstruction as a content: the SDKs take a text or a part for one, too."""
    if isinstance(system, str):
        return {"parts": [{"text": system}]}
    if not system or "parts" in system:
        return {**(system or {})}
    return {"parts": [system]}


def gemini_read_request(body: Json) -> Request:
    """Body of generateContent -> Request; `model` and `stream`, which the path says, are in it."""
    data = gemini_fitted(gemini_camel(body), frozenset())
    config = data.get("generationConfig") or {}
    system = gemini_read_system(data.get("systemInstruction"))
    request = Request(
        "gemini",
        data["model"],
        tuple(gemini_pair(map(gemini_read_message, gemini_list(data["contents"])))),
        system=tuple(map(gemini_read_part, gemini_list(system.pop("parts", None)))),
        tools=tuple(gemini_read_tools(gemini_list(data.get("tools")))),
        choice=gemini_read_choice(data.get("toolConfig") or {}),
        params=gemini_read_params(config),
        thinking=gemini_read_thinking(config.get("thinkingConfig") or {}),
        format=gemini_read_format(config),
        stream=bool(data.get("stream")),
    )
    rest = rest_of(without(data, GEMINI_APART), gemini_write_settings(request))
    kept = {**rest, "systemInstruction": system} if system else rest
    return request._replace(extra=extra_of("gemini", kept))


# -- requests, written -----------------------------------------------------------------
def gemini_write_tools(tools: Iterable[Tool], *, new: bool, openapi: bool) -> list[Json]:
    """Write the tools: the functions in one object, each tool of the service in its own.

    Before Gemini 3 the two do not go together: then only the functions stay.
    """
    functions = [gemini_write_tool(tool, openapi) for tool in tools if tool.kind == "function"]
    written: list[Json] = [{"functionDeclarations": functions}] if functions else []
    for tool in tools:
        hosted = tool.kind == "hosted"
        if hosted and gemini_own(tool):
            written.append(gemini_own(tool))
        elif hosted and tool.name in GEMINI_HOSTED_WRITE and (new or not functions):
            written.append({GEMINI_HOSTED_WRITE[tool.name]: {}})
    return written


def gemini_write_tool(tool: Tool, openapi: bool = False) -> Json:
    """Write a function; one without arguments has no schema, for some refuse that."""
    written = {"name": tool.name, **filled(description=tool.description)}
    schema = tool.schema or {}
    if any(map(schema.get, GEMINI_TAKES)):
        written["parameters" if openapi else "parametersJsonSchema"] = schema
    return restored(written, gemini_own(tool))


def gemini_write_choice(request: Request) -> Json:
    """Write the tool choice; some of the tools may only be named where a call is required."""
    if request.choice is None or not request.tools:
        return {}
    mode, names = request.choice
    allowed = [*names] if mode == "required" or request.dialect == "gemini" else []
    config = {"mode": GEMINI_MODES_WRITE[mode], **filled(allowedFunctionNames=allowed)}
    return {"functionCallingConfig": config}


def gemini_write_format(form: Format | None, openapi: bool) -> Json:
    if form is None:
        return {}
    return {
        "responseMimeType": "application/json",
        "responseSchema" if openapi else "responseJsonSchema": form.schema,
    }


def gemini_write_params(params: Mapping[str, Any]) -> Json:
    written = {word: params[name] for name, word in GEMINI_PARAMS_WRITE.items() if name in params}
    if "stopSequences" in written:  # five at most, and no empty list
        written["stopSequences"] = written["stopSequences"][:5]
    return written


def gemini_write_thinking(request: Request) -> Json:
    """Write how much to think, by name or in tokens; thoughts are shown unless that is unwanted."""
    effort, budget, summary, _ = request.thinking
    level = effort.upper() if effort and EFFORTS[effort] > 0 else ""
    budget = EFFORTS[effort] if effort else budget
    thinks = budget not in {None, 0}
    unsaid = not summary and (request.dialect == "gemini" or not thinks)
    shown = None if unsaid else summary != "omitted"
    tokens = None if level else budget
    return filled(thinkingLevel=level, thinkingBudget=tokens, includeThoughts=shown)


def gemini_write_settings(request: Request, openapi: bool = False) -> Json:
    """Write toolConfig and generationConfig: the parameters, the answer's form, the thinking."""
    params, form = gemini_write_params(request.params), gemini_write_format(request.format, openapi)
    config = filled(**params, **form, thinkingConfig=gemini_write_thinking(request))
    return filled(toolConfig=gemini_write_choice(request), generationConfig=config)


def gemini_odd(raw: bytes | bytearray, quirks: Quirks, _model: str) -> bool:
    """Tell whether a body, not decoded, may hold what the service, or a host with such quirks, refuses."""
    called = b"unctionCall" in raw or b"unction_call" in raw
    nameless = len(GEMINI_RESULT.findall(raw)) > len(GEMINI_NAMED.findall(raw))
    return nameless or (called and "no-call-ids" in quirks)


def gemini_fitted(body: Json, quirks: Quirks) -> Json:
    """Return a body as the service, or a host with such quirks, takes it; `body` itself if so it is."""
    counted = body.get("generateContentRequest")
    if counted:  # of a call that counts tokens
        fitted = gemini_fitted(counted, quirks)
        return body if fitted is counted else {**body, "generateContentRequest": fitted}
    contents = gemini_list(body.get("contents"))
    fitted_contents = GeminiHistory(quirks).fit(contents)
    same = all(new is old for new, old in zip(fitted_contents, contents))
    return body if same else {**body, "contents": fitted_contents}


def gemini_write_request(request: Request, target: Target) -> Json:
    """Request -> body of generateContent, with `model` and `stream` for the path."""
    new = gemini_is_new(target.model.id)
    messages, system = request.messages, gemini_write_kept(request.system)
    if not messages:  # the service wants a user: then he says what the system would have
        messages, system = (Message("user", request.system),), []
    if request.dialect == "gemini":
        contents = [gemini_write_message(message) for message in messages]
    else:
        contents = gemini_write_turns(messages, new)
    if new:
        gemini_add_sentinels(contents)
    # QUIRKS openapi-schema: the service knows no JSON Schema; fit_request has cleaned it
    openapi = "openapi-schema" in target.quirks
    body: Json = {"model": request.model, "stream": request.stream, "contents": contents}
    body["systemInstruction"] = filled(parts=system)
    body["tools"] = gemini_write_tools(request.tools, new=new, openapi=openapi)
    body.update(gemini_write_settings(request, openapi))
    return gemini_fitted(restored(filled(**body), gemini_own(request)), target.quirks)


# -- answers, read ---------------------------------------------------------------------
def gemini_read_usage(usage: Json) -> Usage:
    """Read usageMetadata. What was said beside the thoughts may have to be told by the total."""
    told = {field: number_at(usage, (word,)) for field, word in GEMINI_USAGE.items()}
    told["input"] += number_at(usage, ("toolUsePromptTokenCount",))
    if "candidatesTokenCount" not in usage:
        total = number_at(usage, ("totalTokenCount",))
        told["output"] = max(0, total - told["input"] - told["reasoning"])
    told["output"] += told["reasoning"]
    return Usage(**told, extra=extra_of("gemini", without(usage, GEMINI_COUNTED)))


def gemini_read_citation(support: Json, source: Json, base: int, data: bytes) -> Citation:
    """Read a groundingSupport, whose offsets are bytes of all texts; the last text is `data` from `base` on."""
    segment = support.get("segment") or EMPTY
    start, end = (
        len(data[base : max(base, segment.get(key, 0))].decode("utf-8", "ignore"))
        for key in ("startIndex", "endIndex")
    )
    url, title, text = (source.get(key) or "" for key in ("uri", "title", "text"))
    return Citation(url, title, start, end, text)


def gemini_read_citations(candidate: Json, before: str, text: str) -> Iterator[Citation]:
    """Read groundingMetadata for the last text; `before` are those that come before it."""
    grounding = candidate.get("groundingMetadata") or EMPTY
    sources = [next(iter(chunk.values()), EMPTY) for chunk in grounding.get("groundingChunks") or ()]
    data, base = (before + text).encode("utf-8", "replace"), gemini_size(before)
    for support in grounding.get("groundingSupports") or ():
        for at in support.get("groundingChunkIndices") or ():
            source = sources[at] if at < len(sources) else EMPTY
            yield gemini_read_citation(support, source, base, data)


def gemini_size(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


def gemini_read_token(data: Json) -> Json:
    token, logprob = data.get("token", ""), data.get("logProbability", 0.0)
    return {"token": token, "logprob": logprob, "bytes": [*token.encode()]}


def gemini_read_logprobs(data: Json) -> Iterator[Json]:
    """Read logprobsResult into OpenAI's form."""
    tops = [top.get("candidates") or () for top in data.get("topCandidates") or ()]
    for at, chosen in enumerate(data.get("chosenCandidates") or ()):
        others = [gemini_read_token(other) for other in tops[at]] if at < len(tops) else []
        yield {**gemini_read_token(chosen), "top_logprobs": others}


def gemini_put(arguments: Any, piece: Json) -> Any:
    """Return the arguments with a piece where its path says, `$.a[0].b`; a string grows."""
    found = GEMINI_STEP.findall(piece["jsonPath"])
    steps = [Step("key" if at else "name", at or name or quoted) for name, at, quoted in found]
    value = next((piece[key] for key in GEMINI_VALUES if key in piece), None)
    for _, old in path_find(arguments, steps):
        value = old + value if isinstance(old, str) and isinstance(value, str) else value
    return path_put(arguments, steps, value)


class GeminiCandidate:
    """A candidate that is being read: its parts, and what must wait for the end.

    A chunk may end anywhere in a part, so a text goes on after a signature in its midst; but where
    there is only one chunk, `whole`, parts are parts.
    """

    def __init__(self, number: int, numbers: Iterator[int], seed: str, whole: bool) -> None:
        self.parts = Parts(numbers, number)
        self.seed, self.whole = seed, whole
        self.flows = False  # is a text open that goes on in the next chunk?
        self.signed = False  # has the open part its proof?
        self.before = ""  # the texts before the open one: what is cited is counted from the first
        self.call: Json = {}  # a call whose arguments arrive in pieces
        self.ids: set[str] = set()  # of the parts so far
        self.last = ""  # the last of them: results come right after
        self.finish, self.raw = "", ""
        self.extra: Json = {}

    def read(self, data: Json) -> Iterator[Event]:
        """Read what a chunk adds. Most are one more piece of the open text."""
        parts = self.parts
        for part in (data.get("content") or EMPTY).get("parts") or ():
            text = part.get("text")
            if text and self.flows and len(part) == 1:
                parts.texts.append(text)
                yield PartDelta(parts.at, "text", text)
            elif text is not None or part.keys() <= {"thoughtSignature"}:
                yield from self.read_text(gemini_read_part(part))
            elif "functionCall" in part:
                yield from self.read_call(part)
            else:
                yield from self.read_whole(part)
        if data.keys() - {"content", "index"}:
            yield from self.read_rest(data)

    def read_text(self, part: Part) -> Iterator[Event]:
        """Read a text or thought: more of the open part, or a new one. An empty one has its proof."""
        if not part.text and not part.proof:
            return
        opened = self.parts.part
        more = opened is not None and (part.kind == opened.kind or not part.text)
        if not more or (self.signed and (self.whole or part.proof)):
            yield from self.close()
            yield from self.parts.open(part)
            yield from self.parts.begin()
            self.flows = part.kind == "text" and not self.whole
        self.signed = self.signed or bool(part.proof)
        yield from self.parts.add("text", part.text)
        yield from self.parts.add("proof", part.proof)

    def read_call(self, data: Json) -> Iterator[Event]:
        """Read a call. Vertex may send one in pieces, only the first of them named: kept till its end."""
        call = data["functionCall"]
        if call.get("name") or not self.call:
            if not call.get("willContinue") and "partialArgs" not in call:
                yield from self.read_whole(data)
                return
            yield from self.close()
            self.call = {**data, "functionCall": {**without(call, GEMINI_PIECES), "args": {}}}
        for piece in call.get("partialArgs") or ():
            growing = self.call["functionCall"]
            growing["args"] = gemini_put(growing["args"], piece)
        if not call.get("willContinue"):
            yield from self.close()

    def read_whole(self, data: Json) -> Iterator[Event]:
        """Read a part that is complete, and give it an id if it needs one."""
        yield from self.close()
        part = gemini_read_part(data)
        if part.kind == "call" and part.id in self.ids:
            part = part._replace(id="")
        if part.kind in {"call", "hosted"}:
            self.last = part.id or f"call_{digest(self.seed, self.parts.choice, len(self.ids))}"
        if part.kind in {"call", "hosted", "hosted_result"}:
            part = part._replace(id=part.id or self.last)
            self.ids.add(part.id)
        yield from self.parts.whole(part)

    def close(self) -> Iterator[Event]:
        """End what is open: a text, or a call in pieces."""
        if self.parts.part and self.parts.part.kind == "text":
            self.before += "".join(self.parts.texts)
        self.flows = self.signed = False
        yield from self.parts.close()
        if self.call:
            call, self.call = self.call, {}
            yield from self.read_whole(call)

    def read_rest(self, data: Json) -> Iterator[Event]:
        """Read what a candidate has beside its content: why it ended, sources, log probabilities."""
        self.raw = data.get("finishReason") or self.raw
        self.finish = GEMINI_FINISH.get(self.raw, "error") if self.raw else ""
        self.extra.update(without(data, GEMINI_CANDIDATE))
        logprobs = data.get("logprobsResult")
        if logprobs:
            yield from self.parts.add("logprobs", list(gemini_read_logprobs(logprobs)))

    def end(self) -> Iterator[Event]:
        """End the candidate; its sources, which come last, belong to the text that is still open."""
        parts = self.parts
        if parts.part and parts.part.kind == "text":
            for citation in gemini_read_citations(self.extra, self.before, "".join(parts.texts)):
                yield from parts.add("citation", citation)
        if self.finish not in {"stop", "tool_calls"}:
            self.call = {}  # cut off among its pieces: it is none
        yield from self.close()
        shown = self.before or parts.kinds - UNSEEN - {"text"}  # a text may only carry a proof
        if self.finish == "error" and not shown:
            message = self.extra.get("finishMessage") or f"the model stopped with {self.raw}"
            raise ProxyError("upstream_failed", message)
        called = "call" in parts.kinds and self.finish in {"stop", "error"}
        finish = "tool_calls" if called else self.finish
        yield MessageEnd(finish, raw=self.raw, choice=parts.choice, extra=extra_of("gemini", self.extra))


class GeminiReader:
    """An answer that is being read. Ends and usage wait for its end: the last ones told count."""

    def __init__(self, request: Request, whole: bool) -> None:
        self.seed, self.whole = request.id, whole
        self.candidates: dict[int, GeminiCandidate] = {}
        self.numbers = count()  # of the parts of all candidates
        self.usage: Json = {}
        self.begun = False

    def read(self, payloads: Iterable[Json]) -> Events:
        """Read the chunks. What breaks off when every candidate has ended is complete."""
        try:
            for payload in payloads:
                chunk = payload.get("response", payload)  # Code Assist wraps it
                self.usage = chunk.get("usageMetadata") or self.usage
                if "error" in chunk:
                    raise gemini_error(chunk)
                if not self.begun:
                    yield from self.begin(chunk)
                for data in gemini_candidates(chunk):
                    number = data.get("index", 0)
                    candidate = self.candidates.get(number) or self.new_candidate(number)
                    yield from candidate.read(data)
        except ProxyError:
            if not self.done():
                raise
        yield from self.end()

    def begin(self, chunk: Json) -> Iterator[Event]:
        self.begun = True
        usage = [*self.counted()]
        name, model = chunk.get("responseId", ""), chunk.get("modelVersion", "")
        yield MessageStart(name, model, usage=next(iter(usage), None))
        yield from usage

    def new_candidate(self, number: int) -> GeminiCandidate:
        made = GeminiCandidate(number, self.numbers, self.seed, self.whole)
        self.candidates[number] = made
        return made

    def counted(self) -> Iterator[Usage]:
        """Tell of the usage, if it counts anything: early ones only name the traffic type."""
        if "promptTokenCount" in self.usage:
            yield gemini_read_usage(self.usage)

    def done(self) -> bool:
        """Tell whether every candidate has said why it ended."""
        return bool(self.candidates) and all(one.finish for one in self.candidates.values())

    def end(self) -> Iterator[Event]:
        if not self.done():
            raise ProxyError("upstream_failed", "the upstream ended its answer without a finishReason")
        yield from self.counted()
        for candidate in self.candidates.values():
            yield from candidate.end()


def gemini_candidates(chunk: Json) -> list[Json]:
    """Return the candidates of a chunk; a prompt that was refused has none, which makes one."""
    found: list[Json] = chunk.get("candidates") or []
    reason = "" if found else (chunk.get("promptFeedback") or EMPTY).get("blockReason")
    if reason and GEMINI_FINISH.get(reason) != "content_filter":
        reason = "SAFETY"
    return [{"finishReason": reason}] if reason else found


def gemini_read_response(body: Json, request: Request) -> Events:
    """GenerateContentResponse -> events; an array is a stream without `alt=sse`, read whole."""
    return GeminiReader(request, whole=isinstance(body, dict)).read(gemini_list(body))


def gemini_read_stream(payloads: Iterable[Json], request: Request) -> Events:
    """Chunks -> events."""
    return GeminiReader(request, whole=False).read(payloads)


# -- answers, written ------------------------------------------------------------------
def gemini_write_usage(usage: Usage) -> Json:
    """Write usageMetadata, whose total is the sum of its parts."""
    own = gemini_own(usage)
    counts = {word: getattr(usage, field) or None for field, word in GEMINI_USAGE.items()}
    counts["promptTokenCount"] = usage.input - own.get("toolUsePromptTokenCount", 0)
    counts["candidatesTokenCount"] = usage.output - usage.reasoning
    return restored(filled(**counts, totalTokenCount=usage.input + usage.output), own)


def gemini_write_citation(cited: Citation, part: Part, base: int, at: int) -> Json:
    """Write a groundingSupport: which bytes of the texts use source number `at`."""
    start, end = (base + gemini_size(part.text[:n]) for n in (cited.start, cited.end))
    segment = {"startIndex": start, "endIndex": end, "text": part.text[cited.start : cited.end]}
    return {"segment": segment, "groundingChunkIndices": [at]}


def gemini_write_citations(parts: Iterable[Part]) -> Json:
    """Write groundingMetadata: the sources, each once, and where the texts use them."""
    sources: dict[tuple[str, str], int] = {}
    supports: list[Json] = []
    base = 0
    for part in parts:
        for cited in part.citations:
            at = sources.setdefault((cited.url, cited.title), len(sources))
            supports.append(gemini_write_citation(cited, part, base, at))
        base += gemini_size(part.text) if part.kind in {"text", "refusal"} else 0
    chunks = [{"web": {"uri": url, "title": title}} for url, title in sources]
    return {"groundingChunks": chunks, "groundingSupports": supports}


def gemini_write_token(data: Json) -> Json:
    return {"token": data["token"], "logProbability": data["logprob"]}


def gemini_write_logprobs(tokens: Iterable[Json]) -> Json:
    tops = [{"candidates": [*map(gemini_write_token, t.get("top_logprobs") or ())]} for t in tokens]
    chosen = {"chosenCandidates": [*map(gemini_write_token, tokens)]}
    return {**chosen, "topCandidates": tops} if any(top["candidates"] for top in tops) else chosen


def gemini_write_candidate(choice: Choice, parts: list[Json]) -> Json:
    """Write a candidate with all that comes last in it; a word of this dialect is used again."""
    end = choice.end
    same = end.finish in {GEMINI_FINISH.get(end.raw, "error"), "tool_calls"}
    word = end.raw if same and end.raw.isupper() else GEMINI_FINISH_WRITE[end.finish]
    content = {"parts": parts, "role": "model"}
    candidate: Json = {"content": content, "finishReason": word, "index": end.choice}
    if any(part.citations for part in choice.parts):
        candidate["groundingMetadata"] = gemini_write_citations(choice.parts)
    if choice.logprobs:
        candidate["logprobsResult"] = gemini_write_logprobs(choice.logprobs)
    return restored(candidate, gemini_own(end))


def gemini_is_whole(call: Part) -> bool:
    """Tell whether the arguments of a call are surely all there: it may have been cut off before any."""
    arguments = json_of(call.text)
    return bool(gemini_own(call)) or (isinstance(arguments, dict) and bool(arguments))


def gemini_is_cut(part: Part, end: MessageEnd) -> bool:
    """Tell whether the last part of an answer is a call that the limit cut off: clients would run it as it is."""
    return part.kind == "call" and end.finish not in {"stop", "tool_calls"} and not gemini_is_whole(part)


def gemini_write_names(start: MessageStart, request: Request) -> Json:
    made = digest(request.id, "response")
    return {"modelVersion": start.model or request.model, "responseId": start.id or made}


class GeminiOut:
    """One candidate on its way out: its open part, and what waits for the last chunk.

    `head` and `tail` are the frame around a text; empty while a part is open that is sent whole.
    """

    def __init__(self, number: int, names: Json, frame: Callable[[Json], str]) -> None:
        self.number, self.names = number, names
        self.frame = frame
        self.part = Part("")
        self.head, self.tail = "", ""
        self.texts: list[str] = []  # of the open part
        self.said: list[Part] = []  # the texts that are complete
        self.logprobs: list[Json] = []
        self.proof = ""  # of a thought: goes to the call that follows, or out on its own
        self.call: Part | None = None  # a complete one, if another part or a good end comes next

    def chunk(self, part: Json) -> str:
        candidate = {"content": {"parts": [part], "role": "model"}, "index": self.number}
        return self.frame({"candidates": [candidate], **self.names})

    def take_proof(self) -> Json:
        """Return the proof of a thought that no call follows as a part."""
        proof, self.proof = self.proof, ""
        return {"text": "", "thought": True, "thoughtSignature": proof}

    def open(self, part: Part) -> Iterator[str]:
        """Open a part; for texts, prepare the chunk that the deltas go into."""
        if self.call:
            yield self.chunk(gemini_write_part(self.call))
            self.call = None
        if self.proof and part.kind != "call":
            yield self.chunk(self.take_proof())
        self.part, self.head = part, ""
        self.texts = [part.text]
        if part.kind in GEMINI_TEXTS:
            chunk = self.chunk(gemini_write_part(part._replace(text="\0")))
            self.head, self.tail = chunk.split('"\\u0000"', 1)

    def change(self, event: PartDelta) -> Iterator[str]:
        """Take a delta that is no text."""
        if event.field == "logprobs":
            self.logprobs += event.value
        elif event.field == "proof" and self.part.kind == "thinking":
            self.proof = event.value
        elif event.field == "proof" and self.head:
            yield self.chunk({"text": "", "thoughtSignature": event.value})
        else:
            self.part = part_with(self.part, event)

    def close(self) -> Iterator[str]:
        """End the part: calls, media and the like are written now, in one piece."""
        part = self.part._replace(text="".join(self.texts))
        if self.head:
            self.said.append(part)
            return
        if self.proof and part.proof:
            yield self.chunk(self.take_proof())
        part, self.proof = part._replace(proof=part.proof or self.proof), ""
        written = gemini_write_part(part)
        if part.kind == "call" and not gemini_is_whole(part):
            self.call = part
        elif written:
            yield self.chunk(written)

    def end(self, event: MessageEnd) -> Json:
        """Return the candidate of the last chunk."""
        last = [self.take_proof()] if self.proof else []
        if self.call and not gemini_is_cut(self.call, event):
            last.append(gemini_write_part(self.call))
        choice = Choice(tuple(self.said), event, tuple(self.logprobs))
        return gemini_write_candidate(choice, last or [{"text": ""}])


class GeminiWriter:
    """Writes events as server-sent events, or without `alt=sse` as one JSON array that grows.

    The last chunk has the ends of all candidates and the usage.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        sse = gemini_own(request).get("_alt") == "sse"
        self.lead = "data: " if sse else ",\r\n"  # of a frame
        self.first = "data: " if sse else "["  # in its place before the first one
        self.tail = "\r\n\r\n" if sse else ""
        self.last = b"" if sse else b"]"  # after all
        self.begun = False
        self.names: Json = {}
        self.usage: Json = {}
        self.ends: list[Json] = []
        self.outs: dict[int, GeminiOut] = {}  # by candidate
        self.live: dict[int, GeminiOut] = {}  # by number of the open part

    def frame(self, chunk: Json) -> str:
        return self.lead + dumps(chunk) + self.tail

    def sent(self, frame: str) -> bytes:
        if not self.begun:
            self.begun = True
            frame = self.first + frame.removeprefix(self.lead)
        return frame.encode("ascii")

    def text(self, event: PartDelta) -> bytes:
        out = self.live[event.at]
        out.texts.append(event.value)
        if not out.head:
            return b""
        frame = out.head + quote(event.value) + out.tail
        return frame.encode("ascii") if self.begun else self.sent(frame)

    def out_of(self, number: int) -> GeminiOut:
        return self.outs.setdefault(number, GeminiOut(number, self.names, self.frame))

    def message_start(self, event: MessageStart) -> Iterable[bytes]:
        self.names = gemini_write_names(event, self.request)
        return ()

    def part_start(self, event: PartStart) -> Iterable[bytes]:
        out = self.live[event.at] = self.out_of(event.choice)
        return map(self.sent, out.open(event.part))

    def part_delta(self, event: PartDelta) -> Iterable[bytes]:
        return map(self.sent, self.live[event.at].change(event))

    def part_end(self, event: PartEnd) -> Iterable[bytes]:
        return map(self.sent, self.live.pop(event.at).close())

    def take_usage(self, event: Usage) -> Iterable[bytes]:
        self.usage = {"usageMetadata": gemini_write_usage(event)}
        return ()

    def message_end(self, event: MessageEnd) -> Iterable[bytes]:
        self.ends.append(self.out_of(event.choice).end(event))
        return ()

    def finish(self) -> Iterator[bytes]:
        return self.ended({"candidates": self.ends, **self.usage, **self.names})

    def fail(self, error: ProxyError) -> Iterator[bytes]:
        return self.ended(gemini_write_error(error))

    def ended(self, chunk: Json) -> Iterator[bytes]:
        yield self.sent(self.frame(chunk))
        if self.last:
            yield self.last

    takes: ClassVar[Mapping[type, Callable[[Any, Any], Iterable[bytes]]]] = {
        MessageStart: message_start,
        PartStart: part_start,
        PartDelta: part_delta,
        PartEnd: part_end,
        Usage: take_usage,
        MessageEnd: message_end,
    }


def gemini_uncut(choice: Choice) -> tuple[Part, ...]:
    """Return the parts of an answer without a last call that was cut off."""
    cut = bool(choice.parts) and gemini_is_cut(choice.parts[-1], choice.end)
    return choice.parts[:-1] if cut else choice.parts


def gemini_write_response(response: Response, request: Request) -> Json:
    """Write a collected answer as one GenerateContentResponse."""
    candidates = [
        gemini_write_candidate(choice, gemini_write_kept(gemini_move_proofs(gemini_uncut(choice))))
        for choice in response.choices
    ]
    usage = {"usageMetadata": gemini_write_usage(response.usage)} if response.usage else {}
    return {"candidates": candidates, **usage, **gemini_write_names(response.start, request)}


def gemini_write_stream(events: Iterable[Event], request: Request) -> Frames:
    """Events -> frames."""
    return write_frames(GeminiWriter(request), events)


# -- errors ----------------------------------------------------------------------------
GEMINI_KINDS = {kind.gemini: name for name, kind in reversed(KINDS.items())} | {
    "FAILED_PRECONDITION": "invalid_request",
    "INTERNAL": "upstream_error",
    "DEADLINE_EXCEEDED": "upstream_timeout",
}
GEMINI_PHRASES = (  # words of an error that say more than its status
    ("API_KEY_INVALID", "unauthorized"),
)
GEMINI_RETRY = "type.googleapis.com/google.rpc.RetryInfo"


def gemini_error(body: Any, status: int = 0) -> ProxyError:
    """Return the error in a body or payload: what it says counts more than its status; 0: it came with a 200."""
    error = error_said(body)
    message, code = error_words(error), error.get("code")
    if not status and isinstance(code, int):
        status = code
    said = message + dumps(error.get("details") or [])
    finer = (kind for phrase, kind in GEMINI_PHRASES if phrase in said)
    kind = next(finer, GEMINI_KINDS.get(str(error.get("status")), ""))
    usual = error_of_status(status, message)
    made = ProxyError(kind or usual.kind, message, retry_after=error_wait(said))
    made.status = status if status >= 400 else made.status
    return told_full(made)


def gemini_read_error(status: int, body: bytes) -> ProxyError:
    """HTTP status and body -> error."""
    return gemini_error(error_body(status, body), status)


def gemini_write_error(error: ProxyError) -> Json:
    """Write an error; in a stream, clients look for `error` as the first key."""
    kind = KINDS[error.kind]
    body: Json = {"code": kind.status, "message": words_for(error, "gemini"), "status": kind.gemini}
    if error.retry_after is not None:
        body["details"] = [{"@type": GEMINI_RETRY, "retryDelay": f"{error.retry_after:g}s"}]
    return {"error": body}


########################################################################################
# 11. THINKING                                                                    [pure]
########################################################################################
# How much a model is asked to think, settled for a target from what the client said and what the model
# can: an effort by name, a budget in tokens, or nothing. Source: spec/dialects.md 2.8, providers.md 13.


class EffortRule(NamedTuple):
    """How a dialect says how much to think, where the model does not tell."""

    levels: tuple[str, ...]  # the efforts that it has names for
    numbers: bool = False  # can it say tokens instead?
    least: int = 0  # of them
    auto: int = EFFORTS["medium"]  # of them, where the model is to decide; negative: it can
    adaptive: bool = False  # as Claude: adaptive if told by name, and every model can be stopped
    stops: bool = True  # can a model of which nothing is known be told not to think?


LADDER = tuple(effort for effort in EFFORTS if effort != "auto")
EFFORT_RULES = {
    "claude": EffortRule(LADDER[2:], numbers=True, least=1_024, adaptive=True),
    "chat": EffortRule(LADDER[2:5], stops=False),  # gpt-oss, vLLM and Ollama know these three
    "responses": EffortRule(LADDER),
    "gemini": EffortRule(LADDER[1:5], numbers=True, auto=-1),
}
OWN_EFFORTS = {  # where a body may say one that we do not know: it counts until there is another
    "chat": "reasoning_effort", "responses": "reasoning.effort", "gemini": "generationConfig.thinkingConfig",
}  # fmt: skip


def effort_of(thinking: Thinking) -> str:
    """Return how much to think by name; empty if that was not said."""
    budget = thinking.budget
    if thinking.effort or budget is None:
        return thinking.effort or ("auto" if thinking.adaptive else "")
    names = (name for name in LADDER[:5] if budget <= EFFORTS[name])
    return "auto" if budget < 0 else next(names, "xhigh")


def nearest_level(effort: str, levels: Iterable[str]) -> str:
    """Return the supported effort that is nearest; of two, the lower. "none" is for "none" only."""
    rank = LADDER.index(effort)
    known = [level for level in LADDER if level in levels and (level != "none" or not rank)]
    return min(known, key=lambda level: abs(LADDER.index(level) - rank), default=effort)


def resolve_thinking(asked: Thinking, model: Model, dialect: str, limit: int = 0) -> Thinking:
    """Return what to write: an effort by name, or a budget, or neither. Source: 2.8, providers.md 13.

    `limit` is that of the answer in tokens, 0 if there is none.
    """
    effort, rule = effort_of(asked), EFFORT_RULES[dialect]
    if model.thinking is False:
        return Thinking()
    if not effort:
        return Thinking(summary=asked.summary)
    if effort == "none":
        return least_thinking(model, rule)
    if by_name(asked, model, rule):
        level = "" if effort == "auto" else nearest_level(effort, model.levels or rule.levels)
        return Thinking(level, None, asked.summary, adaptive=rule.adaptive)
    if 0 < limit <= rule.least:
        return Thinking("none")
    return Thinking("", resolve_budget(asked, effort, model, rule, limit), asked.summary)


def least_thinking(model: Model, rule: EffortRule) -> Thinking:
    """Return the least that a model can think, and none of it shown."""
    if not rule.stops and model.thinking is None and not model.levels:
        return Thinking()
    stuck = not model.can_stop and not rule.adaptive
    if stuck and model.levels:
        return Thinking(nearest_level("none", model.levels), None, "omitted")
    if stuck and rule.numbers:
        return Thinking("", model.budget[0], "omitted")
    return Thinking("none")


def by_name(asked: Thinking, model: Model, rule: EffortRule) -> bool:
    """Tell whether the target wants an effort by name, rather than a number of tokens."""
    tokens = None if asked.effort else asked.budget
    if not rule.numbers:
        return True
    if model.levels:  # a model with both keeps Claude's own form
        return not ((tokens or -1) > 0 and model.budget[1] and rule.adaptive)
    adaptive = rule.auto < 0 or asked.adaptive or model.id.startswith("claude-")
    return not model.budget[1] and tokens is None and adaptive  # unknown: passed on as it was said


def resolve_budget(asked: Thinking, effort: str, model: Model, rule: EffortRule, limit: int) -> int:
    """Return a budget that the model takes and, of Claude, that leaves room for the answer."""
    if effort == "auto" and rule.auto < 0:
        return rule.auto
    said, (least, most) = max(asked.budget or 0, 0), model.budget
    budget = said or (rule.auto if effort == "auto" else EFFORTS[effort])
    budget = max(least, rule.least, min(budget, most or sys.maxsize))
    if rule.least and limit and (asked.budget is None or budget >= limit):
        return min(budget, max(rule.least, limit * 4 // 5))
    return budget


def cannot_think(request: Request, thinking: Thinking, model: Model) -> bool:
    """Tell whether Claude would refuse to think: under a forced call, or when its thinking is lost."""
    unasked = model.levels and not model.budget[1]  # such a model thinks unless told not to
    if not (thinking.effort or thinking.budget or thinking.adaptive or unasked):
        return False
    forced = request.choice is not None and request.choice.mode == "required"
    return forced or bool(thinking.budget and lost_thinking(request.messages))


def lost_thinking(messages: Iterable[Message]) -> bool:
    """Tell whether a loop of calls is under way without the thinking it began with. Source: 4.2."""
    loop: list[Turn] = []
    for turn in turns(messages):
        if turn.role == "user" and any(part.kind != "result" for part in turn.parts):
            loop = []
        loop.append(turn)
    steps = [turn.parts for turn in loop if turn.role == "assistant"]
    called = any(part.kind == "call" for parts in steps for part in parts)
    return called and not any(parts[0].kind == "thinking" for parts in steps)


########################################################################################
# 12. NAMES                                                                       [pure]
########################################################################################
# What names and ids of tools a dialect takes, and how a proof of one provider's thinking travels through
# the client of another. Source: spec/dialects.md 2.6, 4.6.


ToolKey = tuple[str, str]  # namespace, name


class NameRule(NamedTuple):
    """The names of tools that a dialect takes."""

    legal: str  # regular expression of a whole name
    illegal: str  # of one character
    limit: int


NAME_RULES = {
    "claude": NameRule(r"[a-zA-Z0-9_-]{1,128}", r"[^a-zA-Z0-9_-]", 128),
    "chat": NameRule(r"[a-zA-Z0-9_-]{1,64}", r"[^a-zA-Z0-9_-]", 64),
    "responses": NameRule(r"[a-zA-Z0-9_-]{1,64}", r"[^a-zA-Z0-9_-]", 64),
    "gemini": NameRule(r"[a-zA-Z_][a-zA-Z0-9_.:-]{0,63}", r"[^a-zA-Z0-9_.:-]", 64),
}


def name_tools(request: Request, dialect: str) -> dict[ToolKey, ToolKey]:
    """Map each (namespace, name) of a request to a legal one, no two to the same. Source: 2.6.

    Legal names are reserved first, whatever their order; the others get a hash, so that the same
    name is written the same in every request. Only Responses has namespaces.
    """
    rule, keys = NAME_RULES[dialect], sorted(tool_keys(request))
    wanted = {key: key for key in keys}
    if dialect != "responses":
        wanted = {key: ("", "__".join(filter(None, key))) for key in keys}
    owners: dict[ToolKey, ToolKey] = {}  # as written -> as it came
    for key, written in wanted.items():
        if re.fullmatch(rule.legal, written[1]):
            owners.setdefault(written, key)
    return {key: free_name(key, written, owners, rule) for key, written in wanted.items()}


def free_name(key: ToolKey, wanted: ToolKey, owners: dict[ToolKey, ToolKey], rule: NameRule) -> ToolKey:
    """Return what is written for a tool's name, and make it the tool's own."""
    written, seed = wanted, wanted[1]
    while owners.get(written) != key:
        written = wanted[0], legal_name(seed, rule)
        owners.setdefault(written, key)
        seed += " "
    return written


def tool_keys(request: Request) -> set[ToolKey]:
    """Return what the tools of a request are called, in its list and in its history."""
    declared = declared_names(request)
    listed = {(tool.namespace, tool.name) for tool in request.tools if tool.kind != "hosted"}
    called = {
        call_key(part, declared)
        for message in request.messages
        for part in message.parts
        if part.kind == "call"
    }
    return listed | called


def declared_names(request: Request) -> set[ToolKey]:
    return {(tool.namespace, tool.name) for tool in request.tools}


def call_key(call: Part, declared: Collection[ToolKey]) -> ToolKey:
    """Name a call without its namespace if its tool has none: a tool search calls each by its own."""
    key, plain = (call.namespace, call.name), ("", call.name)
    if not call.namespace or key in declared:
        return key
    return plain if call.namespace == call.name or plain in declared else key


def legal_name(name: str, rule: NameRule) -> str:
    """Make up a legal name: the telling part of the old one, and eight digits of its hash."""
    short = name
    if name.startswith("mcp__") and len(name) > rule.limit:
        short = f"mcp__{name.rpartition('__')[2]}"
    short = re.sub(rule.illegal, "_", short)[: rule.limit - 10]
    short = short if re.match(rule.legal, short) else f"_{short}"
    return f"{short}_{digest(name)[:8]}"


LEGAL_ID = re.compile(r"[a-zA-Z0-9_-]+")
PACKED_ID = "odd-"  # begins an id that holds another one: each odd letter of it is a dash and two digits
LONGEST_ID = 128


def legal_id(word: str, limit: int) -> str:
    """Return a call's id as the target takes it: the same for the same id, every time."""
    if LEGAL_ID.fullmatch(word) and len(word) <= limit:
        return word
    return f"{re.sub(r'[^a-zA-Z0-9_-]', '_', word)[: limit - 17]}_{digest(word)[:16]}"


def packed_id(word: str) -> str:
    """Return an id of a call in the letters that Claude's clients take; `unpacked_id` undoes it.

    Kimi's models want `functions.NAME:0` back as it was.
    """
    if LEGAL_ID.fullmatch(word) and not word.startswith(PACKED_ID):
        return word
    packed = (letter if letter.isalnum() else f"-{ord(letter):02x}" for letter in word)
    whole = PACKED_ID + "".join(packed)
    return whole if word.isascii() and len(whole) <= LONGEST_ID else legal_id(word, 64)


def unpacked_id(word: str) -> str:
    """Return the id that was packed, or the id itself."""
    if not word.startswith(PACKED_ID):
        return word
    bare = re.sub(r"-([0-9a-f]{2})", lambda match: chr(int(match[1], 16)), word[len(PACKED_ID) :])
    return bare if packed_id(bare) == word else word


def host_id(word: str, limit: int) -> str:
    """Return an id as a host of Chat takes it: odd ones are of its own making, and kept."""
    own = word.isascii() and word.isprintable() and " " not in word and len(word) <= LONGEST_ID
    return word if own and not LEGAL_ID.fullmatch(word) else legal_id(word, limit)


# The first bytes of every proof that we sealed. Valid base64; long, and of letters that bodies
# seldom hold, so that a megabyte that has none is searched in 0.07 ms.
PROOF_MARK = b"CLIPROXYSEALEDPROOFOFANOTHERPROVIDER"
PLAIN_BASE64 = str.maketrans("-_", "+/")  # Gemini and google-genai say it in the URL-safe form


REDACTED = "redacted"  # what a proof vouches for that is all there is of a thought


class Proof(NamedTuple):
    """A proof as it was minted, by whom, and what it vouches for; empty: that is not ours to know."""

    provider: str
    minted: str
    thought: str = ""  # REDACTED, or the digest of a text that must not have changed


def thought_digest(text: str) -> str:
    return digest("thought", text)[:8]


def seal(proof: str, provider: str, thought: str = "") -> str:
    """Tag a proof with who minted it and for what, in base64 as Gemini's clients want. Source: 4.6."""
    tag = f"{provider}#{thought}" if thought else provider
    return PROOF_MARK.decode() + base64.b64encode(f"{tag}:{proof}".encode()).decode()


def unseal(proof: str) -> Proof:
    """Read a proof that a client gave back, sealed or as it was minted.

    google-genai gives back URL-safe base64 for the standard form that it got.
    """
    if not proof.startswith(PROOF_MARK.decode()):
        return Proof("", proof)
    padded = proof[len(PROOF_MARK) :].translate(PLAIN_BASE64).rstrip("=")
    try:
        plain = base64.b64decode(padded + "=" * (-len(padded) % 4)).decode()
        tag, minted = plain.split(":", 1)
    except ValueError:
        return Proof("", proof)
    provider, _, thought = tag.partition("#")
    return Proof(provider, minted, thought)


########################################################################################
# 13. DIALECTS                                                                    [pure]
########################################################################################
# The dialects as rows, and every decision that depends on the target. Source: spec/dialects.md.
#
# How it works: a reader makes a Request of what the client sent, `fit_request` makes it one that the
# target takes, a writer writes it as it is. On the answer the upstream's reader makes events,
# `fit_events` undoes what must be undone, and the client's writer writes them.
#
#   - A Case is one request on its way to one target: what it may have (ABLE, a column of ABILITIES; the
#     quirks of its host and its model) and what was done so far (names and ids as written).
#   - STEPS are done in their order: messages and the parts in them (FIT_PARTS), system texts, both ends,
#     tools, cache marks, the format, limits and thinking. A step returns the same request if nothing
#     must change, so that what fits is never copied.
#   - What cannot be expressed is refused with the field's name (REFUSED) where leaving it out would
#     change the answer; the rest is told in words, or left out. Writers need not look again.
#   - Between equals (`case.own`) all stays: the upstream would have got it untouched.
#   - Proofs go back to who minted them only; in a foreign client's hands they are sealed (NAMES).

# fmt: off
ABILITIES = (  # what a dialect has room for
    #     in a client's request  claude              chat                    responses           gemini
    Words("content",             "messages",         "messages",             "input",            "contents"),  # the field with it
    Words("vendor",              "anthropic",        "openai",               "openai",           "google"),  # whose files
    Words("minted",              "anthropic",        "google",               "openai",           "google"),  # whose proofs
    Words("proofs",              "thinking",         "thinking call",        "thinking",         "thinking call text"),  # on parts
    Words("state",               "",                 "",                     # history that only their own service has
          "previous_response_id conversation prompt background",             "cachedContent"),
    #     in a client's answer
    Words("shown",               "",                 "image/base64 image/url audio/base64", "image/base64", "*"),  # media
    #     from a target's        claude              chat                    responses           gemini
    Words("media",               "image document",   "image document audio", "image document",   "image document audio video"),
    Words("urls",                "image document",   "image audio",          "image document",   "image document audio video"),
    Words("image",               "image/jpeg image/png image/gif image/webp", "", "",            ""),  # types; empty: any
    Words("document",            "application/pdf",  "",                     "",                 ""),
    Words("audio",               "",                 "audio/wav audio/x-wav audio/wave audio/mp3 audio/mpeg", "", ""),
    Words("hosted",              "web_search web_fetch code_execution", "",  "web_search code_execution",
          "web_search web_fetch code_execution"),
    Words("forced",              "web_search web_fetch code_execution", "",  "web_search code_execution", ""),  # of these
    Words("subset",              "",                 "auto required",        "auto required",    "required"),  # choices of some
    Words("tools",               "function",         "function custom",      "function custom",  "function"),
    Words("late",                "",                 "system",               "system",           ""),  # in mid-conversation
    Words("many",                "",                 "n",                    "",                 "n"),  # answers to one request
    Words("user",                "256",              "64",                   "64",               ""),  # characters of its name
    Words("stops",               "",                 "4",                    "",                 "5"),  # that many
)
ABLE = {
    dialect: {row.canonical: tuple(getattr(row, dialect).split()) for row in ABILITIES} for dialect in Words._fields[1:]
}
ABLE["others"] = {**ABLE["chat"], "subset": (), "tools": ("function",)}  # Chat of any vendor but OpenAI
VENDORS = {  # provider -> whose proofs and files it takes; any other provider is its own vendor
    "claude": "anthropic", "codex": "openai", "openai": "openai", "openai-chat": "openai",
    "gemini": "google", "gemini-cli": "google", "vertex": "google", "aistudio": "google",
}
# fmt: on
Rewrite = Callable[[Json], Any]
SCHEMA_RULES: dict[str, tuple[Rewrite, Rewrite]] = {  # dialect or quirk -> for arguments, for answers
    "claude": (plain_root, claude_clean),
    "chat": (plain_root, dict),  # OpenAI wants the same kind of root
    "responses": (plain_root, dict),
    "gemini": (gemini_clean, gemini_clean),
    "openapi-schema": (openapi_schema, openapi_schema),
}


class Case:
    """One request on its way to one target: what the steps look at, and what they remember."""

    def __init__(self, request: Request, target: Target, dialect: str) -> None:
        self.client = request.dialect
        self.dialect = dialect
        self.target = target
        self.own = self.client == dialect
        quirks = target.quirks
        if dialect == "chat":
            quirks |= model_quirks(target.model.id)
        self.quirks = quirks
        self.vendor = VENDORS.get(target.provider, target.provider)
        others = dialect == "chat" and self.vendor != "openai"
        self.asks = ABLE[self.client]
        self.takes = ABLE["others" if others else dialect]
        # QUIRKS custom-tools: this Chat host knows freeform tools
        self.custom = self.own or "custom" in self.takes["tools"] or "custom-tools" in quirks
        claude = dialect == "claude"
        self.late = bool(self.takes["late"]) or (claude and "mid-system" in target.model.traits)
        # QUIRKS openapi-schema: only Gemini's older form is known
        self.schemas = SCHEMA_RULES["openapi-schema" if "openapi-schema" in quirks else dialect]
        self.names = {} if self.own else name_tools(request, dialect)  # as they came -> as written
        self.declared = declared_names(request)
        self.fit_id = partial(host_id, limit=40) if others else partial(legal_id, limit=64)
        self.calls: dict[str, list[Part]] = {}  # id of a call, as it came -> calls as written
        self.results = collections.Counter[str]()  # of results so far, by the id that came


def plain_name(name: str, case: Case) -> str:
    """Return what is written for a name that comes without its namespace."""
    keys = (("", name), *(key for key in case.names if key[1] == name))
    return next((case.names[key][1] for key in keys if key in case.names), name)


# --- what cannot be expressed: leaving it out would change the answer. Source: 3.1 --------------
CLIENT_TOOLS = ("bash_", "text_editor_", "memory_", "computer_")  # Claude's: no schema on the wire
STATEFUL_ITEMS = frozenset({"item_reference"})


def find_audio(request: Request, case: Case) -> bool:
    own = request.extra.get(case.client, EMPTY)
    words = (own.get("generationConfig") or own).get("responseModalities")
    return bool(words) and dumps(words).upper() == '["AUDIO"]'


def find_client_tool(request: Request, case: Case) -> str:
    hosted = (tool.name for tool in request.tools if tool.kind == "hosted")
    return next((name for name in hosted if name.startswith(CLIENT_TOOLS)), "")


def find_forced(request: Request, case: Case) -> str:
    """Return the upstream's own tools of which one must be called, if none of them can be forced."""
    mode, names = request.choice or ToolChoice("auto")
    names = names or tuple(tool.name for tool in request.tools)
    hosted = {tool.name for tool in request.tools if tool.kind == "hosted"}
    hosted -= {tool.name for tool in request.tools if tool.kind != "hosted"}
    able = set(names).intersection(case.takes["forced"]) or not hosted.issuperset(names)
    return "" if able or mode != "required" else ", ".join(names)


def find_item(part: Part, case: Case) -> str:
    kind = part.extra.get(case.client, EMPTY).get("type")
    return kind if kind in STATEFUL_ITEMS else ""


def find_type(media: Media, case: Case) -> str:
    types = case.takes.get(media.kind)
    fine = media.source != "base64" or not media.mime or not types or media.mime in types
    return "" if fine else f"{media.mime}, only {', '.join(types or ())}"


# fmt: off
REFUSED: dict[str, tuple[tuple[str, Callable[[Any, Case], Any], str], ...]] = {
    # the field to blame,    what is wrong there, if anything,    what the model has to say to that
    "request": (
        ("{found}",            lambda request, case: next(filter(request.extra.get(case.client, EMPTY).get, case.asks["state"]), ""),
                                                 "has no access to what it stands for: send the whole conversation"),
        ("n",                  lambda request, case: not case.takes["many"] and (request.params.get("n") or 1) > 1,
                                                 "gives one answer to a request"),
        ("responseModalities", find_audio,       "cannot speak"),
        ("tools",              find_client_tool, "does not know the tool {found!r}"),
        ("tool_choice",        find_forced,      "cannot be made to use {found}"),
    ),
    "opaque": (
        ("{content}",          find_item,        "cannot read {found!r} items"),
    ),
    "media": (
        ("{content}",          lambda media, case: media.kind not in case.takes["media"] and media.kind, "takes no {found}"),
        ("{content}",          find_type,        "takes no {found}"),
        ("{content}",          lambda media, case: media.source == "file_id" and case.vendor not in case.asks["vendor"] and media.data,
                                                 "has no access to the file {found!r}: send its bytes"),
        ("{content}",          lambda media, case: media.source == "url" and media.kind not in case.takes["urls"] and media.kind,
                                                 "takes no {found} by URL: send its bytes"),
    ),
}
# fmt: on


def refuse(kind: str, thing: Request | Part | Media, case: Case) -> None:
    """Raise ProxyError if the target cannot express something; between equals all passes."""
    for field, find, message in () if case.own else REFUSED[kind]:
        if found := find(thing, case):
            param = field.format(found=found, content=case.asks["content"][0])
            said = f"{param}: {case.target.model.id} {message.format(found=found)}"
            raise ProxyError("invalid_request", said, param=param)


def own_proof(part: Part, case: Case) -> str:
    """Return the part's proof as it was minted, if that was by the target's vendor; else nothing."""
    if "no-proofs" in case.target.quirks:  # QUIRKS no-proofs: it has refused them
        return ""
    proof = unseal(part.proof)
    untagged = case.vendor if case.own else case.asks["minted"][0]
    vendor = VENDORS.get(proof.provider, proof.provider) or untagged
    return proof.minted if vendor == case.vendor else ""


def own_thoughts(parts: tuple[Part, ...], case: Case) -> tuple[Part, ...]:
    """Bring proofs back to the thoughts they vouch for, where the target has them on thoughts alone.

    Gemini's clients hold a thought in pieces and its proof behind them; they and Chat's, on the call
    that follows.
    """
    if case.own or ABLE[case.dialect]["proofs"] != ("thinking",):
        return parts
    done: list[Part] = []
    for part in parts:
        last = done[-1] if done else part
        carries = part.kind == "call" or (part.kind == "thinking" and not part.text)
        if part.kind == last.kind == "thinking" and done and not (part.proof or last.proof):
            done[-1] = last._replace(text=last.text + part.text)
        elif not carries or not own_proof(part, case):
            done.append(part)
        else:
            vouch(done, part.proof)
            done += [part._replace(proof="")] if part.kind == "call" else []
    return tuple(done)


def vouch(parts: list[Part], proof: str) -> None:
    """Put a proof on the last thought if it is about that one, else on an empty one of its own."""
    at = max((n for n, part in enumerate(parts) if part.kind == "thinking"), default=-1)
    about = unseal(proof).thought
    if at >= 0 and not parts[at].proof and about in {"", thought_digest(parts[at].text)}:
        parts[at] = parts[at]._replace(proof=proof)
    else:
        parts.append(Part("thinking", proof=proof))


# --- parts: what becomes of each kind, none, one or two of them ----------------------------------
def fit_text(part: Part, case: Case) -> Iterable[Part]:
    return (part._replace(proof=own_proof(part, case)) if part.proof else part,)


def fit_thought(part: Part, case: Case) -> Iterable[Part]:
    """Leave thinking that the target's vendor vouches for. Claude refuses an empty signature."""
    proof = own_proof(part, case)
    thought = unseal(part.proof).thought
    if proof and thought == REDACTED:
        return (Part("thinking", proof=proof, redacted=True, cache=part.cache),)
    if thought not in {"", thought_digest(part.text)}:
        proof = ""
    wanted = part.text and "reasoning-content" in case.target.quirks
    # QUIRKS reasoning-content: the host wants its thinking back
    unsigned = case.own and case.client != "claude" and not part.proof
    return (part._replace(proof=proof),) if proof or wanted or unsigned else ()


COMPACTED = "[The conversation until here was compacted, and only its former provider can read that.]"


def words_of(part: Part, case: Case) -> str:
    """Return what an opaque part says, in words that any model can read; empty if nobody knows."""
    own = part.extra.get(case.client, EMPTY)
    if part.name:
        known = case.names.get((part.namespace, part.name))
        return f"Loaded: {known[1] if known else part.name}"
    if own.get("type") in RESPONSES_COMPACTED:  # Claude's can be read
        return str(own.get("content") or COMPACTED)
    return ""


def fit_hosted(part: Part, case: Case) -> Iterable[Part]:
    refuse("opaque", part, case)
    known = (case.dialect, part.kind, part.name) == ("responses", "hosted", "web_search")
    if known or case.dialect in part.extra:
        return (part,)
    text = words_of(part, case) if part.kind == "opaque" else ""
    return (Part("text", text),) if text else ()


def fit_media(part: Part, case: Case) -> Iterable[Part]:
    """Write media as the target takes them; what else a document holds follows it."""
    if part.media is None or case.own:
        return fit_text(part, case)
    media = plain_media(part.media, case.dialect)
    refuse("media", media, case)
    others = [new for held in part.parts for new in fit_media(held, case)]
    if others and media.source == "text" and not media.data.strip():
        return others
    return (*fit_text(part._replace(media=media, parts=()), case), *others)


# these take texts, as such, and no other file but PDF -> what becomes of those that are no UTF-8
TEXT_FILES = {"claude": "replace", "chat": "strict"}


def plain_media(media: Media, dialect: str) -> Media:
    """Write base64 as all but Gemini want it, and text files as text where only that is taken.

    OpenAI's Chat takes no file but PDF: "got unsupported MIME type 'text/plain'". Source: RFC 4648 5.
    """
    if media.source != "base64":
        return media
    if "-" in media.data or "_" in media.data:
        data = media.data.translate(PLAIN_BASE64)
        media = media._replace(data=data + "=" * (-len(data) % 4))
    if media.mime == "image/jpg":
        media = media._replace(mime="image/jpeg")
    if dialect in TEXT_FILES and (media.mime.startswith("text/") or media.mime == "application/json"):
        with contextlib.suppress(ValueError):
            text = base64.b64decode(media.data).decode("utf-8", TEXT_FILES[dialect])
            return media._replace(kind="document", source="text", data=text)
    return media


def fit_call(part: Part, case: Case) -> Iterable[Part]:
    """Write a call's name, id and arguments as the target takes them. Source: 2.3, 2.6."""
    if case.own:
        return fit_text(part, case)
    space, name = case.names[call_key(part, case.declared)]
    made = case.calls.setdefault(part.id, [])
    bare = unpacked_id(part.id)
    id = case.fit_id(f"{bare} {len(made) + 1}" if made else bare)
    fitted = part._replace(namespace=space, name=name, id=id, proof=own_proof(part, case))
    if part.custom and not case.custom:
        fitted = fitted._replace(text=dumps_text({"input": part.text}), custom=False)
    made.append(fitted)
    return (fitted,)


def fit_result(part: Part, case: Case) -> Iterable[Part]:
    """Let results follow their calls, in order; of what only the other service called, what it gave.

    A second result of one call is dropped: gemini-cli repeats them after a resume.
    """
    if case.own:
        return (part,)
    inner = tuple(new for old in pieces_of(part) for new in fit_piece(old, case))
    made = case.calls.get(part.id, ())
    at = case.results[part.id]
    case.results[part.id] += 1
    if at >= len(made):
        return () if made else inner
    call = made[at]
    return (part._replace(id=call.id, name=call.name, parts=inner, custom=call.custom),)


def fit_piece(part: Part, case: Case) -> Iterable[Part]:
    """Leave nothing out of a result unseen: the model would ask again."""
    if part.kind != "opaque" or case.dialect in part.extra:
        return fit_media(part, case)
    kind = part.extra.get(case.client, EMPTY).get("type", "something")
    return (Part("text", words_of(part, case) or f"[{kind}, which cannot be shown here]"),)


def read_image(piece: Json) -> Part:
    """Read an image as Claude has it, or as MCP's servers."""
    if "data" in piece:
        return Part("media", media=Media("image", "base64", piece["data"], piece["mimeType"]))
    return claude_read_part(piece)


PIECES: dict[str, Callable[[Json], Part]] = {  # of the content of a result, in any dialect
    "text": claude_read_part, "image": read_image, "image_url": chat_read_part,
    "input_text": responses_read_part, "input_image": responses_read_part,
}  # fmt: skip


def pieces_of(result: Part) -> tuple[Part, ...]:
    """Return the parts of a result, also if they came as one text that is the JSON of them.

    As a text two screenshots cost half a million tokens. Without an image it may well be a text.
    """
    text = result.parts[0].text if len(result.parts) == 1 else ""
    if text[:1] != "[" or "image" not in text:
        return result.parts
    try:
        pieces = tuple(PIECES[piece["type"]](piece) for piece in json_of(text))
    except MALFORMED:
        return result.parts
    return pieces if any(piece.media for piece in pieces) else result.parts


FIT_PARTS = {
    "media": fit_media, "thinking": fit_thought, "call": fit_call, "result": fit_result,
    "hosted": fit_hosted, "hosted_result": fit_hosted, "opaque": fit_hosted,
}  # fmt: skip


def fit_messages(request: Request, case: Case) -> Request:
    """Leave what the target takes of every part; with its last part a message goes, too."""
    messages: list[Message] = []
    for message in request.messages:
        parts = own_thoughts(message.parts, case)
        pairs = ((FIT_PARTS.get(part.kind, fit_text), part) for part in parts)
        kept = tuple(new for fit, part in pairs for new in fit(part, case))
        if kept or not message.parts:
            messages.append(fit_message(message, kept, case))
    fitted = tuple(messages)
    return request if fitted == request.messages else request._replace(messages=fitted)


def fit_message(message: Message, parts: tuple[Part, ...], case: Case) -> Message:
    """Say as the user's what the target does not take from another."""
    role = message.role
    if SIDES.get(role) == "system" and not case.late:
        mark = "<system-reminder>\n{}\n</system-reminder>".format
        marked = (p._replace(text=mark(p.text)) if p.kind == "text" else p for p in parts)
        return Message("user", tuple(marked))
    if role == "tool" and not case.own and all(part.kind != "result" for part in parts):
        return message._replace(role="user", parts=parts)
    return message if parts == message.parts else message._replace(parts=parts)


BILLING = "x-anthropic-billing-header:"  # Claude Code's first system text
OPENING, CLOSING = (Message("user", (Part("text", text),)) for text in (".", "Continue."))


def says_something(message: Message) -> bool:
    return any(part.kind != "text" or part.text.strip() for part in message.parts)


def fit_system(request: Request, case: Case) -> Request:
    """Put system texts where the target takes them; nobody takes a conversation of nothing. Source: 2.2."""
    if case.own:
        return request
    system = request.system
    messages = request.messages
    if case.client == "claude":
        system = tuple(part for part in system if not part.text.startswith(BILLING))
    said = any(map(says_something, messages))
    if not said and not system:
        messages = (OPENING,)
    elif not said and case.dialect in {"claude", "responses"}:
        messages = (Message("user", system),)
        system = ()
    if messages is request.messages and system == request.system:
        return request
    return request._replace(system=system, messages=messages)


def fit_ends(request: Request, case: Case) -> Request:
    """Let a conversation begin and end as Claude takes it: with the user, or with no white space."""
    if case.own or case.dialect != "claude":
        return request
    messages = list(filter(says_something, request.messages))
    if messages and messages[0].role == "assistant":
        messages.insert(0, OPENING)
    if messages and messages[-1].role == "assistant":
        if case.target.model.levels:
            messages.append(CLOSING)  # from 4.6 on it takes no prefill
        else:
            messages[-1] = stripped(messages[-1])
    fitted = tuple(messages)
    return request if fitted == request.messages else request._replace(messages=fitted)


def stripped(message: Message) -> Message:
    """Return a message without white space at its end."""
    parts = list(message.parts)
    while parts and parts[-1].kind == "text" and not parts[-1].text.strip():
        parts.pop()
    if parts and parts[-1].kind == "text":
        parts[-1] = parts[-1]._replace(text=parts[-1].text.rstrip())
    return message._replace(parts=tuple(parts))


# --- cache marks ----------------------------------------------------------------------------------
CACHE_MARKS = 4  # of Claude: "A maximum of 4 blocks with cache_control may be provided. Found 5."


def cached(things: Iterable[Part | Tool]) -> Iterator[Part | Tool]:
    """Yield what has a cache mark, among tools, or among parts and the parts in them."""
    for thing in things:
        if thing.cache:
            yield thing
        if isinstance(thing, Part) and thing.parts:
            yield from cached(thing.parts)


def unmarked(parts: tuple[Part, ...], marks: Iterator[int], last: int) -> tuple[Part, ...]:
    """Take the cache marks off but for the last ones; `marks` numbers them down to 1."""
    kept = []
    for part in parts:
        off = bool(part.cache) and next(marks) > last
        bare = part._replace(cache="") if off else part
        kept.append(bare._replace(parts=unmarked(part.parts, marks, last)) if part.parts else bare)
    return tuple(kept)


CACHE_LEAST = 1_024  # tokens: Claude keeps nothing shorter
RETENTIONS = {"24h": "1h"}  # prompt_cache_retention -> how long Claude keeps what is marked; else 5m


def with_mark(parts: tuple[Part, ...], lasting: str) -> tuple[Part, ...]:
    """Put a cache mark on the last part that Claude would take one on."""
    able = [n for n, part in enumerate(parts) if part.kind in {"result", "media"} or part.text.strip()]
    at = able[-1] if able else len(parts)
    return tuple(part._replace(cache=lasting) if n == at else part for n, part in enumerate(parts))


def ends_of_turns(messages: Iterable[Message]) -> list[int]:
    """Return the numbers of the last messages of the user's turns; results of tools count as the user's."""
    ends, last = [], -1
    for n, message in enumerate(messages):
        if message.role in {"user", "tool"}:
            last = n
        elif message.role == "assistant" and last >= 0:
            ends.append(last)
            last = -1
    return [*ends, last] if last >= 0 else ends


def mark_cache(request: Request, lasting: str) -> Request:
    """Mark what the next request will repeat: other services than Claude keep that unasked.

    That is the tools, the system text, and the last two turns of the user: the one before the last is
    where the mark of the request before stood.
    """
    ends = ends_of_turns(request.messages)[-2:]
    return request._replace(
        tools=(*request.tools[:-1], *(tool._replace(cache=lasting) for tool in request.tools[-1:])),
        system=with_mark(request.system, lasting),
        messages=tuple(
            message._replace(parts=with_mark(message.parts, lasting)) if n in ends else message
            for n, message in enumerate(request.messages)
        ),
    )


def fit_cache(request: Request, case: Case) -> Request:
    """Say in the target's way what to keep for the next request of this conversation."""
    if case.own:
        return request
    lasting = RETENTIONS.get(request.params.get("cache_retention", ""), "5m")
    if case.vendor != "openai" and "cache_retention" in request.params:
        request = request._replace(params=without(request.params, frozenset({"cache_retention"})))
    return fit_marks(request, case, lasting) if case.dialect == "claude" else request


def fit_marks(request: Request, case: Case, lasting: str) -> Request:
    """Leave four cache marks: the last one of the tools, that of the system text, and the last messages'.

    A client that sets none gets those that it would have set if it knew Claude.
    """
    tools = [*cached(request.tools)]
    system = [*cached(request.system)]
    said = [*cached(part for message in request.messages for part in message.parts)]
    if not (tools or system or said) and "no-cache-marks" not in case.quirks:
        # QUIRKS no-cache-marks: the owner wants none that the client has not set
        return mark_cache(request, lasting) if estimate_tokens(request) >= CACHE_LEAST else request
    if len(tools) + len(system) + len(said) <= CACHE_MARKS:
        return request
    last = CACHE_MARKS - len(tools[:1]) - len(system[:1])
    marks = iter(range(len(said), 0, -1))
    messages = (m._replace(parts=unmarked(m.parts, marks, last)) for m in request.messages)
    surplus = tools[:-1]
    return request._replace(
        tools=tuple(tool._replace(cache="") if tool in surplus else tool for tool in request.tools),
        system=unmarked(request.system, iter(range(len(system), 0, -1)), 1),
        messages=tuple(messages),
    )


# --- tools ------------------------------------------------------------------------------------------
def fit_tools(request: Request, case: Case) -> Request:
    """Leave the tools and the choice of them that the target knows. Source: 2.4, 2.5."""
    if case.own or not (request.tools or request.choice or request.params):
        return request
    choice, only = fit_choice(request, case)
    able = [t for t in request.tools if t.kind != "hosted" or t.name in case.takes["hosted"]]
    tools = {(t.namespace, t.name): t for t in able if not only or t.name in only}
    if tools:
        fitted = tuple(fit_tool(tool, case) for tool in tools.values())
        return request._replace(tools=fitted, choice=choice)
    params = without(request.params, frozenset({"parallel"}))
    return request._replace(tools=(), choice=None, params=params)


def fit_choice(request: Request, case: Case) -> tuple[ToolChoice | None, tuple[str, ...]]:
    """Return the choice, and the tools to leave in the list if it cannot name them itself."""
    choice = request.choice
    if choice is None or not choice.names:
        return choice, ()
    mode, names = choice
    tools = {tool.name for tool in request.tools}
    every = tools.issubset(names) and all(tool.kind != "hosted" for tool in request.tools)
    one = len(tools) == 1 if every else mode == "required" and len(names) == 1
    if mode != "none" and (one or (mode in case.takes["subset"] and not every)):
        return ToolChoice(mode, tuple(plain_name(name, case) for name in names)), ()
    return ToolChoice(mode), () if every or mode == "none" else names


def fit_tool(tool: Tool, case: Case) -> Tool:
    """Write a tool's name and schema as the target takes them."""
    if tool.kind == "hosted":
        return tool
    space, name = case.names[tool.namespace, tool.name]
    if tool.kind == "custom" and not case.custom:
        tool = emulated(tool)
    schema = case.schemas[0](tool.schema or {}) if tool.kind == "function" else None
    if schema and tool.strict and case.dialect == "claude":  # it holds to that as it does for answers
        schema = case.schemas[1](schema)
    return tool._replace(namespace=space, name=name, schema=schema)


INPUT_SCHEMA: Json = {
    "type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"], "additionalProperties": False,
}  # fmt: skip


def emulated(tool: Tool) -> Tool:
    """Make a freeform tool a function of one text."""
    grammar = tool.grammar or {}
    texts = [tool.description]
    if rule := grammar.get("definition"):
        texts.append(f"The input must match this {grammar.get('syntax', '')} grammar:\n{rule}")
    tool = tool._replace(kind="function", schema=INPUT_SCHEMA, grammar=None)
    return tool._replace(description="\n\n".join(filter(None, texts)))


def fit_format(request: Request, case: Case) -> Request:
    """Write the wanted form of the answer with the keywords that the target knows. Source: 2.9."""
    form = request.format
    if case.own or form is None or form.schema is None:
        return request
    return request._replace(format=form._replace(schema=case.schemas[1](form.schema)))


# --- thinking and limits ------------------------------------------------------------------------
def fit_params(request: Request, case: Case) -> Request:
    """Keep to how long and how many the target lets things be: else it is a 400."""
    user = request.params.get("user", "")
    stops = request.params.get("stop", ())
    if case.own or not (user or stops):
        return request
    params = dict(request.params)
    longest = most_of("user", case)
    if longest and len(user) > longest:
        params["user"] = digest(user)  # Claude Code's has 159 characters
    params["stop"] = [stop for stop in stops if stop.strip(" ")][: most_of("stops", case)]
    return request._replace(params={key: value for key, value in params.items() if value != []})


def most_of(word: str, case: Case) -> int | None:
    """Return how many of something the target takes; None: any number."""
    cell = case.takes[word]
    return int(cell[0]) if cell else None


FALLBACK_OUTPUT = 32_000  # Claude's max_tokens where neither client nor model says one
LEAST_OUTPUT = 16  # of Responses
SAMPLING = frozenset({"temperature", "top_p", "top_k"})
PENALTIES = frozenset({"presence_penalty", "frequency_penalty", "logit_bias"})
STOPS = frozenset({"stop"})


def fit_thinking(request: Request, case: Case) -> Request:
    """Settle the model, how much it thinks, and the limits. Source: 2.1a, 2.8."""
    base, suffix = split_suffix(request.model)
    asked = Thinking(*suffix, summary=request.thinking.summary) if suffix else request.thinking
    model = case.target.model
    limit = request.params.get("max_tokens")
    if limit and model.output:
        limit = min(limit, model.output)
    thinking = settled_thinking(asked, request, case, limit or model.output)
    limit = settled_limit(limit, thinking, case)
    refused = frozenset[str]() if case.own else refused_params(case, thinking)
    params = without(request.params, refused)
    if limit != params.get("max_tokens"):
        params = {**params, "max_tokens": limit}
    request = request._replace(model=model.id or base, params=params, thinking=thinking)
    if not (case.own and effort_of(asked) and case.dialect in OWN_EFFORTS):
        return request
    kept = path_delete(request.extra.get(case.dialect, EMPTY), OWN_EFFORTS[case.dialect])
    return request._replace(extra={**request.extra, case.dialect: kept})


def settled_thinking(asked: Thinking, request: Request, case: Case, limit: int) -> Thinking:
    """Return how much the target thinks; `limit` is that of its answer, 0 if there is none."""
    model = case.target.model
    thinking = resolve_thinking(asked, model, case.dialect, limit)
    if "no-effort" in case.quirks:
        thinking = Thinking(summary=asked.summary)  # QUIRKS no-effort: it has refused to be told
    if case.dialect == "claude" and cannot_think(request, thinking, model):
        thinking = Thinking("none")
    if thinking.effort == "minimal" and "minimal-to-low" in case.target.quirks:
        thinking = thinking._replace(effort="low")  # QUIRKS minimal-to-low: Codex hangs on it
    return thinking


def settled_limit(limit: int | None, thinking: Thinking, case: Case) -> int | None:
    """Return a limit for the answer that the target takes; Claude must have one."""
    if case.dialect == "claude" and limit is None:
        return case.target.model.output or max(FALLBACK_OUTPUT, (thinking.budget or 0) * 5 // 4)
    if case.dialect == "responses" and limit is not None:
        return max(LEAST_OUTPUT, limit)
    return limit


def refused_params(case: Case, thinking: Thinking) -> frozenset[str]:
    """Return the sampling hints that the model refuses. Source: 1A.1, 1C.1.

    Claude models do from Opus 4.7 on, the first to take the effort xhigh; OpenAI's if they think.
    """
    levels = case.target.model.levels
    nothing = frozenset[str]()
    if "no-sampling" in case.target.quirks:  # QUIRKS no-sampling: the host refuses all of them
        return SAMPLING | PENALTIES
    if case.dialect == "claude":
        return SAMPLING if "xhigh" in levels else nothing
    if not (case.vendor == "openai" and levels) and "completion-tokens" not in case.quirks:
        return nothing
    return PENALTIES | STOPS if thinking.effort == "none" else PENALTIES | STOPS | SAMPLING


# --- the whole of it -------------------------------------------------------------------------------
class Fitted(NamedTuple):
    """A request made to fit a target, and what it takes to undo that on the answer."""

    request: Request
    dialect: str  # the upstream's
    names: Mapping[ToolKey, tuple[str, str, bool]]  # as written -> name, namespace, custom


STEPS = (
    fit_messages, fit_system, fit_ends, fit_tools, fit_cache, fit_format, fit_params, fit_thinking,
)  # fmt: skip


def fit_request(request: Request, target: Target, dialect: str) -> Fitted:
    """Make a request that the target takes; `dialect` is the target's. The way back: fit_events."""
    case = Case(request, target, dialect)
    custom = {(tool.namespace, tool.name) for tool in request.tools if tool.kind == "custom"}
    back = {
        written: (name, space, (space, name) in custom)
        for (space, name), written in case.names.items()
        if written != (space, name) or (space, name) in custom
    }
    refuse("request", request, case)
    for step in STEPS:
        request = step(request, case)
    return Fitted(request, dialect, back)


# --- freeform calls, emulated ---------------------------------------------------------------------
INPUT_HEAD = re.compile(r'\s*\{\s*"input"\s*:\s*"')
INPUT_BODY = re.compile(  # whole characters and escapes; a high surrogate waits for what follows
    r'(?:[^"\\]+|\\[^u]|\\u(?![dD][89abAB])[0-9a-fA-F]{4}'
    r"|\\u[dD][89abAB][0-9a-fA-F]{2}(?:\\u[0-9a-fA-F]{4}|(?=[^\\]|\\[^u])))*"
)


class Unwrapper:
    """Decodes the text in `{"input": "..."}` while it comes in, cut anywhere."""

    def __init__(self) -> None:
        self._rest = ""  # not yet decoded
        self._state = "head"  # head, body, tail

    def feed(self, fragment: str) -> str:
        """Return what `fragment` adds to the text."""
        self._rest += fragment
        if self._state == "head" and (head := INPUT_HEAD.match(self._rest)):
            self._rest = self._rest[head.end() :]
            self._state = "body"
        if self._state != "body":
            return ""
        body = INPUT_BODY.match(self._rest)
        end = body.end() if body else 0
        text = self._rest[:end]
        self._rest = self._rest[end:]
        if self._rest.startswith('"'):
            self._state = "tail"
        return unquoted(text)

    def close(self) -> str:
        """Return what is left of a call that did not have the form asked for."""
        if self._state != "head":
            return ""
        try:
            data = json.loads(self._rest or "{}")
        except ValueError:
            return self._rest
        if not data:
            return ""
        text = data.get("input", self._rest) if isinstance(data, dict) else self._rest
        return text if isinstance(text, str) else dumps_text(text)


class Wrapper:
    """Encodes a text as `{"input": "..."}` while it comes in."""

    def __init__(self) -> None:
        self._head = '{"input":"'

    def feed(self, fragment: str) -> str:
        head = self._head
        self._head = ""
        return head + quote(fragment)[1:-1]

    def close(self) -> str:
        return self._head + '"}'


def unquoted(text: str) -> str:
    try:
        return str(json.loads(f'"{text}"', strict=False)) if "\\" in text else text
    except ValueError:  # an escape that JSON does not know
        return text


IMAGE_TOKENS = 1_500


def estimate_tokens(request: Request) -> int:
    """Estimate the input: a token per four bytes of text and schemas, 1500 per image or file."""
    size, media = 0, 0
    stack = [*request.system, *(part for message in request.messages for part in message.parts)]
    while stack:
        part = stack.pop()
        stack.extend(part.parts)
        text = part.text + part.name
        if part.media is not None and part.media.source == "text":
            text += part.media.data
        elif part.media is not None:
            media += 1
        size += len(text.encode("utf-8", "replace"))
    for tool in request.tools:
        text = tool.name + tool.description + dumps_text(tool.schema or tool.grammar or {})
        size += len(text.encode("utf-8", "replace"))
    return (size + 3) // 4 + media * IMAGE_TOKENS


# --- the way back ------------------------------------------------------------------------------------
class Returning:
    """The parts of an answer on its way back to the client: what each of them needs while it is open."""

    def __init__(self, request: Request, fitted: Fitted, target: Target) -> None:
        self.note: Callable[[Usage], None] | None = None  # is told the usage
        self.request = request
        self.client = request.dialect
        self.fitted = fitted
        self.provider = target.provider
        self.ids: set[str] | None = None  # of calls that the client knows; looked up for the first one
        self.foreign = self.client != fitted.dialect
        self.kinds: set[str] = set()  # of all parts
        self.special: set[int] = set()  # numbers of open parts whose texts are changed, or looked at
        self.texts: dict[
            int, Unwrapper | Wrapper
        ] = {}  # by number: of a freeform call that one side must emulate
        self.seals: dict[int, str] = {}  # of what may have a proof; REDACTED: it is all there is
        self.thoughts: dict[int, list[str]] = {}  # of Claude's thinking: its proof is good for that text only

    def whole(self, event: MessageStart | Usage | MessageEnd) -> Event:
        """Check an event that is no part's. A failure that shows nothing is an error: it would pass for done."""
        check_fields(event, "upstream_failed")
        if self.note and isinstance(event, Usage):
            self.note(event)
        if isinstance(event, MessageEnd) and event.finish == "error" and self.kinds <= UNSEEN:
            raise ProxyError("upstream_failed", f"the upstream gave no answer: {event.raw or 'error'}")
        return self.begin(event) if isinstance(event, MessageStart) else event

    def begin(self, event: MessageStart) -> MessageStart:
        """Claude's clients are told the input at once: an estimate, if the upstream tells it later."""
        usage = event.usage
        if usage is None and self.client == "claude" and self.request.stream:
            usage = Usage(estimate_tokens(self.request))
        return event._replace(model=self.request.model, usage=usage)

    def start(self, event: PartStart) -> Iterator[Event]:
        check_types((event.part,), "upstream_failed")
        if event.part.kind == "call" and not event.part.name:
            raise ProxyError("upstream_failed", NAMELESS)
        self.kinds.add(event.part.kind)
        part = own_call(event.part, self.client, self.fitted)
        if part.kind == "call" and self.foreign:
            part = part._replace(id=self.new_id(part.id))
        if part.custom != event.part.custom:
            self.special.add(event.at)
            self.texts[event.at] = Unwrapper() if part.custom else Wrapper()
        if self.foreign and part.kind in ABLE[self.client]["proofs"]:
            self.expect_proof(event.at, part)
        instead = unshown(part.media, self.client) if part.media and self.foreign else ""
        yield event._replace(part=Part("text") if instead else part)
        if instead:
            yield PartDelta(event.at, "text", instead)

    def expect_proof(self, at: int, part: Part) -> None:
        """Be ready to seal the proof of a part; Claude's vouches for the very words of its thought."""
        self.seals[at] = REDACTED if part.redacted else ""
        if self.fitted.dialect == "claude" and part.kind == "thinking":
            self.special.add(at)
            self.thoughts[at] = []

    def new_id(self, id: str) -> str:
        """Return a call's id, or another one if the history holds it: some hosts count in each turn anew."""
        if self.ids is None:
            calls = (
                part for message in self.request.messages for part in message.parts if part.kind == "call"
            )
            self.ids = {call.id for call in calls}
        if id in self.ids:
            id = f"{id[:40]}_{digest(self.request.id, id, len(self.ids))[:16]}"
        self.ids.add(id)
        return id

    def more(self, event: PartDelta | PartEnd) -> Iterable[PartDelta | PartEnd]:
        if isinstance(event, PartDelta):
            check_delta(event, "upstream_failed")
            if event.field == "text" and event.at in self.thoughts:
                self.thoughts[event.at].append(event.value)
                return (event,)
        pieces = self.recode(event, self.texts[event.at]) if event.at in self.texts else (event,)
        return itertools.chain.from_iterable(map(self.seal, pieces)) if self.foreign else pieces

    def recode(self, event: PartDelta | PartEnd, text: Unwrapper | Wrapper) -> Iterator[PartDelta | PartEnd]:
        """Undo the emulation of a freeform call, or emulate one for a client that has none."""
        if isinstance(event, PartDelta) and event.field != "text":
            yield event
            return
        more = text.close() if isinstance(event, PartEnd) else text.feed(event.value)
        if more:
            yield PartDelta(event.at, "text", more)
        if isinstance(event, PartEnd):
            yield event

    def seal(self, event: PartDelta | PartEnd) -> Iterator[PartDelta | PartEnd]:
        """Seal a proof, or leave it out where the client has no place for it.

        Thinking without one gets an empty one: such a block would be refused by Claude and OpenAI, and
        PROOF_MARK makes us look at whatever goes back to them.
        """
        proof = event.value if isinstance(event, PartDelta) and event.field == "proof" else None
        ends = isinstance(event, PartEnd)
        if event.at in self.seals and (ends or proof is not None):
            about = self.seals.pop(event.at) or self.digest(event.at)
            if proof or not ends or self.client in {"claude", "responses"}:
                yield PartDelta(event.at, "proof", seal(proof or "", self.provider, about if proof else ""))
        if proof is None:
            yield event

    def digest(self, at: int) -> str:
        return thought_digest("".join(self.thoughts[at])) if at in self.thoughts else ""


def fit_events(
    events: Events,
    request: Request,
    fitted: Fitted,
    target: Target,
    note: Callable[[Usage], None] | None = None,
) -> Events:
    """Undo on the answer what `fit_request` did to names and freeform calls, and seal the proofs.

    `note` gets the usage.
    """
    returning, source = Returning(request, fitted, target), events
    returning.note = note
    special = returning.special
    if returning.foreign and fitted.dialect == "gemini":
        events = move_proofs(events, request.dialect)
    with contextlib.closing(source):  # at once, also where an answer is refused here
        for event in events:
            if (
                type(event) is PartDelta
                and event.at not in special
                and event.field == "text"
                and type(event.value) is str
            ):
                yield event  # as nearly all of them are
            elif isinstance(event, (PartDelta, PartEnd)):
                yield from returning.more(event)
            elif isinstance(event, PartStart):
                yield from returning.start(event)
            else:
                yield returning.whole(event)


def unshown(media: Media, client: str) -> str:
    """Return what an answer says instead of media that its client has no place for."""
    places = ABLE[client]["shown"]
    if "*" in places or f"{media.kind}/{media.source}" in places:
        return ""
    what = media.data if media.source == "url" else f"{media.mime or media.source}, left out"
    return f"[{media.kind}: {what}]"


def own_call(part: Part, client: str, fitted: Fitted) -> Part:
    """Give a call its own name back, and an id that the client takes.

    A freeform call is one of a tool that the client declared so; to others it is a function.
    """
    if part.kind != "call":
        return part
    as_is = part.name, part.namespace, part.custom and client == fitted.dialect
    name, space, custom = fitted.names.get((part.namespace, part.name), as_is)
    id = packed_id(part.id) if client == "claude" != fitted.dialect else part.id
    return part._replace(id=id, name=name, namespace=space, custom=custom)


Piece = Union[PartStart, PartDelta, PartEnd]
CARRIER = -1  # stands for the number of the part that carries a proof


def move_proofs(events: Iterable[Event], client: str) -> Events:
    """Carry Gemini's proofs as the client can: a call's on an empty thinking part before it.

    A text's proof is left out, and with it the empty text that Gemini sends to carry one. The
    parts are numbered anew. Source: spec/dialects.md 4.6.
    """
    held: dict[int, list[Piece]] = {}  # calls, until they are whole; texts, until they have any
    numbers: dict[int, int] = {}  # of the parts that have begun, as they came -> as they go
    total = count()
    for event in events:
        if not isinstance(event, (PartStart, PartDelta, PartEnd)):
            yield event
        elif event.at in numbers:
            at = numbers[event.at]
            yield event if at == event.at else event._replace(at=at)
        else:
            held.setdefault(event.at, []).append(event)
            pieces = carried(held[event.at], client)
            numbers.update((p.at, next(total)) for p in pieces if isinstance(p, PartStart))
            yield from (piece._replace(at=numbers[piece.at]) for piece in pieces)


def is_proof(piece: Piece) -> bool:
    return isinstance(piece, PartDelta) and piece.field == "proof"


def carried(pieces: list[Piece], client: str) -> list[Piece]:
    """Return the pieces of a part that may go out; none while it has to be held back."""
    start, last = pieces[0], pieces[-1]
    kind = start.part.kind if isinstance(start, PartStart) else ""
    if kind not in {"text", "call"} or kind in ABLE[client]["proofs"]:
        return pieces
    bare = [piece for piece in pieces if not is_proof(piece)]
    if kind == "text":
        return bare if isinstance(last, PartDelta) and last.field == "text" else []
    return [*carrier(pieces), *bare] if isinstance(last, PartEnd) else []


def carrier(pieces: list[Piece]) -> list[Piece]:
    """Return a thinking part without a text for the proofs of a call, if it has any."""
    proofs: list[Piece] = [piece._replace(at=CARRIER) for piece in pieces if is_proof(piece)]
    start = pieces[0]
    if not proofs or not isinstance(start, PartStart):
        return []
    return [PartStart(CARRIER, Part("thinking"), start.choice), *proofs, PartEnd(CARRIER)]


# --- the dialects ------------------------------------------------------------------------------------
class Dialect(NamedTuple):
    """One API: its nine functions, where they find usage, and what it sends when there is nothing to say."""

    name: str
    read_request: Callable[[Json], Request]
    write_request: Callable[[Request, Target], Json]
    read_usage: Callable[[Json], Usage]  # of the object that `usage_at` leads to
    read_response: Callable[[Json, Request], Events]
    read_stream: Callable[[Iterable[Json], Request], Events]
    write_response: Callable[[Response, Request], Json]
    write_stream: Callable[[Iterable[Event], Request], Frames]
    read_error: Callable[[int, bytes], ProxyError]
    write_error: Callable[[ProxyError], Json]
    usage_at: tuple[tuple[str, ...], ...]  # paths to it, in an answer or in a payload of a stream
    keepalive: bytes  # between two frames of a stream
    error_event: str = ""  # the `event:` line of a mid-stream error
    in_path: frozenset[str] = frozenset()  # fields of a request that the path holds, not the body


KEEP_ALIVE = b": keep-alive\n\n"  # a comment, except where the clients cannot read one
PING = b'event: ping\ndata: {"type":"ping"}\n\n'


def stream_error(dialect: Dialect, error: ProxyError) -> bytes:
    """Return the frames that end a stream of which nothing is known but its dialect. Source: 2.11."""
    body = dialect.write_error(error)
    if dialect.name != "responses":
        frame = sse_frame(body, dialect.error_event)
        return frame.replace(b"\n", b"\r\n") if dialect.name == "gemini" else frame
    said = body["error"]
    said = {"code": said.get("code") or said.get("type"), "message": said.get("message")}
    response = {
        "id": "", "object": "response", "created_at": 0, "model": "", "status": "failed", "error": said, "output": [],
        "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
    }  # fmt: skip
    flat = {"type": "error", **said, "param": error.param or None, "sequence_number": 0}
    failed = {"type": "response.failed", "response": response, "sequence_number": 1}
    return sse_frame(flat, "error") + sse_frame(failed, "response.failed")


DIALECTS = {
    row.name: row
    for row in (
        Dialect(
            "claude", claude_read_request, claude_write_request, claude_read_usage, claude_read_response, claude_read_stream,
            claude_write_response, claude_write_stream, claude_read_error, claude_write_error,
            (("usage",), ("message", "usage")), PING, "error",
        ),
        Dialect(
            "chat", chat_read_request, chat_write_request, chat_read_usage, chat_read_response, chat_read_stream,
            chat_write_response, chat_write_stream, chat_read_error, chat_write_error,
            (("usage",), ("x_groq", "usage")), KEEP_ALIVE,
        ),
        Dialect(
            "responses", responses_read_request, responses_write_request, responses_read_usage, responses_read_response,
            responses_read_stream, responses_write_response, responses_write_stream, responses_read_error, responses_write_error,
            (("response", "usage"), ("usage",)), KEEP_ALIVE, "error",
        ),
        Dialect(
            "gemini", gemini_read_request, gemini_write_request, gemini_read_usage, gemini_read_response, gemini_read_stream,
            gemini_write_response, gemini_write_stream, gemini_read_error, gemini_write_error,
            (("usageMetadata",), ("response", "usageMetadata")), b"\r\n",
            in_path=frozenset({"model", "stream"}),
        ),
    )
}  # fmt: skip


class Passing(NamedTuple):
    """What a dialect does for bodies that pass, and that a model or a host may refuse."""

    odd: Callable[[bytes | bytearray, Quirks, str], bool]  # may this one be refused? It is not decoded
    fitted: Callable[[Json, Quirks], Json]  # the body to send then


PASSING = {"chat": Passing(chat_odd, chat_fitted), "gemini": Passing(gemini_odd, gemini_fitted)}


########################################################################################
# 14. YAML                                                                        [pure]
########################################################################################
# Texts of settings: the plain subset of YAML, JSON, and JSON with comments. Each is read with the
# place of every value, so that a change rewrites the values that differ, and no other byte: what
# was read is compared with what is wanted, and where both are mappings or lists it is their
# entries that are compared. What is not understood is refused, naming the line.


class Entry(NamedTuple):
    """An entry of a mapping or a list; the key of a list's is its number."""

    key: Any
    start: int  # where its key or dash stands
    after: int  # behind its colon or dash; in a flow list where its value begins
    place: Place


class Place(NamedTuple):
    """A value, and where it stands in the text: `start` to `end`, for a block without its comment."""

    value: Any
    start: int
    end: int
    entries: tuple[Entry, ...] = ()
    block: bool = False  # a mapping or list that is told by indents


def place_of(entries: list[Entry], kind: type, start: int, end: int, *, block: bool) -> Place:
    """Return a mapping or list with these entries. Raises ValueError for a key that is there twice."""
    values = [entry.place.value for entry in entries]
    if kind is list:
        return Place(values, start, end, tuple(entries), block)
    keys = [entry.key for entry in entries]
    twice = next((key for at, key in enumerate(keys) if key in keys[:at]), None)
    if twice is not None:
        raise ValueError(f"the key {twice!r} is there twice")
    return Place(dict(zip(keys, values)), start, end, tuple(entries), block)


YAML_SCALARS = (  # tag, pattern, first characters. What is none of these is a text
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("merge", r"<<", "<"),
)
YAML_KINDS = {tag: re.compile(rf"(?:{pattern})\Z") for tag, pattern, _ in YAML_SCALARS}
YAML_VALUES: dict[str, Callable[[str], Any]] = {
    "null": lambda _: None,
    "bool": lambda word: word.lower() == "true",
    "int": int,
    "float": float,
}


def yaml_scalar(word: str) -> Any:
    """Return what a word without quotes says. Raises ValueError for what only all of YAML knows."""
    kind = next((tag for tag, pattern in YAML_KINDS.items() if pattern.match(word)), "")
    if kind == "merge":
        raise ValueError("merged mappings (<<) are not read")
    return YAML_VALUES[kind](word) if kind else word


QUOTED = re.compile(r'"(?:[^"\\\r\n]|\\.)*"|' + r"'(?:[^'\r\n]|'')*'")
YAML_GAP = re.compile(r"(?:[ \r\n]+|(?<=\s)#[^\n]*)*")  # between the words of a flow
JSON_GAP = re.compile(r"(?:\s+|//[^\n]*|/\*.*?\*/)*", re.DOTALL)
NO_TEXT = re.compile(
    "[^\t\n\r -~\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]|\r(?!\n)"
)
PLAIN = r"(?![\s,\[\]{}#&*!|>'\"%@`]|[-?:](?:[\s,\[\]{}]|$))"  # what a word without quotes begins with
FLOW_WORD = re.compile(
    PLAIN + r"(?:[^\s,\[\]{}:#]|:(?![\s,\[\]{}]|$)|(?<!\s)#| +(?![\s#:,\[\]{}]|$))+", re.MULTILINE
)
BLOCK_WORD = re.compile(PLAIN + r"(?:[^\s:#]|:(?!\s|$)|(?<!\s)#| +(?![\s#]|:(?:\s|$)|$))+", re.MULTILINE)
BLOCK_KEY = re.compile(rf"(?:{QUOTED.pattern}|{BLOCK_WORD.pattern}) *:(?=\s|$)", re.MULTILINE)


def unquote_yaml(text: str) -> str:
    """Return the text in quotes; in double ones only the escapes of JSON are known."""
    if text[0] == "'":
        return text[1:-1].replace("''", "'")
    return str(json.loads(text, strict=False))


def yaml_key(word: str) -> str:
    """Return a key as a text, as JSON would have it."""
    key = unquote_yaml(word) if word[0] in "\"'" else yaml_scalar(word)
    return key if isinstance(key, str) else json.dumps(key)


class FlowReader:
    """Reads what stands in brackets: JSON, with comments, and the flows of YAML."""

    def __init__(self, text: str, gap: re.Pattern[str]) -> None:
        self.text, self._gap = text, gap

    def gap(self, at: int) -> int:
        """Return where the next word begins."""
        found = self._gap.match(self.text, at)
        return found.end() if found else at

    def read(self, at: int) -> Place:
        """Read the value that begins at `at`. Raises ValueError for what is none."""
        if self.text[at : at + 1] in {"[", "{"}:
            return self.read_entries(at)
        word = self.word(at)
        return Place(unquote_yaml(word) if word[0] in "\"'" else yaml_scalar(word), at, at + len(word))

    def word(self, at: int) -> str:
        found = QUOTED.match(self.text, at) or FLOW_WORD.match(self.text, at)
        if not found:
            raise ValueError(f"{self.text[at : at + 1]!r} is not expected here")
        return found[0]

    def read_entries(self, start: int) -> Place:
        kind, closing = (list, "]") if self.text[start] == "[" else (dict, "}")
        entries: list[Entry] = []
        at = self.gap(start + 1)
        while self.text[at : at + 1] != closing:
            entry = self.read_entry(at, kind, len(entries))
            entries.append(entry)
            at = self.gap(entry.place.end)
            if self.text[at : at + 1] == ",":
                at = self.gap(at + 1)
            elif self.text[at : at + 1] != closing:
                raise ValueError(f"a comma or {closing} is missing")
        return place_of(entries, kind, start, at + 1, block=False)

    def read_entry(self, at: int, kind: type, number: int) -> Entry:
        if kind is list:
            return Entry(number, at, at, self.read(at))
        word = self.word(at)
        key = yaml_key(word)
        colon = self.gap(at + len(word))
        if self.text[colon : colon + 1] != ":":
            raise ValueError(f"a colon is missing behind {key[:40]!r}")
        return Entry(key, at, colon + 1, self.read(self.gap(colon + 1)))


BLOCK_TEXT = re.compile(r"([|>])([-+]?) *(?: #[^\n]*)?\r?$", re.MULTILINE)
FIRST_LINE = re.compile(r"--- *\r?$", re.MULTILINE)  # of a document


class YamlReader:
    """Reads blocks line by line: `row` is the line under way, always one that says something."""

    def __init__(self, text: str) -> None:
        self.text, self.row = text, -1
        self.flow = FlowReader(text, YAML_GAP)
        found = re.finditer(r"(?m)^\ufeff?()[^\r\n]*", text)
        self.lines = [(line.start(1), line.end()) for line in found if line.start() < len(text)]

    def read(self) -> Place:
        """Read the whole text. Raises ValueError naming the line."""
        try:
            return self.read_document()
        except ValueError as exc:
            line = min(self.row, len(self.lines) - 1) + 1
            raise ValueError(f"{exc}: line {line}") from None

    def read_document(self) -> Place:
        if bad := NO_TEXT.search(self.text, self.text.startswith("\ufeff")):
            self.row = self.text.count("\n", 0, bad.start())
            raise ValueError("there is a character that no text holds")
        self.next_row()
        if self.row < len(self.lines) and FIRST_LINE.match(self.text, self.lines[self.row][0]):
            self.next_row()
        if self.row == len(self.lines):
            return Place(None, len(self.text), len(self.text))
        place = self.read_block(self.indent())
        if self.row < len(self.lines):
            raise ValueError("what stands here belongs to nothing above it")
        return place

    def rest(self, at: int) -> str:
        """Return the rest of the line under way, from `at`, without a comment at its end."""
        line = self.text[at : self.lines[self.row][1]]
        return "" if line.lstrip(" ")[:1] == "#" else line.strip(" ")

    def next_row(self) -> None:
        """Go to the next line that says something."""
        self.row += 1
        while self.row < len(self.lines) and not self.rest(self.lines[self.row][0]):
            self.row += 1

    def indent(self) -> int:
        """Return the column at which the line under way begins, -1 behind the last."""
        if self.row == len(self.lines):
            return -1
        start, end = self.lines[self.row]
        line = self.text[start:end]
        column = len(line) - len(line.lstrip(" "))
        if line[column : column + 1] == "\t":
            raise ValueError("a tab cannot indent")
        if not column and (line.startswith(("---", "...", "%"))):
            raise ValueError("only one document is read")
        return column

    def is_item(self, at: int) -> bool:
        """Tell whether an item of a list begins at `at`."""
        return self.text[at : at + 1] == "-" and self.text[at + 1 : at + 2] in {"", " ", "\t", "\r", "\n"}

    def read_block(self, column: int) -> Place:
        """Read the value that begins at this column of the line under way."""
        at = self.lines[self.row][0] + column
        if self.is_item(at):
            return self.read_entries(column, list)
        if BLOCK_KEY.match(self.text, at):
            return self.read_entries(column, dict)
        return self.read_inline(at, column)

    def read_entries(self, column: int, kind: type) -> Place:
        """Read a mapping or list whose entries begin at `column`."""
        entries: list[Entry] = []
        start = self.lines[self.row][0] + column
        at = start
        while True:
            entries.append(self.read_item(at, len(entries)) if kind is list else self.read_pair(at))
            indent = self.indent()
            if indent != column:
                break
            at = self.lines[self.row][0] + column
            if self.is_item(at) != (kind is list):
                break
        if indent > column:
            raise ValueError("this line is indented more than what it would belong to")
        return place_of(entries, kind, start, entries[-1].place.end, block=True)

    def read_item(self, at: int, number: int) -> Entry:
        start, end = self.lines[self.row]
        first = at + 1
        while self.text[first : first + 1] == " ":
            first += 1
        nested = first < end and (self.is_item(first) or BLOCK_KEY.match(self.text, first))
        place = self.read_block(first - start) if nested else self.read_value(at + 1, at - start, same=False)
        return Entry(number, at, at + 1, place)

    def read_pair(self, at: int) -> Entry:
        found = BLOCK_KEY.match(self.text, at)
        if not found:
            raise ValueError("this is no `key: value`")
        word = found[0][:-1].rstrip()
        key = yaml_key(word)
        column = at - self.lines[self.row][0]
        return Entry(key, at, found.end(), self.read_value(found.end(), column, same=True))

    def read_value(self, at: int, column: int, *, same: bool) -> Place:
        """Read what stands behind a colon or dash; `same`: a list may stand at the column of its key."""
        rest = self.rest(at)
        if rest:
            first = self.text.index(rest[0], at)
            return self.read_lines(first, column) if rest[0] in "|>" else self.read_inline(first, column)
        self.next_row()
        indent = self.indent()
        listed = same and indent == column and self.is_item(self.lines[self.row][0] + indent)
        return self.read_block(indent) if indent > column or listed else Place(None, at, at)

    def read_inline(self, at: int, column: int) -> Place:
        """Read a scalar or flow, and see that nothing goes on behind it."""
        if self.text[at] in "[{\"'":
            place = self.flow.read(at)
        else:
            found = BLOCK_WORD.match(self.text, at)
            if not found:
                raise ValueError(f"{self.text[at]!r} is not expected here")
            place = Place(yaml_scalar(found[0]), at, found.end())
        self.row += self.text.count("\n", at, place.end)
        if self.rest(place.end) or self.text[place.end : place.end + 1] == "#":
            raise ValueError("a value does not end where it should")
        self.next_row()
        if self.indent() > column:
            raise ValueError("a value without quotes has one line only, and nothing is indented below it")
        return place

    def read_lines(self, at: int, column: int) -> Place:
        """Read a text of whole lines, kept (|) or folded (>)."""
        head = BLOCK_TEXT.match(self.text, at)
        if not head:
            raise ValueError("behind | and > only - and + are read")
        lines: list[str] = []
        end = head.end()
        for start, stop in self.lines[self.row + 1 :]:
            line = self.text[start:stop]
            if line.strip(" "):
                if len(line) - len(line.lstrip(" ")) <= column:
                    break
                end = stop
            lines.append(f"{line}\n" if stop < len(self.text) else line)
        place = Place(whole_lines(lines, head[1], head[2]), at, end)
        self.row += len(lines)
        self.next_row()
        return place


def dedented_lines(lines: list[str]) -> Iterator[str]:
    """Yield the lines of a text without the indent of the first one that is not blank."""
    first = next((line for line in lines if line.strip(" \n")), "")
    width = len(first) - len(first.lstrip(" "))
    for line in lines:
        blank = not line.strip(" \n")
        if not first or (blank and line[width:].strip("\n")):
            raise ValueError("there is no text behind | or >, or a blank line is longer than the indent")
        if not blank and line[:width].strip(" "):
            raise ValueError("the lines of a text are indented unevenly")
        yield "\n" if blank else line[width:]


def whole_lines(lines: list[str], style: str, ending: str) -> str:
    """Join the lines of a text: `-` drops the line ends behind it, `+` keeps all of them, else one."""
    text = "".join(dedented_lines(lines))
    body = text.rstrip("\n")
    ends = text[len(body) :]
    if style == ">":
        if re.search(r"^[\n \t]|\n[ \t]", body):
            raise ValueError("a folded text with a blank or indented line at its beginning is not read")
        body = re.sub(r"\n(\n*)", lambda found: found[1] or " ", body)
    return body + {"-": "", "+": ends}.get(ending, ends[:1])


def read_yaml(text: str) -> Any:
    """Decode the plain subset of YAML 1.2. Raises ValueError naming the line, but not what stands there."""
    return YamlReader(text).read().value


# -- changing one value ------------------------------------------------------------------


def same_value(one: Any, other: Any) -> bool:
    """Compare as texts of JSON do: 1 is neither true nor 1.0."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def write_scalar(value: Any) -> str:
    """Write a value in one line: a text without quotes where it means the same."""
    plain = isinstance(value, str) and BLOCK_WORD.fullmatch(value) and value.isprintable()
    if plain and not any(pattern.match(value) for pattern in YAML_KINDS.values()):
        return str(value)
    return dumps_flow(value)


dumps_flow = json.JSONEncoder(ensure_ascii=False).encode


def write_block(value: Any, column: int) -> str:
    """Write a mapping or list as lines that stand at `column`; the first one without its indent."""
    joint = "\n" + " " * column
    if isinstance(value, list) and value:
        return joint.join(f"- {write_block(item, column + 2)}" for item in value)
    if isinstance(value, dict) and value:
        return joint.join(f"{write_scalar(key)}:{write_behind(item, column)}" for key, item in value.items())
    return write_scalar(value)


def write_behind(value: Any, column: int) -> str:
    """Write what stands behind the colon of a key at `column`."""
    if isinstance(value, (dict, list)) and value:
        return "\n" + " " * (column + 2) + write_block(value, column + 2)
    return f" {write_scalar(value)}"


class Change(NamedTuple):
    """A piece of text to put in the place of another."""

    start: int
    end: int
    text: str


def after_mark(text: str) -> int:
    """Return where a text begins, behind its byte order mark."""
    return 1 if text.startswith("\ufeff") else 0


class Editor:
    """Finds the changes that make a text say what is wanted."""

    def __init__(self, text: str) -> None:
        self.text = text

    def line_end(self, at: int) -> int:
        """Return where the line ends that `at` stands in, without its line end."""
        end = self.text.find("\n", at)
        end = len(self.text) if end < 0 else end
        return end - 1 if self.text[at:end].endswith("\r") else end

    def column(self, at: int) -> int:
        return len(self.ahead(at))

    def changes(self, place: Place, wanted: Any, after: int, *, flow: bool) -> Iterator[Change]:
        """Yield what must change for a value that stands behind `after`; `flow`: it is in brackets."""
        if same_value(place.value, wanted):
            return
        pairs = list(kept_entries(place, wanted))
        if not pairs:
            yield from self.replaced(place, wanted, after, flow=flow)
            return
        for entry, key in pairs:
            yield from self.changes(entry.place, wanted[key], entry.after, flow=not place.block)
        yield from self.removals(place, {entry.key for entry, _ in pairs})
        yield from self.additions(place, wanted, pairs)

    def replaced(self, place: Place, wanted: Any, after: int, *, flow: bool) -> Iterator[Change]:
        """Put another value in the place of the whole one."""
        column = self.column(place.start)
        nested = isinstance(wanted, (dict, list)) and wanted
        if flow:
            yield Change(place.start, place.end, self.write_flow(wanted, place.start))
        elif after == place.start and not self.ahead(after).strip():  # the whole text
            yield Change(
                after, self.line_end(place.end) if place.block else place.end, write_block(wanted, 0)
            )
        elif place.block and isinstance(wanted, dict) and wanted:  # a list may have stood below its key
            yield Change(place.start, place.end, f"  {write_block(wanted, column + 2)}")
        elif place.block and nested:
            yield Change(place.start, place.end, write_block(wanted, column))
        elif self.text[after - 1 : after] == "-":
            blank = " " if place.start == after else ""
            yield Change(place.start, place.end, blank + write_block(wanted, self.column(after) + 1))
        elif place.block:
            yield Change(after, after, f" {write_scalar(wanted)}")
            yield Change(self.line_end(after), place.end, "")
        elif nested:
            end = self.line_end(place.end)
            line = self.ahead(after)
            indent = len(line) - len(line.lstrip(" -"))
            yield Change(after, place.end, "")
            yield Change(end, end, write_behind(wanted, indent))
        else:
            yield Change(after, place.end, f" {write_scalar(wanted)}")

    def write_flow(self, value: Any, at: int) -> str:
        """Write a value into brackets: on lines of its own if what it stands in has them."""
        line = self.ahead(at)
        indent = line[: len(line) - len(line.lstrip())]
        alone = "\n" in self.text[:at] and not {"[", "{"} & {*line}
        return json.dumps(value, ensure_ascii=False, indent=2 if alone else None).replace("\n", "\n" + indent)

    def removals(self, place: Place, stays: Collection[Any]) -> Iterator[Change]:
        """Take out the entries whose keys do not stay; of a block, with their lines."""
        entries = place.entries
        first = next(n for n, entry in enumerate(entries) if entry.key in stays)
        if first and (not place.block or self.ahead(entries[0].start).strip()):
            yield Change(entries[0].start, entries[first].start, "")
            entries = entries[first:]
        for before, entry in zip((entries[0], *entries), entries):
            if entry.key in stays:
                continue
            if place.block:
                yield self.without_lines(entry)
            else:
                yield Change(before.place.end, entry.place.end, "")

    def without_lines(self, entry: Entry) -> Change:
        """Take out the lines of an entry, with the line end in front of them where there is one."""
        start, end = entry.start - len(self.ahead(entry.start)), self.line_end(entry.place.end)
        if start <= after_mark(self.text):
            return Change(start, self.text.find("\n", end) + 1, "")
        return Change(start - (2 if self.text[:start].endswith("\r\n") else 1), end, "")

    def ahead(self, at: int) -> str:
        """Return what stands in front of `at` in its line."""
        return self.text[self.text.rfind("\n", 0, at) + 1 : at]

    def additions(self, place: Place, wanted: Any, pairs: list[tuple[Entry, Any]]) -> Iterator[Change]:
        """Put in the entries that are new: of a list where they belong, of a mapping at its end."""
        taken = {key for _, key in pairs}
        keys = wanted if isinstance(wanted, dict) else range(len(wanted))
        fresh = {key: wanted[key] for key in keys if key not in taken}
        if not fresh:
            return
        named = isinstance(wanted, dict)
        value = fresh if named else list(fresh.values())
        before = [entry for entry, key in pairs if named or key < min(fresh)]
        near = before[-1] if before else pairs[0][0]
        at = near.place.end if before else near.start
        if before and place.block:
            at = self.line_end(at)
        text, joint = self.addition(value, near.start, block=place.block)
        yield Change(at, at, joint + text if before else text + joint)

    def addition(self, value: Any, at: int, *, block: bool) -> tuple[str, str]:
        """Return entries as they are written beside the one at `at`, and what parts them from it."""
        column = self.column(at)
        if block:
            return write_block(value, column), "\n" + " " * column
        text = self.write_flow(value, at)[1:-1].strip()
        if self.ahead(at).strip():
            return text, ", "
        return re.sub(r"(?m)^  ", "", text), ",\n" + " " * column


def kept_entries(place: Place, wanted: Any) -> Iterator[tuple[Entry, Any]]:
    """Yield the entries of a place that stay, each with the key that it has in what is wanted.

    Of lists, the equal ones at both ends stay, and of those between as many as there are in both.
    """
    if isinstance(wanted, dict) and isinstance(place.value, dict):
        yield from ((entry, entry.key) for entry in place.entries if entry.key in wanted)
    if isinstance(wanted, list) and isinstance(place.value, list):
        shorter, fewer = min(len(wanted), len(place.value)), len(place.value) - len(wanted)
        head = equal_ahead(place.value, wanted)
        tail = min(equal_ahead(place.value[::-1], wanted[::-1]), shorter - head)
        yield from ((entry, entry.key) for entry in place.entries[: shorter - tail])
        yield from ((entry, entry.key - fewer) for entry in place.entries[len(place.value) - tail :])


def equal_ahead(one: list[Any], other: list[Any]) -> int:
    """Count the equal values that two lists begin with."""
    return len(list(itertools.takewhile(lambda pair: same_value(*pair), zip(one, other))))


def read_places(text: str, *, yaml: bool) -> Place:
    """Read a text with the place of each value. Raises ValueError."""
    if yaml:
        return YamlReader(text).read()
    reader = FlowReader(text, JSON_GAP)
    place = reader.read(reader.gap(after_mark(text)))
    if reader.gap(place.end) != len(text):
        raise ValueError("something stands behind the end of the settings")
    return place


def edit_text(text: str, wanted: Any, *, yaml: bool) -> str:
    """Return `text` with only those values changed that differ from `wanted`.

    Raises ValueError where the text is not understood, or could not be changed safely: what comes
    out is read again, and must say what is wanted.
    """
    place, editor = read_places(text, yaml=yaml), Editor(text)
    pieces: list[str] = []
    done = 0  # where the text that was taken over ends
    # of two changes at one place the inner one, which is found first, comes first
    for change in sorted(
        editor.changes(place, wanted, place.start, flow=not yaml), key=operator.itemgetter(0, 1)
    ):
        pieces += text[done : change.start], change.text
        done = change.end
    edited = "".join((*pieces, text[done:]))
    if "\r\n" in text:
        edited = re.sub(r"\r?\n", "\r\n", edited)
    if not same_value(read_places(edited, yaml=yaml).value, wanted):
        raise ValueError("this change cannot be made without touching the rest: edit the file by hand")
    return edited


########################################################################################
# 15. FOREIGN                                                                     [pure]
########################################################################################
# The configurations of LiteLLM and claude-code-router, read as ours. Each is gone through key by
# key: what has a counterpart becomes one, and what has none is told, once for each kind. Source:
# spec/setup.md 6.


class Backend(NamedTuple):
    """One model at one account, on its way into our settings."""

    section: str  # the list of keys that it belongs into
    name: str  # of an endpoint of openai-compatibility
    base: str
    key: str
    model: str = ""  # empty: all that the account lists
    alias: str = ""
    priority: int = 0
    weight: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    prefix: str = ""


# fmt: off
LITELLM_SECTIONS = {  # what stands in front of a model's name -> our list, and the name of the endpoint
    "anthropic": ("claude-api-key", ""), "gemini": ("gemini-api-key", ""),
    "ollama": ("openai-compatibility", "ollama"), "ollama_chat": ("openai-compatibility", "ollama"),
    "together_ai": ("openai-compatibility", "together"), "fireworks_ai": ("openai-compatibility", "fireworks"),
    "nvidia_nim": ("openai-compatibility", "nvidia"), "cohere_chat": ("openai-compatibility", "cohere"),
    "hosted_vllm": ("openai-compatibility", "vllm"), "lm_studio": ("openai-compatibility", "lm-studio"),
    "litellm_proxy": ("openai-compatibility", "litellm"), "llamafile": ("openai-compatibility", "llamafile"),
}
LITELLM_REFUSED = {  # what we have no way to ask -> what to do instead
    "azure": "Azure's addresses and versions are not spoken here", "azure_ai": "Azure's addresses and versions are not spoken here",
    "bedrock": "AWS signs its requests in a way that is not spoken here", "sagemaker": "AWS signs its requests in a way that is not spoken here",
    "vertex_ai": "run `cliproxy login vertex --import FILE`", "chatgpt": "run `cliproxy login codex`",
    "github_copilot": "it is not a provider here", "watsonx": "it is not a provider here", "databricks": "it is not a provider here",
    "replicate": "it is not a provider here", "text-completion-openai": "old completions are not asked upstream",
}
LITELLM_BODY = frozenset(  # fields of `litellm_params` that go into each request
    "temperature max_tokens max_completion_tokens top_p top_k reasoning_effort thinking stop seed presence_penalty"
    " frequency_penalty response_format n user verbosity service_tier".split()
)
LITELLM_PARAMS = frozenset(  # those that are read, or are not needed here
    "model api_key api_base base_url extra_headers headers organization weight order drop_params additional_drop_params stream"
    " litellm_credential_name custom_llm_provider max_retries num_retries extra_body".split()
)
LITELLM_SETTINGS = {  # section.key -> ours; empty: not needed
    "router_settings.num_retries": "request-retry", "litellm_settings.num_retries": "request-retry",
    "router_settings.cooldown_time": "transient-error-cooldown-seconds", "litellm_settings.cooldown_time": "transient-error-cooldown-seconds",
    "litellm_settings.set_verbose": "debug", "litellm_settings.drop_params": "", "router_settings.enable_pre_call_checks": "",
}
LITELLM_STRATEGIES = {"simple-shuffle": "round-robin"}  # others choose by what we do not measure
LITELLM_SKIPPED = frozenset({"embedding", "image_generation", "audio_transcription", "audio_speech", "rerank", "moderation"})
CCR_NATIVE = {"Anthropic": "claude-api-key", "anthropic": "claude-api-key", "gemini": "gemini-api-key"}  # transformer -> our list
CCR_REFUSED = frozenset({"gemini-cli", "qwen-cli", "rovo-cli", "vertex-gemini", "vertex-claude"})
CCR_BODY = {"maxtoken": "override", "maxcompletiontokens": "override", "sampling": "default", "customparams": "default", "openrouter": "override"}
CCR_SETTINGS = frozenset("APIKEY PROXY_URL fallback HOST PORT LOG LOG_LEVEL Providers providers Router".split())  # that are read, or not needed
# fmt: on


class Import:
    """A foreign configuration being read: our settings so far, and what has no counterpart."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self.backends: list[Backend] = []
        self.settings: Json = {}
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        if message not in self.notes:
            self.notes.append(message)

    def secret(self, value: Any, marks: tuple[str, ...], where: str, own: Collection[str]) -> str:
        """Return a key; one that names a variable of the environment is looked up.

        `own` are the variables that we read for this provider by ourselves: then no key is needed.
        """
        text = str(value or "")
        mark = next((mark for mark in marks if text.startswith(mark)), "")
        name = text[len(mark) :].strip("{}") if mark else ""
        if not name:
            return text
        if name in own:
            return ""
        if name not in self.environ:
            self.note(f"{where}: the variable {name} is not set; put the key in")
        elif self.environ[name]:
            self.note(f"{where}: the key was copied from the variable {name}")
        return self.environ.get(name, "")

    def add_payload(self, kind: str, model: str, params: Any) -> None:
        """Add a rule of the payload; several of one model become one."""
        rules = self.settings.setdefault("payload", {}).setdefault(kind, []) if params else []
        models = [{"name": model}]
        same = next((rule for rule in rules if rule["models"] == models and isinstance(params, dict)), None)
        if same:
            same["params"].update(params)
        elif params:
            rules.append({"models": models, "params": params})

    def config(self) -> Json:
        """Return our settings. Keys of the same models at one place become one entry."""
        entries: dict[Backend, list[Json]] = {}
        for backend in self.backends:
            models = entries.setdefault(backend._replace(model="", alias=""), [])
            model = filled(name=backend.model, alias=backend.alias if backend.alias != backend.model else "")
            if model and model not in models:
                models.append(model)
        sections: Json = {}
        for backend, models in entries.items():
            add_entry(sections.setdefault(backend.section, []), backend, models)
        return {**self.settings, **sections}


def add_entry(entries: list[Json], backend: Backend, models: list[Json]) -> None:
    """Add an entry, or another key to the endpoint that has the same models."""
    common = filled(
        **{"base-url": backend.base, "prefix": backend.prefix, "headers": dict(backend.headers)},
        priority=backend.priority or None,
        models=models,
    )
    weight = filled(weight=backend.weight or None)
    if backend.section != "openai-compatibility":
        entries.append({**filled(**{"api-key": backend.key}), **common, **weight})
        return
    keys = [{"api-key": backend.key, **weight}] if backend.key else []
    head = {"name": backend.name, **common}
    same = next((entry for entry in entries if without(entry, frozenset({"api-key-entries"})) == head), None)
    if same is None:
        entries.append({**head, **filled(**{"api-key-entries": keys})})
    elif keys:
        same.setdefault("api-key-entries", []).extend(keys)


def own_variables(section: str, name: str, base: str) -> tuple[str, ...]:
    """Return the variables of the environment that hold the key of a place, as we read it ourselves."""
    if section == "openai-compatibility":
        return PRESETS[name].keys if name in PRESETS and not base else ()
    return () if base else OWN_VARIABLES.get(section, ())


OWN_VARIABLES = {
    "claude-api-key": ("ANTHROPIC_API_KEY",),
    "gemini-api-key": ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    "codex-api-key": ("OPENAI_API_KEY",),
}


# -- LiteLLM -----------------------------------------------------------------------------


def litellm_place(kind: str, model: str, base: str) -> tuple[str, str, str]:
    """Return where a provider's models are asked: our list, the endpoint's name, and its address."""
    section, name = LITELLM_SECTIONS.get(kind, ("openai-compatibility", kind))
    if kind == "openai" and model.startswith("responses/"):
        return "codex-api-key", "", base or PRESETS["openai"].base
    if kind == "openai" and base not in {"", PRESETS["openai"].base}:
        name = urlsplit(base).hostname or "openai"
    if name == "ollama" and base and not base.endswith("/v1"):
        base += "/v1"
    return (
        section,
        name if section == "openai-compatibility" else "",
        base.removesuffix("/v1") if section == "claude-api-key" else base,
    )


def litellm_model(params: Json) -> tuple[str, str]:
    """Return whose model it is, and its name there."""
    kind, slash, model = str(params.get("model", "")).partition("/")
    if slash:
        return kind, model
    return ("anthropic" if kind.startswith("claude-") else "openai"), kind


def litellm_refusal(kind: str, place: tuple[str, str, str]) -> str:
    """Return why a model cannot be asked from here; empty if it can."""
    section, name, base = place
    if kind in LITELLM_REFUSED:
        return LITELLM_REFUSED[kind]
    if section == "openai-compatibility" and name not in PRESETS and not base:
        return f"{kind} is no provider that is known here, and it has no api_base"
    return ""


def litellm_backend(row: Json, where: str, found: Import) -> Backend | None:
    """Return a row of `model_list` as ours; None for one that is not asked from here, or needs no entry."""
    params, alias = object_in(row, "litellm_params"), str(row.get("model_name", ""))
    kind, model = litellm_model(params)
    place = litellm_place(kind, model, str(first_said(params, "api_base", "base_url")).rstrip("/"))
    why = litellm_refusal(kind, place) if model else "it names no model"
    if why:
        found.note(f"{where} ({kind}/{model}) is left out: {why}")
        return None
    section, name, _ = place
    named = "*" not in model
    if section == "codex-api-key":
        model = model.removeprefix("responses/")
    asked = params.get("api_key")
    key = found.secret(asked, ("os.environ/",), where, own_variables(*place))
    if asked and not key:
        if not named or model == alias:
            return None  # the variable alone is an account that has them all
        if (
            section != "openai-compatibility" or name == "openai"
        ):  # else it would be one beside the variable's
            key = found.secret(asked, ("os.environ/",), where, ())
    backend = Backend(
        *place, key, priority=-int(params.get("order") or 0), weight=int(params.get("weight") or 0)
    )
    backend = backend._replace(headers=litellm_headers(params))
    return (
        backend._replace(model=model, alias=alias)
        if named
        else backend._replace(prefix=alias.rpartition("/")[0])
    )


def litellm_headers(params: Json) -> tuple[tuple[str, str], ...]:
    headers = {**object_in(params, "headers"), **object_in(params, "extra_headers")}
    headers.update(filled(**{"OpenAI-Organization": params.get("organization")}))
    return tuple(sorted((str(name), str(value)) for name, value in headers.items()))


def litellm_row(row: Json, where: str, found: Import) -> None:
    """Take over a row of `model_list`: its account, and what it adds to each request."""
    params, info = object_in(row, "litellm_params"), object_in(row, "model_info")
    alias = str(row.get("model_name", ""))
    if info.get("mode") in LITELLM_SKIPPED:
        found.note(
            f"{where} ({alias}) is left out: its mode is {info['mode']}, and only chats have names of their own"
        )
        return
    for name in params.keys() - LITELLM_PARAMS - LITELLM_BODY:
        found.note(f"litellm_params.{name} has no counterpart")
    backend = litellm_backend(row, where, found)
    if backend is None:
        return
    found.backends.append(backend)
    body = {name: params[name] for name in params if name in LITELLM_BODY}
    found.add_payload("default", alias, {**body, **object_in(params, "extra_body")})
    found.add_payload("filter", alias, params.get("additional_drop_params"))
    limits = filled(context=info.get("max_input_tokens"), output=info.get("max_output_tokens"))
    if limits:
        section = backend.name or backend.section
        found.settings.setdefault("models", []).append({"id": backend.model, "provider": section, **limits})


def litellm_fallbacks(sections: Iterable[Json], found: Import) -> None:
    fallbacks: Json = {}
    for section in sections:
        for row in section.get("fallbacks") or ():
            fallbacks.update(row)
        default = section.get("default_fallbacks") or []
        for backend in found.backends if default else ():
            rest = [name for name in default if name != backend.alias]
            fallbacks[backend.alias] = [*fallbacks.get(backend.alias, ()), *rest]
    if fallbacks:
        found.settings["model-fallbacks"] = fallbacks


def litellm_aliases(aliases: Json, found: Import) -> None:
    """Take over `model_group_alias`: other names for the groups of models."""
    for alias, told in aliases.items():
        group = told.get("model") if isinstance(told, dict) else told
        rows = [backend for backend in found.backends if backend.alias == group]
        found.backends.extend(backend._replace(alias=str(alias)) for backend in rows)


def litellm_setting(section: str, key: str, value: Any, found: Import) -> None:
    if (section, key) == ("general_settings", "master_key"):
        found.settings["api-keys"] = [found.secret(value, ("os.environ/",), key, ())]
    elif (section, key) == ("router_settings", "routing_strategy"):
        strategy = LITELLM_STRATEGIES.get(value)
        weighted = strategy and any(backend.weight for backend in found.backends)
        found.settings["routing"] = {"strategy": "weighted-round-robin" if weighted else "round-robin"}
        if not strategy:
            found.note(
                f"routing_strategy {value!r} chooses by what is not measured here: accounts take turns"
            )
    elif f"{section}.{key}" not in LITELLM_SETTINGS:
        found.note(f"{section}.{key} has no counterpart")
    elif LITELLM_SETTINGS[f"{section}.{key}"]:
        found.settings[LITELLM_SETTINGS[f"{section}.{key}"]] = value


LITELLM_HANDLED = frozenset({"fallbacks", "default_fallbacks", "model_group_alias"})
LITELLM_SECTIONS_READ = ("general_settings", "router_settings", "litellm_settings")


def read_litellm(data: Json, environ: Mapping[str, str]) -> tuple[Json, list[str]]:
    """Return our settings for a configuration of LiteLLM, and notes on what has no counterpart."""
    variables = {key: str(value) for key, value in (data.get("environment_variables") or {}).items()}
    found = Import({**environ, **variables})
    credentials = {
        row.get("credential_name"): row.get("credential_values") or {}
        for row in data.get("credential_list") or ()
    }
    for number, row in enumerate(data.get("model_list") or ()):
        params = row.get("litellm_params") or {}
        shared = credentials.get(params.get("litellm_credential_name"), {})
        litellm_row({**row, "litellm_params": {**shared, **params}}, f"model_list[{number}]", found)
    sections = {name: data.get(name) or {} for name in LITELLM_SECTIONS_READ}
    litellm_aliases(sections["router_settings"].get("model_group_alias") or {}, found)
    litellm_fallbacks(sections.values(), found)
    for name, section in sections.items():
        for key in section.keys() - LITELLM_HANDLED:
            litellm_setting(name, key, section[key], found)
    for key in data.keys() - {
        *LITELLM_SECTIONS_READ,
        "model_list",
        "environment_variables",
        "credential_list",
        "include",
    }:
        found.note(f"{key} has no counterpart")
    return found.config(), sorted(found.notes)


# -- claude-code-router ------------------------------------------------------------------


def ccr_transformers(transformer: Json) -> Iterator[tuple[str, Json]]:
    """Yield the names of the transformers that are used for all models of a provider, with their options."""
    for use in transformer.get("use") or ():
        name, options = (use[0], use[1]) if isinstance(use, list) and len(use) > 1 else (use, {})
        yield str(name[0] if isinstance(name, list) else name), options


def ccr_place(name: str, base: str, used: Collection[str]) -> tuple[str, str, str]:
    """Return where a provider is asked: our list, the endpoint's name, and its address."""
    section = next((CCR_NATIVE[word] for word in used if word in CCR_NATIVE), "openai-compatibility")
    base = re.sub(r"/(?:chat/completions|messages|models)$", "", base.rstrip("/"))
    if section != "openai-compatibility":
        base = re.sub(r"/v1(?:beta)?$", "", base)
        return section, "", "" if base in CCR_HOSTS else base
    for preset, fact in PRESETS.items():
        if base in {fact.base, fact.base.removesuffix("/v1")}:
            return section, preset, ""
    return section, name, base


CCR_HOSTS = frozenset({"https://generativelanguage.googleapis.com", "https://api.anthropic.com"})


def ccr_provider(row: Json, where: str, found: Import) -> None:
    """Take over a provider: an account that has its models, each also as `provider,model`."""
    name = str(row.get("name", ""))
    used = dict(ccr_transformers(object_in(row, "transformer")))
    for refused in used.keys() & CCR_REFUSED:
        found.note(f"{where} ({name}): its transformer {refused} has no counterpart; run `cliproxy login`")
    place = ccr_place(name, str(row.get("api_base_url", "")), used)
    key = found.secret(row.get("api_key"), ("$",), where, own_variables(*place))
    for model in row.get("models") or ():
        for alias in (model, f"{name},{model}"):
            found.backends.append(Backend(*place, key, model, alias))
        for word, options in used.items():
            if word in CCR_BODY:
                found.add_payload(CCR_BODY[word], model, options)


def ccr_router(router: Json, found: Import) -> None:
    """Say which models the client is to be told: there are no routes here."""
    for key in router.keys() - {"default", "background", "longContextThreshold"}:
        found.note(f"Router.{key} has no counterpart: the client chooses its models")
    for key, role in (("default", ""), ("background", ", as its haiku model")):
        if router.get(key):
            model = str(router[key]).partition(",")[2]
            found.note(f"Router.{key}: run `cliproxy setup claude-code --model {model}`{role}")


def read_ccr(data: Json, environ: Mapping[str, str]) -> tuple[Json, list[str]]:
    """Return our settings for a configuration of claude-code-router, and notes on what has no counterpart."""
    found = Import(environ)
    for number, row in enumerate(first_said(data, "Providers", "providers") or ()):
        ccr_provider(row, f"Providers[{number}]", found)
    if data.get("APIKEY"):
        found.settings["api-keys"] = [found.secret(data["APIKEY"], ("$",), "APIKEY", ())]
    fallbacks = without(object_in(data, "fallback"), frozenset({"default"}))
    debug = str(data.get("LOG_LEVEL")).lower() == "debug"
    found.settings.update(
        filled(**{"proxy-url": data.get("PROXY_URL"), "debug": debug or None, "model-fallbacks": fallbacks})
    )
    ccr_router(object_in(data, "Router"), found)
    for key in data.keys() - CCR_SETTINGS:
        found.note(f"{key} has no counterpart")
    return found.config(), sorted(found.notes)


class Foreign(NamedTuple):
    """Whose configuration it is, and what reads it: settings of ours, and notes on what is left out."""

    owner: str
    read: Callable[[Json, Mapping[str, str]], tuple[Json, list[str]]]


FOREIGN = {"litellm": Foreign("LiteLLM", read_litellm), "ccr": Foreign("claude-code-router", read_ccr)}


def read_foreign(kind: str, data: Any, environ: Mapping[str, str]) -> tuple[Json, list[str]]:
    """Return our settings for a configuration of this kind of FOREIGN. Raises ValueError for what is none."""
    owner, read = FOREIGN[kind]
    if foreign_kind(data) != kind:
        raise ValueError(f"this is no configuration of {owner}")
    try:
        return read(data, environ)
    except MALFORMED as exc:
        raise ValueError(f"this is no configuration of {owner}: {type(exc).__name__}: {exc}") from exc


def foreign_kind(data: Any) -> str:
    """Return whose configuration this is, as a key of FOREIGN; empty: ours, or nobody's."""
    if not isinstance(data, dict):
        return ""
    if isinstance(data.get("model_list"), list):
        return "litellm"
    providers = data.get("Providers") or data.get("providers")
    rows = providers if isinstance(providers, list) else []
    return "ccr" if any(isinstance(row, dict) and "api_base_url" in row for row in rows) else ""


########################################################################################
# 16. CONFIG
########################################################################################
# The settings file, as CLIProxyAPI writes it: every key is a row, a file is read against the rows
# into a complete snapshot, and a snapshot is replaced whole. Old spellings are moved in memory.
# Nothing here writes the file. Source: spec/config.md 1 to 4 and 11.


class Items(NamedTuple):
    """The shape of a list: of what; which keys an entry needs; which together make it unique."""

    of: Any
    needs: str = ""
    unique: str = ""


class Named(NamedTuple):
    """The shape of a mapping from names of the owner's own choice."""

    of: Any


class Setting(NamedTuple):
    """One key. `shape` is bool, int, float, str, dict (whatever is in it), object (whatever it is),
    Items, Named, or a tuple of Settings: a record.

    `allowed` is the range of a number, or {word: its meaning} of a text. `clean` is applied last;
    its ValueError says what is allowed. A default of None leaves an absent key absent.
    `status` is empty, or new: not in CLIProxyAPI; later: checked, but not used yet; unused: kept,
    and without effect; old: an old spelling, `help` being the new one.
    """  # noqa: D205

    key: str  # dotted for the keys of a section
    shape: Any
    default: Any
    help: str = ""
    allowed: range | dict[str, str] | None = None
    clean: Callable[[Any], Any] | None = None
    status: str = ""


def unused(words: str) -> tuple[Setting, ...]:
    """Return rows for keys of CLIProxyAPI that are known and kept, and have no effect here."""
    return tuple(Setting(word, object, None, status="unused") for word in words.split())


def clean_positive(number: int) -> int:
    return max(0, number)


def clean_price(price: float) -> float:
    if not 0 <= price < 1e6:
        raise ValueError("a price in USD")
    return price


def clean_kept(number: int) -> int:
    return number if number >= 0 else 10


def is_url(text: str, *schemes: str) -> bool:
    """Tell whether a text is a URL of one of these schemes, and a host and port can be read of it."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(text)
        named = parts.scheme in schemes and parts.port != 0
        return bool(named and parts.hostname and " " not in text)
    return False


def clean_url(text: str) -> str:
    url = text.strip().rstrip("/")
    if url and not is_url(url, "http", "https"):
        raise ValueError("an http or https URL")
    return url


def clean_guarded(text: str) -> str:
    """Check a URL to which tokens of logins go: on the way to other machines they are encrypted."""
    url = clean_url(text)
    if url.startswith("http://") and not is_loopback(urlsplit(url).hostname or ""):
        raise ValueError("an https URL, or an http one of this machine, as tokens of logins go there")
    return url


def clean_endpoint(text: str) -> str:
    """Check that `provider://NAME` is one that we know."""
    name = text.strip().rstrip("/").lower().partition("provider://")[2]
    if name and name not in PRESETS:
        known = ", ".join(sorted(PRESETS))
        raise ValueError(f"provider:// and one of {known}{slip(name, PRESETS)}")
    return f"provider://{name}" if name else clean_url(text)


AUTH_DIR = "~/.cli-proxy-api"


def clean_folder(text: str) -> str:
    with contextlib.suppress(RuntimeError):
        return text if text and Path(text).expanduser() else AUTH_DIR
    raise ValueError("a folder; it is unknown whose home ~ is")


def clean_prefix(text: str) -> str:
    """Trim spaces and outer slashes; a prefix with a slash inside is none."""
    prefix = text.strip().strip("/")
    return "" if "/" in prefix else prefix


def clean_texts(texts: list[str]) -> list[str]:
    return [text for text in dict.fromkeys(texts) if text.strip()]


def clean_origins(origins: list[str]) -> list[str]:
    """Check that each is what a browser sends: a scheme, a host, and a port that is not the usual one."""
    cleaned = [origin.strip().lower().rstrip("/") for origin in origins]
    for origin in cleaned:
        if not re.fullmatch(r"https?://[^/?#@\s]+", origin) or not is_url(origin, "http", "https"):
            raise ValueError("origins such as http://localhost:3000")
    return [re.sub(r"^(http://.*):80$|^(https://.*):443$", r"\1\2", origin) for origin in cleaned]


def clean_keys(keys: list[str]) -> list[str]:
    for key in keys:
        clean_key(key)
    return clean_texts(keys)


def clean_key(key: str) -> str:
    """Check that a key can stand in a header."""
    key = key.strip()
    if not (key.isascii() and key.isprintable()):
        raise ValueError("keys of printable ASCII characters")
    return key


def clean_globs(patterns: list[str]) -> list[str]:
    return clean_texts([pattern.strip().lower() for pattern in patterns])


def clean_headers(headers: dict[str, str]) -> dict[str, str]:
    pairs = ((name.strip(), value.strip()) for name, value in headers.items())
    return {name: value for name, value in pairs if name and value}


def clean_proxy(text: str) -> str:
    proxy = text.strip()
    ways = "http", "https", "socks5", "socks5h"
    if proxy.lower() not in {"", "direct", "none"} and not is_url(proxy, *ways):
        raise ValueError("http://, https://, socks5:// or socks5h:// and a host, direct, none")
    return proxy


def clean_pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as exc:
        raise ValueError(f"a regular expression ({exc})") from exc
    return text


def clean_pairs(cell: Any) -> Any:
    if not all(isinstance(each, dict) for each in (cell if isinstance(cell, list) else [cell])):
        raise ValueError("a mapping, or a list of mappings")
    return cell


def clean_duration(text: str) -> str:
    if not read_duration(text):
        raise ValueError("a time such as 90s, 30m or 1h30m")
    return text.strip()


def clean_excluded(channels: dict[str, list[str]]) -> dict[str, list[str]]:
    pairs = ((channel.strip().lower(), clean_globs(globs)) for channel, globs in channels.items())
    return {channel: globs for channel, globs in pairs if globs}


def clean_aliases(channels: dict[str, list[Json]]) -> dict[str, list[Json]]:
    """Drop aliases that say nothing; within a channel the first of one name wins."""
    cleaned: dict[str, list[Json]] = {}
    for channel, rows in channels.items():
        useful = [row for row in rows if row["name"].lower() != row["alias"].lower()]
        first = {row["alias"].lower(): row for row in reversed(useful)}
        cleaned[channel.strip().lower()] = list(reversed(first.values()))
    return cleaned


STRATEGIES = {
    **dict.fromkeys(("round-robin", "roundrobin", "rr", ""), "round-robin"),
    **dict.fromkeys(("weighted-round-robin", "weightedroundrobin", "wrr"), "weighted-round-robin"),
    **dict.fromkeys(("fill-first", "fillfirst", "ff"), "fill-first"),
}
ACTIONS = {word: word for word in "stop stop-and-cooldown continue continue-and-cooldown".split()}

# fmt: off
NAMING = (
    Setting("display-name",  str,  None, "what lists of models call it"),
    Setting("force-mapping", bool, None, "answers carry the name that the client asked for"),
)
KEY_MODEL = (
    Setting("name",  str, "", "the model's name at the upstream", clean=str.strip),
    Setting("alias", str, "", "the name that clients ask for; empty: the same; several with one alias take turns", clean=str.strip),
    *NAMING,
    *unused("max-context-length image input-modalities is-compat thinking"),
)
REFUSAL = (
    Setting("status",       int, 0,      "its HTTP status; 0: any"),
    Setting("match",        str, "",     "what it holds; empty: anything"),
    Setting("match-regexr", str, "",     "the same as a regular expression", clean=clean_pattern),
    Setting("action",       str, "stop", "stop: tell the client, continue: ask the next account; either -and-cooldown: it rests", ACTIONS),
)
KEY_COMMON = (
    Setting("base-url",        str,              "", "root of the upstream; empty: the provider's own", clean=clean_url),
    Setting("prefix",          str,              "", "its models are also offered as `PREFIX/MODEL`", clean=clean_prefix),
    Setting("priority",        int,              0,  "accounts of the highest priority are used first"),
    Setting("headers",         Named(str),       {}, "sent to the upstream in addition", clean=clean_headers),
    Setting("models",          Items(KEY_MODEL), [], "if any are listed, only these are offered"),
    Setting("excluded-models", Items(str),       [], "models not offered; `*` is any text, alone it disables all", clean=clean_globs),
    Setting("weight",          int,              1,  "its share under weighted-round-robin; 0: none"),
    Setting("disable-cooling", bool,             None, "overrides the global disable-cooling"),
    Setting("request-retry",   int,              None, "overrides the global request-retry"),
    Setting("request-scoped-errors", Items(REFUSAL), None, "what to do after certain refusals; the first that fits"),
)
KEY_SECRET = (
    Setting("api-key",   str, "", "the upstream's key", clean=clean_key),
    Setting("proxy-url", str, "", "overrides the global proxy-url", clean=clean_proxy),
)
API_KEY = KEY_SECRET + KEY_COMMON
CLAUDE_KEY = (*API_KEY, *unused("cloak fingerprint-profile experimental-cch-signing rebuild-mid-system-message"))
CODEX_KEY = (*API_KEY, *unused("websockets"))
BOTH_NAMES = Items(KEY_MODEL, "name alias")
VERTEX_KEY = tuple(row._replace(shape=BOTH_NAMES) if row.key == "models" else row for row in API_KEY)
KEY_ENTRY = (*KEY_SECRET, Setting("weight", int, None, "overrides that of the endpoint"))
COMPATIBLE = (
    Setting("name",            str,   "",    "what the provider is called in logs and lists", clean=str.strip),
    Setting("api-key-entries", Items(KEY_ENTRY), [], "its keys, one account each; none: one account without a key"),
    Setting("disabled",        bool,  False, "do not use it"),
    Setting("api-keys", Items(str), None, status="old"),
    Setting("base-url",        str,   "",    "root of the upstream, or `provider://NAME` of one we know", clean=clean_endpoint),
    *KEY_COMMON[1:],
    *unused("support-prompt-cache-key"),
)
ALIAS = (
    Setting("name",  str,  "",    "the upstream's name", clean=str.strip),
    Setting("alias", str,  "",    "the name that clients see", clean=str.strip),
    Setting("fork",  bool, False, "offer both names, not the alias alone"),
    *NAMING,
)
MATCH = (
    Setting("name",     str, "", "the model; `*` stands for any text"),
    Setting("protocol", str, "", "openai, gemini, claude, codex or antigravity; empty: any", clean=str.strip),
    Setting("from-protocol", str,        None, "of the client: openai, responses, gemini or claude", clean=str.strip),
    Setting("headers",       object,     None, "name: value; what the client must have sent, `*` being any text", clean=clean_pairs),
    Setting("match",         object,     None, "path: value; what the body must hold", clean=clean_pairs),
    Setting("not-match",     object,     None, "path: value; none of which the body may hold", clean=clean_pairs),
    Setting("exist",         Items(str), None, "paths that the body must have"),
    Setting("not-exist",     Items(str), None, "paths that the body may not have"),
)
RULE = (Setting("models", Items(MATCH), [], "where it applies"), Setting("params", dict, {}, "path: value"))
RAW_RULE = (RULE[0], Setting("params", dict, {}, "path: value, a text of JSON"))
FILTER = (RULE[0], Setting("params", Items(str), [], "paths"))
AMP_KEY = (Setting("upstream-api-key", str, "", "Amp's key"), Setting("api-keys", Items(str), [], "for these clients"))
AMP_MODEL = (
    Setting("from",  str,  "",    "the model that Amp asks for", clean=str.strip),
    Setting("to",    str,  "",    "the model to use instead", clean=str.strip),
    Setting("regex", bool, False, "`from` is a regular expression"),
)
PROVIDER = (
    Setting("base-url",      str,        "", "root of its API", clean=clean_guarded),
    Setting("enabled",       bool,       None, "antigravity: use its logins, though it may refuse, or restrict, those of honest programs"),
    Setting("authorize-url", str,        "", "page that asks for consent", clean=clean_guarded),
    Setting("token-url",     str,        "", "where codes and refresh tokens are exchanged", clean=clean_guarded),
    Setting("device-url",    str,        "", "where device codes are issued", clean=clean_guarded),
    Setting("usage-url",     str,        "", "where what is left of a plan is asked", clean=clean_guarded),
    Setting("profile-url",   str,        "", "where it is asked whose account this is", clean=clean_guarded),
    Setting("revoke-url",    str,        "", "where tokens are revoked", clean=clean_guarded),
    Setting("projects-url",  str,        "", "Google: where projects are listed", clean=clean_guarded),
    Setting("services-url",  str,        "", "Google: where services are enabled", clean=clean_guarded),
    Setting("redirect-port", int,        0,  "where the browser comes back; 0: the provider's own port"),
    Setting("client-id",     str,        "", "of the OAuth application", clean=str.strip),
    Setting("client-secret", str,        "", "of the OAuth application", clean=str.strip),
    Setting("headers",       Named(str), {}, "sent to the upstream in addition", clean=clean_headers),
)
AUTH_PROVIDER = (
    Setting("type", str, ""),
    Setting("api-keys", Items(str), []),
    Setting("api-key-entries", Items(KEY_ENTRY), []),
    *unused("name sdk config"),
)
USER_MODEL = (
    Setting("id",         str,        "",   "the name that clients ask for", clean=str.strip),
    Setting("provider",   str,        "",   "offer it on the accounts of this provider, or of this list of keys", clean=str.strip),
    Setting("owner",      str,        "",   "shown as `owned_by`"),
    Setting("name",       str,        "",   "as people call it"),
    Setting("context",    int,        0,    "tokens that fit in; 0: unknown", clean=clean_positive),
    Setting("output",     int,        0,    "tokens that come out at most; 0: unknown", clean=clean_positive),
    Setting("thinking",   bool,       None, "whether it can think"),
    Setting("levels",     Items(str), [],   "efforts that it takes by name", clean=clean_globs),
    Setting("min-budget", int,        0,    "least thinking tokens", clean=clean_positive),
    Setting("max-budget", int,        0,    "most thinking tokens; 0: unknown", clean=clean_positive),
)
PRICE = (
    Setting("input",       float, 0.0,  "of input", clean=clean_price),
    Setting("output",      float, 0.0,  "of output", clean=clean_price),
    Setting("cached",      float, None, "of input that was cached; absent: as other input", clean=clean_price),
    Setting("cache-write", float, None, "of input that is put into a cache; absent: as other input", clean=clean_price),
)
SETTINGS = (
    Setting("host", str, "127.0.0.1", "address to listen on; empty: all of them, which needs api-keys", clean=str.strip),
    Setting("port", int, 8317, "port to listen on; 0: any free one", range(65_536)),
    Setting("tls.enable", bool, False, "serve HTTPS"),
    Setting("tls.cert", str, "", "PEM file of the certificate and its chain", clean=str.strip),
    Setting("tls.key", str, "", "PEM file of the private key", clean=str.strip),
    Setting("auth-dir", str, AUTH_DIR, "folder of the credential files", clean=clean_folder),
    Setting("api-keys", Items(str), [], "keys that clients must show; none: every local program may ask", clean=clean_keys),
    Setting("allow-origins", Items(str), [], "web pages that may ask, as http://localhost:3000; none: only those from here", clean=clean_origins, status="new"),
    Setting("debug", bool, False, "log more"),
    Setting("proxy-url", str, "", "way out: http, https, socks5 or socks5h URL, or direct; empty: as the environment says", clean=clean_proxy),
    Setting("request-retry", int, 3, "rounds to ask all accounts again after waiting for one to recover", clean=clean_positive),
    Setting("max-retry-interval", int, 30, "seconds that are worth waiting for an account; 0: never wait", clean=clean_positive),
    Setting("max-retry-credentials", int, 0, "accounts to ask in one round; 0: all", clean=clean_positive),
    Setting("disable-cooling", bool, False, "do not rest an account after 404, 408, 429 and 5xx"),
    Setting("transient-error-cooldown-seconds", int, 0, "rest after 408 and 5xx; 0: 60, -1: none"),
    Setting("routing.strategy", str, "round-robin", "which account is next: round-robin, weighted-round-robin or fill-first", STRATEGIES),
    Setting("routing.session-affinity", bool, False, "keep a conversation with the account that answered it last"),
    Setting("routing.session-affinity-ttl", str, "1h", "how long after its last answer, as 30m or 1h", clean=clean_duration),
    Setting("quota-exceeded.switch-project", bool, False, "after a 429, ask the other projects of the same Google login"),
    Setting("quota-exceeded.switch-preview-model", bool, False, "while all accounts for a model rest, ask for its preview, or the reverse"),
    Setting("force-model-prefix", bool, False, "offer the models of an account with a prefix under the prefix alone"),
    Setting("nonstream-keepalive-interval", int, 0, "seconds between blank lines while a whole answer is awaited; 0: none", clean=clean_positive),
    Setting("streaming.keepalive-seconds", int, 0, "seconds of silence in a stream before a keep-alive is sent; 0: none", clean=clean_positive),
    Setting("streaming.bootstrap-retries", int, 0, "tries to repeat a stream that failed before its first byte", clean=clean_positive),
    Setting("claude-api-key", Items(CLAUDE_KEY), [], "keys of the Anthropic API"),
    Setting("codex-api-key", Items(CODEX_KEY, "base-url"), [], "keys of a Responses API; needs base-url"),
    Setting("gemini-api-key", Items(API_KEY, "api-key", "api-key"), [], "keys of the Gemini API"),
    Setting("vertex-api-key", Items(VERTEX_KEY, "api-key base-url", "api-key base-url"), [], "keys of hosts that speak as Vertex does; needs base-url"),
    Setting("openai-compatibility", Items(COMPATIBLE), [], "everybody who speaks Chat Completions; needs base-url, or the name of one we know"),
    Setting("oauth-model-alias", Named(Items(ALIAS, "name alias")), {}, "by channel (claude, codex, ...): other names for the models", clean=clean_aliases),
    Setting("oauth-excluded-models", Named(Items(str)), {}, "by channel: models of logins that are not offered", clean=clean_excluded),
    Setting("oauth-request-scoped-errors", Named(Items(REFUSAL)), {}, "by channel: what to do after certain refusals of logins"),
    Setting("payload.default", Items(RULE), [], "fields set if the client left them out"),
    Setting("payload.default-raw", Items(RAW_RULE, "params"), [], "the same, the values being JSON texts"),
    Setting("payload.override", Items(RULE), [], "fields always set"),
    Setting("payload.override-raw", Items(RAW_RULE, "params"), [], "the same, the values being JSON texts"),
    Setting("payload.filter", Items(FILTER), [], "fields always removed"),
    Setting("models", Items(USER_MODEL, "id", "id provider"), [], "models that are not built in, or facts to correct", status="new"),
    Setting("ws", bool, False, "let clients of /v1/responses use a WebSocket, and send only what is new", status="new"),
    Setting("passthrough-headers", bool, False, "give clients all headers of the upstream's answer, not only those known to be of use"),
    Setting("prompt-caching", bool, True, "have prompts cached that are translated: marks for Claude, a name of the conversation for OpenAI", status="new"),
    Setting("refresh-models", bool, True, "ask upstreams once a day which models they have", status="new"),
    Setting("model-fallbacks", Named(Items(str)), {}, "by model: the models to ask instead, in order, when no account can serve it; []: nobody", status="new"),
    Setting("providers", Named(PROVIDER), {}, "by provider: addresses and OAuth application to use instead of the built-in ones", status="new"),
    Setting("remote-management.allow-remote", bool, False, "let other machines use the management API"),
    Setting("remote-management.secret-key", str, "", "key of the management API, kept as its bcrypt hash; empty: no such API", clean=str.strip),
    Setting("remote-management.disable-control-panel", bool, False, "do not serve management.html", status="later"),
    Setting("remote-management.allow-origins", Items(str), [], "web pages that may use the management API; none named: all", clean=clean_origins, status="new"),
    Setting("logging-to-file", bool, False, "log to main.log instead of standard output", status="later"),
    Setting("logs-max-total-size-mb", int, 0, "oldest logs are deleted beyond it; 0: never", clean=clean_positive, status="later"),
    Setting("error-logs-max-files", int, 10, "newest error logs that are kept; 0: all", clean=clean_kept, status="later"),
    Setting("request-log", bool, False, "one log file per request", status="later"),
    Setting("usage-statistics-enabled", bool, True, "keep what was asked, of whom, and what it cost, in AUTH-DIR/.cliproxy/usage.db"),
    Setting("usage.keep-days", int, 90, "days that single requests are kept; their sums stay; 0: for ever", clean=clean_positive, status="new"),
    Setting("prices", Named(PRICE), {}, "by model: list prices in USD per million tokens, to add or correct some", status="new"),
    Setting("ampcode.upstream-url", str, "", "Amp's own server, for all but models; empty: its command line does not start", clean=clean_url),
    Setting("ampcode.upstream-api-key", str, "", "the key there; empty: AMP_API_KEY, or the one that Amp keeps", clean=str.strip),
    Setting("ampcode.upstream-api-keys", Items(AMP_KEY), [], "keys there by the key that a client shows here"),
    Setting("ampcode.restrict-management-to-localhost", bool, False, "all but models is for clients on this machine"),
    Setting("ampcode.model-mappings", Items(AMP_MODEL, "from to"), [], "models to use instead of those Amp asks for, on /api/provider"),
    Setting("ampcode.force-model-mappings", bool, False, "apply them even to models that are served here"),
    *unused("""
        antigravity antigravity-signature-bypass-strict antigravity-signature-cache-enabled auth-auto-refresh-workers claude-code
        claude-header-defaults codex codex-header-defaults commercial-mode credential-concurrency credential-in-flight
        disable-claude-cloak-mode disable-image-generation gpt-image-2-base-model interactions-api-key
        plugins pprof quota-exceeded.antigravity-credits
        redis-usage-queue-retention-seconds remote-management.disable-auto-update-panel remote-management.panel-github-repository
        save-cooldown-status video-result-auth-cache-ttl ws-auth xai xai-api-key
        allow-localhost-unauthenticated codex-instructions-enabled force-gpt-5-codex gemini-web
    """),
    Setting("auth.providers", object, None, status="old"),
    Setting("generative-language-api-key", Items(str), None, status="old"),
    Setting("amp-upstream-url", str, None, "ampcode.upstream-url", clean=clean_url, status="old"),
    Setting("amp-upstream-api-key", str, None, "ampcode.upstream-api-key", clean=str.strip, status="old"),
    Setting("amp-model-mappings", Items(AMP_MODEL, "from to"), None, "ampcode.model-mappings", status="old"),
    Setting("amp-restrict-management-to-localhost", bool, None, "ampcode.restrict-management-to-localhost", status="old"),
    Setting("oauth-model-mappings", Named(Items(ALIAS, "name alias")), None, "oauth-model-alias", clean=clean_aliases, status="old"),
    Setting("model-name-mappings", Named(Items(ALIAS, "name alias")), None, "oauth-model-alias", clean=clean_aliases, status="old"),
)
# fmt: on


def nearest_names(name: str, names: Iterable[str], most: int = 3, like: float = 0.5) -> list[str]:
    """Return those of `names` that look most like `name`, best first."""
    from difflib import get_close_matches  # noqa: PLC0415 -- seldom needed

    folded = {known.lower(): known for known in names}
    return [folded[near] for near in get_close_matches(name.lower(), folded, most, like)]


def slip(word: str, words: Iterable[str]) -> str:
    """Ask whether the one of `words` that is close was meant; empty if none is."""
    return "".join(f"; did you mean {near}?" for near in nearest_names(word, words, 1, 0.7))


def bad_setting(at: str, value: Any, allowed: str) -> ProxyError:
    """Return the error for a value that cannot be; secrets and whole lists are not shown."""
    secret = re.search("key|secret|token|password|header|proxy", at)
    if isinstance(value, (dict, list)):
        shown = "a mapping" if isinstance(value, dict) else "a list"
    else:
        shown = masked(str(value)) if secret else dumps_text(value)[:80]
    message = f"{at}: {shown} is not possible; allowed: {allowed}"
    return ProxyError("invalid_request", message, param=at)


def read_bool(value: Any) -> bool | None:
    word = value.lower() if isinstance(value, str) else ""
    return value if isinstance(value, bool) else BOOLS.get(word)


def read_int(value: Any) -> int | None:
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return int(value) if whole and not isinstance(value, bool) else None


def read_float(value: Any) -> float | None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if number else None


def read_text(value: Any) -> str | None:
    number = None if isinstance(value, (dict, list)) else dumps_text(value)
    return value if isinstance(value, str) else number


YES, NO = ("true", "yes", "on", "y"), ("false", "no", "off", "n")
BOOLS = dict.fromkeys(YES, True) | dict.fromkeys(NO, False)
NO_YAML = "`python -m pip install pyyaml` reads all of YAML"
SHAPES: dict[Any, tuple[Callable[[Any], Any], Any, str]] = {
    # read it or None, what null is, what it is called
    bool: (read_bool, False, "true or false"),
    int: (read_int, 0, "a whole number"),
    float: (read_float, 0.0, "a number"),
    str: (read_text, "", "a text"),
    dict: (lambda value: value if isinstance(value, dict) else None, {}, "a mapping"),
    list: (lambda value: value if isinstance(value, list) else None, [], "a list"),
    object: (lambda value: value, None, "anything"),
}


def read_plain(value: Any, shape: type, at: str) -> Any:
    read, empty, allowed = SHAPES[shape]
    found = empty if value is None else read(value)
    if found is None and shape is not object:
        raise bad_setting(at, value, allowed)
    return found


def read_items(values: Any, shape: Items, at: str, notes: list[str]) -> list[Any]:
    """Read a list; entries that lack what they need, or repeat another, are left out and noted."""
    found: list[Any] = []
    seen: set[tuple[Any, ...]] = set()
    for number, value in enumerate(read_plain(values, list, at)):
        item = read_shape(value, shape.of, f"{at}[{number}]", notes)
        lacking = [key for key in shape.needs.split() if not item[key]]
        same = tuple(item[key] for key in shape.unique.split())
        if lacking or same in seen:
            why = f"it has no usable {lacking[0]}" if lacking else "it repeats another"
            notes.append(f"{at}[{number}] is ignored: {why}")
        else:
            found.append(item)
            seen.update([same] if same else [])
    return found


def read_shape(value: Any, shape: Any, at: str, notes: list[str]) -> Any:
    """Read a value of any shape. Raises ProxyError naming the place; `notes` takes warnings."""
    if isinstance(shape, Items):
        return read_items(value, shape, at, notes)
    if isinstance(shape, Named):
        names = read_plain(value, dict, at).items()
        return {name: read_shape(of, shape.of, f"{at}.{name}", notes) for name, of in names}
    if isinstance(shape, tuple):
        return read_section(read_plain(value, dict, at), shape, at, notes)
    return read_plain(value, shape, at)


def read_setting(value: Any, row: Setting, at: str, notes: list[str]) -> Any:
    if value is None and row.default is None:
        return None
    found = read_shape(row.default if value is None else value, row.shape, at, notes)
    if isinstance(row.allowed, range) and found not in row.allowed:
        raise bad_setting(at, value, f"{row.allowed[0]} to {row.allowed[-1]}")
    if isinstance(row.allowed, dict):
        words, found = row.allowed, row.allowed.get(found.strip().lower())
        if found is None:
            raise bad_setting(at, value, ", ".join(dict.fromkeys(words.values())))
    try:
        return row.clean(found) if row.clean else found
    except ValueError as exc:
        raise bad_setting(at, value, str(exc)) from exc


def rows_under(rows: tuple[Setting, ...], section: str) -> tuple[Setting, ...]:
    """Return the rows of a section, their keys without its name."""
    head = f"{section}."
    return tuple(row._replace(key=row.key[len(head) :]) for row in rows if row.key.startswith(head))


def read_section(data: Json, rows: tuple[Setting, ...], at: str, notes: list[str]) -> Json:
    """Read a mapping: complete, in the order of the rows, unknown keys kept at the end."""
    plain = {row.key: row for row in rows if "." not in row.key}
    found: Json = {}
    for name in dict.fromkeys(row.key.partition(".")[0] for row in rows):
        here, value = f"{at}.{name}".lstrip("."), data.get(name)
        if name in plain:
            found[name] = read_setting(value, plain[name], here, notes)
        else:
            within = read_plain(value, dict, here)
            found[name] = read_section(within, rows_under(rows, name), here, notes)
    extra = {name: value for name, value in data.items() if name not in found}
    for name in extra:
        here = f"{at}.{name}".lstrip(".")
        notes.append(f"{here} is not a known key{slip(name, found)}")
    return {name: value for name, value in found.items() if value is not None} | extra


def keys_added(entries: list[Json], keys: list[str], rows: tuple[Setting, ...]) -> list[Json]:
    """Return `entries` and an entry for each of the `keys` that they lack."""
    known = {entry["api-key"] for entry in entries}
    fresh = [key for key in dict.fromkeys(map(str.strip, keys)) if key and key not in known]
    return [*entries, *(read_section({"api-key": key}, rows, "", []) for key in fresh)]


def legacy_keys(providers: Any, notes: list[str]) -> list[str]:
    """Return the client keys of the old `auth.providers`: a list, or a mapping by type."""
    if isinstance(providers, dict):
        named = read_shape(providers, Named(dict), "auth.providers", notes)
        providers = [{**row, "type": kind} for kind, row in named.items()]
    for row in read_shape(providers, Items(AUTH_PROVIDER), "auth.providers", notes):
        if row["type"] == "config-api-key":
            entries = [entry["api-key"] for entry in row["api-key-entries"]]
            return clean_texts([*row["api-keys"], *entries])
    return []


def migrate(data: Json, notes: list[str]) -> None:
    """Move what is spelled as it once was to where it belongs now. Source: spec/config.md 3."""
    if "amp-upstream-url" in data:  # its documentation promised it
        data.setdefault("amp-restrict-management-to-localhost", True)
    for row in SETTINGS:
        if row.status == "old" and row.help:
            move_setting(data, row.key, row.help, notes)
    legacy = legacy_keys(data.pop("auth").get("providers"), notes)
    data["api-keys"] = data["api-keys"] or legacy
    old_keys = data.pop("generative-language-api-key", [])
    data["gemini-api-key"] = keys_added(data["gemini-api-key"], old_keys, API_KEY)
    data["openai-compatibility"] = usable_endpoints(data["openai-compatibility"], notes)


def move_setting(data: Json, old: str, new: str, notes: list[str]) -> None:
    """Move what stands at an old key to its new one, unless something else is there already."""
    value = data.pop(old, None)
    if value is None:
        return
    section, _, key = new.rpartition(".")
    home = data[section] if section else data
    home[key] = value if isinstance(value, bool) else home[key] or value
    notes.append(f"{old} is an old spelling of {new}")


def usable_endpoints(endpoints: list[Json], notes: list[str]) -> list[Json]:
    """Return the endpoints that have an address, their keys where they belong now."""
    usable = []
    for at, row in enumerate(endpoints):
        old_keys = row.pop("api-keys", [])
        row["api-key-entries"] = keys_added(row["api-key-entries"], old_keys, KEY_ENTRY)
        if row["base-url"] or row["name"].lower() in PRESETS:
            usable.append(row)
        else:
            why = "it has no usable base-url, and its name is not one we know"
            notes.append(f"openai-compatibility[{at}] is ignored: {why}")
    return usable


def decode_rules(payload: Json, key: str, notes: list[str]) -> None:
    """Decode the values of raw payload rules, texts of JSON, and leave out those that are none."""
    kept = []
    for at, rule in enumerate(payload[key]):
        params: Json = {}
        for path, value in rule["params"].items():
            try:
                params[path] = json.loads(value) if isinstance(value, str) else value
            except ValueError as exc:
                notes.append(f"payload.{key}[{at}].params.{path} is ignored: it is no JSON: {exc}")
        if params:
            kept.append({**rule, "params": params})
    payload[key] = kept


def drop_bad_patterns(mappings: list[Json], notes: list[str]) -> None:
    """Leave out the model mappings whose regular expression is none."""
    for row in [row for row in mappings if row["regex"]]:
        try:
            clean_pattern(row["from"])
        except ValueError as exc:
            mappings.remove(row)
            notes.append(f"ampcode.model-mappings: {row['from']!r} is ignored: it should be {exc}")


def no_duplicates(pairs: list[tuple[str, Any]]) -> Json:
    data: Json = {}
    for name, value in pairs:
        if name in data:
            raise ValueError(f"the key {name!r} is there twice")
        data[name] = value
    return data


def yaml_read(text: str) -> Any:
    """Decode YAML 1.2 as far as settings need it: dates, octals and `yes` stay texts.

    What is beyond the plain subset is pyyaml's, where it is installed. Raises ValueError with the
    position, and without what stands there: it may be a secret.
    """
    try:
        return read_yaml(text)
    except (ValueError, RecursionError) as exc:
        plain = str(exc)
    try:
        import yaml  # noqa: PLC0415 -- an optional extra
    except ImportError as exc:
        raise ValueError(f"{plain}; {NO_YAML}") from exc

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers = {}  # noqa: RUF012

        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            seen = {"<<"}
            for name, _ in node.value:
                if name.value in seen and name.value != "<<":
                    line = name.start_mark.line + 1
                    raise ValueError(f"the key {name.value!r} is there twice: line {line}")
                seen.add(name.value)
            return node

    for tag, pattern, first in YAML_SCALARS:
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"(?:{pattern})\Z"), list(first))
    try:
        return json.loads(json.dumps(yaml.load(text, Loader)))  # noqa: S506 -- keys become texts
    except yaml.MarkedYAMLError as exc:
        line = exc.problem_mark.line + 1 if exc.problem_mark else 0
        raise ValueError(f"{exc.problem}: line {line}") from None
    except (yaml.YAMLError, TypeError) as exc:
        raise ValueError(str(exc)) from None


class Config:
    """A complete snapshot of the settings. Nobody changes it: a new one replaces it."""

    def __init__(self, path: Path | None, data: Json, warnings: tuple[str, ...]) -> None:
        self.path = path
        self.data = data
        self.warnings = warnings
        self._found: Json = {}  # by dotted key: each request asks for the same few

    def __getitem__(self, key: str) -> Any:
        """Return a setting by its dotted key, or a whole section."""
        if key not in self._found:
            self._found[key] = reduce(operator.getitem, key.split("."), self.data)
        return self._found[key]


class Source(NamedTuple):
    """Where the settings are read from; without a path all are the defaults.

    One that merely lay in the working directory is not `trusted`: anybody may have put it there.
    """

    path: Path | None = None
    trusted: bool = True


ENDS = ("json", "yaml", "yml")  # of settings files


def home_folders() -> list[Path]:
    """Return the folders whose settings files are the owner's: of the script, and of the user."""
    beside = Path(__file__).resolve().parent
    installed = {"site-packages", "dist-packages"}.intersection(beside.parts)
    shared = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    own = [Path(AUTH_DIR).expanduser(), Path(shared).expanduser() / "cliproxy"]
    return own if installed else [beside, *own]


def likely_sources() -> Iterator[Source]:
    """Yield where settings may be, what counts first in front."""
    for folder, name in itertools.product(home_folders(), ("config", "cliproxy")):
        yield from (Source(folder / f"{name}.{end}") for end in ENDS)
    for name in ("cliproxy", "config"):
        yield from (Source(Path(f"{name}.{end}"), trusted=False) for end in ENDS)


def find_config(argument: str | None) -> Source:
    """Return the settings file: the one asked for, or the first that is where it may be."""
    if argument:
        return Source(Path(argument).expanduser())
    found = (source for source in likely_sources() if source.path and is_there(source.path))
    return next(filter(is_ours, found), Source())


def is_ours(source: Source) -> bool:
    """Tell whether a file is for this program; of one that lay about under a common name, say why not."""
    file = source.path
    why = why_foreign(file) if file and file.stem == "config" and not source.trusted else ""
    if why:
        log.warning("%s of this folder is not read: %s; name it with --config if it is meant", file, why)
    return not why


def is_there(file: Path) -> bool:
    """Tell whether there is such a file. Raises ProxyError if that cannot be known."""
    try:
        return file.is_file()
    except OSError as exc:
        message = f"cannot look into {file.parent}: {exc.strerror}; name a settings file with --config"
        raise ProxyError("invalid_request", message) from exc


def why_foreign(file: Path) -> str:
    """Say why a config.json or config.yaml, as many programs have one, is not ours; empty if it is."""
    try:
        text = read_file(file)
        if not text.strip():
            return "it holds no settings"
        raw = read_plain(decode_settings(file, text), dict, "the file")
        parse_config(file, text)
    except (ProxyError, ValueError, RecursionError) as exc:
        return str(exc).removeprefix(f"{file}: ")
    keys = {row.key.partition(".")[0] for row in SETTINGS}
    unknown = [key for key in raw if key not in keys]
    if unknown:
        return f"{unknown[0]!r} is no setting of cliproxy"
    return "" if raw else "it holds no settings"


def decode_settings(path: Path | None, text: str) -> Any:
    """Decode JSON or YAML. Raises ValueError."""
    return yaml_read(text) if is_yaml(path, text) else json.loads(text, object_pairs_hook=no_duplicates)


def is_yaml(path: Path | None, text: str) -> bool:
    """Tell how a file of settings is to be read."""
    return not (text.lstrip().startswith("{") or (path and path.suffix == ".json"))


def drop_addresses(data: Json, notes: list[str]) -> None:
    """Leave out where tokens of logins would go: a file that lay about does not decide that."""
    amp = data["ampcode"]
    for name, provider in data["providers"].items():
        for key in [key for key, value in provider.items() if key.endswith("-url") and value]:
            provider[key] = ""
            notes.append(f"providers.{name}.{key} is ignored: {UNTRUSTED}")
    if amp["upstream-url"] and not amp["upstream-api-key"]:
        amp["upstream-url"] = ""
        notes.append(f"ampcode.upstream-url is ignored: {UNTRUSTED}")


UNTRUSTED = "tokens go where a file of the working directory says only if --config names it"


def as_ours(data: Any, notes: list[str]) -> Any:
    """Return settings in our words, though they are LiteLLM's or claude-code-router's."""
    kind = foreign_kind(data)
    if not kind:
        return data
    settings, told = read_foreign(kind, data, os.environ)
    notes.append(f"this is a configuration of {FOREIGN[kind].owner}, read as ours")
    notes.extend(told)
    return settings


def parse_config(path: Path | None, text: str, *, trusted: bool = True) -> Config:
    """Check the text of a settings file. Raises ProxyError: the file, the key, what is allowed."""
    notes: list[str] = []
    try:
        raw = as_ours(decode_settings(path, text), notes)
        dumps_text(raw).encode()  # half a surrogate could be neither sent nor shown
        data = read_section(read_plain(raw, dict, "the file"), SETTINGS, "", notes)
        migrate(data, notes)
        drop_bad_patterns(data["ampcode"]["model-mappings"], notes)
        for key in ("default-raw", "override-raw"):
            decode_rules(data["payload"], key, notes)
        if not trusted:
            drop_addresses(data, notes)
    except (ProxyError, ValueError, RecursionError) as exc:
        param = getattr(exc, "param", "")
        raise ProxyError("invalid_request", f"{path}: {exc}", param=param) from exc
    data["auth-dir"] = str(Path(data["auth-dir"]).expanduser())
    if secret_keys(data["api-keys"]) != data["api-keys"]:
        notes.append(
            "api-keys holds a key of an example: anybody can guess it, and other machines may not use it"
        )
    return Config(path, data, tuple(f"{path}: {note}" for note in notes))


def read_file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as exc:
        raise ProxyError("invalid_request", f"{path}: cannot be read: {exc}") from exc


def load_config(path: Path | None, *, trusted: bool = True) -> Config:
    """Read the settings; without a file, or with an empty one, all are the defaults."""
    text = read_file(path) if path else ""
    return parse_config(path, text if text.strip() else "{}", trusted=trusted)


def file_stamp(path: Path) -> tuple[int, int, int] | None:
    """Return what changes when a file is edited or replaced; None if there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


AT_START = ("host", "port", "tls", "auth-dir")
# keys that guides and examples print: on the network they are as good as none
EXAMPLE_KEY = re.compile(
    r"(sk-)?((litellm|local|my)-)*your[-_].*key.*|sk-litellm(-local)?-master|dummy(-not-used|-key)?|change-?me|sk-(1234|xxx+)"
)


def secret_keys(keys: Iterable[str]) -> list[str]:
    """Return the client keys that are not printed in everybody's guide."""
    return [key for key in keys if not EXAMPLE_KEY.fullmatch(key.lower())]


def check_exposure(config: Config) -> None:
    """Refuse to serve other machines without client keys."""
    if not is_loopback(config["host"]) and not secret_keys(config["api-keys"]):
        where = f"host {config['host']}" if config["host"] else "an empty host"
        own = " of your own (anybody can guess those of examples)" if config["api-keys"] else ""
        message = f"{where} lets other machines in: add a key{own} to api-keys, or set host to 127.0.0.1"
        raise ProxyError("invalid_request", message, param="api-keys")


def remarks(config: Config) -> list[str]:
    """Return what an owner should know of settings that are in order otherwise."""
    found = [f"{place} sends a key to {host} unencrypted" for place, host in open_places(config)]
    later = [row.key for row in SETTINGS if row.status == "later" and config[row.key] != row.default]
    idle = [row.key for row in SETTINGS if row.status == "unused" and is_set(config.data, row.key)]
    if later:
        found.append(f"not supported yet, and without effect: {', '.join(later)}")
    if idle:
        found.append(f"without any effect here: {', '.join(idle)}")
    return found


def is_set(data: Json, key: str) -> bool:
    """Tell whether a dotted key that has no default holds anything."""
    section, _, name = key.rpartition(".")
    home = data.get(section, {}) if section else data
    return home.get(name) not in (None, False, "", 0)


KEYED = ("claude-api-key", "codex-api-key", "gemini-api-key", "vertex-api-key", "openai-compatibility")


def open_places(config: Config) -> Iterator[tuple[str, str]]:
    """Yield (setting, host) for each key that goes to another machine over plain http."""
    urls = [
        (f"{key}[{at}]", row["base-url"])
        for key in KEYED
        for at, row in enumerate(config[key])
        if row.get("api-key") or any(entry["api-key"] for entry in row.get("api-key-entries", ()))
    ]
    for place, url in [*urls, ("ampcode.upstream-url", config["ampcode.upstream-url"])]:
        host = urlsplit(url).hostname or ""
        if url.startswith("http://") and not is_loopback(host):
            yield place, host


class ConfigFile:
    """The settings as they are now; a bad edit keeps those that were. One thread polls.

    `overrides` are settings of the command line: they outrank the file, as does the host that is
    listened on by now.
    """

    def __init__(self, path: Path | None, overrides: Json = EMPTY, *, trusted: bool = True) -> None:
        self._stamp = file_stamp(path) if path else None
        self._trusted = trusted
        self.config = load_config(path, trusted=trusted)
        self._said = {key: self.config.data[key] for key in AT_START}  # by the file, as it was last
        self.config.data.update(overrides)
        self._overrides = {**overrides, "host": self.config.data["host"]}

    def poll(self) -> bool:
        """Look at the file; True if there are other settings now. Replacing it by rename counts."""
        path = self.config.path
        stamp = file_stamp(path) if path else None
        if path is None or stamp in {None, self._stamp}:
            return False
        self._stamp = stamp  # taken before reading: an edit in between is seen the next time
        try:
            text = read_file(path)
            if not text.strip():
                return False  # it is being written
            fresh = parse_config(path, text, trusted=self._trusted)
            said = {key: fresh.data[key] for key in AT_START}
            fresh.data.update(self._overrides)
            check_exposure(fresh)
        except ProxyError as error:
            log.warning("%s; the settings stay as they were", error)
            return False
        late = [key for key in AT_START if said[key] != self._said[key]]
        before, self.config = self.config.data, fresh
        self._said = said
        keys = dict.fromkeys([*fresh.data, *before])
        changed = [key for key in keys if fresh.data.get(key) != before.get(key)]
        self._tell(changed, late)
        return bool(changed)

    def _tell(self, changed: list[str], late: list[str]) -> None:
        """Leave in the log what an edit did, and what of it waits for the next start."""
        path = self.config.path
        for warning in self.config.warnings:
            log.warning("%s", warning)
        if changed:
            log.info("%s was read again; changed: %s", path, ", ".join(changed))
        for key in late:
            log.warning("%s: %s takes effect at the next start", path, key)


def shape_name(shape: Any) -> str:
    """Say in words what a value must be."""
    if isinstance(shape, Items):
        return "list of texts" if shape.of is str else "list"
    if isinstance(shape, (Named, tuple)):
        return "mapping"
    return SHAPES[shape][2].removeprefix("a ")


def in_effect(rows: Iterable[Setting]) -> list[Setting]:
    return [row for row in rows if row.status in {"", "new"}]


def reference_lines(
    rows: Iterable[Setting], indent: str, told: list[tuple[list[Setting], str]], at: str = ""
) -> Iterator[str]:
    """Yield a line a key; a record that was told of already is only referred to."""
    for row in rows:
        numeric = row.shape is int or (row.shape is float and row.default is not None)
        default = f", {dumps_text(row.default)}" if row.default or numeric else ""
        mark = " *(not in CLIProxyAPI)*" if row.status else ""
        record = row.shape
        while isinstance(record, (Items, Named)):
            record = record.of
        shown = in_effect(record) if isinstance(record, tuple) else []
        same = next((f"; keys as in `{key}`" for known, key in told if shown == known), "")
        yield f"{indent}- `{row.key}` ({shape_name(row.shape)}{default}): {row.help}{same}{mark}"
        if shown and not same:
            told.append((shown, at + row.key))
            yield from reference_lines(shown, indent + "  ", told, f"{at}{row.key}.")


def config_reference() -> str:
    """Return the keys that have an effect, their defaults and meaning, as a Markdown list."""
    return "\n".join(reference_lines(in_effect(SETTINGS), "", [])) + "\n"


def example_config() -> str:
    """Return a settings file that holds every key with its default."""
    return json.dumps(read_section({}, tuple(in_effect(SETTINGS)), "", []), indent=2) + "\n"


########################################################################################
# 17. NETWORK
########################################################################################
# Bytes on sockets, the same way on both sides: strict heads, bodies, a pool of idle upstream
# connections, proxies, TLS. http.client and email would cost five times the CPU a request
# (spec/performance.md, lessons 1 to 4). Foreign exceptions leave this room as ProxyError.

HEAD_LIMIT = 65_536  # bytes
AHEAD_LIMIT = 131_072  # bytes that a client may send ahead of its answer
AHEAD_READS = 256  # reads in one look whether it has left
BODY_LIMIT = 100 * 2**20  # bytes, of a client's request, also when unpacked
ERROR_LIMIT = 2**20  # bytes of an upstream's refusal; a larger one is only its status
STREAM_LIMIT = 2**30  # bytes of a stream that is packed, on either side
CODINGS = 2  # content encodings of one body
PORTION = 2**20  # bytes that are unpacked at a time
PIECE = 65_536  # bytes of one recv
JOIN_LIMIT = 65_536  # bytes: a smaller body is sent in one piece with its head
TICK = 0.5  # seconds between looks at the client while an upstream is silent
CONNECT_TIMEOUT = 15.0  # seconds
SILENCE_LIMIT = 600.0  # seconds without a byte from an upstream; long thinking is silent
SEND_TIMEOUT = 60.0  # seconds that a peer may refuse to take more bytes
BLANK_TIMEOUT = 120.0  # seconds that blank lines may take the place of a head
HEAD_TIMEOUT = 30.0  # seconds that a head may take from its first byte on
BODY_TIMEOUT = 60.0  # seconds of a client's body after which its average pace counts:
SLOWEST = 1_000.0  # bytes a second
LINE_LIMIT = 4_096  # bytes of one line between chunks
HEADER_COUNT = 256  # header lines of one head
INTERIM_COUNT = 32  # answers before the answer, as 100 Continue
GROWTH = 4 * 2**20  # bytes of a body for which memory is taken before they have come
IDLE_LIMIT = 55.0  # seconds that an idle upstream connection is kept
FRESH = 1.0  # seconds of idleness after which a connection is looked at before it is used
IDLE_COUNT = 128  # idle connections kept for one origin

CONTROLS = bytes(set(range(32)) - set(b"\t\r\n")) + b"\x7f"
HEADER = re.compile(r"\n([!#$%&'*+.^_`|~0-9A-Za-z-]+):(.*)")  # RFC 9112 5, RFC 9110 5.6.2
TLS_HELLO = b"\x16\x03"
HEX = re.compile(rb"[0-9A-Fa-f]{1,15}")
HOP_BY_HOP = frozenset(
    "connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer"
    " transfer-encoding upgrade".split()
)
Headers = dict[str, str]  # names in lower case; repeated ones joined by a comma


def parse_head(head: bytes) -> tuple[str, Headers]:
    """Split a message head, without its blank line, into the first line and the headers.

    Raises ValueError for what request smuggling is made of: control characters, bare CR or LF,
    folded lines, names that are no tokens, repeated lengths or hosts. Source: RFC 9112.
    """
    if len(head.translate(None, CONTROLS)) != len(head):
        raise ValueError("a control character in the head")
    text = head.decode("latin-1")
    found = HEADER.findall(text)
    if not len(found) == head.count(b"\r") == head.count(b"\n") == head.count(b"\r\n"):
        raise ValueError("a bare CR or LF, a folded line, or a line that is no header")
    if len(found) > HEADER_COUNT:
        raise ValueError(f"more than {HEADER_COUNT} header lines")
    headers: Headers = {}
    for raw, value in found:
        name = raw.lower()
        if name not in headers:
            headers[name] = value.strip(" \t\r")
        elif name in {"content-length", "host", "transfer-encoding"}:
            raise ValueError(f"{name!r} is given twice")
        else:
            headers[name] += ", " + value.strip(" \t\r")
    return text.partition("\r\n")[0], headers


def body_length(headers: Headers) -> int | None:
    """Return the length that the headers announce, None for a chunked body, 0 for none.

    Raises ValueError for a length that is no plain number, for a length beside chunks, and for
    a transfer encoding other than `chunked`.
    """
    length, encoding = headers.get("content-length"), headers.get("transfer-encoding")
    if encoding is not None:
        if length is not None:
            raise ValueError("both content-length and transfer-encoding")
        if encoding.lower() != "chunked":
            raise ValueError(f"transfer-encoding {encoding!r} is not supported")
        return None
    if length is None:
        return 0
    if not (length.isascii() and length.isdigit() and len(length) < 16):
        raise ValueError(f"content-length {length[:40]!r} is not a number")
    return int(length)


class Chunks:
    """Decodes a chunked body, fed with bytes cut anywhere. Source: RFC 9112 7.1."""

    def __init__(self) -> None:
        self.done = False
        self.rest = b""  # an incomplete line; once done, what follows the body
        self._left = 0  # payload bytes of the open chunk still to come
        self._expect = "size"  # which line comes next: size, close (of a payload), trailer
        self._spare = HEAD_LIMIT  # bytes that trailers and extensions may still have

    def feed(self, data: bytes) -> bytes:
        """Return the payload in `data`. Raises ValueError for what is not chunked."""
        if self.rest:
            data = self.rest + data
        pieces, at = [], 0
        while not self.done:
            if self._left:
                piece = data[at : at + self._left]
                if not piece:
                    break
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
            else:
                stop = data.find(b"\r\n", at)
                if stop < 0:
                    break
                self._line(data[at:stop])
                at = stop + 2
        self.rest = data[at:]
        if not self.done and len(self.rest) > LINE_LIMIT:
            raise ValueError("an endless line in a chunked body")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def end(self) -> None:
        raise ConnectionError("the last chunk is missing")

    def _line(self, line: bytes) -> None:
        if self._expect == "size":
            size, _, extension = line.partition(b";")
            size = size.strip(b" \t")
            if extension:
                self._spend(extension)
            if not HEX.fullmatch(size):
                raise ValueError(f"{line[:40]!r} is not a chunk size")
            self._left = int(size, 16)
            self._expect = "close" if self._left else "trailer"
        elif self._expect == "trailer":
            self._spend(line)
            self.done = not line
        elif line:
            raise ValueError("a chunk is longer than its size")
        else:
            self._expect = "size"

    def _spend(self, line: bytes) -> None:
        """Allow what nobody reads, within limits, but nothing that ends a line for others."""
        self._spare -= len(line)
        if self._spare < 0 or len(line.translate(None, CONTROLS + b"\r\n")) != len(line):
            raise ValueError("a bad extension or trailer in a chunked body")


class Plain:
    """A body of `length` bytes, fed with bytes cut anywhere; of None: until the connection ends."""

    def __init__(self, length: int | None) -> None:
        self.done = length == 0
        self.rest = b""  # what follows the body
        self._left = length

    def feed(self, data: bytes) -> bytes:
        """Return the payload in `data`."""
        if self._left is None:
            return data
        if len(data) > self._left:
            data, self.rest = data[: self._left], data[self._left :]
        self._left -= len(data)
        self.done = not self._left
        return data

    def end(self) -> None:
        if self._left is not None:
            raise ConnectionError(f"{self._left} bytes are missing")
        self.done = True


class CodingError(ValueError):
    """A content encoding that nothing here can undo."""


class Deflate:
    """Undoes `deflate`: within zlib's frame, as it should be, or without, as some send it. RFC 9110 8.4.1.2."""

    def __init__(self) -> None:
        self.eof = False
        self.unused_data = self.unconsumed_tail = b""
        self._plain: Any = None  # made when the first byte has come

    def decompress(self, piece: bytes, limit: int) -> bytes:
        """Undo a piece, into `limit` bytes at most; what is left of it is `unconsumed_tail`."""
        if self._plain is None and piece:
            framed = piece[0] & 15 == 8 or piece[0] == 0x1F  # of zlib, of gzip
            self._plain = zlib.decompressobj(zlib.MAX_WBITS | 32 if framed else -zlib.MAX_WBITS)
        if self._plain is None:
            return b""
        data: bytes = self._plain.decompress(piece, limit)
        self.eof, self.unused_data = self._plain.eof, self._plain.unused_data
        self.unconsumed_tail = self._plain.unconsumed_tail
        return data


ZSTD_MODULES = ("compression.zstd", "backports.zstd")  # of Python 3.14, of a package for older ones
ZSTD_LIBRARIES = (  # what most systems have
    "libzstd.so.1", "libzstd.1.dylib", "/opt/homebrew/lib/libzstd.1.dylib", "/usr/local/lib/libzstd.1.dylib", "libzstd.dll",
)  # fmt: skip


@functools.cache
def zstd_library(names: tuple[str, ...]) -> Any:
    """Return the first of these libraries that this machine has; None if it has none."""
    for name in names:
        with contextlib.suppress(ImportError, OSError):
            import ctypes  # noqa: PLC0415 -- seldom needed, and some Pythons lack it

            library = ctypes.CDLL(name)
            library.ZSTD_createDStream.restype = ctypes.c_void_p
            library.ZSTD_freeDStream.argtypes = [ctypes.c_void_p]
            library.ZSTD_decompressStream.argtypes = [ctypes.c_void_p] * 3
            library.ZSTD_decompressStream.restype = ctypes.c_size_t
            library.ZSTD_isError.argtypes = [ctypes.c_size_t]
            return library
    return None


class Zstd:
    """Undoes zstd with the system's library, as the decompressors of Python do."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._stream = library.ZSTD_createDStream()
        self.eof = False
        self.unused_data = self.unconsumed_tail = b""

    def __del__(self) -> None:
        self._library.ZSTD_freeDStream(self._stream)

    def decompress(self, piece: bytes, limit: int) -> bytes:
        """Undo a piece, into `limit` bytes at most; what is left of it is `unconsumed_tail`."""
        import ctypes  # noqa: PLC0415 -- as above

        room, given = ctypes.create_string_buffer(limit), ctypes.create_string_buffer(piece, len(piece) or 1)
        buffer = ctypes.c_size_t * 3  # where it is, its size, how much of it is done
        out = buffer(ctypes.addressof(room), limit, 0)
        source = buffer(ctypes.addressof(given), len(piece), 0)
        left = self._library.ZSTD_decompressStream(self._stream, ctypes.byref(out), ctypes.byref(source))
        if self._library.ZSTD_isError(left):
            raise ValueError("it is no zstd")
        self.eof = left == 0
        rest = piece[source[2] :]
        if self.eof:
            self.unused_data, self.unconsumed_tail = rest, b""
        else:
            self.unconsumed_tail = rest
        return ctypes.string_at(room, out[2])


def zstd_unpacker() -> Any:
    for name in ZSTD_MODULES:
        with contextlib.suppress(ImportError):
            return importlib.import_module(name).ZstdDecompressor()
    library = zstd_library(ZSTD_LIBRARIES)
    if library is None:
        raise CodingError(
            "zstd needs Python 3.14, the package backports.zstd or the library libzstd here, or a client"
            " that does not pack its requests (Codex: [features] enable_request_compression = false)"
        )
    return Zstd(library)


def unpacker(encoding: str) -> Any:
    """Return an object whose `decompress(data, limit)` undoes a content encoding.

    Knows gzip, deflate and, where something on this machine does, zstd. Raises CodingError for others.
    """
    if encoding in {"gzip", "x-gzip"}:
        return zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip or zlib, by their magic
    if encoding == "deflate":
        return Deflate()
    if encoding == "zstd":
        return zstd_unpacker()
    raise CodingError(f"content-encoding {encoding!r} is not supported: send it as gzip, as zstd or as it is")


class TooLargeError(ValueError):
    """A body that is larger than it may be, packed or unpacked."""


def portions(unpacking: Any, piece: bytes) -> Iterator[bytes]:
    """Yield what becomes of a piece, in portions, however small the piece and large the rest."""
    more = True
    while more:
        try:
            data = unpacking.decompress(piece, PORTION)
        except Exception as exc:  # zlib.error and ZstdError share no base
            raise ValueError(f"the packed body is damaged: {exc}") from exc
        if data:
            yield data
        piece = getattr(unpacking, "unconsumed_tail", b"")  # zstd keeps it
        more = not unpacking.eof and bool(piece or len(data) == PORTION)
    if unpacking.unused_data:
        raise ValueError("more bytes follow the end of the packed body")


def inflated(pieces: Iterable[bytes], encoding: str, limit: int) -> Iterator[bytes]:
    """Undo one content encoding of a body that comes in pieces.

    Raises ValueError if it is damaged, cut, or more follows it; TooLargeError for more than `limit`
    bytes on either side.
    """
    unpacking, piece = unpacker(encoding), None
    packed = whole = 0
    for piece in pieces:
        packed += len(piece)
        for data in portions(unpacking, piece):
            whole += len(data)
            check_size(whole, limit)
            yield data
        check_size(packed, limit)
    if piece is not None and not unpacking.eof:
        raise ValueError(f"the {encoding} body is cut off")


def check_size(size: int, limit: int) -> None:
    if size > limit:
        raise TooLargeError(f"the packed or unpacked body is larger than {limit:,} bytes")


def unpacked(pieces: Iterable[bytes], encoding: str, limit: int) -> Iterable[bytes]:
    """Undo the content encodings that a header names, CODINGS at most. Raises as `inflated` does."""
    names = [name.strip() for name in encoding.lower().split(",")]
    names = [name for name in names if name not in {"", "identity"}]
    if len(names) > CODINGS:
        raise ValueError(f"more than {CODINGS} content encodings")
    for name in reversed(names):
        pieces = inflated(pieces, name, limit)
    return pieces


def unpack(data: bytes, encoding: str, limit: int = BODY_LIMIT) -> bytes:
    """Undo the content encodings of a whole body.

    Raises ValueError if that cannot be done, ProxyError("too_large") for more than `limit` bytes.
    """
    try:
        return b"".join(unpacked([data], encoding, limit))
    except TooLargeError as exc:
        raise ProxyError("too_large", str(exc)) from exc


TIMEOUTS = (BlockingIOError, socket.timeout)


class HeadError(ProxyError, ValueError):
    """A head that is not even taken apart: of a client an error like others, else a mistake."""


Bytes = Union[bytes, bytearray, memoryview]


class Wire:
    """One connection and the bytes read ahead from it. One thread at a time uses it.

    A read or write without progress calls `idle` every `patience` seconds, which may raise.
    """

    def __init__(self, sock: socket.socket, patience: float) -> None:
        self.sock = sock
        self.tls = hasattr(sock, "selected_alpn_protocol")
        self.rest = b""
        self.spoilt = False  # was something thrown away that was read ahead?
        self.since = 0.0  # time.monotonic() when it became idle
        self.silent = 0.0  # seconds since the last progress
        self.answered = False  # has a byte of the awaited message come?
        self.set_patience(patience)

    def set_patience(self, seconds: float) -> None:
        """Let a recv() or send() wait so long, then raise one of TIMEOUTS.

        A plain socket stays blocking, which saves a poll() a call; TLS knows no such options.
        """
        self.patience = seconds
        self.blocks = sys.platform != "win32" and not self.tls
        self.sock.settimeout(None if self.blocks else seconds)
        if self.blocks:
            wait = struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6))
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, wait)
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, wait)

    def patiently(self, step: Callable[[Any], Any], argument: Any, idle: Callable[[], None]) -> Any:
        """Return what a step of the socket's brings, called again until there is progress."""
        while True:
            try:
                result = step(argument)
            except TIMEOUTS:
                self.silent += self.patience
                idle()
            else:
                self.silent = 0.0
                return result

    def recv(self, idle: Callable[[], None]) -> bytes:
        """Return the next bytes, b"" at the end."""
        data, self.rest = self.rest, b""
        return data or self.patiently(self.sock.recv, PIECE, idle)

    def peek(self) -> bytes | None:
        """Return what has come but was not asked for: None if nothing has, b"" for the end.

        Never waits, and keeps the bytes. Reading is the only way to see through TLS.
        """
        if self.rest:
            return self.rest
        self.sock.settimeout(0.0)
        try:
            self.rest = self.sock.recv(PIECE)
        except OSError as exc:
            return None if nothing_yet(exc) else b""
        finally:
            self.sock.settimeout(None if self.blocks else self.patience)
        return self.rest

    def ended(self) -> bool:
        """Tell whether the peer has left, past what it has sent already. Never waits.

        More than AHEAD_LIMIT bytes are not kept: the connection is then of no further use.
        """
        self.sock.settimeout(0.0)
        try:
            for _ in range(AHEAD_READS):
                more = self.sock.recv(PIECE)
                if not more:
                    return True
                self.spoilt = self.spoilt or len(self.rest) + len(more) > AHEAD_LIMIT
                self.rest = b"" if self.spoilt else self.rest + more
        except OSError as exc:
            return not nothing_yet(exc)
        finally:
            self.sock.settimeout(None if self.blocks else self.patience)
        return False

    def read_head(self, idle: Callable[[], None]) -> bytes | None:
        """Return the next head without its blank line, None if the peer closed before it.

        Blank lines in front of it are passed over, but not for ever. Raises HeadError if it is too
        large or too slow, ConnectionError if it breaks off.
        """
        now = time.monotonic()
        data = self.rest.lstrip(b"\r\n")
        end = now + (HEAD_TIMEOUT if data else BLANK_TIMEOUT)
        self.answered = bool(data)
        while (stop := data.find(b"\r\n\r\n", 0, HEAD_LIMIT)) < 0:
            if now > end and not data:
                return None
            if data:
                check_begun(data, late=now > end)
            self.rest = b""
            more = self.recv(idle)
            if not more and not data:
                return None
            if not more:
                raise ConnectionError("the connection broke off in a head")
            self.answered = True
            now = time.monotonic()
            if data:
                data += more
            elif data := more.lstrip(b"\r\n"):
                end = now + HEAD_TIMEOUT
        self.rest = data[stop + 4 :]
        return data[:stop]

    def read(self, body: Chunks | Plain, idle: Callable[[], None]) -> bytes:
        """Return what of a body comes next, perhaps nothing. Raises ValueError, ConnectionError."""
        data = self.recv(idle)
        if not data:
            body.end()
        payload = body.feed(data)
        if body.done:
            self.rest = body.rest
        return payload

    def read_exactly(self, length: int, idle: Callable[[], None]) -> bytes | bytearray:
        """Return `length` bytes, not copied if they are many. Raises ConnectionError, ProxyError."""
        ahead, self.rest = self.rest[:length], self.rest[length:]
        if len(ahead) == length:
            return ahead
        begun, at = time.monotonic(), len(ahead)
        whole = bytearray(min(length, GROWTH))
        whole[:at] = ahead
        while at < length:
            if at == len(whole):
                whole += bytes(min(length - at, at))  # no memory for mere promises
            count = self.patiently(self.sock.recv_into, memoryview(whole)[at:], idle)
            if not count:
                raise ConnectionError("the peer closed the connection in a body")
            at += count
            check_pace(begun, at)
        return whole

    def read_chunked(self, limit: int, idle: Callable[[], None]) -> bytearray:
        """Return a whole chunked body. Raises ValueError, ConnectionError, ProxyError."""
        whole, chunks = bytearray(), Chunks()
        begun = time.monotonic()
        while not chunks.done:
            whole += self.read(chunks, idle)
            if len(whole) > limit:
                raise ProxyError("too_large", f"the body is larger than {limit:,} bytes")
            check_pace(begun, len(whole))
        return whole

    def send(self, pieces: Iterable[Bytes], idle: Callable[[], None]) -> None:
        """Send all pieces. On TLS in small ones: a large one would wait for its last byte."""
        for piece in pieces:
            view = memoryview(piece)
            while view:
                part = view[:PIECE] if self.tls else view
                view = view[self.patiently(self.sock.send, part, idle) :]

    def close(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            if self.tls:
                self.sock.settimeout(0.0)
                self.sock.unwrap()  # type: ignore[attr-defined]  # says goodbye, and does not wait
        with contextlib.suppress(OSError):
            self.sock.close()


def check_begun(head: bytes, *, late: bool) -> None:
    """Refuse the beginning of a head that is too large, too slow, or none. Raises HeadError."""
    if len(head) >= HEAD_LIMIT:
        raise HeadError("head_too_large", f"a head is larger than {HEAD_LIMIT:,} bytes")
    if late:
        raise HeadError("caller_timeout", f"a head took more than {HEAD_TIMEOUT:.0f} s")
    if head.startswith(TLS_HELLO):
        raise HeadError("invalid_request", "this is TLS, on a port that speaks plain HTTP: use http://")


def nothing_yet(error: OSError) -> bool:
    """Tell whether a read that may not wait failed for want of bytes only."""
    return isinstance(error, BlockingIOError) or type(error).__name__ == "SSLWantReadError"


def check_pace(begun: float, received: int) -> None:
    """Refuse a body of which too little has come since `begun`, in monotonic time."""
    if time.monotonic() - begun > BODY_TIMEOUT + received / SLOWEST:
        raise ProxyError("caller_timeout", "the body comes too slowly")


class Origin(NamedTuple):
    """Where a connection goes. `proxy` is a URL, or empty for none."""

    scheme: str  # http, https
    host: str
    port: int
    proxy: str = ""

    @property
    def place(self) -> str:
        """Host and port as they stand in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def split_url(url: str, proxy: str = "") -> tuple[Origin, str]:
    """Split a URL into its origin and the rest, which has no slash at its end.

    `proxy` is a URL, `direct` or `none`, or empty: then the environment's counts. Raises
    ProxyError for a URL that is none.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as exc:
        raise ProxyError("invalid_request", f"{url!r} is no URL: {exc}") from exc
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ProxyError("invalid_request", f"{url!r} is not an http or https URL")
    rest = parts.path.rstrip("/") + (f"?{parts.query}" if parts.query else "")
    origin = Origin(parts.scheme, parts.hostname, port)
    return origin._replace(proxy=find_proxy(origin, proxy)), rest


def find_proxy(origin: Origin, proxy: str) -> str:
    """Return the proxy URL for an origin, empty for none; `proxy` outranks the environment.

    Without a scheme it is an http proxy, as other programs read HTTPS_PROXY and its like.
    """
    named = any(key.lower().endswith("_proxy") for key in os.environ)
    if named and not proxy and not is_loopback(origin.host):
        from urllib import request  # noqa: PLC0415 -- slow

        found = request.getproxies_environment()
        if not request.proxy_bypass_environment(origin.place, found):  # type: ignore[attr-defined]
            proxy = found.get(origin.scheme) or found.get("all", "")
    if proxy.lower() in {"", "direct", "none"}:
        return ""
    return proxy if "://" in proxy else f"http://{proxy}"


@functools.lru_cache(maxsize=1)
def tls_context() -> Any:
    """Return the process's one client context: the system's CAs, else those of certifi."""
    import ssl  # noqa: PLC0415 -- 15 ms and 5 MB that a plain upstream does not need

    context = ssl.create_default_context()
    if not context.cert_store_stats()["x509_ca"] and not ssl.get_default_verify_paths().capath:
        try:
            import certifi  # noqa: PLC0415 -- optional
        except ImportError as exc:
            message = "this Python finds no CA certificates: pip install certifi, or set SSL_CERT_FILE"
            raise ProxyError("upstream_failed", message) from exc
        context.load_verify_locations(certifi.where())
    return context


def connect(origin: Origin) -> Wire:
    """Open a connection to an origin, through its proxy if it has one.

    Raises ProxyError("upstream_failed") with what failed; its `sent` is False.
    """
    try:
        return Wire(dial(origin), TICK)
    except (OSError, ValueError, OverflowError) as exc:
        proxy = re.sub("//[^/@]*@", "//...@", origin.proxy)
        through = f" through {proxy}" if proxy else ""
        hint = next((hint for sign, hint in CONNECT_HINTS.items() if sign in str(exc)), "")
        message = f"cannot reach {origin.host}:{origin.port}{through}: {exc}{hint}"
        error = ProxyError("upstream_failed", message)
        error.sent = False
        raise error from exc


CONNECT_HINTS = {  # what a message of OpenSSL holds -> what to do about it
    "unable to get": "; if you trust its issuer, set SSL_CERT_FILE to a file with the issuer's certificate",
    "self-signed": "; if you trust it, set SSL_CERT_FILE to a file with its certificate",
    "self signed": "; if you trust it, set SSL_CERT_FILE to a file with its certificate",
    "WRONG_VERSION_NUMBER": "; does it speak plain http?",
}


def dial(origin: Origin) -> socket.socket:
    """Connect a socket to an origin; a proxy on the way may want TLS of its own."""
    host, port = origin.host, origin.port
    proxy = urlsplit(origin.proxy)
    if origin.proxy:
        if proxy.scheme not in TUNNELS or not proxy.hostname:
            raise ValueError(f"the proxy URL must start with {', '.join(TUNNELS)}")
        host, port = proxy.hostname, proxy.port or (1080 if "socks" in proxy.scheme else 8080)
    sock = socket.create_connection((host, port), timeout=CONNECT_TIMEOUT)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if proxy.scheme == "https":
            sock = wrap_tls(sock, host)
        if origin.proxy:
            TUNNELS[proxy.scheme](Wire(sock, CONNECT_TIMEOUT), origin)
        if origin.scheme == "https":
            sock = wrap_tls(sock, origin.host)
    except BaseException:
        sock.close()
        raise
    return sock


def wrap_tls(sock: Any, host: str) -> Any:
    """Shake hands, verifying the certificate."""
    sock.settimeout(CONNECT_TIMEOUT)
    if hasattr(sock, "selected_alpn_protocol"):
        return NestedTls(sock, host)
    return tls_context().wrap_socket(sock, server_hostname=host)


class NestedTls:
    """The part of a socket that Wire uses, for TLS inside of a TLS proxy: `ssl` has none."""

    def __init__(self, sock: Any, host: str) -> None:
        import ssl  # noqa: PLC0415 -- loaded already

        self._sock = sock
        self._unsent = b""
        self._wants = ssl.SSLWantReadError
        self._coming, self._going = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = tls_context().wrap_bio(self._coming, self._going, server_hostname=host)
        self.selected_alpn_protocol = self._tls.selected_alpn_protocol
        self.settimeout, self.close = sock.settimeout, sock.close
        self._drive(self._tls.do_handshake)

    def _flush(self) -> None:
        """Send what is encrypted; may raise a timeout, and is then to be called again."""
        self._unsent += self._going.read()
        while self._unsent:
            self._unsent = self._unsent[self._sock.send(self._unsent) :]

    def _drive(self, step: Callable[..., Any], *arguments: Any) -> Any:
        while True:
            try:
                result = step(*arguments)
            except self._wants:
                self._flush()
                data = self._sock.recv(PIECE)
                self._coming.write(data) if data else self._coming.write_eof()
            else:
                self._flush()
                return result

    def recv(self, size: int) -> Any:
        return self._drive(self._tls.read, size)

    def send(self, data: Bytes) -> int:
        self._flush()  # first what was stuck: nothing may be encrypted twice
        count: int = self._tls.write(data)
        with contextlib.suppress(*TIMEOUTS):
            self._flush()
        return count

    def unwrap(self) -> None:
        self._drive(self._tls.unwrap)


def proxy_user(origin: Origin) -> tuple[bytes, bytes]:
    """Return the user name and password in the proxy's URL, empty if there are none."""
    parts = urlsplit(origin.proxy)
    return unquote_to_bytes(parts.username or ""), unquote_to_bytes(parts.password or "")


def proxy_headers(origin: Origin) -> Headers:
    """Return what tells an http proxy who asks."""
    name, password = proxy_user(origin)
    token = base64.b64encode(name + b":" + password).decode("ascii")
    return {"proxy-authorization": f"Basic {token}"} if name else {}


def no_answer() -> None:
    raise OSError(f"the proxy said nothing for {CONNECT_TIMEOUT:.0f} s")


def tunnel_http(wire: Wire, origin: Origin) -> None:
    """Have a tunnel opened to an https origin; plain http goes in absolute form instead."""
    if origin.scheme == "http":
        return
    headers = {"host": origin.place, **proxy_headers(origin)}
    lines = [f"CONNECT {origin.place} HTTP/1.1", *map(": ".join, headers.items()), "", ""]
    wire.send(["\r\n".join(lines).encode()], no_answer)
    head = wire.read_head(no_answer)
    if head is None:
        raise ValueError("the proxy closed the connection")
    line, _ = parse_head(head)
    if line.split(" ")[1:2] != ["200"]:
        raise ValueError(f"the proxy said {line!r}")


def tunnel_socks(wire: Wire, origin: Origin) -> None:
    """Have a tunnel opened by SOCKS 5, the proxy resolving the name. Source: RFC 1928, RFC 1929."""
    name, password = proxy_user(origin)
    take = functools.partial(wire.read_exactly, idle=no_answer)
    wire.send([b"\5\2\0\2" if name else b"\5\1\0"], no_answer)
    socks, method = take(2)
    if socks != 5 or method not in {0, 2}:
        raise ValueError("the proxy speaks no SOCKS 5, or refuses the log-in")
    if method == 2:
        wire.send([b"\1%c%b%c%b" % (len(name), name, len(password), password)], no_answer)
        if take(2)[1]:
            raise ValueError("the proxy refuses its user name or password")
    host = origin.host.encode("idna")
    wire.send([b"\5\1\0\3%c%b%b" % (len(host), host, origin.port.to_bytes(2, "big"))], no_answer)
    _, failure, _, kind = take(4)
    if failure:
        raise ValueError(f"the proxy cannot reach the host (SOCKS error {failure})")
    take({1: 4, 4: 16}.get(kind) or take(1)[0])
    take(2)


TUNNELS: dict[str, Callable[[Wire, Origin], None]] = {
    "http": tunnel_http, "https": tunnel_http, "socks5": tunnel_socks, "socks5h": tunnel_socks,
}  # fmt: skip


class Hangup(Exception):  # noqa: N818 -- no error: whoever waited may leave
    """A watcher raises it when nobody is left to wait for the exchange."""


class Watcher:
    """Who waits for an exchange; the server's one sends what it holds and watches its client."""

    looked = 0.0  # time.monotonic() of the last look around

    def flush(self) -> None:
        """Do what must be done before a read that may block."""

    def tick(self) -> None:
        """Look around; may raise to end the exchange."""

    def look(self) -> None:
        """Look around if the last time is a TICK ago, however busy the upstream is."""
        now = time.monotonic()
        if now - self.looked >= TICK:
            self.looked = now
            self.tick()


class Exchange:
    """One request to an upstream and its answer, whose body is read piece by piece.

    Close it: a connection whose body was read to its end goes back to the pool.
    """

    def __init__(self, pool: Pool, origin: Origin, wire: Wire, watcher: Watcher) -> None:
        self.status, self.headers = 0, Headers()
        self.length: int | None = None  # of the body as it comes, None if the head does not tell
        self._pool = pool
        self._origin = origin
        self._wire = wire
        self.watcher = watcher
        self._body: Chunks | Plain = Plain(None)
        self._keep = True  # may the connection be used again?
        self._closed = False

    def begin(self, pieces: Sequence[Bytes]) -> None:
        """Send a request, and read the head of the answer, which may come before all is sent."""
        try:
            self._wire.send(pieces, self._stuck)
        except OSError:
            self._keep = False
            if not self._wire.peek():
                raise
        for _ in range(INTERIM_COUNT):
            protocol = self._read_head()
            if self.status >= 200 or self.status == 101:
                break
        else:
            raise ValueError("it sends interim answers without end")
        self._frame(bodiless=bytes(pieces[0][:5]) == b"HEAD " or self.status in {204, 304})
        close = "close" in self.headers.get("connection", "").lower()
        self._keep = self._keep and protocol == "HTTP/1.1" and not close

    def _read_head(self) -> str:
        """Read the head of an answer; return its HTTP version."""
        head = self._wire.read_head(self._idle)
        if head is None:
            raise ConnectionError("it closed the connection without an answer")
        first, self.headers = parse_head(head)
        protocol, _, rest = first.partition(" ")
        if not protocol.startswith("HTTP/1.") or not rest[:3].isdigit():
            raise ValueError(f"{first[:40]!r} is not an HTTP/1 answer")
        self.status = int(rest[:3])
        return protocol

    def _frame(self, *, bodiless: bool) -> None:
        """Choose how the body ends: by its length, its chunks, or the connection (RFC 9112 6.3)."""
        if bodiless:
            self.length = 0
        elif "transfer-encoding" in self.headers or "content-length" in self.headers:
            self.length = body_length(self.headers)
            if self.length is None:
                self._body = Chunks()
                return
        else:
            self._keep = False
        self._body = Plain(self.length)

    def _stuck(self) -> None:
        self.watcher.tick()
        if self._wire.peek() is not None:
            raise ConnectionError("it did not take the whole request")
        if self._wire.silent >= SEND_TIMEOUT:
            raise OSError(f"it took nothing for {SEND_TIMEOUT:.0f} s")

    def _idle(self) -> None:
        self.watcher.tick()
        if self._wire.silent >= SILENCE_LIMIT:
            message = f"{self._origin.host} sent nothing for {SILENCE_LIMIT:.0f} s"
            raise ProxyError("upstream_timeout", message)

    def read(self) -> bytes:
        """Return the next bytes of the body as soon as there are some, b"" at its end.

        Raises ProxyError("upstream_failed") if the body breaks off or is malformed.
        """
        payload = b""
        while not payload and not self._body.done:
            if not self._wire.rest:
                self.watcher.flush()
            self.watcher.look()
            try:
                payload = self._wire.read(self._body, self._idle)
            except (OSError, ValueError) as exc:
                message = f"{self._origin.host} broke off its answer: {exc}"
                raise ProxyError("upstream_failed", message) from exc
        return payload

    def pieces(self) -> Generator[bytes, None, None]:
        """Yield the body as it comes, and close at the end or when the consumer stops."""
        try:
            while data := self.read():
                yield data
        finally:
            self.close()

    def decoded(self, limit: int = STREAM_LIMIT) -> Generator[bytes, None, None]:
        """Yield the body as it comes, its content encoding undone: at most `limit` bytes if it has one."""
        with contextlib.closing(self.pieces()) as pieces:
            try:
                yield from unpacked(pieces, self.headers.get("content-encoding", ""), limit)
            except ValueError as exc:
                raise ProxyError("upstream_failed", f"{self._origin.host}: {exc}") from exc

    def body(self, limit: int | None = None) -> bytes:
        """Return the whole decoded body, of `limit` bytes at most, else of BODY_LIMIT."""
        limit = limit or BODY_LIMIT
        body = bytearray()
        for piece in self.decoded(limit):
            body += piece
            if len(body) > limit:
                message = f"{self._origin.host} sent more than {limit:,} bytes"
                raise ProxyError("upstream_failed", message)
        return bytes(body)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if not self._body.done and self._keep and self._wire.peek():
            with contextlib.suppress(ValueError):  # a reader may stop just before the body's end
                self._wire.read(self._body, self._idle)
        if self._body.done and self._keep and not self._wire.rest:
            self._pool.put(self._origin, self._wire)
        else:
            self._wire.close()


class Pool:
    """The idle upstream connections, by origin."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._idle: dict[Origin, list[Wire]] = {}  # guarded by Pool._lock

    def put(self, origin: Origin, wire: Wire) -> None:
        wire.since = self._now()
        with self._lock:
            wires = self._idle.setdefault(origin, [])
            wires.append(wire)
            surplus = wires.pop(0) if len(wires) > IDLE_COUNT else None
        if surplus:
            surplus.close()

    def take(self, origin: Origin) -> Wire | None:
        """Return an idle connection that still seems to live, the latest used first."""
        while True:
            with self._lock:
                wires = self._idle.get(origin)
                wire = wires.pop() if wires else None
            if wire is None:
                return None
            idle = self._now() - wire.since
            if idle < FRESH or (idle < IDLE_LIMIT and wire.peek() is None):
                return wire
            wire.close()

    def prune(self, limit: float = IDLE_LIMIT) -> None:
        """Close what has been idle for `limit` seconds or more."""
        horizon = self._now() - limit
        with self._lock:
            old = [wire for wires in self._idle.values() for wire in wires if wire.since <= horizon]
            for wires in self._idle.values():
                wires[:] = [wire for wire in wires if wire.since > horizon]
        for wire in old:
            wire.close()

    def open(
        self, origin: Origin, head: bytes, body: Sequence[Bytes] = (), watcher: Watcher | None = None
    ) -> Exchange:
        """Send a request, `head` with its blank line, and read the head of the answer.

        A reused connection that dies before the first byte of the answer is replaced once by a
        fresh one. Raises ProxyError, kind upstream_failed or upstream_timeout.
        """
        pieces = [b"".join((head, *body))] if sum(map(len, body)) < JOIN_LIMIT else [head, *body]
        wire = reused = self.take(origin)
        while True:
            wire = wire or connect(origin)
            exchange = Exchange(self, origin, wire, watcher or Watcher())
            try:
                exchange.watcher.look()  # what came before may have taken its time
                exchange.begin(pieces)
            except (OSError, ValueError) as exc:
                exchange.close()
                if wire is not reused or wire.answered:
                    raise ProxyError("upstream_failed", f"{origin.host}: {exc}") from exc
                wire = None
            except BaseException:
                exchange.close()
                raise
            else:
                return exchange


class Reply(NamedTuple):
    """A whole answer: its body is decoded."""

    status: int
    headers: Headers
    body: bytes


class Deadline(Watcher):
    """Ends an exchange that takes longer than `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def tick(self) -> None:
        if time.monotonic() > self._end:
            raise ProxyError("upstream_timeout", "no answer in time")

    flush = tick  # also while bytes are dribbling in


def request_head(method: str, path: str, origin: Origin, headers: Mapping[str, str], length: int) -> bytes:
    """Encode a request's head with its blank line. `path` begins with a slash.

    Raises ProxyError for a header value that would break out of its line.
    """
    place = origin.place.removesuffix(":443" if origin.scheme == "https" else ":80")
    if origin.proxy.startswith("http") and origin.scheme == "http":
        path, headers = f"http://{place}{path}", {**proxy_headers(origin), **headers}
    lines = [f"{method} {path} HTTP/1.1", f"host: {place}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines.append(f"content-length: {length}")
    head = "\r\n".join(lines)
    if not head.count("\n") == head.count("\r") == len(lines) - 1:
        raise ProxyError("upstream_failed", "a header value of the account holds a line break")
    return (head + "\r\n\r\n").encode("latin-1", "replace")


def fetch(
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: bytes = b"",
    *,
    proxy: str = "",
    timeout: float = 30.0,
) -> Reply:
    """Make one small call, for tokens or model lists. `timeout` is in seconds for all of it.

    Raises ProxyError, kind upstream_failed (`sent` False if nothing reached the server) or
    upstream_timeout.
    """
    origin, path = split_url(url, proxy)
    own = {"user-agent": USER_AGENT, "accept": "application/json", "accept-encoding": "gzip"}
    path = path if path.startswith("/") else f"/{path}"
    head = request_head(method, path, origin, {**own, **headers}, len(body))
    pool = Pool()
    with contextlib.closing(pool.open(origin, head, [body], Deadline(timeout))) as exchange:
        reply = Reply(exchange.status, exchange.headers, exchange.body())
    pool.prune(0.0)
    return reply


########################################################################################
# 18. STORE
########################################################################################
# The credential files, as CLIProxyAPI lays them out: one JSON object a file, `type` says whose.
# Other programs write them too, so each write begins with reading. Two locks keep processes apart,
# and both die with their holder: `.lock` for the instant of a write, `.NAME.lock` for a refresh.
# Source: spec/providers.md 1.1.

Stamp = tuple[int, int, int]  # mtime in ns, size, inode: a file with the same stamp is unchanged
RACY = 2_000_000_000  # ns: the file system's clock may be this coarse, and writers this slow
LARGEST = 1_000_000  # bytes of a file that are read: far more than a credential has
DRAFT = re.compile(r"\.(.+)\.[0-9a-f]{8}\.new")  # the name of a file that is being written
NOT_CREDENTIALS = frozenset(["config.json"])  # it may live in the same folder
SAME_TYPES = {"gemini-cli": "gemini"}  # what later versions of CLIProxyAPI call a type -> ours
EXPIRY_KEYS = ("expired", "expire", "expires_at", "expiresAt", "expiry", "expires")
REFRESH_KEYS = ("last_refresh", "lastRefresh", "last_refreshed_at", "lastRefreshedAt")
TIME = re.compile(r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d)(?::(\d\d)(\.\d+)?)?\s*([Zz]|[+-]\d\d:?\d\d)?")


def read_time(value: object) -> float | None:
    """Return the Unix time a file or a service means; None if it is no time.

    RFC 3339, the same without a zone (UTC) or seconds, and numbers or digits: seconds, or
    milliseconds from 1e12 on.
    """
    try:
        number = float(value) if isinstance(value, (int, float, str)) else 0.0
    except (ValueError, OverflowError):
        return read_date(str(value).strip())
    if not 0 < number < 1e16 or isinstance(value, bool):
        return None
    return number / 1000 if number > 1e12 else number


def read_date(text: str) -> float | None:
    """Return the Unix time of an RFC 3339 date."""
    from datetime import datetime, timedelta, timezone  # noqa: PLC0415 -- not needed to start

    match = TIME.fullmatch(text)
    if not match:
        return None
    *fields, fraction, zone = match.groups()
    offset = timedelta()
    if zone and zone not in "Zz":
        digits = zone[1:].replace(":", "")
        offset = int(zone[0] + "1") * timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
    try:
        year, month, day, hour, minute, second = (int(field or 0) for field in fields)
        when = datetime(year, month, day, hour, minute, second, tzinfo=timezone.utc) - offset
    except (ValueError, OverflowError):
        return None
    return when.timestamp() + float(fraction or 0)


def write_time(when: float, *, utc: bool = False) -> str:
    """Return RFC 3339 with the local offset, or with `Z`: as Go writes it."""
    local = time.gmtime(when) if utc else time.localtime(when)
    minutes = 0 if utc else (local.tm_gmtoff or 0) // 60
    sign = "-" if minutes < 0 else "+"
    zone = f"{sign}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}" if minutes else "Z"
    return time.strftime("%Y-%m-%dT%H:%M:%S", local) + zone


def field_of(data: Json, *keys: str) -> Any:
    """Return the first of `keys` that says something, in the file or in its `token` object."""
    token = data.get("token")
    for place in (data, token if isinstance(token, dict) else {}):
        for key in keys:
            if place.get(key) not in (None, "", 0):
                return place[key]
    return None


def latest_of(data: Json, *keys: str) -> float | None:
    """Return the latest time under these keys: whoever renews tokens may leave another's stale."""
    token = data.get("token")
    places = (data, token if isinstance(token, dict) else EMPTY)
    moments = (read_time(place.get(key)) for place in places for key in keys)
    return max(filter(None, moments), default=None)


def expires_at(data: Json) -> float | None:
    """Return when the access token expires, in Unix time; None if the file does not say."""
    issued, life = read_time(data.get("timestamp")), read_time(data.get("expires_in"))
    computed = issued + life if issued and life else None  # antigravity
    return latest_of(data, *EXPIRY_KEYS) or computed


def last_refresh(data: Json) -> float | None:
    """Return when the tokens were renewed, in Unix time; None if the file does not say."""
    return latest_of(data, *REFRESH_KEYS)


def overlaid(old: Json, changes: Json) -> Json:
    """Return `old` with `changes` laid over it, key order kept; None removes a key."""
    new = dict(old)
    for key, value in changes.items():
        if isinstance(value, dict):
            merged = overlaid(new[key] if isinstance(new.get(key), dict) else {}, value)
            if merged or key in new or not value:
                new[key] = merged
        else:
            new[key] = value
    return {key: value for key, value in new.items() if value is not None or key not in changes}


def dump_like(data: Json, old: bytes) -> bytes:
    """Encode `data` in the layout of `old`: indented or compact, with or without a last newline."""
    body = old.strip()
    indent = re.match(rb"\{\r?\n([ \t]+)", body)
    layout: Json = {"separators": (",", ":")}
    if indent or b"\n" in body:
        layout = {"indent": indent[1].decode() if indent else 2}
    try:
        text = json.dumps(data, ensure_ascii=False, **layout).encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        text = json.dumps(data, **layout).encode()
    return text + (b"\n" if old.endswith(b"\n") else b"")


def write_atomic(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace a file as a whole: whoever reads it finds the old bytes or the new ones.

    Through symbolic links. A crash leaves a `.NAME.*.new` beside it at worst. Raises OSError.
    """
    path = Path(os.path.realpath(path))
    draft = path.with_name(f".{path.name}.{os.urandom(4).hex()}.new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        with open(os.open(draft, flags, 0o600), "wb") as file:  # noqa: PTH123 -- a descriptor
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if mode != 0o600:
            draft.chmod(mode)
        replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the new name must survive a power cut as well
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def replace(draft: Path, path: Path) -> None:
    """Rename; on Windows a reader of the old file is in the way for an instant."""
    for _ in range(20 if os.name == "nt" else 0):
        with contextlib.suppress(PermissionError):
            return os.replace(draft, path)  # noqa: PTH105 -- returns None
        threading.Event().wait(0.05)
    return os.replace(draft, path)  # noqa: PTH105


def try_lock(descriptor: int) -> bool:
    """Lock an open file unless somebody else has. The system drops the lock when the file is closed."""
    try:
        if sys.platform == "win32":
            import msvcrt  # noqa: PLC0415

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl  # noqa: PLC0415

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


LOCK_PATIENCE = 10.0  # seconds: who holds a lock longer has been stopped, or hangs


def locked(path: Path, patience: float | None = None) -> io.FileIO:
    """Keep other threads and processes out of a file until the one that is returned is closed.

    The lock dies with its holder: it is never stale. Raises OSError; after `patience` seconds TimeoutError.
    """
    patience = LOCK_PATIENCE if patience is None else patience
    end, wait = time.monotonic() + patience, 0.001
    while True:
        file = io.FileIO(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        with contextlib.suppress(FileNotFoundError):
            if try_lock(file.fileno()) and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()  # held by another, or deleted meanwhile
        if time.monotonic() >= end:
            raise TimeoutError(errno.ETIMEDOUT, f"another process has held it for {patience:.0f} s")
        threading.Event().wait(wait)
        wait = min(2 * wait, 0.05)


def read_regular(path: Path, limit: int) -> tuple[bytes, os.stat_result]:
    """Return the first bytes of a file and its status. Waits for no pipe or device. Raises OSError."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with open(os.open(path, flags), "rb") as file:  # noqa: PTH123 -- a descriptor
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        return file.read(limit), status


class Credential(NamedTuple):
    """One file, as it was read."""

    name: str  # file name
    path: Path
    type: str  # claude, codex, ...: the file's, as we call it
    data: Json  # the file, whole
    stamp: Stamp


def stamp_of(status: os.stat_result) -> Stamp:
    return status.st_mtime_ns, status.st_size, status.st_ino


def credential_of(path: Path, data: Json, stamp: Stamp) -> Credential:
    return Credential(path.name, path, SAME_TYPES.get(data["type"], str(data["type"])), data, stamp)


def read_credential(path: Path) -> tuple[Credential, bytes]:
    """Read one file. Raises ProxyError: not_found, or internal for a damaged or foreign one."""
    try:
        raw, status = read_regular(path, LARGEST)
        data = json.loads(raw)
    except FileNotFoundError as exc:
        raise ProxyError("not_found", f"there is no {path.name!r} in {path.parent}") from exc
    except OSError as exc:
        raise ProxyError("internal", f"{path} cannot be read: {exc.strerror}") from exc
    except (ValueError, RecursionError) as exc:
        raise ProxyError("internal", f"{path} is damaged, and left as it is: {exc}") from exc
    if not isinstance(data, dict) or not isinstance(data.get("type"), str) or not data["type"]:
        raise ProxyError("internal", f"{path} is no credential: it has no `type`")
    return credential_of(path, data, stamp_of(status)), raw


class Unwritten(NamedTuple):
    """What could not be written to a file, and the refresh token that the file held then."""

    changes: Json
    token: str


class Store:
    """The credential files of one folder. Only it writes them.

    `problems` maps the names of files that cannot be used to the reason; `report` is told each
    reason once. `credentials()` is as of the last `scan()`, except for what was written here.
    """

    def __init__(self, folder: Path, report: Callable[[str], None] = lambda message: None) -> None:
        self.folder, self._report = Path(folder).expanduser(), report
        self._lock = threading.Lock()
        self._known: dict[str, Credential] = {}  # guarded by Store._lock, as all below
        self._seen: list[Credential] = []  # by the last scan
        self._bad: dict[str, Stamp] = {}
        self._edited: set[str] = set()  # by others, since the last `edited()`
        self._unwritten: dict[str, Unwritten] = {}
        self.problems: dict[str, str] = {}
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            mode = self.folder.stat().st_mode
        except OSError as exc:
            hint = "set auth-dir to another folder, or see to the rights of this one"
            raise ProxyError("internal", f"no auth-dir at {self.folder}: {exc.strerror}; {hint}") from exc
        if os.name == "posix" and mode & 0o077:
            report(f"others can look into {self.folder}; `chmod 700` it")

    def credentials(self) -> list[Credential]:
        """Return what there is, sorted by name."""
        return sorted([*self._known.values()], key=lambda found: found.name)  # copied in one step

    def get(self, name: str) -> Credential:
        """Read one file again, now. Raises ProxyError if it is gone, damaged or foreign."""
        return self._with_unwritten(read_credential(self._path(name))[0])

    def scan(self) -> bool:
        """Look at the folder; tell whether a credential came, changed or went since last time.

        Costs a stat for each file, so it may run every second.
        """
        with self._lock:
            found, now = self._files(), time.time_ns()
            for name in [*self._known, *self._bad]:
                if name not in found:
                    self._forget(name)
            for name, status in found.items():
                self._look(name, stamp_of(status), abs(now - status.st_mtime_ns) < RACY)
            before, self._seen = self._seen, self.credentials()
            return before != self._seen

    def edited(self) -> set[str]:
        """Return the names of the files that others have written since the last time."""
        with self._lock:
            names, self._edited = self._edited, set()
            return names

    def merge(self, name: str, changes: Json, patience: float | None = None) -> Credential:
        """Lay `changes` over what the file says now; None removes a key. Raises ProxyError."""
        with self._writing(patience):
            credential, raw = read_credential(self._path(name))
            credential = self._with_unwritten(credential)
            written = self._write(name, overlaid(credential.data, changes), raw)
            self._unwritten.pop(name, None)
            return written

    def keep_unwritten(self, name: str, changes: Json) -> Credential:
        """Keep in memory what could not be written, such as new tokens, until `flush` can write it."""
        credential = read_credential(self._path(name))[0]
        token = str(field_of(credential.data, "refresh_token"))
        with self._lock:
            before = self._unwritten.get(name)
            earlier = before.changes if before else {}
            self._unwritten[name] = Unwritten({**earlier, **changes}, token)
            self._known[name] = self._with_unwritten(credential)
            return self._known[name]

    def flush(self) -> None:
        """Write what could not be written before, if that is possible by now and without a wait."""
        for name in list(self._unwritten):
            with contextlib.suppress(ProxyError):
                self.merge(name, {}, patience=0.0)

    def _with_unwritten(self, credential: Credential) -> Credential:
        """Return a credential with what its file lacks, unless somebody has logged in there since."""
        unwritten = self._unwritten.get(credential.name)
        if unwritten is None or str(field_of(credential.data, "refresh_token")) != unwritten.token:
            return credential
        return credential._replace(data=overlaid(credential.data, unwritten.changes))

    def create(self, name: str, data: Json) -> Credential:
        """Write a new file; of one that is there already, the keys not in `data` stay."""
        with self._writing():
            path = self._path(name)
            if not path.exists():  # a new file is laid out as CLIProxyAPI does: compact, with LF
                return self._write(name, overlaid({}, data), b"\n")
            try:
                credential, raw = read_credential(path)
            except ProxyError:  # damaged or foreign: kept, out of the way
                replace(path, path.with_suffix(".json.damaged"))
                return self._write(name, overlaid({}, data), b"\n")
            return self._write(name, overlaid(credential.data, data), raw)

    def delete(self, name: str) -> None:
        """Remove a file. Raises ProxyError if there is none."""
        with self._writing():
            path = self._path(name)
            try:
                path.unlink()
            except FileNotFoundError as exc:
                raise ProxyError("not_found", f"there is no {name!r} in {self.folder}") from exc
            with contextlib.suppress(OSError):
                self._lock_of(name).unlink()
            self._forget(name)

    def refreshing(self, name: str) -> io.FileIO:
        """Hold the lock under which one of all processes renews the tokens of a file."""
        path = self._lock_of(name)
        try:
            return locked(path)
        except OSError as exc:
            raise ProxyError("internal", f"cannot write {path}: {exc.strerror}") from exc

    @contextlib.contextmanager
    def _writing(self, patience: float | None = None) -> Generator[None, None, None]:
        """Hold the folder, and turn what the file system says into a ProxyError.

        First the lock that others may hold for long: nobody waits for it under Store._lock.
        """
        try:
            with locked(self.folder / ".lock", patience), self._lock:
                yield
        except OSError as exc:
            message = f"cannot write in {self.folder}: {exc.strerror or exc}"
            raise ProxyError("internal", message) from exc

    def _files(self) -> dict[str, os.stat_result]:
        """Return the status of each credential file; finish, or drop, what was being written."""
        try:
            names = [path.name for path in self.folder.iterdir()]
        except OSError as exc:
            raise ProxyError("internal", f"cannot read {self.folder}: {exc.strerror}") from exc
        for draft in filter(None, map(DRAFT.fullmatch, names)):
            self._recover(draft[0], draft[1])
        found = {}
        for name in filter(self._is_ours, names):
            with contextlib.suppress(OSError):  # gone, or a dangling link
                status = (self.folder / name).stat()
                if not stat.S_ISFIFO(status.st_mode):  # to open one waits for its writer
                    found[name] = status
        return found

    def _path(self, name: str) -> Path:
        if not self._is_ours(name) or Path(name).name != name or "\\" in name or ":" in name:
            raise ProxyError("invalid_request", f"{name!r} is no name of a credential file")
        return self.folder / name

    def _lock_of(self, name: str) -> Path:
        return self._path(name).with_name(f".{name}.lock")

    @staticmethod
    def _is_ours(name: str) -> bool:
        return name.endswith(".json") and name[0] != "." and name not in NOT_CREDENTIALS

    def _write(self, name: str, data: Json, old: bytes) -> Credential:
        path = self._path(name)
        write_atomic(path, dump_like(data, old))
        self._known[name] = credential_of(path, data, stamp_of(path.stat()))
        return self._known[name]

    def _forget(self, name: str) -> None:
        self._known.pop(name, None)
        self._bad.pop(name, None)
        self.problems.pop(name, None)

    def _look(self, name: str, stamp: Stamp, racy: bool) -> None:
        """Read a file again if it may have changed."""
        last = self._known[name].stamp if name in self._known else self._bad.get(name)
        if last == stamp and not racy:
            return
        try:
            credential = read_credential(self.folder / name)[0]
        except ProxyError as error:
            if not racy:  # else: somebody may be writing it this instant; what we know stays
                self._forget(name)
                self._bad[name], self.problems[name] = stamp, str(error)
                self._report(str(error))
        else:
            if last not in {None, stamp}:
                self._edited.add(name)
            self._known[name] = self._with_unwritten(
                credential
            )  # no instant without it: `credentials` takes no lock
            self._bad.pop(name, None)
            self.problems.pop(name, None)

    def _recover(self, draft: str, name: str) -> None:
        """Finish, or drop, a write whose writer was killed: new tokens may be in it."""
        path, old = self.folder / draft, self.folder / name
        if not self._is_ours(name):
            return
        with contextlib.suppress(OSError), locked(self.folder / ".lock", patience=0.0):
            if old.exists() and path.stat().st_mtime_ns >= old.stat().st_mtime_ns:
                with contextlib.suppress(ProxyError):  # it was not even written to its end
                    read_credential(path)
                    replace(path, old)
            path.unlink(missing_ok=True)


########################################################################################
# 19. TERMINAL
########################################################################################
# What a login needs of the machine: the lines that its user types, a door for the browser that comes
# back, and QR codes. Whatever comes back arrives in one queue, so that it does not matter which way
# is open.

PATIENCE = 300.0  # seconds that a login waits for its user


class Arrival(NamedTuple):
    """What came back: a typed line or the target of a browser's request; None: no more lines."""

    text: str | None
    browser: socket.socket | None = None
    html: bool = True

    def answer(self, status: int, text: str) -> None:
        """Show the browser, if it was one, how it went."""
        kind = "html" if self.html else "plain"
        if self.html:
            safe = text.replace("&", "&amp;").replace("<", "&lt;")
            text = f"<!doctype html><meta charset=utf-8><title>cliproxy</title><h1>{safe}</h1>"
        body = f"{text}\n".encode()
        head = (
            f"HTTP/1.1 {status} {'OK' if status < 400 else 'Error'}\r\nconnection: close\r\n"
            f"content-type: text/{kind}; charset=utf-8\r\ncontent-length: {len(body)}\r\n"
            "cache-control: no-store\r\nreferrer-policy: no-referrer\r\n\r\n"
        )
        if self.browser:
            with contextlib.suppress(OSError), self.browser:
                self.browser.sendall(head.encode() + body)


class Terminal:
    """Whom a login talks to. `inbox` takes lines and callbacks from any thread."""

    def __init__(
        self, tell: Callable[[str], None], fileno: int | None = None, screen: tuple[int, int] = (0, 0)
    ) -> None:
        self.say, self.screen = tell, screen  # columns and lines, zeros if it can show no QR code
        self.inbox: SimpleQueue[Arrival] = SimpleQueue()
        self.closed = False  # no line will come any more
        self.pause: Callable[[float], object] = threading.Event().wait
        if fileno is not None:
            threading.Thread(target=self._read, args=(fileno,), daemon=True).start()

    def _read(self, fileno: int) -> None:
        """Pass lines on. Not through sys.stdin, whose lock a daemon thread must not hold at exit."""
        rest, data = b"", b"?"
        while data:
            try:
                data = os.read(fileno, 4096)
            except OSError:
                data = b""
            *lines, rest = (rest + (data or b"\n")).split(b"\n")
            for line in lines:
                self.inbox.put(Arrival(line.decode("utf-8", "replace").strip()))
        self.inbox.put(Arrival(None))

    def take(self, deadline: float) -> Arrival:
        """Wait for what comes next. Raises ProxyError after `deadline`, in monotonic time."""
        while time.monotonic() < deadline:
            try:  # not for long: a Ctrl-C that comes just before the wait is heard after it
                arrival = self.inbox.get(timeout=TICK)
            except Empty:
                continue
            self.closed = self.closed or arrival.text is None
            return arrival
        message = "nobody finished the login in time; nothing was saved; run it again"
        raise ProxyError("caller_timeout", message)

    def ask(self, question: str) -> str:
        """Return the line that answers; empty if nobody can."""
        self.say(question)
        deadline = time.monotonic() + PATIENCE
        while not self.closed:
            arrival = self.take(deadline)
            if arrival.text and not arrival.browser:
                return arrival.text
        return ""


class Door:
    """Listens on 127.0.0.1 and ::1 for the browser that comes back with the code."""

    def __init__(self, port: int, path: str, inbox: SimpleQueue[Arrival]) -> None:
        self._path, self._inbox = path, inbox
        self._sockets: list[socket.socket] = []  # guarded by being closed last
        try:
            self._listen(socket.AF_INET, "127.0.0.1", port)
            self._listen(socket.AF_INET6, "::1", port)
        except OSError as exc:
            if not self._sockets or exc.errno == errno.EADDRINUSE:
                self.close()
                what = f"cannot listen on port {port} ({exc.strerror}): is another login under way?"
                advice = "use --no-browser and paste, or --oauth-callback-port N"
                raise ProxyError("conflict", f"{what} {advice}") from exc

    def _listen(self, family: int, host: str, port: int) -> None:
        listener = socket.create_server((host, port), family=family, backlog=8)
        self._sockets.append(listener)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                browser = listener.accept()[0]
                self._sockets.append(browser)
                threading.Thread(target=self._read, args=(browser,), daemon=True).start()

    def _read(self, browser: socket.socket) -> None:
        """Read one request; only a GET of our path with a query is passed on."""
        browser.settimeout(10)
        head = b""
        with contextlib.suppress(OSError):
            while b"\r\n\r\n" not in head and len(head) < 32_768:
                head += browser.recv(8192) or b"\r\n\r\n"
        method, _, rest = head.decode("latin-1").partition(" ")
        target = rest.partition(" ")[0]
        arrival = Arrival(target, browser, b"text/html" in head)
        if method == "GET" and target.startswith(f"{self._path}?"):
            self._inbox.put(arrival)
        else:
            arrival.answer(404 if method == "GET" else 405, f"only {self._path} is served here")

    def close(self) -> None:
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # wakes accept
            sock.close()


# of versions 1 to 20 at level L: check bytes in a block, and blocks
QR_CHECK = (7, 10, 15, 20, 26, 18, 20, 24, 30, 18, 20, 24, 26, 30, 22, 24, 28, 30, 28, 28)
QR_BLOCKS = (1, 1, 1, 1, 1, 2, 2, 2, 2, 4, 4, 4, 4, 4, 6, 6, 6, 6, 7, 8)
QR_MASKS: tuple[Callable[[int, int], int], ...] = (
    lambda x, y: (x + y) % 2,
    lambda x, y: y % 2,
    lambda x, y: x % 3,
    lambda x, y: (x + y) % 3,
    lambda x, y: (x // 3 + y // 2) % 2,
)  # three of the eight are never needed


def qr_remainder(value: int, generator: int, bits: int) -> int:
    """Return `value` followed by its BCH check bits."""
    rest = value << bits
    while rest.bit_length() > bits:
        rest ^= generator << (rest.bit_length() - bits - 1)
    return value << bits | rest


def qr_check(data: bytes, size: int) -> bytes:
    """Return the Reed-Solomon check bytes of one block, over GF(256) modulo 0x11D."""
    power, log = [1], {1: 0}
    for exponent in range(1, 255):
        power.append(power[-1] << 1 ^ (0x11D if power[-1] & 0x80 else 0))
        log[power[-1]] = exponent
    generator = [1]
    for root in range(size):  # multiply by (x - a^root)
        shifted = [power[(log[c] + root) % 255] if c else 0 for c in generator]
        generator = [a ^ b for a, b in zip([*generator, 0], [0, *shifted])]
    rest = [*data, *bytes(size)]
    for at in range(len(data)):
        head = rest[at]
        for step, factor in enumerate(generator if head else ()):
            rest[at + step] ^= power[(log[factor] + log[head]) % 255]
    return bytes(rest[len(data) :])


def qr_marks(version: int) -> list[int]:
    """Return where alignment marks stand, in either direction."""
    if version == 1:
        return []
    count = version // 7 + 2
    step = (version * 4 + count * 2 + 1) // (count * 2 - 2) * 2
    return [6, *(10 + 4 * version - step * at for at in range(count - 1))]


def qr_room(version: int) -> int:
    """Return how many code words fit in, with those of the check."""
    marks = len(qr_marks(version))
    bits = (16 * version + 128) * version + 64
    if marks:
        bits -= (25 * marks - 10) * marks - 55
    if version > 6:  # it is written into the code
        bits -= 36
    return bits // 8


def qr_fit(length: int) -> tuple[int, int, int]:
    """Return the smallest version that holds so many bytes, its data words, and bits of a length."""
    for version, (check, blocks) in enumerate(zip(QR_CHECK, QR_BLOCKS), 1):
        room = qr_room(version) - check * blocks
        width = 8 if version < 10 else 16
        if length + 1 + (width + 4) // 8 <= room:
            return version, room, width
    raise ValueError("too long for a QR code")


def qr_codewords(data: bytes) -> tuple[int, bytes]:
    """Return the smallest version that holds `data`, and its interleaved code words."""
    version, room, width = qr_fit(len(data))
    check, blocks = QR_CHECK[version - 1], QR_BLOCKS[version - 1]
    stream = (4 << width | len(data)) << 8 * len(data) | int.from_bytes(data, "big")
    size = (4 + width) // 8 + 1 + len(data)
    packed = (stream << 4).to_bytes(size, "big")[:room]
    packed += bytes((0xEC, 0x11)[at % 2] for at in range(room - len(packed)))
    starts = [room // blocks * at + max(0, at - blocks + room % blocks) for at in range(blocks + 1)]
    parts = [packed[start:end] for start, end in zip(starts, starts[1:])]
    checks = [qr_check(part, check) for part in parts]
    mixed = [part[at] for at in range(len(parts[-1])) for part in parts if at < len(part)]
    mixed += [words[at] for at in range(check) for words in checks]
    return version, bytes(mixed)


Modules = dict[tuple[int, int], int]  # of a QR code, by (x, y): 1 is dark


def qr_rings(cells: Modules, size: int, center: tuple[int, int], radius: int, light: set[int]) -> None:
    """Draw a mark of square rings; those with a radius in `light` are light."""
    reach = range(-radius, radius + 1)
    for dx, dy in itertools.product(reach, reach):
        place = center[0] + dx, center[1] + dy
        if min(place) >= 0 and max(place) < size:
            cells[place] = 0 if max(abs(dx), abs(dy)) in light else 1


def qr_frame(version: int) -> Modules:
    """Return the fixed modules: timing, alignment marks, finders and version."""
    size, fixed = 17 + 4 * version, Modules()
    for at in range(size):
        fixed[at, 6] = fixed[6, at] = 1 - at % 2
    corners = {(6, 6), (6, size - 7), (size - 7, 6)}
    marks = qr_marks(version)
    for center in {*itertools.product(marks, marks)} - corners:
        qr_rings(fixed, size, center, 2, {1})
    for center in ((3, 3), (3, size - 4), (size - 4, 3)):
        qr_rings(fixed, size, center, 4, {2, 4})
    if version > 6:
        word = qr_remainder(version, 0x1F25, 12)
        for at in range(18):
            place = size - 11 + at % 3, at // 3
            fixed[place] = fixed[place[::-1]] = word >> at & 1
    return fixed


def qr_format(fixed: Modules, size: int, flip: int) -> None:
    """Add the two copies of the format: level L and the number of the mask."""
    word = qr_remainder(1 << 3 | flip, 0x537, 10) ^ 0x5412
    line = [*range(6), 7, 8]
    corner = [*((8, y) for y in line), *((x, 8) for x in reversed(line[:-1]))]
    apart = [*((size - 1 - at, 8) for at in range(8)), *((8, size - 7 + at) for at in range(7))]
    for at in range(15):
        fixed[corner[at]] = fixed[apart[at]] = word >> at & 1
    fixed[8, size - 8] = 1


def qr_path(size: int) -> Iterator[tuple[int, int]]:
    """Yield the modules in the order of the bits: by pairs of columns, up and down, from the right."""
    for turn, right in enumerate([*range(size - 1, 7, -2), 5, 3, 1]):
        for y in range(size) if turn % 2 else range(size - 1, -1, -1):
            yield from ((right, y), (right - 1, y))


def qr_matrix(data: bytes) -> list[list[int]]:
    """Return the rows of a QR code, 1 for dark: byte mode, level L, up to version 20.

    Raises ValueError if `data` is too long. Source: ISO/IEC 18004.
    """
    version, words = qr_codewords(data)
    size, drawn = 17 + 4 * version, []
    for number, light in enumerate(QR_MASKS):
        cells = qr_frame(version)
        qr_format(cells, size, number)
        bits = iter([word >> shift & 1 for word in words for shift in range(7, -1, -1)])
        for x, y in qr_path(size):
            if (x, y) not in cells:
                bit = next(bits, 0)
                cells[x, y] = bit if light(x, y) else 1 - bit
        drawn.append([[cells[x, y] for x in range(size)] for y in range(size)])
    return min(drawn, key=qr_lumps)  # the one with the fewest scans best


def qr_lumps(rows: list[list[int]]) -> int:
    """Count the squares of two by two in one colour."""
    lumps = 0
    for above, below in zip(rows, rows[1:]):
        for x in range(len(above) - 1):
            if above[x : x + 2] == below[x : x + 2] == [above[x]] * 2:
                lumps += 1
    return lumps


def qr_lines(text: str) -> list[str]:
    """Draw a QR code with half blocks, white on black, with a margin of two."""
    rows = qr_matrix(text.encode())
    width = len(rows) + 4
    blank, side = [0] * width, [0, 0]
    rows = [blank, blank, *([*side, *row, *side] for row in rows), blank, blank]
    rows += [[1] * width] * (len(rows) % 2)
    pairs = (zip(*rows[at : at + 2]) for at in range(0, width, 2))
    drawn = ("".join("█▀▄ "[2 * upper + lower] for upper, lower in pair) for pair in pairs)
    return [f"\x1b[97;40m{line}\x1b[0m" for line in drawn]


########################################################################################
# 20. TOKENS                                                                      [pure]
########################################################################################
# What is in tokens and keys, and how they are encoded and signed. Source: RFC 7515, 7519, 7636, 8017.


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def challenge(verifier: str) -> str:
    """Return the S256 challenge. Source: RFC 7636 4.2."""
    return base64url(hashlib.sha256(verifier.encode()).digest())


def same_text(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())


def read_object(body: bytes) -> Json:
    """Return the JSON object in `body`, an empty one if there is none."""
    with contextlib.suppress(ValueError, RecursionError):
        value = decode_json(body)
        return value if isinstance(value, dict) else {}
    return {}


def jwt_claims(token: object) -> Json:
    """Return what a JWT says, unchecked: it came from its issuer over TLS. {} if it is none."""
    payload = str(token).split(".")[1:2]
    with contextlib.suppress(ValueError):
        return read_object(base64.urlsafe_b64decode("".join(payload) + "==="))
    return {}


# RSA signatures, which Python's standard library does not make. Source: RFC 8017 8.2.1, A.1.2

PEM = re.compile(r"-----BEGIN ([A-Z ]*)PRIVATE KEY-----(.*?)-----END \1PRIVATE KEY-----", re.DOTALL)
RSA_OID = bytes.fromhex("06092a864886f70d010101")
SHA256_INFO = bytes.fromhex("3031300d060960864801650304020105000420")  # stands before the digest


def der_values(data: bytes) -> list[bytes]:
    """Return the contents of the values in DER that stand one after the other.

    Raises IndexError or ValueError if the last is cut. Source: X.690 8.1.
    """
    found, end = [], 0
    while end < len(data):
        length, start = data[end + 1], end + 2
        if length > 127:  # it stands in so many bytes
            start += length - 128
            length = int.from_bytes(data[end + 2 : start], "big")
        end = start + length
        found.append(data[start:end])
    if end > len(data):
        raise ValueError("cut short")
    return found


def read_rsa_key(pem: str) -> tuple[int, int]:
    """Return the modulus and the private exponent of a key in PKCS#8 or PKCS#1. Raises ProxyError."""
    match, why = PEM.search(pem), "is no PEM"
    if match:
        why = "is damaged" if match[1] in {"", "RSA "} else "is not of RSA"
        why = "is encrypted" if "ENCRYPTED" in match[0] else why
        with contextlib.suppress(ValueError, IndexError):
            [key] = der_values(base64.b64decode(re.sub(r"\\n|\s", "", match[2]), validate=True))
            if not match[1]:  # PKCS#8: of which kind it is, and the key
                _, kind, wrapped = der_values(key)[:3]
                why = why if kind.startswith(RSA_OID) else "is not of RSA"
                [key] = der_values(wrapped)
            _, modulus, public, private = (int.from_bytes(v, "big") for v in der_values(key)[:4])
            if pow(pow(2, public, modulus), private, modulus) == 2:
                return modulus, private
    advice = "download a new JSON key of the service account"
    raise ProxyError("unauthorized", f"the private key {why}: {advice}")


def rs256(text: str, pem: str) -> str:
    """Return a JWS of `text`, its header and payload, signed with a key. Source: RFC 7515 A.2."""
    modulus, private = read_rsa_key(pem)
    size, told = -(-modulus.bit_length() // 8), SHA256_INFO + hashlib.sha256(text.encode()).digest()
    block = b"\0\1" + b"\xff" * (size - len(told) - 3) + b"\0" + told
    signature = pow(int.from_bytes(block, "big"), private, modulus).to_bytes(size, "big")
    return f"{text}.{base64url(signature)}"


########################################################################################
# 21. BCRYPT                                                                      [pure]
########################################################################################
# Hashes of the management key, where neither the system nor a package can make them: slow, so that
# each is made with little cost. The tables are digits of pi. Source: Provos, Mazieres, "A Future-
# Adaptable Password Scheme", 1999; Schneier, "Description of a New Variable-Length Key", 1993.

WORD = 0xFFFFFFFF
BCRYPT_HASH = re.compile(r"\$2[aby]\$(\d\d)\$([./A-Za-z0-9]{22})([./A-Za-z0-9]{31})")
BCRYPT_LETTERS = b"./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
BASE64_LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
FROM_BCRYPT = bytes.maketrans(BCRYPT_LETTERS, BASE64_LETTERS)
TO_BCRYPT = bytes.maketrans(BASE64_LETTERS, BCRYPT_LETTERS)
BCRYPT_TEXT = b"OrpheanBeholderScryDoubt"  # what is encrypted


def inverse_arctan(number: int, one: int) -> int:
    """Return arctan(1/number) as a multiple of 1/one."""
    power = total = one // number
    square, divisor = number * number, 1
    while power:
        power //= -square
        divisor += 2
        total += power // divisor
    return total


@functools.lru_cache(maxsize=1)
def pi_words() -> tuple[int, ...]:
    """Return the 1042 words of 32 bits that pi's fraction begins with: Blowfish's tables."""
    size, spare = 32 * 1042, 64
    one = 1 << (size + spare)
    pi = 4 * (4 * inverse_arctan(5, one) - inverse_arctan(239, one))  # Machin, 1706
    digits = (pi - 3 * one) >> spare
    return big_words(digits.to_bytes(size // 8, "big"), 1042)


def big_words(data: bytes, amount: int) -> tuple[int, ...]:
    """Return so many words of 32 bits, the data repeated as often as that takes."""
    repeated = data * (4 * amount // len(data) + 1)
    return struct.unpack(f">{amount}I", repeated[: 4 * amount])


class Blowfish:
    """The cipher's tables, and what bcrypt does with them."""

    def __init__(self) -> None:
        self._keys, self._boxes = list(pi_words()[:18]), list(pi_words()[18:])

    def encrypt(self, left: int, right: int) -> tuple[int, int]:
        boxes = self._boxes
        for key in self._keys[:16]:
            left ^= key
            mixed = boxes[left >> 24] + boxes[256 + (left >> 16 & 255)]
            mixed = (mixed ^ boxes[512 + (left >> 8 & 255)]) + boxes[768 + (left & 255)]
            right ^= mixed & WORD
            left, right = right, left
        return right ^ self._keys[17], left ^ self._keys[16]

    def expand(self, key: tuple[int, ...], salt: tuple[int, ...]) -> None:
        """Mix 18 words of a key, and four of a salt, into the tables."""
        self._keys = [one ^ other for one, other in zip(self._keys, key)]
        left = right = 0
        salts = itertools.cycle((salt[:2], salt[2:]))
        for table in (self._keys, self._boxes):
            for at in range(0, len(table), 2):
                first, second = next(salts)
                left, right = self.encrypt(left ^ first, right ^ second)
                table[at : at + 2] = left, right


def bcrypt(key: bytes, setting: bytes) -> bytes:
    """Return the hash of a key as `setting`, a hash or its beginning, says. Raises ValueError."""
    found = BCRYPT_HASH.match((setting[:29] + b"." * 31).decode("ascii", "replace"))
    if not found or not 4 <= int(found[1]) <= 31:
        raise ValueError("this is no bcrypt hash")
    salt = big_words(base64.b64decode(found[2].encode().translate(FROM_BCRYPT) + b"=="), 4)
    words = big_words(key[:72] + b"\0", 18)
    fish = Blowfish()
    fish.expand(words, salt)
    for _ in range(2 ** int(found[1])):
        fish.expand(words, (0, 0, 0, 0))
        fish.expand(big_words(struct.pack(">4I", *salt), 18), (0, 0, 0, 0))
    sealed: list[int] = []
    text = big_words(BCRYPT_TEXT, 6)
    for at in range(0, 6, 2):
        pair = text[at], text[at + 1]
        for _ in range(64):
            pair = fish.encrypt(*pair)
        sealed += pair
    letters = base64.b64encode(struct.pack(">6I", *sealed)[:23]).translate(TO_BCRYPT)[:31]
    return setting[:29] + letters


########################################################################################
# 22. LOGINS
########################################################################################
# How each provider hands out tokens, renews and revokes them: one row of LOGINS each. The program
# says who it is. Source: spec/providers.md 1 to 9, 16.


class Options(NamedTuple):
    """What the user asked of a login."""

    browser: bool = True  # False: print the URL only
    device: bool = False  # by a code typed on another device, where the provider has that
    port: int = 0  # to listen on; 0: the provider's own
    project: str = ""  # Google: one id, several with commas, or ALL
    source: str = ""  # take over this file, `auto` for where the vendor keeps it
    prefix: str = ""  # for the names of its models


DEAD_CODES = frozenset([  # what says that a refresh token will never work again
    "invalid_grant", "refresh_token_expired", "refresh_token_reused", "refresh_token_invalidated", "token_invalidated",
    "token_expired", "app_session_terminated", "account_session_expired", "account_deactivated", "account_suspended",
    "account_deleted", "access_denied", "expired_token",
])  # fmt: skip
OUR_FAULT = frozenset(["invalid_client", "unauthorized_client", "unsupported_grant_type"])
OPENAI_AUTH = "https://api.openai.com/auth"  # the claim with the account's facts


def error_code(answer: Json) -> str:
    """Return the code of a refusal, in any of the places where providers put it."""
    error = answer.get("error")
    if isinstance(error, dict):
        return str(error.get("code") or error.get("type") or error.get("status") or "")
    return str(answer.get("error_code") or error or "")


def token_refusal(title: str, reply: Reply, answer: Json) -> ProxyError:
    """Return the error for a refused call, with when to come back if the provider says so."""
    error = answer.get("error")
    said = error if isinstance(error, dict) else answer
    text = said.get("error_description") or said.get("message") or error_code(answer)
    text = text or f"HTTP {reply.status}"
    failure = error_of_status(max(reply.status, 400), f"{title} refused: {text}")
    failure.retry_after = wait_in_headers(reply.headers, time.time())
    failure.body, failure.headers = reply.body, reply.headers
    return failure


# Files: from the answer of a token URL to what is stored


def inside(data: Json, key: str) -> Json:
    """Return the object that an object holds, an empty one if it holds none: tokens must not hang on it."""
    value = data.get(key)
    return value if isinstance(value, dict) else {}


def service_account(data: Json) -> Json:
    """Return the key of a service account that a file holds; an empty one if it holds none."""
    return inside(data, "service_account")


def renewer(data: Json) -> str:
    """Return what gets new tokens: a refresh token, or the private key of a service account."""
    key = field_of(data, "refresh_token") or service_account(data).get("private_key")
    return str(key or "")


def refresh_request(flow: Flow, token: str) -> dict[str, str]:
    return {"kind": "refresh_token", "refresh_token": token}


def service_request(flow: Flow, key: str) -> dict[str, str]:
    """Return a claim that the service account itself signs. Source: RFC 7523 2.1, 3."""
    account, now = service_account(flow.data), int(flow.now()) - 10  # clocks differ a little
    claims = {"iss": account.get("client_email"), "scope": flow.row.scope, "exp": now + 3600}
    claims.update(aud=account.get("token_uri") or flow.row.token_url, iat=now)
    head = {"alg": "RS256", "typ": "JWT", "kid": account.get("private_key_id")}
    text = ".".join(base64url(dumps(part).encode()) for part in (head, claims))
    return {"kind": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": rs256(text, key)}


def token_fields(flow: Flow, answer: Json) -> Json:
    """Return what every provider's file holds: tokens, when they end and when they came."""
    row, now = flow.row, flow.now()
    fields = {key: answer[key] for key in row.keep.split() if answer.get(key)}
    life, ends = read_time(answer.get("expires_in")), read_time(answer.get("expires_at"))
    ends = now + life if life else ends
    ends = ends or read_time(jwt_claims(answer.get("access_token")).get("exp"))
    fields["expired"] = write_time(ends, utc=row.utc) if ends else None
    fields["last_refresh"] = write_time(now, utc=row.utc)
    return fields


def codex_fields(flow: Flow, answer: Json) -> Json:
    """Add what the id token says of the account."""
    claims = jwt_claims(answer.get("id_token"))
    account = inside(claims, OPENAI_AUTH).get("chatgpt_account_id") or answer.get("account_id")
    found = {"account_id": account, "email": claims.get("email")}
    return {**token_fields(flow, answer), **{key: value for key, value in found.items() if value}}


def codex_file(data: Json) -> str:
    """Name the file as CLIProxyAPI does, so that one person's accounts do not overwrite each other."""
    plan = re.sub(r"[^a-z0-9]+", "-", plan_of(data).lower()).strip("-")
    account = hashlib.sha256(str(data.get("account_id")).encode()).hexdigest()[:8]
    words = ["codex", account if plan == "team" else "", data.get("email"), plan]
    return f"{'-'.join(str(word) for word in words if word)}.json"


def plan_of(data: Json) -> str:
    """Return the name of the account's subscription; empty if the file does not tell."""
    told = inside(jwt_claims(data.get("id_token")), OPENAI_AUTH).get("chatgpt_plan_type")
    return str(told or inside(data, "cliproxy").get("plan") or "")


# what to show, in RFC 8628's names; and how to ask for the tokens
Device = tuple[Json, Callable[[], Json]]


class Window(NamedTuple):
    """How much of one of a provider's limits is used."""

    name: str  # 5h, 7d, ...
    used: float  # percent
    resets_at: float | None  # Unix time


class Login(NamedTuple):
    """How one provider logs in. Functions get the Flow; the rest is what its pages call it."""

    provider: str
    title: str
    client_id: str
    token_url: str
    authorize_url: str = ""
    device_url: str = ""
    base_url: str = ""
    profile_url: str = ""
    usage_url: str = ""
    revoke_url: str = ""
    projects_url: str = "https://cloudresourcemanager.googleapis.com/v1/projects"
    services_url: str = "https://serviceusage.googleapis.com/v1"
    client_secret: str = ""
    redirect_port: int = 0
    redirect_path: str = ""  # empty: there is no browser flow
    redirect_name: str = "redirect_uri"
    fixed_port: bool = False  # the provider takes no other port in the redirect URI
    manual: str = ""  # redirect URI of the provider's own page, which shows the code
    scope: str = ""
    query: Mapping[str, str] = EMPTY  # further parameters of the authorize URL
    form: bool = True  # requests to the token URL are forms, else JSON
    pkce: bool = True
    rotates: bool = True  # a refresh kills the refresh token it used
    utc: bool = False  # times in the file end with Z
    lead: float = 300.0  # seconds before expiry to renew
    dead: tuple[int, ...] = (401,)  # statuses of a refresh that end the credential
    keep: str = "access_token refresh_token"  # of the token answer, what the file holds
    same: str = "email"  # two files with these alike are one account; the first must be there
    file: Callable[[Json], str] = lambda data: f"{data['type']}-{data.get('email') or 'account'}.json"
    lacking: str = ""  # a client secret is needed, and this is what to say if it is not found
    find_secret: Callable[[], str] = str
    basic: bool = False  # the secret goes into a header as well
    terms: str = ""  # what the user should know before
    fields: Callable[[Flow, Json], Json] = token_fields  # token answer -> file; asks nobody
    request: Callable[[Flow, str], dict[str, str]] = refresh_request  # for new tokens
    finish: Callable[[Flow, Json], Json] | None = None  # file so far -> more of it; may ask
    again: bool = False  # finish after each refresh too
    device: Callable[[Flow], Device] | None = None
    knock: Callable[[Json], Mapping[str, str]] = lambda _: EMPTY  # headers of calls for tokens
    headers: Callable[[Json], Mapping[str, str]] = lambda _: EMPTY  # headers of calls with a token
    usage: Callable[[Json], list[Window]] | None = None


TOKEN_KEYS = ("access_token", "refresh_token", "id_token")


def is_token(value: object) -> bool:
    """Tell whether something can be sent as a token: a text without line breaks and the like."""
    return isinstance(value, str) and value.isascii() and value.isprintable()


class Flow:
    """One login or refresh under way: a row with the owner's overrides, and whom it talks to."""

    def __init__(
        self,
        row: Login,
        config: Config,
        data: Json = EMPTY,
        *,
        now: Callable[[], float] = time.time,
        terminal: Terminal | None = None,
        patience: float = 30.0,
    ) -> None:
        token_url = data.get("token_endpoint") or service_account(data).get("token_uri")
        cells = {"token_url": token_url, "client_id": field_of(data, "client_id")}
        for key, value in config["providers"].get(row.provider, {}).items():
            name = key.replace("-", "_")
            if value and name in Login._fields and isinstance(value, (str, int)):
                cells[name] = value
        self.row = row._replace(**{key: value for key, value in cells.items() if value})
        self.data, self.now = data, now
        self.patience = patience  # seconds for each call
        self.terminal = terminal or Terminal(lambda text: None)
        self.options = Options()
        self.proxy = str(data.get("proxy_url") or config["proxy-url"] or "")
        self.state, self.verifier = os.urandom(16).hex(), base64url(os.urandom(96))
        self.port = row.redirect_port

    def call(
        self,
        url: str,
        data: Json | None = None,
        headers: Mapping[str, str] = EMPTY,
        *,
        form: bool = False,
        token: str = "",
    ) -> tuple[Reply, Json]:
        """GET `url`, or POST `data`; return the reply and the JSON object in it, if any."""
        sent, body = dict(headers), b""
        if data is not None:
            body = (urlencode(data) if form else dumps(data)).encode()
            sent["content-type"] = f"application/{'x-www-form-urlencoded' if form else 'json'}"
        if token:
            sent["authorization"] = f"Bearer {token}"
        method = "GET" if data is None else "POST"
        reply = fetch(method, url, sent, body, proxy=self.proxy, timeout=self.patience)
        return reply, read_object(reply.body)

    def grant(self, kind: str, **fields: str) -> Json:
        """Ask the token URL; return its answer. Raises ProxyError, with the answer as `body`."""
        row = self.row
        headers = row.knock(self.data)
        client = {"client_id": row.client_id} if row.client_id else {}
        body = {"grant_type": kind, **client, **fields}
        if row.lacking:
            body["client_secret"] = self.secret()
        if row.basic:
            pair = f"{row.client_id}:{body['client_secret']}".encode()
            headers = {**headers, "authorization": f"Basic {base64.b64encode(pair).decode()}"}
        reply, answer = self.call(row.token_url, body, headers, form=row.form)
        if reply.status >= 400 or "error" in answer or not answer.get("access_token"):
            raise token_refusal(row.title, reply, answer)
        if not all(is_token(answer[key]) for key in TOKEN_KEYS if answer.get(key)):
            raise ProxyError("upstream_failed", f"{row.title} answered with what is no token")
        return answer

    def secret(self) -> str:
        """Return the client secret, which we do not ship. Raises ProxyError that says what to do."""
        token = self.data.get("token")
        stored = token.get("client_secret") if isinstance(token, dict) else ""
        found = self.row.client_secret or stored or self.row.find_secret()
        if not found:
            key = f"providers.{self.row.provider}.client-secret"
            message = f"{self.row.title}: {self.row.lacking}, or set {key} in the config"
            raise ProxyError("invalid_request", message)
        return str(found)

    def redirect(self, *, manual: bool = False) -> str:
        """Return the redirect URI: our own door, or the provider's page that shows the code."""
        row = self.row
        port = row.redirect_port if row.fixed_port else self.port
        local = f"http://localhost:{port}{row.redirect_path}"
        return row.manual if manual and row.manual else local

    def authorize(self, *, manual: bool = False) -> str:
        """Return the URL that the user opens."""
        row = self.row
        query = {"client_id": row.client_id, "response_type": "code", "state": self.state}
        query.update({row.redirect_name: self.redirect(manual=manual), **row.query})
        query.update({"scope": row.scope} if row.scope else {})
        if row.pkce:
            query.update(code_challenge=challenge(self.verifier), code_challenge_method="S256")
        return f"{row.authorize_url}?{urlencode(query)}"

    def read_code(self, text: str) -> tuple[str, str]:
        """Return the code, and the redirect URI it belongs to, in whatever was pasted.

        That is the URL of the last page, its query or fragment, the `code#state` that a provider's
        page shows, or, as PKCE ties it to this login, a bare code. Raises ProxyError: forbidden
        if the user refused, else invalid_request.
        """
        head, _, tail = text.strip().strip("'\"<>").partition("#")
        fields = dict(parse_qsl(f"{head.partition('?')[2] or head}&{tail}"))
        code, state = fields.get("code", ""), fields.get("state", "")
        bare = not code and re.fullmatch(r"[\w./~+-]{20,}", head) is not None
        if bare:
            code, state = head, tail or (self.state if self.row.pkce else "")
        self._check_state(code, state, fields)
        page = self.row.manual.partition("://")[2]
        return code, self.redirect(manual=bare or bool(page and page in head))

    def _check_state(self, code: str, state: str, fields: Mapping[str, str]) -> None:
        """Refuse what is no answer to this login: without our state it may be of any page."""
        ours = same_text(state, self.state)
        if "error" in fields and ours:  # RFC 6749 4.1.2.1
            why = fields.get("error_description") or fields["error"]
            message = f"{self.row.title} refused the login: {why}; nothing was saved"
            raise ProxyError("forbidden", message)
        if not code or not ours:
            what = "that is no answer to this login" if state else "that holds no code and state"
            advice = "open the URL above, and paste the address where it ends"
            raise ProxyError("invalid_request", f"{what}: {advice}")


# What single providers need


def codex_device(flow: Flow) -> Device:
    """Begin OpenAI's own device flow, which is not RFC 8628. Source: spec/providers.md 3.1."""
    row = flow.row
    reply, shown = flow.call(f"{row.device_url}/usercode", {"client_id": row.client_id})
    if reply.status == 404:
        advice = "use --no-browser, or allow it in ChatGPT's security settings"
        raise ProxyError("forbidden", f"this account has no device login: {advice}")
    user_code = shown.get("user_code") or shown.get("usercode")
    if not user_code:
        raise token_refusal(row.title, reply, shown)
    origin = row.device_url.partition("/api/")[0]
    asked = {"device_auth_id": shown.get("device_auth_id"), "user_code": user_code}

    def poll() -> Json:
        reply, answer = flow.call(f"{row.device_url}/token", asked)
        if reply.status in {403, 404}:
            return {"error": "authorization_pending"}
        if not answer.get("authorization_code"):
            raise token_refusal(row.title, reply, answer)
        return flow.grant(
            "authorization_code",
            code=answer["authorization_code"],
            code_verifier=answer.get("code_verifier", ""),
            redirect_uri=f"{origin}/deviceauth/callback",
        )

    page = {"verification_uri": f"{origin}/codex/device", "user_code": user_code}
    return {**page, "interval": shown.get("interval"), "expires_in": 900}, poll


def oauth_device(flow: Flow) -> Device:
    """Begin a device flow. Source: RFC 8628; Qwen adds PKCE, Kimi headers."""
    row = flow.row
    asked = {"client_id": row.client_id}
    fields = {**asked, "grant_type": "urn:ietf:params:oauth:grant-type:device_code"}
    if row.scope:
        asked["scope"] = row.scope
    if row.pkce:
        asked.update(code_challenge=challenge(flow.verifier), code_challenge_method="S256")
        fields["code_verifier"] = flow.verifier
    reply, shown = flow.call(row.device_url, asked, row.knock(flow.data), form=True)
    if not shown.get("device_code"):
        raise token_refusal(row.title, reply, shown)
    fields["device_code"] = shown["device_code"]

    def poll() -> Json:
        reply, answer = flow.call(row.token_url, fields, row.knock(flow.data), form=True)
        busy = reply.status == 429 and not error_code(answer)
        return {"error": "slow_down"} if busy else answer

    return shown, poll


def xai_device(flow: Flow) -> Device:
    """Find the endpoints first; only those of x.ai itself are believed."""
    reply, found = flow.call(flow.row.authorize_url)
    home = urlsplit(flow.row.authorize_url)
    names = {"device_url": "device_authorization_endpoint", "token_url": "token_endpoint"}
    urls: Json = {key: str(found.get(name) or "") for key, name in names.items()}
    for url in map(urlsplit, urls.values()):
        is_xai = url.scheme == "https" and f".{url.hostname}".endswith(".x.ai")
        if not is_xai and url[:2] != home[:2]:
            raise token_refusal(f"xAI names {url.geturl()!r}, which is not its own: it", reply, found)
    flow.row = flow.row._replace(**urls)
    return oauth_device(flow)


def claude_account(answer: Json, email: str) -> Json:
    """Return whose account it is, in the file's words."""
    account, team = inside(answer, "account"), inside(answer, "organization")
    found = {
        "email": account.get(email),
        "account_uuid": account.get("uuid"),
        "organization_uuid": team.get("uuid"),
        "organization_name": team.get("name"),
    }
    return {key: value for key, value in found.items() if value}


def claude_fields(flow: Flow, answer: Json) -> Json:
    fields = token_fields(flow, answer)
    return {"id_token": "", **fields, **claude_account(answer, "email_address")}


def claude_finish(flow: Flow, data: Json) -> Json:
    """Add the plan, and what the token answer left out."""
    row, token = flow.row, data["access_token"]
    profile: Json = {}
    with contextlib.suppress(ProxyError):  # the login is good without it
        profile = flow.call(row.profile_url, None, row.headers(data), token=token)[1]
    more = claude_account(profile, "email")
    kind = str((profile.get("organization") or {}).get("organization_type") or "")
    if kind:
        more["cliproxy"] = {"plan": kind.rpartition("claude_")[2]}
    return {key: value for key, value in more.items() if key != "email" or not data.get("email")}


CLAUDE_WINDOWS = (
    ("five_hour", "5h"), ("seven_day", "7d"), ("seven_day_opus", "7d opus"), ("seven_day_sonnet", "7d sonnet"),
)  # fmt: skip


def window_of(name: str, limit: Json, used: str, resets: str) -> list[Window]:
    """Return a limit as a window, [] if the provider says nothing of it."""
    share: Any = limit.get(used)
    if not isinstance(share, (int, float)):
        return []
    return [Window(name, share, read_time(limit.get(resets)))]


def claude_usage(body: Json) -> list[Window]:
    """Read `/api/oauth/usage`."""
    windows = []
    for key, name in CLAUDE_WINDOWS:
        windows += window_of(name, body.get(key) or {}, "utilization", "resets_at")
    return windows


def window_name(seconds: float) -> str:
    """Return what people call a limit of so many seconds: 5h, 7d."""
    hours = int(seconds) // 3600
    return f"{hours // 24}d" if hours >= 48 else f"{hours}h"


def codex_usage(body: Json) -> list[Window]:
    """Read `wham/usage`; a window is named by its length."""
    limits = [{"rate_limit": body.get("rate_limit")}, *(body.get("additional_rate_limits") or ())]
    windows = []
    for limit in limits:
        for key in ("primary_window", "secondary_window"):
            window = (limit.get("rate_limit") or {}).get(key) or {}
            name = window_name(window.get("limit_window_seconds") or 0)
            name = f"{name} {limit.get('limit_name', '')}".strip()
            windows += window_of(name, window, "used_percent", "reset_at")
    return windows


CLIENT_SECRET = re.compile(r"""OAUTH_CLIENT_SECRET\s*=\s*["']([^"']+)["']""")
BUNDLES = (
    "bundle/*.js", "dist/src/code_assist/oauth2.js",
    "node_modules/@google/gemini-cli-core/dist/src/code_assist/oauth2.js", "gemini-cli-core/dist/src/code_assist/oauth2.js",
)  # fmt: skip


def installed_secret() -> str:
    """Return the client secret out of the Gemini CLI on this machine; empty if it has none.

    Source: its oauth2.ts, whose comment says why that secret is public.
    """
    import shutil  # noqa: PLC0415

    program = shutil.which("gemini")
    folders = [*Path(os.path.realpath(program)).parents][:4] if program else []
    for path in (path for folder in folders for glob in BUNDLES for path in folder.glob(glob)):
        found = CLIENT_SECRET.search(path.read_text("utf-8", "replace"))
        if found:
            return found[1]
    return ""


def google_fields(flow: Flow, answer: Json) -> Json:
    """Lay the tokens out as CLIProxyAPI does for Gemini, without the client secret."""
    fields = token_fields(flow, answer)
    fields["expiry"] = fields.pop("expired")
    token = {key: value for key, value in fields.items() if key != "last_refresh"}
    about = {"token_uri": flow.row.token_url, "client_id": flow.row.client_id}
    return {**fields, "token": {**token, **about}}


def antigravity_fields(flow: Flow, answer: Json) -> Json:
    issued = {"expires_in": answer.get("expires_in"), "timestamp": int(flow.now() * 1000)}
    return {**token_fields(flow, answer), **issued}


def google_finish(flow: Flow, data: Json) -> Json:
    """Find out whose account it is, and see to it that a project may use the service."""
    token = data["access_token"]
    reply, found = flow.call(flow.row.profile_url, token=token)
    if not found.get("email"):
        raise token_refusal(flow.row.title, reply, found)
    wanted = flow.options.project.replace(" ", "")
    wanted = ",".join(google_projects(flow, token)) if wanted == "ALL" else wanted
    projects = [google_project(flow, token, name) for name in wanted.split(",")]
    return {"email": found["email"], "project_id": ",".join(projects)}


def google_projects(flow: Flow, token: str) -> list[str]:
    found = flow.call(flow.row.projects_url, token=token)[1].get("projects") or ()
    return [str(project.get("projectId")) for project in found]


def google_choice(flow: Flow, token: str) -> str:
    """Let the user choose a project."""
    names = google_projects(flow, token)
    if len(names) == 1:
        return names[0]
    flow.terminal.say(f"Your projects: {', '.join(names) or 'none that we can see'}")
    name = flow.terminal.ask("Which project shall be used?")
    if not name or name.isdigit():
        raise ProxyError("invalid_request", "a project id is needed, no number: --project_id ID")
    return name


GOOGLE_CLIENT = {"ideType": "IDE_UNSPECIFIED", "platform": "PLATFORM_UNSPECIFIED", "pluginType": "GEMINI"}


def google_project(flow: Flow, token: str, wanted: str) -> str:
    """Return the project to use, after onboarding if need be. Source: spec/providers.md 4.1."""
    metadata = {**GOOGLE_CLIENT, **filled(duetProject=wanted)}
    asked = {"metadata": metadata, **filled(cloudaicompanionProject=wanted)}
    url = f"{flow.row.base_url}/v1internal:loadCodeAssist"
    reply, loaded = flow.call(url, asked, token=token)
    if reply.status >= 400 and b"SECURITY_POLICY_VIOLATED" not in reply.body:
        raise token_refusal(flow.row.title, reply, loaded)
    project = project_id(loaded) or wanted
    if loaded.get("currentTier") and project:
        return project
    return google_onboard(flow, token, wanted, google_tier(loaded))


def google_tier(loaded: Json) -> Json:
    """Return the tier to sign an account up for. Raises ProxyError if Google has none for it."""
    for tier in loaded.get("allowedTiers") or ():
        if tier.get("isDefault"):
            found: Json = tier
            return found
    barred = loaded.get("ineligibleTiers")
    if barred:
        reasons = [f"{tier.get('reasonMessage')} {tier.get('validationUrl', '')}" for tier in barred]
        raise ProxyError("forbidden", f"Google does not serve this account: {'; '.join(reasons)}")
    return LEGACY_TIER


LEGACY_TIER = {"id": "legacy-tier", "userDefinedCloudaicompanionProject": True}


def google_onboard(flow: Flow, token: str, wanted: str, tier: Json) -> str:
    """Sign the account up for a tier; return its project. Of the free one Google chooses it."""
    if not wanted and tier.get("userDefinedCloudaicompanionProject"):
        wanted = google_choice(flow, token)
    if wanted:
        google_enable(flow, token, wanted)
    base = f"{flow.row.base_url}/v1internal"
    body: Json = {"tierId": tier["id"], "metadata": GOOGLE_CLIENT}
    if wanted and tier["id"] != "free-tier":
        body["cloudaicompanionProject"] = wanted
    reply, work = flow.call(f"{base}:onboardUser", body, token=token)
    for _ in range(24):
        if work.get("done") or reply.status >= 400:
            break
        flow.terminal.pause(5)
        reply, work = flow.call(f"{base}/{work.get('name')}", token=token)
    if not work.get("done"):
        raise token_refusal(flow.row.title, reply, work)
    return project_id(work.get("response") or {}) or wanted


def project_id(answer: Json) -> str:
    project = answer.get("cloudaicompanionProject") or ""
    return str(project.get("id", "") if isinstance(project, dict) else project)


def google_enable(flow: Flow, token: str, project: str) -> None:
    """Switch the service on in the user's project, if it is off."""
    url = f"{flow.row.services_url}/projects/{project}/services/cloudaicompanion.googleapis.com"
    reply, found = flow.call(url, token=token)
    if found.get("state") != "ENABLED":
        reply, found = flow.call(f"{url}:enable", {}, token=token)
        if reply.status >= 400:
            raise token_refusal(f"enabling cloudaicompanion in {project}: Google", reply, found)


def kimi_knock(data: Json) -> dict[str, str]:
    """Name this program and a made-up device. Source: spec/providers.md 8."""
    return {
        "x-msh-platform": "cliproxy",
        "x-msh-version": __version__,
        "x-msh-device-name": "cliproxy",
        "x-msh-device-model": sys.platform,
        "x-msh-device-id": str(data.get("device_id", "")),
    }


def kimi_finish(flow: Flow, _data: Json) -> Json:
    return {"device_id": flow.data["device_id"], "timestamp": int(flow.now() * 1000)}


def qwen_finish(flow: Flow, data: Json) -> Json:
    name = data.get("email") or flow.terminal.ask("A name for this account, such as your e-mail:")
    return {"email": name or str(int(flow.now()))}


def iflow_finish(flow: Flow, data: Json) -> Json:
    """Fetch the key that the upstream takes instead of the token."""
    url = f"{flow.row.profile_url}?{urlencode({'accessToken': data['access_token']})}"
    reply, answer = flow.call(url)
    found = answer.get("data") or {}
    if not found.get("apiKey"):
        raise token_refusal(flow.row.title, reply, answer)
    return {"api_key": found["apiKey"], "email": found.get("email") or found.get("phone") or "iflow"}


def xai_finish(flow: Flow, data: Json) -> Json:
    claims = jwt_claims(data.get("id_token"))
    who = claims.get("email") or claims.get("sub") or str(int(flow.now() * 1000))
    more = {"sub": claims["sub"]} if claims.get("sub") else {}
    return {**more, "email": who, "token_endpoint": flow.row.token_url, "auth_kind": "oauth"}


GOOGLE = "https://www.googleapis.com/auth/"
GOOGLE_SCOPE = f"{GOOGLE}cloud-platform {GOOGLE}userinfo.email {GOOGLE}userinfo.profile"
GOOGLE_QUERY = {"access_type": "offline", "prompt": "consent"}
GOOGLE_TERMS = (
    "Google's terms cover this login for Google's own programs, and accounts have been restricted for use "
    "by others. The supported way is an API key: `gemini-api-key` in the config."
)
CLAUDE_BETA = {"anthropic-beta": "oauth-2025-04-20"}

# fmt: off
LOGINS = {row.provider: row for row in (
    Login(
        "claude", "Claude", "9d1c250a-e61b-44d9-88ed-5944d1962f5e", "https://platform.claude.com/v1/oauth/token",
        authorize_url="https://claude.ai/oauth/authorize", redirect_port=54545, redirect_path="/callback",
        manual="https://platform.claude.com/oauth/code/callback", scope="user:profile user:inference", query={"code": "true"},
        profile_url="https://api.anthropic.com/api/oauth/profile", usage_url="https://api.anthropic.com/api/oauth/usage",
        revoke_url="https://platform.claude.com/v1/oauth/token/revoke", form=False, lead=4 * 3600, dead=(400, 401, 403, 404),
        same="email organization_uuid", fields=claude_fields, finish=claude_finish, headers=lambda _: CLAUDE_BETA,
        knock=lambda data: CLAUDE_BETA if data.get("token_endpoint") else EMPTY, usage=claude_usage,
        terms="Anthropic's terms do not let other programs use the credentials of Free, Pro and Max plans, and it may refuse "
        "or bill such requests. The supported way is an API key: `claude-api-key` in the config.",
    ),
    Login(
        "codex", "Codex", "app_EMoamEEZ73f0CkXaXp7hrann", "https://auth.openai.com/oauth/token",
        authorize_url="https://auth.openai.com/oauth/authorize", redirect_port=1455, redirect_path="/auth/callback",
        fixed_port=True, scope="openid email profile offline_access", device_url="https://auth.openai.com/api/accounts/deviceauth",
        query={"prompt": "login", "id_token_add_organizations": "true", "codex_cli_simplified_flow": "true", "originator": "cliproxy"},
        usage_url="https://chatgpt.com/backend-api/wham/usage", lead=5 * 86400, keep="id_token access_token refresh_token",
        same="email account_id", file=codex_file, fields=codex_fields, device=codex_device, usage=codex_usage,
        headers=lambda data: {"chatgpt-account-id": str(data.get("account_id") or "")},
    ),
    Login(
        "gemini", "Gemini", "681255809395-oo8ft2oprdrnp9e3aqf6av3hmdib135j.apps.googleusercontent.com",
        "https://oauth2.googleapis.com/token", authorize_url="https://accounts.google.com/o/oauth2/v2/auth",
        redirect_port=8085, redirect_path="/oauth2callback", manual="https://codeassist.google.com/authcode",
        scope=GOOGLE_SCOPE, query=GOOGLE_QUERY, base_url="https://cloudcode-pa.googleapis.com", rotates=False, lead=60,
        profile_url="https://www.googleapis.com/oauth2/v1/userinfo?alt=json", keep="access_token refresh_token token_type",
        same="email project_id", fields=google_fields, finish=google_finish, find_secret=installed_secret,
        file=lambda data: f"gemini-{data['email']}-{'all' if ',' in data['project_id'] else data['project_id']}.json",
        lacking="this login needs the client secret of the Gemini CLI; install that (npm install -g @google/gemini-cli)",
        terms=f"Since 2026-06-18 Google serves individuals no longer this way, only Standard and Enterprise. {GOOGLE_TERMS}",
    ),
    Login(
        "antigravity", "Antigravity", "1071006060591-tmhssin2h21lcre235vtolojh4g403ep.apps.googleusercontent.com",
        "https://oauth2.googleapis.com/token", authorize_url="https://accounts.google.com/o/oauth2/v2/auth",
        redirect_port=51121, redirect_path="/oauth-callback", scope=f"{GOOGLE_SCOPE} {GOOGLE}cclog {GOOGLE}experimentsandconfigs",
        query=GOOGLE_QUERY, base_url="https://cloudcode-pa.googleapis.com", rotates=False, fields=antigravity_fields,
        profile_url="https://www.googleapis.com/oauth2/v1/userinfo?alt=json", finish=google_finish,
        lacking="this login needs a client secret that is in no public package",
        terms=f"Antigravity is known to refuse programs that say who they are, as this one does. {GOOGLE_TERMS}",
    ),
    Login(
        "vertex", "Vertex", "", "https://oauth2.googleapis.com/token", scope=f"{GOOGLE}cloud-platform", rotates=False,
        keep="access_token", same="project_id", file=lambda data: f"vertex-{data['project_id']}.json", request=service_request,
    ),
    Login(
        "kimi", "Kimi", "17e5f671-d194-4dfb-9706-5516cb48c098", "https://auth.kimi.com/api/oauth/token",
        device_url="https://auth.kimi.com/api/oauth/device_authorization", pkce=False, utc=True, dead=(401, 403),
        keep="access_token refresh_token token_type scope", same="device_id", file=lambda data: f"kimi-{data['timestamp']}.json",
        finish=kimi_finish, knock=kimi_knock, device=oauth_device,
    ),
    Login(
        "xai", "xAI", "b1a00492-073a-47ea-816f-4c329264a828", "https://auth.x.ai/oauth2/token",
        authorize_url="https://auth.x.ai/.well-known/openid-configuration", pkce=False, utc=True,
        scope="openid profile email offline_access grok-cli:access api:access", finish=xai_finish, device=xai_device,
        keep="access_token refresh_token id_token token_type expires_in",
    ),
    Login(
        "qwen", "Qwen", "f0304373b74a44d2b584a3fb70ca9e56", "https://chat.qwen.ai/api/v1/oauth2/token",
        device_url="https://chat.qwen.ai/api/v1/oauth2/device/code", scope="openid profile email model.completion",
        lead=3 * 3600, dead=(400, 401), keep="access_token refresh_token resource_url", finish=qwen_finish, device=oauth_device,
        terms="Qwen closed this login on 2026-04-15; it works only for accounts that it still lets in.",
    ),
    Login(
        "iflow", "iFlow", "10009311001", "https://iflow.cn/oauth/token", authorize_url="https://iflow.cn/oauth",
        redirect_port=11451, redirect_path="/oauth2callback", query={"loginMethod": "phone", "type": "phone"}, pkce=False,
        redirect_name="redirect", basic=True, profile_url="https://iflow.cn/api/oauth/getUserInfo", lead=24 * 3600,
        keep="access_token refresh_token token_type scope", finish=iflow_finish, again=True,
        lacking="this login needs the client secret of the iFlow CLI", terms="iFlow closed its service on 2026-04-17.",
    ),
)}
# fmt: on


########################################################################################
# 23. RENEWAL
########################################################################################
# New tokens for old ones, once, however many want them; and what a provider says of a login's limits.

RETRY_WAITS = (1.0, 2.0)  # seconds between the tries of a refresh
TOKEN_PATIENCE = 10.0  # seconds for which new tokens are waited for, as requests may wait for them


def why_dead(data: Json) -> str:
    """Return why the provider will never renew these tokens; empty as long as it may."""
    own = data.get("cliproxy")
    last = own.get("refused") if isinstance(own, dict) else None
    if not isinstance(last, dict) or last.get("token") != digest(renewer(data)):
        return ""  # never, or another program has logged in since
    return str(last.get("message") or "refused")


def refresh_lead(credential: Credential) -> float:
    """Return how many seconds before expiry to renew; at most half of the tokens' life."""
    lead = LOGINS[credential.type].lead if credential.type in LOGINS else 0.0
    ends, since = expires_at(credential.data), last_refresh(credential.data)
    return min(lead, (ends - since) / 2) if ends and since and ends > since else lead


def is_due(credential: Credential, now: float) -> bool:
    """Tell whether to renew the tokens ahead of need. Source: spec/providers.md 1."""
    data = credential.data
    since, ends = last_refresh(data), expires_at(data)
    if data.get("disabled") or why_dead(data) or not renewer(data):
        return False
    every = read_time(field_of(data, "refresh_interval", "refresh_interval_seconds"))
    if every and since:
        return now - since >= every
    if ends:
        return ends - now <= refresh_lead(credential)
    return since is None or now - since >= max(refresh_lead(credential), 60.0)


def refresh(
    credential: Credential, store: Store, config: Config, now: Callable[[], float] = time.time
) -> Credential:
    """Renew the tokens of a credential, on disk before it returns; one process at a time does.

    If another one has done so meanwhile, its tokens are returned. Raises ProxyError: unauthorized
    if only a new login helps, which is remembered in the file; else as the provider, or the disk, failed.
    """
    try:
        with store.refreshing(credential.name):
            fresh = store.get(credential.name)
            if is_newer(fresh.data, credential.data, now()):
                return fresh
            return renewed(fresh, store, config, now)
    except ProxyError as error:
        raise as_account_failure(error) from error.__cause__


def renewed(credential: Credential, store: Store, config: Config, now: Callable[[], float]) -> Credential:
    """Ask for new tokens, and store them or why there will be none."""
    token, why = renewer(credential.data), why_dead(credential.data)
    if not token or why or credential.type not in LOGINS:
        raise need_login(credential, why or "there is no refresh token")
    flow = Flow(LOGINS[credential.type], config, credential.data, now=now, patience=TOKEN_PATIENCE)
    store.merge(credential.name, {})  # fails if nothing can be written: the token works once
    try:
        answer = renew(flow, token)
    except ProxyError as error:
        if not is_final(flow.row, error):
            raise
        note = {"message": str(error), "token": digest(token), "at": write_time(now(), utc=True)}
        store.merge(credential.name, {"cliproxy": {"refused": note}})
        raise need_login(credential, str(error)) from error
    fields = {**flow.row.fields(flow, answer), "cliproxy": {"refused": None}}
    result = tokens_kept(store, credential.name, fields)
    if flow.row.again and flow.row.finish:
        return tokens_kept(store, credential.name, flow.row.finish(flow, result.data))
    return result


def tokens_kept(store: Store, name: str, fields: Json) -> Credential:
    """Write new tokens; if that fails, they are used all the same, and written as soon as they can be."""
    try:
        return store.merge(name, fields)
    except ProxyError as error:
        log.warning("%s: %s; its new tokens are in memory only", name, error)
        return store.keep_unwritten(name, fields)


def as_account_failure(error: ProxyError) -> ProxyError:
    """Return the error of a refresh for those who wait for it: neither they nor other accounts are at fault."""
    if not KINDS[error.kind].retry:
        error.kind = "upstream_failed"
        error.status = KINDS[error.kind].status
    return error


def is_newer(fresh: Json, old: Json, now: float) -> bool:
    """Tell whether somebody else renewed the tokens since we read the file."""
    same = field_of(fresh, "access_token") == field_of(old, "access_token")
    return not same and (expires_at(fresh) or 0.0) > now


def need_login(credential: Credential, why: str) -> ProxyError:
    message = f"{credential.name}: {why}; run `cliproxy login {credential.type}`"
    return ProxyError("unauthorized", message)


def is_final(row: Login, error: ProxyError) -> bool:
    """Tell whether a refusal is the credential's end, rather than a bad moment or a bad setting."""
    answer = read_object(error.body)
    code = error_code(answer)
    theirs = bool(answer) and error.status in row.dead and code not in OUR_FAULT
    late = b"reasonable timeframe" in error.body  # what Google says when our clock is wrong
    unfit = error.kind == "unauthorized" and not error.headers  # a key that cannot even sign
    return theirs or unfit or (code in DEAD_CODES and not late)


def renew(flow: Flow, token: str) -> Json:
    """Ask for new tokens. Asked again only if the token cannot have been used up."""
    request, late = flow.row.request(flow, token), time.monotonic() + TOKEN_PATIENCE
    for wait in (*RETRY_WAITS, None):
        try:
            return flow.grant(**request)
        except ProxyError as error:
            if error.status == 429:
                error.retry_after = min(max(error.retry_after or 60.0, 5.0), 300.0)
            whole = not (error.sent and flow.row.rotates)  # the token works still
            again = error.status >= 500 if error.headers else whole
            if wait is None or not again or time.monotonic() > late:
                raise
        flow.terminal.pause(wait)
    raise AssertionError


def usage_of(credential: Credential, config: Config) -> list[Window]:
    """Ask how much of the account's limits is used; [] where the provider does not tell."""
    row = LOGINS.get(credential.type)
    if not row or not row.usage:
        return []
    flow = Flow(row, config, credential.data)
    token = str(field_of(credential.data, "access_token"))
    reply, answer = flow.call(flow.row.usage_url, None, row.headers(credential.data), token=token)
    if reply.status >= 400:
        raise token_refusal(row.title, reply, answer)
    return row.usage(answer)


########################################################################################
# 24. IMPORT
########################################################################################
# What the programs of the providers themselves hold, taken over. Source: spec/providers.md 16.


def vendor_codex(held: Json, _path: Path) -> Json:
    tokens = held.get("tokens") or {}
    return {key: tokens.get(key) for key in ("id_token", "access_token", "refresh_token", "account_id")}


def vendor_claude(held: Json, _path: Path) -> Json:
    """Read Claude Code's file."""
    held = held.get("claudeAiOauth") or {}
    owner = read_object_file(Path.home() / ".claude.json").get("oauthAccount") or {}
    names = {"access_token": "accessToken", "refresh_token": "refreshToken", "expires_at": "expiresAt"}
    file = {"client_id": held["clientId"]} if held.get("clientId") else {}
    account = {"email_address": owner.get("emailAddress"), "uuid": owner.get("accountUuid")}
    team = {"uuid": owner.get("organizationUuid")}
    answer = {key: held.get(name) for key, name in names.items()}
    return {**answer, "account": account, "organization": team, "_file": file}


def vendor_ant(held: Json, path: Path) -> Json:
    """Read a profile of `ant auth login`, which any program may use. Source: spec/providers.md 2.6."""
    profile = read_object_file(path.parent.parent / "configs" / path.name)
    base = profile.get("base_url") or "https://api.anthropic.com"
    client = (profile.get("authentication") or {}).get("client_id")
    account = {"email_address": held.get("account_email")}
    team = {"uuid": held.get("organization_uuid"), "name": held.get("organization_name")}
    file = {"client_id": client, "token_endpoint": f"{base}/v1/oauth/token"} if client else {}
    kept = held if client else without(held, frozenset(["refresh_token"]))
    return {**kept, "account": account, "organization": team, "_file": file}


def vendor_plain(held: Json, _path: Path) -> Json:
    """Read a file that is a token answer as it came, but for the name of its expiry."""
    return {**held, "expires_at": held.get("expiry_date") or held.get("expires_at"), "expires_in": None}


def vendor_service(held: Json, path: Path) -> Json:
    """Read the key of a service account, as Google hands it out or in a file of CLIProxyAPI."""
    key = service_account(held) or held
    project, email = held.get("project_id"), key.get("client_email")
    if not project or not email:
        advice = "create one in the Google Cloud console, as JSON"
        raise ProxyError("invalid_request", f"no key of a service account is in {path}: {advice}")
    read_rsa_key(str(key.get("private_key")))
    file = dict.fromkeys(["access_token", "expired", "last_refresh"])  # of an older key
    file.update(service_account=key, project_id=project, email=email)
    file["label"] = f"{project} ({email})"
    return {"_file": {**file, **({"location": held["location"]} if held.get("location") else {})}}


def vendor_grok(held: Json, _path: Path) -> Json:
    entry = next((value for value in held.values() if isinstance(value, dict)), {})
    return {**entry, "access_token": entry.get("key")}


class Vendor(NamedTuple):
    """Where a vendor's own program keeps its login."""

    program: str
    variable: str  # of the environment, names the folder
    folder: str  # below the home folder, if the variable is not set
    file: str  # empty: the folder is the file
    read: Callable[[Json, Path], Json]  # -> as a token answer; `_file` in it: more for our file


# fmt: off
VENDOR_FILES = {
    "claude": (Vendor("Claude Code",   "CLAUDE_CONFIG_DIR",    ".claude",           ".credentials.json",        vendor_claude),
               Vendor("ant",           "ANTHROPIC_CONFIG_DIR", ".config/anthropic", "credentials/default.json", vendor_ant)),
    "codex":  (Vendor("the Codex CLI", "CODEX_HOME",           ".codex",            "auth.json",                vendor_codex),),
    "gemini": (Vendor("the Gemini CLI", "",                    ".gemini",           "oauth_creds.json",         vendor_plain),),
    "vertex": (Vendor("gcloud", "GOOGLE_APPLICATION_CREDENTIALS", ".config/gcloud/application_default_credentials.json", "", vendor_service),),
    "qwen":   (Vendor("Qwen Code",     "",                     ".qwen",             "oauth_creds.json",         vendor_plain),),
    "kimi":   (Vendor("the Kimi CLI",  "",                     ".kimi",             "credentials/kimi-code.json", vendor_plain),),
    "xai":    (Vendor("Grok",          "",                     ".grok",             "auth.json",                vendor_grok),),
}
# fmt: on


def read_object_file(path: Path) -> Json:
    """Return the JSON object in a file, an empty one if there is none."""
    try:
        return read_object(read_regular(path, LARGEST_OBJECT)[0])
    except OSError:
        return {}


LARGEST_OBJECT = 20_000_000  # bytes of a file of state, or of another program, that are read


def read_vendor(flow: Flow, source: str) -> Json:
    """Return, as a token answer, the first usable login that the vendor's program holds."""
    tried = []
    for vendor in VENDOR_FILES.get(flow.row.provider, ()):
        folder = Path(os.environ.get(vendor.variable) or Path.home() / vendor.folder)
        path = folder / vendor.file if source == "auto" else Path(source).expanduser()
        tried.append(str(path))
        answer = vendor.read(read_object_file(path), path)
        if answer.get("access_token") or service_account(answer.get("_file", {})):
            shared, ends = answer.get("refresh_token"), read_time(answer.get("expires_at")) or 0.0
            if shared and flow.row.rotates:
                flow.terminal.say(SHARED.format(vendor.program, flow.row.provider))
            elif shared and ends < flow.now():
                return {**answer, **renew(flow, shared)}
            return answer
    there = f"no login in {' or '.join(tried)}" if tried else "there is nothing to take over"
    raise ProxyError("not_found", f"{there}; it may be in the system's keychain: log in instead")


SHARED = (
    "{} and cliproxy now share one refresh token, which works once: the first to renew it logs the "
    "other out.\nA login of its own avoids that: cliproxy login {}\n"
)


########################################################################################
# 25. LOGIN
########################################################################################
# The way through a login: with a browser here or elsewhere, by a short code, or by taking one over; and
# the way out.


def is_headless() -> bool:
    """Tell whether no browser can open here."""
    display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    bare = sys.platform.startswith("linux") and not display
    return bare or bool(os.environ.get("SSH_CONNECTION"))


def tunnel(port: int, here: int) -> str:
    """Return the ssh command that brings the port a browser will go to here."""
    user = os.environ.get("USER") or os.environ.get("LOGNAME") or "USER"
    words = os.environ.get("SSH_CONNECTION", "").split()
    host = words[2] if len(words) == 4 else socket.gethostname()
    special = f" -p {words[3]}" if len(words) == 4 and words[3] != "22" else ""
    return f"ssh -N -L {port}:127.0.0.1:{here}{special} {user}@{host}"


def show_url(flow: Flow, url: str, *, open_it: bool, phone: bool) -> None:
    """Show where to go, as a QR code too if that fits; and go there if a browser can be had.

    `phone` tells whether one can finish there: no address of this machine is where it ends.
    """
    columns, lines = flow.terminal.screen
    where = "" if open_it else " in a browser, on any machine"
    flow.terminal.say(f"Open this URL{where}:\n\n{url}\n")
    if open_it:
        import webbrowser  # noqa: PLC0415

        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
        flow.terminal.say(
            "If no browser opens, do it yourself; the address where it ends may be pasted here.\n"
        )
    elif columns and phone:
        with contextlib.suppress(ValueError):
            code = qr_lines(url)
            if len(code) < lines and 2 * len(code) <= columns:  # a line is two modules high
                flow.terminal.say("\n".join(code) + "\n")


PASTE_CODE = """Then paste the code that the page shows here, and press Enter.

Or let nothing need pasting: on the machine with the browser, first run
  {tunnel}
and open this URL instead (or, without the tunnel, paste the address where it ends):

{direct}
"""
PASTE_URL = """Its last page, {here}..., cannot be reached from other machines. Then either
- paste its address here, and press Enter; or
- run  curl 'ADDRESS'  in another shell on this machine.

Or let nothing need pasting: on the machine with the browser, first run
  {tunnel}
"""


def show_ways_back(flow: Flow) -> None:
    """Say how the code can come back when no browser runs here."""
    port = flow.row.redirect_port if flow.row.fixed_port else flow.port
    text = (PASTE_CODE if flow.row.manual else PASTE_URL).format(
        here=flow.redirect(), direct=flow.authorize(), tunnel=tunnel(port, flow.port)
    )
    hint = "\nOr stop, and run it with --device for a short code instead.\n"
    flow.terminal.say(text + (hint if flow.row.device else ""))


def wait_for_code(flow: Flow) -> tuple[str, str, Arrival]:
    """Return the first good code, its redirect URI, and who brought it."""
    deadline = time.monotonic() + PATIENCE
    while True:
        arrival = flow.terminal.take(deadline)
        if not arrival.text:
            continue  # Enter alone; or stdin is closed, and a browser may still come
        try:
            return (*flow.read_code(arrival.text), arrival)
        except ProxyError as error:
            arrival.answer(400, str(error))
            if error.kind == "forbidden":
                raise
            flow.terminal.say(str(error))  # the right one may still come


def browser_login(flow: Flow) -> Json:
    """Let the user consent in a browser, wherever that runs; return the token answer."""
    row, open_it = flow.row, flow.options.browser and not is_headless()
    flow.port = flow.options.port or row.redirect_port
    if row.lacking:
        flow.secret()  # fails before anybody takes the trouble
    with contextlib.ExitStack() as stack:
        try:
            door = Door(flow.port, row.redirect_path, flow.terminal.inbox)
            stack.enter_context(contextlib.closing(door))
        except ProxyError as error:
            if open_it:
                raise
            flow.terminal.say(f"{error}; pasting works all the same")
        phone = bool(row.manual)  # its page shows a code
        show_url(flow, flow.authorize(manual=not open_it), open_it=open_it, phone=phone)
        if not open_it:
            show_ways_back(flow)
        return redeem(flow, *wait_for_code(flow))


REDEEM_WAITS = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)  # seconds: a code lives for minutes


def exchanged(flow: Flow, fields: dict[str, str]) -> Json:
    """Exchange a code for tokens; again if it did not get there, as without DNS: it is not used up."""
    for wait in (*REDEEM_WAITS, None):
        try:
            return flow.grant("authorization_code", **fields)
        except ProxyError as error:
            if error.sent or wait is None:
                raise
            flow.terminal.say(f"{error}; trying again in {wait:.0f} s, the code is not lost")
        flow.terminal.pause(wait)
    raise AssertionError("not reached")


def redeem(flow: Flow, code: str, uri: str, arrival: Arrival) -> Json:
    """Exchange a code, and tell the browser that brought it how that went."""
    fields = {"code": code, "redirect_uri": uri}
    fields.update({"code_verifier": flow.verifier} if flow.row.pkce else {})
    fields.update({} if flow.row.form else {"state": flow.state})
    try:
        answer = exchanged(flow, fields)
    except ProxyError as error:
        advice = "codes are short-lived and work once: run the login again; nothing was saved"
        arrival.answer(400, f"{error}: {advice}")
        raise ProxyError(error.kind, f"{error}: {advice}") from error
    arrival.answer(200, f"{flow.row.title}: logged in. You can close this window.")
    return answer


DEVICE_ENDS = {"access_denied": "was refused", "expired_token": "came too late"}


def answer_of_poll(poll: Callable[[], Json]) -> Json:
    """Ask whether the user is done; {} where the line was cut: the next try may get through."""
    try:
        return poll()
    except ProxyError as error:
        if error.headers:
            raise
        return {}


def device_login(flow: Flow, start: Callable[[Flow], Device]) -> Json:
    """Let the user type a code on another device; return the token answer."""
    shown, poll = start(flow)
    code = ""
    url = str(shown.get("verification_uri_complete") or shown.get("verification_uri") or "")
    show_url(flow, url, open_it=flow.options.browser and not is_headless(), phone=True)
    flow.terminal.say(f"and enter the code {shown.get('user_code')}, if it asks for one. Waiting...")
    interval = max(5.0, float(shown.get("interval") or 5))
    deadline = flow.now() + min(1800.0, float(shown.get("expires_in") or 900))
    while flow.now() < deadline:
        flow.terminal.pause(interval)
        answer = answer_of_poll(poll)
        if answer.get("access_token"):
            return answer
        code = error_code(answer)
        if code in DEVICE_ENDS:
            break
        if code == "slow_down":
            interval += 5
    what = DEVICE_ENDS.get(code, "took too long")
    message = f"{flow.row.title}: the login {what}; nothing was saved; run it again"
    raise ProxyError("forbidden" if code == "access_denied" else "caller_timeout", message)


def login(
    provider: str,
    options: Options,
    config: Config,
    store: Store,
    terminal: Terminal,
    now: Callable[[], float] = time.time,
) -> Credential:
    """Log in at a provider; return the saved credential. Raises ProxyError, having saved nothing."""
    row = LOGINS.get(SAME_TYPES.get(provider, provider))
    if not row:
        there = ", ".join(LOGINS)
        raise ProxyError(
            "invalid_request", f"no login for {provider!r}; there are {there}{slip(provider, LOGINS)}"
        )
    if options.device and not row.device:
        raise ProxyError("invalid_request", f"{row.title} has no login by a short code: leave out --device")
    flow = Flow(row, config, {"device_id": os.urandom(16).hex()}, now=now, terminal=terminal)
    flow.options = options
    terminal.say(f"{row.title}: {row.terms}\n" if row.terms else f"{row.title}\n")
    if options.source:
        answer = read_vendor(flow, options.source)
    elif row.device and (options.device or not row.redirect_path):
        answer = device_login(flow, row.device)
    elif not row.redirect_path:
        advice = f"cliproxy login {row.provider} --import FILE takes the key of a service account"
        raise ProxyError("invalid_request", f"{row.title} has no page to log in: {advice}")
    else:
        answer = browser_login(flow)
    data = {**row.fields(flow, answer), **answer.get("_file", {}), "type": row.provider}
    data = overlaid(data, row.finish(flow, data) if row.finish else {})
    data["cliproxy"] = {**data.get("cliproxy", {}), "refused": None}
    data.update({"prefix": options.prefix} if options.prefix else {})
    store.scan()
    name = file_for(store, row, data)
    with store.refreshing(name):  # what is being renewed is older than this
        return store.create(name, data)


def file_for(store: Store, row: Login, data: Json) -> str:
    """Name the file of an account: the one that it has already, or a new one."""
    first, *others = row.same.split()
    for credential in store.credentials():
        old = credential.data
        mine = credential.type == row.provider and old.get(first) == data.get(first)
        same = all(old.get(key, data.get(key)) == data.get(key) for key in others)
        if mine and same and data.get(first):
            return credential.name
    name = re.sub(r"[^\w.@+-]", "_", row.file(data)).lstrip(".")
    special = digest(*(data.get(key) for key in row.same.split()))[:8]
    taken = any(credential.name == name for credential in store.credentials())
    return name.replace(".json", f"-{special}.json") if taken else name


def logout(credential: Credential, store: Store, config: Config) -> str:
    """Revoke the tokens where the provider can, delete the file; return what to tell the user."""
    row, told = LOGINS.get(credential.type), ""
    if row and row.revoke_url:
        flow = Flow(row, config, credential.data)
        token = str(field_of(credential.data, "refresh_token") or "")
        body = {"token": token, "token_type_hint": "refresh_token", "client_id": flow.row.client_id}
        told = ", but its tokens could not be revoked and live until they expire"
        with contextlib.suppress(ProxyError):
            if flow.call(flow.row.revoke_url, body)[0].status < 300:
                told = " and its tokens are revoked"
    store.delete(credential.name)
    return f"{credential.name} is deleted{told}"


########################################################################################
# 26. ACCOUNTS
########################################################################################
# An account is one credential and where it may be used: of the config, of the environment, or of a
# file in the auth dir. It knows which models it offers, under which names.

EXPIRY_MARGIN = 15.0  # seconds: a token this close to its end is not sent any more


class Offer(NamedTuple):
    """A name that an account offers a model under, and the upstream's own."""

    public: str
    own: str
    forced: bool = False  # answers carry the name that the client asked for
    display: str = ""  # what lists of models call it


def offer_of(row: Json) -> Offer:
    """Read a row of `models` or of `oauth-model-alias`."""
    public = row.get("alias") or row["name"]
    return Offer(public, row["name"], bool(row.get("force-mapping")), row.get("display-name") or "")


def aliased(names: Collection[str], rows: Sequence[Json]) -> list[Offer]:
    """Return what is offered of the models `names` by rows of `oauth-model-alias`.

    An alias replaces the name it stands for, unless it is a fork. Case does not count.
    Source: spec/config.md 5.
    """
    listed = {name.lower(): name for name in names}
    aliases = [offer_of({**row, "name": listed.get(row["name"].lower(), row["name"])}) for row in rows]
    gone = {row["name"].lower() for row in rows} - {row["name"].lower() for row in rows if row.get("fork")}
    gone |= {offer.public.lower() for offer in aliases}
    return [*(Offer(name, name) for name in names if name.lower() not in gone), *aliases]


def model_with(model: Model, facts: Json) -> Model:
    """Return a row with `facts` in place of what it says, those that say something."""
    told: Json = {key: value for key, value in facts.items() if value or value is False}
    return model._replace(**told)


def user_facts(row: Json) -> Json:
    """Read an entry of the setting `models` as fields of Model."""
    facts: Json = {key: row[key] for key in ("owner", "name", "context", "output")}
    facts["levels"] = tuple(row["levels"])
    if row["levels"]:
        facts["can_stop"] = "none" in row["levels"]
    if row["max-budget"]:
        facts["budget"] = (row["min-budget"], row["max-budget"])
    if row.get("thinking") is not None or facts["levels"] or row["max-budget"]:
        facts["thinking"] = row.get("thinking") is not False
    return facts


def tidy_base(base: str, path: str) -> str:
    """Return a base URL without what the path that follows it says again: people copy whole addresses.

    `/v1` and `/v1beta` at its end go also if the path begins with the other one.
    """
    words = path.partition("{")[0].strip("/").split("/")
    base = re.sub(r"/models/[^/]+:\w+$", "/models", base.rstrip("/"))
    versioned = words[0] in {"v1", "v1beta"}
    for size in range(len(words), 0 if versioned else len(words) - 1, -1):
        tail = "/" + "/".join(words[:size])
        if base.endswith(tail):
            return base[: -len(tail)]
    version = re.search(r"/v1(beta)?$", base)
    return base[: version.start()] if version and versioned else base


FRAMING = frozenset({"host", "content-length", "transfer-encoding", "connection", "upgrade", "expect"})
CREDENTIAL_HEADERS = frozenset(
    {"authorization", "proxy-authorization", "x-api-key", "x-goog-api-key", "cookie"}
)


class Account:
    """One credential: of the config, of the environment or of a file in the auth dir.

    Fixed once made, but for its tokens; a changed file or config makes new accounts. `entry` has
    the keys of `claude-api-key` and its like (spec/config.md 4). `models` is None if it serves
    whatever its provider is known for.
    """

    def __init__(
        self, name: str, provider: Provider, entry: Json, credential: Credential | None = None
    ) -> None:
        self.name, self.provider = name, provider
        told = {key: value for key, value in entry.items() if value}
        self.also = PROVIDERS.get(told.get("also", ""))
        self.key = told.get("api-key", "")
        self.base = tidy_base(told.get("base-url", provider.base), provider.generate)
        self.proxy = told.get("proxy-url", "")
        others = provider.others if self.base == provider.base else ()
        self.places = [split_url(base, self.proxy) for base in (self.base, *others)]
        self.origin, self.path = self.places[0]
        self.project = str(told.get("project-id", ""))  # Google's
        self.prefix = told.get("prefix", "").strip(" /")
        self.priority = whole_number(entry.get("priority"), 0)
        self.weight = whole_number(entry.get("weight"), 1)
        self.retries = entry.get("request-retry")  # None, as below: what the config says
        self.disable_cooling: bool | None = entry.get("disable-cooling")
        self.headers = {name.lower(): str(v) for name, v in told.get("headers", EMPTY).items()}
        self.asked = digest(self.key, self.base, self.proxy, *sorted(self.headers.items()))[:12]
        self.excluded = [pattern.lower() for pattern in told.get("excluded-models", ())]
        self.models = list(dict.fromkeys(map(offer_of, told.get("models", ())))) or None
        self.aliases: Sequence[Json] = told.get("model-aliases", ())
        self.rules: Sequence[Json] = told.get("request-scoped-errors", ())
        self.quirks = provider.quirks | frozenset(told.get("quirks", ()))
        self.lessons: dict[str, frozenset[str]] = {}  # quirks that its models' refusals have told of
        plan = plan_of(credential.data).lower() if credential else ""
        self.facts: Mapping[str, Model] = models_of(provider.name, plan)
        self.listed: Collection[str] = self.facts  # what it offers, unless `models` says so
        self.refreshing = threading.Lock()  # held across the one network call it is made for
        self._failure: ProxyError | None = None  # of the last renewal; guarded by refreshing
        self.take_over(credential)

    @functools.cached_property
    def auth_index(self) -> str:
        """16 hex digits that stand for the account wherever programs tell of it. Source: spec/management.md 8."""
        what = f"file:{self.credential.name}" if self.credential else f"api_key:{self.key}"
        return hashlib.sha256(what.encode("utf-8", "replace")).hexdigest()[:16]

    def take_over(self, credential: Credential | None) -> None:
        """Be what the credential's file says. The token is there before its new end."""
        data = credential.data if credential else EMPTY
        self.credential = credential
        key = field_of(data, "api_key", "access_token")  # iFlow hands out a key for its token
        self.token = str(key or "") if credential else self.key
        self.mark = digest(self.token)[:12]  # tells tokens apart, and tells nothing of them
        self.dead = why_dead(data)
        renews = bool(credential and credential.type in LOGINS and renewer(data))
        self.renewable = renews and not self.dead
        self.ends = expires_at(data)

    def unsendable(self) -> str:
        """Say what of it can stand in no header, or may not; empty if nothing."""
        if not is_token(self.token):
            return "its key or token holds what no header can carry"
        for name, value in self.headers.items():
            if not name.isascii() or not name.isprintable() or not value.isprintable():
                return f"its header {name!r} holds what no header can carry"
            if name in FRAMING:
                return f"its header {name!r} is ours to send"
            if self.credential and value.startswith("$") and value[1:].lower() in CREDENTIAL_HEADERS:
                return f"its header {name!r} would hand on the key of a client"
        return ""

    def expired(self, now: float) -> bool:
        """Tell whether the token is of no more use at `now`, in Unix time, or still to be got."""
        absent = self.credential is not None and not self.token
        return absent or (self.ends is not None and self.ends <= now + EXPIRY_MARGIN)

    def lost(self, now: float) -> bool:
        """Tell whether only a new login helps."""
        return not self.renewable and self.expired(now)

    def renew(
        self, stale: str, get_new: Callable[[Credential], Credential], tick: Callable[[], None] = lambda: None
    ) -> None:
        """Replace the tokens by those that `get_new` gets, unless they are others than `stale` by now.

        One thread asks; those that come meanwhile get what it gets, and call `tick` now and then: it
        raises where the client has left. Raises ProxyError, as `get_new` does.
        """
        waited = not self.refreshing.acquire(blocking=False)
        if waited:
            self._wait_for_renewal(tick)
        try:
            if self.token != stale or self.credential is None:
                return
            if waited and self._failure:
                raise self._failure
            self._failure = None
            try:
                self.take_over(get_new(self.credential))
            except ProxyError as error:
                self._failure = error
                raise
        finally:
            self.refreshing.release()

    def _wait_for_renewal(self, tick: Callable[[], None]) -> None:
        end = time.monotonic() + 2 * TOKEN_PATIENCE
        while not self.refreshing.acquire(timeout=TICK):
            tick()
            if time.monotonic() > end:
                raise ProxyError("upstream_timeout", f"{self.name}: its new tokens take too long")

    def provider_for(self, dialect: str) -> Provider:
        """Return the row by which to ask for a client of this dialect."""
        return self.also if self.also and self.also.dialect == dialect else self.provider

    def excludes(self, model: str) -> bool:
        """Tell whether the owner has switched this model off. Case does not count."""
        return any(wildcard(pattern, model.lower()) for pattern in self.excluded)

    def bars(self, model: str) -> bool:
        """Tell whether the owner has switched off a model that this account would serve."""
        own = model.removeprefix(f"{self.prefix}/") if self.prefix else model
        if not self.excludes(own):
            return False
        offers = aliased(self.listed, self.aliases) if self.models is None else self.models
        names = {name.lower() for offer in offers for name in (offer.public, offer.own)}
        return own.lower() in names or any(wildcard(pattern, own) for pattern in self.provider.family)

    def offers(self) -> list[Offer]:
        """Return the names that clients may ask for. An upstream's name may end in an effort."""
        offers = aliased(self.listed, self.aliases) if self.models is None else self.models
        return [offer for offer in offers if not self.excludes(split_suffix(offer.own)[0])]

    def learn(self, listed: Mapping[str, Json], rows: Iterable[Json]) -> None:
        """Add what the upstream lists, and what the owner says of models: that counts most."""
        facts, offered = dict(self.facts), dict.fromkeys(self.listed)
        own = {self.provider.name, self.name.partition("[")[0]}  # openai, or codex-api-key
        for id, said in listed.items():
            row = self.fact(id)
            facts[id] = model_with(row, {**said, "owner": row.owner or said.get("owner")})
            offered[id] = None
        for entry in rows:
            id, who = entry["id"], entry["provider"].lower()
            if who in {"", *own}:
                facts[id] = model_with(facts.get(id) or self.fact(id), user_facts(entry))
            if who in own:
                offered[id] = None
        self.facts, self.listed = facts, offered

    def fact(self, model: str) -> Model:
        """Return what is known of one of its models, by the upstream's name."""
        return self.facts.get(model) or model_row(model, self.provider.name)

    def serves_unlisted(self, model: str) -> bool:
        """Tell whether a model that is in no list, too old or too new, is likely this provider's."""
        if self.models is not None or self.excludes(model):
            return False
        old = (self.provider.name, model) in MODEL_INDEX  # TRAITS says what becomes of these
        return old or any(wildcard(pattern, model) for pattern in self.provider.family)


def whole_number(value: object, default: int) -> int:
    """Read a number as credential files have it: maybe as a text."""
    try:
        return default if value is None else int(str(value))
    except ValueError:
        return default


class KeyList(NamedTuple):
    """A config list of API keys, or an environment variable, and the provider it is for.

    `also` is the row for clients of another dialect that the same key and base URL serve.
    """

    source: str
    provider: str
    also: str = ""


KEY_LISTS = (
    KeyList("claude-api-key", "claude"),
    KeyList("codex-api-key", "openai"),
    KeyList("gemini-api-key", "gemini"),
    KeyList("vertex-api-key", "vertex"),
)
KEY_VARIABLES = (
    KeyList("ANTHROPIC_API_KEY", "claude"),
    KeyList("OPENAI_API_KEY", "openai", "openai-chat"),
    KeyList("GEMINI_API_KEY", "gemini"),
    KeyList("GOOGLE_API_KEY", "gemini"),
    KeyList("OPENROUTER_API_KEY", "openrouter"),
)
FILE_PROVIDERS = {  # type of a credential file -> provider, and the one for clients of another dialect
    "claude": ("claude", ""), "codex": ("codex", ""), "kimi": ("kimi", "kimi-claude"), "qwen": ("qwen", ""), "xai": ("xai", ""),
    "gemini": ("gemini-cli", ""), "antigravity": ("antigravity", ""), "iflow": ("iflow", ""), "vertex": ("vertex", ""),
}  # fmt: skip
UNUSABLE = {  # type of a credential file -> why it is not used
    "service_account": "it is a key as Google hands it out; run `cliproxy login vertex --import` with its name",
    "antigravity": "Antigravity is known to refuse programs that say who they are, as this one does, and to restrict "
    "accounts; to try it all the same, set providers.antigravity.enabled to true",
}


FILE_KEYS = {  # what a credential file may say of its account. Source: spec/providers.md 1.1
    **{row.key: row for row in API_KEY if row.key not in {"api-key", "models"}},
    **{key: Setting(key, object, None) for key in ("priority", "weight", "request-retry")},
    **{key: Setting(key, str, "") for key in ("project-id", "location", "resource-url")},
    "model-aliases": Setting("model-aliases", Items(ALIAS, "name alias"), []),
    "request-scoped-errors": Setting("request-scoped-errors", Items(dict), None),
}


CHANNEL_SETTINGS = {  # what credential files may hold, and the setting that adds to it by channel
    "excluded-models": "oauth-excluded-models",
    "model-aliases": "oauth-model-alias",
    "request-scoped-errors": "oauth-request-scoped-errors",
}


def find_accounts(
    config: Config,
    credentials: Iterable[Credential],
    environ: Mapping[str, str],
    listed: Callable[[Account], Mapping[str, Json]] = lambda _: EMPTY,
    report: Callable[[str], None] = lambda _: None,
) -> list[Account]:
    """Return all accounts that the owner has, each named after where it stands.

    `listed` returns the models that an account's upstream says it has; `report` is told which
    credentials are not used, and why.
    """
    accounts = [*accounts_of_lists(config), *accounts_of_endpoints(config, environ)]
    for credential in credentials:
        found, why = accounts_of_file(config, credential)
        accounts += found
        if why:
            report(f"{credential.name} is not used: {why}")
    accounts += accounts_of_environ(config, environ)
    usable = []
    for account in accounts:
        why = account.unsendable()
        if why:
            report(f"{account.name} is not used: {why}")
            continue
        account.learn(listed(account), config["models"])
        usable.append(account)
    return usable


def with_overrides(config: Config, provider: Provider, entry: Json) -> Json:
    """Fill an entry's base and proxy URL from `providers.<name>` and the global setting."""
    override = config["providers"].get(provider.name, {})
    entry = {**entry, "proxy-url": entry.get("proxy-url") or config["proxy-url"]}
    return {**entry, "base-url": entry.get("base-url") or override.get("base-url") or provider.base}


def accounts_of_lists(config: Config) -> Iterator[Account]:
    for row in KEY_LISTS:
        provider = PROVIDERS[row.provider]
        for number, entry in enumerate(config[row.source]):
            name = f"{row.source}[{number}]"
            yield Account(name, provider, with_overrides(config, provider, entry))


def endpoint_provider(name: str, service: str) -> Provider:
    """Return the row of an OpenAI-compatible service; `service` may name a row of PRESETS."""
    provider, preset = PROVIDERS["openai-compatibility"]._replace(name=name), PRESETS.get(service)
    if preset is None:
        return provider
    return provider._replace(base=preset.base, quirks=preset.quirks, family=("*",))


def preset_key(service: str, base: str, environ: Mapping[str, str]) -> str:
    """Return the key that the environment holds for a service we know, if it is who is asked."""
    preset = PRESETS.get(service) or Preset("", (), frozenset())
    host, own = urlsplit(base).hostname, urlsplit(preset.base).hostname
    keys = preset.keys if not base or own in {host, "127.0.0.1"} else ()
    return next((environ[variable] for variable in keys if environ.get(variable)), "")


def accounts_of_endpoints(config: Config, environ: Mapping[str, str]) -> Iterator[Account]:
    entries = [entry for entry in config["openai-compatibility"] if not entry.get("disabled")]
    numbers: dict[str, Iterator[int]] = {}  # of the keys of all entries of one name
    for number, entry in enumerate(entries):
        name = (entry.get("name") or f"openai-compatibility[{number}]").strip().lower()
        base, _, service = entry["base-url"].partition("provider://")
        provider = endpoint_provider(name, service or name)
        keys = entry["api-key-entries"] or [{"api-key": preset_key(service or name, base, environ)}]
        for key in keys:
            key_number = next(numbers.setdefault(name, count()))
            merged = {**entry, "base-url": base}
            own = (row.key for row in KEY_ENTRY)
            merged.update({k: key[k] for k in own if key.get(k) not in {None, ""}})
            merged["quirks"] = endpoint_quirks(merged, provider)
            yield Account(f"{name}[{key_number}]", provider, with_overrides(config, provider, merged))


def service_provider(provider: Provider, entry: Json) -> Provider:
    """Return Vertex's row for a service account, whose project and place its paths name."""
    place = str(entry.get("location") or "us-central1")
    base = provider.base.replace("//", f"//{place}-") if place != "global" else provider.base
    home = f"/v1/projects/{urlquote(entry['project-id'], safe=':')}/locations/{place}/"
    paths = {k: getattr(provider, k).replace("/v1/", home) for k in ("generate", "stream", "counting")}
    return provider._replace(base=base, auth="bearer", **paths)


def login_settings(config: Config, credential: Credential, provider: Provider) -> Json:
    """Return what a credential file, and the config for its kind, say of its accounts."""
    underscores_last = sorted(credential.data.items(), key=lambda pair: "_" in pair[0])
    said = {key.replace("_", "-"): value for key, value in underscores_last}
    said = {key: value for key, value in said.items() if key in FILE_KEYS}
    settings = read_section(said, tuple(FILE_KEYS.values()), "", [])
    for key, setting in CHANNEL_SETTINGS.items():
        settings[key] = [*(settings.get(key) or ()), *config[setting].get(provider.name, ())]
    host = settings["resource-url"]  # Qwen tells each account where to go
    if host and not config["providers"].get(provider.name, {}).get("base-url"):
        base = host if "://" in host else f"https://{host}"
        settings["base-url"] = base if base.endswith("/v1") else f"{base.rstrip('/')}/v1"
    return settings


def accounts_of_login(config: Config, credential: Credential) -> Iterator[Account]:
    """Yield the accounts of a login: one for each of its projects. Raises ProxyError."""
    name, also = FILE_PROVIDERS.get(credential.type, ("", ""))
    provider = PROVIDERS.get(name)
    if provider is None:
        return
    settings = {**login_settings(config, credential, provider), "also": also}
    projects = settings["project-id"].replace(" ", "").strip(",").split(",")
    for project in projects:  # each has a quota of its own
        account_name = f"{credential.name}::{project}" if len(projects) > 1 else credential.name
        entry = {**settings, "project-id": project}
        row = service_provider(provider, entry) if name == "vertex" else provider
        yield Account(account_name, row, with_overrides(config, row, entry), credential)


def accounts_of_file(config: Config, credential: Credential) -> tuple[list[Account], str]:
    """Return the accounts of a credential file, and why there are none; empty if its owner disabled it."""
    if credential.data.get("disabled"):
        return [], ""
    enabled = config["providers"].get(credential.type, {}).get("enabled")
    why = "" if enabled else UNUSABLE.get(credential.type, "")
    try:
        accounts = list(accounts_of_login(config, credential))
    except ProxyError as error:
        return [], str(error)
    return ([], why) if why else (accounts, "")


def accounts_of_environ(config: Config, environ: Mapping[str, str]) -> Iterator[Account]:
    for row in KEY_VARIABLES:
        key = environ.get(row.source, "").strip()
        if not key:
            continue
        provider = PROVIDERS.get(row.provider) or endpoint_provider(row.provider, row.provider)
        if row.provider not in PROVIDERS:
            provider = provider._replace(family=("*/*",))
        entry = {"api-key": key, "also": row.also}
        yield Account(row.source, provider, with_overrides(config, provider, entry))


def endpoint_quirks(entry: Json, provider: Provider) -> list[str]:
    """Return what an OpenAI-compatible endpoint needs otherwise than OpenAI itself."""
    host = urlsplit(entry.get("base-url") or provider.base).hostname or ""
    if provider.base or host == "api.openai.com":  # a row of PRESETS says all
        return []
    return ["max-tokens", "system"]


########################################################################################
# 27. REFUSALS                                                                    [pure]
########################################################################################
# What an upstream's refusal means for the account that was asked, and what its headers tell of limits.


class Verdict(NamedTuple):
    """What a refusal means for the account. `wait` in seconds, 0: what `disable-cooling` says."""

    wait: float
    backoff: bool = False  # twice as long each time, unless the upstream says how long
    whole: bool = False  # for all models
    soft: bool = False
    token: bool = False  # until there is another token
    hard: bool = False  # rests even where cooling is switched off


# fmt: off
REFUSALS = (  # the first row that fits counts; an empty pattern fits. Source: spec/providers.md 11.2 and each provider's errors
    #  status               what the body says                                                   what it means
    ("400 404 422", r"\bmodel['\"]? (['\"`][^'\"`]+['\"`] )?is not (supported|available)|unsupported model|model_not_supported", Verdict(43_200.0)),
    ("400 403 503", r"version of antigravity is no longer supported",                            Verdict(1_800.0, whole=True, hard=True)),
    ("400 403",     r"bad-credentials|access token could not be validated|api_key_invalid",      Verdict(1_800.0, whole=True, token=True, hard=True)),
    ("403 429",     r"insufficient_quota|usage_not_included|quota_exceeded|free allocated quota", Verdict(120.0, whole=True)),
    ("400 403",     r"organization has been disabled|third-party apps.{0,99}extra usage",        Verdict(1_800.0, whole=True, hard=True)),
    ("400 503",     r"model is at capacity",                                                     Verdict(1.0, backoff=True)),
    ("403",         r"cf-chl|challenge-platform|just a moment|cloudflare",                       Verdict(10.0, backoff=True, whole=True, hard=True)),
    ("401",         r"",                                                                         Verdict(1_800.0, whole=True, token=True, hard=True)),
    ("402 403",     r"",                                                                         Verdict(1_800.0, hard=True)),
    ("404",         r"",                                                                         Verdict(43_200.0)),
    ("429",         r"fast.{0,99}usage credits",                                                 None),
    ("429",         r"free-usage-exhausted",                                                     Verdict(86_400.0, whole=True)),
    ("429",         r"",                                                                         Verdict(1.0, backoff=True)),
    ("408 499 500 502 503 504 520 521 522 524 529", r"",                                         Verdict(60.0, soft=True)),
)
# fmt: on
BACKOFF_LIMIT = 1_800.0  # seconds
LONG_REST = 60.0  # seconds, after a refusal that time alone seldom heals
STALE = re.compile(r"bad-credentials|access token could not be validated|token_(expired|invalid)")


def judge(error: ProxyError) -> Verdict | None:
    """Return what a refusal means for the account; None if it is the request's own fault."""
    said = error.body.decode("utf-8", "replace").lower() or str(error).lower()
    for statuses, pattern, verdict in REFUSALS if error.sent else ():  # else the words are ours
        if str(error.status) in statuses.split() and re.search(pattern, said, re.DOTALL):
            mine = pattern or verdict is None or KINDS[error.kind].retry
            return verdict if mine else None
    return Verdict(60.0, soft=True) if KINDS[error.kind].retry else None


def wanted_action(rules: Iterable[Json], error: ProxyError) -> str:
    """Return what the owner wants done after a refusal, a word of ACTIONS; empty: as `judge` says."""
    said = error.body.decode("utf-8", "replace") or str(error)
    for rule in rules:
        with contextlib.suppress(re.error, TypeError):  # in a file it is left out
            fits = re.search(rule.get("match-regexr") or "", said) and rule.get("match", "") in said
            if fits and rule.get("status") in {0, None, error.status}:
                return str(rule.get("action") or "stop")
    return ""


def decide(error: ProxyError, rules: Iterable[Json]) -> tuple[Verdict | None, bool]:
    """Return whether, and how, the account rests, and whether nobody else is to be asked.

    The owner's rules outrank `judge`, for which a request at fault is at fault everywhere.
    """
    verdict, action = judge(error), wanted_action(rules, error)
    if not action:
        return verdict, error.final or verdict is None
    rests = "cooldown" in action
    return (verdict or Verdict(60.0, soft=True)) if rests else None, action.startswith("stop")


HINTS = (  # what some refusals mean for the owner
    ("only authorized for use with Claude Code", "Anthropic wants an API key here: claude-api-key"),
    ("Third-party apps now draw", "Anthropic bills this as extra usage; an API key is the other way"),
    ("access_terminated_error", "Kimi's coding plan refuses programs that it does not know"),
    ("VALIDATION_REQUIRED", "Google wants the account to be verified: follow the link in a browser"),
    ("SERVICE_DISABLED", "enable the Gemini for Google Cloud API in this project"),
    ("reasonable timeframe", "the clock of this machine is wrong"),
)


def explained(error: ProxyError) -> str:
    """Return an error's message, and what its owner can do about it if we know."""
    said = f"{error} {error.body.decode('utf-8', 'replace')}"
    hint = next((f" ({hint})" for pattern, hint in HINTS if pattern in said), "")
    words = "".join(c if c.isprintable() else " " for c in str(error)[:200])
    return f"{words}{hint}"


PROOF_REFUSED = re.compile(r"invalid `?signature|invalid_encrypted_content|thought.?signature", re.IGNORECASE)


def is_proof_refused(error: ProxyError) -> bool:
    """Tell whether a refusal is of a proof of thinking: an account of its kind answered before.

    Source: spec/dialects.md 4.2, providers.md 3.4.
    """
    return error.status == 400 and bool(PROOF_REFUSED.search(error.body.decode("utf-8", "replace")))


LESSONS = (  # words of a refusal, any case -> the quirk that it tells of. The first that is found counts
    #  Source: reports about Mistral, DeepSeek, Kimi, Groq, Ollama and xAI, 2026-11
    (r"length of 9", "short-ids"),
    (r"unexpected role \W*\w+\W* after role \W*tool", "turn-after-tool"),
    (r"reasoning_content\W.*(passed back|missing)", "reasoning-content"),
    (r"use \W*max_completion_tokens", "completion-tokens"),
    (r"reasoning.?effort", "no-effort"),
    (r"does not support\W+(\w+\W+){0,2}(thinking|reasoning|effort)", "no-effort"),
    (
        r"\b(think|thinking|reasoning|effort)\b[^.]{0,60}\b(not|un)\s?(supported|enabled|available|allowed)",
        "no-effort",
    ),
    (r"(unsupported|unknown|unrecognized|extra)[^.]{0,40}\b(thinking|reasoning|effort)\b", "no-effort"),
)


def lesson_of(error: ProxyError) -> str:
    """Return the quirk that a refusal tells of, empty if none: asked in that way, the host may answer."""
    if error.status not in {400, 422}:
        return ""
    said = f"{error} {error.body.decode('utf-8', 'replace')}".lower()
    return next((quirk for words, quirk in LESSONS if re.search(words, said)), "")


def is_stale(error: ProxyError) -> bool:
    """Tell whether a refusal is of the token, so that a new one may do."""
    if error.status == 403:
        return bool(STALE.search(error.body.decode("utf-8", "replace")))
    return error.status == 401


MOMENTARY = frozenset({500, 502, 503, 529})  # statuses of what is often over in an instant


def is_momentary(error: ProxyError) -> bool:
    """Tell whether one more try may meet with better luck."""
    return error.status in MOMENTARY and (error.retry_after or 0.0) <= 1.0


NO_ROUTE = frozenset({400, 404, 405, 422, 501})  # what hosts say of calls that they do not have


def tells_of_account(action: str, status: int) -> bool:
    """Tell whether a refusal of a call that is no conversation tells anything of the account."""
    if action == "generate":
        return True
    return action != "count" and status not in NO_ROUTE


CLAUDE_CLAIM = re.compile(r"anthropic-ratelimit-unified-(.+)-status")


def claude_claims(headers: Mapping[str, str]) -> list[str]:
    """Return which of Claude's windows are used up: 5h, 7d, or those of single models."""
    matches = ((CLAUDE_CLAIM.fullmatch(name), value) for name, value in headers.items())
    return [match[1] for match, value in matches if match and value == "rejected" and match[1] != "overage"]


def wait_asked(error: ProxyError, now: float) -> float | None:
    """Return the seconds that an upstream asks us to wait, in a header or in its body.

    `now` is Unix time. Source: spec/providers.md 2.4, 3.4, 4.3.
    """

    def until(when: object) -> float | None:
        end = read_time(when)
        return None if end is None else max(1.0, end - now)

    unified = "anthropic-ratelimit-unified"
    names = [f"{unified}-{claim}-reset" for claim in claude_claims(error.headers)]
    if not names and error.headers.get(f"{unified}-status") == "rejected":
        names = [f"{unified}-reset"]
    windows = filter(None, (until(error.headers.get(name)) for name in names))
    waits = (  # the first that is told counts
        max(windows, default=None),
        error_wait(error.body.decode("utf-8", "replace"), until),
        wait_in_headers(error.headers, now),
        error.retry_after,  # as the dialect's reader found it
    )
    wait = next((wait for wait in waits if wait is not None), None)
    return None if wait is None else min(wait, LONGEST_REST)


def told_limits(headers: Mapping[str, str], now: float) -> list[Window]:
    """Return what an answer's headers say of its account's limits; [] if nothing."""
    windows = []
    for kind in ("primary", "secondary"):
        cell = {key: headers.get(f"x-codex-{kind}-{key}", "") for key in CODEX_CELLS}
        with contextlib.suppress(ValueError, OverflowError):
            used, minutes = float(cell["used-percent"]), float(cell["window-minutes"])
            left = cell["reset-after-seconds"]
            ends = read_time(cell["reset-at"]) or read_time(now + float(left) if left else None)
            windows.append(Window(window_name(60 * minutes), used, ends))
    for name, value in headers.items():
        claim = re.fullmatch(r"anthropic-ratelimit-unified-(.+)-utilization", name)
        with contextlib.suppress(ValueError):
            if claim and claim[1] != "overage":
                ends = read_time(headers.get(name.replace("utilization", "reset")))
                windows.append(Window(claim[1].replace("_", " "), 100 * float(value), ends))
    return [window for window in windows if math.isfinite(window.used)]


CODEX_CELLS = ("used-percent", "window-minutes", "reset-at", "reset-after-seconds")
TELLS_LIMITS = frozenset(["x-codex-primary-used-percent", "anthropic-ratelimit-unified-status"])


########################################################################################
# 28. ROUTING
########################################################################################
# The router knows who offers which model, who is next, and who must rest. Its lock is never held
# across I/O.


class Candidate(NamedTuple):
    """One way to serve a model: by this account, under this name, thinking so much."""

    account: Account
    model: str
    effort: Effort | None = None  # said in the name that the client used
    forced: bool = False  # the answer carries the name that the client used
    display: str = ""  # what lists of models call it
    action: str = "generate"  # what is asked of it, as an Errand says


class Cooldown(NamedTuple):
    """An account's rest, for one model or for all, in monotonic seconds."""

    end: float
    since: float = 0.0
    level: int = 0  # refusals without a hint in a row
    soft: bool = False  # the fault may be passing: try it when there is nobody else
    asked: str = ""  # with which key, where: with another the rest is over
    mark: str = ""  # of the token that was refused: likewise
    status: int = 429  # the upstream's
    why: str = ""


class Probe(NamedTuple):
    """When somebody is asked again for a model for which all rest, in monotonic seconds."""

    due: float
    gap: float  # seconds to the one after it


DEFAULT_ALIASES: Mapping[str, Mapping[str, str]] = {"antigravity": {  # of CLIProxyAPI: what clients ask for -> the service's name
    "gemini-2.5-computer-use-preview-10-2025": "rev19-uic3-1p", "gemini-3-pro-image-preview": "gemini-3-pro-image",
    "gemini-3-pro-preview": "gemini-3-pro-high", "gemini-3-flash-preview": "gemini-3-flash",
    **{f"gemini-claude-{name}": f"claude-{name}" for name in "sonnet-4-5 sonnet-4-5-thinking opus-4-5-thinking opus-4-6-thinking".split()},
}}  # fmt: skip
CURSORS = 4_096  # models, or sessions, that are remembered

# where clients name their conversation, the first that is there counting. Source: spec/providers.md 11.1
SESSION_HEADERS = (
    "session-id session_id x-session-id x-session-affinity x-amp-thread-id x-client-request-id".split()
)
SESSION_FIELDS = "session_id sessionId prompt_cache_key".split()


def session_names(headers: Mapping[str, str], body: Json) -> Iterator[Any]:
    """Yield what may identify the conversation of a request, the best first, whatever it is."""
    metadata, conversation = body.get("metadata"), body.get("conversation")
    user = metadata.get("user_id") if isinstance(metadata, dict) else None
    yield headers.get("x-claude-code-session-id")
    yield claude_session(str(user or ""))
    yield from map(headers.get, SESSION_HEADERS)
    yield from map(body.get, SESSION_FIELDS)
    yield conversation.get("id") if isinstance(conversation, dict) else conversation
    yield user
    yield body.get("conversation_id")
    with contextlib.suppress(*MALFORMED):  # of another form than we know
        yield opening_of(body)


def claude_session(user: str) -> str:
    """Return the session in the user id that Claude Code sends, in either of its forms."""
    told = read_object(user.encode("utf-8", "replace"))
    return str(told.get("session_id") or user.partition("_session_")[2])


def opening_of(body: Json) -> str:
    """Return a digest of how a conversation begins: its instructions and its first user message."""
    told = (body.get(key) for key in ("instructions", "system", "systemInstruction"))
    items = body.get("messages") or body.get("input") or body.get("contents") or ()
    items = [items] if isinstance(items, str) else items
    others = (i for i in items if not isinstance(i, dict) or i.get("role") not in {"system", "developer"})
    first = next(others, None)
    return digest(*(str(text)[:100] for text in told), first) if first else ""


def session_of(headers: Mapping[str, str], body: Json) -> str:
    """Return what identifies the conversation that a request belongs to; empty if nothing does."""
    for name in session_names(headers, body):
        if isinstance(name, str) and 0 < len(name) <= 256 and name.isprintable():
            return name
    return ""


def mapping_targets(model: str, mappings: Iterable[Json]) -> Iterator[str]:
    """Yield what a model is mapped to: by its name, then by patterns. Its effort stays."""
    base, _ = split_suffix(model)
    for row in sorted(mappings, key=lambda row: bool(row["regex"])):
        same = row["from"].lower() == base.lower()
        if re.search(row["from"], base, re.IGNORECASE) if row["regex"] else same:
            yield row["to"] if split_suffix(row["to"])[1] else row["to"] + model[len(base) :]


class Offers:
    """Who offers which model, under which names: of one set of accounts and settings, and never changed."""

    def __init__(self, accounts: Iterable[Account], config: Config) -> None:
        self.accounts = sorted(accounts, key=lambda account: account.name)
        self.config = config
        self._offered: dict[str, list[Candidate]] = {}
        weighted = config["routing.strategy"] == "weighted-round-robin"
        for account in self.accounts:
            if weighted and account.weight <= 0:
                continue
            for offer in account.offers():
                candidate = Candidate(account, *split_suffix(offer.own), offer.forced, offer.display)
                for name in self._public_names(account, offer.public):
                    self._offered.setdefault(name, []).append(candidate)
        self._folded = {name.lower(): name for name in self._offered}

    def _public_names(self, account: Account, public: str) -> Iterator[str]:
        if not account.prefix or not self.config["force-model-prefix"] or account.prefix == public:
            yield public
        if account.prefix:
            yield f"{account.prefix}/{public}"

    def names(self) -> list[str]:
        """Return the names of all models that are offered, sorted."""
        return sorted(self._offered)

    def of(self, model: str) -> list[Candidate]:
        """Return those who offer a model of the list; nobody, if it is none."""
        return self._offered.get(model, [])

    def fact(self, model: str) -> Model:
        """Return what is known of a model of the list, under its name there."""
        first = next(iter(self.of(model)), None)
        if first is None:
            return Model(model)
        own, who = first.account.fact(first.model), first.account.provider.name
        return own._replace(id=model, owner=own.owner or who, name=first.display or own.name or model)

    def find(self, model: str, client: str, usable: Callable[[list[Candidate]], bool]) -> list[Candidate]:
        """Return who serves a name, of the list or not. Raises ProxyError: model_not_found.

        `client` is who asks: some ask for models that nobody chose. `usable` tells whether any of
        these can be asked now: `auto` is the newest of such models.
        """
        found = self.of(model) or self._read(model)
        if not found and split_suffix(model)[0] == "auto":
            found = self._newest(usable, split_suffix(model)[1])
        if not found:
            found = self._stand_in(model, client)
        if not found:
            raise self._unknown(model)
        return found

    def mapped(self, model: str) -> str:
        """Return the model to ask for where Amp asks for this one. Source: spec/providers.md 15.4."""
        amp = self.config["ampcode"]
        names = [*mapping_targets(model, amp["model-mappings"]), model]
        if not amp["force-model-mappings"]:
            names.insert(0, model)
        return next((name for name in names if self.of(name) or self._read(name)), model)

    def previews(self, model: str) -> Iterator[str]:
        """Yield the previews of a model, or what it is a preview of, the newest first."""
        stem = PREVIEW.sub("", model)
        for name in sorted(self._offered, key=by_version, reverse=True):
            if name != model and PREVIEW.sub("", name) == stem:
                yield name

    def _read(self, model: str) -> list[Candidate]:
        """Find who serves a name that is in no list: a new model, or one with an effort in it."""
        for base, effort in self._readings(model):
            found = self.of(base) or self._unlisted(base)
            if found:
                return thinking_so(found, effort)
        return []

    def _readings(self, model: str) -> Iterator[tuple[str, Effort | None]]:
        """Yield what a name may mean, the most likely first."""
        name, effort = bare_model(model)
        base, variant = effort_variant(name, self._offered)
        if variant and not any((a.provider.name, name) in MODEL_INDEX for a in self.accounts):
            yield base, effort or variant
        yield self._folded.get(name.lower(), name), effort

    def _newest(self, usable: Callable[[list[Candidate]], bool], effort: Effort | None) -> list[Candidate]:
        ages = {name: self._age(name) for name, found in self._offered.items() if usable(found)}
        return thinking_so(self.of(max(ages, key=ages.__getitem__, default="")), effort)

    def _age(self, name: str) -> tuple[float, int, list[Any]]:
        """Return a key that sorts the newest last: its date, else its place in the table."""
        first = self._offered[name][0]
        place = list(MODELS).index(first.model) if first.model in MODELS else len(MODELS)
        return first.account.fact(first.model).created, -place, by_version(name)

    @functools.cached_property
    def _talking(self) -> list[str]:
        """The models that make more than pictures or sounds."""
        return [name for name in self._offered if "media" not in self.fact(name).traits]

    def _barring(self, name: str) -> list[Account]:
        """Return the accounts that would serve a model had their owner not excluded it."""
        return [account for account in self.accounts if account.bars(name)]

    def _stand_in(self, model: str, client: str) -> list[Candidate]:
        """Find who serves a model that may take the place of one that nobody serves."""
        name, effort = bare_model(model)
        if self._barring(name):
            return []
        choice = stand_in_for(name, self._talking, client.lower(), self.config["model-fallbacks"])
        return thinking_so(self.of(choice or ""), effort)

    def _unlisted(self, model: str) -> list[Candidate]:
        """Find the accounts that likely serve a model which no list has.

        What one of them excludes is not asked of other services.
        """
        found = []
        barring = {account.provider.name for account in self._barring(model)}
        for account in self.accounts:
            owned = model.removeprefix(f"{account.prefix}/") if account.prefix else model
            bare = owned == model and account.prefix and self.config["force-model-prefix"]
            own = DEFAULT_ALIASES.get(account.provider.name, EMPTY).get(owned, owned)
            strange = barring and account.provider.name not in barring
            if not bare and not strange and account.serves_unlisted(own):
                found.append(Candidate(account, own))
        return found

    def _unknown(self, model: str) -> ProxyError:
        if not self.accounts:
            return ProxyError("model_not_found", NO_ACCOUNT.format(model=model))
        barring = self._barring(bare_model(model)[0])
        if barring:
            message = f"{model!r} is among the excluded models of {barring[0].name}"
            return ProxyError("model_not_found", message, param="model")
        close = ", ".join(map(repr, nearest_names(model, self.names(), 3)))
        hint = f"; nearest: {close}" if close else ""
        message = f"no account serves {model!r}{hint}; GET /v1/models lists all"
        return ProxyError("model_not_found", message, param="model")


def bare_model(model: str) -> tuple[str, Effort | None]:
    """Return a model's name without what clients put around it, and the effort that it ends in."""
    name, effort = split_suffix(model.removeprefix("models/"))
    return name.removesuffix("[1m]"), effort  # Claude Code's mark for a long context


def thinking_so(found: list[Candidate], effort: Effort | None) -> list[Candidate]:
    """Return candidates with an effort, but for those whose name says one."""
    return [candidate._replace(effort=candidate.effort or effort) for candidate in found]


class Turns:
    """Whose turn it is, for each model. Guarded by Router._lock."""

    def __init__(self) -> None:
        self._turns: dict[str, int] = {}
        self._shares: dict[str, dict[str, int]] = {}  # model -> account -> what it has coming
        self._weights: dict[str, int] = {}

    def weigh(self, accounts: Iterable[Account]) -> None:
        """Begin anew if the weights are others than before."""
        weights = {account.name: account.weight for account in accounts}
        if weights != self._weights:
            self._weights = weights
            self._shares = {}

    def order(self, model: str, ready: list[Candidate], strategy: str) -> list[Candidate]:
        """Order candidates by priority, and those of one priority as the strategy says."""
        if len(ready) < 2:
            return ready
        if len(self._turns) > CURSORS:
            self._turns.clear()
            self._shares.clear()
        turn = self._turns[model] = self._turns.get(model, -1) + 1
        order, shares = STRATEGY_ORDERS[strategy], self._shares.setdefault(model, {})
        buckets: dict[int, list[Candidate]] = {}
        for candidate in ready:
            buckets.setdefault(candidate.account.priority, []).append(candidate)
        return [c for key in sorted(buckets, reverse=True) for c in order(buckets[key], turn, shares)]


FIRST_PROBE = 30.0  # seconds after all were sent to rest
LONGEST_GAP = 600.0  # seconds between two probes
PAYABLE = frozenset({402, 403})  # may be over at any time: their probes never grow rarer


class Rests:
    """Who rests, for which model and action, and until when. Guarded by Router._lock.

    While all rest for a model, the alternative to asking is a certain refusal: so somebody is asked
    now and then, in case that a quota came back early.
    """

    def __init__(self, now: Callable[[], float], clock: Callable[[], float]) -> None:
        self._now, self._clock = now, clock
        self._rests: dict[tuple[str, str, str], Cooldown] = {}  # (account, model; empty: all, action)
        self._probes: dict[tuple[str, str], Probe] = {}  # (model, action)

    def of(self, candidate: Candidate) -> Cooldown | None:
        """Return why a candidate rests now; the longest rest, if there are two."""
        name = candidate.account.name
        keys = ((name, model, candidate.action) for model in (candidate.model, ""))
        rests = [
            rest for key in keys if (rest := self._rests.get(key)) and self._holds(rest, candidate.account)
        ]
        return max(rests, default=None)

    def _holds(self, rest: Cooldown, account: Account) -> bool:
        """Tell whether a rest has not ended, and is of what would be asked now."""
        if rest.end <= self._now() or rest.asked not in {"", account.asked}:
            return False
        fresh = account.renewable and account.expired(self._clock())  # it is about to get a token
        return not rest.mark or (rest.mark == account.mark and not fresh)

    def free(self, found: list[Candidate]) -> list[Candidate]:
        """Return those that do not rest; if all do, those whose fault may have passed."""
        if not self._rests:
            return found
        rests = [(self.of(candidate), candidate) for candidate in found]
        free = [candidate for rest, candidate in rests if rest is None]
        return free or [candidate for rest, candidate in rests if rest and rest.soft]

    def probe(self, found: list[Candidate]) -> list[Candidate]:
        """Return who is asked though all rest: the one that rests longest, if it is time for one."""
        rests = [(rest, candidate) for candidate in found if (rest := self.of(candidate))]
        first, now = found[0], self._now()
        last = self._probes.get((first.model, first.action), Probe(0.0, FIRST_PROBE))
        if now < max(last.due, FIRST_PROBE + max(rest.since for rest, _ in rests)):
            return []
        grows = not all(rest.status in PAYABLE for rest, _ in rests)
        gap = min(2.0 * last.gap, LONGEST_GAP) if grows else FIRST_PROBE
        self._probes[first.model, first.action] = Probe(now + gap, gap)
        return [min(rests, key=lambda pair: pair[0].since)[1]]

    def refusal(self, found: list[Candidate]) -> ProxyError:
        """Return the error while nobody can be asked. It names the account that is free first."""
        rests = [(rest, candidate) for candidate in found if (rest := self.of(candidate))]
        rest, first = min(rests, key=lambda pair: pair[0].end)
        wait, name = rest.end - self._now(), first.account.name
        if all(other.status in {400, 404, 422} for other, _ in rests):
            message = f"no account serves {first.model!r}; {name} said: {rest.why}"
            return ProxyError("model_not_found", message, param="model")
        message = (
            f"every account for {first.model!r} is cooling down; "
            f"{name} is free first, in {wait:.0f} s ({rest.status}: {rest.why})"
        )
        if wait > LONG_REST and all(other.status in {401, 402, 403} for other, _ in rests):
            return ProxyError("forbidden", message)  # Codex would wait in silence for a 429 to end
        return ProxyError("rate_limited", message, retry_after=wait)

    def left(self, candidate: Candidate) -> float | None:
        """Return the seconds that a candidate still rests; None if it does not."""
        rest = self.of(candidate)
        return rest.end - self._now() if rest else None

    def begin(
        self, accounts: Iterable[Account], model: str, action: str, wait: float, rest: Cooldown
    ) -> None:
        """Send accounts to rest for a model, or for all, so many seconds."""
        now = self._now()
        for account in accounts:
            own = rest._replace(end=now + wait, since=now, asked=account.asked)
            self._rests[account.name, model, action] = own
        while len(self._rests) > CURSORS:  # clients can ask for whatever they like
            del self._rests[next(iter(self._rests))]

    def next_of(
        self, key: tuple[str, str, str], verdict: Verdict, error: ProxyError, transient: float
    ) -> tuple[float, int]:
        """Return how long to rest after a refusal, and how often a growing rest has grown."""
        last = self._rests.get(key)
        level = last.level if last else 0
        if error.retry_after is not None:
            return error.retry_after, level
        if verdict.backoff and last and last.end > self._now():
            return last.end - self._now(), level  # refusals at the same time count once
        if verdict.backoff:
            return min(verdict.wait * 2.0 ** min(level, 20), BACKOFF_LIMIT), level + 1
        return (transient or verdict.wait) if verdict.soft else verdict.wait, 0

    def end(self, candidate: Candidate) -> None:
        """Forget the rest of an account that has answered."""
        if self._rests:
            for model in (candidate.model, ""):
                self._rests.pop((candidate.account.name, model, candidate.action), None)
            self._probes.pop((candidate.model, candidate.action), None)

    def end_all(self, ends: Callable[[str, Cooldown], bool]) -> bool:
        """Forget the rests for which `ends`, given the account's name, is true; tell whether there were any."""
        ended = [key for key, rest in self._rests.items() if ends(key[0], rest)]
        for key in ended:
            del self._rests[key]
        if ended:
            self._probes.clear()
        return bool(ended)

    def rows_of(self, account: Account) -> list[Json]:
        """Return what the owner may want to know of an account's rests; times are Unix times."""
        offset = self._clock() - self._now()
        return [
            {
                "model": f"{model or '*'}{'' if action == 'generate' else f' {action}'}",
                "until": rest.end + offset,
                "why": f"{rest.status}: {rest.why}",
            }
            for (name, model, action), rest in sorted(self._rests.items())
            if name == account.name and self._holds(rest, account)
        ]

    def stored(self) -> list[Json]:
        """Return what is to be stored; times are Unix times."""
        offset = self._clock() - self._now()
        return [
            {"account": name, "model": model, "action": action, **by_other_clock(rest, offset)._asdict()}
            for (name, model, action), rest in self._rests.items()
            if rest.end > self._now()
        ]

    def restore(self, rows: Iterable[Json]) -> None:
        """Take over what was stored. Raises one of MALFORMED for what is no such thing."""
        offset, longest = self._clock() - self._now(), self._now() + LONGEST_REST
        for stored in rows:  # older versions say less
            rest = by_other_clock(
                Cooldown(**{key: stored[key] for key in Cooldown._fields if key in stored}), -offset
            )
            key = stored["account"], stored["model"], stored.get("action", "generate")
            self._rests[key] = rest._replace(end=min(rest.end, longest))


def by_other_clock(rest: Cooldown, seconds: float) -> Cooldown:
    """Return a rest by another clock."""
    return rest._replace(end=rest.end + seconds, since=rest.since + seconds)


class Limits:
    """What upstreams tell of their accounts' limits. Guarded by Router._lock."""

    def __init__(self) -> None:
        self._limits: dict[str, Json] = {}

    def learn(self, account: Account, windows: Iterable[Window], now: float) -> None:
        self._limits[account.name] = {"at": now, "windows": [list(window) for window in windows]}

    def rows_of(self, account: Account) -> list[Json]:
        windows = (self._limits.get(account.name) or {}).get("windows") or ()
        return [Window(*window)._asdict() for window in windows]

    def stored(self) -> Json:
        return self._limits.copy()

    def restore(self, limits: Json) -> None:
        self._limits.update(limits)


QUICK_RETRY = 0.25  # seconds until an account that has nobody beside it is asked once more


class Router:
    """Chooses accounts: who offers a model, whose turn it is, who must rest, who knows the session.

    Its lock is never held across I/O.
    """

    def __init__(
        self, now: Callable[[], float] = time.monotonic, clock: Callable[[], float] = time.time
    ) -> None:
        self._now, self._clock = now, clock  # for rests, and for what is stored
        self.offers = Offers((), load_config(None))  # replaced whole
        self._lock = threading.Lock()  # guards all below
        self._rests, self._limits = Rests(now, clock), Limits()
        self._turns = Turns()
        # (session, model) -> (account, when that ends)
        self._bound: dict[tuple[str, str], tuple[str, float]] = {}
        self._answers: collections.Counter[str] = collections.Counter()
        self._changed = False  # is there more to store than is stored?

    def configure(self, accounts: Iterable[Account], config: Config) -> None:
        """Replace all accounts. Rests stay with those of the same name that may still rest."""
        offers = Offers(accounts, config)
        resting = {account.name for account in offers.accounts if not is_cooling_off(account, config)}
        with self._lock:
            self.offers = offers
            self._turns.weigh(offers.accounts)
            ended = self._rests.end_all(lambda name, _: name not in resting)
            self._changed = self._changed or ended

    def wake(self, file: str, when: float) -> None:
        """End the rests that began before a Unix time: of an account, of a file's, or `*`: of all."""
        until = when - self._clock() + self._now()
        with self._lock:
            ended = self._rests.end_all(
                lambda name, rest: rest.since <= until and file in {"*", name, name.partition("::")[0]}
            )
            self._changed = self._changed or ended

    def candidates(
        self, model: str, session: str = "", client: str = "", action: str = "generate"
    ) -> list[Candidate]:
        """Return who is asked for a model, in order.

        Whoever answered this session last; then the highest priority first, in each priority as the
        strategy says. Whoever rests, or needs a login, is left out. Raises ProxyError:
        model_not_found, naming the nearest models; unauthorized, if all need a login; rate_limited,
        with the time until the first is free again.
        """
        with self._lock:
            found = self.offers.find(model, client, self._usable)
            if action != "generate":
                found = [candidate._replace(action=action) for candidate in found]
            logged_in = self._logged_in(found)
            if not logged_in:
                raise login_needed(found[0].account)
            ready = self._rests.free(logged_in) or self._previews_free(model) or self._rests.probe(logged_in)
            if not ready:
                raise self._rests.refusal(logged_in)
            return self._bound_first(model, session, ready) or self._in_order(model, ready)

    def _logged_in(self, found: list[Candidate]) -> list[Candidate]:
        now = self._clock()
        return [candidate for candidate in found if not candidate.account.lost(now)]

    def _in_order(self, model: str, ready: list[Candidate]) -> list[Candidate]:
        return self._turns.order(model, ready, self.offers.config["routing.strategy"])

    def _bound_first(self, model: str, session: str, ready: list[Candidate]) -> list[Candidate]:
        """Return candidates with the one that knows the session in front; [] if none does.

        It moves no turn: that is for conversations that begin.
        """
        name, end = self._bound.get((session, model), ("", 0.0))
        if end <= self._now() or not any(candidate.account.name == name for candidate in ready):
            return []
        return sorted(ready, key=lambda c: (c.account.name != name, -c.account.priority))

    def _previews_free(self, model: str) -> list[Candidate]:
        """Return who can serve a preview of a model, or what it is a preview of, at the moment."""
        if not self.offers.config["quota-exceeded.switch-preview-model"]:
            return []
        others = map(self.offers.of, self.offers.previews(model))
        return next(filter(None, (self._rests.free(self._logged_in(other)) for other in others)), [])

    def _usable(self, found: list[Candidate]) -> bool:
        """Tell whether somebody can be asked for a model of the list now, and it can talk."""
        free = self._rests.free(self._logged_in(found))
        return any("media" not in c.account.fact(c.model).traits for c in free)

    def wait_before(self, model: str, client: str, turn: int, error: ProxyError) -> float | None:
        """Return the seconds until it makes sense to ask all accounts once more, after `error`.

        `turn` counts the rounds that were. None: never, as `request-retry`, of the config or of the
        account, and `max-retry-interval` say.
        """
        config = self.offers.config
        with self._lock:
            found = self.offers.find(model, client, self._usable)
            rounds = config["request-retry"]
            patient = [c for c in found if turn < whole_number(c.account.retries, rounds)]
            if turn == 0 and len(found) == len(patient) == 1 and is_momentary(error):
                return QUICK_RETRY
            waits = [error.retry_after] if patient else []
            waits += map(self._rests.left, patient)
        wait = min((wait for wait in waits if wait is not None), default=math.inf)
        return wait if wait <= config["max-retry-interval"] else None

    def punish(self, candidate: Candidate, error: ProxyError, *, spared: bool = False) -> bool:
        """Let an account rest after a refusal, as long as the upstream said, unless it is `spared`.

        False if that is no use: the request itself is at fault, and another account would refuse it.
        """
        if error.retry_after is not None:
            error.retry_after = min(error.retry_after, LONGEST_REST)
        verdict, error.final = decide(error, candidate.account.rules)
        if verdict and error.sent and not spared and tells_of_account(candidate.action, error.status):
            with self._lock:
                self._unbind(candidate.account)
                self._cool(candidate, verdict, error)
        return not error.final

    def _unbind(self, account: Account) -> None:
        """Let the sessions of an account go elsewhere."""
        for session in [s for s, (name, _) in self._bound.items() if name == account.name]:
            del self._bound[session]

    def _cool(self, candidate: Candidate, verdict: Verdict, error: ProxyError) -> None:
        """Send an account to rest for one model or for all, and its login's other projects."""
        account, action = candidate.account, candidate.action
        config = self.offers.config
        whole = verdict.whole or bool({"5h", "7d"}.intersection(claude_claims(error.headers)))
        model = "" if whole else candidate.model
        transient = float(config["transient-error-cooldown-seconds"])
        wait, level = self._rests.next_of((account.name, model, action), verdict, error, transient)
        if wait <= 0 or (is_cooling_off(account, config) and not verdict.hard):
            return
        if error.status == 429 and error.retry_after is None:
            error.retry_after = wait  # without it Codex gives up at once
        status = 403 if whole and error.status == 400 else error.status  # what it means: not this account
        rest = Cooldown(
            end=0.0, level=level, soft=verdict.soft, mark=account.mark if verdict.token else "",
            status=status, why=explained(error),
        )  # fmt: skip
        self._rests.begin(self._siblings(account, error.status), model, action, wait, rest)
        self._changed = True

    def _siblings(self, account: Account, status: int) -> list[Account]:
        """Return whose rest it is: of all projects of a login if they may not stand in for it."""
        file = account.credential.name if account.credential else ""
        if not file or status != 429 or self.offers.config["quota-exceeded.switch-project"]:
            return [account]
        return [a for a in self.offers.accounts if a.credential and a.credential.name == file]

    def rests(self, candidate: Candidate) -> bool:
        """Tell whether a candidate was sent to rest since it was chosen."""
        with self._lock:
            rest = self._rests.of(candidate)
            return rest is not None and not rest.soft

    def reward(self, candidate: Candidate, model: str = "", session: str = "") -> None:
        """Forget the rest of an account that has answered, and keep the session with it."""
        name = candidate.account.name
        with self._lock:
            self._answers[name] += 1
            self._changed = True
            self._rests.end(candidate)
            if session:
                self._bind(session, model, name)

    def _bind(self, session: str, model: str, name: str) -> None:
        lasts = read_duration(self.offers.config["routing.session-affinity-ttl"])
        self._bound.pop((session, model), None)
        self._bound[session, model] = name, self._now() + lasts
        if len(self._bound) > CURSORS:
            del self._bound[next(iter(self._bound))]

    def learn(self, account: Account, headers: Mapping[str, str]) -> None:
        """Keep what an answer tells of its account's limits."""
        if TELLS_LIMITS.isdisjoint(headers):
            return
        now = self._clock()
        windows = told_limits(headers, now)
        if windows:
            with self._lock:
                self._limits.learn(account, windows, now)
                self._changed = True

    def report(self, account: Account) -> Json:
        """Return what the owner may want to know of an account; times are Unix times."""
        now = self._clock()
        with self._lock:
            rests, limits = self._rests.rows_of(account), self._limits.rows_of(account)
            found = {"requests": self._answers[account.name], "cooling": rests, "limits": limits}
        lost = bool(account.dead) or account.lost(now)
        states = {"needs login": lost, "cooling": bool(rests), "expired": account.expired(now)}
        return {"state": next((state for state, is_so in states.items() if is_so), "ready"), **found}

    def state(self) -> Json | None:
        """Return what is to be stored; None if nothing has changed since the last time."""
        with self._lock:
            if not self._changed:
                return None
            self._changed = False
            rests, limits = self._rests.stored(), self._limits.stored()
            return {"cooldowns": rests, "limits": limits, "answers": dict(self._answers)}

    def restore(self, state: Json) -> None:
        """Take over what was stored before a restart. What is no such thing is left out."""
        with self._lock, contextlib.suppress(*MALFORMED):
            self._answers.update(state.get("answers") or {})
            self._limits.restore(state.get("limits") or {})
            self._rests.restore(state.get("cooldowns") or ())


def is_cooling_off(account: Account, config: Config) -> bool:
    """Tell whether the owner wants no rests, of this account or at all."""
    own = account.disable_cooling
    return bool(config["disable-cooling"]) if own is None else own


def login_needed(account: Account) -> ProxyError:
    """Return the error of an account whose tokens have ended for good."""
    type = account.credential.type if account.credential else account.provider.name
    why = account.dead or "the token has expired, and there is no refresh token"
    return ProxyError("unauthorized", f"{account.name}: {why}; run `cliproxy login {type}`")


PREVIEW = re.compile(r"-preview(-[\d-]+)?$")
NO_ACCOUNT = (
    "no account is set up, so {model!r} cannot be served (the model 'echo' always is): "
    "set ANTHROPIC_API_KEY, OPENAI_API_KEY or GEMINI_API_KEY, add a key to the config, "
    "or run: `cliproxy login`"
)


def in_turn(ready: list[Candidate], turn: int, _shares: dict[str, int]) -> list[Candidate]:
    start = turn % len(ready)
    return ready[start:] + ready[:start]


def in_order(ready: list[Candidate], _turn: int, _shares: dict[str, int]) -> list[Candidate]:
    return ready


def by_weight(ready: list[Candidate], _turn: int, shares: dict[str, int]) -> list[Candidate]:
    """Order by what each has coming: its weight every time, less the total whenever it is first."""
    for candidate in ready:
        name = candidate.account.name
        shares[name] = shares.get(name, 0) + candidate.account.weight
    ordered = sorted(ready, key=lambda candidate: -shares[candidate.account.name])
    shares[ordered[0].account.name] -= sum(candidate.account.weight for candidate in ready)
    return ordered


STRATEGY_ORDERS: dict[str, Callable[[list[Candidate], int, dict[str, int]], list[Candidate]]] = {
    "round-robin": in_turn, "fill-first": in_order, "weighted-round-robin": by_weight,
}  # fmt: skip


########################################################################################
# 29. USAGE
########################################################################################
# What was asked, of whom, and what it cost. A request leaves a Tried for each account that it asked,
# as it is; one thread makes Rows of them, adds these to the counters of /metrics, and writes them into
# SQLite once a second: rows, and sums by the half hour, so that no report has to read rows. What goes
# wrong there costs statistics, and never a request.


class Tried(NamedTuple):
    """One account that was asked, as its request leaves it; `number` is 0 if nobody was asked.

    `begun`, `first` and `ended` are of time.monotonic(); `first` is 0.0 if nothing came.
    """

    time: float  # Unix time of its end
    id: str
    number: int
    headers: Headers  # the client's
    query: Mapping[str, str]
    agent: str
    address: str
    dialect: str
    path: str
    asked: str
    model: str
    account: Account | None
    status: int
    error: ProxyError | None
    begun: float
    first: float
    ended: float
    usage: Usage | None
    read_usage: Callable[[], Usage | None] | None  # tells it, if it is not known yet
    streamed: bool
    hung_up: bool


class Row(NamedTuple):
    """A Tried as it is stored. Its fields are columns of the table `rows`, and never NULL but `cost`."""

    time: float  # Unix time of its end
    request: str  # the request's id, as in the log
    attempt: int  # 1, 2, ...; 0: no account was asked
    key: str  # the client's, as a short hash
    client: str  # program and version
    address: str
    dialect: str
    path: str
    asked: str  # the model that the client named
    model: str  # the one that was asked for
    provider: str
    account: str
    auth_index: str
    status: int
    error: str  # kind of the failure
    words: str  # of the failure, shortened
    first_ms: int  # until something came
    total_ms: int
    input: int  # without what the cache held
    cached: int
    cache_write: int
    output: int
    reasoning: int  # also in `output`
    cost: float | None  # in USD by list price; None: unknown
    streamed: int  # 1 or 0
    hung_up: int  # 1 or 0: the client did, before the end


TEXT_LIMIT = 200  # characters that are kept of what others wrote
COUNT_LIMIT = 10**12  # tokens: an upstream that tells of more tells nonsense
LATEST = 1_000  # rows that are kept in memory
NOBODY = "(refused)"  # the model of requests that no account was asked for


# -- who asks ----------------------------------------------------------------------------


CLIENT_NAMES = {  # how programs call themselves in their User-Agent -> as people do. Source: spec/clients.md
    "claude-cli": "claude-code", "codex_cli_rs": "codex", "codex_exec": "codex", "codex-tui": "codex", "geminicli-tui": "gemini-cli",
    "geminicli": "gemini-cli", "qwencode": "qwen-code", "factory-cli": "droid",
}  # fmt: skip
AGENT = re.compile(r"([A-Za-z][\w.-]{0,30})(?:(?:/JS)? |/)v?(\d+\.\d+)?")


@functools.lru_cache(maxsize=256)
def client_of(agent: str) -> str:
    """Return program and version of a User-Agent, as `codex 0.171`; empty if it says nothing."""
    found = AGENT.match(agent)
    if not found:
        return one_line(agent[:30])
    name = CLIENT_NAMES.get(found[1].lower(), found[1].lower())
    return f"{name} {found[2]}" if found[2] else name


def given_keys(headers: Headers, query: Mapping[str, str]) -> list[str]:
    """Return what may be a client's key, from all the places where clients put it."""
    whole = headers.get("authorization", "")
    scheme, _, bearer = whole.partition(" ")
    given = [bearer.strip() if scheme.lower() == "bearer" else "", whole]
    given += [headers.get(name, "") for name in ("x-api-key", "x-goog-api-key")]
    given += [query.get(name, "") for name in ("key", "auth_token")]
    return list(filter(None, given))


@functools.lru_cache(maxsize=256)
def key_mark(key: str) -> str:
    """Return what stands for a client's key wherever it is told: a short hash."""
    return f"key-{digest('client key', key)[:8]}"


# -- prices ------------------------------------------------------------------------------


class Tier(NamedTuple):
    """USD per million tokens of a request with more than `above` input tokens; None: not told."""

    above: int
    input: float
    output: float | None = None
    cached: float | None = None
    write: float | None = None


Tiers = tuple[Tier, ...]
# model, USD per million tokens: input, output, cached input, cache write (-: not told); `>200k`: all of a request with more input
PRICE_ROWS = """
echo                       0     0     0      0
claude-mythos-5            10    50    1      12.5
claude-mythos-5-1          10    50    0.25   12.5
claude-fable-5             10    50    1      12.5
claude-opus-5-5            4     20    0.2    5
claude-opus-5              5     25    0.5    6.25
claude-sonnet-5-5          2     10    0.1    2.5
claude-sonnet-5            2     10    0.2    2.5
claude-haiku-5-5           0.1   0.5   0.01   0.125
claude-opus-4-8            5     25    0.5    6.25
claude-opus-4-7            5     25    0.5    6.25
claude-opus-4-6            5     25    0.5    6.25
claude-sonnet-4-6          3     15    0.3    3.75
claude-opus-4-5            5     25    0.5    6.25
claude-sonnet-4-5          3     15    0.3    3.75
claude-haiku-4-5           1     5     0.1    1.25
claude-opus-4-1            15    75    1.5    18.75
claude-opus-4              15    75    1.5    18.75
claude-sonnet-4            3     15    0.3    3.75
claude-3-7-sonnet          3     15    0.3    3.75
claude-3-haiku             0.25  1.25  0.03   0.3
gpt-6.1-sol                2     10    0.1    2.5     >272k 4 15 0.2 5
gpt-6.1-terra              1     5     0.05   1.25    >272k 2 7.5 0.1 2.5
gpt-6-astra                10    50    1      12.5
gpt-6-sol                  2     10    0.2    2.5
gpt-6-luna                 0.1   0.5   0.01   0.125
gpt-5.6-sol                4     20    0.4    5       >272k 8 30 0.8 10
gpt-5.6-terra              2     12    0.2    2.5     >272k 4 18 0.4 5
gpt-5.6-luna               0.2   1.2   0.02   0.25    >272k 0.4 1.8 0.04 0.5
gpt-5.5                    5     30    0.5    -       >272k 10 45 1 -
gpt-5.4                    2.5   15    0.25   -       >272k 5 22.5 0.5 -
gpt-5.4-mini               0.75  4.5   0.075  -
gpt-5.4-nano               0.2   1.25  0.02   -
gpt-5.3-codex              1.75  14    0.175  -
gpt-5.3-codex-spark        1.75  14    0.175  -
gpt-5.2                    1.75  14    0.175  -
gpt-5.2-codex              1.75  14    0.175  -
gpt-5.1                    1.25  10    0.125  -
gpt-5.1-codex              1.25  10    0.125  -
gpt-5.1-codex-max          1.25  10    0.125  -
gpt-5.1-codex-mini         0.25  2     0.025  -
gpt-5                      1.25  10    0.125  -
gpt-5-codex                1.25  10    0.125  -
gemini-4-argon             2     10    0.1    -
gemini-4-hydrogen          1.5   7.5   0.075  -
gemini-3.8-flash           0.75  3.75  0.075  -
gemini-3.7-flash           0.75  3.75  0.075  -
gemini-3.6-flash           0.75  3.75  0.075  -
gemini-3.5-flash           1.5   9     0.15   -
gemini-3.5-flash-lite      0.3   2.5   0.03   -
gemini-3.1-pro             2     12    0.2    -       >200k 4 18 0.4 -
gemini-3.1-flash-lite      0.25  1.5   0.025  -
gemini-3.1-flash-image     0.5   3     0.05   -
gemini-3-pro               2     12    0.2    -       >200k 4 18 0.4 -
gemini-3-pro-image         2     12    0.2    -       >200k 4 18 0.4 -
gemini-3-flash             0.5   3     0.05   -
gemini-2.5-pro             1.25  10    0.125  -       >200k 2.5 15 0.25 -
gemini-2.5-flash           0.3   2.5   0.03   -
gemini-2.5-flash-lite      0.1   0.4   0.01   -
gemini-2.5-flash-image     0.3   2.5   0.03   -
gemini-pro-latest          2     12    0.2    -       >200k 4 18 0.4 -
gemini-flash-latest        0.75  3.75  0.075  -
gemini-flash-lite-latest   0.3   2.5   0.03   -
gemini-pro-agent           2     12    0.2    -       >200k 4 18 0.4 -
gemini-3-flash-agent       1.5   9     0.15   -
grok-4.7                   2     6     0.5    -       >200k 4 12 1 -
grok-4.6                   2     6     0.5    -       >200k 4 12 1 -
grok-4.5                   2     6     0.3    -       >200k 4 12 0.6 -
grok-4.3                   1.25  2.5   0.2    -       >200k 2.5 5 0.4 -
grok-4.20-0309-reasoning       1.25 2.5 0.2   -       >200k 2.5 5 0.4 -
grok-4.20-0309-non-reasoning   1.25 2.5 0.2   -       >200k 2.5 5 0.4 -
grok-4.20-multi-agent-0309     1.25 2.5 0.2   -       >200k 2.5 5 0.4 -
grok-build-0.1             1     2     0.2    -       >200k 2 4 0.4 -
grok-3-mini                0.3   0.5   -      -
grok-3-mini-fast           0.6   4     -      -
kimi-k3.1-pro              2     10    0.2    -
kimi-k3.1-pro-highspeed    4     20    0.2    -
kimi-k3                    3     15    0.3    3
kimi-k2.7-code             0.95  4     0.19   -
kimi-k2.7-code-highspeed   1.9   8     0.38   -
kimi-k2.6                  0.95  4     0.16   -
kimi-k2.5                  0.6   3     0.1    -
kimi-k2-thinking           0.6   2.5   0.15   -
qwen3-coder-plus           1     5     0.1    -       >32k 1.8 9 0.18 - >128k 3 15 0.3 - >256k 6 60 0.6 -
qwen3-coder-flash          0.3   1.5   0.08   -       >32k 0.5 2.5 0.12 - >128k 0.8 4 0.2 - >256k 1.6 9.6 0.4 -
qwen3-max                  1.2   6     -      -       >32k 2.4 12 - - >128k 3 15 - -
qwen3-max-preview          1.2   6     -      -       >32k 2.4 12 - - >128k 3 15 - -
qwen3-vl-plus              0.2   1.6   -      -       >32k 0.3 2.4 - - >128k 0.6 4.8 - -
glm-5.3                    1.4   4.4   0.26   -
glm-5.3-flash              0.15  0.5   0.03   -
glm-5.2                    1.4   4.4   0.26   -
glm-5.1                    1.4   4.4   0.26   -
glm-5                      1     3.2   0.2    -
glm-4.7                    0.6   2.2   0.11   0
glm-4.6                    0.6   2.2   0.11   0
deepseek-v4-flash          0.3   1.2   0.006  -
deepseek-v4-pro            1.32  3.96  0.044  -
deepseek-v3.2              0.28  0.4   0.028  -
deepseek-v3                0.27  1.1   0.07   0
deepseek-r1                0.55  2.19  0.14   -
minimax-m3                 0.3   1.2   0.06   -
minimax-m2.1               0.3   1.2   0.03   0.375
minimax-m2                 0.3   1.2   0.03   0.375
"""
PRICE_VARIANT = re.compile(
    r"-(?:preview|thinking|low|high|extra-low|latest)$|-\d{8}$|-\d{4}-\d\d-\d\d$|:[a-z]+$|\([^()]*\)$|\[1m\]$"
)


def tiers_of(words: list[str]) -> Tiers:
    """Read the prices of a row: four numbers, and for each tier its limit and four more."""
    groups = [[">0", *words[:4]], *(words[at : at + 5] for at in range(4, len(words), 5))]
    return tuple(
        Tier(int(limit[1:].replace("k", "000")), *(None if word == "-" else float(word) for word in prices))  # type: ignore[arg-type]
        for limit, *prices in groups
    )


@functools.lru_cache(maxsize=1)
def list_prices() -> dict[str, Tiers]:
    """Return the list prices by model. Source: spec/setup.md 5, of 2026-11-28."""
    rows = map(str.split, PRICE_ROWS.strip().splitlines())
    return {name: tiers_of(words) for name, *words in rows}


def own_prices(rows: Mapping[str, Json]) -> dict[str, Tiers]:
    """Read the setting `prices`."""
    return {
        name.lower(): (Tier(0, row["input"], row["output"], row.get("cached"), row.get("cache-write")),)
        for name, row in rows.items()
    }


def price_of(model: str, known: Mapping[str, Tiers]) -> Tiers:
    """Return the tiers of a model's price; empty: unknown.

    A date, an effort or a variant behind the name, and what stands in front of a slash, do not count.
    """
    name = model.lower()
    while name not in known:
        shorter = PRICE_VARIANT.sub("", name)
        if shorter == name:
            shorter = name.partition("/")[2]
        if not shorter:
            return ()
        name = shorter
    return known[name]


def cost_of(tiers: Tiers, usage: Usage) -> float | None:
    """Return what tokens cost by list price, in USD; None where that is unknown.

    `usage.input` holds both cache numbers, and decides which tier counts. Without a price of their
    own, cached tokens cost what others do: an upper bound. Claude's cache of an hour costs double.
    """
    tier = next((tier for tier in reversed(tiers) if usage.input > tier.above), tiers[0] if tiers else None)
    if tier is None or (tier.output is None and usage.output):
        return None
    fresh = max(0, usage.input - usage.cache_read - usage.cache_write)
    read = tier.input if tier.cached is None else tier.cached
    write = tier.input if tier.write is None else tier.write
    hour = min(
        count_at(usage.extra, ("claude", "cache_creation", "ephemeral_1h_input_tokens")), usage.cache_write
    )
    spent = fresh * tier.input + usage.cache_read * read + (usage.cache_write - hour) * write
    return (spent + hour * 2 * tier.input + usage.output * (tier.output or 0.0)) / 1e6


def count_at(data: Any, path: Iterable[str]) -> int:
    """Return the count at a path, 0 if there is none."""
    for word in path:
        data = data.get(word) if isinstance(data, Mapping) else None
    return clean_count(data)


def clean_count(number: object) -> int:
    """Return a count of tokens that somebody else told, 0 if it is none."""
    fits = isinstance(number, (int, float)) and 0 <= number < COUNT_LIMIT
    return int(number) if fits else 0  # type: ignore[call-overload]


def counts_of(tried: Tried) -> Usage:
    """Return what an attempt has used, as counts that can be."""
    told = tried.usage
    if told is None and tried.read_usage:
        told = tried.read_usage()
    if told is None:
        return Usage()
    return Usage._make((*map(clean_count, told[:5]), told.extra))


def row_of(tried: Tried, price: Callable[[str], Tiers]) -> Row:
    """Work out the row that is stored of an attempt."""
    usage = counts_of(tried)
    error = tried.error
    refused = tried.number == 0 and tried.status >= 400  # by us: what it says of itself is anybody's guess
    model = tried.model or tried.asked
    columns = (  # in the order of Row
        tried.time,
        tried.id[:8],
        tried.number,
        *client_words(tried, refused),
        one_line(tried.asked[:TEXT_LIMIT]),
        NOBODY if refused else one_line(model[:TEXT_LIMIT]),
        *account_words(tried.account),
        tried.status,
        *error_told(error),
        milliseconds(tried.first - tried.begun) if tried.first else 0,
        milliseconds(tried.ended - tried.begun),
        max(0, usage.input - usage.cache_read - usage.cache_write),
        *usage[1:5],
        cost_of(price(model), usage) if any(usage[:5]) else 0.0,
        1 if tried.streamed else 0,
        1 if tried.hung_up else 0,
    )
    return Row._make(columns)


def client_words(tried: Tried, refused: bool) -> tuple[str, ...]:
    """Say who asks: key, client, address, dialect and path."""
    keys = given_keys(tried.headers, tried.query)
    return (
        key_mark(keys[0]) if keys and not refused else "",
        client_of(tried.agent[:TEXT_LIMIT]) if not refused else "",
        tried.address,
        tried.dialect,
        one_line(tried.path[:TEXT_LIMIT]),
    )


def account_words(account: Account | None) -> tuple[str, str, str]:
    """Say who was asked: provider, account and its index."""
    return (account.provider.name, account.name, account.auth_index) if account else ("", "", "")


def error_told(error: ProxyError | None) -> tuple[str, str]:
    """Say what went wrong: its kind, and the first of its words."""
    return (error.kind, one_line(str(error)[:TEXT_LIMIT])) if error else ("", "")


def milliseconds(seconds: float) -> int:
    return max(0, round(seconds * 1_000))


def has_failed(row: Row) -> bool:
    """Tell whether an attempt has failed; a client that leaves is no failure."""
    return row.status >= 400 and not row.hung_up


# -- the database ------------------------------------------------------------------------

NUMBERS = ("requests", "failed", "input", "cached", "cache_write", "output", "reasoning", "cost", "unpriced")
GROUPS = ("model", "account", "key", "client", "provider")  # what sums are kept of
SLOT = 1_800  # seconds that are summed up: half an hour, since some time zones are that far apart
BUSY = 5.0  # seconds to wait for another process that writes
SCHEMA_VERSION = 1
SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS rows (id INTEGER PRIMARY KEY, {", ".join(Row._fields)});
CREATE INDEX IF NOT EXISTS rows_time ON rows (time);
CREATE TABLE IF NOT EXISTS sums (slot INTEGER, {", ".join(f"{group} TEXT" for group in GROUPS)},
    {", ".join(f"{number} DEFAULT 0" for number in NUMBERS)}, PRIMARY KEY (slot, {", ".join(GROUPS)})) WITHOUT ROWID;
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""
INSERT_ROW = f"INSERT INTO rows ({', '.join(Row._fields)}) VALUES ({', '.join('?' * len(Row._fields))})"  # noqa: S608
ADD_SUM = (
    f"INSERT INTO sums VALUES ({', '.join('?' * (1 + len(GROUPS) + len(NUMBERS)))}) ON CONFLICT DO UPDATE SET "  # noqa: S608
    + ", ".join(f"{number} = {number} + excluded.{number}" for number in NUMBERS)
)


class DatabaseError(Exception):
    """The statistics cannot be read or written, and why."""


class Database:
    """The file of the statistics, for one thread at a time; several processes may use it.

    Every method raises DatabaseError.
    """

    def __init__(self, path: Path) -> None:
        """Open or make it; a damaged one is put aside."""
        self.path = path
        try:
            import sqlite3  # noqa: PLC0415 -- slow, and not needed to serve
        except ImportError as exc:
            raise DatabaseError(f"this Python has no sqlite3: {exc}") from exc
        self._module = sqlite3
        with self._translated():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                self._open()
            except sqlite3.OperationalError:
                raise  # it is locked, or cannot be written
            except sqlite3.DatabaseError as exc:
                self._put_aside(exc)
                self._open()

    def _put_aside(self, why: Exception) -> None:
        self.close()
        aside = self.path.with_name(f"{self.path.name}.damaged-{int(time.time())}")
        self.path.replace(aside)
        for end in ("-wal", "-shm"):
            self.path.with_name(self.path.name + end).unlink(missing_ok=True)
        log.warning("%s: %s; it was put aside as %s, and a new one is begun", self.path, why, aside.name)

    def _open(self) -> None:
        os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
        self._connection = self._module.connect(
            str(self.path), timeout=BUSY, isolation_level=None, check_same_thread=False
        )
        ((version,),) = self._connection.execute("PRAGMA user_version")
        if version > SCHEMA_VERSION:
            self.close()
            raise DatabaseError(f"{self.path}: it was written by a later version of cliproxy ({version})")
        self._connection.execute("PRAGMA cache_size = -512")  # KB
        self._connection.execute("PRAGMA synchronous = NORMAL")  # a power cut may cost the last rows
        if version < SCHEMA_VERSION:
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.executescript(SCHEMA)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (self._module.Error, OSError) as exc:
            raise DatabaseError(f"{self.path}: {exc}") from exc

    def read(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._translated():
            return list(self._connection.execute(query, values))

    def write(self, rows: Sequence[Row]) -> None:
        """Add rows and their sums in one transaction."""
        with self._translated():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._connection.executemany(INSERT_ROW, rows)
                self._connection.executemany(ADD_SUM, sums_of(rows))
                self._connection.execute("COMMIT")
            except self._module.Error:
                with contextlib.suppress(self._module.Error):
                    self._connection.execute("ROLLBACK")
                raise

    def forget(self, before: float) -> None:
        """Drop the rows that ended before a Unix time; their sums stay."""
        with self._translated():
            self._connection.execute("DELETE FROM rows WHERE time < ?", (before,))

    def close(self) -> None:
        with contextlib.suppress(self._module.Error, AttributeError):
            self._connection.close()


def sums_of(rows: Iterable[Row]) -> Iterator[tuple[Any, ...]]:
    """Yield the sums of rows as rows of the table `sums`."""
    sums: dict[tuple[Any, ...], list[Any]] = {}
    for row in rows:
        unknown = row.cost is None
        numbers = (
            1,
            1 if has_failed(row) else 0,
            row.input,
            row.cached,
            row.cache_write,
            row.output,
            row.reasoning,
            row.cost or 0.0,
            1 if unknown else 0,
        )
        key = (int(row.time // SLOT), *(getattr(row, group) for group in GROUPS))
        sums[key] = list(map(operator.add, sums.get(key, [0] * len(numbers)), numbers))
    yield from ((*key, *numbers) for key, numbers in sums.items())


# -- the statistics ----------------------------------------------------------------------

KEPT_ROWS = 50_000  # that wait while nothing can be written; then the oldest go
DISK_PAUSE = 10.0  # seconds between two tries while the disk does not take anything
CLEAN_PAUSE = 3_600.0  # seconds between two looks for rows that are too old
LABELS = 1_000  # names of models that are counted apart
BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)  # seconds
Counters = dict[str, dict[tuple[str, ...], float]]  # name of a metric -> labels -> value


class Stats:
    """What became of all requests: counters, the latest rows, and the database.

    One thread adds and writes; whoever wants to know reads. `_lock` guards the counters and the
    database: no request ever takes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.since = time.time()
        self.requests = 0  # attempts and refused requests since then
        self._enabled, self._keep_days = True, 90
        self._prices: Mapping[str, Tiers] = {}
        self._counters: Counters = collections.defaultdict(lambda: collections.defaultdict(float))
        self._names: set[str] = set()  # of models that are counted apart
        self._latest: collections.deque[Row] = collections.deque(maxlen=LATEST)
        self._unwritten: collections.deque[Row] = collections.deque(maxlen=KEPT_ROWS)
        self._database: Database | None = None
        self._complained = False
        self._again = -math.inf  # time.monotonic() when the disk may be tried again
        self._clean = -math.inf  # and when rows may be too old
        self._lock = threading.Lock()

    def configure(self, config: Config) -> None:
        """Take over the settings."""
        self._enabled = config["usage-statistics-enabled"]
        self._keep_days = config["usage.keep-days"]
        self._prices = {
            **list_prices(),
            **fetched_prices(self.path.parent)[0],
            **own_prices(config["prices"]),
        }

    @property
    def waiting(self) -> bool:
        """Tell whether there are rows to write."""
        return bool(self._unwritten)

    def add(self, tries: Iterable[Tried]) -> list[Row]:
        """Count attempts, keep them to be written, and return them as rows."""
        price = partial(price_of, known=self._prices)
        rows = [row_of(tried, price) for tried in tries]
        with self._lock:
            self.requests += len(rows)
            for row in rows:
                self._count(row)
            self._latest.extend(rows)
            if self._enabled:
                self._unwritten.extend(rows)
        return rows

    def flush(self) -> None:
        """Write what has been added; what cannot be written waits for the next time."""
        now = time.monotonic()
        with self._lock:
            if not self._unwritten or now < self._again:
                return
            rows = list(self._unwritten)
            try:
                self._database = self._database or Database(self.path)
                self._database.write(rows)
                self._unwritten.clear()
                self._complained = False
                if self._keep_days and now >= self._clean:
                    self._database.forget(time.time() - self._keep_days * 86_400)
                    self._clean = now + CLEAN_PAUSE
            except DatabaseError as exc:
                self._give_up(exc, now)

    def _give_up(self, why: DatabaseError, now: float) -> None:
        """Leave the disk alone for a while; once is enough to say so."""
        if not self._complained:
            log.warning("%s; usage is not recorded until it can be written", why)
        self._complained = True
        self._again = now + DISK_PAUSE
        self._close()

    def _close(self) -> None:
        if self._database:
            self._database.close()
        self._database = None

    def close(self) -> None:
        """Write what is left, now or never."""
        self._again = -math.inf
        self.flush()
        with self._lock:
            self._close()

    def _count(self, row: Row) -> None:
        model = row.model
        if model not in self._names and len(self._names) >= LABELS:
            model = "(other)"
        self._names.add(model)
        provider, counters = row.provider, self._counters
        counters["requests"][provider, model, str(row.status)] += 1
        for kind in ("input", "cached", "cache_write", "output", "reasoning"):
            if tokens := getattr(row, kind):
                counters["tokens"][provider, model, kind] += tokens
        if row.cost:
            counters["cost"][provider, model] += row.cost
        if row.attempt and row.status < 400:
            self._observe("seconds", row.provider, row.total_ms / 1_000)
            self._observe("first_byte", row.provider, row.first_ms / 1_000)

    def _observe(self, what: str, provider: str, seconds: float) -> None:
        """Add a time to a histogram, whose buckets are added up when they are told."""
        bucket = next((f"{limit:g}" for limit in BUCKETS if seconds <= limit), "+Inf")
        self._counters[what][provider, bucket] += 1
        self._counters[f"{what}_sum"][(provider,)] += seconds

    def counters(self) -> Counters:
        """Return the counters as they are now."""
        with self._lock:
            return {name: dict(values) for name, values in self._counters.items()}

    def latest(self) -> list[Row]:
        """Return the last rows of this process, oldest first."""
        with self._lock:
            return list(self._latest)


def fetched_prices(folder: Path) -> tuple[dict[str, Tiers], str]:
    """Return the prices that were fetched, and of when they are; none: no such file."""
    stored = read_object_file(folder / "prices")
    prices: dict[str, Tiers] = {}
    with contextlib.suppress(*MALFORMED):
        prices = {name: tuple(Tier(*tier) for tier in tiers) for name, tiers in stored["models"].items()}
    return prices, str(stored.get("date") or "")


# -- reports -----------------------------------------------------------------------------

USAGE_BY = {  # what a report may be grouped by -> as SQL
    **{group: f"coalesce(nullif({group}, ''), '-')" for group in GROUPS},
    "day": f"strftime('%Y-%m-%d', slot * {SLOT}, 'unixepoch', 'localtime')",
    "hour": f"strftime('%Y-%m-%d %H:00', slot * {SLOT}, 'unixepoch', 'localtime')",
}
TIME_FORMS = "90m, 24h, 7d, 2w, today, yesterday, 2026-11-01 or 2026-11-01T18:30"
TIME_UNITS = {"m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


def read_since(text: str, now: float) -> float:
    """Return the Unix time that a text says, counted back from `now`. Raises ValueError with the forms."""
    words = text.strip().lower()
    if ago := re.fullmatch(r"(\d{1,5})([mhdw])", words):
        return now - int(ago[1]) * TIME_UNITS[ago[2]]
    if words in {"today", "yesterday"}:
        today = time.localtime(now)
        back = 1 if words == "yesterday" else 0
        return time.mktime((today.tm_year, today.tm_mon, today.tm_mday - back, 0, 0, 0, 0, 0, -1))
    for form in ("%Y-%m-%d", "%Y%m%d", "%Y-%m-%dt%H:%M", "%Y-%m-%d %H:%M"):
        with contextlib.suppress(ValueError, OverflowError):
            return time.mktime(time.strptime(words, form))
    raise ValueError(f"{text!r} is no time; allowed: {TIME_FORMS}")


def iso_time(when: float) -> str:
    """Return a Unix time as RFC 3339 has it, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when))


class Query(NamedTuple):
    """What a report is of. Times are Unix times; `model` and `account` are patterns, empty: all."""

    by: str = "day"
    since: float = 0.0
    until: float = 1e11
    model: str = ""
    account: str = ""


def usage_report(database: Database, query: Query) -> Json:
    """Return sums by what is asked for: since, until, by, rows, total, unpriced.

    `cost` is None where no price is known; `unpriced` names these models. Half hours count whole.
    """
    where = ["slot >= ?", "slot * ? < ?"]
    values: list[Any] = [int(query.since // SLOT), SLOT, query.until]
    for column, pattern in (("model", query.model), ("account", query.account)):
        if pattern:
            where.append(f"{column} GLOB ?")
            values.append(glob_of(pattern))
    numbers = ", ".join(f"sum({number})" for number in NUMBERS)
    source = f"FROM sums WHERE {' AND '.join(where)}"
    found = database.read(f"SELECT {USAGE_BY[query.by]}, {numbers} {source} GROUP BY 1 ORDER BY 1", *values)
    (total,) = database.read(f"SELECT {numbers} {source}", *values)
    unpriced = database.read(f"SELECT DISTINCT model {source} AND unpriced ORDER BY 1", *values)
    return {
        "since": iso_time(query.since) if query.since else None,
        "until": iso_time(query.until) if query.until < 1e11 else None,
        "by": query.by,
        "rows": [{query.by: name, **usage_numbers(counts)} for name, *counts in found],
        "total": usage_numbers(total),
        "unpriced": [model for (model,) in unpriced],
    }


def glob_of(pattern: str) -> str:
    """Return a pattern, in which only `*` is special, as SQLite's."""
    return re.sub(r"[\[?]", r"[\g<0>]", pattern)


def usage_numbers(counts: Sequence[Any]) -> Json:
    """Name the sums of a report; a cost of which nothing is known is None."""
    *numbers, cost, unpriced = (number or 0 for number in counts)
    return {**dict(zip(NUMBERS, numbers)), "cost": None if unpriced and not cost else round(cost, 6)}


RECENT_SLOTS, RECENT_SECONDS = 20, 600  # of what management clients draw: 20 times 10 minutes


def recent_requests(database: Database, now: float) -> dict[str, list[Json]]:
    """Return by account what became of its last requests. Source: spec/management.md 12."""
    last = int(now // RECENT_SECONDS)
    first = last - RECENT_SLOTS + 1
    found = database.read(
        "SELECT account, CAST(time / ? AS INTEGER), sum(status < 400), sum(status >= 400 AND NOT hung_up) FROM rows"
        " WHERE time >= ? AND account > '' GROUP BY 1, 2",
        *(RECENT_SECONDS, first * RECENT_SECONDS),
    )
    recent: dict[str, list[Json]] = {}
    for account, slot, success, failed in found:
        blank = [{"time": slot_name(at), "success": 0, "failed": 0} for at in range(first, last + 1)]
        if first <= slot <= last:  # a clock may have been set back
            recent.setdefault(account, blank)[slot - first].update(success=success, failed=failed)
    return recent


def slot_name(slot: int) -> str:
    ends = (time.localtime(end * RECENT_SECONDS) for end in (slot, slot + 1))
    return "-".join(time.strftime("%H:%M", end) for end in ends)


def stored_rows(database: Database, after: int, most: int = 10_000) -> list[tuple[int, Row]]:
    """Return the rows behind the one with the id `after`, each with its id, as they were written."""
    fields = ", ".join(Row._fields)
    query = f"SELECT id, {fields} FROM rows WHERE id > ? ORDER BY id LIMIT ?"  # noqa: S608 -- names of ours
    found = database.read(query, after, most)
    return [(id, Row(*row)) for id, *row in found]


########################################################################################
# 30. LOGS
########################################################################################
# What happened, for people. Whoever has something to say puts it into a queue: a request its Visited
# and its Trieds, all others log records. One thread takes them out in their order, a moment later and
# many at once, writes the lines, and hands the attempts to the statistics.


class Visited(NamedTuple):
    """A request to us, when it has been answered, and the attempt that ended with it, if any."""

    time: float  # Unix time of its end
    method: str
    path: str
    status: int
    seconds: float
    address: str = ""
    query: str = ""
    about: tuple[str, str, str] | None = None  # of a request for a model: its id, model and account
    tried: Tried | None = None


GATHER = 0.03  # seconds that lines are gathered before they are written
FLUSH = 1.0  # seconds between two writes of the statistics


def escaped(text: str) -> str:
    """Return a client's text for the log: one word, no control characters."""
    return quote(text)[1:-1].replace(" ", "%20")


def visit_words(visit: Visited, row: Row | None) -> str:
    """Say in one line what became of a request."""
    rid, model, account = visit.about or ("-", "", "")
    line = f"rid={rid} {visit.method} {escaped(visit.path)}"
    if visit.about:
        line += f" {escaped(model)} account={escaped(account) or '-'}"
    line += f" status={visit.status} total={visit.seconds:.3f}s"
    if row and row.first_ms:
        line += f" first={row.first_ms / 1_000:.3f}s"
    if row and row.error and visit.status < 400:
        line += f" error={row.error}"  # after it had begun
    if row:
        line += f" in={row.input + row.cached + row.cache_write} out={row.output}"
    return line


def terminal_line(visit: Visited, row: Row | None) -> str:
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(visit.time))
    return f"{stamp},{int(visit.time % 1 * 1000):03} INFO {visit_words(visit, row)}\n"


class Queued(logging.Handler):
    """Leaves log records to the thread that writes."""

    def __init__(self, put: Callable[[Any], None]) -> None:
        super().__init__()
        self._put = put

    def emit(self, record: logging.LogRecord) -> None:
        self._put(record)


def write_terminal(text: str) -> None:
    with contextlib.suppress(OSError):  # as of a full disk
        sys.stderr.write(text)
        sys.stderr.flush()


class Scribe:
    """Writes down, on one thread, what all others have to say."""

    def __init__(self, stats: Stats) -> None:
        self.stats = stats
        self.sink: Callable[[str], object] = write_terminal
        self.form = logging.Formatter()
        self._queue: SimpleQueue[Visited | Tried | logging.LogRecord | None] = SimpleQueue()
        self._turn = threading.Lock()  # held while what is in the queue is written
        self._written = -math.inf  # time.monotonic() when the statistics were, last
        self.put = self._queue.put

    def run(self) -> None:
        """Write what comes until `stop`."""
        never = threading.Event()
        while True:
            wait = FLUSH if self.stats.waiting else None
            with contextlib.suppress(Empty):
                first = self._queue.get(timeout=wait)
                never.wait(GATHER)
                self.write(first)
                if first is None:
                    return
            self.keep()

    def stop(self) -> None:
        """End the thread when all is written that has been said until now."""
        self.put(None)

    def keep(self) -> None:
        """Have the statistics written if it is time."""
        if time.monotonic() - self._written >= FLUSH:
            self._written = time.monotonic()
            self.stats.flush()

    def write(self, *first: Any) -> None:
        """Write what has been said so far, `first` before all else."""
        with self._turn:
            said = [*first, *drained(self._queue)]
            tries = [tried for tried in map(tried_of, said) if tried]
            rows = dict(zip(map(id, tries), self.stats.add(tries)))
            lines = (self.line(one, rows.get(id(tried_of(one)))) for one in said)
            text = "".join(filter(None, lines))
            self.sink(text)

    def line(self, said: Any, row: Row | None) -> str:
        """Return the line for one thing that was said; empty: it is only counted."""
        if isinstance(said, Visited):
            return terminal_line(said, row) if log.isEnabledFor(logging.INFO) else ""
        return self.form.format(said) + "\n" if isinstance(said, logging.LogRecord) else ""

    def close(self) -> None:
        """Write all that is left."""
        self.write()
        self.stats.close()


def tried_of(said: Any) -> Tried | None:
    """Return the attempt that something in the queue tells of, if it does."""
    if isinstance(said, Visited):
        return said.tried
    return said if isinstance(said, Tried) else None


def drained(queue: SimpleQueue[Any]) -> Iterator[Any]:
    """Yield what is in a queue, without waiting for more."""
    with contextlib.suppress(Empty):
        while True:
            yield queue.get_nowait()


########################################################################################
# 31. ERRANDS
########################################################################################
# What a client wants, on its way through. A body that only needs another name is edited as bytes:
# what was signed, or written with care, stays as it is.

# An id for every errand without asking the system for random bytes each time, which takes 9 us.
ERRAND_SEED, ERRAND_NUMBERS = secrets.token_hex(8), count(secrets.randbits(32))


def new_id() -> str:
    """Return the id of a request: 24 hex digits, the first eight of which are its name in the log."""
    return f"{next(ERRAND_NUMBERS) & 0xFFFFFFFF:08x}{ERRAND_SEED}"


class Errand:
    """What a client sent us out for: its request for a model, on its way to an upstream.

    `action` is generate, count or compact, or the path below the base URL of an errand that only passes.
    `path_stream` is None while only the body knows. `id` is random hex, `created` Unix time: they seed
    whatever ids an answer lacks.
    """

    def __init__(self, dialect: Dialect, action: str, body: bytes | bytearray) -> None:
        self.dialect = dialect
        self.action = action
        self.body = body
        self.query: Mapping[str, str] = {}
        self.headers: Headers = {}
        self.watcher = Watcher()
        self.id = new_id()
        self.created = int(time.time())
        self.address = ""  # the client's
        self.path = ""
        self.candidate: Candidate | None = None  # who is asked, or was last
        self.number = 0  # of the attempt
        self.told = False  # has it been left to the statistics?
        self.begun = time.monotonic()
        self.first = 0.0  # time.monotonic() when the first of the answer was there
        self.streams = False  # does the answer?
        self.served = ""  # by which model
        self.usage: Usage | None = None  # once it is known
        self.read_usage: Callable[[], Usage | None] | None = None  # how to know it when the answer has passed
        self.failure: ProxyError | None = None  # that the answer ended in, after it had begun
        self.opening: Opening | None = None  # of the answer that is awaited
        self.edit: Callable[[bytes], bytes] | None = None  # of the JSON texts of the answer, for the client
        self._span: tuple[int, int] | None = None
        self._model = ""
        self._json: Json | None = None
        self._quote = quote  # how a name is written in the body
        self.type = "application/json"  # of the body
        self.instead = ""  # the model to look for, if it is not the client's
        self.forced = False  # must the answer carry the name that the client used?
        self.bare = False  # must it go without proofs of thinking?
        self.path_model = ""  # Gemini's requests have the model in their path,
        self.path_stream: bool | None = None  # and whether to stream

    @property
    def model(self) -> str:
        """The model's name as the client wrote it. Raises ProxyError if there is none."""
        if not self._model:
            name: Any = self.path_model
            if not name:
                self._span, name = find_model(self.body) or (None, self.json.get("model"))
            if not isinstance(name, str) or not 0 < len(name) <= NAME_LIMIT or not name.isprintable():
                raise ProxyError("invalid_request", "'model' is missing or no name", param="model")
            self._model = name
        return self._model

    @property
    def json(self) -> Json:
        """The decoded body. Raises ProxyError if it is no JSON object."""
        if self._json is None:
            try:
                decoded = decode_own(self.body)
            except (ValueError, RecursionError) as exc:
                raise ProxyError("invalid_request", f"the body is not JSON: {exc}") from exc
            if not isinstance(decoded, dict):
                raise ProxyError("invalid_request", "the body is not a JSON object")
            self._json = decoded
        return self._json

    def read_form(self) -> None:
        """Find the model in a body that is a form with files. Raises ProxyError if there is none."""
        found = FORM_MODEL.search(self.body)
        if found is None:
            raise ProxyError("invalid_request", "the form has no field 'model'", param="model")
        self._model, self._span = found[1].decode("utf-8", "replace"), found.span(1)
        self._json, self._quote = {}, str

    def rewrite(self, body: Json) -> None:
        """Put another body in the place of the client's."""
        self.body = dumps(body).encode("ascii")
        self._json = body
        self._span = None

    @property
    def sse(self) -> bool:
        """Tell whether the client reads its stream as server-sent events; Gemini's must say so."""
        return self.dialect.name != "gemini" or self.query.get("alt") == "sse"

    def note(self, usage: Usage) -> None:
        """Take down what the answer has cost so far."""
        self.usage = usage

    def summary(self) -> tuple[str, str, str]:
        """Return what the log says of an errand: its id, model and account."""
        asked = self.path_model or self._model or "-"
        model = asked if self.served in {"", asked} else f"{asked}={self.served}"
        return self.id[:8], model, self.account

    @property
    def account(self) -> str:
        """The name of the account that is asked, or was last; empty: none."""
        return self.candidate.account.name if self.candidate else ""

    def begin(self, candidate: Candidate) -> None:
        """Note that an account is asked now."""
        self.candidate = candidate
        self.served = candidate.model
        self.number += 1
        self.told = False
        self.begun = time.monotonic()
        self.first = 0.0
        self.usage = None
        self.read_usage = None
        self.failure = None

    def tried(self, status: int, error: ProxyError | None = None, *, hung_up: bool = False) -> Tried:
        """Return what the statistics are told of the attempt that ends now."""
        candidate, failure = self.candidate, error or self.failure
        self.told = True
        return Tried(
            time.time(),
            self.id,
            self.number,
            self.headers,
            self.query,
            self.client,
            self.address,
            self.dialect.name,
            self.path,
            self.path_model or self._model,
            candidate.model if candidate else "",
            candidate.account if candidate else None,
            failure.status if failure else status,
            failure,
            self.begun,
            self.first,
            time.monotonic(),
            self.usage,
            self.read_usage,
            self.streams,
            hung_up,
        )

    @property
    def probes(self) -> bool:
        """Tell whether it only tries whether somebody answers, as Claude Code does at its start."""
        return self.action == "generate" and self.json.get("max_tokens") == 1

    @property
    def client(self) -> str:
        """Who asks, as far as it says: by its User-Agent, or Amp, which is known by its paths."""
        return "amp" if self.forced else self.headers.get("user-agent", "")

    def passed_query(self, path: str) -> str:
        """Return what of the client's query goes on to an upstream of its dialect, with its mark."""
        query = {k: v for k, v in self.query.items() if k not in {"key", "auth_token", "alt"}}
        return ("&" if "?" in path else "?") + urlencode(query) if query else ""

    @property
    def stream(self) -> bool:
        """Tell whether the client wants a stream."""
        return bool(self.json.get("stream")) if self.path_stream is None else self.path_stream

    @functools.cached_property
    def request(self) -> Request:
        """The request in the neutral model. Raises ProxyError for what is no such request."""
        extra = {"model": self.model, "stream": self.stream} if self.path_model else {}
        if self.query.get("alt"):
            extra["_alt"] = self.query["alt"]
        try:
            request = checked(self.dialect.read_request({**self.json, **extra}))
        except MALFORMED as exc:
            raise self.malformed(exc) from exc
        return request._replace(id=self.id, created=self.created)

    def malformed(self, exc: Exception) -> ProxyError:
        """Return the error of a body that is no request of its dialect."""
        why = "a value in it has another type than it must have"
        if isinstance(exc, KeyError):
            why = f"it lacks {exc}, or cannot hold it"
        elif isinstance(exc, ValueError):
            why = str(exc)
        log.debug("rid=%s malformed: %r", self.id[:8], exc)
        return ProxyError("invalid_request", f"this is no {self.dialect.name} request: {why}")

    def with_model(self, model: str) -> list[Bytes]:
        """Return the body as it came, in pieces, but for another name of the model."""
        if self.path_model or model == self.model:
            return [self.body]
        if self._span is None:
            return [dumps({**self.json, "model": model}).encode("ascii")]
        view, (start, end) = memoryview(self.body), self._span
        return [view[:start], self._quote(model).encode(), view[end:]]


NAME_LIMIT = 1_000  # characters of a model's name: each is looked up, compared and remembered
FORM_MODEL = re.compile(  # RFC 7578 4.2: a field of a form; its name may go without quotes. All is limited: no search may be quadratic
    rb'(?<=\n)content-disposition:[^\r\n]{0,99};[ \t]*name="?model"?[ \t]*(?:;[^\r\n]*)?\r\n(?:[^\r\n]+\r\n){0,9}\r\n([^\r\n]{1,1000})\r\n--',
    re.IGNORECASE,
)
MODEL_VALUE = re.compile(rb'"model"\s*:\s*("(?:[^"\\\x00-\x1f]|\\.){0,1000}")')


def find_model(body: bytes | bytearray) -> tuple[tuple[int, int], str] | None:
    """Find the top-level `model` in a JSON text without decoding it.

    Returns where its value stands, quotes included, and the value; None if only decoding can
    tell: it stands neither in front of the first nested value nor behind the last, or in both
    places. A second one between nested values is not looked for: nobody sends it, and to search
    a large body would cost more than all else that is done with it.
    """
    first, last = body.find(b"{") + 1, body.rfind(b"}")
    opening = body[first : first + HEAD_LIMIT].translate(NESTING).find(b"[")
    nested = first + opening if opening >= 0 else last
    closing = max(body.rfind(b"}", nested, last), body.rfind(b"]", nested, last), nested)
    found = [m for m in (MODEL_VALUE.search(body, first, nested), MODEL_VALUE.search(body, closing)) if m]
    if len(found) != 1 or body[found[0].start() - 1] == 0x5C:  # a backslash: inside of a string
        return None
    try:
        return found[0].span(1), read_json(found[0][1].decode())[0]
    except ValueError:
        return None


NESTING = bytes.maketrans(b"{", b"[")  # either opens a nested value


COMPLETION_DROPPED = frozenset("prompt suffix echo best_of logprobs".split())


def chat_of_completion(body: Json) -> Json:
    """Return a body of the old completions API as a chat of one message.

    Raises ProxyError for tokens and batches. Source: platform.openai.com/docs/api-reference/completions.
    """
    prompt = body.get("prompt", "")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        message = "'prompt' is no text; token numbers and several prompts at once are not supported"
        raise ProxyError("invalid_request", message, param="prompt")
    kept = {key: value for key, value in body.items() if key not in COMPLETION_DROPPED}
    return {**kept, "messages": [{"role": "user", "content": prompt}]}


########################################################################################
# 32. PROVIDERS
########################################################################################
# What a row of PROVIDERS cannot say: a function for the headers of a provider, and one for bodies.

DROPPED_HEADERS = HOP_BY_HOP | frozenset(  # of a client's request; never sent on
    "host content-length content-encoding accept-encoding expect authorization x-api-key range"
    " if-range if-match if-none-match if-modified-since if-unmodified-since x-goog-api-key cookie origin referer via forwarded x-real-ip openai-organization"
    " openai-project openai-platform".split()
)
DROPPED_PREFIXES = ("x-forwarded-", "cf-", "sec-", "proxy-")
PASSED_HEADERS = (  # of an upstream's answer, by their beginnings
    "content-type", "retry-after", "request-id", "x-request-id", "x-should-retry", "x-ratelimit-",
    "anthropic-", "openai-", "x-codex-", "ratelimit-",
)  # fmt: skip


@functools.lru_cache(maxsize=256)
def may_go_on(name: str) -> bool:
    """Tell whether a client's header of this name may go to an upstream of its own dialect."""
    return name not in DROPPED_HEADERS and not name.startswith(DROPPED_PREFIXES)


def upstream_headers(errand: Errand, account: Account, provider: Provider, same: bool) -> Headers:
    """Return the headers of a request to an upstream: a real client's own, ours, the account's."""
    given = errand.headers.items() if same else ()
    headers = {name: value for name, value in given if may_go_on(name)}
    for name, value in provider.headers.items():
        headers.setdefault(name, value)
    headers.setdefault("user-agent", USER_AGENT)
    headers["content-type"] = errand.type
    headers["accept-encoding"] = "identity"
    if account.token:
        auth = provider.auth
        if auth == "bearer" and provider.name == "claude" and is_anthropic_key(account):
            auth = "x-api-key"
        headers.update(AUTH_HEADERS[auth](account.token))
    prepare = PREPARE_HEADERS.get(provider.name)
    if prepare:
        prepare(headers, errand, account)
    for name, value in account.headers.items():
        copied = errand.headers.get(value[1:].lower(), "") if value.startswith("$") else value
        headers.update({name: copied} if copied else {})
    return headers


AUTH_HEADERS: dict[str, Callable[[str], Headers]] = {
    "bearer": lambda token: {"authorization": f"Bearer {token}"},
    "x-api-key": lambda token: {"x-api-key": token},
    "x-goog-api-key": lambda token: {"x-goog-api-key": token},
}


def is_anthropic_key(account: Account) -> bool:
    """Tell whether this is an API key for Anthropic's own host, which wants it in x-api-key."""
    official = account.origin.scheme == "https" and account.origin.host == "api.anthropic.com"
    return official and not account.credential and not account.token.startswith("sk-ant-oat")


def add_beta(headers: Headers, beta: str) -> None:
    """Add a word to the features of Claude's API that a request asks for."""
    betas = headers.get("anthropic-beta", "").replace(" ", "").split(",")
    headers["anthropic-beta"] = ",".join(dict.fromkeys([*filter(None, betas), beta]))


def claude_oauth_headers(headers: Headers, errand: Errand, account: Account) -> None:
    """Add the beta that a bearer token of a log-in needs. Source: spec/providers.md 2.3."""
    if account.credential or account.token.startswith("sk-ant-oat"):
        add_beta(headers, "oauth-2025-04-20")


def conversation_of(errand: Errand) -> str:
    """Return the key by which a conversation is cached; made up for clients that have no such field."""
    key = errand.json.get("prompt_cache_key")
    if not key and errand.dialect.name != "responses":
        session = session_of(errand.headers, errand.json)
        key = session and digest(session)
    return key if isinstance(key, str) and key.isprintable() else ""


def xai_headers(headers: Headers, errand: Errand, account: Account) -> None:
    """Name the conversation for its cache. Source: spec/providers.md 9."""
    if conversation_of(errand):
        headers.setdefault("x-grok-conv-id", conversation_of(errand))


def codex_headers(headers: Headers, errand: Errand, account: Account) -> None:
    """Name the ChatGPT account, and the conversation for its cache. Source: spec/providers.md 3.3."""
    if errand.action != "compact":
        headers["accept"] = "text/event-stream"
    data = account.credential.data if account.credential else {}
    if data.get("account_id"):
        headers["chatgpt-account-id"] = data["account_id"]
    if conversation_of(errand):
        headers.setdefault("session_id", conversation_of(errand))


def kimi_headers(headers: Headers, errand: Errand, account: Account) -> None:
    """Name this program and the device that the login made up. Source: spec/providers.md 8."""
    headers.update(kimi_knock(account.credential.data) if account.credential else {})


PREPARE_HEADERS = {
    "claude": claude_oauth_headers, "codex": codex_headers, "kimi": kimi_headers, "kimi-claude": kimi_headers,
    "xai": xai_headers,
}  # fmt: skip

CODEX_FORCED = {"stream": True, "store": False}
CODEX_REMOVED = frozenset(  # refused with 400 "Unsupported parameter". Source: spec/dialects.md 4.1
    "max_output_tokens max_completion_tokens temperature top_p top_k truncation user metadata"
    " safety_identifier prompt_cache_retention prompt_cache_options context_management"
    " stream_options generate background".split()
)
CODEX_TIERS = {"priority": "priority", "fast": "priority"}
CODEX_EFFORTS = {"minimal": "low", "ultra": "max"}


def refuse_memory(body: Json) -> None:
    """Raise ProxyError for history that the service does not keep: it would be lost without a word."""
    for field in ("previous_response_id", "conversation"):
        if body.get(field):
            message = f"{field}: nothing is stored there; send the whole conversation"
            raise ProxyError("invalid_request", message, param=field)


def prepare_codex(body: Json, errand: Errand, candidate: Candidate) -> Json:
    """Fit a Responses body to the ChatGPT backend, which refuses much of the public API's.

    Returns the same object if it fits already. Source: spec/dialects.md 4.1.
    """
    refuse_memory(body)
    if errand.action == "compact":  # of Codex alone, who knows how to ask for it
        refused = CODEX_REMOVED.union(CODEX_FORCED)
        return body if refused.isdisjoint(body) else without(body, refused)
    fitted = {key: value for key, value in body.items() if key not in CODEX_REMOVED}
    fitted.update(CODEX_FORCED)
    fitted["instructions"] = body.get("instructions") or ""
    fitted["input"] = codex_input(body.get("input"))
    if not fitted.get("tools"):
        fitted.pop("parallel_tool_calls", None)
    elif b'"web_search_preview' in errand.body:
        fitted["tools"] = [codex_tool(tool) for tool in body["tools"]]
    if key := conversation_of(errand):
        fitted.setdefault("prompt_cache_key", key)
    fitted.pop("service_tier", None)
    fitted.update(codex_settings(body))
    return body if fitted == body else fitted


def codex_settings(body: Json) -> Json:
    """Return what must be included, the tier and the effort, as the backend takes them."""
    settings: Json = {}
    include = body.get("include") or []
    if "reasoning.encrypted_content" not in include:
        settings["include"] = [*include, "reasoning.encrypted_content"]
    if body.get("service_tier") in CODEX_TIERS:
        settings["service_tier"] = CODEX_TIERS[body["service_tier"]]
    effort = (body.get("reasoning") or {}).get("effort")
    if effort in CODEX_EFFORTS:
        settings["reasoning"] = {**body["reasoning"], "effort": CODEX_EFFORTS[effort]}
    return settings


def codex_tool(tool: Json) -> Json:
    """Return a tool under its present name: the search had another."""
    return {**tool, "type": "web_search"} if tool["type"].startswith("web_search") else tool


def codex_input(items: Any) -> list[Json]:
    if isinstance(items, str):
        return [{"role": "user", "content": items}]
    return [codex_item(item) for item in items or () if codex_takes(item)]


def codex_takes(item: Json) -> bool:
    """Tell whether an input item is of use: reasoning is not, without its proof."""
    return item.get("type") != "reasoning" or bool(item.get("encrypted_content"))


def codex_item(item: Json) -> Json:
    """Fit one input item: the backend stores none under an id, and knows no system role."""
    fitted = item
    if "id" in item and item.get("type") != "item_reference":
        fitted = without(item, frozenset(["id"]))
    if item.get("role") == "system":
        fitted = {**fitted, "role": "developer"}
    parts, mark = item.get("content"), "prompt_cache_breakpoint"
    if isinstance(parts, list) and any(mark in part for part in parts):
        fitted = {**fitted, "content": [without(part, frozenset([mark])) for part in parts]}
    return fitted


def prepare_kimi_claude(body: Json, errand: Errand, candidate: Candidate) -> Json:
    """Call a model as the coding service does. Source: spec/providers.md 8."""
    model = str(body.get("model") or "")
    name = model.removesuffix("[1m]").removeprefix("kimi-")
    return body if name == model else {**body, "model": name}


def prepare_kimi(body: Json, errand: Errand, candidate: Candidate) -> Json:
    """Say how to think as Kimi does, and give it back what it thought. Source: spec/providers.md 8."""
    fitted, effort = prepare_kimi_claude(body, errand, candidate), body.get("reasoning_effort")
    if effort:
        switch = {"type": "disabled"} if effort == "none" else {"type": "enabled", "effort": effort}
        fitted = {**without(fitted, frozenset(["reasoning_effort"])), "thinking": switch}
    if body.get("stream"):
        fitted = {**fitted, "stream_options": {**(body.get("stream_options") or {}), "include_usage": True}}
    return fitted


XAI_REMOVED = frozenset("prompt_cache_retention safety_identifier stream_options stop".split())


def prepare_xai(body: Json, errand: Errand, candidate: Candidate) -> Json:
    """Leave out what xAI refuses. Source: spec/providers.md 9."""
    refuse_memory(body)
    fitted = body if XAI_REMOVED.isdisjoint(body) else without(body, XAI_REMOVED)
    unfit = "effort" in (body.get("reasoning") or {}) and not candidate.account.fact(candidate.model).levels
    return path_delete(fitted, "reasoning.effort") if unfit else fitted


def prepare_iflow(body: Json, errand: Errand, candidate: Candidate) -> Json:
    """Turn an effort into the switches of the models that have any. Source: spec/providers.md 7."""
    effort, family = body.get("reasoning_effort"), candidate.model.partition("-")[0]
    if effort is None:
        return body
    fitted, on = without(body, frozenset(["reasoning_effort"])), effort != "none"
    if family == "minimax":
        return {**fitted, "reasoning_split": on}
    if not candidate.account.fact(candidate.model).levels:
        return fitted
    keep = {"clear_thinking": False} if family == "glm" and on else {}
    return {**fitted, "chat_template_kwargs": {"enable_thinking": on, **keep}}


def prepare_code_assist(body: Json, errand: Errand, candidate: Candidate) -> Json:
    """Wrap a Gemini body as Code Assist wants it. Source: spec/providers.md 4.3."""
    if errand.action == "count":
        inner = body.get("generateContentRequest") or body
        return {"request": {"model": f"models/{candidate.model}", "contents": inner.get("contents") or []}}
    project = {"project": candidate.account.project} if candidate.account.project else {}
    return {"model": candidate.model, **project, "user_prompt_id": errand.id, "request": body}


def prepare_antigravity(body: Json, errand: Errand, candidate: Candidate) -> Json:
    """Wrap a Gemini body as Antigravity wants it, under our own name. Source: spec/providers.md 5."""
    if errand.action == "count":
        return prepare_code_assist(body, errand, candidate)
    inner = without(body, frozenset(["safetySettings"]))
    if "claude" not in candidate.model:
        inner = path_delete(inner, "generationConfig.maxOutputTokens")
    elif inner.get("tools"):
        inner = path_set(inner, "toolConfig.functionCallingConfig.mode", "VALIDATED")
    session = int(digest(opening_of(body) or errand.id)[:16], 16) >> 1  # the same all through a conversation
    kind = "image_gen" if "image" in candidate.account.fact(candidate.model).traits else "agent"
    wrapped = prepare_code_assist({**inner, "sessionId": f"-{session}"}, errand, candidate)
    del wrapped["user_prompt_id"]
    return {**wrapped, "requestId": errand.id, "userAgent": "cliproxy", "requestType": kind}


PREPARE: dict[str, Callable[[Json, Errand, Candidate], Json]] = {
    "codex": prepare_codex,
    "kimi": prepare_kimi,
    "kimi-claude": prepare_kimi_claude,
    "xai": prepare_xai,
    "iflow": prepare_iflow,
    "gemini-cli": prepare_code_assist,
    "antigravity": prepare_antigravity,
}
PROTOCOLS = {  # dialect -> what payload rules call it: as an upstream, as a client
    "claude": ("claude", "claude"), "chat": ("openai", "openai"),
    "responses": ("codex", "responses"), "gemini": ("gemini", "gemini"),
    "antigravity": ("antigravity", ""),  # a provider that they call by its own name
}  # fmt: skip


# --- payload rules: what the owner wants changed in bodies. Source: spec/config.md 7 ----------------
class PayloadCase(NamedTuple):
    """What the conditions of payload rules look at, beside the body."""

    models: tuple[str, ...]  # as sent upstream, as asked for, and that with its suffix
    protocol: str  # of the upstream: openai, gemini, claude, codex, antigravity
    from_protocol: str  # of the client: openai, responses, gemini, claude
    headers: Mapping[str, str]  # of the client, names in lower case
    root: str = ""  # paths start at this member of the body, as Code Assist wraps it


def pairs_of(cell: Any) -> list[tuple[str, Any]]:
    """Return the pairs of an object, or of a list of objects."""
    objects = cell if isinstance(cell, list) else [cell or {}]
    return [pair for each in objects for pair in each.items()]


PAYLOAD_CONDITIONS: dict[str, Callable[[Any, Json, PayloadCase], bool]] = {  # absent or empty: true
    "protocol": lambda cell, _, case: str(cell).lower() == case.protocol,
    "from-protocol": lambda cell, _, case: str(cell).lower() == case.from_protocol,
    "headers": lambda cell, _, case: all(
        wildcard(str(value), case.headers.get(key.lower(), "")) and key.lower() in case.headers
        for key, value in pairs_of(cell)
    ),
    "match": lambda cell, body, _: all(path_is(body, *pair) for pair in pairs_of(cell)),
    "not-match": lambda cell, body, _: not any(path_is(body, *pair) for pair in pairs_of(cell)),
    "exist": lambda cell, body, _: all(path_exists(body, path) for path in cell),
    "not-exist": lambda cell, body, _: not any(path_exists(body, path) for path in cell),
}


def payload_fits(entry: Json, body: Json, case: PayloadCase) -> bool:
    """Tell whether one of the `models` of a payload rule is meant."""
    return any(wildcard(entry.get("name", ""), model) for model in case.models) and all(
        holds(entry[key], body, case) for key, holds in PAYLOAD_CONDITIONS.items() if entry.get(key)
    )


def payload_changes(rules: Json, body: Json, case: PayloadCase) -> Iterator[tuple[str, str, Any]]:
    """Yield the kind, path and value of each change that the rules want, in their order."""
    kinds = ("default", "default-raw", "override", "override-raw", "filter")
    for kind, rule in ((name, rule) for name in kinds for rule in rules.get(name) or ()):
        if any(payload_fits(entry, body, case) for entry in rule.get("models") or ()):
            params = rule.get("params") or {}
            pairs = params.items() if isinstance(params, dict) else ((p, None) for p in params)
            for path, value in pairs:
                yield kind, path.removeprefix(".") if case.root else path, value


def apply_payload(rules: Json, body: Json, original: Json, case: PayloadCase) -> Json:
    """Return `body` as the payload rules want it; `body` itself if they change nothing.

    `original` is the body as first translated: a default is set only where that has nothing, and
    the first one wins. Conditions look at `body` as it came. Neither body is changed.
    """
    inner = body.get(case.root, {}) if case.root else body
    first = original.get(case.root, {}) if case.root else original
    result, taken = inner, set()
    for kind, path, value in payload_changes(rules, inner, case):
        if kind == "filter":
            result = path_delete(result, path)
        elif kind.startswith("override"):
            result = path_set(result, path, value)
        elif path not in taken and not path_exists(first, path):
            result = path_set(result, path, value)
            taken.add(path)
    if result is inner:
        return body
    return {**body, case.root: result} if case.root else result


########################################################################################
# 33. CATALOG
########################################################################################
# The models that each account's upstream says it has, for lists and limits. Kept on disk for a day.

Listed = Mapping[str, Json]  # id of a model -> fields of Model
LIST_FIELDS = {  # field of Model -> where lists of models have it. The first that says something counts
    "name": "display_name displayName name",
    "owner": "owned_by",
    "context": "max_input_tokens inputTokenLimit context_length context_window max_context_length max_model_len",
    "output": "max_completion_tokens max_output_tokens outputTokenLimit top_provider.max_completion_tokens max_tokens",
    "created": "created created_at",
}
LIST_AGE = 86_400.0  # seconds until a list is asked for again
LIST_RETRY = 3_600.0  # seconds after a failure


def read_listed(row: Json) -> tuple[str, Json]:
    """Read one entry of a list: the id, empty if it holds no conversation, and fields of Model."""
    id = row.get("id") or str(row.get("name", "")).removeprefix("models/")
    verbs = row.get("supportedGenerationMethods")
    if not isinstance(id, str) or (verbs and "generateContent" not in verbs):
        return "", {}
    facts = {
        field: next(filter(None, (path_get(row, word) for word in words.split())), None)
        for field, words in LIST_FIELDS.items()
    }
    facts["created"] = int(read_time(facts["created"]) or 0)
    shapes = {"name": str, "owner": str}
    return id, {key: value for key, value in facts.items() if value and type(value) is shapes.get(key, int)}


def read_list(body: bytes) -> Listed:
    """Read an upstream's list of models, in any dialect. Raises ValueError for what is none."""
    data = decode_json(body)
    if isinstance(data, dict):
        data = data["data"] if "data" in data else data.get("models")
    if not isinstance(data, list):
        raise ValueError("there is no list in it")  # noqa: TRY004 -- as if it were no JSON
    rows = dict(read_listed(row) for row in data if isinstance(row, dict))
    return {id: facts for id, facts in rows.items() if id}


def list_file(account: Account) -> str:
    """Return the name of the file that keeps an account's list."""
    who = account.credential.name if account.credential else account.key
    return digest(account.provider.name, account.base, who) + ".list"


class Catalog:
    """The models that upstreams say they have: asked once a day, and kept beside the credentials.

    One thread asks, and only while there is somebody to ask. Failures are for the debug log.
    """

    def __init__(self, folder: Path, now: Callable[[], float] = time.time) -> None:
        self._folder, self._now = folder, now
        self._lock = threading.Lock()
        self._lists: dict[str, tuple[float, Listed]] = {}  # file -> when asked; guarded
        self._tried: dict[str, float] = {}  # file -> when it failed; guarded
        self._asking: threading.Thread | None = None
        self._changed = False

    def listed(self, account: Account) -> Listed:
        """Return what an account's upstream said last, if ever."""
        return self._known(list_file(account))[1]

    def changed(self) -> bool:
        """Tell whether there are other lists than the last time this was asked."""
        changed, self._changed = self._changed, False
        return changed

    def poll(self, accounts: Iterable[Account]) -> None:
        """Ask, in a thread, those who were not asked today."""
        if self._asking and self._asking.is_alive():
            return
        due = [account for account in accounts if self._due(account)]
        if due:
            self._asking = threading.Thread(target=self.refresh, args=(due,), daemon=True)
            self._asking.start()

    def refresh(self, accounts: Iterable[Account]) -> dict[str, str]:
        """Ask these accounts now; return the failures by account."""
        failures = {}
        for account in filter(can_list, accounts):
            try:
                self._keep(list_file(account), ask_for_list(account))
            except (ProxyError, OSError, *MALFORMED) as exc:
                log.debug("%s: no list of models: %s", account.name, exc)
                failures[account.name] = str(exc)
                with self._lock:
                    self._tried[list_file(account)] = self._now()
        return failures

    def _due(self, account: Account) -> bool:
        file = list_file(account)
        then = max(self._known(file)[0], self._tried.get(file, 0.0) - LIST_AGE + LIST_RETRY)
        useless = account.expired(self._now()) or not can_list(account)  # a token may be renewed soon
        return not useless and not 0 <= self._now() - then < LIST_AGE

    def _known(self, file: str) -> tuple[float, Listed]:
        with self._lock:
            if file not in self._lists:
                self._lists[file] = self._read(file)
            return self._lists[file]

    def _read(self, file: str) -> tuple[float, Listed]:
        try:
            data = json.loads((self._folder / file).read_bytes())
            return float(data["at"]), {
                id: {k: facts[k] for k in LIST_FIELDS if k in facts} for id, facts in data["models"].items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return 0.0, {}

    def _keep(self, file: str, models: Listed) -> None:
        now, before = self._now(), self._known(file)[1]
        with self._lock:
            self._lists[file] = now, models
        self._changed = self._changed or models != before
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomic(self._folder / file, dumps({"at": now, "models": models}).encode("ascii"))


def can_list(account: Account) -> bool:
    """Tell whether to ask for an account's models: its owner has not said which to offer."""
    return bool(account.models is None and account.provider.models and not account.excludes("*"))


def ask_for_list(account: Account) -> Listed:
    """Ask an account's upstream for its models. Raises ProxyError and ValueError."""
    provider = account.provider
    headers = upstream_headers(Errand(DIALECTS[provider.dialect], "list", b""), account, provider, False)
    headers.pop("content-type")
    reply = fetch("GET", account.base.rstrip("/") + provider.models, headers, proxy=account.proxy)
    if reply.status != 200:
        raise DIALECTS[provider.dialect].read_error(reply.status, reply.body)
    return read_list(reply.body)


# --- as clients list them ---------------------------------------------------------------
ECHO = "echo"  # a model that needs no account: it repeats the last user text
GEMINI_VERBS: dict[str, tuple[str, bool | None]] = {  # verb -> action, stream
    "generateContent": ("generate", False),
    "streamGenerateContent": ("generate", True),
    "countTokens": ("count", False),
}


def known_model(offers: Offers, name: str) -> Model:
    """Return what lists tell of a model, `created` guessed from its name if need be."""
    if name == ECHO:
        return Model(ECHO, "cliproxy", ECHO)
    row = offers.fact(name)
    date = re.search(r"([0-9]{4})-?([0-9]{2})-?([0-9]{2})$", name)
    then = read_time("-".join(date.groups()) + "T00:00Z") if date else 0
    return row._replace(created=row.created or int(then or 0))


def without_zeros(fields: Json) -> Json:
    """Leave out the limits that nobody knows."""
    return {key: value for key, value in fields.items() if value}


def openai_model(row: Model) -> Json:
    """Describe a model as OpenAI's API does, with the limits that its imitators add."""
    limits = {"context_length": row.context, "max_completion_tokens": row.output}
    base = {"id": row.id, "object": "model", "created": row.created, "owned_by": row.owner}
    return {**base, "display_name": row.name, **without_zeros(limits)}


def claude_model(row: Model) -> Json:
    created = write_time(row.created, utc=True) if row.created else "1970-01-01T00:00:00Z"
    base = {"type": "model", "id": row.id, "display_name": row.name, "created_at": created}
    return {**base, **without_zeros({"max_input_tokens": row.context, "max_tokens": row.output})}


def gemini_model(row: Model) -> Json:
    limits = without_zeros({"inputTokenLimit": row.context, "outputTokenLimit": row.output})
    base = {"name": f"models/{row.id}", "version": "001", "displayName": row.name}
    return {**base, **limits, "supportedGenerationMethods": list(GEMINI_VERBS)}


MODEL_SHAPES: dict[str, tuple[Callable[[Model], Json], Callable[[list[Json]], Json]]] = {
    "claude": (claude_model, lambda rows: {"data": rows, "has_more": False,
                                           "first_id": rows[0]["id"], "last_id": rows[-1]["id"]}),
    "gemini": (gemini_model, lambda rows: {"models": rows}),
    "chat": (openai_model, lambda rows: {"object": "list", "data": rows}),
}  # fmt: skip


########################################################################################
# 34. ANSWERS
########################################################################################
# What goes back to the client. An answer that passes is watched for usage, errors and its end; what
# needs another name, or no envelope, is edited as bytes: the rest stays as the upstream wrote it.

Pieces = Generator[bytes, None, None]


class Answer(NamedTuple):
    """What goes back to the client. Its body comes in `pieces`, the first one without delay.

    `headers` are the upstream's worth passing on; `length` is that of the body, if known. After
    the first piece a ProxyError may come: it is for the client as an error of a stream.
    """

    status: int
    headers: Headers
    pieces: Pieces
    length: int | None = None


def is_stream(headers: Mapping[str, str], asked: bool = False) -> bool:
    """Tell whether the answer with these headers is a stream of server-sent events.

    If that was `asked` for, it need not say so.
    """
    kind = headers.get("content-type", "")
    return kind.startswith("text/event-stream") or (asked and not re.search("json|html", kind))


def iter_once(data: bytes) -> Pieces:
    yield data


def whole_answer(status: int, headers: Headers, body: bytes) -> Answer:
    """Return an answer that is there already."""
    return Answer(status, headers, iter_once(body), len(body))


def json_answer(status: int, body: Any, headers: Mapping[str, str] = EMPTY) -> Answer:
    """Return an object as a whole answer in JSON."""
    told = {**headers, "content-type": "application/json"}
    return whole_answer(status, Headers(told), dumps(body).encode("ascii"))


class Opening:
    """What an answer begins with, held back until it says something.

    Nobody has seen it until then, so that another account may still be asked. The watcher sends it
    if that takes long.
    """

    def __init__(self, *, said: bool = False) -> None:
        self.status = 200
        self.headers = Headers()
        self.frames: list[bytes] = []
        self.size = 0
        self.since = 0.0  # time.monotonic() of the first frame
        self.said = said  # has anything been said?
        self.sent = False  # has the watcher sent it?
        self.failure: ProxyError | None = None  # before anything was said, though a writer told it

    def add(self, frame: bytes) -> None:
        if not self.frames:
            self.since = time.monotonic()
        self.frames.append(frame)
        self.size += len(frame)

    def due(self) -> bool:
        """Tell whether it has been held back long enough."""
        if not self.frames:
            return False
        return self.size > OPENING_LIMIT or time.monotonic() - self.since >= OPENING_TIME

    def send(self) -> list[bytes]:
        """Return what is held, for the watcher: from now on no other account may answer."""
        self.said = self.sent = True
        return self.frames


OPENING_TIME = 2.0  # seconds
OPENING_LIMIT = 2**16  # bytes


def started_answer(answer: Answer, opening: Opening) -> Answer:
    """Pull the pieces of an answer until they say something: a failure before that is not told as its end."""
    opening.status, opening.headers = answer.status, answer.headers
    for piece in answer.pieces:
        if opening.sent:
            return answer._replace(pieces=with_first([piece], answer.pieces))
        if opening.failure:
            raise opening.failure
        opening.add(piece)
        if opening.said or opening.due():
            break
    opening.said = True
    frames = [] if opening.sent else opening.frames
    return answer._replace(pieces=with_first(frames, answer.pieces))


def with_first(first: list[bytes], pieces: Pieces) -> Pieces:
    with contextlib.closing(pieces):
        yield from first
        yield from pieces


SILENT_EVENTS = frozenset({MessageStart, PartStart, Usage})  # they say nothing


def until_said(events: Events, opening: Opening, errand: Errand) -> Events:
    """Let events through, telling of the first that says something, or of a failure before that.

    The errand learns of any failure: a writer makes a frame of it.
    """
    try:
        for event in events:
            opening.said = opening.said or type(event) not in SILENT_EVENTS
            yield event
            if opening.said:
                break
        yield from events
    except ProxyError as error:
        opening.failure = None if opening.said else error
        errand.failure = error
        raise
    finally:
        events.close()


SILENT_TYPES = frozenset(  # of payloads in streams of Claude and Responses
    "message_start content_block_start ping keepalive codex.rate_limits response.created response.queued"
    " response.in_progress response.output_item.added response.content_part.added"
    " response.reasoning_summary_part.added".split()
)


def is_silent(payload: Json) -> bool:
    """Tell whether a payload of a stream says nothing yet."""
    if "type" in payload:
        return payload["type"] in SILENT_TYPES
    for row in payload.get("choices") or payload.get("candidates") or ():
        if row.get("finish_reason") or row.get("finishReason"):
            return False
        said = row.get("delta") or row.get("message") or row.get("content") or EMPTY
        if any(value for key, value in said.items() if key != "role"):
            return False
    return "promptFeedback" not in payload


def answer_of(errand: Errand, events: Events, headers: Mapping[str, str] = EMPTY) -> Answer:
    """Return events as an answer in the client's dialect, a stream if that is what it wants."""
    dialect, request = errand.dialect, errand.request
    if not request.stream:
        return json_answer(200, dialect.write_response(collect(events), request), headers)
    kind = "text/event-stream" if errand.sse else "application/json"
    told = Headers({**headers, "content-type": kind})
    return Answer(200, told, dialect.write_stream(events, request))


def for_client(answer: Answer, errand: Errand) -> Answer:
    """Edit an answer as the client's route wants it."""
    edit = errand.edit
    if not edit:
        return answer
    if is_stream(answer.headers):
        return answer._replace(pieces=edited_events(answer.pieces, edit), length=None)
    with contextlib.closing(answer.pieces) as pieces, read_of_upstream():
        return whole_answer(answer.status, answer.headers, edit(b"".join(pieces)))


def in_envelope(text: bytes) -> bytes:
    """Put a JSON text of Gemini into the envelope of Code Assist."""
    return b'{"response":' + text + b"}"


MEMBER = re.compile(r'[\s,]*"((?:[^"\\]|\\.)*)"\s*:\s*')  # of an object, up to its value
MODEL_KEYS = frozenset({"model", "modelVersion"})
MODEL_HOMES = frozenset({"message", "response"})  # objects that may hold them


def members(text: str, at: int) -> Iterator[tuple[str, int, int]]:
    """Yield the name of each member of an object, and where its value begins and ends.

    `at` is behind the opening brace. Raises ValueError for what is no JSON.
    """
    while member := MEMBER.match(text, at):
        _, at = read_json(text, member.end())
        yield member[1], member.end(), at


def model_spans(text: str, at: int) -> Iterator[tuple[int, int]]:
    """Yield where an answer, or an event of one, tells its model: spec/providers.md 15.4."""
    for name, start, end in members(text, at):
        if name in MODEL_KEYS and text[start] == '"':
            yield start, end
        elif name in MODEL_HOMES and text[start] == "{":
            yield from model_spans(text, start + 1)


def renamed(data: bytes, name: str) -> bytes:
    """Return a JSON text with `name` where it tells the model; the other bytes stay."""
    if b'"model' not in data:
        return data
    text = data.decode("utf-8", "surrogateescape")
    with contextlib.suppress(*MALFORMED):
        for start, end in reversed(list(model_spans(text, text.index("{") + 1))):
            text = text[:start] + quote(name) + text[end:]
    return text.encode("utf-8", "surrogateescape")


def out_of_envelope(data: bytes) -> bytes:
    """Return what stands in the `response` of an answer of Code Assist; what has none stays."""
    text = data.decode("utf-8", "surrogateescape")
    with contextlib.suppress(*MALFORMED):
        for name, start, end in members(text, text.index("{") + 1):
            if name == "response":
                return text[start:end].encode("utf-8", "surrogateescape")
    return data


def edited_event(event: bytes, edit: Callable[[bytes], bytes]) -> bytes:
    """Return a server-sent event with its JSON text edited; what holds none stays."""
    data = sse_data(event)
    if not data.startswith(b"{"):
        return event + b"\n\n"
    lines = [line for line in event.split(b"\n") if not line.startswith(b"data:")]
    return b"\n".join([*lines, b"data: " + edit(data)]) + b"\n\n"


def edited_events(pieces: Pieces, edit: Callable[[bytes], bytes]) -> Pieces:
    """Yield the events of a stream with their JSON texts edited."""
    with contextlib.closing(pieces):
        for event in sse_split(pieces):
            yield edited_event(event, edit)


class Tap:
    """Reads usage, and the end, of a passing stream from the whole events that can hold them.

    When it is closed the errand knows the usage that was told until then.
    """

    def __init__(self, errand: Errand) -> None:
        self.finished = False
        self.failed = False  # has the upstream told an error?
        self._errand = errand
        self._ends = STREAM_ENDS[errand.dialect.name]
        self._first = b""  # what tells of usage: Claude's input comes first, its output last
        self._last = b""

    def feed(self, events: bytes) -> None:
        if b'"usage' in events:
            for found in USAGE_OBJECT.finditer(events):
                self._last = events[found.end() : found.end() + USAGE_LIMIT]
                self._first = self._first or self._last
        for end in self._ends:
            if end in events:
                self.finished = True
        if events.startswith(DONE_LINES):
            self.finished = True

    def close(self) -> None:
        told: Json = {}
        first = (
            self._first if self._errand.dialect.name == "claude" else b""
        )  # it tells parts, all others the whole
        for text in (first, self._last):
            with contextlib.suppress(*MALFORMED):
                more, _ = read_json(text.decode("utf-8", "replace"))
                told.update({key: value for key, value in more.items() if value is not None})
        self._errand.usage = read_usage_of(told, self._errand.dialect)


USAGE_LIMIT = 4_096  # bytes: longer than any usage object
USAGE_OBJECT = re.compile(rb'"usage(?:Metadata)?"\s*:\s*(?=\{)')
DONE_LINES = (b"data: [DONE]", b"data:[DONE]")
STREAM_ENDS = {  # how a complete stream ends. A model that talks of it cannot write such quotes, or lines
    "claude": (b'"message_stop"',),
    "chat": (b"\ndata: [DONE]", b"\ndata:[DONE]", b'"finish_reason":"', b'"finish_reason": "'),
    "responses": (b'"response.completed"', b'"response.incomplete"', b'"response.failed"'),
    "gemini": (b'"finishReason":"', b'"finishReason": "', b'"blockReason":"', b'"blockReason": "'),
}


def read_usage_of(told: Json, dialect: Dialect) -> Usage | None:
    """Read a usage object of an upstream; None for what is none."""
    if not told:
        return None
    with contextlib.suppress(ProxyError, *MALFORMED):
        usage = dialect.read_usage(told)
        check_fields(usage, "upstream_failed")
        return usage
    return None


def find_usage(payload: Json, dialect: Dialect) -> Usage | None:
    """Read the usage in a whole answer."""
    for path in dialect.usage_at:
        told: Any = payload
        for key in path:
            told = told.get(key) if isinstance(told, dict) else None
        if told and isinstance(told, dict):
            return read_usage_of(told, dialect)
    return None


ERROR_FIELDS = {  # what a client needs in `error`; third parties leave some out
    "claude": ("type", "message"), "chat": ("message", "type"), "responses": ("message", "type"),
    "gemini": ("code", "message", "status"),
}  # fmt: skip


def completed_error(body: bytes, error: ProxyError, dialect: Dialect) -> bytes:
    """Return an error as it came, with the fields that its dialect wants of every error.

    Of what is of another form, as `{"detail": ...}`, SDKs show nothing at all: it is said anew.
    """
    ours, said = dialect.write_error(error), error_body(0, body)
    if isinstance(said, list) and dialect.name == "gemini":
        return body  # as its streams say it that are arrays
    told = said.get("error") if isinstance(said, dict) else None
    if not isinstance(told, dict):
        return dumps({**said, **ours} if isinstance(said, dict) else ours).encode("ascii")
    if error.kind == "context_too_long" and told != (full := {**told, **full_signs(ours["error"])}):
        return dumps({**said, "error": full}).encode("ascii")
    if told.keys() >= set(ERROR_FIELDS[dialect.name]):
        return body
    return dumps({**ours, **said, "error": {**ours["error"], **told}}).encode("ascii")


ERROR_SIGN = re.compile(rb'"error"\s*:\s*\{|"type"\s*:\s*"error"')
LISTS = {"chat": "choices", "gemini": "candidates"}  # what says something in a whole answer


ERROR_TYPES = ("error", "response.failed")


def told_error(payload: Json) -> Any:
    """Return the error that an answer, or a payload of a stream, is, if it is one."""
    response = payload.get("response")
    error = payload.get("error") or (response.get("error") if isinstance(response, dict) else None)
    failed = payload.get("type") in ERROR_TYPES or payload.get("status") == "failed"
    return error or (payload if failed else None)


def raise_told(payload: Json, error: Any, dialect: Dialect) -> None:
    """Raise an error that an upstream told with a status of success."""
    with contextlib.suppress(*MALFORMED):
        for _ in dialect.read_stream(iter((payload,)), Request(dialect.name, "", ())):
            pass  # it raises, as it would were the stream translated
    raise dialect.read_error(502, dumps({"error": error}).encode("ascii"))


def check_whole(payload: Any, dialect: Dialect) -> None:
    """Raise ProxyError for a whole answer that is an error, or says nothing, whatever its status."""
    if not isinstance(payload, dict):
        raise ProxyError("upstream_failed", "the upstream's answer is no JSON object")
    if error := told_error(payload):
        raise_told(payload, error, dialect)
    empty = payload.get(LISTS.get(dialect.name, "")) == [] and "promptFeedback" not in payload
    if empty or not payload:
        raise ProxyError("upstream_failed", "the upstream's answer is empty")


def read_whole(body: bytes) -> Any:
    """Decode a whole answer. Raises ProxyError for what is no JSON."""
    try:
        try:
            return decode_json(body)
        except UnicodeDecodeError:  # the client gets the bytes as they came
            return decode_json(body.decode("utf-8", "replace").encode())
    except MALFORMED as exc:
        what = repr(body[:80]) if body.strip() else "an empty answer"
        raise ProxyError("upstream_failed", f"the upstream sent {what}: {str(exc)[:80]}") from exc


def watched_pieces(
    pieces: Pieces, errand: Errand, opening: Opening, discreet: Callable[[ProxyError], ProxyError]
) -> Pieces:
    """Yield a passing stream as it comes, by whole events, reading usage on the side.

    What errors tell of secrets is made `discreet`.

    Raises ProxyError for an error before anything was said, and after a stream that ended without
    the end that its dialect has, unless the upstream has told an error itself.
    """
    tap = Tap(errand)
    with contextlib.closing(tap), contextlib.closing(pieces):
        for whole in whole_events(pieces):
            events = whole if opening.said else opening_events(whole, errand, opening)
            if b'"error"' in events and ERROR_SIGN.search(events):
                events = completed_events(events, errand, tap, discreet)
            tap.feed(events)
            if events:
                yield events
    if not tap.finished and not tap.failed:
        raise ProxyError("upstream_failed", "the upstream ended its stream in the middle")
    if not opening.said:
        raise ProxyError("upstream_failed", "the upstream's answer is empty")


def watched_array(pieces: Pieces, errand: Errand) -> Pieces:
    """Yield a stream of Gemini that is one JSON array, reading usage. Raises ProxyError if it is cut off."""
    tap, tail = Tap(errand), b""
    with contextlib.closing(tap), contextlib.closing(pieces):
        for piece in pieces:
            tap.feed(piece)
            tail = (tail + piece)[-16:]
            yield piece
    if not tail.rstrip().endswith((b"]", b"}")):
        raise ProxyError("upstream_failed", "the upstream ended its stream in the middle")


PACKED_LIMIT = 2**20  # bytes of a packed answer that are kept until it has passed


def kept_pieces(pieces: Pieces, errand: Errand, encoding: str) -> Pieces:
    """Yield a packed answer as it comes, and keep it: its usage is read when it has passed, by who wants to know."""
    kept: list[bytes] = []
    size = 0
    errand.read_usage = partial(usage_of_packed, kept, encoding, errand.dialect)
    with contextlib.closing(pieces):
        for piece in pieces:
            size += len(piece)
            if size <= PACKED_LIMIT:
                kept.append(piece)
            yield piece


def usage_of_packed(pieces: list[bytes], encoding: str, dialect: Dialect) -> Usage | None:
    """Read the usage in a whole answer that is packed; None if that cannot be."""
    with contextlib.suppress(*MALFORMED):
        payload = read_object(unpack(b"".join(pieces), encoding))
        return find_usage(payload, dialect)
    return None


EVENT_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")


def whole_events(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the bytes of a stream as they come, but hold back half an event until it is whole.

    Half an event at the very end is left out, so that an error may stand in its place, unless only
    its blank line is missing. Raises ProxyError for one that is longer than any.
    """
    rest = bytearray()
    for piece in pieces:
        if not rest and piece.endswith(EVENT_ENDS):
            yield piece  # the common case first
            continue
        seam = bytes(rest[-3:]) + piece  # a mark may be cut in two
        ends = [at + len(mark) for mark in EVENT_ENDS if (at := seam.rfind(mark)) >= 0]
        cut = max(ends, default=0) - len(seam)  # from the end
        if ends:
            rest += piece
            end = len(rest) + cut
            yield bytes(rest[:end])
            del rest[:end]
        else:
            rest += piece
        if len(rest) > EVENT_LIMIT:
            raise ProxyError(
                "upstream_failed", f"the upstream sent an event of more than {EVENT_LIMIT:,} bytes"
            )
    data = sse_data(bytes(rest).replace(b"\r", b"\n"))
    with contextlib.suppress(*MALFORMED):
        if data == b"[DONE]" or json.loads(data or b"0"):
            yield bytes(rest)


EVENT_END = re.compile(rb"\n\r?\n|\r\r")


def events_in(data: bytes) -> Iterator[bytes]:
    """Cut the bytes of whole events, blank lines included."""
    start = 0
    for found in EVENT_END.finditer(data):
        yield data[start : found.end()]
        start = found.end()
    if start < len(data):
        yield data[start:]


def payload_of(event: bytes) -> Json:
    """Decode what one whole event says; {} if that is no object. Raises ProxyError for what is no JSON."""
    lines = event.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in event else event
    data = sse_data(lines.rstrip(b"\n"))
    if not data or data == b"[DONE]":
        return {}
    try:
        payload, _ = read_json(data.decode("utf-8"))
    except MALFORMED as exc:
        raise ProxyError("upstream_failed", f"the upstream sent {data[:80]!r}") from exc
    return payload if isinstance(payload, dict) else {}


def opening_events(data: bytes, errand: Errand, opening: Opening) -> bytes:
    """Look at the first events of a stream, until one says something. Raises the error that one is.

    What only Codex knows is left out for others: OpenAI's SDK breaks if it comes first.
    """
    kept, end = [], 0
    stranger = not errand.headers.get("originator", "").startswith("codex")
    for event in events_in(data):
        if opening.said:
            break
        end += len(event)
        opening.said = event_says(event, errand.dialect)
        if not (stranger and b'"codex.rate_limits"' in event):
            kept.append(event)
    return b"".join([*kept, data[end:]])


EVENT_TYPE = re.compile(rb'data: ?\{"type": ?"([\w.]+)"')  # where it stands nearly always


def event_says(event: bytes, dialect: Dialect) -> bool:
    """Tell whether an event of a stream says something. Raises the error that it tells."""
    found = EVENT_TYPE.search(event)
    kind = found[1].decode() if found else ""
    if kind and kind not in ERROR_TYPES:
        return kind not in SILENT_TYPES  # as nearly all of Claude and Responses: it need not be decoded
    payload = payload_of(event)
    if error := told_error(payload):
        raise_told(payload, error, dialect)
    with contextlib.suppress(*MALFORMED):
        return bool(payload) and not is_silent(payload)
    return False


def completed_events(
    data: bytes, errand: Errand, tap: Tap, discreet: Callable[[ProxyError], ProxyError]
) -> bytes:
    """Complete the errors among whole events of a stream; nothing of ours needs to follow them."""
    events = []
    for event in events_in(data):
        head, mark, said = event.partition(b"data: ")
        text = said.rstrip(b"\r\n")
        payload = read_object(text) if ERROR_SIGN.search(text) else {}
        told = told_error(payload)
        if not told:
            events.append(event)
            continue
        tap.failed = True
        errand.failure = error = errand.dialect.read_error(502, dumps({"error": told}).encode("ascii"))
        error.body = text
        whole = discreet(error).body
        if isinstance(payload.get("error"), dict):
            whole = completed_error(whole, error, errand.dialect)
        events.append(head + mark + whole + said[len(text) :])
        log.warning("rid=%s %s broke off: %s", errand.id[:8], errand.account, explained(error))
    return b"".join(events)


@contextlib.contextmanager
def read_of_upstream(told: Callable[[ProxyError], object] = repr) -> Iterator[None]:
    """Make what is malformed in an answer the upstream's failure, not a bug of ours.

    `told` sees the errors that the upstream sent, before anybody else does.
    """
    try:
        yield
    except ProxyError as error:
        told(error)
        raise
    except MALFORMED as exc:
        message = f"the upstream's answer is malformed: {exc!r}"
        raise ProxyError("upstream_failed", message) from exc


def collected_response(payloads: Iterable[Json]) -> Json:
    """Return the response object that a Responses stream ends with, its output complete.

    Raises ProxyError if the stream failed or broke off. Source: spec/dialects.md 4.1.
    """
    items: dict[int, Json] = {}
    for payload in payloads:
        kind = payload.get("type")
        if kind == "response.output_item.done":
            items[payload.get("output_index", len(items))] = payload["item"]
        elif kind in {"response.completed", "response.incomplete"}:
            response = payload["response"]
            output = response.get("output") or [item for _, item in sorted(items.items())]
            return {**response, "output": output}
        elif kind in {"response.failed", "error"}:
            error = payload.get("error") or path_get(payload, "response.error") or payload
            raise DIALECTS["responses"].read_error(502, dumps({"error": error}).encode("ascii"))
    raise ProxyError("upstream_failed", "the upstream closed the stream before response.completed")


def completion_text(text: bytes) -> bytes:
    """Return the JSON text of a chat answer, or of a chunk of its stream, as the old completions API has it."""
    chat = json.loads(text)
    if "error" in chat:
        return text
    choices = [
        {
            "index": row.get("index", 0),
            "text": (row.get("delta") or row.get("message") or EMPTY).get("content") or "",
            "logprobs": None,
            "finish_reason": row.get("finish_reason"),
        }
        for row in chat.get("choices") or ()
    ]
    id = str(chat.get("id", "")).replace("chatcmpl-", "cmpl-", 1)
    return dumps({**chat, "id": id, "object": "text_completion", "choices": choices}).encode("ascii")


########################################################################################
# 35. UPSTREAM
########################################################################################
# One request of a client, asked of one account after the other until one begins to answer. Two
# lanes: the bytes pass through when both sides speak one dialect, else they are translated by
# generators that the thread of the client's socket pulls. The first piece commits.


SECRET_FIELDS = ("access_token", "refresh_token", "id_token", "api_key")  # of a credential file


class App:
    """What all requests share: the configuration, the accounts, the connections."""

    def __init__(self, config_file: ConfigFile, store: Store, environ: Mapping[str, str]) -> None:
        self.config_file = config_file
        self.store = store
        self.environ = environ
        self.router = Router()
        self.pool = Pool()
        self.catalog = Catalog(store.folder / ".cliproxy" / "models")
        self._not_before: dict[str, float] = {}  # only renew_due uses it
        self._stored = -math.inf  # when the state was; only one thread polls
        self._told: set[str] = set()  # which credentials are not used, and why
        self._wakes_seen: Json = {}  # only the thread that polls uses it
        self.stats = Stats(store.folder / ".cliproxy" / "usage.db")
        self.scribe = Scribe(self.stats)
        self._looking = threading.Lock()  # held while what is on disk is taken over
        self.router.restore(read_object_file(state_file(self.store.folder)))
        self._take_wakes()
        self.reload()

    @property
    def config(self) -> Config:
        return self.config_file.config

    @property
    def secrets(self) -> set[str]:
        """What may stand in no message and no log: the keys and tokens of clients and accounts."""
        amp = self.config["ampcode.upstream-api-key"], self.environ.get("AMP_API_KEY", "")
        own = self.config["remote-management.secret-key"], self.environ.get("MANAGEMENT_PASSWORD", "").strip()
        found = {*self.config["api-keys"], *amp, *own}
        for account in self.router.offers.accounts:
            found.add(account.token)
            data = account.credential.data if account.credential else EMPTY
            found.update(str(data.get(name) or "") for name in SECRET_FIELDS)
        return found

    def make_discreet(self, error: ProxyError) -> ProxyError:
        """Mask in an error what it may not tell: some upstreams repeat what they were sent."""
        secrets = self.secrets
        error.args = (hide(str(error), secrets),)
        if error.body:
            error.body = hide(error.body.decode("latin-1"), secrets).encode("latin-1")
        return error

    def reload(self) -> None:
        """Make the accounts anew from the config, the credential files and the environment."""
        log.setLevel(logging.DEBUG if self.config["debug"] else logging.NOTSET)
        accounts = find_accounts(
            self.config, self.store.credentials(), self.environ, self.catalog.listed, self._tell_once
        )
        self.router.configure(accounts, self.config)
        self.stats.configure(self.config)

    def _tell_once(self, message: str) -> None:
        if message not in self._told:
            log.warning("%s", message)
        self._told.add(message)

    def poll(self) -> None:
        """Take over what changed on disk; called every second."""
        self.pool.prune()
        try:
            self.take_over()
        except (ProxyError, OSError) as exc:  # as when file descriptors run out
            log.warning("%s; accounts and settings stay as they are", exc)
            return
        self.store.flush()
        for name in self.store.edited():
            self.router.wake(name, time.time())
        self._take_wakes()
        if time.monotonic() - self._stored > STATE_INTERVAL:
            self.save_state()

    def take_over(self) -> None:
        """Take over, now, the settings and credentials as they are on the disk. Raises ProxyError, OSError."""
        with self._looking:
            before = {credential.name for credential in self.store.credentials()}
            changed = [self.config_file.poll(), self.store.scan(), self.catalog.changed()]
            after = {credential.name for credential in self.store.credentials()}
            for name in sorted(before ^ after):
                what = "this login was picked up" if name in after else "this login is gone"
                log.info("%s: %s", name, what)
            if any(changed):
                self.reload()

    def ask_for_models(self) -> None:
        """Have the lists of models asked for that are older than a day; called every second."""
        if self.config["refresh-models"]:
            self.catalog.poll(self.router.offers.accounts)

    def wake(self, name: str) -> None:
        """End the rests of an account, or `*`, in every process. Raises ProxyError."""
        tell_awake(self.store.folder, name)
        self._take_wakes()

    def _take_wakes(self) -> None:
        """End the rests that this process, or another, was told to end."""
        wakes = read_object_file(wake_file(self.store.folder))
        if wakes == self._wakes_seen:
            return
        self._wakes_seen = wakes
        now = time.time()
        for name, when in wakes.items():
            if is_recent(when, now):
                self.router.wake(name, when)

    def save_state(self) -> None:
        """Store cooldowns and limits, so that a restart does not forget them."""
        state = self.router.state()
        if state is None:
            return
        self._stored = time.monotonic()
        path = state_file(self.store.folder)
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            write_atomic(path, dumps(state).encode("ascii"))
        except OSError as exc:
            self._stored = math.inf  # once is enough to say so
            log.warning("%s: %s; no rest will outlive a restart", path, exc.strerror)

    def renew(self, account: Account, stale: str, tick: Callable[[], None] = lambda: None) -> None:
        """Get new tokens for an account unless it has others than `stale`. Raises ProxyError."""
        account.renew(stale, lambda old: refresh(old, self.store, self.config), tick)

    def renew_due(self) -> None:
        """Renew all tokens that are due, whether or not their accounts rest. One thread does."""
        for account in self.router.offers.accounts:
            credential, token = account.credential, account.token
            early = self._not_before.get(account.mark, -math.inf) > time.monotonic()
            if credential is None or early or not account.renewable or not is_due(credential, time.time()):
                continue
            wait = RENEW_AGAIN
            try:
                self.renew(account, token)
                log.info("%s: tokens renewed", account.name)
            except ProxyError as error:
                log.warning("%s", error)
                wait = error.retry_after or RENEW_FAILED
            except Exception:  # the others shall be renewed all the same
                log.exception("%s: its tokens could not be renewed", account.name)
                wait = RENEW_FAILED
            self._not_before[account.mark] = time.monotonic() + wait

    def keep_renewed(self, stop: threading.Event) -> None:
        """Renew tokens ahead of need until `stop` is set."""
        while not stop.is_set():
            try:
                self.renew_due()
            except Exception:  # a thread's top
                log.exception("the tokens that are due could not be renewed")
            stop.wait(RENEW_INTERVAL)


def state_file(folder: Path) -> Path:
    """Return where the rests stand, and what else outlives a restart: other programs do not look there."""
    return folder / ".cliproxy" / "state"


def wake_file(folder: Path) -> Path:
    """Return where stands who is awake since when: for all processes that use a folder."""
    return folder / ".cliproxy" / "wake"


def tell_awake(folder: Path, name: str) -> None:
    """End the rests of an account, or `*`, in every process that uses a folder. Raises ProxyError."""
    path, now = wake_file(folder), time.time()
    kept = {key: when for key, when in read_object_file(path).items() if is_recent(when, now)}
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_atomic(path, dumps({**kept, name: now}).encode("ascii"))
    except OSError as exc:
        raise ProxyError("internal", f"cannot write {path}: {exc.strerror}") from exc


def is_recent(when: object, now: float) -> bool:
    """Tell whether a stored time may still matter to a rest."""
    return isinstance(when, (int, float)) and now - LONGEST_REST < when <= now


STATE_INTERVAL = 5.0  # seconds between two writes of the state
RENEW_INTERVAL = 5.0  # seconds between two looks for tokens that are due
RENEW_AGAIN, RENEW_FAILED = 30.0, 300.0  # seconds to leave an account alone: renewed, not renewed


def dispatch(errand: Errand, app: App) -> Answer:
    """Ask the accounts that serve a model, one after the other, until one begins to answer.

    Rounds as `request-retry` and `max-retry-interval` allow. Raises the last ProxyError when
    nobody answers, and at once what is the client's own mistake.
    """
    if errand.model == ECHO and errand.action == "generate":
        errand.read_usage = partial(echo_usage, errand.request)
        return for_client(answer_of(errand, echo_events(errand.request)), errand)
    if errand.model == ECHO:
        return estimated(errand)
    errand.opening = Opening()
    for turn in itertools.count():
        try:
            return ask_each(errand, app)
        except ProxyError as error:
            again = judge(error) is not None and not error.final
            model = errand.instead or errand.model
            wait = app.router.wait_before(model, errand.client, turn, error) if again else None
            boot = again and errand.stream and turn < app.config["streaming.bootstrap-retries"]
            if wait is None and not boot:
                raise
            pause(errand, wait or 0.0)
    raise AssertionError("not reached")


def pause(errand: Errand, seconds: float) -> None:
    """Wait for a cooldown to end, watching the client."""
    end, never = time.monotonic() + seconds, threading.Event()
    while (left := end - time.monotonic()) > 0:
        errand.watcher.tick()
        never.wait(min(left, TICK))


def who_can(errand: Errand, candidates: list[Candidate]) -> list[Candidate]:
    """Return those who can be asked: for more of OpenAI's API than talks, not everybody can."""
    if errand.action == "compact":
        who = "of the responses dialect"
        found = [c for c in candidates if c.account.provider.dialect == errand.dialect.name]
    elif errand.action.startswith("/"):
        who, found = "of APIs like OpenAI's", [c for c in candidates if c.account.provider.whole]
    else:
        return candidates
    if not found:
        message = f"{errand.action} is for accounts {who}; no such account has {errand.model!r}"
        raise ProxyError("not_implemented", message)
    return found


def ask_each(errand: Errand, app: App) -> Answer:
    """Ask each ready account once, or as many as `max-retry-credentials` allows."""
    config = app.config
    model = errand.instead or errand.model
    session = ""
    if config["routing.session-affinity"]:
        session = session_of(errand.headers, errand.json)
    candidates = who_can(errand, app.router.candidates(model, session, errand.client, errand.action))
    failure: ProxyError | None = None
    for candidate in candidates[: config["max-retry-credentials"] or None]:
        if failure and app.router.rests(candidate):
            continue
        errand.begin(candidate)
        attempt = Attempt(errand, candidate, app)
        try:
            answer = attempt.try_it()
        except ProxyError as error:
            failure = error
            if not attempt.gives_way(error):
                error.final = True
                raise
        else:
            errand.first = time.monotonic()
            errand.streams = is_stream(answer.headers)
            app.router.reward(candidate, model, session)
            errand.opening = None
            return answer
    raise failure or ProxyError("internal", "no candidate")


def named_answer(answer: Answer, model: str) -> Answer:
    """Return an answer that says which model gives it: it may be another than the client named."""
    return answer._replace(headers={**answer.headers, "x-cliproxy-model": urlquote(model, safe="/:@()+,=")})


class Attempt:
    """One account, asked for what an errand wants: how both sides talk, and the way there and back."""

    def __init__(self, errand: Errand, candidate: Candidate, app: App) -> None:
        self.errand, self.candidate = errand, candidate
        self.app, self.config = app, app.config
        self.account, self.model = candidate.account, candidate.model
        self.provider = self.account.provider_for(errand.dialect.name)
        self.upstream = DIALECTS[self.provider.dialect]
        self.same = self.upstream is errand.dialect
        self.forced = errand.forced or candidate.forced  # must the answer carry the client's name?
        self.sent = False  # may the account have received it?
        self.token, self.renewed = "", False  # asked with; has it been renewed for this?
        self.opening = Opening()

    def try_it(self) -> Answer:
        """Ask, whatever comes of it: a mistake of ours is a failure of this account, as another may not meet it."""
        try:
            return self.answer()
        except (ProxyError, Hangup):
            raise
        except Exception as exc:
            log.exception("bug: rid=%s asking %s", self.errand.id[:8], self.account.name)
            message = f"asking {self.account.name} failed; the log has more"
            raise ProxyError("internal", message) from exc

    def gives_way(self, error: ProxyError) -> bool:
        """Let the account rest, if a failure asks for that; tell whether another one may be asked."""
        errand = self.errand
        self.app.make_discreet(error)
        log.warning("rid=%s %s: %s", errand.id[:8], self.account.name, explained(error))
        self.app.scribe.put(errand.tried(error.status, error))
        if error.kind == "internal":
            return not self.opening.sent
        spared = error.status == 429 and errand.probes
        return self.app.router.punish(self.candidate, error, spared=spared) and not self.opening.sent

    def answer(self) -> Answer:
        """Ask; once more for each thing in a refusal that can be mended.

        Raises ProxyError before the first piece of the answer is given out.
        """
        token = self.account.token
        if self.account.renewable and self.account.expired(time.time()):
            self.app.renew(self.account, token, self.errand.watcher.tick)
        while True:
            self.token = self.account.token
            try:
                return self.ask()
            except ProxyError as error:
                why = "" if self.opening.sent else self.mended(error)
                if not why:
                    raise
                log.info(
                    "rid=%s %s refused %s; it is asked again", self.errand.id[:8], self.account.name, why
                )
                self.app.scribe.put(self.errand.tried(error.status, error))
                self.errand.begin(self.candidate)

    def mended(self, error: ProxyError) -> str:
        """Mend what was refused, if that was not done before; return what it was, empty if nothing can be."""
        lesson = lesson_of(error)
        if is_proof_refused(error) and not self.errand.bare:
            self.errand.bare = True
            return "thinking of another provider"
        if lesson and self.learns(lesson):
            return f"what the quirk {lesson} mends"
        if self.account.renewable and is_stale(error) and not self.renewed:
            self.renewed = True
            self.app.renew(self.account, self.token, self.errand.watcher.tick)
            return "its token"
        return ""

    def learns(self, quirk: str) -> bool:
        """Remember a quirk of this account's model; tell whether that changes what is sent."""
        changes = not self.passes or self.provider.dialect == "chat"
        if quirk in self.target.quirks or not changes or self.errand.action != "generate":
            return False
        lessons = self.account.lessons
        lessons[self.model] = lessons.get(self.model, frozenset()) | {quirk}
        return True

    def ask(self) -> Answer:
        """Ask once, on the lane that fits, and wait until the answer says something."""
        errand = self.errand
        self.sent = False
        self.opening = errand.opening = Opening()
        try:
            if errand.action == "count":
                answer = self.count()
            elif errand.action == "generate" and not self.passes:
                answer = self.translate()
            else:
                answer = self.relay()
            answer = named_answer(for_client(answer, errand), self.model)
            return started_answer(answer, self.opening)
        except ProxyError as error:
            error.sent = error.sent and self.sent
            raise
        finally:
            errand.opening = Opening()

    @property
    def passes(self) -> bool:
        """Tell whether the body may go as it is: the upstream speaks its dialect, and that is all.

        It may not if its model's name holds an effort, if it brings back proofs of other providers,
        or if Claude Code took an alias for a newer model than it is (spec/clients.md 1.4).
        """
        errand, provider = self.errand, self.provider
        if not self.same or self.candidate.effort or errand.bare or PROOF_MARK in errand.body:
            return False
        array = errand.path_stream and not errand.sse  # which is not edited
        if array and (self.forced or provider.wrapped):
            return False
        if self.is_unfit:
            return False
        return self.model == errand.model or errand.dialect.name != "claude" or not self.is_late

    @property
    def is_unfit(self) -> bool:
        """Tell whether a quirk of the provider asks for another body, or another answer."""
        errand, quirks = self.errand, self.provider.quirks
        if "stream" in quirks and errand.path_stream is False and errand.action == "generate":
            return True
        return "openapi-schema" in quirks and bool(errand.json.get("tools"))

    @property
    def is_late(self) -> bool:
        """Tell whether a Claude client asks for what this model is too old for."""
        errand, fact = self.errand, self.account.fact(self.model)
        late = LATE_BETA in errand.headers.get("anthropic-beta", "") and "mid-system" not in fact.traits
        if late and LATE_SYSTEM.search(errand.body):
            return True
        return not fact.levels and b'"adaptive"' in errand.body

    @property
    def target(self) -> Target:
        """What the request is written for."""
        quirks = (
            self.account.quirks | self.provider.quirks | self.account.lessons.get(self.model, frozenset())
        )
        if self.errand.bare:
            quirks |= {"no-proofs"}
        if not self.config["prompt-caching"]:
            quirks |= {"no-cache-marks"}
        return Target(self.provider.name, self.account.fact(self.model), quirks)

    def path(self, template: str) -> str:
        return template.replace("{model}", urlquote(self.model, safe=""))

    def body(self, body: Json) -> Json:
        """Fit a body to its provider and to the owner's payload rules; `body` itself if it fits."""
        errand = self.errand
        provider = self.provider
        rules = self.config["payload"]
        prepare = PREPARE.get(provider.name)
        fitted = prepare(body, errand, self.candidate) if prepare else body
        if not any(rules.values()):
            return fitted
        upstream = PROTOCOLS.get(provider.name) or PROTOCOLS[provider.dialect]
        names = (self.model, split_suffix(errand.model)[0], errand.model)
        root = "request" if provider.wrapped else ""
        case = PayloadCase(names, upstream[0], PROTOCOLS[errand.dialect.name][1], errand.headers, root)
        return apply_payload(rules, fitted, {root: body} if root else body, case)

    def open(self, path: str, body: list[Bytes]) -> Exchange:
        """Send a body to the account. Raises ProxyError for a refusal, with the upstream's own words."""
        headers = upstream_headers(self.errand, self.account, self.provider, self.same)
        if self.provider.name == "claude" and not self.same and LATE_SYSTEM.search(body[0]):
            add_beta(headers, LATE_BETA)
        length = sum(map(len, body))
        for origin, base in self.account.places:
            head = request_head("POST", base + path, origin, headers, length)
            self.sent = True
            exchange = self.app.pool.open(origin, head, body, self.errand.watcher)
            self.app.router.learn(self.account, exchange.headers)
            if 200 <= exchange.status < 300:
                return exchange
            with contextlib.closing(exchange):
                error = refusal(exchange, self.upstream, self.config)
            if error.status != 429 and b"no capacity available" not in error.body.lower():
                break  # spec/providers.md 5
        raise error

    def relay(self) -> Answer:
        """Let the bytes pass in both directions as they are: client and upstream speak one dialect."""
        errand, provider = self.errand, self.provider
        path = self.path(path_of(errand, provider))
        exchange = self.open(path + errand.passed_query(path), self.passing_body())
        headers = passed_headers(exchange, self.config)
        if is_stream(headers) or self.streams_unsaid(headers):
            return self.relay_stream(exchange, headers)
        if self.keeps_encoding(exchange):
            headers["content-encoding"] = exchange.headers["content-encoding"]
            pieces, length = (
                kept_pieces(exchange.pieces(), errand, headers["content-encoding"]),
                exchange.length,
            )
        elif errand.path_stream and not errand.sse:
            pieces, length = watched_array(exchange.decoded(), errand), None
        elif errand.action.startswith("/") and "json" not in headers.get("content-type", ""):
            pieces, length = exchange.decoded(), None
        else:
            return whole_answer(exchange.status, headers, self.whole_body(exchange))
        self.opening.said = True
        return Answer(exchange.status, headers, pieces, length)

    def streams_unsaid(self, headers: Headers) -> bool:
        """Tell whether an answer is a stream that does not say so, as some hosts' are."""
        errand = self.errand
        if errand.action.startswith("/") or not is_stream(headers, asked=True):
            return False
        return errand.stream and errand.sse

    def keeps_encoding(self, exchange: Exchange) -> bool:
        """Tell whether a whole answer may stay packed as it is: nobody needs to look at it, or to edit it."""
        errand, encoding = self.errand, exchange.headers.get("content-encoding", "")
        if not encoding or encoding not in errand.headers.get("accept-encoding", ""):
            return False
        if self.forced or self.provider.wrapped or self.config["nonstream-keepalive-interval"]:
            return False
        return not errand.stream  # a sign of life may stand in front of it

    def relay_stream(self, exchange: Exchange, headers: Headers) -> Answer:
        """Let a stream pass, or collect it for a client that wants none."""
        errand, provider = self.errand, self.provider
        if provider.only_streams and errand.action == "generate" and not errand.stream:
            with contextlib.closing(exchange), read_of_upstream():
                response = collected_response(sse_read(exchange.decoded()))
            errand.usage = find_usage(response, errand.dialect)
            whole = dumps(response).encode("ascii")
            headers["content-type"] = "application/json"
            return whole_answer(200, headers, renamed(whole, errand.model) if self.forced else whole)
        pieces = exchange.decoded() if "content-encoding" in exchange.headers else exchange.pieces()
        if self.forced or provider.wrapped:
            pieces = edited_events(pieces, self.edited)
        if errand.action == "generate":
            pieces = watched_pieces(pieces, errand, self.opening, self.app.make_discreet)
        else:
            self.opening.said = True
        if not is_stream(headers):
            headers["content-type"] = "text/event-stream"
        return Answer(exchange.status, headers, pieces)

    def edited(self, text: bytes) -> bytes:
        """Return a JSON text of the answer without its envelope, and with the name that the client used."""
        text = out_of_envelope(text) if self.provider.wrapped else text
        return renamed(text, self.errand.model) if self.forced else text

    def whole_body(self, exchange: Exchange) -> bytes:
        """Return the body of a whole answer that passes. Raises ProxyError if it is an error, or empty."""
        errand, body = self.errand, exchange.body()
        if self.forced or self.provider.wrapped:
            body = self.edited(body)
        payload = read_whole(body)
        if errand.action == "generate":
            check_whole(payload, errand.dialect)
            errand.usage = find_usage(payload, errand.dialect)
        elif isinstance(payload, dict) and (error := told_error(payload)):
            raise_told(payload, error, errand.dialect)
        return body

    def passing_body(self) -> list[Bytes]:
        """Return the client's body as it came, but for what must be changed for this account."""
        errand, provider = self.errand, self.provider
        body = errand.with_model(self.model)
        rule = PASSING.get(provider.dialect)
        odd = rule is not None and rule.odd(errand.body, self.target.quirks, self.model)
        changes = odd or provider.name in PREPARE or any(self.config["payload"].values())
        if errand.action.startswith("/") or not changes:
            return body
        before = errand.json if errand.path_model else {**errand.json, "model": self.model}
        try:
            after = self.body(rule.fitted(before, self.target.quirks) if rule and odd else before)
        except MALFORMED as exc:
            raise errand.malformed(exc) from exc
        return body if after is before else [dumps(after).encode("ascii")]

    def fit(self, target: Target, stream: bool) -> Fitted:
        """Fit the errand's request to what this account takes."""
        request = self.errand.request
        thinking = request.thinking
        if self.candidate.effort:
            thinking = Thinking(*self.candidate.effort, summary=thinking.summary)
        params = request.params
        if self.provider.name in CACHE_KEYED and "cache_key" not in params and self.config["prompt-caching"]:
            params = {**params, **without_zeros({"cache_key": conversation_of(self.errand)})}
        wanted = request._replace(model=self.model, stream=stream, thinking=thinking, params=params)
        return fit_request(wanted, target, self.upstream.name)

    def translate(self) -> Answer:
        """Translate an errand to the upstream's dialect, and the answer back."""
        request = self.errand.request
        provider = self.provider
        upstream = self.upstream
        target = self.target
        stream = request.stream or provider.only_streams or "stream" in target.quirks
        fitted = self.fit(target, stream)
        body = self.body(without(upstream.write_request(fitted.request, target), upstream.in_path))
        path = self.path((provider.stream if stream else "") or provider.generate)
        exchange = self.open(path, [dumps(body).encode("ascii")])
        answer = read_answer(exchange, upstream, request, provider.wrapped, self.app.make_discreet)
        events = fit_events(answer, request, fitted, target, self.errand.note)
        heard = until_said(events, self.opening, self.errand)
        return answer_of(self.errand, heard, passed_headers(exchange, self.config))

    def count(self) -> Answer:
        """Ask the upstream for a token count, in its dialect; estimate it if it cannot count."""
        if not self.provider.counting:
            return estimated(self.errand)
        try:
            return self.relay() if self.passes else self.translated_count()
        except ProxyError as error:
            stale = self.account.renewable and is_stale(error)
            if stale or error.status not in UNCOUNTED:
                raise
        return estimated(self.errand)

    def translated_count(self) -> Answer:
        """Ask an upstream of another dialect for a token count."""
        provider = self.provider
        upstream = self.upstream
        target = self.target
        written = upstream.write_request(self.fit(target, stream=False).request, target)
        keys = COUNT_KEYS.get(provider.name) or COUNT_KEYS[upstream.name]
        body = {key: written[key] for key in keys if key in written}
        if upstream.name == "gemini" and provider.name != "vertex":
            body = {"generateContentRequest": {"model": f"models/{self.model}", **body}}
        if provider.wrapped:
            body = PREPARE[provider.name](body, self.errand, self.candidate)
        exchange = self.open(self.path(provider.counting), [dumps(body).encode("ascii")])
        with contextlib.closing(exchange), read_of_upstream():
            told = decode_json(exchange.body())
            return count_answer(self.errand, int(told[COUNT_WORDS[upstream.name]]))


CACHE_KEYED = frozenset(
    {"openai", "openai-chat"}
)  # they find what they cached sooner if the conversation has a name
LATE_BETA = "mid-conversation-system-2026-04-07"  # without it nobody takes such messages
LATE_SYSTEM = re.compile(rb'"role"\s*:\s*"system"')


def path_of(errand: Errand, provider: Provider) -> str:
    """Return the provider's path for an errand, empty if it has none."""
    if errand.action == "generate" and errand.path_stream and provider.stream:
        return provider.stream if errand.sse else provider.stream.removesuffix("?alt=sse")
    if errand.action == "generate":
        return provider.generate
    if errand.action.startswith("/"):
        return errand.action
    return {"count": provider.counting, "compact": f"{provider.generate}/compact"}.get(errand.action, "")


def refusal(exchange: Exchange, dialect: Dialect, config: Config) -> ProxyError:
    """Read an upstream's error answer, keeping it as it came for a client of the same dialect."""
    if exchange.status < 400:
        place = exchange.headers.get("location", "nowhere")
        message = f"the upstream sends us to {place[:200]!r}, with status {exchange.status}"
        return ProxyError("upstream_failed", f"{message}; is its base-url right?")
    body = b""
    with contextlib.suppress(ProxyError):  # what breaks off, or cannot be unpacked, has a status
        body = exchange.body(ERROR_LIMIT)
    error = dialect.read_error(exchange.status, body)
    error.dialect = dialect.name
    if error.kind != "context_too_long":  # whatever its host says, clients want a 400
        error.status = exchange.status
    error.body = completed_error(body, error, dialect)
    error.headers = passed_headers(exchange, config)
    error.retry_after = wait_asked(error, time.time())
    return error


def passed_headers(exchange: Exchange, config: Config) -> Headers:
    """Return the headers of an upstream's answer that are worth a client's while, or all."""
    found = exchange.headers.items()
    if config["passthrough-headers"]:
        cors = "access-control-"  # which pages may ask is for us to say
        return {name: value for name, value in found if not (name in OWN_HEADERS or name.startswith(cors))}
    return {name: value for name, value in found if name.startswith(PASSED_HEADERS)}


OWN_HEADERS = HOP_BY_HOP | frozenset(["content-length", "content-encoding", "set-cookie", "alt-svc"])


def read_answer(
    exchange: Exchange,
    upstream: Dialect,
    request: Request,
    wrapped: bool,
    told: Callable[[ProxyError], object],
) -> Events:
    """Read an upstream's answer, a stream or not, as events; `told` sees its errors first."""

    def unwrap(body: Json) -> Json:
        inner: Json = body.get("response", body) if wrapped else body
        return inner

    with contextlib.closing(exchange), read_of_upstream(told):
        if is_stream(exchange.headers, asked=request.stream):
            payloads = sse_read(exchange.decoded(), ends=True)
            yield from upstream.read_stream(map(unwrap, payloads) if wrapped else payloads, request)
        else:
            body = read_whole(exchange.body())
            body = unwrap(body) if isinstance(body, dict) else body
            check_whole(body, upstream)
            yield from upstream.read_response(body, request)


def echo_usage(request: Request) -> Usage:
    return next(event for event in echo_events(request) if isinstance(event, Usage))


def echo_events(request: Request) -> Events:
    """Repeat the last user text; call the first tool if that text asks for it."""
    texts = [text_of(m.parts) for m in request.messages if m.role == "user" and text_of(m.parts)]
    text = texts[-1] if texts else "(no text)"
    answered = bool(request.messages) and any(p.kind == "result" for p in request.messages[-1].parts)
    tools = [tool for tool in request.tools if tool.kind != "hosted"]
    wants = not answered and bool(tools) and re.search(r"\b(tool|call)\b", text, re.IGNORECASE)
    yield MessageStart(digest("echo", request.id), request.model, request.created)
    if wants:
        tool = tools[0]
        body = text if tool.kind == "custom" else "{}"
        part = Part(
            "call",
            body,
            f"call_{digest(request.id)}",
            tool.name,
            custom=tool.kind == "custom",
            namespace=tool.namespace,
        )
        yield from part_events(0, part)
    else:
        yield from part_events(0, Part("text", text))
    yield Usage(input=estimate_tokens(request), output=max(1, len(text) // 4))
    yield MessageEnd("tool_calls" if wants else "stop")


UNCOUNTED = frozenset({401, 403, 404, 405, 500, 501})  # what hosts say of a call that they do not have
COUNT_KEYS = {  # dialect -> what of a request its counting call takes. Source: spec/dialects.md 4.2, 1D.7
    "claude": "model messages system tools tool_choice thinking output_config".split(),
    "responses": "model input instructions tools tool_choice text reasoning parallel_tool_calls".split(),
    "gemini": "contents tools systemInstruction toolConfig".split(),
    "vertex": "contents tools systemInstruction".split(),  # a provider that knows less
}
COUNT_WORDS = {
    "claude": "input_tokens", "responses": "input_tokens", "chat": "input_tokens", "gemini": "totalTokens"
}  # fmt: skip


def count_answer(errand: Errand, tokens: int, headers: Mapping[str, str] = EMPTY) -> Answer:
    """Tell a token count in the client's dialect."""
    told: Json = {COUNT_WORDS[errand.dialect.name]: tokens}
    if errand.dialect.name == "responses":
        told["object"] = "response.input_tokens"
    return json_answer(200, told, headers)


def estimated(errand: Errand) -> Answer:
    """Estimate a token count that nobody else can give. Raises ProxyError for other errands."""
    if errand.action != "count":
        message = f"{errand.action} is served by upstreams of the {errand.dialect.name} dialect only"
        raise ProxyError("not_implemented", message)
    return count_answer(errand, estimate_tokens(errand.request), {"x-cliproxy-estimate": "bytes/4"})


########################################################################################
# 36. AMP
########################################################################################
# What Amp's command line asks its own server for, beside models, is passed on to that server, with the
# owner's key in place of the client's. Its pages are for browsers, which are sent there. Source:
# spec/providers.md 15, config.md 8.

AMP_CALLS = frozenset("internal user auth meta telemetry threads otel tab ads".split())  # /api/WORD
AMP_FEEDS, AMP_PAGES = ("threads.rss", "news.rss"), ("threads", "docs", "settings", "auth")
AMP_SECRETS = ".local/share/amp/secrets.json"  # in the home folder: where Amp keeps its key
AMP_SECRET = "apiKey@https://ampcode.com/"  # noqa: S105 -- what it is called there
AMP_UNSENT = HOP_BY_HOP | frozenset(
    "host expect content-length content-encoding authorization x-api-key x-goog-api-key".split()
)
AMP_SHAPES = {"google": "gemini", "anthropic": "claude"}  # provider -> model lists; others: chat


def amp_provider(path: str) -> str:
    """Return the provider that Amp names in a path; empty for other paths."""
    return path.split("/")[3] if path.startswith("/api/provider/") else ""


def amp_kind(path: str) -> str:
    """Tell what of Amp's own server a path is: a call, a page, or nothing of it."""
    first, second, *_ = (*path.strip("/").split("/"), "")
    google = path.startswith("/api/provider/google/v1beta1/") and "/models/" not in path
    if google or first in AMP_FEEDS or (first == "api" and second in AMP_CALLS):
        return "call"
    return "page" if first in AMP_PAGES else ""


def amp_key(given: Collection[str], app: App) -> str:
    """Return the key for Amp's server: the client key's own, the config's, the environment's, or Amp's."""
    amp = app.config["ampcode"]
    for row in amp["upstream-api-keys"]:
        pairs = itertools.product(given, row["api-keys"])
        if any(hmac.compare_digest(one.encode(), other.encode()) for one, other in pairs):
            return str(row["upstream-api-key"])
    kept = read_object_file(Path.home() / AMP_SECRETS).get(AMP_SECRET)
    return str(amp["upstream-api-key"] or app.environ.get("AMP_API_KEY") or kept or "")


def amp_target(path: str, query: str, given: Collection[str]) -> str:
    """Return where on Amp's server a path is, without the client's key in the query."""
    parts = [part for part in query.split("&") if unquote(part.partition("=")[2]) not in given]
    return "?".join(filter(None, (path, "&".join(parts))))


def ask_amp(errand: Errand, method: str, target: str, given: Collection[str], app: App) -> Answer:
    """Pass an errand on to Amp's server. Raises ProxyError if that cannot be reached."""
    origin, base = split_url(app.config["ampcode.upstream-url"], app.config["proxy-url"])
    headers = {name: value for name, value in errand.headers.items() if name not in AMP_UNSENT}
    if key := amp_key(given, app):
        headers.update({"authorization": f"Bearer {key}", "x-api-key": key})
    head = request_head(method, base + target, origin, headers, len(errand.body))
    exchange = app.pool.open(origin, head, [errand.body], errand.watcher)
    found = {k: v for k, v in exchange.headers.items() if k not in OWN_HEADERS}
    found = {k: v for k, v in found.items() if not k.startswith("access-control-")}
    if "content-encoding" in exchange.headers:
        found["content-encoding"] = exchange.headers["content-encoding"]
    elif not found.get("content-type", "").startswith("text/event-stream"):
        whole = exchange.body()
        if whole.startswith(b"\x1f\x8b"):  # it has been seen to leave the header out
            with read_of_upstream():
                whole = unpack(whole, "gzip")
        return whole_answer(exchange.status, found, whole)
    answer = Answer(exchange.status, found, exchange.pieces(), exchange.length)
    return started_answer(answer, Opening(said=True))


########################################################################################
# 37. WEBSOCKET
########################################################################################
# The server's side of RFC 6455 for /v1/responses: a text message is a request, a text message each
# event of its answer. A connection remembers its last answers, so that a client need only send what
# is new. Source: spec/clients.md 3.

MAGIC = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 1.3
OPCODES = OP_MORE, OP_TEXT, OP_BINARY, OP_CLOSE, OP_PING, OP_PONG = 0, 1, 2, 8, 9, 10
REMEMBERED = 16  # answers of a connection that a request may go on from


class SocketClosed(Hangup):
    """The peer closed the WebSocket, or it must be closed: `code` says why. Source: RFC 6455 7.4."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def accept_of(key: str) -> str:
    """Return the answer to the key of an opening handshake. Source: RFC 6455 4.2.2."""
    proof = hashlib.sha1((key + MAGIC).encode("latin-1"), usedforsecurity=False).digest()
    return base64.b64encode(proof).decode("ascii")


def socket_frame(opcode: int, payload: bytes) -> bytes:
    """Encode a whole message, as servers do: without a mask."""
    length = len(payload)
    if length < 126:
        return bytes((0x80 | opcode, length)) + payload
    form, mark = (">BBH", 126) if length < 65_536 else (">BBQ", 127)
    return struct.pack(form, 0x80 | opcode, mark, length) + payload


def unmasked(data: bytes | bytearray, mask: bytes | bytearray) -> bytes:
    """Undo a client's mask, as one long number: a loop would cost a second for 10 MB."""
    length = len(data)
    key = (bytes(mask) * (length // 4 + 1))[:length]
    number = int.from_bytes(data, "little") ^ int.from_bytes(key, "little")
    return number.to_bytes(length, "little")


class WebSocket(Watcher):
    """Messages over a connection that was upgraded. One thread uses it."""

    def __init__(self, wire: Wire, write: Callable[[bytes], None], idle: Callable[[], None]) -> None:
        self._wire = wire
        self._write = write
        self._idle = idle
        self.meanwhile: Callable[[], None] | None = None  # what else to do while an upstream is waited for

    def send(self, text: bytes) -> None:
        self._write(socket_frame(OP_TEXT, text))

    def close(self, code: int) -> None:
        self._write(socket_frame(OP_CLOSE, struct.pack(">H", code)))

    def receive(self) -> bytearray:
        """Return the next text message, answering pings on the way. Raises SocketClosed."""
        whole, begun = bytearray(), False
        while True:
            final, opcode, payload = self._frame(BODY_LIMIT - len(whole))
            if opcode == OP_BINARY:
                raise SocketClosed(1003)
            if opcode < OP_CLOSE:
                if (opcode == OP_MORE) is not begun:  # a message has one beginning
                    raise SocketClosed(1002)
                whole += payload
                begun = True
                if final:
                    return whole

    def tick(self) -> None:
        """Answer pings while an answer is sent; messages wait. Raises SocketClosed."""
        if self.meanwhile:
            self.meanwhile()
        while ahead := self._wire.peek():
            if ahead[0] & 0x0F < OP_CLOSE:
                return
            self._frame(0)
        if ahead is not None:
            raise SocketClosed(1006)

    flush = tick

    def _frame(self, limit: int) -> tuple[bool, int, bytes]:
        """Read a frame: is it the last of its message, its opcode and its payload.

        What controls the connection is heeded at once.
        """
        self._wire.rest = self._wire.recv(self._idle)  # the silence between frames may be long
        if not self._wire.rest:
            raise SocketClosed(1006)
        first, second = self._wire.read_exactly(2, self._idle)
        final = first >= 0x80
        opcode = first & 0x0F
        length = second & 0x7F
        long = opcode >= OP_CLOSE and (length > 125 or not final)  # for control
        if long or opcode not in OPCODES or first & 0x70 or second < 0x80:
            raise SocketClosed(1002)
        if length > 125:
            size = 2 if length == 126 else 8
            length = int.from_bytes(self._wire.read_exactly(size, self._idle), "big")
        if length > limit and opcode < OP_CLOSE:
            raise SocketClosed(1009)
        mask = self._wire.read_exactly(4, self._idle)
        payload = unmasked(self._wire.read_exactly(length, self._idle), mask)
        if opcode == OP_CLOSE:
            raise SocketClosed(1000)
        if opcode == OP_PING:
            self._write(socket_frame(OP_PONG, payload))
        return final, opcode, payload


class Memory:
    """The conversations that end in the last answers of a connection. The items are shared."""

    def __init__(self) -> None:
        self._items: dict[str, list[Any]] = {}  # id of a response -> what was said until then

    def unfold(self, body: Json) -> Json:
        """Return a request with all that was said before. Raises ProxyError if that is forgotten."""
        said, kind = body.get("input") or [], body.get("type", "response.create")
        if kind != "response.create" or not isinstance(said, (str, list)):
            message = f"a message is a response.create with an input, not {kind!r}"
            raise ProxyError("invalid_request", message, param="type")
        text = [{"type": "message", "role": "user", "content": said}]
        items = text if isinstance(said, str) else said
        previous = body.get("previous_response_id")
        if previous:
            before = self._items.get(str(previous))
            if before is None:
                message = f"the response {previous!r} is not of this connection, or too long ago"
                raise ProxyError("invalid_request", message, param="previous_response_id")
            items = [*before, *items]
        kept = without(body, frozenset(["type", "generate", "previous_response_id", "stream_id"]))
        return {**kept, "input": items, "stream": True}

    def keep(self, body: Json, response: Any, items: list[Json]) -> None:
        """Remember an answer of an upstream, if it is one, and forget the oldest."""
        if not isinstance(response, dict) or not isinstance(response.get("id"), str):
            return
        output = items or response.get("output")
        self._items[response["id"]] = [*body["input"], *(output if isinstance(output, list) else ())]
        while len(self._items) > REMEMBERED:
            del self._items[next(iter(self._items))]


def warmed_up(errand: Errand, body: Json) -> Iterator[Json]:
    """Answer a request that is only to be remembered: with no output, and without any upstream."""
    response: Json = {
        "id": f"resp_{errand.id}", "object": "response", "created_at": errand.created,
        "model": body.get("model"), "output": [],
    }  # fmt: skip
    begun = {**response, "status": "in_progress"}
    yield {"type": "response.created", "sequence_number": 0, "response": begun}
    zero = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
    done = {**response, "status": "completed", "usage": zero}
    yield {"type": "response.completed", "sequence_number": 1, "response": done}


def retry_header(error: ProxyError) -> Headers:
    """Tell when to come again, if that is known."""
    return {} if error.retry_after is None else {"retry-after": f"{math.ceil(error.retry_after)}"}


def error_message(error: ProxyError) -> Json:
    """Tell a failure as a message; a POST would have had its status."""
    told = {"status": error.status, "headers": retry_header(error)}
    return {"type": "error", **told, "error": DIALECTS["responses"].write_error(error)["error"]}


########################################################################################
# 38. MANAGEMENT
########################################################################################
# CLIProxyAPI's management API, for its official page and the GUIs that speak it: a row of ENDPOINTS a
# method and path. Scalars, lists of texts, maps and lists of objects are four shapes over SETTINGS. A
# function gets the Desk, the Wish and its row, and returns what is sent. A setting is changed in the
# text of its file, which is read again for that, and is in force before the answer. Source:
# spec/management.md.

MANAGEMENT_PATH = "/v0/management"
FAILURES = 5  # wrong keys from one address, after which it is shut out
SHUT_OUT = 1_800.0  # seconds
STALE_FAILURES = 7_200.0  # seconds after which failures are forgotten
ADDRESSES = 10_000  # whose failures are remembered
HASH_PATIENCE = 10.0  # seconds that a key waits for those before it to be checked
SLOW_ANSWER = 1.0  # seconds before a page of elsewhere is told that its key is wrong


def complaint(status: int, text: str, **more: Any) -> ProxyError:
    """Return an error in the form of this API."""
    error = error_of_status(status, text)
    error.dialect = "management"
    error.body = dumps({"error": text, **more}).encode("ascii")
    return error


def complaint_answer(error: ProxyError) -> Answer:
    """Return an error of any room in the form of this API. Only a wrong key is a 401: pages log out at one."""
    if error.dialect == "management":
        return whole_answer(error.status, {"content-type": "application/json"}, error.body)
    return json_answer(502 if error.status == 401 else error.status, {"error": str(error)})


class Wish(NamedTuple):
    """One call of the API, its key checked."""

    method: str
    path: str  # behind MANAGEMENT_PATH
    query: Mapping[str, list[str]]
    headers: Headers
    body: bytes
    rest: str = ""  # what the `*` of the endpoint's path stands for

    def one(self, name: str) -> str:
        """Return a parameter of the query, empty if it is not there."""
        return self.query.get(name, [""])[0]

    @property
    def data(self) -> Any:
        """The decoded body. Raises ProxyError if it is no JSON."""
        try:
            return decode_json(self.body)
        except (ValueError, RecursionError) as exc:
            raise complaint(400, "invalid body") from exc

    @property
    def object(self) -> Json:
        """The object in the body. Raises ProxyError if there is none."""
        data = self.data
        if not isinstance(data, dict):
            raise complaint(400, "invalid body")
        return data

    def place(self, size: int) -> int | None:
        """Return the place in a list of this size that the query names, None if it names none."""
        word = self.one("index")
        return int(word) if word.isdecimal() and len(word) < 9 and int(word) < size else None


# -- the key -----------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def fast_bcrypt() -> Callable[[bytes, bytes], bytes] | None:
    """Return what hashes a key as a setting says, of the system or of a package; None if there is neither."""
    import ctypes  # noqa: PLC0415 -- seldom needed

    for name in ("libcrypt.so.1", "libcrypt.so.2", None):
        with contextlib.suppress(OSError, AttributeError, TypeError):
            crypt = ctypes.CDLL(name).crypt
            crypt.restype = ctypes.c_char_p
            if len(crypt(b"", b"$2b$04$" + b"." * 22) or b"") == 60:
                return lambda key, setting: crypt(key, setting) or b""
    with contextlib.suppress(ImportError):
        found: Any = importlib.import_module("bcrypt").hashpw
        return lambda key, setting: bytes(found(key, setting))
    return None


def hash_key(key: str) -> str:
    """Return a bcrypt hash of a key: a cheap one where it takes long to make any."""
    letters = base64.b64encode(os.urandom(16)).translate(TO_BCRYPT)[:22]
    fast = fast_bcrypt()
    make = fast or bcrypt
    return make(key.encode()[:72], b"$2b$%b$%b" % (b"10" if fast else b"04", letters)).decode()


def opens(key: str, secret: str) -> bool:
    """Tell whether a key is the one that the config holds, plain or hashed."""
    if not BCRYPT_HASH.fullmatch(secret):
        return same_text(key, secret)
    made = (fast_bcrypt() or bcrypt)(key.encode()[:72], secret.encode())
    return hmac.compare_digest(made, secret.encode())


def waiting_words(seconds: float) -> str:
    """Write a time as Go does: 29m59s."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


class Guard:
    """Who may use the API: checks keys, and shuts out who tries too many."""

    def __init__(self, app: App, password: str = "") -> None:
        self._app = app
        self.password = password  # of the command line, for this machine alone
        self._lock = threading.Lock()  # one key is checked at a time; guards all below
        self._failures: dict[
            str, tuple[int, float]
        ] = {}  # by address: how many, time.monotonic() of the last
        self._salt = os.urandom(16)
        self._right: tuple[str, bytes] = ("", b"")  # the secret of the config, and the digest of its key

    @property
    def secret(self) -> str:
        """What the config says, plain or hashed."""
        return str(self._app.config["remote-management.secret-key"])

    @property
    def outside(self) -> str:
        """The password of the environment."""
        return self._app.environ.get("MANAGEMENT_PASSWORD", "").strip()

    @property
    def exists(self) -> bool:
        """Tell whether there is a management API at all."""
        return bool(self.secret or self.outside)

    def check(self, key: str, address: str, *, foreign: bool) -> None:
        """Raise ProxyError unless this key may come from this address; `foreign`: a page of elsewhere asks."""
        here = address.removeprefix("::ffff:") in {"127.0.0.1", "::1"}
        self._check_ban(address)
        if not here and not self.outside and not self._app.config["remote-management.allow-remote"]:
            raise complaint(403, "remote management disabled")
        if key and self._is_known(key, here=here):
            self._failures.pop(address, None)
            return
        if not self._lock.acquire(timeout=HASH_PATIENCE):
            raise complaint(503, "too many keys are being checked; try again")
        try:
            self._check_ban(address)
            right = bool(key) and bool(self.secret) and self._remember(key)
            self._note(address, right=right, foreign=foreign)
        finally:
            self._lock.release()
        if right:
            return
        if foreign:
            threading.Event().wait(SLOW_ANSWER)
        raise complaint(401, "invalid management key" if key else "missing management key")

    def _check_ban(self, address: str) -> None:
        number, last = self._failures.get(address, (0, 0.0))
        left = last + SHUT_OUT - time.monotonic()
        if number >= FAILURES and left > 0:
            wait = waiting_words(left)
            raise complaint(403, f"IP banned due to too many failed attempts. Try again in {wait}")

    def _is_known(self, key: str, *, here: bool) -> bool:
        """Tell whether a key is right, as far as that costs nothing."""
        plain = [self.password if here else "", self.outside]
        found = [same_text(key, one) for one in plain if one]
        secret, digested = self._right
        return any(found) or (secret == self.secret and hmac.compare_digest(self._digest(key), digested))

    def _digest(self, key: str) -> bytes:
        return hashlib.sha256(self._salt + key.encode("utf-8", "replace")).digest()

    def _remember(self, key: str) -> bool:
        """Check a key against the config's, and remember it if it is right."""
        secret = self.secret
        right = opens(key, secret)
        if right:
            self._right = secret, self._digest(key)
        return right

    def _note(self, address: str, *, right: bool, foreign: bool) -> None:
        """Count a failure; a page of elsewhere could shut out everybody who looks at it."""
        if right:
            self._failures.pop(address, None)
        elif not foreign:
            now = time.monotonic()
            number, last = self._failures.get(address, (0, now))
            number = 1 if now - last > (STALE_FAILURES if number < FAILURES else SHUT_OUT) else number + 1
            self._failures.pop(address, None)
            self._failures[address] = number, now
            if number == FAILURES:
                log.warning("management: %s is shut out for %s", address, waiting_words(SHUT_OUT))
            while len(self._failures) > ADDRESSES:
                del self._failures[next(iter(self._failures))]


def given_key(headers: Headers) -> str:
    """Return the management key that a request brings."""
    whole = headers.get("authorization", "").strip()
    scheme, _, bearer = whole.partition(" ")
    key = bearer.strip() if scheme.lower() == "bearer" else whole
    return key or headers.get("x-management-key", "").strip()


# -- the settings, read and written ------------------------------------------------------

SETTING_ROWS = {row.key: row for row in SETTINGS}
OLD_HOMES = {"api-keys": {"auth"}, "gemini-api-key": {"generative-language-api-key"}}  # beside old spellings


def value_at(data: Any, key: str) -> Any:
    """Return what a dotted key holds, None if there is nothing."""
    for name in key.split("."):
        data = data.get(name) if isinstance(data, dict) else None
    return data


def read_quietly(value: Any, shape: Any) -> Any:
    """Read a value of any shape; None for what is none."""
    with contextlib.suppress(ProxyError):
        return read_shape(value, shape, "", [])
    return None


def as_written(found: Any, raw: Any, shape: Any) -> Any:
    """Return a value as the file has it wherever that says the same; else without what is default."""
    if isinstance(shape, Items):
        pool = [(item, read_quietly(item, shape.of)) for item in raw] if isinstance(raw, list) else []
        return [item_as_written(each, pool, shape.of) for each in found]
    if isinstance(shape, Named):
        return {name: as_written(each, value_at(raw, name), shape.of) for name, each in found.items()}
    if raw is not None and found == read_quietly(raw, shape):
        return raw
    return without_defaults(found, shape) if isinstance(shape, tuple) else found


def item_as_written(found: Any, pool: list[tuple[Any, Any]], shape: Any) -> Any:
    """Return an entry of a list as the file has it; `pool` holds the file's, each with what it says."""
    for item, said in pool:
        if said == found:
            return item
    return as_written(found, None, shape)


def without_defaults(record: Json, rows: tuple[Setting, ...]) -> Json:
    """Return a record without the fields that say nothing; what we do not know stays."""
    known = {row.key: row for row in rows}
    return {
        name: as_written(value, None, known[name].shape) if name in known else value
        for name, value in record.items()
        if name not in known or value != known[name].default
    }


def with_setting(raw: Json, key: str, value: Any) -> Json:
    """Return the settings of a file with one of them changed, and without its old spellings."""
    old = {row.key for row in SETTINGS if row.status == "old" and row.help == key} | OLD_HOMES.get(key, set())
    wanted = without(raw, frozenset(old))
    section, _, name = key.rpartition(".")
    home = dict(wanted.get(section) or {}) if section else wanted
    if name in home or value != SETTING_ROWS[key].default:
        home[name] = value
    if section and home:
        wanted[section] = home
    return wanted


def without_indexes(value: Any) -> Any:
    """Return a list of keys without the `auth-index` that reading it added."""
    if isinstance(value, list):
        return [without_indexes(item) for item in value]
    if isinstance(value, dict):
        return {name: without_indexes(item) for name, item in value.items() if name != "auth-index"}
    return value


class SettingsText(NamedTuple):
    """A settings file as it stands on the disk."""

    path: Path
    data: bytes

    @property
    def text(self) -> str:
        return self.data.decode("utf-8").removeprefix("\ufeff")

    @property
    def yaml(self) -> bool:
        return is_yaml(self.path, self.text)

    @property
    def editable(self) -> str:
        """The text, or that of a file without settings."""
        empty = "" if self.yaml else "{}\n"
        return self.data.decode("utf-8") if self.text.strip() else empty

    def decoded(self) -> Json:
        """Return the settings as they stand there. Raises ValueError."""
        raw = decode_settings(self.path, self.text) if self.text.strip() else {}
        if not isinstance(raw, dict) or foreign_kind(raw):
            raise ValueError("this is no file of settings of ours")
        return raw


def mapping_in(text: str) -> Json:
    """Return the settings in a text of YAML, or of JSON. Raises ValueError."""
    raw = yaml_read(text) if text.strip() else None
    if not isinstance(raw, dict):
        raise ValueError("the settings must be a mapping")  # noqa: TRY004 -- as for what is none at all
    return raw


class Pen:
    """Writes the settings file: one change at a time, into the text as it is then."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._lock = threading.Lock()  # held while the file is read, edited and written

    def read(self) -> SettingsText:
        """Read the file. Raises ProxyError."""
        path = self._app.config.path
        if path is None:
            raise complaint(404, "not_found", message="there is no settings file: start with --config FILE")
        try:
            return SettingsText(path, path.read_bytes())
        except FileNotFoundError as exc:
            raise complaint(404, "not_found", message=f"{path} is gone") from exc
        except OSError as exc:
            raise complaint(500, "read_failed", message=f"{path}: {exc.strerror}") from exc

    def shown(self, key: str) -> Any:
        """Return a setting as it is in force, in the words of the file."""
        raw: Json = {}
        with contextlib.suppress(ProxyError, ValueError, RecursionError):
            raw = self.read().decoded()
        return as_written(self._app.config[key], value_at(raw, key), SETTING_ROWS[key].shape)

    def edit(self, key: str, step: Callable[[Any], Any]) -> None:
        """Put what `step` makes of a setting in its place, and in force. Raises ProxyError."""
        row = SETTING_ROWS[key]
        with self._writing():
            file = self.read()
            try:
                raw = file.decoded()
                config = parse_config(file.path, file.text if raw else "{}")
                written = value_at(raw, key)
                before = as_written(value_at(config.data, key), written, row.shape)
                found = read_setting(step(before), row, key, [])
                if key == "openai-compatibility":
                    found = usable_endpoints(found, [])
                wanted = with_setting(raw, key, as_written(found, written, row.shape))
                edited = edit_text(file.editable, wanted, yaml=file.yaml)
            except (ValueError, RecursionError) as exc:
                raise complaint(500, f"failed to save config: {exc}") from exc
            self._replace(file, edited.encode("utf-8"))

    def replace(self, data: bytes) -> None:
        """Put another text in the place of the whole file, and in force. Raises ProxyError."""
        if len(data) > LARGEST:
            raise complaint(413, "invalid_yaml", message=f"settings have {LARGEST:,} bytes at most")
        with self._writing():
            file = self.read()
            try:
                text = data.decode("utf-8").removeprefix("\ufeff")
                raw = mapping_in(text)
                if not file.yaml:  # the official page adds keys without quotes
                    data = as_json(file.editable, text, raw).encode("utf-8")
            except (ValueError, RecursionError) as exc:
                raise complaint(400, "invalid_yaml", message=str(exc)) from exc
            try:
                self._replace(file, data)
            except ProxyError as error:
                if error.dialect == "management":
                    raise
                known = str(error).rpartition("; allowed: ")[2] in {word for _, _, word in SHAPES.values()}
                name, status = ("invalid_yaml", 400) if known else ("invalid_config", 422)
                raise complaint(status, name, message=str(error)) from error

    @contextlib.contextmanager
    def _writing(self) -> Generator[None, None, None]:
        """Keep other writers out, of other processes too, and turn what the disk says into a ProxyError."""
        folder = self._app.store.folder / ".cliproxy"
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            with self._lock, locked(folder / "config.lock"):
                yield
        except OSError as exc:
            raise complaint(500, f"failed to save config: {exc.strerror or exc}") from exc

    def _replace(self, file: SettingsText, data: bytes) -> None:
        """Check a text, write it, the one before beside it, and take it over. Raises ProxyError, OSError."""
        if data == file.data:
            return
        fresh = parse_config(file.path, data.decode("utf-8").removeprefix("\ufeff"))
        fresh.data["host"] = self._app.config["host"]
        check_exposure(fresh)
        write_atomic(file.path.with_name(f"{file.path.name}.bak"), file.data)
        write_atomic(file.path, data, stat.S_IMODE(file.path.stat().st_mode))
        self._app.take_over()


def as_json(old: str, text: str, wanted: Json) -> str:
    """Return a text that was given for a file of JSON: as it came, or what it says put into the old one."""
    try:
        json.loads(text)
    except ValueError:
        return edit_text(old, wanted, yaml=False)
    return text


def seal_key(app: App, pen: Pen) -> None:
    """Replace a plain management key in the settings file by its hash. Raises ProxyError."""
    key = "remote-management.secret-key"
    plain = app.config[key]
    if plain and not BCRYPT_HASH.fullmatch(plain):
        sealed = hash_key(plain)
        pen.edit(key, lambda now: sealed if str(now) == plain else now)
        log.info("%s: the management key is kept as its hash now", app.config.path)


class Desk:
    """What the management API works with."""

    def __init__(self, app: App, password: str = "") -> None:
        self.app = app
        self.guard = Guard(app, password)
        self.pen = Pen(app)
        self._plain = ""  # the last key that was tried to be replaced by its hash

    def poll(self) -> None:
        """Do what is due; called every second."""
        plain, self._plain = self._plain, self.guard.secret
        if self._plain != plain:
            try:
                seal_key(self.app, self.pen)
            except ProxyError as error:
                log.warning("the management key stays as it is: %s", error)

    def answer(self, wish: Wish) -> Answer:
        """Do what is wished. Raises ProxyError."""
        endpoint, rest = find_endpoint(wish.method, wish.path)
        given = endpoint.answer(self, wish._replace(rest=rest), endpoint.row)
        return given if isinstance(given, Answer) else json_answer(200, given)

    def cors(self, headers: Headers) -> Headers:
        """Return the headers that let a page of elsewhere read an answer. The key is the protection."""
        origin, allowed = headers.get("origin", ""), self.app.config["remote-management.allow-origins"]
        if allowed and origin.lower() not in allowed:
            return {}
        asked = headers.get("access-control-request-headers", "")
        return {
            "access-control-allow-origin": origin if allowed else "*",
            "access-control-allow-methods": "GET, POST, PUT, PATCH, DELETE, OPTIONS",
            "access-control-allow-headers": asked or "*, Authorization",
            "access-control-expose-headers": ", ".join(EXPOSED),
            **({"vary": "origin"} if allowed else {}),
        }


EXPOSED = (
    "X-CPA-VERSION", "X-CPA-COMMIT", "X-CPA-BUILD-DATE", "X-CPA-SUPPORT-PLUGIN", "X-SERVER-VERSION",
    "X-SERVER-BUILD-DATE", "Location", "Retry-After", "X-Request-Id", "OpenAI-Request-Id",
)  # fmt: skip
VERSION_HEADERS = {
    "x-cpa-version": __version__, "x-cpa-commit": "cliproxy", "x-cpa-build-date": "unknown", "x-cpa-support-plugin": "0",
}  # fmt: skip
SAVED = {"status": "ok"}

# -- settings by shape -------------------------------------------------------------------


class Scalar(NamedTuple):
    """A setting of one value; the last word of its path is what the answer calls it."""

    path: str
    key: str
    kind: type
    clears: bool = False  # is there a DELETE?

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


def get_scalar(desk: Desk, _wish: Wish, row: Scalar) -> Json:
    value = value_at(desk.app.config.data, row.key)
    return {row.name: row.kind() if value is None else value}


def put_scalar(desk: Desk, wish: Wish, row: Scalar) -> Json:
    value = wish.object.get("value")
    value = read_int(value) if row.kind is int and not isinstance(value, str) else value
    if type(value) is not row.kind:
        raise complaint(400, "invalid body")
    allowed = SETTING_ROWS[row.key].allowed
    if isinstance(allowed, dict) and str(value).strip().lower() not in allowed:
        raise complaint(400, f"invalid {row.name}")
    desk.pen.edit(row.key, lambda _: value)
    return SAVED


def clear_scalar(desk: Desk, _wish: Wish, row: Scalar) -> Json:
    desk.pen.edit(row.key, lambda _: row.kind())
    return SAVED


class Several(NamedTuple):
    """A setting that is a list or a map.

    `names` are the fields that an entry is found by, the first one as the word for what is missing.
    `field` is what a map's PATCH calls the list of a name. `strict`: who deletes what is not there is told.
    """

    path: str
    key: str
    names: tuple[str, ...] = ()
    field: str = ""
    strict: bool = False

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


def get_listed(desk: Desk, _wish: Wish, row: Several) -> Json:
    return {row.name: desk.pen.shown(row.key)}


def items_in(data: Any, kind: type) -> Any:
    """Return the list or map that a PUT brings: bare, or as `items`, which may not be empty."""
    items = data.get("items") if isinstance(data, dict) and [*data] == ["items"] else data
    if not isinstance(items, kind) or (data is not items and not items):
        raise complaint(400, "invalid body")
    return items


def texts_in(data: Any) -> list[str]:
    """Return the list of texts that data is. Raises ProxyError if it is none."""
    if not isinstance(data, list) or not all(isinstance(text, str) for text in data):
        raise complaint(400, "invalid body")
    return data


def put_texts(desk: Desk, wish: Wish, row: Several) -> Json:
    texts = texts_in(items_in(wish.data, list))
    desk.pen.edit(row.key, lambda _: texts)
    return SAVED


def patch_texts(desk: Desk, wish: Wish, row: Several) -> Json:
    """Change one text, by its place or its old value; what is not there is added."""
    body = wish.object
    at, value = body.get("index"), body.get("value")
    old, new = body.get("old"), body.get("new")

    def step(texts: list[str]) -> list[str]:
        if type(at) is int and isinstance(value, str) and 0 <= at < len(texts):
            return [*texts[:at], value, *texts[at + 1 :]]
        if not isinstance(old, str) or not isinstance(new, str):
            raise complaint(400, "missing fields")
        return [new if text == old else text for text in texts] if old in texts else [*texts, new]

    desk.pen.edit(row.key, step)
    return SAVED


def delete_text(desk: Desk, wish: Wish, row: Several) -> Json:
    value = wish.one("value")

    def step(texts: list[str]) -> list[str]:
        at = wish.place(len(texts))
        if at is None and not value:
            raise complaint(400, "missing index or value")
        if at is not None:
            return [*texts[:at], *texts[at + 1 :]]
        return [text for text in texts if text != value]

    desk.pen.edit(row.key, step)
    return SAVED


def put_map(desk: Desk, wish: Wish, row: Several) -> Json:
    items = items_in(wish.data, dict)
    desk.pen.edit(row.key, lambda _: items)
    return SAVED


def without_name(channels: Json, name: str, word: str) -> Json:
    if name not in channels:
        raise complaint(404, f"{word} not found")
    return {channel: rows for channel, rows in channels.items() if channel != name}


def patch_map(desk: Desk, wish: Wish, row: Several) -> Json:
    """Set the list of one name; an empty one takes the name out."""
    body, word = wish.object, row.names[0]
    name = next((body[key] for key in row.names if body.get(key)), "")
    rows = body.get(row.field)
    if not isinstance(name, str) or not name.strip():
        raise complaint(400, f"invalid {word}")
    if not isinstance(rows, list):
        raise complaint(400, "invalid body")
    own = name.strip().lower()
    desk.pen.edit(row.key, lambda now: {**now, own: rows} if rows else without_name(now, own, word))
    return SAVED


def delete_name(desk: Desk, wish: Wish, row: Several) -> Json:
    word = row.names[0]
    name = next(filter(None, map(wish.one, row.names)), "").strip().lower()
    if not name:
        raise complaint(400, f"missing {word}")
    desk.pen.edit(row.key, lambda now: without_name(now, name, word))
    return SAVED


def put_objects(desk: Desk, wish: Wish, row: Several) -> Json:
    items = items_in(wish.data, list)
    if not all(isinstance(item, dict) for item in items):
        raise complaint(400, "invalid body")
    desk.pen.edit(row.key, lambda _: without_indexes(items))
    return SAVED


def place_in(items: list[Json], row: Several, name: str, wish: Wish) -> int | None:
    """Return the place of the item that goes by a name, None if there is none. A base URL chooses among several."""
    found = [at for at, item in enumerate(items) if str(item.get(row.names[0], "")).strip() == name.strip()]
    if "base-url" in wish.query and row.names[0] == "api-key":
        base = wish.one("base-url").strip().rstrip("/")
        found = [at for at in found if str(items[at].get("base-url") or "").strip().rstrip("/") == base]
    if len(found) > 1 and row.names[0] == "api-key":
        more = "index" if "base-url" in wish.query else "base-url"
        what = "multiple items match" if more == "index" else "multiple items match api-key"
        raise complaint(400, f"{what}; {more} is required")
    return found[0] if found else None


def patch_object(desk: Desk, wish: Wish, row: Several) -> Json:
    """Lay fields over one item; what cannot be used then is taken out."""
    body = wish.object
    value, at = body.get("value"), body.get("index")
    name = next((body[key] for key in ("match", *row.names) if isinstance(body.get(key), str)), None)
    if not isinstance(value, dict):
        raise complaint(400, "invalid body")

    def step(items: list[Json]) -> list[Json]:
        place = at if type(at) is int and 0 <= at < len(items) else None
        if place is None and name is not None:
            place = place_in(items, row, name, wish)
        if place is None:
            raise complaint(404, "item not found")
        fields = without_indexes({**items[place], **value})
        changed = {key: field for key, field in fields.items() if field is not None}
        return [*items[:place], changed, *items[place + 1 :]]

    desk.pen.edit(row.key, step)
    return SAVED


def delete_object(desk: Desk, wish: Wish, row: Several) -> Json:
    word = row.names[0]

    def step(items: list[Json]) -> list[Json]:
        place = wish.place(len(items))
        if place is None and not wish.one(word):
            raise complaint(400, f"missing {word} or index")
        if place is None:
            place = place_in(items, row, wish.one(word), wish)
        if place is None and row.strict:
            raise complaint(404, "item not found")
        return [item for at, item in enumerate(items) if at != place]

    desk.pen.edit(row.key, step)
    return SAVED


def put_values(desk: Desk, wish: Wish, row: Several) -> Json:
    """Set one of Amp's lists."""
    values = wish.object.get("value")
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise complaint(400, "invalid body")
    word = row.names[0]

    def step(items: list[Json]) -> list[Json]:
        if wish.method == "PUT":
            return values
        merged = {str(item.get(word)).strip(): item for item in (*items, *values)}
        return list(merged.values())

    desk.pen.edit(row.key, step)
    return SAVED


def delete_values(desk: Desk, wish: Wish, row: Several) -> Json:
    """Take entries out of one of Amp's lists; of its mappings all, if none is named."""
    body = wish.object if wish.body.strip() or row.strict else {}
    names, word = body.get("value", None if row.strict else []), row.names[0]
    if names is None:
        raise complaint(400, "missing value")
    gone = {name.strip() for name in texts_in(names)} - {""}
    if names and not gone and row.strict:
        raise complaint(400, "empty value")
    desk.pen.edit(
        row.key, lambda now: [item for item in now if gone and str(item.get(word)).strip() not in gone]
    )
    return SAVED


# -- the whole config --------------------------------------------------------------------

HIDDEN = frozenset(["host", "port", "auth-dir", "remote-management"])
SHOWN_LISTS = (*KEYED, "oauth-model-alias", "oauth-excluded-models", "oauth-request-scoped-errors")


def get_config(desk: Desk, _wish: Wish, _row: None) -> Json:
    """Return the settings in force, lists in the words of the file: what a page does not get back, it deletes."""
    data = without(desk.app.config.data, HIDDEN)
    return {"ws-auth": False, **data, **{key: desk.pen.shown(key) for key in SHOWN_LISTS}}


def get_text(desk: Desk, _wish: Wish, _row: None) -> Answer:
    headers = {"content-type": "application/yaml; charset=utf-8", "cache-control": "no-store"}
    return whole_answer(200, {**headers, "x-content-type-options": "nosniff"}, desk.pen.read().data)


def put_text(desk: Desk, wish: Wish, _row: None) -> Json:
    desk.pen.replace(wish.body)
    return {"ok": True, "changed": ["config"]}


def get_amp(desk: Desk, _wish: Wish, _row: None) -> Json:
    return {"ampcode": desk.app.config["ampcode"]}


def get_version(_desk: Desk, _wish: Wish, _row: None) -> Json:
    """Tell our own version: nobody is asked for a later one."""
    return {"latest-version": f"v{__version__}"}


# -- the endpoints -----------------------------------------------------------------------


class Endpoint(NamedTuple):
    """A method and a path, which may end in `*`, and what answers it: JSON or an Answer."""

    method: str
    path: str
    answer: Callable[[Desk, Wish, Any], Any]
    row: Any = None


# fmt: off
SCALARS = (
    Scalar("/debug",                                     "debug", bool),
    Scalar("/logging-to-file",                           "logging-to-file", bool),
    Scalar("/usage-statistics-enabled",                  "usage-statistics-enabled", bool),
    Scalar("/request-log",                               "request-log", bool),
    Scalar("/ws-auth",                                   "ws-auth", bool),
    Scalar("/force-model-prefix",                        "force-model-prefix", bool),
    Scalar("/logs-max-total-size-mb",                    "logs-max-total-size-mb", int),
    Scalar("/error-logs-max-files",                      "error-logs-max-files", int),
    Scalar("/request-retry",                             "request-retry", int),
    Scalar("/max-retry-interval",                        "max-retry-interval", int),
    Scalar("/max-retry-credentials",                     "max-retry-credentials", int),
    Scalar("/proxy-url",                                 "proxy-url", str, clears=True),
    Scalar("/quota-exceeded/switch-project",             "quota-exceeded.switch-project", bool),
    Scalar("/quota-exceeded/switch-preview-model",       "quota-exceeded.switch-preview-model", bool),
    Scalar("/routing/strategy",                          "routing.strategy", str),
    Scalar("/ampcode/upstream-url",                      "ampcode.upstream-url", str, clears=True),
    Scalar("/ampcode/upstream-api-key",                  "ampcode.upstream-api-key", str, clears=True),
    Scalar("/ampcode/restrict-management-to-localhost",  "ampcode.restrict-management-to-localhost", bool),
    Scalar("/ampcode/force-model-mappings",              "ampcode.force-model-mappings", bool),
)
TEXTS = (Several("/api-keys", "api-keys"),)
MAPS = (
    Several("/oauth-excluded-models",       "oauth-excluded-models", ("provider",), "models"),
    Several("/oauth-model-alias",           "oauth-model-alias", ("channel", "provider"), "aliases"),
    Several("/oauth-request-scoped-errors", "oauth-request-scoped-errors", ("channel", "provider"), "errors"),
)
OBJECTS = (
    Several("/gemini-api-key",       "gemini-api-key", ("api-key",), strict=True),
    Several("/claude-api-key",       "claude-api-key", ("api-key",)),
    Several("/codex-api-key",        "codex-api-key", ("api-key",)),
    Several("/vertex-api-key",       "vertex-api-key", ("api-key",)),
    Several("/openai-compatibility", "openai-compatibility", ("name",)),
)
AMP_LISTS = (
    Several("/ampcode/model-mappings",    "ampcode.model-mappings", ("from",)),
    Several("/ampcode/upstream-api-keys", "ampcode.upstream-api-keys", ("upstream-api-key",), strict=True),
)
VERBS: tuple[tuple[Sequence[Any], str, Callable[[Desk, Wish, Any], Any]], ...] = (  # of the rows of a table
    (SCALARS,   "GET",    get_scalar), (SCALARS,   "PUT",    put_scalar),    (SCALARS,   "PATCH",  put_scalar),
    ([row for row in SCALARS if row.clears], "DELETE", clear_scalar),
    (TEXTS,     "GET",    get_listed), (TEXTS,     "PUT",    put_texts),     (TEXTS,     "PATCH",  patch_texts),
    (TEXTS,     "DELETE", delete_text),
    (MAPS,      "GET",    get_listed), (MAPS,      "PUT",    put_map),       (MAPS,      "PATCH",  patch_map),
    (MAPS,      "DELETE", delete_name),
    (OBJECTS,   "GET",    get_listed), (OBJECTS,   "PUT",    put_objects),   (OBJECTS,   "PATCH",  patch_object),
    (OBJECTS,   "DELETE", delete_object),
    (AMP_LISTS, "GET",    get_listed), (AMP_LISTS, "PUT",    put_values),    (AMP_LISTS, "PATCH",  put_values),
    (AMP_LISTS, "DELETE", delete_values),
)
ENDPOINT_ROWS = (
    Endpoint("GET",    "/config",         get_config),
    Endpoint("GET",    "/config.yaml",    get_text),
    Endpoint("PUT",    "/config.yaml",    put_text),
    Endpoint("GET",    "/latest-version", get_version),
    Endpoint("GET",    "/ampcode",        get_amp),
    *(Endpoint(verb, row.path, answer, row) for rows, verb, answer in VERBS for row in rows),
)
# fmt: on
ENDPOINTS = {(row.method, row.path): row for row in ENDPOINT_ROWS}
OPEN_ENDPOINTS = [row for row in ENDPOINT_ROWS if row.path.endswith("*")]


def find_endpoint(method: str, path: str) -> tuple[Endpoint, str]:
    """Return the row for a call and what its `*` stands for. Raises ProxyError."""
    row = ENDPOINTS.get((method, path.rstrip("/")))
    if row:
        return row, ""
    for row in OPEN_ENDPOINTS:
        if row.method == method and path.startswith(row.path[:-1]) and len(path) >= len(row.path):
            return row, unquote(path[len(row.path) - 1 :])
    raise complaint(404, f"there is no {method} {path} in the management API")


########################################################################################
# 39. SERVER
########################################################################################
# A ThreadingHTTPServer whose Handler has a Visit a request, read with NETWORK's strict parser. A thread
# serves one client connection and is the only one that writes its socket. Here, and nowhere else, an
# exception becomes an HTTP status.

CLIENT_TICK = 30.0  # seconds: the patience of a recv() from a client, or of a send()
IDLE_CLIENT = 120.0  # seconds that a connection may wait for its next request
SLOW_CLIENT = 30.0  # seconds of silence in the middle of a head or a body
IDLE_SOCKET = 3_600.0  # seconds that a WebSocket may wait for its next message
DRAIN_LIMIT = 2**20  # bytes of a refused request's body that are read so as to keep the connection
LINGER = 2.0  # seconds that are spent on reading what a client still sends after its answer
FULL = 64  # frames that are enough for one send
ACCEPT_PAUSE = 0.5  # seconds before the next try when no connection can be accepted
GRACE = 30.0  # seconds that running answers get when the server stops
STOP_TICK = 0.02  # seconds between looks whether they have ended

REQUEST_LINE = re.compile(r"([A-Za-z]+) ([^ ]+) (HTTP/1\.[01])")
REASONS = {status.value: status.phrase for status in HTTPStatus}


class ClientGone(Hangup):
    """The client has hung up; nobody is left to tell."""


class Stage(Enum):
    """How far the answer to a request has got, and once it has begun, how its body goes."""

    SILENT = "nothing of it has been sent or held ready"
    PENDING = "blank lines have gone out, in chunks, while its status is not known"
    PLAIN = "its bytes go out as they are"
    CHUNKED = "its bytes go out in chunks"
    UPGRADED = "the connection speaks WebSocket"


class Visit(Watcher):
    """One request of a client, and its answer."""

    def __init__(self, server: Server, wire: Wire, address: str) -> None:
        self.server = server
        self.wire = wire
        self.address = address  # the client's
        # of the request
        self.method = ""
        self.path = "/"
        self.raw_query = ""
        self.query: dict[str, str] = {}
        self.protocol = "HTTP/1.1"
        self.headers = Headers()
        self.length: int | None = None  # of the body; None: chunked, or not known
        self.body_read = False
        self.allowed_origin = ""  # the page that asks, if the owner lets it
        self.argument = ""  # what the `*` of the route's path stands for
        self.errand: Errand | None = None
        self.route: Route | None = None
        self.error: ProxyError | None = None  # that the request ended in
        # of the answer
        self.dialect = DIALECTS["chat"]  # in which errors are told
        self.stage = Stage.SILENT
        self.status = 0
        self.head = b""  # the head, until it is sent with the first frame
        self.out: list[bytes] = []  # frames that have not been sent
        self.between = False  # has a whole event of a stream been sent, and nothing of the next?
        self.early = False  # has the head of a stream gone out before there was an answer?
        self.sent_at = 0.0  # time.monotonic() when something was sent, or awaited, last
        self.keep = True  # may the connection serve another request?

    def serve(self) -> bool:
        """Serve the request; return whether the connection may serve another."""
        begun = 0.0
        try:
            head = self.wire.read_head(self.idle)
            if head is None:
                return False
            begun = self.looked = time.monotonic()
            self.server.working.add(self)
            self.answer(head)
            self.drop_body()
        except ProxyError as error:
            self.fail(error)
        except (ClientGone, ConnectionError):
            self.keep = False
            self.status = 499
        except Exception:
            log.exception("bug: %s %s", self.method, escaped(self.path))
            self.fail(ProxyError("internal", "internal error; the log has more"))
        finally:
            self.server.working.discard(self)
        if self.method:
            self.log_request(begun)
        if self.stage is not Stage.SILENT and not self.body_read:
            self.linger()
        return self.keep and not self.wire.spoilt

    def idle(self) -> None:
        """Wait for a request, or for the rest of one."""
        if self.server.stopping or self.wire.silent >= IDLE_CLIENT:
            raise ClientGone
        if self.wire.answered and self.wire.silent >= SLOW_CLIENT:
            self.keep = False
            raise ProxyError("caller_timeout", f"the request stalled for {SLOW_CLIENT:.0f} s")

    def read_request(self, head: bytes) -> None:
        """Take the head apart. Raises ValueError for what no client sends in good faith."""
        line, self.headers = parse_head(head)
        found = REQUEST_LINE.fullmatch(line)
        if not found:
            raise ValueError(f"{line[:60]!r} is no HTTP/1 request line")
        self.method, target, self.protocol = found.groups()
        self.read_target(target)
        self.length = body_length(self.headers)
        if self.length is None and self.protocol == "HTTP/1.0":
            raise ValueError("a chunked body in HTTP/1.0")
        self.body_read = self.length == 0
        wish = self.headers.get("connection", "").lower()
        keeps = "close" not in wish if self.protocol == "HTTP/1.1" else "keep-alive" in wish
        self.keep = keeps and not self.server.stopping

    def read_target(self, target: str) -> None:
        """Take the path and the query out of a request's target."""
        if not target.startswith(("/", "http://", "https://")) and target != "*":
            raise ValueError(f"{target[:60]!r} is no path")
        self.path, _, self.raw_query = target.partition("?")
        if target.startswith("http"):
            self.path = urlsplit(self.path).path or "/"
        if self.raw_query:
            self.query = dict(parse_qsl(self.raw_query, keep_blank_values=True))

    def answer(self, head: bytes) -> None:
        """Find the row of ROUTES and do what it says."""
        try:
            self.read_request(head)
        except ValueError as exc:
            raise ProxyError("invalid_request", f"malformed request: {exc}") from exc
        self.dialect = dialect_of(self.path, self.headers)
        self.check_host()
        if not self.path.startswith(FOR_ALL_PAGES):
            self.check_origin()
        route, self.argument = find_route(self.method, self.path)
        self.route = route
        if route.admit:
            self.admit()
        route.handle(self, route)

    def check_origin(self) -> None:
        """Refuse what a page of another origin sends, unless the owner lets it in."""
        origin = self.headers.get("origin", "").lower()
        site = self.headers.get("sec-fetch-site", "")
        if not (origin or site):
            return  # no browser
        if origin in self.server.app.config["allow-origins"]:
            self.allowed_origin = origin
            return
        if self.foreign:
            hint = f"; allow-origins may name {origin}" if is_page(origin) else ""
            raise ProxyError("forbidden", f"a page of another web site may not use this proxy{hint}")

    @property
    def foreign(self) -> bool:
        """Tell whether a page of another origin asks."""
        origin = self.headers.get("origin", "").lower()
        foreign = self.headers.get("sec-fetch-site") in {"cross-site", "same-site"} or origin == "null"
        if is_page(origin):
            host = self.headers.get("host", "").lower()
            ours = {host, host.removesuffix(":80"), host.removesuffix(":443")}
            return foreign or origin.partition("://")[2] not in ours
        return foreign

    def check_host(self) -> None:
        """Refuse what is addressed to another machine, as by a page whose name was rebound to this one."""
        host = self.headers.get("host", "").lower()
        name = host_of(host)
        if self.server.loopback and host and not is_loopback(name) and name != self.server.host:
            better = f"use http://127.0.0.1:{self.server.port}"
            raise ProxyError("forbidden", f"the host {host[:80]!r} is not this machine; {better}")

    def admit(self) -> None:
        """Check the client's key. Any valid one in any of its places will do."""
        keys = self.server.app.config["api-keys"]
        if not self.server.loopback:  # an edit may take away the keys of an open server
            keys = secret_keys(keys)
        elif not keys:
            return
        encoded = [key.encode("utf-8", "replace") for key in self.given_keys()]
        valid = [hmac.compare_digest(key, ours.encode()) for key in encoded for ours in keys]
        if not any(valid):
            what = "is not one of the config's api-keys" if encoded else "is missing"
            message = f"the API key {what}; send one as Authorization: Bearer, x-api-key or x-goog-api-key"
            raise ProxyError("unauthorized", message)

    def given_keys(self) -> list[str]:
        return given_keys(self.headers, self.query)

    def read_body(self) -> bytes | bytearray:
        """Read the request's body, its content encoding undone.

        Raises ProxyError: too_large, invalid_request, caller_timeout.
        """
        if self.length is not None and self.length > BODY_LIMIT:
            raise ProxyError("too_large", f"the body is larger than {BODY_LIMIT:,} bytes")
        if self.length != 0 and self.headers.get("expect", "").lower() == "100-continue":
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.wire.answered = True
        keep, self.keep = self.keep, False  # what was read in part cannot be read again
        try:
            if self.length is None:
                body: bytes | bytearray = self.wire.read_chunked(BODY_LIMIT, self.idle)
            else:
                body = self.wire.read_exactly(self.length, self.idle)
            self.body_read = True
            self.keep = keep
            encoding = self.headers.get("content-encoding", "")
            return unpack(bytes(body), encoding) if encoding else body
        except CodingError as exc:
            raise ProxyError("unsupported_media", f"the body cannot be read: {exc}") from exc
        except ValueError as exc:
            raise ProxyError("invalid_request", f"the body cannot be read: {exc}") from exc

    def drop_body(self) -> None:
        """Make the connection usable after a request whose body nobody wants, or give it up."""
        if self.body_read or not self.keep:
            return
        self.keep = False
        if self.length and self.length <= DRAIN_LIMIT and "expect" not in self.headers:
            self.wire.answered = True
            self.wire.read_exactly(self.length, self.idle)  # and not unpacked: it may be a bomb
            self.keep = self.body_read = True

    def linger(self) -> None:
        """Let the client read the answer before the connection is reset by what it still sends."""
        with contextlib.suppress(OSError):
            self.wire.sock.shutdown(socket.SHUT_WR)
            self.wire.set_patience(1.0)
            end = time.monotonic() + LINGER
            for _ in range(DRAIN_LIMIT // PIECE):
                if time.monotonic() > end or not self.wire.sock.recv(PIECE):
                    break

    def fail(self, error: ProxyError) -> None:
        """Answer with an error in the client's dialect, unless an answer has begun: then hang up."""
        self.error = error
        self.server.app.make_discreet(error)
        if self.stage is Stage.PENDING:  # the status is lost
            self.out.append(dumps(self.dialect.write_error(error)).encode("ascii"))
            self.flush(last=True)
            return
        if self.early:
            self.out.append(stream_error(self.dialect, error))
            self.flush(last=True)
            return
        if self.stage is not Stage.SILENT:
            self.keep = False
            return
        dialect = self.dialect
        with contextlib.suppress(ProxyError, ClientGone, ConnectionError):
            self.drop_body()
        headers = retry_header(error)
        if error.body and error.dialect == dialect.name:
            self.send(error.status, {**headers, **error.headers}, error.body)
        else:
            status = 529 if (error.kind, dialect.name) == ("overloaded", "claude") else error.status
            self.send_json(status, dialect.write_error(error), headers)

    def send_json(self, status: int, body: Any, headers: Headers | None = None) -> None:
        whole = dumps(body).encode("ascii")
        self.send(status, {"content-type": "application/json", **(headers or {})}, whole)

    def send(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole answer."""
        self.begin(status, headers, len(body))
        self.out = [] if self.method == "HEAD" else [body]
        self.flush(last=True)

    def begin(self, status: int, headers: Headers, length: int | None) -> None:
        """Hold a head ready, to go out with the first piece of its body."""
        self.status = status
        self.stage = Stage.PLAIN
        framing = f"content-length: {length}\r\n"
        if status == 204:  # RFC 9110 8.6
            framing = ""
        elif length is None and self.protocol == "HTTP/1.1":
            self.stage = Stage.CHUNKED
            framing = "transfer-encoding: chunked\r\n"
        elif length is None:  # it ends with the connection
            self.keep = False
            framing = ""
        self.head = self.make_head(status, headers, framing)

    def make_head(self, status: int, headers: Headers, framing: str) -> bytes:
        if self.allowed_origin:
            headers = {**headers, "access-control-allow-origin": self.allowed_origin, "vary": "origin"}
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        close = "" if self.keep else "connection: close\r\n"
        line = f"HTTP/1.1 {status} {REASONS.get(status, 'Status')}\r\n"
        return f"{line}{lines}{framing}{close}\r\n".encode("latin-1", "replace")

    def write(self, data: bytes) -> None:
        """Send bytes. Raises ClientGone."""
        try:
            self.wire.send([data], self.stalled)
        except OSError as exc:
            raise ClientGone from exc

    def stalled(self) -> None:
        """Give up a client that does not read its answer."""
        if self.wire.silent >= SEND_TIMEOUT:
            raise ClientGone

    def send_answer(self, answer: Answer) -> None:
        """Send an answer piece by piece, each as it comes.

        Frames that are ready are sent together: `flush` sends them before the upstream is waited
        for. A failure of a stream becomes its dialect's error frame; of anything else, a hang-up.
        """
        with contextlib.closing(answer.pieces) as pieces:
            if self.stage is Stage.SILENT:
                self.begin(answer.status, answer.headers, answer.length)
            self.early = False
            try:
                self.send_pieces(pieces)
            except ProxyError as error:
                self.error = error
                if not answer.headers.get("content-type", "").startswith("text/event-stream"):
                    raise ClientGone from error
                rid = self.errand.id[:8] if self.errand else "-"
                log.warning("rid=%s broke off: %s", rid, explained(error))
                self.out.append(stream_error(self.dialect, self.server.app.make_discreet(error)))
            self.flush(last=True)

    def send_pieces(self, pieces: Pieces) -> None:
        """Take pieces until they end; what pulls them flushes before it waits."""
        for piece in pieces:
            self.out.append(piece)
            if len(self.out) > FULL:
                self.flush()

    def flush(self, *, last: bool = False) -> None:
        """Send what is ready, in one piece, and the end of the body if it is the `last`."""
        if not self.out and not last:
            return
        data = b"".join(self.out)
        self.out.clear()
        self.between = data.endswith((b"\n\n", b"\r\n\r\n"))
        if self.stage is not Stage.PLAIN:
            data = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
            data += b"0\r\n\r\n" if last else b""
        data, self.head = self.head + data, b""
        self.sent_at = time.monotonic()
        self.write(data)

    def tick(self) -> None:
        """Watch the client while an upstream is waited for, and keep it patient."""
        if self.wire.ended():
            raise ClientGone
        self.flush()
        errand = self.errand
        if errand and errand.stream and errand.opening and self.protocol == "HTTP/1.1":
            self.send_early(errand.opening)
        elif self.stage is Stage.CHUNKED and self.between:
            self.keep_alive(self.dialect.keepalive)
        elif self.stage in {Stage.SILENT, Stage.PENDING}:
            self.keep_pending()

    def is_quiet(self, setting: str) -> bool:
        """Tell whether nothing has been sent for as many seconds as a setting says; 0: never."""
        limit: int = self.server.app.config[setting]
        return 0 < limit <= time.monotonic() - self.sent_at

    def send_early(self, opening: Opening) -> None:
        """Send what is held back of an answer, if that has been long enough, or else a sign of life.

        In front of an answer that is a comment, which nobody takes for its beginning.
        """
        quiet = self.is_quiet("streaming.keepalive-seconds")
        held = not opening.sent and (opening.due() or (quiet and opening.frames))
        if not held and not quiet:
            return
        if self.stage is Stage.SILENT:
            kind = "text/event-stream" if self.errand and self.errand.sse else "application/json"
            self.begin(200, {"content-type": kind, **opening.headers}, None)
            self.early = True
        if held:
            self.out += opening.send()
        elif self.dialect.keepalive == PING and not opening.sent:
            self.out.append(KEEP_ALIVE)
        else:
            self.out.append(self.dialect.keepalive)
        self.flush()
        self.between = True

    def keep_alive(self, sign: bytes) -> None:
        """Send a sign of life between two events of a stream, if it is quiet."""
        if self.is_quiet("streaming.keepalive-seconds"):
            self.out.append(sign)
            self.flush()
            self.between = True

    def keep_pending(self) -> None:
        """Begin a long answer that is no stream with blank lines, before its status is known."""
        if not self.is_quiet("nonstream-keepalive-interval"):
            return
        if self.stage is Stage.SILENT:
            if not self.errand or self.errand.stream or self.protocol == "HTTP/1.0":
                return
            self.begin(200, {"content-type": "application/json"}, None)
            self.stage = Stage.PENDING
        self.out.append(b"\n")
        self.flush()

    def log_request(self, begun: float) -> None:
        """Leave a line for the log and the attempt that ended for the statistics: another thread writes them."""
        errand, error = self.errand, self.error
        tried = None
        if errand is None and self.route and self.route.counts:
            errand = Errand(self.dialect, self.route.action, b"")
            self.place(errand)
        if errand and not errand.told:
            status = error.status if error else self.status
            status = 200 if status == 101 else status
            tried = errand.tried(status, error, hung_up=status == 499)
        seconds = time.monotonic() - begun
        about = errand.summary() if errand else None
        self.server.app.scribe.put(
            Visited(
                time.time(),
                self.method,
                self.path,
                self.status,
                seconds,
                self.address,
                self.raw_query,
                about,
                tried,
            )
        )

    def place(self, errand: Errand) -> None:
        """Tell an errand who asks, and where."""
        errand.headers = self.end_to_end()
        errand.query = self.query
        errand.address = self.address
        errand.path = self.path

    # What the rows of ROUTES do.

    def generate(self, route: Route) -> None:
        """Serve a request for a model, end to end."""
        errand = self.read_errand(route)
        try:
            answer = dispatch(errand, self.server.app)
        except ProxyError as error:
            amp = amp_provider(self.path) and self.server.app.config["ampcode.upstream-url"]
            if not amp or error.kind != "model_not_found":
                raise
            answer = self.ask_amp(errand)  # nobody here has it
        self.send_answer(answer)

    def pass_on(self, route: Route) -> None:
        """Pass a request on to Amp's own server, or send a browser there."""
        amp = self.server.app.config["ampcode"]
        here = is_loopback(self.address.removeprefix("::ffff:"))
        if not amp["upstream-url"]:
            how = "set ampcode.upstream-url"
            return self.send_json(503, {"error": "amp upstream proxy not available", "message": how})
        if self.method == "OPTIONS" or (amp["restrict-management-to-localhost"] and not here):
            message = "Access denied: management routes restricted to localhost"
            return self.send_json(403, {"error": message})
        if route.action == "page":
            target = amp_target(self.path, self.raw_query, self.given_keys())
            return self.send(302, {"location": amp["upstream-url"] + target}, b"")
        self.admit()
        errand = Errand(self.dialect, route.action, self.read_body())
        errand.headers, errand.watcher = self.end_to_end(), self
        return self.send_answer(self.ask_amp(errand))

    def ask_amp(self, errand: Errand) -> Answer:
        given = self.given_keys()
        target = amp_target(self.path, self.raw_query, given)
        try:
            return ask_amp(errand, self.method, target, given, self.server.app)
        except ProxyError as error:
            said = {"error": "amp_upstream_proxy_error", "message": str(error)}
            return json_answer(502, said)

    def complete(self, route: Route) -> None:
        """Serve a request of the old completions API, as a chat."""
        errand = self.read_errand(route)
        errand.headers.pop("accept-encoding", None)  # the answer will be read
        errand.rewrite(chat_of_completion(errand.json))
        errand.edit = completion_text
        self.send_answer(dispatch(errand, self.server.app))

    def assist(self, route: Route) -> None:
        """Serve a gemini-cli that takes us for Code Assist. Source: spec/clients.md 4, config.md 12."""
        if not is_loopback(self.address.removeprefix("::ffff:")):
            raise ProxyError("forbidden", "this route is for clients on the same machine")
        if self.argument in CODE_ASSIST_ANSWERS:
            return self.send_json(200, CODE_ASSIST_ANSWERS[self.argument])
        errand = self.read_errand(route)
        within = errand.json.get("request")
        if not isinstance(within, dict):
            raise ProxyError("invalid_request", "'request' is missing or no object", param="request")
        errand.path_model = str(errand.json.get("model") or within.get("model") or "")
        errand.query = {"alt": "sse"} if errand.path_stream else {}
        errand.rewrite(without(within, frozenset(["model", "session_id"])))
        if errand.action != "count":
            errand.edit = in_envelope
        return self.send_answer(dispatch(errand, self.server.app))

    def read_errand(self, route: Route) -> Errand:
        """Read the request's body, and what its path says."""
        self.dialect = DIALECTS[route.dialect]
        errand = Errand(self.dialect, route.action, self.read_body())
        self.errand = errand
        self.place(errand)
        errand.watcher = self
        if route.action.startswith("/"):
            errand.type, errand.path_stream = self.headers.get("content-type", errand.type), False
            if errand.type.lower().startswith("multipart/form-data"):
                errand.read_form()
        if self.argument:
            model, _, verb = self.argument.rpartition(":")
            if verb not in GEMINI_VERBS:
                known = ", ".join(GEMINI_VERBS)
                raise ProxyError("not_found", f"unknown method {verb!r}; known: {known}")
            errand.action, errand.path_stream = GEMINI_VERBS[verb]
            errand.path_model = model
        if amp_provider(self.path):
            self.read_amp(errand)
        self.sent_at = time.monotonic()
        return errand

    def end_to_end(self) -> Headers:
        """Return the client's headers but for those that it means for us alone (RFC 9110 7.6.1)."""
        wish = self.headers.get("connection", "").lower()
        if wish in {"", "close", "keep-alive"}:
            return self.headers
        words = wish.split(",")
        return without(self.headers, frozenset(word.strip() for word in words))

    def read_amp(self, errand: Errand) -> None:
        """Choose the model for Amp, which wants to hear of the one that it asked for."""
        errand.forced, errand.instead = True, self.server.app.router.offers.mapped(errand.model)
        betas = errand.headers.pop("anthropic-beta", "").replace(" ", "").split(",")
        for beta in betas:
            if beta not in {"", "context-1m-2025-08-07"}:  # it asks everybody for a long context
                add_beta(errand.headers, beta)

    def list_models(self, route: Route) -> None:
        offers, (one, whole) = self.server.app.router.offers, self.list_writers(route)
        names = [*offers.names(), ECHO]
        self.send_json(200, whole([one(known_model(offers, name)) for name in names]))

    def show_model(self, route: Route) -> None:
        offers, name = self.server.app.router.offers, self.argument
        names = [*offers.names(), ECHO]
        if name not in names:
            close = ", ".join(map(repr, nearest_names(name, names, 3)))
            hint = f"; nearest: {close}" if close else ""
            raise ProxyError("model_not_found", f"no model {name!r}{hint}")
        self.send_json(200, self.list_writers(route)[0](known_model(offers, name)))

    def list_writers(self, route: Route) -> tuple[Callable[[Model], Json], Callable[[list[Json]], Json]]:
        """Return the shape of models that this client reads, and of their list.

        Its headers tell, or Amp's path.
        """
        amp, agent = amp_provider(self.path), self.headers.get("user-agent", "")
        claude = "anthropic-version" in self.headers or agent.startswith("claude-cli")
        if amp:
            return MODEL_SHAPES[AMP_SHAPES.get(amp, "chat")]
        if route.dialect == "gemini" or "x-goog-api-key" in self.headers:
            return MODEL_SHAPES["gemini"]
        return MODEL_SHAPES["claude" if claude else "chat"]

    def show_health(self, route: Route) -> None:
        self.send_json(200, {"status": "ok"})

    def show_root(self, route: Route) -> None:
        endpoints = sorted({f"{row.method} {row.path}" for row in ROUTE_ROWS if row.admit})
        self.send_json(200, {"message": "cliproxy", "version": __version__, "endpoints": endpoints})

    def show_options(self, route: Route) -> None:
        headers = {"allow": "GET, HEAD, POST, OPTIONS"}
        if self.allowed_origin:
            headers["access-control-allow-methods"] = headers["allow"]
            headers["access-control-allow-headers"] = self.headers.get("access-control-request-headers", "*")
            headers["access-control-max-age"] = "600"
        self.send(204, headers, b"")

    def upgrade(self, route: Route) -> None:
        """Go on as a WebSocket until the client leaves, if the owner lets it."""
        asked = self.headers.get("upgrade", "").lower() == "websocket"
        key, edition = (self.headers.get(f"sec-websocket-{name}", "") for name in ("key", "version"))
        if not (asked and key and edition == "13" and self.server.app.config["ws"]):
            ours = self.server.app.config["ws"]
            why = "send a WebSocket handshake" if ours else "no WebSocket here"
            raise ProxyError("upgrade_required", f"{why}; or POST to the same path")
        lines = {"connection": "Upgrade", "upgrade": "websocket"}
        lines["sec-websocket-accept"] = accept_of(key)
        self.write(self.make_head(101, lines, ""))
        self.keep = False
        self.status = 101
        self.stage = Stage.UPGRADED
        web, memory = WebSocket(self.wire, self.write, self.idle_socket), Memory()
        try:
            while True:
                self.sent_at = time.monotonic()
                self.server.working.discard(self)  # who only listens keeps no server from stopping
                text = web.receive()
                self.server.working.add(self)
                self.serve_message(web, memory, text)
        except SocketClosed as closed:
            if closed.code != 1006:
                web.close(closed.code)

    def idle_socket(self) -> None:
        """Wait for a message, or for the rest of one."""
        silent = time.monotonic() - self.sent_at
        if self.server.stopping or silent >= IDLE_SOCKET:
            raise SocketClosed(1001)

    def serve_message(self, web: WebSocket, memory: Memory, text: bytearray) -> None:
        """Answer one request with a message for each event."""
        errand = self.errand = Errand(self.dialect, "generate", text)
        self.place(errand)
        errand.watcher = web
        web.meanwhile = partial(self.send_early_messages, web, errand)
        self.error = None
        self.status = 101
        output: list[Json] = []
        lane: Json = {}  # which of several conversations in one connection it is
        begun = time.monotonic()
        try:
            lane = filled(stream_id=errand.json.get("stream_id"))
            warm, body = errand.json.get("generate") is False, memory.unfold(errand.json)
            errand.rewrite(body)
            for event in warmed_up(errand, body) if warm else self.events_of(errand):
                if event.get("type") == "response.output_item.done" and isinstance(event.get("item"), dict):
                    output.append(event["item"])
                elif event.get("type") in {"response.completed", "response.incomplete"}:
                    memory.keep(body, event.get("response"), output)
                web.send(dumps_text({**event, **lane}).encode("utf-8", "replace"))
        except ProxyError as error:
            self.error = self.server.app.make_discreet(error)
            web.send(dumps_text({**error_message(error), **lane}).encode("utf-8", "replace"))
        except (SocketClosed, OSError):
            self.status = 499
            raise
        finally:
            self.log_request(begun)

    def send_early_messages(self, web: WebSocket, errand: Errand) -> None:
        """Send what is held back of an answer, if that has been long enough."""
        if errand.opening and not errand.opening.sent and errand.opening.due():
            for event in sse_read(errand.opening.send()):
                web.send(dumps_text(event).encode("utf-8", "replace"))

    def events_of(self, errand: Errand) -> Iterator[Json]:
        """Ask, and yield the events of the answer as they come."""
        with contextlib.closing(dispatch(errand, self.server.app).pieces) as pieces:
            yield from sse_read(pieces)

    def manage(self, route: Route) -> None:
        """Serve the management API; what it refuses is told in its own form."""
        desk = self.server.desk
        if not desk.guard.exists:
            raise no_route(self.method, self.path, self.path)
        headers = {**VERSION_HEADERS, **desk.cors(self.headers)}
        if self.method == "OPTIONS":
            return self.send(204, headers, b"")
        try:
            desk.guard.check(given_key(self.headers), self.address, foreign=self.foreign)
            query = parse_qs(self.raw_query, keep_blank_values=True)
            body = bytes(self.read_body())
            answer = desk.answer(Wish(self.method, self.argument, query, self.headers, body))
        except ProxyError as error:
            answer = complaint_answer(self.server.app.make_discreet(error))
        return self.send(answer.status, {**headers, **answer.headers}, b"".join(answer.pieces))

    def refuse_stored(self, route: Route) -> None:
        message = "no responses are stored here; send store: false and the whole history"
        raise ProxyError("not_implemented", message)


HOST = re.compile(r"(\[[0-9a-f:.]+\]|[\w.-]+)(:\d{1,5})?", re.ASCII)  # RFC 9110 7.2, no user name


@functools.lru_cache(maxsize=64)
def host_of(place: str) -> str:
    """Return the host in a Host header without its port, `?` for what is none."""
    found = HOST.fullmatch(place)
    return found[1] if found else "?"


def is_page(origin: str) -> bool:
    """Tell whether an Origin is that of a web page; editors have others."""
    return origin.startswith(("http://", "https://"))


class Route(NamedTuple):
    """One public route. `path` may end in `*`: the rest becomes the visit's argument."""

    method: str
    path: str
    handle: Callable[[Visit, Route], None]
    dialect: str = ""
    action: str = "generate"
    admit: bool = True  # does it want a client key?

    @property
    def counts(self) -> bool:
        """Tell whether it is for a model: then the statistics want to hear of it."""
        return self.method == "POST" and bool(self.dialect)


# fmt: off
CODE_ASSIST_ANSWERS: dict[str, Json] = {  # what gemini-cli asks before it talks: of a user who is known, without limits
    "loadCodeAssist": {"currentTier": {"id": "standard-tier", "name": "cliproxy"}, "cloudaicompanionProject": "cliproxy"},
    "onboardUser": {"name": "operations/cliproxy", "done": True, "response": {"cloudaicompanionProject": {"id": "cliproxy"}}},
    "retrieveUserQuota": {"buckets": [{"modelId": "gemini-3-pro-preview"}]},  # else it asks for 2.5 in place of any preview
    "listExperiments": {"experimentIds": [], "flags": []},
}
ROUTE_ROWS = (
    Route("POST", "/v1/messages",               Visit.generate,       "claude"),
    Route("POST", "/v1/messages/count_tokens",  Visit.generate,       "claude", "count"),
    Route("POST", "/v1/chat/completions",       Visit.generate,       "chat"),
    Route("POST", "/v1/completions",            Visit.complete,       "chat"),
    Route("POST", "/v1/responses",              Visit.generate,       "responses"),
    Route("POST", "/v1/responses/compact",      Visit.generate,       "responses", "compact"),
    Route("POST", "/v1/responses/input_tokens", Visit.generate,       "responses", "count"),
    Route("POST", "/v1/embeddings",             Visit.generate,       "chat", "/embeddings"),
    Route("POST", "/v1/images/generations",     Visit.generate,       "chat", "/images/generations"),
    Route("POST", "/v1/images/edits",           Visit.generate,       "chat", "/images/edits"),
    Route("POST", "/v1/images/variations",      Visit.generate,       "chat", "/images/variations"),
    Route("POST", "/v1/audio/speech",           Visit.generate,       "chat", "/audio/speech"),
    Route("POST", "/v1/audio/transcriptions",   Visit.generate,       "chat", "/audio/transcriptions"),
    Route("POST", "/v1/audio/translations",     Visit.generate,       "chat", "/audio/translations"),
    Route("GET",  "/v1/responses",              Visit.upgrade,        "responses"),
    Route("GET",  "/v1/responses/*",            Visit.refuse_stored,  "responses"),
    Route("GET",  "/v1/models",                 Visit.list_models),
    Route("GET",  "/v1/models/*",               Visit.show_model),
    Route("POST", "/v1/models/*",               Visit.generate,       "gemini"),
    Route("GET",  "/v1beta/models",             Visit.list_models,    "gemini"),
    Route("GET",  "/v1beta/models/*",           Visit.show_model,     "gemini"),
    Route("POST", "/v1beta/models/*",           Visit.generate,       "gemini"),
    Route("POST", "/v1internal:*",              Visit.assist,         "gemini"),
    Route("GET",  "/health",                    Visit.show_health,    admit=False),
    Route("GET",  "/healthz",                   Visit.show_health,    admit=False),
    Route("GET",  "/",                          Visit.show_root,      admit=False),
)
# fmt: on
ROUTES = {(row.method, row.path): row for row in ROUTE_ROWS}
OPEN_ROUTES = [row for row in ROUTE_ROWS if row.path.endswith("*")]
OPTIONS = Route("OPTIONS", "*", Visit.show_options, admit=False)
MANAGE = Route("*", "*", Visit.manage, admit=False)
FOR_ALL_PAGES = (
    MANAGEMENT_PATH,
)  # what pages of other origins may ask for: what protects it is not theirs to give
AMP_ROUTES = {kind: Route("*", "*", Visit.pass_on, action=kind, admit=False) for kind in ("call", "page")}


VERSIONS = frozenset({"v1", "v1beta"})
ROOTS = VERSIONS | {"v1internal", "health", "healthz"}  # first words of our paths


def tidy_path(path: str) -> str:
    """Return the path that a client meant: with /v1 once, without doubled or final slashes.

    Clients append /v1 to base URLs that have one already, or do not (spec/clients.md). Amp puts
    a provider in front, and Google's name in the middle (spec/providers.md 15.1).
    """
    words = [word for word in path.split("/") if word]
    if amp_provider(path):
        del words[:3]
        if words[:1] == ["v1beta1"] and "models" in words:
            words[: words.index("models")] = ["v1beta"]
    doubled = 0
    while {*words[doubled : doubled + 2]} <= VERSIONS and doubled + 1 < len(words):
        doubled += 1
    del words[:doubled]
    if words and words[0].partition(":")[0] not in ROOTS:
        words.insert(0, "v1")
    return "/" + "/".join(words)


def find_route(method: str, path: str) -> tuple[Route, str]:
    """Return the row for a request and what its `*` stands for.

    Raises ProxyError: not_found, naming the likely right path, or method_not_allowed.
    """
    route = ROUTES.get((method, path))
    if route:
        return route, ""
    if path.startswith(f"{MANAGEMENT_PATH}/"):
        return MANAGE, path[len(MANAGEMENT_PATH) :]
    if kind := amp_kind(path):
        return AMP_ROUTES[kind], ""
    if method == "OPTIONS":
        return OPTIONS, ""
    method = "GET" if method == "HEAD" else method
    tidy = tidy_path(path)
    route = ROUTES.get((method, tidy))
    if route:
        return route, ""
    for row in OPEN_ROUTES:
        if row.method == method and tidy.startswith(row.path[:-1]):
            return row, unquote(tidy[len(row.path) - 1 :]).removeprefix("models/")
    raise no_route(method, path, tidy)


def no_route(method: str, path: str, tidy: str) -> ProxyError:
    """Return the error for a request that no row serves."""
    allowed = [row.method for row in ROUTE_ROWS if row.path == tidy]
    if allowed:
        return ProxyError("method_not_allowed", f"{tidy} takes {', '.join(allowed)}, not {method}")
    close = nearest_names(tidy, [row.path for row in ROUTE_ROWS], 1, 0.8)
    hint = f"did you mean {close[0]}?" if close else ""
    for start, what in FOREIGN_PATHS.items():
        if path == start or path.startswith(f"{start}/"):
            hint = what
    return ProxyError("not_found", f"no route for {method} {path}{hint and '; '}{hint}")


FOREIGN_PATHS = {  # of programs that clients take this one for -> what to do about it
    "/api/tags": "that is Ollama's; GET /v1/models lists the models",
    "/api/chat": "that is Ollama's; POST /v1/chat/completions",
    "/api/generate": "that is Ollama's; POST /v1/chat/completions",
    "/v1/generate": "POST /v1beta/models/MODEL:generateContent",
    "/model/info": "that is LiteLLM's; GET /v1/models lists the models",
    "/key/generate": "that is LiteLLM's; keys of clients are the config's api-keys",
    "/v0/management": "there is no management API without remote-management.secret-key",
    "/metrics": "there are no metrics here",
    "/favicon.ico": "there are no pages here",
}


def dialect_of(path: str, headers: Headers) -> Dialect:
    """Return the dialect in which a client of this path wants to hear of errors."""
    if "/messages" in path or "anthropic-version" in headers:
        return DIALECTS["claude"]
    words = ("/v1beta", "/v1internal", "Content", "countTokens")
    if "x-goog-api-key" in headers or any(word in path for word in words):
        return DIALECTS["gemini"]
    return DIALECTS["responses" if "/responses" in path else "chat"]


class Handler(socketserver.BaseRequestHandler):
    """One client connection, on its own thread: a Visit after the other."""

    server: Server

    def handle(self) -> None:
        try:
            sock = self.server.secure(self.request)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.closing(Wire(sock, CLIENT_TICK)) as wire:
                while Visit(self.server, wire, self.client_address[0]).serve():
                    pass
        except (ClientGone, OSError):
            pass  # nobody is left to tell


class Discretion(logging.Filter):
    """Masks in all that is logged what an app must keep to itself."""

    def __init__(self, app: App) -> None:
        super().__init__()
        self._app = app

    def filter(self, record: logging.LogRecord) -> bool:
        secrets = self._app.secrets
        record.msg = hide(record.getMessage(), secrets)
        record.args = None
        if record.exc_info:
            record.exc_text = hide(logging.Formatter().formatException(record.exc_info), secrets)
        return True


class Server(ThreadingHTTPServer):
    """The listening socket, and what every request shares."""

    allow_reuse_address = sys.platform != "win32"  # there it would let two servers share a port
    request_queue_size = 1_024
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], app: App, password: str) -> None:
        self._tls = server_tls(app.config)
        self._discretion = Discretion(app)
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, Handler)
        self.app, self.stopping = app, False
        self.desk = Desk(app, password)
        self.host, self.port = address[0], int(self.server_address[1])
        self.loopback = is_loopback(address[0])
        self._never = threading.Event()  # to wait on
        self.working: set[Visit] = set()  # those that serve a request; one step changes it
        log.addFilter(self._discretion)

    def server_bind(self) -> None:
        """Bind without asking the network for this machine's name, as HTTPServer would."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "localhost", int(self.server_address[1])

    def server_close(self) -> None:
        super().server_close()
        log.removeFilter(self._discretion)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection; if that fails for want of a file descriptor, do not try at once."""
        try:
            return super().get_request()
        except OSError as exc:
            if exc.errno in {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}:
                log.warning("cannot accept a connection: %s; raise the limit (ulimit -n)", exc)
                self.app.pool.prune(0.0)
                self._never.wait(ACCEPT_PAUSE)
            raise

    def secure(self, sock: socket.socket) -> socket.socket:
        """Shake hands on the connection's own thread, if this server speaks TLS."""
        if self._tls is None:
            return sock
        sock.settimeout(CONNECT_TIMEOUT)
        wrapped: socket.socket = self._tls.wrap_socket(sock, server_side=True)
        return wrapped

    def stop(self, grace: float = GRACE) -> bool:
        """Stop accepting, let running answers finish; False if some did not in `grace` seconds."""
        self.stopping = True
        self.shutdown()
        self.server_close()
        end = time.monotonic() + grace
        while self.working and time.monotonic() < end:
            self._never.wait(STOP_TICK)
        return not self.working

    def handle_error(self, *_: Any) -> None:
        log.error("bug in a connection's thread: %r", sys.exc_info()[1])


def server_tls(config: Config) -> Any:
    """Return the context for serving TLS, None if the config does not ask for it."""
    if not config["tls.enable"]:
        return None
    import ssl  # noqa: PLC0415 -- slow

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for key in ("tls.cert", "tls.key"):
        if not is_there(Path(config[key])):
            raise ProxyError("invalid_request", f"{key}: there is no file {config[key]!r}", param=key)
    try:
        context.load_cert_chain(config["tls.cert"], config["tls.key"])
    except (OSError, TypeError) as exc:
        raise ProxyError("invalid_request", f"tls.cert and tls.key: {exc}") from exc
    return context


def make_server(app: App, password: str = "") -> Server:
    """Bind and listen as the config says; port 0 picks a free one. Raises ProxyError.

    `password` opens the management API for this machine, beside the config's key.
    """
    host, port = app.config["host"], app.config["port"]
    check_exposure(app.config)
    try:
        return Server((host, port), app, password)
    except OSError as exc:
        who = who_listens(host, port, app.config) if exc.errno == errno.EADDRINUSE else ""
        why = who or exc.strerror or str(exc)
        message = f"cannot listen on {host}:{port}: {why}; set another `port` in the config, or --port"
        raise ProxyError("invalid_request", message) from exc


def server_url(host: str, port: int, config: Config) -> str:
    """Return how a client on this machine addresses the server."""
    here = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 -- who listens on all
    return f"{'https' if config['tls.enable'] else 'http'}://{f'[{here}]' if ':' in here else here}:{port}"


def greeting_at(url: str, seconds: float = 1.0) -> Json | None:
    """Return what a server says of itself, {} if it says nothing that we know; None if none listens."""
    try:
        return read_object(fetch("GET", f"{url}/", {}, proxy="direct", timeout=seconds).body)
    except ProxyError as error:
        return {} if error.sent else None


def who_listens(host: str, port: int, config: Config) -> str:
    """Say who has a port, as far as that can be found out."""
    holder = process_at(port)
    there = f" ({holder})" if holder else ""
    said = greeting_at(server_url(host, port, config)) or {}
    if said.get("message") == "cliproxy":
        return f"cliproxy {said.get('version')} is already running there{there}"
    return f"another program{there} listens there already"


def process_at(port: int) -> str:
    """Return the name and number of the process that listens on a port; empty if Linux does not tell."""
    with contextlib.suppress(OSError, ValueError, IndexError):  # not Linux, or it is gone meanwhile
        links = set(listeners_at(port))
        held = (file for file in Path("/proc").glob("[0-9]*/fd/*") if links and link_of(file) in links)
        for file in held:
            process = file.parents[1]
            return f"{(process / 'comm').read_text(encoding='utf-8').strip()}, process {process.name}"
    return ""


def listeners_at(port: int) -> Iterator[str]:
    """Yield the sockets that listen on a port, as their links in /proc."""
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text(encoding="ascii").splitlines()[1:]:
            words = line.split()
            if words[1].endswith(f":{port:04X}") and words[3] == "0A":  # listens
                yield f"socket:[{words[9]}]"


def link_of(file: Path) -> str:
    """Return where a link points to; empty if we may not know."""
    try:
        return os.readlink(file)  # noqa: PTH115 -- a hundred times faster than Path's
    except OSError:
        return ""


########################################################################################
# 40. OUTPUT
########################################################################################
# What people see of the commands: lines, tables that fit into their terminal, colours for states
# where there is one, and this program by the name under which they started it: texts say `cliproxy`.


def started_as() -> str:
    """Return what to type to start this program, as it was started."""
    script = Path(sys.argv[0] or "cliproxy")
    if re.search(r"[\\/]archive-v0[\\/]", str(script)):
        return "uvx cliproxy"
    if script.name != Path(__file__).name:
        return "cliproxy"
    path = str(script)
    return f"{Path(sys.executable).stem or 'python'} {dumps_text(path) if ' ' in path else path}"


def in_their_words(text: str) -> str:
    """Return a text whose commands can be typed as they stand there."""
    return re.sub(r"`cliproxy(?=[ `])", lambda _: f"`{started_as()}", text) if "`cliproxy" in text else text


def say(text: str = "") -> None:
    """Tell the user, on stdout."""
    sys.stdout.write(in_their_words(text) + "\n")
    sys.stdout.flush()


def complain(text: str) -> None:
    """Tell the user what went wrong, in one line on stderr."""
    sys.stderr.write(f"cliproxy: {in_their_words(one_line(text))}\n")


class OneLine(logging.Formatter):
    """Gives each message one line, whatever stands in the names that it holds."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = one_line(in_their_words(record.message))
        return super().formatMessage(record)


COLOURS = {"good": "32", "warn": "33", "bad": "31", "faint": "2"}
NARROWEST = 8  # columns of a table are made no narrower


def is_coloured() -> bool:
    """Tell whether colours are of use. Source: no-color.org, force-color.org."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR", "0") not in {"", "0"}:
        return True
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def paint(text: str, colour: str) -> str:
    """Return a text in one of COLOURS; as it is if there is none."""
    code = COLOURS.get(colour)
    return f"\x1b[{code}m{text}\x1b[0m" if code and is_coloured() else text


def screen_width() -> int:
    """Return how many characters fit into a line; 0 if stdout is no terminal."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.get_terminal_size(sys.stdout.fileno()).columns
    return 0


class Column(NamedTuple):
    """What a table shows of each row."""

    title: str
    show: Callable[[Any], str]
    colour: Callable[[Any], str] = lambda row: ""


def narrowed(widths: list[int], room: int) -> list[int]:
    """Return widths that fit into `room` with two spaces between them, the widest made narrower; 0: all fit."""
    widths = list(widths)
    while room and sum(widths) + 2 * (len(widths) - 1) > room and max(widths) > NARROWEST:
        widths[widths.index(max(widths))] -= 1
    return widths


def shortened(text: str, width: int) -> str:
    dots = "…" if (sys.stdout.encoding or "").lower().startswith("utf") else "~"
    return text if len(text) <= width else text[: max(0, width - 1)] + dots


def table_lines(columns: Sequence[Column], rows: Sequence[Any]) -> Iterator[str]:
    """Yield the title of a table, and a line for each of its rows."""
    cells = [[column.title for column in columns]]
    cells += [[one_line(column.show(row)) for column in columns] for row in rows]
    widths = narrowed([max(map(len, column)) for column in zip(*cells)], screen_width())
    for row, line in zip([None, *rows], cells):
        colours = ["faint" if row is None else column.colour(row) for column in columns]
        short = list(map(shortened, line, widths))
        blanks = [" " * (width - len(text) + 2) for width, text in zip(widths, short)]
        blanks[-1] = ""
        painted = map(paint, short, colours)
        yield "".join(text + blank for text, blank in zip(painted, blanks)).rstrip()


########################################################################################
# 41. SERVICE
########################################################################################
# Keeping the proxy running: one row for each kind of system says where its file lies, what stands
# in it, and which commands carry out an act. Nothing is run by a shell, and every command has a
# deadline. Source: spec/setup.md 4.


class Plan(NamedTuple):
    """What is to run, and for whom."""

    command: tuple[str, ...]  # python, this file, serve, and its options
    home: Path
    user: str
    system: bool = False  # for the whole machine, else for one user


class Manager(NamedTuple):
    """What keeps programs running on one kind of system."""

    path: Callable[[Plan], Path]
    text: Callable[[Plan], bytes]
    acts: Mapping[
        str, tuple[str, ...]
    ]  # act -> command lines; {file}, {user}, {uid} and, of systemd, {who} are filled in
    hint: str = ""


SERVICE_NAME = "cliproxy"
LAUNCHD_LABEL = "io.cliproxy"
CONFIG_EXIT = (
    78  # status of a start with a config that is none: no use to start again (EX_CONFIG of sysexits.h)
)
ACT_TIME = 60.0  # seconds that a command of a service manager may take

SYSTEMD_UNIT = """\
[Unit]
Description=cliproxy, a local LLM proxy
{after}StartLimitIntervalSec=60
StartLimitBurst=5

[Service]
Type=exec
ExecStart={command}
ExecReload=/bin/kill -HUP $MAINPID
Restart=on-failure
RestartSec=2
RestartPreventExitStatus={config_exit}
EnvironmentFile=-{home}/.config/cliproxy/env
Environment=PYTHONDONTWRITEBYTECODE=1
UMask=0077
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictNamespaces=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
SystemCallArchitectures=native
LimitNOFILE=65536
{hardened}
[Install]
WantedBy={target}
"""
SYSTEMD_ALONE = """\
User={user}
ProtectSystem=strict
ProtectHome=read-only
ReadWritePaths={home}/.cli-proxy-api
PrivateTmp=yes
PrivateDevices=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
CapabilityBoundingSet=
SystemCallFilter=@system-service
"""


def systemd_quoted(word: str) -> str:
    """Write a word of a command line as systemd reads it."""
    word = word.replace("%", "%%").replace("$", "$$")
    return dumps_text(word) if re.search(r"[\s\"'\\;]", word) else word


def systemd_unit(plan: Plan) -> bytes:
    home = systemd_quoted(str(plan.home))
    text = SYSTEMD_UNIT.format(
        after="Wants=network-online.target\nAfter=network-online.target\n" if plan.system else "",
        command=" ".join(map(systemd_quoted, plan.command)),
        config_exit=CONFIG_EXIT,
        home=home,
        hardened=SYSTEMD_ALONE.format(user=plan.user, home=home) if plan.system else "",
        target="multi-user.target" if plan.system else "default.target",
    )
    return text.encode()


def systemd_path(plan: Plan) -> Path:
    folder = Path("/etc/systemd/system") if plan.system else plan.home / ".config" / "systemd" / "user"
    return folder / f"{SERVICE_NAME}.service"


def launchd_plist(plan: Plan) -> bytes:
    import plistlib  # noqa: PLC0415 -- only here

    log_file = str(plan.home / "Library" / "Logs" / "cliproxy.log")
    entries = {
        "Label": LAUNCHD_LABEL,
        "ProgramArguments": list(plan.command),
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": 5,
        "ProcessType": "Interactive",
        "SoftResourceLimits": {"NumberOfFiles": 4_096},
        "Umask": 0o077,
        "StandardOutPath": log_file,
        "StandardErrorPath": log_file,
    }
    return plistlib.dumps({**entries, **({"UserName": plan.user} if plan.system else {})})


def launchd_path(plan: Plan) -> Path:
    folder = Path("/Library/LaunchDaemons") if plan.system else plan.home / "Library" / "LaunchAgents"
    return folder / f"{LAUNCHD_LABEL}.plist"


WINDOWS_TASK = """\
<?xml version="1.0" encoding="UTF-16"?>
<Task version="1.2" xmlns="http://schemas.microsoft.com/windows/2004/02/mit/task">
<Triggers><LogonTrigger><Enabled>true</Enabled><UserId>{user}</UserId></LogonTrigger></Triggers>
<Principals><Principal id="Author"><UserId>{user}</UserId><LogonType>InteractiveToken</LogonType><RunLevel>LeastPrivilege</RunLevel></Principal></Principals>
<Settings><MultipleInstancesPolicy>IgnoreNew</MultipleInstancesPolicy><DisallowStartIfOnBatteries>false</DisallowStartIfOnBatteries><StopIfGoingOnBatteries>false</StopIfGoingOnBatteries><StartWhenAvailable>true</StartWhenAvailable><Hidden>true</Hidden><ExecutionTimeLimit>PT0S</ExecutionTimeLimit><RestartOnFailure><Interval>PT1M</Interval><Count>999</Count></RestartOnFailure></Settings>
<Actions Context="Author"><Exec><Command>{program}</Command><Arguments>{arguments}</Arguments><WorkingDirectory>{home}</WorkingDirectory></Exec></Actions>
</Task>
"""


def windows_task(plan: Plan) -> bytes:
    from subprocess import list2cmdline  # noqa: PLC0415 -- only here
    from xml.sax.saxutils import escape  # noqa: PLC0415

    program, *arguments = plan.command
    words = {
        "user": plan.user,
        "program": program,
        "arguments": list2cmdline(arguments),
        "home": str(plan.home),
    }
    return WINDOWS_TASK.format(**{key: escape(word) for key, word in words.items()}).encode("utf-16")


def windows_path(plan: Plan) -> Path:
    return plan.home / "AppData" / "Local" / "cliproxy" / "cliproxy.xml"


MANAGERS = {  # sys.platform -> what keeps programs running there
    "linux": Manager(systemd_path, systemd_unit, {
        "install": ("systemctl {who} daemon-reload", "systemctl {who} enable --now cliproxy"),
        "uninstall": ("systemctl {who} disable --now cliproxy",),
        "removed": ("systemctl {who} daemon-reload",),
        "start": ("systemctl {who} start cliproxy",),
        "stop": ("systemctl {who} stop cliproxy",),
        "restart": ("systemctl {who} restart cliproxy",),
        "status": ("systemctl {who} show cliproxy -p ActiveState,SubState,MainPID,NRestarts,ExecMainStatus,ActiveEnterTimestamp",),
        "logs": ("journalctl {who} -u cliproxy -n 100 --no-pager",),
    }, hint="so that it also runs while you are logged out: loginctl enable-linger {user}"),
    "darwin": Manager(launchd_path, launchd_plist, {
        "install": ("launchctl bootstrap {domain} {file}", "launchctl enable {domain}/io.cliproxy"),
        "uninstall": ("launchctl bootout {domain}/io.cliproxy",),
        "start": ("launchctl kickstart {domain}/io.cliproxy",),
        "stop": ("launchctl kill SIGTERM {domain}/io.cliproxy",),
        "restart": ("launchctl kickstart -k {domain}/io.cliproxy",),
        "status": ("launchctl print {domain}/io.cliproxy",),
        "logs": ("tail -n 100 {home}/Library/Logs/cliproxy.log",),
    }, hint="macOS shows it as an item of Python's that was added in the background"),
    "win32": Manager(windows_path, windows_task, {
        "install": ("schtasks /Create /TN cliproxy /XML {file} /F", "schtasks /Run /TN cliproxy"),
        "uninstall": ("schtasks /Delete /TN cliproxy /F",),
        "start": ("schtasks /Run /TN cliproxy",),
        "stop": ("schtasks /End /TN cliproxy",),
        "restart": ("schtasks /End /TN cliproxy", "schtasks /Run /TN cliproxy"),
        "status": ("schtasks /Query /TN cliproxy /V /FO LIST",),
        "logs": (),
    }, hint="set `logging-to-file: true`: a task has no console"),
}  # fmt: skip
ACTS = ("install", "uninstall", "start", "stop", "restart", "status", "logs")

DOCKERFILE = """\
# Dockerfile
FROM python:3.13-slim
RUN useradd --create-home --uid 10001 app && install -d -o app -m 700 /home/app/.cli-proxy-api
COPY cliproxy.py /app/cliproxy.py
USER app
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
VOLUME /home/app/.cli-proxy-api
EXPOSE 8317
HEALTHCHECK --interval=30s --timeout=3s --start-period=5s CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8317/health')"]
ENTRYPOINT ["python", "/app/cliproxy.py"]
CMD ["serve", "--host", "0.0.0.0"]

# compose.yaml: published on this machine only; api-keys in the config are compulsory, since the container listens on all of its addresses
services:
  cliproxy:
    build: .
    restart: unless-stopped
    ports: ["127.0.0.1:8317:8317"]
    volumes: ["cliproxy:/home/app/.cli-proxy-api"]
    environment: [ANTHROPIC_API_KEY, OPENAI_API_KEY, GEMINI_API_KEY]
    read_only: true
    tmpfs: [/tmp]
    cap_drop: [ALL]
    security_opt: ["no-new-privileges:true"]
    init: true
volumes: {cliproxy: {}}

# accounts: docker compose exec cliproxy python /app/cliproxy.py login codex --no-browser
"""


def service_command(config: str | None) -> tuple[str, ...]:
    """Return what a service runs: this Python, and this file where an upgrade keeps it.

    Raises ProxyError where the file lies in a cache, as after `uvx cliproxy`.
    """
    script = os.path.realpath(__file__)
    if re.search(r"[\\/](?:\.cache|uv[\\/]cache|archive-v0)[\\/]", script):
        message = f"{script} lies in a cache, which may be emptied: copy cliproxy.py to a place of its own, and run it from there"
        raise ProxyError("invalid_request", message)
    python = re.sub(
        r"/Cellar/(python@[\d.]+)/[^/]+/", r"/opt/\1/", sys.executable
    )  # Homebrew's, which outlives an upgrade
    if sys.platform == "win32":
        python = re.sub(r"python\.exe$", "pythonw.exe", python)
    options = ("--config", str(Path(config).expanduser().absolute())) if config else ()
    return (python, "-u", script, "serve", *options)


def act_commands(manager: Manager, act: str, plan: Plan) -> list[list[str]]:
    """Return the commands that carry out an act, each as its words."""
    uid = os.getuid() if hasattr(os, "getuid") else 0
    words = {
        "{who}": "" if plan.system else "--user",
        "{domain}": "system" if plan.system else f"gui/{uid}",
        "{file}": str(manager.path(plan)),
        "{home}": str(plan.home),
        "{user}": plan.user,
    }
    lines = []
    for line in manager.acts.get(act, ()):
        filled_in = [
            reduce(lambda word, key: word.replace(key, words[key]), words, word) for word in line.split()
        ]
        lines.append([word for word in filled_in if word])
    return lines


def run_act(manager: Manager, act: str, plan: Plan, tell: Callable[[str], None]) -> int:
    """Carry out an act; return the status of the last command. Raises ProxyError for one that cannot be run."""
    import subprocess  # noqa: PLC0415 -- only here

    status = 0
    for words in act_commands(manager, act, plan):
        try:
            status = subprocess.run(words, check=False, timeout=ACT_TIME, stdin=subprocess.DEVNULL).returncode  # noqa: S603
        except FileNotFoundError as exc:
            message = (
                f"there is no {words[0]} here: see `cliproxy service install --print`, or use cron's @reboot"
            )
            raise ProxyError("internal", message) from exc
        except subprocess.TimeoutExpired as exc:
            raise ProxyError("internal", f"{words[0]} did not end within {ACT_TIME:.0f} s") from exc
        if status:
            tell(f"`{' '.join(words)}` ended with status {status}")
            break
    return status


def show_act(manager: Manager, act: str, plan: Plan) -> str:
    """Return what an act would write and run."""
    lines = [" ".join(words) for words in act_commands(manager, act, plan)]
    if act == "install":
        text = manager.text(plan)
        lines.insert(0, text.decode("utf-16" if text.startswith(codecs.BOM_UTF16) else "utf-8"))
        lines.insert(0, f"# {manager.path(plan)}")
    return "\n".join(lines)


def manage_service(act: str, plan: Plan, tell: Callable[[str], None]) -> int:
    """Install, remove, start, stop or look at the service; return an exit status. Raises ProxyError."""
    manager = manager_here(plan)
    path = manager.path(plan)
    if act == "install":
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, manager.text(plan))
        tell(f"wrote {path}")
    elif not path.exists():
        raise ProxyError("not_found", f"{path} is not there: `cliproxy service install` writes it")
    status = run_act(manager, act, plan, tell)
    if act == "uninstall":
        path.unlink()
        tell(f"removed {path}")
        run_act(manager, "removed", plan, tell)
    if act == "install" and not status:
        tell(manager.hint.format(user=plan.user))
    return status


def manager_here(plan: Plan) -> Manager:
    """Return the manager of this system. Raises ProxyError where none is known."""
    manager = MANAGERS.get(sys.platform)
    if manager is None:
        message = (
            f"no service manager of {sys.platform} is known here: have it run `{' '.join(plan.command)}`"
        )
        raise ProxyError("not_implemented", message)
    return manager


# -- completion --------------------------------------------------------------------------


COMPLETIONS = {  # shell -> what stands around the lines of the commands, and the line of one
    "bash": (
        """\
_cliproxy() {{
    local words="{commands}"
    case "${{COMP_WORDS[1]}}" in
{lines}
    esac
    [ "$COMP_CWORD" -eq 1 ] && words="{commands}"
    COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _cliproxy cliproxy""",
        '        {command}) words="{words}" ;;',
    ),
    "zsh": (
        """\
#compdef cliproxy
_cliproxy() {{
    local -a taken
    taken=({commands})
    if (( CURRENT > 2 )); then
        case "${{words[2]}}" in
{lines}
        esac
    fi
    compadd -a taken
    _files
}}
compdef _cliproxy cliproxy""",
        "            {command}) taken=({words}) ;;",
    ),
    "fish": (
        """\
complete -c cliproxy -f -n __fish_use_subcommand -a "{commands}"
{lines}""",
        'complete -c cliproxy -n "__fish_seen_subcommand_from {command}" -a "{words}"',
    ),
    "powershell": (
        """\
Register-ArgumentCompleter -Native -CommandName cliproxy -ScriptBlock {{
    param($word, $ast, $position)
    $words = "{commands}"
    switch ($ast.CommandElements[1].Value) {{
{lines}
    }}
    $words -split " " | Where-Object {{ $_ -like "$word*" }}
}}""",
        '        "{command}" {{ $words = "{words}" }}',
    ),
}


def completion(shell: str, words: Mapping[str, Sequence[str]]) -> str:
    """Return the script that completes commands and what each takes. `words`: command -> its words."""
    frame, line = COMPLETIONS[shell]
    lines = (line.format(command=command, words=" ".join(taken)) for command, taken in words.items())
    return frame.format(commands=" ".join(words), lines="\n".join(lines))


########################################################################################
# 42. COMMANDS
########################################################################################
# argparse rows. Whatever goes wrong is one sentence on stderr and exit status 1; usage errors are 2.


def make_app(options: argparse.Namespace) -> App:
    """Load the config that the options name and the credential files, reporting oddities."""
    given = {key: getattr(options, key, None) for key in ("host", "port")}
    overrides = {key: value for key, value in given.items() if value is not None}
    source = find_config(options.config)
    config_file = ConfigFile(source.path, overrides, trusted=source.trusted)
    for warning in config_file.config.warnings:
        log.warning("%s", warning)
    return App(config_file, open_store(config_file.config), os.environ)


def settings_of(options: argparse.Namespace) -> Config:
    """Read the settings that the options name, or that are where they may be."""
    source = find_config(options.config)
    return load_config(source.path, trusted=source.trusted)


def open_store(config: Config) -> Store:
    store = Store(Path(config["auth-dir"]), lambda problem: log.warning("%s", problem))
    store.scan()
    return store


def restart_compiled() -> None:
    """Go on in the same process from the compiled module, if this file was run as a script.

    To compile it takes 30 MB that Python does not give back; the compiled module stays beside it.
    """
    file = Path(__file__).resolve()
    plain = file.suffix == ".py" and file.stem.isidentifier()
    if __name__ != "__main__" or os.name != "posix" or sys.dont_write_bytecode or not plain:
        return
    import py_compile  # noqa: PLC0415 -- a script's first start only
    from importlib.util import cache_from_source  # noqa: PLC0415

    cache = Path(cache_from_source(str(file)))
    try:
        if not cache.exists() or cache.stat().st_mtime < file.stat().st_mtime:
            py_compile.compile(str(file), doraise=True)
    except OSError:
        return  # nowhere to keep it: serve as we are
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_DFL); "  # main() takes over
        f"import sys; sys.argv[0] = {sys.argv[0]!r}; sys.path.insert(0, {str(file.parent)!r}); import {file.stem} as c; sys.exit(c.main())"
    )
    os.execv(sys.executable, [sys.executable, "-c", code, *sys.argv[1:]])  # noqa: S606 -- no shell, our own file


ENDING = (signal.SIGINT, signal.SIGTERM)


def listen_for_signals(asked: SimpleQueue[int], stop: threading.Event) -> None:
    """Put what is asked by a signal into a queue; a second one ends the process at once."""
    for number in ENDING:
        signal.signal(number, lambda n, _: os._exit(1) if stop.is_set() else asked.put(n))
    if hasattr(signal, "SIGHUP") and not (sys.stdin and sys.stdin.isatty()):  # else the terminal is gone
        signal.signal(signal.SIGHUP, lambda n, _: asked.put(n))


def poll_until_asked(server: Server, app: App, asked: SimpleQueue[int]) -> None:
    """Take over what changes on disk, every second and at a SIGHUP, until a signal asks to end."""
    number = 0
    while number not in ENDING:
        try:
            app.poll()
            app.ask_for_models()
            server.desk.poll()
        except Exception:  # a thread's top
            log.exception("what changed on disk could not be taken over")
        with contextlib.suppress(Empty):
            number = asked.get(timeout=1.0)


def start_scribe(scribe: Scribe) -> None:
    """Let one thread write all that is said from now on, in its order."""
    root = logging.getLogger()
    scribe.form = root.handlers[0].formatter or scribe.form
    root.handlers = [Queued(scribe.put)]
    threading.Thread(target=scribe.run, daemon=True).start()


def cmd_serve(options: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM, which end the process."""
    restart_compiled()
    try:
        settings_of(options)
    except ProxyError as error:
        complain(str(error))
        return CONFIG_EXIT
    app = make_app(options)
    for remark in remarks(app.config):
        log.warning("%s", remark)
    server = make_server(app)
    stop = threading.Event()
    asked: SimpleQueue[int] = SimpleQueue()  # a signal that sets an Event can wait for itself
    listen_for_signals(asked, stop)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    greet(server, app)
    start_scribe(app.scribe)
    keeper = threading.Thread(target=app.keep_renewed, args=(stop,), daemon=True)
    keeper.start()
    bundle = os.environ.get("SSL_CERT_FILE")
    if bundle and not Path(bundle).is_file():
        log.warning("SSL_CERT_FILE names %r, where no file is: no certificate can be checked with it", bundle)
    if any(account.origin.scheme == "https" for account in app.router.offers.accounts):
        threading.Thread(target=tls_context, daemon=True).start()  # so that no request waits for it
    poll_until_asked(server, app, asked)
    stop.set()
    log.info("stopping; running answers have %.0f s", GRACE)
    finished = server.stop()
    keeper.join(GRACE)  # new tokens must reach the disk
    app.save_state()
    app.scribe.close()
    logging.shutdown()
    sys.stdout.flush()
    # Threads of connections may still run. Python would end under them: 3.13.0 was seen to crash.
    os._exit(0 if finished else 1)


def greet(server: Server, app: App) -> None:
    """Print where the server listens, what it found, and what to do next."""
    url = server_url(server.host, server.port, app.config)
    every = "" if server.host else " (and all other addresses of this machine)"
    say(f"cliproxy {__version__} listens on {url}{every}")
    say(f"config: {app.config.path or 'none, all are defaults; looked for ' + looked_for()}")
    accounts = app.router.offers.accounts
    say(f"credentials: {app.store.folder}" + ("; picked up:" if accounts else ""))
    for account in accounts:
        state = app.router.report(account)["state"]
        shown = paint(state, STATE_COLOURS.get(state, ""))
        say(f"  {one_line(account.name)}: {account.provider.name}, {masked(account.token)}, {shown}")
    if not accounts:
        say("no account yet: log in with `cliproxy login codex` (or another provider),")
        say("  or set ANTHROPIC_API_KEY, OPENAI_API_KEY or GEMINI_API_KEY")
    say("try it without any account: the model 'echo' repeats what you say:")
    say(f"  {curl_line(url, app.config)}")


def looked_for() -> str:
    """Say where a settings file would have been found."""
    folders = ", ".join(dict.fromkeys(str(folder) for folder in home_folders()))
    return f"config or cliproxy .json, .yaml or .yml in {folders} and this folder"


def curl_line(url: str, config: Config) -> str:
    """Return what to type to hear the echo of this server."""
    key = " -H 'Authorization: Bearer YOUR-KEY'" if config["api-keys"] else ""
    body = '{"model":"echo","messages":[{"role":"user","content":"hello"}]}'
    return f"curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} -d '{body}'"


def make_terminal() -> Terminal:
    """Return the terminal that the program runs in, whatever of it there is."""
    screen = (0, 0)
    with contextlib.suppress(OSError, ValueError, AttributeError):
        if (sys.stdout.encoding or "").lower().startswith("utf"):
            size = os.get_terminal_size(sys.stdout.fileno())
            screen = size.columns, size.lines
    try:
        return Terminal(say, sys.stdin.fileno(), screen)
    except (OSError, ValueError, AttributeError):  # there is no stdin
        terminal = Terminal(say, None, screen)
        terminal.closed = True
        return terminal


def cmd_login(options: argparse.Namespace) -> int:
    """Log in at a provider and save the credential."""
    if not options.provider:
        say("which provider? `cliproxy login PROVIDER`, with one of:")
        for row in LOGINS.values():
            say(f"  {row.provider:12} {row.title}")
        return 2
    config = settings_of(options)
    store = open_store(config)
    wanted = Options(
        browser=not options.no_browser,
        device=options.device,
        port=options.oauth_callback_port,
        project=options.project_id,
        source=options.source,
        prefix=options.vertex_import_prefix,
    )
    try:
        credential = login(options.provider, wanted, config, store, make_terminal())
    except KeyboardInterrupt:
        raise ProxyError("caller_timeout", "stopped; nothing was saved") from None
    if state_file(store.folder).exists():
        tell_awake(store.folder, credential.name)
    say(f"saved {credential.path}")
    say("`cliproxy serve` uses it; one that is running does so within a second")
    return 0


def cmd_flags(options: argparse.Namespace) -> int:
    """Do what the flags say: log in, or serve."""
    for flag, provider, device in LOGIN_FLAGS:
        given = getattr(options, flag.replace("-", "_"))
        if given:
            options.provider, options.device = provider, device
            options.source = given if isinstance(given, str) else ""
            return cmd_login(options)
    return cmd_serve(options)


def find_credential(store: Store, name: str) -> Credential:
    """Return the file that is meant by its name, or by a part of that. Raises ProxyError."""
    known = {credential.name: credential for credential in store.credentials()}
    exact = known.get(name) or known.get(f"{name}.json")
    found = [exact] if exact else [known[key] for key in known if name.lower() in key.lower()]
    if len(found) == 1:
        return found[0]
    there = ", ".join(credential.name for credential in found) or ", ".join(known) or "none"
    what = "may be several" if found else "is none of the logins"
    meant = "" if found else slip(name, (Path(key).stem for key in known))
    raise ProxyError("not_found", f"{name!r} {what}; there are: {there}{meant}")


def cmd_logout(options: argparse.Namespace) -> int:
    """Revoke and delete a login."""
    config = settings_of(options)
    store = open_store(config)
    say(logout(find_credential(store, options.name), store, config))
    return 0


def cmd_accounts(options: argparse.Namespace) -> int:
    """List the accounts; renew the tokens of one; or end rests."""
    app = make_app(options)
    if options.what == "refresh":
        return renew_account(app, options.name)
    if options.what == "wake":
        return wake_accounts(app, options.name)
    rows = [account_row(account, app, limits=options.limits) for account in app.router.offers.accounts]
    listed = {account.credential.name for account in app.router.offers.accounts if account.credential}
    rows += [file_row(c) for c in app.store.credentials() if c.name not in listed]
    if options.json:
        say(json.dumps(rows, indent=2))
    else:
        show_accounts(rows)
    return 0


def renew_account(app: App, name: str) -> int:
    """Renew the tokens of a login, which may work again: its rests are over."""
    if not name:
        raise ProxyError("invalid_request", "whose? `cliproxy accounts refresh NAME`")
    fresh = refresh(find_credential(app.store, name), app.store, app.config)
    app.wake(fresh.name)
    ends = expires_at(fresh.data)
    say(f"{fresh.name}: renewed" + (f", good until {moment(ends)}" if ends else ""))
    return 0


def wake_accounts(app: App, name: str) -> int:
    """End the rests of the accounts whose name holds `name`, or of all."""
    found = [account.name for account in app.router.offers.accounts if name.lower() in account.name.lower()]
    exact = [account_name for account_name in found if account_name == name]
    for account_name in exact or found:
        app.wake(account_name)
        say(f"{account_name}: is asked again")
    if not found:
        names = [account.name for account in app.router.offers.accounts]
        there = ", ".join(names) or "none"
        message = f"{name!r} is none of the accounts; there are: {there}{slip(name, names)}"
        raise ProxyError("not_found", message)
    return 0


def account_row(account: Account, app: App, *, limits: bool) -> Json:
    """Return what is known of an account, without any secret."""
    data = account.credential.data if account.credential else {}
    row: Json = {"provider": account.provider.name, "name": account.name, "plan": plan_of(data)}
    why, windows = "", []
    if limits and account.credential:
        try:
            windows = limits_now(account, account.credential, app)
        except ProxyError as error:
            why = str(error)
    row.update(app.router.report(account), expires=account.ends, last_refresh=last_refresh(data))
    row["limits"] = [window._asdict() for window in windows] or row["limits"]
    row["why"] = why or account.dead or "; ".join(rest["why"] for rest in row["cooling"])
    return row


def limits_now(account: Account, credential: Credential, app: App) -> list[Window]:
    """Ask how much of an account's limits is used; where there is room, its rests are over."""
    if account.renewable and account.expired(time.time()):
        app.renew(account, account.token)
        credential = account.credential or credential
    windows = usage_of(credential, app.config)
    if windows and all(window.used < 100 for window in windows):
        app.wake(account.name)
    return windows


def file_row(credential: Credential) -> Json:
    """Return what is known of a login that serves nobody."""
    data = credential.data
    state = "disabled" if data.get("disabled") else "not served"
    row: Json = {"provider": credential.type, "name": credential.name, "plan": plan_of(data)}
    row.update(state=state, requests=0, cooling=[], limits=[], expires=expires_at(data))
    return {**row, "last_refresh": last_refresh(data), "why": why_dead(data)}


def moment(when: float | None) -> str:
    """Return a time as people write it: today's without the date."""
    if when is None:
        return "-"
    then, today = time.localtime(when), time.localtime()
    same = then[:3] == today[:3]
    return time.strftime("%H:%M" if same else "%b %d %H:%M", then)


def bar(percent: float, width: int = 10) -> str:
    """Draw how much of a limit is used."""
    used = max(0, min(width, round(percent * width / 100)))
    full, empty = "█░" if (sys.stdout.encoding or "").lower().startswith("utf") else "#."
    return full * used + empty * (width - used)


def state_words(row: Json) -> str:
    """Say an account's state: how long it cools, what an expired one waits for."""
    if row["state"] == "cooling":
        whole = any(rest["model"] == "*" for rest in row["cooling"])
        until = moment(max(rest["until"] for rest in row["cooling"]))
        return f"cooling until {until}" if whole else f"ready, {len(row['cooling'])} model(s) cooling"
    return {"expired": "expired, renewed on use"}.get(row["state"], str(row["state"]))


STATE_COLOURS = {
    "ready": "good",
    "cooling": "warn",
    "needs login": "bad",
    "disabled": "faint",
    "not served": "warn",
}
ACCOUNT_COLUMNS = (
    Column("PROVIDER", lambda row: row["provider"]),
    Column("NAME", lambda row: row["name"]),
    Column("PLAN", lambda row: row["plan"] or "-"),
    Column("STATE", state_words, lambda row: STATE_COLOURS.get(row["state"], "")),
    Column("EXPIRES", lambda row: moment(row["expires"])),
    Column("RENEWED", lambda row: moment(row["last_refresh"])),
    Column("REQUESTS", lambda row: str(row["requests"])),
)


def show_accounts(rows: list[Json]) -> None:
    """Print accounts as a table, under each what cools and how much of its limits is used."""
    if not rows:
        say("no account yet: `cliproxy login PROVIDER`, or add a key to the config")
        return
    for line, row in zip(table_lines(ACCOUNT_COLUMNS, rows), [{}, *rows]):
        say(line)
        for rest in row.get("cooling", ()):
            say(one_line(f"    {rest['model']} rests until {moment(rest['until'])}: {rest['why']}"))
        for window in row.get("limits", ()):
            used, resets = window["used"], moment(window["resets_at"])
            say(f"    {window['name']:10} {bar(used)} {used:3.0f} %  resets {resets}")
        if row.get("state") != "cooling" and row.get("why"):
            say(one_line(f"    {row['why']}"))


def cmd_models(options: argparse.Namespace) -> int:
    """Print the models that the present credentials can serve, and what is known of them."""
    app = make_app(options)
    if options.refresh:
        for account, failure in app.catalog.refresh(app.router.offers.accounts).items():
            complain(f"{account}: no list of models: {failure}")
        app.reload()
    rows = [model_facts(name, app) for name in app.router.offers.names()]
    rows.append({"id": ECHO, "context": None, "output": None, "efforts": "-", "accounts": ["built in"]})
    if options.json:
        say(json.dumps(rows, indent=2))
        return 0
    for line in table_lines(MODEL_COLUMNS, rows):
        say(line)
    return 0


def model_facts(name: str, app: App) -> Json:
    """Return what is known of a model that clients may ask for."""
    row = app.router.offers.fact(name)
    accounts = dict.fromkeys(candidate.account.name for candidate in app.router.offers.of(name))
    return {
        "id": name,
        "context": row.context,
        "output": row.output,
        "efforts": efforts_of(row),
        "accounts": list(accounts),
    }


def known_number(number: int | None) -> str:
    return "-" if number is None else str(number or "?")


def efforts_of(row: Model) -> str:
    """Say how a model thinks: the efforts it takes by name, or else in tokens."""
    words = list(row.levels) or (["{}-{} tokens".format(*row.budget)] if row.budget[1] else [])
    words += ["off"] if row.thinking and row.can_stop and "none" not in row.levels else []
    return " ".join(words) or {None: "?", False: "-"}.get(row.thinking, "yes")


MODEL_COLUMNS = (
    Column("MODEL", lambda row: row["id"]),
    Column("CONTEXT", lambda row: known_number(row["context"])),
    Column("OUTPUT", lambda row: known_number(row["output"])),
    Column("EFFORTS", lambda row: row["efforts"]),
    Column("ACCOUNTS", lambda row: ", ".join(row["accounts"])),
)


def cmd_config(options: argparse.Namespace) -> int:
    """Check the config file, or print an example or the reference of all keys."""
    if options.what == "example":
        say(example_config().rstrip())
    elif options.what == "reference":
        say(config_reference().rstrip())
    else:
        return check_settings(settings_of(options), strict=options.strict)
    return 0


def check_settings(config: Config, *, strict: bool) -> int:
    """Tell what is odd about the settings; 1 if something of them was thrown away, or if all must be in order."""
    warnings = [*config.warnings, *(f"{config.path}: {remark}" for remark in remarks(config))]
    for warning in warnings:
        say(f"warning: {warning}")
    verdict = "1 warning" if len(warnings) == 1 else f"{len(warnings)} warnings"
    say(f"{config.path or 'no config file'}: {verdict if warnings else 'good'}")
    lost = any(" is ignored: " in warning for warning in warnings)
    return 1 if lost or (strict and warnings) else 0


def cmd_service(options: argparse.Namespace) -> int:
    """Install the service that keeps the proxy running, or do something with it."""
    import getpass  # noqa: PLC0415 -- only here

    if options.act == "docker":
        say(DOCKERFILE.rstrip())
        return 0
    config = find_config(options.config).path
    command = service_command(str(config) if options.config else None)
    plan = Plan(command, Path.home(), getpass.getuser(), options.system)
    if options.show:
        say(show_act(manager_here(plan), options.act, plan))
        return 0
    return manage_service(options.act, plan, say)


def cmd_completion(options: argparse.Namespace) -> int:
    """Print the script that completes the commands in a shell."""
    say(completion(options.shell, {command.name: taken_words(command) for command in COMMANDS}))
    return 0


def taken_words(command: Command) -> list[str]:
    """Return the words that may stand behind a command: its choices and its options."""
    choices = (str(choice) for _, settings in command.arguments for choice in settings.get("choices", ()))
    return [*choices, *(flag for flag, _ in command.arguments if flag.startswith("-")), "--config", "--debug"]


def cmd_import(options: argparse.Namespace) -> int:
    """Print the configuration of another program as ours, in YAML, and on the side what has no counterpart."""
    path = Path(options.file).expanduser()
    text = read_file(path)
    try:
        data = read_places(text, yaml=False).value if text.lstrip().startswith("{") else yaml_read(text)
        told: list[str] = []
        if options.kind in FOREIGN:
            data, told = read_foreign(options.kind, data, os.environ)
    except (ValueError, RecursionError) as exc:
        raise ProxyError("invalid_request", f"{path}: {exc}") from exc
    for note in (*told, *parse_config(None, dumps_text(data)).warnings):
        sys.stderr.write(f"cliproxy: {one_line(note).removeprefix('None: ')}\n")
    say(write_block(data, 0))
    return 0


class Command(NamedTuple):
    """A subcommand: what it does and its arguments beside --config and --debug."""

    name: str
    run: Callable[[argparse.Namespace], int]
    help: str
    arguments: tuple[tuple[str, Json], ...] = ()


def read_port(text: str) -> int:
    """Read a port of the command line."""
    if not (text.isdecimal() and len(text) < 6 and int(text) < 65_536):
        raise argparse.ArgumentTypeError("a port is a number from 0 to 65535")
    return int(text)


SERVE_OPTIONS: tuple[tuple[str, Json], ...] = (
    ("--host", {"help": "address to bind, default 127.0.0.1"}),
    ("--port", {"type": read_port, "help": "port to bind, default 8317"}),
)
LOGIN_OPTIONS: tuple[tuple[str, Json], ...] = (
    ("--no-browser", {"action": "store_true", "help": "print the address only"}),
    (
        "--oauth-callback-port",
        {"type": read_port, "default": 0, "metavar": "N", "help": "where to wait for the browser"},
    ),
    ("--project_id", {"default": "", "metavar": "ID", "help": "Google's project; several with commas; ALL"}),
    (
        "--vertex-import-prefix",
        {"default": "", "metavar": "PREFIX", "help": "for the models of an imported account"},
    ),
)
LOGIN_FLAGS = (  # of CLIProxyAPI: flag, provider, whether by device. The first that is given counts
    ("vertex-import", "vertex", False),
    ("login", "gemini", False),
    ("antigravity-login", "antigravity", False),
    ("codex-login", "codex", False),
    ("codex-device-login", "codex", True),
    ("claude-login", "claude", False),
    ("qwen-login", "qwen", False),
    ("iflow-login", "iflow", False),
    ("kimi-login", "kimi", False),
    ("xai-login", "xai", False),
)
COMMANDS = (
    Command("serve", cmd_serve, "serve clients (what `cliproxy` does without a subcommand)", SERVE_OPTIONS),
    Command("login", cmd_login, "log in at a provider", (
        ("provider", {"nargs": "?", "default": "", "help": f"one of {', '.join(LOGINS)}"}),
        *LOGIN_OPTIONS,
        ("--device", {"action": "store_true", "help": "by a short code, typed on any device"}),
        ("--import", {"dest": "source", "nargs": "?", "const": "auto", "default": "", "metavar": "FILE",
                      "help": "take over what the vendor's own program holds"}),
    )),
    Command("accounts", cmd_accounts, "list accounts: plan, state, expiry, limits; renew one; end rests", (
        ("what", {"nargs": "?", "choices": ["list", "refresh", "wake"], "default": "list"}),
        ("name", {"nargs": "?", "default": "", "help": "whose tokens to refresh, or whose rests to end (none: all)"}),
        ("--json", {"action": "store_true", "help": "for programs"}),
        ("--limits", {"action": "store_true", "help": "ask the providers how much is used"}),
    )),
    Command("logout", cmd_logout, "revoke an account's tokens where that is possible, and delete them", (
        ("name", {"help": "of its file; a part of it will do"}),
    )),
    Command("models", cmd_models, "list the models that can be served", (
        ("--refresh", {"action": "store_true", "help": "ask the upstreams anew which they have"}),
        ("--json", {"action": "store_true", "help": "for programs"}),
    )),
    Command("config", cmd_config, "check the config file; print an example or all keys", (
        ("what", {"nargs": "?", "choices": ["check", "example", "reference"], "default": "check"}),
        ("--strict", {"action": "store_true", "help": "check: exit with 1 on any warning"}),
    )),
    Command("service", cmd_service, "keep the proxy running: systemd, launchd, Windows' tasks; or print a Dockerfile", (
        ("act", {"choices": [*ACTS, "docker"]}),
        ("--system", {"action": "store_true", "help": "for the whole machine, not for you alone"}),
        ("--print", {"dest": "show", "action": "store_true", "help": "only print what would be written and run"}),
    )),
    Command("completion", cmd_completion, "print the script that completes commands in your shell", (
        ("shell", {"choices": [*COMPLETIONS]}),
    )),
    Command("import", cmd_import, "print another program's configuration as ours: > config.yaml", (
        ("kind", {"choices": [*FOREIGN, "cliproxyapi"], "help": "whose it is"}),
        ("file", {"help": "the configuration, YAML or JSON"}),
    )),
)  # fmt: skip


class Parser(argparse.ArgumentParser):
    """One that asks whether another word was meant."""

    def error(self, message: str) -> NoReturn:
        found = re.search(r"(?:unrecognized arguments: |invalid choice: ')([^ ']+)", message)
        known = [
            name for action in self._actions for name in (*action.option_strings, *(action.choices or ()))
        ]
        super().error(message + (slip(found[1], map(str, known)) if found else ""))


COMMON_FLAGS = {"config": 2, "debug": 1}  # flag of every command -> words that it takes
SAME_WORDS = {"help": "--help", "version": "--version"}
COMMAND_NAMES = frozenset(command.name for command in COMMANDS)


def command_first(words: list[str]) -> list[str]:
    """Put the command in front of the flags of every command; `help` and `version` are flags."""
    at = 0
    while at < len(words) and words[at].startswith("-"):
        flag, has_value, _ = words[at].lstrip("-").partition("=")
        if flag not in COMMON_FLAGS:
            break
        at += 1 if has_value else COMMON_FLAGS[flag]
    command, behind = "".join(words[at : at + 1]), words[at + 1 :]
    if command == "help" and behind[:1] and behind[0] in COMMAND_NAMES:
        return [behind[0], "--help"]
    if command in COMMAND_NAMES or command in SAME_WORDS:
        flags = [f"--{word.lstrip('-')}" if word.startswith("-") else word for word in words[:at]]
        return [SAME_WORDS.get(command, command), *flags, *behind]
    return words


def make_parser() -> argparse.ArgumentParser:
    """Build the command line from COMMANDS."""
    common = Parser(add_help=False)
    common.add_argument("--config", help="config file, JSON or YAML")
    common.add_argument("--debug", action="store_true", help="log more")
    parser = Parser(
        prog=started_as(),
        description=(__doc__ or "").split("\n", 1)[0],
        epilog="Without a command it serves; CLIProxyAPI's flags, such as -codex-login, work as well.",
    )
    parser.add_argument("--version", action="version", version=full_version())
    rows = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        row = rows.add_parser(command.name, help=command.help, parents=[common], allow_abbrev=False)
        row.set_defaults(run=command.run)
        for flag, settings in command.arguments:
            row.add_argument(flag, **settings)
    return parser


def flag_settings(name: str, provider: str) -> Json:
    takes = {"metavar": "FILE"} if "import" in name else {"action": "store_true"}
    return {**takes, "help": f"login {provider}"}


def make_flag_parser() -> argparse.ArgumentParser:
    """Build the command line without a subcommand: to serve, or CLIProxyAPI's flags to log in.

    Both take one dash or two. Source: spec/config.md 10.
    """
    parser = Parser(prog=started_as(), allow_abbrev=False)
    logins = [(name, flag_settings(name, provider)) for name, provider, _ in LOGIN_FLAGS]
    others = [("config", {"help": "config file"}), ("debug", {"action": "store_true", "help": "log more"})]
    for flag, settings in [*others, *SERVE_OPTIONS, *logins, *LOGIN_OPTIONS]:
        name = flag.lstrip("-")
        parser.add_argument(f"--{name}", f"-{name}", **settings)
    parser.set_defaults(run=cmd_flags)
    return parser


def full_version() -> str:
    """Return the version and eight digits of this file's own sha256, which tell copies apart."""
    return f"cliproxy {__version__} ({hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]})"


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, signal.default_int_handler)  # until here it ended the process
    words = command_first(sys.argv[1:] if argv is None else argv)
    if words == ["--version"]:
        say(full_version())
        return 0
    flags = not words or (words[0].startswith("-") and words[0] not in {"-h", "--help"})
    options = (make_flag_parser() if flags else make_parser()).parse_args(words)
    level = logging.DEBUG if options.debug else logging.INFO
    serves = options.run in {cmd_serve, cmd_flags}
    form = "%(asctime)s %(levelname)s %(message)s" if serves else "cliproxy: %(message)s"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine(form))
    logging.basicConfig(level=level, handlers=[handler])
    with contextlib.suppress(AttributeError):  # a terminal may lack letters of a name
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        return options.run(options)  # type: ignore[no-any-return]
    except ProxyError as error:
        complain(str(error))
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\ncliproxy: stopped\n")
        return 130
    except BrokenPipeError:
        os._exit(1)  # who read has read enough; to end in order would be to write again


if __name__ == "__main__":
    sys.exit(main())
