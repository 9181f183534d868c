"""elseq-generate on the tiny checkpoints: the lines of `elseq.load(...).generate`, one for one."""

import copy
import random
import re
import shutil
import sys

import pytest
import sentencepiece
import torch

import elseq
from elseq.cli import generate as command
from elseq.generator import TextGenerator
from elseq.text_files.processes import Processes
from tests import helpers
from tests.generating import OPTIONS, SEARCH, interrupt_after, read


@pytest.fixture(params=["translation", "bart", "language_model", "multi_query"])
def trained(request):
    return request.getfixturevalue(f"tiny_{request.param}")


@pytest.mark.few_cases(5)
@pytest.mark.parametrize("attention", ["auto", "kv", "el", "stock"])
def test_the_lines_of_load(trained, source, run, attention):
    model = elseq.load(trained.checkpoint, data=trained.data, attention=attention)
    lines = source.read_text().split("\n")[:-1]
    run(f"--attention={attention}", "--max-tokens=64", model=trained)
    assert read(run.output) == model.generate(lines, max_tokens=64, **SEARCH)
    assert not run.journals.exists()


@pytest.mark.few_cases(2)
def test_batches_make_no_difference(trained, run):
    outputs = []
    for batches in ("--max-tokens=1", "--max-tokens=40", "--max-tokens=100000", "--memory-budget=200K"):
        run(batches, "--overwrite", model=trained)
        outputs.append(run.output.read_bytes())
    assert len(set(outputs)) == 1
    assert len(outputs[0]) > 200


@pytest.mark.few_cases(1)
def test_int8(trained, source, run):
    """Its lines do not depend on the batches, nor on what else the model was used for in between."""
    model = elseq.load(trained.checkpoint, data=trained.data, dtype="int8")
    weights = elseq.load(trained.checkpoint, data=trained.data).model.state_dict()
    lines = source.read_text().split("\n")[:-1]
    expected = model.generate(lines, **SEARCH)
    for batches in ("--max-tokens=20", "--max-tokens=4096", "--memory-budget=200K"):
        run("--dtype=int8", batches, "--overwrite", model=trained)
        assert read(run.output) == expected
    copied = copy.deepcopy(model.model).eval()
    assert copied is not model.model
    for each in (model.model, copied):
        assert all(weights[name].equal(weight) for name, weight in each.state_dict().items())
    assert model.generate(lines, **SEARCH) == expected


def test_one_line_for_one_line(tiny_translation, run, tmp_path):
    """Whatever ends a line elsewhere does not end one here."""
    (tmp_path / "strange").write_bytes(
        b"\xef\xbb\xbfw1 w2\r\n\r\nw3\fw4\x0bw5\n\xe2\x80\xa8 \nw6\xe2\x80\xa8w7\x85w8".replace(b"\x85", b"\xc2\x85")
    )
    run(input=tmp_path / "strange")
    model = elseq.load(tiny_translation.checkpoint, data=tiny_translation.data)
    assert read(run.output) == model.generate(["w1 w2", "", "w3 w4 w5", "", "w6 w7 w8"], **SEARCH)


def test_an_output_that_has_line_ends(run, monkeypatch, source):
    monkeypatch.setattr(TextGenerator, "text", lambda self, tokens: "one\r\ntwo\nthree\rfour\tfive\u2028six")
    run()
    assert set(read(run.output)) == {"", "one two three four\tfive\u2028six"}
    assert len(read(run.output)) == len(read(source))


# --- memory


@pytest.mark.parametrize("seed", range(3))
def test_memory_that_is_short_now_and_then(run, expected, monkeypatch, seed):
    draw = random.Random(seed)
    decode = TextGenerator.decode
    failures = []

    def short(self, search, sources):
        if len(sources) > 1 and (not failures or draw.random() < 0.5):
            failures.append(len(sources))
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return decode(self, search, sources)

    monkeypatch.setattr(TextGenerator, "decode", short)
    log = run("--max-tokens=100").stdout
    assert f"out of memory with {failures[0]} sentences at once: going on with " in log
    assert read(run.output) == expected


def test_a_line_that_does_not_fit_the_memory(run, expected, source):
    shortest = min(len(line.split()) for line in read(source) if line.strip())
    number = next(n for n, line in enumerate(read(source), start=1) if len(line.split()) == shortest)
    decode = TextGenerator.decode

    def short(self, search, sources):
        if any(source.numel() == shortest + 1 for source in sources):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return decode(self, search, sources)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextGenerator, "decode", short)
        result = run("--max-tokens=40", check=False)
    sentence = result.stderr.splitlines()[-1]
    assert sentence.startswith(f"elseq: error: line {number} of {source} does not fit the memory, even alone ")
    with pytest.MonkeyPatch.context() as patch:
        calls = interrupt_after(patch, 1000)
        run("--max-tokens=40")
    assert sum(calls) == sum(len(line.split()) == shortest for line in read(source))
    assert read(run.output) == expected


