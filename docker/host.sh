# Sourced by docker/build, docker/run and docker/doctor: what they ask of the machine.

die() {
    echo "error: $1" >&2
    exit "${2:-1}"
}

# The container runtime's command: docker, or podman. A missing or unreachable one stops with one line.
runtime() {
    case ${RUNTIME:-docker} in
        docker | podman) ;;
        *) die "RUNTIME=$RUNTIME: must be docker, podman or local" 2 ;;
    esac
    local runtime=${RUNTIME:-docker}
    command -v "$runtime" > /dev/null ||
        die "$runtime is not installed: install Docker Engine, or podman for RUNTIME=podman; RUNTIME=local runs without a container"
    "$runtime" version > /dev/null 2>&1 ||
        die "$runtime does not answer: start its daemon (systemctl start $runtime) or check that you may use it, or RUNTIME=local"
    [ "$runtime" = podman ] || [[ $("$runtime" --version 2> /dev/null) != *podman* ]] ||
        die "docker is podman under another name here: say RUNTIME=podman"
    echo "$runtime"
}

# What the runtime makes of user ids: `rootless` or `remapped` (userns-remap) for docker, `keep-id` for a rootless podman
# (after its option), `no` where an id in a container is that id here.
confined() {  # RUNTIME
    if [ "$1" = podman ]; then
        if [ "$(id -u)" = 0 ]; then echo no; else echo keep-id; fi
        return
    fi
    case $("$1" info --format '{{.SecurityOptions}}' 2> /dev/null) in
        *name=rootless*) echo rootless ;;
        *name=userns*) echo remapped ;;
        *) echo no ;;
    esac
}

# Where a container finds this machine: what the runtime makes of `host-gateway`, or an address of this machine where it
# would make nothing of it (Podman before 4.7), or another machine of it (a rootless Docker's own network).
gateway() {  # RUNTIME CONFINED
    local version=
    [ "$1" = docker ] || version=$("$1" version --format '{{.Client.Version}}' 2> /dev/null || true)
    if [ "$2" = rootless ] || { [ -n "$version" ] && ! printf '4.7\n%s\n' "$version" | sort --version-sort --check=quiet; }; then
        hostname -I | tr ' ' '\n' | grep --max-count 1 '[.]' || true
    else
        echo host-gateway
    fi
}

# Whether the runtime holds a container to a number of processes; without root it needs cgroups that it was given.
limits_processes() {  # RUNTIME
    local told
    if [ "$1" = podman ]; then
        told=$(podman info --format '{{.Host.CgroupControllers}}' 2> /dev/null || true)
        [ -z "$told" ] || [[ $told = *pids* ]]
    else
        [ "$("$1" info --format '{{.PidsLimit}}' 2> /dev/null || true)" != false ]
    fi
}

# The Hugging Face cache's absolute path, found as huggingface_hub does: ~ is the home folder, and a relative path counts
# from where the caller stands.
hf_home() {  # FOLDER
    [ -n "${HF_HOME:-}${XDG_CACHE_HOME:-}${HOME:-}" ] || die "neither HF_HOME nor HOME is set: where is the Hub's cache?"
    local cache=${HF_HOME:-${XDG_CACHE_HOME:-${HOME:-}/.cache}/huggingface}
    case $cache in
        "~" | "~/"*) cache=$HOME${cache#"~"} ;;
        /*) ;;
        *) cache=$1/$cache ;;
    esac
    realpath --canonicalize-missing -- "$cache"
}

is_loopback() {  # URL
    local host=${1#*://}
    host=${host%%[/?#]*} host=${host##*@}
    case ${host,,} in
        "[::1]"* | "[::]"*) return 0 ;;
    esac
    host=${host%%:*}
    case ${host,,} in
        localhost | *.localhost | 127.* | 0.0.0.0) return 0 ;;
        *) return 1 ;;
    esac
}

# What a job will read of params.yaml, a line a key, by the first python here that can read it; exit code 3 if none can.
params() {  # KEY... [-- ARGUMENTS]
    local python status dvc
    dvc=$(command -v dvc) || dvc=/dev/null
    for python in "${PYTHON:-}" .venv/bin/python python3 python "$(sed -n '1s/^#!\([^ ]*\).*/\1/p;q' "$dvc" 2> /dev/null)"; do
        if [ -n "$python" ] && command -v "$python" > /dev/null; then
            status=0
            "$python" docker/param.py "$@" || status=$?
            [ $status = 3 ] || return $status
        fi
    done
    return 3
}

# The same; where no python here can read YAML, the image's does.
params_by_any() {  # RUNTIME IMAGE KEY... [-- ARGUMENTS]
    local status=0
    params "${@:3}" || status=$?
    [ $status = 3 ] || return $status
    "$1" run --rm --network none --cap-drop ALL --security-opt no-new-privileges --security-opt label=disable \
        --volume "$PWD/docker/param.py:/repo/docker/param.py:ro" --volume "$PWD/params.yaml:/repo/params.yaml:ro" \
        --workdir /repo --entrypoint python "$2" docker/param.py "${@:3}"
}

has_gpu() {
    nvidia-smi --list-gpus 2> /dev/null | grep -q GPU
}

free_gib() {  # FOLDER
    df --output=avail --block-size=1G "$1" | tail -1 | tr -d ' '
}

memory_gib() {
    awk '/^MemAvailable/ { print int($2 / 1048576) }' /proc/meminfo
}

# What a container runs as: the caller; for root, the owner of the repository, so that no root-owned file is left.
user() {
    if [ "$(id -u)" = 0 ]; then stat --format=%u:%g .; else echo "$(id -u):$(id -g)"; fi
}
