"""Language models with prompts, decoded by elseq."""

from dataclasses import dataclass
from typing import Optional

import torch
from fairseq.tasks import register_task
from fairseq.tasks.language_modeling import LanguageModelingConfig, LanguageModelingTask
from torch import Tensor

from elseq.errors import UserError
from elseq.generation import SequenceGenerator
from elseq.generation.scorer import score_targets
from elseq.models.config import option
from elseq.options import STOCK
from elseq.tasks.decoding import DecodingConfig, DecodingTask, check_options


@dataclass
class ElseqLanguageModelingConfig(LanguageModelingConfig, DecodingConfig):
    prompt_separator: Optional[str] = option(
        "word of the dictionary that stands between prompt and target in a line; generation continues after it, and a "
        "line without it is all prompt (default: every line is all prompt)"
    )


@register_task("elseq_language_modeling", dataclass=ElseqLanguageModelingConfig)
class ElseqLanguageModelingTask(LanguageModelingTask, DecodingTask):
    """fairseq's language modeling task; in generation a line is a prompt, or a prompt and its continuation.

    A prompt is read in one pass and shared by its hypotheses. It counts neither in their length nor in their score, and
    the hypotheses do not repeat it. (Under --decode-attention stock all of this is as in fairseq.)
    """

    decodes_language_models = True

    @classmethod
    def setup_task(cls, args, **kwargs):
        check_options(args)
        return super().setup_task(args, **kwargs)

    def build_model(self, args, from_checkpoint=False):
        model = DecodingTask.build_model(self, args, from_checkpoint)
        for target in self.targets:
            if target not in model.supported_targets:
                raise UserError("is for models that read texts in both directions: leave it out", f"--{target}-target")
        return model

    def load_dataset(self, split, epoch=1, combine=False, **kwargs):
        if self.args.prompt_separator is not None:
            self.args.sample_break_mode = "eos"  # a line is an example
        return super().load_dataset(split, epoch, combine, **kwargs)

    def build_dataset_for_inference(self, src_tokens, src_lengths, **kwargs):
        """As fairseq's, but for end symbols of the prompt's own, at its start or its end: fairseq takes them away."""
        dataset = super().build_dataset_for_inference(src_tokens, src_lengths, **kwargs)
        if self.args.decode_attention != STOCK:
            end = self.dictionary.eos()
            # Only the end that each encoded line has goes.
            prompts = [tokens[:-1] if tokens[-1:].eq(end).all() else tokens for tokens in src_tokens]
            prompts = [torch.cat((tokens.new_tensor([self.prompt_start]), tokens)) for tokens in prompts]
            for name in ("src_tokens", "src_lengths"):
                dataset.defn[f"net_input.{name}"].dataset = prompts
        return dataset

    def inference_step(self, generator, models, sample, prefix_tokens=None, constraints=None):
        if not isinstance(generator, SequenceGenerator):
            return super().inference_step(generator, models, sample, prefix_tokens, constraints)
        if constraints is not None:
            raise UserError("lexical constraints are not supported for language models; remove --constraints")
        source = sample["net_input"]["src_tokens"]
        if prefix_tokens is not None:
            self._check_lines(prefix_tokens[:, :-1], prefix_tokens[:, 1:])
            # A line shorter than the prefix is all prompt, without its end.
            prefix_tokens = prefix_tokens.masked_fill(prefix_tokens.eq(self.dictionary.eos()), self.dictionary.pad())
            prompt = torch.cat((source.new_full((source.size(0), 1), self.prompt_start), prefix_tokens), dim=1)
        elif self.args.prompt_separator is not None:
            prompt = self._split(sample)
        else:
            prompt = source
            self._check_lines(prompt[:, 1:], prompt[:, 1:])
        lengths = prompt.ne(self.dictionary.pad()).sum(dim=1)
        part = {**sample, "net_input": {"src_tokens": prompt, "src_lengths": lengths}}
        return generator.generate(models, part, prompt_tokens=prompt)

    def score_step(self, model, sample, targets):
        """As the base class, for the continuations of prompts."""
        prompts = sample["net_input"]["src_tokens"]
        return score_targets(model, sample["net_input"], targets, self.dictionary, prompts)

    def _check_lines(self, tokens: Tensor, following: Tensor) -> None:
        # A prompt that somebody typed may have the symbol in it; one from a data set got it from the end of a line.
        from_data = len(self.datasets) > 0 and self.args.sample_break_mode != "eos"
        ends = tokens.eq(self.dictionary.eos()) & following.ne(self.dictionary.pad())
        if from_data and bool(ends.any()):
            raise UserError(
                "a prompt runs over the end of a line: give --sample-break-mode eos, which makes each line one, "
                "or --prompt-separator"
            )

    @property
    def prompt_start(self) -> int:
        """The symbol before each prompt."""
        return self.dictionary.bos() if self.args.add_bos_token else self.dictionary.eos()

    def _split(self, sample: dict) -> Tensor:
        """Leave the prompt in the sample's source and the rest in its target; return the prompt, [B, P]."""
        separator = self.dictionary.index(self.args.prompt_separator)
        if separator == self.dictionary.unk():
            raise UserError(
                f"--prompt-separator {self.args.prompt_separator} is not in the dictionary; give a word that is"
            )
        pad = self.dictionary.pad()
        source = sample["net_input"]["src_tokens"]
        # A line without the separator gets one at its end.
        source = torch.cat((source, source.new_full((source.size(0), 1), pad)), dim=1)
        ends = source.ne(pad).sum(dim=1, keepdim=True)
        missing = source.ne(separator).all(dim=1, keepdim=True)
        source = torch.where(missing, source.scatter(1, ends, separator), source)

        place = source.eq(separator).int().argmax(dim=1, keepdim=True)  # the first
        column = torch.arange(source.size(1), device=source.device)
        prompt = source.masked_fill(column > place, pad)[:, : int(place.max()) + 1]
        sample["net_input"]["src_tokens"] = prompt
        if sample.get("target") is not None:
            # Word j of the target follows word j of the source. The target of a line that is all prompt is its end
            # alone: fairseq's BLEU reads beyond an empty one.
            end = source.new_tensor([self.dictionary.eos()])
            rows = [
                end if alone else target[start:]
                for target, start, alone in zip(
                    sample["target"], place.squeeze(1).tolist(), missing.squeeze(1).tolist(), strict=True
                )
            ]
            sample["target"] = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
        return prompt