# --- options of the model


@pytest.mark.parametrize(
    "top_k",
    [
        {"apply_top_k": 2},
        {"apply_top_k": 2, "apply_top_k_in": "cross"},
        {"apply_ffn_top_k": 10},
        {"apply_top_k": 0, "apply_ffn_top_k": 0},
    ],
    ids=str,
)
def test_top_k(tiny_translation, source, run, expected, top_k):
    run(*[f"--{name.replace('_', '-')}={value}" for name, value in top_k.items()])
    model = elseq.load(tiny_translation.checkpoint, data=tiny_translation.data, **top_k)
    assert read(run.output) == model.generate(read(source), **SEARCH)
    assert (read(run.output) == expected) == (not any(top_k.values()))


def test_the_k_of_long_sources_is_that_of_the_attention_to_them(tiny_translation, source, run):
    run("--long-input", "--apply-top-k=2")
    options = {"long_input": True, "apply_top_k": 2, "apply_top_k_in": "cross"}
    model = elseq.load(tiny_translation.checkpoint, data=tiny_translation.data, **options)
    assert read(run.output) == model.generate(read(source), **SEARCH)


def test_dictionaries_and_pieces_in_two_folders(tiny_translation, source, run, expected, tmp_path):
    """As recipes/demo.sh leaves them; its pieces are the tiny model's words."""
    data = shutil.copytree(tiny_translation.data, tmp_path / "data")
    for path in data.glob("dict.*.txt"):
        path.write_text(re.sub(r"^w", "▁w", path.read_text(), flags=re.MULTILINE))
    (tmp_path / "pieces").mkdir()
    model = tmp_path / "pieces" / "sentencepiece.model"
    words = " ".join(f"w{number}" for number in range(20))
    with model.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([words] * 20), model_writer=file, model_type="word", vocab_size=23, minloglevel=2
        )
    other = helpers.Trained(tiny_translation.raw, data, tiny_translation.checkpoint)
    named = ["--bpe=sentencepiece", f"--sentencepiece-model={model}"]
    run(*named, model=other)
    assert read(run.output) == expected
    loaded = elseq.load(tiny_translation.checkpoint, data=data, bpe="sentencepiece", sentencepiece_model=model)
    assert loaded.generate(read(source), **SEARCH) == expected
    refused = run(*named, f"--output={model}", model=other, check=False)
    assert refused.stderr.endswith("is an input: give another file\n")


def test_an_ensemble(tiny_translation, tiny_multi_query, source, run):
    paths = f"{tiny_translation.checkpoint}:{tiny_multi_query.checkpoint}"
    both = helpers.Trained(tiny_translation.raw, tiny_translation.data, paths)
    run(model=both)
    assert read(run.output) == elseq.load(paths, data=tiny_translation.data).generate(read(source), **SEARCH)
    link = run.output.parent / "link"
    link.symlink_to(tiny_multi_query.checkpoint)
    refused = run("--overwrite", f"--output={link}", model=both, check=False)
    assert refused.stderr.endswith("is an input: give another file\n")


def test_prefixes(tiny_translation, source, run, tmp_path):
    model = elseq.load(tiny_translation.checkpoint, data=tiny_translation.data)
    prefixes = [f"w{number % 20}" * (number % 3 > 0) for number in range(len(read(source)))]
    path = tmp_path / "prefixes"
    path.write_text("".join(f"{line}\n" for line in prefixes))
    run("--prefix-file", path)
    assert read(run.output) == model.generate(read(source), prefixes=prefixes, **SEARCH)
    refused = run("--prefix-file", path, "--overwrite", "--output", path, check=False)
    assert refused.stderr.endswith("prefixes is an input: give another file\n")
    path.write_text("w1\n")
    refused = run("--prefix-file", path, "--overwrite", check=False)
    assert refused.stderr.endswith(
        f"--prefix-file {path} has 1 lines and the input has {len(prefixes)}: give a line for each\n"
    )


def test_constraints(tiny_translation, source, run, tmp_path):
    model = elseq.load(tiny_translation.checkpoint, data=tiny_translation.data)
    texts = [f"{line}\tw{number % 20}" if line.strip() else line for number, line in enumerate(read(source))]
    path = tmp_path / "texts"
    path.write_text("".join(f"{line}\n" for line in texts))
    run("--constraints", input=path)
    found = read(run.output)
    assert found == model.generate(texts, constraints="ordered", **SEARCH)
    assert all(text.split("\t")[1] in line.split() for text, line in zip(texts, found, strict=True) if "\tw" in text)
    run("--constraints=unordered", "--overwrite", "--max-tokens=20", input=path)
    assert read(run.output) == model.generate(texts, constraints="unordered", **SEARCH)


