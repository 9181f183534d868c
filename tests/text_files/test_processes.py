import threading
import time

import pytest
import torch.distributed

from elseq.errors import UserError
from elseq.text_files import processes as processes_module
from elseq.text_files.processes import Processes


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    for name, seconds in (("PULSE", 0.02), ("SILENCE", 0.3), ("POLL", 0.01)):
        monkeypatch.setattr(processes_module, name, seconds)


@pytest.fixture
def members():
    store = torch.distributed.HashStore()
    return [Processes(store, rank, 3) for rank in range(3)]


def test_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    alone = Processes.of_environment()
    assert alone.is_first and alone.count == 1
    with alone.alive():
        assert [alone.take_number() for _ in range(3)] == [0, 1, 2]
        assert [alone.report(5), alone.report(2)] == [5, 7]
        alone.announce("finished")
        alone.wait_for("finished", range(1))


def test_an_incomplete_environment(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(
        UserError, match="^the processes do not find each other .*RANK expected.*: start them by torchrun"
    ):
        Processes.of_environment()


def test_each_number_once(members):
    taken = []

    def take(process):
        for _ in range(50):
            taken.append(process.take_number())

    threads = [threading.Thread(target=take, args=[process]) for process in members]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(150))


def test_waiting_takes_as_long_as_it_takes(members):
    """Longer than a silent process is waited for."""

    def work(process):
        with process.alive():
            time.sleep(1)
            process.announce("finished")

    threads = [threading.Thread(target=work, args=[process]) for process in members[1:]]
    for thread in threads:
        thread.start()
    calls = []
    with members[0].alive():
        members[0].announce("finished")
        members[0].wait_for("finished", range(3), meanwhile=lambda: calls.append(1))
    assert len(calls) > 10


def test_a_process_that_is_gone(members):
    members[0].announce("finished")
    with pytest.raises(UserError) as raised:
        members[0].wait_for("finished", range(3))
    assert str(raised.value) == (
        "process 1 of 3 has given no sign of life for 0 seconds, so process 0 ends too: finished lines are kept, and "
        "the same command continues"
    )


def test_a_process_that_fails(members):
    with pytest.raises(UserError, match="the disk is full"), members[2].alive():
        raise UserError("the disk is full")
    for process in members[:2]:
        with pytest.raises(UserError, match="^process 2 of 3 has ended with an error, so process"):
            process.take_number()
    with pytest.raises(UserError, match="^process 2 of 3 has ended with an error"):
        members[1].wait_for("begun", [0])


def test_a_first_process_that_is_gone():
    class Gone:
        def add(self, *_):
            raise torch.distributed.DistNetworkError("failed to recv, got 0 bytes")

        check = add

    process = Processes(Gone(), 1, 2)
    with (
        process.alive(),
        pytest.raises(UserError, match="^process 0 of 2 cannot be reached any more, so process 1 ends"),
    ):
        process.take_number()
