#!/usr/bin/env bash
# tests/containers/rootless.sh RUNTIME IMAGES.tar FOLDER: the launcher's tests by a podman, or a docker, of a user's own.
#
# run.sh calls it as root, with images that are built. It makes a user (and removes it), whose images, clone of this
# repository and daemon lie in FOLDER. Where the machine cannot run such containers it says so and exits 0.
set -euo pipefail
cd "$(dirname "$0")/../.."
runtime=$1 images=$2 folder=$3
name=jobs-$runtime

skip() {
    echo "SKIPPED: a user's own $runtime: $1" >&2
    exit 0
}

packages=(uidmap slirp4netns fuse-overlayfs)
case $runtime in
    podman) packages+=(podman catatonit netavark aardvark-dns) ;;
    docker) packages+=(rootlesskit) ;;
esac
for package in "${packages[@]}"; do
    if ! dpkg --status "$package" > /dev/null 2>&1; then
        apt-get install -yqq --no-install-recommends "${packages[@]}" > /dev/null || skip "its packages cannot be installed"
        break
    fi
done
script=/usr/share/docker.io/contrib/dockerd-rootless.sh
[ "$runtime" != docker ] || [ -f $script ] || skip "there is no $script"

mkdir -p "$folder"/{home,run}
useradd --home-dir "$folder/home" --no-create-home --shell /bin/bash "$name"
user=$(id -u "$name")
cleanup() {
    if [ -n "${daemon:-}" ]; then kill "$daemon" 2> /dev/null && wait "$daemon" 2> /dev/null || true; fi
    # What is left of a user who is about to go: podman's pause process holds the user's namespace.
    for process in /proc/[0-9]*; do
        [ "$(stat --format=%u "$process" 2> /dev/null)" != "$user" ] || kill -KILL "${process#/proc/}" 2> /dev/null || true
    done
    sleep 1
    userdel "$name" || true
    [ -z "${mode:-}" ] || chmod "$mode" /dev/net/tun
}
trap cleanup EXIT
chown "$name:" "$folder" "$folder"/{home,run}
chmod 700 "$folder/run"
as_user() {
    setpriv --reuid "$user" --regid "$(id -g "$name")" --clear-groups env -u DOCKER_HOST HOME="$folder/home" USER="$name" \
        LOGNAME="$name" XDG_RUNTIME_DIR="$folder/run" PATH=/usr/bin:/usr/sbin:/bin:/sbin "$@"
}
as_user unshare --user --map-root-user true 2> /dev/null || skip "a user may make no namespace"
if ! as_user test -w /dev/net/tun; then  # as udev has it everywhere; a bare machine may not
    [ -e /dev/net/tun ] || skip "there is no /dev/net/tun, by which its containers reach a network"
    mode=$(stat --format=%a /dev/net/tun)
    chmod 666 /dev/net/tun
fi

if [ "$runtime" = docker ]; then
    as_user bash "$script" > "$folder/dockerd.log" 2>&1 &
    daemon=$! socket=unix://$folder/run/docker.sock
    for _ in $(seq 60); do
        as_user docker --host "$socket" info > /dev/null 2>&1 && break
        kill -0 "$daemon" 2> /dev/null || break
        sleep 1
    done
    as_user docker --host "$socket" info > /dev/null 2>&1 ||
        skip "its daemon does not start: $(tail -3 "$folder/dockerd.log" | tr '\n' ' ')"
    own=(env DOCKER_HOST="$socket")
else
    own=(env)
    mkdir -p "$folder/home/.config/containers"  # some versions take `vfs`, which copies an image for every container
    printf '[storage]\ndriver = "overlay"\n' > "$folder/home/.config/containers/storage.conf"
    chown -R "$name:" "$folder/home"
    as_user podman info > /dev/null 2> "$folder/podman.log" || skip "it does not work: $(tail -1 "$folder/podman.log")"
fi
as_user "${own[@]}" "$runtime" load --quiet < "$images" > /dev/null

git clone --quiet . "$folder/repo"
chown -R "$name:" "$folder/repo"
cd "$folder/repo"
as_user "${own[@]}" RUNTIME="$runtime" JOBS_CONTAINERS=1 OMP_NUM_THREADS=1 \
    "${PYTHON:-python3}" -m pytest -q -rs -p no:cacheprovider --basetemp "$folder/tmp" tests/containers
