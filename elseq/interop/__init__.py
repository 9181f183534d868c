"""Checkpoints of others: what becomes an elseq model, and how."""
