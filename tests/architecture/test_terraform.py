"""What terraform/ promises of its buckets. Each promise is broken once, to see that its breach is found."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apps.storage import artifacts
from tests.architecture.sources import PROJECT
from tests.architecture.terraform import FOLDER, policy, resources

BUCKETS = ("artifacts", "access_logs")
ARN = "arn:aws:s3:::theory-artifacts-dev"
VALUES = {"bucket_arn": ARN, "source_arn": ARN, "account_id": "111122223333", "principals": '["arn:aws:iam::1:user/a"]'}
TLS_ONLY = {
    "Effect": "Deny",
    "Principal": "*",
    "Action": "s3:*",
    "Resource": [ARN, f"{ARN}/*"],
    "Condition": {"Bool": {"aws:SecureTransport": "false"}},
}
PUBLIC_ACCESS = ("block_public_acls", "block_public_policy", "ignore_public_acls", "restrict_public_buckets")
EXECUTION = "019ab000-0000-7000-8000-000000000001"


def _of(folder: Path, kind: str, bucket: str) -> dict[str, Any]:
    """What the resource of this kind says about the bucket; nothing when it is another bucket's."""
    found = resources(folder).get(f"{kind}.{bucket}", {})
    return found if found.get("bucket") == f"${{aws_s3_bucket.{bucket}.id}}" else {}


def _first(body: dict[str, Any], *names: str) -> dict[str, Any]:
    for name in names:
        body = body.get(name, [{}])[0]
    return body


def _encrypted(folder: Path, bucket: str) -> bool:
    body = _of(folder, "aws_s3_bucket_server_side_encryption_configuration", bucket)
    return _first(body, "rule", "apply_server_side_encryption_by_default").get("sse_algorithm") == "AES256"


def _private(folder: Path, bucket: str) -> bool:
    body = _of(folder, "aws_s3_bucket_public_access_block", bucket)
    return all(body.get(name) is True for name in PUBLIC_ACCESS)


def _without_acls(folder: Path, bucket: str) -> bool:
    rule = _first(_of(folder, "aws_s3_bucket_ownership_controls", bucket), "rule")
    return rule.get("object_ownership") == "BucketOwnerEnforced"


def _versioned(folder: Path, bucket: str) -> bool:
    body = _of(folder, "aws_s3_bucket_versioning", bucket)
    return _first(body, "versioning_configuration").get("status") == "Enabled"


def _over_tls_only(folder: Path, bucket: str) -> bool:
    if not _of(folder, "aws_s3_bucket_policy", bucket):
        return False
    statements = policy(f"aws_s3_bucket_policy.{bucket}", folder=folder).statements(VALUES)
    return any({**TLS_ONLY, "Sid": each.get("Sid")} == each for each in statements)


def _rules(folder: Path, bucket: str) -> list[dict[str, Any]]:
    rules = _of(folder, "aws_s3_bucket_lifecycle_configuration", bucket).get("rule", [])
    return [rule for rule in rules if rule["status"] == "Enabled"]


def _prefix(rule: dict[str, Any]) -> str:
    """Where the rule holds. Nothing but a prefix is known here: a filter by tag or size fails."""
    where = rule["filter"][0]
    assert set(where) <= {"prefix"}, where
    return where.get("prefix", "")


def _aborts_unfinished_uploads(folder: Path, bucket: str) -> bool:
    days = [
        _first(rule, "abort_incomplete_multipart_upload").get("days_after_initiation")
        for rule in _rules(folder, bucket)
        if not _prefix(rule)
    ]
    return 1 in days


def _expired_prefixes(folder: Path, bucket: str) -> set[str]:
    return {_prefix(rule) for rule in _rules(folder, bucket) if "days" in _first(rule, "expiration")}


def _expires_mock_runs(folder: Path, bucket: str) -> bool:
    return bucket != "artifacts" or "artifacts/mock/" in _expired_prefixes(folder, bucket)


def _keeps_receipts(folder: Path, bucket: str) -> bool:
    """No rule expires what lies under the default write prefix, or under any but CI's for mock runs."""
    return bucket != "artifacts" or _expired_prefixes(folder, bucket) <= {"artifacts/mock/"}


def _expires_logs(folder: Path, bucket: str) -> bool:
    return bucket != "access_logs" or _expired_prefixes(folder, bucket) == {""}


def _forgets_old_versions(folder: Path, bucket: str) -> bool:
    return any(
        "noncurrent_days" in _first(rule, "noncurrent_version_expiration")
        for rule in _rules(folder, bucket)
        if not _prefix(rule)
    )


def _logged(folder: Path, bucket: str) -> bool:
    target = _of(folder, "aws_s3_bucket_logging", bucket).get("target_bucket")
    return bucket != "artifacts" or target == "${aws_s3_bucket.access_logs.id}"


