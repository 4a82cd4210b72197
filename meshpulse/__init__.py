"""The running program: command line, configuration, assembly, server."""

from importlib import metadata


def version() -> str:
    """Version of the installed distribution."""
    return metadata.version("meshpulse")
