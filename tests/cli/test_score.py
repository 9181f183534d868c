"""elseq-score as a user runs it."""

import json
import re

import numpy as np
import pytest
from rouge_score import rouge_scorer

from elseq.scoring.published import PUBLISHED
from elseq.scoring.statistics import draws
from tests import helpers

SUMMARIES = ["The cat sat on the mat. A dog barked.", "Nobody knew.", "It rained in Paris."]
BETTER = ["A dog barked. The cat sat on the mat.", "Nobody knew anything.", "It rained all day in Paris."]
REFERENCES = ["A dog barked. The cat sat on a mat.", "Nobody knew anything.", "It rained all day in Paris."]


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        if isinstance(content, list):
            content = "".join(f"{line}\n" for line in content).encode()
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write


@pytest.fixture
def files(write):
    return write("system", SUMMARIES), write("references", REFERENCES)


@pytest.fixture
def score(tmp_path):
    """Run elseq-score; returns what it printed and the JSON that it wrote."""

    def score(*arguments):
        output = tmp_path / "scores.json"
        printed = helpers.run_here(["elseq-score", *arguments, "--output", output]).stdout
        return printed, json.loads(output.read_text(encoding="utf-8"))

    return score


def cells(printed, heading):
    """Of each row of the table, by its score, what stands under the heading."""
    header, _, *rows = helpers.table_rows(printed)
    return {row[header.index("score")]: row[header.index(heading)] for row in rows}


def refused(*arguments):
    """The sentence that it ends with."""
    ended = helpers.run_here(["elseq-score", *arguments], check=False)
    assert ended.returncode == 1
    assert not ended.stdout
    assert re.fullmatch("elseq: error: .*\n", ended.stderr)
    return ended.stderr


# --- summaries


def test_rouge(score, files):
    printed, content = score("rouge", *files)
    scorer = rouge_scorer.RougeScorer(["rouge2", "rougeLsum"], use_stemmer=True)
    broken = [[text.replace(". ", ".\n") for text in texts] for texts in (REFERENCES, SUMMARIES)]
    expected = [scorer.score(*pair) for pair in zip(*broken, strict=True)]
    (system,) = content["systems"]
    for metric in ("rouge2", "rougeLsum"):
        mean = 100 * np.mean([example[metric].fmeasure for example in expected])
        assert system["scores"][metric]["value"] == pytest.approx(mean)
    assert system["scores"]["rougeL"]["value"] < system["scores"]["rougeLsum"]["value"]
    assert system["hypotheses"] == str(files[0])
    assert content["settings"]["examples"] == 3
    assert content["settings"]["sentence_separators"] == dict.fromkeys(map(str, files))
    assert cells(printed, "F1")["ROUGE-Lsum"] == f"{system['scores']['rougeLsum']['value']:.2f}"
    assert cells(printed, "recall")["ROUGE-2"] == f"{system['scores']['rouge2_recall']['value']:.2f}"
    assert "hypotheses" not in printed.split("\n")[0]


def test_marked_sentences(score, write):
    files = write("system", ["the cat sat a dog barked"]), write("references", ["a dog barked <q> the cat sat"])
    printed, content = score("rouge", *files, "--sentence-separator", "<q>")
    assert content["systems"][0]["scores"]["rougeLsum"]["value"] == pytest.approx(100)
    assert content["settings"]["sentence_separators"] == {str(files[0]): None, str(files[1]): "<q>"}
    assert f"Sentences of {files[0]}: found by punctuation." in printed
    assert f"Sentences of {files[1]}: divided at <q>." in printed
    write("system", ["the cat sat <q> a dog barked"])
    _, content = score("rouge", *files, "--sentence-separator", "<q>")
    assert set(content["settings"]["sentence_separators"].values()) == {"<q>"}
    write("references", ["a dog barked the cat sat"])
    write("system", ["the cat sat a dog barked"])
    printed, content = score("rouge", *files, "--sentence-separator", "<q>")
    assert content["systems"][0]["scores"]["rougeLsum"]["value"] == pytest.approx(50)
    assert f"There is no <q> in {files[1]}: each reference is one sentence." in printed


