"""elseq-generate on the tiny checkpoints: the lines of `elseq.load(...).generate`, whatever happens on the way."""

import contextlib
import gzip
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import elseq
from elseq.benchmark.models import random_model
from elseq.cli import generate as command
from elseq.generator import TextGenerator
from elseq.lines.journal import Journal, read_records
from tests import helpers

DATA = Path(os.environ.get("ELSEQ_DATA", Path(__file__).parents[3] / "shared" / "data"))
SEARCH = {"beam": 3, "max_len_b": 20, "lenpen": 1.5}
OPTIONS = [f"--{name.replace('_', '-')}={value}" for name, value in SEARCH.items()]


@pytest.fixture(params=["translation", "bart", "language_model", "multi_query"])
def trained(request):
    return request.getfixturevalue(f"tiny_{request.param}")


def texts_of(trained):
    lines = (trained.raw / "test.src").read_text().split("\n")[:-1]
    return [*lines[:3], "", *lines[3:], "  \t"]


@pytest.fixture
def source(tiny_translation, tmp_path):
    """Lines in a file, blank ones among them."""
    path = tmp_path / "input.txt"
    path.write_text("".join(f"{line}\n" for line in texts_of(tiny_translation)))
    return path


def arguments(trained, source, output, *options):
    files = ["--input", source, "--output", output]
    return ["elseq-generate", "--model", trained.checkpoint, "--data", trained.data, *files, *OPTIONS, *options]


@pytest.fixture
def run(tiny_translation, source, tmp_path):
    """Run the command; returns what came of it. The output is tmp_path/output.txt."""

    def run(*options, check=True, model=tiny_translation, input=source):
        return helpers.run_here(arguments(model, input, tmp_path / "output.txt", *options), check=check)

    run.output = tmp_path / "output.txt"
    run.journals = tmp_path / "output.txt.partial"
    return run


def read(path):
    lines = path.read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""
    return lines


@pytest.fixture(scope="module")
def expected(tiny_translation):
    """What the tiny translation model makes of `source`."""
    model = elseq.load(tiny_translation.checkpoint, data=tiny_translation.data)
    return model.generate(texts_of(tiny_translation), **SEARCH)


@pytest.mark.parametrize("attention", ["auto", "kv", "el", "stock"])
def test_the_lines_of_load(trained, source, run, attention):
    model = elseq.load(trained.checkpoint, data=trained.data, attention=attention)
    lines = source.read_text().split("\n")[:-1]
    run(f"--attention={attention}", "--max-tokens=64", model=trained)
    assert read(run.output) == model.generate(lines, max_tokens=64, **SEARCH)
    assert not run.journals.exists()


def test_batches_make_no_difference(trained, run):
    outputs = []
    for batches in ("--max-tokens=1", "--max-tokens=40", "--max-tokens=100000", "--memory-budget=200K"):
        run(batches, "--overwrite", model=trained)
        outputs.append(run.output.read_bytes())
    assert len(set(outputs)) == 1
    assert len(outputs[0]) > 200


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


# --- interrupted, and going on


def cut_at_random(path, draw):
    os.truncate(path, draw.randint(0, path.stat().st_size))


def interrupt_after(monkeypatch, batches, error=KeyboardInterrupt):
    """Let the model raise an error once it has decoded so many batches."""
    decode = TextGenerator._decode
    calls = []

    def interrupted(self, search, sources):
        calls.append(len(sources))
        if len(calls) > batches:
            raise error
        return decode(self, search, sources)

    monkeypatch.setattr(TextGenerator, "_decode", interrupted)
    return calls


def test_an_interrupted_run_goes_on(run, expected, source):
    options = ["--max-tokens=40"]
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, 4)
        result = run(*options, check=False)
    assert result.returncode == 130
    [sentence] = re.findall("^elseq: interrupted.*", result.stderr, re.MULTILINE)
    done = int(re.fullmatch(rf"elseq: interrupted: (\d+) of {len(expected)} lines are done; the same .*", sentence)[1])
    assert 2 < done < len(expected)
    assert "Traceback" not in result.stderr
    assert not run.output.exists()
    with pytest.MonkeyPatch.context() as patch:
        calls = interrupt_after(patch, 1000)
        run(*options)
    assert sum(calls) == len(expected) - done
    assert read(run.output) == expected
    assert not run.journals.exists()


