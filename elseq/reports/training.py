"""Tables (Markdown) and curves (PNG) of trainings, from the logs of fairseq-train, -validate and -generate.

attention:   models with different attention, side by side: loss, perplexity, sacreBLEU, decoding state, speed.
uptraining:  what is lost when a model gets fewer key/value heads, and how much of it a short training brings back.
"""

import argparse
import re
import statistics
from collections.abc import Callable
from operator import sub, truediv
from typing import NamedTuple

from matplotlib.figure import Figure
from sacrebleu.metrics import BLEU

from elseq.arguments import Parser, count, read_path
from elseq.errors import UserError
from elseq.files import check_output_file, read_lines, save_figure
from elseq.reports.logs import Point, TrainingLog, read_finished, read_training, read_validations
from elseq.tables import markdown

SEED = re.compile(r"-seed(\d+)$")  # at the end of a folder's name; a folder without it is of seed 1
TOLERANCE = 0.001  # by which models that are called equal in size may differ
NOTABLE = 0.01  # share of the loss that a conversion adds at least, or what is recovered of it is noise


class Run(NamedTuple):
    """A training and the translation of the test set by its best checkpoint."""

    log: TrainingLog
    bleu: float
    state_bytes: int


# The table of `attention`: a column for each model, a row for each figure.


class Row(NamedTuple):
    """A figure of a run, how it is compared with that of the baseline, and how both are written."""

    heading: str
    figure: Callable[[Run], float]
    form: str  # as for `str.format`
    compare: Callable[[float, float], float] | None = None
    form_of_comparison: str | None = None


ROWS = [
    Row("key/value heads", lambda run: run.log.kv_heads, "{:,.0f}"),
    Row("feed-forward width", lambda run: run.log.ffn_width, "{:,.0f}"),
    Row("parameters", lambda run: run.log.parameters, "{:,.0f}"),
    Row("best validation loss", lambda run: run.log.best.loss, "{:.3f}", sub, "{:+.3f}"),
    Row("its perplexity", lambda run: run.log.best.perplexity, "{:.2f}", sub, "{:+.2f}"),
    Row("last validation loss", lambda run: run.log.validation[-1].loss, "{:.3f}", sub, "{:+.3f}"),
    Row("its perplexity", lambda run: run.log.validation[-1].perplexity, "{:.2f}", sub, "{:+.2f}"),
    Row("sacreBLEU", lambda run: run.bleu, "{:.2f}", sub, "{:+.2f}"),
    Row("decoding state, bytes", lambda run: run.state_bytes, "{:,.0f}", truediv, "x {:.2f}"),
    Row("training words/s", lambda run: run.log.words_per_second, "{:,.0f}", truediv, "x {:.2f}"),
]


def spread(values, form):
    """The value, or mean and standard deviation of several that are not all equal."""
    text = form.format(statistics.fmean(values))
    if len(set(values)) == 1:
        return text
    return f"{text} ± {form.format(statistics.stdev(values)).removeprefix('+').removeprefix('x ')}"


def attention_table(models):
    """Markdown.

    Args:
        models: of each model, its run by seed. The first model is the baseline; comparisons are made seed by seed.
    """
    baseline, *others = models.values()
    rows = []
    for row in ROWS:
        cells = [spread([row.figure(run) for run in baseline.values()], row.form)]
        for runs in others:
            text = spread([row.figure(run) for run in runs.values()], row.form)
            if row.compare is not None:
                compared = [row.compare(row.figure(run), row.figure(baseline[seed])) for seed, run in runs.items()]
                text += f" ({spread(compared, row.form_of_comparison)})"
            cells.append(text)
        rows.append([row.heading, *cells])
    return markdown(["", *models], rows)


def check_equal_parameters(models):
    sizes = {name: next(iter(runs.values())).log.parameters for name, runs in models.items()}
    if max(sizes.values()) - min(sizes.values()) > TOLERANCE * min(sizes.values()):
        listed = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
        raise UserError(
            f"the models differ in size by more than {TOLERANCE:.1%} and cannot be compared: {listed} parameters"
        )


