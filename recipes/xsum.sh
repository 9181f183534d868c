#!/usr/bin/env bash
# XSum: an article in, its summary of one sentence out. From the public files to ROUGE and times.
#
# Usage: recipes/xsum.sh [--from STAGE] [--to STAGE] [--dry-run] [--fresh] [--help]    (docs/recipes/xsum.md)
set -euo pipefail
corpus=xsum folder=xsum models="transformer bart_base bart_large"
. "$(dirname "$0")/summarization.sh"

# BART's (1910.13461), as fairseq has them.
beam=6 lenpen=1 min_len=10 max_len=60 no_repeat_ngram=3
bart_updates=15000 bart_update_freq=2

run_stages "$@"; exit # on one line: a change of this file while it runs does no harm
