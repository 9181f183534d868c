"""How good hypotheses are: ROUGE of summaries, BLEU, METEOR and ROUGE-L of questions, and how sure that is."""

SEED = 1  # of the bootstrap
