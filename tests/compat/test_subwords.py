"""Words become text as the library has it, and what is no piece ends no run."""

import json
import re
from argparse import Namespace

import pytest
import sentencepiece
from fairseq.data import encoders
from fairseq.data.encoders.gpt2_bpe import GPT2BPE
from fairseq.data.encoders.gpt2_bpe_utils import bytes_to_unicode
from fairseq.data.encoders.sentencepiece_bpe import SentencepieceBPE
from fairseq.registry import REGISTRIES
from hydra.core.config_store import ConfigStore
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from tests import helpers
from tests.subwords.test_pieces import train


@pytest.mark.parametrize("kind", ["characters", "bytes"])
@pytest.mark.parametrize("task", ["translation", "elseq_translation"])
def test_characters_and_bytes(tiny_translation, kind, task, monkeypatch):
    command = [
        "fairseq-interactive",
        tiny_translation.data,
        "--path",
        tiny_translation.checkpoint,
        "--cpu",
        "--bpe",
        kind,
    ]
    command += ["-s", "src", "-t", "tgt", "--task", task, "--user-dir", helpers.USER_DIR]
    printed = helpers.run_here(command, input="ab é\n".encode()).stdout
    best, text = (re.search(rf"^{letter}-0\t\S+\t(.*)$", printed, re.MULTILINE)[1] for letter in "HD")
    assert text == best.replace(" ", "")
    bpe = encoders.build_bpe(OmegaConf.create({"_name": kind}))
    pieces = {"characters": "a b \u2581 é", "bytes": "a b \u2581 Ã ©"}[kind]
    assert (bpe.encode("ab é"), bpe.decode(pieces)) == (pieces, "ab é")
    monkeypatch.delitem(REGISTRIES["bpe"]["dataclass_registry"], kind)
    monkeypatch.delitem(ConfigStore.instance().repo["bpe"], f"{kind}.yaml")
    with pytest.raises(ConfigCompositionException):
        helpers.run_here(command)


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
