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

# The python that a program written in it names in its first line; nothing for a wrapper in shell, or where there is no such one.
python_of() {  # PROGRAM
    sed -n '1s/^#!\(.*\/[^/ ]*python[0-9.]*\)$/\1/p;q' "$(command -v "$1" || echo /dev/null)"
}

# What a job will read of params.yaml, a line a key, by the first python here that can read it; exit code 3 if none can.
params() {  # KEY... [-- ARGUMENTS]
    local python status
    for python in "${PYTHON:-}" .venv/bin/python python3 python "$(python_of dvc)"; do
        if [ -n "$python" ] && command -v "$python" > /dev/null; then
            status=0
            "$python" docker/param.py "$@" || status=$?
            [ $status = 3 ] || return $status
        fi
    done
    return 3
}

# The same; where no python here can read YAML, the image's does, if there is one yet.
params_by_any() {  # RUNTIME IMAGE KEY... [-- ARGUMENTS]
    local status=0
    params "${@:3}" || status=$?
    [ $status = 3 ] && [ -n "$1" ] || return $status
    "$1" run --rm --network none --cap-drop ALL --security-opt no-new-privileges --security-opt label=disable \
        --volume "$PWD/docker/param.py:/repo/docker/param.py:ro" --volume "$PWD/params.yaml:/repo/params.yaml:ro" \
        --workdir /repo --entrypoint python "$2" docker/param.py "${@:3}"
}

has_gpu() {
    nvidia-smi --list-gpus 2> /dev/null | grep -q GPU
}

# Whether a job has the network: it fetches, asks or pushes.
networked() {  # JOB
    case $1 in
        base | tasks | overlap-pairs | distill | publish) ;;
        *) return 1 ;;
    esac
}

needs_gpu() {  # JOB
    case $1 in
        sft | grade | grpo | sample | generate) ;;
        *) return 1 ;;
    esac
}

# Whether a job is to have cards of its own. `gguf` uses one where there is one.
wants_cards() {  # IMAGE JOB
    { needs_gpu "$2" || [ "$2" = gguf ]; } && [ "$1" != cpu ] && [ "${CARDS:-own}" = own ] && has_gpu
}

# How many processes a job has, each with a card of its own: by its params, or by SHARDS.
ranks() {  # RUNTIME IMAGE JOB [ARGUMENTS]; no runtime where there is no image yet
    local found=${SHARDS:-1} status=0
    case $3 in
        sft | grpo)
            found=$(params_by_any "$1" "$2" "$3.processes" -- "${@:4}") || status=$?
            [ $status != 3 ] || die "no python here can read params.yaml: install one with DVC (make install)"
            [ $status = 0 ] || exit $status
            ;;
        sample | grade) ;;
        *) found=1 ;;
    esac
    echo "${found:-1}"
}

# How many cards a job has on each of its MACHINES: one a process, and one more where it samples a step ahead.
cards() {  # RUNTIME IMAGE MACHINES JOB [ARGUMENTS]
    local each ahead=
    each=$(ranks "$1" "$2" "${@:4}") || exit
    [ "$4" != grpo ] || ahead=$(params_by_any "$1" "$2" grpo.staleness -- "${@:5}") || exit
    each=$((each / $3))
    [ "$ahead" != 1 ] || each=$((each + 1))
    echo $each
}

# Among how many machines the processes of a job are divided: NODES, or 1 for a job that has one process.
machines() {  # JOB [ARGUMENTS]
    local nodes=${NODES:-1} several=1
    [[ $nodes =~ ^[1-9][0-9]{0,3}$ ]] || die "NODES=$nodes: must be a number of machines" 2
    if [ "$nodes" != 1 ] && [[ $1 =~ ^(sft|grpo)$ ]]; then several=$(ranks "" "" "$@") || exit; fi
    [ "$several" != 1 ] || nodes=1
    [ $((several % nodes)) = 0 ] || die "NODES=$nodes: $1.processes: $several cannot be divided evenly among them" 2
    # Their ranks talk over the machines' network, which a container then shares. What a model wrote is kept from it by
    # the sandbox alone: by seccomp, which refuses it any connection.
    [ "$nodes" = 1 ] || [[ " $(params sandbox.require -- "${@:2}") " = *" seccomp "* ]] ||
        die "NODES=$nodes: sandbox.require must name seccomp, which keeps programs from the machines' network" 2
    echo "$nodes"
}

# Takes COUNT cards that no other job has, of those that CUDA_VISIBLE_DEVICES names or else of all, and sets it to them;
# waits while there are too few. What says that a card is taken is a lock on a file, which ends with the processes that
# hold the file open, however they end: this shell and what it starts.
take_cards() {  # COUNT
    local known card file descriptor waited= folder=${CARD_LOCKS:-/tmp}
    local -a all mine held
    known=$(nvidia-smi ${CUDA_VISIBLE_DEVICES:+--id="$CUDA_VISIBLE_DEVICES"} --query-gpu=index --format=csv,noheader) ||
        die "CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-}: nvidia-smi knows no such cards; CARDS=given takes it as it is"
    mapfile -t all <<< "$known"
    [ "$1" -le ${#all[@]} ] || die "$1 cards are wanted, one a process (and one for grpo.staleness), and there are ${#all[@]} here"
    while :; do
        mine=() held=()
        for card in "${all[@]}"; do
            file=$folder/jobs-card-$card.lock
            # Whoever is first makes it, for everybody to open: a lock needs no right to write.
            [ -e "$file" ] || (umask 022 && : >> "$file") || die "$file: cannot be made, and guards a card (CARD_LOCKS)"
            exec {descriptor}< "$file"
            if flock --nonblock "$descriptor"; then
                mine+=("$card") held+=("$descriptor")
                [ ${#mine[@]} -lt "$1" ] || break 2
            else
                exec {descriptor}<&-
            fi
        done
        for descriptor in "${held[@]}"; do exec {descriptor}<&-; done  # two that wait for each other's would wait for ever
        [ -n "$waited" ] || echo "waiting for $1 free cards of ${all[*]}: other jobs have them" >&2
        waited=yes
        sleep 1
    done
    export CUDA_DEVICE_ORDER=PCI_BUS_ID  # in which nvidia-smi counts
    CUDA_VISIBLE_DEVICES=$(IFS=,; echo "${mine[*]}")
    export CUDA_VISIBLE_DEVICES
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
