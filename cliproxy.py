#!/usr/bin/env python3
# /// script
# requires-python = ">=3.9"
# dependencies = []
# ///
"""cliproxy: one file, no dependencies: any LLM client with any LLM account its owner has.

Contents (each room uses only rooms above it; [pure] ones touch no clock, socket, file or thread):

    1. PRIMITIVES    SSE framing, JSON, ids, wildcards, masking         [pure]
    2. ERRORS        ProxyError and the KINDS table                     [pure]
    3. FACTS         providers, models, parameters, finish reasons      [pure]
    4. CONVERSATION  the request, its parts, and the events of answers  [pure]
    5. CLAUDE        Anthropic Messages                                 [pure]
    6. CHAT          OpenAI Chat Completions                            [pure]
    7. RESPONSES     OpenAI Responses, also of Codex                    [pure]
    8. GEMINI        Google generateContent                             [pure]
    9. DIALECTS      the dialects as rows; fitting a request to its target [pure]
   10. CONFIG        the settings file: load, check, watch
   11. NETWORK       HTTP/1.1 over sockets, both sides
   12. STORE         credential files
   13. LOGIN         logins and token refresh
   14. ROUTING       which account serves which model
   15. UPSTREAM      asking a provider
   16. SERVER        the listening side
   17. COMMANDS      the command line
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import json
import os
import re
import select
import socket
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Union
from urllib.parse import unquote, urlsplit

if sys.version_info < (3, 9):  # noqa: UP036 -- a copied file meets old interpreters
    raise SystemExit("cliproxy needs Python 3.9 or newer")

__version__ = "0.1.0"
__all__ = ["DIALECTS", "ProxyError", "main", "make_server"]
USER_AGENT = f"cliproxy/{__version__}"

Json = dict[str, Any]  # a decoded JSON object
Frames = Generator[bytes, None, None]  # encoded pieces of an answer's body


########################################################################################
# 1. PRIMITIVES                                                                   [pure]
########################################################################################
# Small functions that know no dialect, no provider and no socket.

dumps = json.JSONEncoder(separators=(",", ":")).encode  # for the wire: ASCII, the fastest form
dumps_text = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode  # JSON as a text
quote = json.encoder.encode_basestring_ascii  # a text as a JSON string, for templates


def sse_frame(data: Json, event: str = "") -> bytes:
    """Encode one server-sent event; the `event:` line is left out when `event` is empty."""
    head = f"event: {event}\n" if event else ""
    return f"{head}data: {dumps(data)}\n\n".encode("ascii")


def sse_split(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Group the bytes of a stream, cut anywhere, into whole events without their blank line.

    All three line ends are accepted and come out as LF. The last event needs no blank line.
    Source: html.spec.whatwg.org 9.2.6.
    """
    pieces: list[bytes] = []  # of the event that is still incomplete: joined once
    for chunk in chunks:
        if pieces and pieces[-1].endswith(b"\r"):
            chunk = pieces.pop() + chunk  # noqa: PLW2901 -- CR LF must not be cut in two
        if b"\r" in chunk and not chunk.endswith(b"\r"):
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")  # noqa: PLW2901
        seam = pieces[-1][-1:] + chunk[:1] if pieces else b""
        if b"\n\n" in chunk or seam == b"\n\n":
            *events, rest = b"".join((*pieces, chunk)).split(b"\n\n")
            yield from filter(None, events)
            pieces = [rest] if rest else []
        elif chunk:
            pieces.append(chunk)
    rest = b"".join(pieces).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    yield from (event for event in rest.split(b"\n\n") if event.strip(b"\n"))


def sse_data(event: bytes) -> bytes:
    """Return the joined `data:` fields of one event; empty for a comment."""
    if event.startswith(b"data:") and b"\n" not in event:  # the common case first
        return event[5:].strip()
    lines = event.split(b"\n")
    return b"\n".join(line[5:].strip() for line in lines if line.startswith(b"data:"))


def sse_read(chunks: Iterable[bytes]) -> Iterator[Json]:
    """Decode the JSON objects in the `data:` fields of a stream of bytes, cut anywhere.

    Comments, `event:` lines and the `[DONE]` sentinel are skipped; every dialect repeats the
    event name inside the payload. Raises ProxyError("upstream_failed") for what is not JSON.
    """
    for event in sse_split(chunks):
        data = sse_data(event)
        if data and data != b"[DONE]":
            try:
                payload = json.loads(data)
            except ValueError as exc:
                raise ProxyError("upstream_failed", f"the upstream sent {data[:80]!r}") from exc
            if isinstance(payload, dict):
                yield payload


