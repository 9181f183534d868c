"""What elseq-generate refuses, in one sentence, with nothing left behind."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import torch

from elseq.generator import TextGenerator
from tests import helpers
from tests.generating import read


def test_memory_budgets_that_cannot_be(run, source):
    for budget, sentence in (
        ("much", "'much' is not a size in bytes above 0; give one such as 16G or 800M"),
        ("0", "'0' is not a size"),
        ("1K", f"of {source} alone needs about [0-9.]+ KiB of memory and the budget is 1.0 KiB: raise it"),
    ):
        assert re.search(sentence, run("--memory-budget", budget, check=False).stderr)
    result = run("--memory-budget=1G", "--attention=stock", check=False)
    assert (
        "a memory budget needs a model that elseq decodes by kv or el: give a number of tokens instead" in result.stderr
    )


@pytest.mark.parametrize(
    "content, sentence",
    [
        (b"", "input.txt is empty: give a file with one text per line"),
        (b"w1\nw2\n\xff\n", "line 3 of .*input.txt is not valid UTF-8: convert the file with iconv"),
        (
            b"w1\n" + b"w2 " * 100_000,
            "line 2 of .*input.txt has 100001 tokens and the model takes 64; shorten it or give",
        ),
        (
            b"nothing of this is known\n",
            "100% of the words of .*input.txt are not in the model's dictionary, and no sub",
        ),
    ],
)
def test_bad_lines(run, source, content, sentence):
    source.write_bytes(content)
    result = run(check=False)
    assert result.returncode == 1
    assert re.search(f"elseq: error: .*{sentence}", result.stderr.splitlines()[-1])
    assert not run.output.exists() and not run.journals.exists()


def test_long_lines_can_be_cut(run, source):
    source.write_bytes(b"w1\n" + b"w2 " * 100_000 + b"\n\n" + b"w3 " * 200)
    result = run("--truncate")
    assert "2 of 4 lines were too long and were truncated: 2, 4" in result.stdout
    assert [bool(line) for line in read(run.output)] == [True, True, False, True]


def test_a_prompt_leaves_room(tiny_language_model, run, source):
    source.write_text("w1 " * 60)
    result = run("--min-len=10", check=False, model=tiny_language_model)
    assert f"line 1 of {source} has 61 tokens and the model takes 54; shorten it or give --truncate" in result.stderr
    run("--min-len=10", "--truncate", model=tiny_language_model)
    assert len(read(run.output)[0].split()) == 10


def test_a_minimum_length_that_leaves_no_room(tiny_language_model, run):
    for options in ([], ["--truncate"]):
        result = run("--min-len=64", *options, check=False, model=tiny_language_model)
        assert result.stderr.endswith(
            "elseq: error: --min-len 64 leaves no room for line 1 of "
            f"{run.output.with_name('input.txt')}: the model has 64 positions; lower it\n"
        )


def never(*_, **__):
    pytest.fail("the model was loaded first")


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--input={tmp}/none"], "--input .*none cannot be read .No such file or directory.: check the path"),
        (["--input={tmp}"], "--input .* cannot be read .Is a directory.: check the path"),
        (["--output={tmp}"], "--output .* is a folder: give the name of a file"),
        (["--output={tmp}/none/output"], "--output .*none/output is in a folder that does not exist: make the folder"),
        (["--output={tmp}/input.txt", "--overwrite"], "--output .*input.txt is an input: give another file"),
        (["--output={tmp}/link", "--overwrite"], "--output .*link is an input: give another file"),
        (
            ["--output=/dev/null", "--overwrite"],
            "--output /dev/null is not a regular file: give the name of one, or leave the option out",
        ),
        (["--output={tmp}/pipe", "--overwrite"], "--output .*/pipe is not a regular file: give the name of one"),
        (["--output=/proc/output"], "--output /proc/output cannot be written .*: give another"),
        (["--beam=3", "--sampling-topk=3", "--seed=x"], "--seed x is not possible: give a whole number"),
        (["--max-tokens=0"], "--max-tokens '0' is not a whole number above 0$"),
        (["--nbest=2"], "--nbest 2 needs --format jsonl: text has one hypothesis for each line$"),
        (["--format=jsonl", "--nbest=6"], "--nbest 6 is not between 1 and the beam, .; change either$"),
        (["--with-source"], "--with-source needs --format jsonl: text holds hypotheses only$"),
        (["--with-tokens"], "--with-tokens needs --format jsonl: text holds hypotheses only$"),
        (["--input-field=text"], "--input-field needs --input-format jsonl: a line of text has no fields$"),
        (
            ["--input-format=jsonl"],
            r"line 1 of .*/input.txt is no JSON \(Expecting value at column 1\): give a JSON obje",
        ),
        (["--input-format=json"], "argument --input-format: invalid choice: 'json'"),
        (["--format=json"], "argument --format: invalid choice: 'json'"),
        (["--max-tokens=3", "--memory-budget=1G"], "--memory-budget: not allowed with argument --max-tokens; see"),
        (
            ["--memory-budget=much"],
            "--memory-budget 'much' is not a size in bytes above 0; give one such as 16G or 800M$",
        ),
        (["--attention=fast"], "argument --attention: invalid choice: 'fast'"),
        (["--beam=0"], "--beam 0 is not a whole number above 0; leave it out for the default, 5$"),
        (["--lenpen=nan"], "--lenpen nan is not a finite number$"),
        (["--lenpen=-inf"], "--lenpen -inf is not a finite number$"),
        (["--temperature=nan"], "--temperature nan is not a finite number$"),
        (["--temperature=-1"], "--temperature -1.0 is not a number from 1e-06 to 1e.06; leave it out for"),
        (["--temperature=1e-320"], "--temperature 1e-320 is not a number from 1e-06 to 1e.06; leave it out for the"),
        (["--lenpen=400"], "--lenpen 400.0 is not a number from -10 to 10; leave it out for the default, 1.0$"),
        (
            ["--max-len-a=1e308"],
            "--max-len-a 1e.308 is not a number from 0 to 1e.06; leave it out for the default, 0.0$",
        ),
        (["--unkpen=-1e308"], "--unkpen -1e.308 is not a number from -1e.10 to 1e.10; leave"),
        (
            ["--diverse-beam-groups=5", "--diverse-beam-strength=1e308"],
            "--diverse-beam-strength 1e.308 is not a number",
        ),
        (["--diversity-rate=1e38"], "--diversity-rate 1e.38 is not a number from 0 to 1e.06; leave it out"),
        (["--max-len-b", "9" * 400], "--max-len-b a whole number of 400 digits is too large; lower it$"),
        (["--input=/dev/zero"], "line 1 of /dev/zero has more than 64 MiB: give one text per line$"),
        (["--input=/dev/urandom"], r"line \d+ of /dev/urandom is not valid UTF-8: convert the file with iconv$"),
        (["--sampling", "--sampling-topp=1.5"], "--sampling-topp 1.5 is not a share above 0 and of at most 1; leave"),
        (["--no-repeat-ngram-size", "-3"], "--no-repeat-ngram-size -3 is not 0 or a number above it; leave it out"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_before_the_model_is_loaded(run, tmp_path, monkeypatch, options, sentence):
    monkeypatch.setattr("elseq.text_files.run.load_by", never)
    (tmp_path / "link").symlink_to(tmp_path / "input.txt")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(os.listdir(tmp_path))
    result = run(*[option.format(tmp=tmp_path) for option in options], check=False)
    assert result.returncode == 1
    assert re.match(f"elseq: error: .*{sentence}", result.stderr.splitlines()[-1])
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--model=a.pt:b.pt"], r"checkpoint a.pt cannot be read \(No such file or directory\): check the path$"),
        (["--device=meta"], "--device 'meta' cannot be used; there is cpu"),
        (["--model=none.pt"], "checkpoint none.pt cannot be read .No such file or directory.: check the path"),
        (["--data=/"], "--data / holds no dictionary .dict.*.txt.; name another folder$"),
        (["--device=gpu"], "--device 'gpu' cannot be used; there is cpu"),
        (["--apply-top-k=-1"], "--apply-top-k -1 is not possible: give 1 or more, or 0 for all$"),
        (["--apply-top-k-in=cross"], "--apply-top-k-in cross says where the k largest scores count, and there is no k"),
        (["--apply-top-k=3", "--apply-top-k-in=middle"], "--apply-top-k-in middle is unknown; choose one of encoder"),
        (["--apply-ffn-top-k=3", "--attention=stock"], "--apply-ffn-top-k does not go with stock, fairseq's own"),
        (["--sampling", "--sampling-topk=9999"], "--sampling-topk 9999 is more than the dictionary's"),
        (["--beam=5", "--diverse-beam-groups=2"], "--beam 5 cannot be divided into --diverse-beam-groups 2"),
        (["--source-lang=xx"], "--source-lang xx does not name a dictionary, dict.xx.txt, in "),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_load_refuses(run, options, sentence):
    result = run(*options, check=False)
    assert result.returncode == 1
    assert re.search(f"elseq: error: {sentence}", result.stderr.splitlines()[-1])
    assert not run.journals.exists()


def test_a_model_that_does_not_have_the_method(tiny_translation, run, tmp_path):
    state = torch.load(tiny_translation.checkpoint)
    state["cfg"]["model"].no_cross_attention = state["cfg"]["model"].cross_self_attention = True
    torch.save(state, tmp_path / "other.pt")
    other = helpers.Trained(tiny_translation.raw, tiny_translation.data, tmp_path / "other.pt")
    sentence = run("--attention=el", check=False, model=other).stderr.splitlines()[-1]
    assert re.fullmatch(
        "elseq: error: --attention el cannot decode this model, because it uses .*; use stock", sentence
    )


def test_what_load_finds_missing(tiny_translation, run, tmp_path):
    """It is asked for by the names of options."""
    state = torch.load(tiny_translation.checkpoint)
    state["cfg"]["task"]["data"] = str(tmp_path / "gone")
    torch.save(state, tmp_path / "model.pt")
    without = ["elseq-generate", "--model", tmp_path / "model.pt", "--input", tmp_path / "input.txt"]
    sentence = helpers.run_here(without, check=False).stderr.splitlines()[-1]
    assert re.fullmatch(
        r"elseq: error: --data is missing, and no dictionary \(dict\*.txt\) was found in .*; name its folder", sentence
    )
    state["cfg"]["task"] |= {"source_lang": None, "target_lang": None}
    torch.save(state, tmp_path / "model.pt")
    for name in ("dict.de.txt", "dict.en.txt"):
        (tmp_path / name).write_text(f"{name} 1\n")
    sentence = helpers.run_here(without, check=False).stderr.splitlines()[-1]
    assert re.fullmatch(
        "elseq: error: --source-lang is missing, and which of dict.de.txt, .* is the source's .*", sentence
    )
    for name in ("dict.de.txt", "dict.en.txt"):
        shutil.copy(tiny_translation.data / "dict.src.txt", tmp_path / name)
    for name in ("one.model", "two.model"):
        (tmp_path / name).write_text("")
    sentence = helpers.run_here(without, check=False).stderr.splitlines()[-1]
    assert re.fullmatch("elseq: error: --data .* holds several sentencepiece models; leave one .*", sentence)


@pytest.mark.parametrize("options", [[], pytest.param(["--overwrite"], marks=pytest.mark.slow)])
def test_the_standard_output_by_its_name(tiny_translation, source, options):
    """A pipe, of whose name the system knows another."""
    command = ["elseq-generate", "--model", tiny_translation.checkpoint, "--input", source, "--output", "/dev/stdout"]
    sentence = helpers.run([*command, *options]).stderr.decode().splitlines()[-1]
    assert sentence == (
        "elseq: error: --output /dev/stdout is not a regular file: give the name of one, or leave the option out"
    )


def test_a_dictionary_of_another_model(tiny_translation, run, tmp_path):
    data = shutil.copytree(tiny_translation.data, tmp_path / "data")
    for path in data.glob("dict.*.txt"):
        path.write_text(path.read_text() + "more 1\n")
    other = helpers.Trained(tiny_translation.raw, data, tiny_translation.checkpoint)
    sentence = run(check=False, model=other).stderr.splitlines()[-1]
    assert re.search(
        r"was trained with a dictionary of \d+ entries, the data has one of \d+: use the checkpoint's", sentence
    )


def test_half_a_subword_vocabulary(tiny_translation, run, tmp_path):
    data = shutil.copytree(tiny_translation.data, tmp_path / "data")
    (data / "encoder.json").write_text("{}")
    other = helpers.Trained(tiny_translation.raw, data, tiny_translation.checkpoint)
    sentence = run(check=False, model=other).stderr.splitlines()[-1]
    assert sentence == (
        f"elseq: error: {data} has encoder.json but no vocab.bpe; the subwords need both: copy it there"
    )


@pytest.mark.parametrize("kind", ["subword_nmt", "fastbpe"])
def test_codes_beside_the_model(tiny_translation, run, source, tmp_path, kind):
    """The sentence says which option applies them, and that option does."""
    pytest.importorskip("subword_nmt")
    data = shutil.copytree(tiny_translation.data, tmp_path / "data")
    for path in data.glob("dict.*.txt"):  # the words w0 to w19 become pieces: "w" and what follows
        path.write_text(re.sub(r"^w(?=\d)", "w@@", path.read_text(), flags=re.MULTILINE))
    count = " 1" if kind == "fastbpe" else ""
    (data / "bpecodes").write_text("".join(f"{pair}{count}\n" for pair in ("w@@ 1", "1 0</w>", "1 1</w>")))
    other = helpers.Trained(tiny_translation.raw, data, tiny_translation.checkpoint)
    sentence = run("--data", data, check=False, model=other).stderr.splitlines()[-1]
    codes = data / "bpecodes"
    assert sentence.endswith(
        f"are not in the model's dictionary, which has the pieces that the codes in {codes} make: give --bpe {kind} "
        f"--bpe-codes {codes}"
    )
    sentence = run(f"--bpe={kind}", check=False).stderr.splitlines()[-1]
    assert sentence == f"elseq: error: --bpe-codes is missing: name the file of the codes of {kind}"


@pytest.fixture
def folder(tiny_translation, tmp_path):
    """A model with its dictionaries."""
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(tiny_translation.checkpoint, folder / "model.pt")
    for path in tiny_translation.data.glob("dict.*.txt"):
        shutil.copy(path, folder)
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "second").hardlink_to(folder / "dict.src.txt")
    return folder


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    "output",
    [
        "model/model.pt",
        "model/dict.src.txt",
        "model/dict.tgt.txt",
        "link/model.pt",
        "second",
        "model/../model/model.pt",
    ],
)
@pytest.mark.parametrize("data", [[], ["--data={tmp}/model"], ["--data={tmp}/link"]], ids=["beside", "named", "link"])
def test_the_model_is_no_output(folder, source, tmp_path, monkeypatch, output, data):
    monkeypatch.setattr("elseq.text_files.run.load_by", never)
    before = contents(tmp_path)
    command = ["elseq-generate", "--model", folder / "model.pt", "--input", source, "--overwrite"]
    command += [option.format(tmp=tmp_path) for option in data]
    result = helpers.run_here([*command, "--output", tmp_path / output], check=False)
    assert result.returncode == 1
    assert result.stderr.endswith(f"elseq: error: --output {tmp_path / output} is an input: give another file\n")
    assert contents(tmp_path) == before


@pytest.fixture
def plugin():
    """The name of a plugin; what importing it has left goes."""
    name = "a_plugin_that_is_read"
    yield name
    sys.modules.pop(name, None)


@pytest.mark.parametrize("command", ["elseq-generate", "heads", "to-fairseq"])
def test_a_plugin_is_no_output(folder, source, tmp_path, plugin, command):
    (tmp_path / plugin / "more").mkdir(parents=True)
    for name in ("__init__.py", "more/__init__.py"):
        (tmp_path / plugin / name).write_text("")
    before = contents(tmp_path)
    options = ["--user-dir", tmp_path / plugin, "--overwrite", "--output", tmp_path / plugin / "more" / "__init__.py"]
    if command == "elseq-generate":
        options += ["--model", folder / "model.pt", "--input", source]
    else:
        options = ["elseq-convert", command, folder / "model.pt", *options]
        options += ["--num-kv-heads=1"] if command == "heads" else []
    result = helpers.run_here(options if options[0] == "elseq-convert" else [command, *options], check=False)
    assert result.stderr.endswith("__init__.py is an input: give another file\n")
    assert {path: text for path, text in contents(tmp_path).items() if path.suffix != ".pyc"} == before


def test_the_codes_are_no_output(folder, source, tmp_path):
    path = tmp_path / "pairs"
    path.write_text("w 1</w>\n")
    command = ["elseq-generate", "--model", folder / "model.pt", "--input", source, "--overwrite"]
    command += ["--bpe=subword_nmt", "--bpe-codes", path, "--output", path]
    result = helpers.run_here(command, check=False)
    assert result.stderr.endswith("pairs is an input: give another file\n")
    assert path.read_text() == "w 1</w>\n"


def test_the_dictionaries_of_the_training_are_no_output(tiny_translation, folder, source, tmp_path):
    """Their folder is in the checkpoint alone."""
    state = torch.load(tiny_translation.checkpoint)
    state["cfg"]["task"]["data"] = str(folder)
    torch.save(state, tmp_path / "alone.pt")
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "alone.pt", tmp_path / "elsewhere")
    before = contents(tmp_path)
    command = ["elseq-generate", "--model", tmp_path / "elsewhere" / "alone.pt", "--input", source, "--overwrite"]
    result = helpers.run_here([*command, "--output", folder / "dict.src.txt"], check=False)
    assert result.stderr.endswith("dict.src.txt is an input: give another file\n")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["0.journal", "output", "text"])
def test_an_input_among_the_finished_lines(run, source, name):
    run.journals.mkdir()
    moved = run.journals / name
    source.rename(moved)
    before = contents(run.journals)
    result = run("--overwrite", check=False, input=moved)
    assert result.stderr.endswith(
        f"elseq: error: {moved} is in {run.journals}, where finished lines are kept: move it\n"
    )
    assert contents(run.journals) == before


@pytest.mark.parametrize("name", ["0.journal", "output", "3.journal"])
def test_a_link_among_the_finished_lines(run, tmp_path, name):
    victim = tmp_path / "victim"
    victim.write_text("precious\n")
    run.journals.mkdir()
    (run.journals / name).symlink_to(victim)
    result = run("--overwrite", check=False)
    assert result.stderr.endswith(
        f"elseq: error: {run.journals / name} is a link, a folder or a pipe, and not a file with one name: remove it, "
        "or give another --output\n"
    )
    assert victim.read_text() == "precious\n"


def test_an_output_that_came_to_be_meanwhile(run, expected_lines, monkeypatch):
    decode = TextGenerator.decode

    def decode_and_write(self, search, sources):
        run.output.write_text("precious\n")
        return decode(self, search, sources)

    with monkeypatch.context() as patch:
        patch.setattr(TextGenerator, "decode", decode_and_write)
        result = run(check=False)
    assert result.stderr.endswith(f"{run.output} exists already: give another --output, or --overwrite\n")
    assert run.output.read_text() == "precious\n"
    run("--overwrite")
    assert len(read(run.output)) == expected_lines


@pytest.fixture
def expected_lines(source):
    return len(read(source))


def test_the_standard_output_is_no_input(tiny_translation, source):
    before = source.read_bytes()
    with source.open("ab") as output:
        command = [shutil.which("elseq-generate", path=os.path.dirname(sys.executable)), "--model"]
        command += [tiny_translation.checkpoint, "--data", tiny_translation.data, "--input", source]
        ended = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stderr) == (1, "elseq: error: the standard output is an input: give another file\n")
    assert source.read_bytes() == before


def test_a_pipe_is_an_input(tiny_translation, run, source):
    """As the shell makes of <(command)."""
    read_end, write_end = os.pipe()
    os.write(write_end, source.read_bytes())
    os.close(write_end)
    run(input=f"/dev/fd/{read_end}")
    os.close(read_end)
    assert len(read(run.output)) == len(read(source))
