"""Repairs of fairseq's own search and output."""

import copy
import dataclasses
import math
import traceback
from typing import NamedTuple

import torch
from fairseq import scoring, search, sequence_generator, utils
from fairseq.dataclass.configs import GenerationConfig
from fairseq.scoring import bleu
from fairseq.sequence_generator import SequenceGenerator, SequenceGeneratorWithAlignment
from fairseq.tasks import FairseqTask
from torch import Tensor

from elseq.bounds import check_bounds
from elseq.compat.patching import wrap
from elseq.errors import UserError, as_option, options_checked, renamed
from elseq.numerics import explain_nan


def score_what_is_printed():
    """fairseq-generate prints no <s>, but its BLEU counts one as a word, also that with which all targets begin."""

    def build_scorer(build, choice, tgt_dict):
        scorer = build(choice, tgt_dict)
        if isinstance(scorer, bleu.Scorer):
            add = scorer.add
            scorer.add = lambda *texts: add(*(tokens[tokens.ne(tgt_dict.bos())] for tokens in texts))
        return scorer

    wrap(scoring, "build_scorer", build_scorer)


_NO_DICTIONARY = "@@ "  # fairseq's value of --replace-unk without an argument


def replace_unknown_words():
    """`utils.replace_unk` treats the alignment as a list of source positions, but it has (source, target) pairs.
    --replace-unk without a dictionary tries to open a file."""
    utils.replace_unk = replace_unk
    wrap(utils, "load_align_dict", _load_align_dict)


def _load_align_dict(load, path):
    if path == _NO_DICTIONARY:
        return {}
    try:
        return load(path)
    except OSError as error:
        raise UserError(f"--replace-unk {path} cannot be read ({error.strerror}): check the path") from error
    except (IndexError, UnicodeDecodeError) as error:
        raise UserError(f"--replace-unk {path} is no alignment dictionary: give two words per line in UTF-8") from error


def with_alignment(args):
    """Options of generation that align hypotheses where --replace-unk needs it to know which word to copy. fairseq
    replaces nothing without --print-alignment, which prints the alignments, too."""
    if getattr(args, "replace_unk", None) is not None and not getattr(args, "print_alignment", None):
        args = copy.copy(args)
        args.print_alignment = "hard"
    return args


def replace_unk(hypo_str, src_str, alignment, align_dict, unk):
    """`hypo_str` with each unknown word replaced by the source word aligned to it, or that word's `align_dict` entry.

    `alignment` is a list of (source, target) pairs, or of the source position of each target word. Unknown words
    that are unaligned, or aligned to the end of the sentence, stay.
    """
    source = src_str.split()
    pairs = [pair if isinstance(pair, (tuple, list)) else (int(pair), target) for target, pair in enumerate(alignment)]
    aligned = {target: source[position] for position, target in pairs if 0 <= position < len(source)}
    words = hypo_str.split()
    for target, word in enumerate(words):
        if word == unk and target in aligned:
            words[target] = align_dict.get(aligned[target], aligned[target])
    return " ".join(words)


def search_diverse_groups_apart():
    """Diverse beam search requests only as many candidates as hypotheses, and marks ended ones by their position:
    hypotheses move to other groups, and ended ones continue after the end symbol. It also stores the overlap of the
    groups by the sentence's position in the batch, but looks it up by the sentence's number in the data, which gives an
    IndexError, or the overlap of another sentence."""
    search.DiverseBeamSearch = DiverseBeamSearch


class _Chosen(NamedTuple):
    """What a group chooses among its candidates."""

    scores: Tensor  # [B, C], -inf: not chosen
    tokens: Tensor  # int64 [B, C]
    hypotheses: Tensor  # int64 [B, C], among all of the sentence
    ends: Tensor  # bool [B, C]: the group finishes it
    counts: Tensor  # [B, C]: 1 for what is chosen, 0 for the others
    keys: Tensor  # int64 [B, C]: by which the candidates of all groups are ordered


