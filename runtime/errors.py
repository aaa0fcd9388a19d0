"""Errors that a user can cause."""


class UserError(ValueError):
    """Base of every error that a user's file, setting or command line can cause.

    A command prints its message as one line and ends with an exit status; any other exception is a bug and shows its
    traceback. The message says what is wrong, where, and what to do.

    It is a `ValueError` for the handlers that still catch that. New code raises and catches `UserError`.
    """


class ConfigError(UserError):
    """A config, an override or an option that cannot be used."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class name if the message is empty."""
    return next(iter(str(error).splitlines()), type(error).__name__)
