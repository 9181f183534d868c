"""The search loop: fairseq's `SequenceGenerator` for any fairseq model, with sentences that share what they can."""

import logging
import math
import sys
import weakref
from collections.abc import Iterable

import torch
from fairseq import search
from fairseq.sequence_generator import EnsembleModel
from torch import Tensor, nn

from elseq.attention.memory import GROWTH
from elseq.bounds import check_bounds, is_whole
from elseq.compat.generation import with_language_model
from elseq.errors import UserError, as_option, check_choice, is_out_of_memory, renamed
from elseq.generation import kept_steps, transfers
from elseq.generation.alignment import ALIGNMENTS, align
from elseq.generation.beam_search import BeamSearch, GreedySearch
from elseq.generation.beams import Beams, Remaining, Sentences
from elseq.generation.captured_steps import has_active_dropout
from elseq.generation.cuda_graphs import held_bytes, release_all
from elseq.generation.hypotheses import FinishedHypotheses, NotANumber, StepResult
from elseq.generation.logits_processors import (
    LogitsProcessor,
    MaximumLength,
    MinimumLength,
    NoRepeatNgrams,
    OnlyNumbers,
    Prefix,
    Step,
    Suppressed,
    UnknownPenalty,
)
from elseq.generation.selection import Selection
from elseq.generation.steppers import Ensemble, Fusion, device_of, make_stepper
from elseq.generation.stopping import BY_DEFAULT, Stopping
from elseq.generation.strategies import as_ours
from elseq.numerics import explain_nan
from elseq.options import FIRST
from elseq.precision import restore

logger = logging.getLogger(__name__)


