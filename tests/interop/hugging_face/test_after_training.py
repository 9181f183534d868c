"""A converted model that fairseq-train has trained further, against transformers."""

import json

import pytest
import torch
from safetensors.torch import load_file

import elseq
from elseq.errors import UserError
from elseq.loading import Checkpoint
from elseq.models.stock import elseq_configuration, training_options
from tests import helpers
from tests.interop.hugging_face.families import test_blenderbot, test_blenderbot_small, test_marian, test_pegasus
from tests.interop.hugging_face.families.multilingual import test_models as multilingual
from tests.interop.hugging_face.making import back, convert, load, make_bart, make_gpt2

transformers = pytest.importorskip("transformers")

TEXT = test_blenderbot.TEXT
LINES = [TEXT[start : start + 12 + 2 * start] for start in range(20)]


def train(model, folder, *options):
    """Three updates of the model in a folder, by the options that a user gives; returns the checkpoint."""
    loaded = load(model)
    sides = (("source", LINES, loaded.bpe), ("target", LINES[::-1], loaded.bpe.of_targets))
    for split in ("train", "valid", "test"):
        for language, lines, bpe in sides:
            path = folder / "raw" / f"{split}.{language}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{bpe.encode(line)}\n" for line in lines))
    prefixes = [f"--{split}pref={folder / 'raw' / split}" for split in ("train", "valid", "test")]
    one, names = model / "dict.txt", {"--srcdict": "dict.source.txt", "--tgtdict": "dict.target.txt"}
    dictionaries = [it for option, name in names.items() for it in (option, one if one.exists() else model / name)]
    languages = ["-s", "source", "-t", "target"]
    helpers.run_here(["fairseq-preprocess", *languages, "--destdir", folder / "data", *prefixes, *dictionaries])
    configuration = elseq_configuration(Checkpoint.read(model / "model.pt").state["cfg"].model)
    start = ["--restore-file", model / "model.pt", "--reset-optimizer", "--reset-lr-scheduler", "--reset-dataloader"]
    schedule = ["--optimizer=adam", "--lr=0.003", "--max-tokens=800", "--max-update=3", "--reset-meters"]
    saving = ["--save-dir", folder / "checkpoints", "--no-epoch-checkpoints", "--disable-validation"]
    process = ["--user-dir", helpers.USER_DIR, "--cpu", "--seed=1", "--num-workers=0", "--log-format=none"]
    task = ["--task=elseq_translation", *languages, *options]
    command = ["fairseq-train", folder / "data", *task, *training_options(configuration), *start, *schedule]
    helpers.run_here([*command, *saving, *process])
    return folder / "checkpoints" / "checkpoint_last.pt"


def make_marian(folder, kind=test_marian.KINDS[0]):
    test_marian.make(folder, kind)
    return transformers.AutoTokenizer.from_pretrained(folder)


KINDS = {
    "marian": (make_marian, "MarianMTModel", []),
    "marian with two vocabularies": (
        lambda folder: make_marian(folder, test_marian.KINDS[1]),
        "MarianMTModel",
        [],
    ),
    "pegasus": (lambda folder: test_pegasus.make(folder)[1], "PegasusForConditionalGeneration", []),
    "blenderbot": (
        lambda folder: test_blenderbot.make(folder)[1],
        "BlenderbotForConditionalGeneration",
        ["--decoder-start=<s>"],
    ),
    "blenderbot-small": (
        lambda folder: test_blenderbot_small.make(folder)[1],
        "BlenderbotSmallForConditionalGeneration",
        ["--decoder-start=<s>", "--append-source-eos=no"],
    ),
}


@pytest.fixture(scope="module", params=KINDS)
def trained(request, tmp_path_factory):
    """The folder, transformers' tokenizer, and the class of the model there."""
    folder = tmp_path_factory.mktemp(request.param)
    make, kind, options = KINDS[request.param]
    tokenizer = make(folder / "theirs")
    convert(folder / "theirs", folder / "ours")
    checkpoint = train(folder / "ours", folder, *options)
    back(checkpoint, folder / "again", data=folder / "ours", settings=str(folder / "ours"))
    return folder, checkpoint, tokenizer, getattr(transformers, kind)


