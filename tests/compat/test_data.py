import gc
import io
import os
import re
import shutil
import socket
import sys
from multiprocessing import resource_sharer
from multiprocessing.process import BaseProcess
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fairseq import tasks, utils
from fairseq.data import (
    Dictionary,
    data_utils,
    encoders,
    indexed_dataset,
    language_pair_dataset,
    token_block_dataset,
)
from fairseq.data.encoders import gpt2_bpe_utils
from fairseq.data.encoders.sentencepiece_bpe import SentencepieceConfig
from fairseq.data.multilingual.multilingual_data_manager import MultilingualDatasetManager
from fairseq.tasks import TASK_REGISTRY, FairseqTask
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from fairseq_cli import interactive
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from elseq.compat import data
from elseq.compat.data import buffered_read
from elseq.errors import UserError
from tests import helpers

# --- numpy 2


def make_blocks():
    items = [np.arange(length) for length in (3, 5, 2)]
    return token_block_dataset.TokenBlockDataset(items, [3, 5, 2], None, pad=1, eos=2, break_mode="eos")


def find_buckets():
    return data_utils.get_buckets(np.array([1, 2, 3, 9]), 2)


@pytest.mark.parametrize("use", [make_blocks, find_buckets])
def test_names_that_numpy_dropped(use, monkeypatch):
    assert len(use()) > 0
    for module in (data_utils, token_block_dataset):
        monkeypatch.setattr(module, "np", np)
    with pytest.raises((AttributeError, TypeError)):
        use()


def test_buckets_are_the_sizes_below_the_percentiles():
    np.testing.assert_array_equal(find_buckets(), [2, 9])


def test_numpy_itself_is_left_alone():
    assert not hasattr(np, "compat")
    assert data_utils.np.int64 is np.int64


def test_training_with_buckets(translation_data, tmp_path, monkeypatch):
    helpers.train("transformer", translation_data, tmp_path, "--max-update=1", "--num-batch-buckets=2")
    monkeypatch.setattr(language_pair_dataset, "np", np)
    with pytest.raises(AttributeError, match="compat"):
        helpers.train("transformer", translation_data, tmp_path, "--max-update=1", "--num-batch-buckets=2")


# --- batches


def batch(indices, sizes, **options):
    return data_utils.batch_by_size(indices, lambda index: sizes[index], **options)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 16, 21])
@pytest.mark.parametrize("options", [{"max_tokens": 40}, {"max_sentences": 10}, {}])
def test_every_sentence_is_in_a_batch(count, options):
    sizes = list(range(1, count + 1))
    batches = batch(range(count), sizes, required_batch_size_multiple=8, **options)
    assert [index for indices in batches for index in indices] == list(range(count))


def test_last_batch_without_the_repair(without):
    without(data_utils, "batch_by_size")
    assert batch(np.arange(7), [3] * 7, required_batch_size_multiple=8) == []
    with pytest.raises(IndexError):
        batch(np.arange(0), [], required_batch_size_multiple=8)


def test_no_sentences():
    assert batch(np.arange(0), [], required_batch_size_multiple=8) == []


def test_sentence_longer_than_a_batch(without):
    with pytest.raises(UserError, match="a sentence of the data is longer than --max-tokens 5"):
        batch(np.arange(2), [3, 6], max_tokens=5)
    without(data_utils, "batch_by_size")
    with pytest.raises(AssertionError):
        batch(np.arange(2), [3, 6], max_tokens=5)


# --- batches that are read ahead


@pytest.mark.few_cases(1)
def test_a_process_that_is_gone_before_it_has_its_batch(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, *_: told.append(kind))

    def leave():
        shared = resource_sharer.DupFd(0)
        with socket.socket(socket.AF_UNIX) as gone:
            gone.connect(shared._id[0])
        os.close(shared.detach())  # the sharer has served the one before it

    leave()
    assert not told
    monkeypatch.setattr(resource_sharer, "sys", sys)
    leave()
    assert len(told) == 1 and issubclass(told[0], ConnectionError | EOFError)