class DiverseBeamSearch(search.DiverseBeamSearch):
    """Each group is a separate beam search, which ends when it has its share of the hypotheses. As in fairseq, tokens
    that earlier groups choose in the same step, to continue or to end, get lower scores.

    A generator finishes those of the first `beam` candidates that end, and continues with the first `beam` that do not.
    Ended candidates therefore come first here, and the others are in the positions of their groups.

    Shapes: B sentences, G groups of K hypotheses (hypothesis n is in group n % G), V tokens of the
    vocabulary, C candidates of a group.
    """

    def __init__(self, tgt_dict, num_groups, diversity_strength, diversity_discount=1.0, candidate_multiple=1):
        """As in fairseq. `candidate_multiple` is ignored: there are always twice as many candidates as hypotheses."""
        super().__init__(tgt_dict, num_groups, diversity_strength, diversity_discount, candidate_multiple)
        self.ended = torch.empty(0)  # [B, G]: finished hypotheses of each group

    @torch.jit.export
    def prune_sentences(self, batch_idxs: Tensor):
        self.group_overlap = self.group_overlap[batch_idxs]
        self.ended = self.ended[batch_idxs]

    @torch.jit.export
    def step(
        self,
        step: int,
        lprobs,
        scores,
        prev_output_tokens: Tensor | None = None,
        original_batch_idxs: Tensor | None = None,
    ):
        share = self.begin(step, lprobs)
        chosen: list[_Chosen] = []
        for group in range(self.num_groups):
            penalty = torch.zeros_like(lprobs[:, 0])
            if group > 0:
                tokens, weights = self.taken(group, chosen)
                penalty.scatter_add_(1, tokens, weights)
            log_probs = self.lowered(group, share, lprobs[:, group :: self.num_groups], penalty.unsqueeze(1))
            before = scores[:, group :: self.num_groups] if step > 0 else None
            best, tokens, beams = self.beam.step(step, log_probs, before, candidate_multiple=2)
            chosen.append(self.choose(group, share, best, tokens, beams))
        return self.end(share, chosen)

    def begin(self, step: int, lprobs) -> int:
        """The hypotheses of a group; lprobs: [B, beam, ...]."""
        sentences, beam, groups = lprobs.size(0), lprobs.size(1), self.num_groups
        if beam % groups != 0:
            raise ValueError("DiverseBeamSearch requires --beam to be divisible by the number of groups")
        if step == 0:
            self.group_overlap = lprobs.new_zeros(sentences, groups, groups)
            self.ended = lprobs.new_zeros(sentences, groups)
        return beam // groups

    def taken(self, group: int, chosen: list[_Chosen]) -> tuple[Tensor, Tensor]:
        """The tokens of the candidates of earlier groups, int64 [B, group * C], and how often each counts."""
        tokens = torch.stack([each.tokens for each in chosen], dim=1)
        weights = torch.stack([each.counts for each in chosen], dim=1)
        weights = weights * (1 + self.group_overlap[:, group, :group]).unsqueeze(2)
        return tokens.flatten(1), weights.flatten(1)

    def lowered(self, group: int, share: int, lprobs, penalty):
        """Log-probabilities of a group [B, K, ...] where its tokens were taken so often; -inf if it has ended."""
        is_over = self.ended[:, group].ge(share).view(-1, 1, 1)
        return (lprobs + self.diversity_strength * penalty).masked_fill(is_over, -math.inf)

    def choose(self, group: int, share: int, scores, tokens, hypotheses) -> _Chosen:
        """Among candidates, best first, each [B, C]; hypotheses: of the group."""
        rank = torch.arange(scores.size(1), device=scores.device)
        is_end = tokens.eq(self.eos) & scores.gt(-math.inf)
        is_last = is_end & rank.lt(share)
        is_last = is_last & (self.ended[:, group].unsqueeze(1) + is_last.cumsum(1)).le(share)
        place = (~is_end).cumsum(1) - 1
        is_next = ~is_end & place.lt(share)
        keys = torch.where(is_last, rank, torch.where(is_next, share + place, 3 * share + rank))
        scores = scores.masked_fill(~(is_last | is_next), -math.inf)
        counts = scores.gt(-math.inf).to(scores)
        groups = self.num_groups
        return _Chosen(scores, tokens, hypotheses * groups + group, is_last, counts, keys * groups + group)

    def end(self, share: int, chosen: list[_Chosen]) -> tuple[Tensor, Tensor, Tensor]:
        """The candidates of the sentences: scores, tokens and hypotheses."""
        self.ended = self.ended + torch.stack([each.ends.sum(1) for each in chosen], dim=1)
        tokens = torch.stack([each.tokens for each in chosen], dim=1)
        counts = torch.stack([each.counts for each in chosen], dim=1)
        same = tokens.unsqueeze(2).eq(tokens.unsqueeze(1)) * counts.unsqueeze(2) * counts.unsqueeze(1)
        self.group_overlap = self.diversity_discount * (self.group_overlap + same.sum(3))
        order = torch.cat([each.keys for each in chosen], dim=1).argsort(dim=1)[:, : 2 * share * self.num_groups]
        return (
            torch.cat([each.scores for each in chosen], dim=1).gather(1, order),
            torch.cat([each.tokens for each in chosen], dim=1).gather(1, order),
            torch.cat([each.hypotheses for each in chosen], dim=1).gather(1, order),
        )


