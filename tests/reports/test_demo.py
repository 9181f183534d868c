"""The report of the demo: examples, baselines, and what the table says of each way of decoding."""

import json

import pytest
import sacrebleu

from elseq.reports import demo
from elseq.reports.demo import Dictionary, examples, scores

REFERENCES = ["Return the number of elements in the list.", "The image fits into the given canvas.", "It is here, too."]
SOURCES = ["Ret the num of ele in the lis.", "The ima fit int the giv can.", "It is her, too."]
OUTPUTS = ["Return the number of elements in the list.", "The image fits into the given cancel.", "It is her, too."]


def test_dictionary_has_the_commonest_word_whatever_follows_it():
    dictionary = Dictionary(["Ret it, num.", "num of num", "can't"], ["Return it, number.", "numpy of number", "can't"])
    assert dictionary.expand("Ret num, unk: can't.") == "Return number, unk: can't."


def test_dictionary_takes_the_first_of_equals():
    assert Dictionary(["num num"], ["numpy number"]).expand("num") == "numpy"


def test_training_text_that_is_not_aligned_is_refused():
    with pytest.raises(ValueError, match="shorter"):
        Dictionary(["Ret it"], ["Return"])


def test_scores_are_those_of_sacrebleu():
    bleu = sacrebleu.corpus_bleu(OUTPUTS, [REFERENCES]).score
    chrf = sacrebleu.corpus_chrf(OUTPUTS, [REFERENCES]).score
    assert scores(OUTPUTS, REFERENCES) == [f"{bleu:.1f}", f"{chrf:.1f}", "33.3"]
    assert scores(REFERENCES, REFERENCES) == ["100.0"] * 3


def test_examples_fit_the_screen():
    lines = examples(SOURCES, REFERENCES, OUTPUTS, 40).splitlines()
    assert lines[:4] == [
        "source     Ret the num of ele in the ...",
        "reference  Return the number of ...",
        "output     Return the number of ...",
        "",
    ]
    assert [line[11:] for line in lines[8:]] == [SOURCES[2], REFERENCES[2], OUTPUTS[2]]
    assert max(map(len, lines)) <= 40


def test_examples_are_spread_over_the_test_set():
    numbers = [str(number) for number in range(400)]
    chosen = examples(numbers, numbers, numbers, 80).splitlines()
    assert [line.split()[1] for line in chosen if line.startswith("source")] == ["66", "200", "333"]


def write_log(path, outputs, rate, state=None):
    lines = [f"H-{number}\t-0.5\t{text}\nD-{number}\t-0.5\t{text}" for number, text in enumerate(outputs)]
    if state is not None:
        lines.append(f"2026-01-01 | INFO | elseq | decoding state: peak {state} bytes")
    lines.append(
        f"2026-01-01 | INFO | fairseq_cli.generate | Translated 3 sentences (9 tokens) in 1.0s ({rate} sentences/s)"
    )
    path.write_text("\n".join(reversed(lines)) + "\n")


@pytest.fixture
def work(tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name, lines in {"source": SOURCES, "target": REFERENCES}.items():
        (corpus / f"test.{name}").write_text("".join(f"{line}\n" for line in lines))
    (corpus / "train.source").write_text("The num of ele\n")
    (corpus / "train.target").write_text("The number of elements\n")
    for mode, rate, state in (("stock", 10, None), ("kv", 20, 3 * 2**20), ("el", 15, 2**20)):
        write_log(tmp_path / f"generate-{mode}.log", OUTPUTS, f"{rate}.00", state)
        (tmp_path / f"{mode}.json").write_text(json.dumps({"peak_bytes": 500 * 2**20}))
    return tmp_path


def rows(text):
    return {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip()}


def test_table(work, capsys):
    demo.main([str(work)])
    text = capsys.readouterr().out
    assert text.startswith(f"source     {SOURCES[0]}\nreference  {REFERENCES[0]}\noutput     {OUTPUTS[0]}\n\n")
    found = rows(text)
    assert found["stock"] == ["10.0", "500", "-", "3/3", *scores(OUTPUTS, REFERENCES)]
    assert found["kv"][:4] == ["20.0", "500", "3.0", "3/3"]
    assert found["el"][:4] == ["15.0", "500", "1.0", "3/3"]
    assert found["(source)"] == scores(SOURCES, REFERENCES)
    expanded = ["Ret the number of elements in the lis.", *SOURCES[1:]]
    assert found["(dictionary)"] == scores(expanded, REFERENCES)
    words = " ".join(text.split())
    assert "All outputs of kv and el are identical to stock fairseq's." in words
    assert "el holds 3.0 times less decoding state than kv." in words
    assert "kv decodes 2.00 times and el 1.50 times as many samples per second as stock." in words


def test_outputs_that_differ_are_counted(work, capsys):
    write_log(work / "generate-el.log", [*OUTPUTS[:2], "It is here, two."], "15.00", 2**20)
    demo.main([str(work)])
    text = capsys.readouterr().out
    assert rows(text)["el"][3] == "2/3" and rows(text)["kv"][3] == "3/3"
    assert "Not all outputs of kv and el are identical" in text
