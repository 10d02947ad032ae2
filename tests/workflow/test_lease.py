"""GPUs are never given twice, and come back however a job ends. The pool is made up; no GPU is needed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from repository import RESTART, TRAINED, Repository, wait_for

from udaseg.errors import UserError
from udaseg.workflow import lease

# Writes when it began and ended, and with which devices.
JOB = """
import os, sys, time
began = time.time()
time.sleep(float(sys.argv[2]))
open(sys.argv[1], "w").write(f"{began} {time.time()} {os.environ['CUDA_VISIBLE_DEVICES']}")
"""


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lock files of this test alone, and a pool of four."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("UDASEG_GPU_POOL", "0,1,2,3")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)


def leased(count: int, *command: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "udaseg", "with-gpus", str(count), "--", *command]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def visible(count: int) -> str:
    process = leased(count, sys.executable, "-c", "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    return output.strip().splitlines()[-1] if output.strip() else ""


def test_i_17_no_device_is_given_twice(tmp_path: Path) -> None:
    job = tmp_path / "job.py"
    job.write_text(JOB)
    jobs = {
        tmp_path / f"{n}.txt": leased(1 + n % 2, sys.executable, str(job), str(tmp_path / f"{n}.txt"), "0.4")
        for n in range(8)
    }
    doomed = leased(2, sys.executable, "-c", "import time; time.sleep(60)")
    time.sleep(1.5)
    for member in [*psutil.Process(doomed.pid).children(recursive=True), psutil.Process(doomed.pid)]:
        member.kill()
    doomed.communicate()
    for process in jobs.values():
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
    times = []
    for n, path in enumerate(jobs):
        began, ended, devices = path.read_text().split()
        assert len(devices.split(",")) == 1 + n % 2
        times += [(device, float(began), float(ended)) for device in devices.split(",")]
    for device, began, ended in times:
        others = [t for t in times if t[0] == device and t[1] != began]
        assert all(end <= began or ended <= begin for _, begin, end in others), times
    assert visible(4) == "0,1,2,3"  # those of the killed job as well


def test_a_device_stays_taken_while_the_command_lives() -> None:
    process = leased(3, sys.executable, "-c", "print('here', flush=True); import time; time.sleep(60)")
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    (child,) = psutil.Process(process.pid).children()
    process.kill()  # the lease alone; its command goes on and so do its devices
    process.wait()
    assert visible(1) == "3"
    child.kill()


def test_no_pool_and_no_request_mean_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert visible(0) == ""
    monkeypatch.setenv("UDASEG_GPU_POOL", "")
    assert visible(2) == ""


def test_a_device_named_twice_has_two_shares() -> None:
    pool = ["0", "0", "1"]
    taken = [lease.hold(pool, 1) for _ in range(3)]
    try:
        assert [devices for devices, _ in taken] == [["0"], ["0"], ["1"]]
        assert sorted(path.name for path in lease.lock_folder().iterdir()) == ["0", "0+1", "1", "mutex"]
    finally:
        for _, handles in taken:
            for handle in handles:
                os.close(handle)
    both, handles = lease.hold(pool, 3)  # one command has no use for two shares of a device
    assert both == ["0", "1"]
    for handle in handles:
        os.close(handle)


def test_a_request_beyond_the_pool_gets_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UDASEG_GPU_POOL", "5")
    assert visible(2) == "5"


def test_the_pool_is_what_is_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UDASEG_GPU_POOL")
    for text, devices in [("2, 3", ["2", "3"]), ("", []), ("-1", []), ("NoDevFiles", [])]:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", text)
        assert lease.pool() == devices


def test_a_machine_without_a_driver_has_no_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UDASEG_GPU_POOL")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert lease.pool() == []
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 0; echo 1\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert lease.pool() == ["0", "1"]


def planted(folder: Path, what: str, elsewhere: Path) -> None:
    elsewhere.mkdir(mode=0o700)
    if what == "link":
        folder.symlink_to(elsewhere)
    elif what == "file":
        folder.touch()
    elif what == "open to others":
        folder.mkdir()
        folder.chmod(0o777)
    else:
        folder.mkdir(mode=0o700)
        (folder / what).symlink_to(elsewhere / "victim")


@pytest.mark.parametrize("what", ["link", "file", "open to others", "mutex", "0"])
def test_what_somebody_has_put_there_is_not_used(what: str, tmp_path: Path) -> None:
    """The temporary folder belongs to all: whoever knows the name may be there first."""
    planted(lease.lock_folder(), what, tmp_path / "elsewhere")
    process = leased(1, sys.executable, "-c", "print('ran')")
    text = process.communicate(timeout=60)[0]
    assert process.returncode == 2 and len(text.splitlines()) == 1, text
    assert text.startswith(f"udaseg with-gpus: {lease.lock_folder()}")
    assert not any((tmp_path / "elsewhere").iterdir()), "nothing is made behind a link"


def test_another_users_folder_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(UserError, match="another user's, expected one for you alone"):
        lease.hold(["0"], 1)


def test_a_slurm_job_shares_with_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    outside = lease.lock_folder()
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert lease.lock_folder() != outside


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_reach_the_command_and_its_code_comes_back(number: signal.Signals) -> None:
    program = (
        "import signal, sys, time\n"
        f"signal.signal({int(number)}, lambda *_: sys.exit(75))\n"
        "print('here', flush=True)\n"
        "time.sleep(60)"
    )
    process = leased(1, sys.executable, "-c", program)
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    os.kill(process.pid, number)
    assert process.wait(timeout=20) == 75


def test_exit_codes() -> None:
    assert leased(1, sys.executable, "-c", "raise SystemExit(3)").wait() == 3
    assert leased(1, "sh", "-c", "kill -9 $$").wait() == 137
    assert leased(1, "no-such-command").wait() == 2
    with pytest.raises(UserError, match="no command"):
        lease.with_gpus(1, ["--"])


def test_several_devices_mean_one_process_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def run(command: list[str], environment: dict[str, str], locks: list[int]) -> int:
        seen.append(command)
        return 1

    monkeypatch.setattr(lease, "forward", run)
    for count, words in [(2, ["-m", "udaseg", "train"]), (1, ["-m", "udaseg", "train"]), (2, ["script.py"])]:
        assert lease.with_gpus(count, ["python", *words]) == 1
    assert seen == [
        ["python", "-m", "udaseg.workflow.launch", "2", "-m", "udaseg", "train"],
        ["python", "-m", "udaseg", "train"],
        ["python", "script.py"],
    ]


def test_two_devices_train_one_run(finished: Repository) -> None:
    shutil.rmtree(finished / TRAINED)
    shutil.rmtree(finished / "results/.trained")
    train = (sys.executable, "-m", "udaseg", "train", "--benchmark", "streets", "--method", "self_training")
    environment = finished.environment | {"UDASEG_GPU_POOL": "0,1"}
    command = [sys.executable, "-m", "udaseg", "with-gpus", "2", "--", *train]
    done = subprocess.run(command, cwd=finished.folder, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert json.loads((finished / f"{TRAINED}/run.json").read_text())["ranks"] == 2


@pytest.fixture
def on_two(finished: Repository) -> Callable[..., subprocess.Popen[str]]:
    """Start a training of some hundred steps on two devices."""
    finished.set("benchmarks/streets/init", {"default": "none"})
    finished.set("benchmarks/streets/train/steps", 400)
    finished.set("benchmarks/streets/train/save_every", 5)
    finished.set("run/workers", 1)
    train = (sys.executable, "-m", "udaseg", "train", "--benchmark", "streets", "--method", "self_training")
    environment = finished.environment | {"UDASEG_GPU_POOL": "0,1"}

    def start(**params: object) -> subprocess.Popen[str]:
        for path, value in params.items():
            finished.set(path, value)
        command = [sys.executable, "-m", "udaseg", "with-gpus", "2", "--", *train]
        return subprocess.Popen(
            command, cwd=finished.folder, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True
        )

    return start


def saved(repository: Repository) -> bool:
    return (repository / f"{RESTART}/state.previous.pt").exists()


@pytest.mark.parametrize("group", [True, False])
def test_two_processes_asked_to_stop_end_with_what_they_saved(
    finished: Repository, on_two: Callable[..., subprocess.Popen[str]], group: bool
) -> None:
    """Ctrl-C goes to all of a terminal's processes, a scheduler's signal to one."""
    process = on_two()
    wait_for(lambda: saved(finished) or process.poll() is not None)
    os.killpg(process.pid, signal.SIGINT) if group else process.send_signal(signal.SIGTERM)
    text = process.communicate(timeout=120)[1]
    assert process.returncode == 75, text
    assert "Traceback" not in text
    assert re.fullmatch(r"udaseg train: stopped at step \d+ of 400; .*goes on from there", text.splitlines()[-1]), text


def test_what_one_of_two_processes_says_is_what_is_seen(on_two: Callable[..., subprocess.Popen[str]]) -> None:
    process = on_two(**{"benchmarks/streets/train/batch": 3})
    text = process.communicate(timeout=120)[1]
    assert process.returncode == 2, text
    before = ("from random weights", "it is made anew")  # what is said on the way
    lines = [line for line in text.splitlines() if not any(words in line for words in before)]
    assert set(lines) == {text.splitlines()[-1]} and "cannot be split over 2 processes" in text


def test_a_killed_loader_of_one_of_two_processes(
    finished: Repository, on_two: Callable[..., subprocess.Popen[str]]
) -> None:
    process = on_two()
    wait_for(lambda: saved(finished) or process.poll() is not None)
    ranks = [p for p in psutil.Process(process.pid).children(recursive=True) if "with-gpus" not in p.cmdline()]
    loader = next(p for p in ranks if p.parent().cmdline()[-2:] == ["--method", "self_training"] and not p.children())
    loader.kill()
    text = process.communicate(timeout=120)[1]
    assert process.returncode == 2, text
    assert "Traceback" not in text and "a data-loading process was killed" in text
