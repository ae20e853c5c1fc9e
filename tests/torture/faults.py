"""What can go wrong on a machine: each fault is done to a run, then the run is done again.

A fault says what it did and what it found wrong, in `Trial`. It never looks away: every command
has to end well or with one line, and what was finished before has to be there afterwards.
"""

import contextlib
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.torture import commands
from tests.torture.ground import Ground, contents, differences
from tests.toy import draw_object

RUN_SECONDS = 4.0  # within which a fault strikes; a run takes about as long


@dataclass
class Trial:
    """One folder with data and store, and what happened to it.

    Attributes:
        num_faults: injected so far.
        wrong: results that differ although the command said nothing, crashes, hangs.
        lost: finished artifacts that were there before a fault elsewhere, and are not any more.
    """

    ground: Ground
    folder: Path
    stream: random.Random
    user: int | None = None
    num_faults: int = 0
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    @property
    def store(self) -> Path:
        """Where the artifacts lie."""
        return self.folder / "store"

    def start(self, **limits: Any) -> commands.Child:
        """Start the sequence."""
        log = self.folder / f"log-{self.stream.random()}"
        return commands.start(self.ground.command(self.folder), log, user=self.user, **limits)

    def end(self, child: commands.Child) -> bool:
        """Wait for a command to end; whether it did all its work."""
        if not child.wait():
            child.kill()
        complaint = child.complaint()
        if complaint:
            self.wrong.append(complaint)
        return child.status == 0

    def settle(self) -> None:
        """Run without a fault: now everything has to be as if there had been none."""
        if self.end(self.start()):
            found = differences(contents(self.store), self.ground.expected)
            self.wrong += [f"differs after all: {name}" for name in found]
        elif not self.wrong:
            self.wrong.append(f"does not recover: {self.last_words()}")

    def last_words(self) -> str:
        """What the command said that was last started."""
        logs = sorted(self.folder.glob("log-*"), key=lambda path: path.stat().st_mtime_ns)
        return logs[-1].read_text(errors="replace")[-500:]

    @contextlib.contextmanager
    def nothing_lost(self, spared: set[str] | None = None) -> Iterator[None]:
        """Every finished artifact outlasts the block, save those that are the fault's target."""
        expected = self.ground.expected
        before = contents(self.store) if self.store.exists() else {}
        sound = {name for name, value in before.items() if value == expected.get(name)}
        yield
        after = contents(self.store) if self.store.exists() else {}
        for name in sorted(sound - (spared or set())):
            if name.endswith(".safetensors") and after.get(name) != expected[name]:
                self.lost.append(name)


def kill(trial: Trial) -> None:
    """SIGKILL at any moment, up to three times over."""
    for _ in range(trial.stream.randint(1, 3)):
        with trial.nothing_lost():
            child = trial.start()
            time.sleep(trial.stream.uniform(0, RUN_SECONDS))
            child.kill()
            child.wait()
            trial.num_faults += 1
    trial.settle()


def fill_disk(trial: Trial) -> None:
    """A file system of a size that ends somewhere within the run."""
    with _small_disk(trial) as limits, trial.nothing_lost():
        trial.end(trial.start(**limits))
        trial.num_faults += 1
    trial.settle()


@contextlib.contextmanager
def _small_disk(trial: Trial) -> Iterator[dict[str, int]]:
    """The store on a small tmpfs, or where that may not be mounted, a limit on file lengths."""
    sizes = [len(one) for one in trial.ground.expected.values() if isinstance(one, bytes)]
    store = trial.store
    there = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    store.mkdir(exist_ok=True)
    room = there * 5 // 4 + trial.stream.randrange(64_000, 2 * sum(sizes))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(store)]
    if os.getuid() or trial.stream.random() < 0.3:
        yield {"file_bytes": trial.stream.randrange(1, max(sizes))}
        return
    kept = trial.folder / "kept"
    store.rename(kept)
    store.mkdir()
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        store.rmdir()
        kept.rename(store)
        yield {"file_bytes": trial.stream.randrange(1, max(sizes))}
        return
    try:
        shutil.copytree(kept, store, dirs_exist_ok=True)
        shutil.rmtree(kept)
        yield {}
        shutil.copytree(store, kept)
    finally:
        subprocess.run(["umount", str(store)], check=True)
    store.rmdir()
    kept.rename(store)


