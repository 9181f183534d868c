"""The measured model as CTranslate2 and Hugging Face read it, with the same weights, and the sources with it."""

import json
import sys
from pathlib import Path

import torch
from fairseq.models.bart import BARTModel
from fairseq.models.transformer import TransformerModel

from elseq.benchmark.measure import describe_failure
from elseq.benchmark.models import ModelFile, load
from elseq.errors import UserError


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
        raise UserError("only encoder-decoder models are exported")
    model, task = load(model_file, "stock")
    if type(model) not in (BARTModel, TransformerModel):
        raise UserError(f"a {type(model).__name__} is not exported")
    folder.mkdir(parents=True, exist_ok=True)
    dictionary = task.source_dictionary
    dataset = task.build_dataset_for_inference(
        [torch.tensor(source) for source in sources], [len(source) for source in sources]
    )
    numbers = [dataset[index]["source"].tolist() for index in range(len(sources))]
    if engine == "ctranslate2":
        _write_ctranslate2(model, task, folder)
        numbers = [source[:-1] for source in numbers]  # it adds the end symbol itself
    else:
        _write_transformers(model, task, folder)
    forced = [task.target_dictionary.bos()] if task.force_bos else []
    contents = {
        "sources": numbers,
        "forced": forced,
        "source_symbols": _symbols(dictionary),
        "target_symbols": _symbols(task.target_dictionary),
    }
    (folder / "sources.json").write_text(json.dumps(contents))


def _symbols(dictionary) -> list[str]:
    return ["<blank>" if symbol == dictionary.pad_word else symbol for symbol in dictionary.symbols]


def _write_ctranslate2(model, task, folder: Path) -> None:
    from ctranslate2.converters import Converter, fairseq

    class ModelConverter(Converter):
        def _load(self):
            cfg = model.cfg
            args = model.args if isinstance(model, BARTModel) else cfg
            args.arch = "bart_large" if isinstance(model, BARTModel) else "transformer"
            spec = fairseq._get_model_spec(args)
            fairseq.set_transformer_encoder(spec.encoder, model.encoder)
            fairseq.set_transformer_decoder(spec.decoder, model.decoder)
            spec.register_source_vocabulary(_symbols(task.source_dictionary))
            spec.register_target_vocabulary(_symbols(task.target_dictionary))
            spec.config.decoder_start_token = spec.config.eos_token
            spec.config.add_source_eos = True
            return spec

    with torch.no_grad():
        model.requires_grad_(False)
        ModelConverter().convert(str(folder), force=True)


def _write_transformers(model, task, folder: Path) -> None:
    from transformers import BartConfig, BartForConditionalGeneration

    cfg = model.decoder.cfg
    differing = _unlike_bart(model, cfg)
    if differing:
        raise UserError(f"it has no such model ({differing})")
    dictionary = task.target_dictionary
    config = BartConfig(
        vocab_size=len(dictionary),
        max_position_embeddings=cfg.max_target_positions,
        d_model=cfg.decoder.embed_dim,
        encoder_layers=cfg.encoder.layers,
        decoder_layers=cfg.decoder.layers,
        encoder_ffn_dim=cfg.encoder.ffn_embed_dim,
        decoder_ffn_dim=cfg.decoder.ffn_embed_dim,
        encoder_attention_heads=cfg.encoder.attention_heads,
        decoder_attention_heads=cfg.decoder.attention_heads,
        activation_function=str(cfg.activation_fn),
        scale_embedding=not cfg.no_scale_embedding,
        pad_token_id=dictionary.pad(),
        bos_token_id=dictionary.bos(),
        eos_token_id=dictionary.eos(),
        decoder_start_token_id=dictionary.eos(),
        forced_eos_token_id=dictionary.eos(),
    )
    exported = BartForConditionalGeneration(config)
    weights = {
        f"model.{name}": tensor
        for name, tensor in model.state_dict().items()
        if name.startswith(("encoder.", "decoder.")) and not name.endswith((".version", "output_projection.weight"))
    }
    weights["model.shared.weight"] = weights["model.encoder.embed_tokens.weight"]
    weights["lm_head.weight"] = weights["model.shared.weight"]
    missing, unexpected = exported.load_state_dict(weights, strict=False)
    if unexpected or set(missing) - {"final_logits_bias"}:
        raise UserError(f"its parameters are others: {', '.join([*unexpected, *missing][:3])}")
    exported.save_pretrained(folder)


def _unlike_bart(model, cfg) -> str | None:
    """What Hugging Face's BART does otherwise, or None."""
    if not isinstance(model, BARTModel):
        return "it is not a BART"
    unlike = {
        "layer norm before": cfg.encoder.normalize_before or cfg.decoder.normalize_before,
        "fixed positions": not (cfg.encoder.learned_pos and cfg.decoder.learned_pos),
        "no layer norm of embeddings": not cfg.layernorm_embedding,
        "embeddings not shared": not cfg.share_all_embeddings,
        "different numbers of positions": cfg.max_source_positions != cfg.max_target_positions,
    }
    return next((name for name, present in unlike.items() if present), None)


def main() -> None:
    request_path, result_path = map(Path, sys.argv[1:])
    request = json.loads(request_path.read_text())
    try:
        export(request["engine"], ModelFile(**request["model_file"]), request["sources"], Path(request["exported"]))
        result = {}
    except Exception as error:
        result = describe_failure(error)
    result_path.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
