"""What the logs of fairseq's commands say, as tables and curves: `python -m elseq.reports.NAME --help`."""
