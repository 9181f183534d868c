"""Losses against the length of sources: their intervals, the share that is recovered, and what is refused."""

import numpy
import pytest

from elseq.errors import UserError
from elseq.reports import long_input
from elseq.reports.long_input import Value, recovered
from tests.helpers import table_rows

QUESTIONS = 40
FINISHED = "Translated 1 sentences (9 tokens) in 1.0s (1.00 sentences/s, 9 tokens/s)\n"
TOKENS = numpy.random.default_rng(1).integers(3, 12, QUESTIONS)


def write_score(folder, name, loss, noise=0.1, tokens=TOKENS):
    """Of a model whose loss of a token is this on average, in an order that is not that of the questions."""
    generator = numpy.random.default_rng(sum(map(ord, name)))
    lines = []
    for question in generator.permutation(len(tokens)):
        bits = loss + noise * generator.standard_normal(tokens[question])
        lines.append(f"P-{question}\t" + " ".join(f"{-each:.4f}" for each in bits) + "\n")
    (folder / f"{name}.log").write_text("".join(lines))


def write_state(folder, method, length, size):
    (folder / f"state-{method}-{length}.log").write_text(f"INFO | decoding state: peak {size} bytes\n{FINISHED}")


LOSSES = {
    "own": 4.0, "other": 5.0,
    "cut-512": 4.2, "windows-512": 4.2, "top-k-512": 4.2, "tuned-cut-512": 4.1, "tuned-512": 4.1, "full-512": 4.1,
    "cut-4096": 5.0, "windows-4096": 4.75, "top-k-4096": 4.8, "tuned-cut-4096": 4.9, "tuned-4096": 4.25,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    for name, loss in LOSSES.items():
        write_score(tmp_path, name, loss)
    for length in (512, 4096):
        write_state(tmp_path, "kv", length, length * 2**11)
        write_state(tmp_path, "el", length, length * 2**9)
    return tmp_path


OPTIONS = ["--lengths", "512", "4096"]


def report(folder, *options):
    long_input.main([str(folder), *OPTIONS, *options])


def test_loss_and_its_interval_are_those_of_tokens_drawn_by_question(folder):
    """Against resamples made one by one, whose questions are drawn independently."""
    value = long_input.read_losses(folder, ["own", "cut-4096"])["cut-4096"]
    lines = dict(line.split("\t") for line in (folder / "cut-4096.log").read_text().splitlines())
    bits = [[-float(each) for each in lines[f"P-{question}"].split()] for question in range(QUESTIONS)]
    assert value.total == pytest.approx(sum(map(sum, bits)) / TOKENS.sum())
    generator, means = numpy.random.default_rng(7), []
    for _ in range(4000):
        drawn = [bits[question] for question in generator.integers(QUESTIONS, size=QUESTIONS)]
        means.append(sum(map(sum, drawn)) / sum(map(len, drawn)))
    assert value.interval == pytest.approx(numpy.quantile(means, (0.025, 0.975)), abs=0.01)


def test_differences_are_of_the_same_questions(folder):
    """A system that is 0.3 bits worse everywhere is so in every resample."""
    worse = []
    for line in (folder / "own.log").read_text().splitlines():
        question, _, scores = line.partition("\t")
        worse.append(f"{question}\t" + " ".join(f"{float(score) - 0.3:.4f}" for score in scores.split()) + "\n")
    (folder / "worse.log").write_text("".join(worse))
    losses = long_input.read_losses(folder, ["own", "worse"])
    assert losses["worse"].minus(losses["own"]).interval == pytest.approx((0.3, 0.3))
    assert losses["own"].interval[1] - losses["own"].interval[0] > 0.01


def value(total, spread=0.1):
    return Value(total, total + spread * numpy.linspace(-1, 1, 101))


def test_share_that_is_recovered():
    share = recovered(value(5.0), value(4.0), value(4.25))
    assert share.total == 0.75 and share.write(".0%") == "75% (75% to 75%)"
    assert recovered(value(5.0), value(4.0), value(5.5)).total == -0.5


def test_nothing_is_recovered_where_nothing_is_lost():
    noise = Value(4.1, 4.1 + numpy.random.default_rng(1).standard_normal(101))
    assert recovered(noise, value(4.0), value(3.0)) is None


def test_tables(folder, capsys):
    report(folder, "--tuned", "2048", "--plot", str(folder / "plot.png"))
    output = capsys.readouterr().out
    assert output.startswith("The marked text alone: 4.0") and "That the model uses the text is shown.\n" in output
    rows = table_rows(output)
    assert rows[0] == ["tokens", *long_input.TITLES.values()]
    assert [row[0] for row in rows] == 4 * ["tokens", *rows[1][:1], "512", "4,096"]
    losses = [[float(cell.split()[0]) if cell != "-" else None for cell in row[1:]] for row in rows[2:4]]
    assert losses[0] == pytest.approx([4.2, 4.2, 4.2, 4.1, 4.1, 4.1], abs=0.03)
    assert losses[1][:5] == pytest.approx([5.0, 4.75, 4.8, 4.9, 4.25], abs=0.03) and losses[1][5] is None
    assert rows[4] == ["tokens", *list(long_input.TITLES.values())[1:]]
    shares = [float(cell.split("%")[0]) for cell in rows[7][1:5]]
    assert shares == pytest.approx([25, 20, 10, 75], abs=4) and rows[7][5] == "-"
    assert rows[8] == ["tokens", *long_input.DIFFERENCES]
    differences = [float(cell.split()[0]) for cell in rows[11][1:4]]
    assert differences == pytest.approx([-0.25, 0.05, -0.65], abs=0.04) and rows[11][4] == "-" != rows[10][4]
    assert rows[12] == ["tokens", "kv", "el"]
    assert rows[14:] == [["512", "1.00", "0.250"], ["4,096", "8.00", "2.00"]]
    assert "of 40 examples" in output
    assert (folder / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_training(folder, capsys):
    for path in folder.glob("tuned-*"):
        path.unlink()
    report(folder)
    assert table_rows(capsys.readouterr().out)[0] == ["tokens", "cut", "in windows", "in windows, top-k"]


def test_a_model_that_does_not_use_its_source_is_named(folder, capsys):
    write_score(folder, "other", 4.0)
    report(folder)
    assert "That the model uses the text is not shown. The other figures then say nothing" in capsys.readouterr().out


@pytest.mark.parametrize("text", [None, "", "Traceback"])
@pytest.mark.parametrize("name", ["own", "windows-4096", "state-el-512"])
def test_logs_that_are_not_whole_are_refused(folder, name, text):
    path = folder / f"{name}.log"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(
        UserError, match=f"^{path}( is missing; run|: there are no scores in it|: fairseq-generate did not)"
    ):
        report(folder)


def test_a_state_that_is_not_told_is_refused(folder):
    (folder / "state-kv-512.log").write_text(FINISHED)
    with pytest.raises(UserError, match="state-kv-512.log: it does not say what the decoding state is"):
        report(folder)


@pytest.mark.parametrize("tokens", [TOKENS[:-1], TOKENS + 1])
def test_other_references_are_refused(folder, tokens):
    write_score(folder, "windows-512", 4.2, tokens=tokens)
    with pytest.raises(UserError, match=r"windows-512\.log has other references than .*own\.log; run the recipe again"):
        report(folder)


def test_the_plot_is_no_log(folder):
    with pytest.raises(UserError, match=r"^--plot .*own\.log is an input"):
        report(folder, "--plot", str(folder / "own.log"))
