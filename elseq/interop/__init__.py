"""Converts checkpoints from and to other programs."""

# Choices of elseq-convert, which needs no torch to read its options.
POOLED = ("mean", "first", "random")  # methods that need the model's tensors only
CALIBRATED = ("aligned", "fitted")  # and those that need calibration text
HEAD_METHODS = (*POOLED, *CALIBRATED)
NEIGHBOURS, SIMILAR = GROUPINGS = ("neighbours", "similar")
PLACES = {"encoder": "encoder self-attention", "decoder": "decoder self-attention", "cross": "cross-attention"}
QUANTIZATIONS = (
    "int8", "int8_float32", "int8_float16", "int8_bfloat16", "int16", "float16", "bfloat16", "float32",
)  # fmt: skip
