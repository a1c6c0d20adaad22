#!/bin/sh
# Amazon Office Products from its raw files to docs/results.md: import, profiles, training, ranking, record.
#   TRSR_REAL_DATA=/path/to/data runs/reproduce_amazon.sh           # 2 CPU cores: some hours
#   TRSR_REAL_DATA=/path/to/data FULL=1 runs/reproduce_amazon.sh    # the same on a GPU: all users, three epochs
#   SMOKE=1 RESULTS=/tmp runs/reproduce_amazon.sh                   # the same steps on synthetic users
# It can be killed at any moment and started again; settings.sh says what else can be set.
set -eu
cd "$(dirname "$0")/.."
experiment=amazon_office_hierarchical
domain=products
other_method=recurrent
. runs/settings.sh
reproduce "$@"
