"""The speed table of the multi-query attention paper, 1911.02150, measured: elseq-benchmark multi-query."""
