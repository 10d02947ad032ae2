"""`make drill`: commands are hurt at random moments and places, healed as a user would, and must leave the same bits.

A round starts `snakemake`, `dvc repro`, one step by hand or a training of two processes on a copy of a small finished
repository from which results were taken away, and hurts it (rounds.py says how). Then the cause is healed where that is the
user's part, what the program printed is followed to the letter, and the same command is run again. All results must equal those
of an undisturbed run, nothing may be left behind, and no output may hold a traceback.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "src"))

import faults
import judge
from faults import Folders, Impossible
from rounds import DAMAGE, FULL, LIMIT, READ_ONLY, TWO, Job, Round, draw
from world import BARE, ROOT, Place, Reference, Started, Warm, alone_with, copy, start, torchrun

HOME = ROOT / "drill"
ROUNDS = Path(__file__).with_name("rounds.jsonl")
PAGE = ROOT / "docs" / "reliability.md"
OUTCOMES = ("ok", "ok after --unlock", "mended by printed advice", "not met", "skipped", "FAILED")
BEGIN, END = "<!-- written by `make drill` -->", "<!-- end -->"
ALONE = "UDASEG_DRILL_ALONE"
MOST_ADVICE = 6
UNDISTURBED = {"snakemake": 4.0, "dvc": 3.0}  # seconds without any job; the jobs are measured


class Failed(Exception):
    """What a round did not survive."""


@dataclasses.dataclass
class Played:
    """What came of a round: an entry of OUTCOMES, and what was seen."""

    outcome: str
    note: str = ""
    code: int | None = None  # of the hurt command
    foreign: bool = False  # a traceback of Snakemake or DVC alone
    said: str = ""
    seconds: float = 0.0


class Drill:
    """Plays rounds of one seed; references and the warm process are made when they are asked for."""

    def __init__(self, home: Path, seed: int) -> None:
        self.home, self.seed = home, seed
        self.reference = Reference(home, seed)
        self.warm = Warm()
        with alone_with(home / "lock"):
            self.steps = self.reference.steps(self.warm)

    def close(self) -> None:
        self.warm.close()

    def undisturbed(self, spec: Round) -> Place:
        """The finished folder that a round starts from."""
        with alone_with(self.home / "lock"):
            if spec.start == "torchrun":
                return self.reference.ranks(self.steps)
            return self.steps if spec.start == "step" else self.reference.whole()

    def play(self, spec: Round) -> Played:
        began = time.monotonic()
        played = Played("FAILED")
        for late in range(4):
            place = Place(self.home / "rounds" / f"{spec.seed}-{spec.number}", spec.seed)
            clear(place)
            folders = Folders(place)
            again = dataclasses.replace(spec, moment=spec.moment * 0.6**late)
            try:
                played = Playing(self, again, place, folders).play()
            except Failed as failure:
                played = Played("FAILED", str(failure), said=last_words(place))
            except Impossible as reason:
                played = Played("skipped", str(reason))
            except (AssertionError, OSError, subprocess.SubprocessError) as error:
                played = Played("FAILED", f"the drill itself: {type(error).__name__}: {error}"[:500])
            except StillDamaged as about:
                played = Played("ok", str(about))
            except NotHit:
                played = Played("not met", "the command ended before it was hurt")
                continue
            finally:
                folders.undo()
                for process in place.processes():
                    process.kill()
            break
        played.seconds = round(time.monotonic() - began, 1)
        if played.outcome != "FAILED":
            clear(place)
        return played


class NotHit(Exception):
    """The command ended before its moment came, or met no bound."""


class Playing:
    """One round at work."""

    def __init__(self, drill: Drill, spec: Round, place: Place, folders: Folders) -> None:
        self.drill, self.spec, self.place, self.folders = drill, spec, place, folders
        self.finished = drill.undisturbed(spec)
        self.texts: list[str] = []
        self.note = ""
        self.count = 0

    def play(self) -> Played:
        spec, place = self.spec, self.place
        copy(self.finished, place, BARE if spec.start in ("step", "torchrun") else (".",))
        if spec.start == "dvc":
            empty_cache(place)
        place.take_away(self.missing(), set_aside=spec.number % 5 == 0 and spec.fault not in DAMAGE)
        command = self.hurt()
        code = command.wait()
        if code is None:
            raise Failed(f"hangs: the hurt command did not end in time; {[p.cmdline() for p in place.processes()][:3]}")
        self.look_at(command)
        if code == 0 and spec.fault in (FULL, LIMIT, READ_ONLY):
            raise NotHit
        self.folders.heal()
        outcome = self.repeat(code)
        self.check()
        foreign = any(judge.traceback_in(text) for text in self.texts)
        return Played(outcome, self.note, code, foreign, last_words(place))

    def missing(self) -> list[Job]:
        """Whose results are taken away: not what will lie damaged."""
        hurt = self.hurt_files()
        return [job for job in self.spec.missing if not hurt & set(self.place.outputs_of(job))]

    def hurt_files(self) -> set[str]:
        if self.spec.fault not in DAMAGE:
            return set()
        return {str(path.relative_to(self.place.folder)) for path in faults.files_to_damage(self.spec, self.place)}

    # --- the command --------------------------------------------------------------------------------------------------

    def start(self, *, limit: int | None = None, other: bool = False) -> Started:
        """The command of the round, with its output in a file of its own."""
        spec, place = self.spec, self.place
        self.count += 1
        log = place / f".log.{self.count}"
        if spec.start == "step":
            return self.drill.warm.start(place, place.arguments(spec.job), log, limit)
        if spec.start == "torchrun":
            return start(place, torchrun(place, spec.number % 2), log, UDASEG_GPU_POOL="0,1")
        tools = {"snakemake": ["snakemake", "--cores", "2"], "dvc": ["dvc", "repro"]}
        tool = {"snakemake": "dvc", "dvc": "snakemake"}[spec.start] if other else spec.start
        return start(place, tools[tool], log)

    def seconds(self) -> float:
        """About how long the undisturbed command takes, or the job where that is waited for."""
        of = {job: faults.seconds_of(job, self.drill.reference) for job in self.spec.missing}
        if self.spec.start == "step" or self.spec.place in ("job", "loader worker"):
            return of[self.spec.job]
        if self.spec.start == "torchrun":
            return of[self.spec.job] + (1 if self.spec.place == "rank" else 8)
        each = {"snakemake": 1.5, "dvc": 5.0}[self.spec.start]  # start of Python and torch; of Snakemake for each stage
        return UNDISTURBED[self.spec.start] + sum(each + seconds for seconds in of.values())

    def hurt(self) -> Started:
        """Start the command and do to it what the round says.

        Raises:
            NotHit: it ended before.
        """
        spec, place = self.spec, self.place
        if spec.fault in DAMAGE:
            if spec.place in ("@state", "@states"):
                faults.begin_training(spec, place, self.drill.warm)
            self.note = "; ".join(
                f"{path.relative_to(place.folder)}: {faults.damage(path, spec)}"
                for path in faults.files_to_damage(spec, place)
            )
            return self.start()
        if spec.fault == FULL:
            free = int(spec.moment * faults.needed(spec, place, self.finished))
            if os.geteuid() != 0:
                return self.limited()
            self.folders.fill(spec.place, free)
            self.note = f"{free} bytes free"
            return self.start()
        if spec.fault == LIMIT:
            return self.limited()
        if spec.fault == READ_ONLY:
            folder = faults.folder_to_close(spec, place)
            how = self.folders.close(folder, int(spec.again))
            self.note = f"{folder.relative_to(place.folder)} ({how})"
            return self.start()
        command = self.start()
        if spec.fault == TWO:
            faults.sleep(spec.moment * min(self.seconds(), 8), command)
            second = self.start(other=spec.again and spec.start in ("snakemake", "dvc"))
            if second.wait() is None:
                raise Failed("hangs: the second command did not end in time")
            self.look_at(second)
            return command
        if not faults.strike(spec, place, command, self.seconds()):
            command.wait()
            raise NotHit
        return command

    def limited(self) -> Started:
        sizes = [(self.finished / name).stat().st_size for name in self.place.written_by_hand(self.spec.job)]
        limit = max(16384, int(self.spec.moment * max(sizes)))
        self.note = f"files up to {limit} bytes"
        return self.start(limit=limit)

    # --- what follows -------------------------------------------------------------------------------------------------

    def look_at(self, command: Started) -> None:
        """No output holds a traceback; those of Snakemake or DVC alone are counted, not ours to mend."""
        text = command.text
        self.texts.append(text)
        if (found := judge.traceback_in(text)) and (self.spec.start in ("step", "torchrun") or judge.is_ours(text)):
            raise Failed(found)

    def repeat(self, code: int | None) -> str:
        """Follow what was printed and run the command again until it ends well; how that was reached."""
        spec, place = self.spec, self.place
        wait = not spec.again or (spec.fault, spec.place) == ("SIGKILL", "job")
        if wait and (still := place.wait_for_silence(60)):
            raise Failed(f"a process outlives its command by a minute: {still[0].cmdline()}")
        followed: list[str] = []
        if code and spec.fault in DAMAGE:
            self.follow(self.texts[-1], followed)
        for _ in range(MOST_ADVICE):
            command = self.start()
            code = command.wait()
            if code is None:
                raise Failed("hangs: the repeated command did not end in time")
            self.look_at(command)
            if code == 0:
                break
            if code < 0 and spec.fault not in (TWO,):
                raise Failed(f"the repeated command died of signal {-code}")
            self.follow(self.texts[-1], followed)
        else:
            raise Failed(f"advice without an end: {followed}")
        advised = [action for action in followed if action not in ("snakemake --unlock", "wait")]
        if advised:
            self.note += f" [{'; '.join(advised)}]"
            return "mended by printed advice"
        return "ok after --unlock" if "snakemake --unlock" in followed else "ok"

    def follow(self, text: str, followed: list[str]) -> None:
        """Do what an output says, to the letter.

        Raises:
            Failed: it says nothing that can be done, or what was done already.
        """
        action, do = advice(text, self)
        if action in followed and action != "wait":
            raise Failed(f"the advice does not help: {action}; {last_line(text)}")
        followed.append(action)
        do()

    def run_advised(self, words: str) -> None:
        """Run a command that was printed."""
        log = self.place / f".log.advised.{len(list(self.place.folder.glob('.log.advised.*')))}"
        parts = words.split()
        if parts[0] == "udaseg" and self.spec.start in ("step", "torchrun"):
            command = self.drill.warm.start(self.place, parts[1:], log)
        else:
            parts = [sys.executable, "-m", *parts] if parts[0] == "udaseg" else parts
            parts += ["--cores", "2"] if parts[0] == "snakemake" and "--cores" not in words else []
            command = start(self.place, parts, log)
        code = command.wait()
        self.look_at(command)
        if code != 0:
            raise Failed(f"advised, but ends with {code}: {words}: {last_line(command.text)}")

    def check(self) -> None:
        """Compare with the undisturbed run.

        Raises:
            Failed: something differs or is left.
        """
        spec, place = self.spec, self.place
        if left := judge.left_behind(place):
            raise Failed("left behind: " + "; ".join(left[:4]))
        expected = self.finished.content()
        names = set(expected)
        if spec.start in ("step", "torchrun"):
            made = [job for job in spec.missing]
            names -= {n for job in made for n in place.outputs_of(job)} - {
                n for job in made for n in place.written_by_hand(job)
            }
        wrong = judge.differences(place, expected, names)
        hurt = self.hurt_files()
        unread = [line for line in wrong if any(line.startswith(f"{name} ") for name in hurt)]
        if wrong and wrong == unread and spec.job[0] != "prepare":
            self.note += " [not read, or without effect: results are right, the file is still damaged]"
            raise StillDamaged(self.note)
        if wrong:
            raise Failed(f"{len(wrong)} results are wrong: " + "; ".join(wrong[:6]))
        if spec.start in ("snakemake", "dvc"):
            self.check_ledgers()

    def check_ledgers(self) -> None:
        if self.spec.start == "snakemake":
            if planned := self.place.planned():
                raise Failed(f"Snakemake has work left: {planned}")
        elif "up to date" not in (text := self.place.dvc("repro", expect=None)):
            raise Failed(f"DVC has work left: {last_line(text)}")


def empty_cache(place: Place) -> None:
    """Leave DVC nothing to restore results from; what folders hold stays known, without which it runs all their stages."""
    shutil.rmtree(place / ".dvc/cache/runs", ignore_errors=True)
    for path in (place / ".dvc/cache/files").rglob("*"):
        if path.is_file() and path.suffix != ".dir":
            path.unlink()


class StillDamaged(Exception):
    """The results are right though a damaged file lies there still."""


# --- what is printed ----------------------------------------------------------------------------------------------------

OURS = re.compile(r"(?:^|: )udaseg [\w-]+: (.+)$", re.M)
COMMAND = re.compile(r"`((?:python -m )?(?:udaseg|snakemake|dvc) [^`]+)`")
DELETE = re.compile(r"(?:delete|remove) (it|that|them|the file|[\w./-]+/[\w./-]+)")


def advice(text: str, playing: Playing) -> tuple[str, Callable[[], None]]:
    """What an output tells the user to do: in words, and the doing of it."""
    place = playing.place
    if "--unlock" in text or "in use by" in text or "Unable to acquire lock" in text or "is busy" in text:
        if place.processes():
            return "wait", lambda: wait(place)
        if "--unlock" in text:
            return "snakemake --unlock", lambda: unlock(playing)
        return "wait", lambda: wait(place)
    lines = [found for found in OURS.findall(text)]
    if not lines and (found := re.findall(r"^(?:WorkflowError:\n)?(.*(?:`udaseg \w+`).*)$", text, re.M)):
        lines = found
    for line in reversed(lines):
        commands = COMMAND.findall(line)
        if match := DELETE.search(line):
            target = match[1] if "/" in match[1] else line.partition(": ")[0]
            return ", ".join([f"delete {target}", *commands]), partial(delete, playing, target, commands)
        if commands:
            return ", ".join(commands), partial(run_all, playing, commands)
        if re.search(r"same command|run again|again\b|goes on", line):
            return f"again: {line[:60]}", lambda: None
    raise Failed(f"ends without a word of what to do: {last_line(text)}")


def wait(place: Place) -> None:
    if still := place.wait_for_silence(90):
        raise Failed(f"a process does not end: {still[0].cmdline()}")


def unlock(playing: Playing) -> None:
    done = playing.place.run("snakemake", "--cores", "1", "--unlock", expect=None)
    if judge.traceback_in(done) and judge.is_ours(done):
        raise Failed(f"--unlock: {judge.traceback_in(done)}")


def delete(playing: Playing, target: str, commands: Sequence[str]) -> None:
    path = playing.place / target
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    run_all(playing, commands)


def run_all(playing: Playing, commands: Sequence[str]) -> None:
    for words in commands:
        playing.run_advised(words)


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    ours = [line for line in lines if "udaseg " in line and ": " in line]
    return (ours or lines or [""])[-1][:300]


def last_words(place: Place) -> str:
    """What the hurt command said last."""
    log = place / ".log.1"
    return last_line(log.read_text(errors="replace")) if log.exists() else ""


def clear(place: Place) -> None:
    """Remove the folder of a round, whatever an earlier drill that was killed has left of it."""
    if not place.folder.exists():
        return
    if os.geteuid() == 0:
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for mount in sorted(mounts, reverse=True):
            if Path(mount).is_relative_to(place.folder):
                subprocess.run(["umount", "--lazy", mount], check=False)
        subprocess.run(["chattr", "-R", "-f", "-i", str(place.folder)], check=False, capture_output=True)
    shutil.rmtree(place.folder)


# --- the list of rounds ------------------------------------------------------------------------------------------------


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def add(path: Path, row: dict[str, Any]) -> None:
    """A round in its place in the list, which the last playing of it keeps."""
    with alone_with(HOME / "lock"):
        rows = {(each["seed"], each["round"]): each for each in read(path)} | {(row["seed"], row["round"]): row}
        path.write_text("".join(json.dumps(rows[key]) + "\n" for key in sorted(rows)))


def as_row(spec: Round, played: Played) -> dict[str, Any]:
    about = spec.as_json()
    return {"seed": about.pop("seed"), "round": about.pop("number"), **about} | dataclasses.asdict(played)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: how often each fault came to each outcome, then the same by what was started."""
    seen = [
        outcome for outcome in OUTCOMES if any(row["outcome"] == outcome for row in rows) or outcome in ("ok", "FAILED")
    ]

    def part(title: str, key: Callable[[dict[str, Any]], str]) -> list[str]:
        lines = [f"| {title} | rounds | {' | '.join(seen)} |", "|---" * (len(seen) + 2) + "|"]
        for name in sorted({key(row) for row in rows}):
            mine = [row for row in rows if key(row) == name]
            counts = Counter(row["outcome"] for row in mine)
            lines.append(f"| {name} | {len(mine)} | {' | '.join(str(counts[each]) for each in seen)} |")
        counts = Counter(row["outcome"] for row in rows)
        return [*lines, f"| all | {len(rows)} | {' | '.join(str(counts[each]) for each in seen)} |"]

    return "\n".join([*part("fault", of_fault), "", *part("start", lambda row: str(row["start"]))])


