"""Checkpoints of fairseq's tasks of several languages, against fairseq's own decoding with those tasks."""

import inspect
import json
import re
import shutil

import pytest
import torch
from fairseq.tasks.multilingual_translation import MultilingualTranslationTask

import elseq
from elseq.errors import UserError
from elseq.loading import Checkpoint
from tests import helpers
from tests.generating import interrupt_after
from tests.multilingual import FAMILIES, PAIRS, SIZES, Family, generated, hypotheses

ENABLED = "--enable-lang-ids is for a model of a plugin that reads src_lang_id, and this one does not: leave it out"


def assert_same(found, expected):
    assert len(found) == len(expected) > 0
    for (number, score, text), (wanted_number, wanted_score, wanted) in zip(found, expected, strict=True):
        assert (number, text) == (wanted_number, wanted)
        assert score == pytest.approx(wanted_score, abs=2e-4)


# Those that differ in more than where a symbol stands.
QUICK = ("m2m", "mbart25")
EACH = [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in FAMILIES]


@pytest.mark.few_cases(1)
@pytest.mark.parametrize("name", EACH)
def test_generate_has_stock_hypotheses(family, name):
    model = family(name)
    expected = hypotheses(generated(model, model.task).stdout)
    assert len(expected) == 2 * SIZES["test"]
    assert len({text for _, _, text in expected}) > SIZES["test"]  # it has learned something
    for mode in ("kv", "el", "stock"):
        found = generated(model, model.elseq_task, f"--decode-attention={mode}")
        assert_same(hypotheses(found.stdout), expected)
    assert "rebuilt as Elseq" in generated(model, model.elseq_task, "--decode-attention=el").stdout


@pytest.mark.few_cases(1)
@pytest.mark.parametrize("name", EACH)
def test_load_has_stock_hypotheses(family, name):
    model = family(name)
    pair = "aa-bb" if name in ("mbart25", "bos") else "bb-cc"
    source, target = pair.split("-")
    expected = {
        number: text
        for number, _, text in reversed(hypotheses(generated(model, model.task, "--nbest=1", pair=pair).stdout))
    }
    generator = elseq.load(model.checkpoint, data=model.data, source_lang=source, target_lang=target)
    found = generator.generate(model.lines(pair), beam=4, max_len_b=15)
    assert found == [expected[number] for number in range(len(found))]


@pytest.mark.parametrize("name", [*QUICK, pytest.param("apart", marks=pytest.mark.slow)])
def test_interactive_and_elseq_generate(family, name, tmp_path):
    model = family(name)
    lines = model.lines()
    (tmp_path / "input").write_text("".join(f"{line}\n" for line in lines))
    command = ["fairseq-interactive", model.data, "--input", tmp_path / "input", "--path", model.checkpoint]
    command += ["--cpu", "--beam=4", "--max-len-b=15", "--source-lang=aa", "--target-lang=bb", "--buffer-size=20"]
    expected = hypotheses(helpers.run_here([*command, *model.task]).stdout)
    assert len(expected) == len(lines)
    assert_same(hypotheses(helpers.run_here([*command, *model.elseq_task]).stdout), expected)
    command = ["elseq-generate", "--model", model.checkpoint, "--data", model.data, "--input", tmp_path / "input"]
    command += ["--beam=4", "--max-len-b=15", "--source-lang=aa", "--target-lang=bb", "--attention=el"]
    helpers.run_here([*command, "--output", tmp_path / "output"])
    assert (tmp_path / "output").read_text().splitlines() == [text for _, _, text in expected]
    # a run for other languages does not continue this one
    if name == "m2m":
        again = [*command, "--target-lang=cc", "--output", tmp_path / "output"]
        result = helpers.run_here(again, check=False)
        assert result.returncode == 1 and "--overwrite" in result.stderr


@pytest.mark.parametrize("name", ["m2m", "mbart25"])
def test_each_text_with_its_languages(family, name):
    model = family(name)
    languages = {"data": model.data, "source_lang": "aa", "target_lang": "bb"}
    generator = elseq.load(model.checkpoint, **languages)
    texts, sources, targets, expected = [], [], [], []
    for pair in PAIRS[::-1]:
        source, target = pair.split("-")
        lines = [*model.lines(pair)[:3], ""]
        texts += lines
        sources += [source] * 4
        targets += [target] * 4
        alone = elseq.load(model.checkpoint, data=model.data, source_lang=source, target_lang=target)
        expected += alone.generate(lines, beam=2, max_len_b=12)
    assert generator.generate(texts, beam=2, max_len_b=12, source_lang=sources, target_lang=targets) == expected
    assert generator.generate(texts[:4], beam=2, max_len_b=12, source_lang="cc", target_lang="aa") == expected[:4]
    with_target = generator.for_languages(None, "cc")
    assert with_target.task.languages_of_texts == ("aa", "cc") and with_target.model is generator.model
    with pytest.raises(UserError, match="^source_lang has 1 languages for 12 texts: give a list of as many, or one "):
        generator.generate(texts, source_lang=["aa"])
    with pytest.raises(UserError, match="^constraints is not for models of the task .*: leave it out$"):
        generator.generate(["w1\tw2"], constraints="ordered")
    with pytest.raises(UserError, match="^source_lang '' is not a language of the model"):
        generator.generate(texts, source_lang="")
    with pytest.raises(UserError, match="^target_lang ab is not a language of the model: give (aa|bb) or .*, or one "):
        generator.generate(texts, target_lang="ab")


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in ("apart", "bos", "replacing"))]
)
def test_scores_of_targets_are_those_of_the_search(family, name):
    model = family(name)
    generator = elseq.load(model.checkpoint, data=model.data, source_lang="aa", target_lang="bb")
    lines = model.lines()
    found = generator.generate(lines, beam=2, lenpen=0, max_len_b=15, return_scores=True)
    scored = generator.score(lines, [each.text for each in found], source_lang="aa", target_lang="bb")
    same = [(each, other) for each, other in zip(found, scored, strict=True) if each.tokens == other.tokens]
    assert len(same) > len(lines) / 2
    for each, other in same:
        assert other.score == pytest.approx(each.score, abs=1e-4)
        assert other.log_probs == pytest.approx(each.log_probs, abs=1e-4)


