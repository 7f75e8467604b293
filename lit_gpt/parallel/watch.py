"""Sees to it that all processes of a run end when one of them does, with one line that says which and why.

What hosts tell each other fails at once when a process is killed; a GPU that waits for another one, or a machine that
is gone, says nothing. So each process counts in a store that all can read, and looks whether the others still do.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch.distributed as dist

from lit_gpt.lightning import Fabric
from lit_gpt.parallel.team import Team

_BEAT, _SILENCE = 1.0, 45.0
"""Seconds between two counts of a process, and without one after which it is taken to be gone."""
_JOIN = 5.0
"""Seconds that the end waits for the thread, which a store that is gone may hold up."""
_GOES_ON = "the newest whole checkpoint stays, and --resume true goes on from it"
_LOST = ("onnection closed", "onnection reset", "onnection refused", "roken pipe", "NCCL", "gloo", "Gloo", "store")
"""Words of errors of torch.distributed about a process that is gone."""
_n_runs = 0
"""Runs that this process has watched: each has keys of its own in the store."""


@contextmanager
def watched(fabric: Fabric, team: Team) -> Iterator[None]:
    """Ends this process, within a minute, when another one of the team ends before the block does.

    An error of the block is raised by the first process that has one; the others end without a word.
    """
    if team.is_alone:
        yield
        return
    watch = _Watch(team, getattr(fabric._strategy._launcher, "procs", None) or [])
    try:
        yield
        team.lead(None)  # a process that is done waits for the others: it would seem to be gone
    except BaseException as e:
        watch.failed(e)
        raise
    finally:
        watch.end()


@contextmanager
def together(fabric: Fabric) -> Iterator[Team]:
    """Yields the team of all processes of a script, which end together."""
    team = Team.of_world()
    with watched(fabric, team):
        yield team


def _end_observer() -> None:
    """Ends the thread by which Fabric kills all processes when one that it has started fails: it would say nothing."""
    for thread in threading.enumerate():
        if thread.name == "child-process-observer":
            setattr(thread, "_child_processes", [])  # noqa: B010 pyright knows no such name; it ends when there are none


class _Watch:
    """The thread that counts and looks.

    Args:
        children: processes that this one has started.
    """

    def __init__(self, team: Team, children: list) -> None:
        global _n_runs
        _n_runs += 1
        self.team, self.children, self.is_over = team, children, threading.Event()
        attempt = f"{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{_n_runs}"
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(
            address, port, is_master=False, timeout=timedelta(seconds=_SILENCE), wait_for_workers=False
        )
        self.store = dist.PrefixStore(f"lit_gpt/{attempt}", store)
        self.lock, self.ending = threading.Lock(), threading.Lock()
        self.beats = 0
        self.seen: dict[int, tuple[int, float]] = {}
        """Rank -> its last count, and when that was new."""
        self.beat()
        team.lead(None)
        if children:
            _end_observer()
        self.thread = threading.Thread(target=self.run, daemon=True, name="watch")
        self.thread.start()

    def end(self) -> None:
        """Ends the thread, for which it waits: if the interpreter ended while it asks the store, torch would abort."""
        self.is_over.set()
        if self.thread is not threading.current_thread():
            self.thread.join(_JOIN)

    def beat(self) -> None:
        """Counts."""
        self.beats += 1
        self.store.set(f"beat{self.team.rank}", str(self.beats))

    def run(self) -> None:
        """Counts and looks until the block is over."""
        while not self.is_over.is_set():
            try:
                with self.lock:
                    self.beat()
                    others = self.store.add("failed", 0)
                    lost = self.silent(range(1, self.team.size) if self.team.leads else (0,), _SILENCE)
            except Exception:
                others, lost = 0, [0]  # the store is with the leader, or with torchrun's on its machine
            if self.is_over.is_set():
                return
            if others:
                time.sleep(2.5 * _BEAT)  # who failed says so, before torchrun ends all as this process has ended
                os._exit(1)
            lost = self.ended_children() or lost
            if lost:
                self.say_lost(lost)
            self.is_over.wait(_BEAT)

    def silent(self, ranks: range | tuple[int, ...], seconds: float) -> list[int]:
        """Returns those of these processes that have not counted for so long."""
        now = time.monotonic()
        for rank in ranks:
            count = int(self.store.get(f"beat{rank}"))
            if self.seen.get(rank, (0, 0.0))[0] != count:
                self.seen[rank] = (count, now)
        return [rank for rank in ranks if now - self.seen[rank][1] > seconds]

    def ended_children(self) -> list[int]:
        """Returns the ranks of processes that this one has started and that were killed."""
        return [i for i, child in enumerate(self.children, start=1) if (child.poll() or 0) < 0]

    def how(self, rank: int) -> str:
        """Returns what ended a process, if this one knows it."""
        code = self.children[rank - 1].poll() if 0 < rank <= len(self.children) else None
        return f"was ended by {signal.Signals(-code).name}" if code and code < 0 else "has ended or does not answer"

    def say_lost(self, lost: list[int]) -> None:
        """Says which processes are gone, if it is for this one to say it, and ends."""
        self.ending.acquire()  # whichever thread comes second waits here for the end
        left = [rank for rank in range(self.team.size) if rank not in lost]
        if left and self.team.rank == left[0]:
            which = ", ".join(map(str, lost[:4])) + (" and others" if len(lost) > 4 else "")
            print(f"\nerror: rank {which} {self.how(lost[0])}; {_GOES_ON}", file=sys.stderr, flush=True)
        self.end_others()
        os._exit(1)

    def end_others(self) -> None:
        """Tells the other processes to end, and gives them the time to see it."""
        with suppress(Exception):
            self.store.add("failed", 1)
            time.sleep(2.5 * _BEAT)

    def failed(self, error: BaseException) -> None:
        """Has the others end; ends this process if another one has failed before, which then speaks for all."""
        if isinstance(error, RuntimeError) and any(word in str(error) for word in _LOST):
            self.find_lost()
        if not self.team.leads:
            time.sleep(0.5)  # where all have the same error, the leader says it
        self.is_over.set()
        try:
            with self.lock:
                first = self.store.add("failed", 1) == 1
        except Exception:
            first = self.team.rank == 1
        if not first:
            time.sleep(2.5 * _BEAT)
            os._exit(1)

    def find_lost(self) -> None:
        """Ends this process after an error of the network, and says which others do not count any more."""
        others = tuple(rank for rank in range(self.team.size) if rank != self.team.rank)
        for _ in range(6):
            time.sleep(_BEAT)
            try:
                with self.lock:
                    lost = self.silent(others, 2.5 * _BEAT)
                    if self.store.add("failed", 0):
                        os._exit(1)
            except Exception:
                lost = [0]
            if lost := self.ended_children() or lost:
                self.say_lost(lost)
