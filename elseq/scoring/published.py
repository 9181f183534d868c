"""Published scores of test sets, to be shown beside one's own."""

from typing import NamedTuple


class Published(NamedTuple):
    """
    Attributes:
        command: of elseq-score.
        examples: of the test set.
        source: where the figures stand.
        scores: by elseq's names of the scores.
    """

    command: str
    examples: int
    source: str
    scores: dict[str, float]


def _rouge(examples: int, source: str, *scores: float) -> Published:
    # the ROUGE-L of papers on summaries goes by sentences
    return Published("rouge", examples, source, dict(zip(("rouge1", "rouge2", "rougeLsum"), scores, strict=True)))


def _questions(source: str, *scores: float) -> Published:
    """On the test set of Du et al., 2017, by their script."""
    return Published("qg", 11_877, source, dict(zip(("bleu4", "meteor", "rougeL_coco"), scores, strict=True)))


PUBLISHED = {
    "cnn_dm-bart_large": _rouge(11_490, "BART-large, Lewis et al., 2019 (1910.13461), table 3", 44.16, 21.28, 40.90),
    "cnn_dm-unilm_large": _rouge(
        11_490, "UniLM-large, Dong et al., 2019 (1905.03197), as released", 43.08, 20.43, 40.34
    ),
    "cnn_dm-prophetnet_large": _rouge(11_490, "ProphetNet-large, Qi et al., 2020 (2001.04063)", 44.20, 21.17, 41.30),
    "xsum-bart_large": _rouge(11_334, "BART-large, Lewis et al., 2019 (1910.13461), table 3", 45.14, 22.27, 37.25),
    "squad_qg-du_2017": _questions("Du et al., 2017 (1705.00106), table 2, from the sentence", 12.28, 16.62, 39.75),
    "squad_qg-unilm_large": _questions(
        "UniLM-large, Dong et al., 2019 (1905.03197), as released, references tokenized by its authors",
        *(22.78, 25.49, 51.57),
    ),
    "squad_qg-unilm_large-du_tokens": _questions(
        "UniLM-large, Dong et al., 2019 (1905.03197), as released, references tokenized by Du et al.",
        *(22.17, 25.47, 51.53),
    ),
    "squad_qg-prophetnet_large": _questions("ProphetNet-large, Qi et al., 2020 (2001.04063)", 25.01, 26.83, 52.57),
}


def settings(command: str) -> list[str]:
    """The names of the published scores that a command can show."""
    return [name for name, published in PUBLISHED.items() if published.command == command]
