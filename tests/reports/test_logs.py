"""What is read from fairseq's logs, and from those that its commands write here."""

import re

import pytest
import sacrebleu

from elseq.errors import UserError
from elseq.reports.logs import Point, read_finished, read_generation, read_training, read_validations
from tests import helpers

LOG = """\
2026-01-01 00:00:00 | INFO | fairseq_cli.train | {'_name': None, 'common': {'seed': 1}, 'model': {'num_kv_heads': 2, \
'encoder_num_kv_heads': None, 'encoder_ffn_embed_dim': 800, 'decoder_attention_heads': 8}}
2026-01-01 00:00:01 | INFO | fairseq_cli.train | num. shared model params: 5,954,880 (num. trained: 5,954,880)
2026-01-01 00:00:02 | INFO | train_inner | epoch 001:     20 / 249 loss=12.072, nll_loss=11.877, ppl=3761.54, \
wps=1976.3, ups=1.06, wpb=1864.3, bsz=121.2, num_updates=20, lr=0.0002, gnorm=3.608, train_wall=20, wall=22
2026-01-01 00:00:03 | INFO | train_inner | epoch 001:     40 / 249 loss=10.128, nll_loss=9.703, ppl=833.71, \
wps=2080.9, ups=1.13, wpb=1846.3, bsz=115.6, num_updates=40, lr=0.0004, gnorm=1.451, train_wall=18, wall=39
2026-01-01 00:00:04 | INFO | valid | epoch 001 | valid on 'valid' subset | loss 7.9 | nll_loss 3 | ppl 8 | wps 5303.5 \
| wpb 1193.5 | bsz 78 | num_updates 40
2026-01-01 00:00:05 | INFO | train_inner | epoch 002:     11 / 249 loss=9e+00, nll_loss=8.1, ppl=274.4, wps=100, \
ups=1.13, wpb=1846.3, bsz=115.6, num_updates=60, lr=0.0004, gnorm=1.451, train_wall=18, wall=39
2026-01-01 00:00:06 | INFO | valid | epoch 002 | valid on 'valid' subset | loss 8.1 | nll_loss 4 | ppl 16 | wps 5303.5 \
| wpb 1193.5 | bsz 78 | num_updates 50 | best_loss 7.9
2026-01-01 00:00:07 | INFO | fairseq.checkpoint_utils | Saved checkpoint /a b/checkpoint_best.pt (epoch 2 @ 50 \
updates, score 8.1) (writing took 0.1 seconds)
2026-01-01 00:00:08 | INFO | valid | epoch 003 | valid on 'valid' subset | loss 8.3 | nll_loss 4.1 | ppl 17.15 | \
wps 5303.5 | wpb 1193.5 | bsz 78 | num_updates 60 | best_loss 8.1
2026-01-01 00:00:09 | INFO | fairseq.checkpoint_utils | Saved checkpoint /a b/checkpoint_last.pt (epoch 3 @ 60 \
updates, score 8.3) (writing took 0.1 seconds)
"""


@pytest.fixture
def write(tmp_path):
    def write(text):
        (tmp_path / "a.log").write_text(text)
        return tmp_path / "a.log"

    return write


# --- fairseq-train and fairseq-validate


def test_log_of_a_training(write):
    log = read_training(write(LOG))
    assert (log.kv_heads, log.ffn_width, log.parameters, log.words_per_second) == (2, 800, 5_954_880, 1976.3)
    assert log.training == [
        Point(20, 12.072, 11.877, 3761.54), Point(40, 10.128, 9.703, 833.71), Point(60, 9.0, 8.1, 274.4)
    ]  # fmt: skip
    assert [point.updates for point in log.validation] == [40, 50, 60]
    assert log.validation[0] == Point(40, 7.9, 3.0, 8.0)
    assert log.validation[0].perplexity == 8


def test_log_of_a_training_with_one_loss(write):
    """That of --criterion=cross_entropy."""
    log = read_training(write(re.sub(r"(, |\| )nll_loss\S? ?[\d.]+,? ?", r"\1", LOG)))
    assert (log.training[0].nll_loss, log.validation[0].nll_loss) == (12.072, 7.9)


def test_best_validation_is_that_of_a_checkpoint(write):
    """That of update 40 is lower, but no checkpoint was written then."""
    assert read_training(write(LOG)).best == Point(50, 8.1, 4.0, 16.0)


def test_as_many_key_value_heads_as_heads(write):
    assert read_training(write(LOG.replace("'num_kv_heads': 2", "'num_kv_heads': None"))).kv_heads == 8


