"""Words of a command line that the dotted keys don't have: several values of one option, values
without an option, and options as version 0.1 spelled them.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Spelling:
    """What a command takes besides `--key value`."""

    lists: Mapping[str, type] = field(default_factory=dict)
    """Options that take all words up to the next option, with the type of a value."""
    former: Mapping[str, str] = field(default_factory=dict)
    """Options of version 0.1, with what they are called now."""
    positional: str | None = None
    """The option, one of `lists`, that words without one belong to."""

    def to_keys(self, argv: Sequence[str]) -> list[str]:
        """Spell a command line in dotted keys; one note on standard error names what has changed.

        Args:
            argv: such as `--gaps reindex --input a.csv b.csv`.

        Returns:
            Such as `--data.gaps reindex --input ["a.csv", "b.csv"]`.
        """
        words: list[str] = []
        loose: list[str] = []
        lists: dict[str, list[str]] = {}
        changed: dict[str, str] = {}
        option = ""
        for word in argv:
            if word.startswith("--"):
                given, equals, value = word.partition("=")
                option = self.former.get(given, given)
                if option != given:
                    changed[given] = option
                if option in self.lists:
                    lists[option] = [value] if equals else []
                    continue
                words.append(f"{option}{equals}{value}")
                option = "" if equals else option
            elif option in self.lists:
                lists[option].append(word)
            elif option:
                words.append(word)
                option = ""
            else:
                loose.append(word)
        if changed:
            pairs = ", ".join(f"{former} is {new}" for former, new in changed.items())
            print(f"note: options have new names: {pairs}", file=sys.stderr)
        if loose and self.positional is not None:
            lists.setdefault(self.positional, []).extend(loose)
            loose = []
        for key, values in lists.items():
            words += [key, _as_list(values, self.lists[key])]
        return words + loose


def _as_list(values: Sequence[str], kind: type) -> str:
    """Values of an option as one word; a list is taken as it stands."""
    if len(values) == 1 and values[0].startswith("[") and values[0].endswith("]"):
        return values[0]
    # What is no number is refused by its key when the line is read.
    with suppress(ValueError):
        return json.dumps([kind(value) for value in values])
    return json.dumps(list(values))
