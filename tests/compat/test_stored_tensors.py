"""Tensors that stay in the file, against `torch.load`."""

import os
import shutil
import sys
import zipfile

import pytest
import torch
from fairseq import checkpoint_utils

from elseq.compat.stored_tensors import StoredTensors
from elseq.errors import UserError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="tensors are read at once")

TABLE = torch.randn(300, 70)
TENSORS = {
    "table": TABLE,
    "tied": TABLE,
    "rows": TABLE[20:50],
    "columns": TABLE.t(),
    "some columns": TABLE[:, 7:11],
    "one": TABLE[0, 0].expand(1, 1),
    "half": torch.randn(1000).half(),
    "flags": torch.rand(999) > 0.5,
    "number": torch.tensor(3.5),
    "empty": torch.empty(0, 4),
}


def load(path):
    stored = StoredTensors()
    with path.open("rb") as file:
        return stored, stored.load(file, map_location="cpu")["model"]


def save(path, content=TENSORS, **options):
    torch.save({"model": content}, path, **options)
    return path


def assert_read(stored, loaded):
    for name, tensor in loaded.items():
        read = stored.read(tensor)
        assert read.equal(TENSORS[name]), name


@pytest.mark.parametrize("name", ["model.pt", "two words\n and\r a line.pt", r"\012.pt", "модель.pt", "x (deleted)"])
def test_tensors_are_those_of_the_file(tmp_path, name):
    stored, loaded = load(save(tmp_path / name))
    for name, tensor in loaded.items():
        read = stored.read(tensor)
        assert read.equal(TENSORS[name]) and read.is_contiguous()
        assert stored.has(tensor) and not stored.has(read) and stored.read(read) is read
        if name != "columns":
            assert read.untyped_storage().nbytes() == read.nbytes  # not the table around it
    stored.check_unchanged()


@pytest.fixture
def counts(monkeypatch):
    """The bytes of each reading of a file from now on."""
    counts, read = [], os.preadv
    monkeypatch.setattr(os, "preadv", lambda *arguments: counts.append(read(*arguments)) or counts[-1])
    return counts


def test_only_what_is_between_first_and_last_number_is_read(tmp_path, counts):
    stored, loaded = load(save(tmp_path / "model.pt"))
    for name, numbers in {"rows": 30 * 70, "some columns": 299 * 70 + 4, "empty": 0, "one": 1}.items():
        stored.read(loaded[name])
        assert 4 * numbers == sum(counts)
        counts.clear()


def test_what_is_read_belongs_to_the_reader(tmp_path):
    stored, loaded = load(save(tmp_path / "model.pt"))
    stored.read(loaded["table"]).zero_()
    assert_read(stored, loaded)
    assert_read(*load(tmp_path / "model.pt"))


def test_one_file_twice(tmp_path):
    """The addresses of a map that is gone are taken by something else."""
    path = save(tmp_path / "model.pt")
    gone, loaded = load(path)
    stored, tensors = load(path)
    assert not stored.has(loaded["table"]) and not gone.has(tensors["table"])
    del gone, loaded
    assert_read(stored, tensors)
    read = [stored.read(tensor) for tensor in tensors.values() for _ in range(100)]
    del tensors
    assert all(stored.read(tensor) is tensor for tensor in read)
    assert all(stored.read(tensor) is tensor for tensor in (torch.ones(size) for size in range(1, 20_000, 7)))


def test_numbers_that_were_changed_in_place(tmp_path):
    stored, loaded = load(save(tmp_path / "model.pt"))
    loaded["columns"][3:5].add_(1)
    assert not stored.has(loaded["columns"]) and stored.has(loaded["half"])
    found = stored.read(loaded["columns"])
    assert found[3:5].equal(TABLE.t()[3:5] + 1) and found[5:].equal(TABLE.t()[5:]) and found.is_contiguous()
    assert stored.read(loaded["half"]).equal(TENSORS["half"])


