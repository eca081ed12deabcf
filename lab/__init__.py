"""The nested lab: a Debian VM that is itself a host of VMs, made and driven by Innkeeper's own verbs."""
