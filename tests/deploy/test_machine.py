from __future__ import annotations

from phiscale.deploy.machine import parse_cpu_info, this_machine

X86 = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 17
model name\t: AMD EPYC 9R14
stepping\t: 1
cpu MHz\t\t: 2600.000
flags\t\t: fpu avx2 avx512f avx512_vnni avx512_bf16
bogomips\t: 5200.00

processor\t: 1
model name\t: AMD EPYC 9R14
flags\t\t: fpu
"""
ARM = """processor\t: 0
BogoMIPS\t: 2100.00
Features\t: fp asimd sve
CPU implementer\t: 0x41
CPU part\t: 0xd40
"""


def test_the_processor_is_read() -> None:
    machine = parse_cpu_info(X86, cores=4)
    assert machine.processor == "AMD EPYC 9R14"
    assert machine.flags == ("avx2", "avx512_bf16", "avx512_vnni", "avx512f", "fpu")
    assert str(machine) == "AMD EPYC 9R14, 4 cores, avx512_bf16 avx512_vnni avx512f avx2"
    assert "asimd" in parse_cpu_info(ARM, cores=1).flags


def test_the_id_is_of_what_decides_the_time() -> None:
    same = parse_cpu_info(X86.replace("2600.000", "3100.000").replace("5200.00", "6200.00"), cores=4)
    assert same.id == parse_cpu_info(X86, cores=4).id
    others = [
        parse_cpu_info(X86, cores=2),
        parse_cpu_info(X86.replace("9R14", "9V74"), cores=4),
        parse_cpu_info(X86.replace("model\t\t: 17", "model\t\t: 18"), cores=4),
        parse_cpu_info(X86.replace(" avx512_bf16", ""), cores=4),
        parse_cpu_info(ARM, cores=4),
        parse_cpu_info("", cores=4),
    ]
    assert len({machine.id for machine in (same, *others)}) == 7


def test_every_machine_has_a_name() -> None:
    assert parse_cpu_info("", cores=1).processor
    assert this_machine().processor
    assert this_machine().cores >= 1
