import collections
import io
import math
import os
import re
import struct
import subprocess
import sys
import textwrap
import time
import warnings
import zipfile
from argparse import Namespace
from pathlib import Path

import fairseq
import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.models.transformer import TransformerModel

import elseq
from elseq.compat import contents
from elseq.errors import UserError
from tests import helpers


@pytest.fixture
def state(tiny_translation):
    state = torch.load(tiny_translation.checkpoint)
    del state["last_optimizer_state"]
    return state


@pytest.fixture
def save(tmp_path):
    def save(state, **options):
        torch.save(state, tmp_path / "model.pt", **options)
        return tmp_path / "model.pt"

    return save


def with_model(state, **options):
    model = Namespace(**{**vars(state["cfg"]["model"]), **options})
    return {**state, "cfg": {**state["cfg"], "model": model}}


def load(path):
    return checkpoint_utils.load_checkpoint_to_cpu(str(path))


class Calls:
    """Is pickled as a call."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


# --- as much as its file


def test_archive_that_unpacks_to_more(state, save, tmp_path):
    small = tmp_path / "small.pt"
    source = save({**state, "extra": torch.zeros(10**7)})
    with zipfile.ZipFile(source) as before, zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as after:
        for entry in before.infolist():
            after.writestr(entry.filename, before.read(entry.filename))
    assert small.stat().st_size < source.stat().st_size / 10
    with pytest.raises(UserError, match="small.pt: it is damaged, or was made to fill the memory .its parts have"):
        load(small)


@pytest.fixture
def deep_hash(state, save):
    """A checkpoint whose reading takes years, and what must be told of it."""
    return save({**state, "extra": Calls(collections.OrderedDict, [(shared(60, tuple), 1)])})


def refused_at_once(path):
    start = time.monotonic()
    with pytest.raises(UserError, match=r"model\.pt(:? it)? is damaged"):
        load(path)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("part", ["name", "checksum", "case", "second"])
def test_archive_that_torch_reads_otherwise(deep_hash, part):
    """torch looks neither at the names before the parts nor at their checksums, and not at the case of names."""
    content = bytearray(deep_hash.read_bytes())
    first, last = content.find(b"data.pkl"), content.rfind(b"data.pkl")
    if part == "name":
        content[first : first + 4] = b"meta"
    elif part == "checksum":
        entry = content.rfind(b"PK\1\2", 0, last)
        content[entry + 16 : entry + 20] = b"abcd"
    elif part == "case":
        content = content.replace(b"data.pkl", b"DATA.PKL")
    deep_hash.write_bytes(content)
    if part == "second":
        name = content[content.rfind(b"PK\1\2", 0, last) + 46 : last + 8].decode()
        with warnings.catch_warnings(), zipfile.ZipFile(deep_hash, "a") as archive:
            warnings.simplefilter("ignore")
            archive.writestr(name, b"\x80\x02}.")
    refused_at_once(deep_hash)


def test_pickle_with_an_archive_at_its_end(state, save):
    path = save({**state, "extra": Calls(bytearray, 10**11)}, _use_new_zipfile_serialization=False)
    with path.open("ab") as file, zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x", "y")
    refused_at_once(path)


def test_archive_with_two_lists_of_its_parts(state, save):
    """zipfile reads the one that ends where the end begins, torch the one whose place is written there."""
    path = save({**state, "extra": torch.zeros(10**6)})
    content = io.BytesIO()
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as after:
        for entry in before.infolist():
            after.writestr(entry.filename, before.read(entry.filename))
    content, end = content.getvalue(), content.getvalue().rindex(b"PK\5\6")
    length, offset = struct.unpack_from("<LL", content, end + 12)
    other, entry = bytearray(content[offset : offset + length]), 0
    while entry < length:  # nothing is compressed, it says
        other[entry + 24 : entry + 28] = other[entry + 20 : entry + 24]
        entry += 46 + sum(struct.unpack_from("<3H", other, entry + 28))
    path.write_bytes(content[:end] + other + content[end:])
    refused_at_once(path)


def shared(levels, make):
    value = make(())
    for _ in range(levels):
        value = make((value, value))
    return value


def cycle():
    value = []
    value.append(value)
    return value


def deep(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "content, what",
    [
        (lambda: shared(60, list), "nested"),
        (lambda: shared(60, lambda pair: dict(enumerate(pair))), "nested"),
        (lambda: shared(60, tuple), "nested"),
        (lambda: Calls(collections.OrderedDict, [(shared(60, tuple), 1)]), "nested"),  # to hash it takes years
        (cycle, "nested"),
        (lambda: deep(300), "nested"),
        (lambda: torch.ones(1).expand(10**10), "repeats its numbers"),
        (lambda: torch.ones(4).as_strided((10**5, 10**5), (0, 0)), "repeats its numbers"),
        (lambda: [torch.arange(1000)] * 10_000, "more numbers than the file"),
        (lambda: Calls(bytearray, 10**10), "bytearray"),
        (
            lambda: Calls(torch._utils._rebuild_device_tensor_from_numpy, np.ones(1), torch.float64, "cpu", False),
            "numpy",
        ),
        (lambda: Calls(np.ones(1).__reduce__()[0], np.ndarray, (10**11,), b"d"), "damaged"),
        (lambda: Calls(torch.Tensor, 10**9), "damaged"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("is_old_format", [False, True])
def test_what_becomes_larger_than_the_file(state, save, content, what, is_old_format):
    if is_old_format and what == "bytearray":
        pytest.skip("the same instruction")
    path = save({**state, "extra": content()}, _use_new_zipfile_serialization=not is_old_format)
    start = time.monotonic()
    with pytest.raises(UserError, match=f"model.pt.*{what}") as raised:
        load(path)
    assert "\n" not in str(raised.value)
    assert time.monotonic() - start < 10


def test_tensors_may_have_several_names(state, save):
    """Tied ones, and a whole that parts were taken of."""
    whole = torch.arange(1000.0)
    loaded = load(save({**state, "extra": [whole, whole, whole[:10], whole.view(10, 100).T, torch.tensor(5)]}))
    assert loaded["extra"][3].shape == (100, 10)


# --- a model as large as its file


@pytest.mark.parametrize(
    "options",
    [
        {"encoder_ffn_embed_dim": 2**40},
        {"decoder_ffn_embed_dim": 10**9},
        {"max_target_positions": 10**9, "decoder_learned_pos": True},
        {"max_source_positions": 10**9},
        {"decoder_output_dim": 10**9, "share_all_embeddings": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("attention", ["auto", "stock"])
def test_model_larger_than_its_file(state, save, tiny_translation, options, attention):
    path = save(with_model(state, **options))
    start = time.monotonic()
    with pytest.raises(UserError, match=r"model\.pt (describes a model that is many times larger|cannot be used)"):
        elseq.load(path, data=tiny_translation.data, attention=attention)
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("attention", ["auto", "stock"])
def test_layers_beyond_those_that_are_there(state, save, tiny_translation, attention):
    """A training with --encoder-layers-to-keep has saved such a number: those that are there are taken."""
    path = save(with_model(state, encoder_layers=10**9, decoder_layers=10**9))
    start = time.monotonic()
    model = elseq.load(path, data=tiny_translation.data, attention=attention).model
    assert time.monotonic() - start < 20
    assert (len(model.encoder.layers), len(model.decoder.layers)) == (2, 2)


@pytest.mark.slow
def test_memory_of_such_a_model(state, save, tiny_translation):
    """In a process that cannot have much more than importing takes."""
    path = save(with_model(state, decoder_ffn_embed_dim=10**7, encoder_layers=10**8, encoder_embed_path="/dev/zero"))
    program = f"""
        import resource, elseq
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            elseq.load({str(path)!r}, data={str(tiny_translation.data)!r})
        except elseq.errors.UserError as error:
            print(error)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    printed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert "many times larger" in printed[0]
    assert int(printed[1]) < 400_000  # KiB