@pytest.mark.parametrize("seed", range(6))
def test_cut_off_anywhere(run, expected, monkeypatch, seed):
    """As a process leaves its journal that was killed while it wrote, time and again."""
    draw = random.Random(seed)
    monkeypatch.setattr(Journal, "publish", lambda self, blank: sys.exit(9))  # dies with everything finished
    assert run("--max-tokens=40", check=False).returncode == 9
    for _ in range(3):
        cut_at_random(run.journals / "0.journal", draw)
        (run.journals / "1.journal").write_bytes((run.journals / "0.journal").read_bytes())
        cut_at_random(run.journals / "1.journal", draw)  # that of another process, which has finished the same
        assert run("--max-tokens=40", check=False).returncode == 9
    monkeypatch.undo()
    run("--max-tokens=40")
    assert read(run.output) == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed(tiny_translation, source, run, expected):
    """By SIGKILL, three times, when some more is finished; the fourth run finds its way."""
    for kill in range(3):
        child = os.fork()
        if not child:
            try:
                torch.set_num_threads(1)
                run("--max-tokens=12", "--attention=kv")
            finally:
                os._exit(0)
        journal = run.journals / "0.journal"
        deadline = time.monotonic() + 60
        while not (journal.exists() and len(read_records(journal.read_bytes())[0]) > 4 * (kill + 1)):
            assert time.monotonic() < deadline
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert not run.output.exists()
    with pytest.MonkeyPatch.context() as patch:
        calls = interrupt_after(patch, 1000)
        run("--max-tokens=12", "--attention=kv")
    assert 0 < sum(calls) < 12
    assert read(run.output) == expected


def test_killed_between_output_and_tidying(run, expected, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("elseq.lines.journal.Journal._tidy", lambda journal: None)
        run()
    assert run.output.exists() and run.journals.exists()
    run()
    assert read(run.output) == expected
    assert not run.journals.exists()


def test_what_somebody_put_beside_the_journals_stays(run, expected):
    run.journals.mkdir()
    (run.journals / "README").write_text("mine")
    run()
    assert read(run.output) == expected
    assert [path.name for path in run.journals.iterdir()] == ["README"]


def test_sampling_is_reproducible(tiny_translation, run, source):
    options = ["--sampling", "--temperature=2", "--max-tokens=40", "--overwrite"]
    run(*options, "--seed=5")
    whole = read(run.output)
    model = elseq.load(tiny_translation.checkpoint, data=tiny_translation.data)
    search = {**SEARCH, "sampling": True, "temperature": 2.0}
    assert whole == model.generate(read(source), max_tokens=40, seed=5, **search)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, 5)
        run(*options, "--seed=5", check=False)
    run(*options, "--seed=5")
    assert read(run.output) == whole
    run(*options, "--seed=6")
    assert read(run.output) != whole


def test_what_another_command_has_begun(run, expected, source):
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, 4)
        run("--max-tokens=40", check=False)
    result = run("--max-tokens=50", "--min-len=2", "--truncate", check=False)
    assert result.stderr.endswith(
        f"elseq: error: {run.journals} holds finished lines of another run, in which --max-tokens was 40 and not 50, "
        "--truncate was left out and not given, --min-len was 1 and not 2: give the options of that run to go on, or "
        "--overwrite to begin anew\n"
    )
    source.write_text(source.read_text().replace("w3", "w4"))
    assert "in which the input was another: " in run("--max-tokens=40", check=False).stderr
    run("--overwrite")
    assert len(read(run.output)) == len(expected)


def test_another_model_or_dictionary(tiny_translation, run, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, 2)
        run("--max-tokens=40", check=False)
    state = torch.load(tiny_translation.checkpoint)
    state["model"]["decoder.layers.0.fc1.bias"] += 1
    torch.save(state, tmp_path / "other.pt")
    other = helpers.Trained(tiny_translation.raw, tiny_translation.data, tmp_path / "other.pt")
    assert "in which the model was another: " in run("--max-tokens=40", check=False, model=other).stderr
    data = shutil.copytree(tiny_translation.data, tmp_path / "data")
    for path in data.glob("dict.*.txt"):
        first, second, *rest = path.read_text().split("\n")
        path.write_text("\n".join([second, first, *rest]))
    other = helpers.Trained(tiny_translation.raw, data, tiny_translation.checkpoint)
    assert "in which the dictionaries were others: " in run("--max-tokens=40", check=False, model=other).stderr


