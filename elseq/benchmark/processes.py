"""Programs that measure, each in a process of its own, alone or in turns with others."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from elseq.benchmark.measure import MEBIBYTE, WAITING, Measurement, ran_out
from elseq.generation.cuda_graphs import free_memory_bytes

MARGIN = 2  # free memory over the largest need so far with which one more process is loaded


class Process(contextlib.AbstractContextManager):
    """A Python program that reads a request and writes its result. The end of the context kills it."""

    def __init__(self, program: Sequence[str], request: dict, folder: Path):
        """
        Args:
            program: arguments of Python.
            request: what the program is to measure.
            folder: for its files; it is made.
        """
        folder.mkdir(exist_ok=True)
        self.is_waiting = False
        self.needed_bytes = 0
        self._result, self._errors = folder / "result.json", folder / "errors.txt"
        self._result.unlink(missing_ok=True)
        path = folder / "request.json"
        path.write_text(json.dumps(request))
        package = str(Path(__file__).resolve().parents[2])
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(request["threads"]),
            "PYTHONPATH": os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH")))),
        }
        # -P keeps this folder's own file names from being imported as packages.
        command = [sys.executable, "-P", *program, str(path), str(self._result)]
        with self._errors.open("wb") as errors:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
            self._process = subprocess.Popen(command, env=environment, text=True, errors="replace", **pipes)

    def proceed(self) -> None:
        """Continue until the program waits for its turn (`elseq.benchmark.measure.wait_for_turn`), or ends."""
        with contextlib.suppress(BrokenPipeError):  # it was killed while it waited
            if self.is_waiting:
                self._process.stdin.write("\n")
                self._process.stdin.flush()
        self.is_waiting = False
        for line in self._process.stdout:
            if line.startswith(WAITING):
                self.needed_bytes = float(line.removeprefix(WAITING)) * MEBIBYTE
                self.is_waiting = True
                return

    def result(self) -> Measurement:
        """Wait until the program ends, and return its result."""
        code = self._process.wait()
        if self._result.exists():
            return self.take()
        if code == -9:
            return Measurement(failure="out of memory (the system ended the process)")
        lines = self._errors.read_text(errors="replace").strip().splitlines() or [""]
        return Measurement(failure=f"the process ended with {code}: {lines[-1]}")

    def take(self) -> Measurement:
        """The result so far of a program that waits."""
        found = Measurement(**json.loads(self._result.read_text()))
        self._result.unlink()
        return found

    def __exit__(self, *_) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()


def in_process(program: Sequence[str], request: dict, folder: Path) -> Measurement:
    """Run a program that does not wait."""
    with Process(program, request, folder) as process:
        process.proceed()
        return process.result()


def one_by_one(program: Sequence[str], request: dict, folder: Path) -> Iterator[Measurement]:
    """Run a program that loads once, measures several cases, and waits after each.

    Args:
        program, folder: as for `Process`.
        request: with "cases". If the program ends in one of them, or says after one that it is spent, it is started
            again for the cases after it. If it ends in the first of its cases, all of them have failed for that reason.
    """
    rest = request["cases"]
    while rest:
        measured, is_spent = 0, None
        with Process(program, {**request, "cases": rest}, folder) as process:
            process.proceed()
            while process.is_waiting and not is_spent:
                found = process.take()
                is_spent = found.is_spent
                yield found
                measured += 1
                if not is_spent:
                    process.proceed()
            ended = process.result() if measured < len(rest) and not is_spent else None
        count = 0 if ended is None else len(rest) if measured == 0 else 1
        yield from [ended] * count
        rest = rest[measured + count :]


def in_turns(program: Sequence[str], requests: list[dict], folder: Path, interleave: bool) -> Iterator[Measurement]:
    """Run a program for each request, so that disturbances of the machine slow all of them alike.

    The processes that fit the memory load and warm up one after the other, and then wait. In each round each of them
    measures once while the others wait, and another one is the first.

    Args:
        program, folder: as for `Process`.
        requests: with the device.
        interleave: False: one process at a time.
    """
    rest = list(requests)
    while rest:
        with contextlib.ExitStack() as stack:
            processes: list[Process] = []
            while rest[len(processes) :] and (not processes or interleave and _fits(processes, rest[0]["device"])):
                request = rest[len(processes)]
                processes.append(stack.enter_context(Process(program, request, folder / f"run{len(processes)}")))
                processes[-1].proceed()
            waiting = loaded = [process for process in processes if process.is_waiting]
            while waiting:
                for process in waiting:
                    process.proceed()
                waiting = [process for process in (*waiting[1:], waiting[0]) if process.is_waiting]
            results = [process.result() for process in processes]
        for request, found in zip(rest, results, strict=False):
            if len(processes) > 1 and ran_out(found.failure):
                yield from in_turns(program, [request], folder, False)
            else:
                found.in_turns = len(loaded) if found.failure is None else None
                yield found
        rest = rest[len(processes) :]


def _fits(processes: list[Process], device: str) -> bool:
    """Whether one more process can be loaded."""
    return free_memory_bytes(torch.device(device)) >= MARGIN * max(process.needed_bytes for process in processes)
