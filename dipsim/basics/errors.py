"""The one error that a user can mend."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

LONGEST = 100  # letters of a value in a message


def quoted(value: object) -> str:
    """A value as a message shows it: as Python writes it, but no more than its beginning."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def is_plain(text: str) -> bool:
    """Whether a text has no control characters but line breaks and tabs: it goes to terminals and into figures."""
    return text.isprintable() or all(letter.isprintable() or letter in "\n\t" for letter in text)


def one_line(text: object, most: int = 3 * LONGEST) -> str:
    """What others say, such as a library's error, as one line of `most` letters at most."""
    line = " ".join(str(text).split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """` (did you mean NAME?)` if one of the known names is much like a word, nothing otherwise."""
    close = get_close_matches(str(word)[:LONGEST], (name for name in known if name != word), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


class InputError(ValueError):
    """The input cannot be used. The message is one line: where, what is wrong, and the fix.

    Of several complaints about the same input, the message is the first, and says how many more there are.
    """

    def __init__(self, message: str, *more: str) -> None:
        super().__init__(message, *more)
        self.all = (message, *more)

    def __str__(self) -> str:
        return and_more(*self.all)


def and_more(first: str, *others: str) -> str:
    """The first of several complaints, and how many more there are."""
    return f"{first} (and {len(others)} more)" if others else first


@contextmanager
def named(where: object) -> Iterator[None]:
    """Begin the messages of an InputError with the file, or whatever else it comes from."""
    try:
        yield
    except InputError as error:
        raise InputError(*(f"{where}: {line}" for line in error.all)) from error.__cause__


@contextmanager
def collected(complaints: list[str]) -> Iterator[None]:
    """Add what an InputError complains about to a list, and go on."""
    try:
        yield
    except InputError as error:
        complaints += error.all