class SequenceGenerator(nn.Module):
    """Beam search and its relatives; the constructor and the methods are fairseq's, and so are the results.

    They differ from fairseq's on purpose in what docs/differences.md lists. TorchScript is not supported.
    """

    def __init__(
        self,
        models,
        tgt_dict,
        beam_size=1,
        max_len_a=0,
        max_len_b=200,
        max_len=0,
        min_len=1,
        normalize_scores=True,
        len_penalty=1.0,
        unk_penalty=0.0,
        temperature=1.0,
        match_source_len=False,
        no_repeat_ngram_size=0,
        search_strategy=None,
        eos=None,
        symbols_to_strip_from_output=None,
        lm_model=None,
        lm_weight=1.0,
        tokens_to_suppress=(),
        print_alignment=None,
        left_pad_target=False,
        early_stopping=FIRST,
        beam_patience=1.0,
    ):
        """
        Args:
            models: fairseq models, an ensemble if several, or fairseq's EnsembleModel. They are put into eval mode.
            tgt_dict: dictionary of the output.
            beam_size: hypotheses searched for and returned, at most the size of the dictionary less one.
            max_len_a, max_len_b: a hypothesis has at most max_len_a * (length of its own source) + max_len_b tokens.
            max_len: upper bound of that in tokens. Default: what the models' positions allow.
            min_len: a hypothesis has at least this many tokens.
            normalize_scores: divide a score by length ** len_penalty.
            len_penalty: above 1 favours longer hypotheses, below 1 shorter ones.
            unk_penalty: above 0 gives fewer unknown tokens, below 0 more.
            temperature: above 1 gives flatter distributions, below 1 sharper ones.
            match_source_len: hypotheses are as long as their source.
            no_repeat_ngram_size: no hypothesis has an n-gram of this size twice; 0: no such rule.
            search_strategy: one of `fairseq.search`. Default: beam search, which for beam_size 1 is greedy search.
            eos: the symbol that ends a hypothesis. Default: the dictionary's.
            symbols_to_strip_from_output: for the caller; the end symbol is added.
            lm_model, lm_weight: a language model whose log-probabilities are added with this weight.
            tokens_to_suppress: symbols of the dictionary that are never chosen.
            print_alignment: hard or soft: also align hypothesis and source.
            left_pad_target: for alignment: how the models were trained to see padded targets.
            early_stopping: when beam search ends: first, bound or never; see `elseq.generation.stopping.Stopping`. A
                beam of 1 is greedy search, which ends with its first hypothesis, as in transformers.
            beam_patience: with first, the search ends with this times beam_size hypotheses, rounded.

        Raises:
            UserError: a beam, a temperature or a patience that is not positive, a rule of stopping for another search
                than beam search, a language model that is none, a symbol to suppress that is not in the dictionary, or
                an alignment with a source that there is not.
        """
        super().__init__()
        with renamed(as_option):
            if not is_whole(beam_size):
                raise UserError(f"{beam_size!r} is not a whole number above 0", "beam")
            check_bounds("beam", int(beam_size), 1)
            check_bounds("temperature", temperature, 1.0)
            check_choice("print_alignment", print_alignment or None, ALIGNMENTS)
            self.stopping = Stopping(early_stopping, beam_patience)
        if lm_model is not None and hasattr(lm_model, "encoder"):
            raise UserError(f"names a {type(lm_model).__name__}, which is no language model; give one", "--lm-path")
        self.models = models.models if isinstance(models, EnsembleModel) else nn.ModuleList(models)
        self.tgt_dict = tgt_dict
        self.pad = tgt_dict.pad()
        self.unk = tgt_dict.unk()
        self.eos = tgt_dict.eos() if eos is None else eos
        self.symbols_to_strip_from_output = {*(symbols_to_strip_from_output or ()), self.eos}
        self.vocab_size = len(tgt_dict)
        self.beam_size = min(beam_size, self.vocab_size - 1)
        self.max_len_a = max_len_a
        self.max_len_b = max_len_b
        self.max_len = max_len or max_positions(with_language_model(self.models, lm_model))
        self.min_len = min_len
        self.length_penalty = len_penalty if normalize_scores else None
        self.match_source_len = match_source_len
        self.processors = self._processors(unk_penalty, tokens_to_suppress, no_repeat_ngram_size)
        self.search = self._strategy(search_strategy)
        if isinstance(self.search, GreedySearch):
            self.stopping = BY_DEFAULT
        self.print_alignment = print_alignment
        self.left_pad_target = left_pad_target
        if print_alignment and not all(hasattr(model, "encoder") for model in self.models):
            raise UserError(
                "a language model has no source to align with; remove --print-alignment and --replace-unk",
                others=["--print-alignment", "--replace-unk"],
            )
        # Plain beam search ends no hypothesis before the minimum length: until then nobody waits for its results.
        self.may_end_early = not isinstance(self.search, BeamSearch)
        self.lm_model = lm_model
        self.eval()
        self.temperature = temperature
        self.stepper = Ensemble(self.models, temperature, need_weights=bool(print_alignment))
        if lm_model is not None:
            self.stepper = Fusion(self.stepper, make_stepper(lm_model), lm_weight)
        self.warned = False
        self.usage = Usage()
        weakref.finalize(self, self.usage.log)

    def _processors(self, unk_penalty, tokens_to_suppress, no_repeat_ngram_size) -> list[LogitsProcessor]:
        """In this order: what is forced is settled before what is forbidden."""
        processors = [
            OnlyNumbers(self.pad),
            UnknownPenalty(self.unk, unk_penalty),
            MaximumLength(self.eos),
            Prefix(self.pad, self.eos),
            Suppressed([self._index(symbol) for symbol in tokens_to_suppress]),
            MinimumLength(self.eos, self.min_len),
        ]
        if no_repeat_ngram_size > 0:
            processors.append(NoRepeatNgrams(no_repeat_ngram_size, self.pad))
        return processors

    def _strategy(self, strategy: search.Search | None) -> search.Search:
        """The strategy of the search, as elseq has it."""
        if strategy is None or type(strategy) is search.BeamSearch:
            strategy = (GreedySearch if self.beam_size == 1 else BeamSearch)(self.tgt_dict)
        is_beam_search = isinstance(strategy, BeamSearch | search.PrefixConstrainedBeamSearch)
        if self.stopping.option is not None and not is_beam_search:
            name, value = self.stopping.option
            raise UserError(
                f"{value} is for beam search, and {type(strategy).__name__} ends by its own rule: leave it out",
                as_option(name),
            )
        strategy = as_ours(strategy, self.tgt_dict)
        strategy.eos = self.eos
        return strategy

    def forward(self, sample, prefix_tokens=None, bos_token=None) -> list[list[dict[str, Tensor]]]:
        """As `generate`, by the name that it has in a module."""
        return self.generate(None, sample, prefix_tokens=prefix_tokens, bos_token=bos_token)

    @torch.no_grad()
    def generate(
        self, models, sample, prefix_tokens=None, constraints=None, bos_token=None, prompt_tokens=None, uncounted=0
    ) -> list[list[dict[str, Tensor]]]:
        """Generate for a batch of B sentences.

        Args:
            models: unused, for fairseq's sake.
            sample: a batch with "net_input", as a fairseq task makes it.
            prefix_tokens: int64 [B, P], padded on the right: the tokens that each hypothesis begins with. They count in
                its length and in its score.
            constraints: packed tokens that each hypothesis must contain; for the search strategies that take them.
            bos_token: the symbol a hypothesis starts from. Default: the end symbol.
            prompt_tokens: int64 [B, P], padded on the right: what each hypothesis continues, the starting symbol
                included. It is read in one pass, and it is in neither hypothesis, length nor score.
            uncounted: how many tokens of prefix_tokens, from the first on, count in the length alone.

        Returns:
            For each sentence its hypotheses, best first: "tokens" [T] ending with the end symbol, "score",
            "positional_scores" [T] (natural logarithms), "attention" [S, T] and "alignment" if asked for.

        Raises:
            NotImplementedError: constraints, and a search strategy without them.
            UserError: a minimum length that no hypothesis can have, a length penalty that is no number or too large, a
                search by constraints without any, or a model whose output is not a number.
        """
        if constraints is not None and not self.search.supports_constraints:
            raise NotImplementedError(f"{type(self.search).__name__} does not take constraints")
        if prompt_tokens is not None and not self.stepper.reads_ragged_prompts and self._is_ragged(prompt_tokens):
            return self._generate_by_prompt_length(sample, prompt_tokens, prefix_tokens, constraints, uncounted)
        given = sample, prefix_tokens, constraints, bos_token, prompt_tokens, uncounted
        try:
            finished = self._search_with_all_memory(*given)
        except NotANumber as error:
            self.stepper.finish()
            models = with_language_model(self.models, self.lm_model)
            raise not_a_number(models, sample["net_input"], self._read_so_far(error, prompt_tokens)) from None
        finally:
            self.stepper.finish()
        if self.print_alignment:
            align(finished, sample["net_input"], self.models, self.print_alignment, self.tgt_dict, self.left_pad_target)
        return finished

    def _search_with_all_memory(self, *given):
        """`_search`; once more where memory ran out beside what is held between batches, which is released then."""
        sample, *_ = given
        if not kept_steps.can_keep(device_of(sample["net_input"])):
            return self._search(*given)
        random = torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        generator = getattr(self.search, "random_generator", None)
        of_generator = None if generator is None else generator.get_state()
        try:
            return self._search(*given)
        except (RuntimeError, MemoryError) as error:
            if not (is_out_of_memory(error) and held_bytes()):
                raise
        # Here the error is gone, and with it the tensors that its traceback held.
        self.stepper.finish()
        release_all()
        torch.set_rng_state(random[0])
        torch.cuda.set_rng_state_all(random[1])
        if generator is not None:
            generator.set_state(of_generator)
        return self._search(*given)

    def _search(self, sample, prefix_tokens, constraints, bos_token, prompt_tokens, uncounted):
        net_input = sample["net_input"]
        source_lengths = _source_lengths(net_input, self.eos, self.pad)
        batch, device = source_lengths.numel(), source_lengths.device
        limits = self.length_limits(source_lengths, prompt_tokens)
        longest = max(limits)
        self._check_length_penalty(longest + 1)
        reads_later = self._reads_later(device) and self._has_position_after(longest, prompt_tokens)
        start = self.eos if bos_token is None else bos_token
        if prompt_tokens is not None:
            # The last token of a prompt is what its hypotheses start from; the tokens before it are the prompt proper.
            prompt_tokens, start = split_last(prompt_tokens, self.pad)
        ids = self._sample_ids(sample, batch, device)
        sentences = Sentences(limits, source_lengths, ids, prefix_tokens, uncounted)
        beams = Beams(start, longest + 1, self.beam_size, self.pad, sentences)
        finished = FinishedHypotheses(
            batch, self.beam_size, self.eos, self.length_penalty, self.stopping, self.match_source_len
        )
        selection = Selection(self.search, self.processors, self.eos)
        is_nan = torch.zeros(1, dtype=torch.bool, device=device)
        unread: StepResult | None = None

        self.search.init_constraints(constraints, self.beam_size)
        self.stepper.start(net_input, self.beam_size, longest + 1, prompt_tokens)

        for step in range(longest + 1):
            next_tokens, weights = self.stepper.step(beams.tokens[:, : step + 1])
            if step % GROWTH == 0:
                self.usage.record(self.stepper.state_bytes())
            beams.record_attention(step, weights)
            remaining = None
            if unread is not None:  # on a GPU, of the last step, now that the models' pass of this one is running
                remaining = self._drop_finished(finished, unread, beams)
                if not beams.sentences:
                    break
                next_tokens = next_tokens if remaining is None else next_tokens.select(remaining.rows)

            # 1. The best continuations of each sentence, among what may follow its hypotheses.
            at_limit = beams.sentences.at_limit(step)
            candidates, was_nan = selection.candidates(Step(step, beams, at_limit), next_tokens)
            is_nan = is_nan | was_nan
            del next_tokens  # as large as all the rest of a step

            # 2. Those among the first `beam` that end are finished hypotheses, and finished sentences leave.
            unread = None
            is_forced = at_limit is not None or beams.sentences.prefix_at(step) is not None
            if is_forced or step >= self.min_len or self.may_end_early:
                unread = finished.result(step, beams, candidates, is_nan)
            if unread is not None and (step == longest or not reads_later):
                remaining = self._drop_finished(finished, unread, beams)
                if not beams.sentences:
                    break
                candidates = candidates if remaining is None else candidates.select(remaining.places)
                unread = None

            # 3. The best `beam` that do not end go on.
            order, active = beams.go_on(step, candidates)
            self.search.update_constraints(active)
            if remaining is not None:
                order = remaining.rows[order]
            if self.beam_size > 1 or remaining is not None:
                self.stepper.reorder(order, None if remaining is None else remaining.places)
        return finished.ranked()

    def _reads_later(self, device: torch.device) -> bool:
        """Whether the host reads the result of a step when it has launched the next one, so that a GPU need not wait.

        The models read one token more of a finished sentence, which must change nothing. Numbers are drawn and tokens
        chosen for the others alone, whatever the search strategy. (Constrained ones read every hypothesis on the host,
        and wait all the same.)
        """
        return (
            transfers.is_asynchronous(device)
            and not self.print_alignment  # attention is large, and would be kept twice
            and not has_active_dropout(self)
        )

    def _has_position_after(self, longest: int, prompt_tokens: Tensor | None) -> bool:
        """Whether a sentence at its limit can be searched for one step more, while others go on.

        Only beside a shorter prompt may the model have no further position for it.
        """
        if prompt_tokens is None or prompt_tokens.size(1) + longest < self.max_len:
            return True
        return not self._is_ragged(prompt_tokens)

    def _drop_finished(self, finished: FinishedHypotheses, result: StepResult, beams: Beams) -> Remaining | None:
        """The sentences whose search is over leave the batch. None: there are none."""
        over = finished.collect(result)
        if not over:
            return None
        remaining = beams.keep([place for place in range(len(beams.sentences)) if place not in over])
        if beams.sentences:
            self.search.prune_sentences(remaining.places)
        return remaining

    def _read_so_far(self, error: NotANumber, prompt_tokens):
        """The sentence of each hypothesis, and what a model has read for it: int64 [L]."""
        for row, tokens in enumerate(error.beams.tokens[:, : error.step + 1]):
            sentence = error.beams.sentences.numbers[row // self.beam_size]
            if prompt_tokens is not None:  # whose last token is the first one here
                prompt = prompt_tokens[sentence]
                tokens = torch.cat((prompt[prompt.ne(self.pad)], tokens[1:]))
            yield sentence, tokens

    def length_limits(self, source_lengths: Tensor, prompt_tokens: Tensor | None) -> list[int]:
        """Tokens that a hypothesis of each sentence may have, the end apart."""
        lengths = source_lengths.tolist()
        prompts = [1] * len(lengths) if prompt_tokens is None else prompt_tokens.ne(self.pad).sum(dim=1).tolist()
        room = self.max_len - max(prompts)
        if room < self.min_len:
            raise UserError(
                f"{self.min_len} is more than the {max(room, 0)} tokens that the model's positions leave; "
                "shorten the input or lower it",
                "--min-len",
            )
        shortest = min(wanted_length(self, length) for length in lengths)
        if shortest < self.min_len and not self.warned:
            logger.warning(
                "the minimum length, %d, is more than the maximum length, %d; such hypotheses have %d tokens",
                *(self.min_len, shortest, self.min_len),
            )
            self.warned = True
        return [length_limit(self, *each) for each in zip(lengths, prompts, strict=True)]

    @staticmethod
    def _sample_ids(sample: dict, batch: int, device: torch.device) -> Tensor:
        """What a search strategy calls each sentence: the caller's ids, or else places in the batch."""
        ids = sample.get("id")
        return ids.to(device) if isinstance(ids, Tensor) else torch.arange(batch, device=device)

    def _check_length_penalty(self, length: int) -> None:
        """Whether a score can be divided by that power of the length."""
        penalty = self.length_penalty
        if penalty is not None and not abs(penalty) * math.log(length) < math.log(torch.finfo(torch.float32).max):
            raise UserError(f"{penalty} makes scores of {length} tokens all the same: give one nearer to 1", "--lenpen")

    def _index(self, symbol: str) -> int:
        if symbol not in self.tgt_dict:
            raise UserError(f"the token to suppress {symbol!r} is not in the dictionary; check its spelling")
        return self.tgt_dict.index(symbol)

    def _is_ragged(self, prompt_tokens: Tensor) -> bool:
        return bool(prompt_tokens.eq(self.pad).any())

    def _generate_by_prompt_length(self, sample, prompt_tokens, prefix_tokens, constraints, uncounted):
        """For models of fairseq: one batch for each length of prompt."""
        lengths = prompt_tokens.ne(self.pad).sum(dim=1)
        results: list = [None] * len(lengths)
        for length in lengths.unique().tolist():
            rows = lengths.eq(length).nonzero().squeeze(1)
            part = {"net_input": {name: tensor[rows] for name, tensor in sample["net_input"].items()}}
            part["id"] = self._sample_ids(sample, len(lengths), lengths.device)[rows]
            found = self.generate(
                self.models,
                part,
                prefix_tokens=None if prefix_tokens is None else prefix_tokens[rows],
                constraints=None if constraints is None else constraints[rows],
                prompt_tokens=prompt_tokens[rows, :length],
                uncounted=uncounted,
            )
            for row, hypotheses in zip(rows.tolist(), found, strict=True):
                results[row] = hypotheses
        return results


def not_a_number(models, net_input: dict, read: Iterable[tuple[int, Tensor]]) -> UserError:
    """The error for models whose output is not a number; arguments as for `explain_nan`."""
    try:
        for model in models:
            restore(model)
    except UserError:
        return UserError(
            "the model's output is not a number (NaN): decode in float32, where the error names the reason"
        )
    return explain_nan(models, net_input, read)


class Usage:
    """The largest decoding state that a generator had, of all of its models, logged when the generator goes."""

    def __init__(self):
        self.state_bytes = 0

    def record(self, state_bytes: int) -> None:
        self.state_bytes = max(self.state_bytes, state_bytes)

    def log(self) -> None:
        if self.state_bytes:
            logger.info("decoding state: peak %d bytes", self.state_bytes)


def wanted_length(search, source_length: int) -> int:
    """Tokens that a hypothesis may have by the options, the end apart; arguments as for `length_limit`."""
    if search.match_source_len:
        return source_length
    return int(min(search.max_len_a * source_length + search.max_len_b, sys.maxsize))


def length_limit(search, source_length: int, prompt_length: int = 1) -> int:
    """Tokens that a hypothesis may have, the end apart.

    Args:
        search: a generator, elseq's or fairseq's.
        source_length: tokens of its source, with the symbols that the task adds.
        prompt_length: tokens that it continues.
    """
    return max(search.min_len, min(wanted_length(search, source_length), search.max_len - prompt_length))


def max_positions(models) -> int:
    """That all the models have; a convolutional one without learned positions says that it has infinitely many."""
    return int(
        min(
            [model.max_decoder_positions() for model in models if hasattr(model, "max_decoder_positions")]
            + [sys.maxsize]
        )
    )


def _source_lengths(net_input: dict, eos: int, pad: int) -> Tensor:
    """The length of each source, int64 [B]: what the task says, or else its positions but padding and end symbols."""
    if "src_lengths" in net_input:
        return net_input["src_lengths"].view(-1)
    if "src_tokens" in net_input:
        source = net_input["src_tokens"]
        return (source.ne(eos) & source.ne(pad)).sum(dim=1)
    source = net_input["source"] if "source" in net_input else net_input["features"]
    padding = net_input.get("padding_mask")
    if padding is None:
        return torch.full((source.size(0),), source.size(-1), device=source.device)
    return padding.size(-1) - padding.sum(-1)


def split_last(prompt: Tensor, pad: int) -> tuple[Tensor, Tensor]:
    """A prompt [B, P], padded on the right, without the last token of each row [B, P - 1], and that token [B]."""
    ends = prompt.ne(pad).sum(dim=1, keepdim=True) - 1
    shorter = prompt.scatter(1, ends, pad)
    return shorter[:, :-1], prompt.gather(1, ends).squeeze(1)
