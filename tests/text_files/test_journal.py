"""The journal: nothing lost and nothing twice, wherever a process was killed."""

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elseq.errors import UserError
from elseq.text_files import journal as journal_module
from elseq.text_files.journal import Journal, make_record, read_records

FINGERPRINT = {"input": "abc", "--beam": 4, "--lenpen": 1.5}
LINES = 12
TEXTS = [f"text {index} ü\t\u2028\f" if index % 4 else "" for index in range(LINES)]
NOTHING = np.zeros(LINES, dtype=bool)


def begin(output, rank=0, fingerprint=FINGERPRINT, **options):
    journal = Journal(Path(output), rank)
    journal.lock()
    try:
        return journal, journal.begin(fingerprint, LINES, **options)
    except UserError:
        journal.close()
        raise


def write(journal, indices):
    journal.append(list(indices), [TEXTS[index] for index in indices])


@given(payloads=st.lists(st.binary(max_size=40), max_size=6), torn=st.binary(max_size=30), data=st.data())
def test_records(payloads, torn, data):
    whole = b"".join(map(make_record, payloads))
    found, end = read_records(whole)
    assert [whole[payload] for payload in found] == payloads
    assert end == len(whole)
    # cut off anywhere
    cut = whole[: data.draw(st.integers(0, len(whole)))]
    found, end = read_records(cut)
    assert [cut[payload] for payload in found] == payloads[: len(found)]
    assert cut[:end] == b"".join(map(make_record, payloads[: len(found)]))
    assert len(found) == len(payloads) or len(cut) - end < len(make_record(payloads[len(found)]))
    # what a disk may show in place of data that never reached it
    assert read_records(whole + bytes(len(torn)))[1] == len(whole)
    for place in range(len(whole)):
        changed = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
        found, _ = read_records(changed)
        assert [changed[payload] for payload in found] == payloads[: len(found)]
        assert len(found) < len(payloads)


def test_a_run_from_beginning_to_end(tmp_path):
    output = tmp_path / "output"
    blank = NOTHING.copy()
    blank[[2, 5]] = True
    journal, finished = begin(output)
    with closing(journal):
        assert not finished.any()
        write(journal, [11, 3, 7])
        write(journal, [index for index in range(LINES) if index not in (2, 5, 11, 3, 7)])
        assert not output.exists()
        journal.publish(blank)
    expected = ["" if blank[index] else text for index, text in enumerate(TEXTS)]
    assert output.read_text(encoding="utf-8").split("\n") == [*expected, ""]
    assert os.listdir(tmp_path) == ["output"]
    assert output.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask():
    value = os.umask(0)
    os.umask(value)
    return value


@settings(deadline=None, max_examples=100)
@given(data=st.data())
@mock.patch.object(os, "fsync")  # the slow part
def test_killed_at_any_moment_by_any_number_of_processes(fsync, data):
    """Each life has some processes, which take batches and are cut off at any byte of what they wrote last."""
    batches = [[0, 5, 7], [1], [2, 3], [4, 6, 8, 9], [10, 11]]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output"
        for _ in range(data.draw(st.integers(0, 5), label="lives")):
            journals = [begin(output, rank) for rank in range(data.draw(st.integers(1, 3), label="processes"))]
            finished = np.any([done for _, done in journals], axis=0)
            for number, batch in enumerate(batches[: data.draw(st.integers(0, len(batches)), label="batches")]):
                journal, _ = journals[data.draw(st.integers(0, len(journals) - 1), label=f"takes {number}")]
                rest = [index for index in batch if not finished[index]]
                middle = data.draw(st.integers(0, len(rest)), label="split where memory ended")
                for part in (rest[:middle], rest[middle:]):
                    if part:
                        write(journal, part)
            for journal, _ in journals:
                journal.close()
            if data.draw(st.booleans(), label="torn"):
                path = data.draw(st.sampled_from([journal.path for journal, _ in journals]))
                size = path.stat().st_size
                os.truncate(path, data.draw(st.integers(0, size), label="size"))
        journal, finished = begin(output)
        with closing(journal):
            rest = np.flatnonzero(~finished)
            write(journal, rest)
            journal.publish(NOTHING)
        assert output.read_text(encoding="utf-8") == "".join(f"{text}\n" for text in TEXTS)


def test_what_is_finished_is_taken_up(tmp_path):
    for rank, indices in ((0, [1, 2]), (3, [5])):
        journal, _ = begin(tmp_path / "output", rank)
        write(journal, indices)
        journal.close()
    journal, finished = begin(tmp_path / "output", rank=1)
    journal.close()
    assert np.flatnonzero(finished).tolist() == [1, 2, 5]


def test_lines_that_are_missing(tmp_path):
    journal, _ = begin(tmp_path / "output")
    with closing(journal):
        write(journal, range(10))
        with pytest.raises(UserError, match="^line 11 and 1 more are in no journal of .*output.partial"):
            journal.publish(NOTHING)
    assert not (tmp_path / "output").exists()


