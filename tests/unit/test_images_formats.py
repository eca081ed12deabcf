"""Writing cpio archives, reading ELF files, ordering kernel modules, unpacking kernels, patching GRUB."""

from __future__ import annotations

import gzip
import io
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from innkeeper.images import bootdisk, cpio, elf, kernel, kmodules
from innkeeper.units import GiB, MiB


def archive(*entries: cpio.Entry) -> bytes:
    out = io.BytesIO()
    cpio.write_cpio(out, entries)
    return out.getvalue()


def elf_file(needed: list[str], interpreter: str | None = None) -> bytes:
    """The smallest ELF file with a dynamic section: headers, strings at 0x400, dynamic at 0x200."""
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in needed)
    offsets = [strings.index(name.encode() + b"\0") for name in needed]
    dynamic = b"".join(struct.pack("<QQ", 1, offset) for offset in offsets)
    dynamic += struct.pack("<QQ", 5, 0x1400) + struct.pack("<QQ", 0, 0)
    segments = [(1, 0x0, 0x1000, 0x800), (2, 0x200, 0x1200, len(dynamic))]
    path = (interpreter or "").encode() + b"\0"
    if interpreter:
        segments.append((3, 0x700, 0x1700, len(path)))
    header = b"\x7fELF\x02\x01".ljust(0x20, b"\0") + struct.pack("<Q", 0x40)
    header = header.ljust(0x36, b"\0") + struct.pack("<HH", 56, len(segments))
    table = b"".join(
        struct.pack("<IIQQQQ", kind, 4, offset, address, address, size).ljust(56, b"\0")
        for kind, offset, address, size in segments
    )
    data = (header.ljust(0x40, b"\0") + table).ljust(0x200, b"\0") + dynamic
    return (data.ljust(0x400, b"\0") + strings).ljust(0x700, b"\0") + path.ljust(0x100, b"\0")


def module_file(**info: str) -> bytes:
    """An ELF file with a .modinfo section; `alias_` stands for a second alias and so on."""
    text = b"".join(f"{key.rstrip('_')}={value}".encode() + b"\0" for key, value in info.items())
    names = b"\0.modinfo\0.shstrtab\0"
    sections = [(0, 0, 0), (1, 0x40, len(text)), (10, 0x40 + len(text), len(names))]
    body = text + names
    table = b"".join(
        struct.pack("<IIQQQQ", name, 1, 0, 0, offset, size).ljust(64, b"\0")
        for name, offset, size in sections
    )
    header = b"\x7fELF\x02\x01".ljust(0x28, b"\0") + struct.pack("<Q", 0x40 + len(body))
    header = header.ljust(0x3A, b"\0") + struct.pack("<HHH", 64, 3, 2)
    return header.ljust(0x40, b"\0") + body + table


class TestCpio:
    def test_cpio_itself_reads_it(self, tmp_path: Path) -> None:
        data = archive(
            cpio.regular("bin/tool", b"#!/bin/sh\n", 0o755),
            cpio.symlink("sbin", "bin"),
            cpio.char_device("dev/console", 5, 1),
            cpio.directory("tmp", 0o1777),
            cpio.regular("empty", b""),
        )
        listed = subprocess.run(["cpio", "-itv", "--quiet"], input=data, capture_output=True, check=True)
        rows = {line.split()[-1]: line.split() for line in listed.stdout.decode().splitlines()}
        assert set(rows) == {"bin", "bin/tool", "dev", "dev/console", "empty", "tmp"}
        assert rows["bin/tool"][0] == "-rwxr-xr-x"
        assert rows["dev/console"][0].startswith("c") and rows["dev/console"][4:6] == ["5,", "1"]
        assert rows["tmp"][0] == "drwxrwxrwt"
        assert "sbin -> bin" in listed.stdout.decode()
        assert {row[2] for row in rows.values()} == {"root"}

    def test_the_order_given_does_not_matter(self) -> None:
        entries = [cpio.regular("b/x", b"1"), cpio.regular("a", b"22"), cpio.directory("b")]
        assert archive(*entries) == archive(*reversed(entries))

    @pytest.mark.parametrize("path", ["/etc/passwd", "../up", "a/../../b", "", "TRAILER!!!"])
    def test_bad_paths_are_refused(self, path: str) -> None:
        with pytest.raises(ValueError, match="path"):
            archive(cpio.regular(path, b""))

    def test_twice_the_same_path_is_refused(self) -> None:
        with pytest.raises(ValueError, match="twice"):
            archive(cpio.regular("a", b""), cpio.regular("a", b""))


