#!/usr/bin/env bash
# From 16 frames of a cold crystal to a potential that holds 1500 K, labelled by DFT: all of it, in the working folder.
#   run.sh [--small]
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cp "$here"/{learn.toml,frames.py,hold.py} .
limit=0
if [ "${1:-}" = --small ]; then # as the tests run it: Γ alone, 0.1 ps, two generations
    sed -i 's/^time = .*/time = 0.1/; s/^generations = .*/generations = 2/; s/^every = .*/every = 5/' learn.toml
    sed -i 's/^kspacing = .*/kspacing = 2.0/; s/^budget = .*/budget = 2/; s/^seeds = .*/seeds = 1/' learn.toml
    limit=3 # the exit code of a loop that ends at a limit
fi
step() {
    printf '\n$ %s\n' "$*"
    "$@"
}

step python frames.py "$@"
for name in crystal held_out; do
    step quests-md queue add $name.db ${name}_frames.xyz
    step quests-md label $name.db --calculator learn.toml --workers 2
    step quests-md queue export $name.db -o $name.xyz
done
step quests-md learn learn.toml || [ $? = $limit ]
step python hold.py learning "$@"
