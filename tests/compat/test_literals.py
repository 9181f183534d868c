import ast
from argparse import Namespace
from pathlib import Path

import fairseq
import pytest
import torch
from fairseq import checkpoint_utils, utils
from fairseq_cli import validate

import elseq
from elseq.compat.literals import EVALUATING, evaluate
from elseq.errors import UserError
from tests import helpers


def code(path):
    """Python that makes a folder."""
    return f"__import__('os').makedirs({str(path)!r}, exist_ok=True)"


@pytest.mark.parametrize(
    "text",
    [
        "[(512, 3)] * 20",
        "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]",
        "(0.9, 0.98)",
        " 1e-3",
        "-1",
        "1/3",
        "True",
        "None",
        "{'encoder_layers': 2, 'bpe': None}",
        "[[1, 'a'], {2}]",
        "'a' + 'b'",
        "[1] * -1",
        "3 * 4 - 1",
    ],
)
def test_literals_are_what_eval_makes_of_them(text):
    assert evaluate(text) == eval(text.strip())


@pytest.mark.parametrize(
    "text",
    [
        "mystery",
        "print",
        "print(1)",
        "__import__('os').getcwd()",
        "().__class__",
        "[i for i in (1, 2)]",
        "lambda: 1",
        "f'{1}'",
        "(x := 1)",
        "1 if True else 2",
        "2 ** 64",
        "'a' * 10",
        "[1] * 10**9",
        "[0] * 1000000000",
        "[[0] * 1000] * 1000",
        "[[[[0] * 90] * 90] * 90] * 90",
        "{**{}}",
        "{[]: 1}",
        "1 / 0",
        "1 +",
        "",
        "\0",
        "9" * 5000,
        "(" * 500 + ")" * 500,
        "-" * 90_000 + "1",
        "1" * 200_000,
    ],
    ids=lambda text: text[:20],
)
def test_everything_else_is_refused(text):
    with pytest.raises(UserError) as raised:
        evaluate(text)
    assert "is not evaluated" in str(raised.value)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 500


def test_what_is_no_text_is_a_type_error_as_before():
    with pytest.raises(TypeError):
        evaluate(5)
    assert utils.eval_bool(5, default=True) is True


# --- fairseq's sources

# Calls that can run code or read classes, and why no text of a checkpoint reaches them.
UNREACHABLE = {
    "importlib.import_module": {
        "registers the package's own files when it is imported": [
            *("criterions", "criterions", "data/audio", "data/encoders", "model_parallel/criterions"),
            *("model_parallel/models", "models", "models/ema", "models/huggingface", "optim", "optim/lr_scheduler"),
            *("scoring", "tasks"),
        ],
        "a package of NVIDIA's": ["optim/fused_adam"],
        "--user-dir of the command line": ["utils"],
    },
    "subprocess": {
        "training calls the script that its own command line names": ["tasks/audio_pretraining"],
        "no class of fairseq uses it": ["data/plasma_utils", "data/fasta_dataset"],
        "asks SLURM for the names of machines": ["distributed/utils"],
    },
    "pickle.loads": {"what another process of the same training sent": ["distributed/utils"]},
    "yaml.load": {"a file of the data set, by a loader that makes plain values": ["data/audio/data_cfg"]},
    "torch.hub.load": {"a function for users": ["models/speech_to_text/hub_interface"]},
}


def calls(root):
    """(file, what it calls) for what can run code, but `eval`."""
    for path in sorted(root.rglob("*.py")):
        if "examples" in path.parts[len(root.parts) :]:
            continue  # scripts that nothing imports
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            options = {option.arg: ast.unparse(option.value) for option in node.keywords}
            name = path.relative_to(root).with_suffix("").as_posix().removesuffix("/__init__")
            package, _, function = called.rpartition(".")
            if package == "subprocess" or called in ("os.system", "os.popen"):
                yield name, "subprocess"
            loads_classes = (
                package in ("pickle", "dill", "joblib", "cloudpickle") and function in ("load", "loads"),
                function == "load" and bool({"weights_only", "allow_pickle"} & set(options)),
                package.partition(".")[0] in ("importlib", "runpy"),
                function in ("get_class", "instantiate"),
                called in ("yaml.load", "torch.hub.load"),
            )
            if called in ("eval", "exec", "compile", "__import__") or any(loads_classes):
                yield name, called


