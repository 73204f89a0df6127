"""Hooks of MkDocs: pages take in what is made from the schema, the results and the root's files.

A page says where in a line of its own, which a reader of the bare file sees:
*Filled in when the manual is built: configuration.*
"""

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# MkDocs imports this file by its path; the programs that measure aren't installed.
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from reference import PARTS  # noqa: E402

MARK = re.compile(r"^\*Filled in when the manual is built: ([\w-]+)\.\*$", flags=re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in a page's marks.

    Raises:
        KeyError: a mark that nothing is made for.
    """
    return MARK.sub(lambda match: PARTS[match[1]](), markdown)
