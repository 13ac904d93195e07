"""Answers that clients refer to later: on every kind of upstream, by key, within bounds, in memory and on disk."""

from __future__ import annotations

import json
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cliproxy as cp
from support.codex import add_codex
from support.dialogue import ANSWERS, NAMES, PROOFS, STREAMS, Said
from support.proxy import Got, Proxy, ProxyMaker
from support.upstream import Clock, Upstream

SSE = {"content-type": "text/event-stream"}
SAID = Said(thinking="Hm.", text="Let me look.", call="call_1", input="Rome")
TOOL = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}}
ASKED = {"role": "user", "content": [{"type": "input_text", "text": "look around"}]}
HI = {"type": "message", "role": "user", "content": "hi"}
STORES = ["memory", "disk"]
MODELS = [*(f"up-{name}" for name in NAMES), "gpt-test"]


@pytest.fixture(params=STORES)
def proxy(request: pytest.FixtureRequest, make_proxy: ProxyMaker, upstream: Upstream) -> Proxy:
    codex = {"base-url": f"{upstream.url}/codex"}
    made = make_proxy(responses={"store": request.param}, providers={"codex": codex}, disable_cooling=True)
    add_codex(made, "a")
    return made


def dialect_of(model: str) -> str:
    return model[3:] if model.startswith("up-") else "responses"


def prepare(upstream: Upstream, model: str, said: Said, *, stream: bool) -> None:
    dialect = dialect_of(model)
    if stream or model == "gpt-test":
        upstream.reply(STREAMS[dialect](said), headers=SSE)
    else:
        upstream.reply(ANSWERS[dialect](said))


def output_of(got: Got) -> list[Any]:
    assert got.status == 200, got.body
    response = got.json() if "json" in got.headers["content-type"] else got.payloads()[-1]["response"]
    items = [p["item"] for p in cp.sse_read([got.body]) if p.get("type") == "response.output_item.done"]
    return list(response["output"] or items)


def post(proxy: Proxy, model: str, given: Any, **more: Any) -> Got:
    return proxy.ask("/v1/responses", {"model": model, "input": given, "tools": [TOOL], **more})


def id_of(got: Got) -> str:
    response = got.json() if "json" in got.headers["content-type"] else got.payloads()[-1]["response"]
    return str(response["id"])


# --- the loops of clients ----------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("model", MODELS)
def test_items_that_are_referred_to_are_put_back(
    proxy: Proxy, upstream: Upstream, model: str, stream: bool
) -> None:
    """As the AI SDK's default provider does: what was said by references, the call itself in full."""
    prepare(upstream, model, SAID, stream=stream)
    items = output_of(post(proxy, model, [ASKED], stream=stream))
    references = [
        {"type": "item_reference", "id": item["id"]} for item in items if item["type"] != "function_call"
    ]
    call = {key: items[-1][key] for key in ("type", "call_id", "name", "arguments")}
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
    prepare(upstream, model, Said(text="It is sunny."), stream=stream)
    got = post(proxy, model, [ASKED, *references, call, result], stream=stream)
    assert output_of(got)[-1]["content"][0]["text"] == "It is sunny."
    sent = upstream.seen[-1].body.decode()
    assert "item_reference" not in sent
    assert "Let me look." in sent
    assert sent.count("Rome") == 1
    assert "sunny" in sent
    if model != "up-chat":
        assert PROOFS[dialect_of(model)] in sent, "it gets its own proof back"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("model", MODELS)
def test_a_conversation_goes_on_from_an_answer(
    proxy: Proxy, upstream: Upstream, model: str, stream: bool
) -> None:
    """As the Agents SDK and Copilot do; a third turn on another model has all of it, too."""
    prepare(upstream, model, SAID, stream=stream)
    first = post(proxy, model, "look around", stream=stream)
    result = {"type": "function_call_output", "call_id": output_of(first)[-1]["call_id"], "output": "sunny"}
    prepare(upstream, model, Said(text="It is sunny."), stream=stream)
    second = post(proxy, model, [result], stream=stream, previous_response_id=id_of(first))
    assert output_of(second)[-1]["content"][0]["text"] == "It is sunny."
    for other in ("up-claude", "up-chat"):
        prepare(upstream, other, Said(text="Bye."), stream=stream)
        output_of(post(proxy, other, "thanks", stream=stream, previous_response_id=id_of(second)))
    for seen, words in zip(upstream.seen[1:], (4, 6, 6)):
        told = ["look around", "Let me look.", "Rome", "sunny", "It is sunny.", "thanks"][:words]
        places = [seen.body.decode().find(word) for word in told]
        assert places == sorted(places), "in order"
        assert -1 not in places
        assert b"previous_response_id" not in seen.body


