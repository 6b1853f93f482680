#!/usr/bin/env bash
# Builds the container images: what `make images` runs. `images/build.sh gateway cli` builds these only.
#
# DOCKER        command of the engine: docker, podman …
# IMAGE_PREFIX  what the images' names begin with: carrel-, or registry.example/team/carrel-
# TAG           their tag
# BUILD_ARGS    more arguments for `docker build`, such as "--network host" or "--build-arg PYTHON_IMAGE=…"
# Of the environment, PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_TRUSTED_HOST, PIP_TIMEOUT and SOURCE_DATE_EPOCH reach the
# build where they are set, and so does SOURCE, the repository's address for the labels.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
docker=${DOCKER:-docker} prefix=${IMAGE_PREFIX:-carrel-} tag=${TAG:-dev}
names=("$@")
[ $# -gt 0 ] || names=(gateway execution agent-instance emitter bridge cli)

command -v "$docker" >/dev/null || {
    echo "images: there is no command $docker: install a container engine, or name yours with DOCKER=…" >&2
    exit 2
}
"$docker" info >/dev/null 2>&1 || {
    echo "images: no container engine answers to \`$docker info\`: start it, or give this user access to it" >&2
    exit 2
}

revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
git diff --quiet HEAD -- 2>/dev/null || revision+=-changed
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
arguments=(--build-arg "VERSION=$version" --build-arg "REVISION=$revision")
for name in SOURCE_DATE_EPOCH SOURCE PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST PIP_TIMEOUT; do
    [ -z "${!name:-}" ] || arguments+=(--build-arg "$name")
done
read -ra more <<<"${BUILD_ARGS:-}"

for name in "${names[@]}"; do
    began=$SECONDS
    "$docker" build --quiet --target "$name" --tag "$prefix$name:$tag" "${arguments[@]}" "${more[@]}" . >/dev/null
    size=$("$docker" image inspect --format '{{.Size}}' "$prefix$name:$tag")
    printf '%-40s %5d MB  %4d s\n' "$prefix$name:$tag" $((size / 1000000)) $((SECONDS - began))
done
