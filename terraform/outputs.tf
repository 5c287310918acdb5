output "artifacts_bucket" {
  description = "ARTIFACTS_BUCKET."
  value       = aws_s3_bucket.artifacts.id
}

output "artifacts_region" {
  description = "ARTIFACTS_REGION."
  value       = var.region
}

output "signer_role_arn" {
  description = "The role to assume: role_arn of a profile in ~/.aws/config."
  value       = aws_iam_role.signer.arn
}

output "signer_policy_arn" {
  description = "The policy alone, for a user or a role that is there already."
  value       = aws_iam_policy.signer.arn
}

output "access_logs_bucket" {
  description = "Where S3 writes who asked for what."
  value       = aws_s3_bucket.access_logs.id
}
