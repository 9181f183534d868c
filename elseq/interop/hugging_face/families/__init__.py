"""The registry of the families of Hugging Face's models that can be converted.

To add one, write a `Family` in a module or folder of its own here, and put it into `FAMILIES`.
"""

from elseq.interop.hugging_face.families.bart import BART
from elseq.interop.hugging_face.families.blenderbot import BLENDERBOT
from elseq.interop.hugging_face.families.blenderbot_small import BLENDERBOT_SMALL
from elseq.interop.hugging_face.families.family import Family
from elseq.interop.hugging_face.families.gpt2 import GPT2
from elseq.interop.hugging_face.families.marian import MARIAN
from elseq.interop.hugging_face.families.multilingual import M2M100, MBART
from elseq.interop.hugging_face.families.pegasus import PEGASUS

# By the model_type in config.json. A fairseq model becomes the first of these that it can be.
_ALL = (BART, GPT2, MBART, M2M100, MARIAN, PEGASUS, BLENDERBOT, BLENDERBOT_SMALL)
FAMILIES: dict[str, Family] = {family.name: family for family in _ALL}
