"""Which checkpoints elseq decodes: by the task that trained them, and by their model."""

import re
import sys
from argparse import Namespace

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.tasks import TASK_REGISTRY
from omegaconf import OmegaConf

import elseq
from elseq.errors import UserError
from elseq.models.families import MULTILINGUAL, check_task, check_task_of_model, is_language_model, is_trained_with_bos
from tests import helpers

# Sizes of tiny models of other kinds, and how they are called.
OTHERS = {
    "lightconv": [
        *(f"--{side}-{name}" for side in ("encoder", "decoder") for name in ("conv-dim=32", "embed-dim=32")),
        *(f"--{side}-{name}" for side in ("encoder", "decoder") for name in ("ffn-embed-dim=64", "layers=2")),
        *(f"--{side}-kernel-size-list=[3,7]" for side in ("encoder", "decoder")),
        *("--encoder-attention-heads=4", "--decoder-attention-heads=4", "--share-all-embeddings"),
    ],
    "fconv": [
        *("--encoder-embed-dim=32", "--decoder-embed-dim=32", "--decoder-out-embed-dim=32"),
        *("--encoder-layers=[(32, 3)] * 2", "--decoder-layers=[(32, 3)] * 2"),
    ],
    "lstm": [
        *("--encoder-embed-dim=32", "--decoder-embed-dim=32", "--decoder-out-embed-dim=32"),
        *("--encoder-hidden-size=32", "--decoder-hidden-size=32"),
    ],
    "lstm_lm": ["--decoder-embed-dim=32", "--decoder-hidden-size=32", "--decoder-out-embed-dim=32"],
    "fconv_lm": ["--decoder-embed-dim=32", "--decoder-layers=[(32, 3)] * 2"],  # no positions
}
PLUGIN = """
from fairseq.models import register_model, register_model_architecture
from fairseq.models.transformer import TransformerModel, base_architecture

@register_model("{name}")
class {kind}(TransformerModel):
    def forward_decoder(self, *args, **kwargs):
        return self.decoder(*args, **kwargs)

register_model_architecture("{name}", "{name}")(base_architecture)
"""


@pytest.fixture(scope="module")
def others(translation_data, language_model_data, tmp_path_factory):
    """Trains a tiny model of another kind."""
    trained = {}

    def train(arch):
        if arch not in trained:
            save_dir = tmp_path_factory.mktemp(arch)
            if arch in OTHERS:
                data, options = translation_data, OTHERS[arch]
                if arch.endswith("_lm"):
                    data, options = language_model_data, [*options, *LANGUAGE_MODELING]
                command = ["fairseq-train", data, "--arch", arch, "--save-dir", save_dir, *options, *TRAINING]
            else:
                command = helpers.train_command(arch, translation_data, save_dir, "--max-update=60")
            helpers.run_here(command)
            trained[arch] = save_dir / "checkpoint_last.pt"
        return trained[arch]

    return train


LANGUAGE_MODELING = ["--task=language_modeling", "--tokens-per-sample=64", "--sample-break-mode=eos"]
TRAINING = [
    *("--optimizer=adam", "--lr=0.01", "--clip-norm=1", "--max-tokens=800", "--max-update=60", "--cpu", "--seed=1"),
    *("--no-epoch-checkpoints", "--validate-interval=1000", "--num-workers=0", "--log-format=none"),
]


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """A folder that registers a subclass of fairseq's Transformer, already imported."""
    folder = tmp_path_factory.mktemp("plugins") / "subclass_of_a_test"
    folder.mkdir()
    (folder / "__init__.py").write_text(PLUGIN.format(name=folder.name, kind="SubclassOfATest"))
    sys.path.insert(0, str(folder.parent))
    __import__(folder.name)
    sys.path.remove(str(folder.parent))
    return folder.name


def generate(data, checkpoint, task, *options):
    command = ["fairseq-generate", data, "--path", checkpoint, "--cpu", "--num-workers=0", "--task", task]
    command += ["--user-dir", helpers.USER_DIR, "--beam=4", "--max-len-b=20", *options]
    return helpers.run_here(command, check=False)


def hypotheses(printed):
    return sorted(re.findall(r"^H-(\d+)\t(\S+)\t(.*)$", printed, re.MULTILINE), key=lambda each: int(each[0]))


