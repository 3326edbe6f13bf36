"""The one exception a user is meant to read."""


class PerfonnxError(Exception):
    """Bad usage or bad input.

    The message is one line that names the thing at fault and says what to do about it. The command line prints it
    and exits with status 2; nothing has been written by then.
    """
