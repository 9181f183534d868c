"""--bpe hugging_face of fairseq's commands."""

from argparse import ArgumentParser, Namespace

import pytest
from fairseq.data import encoders
from fairseq.dataclass.utils import gen_parser_from_dataclass

from elseq.errors import UserError
from elseq.subwords.fairseq_bpe import HuggingFaceTokenizerConfig
from tests.subwords.test_finding import TEXT, write_tokenizer


def test_it_is_the_tokenizer_of_the_file(tmp_path):
    number = write_tokenizer(tmp_path)
    found = encoders.build_bpe(Namespace(bpe="hugging_face", tokenizer_json=str(tmp_path / "tokenizer.json")))
    assert found.encode(TEXT) == number and found.decode(number) == TEXT


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="tokenizer.json"):
        encoders.build_bpe(Namespace(bpe="hugging_face", tokenizer_json=str(tmp_path / "tokenizer.json")))


def test_its_option_is_of_fairseq_s_commands():
    parser = ArgumentParser()
    gen_parser_from_dataclass(parser, HuggingFaceTokenizerConfig())
    assert parser.parse_args(["--tokenizer-json=x"]).tokenizer_json == "x"