def scores_by(model, tokenizer, pad, sources, targets):
    """The log-probability of each target, by transformers, for its start."""
    found = []
    for source, target in zip(sources, targets, strict=True):
        words = torch.tensor([tokenizer(text_target=target)["input_ids"]])
        if words[0, -1] != model.config.eos_token_id:
            words = torch.cat((words, torch.tensor([[model.config.eos_token_id]])), dim=1)
        read = torch.cat((torch.tensor([[model.config.decoder_start_token_id]]), words[:, :-1]), dim=1)
        batch = torch.tensor([tokenizer(source)["input_ids"]])
        logits = model(input_ids=batch, decoder_input_ids=read).logits.log_softmax(dim=-1)
        found.append(logits[0].gather(1, words.T).flatten().tolist())
    return found


@pytest.mark.few_cases(3)
@torch.no_grad()
def test_same_model(trained):
    """Its weights have changed, and both libraries compute the same with them."""
    folder, checkpoint, tokenizer, kind = trained
    theirs = kind.from_pretrained(folder / "again").eval()
    before, after = (load_file(folder / name / "model.safetensors") for name in ("theirs", "again"))
    common = before.keys() & after.keys() - {"final_logits_bias"}
    assert len(common) > 50 and not any(torch.equal(before[name], after[name]) for name in common if "bias" not in name)
    expected = scores_by(theirs, tokenizer, 0, LINES, LINES[::-1])
    ours = elseq.load(checkpoint, device="cpu", data=folder / "ours")
    found = [each.log_probs for each in ours.score(LINES, LINES[::-1])]
    assert [len(row) for row in found] == [len(row) for row in expected]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-5, atol=2e-5)


@pytest.mark.few_cases(2)
@torch.no_grad()
def test_same_hypotheses(trained):
    """By the settings of the model that the training began with."""
    folder, checkpoint, tokenizer, kind = trained
    theirs = kind.from_pretrained(folder / "again").eval()
    settings = json.loads((folder / "again" / "generation_config.json").read_text())
    original = json.loads((folder / "theirs" / "generation_config.json").read_text())
    for name in ("num_beams", "length_penalty", "no_repeat_ngram_size", "min_length", "max_length"):
        assert original.get(name) in (None, settings[name]), name
    batch = tokenizer(LINES, return_tensors="pt", padding=True)
    batch.pop("token_type_ids", None)
    found = theirs.generate(**batch, bad_words_ids=[[theirs.config.pad_token_id]])
    expected = [tokenizer.decode(row, skip_special_tokens=True) for row in found]
    options = Checkpoint.read(folder / "ours" / "model.pt").cfg.generation
    names = ("beam", "lenpen", "max_len_b", "min_len", "no_repeat_ngram_size")
    ours = elseq.load(checkpoint, device="cpu", data=folder / "ours")
    assert ours.generate(LINES, **{name: options[name] for name in names}) == expected
    assert len(set(expected)) > 3


@pytest.mark.few_cases(2)
def test_there_and_back_again(trained, tmp_path):
    """What was written is read again, and written with the same bits."""
    folder, _, _, _ = trained
    convert(folder / "again", tmp_path / "ours")
    again = back(tmp_path / "ours", tmp_path / "again")
    first, second = (load_file(path / "model.safetensors") for path in (folder / "again", again))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# --- what a training does not record


def test_settings_that_are_not_recorded(trained, tmp_path, capsys):
    folder, checkpoint, _, _ = trained
    back(checkpoint, tmp_path / "again", data=folder / "ours")
    assert "note: the checkpoint records no settings of generation, and fairseq's are written: give --settings" in (
        capsys.readouterr().out
    )
    assert json.loads((tmp_path / "again" / "generation_config.json").read_text())["num_beams"] == 5