def test_budget_counts_what_is_made():
    with contents.MemoryBudget(2**20, "x.pt") as budget:
        torch.ones(100, 100) @ torch.ones(100, 100)
        assert budget.left == 2**20 - 3 * 40_000
        with pytest.raises(UserError, match="x.pt describes a model"):
            torch.arange(10**12)
    torch.ones(2**20)


@pytest.mark.parametrize(
    ("make", "most"),
    [
        (lambda: torch.arange(1000), 1),
        (lambda: torch.arange(3, 1000, 2), 1),
        (lambda: torch.arange(0.5, 1000.25, dtype=torch.float32), 2),
        (lambda: torch.arange(end=5000, start=7), 1),
        (lambda: torch.arange(0), math.inf),
        (lambda: torch.exp(WEIGHT), 1),
        (lambda: WEIGHT.half().exp(), 2),
        (lambda: WEIGHT * 2, 1),
        (lambda: WEIGHT[:1] + WEIGHT[:, :1], 1),
        (lambda: WEIGHT[:, None] * WEIGHT[None] * WEIGHT[0, :1], 1),
        (lambda: torch.where(WEIGHT > 0, WEIGHT.double(), WEIGHT), 1),
        (lambda: (WEIGHT > 0) * 2, 1),
        (lambda: WEIGHT * 1j, 1),
        (lambda: torch.frexp(WEIGHT).mantissa, 2),
        (lambda: WEIGHT[:0] + WEIGHT[:1], math.inf),
        (lambda: torch.cat([WEIGHT, WEIGHT[:7]]), 1),
        (lambda: torch.cat([WEIGHT.half(), WEIGHT], dim=1), 1),
        (lambda: WEIGHT.repeat(3, 2), 1),
        (lambda: WEIGHT.topk(5).values, math.inf),
    ],
)
def test_budget_knows_how_much_is_made(make, most):
    """`most`: how many times as much as the bytes of the last tensor may be counted, where it is not small."""
    made = make()
    with Counted(2**40, "x.pt") as budget:
        make()
    assert made.nbytes <= budget.counted[-1] <= max(16384, most * made.nbytes)


