"""The options of the commands and of `elseq.load`, as dataclasses; see `elseq.arguments.add_fields`.

This module and what it imports need neither torch nor fairseq, which take seconds to import: a command answers --help
and refuses options without them.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import elseq
from elseq.arguments import count, option_field, parse_bytes, read_path
from elseq.errors import UserError, as_option
from elseq.files import check_ordinary, user_dirs

if TYPE_CHECKING:
    import torch

AUTO = "auto"  # instead of a decoding method: the one that suits the machine and the batch
STOCK = "stock"  # everything is left to fairseq: its modules and its generator
METHODS = ("kv", "el")  # elseq's own
INT8 = "int8"
DTYPES = ("float32", "float16", "bfloat16", "float64", INT8)
CODES_PROGRAMS = ("subword_nmt", "fastbpe")  # that make --bpe-codes
# The values of --bpe, with fairseq's names, and the options that name the files of each.
BPE = {
    **dict.fromkeys(CODES_PROGRAMS, ("bpe_codes",)),
    "sentencepiece": ("sentencepiece_model",),
    "gpt2": ("gpt2_encoder_json", "gpt2_vocab_bpe"),
    "hugging_face": ("tokenizer_json",),
}
BPE_FILES = tuple(dict.fromkeys(name for names in BPE.values() for name in names))
CONSTRAINTS = ("ordered", "unordered")
WINDOWS = ("long_input", "source_window", "source_window_overlap")
# Options of `Loading` that elseq_translation has as well, and those of all elseq tasks, with the same names.
OF_TRANSLATION = ("prepend_source_bos", "force_bos")
OF_TASK = ("apply_top_k", "apply_top_k_in", "apply_ffn_top_k", *WINDOWS)
YES_OR_NO = ("yes", "no")
FIRST, BOUND, NEVER = RULES = ("first", "bound", "never")  # of --early-stopping


def registered_methods() -> tuple[str, ...]:
    """The names of the decoding methods, with those of the plugins that were imported."""
    registry = sys.modules.get("elseq.attention.methods")
    return METHODS if registry is None else tuple(registry.METHODS)


def decode_attention_names() -> tuple[str, ...]:
    """The values of --attention and of --decode-attention."""
    return (AUTO, *registered_methods(), STOCK)


CHECKPOINT_NAMES = ("model.pt", "checkpoint_best.pt", "checkpoint_last.pt")  # in a folder that is given as one
# The same in every command that decodes.
CHECKPOINT = f"a checkpoint of fairseq or elseq, or its folder (with {', '.join(CHECKPOINT_NAMES)})"
THREADS = {
    "type": count,
    "metavar": "N",
    "help": "threads of torch on a CPU (default: OMP_NUM_THREADS, otherwise the number of cores)",
}


def help_of(kind: type, name: str) -> str:
    """The help of a field."""
    return next(each.metadata["help"] for each in fields(kind) if each.name == name)


def folders_of_plugins(text: str) -> str:
    """A value of --user-dir. It is imported at once, because the plugin may add values of other options.

    Raises:
        UserError: a folder that cannot be imported.
    """
    elseq.set_up()  # a plugin registers with fairseq as elseq has repaired it
    from elseq.compat.commands import import_user_dirs

    try:
        import_user_dirs(text)
    except UserError as error:
        raise UserError(error.sentence) from error
    return text


@dataclass(frozen=True)
class Loading:
    """The options of loading a checkpoint: the keywords of `elseq.load`, and options of the commands that load one."""

    attention: str = option_field(
        AUTO,
        help="the decoding method: kv keeps keys and values, el hidden states (less memory), auto chooses one of "
        "the two, stock is fairseq's own",
        choices=decode_attention_names,
    )
    device: str | torch.device | None = option_field(
        help="cpu, cuda or cuda:1 (default: a GPU if there is one, one per process)"
    )
    dtype: str | torch.dtype | None = option_field(
        help="type of the parameters, or int8 linear layers, on a CPU (default: float32, as in fairseq-generate)",
        choices=DTYPES,
    )
    data: str | Path | None = option_field(
        metavar="FOLDER",
        help="folder of dictionaries and subword vocabulary (default: the checkpoint's, else its training data's)",
    )
    source_lang: str | None = option_field(
        metavar="LANGUAGE",
        help="language of the sources: one of a multilingual model's, or that in the name of the dictionary (default: "
        "the checkpoint's)",
    )
    target_lang: str | None = option_field(metavar="LANGUAGE", help="the same of the targets")
    prepend_source_bos: str | bool | None = option_field(
        choices=YES_OR_NO,
        help="put <s> before the source (default: as in the checkpoint, where that tells; yes for BART)",
    )
    force_bos: str | bool | None = option_field(
        choices=YES_OR_NO, help="begin every target with <s> (default: the same)"
    )
    user_dir: str | Path | None = option_field(
        metavar="FOLDER",
        type=folders_of_plugins,
        help="folder of a plugin that has the model's architecture; separate several by colons",
    )
    bpe: str | None = option_field(
        choices=tuple(BPE),
        help="kind of the subword vocabulary in the files that are named (default: the one in the folder of --data or "
        "of the checkpoint)",
    )
    bpe_codes: str | Path | None = option_field(metavar="FILE", help="the codes of subword-nmt or fastBPE")
    sentencepiece_model: str | Path | None = option_field(metavar="FILE", help="for --bpe sentencepiece")
    gpt2_encoder_json: str | Path | None = option_field(metavar="FILE", help="for --bpe gpt2")
    gpt2_vocab_bpe: str | Path | None = option_field(metavar="FILE", help="for --bpe gpt2")
    tokenizer_json: str | Path | None = option_field(metavar="FILE", help="for --bpe hugging_face")
    lm_path: str | Path | None = option_field(
        metavar="FILE", help="a language model of the target's dictionary, for --lm-weight (default: none)"
    )
    apply_top_k: int | None = option_field(
        metavar="K",
        type=int,
        help="decode a trained model with the k largest scores of each query only; 0: with all (default: as "
        "--attention-top-k was in its training)",
    )
    apply_top_k_in: str | None = option_field(
        metavar="PLACES",
        help="where --apply-top-k counts: of encoder, decoder, cross (default: in all; for sources of any length, as "
        "--long-input reads them, cross)",
    )
    apply_ffn_top_k: int | None = option_field(
        metavar="K",
        type=int,
        help="decode a trained model with the k most activated units of a feed-forward layer only, for each token; "
        "0: with all (default: as --ffn-top-k was in its training)",
    )
    long_input: bool = option_field(
        False,
        help="sources of any length: the encoder reads windows of as many tokens as it has positions, which overlap by "
        "half, and each query of the decoder attends to as many states, those of the largest scores. --source-window, "
        "--source-window-overlap and --apply-top-k change these numbers (default: as in the training)",
    )
    source_window: int | None = option_field(
        metavar="W",
        type=int,
        help="encode a source of more than W tokens in windows of W; 0: none (default: as in the training)",
    )
    source_window_overlap: int | None = option_field(
        metavar="O", type=int, help="tokens that neighbouring windows have in common (default: half of a window)"
    )

    def of_task(self) -> dict:
        """The options of the elseq tasks that are set, with their names there."""
        given = {name: value for name in (*OF_TRANSLATION, *OF_TASK) if (value := getattr(self, name)) is not None}
        for name in OF_TRANSLATION:
            if isinstance(given.get(name), bool):  # in Python
                given[name] = "yes" if given[name] else "no"
        return given

    def inputs(self) -> list[Path]:
        """The files and folders that these options name."""
        names = ("data", "lm_path", *BPE_FILES)
        named = [as_path(path, name) for name in names if (path := getattr(self, name)) is not None]
        folders = user_dirs(str(self.user_dir)) if self.user_dir is not None else []
        return named + [path for folder in folders for path in Path(folder).rglob("*.py")]

    def bpe_files(self) -> list[Path]:
        """The files of the subword vocabulary of --bpe."""
        return [as_path(getattr(self, name), name) for name in BPE[self.bpe]]

    def check(self) -> None:
        """Check the files that these options name, as far as that needs no model.

        Raises:
            UserError: the folder of the dictionaries does not exist, or the files of the subword vocabulary are missing
                or do not go with its kind.
        """
        if self.data is not None and not os.path.isdir(folder := as_path(self.data, "data")):
            raise UserError(f"{folder} is no folder; name that of the dictionaries", "data")
        of_task = self.of_task()
        for name in OF_TRANSLATION:
            if of_task.get(name) not in (None, *YES_OR_NO):
                raise UserError(f"{getattr(self, name)!r} is not possible: give yes or no", name)
        if self.bpe is not None and self.bpe not in tuple(BPE):
            raise UserError(f"{self.bpe!r} is unknown; choose one of {', '.join(BPE)}", "bpe")
        needed = BPE.get(self.bpe, ())
        for name in BPE_FILES:
            value = getattr(self, name)
            if value is None and name in needed:
                what = f"the codes of {self.bpe}" if name == "bpe_codes" else self.bpe
                raise UserError(f"is missing: name the file of {what}", name)
            if value is None:
                continue
            if self.bpe is None:
                kinds = " or ".join(kind for kind, files in BPE.items() if name in files)
                remedy = "say whose codes they are," if name == "bpe_codes" else f"{value} needs"
                raise UserError(f"is missing: {remedy} {kinds}", "bpe")
            if name not in needed:
                raise UserError(f"{value} does not go with bpe {self.bpe}: leave out one", name, ["bpe"])
            path = as_path(value, name)
            check_ordinary(path)
            if not os.path.isfile(path):
                raise UserError(f"{path} is no file: check the path", name)

    def deciding(self) -> dict:
        """The options on which the output depends, with their names on the command line. The effect of the others is in
        the dictionaries, the tokens and the parameters."""
        names = ("attention", "source_lang", "target_lang", *OF_TRANSLATION, *OF_TASK)
        return {as_option(name): getattr(self, name) for name in names}


@dataclass(frozen=True)
class Batching:
    """How texts are decoded together."""

    max_tokens: int = option_field(4096, type=count, metavar="N", help="of a batch: texts times the longest text")
    memory_budget: int | str | None = option_field(
        type=parse_bytes,
        metavar="BYTES",
        help="memory of a batch, such as 16G, instead of --max-tokens. It covers the decoding state (exact), "
        "the activations of a layer, the logits and the generated words (upper estimates), but not the parameters "
        "and what the allocator loses: leave a tenth of the memory for that. With --attention auto it assumes the "
        "larger of kv and el. A batch that runs out of memory is split in any case",
    )
    truncate: bool = option_field(False, help="cut texts that are too long instead of refusing them")
    seed: int | None = option_field(1, type=int, metavar="N", help="seed of the random numbers for --sampling")

    def deciding(self) -> dict:
        """The options that decide the output, by their names on the command line."""
        options = {as_option(each.name): getattr(self, each.name) for each in fields(self)}
        return options | {"--max-tokens": self.max_tokens if self.memory_budget is None else None}


@dataclass(frozen=True)
class Search:
    """The options of a search that decide which hypotheses are found, with fairseq's names and defaults.

    fairseq's others are about files and output.
    """

    beam: int = option_field(5, type=int, help="hypotheses that are searched for at once")
    nbest: int = option_field(1, type=int, help="hypotheses that are written")
    lenpen: float = option_field(
        1.0, type=float, help="length penalty: above 1 favours longer hypotheses, below 1 shorter"
    )
    unnormalized: bool = option_field(False, help="do not divide scores by the length")
    unkpen: float = option_field(0.0, type=float, help="above 0 gives fewer unknown words, below 0 more")
    temperature: float = option_field(1.0, type=float, help="above 1 gives flatter distributions, below 1 sharper ones")
    no_repeat_ngram_size: int = option_field(
        0, type=int, help="no hypothesis has an n-gram of this size twice; 0: any may"
    )
    min_len: int = option_field(1, type=int, help="tokens at least, the end apart")
    max_len_a: float = option_field(0.0, type=float, help="tokens at most, the end apart: A times the source, and B")
    max_len_b: int = option_field(200, type=int, help="the B of --max-len-a")
    match_source_len: bool = option_field(False, help="hypotheses are as long as their source")
    sampling: bool = option_field(False, help="draw words at random instead of beam search")
    sampling_topk: int = option_field(-1, type=int, help="with --sampling: of the K likeliest words; -1: of all")
    sampling_topp: float = option_field(
        -1.0, type=float, help="with --sampling: of the fewest words whose probabilities sum to P; -1: of all"
    )
    diverse_beam_groups: int = option_field(-1, type=int, help="groups of diverse beam search; -1: none")
    diverse_beam_strength: float = option_field(0.5, type=float, help="penalty for words of earlier groups")
    diversity_rate: float = option_field(-1.0, type=float, help="penalty of diverse siblings search; -1: none")
    constraints: str | None = option_field(
        choices=CONSTRAINTS,
        nargs="?",
        const=CONSTRAINTS[0],
        help="phrases that the output must contain follow the text in its line, each after a tab; ordered: in this "
        "order",
    )
    lm_weight: float = option_field(0.0, type=float, help="of the log-probabilities of --lm-path, which are added")
    early_stopping: str = option_field(
        FIRST,
        choices=RULES,
        help=f"when beam search ends: {', '.join(RULES)}. first: --beam hypotheses have ended; bound: "
        "and no other scores more at its present length; never: and none can up to the maximum length. "
        "transformers' early_stopping is True, False and never",
    )
    beam_patience: float = option_field(
        1.0, type=float, help="with --early-stopping first, search until this times --beam hypotheses have ended"
    )


SEARCH_OPTIONS = tuple(each.name for each in fields(Search))


def as_path(value, argument: str) -> Path:
    """
    Raises:
        UserError: it is not a path.
    """
    if not isinstance(value, str | os.PathLike):
        raise UserError(f"{value!r} is no path; give one", argument)
    return read_path(value)
