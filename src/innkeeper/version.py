"""The version of the installed package."""

from importlib import metadata


def version() -> str:
    try:
        return metadata.version("innkeeper")
    except metadata.PackageNotFoundError:  # run from a source tree that is not installed
        return "unknown"
