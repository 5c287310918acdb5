"""What modalctl takes: the options of each subcommand, their help and examples."""

from typing import Any

from apps.processors.management.commands._base import Parser
from apps.processors.management.commands._running import REF_HELP, add_options, count, seconds

ENV_HELP = "dev, staging or main: the Modal environment"
OCI = "ghcr.io/org/image@sha256:abc..."


def add_subcommands(command: Any, parser: Parser) -> None:
    """Every subcommand, bound to the method of `command` that has its name."""
    subparsers = command.subparsers(parser)
    for each in (
        _add_start,
        _add_sync_secrets,
        _add_run,
        _add_stop,
        _add_status,
        _add_logs,
        _add_verify_digest,
        _add_history,
        _add_rollback,
        _add_outputs,
    ):
        each(command, subparsers)


def _add(command: Any, subparsers: Any, run: Any, *, help: str, examples: tuple[str, str]) -> Parser:
    """A subcommand about one ref in one environment."""
    added: Parser = command.subcommand(subparsers, run, help=help, examples=examples)
    added.add_argument("--ref", required=True, help=REF_HELP)
    added.add_argument("--env", required=True, choices=("dev", "staging", "main"), help=ENV_HELP)
    return added


def _add_start(command: Any, subparsers: Any) -> None:
    start = _add(
        command,
        subparsers,
        command.start,
        help="deploy an image by digest, and wait until it answers as that digest",
        examples=(
            f"GIT_BRANCH=feat/test GIT_USER=me {{prog}} start --ref llm/litellm@1 --env dev --oci {OCI}",
            f"{{prog}} start --ref llm/litellm@1 --env main --oci {OCI} --dry-run --json",
        ),
    )
    start.add_argument("--oci", required=True, metavar="OCI", help="host/repository@sha256:<64 hex>")
    start.add_argument("--platform", metavar="PLATFORM", help="amd64: Modal runs no other")
    start.add_argument(
        "--timeout", type=seconds, default=120.0, metavar="SECONDS", help="to answer within (default: 120)"
    )
    start.add_argument("--allow-drift", action="store_true", help="deploy another digest than the pin")
    start.add_argument("--dry-run", action="store_true", help="say what would be deployed, and ask nobody")


def _add_sync_secrets(command: Any, subparsers: Any) -> None:
    sync = _add(
        command,
        subparsers,
        command.sync_secrets,
        help="bring secrets from the environment to the deployment",
        examples=(
            "OPENAI_API_KEY=$OPENAI_API_KEY {prog} sync-secrets --ref llm/litellm@1 --env dev",
            "{prog} sync-secrets --ref llm/litellm@1 --env main --fail-on-missing --json",
        ),
    )
    sync.add_argument("--fail-on-missing", action="store_true", help="write nothing when a required one is missing")
    sync.add_argument("--dry-run", action="store_true", help="say what would be written")
    sync.add_argument("--prune", action="store_true", help="remove what registry.yaml no longer names")


def _add_run(command: Any, subparsers: Any) -> None:
    run = command.subcommand(
        subparsers,
        command.run,
        help="invoke a deployed processor",
        examples=(
            "{prog} run --ref llm/litellm@1 --mode mock --json",
            "{prog} run --ref llm/litellm@1 --env main --inputs-file inputs.json --stream",
        ),
    )
    add_options(run, platform_help="amd64: Modal runs no other")
    run.add_argument("--env", default="dev", choices=("dev", "staging", "main"), help=f"{ENV_HELP} (default: dev)")


def _add_stop(command: Any, subparsers: Any) -> None:
    _add(
        command,
        subparsers,
        command.stop,
        help="stop a deployment for good",
        examples=("{prog} stop --ref llm/litellm@1 --env dev", "{prog} stop --ref llm/litellm@1 --env main --json"),
    )


def _add_status(command: Any, subparsers: Any) -> None:
    _add(
        command,
        subparsers,
        command.status,
        help="say what is deployed",
        examples=(
            "{prog} status --ref llm/litellm@1 --env dev",
            "{prog} status --ref llm/litellm@1 --env main --json",
        ),
    )


def _add_logs(command: Any, subparsers: Any) -> None:
    logs = _add(
        command,
        subparsers,
        command.logs,
        help="print what a deployment's containers write",
        examples=(
            "{prog} logs --ref llm/litellm@1 --env dev --follow",
            "{prog} logs --ref llm/litellm@1 --env dev --since 10m",
        ),
    )
    logs.add_argument("--follow", action="store_true", help="go on until the deployment is stopped")
    logs.add_argument("--tail", type=count, metavar="N", help="the last N lines (default without --since: 100)")
    logs.add_argument("--since", metavar="T", help="10m, 2h, 1d or an RFC 3339 time")


def _add_verify_digest(command: Any, subparsers: Any) -> None:
    verify = _add(
        command,
        subparsers,
        command.verify_digest,
        help="prove that a deployment is of a digest, and say by what",
        examples=(
            f"{{prog}} verify-digest --ref llm/litellm@1 --env dev --oci {OCI}",
            "{prog} verify-digest --ref llm/litellm@1 --env main --json",
        ),
    )
    verify.add_argument("--oci", metavar="OCI", help="host/repository@sha256:<64 hex> (default: the amd64 pin)")
    verify.add_argument(
        "--timeout", type=seconds, default=120.0, metavar="SECONDS", help="for a container (default: 120)"
    )


def _add_history(command: Any, subparsers: Any) -> None:
    _add(
        command,
        subparsers,
        command.history,
        help="list the deployments of an app, newest first",
        examples=(
            "{prog} history --ref llm/litellm@1 --env dev",
            "{prog} history --ref llm/litellm@1 --env main --json",
        ),
    )


def _add_rollback(command: Any, subparsers: Any) -> None:
    rollback = _add(
        command,
        subparsers,
        command.rollback,
        help="deploy an earlier digest again, and verify it",
        examples=(
            "{prog} rollback --ref llm/litellm@1 --env dev",
            "{prog} rollback --ref llm/litellm@1 --env main --to 3 --json",
        ),
    )
    rollback.add_argument("--to", metavar="N|DIGEST", help="a version or a digest (default: the digest before)")
    rollback.add_argument(
        "--timeout", type=seconds, default=120.0, metavar="SECONDS", help="to answer within (default: 120)"
    )


def _add_outputs(command: Any, subparsers: Any) -> None:
    from apps.processors.management.commands import _outputs

    _outputs.add_arguments(
        command.subcommand(subparsers, command.outputs, help=_outputs.HELP, examples=_outputs.EXAMPLES)
    )
