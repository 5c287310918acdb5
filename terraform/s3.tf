# The bucket of outputs, receipts and indexes. Keys: artifacts/outputs/<ref slug>/<execution id>/…, or what a
# run's --write-prefix says, which always starts with artifacts/.

resource "aws_s3_bucket" "artifacts" {
  bucket = var.bucket_name

  # Receipts are kept: `terraform destroy` refuses until this line is gone.
  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_s3_bucket_ownership_controls" "artifacts" {
  bucket = aws_s3_bucket.artifacts.id

  rule {
    object_ownership = "BucketOwnerEnforced" # no ACLs: policies alone say who may
  }
}

resource "aws_s3_bucket_public_access_block" "artifacts" {
  bucket = aws_s3_bucket.artifacts.id

  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_versioning" "artifacts" {
  bucket = aws_s3_bucket.artifacts.id

  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_server_side_encryption_configuration" "artifacts" {
  bucket = aws_s3_bucket.artifacts.id

  rule {
    apply_server_side_encryption_by_default {
      sse_algorithm = "AES256"
    }
  }
}

resource "aws_s3_bucket_policy" "artifacts" {
  bucket = aws_s3_bucket.artifacts.id
  policy = templatefile("${path.module}/policies/bucket.json.tftpl", {
    bucket_arn = aws_s3_bucket.artifacts.arn
  })

  depends_on = [aws_s3_bucket_public_access_block.artifacts]
}

resource "aws_s3_bucket_logging" "artifacts" {
  bucket        = aws_s3_bucket.artifacts.id
  target_bucket = aws_s3_bucket.access_logs.id
  target_prefix = "s3/"

  depends_on = [aws_s3_bucket_policy.access_logs] # S3 tries at once whether it may write there
}

# No rule expires the current version of anything outside artifacts/mock/: outputs, receipts and indexes stay
# until somebody discards them.
resource "aws_s3_bucket_lifecycle_configuration" "artifacts" {
  bucket = aws_s3_bucket.artifacts.id

  rule {
    id     = "abort-unfinished-uploads"
    status = "Enabled"

    filter {}

    # The parts of a run that was killed; no grant to upload lives longer than 15 minutes.
    abort_incomplete_multipart_upload {
      days_after_initiation = 1
    }
  }

  rule {
    id     = "expire-mock-runs"
    status = "Enabled"

    filter {
      prefix = "artifacts/mock/"
    }

    expiration {
      days = var.mock_days
    }

    noncurrent_version_expiration {
      noncurrent_days = 1
    }
  }

  rule {
    id     = "forget-what-was-discarded"
    status = "Enabled"

    filter {}

    expiration {
      expired_object_delete_marker = true
    }

    noncurrent_version_expiration {
      noncurrent_days = var.discarded_days
    }
  }

  depends_on = [aws_s3_bucket_versioning.artifacts]
}
