"""The measured model as CTranslate2 and Hugging Face read it, with the same weights, and the sources with it."""

import json
import sys
from pathlib import Path

import torch
from fairseq import checkpoint_utils

from elseq.benchmark.failures import describe_failure
from elseq.benchmark.models import ModelFile, load
from elseq.errors import UserError
from elseq.interop import ctranslate
from elseq.interop.hugging_face import conversion, folders


def export(engine: str, model_file: ModelFile, sources: list[list[int]], folder: Path) -> None:
    """Write the model and the sources as the task would give them to it.

    Args:
        engine: ctranslate2 or transformers.
        model_file: which model.
        sources: ending with the end symbol.
        folder: where to write.

    Raises:
        UserError: the engine does not take this model; the text is the reason.
    """
    if model_file.is_language_model:
        raise UserError("only encoder-decoder models are measured")
    model, task = load(model_file, "stock")
    cfg = checkpoint_utils.load_checkpoint_to_cpu(model_file.path)["cfg"]
    folder.mkdir(parents=True, exist_ok=True)
    dataset = task.build_dataset_for_inference(
        [torch.tensor(source) for source in sources], [len(source) for source in sources]
    )
    numbers = [dataset[index]["source"].tolist() for index in range(len(sources))]
    dictionaries = task.source_dictionary, task.target_dictionary
    if engine == "ctranslate2":
        ctranslate.to_ctranslate2(model, cfg, *dictionaries, folder)
        numbers = [source[:-1] for source in numbers]  # it adds the end symbol itself
    else:
        exported = conversion.to_hugging_face(model.state_dict(), cfg, *dictionaries, task.force_bos)
        folders.write(folder, exported.config, exported.settings, exported.tensors)
    contents = {
        "sources": numbers,
        "forced": [task.target_dictionary.bos()] if task.force_bos else [],
        "source_symbols": ctranslate.symbols(task.source_dictionary),
        "target_symbols": ctranslate.symbols(task.target_dictionary),
    }
    (folder / "sources.json").write_text(json.dumps(contents))


def main() -> None:
    request_path, result_path = map(Path, sys.argv[1:])
    request = json.loads(request_path.read_text())
    try:
        export(request["engine"], ModelFile(**request["model_file"]), request["sources"], Path(request["exported"]))
        result = {}
    except Exception as error:
        result = {"failure": describe_failure(error)}
    result_path.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
