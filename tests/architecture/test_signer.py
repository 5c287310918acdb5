"""The signer of terraform/ may do what the code calls, and nothing more; its policy's very text on an IAM emulator."""

import ast
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws
from moto.core import enable_iam_authentication

from apps.settings import BucketSettings
from apps.storage import s3
from apps.storage.base import ObjectStat
from apps.storage.bucket import Local
from tests.architecture import s3_operations
from tests.architecture.terraform import policy

REGION = "us-east-1"
OURS, OTHER = "theory-artifacts-dev", "somebody-elses"
KEY = "artifacts/outputs/a/b/text.txt"

TEXT = policy("aws_iam_policy.signer").text({"bucket_arn": f"arn:aws:s3:::{OURS}"})
ACTIONS = sorted(set(re.findall(r'"(s3:[^"]+)"', TEXT)))

Call = Callable[[Any], object]

ALLOWED: dict[str, Call] = {  # by operation: each that the code calls
    "list_objects_v2": lambda s3: s3.list_objects_v2(Bucket=OURS, Prefix="artifacts/outputs/a/b/"),
    "put_object": lambda s3: s3.put_object(Bucket=OURS, Key=f"{KEY}.new", Body=b"x", IfNoneMatch="*"),
    "head_object": lambda s3: s3.head_object(Bucket=OURS, Key=KEY, ChecksumMode="ENABLED"),
    "get_object": lambda s3: s3.get_object(Bucket=OURS, Key=KEY),
    "create_multipart_upload": lambda s3: _begin(s3),
    "upload_part": lambda s3: _part(s3, _begin(s3)),
    "complete_multipart_upload": lambda s3: _complete(s3, _begin(s3)),
    "abort_multipart_upload": lambda s3: s3.abort_multipart_upload(Bucket=OURS, Key=KEY, UploadId=_begin(s3)),
    "delete_object": lambda s3: s3.delete_object(Bucket=OURS, Key=KEY),
}
DENIED: dict[str, Call] = {
    "write elsewhere in the bucket": lambda s3: s3.put_object(Bucket=OURS, Key="elsewhere/a", Body=b"x"),
    "write beside the prefix": lambda s3: s3.put_object(Bucket=OURS, Key="artifacts-2/a", Body=b"x"),
    "read elsewhere in the bucket": lambda s3: s3.get_object(Bucket=OURS, Key="elsewhere/there"),
    "discard elsewhere in the bucket": lambda s3: s3.delete_object(Bucket=OURS, Key="elsewhere/there"),
    "begin parts elsewhere in the bucket": lambda s3: s3.create_multipart_upload(Bucket=OURS, Key="elsewhere/a"),
    "write to another bucket": lambda s3: s3.put_object(Bucket=OTHER, Key=KEY, Body=b"x"),
    "read another bucket": lambda s3: s3.get_object(Bucket=OTHER, Key=KEY),
    "list another bucket": lambda s3: s3.list_objects_v2(Bucket=OTHER),
    "list the buckets": lambda s3: s3.list_buckets(),
    "make a bucket": lambda s3: s3.create_bucket(Bucket="a-third"),
    "remove the bucket": lambda s3: s3.delete_bucket(Bucket=OURS),
    "remove a version": lambda s3: s3.delete_object(Bucket=OURS, Key=KEY, VersionId="null"),
    "list versions": lambda s3: s3.list_object_versions(Bucket=OURS),
    "read the policy": lambda s3: s3.get_bucket_policy(Bucket=OURS),
    "remove the policy": lambda s3: s3.delete_bucket_policy(Bucket=OURS),
    "change the lifecycle": lambda s3: s3.delete_bucket_lifecycle(Bucket=OURS),
    "end versioning": lambda s3: s3.put_bucket_versioning(Bucket=OURS, VersioningConfiguration={"Status": "Suspended"}),
    "open an object to all": lambda s3: s3.put_object_acl(Bucket=OURS, Key=KEY, ACL="public-read"),
    "tag an object": lambda s3: s3.put_object_tagging(Bucket=OURS, Key=KEY, Tagging={"TagSet": []}),
}


def _begin(s3: Any) -> str:
    upload: str = s3.create_multipart_upload(Bucket=OURS, Key=KEY)["UploadId"]
    return upload


def _part(s3: Any, upload: str) -> dict[str, Any]:
    sent = s3.upload_part(Bucket=OURS, Key=KEY, UploadId=upload, PartNumber=1, Body=b"x")
    return {"PartNumber": 1, "ETag": sent["ETag"]}


def _complete(s3: Any, upload: str) -> None:
    parts = {"Parts": [_part(s3, upload)]}
    s3.complete_multipart_upload(Bucket=OURS, Key=KEY, UploadId=upload, MultipartUpload=parts)


def _client(service: str, key: str, secret: str, token: str | None = None) -> Any:
    login = {"aws_access_key_id": key, "aws_secret_access_key": secret, "aws_session_token": token}
    return boto3.client(service, region_name=REGION, **login)


def _role(signer: str) -> str:
    """The role as terraform/iam.tf makes it, with the policy `signer`; its ARN."""
    iam = _client("iam", "admin", "admin")
    ada = json.dumps(["arn:aws:iam::123456789012:user/ada"])
    trust = policy("aws_iam_role.signer", "assume_role_policy").text({"principals": ada})
    role: str = iam.create_role(RoleName="signer", AssumeRolePolicyDocument=trust)["Role"]["Arn"]
    made = iam.create_policy(PolicyName="signer", PolicyDocument=signer)["Policy"]["Arn"]
    iam.attach_role_policy(RoleName="signer", PolicyArn=made)
    return role


