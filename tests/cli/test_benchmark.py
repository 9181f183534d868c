"""elseq-benchmark on tiny models; no figure of time is asserted."""

import json
import re
import sys

import pytest
import torch
from sacrebleu.metrics import BLEU

import elseq
from elseq.benchmark import command, measure, runs
from elseq.benchmark.arguments import FOREIGN_MODES
from elseq.benchmark.rows import Row
from elseq.cli import benchmark
from elseq.errors import UserError
from tests.measuring import take_turns_here

SIZES = {"layers": 1, "embed-dim": 32, "ffn-embed-dim": 64, "attention-heads": 4}
ENCODER_DECODER = [f"--{side}-{name}={value}" for side in ("encoder", "decoder") for name, value in SIZES.items()]
ENCODER_DECODER += ["--max-source-positions=64", "--max-target-positions=64"]
DECODER = [f"--decoder-{name}={value}" for name, value in SIZES.items()]
DECODER += ["--decoder-input-dim=32", "--decoder-output-dim=32", "--tokens-per-sample=64"]
RANDOM = ["--random-weights", "--vocabulary-size=50", "--threads=1", "--repeats=1", "--output-length=6"]


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["elseq-benchmark", *map(str, arguments)])
    benchmark.main()


@pytest.fixture
def here(monkeypatch):
    """Runs are made in this process."""
    take_turns_here(monkeypatch, runs, measure.measure)


def test_runs_are_processes_of_their_own(monkeypatch, tmp_path):
    arguments = ["--arch=bart_base", *RANDOM, "--source-length=9", "--batch-sizes=2", "--beams=2", "--repeats=2"]
    run(monkeypatch, *arguments, "--modes=el", "--no-stock", f"--output={tmp_path}", "--", *ENCODER_DECODER)
    [row] = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert (row["mode"], row["sentences"], len(row["seconds"]), row["in_turns"]) == ("el", 2, 2, 1)
    assert 0 < row["loaded_mebibytes"] <= row["peak_mebibytes"]


def test_encoder_decoder(here, monkeypatch, tmp_path, capsys):
    # whether or not it is installed: a missing program is a line in the report
    monkeypatch.setitem(FOREIGN_MODES, "ctranslate2", "no_such_package")
    arguments = ["--arch=bart_base", *RANDOM, "--source-length=9", "--batch-sizes=3", "--beams=2"]
    arguments += ["--modes=el,kv,ctranslate2", f"--output={tmp_path}", "--", *ENCODER_DECODER]
    run(monkeypatch, *arguments)
    assert [row.get("in_turns") for row in json.loads((tmp_path / "results.json").read_text())["rows"]] == [
        3,
        3,
        3,
        None,
    ]
    results = json.loads((tmp_path / "results.json").read_text())
    *measured, missing = results["rows"]
    assert [row["mode"] for row in measured] == ["stock", "el", "kv"]
    assert missing["failure"] == "no_such_package is not installed"
    for row in measured:
        assert (row["batch_size"], row["beam"], row["sentences"], row["output_length"]) == (3, 2, 3, 6)
        assert row["identical_share"] == 1.0
        assert row["copied"] is False  # stock BART's hypotheses share the source
        for key in ("samples_per_second", "tokens_per_second", "gigaflops_per_second", "gigabytes_per_second"):
            assert row[key] > 0
    stock, el, kv = measured
    assert stock["ratio_to_stock"] == 1.0
    assert el["method"] == "el"
    # 4 bytes a number: 9 positions of 3 sources; 8 of 3 x 2 hypotheses, which is the first size of the buffers
    assert el["state_bytes"] == 4 * 32 * (9 * 3 + 8 * 6)
    assert kv["state_bytes"] == 2 * el["state_bytes"]
    assert stock["state_bytes"] >= 4 * 2 * 32 * (9 * 3 + 7 * 6)
    out = capsys.readouterr().out
    assert out.splitlines()[0].endswith("; 1 repeat, in turns of 3 processes")
    assert (tmp_path / "table.md").read_text() in out
    assert "ctranslate2, batch 3, beam 2: no_such_package is not installed." in out
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_precisions(monkeypatch, tmp_path, capsys):
    """Of the other programs, too, as far as they are there; what has no int8 is compared with nothing in it."""
    arguments = ["--arch=bart_base", *RANDOM, "--source-length=9", "--batch-sizes=3", "--beams=2"]
    arguments += ["--modes=el,kv,ctranslate2,huggingface", "--dtype=int8,bfloat16", f"--output={tmp_path}"]
    run(monkeypatch, *arguments, "--", *ENCODER_DECODER)
    rows = {(row["mode"], row["dtype"]): row for row in json.loads((tmp_path / "results.json").read_text())["rows"]}
    modes = ["stock", "el", "kv", "ctranslate2", "huggingface"]
    assert [*rows] == [
        ("stock", "float32"),
        *((mode, "int8") for mode in modes[1:]),
        *((mode, "bfloat16") for mode in modes),
    ]
    stock = rows["stock", "float32"]
    for mode in ("el", "kv"):
        row = rows[mode, "int8"]
        assert row["ratio_to_stock"] == row["samples_per_second"] / stock["samples_per_second"]
        assert row["sentences"] == 3 and row["identical_share"] == row["identical"] / 3
        assert row["parameters"] == stock["parameters"]
    assert rows["kv", "bfloat16"]["ratio_to_stock"] == pytest.approx(
        rows["kv", "bfloat16"]["samples_per_second"] / rows["stock", "bfloat16"]["samples_per_second"]
    )
    assert rows["el", "bfloat16"]["state_bytes"] == rows["el", "int8"]["state_bytes"] / 2
    assert rows["kv", "bfloat16"]["state_bytes"] < rows["kv", "int8"]["state_bytes"]
    assert rows["huggingface", "int8"]["failure"].startswith("not measured in int8")
    if "not installed" not in rows["ctranslate2", "int8"].get("failure", ""):
        assert rows["ctranslate2", "int8"]["sentences"] == 3
        assert rows["ctranslate2", "bfloat16"]["failure"].startswith("CTranslate2 has no bfloat16 on this cpu, but ")
    out = capsys.readouterr().out
    assert out.startswith("bart_base, random weights; source 9, output 6; cpu, 1 thread, int8, bfloat16; ")
    assert " | batch | beam | dtype | samples/s |" in re.sub(" +", " ", out)
    assert "huggingface, batch 3, beam 2, int8: not measured in int8" in out
    assert "int8: linear layers in int8" in out