def without(data: Mapping[str, Any], known: frozenset[str]) -> Json:
    """Return what `data` holds beside the `known` keys: what a reader keeps in `extra`."""
    return {key: data[key] for key in data.keys() - known} if data.keys() - known else {}


def digest(*words: object) -> str:
    """Return 24 hex digits that depend on `words` alone: ids that are the same every time."""
    return hashlib.sha256("\0".join(map(str, words)).encode("utf-8", "replace")).hexdigest()[:24]


def wildcard(pattern: str, name: str) -> bool:
    """Tell whether `name` matches `pattern`, in which `*` is any run of characters."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name, re.DOTALL) is not None


def mask(secret: str) -> str:
    """Shorten a secret to what identifies it: `sk-a...wxyz`. Source: spec/config.md 9."""
    keep = 4 if len(secret) > 8 else 2 if len(secret) > 4 else 1  # characters on either side
    return f"{secret[:keep]}...{secret[-keep:]}" if len(secret) > 2 else "..."


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

    def __init__(
        self, kind: str, message: str, *, retry_after: float | None = None, param: str = ""
    ) -> None:
        super().__init__(message)
        self.kind, self.retry_after, self.param = kind, retry_after, param
        self.status = KINDS[kind].status
        self.headers: Mapping[str, str] = {}
        self.body = b""
        self.sent = True  # may the upstream have received the request?


def error_of_status(status: int, message: str) -> ProxyError:
    """Return the error that an upstream's HTTP status stands for, whatever its body says."""
    fallback = "invalid_request" if 400 <= status < 500 else "upstream_failed"
    error = ProxyError(KIND_BY_STATUS.get(status, fallback), message)
    error.status = status if status >= 400 else error.status
    return error


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
    Words("error",          "end_turn",                                 "stop",                     "failed",            "OTHER"),
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


class Target(NamedTuple):
    """What a writer must know of the upstream that it writes for.

    `quirks` are words that dialect rooms test for; the QUIRKS comment beside each test says what
    it changes. `provider` is who mints and takes proofs: claude, codex, gemini, ...
    """

    provider: str
    model: Model
    quirks: frozenset[str] = frozenset()


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

    text: text, citations. media: media. thinking: text, proof. refusal: text. opaque: extra.
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
            start = event
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


########################################################################################
# 5. CLAUDE                                                                       [pure]
########################################################################################
# The Anthropic Messages API. Only this room knows its field names. Source: spec/dialects.md 1C.


########################################################################################
# 6. CHAT                                                                         [pure]
########################################################################################
# The Chat Completions API, OpenAI's own and that of the many who follow it.


########################################################################################
# 7. RESPONSES                                                                    [pure]
########################################################################################
# The Responses API.


########################################################################################
# 8. GEMINI                                                                       [pure]
########################################################################################
# The Gemini API.


########################################################################################
# 9. DIALECTS                                                                     [pure]
########################################################################################
# The table of dialects, and what a request needs before a foreign upstream takes it.


########################################################################################
# 10. CONFIG
########################################################################################
# The settings file.


########################################################################################
# 11. NETWORK
########################################################################################
# Bytes on sockets, the same way on both sides: strict heads, bodies, a pool of idle upstream
# connections, proxies, TLS. http.client and email would cost five times the CPU a request
# (spec/performance.md, lessons 1 to 4). Foreign exceptions leave this room as ProxyError.

HEAD_LIMIT = 65_536  # bytes
BODY_LIMIT = 100 * 2**20  # bytes, of a client's request, also when unpacked
PIECE = 65_536  # bytes of one recv
JOIN_LIMIT = 65_536  # bytes: a smaller body is sent in one piece with its head
TICK = 0.5  # seconds between looks at the client while an upstream is silent
CONNECT_TIMEOUT = 15.0  # seconds
SILENCE_LIMIT = 600.0  # seconds without a byte from an upstream; long thinking is silent
SEND_TIMEOUT = 60  # seconds that a peer may refuse to take more bytes
IDLE_LIMIT = 55.0  # seconds that an idle upstream connection is kept
IDLE_COUNT = 128  # idle connections kept for one origin

