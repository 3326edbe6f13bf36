"""The one exception a user is meant to read, and the one warning."""


class PerfonnxError(Exception):
    """Bad usage or bad input.

    The message is one line that names the thing at fault and says what to do about it. The command line prints it
    and exits with status 2; nothing has been written by then.
    """


class PerfonnxWarning(UserWarning):
    """Something was not as it should be, and it was dealt with: one line that says what and how."""


def one_line(error: BaseException, *, longest: int | None = 300) -> str:
    """An error's message on one line, of at most so many characters; the kind of error where it has no message."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if longest is None or len(text) <= longest else text[: longest - 3] + "..."
