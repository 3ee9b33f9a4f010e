"""How easily the code reads, in figures beside their goals: of the package and its kernels, or of
the folders named.

    python tests/stats.py [--long] [FOLDER ...]

``--long`` lists the functions that are beyond a goal. The exit status is 1 if a goal is broken.

Code lines are those that are neither blank nor comments nor docstrings; characters include the
indentation. Functions are measured from ``def`` to their last line, without their docstring.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("diinn_fast", "kernels")
WIDEST = 100
LONGEST = 50
LARGEST = 400
MOST_COMPLEX = 15

Function = ast.FunctionDef | ast.AsyncFunctionDef
BRANCHES = (
    ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.With,
    ast.AsyncWith, ast.Assert, ast.comprehension, ast.match_case,
)  # fmt: skip


@dataclass
class Figures:
    """Sums over files."""

    files: int = 0
    largest: tuple[int, str] = (0, "")
    lines: int = 0
    wide: int = 0
    code: int = 0
    characters: int = 0
    statements: int = 0
    tuples: int = 0
    body: int = 0
    comments: int = 0
    functions: list[tuple[int, int, str]] = field(default_factory=list)
    """Lines and cyclomatic complexity of each function, and where it is."""


def measure(path: Path, figures: Figures) -> None:
    """Add one file."""
    text = path.read_text()
    tree = ast.parse(text)
    lines = text.splitlines()
    comments = comment_lines(text)
    documented = set().union(*(docstring_lines(node) for node in ast.walk(tree)))
    code = {
        number
        for number, line in enumerate(lines, start=1)
        if line.strip() and number not in comments and number not in documented
    }
    figures.files += 1
    figures.largest = max(figures.largest, (len(lines), str(path.relative_to(ROOT))))
    figures.lines += len(lines)
    figures.wide += sum(len(line) > WIDEST for line in lines)
    figures.code += len(code)
    figures.characters += sum(len(lines[number - 1].rstrip()) for number in code)
    figures.statements += sum(isinstance(node, ast.stmt) for node in ast.walk(tree))
    figures.tuples += sum(is_tuple_to_tuple(node) for node in ast.walk(tree))
    inside: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, Function):
            own = set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
            inside |= own - set(range(node.lineno, node.body[0].lineno))
            length = len(own - docstring_lines(node))
            place = f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
            figures.functions.append((length, complexity(node), place))
    figures.body += len(inside & (code | comments))
    figures.comments += len(inside & comments)


def comment_lines(text: str) -> set[int]:
    """Lines that are nothing but a comment, except those that only address a tool."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {
        token.start[0]
        for token in tokens
        if token.type == tokenize.COMMENT and token.line.lstrip().startswith("#")
    }


def docstring_lines(node: ast.AST) -> set[int]:
    """Lines of strings that are statements: docstrings, and those under constants."""
    body = getattr(node, "body", None)
    if not isinstance(body, list):
        return set()
    found: set[int] = set()
    for statement in body:
        if (
            isinstance(statement, ast.Expr)
            and isinstance(statement.value, ast.Constant)
            and isinstance(statement.value.value, str)
        ):
            found |= set(range(statement.lineno, (statement.end_lineno or 0) + 1))
    return found


def is_tuple_to_tuple(node: ast.AST) -> bool:
    """``a, b = x, y``, which says two things; a swap says one."""
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Tuple):
        return False
    target = node.targets[0]
    if not isinstance(target, ast.Tuple):
        return False
    swapped = sorted(map(ast.unparse, target.elts)) == sorted(map(ast.unparse, node.value.elts))
    return not swapped


def complexity(function: Function) -> int:
    """Cyclomatic complexity: one, and one for each branch; functions inside count for
    themselves.
    """
    return 1 + sum(
        len(node.values) - 1 if isinstance(node, ast.BoolOp) else isinstance(node, BRANCHES)
        for node in walk_without_functions(function)
    )


def walk_without_functions(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, Function):
            yield child
            yield from walk_without_functions(child)


@dataclass(frozen=True)
class Row:
    """One figure and, where there is one, the most that it may be (``least``: the least)."""

    name: str
    value: float
    digits: int = 0
    goal: float | None = None
    least: bool = False
    where: str = ""

    @property
    def met(self) -> bool:
        if self.goal is None:
            return True
        return self.value >= self.goal if self.least else self.value <= self.goal

    def __str__(self) -> str:
        goal = "" if self.goal is None else f"{'at least ' * self.least}{self.goal:g}"
        mark = "" if self.met else "  BROKEN"
        value = f"{self.value:.{self.digits}f}"
        return f"{self.name:46} {value:>6}  {goal}{mark} {self.where}".rstrip()


def rows(figures: Figures) -> list[Row]:
    """All figures."""
    lengths = sorted(figures.functions, reverse=True)
    length, _, longest = lengths[0]
    _, most, complex_one = max(figures.functions, key=lambda function: function[1])
    over = sum(lines > LONGEST for lines, _, _ in lengths)
    lines, largest = figures.largest
    return [
        Row("files", figures.files),
        Row("lines of the largest file", lines, goal=LARGEST, where=largest),
        Row("lines of code", figures.code),
        Row("characters per code line", figures.characters / figures.code, 1, 46),
        Row(f"lines over {WIDEST} columns, %", 100 * figures.wide / figures.lines, 2, 1),
        Row(
            "tuple-to-tuple assignments per 100 statements",
            100 * figures.tuples / figures.statements, 2, 0.5,
        ),
        Row("comment lines in bodies, %", 100 * figures.comments / figures.body, 1, 3, least=True),
        Row("functions", len(lengths)),
        Row(f"functions over {LONGEST} lines", over, goal=0),
        Row("lines of the longest function", length, goal=LONGEST, where=longest),
        Row("highest complexity", most, goal=MOST_COMPLEX, where=complex_one),
    ]  # fmt: skip


def beyond_goals(figures: Figures) -> str:
    """The functions that are too long or too complex, worst first."""
    found = [
        f"{lines:4} lines, complexity {branches:2}  {place}"
        for lines, branches, place in sorted(figures.functions, reverse=True)
        if lines > LONGEST or branches > MOST_COMPLEX
    ]
    return "\n".join(found)


def main() -> int:
    folders = [word for word in sys.argv[1:] if word != "--long"]
    figures = Figures()
    for folder in folders or FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            measure(path, figures)
    found = rows(figures)
    print(f"{'':46} {'now':>6}  goal", *found, sep="\n")
    if "--long" in sys.argv:
        print(beyond_goals(figures))
    return 0 if all(row.met for row in found) else 1


if __name__ == "__main__":
    sys.exit(main())
