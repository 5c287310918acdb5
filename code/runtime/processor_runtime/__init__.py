"""What every processor image installs: the run protocol's server and the author's API."""

__version__ = "1.0.0"
