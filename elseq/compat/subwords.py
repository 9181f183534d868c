"""Subwords: characters and bytes, words that are not pieces, and decoding by sentencepiece."""

from fairseq.data.encoders.gpt2_bpe import GPT2BPE
from fairseq.data.encoders.sentencepiece_bpe import SentencepieceBPE
from fairseq.dataclass import FairseqDataclass
from fairseq.registry import REGISTRIES
from hydra.core.config_store import ConfigStore

from elseq.compat.patching import wrap

_FILLER = "madeupword"  # fairseq's padding words of a dictionary


def choose_characters_and_bytes():
    """--bpe characters and --bpe bytes end in a traceback of Hydra, which knows only choices with a configuration."""
    for name in ("bytes", "characters"):
        REGISTRIES["bpe"]["dataclass_registry"][name] = FairseqDataclass
        ConfigStore.instance().store(name, FairseqDataclass(_name=name), group="bpe", provider="fairseq")


def say_nothing_for_words_that_are_no_piece():
    """With --bpe gpt2, generating a word that is not a number in encoder.json (such as madeupword0000, which fairseq
    adds to dictionaries), or whose piece is not spelled in bytes, ends the run with a ValueError or KeyError."""

    def decode(decode, bpe, words):
        return decode(bpe, " ".join(word for word in words.split() if _is_piece(bpe.bpe, word)))

    wrap(GPT2BPE, "decode", decode)


def _is_piece(bpe, word):
    if word in ("<unk>", "<mask>"):
        return True
    piece = bpe.decoder.get(int(word)) if word.isdecimal() else None
    return piece is not None and all(letter in bpe.byte_decoder for letter in piece)


def decode_by_sentencepiece():
    """With --bpe sentencepiece, fairseq only removes the spaces between pieces: characters that are spelled in bytes
    become "<0xF0><0x9F>..."."""

    def decode(decode, bpe, words):
        text, run = [], []
        for word in [*words.split(), None]:
            number = None if word is None else bpe.sp.piece_to_id(word)
            if number is not None and not bpe.sp.is_unknown(number):
                run.append(word)
                continue
            text.append(_decode_run(bpe.sp, run, bool(text)))
            run = []
            if word is not None and not word.startswith(_FILLER):
                text.append(word.replace("\u2581", " "))  # <unk>, and words of a dictionary that are not pieces
        return "".join(text).strip()

    wrap(SentencepieceBPE, "decode", decode)


def _decode_run(processor, pieces, has_text_before):
    text = processor.decode_pieces(pieces) if pieces else ""
    # The model strips the space of the first word of a text, but this is not the first word.
    return f" {text}" if has_text_before and pieces and pieces[0].startswith("\u2581") else text
