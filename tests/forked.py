"""`snakemake`, `dvc` and `python -m udaseg` without the seconds in which Python imports what they need.

A process that has imported the libraries, and nothing of this package, becomes a copy of itself for each command: with the
command's folder, environment, search path and words, and with the code that lies in that folder. Only the command itself is such
a copy; what it starts are processes as always. What is about processes (signals, terminals, other interpreters) starts its own.

One JSON object a line: `{"command": [...], "folder": ..., "environment": {...}, "out": [file, file]}` is answered with
`{"pid": n}` and, when that has ended, `{"code": n}`.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LIBRARIES = [
    "torch",
    "torchvision",
    "timm",
    "scipy.ndimage",
    "PIL.Image",
    "yaml",
    "safetensors.torch",
    "snakemake.cli",
    "snakemake.profiles",
    "snakemake.storage",
    "snakemake.report.html_reporter",
    "dvc.cli.parser",
    "dvc.repo.reproduce",
    "dvc.repo.metrics.diff",
    "dvc.repo.plots",
    "dvc.fs.dvc",
    "dvc_http",
]
# read when Python or a library begins, not when a command does
EARLY = ("PYTHON", "LC_", "LANG", "LD_", "OMP_", "MKL_", "TORCH", "CUDA", "MPL", "TMPDIR", "HOME", "XDG_")


def run(
    command: Sequence[str | Path], folder: Path, environment: Mapping[str, str], timeout: float = 500
) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)`, for the commands named above.

    Others, and those in an environment that decides how Python begins, start a process.

    Raises:
        subprocess.TimeoutExpired: it was killed after `timeout` seconds.
    """
    words = [str(word) for word in command]
    known = words[0] in ("snakemake", "dvc") or words[:3] == [sys.executable, "-m", "udaseg"]
    names = {*environment, *os.environ}
    early = [name for name in names if name.startswith(EARLY) and environment.get(name) != os.environ.get(name)]
    if not known or set(early) - {"PYTHONPATH"}:
        return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout)
    with tempfile.TemporaryDirectory() as place:
        files = [Path(place, name) for name in ("out", "err")]
        request = {"command": words, "folder": str(folder), "environment": dict(environment)}
        code = server().ask(request | {"out": [str(file) for file in files]}, timeout)
        out, err = (file.read_text(encoding="utf-8") for file in files)
    return subprocess.CompletedProcess(words, code, out, err)


@functools.cache
def server() -> Server:
    return Server()


class Server:
    """One for each process of tests, from its first command to its end."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        atexit.register(self.process.stdin.close)  # type: ignore[union-attr]

    def ask(self, request: dict[str, Any], timeout: float) -> int:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        pid = json.loads(self.process.stdout.readline())["pid"]
        late = not select.select([self.process.stdout], [], [], timeout)[0]
        if late:
            os.kill(pid, signal.SIGKILL)
        code = int(json.loads(self.process.stdout.readline())["code"])
        if late:
            raise subprocess.TimeoutExpired(request["command"], timeout)
        return code


# --- the process ----------------------------------------------------------------------------------------------------


def serve() -> None:
    gc.disable()
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):  # `make gpu-check` needs few
            importlib.import_module(name)
    gc.freeze()  # nothing of it is looked at again, nor copied for that
    gc.enable()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library says belongs to no command
    for line in sys.stdin:
        request = json.loads(line)
        if pid := os.fork():
            for number, value in (("pid", pid), ("code", None)):
                value = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) if value is None else value
                answers.write(json.dumps({number: value}) + "\n")
                answers.flush()
        else:
            answers.close()
            os._exit(command(**request))


def command(command: list[str], folder: str, environment: dict[str, str], out: list[str]) -> int:
    """In the copy: what `command` does, to the end, and its exit code."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    nothing = os.open(os.devnull, os.O_RDONLY)
    streams = [os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644) for name in out]
    for number, stream in enumerate((nothing, *streams)):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin, sys.stdout, sys.stderr = open(0, closefd=False), *(open(n, "w", 1, closefd=False) for n in (1, 2))  # noqa: SIM115
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None
    is_module = command[0] == sys.executable
    ways = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    own = [path for path in sys.path if path not in ("", HERE, *EARLIER)]
    sys.path[:] = [folder if is_module else str(Path(sys.executable).parent), *ways, *own]
    importlib.invalidate_caches()
    sys.argv = command[2:] if is_module else [str(Path(sys.executable).with_name(command[0])), *command[1:]]
    try:
        try:
            if is_module:
                runpy.run_module("udaseg", run_name="__main__", alter_sys=True)
            main = importlib.import_module(f"{command[0]}.cli").main
            sys.exit(main())
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        for thread in threading.enumerate():
            if not thread.daemon and thread is not threading.current_thread():
                thread.join()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        return code
    except BaseException:
        traceback.print_exc()
        return 1


HERE = str(Path(__file__).parent)
EARLIER = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]

if __name__ == "__main__":
    serve()
    os._exit(0)