def test_an_output_that_is_there(run, expected):
    run.output.write_text("precious\n")
    result = run(check=False)
    sentence = f"elseq: error: {run.output} exists already: give another --output, or --overwrite\n"
    assert result.stderr.endswith(sentence)
    assert run.output.read_text() == "precious\n"
    assert not run.journals.exists()
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, 2)
        assert run("--overwrite", "--max-tokens=40", check=False).returncode == 130
    assert run.output.read_text() == "precious\n"
    assert "exists already" in run("--max-tokens=40", check=False).stderr
    run("--overwrite", "--max-tokens=40")
    assert read(run.output) == expected


def test_two_runs_at_a_time(run):
    with pytest.MonkeyPatch.context() as patch:
        second = []

        def decode(self, search, sources):
            second.append(run(check=False))
            raise KeyboardInterrupt

        patch.setattr(TextGenerator, "_decode", decode)
        run(check=False)
    assert second[0].returncode == 1
    assert "is being made by another elseq-generate" in second[0].stderr


def test_several_processes_and_then_one(tiny_translation, run, expected, source):
    """The journals of three, one of them torn, are taken up by one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "publish", lambda self, blank: sys.exit(9))
        run("--max-tokens=40", check=False)
    whole = (run.journals / "0.journal").read_bytes()
    records, _ = read_records(whole)
    starts = [0, *(record.stop for record in records)]
    pieces = [whole[start:stop] for start, stop in zip(starts, starts[1:], strict=False)]
    header, finished = pieces[0], pieces[1:]
    for rank in range(3):
        content = header + b"".join(finished[rank::4])
        (run.journals / f"{rank}.journal").write_bytes(content[:-3] if rank == 2 else content)
    with pytest.MonkeyPatch.context() as patch:
        calls = interrupt_after(patch, 1000)
        run("--max-tokens=40")
    assert 0 < len(calls) < len(finished)
    assert read(run.output) == expected


# --- memory


@pytest.mark.parametrize("seed", range(3))
def test_memory_that_is_short_now_and_then(run, expected, monkeypatch, seed):
    draw = random.Random(seed)
    decode = TextGenerator._decode
    failures = []

    def short(self, search, sources):
        if len(sources) > 1 and (not failures or draw.random() < 0.5):
            failures.append(len(sources))
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return decode(self, search, sources)

    monkeypatch.setattr(TextGenerator, "_decode", short)
    log = run("--max-tokens=100").stdout
    assert f"out of memory with {failures[0]} sentences at once: going on with " in log
    assert read(run.output) == expected


def test_a_line_that_does_not_fit_the_memory(run, expected, source):
    shortest = min(len(line.split()) for line in read(source) if line.strip())
    number = next(n for n, line in enumerate(read(source), start=1) if len(line.split()) == shortest)
    decode = TextGenerator._decode

    def short(self, search, sources):
        if any(source.numel() == shortest + 1 for source in sources):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return decode(self, search, sources)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextGenerator, "_decode", short)
        result = run("--max-tokens=40", check=False)
    sentence = result.stderr.splitlines()[-1]
    assert sentence.startswith(f"elseq: error: line {number} of {source} does not fit the memory, even alone ")
    with pytest.MonkeyPatch.context() as patch:
        calls = interrupt_after(patch, 1000)
        run("--max-tokens=40")
    assert sum(calls) == sum(len(line.split()) == shortest for line in read(source))
    assert read(run.output) == expected


def test_memory_budgets_that_cannot_be(run, source):
    for budget, sentence in (
        ("much", "'much' is not a size in bytes; give one such as 16G or 800M"),
        ("0", "'0' is not a size"),
        ("1K", f"of {source} alone needs about [0-9.]+ KiB of memory and the budget is 1.0 KiB: raise it"),
    ):
        assert re.search(sentence, run("--memory-budget", budget, check=False).stderr)
    result = run("--memory-budget=1G", "--attention=stock", check=False)
    assert (
        "a memory budget needs a model that elseq decodes by kv or el: give a number of tokens instead" in result.stderr
    )


# --- bad input


@pytest.mark.parametrize(
    "content, sentence",
    [
        (b"", "input.txt is empty: give a file with one text a line"),
        (b"w1\nw2\n\xff\n", "line 3 of .*input.txt is not valid UTF-8: convert the file with iconv"),
        (
            b"w1\n" + b"w2 " * 100_000,
            "line 2 of .*input.txt has 100001 tokens and the model takes 63; shorten it or give",
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
    assert "2 of 4 lines were too long and were truncated" in result.stdout
    assert [bool(line) for line in read(run.output)] == [True, True, False, True]


def test_a_prompt_leaves_room(tiny_language_model, run, source):
    source.write_text("w1 " * 60)
    result = run("--min-len=10", check=False, model=tiny_language_model)
    assert f"line 1 of {source} has 61 tokens and the model takes 54; shorten it or give --truncate" in result.stderr
    run("--min-len=10", "--truncate", model=tiny_language_model)
    assert len(read(run.output)[0].split()) == 10


def never(*_, **__):
    pytest.fail("the model was loaded first")


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--input={tmp}/none"], "--input .*none cannot be read .No such file or directory.: check the path"),
        (["--input={tmp}"], "--input .* cannot be read .Is a directory.: check the path"),
        (["--output={tmp}"], "--output .* is a folder: give the name of a file"),
        (["--output={tmp}/none/output"], "--output .*none/output is in a folder that does not exist: make the folder"),
        (["--output={tmp}/input.txt", "--overwrite"], "--output .*input.txt is the input: give another file"),
        (["--output={tmp}/link", "--overwrite"], "--output .*input.txt is the input: give another file"),
        (["--output=/dev/null", "--overwrite"], "--output /dev/null is no ordinary file: leave the option out"),
        (["--output=/proc/output"], "--output /proc/output cannot be written .*: give another"),
        (["--beam=3", "--sampling-topk=3", "--seed=x"], "invalid int value"),
        (["--max-tokens=0"], "'0' is not a whole number above 0"),
        (["--nbest=2"], "unrecognized arguments: --nbest=2"),
        (["--max-tokens=3", "--memory-budget=1G"], "not allowed with argument"),
        (["--languages=de"], "'de' is not two languages with a comma between them"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_before_the_model_is_loaded(run, tmp_path, monkeypatch, options, sentence):
    monkeypatch.setattr("elseq.lines.run.load", never)
    (tmp_path / "link").symlink_to(tmp_path / "input.txt")
    before = sorted(os.listdir(tmp_path))
    result = run(*[option.format(tmp=tmp_path) for option in options], check=False)
    assert result.returncode in (1, 2)
    assert re.search(sentence, result.stderr.splitlines()[-1])
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--model=none.pt"], "checkpoint none.pt cannot be read .No such file or directory.: check the path"),
        (["--data=/"], "no dictionary .dict.*.txt. was found in /"),
        (["--device=gpu"], "device='gpu' cannot be used; there is cpu"),
        (["--beam=5", "--diverse-beam-groups=2"], "--beam 5 cannot be divided into --diverse-beam-groups 2"),
        (["--languages=xx,yy"], "does not name two dictionaries"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_load_refuses(run, options, sentence):
    result = run(*options, check=False)
    assert result.returncode == 1
    assert re.search(f"elseq: error: .*{sentence}", result.stderr.splitlines()[-1])
    assert not run.journals.exists()


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


def test_several_processes_need_files(tiny_translation, source, monkeypatch, tmp_path):
    monkeypatch.setattr(command.Processes, "of_environment", lambda: command.Processes(None, 1, 2))
    model = ["--model", tiny_translation.checkpoint]
    with pytest.raises(elseq.errors.UserError, match="cannot share the standard output: give --output FILE"):
        call(monkeypatch, *model, "--input", source)
    monkeypatch.setattr(
        command.Processes, "of_environment", lambda: command.Processes(torch.distributed.HashStore(), 1, 2)
    )
    with pytest.raises(elseq.errors.UserError, match="cannot share the standard input: give --input FILE"):
        call(monkeypatch, *model, "--output", tmp_path / "output")


# --- real processes


def start(options):
    program = Path(sys.executable).parent / options[0]
    return subprocess.Popen(
        [program, *map(str, options[1:])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # some shells ignore it for jobs
    )


def finished_lines(journals):
    records = 0
    for path in journals.glob("*.journal"):
        records += max(0, len(read_records(path.read_bytes())[0]) - 1)
    return records


def wait_until(condition, process, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.001)


def by_torchrun(processes, options, *launcher, program=Path(sys.executable).parent / "elseq-generate"):
    return ["torchrun", "--standalone", "--nproc-per-node", processes, *launcher, program, *options[1:]]


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_signals(tiny_translation, source, run, expected, stop):
    source.write_text(source.read_text() * 40)
    options = arguments(tiny_translation, source, run.output, "--max-tokens=1")
    process = start(options)
    wait_until(lambda: finished_lines(run.journals) > 20, process)
    process.send_signal(stop)
    stdout, stderr = process.communicate()
    assert process.returncode == 128 + stop
    assert re.search(r"elseq: interrupted: \d+ of 920 lines are done; the same command goes on from there\n", stderr)
    assert "Traceback" not in stderr
    run("--max-tokens=1")
    assert read(run.output) == expected * 40


@pytest.mark.slow
def test_two_processes(tiny_translation, source, run, expected):
    options = arguments(tiny_translation, source, run.output, "--max-tokens=40")
    result = helpers.run(by_torchrun(2, options))
    assert result.returncode == 0, result.stderr
    assert read(run.output) == expected
    assert not run.journals.exists()

    result = helpers.run(by_torchrun(2, options))
    assert result.returncode != 0
    assert result.stderr.decode().count("exists already") == 1

    run.output.unlink()
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, 4)
        run("--max-tokens=40", check=False)
    assert helpers.run(by_torchrun(3, options)).returncode == 0
    assert read(run.output) == expected


FAILING = """
import os, time
from elseq.cli.generate import main
from elseq.errors import UserError
from elseq.generator import TextGenerator

