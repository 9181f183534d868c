"""The recipes that measure top-k: what they refuse, and small ones from end to end."""

import os
import re
import subprocess
from pathlib import Path

import pytest

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SETTINGS = [
    "CHECKPOINT",
    "DATA",
    "REFERENCES",
    "TOP_K",
    "FFN_TOP_K",
    "GENERATE_OPTIONS",
    "SHARDS",
    "FINETUNE_TOP_K",
    "FINETUNE_UPDATES",
    "LR",
    "MODEL_OPTIONS",
    "LENGTHS",
    "UPDATES",
    "SEED",
    "ELSEQ_WORK",
]


def run(name, **environment):
    inherited = {key: value for key, value in os.environ.items() if key not in SETTINGS}
    return subprocess.run(
        ["bash", RECIPES / f"{name}.sh"],
        capture_output=True,
        text=True,
        env={**inherited, "OMP_NUM_THREADS": "1", **{key: str(value) for key, value in environment.items()}},
    )


@pytest.mark.parametrize(
    ("name", "environment", "sentence"),
    [
        ("listops", {"LENGTHS": "long"}, "LENGTHS is long; choose short or published"),
        ("listops", {"UPDATES": 5}, "UPDATES is 5; give 20 or more"),
        (
            "top_k",
            {"CHECKPOINT": "nowhere.pt"},
            "nowhere.pt is missing; run recipes/multi30k.sh, or set",
        ),
        (
            "top_k",
            {"CHECKPOINT": __file__, "DATA": "/", "REFERENCES": __file__, "TOP_K": "8 16"},
            "FINETUNE_TOP_K is 2; give one of TOP_K, which is 8 16, or FINETUNE_UPDATES=0",
        ),
    ],
)
def test_mistakes(name, environment, sentence, tmp_path):
    result = run(name, ELSEQ_WORK=tmp_path / "work", **environment)
    assert result.returncode == 1
    assert result.stderr.startswith(f"elseq: error: {sentence}") and result.stderr.count("\n") == 1
    assert not (tmp_path / "work").exists()


@pytest.mark.slow
def test_top_k(tiny_translation, tmp_path):
    """Twice: the second time nothing is left to do but the tables."""
    options = {
        "CHECKPOINT": tiny_translation.checkpoint,
        "DATA": tiny_translation.data,
        "REFERENCES": tiny_translation.raw / "test.tgt",
        "ELSEQ_WORK": tmp_path,
        "TOP_K": "1 64",
        "FFN_TOP_K": "64",
        "GENERATE_OPTIONS": "--beam 2 --max-len-b 20 --max-tokens 2000",
        "FINETUNE_TOP_K": 1,
        "FINETUNE_UPDATES": 20,
        "MODEL_OPTIONS": "--encoder-layers 2 --decoder-layers 2 --encoder-embed-dim 32 --encoder-ffn-embed-dim 64 "
        "--encoder-attention-heads 4 --decoder-attention-heads 4 --share-all-embeddings --max-source-positions 64 "
        "--max-target-positions 64",
    }
    first = run("top_k", **options)
    assert first.returncode == 0, first.stderr
    tables = (tmp_path / "top_k.md").read_text()
    assert re.search(r"^\| 64 +\| +\S+ \([+-]0\.000\)", tables, flags=re.MULTILINE)
    (loss,) = re.findall(r"^\| top-1 applied +\| +\S+ \((\S+)\)", tables, flags=re.MULTILINE)
    (after,) = re.findall(r"^\| trained on with top-1 +\| +\S+ \((\S+)\)", tables, flags=re.MULTILINE)
    assert float(after) < float(loss)
    second = run("top_k", **options)
    assert second.returncode == 0 and (tmp_path / "top_k.md").read_text() == tables
    assert second.stdout.count("done before") == first.stdout.count("== ") > 10


@pytest.mark.slow
def test_listops(tmp_path):
    result = run("listops", ELSEQ_WORK=tmp_path, UPDATES=20)
    assert result.returncode == 0, result.stderr
    table = (tmp_path / "listops.md").read_text()
    assert re.search(r"accuracy on 10,000 test expressions \| +\d+\.\d% ± \d", table)
    assert "top-8 against full:" in table
    assert (tmp_path / "listops.png").exists()
