"""CTranslate2 searches the same weights and finds the same words."""

import sys
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary

import elseq
from elseq.errors import UserError
from elseq.interop import ctranslate
from tests.interop.hugging_face.making import convert, make_bart, make_gpt2
from tests.tiny_models import make_sources

LENGTHS = [5, 9, 2, 7, 1, 6]
LONGEST = 20


def converted(trained, folder, **options):
    """The loaded model, and its folder for CTranslate2."""
    loaded = elseq.load(trained.checkpoint, data=trained.data, device="cpu")
    cfg = checkpoint_utils.load_checkpoint_to_cpu(str(trained.checkpoint))["cfg"]
    ctranslate.to_ctranslate2(
        loaded.model, cfg, loaded.task.source_dictionary, loaded.task.target_dictionary, folder / "model", **options
    )
    return loaded, str(folder / "model")


def search(loaded, sources, **options):
    """The words of the best hypothesis of each source, without the end."""
    generator = loaded.task.build_generator([loaded.model], Namespace(nbest=1, max_len_b=LONGEST, **options))
    found = loaded.decode(generator, [torch.tensor(row) for row in sources])
    return [symbols_of(loaded, best["tokens"].tolist()[:-1]) for best, *_ in found]


def assert_same_words(found, expected):
    """But for hypotheses of the maximum length: at it CTranslate2 does not count the end symbol, and prefers them."""
    whole = [number for number, pair in enumerate(zip(found, expected, strict=True)) if max(map(len, pair)) < LONGEST]
    assert [found[number] for number in whole] == [expected[number] for number in whole]
    assert len({len(expected[number]) for number in whole}) > 2


def symbols_of(loaded, row):
    return [loaded.task.target_dictionary[number] for number in row]


@pytest.mark.few_cases(3)
@pytest.mark.parametrize("kind", ["translation", "bart"])
@pytest.mark.parametrize("beam, lenpen", [(1, 1.0), (4, 1.0), (4, 0.0), (3, 2.0)])
def test_encoder_decoder(request, tmp_path, kind, beam, lenpen):
    ctranslate2 = pytest.importorskip("ctranslate2")
    loaded, folder = converted(request.getfixturevalue(f"tiny_{kind}"), tmp_path)
    sources = make_sources(loaded.task.source_dictionary, LENGTHS)
    loaded.task.cfg.force_bos = "no"  # its training data had no <s>
    expected = search(loaded, sources, beam=beam, lenpen=lenpen)
    words = [symbols_of(loaded, row[:-1]) for row in sources]
    if loaded.task.prepend_source_bos:
        words = [["<s>", *row] for row in words]
    translator = ctranslate2.Translator(folder, intra_threads=1)
    found = translator.translate_batch(words, beam_size=beam, length_penalty=lenpen, max_decoding_length=LONGEST)
    assert_same_words([result.hypotheses[0] for result in found], expected)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt2")
    make_gpt2(folder / "theirs")
    convert(folder / "theirs", folder / "ours")
    return SimpleNamespace(checkpoint=folder / "ours" / "model.pt", data=folder / "ours")


@pytest.mark.parametrize("model", ["tiny_language_model", "gpt2"])
@pytest.mark.parametrize("beam, lenpen", [(1, 1.0), (4, 1.0), (4, 0.0)])
def test_language_model(request, tmp_path, model, beam, lenpen):
    ctranslate2 = pytest.importorskip("ctranslate2")
    loaded, folder = converted(request.getfixturevalue(model), tmp_path)
    prompts = make_sources(loaded.task.source_dictionary, LENGTHS)
    expected = search(loaded, prompts, beam=beam, lenpen=lenpen)
    generator = ctranslate2.Generator(folder, intra_threads=1)
    found = []
    for row in prompts:  # in a batch of several lengths CTranslate2 counts words of the longer ones as generated
        [result] = generator.generate_batch(
            [["</s>", *symbols_of(loaded, row[:-1])]],
            beam_size=beam,
            length_penalty=lenpen,
            min_length=1,
            max_length=LONGEST,
            include_prompt_in_result=False,
            sampling_topk=1,
        )
        found.append(result.sequences[0])
    assert_same_words(found, expected)


