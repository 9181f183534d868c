"""What may follow a hypothesis: everything that forbids, forces or penalizes a word before the search chooses."""

import math

import torch
from torch import Tensor

from elseq.generation.ngrams import block_repeated_ngrams


class Rules:
    """Shapes: B sentences, N = B * beam hypotheses (those of a sentence stand together), V words, L words so far."""

    def __init__(
        self,
        beam: int,
        pad: int,
        unk: int,
        eos: int,
        min_len: int,
        unk_penalty: float,
        suppressed: list[int],
        no_repeat_ngram_size: int,
    ):
        self.beam = beam
        self.pad = pad
        self.unk = unk
        self.eos = eos
        self.min_len = min_len
        self.unk_penalty = unk_penalty
        self.suppressed = suppressed
        self.no_repeat_ngram_size = no_repeat_ngram_size

    def apply(
        self,
        step: int,
        log_probs: Tensor,
        tokens: Tensor,
        scores: Tensor,
        at_limit: Tensor | None,
        prefix: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Change the log-probabilities of the next word, in place, to -inf where it must not follow.

        Args:
            step: how many words the hypotheses have.
            log_probs: [N, V].
            tokens: int64 [N, longest + 2]: the symbol each hypothesis starts from, then its words.
            scores: [N, longest + 1]: cumulative log-probabilities of the words.
            at_limit: bool [B]: sentences whose hypotheses must end now; None: no sentence.
            prefix: int64 [B]: the word that must come now, padding where any may; None: any may everywhere.

        Returns:
            tokens and scores; those of a sentence whose prefix ends here are all the first hypothesis's.
        """
        log_probs.nan_to_num_(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
        log_probs[:, self.pad] = -math.inf
        if self.unk_penalty:
            log_probs[:, self.unk] -= self.unk_penalty
        free = None  # hypotheses whose next word is settled, so that the rules below do not concern them: bool [N]
        if at_limit is not None:
            free = at_limit.repeat_interleave(self.beam)
            self._only(log_probs, free, torch.full_like(free, self.eos, dtype=torch.long))
        if prefix is not None:
            has_word = prefix.ne(self.pad) if at_limit is None else prefix.ne(self.pad) & ~at_limit
            forced = has_word.repeat_interleave(self.beam)
            self._only(log_probs, forced, prefix.repeat_interleave(self.beam))
            tokens, scores = self._end_together(log_probs, tokens, scores, has_word & prefix.eq(self.eos))
            free = forced if free is None else free | forced
        for word in [*self.suppressed, *([self.eos] if step < self.min_len else [])]:
            if free is None:
                log_probs[:, word] = -math.inf
            else:
                log_probs[:, word].masked_fill_(~free, -math.inf)
        if self.no_repeat_ngram_size > 0:
            words = tokens[:, 1 : step + 1]
            block_repeated_ngrams(log_probs, words, self.no_repeat_ngram_size, self.pad, free)
        return tokens, scores

    @staticmethod
    def _only(log_probs: Tensor, rows: Tensor, words: Tensor) -> None:
        """In these rows, bool [N], only this word, int64 [N], may follow."""
        words = words.unsqueeze(1)
        kept = log_probs.gather(1, words)
        log_probs.masked_fill_(rows.unsqueeze(1), -math.inf)
        log_probs.scatter_(1, words, kept)

    def _end_together(self, log_probs: Tensor, tokens: Tensor, scores: Tensor, ends: Tensor):
        """Sentences, bool [B], whose prefix ends now: only their first hypothesis has a finite score, and the others
        become copies of it, so that the sentence is finished."""
        if not bool(ends.any()):
            return tokens, scores

        def copied(rows: Tensor) -> Tensor:
            hypotheses = rows.view(len(ends), self.beam, -1)
            return torch.where(ends.view(-1, 1, 1), hypotheses[:, :1], hypotheses).view_as(rows)

        log_probs.copy_(copied(log_probs))
        return copied(tokens), copied(scores)
