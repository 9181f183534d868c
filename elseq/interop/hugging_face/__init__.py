"""Models of Hugging Face's transformers as fairseq's, and back, by `families`. That library itself is not needed."""

import sys

# What --help says of elseq's own families without importing them, which needs torch.
_MODEL_CLASSES = {
    "BART": "BartForConditionalGeneration",
    "GPT-2": "GPT2LMHeadModel",
    "mBART": "MBartForConditionalGeneration",
    "M2M-100": "M2M100ForConditionalGeneration",
    "Marian": "MarianMTModel",
    "Pegasus": "PegasusForConditionalGeneration",
    "Blenderbot": "BlenderbotForConditionalGeneration",
    "Blenderbot-small": "BlenderbotSmallForConditionalGeneration",
}


def model_classes() -> dict[str, str]:
    """The classes of transformers that can be converted, by their names in sentences."""
    registry = sys.modules.get(f"{__name__}.families")
    if registry is None:
        return _MODEL_CLASSES
    return {family.title: family.model_class for family in registry.FAMILIES.values()}