CONTROLS = bytes(set(range(32)) - set(b"\t\r\n")) + b"\x7f"
TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 5.6.2
HOP_BY_HOP = frozenset(
    "connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer"
    " transfer-encoding upgrade".split()
)
Headers = dict[str, str]  # names in lower case; repeated ones joined by a comma


@functools.lru_cache(maxsize=1024)
def header_name(name: str) -> str:
    """Return a header's name in lower case. Raises ValueError if it is not a token."""
    if not TOKEN.fullmatch(name):
        raise ValueError(f"{name!r} is not a header name")
    return name.lower()


def parse_head(head: bytes) -> tuple[str, Headers]:
    """Split a message head, without its blank line, into the first line and the headers.

    Raises ValueError for what request smuggling is made of: control characters, bare CR or LF,
    folded lines, names that are no tokens, repeated lengths or hosts. Source: RFC 9112.
    """
    if len(head.translate(None, CONTROLS)) != len(head):
        raise ValueError("a control character in the head")
    if not head.count(b"\r") == head.count(b"\n") == head.count(b"\r\n"):
        raise ValueError("a bare CR or LF in the head")
    if b"\r\n " in head or b"\r\n\t" in head:
        raise ValueError("a folded header line")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers: Headers = {}
    for line in lines:
        raw, colon, value = line.partition(":")
        if not colon:
            raise ValueError(f"{line[:40]!r} is not a header line")
        name = header_name(raw)
        if name not in headers:
            headers[name] = value.strip(" \t")
        elif name in {"content-length", "host", "transfer-encoding"}:
            raise ValueError(f"{name!r} is given twice")
        else:
            headers[name] += ", " + value.strip(" \t")
    return first, headers


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
        if not self.done and len(self.rest) > HEAD_LIMIT:
            raise ValueError("an endless line in a chunked body")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _line(self, line: bytes) -> None:
        if self._expect == "size":
            size = line.split(b";", 1)[0].strip(b" \t")
            if not HEX.fullmatch(size):
                raise ValueError(f"{line[:40]!r} is not a chunk size")
            self._left = int(size, 16)
            self._expect = "close" if self._left else "trailer"
        elif self._expect == "trailer":
            self.done = not line
        elif line:
            raise ValueError("a chunk is longer than its size")
        else:
            self._expect = "size"


def unpacker(encoding: str) -> Any:
    """Return an object whose `decompress(data, limit)` undoes a content encoding.

    Knows gzip, deflate and, where Python has it, zstd. Raises ValueError for others.
    """
    if encoding in {"gzip", "x-gzip", "deflate"}:
        return zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip or zlib, by their magic
    if encoding == "zstd" and sys.version_info >= (3, 14):
        from compression import zstd  # noqa: PLC0415 -- new in 3.14

        return zstd.ZstdDecompressor()
    raise ValueError(f"content-encoding {encoding!r} is not supported by this Python")


def unpack(data: bytes, encoding: str, limit: int = BODY_LIMIT) -> bytes:
    """Undo the content encoding of a whole body.

    Raises ValueError if it is damaged or cut, ProxyError("too_large") beyond `limit` bytes.
    """
    for name in reversed([word.strip().lower() for word in encoding.split(",")]):
        if name in {"", "identity"}:
            continue
        unpacking = unpacker(name)
        try:
            data = unpacking.decompress(data, limit + 1)
        except Exception as exc:  # noqa: BLE001 -- zlib.error and ZstdError share no base
            raise ValueError(f"the {name} body is damaged: {exc}") from exc
        if len(data) > limit:
            raise ProxyError("too_large", f"the unpacked body is larger than {limit:,} bytes")
        if not unpacking.eof:
            raise ValueError(f"the {name} body is cut off")
    return data


def set_patience(sock: socket.socket, seconds: float) -> None:
    """Let a recv() wait so long, then raise one of TIMEOUTS.

    A plain socket stays blocking, which saves a poll() a call; on TLS SO_RCVTIMEO has no effect.
    """
    if sys.platform == "win32" or hasattr(sock, "selected_alpn_protocol"):
        sock.settimeout(seconds)
    else:
        wait = struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, wait)


TIMEOUTS = (BlockingIOError, socket.timeout)