def _survives_destroy(folder: Path, bucket: str) -> bool:
    body = resources(folder)[f"aws_s3_bucket.{bucket}"]
    return bucket != "artifacts" or _first(body, "lifecycle").get("prevent_destroy") is True


PROMISES: tuple[Callable[[Path, str], bool], ...] = (
    _encrypted,
    _private,
    _without_acls,
    _versioned,
    _over_tls_only,
    _aborts_unfinished_uploads,
    _expires_mock_runs,
    _keeps_receipts,
    _expires_logs,
    _forgets_old_versions,
    _logged,
    _survives_destroy,
)


def _broken(folder: Path) -> set[tuple[str, str]]:
    return {(each.__name__, bucket) for each in PROMISES for bucket in BUCKETS if not each(folder, bucket)}


def _without(kind: str, bucket: str) -> tuple[str, str]:
    """A mutation: the resource is gone. (What to find, as a regular expression, and what stands there instead.)"""
    return rf'(?ms)^resource "{kind}" "{bucket}" \{{$.*?^\}}$', ""


def _rule_gone(name: str) -> tuple[str, str]:
    return rf'(?ms)^  rule \{{\n    id     = "{name}".*?^  \}}$', ""


ENCRYPTION = "aws_s3_bucket_server_side_encryption_configuration"
MUTATIONS: dict[str, tuple[str, tuple[str, str], set[tuple[str, str]]]] = {
    "no encryption": ("s3.tf", _without(ENCRYPTION, "artifacts"), {("_encrypted", "artifacts")}),
    "no encryption of logs": ("logs.tf", _without(ENCRYPTION, "access_logs"), {("_encrypted", "access_logs")}),
    "another bucket's encryption": (
        "s3.tf",
        (rf'("{ENCRYPTION}" "artifacts" {{\n  bucket = aws_s3_bucket\.)artifacts', r"\1access_logs"),
        {("_encrypted", "artifacts")},
    ),
    "no public access block": (
        "s3.tf",
        _without("aws_s3_bucket_public_access_block", "artifacts"),
        {("_private", "artifacts")},
    ),
    "a public policy": ("s3.tf", ("block_public_policy     = true", ""), {("_private", "artifacts")}),
    "public buckets": (
        "logs.tf",
        ("restrict_public_buckets = true", "restrict_public_buckets = false"),
        {("_private", "access_logs")},
    ),
    "ACLs": ("s3.tf", ("BucketOwnerEnforced", "BucketOwnerPreferred"), {("_without_acls", "artifacts")}),
    "no versioning": ("s3.tf", _without("aws_s3_bucket_versioning", "artifacts"), {("_versioned", "artifacts")}),
    "versioning suspended": (
        "s3.tf",
        (r'(versioning_configuration \{\s+status = )"Enabled"', r'\1"Suspended"'),
        {("_versioned", "artifacts")},
    ),
    "no policy": ("s3.tf", _without("aws_s3_bucket_policy", "artifacts"), {("_over_tls_only", "artifacts")}),
    "no TLS for the logs": (
        "policies/access-logs.json.tftpl",
        (r'"Effect": "Deny"', '"Effect": "Allow"'),
        {("_over_tls_only", "access_logs")},
    ),
    "TLS refused instead": (
        "policies/bucket.json.tftpl",
        (r'"aws:SecureTransport": "false"', '"aws:SecureTransport": "true"'),
        {("_over_tls_only", "artifacts")},
    ),
    "TLS for objects alone": (
        "policies/bucket.json.tftpl",
        (r'"\$\{bucket_arn\}", ', ""),
        {("_over_tls_only", "artifacts")},
    ),
    "TLS for reading alone": (
        "policies/bucket.json.tftpl",
        (r'"s3:\*"', '"s3:GetObject"'),
        {("_over_tls_only", "artifacts")},
    ),
    "no lifecycle": (
        "s3.tf",
        _without("aws_s3_bucket_lifecycle_configuration", "artifacts"),
        {
            ("_aborts_unfinished_uploads", "artifacts"),
            ("_expires_mock_runs", "artifacts"),
            ("_forgets_old_versions", "artifacts"),
        },
    ),
    "unfinished uploads stay": (
        "s3.tf",
        _rule_gone("abort-unfinished-uploads"),
        {("_aborts_unfinished_uploads", "artifacts")},
    ),
    "mock runs stay": ("s3.tf", _rule_gone("expire-mock-runs"), {("_expires_mock_runs", "artifacts")}),
    "discarded objects stay": (
        "s3.tf",
        _rule_gone("forget-what-was-discarded"),
        {("_forgets_old_versions", "artifacts")},
    ),
    "a rule that is off": (
        "s3.tf",
        (r'(id     = "expire-mock-runs"\n    status = )"Enabled"', r'\1"Disabled"'),
        {("_expires_mock_runs", "artifacts")},
    ),
    "everything expires": (
        "s3.tf",
        (r'prefix = "artifacts/mock/"', 'prefix = "artifacts/"'),
        {("_expires_mock_runs", "artifacts"), ("_keeps_receipts", "artifacts")},
    ),
    "receipts expire": (
        "s3.tf",
        ("expired_object_delete_marker = true", "days = 365"),
        {("_keeps_receipts", "artifacts")},
    ),
    "logs stay": (
        "logs.tf",
        (r"expiration \{\n      days = var.log_days\n    \}", ""),
        {("_expires_logs", "access_logs")},
    ),
    "no access logs": ("s3.tf", _without("aws_s3_bucket_logging", "artifacts"), {("_logged", "artifacts")}),
    "destroyed with its receipts": (
        "s3.tf",
        ("prevent_destroy = true", "prevent_destroy = false"),
        {("_survives_destroy", "artifacts")},
    ),
}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """terraform/ to be broken."""
    return shutil.copytree(FOLDER, tmp_path / "terraform", ignore=shutil.ignore_patterns(".terraform"))