def test_swish(tmp_path):
    """Which fairseq does not have."""
    ctranslate2 = pytest.importorskip("ctranslate2")
    make_bart(tmp_path / "theirs", activation_function="silu", seed=7)
    convert(tmp_path / "theirs", tmp_path / "ours")
    trained = SimpleNamespace(checkpoint=tmp_path / "ours" / "model.pt", data=tmp_path / "ours")
    loaded, folder = converted(trained, tmp_path)
    sources = make_sources(loaded.task.source_dictionary, LENGTHS)
    words = [["<s>", *symbols_of(loaded, row[:-1])] for row in sources]
    found = ctranslate2.Translator(folder, intra_threads=1).translate_batch(
        words, beam_size=4, max_decoding_length=LONGEST, min_decoding_length=1
    )
    loaded.task.cfg.force_bos = "no"
    assert_same_words([result.hypotheses[0] for result in found], search(loaded, sources, beam=4))


@pytest.mark.parametrize("ends", [True, False])
def test_sources_without_an_end(tiny_translation, tmp_path, ends):
    ctranslate2 = pytest.importorskip("ctranslate2")
    cfg = checkpoint_utils.load_checkpoint_to_cpu(str(tiny_translation.checkpoint))["cfg"]
    cfg.task = Namespace(append_source_eos="yes" if ends else "no")
    loaded = elseq.load(tiny_translation.checkpoint, data=tiny_translation.data, device="cpu")
    loaded.task.cfg.append_source_eos = cfg.task.append_source_eos
    dictionaries = loaded.task.source_dictionary, loaded.task.target_dictionary
    ctranslate.to_ctranslate2(loaded.model, cfg, *dictionaries, tmp_path / "model")
    sources = make_sources(dictionaries[0], LENGTHS)
    words = [symbols_of(loaded, row[:-1]) for row in sources]
    translator = ctranslate2.Translator(str(tmp_path / "model"), intra_threads=1)
    found = translator.translate_batch(words, beam_size=4, max_decoding_length=LONGEST)
    assert_same_words([result.hypotheses[0] for result in found], search(loaded, sources, beam=4))


def test_quantization(tiny_translation, tmp_path):
    ctranslate2 = pytest.importorskip("ctranslate2")
    _, folder = converted(tiny_translation, tmp_path, quantization="int8")
    assert ctranslate2.contains_model(folder)
    assert "int8" in ctranslate2.Translator(folder).compute_type


def test_what_it_does_not_have(tiny_translation, tiny_multi_query, tmp_path):
    pytest.importorskip("ctranslate2")
    with pytest.raises(UserError, match="the model has 1 key/value heads for 4 heads"):
        converted(tiny_multi_query, tmp_path)
    state = checkpoint_utils.load_checkpoint_to_cpu(str(tiny_translation.checkpoint))
    loaded = elseq.load(tiny_translation.checkpoint, data=tiny_translation.data)
    words = loaded.task.source_dictionary
    for option, value, sentence in (
        ("activation_fn", "tanh", "CTranslate2 does not have this model: .*--activation-fn tanh is not supported"),
        ("encoder_attention_heads", 2, "--encoder-attention-heads and --decoder-attention-heads must have the same"),
        ("no_cross_attention", True, "CTranslate2 does not have --no-cross-attention"),
        ("quant_noise_pq", 0.1, "CTranslate2 does not have --quant-noise-pq"),
        ("decoder_output_dim", 16, "CTranslate2 does not have --decoder-output-dim 16 beside --decoder-embed-dim 32"),
    ):
        cfg = state["cfg"].copy()
        cfg.model = Namespace(**{**vars(cfg.model), option: value})
        with pytest.raises(UserError, match=sentence) as error:
            ctranslate.to_ctranslate2(loaded.model, cfg, words, words, tmp_path / "model")
        assert "\n" not in str(error.value)


def test_words_that_are_overwritten(tmp_path):
    words = ["a 5", "b 4", "a 3 #fairseq:overwrite", "</s> 2 #fairseq:overwrite"]
    (tmp_path / "dict.txt").write_text("\n".join(words) + "\n")
    dictionary = Dictionary.load(str(tmp_path / "dict.txt"))
    found = ctranslate.symbols(dictionary)
    assert found[:4] == ["<s>", "<blank>", "</s>", "<unk>"]
    assert found[4:] == ["overwritten 4", "b", "a", "overwritten 7"]
    assert dictionary.index("a") == found.index("a")


def test_without_the_package(tiny_translation, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ctranslate2.converters", None)
    with pytest.raises(UserError, match="its package is needed: pip install ctranslate2"):
        converted(tiny_translation, tmp_path)