@pytest.mark.parametrize("size", [1, 20])
def test_command_that_ends_while_batches_are_read(size):
    """With a small buffer the thread waits for room in it, with a large one it is busy."""
    program = f"""
import elseq, torch
from fairseq.data.iterators import BufferedIterator

class Batches:
    def __len__(self):
        return 100

    def __iter__(self):
        for number in range(100):
            torch.ones(700, 700) @ torch.ones(700, 700)
            yield number

batches = BufferedIterator({size}, Batches())
assert next(batches) == 0
raise elseq.errors.UserError("bad input")
"""
    result = helpers.run(["python", "-c", program])
    assert (result.returncode, result.stderr) == (1, b"elseq: error: bad input\n")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("persistent", [True, False])
def test_a_loader_in_a_cycle_is_not_waited_for(monkeypatch, without, workers, persistent):
    """Without the repair its workers are waited for in vain."""
    join, options = BaseProcess.join, {"num_workers": workers, "persistent_workers": persistent}

    def ended():
        gc.collect()  # those of other tests
        loader = iter(DataLoader(range(4), **options))
        assert int(next(loader)) == 0
        loader.itself, codes = loader, []
        pids = [worker.pid for worker in loader._workers]

        def wait(worker, timeout=None):
            if worker.pid in pids[len(codes) :]:
                join(worker, 0.5)
                codes.append(worker.exitcode)
            join(worker, timeout)

        with monkeypatch.context() as patch:
            patch.setattr(BaseProcess, "join", wait)
            del loader
            gc.collect()
        return [code is not None for code in codes]

    assert ended() == [True] * workers
    assert list(map(int, DataLoader(range(4), **options))) == [0, 1, 2, 3]
    without(_MultiProcessingDataLoaderIter, "_shutdown_workers")
    assert ended() == [False] * workers


# --- sentences that are too long


def generate(tiny, *options):
    command = ["fairseq-generate", tiny.data, "--path", tiny.checkpoint, "--cpu", "--num-workers=0", "--beam=1"]
    return helpers.run_here([*command, *options], check=False)


def test_long_sentence_is_refused_by_name(tiny_translation, without):
    result = generate(tiny_translation, "--max-source-positions=5")
    assert result.returncode == 1
    assert re.fullmatch(
        r"elseq: error: sentence \d+ \(w.*\) has \d+ source tokens and \d+ target tokens, "
        r"the model takes at most 5 source tokens and 64 target tokens: shorten it, leave it out .*\n",
        result.stderr,
    )
    without(FairseqTask, "filter_indices_by_size")
    assert "error: Size of sample #" in generate(tiny_translation, "--max-source-positions=5").stderr


def test_long_sentence_is_skipped_on_request(tiny_translation):
    result = generate(tiny_translation, "--max-source-positions=5", "--skip-invalid-size-inputs-valid-test")
    assert result.returncode == 0
    assert "samples have invalid sizes and will be skipped" in result.stdout
    assert 0 < result.stdout.count("\nH-") < 21


