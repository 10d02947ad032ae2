"""A process that has imported everything and forks for each command, so that a step costs what it computes.

It reads requests from its standard input, one JSON object a line: `{"argv": [...], "folder": ..., "log": ..., "limit": bytes}`
is answered with `{"pid": n}`, `{"wait": pid}` with `{"code": n}` once that process has ended (-n: by signal n). The child leaves
`serve` and ends as the command itself would, with its exit code, its clean-up and its traceback.
"""

from __future__ import annotations

import json
import os
import pkgutil
import resource
import signal
import sys
from pathlib import Path
from typing import Any

SKIPPED = ("udaseg.__main__", "udaseg.deploy", "udaseg.bench", "udaseg.engine.curves")


def import_everything() -> None:
    import udaseg
    from udaseg import startup

    found = [module.name for module in pkgutil.walk_packages(udaseg.__path__, "udaseg.")]
    startup.import_at_once([*(name for name in found if not name.startswith(SKIPPED)), "openTSNE"])


def serve() -> int:
    """The exit code of the server at the end of its input; in a child that of the command."""
    import_everything()
    # the parent started this in a group of its own; Ctrl-C of a drill reaches the drill, which closes the input
    say({"ready": os.getpid()})
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            say({"code": os.waitstatus_to_exitcode(status)})
        elif pid := os.fork():
            say({"pid": pid})
        else:
            return command(request)
    return 0


def command(request: dict[str, Any]) -> int:
    """The command of a request, in a process group of its own, as a terminal would start it."""
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for old, new in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(old, new)
    os.chdir(request["folder"])
    os.environ.update(request["environment"])
    if "limit" in request:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["limit"], request["limit"]))
    sys.argv = ["udaseg", *request["argv"]]

    from udaseg.cli import main

    return main(request["argv"])


def say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.path.pop(0)  # this folder: the commands know nothing of the drill
    sys.path.insert(0, str(Path(__file__).parents[2] / "src"))
    from udaseg.startup import leave

    leave(serve())
