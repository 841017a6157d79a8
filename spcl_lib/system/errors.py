"""The exception for mistakes that the user can correct, and what errors say."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in the input. Its message says what is wrong, where, and what would be right.

    It is one line, which the command line and notebooks show without a traceback.
    """

    def __str__(self) -> str:
        return printable(super().__str__())

    def _render_traceback_(self) -> list[str]:
        """What IPython shows."""
        return [f"UserError: {self}"]


def unknown_name(kind: str, name: object, valid: Iterable[str]) -> UserError:
    """Makes the error for an unknown name; it lists the valid names and the closest match."""
    valid = list(valid)
    close = difflib.get_close_matches(str(name), valid, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return UserError(f"unknown {kind} '{name}'.{hint} Valid: {', '.join(valid)}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory, also that of a GPU, did not suffice."""
    said = str(error)
    return isinstance(error, MemoryError) or "allocate memory" in said or "out of memory" in said


def printable(text: str) -> str:
    """A text on one line: line breaks and other signs that cannot be printed become escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
