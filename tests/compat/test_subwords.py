"""Words become text as the library has it, and what is no piece ends no run."""

import json
from argparse import Namespace

import pytest
import sentencepiece
from fairseq.data import encoders
from fairseq.data.encoders.gpt2_bpe import GPT2BPE
from fairseq.data.encoders.gpt2_bpe_utils import bytes_to_unicode
from fairseq.data.encoders.sentencepiece_bpe import SentencepieceBPE

from tests.subwords.test_pieces import train


def test_gpt2(tmp_path, without):
    letters = {letter: number for number, letter in enumerate(bytes_to_unicode().values())} | {"a pause": 256}
    (tmp_path / "encoder.json").write_text(json.dumps(letters))
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\n")
    paths = {"gpt2_encoder_json": str(tmp_path / "encoder.json"), "gpt2_vocab_bpe": str(tmp_path / "vocab.bpe")}
    bpe = encoders.build_bpe(Namespace(bpe="gpt2", **paths))
    words = f"madeupword0008 {letters['a']} 256 99999 <mask> {letters['b']} <<unk>> <unk>"
    assert bpe.decode(words) == "a<mask>b<unk>"
    without(GPT2BPE, "decode")
    for word in ("madeupword0008", "256", "99999"):
        with pytest.raises((ValueError, KeyError, TypeError)):
            bpe.decode(word)


def test_sentencepiece(tmp_path, without):
    path = train(tmp_path / "a.model")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    bpe = encoders.build_bpe(Namespace(bpe="sentencepiece", sentencepiece_model=str(path)))
    texts = ["the river 👩 <hl> in é", "the city"]
    pieces = [" ".join(processor.encode(text, out_type=str)) for text in texts]
    assert list(map(bpe.decode, pieces)) == texts
    assert bpe.decode(f"<unk> {pieces[1]} madeupword0001 <<unk>> {pieces[1]}") == "<unk> the city<<unk>> the city"
    without(SentencepieceBPE, "decode")
    assert bpe.decode(pieces[0]).startswith("the river <0xF0><0x9F>")
    assert bpe.decode(pieces[1]) == texts[1]
