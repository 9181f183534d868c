"""elseq_distillation against its definition, and in a training by fairseq's command."""

import re
import shutil
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion

from elseq.distillation import DistillationCriterion
from elseq.errors import UserError
from tests import helpers
from tests.tiny_models import make_dictionary, make_models, make_sample, make_sources, pad_rows

DICTIONARY = make_dictionary(20)
TASK = SimpleNamespace(source_dictionary=DICTIONARY, target_dictionary=DICTIONARY)


def batch():
    sources, targets = (make_sources(DICTIONARY, [5, 3, 7], seed=seed) for seed in (1, 2))
    sample = make_sample(DICTIONARY, sources)
    target = pad_rows(targets, DICTIONARY.pad())
    read = pad_rows([[DICTIONARY.eos(), *row[:-1]] for row in targets], DICTIONARY.pad())
    ntokens = sum(map(len, targets))
    return sample | {
        "target": target,
        "ntokens": ntokens,
        "net_input": sample["net_input"] | {"prev_output_tokens": read},
    }


def make(teacher=None, **options):
    criterion = DistillationCriterion(TASK, False, 0.1, teacher="teacher.pt", **options)
    if teacher is not None:
        criterion._teacher.append(teacher)
    return criterion


@pytest.mark.parametrize(("weight", "temperature"), [(0.5, 1.0), (0.8, 3.0), (1.0, 1.0), (0.0, 1.0)])
@pytest.mark.parametrize("ignored", [0, 1])
@pytest.mark.parametrize("reduce", [True, False])
def test_loss(weight, temperature, ignored, reduce):
    model, teacher = (make_models("transformer", DICTIONARY, seed=seed)["kv"] for seed in (1, 2))
    model.train().requires_grad_(True)
    for module in model.modules():
        if hasattr(module, "p"):
            module.p = 0.0
    options = {"distillation_weight": weight, "distillation_temperature": temperature, "ignore_prefix_size": ignored}
    sample = batch()
    loss, size, log = make(teacher, **options)(model, sample, reduce=reduce)
    plain, _, _ = LabelSmoothedCrossEntropyCriterion(TASK, False, 0.1, ignored)(model, sample, reduce=reduce)
    logits, wanted = (each(**sample["net_input"])[0].double() / temperature for each in (model, teacher))
    against = 0.0
    for row, words in enumerate(sample["target"].tolist()):
        for place, word in enumerate(words):
            if place >= ignored and word != DICTIONARY.pad():
                against -= (
                    temperature**2 * (F.softmax(wanted[row, place], 0) * F.log_softmax(logits[row, place], 0)).sum()
                )
    expected = (1 - weight) * plain.sum().double() + weight * against
    assert float(loss.sum()) == pytest.approx(float(expected), rel=1e-5)
    assert size == sample["ntokens"]
    if not weight:
        return
    loss.sum().backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_model_that_is_its_teacher_has_no_gradient():
    model = make_models("transformer", DICTIONARY)["kv"].requires_grad_(True)
    model.training = True  # with all its layers as in decoding: no dropout
    loss, _, _ = make(make_models("transformer", DICTIONARY)["kv"], distillation_weight=1.0)(model, batch())
    loss.backward()
    assert max(float(parameter.grad.abs().max()) for parameter in model.parameters()) < 1e-4


def test_validation_is_that_of_other_trainings_and_needs_no_teacher():
    model = make_models("transformer", DICTIONARY)["kv"].eval()
    loss, _, _ = make()(model, batch())
    expected, _, _ = LabelSmoothedCrossEntropyCriterion(TASK, False, 0.1)(model, batch())
    assert float(loss) == float(expected)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"teacher": None}, "--criterion elseq_distillation needs --teacher: name the checkpoint"),
        ({"distillation_weight": 1.5}, "--distillation-weight 1.5 is not possible: give 0 to 1"),
        *(
            (
                {"distillation_temperature": value},
                f"--distillation-temperature {value:g} is not possible: give a number",
            )
            for value in (0.0, 1e-40, float("inf"), float("nan"))
        ),
    ],
)
def test_bad_options(options, sentence):
    with pytest.raises(UserError, match=sentence):
        DistillationCriterion(TASK, False, 0.1, **{"teacher": "teacher.pt"} | options)


