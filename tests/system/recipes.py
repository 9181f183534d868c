"""Recipes, run as a user runs them."""

import os
import subprocess
from pathlib import Path

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
FOLDERS = {"cnn_dm": "cnndm", "xsum": "xsum", "squad_qg": "squad"}  # of the recipes in stages, in ELSEQ_DATA
SETTINGS = [
    "ATTENTION", "BART", "CHECKPOINT", "DATA", "DECODE", "DEMO_UPDATES", "DISTILLATION", "DOCUMENTS", "ELSEQ_DATA",
    "ELSEQ_DEMO_DIR", "ELSEQ_WORK", "EPOCHS", "EXAMPLES", "FFN_TOP_K", "FINETUNE_LENGTH", "FINETUNE_LR",
    "FINETUNE_TOP_K", "FINETUNE_UPDATES", "FINETUNE_WINDOWS", "GENERATE_OPTIONS", "HOURS", "KV_HEADS", "LENGTHS",
    "LR", "METHODS", "MODEL", "MODEL_OPTIONS", "PARAGRAPH_WORDS", "REFERENCES", "SEED", "SEEDS", "SHARDS", "SMALL",
    "TASK", "TOP_K", "UPDATES", "UPDATE_FREQ", "UPTRAIN_UPDATES", "VOCABULARY", "WINDOW",
]  # fmt: skip


def run(recipe, *arguments, **environment):
    """A recipe, with nothing set but what is given."""
    inherited = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    return subprocess.run(
        ["bash", str(recipe), *arguments],
        capture_output=True,
        text=True,
        env={**inherited, "OMP_NUM_THREADS": "1", **{name: str(value) for name, value in environment.items()}},
    )


def run_recipe(name, *arguments, **environment):
    return run(RECIPES / f"{name}.sh", *arguments, **environment)
