"""Runs of benchmarks in the process of the test: it saves the seconds that importing torch and fairseq takes."""

import json
from collections.abc import Iterator
from dataclasses import asdict

from elseq.benchmark.measure import Measurement


def found_by(program, request):
    """What a process would find: requests and results are JSON on their way."""
    found = program(json.loads(json.dumps(request)))
    return map(_sent, found) if isinstance(found, Iterator) else _sent(found)


def _sent(found):
    return Measurement(**json.loads(json.dumps(asdict(found))))


def take_turns_here(monkeypatch, module, program):
    """Let `in_turns` of a module measure one request after the other by the function that its program calls.

    Returns:
        a list to which each call of it adds the command and whether its processes take turns.
    """
    calls = []

    def in_turns(command, requests, folder, interleave):
        calls.append((command, interleave))
        for request in requests:
            found = found_by(program, request)
            found.in_turns = None if found.failure else len(requests) if interleave else 1
            yield found

    monkeypatch.setattr(module, "in_turns", in_turns)
    monkeypatch.setattr(f"{program.__module__}.wait_for_turn", lambda mebibytes: None)
    return calls
