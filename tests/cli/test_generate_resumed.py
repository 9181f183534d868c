"""elseq-generate, interrupted in any way: the same command goes on, and the output is as if nothing had happened."""

import os
import random
import re
import shutil
import sys

import pytest
import torch

import elseq
from elseq.generator import TextGenerator
from elseq.text_files.journal import Journal, read_records
from tests import helpers
from tests.generating import SEARCH, interrupt_after, read


def cut_at_random(path, draw):
    os.truncate(path, draw.randint(0, path.stat().st_size))


def test_an_interrupted_run_goes_on(run, expected, source):
    options = ["--max-tokens=40"]
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, 4)
        result = run(*options, check=False)
    assert result.returncode == 130
    [sentence] = re.findall("^elseq: interrupted.*", result.stderr, re.MULTILINE)
    done = int(
        re.fullmatch(rf"elseq: interrupted: (\d+) of {len(expected)} lines are done; repeat the same .*", sentence)[1]
    )
    assert 2 < done < len(expected)
    assert "Traceback" not in result.stderr
    assert not run.output.exists()
    with pytest.MonkeyPatch.context() as patch:
        calls = interrupt_after(patch, 1000)
        run(*options)
    assert sum(calls) == len(expected) - done
    assert read(run.output) == expected
    assert not run.journals.exists()


@pytest.mark.few_cases(2)
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


@pytest.mark.parametrize("owner, name", [(os, "replace"), (Journal, "_tidy")], ids=["published", "tidied"])
def test_interrupted_when_all_is_done(run, expected, owner, name):
    """Just after the output came to be there, or when the journals were removed."""
    original = getattr(owner, name)

    def interrupted(*arguments, **options):
        original(*arguments, **options)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        result = run(check=False)
    assert result.returncode == 130
    assert result.stderr.endswith(f"elseq: interrupted: all {len(expected)} lines are done and in {run.output}\n")
    assert read(run.output) == expected


def test_interrupted_before_an_output_that_was_there_is_replaced(run, expected):
    run.output.write_text("precious\n")

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        result = run("--overwrite", check=False)
    done = f"{len(expected)} of {len(expected)} lines are done; repeat the same command to continue"
    assert result.stderr.endswith(f"elseq: interrupted: {done}\n")
    assert run.output.read_text() == "precious\n"


def test_killed_between_output_and_tidying(run, expected, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("elseq.text_files.journal.Journal._tidy", lambda journal: None)
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
        "--truncate was left out and not given, --min-len was 1 and not 2: give the options of that run to continue, "
        "or --overwrite to start again\n"
    )
    result = run("--max-tokens=40", "--apply-top-k=0", "--apply-ffn-top-k=8", check=False)
    assert "in which --apply-top-k was left out and not 0, --apply-ffn-top-k was left out and not 8: " in result.stderr
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

        patch.setattr(TextGenerator, "decode", decode)
        run(check=False)
    assert second[0].returncode == 1
    assert "is being written by another elseq-generate" in second[0].stderr


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


def test_int8_goes_on_as_int8(run, tiny_translation, source):
    """And not as float32, nor the other way round."""
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, 4)
        assert run("--dtype=int8", "--max-tokens=40", check=False).returncode == 130
    result = run("--max-tokens=40", check=False)
    assert result.returncode == 1 and "--dtype was int8 and not float32" in result.stderr
    run("--dtype=int8", "--max-tokens=40")
    model = elseq.load(tiny_translation.checkpoint, data=tiny_translation.data, dtype="int8")
    assert read(run.output) == model.generate(source.read_text().split("\n")[:-1], **SEARCH)