@pytest.mark.few_cases(1)
@pytest.mark.parametrize("name", ["m2m", "mbart25"])
def test_a_file_of_languages(family, name, tmp_path):
    model = family(name)
    texts, languages, expected = [], [], []
    for number in range(4):
        for pair in PAIRS:
            line = model.lines(pair)[number] if number != 1 else ""
            source, target = pair.split("-")
            texts.append(line)
            languages.append(f"{source}{chr(32 - number % 2 * 23)}{target}")
            alone = elseq.load(model.checkpoint, data=model.data, source_lang=source, target_lang=target)
            expected += alone.generate([line], beam=2, max_len_b=12)
    (tmp_path / "input").write_text("".join(f"{text}\n" for text in texts))
    (tmp_path / "languages").write_text("".join(f"{pair}\n" for pair in languages))
    command = ["elseq-generate", "--model", model.checkpoint, "--data", model.data, "--input", tmp_path / "input"]
    command += ["--beam=2", "--max-len-b=12", "--output", tmp_path / "output"]
    command += ["--languages-file", tmp_path / "languages"]
    helpers.run_here(command)
    assert (tmp_path / "output").read_text().splitlines() == expected
    for lines, sentence in (
        (languages[1:], r"--languages-file \S+ has 11 lines and the input has 12: give a line for each"),
        (
            [*languages[1:], "aa"],
            r"line 12 of \S+ is not two languages: give those of source and target, such as de fr",
        ),
        (
            [*languages[1:], "aa dd"],
            rf"line 12 of {tmp_path}/languages: dd is not a language of the model: give one of aa, bb, cc",
        ),
        (["dd aa", *languages[1:]], rf"line 1 of {tmp_path}/languages: dd is not a language of the model: give one"),
    ):
        (tmp_path / "languages").write_text("".join(f"{pair}\n" for pair in lines))
        result = helpers.run_here([*command, "--overwrite"], check=False)
        assert result.returncode == 1
        assert re.search(f"elseq: error: {sentence}", result.stderr.splitlines()[-1])
    result = helpers.run_here([*command, "--overwrite", "--source-lang=aa"], check=False)
    assert "error: --source-lang does not go with --languages-file, which has those of each" in result.stderr


@pytest.mark.few_cases(1)
@pytest.mark.parametrize("name", ["m2m", "mbart25"])
def test_fields_of_languages(family, name, tmp_path):
    model = family(name)
    records, expected = [], []
    for number in range(4):
        for pair in PAIRS:
            line = model.lines(pair)[number] if number != 1 else ""
            source, target = pair.split("-")
            records.append({"from": source, "text": line, "to": target})
            alone = elseq.load(model.checkpoint, data=model.data, source_lang=source, target_lang=target)
            expected += alone.generate([line], beam=2, max_len_b=12)
    del records[3]["from"]  # it is that of --source-lang

    def write(records):
        (tmp_path / "input.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))

    write(records)
    command = ["elseq-generate", "--model", model.checkpoint, "--data", model.data, "--input", tmp_path / "input.jsonl"]
    command += ["--beam=2", "--max-len-b=12", "--output", tmp_path / "output", "--max-tokens=20"]
    fields = ["--source-lang-field=from", "--target-lang-field=to"]
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, 3)
        assert helpers.run_here([*command, *fields, "--source-lang=aa"], check=False).returncode == 130
    result = helpers.run_here([*command, fields[0], "--target-lang-field=To", "--source-lang=aa"], check=False)
    assert "line 1 of " in result.stderr and "has no field 'To'" in result.stderr
    result = helpers.run_here([*command, *fields, "--source-lang=bb"], check=False)
    assert "in which --source-lang was aa and not bb: " in result.stderr
    helpers.run_here([*command, *fields, "--source-lang=aa"])
    assert (tmp_path / "output").read_text().splitlines() == expected
    helpers.run_here([*command, *fields, "--source-lang=aa", "--format=jsonl", "--overwrite"])
    for line, record, text in zip((tmp_path / "output").read_text().splitlines(), records, expected, strict=True):
        found = json.loads(line)
        assert [each["text"] for each in found.pop("hypotheses")] == ([text] if record["text"] else [])
        assert found == {"id": found["id"]} | {field: record[field] for field in ("from", "to") if field in record}
    result = helpers.run_here([*command, *fields, "--overwrite"], check=False)
    assert result.stderr.splitlines()[-1] == (
        f"elseq: error: line 4 of {tmp_path}/input.jsonl has no field 'from': give it the code of a language, or give "
        "--source-lang"
    )
    for number in (0, 4):
        write([*records[:number], {**records[number], "to": "dd"}, *records[number + 1 :]])
        result = helpers.run_here([*command, *fields, "--source-lang=aa", "--overwrite"], check=False)
        assert result.returncode == 1 and result.stderr.splitlines()[-1] == (
            f"elseq: error: the field 'to' of line {number + 1} of {tmp_path}/input.jsonl: dd is not a language of the "
            "model: give one of aa, bb, cc"
        )
    for named in ({}, {"from": "dd"}):  # in line 5, what --source-lang names for line 4
        write([*records[:3], {**records[3], "to": "bb"}, {**records[4], "to": "bb", **named}])
        result = helpers.run_here([*command, *fields, "--source-lang=dd", "--overwrite"], check=False)
        place = f"the field 'from' of line 5 of {tmp_path}/input.jsonl:" if named else "--source-lang"
        assert result.stderr.splitlines()[-1] == (
            f"elseq: error: {place} dd is not a language of the model: give one of aa, bb, cc"
        )
    result = helpers.run_here(
        [*command, fields[0], "--languages-file", tmp_path / "input.jsonl", "--overwrite"], check=False
    )
    sentence = "--source-lang-field does not go with --languages-file, which has those of each line: leave it out"
    assert result.stderr.splitlines()[-1] == f"elseq: error: {sentence}"


