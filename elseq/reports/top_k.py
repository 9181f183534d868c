"""Tables (Markdown) and plots (PNG) of what top-k costs a model, from the logs of fairseq-generate.

quality:     a model trained without top-k, decoded with it: loss and sacreBLEU against k.
finetuning:  the same model after a short training with top-k, beside one without.

NAME.log is a translation of the test set, NAME-score.log has the scores of its references (--score-reference). For
`quality` NAME is full or PLACE-K: everywhere-8 for attention in all places, encoder-8, decoder-8 or cross-8 for one of
them, ffn-8 for the feed-forward layers. Where there is no translation, there is no sacreBLEU.
"""

import argparse
from itertools import chain
from typing import NamedTuple

from matplotlib.figure import Figure

from elseq.arguments import Parser, count, read_path
from elseq.errors import UserError
from elseq.files import check_output_file, read_lines, save_figure
from elseq.reports.logs import read_finished, read_token_scores
from elseq.reports.training import score
from elseq.tables import markdown

PLACES = ("everywhere", "encoder", "decoder", "cross", "ffn")
TOLERANCE = 0.01  # share of the whole model's metric by which another one may be worse


class Quality(NamedTuple):
    loss: float  # cross-entropy of the references, base 2, of a token
    bleu: float | None


class Metric(NamedTuple):
    """One of the two of a Quality."""

    heading: str
    of: str
    digits: int
    sign: int  # 1 where less is better

    def write(self, quality, whole=None):
        """With the difference from the whole model."""
        value = getattr(quality, self.of)
        if value is None:
            return "-"
        text = f"{value:.{self.digits}f}"
        return text if whole is None else f"{text} ({value - getattr(whole, self.of):+.{self.digits}f})"

    def is_kept(self, quality, whole):
        value, reference = getattr(quality, self.of), getattr(whole, self.of)
        return self.sign * (value - reference) <= TOLERANCE * reference


LOSS, BLEU = Metric("loss", "loss", 3, 1), Metric("sacreBLEU", "bleu", 2, -1)


class Reader:
    """Of the logs in a folder."""

    def __init__(self, folder, references):
        self.folder = folder
        self.references = list(read_lines(references))
        self.signatures = set()  # of the scores read so far

    def quality(self, name):
        return Quality(read_loss(self.folder / f"{name}-score.log"), self._bleu(self.folder / f"{name}.log"))

    def _bleu(self, path):
        if not path.exists():
            return None
        hypotheses = read_finished(path).hypotheses
        if not hypotheses or max(hypotheses) >= len(self.references):
            raise UserError(
                f"{path}: its sentences are not those of the references, which are {len(self.references):,}"
            )
        numbers = sorted(hypotheses)  # all, or those of a shard
        bleu, signature = score(
            {place: hypotheses[number] for place, number in enumerate(numbers)},
            [self.references[number] for number in numbers],
        )
        self.signatures.add(f"{signature}, of {len(numbers):,} sentences")
        return bleu

    def footnote(self):
        print("\nLoss: cross-entropy of the references, base 2, of a token; in brackets: against the whole model.")
        print(f"sacreBLEU: {'; '.join(sorted(self.signatures))}, on the text of the corpus.")


def read_loss(path):
    scores = list(chain.from_iterable(read_token_scores(path).values()))
    return -sum(scores) / len(scores)


# The tables of `quality`.


def columns(places):
    """Pairs of a metric and a place, losses first. All values of k of the place have the metric."""
    for metric in (LOSS, BLEU):
        for place, by_k in places.items():
            if all(getattr(quality, metric.of) is not None for quality in by_k.values()):
                yield metric, place


def quality_table(whole, places):
    """A row for each k; places: of each of them, Quality by k."""
    shown = list(columns(places))
    rows = [["all", *(metric.write(whole) for metric, _ in shown)]]
    for k in sorted({k for by_k in places.values() for k in by_k}, reverse=True):
        rows.append([str(k), *(metric.write(places[p][k], whole) if k in places[p] else "" for metric, p in shown)])
    return markdown(["k", *(f"{metric.heading}, {place}" for metric, place in shown)], rows)


