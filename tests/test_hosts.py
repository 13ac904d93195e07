"""What hosts and models refuse, in every direction: the rules are rows, and each kind holds for all four dialects."""

from __future__ import annotations

from typing import Any

import pytest

import cliproxy as cp
from cliproxy import Model, Request, Target
from support.fitting import TARGETS, ask, user

Json = dict[str, Any]
OTHERS = Target("third", Model("m"))


def written(request: Request, dialect: str, target: Target | None = None) -> Json:
    """Return the body that goes to a target."""
    target = target or TARGETS[dialect]
    fitted = cp.fit_request(request, target, dialect)
    body: Json = cp.DIALECTS[dialect].write_request(fitted.request, target)
    return body


# -- lengths and counts ----------------------------------------------------------------

LONG = "user_" + "a" * 64 + "_account__session_" + "b" * 300
WHO = {  # dialect -> where it says who the user is, and how long that may be
    "claude": ("metadata.user_id", 256),
    "chat": ("safety_identifier", 64),
    "responses": ("safety_identifier", 64),
}


@pytest.mark.parametrize("length", [1, 64, 65, 159, 256, 257, 380])
@pytest.mark.parametrize("dialect", WHO)
@pytest.mark.parametrize("client", WHO)
def test_the_name_of_a_user_fits(client: str, dialect: str, length: int) -> None:
    path, longest = WHO[dialect]
    bodies = [
        written(ask(user(word), dialect=client, params={"user": LONG[:length]}), dialect)
        for word in ("q", "again")
    ]
    name, again = (cp.path_get(body, path) for body in bodies)
    if client != dialect:
        assert 0 < len(name) <= longest
    assert (name == LONG[:length]) is (client == dialect or length <= longest)
    assert name == again


STOPS = [
    pytest.param("chat", OTHERS, ["a", "b", "c", "d"], id="chat"),
    pytest.param("gemini", None, ["a", "b", "c", "d", "e"], id="gemini"),
    pytest.param("claude", None, ["a", "b", "c", "d", "e", "f"], id="claude"),
    pytest.param("responses", None, None, id="responses"),
    pytest.param("chat", Target("openai", Model("o3", levels=("low", "high"))), None, id="o3"),
    pytest.param("chat", Target("azure", Model("gpt-5")), None, id="gpt-5 of another host"),
    pytest.param("chat", Target("openai", Model("gpt-5.1", levels=("none", "low"))), None, id="gpt-5.1"),
]
STOP_FIELDS = ("stop", "stop_sequences", "generationConfig.stopSequences")


@pytest.mark.parametrize(("dialect", "target", "kept"), STOPS)
@pytest.mark.parametrize("client", cp.DIALECTS)
def test_stops_fit(client: str, dialect: str, target: Target | None, kept: list[str] | None) -> None:
    if client == dialect:
        return
    stops = ["", "a", " ", "b", "c", "d", "e", "f"]
    body = written(ask(dialect=client, params={"stop": stops, "temperature": 1}), dialect, target)
    assert next(filter(None, (cp.path_get(body, field) for field in STOP_FIELDS)), None) == kept


@pytest.mark.parametrize("dialect", ["claude", "chat", "gemini"])
def test_no_stops_are_no_field(dialect: str) -> None:
    body = written(ask(dialect="responses", params={"stop": ["", " "]}), dialect)
    assert all(cp.path_get(body, field) is None for field in STOP_FIELDS)
