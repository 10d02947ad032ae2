"""How a process that needs PyTorch begins and ends: in two thirds of the time that Python takes by itself.

PyTorch and what it brings are a million objects that stay. The collector would look through them again and again while they
come, and at the end they would be taken apart one by one, in each copy of a process too.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import sys
import threading
from collections.abc import Iterable
from typing import NoReturn


def import_at_once(modules: Iterable[str]) -> None:
    """Import modules that stay to the end of the process.

    Raises:
        ImportError: as the module does.
    """
    gc.disable()
    try:
        for name in modules:
            importlib.import_module(name)
    finally:
        gc.enable()
    gc.freeze()


def leave(code: int) -> NoReturn:
    """End the process as `sys.exit` does, except that memory is given back as a whole.

    Threads are waited for, what was registered for the end runs, output is written; 120 where that fails, as Python says it.
    """
    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.current_thread():
            thread.join()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            if not stream.closed:
                stream.flush()
        except OSError:  # nobody reads any more, or no space is left
            code = code or 120
    os._exit(code)
