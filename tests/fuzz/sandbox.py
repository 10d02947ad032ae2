"""Cases in forks of one warm process: ten seconds, one GiB more than the process had, nothing written outside the case's folder.

The ten seconds are of computing; what waits has a minute, because a busy machine is no hang.

A batch of cases shares a fork, because forking a process that has imported torch takes longer than most cases. A fork that dies
or hangs takes one case with it; the rest of its batch goes on in a new one.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import json
import logging
import os
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udaseg import cli

GRACE = 5.0  # for a hang to be told with the place where it hangs
ADDRESSES = 3 << 30  # of address space: threads reserve much that they never touch
FILE = 256 << 20  # bytes of one file
PROCESSES = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "socket.connect",
    "socket.getaddrinfo",
)
ANSWERS = ("doctor", "verify")  # end with 1 where what they look at is not as it should be
CHANGES = {  # audit events that change the file system -> which of their arguments are the paths
    "os.mkdir": (0,), "os.remove": (0,), "os.rmdir": (0,), "os.rename": (0, 1), "os.link": (1,), "os.symlink": (1,),
    "os.chmod": (0,), "os.chown": (0,), "os.truncate": (0,), "os.utime": (0,),
}  # fmt: skip
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Wrong(Exception):
    """The program did what it must not do; the text says what."""


class Handed(BaseException):
    """The program accepted its input and is about to start another program: as far as a case goes."""


@dataclass(frozen=True)
class Outcome:
    """What became of a case: `accepted`, `refused`, or `failed` with what was found."""

    verdict: str
    text: str = ""
    seconds: float = 0.0


@dataclass
class Watch:
    """What the audit hook looks at; `armed` only while the program runs."""

    home: str = ""
    scratch: str = ""
    armed: bool = False
    hands_over: bool = False
    found: str = ""

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.armed or self.found:
            return
        if event == "open":
            path, _, flags = args
            if isinstance(path, str | bytes | os.PathLike) and isinstance(flags, int):
                self.look(path, bool(flags & WRITES))
        elif event in CHANGES:
            for number in CHANGES[event]:
                self.look(args[number], True)
        elif event == "pickle.find_class" and not str(args[0]).startswith(
            ("udaseg", "builtins", "collections", "numpy", "pathlib")
        ):
            self.found = f"unpickles {args[0]}.{args[1]}"
        elif event in PROCESSES:
            if not self.hands_over and "git" not in str(args[0]):
                self.found = f"starts another program or connects: {event} {args!r}"[:300]
            if self.hands_over:
                raise Handed(event)

    def look(self, path: Any, write: bool) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return
        armed, self.armed = self.armed, False
        try:
            text = os.fsdecode(path)
            folder, name = os.path.split(os.path.abspath(text))
            where = os.path.join(os.path.realpath(folder), name)
        except (OSError, ValueError):
            return
        finally:
            self.armed = armed
        inside = where == self.home or where.startswith(self.home + os.sep)
        if inside or where == os.devnull or where.startswith(("/proc/", "/dev/shm/")):
            return
        if write or where.startswith(self.scratch + os.sep + "outside"):
            self.found = f"{'writes' if write else 'reads'} {text} outside its folder"


WATCH = Watch()


@contextlib.contextmanager
def watched(*, hands_over: bool = False) -> Iterator[None]:
    """While the program runs. Raises Wrong for what it does outside the case's folder."""
    WATCH.found, WATCH.hands_over, WATCH.armed = "", hands_over, True
    try:
        yield
    finally:
        WATCH.armed = False
        if WATCH.found:
            raise Wrong(WATCH.found)


@dataclass(frozen=True)
class Said:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def accepted(self) -> bool:
        return self.code == 0


def command(*words: str, hands_over: bool = False) -> Said:
    """`udaseg WORDS` in this process.

    Raises:
        Wrong: neither 0, nor 2 with one line; or it touched what is outside the case's folder.
    """
    said = {}
    with contextlib.ExitStack() as stack:
        for name, descriptor in (("out", 1), ("err", 2)):
            said[name] = stack.enter_context(tempfile.TemporaryFile())
            getattr(sys, f"std{name}").flush()
            os.dup2(said[name].fileno(), descriptor)
        logging.getLogger().handlers.clear()
        sys.stdout = stdout = io.TextIOWrapper(
            io.FileIO(1, "w", closefd=False), "utf-8", errors="strict", line_buffering=True
        )
        sys.stderr = stderr = io.TextIOWrapper(
            io.FileIO(2, "w", closefd=False), "utf-8", errors="backslashreplace", line_buffering=True
        )
        code: Any = None
        try:
            with watched(hands_over=hands_over):
                code = cli.main(list(words))
        except Handed:
            code = 0
        except SystemExit as error:  # argparse
            code = error.code or 0
        for stream in (stdout, stderr):
            stream.flush()
        logging.getLogger().handlers.clear()  # its stream closes
        texts = {}
        for name, handle in said.items():
            handle.seek(0)
            texts[name] = handle.read(1 << 20).decode("utf-8", "replace")
    return judged(words, Said(code, texts["out"], texts["err"]))


