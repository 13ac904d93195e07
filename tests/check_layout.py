"""House rules of cliproxy.py that no linter knows. Prints one line per breach; exit 1 if any.

The contents name every room in order, and so do the budgets; a room uses only rooms above it; [pure]
rooms touch no clock, socket, file, thread, randomness or log; each room keeps its budget of code lines;
no function is longer than MAX_FUNCTION lines or has more than MAX_BRANCHES ways through it; no local
name hides a function or a class of the file; a line carries one decision: no conditional expression
stands in another, no truth value is a number, an index or a slice, and no assignment of three or more
values does anything but unpack or swap them.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from symtable import SymbolTable, symtable
from typing import NamedTuple

MAX_FUNCTION = 50
MAX_BRANCHES = 15
FULL = 0.95  # of a budget: said, but no breach
BANNER = re.compile(r"^# (\d+)\. ([A-Z]+) *(\[pure\])?$", re.MULTILINE)
CONTENTS = re.compile(r"^ +(\d+)\. ([A-Z]+) .*?(\[pure\])?$", re.MULTILINE)
BUDGET_SECTION = re.compile(r"^\[tool\.cliproxy\.budget\].*\n((?:[A-Z]+ *=.*\n?)*)", re.MULTILINE)
# fmt: off
IMPURE_NAMES = {
    "Path", "fcntl", "http", "input", "log", "logging", "open", "os", "print", "random", "secrets", "select", "selectors",
    "shutil", "socket", "socketserver", "sqlite3", "ssl", "subprocess", "tempfile", "threading", "time", "uuid",
}
# fmt: on
IMPURE_METHODS = {"now", "utcnow", "today"}


class Room(NamedTuple):
    """The lines of the file from one banner to the next, counted from 1."""

    name: str
    pure: bool
    first: int
    last: int


def rooms_of(source: str) -> list[Room]:
    """Cut the file at its banners; what is above the first one is the room HEADER."""
    found = list(BANNER.finditer(source))
    firsts = [1, *(source.count("\n", 0, banner.start()) + 1 for banner in found)]
    lasts = [*(first - 1 for first in firsts[1:]), source.count("\n") + 1]
    names = ["HEADER", *(banner[2] for banner in found)]
    pure = [False, *(bool(banner[3]) for banner in found)]
    return [Room(*row) for row in zip(names, pure, firsts, lasts)]


def room_at(rooms: list[Room], line: int) -> int:
    """Return the number of the room that holds a line."""
    return next(number for number, room in enumerate(rooms) if line <= room.last)


def budgets(pyproject: str) -> dict[str, int]:
    """Read [tool.cliproxy.budget] without tomllib, which Python 3.9 lacks."""
    section = BUDGET_SECTION.search(pyproject)
    rows = (row.split("=") for row in section[1].splitlines()) if section else ()
    return {name.strip(): int(number.split("#")[0]) for name, number in rows}


def check_contents(source: str, tree: ast.Module, rooms: list[Room]) -> Iterator[str]:
    listed = CONTENTS.findall(ast.get_docstring(tree, clean=False) or "")
    banners = BANNER.findall(source)
    for said, is_ in zip(listed, banners):
        if said != is_:
            yield f"1: the contents say {said}, the banner says {is_}"
    if len(listed) != len(banners):
        yield f"1: the contents list {len(listed)} rooms, there are {len(banners)}"
    if [int(number) for number, _, _ in banners] != list(range(1, len(rooms))):
        yield "1: the rooms are not numbered 1, 2, 3, ..."


def bound_names(node: ast.stmt) -> Iterator[str]:
    """Yield the names that a statement at module level defines."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        yield node.name
    elif isinstance(node, (ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield from (n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name))


def globals_read(scope: SymbolTable) -> Iterator[tuple[int, str]]:
    """Yield (first line of a function or class, global name that it uses), at every depth."""
    for inner in scope.get_children():
        for symbol in inner.get_symbols():
            if symbol.is_global():
                yield inner.get_lineno(), symbol.get_name()
        yield from globals_read(inner)


def check_order(source: str, tree: ast.Module, rooms: list[Room]) -> Iterator[str]:
    """Python itself forbids looking down at module level; this looks into the functions."""
    home = {name: room_at(rooms, top.lineno) for top in tree.body for name in bound_names(top)}
    for line, name in globals_read(symtable(source, "cliproxy.py", "exec")):
        number = room_at(rooms, line)
        if number and home.get(name, 0) > number:
            below = rooms[home[name]].name
            yield f"{line}: {rooms[number].name} uses {name}, which is defined below it in {below}"


def check_purity(tree: ast.Module, rooms: list[Room]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            impure, name = node.id in IMPURE_NAMES, node.id
        elif isinstance(node, ast.Attribute):
            impure, name = node.attr in IMPURE_METHODS, f".{node.attr}"
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            impure, name = True, "import"
        else:
            continue
        room = rooms[room_at(rooms, node.lineno)]
        if impure and room.pure:
            yield f"{node.lineno}: {room.name} is pure but uses {name}"


def code_lines(source: str, room: Room) -> int:
    """Count the lines that are neither blank nor a comment."""
    lines = (line.strip() for line in source.splitlines()[room.first - 1 : room.last])
    return sum(bool(line) and not line.startswith("#") for line in lines)


def check_sizes(source: str, tree: ast.Module, rooms: list[Room], budget: dict[str, int]) -> Iterator[str]:
    for room in rooms:
        size = code_lines(source, room)
        if room.name not in budget:
            yield f"{room.first}: {room.name} has no budget"
        elif size > budget[room.name]:
            yield f"{room.first}: {room.name} has {size} code lines, budget {budget[room.name]}"
    for name in budget.keys() - {room.name for room in rooms}:
        yield f"1: there is a budget for {name}, but no such room"
    order = [room.name for room in rooms if room.name in budget]
    if order != [name for name in budget if name in order]:
        yield "1: the budgets are not in the order of the rooms"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            size = (node.end_lineno or node.lineno) - node.lineno + 1
            if size > MAX_FUNCTION:
                yield f"{node.lineno}: {node.name} has {size} lines, allowed are {MAX_FUNCTION}"


def fullness(source: str, budget: dict[str, int]) -> Iterator[str]:
    """Say which rooms are nearly full: a budget is there to be looked at, never to squeeze code."""
    for room in rooms_of(source):
        size, limit = code_lines(source, room), budget.get(room.name, 0)
        if FULL * limit < size <= limit:
            yield f"{room.first}: {room.name} is nearly full: {size} of {limit} code lines"


def locals_in(scope: SymbolTable) -> Iterator[tuple[int, str, str]]:
    """Yield (first line, name of the function, name that is local to it), at every depth."""
    for inner in scope.get_children():
        names = [symbol.get_name() for symbol in inner.get_symbols() if symbol.is_local()]
        if inner.get_type() == "function":
            yield from ((inner.get_lineno(), inner.get_name(), name) for name in names)
        yield from locals_in(inner)


def check_shadows(source: str, tree: ast.Module) -> Iterator[str]:
    tops = {top.name: top.lineno for top in tree.body if isinstance(top, (ast.FunctionDef, ast.ClassDef))}
    for line, function, name in locals_in(symtable(source, "cliproxy.py", "exec")):
        if name in tops:
            yield f"{line}: {name} in {function} hides the one of line {tops[name]}"


def is_truth(node: ast.expr | None) -> bool:
    """Tell whether an expression is plainly a truth value."""
    if isinstance(node, ast.BoolOp):
        return any(is_truth(value) for value in node.values)
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.Not)
    if isinstance(node, ast.Call):
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        return name in {"bool", "isinstance", "callable", "hasattr", "any", "all", "startswith", "endswith"}
    return isinstance(node, ast.Compare) or (isinstance(node, ast.Constant) and isinstance(node.value, bool))


def is_number_of_truth(node: ast.AST) -> bool:
    """Tell whether a truth value is counted with, or is an index or the end of a slice."""
    if isinstance(node, ast.Slice):
        return any(is_truth(end) for end in (node.lower, node.upper, node.step))
    if isinstance(node, ast.Subscript):
        return is_truth(node.slice)
    if isinstance(node, ast.BinOp):
        return not isinstance(node.op, (ast.BitAnd, ast.BitOr)) and (
            is_truth(node.left) or is_truth(node.right)
        )
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
        first = node.args[0]
        summed = (
            node.func.id == "sum"
            and isinstance(first, (ast.GeneratorExp, ast.ListComp))
            and is_truth(first.elt)
        )
        return summed or (node.func.id in {"int", "float"} and is_truth(first))
    return False


def is_packed(node: ast.AST) -> bool:
    """Tell whether an assignment gives three or more values to as many names, and does not swap them."""
    if not (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple)):
        return False
    if not isinstance(node.value, ast.Tuple) or len(node.value.elts) < 3:
        return False
    return {ast.unparse(n) for n in node.targets[0].elts} != {ast.unparse(n) for n in node.value.elts}