def test_fusion(tiny_translation, fused, source, run, tmp_path):
    data, path = fused
    trained = helpers.Trained(tiny_translation.raw, data, tiny_translation.checkpoint)
    model = elseq.load(trained.checkpoint, data=data, lm_path=path)
    run(f"--lm-path={path}", "--lm-weight=0.5", model=trained)
    assert read(run.output) == model.generate(read(source), lm_weight=0.5, **SEARCH)
    refused = run("--lm-weight=0.5", "--overwrite", model=trained, check=False)
    assert refused.stderr.endswith("--lm-weight 0.5 needs a language model, and none is loaded: name one\n")
    refused = run(f"--lm-path={path}", "--lm-weight=0.5", "--overwrite", f"--output={path}", model=trained, check=False)
    assert refused.stderr.endswith("is an input: give another file\n")


def test_threads(run, expected, monkeypatch, threads):
    """Those of the run, not of the process after it."""
    decode, there = TextGenerator.decode, set()

    def decode_and_look(self, search, sources):
        there.add(torch.get_num_threads())
        return decode(self, search, sources)

    monkeypatch.setattr(TextGenerator, "decode", decode_and_look)
    run("--threads=3")
    assert read(run.output) == expected
    assert (there, torch.get_num_threads()) == ({3}, threads)
    sentence = run("--threads=0", check=False).stderr.splitlines()[-1]
    assert sentence == "elseq: error: --threads '0' is not a whole number above 0"


# --- the standard input and output


def call(monkeypatch, *options):
    monkeypatch.setattr(sys, "argv", ["elseq-generate", *map(str, options)])
    command.main()


def test_standard_output(tiny_translation, source, expected, monkeypatch, capfdbinary):
    options = ["--model", tiny_translation.checkpoint, "--data", tiny_translation.data, *OPTIONS]
    with source.open() as stdin, monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", stdin)
        call(patch, *options)
    assert capfdbinary.readouterr().out.decode() == "".join(f"{line}\n" for line in expected)
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        interrupt_after(patch, 2)
        call(patch, *options, "--input", source, "--max-tokens=40")
    assert stopped.value.code == 130
    captured = capfdbinary.readouterr()
    assert captured.out == b""
    assert b"lines are done and lost, since there is no --output to keep them by" in captured.err


def test_lines_are_written_in_their_turn(tiny_translation, source, expected, monkeypatch, capfdbinary):
    """Here, each before the next is decoded: the first is the longest."""
    lines = sorted(read(source), key=len, reverse=True)
    source.write_text("".join(f"{line}\n" for line in lines))
    whole = elseq.load(tiny_translation.checkpoint, data=tiny_translation.data).generate(lines, **SEARCH)
    assert sorted(whole) == sorted(expected)
    options = ["--model", tiny_translation.checkpoint, "--data", tiny_translation.data, *OPTIONS]
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        interrupt_after(patch, 4)
        call(patch, *options, "--input", source, "--max-tokens=1")
    captured = capfdbinary.readouterr()
    written = captured.out.decode().splitlines()
    assert written == whole[: len(written)] and 1 <= len(written) <= 4
    assert f"lines are done; {len(written)} of them are written, and the others lost, since".encode() in captured.err


def test_nothing_is_left_of_a_run_to_the_standard_output(tiny_translation, source, tmp_path, monkeypatch, capfdbinary):
    """Whatever ends it, SIGKILL too: there is no name to be removed."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    decode, there = TextGenerator.decode, []

    def decode_and_look(self, search, sources):
        there.append(list(temporary.iterdir()) + list(tmp_path.glob("*.partial")))
        return decode(self, search, sources)

    with monkeypatch.context() as patch:
        patch.setattr(TextGenerator, "decode", decode_and_look)
        options = ["--model", tiny_translation.checkpoint, "--data", tiny_translation.data, "--input", source]
        call(patch, *options, "--max-tokens=20")
    assert len(capfdbinary.readouterr().out.splitlines()) == len(read(source))
    assert len(there) > 3 and not any(there)


def test_a_temporary_folder_that_cannot_be_written(tiny_translation, source, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/proc/none")
    options = ["--model", tiny_translation.checkpoint, "--data", tiny_translation.data, "--input", source]
    with pytest.raises(
        elseq.errors.UserError, match="^the temporary folder cannot be written .*: give --output FILE, or "
    ):
        call(monkeypatch, *options)


def test_several_processes_need_files(tiny_translation, source, monkeypatch, tmp_path):
    monkeypatch.setattr(Processes, "of_environment", lambda: Processes(None, 1, 2))
    model = ["--model", tiny_translation.checkpoint]
    with pytest.raises(elseq.errors.UserError, match="cannot share the standard output: give --output FILE"):
        call(monkeypatch, *model, "--input", source)
    monkeypatch.setattr(Processes, "of_environment", lambda: Processes(torch.distributed.HashStore(), 1, 2))
    with pytest.raises(elseq.errors.UserError, match="cannot share the standard input: give --input FILE"):
        call(monkeypatch, *model, "--output", tmp_path / "output")