def judged(words: Sequence[str], said: Said) -> Said:
    """Raises Wrong unless the command ended as a command must."""
    if "Traceback (most recent call last)" in said.out + said.err:
        raise Wrong(f"a traceback in what it says: {said.err[-600:]}")
    if said.code == 0 or (said.code == 1 and words[0] in ANSWERS):
        return said
    if said.code != 2:
        raise Wrong(f"exit code {said.code}, expected 0 or 2: {said.err[-300:]}")
    # splitlines would also split where a terminal does not
    lines = said.err.rstrip("\n").split("\n")
    start = [k for k, line in enumerate(lines) if re.match(r"udaseg( [a-z-]+)?: ", line)]
    if len(start) != 1 or any(not line.startswith("  ") for line in lines[start[0] + 1 :]):
        raise Wrong(f"refused in other than one line: {said.err[-600:]!r}")
    if odd := re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e]", lines[start[0]]):
        raise Wrong(f"the line holds the control character {odd.group()!r}: {lines[start[0]]!r}")
    return said


def run(
    play: Callable[[Any, Path], bool],
    recipes: Sequence[Any],
    scratch: Path,
    *,
    seconds: float,
    waiting: float,
    memory: int,
    keep: bool = False,
) -> Iterator[Outcome]:
    """The outcome of each recipe, in order.

    Args:
        play: plays a recipe in the working directory that it is given; whether the program accepted it.
        scratch: where the cases' folders are made.
        seconds: limit of one case's computing.
        waiting: limit of one case in seconds of the clock.
        memory: limit of one case's growth, in bytes.
        keep: leave the folders.
    """
    done = 0
    scratch.mkdir(exist_ok=True)
    while done < len(recipes):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            _work(play, recipes[done:], scratch, done, writer, seconds, waiting, memory, keep)
        os.close(writer)
        try:
            for outcome in _heard(reader, child, len(recipes) - done, scratch, seconds, waiting):
                done += 1
                yield outcome
        finally:
            os.close(reader)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child, 0)


def _heard(reader: int, child: int, count: int, scratch: Path, seconds: float, waiting: float) -> Iterator[Outcome]:
    """Outcomes as a fork tells them, one a line; the last one from how it died, if it did."""
    text, heard = b"", 0
    while heard < count:
        ready, _, _ = select.select([reader], [], [], waiting + GRACE)
        piece = os.read(reader, 1 << 16) if ready else b""
        if not piece:
            if not ready:
                os.killpg(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            place = Path(scratch, f"hang{child}")
            where = place.read_text().partition("\nExtension modules")[0] if place.exists() else ""
            place.unlink(missing_ok=True)
            how = os.waitstatus_to_exitcode(status)
            if not ready or "Timeout" in where:
                yield Outcome("failed", f"waits for more than {waiting:g} s\n{where[-2500:]}", seconds)
            elif how == -signal.SIGPROF:
                yield Outcome("failed", f"computes for more than {seconds:g} s\n{where[-2500:]}", seconds)
            else:
                yield Outcome(
                    "failed",
                    f"the process died ({signal.Signals(-how).name if how < 0 else f'exit {how}'})\n{where[-2500:]}",
                )
            return
        text += piece
        *lines, text = text.split(b"\n")
        for line in lines:
            heard += 1
            outcome = Outcome(*json.loads(line))
            yield outcome
            if outcome.verdict == "failed":  # the fork ends there: what a failure leaves behind is not the next case's
                return


def _work(
    play: Callable[[Any, Path], bool],
    recipes: Sequence[Any],
    scratch: Path,
    first: int,
    writer: int,
    seconds: float,
    waiting: float,
    memory: int,
    keep: bool,
) -> None:
    os.setpgid(0, 0)
    code = 1
    try:
        status = Path("/proc/self/status")

        def kilobytes(key: str) -> int:
            return int(re.search(rf"{key}:\s+(\d+)", status.read_text())[1])  # type: ignore[index]

        resource.setrlimit(resource.RLIMIT_AS, (1024 * kilobytes("VmSize") + ADDRESSES,) * 2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE, FILE))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        sys.dont_write_bytecode = True
        sys.addaudithook(WATCH)
        place = (scratch / f"hang{os.getpid()}").open("w")
        faulthandler.enable(place)
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        faulthandler.register(signal.SIGPROF, place, chain=True)  # tells where, then ends the process
        for number, recipe in enumerate(recipes, first):
            home = scratch / f"{number}" / "home"
            shutil.rmtree(home.parent, ignore_errors=True)  # of one that died
            (home / "tmp").mkdir(parents=True)
            os.chdir(home)
            tempfile.tempdir = os.environ["TMPDIR"] = str(home / "tmp")
            WATCH.home, WATCH.scratch = str(home), str(scratch)
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            before, began = kilobytes("VmRSS"), time.monotonic()
            faulthandler.dump_traceback_later(waiting, exit=True, file=place)
            signal.setitimer(signal.ITIMER_PROF, seconds)
            verdict, text = _played(play, recipe, home)
            signal.setitimer(signal.ITIMER_PROF, 0)
            faulthandler.cancel_dump_traceback_later()
            grown = 1024 * (kilobytes("VmHWM") - before)
            if verdict != "failed" and grown > memory:
                verdict, text = "failed", f"takes {grown >> 20} MiB"
            os.chdir(scratch)
            if not keep:
                shutil.rmtree(home.parent, ignore_errors=True)
            answer = json.dumps([verdict, text, time.monotonic() - began]) + "\n"
            os.write(writer, answer.encode())
            if verdict == "failed":
                break
        place.close()
        Path(place.name).unlink(missing_ok=True)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _played(play: Callable[[Any, Path], bool], recipe: Any, home: Path) -> tuple[str, str]:
    try:
        return ("accepted" if play(recipe, home) else "refused"), ""
    except Wrong as error:
        return "failed", str(error)
    except MemoryError:
        return "failed", f"out of memory\n{traceback.format_exc()[-2500:]}"
    except BaseException:
        return "failed", traceback.format_exc()[-4000:]
