"""image rm: remove an image that no instance was created from."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from innkeeper.errors import Conflict, WrongState
from innkeeper.store.repo import Repo

RemoveFiles = Callable[[str], Awaitable[None]]


async def image_rm(repo: Repo, remove: RemoveFiles, name: str) -> None:
    """Mark it, look for users, then remove it: an instance created meanwhile either is seen here or
    finds the mark, since creating compares the image's record. A crash in between leaves the mark,
    and a second `image rm` finishes."""
    stored = await repo.image(name)
    if not stored.value.removing:
        await repo.put_image(stored.value.model_copy(update={"removing": True}), replaces=stored.kv)
    same = [image for image in await repo.images() if image.id == stored.value.id and image.name != name]
    users = [view.name for view in await repo.instances() if view.record.image_id == stored.value.id]
    if users and not same:
        await _unmark(repo, name)
        shown = ", ".join(users[:5]) + (f" and {len(users) - 5} more" if len(users) > 5 else "")
        raise WrongState(
            f"Image {name} is in use by {shown}",
            hint=f"remove {'it' if len(users) == 1 else 'them'} first: inn rm {' '.join(users[:5])}",
            details={"instances": users},
        )
    try:
        await remove(name)
    except BaseException:
        await _unmark(repo, name)
        raise


async def _unmark(repo: Repo, name: str) -> None:
    stored = await repo.find_image(name)
    if stored is None or not stored.value.removing:
        return
    try:
        await repo.put_image(stored.value.model_copy(update={"removing": False}), replaces=stored.kv)
    except Conflict:
        return  # somebody else decided about it meanwhile
