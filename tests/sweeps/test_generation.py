"""Sweeps of elseq-generate."""

import contextlib
import io
import json
import re
import sys

import pytest
import sacrebleu

import elseq
from elseq.errors import UserError
from elseq.sweeps.generation import job
from elseq.sweeps.launch import sweep


@pytest.fixture
def generate(tiny_translation, monkeypatch, tmp_path):
    """Run a sweep on the test set; the exit code, stdout and stderr."""

    def run(line, trained=tiny_translation):
        what = f"checkpoint={trained.checkpoint} task.data={trained.data}"
        where = f"input={trained.raw / 'test.src'} hydra.sweep.dir={tmp_path} hydra.run.dir={tmp_path}"
        monkeypatch.setattr(sys, "argv", ["elseq-generate", *what.split(), *where.split(), *line.split()])
        stdout, stderr, code = io.StringIO(), io.StringIO(), 0
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            try:
                sweep("generate", job)
            except SystemExit as exit:
                code = exit.code
        return code, stdout.getvalue(), stderr.getvalue()

    return run


def read_rows(folder):
    return json.loads((folder / "results.json").read_text())["rows"]


def test_sweep(generate, tiny_translation, tmp_path):
    references = tiny_translation.raw / "test.tgt"
    _, out, _ = generate(f"-m decode=stock,el beam=1,4 references={references}")
    rows = read_rows(tmp_path)
    assert [(row["mode"], row["beam"]) for row in rows] == [("stock", 1), ("stock", 4), ("el", 1), ("el", 4)]
    model = elseq.load(tiny_translation.checkpoint, attention="kv", data=str(tiny_translation.data))
    texts = (tiny_translation.raw / "test.src").read_text().splitlines()
    expected = {beam: model.generate(texts, beam=beam) for beam in (1, 4)}
    for number, row in enumerate(rows):
        output = (tmp_path / f"{number}-{row['mode']}" / "output.txt").read_text().splitlines()
        assert output == expected[row["beam"]]
        bleu = sacrebleu.corpus_bleu(output, [references.read_text().splitlines()]).score
        assert row["scores"] == {"sacreBLEU": bleu}
        assert row["identical"] == row["sentences"] == 21
        assert row["samples_per_second"] > 0
    assert (tmp_path / "table.md").read_text() in out
    assert "| mode | beam | samples/s | x stock | identical | of | sacreBLEU |" in re.sub(" +", " ", out)
    assert f"checkpoint_last.pt; 21 lines of {tiny_translation.raw / 'test.src'}; " in out
    assert (tmp_path / "plot.png").exists()


def test_types_in_turn(generate, tiny_translation, tmp_path):
    _, out, _ = generate("-m decode=kv dtype=float32,int8")
    assert [row["settings"]["dtype"] for row in read_rows(tmp_path)] == ["float32", "int8"]
    assert re.search(r"^\| mode +\| +beam \| +dtype \|", out, re.MULTILINE)
    texts = (tiny_translation.raw / "test.src").read_text().splitlines()
    for number, dtype in enumerate(("float32", "int8")):
        model = elseq.load(tiny_translation.checkpoint, data=str(tiny_translation.data), dtype=dtype)
        assert (tmp_path / f"{number}-kv" / "output.txt").read_text().splitlines() == model.generate(texts)


def test_a_method_of_a_plugin(generate, plugin, tmp_path):
    code, out, err = generate(f"-m user_dir={plugin} decode.mode=stock,kv,reprojected beam=2")
    assert code == 0, err
    rows = read_rows(tmp_path)
    assert [(row["mode"], row["identical"], row["settings"]) for row in rows] == [
        (mode, 21, {}) for mode in ("stock", "kv", "reprojected")
    ]
    outputs = {(tmp_path / f"{number}-{row['mode']}" / "output.txt").read_text() for number, row in enumerate(rows)}
    assert len(outputs) == 1
    assert "| mode | beam | samples/s | x stock | identical | of |" in re.sub(" +", " ", out)


def test_the_model_is_loaded_once(generate, monkeypatch, tmp_path):
    """What warms it up is the job's own model."""
    loaded = []
    load = elseq.text_files.run.load_by
    monkeypatch.setattr(
        "elseq.text_files.run.load_by",
        lambda path, loading: loaded.append(loading.attention) or load(path, loading),
    )
    monkeypatch.setattr("elseq.generator.load_by", lambda *_: pytest.fail("it was loaded once more"))
    assert generate("-m decode=kv,el")[0] == 0
    assert loaded == ["kv", "el"]
    assert all(0 < row["seconds"][0] < 60 for row in read_rows(tmp_path))


def test_warming_up_leaves_the_beam_alone(generate, tiny_bart, tmp_path):
    """A stock BART has one for all its attention."""
    assert generate("-m decode=stock,kv beam=2", tiny_bart)[0] == 0
    stock, kv = read_rows(tmp_path)
    assert kv["identical"] == kv["sentences"] == stock["sentences"]


def test_top_k(generate, tiny_translation, tmp_path):
    assert generate("-m decode=kv apply_top_k=2,null apply_top_k_in=encoder,null")[0] == 0
    both, _, _, none = read_rows(tmp_path)
    assert "failure" not in both and "failure" not in none
    texts = (tiny_translation.raw / "test.src").read_text().splitlines()
    model = elseq.load(
        tiny_translation.checkpoint, "kv", data=tiny_translation.data, apply_top_k=2, apply_top_k_in="encoder"
    )
    assert (tmp_path / "0-kv" / "output.txt").read_text().splitlines() == model.generate(texts)


