"""The parent's side of grading: worker processes that are killed at a wall-clock limit per answer.

A thread that calls `WorkerPool.judge` borrows idle workers, polls their pipes itself, and returns them. There
is no helper thread, event loop, or signal handler, so this works in notebooks, in threads, and with asyncio.
Workers are started by exec, not by fork: torch and its threads may be loaded, and `__main__` does not run
again. Each has its own process group, so that Ctrl-C reaches only the parent.
"""

import contextlib
import json
import math
import os
import queue
import select
import subprocess
import sys
import time
import weakref
from collections import deque
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

WORKER_FILE = Path(__file__).with_name("worker.py")
START_SECONDS = 120.0  # importing sympy takes 0.5 s, and much longer from a cold network disk
MAX_STARTS = 3  # failed starts in a row until an error is raised
# Of one request, which must fit into an empty pipe: 64 KiB at 12 bytes per character.
MAX_PAIRS, MAX_CHARS = 16, 3000


class Pair(NamedTuple):
    """A request to a worker; without an answer: does the gold parse? `whole`: the answer is a completion."""

    gold: str
    answer: str | None = None
    whole: bool = False


class Verdict(NamedTuple):
    """Status of a pair, the worker's time in seconds, and what math-verify extracted from a completion."""

    status: str
    seconds: float = 0.0
    extracted: str | None = None


class _Worker:
    """A process and the steps it has not replied to, in order; the first step, None, is to be ready."""

    def __init__(self, command: list[str]) -> None:
        self.steps: deque[Pair | None] = deque([None])
        self.since = time.monotonic()
        self.ended = False
        self._unread = b""
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            process_group=0,
            # sympy's verdicts, and whether it hangs, can depend on the order of sets, so fix it.
            env={**os.environ, "PYTHONHASHSEED": "0"},
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self._requests, self.replies = self.process.stdin, self.process.stdout

    def send(self, pairs: list[Pair]) -> None:
        """Request verdicts; pairs with the same gold are adjacent, and each gold is replied to first."""
        request = []
        if not self.steps:
            self.since = time.monotonic()
        for gold, group in groupby(pairs, key=lambda pair: pair.gold):
            answers = [pair for pair in group if pair.answer is not None]
            request.append((gold, [pair[1:] for pair in answers]))
            self.steps += [Pair(gold), *answers]
        with contextlib.suppress(BrokenPipeError):  # it died: `receive` detects this
            self._requests.write(json.dumps(request).encode() + b"\n")
            self._requests.flush()

    def receive(self) -> list[tuple[Pair | None, Verdict]]:
        """The replies that are complete. `ended` is then True if the process is dead."""
        received = os.read(self.replies.fileno(), 1 << 16)
        self.ended = not received
        *lines, self._unread = (self._unread + received).split(b"\n")
        self.since = time.monotonic()
        return [(self.steps.popleft(), Verdict(*json.loads(line))) for line in lines]

    def kill(self) -> None:
        """Kill the process, reap it, and close its pipes."""
        self.process.kill()
        self.process.wait()
        for pipe in (self._requests, self.replies):
            with contextlib.suppress(OSError):  # an unread request
                pipe.close()


def _readable(workers: list[_Worker], seconds: float) -> list[_Worker]:
    """The workers that have replied or died; waits for the first of them up to `seconds`."""
    poll = select.poll()
    by_pipe = {worker.replies.fileno(): worker for worker in workers}
    for pipe in by_pipe:
        poll.register(pipe, select.POLLIN)
    return [by_pipe[pipe] for pipe, _ in poll.poll(max(0, math.ceil(1000 * seconds)))]


def _kill_all(workers: set[_Worker]) -> None:
    for worker in list(workers):  # no effect in a fork of the parent, whose children they are not
        worker.kill()


