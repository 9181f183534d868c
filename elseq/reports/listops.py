"""Accuracy on ListOps (Markdown) and validation curves (PNG) of models with different attention, side by side.

The first model is the baseline. Each folder holds train.log and test.log, those of fairseq-train and fairseq-generate.
"""

import argparse
import math
import statistics
from collections import Counter
from typing import NamedTuple

from matplotlib.figure import Figure
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from elseq.arguments import Parser, read_path
from elseq.errors import UserError
from elseq.files import check_output_file, read_lines, save_figure
from elseq.reports.logs import TrainingLog, read_finished, read_training
from elseq.tables import markdown

TWO_SIDED_95 = statistics.NormalDist().inv_cdf(0.975)
MARGIN = 2.0  # points of accuracy by which a model may differ and is still called as good


class Split(NamedTuple):
    sources: list[str]
    targets: list[str]

    @property
    def operators(self):
        """The outermost one of each expression."""
        return [source.partition(" ")[0] for source in self.sources]


class Model(NamedTuple):
    name: str
    log: TrainingLog
    right: list[bool]  # of each test expression


def read_split(corpus, name):
    return Split(*(list(read_lines(corpus / f"{name}.{side}")) for side in ("source", "target")))


def read_model(folder, test):
    hypotheses = read_finished(folder / "test.log").hypotheses
    if hypotheses.keys() != set(range(len(test.targets))):
        raise UserError(f"{folder}/test.log: of {len(test.targets)} expressions {len(hypotheses)} were evaluated")
    right = [hypotheses[number] == target for number, target in enumerate(test.targets)]
    return Model(folder.name, read_training(folder / "train.log"), right)


# What is right without following the structure of an expression, in percent.


def commonest_value(train, test):
    value = statistics.mode(train.targets)
    return 100 * statistics.fmean(target == value for target in test.targets)


def commonest_of_operator(train, test):
    values = {}
    for operator, target in zip(train.operators, train.targets, strict=True):
        values.setdefault(operator, Counter())[target] += 1
    guesses = (values[operator].most_common(1)[0][0] for operator in test.operators)
    return 100 * statistics.fmean(guess == target for guess, target in zip(guesses, test.targets, strict=True))


def bag_of_words(train, test):
    counts = CountVectorizer(token_pattern=r"\S+", lowercase=False)
    regression = make_pipeline(counts, StandardScaler(with_mean=False), LogisticRegression(max_iter=1000))
    return 100 * regression.fit(train.sources, train.targets).score(test.sources, test.targets)


def bag_of_words_of_operator(train, test):
    """A regression for each outermost operator."""
    accuracies = []
    for operator in sorted(set(test.operators)):
        parts = []
        for split in (train, test):
            chosen = [number for number, outermost in enumerate(split.operators) if outermost == operator]
            parts.append(Split([split.sources[i] for i in chosen], [split.targets[i] for i in chosen]))
        accuracies.append(bag_of_words(*parts) * len(parts[1].sources))
    return sum(accuracies) / len(test.sources)


BASELINES = {
    "the commonest value": commonest_value,
    "the commonest value of the outermost operator": commonest_of_operator,
    "logistic regression on the counts of the tokens": bag_of_words,
    "the same for each outermost operator": bag_of_words_of_operator,
}


# The models.


class Difference(NamedTuple):
    """Of two models on the same expressions, in points of accuracy."""

    points: float
    error: float  # half the width of the 95% interval
    only_baseline: int  # expressions that the baseline alone has right
    only_other: int

    @property
    def within_margin(self):
        return abs(self.points) + self.error <= MARGIN


def paired_difference(baseline, other):
    """The difference in accuracy, with Wald's interval for paired proportions. Only examples that exactly one of the
    two solves count."""
    only_baseline = sum(a and not b for a, b in zip(baseline, other, strict=True))
    only_other = sum(b and not a for a, b in zip(baseline, other, strict=True))
    size, gain = len(baseline), only_other - only_baseline
    variance = (only_baseline + only_other - gain**2 / size) / size**2
    return Difference(100 * gain / size, 100 * TWO_SIDED_95 * math.sqrt(variance), only_baseline, only_other)


def accuracy(right):
    """With half the width of its 95% interval."""
    share = statistics.fmean(right)
    return f"{100 * share:.1f}% ± {100 * TWO_SIDED_95 * math.sqrt(share * (1 - share) / len(right)):.1f}"


def table(models, test):
    rows = [["parameters", *(f"{model.log.parameters:,}" for model in models)]]
    rows.append(["best validation loss", *(f"{model.log.best.loss:.3f}" for model in models)])
    rows.append([f"accuracy on {len(test.sources):,} test expressions", *(accuracy(model.right) for model in models)])
    for operator in sorted(set(test.operators)):
        chosen = [number for number, outermost in enumerate(test.operators) if outermost == operator]
        cells = [accuracy([model.right[number] for number in chosen]) for model in models]
        rows.append([f"... on the {len(chosen):,} that are a {operator.removeprefix('[')}", *cells])
    return markdown(["", *(model.name for model in models)], rows)


def conclusion(baseline, other):
    """One sentence, from the figures."""
    difference = paired_difference(baseline.right, other.right)
    low, high = difference.points - difference.error, difference.points + difference.error
    return (
        f"{other.name} against {baseline.name}: {difference.points:+.2f} points, 95% interval {low:+.2f} to "
        f"{high:+.2f} ({difference.only_baseline:,} expressions were right with {baseline.name} only, "
        f"{difference.only_other:,} with {other.name} only). That the two are within {MARGIN:g} points is "
        f"{'shown' if difference.within_margin else 'not shown'}."
    )


def plot(path, models):
    """Validation loss against updates."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    for model in models:
        points = model.log.validation
        label = f"{model.name}: {100 * statistics.fmean(model.right):.1f}% of the test set"
        axis.plot([p.updates for p in points], [p.loss for p in points], marker=".", linewidth=1, label=label)
    axis.set_xlabel("updates")
    axis.set_ylabel("validation loss, bits a token")
    axis.grid(alpha=0.3)
    axis.legend()
    save_figure(figure, path)


def main(arguments=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=read_path, help="folder with {train,test}.{source,target}, made by listops.py")
    parser.add_argument("folders", type=read_path, nargs="+", metavar="MODEL", help="folder of a model, named like it")
    parser.add_argument("--curves", type=read_path, help="file for the curves (PNG)")
    options = parser.parse_args(arguments)
    if options.curves:
        read = [path for folder in (options.corpus, *options.folders) for path in folder.glob("*")]
        check_output_file(options.curves, *read, option="--curves")
    train, test = (read_split(options.corpus, name) for name in ("train", "test"))
    models = [read_model(folder, test) for folder in options.folders]
    print(table(models, test))
    baseline, *others = models
    print("\n" + "\n".join(conclusion(baseline, other) for other in others))
    print("\nOf the test set, without following the structure of an expression:\n")
    print(markdown(["", "accuracy"], [[name, f"{guess(train, test):.1f}%"] for name, guess in BASELINES.items()]))
    print("\nOperators: MAX and MIN, MED (the median), SM (the sum modulo 10). ± and intervals: 95%.")
    if options.curves:
        plot(options.curves, models)


if __name__ == "__main__":
    main()
