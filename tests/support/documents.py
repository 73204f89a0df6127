"""The fenced blocks of the README and of the manual, for the tests that read and run them."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (
    *sorted(ROOT.glob("*.md")),
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
)
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
# Between two commands of a shell block.
_BETWEEN = ";&|<>\n"


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        """Where it stands, for the names of tests."""
        return f"{self.page}:{self.line}"


def blocks(language: str) -> list[Block]:
    """Every block of a language, page by page."""
    every = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        name = page.relative_to(ROOT).as_posix()
        for match in _FENCE.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            every.append(Block(name, line, match[1], match[2]))
    return [block for block in every if block.language == language]


def commands(shell: str) -> list[list[str]]:
    """The words of each command of a shell block."""
    text = re.sub(r"(?m)(^|\s)#.*$", "", shell.replace("\\\n", " "))
    lexer = shlex.shlex(text, posix=True, punctuation_chars=_BETWEEN)
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t\r", True, ""
    lists: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set(_BETWEEN):
            lists.append([])
        else:
            lists[-1].append(word)
    return [words for words in lists if words]


def own_command(words: list[str]) -> tuple[str, list[str]] | None:
    """Name and words of this project's command in a command line, if it is one.

    It is `timellama NAME ...` or `python ray_jobs/NAME.py ...`, or what `ray job submit` is given.
    """
    if "--" in words:
        words = words[words.index("--") + 1 :]
    if words[:1] == ["timellama"]:
        return words[1], words[2:]
    if words[:1] == ["python"] and (match := re.fullmatch(r"ray_jobs/(\w+)\.py", words[1])):
        return match[1], words[2:]
    return None


def program(*marks: str) -> str:
    """The one Python block that holds all of some texts."""
    (block,) = [block for block in blocks("python") if all(mark in block.text for mark in marks)]
    return block.text
