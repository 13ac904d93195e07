"""Stand-ins of the providers that take what theirs take, and refuse everything else by name.

What they check is written down from spec/providers.md 2 to 10 and spec/dialects.md 1 and 4, not
from cliproxy's tables, so that both can be wrong only apart.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote

from support.dialogue import ANSWERS, PROOFS, SSE, STREAMS, Said, frame
from support.upstream import Reply, Seen, Upstream, make_reply

Json = dict[str, Any]
Faults = Iterator[str]
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
NO_FIELDS: frozenset[str] = frozenset()


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def foreign(where: str, data: Json, known: frozenset[str], needed: str = "") -> Faults:
    for key in data.keys() - known:
        yield f"{where}: unknown field {key}"
    for key in needed.split():
        if data.get(key) in (None, ""):
            yield f"{where}: {key} is missing"


def unpaired(where: str, calls: list[str], results: list[str]) -> Faults:
    if sorted(calls) != sorted(results):
        yield f"{where}: results {results} for calls {calls}"


# --- Messages

CLAUDE_FIELDS = words(
    "model messages max_tokens system stop_sequences stream temperature top_p top_k tools tool_choice"
    " thinking output_config metadata service_tier cache_control"
)


def claude_faults(body: Json) -> Faults:
    yield from foreign("body", body, CLAUDE_FIELDS, "model messages max_tokens")
    for tool in body.get("tools", ()):
        yield from foreign("tool", tool, words("name description input_schema cache_control type strict"))
        if not NAME.fullmatch(tool["name"]) or tool["input_schema"].get("type") != "object":
            yield f"bad tool {tool}"
    calls: list[str] = []
    for at, message in enumerate(body["messages"]):
        where, content = f"messages[{at}]", message["content"]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        kinds = [block["type"] for block in blocks]
        if message["role"] != ("assistant" if at % 2 else "user"):
            yield f"{where}: it is not the turn of {message['role']}"
        yield from unpaired(where, calls, [b["tool_use_id"] for b in blocks if b["type"] == "tool_result"])
        calls = [b["id"] for b in blocks if b["type"] == "tool_use"]
        if "tool_result" in kinds and kinds[0] != "tool_result":
            yield f"{where}: a text before the results"
        for block in blocks:
            if block["type"] == "text" and not block["text"].strip():
                yield f"{where}: text content blocks must be non-empty"
            if block["type"] == "thinking" and block.get("signature") != PROOFS["claude"]:
                yield f"{where}: Invalid `signature` in `thinking` block"
    yield from unpaired("the end", calls, [])


# --- Chat

CHAT_FIELDS = words(
    "model messages max_tokens max_completion_tokens temperature top_p frequency_penalty presence_penalty seed stop"
    " stream stream_options tools tool_choice parallel_tool_calls response_format n logprobs top_logprobs"
)
CHAT_MESSAGE = {
    "developer": words("role content"), "system": words("role content"), "user": words("role content name"),
    "assistant": words("role content tool_calls reasoning_content refusal"), "tool": words("role content tool_call_id"),
}  # fmt: skip


def chat_faults(body: Json) -> Faults:
    yield from foreign("body", body, CHAT_FIELDS, "model messages")
    if "stream_options" in body and not body.get("stream"):
        yield "stream_options without stream"
    if not body.get("tools", True):
        yield "an empty list of tools"
    for tool in body.get("tools", ()):
        yield from foreign("tool", tool["function"], words("name description parameters strict"), "name")
    calls: list[str] = []
    for at, message in enumerate(body["messages"]):
        where = f"messages[{at}]"
        yield from foreign(where, message, CHAT_MESSAGE[message["role"]])
        if message["role"] == "tool":
            if message["tool_call_id"] not in calls:
                yield f"{where}: answers no call"
            calls = [id for id in calls if id != message["tool_call_id"]]
            continue
        yield from unpaired(where, calls, [])
        calls = [call["id"] for call in message.get("tool_calls", ())]
        for call in message.get("tool_calls", ()):
            yield from foreign(where, call, words("id type function"), "id type")
            json.loads(call["function"]["arguments"])
        if not message.get("content") and not calls:
            yield f"{where}: no content"
    yield from unpaired("the end", calls, [])


def only_max_tokens(body: Json) -> Faults:
    if "max_completion_tokens" in body:
        yield "unknown field max_completion_tokens"


def only_max_completion_tokens(body: Json) -> Faults:
    if "max_tokens" in body:
        yield "use max_completion_tokens"


def no_developer(body: Json) -> Faults:
    if any(message["role"] == "developer" for message in body["messages"]):
        yield "unknown role developer"


def one_system_message(body: Json) -> Faults:
    roles = [message["role"] for message in body["messages"]]
    if "developer" in roles or "system" in roles[1:]:
        yield f"exactly one system message, and that first: {roles}"


def no_stream_options(body: Json) -> Faults:
    if "stream_options" in body:
        yield "unknown field stream_options"


def usage_in_streams(body: Json) -> Faults:
    if body.get("stream") and not (body.get("stream_options") or {}).get("include_usage"):
        yield "stream_options.include_usage is not set"


def reasoning_with_calls(body: Json) -> Faults:
    for message in body["messages"]:
        if message.get("tool_calls") and not message.get("reasoning_content"):
            yield "reasoning_content is missing in assistant tool call message"


# --- Responses

RESPONSES_FIELDS = words(
    "model input instructions max_output_tokens temperature top_p tools tool_choice parallel_tool_calls reasoning text"
    " include store stream truncation metadata user safety_identifier prompt_cache_key service_tier stream_options"
)
CODEX_FIELDS = words(
    "model input instructions tools tool_choice parallel_tool_calls reasoning text include store stream prompt_cache_key"
    " service_tier client_metadata"
)
RESPONSES_ITEM = {
    "message": words("type role content id status phase"), "reasoning": words("type id summary content encrypted_content status"),
    "function_call": words("type id call_id name arguments status"), "function_call_output": words("type id call_id output status"),
}  # fmt: skip
PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc", "function_call_output": "fc"}


def responses_items(items: list[Json]) -> Faults:
    calls, results = [], []
    for at, item in enumerate(items):
        kind, where = item.get("type", "message"), f"input[{at}]"
        yield from foreign(where, item, RESPONSES_ITEM[kind])
        if "id" in item and not item["id"].startswith(PREFIXES[kind]):
            yield f"{where}: Expected an ID that begins with {PREFIXES[kind]!r}"
        if kind == "reasoning" and item.get("encrypted_content") != PROOFS["responses"]:
            yield f"{where}: invalid_encrypted_content"
        side = "output_text" if item.get("role") == "assistant" else "input_text"
        for part in item.get("content") or () if kind == "message" else ():
            if isinstance(part, dict) and part["type"] != side:
                yield f"{where}: {part['type']} under {item['role']}"
        calls += [item["call_id"]] if kind == "function_call" else []
        results += [item["call_id"]] if kind == "function_call_output" else []
    yield from unpaired("input", calls, results)


def responses_faults(body: Json) -> Faults:
    yield from foreign("body", body, RESPONSES_FIELDS, "model input")
    for tool in body.get("tools", ()):
        yield from foreign("tool", tool, words("type name description parameters strict"), "type name")
    if not isinstance(body["input"], str):
        yield from responses_items(body["input"])


def codex_faults(body: Json) -> Faults:
    yield from foreign("body", body, CODEX_FIELDS, "model input")
    fixed = {"store": False, "stream": True, "include": ["reasoning.encrypted_content"]}
    for key, value in fixed.items():
        if body.get(key) != value:
            yield f"{key} must be {value}"
    if not isinstance(body.get("instructions"), str) or not isinstance(body["input"], list):
        yield "instructions must be a text, input a list"
        return
    for item in body["input"]:
        if item.get("role") == "system":
            yield "System messages are not allowed"
        if "id" in item:
            yield f"Item with id {item['id']!r} not found: items are not persisted when `store` is false"


XAI_REFUSED = words("previous_response_id prompt_cache_retention safety_identifier stream_options stop")


def xai_faults(body: Json) -> Faults:
    for key in XAI_REFUSED & body.keys():
        yield f"Argument not supported: {key}"


# --- Gemini

GEMINI_FIELDS = words(
    "contents systemInstruction tools toolConfig generationConfig safetySettings cachedContent labels serviceTier store"
)
GEMINI_PART = words("text thought thoughtSignature functionCall functionResponse inlineData fileData")


def gemini_faults(body: Json) -> Faults:
    yield from foreign("body", body, GEMINI_FIELDS, "contents")
    for tool in body.get("tools", ()):
        for function in tool.get("functionDeclarations", ()):
            known = words(
                "name description parameters parametersJsonSchema parameters_json_schema response behavior"
            )
            yield from foreign("function", function, known, "name")
            yield from uncleaned(function.get("parameters", {}))
    calls: list[str] = []
    for at, content in enumerate(body["contents"]):
        where, parts = f"contents[{at}]", content.get("parts") or []
        if content.get("role", "user") != ("model" if at % 2 else "user"):
            yield f"{where}: it is not the turn of {content.get('role')}"
        for part in parts:
            yield from foreign(where, part, GEMINI_PART)
            if part == {"text": ""} and content["role"] != "model":  # with one its own streams end
                yield f"{where}: an empty text"
        names = [part["functionResponse"]["name"] for part in parts if "functionResponse" in part]
        yield from unpaired(where, calls, names)
        calls = [part["functionCall"]["name"] for part in parts if "functionCall" in part]
    yield from unpaired("the end", calls, [])


GEMINI_SCHEMA = words(
    "type format title description nullable enum maxItems minItems properties required minProperties maxProperties"
    " minLength maxLength pattern example anyOf propertyOrdering default items minimum maximum"
)


def uncleaned(schema: Json) -> Faults:
    """Yield what Gemini's older form of schemas does not know."""
    for key in schema.keys() - GEMINI_SCHEMA:
        yield f"Unknown name {key!r} in the parameters of a function"
    for inner in schema.get("properties", {}).values():
        yield from uncleaned(inner)


