"""`scripts/bench soak`: faults in a row, each proved to have fired, and what was there after them.

    kill       SIGKILL at every operation on the disk of one install
    cut        the power cut at every operation on the disk of one install, on a small ext4 disk (root; else left out)
    damage     bytes changed anywhere in the agent's database, `--rounds` times
    telemetry  `--days` without the fleet with `--cuts` power cuts (SIGKILL where no disk can be made), 16 MB of queue

After every fault of an install: offline a sound model answers, `previous` is intact, and the update comes to its end by
itself. After every damage: nothing that protects against a rollback has fallen, and the next start is numbered higher.
Telemetry ends at a fleet that checks the ledger: produced = delivered + merged + dropped by rule, no alarm dropped.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import power_cut
from telemetry_soak import MIB, soak

from agent.identity.identity import FOLDER
from agent.store.state import StateFile

PROGRAM = Path(__file__).with_name("killed_install.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", type=int, default=1, help="every how many operations (default: 1, all of them)")
    parser.add_argument("--rounds", type=int, default=500, help="damaged databases (default 500)")
    parser.add_argument("--days", type=float, default=10, help="simulated days offline (default 10)")
    parser.add_argument("--cuts", type=int, default=50, help="power cuts in these days (default 50)")
    options = parser.parse_args()
    logging.disable(logging.ERROR)  # that a database was damaged is said 500 times
    with tempfile.TemporaryDirectory(prefix="shoal-soak-") as folder:
        figures = {"kill_faults": ended(Path(folder) / "kill", "kill", options.step)}
        why_not = power_cut.why_not()
        if why_not is None:
            figures["cut_faults"] = ended(Path(folder) / "cut", "cut", options.step)
        else:
            print(f"no power to cut: {why_not}")
        figures |= damaged(Path(folder) / "damage", options.rounds)
        figures |= away(Path(folder) / "telemetry", options.days, options.cuts, real=why_not is None)
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, measured")
    print(json.dumps({"bench": "soak", "figures": figures}))


def ended(folder: Path, how: str, step: int) -> int:
    """How many faults of an install fired and were survived; ends this program at the first that was not."""
    folder.mkdir()
    began, count = time.monotonic(), 0
    command = [sys.executable, "-P", str(PROGRAM), str(folder), how, "1", str(step)]
    environment = {**os.environ, "PYTHONPATH": str(PROGRAM.parent)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            fault = json.loads(line)
            count += fault["fired"]
            where = f"at {fault['at']:4} {fault['operation']:14}" if fault["fired"] else "came through      "
            print(f"{how:8}{where} answered by {fault['found']}", flush=True)
    if child.returncode != 0:
        sys.exit(f"{how}: not survived: see above")
    print(f"{how}: {count} faults survived in {time.monotonic() - began:.0f} s")
    return count


def damaged(folder: Path, rounds: int) -> dict[str, int]:
    """How often the database was damaged, and how often it was made again: elsewhere it did not matter."""
    folder.mkdir()
    (folder / FOLDER).mkdir()
    made_again = 0
    path, chance = folder / "agent.db", random.Random(1)
    state = StateFile.open(path)
    state.save_trust({"root": b"1" * 4000}, {"intents/kitchen": 7})
    state.accept_desired((3, 41), {}, "sealed")
    for _ in range(rounds):
        before = state.begin_start()
        state.close()
        data = bytearray(path.read_bytes())
        at = chance.randrange(len(data))
        for i in range(at, min(at + chance.choice((1, 16, 4096)), len(data))):
            data[i] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        state = StateFile.open(path)
        made_again += bool(state.take_rebuilt())
        held = state.last_desired(), state.floor("intents/kitchen"), state.trust_documents(), state.fault
        if held != ((3, 41), 7, {"root": b"1" * 4000}, "") or state.begin_start() <= before:
            sys.exit(f"damage at {at}: not survived: {held[0]}, floor {held[1]}, {held[3]}")
    state.close()
    print(f"damage: {rounds} damaged databases, {made_again} made again")
    return {"damages": rounds, "made_again": made_again}


def away(folder: Path, days: float, cuts: int, *, real: bool) -> dict[str, int]:
    """What became of the records of some days; the soak itself raises for what does not add up."""
    folder.mkdir()
    began, home = time.monotonic(), folder / "home"
    with ExitStack() as stack:
        disk = stack.enter_context(power_cut.Disk(folder)) if real else None
        place = disk.folder if disk is not None else folder / "away"
        place.mkdir(exist_ok=True)
        found = soak(place, home, days=days, cuts=cuts, queue=16 * MIB, disk=disk)
    print(
        f"telemetry: {days:g} days, {found.cuts} {'power cuts' if real else 'kills'}: {found.produced} records = "
        f"{found.delivered} delivered + {found.merged} merged + {found.dropped} dropped, {found.events} alarms, "
        f"in {time.monotonic() - began:.0f} s"
    )
    counted = {name: getattr(found, name) for name in ("produced", "delivered", "merged", "dropped", "events")}
    return {"telemetry_cuts": found.cuts, **{f"telemetry_{name}": count for name, count in counted.items()}}


if __name__ == "__main__":
    main()
