"""Hold free GPUs while a command runs. Snakemake only counts GPUs; which one a job gets is decided here.

A device is held by a file lock, which the kernel drops with the last process that has it, so nothing is ever stale.
Several workflows, `dvc repro` and runs by hand share the devices of a machine in this way.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import FrameType

from udaseg.errors import UserError
from udaseg.workflow import warm
from udaseg.workflow.launch import SIGNALS

log = logging.getLogger("udaseg")


def with_gpus(count: int, command: list[str]) -> int:
    """Run `command` while holding `count` devices of the pool (or all, if it has fewer); returns the command's exit code.

    The command sees its devices as CUDA_VISIBLE_DEVICES, none if `count` is 0 or the pool is empty. Holding more than one,
    `python -m <module> ...` is started once for each device by torchrun.

    Raises:
        UserError: no command, or one that cannot be started.
    """
    if command[:1] == ["--"]:
        command = command[1:]
    if not command:
        raise UserError("no command given; say for example `udaseg with-gpus 1 -- python -m udaseg train ...`")
    devices, locks = hold(pool(), count)
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ",".join(devices), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    if devices:
        environment.pop(warm.VARIABLE, None)  # what holds a device is a child of what holds its lock
    launched = command
    if len(devices) > 1 and command[1:2] == ["-m"]:
        launched = [command[0], "-m", "udaseg.workflow.launch", str(len(devices)), *command[1:]]
    # The child inherits the locks: should this process be killed, the devices stay taken as long as the child uses them.
    try:
        code = forward(launched, environment, locks)
        if code == 128 + signal.SIGKILL:
            log.error(
                "%s: killed, most likely for want of memory; run fewer jobs at once (`--cores`, `--resources mem_mb=...`) or lower "
                "run.workers, train.batch or train.crop; nothing finished is lost, a training goes on from its last saved step",
                " ".join(command),
            )
        return code
    finally:
        for handle in locks:
            os.close(handle)


def forward(command: list[str], environment: dict[str, str], handles: list[int]) -> int:
    """Run a command and hand on signals; its exit code (128 + n if signal n ended it)."""
    process: subprocess.Popen[bytes] | None = None
    early: list[int] = []  # signals that came before the child was there

    def hand_on(number: int, frame: FrameType | None) -> None:
        if process is None:
            early.append(number)
        else:
            process.send_signal(number)

    former = {number: signal.signal(number, hand_on) for number in SIGNALS}
    try:
        process = subprocess.Popen(command, env=environment, pass_fds=handles)
        for number in early:
            process.send_signal(number)
        code = process.wait()
    except OSError as error:
        raise UserError(f"{command[0]}: cannot be started ({error.strerror}); check the command") from None
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def pool() -> list[str]:
    """Devices to share: UDASEG_GPU_POOL, else CUDA_VISIBLE_DEVICES (Slurm sets it), else all of the machine.

    UDASEG_GPU_POOL="0,0,1,1" lets two commands at a time on each of both devices.
    """
    for name in ("UDASEG_GPU_POOL", "CUDA_VISIBLE_DEVICES"):
        if name in os.environ:
            listed = [word.strip() for word in os.environ[name].split(",")]
            return [word for word in listed if word and word not in ("-1", "NoDevFiles")]
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return []  # no driver: a machine without GPUs
    return done.stdout.split()


def hold(devices: list[str], count: int) -> tuple[list[str], list[int]]:
    """Wait until `count` of `devices` are free and lock them.

    A device that is named n times has n shares, one for each of so many commands; one command never gets two of them.

    Only the holder of one mutex takes devices, so two waiting processes never hold half of what the other needs, and a
    large request is not overtaken for ever by small ones.

    Returns:
        the devices, and the file descriptors that hold them.
    """
    count = min(count, len(set(devices)))
    if count <= 0:
        return [], []
    folder = open_private(lock_folder())
    opened = [folder]
    held: dict[str, int] = {}
    try:
        mutex = open_lock("mutex", folder)
        opened.append(mutex)
        if not lock(mutex, wait=False):
            log.info("waiting for a GPU of %s", ", ".join(devices))
            lock(mutex, wait=True)
        told = False
        while True:
            for place, device in enumerate(devices):
                if device in held or len(held) == count:
                    continue
                share = devices[:place].count(device)  # the first has the name that it has where devices are not shared
                handle = open_lock(device.replace("/", "_") + (f"+{share}" if share else ""), folder)
                if lock(handle, wait=False):
                    held[device] = handle
                else:
                    os.close(handle)
            if len(held) == count:
                return list(held), list(held.values())
            if not told:
                log.info("waiting for %d of the GPUs %s", count, ", ".join(devices))
                told = True
            time.sleep(0.2)
    finally:
        for handle in opened:
            os.close(handle)


def lock(handle: int, *, wait: bool) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def lock_folder() -> Path:
    """One for each user and machine; inside a Slurm job one for each job, because Slurm numbers every job's devices from 0.

    In the temporary folder and not in XDG_RUNTIME_DIR, which vanishes when the user logs out: a training that goes on without
    a terminal would hold its devices in a folder that later ones cannot see.
    """
    name = f"udaseg-gpus-{os.getuid()}-{socket.gethostname()}"
    if job := os.environ.get("SLURM_JOB_ID"):
        name += f"-job{job}"
    return Path(tempfile.gettempdir()) / name


def open_private(folder: Path) -> int:
    """A descriptor of `folder`, made where it is not there. Anybody may have put something else in its place.

    Raises:
        UserError: it cannot be made, is a link or a file, belongs to somebody else, or others may enter it.
    """
    mend = "remove it, or set TMPDIR to a folder of your own, the same for all your commands on this machine"
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise UserError(f"{folder}: cannot be used for the locks of the GPUs ({error.strerror}); {mend}") from None
    about = os.fstat(handle)
    if about.st_uid != os.getuid() or about.st_mode & 0o077:
        os.close(handle)
        whose = "another user's" if about.st_uid != os.getuid() else f"open to others (mode {about.st_mode & 0o777:o})"
        raise UserError(f"{folder}: found a folder that is {whose}, expected one for you alone (mode 700); {mend}")
    return handle


def open_lock(name: str, folder: int) -> int:
    """A file of the folder with this descriptor; made where it is not there, and never a link."""
    try:
        return os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600, dir_fd=folder)
    except OSError as error:
        raise UserError(
            f"{lock_folder() / name}: cannot be opened as a lock ({error.strerror}); remove it and run again"
        ) from None