def test_a_field_of_one_side(family, tmp_path):
    """The other side is as the option says."""
    model = family("m2m")
    lines = [model.lines(pair)[0] for pair in PAIRS]
    records = [{"text": line, "from": pair[:2]} for line, pair in zip(lines, PAIRS, strict=True)]
    (tmp_path / "input.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    command = ["elseq-generate", "--model", model.checkpoint, "--data", model.data, "--input", tmp_path / "input.jsonl"]
    command += ["--source-lang-field=from", "--output", tmp_path / "output"]
    result = helpers.run_here(command, check=False)
    assert result.stderr.splitlines()[-1] == "elseq: error: --target-lang is missing: give one of aa, bb, cc"
    helpers.run_here([*command, "--target-lang=bb"])
    generator = elseq.load(model.checkpoint, data=model.data, source_lang="aa", target_lang="bb")
    expected = generator.generate(lines, source_lang=[pair[:2] for pair in PAIRS])
    assert (tmp_path / "output").read_text().splitlines() == expected


@pytest.mark.parametrize("name", ["m2m", "mbart25"])
def test_a_prefix_follows_the_symbol(family, name):
    """The score of a hypothesis is that of a search without a prefix, because only the choice differs."""
    model = family(name)
    generator = elseq.load(model.checkpoint, data=model.data, source_lang="aa", target_lang="bb")
    lines = model.lines()
    found = generator.generate(
        lines, beam=2, lenpen=0, max_len_b=15, prefixes=["w3 w4"] * len(lines), return_scores=True
    )
    assert all(each.text.startswith("w3 w4") for each in found)
    scored = generator.score(lines, [each.text for each in found])
    for each, other in zip(found, scored, strict=True):
        if each.tokens == other.tokens:
            assert other.score == pytest.approx(each.score, abs=1e-4)
    assert any(each.tokens == other.tokens for each, other in zip(found, scored, strict=True))


def test_a_long_text_leaves_room_for_the_symbol(family):
    model = family("m2m")
    generator = elseq.load(model.checkpoint, data=model.data, source_lang="aa", target_lang="bb")
    generator.generate(["w1 " * 62], max_len_b=5)  # and </s> and the language: the 64 positions of the model
    with pytest.raises(UserError, match="^text 0 has 64 tokens and the model takes 63"):
        generator.generate(["w1 " * 63], max_len_b=5)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("m2m", {}, "^source_lang is missing: give one of aa, bb, cc$"),
        ("m2m", {"source_lang": "aa"}, "^target_lang is missing: give one of aa, bb, cc$"),
        (
            "m2m",
            {"source_lang": "a", "target_lang": "bb"},
            "^source_lang a is not a language of the model: give aa, or one of bb, cc$",
        ),
        ("mbart25", {"target_lang": "x"}, "^target_lang x is not a language of the model: give one of aa, bb, cc$"),
        (
            "apart",
            {"source_lang": "aa", "target_lang": "cc"},
            "^source_lang aa with target_lang cc is not a pair of the model: give one of aa-bb, bb-cc, cc-aa$",
        ),
    ],
)
def test_languages_that_load_refuses(family, name, options, sentence):
    model = family(name)
    with pytest.raises(UserError, match=sentence):
        elseq.load(model.checkpoint, data=model.data, **options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"target_lang": "klingon"}, "target_lang klingon is not a language of the model: give one of aa, bb, cc"),
        (
            {"target_lang": "cc"},
            "source_lang aa with target_lang cc is not a pair of the model: give one of aa-bb, bb-",
        ),
        (
            {"source_lang": "bb", "target_lang": "cc"},
            "source_lang bb with target_lang cc is not the pair of the model, aa-bb: load the checkpoint for this pair",
        ),
    ],
)
def test_other_languages_than_those_of_the_loaded_pair(family, options, sentence):
    model = family("shared")
    generator = elseq.load(model.checkpoint, data=model.data, source_lang="aa", target_lang="bb")
    for find in (generator.generate, lambda lines, **options: generator.score(lines, lines, **options)):
        with pytest.raises(UserError, match=f"^{sentence}"):
            find(["w1 w2"], **options)
    with pytest.raises(
        UserError, match=r"^source_lang \['aa', 'bb'\] is no string: give one of aa, bb, cc for all texts$"
    ):
        generator.score(["w1", "w2"], ["w1", "w2"], source_lang=["aa", "bb"])