def test_every_promise_about_the_buckets_is_kept() -> None:
    assert _broken(FOLDER) == set()


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_promise_is_found(copy: Path, name: str) -> None:
    file, (old, new), promises = MUTATIONS[name]
    text = (copy / file).read_text()
    changed = re.sub(old, new, text, count=1)
    assert changed != text
    (copy / file).write_text(changed)

    assert _broken(copy) == promises


def test_every_policy_is_a_template_that_is_given_just_what_it_uses() -> None:
    named = [
        policy(address, attribute)
        for address, body in resources().items()
        for attribute in ("policy", "assume_role_policy")
        if attribute in body
    ]

    assert {each.path for each in named} == set((FOLDER / "policies").iterdir())
    assert {each.path.name: each.given ^ set(re.findall(r"\$\{(\w+)\}", each.path.read_text())) for each in named} == {
        each.path.name: set() for each in named
    }


def test_only_those_named_may_become_the_signer() -> None:
    statements = policy("aws_iam_role.signer", "assume_role_policy").statements(VALUES)

    assert [(each["Principal"], each["Action"]) for each in statements] == [
        ({"AWS": ["arn:aws:iam::1:user/a"]}, "sts:AssumeRole")
    ]


def test_only_s3_itself_may_write_access_logs_and_only_of_this_bucket() -> None:
    statements = policy("aws_s3_bucket_policy.access_logs").statements(VALUES)

    allowed = [each for each in statements if each["Effect"] == "Allow"]
    assert [(each["Principal"], each["Action"], each["Condition"]) for each in allowed] == [
        (
            {"Service": "logging.s3.amazonaws.com"},
            "s3:PutObject",
            {"ArnLike": {"aws:SourceArn": ARN}, "StringEquals": {"aws:SourceAccount": "111122223333"}},
        )
    ]
    assert resources()["aws_s3_bucket_logging.artifacts"]["target_prefix"] == "s3/"
    assert allowed[0]["Resource"] == f"{ARN}/s3/*"


def test_the_prefix_of_mock_runs_that_expire_is_a_write_prefix_and_not_the_default_one() -> None:
    texts = [(PROJECT / path).read_text() for path in ("terraform/README.md", "docs/ci/lanes.sh")]
    named = [prefix for text in texts for prefix in re.findall(r"--mode mock --write-prefix '([^']+)'", text)]
    assert len(named) == len(texts)

    expanded = [artifacts.expand(each, execution_id=EXECUTION, ref_slug="llm-litellm-v1") for each in named]
    default = artifacts.expand(None, execution_id=EXECUTION, ref_slug="llm-litellm-v1")

    assert [each[1:].startswith("artifacts/mock/") for each in expanded] == [True] * len(named)
    assert not default[1:].startswith("artifacts/mock/")


def test_the_signer_is_given_no_access_key() -> None:
    """It would be in Terraform's state, readable."""
    assert [address for address in resources() if address.startswith(("aws_iam_access_key", "aws_iam_user"))] == []


def test_the_readme_and_the_example_name_every_variable() -> None:
    declared = set(re.findall(r'^variable "(\w+)"', (FOLDER / "variables.tf").read_text(), re.MULTILINE))
    example = set(re.findall(r"^(?:# )?(\w+)\s+=", (FOLDER / "terraform.tfvars.example").read_text(), re.MULTILINE))
    table = set(re.findall(r"^\| `(\w+)` \|", (FOLDER / "README.md").read_text(), re.MULTILINE))

    assert example == declared
    assert table == declared
