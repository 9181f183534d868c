"""mBART-50, M2M-100 and NLLB against transformers: logits, hypotheses, tokens, and the way back."""

import json
from argparse import Namespace

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

from elseq.errors import UserError
from elseq.interop.hugging_face import folders
from elseq.interop.hugging_face.conversion import to_hugging_face
from tests.interop.hugging_face.making import change, convert, load, padded, until_end

transformers = pytest.importorskip("transformers")

LANGUAGES = {
    "mbart": ["ar_AR", "de_DE", "en_XX"],
    "m2m_100": ["__ar__", "__de__", "__en__"],
    "nllb": ["ace_Arab", "deu_Latn", "eng_Latn"],
}
TEXT = "the quick brown fox jumps over the lazy dog and the inner circle thinks there are three ways"
LINES = ["the lazy dog", "", "  two  spaces ", "naïve – 3 ways", "a</s>b", "the {} dog", "ﬁne ½ ①", "\u3000x\u200b"]
SIZES = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "max_position_embeddings": 64,
}


def make_tokenizer(folder, languages, place="before"):
    """A unigram tokenizer, with the source's language before the text, or after its end as in mBART-25."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁"]
    pieces += sorted({f"▁{word}" for word in TEXT.split()} | set("abcdefghijklmnopqrstuvwxyz0123456789"))
    vocabulary = [(piece, -float(number % 7) - 2) for number, piece in enumerate(pieces)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    special = ["<s>", "<pad>", "</s>", "<unk>", *languages, "<mask>"]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    source = languages[-1]
    single = f"{source} $A </s>" if place == "before" else f"$A </s> {source}"
    symbols = [(token, tokenizer.token_to_id(token)) for token in ("</s>", source)]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=symbols)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **named}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer


def make(folder, name, place="before", **options):
    tokenizer = make_tokenizer(folder, LANGUAGES[name], place)
    kind = "MBart" if name == "mbart" else "M2M100"
    target = tokenizer.token_to_id(LANGUAGES[name][1])
    sizes = SIZES | {"vocab_size": tokenizer.get_vocab_size(), "decoder_start_token_id": 2} | options
    config = getattr(transformers, f"{kind}Config")(**sizes)
    torch.manual_seed(2)
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        end = model.lm_head.weight[2]
        model.model.decoder.layer_norm.bias += (1.5 if name == "mbart" else 3) * end / end.norm() ** 2
    model.generation_config.forced_bos_token_id = target
    model.generation_config.num_beams, model.generation_config.early_stopping = 5, True
    model.generation_config.max_length = 40
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module", params=LANGUAGES)
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    scale = {"scale_embedding": True} if request.param == "mbart" else {}
    model = make(folder / "theirs", request.param, **scale)
    convert(folder / "theirs", folder / "ours")
    return request.param, model, folder


def sources(model, number=50):
    generator = torch.Generator().manual_seed(3)
    last = model.config.vocab_size - 4
    language = model.config.vocab_size - 2  # before <mask>
    lengths = torch.randint(1, 20, (number,), generator=generator).tolist()
    return [[language, *torch.randint(5, last, (length,), generator=generator).tolist(), 2] for length in lengths]


@torch.no_grad()
@pytest.mark.parametrize("attention", ["kv", "el", "stock"])
def test_logits(pair, attention):
    _, theirs, folder = pair
    rows = padded(sources(theirs))
    targets = padded([[2, *row[1:-1]] for row in sources(theirs)])
    expected = theirs(input_ids=rows, attention_mask=rows.ne(1).long(), decoder_input_ids=targets).logits
    found = load(folder / "ours", attention).model(rows, rows.ne(1).sum(dim=1), targets)[0]
    words = targets.ne(1)
    assert expected[words].std() > 0.5
    torch.testing.assert_close(found[words], expected[words], rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("beam, lenpen", [(1, 1.0), (5, 0.0)])
def test_same_hypotheses(pair, beam, lenpen):
    """With a beam where scores are not divided by lengths: transformers does not count the forced symbol's."""
    _, theirs, folder = pair
    rows = sources(theirs)
    batch = padded(rows)
    expected = theirs.generate(
        batch,
        attention_mask=batch.ne(1).long(),
        num_beams=beam,
        length_penalty=lenpen,
        early_stopping=beam > 1,
        min_length=8,
        no_repeat_ngram_size=2,
        suppress_tokens=[1],
    )
    expected = [until_end(row[1:]) for row in expected.tolist()]
    loaded = load(folder / "ours")
    options = {"beam": beam, "nbest": 1, "lenpen": lenpen, "max_len_b": 38, "min_len": 7, "no_repeat_ngram_size": 2}
    generator = loaded.task.build_generator([loaded.model], Namespace(**options))
    dataset = loaded.task.build_dataset_for_inference([torch.tensor(row[1:]) for row in rows], [*map(len, rows)])
    sample = dataset.collater([dataset[number] for number in range(len(dataset))])
    found = loaded.task.inference_step(generator, [loaded.model], sample)
    ordered = sorted(zip(sample["id"].tolist(), found, strict=True), key=lambda pair: pair[0])
    assert [until_end(best["tokens"].tolist()) for _, (best, *_) in ordered] == expected
    assert len(set(map(tuple, expected))) > 2