@pytest.mark.parametrize(
    ("name", "left_out", "added", "sentence"),
    [
        ("m2m", "--lang-pairs", (), "--lang-pairs is missing: give the pairs of the training, such as de-en,en-de"),
        ("m2m", "--langs", ["--langs=aa,bb"], "the encoder of checkpoint .* was trained with a dictionary of"),
        (
            "m2m",
            "none",
            ["--target-lang=dd"],
            "--target-lang dd is not a language of the model: give one of",
        ),
        (
            "m2m",
            "--langs",
            ["--lang-dict=none.txt"],
            "--lang-dict none.txt cannot be read ",
        ),
        ("mbart25", "--langs", (), "--langs is missing: give the languages of the training, in their order"),
        ("m2m", "--lang-pairs", ["--lang-pairs="], "--lang-pairs is missing: give the pairs of the training"),
        ("m2m", "--lang-pairs", ["--lang-pairs=aa-bb,"], "--lang-pairs '' is no pair of languages: give such as de-en"),
        ("m2m", "--lang-pairs", ["--lang-pairs=-aa"], "--lang-pairs -aa is no pair of languages: give such as de-en"),
        (
            "m2m",
            "--lang-pairs",
            ["--lang-pairs=zh-CN-aa"],
            "--lang-pairs zh-CN-aa has a language with a hyphen, and fairseq takes pairs apart at hyphens: write such "
            "as zh_CN for zh-CN, also in the names of the data files",
        ),
        (
            "m2m",
            "--langs",
            ["--langs=aa,bb,cc,zh-CN", "--source-lang=zh-CN"],
            "--source-lang zh-CN has a language with a hyphen",
        ),
        ("m2m", "--langs", ["--langs="], "--langs is empty: give names with commas"),
        ("mbart25", "--langs", ["--langs="], "--langs is missing: give the languages of the training"),
        ("apart", "--lang-pairs", ["--lang-pairs="], "--lang-pairs is missing: give the pairs of the training"),
        ("mbart25", "none", ["--source-lang=dd"], "--source-lang dd is not a language of the model"),
        ("apart", "--lang-pairs", (), "--lang-pairs is missing"),
        ("apart", "--lang-pairs", ["--lang-pairs=aa-bb"], ".*--lang-pairs differs from the training's: give aa-bb,"),
        ("apart", "--lang-pairs", ["--lang-pairs=aa"], "--lang-pairs aa is no pair of languages: give such as de-en"),
        (
            "shared",
            "--encoder-langtok",
            (),
            "--encoder-langtok the model was trained with it: give --encoder-langtok tgt",
        ),
        ("apart", "--decoder-langtok", (), "--decoder-langtok the model was trained with it: give --decoder-langtok"),
        ("m2m", "none", ["--decode-attention=fast"], "--decode-attention fast is unknown"),
        ("m2m", "none", ["--enable-lang-ids"], ENABLED),
        ("m2m", "none", ["--enable-lang-ids", "--decode-attention=stock"], ENABLED),
    ],
)
def test_options_that_generate_refuses(family, name, left_out, added, sentence):
    model = family(name)
    task = [option for option in model.elseq_task if not str(option).startswith(left_out)]
    command = [
        "fairseq-generate",
        model.data,
        "--path",
        model.checkpoint,
        "--cpu",
        "--source-lang=aa",
        "--target-lang=bb",
    ]
    result = helpers.run_here([*command, *task, *added], check=False)
    assert result.returncode == 1
    assert re.search(f"elseq: error: {sentence}", result.stderr.splitlines()[-1])


def test_scores_of_references_have_no_language(family):
    model = family("mbart25")
    expected, found = (generated(model, task, "--score-reference").stdout for task in (model.task, model.elseq_task))
    assert_same(hypotheses(found), hypotheses(expected))
    references = [re.findall(r"^T-.*$", printed, re.MULTILINE) for printed in (found, expected)]
    assert references[0] == references[1]


@pytest.mark.parametrize("name", ["m2m", "apart"])
@pytest.mark.parametrize("command", ["fairseq-generate", "fairseq-interactive"])
def test_decoding_without_languages(family, name, command):
    model = family(name)
    command = [command, model.data, "--path", model.checkpoint, "--cpu", *model.elseq_task]
    result = helpers.run_here(command, input=b"w1 w2\n", check=False)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == "elseq: error: --source-lang is missing: give one of aa, bb, cc"


