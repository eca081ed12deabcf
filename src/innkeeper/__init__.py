"""Virtual machines on QEMU/KVM.

    import innkeeper
    client = innkeeper.connect()
    vm = client.instances.create({"image": "tiny"}, start=True, wait="ready")
    print(vm.exec(["uname", "-a"]).stdout.decode())

Names are imported when first used, so that `import innkeeper` costs nothing: every start of the
command line pays for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from innkeeper import errors
    from innkeeper.client.client import Client, connect
    from innkeeper.client.instance import Instance
    from innkeeper.errors import InnkeeperError

    __version__: str

__all__ = ["Client", "InnkeeperError", "Instance", "__version__", "connect", "errors"]

_WHERE = {
    "Client": "innkeeper.client.client",
    "connect": "innkeeper.client.client",
    "Instance": "innkeeper.client.instance",
    "InnkeeperError": "innkeeper.errors",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name == "errors":
        return importlib.import_module("innkeeper.errors")
    if name == "__version__":
        return importlib.import_module("innkeeper.version").version()
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
