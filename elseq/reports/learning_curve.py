"""The learning curve of a training with --eval-bleu, from the log of fairseq-train: a table (Markdown) and a PNG."""

import json

from matplotlib.figure import Figure

from elseq.arguments import Parser, count, read_path
from elseq.files import check_output_file, save_figure
from elseq.reports.logs import read_training
from elseq.scoring.report import HEADINGS
from elseq.tables import markdown


def table(points, rows):
    """Markdown: about so many of them, at equal distances, with the one of the lowest loss and the last."""
    best = min(points, key=lambda point: point.loss)
    step = max(1, round(len(points) / rows))
    lines = []
    for index, point in enumerate(points, start=1):
        if index % step == 0 or point in (best, points[-1]):
            bleu = "-" if point.bleu is None else f"{point.bleu:.2f}"
            mark = "lowest loss" if point == best else ""
            lines.append([f"{point.updates:,}", f"{point.loss:.3f}", f"{point.rounded_perplexity:.2f}", bleu, mark])
    headers = ["updates", "validation loss", "perplexity", "BLEU-4", ""]
    return markdown(headers, lines, left=headers[-1:])


def plot(path, points, training):
    """Losses, and BLEU-4 where there is any, against updates."""
    with_bleu = [point for point in points if point.bleu is not None]
    figure = Figure(figsize=(11 if with_bleu else 6, 4), layout="constrained")
    axes = figure.subplots(1, 2 if with_bleu else 1, squeeze=False)[0]
    axes[0].plot([p.updates for p in training], [p.loss for p in training], linewidth=1, label="training")
    axes[0].plot([p.updates for p in points], [p.loss for p in points], marker=".", linewidth=1, label="validation")
    axes[0].set_ylabel("label-smoothed cross-entropy, base 2")
    axes[0].legend()
    if with_bleu:
        axes[1].plot([p.updates for p in with_bleu], [p.bleu for p in with_bleu], marker=".", linewidth=1, color="C1")
        axes[1].set_ylabel("BLEU-4 of the validation set")
    for axis in axes:
        axis.set_xlabel("updates")
        axis.grid(alpha=0.3)
    save_figure(figure, path)


def describe_test(path):
    """The scores in a file of elseq-score, as a sentence."""
    report = json.loads(path.read_text(encoding="utf-8"))
    (system,) = report["systems"]
    scores = ", ".join(f"{HEADINGS[name]} {score['value']:.2f}" for name, score in system["scores"].items())
    return f"Test set ({report['settings']['examples']:,} examples), best checkpoint: {scores}."


def main(arguments=None):
    parser = Parser(description=__doc__)
    parser.add_argument("log", type=read_path, help="of fairseq-train with --log-format simple")
    parser.add_argument("--rows", type=count, default=12, help="of the table, about (default: %(default)s)")
    parser.add_argument("--scores", type=read_path, help="of the test set, as elseq-score --output writes them")
    parser.add_argument("--curves", type=read_path, required=True, help="the PNG to write")
    options = parser.parse_args(arguments)
    check_output_file(options.curves, *filter(None, (options.log, options.scores)), option="--curves")
    log = read_training(options.log)
    print(table(log.validation, options.rows))
    print(
        f"\n{log.parameters:,} parameters, {log.words_per_second:,.0f} target words/s in training (median). Losses are "
        "label-smoothed, base 2; BLEU-4 is sacreBLEU's, case-sensitive, of the validation set decoded greedily."
    )
    if options.scores:
        print(f"\n{describe_test(options.scores)}")
    plot(options.curves, log.validation, log.training)


if __name__ == "__main__":
    main()