def test_load_gives_models_no_numbers_of_languages(family, tmp_path):
    model = family("m2m")
    state = torch.load(model.checkpoint)
    state["cfg"]["task"].enable_lang_ids = True
    torch.save(state, tmp_path / "model.pt")
    generator = elseq.load(tmp_path / "model.pt", data=model.data, source_lang="aa", target_lang="bb")
    assert generator.generate(["w1 w2"])


def test_nllb_adds_words_of_data_sources(family, tmp_path):
    """Their rows come after those of the languages. Here they are unlikely words."""
    model = family("m2m")
    state = torch.load(model.checkpoint)
    for name, tensor in state["model"].items():
        if name.endswith(("embed_tokens.weight", "output_projection.weight")):
            state["model"][name] = torch.cat((tensor, tensor[:1].expand(3, -1)))  # that of <s>
    state["cfg"]["task"].add_data_source_prefix_tags = True
    torch.save(state, tmp_path / "model.pt")
    languages = {"data": model.data, "source_lang": "aa", "target_lang": "bb"}
    found = elseq.load(tmp_path / "model.pt", **languages)
    assert found.task.target_dictionary.symbols[-3:] == ["<MINED_DATA>", "<MMT_BT_DATA>", "<SMT_BT_DATA>"]
    expected = elseq.load(model.checkpoint, **languages)
    assert found.generate(model.lines()) == expected.generate(model.lines())
    nllb = Family(model.raw, model.data, tmp_path / "model.pt", model.task, "nllb")
    printed = generated(nllb, nllb.elseq_task, "--add-data-source-prefix-tags").stdout
    stock = generated(model, model.task).stdout
    assert [text for *_, text in hypotheses(printed)] == [text for *_, text in hypotheses(stock)]


def test_the_list_of_languages_lies_beside_the_dictionaries(family, tmp_path):
    model = family("m2m")
    state = torch.load(model.checkpoint)
    state["cfg"]["task"].langs, state["cfg"]["task"].lang_dict = None, "/gone/languages.txt"
    torch.save(state, tmp_path / "model.pt")
    shutil.copy(model.data / "dict.aa.txt", tmp_path / "dict.txt")
    sentence = f"^languages.txt was the list of languages of the training and is not in {tmp_path}: copy it there$"
    with pytest.raises(UserError, match=sentence):
        elseq.load(tmp_path / "model.pt", source_lang="aa", target_lang="bb")
    (tmp_path / "languages.txt").write_text("aa\nbb\ncc\n")
    found = elseq.load(tmp_path / "model.pt", source_lang="aa", target_lang="bb").generate(model.lines()[:3])
    assert found == elseq.load(model.checkpoint, data=model.data, source_lang="aa", target_lang="bb").generate(
        model.lines()[:3]
    )


@pytest.mark.parametrize("options", [("fixed_dictionary",), ("source_dict", "target_dict")])
def test_the_dictionary_that_the_training_named(family, options, tmp_path):
    model = family("m2m")
    state = torch.load(model.checkpoint)
    for option in options:
        setattr(state["cfg"]["task"], option, "/gone/named.txt")
    torch.save(state, tmp_path / "model.pt")
    words = (model.data / "dict.aa.txt").read_text().splitlines(keepends=True)
    (tmp_path / "dict.aa.txt").write_text("".join(words[::-1]))
    (tmp_path / "dict.bb.txt").write_text("".join(words[::-1]))
    languages = {"source_lang": "aa", "target_lang": "bb"}
    if len(options) == 2:
        sentence = f"^named.txt was the source dictionary of the training and is not in {tmp_path}: copy it there$"
        with pytest.raises(UserError, match=sentence):
            elseq.load(tmp_path / "model.pt", **languages)
    (tmp_path / "named.txt").write_text("".join(words))
    expected = elseq.load(model.checkpoint, data=model.data, **languages).generate(model.lines())
    assert elseq.load(tmp_path / "model.pt", **languages).generate(model.lines()) == expected