def group_by_model(folders):
    """{model: {seed: folder}}, in the order given; a folder is named MODEL or MODEL-seedN."""
    models = {}
    for folder in folders:
        seed = SEED.search(folder.name)
        models.setdefault(SEED.sub("", folder.name), {})[int(seed[1]) if seed else 1] = folder
    if len({tuple(sorted(seeds)) for seeds in models.values()}) > 1:
        raise UserError("every model needs the same seeds: " + ", ".join(folder.name for folder in folders))
    return models


def score(hypotheses, references):
    """sacreBLEU and its signature."""
    if hypotheses.keys() != set(range(len(references))):
        raise UserError(f"the test set has {len(references)} sentences, of which {len(hypotheses)} were translated")
    metric = BLEU(force=True)  # without its warning: the text that Multi30k comes as is tokenized
    bleu = metric.corpus_score([hypotheses[number] for number in range(len(references))], [references])
    return bleu.score, metric.get_signature().format()


def report_attention(options):
    references = list(read_lines(options.references))
    models, signatures = {}, set()
    for name, folders in group_by_model(options.folders).items():
        for seed, folder in folders.items():
            test = read_finished(folder / "test.log")
            bleu, signature = score(test.hypotheses, references)
            models.setdefault(name, {})[seed] = Run(read_training(folder / "train.log"), bleu, test.state_bytes)
            signatures.add(signature)
    check_equal_parameters(models)
    baseline, *_ = models
    seeds = models[baseline]
    print(attention_table(models))
    print(
        f"\nIn brackets: against {baseline}. Losses are label-smoothed, base 2; perplexity is 2 to the unsmoothed one."
    )
    if len(seeds) > 1:
        print(f"Mean and standard deviation of the seeds {', '.join(map(str, seeds))}; compared seed by seed.")
    print("Decoding state: the peak over the batches of the test set; it grows with the longest hypothesis, too.")
    print(f"sacreBLEU: {', '.join(sorted(signatures))}, on the lower-cased, tokenized text of the corpus.")
    if options.curves:
        plot_attention(options.curves, {name: [run.log for run in runs.values()] for name, runs in models.items()})


# The table of `uptraining`: a row for each method of making heads fewer.


class Uptraining(NamedTuple):
    """The uptraining of one seed."""

    original: float  # loss of the model before it was converted
    converted: Point | None  # None where nothing was converted
    validation: list[Point]

    def loss_at(self, updates):
        losses = [point.loss for point in self.validation if point.updates == updates]
        if not losses:
            raise UserError(f"there is no validation after {updates} updates")
        return losses[0]

    def recovered_at(self, updates):
        return recovered(self.original, self.converted.loss, self.loss_at(updates)) if self.converted else None

    @property
    def curve(self):
        return [self.converted or Point(0, self.original, 0.0), *self.validation]


def recovered(original, converted, now):
    """The share of the loss added by a conversion that training has recovered; None if it added less than `NOTABLE`."""
    added = converted - original
    return (converted - now) / added if added >= NOTABLE * original else None


def uptraining_table(methods, at, total):
    """Markdown.

    Args:
        methods: the Uptraining of each method, by seed.
        at: the numbers of updates to show.
        total: updates that the original had.
    """

    def cell(figures, form):
        return spread(figures, form) if figures and None not in figures else "-"

    after = [f"after {updates} updates ({100 * updates / total:g}%)" for updates in at]
    rows = []
    for name, seeds in methods.items():
        runs = seeds.values()
        losses = [[run.original for run in runs], [run.converted and run.converted.loss for run in runs]]
        losses += [[run.loss_at(updates) for run in runs] for updates in at]
        shares = [[run.recovered_at(updates) for run in runs] for updates in at]
        rows.append([name, *(cell(each, "{:.3f}") for each in losses), *(cell(each, "{:.1%}") for each in shares)])
    headers = ["", "multi-head", "after conversion", *after, *(f"recovered at {updates}" for updates in at)]
    return markdown(headers, rows)


def report_uptraining(options):
    methods = {name: {} for name in options.methods}
    for seed in options.seeds:
        (original,) = read_validations(options.folder / f"{_folder('multi-head', seed)}.log")
        for name, seeds in methods.items():
            folder = options.folder / _folder(name, seed)
            log = folder / "converted.log"
            converted = read_validations(log)[0] if log.exists() else None
            seeds[seed] = Uptraining(original.loss, converted, read_training(folder / "train.log").validation)
    print(uptraining_table(methods, options.at, options.of))
    print(
        "\nValidation loss, label-smoothed, base 2. Recovered: of the loss that the conversion added, where this is at "
        f"least {NOTABLE:.0%}."
    )
    if any(run.converted is None for seeds in methods.values() for run in seeds.values()):
        print("A row without conversion is the multi-head model itself, trained on in the same way.")
    if len(options.seeds) > 1:
        print(f"Mean and standard deviation of the seeds {', '.join(map(str, options.seeds))}.")
    if options.curves:
        plot_uptraining(options.curves, methods)


