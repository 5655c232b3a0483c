#!/usr/bin/env bash
# tests/slurm/run.sh [PYTEST ARGUMENTS]: stages as jobs of a real Slurm, on this machine alone; `make check-slurm` calls it.
#
# Installs Debian's slurm-wlm and munge if they are missing, and runs tests/slurm/test_slurm.py where it may break things:
# in namespaces of its own for processes, network and mounts, which end with it and take all that it started with them.
# Where the machine cannot do this it says so and exits 0. Needs root; leaves nothing behind but the packages.
set -euo pipefail
cd "$(dirname "$0")/../.."

skip() {
    echo "SKIPPED: slurm: $1" >&2
    exit 0
}

[ "$(id -u)" = 0 ] || skip "network namespaces need root"
if ! command -v slurmctld slurmd munged ip > /dev/null; then
    # Nothing is to start by itself: the daemons of this test are its own.
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
        chmod +x /usr/sbin/policy-rc.d
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    apt-get update -qq && apt-get install -yqq --no-install-recommends slurmctld slurmd slurm-client munge iproute2 \
        > /dev/null || skip "slurmctld, slurmd and munge cannot be installed"
fi
unshare --mount --net --pid --fork true 2> /dev/null || skip "no namespaces can be made here"

# /run is hidden, so that the names of network namespaces are not the machine's. The shell stays: it is process 1 in there,
# and reaps what others leave to it.
export JOBS_SLURM=1 OMP_NUM_THREADS=1
unshare --mount --net --pid --fork --mount-proc --kill-child bash -c 'mount -t tmpfs tmpfs /run; "$@"; exit $?' bash \
    .venv/bin/python -m pytest -p no:cacheprovider -rA "${@:-tests/slurm}"