@pytest.mark.few_cases(1)
@pytest.mark.parametrize("family", ["translation", "bart", "language_model"])
def test_training(family, request, tmp_path):
    trained = request.getfixturevalue(f"tiny_{family}")
    arch = {"translation": "mq_transformer", "bart": "mq_bart_base", "language_model": "elseq_transformer_lm"}[family]
    task = "language_modeling" if family == "language_model" else "translation"
    options = ["--user-dir", helpers.USER_DIR, "--criterion=elseq_distillation", "--label-smoothing=0.1"]
    options += ["--teacher", trained.checkpoint, "--max-update=12", "--log-format=simple", "--log-interval=4"]
    command = helpers.train_command(arch, trained.data, tmp_path, *options, f"--task=elseq_{task}")
    losses = [float(loss) for loss in re.findall(r" loss=([\d.]+)", helpers.run_here(command).stdout)]
    assert len(losses) >= 2 and losses[-1] < losses[0]
    state = torch.load(tmp_path / "checkpoint_last.pt")
    assert not any("teacher" in name for name in state["model"])
    (tmp_path / "checkpoint_last.pt").rename(tmp_path / "student.pt")
    path = ["--path", tmp_path / "student.pt", "--user-dir", helpers.USER_DIR, f"--task=elseq_{task}", "--cpu"]
    helpers.run_here(["fairseq-validate", trained.data, *path, "--num-workers=0", "--max-tokens=800"])


def test_teachers_that_cannot_teach(tiny_translation, tiny_language_model, tmp_path, tmp_path_factory):
    options = ["--user-dir", helpers.USER_DIR, "--criterion=elseq_distillation", "--task=elseq_translation"]

    def sentence(teacher):
        command = helpers.train_command(
            "mq_transformer", tiny_translation.data, tmp_path, *options, "--teacher", teacher
        )
        result = helpers.run_here(command, check=False)
        assert "Preparing to load checkpoint" not in result.stdout  # before training begins
        assert not list(tmp_path.iterdir())
        return result.stderr.splitlines()[-1]

    assert re.match("elseq: error: checkpoint .*nowhere.pt cannot be read", sentence(tmp_path / "nowhere.pt"))
    refused = "elseq: error: --teacher .* has another dictionary than this training"
    assert re.match(refused, sentence(tiny_language_model.checkpoint))
    other = tmp_path_factory.mktemp("other")
    words = (tiny_translation.data / "dict.src.txt").read_text().splitlines(keepends=True)
    (other / "dict.src.txt").write_text("".join(reversed(words)))
    shutil.copy(tiny_translation.data / "dict.tgt.txt", other)
    shutil.copy(tiny_translation.checkpoint, other / "teacher.pt")
    assert re.match(refused, sentence(other / "teacher.pt"))


@pytest.mark.parametrize(
    ("arch", "task", "options"),
    [
        ("elseq_bart", "translation_from_pretrained_bart", ["--langs=src,tgt", "--prepend-bos"]),
        ("elseq_transformer", "translation_multi_simple_epoch", ["--langs=src,tgt", "--lang-pairs=src-tgt"]),
    ],
)
def test_teachers_of_tasks_that_add_symbols(tiny_translation, tmp_path, arch, task, options):
    def train(name, *more):
        given = ["--user-dir", helpers.USER_DIR, f"--task=elseq_{task}", *options, "--max-update=2", *more]
        return helpers.train(arch, tiny_translation.data, tmp_path / name, *given)

    teacher = train("teacher")
    assert train("student", "--criterion=elseq_distillation", "--teacher", teacher).exists()


def test_a_teacher_that_is_a_model_for_each_pair(tiny_translation, tmp_path):
    def train(name, *more):
        given = ["--user-dir", helpers.USER_DIR, "--task=elseq_multilingual_translation", "--lang-pairs=src-tgt", *more]
        arch, folder = "multilingual_transformer", tmp_path / name
        command = helpers.train_command(arch, tiny_translation.data, folder, *given, "--max-update=2")
        command.remove("--share-all-embeddings")
        return helpers.run_here(command, check=False)

    assert train("teacher").returncode == 0
    options = ["--criterion=elseq_distillation", "--teacher", tmp_path / "teacher" / "checkpoint_last.pt"]
    assert (
        "holds a model for each pair of languages, which distillation does not take"
        in train("student", *options).stderr
    )
