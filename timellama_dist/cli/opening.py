"""What every command's `--help` opens with: a sentence, three examples, what else is to be said."""

from collections.abc import Sequence

from timellama_dist.program import program


def opening(sentence: str, command: str, examples: Sequence[str], more: str = "") -> str:
    """The first lines of a command's help.

    Args:
        sentence: what the command does.
        command: its name.
        examples: words that follow it on a command line.
        more: paragraphs below the examples.
    """
    run = program(command)
    lines = [sentence, "", *(f"  {run} {words}".rstrip() for words in examples)]
    return "\n".join([*lines, "", more] if more else lines)