WEIGHT = torch.randn(150, 160)


class Counted(contents.MemoryBudget):
    """Also remembers what each operation has counted."""

    def __torch_dispatch__(self, *operation, **options):
        left = self.left
        made = super().__torch_dispatch__(*operation, **options)
        self.counted = [*getattr(self, "counted", []), left - self.left]
        return made


def test_budget_knows_many_dimensions():
    number = torch.zeros(1).expand((2,) * 45)
    with contents.MemoryBudget(2**20, "x.pt"), pytest.raises(UserError, match="x.pt describes a model"):
        number * number


@pytest.mark.parametrize("wrong", [(0, math.inf), (0, 1, 0), (0, math.nan), (0, -5)])
def test_budget_leaves_wrong_sizes_to_torch(wrong):
    with pytest.raises(RuntimeError) as expected:
        torch.arange(*wrong)
    with contents.MemoryBudget(2**20, "x.pt"), pytest.raises(RuntimeError, match=re.escape(str(expected.value))):
        torch.arange(*wrong)


# --- plain settings, whole tensors


@pytest.mark.parametrize(
    "tensor",
    [
        *(None, 5, "text", np.ones(2), [1.0]),
        torch.ones(2, device="meta"),
        torch.ones(2).to_sparse(),
        torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    ],
    ids=lambda value: f"{type(value).__name__}",
)
@pytest.mark.filterwarnings("ignore")
def test_model_of_other_things_than_tensors(state, save, tensor):
    name = "encoder.layers.0.fc1.weight"
    with pytest.raises(UserError, match=re.escape(name)):
        load(save({**state, "model": {**state["model"], name: tensor}}))


@pytest.mark.parametrize(
    "changed",
    [
        {"model": 5},
        {"model": {5: torch.ones(2)}},
        {"cfg": 5},
        {"cfg": []},
        {"cfg": None, "args": 5},
        {"cfg": {}},
        {"cfg": {"model": {}, "task": None}},
        {"cfg": {"model": {"_name": "../elsewhere"}, "task": {}}},
        {"cfg": None, "args": Namespace(arch="transformer", task="translation", bpe="../../elsewhere")},
    ],
    ids=str,
)
def test_parts_that_are_none(state, save, changed):
    with pytest.raises(UserError, match="model.pt: it is not as fairseq saves one") as raised:
        load(save({**state, **changed}))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "option, value",
    [
        ("activation_fn", "mystery"),
        ("encoder_layers", "2"),
        ("encoder_layers", 2.5),
        ("encoder_layers", [2]),
        ("dropout", "0.1"),
        ("share_all_embeddings", "no"),
        ("encoder_learned_pos", []),
        ("max_source_positions", float("nan")),
        ("decoder_attention_heads", 10**40),
        ("decoder_attention_heads", torch.tensor(4)),
        ("arch", "\x1b[31m"),
    ],
)
def test_values_that_an_option_cannot_have(state, save, option, value):
    with pytest.raises(UserError, match=f"model.pt: .*{option}"):
        load(save(with_model(state, **{option: value})))


def test_environment_is_not_read(state, save, monkeypatch):
    monkeypatch.setenv("SECRET", "a secret")
    for text in ("${oc.env:SECRET}", "${task.data}${task.data}", "a ${model}", "${model}", "${nothing.such}"):
        with pytest.raises(UserError, match=r"cfg\.common\.tensorboard_logdir is .*refers to no other setting"):
            load(save({**state, "cfg": {**state["cfg"], "common": {"tensorboard_logdir": text}}}))


