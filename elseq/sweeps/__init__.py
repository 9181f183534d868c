"""Sweeps with Hydra: the jobs of the benchmark and of generation, and one table and plot of all jobs of a sweep."""
