"""The written rules of the house that ruff cannot check: sentence length, wording, spelling, file and function length."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import dasnet_lightning

SOURCE = Path(dasnet_lightning.__file__).parent
MODULES = sorted(SOURCE.rglob("*.py"))
MAX_WORDS = 30
MAX_FILE_LINES = 280
MAX_FUNCTION_LINES = 50

NEGATION = re.compile(r"\b(is|are) no [a-z]")
BRITISH = re.compile(
    r"\b(\w*colour\w*|\w*behaviour\w*|neighbour\w*|\w*centre[ds]?|grey|favour\w*|licence|\w*labelled|catalogue|"
    r"(normal|initial|summar|recogn|organ|optim|minim|maxim|serial|real|general|visual|synchron|special|token|util|emphas|"
    r"quant|vector|random|categor|analy|color)is(e|es|ed|er|ing|ation))\b",
    re.IGNORECASE,
)


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                first = node.body[0]
                yield first.lineno, text


def sentences(text: str) -> Iterator[str]:
    """Split prose into sentences; a blank line, a list item and an `Args:` entry end one too."""
    text = re.sub(r"\b(e\.g|i\.e|etc|vs|cf|Sec|Fig|Eq|et al)\.", r"\1", text)
    for block in re.split(r"\n\s*\n|\n\s*[-*] |\n\s*(?=\w+: )|:\n", text):
        yield from re.split(r"(?<=[.!?;])\s+", " ".join(block.split()))


def comments(source: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def strings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def faults(path: Path) -> list[str]:
    source = path.read_text()
    tree = ast.parse(source)
    found = []
    for line, text in docstrings(tree):
        found += [
            f"{line}: {len(sentence.split())} words: {sentence}"
            for sentence in sentences(text)
            if len(sentence.split()) > MAX_WORDS
        ]
    for line, text in [*comments(source), *strings(tree)]:
        for pattern, advice in ((NEGATION, 'write "is not a"'), (BRITISH, "American spelling")):
            found += [f"{line}: {advice}: {match.group()}" for match in pattern.finditer(text)]
    found += [
        f"{node.lineno}: {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    if source.count("\n") > MAX_FILE_LINES:
        found.append(f"the file has {source.count(chr(10))} lines")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_prose_spelling_and_length(path: Path) -> None:
    assert not faults(path), "\n".join(faults(path))


def test_the_checks_find_what_they_are_for(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    body = "\n".join(f"    x = {number}" for number in range(MAX_FUNCTION_LINES))
    bad.write_text(f'"""{"word " * 30}word."""\n# this is no list, a colour\ndef long():\n{body}\n')
    report = "\n".join(faults(bad))
    assert all(hint in report for hint in ("31 words", "is no l", "colour", "long has 51 lines"))