def test_scores(here, monkeypatch, tmp_path, tiny_translation, capsys):
    """Those of what elseq.load generates."""
    sources = (tiny_translation.raw / "test.src").read_text().splitlines()[:4]
    found = elseq.load(tiny_translation.checkpoint, data=tiny_translation.data).generate(sources, beam=2, max_len_b=20)
    references = [f"{line} more words than that" for line in found]
    (tmp_path / "source").write_text("\n".join(sources) + "\n")
    (tmp_path / "reference").write_text("\n".join(references) + "\n")
    arguments = [tiny_translation.checkpoint, "--data", tiny_translation.data, "--source", tmp_path / "source"]
    arguments += ["--reference", tmp_path / "reference", "--modes=kv", "--beams=2", "--max-len-b=20", "--repeats=1"]
    run(monkeypatch, *arguments, "--threads=1", f"--output={tmp_path / 'out'}")
    expected = BLEU().corpus_score(found, [references]).score
    assert 0 < expected < 100
    for row in json.loads((tmp_path / "out" / "results.json").read_text())["rows"]:
        assert row["scores"] == {"sacreBLEU": pytest.approx(expected)}
    out = capsys.readouterr().out
    assert "sacreBLEU |\n" in out
    assert f"reference {tmp_path / 'reference'}, sacreBLEU nrefs:1|" in out


def test_no_int8_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="^--dtype int8 is for a CPU: on a GPU give float16 or bfloat16$"):
        run(monkeypatch, "checkpoint.pt", "--dtype=float16,int8", "--device=cuda")