def test_references_of_older_versions_are_followed(state, save):
    """Some versions of fairseq saved them."""
    optimizer = {"tpu": "${common.tpu}", "lr": "${optimizer.other}", "other": "${common.seed}", "_name": "adam"}
    cfg = load(save({**state, "cfg": {**state["cfg"], "optimizer": optimizer}}))["cfg"]
    assert cfg.optimizer.tpu is False and cfg.optimizer.lr == cfg.common.seed == 1


# --- files that a checkpoint names


def test_embeddings_of_the_training_need_not_be_there(tiny_translation, tmp_path):
    embeddings = tmp_path / "embeddings.txt"
    embeddings.write_text("1 32\nw1 " + " ".join(["0.1"] * 32) + "\n")
    options = [f"--{side}-embed-path={embeddings}" for side in ("encoder", "decoder")]
    checkpoint = helpers.train("transformer", tiny_translation.data, tmp_path / "models", "--max-update=2", *options)
    assert torch.load(checkpoint)["cfg"]["model"].encoder_embed_path == str(embeddings)
    embeddings.unlink()
    for attention in ("auto", "stock"):
        model = elseq.load(checkpoint, data=tiny_translation.data, attention=attention)
        assert len(model.generate(["w1 w2"])) == 1
    for name in ("fairseq-generate", "fairseq-interactive", "fairseq-validate"):
        command = [name, tiny_translation.data, "--path", checkpoint, "--cpu", "--max-tokens=1000", "--num-workers=0"]
        helpers.run_here(command, b"w1 w2\n")
    helpers.run_here(["elseq-convert", "to-fairseq", checkpoint, "--output", tmp_path / "plain.pt"])
    assert getattr(torch.load(tmp_path / "plain.pt")["cfg"]["model"], "encoder_embed_path", None) is None


def test_user_may_name_embeddings(tiny_translation, tmp_path):
    """By --model-overrides, as they always could."""
    with pytest.raises(UserError, match="nothing.txt"):
        checkpoint_utils.load_model_ensemble_and_task(
            [str(tiny_translation.checkpoint)], {"encoder_embed_path": "nothing.txt", "share_all_embeddings": False}
        )


def test_every_setting_of_a_model_that_names_a_file_is_known():
    """Those of fairseq's models, by how they are called."""
    package = Path(fairseq.__file__).parent
    names = set()
    for path in [*(package / "models").rglob("*.py"), *(package / "criterions").rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        names |= set(re.findall(r"\b(?:args|cfg)\.(\w+(?:_path|_file|_checkpoint|_from))\b", text))
        names |= set(re.findall(r"getattr\(\s*(?:args|cfg), \"(\w+(?:_path|_file|_checkpoint|_from))\"", text))
    names -= {"input_from", "drop_path"}  # a switch, and a rate
    assert len(names) > 8
    assert [name for name in names if not contents._FILES.fullmatch(name)] == []


def test_criterion_writes_nowhere(state, save, tmp_path):
    path = save({**state, "cfg": {**state["cfg"], "criterion": {"save_predictions": str(tmp_path / "victim")}}})
    assert "save_predictions" not in load(path)["cfg"].criterion


def test_pipe_for_a_checkpoint(tmp_path):
    os.mkfifo(tmp_path / "model.pt")
    with pytest.raises(UserError, match="model.pt is a pipe or a device"):
        load(tmp_path / "model.pt")


@pytest.mark.parametrize("name", ["dict.src.txt", "encoder.json", "spm.model"])
def test_pipes_and_devices_in_a_folder(tiny_translation, tmp_path, name):
    for file in tiny_translation.data.glob("dict*.txt"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for place in (lambda path: os.mkfifo(path), lambda path: path.symlink_to("/dev/zero")):
        (tmp_path / name).unlink(missing_ok=True)
        place(tmp_path / name)
        with pytest.raises(UserError, match=f"{name} is a pipe or a device"):
            elseq.load(tiny_translation.checkpoint, data=tmp_path)
    if name.startswith("dict"):
        command = ["fairseq-interactive", tmp_path, "--path", tiny_translation.checkpoint, "-s", "src", "-t", "tgt"]
        assert "is a pipe or a device" in helpers.run_here(command, b"w1\n", check=False).stderr


def test_stock_class_is_still_built(tiny_translation):
    (model,), _ = checkpoint_utils.load_model_ensemble([str(tiny_translation.checkpoint)])
    assert type(model) is TransformerModel
