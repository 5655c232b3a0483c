#!/bin/sh
# All attacks again without any privilege: a container without network, capabilities or root, over this machine's own
# files (read-only, with a throw-away layer on top). ENGINE needs --rootfs, so podman; PYTHON must be readable for uid 1000.
#   PYTHON=/usr/bin/python3.11 tests/attacks/in_container.sh
set -eu
cd "$(dirname "$0")/../.."
site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
exec "${ENGINE:-podman}" run --rm --user 1000 --network none --cap-drop ALL --security-opt no-new-privileges \
    --ulimit nofile=1024:1024 --ulimit nproc=1000:1000 --workdir "$PWD" --env PYTHONPATH="$PWD:$site" --env HOME=/tmp \
    --rootfs /:O "${PYTHON:-/usr/bin/python3}" -m pytest -p no:cacheprovider tests/attacks "$@"