decode = TextGenerator._decode

def failing(self, search, sources):
    time.sleep(0.2)
    if os.environ["RANK"] == "1":
        raise UserError("this one cannot go on")
    return decode(self, search, sources)

TextGenerator._decode = failing
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("restarts", [0, 1])
def test_one_of_two_processes_fails(tiny_translation, source, run, expected, tmp_path, restarts):
    source.write_text(source.read_text() * 10)
    script = tmp_path / "failing.py"
    script.write_text(FAILING)
    options = arguments(tiny_translation, source, run.output, "--max-tokens=1")
    result = helpers.run(by_torchrun(2, options, "--max-restarts", restarts, program=script))
    stderr = result.stderr.decode()
    assert result.returncode != 0
    assert stderr.count("elseq: error: this one cannot go on") == restarts + 1
    # The other one is told by the first, or ended by torchrun.
    assert re.search("process 1 of 2 has ended with an error, so process 0 ends too|interrupted: \\d+ of", stderr)
    assert run.journals.exists() and not run.output.exists()
    run("--max-tokens=1")
    assert read(run.output) == expected * 10


@pytest.mark.slow
@pytest.mark.skipif(not DATA.exists(), reason="no ELSEQ_DATA with cnndm and gpt2_bpe")
def test_killed_twenty_times_over_news(tmp_path):
    """A small model with random weights, articles in GPT-2's subwords; one process and two, in turn."""
    sizes = {"layers": 1, "embed-dim": 32, "ffn-embed-dim": 32, "attention-heads": 2}
    options = [f"--{side}-{name}={size}" for side in ("encoder", "decoder") for name, size in sizes.items()]
    options += ["--share-all-embeddings", "--max-source-positions=600"]
    random_model("transformer", 50264, options, tmp_path)
    for name in ("dict.txt", "encoder.json", "vocab.bpe"):
        shutil.copy(DATA / "gpt2_bpe" / name, tmp_path / name)
    with gzip.open(DATA / "cnndm" / "train.jsonl.gz", "rt") as articles:
        lines = [" ".join(json.loads(line)["article"].split()) for line in articles]
    (tmp_path / "articles").write_text("".join(f"{line}\n" for line in [*lines[:150], "", *lines[150:]]))

    def options_for(output):
        files = ["--input", tmp_path / "articles", "--output", tmp_path / output, "--truncate"]
        search = ["--beam=2", "--min-len=10", "--max-len-b=10", "--max-tokens=600"]
        return ["elseq-generate", "--model", tmp_path / "random.pt", *files, *search]

    assert helpers.run(options_for("whole")).returncode == 0
    draw = random.Random(1)
    for kill in range(20):
        options = options_for("killed")
        process = start(options if kill % 3 else by_torchrun(2, options))
        journals = tmp_path / "killed.partial"
        enough = finished_lines(journals) + draw.randint(1, 5)
        wait_until(lambda: finished_lines(journals) >= enough, process)  # noqa: B023
        time.sleep(draw.random() / 20)
        for child in [*descendants(process.pid), process.pid]:
            with contextlib.suppress(ProcessLookupError):  # torchrun ends one when another is gone
                os.kill(child, signal.SIGKILL)
        process.communicate()
    assert not (tmp_path / "killed").exists()
    result = helpers.run(options_for("killed"))
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "killed").read_bytes() == (tmp_path / "whole").read_bytes()
    assert len(read(tmp_path / "whole")) == 300


def descendants(parent):
    """Process ids, the children's own children included."""
    found = []
    for path in Path(f"/proc/{parent}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            found += [child, *descendants(child)]
    return found
