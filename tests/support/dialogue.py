"""What upstreams say, in each dialect, and how the vendors' own SDKs talk to the proxy about it.

The frames are written by hand, not by cliproxy's writers, so that both can be wrong only apart.
"""

from __future__ import annotations

import json
from contextlib import closing
from typing import Any, NamedTuple

import anthropic
import openai
from google import genai

Json = dict[str, Any]
NAMES = ("claude", "chat", "responses", "gemini")
PROOFS = {"claude": "Y2xhdWRl", "responses": "gAAAAAcmVzcG9uc2Vz", "gemini": "Z2VtaW5p", "chat": ""}
SCHEMA: Json = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


class Said(NamedTuple):
    """An answer of an upstream. Empty fields: it says no such thing."""

    thinking: str = ""
    text: str = ""
    call: str = ""  # its id
    input: str = ""  # of the call: its city


def frame(data: Json, event: str = "") -> bytes:
    return (f"event: {event}\n" if event else "").encode() + f"data: {json.dumps(data)}\n\n".encode()


# --- Claude


def claude_blocks(said: Said) -> list[tuple[Json, list[Json]]]:
    """Return the blocks as they start, and their deltas."""
    blocks: list[tuple[Json, list[Json]]] = []
    if said.thinking:
        deltas = [
            {"type": "thinking_delta", "thinking": said.thinking},
            {"type": "signature_delta", "signature": PROOFS["claude"]},
        ]
        blocks.append(({"type": "thinking", "thinking": "", "signature": ""}, deltas))
    if said.text:
        texts = [{"type": "text_delta", "text": piece} for piece in (said.text[:3], said.text[3:])]
        blocks.append(({"type": "text", "text": ""}, texts))
    if said.call:
        start = {"type": "tool_use", "id": said.call, "name": "look", "input": {}}
        wire = json.dumps({"city": said.input})
        texts = [{"type": "input_json_delta", "partial_json": piece} for piece in ("", wire[:4], wire[4:])]
        blocks.append((start, texts))
    return blocks


def claude_stream(said: Said) -> list[bytes]:
    head: Json = {**claude_answer(said), "content": [], "stop_reason": None}
    head["usage"] = {"input_tokens": 9, "output_tokens": 1}
    frames = [frame({"type": "message_start", "message": head}, "message_start")]
    for index, (start, deltas) in enumerate(claude_blocks(said)):
        body = {"index": index, "content_block": start}
        frames.append(frame({"type": "content_block_start", **body}, "content_block_start"))
        for delta in deltas:
            body = {"index": index, "delta": delta}
            frames.append(frame({"type": "content_block_delta", **body}, "content_block_delta"))
        frames.append(frame({"type": "content_block_stop", "index": index}, "content_block_stop"))
    delta = {"stop_reason": "tool_use" if said.call else "end_turn", "stop_sequence": None}
    frames.append(
        frame({"type": "message_delta", "delta": delta, "usage": {"output_tokens": 5}}, "message_delta")
    )
    return [*frames, frame({"type": "message_stop"}, "message_stop")]


def claude_answer(said: Said) -> Json:
    content: list[Json] = []
    if said.thinking:
        content.append({"type": "thinking", "thinking": said.thinking, "signature": PROOFS["claude"]})
    if said.text:
        content.append({"type": "text", "text": said.text})
    if said.call:
        content.append({"type": "tool_use", "id": said.call, "name": "look", "input": {"city": said.input}})
    return {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": content,
        "stop_reason": "tool_use" if said.call else "end_turn", "stop_sequence": None,
        "usage": {"input_tokens": 9, "output_tokens": 5},
    }  # fmt: skip


# --- Chat


def chat_call(said: Said) -> Json:
    wire = {"name": "look", "arguments": json.dumps({"city": said.input})}
    return {"id": said.call, "type": "function", "function": wire}


CHAT_USAGE = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}


def chat_stream(said: Said) -> list[bytes]:
    head = {"id": "c1", "object": "chat.completion.chunk", "created": 7, "model": "m"}
    deltas: list[Json] = [{"role": "assistant", "content": ""}]
    deltas += [{"reasoning_content": said.thinking}] if said.thinking else []
    deltas += [{"content": said.text[:3]}, {"content": said.text[3:]}] if said.text else []
    deltas += [{"tool_calls": [{"index": 0, **chat_call(said)}]}] if said.call else []
    rows: list[Json] = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    rows.append({"index": 0, "delta": {}, "finish_reason": "tool_calls" if said.call else "stop"})
    frames = [frame({**head, "choices": [row]}) for row in rows]
    return [*frames, frame({**head, "choices": [], "usage": CHAT_USAGE}), b"data: [DONE]\n\n"]


