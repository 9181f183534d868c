"""What elseq-benchmark does: the same decoding by several programs, each measured in a process of its own."""
