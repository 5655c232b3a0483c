#!/usr/bin/env bash
# tests/containers/run.sh: proves the containers on a machine without any: `make check-containers` and .ci/run call it.
#
# Starts a docker daemon of its own, builds the `cpu` and `gguf` images on a stand-in base, attacks the launcher with
# them, again by a rootless podman and a rootless docker, and the sandbox in one of them, runs the whole smoke pipeline in
# them as a user who is not root, and compares every hash in its dvc.lock with those of a local run (.smoke/, made first if
# it is missing). Where the machine cannot run containers it says so and exits 0. `run.sh train` builds `train` on the
# stand-in instead, importing every package, and stops. Needs root; leaves nothing behind but packages installed by apt.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH=/usr/bin:$PATH  # the distribution's docker client, which matches its daemon

skip() {
    echo "SKIPPED: containers: $1" >&2
    exit 0
}

step() {
    echo "== $1 ($((SECONDS / 60)) min $((SECONDS % 60)) s)" >&2
}

[ "$(id -u)" = 0 ] || skip "starting a daemon needs root"
if ! command -v dockerd debootstrap > /dev/null; then
    step "installing docker.io and debootstrap"
    apt-get update -qq && apt-get install -yqq --no-install-recommends docker.io debootstrap > /dev/null ||
        skip "docker.io and debootstrap cannot be installed"
fi

free=$(df --output=avail --block-size=1G /tmp | tail -1 | tr -d ' ')
[ "$free" -ge 25 ] || skip "$free GiB are free under /tmp, and the images want 25"

work=$(mktemp -d /tmp/containers.XXXXXX)
chmod 755 "$work"
cleanup() {
    if [ -n "${daemon:-}" ]; then
        docker ps --quiet --all 2> /dev/null | xargs --no-run-if-empty docker rm --force > /dev/null 2>&1 || true
        kill "$daemon" 2> /dev/null && wait "$daemon" 2> /dev/null || true
    fi
    umount "$work"/exec/netns/* 2> /dev/null || true  # of containers on the host's network, left by the daemon
    rm -rf "$work" 2> /dev/null || { sleep 2; rm -rf "$work" || true; }
}
trap cleanup EXIT

step "starting a daemon"
export DOCKER_HOST=unix://$work/docker.sock
dockerd --host "$DOCKER_HOST" --data-root "$work/data" --exec-root "$work/exec" --pidfile "$work/pid" \
    > "$work/dockerd.log" 2>&1 &
daemon=$!
for _ in $(seq 60); do
    docker info > /dev/null 2>&1 && break
    kill -0 "$daemon" 2> /dev/null || break
    sleep 1
done
docker info > /dev/null 2>&1 || skip "the daemon does not start: $(tail -1 "$work/dockerd.log")"

step "making the stand-in base"
export JOBS_BASE=standin:bookworm JOBS_SNAPSHOT="" JOBS_BUILD_NETWORK=host
[ ! -d "${PIP_FIND_LINKS:-}" ] || export JOBS_TORCH_LINKS=/wheels
docker/standin "$JOBS_BASE" > "$work/standin.log" 2>&1 || {
    ! grep '^E: ' "$work/standin.log" >&2 || skip "debootstrap cannot make a base on this machine"
    tail -5 "$work/standin.log" >&2
    exit 1
}
docker run --rm --network host "$JOBS_BASE" python3 -c \
    "import urllib.request as u; u.urlopen('https://pypi.org/simple/uv/', timeout=60)" > "$work/probe.log" 2>&1 ||
    skip "a container reaches no package index: $(tail -1 "$work/probe.log")"

images="cpu gguf"
[ "${1:-}" != train ] || images=train
for image in $images; do
    step "building $image"
    docker/build "$image" > /dev/null 2> "$work/build.log" || { tail -40 "$work/build.log" >&2; exit 1; }
    tail -1 "$work/build.log" >&2
done

if [ "$images" = train ]; then
    grep -E ' (torch|vllm) [0-9]' "$work/build.log" >&2  # what the build's last step imported
    exit 0
fi

step "attacking the launcher"
JOBS_CONTAINERS=1 .venv/bin/python -m pytest -q tests/containers

# Jobs of a user who is not root need a python that such a user can read.
version=$(.venv/bin/python -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
python=$PWD/.venv/bin/python
# By env: what setpriv itself starts, it still finds by root's right to look into every folder.
if ! setpriv --reuid 1000 --regid 1000 --clear-groups env "$python" -c "" 2> /dev/null; then
    "/usr/bin/$version" -m venv --without-pip "$work/venv"
    echo "$PWD/.venv/lib/$version/site-packages" > "$work/venv/lib/$version/site-packages/repository.pth"
    python=$work/venv/bin/python
fi

docker save --output "$work/images.tar" "$(docker/build cpu)"
chmod 644 "$work/images.tar"
for runtime in podman docker; do
    step "attacking the launcher of a user who has a $runtime of his own"
    PYTHON=$python tests/containers/rootless.sh $runtime "$work/images.tar" "$work/$runtime"
done
rm "$work/images.tar"

step "attacking the sandbox in a container without rights"
docker run --rm --user 1000:1000 --network none --cap-drop ALL --security-opt no-new-privileges --volume "$PWD:/repo:ro" \
    --entrypoint python "$(docker/build cpu)" -m pytest -q -p no:cacheprovider tests/attacks

step "running the smoke pipeline in containers"
user=1000
git clone --quiet . "$work/repo"
mkdir "$work/home"
as_user() {
    setpriv --reuid $user --regid $user --clear-groups env HOME="$work/home" "$@"
}
chown -R $user:$user "$work/repo" "$work/home" "$work/docker.sock"
(cd "$work/repo" && as_user env RUNTIME=docker "$python" -m jobs smoke)

step "running the docker commands of docs/containers.md as they are written, on what that run made"
.venv/bin/python tests/containers/readme_commands.py docs/containers.md > "$work/readme.sh"
(cd "$work/repo/.smoke" && as_user bash "$work/readme.sh")
owned=$(find "$work/repo" ! -user $user | head -5)
[ -z "$owned" ] || { echo "files that are not the user's: $owned" >&2; exit 1; }
left=$(docker ps --all --quiet)
[ -z "$left" ] || { echo "containers left: $left" >&2; exit 1; }

if [ ! -f .smoke/dvc.lock ]; then
    step "running the smoke pipeline here"
    .venv/bin/python -m jobs smoke
fi
step "comparing the hashes of both runs"
.venv/bin/python tests/containers/compare_locks.py .smoke/dvc.lock "$work/repo/.smoke/dvc.lock"
step "done"
