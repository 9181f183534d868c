"""Converts checkpoints from and to other programs."""

# Choices of elseq-convert, which needs no torch to read its options.
HEAD_METHODS = ("mean", "first", "random")
PLACES = {"encoder": "encoder self-attention", "decoder": "decoder self-attention", "cross": "cross-attention"}
QUANTIZATIONS = (
    "int8", "int8_float32", "int8_float16", "int8_bfloat16", "int16", "float16", "bfloat16", "float32",
)  # fmt: skip