def _folder(name, seed):
    """See `SEED`."""
    return name if seed == 1 else f"{name}-seed{seed}"


# Curves.


def _draw(axis, points, **style):
    axis.plot([point.updates for point in points], [point.loss for point in points], **style)


def plot_attention(path, logs):
    """Training and validation loss against updates: a colour for each model, a line for each seed."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    for axis, curve in zip(axes, ("training", "validation"), strict=True):
        for number, (name, seeds) in enumerate(logs.items()):
            for index, log in enumerate(seeds):
                marker = "." if curve == "validation" else None
                label = name if index == 0 else None
                _draw(axis, getattr(log, curve), color=f"C{number}", marker=marker, linewidth=1, label=label)
        axis.set_xlabel("updates")
        axis.set_title(f"{curve} loss")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("label-smoothed cross-entropy, base 2")
    axes[1].legend()
    save_figure(figure, path)


def plot_uptraining(path, methods):
    """Validation loss against updates of uptraining, from the conversion on: the mean of the seeds, and a band of one
    standard deviation."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    for number, (name, seeds) in enumerate(methods.items()):
        updates, losses = [], []
        for points in zip(*(run.curve for run in seeds.values()), strict=True):
            updates.append(points[0].updates)
            losses.append([point.loss for point in points])
        means = [statistics.fmean(each) for each in losses]
        axis.plot(updates, means, color=f"C{number}", marker=".", linewidth=1, label=name)
        if len(seeds) > 1:
            deviations = [statistics.stdev(each) for each in losses]
            edges = [[mean + sign * each for mean, each in zip(means, deviations, strict=True)] for sign in (-1, 1)]
            axis.fill_between(updates, *edges, color=f"C{number}", alpha=0.2, linewidth=0)
    original = statistics.fmean(run.original for seeds in methods.values() for run in seeds.values())
    axis.axhline(original, color="black", linestyle="--", linewidth=1, label="multi-head, as it was")
    axis.set_xlabel("updates of uptraining")
    axis.set_ylabel("validation loss")
    axis.grid(alpha=0.3)
    axis.legend()
    save_figure(figure, path)


def main(arguments=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="{attention,uptraining}")

    attention = commands.add_parser("attention", help="compare models with different attention")
    attention.add_argument(
        "folders",
        type=read_path,
        nargs="+",
        help="MODEL or MODEL-seedN, with train.log and test.log",
    )
    attention.add_argument("--references", type=read_path, required=True, help="the test set's target side, as text")
    attention.set_defaults(report=report_attention)

    uptraining = commands.add_parser("uptraining", help="compare ways to make key/value heads fewer")
    uptraining.add_argument("folder", type=read_path, help="with multi-head.log and the folders of the methods")
    uptraining.add_argument(
        "methods", nargs="+", help="folders METHOD or METHOD-seedN with train.log and, if converted, converted.log"
    )
    uptraining.add_argument("--seeds", type=count, nargs="+", default=[1], help="the seeds (default: 1)")
    updates = {"type": count, "required": True, "metavar": "UPDATES"}
    uptraining.add_argument("--at", nargs="+", **updates, help="where losses are shown")
    uptraining.add_argument("--of", **updates, help="how many the multi-head model had")
    uptraining.set_defaults(report=report_uptraining)

    for command in (attention, uptraining):
        command.add_argument("--curves", type=read_path, help="file for the curves (PNG)")
    options = parser.parse_args(arguments)
    if options.curves:
        folders = getattr(options, "folders", None) or [options.folder, *options.folder.glob("*/")]
        logs = [path for folder in folders for path in folder.glob("*.log")]
        check_output_file(
            options.curves, *filter(None, [getattr(options, "references", None)]), *logs, option="--curves"
        )
    options.report(options)


if __name__ == "__main__":
    main()