def chat_answer(said: Said) -> Json:
    message: Json = {"role": "assistant", "content": said.text or None}
    message.update({"reasoning_content": said.thinking} if said.thinking else {})
    message.update({"tool_calls": [chat_call(said)]} if said.call else {})
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if said.call else "stop"}
    head = {"id": "c1", "object": "chat.completion", "created": 7, "model": "m"}
    return {**head, "choices": [choice], "usage": CHAT_USAGE}


# --- Responses


def responses_items(said: Said) -> list[Json]:
    items: list[Json] = []
    if said.thinking:
        summary = [{"type": "summary_text", "text": said.thinking}]
        items.append(
            {"id": "rs_1", "type": "reasoning", "summary": summary, "encrypted_content": PROOFS["responses"]}
        )
    if said.text:
        content = [{"type": "output_text", "text": said.text, "annotations": []}]
        items.append(
            {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": content}
        )
    if said.call:
        arguments = json.dumps({"city": said.input})
        items.append({"id": "fc_1", "type": "function_call", "call_id": said.call, "name": "look",
                      "arguments": arguments, "status": "completed"})  # fmt: skip
    return items


def responses_answer(said: Said) -> Json:
    usage = {"input_tokens": 9, "output_tokens": 5, "total_tokens": 14,
             "input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}  # fmt: skip
    return {
        "id": "resp_1", "object": "response", "created_at": 7, "model": "m", "status": "completed", "error": None,
        "incomplete_details": None, "output": responses_items(said), "usage": usage, "tools": [],
        "tool_choice": "auto", "parallel_tool_calls": True,
    }  # fmt: skip


RESPONSES_EMPTY: dict[str, Json] = {  # what an item lacks when it is added
    "reasoning": {"summary": []}, "message": {"content": []}, "function_call": {"arguments": ""},
}  # fmt: skip


def responses_body(item: Json, at: Json) -> list[Json]:
    """Return the events between an item's first and last."""
    if item["type"] == "reasoning":
        at, text = {**at, "summary_index": 0}, item["summary"][0]["text"]
        part = {"type": "summary_text", "text": ""}
        return [
            {"type": "response.reasoning_summary_part.added", "part": part, **at},
            {"type": "response.reasoning_summary_text.delta", "delta": text, **at},
            {"type": "response.reasoning_summary_text.done", "text": text, **at},
            {"type": "response.reasoning_summary_part.done", "part": {**part, "text": text}, **at},
        ]
    if item["type"] == "function_call":
        text = item["arguments"]
        return [
            {"type": "response.function_call_arguments.delta", "delta": text, **at},
            {"type": "response.function_call_arguments.done", "arguments": text, "name": "look", **at},
        ]
    at, whole = {**at, "content_index": 0}, item["content"][0]
    return [
        {"type": "response.content_part.added", "part": {**whole, "text": ""}, **at},
        {"type": "response.output_text.delta", "delta": whole["text"][:3], "logprobs": [], **at},
        {"type": "response.output_text.delta", "delta": whole["text"][3:], "logprobs": [], **at},
        {"type": "response.output_text.done", "text": whole["text"], "logprobs": [], **at},
        {"type": "response.content_part.done", "part": whole, **at},
    ]


def responses_stream(said: Said) -> list[bytes]:
    whole = responses_answer(said)
    empty = {**whole, "status": "in_progress", "output": [], "usage": None}
    events: list[Json] = [
        {"type": f"response.{step}", "response": empty} for step in ("created", "in_progress")
    ]
    for index, item in enumerate(whole["output"]):
        start = {**item, **RESPONSES_EMPTY[item["type"]], "status": "in_progress"}
        events.append({"type": "response.output_item.added", "output_index": index, "item": start})
        events += responses_body(item, {"item_id": item["id"], "output_index": index})
        events.append({"type": "response.output_item.done", "output_index": index, "item": item})
    events.append({"type": "response.completed", "response": whole})
    return [frame({**event, "sequence_number": n}, event["type"]) for n, event in enumerate(events)]


# --- Gemini


def gemini_parts(said: Said) -> list[Json]:
    parts: list[Json] = [{"text": said.thinking, "thought": True}] if said.thinking else []
    parts += [{"text": said.text[:3]}, {"text": said.text[3:]}] if said.text else []
    if said.call:
        call = {"functionCall": {"id": said.call, "name": "look", "args": {"city": said.input}}}
        parts.append({**call, **({"thoughtSignature": PROOFS["gemini"]} if said.thinking else {})})
    return parts


GEMINI_USAGE = {"promptTokenCount": 9, "candidatesTokenCount": 5, "totalTokenCount": 14}


def gemini_answer(said: Said) -> Json:
    content = {"role": "model", "parts": gemini_parts(said)}
    candidate = {"index": 0, "content": content, "finishReason": "STOP"}
    return {"candidates": [candidate], "usageMetadata": GEMINI_USAGE, "modelVersion": "m", "responseId": "r1"}


def gemini_stream(said: Said) -> list[bytes]:
    whole, early = gemini_answer(said), {"modelVersion": "m", "responseId": "r1"}
    *parts, last = gemini_parts(said)
    contents = [{"index": 0, "content": {"role": "model", "parts": [part]}} for part in parts]
    chunks = [{**early, "candidates": [candidate]} for candidate in contents]
    ended = {"index": 0, "content": {"role": "model", "parts": [last]}, "finishReason": "STOP"}
    wire = (frame(chunk) for chunk in (*chunks, {**whole, "candidates": [ended]}))
    return [data.replace(b"\n\n", b"\r\n\r\n") for data in wire]


ANSWERS = {
    "claude": claude_answer,
    "chat": chat_answer,
    "responses": responses_answer,
    "gemini": gemini_answer,
}
STREAMS = {
    "claude": claude_stream,
    "chat": chat_stream,
    "responses": responses_stream,
    "gemini": gemini_stream,
}
SSE = {"content-type": "text/event-stream"}


# --- the SDKs, as clients that call tools


class Client:
    """A conversation through one vendor's SDK: `say` asks and returns (text, calls) of the answer.

    `system` and `limit`, of its answers in tokens, are sent if they are given.
    """

    def __init__(self, url: str, *, stream: bool, system: str = "", limit: int = 0) -> None:
        self.url, self.stream, self.system, self.limit = url, stream, system, limit
        self.history: list[Any] = []

    def say(self, model: str) -> tuple[str, list[tuple[str, Json]]]:
        raise NotImplementedError

    def ask(self, text: str) -> None:
        raise NotImplementedError

    def give(self, result: str) -> None:
        """Answer the last call."""
        raise NotImplementedError


class ClaudeClient(Client):
    def ask(self, text: str) -> None:
        self.history.append({"role": "user", "content": text})

    def give(self, result: str) -> None:
        calls = [block for block in self.history[-1]["content"] if block.type == "tool_use"]
        blocks = [{"type": "tool_result", "tool_use_id": call.id, "content": result} for call in calls]
        self.history.append({"role": "user", "content": blocks})

    def say(self, model: str) -> tuple[str, list[tuple[str, Json]]]:
        tool = {"name": "look", "description": "Looks.", "input_schema": SCHEMA}
        body: Json = {"model": model, "max_tokens": 4096, "messages": self.history, "tools": [tool]}
        body.update({"system": self.system} if self.system else {})
        with anthropic.Anthropic(base_url=self.url, api_key="k", max_retries=0) as client:
            if self.stream:
                with client.messages.stream(**body) as stream:
                    message = stream.get_final_message()
            else:
                message = client.messages.create(**body)
        self.history.append({"role": "assistant", "content": message.content})
        texts = [block.text for block in message.content if block.type == "text"]
        calls = [(block.name, block.input) for block in message.content if block.type == "tool_use"]
        assert message.stop_reason == ("tool_use" if calls else "end_turn")
        assert (message.usage.input_tokens, message.usage.output_tokens) == (9, 5)
        return "".join(texts), calls


class ChatClient(Client):
    def ask(self, text: str) -> None:
        self.history.append({"role": "user", "content": text})

    def give(self, result: str) -> None:
        for call in self.history[-1]["tool_calls"]:
            self.history.append({"role": "tool", "tool_call_id": call["id"], "content": result})

    def say(self, model: str) -> tuple[str, list[tuple[str, Json]]]:
        function = {"name": "look", "description": "Looks.", "parameters": SCHEMA}
        body: Json = {
            "model": model,
            "messages": self.history,
            "tools": [{"type": "function", "function": function}],
        }
        if self.system:
            body["messages"] = [{"role": "developer", "content": self.system}, *self.history]
        body.update({"max_completion_tokens": self.limit} if self.limit else {})
        with openai.OpenAI(base_url=f"{self.url}/v1", api_key="k", max_retries=0) as client:
            if self.stream:
                with client.chat.completions.stream(**body, stream_options={"include_usage": True}) as stream:
                    answer = stream.get_final_completion()
            else:
                answer = client.chat.completions.create(**body)
        (choice,) = answer.choices
        message = choice.message.model_dump(exclude_none=True, exclude={"parsed": True})
        for call in message.get("tool_calls", ()):
            call["function"].pop("parsed_arguments", None)
            call.pop("index", None)
        self.history.append(message)
        functions = [call["function"] for call in message.get("tool_calls", ())]
        calls = [(function["name"], json.loads(function["arguments"])) for function in functions]
        assert choice.finish_reason == ("tool_calls" if calls else "stop")
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (9, 5)
        return message.get("content") or "", calls


class ResponsesClient(Client):
    def ask(self, text: str) -> None:
        self.history.append({"role": "user", "content": text})

    def give(self, result: str) -> None:
        for item in list(self.history):
            if item.get("type") == "function_call" and not self.answered(item["call_id"]):
                self.history.append(
                    {"type": "function_call_output", "call_id": item["call_id"], "output": result}
                )

    def answered(self, call_id: str) -> bool:
        outputs = [item for item in self.history if item.get("type") == "function_call_output"]
        return any(item["call_id"] == call_id for item in outputs)

    def say(self, model: str) -> tuple[str, list[tuple[str, Json]]]:
        tool = {
            "type": "function",
            "name": "look",
            "description": "Looks.",
            "parameters": SCHEMA,
            "strict": False,
        }
        body: Json = {"model": model, "input": self.history, "tools": [tool], "store": False}
        body["include"] = ["reasoning.encrypted_content"]
        body.update({"instructions": self.system} if self.system else {})
        body.update({"max_output_tokens": self.limit} if self.limit else {})
        with openai.OpenAI(base_url=f"{self.url}/v1", api_key="k", max_retries=0) as client:
            if self.stream:
                with client.responses.stream(**body) as stream:
                    answer = stream.get_final_response()
            else:
                answer = client.responses.create(**body)
        assert answer.status == "completed"
        items = [item.model_dump(exclude_none=True) for item in answer.output]
        for item in items:
            item.pop("parsed_arguments", None)
        self.history += items
        calls = [(i["name"], json.loads(i["arguments"])) for i in items if i["type"] == "function_call"]
        assert (answer.usage.input_tokens, answer.usage.output_tokens) == (9, 5)
        return answer.output_text, calls


class GeminiClient(Client):
    def ask(self, text: str) -> None:
        self.history.append(genai.types.Content(role="user", parts=[genai.types.Part(text=text)]))

    def give(self, result: str) -> None:
        calls = [part.function_call for part in self.history[-1].parts if part.function_call]
        parts = [
            genai.types.Part(
                function_response=genai.types.FunctionResponse(
                    id=call.id, name=call.name, response={"output": result}
                )
            )
            for call in calls
        ]
        self.history.append(genai.types.Content(role="user", parts=parts))

    def chunks(self, client: Any, body: Json) -> list[Any]:
        if self.stream:
            return list(client.models.generate_content_stream(**body))
        return [client.models.generate_content(**body)]

    def say(self, model: str) -> tuple[str, list[tuple[str, Json]]]:
        declared = genai.types.FunctionDeclaration(
            name="look", description="Looks.", parameters_json_schema=SCHEMA
        )
        automatic = genai.types.AutomaticFunctionCallingConfig(disable=True)
        tools = [genai.types.Tool(function_declarations=[declared])]
        config = genai.types.GenerateContentConfig(
            tools=tools,
            automatic_function_calling=automatic,
            system_instruction=self.system or None,
            max_output_tokens=self.limit or None,
        )
        options = genai.types.HttpOptions(base_url=self.url)
        with closing(genai.Client(api_key="k", http_options=options)) as client:
            body = {"model": model, "contents": self.history, "config": config}
            chunks = self.chunks(client, body)
        last = chunks[-1]
        assert last.candidates[0].finish_reason == "STOP"
        usage = last.usage_metadata
        assert (usage.prompt_token_count, usage.candidates_token_count) == (9, 5)
        parts = [part for chunk in chunks for part in chunk.candidates[0].content.parts or ()]
        self.history.append(genai.types.Content(role="model", parts=parts))
        texts = [part.text for part in parts if part.text and not part.thought]
        calls = [(part.function_call.name, part.function_call.args) for part in parts if part.function_call]
        return "".join(texts), calls


CLIENTS = {"claude": ClaudeClient, "chat": ChatClient, "responses": ResponsesClient, "gemini": GeminiClient}