def hung_up(sock: socket.socket) -> bool:
    """Tell whether the peer has closed; never waits. Bytes that wait to be read are left there."""
    try:
        if sys.platform == "win32":
            if not select.select([sock], [], [], 0)[0]:
                return False
            return not socket.socket.recv(sock, 1, socket.MSG_PEEK)
        # The base class's recv looks below TLS, where a closed connection shows as well.
        return not socket.socket.recv(sock, 1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True


class Wire:
    """One connection and the bytes read ahead from it. One thread at a time uses it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.tls = hasattr(sock, "selected_alpn_protocol")
        self.rest = b""
        self.since = 0.0  # time.monotonic() when it became idle
        self.answered = False  # has a byte of the awaited message come?

    def recv(self, idle: Callable[[], None]) -> bytes:
        """Return the next bytes, b"" at the end; call `idle`, which may raise, every patience."""
        if self.rest:
            data, self.rest = self.rest, b""
            return data
        while True:
            try:
                return self.sock.recv(PIECE)
            except TIMEOUTS:
                idle()

    def read_head(self, idle: Callable[[], None]) -> bytes | None:
        """Return the next head without its blank line, None if the peer closed before it.

        Raises ProxyError("head_too_large"), ConnectionError if it breaks off.
        """
        data = self.rest
        while (stop := data.find(b"\r\n\r\n")) < 0:
            if len(data) > HEAD_LIMIT:
                raise ProxyError("head_too_large", f"a head is larger than {HEAD_LIMIT:,} bytes")
            self.rest = b""
            more = self.recv(idle)
            if not more and not data:
                return None
            if not more:
                raise ConnectionError("the connection broke off in a head")
            self.answered = True
            data = data + more if data else more.lstrip(b"\r\n")
        self.rest = data[stop + 4 :]
        return data[:stop]

    def read_exactly(self, length: int, idle: Callable[[], None]) -> bytes | bytearray:
        """Return `length` bytes. Raises ConnectionError if it breaks off before."""
        ahead = self.rest
        if len(ahead) >= length:
            self.rest = ahead[length:]
            return ahead[:length]
        body = bytearray(length)
        view = memoryview(body)
        view[: len(ahead)] = ahead
        at, self.rest = len(ahead), b""
        while at < length:
            try:
                count = self.sock.recv_into(view[at:])
            except TIMEOUTS:
                idle()
            else:
                if not count:
                    raise ConnectionError("the connection broke off in a body")
                at += count
        return body

    def read_chunked(self, limit: int, idle: Callable[[], None]) -> bytes:
        """Return a whole chunked body. Raises ValueError, ConnectionError, ProxyError."""
        chunks, pieces, size = Chunks(), [], 0
        while not chunks.done:
            data = self.recv(idle)
            if not data:
                raise ConnectionError("the connection broke off in a body")
            pieces.append(chunks.feed(data))
            size += len(pieces[-1])
            if size > limit:
                raise ProxyError("too_large", f"the body is larger than {limit:,} bytes")
        self.rest = chunks.rest
        return b"".join(pieces)

    def send(self, head: bytes, body: Sequence[bytes | bytearray | memoryview] = ()) -> None:
        """Send one message; a small one in one piece, a large body without a copy."""
        if self.tls:  # where the patience of recv() would limit send() too
            self.sock.settimeout(SEND_TIMEOUT)
        if sum(map(len, body)) < JOIN_LIMIT:
            self.sock.sendall(b"".join((head, *body)))
        else:
            self.sock.sendall(head)
            for piece in body:
                self.sock.sendall(piece)
        if self.tls:
            self.sock.settimeout(TICK)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.close()


class Origin(NamedTuple):
    """Where a connection goes. `proxy` is a URL, or empty for none."""

    scheme: str  # http, https
    host: str
    port: int
    proxy: str = ""


def split_url(url: str, proxy: str = "") -> tuple[Origin, str]:
    """Split a URL into its origin and the rest, which has no slash at its end.

    `proxy` is a URL, `direct` or `none`, or empty: then the environment's counts. Raises
    ProxyError for a URL that is none.
    """
    parts = urlsplit(url)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as exc:
        raise ProxyError("invalid_request", f"{url!r} has a bad port") from exc
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ProxyError("invalid_request", f"{url!r} is not an http or https URL")
    rest = parts.path.rstrip("/") + (f"?{parts.query}" if parts.query else "")
    origin = Origin(parts.scheme, parts.hostname, port)
    return origin._replace(proxy=choose_proxy(origin, proxy)), rest


def choose_proxy(origin: Origin, proxy: str) -> str:
    """Return the proxy URL for an origin, empty for none; `proxy` outranks the environment."""
    if proxy:
        return "" if proxy in {"direct", "none"} else proxy
    if is_loopback(origin.host) or not any(key.lower().endswith("_proxy") for key in os.environ):
        return ""
    from urllib.request import getproxies_environment, proxy_bypass_environment  # noqa: PLC0415 -- slow

    found = getproxies_environment()
    if proxy_bypass_environment(f"{origin.host}:{origin.port}", found):
        return ""
    return found.get(origin.scheme) or found.get("all", "")


def is_loopback(host: str) -> bool:
    """Tell whether a host name or address is this machine itself."""
    return host in {"localhost", "::1", "[::1]"} or bool(LOOPBACK.fullmatch(host))


LOOPBACK = re.compile(r"127\.\d{1,3}\.\d{1,3}\.\d{1,3}")
HEX = re.compile(rb"[0-9A-Fa-f]{1,15}")


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
        if not origin.proxy:
            sock = dial(origin.host, origin.port)
        else:
            sock = dial_proxy(origin)
        if origin.scheme == "https":
            sock = wrap_tls(sock, origin.host)
        set_patience(sock, TICK)
    except (OSError, ValueError) as exc:
        through = f" through {mask_url(origin.proxy)}" if origin.proxy else ""
        message = f"cannot reach {origin.host}:{origin.port}{through}: {exc}"
        error = ProxyError("upstream_failed", message)
        error.sent = False
        raise error from exc
    return Wire(sock)


def dial(host: str, port: int) -> socket.socket:
    sock = socket.create_connection((host, port), timeout=CONNECT_TIMEOUT)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.settimeout(None)
    limit_sends(sock)
    return sock


def limit_sends(sock: socket.socket) -> None:
    """Make a send() to a peer that takes nothing for SEND_TIMEOUT fail."""
    if sys.platform != "win32":
        wait = struct.pack("@ll", SEND_TIMEOUT, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, wait)


def wrap_tls(sock: socket.socket, host: str) -> socket.socket:
    """Shake hands, verifying the certificate; the plain socket is closed if that fails."""
    sock.settimeout(CONNECT_TIMEOUT)
    try:
        wrapped: socket.socket = tls_context().wrap_socket(sock, server_hostname=host)
    except OSError:
        sock.close()
        raise
    return wrapped


def mask_url(url: str) -> str:
    """Return a URL without its user name and password."""
    return re.sub(r"//[^/@]*@", "//...@", url)


def dial_proxy(origin: Origin) -> socket.socket:
    """Connect to an origin's proxy; for https and socks5, on to the origin itself."""
    parts = urlsplit(origin.proxy)
    ask = PROXY_DIALS.get(parts.scheme)
    if ask is None or not parts.hostname:
        raise ValueError(f"the proxy URL must start with {', '.join(PROXY_DIALS)}")
    sock = dial(parts.hostname, parts.port or (1080 if "socks" in parts.scheme else 8080))
    try:
        sock.settimeout(CONNECT_TIMEOUT)
        if parts.scheme == "https":
            sock = wrap_tls(sock, parts.hostname)
        ask(sock, origin, (unquote(parts.username or ""), unquote(parts.password or "")))
    except BaseException:
        sock.close()
        raise
    return sock


def basic_auth(user: tuple[str, str]) -> str:
    """Return a `proxy-authorization` header line, empty without a user name."""
    token = base64.b64encode(":".join(user).encode()).decode()
    return f"proxy-authorization: Basic {token}\r\n" if user[0] else ""


def ask_http_proxy(sock: socket.socket, origin: Origin, user: tuple[str, str]) -> None:
    """Open a tunnel to an https origin; plain http goes in absolute form instead."""
    if origin.scheme == "http":
        return
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    place = f"{host}:{origin.port}"
    sock.sendall(f"CONNECT {place} HTTP/1.1\r\nhost: {place}\r\n{basic_auth(user)}\r\n".encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        byte = sock.recv(1)  # no byte beyond the head may be taken: they belong to TLS
        if not byte or len(answer) > HEAD_LIMIT:
            raise ValueError("the proxy closed the connection")
        answer += byte
    line = answer.split(b"\r\n", 1)[0].decode("latin-1")
    if line.split(" ")[1:2] != ["200"]:
        raise ValueError(f"the proxy said {line!r}")


def ask_socks5(sock: socket.socket, origin: Origin, user: tuple[str, str]) -> None:
    """Open a tunnel by SOCKS 5, the proxy resolving the name. Source: RFC 1928, RFC 1929."""
    take = functools.partial(take_exactly, sock)
    sock.sendall(b"\5\2\0\2" if user[0] else b"\5\1\0")
    version, method = take(2)
    if version != 5 or method not in {0, 2}:
        raise ValueError("the proxy speaks no SOCKS 5, or refuses the log-in")
    if method == 2:
        name, password = (word.encode() for word in user)
        sock.sendall(b"\1%c%b%c%b" % (len(name), name, len(password), password))
        if take(2)[1]:
            raise ValueError("the proxy refuses its user name or password")
    host = origin.host.encode("idna")
    sock.sendall(b"\5\1\0\3%c%b%b" % (len(host), host, origin.port.to_bytes(2, "big")))
    _, refusal, _, kind = take(4)
    if refusal:
        raise ValueError(f"the proxy cannot reach the host (SOCKS error {refusal})")
    take({1: 4, 4: 16}.get(kind) or take(1)[0])
    take(2)


def take_exactly(sock: socket.socket, count: int) -> bytes:
    """Read `count` bytes. Raises ValueError if the connection breaks off."""
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        if not more:
            raise ValueError("the proxy closed the connection")
        data += more
    return data


PROXY_DIALS: dict[str, Callable[[socket.socket, Origin, tuple[str, str]], None]] = {
    "http": ask_http_proxy,
    "https": ask_http_proxy,
    "socks5": ask_socks5,
    "socks5h": ask_socks5,
}


class Watcher:
    """Who waits for an exchange; the server's one sends what it holds and watches its client."""

    def flush(self) -> None:
        """Called before a read that may block."""

    def tick(self) -> None:
        """Called every TICK of silence; may raise to end the exchange."""


class Exchange:
    """One request to an upstream and its answer, whose body is read piece by piece.

    Close it: a connection whose body was read to its end goes back to the pool.
    """

    def __init__(self, pool: Pool, origin: Origin, wire: Wire, watcher: Watcher) -> None:
        self.status, self.headers = 0, Headers()
        self.done = False  # was the body read to its end?
        self._pool, self._origin, self._wire, self._watcher = pool, origin, wire, watcher
        self._silent = 0.0  # seconds since the last byte
        self._chunks: Chunks | None = None
        self._left: int | None = None  # bytes of the body to come; None: chunked, or until close
        self._keep = True  # may the connection be used again?
        self._closed = False

    def begin(self, method: str) -> bool:
        """Read the answer's head; False if the peer closed before its first byte."""
        status = 100
        while status < 200 and status != 101:  # interim answers
            head = self._wire.read_head(self._idle)
            if head is None:
                return False
            first, self.headers = parse_head(head)
            version, _, rest = first.partition(" ")
            if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
                raise ValueError(f"{first[:40]!r} is not an HTTP/1 answer")
            status = int(rest[:3])
        self.status = status
        self._keep = version == "HTTP/1.1" and "close" not in self.headers.get("connection", "").lower()
        self._frame(method)
        return True

    def _frame(self, method: str) -> None:
        """Learn from the head how the body ends. Source: RFC 9112 6.3."""
        if method == "HEAD" or self.status in {204, 304}:
            self._left = 0
        elif "transfer-encoding" in self.headers or "content-length" in self.headers:
            self._left = body_length(self.headers)
            self._chunks = Chunks() if self._left is None else None
        else:
            self._keep = False
        self.done = self._left == 0

    def _idle(self) -> None:
        self._watcher.tick()
        self._silent += TICK
        if self._silent >= SILENCE_LIMIT:
            message = f"{self._origin.host} sent nothing for {SILENCE_LIMIT:.0f} s"
            raise ProxyError("upstream_timeout", message)

    def read(self) -> bytes:
        """Return the next bytes of the body as soon as there are some, b"" at its end.

        Raises ProxyError("upstream_failed") if the body breaks off or is malformed.
        """
        payload = b""
        while not payload and not self.done:
            if not self._wire.rest:
                self._watcher.flush()
            try:
                data = self._wire.recv(self._idle)
                self._silent = 0.0
                payload = self._take(data)
            except (OSError, ValueError) as exc:
                message = f"{self._origin.host} broke off its answer: {exc}"
                raise ProxyError("upstream_failed", message) from exc
        return payload

    def _take(self, data: bytes) -> bytes:
        """Return the payload in `data`, noticing the end of the body."""
        chunks = self._chunks
        if chunks is not None:
            if not data:
                raise ValueError("the last chunk is missing")
            payload = chunks.feed(data)
            if chunks.done:
                self.done, self._wire.rest = True, chunks.rest
            return payload
        if self._left is None:
            self.done = not data
            return data
        if not data:
            raise ValueError(f"{self._left} bytes are missing")
        payload, self._wire.rest = data[: self._left], data[self._left :]
        self._left -= len(payload)
        self.done = not self._left
        return payload

    def pieces(self) -> Generator[bytes, None, None]:
        """Yield the body as it comes, and close at the end or when the consumer stops."""
        try:
            while data := self.read():
                yield data
        finally:
            self.close()

    def decoded(self) -> Generator[bytes, None, None]:
        """Yield the body as it comes, its content encoding undone."""
        encoding = self.headers.get("content-encoding", "identity").strip().lower()
        if encoding in {"", "identity"}:
            yield from self.pieces()
            return
        try:
            unpacking = unpacker(encoding)
            with contextlib.closing(self.pieces()) as pieces:
                yield from filter(None, map(unpacking.decompress, pieces))
        except (ValueError, zlib.error) as exc:
            raise ProxyError("upstream_failed", f"{self._origin.host}: {exc}") from exc

    def body(self) -> bytes:
        """Return the whole decoded body."""
        return b"".join(self.decoded())

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self.done and self._keep and not self._wire.rest:
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
            if self._now() - wire.since < IDLE_LIMIT and not hung_up(wire.sock):
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
        self,
        origin: Origin,
        head: bytes,
        body: Sequence[bytes | bytearray | memoryview] = (),
        watcher: Watcher | None = None,
    ) -> Exchange:
        """Send a request, `head` with its blank line, and read the head of the answer.

        A reused connection that dies before the first byte of the answer is replaced once by a
        fresh one. Raises ProxyError, kind upstream_failed or upstream_timeout.
        """
        method = head[: head.find(b" ")].decode("ascii")
        wire = self.take(origin)
        reused = wire is not None
        while True:
            wire = wire or connect(origin)
            wire.answered = False
            exchange = Exchange(self, origin, wire, watcher or Watcher())
            try:
                wire.send(head, body)
                if exchange.begin(method):
                    return exchange
                failure = "it closed the connection without an answer"
            except (OSError, ValueError) as exc:
                failure = str(exc)
            except BaseException:
                exchange.close()
                raise
            exchange.close()
            if not reused or wire.answered:
                raise ProxyError("upstream_failed", f"{origin.host}: {failure}")
            wire, reused = None, False


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


def request_head(method: str, path: str, origin: Origin, headers: Mapping[str, str], length: int) -> bytes:
    """Encode a request's head with its blank line. `path` begins with a slash.

    Raises ProxyError for a header value that would break out of its line.
    """
    default = 443 if origin.scheme == "https" else 80
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    place = host if origin.port == default else f"{host}:{origin.port}"
    if origin.proxy.startswith("http") and origin.scheme == "http":
        path = f"http://{place}{path}"
        user = urlsplit(origin.proxy)
        place += "\r\n" + basic_auth((unquote(user.username or ""), unquote(user.password or "")))[:-2]
    lines = [f"{method} {path} HTTP/1.1\r\nhost: {place}".rstrip()]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines.append(f"content-length: {length}\r\n\r\n")
    head = "\r\n".join(lines)
    if head.count("\n") != head.count("\r\n") or head.count("\n") > len(lines) + 3:
        raise ProxyError("invalid_request", "a header value holds a line break")
    return head.encode("latin-1", "replace")


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
    head = request_head(method, path or "/", origin, {**own, **headers}, len(body))
    pool = Pool()
    with contextlib.closing(pool.open(origin, head, [body], Deadline(timeout))) as exchange:
        reply = Reply(exchange.status, exchange.headers, exchange.body())
    pool.prune(0.0)
    return reply


########################################################################################
# 12. STORE
########################################################################################
# The credential files, as CLIProxyAPI lays them out.


########################################################################################
# 13. LOGIN
########################################################################################
# Logins.


########################################################################################
# 14. ROUTING
########################################################################################
# Accounts and their choice.


########################################################################################
# 15. UPSTREAM
########################################################################################
# One request, one account after the other.


########################################################################################
# 16. SERVER
########################################################################################
# The listening side.


########################################################################################
# 17. COMMANDS
########################################################################################
# The command line.
