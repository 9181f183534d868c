"""The measured model as CTranslate2 and Hugging Face read it, with the same weights, and the sources with it."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import torch
from fairseq import checkpoint_utils

from elseq.attention.methods import AUTO
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
    model, task = load(model_file, AUTO)
    _check_symbols(engine, task)
    cfg = checkpoint_utils.load_checkpoint_to_cpu(model_file.path)["cfg"]
    cfg = Namespace(model=cfg.model, task=task.options, generation=cfg.generation)  # in the languages that were given
    folder.mkdir(parents=True, exist_ok=True)
    dataset = task.build_dataset_for_inference(
        [torch.tensor(source) for source in sources], [len(source) for source in sources]
    )
    if model_file.is_language_model:
        samples = [dataset.collater([dataset[index]]) for index in range(len(sources))]
        numbers = [sample["net_input"]["src_tokens"][0].tolist() for sample in samples]
    else:
        numbers = [dataset[index]["source"].tolist() for index in range(len(sources))]
    first = getattr(task, "first_target_symbol", None)
    forced = [] if first is None else [first]
    contents = {"is_language_model": model_file.is_language_model}
    if engine == "ctranslate2":
        dictionaries = task.source_dictionary, task.target_dictionary
        ctranslate.to_ctranslate2(model, cfg, *dictionaries, folder)
        if not model_file.is_language_model and getattr(task, "append_source_eos", True):
            numbers = [source[:-1] for source in numbers]  # it adds the end symbol itself
        contents |= {
            "source_symbols": ctranslate.symbols(task.source_dictionary),
            "target_symbols": ctranslate.symbols(task.target_dictionary),
        }
    else:
        exported = conversion.to_hugging_face(model.state_dict(), cfg, task)
        folders.write(folder, exported.config, exported.settings, exported.tensors)
        places = {row: number for number, row in enumerate(exported.source_order)}
        if any(row not in places for source in numbers for row in source):
            raise UserError("it has no <unk>, and the sources have words that are not in the dictionary")
        numbers = [[places[row] for row in source] for source in numbers]
        forced = [exported.order.index(row) for row in forced]
        contents["rows"] = exported.order
    contents |= {"sources": numbers, "forced": forced}
    (folder / "sources.json").write_text(json.dumps(contents))


def _check_symbols(engine: str, task) -> None:
    """
    Raises:
        UserError: the engine does not put the symbols around texts that the task puts there.
    """
    if task.multilingual_name is not None:
        raise UserError(f"only the task {task.multilingual_name} knows where the symbols of its languages stand")
    if engine == "ctranslate2" and (word := getattr(task.options, "source_end", None)) is not None:
        raise UserError(f"it has no --source-end, which is {word} here")


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
