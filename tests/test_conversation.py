"""The model between all dialects: parts as readers tell of them, events folded and unfolded, turns and results."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cliproxy as cp
from cliproxy import Message, MessageEnd, MessageStart, Part, PartDelta, PartEnd, Parts, PartStart
from support.fitting import assistant, call, results, user

CITED = cp.Citation("https://a.example", "A", 0, 2)
START, END = MessageStart("m1", "model"), MessageEnd("stop")


def tell(*steps: Callable[[Parts], Iterable[cp.Event]]) -> list[cp.Event]:
    """Return what is said of one choice, whose part is closed at the end."""
    parts = Parts(itertools.count())
    said = [event for step in steps for event in step(parts)]
    return [*said, *parts.close()]


# --- parts


def test_a_part_begins_with_what_is_first_said_of_it() -> None:
    said = tell(lambda p: p.open(Part("text")), lambda p: p.add("text", ""), lambda p: p.add("text", "a"))
    assert said == [PartStart(0, Part("text")), PartDelta(0, "text", "a"), PartEnd(0)]


def test_a_part_of_which_nothing_is_said_does_not_begin() -> None:
    said = tell(lambda p: p.open(Part("thinking")), lambda p: p.say(Part("text", "a")))
    assert said == [PartStart(0, Part("text")), PartDelta(0, "text", "a"), PartEnd(0)]


def test_a_part_ends_before_the_next() -> None:
    said = tell(lambda p: p.say(Part("thinking", "a")), lambda p: p.say(Part("text", "b")))
    assert [type(event) for event in said] == [PartStart, PartDelta, PartEnd] * 2
    assert [event.at for event in said if isinstance(event, PartStart)] == [0, 1]


def test_pieces_of_one_kind_are_one_part() -> None:
    said = tell(lambda p: p.say(Part("text", "a")), lambda p: p.say(Part("text", "b")))
    assert said == [
        PartStart(0, Part("text")), PartDelta(0, "text", "a"), PartDelta(0, "text", "b"), PartEnd(0),
    ]  # fmt: skip


def test_empty_arguments_become_an_empty_object() -> None:
    bare = Part("call", id="c", name="f")
    assert tell(lambda p: p.open(bare), Parts.begin) == [
        PartStart(0, bare), PartDelta(0, "text", "{}"), PartEnd(0),
    ]  # fmt: skip
    free = bare._replace(custom=True)
    assert tell(lambda p: p.open(free), Parts.begin) == [PartStart(0, free), PartEnd(0)]


def test_choices_share_their_numbers() -> None:
    numbers = itertools.count()
    one, other = Parts(numbers, 0), Parts(numbers, 1)
    said = [*one.say(Part("text", "a")), *other.say(Part("text", "b")), *one.close(), *other.close()]
    assert [(e.at, e.choice) for e in said if isinstance(e, PartStart)] == [(0, 0), (1, 1)]
    choices = cp.collect([START, *said, END, END._replace(choice=1)]).choices
    assert [cp.text_of(choice.parts) for choice in choices] == ["a", "b"]


# --- events

WHOLE = st.tuples(
    st.sampled_from(["text", "thinking", "refusal"]),
    st.text(min_size=1),
    st.sampled_from(["", "proof"]),
    st.sampled_from([(), (CITED,), (CITED, CITED)]),
).map(lambda cells: Part(cells[0], cells[1], proof=cells[2], citations=cells[3]))


@given(st.lists(WHOLE, max_size=5))
def test_what_is_told_of_whole_parts_is_what_they_are(parts: list[Part]) -> None:
    steps = [lambda p, part=part: p.whole(part) for part in parts]
    assert cp.collect([START, *tell(*steps), END]).choices[0].parts == tuple(parts)
    again = [event for at, part in enumerate(parts) for event in cp.part_events(at, part)]
    assert again == tell(*steps)


@given(st.lists(WHOLE, max_size=4), st.booleans())
def test_a_collected_answer_can_be_told_again(parts: list[Part], logprobs: bool) -> None:
    tokens = ({"token": "a"},) if logprobs and any(part.kind == "text" for part in parts) else ()
    answer = cp.Response(START, (cp.Choice(tuple(parts), END, tokens),), cp.Usage(1, output=2))
    assert cp.collect(cp.response_events(answer)) == answer


class Writer:
    """Writes a line an event, and nothing for an empty text."""

    takes: ClassVar[Mapping[type, Callable[[Any, Any], Iterable[bytes]]]] = {
        kind: lambda self, event: self.frame(event)
        for kind in (MessageStart, PartStart, PartDelta, PartEnd, cp.Usage, MessageEnd)
    }

    def __init__(self) -> None:
        self.begun = False

    def frame(self, event: object) -> Iterator[bytes]:
        self.begun = True
        yield type(event).__name__.encode()

    def text(self, event: PartDelta) -> bytes:
        return str(event.value).encode()

    def finish(self) -> Iterator[bytes]:
        yield b"finished"

    def fail(self, error: cp.ProxyError) -> Iterator[bytes]:
        yield f"failed: {error}".encode()


def broken(*events: cp.Event) -> Iterator[cp.Event]:
    yield from events
    raise cp.ProxyError("upstream_failed", "gone")


def test_frames() -> None:
    events = [START, *cp.part_events(0, Part("text", "hi")), PartDelta(1, "text", ""), END]
    frames = list(cp.write_frames(Writer(), events))
    assert frames == [b"MessageStart", b"PartStart", b"hi", b"PartEnd", b"MessageEnd", b"finished"]


def test_a_stream_that_breaks_off_ends_in_its_failure() -> None:
    assert list(cp.write_frames(Writer(), broken(START))) == [b"MessageStart", b"failed: gone"]


def test_an_error_before_anything_is_out_is_raised() -> None:
    with pytest.raises(cp.ProxyError, match="gone"):
        list(cp.write_frames(Writer(), broken()))


def test_each_frame_is_out_before_the_next_event_is_pulled() -> None:
    pulled: list[int] = []

    def events() -> Iterator[cp.Event]:
        for number in range(3):
            pulled.append(number)
            yield PartDelta(0, "text", str(number))

    for number, frame in zip(range(3), cp.write_frames(Writer(), events())):
        assert (frame, pulled[-1]) == (b"%d" % number, number)


# --- turns


def test_messages_of_one_side_are_one_turn_and_results_come_first() -> None:
    messages = [user("a"), Message("tool", (Part("result", id="c1"),)), assistant("b"), assistant("c")]
    first, last = cp.turns(messages)
    assert [part.kind for part in first.parts] == ["result", "text"]
    assert (last.role, cp.text_of(last.parts)) == ("assistant", "b\nc")


RESULTS = [  # what stands behind the calls c1 and c2 -> the text of each one's result
    pytest.param([results(("c2", "B"), ("c1", "A"))], ["A", "B"], id="order of the calls"),
    pytest.param([results(("c1", "A")), user("go on"), results(("c2", "B"))], ["A", "B"], id="anywhere"),
    pytest.param([results(("c1", "X"), ("c1", "A"), ("c2", "B"))], ["A", "B"], id="the last counts"),
    pytest.param([results(("c1", "A"))], ["A", "[no result]"], id="one is lost"),
    pytest.param([], ["[no result]", "[no result]"], id="all are lost"),
]


@pytest.mark.parametrize(("behind", "texts"), RESULTS)
def test_results_stand_behind_their_calls(behind: list[Message], texts: list[str]) -> None:
    _, told, *_ = cp.with_results([assistant(call("f", "c1"), call("g", "c2")), *behind])
    assert [cp.text_of(part.parts) for part in told.parts] == texts
    assert [(part.id, part.name) for part in told.parts] == [("c1", "f"), ("c2", "g")]
    assert [part.error for part in told.parts] == [text == "[no result]" for text in texts]


def test_a_result_without_a_call_is_what_it_holds() -> None:
    assert cp.with_results([results(("c9", "A"))]) == [Message("tool", (Part("text", "A"),))]


def test_turns_that_are_in_order_stay_as_they_are() -> None:
    messages = [user("q"), assistant(call("f", "c1")), results(("c1", "A")), assistant("done")]
    assert cp.in_place(cp.turns(messages))
    assert cp.answered_turns(messages) == cp.turns(messages)
    assert not cp.in_place(cp.turns(messages[:2]))


# --- what readers need

VALUES = st.recursive(
    st.one_of(st.none(), st.integers(), st.sampled_from(["", "x"])),
    lambda inner: st.dictionaries(st.sampled_from(["a", "b", "c"]), inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(st.sampled_from(["a", "b", "c"]), VALUES, max_size=3)


@given(OBJECTS, OBJECTS)
def test_what_was_not_modelled_comes_back(wire: dict[str, Any], written: dict[str, Any]) -> None:
    assert cp.restored(written, cp.rest_of(wire, written)) == wire


NUMBERS = [
    ({"a": {"b": 3}}, 3), ({"a": {"b": 2.0}}, 2), ({"a": {"b": True}}, 0), ({"a": {"b": "3"}}, 0),
    ({"a": {"b": None}}, 0), ({"a": 5}, 0), ({}, 0), (None, 0), ({"a": {"b": float("inf")}}, 0),
]  # fmt: skip


@pytest.mark.parametrize(("data", "number"), NUMBERS)
def test_numbers_at_a_path(data: Any, number: int) -> None:
    assert cp.number_at(data, ("a", "b")) == number


ARGUMENTS = [
    ("", {}), (" ", {}), ("{}", {}), ('{"a": 1}', {"a": 1}), ("[1]", {"input": [1]}), ("ls -l", {"input": "ls -l"}),
    ("NaN", {"input": "NaN"}), ("[" * 100_000, {"input": "[" * 100_000}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "arguments"), ARGUMENTS, ids=range(len(ARGUMENTS)))
def test_arguments_that_a_model_wrote(text: str, arguments: dict[str, Any]) -> None:
    assert cp.arguments_of(text) == arguments
