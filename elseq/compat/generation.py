"""Generation: what fairseq's own search and output get wrong on any version."""

from fairseq import search, utils

from elseq.compat.patching import wrap

_NO_DICTIONARY = "@@ "  # what fairseq makes of --replace-unk without a value


def replace_unknown_words():
    """`utils.replace_unk` takes the alignment for a list of source positions, but it is one of (source, target) pairs,
    and --replace-unk without a dictionary tries to open a file."""
    utils.replace_unk = replace_unk
    wrap(utils, "load_align_dict", lambda load, path: {} if path == _NO_DICTIONARY else load(path))


def replace_unk(hypo_str, src_str, alignment, align_dict, unk):
    """`hypo_str` with each unknown word replaced by the source word aligned to it, or that word's `align_dict` entry.

    `alignment` is a list of (source, target) pairs, or of the source position of each target word. An unknown word that
    is aligned to nothing, or to the end of the sentence, stays.
    """
    source = src_str.split()
    pairs = [pair if isinstance(pair, (tuple, list)) else (int(pair), target) for target, pair in enumerate(alignment)]
    aligned = {target: source[position] for position, target in pairs if 0 <= position < len(source)}
    words = hypo_str.split()
    for target, word in enumerate(words):
        if word == unk and target in aligned:
            words[target] = align_dict.get(aligned[target], aligned[target])
    return " ".join(words)


def keep_diverse_groups_apart():
    """Diverse beam search keeps the overlap of its groups by the sentence's place in the batch, but is asked for it by
    the sentence's number in the data: an IndexError, or another sentence's overlap."""

    def step(search_step, self, step, lprobs, scores, prev_output_tokens=None, original_batch_idxs=None):
        if original_batch_idxs is not None:
            if step == 0:
                self.sentence_numbers = original_batch_idxs
            original_batch_idxs = original_batch_idxs[:, None].eq(self.sentence_numbers).nonzero()[:, 1]
        return search_step(self, step, lprobs, scores, prev_output_tokens, original_batch_idxs)

    wrap(search.DiverseBeamSearch, "step", step)
