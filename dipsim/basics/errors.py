"""The one error that a user can mend."""

from collections.abc import Iterator
from contextlib import contextmanager

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


class InputError(ValueError):
    """The input cannot be used. The message is one line: where, what is wrong, and the fix."""


@contextmanager
def named(where: object) -> Iterator[None]:
    """Begin the message of an InputError with the file, or whatever else it comes from."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error}") from error.__cause__
