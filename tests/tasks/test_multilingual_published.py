"""M2M-100, mBART-25, mBART-50 and NLLB-200 with the options of their publication, against fairseq's own decoding.

Only the sizes are smaller, and the weights are random. Files and commands are as on the pages of the models.
"""

import random
import shutil
from argparse import Namespace
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import pytest
import torch

import elseq
from elseq.interop.hugging_face.families.multilingual.languages import M2M_100, MBART_25, MBART_50, NLLB
from elseq.tasks.multilingual import DATA_SOURCES
from tests import helpers
from tests.tasks.test_multilingual import assert_same, hypotheses

WORDS = [f"w{number}" for number in range(40)]
SIZES = [
    f"--{side}-{name}={number}"
    for side in ("encoder", "decoder")
    for name, number in {"layers": 2, "embed-dim": 32, "ffn-embed-dim": 64, "attention-heads": 4}.items()
]
NORMS = ["--encoder-normalize-before", "--decoder-normalize-before"]
TRAINING = [
    *("--criterion=label_smoothed_cross_entropy", "--optimizer=adam", "--adam-betas=(0.9, 0.98)", "--adam-eps=1e-06"),
    *("--warmup-updates=2500", "--dropout=0.3", "--attention-dropout=0.1", "--weight-decay=0.0", "--max-tokens=1024"),
]
SYMBOLS = ["--encoder-langtok=src", "--decoder-langtok"]
SIMPLE = ["--task=translation_multi_simple_epoch", *SYMBOLS]
# Options that fairseq got after 2020, so that the checkpoints of that time lack them.
LATER = ("lang_tok_replacing_bos_eos", "truncate_source", "enable_reservsed_directions_shared_datasets", "eval_bleu")
# Options that only the branch of NLLB has.
BRANCH = {
    "add_data_source_prefix_tags": True,
    "add_ssl_task_tokens": False,
    "enable_m2m_validation": True,
    "finetune_dict_specs": None,
    "moe_eval_capacity_token_fraction": -1.0,
    "moe_expert_count": 0,
    "moe_freq": 0,
    "use_local_shard_size": True,
}


@dataclass
class Model:
    """A model as it was published: a folder with model.pt."""

    folder: Path
    data: Path  # binarized
    stock: list[str]  # options of the generation by fairseq
    elseq: list[str]  # those by elseq's task
    pair: tuple[str, str]  # of the data
    other: tuple[str, str]  # of texts

    @property
    def checkpoint(self) -> Path:
        return self.folder / "model.pt"


def write_dictionary(path, *words):
    path.write_text("".join(f"{word} 1\n" for word in [*WORDS, *words]))
    return path


def binarize(folder, source, target) -> Path:
    generator = random.Random(1)
    for split, size in (("train", 20), ("valid", 5), ("test", 10)):
        for language in (source, target):
            lines = [" ".join(generator.choices(WORDS, k=generator.randint(2, 9))) for _ in range(size)]
            (folder / f"{split}.{language}").write_text("".join(f"{line}\n" for line in lines))
    words = write_dictionary(folder / "words.txt")
    prefixes = [f"--{split}pref={folder / split}" for split in ("train", "valid", "test")]
    command = ["fairseq-preprocess", "-s", source, "-t", target, "--srcdict", words, "--tgtdict", words, *prefixes]
    helpers.run_here([*command, "--destdir", folder / "data"])
    return folder / "data"


def train(folder, *options):
    """A checkpoint of stock fairseq; its weights are nearly as they began."""
    process = ["--cpu", "--seed=1", "--num-workers=0", "--log-format=none", "--max-update=2", "--disable-validation"]
    saving = ["--save-dir", folder, "--no-epoch-checkpoints"]
    helpers.run_here(["fairseq-train", folder / "data", *options, *SIZES, *process, *saving])
    (folder / "checkpoint_last.pt").rename(folder / "model.pt")


def as_wide(path, width=1024):
    """The matrices of a BART begin with numbers of one size at any width. In narrow ones they would say nothing."""
    state = torch.load(path)
    for name, tensor in state["model"].items():
        if tensor.dim() > 1:
            state["model"][name] = tensor * (width / tensor.size(-1)) ** 0.5
    torch.save(state, path)


def as_of_2020(path, **changes):
    """One namespace holds all options, and lacks the later ones."""
    state = torch.load(path)
    options = vars(state["cfg"]["task"]) | changes
    state["args"] = Namespace(**{name: options[name] for name in options.keys() - set(LATER) if name[0] != "_"})
    state["cfg"] = None
    torch.save(state, path)


