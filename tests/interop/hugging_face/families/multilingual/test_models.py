"""mBART, M2M-100 and NLLB against transformers: logits, hypotheses, tokens, and the way back."""

import json
import shutil
from argparse import Namespace

import pytest
import torch
from fairseq import checkpoint_utils
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

import elseq
from elseq.errors import UserError
from elseq.interop.ctranslate import to_ctranslate2
from elseq.interop.hugging_face import folders
from elseq.interop.hugging_face.conversion import to_hugging_face
from tests import helpers
from tests.interop.hugging_face.making import (
    LINES,
    SIZES,
    TEXT,
    assert_same_logits,
    back,
    change,
    convert,
    load,
    padded,
    random_texts,
    until_end,
)

transformers = pytest.importorskip("transformers")

LANGUAGES = {
    "mbart25": ["ar_AR", "de_DE", "en_XX"],
    "mbart": ["ar_AR", "de_DE", "en_XX"],
    "m2m_100": ["__ar__", "__de__", "__en__"],
    "nllb": ["ace_Arab", "deu_Latn", "eng_Latn"],
}


def make_tokenizer(folder, languages, around="{0} $A </s>"):
    """A unigram tokenizer, with the source's language before the text, or elsewhere."""
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
    symbols = [(token, tokenizer.token_to_id(token)) for token in ("</s>", source)]
    tokenizer.post_processor = processors.TemplateProcessing(single=around.format(source), special_tokens=symbols)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **named}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer


def make(folder, name, **options):
    """In mBART-25 the language follows the source's end, and decoding starts from the target's."""
    is_25 = name == "mbart25"
    tokenizer = make_tokenizer(folder, LANGUAGES[name], *(["$A </s> {0}"] if is_25 else []))
    target = tokenizer.token_to_id(LANGUAGES[name][1])
    start = target if is_25 else 2
    sizes = {"vocab_size": tokenizer.get_vocab_size(), "decoder_start_token_id": start}
    return make_model(folder, name, None if is_25 else target, **sizes, **options)


def make_model(folder, name, target, **options):
    kind = "MBart" if "mbart" in name else "M2M100"
    sizes = SIZES | options
    config = getattr(transformers, f"{kind}Config")(**sizes)
    torch.manual_seed(2)
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        end = model.lm_head.weight[2]
        model.model.decoder.layer_norm.bias += (1.5 if kind == "MBart" else 3) * end / end.norm() ** 2
    model.generation_config.forced_bos_token_id = target
    model.generation_config.num_beams, model.generation_config.early_stopping = 5, True
    model.generation_config.max_length = 40
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module", params=LANGUAGES)
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    scale = {"scale_embedding": True} if "mbart" in request.param else {}
    model = make(folder / "theirs", request.param, **scale)
    convert(folder / "theirs", folder / "ours")
    return request.param, model, folder


def texts(model, number=50):
    """With their end symbols."""
    return random_texts(range(5, model.config.vocab_size - 4), [2], number)


def sources(name, model):
    language = model.config.vocab_size - 2  # before <mask>
    return [[*row, language] if name == "mbart25" else [language, *row] for row in texts(model)]


@pytest.mark.few_cases(5)
@pytest.mark.parametrize("attention", ["kv", "el", "stock"])
def test_logits(pair, attention):
    name, theirs, folder = pair
    rows = torch.arange(theirs.config.vocab_size)
    assert_same_logits(theirs, load(folder / "ours", attention), sources(name, theirs), texts(theirs), rows)


@pytest.mark.few_cases(3)
@torch.no_grad()
@pytest.mark.parametrize("beam, lenpen", [(1, 1.0), (5, 0.0)])
def test_same_hypotheses(pair, beam, lenpen):
    """And see `test_same_ranking`."""
    name, theirs, folder = pair
    batch = padded(sources(name, theirs))
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
    found = loaded.decode(generator, [torch.tensor(row) for row in texts(theirs)])
    assert [until_end(best["tokens"].tolist()) for best, *_ in found] == expected
    assert len(set(map(tuple, expected))) > 2


