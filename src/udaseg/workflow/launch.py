"""torchrun for one machine: one process for each device, and the exit code of the first that failed.

torchrun itself ends with 1 and a report of its own whatever its processes say in their one line.
"""

from __future__ import annotations

import logging
import os
import signal
import sys

SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
STOPPED = 75  # asked to stop, the processes have saved their state (udaseg/errors.py)


def main(processes: str, *command: str) -> int:
    """Run `-m MODULE ...` in so many processes."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    os.environ.setdefault("OMP_NUM_THREADS", "1")  # what torchrun would set, with a warning; run.threads decides
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    options = ["--standalone", "--nproc-per-node", processes]
    options += ["--signals-to-handle", ",".join(number.name for number in SIGNALS)]  # USR1 would end it alone
    try:
        run.main([*options, *command])
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return code if code >= 0 else 128 - code
    except SignalException:
        return STOPPED
    except KeyboardInterrupt:  # before torchrun was there
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
