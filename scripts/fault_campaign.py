"""Bad days, one after the other: kills, signals, outages, full disks. One command, one table; status 1 if a run was lost.

    python scripts/fault_campaign.py [--seed N] [--kills N] [--only WORD] > table.md

Every case ends with the run finished (resumed where that took it) and is compared with a run that nobody disturbed: all
histories, tables, traces and the memory, bit for bit. Runs are real ones on the embedded model, children of this process,
which has imported everything already.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}

import torch
from fault_children import (
    Child,
    Sabotage,
    Server,
    asked,
    at_step,
    by_the_clock,
    kill_at,
    nothing,
    runs_in,
    snapshot,
)

from cedkv.tracking.spool import spool_of
from cedkv.tracking.store import prepare_store
from cedkv.train.resume import checkpoints_of

ROOT = Path(__file__).parents[1]
STEPS, EVERY = 60, 5
SIZES = (
    "phase3.memory.slots=3",
    "phase3.candidate.pool_size=12",
    f"phase3.train={{steps: {STEPS}, on_batch: 4, off_batch: 4, topk_schedule: [12, 6, 4, 2]}}",
    "phase3.loss.off.hard_pool_size=6",
    "phase3.eval={on_samples: 3, off_samples: 12, off_fixed_stress: {size: 24}, off_sealed: {size: 16}}",
    "data={facts_per_document: 3, free_sentences: 2}",
    f"checkpoint.every={EVERY}",
    "tracking.system_metrics=false",
)


@dataclass
class Row:
    """A line of the table."""

    case: str
    ended: str = ""
    said: str = ""
    went_on: str = ""
    equal: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether the run was neither lost nor changed, and never claimed to be finished when it was not."""
        return self.equal and not any(note.startswith("!") for note in self.notes)


