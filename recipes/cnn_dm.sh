#!/usr/bin/env bash
# CNN/DailyMail, version 3.0.0, not anonymized: an article in, its summary out. From the public files to ROUGE and times.
#
# Usage: recipes/cnn_dm.sh [--from STAGE] [--to STAGE] [--dry-run] [--fresh] [--help]    (docs/recipes/cnn_dm.md)
set -euo pipefail
corpus=cnn_dm folder=cnndm models="transformer bart_base bart_large"
. "$(dirname "$0")/summarization.sh"

# BART's (1910.13461), as fairseq has them.
beam=4 lenpen=2 min_len=55 max_len=140 no_repeat_ngram=3
bart_updates=20000 bart_update_freq=4

run_stages "$@"; exit # on one line: a change of this file while it runs does no harm