def test_other_formats_are_read_at_once(tmp_path):
    old = save(tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    plain, compressed = save(tmp_path / "plain.pt"), tmp_path / "compressed.pt"
    with zipfile.ZipFile(plain) as archive, zipfile.ZipFile(compressed, "w", zipfile.ZIP_DEFLATED) as smaller:
        for entry in archive.infolist():
            smaller.writestr(entry.filename, archive.read(entry))
    for path in (old, compressed):
        stored, loaded = load(path)
        assert_read(stored, loaded)
        assert not stored.has(loaded["table"]) and stored.read(loaded["table"]) is loaded["table"]


def test_a_file_that_cannot_be_mapped_is_read_at_once(tmp_path, monkeypatch):
    load_all = torch.load

    def load_plain(*args, mmap=False, **kwargs):
        if mmap:
            raise RuntimeError("unable to mmap 123 bytes from file </proc/self/fd/9>: No such device (19)")
        return load_all(*args, **kwargs)

    monkeypatch.setattr(torch, "load", load_plain)
    stored, loaded = load(save(tmp_path / "model.pt"))
    assert_read(stored, loaded)
    assert stored.read(loaded["table"]) is loaded["table"] and stored.status is None


def test_a_tensor_of_another_size_than_its_part_of_the_file(tmp_path):
    """Where torch reads a file at once, it compares these sizes."""
    path = tmp_path / "model.pt"
    save(path, {"table": torch.arange(1000.0), "next": torch.arange(2000.0)})
    number = b"M" + (1000).to_bytes(2, "little")  # as pickles have it
    content = path.read_bytes()
    assert content.count(number) == 2  # the size of the storage, and that of the tensor
    path.write_bytes(content.replace(number, b"M" + (1100).to_bytes(2, "little")))
    stored, loaded = load(path)
    with pytest.raises(UserError, match="^checkpoint .*model.pt is damaged: copy or train it again$"):
        stored.read(loaded["table"])


def test_a_file_of_the_same_name_changes_nothing(tmp_path):
    path = save(tmp_path / "model.pt")
    stored, loaded = load(path)
    os.replace(save(tmp_path / "next.pt", {"table": torch.zeros(3)}), path)  # as fairseq saves
    assert_read(stored, loaded)
    stored.check_unchanged()
    path.unlink()
    assert_read(stored, loaded)


def test_a_file_that_is_cut_off_while_it_is_read(tmp_path):
    path = save(tmp_path / "model.pt", {"table": torch.randn(1000, 1000)})
    stored, loaded = load(path)
    os.truncate(path, 5000)
    with pytest.raises(UserError, match="model.pt was changed while it was read: read it again"):
        stored.read(loaded["table"])


def test_a_file_that_is_written_to_while_it_is_read(tmp_path):
    path = save(tmp_path / "model.pt")
    stored, loaded = load(path)
    shutil.copyfile(save(tmp_path / "next.pt", {**TENSORS, "table": TABLE + 1}), path)
    stored.read(loaded["table"])
    with pytest.raises(UserError, match="model.pt was changed while it was read"):
        stored.check_unchanged()


def test_no_file_stays_open(tmp_path):
    before = os.listdir("/proc/self/fd")
    stored, loaded = load(save(tmp_path / "model.pt"))
    assert len(os.listdir("/proc/self/fd")) > len(before)
    del stored, loaded
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_fairseq_reads_the_model_once_and_not_the_optimizer(tiny_translation, tmp_path, counts):
    """And it has the numbers and the random state as when all is read and copied."""
    state = torch.load(tiny_translation.checkpoint, weights_only=False)
    state["model"] = {name: tensor.half() if "fc1" in name else tensor for name, tensor in state["model"].items()}
    state["last_optimizer_state"] = torch.zeros(5_000_000)
    path = tmp_path / "model.pt"
    torch.save(state, path)
    overrides = {"data": str(tiny_translation.data)}
    loaded = []

    def load(**options):
        torch.manual_seed(1)
        (model,), *_ = checkpoint_utils.load_model_ensemble_and_task([str(path)], overrides, **options)
        loaded.append((dict(model.named_parameters()), torch.get_rng_state()))

    load(state=checkpoint_utils.load_checkpoint_to_cpu(str(path), overrides))
    counts.clear()
    load()
    assert sum(counts) == sum({tensor.data_ptr(): tensor.nbytes for tensor in state["model"].values()}.values())
    (expected, random_state), (found, its_random_state) = loaded
    assert found.keys() == expected.keys() and random_state.equal(its_random_state)
    for name, parameter in found.items():
        assert parameter.dtype == torch.float32 and parameter.equal(expected[name])


def test_the_tensors_of_fairseq_s_models_in_half_keep_the_type_of_the_model(tiny_translation, tmp_path):
    """Whether they stay in the file or, in torch's older format, are read with it."""
    state = torch.load(tiny_translation.checkpoint, weights_only=False)
    state["model"] = {name: tensor.half() for name, tensor in state["model"].items()}
    for is_archive in (True, False):
        path = tmp_path / f"{is_archive}.pt"
        torch.save(state, path, _use_new_zipfile_serialization=is_archive)
        overrides = {"data": str(tiny_translation.data)}
        (model,), *_ = checkpoint_utils.load_model_ensemble_and_task([str(path)], overrides)
        for name, parameter in model.named_parameters():
            assert parameter.dtype == torch.float32 and parameter.equal(state["model"][name].float())