class TestElf:
    def test_needed_and_interpreter(self) -> None:
        link = elf.linkage(elf_file(["libc.so.6", "libm.so.6"], "/lib64/ld-linux-x86-64.so.2"))
        assert link == elf.Linkage("/lib64/ld-linux-x86-64.so.2", ("libc.so.6", "libm.so.6"))

    def test_a_real_program(self) -> None:
        link = elf.linkage(Path(sys.executable).resolve().read_bytes())
        assert link.interpreter and "libc.so.6" in link.needed

    @pytest.mark.parametrize("data", [b"", b"#!/bin/sh", b"\x7fELF\x02\x01", elf_file(["a"])[:0x60]])
    def test_damaged_files_raise_one_error(self, data: bytes) -> None:
        with pytest.raises(elf.NotElf):
            elf.linkage(data)

    def test_closure_follows_libraries_and_names_what_is_missing(self, tmp_path: Path) -> None:
        libraries = tmp_path / "usr/lib/x86_64-linux-gnu"
        libraries.mkdir(parents=True)
        (libraries / "liba.so").write_bytes(elf_file(["libb.so", "libgone.so"]))
        (libraries / "libb.so").write_bytes(elf_file(["liba.so"]))
        (tmp_path / "tool").write_bytes(elf_file(["liba.so"], "/lib64/ld.so"))
        found, missing = elf.closure([tmp_path / "tool"], lambda name: elf.find_library(tmp_path, name))
        assert set(found) == {"liba.so", "libb.so"}
        assert missing == {"libgone.so", "ld.so"}

    def test_a_library_name_cannot_leave_the_tree(self, tmp_path: Path) -> None:
        assert elf.find_library(tmp_path, "../../../../etc/passwd") is None


class TestModules:
    def test_modinfo_is_read(self) -> None:
        module = kmodules.parse_module(
            "kernel/net/virtio-net.ko",
            module_file(
                alias="virtio:d1", alias_="pci:1", depends="net-failover,virtio", softdep="pre: crc-x post: y"
            ),
        )
        assert module.name == "virtio_net"
        assert module.aliases == ("virtio:d1", "pci:1")
        assert module.needs == ("net_failover", "virtio")
        assert module.before == ("crc_x",)

    def test_compressed_modules_are_unpacked(self) -> None:
        module = kmodules.parse_module("kernel/a-b.ko.gz", gzip.compress(module_file(depends="")))
        assert (module.name, module.path, module.data) == ("a_b", "kernel/a-b.ko", module_file(depends=""))

    @pytest.mark.parametrize("data", [b"", b"\x7fELF\x02\x01", module_file(depends="a")[:-70]])
    def test_damaged_modules(self, data: bytes) -> None:
        with pytest.raises(ValueError, match="module"):
            kmodules.modinfo(data)

    def test_each_module_comes_after_what_it_needs(self) -> None:
        needs = {
            "net": ("failover", "virtio"),
            "failover": ("core",),
            "virtio": ("ring",),
            "loop": ("loop2",),
        }
        needs |= {"loop2": ("loop",), "core": (), "ring": ()}
        tree = {name: kmodules.Module(name, f"k/{name}.ko", b"", below) for name, below in needs.items()}
        names = [one.name for one in kmodules.closure(["net", "loop", "absent"], tree.get)]
        assert sorted(names) == sorted(tree)
        for name in ("net", "failover", "virtio"):
            assert all(names.index(below) < names.index(name) for below in needs[name])

    def test_the_index_has_every_dependency_last_to_load_first(self) -> None:
        virtio = kmodules.Module("virtio", "k/virtio.ko", b"", ("ring",))
        ring = kmodules.Module("ring", "k/ring.ko", b"")
        net = kmodules.Module("net", "k/net.ko", b"", ("virtio",), aliases=("virtio:d1*",))
        index = kmodules.index_files([ring, virtio, net])
        assert "k/net.ko: k/virtio.ko k/ring.ko\n" in index["modules.dep"]
        assert index["modules.alias"] == "alias virtio:d1* net\n"