def test_another_run(tmp_path):
    journal, _ = begin(tmp_path / "output")
    write(journal, [1])
    journal.close()
    other = {**FINGERPRINT, "--beam": 5, "input": "abd"}
    with pytest.raises(UserError) as raised:
        begin(tmp_path / "output", fingerprint=other)
    assert str(raised.value) == (
        f"{tmp_path}/output.partial holds finished lines of another run, in which the input was another, --beam was 4 "
        "and not 5: give the options of that run to go on, or --overwrite to begin anew"
    )
    journal, finished = begin(tmp_path / "output", overwrite=True)  # the same run: nothing to drop
    journal.close()
    assert finished.sum() == 1
    journal, finished = begin(tmp_path / "output", fingerprint=other, overwrite=True)
    journal.close()
    assert not finished.any()
    journal, _ = begin(tmp_path / "output", fingerprint=other)
    journal.close()


def test_two_runs_at_a_time(tmp_path):
    journal, _ = begin(tmp_path / "output")
    with closing(journal):
        with pytest.raises(UserError, match="^.*output is being made by another elseq-generate: wait for it, or "):
            begin(tmp_path / "output")
        write(journal, [1])
    begin(tmp_path / "output")[0].close()


def test_a_killed_process_has_no_lock(tmp_path):
    begin(tmp_path / "output")[0].close()
    program = (
        "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, tmp_path / "output.partial" / "0.journal"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    holder.stdout.readline()
    with pytest.raises(UserError, match="is being made by another"):
        begin(tmp_path / "output")
    holder.kill()
    holder.communicate()
    begin(tmp_path / "output")[0].close()


def test_a_journal_that_a_finished_run_removes_meanwhile(tmp_path, monkeypatch):
    """Between opening and locking."""
    journal = Journal(tmp_path / "output")

    def flock(*_):
        shutil.rmtree(journal.folder)

    monkeypatch.setattr(journal_module.fcntl, "flock", flock)
    with pytest.raises(UserError, match="is being made by another"):
        journal.lock()


def test_a_file_system_without_locks(tmp_path, monkeypatch, caplog):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(journal_module.fcntl, "flock", flock)
    begin(tmp_path / "output")[0].close()
    assert "without locks" in caplog.text


def test_nothing_begun_leaves_no_trace(tmp_path):
    with closing(Journal(tmp_path / "output")) as journal:
        journal.lock()
        assert journal.is_new()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("where", ["missing", "file"])
def test_no_folder_to_write_in(tmp_path, where):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is in a folder that does not exist: make the folder$"):
        Journal(tmp_path / where / "output").lock()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "output.partial").write_text("")
    with pytest.raises(UserError, match="output.partial, where finished lines are kept, is a file: move it, or "):
        Journal(tmp_path / "output").lock()


@pytest.fixture
def full_disk(monkeypatch):
    """A disk with so many bytes left; writes are cut short, then fail."""
    room = {"bytes": 10**9}
    write_there = os.write

    def write(file, content):
        content = content[: room["bytes"]]
        if not content:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room["bytes"] -= len(content)
        return write_there(file, content)

    monkeypatch.setattr(journal_module.os, "write", write)
    return room


@pytest.mark.parametrize("left", [0, 1, 20, 30])
def test_a_full_disk(tmp_path, full_disk, left):
    journal, _ = begin(tmp_path / "output")
    with closing(journal):
        write(journal, [0, 1])
        full_disk["bytes"] = left
        with pytest.raises(UserError) as raised:
            write(journal, [2, 3, 4, 5])
        assert str(raised.value) == (
            f"--output {tmp_path}/output cannot be written (No space left on device): make room, and the same command "
            "goes on with what is finished"
        )
        full_disk["bytes"] = 10**9
        write(journal, [6])  # what follows is not lost behind half a record
    journal, finished = begin(tmp_path / "output")
    with closing(journal):
        assert np.flatnonzero(finished).tolist() == [0, 1, 6]
        write(journal, np.flatnonzero(~finished))
        journal.publish(NOTHING)
    assert (tmp_path / "output").read_text(encoding="utf-8") == "".join(f"{text}\n" for text in TEXTS)


def test_a_disk_that_is_full_in_the_end(tmp_path, monkeypatch):
    journal, _ = begin(tmp_path / "output")
    with closing(journal):
        write(journal, range(LINES))
        with monkeypatch.context() as context:
            context.setattr(journal_module.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
            with pytest.raises(UserError, match="make room, and the same command goes on"):
                journal.publish(NOTHING)
        assert not (tmp_path / "output").exists()
        assert sorted(os.listdir(journal.folder)) == ["0.journal"]
        journal.publish(NOTHING)
    assert (tmp_path / "output").exists()
