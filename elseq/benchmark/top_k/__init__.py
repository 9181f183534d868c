"""Memory and time of top-k attention, 2106.06899, measured: elseq-benchmark top-k."""
