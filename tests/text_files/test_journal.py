"""The journal: nothing lost and nothing twice, wherever a process was killed."""

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tracemalloc
from contextlib import closing
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elseq.errors import UserError
from elseq.text_files import journal as journal_module
from elseq.text_files.journal import Journal, StandardOutput, make_record, read_records

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
        "and not 5: give the options of that run to continue, or --overwrite to start again"
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
        with pytest.raises(UserError, match="^.*output is being written by another elseq-generate: wait for it, or "):
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
    with pytest.raises(UserError, match="is being written by another"):
        begin(tmp_path / "output")
    holder.kill()
    holder.communicate()
    begin(tmp_path / "output")[0].close()


def test_a_journal_that_a_finished_run_removes_meanwhile(tmp_path, monkeypatch):
    """Between opening and locking."""
    journal = Journal(tmp_path / "output")

    def flock(*_):
        shutil.rmtree(journal.folder)

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(UserError, match="is being written by another"):
        journal.lock()


def test_a_file_system_without_locks(tmp_path, monkeypatch, caplog):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
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
            f"--output {tmp_path}/output cannot be written (No space left on device): free some space and repeat the "
            "same command"
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
            with pytest.raises(UserError, match="free some space and repeat the same command"):
                journal.publish(NOTHING)
        assert not (tmp_path / "output").exists()
        assert sorted(os.listdir(journal.folder)) == ["0.journal"]
        journal.publish(NOTHING)
    assert (tmp_path / "output").exists()


# --- what somebody else has put there


def whole(*records, fingerprint=FINGERPRINT):
    payloads = [fingerprint if isinstance(fingerprint, bytes) else json.dumps(fingerprint).encode(), *records]
    return b"".join(map(make_record, payloads))


@pytest.fixture
def victim(tmp_path):
    path = tmp_path / "victim"
    path.write_bytes(b"precious\n")
    yield path
    assert path.read_bytes() == b"precious\n"


def plant(path, kind, victim):
    if kind == "link":
        path.symlink_to(victim)
    elif kind == "dangling link":
        path.symlink_to(victim.with_name("created"))
    elif kind == "second name":
        path.hardlink_to(victim)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()


@pytest.mark.parametrize("kind", ["link", "dangling link", "second name", "pipe", "folder"])
@pytest.mark.parametrize("name", ["0.journal", "7.journal", "output", "anything"])
def test_what_leads_out_of_the_folder_is_refused(tmp_path, victim, kind, name):
    folder = tmp_path / "output.partial"
    folder.mkdir()
    plant(folder / name, kind, victim)
    with pytest.raises(UserError) as raised:
        begin(tmp_path / "output", overwrite=True)
    assert str(raised.value) == (
        f"{folder / name} is a link, a folder or a pipe, and not a file with one name: remove it, or give another "
        "--output"
    )
    assert os.listdir(folder) == [name]
    assert not (tmp_path / "created").exists()


@pytest.mark.parametrize("kind", ["link", "second name", "pipe", "folder"])
@pytest.mark.parametrize("name", ["3.journal", "output"])
def test_what_is_put_there_later_is_not_followed(tmp_path, victim, kind, name):
    journal, _ = begin(tmp_path / "output")
    with closing(journal):
        write(journal, range(LINES))
        plant(journal.folder / name, kind, victim)
        try:
            journal.publish(NOTHING)
        except UserError:
            assert not (tmp_path / "output").exists()
            assert (kind, name) != ("link", "output")  # a link is removed, and not what it names
        else:
            assert name == "output" and kind != "folder"
            assert (tmp_path / "output").is_file() and not (tmp_path / "output").is_symlink()


def test_a_folder_that_is_a_link(tmp_path, victim):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "output.partial").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="output.partial is a link: remove it, or give another --output$"):
        begin(tmp_path / "output")
    assert os.listdir(tmp_path / "elsewhere") == []


def test_other_files_are_left_alone(tmp_path):
    folder = tmp_path / "output.partial"
    folder.mkdir()
    for name in ("notes.journal", "README"):
        (folder / name).write_text("mine")
    journal, finished = begin(tmp_path / "output")
    with closing(journal):
        assert not finished.any()
        write(journal, range(LINES))
        journal.publish(NOTHING)
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"notes.journal": "mine", "README": "mine"}


@pytest.mark.parametrize(
    "records, fault",
    [
        ([b"12\tx\n"], "it has a text for line 13, which the input does not ask for"),
        ([b"999999999999999999\tx\n"], "it has a text for line 1000000000000000000, which"),
        ([b"-1\tx\n"], "a record is not made of numbered lines of text"),
        ([b"1_0\tx\n"], "a record is not made of"),
        ([b" 1\tx\n"], "a record is not made of"),
        (["\u0661\tx\n".encode()], "a record is not made of"),
        ([b"\tx\n"], "a record is not made of"),
        ([b"1 x\n"], "a record is not made of"),
        ([b"1\tx"], "a record is not made of"),
        ([b"1\tx\ny\n"], "a record is not made of"),
        ([b"1\tx\ry\n"], "a record is not made of"),
        ([b"1\t\xff\n"], "a record is not made of"),
        ([b"1\tx\n", b"\n"], "a record is not made of"),
        ([b"1\tx\n1\ty\n"], "line 2 has two different texts"),
        ([b"1\tx\n", b"2\tx\n1\txy\n"], "line 2 has two different texts"),
    ],
)
@pytest.mark.parametrize("rank", [0, 3])
def test_a_record_that_no_run_has_written(tmp_path, records, fault, rank):
    folder = tmp_path / "output.partial"
    folder.mkdir()
    path = folder / f"{rank}.journal"
    path.write_bytes(whole(*records))
    with pytest.raises(UserError) as raised:
        begin(tmp_path / "output")
    assert str(raised.value).startswith(f"{path} is damaged ({fault}")
    assert str(raised.value).endswith("): give --overwrite to start again, or another --output")
    assert path.read_bytes() == whole(*records)
    journal, finished = begin(tmp_path / "output", overwrite=True)
    with closing(journal):
        assert not finished.any()
        path.write_bytes(whole(*records))  # by another process, in the midst of the run
        with pytest.raises(UserError, match="is damaged"):
            journal.publish(NOTHING)
    assert not (tmp_path / "output").exists()


