"""Generation: what fairseq's own search and output get wrong on any version."""

from fairseq import search, sequence_generator, utils
from fairseq.tasks import FairseqTask

from elseq.compat.patching import wrap
from elseq.errors import UserError, options_checked

_NO_DICTIONARY = "@@ "  # what fairseq makes of --replace-unk without a value


def replace_unknown_words():
    """`utils.replace_unk` takes the alignment for a list of source positions, but it is one of (source, target) pairs,
    and --replace-unk without a dictionary tries to open a file."""
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
        raise UserError(f"--replace-unk {path} is no alignment dictionary: give two words a line, in UTF-8") from error


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


def explain_search_options():
    """Options that do not go together end in a traceback: some when the search is chosen, others in its first step, and
    those that print what beam search does not record only after the first batch."""
    wrap(FairseqTask, "build_generator", _build_generator)
    wrap(search.LexicallyConstrainedBeamSearch, "init_constraints", _init_constraints)


def _build_generator(build, task, models, args, *rest, **kwargs):
    _check_search_options(args, len(task.target_dictionary))
    with options_checked():
        return build(task, models, args, *rest, **kwargs)


def _check_search_options(args, vocabulary_size):
    def value(name, default):
        return getattr(args, name, default)

    for name in ("print_step", "retain_iter_history"):
        if value(name, False):
            option = name.replace("_", "-")
            raise UserError(f"--{option} is for models that refine their output iteratively: leave it out")
    if value("score_reference", False):  # nothing is searched
        return
    beam, groups, top_k = value("beam", 5), value("diverse_beam_groups", -1), value("sampling_topk", -1)
    strategies = {
        "--sampling": value("sampling", False),
        "--diverse-beam-groups": groups > 0,
        "--match-source-len": value("match_source_len", False),
        "--diversity-rate": value("diversity_rate", -1) > 0,
        "--constraints": value("constraints", None),
    }
    if beam < 1:
        raise UserError(f"{beam} is no number of hypotheses; give 1 or more", "--beam")
    chosen = [name for name, is_chosen in strategies.items() if is_chosen]
    if len(chosen) > 1:
        raise UserError(f"{' and '.join(chosen)} exclude each other: give only one of them")
    if groups > 0 and beam % groups:
        raise UserError(f"--beam {beam} cannot be divided into --diverse-beam-groups {groups}: give a multiple of it")
    if top_k > vocabulary_size:
        raise UserError(f"{top_k} is more than the dictionary's {vocabulary_size} words: lower it", "--sampling-topk")


def _init_constraints(init, self, batch_constraints, beam_size):
    if batch_constraints is None:
        raise UserError("--constraints needs lines with constraints; give them to fairseq-interactive, after a tab")
    return init(self, batch_constraints, beam_size)


def forget_former_beams():
    """A BART keeps one copy of the source for as many hypotheses as the generator made last for it searches, and a beam
    of 1 does not say so: it ends in an error about shapes, as does every other generator made before."""

    def generate(original, generator, *args, **kwargs):
        for model in generator.model.models:
            if hasattr(model, "set_beam_size"):
                model.set_beam_size(generator.beam_size)
        return original(generator, *args, **kwargs)

    wrap(sequence_generator.SequenceGenerator, "generate", generate)


def explain_minimum_lengths():
    """A minimum length above the maximum is a bare AssertionError at the first such batch."""

    def generate(original, generator, *args, **kwargs):
        try:
            return original(generator, *args, **kwargs)
        except AssertionError as error:
            if not str(error).startswith("min_len cannot be larger"):
                raise
            raise UserError(
                f"--min-len {generator.min_len} is more than a sentence may have by --max-len-a, --max-len-b and the "
                "model's positions: lower it, or raise those"
            ) from error

    wrap(sequence_generator.SequenceGenerator, "generate", generate)
