"""Tables (Markdown) and a plot (PNG) of quality and memory against the length of sources.

From the logs of fairseq-generate, whose sources hide a marked text among others. NAME.log has the scores of the
references (--score-reference). NAME is own for the marked text alone, other for another one in its place, and
SYSTEM-LENGTH for a system that reads sources of this length. state-METHOD-LENGTH.log is a generation with the decoding
method kv or el.
"""

import argparse
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from elseq.arguments import Parser, count, read_path
from elseq.errors import UserError
from elseq.files import check_output_file, save_figure
from elseq.reports.logs import read_finished, read_token_scores
from elseq.scoring import SEED
from elseq.scoring.statistics import INTERVAL, Score, interval, resample
from elseq.tables import MEBIBYTE, markdown, number

RESAMPLES = 1000
METHODS = ("kv", "el")
OWN, OTHER, CUT, WINDOWS, TOP_K, FULL = "own", "other", "cut", "windows", "top-k", "full"
TUNED, TUNED_CUT = "tuned", "tuned-cut"
TITLES = {
    CUT: "cut",
    WINDOWS: "in windows",
    TOP_K: "in windows, top-k",
    TUNED_CUT: "trained in windows, cut",
    TUNED: "trained in windows, in windows",
    FULL: "trained on whole sources, whole",
}
DIFFERENCES = {
    "in windows - cut": (WINDOWS, CUT),
    "in windows: top-k - all states": (TOP_K, WINDOWS),
    "trained in windows: in windows - cut": (TUNED, TUNED_CUT),
    "in windows - whole, each trained so": (TUNED, FULL),
}


class Value(NamedTuple):
    """A figure of the test set, and of sets like it."""

    total: float
    resampled: np.ndarray

    @property
    def interval(self):
        return interval(self.resampled)

    def minus(self, other):
        return Value(self.total - other.total, self.resampled - other.resampled)

    def write(self, form=".3f"):
        low, high = self.interval
        return f"{self.total:{form}} ({low:{form}} to {high:{form}})"


def read_score(path):
    """The cross-entropy of the references, base 2, of a token."""
    scores = read_token_scores(path)
    bits = [(-sum(scores[sentence]), len(scores[sentence])) for sentence in sorted(scores)]
    return Score(np.array(bits, dtype=float), lambda sums: sums[..., 0] / sums[..., 1])


def read_losses(folder, names):
    """{name: its loss}, all on the same resamples of the examples.

    Raises:
        UserError: a log that is missing or has no scores, or logs of different references.
    """
    scores = {name: read_score(folder / f"{name}.log") for name in names}
    first, *others = scores
    for name in others:
        if not np.array_equal(scores[first].statistics[:, 1], scores[name].statistics[:, 1]):
            raise UserError(
                f"{folder / name}.log has other references than {folder / first}.log; run the recipe again with --fresh"
            )
    (resampled,) = resample([scores], RESAMPLES)
    return {name: Value(score.total, resampled[name]) for name, score in scores.items()}


def recovered(cut, own, system):
    """The share that a system recovers of the loss that cutting adds to that of the marked text alone.

    None if cutting does not significantly add any.
    """
    added, taken = cut.minus(own), cut.minus(system)
    if added.interval[0] <= 0:
        return None
    return Value(taken.total / added.total, taken.resampled / added.resampled)


def use_of_source(losses):
    """A sentence: whether the model does better with its own text than with another."""
    gain = losses[OTHER].minus(losses[OWN])
    shown = gain.interval[0] > 0
    sentence = (
        f"The marked text alone: {losses[OWN].write()}; another text in its place: "
        f"{losses[OTHER].write()}, {gain.write('+.3f')} more. That the model uses the text is "
        f"{'shown' if shown else 'not shown'}."
    )
    return sentence if shown else f"{sentence} The other figures then say nothing: train it longer."


def by_length(headers, lengths, cell):
    """A table with a row for each length; cell(system, length) is its text."""
    rows = [[f"{length:,}", *(cell(name, length) for name in headers)] for length in lengths]
    return markdown(["tokens", *headers.values()], rows)