def m2m100(folder) -> Model:
    """https://github.com/facebookresearch/fairseq/tree/main/examples/m2m_100, the model with 418 million parameters."""
    data, languages = binarize(folder, "de", "fr"), M2M_100["m2m100"]
    symbols = [*(f"__{language}__" for language in languages), *(f"madeupword{number:04}" for number in range(8))]
    dictionary = write_dictionary(folder / "model_dict.128k.txt", *symbols)
    task = [*SIMPLE, "--sampling-method=temperature", "--sampling-temperature=5", "--fixed-dictionary", dictionary]
    drop = ["--encoder-layerdrop=0.05", "--decoder-layerdrop=0.05", "--activation-dropout=0.0", "--dropout=0.1"]
    model = ["--arch=transformer_wmt_en_de_big", "--share-all-embeddings", *NORMS, *TRAINING, *drop]
    schedule = ["--lr-scheduler=inverse_sqrt", "--lr=0.001", "--label-smoothing=0.1"]
    train(folder, *task, "--lang-pairs=de-fr,fr-de", *model, *schedule)
    pairs = list(map("-".join, permutations(languages, 2)))
    as_of_2020(folder / "model.pt", lang_pairs=pairs, fixed_dictionary="/private/home/someone/model_dict.txt")
    shutil.copy(dictionary, folder / "dict.txt")
    (folder / "language_pairs_small_models.txt").write_text(",".join(pairs) + "\n")
    generation = ["--fixed-dictionary", dictionary, "--lang-pairs", folder / "language_pairs_small_models.txt"]
    stock, ours = ([f"--task={name}translation_multi_simple_epoch", *SYMBOLS, *generation] for name in ("", "elseq_"))
    return Model(folder, data, stock, ours, ("de", "fr"), ("zu", "af"))


def mbart50(folder) -> Model:
    """https://github.com/facebookresearch/fairseq/tree/main/examples/multilingual, many to many (2008.00401)."""
    data = binarize(folder, "en_XX", "ro_RO")
    (folder / "ML50_langs.txt").write_text("\n".join(MBART_50))
    languages = ["--lang-tok-style=mbart", "--lang-dict", folder / "ML50_langs.txt"]
    languages += ["--lang-pairs=en_XX-ro_RO,ro_RO-en_XX"]
    task = ["--sampling-method=temperature", "--sampling-temperature=1.5", *SIMPLE, *languages]
    model = ["--arch=mbart_large", "--layernorm-embedding", "--encoder-learned-pos", "--decoder-learned-pos", *NORMS]
    model += ["--share-all-embeddings", "--share-decoder-input-output-embed", "--relu-dropout=0.0", *TRAINING]
    train(folder, *task, *model, "--lr-scheduler=inverse_sqrt", "--lr=3e-05", "--label-smoothing=0.2")
    as_wide(folder / "model.pt")
    as_of_2020(folder / "model.pt", lang_dict="/private/home/someone/ML50_langs.txt")
    for language in MBART_50:  # the folder has one for each language
        shutil.copy(folder / "words.txt", folder / f"dict.{language}.txt")
        shutil.copy(folder / "words.txt", data / f"dict.{language}.txt")
    stock, ours = ([f"--task={name}translation_multi_simple_epoch", *SYMBOLS, *languages] for name in ("", "elseq_"))
    return Model(folder, data, stock, ours, ("en_XX", "ro_RO"), ("sl_SI", "gl_ES"))


def nllb200(folder) -> Model:
    """https://github.com/facebookresearch/fairseq/tree/nllb, dense with 600 million parameters (transformer_12_12).

    The branch appends its words of data sources to the dictionary. For stock fairseq, a file has them.
    """
    data = binarize(folder, "eng_Latn", "fra_Latn")
    symbols = [*(f"__{language}__" for language in NLLB), *DATA_SOURCES]
    dictionary = write_dictionary(folder / "all_of_stock.txt", *symbols)
    languages = [f"--langs={','.join(NLLB)}", "--lang-pairs=eng_Latn-fra_Latn,fra_Latn-eng_Latn"]
    task = [*SIMPLE, "--sampling-method=temperature", "--sampling-temperature=1", *languages]
    model = ["--arch=transformer", "--share-all-embeddings", *NORMS, *TRAINING, "--relu-dropout=0.0"]
    model += ["--max-source-positions=512", "--max-target-positions=512", "--clip-norm=0.0"]
    schedule = ["--lr-scheduler=inverse_sqrt", "--lr=0.001", "--label-smoothing=0.1"]
    train(folder, *task, "--fixed-dictionary", dictionary, *model, *schedule)
    state = torch.load(folder / "model.pt")
    options = vars(state["cfg"]["task"]) | BRANCH | {"fixed_dictionary": None}
    state["cfg"]["task"] = Namespace(**options)
    state["cfg"]["model"] = Namespace(**options | {"_name": "transformer"})
    torch.save(state, folder / "model.pt")
    write_dictionary(folder / "dictionary.txt")
    stock = [*SIMPLE, *languages, "--fixed-dictionary", dictionary]
    ours = ["--task=elseq_translation_multi_simple_epoch", *SYMBOLS, *languages, "--add-data-source-prefix-tags"]
    ours += ["--fixed-dictionary", folder / "dictionary.txt"]
    return Model(folder, data, stock, ours, ("eng_Latn", "fra_Latn"), ("zul_Latn", "ace_Arab"))


