"""Linear layers of few bits, and the kernels for them. Nothing here knows of attention or of fairseq."""