def of_fault(row: dict[str, Any]) -> str:
    if row["fault"] in DAMAGE:
        names = {
            "@states": "restart states",
            "@state": "restart state",
            "@images": "images.zip",
            "@labels": "labels.zip",
        }
        names |= {"@manifest": "manifest.json", "@data": "data.json", "@pretrained": "model", "@model": "model"}
        names |= {"@history": "history.csv", "@record": "run.json", "@summary": "summary.json"}
        return f"damaged {names.get(row['place'], row['place'])}"
    return f"{row['fault']} of {row['place']}" if row["fault"].startswith("SIG") else str(row["fault"])


def write_page(rows: Sequence[dict[str, Any]]) -> None:
    """Bring the table of the page up to date."""
    text = PAGE.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    assert rest, f"{PAGE}: found no {BEGIN}"
    PAGE.write_text(f"{head}{BEGIN}\n\n{table(rows)}\n\n{END}{tail}", encoding="utf-8")


def alone(argv: Sequence[str]) -> None:
    """Go on in a mount namespace of our own where root may have one: what is mounted ends with this process."""
    if os.geteuid() or ALONE in os.environ or subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        return
    os.environ[ALONE] = "1"
    os.execvp("unshare", ["unshare", "--mount", sys.executable, __file__, *argv])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--rounds", type=int, default=20, metavar="N", help="play the next N rounds that are not in the list"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--round", type=int, action="append", help="play this one again, alone")
    parser.add_argument("--start", choices=("snakemake", "dvc", "torchrun", "step"), help="only rounds of this start")
    parser.add_argument("--list", type=Path, default=ROUNDS, help="where rounds are written")
    parser.add_argument("--home", type=Path, default=HOME, help="where they are played")
    args = parser.parse_args(argv)
    alone(sys.argv[1:] if argv is None else argv)
    known = {row["round"] for row in read(args.list) if row["seed"] == args.seed}
    numbers = args.round or []
    number = 0
    while not args.round and len(numbers) < args.rounds:
        if number not in known and args.start in (None, draw(args.seed, number).start):
            numbers.append(number)
        number += 1
    drill = Drill(args.home.resolve(), args.seed)
    rows = []
    try:
        for number in numbers:
            spec = draw(args.seed, number)
            row = as_row(spec, drill.play(spec))
            rows.append(row)
            add(args.list, row)
            jobs = " ".join(spec.job) if spec.start == "step" else f"{len(spec.missing)} jobs"
            print(
                f"{number:4} {row['seconds']:6.1f} s  {spec.start} ({jobs}): {of_fault(row)}: {row['outcome']}  {row['note']}",
                flush=True,
            )
    except KeyboardInterrupt:
        print("stopped; `make drill` goes on with the rounds that are missing", file=sys.stderr)
    finally:
        drill.close()
    if rows:
        print("\n" + table(rows))
    if rows and args.list == ROUNDS:
        write_page(read(ROUNDS))
    return int(any(row["outcome"] == "FAILED" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