def mbart25(folder) -> Model:
    """https://github.com/facebookresearch/fairseq/tree/main/examples/mbart, finetuned from English to Romanian."""
    data = binarize(folder, "en_XX", "ro_RO")
    languages = [f"--langs={','.join(MBART_25)}", "--prepend-bos"]
    task = ["--task=translation_from_pretrained_bart", *languages]
    model = ["--arch=mbart_large", "--layernorm-embedding", *NORMS, *TRAINING, "--label-smoothing=0.2"]
    schedule = ["--lr-scheduler=polynomial_decay", "--lr=3e-05", "--total-num-update=40000"]
    train(folder, *task, "--source-lang=en_XX", "--target-lang=ro_RO", *model, *schedule)
    as_wide(folder / "model.pt")
    as_of_2020(folder / "model.pt")
    for language in ("en_XX", "ro_RO"):
        shutil.copy(folder / "words.txt", folder / f"dict.{language}.txt")
    ours = ["--task=elseq_translation_from_pretrained_bart", *languages]
    return Model(folder, data, task, ours, ("en_XX", "ro_RO"), ("en_XX", "ro_RO"))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    made = {}

    def published(make) -> Model:
        if make not in made:
            made[make] = make(tmp_path_factory.mktemp(make.__name__))
        return made[make]

    return published


MODELS = [nllb200, *(pytest.param(make, marks=pytest.mark.slow) for make in (m2m100, mbart50, mbart25))]
SEARCH = ["--beam=5", "--max-len-b=12", "--cpu"]


@pytest.mark.parametrize("make", MODELS)
def test_generate(published, make):
    model = published(make)
    command = ["fairseq-generate", model.data, "--path", model.checkpoint, *SEARCH, "--nbest=2", "--batch-size=32"]
    command += [f"--source-lang={model.pair[0]}", f"--target-lang={model.pair[1]}"]
    expected = hypotheses(helpers.run_here([*command, *model.stock]).stdout)
    assert len(expected) == 20 and len({text for *_, text in expected}) > 2
    for mode in ("kv", "el"):
        options = [*model.elseq, "--user-dir", helpers.USER_DIR, f"--decode-attention={mode}"]
        printed = helpers.run_here([*command, *options]).stdout
        assert_same(hypotheses(printed), expected)
        assert "rebuilt as Elseq" in printed


@pytest.mark.slow
@pytest.mark.parametrize("make", MODELS)
def test_texts(published, make, tmp_path):
    """By what the checkpoint says of its options, but for an mBART-25 for a pair that was not trained."""
    model = published(make)
    source, target = model.other
    lines = (model.folder / f"test.{model.pair[0]}").read_text().splitlines()
    (tmp_path / "input").write_text("".join(f"{line}\n" for line in lines))
    command = ["fairseq-interactive", model.data, "--input", tmp_path / "input", "--path", model.checkpoint, *SEARCH]
    command += [f"--source-lang={source}", f"--target-lang={target}", "--buffer-size=20"]
    if make is mbart25:  # with --prepend-bos, fairseq's task forgets <s> before texts, but not before data
        stock = ["fairseq-generate", model.data, "--path", model.checkpoint, *SEARCH, *command[-3:-1], *model.stock]
    else:
        stock = [*command, *model.stock]
    expected = hypotheses(helpers.run_here(stock).stdout)
    ours = [*command, *model.elseq, "--user-dir", helpers.USER_DIR]
    assert_same(hypotheses(helpers.run_here(ours).stdout), expected)
    texts = [text for *_, text in expected]
    generator = elseq.load(model.folder, source_lang=source, target_lang=target)
    assert generator.generate(lines, max_len_b=12) == texts
    if make is m2m100:  # it does not keep all pairs, which `for_languages` would read
        assert len(generator.task.args.lang_pairs) == 1
    again = elseq.load(model.folder, source_lang=model.pair[0], target_lang=model.pair[1])
    assert again.generate(lines, max_len_b=12, source_lang=source, target_lang=target) == texts
    command = ["elseq-generate", "--model", model.folder, "--input", tmp_path / "input", "--max-len-b=12"]
    helpers.run_here([*command, "--source-lang", source, "--target-lang", target, "--output", tmp_path / "output"])
    assert (tmp_path / "output").read_text().splitlines() == texts