class WorkerPool:
    """Up to `num_workers` processes of `memory_bytes` each, with `time_limit` seconds per gold or answer."""

    def __init__(self, num_workers: int, time_limit: float, memory_bytes: int) -> None:
        if os.name != "posix":
            raise RuntimeError("grading in worker processes needs a POSIX system: Linux, macOS or WSL")
        self.time_limit = time_limit
        self._command = [sys.executable, "-P", str(WORKER_FILE), str(memory_bytes), str(time_limit)]
        # Last in, first out: small batches reuse started workers. None is a worker not started yet.
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(num_workers):
            self._idle.put(None)
        self._alive: set[_Worker] = set()
        self._owner = os.getpid()
        self._closed = False
        weakref.finalize(self, _kill_all, self._alive)  # also at interpreter exit

    def judge(self, pairs: Iterable[Pair]) -> dict[Pair, Verdict]:
        """Verdicts on all pairs, and on the golds that were parsed for them.

        Raises:
            RuntimeError: the pool is closed or belongs to another process, or no worker can start.
        """
        if os.getpid() != self._owner:
            raise RuntimeError("a Grader does not survive a fork: make one in each process")
        self._check_open()
        batch = _Batch(self, pairs)
        if not batch.jobs:
            return {}
        batch.workers.append(self._idle.get())
        try:
            while len(batch.workers) < len(batch.jobs) and not self._idle.empty():
                with contextlib.suppress(queue.Empty):  # another thread took it
                    batch.workers.append(self._idle.get_nowait())
            return batch.run()
        finally:
            for worker in batch.workers:
                if worker is not None and (worker.steps or self._closed):
                    self.discard(worker)
                    worker = None
                self._idle.put(worker)

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the Grader is closed")

    def start(self) -> _Worker:
        """A new worker. Raises RuntimeError if the pool is closed."""
        self._check_open()
        worker = _Worker(self._command)
        self._alive.add(worker)
        return worker

    def discard(self, worker: _Worker) -> None:
        """Kill a worker, borrowed or idle."""
        worker.kill()
        self._alive.discard(worker)

    def start_failed(self, worker: _Worker) -> RuntimeError:
        """The error for a worker that does not start, with the command that shows why."""
        return RuntimeError(
            f"a grading worker could not start (exit status {worker.process.returncode}); to see why, run: "
            + " ".join(self._command)
        )

    def close(self) -> None:
        """Kill all workers. A call that is running in another thread raises RuntimeError there."""
        self._closed = True
        with contextlib.suppress(queue.Empty):
            while True:
                worker = self._idle.get_nowait()
                if worker is not None:
                    self.discard(worker)
        for worker in list(self._alive):  # borrowed by another thread, which reaps it
            worker.process.kill()
        self._idle.put(None)  # a thread that waits for a worker finds the pool closed


class _Batch:
    """The pairs of one call, and the workers borrowed for them."""

    def __init__(self, pool: WorkerPool, pairs: Iterable[Pair]) -> None:
        self._pool = pool
        by_gold: dict[str, dict[Pair, None]] = {}
        for pair in pairs:
            by_gold.setdefault(pair.gold, {})[pair] = None
        # Answers to the same gold are adjacent, so that it is parsed once for all of them.
        self.jobs = deque(pair for group in by_gold.values() for pair in group)
        self.workers: list[_Worker | None] = []
        self._wanted = set(self.jobs)
        self._verdicts: dict[Pair, Verdict] = {}
        self._suspects: set[Pair] = set()  # pairs during which a worker died once
        self._failed_starts = 0

    def run(self) -> dict[Pair, Verdict]:
        """Keep the workers busy until every pair has a verdict."""
        while True:
            self._feed()
            busy = [worker for worker in self.workers if worker is not None and worker.steps]
            if not busy:
                return self._verdicts
            seconds = min(map(self._deadline, busy)) - time.monotonic()
            readable = _readable(busy, seconds)
            now = time.monotonic()
            for worker in busy:
                if worker in readable:  # before the deadline: this thread may have been delayed
                    self._read(worker)
                elif now >= self._deadline(worker):
                    self._lose(worker, timed_out=True)

    def _deadline(self, worker: _Worker) -> float:
        return worker.since + (START_SECONDS if worker.steps[0] is None else self._pool.time_limit)

    def _feed(self) -> None:
        for i, worker in enumerate(self.workers):
            if self.jobs and (worker is None or not worker.steps):
                fed = self.workers[i] = worker or self._pool.start()
                fed.send(self._take())

    def _take(self) -> list[Pair]:
        """The next request. Requests get smaller as the jobs run out, so that all workers finish together."""
        size = max(1, min(MAX_PAIRS, len(self.jobs) // (4 * len(self.workers))))
        taken: list[Pair] = []
        chars = 0
        while self.jobs and len(taken) < size and chars < MAX_CHARS:
            taken.append(self.jobs.popleft())
            chars += len(taken[-1].gold) + len(taken[-1].answer or "")
        return taken

    def _read(self, worker: _Worker) -> None:
        for pair, verdict in worker.receive():
            if pair is None:
                self._failed_starts = 0
            else:
                self._verdicts[pair] = verdict
        if worker.ended:
            self._lose(worker, timed_out=False)

    def _lose(self, worker: _Worker, timed_out: bool) -> None:
        """Kill a late or dead worker, settle its step or retry it once, and put the rest back."""
        step, rest = worker.steps[0], [pair for pair in worker.steps if pair is not None]
        self._pool.discard(worker)
        self.workers[self.workers.index(worker)] = None
        seconds = time.monotonic() - worker.since
        if step is None:
            self._failed_starts += 1
            if self._failed_starts == MAX_STARTS:
                raise self._pool.start_failed(worker)
        elif not timed_out and step not in self._suspects:
            self._suspects.add(step)
        elif step.answer is None:  # the gold is the cause: this verdict is for all of its answers
            verdict = Verdict("unparsed_gold" if timed_out else "error", seconds)
            self._verdicts |= {pair: verdict for pair in (*rest, *self.jobs) if pair.gold == step.gold}
        else:
            self._verdicts[step] = Verdict("timeout" if timed_out else "error", seconds)
        left = [*rest, *self.jobs]
        self.jobs = deque(pair for pair in left if pair in self._wanted and pair not in self._verdicts)
