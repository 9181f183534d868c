"""elseq-generate: decodes text files line by line, in one process or several, without losing finished lines."""
