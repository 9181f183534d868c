"""What our tasks share: stock models become elseq models, and our generator serves them."""

import contextlib
import logging

from fairseq.tasks import FairseqTask

from elseq.errors import UserError
from elseq.generation import SequenceGenerator
from elseq.interop.stock import EQUIVALENT, equivalent_model, model_class, stock_configuration

logger = logging.getLogger(__name__)

DECODE_ATTENTION = ("auto", "kv", "el", "stock")
DECODE_ATTENTION_HELP = (
    "how attention is evaluated while decoding: keys and values are cached (kv), hidden states are (el), whichever "
    "suits (auto), or everything is left to fairseq (stock); default: as the model was configured"
)


def check_choice(option: str, value: str | None, choices: tuple[str, ...]) -> None:
    """
    Raises:
        UserError: the option is set, to none of the choices. (argparse would print all of fairseq's options first.)
    """
    if value is not None and value not in choices:
        raise UserError(f"{option} {value} is unknown; choose one of {', '.join(choices)}")


@contextlib.contextmanager
def missing_files_named():
    """
    Raises:
        UserError: instead of a FileNotFoundError.
    """
    try:
        yield
    except FileNotFoundError as error:
        what = f"{error.filename} does not exist" if error.filename else str(error)
        raise UserError(f"{what}; check the data folder, the languages and the subset") from error


class DecodingTask(FairseqTask):
    """Stands behind a task of fairseq among the bases of a class. The task's options include decode_attention."""

    @property
    def decode_attention(self) -> str | None:
        return (self.args if self.cfg is None else self.cfg).decode_attention

    def build_model(self, cfg, from_checkpoint=False):
        """The model of a configuration: for a stock one, the elseq model with the same parameters if there is one.

        Raises:
            UserError: decode_attention names an evaluation that the model does not have.
        """
        wanted = self.decode_attention
        stock = model_class(cfg)
        if stock in EQUIVALENT.values():
            model = super().build_model(cfg, from_checkpoint)
        elif wanted == "stock":
            return super().build_model(cfg, from_checkpoint)
        else:
            kind, reason = equivalent_model(cfg)
            if kind is None:
                if wanted in ("kv", "el"):
                    raise UserError(
                        f"--decode-attention {wanted} cannot decode this model, because {reason}; "
                        "use --decode-attention stock"
                    )
                logger.info("the model keeps fairseq's own modules, because %s", reason)
                return super().build_model(cfg, from_checkpoint)
            model = kind.build_model(stock_configuration(cfg), self)
            logger.info("%s rebuilt as %s, weights untouched", stock.__name__, kind.__name__)
        if wanted not in (None, "stock"):
            model.decoder.decode_attention = wanted
        return model

    def build_generator(self, models, args, seq_gen_cls=None, extra_gen_cls_kwargs=None, prefix_allowed_tokens_fn=None):
        """fairseq's choice of a search strategy, with our generator unless decode_attention is stock."""
        extra = dict(extra_gen_cls_kwargs or {})
        if seq_gen_cls is None and self.decode_attention != "stock":
            seq_gen_cls = SequenceGenerator
            extra["print_alignment"] = getattr(args, "print_alignment", None)
            if not extra["print_alignment"] and getattr(args, "replace_unk", None) is not None:
                extra["print_alignment"] = "hard"  # it tells which word to copy
        return super().build_generator(models, args, seq_gen_cls, extra, prefix_allowed_tokens_fn)
