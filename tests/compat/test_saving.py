import errno
import io
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec

import fairseq_cli.train
import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.dataclass.configs import FairseqConfig
from fairseq.file_io import PathManager
from fairseq.trainer import Trainer

from elseq import files
from elseq.compat import saving
from elseq.errors import UserError
from tests import helpers

# --- whole checkpoints


def half_a_copy(error):
    def copyfile(source, path, *args, **kwargs):
        with open(source, "rb") as read, open(path, "wb") as written:
            written.write(read.read(1000))
        raise error

    return copyfile


BOTH = ["--no-epoch-checkpoints", "--save-interval=1", "--validate-interval=1"]  # best, copied to last


def test_an_interruption_of_a_copy(train, without, tmp_path, monkeypatch):
    """The checkpoint before it stays, and training continues from it."""
    train(*BOTH, check=True)
    last = tmp_path / "checkpoint_last.pt"
    before = last.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", half_a_copy(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            train(*BOTH, "--max-update=5")
    assert last.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint_best.pt", "checkpoint_last.pt"]
    train(*BOTH, "--max-update=5", check=True)
    assert torch.load(last)["optimizer_history"][-1]["num_updates"] == 5
    without(PathManager, "copy")
    monkeypatch.setattr(shutil, "copyfile", half_a_copy(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        train(*BOTH, "--max-update=7")
    assert last.stat().st_size == 1000


def test_a_full_disk(train, without, tmp_path, monkeypatch):
    train(*BOTH, check=True)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(checkpoint_utils.time, "sleep", lambda seconds: None)
    sentence = "cannot be written (No space left on device), what was saved before is kept: make room for it, or make "
    temporary = tmp_path / "checkpoint_best.pt.tmp"
    for repaired in (True, False):
        if not repaired:
            without(checkpoint_utils, "torch_persistent_save")
        temporary.symlink_to("/dev/full")
        if repaired:
            result = train(*BOTH, "--max-update=5")
            assert result.returncode == 1
            assert result.stderr.startswith(f"elseq: error: {tmp_path / 'checkpoint_best.pt'} {sentence}")
            assert result.stderr.count("\n") == 1 and "Traceback" not in result.stdout
        else:
            with pytest.raises(OSError, match="No space left on device"):
                train(*BOTH, "--max-update=5")
        assert temporary.is_symlink() is not repaired
        assert {path.name: path.read_bytes() for path in tmp_path.glob("*.pt")} == before


def test_a_full_disk_while_copying(train, tmp_path, monkeypatch):
    train(*BOTH, check=True)
    before = (tmp_path / "checkpoint_last.pt").read_bytes()
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(shutil, "copyfile", half_a_copy(full))
    result = train(*BOTH, "--max-update=5")
    assert result.stderr.startswith(f"elseq: error: {tmp_path / 'checkpoint_last.pt'} cannot be written (No space left")
    assert (tmp_path / "checkpoint_last.pt").read_bytes() == before
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))])
def test_an_interruption_of_torch(tmp_path, without, monkeypatch, interruption):
    """After some of the tensors."""
    path = tmp_path / "model.pt"
    path.write_text("before")
    interruptions = []

    class Interrupted(io.FileIO):
        def write(self, content):
            if self.tell() > 1000 and not interruptions:
                interruptions.append(interruption)
                raise interruption
            return super().write(content)

    monkeypatch.setattr(saving, "open", Interrupted, raising=False)
    monkeypatch.setattr(PathManager, "open", Interrupted)
    state = {name: torch.zeros(300) for name in "abc"}
    with pytest.raises(KeyboardInterrupt if isinstance(interruption, KeyboardInterrupt) else UserError):
        checkpoint_utils.torch_persistent_save(state, str(path))
    assert path.read_text() == "before" and len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(checkpoint_utils.time, "sleep", lambda seconds: None)
    without(checkpoint_utils, "torch_persistent_save")
    interruptions.clear()
    checkpoint_utils.torch_persistent_save(state, str(path))  # it is tried again, after what was written
    size = path.stat().st_size
    checkpoint_utils.torch_persistent_save(state, str(path))
    assert size > path.stat().st_size + 1000


def test_asynchronous_checkpoints(train, translation_data, tmp_path, without):
    result = train("--write-checkpoints-asynchronously")
    assert result.returncode == 1
    assert result.stderr.startswith("elseq: error: --write-checkpoints-asynchronously leaves out checkpoint_last.pt, ")
    assert not list(tmp_path.iterdir())
    command = helpers.train_command("transformer", translation_data, tmp_path, "--write-checkpoints-asynchronously")
    command = [sys.executable, "-m", "fairseq_cli.train", *command[1:], "--user-dir", helpers.USER_DIR]
    result = subprocess.run([str(each) for each in command], capture_output=True, text=True)
    assert result.returncode == 1
    assert "elseq: error: --write-checkpoints-asynchronously leaves out checkpoint_last.pt, " in result.stderr
    without(fairseq_cli.train, "add_defaults")
    if find_spec("iopath") is None:
        assert train("--write-checkpoints-asynchronously").returncode == 0
        assert not list(tmp_path.iterdir())  # nothing was trained


