"""The one error that a user can mend."""


class InputError(ValueError):
    """The input cannot be used. The message is one line: where, what is wrong, and the fix."""
