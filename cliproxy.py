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

import hashlib
import json
import re
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Union

if sys.version_info < (3, 9):  # noqa: UP036 -- a copied file meets old interpreters
    raise SystemExit("cliproxy needs Python 3.9 or newer")

__version__ = "0.1.0"
__all__ = ["DIALECTS", "ProxyError", "main", "make_server"]

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
# Bytes on sockets.


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