def test_what_a_killed_process_left_is_replaced(tmp_path):
    path = str(tmp_path / "model.pt")
    (tmp_path / "model.pt.tmp").write_bytes(b"half of it")
    checkpoint_utils.torch_persistent_save({"number": 5}, path)
    (tmp_path / "copy.pt").write_text("before")
    assert PathManager.copy(path, str(tmp_path / "copy.pt"), overwrite=True)
    assert torch.load(tmp_path / "copy.pt") == torch.load(path) == {"number": 5}
    assert sorted(found.name for found in tmp_path.iterdir()) == ["copy.pt", "model.pt"]


def test_a_link_is_replaced_by_a_copy(tmp_path):
    """What it points to may be the only checkpoint of its epoch."""
    (tmp_path / "checkpoint3.pt").write_text("old")
    (tmp_path / "checkpoint4.pt").write_text("new")
    (tmp_path / "checkpoint_last.pt").symlink_to("checkpoint3.pt")
    PathManager.copy(str(tmp_path / "checkpoint4.pt"), str(tmp_path / "checkpoint_last.pt"), overwrite=True)
    assert (tmp_path / "checkpoint3.pt").read_text() == "old"
    assert (tmp_path / "checkpoint_last.pt").read_text() == "new"


def test_a_folder_that_cannot_be_written_to_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"nothing/model\.pt cannot be written \(No such file or directory\)"):
        checkpoint_utils.torch_persistent_save({}, str(tmp_path / "nothing" / "model.pt"))


# --- the folder


def test_what_cannot_be_copied_is_named(tmp_path):
    with pytest.raises(FileNotFoundError) as raised:
        PathManager.copy(src_path=str(tmp_path / "none"), dst_path=str(tmp_path / "model.pt"))
    assert raised.value.filename == str(tmp_path / "none") and not list(tmp_path.iterdir())


def test_a_folder_of_another_name(train, tmp_path):
    (tmp_path / "checkpoint_hf.pt").mkdir()
    train(check=True)


def test_a_training_with_a_suffix_has_other_names(train, other_training):
    train("--checkpoint-suffix=_b", check=True)


@pytest.mark.parametrize("name", ["checkpoint_last.pt", "checkpoint_best.pt", "checkpoint2.pt"])
def test_a_folder_of_the_name_of_a_checkpoint(train, without, tmp_path, name):
    (tmp_path / name).mkdir()
    found = f"{tmp_path / name} is a folder, and checkpoints have such names: move it, or give another --save-dir"
    result = train(*BOTH)
    assert result.stderr == f"elseq: error: {found}\n"
    assert "begin training" not in result.stdout
    train("--no-save", check=True)
    without(Trainer, "__init__")
    without(checkpoint_utils, "torch_persistent_save")
    if name == "checkpoint_best.pt":
        with pytest.raises(IsADirectoryError):
            train(*BOTH)


HOLD = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], 0), fcntl.LOCK_EX); print(flush=True); input()"


@pytest.fixture
def other_training(tmp_path):
    """A process that holds the lock of a training."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    holder.stdout.readline()
    yield holder
    holder.kill()
    holder.communicate()


def test_two_trainings_of_a_folder(train, without, tmp_path, other_training):
    found = f"--save-dir {tmp_path} is being written by another training: wait for it, or give another --save-dir"
    assert train().stderr == f"elseq: error: {found}\n"
    assert not list(tmp_path.iterdir())
    train("--no-save", check=True)
    train(f"--save-dir={tmp_path / 'other'}", check=True)
    without(Trainer, "__init__")
    train(check=True)
    assert (tmp_path / "checkpoint_last.pt").exists()


def test_a_killed_training_holds_nothing(train, other_training, tmp_path):
    other_training.kill()
    other_training.communicate()
    train("--num-workers=1", check=True)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint_best.pt", "checkpoint_last.pt"}


def is_locked(folder):
    file = os.open(folder, os.O_RDONLY)
    try:
        return not files.lock(file)
    except BlockingIOError:
        return True
    finally:
        os.close(file)


def test_a_folder_is_locked_while_it_is_trained_to(train, tmp_path, monkeypatch):
    seen = []

    def save(*_, **__):
        seen.append(is_locked(tmp_path))

    monkeypatch.setattr(checkpoint_utils, "torch_persistent_save", save)
    train("--no-last-checkpoints", check=True)
    assert seen == [True] and not is_locked(tmp_path)
    train("--lr=-1")
    assert not is_locked(tmp_path)


def test_a_worker_does_not_hold_the_lock(tmp_path):
    cfg = FairseqConfig()
    cfg.checkpoint.save_dir = str(tmp_path)
    saving._lock(cfg)
    child = os.fork()
    if not child:
        os._exit(len(saving._locked))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert is_locked(tmp_path)
    saving._lock(cfg)  # the next training of this process
    saving._unlock()
    assert not is_locked(tmp_path)


def test_other_processes_of_a_training_take_no_lock(tmp_path, other_training):
    cfg = FairseqConfig()
    cfg.checkpoint.save_dir = str(tmp_path)
    cfg.distributed_training.distributed_rank = 1
    saving._lock(cfg)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EBADF])
def test_a_file_system_without_locks(train, monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    train(check=True)
