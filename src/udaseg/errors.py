"""The one exception that a user is meant to see."""


class UserError(Exception):
    """Something the user can mend. The message says in one line what was found, what was expected and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


class Interrupted(Exception):
    """Training was asked to stop (SIGTERM, SIGINT, SIGUSR1) and has saved its state; the command exits with code 75."""
