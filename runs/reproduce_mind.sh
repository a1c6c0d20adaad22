#!/bin/sh
# MIND from its raw files to docs/results.md: import, profiles, training, ranking, record.
#   TRSR_REAL_DATA=/path/to/data runs/reproduce_mind.sh           # 2 CPU cores: some hours
#   TRSR_REAL_DATA=/path/to/data FULL=1 runs/reproduce_mind.sh    # the same on a GPU: all users, three epochs
#   SMOKE=1 RESULTS=/tmp runs/reproduce_mind.sh                   # the same steps on synthetic users
# It can be killed at any moment and started again; settings.sh says what else can be set.
set -eu
cd "$(dirname "$0")/.."
experiment=mind_recurrent
domain=news
other_method=hierarchical
. runs/settings.sh
reproduce "$@"
