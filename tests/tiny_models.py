"""Small models with random weights: stock ones, and the elseq models with the same parameters."""

from argparse import Namespace
from types import SimpleNamespace

import torch
from fairseq.data import Dictionary
from fairseq.dataclass.configs import CommonConfig, DatasetConfig
from fairseq.models import ARCH_CONFIG_REGISTRY, MODEL_DATACLASS_REGISTRY
from fairseq.models.bart import BARTModel
from fairseq.models.transformer import TransformerModel
from fairseq.models.transformer_lm import TransformerLanguageModel
from omegaconf import OmegaConf

from elseq.models import ElseqBARTModel, ElseqTransformerLanguageModel, ElseqTransformerModel

FAMILIES = {
    "transformer": (TransformerModel, ElseqTransformerModel, "transformer"),
    "bart": (BARTModel, ElseqBARTModel, "bart_base"),
    "language_model": (TransformerLanguageModel, ElseqTransformerLanguageModel, "transformer_lm"),
}


def make_dictionary(words: int) -> Dictionary:
    """fairseq's four special symbols and w0, w1, ..."""
    dictionary = Dictionary()
    for number in range(words):
        dictionary.add_symbol(f"w{number}")
    return dictionary


def make_models(family: str, dictionary: Dictionary, seed: int = 1, positions: int = 40, **options):
    """A stock model, and its elseq equivalents under kv and under el.

    The output layer is scaled up: distributions are peaked, and no two hypotheses have the same score.
    """
    stock_class, elseq_class, _ = FAMILIES[family]
    args, task = make_arguments(family, dictionary, positions, **options)
    torch.manual_seed(seed)
    stock = make_peaked(stock_class.build_model(Namespace(**vars(args)), task).eval())
    models = {"stock": stock}
    for method in ("kv", "el"):
        model = elseq_class.build_model(Namespace(**vars(args)), task).eval()
        model.load_state_dict(stock.state_dict())
        model.decoder.decode_attention = method
        models[method] = model
    return models


def make_elseq_model(family: str, dictionary: Dictionary, method: str, seed: int = 1, **options):
    """A model with options that stock models do not have."""
    torch.manual_seed(seed)
    model = make_peaked(FAMILIES[family][1].build_model(*make_arguments(family, dictionary, **options)).eval())
    model.decoder.decode_attention = method
    return model


def make_arguments(family: str, dictionary: Dictionary, positions: int = 40, **options):
    """What `build_model` takes."""
    arch = FAMILIES[family][2]
    sizes = {"layers": 2, "embed_dim": 16, "ffn_embed_dim": 32, "attention_heads": 4, "learned_pos": True}
    sizes = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in sizes.items()}
    limits = {name: positions for name in ("max_source_positions", "max_target_positions", "tokens_per_sample")}
    inputs = {"decoder_input_dim": 16, "decoder_output_dim": 16, "share_all_embeddings": False}
    defaults = {}
    if arch in MODEL_DATACLASS_REGISTRY:
        defaults = {
            name: value for name, value in vars(MODEL_DATACLASS_REGISTRY[arch]()).items() if "${" not in str(value)
        }
    args = Namespace(**{**defaults, **sizes, **limits, **inputs, "share_decoder_input_output_embed": False, **options})
    ARCH_CONFIG_REGISTRY[arch](args)
    return args, SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)


@torch.no_grad()
def make_peaked(model):
    model.decoder.output_projection.weight *= 4
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.uniform_(-0.5, 0.5)
    return model


def task_configuration(task_config):
    """A task's part of a whole configuration: some of its defaults refer to other parts."""
    parts = {"task": task_config, "dataset": DatasetConfig(), "common": CommonConfig()}
    return OmegaConf.create({name: OmegaConf.structured(part) for name, part in parts.items()}).task


def pad_rows(rows: list[list[int]], pad: int, left: bool = False) -> torch.Tensor:
    longest = max(map(len, rows))
    padding = [[pad] * (longest - len(row)) for row in rows]
    return torch.tensor([gap + row if left else row + gap for row, gap in zip(rows, padding, strict=True)])


def make_sources(dictionary: Dictionary, lengths, seed: int = 1) -> list[list[int]]:
    """Random words, and the end symbol."""
    generator = torch.Generator().manual_seed(seed)
    words = range(dictionary.nspecial, len(dictionary))
    draw = torch.randint(words.start, words.stop, (len(lengths), max(lengths)), generator=generator).tolist()
    return [[*row[:length], dictionary.eos()] for row, length in zip(draw, lengths, strict=True)]


def make_sample(dictionary: Dictionary, rows: list[list[int]], left: bool = True) -> dict:
    """A batch as the translation task makes it."""
    lengths = torch.tensor([len(row) for row in rows])
    net_input = {"src_tokens": pad_rows(rows, dictionary.pad(), left), "src_lengths": lengths}
    return {"id": torch.arange(len(rows)), "net_input": net_input}


def make_prompts(dictionary: Dictionary, lengths, seed: int = 1) -> tuple[dict, dict]:
    """A batch of prompts for a language model, and the argument of a search that holds them."""
    rows = [[dictionary.eos(), *row[:-1]] for row in make_sources(dictionary, lengths, seed)]
    sample = make_sample(dictionary, rows, left=False)
    return sample, {"prompt_tokens": sample["net_input"]["src_tokens"]}


def assert_same_hypotheses(found, expected, tolerance: float = 1e-4):
    """The same hypotheses for each sentence, in the same order, with the same scores."""
    assert len(found) == len(expected)
    for here, there in zip(found, expected, strict=True):
        assert [hypothesis["tokens"].tolist() for hypothesis in here] == [
            hypothesis["tokens"].tolist() for hypothesis in there
        ]
        for hypothesis, other in zip(here, there, strict=True):
            for value in ("score", "positional_scores"):
                torch.testing.assert_close(
                    hypothesis[value].float(), other[value].float(), rtol=tolerance, atol=tolerance
                )