def test_tokens(pair):
    name, _, folder = pair
    theirs = transformers.AutoTokenizer.from_pretrained(folder / "theirs")
    loaded = load(folder / "ours")
    dictionary = loaded.task.source_dictionary
    assert [dictionary.index(language) for language in LANGUAGES[name]] == theirs.convert_tokens_to_ids(LANGUAGES[name])
    for line in (line.format(LANGUAGES[name][0]) for line in LINES):
        words = loaded.bpe.encode(line)
        ours = [*dictionary.encode_line(words, add_if_not_exist=False).tolist()]
        first = loaded.task.first_source_symbol
        assert [first, *ours] == theirs(line)["input_ids"]


def test_text(pair):
    """The symbol of the language is not in a text."""
    name, _, folder = pair
    [text] = load(folder / "ours").generate(["the lazy dog"])
    assert not any(language in text for language in LANGUAGES[name])


def test_round_trip(pair, tmp_path):
    _, theirs, folder = pair
    loaded = load(folder / "ours", "kv")
    state = torch.load(folder / "ours" / "model.pt", weights_only=False)
    dictionaries = loaded.task.source_dictionary, loaded.task.target_dictionary
    cfg = Namespace(**{name: as_namespace(value) for name, value in state["cfg"].items()})
    cfg.generation, cfg.task.target_start = state["cfg"]["generation"], loaded.task.cfg.target_start
    back = to_hugging_face(loaded.model.state_dict(), cfg, *dictionaries, tokens=loaded.bpe)
    folders.write(tmp_path, back.config, back.settings, back.tensors)
    original = load_file(folder / "theirs" / "model.safetensors")
    again = load_file(tmp_path / "model.safetensors")
    assert again.keys() - {"final_logits_bias"} == original.keys() - {"final_logits_bias"}
    assert all(torch.equal(again[name], tensor) for name, tensor in original.items())
    assert back.config["model_type"] == theirs.config.model_type
    assert back.settings["forced_bos_token_id"] == theirs.generation_config.forced_bos_token_id


def as_namespace(value):
    return Namespace(**value) if isinstance(value, dict) else value


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"decoder_start_token_id": 9}, "decoder_start_token_id: 9, and fairseq begins to decode with the end symbol"),
        ({"activation_function": "silu"}, "activation_function: 'silu'; fairseq has gelu, "),
    ],
)
def test_other_configurations(tmp_path, options, sentence):
    make(tmp_path / "theirs", "mbart")
    change(tmp_path / "theirs" / "config.json", **options)
    with pytest.raises(UserError, match=sentence):
        convert(tmp_path / "theirs", tmp_path / "ours")


def test_language_after_the_text(tmp_path):
    """mBART-25's."""
    make(tmp_path / "theirs", "mbart", place="after")
    with pytest.raises(UserError, match="and fairseq the number of a language before and 2 after it: set src_lang"):
        convert(tmp_path / "theirs", tmp_path / "ours")


def test_unknown_language(tmp_path):
    make(tmp_path / "theirs", "mbart")
    convert(tmp_path / "theirs", tmp_path / "ours")
    loaded = load(tmp_path / "ours")
    loaded.task.cfg.target_start = "de_XX"
    with pytest.raises(UserError, match="the dictionary does not have 'de_XX': give another, such as "):
        loaded.generate(["the lazy dog"])
