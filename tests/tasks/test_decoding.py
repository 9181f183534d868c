"""The tasks' common part: which model is built, and which generator; as `ElseqTranslationTask` has it."""

import logging
from argparse import Namespace

import pytest
import torch
from fairseq.dataclass.configs import GenerationConfig
from fairseq.models import FairseqEncoderDecoderModel
from fairseq.models.bart import BARTModel
from fairseq.models.lstm import LSTMModel
from fairseq.models.transformer import TransformerModel
from fairseq.models.transformer_align import TransformerAlignModel
from fairseq.sequence_generator import SequenceGenerator as StockGenerator

from elseq.errors import UserError
from elseq.generation import SequenceGenerator
from elseq.models import ElseqBARTModel, ElseqTransformerModel
from elseq.tasks import ElseqTranslationTask
from elseq.tasks.decoding import check_language
from elseq.tasks.translation import ElseqTranslationConfig
from tests.tasks.loading import load_translation
from tests.tiny_models import make_dictionary, make_models, task_configuration

DICTIONARY = make_dictionary(20)
SIZES = {"layers": 1, "embed_dim": 16, "ffn_embed_dim": 24, "attention_heads": 2}


def make_task(**options):
    cfg = task_configuration(ElseqTranslationConfig(source_lang="src", target_lang="tgt", **options))
    return ElseqTranslationTask(cfg, DICTIONARY, DICTIONARY)


def model_arguments(arch, **options):
    sizes = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in SIZES.items()}
    return Namespace(arch=arch, **{**sizes, "decoder_input_dim": 16, "decoder_output_dim": 16, **options})


# --- which model


@pytest.mark.parametrize("mode", [None, "auto", "kv", "el"])
@pytest.mark.parametrize("arch, kind", [("transformer", ElseqTransformerModel), ("bart_base", ElseqBARTModel)])
def test_stock_models_are_rebuilt(arch, kind, mode, caplog):
    with caplog.at_level(logging.INFO):
        model = make_task(decode_attention=mode).build_model(model_arguments(arch))
    assert type(model) is kind
    assert model.decoder.decode_attention == (mode or "auto")
    stock = "TransformerModel" if arch == "transformer" else "BARTModel"
    assert f"{stock} rebuilt as {kind.__name__}, weights untouched" in caplog.messages


@pytest.mark.parametrize("arch, kind", [("transformer", TransformerModel), ("bart_base", BARTModel)])
def test_stock_mode_keeps_them(arch, kind):
    assert type(make_task(decode_attention="stock").build_model(model_arguments(arch))) is kind


OTHERS = [
    (model_arguments("transformer_align"), TransformerAlignModel, "it is a TransformerAlignModel"),
    (Namespace(arch="lstm_wiseman_iwslt_de_en", criterion="cross_entropy"), LSTMModel, "it is a LSTMModel"),
    (
        model_arguments("transformer", cross_self_attention=True, no_cross_attention=True),
        TransformerModel,
        "it uses joint cross- and self-attention (--cross-self-attention)",
    ),
]


@pytest.mark.parametrize("cfg, kind, reason", OTHERS, ids=["subclass", "recurrent", "option"])
def test_others_keep_their_class_and_the_log_says_so(cfg, kind, reason, caplog):
    with caplog.at_level(logging.INFO):
        model = make_task(decode_attention="auto").build_model(cfg)
    assert type(model) is kind
    assert f"the model keeps fairseq's own modules, because {reason}" in caplog.messages


@pytest.mark.parametrize("mode", ["kv", "el"])
@pytest.mark.parametrize("cfg, kind, reason", OTHERS, ids=["subclass", "recurrent", "option"])
def test_others_cannot_be_decoded_by_a_named_method(cfg, kind, reason, mode):
    with pytest.raises(UserError) as error:
        make_task(decode_attention=mode).build_model(cfg)
    expected = f"--decode-attention {mode} cannot decode this model, because {reason}; use stock"
    assert str(error.value) == expected


