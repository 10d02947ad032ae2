"""A process that imports what the steps need once, and becomes a copy of itself for each of them.

Of a job that trains for a minute, imports of torch and timm are a good part. The workflow starts this process when it has something to
run; a step that finds its socket hands its words, folder, environment and output over, and hands on signals until the copy
has ended. Whatever does not fit (another environment, code that was edited meanwhile, no such process) runs as always, and
gives the same result: only imports are shared. The process ends with the workflow.

One JSON object a line: the step sends `{"argv": ...}` with its three standard streams, and hears `{"pid": n}` and later
`{"code": n}`, or `{"no": reason}`.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, cast

from udaseg import startup
from udaseg.workflow.launch import SIGNALS

VARIABLE = "UDASEG_WARM"  # where the socket is
LONGEST = 1 << 20  # letters of a request
# what a step imports, as cli.py does
MODULES = {
    "pretrain": ("udaseg.engine.training", "udaseg.evaluation.validation"),
    "train": ("udaseg.engine.training", "udaseg.evaluation.validation"),
    "evaluate": ("udaseg.evaluation.evaluate", "udaseg.progress"),
    "analyse": ("udaseg.analysis.analyse", "openTSNE"),
    "figure": ("udaseg.figures.draw",),
}


# --- the workflow ---------------------------------------------------------------------------------------------------


def start() -> None:
    """Start the process and name it to all jobs of this one; without effect where sockets in the temporary folder are not to be had."""
    if VARIABLE in os.environ:
        return
    folder = tempfile.mkdtemp(prefix="udaseg-")  # private
    place = f"{folder}/warm"
    process = subprocess.Popen(
        [sys.executable, "-m", "udaseg.workflow.warm", place],
        stdin=subprocess.PIPE,  # held open as long as this process lives
        start_new_session=True,  # Ctrl-C is for the steps, which hand it on
    )
    os.environ[VARIABLE] = place

    def stop() -> None:
        cast(Any, process.stdin).close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(stop)


# --- a step ---------------------------------------------------------------------------------------------------------


def handed_over(argv: Sequence[str]) -> int | None:
    """The exit code of the step that another process ran in this one's place; None: run it here.

    128 + n where signal n ended it, as a shell says it.
    """
    place = os.environ.get(VARIABLE)
    if not place or not argv or argv[0] not in MODULES or "RANK" in os.environ:
        return None
    heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # nohup
    request: dict[str, Any] = {"argv": list(argv), "folder": os.getcwd(), "environment": dict(os.environ)}
    request |= {"python": interpreter(), "heard": [int(number) for number in heard]}
    pid = 0
    early: list[int] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        else:
            early.append(number)

    former = {number: signal.signal(number, hand_on) for number in heard}
    try:
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(place)
            text = json.dumps(request).encode() + b"\n"
            socket.send_fds(line, [text[:1]], [0, 1, 2])
            line.sendall(text[1:])
            with line.makefile() as answers:
                answer = json.loads(next(answers))
                if "pid" not in answer:
                    return None
                pid = answer["pid"]
                for number in early:
                    hand_on(number, None)
                for answered in answers:
                    code = int(json.loads(answered)["code"])
                    return code if code >= 0 else 128 - code
        hand_on(signal.SIGKILL, None)  # that process was killed, and nobody would know of its child
        return 128 + signal.SIGKILL
    except (OSError, StopIteration, ValueError):
        return None
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        if not pid and early:  # it was for a step that runs here now
            os.kill(os.getpid(), early[0])


def interpreter() -> list[str]:
    """Equal in processes that would run the same files."""
    return [sys.executable, *(path for path in sys.path if path), str(Path(__file__))]


# --- the process ----------------------------------------------------------------------------------------------------


class Server:
    def __init__(self, place: str) -> None:
        self.door = socket.socket(socket.AF_UNIX)
        self.door.bind(place)
        self.door.listen()
        self.selector = selectors.DefaultSelector()
        self.steps: dict[int, socket.socket] = {}  # pid -> who waits for it
        self.stamps: dict[str, tuple[int, int]] = {}  # file -> as it was when it was imported
        self.ended = False

    def serve(self) -> Callable[[], int] | None:
        """What a child is to run; None at the end."""
        awake, alarm = os.pipe()
        for end in (awake, alarm):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(alarm)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        for each in (awake, 0, self.door):
            self.selector.register(each, selectors.EVENT_READ)
        while not (self.ended and not self.steps):
            for key, _ in self.selector.select():
                if key.fileobj == awake:
                    os.read(awake, 4096)
                elif key.fileobj == 0:
                    self.ended = not os.read(0, 4096)
                    if self.ended:
                        self.selector.unregister(0)
                elif key.fileobj is self.door:
                    if step := self.asked(self.door.accept()[0]):
                        signal.set_wakeup_fd(-1)
                        os.close(awake)
                        os.close(alarm)
                        return step
                else:
                    self.left(cast(socket.socket, key.fileobj))
            self.reap()
        return None

    def asked(self, line: socket.socket) -> Callable[[], int] | None:
        """Fork for a request; in the child, what to run."""
        streams: list[int] = []
        try:
            line.settimeout(10)
            text, streams, _, _ = socket.recv_fds(line, 1, 3)
            while not text.endswith(b"\n") and len(text) < LONGEST:
                more = line.recv(65536)
                if not more:
                    raise ValueError("half a request")
                text += more
            request = json.loads(text)
            if reason := self.unfit(request):
                line.sendall(json.dumps({"no": reason}).encode() + b"\n")
                raise ValueError(reason)
        except (OSError, ValueError, KeyError, ImportError):
            line.close()
            for stream in streams:  # who reads them waits for their end
                os.close(stream)
            return None
        pid = os.fork()
        if pid == 0:
            self.close(line)
            return lambda: run(request, streams)
        for stream in streams:
            os.close(stream)
        self.steps[pid] = line
        with contextlib.suppress(OSError):
            line.sendall(json.dumps({"pid": pid}).encode() + b"\n")
        self.selector.register(line, selectors.EVENT_READ)
        return None

    def unfit(self, request: dict[str, Any]) -> str | None:
        """Why the step has to run in a process of its own; imports what it needs, if nothing stands against it."""
        if request["python"] != interpreter():
            return "another environment"
        startup.import_at_once(MODULES[request["argv"][0]])
        ours = [module.__file__ or "" for name, module in sys.modules.items() if name.startswith("udaseg")]
        return "edited code" if any(self.stamps.setdefault(file, stamp(file)) != stamp(file) for file in ours) else None

    def left(self, line: socket.socket) -> None:
        """Who waited for a step is gone, killed: so is the step."""
        with contextlib.suppress(OSError):
            if line.recv(4096):
                return
        for pid, waiting in self.steps.items():
            if waiting is line:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(KeyError):
            self.selector.unregister(line)

    def reap(self) -> None:
        for pid in list(self.steps):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                line = self.steps.pop(pid)
                with contextlib.suppress(KeyError):
                    self.selector.unregister(line)
                with contextlib.suppress(OSError):
                    line.sendall(json.dumps({"code": os.waitstatus_to_exitcode(status)}).encode() + b"\n")
                line.close()

    def close(self, line: socket.socket) -> None:
        """In a child: nothing of the server stays open."""
        self.selector.close()
        for each in (self.door, line, *self.steps.values()):
            each.close()


def stamp(file: str) -> tuple[int, int]:
    try:
        about = os.stat(file)
    except OSError:
        return (0, 0)
    return about.st_mtime_ns, about.st_size


def run(request: dict[str, Any], streams: list[int]) -> int:
    """The step in the child, as if it had been started alone."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for each in SIGNALS:
        usual = signal.default_int_handler if each == signal.SIGINT else signal.SIG_DFL
        signal.signal(each, usual if each in request["heard"] else signal.SIG_IGN)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    # what stood there before may have been of another kind, a file where this is a pipe
    sys.stdin, sys.stdout, sys.stderr = open(0, closefd=False), *(open(n, "w", 1, closefd=False) for n in (1, 2))  # noqa: SIM115
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    os.environ.pop(VARIABLE, None)
    tempfile.tempdir = None
    sys.argv = ["udaseg", *request["argv"]]

    from udaseg.cli import main

    try:
        return main(request["argv"])
    except KeyboardInterrupt:
        return 130
    except Exception:
        traceback.print_exc()
        return 1


if __name__ == "__main__":
    step = Server(sys.argv[1]).serve()
    startup.leave(step() if step else 0)
