# The signer: what localctl and modalctl are to the bucket. It signs the URLs by which containers upload, so a
# container can do no more than the signer may, and only what the one URL says. No access key is made here, so
# none is in Terraform's state.

resource "aws_iam_policy" "signer" {
  name        = "${var.bucket_name}-signer"
  description = "What Theory Processors calls on ${var.bucket_name}, and nothing more."
  policy = templatefile("${path.module}/policies/signer.json.tftpl", {
    bucket_arn = aws_s3_bucket.artifacts.arn
  })
}

resource "aws_iam_role" "signer" {
  name        = "${var.bucket_name}-signer"
  description = "Writes and reads outputs in ${var.bucket_name}, and signs uploads to it."
  assume_role_policy = templatefile("${path.module}/policies/trust.json.tftpl", {
    principals = jsonencode(var.signer_principals)
  })
}

resource "aws_iam_role_policy_attachment" "signer" {
  role       = aws_iam_role.signer.name
  policy_arn = aws_iam_policy.signer.arn
}
