"""What is read from the logs of fairseq-generate, and the k that suffices."""

import pytest

from elseq.errors import UserError
from elseq.reports import top_k
from elseq.reports.top_k import BLEU, LOSS, Quality, smallest_sufficient
from tests import helpers

REFERENCES = ["a man in an orange hat .", "a dog runs over the grass ."]
WHOLE = Quality(2.0, 30.0)


def write_score(folder, name, loss):
    """Of two sentences with three tokens and one."""
    (folder / f"{name}-score.log").write_text(f"P-1\t{-loss:.4f} {-loss:.4f} {-loss:.4f}\nP-0\t{-loss:.4f}\nP-x\n")


def write_translation(folder, name, hypotheses):
    lines = "".join(f"H-{number}\t-0.5\t{text}\nD-{number}\t-0.5\t{text}\n" for number, text in hypotheses.items())
    (folder / f"{name}.log").write_text(
        lines + "Translated 2 sentences (9 tokens) in 1.0s (2.00 sentences/s, 9 tokens/s)\n"
    )


@pytest.fixture
def references(tmp_path):
    path = tmp_path / "test.target"
    path.write_text("".join(f"{line}\n" for line in REFERENCES))
    return path


def test_loss_is_the_mean_of_all_tokens(tmp_path):
    path = tmp_path / "full-score.log"
    path.write_text("T-0\tone two\nP-0\t-1.0000 -2.0000 -3.0000\nH-0\t-9\tone\nP-1\t-6.0000\n")
    assert top_k.read_loss(path) == 3.0


@pytest.mark.parametrize("text", [None, "", "Traceback"])
def test_logs_without_scores_are_refused(tmp_path, text):
    path = tmp_path / "full-score.log"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match="full-score.log is missing|full-score.log: there are no scores in it"):
        top_k.read_loss(path)


def test_loss_is_that_of_fairseq_validate(tiny_translation, tmp_path):
    """And k as large as a sentence changes nothing, a small one does."""
    scored = {}
    for name, options in {
        "full": [],
        "everywhere-64": ["--apply-top-k=64"],
        "everywhere-1": ["--apply-top-k=1"],
    }.items():
        where = [tiny_translation.data, "--user-dir", helpers.USER_DIR, "--path", tiny_translation.checkpoint]
        where += ["--num-workers=0"]
        command = ["fairseq-generate", *where, "--task=elseq_translation", "--score-reference", "--max-tokens=2000"]
        result = helpers.run_here([*command, *options, "--gen-subset=valid"])
        (tmp_path / f"{name}-score.log").write_text(result.stdout)
        scored[name] = top_k.read_loss(tmp_path / f"{name}-score.log")
    validation = helpers.run_here(["fairseq-validate", *where, "--max-tokens=2000", "--log-format=simple"])
    loss = float(validation.stdout.rpartition("subset | loss ")[2].split()[0])
    assert scored["full"] == pytest.approx(loss, abs=2e-3)
    assert scored["everywhere-64"] == pytest.approx(scored["full"], abs=1e-4)
    assert scored["everywhere-1"] > scored["full"] + 0.01


def test_smallest_k_with_which_the_metric_is_kept():
    losses = {1: 9.0, 2: 2.01, 4: 2.03, 8: 2.019, 16: 1.9}
    by_k = {k: Quality(loss, 30.0 - loss) for k, loss in losses.items()}
    assert smallest_sufficient(WHOLE, by_k, LOSS) == 8  # 2 does as well, but 4 does not
    assert smallest_sufficient(WHOLE, {8: Quality(2.03, None)}, LOSS) is None
    scores = {k: Quality(2.0, bleu) for k, bleu in {4: 29.6, 8: 29.71, 16: 31.0}.items()}
    assert smallest_sufficient(WHOLE, scores, BLEU) == 8


def test_sacrebleu_of_a_shard(tmp_path, references):
    write_score(tmp_path, "full", 2.0)
    write_translation(tmp_path, "full", {1: REFERENCES[1]})
    reader = top_k.Reader(tmp_path, references)
    assert reader.quality("full").bleu == pytest.approx(100)
    assert "1 sentences" in next(iter(reader.signatures))
    write_translation(tmp_path, "full", {2: REFERENCES[1]})
    with pytest.raises(UserError, match="its sentences are not those of the references, which are 2"):
        reader.quality("full")


def test_quality(tmp_path, references, capsys):
    right, wrong = dict(enumerate(REFERENCES)), {0: "a man in an orange shirt .", 1: REFERENCES[1]}
    for name, loss, hypotheses in (
        ("full", 2.0, right),
        ("everywhere-2", 2.5, wrong),
        ("everywhere-8", 2.01, right),
        ("ffn-4", 2.0, right),
    ):
        write_score(tmp_path, name, loss)
        write_translation(tmp_path, name, hypotheses)
    for place in ("encoder", "decoder", "cross"):
        for k in (2, 8):
            write_score(tmp_path, f"{place}-{k}", 2.1)
    plot = tmp_path / "plot.png"
    options = ["--references", str(references), "--top-k", "2", "8", "--ffn-top-k", "4", "--plot", str(plot)]
    top_k.main(["quality", str(tmp_path), *options])
    output = capsys.readouterr().out
    rows = helpers.table_rows(output)
    assert rows[0] == [
        "k",
        *(f"loss, {p}" for p in ("everywhere", "encoder", "decoder", "cross")),
        "sacreBLEU, everywhere",
    ]
    assert rows[2] == ["all", *["2.000"] * 4, "100.00"]
    assert rows[3] == ["8", "2.010 (+0.010)", *["2.100 (+0.100)"] * 3, "100.00 (+0.00)"]
    assert rows[4][:2] == ["2", "2.500 (+0.500)"] and float(rows[4][5].split()[0]) < 95
    assert ["4", "2.000 (+0.000)", "100.00 (+0.00)"] in rows
    assert ["loss, everywhere", "8"] in rows and ["loss, encoder", "above 8"] in rows
    assert ["sacreBLEU, everywhere", "8"] in rows and ["sacreBLEU, ffn", "4"] in rows
    assert "of 2 sentences" in output
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_finetuning(tmp_path, references, capsys):
    names = {"full": 2.0, "everywhere-2": 2.5, "top-2-tuned": 2.1, "full-tuned": 1.9, "full-tuned-top-2": 2.4}
    for name, loss in names.items():
        write_score(tmp_path, name, loss)
        write_translation(tmp_path, name, dict(enumerate(REFERENCES)))
    top_k.main(["finetuning", str(tmp_path), "--references", str(references), "--top-k", "2", "--updates", "200"])
    output = capsys.readouterr().out
    rows = {first: cells for first, *cells in helpers.table_rows(output)}
    assert rows["as it was"] == ["2.000", "100.00"]
    assert rows["top-2 applied"] == ["2.500 (+0.500)", "100.00 (+0.00)"]
    assert rows["trained on with top-2"][0] == "2.100 (+0.100)"
    assert rows["trained on with full attention"][0] == "1.900 (-0.100)"
    assert rows["the same, top-2 applied"][0] == "2.400 (+0.400)"
    assert "Trained on: 200 updates more." in output
