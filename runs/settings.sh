# Read by the experiments in this folder: turns their environment variables into settings of `trsr run`.
#   OUT       where the run is made                        (out/EXPERIMENT)
#   MACHINE   what stands beside the numbers               (processor and number of cores)
#   RESULTS   where the record goes                        (benchmarks/results, and the pages are made anew)
#   PYTHON    the interpreter that has trsr                (python)
#   MORE=1    also the other way to summarize, and 0, 1 and 5 recent items
#   FULL=1    all users and three epochs: for a GPU; without it, the twin for 2 CPU cores
#   SMOKE=1   the same steps on a few synthetic users, in a minute; the numbers mean nothing
#   MODEL     another language model
python=${PYTHON:-python}
out=${OUT:-out/$experiment}
machine=${MACHINE:-"$(uname -m), $(getconf _NPROCESSORS_ONLN) cores"}
results=${RESULTS:-benchmarks/results}

set --
if [ -n "${MORE:-}" ]; then
    set -- "$@" --set "variants.llm_$other_method={summary.method: $other_method}" \
        --set 'sweep={prompt.n_recent: [0, 1, 3, 5]}'
fi
if [ -n "${FULL:-}" ]; then
    set -- "$@" --set protocol.n_train=null --set train.epochs=3
fi
if [ -n "${MODEL:-}" ]; then
    set -- "$@" --set "recommender.model=$MODEL" --set "engine.model=$MODEL"
fi
if [ -n "${SMOKE:-}" ]; then
    users='n_users: 40, n_items: 200, mean_history: 12, min_history: 9, max_history: 14'
    negatives='{kind: uniform, n_train: 2, n_test: 5}'
    set -- "$@" --set "name=$experiment-smoke" \
        --set "data={kind: synthetic, domain: $domain, $users}" \
        --set "protocol={kind: sampled, min_history: 8, max_history: 13, n_train: 4, n_valid: 3, n_test: 6, negatives: $negatives}" \
        --set 'engine={kind: fake}' --set summary.fields=null --set summary.max_field_tokens=6 \
        --set 'prompt={n_recent: 2, max_field_tokens: 6, max_tokens: 320}' \
        --set 'rankers=[random, popularity, bm25, llm_zero_shot, llm_no_profile, llm_counted, llm]'
fi

# Runs an experiment to its end, or goes on where it was left, and records it.
reproduce() {
    "$python" -m trsr run "configs/$experiment.yaml" --out "$out" "$@"
    "$python" benchmarks/record.py "$out" --machine "$machine" --out "$results"
    if [ "$results" = benchmarks/results ]; then
        "$python" benchmarks/results_page.py
    fi
}