def test_the_k_of_long_sources_is_that_of_the_attention_to_them(generate, tmp_path):
    assert generate("-m decode=kv long_input=true apply_top_k=2 apply_top_k_in=null,cross,decoder")[0] == 0
    unsaid, cross, decoder = ((tmp_path / f"{number}-kv" / "output.txt").read_text() for number in range(3))
    assert unsaid == cross != decoder


def test_a_subword_vocabulary(generate, tiny_translation, tmp_path):
    """Its kind has the name of a group of fairseq's."""
    texts = (tiny_translation.raw / "test.src").read_text().splitlines()
    codes = tmp_path / "codes"
    codes.write_text("#version: 0.2\n" + "".join(f"w {digit}\n" for digit in range(3)))
    code, _, err = generate(f"-m decode=kv bpe=subword_nmt bpe_codes={codes} beam=1,2")
    assert code == 0, err
    model = elseq.load(
        tiny_translation.checkpoint, "kv", data=tiny_translation.data, bpe="subword_nmt", bpe_codes=codes
    )
    for number, beam in enumerate((1, 2)):
        output = (tmp_path / f"{number}-kv" / "output.txt").read_text().splitlines()
        assert output == model.generate(texts, beam=beam)


def test_search_of_the_group_decoding(generate, tiny_translation, tmp_path):
    generate("decode=kv decoding=beam lenpen=0.5 max_len_b=12")
    model = elseq.load(tiny_translation.checkpoint, attention="kv", data=str(tiny_translation.data))
    texts = (tiny_translation.raw / "test.src").read_text().splitlines()
    expected = model.generate(texts, beam=5, lenpen=0.5, max_len_b=12, no_repeat_ngram_size=3)
    assert (tmp_path / "output.txt").read_text().splitlines() == expected


@pytest.mark.parametrize("score", ["rouge", "qg"])
def test_scores(generate, tiny_translation, tmp_path, score):
    generate(f"decode=kv score={score} references={tiny_translation.raw / 'test.tgt'}")
    (row,) = read_rows(tmp_path)
    assert {"rouge": "ROUGE-Lsum", "qg": "BLEU-4"}[score] in row["scores"]
    assert all(0 < value <= 100 for value in row["scores"].values())


@pytest.mark.few_cases(6)
@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("input=null", "give checkpoint=FILE and input=FILE"),
        ("checkpoint=no.pt", "checkpoint no.pt"),
        ("input=no.txt", "--input no.txt cannot be read"),
        ("references=no.txt", "no.txt cannot be read"),
        ("references=pyproject.toml", "each line of one belongs to a line of the other"),
        ("references=pyproject.toml score=best", "score=best is unknown: choose one of bleu, rouge, qg"),
        ("truncate=no", "'no' is not possible: give True or False"),
        ("long_input=yes", "'yes' is not possible: give True or False"),
        ("source_window=true", "True is not possible: give a number"),
        ("dtype=int4", "dtype=int4 is unknown: choose one of float32, float16, bfloat16, float64, int8"),
        ("beam=many", "beam 'many' is not possible: give a whole number"),
        ("source_lang_field=from", "source_lang_field needs --input-format jsonl: a line of text has no fields"),
        ("decoding=beam task.eval_bleu_args=beam", "task.eval_bleu_args 'beam' is no JSON object"),
        ("max_tokens=many", "max_tokens 'many' is not a whole number above 0"),
        ("bpe=byte_bpe", "'byte_bpe' is unknown; choose one of subword_nmt, fastbpe, sentencepiece"),
        ("bpe=sentencepiece", "sentencepiece_model is missing: name the file of sentencepiece"),
        ("+checkpoint.name=x", "is no single value"),
        ("+task=translation +optimizer=adam", "optimizer {'_name': 'adam'"),
        ("decode=ctranslate2", "decode=ctranslate2 is unknown: choose one of auto, kv, el, stock"),
    ],
)
def test_nothing_is_generated(generate, tmp_path, line, sentence):
    code, _, err = generate(f"decode=kv {line}")
    assert code == 1
    found = err.splitlines()[-1]
    assert found.startswith("elseq: error: ")
    assert sentence in found
    assert not (tmp_path / "output.txt").exists()


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("bpe=syllables", "bpe=syllables is unknown: choose one of "),
        ("-m +bpe=sentencepiece", "bpe is there already: leave out the +"),
        ("decoding=null", "a group of settings cannot be null"),
    ],
)
def test_groups_that_are_not_composed(generate, line, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        generate(line)


def test_a_mode_that_is_no_name(generate):
    code, _, err = generate("++decode.mode=[kv]")
    assert code == 1
    assert "decode.mode ['kv'] is no name of a decoding method" in err


@pytest.mark.parametrize("name", ["results.json", "table.md", "output.txt"])
def test_no_input_is_written(generate, tmp_path, name):
    (tmp_path / name).write_text("w1 w2\n")
    code, _, err = generate(f"decode=kv input={tmp_path / name}")
    assert code == 1
    assert re.search(f"{name} is an input: give another file", err)
    assert (tmp_path / name).read_text() == "w1 w2\n"