@pytest.mark.few_cases(6)
@torch.no_grad()
@pytest.mark.parametrize(
    "rule, lenpen", [("first", 0.5), ("first", 2.0), ("bound", 0.5), ("bound", 2.0), ("never", 0.5), ("never", 1.0)]
)
def test_same_ranking(pair, rule, lenpen):
    """Of several hypotheses, with their scores: neither counts the log-probability of the language, and both its place.

    Of those that end in the last step of `first`, transformers keeps the best, fairseq as many as there is room for.
    """
    name, theirs, folder = pair
    batch = padded(sources(name, theirs))
    found = theirs.generate(
        batch,
        attention_mask=batch.ne(1).long(),
        num_beams=5,
        num_return_sequences=3,
        length_penalty=lenpen,
        early_stopping={"first": True, "bound": False}.get(rule, rule),
        min_length=8,
        max_length=60,
        no_repeat_ngram_size=2,
        suppress_tokens=[1],
        return_dict_in_generate=True,
        output_scores=True,
    )
    words = [until_end(row[1:]) for row in found.sequences.tolist()]
    expected = list(zip(words, found.sequences_scores.tolist(), strict=True))
    loaded = load(folder / "ours")
    cfg = Namespace(beam=5, nbest=3, lenpen=lenpen, max_len_b=58, min_len=7, no_repeat_ngram_size=2)
    cfg.early_stopping = rule
    search = loaded.task.build_generator([loaded.model], cfg)
    compared = 0
    for index, hypotheses in enumerate(loaded.decode(search, [torch.tensor(row) for row in texts(theirs)])):
        of_source = expected[3 * index : 3 * index + (1 if rule == "first" else 3)]
        if max(len(row) for row, _ in of_source) < 58:  # fairseq scores the longest otherwise
            found = [(until_end(each["tokens"].tolist()), each["score"].item()) for each in hypotheses]
            assert [row for row, _ in found[: len(of_source)]] == [row for row, _ in of_source]
            scores = [score for _, score in of_source]
            assert [score for _, score in found[: len(of_source)]] == pytest.approx(scores, abs=1e-4)
            compared += 1
    assert compared > 10


@pytest.mark.few_cases(3)
@torch.no_grad()
@pytest.mark.parametrize("longest", [3, 6, 12])
def test_maximum_length(pair, tmp_path, longest):
    """It counts the symbol that decoding starts from and the target's language; and a forced end, if there is one."""
    name, theirs, folder = pair
    shutil.copytree(folder / "theirs", tmp_path / "theirs")
    settings = {"num_beams": 1, "max_length": longest, "early_stopping": False}
    change(tmp_path / "theirs" / "generation_config.json", **settings)
    converted = convert(tmp_path / "theirs", tmp_path / "ours")
    batch = padded(sources(name, theirs))
    found = theirs.generate(batch, attention_mask=batch.ne(1).long(), suppress_tokens=[1], **settings)
    expected = [until_end(row[1:]) for row in found.tolist()]
    loaded = load(tmp_path / "ours")
    search = loaded.task.build_generator([loaded.model], Namespace(**{"nbest": 1, **converted.generation}))
    hypotheses = loaded.decode(search, [torch.tensor(row) for row in texts(theirs)])
    assert [until_end(best["tokens"].tolist()) for best, *_ in hypotheses] == expected
    forced = theirs.generation_config.forced_eos_token_id
    assert max(map(len, expected)) == longest - 1 - (forced is not None)

    again = json.loads((back(tmp_path / "ours", tmp_path / "again") / "generation_config.json").read_text())
    assert again["max_length"] == longest and again.get("forced_eos_token_id") == forced


@torch.no_grad()
def test_other_languages_than_the_folders(pair):
    name, theirs, folder = pair
    before, _, target = (theirs.config.vocab_size - number for number in (4, 3, 2))
    rows = texts(theirs)
    batch = padded([[*row, before] if name == "mbart25" else [before, *row] for row in rows])
    start = {"decoder_start_token_id": target} if name == "mbart25" else {"forced_bos_token_id": target}
    options = {"num_beams": 1, "min_length": 8, "suppress_tokens": [1], "no_repeat_ngram_size": 2, **start}
    expected = theirs.generate(batch, attention_mask=batch.ne(1).long(), **options)
    expected = [until_end(row[1:]) for row in expected.tolist()]
    source, _, wanted = (language.strip("_") for language in LANGUAGES[name])
    loaded = load(folder / "ours").for_languages(source, wanted)
    assert loaded.task.languages_of_texts == (LANGUAGES[name][0], LANGUAGES[name][2])
    cfg = Namespace(beam=1, nbest=1, max_len_b=38, min_len=7, no_repeat_ngram_size=2)
    search = loaded.task.build_generator([loaded.model], cfg)
    found = loaded.decode(search, [torch.tensor(row) for row in rows])
    assert [until_end(best["tokens"].tolist()) for best, *_ in found] == expected
    same = elseq.load(folder / "ours", source_lang=source, target_lang=wanted)
    assert same.task.languages_of_texts == loaded.task.languages_of_texts