def damage(trial: Trial) -> None:
    """Flipped bits and cut ends, in whatever lies in the store: also what a killed run left."""
    if trial.stream.random() < 0.5:
        child = trial.start()
        time.sleep(trial.stream.uniform(0.5, RUN_SECONDS))
        child.kill()
        child.wait()
        trial.num_faults += 1
    files = [path for path in sorted(trial.store.rglob("*")) if path.is_file()]
    files = [path for path in files if ".locks" not in path.parts and path.stat().st_size]
    targets = trial.stream.sample(files, min(len(files), trial.stream.randint(1, 3)))
    for path in targets:
        _spoil(path, trial.stream)
        trial.num_faults += 1
    names = {str(path.relative_to(trial.store)) for path in targets}
    with trial.nothing_lost(names):
        finished = trial.end(trial.start())
    if finished:
        # What nobody had to read may still be damaged; nothing else may differ.
        found = set(differences(contents(trial.store), trial.ground.expected)) - names - {"rest"}
        trial.wrong += [f"made from damage in {sorted(names)}: {name}" for name in sorted(found)]
    for path in targets:  # as the one line advises
        path.unlink(missing_ok=True)
    trial.settle()


def _spoil(path: Path, stream: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if stream.random() < 0.3:
        content = content[: stream.randrange(len(content))]
    for _ in range(stream.randint(1, 4) if content else 0):
        content[stream.randrange(len(content))] ^= 1 << stream.randrange(8)
    path.write_bytes(content)


def change_data(trial: Trial) -> None:
    """An image is replaced, removed or added while the run reads."""
    images = sorted((trial.folder / "data").rglob("*.png"))
    target, kept = trial.stream.choice(images), trial.folder / "kept.png"
    shutil.copy2(target, kept)
    child = trial.start()
    time.sleep(trial.stream.uniform(0, RUN_SECONDS))
    change = trial.stream.choice(("replace", "remove", "add"))
    added = target.with_name("999.png")
    if change == "add":
        draw_object("plate", 5).save(added)
    elif change == "remove":
        target.unlink()
    else:
        draw_object("plate", 7, defective=True).save(target)
    trial.num_faults += 1
    trial.end(child)
    added.unlink(missing_ok=True)
    shutil.copy2(kept, target)
    trial.settle()


def deny(trial: Trial) -> None:
    """A folder or a file may not be read, or not be written."""
    if not os.getuid():
        trial.user = commands.NOBODY
        for path in (trial.folder, *trial.folder.rglob("*")):
            os.chown(path, trial.user, trial.user)
    places = [trial.folder / "data", trial.store, trial.folder]
    places += [path for place in places[:2] if place.exists() for path in place.rglob("*")]
    target = trial.stream.choice([path for path in places if path.exists()])
    mode = target.stat().st_mode & 0o777
    name = str(target.relative_to(trial.store)) if target.is_relative_to(trial.store) else ""
    below = {str(p.relative_to(trial.store)) for p in target.rglob("*")} if name else set()
    with trial.nothing_lost({name} | below):
        target.chmod(trial.stream.choice((0o000, 0o500, 0o300)) & mode)
        trial.num_faults += 1
        child = trial.start()
        trial.end(child)
        target.chmod(mode)
    trial.settle()


def meet(trial: Trial) -> None:
    """Two runs at one store; one of them may be killed."""
    with trial.nothing_lost():
        first = trial.start()
        time.sleep(trial.stream.uniform(0, RUN_SECONDS / 2))
        second = trial.start()
        trial.num_faults += 1
        if trial.stream.random() < 0.5:
            time.sleep(trial.stream.uniform(0, RUN_SECONDS))
            victim = trial.stream.choice((first, second))
            victim.kill()
            victim.wait()
            trial.num_faults += 1
            trial.end(second if victim is first else first)
        else:
            trial.end(first)
            trial.end(second)
    trial.settle()


def rival(trial: Trial) -> None:
    """Another run at the same store wants the same names with other settings."""
    first = trial.start()
    time.sleep(trial.stream.uniform(0, RUN_SECONDS / 2))
    log = trial.folder / "log-rival"
    settings = ("--set", "compress.num_steps=2", "--set", "train.num_steps=2")
    other = commands.start([*trial.ground.command(trial.folder), *settings], log)
    trial.num_faults += 1
    trial.end(first)
    trial.end(other)
    trial.settle()


FAULTS: dict[str, Callable[[Trial], None]] = {
    "kill": kill,
    "disk": fill_disk,
    "damage": damage,
    "data": change_data,
    "deny": deny,
    "meet": meet,
    "rival": rival,
}