# --- what is missing


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--train-subset=none"], "Dataset not found: none"),
        (["--valid-subset=none"], "Dataset not found: none"),
        (
            ["--max-tokens=1"],
            "no sentence is left: there is none, or all are longer than --max-tokens or the model's positions",
        ),
        (["--save-dir=file"], "--save-dir file cannot be written (Not a directory): name another"),
        (["--save-dir=file/models"], "--save-dir file/models cannot be written (Not a directory): name another"),
    ],
)
def test_training_without(tiny_translation, tmp_path, monkeypatch, options, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    options = ["--user-dir", helpers.USER_DIR, "--skip-invalid-size-inputs-valid-test", *options]
    command = helpers.train_command(
        "transformer", tiny_translation.data, tmp_path / "models", "--max-update=1", *options
    )
    result = helpers.run_here(command, check=False)
    assert result.returncode == 1 and result.stderr.startswith(f"elseq: error: {sentence}")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(("task", "arch"), [("translation", "transformer"), ("language_modeling", "transformer_lm")])
def test_a_folder_without_data(tmp_path, task, arch):
    command = ["fairseq-train", tmp_path / "none", "--user-dir", helpers.USER_DIR, f"--arch={arch}", f"--task={task}"]
    result = helpers.run_here([*command, "--max-tokens=100", "--cpu"], check=False)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(f"elseq: error: {tmp_path}/none")


@pytest.mark.parametrize("task", ["denoising", "multilingual_denoising"])
def test_a_subset_that_there_is_not(tmp_path, language_model_data, task, without):
    data = shutil.copytree(language_model_data, tmp_path / "data" / "en")
    folder = data if task == "denoising" else data.parent
    shutil.copy(data / "dict.txt", folder / "dict.txt") if folder != data else None
    command = helpers.train_command("bart_base", folder, tmp_path / "models", f"--task={task}", "--train-subset=none")
    result = helpers.run_here([*command, "--user-dir", helpers.USER_DIR], check=False)
    assert result.returncode == 1 and result.stderr.splitlines()[-1].startswith("elseq: error: Dataset not found: none")
    without(TASK_REGISTRY[task], "load_dataset")
    with pytest.raises(FileNotFoundError):
        helpers.run_here([*command, "--user-dir", helpers.USER_DIR])


def test_a_subset_of_several_languages_that_there_is_not(tiny_translation, tmp_path, without):
    task = ["--task=translation_multi_simple_epoch", "--lang-pairs=src-tgt", "--train-subset=none"]
    command = helpers.train_command(
        "transformer", tiny_translation.data, tmp_path, *task, "--user-dir", helpers.USER_DIR
    )
    result = helpers.run_here(command, check=False)
    assert result.returncode == 1 and result.stderr.splitlines()[-1].startswith("elseq: error: Dataset not found: none")
    without(MultilingualDatasetManager, "get_split_num_data_shards")
    with pytest.raises(KeyError, match="main:src-tgt"):
        helpers.run_here(command)


def test_a_relative_folder_under_hydra(tmp_path, translation_data, monkeypatch):
    """Which makes a folder for each job and goes there."""
    monkeypatch.chdir(tmp_path)
    runtime = SimpleNamespace(cwd=str(translation_data.parent))
    hydra = SimpleNamespace(initialized=lambda: True, get=lambda: SimpleNamespace(runtime=runtime))
    monkeypatch.setattr(data, "HydraConfig", hydra)
    name = translation_data.name
    with pytest.raises(UserError, match=f"^{name} is not in the folder .*: give task.data={translation_data}$"):
        tasks.setup_task(OmegaConf.create({"_name": "translation", "data": name}))
    with pytest.raises(UserError, match="^nowhere does not exist; check the data folder"):
        tasks.setup_task(OmegaConf.create({"_name": "translation", "data": "nowhere"}))


@pytest.fixture
def damaged(tiny_translation, tmp_path):
    """Loads a copy of the data, which may be changed."""
    data = shutil.copytree(tiny_translation.data, tmp_path / "data")

    def load():
        task = TranslationTask.setup_task(
            TranslationConfig(data=str(data), source_lang="src", target_lang="tgt", dataset_impl=None)
        )
        task.load_dataset("train")

    return data, load


@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [
        (
            "train.src-tgt.src.bin",
            0,
            r"train.src-tgt.src.bin is empty: give a subset that has sentences, or make",
        ),
        ("train.src-tgt.src.bin", 30, "train.src-tgt.src.bin is cut off: make the data again by fairseq-preprocess$"),
        ("train.src-tgt.tgt.idx", 0, "train.src-tgt.tgt.idx or .*bin is damaged or cut off .Index file"),
        ("train.src-tgt.tgt.idx", 100, "train.src-tgt.tgt.idx or .*bin is damaged or cut off .buffer is"),
        (
            "dict.src.txt",
            20,
            "train.src-tgt.src.bin has words up to number .*, and the dictionary has .* entries: ",
        ),
    ],
)
def test_data_that_is_damaged(damaged, capsys, name, size, reason):
    data, load = damaged
    load()
    whole = (data / name).read_bytes()
    (data / name).write_bytes(whole[: whole.rfind(b"\n", 0, size) + 1] if name.endswith(".txt") else whole[:size])
    with pytest.raises(UserError, match=reason):
        load()
    gc.collect()
    assert "Traceback" not in capsys.readouterr().err  # of objects that are half made