@pytest.mark.parametrize("name", ["results.json", "table.md", "plot.png"])
def test_no_input_is_written(monkeypatch, tmp_path, tiny_translation, name):
    """Here a link in the folder of the results leads to the sources."""
    source = tmp_path / "sources"
    source.write_text("w1 w2\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).symlink_to(source)
    arguments = [tiny_translation.checkpoint, "--data", tiny_translation.data, "--source", source]
    with pytest.raises(UserError, match=f"^--output .*out/{name} is an input: give another file$"):
        run(monkeypatch, *arguments, "--output", tmp_path / "out")
    assert source.read_text() == "w1 w2\n"


def test_language_model(here, monkeypatch, tmp_path):
    arguments = ["--arch=transformer_lm", *RANDOM, "--source-length=5", "--batch-sizes=2", "--beams=2"]
    run(monkeypatch, *arguments, "--modes=el", "--no-interleave", f"--output={tmp_path}", "--", *DECODER)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["title"].endswith("; 1 repeat, one run after the other")
    stock, el = results["rows"]
    assert stock["in_turns"] == el["in_turns"] == 1
    assert stock["copied"] is True
    assert el["identical_share"] == 1.0
    assert el["output_length"] == stock["output_length"] == 6
    assert el["state_bytes"] == 4 * 32 * (4 * 2 + 8 * 4)


def test_blocking_that_stock_does_not_do_is_told(here, monkeypatch, tmp_path, capsys):
    arguments = ["--arch=bart_base", *RANDOM, "--source-length=9", "--output-length=4", "--batch-sizes=1", "--beams=1"]
    arguments += ["--modes=stock", "--repeats=1", "--threads=1", "--no-repeat-ngram-size=3", "--output", tmp_path]
    run(monkeypatch, *arguments, "--", *ENCODER_DECODER)
    assert ("Stock fairseq blocks n-grams by" in capsys.readouterr().out) != torch.cuda.is_available()


def test_no_row_at_all(monkeypatch, tmp_path):
    failed = Row("stock", 8, 4, failure="out of memory")
    monkeypatch.setattr(command, "run_grid", lambda grid, done: done(failed, None))
    with pytest.raises(UserError, match="nothing could be measured; stock, batch 8, beam 4: out of memory$"):
        run(monkeypatch, "--arch=bart_base", *RANDOM, "--source-length=9", "--output", tmp_path, "--", *ENCODER_DECODER)


def test_interruption_keeps_the_rows(monkeypatch, tmp_path, capsys):
    def interrupted(grid, done):
        done(Row("stock", 8, 4, samples_per_second=2.0), [])
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run_grid", interrupted)
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, "--arch=bart_base", *RANDOM, "--source-length=9", "--output", tmp_path, "--", *ENCODER_DECODER)
    assert ended.value.code == 130
    assert len(json.loads((tmp_path / "results.json").read_text())["rows"]) == 1
    assert "interrupted; what was measured:\n\nbart_base" in (err := capsys.readouterr().err)
    assert "| stock" in err


TINY = ["--arch=bart_base", *RANDOM]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give either a checkpoint or --arch"),
        (["--arch=bart_base"], "--arch alone has no weights"),
        (
            ["--arch=bart_bass", "--random-weights"],
            "^--arch bart_bass is unknown; give an architecture of fairseq or elseq, such as bart_base$",
        ),
        (["no_such_file.pt"], "checkpoint no_such_file.pt .*: check the path"),
        ([*TINY, "--modes=stock,fast"], "^--modes 'fast' is unknown; choose from stock, "),
        ([*TINY, "--beams=4,none"], "^--beams 'none' is not a whole number above 0"),
        ([*TINY, "--dtype=int4"], "^--dtype 'int4' is unknown; choose from float32, bfloat16, float16, int8$"),
        ([*TINY, "--device=tpu7"], "^--device tpu7 is unknown; choose cpu or cuda$"),
        (
            [*TINY, "--no-repeat-ngram-size=-3"],
            "^--no-repeat-ngram-size '-3' is neither 0 nor a whole number",
        ),
        ([*TINY, "--threads=many"], "^--threads 'many' is not a whole number above 0$"),
        ([*TINY, "--no-such-option"], "^unrecognized arguments: --no-such-option; see elseq-benchmark --help$"),
        (
            [*TINY, "--", "--no-such-option"],
            "not fairseq-train's .unrecognized arguments: --no-such-option.",
        ),
        ([*TINY, "--reference=file", "--", *ENCODER_DECODER], "^--reference is of sources from a file: name theirs"),
        ([*TINY, "--target-lang=de"], "^--target-lang de is of a checkpoint, and random weights have no language"),
        ([*TINY, "--source-length=2", "--", *ENCODER_DECODER], "--source-length 2 leaves no room .* at least 3"),
        ([*TINY, "--source-length=65", "--", *ENCODER_DECODER], "up to 65 positions, the model has 64"),
        (
            [*TINY, "--source-length=9", "--output-length=64", "--", *ENCODER_DECODER],
            "the output takes 65 positions, the model has 64",
        ),
        ([*TINY, "--source=no_such_file", "--", *ENCODER_DECODER], r"no_such_file cannot be read \(No such file"),
    ],
)
def test_bad_arguments(monkeypatch, arguments, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        run(monkeypatch, *arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("contents", "sentence"),
    [
        (b"", "source is empty: give a file"),
        (b"piece1\n\npiece2\n", "line 2 of .*source is empty: remove it"),
        (b"piece1\n\xff\n", "line 2 of .*source is not valid UTF-8"),
        (b"piece1 " * 63, "line 1 of .*source has 63 pieces, the model takes 62"),
    ],
)
def test_bad_sources(monkeypatch, tmp_path, contents, sentence):
    (tmp_path / "source").write_bytes(contents)
    with pytest.raises(UserError, match=sentence):
        run(monkeypatch, *TINY, f"--source={tmp_path / 'source'}", "--", *ENCODER_DECODER)
