"""As little as Django takes: one app, no database, everything else as it comes."""

SECRET_KEY = "not a secret"
INSTALLED_APPS = ["app"]
