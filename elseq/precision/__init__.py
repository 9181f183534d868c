"""Linear layers in few bits. Nothing here knows of attention or of fairseq."""
