#!/bin/sh
# lanes.sh pull_request|main_line|deploy [REF...]: what CI does to processors; without refs, to all of them.
# Called in the root of a checkout, with our three commands on the PATH, and Docker at hand. See README.md here.
set -eu

# Build for the platform of this machine, start, run without keys or network.
pull_request() {
    processorctl validate
    platform=$(docker version --format '{{.Server.Os}}/{{.Server.Arch}}')
    trap 'localctl stop --all --quiet' EXIT
    for ref in "$@"; do
        processorctl build --ref "$ref" --platforms "$platform"
        localctl start --ref "$ref" --allow-missing-secrets
        # Where terraform/ lets what was stored expire, should STORAGE_BACKEND be s3.
        localctl run --ref "$ref" --mode mock --write-prefix '/artifacts/mock/{ref_slug}/{execution_id}/' --json
        localctl stop --ref "$ref"
    done
}

# Build for all platforms, push, pin what was pushed, commit the pins to GIT_BRANCH.
main_line() {
    for ref in "$@"; do
        processorctl build --ref "$ref"
        pushed=$(processorctl push --ref "$ref" --json)
        echo "$pushed" | python3 -c 'import json, sys; print(*json.load(sys.stdin)["pin"], sep="\n")' | sh -eu
    done
    git add registry
    if git diff --cached --quiet; then
        echo "the pins are as they were" >&2
        return
    fi
    git commit --quiet --message "Pin $*"
    git pull --quiet --rebase origin "$GIT_BRANCH" # what else was merged meanwhile
    git push --quiet origin "HEAD:$GIT_BRANCH"
}

# Of what was pinned, nothing else: what the registry has under the digests is what is started. DEPLOY_TO is the Modal
# environment; without it nothing is started.
deploy() {
    for ref in "$@"; do
        processorctl verify --ref "$ref"
        if [ -n "${DEPLOY_TO:-}" ]; then
            shown=$(processorctl show --ref "$ref" --json)
            oci=$(echo "$shown" | python3 -c 'import json, sys; print(json.load(sys.stdin)["image"]["pins"]["linux/amd64"] or "")')
            if [ -z "$oci" ]; then
                echo "$ref has no pin for amd64: it is not deployed" >&2
                continue
            fi
            modalctl start --ref "$ref" --env "$DEPLOY_TO" --oci "$oci"
            modalctl sync-secrets --ref "$ref" --env "$DEPLOY_TO" --fail-on-missing
            modalctl verify-digest --ref "$ref" --env "$DEPLOY_TO" --oci "$oci"
        fi
    done
}

case ${1:-} in
    pull_request | main_line | deploy) lane=$1 && shift ;;
    *) echo "usage: lanes.sh pull_request|main_line|deploy [REF...]" >&2 && exit 2 ;;
esac
if [ $# -eq 0 ]; then
    listed=$(processorctl list --json)
    # shellcheck disable=SC2046
    set -- $(echo "$listed" | python3 -c 'import json, sys; print(*(each["ref"] for each in json.load(sys.stdin)["processors"]))')
fi
"$lane" "$@"