def test_nothing_in_fairseq_runs_text_of_a_checkpoint():
    package = Path(fairseq.__file__).parent
    found = set(calls(package)) | {
        (f"fairseq_cli.{name}", called) for name, called in calls(Path(validate.__file__).parent)
    }
    evaluating = {name.replace("/", ".") for name, called in found if called == "eval"}
    assert evaluating == {module.__name__.removeprefix("fairseq.") for module in EVALUATING}
    expected = {
        (name, called) for called, reasons in UNREACHABLE.items() for names in reasons.values() for name in names
    }
    assert {(name, called) for name, called in found if called != "eval"} == expected


def test_every_module_that_evaluates_has_our_function():
    for module in EVALUATING:
        assert module.eval is not eval


# --- checkpoints with code in them


def save_with(trained, path, **options):
    state = torch.load(trained.checkpoint)
    cfg = state["cfg"]
    model = vars(cfg["model"]) if isinstance(cfg["model"], Namespace) else cfg["model"]
    state["cfg"] = {**cfg, "model": type(cfg["model"])(**{**model, **options})}
    torch.save(state, path)
    return path


@pytest.mark.parametrize("option", ["encoder_xformers_att_config", "adaptive_softmax_cutoff"])
@pytest.mark.parametrize("attention", ["auto", "stock"])
def test_code_in_an_option_is_not_run(tiny_translation, tmp_path, option, attention):
    path = save_with(tiny_translation, tmp_path / "model.pt", **{option: f"{code(tmp_path / 'broken in')} and None"})
    with pytest.raises(UserError, match="model.pt.*the text .* is not evaluated"):
        elseq.load(path, data=tiny_translation.data, attention=attention)
    command = [
        "elseq-generate",
        "--model",
        path,
        "--data",
        tiny_translation.data,
        "--input",
        tiny_translation.raw / "test.src",
    ]
    result = helpers.run_here([*command, "--output", tmp_path / "output", "--device=cpu"], check=False)
    assert result.returncode == 1 and "is not evaluated" in result.stderr
    assert not (tmp_path / "broken in").exists()


def test_code_ran_before(tiny_translation, tmp_path, monkeypatch):
    """What the repair is for."""
    path = save_with(tiny_translation, tmp_path / "model.pt", encoder_xformers_att_config=code(tmp_path / "broken in"))
    monkeypatch.delattr(utils, "eval")
    elseq.load(path, data=tiny_translation.data, attention="stock")
    assert (tmp_path / "broken in").exists()


def test_code_in_a_convolutional_model(translation_data, tmp_path):
    sizes = ["--encoder-layers=[(32, 3)] * 2", "--decoder-layers=[(32, 3)] * 2", "--encoder-embed-dim=32"]
    options = ["--arch=fconv", *sizes, "--decoder-embed-dim=32", "--decoder-out-embed-dim=32", "--max-update=2"]
    command = helpers.train_command("transformer", translation_data, tmp_path)
    kept = [option for option in command if not str(option).startswith(("--encoder-", "--decoder-", "--share-all"))]
    del kept[kept.index("--arch") : kept.index("--arch") + 2]
    helpers.run_here([*kept, *options])
    path = tmp_path / "checkpoint_last.pt"
    checkpoint_utils.load_model_ensemble([str(path)])
    state = torch.load(path)
    state["cfg"]["model"].encoder_layers = code(tmp_path / "broken in")
    torch.save(state, path)
    with pytest.raises(UserError, match="checkpoint_last.pt: --encoder-layers: the text .*makedirs"):
        checkpoint_utils.load_model_ensemble([str(path)])
    assert not (tmp_path / "broken in").exists()


@pytest.mark.few_cases(6)
@pytest.mark.parametrize("overrides", ["{", "beam", "[1]", "{5: 1}", "__import__('os').mkdir('broken in')"])
@pytest.mark.parametrize("name", ["fairseq-generate", "fairseq-interactive", "fairseq-validate", "fairseq-eval-lm"])
def test_model_overrides_are_a_dictionary(
    tiny_translation, tiny_language_model, tmp_path, monkeypatch, name, overrides
):
    monkeypatch.chdir(tmp_path)
    trained = tiny_language_model if name == "fairseq-eval-lm" else tiny_translation
    command = [name, trained.data, "--path", trained.checkpoint, "--cpu", "--model-overrides", overrides]
    command += ["--max-tokens=100"] if name == "fairseq-validate" else []
    result = helpers.run_here(command, b"w1\n", check=False)
    assert result.returncode == 1
    assert "--model-overrides" in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "broken in").exists()