def test_our_models_decode_as_they_were_configured():
    for arch, option, expected in (
        ("elseq_transformer", {}, "auto"),
        ("el_transformer", {}, "el"),
        ("elseq_transformer", {"decode_attention": "kv"}, "kv"),
    ):
        assert make_task().build_model(model_arguments(arch, **option)).decoder.decode_attention == expected
    assert (
        make_task(decode_attention="kv").build_model(model_arguments("el_transformer")).decoder.decode_attention == "kv"
    )


def test_unknown_method(tiny_bart):
    with pytest.raises(UserError, match="^--decode-attention fast is unknown; choose one of auto, kv, el, stock$"):
        load_translation(tiny_bart, decode_attention="fast")


def test_places_without_a_top_k(tiny_bart):
    with pytest.raises(UserError, match="^--apply-top-k-in encoder says where .*, and there is no k: give both$"):
        load_translation(tiny_bart, apply_top_k_in="encoder")


@pytest.mark.parametrize("applied, instead", [("apply_top_k", "--attention-top-k"), ("apply_ffn_top_k", "--ffn-top-k")])
def test_top_k_is_not_applied_in_training(applied, instead):
    for arch in ("transformer", "el_transformer"):
        with pytest.raises(UserError, match=f"is for a model that is trained: .* {instead}$"):
            make_task(**{applied: 4}).build_model(model_arguments(arch))


@pytest.mark.parametrize(
    ("arch", "trained"), [("transformer", None), ("elseq_transformer", None), ("elseq_transformer", 5)]
)
def test_chunk_sizes(arch, trained):
    """Beside a top-k that is applied, or to that of the training; unset: as the model was configured."""
    for asked, expected in ((None, trained), (2, 2)):
        task = make_task(query_chunk_size=asked, ffn_chunk_size=asked)
        options = {} if trained is None else {"query_chunk_size": trained, "ffn_chunk_size": trained}
        model = task.build_model(model_arguments(arch, **options))
        layer = model.encoder.layers[0]
        assert (layer.self_attn.query_chunk_size, layer.ffn_chunk_size) == (expected, expected)


@pytest.mark.parametrize("option", ["query_chunk_size", "ffn_chunk_size"])
def test_chunks_of_nothing(tiny_bart, option):
    with pytest.raises(UserError, match=f"^--{option.replace('_', '-')} 0 is not possible: give 1 or more$"):
        load_translation(tiny_bart, **{option: 0})


def test_weights_are_untouched(tiny_bart):
    _, model = load_translation(tiny_bart, decode_attention="el")
    _, stock = load_translation(tiny_bart, decode_attention="stock")
    assert isinstance(stock, FairseqEncoderDecoderModel) and type(stock) is BARTModel
    assert model.state_dict().keys() == stock.state_dict().keys()
    for name, tensor in stock.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


# --- which generator


@pytest.mark.parametrize(
    "mode, kind", [(None, SequenceGenerator), ("el", SequenceGenerator), ("stock", StockGenerator)]
)
def test_generator(mode, kind):
    task = make_task(decode_attention=mode)
    model = task.build_model(model_arguments("transformer"))
    generator = task.build_generator([model], GenerationConfig(beam=3, lenpen=0.5))
    assert type(generator) is kind
    assert generator.beam_size == 3


def test_generator_aligns_where_it_is_needed():
    task = make_task(decode_attention="el")
    models = [task.build_model(model_arguments("transformer"))]
    for options, expected in (
        ({}, None),
        ({"replace_unk": "@@ "}, "hard"),
        ({"print_alignment": "soft"}, "soft"),
        ({"print_alignment": "soft", "replace_unk": "@@ "}, "soft"),
    ):
        generator = task.build_generator(models, Namespace(**{**vars(GenerationConfig()), **options}))
        assert generator.print_alignment == expected


# --- in which numbers


@pytest.mark.parametrize("name", ["int8", "bfloat16", "float32"])
def test_a_type_beside_that_of_fp16(tiny_bart, name):
    task, model = load_translation(tiny_bart, decode_dtype=name)
    with pytest.raises(UserError, match=f"^--decode-dtype {name} is not for a model in float16: leave it out, or"):
        task.build_generator([model.half()], GenerationConfig())