def antigravity_faults(body: Json) -> Faults:
    inner, claude = body["request"], "claude" in body["model"]
    if not re.fullmatch(r"-\d+", inner.pop("sessionId", "")):
        yield "sessionId is missing"
    if "safetySettings" in inner:
        yield "safetySettings"
    if not claude and "maxOutputTokens" in inner.get("generationConfig", {}):
        yield "maxOutputTokens"
    mode = inner.get("toolConfig", {}).get("functionCallingConfig", {}).get("mode")
    if claude and inner.get("tools") and mode != "VALIDATED":
        yield f"mode {mode}"
    for tool in inner.get("tools", ()):
        if any(
            words("parametersJsonSchema parameters_json_schema") & f.keys()
            for f in tool["functionDeclarations"]
        ):
            yield "unknown field parametersJsonSchema"


# --- what they are


class Terms(NamedTuple):
    """What a provider takes. `{model}` in a path is the model; `must` are fields of the body or the envelope."""

    dialect: str
    path: str
    stream: str = ""  # another path, for streams
    auth: str = "authorization"
    headers: Mapping[str, str] = {}
    checks: tuple[Callable[[Json], Faults], ...] = ()
    only_streams: bool = False
    envelope: frozenset[str] = NO_FIELDS  # its fields besides `request`, if there is one
    must: Mapping[str, Any] = {}
    own: frozenset[str] = NO_FIELDS  # fields that others of its dialect do not know
    ahead: tuple[bytes, ...] = ()  # what its streams begin with


