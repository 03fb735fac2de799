#!/usr/bin/env bash
# From 20 frames of a crystal to a potential that survives melting: all of the example, in the working folder.
#   run.sh [--small]
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cp "$here"/{learn.toml,frames.py,survive.py} .
limit=0
if [ "${1:-}" = --small ]; then # as the tests run it: 8 atoms, 0.1 ps, two generations
    sed -i 's/^time = .*/time = 0.1/; s/^generations = .*/generations = 2/; s/^every = .*/every = 5/' learn.toml
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
step python survive.py learning "$@"