def _buckets() -> None:
    s3 = _client("s3", "admin", "admin")
    for bucket in (OURS, OTHER):
        s3.create_bucket(Bucket=bucket)
        s3.put_object(Bucket=bucket, Key=KEY, Body=b"there")
    s3.put_object(Bucket=OURS, Key="elsewhere/there", Body=b"there")


def _assume(role: str) -> dict[str, str]:
    """Its credentials as variables. (Moto reads no trust policy: who may assume it is not tried here.)"""
    found = _client("sts", "admin", "admin").assume_role(RoleArn=role, RoleSessionName="test")["Credentials"]
    return {
        "AWS_ACCESS_KEY_ID": found["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": found["SecretAccessKey"],
        "AWS_SESSION_TOKEN": found["SessionToken"],
    }


@contextmanager
def _signing(text: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client with the role's credentials, which are in the environment too. IAM is asked each time."""
    with mock_aws():
        _buckets()
        credentials = _assume(_role(text))
        for name, value in credentials.items():
            monkeypatch.setenv(name, value)
        with enable_iam_authentication():
            yield _client("s3", *credentials.values())


@pytest.fixture
def signer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The signer, by the very text of its policy."""
    with _signing(TEXT, monkeypatch) as client:
        yield client


def _answer(call: Call, client: Any) -> str:
    """What it is answered with: `done`, or an error's code."""
    try:
        call(client)
    except ClientError as exc:
        return str(exc.response["Error"]["Code"])
    return "done"


def test_the_policy_allows_what_the_code_calls_and_nothing_more() -> None:
    needed = {each for name in s3_operations.called() for each in s3_operations.permissions(name)}
    places = {"B": s3_operations.BUCKET, "B/artifacts/*": s3_operations.OBJECT}

    statements = policy("aws_iam_policy.signer").statements({"bucket_arn": "B"})

    assert {each["Effect"] for each in statements} == {"Allow"}
    allowed = {(action, places[each["Resource"]]) for each in statements for action in _actions(each)}
    assert allowed == needed


def _actions(statement: dict[str, Any]) -> list[str]:
    found = statement["Action"]
    return [found] if isinstance(found, str) else found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("client.put_object(Bucket=bucket)", {"put_object"}),
        ("self._client.get_paginator('list_object_versions')", {"list_object_versions"}),
        ("signer.generate_presigned_url('upload_part', Params={})", {"upload_part"}),
        ("signer.generate_presigned_url(ClientMethod='get_object')", {"get_object"}),
        ("client.generate_presigned_post(bucket, key)", {"put_object"}),
        ("client.download_fileobj(bucket, key, file)", {"get_object", "head_object"}),
        ("put = client.put_object", {"put_object"}),
        ("client.put_object(Tagging='a=b')", {"put_object", "Tagging"}),
        ("client.get_object(**{'VersionId': version})", {"get_object", "VersionId"}),
        ("dictionary.copy()", set()),
    ],
)
def test_an_operation_is_found_however_it_is_called(source: str, found: set[str]) -> None:
    assert {name for name, _ in s3_operations.names(ast.parse(source))} == found


def test_an_operation_whose_permissions_are_unknown_fails() -> None:
    with pytest.raises(KeyError, match="put_bucket_policy"):
        s3_operations.permissions("put_bucket_policy")


def test_the_emulator_refuses_who_is_unknown(signer: Any) -> None:
    stranger = _client("s3", "AKIAIOSFODNN7EXAMPLE", "wrong")

    assert _answer(ALLOWED["list_objects_v2"], stranger) == "InvalidAccessKeyId"


def test_the_signer_may_do_all_that_the_code_calls(signer: Any) -> None:
    assert set(ALLOWED) == set(s3_operations.called())
    assert {name: _answer(call, signer) for name, call in ALLOWED.items()} == dict.fromkeys(ALLOWED, "done")


@pytest.mark.parametrize("action", ACTIONS)
def test_no_action_of_the_policy_can_be_spared(monkeypatch: pytest.MonkeyPatch, action: str) -> None:
    with _signing(TEXT.replace(f'"{action}"', '"s3:GetBucketLocation"'), monkeypatch) as less:
        answers = {_answer(call, less) for call in ALLOWED.values()}

    assert answers & {"AccessDenied", "403"}


def test_the_signer_may_do_nothing_else(signer: Any) -> None:
    answers = {name: _answer(call, signer) for name, call in DENIED.items()}

    assert {name: answer for name, answer in answers.items() if answer not in ("AccessDenied", "403")} == {}


class Remembered:
    """A server that was seen not to check digests: so each object is read once more."""

    def proof(self, place: str) -> Mapping[str, Any]:
        return {"digest": False, "once": True}

    def record_proof(self, place: str, proof: Mapping[str, Any]) -> None:
        raise AssertionError(place)


@pytest.mark.parametrize("size_bytes", [11, 6 * 1024**2], ids=["in one piece", "in parts"])
def test_the_backend_does_all_it_can_as_the_signer(signer: Any, tmp_path: Path, size_bytes: int) -> None:
    local = Local(tmp_path, Remembered(), single_put_bytes=5 * 1024**2)
    backend = s3.backend(BucketSettings(name=OURS, region=REGION), local)
    data, key = b"x" * size_bytes, "artifacts/outputs/a/b/new.txt"
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"

    backend.check()
    absent = backend.stat(key)
    writer = backend.create(key, mime="text/plain")
    try:
        writer.write(data)
        writer.commit(size_bytes=size_bytes, digest=digest)
    finally:
        writer.abort()
    with backend.open(key) as file:
        stored = file.read()
    listed = [found.key for found in backend.list("artifacts/outputs/a/b/")]
    found = backend.digest(key)
    backend.delete(key)

    assert (absent, stored, found) == (None, data, ObjectStat(size_bytes, digest))
    assert listed == [key, KEY]
    assert backend.stat(key) is None
