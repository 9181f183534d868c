"""The tables of the EL-attention paper, 2105.04779, measured: elseq-benchmark el-attention."""