def test_a_text_for_a_line_that_is_blank(tmp_path):
    blank = NOTHING.copy()
    blank[3] = True
    journal, _ = begin(tmp_path / "output")
    with closing(journal):
        write(journal, range(LINES))
        with pytest.raises(UserError, match="it has a text for line 4, which the input does not ask for"):
            journal.publish(blank)
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    "fingerprint",
    [
        b"",
        b"{",
        b"1\tx\n",
        b"[]",
        b"5",
        b'{"input": []}',
        b'{"input": {"a": 1}}',
        b"[" * 100_000,
        b'{"a": ' + b"9" * 5000,
    ]
    + [b'{"--beam": "a\\nb"}', b'{"\\u001b[2J": 1}', b"\xff"],
    ids=lambda value: repr(value[:20]),
)
def test_a_fingerprint_that_is_none(tmp_path, fingerprint):
    folder = tmp_path / "output.partial"
    folder.mkdir()
    (folder / "0.journal").write_bytes(whole(b"1\tx\n", fingerprint=fingerprint))
    with pytest.raises(UserError, match="0.journal is damaged .it does not say of which run it is.: give --overwrite"):
        begin(tmp_path / "output")
    journal, finished = begin(tmp_path / "output", overwrite=True)
    journal.close()
    assert not finished.any()


@pytest.mark.parametrize("content", [b"@ 99999999999999999999 00000000\n", b"\0" * 100, b"@ 5 zz\n", b"@"])
def test_what_is_no_record_at_all(tmp_path, content):
    """As a disk leaves it: the run begins there."""
    folder = tmp_path / "output.partial"
    folder.mkdir()
    (folder / "0.journal").write_bytes(content)
    journal, finished = begin(tmp_path / "output")
    journal.close()
    assert not finished.any()


def test_what_is_no_journal(tmp_path):
    folder = tmp_path / "output.partial"
    folder.mkdir()
    (folder / "0.journal").write_text("a diary\n")
    with pytest.raises(UserError, match="0.journal is damaged .it does not say of which run it is.: give --overwrite"):
        begin(tmp_path / "output")
    assert (folder / "0.journal").read_text() == "a diary\n"


def test_a_journal_that_says_it_is_larger_than_the_memory(tmp_path):
    """A file with nothing in it takes no room on the disk, whatever its length."""
    (tmp_path / "output.partial").mkdir()
    path = tmp_path / "output.partial" / "0.journal"
    with path.open("wb") as file:
        file.write(b"@ %d 00000000\n" % 2**40)
        file.truncate(2**40 + 100)
    journal, finished = begin(tmp_path / "output")
    journal.close()
    assert not finished.any() and path.stat().st_size < 1000


def test_a_checksum_takes_no_memory(tmp_path):
    content = make_record(bytes(2**26))
    with (tmp_path / "journal").open("w+b") as file:
        file.write(content)
        file.flush()
        with journal_module._mapped(file.fileno()) as mapped:
            tracemalloc.start()
            payloads, end = read_records(mapped)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
    assert end == len(content) and peak < 2**23


def test_a_fingerprint_of_another_program(tmp_path):
    """The sentence would have thousands of options."""
    begin(tmp_path / "output")[0].close()
    path = tmp_path / "output.partial" / "0.journal"
    path.write_bytes(make_record(json.dumps(dict.fromkeys(map(str, range(10_000)), 1)).encode()))
    with pytest.raises(UserError, match="0.journal is damaged .it does not say of which run it is"):
        begin(tmp_path / "output")


# --- the standard output


def test_the_standard_output_in_order(capfdbinary):
    """Each line as soon as all before it are there."""
    output = StandardOutput()
    output.lock()
    assert not output.begin({}, 6).any()
    seen = []
    for indices, texts in (([3], [""]), ([1, 2], ["b", "ü"]), ([0], ["a"]), ([5], ["f"]), ([4], ["e"])):
        output.append(indices, texts)
        seen.append(capfdbinary.readouterr().out.decode())
    assert seen == ["", "", "a\nb\nü\n\n", "", "e\nf\n"]
    assert output.written == 6
    output.close()


def test_a_standard_output_that_is_full(monkeypatch):
    output = StandardOutput()
    output.lock()
    output.begin({}, 1)
    with (
        open("/dev/full", "w") as full,
        pytest.raises(UserError, match="^the standard output cannot be written .No sp"),
    ):
        monkeypatch.setattr("sys.stdout", full)
        output.append([0], ["a"])