def streamed(client: openai.OpenAI, body: Any) -> Any:
    with client.responses.stream(**body) as events:
        return events.get_final_response()


@pytest.mark.parametrize("stream", [True, False])
def test_the_sdk_goes_on(proxy: Proxy, upstream: Upstream, stream: bool) -> None:
    with openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="k", max_retries=0) as client:
        previous: str | None = None
        for turn in range(4):
            prepare(upstream, "up-claude", Said(text=f"answer {turn}"), stream=stream)
            body: Any = {"model": "up-claude", "input": f"question {turn}", "previous_response_id": previous}
            response = streamed(client, body) if stream else client.responses.create(**body)
            previous = response.id
            assert client.responses.retrieve(response.id).output_text == f"answer {turn}"
        assert len(upstream.seen[-1].json()["messages"]) == 7
        items = client.responses.input_items.list(response.id, order="asc")
        assert [item.type for item in items] == ["message"] * 7
        client.responses.delete(response.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(response.id)


def test_effort_of_a_long_conversation_is_its_length(make_proxy: ProxyMaker) -> None:
    proxy = make_proxy()
    last: dict[str, str] = {}
    for _ in range(20):
        last = {"previous_response_id": post(proxy, "echo", "x" * 1_000, **last).json()["id"]}
    ((size,),) = proxy.app.stored._memory._connection.execute("SELECT total(size) FROM answers")
    assert 20 * 2_000 < size < 20 * 5_000, "each turn once"


# --- what is not known -------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["up-claude", "up-chat", "up-gemini", "gpt-test", "echo"])
def test_what_is_unknown_is_told_in_openais_words(proxy: Proxy, upstream: Upstream, model: str) -> None:
    gone = post(proxy, model, "hi", previous_response_id="resp_gone")
    error = gone.json()["error"]
    assert (gone.status, error["code"], error["param"]) == (
        400, "previous_response_not_found", "previous_response_id",
    )  # fmt: skip
    assert error["message"].startswith("Previous response with id 'resp_gone' not found.")
    for reference in ({"type": "item_reference", "id": "msg_gone"}, {"id": "msg_gone"}):
        item = post(proxy, model, [HI, reference])
        assert item.status == 404
        assert "Item with id 'msg_gone' not found. Items are not persisted" in item.json()["error"]["message"]
    assert not upstream.seen
    assert proxy.app.router.report(proxy.app.router.offers.accounts[0])["cooling"] == []


def test_reasoning_that_is_unknown_is_left_out(proxy: Proxy, upstream: Upstream) -> None:
    prepare(upstream, "up-claude", Said(text="ok"), stream=False)
    assert post(proxy, "up-claude", [HI, {"type": "item_reference", "id": "rs_gone"}]).status == 200


@pytest.mark.parametrize(
    "more", [{"previous_response_id": "resp_gone"}, {"input": [{"type": "item_reference", "id": "msg_gone"}]}]
)
def test_who_may_know_is_asked_with_the_bytes_as_they_came(
    proxy: Proxy, upstream: Upstream, more: Any
) -> None:
    prepare(upstream, "up-responses", Said(text="ok"), stream=False)
    body = json.dumps({"model": "up-responses", "input": "hi", **more}, indent=2).encode()
    got = proxy.ask("/v1/responses", body)
    assert upstream.seen[0].body == body
    assert proxy.ask(f"/v1/responses/{id_of(got)}").status == 404 or "input" in more, "half of it is not kept"


ODD = [
    {"previous_response_id": ["r"]}, {"previous_response_id": {"r": 1}}, {"previous_response_id": 7},
    {"previous_response_id": ""}, {"previous_response_id": "\ud800"}, {"input": [{"type": "item_reference"}]},
    {"input": [{"type": "item_reference", "id": None}]}, {"input": [{"type": "item_reference", "id": ["x"]}]},
    {"input": [None], "previous_response_id": "r"}, {"input": 7, "previous_response_id": "r"},
    {"input": {"a": 1}, "previous_response_id": "r"}, {"input": [[]], "previous_response_id": None}, {"store": "yes"},
    {"store": 0}, {"store": None},
]  # fmt: skip


@pytest.mark.parametrize("more", ODD)
def test_odd_requests_break_nothing(proxy: Proxy, upstream: Upstream, more: Any) -> None:
    for model in ("echo", "up-responses"):
        upstream.reply(ANSWERS["responses"](Said(text="ok")))
        got = proxy.ask("/v1/responses", {"model": model, "input": "hi", **more})
        assert got.status in {200, 400, 404}, got.body
    assert post(proxy, "echo", "still here").status == 200


@pytest.mark.parametrize(
    "path", ["%00", "..", "a/b/c", "%ff", "'; DROP TABLE answers", "x" * 2_000, "a/input_items?limit=x"]
)
def test_odd_names_are_unknown(proxy: Proxy, path: str) -> None:
    assert proxy.ask(f"/v1/responses/{path.replace(' ', '%20')}").status == 404


# --- what is kept, for whom, and how long ------------------------------------------------------


def test_what_is_not_to_be_stored_is_not(proxy: Proxy) -> None:
    id = post(proxy, "echo", "secret words", store=False).json()["id"]
    assert proxy.ask(f"/v1/responses/{id}").status == 404
    assert post(proxy, "echo", "hi", previous_response_id=id).status == 400
    for file in proxy.auth_dir.glob(".cliproxy/responses.db*"):
        assert b"secret words" not in file.read_bytes()


@pytest.mark.parametrize("store", STORES)
def test_a_key_sees_its_own_answers_only(make_proxy: ProxyMaker, store: str) -> None:
    proxy = make_proxy(responses={"store": store}, api_keys=["ann", "bob"])
    ann, bob = ({"authorization": f"Bearer {key}"} for key in ("ann", "bob"))
    made = proxy.ask("/v1/responses", {"model": "echo", "input": "mine"}, ann).json()
    item = {"type": "item_reference", "id": made["output"][0]["id"]}
    for body in ({"input": "x", "previous_response_id": made["id"]}, {"input": [item]}):
        assert proxy.ask("/v1/responses", {"model": "echo", **body}, ann).status == 200
        assert proxy.ask("/v1/responses", {"model": "echo", **body}, bob).status in {400, 404}
    for method in ("GET", "DELETE"):
        assert proxy.ask(f"/v1/responses/{made['id']}", None, bob, method).status == 404
        assert proxy.ask(f"/v1/responses/{made['id']}", None, None, method).status == 401
        assert proxy.ask(f"/v1/responses/{made['id']}", None, ann, method).status == 200


def test_what_clients_can_do_with_an_answer(proxy: Proxy) -> None:
    first = post(proxy, "echo", "one").json()
    second = post(
        proxy, "echo", [{"role": "user", "content": "two"}], previous_response_id=first["id"]
    ).json()
    place = f"/v1/responses/{second['id']}"
    assert proxy.ask(place).json()["output"] == second["output"]
    page = proxy.ask(f"{place}/input_items?limit=2").json()
    assert [item["role"] for item in page["data"]] == ["user", "assistant"]
    assert (page["object"], page["has_more"], page["first_id"]) == ("list", True, page["data"][0]["id"])
    rest = proxy.ask(f"{place}/input_items?after={page['last_id']}").json()
    assert [item["content"] for item in rest["data"]] == ["one"]
    cancelled = proxy.ask(f"{place}/cancel", {})
    assert (cancelled.status, cancelled.json()["error"]["message"]) == (
        400,
        "Cannot cancel a synchronous response.",
    )
    assert proxy.ask(place, method="DELETE").json() == {
        "id": second["id"],
        "object": "response",
        "deleted": True,
    }
    assert proxy.ask(place, method="DELETE").status == 404
    assert proxy.ask(f"{place}/nothing").status == 404


@pytest.mark.parametrize("stream", [True, False])
def test_what_broke_off_is_not_kept(proxy: Proxy, upstream: Upstream, stream: bool) -> None:
    upstream.reply(STREAMS["responses"](SAID)[:-1], headers=SSE)
    got = post(proxy, "gpt-test", "hi", stream=stream)
    assert proxy.ask("/v1/responses/resp_1").status == 404, got.body


def test_the_disk_outlives_a_restart_and_is_private(make_proxy: ProxyMaker) -> None:
    proxy = make_proxy(responses={"store": "disk"})
    id = post(proxy, "echo", "remember me").json()["id"]
    proxy.app.stored.close()
    proxy.app.stored = cp.Stored(proxy.auth_dir)
    proxy.app.reload()
    assert post(proxy, "echo", "again", previous_response_id=id).status == 200
    files = list(proxy.auth_dir.glob(".cliproxy/responses.db*"))
    assert files
    assert all(file.stat().st_mode & 0o077 == 0 for file in files)


def test_it_can_be_switched_off_and_moved(make_proxy: ProxyMaker) -> None:
    proxy = make_proxy(responses={"store": "off"})
    for store in ("off", "disk", "memory", "disk", "off"):
        proxy.write({**proxy.settings, "responses": {"store": store}})
        proxy.app.poll()
        id = post(proxy, "echo", "x").json()["id"]
        assert proxy.ask(f"/v1/responses/{id}").status == (404 if store == "off" else 200)


def test_a_broken_file_breaks_no_request(make_proxy: ProxyMaker, caplog: pytest.LogCaptureFixture) -> None:
    proxy = make_proxy(responses={"store": "disk"})
    place = proxy.auth_dir / ".cliproxy" / "responses.db"
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(b"no database" * 1_000)
    id = post(proxy, "echo", "x").json()["id"]
    assert proxy.ask(f"/v1/responses/{id}").status == 404
    assert caplog.text.count("answers are not stored") == 1


# --- the shelf ---------------------------------------------------------------------------------


def kept(id: str, said: str = "", previous: str = "") -> cp.Kept:
    output = [{"type": "message", "id": f"msg_{id}"}]
    return cp.Kept(id, previous, [{"role": "user", "content": said}], {"id": id, "output": output})


def shelf_of(path: Path | None, clock: Clock, limit: int = 10_000) -> cp.Shelf:
    made = cp.Shelf(path, clock)
    made.limit = limit
    made.lasts = 3_600.0
    return made


@pytest.fixture(params=STORES)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "shelf.db" if request.param == "disk" else None


def test_what_was_not_used_for_longest_goes_first(path: Path | None, clock: Clock) -> None:
    with closing(shelf_of(path, clock, 1_000)) as shelf:
        for id in "abc":
            shelf.put("o", kept(id, "x" * 200))
            clock.turn(100.0)
        assert shelf.get("o", "a")
        shelf.put("o", kept("d", "x" * 200))
        assert [bool(shelf.get("o", id)) for id in "abcd"] == [True, False, True, True]
        assert [shelf.holder("o", f"msg_{id}") for id in "abcd"] == ["a", "", "c", "d"]
        shelf.put("o", kept("huge", "x" * 2_000))
        assert [bool(shelf.get("o", id)) for id in ("a", "huge")] == [True, False]


def test_what_is_old_is_forgotten(path: Path | None, clock: Clock) -> None:
    with closing(shelf_of(path, clock)) as shelf:
        shelf.put("o", kept("a"))
        clock.turn(3_000.0)
        shelf.put("o", kept("b"))
        clock.turn(601.0)
        assert shelf.get("o", "a") is None
        shelf.prune()
        ((count,),) = shelf._connection.execute("SELECT count(*) FROM answers")
        assert (count, shelf.get("o", "b") is None) == (1, False)


def test_two_processes_share_a_file(tmp_path: Path, clock: Clock) -> None:
    place = tmp_path / "shelf.db"
    with closing(shelf_of(place, clock)) as one, closing(shelf_of(place, clock)) as other:

        def fill(shelf: cp.Shelf, owner: str) -> None:
            for number in range(30):
                shelf.put(owner, kept(f"r{number}"))

        threads = [threading.Thread(target=fill, args=pair) for pair in ((one, "a"), (other, "b"))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(one.get("b", f"r{n}") and other.get("a", f"r{n}") for n in range(30))


IDS = st.sampled_from("abcde")
ACTS = st.lists(
    st.tuples(st.sampled_from(["put", "get", "drop", "wait"]), IDS, st.integers(0, 700)), max_size=30
)


@given(ACTS)
def test_a_shelf_never_holds_more_than_it_may(acts: list[tuple[str, str, int]]) -> None:
    clock = Clock()
    with closing(shelf_of(None, clock, 1_500)) as shelf:
        last: dict[str, int] = {}
        for act, id, number in acts:
            if act == "put":
                shelf.put("o", kept(id, "x" * number))
                last[id] = number
            elif act == "drop":
                assert shelf.drop("o", id) <= (id in last)
                last.pop(id, None)
            elif act == "wait":
                clock.turn(float(number))
            elif found := shelf.get("o", id):
                assert found.said == kept(id, "x" * last[id]).said
            rows = (
                shelf._connection.execute("SELECT id, size FROM answers").fetchall()
                if shelf._connection
                else []
            )
            assert sum(size for _, size in rows) == shelf._size <= shelf.limit
            assert {id for id, _ in rows} <= last.keys()


def test_an_event_of_an_odd_type_passes(proxy: Proxy, upstream: Upstream) -> None:
    """It is not for us to break an answer at it."""
    odd = b'data: {"type": ["response.completed"], "response": {}}\n\n'
    first, *rest = STREAMS["responses"](Said(text="It is sunny."))
    upstream.reply([first, odd, *rest], headers=SSE)
    got = post(proxy, "up-responses", [HI], stream=True)
    assert got.status == 200
    assert got.payloads()[-1]["type"] == "response.completed"
