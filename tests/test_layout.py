from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator

import pytest

import check_layout
import cliproxy as cp
from support.paths import ROOT

SOURCE = (ROOT / "cliproxy.py").read_text(encoding="utf-8")
BUDGET = check_layout.budgets((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
OPTIONAL = {
    "yaml",
    "certifi",
    "compression",
}  # compression: the standard library of 3.14  # imported where they are used, with a message when missing
VERBS = (
    "read_request", "write_request", "read_usage", "read_response", "read_stream", "write_response", "write_stream",
    "read_error", "write_error",
)  # fmt: skip

SMALL = '''"""A file.

    1. LOW   the facts   [pure]
    2. HIGH  the rest
"""

############
# 1. LOW                    [pure]
############


def low():
    return 1


############
# 2. HIGH
############


def high():
    return low()
'''
SMALL_BUDGET = {"HEADER": 9, "LOW": 2, "HIGH": 2}


def test_the_file_keeps_the_house_rules() -> None:
    assert check_layout.check(SOURCE, BUDGET) == []


def test_the_small_example_is_clean() -> None:
    assert check_layout.check(SMALL, SMALL_BUDGET) == []


# fmt: off
BREACHES = [
    pytest.param("2. HIGH  the", "2. HIHG  the",               "the contents say",              id="stale contents"),
    pytest.param("    2. HIGH  the rest\n", "",                "list 1 rooms, there are 2",     id="missing contents"),
    pytest.param("facts   [pure]", "facts",                    "the contents say",              id="contents hide purity"),
    pytest.param("# 2. HIGH", "# 3. HIGH",                     "not numbered 1, 2, 3",          id="numbers"),
    pytest.param("return 1", "return high()",                  "uses high, which is defined",   id="looks down"),
    pytest.param("return 1", "return [high() for _ in '1']",   "uses high, which is defined",   id="looks down inside"),
    pytest.param("return 1", "return time.time()",             "is pure but uses time",         id="clock"),
    pytest.param("return 1", "return datetime.now()",          "is pure but uses .now",         id="clock of a class"),
    pytest.param("return 1", "import os",                      "is pure but uses import",       id="lazy import"),
    pytest.param("return 1", "return open('x')",               "is pure but uses open",         id="file"),
    pytest.param("    return 1", "    x = 1\n    return x",    "LOW has 3 code lines, budget 2", id="budget"),
    pytest.param("    return 1", "    return 1\n" + "\n" * 48 + "    # last", "", id="blank lines are free"),
    pytest.param("    return low()", "    low = 1\n    return low", "low in high hides the one of line 12", id="hidden"),
    pytest.param("    return low()", "    return [low for low in ()]", "hides the one of line 12",  id="hidden in a comprehension"),
    pytest.param("    return low()", "    return low().low(low=1)", "",                              id="an attribute hides nothing"),
    pytest.param("return 1", "return 1 if x else 2 if y else 3", "a conditional expression in another", id="nested"),
    pytest.param("return 1", "return x[not y :]",              "a truth value as a number",     id="slice"),
    pytest.param("return 1", "return (a, b)[x == y]",          "a truth value as a number",     id="index"),
    pytest.param("return 1", "return 1 + x.startswith('y')",   "a truth value as a number",     id="sum"),
    pytest.param("return 1", "return x[y : z + 1] | (a < b)",  "",                              id="no number"),
    pytest.param("    return 1", "    a, b, c = 1, 2, 3",      "an assignment of three values", id="packed"),
    pytest.param("    return 1", "    a, b, c = c, b, a",      "",                              id="swapped"),
    pytest.param("    return 1", "    a, b, c = x()",          "",                              id="unpacked"),
    pytest.param("return 1", "return " + " or ".join("x" * 15), "",                             id="15 ways"),
    pytest.param("return 1", "return " + " or ".join("x" * 16), "low branches into 16 ways",    id="16 ways"),
    pytest.param("    return low()", "    x = (\n" + "\n" * 50 + "    )", "high has 53 lines", id="long function"),
]
# fmt: on


@pytest.mark.parametrize(("old", "new", "said"), BREACHES)
def test_breaches_are_found(old: str, new: str, said: str) -> None:
    assert SMALL.count(old) == 1
    found = check_layout.check(SMALL.replace(old, new), SMALL_BUDGET)
    assert any(said in line for line in found) if said else not found


def test_a_room_needs_a_budget_and_a_budget_a_room() -> None:
    found = check_layout.check(SMALL, {"HEADER": 9, "LOW": 2, "ATTIC": 2})
    assert [line.split(": ")[1] for line in found] == [
        "HIGH has no budget",
        "there is a budget for ATTIC, but no such room",
    ]


def test_budgets_stand_in_the_order_of_the_rooms() -> None:
    (said,) = check_layout.check(SMALL, dict(reversed(SMALL_BUDGET.items())))
    assert said == "1: the budgets are not in the order of the rooms"


def test_a_room_that_is_nearly_full_is_named_and_no_breach() -> None:
    budget = {"HEADER": 20, "LOW": 20, "HIGH": 2}
    assert list(check_layout.fullness(SMALL, budget)) == ["17: HIGH is nearly full: 2 of 2 code lines"]
    assert check_layout.check(SMALL, budget) == []


def imported_modules() -> Iterator[str]:
    for node in ast.walk(ast.parse(SOURCE)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or ".").split(".")[0]


@pytest.mark.skipif(sys.version_info < (3, 10), reason="needs sys.stdlib_module_names")
def test_only_the_standard_library_is_imported() -> None:
    assert set(imported_modules()) - OPTIONAL <= sys.stdlib_module_names


IMPORT_QUIETLY = """
import sys, threading
NOISE = ("open", "os.", "socket.", "subprocess.", "shutil.", "tempfile.", "sqlite3.", "urllib.")
HEAVY = {"asyncio", "certifi", "logging.handlers", "sqlite3", "urllib.request", "yaml"}
noise = []
def watch(event, args):
    reading = event == "open" and not (isinstance(args[1], str) and set(args[1]) & set("wax+"))
    if event.startswith(NOISE) and not reading and event != "os.listdir":
        noise.append((event, args))
sys.addaudithook(watch)
import cliproxy
assert not noise, noise
assert threading.active_count() == 1
assert not HEAVY & set(sys.modules), HEAVY & set(sys.modules)
"""


def test_importing_starts_nothing() -> None:
    """No thread, no socket, no process, nothing written, nothing heavy loaded."""
    command = [sys.executable, "-B", "-c", IMPORT_QUIETLY]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_dialects_are_rows_of_the_same_functions() -> None:
    assert list(cp.DIALECTS) == ["claude", "chat", "responses", "gemini"]
    for name, row in cp.DIALECTS.items():
        functions = [cell for cell in row if hasattr(cell, "__code__")]
        assert [function.__name__ for function in functions] == [f"{name}_{verb}" for verb in VERBS]