def smallest_sufficient(whole, by_k, metric):
    """The smallest k such that it and all greater ones keep the metric; None if the greatest does not."""
    smallest = None
    for k in sorted(by_k, reverse=True):
        if not metric.is_kept(by_k[k], whole):
            break
        smallest = k
    return smallest


def sufficient_table(whole, places):
    rows = []
    for metric, place in columns(places):
        smallest = smallest_sufficient(whole, places[place], metric)
        rows.append(
            [f"{metric.heading}, {place}", f"above {max(places[place])}" if smallest is None else str(smallest)]
        )
    return markdown(["within 1% of the whole model", "smallest k"], rows)


def report_quality(options):
    reader = Reader(options.folder, options.references)
    whole = reader.quality("full")
    attention = {
        place: {k: reader.quality(f"{place}-{k}") for k in options.top_k} for place in PLACES if place != "ffn"
    }
    ffn = {"ffn": {k: reader.quality(f"ffn-{k}") for k in options.ffn_top_k}}
    for title, places in (
        ("Attention: scores kept of each query", attention),
        ("Feed-forward layers: units used", ffn),
    ):
        print(f"{title}\n\n{quality_table(whole, places)}\n")
    print(sufficient_table(whole, attention | ffn))
    print("\nThe smallest k: with it and every greater one that was tried.")
    reader.footnote()
    if options.plot:
        check_output_file(options.plot, options.references, *options.folder.glob("*.log"), option="--plot")
        plot(options.plot, whole, attention | ffn)


def plot(path, whole, places):
    """Loss and sacreBLEU against k."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    for axis, metric in zip(figure.subplots(1, 2), (LOSS, BLEU), strict=True):
        for number, place in enumerate(PLACES):
            if (metric, place) in columns(places):
                values = [(k, getattr(quality, metric.of)) for k, quality in sorted(places[place].items())]
                axis.plot(*zip(*values, strict=True), color=f"C{number}", marker=".", linewidth=1, label=place)
        axis.axhline(getattr(whole, metric.of), color="black", linestyle="--", linewidth=1, label="whole model")
        axis.set_xscale("log", base=2)
        axis.set_xlabel("k")
        axis.set_ylabel(metric.heading)
        axis.grid(alpha=0.3)
        axis.legend()
    save_figure(figure, path)


# The table of `finetuning`.


def report_finetuning(options):
    reader = Reader(options.folder, options.references)
    names = {
        "as it was": "full",
        f"top-{options.top_k} applied": f"everywhere-{options.top_k}",
        "trained on with full attention": "full-tuned",
        f"the same, top-{options.top_k} applied": f"full-tuned-top-{options.top_k}",
        f"trained on with top-{options.top_k}": f"top-{options.top_k}-tuned",
    }
    qualities = {title: reader.quality(name) for title, name in names.items()}
    whole = qualities["as it was"]
    rows = [
        [title, *(metric.write(quality, None if quality is whole else whole) for metric in (LOSS, BLEU))]
        for title, quality in qualities.items()
    ]
    print(markdown(["", LOSS.heading, BLEU.heading], rows))
    print(f"\nTrained on: {options.updates} updates more.")
    reader.footnote()


def main(arguments=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="{quality,finetuning}")

    quality = commands.add_parser("quality", help="loss and sacreBLEU against k")
    quality.add_argument("--top-k", type=count, nargs="+", required=True, metavar="K", help="scores kept in attention")
    quality.add_argument("--ffn-top-k", type=count, nargs="+", required=True, metavar="K", help="units used")
    quality.add_argument("--plot", type=read_path, help="file for the plot (PNG)")
    quality.set_defaults(report=report_quality)

    finetuning = commands.add_parser("finetuning", help="what a short training with top-k brings")
    finetuning.add_argument("--top-k", type=count, required=True, metavar="K", help="scores kept in attention")
    finetuning.add_argument("--updates", type=count, required=True, help="of that training")
    finetuning.set_defaults(report=report_finetuning)

    for command in (quality, finetuning):
        command.add_argument("folder", type=read_path, help="with the logs")
        command.add_argument("--references", type=read_path, required=True, help="the test set's target side, as text")
    options = parser.parse_args(arguments)
    options.report(options)


if __name__ == "__main__":
    main()
