"""elseq-generate in processes that are stopped, killed, or are several."""

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

from elseq.benchmark.models import random_model
from elseq.text_files.journal import read_records
from tests import helpers
from tests.generating import arguments, finished_lines, interrupt_after, read


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


def wait_until(condition, process, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.001)


def by_torchrun(processes, options, *launcher, program=Path(sys.executable).parent / "elseq-generate"):
    return ["torchrun", "--standalone", "--nproc-per-node", processes, *launcher, program, *options[1:]]


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU])
def test_signals(tiny_translation, source, run, expected, stop):
    source.write_text(source.read_text() * 40)
    options = arguments(tiny_translation, source, run.output, "--max-tokens=1")
    process = start(options)
    wait_until(lambda: finished_lines(run.journals) > 20, process)
    process.send_signal(stop)
    stdout, stderr = process.communicate()
    assert process.returncode == 128 + stop
    assert re.search(r"elseq: interrupted: \d+ of 920 lines are done; repeat the same command to continue\n", stderr)
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

decode = TextGenerator.decode

def failing(self, search, sources):
    time.sleep(0.2)
    if os.environ["RANK"] == "1":
        raise UserError("this one cannot go on")
    return decode(self, search, sources)

TextGenerator.decode = failing
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
@pytest.mark.skipif(not helpers.DATA.exists(), reason="no ELSEQ_DATA with cnndm and gpt2_bpe")
def test_killed_twenty_times_over_news(tmp_path):
    """A small model with random weights, articles in GPT-2's subwords; one process and two, in turn."""
    sizes = {"layers": 1, "embed-dim": 32, "ffn-embed-dim": 32, "attention-heads": 2}
    options = [f"--{side}-{name}={size}" for side in ("encoder", "decoder") for name, size in sizes.items()]
    options += ["--share-all-embeddings", "--max-source-positions=600"]
    random_model("transformer", 50264, options, tmp_path)
    for name in ("dict.txt", "encoder.json", "vocab.bpe"):
        shutil.copy(helpers.DATA / "gpt2_bpe" / name, tmp_path / name)
    with gzip.open(helpers.DATA / "cnndm" / "train.jsonl.gz", "rt") as articles:
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


LINES = 100_000


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_killed_over_many_json_lines(tmp_path):
    """The memory does not grow with the lines that are done, and the lines keep their order."""
    sizes = {"layers": 1, "embed-dim": 16, "ffn-embed-dim": 16, "attention-heads": 2}
    options = [f"--{side}-{name}={size}" for side in ("encoder", "decoder") for name, size in sizes.items()]
    random_model("transformer", 100, [*options, "--share-all-embeddings"], tmp_path)
    draw = random.Random(1)
    with (tmp_path / "input.jsonl").open("w") as file:
        for index in range(LINES):
            # Of nearly the same length, so that a batch at the end has as many lines as one at the beginning.
            text = " ".join(f"piece{draw.randrange(96)}" for _ in range(draw.choice((0, 8, 9, 9))))
            print(json.dumps({"key": f"k{index}", "text": text, "more": [index, "é\n"]}), file=file)

    def options_for(output):
        files = ["--input", tmp_path / "input.jsonl", "--output", tmp_path / output, "--format=jsonl", "--with-source"]
        search = ["--with-tokens", "--beam=2", "--nbest=2", "--max-len-b=4", "--max-tokens=4000", "--attention=kv"]
        return ["elseq-generate", "--model", tmp_path / "random.pt", *files, *search]

    process, journals, memory = start(options_for("whole")), tmp_path / "whole.partial", []
    while process.poll() is None:
        with contextlib.suppress(OSError, AttributeError):  # it ends meanwhile
            written = (journals / "0.journal").stat().st_size
            memory.append((written, anonymous_bytes(process.pid)))
        time.sleep(0.05)
    assert process.returncode == 0, process.stderr.read()
    whole = (tmp_path / "whole").read_bytes()
    early = max(size for written, size in memory if written <= len(whole) / 10)
    assert max(size for _, size in memory) < early + len(whole) / 2  # what an allocator loses is less

    with (tmp_path / "input.jsonl").open() as lines, (tmp_path / "whole").open() as outputs:
        for index, (line, output) in enumerate(zip(lines, outputs, strict=True)):
            record, found = json.loads(line), json.loads(output)
            assert list(found) == ["id", "key", "more", "source", "hypotheses"]
            assert (found["id"], found["source"]) == (index, record["text"])
            assert (found["key"], found["more"]) == (record["key"], record["more"])
            assert len(found["hypotheses"]) == (2 if record["text"] else 0)

    def written():
        journal = tmp_path / "killed.partial" / "0.journal"
        return journal.stat().st_size if journal.exists() else 0

    for _ in range(5):
        process = start(options_for("killed"))
        enough = written() + draw.randint(1, len(whole) // 6)
        wait_until(lambda: written() >= enough, process)  # noqa: B023
        time.sleep(draw.random() / 20)
        process.kill()
        process.communicate()
    assert not (tmp_path / "killed").exists()
    result = helpers.run(options_for("killed"))
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "killed").read_bytes() == whole


def anonymous_bytes(process):
    """Of its memory: without the pages of files that it maps, as the journal."""
    return int(re.search(r"^RssAnon:\s+(\d+) kB$", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)[1]) * 1024


def descendants(parent):
    """Process ids, the children's own children included."""
    found = []
    for path in Path(f"/proc/{parent}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            found += [child, *descendants(child)]
    return found