def test_validation_of_a_checkpoint(write):
    text = "| INFO | valid | valid on 'valid' subset | loss 4.806 | nll_loss 3.41 | ppl 10.63 | wps 0 | bsz 1014\n"
    assert read_validations(write(text)) == [Point(0, 4.806, 3.41, 10.63)]


def test_validations_by_updates(write):
    line = (
        "valid | epoch 1 | valid on 'valid' subset | loss {} | nll_loss 3 | ppl 8.5{} | bsz 78 | num_updates {} | x 1\n"
    )
    again = line.format(9.5, " | bleu 0.5", 100) + line.format("8e+00", " | bleu 1.25", 200) + line.format(9.4, "", 100)
    assert read_validations(write(again)) == [Point(100, 9.4, 3.0, 8.5), Point(200, 8.0, 3.0, 8.5, 1.25)]


@pytest.mark.parametrize("text", ["", LOG.replace("Saved checkpoint", ""), LOG.replace("train_inner", "")])
def test_log_of_an_interrupted_training_is_refused(write, text):
    with pytest.raises(UserError, match="a.log: there is no complete training in it"):
        read_training(write(text))


def test_log_without_validation_is_refused(write):
    with pytest.raises(UserError, match="a.log: there is no validation in it"):
        read_validations(write(LOG.replace("valid on", "")))


@pytest.mark.parametrize("read", [read_training, read_validations, read_generation, read_finished])
def test_missing_log(tmp_path, read):
    with pytest.raises(UserError, match=r"a.log cannot be read \(No such file or directory\)"):
        read(tmp_path / "a.log")


def test_log_that_fairseq_train_writes(translation_data, tmp_path, write):
    options = ["--user-dir", helpers.USER_DIR, "--log-format=simple", "--log-interval=2", "--max-update=4"]
    command = helpers.train_command("elseq_transformer", translation_data, tmp_path, *options, "--num-kv-heads=1")
    result = helpers.run([*command, "--criterion=label_smoothed_cross_entropy"], check=True)
    log = read_training(write((result.stdout + result.stderr).decode()))
    assert [point.updates for point in log.training] == [2, 4]
    assert log.best == log.validation[-1] and log.best.updates == 4
    assert log.best.perplexity == pytest.approx(log.best.rounded_perplexity, rel=1e-3)
    assert (log.kv_heads, log.ffn_width) == (1, 64)
    assert log.parameters > 10_000 and log.words_per_second > 0


# --- fairseq-generate


def test_log_that_fairseq_generate_writes(tiny_translation, write):
    """A score without length penalty is the mean of its tokens'; BLEU is sacreBLEU's."""
    options = ["--user-dir", helpers.USER_DIR, "--task=elseq_translation", "--path", tiny_translation.checkpoint]
    command = ["fairseq-generate", tiny_translation.data, *options, "--beam=3", "--nbest=2", "--scoring=sacrebleu"]
    log = read_finished(write(helpers.run_here([*command, "--num-workers=0"]).stdout))
    references = (tiny_translation.raw / "test.tgt").read_text().splitlines()
    assert log.pieces.keys() == log.token_scores.keys() == set(range(len(references)))
    assert log.in_order == [log.pieces[number] for number in range(len(references))]
    for number, score in log.scores.items():
        assert score == pytest.approx(sum(log.token_scores[number]) / len(log.token_scores[number]), abs=1e-3)
        assert len(log.token_scores[number]) == len(log.pieces[number].split()) + 1
    assert f"BLEU = {sacrebleu.corpus_bleu(log.in_order, [references]).score:.2f} " in log.quality
    assert log.samples_per_second > 0 and log.state_bytes > 0


def test_log_of_an_interrupted_generation(write):
    path = write(
        "S-1\tx\nH-1\t-0.1\ti t\nD-1\t-0.1\tit\u2028rained\tx\nP-1\t-1.5 -2\nD-0\t-0.2\tso\nD-0\t-0.3\tworse\nD-2\t-0"
    )
    log = read_generation(path)
    assert log.in_order == ["so", "it\u2028rained\tx"]
    assert (log.pieces, log.scores, log.token_scores) == ({1: "i t"}, {1: -0.1}, {1: [-1.5, -2.0]})
    assert (log.samples_per_second, log.state_bytes, log.quality) == (None, None, "")
    with pytest.raises(UserError, match="a.log: fairseq-generate did not come to its end; run the recipe again"):
        read_finished(path)