def test_source_and_target_of_different_lengths(damaged, without):
    data, load = damaged
    for suffix in ("bin", "idx"):
        shutil.copy(data / f"valid.src-tgt.tgt.{suffix}", data / f"train.src-tgt.tgt.{suffix}")
    sentence = (
        r"^the source has 400 examples \(.*/train.src-tgt.src.bin\), the target 30 \(.*/train.src-tgt.tgt.bin\): "
    )
    with pytest.raises(UserError, match=sentence):
        load()
    without(language_pair_dataset.LanguagePairDataset, "__init__")
    with pytest.raises(AssertionError):
        load()


def test_data_that_fairseq_takes(damaged, without):
    data, load = damaged
    for suffix in ("bin", "idx"):
        (data / f"train.src-tgt.src.{suffix}").write_bytes((data / f"train.src-tgt.src.{suffix}").read_bytes()[:90])
    without(indexed_dataset.MMapIndexedDataset, "_do_init")
    with pytest.raises(ValueError, match="buffer is smaller"):
        load()


# --- dictionaries and subwords


@pytest.mark.parametrize(
    "content, sentence",
    [
        (None, "{} does not exist; check the data folder and the languages"),
        (b"w1 1\nw2\n", "{} cannot be used as a dictionary (line 2: Incorrect dictionary format, expected '<token> <"),
        (
            b"w1 1\nw2 1\nw2 2 #fairseq:overwrite\nw1 2\n",
            "line 4 of {} repeats 'w1', of line 1: make the dictionary by fairseq-preprocess, or if the model has a "
            "row for this line, too, put #fairseq:overwrite at its end",
        ),
        (
            b"w1 1\n</s> 2\n",
            "line 2 of {} repeats '</s>', which is in every dictionary: make the dictionary by fairseq",
        ),
        (b"w 1\nw\xf6 1\n", "line 2 of {} is not valid UTF-8: convert with iconv"),
    ],
)
def test_dictionary_that_cannot_be_used(tmp_path, content, sentence, without):
    path = tmp_path / "dict.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        Dictionary.load(str(path))
    assert str(raised.value).startswith(sentence.format(path)) and "\n" not in str(raised.value)
    without(Dictionary, "add_from_file")
    with pytest.raises(Exception) as raised:
        Dictionary.load(str(path))
    assert not isinstance(raised.value, UserError)


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({}, "--bpe sentencepiece cannot be used (Missing mandatory value: sentencepiece_model): check its files and"),
        (
            {"sentencepiece_model": "nothing.model"},
            "--bpe sentencepiece cannot be used (file nothing.model not found): check",
        ),
    ],
)
def test_subwords_that_cannot_be_used(options, sentence, without):
    cfg = OmegaConf.structured(SentencepieceConfig(_name="sentencepiece", **options))
    with pytest.raises(UserError) as raised:
        encoders.build_bpe(cfg)
    assert str(raised.value).startswith(sentence)
    assert encoders.build_bpe(None) is None
    without(encoders, "build_bpe")
    with pytest.raises((MissingMandatoryValue, OSError)):
        encoders.build_bpe(cfg)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "^embeddings .*file cannot be read .No such file or directory.: check the path$"),
        ("", "file holds no embeddings .StopIteration.: each line after the first has a word and its numbers$"),
        ("1 2\nthe a b\n", "file holds no embeddings .ValueError: could not convert string to float: 'a'.: "),
        ("1 2\nthe 1 2 3\n", "^the embedding of 'the' has 3 numbers, the model takes 2: give that as --encoder-embed"),
    ],
)
def test_embeddings_that_cannot_be_used(tmp_path, content, sentence, without):
    if content is not None:
        (tmp_path / "file").write_text(content)
    dictionary = Dictionary()
    dictionary.add_symbol("the")

    def load():
        embeddings = utils.parse_embedding(str(tmp_path / "file"))
        utils.load_embedding(embeddings, dictionary, torch.nn.Embedding(len(dictionary), 2))

    with pytest.raises(UserError, match=sentence):
        load()
    without(utils, "parse_embedding")
    without(utils, "load_embedding")
    with pytest.raises((OSError, StopIteration, ValueError, RuntimeError)):
        load()