@pytest.mark.parametrize("name", ["int8", "float16"])
def test_the_type_of_a_fused_language_model(tiny_bart, name):
    task, model = load_translation(tiny_bart, decode_dtype=name)
    language_model = make_models("language_model", task.target_dictionary)["stock"]
    task.build_generator([model], GenerationConfig(), extra_gen_cls_kwargs={"lm_model": language_model})
    expected = torch.float32 if name == "int8" else torch.float16
    assert {next(each.parameters()).dtype for each in (model, language_model)} == {expected}


def test_models_that_int8_is_not_for(tiny_bart):
    for task, model in (
        load_translation(tiny_bart, decode_dtype="int8", decode_attention="stock"),
        (make_task(decode_dtype="int8", eval_bleu=True), LSTMModel.build_model(OTHERS[1][0], make_task())),
    ):
        with pytest.raises(UserError, match="^--decode-dtype int8 is not for a model that keeps fairseq's own modules"):
            task.build_generator([model], GenerationConfig())


def test_fairseqs_search_has_no_int8():
    """It would decode a model of elseq's architectures in float32."""
    model = make_task().build_model(model_arguments("transformer"))
    task = make_task(decode_dtype="int8", decode_attention="stock")
    with pytest.raises(UserError, match="^--decode-dtype int8 does not go with stock, fairseq's own search: leave out"):
        task.build_generator([model], GenerationConfig())


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float64"])
def test_types_that_a_training_cannot_decode_in(name):
    task = make_task(decode_dtype=name, eval_bleu=True)
    with pytest.raises(UserError, match=f"^--decode-dtype {name} is not for a model that is being trained: give int8"):
        task.build_model(model_arguments("transformer"))


def test_a_training_that_does_not_decode():
    sentence = "^--decode-dtype is for decoding, and this training does not decode: leave it out, or give --eval-bleu$"
    with pytest.raises(UserError, match=sentence):
        make_task(decode_dtype="int8").build_model(model_arguments("transformer"))


def test_unknown_type(tiny_bart):
    names = "float32, float16, bfloat16, float64, int8"
    with pytest.raises(UserError, match=f"^--decode-dtype int4 is unknown; choose one of {names}$"):
        load_translation(tiny_bart, decode_dtype="int4")


def test_languages_that_are_not_known():
    """Any word of the dictionary may be one."""
    word = DICTIONARY.symbols[DICTIONARY.nspecial]
    task = make_task(source_start=word, target_start=word)
    with pytest.raises(UserError, match=f"^--target-lang is not for this model: '{word}', .*; leave it out$"):
        task.for_languages(None, DICTIONARY.symbols[-1])


@pytest.mark.parametrize(
    ("language", "sentence"),
    [
        ("en_XX", "en_XX is not a language of the model: give en, or one of aa, bb, cc, dd, ee, ff, gg, hh, ..."),
        ("zz", "zz is not a language of the model: give one of aa, bb, cc, dd, ee, ff, gg, hh, ..."),
        ("", "'' is not a language of the model: give one of aa, bb, cc, dd, ee, ff, gg, hh, ..."),
        (5, "5 is not a language of the model: give one of aa, bb, cc, dd, ee, ff, gg, hh, ..."),
        (["aa", "bb"], "['aa', 'bb'] is no string: give one of aa, bb, cc, dd, ee, ff, gg, hh, ... for all texts"),
        (
            ["aa"] * 100,
            f"{str(['aa'] * 100)[:60]} is no string: give one of aa, bb, cc, dd, ee, ff, gg, hh, ... for all",
        ),
    ],
)
def test_what_is_no_language(language, sentence):
    languages = ["aa", "bb", "cc", "dd", "ee", "ff", "gg", "hh", "ii", "en"]
    with pytest.raises(UserError) as raised:
        check_language(language, languages, "target_lang")
    assert str(raised.value).startswith(f"--target-lang {sentence}")


def test_what_is_no_language_of_few():
    with pytest.raises(UserError, match="^--source-lang fr_FR is not a language of the model: give fr_XX$"):
        check_language("fr_FR", ["fr_XX"], "source_lang")
