# terraform test: the policies as Terraform itself renders them, without an account.

mock_provider "aws" {
  override_during = plan # no apply: what prevent_destroy guards could not be taken down again

  mock_resource "aws_s3_bucket" {
    defaults = {
      arn = "arn:aws:s3:::theory-artifacts-test"
    }
  }

  mock_data "aws_caller_identity" {
    defaults = {
      account_id = "111122223333"
    }
  }
}

variables {
  bucket_name       = "theory-artifacts-test"
  signer_principals = ["arn:aws:iam::111122223333:role/ci", "arn:aws:iam::111122223333:user/ada"]
}

run "policies" {
  command = plan

  assert {
    condition = jsondecode(aws_s3_bucket_policy.artifacts.policy).Statement[0].Resource == [
      "arn:aws:s3:::theory-artifacts-test", "arn:aws:s3:::theory-artifacts-test/*"
    ]
    error_message = "the TLS-only policy is not about the bucket and all in it"
  }

  assert {
    condition     = jsondecode(aws_s3_bucket_policy.access_logs.policy).Statement[1].Condition.StringEquals["aws:SourceAccount"] == "111122223333"
    error_message = "logs of other accounts would be taken"
  }

  assert {
    condition     = jsondecode(aws_iam_policy.signer.policy).Statement[1].Resource == "arn:aws:s3:::theory-artifacts-test/artifacts/*"
    error_message = "the signer is not held to artifacts/"
  }

  assert {
    condition     = tolist(jsondecode(aws_iam_role.signer.assume_role_policy).Statement[0].Principal.AWS) == var.signer_principals
    error_message = "others than signer_principals may become the signer"
  }

  assert {
    condition     = aws_s3_bucket.access_logs.bucket == "theory-artifacts-test-access-logs"
    error_message = "the log bucket is not named as outputs and README say"
  }
}

run "anyone_is_no_principal" {
  command = plan

  variables {
    signer_principals = ["*"]
  }

  expect_failures = [var.signer_principals]
}

run "an_account_is_no_principal" {
  command = plan

  variables {
    signer_principals = ["arn:aws:iam::111122223333:root"]
  }

  expect_failures = [var.signer_principals]
}

run "nobody_is_no_principal" {
  command = plan

  variables {
    signer_principals = []
  }

  expect_failures = [var.signer_principals]
}

run "a_bucket_name_too_long_for_its_logs" {
  command = plan

  variables {
    bucket_name = "a123456789a123456789a123456789a123456789a123456789ab"
  }

  expect_failures = [var.bucket_name]
}

run "mock_runs_that_never_were" {
  command = plan

  variables {
    mock_days = 0
  }

  expect_failures = [var.mock_days]
}