FAULTS = {
    "claude": claude_faults, "chat": chat_faults, "responses": responses_faults, "gemini": gemini_faults,
}  # fmt: skip
MESSAGES = {"anthropic-version": r"20\d\d-\d\d-\d\d", "content-type": "application/json"}
LOGIN_BETA = {**MESSAGES, "anthropic-beta": "(.*,)?oauth-2025-04-20(,.*)?"}
CODEX_LIMITS = frame(
    {"type": "codex.rate_limits", "rate_limits": {"primary": {"used_percent": 9}}}, "codex.rate_limits"
)
KIMI_DEVICE = {
    "x-msh-platform": "cliproxy", "x-msh-version": ".+", "x-msh-device-name": "[!-~]+", "x-msh-device-model": "[!-~]+",
    "x-msh-device-id": "[0-9a-f]{32}",
}  # fmt: skip
THIRD_PARTY = (only_max_tokens, no_developer)
GOOGLE_PATHS = ("/v1beta/models/{model}:generateContent", "/v1beta/models/{model}:streamGenerateContent")
VERTEX_PATHS = (
    "/v1/publishers/google/models/{model}:generateContent", "/v1/publishers/google/models/{model}:streamGenerateContent",
)  # fmt: skip
ACCOUNT = "/v1/projects/proj-1/locations/us-central1/publishers/google/models/{model}"
ASSIST_PATHS = ("/v1internal:generateContent", "/v1internal:streamGenerateContent")
# fmt: off
TERMS = {
    "claude":               Terms("claude", "/v1/messages", headers=MESSAGES),
    "claude login":         Terms("claude", "/v1/messages", headers=LOGIN_BETA),
    "codex":                Terms("responses", "/responses", only_streams=True, checks=(codex_faults,), ahead=(CODEX_LIMITS,),
                                  headers={"originator": "cliproxy", "chatgpt-account-id": "acc-1", "accept": "text/event-stream"}),
    "openai":               Terms("responses", "/responses"),
    "openai-chat":          Terms("chat", "/chat/completions", checks=(only_max_completion_tokens,)),
    "gemini":               Terms("gemini", *GOOGLE_PATHS, auth="x-goog-api-key"),
    "vertex":               Terms("gemini", *VERTEX_PATHS, auth="x-goog-api-key"),
    "vertex login":         Terms("gemini", f"{ACCOUNT}:generateContent", f"{ACCOUNT}:streamGenerateContent"),
    "gemini-cli":           Terms("gemini", *ASSIST_PATHS, must={"project": "proj-1"},
                                  envelope=words("model project user_prompt_id session_id enabled_credit_types")),
    "antigravity":          Terms("gemini", *ASSIST_PATHS, only_streams=True, checks=(antigravity_faults,),
                                  must={"project": "proj-1", "userAgent": "cliproxy", "requestType": "agent"},
                                  envelope=words("model project requestId userAgent requestType")),
    "openai-compatibility": Terms("chat", "/chat/completions", checks=THIRD_PARTY),
    "kimi":                 Terms("chat", "/v1/chat/completions", headers=KIMI_DEVICE, own=words("thinking"),
                                  checks=(*THIRD_PARTY, usage_in_streams, reasoning_with_calls), must={"model": "k2.5"}),
    "kimi-claude":          Terms("claude", "/v1/messages", headers={**MESSAGES, **KIMI_DEVICE}, must={"model": "k2.5"}),
    "qwen":                 Terms("chat", "/chat/completions", checks=(*THIRD_PARTY, usage_in_streams, one_system_message)),
    "iflow":                Terms("chat", "/chat/completions", checks=THIRD_PARTY, own=words("chat_template_kwargs reasoning_split")),
    "xai":                  Terms("responses", "/responses", checks=(xai_faults,)),
}
# fmt: on
FIRST = Said("Let me see.", "I will look.", "toolu_1", "Zürich 😀")
LAST = Said(text="It is sunny.")
NEXT = Said(text="Tomorrow it rains.")
OUR_AGENT = re.compile(r"cliproxy/[\d.]+")


