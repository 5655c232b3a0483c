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
for program in slurmctld slurmd srun munged ip; do
    ! command -v $program > /dev/null || continue
    # Nothing is to start by itself: the daemons of this test are its own.
    policy=/usr/sbin/policy-rc.d
    if [ -e $policy ]; then policy=; else
        trap 'rm -f $policy' EXIT
        printf '#!/bin/sh\nexit 101\n' > $policy
        chmod +x $policy
    fi
    apt-get update -qq && apt-get install -yqq --no-install-recommends slurmctld slurmd slurm-client munge iproute2 \
        > /dev/null || skip "slurmctld, slurmd and munge cannot be installed"
    break
done
unshare --mount --net --pid --fork true 2> /dev/null || skip "no namespaces can be made here"
unshare --net sh -c 'ip link add slurm0 type bridge && ip link add n1 type veth' 2> /dev/null ||
    skip "the kernel makes no bridge or no veth pair here"

# /run is hidden, so that the names of network namespaces are not the machine's; and /tmp, where another sandbox would take
# the folders of processes that it does not see for left behind. The shell stays: it is process 1 in there, and reaps what
# others leave to it.
export JOBS_SLURM=1 OMP_NUM_THREADS=1
tmp=$(mktemp -d /tmp/slurm.XXXXXX)
trap 'rm -rf "$tmp" ${policy:+"$policy"}' EXIT
chmod 1777 "$tmp"
setpriv --pdeathsig KILL unshare --mount --net --pid --fork --mount-proc --kill-child bash -c '
    mount -t tmpfs tmpfs /run && mount --bind "$1" /tmp && "${@:2}"
    exit $?' bash "$tmp" .venv/bin/python -m pytest -p no:cacheprovider -rA "${@:-tests/slurm}"
