"""The names of the files of a model: of fairseq, of Hugging Face's transformers, and of subword vocabularies."""

DICTIONARIES = "dict*.txt"
ENCODER_JSON, VOCAB_BPE = "encoder.json", "vocab.bpe"  # GPT-2's byte-level BPE, as fairseq has it
CODES = ("bpecodes", "bpe.codes", "codes", "code", "codes.bpe")

TOKENIZER_JSON, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
ADDED_TOKENS, SPECIAL_TOKENS_MAP = "added_tokens.json", "special_tokens_map.json"
VOCAB_JSON, MERGES_TXT = "vocab.json", "merges.txt"
TARGET_VOCAB_JSON = "target_vocab.json"
SENTENCEPIECE_BPE_MODEL, SOURCE_SPM, TARGET_SPM = "sentencepiece.bpe.model", "source.spm", "target.spm"
FAIRSEQ_SYMBOLS = "fairseq_symbols.json"  # elseq's own, beside the tokenizer of a converted model

SENTENCEPIECE_MODELS = "*.model"
SUBWORDS = (
    TOKENIZER_JSON, FAIRSEQ_SYMBOLS, ENCODER_JSON, VOCAB_BPE, SENTENCEPIECE_MODELS, "*.spm", f"*{VOCAB_JSON}",
)  # fmt: skip
# What is read in a folder: checkpoints, dictionaries, subword vocabularies, Hugging Face's models.
READ_OF_FOLDERS = (
    DICTIONARIES, *SUBWORDS, *CODES, "*.bpe", "*codes*", "*.bin", "*.idx", "*.safetensors", "*.index.json",
    MERGES_TXT, "vocab.txt", "config.json", "generation_config.json",
    TOKENIZER_CONFIG, ADDED_TOKENS, SPECIAL_TOKENS_MAP,
)  # fmt: skip
