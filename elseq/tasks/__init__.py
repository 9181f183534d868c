"""fairseq tasks that decode stock and elseq checkpoints with elseq."""

from elseq.tasks.language_modeling import ElseqLanguageModelingTask
from elseq.tasks.multilingual import MULTILINGUAL_TASKS
from elseq.tasks.translation import ElseqTranslationTask

__all__ = ["MULTILINGUAL_TASKS", "ElseqLanguageModelingTask", "ElseqTranslationTask"]
