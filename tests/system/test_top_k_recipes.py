"""The recipes that measure top-k: small ones from end to end."""

import re

import pytest

from tests.system.recipes import run_recipe


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
    first = run_recipe("top_k", **options)
    assert first.returncode == 0, first.stderr
    tables = (tmp_path / "top_k.md").read_text()
    assert re.search(r"^\| 64 +\| +\S+ \([+-]0\.000\)", tables, flags=re.MULTILINE)
    (loss,) = re.findall(r"^\| top-1 applied +\| +\S+ \((\S+)\)", tables, flags=re.MULTILINE)
    (after,) = re.findall(r"^\| trained on with top-1 +\| +\S+ \((\S+)\)", tables, flags=re.MULTILINE)
    assert float(after) < float(loss)
    second = run_recipe("top_k", **options)
    assert second.returncode == 0 and (tmp_path / "top_k.md").read_text() == tables
    assert second.stdout.count("done before") == first.stdout.count("== ") > 10


@pytest.mark.slow
def test_listops(tmp_path):
    result = run_recipe("listops", ELSEQ_WORK=tmp_path, UPDATES=20)
    assert result.returncode == 0, result.stderr
    table = (tmp_path / "listops.md").read_text()
    assert re.search(r"accuracy on 10,000 test expressions \| +\d+\.\d% ± \d", table)
    assert "top-8 against full:" in table
    assert (tmp_path / "listops.png").exists()