def is_nested(node: ast.AST) -> bool:
    return isinstance(node, ast.IfExp) and any(
        isinstance(part, ast.IfExp) for part in (node.test, node.body, node.orelse)
    )


DENSE = (
    (is_nested, "a conditional expression in another"),
    (is_number_of_truth, "a truth value as a number"),
    (is_packed, "an assignment of three values or more: one a line"),
)


def check_density(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        for applies, words in DENSE:
            if applies(node):
                yield f"{getattr(node, 'lineno', 0)}: {words}"


def branches(node: ast.AST) -> int:
    """Count the decisions in a piece of code, as radon does."""
    own = 0
    if isinstance(node, (ast.If, ast.IfExp, ast.Assert, ast.Lambda)):
        own = 1
    elif isinstance(node, (ast.For, ast.While)):
        own = 1 + bool(node.orelse)
    elif isinstance(node, ast.Try):
        own = len(node.handlers) + bool(node.orelse)
    elif isinstance(node, ast.BoolOp):
        own = len(node.values) - 1
    elif isinstance(node, ast.comprehension):
        own = 1 + len(node.ifs)
    return own + sum(branches(child) for child in ast.iter_child_nodes(node))


def check_branches(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and branches(node) + 1 > MAX_BRANCHES:
            ways = branches(node) + 1
            yield f"{node.lineno}: {node.name} branches into {ways} ways, allowed are {MAX_BRANCHES}"


def check(source: str, budget: dict[str, int]) -> list[str]:
    """Return one line per breach, `LINE: what is wrong`."""
    tree, rooms = ast.parse(source), rooms_of(source)
    return [
        *check_contents(source, tree, rooms),
        *check_order(source, tree, rooms),
        *check_purity(tree, rooms),
        *check_sizes(source, tree, rooms, budget),
        *check_shadows(source, tree),
        *check_density(tree),
        *check_branches(tree),
    ]


if __name__ == "__main__":
    root = Path(__file__).parent.parent
    text = (root / "cliproxy.py").read_text(encoding="utf-8")
    limits = budgets((root / "pyproject.toml").read_text(encoding="utf-8"))
    for room in rooms_of(text):
        print(f"{room.name:<13}{code_lines(text, room):>5} of {limits.get(room.name, 0):>4}")
    print(*fullness(text, limits), sep="\n")
    sys.exit("\n".join(check(text, limits)) or 0)
