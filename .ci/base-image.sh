#!/bin/sh
# base-image.sh [TAG]: a stand-in for python:3.13-slim, for linux/amd64 and linux/arm64, made from Debian packages.
#
# For machines that reach a Debian mirror and no image registry. Packages are unpacked and no maintainer script
# runs, so the foreign platform needs no emulation. Does nothing when TAG is in its registry already.
# It is Debian's own Python: its site folder is /usr/local/lib/python3.13/dist-packages, and it has no apt.
set -eu

TAG=${1:-localhost:5000/base/python:3.13-slim}
SUITE=trixie # the Debian release that has Python 3.13
PACKAGES=base-files,base-passwd,dash,bash,coreutils,sed,grep,findutils,tar,gzip,libc-bin,debianutils,netbase,tzdata
PACKAGES=$PACKAGES,ca-certificates,libstdc++6,python3.13,python3.13-venv

if docker buildx imagetools inspect "$TAG" >/dev/null 2>&1; then
    echo "base-image: $TAG is there" >&2
    exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM

# The mirror that this machine's own apt uses; mirrors carry every release.
mirror=$(apt-get indextargets --format '$(REPO_URI) $(COMPONENT)' 'Created-By: Packages' | awk '$2 == "main" {print $1; exit}')
[ -n "$mirror" ] || { echo "base-image: apt has no source with the component main" >&2; exit 1; }

unpack() { # unpack ARCHITECTURE FOLDER
    mmdebstrap --quiet --variant=extract --architectures="$1" --skip=check/qemu --include="$PACKAGES" \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/zoneinfo/right/*' \
        "$SUITE" "$2" "$mirror"
}

settle() { # settle FOLDER: what the maintainer scripts would have done, as far as a container needs it
    cp "$1/usr/share/base-passwd/passwd.master" "$1/etc/passwd"
    cp "$1/usr/share/base-passwd/group.master" "$1/etc/group"
    mkdir -p "$1/etc/ssl/certs" "$1/root" "$1/tmp" "$1/usr/local/bin"
    chmod 1777 "$1/tmp"
    find "$1/usr/share/ca-certificates" -name '*.crt' | sort | xargs cat >"$1/etc/ssl/certs/ca-certificates.crt"
    rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/* "$1/usr/share/doc" "$1/usr/share/man" "$1/usr/share/locale"
}

python() { # python FOLDER: `python` and `pip`, as the official image has them
    for name in python python3; do ln -sf /usr/bin/python3.13 "$1/usr/local/bin/$name"; done
    rm -f "$1/usr/lib/python3.13/EXTERNALLY-MANAGED"
    site=$1/usr/local/lib/python3.13/dist-packages
    mkdir -p "$site"
    python3 -m zipfile -e "$1"/usr/share/python-wheels/pip-*.whl "$site"
    printf '#!/usr/bin/python3.13\nimport sys\nfrom pip._internal.cli.main import main\nsys.exit(main())\n' \
        >"$1/usr/local/bin/pip"
    chmod 755 "$1/usr/local/bin/pip"
    ln -sf pip "$1/usr/local/bin/pip3"
}

root() { # root ARCHITECTURE: its root file system as a tar, with times and owners that are the same every day
    folder=$work/root-$1
    unpack "$1" "$folder"
    settle "$folder"
    python "$folder"
    tar -C "$folder" --sort=name --mtime=@0 --numeric-owner -cf "$work/root-$1.tar" .
    rm -rf "$folder"
}

root amd64 &
amd64=$!
root arm64
wait "$amd64"
cat >"$work/Dockerfile" <<'DOCKERFILE'
FROM scratch
ARG TARGETARCH
ADD root-$TARGETARCH.tar /
ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8
CMD ["python3"]
DOCKERFILE
docker buildx build --quiet --provenance=false --platform linux/amd64,linux/arm64 --tag "$TAG" --push "$work" >/dev/null
echo "base-image: $TAG made" >&2
