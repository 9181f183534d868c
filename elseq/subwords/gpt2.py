"""GPT-2's byte-level BPE in fairseq's files, encoder.json and vocab.bpe.

Special symbols in a text are recognized before BPE, as in transformers. (fairseq's `--bpe gpt2` splits them.)
"""

from collections.abc import Container, Mapping, Sequence
from pathlib import Path

from fairseq.data.encoders.gpt2_bpe_utils import bytes_to_unicode
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from elseq.errors import UserError
from elseq.model_files import ENCODER_JSON, VOCAB_BPE
from elseq.subwords.files import read_ids, read_merges
from elseq.subwords.tokens import END_OF_TEXT, NO_TOKENIZER, SPECIAL_SYMBOLS, Tokens, library_errors

MASK = "<mask>"
FILES = (ENCODER_JSON, VOCAB_BPE)


def read_gpt2(encoder: Path, merges: Path, symbols: Container[str] = (), is_language_model: bool = False) -> Tokens:
    """
    Args:
        encoder, merges: encoder.json and vocab.bpe.
        symbols: symbols of the dictionary, which may include <mask>.
        is_language_model: whether GPT-2's end of text is the end symbol.

    Raises:
        UserError: a file is missing or cannot be used, or the files belong to different vocabularies.
    """
    ids, pairs = read_ids(encoder), read_merges(merges)
    check_pieces(encoder, ids, merges, pairs)
    tokenizer = byte_level(ids, pairs, encoder)
    words = {each: str(each) for each in ids.values()}
    special = [AddedToken(symbol, normalized=False) for symbol in SPECIAL_SYMBOLS]
    if MASK in symbols:
        special.append(AddedToken(MASK, normalized=False, lstrip=True))  # as in BART's own tokenizer and fairseq's hub
    if is_language_model and END_OF_TEXT in ids:
        special.append(AddedToken(END_OF_TEXT, normalized=False))
    tokenizer.add_special_tokens(special)
    for token in special:
        words[tokenizer.token_to_id(token.content)] = "</s>" if token.content == END_OF_TEXT else token.content
    return Tokens(tokenizer, words)


def byte_level(pieces: Mapping[str, int], merges: Sequence[str], path: Path, add_prefix_space: bool = False):
    """A byte-level BPE tokenizer with these pieces, without special symbols.

    Raises:
        UserError: the result of a merge has no id.
    """
    pairs = [tuple(merge.split(" ")) for merge in merges]
    with library_errors(f"{path} {NO_TOKENIZER}"):
        tokenizer = Tokenizer(BPE(vocab=dict(pieces), merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def check_pieces(encoder: Path, ids: Mapping[str, int], merges: Path, pairs: Sequence[str]) -> None:
    """
    Raises:
        UserError: a byte or a piece has no id, or there are no merges.
    """
    if not pairs:
        raise UserError(f"{merges} has no pair of pieces to join: copy it again")
    for pair in pairs:
        if len(pair.split(" ")) != 2:
            raise UserError(f"{merges} has the line {pair!r}, which is no pair of pieces: copy it again")
    pieces = [*bytes_to_unicode().values(), *(pair.replace(" ", "") for pair in pairs)]
    lacking = next((piece for piece in pieces if piece not in ids), None)
    if lacking is not None:
        raise UserError(f"{encoder} has no number for {lacking!r}, a piece of {merges.name}: copy both again")