def report(options):
    if options.plot:
        check_output_file(options.plot, *options.folder.glob("*.log"), option="--plot")
    tuned = options.tuned
    lengths = {name: options.lengths for name in (CUT, WINDOWS, TOP_K, *((TUNED_CUT, TUNED) if tuned else ()))}
    if tuned:
        lengths[FULL] = [length for length in options.lengths if length <= tuned]
    systems = {name: TITLES[name] for name, own in lengths.items() if own}
    losses = read_losses(
        options.folder, [OWN, OTHER, *(f"{name}-{length}" for name in systems for length in lengths[name])]
    )
    examples = len(read_token_scores(options.folder / f"{OWN}.log"))
    states = {
        method: {length: read_state(options.folder, method, length) for length in options.lengths} for method in METHODS
    }

    def loss(name, length):
        return losses[f"{name}-{length}"].write() if length in lengths[name] else "-"

    def share(name, length):
        if length not in lengths[name]:
            return "-"
        value = recovered(losses[f"{CUT}-{length}"], losses[OWN], losses[f"{name}-{length}"])
        return "-" if value is None else value.write("z.0%")  # not "-0%"

    def difference(title, length):
        if not all(length in lengths[name] for name in DIFFERENCES[title]):
            return "-"
        system, other = (losses[f"{name}-{length}"] for name in DIFFERENCES[title])
        return system.minus(other).write("+.3f")

    def state(method, length):
        return number(states[method][length] / MEBIBYTE)

    print(use_of_source(losses))
    print(f"\nLoss\n\n{by_length(systems, options.lengths, loss)}")
    others = {name: title for name, title in systems.items() if name != CUT}
    print(f"\nRecovered of what cutting costs\n\n{by_length(others, options.lengths, share)}")
    differences = {title: title for title, compared in DIFFERENCES.items() if {*compared} <= {*systems}}
    print(f"\nDifferences of losses\n\n{by_length(differences, options.lengths, difference)}")
    print(f"\nDecoding state in windows, MiB\n\n{by_length({m: m for m in METHODS}, options.lengths, state)}")
    print(
        f"\nLoss: cross-entropy of the references, base 2, of a token, of {examples:,} examples; in brackets: "
        f"{INTERVAL:.0%} intervals by bootstrap, {RESAMPLES:,} resamples of the examples, seed {SEED}.\n"
        "Recovered: the share of the difference between the cut source and the marked text alone, both read by the "
        "first model; '-' where that difference is not shown.\n"
        "Top-k: each query attends to as many states as a window has, as it does after a training in windows.\n"
        "Decoding state: of one example, beam 4, 20 tokens. That of a cut source is that of its first window."
    )
    if options.plot:
        plot(options.plot, lengths, losses, states)


def read_state(folder, method, length):
    path = folder / f"state-{method}-{length}.log"
    if not path.exists():
        raise UserError(f"{path} is missing; run the recipe again")
    state = read_finished(path).state_bytes
    if state is None:
        raise UserError(f"{path}: it does not say what the decoding state is; run the recipe again with --fresh")
    return state


def plot(path, lengths, losses, states):
    """Losses and decoding state against the length."""
    figure = Figure(figsize=(11, 5), layout="constrained")
    quality, memory = figure.subplots(1, 2)
    for place, (name, own) in enumerate(lengths.items()):
        if own:
            values = [losses[f"{name}-{length}"] for length in own]
            errors = np.abs(np.array([value.interval for value in values]).T - [value.total for value in values])
            quality.errorbar(
                np.array(own) * 1.02**place,  # so that error bars do not overlap
                [value.total for value in values], errors, color=f"C{place}", marker=".", linewidth=1, capsize=2,
                label=TITLES[name],
            )  # fmt: skip
    for name, style, label in ((OWN, "--", "the marked text alone"), (OTHER, ":", "another text alone")):
        quality.axhline(losses[name].total, color="black", linestyle=style, linewidth=1, label=label)
    quality.set_ylabel("loss, bits a token")
    for method, state in states.items():
        memory.plot(
            [*state],
            [size / MEBIBYTE for size in state.values()],
            marker=".",
            linewidth=1,
            label=f"{method}, in windows",
        )
    memory.set_yscale("log", base=2)
    memory.set_ylabel("decoding state, MiB")
    for axis in (quality, memory):
        axis.set_xscale("log", base=2)
        axis.set_xlabel("tokens of the source")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    save_figure(figure, path)


def main(arguments=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=read_path, help="with the logs")
    parser.add_argument(
        "--lengths", type=count, nargs="+", required=True, metavar="L", help="of the sources, in tokens"
    )
    parser.add_argument(
        "--tuned", type=count, metavar="L", help="the length of the sources on which models were trained further"
    )
    parser.add_argument("--plot", type=read_path, help="file for the plot (PNG)")
    report(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
