"""The content of sentencepiece models against the library."""

import io

import pytest
import sentencepiece
from tokenizers import normalizers

from elseq.interop.hugging_face.sentencepieces import read_model
from tests.interop.hugging_face.making import TEXT


def train(path, algorithm="unigram", text=TEXT, **options):
    model, text = io.BytesIO(), text.split(" ")
    lines = [" ".join(text[start : start + 5]) for start in range(len(text))] * 20
    fixed = {"vocab_size": 80, "hard_vocab_limit": False, "character_coverage": 1.0, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, model_type=algorithm, **(fixed | options)
    )
    path.write_bytes(model.getvalue())
    return path


@pytest.mark.parametrize("algorithm", ["unigram", "bpe"])
@pytest.mark.parametrize("rule", ["nmt_nfkc", "nfkc_cf", "identity"])
def test_content(tmp_path, algorithm, rule):
    path = train(
        tmp_path / "a.model",
        algorithm,
        normalization_rule_name=rule,
        user_defined_symbols=["<hl>"],
        control_symbols=["<ctl>"],
    )
    model = read_model(path)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    numbers = range(processor.get_piece_size())
    assert model.pieces == [(processor.id_to_piece(number), processor.get_score(number)) for number in numbers]
    symbols = {token.content: token.special for token in model.symbols}
    assert symbols == {"<s>": True, "</s>": True, "<ctl>": True, "<hl>": False}
    assert bool(model.charsmap) == (rule != "identity")
    if model.charsmap:
        normalizer = sentencepiece.SentencePieceNormalizer(
            model_file=str(path), add_dummy_prefix=False, escape_whitespaces=False, remove_extra_whitespaces=False
        )
        for text in ("ﬁne ½ ①", "ＡＢＣ", "naïve\u3000x", "Straße"):
            assert normalizers.Precompiled(model.charsmap).normalize_str(text) == normalizer.normalize(text)
