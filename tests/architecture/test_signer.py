"""The signer of terraform/ may do what the code calls, and nothing more; its policy's very text on an IAM emulator."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws
from moto.core import set_initial_no_auth_action_count

from tests.architecture.terraform import policy

REGION = "us-east-1"
OURS, OTHER = "theory-artifacts-dev", "somebody-elses"
KEY = "artifacts/outputs/a/b/text.txt"
# Moto asks for the permission s3:HeadBucket, which IAM does not know: there it is s3:ListBucket.
QUIRK = {"Effect": "Allow", "Action": "s3:HeadBucket", "Resource": f"arn:aws:s3:::{OURS}"}

Call = Callable[[Any], object]

ALLOWED: dict[str, Call] = {
    "see the bucket": lambda s3: s3.head_bucket(Bucket=OURS),
    "write": lambda s3: s3.put_object(Bucket=OURS, Key=f"{KEY}.new", Body=b"x", IfNoneMatch="*"),
    "look": lambda s3: s3.head_object(Bucket=OURS, Key=KEY, ChecksumMode="ENABLED"),
    "read": lambda s3: s3.get_object(Bucket=OURS, Key=KEY),
    "list": lambda s3: s3.list_objects_v2(Bucket=OURS, Prefix="artifacts/outputs/a/b/"),
    "write in parts": lambda s3: _in_parts(s3, OURS),
    "abort parts": lambda s3: s3.abort_multipart_upload(Bucket=OURS, Key=KEY, UploadId=_begin(s3)),
    "discard": lambda s3: s3.delete_object(Bucket=OURS, Key=KEY),
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


def _in_parts(s3: Any, bucket: str) -> None:
    place = {"Bucket": bucket, "Key": KEY, "UploadId": _begin(s3)}
    part = s3.upload_part(**place, PartNumber=1, Body=b"x")
    s3.complete_multipart_upload(**place, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]})


def _client(service: str, key: str, secret: str, token: str | None = None) -> Any:
    login = {"aws_access_key_id": key, "aws_secret_access_key": secret, "aws_session_token": token}
    return boto3.client(service, region_name=REGION, **login)


def _role_of_the_signer(principal: str) -> str:
    """The role as terraform/iam.tf makes it, with its policies' very texts; its ARN."""
    iam = _client("iam", "admin", "admin")
    trust = policy("aws_iam_role.signer", "assume_role_policy").text({"principals": json.dumps([principal])})
    signer = policy("aws_iam_policy.signer").text({"bucket_arn": f"arn:aws:s3:::{OURS}"})
    role: str = iam.create_role(RoleName="signer", AssumeRolePolicyDocument=trust)["Role"]["Arn"]
    made = iam.create_policy(PolicyName="signer", PolicyDocument=signer)["Policy"]["Arn"]
    iam.attach_role_policy(RoleName="signer", PolicyArn=made)
    quirk = json.dumps({"Version": "2012-10-17", "Statement": [QUIRK]})
    iam.put_role_policy(RoleName="signer", PolicyName="quirk", PolicyDocument=quirk)
    return role


def _buckets() -> None:
    s3 = _client("s3", "admin", "admin")
    for bucket in (OURS, OTHER):
        s3.create_bucket(Bucket=bucket)
        s3.put_object(Bucket=bucket, Key=KEY, Body=b"there")
    s3.put_object(Bucket=OURS, Key="elsewhere/there", Body=b"there")


def _signer() -> Any:
    """A client that assumed the role. (Moto reads no trust policy: who may is not tried here.)"""
    role = _role_of_the_signer("arn:aws:iam::123456789012:user/ada")
    sts = _client("sts", "admin", "admin")
    assumed = sts.assume_role(RoleArn=role, RoleSessionName="test")["Credentials"]
    return _client("s3", assumed["AccessKeyId"], assumed["SecretAccessKey"], assumed["SessionToken"])


@pytest.fixture(scope="module")
def ask() -> Iterator[Callable[[Call], str]]:
    """Do something as the signer: what it was answered with, `done` or an error's code."""
    with mock_aws():
        _buckets()
        signer = _signer()

        @set_initial_no_auth_action_count(0)
        def ask(call: Call) -> str:
            try:
                call(signer)
            except ClientError as exc:
                return str(exc.response["Error"]["Code"])
            return "done"

        yield ask


def test_the_emulator_refuses_who_is_unknown(ask: Callable[[Call], str]) -> None:
    stranger = _client("s3", "AKIAIOSFODNN7EXAMPLE", "wrong")

    assert ask(lambda _: stranger.list_objects_v2(Bucket=OURS)) == "InvalidAccessKeyId"


def test_the_signer_may_do_what_a_run_needs(ask: Callable[[Call], str]) -> None:
    assert {name: ask(call) for name, call in ALLOWED.items()} == dict.fromkeys(ALLOWED, "done")


@pytest.mark.parametrize("name", DENIED)
def test_the_signer_may_not(ask: Callable[[Call], str], name: str) -> None:
    assert ask(DENIED[name]) in ("AccessDenied", "403")
