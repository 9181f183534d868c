#!/usr/bin/env python3
"""Write hydra_conf/model/*.yaml from elseq's table of architectures.

A named architecture means nothing in Hydra (fairseq would train the model's default size without a word), so that these
files carry the numbers; and Hydra reads them before it knows the models, so that they list every option.
"""

from pathlib import Path

from fairseq.models import MODEL_DATACLASS_REGISTRY
from omegaconf import OmegaConf

from elseq.models.architectures import ARCHITECTURES

FOLDER = Path(__file__).resolve().parents[1] / "hydra_conf" / "model"
HEADER = "# Made by scripts/hydra_models.py from elseq/models/architectures.py; change that.\n"


def contents():
    """File name and text of each architecture."""
    for name, (model, values) in ARCHITECTURES.items():
        defaults = OmegaConf.to_container(OmegaConf.structured(MODEL_DATACLASS_REGISTRY[model]), enum_to_str=True)
        yield f"{name}.yaml", HEADER + OmegaConf.to_yaml({**defaults, **values, "_name": model})


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in contents():
        (FOLDER / name).write_text(text, encoding="utf-8")
    print(f"{len(ARCHITECTURES)} models in {FOLDER}")


if __name__ == "__main__":
    main()
