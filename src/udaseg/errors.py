"""The one exception that a user is meant to see, and its text as a terminal may have it."""

import re

# what steers a terminal or begins a line: control characters, separators, marks that turn the direction of writing
STEERING = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]|\n(?!  )")


class UserError(Exception):
    """Something the user can mend. The message says in one line what was found, what was expected and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


class Interrupted(Exception):
    """Training was asked to stop (SIGTERM, SIGINT, SIGUSR1) and has saved its state; the command exits with code 75."""


def printable(text: str) -> str:
    """`text` with such characters of file names and values spelt out; an indented line is one of several problems and stays."""
    return STEERING.sub(lambda match: repr(match.group())[1:-1], text)
