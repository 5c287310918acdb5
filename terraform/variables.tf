variable "bucket_name" {
  description = "The bucket of outputs: ARTIFACTS_BUCKET. Its access logs go to <bucket_name>-access-logs."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{1,49}[a-z0-9]$", var.bucket_name))
    error_message = "A bucket name here has 3 to 51 of a-z, 0-9 and '-', and neither starts nor ends with '-'."
  }
}

variable "region" {
  description = "Where the bucket is: ARTIFACTS_REGION."
  type        = string
  default     = "us-east-1"
}

variable "signer_principals" {
  description = "ARNs of the users and roles that may become the signer: whoever runs localctl and modalctl."
  type        = list(string)

  validation {
    condition = length(var.signer_principals) > 0 && alltrue([
      for arn in var.signer_principals : can(regex("^arn:[a-z-]+:iam::[0-9]{12}:(user|role)/[^*]+$", arn))
    ])
    error_message = "Name each user or role by its whole ARN; neither an account nor '*' can be a principal here."
  }
}

variable "mock_days" {
  description = "Days until what lies under artifacts/mock/ expires."
  type        = number
  default     = 7

  validation {
    condition     = var.mock_days >= 1 && floor(var.mock_days) == var.mock_days
    error_message = "mock_days is a whole number from 1."
  }
}

variable "discarded_days" {
  description = "Days for which a removed object can still be brought back."
  type        = number
  default     = 30

  validation {
    condition     = var.discarded_days >= 1 && floor(var.discarded_days) == var.discarded_days
    error_message = "discarded_days is a whole number from 1."
  }
}

variable "log_days" {
  description = "Days until access logs expire."
  type        = number
  default     = 90

  validation {
    condition     = var.log_days >= 1 && floor(var.log_days) == var.log_days
    error_message = "log_days is a whole number from 1."
  }
}

variable "tags" {
  description = "Tags of all that is made here."
  type        = map(string)
  default     = {}
}
