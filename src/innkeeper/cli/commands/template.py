"""`inn template`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from innkeeper.cli.app import App, note
from innkeeper.cli.command import complete_images, complete_instances, verb
from innkeeper.cli.output import print_json
from innkeeper.cli.types import timeout_option

if TYPE_CHECKING:
    from innkeeper.client.instance import Instance


@verb(
    "template",
    synopsis="inn template NAME [--pool N] [--for-image|--no-for-image] [--json]\n"
    "inn template --image IMAGE [--name NAME] [--cpus N] [--memory SIZE] [--pool N] [--json]",
    examples="""
inn template web --pool 4                 freeze web; keep four copies of it spawned ahead
inn run --from web -- make test           a command in a copy, which is gone afterwards
inn fork web --count 10                   ten copies
inn template --image debian --pool 2      boot debian once; from then on inn run debian takes 0.1 s
inn resume web                            no template any more: it runs on
""",
    exit_status={4: "The VM cannot be forked, or is not running."},
)
@click.argument("name", metavar="[NAME]", required=False, shell_complete=complete_instances)
@click.option(
    "--pool", type=click.IntRange(0, 64), metavar="N", help="Keep so many copies spawned ahead (default: 0)."
)
@click.option(
    "--for-image/--no-for-image", default=None,
    help="Whether inn run of its image starts from it, where the settings are the same.",
)  # fmt: skip
@click.option(
    "--image", metavar="IMAGE", shell_complete=complete_images, help="Boot this one, and freeze that."
)
@click.option("--name", "new_name", metavar="NAME", help="With --image: its name (default: IMAGE-template).")
@click.option("--cpus", type=click.IntRange(1, 255), metavar="N", help="With --image: number of vCPUs.")
@click.option("--memory", metavar="SIZE", help="With --image: RAM.")
@timeout_option("Give up when it is not ready after this time (default: 5m).")
def template(
    app: App,
    name: str | None,
    pool: int | None,
    for_image: bool | None,
    image: str | None,
    new_name: str | None,
    cpus: int | None,
    memory: str | None,
    timeout_s: float | None,
) -> None:
    """Freeze a running VM, for others to start from.

    A template stands still at one moment, for good, and stays warm: its memory and its disks are the ground
    that copies share until they write. inn run --from NAME and inn fork NAME make copies that run on from
    that moment, in a fraction of a second, and no VM has to stand still for it. With --pool, QEMU is started
    ahead for that many copies; each takes some 40 MB of memory while it waits.

    With --for-image, or made from an --image, inn run of that image starts from the template instead of
    booting, if nothing but forwarded ports, labels and restart policy differs; it says so, and inn run --cold
    boots.

    On a template, this changes its pool and what it serves. inn resume lets it run on; inn rm removes it, and
    the copies live on. When the host restarts, or it is stopped, what was in memory is gone: started again,
    it becomes a template again as soon as it is ready.
    """
    if (name is None) == (image is None):
        raise click.UsageError("Give the NAME of a running VM, or --image IMAGE")
    if name is not None and (new_name or cpus or memory):
        raise click.UsageError("--name, --cpus and --memory go with --image")
    if name is not None:
        made = app.instance(name).template(pool=pool, serves_image=for_image, timeout_s=timeout_s)
    else:
        assert image is not None
        made = _of_image(app, image, new_name or f"{image}-template", cpus, memory, pool or 0, timeout_s)
    if app.json:
        print_json(made.data)
        return
    print(made.name)
    if made.data["wanted"]["template"]["serves_image"]:
        note(f"inn run {made.data['image']} starts from it now, where the settings are the same")
    else:
        note(f"start copies of it: inn run --from {made.name}, or inn fork {made.name}")


def _of_image(
    app: App,
    image: str,
    name: str,
    cpus: int | None,
    memory: str | None,
    pool: int,
    timeout_s: float | None,
) -> Instance:
    from innkeeper.cli import specargs
    from innkeeper.cli.progress import busy
    from innkeeper.client.template import template_of_image

    spec = specargs.build({"image": image, "cpus": cpus, "memory": memory}, specargs.read_user_data)
    if "image" not in spec:
        raise click.UsageError("--image takes an image of the catalogue; see inn image list")
    with busy(f"booting {name}"):
        return template_of_image(app.client, spec, name=name, pool=pool, timeout_s=timeout_s)