# ---------------------------------------------------------------------------------------------------------------- cases
class Campaign:
    """Its folder, and what an undisturbed run looks like."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        self.template = folder / "template" / "mlflow.db"
        self.template.parent.mkdir()
        uri = f"sqlite:///{self.template}"
        asked(lambda: prepare_store(uri))
        reference = self.store()
        begun = time.monotonic()
        child = self.start(reference)
        if child.wait():
            raise SystemExit(f"the undisturbed run failed:\n{child.text}")
        self.seconds = time.monotonic() - begun
        ((run_id, _),) = runs_in(reference)
        self.wanted = snapshot(run_id, reference)

    def store(self, below: Path | None = None) -> str:
        """A new local store."""
        self.count += 1
        place = (below or self.folder) / f"{self.count:03}" / "mlflow.db"
        place.parent.mkdir()
        shutil.copyfile(self.template, place)
        return f"sqlite:///{place}"

    def start(self, uri: str, sabotage: Sabotage = nothing) -> Child:
        """A new run."""
        settings = [f"--set={setting}" for setting in (*SIZES, f"tracking.uri={uri}")]
        return Child(self.folder, ["--config", str(ROOT / "configs" / "smoke.yaml"), *settings], sabotage)

    def resume(self, uri: str, run_id: str) -> Child:
        """An interrupted one."""
        os.environ["MLFLOW_TRACKING_URI"] = uri
        return Child(self.folder, ["--resume", run_id])

    def sync(self, uri: str) -> str:
        """What `cedkv sync` prints."""
        child = Child(self.folder, ["sync", "--tracking-uri", uri])
        child.wait()
        return child.text

    def finished(self, row: Row, uri: str, child: Child) -> Row:
        """Wait for the disturbed run, go on with it, and compare."""
        code = child.wait()
        row.ended = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit {code}"
        if "Traceback" in child.text:
            row.notes.append(f"! traceback: {child.text.strip().splitlines()[-1][:200]}")
        found = runs_in(uri)
        if not found:
            return self.again(row, uri, "before its run began")
        run_id, status = found[-1]
        row.said = status
        if code and status == "FINISHED":
            row.notes.append("! it says FINISHED")
        if code:
            if status == "RUNNING":
                self.sync(uri)
                row.said = f"RUNNING, after sync {runs_in(uri)[-1][1]}"
            saved = sorted(checkpoints_of(run_id, uri).folder.glob("step-*"))
            if not saved:
                return self.again(row, uri, "before the first checkpoint")
            going_on = self.resume(uri, run_id)
            if going_on.wait():
                row.notes.append(f"! resuming: {going_on.text.strip().splitlines()[-1][:300]}")
            row.went_on = f"from step {int(saved[-1].name[5:])}"
        return self.compared(row, uri, run_id)

    def again(self, row: Row, uri: str, why: str) -> Row:
        """A new run: there was nothing to go on with."""
        row.went_on = f"new run ({why})"
        child = self.start(uri)
        if child.wait():
            row.notes.append("! the new run failed")
        return self.compared(row, uri, runs_in(uri)[-1][0])

    def compared(self, row: Row, uri: str, run_id: str) -> Row:
        """Whether it is the undisturbed run."""
        found = snapshot(run_id, uri)
        row.equal = found == self.wanted
        if not row.equal:
            row.notes.append(f"differs in {[n for n in self.wanted if found.get(n) != self.wanted[n]]}")
        if spool_of(run_id, uri).exists():
            row.notes.append("! something waits in the spool")
        return row


POINTS = {
    "a step": ("cedkv.train.loop:Trainer._step", (7, STEPS)),
    "an eval tick": ("cedkv.train.loop:Trainer._tick", (3, 12)),
    "a checkpoint write": ("cedkv.train.checkpoint:_write", (4, 36)),
    "an artifact upload": ("cedkv.tracking.delivery:Delivery._upload", (1, 14)),
    "a request to the store": ("cedkv.tracking.delivery:Delivery.__call__", (2, 12)),
    "a line of the journal": ("cedkv.tracking.journal:Journal._write", (10, 80)),
}


def kills(campaign: Campaign, rng: random.Random, count: int) -> Iterator[Callable[[], Row]]:
    """SIGKILL at random points."""
    for number in range(count):
        kind = [*POINTS, "the clock"][number % (len(POINTS) + 1)]
        if kind == "the clock":
            seconds = rng.uniform(0, 0.5 * campaign.seconds)
            case, sabotage = f"kill -9, {seconds:.2f} s after step 6 began", by_the_clock(seconds)
        else:
            target, (low, high) = POINTS[kind]
            call, behind = rng.randint(low, high), rng.random() < 0.5
            case = f"kill -9 {'behind' if behind else 'before'} call {call} of {kind}"
            sabotage = kill_at(target, call, behind)

        def run(case: str = case, sabotage: Sabotage = sabotage) -> Row:
            uri = campaign.store()
            return campaign.finished(Row(case), uri, campaign.start(uri, sabotage))

        yield run


def signals(campaign: Campaign, rng: random.Random) -> Iterator[Callable[[], Row]]:
    """SIGTERM and Ctrl-C in a step, and both at once, as a launcher and a terminal send them."""
    for name, sent in (
        ("SIGTERM", (signal.SIGTERM,)),
        ("Ctrl-C", (signal.SIGINT,)),
        ("Ctrl-C and SIGTERM", (signal.SIGINT, signal.SIGTERM)),
    ):
        step = rng.randint(7, STEPS - 2)

        def run(name: str = name, sent: tuple[signal.Signals, ...] = sent, step: int = step) -> Row:
            uri = campaign.store()
            action = lambda: [os.kill(os.getpid(), s) for s in sent]  # noqa: E731
            return campaign.finished(
                Row(f"{name} in step {step}"), uri, campaign.start(uri, at_step(step, action))
            )

        yield run


def outages(campaign: Campaign) -> Iterator[Callable[[], Row]]:
    """The server is killed while a run trains; it is back in the middle, or only after the run was ended."""

    def served(name: str) -> Server:
        folder = campaign.folder / name
        folder.mkdir()
        shutil.copyfile(campaign.template, folder / "mlflow.db")
        os.chdir(folder)  # journals and checkpoints of runs on a server lie below it
        return Server(folder)

    def comes_back() -> Row:
        server = served("comes-back")
        child = campaign.start(server.uri, at_step(45, lambda: time.sleep(3)))
        child.wait_for("step 20/")
        server.kill()
        child.wait_for("step 40/")
        server.start()
        try:
            return campaign.finished(Row("server killed at step 20, back at step 40"), server.uri, child)
        finally:
            server.kill()

    def stays_away() -> Row:
        server = served("stays-away")
        child = campaign.start(server.uri)
        child.wait_for("step 20/")
        server.kill()
        child.wait_for("waiting up to")
        os.kill(child.pid, signal.SIGTERM)
        row = Row("server killed at step 20, SIGTERM while the end waits for it, sync when it is back")
        code = child.wait()
        server.start()
        try:
            row.ended, row.went_on = f"exit {code}", "cedkv sync"
            told = campaign.sync(server.uri)
            run_id, row.said = runs_in(server.uri)[-1]
            if "records sent" not in told:
                row.notes.append(f"! sync: {told}")
            return campaign.compared(row, server.uri, run_id)
        finally:
            server.kill()

    yield from (comes_back, stays_away)


def full_disk(campaign: Campaign) -> Row:
    """Store, journal and checkpoints on one small disk that is full from step 10 to step 40."""
    row = Row("the disk is full from step 10 to step 40")
    disk = campaign.folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        [shutil.which("mount") or "mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(disk)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        row.equal, row.ended = True, "skipped: only root may mount a small disk"
        return row
    filler = disk / "filler"

    def fill() -> None:
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)

    def both() -> None:
        at_step(10, fill)()
        at_step(40, filler.unlink)()

    try:
        uri = campaign.store(disk)
        child = campaign.start(uri, both)
        campaign.finished(row, uri, child)
        if "no checkpoint could be written" in child.text:
            row.notes.append("checkpoints were missed, and it said so")
        return row
    finally:
        subprocess.run([shutil.which("umount") or "umount", "-l", str(disk)], check=False)


def read_only(campaign: Campaign) -> Row:
    """A folder that this user may not write."""
    row = Row("a store in a folder that is read-only")
    if os.geteuid():
        row.equal, row.ended = True, "skipped: only root may become another user"
        return row
    uri = campaign.store()
    folder = Path(uri.removeprefix("sqlite:///")).parent
    folder.chmod(0o555)
    for parent in (campaign.folder, *campaign.folder.parents[:-1]):
        parent.chmod(parent.stat().st_mode | 0o055)
    campaign.folder.chmod(0o777)
    "".encode("utf-8-sig")  # that user may not read the interpreter's own files
    child = campaign.start(uri, lambda: os.setresuid(65534, 65534, 65534))
    code = child.wait()
    row.ended, row.said = f"exit {code}", "no run" if not runs_in(uri) else "a run"
    row.equal = code == 2 and row.said == "no run" and "Traceback" not in child.text
    row.notes.append(child.text.strip().splitlines()[-1][:160])
    return row


def clock_jumps(campaign: Campaign) -> Row:
    """The wall clock goes back an hour, then on by two days."""

    def jump(seconds: float) -> Callable[[], None]:
        def do() -> None:
            now, nanoseconds = time.time, time.time_ns
            time.time = lambda: now() + seconds
            time.time_ns = lambda: nanoseconds() + int(seconds * 1e9)

        return do

    def both() -> None:
        at_step(20, jump(-3600))()
        at_step(40, jump(2 * 86400))()

    uri = campaign.store()
    return campaign.finished(
        Row("the clock jumps back an hour, then two days ahead"), uri, campaign.start(uri, both)
    )


def two_at_once(campaign: Campaign) -> Row:
    """Two runs on one store."""
    uri = campaign.store()
    children = [campaign.start(uri) for _ in range(2)]
    row = Row("two runs on one store at once")
    codes = [child.wait() for child in children]
    row.ended = f"exit {codes}"
    for run_id, status in runs_in(uri):
        row.said += f"{status} "
        campaign.compared(row, uri, run_id)
        if not row.equal:
            break
    return row


def resumed_twice(campaign: Campaign) -> Row:
    """Two processes go on with one run at once."""
    uri = campaign.store()
    campaign.start(uri, kill_at("cedkv.train.loop:Trainer._step", 33, behind=False)).wait()
    run_id = runs_in(uri)[-1][0]
    children = [campaign.resume(uri, run_id) for _ in range(2)]
    codes = sorted(child.wait() for child in children)
    row = Row("one run resumed twice at once", ended=f"exit {codes}", went_on="one of them")
    if codes != [0, 2]:
        row.notes.append("! one of the two must be refused")
    refused = next((child.text for child in children if child.code == 2), "")
    row.notes.append(refused.strip().splitlines()[-1][:160] if refused else "")
    row.said = runs_in(uri)[-1][1]
    return campaign.compared(row, uri, run_id)


OUT_OF_MEMORY = """
import os, sys, torch
from cedkv.cli import main
from cedkv.train.loop import Trainer

