"""Configurations by name: recipes of runs, spaces of searches, DeepSpeed policies.

They lie in this package, so that an installed wheel has them too. A bare word names one of them; a
word with a suffix or a separator is the path of a file.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from timellama_dist.errors import ConfigError

_PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Shelf:
    """One kind of packaged files.

    Args:
        kind: what the user calls one of them.
        folder: where they lie.
        suffix: of their files.
        former: folder of a checkout in which they lay up to version 0.1.
    """

    kind: str
    folder: Path
    suffix: str
    former: str

    @property
    def files(self) -> dict[str, Path]:
        """Every packaged file, by its name without suffix."""
        return {path.stem: path for path in sorted(self.folder.glob(f"*{self.suffix}"))}

    def find(self, word: str, key: str) -> Path:
        """The file that a word on the command line means.

        A path of version 0.1, such as ray_jobs/configs/etth1.yaml, means the packaged file where
        there is no such file; a note on standard error says its name.

        Args:
            word: a name, or the path of a file, which may not exist.
            key: what the word was given for, such as `--config`.

        Raises:
            ConfigError: nothing packaged has that name.
        """
        if re.fullmatch(r"\w[\w-]*", word):
            return self.named(word, key)
        path = Path(word).expanduser()
        packaged = self.files.get(path.stem)
        moved = f"/{path.as_posix()}".endswith(f"/{self.former}/{path.stem}{self.suffix}")
        if packaged is None or not moved or path.exists():
            return path
        print(f"note: {word} is packaged now: {key} {path.stem}", file=sys.stderr)
        return packaged

    def named(self, name: str, key: str) -> Path:
        files = self.files
        if name in files:
            return files[name]
        near = get_close_matches(name, files, n=1)
        hint = f"did you mean {near[0]}?" if near else f"a file of that name is ./{name}"
        raise ConfigError(
            key=key,
            must=f"name a file or a packaged {self.kind} ({', '.join(files)})",
            got=name,
            hint=hint,
        )


RECIPES = Shelf("recipe", _PACKAGE / "recipes", ".yaml", "ray_jobs/configs")
SEARCHES = Shelf("search", _PACKAGE / "recipes" / "searches", ".yaml", "ray_jobs/configs/searches")
POLICIES = Shelf("policy", _PACKAGE / "ds_configs", ".json", "ds_configs")

_SHELVES: Mapping[str, Shelf] = {
    "--config": RECIPES,
    "--search": SEARCHES,
    "--deepspeed": POLICIES,
}


def with_paths(argv: Sequence[str]) -> list[str]:
    """The words of a command line with the paths of what they name.

    Args:
        argv: words such as `--config etth1 --deepspeed=zero1`.

    Raises:
        ConfigError: see `Shelf.find`.
    """
    words: list[str] = []
    option = ""
    for word in argv:
        key, equals, value = word.partition("=")
        if option in _SHELVES:
            words.append(_path(word, option))
        elif equals and key in _SHELVES:
            words.append(f"{key}={_path(value, key)}")
        else:
            words.append(word)
        option = word
    return words


def _path(word: str, option: str) -> str:
    path = _SHELVES[option].find(word, option)
    # What isn't packaged stays as the user typed it.
    return word if path == Path(word).expanduser() else str(path)


def policy_name(policy: str | None) -> str | None:
    """What a run's configuration says of its DeepSpeed policy, the same from any folder and node.

    Args:
        policy: the name of a packaged policy, or a JSON file.

    Returns:
        A packaged policy's name, another file's absolute path, or None for none.

    Raises:
        ConfigError: nothing packaged has that name.
    """
    if policy is None:
        return None
    path = POLICIES.find(policy, "deepspeed").absolute()
    # ds_configs/ of a checkout is a link to the packaged ones, and in a Ray job's folder a copy.
    if path.is_file() and path.parent.name == POLICIES.folder.name and path.stem in POLICIES.files:
        packaged = POLICIES.files[path.stem]
        if path.read_bytes() == packaged.read_bytes():
            return path.stem
    return str(path.resolve())


def summary(recipe: Path) -> str:
    """The first sentence, up to a colon, of the comment that a packaged YAML opens with."""
    lines = []
    for line in recipe.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").strip())
    return re.split(r"[.:;]\s", " ".join(lines).strip(), maxsplit=1)[0]