def test_without_stems(score, write):
    files = write("system", ["horses"]), write("references", ["horse"])
    values = [score("rouge", *files, *option)[1]["systems"][0]["scores"]["rouge1"] for option in ([], ["--no-stem"])]
    assert [value["value"] for value in values] == [100, 0]


def test_several_systems_are_compared_with_the_first(score, files, write):
    system, references = files
    printed, content = score("rouge", system, write("better", BETTER), references, "--bootstrap=200", "--seed=3")
    first, second = content["systems"]
    assert "better_than_first" not in first["scores"]["rouge2"]
    scorer = rouge_scorer.RougeScorer(["rouge2"], use_stemmer=True)
    gains = [
        scorer.score(reference, better)["rouge2"].fmeasure - scorer.score(reference, worse)["rouge2"].fmeasure
        for reference, better, worse in zip(REFERENCES, BETTER, SUMMARIES, strict=True)
    ]
    share = np.mean([counts @ gains > 0 for counts in draws(3, 200, seed=3)])
    assert second["scores"]["rouge2"]["better_than_first"] == pytest.approx(share)
    assert f"{share:.1%}" in printed
    assert f"above {system}'s" in printed


def test_equal_systems(score, files, write):
    system, references = files
    _, content = score("rouge", system, write("same", SUMMARIES), write("too", SUMMARIES), references)
    for other in content["systems"][1:]:
        assert {entry["better_than_first"] for entry in other["scores"].values()} == {0}


def test_intervals(score, files):
    _, content = score("rouge", *files, "--bootstrap=500")
    entry = content["systems"][0]["scores"]["rouge1"]
    assert entry["low"] < entry["value"] < entry["high"]
    assert content == score("rouge", *files, "--bootstrap=500")[1]
    printed, content = score("rouge", *files, "--bootstrap=0")
    assert set(content["systems"][0]["scores"]["rouge1"]) == {"value"}
    assert "95% interval" not in printed


def test_published_scores(score, files):
    printed, content = score("rouge", *files, "--setting=cnn_dm-bart_large")
    assert cells(printed, "published") == {
        "ROUGE-1": "44.16", "ROUGE-2": "21.28", "ROUGE-L (rouge-score)": "", "ROUGE-Lsum": "40.90"
    }  # fmt: skip
    assert "BART-large, Lewis et al., 2019" in printed
    assert "11,490 references, not these 3: do not compare." in printed
    assert content["published"]["scores"] == PUBLISHED["cnn_dm-bart_large"].scores


# --- questions


def test_questions(score, write):
    files = write("system", ["What is it?", "Who was it?"]), write("references", ["What is it?", "Who is it?"])
    printed, content = score("qg", *files, "--setting=squad_qg-unilm_large")
    scores = content["systems"][0]["scores"]
    assert scores["rougeL"]["value"] == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert scores["rougeL_coco"]["value"] == pytest.approx(100 * (1 + 3 / 4) / 2)
    assert cells(printed, "published")["BLEU-4"] == "22.78"
    assert content["settings"]["sacrebleu"] in printed
    assert ("meteor" in scores) != ("METEOR is left out, as nltk's WordNet data is not on this machine" in printed)


def test_questions_of_the_same_source(score, write):
    files = write("system", ["a b", "c d", "e f"]), write("references", ["e f", "c d", "a b"])
    sources = write("sources", ["s", "t", "s"])
    _, content = score("qg", *files, "--sources", sources)
    assert content["settings"]["examples"] == 2
    assert content["systems"][0]["scores"]["rougeL"]["value"] == 100


# --- input