class StandIn:
    """A provider, at `upstream`. `accepts` tells whether it knows a token; `refused` is why it refused.

    It says FIRST, with a call; LAST to the call's result; NEXT to a question about tomorrow.
    """

    def __init__(
        self, upstream: Upstream, terms: Terms, accepts: Callable[[str], bool], base: str = ""
    ) -> None:
        self.terms, self.accepts, self.base = terms, accepts, base
        self.upstream, self.refused = upstream, list[str]()
        self.bodies: list[Json] = []  # of what it answered, out of their envelopes
        self.refusal: Callable[[Seen], Reply | None] = lambda _: None  # before all else

    def open(self, model: str) -> None:
        """Serve a model under its provider's paths."""
        for path in filter(None, (self.terms.path, self.terms.stream)):
            self.upstream.routes[self.base + path.replace("{model}", quote(model, safe=""))] = self.serve

    def serve(self, seen: Seen) -> Reply:
        refusal = self.refusal(seen)
        if refusal:
            return refusal
        if not self.accepts(token_of(seen, self.terms.auth)):
            return make_reply(UNAUTHORIZED[self.terms.dialect], 401)
        body = seen.json()
        try:
            self.refused += (f"{seen.path}: {fault}" for fault in self.faults(seen, body))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as exc:
            self.refused.append(f"{seen.path}: {exc!r}")
        if self.refused:
            return make_reply({"error": {"message": str(self.refused), "type": "invalid_request_error"}}, 400)
        self.bodies.append(body["request"] if self.terms.envelope else body)
        return self.answer(json.dumps(body, ensure_ascii=False), streams=self.streams(seen, body))

    def streams(self, seen: Seen, body: Json) -> bool:
        return "stream" in seen.path if self.terms.stream else bool(body.get("stream"))

    def faults(self, seen: Seen, body: Json) -> Faults:
        terms, inner = self.terms, body
        yield from self.head_faults(seen)
        if terms.only_streams and not self.streams(seen, body):
            yield "Stream must be set to true"
        for key, value in terms.must.items():
            if body.get(key) != value:
                yield f"{key} is {body.get(key)!r}, not {value!r}"
        for check in terms.checks:
            yield from check(body)
        if terms.envelope:
            yield from foreign("envelope", body, terms.envelope | {"request"}, "model request")
            inner = body["request"]
        known = {key: value for key, value in inner.items() if key not in terms.own}
        yield from FAULTS[terms.dialect](known)

    def head_faults(self, seen: Seen) -> Faults:
        path, _, query = seen.path.partition("?")
        if query != ("alt=sse" if path.endswith("streamGenerateContent") else ""):
            yield f"query {query!r}"
        for name, pattern in self.terms.headers.items():
            if not re.fullmatch(pattern, seen.headers.get(name, "")):
                yield f"header {name} is {seen.headers.get(name)!r}"
        credentials = words("authorization x-api-key x-goog-api-key cookie") & seen.headers.keys()
        if credentials - {self.terms.auth}:
            yield f"credentials in {sorted(credentials)}"
        if seen.headers.get("user-agent", "Python-urllib").startswith("Python-urllib"):
            yield "error code: 1010"
        if (
            seen.headers["content-type"] != "application/json"
            or seen.headers["accept-encoding"] != "identity"
        ):
            yield "content-type or accept-encoding"

    def answer(self, asked: str, *, streams: bool) -> Reply:
        said = NEXT if "tomorrow" in asked else LAST if "22 degrees" in asked else FIRST
        dialect = self.terms.dialect
        if not streams:
            whole = ANSWERS[dialect](said)
            return make_reply({"response": whole, "traceId": "t"} if self.terms.envelope else whole)
        frames = [*self.terms.ahead, *STREAMS[dialect](said)]
        if self.terms.envelope:
            frames = [wrapped(data) for data in frames]
        return make_reply(frames, headers=SSE)