def ask_for_enough_candidates():
    """Search among allowed tokens (`prefix_allowed_tokens_fn`) requests only as many candidates as hypotheses. Ended
    hypotheses are not replaced, and continue after the end symbol."""
    search.PrefixConstrainedBeamSearch = PrefixConstrainedBeamSearch


class PrefixConstrainedBeamSearch(search.PrefixConstrainedBeamSearch):
    """Beam search among the tokens that a function allows."""

    def __init__(self, tgt_dict, prefix_allowed_tokens_fn):
        super().__init__(tgt_dict, prefix_allowed_tokens_fn)
        self.beam = search.BeamSearch(tgt_dict)

    def step(self, step, lprobs, scores, prev_output_tokens, original_batch_idxs):
        mask = self.apply_mask(lprobs.flatten(0, 1).unsqueeze(1), prev_output_tokens, original_batch_idxs)
        return self.beam.step(step, lprobs + mask.view_as(lprobs), scores)


def draw_the_end_where_nothing_is_left():
    """Sampling fails if no word is possible after a hypothesis. On a GPU this ends the process."""
    search.Sampling = Sampling


class Sampling(search.Sampling):
    """A hypothesis without a possible next word ends with an unchanged score."""

    draw = search.Sampling.step

    @torch.jit.export
    def step(
        self,
        step: int,
        lprobs,
        scores,
        prev_output_tokens: Tensor | None = None,
        original_batch_idxs: Tensor | None = None,
    ):
        nothing = lprobs.amax(dim=2).exp().eq(0)
        lprobs[:, :, self.eos] = lprobs[:, :, self.eos].masked_fill(nothing, 0.0)
        return self.draw(step, lprobs, scores, prev_output_tokens, original_batch_idxs)


def align_fewer_hypotheses():
    """With --print-alignment, fairseq expects as many hypotheses of each sentence as the beam. Lexical constraints may
    leave fewer, which gives an IndexError."""
    wrap(SequenceGeneratorWithAlignment, "_prepare_batch_for_alignment", _fill_up)
    wrap(SequenceGeneratorWithAlignment, "generate", _without_fillers)


class _Filler(dict):
    """A copy of a hypothesis, aligned in the place of one that there is not."""


def _fill_up(prepare, generator, sample, finalized):
    for found in finalized:
        found += [_Filler(found[-1]) for _ in range(generator.beam_size - len(found))]
    return prepare(generator, sample, finalized)


def _without_fillers(generate, *args, **kwargs):
    return [[each for each in found if not isinstance(each, _Filler)] for found in generate(*args, **kwargs)]


def explain_search_options():
    """NaN (--lenpen nan) and numbers outside the range of float32 give random words and NaN scores. A language model
    whose dictionary has other words, or another order, gives a traceback, or scores of wrong words. Incompatible
    options give a traceback: when the search is built, in its first step, or, for options that print what beam search
    does not record, after the first batch."""
    wrap(FairseqTask, "build_generator", _build_generator)
    wrap(search.LexicallyConstrainedBeamSearch, "init_constraints", _init_constraints)


def _build_generator(build, task, models, args, seq_gen_cls=None, extra_gen_cls_kwargs=None, *rest, **kwargs):
    _check_search_options(args, len(task.target_dictionary))
    _check_language_model((extra_gen_cls_kwargs or {}).get("lm_model"), task.target_dictionary)
    if all(hasattr(model, "encoder") for model in models):
        args = with_alignment(args)
    with options_checked():
        return build(task, models, args, seq_gen_cls, extra_gen_cls_kwargs, *rest, **kwargs)


def _check_language_model(model, dictionary):
    words = getattr(getattr(getattr(model, "decoder", None), "dictionary", None), "symbols", dictionary.symbols)
    if words != dictionary.symbols:
        raise UserError(
            f"names a language model with a dictionary of its own ({len(words)} words, dict.txt in the data folder) "
            f"and not the target's ({len(dictionary)} words): give one trained on data of the target's, by "
            "fairseq-preprocess --srcdict",
            "--lm-path",
        )


