"""Names of ARM processors by the two numbers that each core gives of itself.

Linux shows the fields *Implementer* and *PartNum* of the register MIDR_EL1 in ``/proc/cpuinfo``.
The numbers are those of the makers' manuals, as the Linux kernel (``arch/arm64/include/asm/
cputype.h``) and util-linux (``sys-utils/lscpu-arm.c``) list them.
"""

from __future__ import annotations

_MAKERS = {
    0x41: "ARM",
    0x42: "Broadcom",
    0x43: "Cavium",
    0x46: "Fujitsu",
    0x48: "HiSilicon",
    0x4E: "NVIDIA",
    0x51: "Qualcomm",
    0x61: "Apple",
    0x6D: "Microsoft",
    0xC0: "Ampere",
}

_PARTS = {
    0x41: {
        0xD03: "Cortex-A53",
        0xD04: "Cortex-A35",
        0xD05: "Cortex-A55",
        0xD07: "Cortex-A57",
        0xD08: "Cortex-A72",
        0xD09: "Cortex-A73",
        0xD0A: "Cortex-A75",
        0xD0B: "Cortex-A76",
        0xD0C: "Neoverse N1",
        0xD0D: "Cortex-A77",
        0xD40: "Neoverse V1",
        0xD41: "Cortex-A78",
        0xD42: "Cortex-A78AE",
        0xD44: "Cortex-X1",
        0xD46: "Cortex-A510",
        0xD47: "Cortex-A710",
        0xD48: "Cortex-X2",
        0xD49: "Neoverse N2",
        0xD4A: "Neoverse E1",
        0xD4B: "Cortex-A78C",
        0xD4D: "Cortex-A715",
        0xD4E: "Cortex-X3",
        0xD4F: "Neoverse V2",
        0xD80: "Cortex-A520",
        0xD81: "Cortex-A720",
        0xD82: "Cortex-X4",
        0xD84: "Neoverse V3",
        0xD85: "Cortex-X925",
        0xD87: "Cortex-A725",
        0xD8E: "Neoverse N3",
    },
    0x43: {0x0A1: "ThunderX", 0x0AF: "ThunderX2"},
    0x46: {0x001: "A64FX"},
    0x48: {0xD01: "Kunpeng 920"},
    0x4E: {0x004: "Carmel"},
    0x51: {0xC00: "Falkor", 0x001: "Oryon"},
    0x61: {
        0x022: "M1 efficiency",
        0x023: "M1 performance",
        0x024: "M1 Pro efficiency",
        0x025: "M1 Pro performance",
        0x028: "M1 Max efficiency",
        0x029: "M1 Max performance",
        0x032: "M2 efficiency",
        0x033: "M2 performance",
    },
    0xC0: {0xAC3: "Ampere-1", 0xAC4: "Ampere-1a"},
}


def name(implementer: str, part: str) -> str:
    """Maker and core, such as ``ARM Neoverse V1``; the numbers where no name is known.

    Args:
        implementer: as ``CPU implementer`` of ``/proc/cpuinfo`` writes it, such as ``0x41``.
        part: ``CPU part``, such as ``0xd40``.
    """
    try:
        made_by, number = int(implementer, 16), int(part, 16)
    except ValueError:
        return f"{implementer} {part}".strip()
    maker = _MAKERS.get(made_by, f"implementer {made_by:#04x}")
    return f"{maker} {_PARTS.get(made_by, {}).get(number, f'part {number:#05x}')}"