@pytest.mark.few_cases(8)
@pytest.mark.parametrize("word", ["xx", "17", "a", "</s>", "<mask>", "", 5, ["en_XX"]], ids=repr)
def test_words_that_are_no_languages(pair, word):
    """Those of the dictionary, too."""
    name, _, folder = pair
    loaded = load(folder / "ours")
    for side in ("source_lang", "target_lang"):
        what = "no string" if isinstance(word, list) else "not a language of the model"
        sentence = f"^{side} .* is {what}: give (one of )?(ar|de|en|ace|__)"
        with pytest.raises(UserError, match=sentence):
            loaded.score(["the dog"], ["the dog"], **{side: word})
        if isinstance(word, str):
            with pytest.raises(UserError, match=sentence):
                loaded.generate(["the dog"], **{side: word})


def test_the_command_names_the_language_as_it_was_given(pair, tmp_path):
    _, _, folder = pair
    (tmp_path / "input.jsonl").write_text('{"text": "the dog", "to": "xx"}\n')
    command = ["elseq-generate", "--model", folder / "ours", "--input", tmp_path / "input.jsonl"]
    for options, what in (
        (["--source-lang", "xx"], "--source-lang xx"),
        (["--target-lang", "</s>"], "--target-lang </s>"),
        (["--target-lang-field", "to"], f"the field 'to' of line 1 of {tmp_path}/input.jsonl: xx"),
    ):
        ended = helpers.run_here([*map(str, command), *options], check=False)
        assert ended.returncode == 1
        assert ended.stderr.splitlines()[-1].startswith(f"elseq: error: {what} is not a language of the model: give ")


def test_ctranslate2_finds_the_same_words(pair, tmp_path):
    """It is given what stands around a source: of an mBART-25 its end and the language."""
    ctranslate2 = pytest.importorskip("ctranslate2")
    name, theirs, folder = pair
    loaded = load(folder / "ours")
    dictionary = loaded.task.source_dictionary
    cfg = checkpoint_utils.load_checkpoint_to_cpu(str(folder / "ours" / "model.pt"))["cfg"]
    to_ctranslate2(loaded.model, cfg, dictionary, dictionary, tmp_path / "model")
    search = loaded.task.build_generator([loaded.model], Namespace(beam=1, nbest=1, max_len_b=38))
    rows = texts(theirs)
    expected = [best["tokens"].tolist() for best, *_ in loaded.decode(search, [torch.tensor(row) for row in rows])]
    before, after = loaded.task.symbols_around_source
    after = after if name == "mbart25" else after[1:]
    words = [[dictionary[number] for number in [*before, *row[:-1], *after]] for row in rows]
    first = loaded.task.first_target_symbol
    found = ctranslate2.Translator(str(tmp_path / "model"), intra_threads=1).translate_batch(
        words,
        target_prefix=None if first is None else [[dictionary[first]]] * len(words),
        beam_size=1,
        max_decoding_length=39,
        min_decoding_length=1,
    )
    whole = [number for number, row in enumerate(expected) if len(row) < 39]
    assert len(whole) > 10
    found = [found[number].hypotheses[0] for number in whole]
    assert found == [[dictionary[token] for token in expected[number][:-1]] for number in whole]


def test_tokens(pair):
    name, _, folder = pair
    theirs = transformers.AutoTokenizer.from_pretrained(folder / "theirs")
    loaded = load(folder / "ours")
    dictionary = loaded.task.source_dictionary
    assert [dictionary.index(language) for language in LANGUAGES[name]] == theirs.convert_tokens_to_ids(LANGUAGES[name])
    for line in (line.format(LANGUAGES[name][0]) for line in LINES):
        words = loaded.bpe.encode(line)
        ours = dictionary.encode_line(words, add_if_not_exist=False).long()
        dataset = loaded.task.build_dataset_for_inference([ours], [len(ours)])
        assert dataset[0]["source"].tolist() == theirs(line)["input_ids"]


def test_text(pair):
    """The symbol of the language is not in a text."""
    name, _, folder = pair
    [text] = load(folder / "ours").generate(["the lazy dog"])
    assert not any(language in text for language in LANGUAGES[name])


