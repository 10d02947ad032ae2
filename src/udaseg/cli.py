"""The command line: a command from its words (arguments.py) to its exit code; what it does is in commands.py.

Exit codes: 0 done, 2 an error that the user can mend (one line says how), 75 stopped on request with its state saved.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from udaseg import startup
from udaseg.arguments import EXIT_USER_ERROR, make_parser
from udaseg.errors import Interrupted, UserError, printable

if TYPE_CHECKING:
    pass
from udaseg.workflow import warm
from udaseg.workflow.leftovers import at_work

EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: run the same command again and it goes on

# Which extra of pyproject.toml brings a module that only some steps need.
EXTRAS = {
    **dict.fromkeys(("scipy", "pooch"), "train"),
    **dict.fromkeys(
        ("matplotlib", "seaborn", "sklearn", "openTSNE", "threadpoolctl", "jinja2", "markdown_it"), "analysis"
    ),
    **dict.fromkeys(("snakemake", "dvc"), "workflow"),
}

# What the steps begin with importing; those of the workflow can be handed to a process that has it (workflow/warm.py).
IMPORTS = {
    **warm.MODULES,
    "verify": ("udaseg.workflow.verify",),
    "resign": ("udaseg.workflow.resign",),
    "predict": ("udaseg.deploy.predict",),
    "export": ("udaseg.deploy.export",),
    "submit": ("udaseg.deploy.submit",),
    "import-checkpoint": ("udaseg.models.official",),
}


class Printable(logging.Formatter):
    """Names of files in messages never steer the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of a command; without `argv` it is that of this process, which ends here."""
    code = call(argv)
    if argv is None:
        startup.leave(code)
    return code


def call(argv: Sequence[str] | None) -> int:
    if warm.VARIABLE in os.environ:
        code = warm.handed_over(sys.argv[1:] if argv is None else argv)
        if code is not None:
            return code
    for stream in (sys.stdout, sys.stderr):
        if isinstance(
            stream, io.TextIOWrapper
        ):  # a terminal that lacks a letter, or a name that is no text, stops nothing
            stream.reconfigure(errors="backslashreplace")
    args = make_parser().parse_args(argv)
    first = os.environ.get("RANK", "0") == "0"  # under torchrun one process speaks for all
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Printable("%(message)s"))
    logging.basicConfig(level=logging.INFO if first else logging.WARNING, handlers=[handler])
    if mirror := os.environ.get("UDASEG_MIRROR"):
        os.environ["UDASEG_MIRROR"] = str(Path(mirror).resolve())
    try:
        with at_work(args.step):
            if argv is None:
                startup.import_at_once(IMPORTS.get(args.step, ()))
            code = args.call(args)
        return int(code or 0)
    except UserError as error:
        print(f"udaseg {args.step}: {printable(str(error))}", file=sys.stderr)
        return EXIT_USER_ERROR
    except Interrupted as error:
        print(f"udaseg {args.step}: {error}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        print(f"udaseg {args.step}: stopped; run the same command again", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `udaseg ... | head`
        sys.stderr.close()
        return 0
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        print(
            f"udaseg {args.step}: found no package {package}, expected the packages of this step: "
            f"python -m pip install 'udaseg[{EXTRAS[package]}]' (docs/install.md)",
            file=sys.stderr,
        )
        return EXIT_USER_ERROR
    except (OSError, MemoryError, RuntimeError) as error:
        line = of_the_machine(error)
        if line is None:
            raise
        print(f"udaseg {args.step}: {printable(line)}", file=sys.stderr)
        return EXIT_USER_ERROR


def of_the_machine(error: Exception) -> str | None:
    """One line on what the file system, the memory or another process of the same training denied; None for a fault of ours."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "no space left on the disk; free some and run again (nothing finished is lost)"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        expected = "files that can be read in folders that can be written"
        if error.errno == errno.ENAMETOOLONG:
            expected = "at most 255 bytes between two slashes and 4095 in all"
        return f"{os.fsdecode(error.filename)}: {error.strerror}; expected {expected}; mend that, then run again"
    if isinstance(error, MemoryError) or re.search(r"out of memory|ALLOC_FAILED|allocate memory", str(error), re.I):
        what = "the GPU" if "CUDA" in str(error) or "CUBLAS" in str(error) or "CUDNN" in str(error) else "the machine"
        return (
            f"out of memory of {what}; run fewer jobs at once (other programs on it count too), or lower train.batch or train.crop "
            f"(in scoring: `test.mode: slide`; in predict and export: --size); nothing finished is lost, a training goes on from its "
            f"last saved step"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and re.search(
        r"gloo|NCCL|onnection (closed|reset|refused)", str(error)
    ):
        return "another process of this training has ended, and its line says why; the same command goes on from the last saved step"
    return None