@pytest.mark.few_cases(1)
@pytest.mark.parametrize("arch", ["lightconv", "fconv", "lstm", "subclass_of_a_test"])
def test_other_encoder_decoders(others, plugin, raw_text, translation_data, arch):
    checkpoint = others(arch)
    stock = hypotheses(generate(translation_data, checkpoint, "translation").stdout)
    assert len(stock) == 21
    assert hypotheses(generate(translation_data, checkpoint, "elseq_translation").stdout) == stock
    lines = (raw_text / "test.src").read_text().splitlines()
    for attention in ("auto", "stock"):
        found = elseq.load(checkpoint, attention=attention).generate(lines, beam=4, max_len_b=20)
        assert found == [words for _, _, words in stock]
    with pytest.raises(UserError, match="attention el cannot decode this model, because it is a .*; use stock"):
        elseq.load(checkpoint, attention="el")


@pytest.mark.few_cases(1)
@pytest.mark.parametrize("arch", ["lstm_lm", "fconv_lm"])
def test_other_language_models(others, raw_text, arch):
    checkpoint = others(arch)
    prompts = [f"{line} =>" for line in (raw_text / "test.src").read_text().splitlines()[:8]]
    found = elseq.load(checkpoint).generate(prompts, beam=1, min_len=5, max_len_b=5)
    # fairseq counts the prompt in the length, and puts it out again
    stock = elseq.load(checkpoint, attention="stock")
    for prompt, words in zip(prompts, found, strict=True):
        length = len(prompt.split()) + 5
        assert stock.generate([prompt], beam=1, min_len=length, max_len_b=length) == [f"{prompt} {words}"]


@pytest.mark.few_cases(1)
def test_models_of_the_other_task(tiny_translation, tiny_language_model):
    for trained, kind, task in (
        (tiny_translation, "an encoder-decoder .ElseqTransformerModel", "translation"),
        (tiny_language_model, "a language model .ElseqTransformerLanguageModel", "language_modeling"),
    ):
        data = {"translation": tiny_language_model, "language_modeling": tiny_translation}[task].data
        other = {"translation": "language_modeling", "language_modeling": "translation"}[task]
        result = generate(data, trained.checkpoint, f"elseq_{other}")
        assert result.returncode == 1
        assert re.search(rf"the model is {kind}.: give --task elseq_{task}", result.stderr)


def test_models_that_refine(translation_data, tmp_path):
    command = helpers.train_command("nonautoregressive_transformer", translation_data, tmp_path, "--max-update=1")
    helpers.run_here([*command, "--task=translation_lev", "--criterion=nat_loss", "--noise=full_mask"])
    checkpoint = tmp_path / "checkpoint_last.pt"
    reason = "the model is a NATransformerModel, which refines its output iteratively: only fairseq decodes it"
    result = generate(translation_data, checkpoint, "elseq_translation")
    assert (result.returncode, reason in result.stderr) == (1, True)
    with pytest.raises(UserError, match=reason):
        elseq.load(checkpoint)


def test_models_that_say_nothing():
    for arch in ("roberta_base", "wav2vec2"):
        with pytest.raises(UserError, match=f"a {ARCH_MODEL_REGISTRY[arch].__name__}, which neither translates nor"):
            is_language_model(Namespace(arch=arch))
    with pytest.raises(UserError, match="the architecture 'of_nobody' is unknown: name the folder of the plugin"):
        is_language_model(Namespace(arch="of_nobody"))


# --- tasks

MULTI = [name for name in TASK_REGISTRY if "multi" in name and "modal" not in name and "elseq" not in name]
SPEECH = [name for name in TASK_REGISTRY if "speech" in name or "audio" in name]
REFUSED = [*(name for name in MULTI if name not in MULTILINGUAL), *SPEECH, "translation_from_pretrained_xlm"]
REFUSED += ["online_backtranslation", "semisupervised_translation", "translation_moe"]


@pytest.mark.parametrize("task", REFUSED)
def test_tasks_that_only_fairseq_decodes(task):
    for cfg in (Namespace(task=Namespace(_name=task)), OmegaConf.create({"task": {"_name": task}, "model": {}})):
        with pytest.raises(UserError, match=f"a checkpoint of the task {task} cannot be converted or decoded by elseq"):
            check_task(cfg)
    for model in (Namespace(arch="transformer", task=task), cfg.model):
        with pytest.raises(UserError, match=f"of the task {task} "):
            check_task_of_model(model, None)