def wrapped(data: bytes) -> bytes:
    payload = json.loads(data.strip().removeprefix(b"data: "))
    return frame({"response": payload, "traceId": "t"}).replace(b"\n\n", b"\r\n\r\n")


def token_of(seen: Seen, auth: str) -> str:
    value = seen.headers.get(auth, "")
    return value.partition("Bearer ")[2] if auth == "authorization" else value


UNAUTHORIZED: dict[str, Json] = {
    "claude": {"type": "error", "error": {"type": "authentication_error", "message": "OAuth token has expired"}},
    "chat": {"error": {"message": "Invalid Authentication", "type": "invalid_authentication_error"}},
    "responses": {"error": {"message": "Provided authentication token is expired.", "code": "token_expired"}, "status": 401},
    "gemini": {"error": {"code": 401, "message": "Request had invalid authentication credentials.", "status": "UNAUTHENTICATED"}},
}  # fmt: skip


def all_faults(stand_ins: Iterable[StandIn]) -> list[str]:
    return [fault for stand_in in stand_ins for fault in stand_in.refused]


# --- services of openai-compatibility that are known by name

THINKERS = (*THIRD_PARTY, reasoning_with_calls)
PRESET_CHECKS: dict[str, tuple[Callable[[Json], Faults], ...]] = {  # what they refuse; the others: THIRD_PARTY
    "openai": (only_max_completion_tokens,), "litellm": (), "cohere": (only_max_tokens,),
    "mistral": (*THIRD_PARTY, no_stream_options),
    **dict.fromkeys(words("groq cerebras xai grok gemini vllm sglang minimax minimax-cn"), (no_developer,)),
    **dict.fromkeys(words("deepseek zai zai-coding z.ai glm zhipu moonshot moonshot-cn kimi"), THINKERS),
}  # fmt: skip