def test_log_of_fairseq_generate(score, write):
    log = ["| loaded", "S-1\tx", "H-1\t-0.1\ti t", "D-1\t-0.1\tit rained", "D-0\t-0.2\tnobody knew", "D-0\t-0.3\tworse"]
    log, references = write("log", log), write("references", ["nobody knew", "it rained"])
    _, content = score("rouge", log, references, "--log")
    assert content["systems"][0]["scores"]["rouge1"]["value"] == 100
    assert "references has no line D-...: give the log" in refused("rouge", references, references, "--log")


def test_blank_hypotheses_score_nothing_and_are_counted(score, write):
    files = write("system", ["", "it rained", " \t"]), write("references", ["a", "it rained", ""])
    printed, content = score("rouge", *files)
    assert content["systems"][0]["scores"]["rouge1"]["value"] == pytest.approx(100 / 3)
    assert content["systems"][0]["empty"] == 2
    assert f"Empty hypotheses of {files[0]}: 2; they score 0." in printed
    assert "Empty references: 1." in printed
    assert score("qg", *files)[1]["systems"][0]["empty"] == 2


def test_line_ends(score, write):
    files = write("system", "it\u2028rained\r\nso\x0cwhat\r\n".encode()), write("references", ["it rained", "so what"])
    assert score("rouge", *files)[1]["systems"][0]["scores"]["rouge2"]["value"] == 100


@pytest.mark.parametrize("command", ["rouge", "qg"])
def test_bad_files(write, command):
    good = write("good", REFERENCES)
    assert "none cannot be read (No such file or directory): check the path" in refused(command, "none", good)
    assert "empty is empty: give a file with one example per line" in refused(command, good, write("empty", b""))
    assert "line 2 of" in (sentence := refused(command, write("latin", b"a\n\xe9\nb\n"), good))
    assert "is not valid UTF-8: convert the file with iconv" in sentence
    sentence = refused(command, good, write("short", REFERENCES[:2]), good)
    assert "short has 2 examples and" in sentence and "good has 3" in sentence


def test_unequal_sources(write):
    good = write("good", REFERENCES)
    assert "short has 2 examples and" in refused("qg", good, good, "--sources", write("short", REFERENCES[:2]))


def test_what_is_refused_at_once(write):
    good = write("good", REFERENCES)
    assert "is in a folder that does not exist" in refused(
        "rouge", good, good, "--output", "no/such/folder/scores.json"
    )
    assert "a file of hypotheses is given twice" in refused("rouge", good, good, good)
    assert "--sentence-separator is blank" in refused("rouge", good, good, "--sentence-separator", "")


def test_output_that_cannot_be_written_does_not_lose_the_scores(files):
    ended = helpers.run_here(["elseq-score", "rouge", *files, "--output", "/proc/output"], check=False)
    assert ended.returncode == 1
    assert "cannot be written" in ended.stderr
    assert "ROUGE-Lsum" in ended.stdout


@pytest.mark.parametrize("number", [0, 1])
def test_an_input_is_not_replaced(files, number):
    content = files[number].read_text()
    ended = helpers.run_here(["elseq-score", "rouge", *files, "--output", files[number]], check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == f"elseq: error: --output {files[number]} is an input: give another file\n"
    assert files[number].read_text() == content


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ([], "arguments are required: COMMAND"),
        (["rouge", "a"], "arguments are required: REFERENCES"),
        (["rouge", "a", "b", "--setting=squad_qg-unilm_large"], "invalid choice: 'squad_qg-unilm_large'"),
        (["rouge", "a", "b", "--bootstrap", "-1"], "--bootstrap '-1' is neither 0 nor a whole number above it"),
        (["rouge", "a", "b", "--seed=-1"], "--seed '-1' is neither 0 nor a whole number above it"),
        (["rouge", "a", "b", "--bootstrap=x"], "--bootstrap 'x' is neither 0 nor a whole number above it"),
    ],
)
def test_bad_arguments(arguments, sentence):
    ended = helpers.run_here(["elseq-score", *arguments], check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("elseq: error: ") and ended.stderr.count("\n") == 1
    assert sentence in ended.stderr