@pytest.mark.parametrize("task", MULTILINGUAL)
def test_tasks_of_several_languages(task):
    sentence = f"only the task {task} knows the symbols of .*--task elseq_{task}$"
    cfg = Namespace(task=Namespace(_name=task))
    check_task(cfg)
    with pytest.raises(UserError, match=sentence):
        check_task(cfg, allow_multilingual=False)
    for name in (task, f"elseq_{task}"):
        model = Namespace(arch="transformer", task=name)
        check_task_of_model(model, task)
        for other in (None, *(other for other in MULTILINGUAL if other != task)):
            with pytest.raises(UserError, match=sentence):
                check_task_of_model(model, other)


@pytest.mark.parametrize("task", ["translation", "denoising", "language_modeling", "simul_text_to_text", "of_nobody"])
def test_other_tasks(task):
    check_task(Namespace(task=Namespace(_name=task)))
    check_task(Namespace(task=Namespace(task=task)))
    check_task_of_model(Namespace(arch="transformer", task=task), None)
    check_task_of_model(OmegaConf.create({"task": None, "model": {}}).model, None)


def test_tasks_of_a_plugin(monkeypatch):
    derived = type("DerivedTask", (TASK_REGISTRY["translation_multi_simple_epoch"],), {})
    monkeypatch.setitem(TASK_REGISTRY, "my_languages", derived)
    with pytest.raises(UserError, match="a checkpoint of the task my_languages cannot be converted or decoded"):
        check_task(Namespace(task=Namespace(_name="my_languages")))


@pytest.fixture(scope="module")
def multilingual(translation_data, tmp_path_factory):
    """A tiny mBART, finetuned as one is."""
    save_dir = tmp_path_factory.mktemp("mbart")
    options = ["--task=translation_from_pretrained_bart", "--langs=src,tgt", "-s", "src", "-t", "tgt"]
    return helpers.train("mbart_base", translation_data, save_dir, *options, "--max-update=2")


def test_a_multilingual_checkpoint_where_it_cannot_go(multilingual, translation_data, tmp_path):
    sentence = "only the task translation_from_pretrained_bart knows the symbols of "
    for command in (
        ["fairseq-generate", translation_data, "--path", multilingual],
        ["fairseq-interactive", translation_data, "--path", multilingual],
        ["elseq-convert", "to-hf", multilingual, "--output", tmp_path / "hf"],
    ):
        options = ["--task=elseq_translation", "--user-dir", helpers.USER_DIR, "--cpu"]
        result = helpers.run_here([*command, *(options if "fairseq" in command[0] else [])], b"w1 w2\n", check=False)
        assert result.returncode == 1
        last = result.stderr.splitlines()[-1]
        assert last.startswith(f"elseq: error: checkpoint {multilingual}: {sentence}") and "elseq_translation_" in last
    for command in ("to-fairseq", "heads"):
        output = tmp_path / f"{command}.pt"
        options = ["--num-kv-heads=1"] if command == "heads" else []
        helpers.run_here(["elseq-convert", command, multilingual, "--output", output, *options])
        assert "translation_from_pretrained_bart" in str(torch.load(output)["cfg"]["task"])


def test_language_model_of_a_multilingual_task(tiny_language_model, tmp_path):
    """The configuration of a model with a dataclass does not name the task; the whole one does."""
    state = torch.load(tiny_language_model.checkpoint)
    state["cfg"]["task"] = {"_name": "multilingual_masked_lm", "data": str(tiny_language_model.data)}
    torch.save(state, tmp_path / "model.pt")
    result = generate(tiny_language_model.data, tmp_path / "model.pt", "elseq_language_modeling")
    assert result.returncode == 1 and "of the task multilingual_masked_lm cannot" in result.stderr
    checkpoint_utils.load_model_ensemble_and_task([str(tiny_language_model.checkpoint)])  # its own does


@pytest.mark.parametrize(
    ("arch", "expected"),
    [("bart_large", True), ("bart_base", True), ("el_bart_base", True), ("mbart_large", False), ("transformer", False)],
)
def test_who_was_trained_with_a_beginning(arch, expected):
    """fairseq's class for BART is that of mBART, too."""
    assert is_trained_with_bos(Namespace(arch=arch)) is expected
    assert is_trained_with_bos(OmegaConf.create({"_name": arch})) is expected
