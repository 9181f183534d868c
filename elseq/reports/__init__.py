"""Reports: what logs of fairseq and measurements say, as tables."""