@pytest.mark.parametrize(
    ("options", "needed"),
    [
        ({"fixed_dictionary": "named.txt"}, "named.txt"),
        ({"source_dict": "named.txt", "target_dict": "named.txt"}, "named.txt"),
        ({"source_dict": "words.128k", "target_dict": "named.txt"}, "words.128k and named.txt"),
        ({"target_dict": "named.txt"}, "named.txt"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_folder_has_only_the_dictionaries_that_the_training_named(family, options, needed, tmp_path):
    model = family("m2m")
    state = torch.load(model.checkpoint)
    task = state["cfg"]["task"]
    task.data, task.source_lang, task.target_lang = str(tmp_path / "gone"), "aa", "bb"
    for option, name in options.items():
        setattr(task, option, f"/gone/{name}")
    (tmp_path / "alone").mkdir()
    (tmp_path / "folder").mkdir()
    torch.save(state, tmp_path / "alone" / "model.pt")
    names = re.escape(f"(dict*.txt, or {needed} of the training)")
    with pytest.raises(UserError, match=f"^data is missing, and no dictionary {names} was found in "):
        elseq.load(tmp_path / "alone" / "model.pt")
    with pytest.raises(UserError, match=f"^data .* holds no dictionary {names}; name another folder$"):
        elseq.load(tmp_path / "alone" / "model.pt", data=tmp_path / "folder")
    for name in options.values():
        shutil.copy(model.data / "dict.aa.txt", tmp_path / "folder" / name)
    if "source_dict" not in options and "fixed_dictionary" not in options:
        sentence = f"^{tmp_path / 'folder'} holds no dict.aa.txt, the source dictionary: copy it there$"
        with pytest.raises(UserError, match=sentence):
            elseq.load(tmp_path / "alone" / "model.pt", data=tmp_path / "folder")
        shutil.copy(model.data / "dict.aa.txt", tmp_path / "folder")
    lines = model.lines()[:3]
    expected = elseq.load(model.checkpoint, data=model.data, source_lang="aa", target_lang="bb").generate(lines)
    (tmp_path / "input").write_text("".join(f"{line}\n" for line in lines))
    command = ["elseq-generate", "--model", tmp_path / "alone" / "model.pt", "--data", tmp_path / "folder"]
    helpers.run_here([*command, "--input", tmp_path / "input", "--output", tmp_path / "output"])
    assert (tmp_path / "output").read_text().splitlines() == expected
    (tmp_path / "alone" / "model.pt").rename(tmp_path / "folder" / "model.pt")
    assert elseq.load(tmp_path / "folder").generate(lines) == expected


def test_a_dictionary_of_one_side_that_the_training_named(family, tmp_path):
    """The other dictionary is the only one in the folder."""
    model = family("m2m")
    state = torch.load(model.checkpoint)
    state["cfg"]["task"].source_dict = "/gone/named.txt"
    torch.save(state, tmp_path / "model.pt")
    words = (model.data / "dict.aa.txt").read_text().splitlines(keepends=True)
    (tmp_path / "named.txt").write_text("".join(words[::-1]))
    (tmp_path / "dict.txt").write_text("".join(words))
    named = Checkpoint.read(tmp_path / "model.pt").dictionaries(tmp_path, ("aa", "bb"))
    assert named == (tmp_path / "named.txt", tmp_path / "dict.txt")


def test_a_dictionary_of_training_at_its_own_path(family, tmp_path):
    """No folder has one."""
    model = family("m2m")
    state = torch.load(model.checkpoint)
    task = state["cfg"]["task"]
    task.data, task.fixed_dictionary = str(tmp_path / "gone"), str(tmp_path / "elsewhere" / "named.txt")
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(model.data / "dict.aa.txt", tmp_path / "elsewhere" / "named.txt")
    (tmp_path / "alone").mkdir()
    torch.save(state, tmp_path / "alone" / "model.pt")
    languages, lines = {"source_lang": "aa", "target_lang": "bb"}, model.lines()[:3]
    expected = elseq.load(model.checkpoint, data=model.data, **languages).generate(lines)
    assert elseq.load(tmp_path / "alone", **languages).generate(lines) == expected


def test_a_side_without_language_and_dictionary(family, tmp_path):
    model = family("m2m")
    state = torch.load(model.checkpoint)
    task = state["cfg"]["task"]
    task.source_lang = task.target_lang = None
    task.target_dict = "/gone/named.txt"
    torch.save(state, tmp_path / "model.pt")
    shutil.copy(model.data / "dict.aa.txt", tmp_path / "named.txt")
    with pytest.raises(UserError, match=f"^source_lang is missing, and {tmp_path} has no dictionary of the source$"):
        elseq.load(tmp_path / "model.pt")


def test_an_ensemble_of_other_languages(family, tmp_path):
    """The task adds their words to the dictionaries."""
    model = family("m2m")
    state = torch.load(model.checkpoint)
    state["cfg"]["task"].langs = ["aa", "bb", "dd"]
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(UserError, match="are no ensemble: they are of other languages; give one of them$"):
        elseq.load(f"{model.checkpoint}:{tmp_path / 'model.pt'}", data=model.data, source_lang="aa", target_lang="bb")


def test_what_the_checkpoint_names_is_no_output(family, tmp_path):
    model = family("m2m")
    (tmp_path / "elsewhere").mkdir()
    named = {"lang_dict": tmp_path / "elsewhere" / "languages", "fixed_dictionary": tmp_path / "elsewhere" / "words"}
    named["lang_dict"].write_text("aa\nbb\ncc\n")
    shutil.copy(model.data / "dict.aa.txt", named["fixed_dictionary"])
    state = torch.load(model.checkpoint)
    vars(state["cfg"]["task"]).update({name: str(path) for name, path in named.items()}, langs=None)
    torch.save(state, tmp_path / "model.pt")
    (tmp_path / "input").write_text("w1 w2\n")
    command = ["elseq-generate", "--model", tmp_path / "model.pt", "--data", model.data, "--input", tmp_path / "input"]
    command += ["--source-lang=aa", "--target-lang=bb", "--overwrite", "--output"]
    for path in named.values():
        before = path.read_text()
        result = helpers.run_here([*command, path], check=False)
        assert result.returncode == 1
        assert result.stderr.splitlines()[-1] == f"elseq: error: --output {path} is an input: give another file"
        assert path.read_text() == before
    helpers.run_here([*command, tmp_path / "elsewhere" / "output"])


def test_source_and_target_of_one_language_keep_their_dictionaries(family, tmp_path):
    model = family("m2m")
    state = torch.load(model.checkpoint)
    task = state["cfg"]["task"]
    words = (model.data / "dict.aa.txt").read_text().splitlines(keepends=True)
    for side, lines in (("source", words), ("target", words[::-1])):
        (tmp_path / f"{side}.txt").write_text("".join(lines))
        setattr(task, f"{side}_dict", str(tmp_path / f"{side}.txt"))
    torch.save(state, tmp_path / "model.pt")
    checkpoint = Checkpoint.read(tmp_path / "model.pt")
    dictionaries = checkpoint.dictionaries(model.data, ("aa", "aa"))
    found = checkpoint.build_task(model.data, dictionaries, "kv", source_lang="aa", target_lang="aa")
    assert found.source_dictionary.symbols[4:24] == found.target_dictionary.symbols[4:24][::-1]


@pytest.mark.parametrize(
    ("name", "option", "value", "sentence"),
    [
        ("m2m", "langs", 5, "langs 5 is no list of names: give names with commas"),
        ("m2m", "langs", ["aa", 2], r"langs \['aa', 2\] is no list of names"),
        ("mbart25", "langs", 5, "langs 5 is no list of names"),
        ("m2m", "lang_pairs", 5, "lang_pairs 5 is no list of names"),
        ("m2m", "lang_dict", "/", "lang_dict / names no file"),
        ("m2m", "lang_dict", "x" * 5000, "x* was the list of languages of the training and is not in"),
        ("m2m", "langtoks", "open('f')", "langtoks .* is no dictionary: give it as in the training"),
        ("m2m", "langtoks", {"main": 5}, "langtoks 5 does not say where symbols stand: give two, such as"),
        ("m2m", "langtoks", {"main": ("src",)}, "langtoks .*src.* does not say where symbols stand"),
        ("m2m", "langtoks", {"main": ("src.dae", "tgt")}, "langtoks .*__aa_dae__ .*: give --langtoks-specs"),
        ("m2m", "langtoks_specs", 5, "langtoks_specs 5 is no list of names"),
        ("m2m", "lang_tok_style", None, "lang_tok_style None is unknown; choose one of multilingual, mbart"),
        ("m2m", "extra_data", 5, "extra_data 5 is no dictionary"),
        ("m2m", "extra_lang_pairs", {"mined": 5}, "extra_lang_pairs 5 is no text"),
        ("m2m", "query_chunk_size", "x", "query_chunk_size x is not possible"),
        ("m2m", "source_lang", 5, "source_lang 5 is not a language of the model"),
    ],
)
def test_settings_that_were_changed(family, name, option, value, sentence, tmp_path):
    model = family(name)
    state = torch.load(model.checkpoint)
    task = state["cfg"]["task"]
    if option == "lang_dict":
        task.langs = None
    task.source_lang, task.target_lang = "aa", "bb"
    setattr(task, option, value)
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(UserError, match=f"^{sentence}"):
        elseq.load(tmp_path / "model.pt", data=model.data)


@pytest.mark.parametrize(
    ("added", "sentence"),
    [
        ("--lang-pairs=aa-bb,bb-dd", "--lang-pairs dd is none of the languages, aa, bb, cc: add it"),
        ("--langs=", "--langs is empty: give names with commas"),
        ("--lang-pairs=", "--lang-pairs is missing: give the pairs of the training, such as de-en,en-de"),
        ("--decode-dtype=int8", "--decode-dtype is for decoding, and this training does not decode: leave it out"),
        ("--enable-lang-ids", ENABLED),
        ("--extra-lang-pairs={'mined': 'aa'}", "--extra-lang-pairs aa is no pair of languages: give such as de-en"),
    ],
)
def test_options_that_train_refuses(text, added, sentence, tmp_path):
    task = [option.replace("--task=", "--task=elseq_") for option in FAMILIES["m2m"][1]]
    command = helpers.train_command("transformer", text[1], tmp_path, *task, "--user-dir", helpers.USER_DIR)
    result = helpers.run_here([*command, added], check=False)
    assert result.returncode == 1 and result.stderr.splitlines()[-1] == f"elseq: error: {sentence}"


@pytest.mark.parametrize(
    "name", ["m2m", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mbart25", "apart"))]
)
def test_validate_has_the_stock_loss(family, name):
    model = family(name)
    command = ["fairseq-validate", model.data, "--path", model.checkpoint, "--cpu", "--max-tokens=200"]
    losses = [
        re.search(r"valid on 'valid' subset \| loss (\S+)", helpers.run_here([*command, *task]).stdout)[1]
        for task in (model.task, model.elseq_task)
    ]
    assert losses[0] == losses[1]


def test_validate_of_a_language_that_there_is_not(family):
    model = family("shared")
    command = [
        "fairseq-validate",
        model.data,
        "--path",
        model.checkpoint,
        "--cpu",
        *model.task,
        "-s=xx",
        "-t=bb",
        "--batch-size=4",
    ]
    result = helpers.run_here([*command, "--user-dir", helpers.USER_DIR], check=False)
    assert result.stderr.endswith("elseq: error: --source-lang xx is none of the model's: give one of aa, bb, cc\n")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["apart", "shared"])
def test_validate_of_each_pair(family, name, monkeypatch):
    """The losses of the pairs are parts of that of all, which stock fairseq gives."""
    model = family(name)
    command = ["fairseq-validate", model.data, "--path", model.checkpoint, "--cpu", "--max-tokens=200"]

    def loss(*options):
        printed = helpers.run_here([*command, *options]).stdout
        return float(re.search(r"valid on 'valid' subset \| loss (\S+)", printed)[1])

    words = [
        sum(len(line.split()) + 1 for line in (model.raw / f"valid.{pair}.{pair[3:]}").read_text().splitlines())
        for pair in PAIRS
    ]
    whole = loss(*model.task)
    for task in (model.task, model.elseq_task, [*model.elseq_task, "--decode-attention=stock"]):
        losses = [loss(*task, f"-s={pair[:2]}", f"-t={pair[3:]}") for pair in PAIRS]
        assert len(set(losses)) == len(PAIRS)
        total = sum(each * count for each, count in zip(losses, words, strict=True))
        assert total / sum(words) == pytest.approx(whole, abs=2e-3)
    without = inspect.unwrap(MultilingualTranslationTask.valid_step)
    monkeypatch.setattr(MultilingualTranslationTask, "valid_step", without)
    with pytest.raises(ZeroDivisionError):
        loss(*model.task, "-s=aa", "-t=bb")


@pytest.mark.slow
def test_codes_with_hyphens(text, tmp_path):
    """translation_from_pretrained_bart takes no pairs apart, so that they work there."""
    codes = {"aa": "zh-CN", "bb": "pt-BR"}
    data = tmp_path / "data"
    data.mkdir()
    for path in [*text[1].glob("*.aa-bb.*"), *(text[1] / f"dict.{code}.txt" for code in codes)]:
        name = path.name.replace("aa-bb", "-".join(codes.values()))
        for old, new in codes.items():
            name = name.replace(f".{old}.", f".{new}.")
        shutil.copy(path, data / name)
    task = ["--task=translation_from_pretrained_bart", "--langs=zh-CN,pt-BR"]
    languages = ["--source-lang=zh-CN", "--target-lang=pt-BR"]
    command = helpers.train_command("mbart_base", data, tmp_path, *task, *languages, "--max-update=40")
    helpers.run_here(command)
    model = Family(text[0], data, tmp_path / "checkpoint_last.pt", task, "hyphens")
    command = ["fairseq-generate", data, "--path", model.checkpoint, "--cpu", "--max-len-b=12"]
    expected = hypotheses(helpers.run_here([*command, *languages, *task]).stdout)
    assert_same(hypotheses(helpers.run_here([*command, *languages, *model.elseq_task]).stdout), expected)
    generator = elseq.load(model.checkpoint, data=data, source_lang="zh-CN", target_lang="pt-BR")
    assert generator.generate(model.lines(), max_len_b=12) == [text for *_, text in expected]
    result = helpers.run_here([*command, *model.elseq_task], check=False)
    assert re.search(r"dict.(zh|pt).txt does not exist; check the data folder and the languages$", result.stderr)
    (tmp_path / "empty").mkdir()
    command[1] = tmp_path / "empty"
    result = helpers.run_here([*command, *model.elseq_task], check=False)
    assert result.stderr.splitlines()[-1] == (
        f"elseq: error: {tmp_path}/empty holds no files of a language pair (SUBSET.SOURCE-TARGET.SOURCE); check the "
        "data folder, or give --source-lang and --target-lang"
    )


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("m2m", {"encoder_langtok": "tgt", "langtoks": None}),
        ("apart", {"encoder_langtok": "src"}),
        ("shared", {"decoder_langtok": True}),
    ],
)
def test_an_ensemble(family, name, changed, tmp_path):
    model = family(name)
    languages = {"data": model.data, "source_lang": "aa", "target_lang": "bb"}
    expected = elseq.load(model.checkpoint, **languages).generate(model.lines())
    assert elseq.load(f"{model.checkpoint}:{model.checkpoint}", **languages).generate(model.lines()) == expected
    state = torch.load(model.checkpoint)
    vars(state["cfg"]["task"]).update(changed)
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(UserError, match="are no ensemble: their texts have different symbols; give one of them$"):
        elseq.load(f"{model.checkpoint}:{tmp_path / 'model.pt'}", **languages)
    with pytest.raises(UserError, match="are no ensemble: their tasks put symbols of languages elsewhere; give one"):
        elseq.load(f"{model.checkpoint}:{family('mbart25').checkpoint}", **languages)


def test_int8(family):
    model = family("m2m")
    options = {"data": model.data, "source_lang": "aa", "target_lang": "bb", "dtype": "int8"}
    found = elseq.load(model.checkpoint, **options).generate(model.lines(), beam=4, max_len_b=15)
    assert len(found) == len(model.lines()) and all(found)
