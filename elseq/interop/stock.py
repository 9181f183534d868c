"""Stock fairseq models as elseq models: the same parameters under the same names, other modules."""

from argparse import Namespace

from fairseq.dataclass.utils import merge_with_parent
from fairseq.models import (
    ARCH_CONFIG_REGISTRY,
    ARCH_MODEL_REGISTRY,
    MODEL_DATACLASS_REGISTRY,
    MODEL_REGISTRY,
)
from fairseq.models.bart import BARTModel
from fairseq.models.transformer import TransformerModel
from fairseq.models.transformer_lm import TransformerLanguageModel
from omegaconf import DictConfig

from elseq.models import ElseqBARTModel, ElseqTransformerLanguageModel, ElseqTransformerModel
from elseq.models.config import to_namespace, why_unsupported

# By class, and only these: a subclass may do anything in its forward pass.
EQUIVALENT = {
    TransformerModel: ElseqTransformerModel,
    BARTModel: ElseqBARTModel,
    TransformerLanguageModel: ElseqTransformerLanguageModel,
}


def model_class(cfg) -> type | None:
    """The class that fairseq would build from a model's configuration, or None if it knows none."""
    name = getattr(cfg, "_name", None) or getattr(cfg, "arch", None)
    return ARCH_MODEL_REGISTRY.get(name) or MODEL_REGISTRY.get(name)


def equivalent_model(cfg) -> tuple[type | None, str | None]:
    """The elseq class for a stock model's configuration, or None and the reason in words."""
    stock = model_class(cfg)
    if stock not in EQUIVALENT:
        return None, f"it is a {getattr(stock, '__name__', 'model of an unknown kind')}"
    reason = why_unsupported(cfg)
    return (EQUIVALENT[stock], None) if reason is None else (None, f"it uses {reason}")


def stock_configuration(cfg) -> Namespace:
    """A stock model's configuration with every option, as fairseq completes it before it builds the model."""
    name = getattr(cfg, "_name", None) or getattr(cfg, "arch", None)
    if name in MODEL_DATACLASS_REGISTRY and isinstance(cfg, DictConfig):
        # An old checkpoint lacks options that came later, and may have some that went.
        cfg = merge_with_parent(MODEL_DATACLASS_REGISTRY[name](), cfg, remove_missing=True)
    args = Namespace(**vars(to_namespace(cfg)))
    if name not in MODEL_DATACLASS_REGISTRY and name in ARCH_CONFIG_REGISTRY:
        ARCH_CONFIG_REGISTRY[name](args)
    return args