def test_languages_that_are_not_recorded(tmp_path):
    """A target's language is put there in decoding only, so that no training has it."""
    theirs = multilingual.make(tmp_path / "theirs", "m2m_100", forced_eos_token_id=None)
    convert(tmp_path / "theirs", tmp_path / "ours")
    state = torch.load(tmp_path / "ours" / "model.pt", weights_only=False)
    state["cfg"]["task"]["target_start"] = None
    (tmp_path / "trained").mkdir()
    torch.save(state, tmp_path / "trained" / "model.pt")
    settings = str(tmp_path / "ours")
    again = back(tmp_path / "trained", tmp_path / "again", data=tmp_path / "ours", settings=settings)
    found = json.loads((again / "generation_config.json").read_text())
    assert found["forced_bos_token_id"] == theirs.generation_config.forced_bos_token_id is not None


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The folder of a BART, a GPT-2 and an M2M-100 with a language for targets."""
    folder = tmp_path_factory.mktemp("converted")
    makers = {"bart": make_bart, "gpt2": make_gpt2, "m2m_100": lambda path: multilingual.make(path, "m2m_100")}
    for name, make in makers.items():
        make(folder / "theirs" / name)
        convert(folder / "theirs" / name, folder / name)
    return folder


@pytest.mark.parametrize(
    ("model", "settings", "sentence"),
    [
        ("bart", "gpt2", "--settings is a language model, unlike the model: give the checkpoint that its training"),
        ("gpt2", "bart", "--settings is no language model, unlike the model: give the checkpoint that its training"),
        ("bart", "m2m_100", "--settings begins targets with '__de__', which the dictionary does not have: give the"),
    ],
)
def test_settings_of_another_model(converted, tmp_path, model, settings, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        back(converted / model, tmp_path / "again", settings=str(converted / settings))
    assert "\n" not in str(error.value) and not (tmp_path / "again").exists()


def test_settings_that_hold_none(trained, tmp_path, capsys):
    folder, checkpoint, _, _ = trained
    back(checkpoint, tmp_path / "again", data=folder / "ours", settings=str(checkpoint))
    sentence = "note: that of --settings records no settings of generation, and fairseq's are written: give another"
    assert sentence in capsys.readouterr().out


@torch.no_grad()
@pytest.mark.parametrize("start", ["<s>", None, "</s>"])
def test_families_that_a_model_can_be(tmp_path, start):
    """Three embeddings, and positions that may be any: a Blenderbot, or if it starts from </s> a Pegasus."""
    theirs, _ = test_blenderbot.make(tmp_path / "theirs", tie_word_embeddings=False)
    convert(tmp_path / "theirs", tmp_path / "ours")
    state = torch.load(tmp_path / "ours" / "model.pt", weights_only=False)
    assert state["cfg"]["task"]["decoder_start"] == "<s>"
    state["cfg"]["task"]["decoder_start"] = start
    torch.save(state, tmp_path / "ours" / "model.pt")
    first = back(tmp_path / "ours", tmp_path / "first")
    assert json.loads((first / "config.json").read_text())["model_type"] == (
        "blenderbot" if start == "<s>" else "pegasus"
    )
    named = back(tmp_path / "ours", tmp_path / "named", family="blenderbot")
    before, after = (load_file(path / "model.safetensors") for path in (tmp_path / "theirs", named))
    for name in before.keys() - {"model.shared.weight"}:  # which nothing reads
        assert torch.equal(before[name], after[name]), name
    words, read = torch.tensor([[5, 9, 7, 2]]), torch.tensor([[0, 9, 5, 11]])
    read[0, 0] = 1 if start == "<s>" else 2
    expected = theirs(input_ids=words, decoder_input_ids=read).logits
    for folder in (first, named):
        loaded = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
        read[0, 0] = loaded.generation_config.decoder_start_token_id
        assert torch.equal(loaded(input_ids=words, decoder_input_ids=read).logits, expected)
        convert(folder, tmp_path / f"{folder.name} again")
        tensors = torch.load(tmp_path / f"{folder.name} again" / "model.pt", weights_only=False)["model"]
        assert all(torch.equal(tensors[name], tensor) for name, tensor in state["model"].items())


def test_families_that_a_model_cannot_be(tmp_path):
    test_blenderbot.make(tmp_path / "theirs", tie_word_embeddings=False)
    convert(tmp_path / "theirs", tmp_path / "ours")
    with pytest.raises(UserError, match="it begins to decode with '<s>' .--decoder-start., and Hugging Face's Pegasus"):
        back(tmp_path / "ours", tmp_path / "other", family="pegasus")
    with pytest.raises(UserError, match="Blenderbot-small cannot be this model, which has --encoder-normalize-before"):
        back(tmp_path / "ours", tmp_path / "other", family="blenderbot-small")
    with pytest.raises(UserError, match="--family t5 is no family of such models: give one of bart, mbart, m2m_100, "):
        back(tmp_path / "ours", tmp_path / "other", family="t5")
