"""Sources longer than the encoder's positions, measured: elseq-benchmark long-input."""