class TestKernel:
    @staticmethod
    def vmlinux(note: int = 18) -> bytes:
        notes = struct.pack("<III", 4, 4, note) + b"Xen\0" + bytes(4)
        header = b"\x7fELF\x02\x01".ljust(0x20, b"\0") + struct.pack("<Q", 0x40)
        header = header.ljust(0x36, b"\0") + struct.pack("<HH", 56, 1)
        program = struct.pack("<IIQQQQ", 4, 0, 0x80, 0, 0, len(notes)).ljust(56, b"\0")
        return (header.ljust(0x40, b"\0") + program).ljust(0x80, b"\0") + notes

    @staticmethod
    def bzimage(payload: bytes) -> bytes:
        setup = bytearray(1024)
        setup[0x1F1] = 1
        setup[0x1FE:0x200] = b"\x55\xaa"
        setup[0x202:0x206] = b"HdrS"
        struct.pack_into("<II", setup, 0x248, 0, len(payload))
        return bytes(setup) + payload

    def test_a_gzip_kernel_is_unpacked(self) -> None:
        assert kernel.extract_vmlinux(self.bzimage(gzip.compress(self.vmlinux()))) == self.vmlinux()

    @pytest.mark.parametrize("data", [b"", b"x" * 2048, b"\x7fELF"])
    def test_other_files(self, data: bytes) -> None:
        with pytest.raises(kernel.NoVmlinux):
            kernel.extract_vmlinux(data)

    def test_a_kernel_without_pvh_entry_and_damaged_ones(self) -> None:
        packed = gzip.compress(self.vmlinux())
        for payload in (gzip.compress(self.vmlinux(note=1)), packed[:-10], b"", b"\x02\x21\x4c\x18abcdefgh"):
            with pytest.raises(kernel.NoVmlinux):
                kernel.extract_vmlinux(self.bzimage(payload))


class TestBootDisk:
    def test_partitions_lie_in_order_and_inside_the_disk(self) -> None:
        layout = bootdisk.Layout(4 * GiB)
        assert layout.bios_start + layout.bios_bytes <= layout.esp_start
        assert layout.esp_start + layout.esp_bytes == layout.root_start
        assert layout.root_start + layout.root_bytes <= layout.size_bytes - MiB
        assert layout.sfdisk_script().count("start=") == 3

    def test_boot_code_is_told_where_its_next_part_lies(self) -> None:
        image = bytes(510) + b"\x55\xaa"
        code = bootdisk.patched_boot(image, 2048)
        assert len(code) == 440
        assert struct.unpack_from("<Q", code, 0x5C) == (2048,)
        core = bytearray(1500)
        struct.pack_into("<QHH", core, 500, 2, 2, 0x820)
        assert struct.unpack_from("<QHH", bootdisk.patched_core(bytes(core), 2048), 500) == (2049, 2, 0x820)

    @pytest.mark.parametrize("data", [b"", bytes(512), bytes(4096)])
    def test_other_files_are_refused(self, data: bytes) -> None:
        with pytest.raises(ValueError, match="not a boot"):
            bootdisk.patched_boot(data, 1)
        with pytest.raises(ValueError, match=r"core\.img"):
            bootdisk.patched_core(data, 1)
