# Sourced by docker/build, docker/run and docker/doctor: what they ask of the machine.

die() {
    echo "error: $1" >&2
    exit "${2:-1}"
}

# The engine's command: docker, or podman. A missing or unreachable engine stops with one line.
engine() {
    case ${RUNTIME:-docker} in
        docker | podman) ;;
        *) die "RUNTIME=$RUNTIME: must be docker, podman or local" 2 ;;
    esac
    local engine=${RUNTIME:-docker}
    command -v "$engine" > /dev/null ||
        die "$engine is not installed: install it, or run in this environment with RUNTIME=local"
    "$engine" version > /dev/null 2>&1 ||
        die "$engine does not answer: start its daemon (systemctl start $engine) or check that you may use it, or RUNTIME=local"
    echo "$engine"
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
