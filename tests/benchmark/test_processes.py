"""Processes that take turns, by what they write into a file, and processes that are killed."""

import json
from pathlib import Path

import pytest

from elseq.benchmark import measure, processes
from elseq.benchmark.measure import Measurement
from elseq.benchmark.processes import in_process, in_turns

# Writes its name whenever it does something; `fails` is the round in which it does not, 0 being that of loading.
WAIT = f"import sys; sys.path.append({str(Path(measure.__file__).parent)!r}); from measure import wait_for_turn"
PROGRAM = """
import json, os, sys
from pathlib import Path

request = json.loads(Path(sys.argv[1]).read_text())
name, fails, alone = request["name"], request.get("fails"), Path(request["log"] + ".again")

def work(round):
    with open(request["log"], "a") as file:
        file.write(name)
    if fails == round and request["how"] == "killed":
        os.kill(os.getpid(), 9)
    if fails == round and not alone.exists():
        alone.touch()
        sys.exit(Path(sys.argv[2]).write_text(json.dumps({"failure": "out of memory"})))

print("a library writes this", end="")
work(0)
for round in range(1, 4):
    wait_for_turn(request["mebibytes"])
    work(round)
Path(sys.argv[2]).write_text(json.dumps({"version": name}))
"""


@pytest.fixture
def run(tmp_path):
    def run(names, interleave=True, **others):
        """Who did something, in order, and what is found of each."""
        log = tmp_path / "log"
        common = {"threads": 1, "device": "cpu", "log": str(log), "mebibytes": 1}
        requests = [common | {"name": name} | others.get(name, {}) for name in names]
        found = list(in_turns(["-c", f"{WAIT}\n{PROGRAM}"], requests, tmp_path, interleave))
        return log.read_text(), [each.failure or (each.version, each.in_turns) for each in found]

    return run


def test_each_once_in_a_round_and_another_first(run):
    order, found = run("abc")
    assert order == "abc" + "abc" + "bca" + "cab"
    assert found == [("a", 3), ("b", 3), ("c", 3)]


def test_one_after_the_other(run):
    assert run("ab", interleave=False) == ("aaaabbbb", [("a", 1), ("b", 1)])


def test_as_many_as_fit_the_memory(run, monkeypatch):
    """A third one does not: twice the need of the larger is not free."""
    monkeypatch.setattr(processes, "free_memory_bytes", lambda device: 20 * 2**20)
    order, found = run("abcd", b={"mebibytes": 10.5}, d={"mebibytes": 10})
    assert order == "ab" + "ab" + "ba" + "ab" + "cd" + "cd" + "dc" + "cd"
    assert found == [("a", 2), ("b", 2), ("c", 2), ("d", 2)]


@pytest.mark.parametrize(("round", "order"), [(0, "abc" + "ac" + "ca" + "ac"), (2, "abc" + "abc" + "bca" + "ca")])
def test_one_that_is_killed_does_not_stop_the_others(run, tmp_path, round, order):
    """And once more alone: others may have had the memory."""
    found_order, found = run("abc", b={"fails": round, "how": "killed"})
    assert found_order == order + "b" * (round + 1)
    first, failure, last = found
    assert failure == "out of memory (the system ended the process)"
    assert (first, last) == (("a", 3 if round else 2), ("c", 3 if round else 2))


def test_one_without_memory_may_have_enough_alone(run):
    order, found = run("ab", b={"fails": 1, "how": "out of memory"})
    assert order == "ab" + "ab" + "a" + "a" + "bbbb"
    assert found == [("a", 2), ("b", 1)]


@pytest.mark.parametrize(
    ("code", "failure"),
    [
        ("import os; os.kill(os.getpid(), 9)", "out of memory (the system ended the process)"),
        ("import sys; sys.exit('no such thing')", "the process ended with 1: no such thing"),
        ("import sys; open(sys.argv[2], 'w').write('{\"seconds\": [1.5]}')", None),
    ],
)
def test_a_process(tmp_path, code, failure):
    found = in_process(["-c", code], {"threads": 1}, tmp_path)
    assert found == Measurement(failure=failure, seconds=None if failure else [1.5])


def test_who_waits_for_nobody_ends(tmp_path):
    """The end of the context, as after Ctrl-C, kills it."""
    code = f"{WAIT}; wait_for_turn(2)"
    with processes.Process(["-c", code], {"threads": 1}, tmp_path) as process:
        process.proceed()
        assert (process.is_waiting, process.needed_bytes) == (True, 2 * 2**20)
    assert process.result().failure.startswith("out of memory")
    assert json.loads((tmp_path / "request.json").read_text()) == {"threads": 1}


CASES = """
import json, os, sys
from pathlib import Path

request = json.loads(Path(sys.argv[1]).read_text())
for case in request["cases"]:
    if case == "killed":
        os.kill(os.getpid(), 9)
    if case == "ends":
        sys.exit("no such thing")
    Path(sys.argv[2]).write_text(json.dumps({"version": f"{case} of {os.getpid()}", "is_spent": case == "spent"}))
    wait_for_turn(0)
"""
KILLED, ENDED = "out of memory (the system ended the process)", "the process ended with 1: no such thing"


@pytest.mark.parametrize(
    ("cases", "expected"),
    [
        (["a"], ["a"]),
        (["a", "b", "c"], ["a", "b", "c"]),
        (["a", "killed", "b", "ends", "c"], ["a", KILLED, "b", ENDED, "c"]),
        (["ends", "a", "b"], [ENDED] * 3),  # as where a model cannot be loaded
        ([], []),
    ],
)
def test_cases_of_a_program_that_is_loaded_once(tmp_path, cases, expected):
    found = processes.one_by_one(["-c", f"{WAIT}\n{CASES}"], {"threads": 1, "cases": cases}, tmp_path)
    assert [each.failure or each.version.split()[0] for each in found] == expected


def test_a_program_that_is_spent_is_loaded_anew(tmp_path):
    """After a failure of the device, too, whichever case it is in."""
    cases = ["spent", "a", "b", "spent", "c", "spent"]
    found = list(processes.one_by_one(["-c", f"{WAIT}\n{CASES}"], {"threads": 1, "cases": cases}, tmp_path))
    names, numbers = zip(*(each.version.split(" of ") for each in found), strict=True)
    assert list(names) == cases
    assert [numbers.index(number) for number in numbers] == [0, 1, 1, 1, 4, 4]