def _check_search_options(args, vocabulary_size):
    def value(name, default):
        return getattr(args, name, default)

    for name in ("print_step", "retain_iter_history"):
        if value(name, False):
            raise UserError("is for models that refine their output iteratively: leave it out", as_option(name))
    if value("score_reference", False):  # no search
        return
    beam, groups, top_k = value("beam", 5), value("diverse_beam_groups", -1), value("sampling_topk", -1)
    strategies = {
        "--sampling": value("sampling", False),
        "--diverse-beam-groups": groups > 0,
        "--match-source-len": value("match_source_len", False),
        "--diversity-rate": value("diversity_rate", -1) > 0,
        "--constraints": value("constraints", None),
    }
    with renamed(as_option):
        for field in dataclasses.fields(GenerationConfig):
            default = float(field.default) if field.type is float else field.default
            check_bounds(field.name, value(field.name, default), default)
    chosen = [name for name, is_chosen in strategies.items() if is_chosen]
    if len(chosen) > 1:
        raise UserError(f"{' and '.join(chosen)} exclude each other: give only one of them", others=chosen)
    for name, is_given in (("--sampling-topk", top_k > 0), ("--sampling-topp", value("sampling_topp", -1) > 0)):
        if is_given and not strategies["--sampling"]:
            raise UserError("requires --sampling", name, ["--sampling"])
    if groups > 0 and beam % groups:
        sentence = f"{beam} cannot be divided into --diverse-beam-groups {groups}: give a multiple of it"
        raise UserError(sentence, "--beam", ["--diverse-beam-groups"])
    if top_k > vocabulary_size:
        raise UserError(f"{top_k} is more than the dictionary's {vocabulary_size} words: lower it", "--sampling-topk")


def _init_constraints(init, self, batch_constraints, beam_size):
    if batch_constraints is None:
        raise UserError("--constraints needs lines with constraints; give them to fairseq-interactive, after a tab")
    return init(self, batch_constraints, beam_size)


def search_soundly():
    """A search without a hypothesis gives a bare assertion such as "200 < 200" for any reason. NaN counts as an
    impossible token. A BART keeps the beam of the most recent generator."""
    for generator in (SequenceGenerator, SequenceGeneratorWithAlignment):
        wrap(generator, "generate", _generate)


def _generate(generate, self, models, sample, **kwargs):
    ensemble, largest = self.model, []
    forward_decoder = ensemble.forward_decoder

    def forward(*args):
        log_probs, attention = forward_decoder(*args)
        largest.append(log_probs.amax())
        return log_probs, attention

    found = failure = None
    ensemble.forward_decoder = forward
    set_beam_size(ensemble.models, self.beam_size)
    try:
        found = generate(self, models, sample, **kwargs)
    except AssertionError as error:
        if traceback.extract_tb(error.__traceback__)[-1].filename != sequence_generator.__file__:
            raise
        failure = error
    finally:
        del ensemble.forward_decoder
        set_beam_size(ensemble.models, 1)  # otherwise the next generator gets the old beam
    if largest and bool(torch.stack(largest).isnan().any()):
        models = with_language_model(ensemble.models, self.lm_model)
        raise explain_nan(models, sample["net_input"], _starts(sample["net_input"], self.eos)) from failure
    if "min_len" in str(failure):
        raise UserError(
            f"{self.min_len} is more than a sentence may have by --max-len-a, --max-len-b and the model's positions: "
            "lower it, or raise those",
            "--min-len",
            ["--max-len-a", "--max-len-b"],
        ) from failure
    if failure is not None:
        raise UserError(
            "the search options or constraints leave a sentence no hypothesis that ends in time: relax them, or raise "
            "--max-len-b",
            others=["--max-len-b"],
        ) from failure
    return found


def with_language_model(models, language_model) -> list:
    """The models and, if there is one, the language model."""
    return [*models, *([] if language_model is None else [language_model])]


def set_beam_size(models, beam: int) -> None:
    """Set the number of hypotheses that share one copy of the source in fairseq's BART."""
    for model in models:
        if hasattr(model, "set_beam_size"):
            model.set_beam_size(beam)


def _starts(net_input, eos):
    """The first token of the decoder for each sentence."""
    source = next(iter(net_input.values()))
    return [(sentence, torch.tensor([eos], device=source.device)) for sentence in range(len(source))]