step = Trainer._step

def starved(self, number):
    if os.environ["RANK"] == "1" and number == 21:
        torch.empty(1 << 50)
    return step(self, number)

if "--resume" not in sys.argv:
    Trainer._step = starved
sys.exit(main(sys.argv[1:]))
"""


def starved_process(campaign: Campaign) -> Row:
    """One of two processes of a launch gets no memory."""
    row = Row("one of two processes runs out of memory in step 21")
    uri = campaign.store()
    script = campaign.folder / "starved.py"
    script.write_text(OUT_OF_MEMORY)
    launch = [str(Path(sys.executable).with_name("accelerate")), "launch", "--main_process_port", "0"]
    launch += ["--config_file", str(ROOT / "configs" / "accelerate" / "cpu2.yaml"), str(script)]
    settings = [f"--set={setting}" for setting in (*SIZES, f"tracking.uri={uri}")]
    first = subprocess.run(
        [*launch, "--config", str(ROOT / "configs" / "smoke.yaml"), *settings],
        capture_output=True,
        check=False,
        timeout=240,
    )
    run_id, row.said = runs_in(uri)[-1]
    row.ended = f"exit {first.returncode}"
    saved = max(checkpoints_of(run_id, uri).folder.glob("step-*"))
    second = subprocess.run(
        [*launch, "--resume", run_id],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env=os.environ | {"MLFLOW_TRACKING_URI": uri},
    )
    row.went_on = f"from step {int(saved.name[5:])}, two processes"
    if second.returncode:
        row.notes.append(f"! resuming: {second.stderr[-300:]}")
    return campaign.compared(row, uri, run_id)


def shown(rows: list[Row]) -> str:
    """As a table in Markdown."""
    lines = ["| case | ended | the log said | went on | equal to the undisturbed run | |", "| --- " * 6 + "|"]
    for row in rows:
        cells = (
            row.case,
            row.ended,
            row.said,
            row.went_on,
            "yes" if row.equal else "NO",
            "; ".join(row.notes),
        )
        lines.append("| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |")
    good = sum(row.good for row in rows)
    return "\n".join([*lines, "", f"{good} of {len(rows)} as they should be"])


def campaign_of(arguments: argparse.Namespace, folder: Path) -> list[Row]:
    """Every case, one after the other."""
    campaign, rng = Campaign(folder), random.Random(arguments.seed)
    cases: list[Callable[[], Row]] = [*kills(campaign, rng, arguments.kills), *signals(campaign, rng)]
    cases += outages(campaign)
    for case in (full_disk, read_only, clock_jumps, two_at_once, resumed_twice, starved_process):
        cases.append(lambda case=case: case(campaign))
    rows = []
    for number, case in enumerate(cases, 1):
        name = getattr(case, "__name__", "")
        if arguments.only and arguments.only not in name and arguments.only not in repr(case.__defaults__):
            continue
        try:
            row = case()
        except Exception as error:  # noqa: BLE001 - a case that breaks is a line of the table, too
            row = Row(f"case {number} ({name})", notes=[f"! {type(error).__name__}: {error}"])
        rows.append(row)
        print(
            f"{number}/{len(cases)} {'ok ' if row.good else 'BAD'} {row.case}: {row.notes}", file=sys.stderr
        )
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=21, help="random points of SIGKILL")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="cedkv-faults-") as where:
        table = campaign_of(parser.parse_args(), Path(where))
    print(shown(table))
    sys.exit(not all(row.good for row in table))