# --- encoding


def read(content, buffer_size, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    return list(buffered_read("-", buffer_size))


@pytest.mark.parametrize(
    "content, buffers",
    [
        (b"", []),
        (b"\n", [[""]]),
        (b"a\nb \nc", [["a", "b"], ["c"]]),
        (b"a\n\n\n", [["a", ""], [""]]),
        ("größe\r\n".encode(), [["größe"]]),
    ],
)
def test_lines_come_in_buffers(content, buffers, monkeypatch):
    assert read(content, 2, monkeypatch) == buffers


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize(
    "content, buffers, wrong",
    [
        (b"a\nsch\xf6n\n", [["a", "sch\ufffdn"]], "line 2 of {} is"),
        (b"\xff\na\nb\n\xf6 c", [["\ufffd", "a"], ["b", "\ufffd c"]], "line 1 and 1 more of {} are"),
    ],
)
def test_wrong_encoding_loses_no_line(content, buffers, wrong, named, monkeypatch, tmp_path, caplog):
    """The log tells of each such line at once, and the error at the end."""
    (tmp_path / "input").write_bytes(content)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    found, lines = [], buffered_read(str(tmp_path / "input") if named else "-", 2)
    with pytest.raises(UserError) as raised:
        found.extend(lines)
    assert found == buffers
    name = tmp_path / "input" if named else "the standard input"
    assert str(raised.value) == f"{wrong.format(name)} not valid UTF-8: convert with iconv"
    assert len(caplog.messages) == str(buffers).count("\ufffd")
    assert caplog.messages[0].startswith(f"{wrong[:6]} of {name} is not valid UTF-8")
    assert interactive.buffered_read is buffered_read


def test_a_replacement_character_is_valid(monkeypatch):
    assert read("a \ufffd\n".encode(), 1, monkeypatch) == [["a \ufffd"]]


def test_missing_input_file(tmp_path):
    with pytest.raises(UserError, match="--input .*nothing cannot be read"):
        list(buffered_read(str(tmp_path / "nothing"), 1))


def test_raw_data_in_a_wrong_encoding(tmp_path, tiny_translation, without):
    dictionary = Dictionary.load(str(tiny_translation.data / "dict.src.txt"))
    path = str(tmp_path / "test.src-tgt.src")
    (tmp_path / "test.src-tgt.src").write_bytes(b"w1 w2\nsch\xf6n\nw3\n\xff\n")
    with pytest.raises(UserError, match="line 2 and 1 more of .*test.src-tgt.src are not valid UTF-8"):
        indexed_dataset.IndexedRawTextDataset(path, dictionary)
    without(indexed_dataset.IndexedRawTextDataset, "read_data")
    with pytest.raises(UnicodeDecodeError):
        indexed_dataset.IndexedRawTextDataset(path, dictionary)


def test_a_standard_input_of_text_alone(monkeypatch):
    """As a program has it that calls `interactive.main`."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("a\n b\u00e9 \n\nlast"))
    assert list(buffered_read("-", 3)) == [["a", "b\u00e9", ""], ["last"]]


def test_a_closed_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UserError, match="the standard input is closed: give it lines, or --input FILE"):
        list(buffered_read("-", 1))


def test_a_letter_that_the_vocabulary_lacks(without):
    vocabulary = {letter: number for number, letter in enumerate("abcx")}
    encoder = gpt2_bpe_utils.Encoder(vocabulary, [("a", "b")])
    assert encoder.encode("x") == [3]
    for text, piece in (("ab", "ab"), ("xd", "d")):
        with pytest.raises(
            UserError, match=f"^encoder.json has no '{piece}', a piece that vocab.bpe makes of '{text}': take "
        ):
            encoder.encode(text)
    without(gpt2_bpe_utils.Encoder, "encode")
    with pytest.raises(KeyError):
        encoder.encode("xd")
