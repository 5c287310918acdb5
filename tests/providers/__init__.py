"""Providers on this machine that speak the real wire formats, record what they are sent, and break on demand."""

from tests.providers.server import Provider, Received

__all__ = ["Provider", "Received"]