def test_round_trip(pair, tmp_path):
    _, theirs, folder = pair
    loaded = load(folder / "ours", "kv")
    state = torch.load(folder / "ours" / "model.pt", weights_only=False)
    cfg = Namespace(**{name: as_namespace(value) for name, value in state["cfg"].items()})
    cfg.generation = state["cfg"]["generation"]
    back = to_hugging_face(loaded.model.state_dict(), cfg, loaded.task, loaded.bpe)
    folders.write(tmp_path, back.config, back.settings, back.tensors)
    original = load_file(folder / "theirs" / "model.safetensors")
    again = load_file(tmp_path / "model.safetensors")
    assert again.keys() - {"final_logits_bias"} == original.keys() - {"final_logits_bias"}
    assert all(torch.equal(again[name], tensor) for name, tensor in original.items())
    assert back.config["model_type"] == theirs.config.model_type
    for setting in ("forced_bos_token_id", "decoder_start_token_id"):
        assert back.settings.get(setting) == getattr(theirs.generation_config, setting)


def as_namespace(value):
    return Namespace(**value) if isinstance(value, dict) else value


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"decoder_start_token_id": 9}, "decoder_start_token_id: 9, and fairseq begins to decode with the end symbol"),
        ({"activation_function": "quick_gelu"}, "activation_function: 'quick_gelu'; fairseq has gelu, "),
    ],
)
def test_other_configurations(tmp_path, options, sentence):
    make(tmp_path / "theirs", "mbart")
    change(tmp_path / "theirs" / "config.json", **options)
    with pytest.raises(UserError, match=sentence):
        convert(tmp_path / "theirs", tmp_path / "ours")


def test_symbols_elsewhere(tmp_path):
    make(tmp_path / "theirs", "mbart")
    make_tokenizer(tmp_path / "theirs", LANGUAGES["mbart"], around="{0} </s> $A")
    with pytest.raises(UserError, match="language before and 2 after it, or both after it: set src_lang"):
        convert(tmp_path / "theirs", tmp_path / "ours")


def test_languages_without_a_row(tmp_path):
    """Which a tokenizer got after the training of the model."""
    make(tmp_path / "theirs", "mbart25")
    rows = json.loads((tmp_path / "theirs" / "config.json").read_text())["vocab_size"]
    more = [*LANGUAGES["mbart25"], "fr_XX", "it_IT"]
    make_tokenizer(tmp_path / "theirs", more, around="$A </s> {0}")
    sentence = f"puts it_IT beside a text, which has the number {rows}, and the embedding has {rows} rows: set src_lang"
    with pytest.raises(UserError, match=sentence):
        convert(tmp_path / "theirs", tmp_path / "ours")
    make_tokenizer(tmp_path / "theirs", [*more[2:], *more[:2]][::-1], around="$A </s> {0}")
    for file in ("config.json", "generation_config.json"):
        change(tmp_path / "theirs" / file, decoder_start_token_id=rows)
    with pytest.raises(UserError, match=f"decoder_start_token_id: {rows}"):
        convert(tmp_path / "theirs", tmp_path / "ours")


def test_start_of_the_settings(tmp_path):
    """generation_config.json stands over config.json, and names a language or the end symbol."""
    make(tmp_path / "theirs", "mbart25")
    other = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs").convert_tokens_to_ids("ar_AR")
    change(tmp_path / "theirs" / "generation_config.json", decoder_start_token_id=other)
    converted = convert(tmp_path / "theirs", tmp_path / "ours")
    assert converted.checkpoint["cfg"]["task"]["decoder_start"] == "ar_AR"
    assert "--decoder-start=ar_AR" in converted.task_arguments
    assert "--source-end=en_XX" in converted.task_arguments
    change(tmp_path / "theirs" / "generation_config.json", decoder_start_token_id=9)
    with pytest.raises(UserError, match="decoder_start_token_id: 9, where fairseq has the end symbol, 2"):
        convert(tmp_path / "theirs", tmp_path / "again")


def test_unknown_language(tmp_path):
    make(tmp_path / "theirs", "mbart")
    convert(tmp_path / "theirs", tmp_path / "ours")
    loaded = load(tmp_path / "ours")
    loaded.task.cfg.target_start = "de_XX"
    with pytest.raises(UserError, match="the dictionary does not have 'de_XX': give another, such as "):
        loaded.generate(["the lazy dog"])
