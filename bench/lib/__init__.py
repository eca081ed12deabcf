"""What the benchmarks share: samples and their table, daemons of their own, QEMU by hand, libvirt."""
