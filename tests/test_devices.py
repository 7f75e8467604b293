"""Devices to plan for: known by their whole names, each with its own rate; what is close to the edge says so.

Also the memory of this process, which goes back to the system when it is freed, or is kept for what comes next.
"""

import ctypes
import functools
import os
import re
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lit_gpt.args import LoRAArgs, TrainArgs, ValidationArgs
from lit_gpt.data.store import Samples
from lit_gpt.errors import UserError
from lit_gpt.families import config_for
from lit_gpt.planning.cards import DEVICES, GIB
from lit_gpt.planning.devices import named, this_machine
from lit_gpt.planning.job import Job
from lit_gpt.planning.memory_items import MARGIN
from lit_gpt.planning.plan import make_plan
from lit_gpt.planning.show import lines_of, risks
from lit_gpt.resources import return_freed_memory

DRIVER = {  # as nvidia-smi and rocm-smi write them -> our name, dense TFLOP/s in 16 bits
    "NVIDIA H100 80GB HBM3": ("h100-80gb", 989),
    "NVIDIA H100 PCIe": ("h100-pcie", 756),
    "NVIDIA H100 NVL": ("h100-nvl", 835),
    "NVIDIA H200": ("h200", 989),
    "NVIDIA H200 NVL": ("h200-nvl", 835),
    "NVIDIA B200": ("b200", 2250),
    "NVIDIA GB200": ("gb200", 2500),
    "NVIDIA A100-SXM4-40GB": ("a100-40gb", 312),
    "NVIDIA A100-PCIE-40GB": ("a100-40gb", 312),
    "NVIDIA A100 80GB PCIe": ("a100-80gb", 312),
    "NVIDIA A100-SXM4-80GB": ("a100-80gb", 312),
    "NVIDIA A10": ("a10", 125),
    "NVIDIA A10G": ("a10g", 70),
    "NVIDIA A40": ("a40", 150),
    "NVIDIA L4": ("l4", 121),
    "NVIDIA L40": ("l40", 181),
    "NVIDIA L40S": ("l40s", 362),
    "Tesla T4": ("t4", 65),
    "Tesla V100-SXM2-16GB": ("v100-16gb", 125),
    "Tesla V100-SXM2-32GB": ("v100-32gb", 125),
    "Tesla V100-PCIE-16GB": ("v100-16gb-pcie", 112),
    "NVIDIA RTX A6000": ("a6000", 155),
    "NVIDIA RTX 6000 Ada Generation": ("rtx6000ada", 364),
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": ("rtxpro6000", 504),
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": ("rtxpro6000-server", 480),
    "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition": ("rtxpro6000-maxq", 440),
    "NVIDIA GeForce RTX 3060": ("rtx3060", 25.5),
    "NVIDIA GeForce RTX 3080": ("rtx3080-10gb", 59.5),
    "NVIDIA GeForce RTX 3090": ("rtx3090", 71.2),
    "NVIDIA GeForce RTX 3090 Ti": ("rtx3090ti", 80),
    "NVIDIA GeForce RTX 4060 Ti": ("rtx4060ti-8gb", 44.1),
    "NVIDIA GeForce RTX 4070 Ti SUPER": ("rtx4070tisuper", 88.2),
    "NVIDIA GeForce RTX 4090": ("rtx4090", 165.2),
    "NVIDIA GeForce RTX 4090 Laptop GPU": ("rtx4090-laptop", 85.8),
    "NVIDIA GeForce RTX 5070": ("rtx5070", 61.7),
    "NVIDIA GeForce RTX 5090": ("rtx5090", 209.5),
    "NVIDIA GeForce RTX 5090 Laptop GPU": ("rtx5090-laptop", 114),
    "AMD Instinct MI300X": ("mi300x", 1307.4),
    "AMD Instinct MI325X": ("mi325x", 1307.4),
}


@pytest.mark.parametrize("name", DRIVER)
def test_a_card_is_found_by_the_name_that_its_driver_writes(name):
    ours, tflops = DRIVER[name]
    assert named(name) is DEVICES[ours] and named(ours) is DEVICES[ours]
    assert DEVICES[ours].sheet_tflops == pytest.approx(tflops, rel=0.02)


@pytest.mark.parametrize(
    "typed, ours",
    [
        ("4090", "rtx4090"),
        ("RTX-4090", "rtx4090"),
        ("rtx4090-24gb", "rtx4090"),
        ("rtx 3080 12gb", "rtx3080-12gb"),
        ("3090 ti", "rtx3090ti"),
        ("geforce 5080", "rtx5080"),
        ("A6000-48GB", "a6000"),
        ("h100-sxm", "h100-80gb"),
        ("l40s-48gb", "l40s"),
        ("a10-24gb", "a10"),
        ("rtx_pro_6000_blackwell", "rtxpro6000"),
        ("mi300", "mi300x"),
    ],
)
def test_a_card_is_found_as_people_spell_it(typed, ours):
    assert named(typed) is DEVICES[ours]


@pytest.mark.parametrize(
    "name", ["NVIDIA T400", "T1000", "Quadro RTX 6000", "rtx4090-48gb", "rtx4900", "A100-SXM4-40GB MIG"]
)
def test_another_card_is_not_taken_for_one_that_its_name_resembles(name):
    with pytest.raises(UserError) as caught:
        named(name)
    said = str(caught.value)
    assert "\n" not in said and "24gb and the like" in said and "known are a100-40gb, a100-80gb, h100-80gb" in said


def test_every_name_is_of_one_card_and_no_card_promises_more_memory_than_its_name():
    for device in DEVICES.values():
        for name in (device.name, *device.also):
            assert named(name) is device, name
        gigabytes = re.search(r"(\d+)gb", device.name)
        assert not gigabytes or 0.9 < device.gib / int(gigabytes[1]) < 1, device.name
        assert device.gib > 5 and device.sheet_tflops > 15


def test_series_are_complete():
    models = """3050 3060 3060ti 3070 3070ti 3080-10gb 3080ti 3090 3090ti 4060 4060ti-16gb 4070 4070super 4070ti 4080
    4080super 4090 5050 5060 5060ti-8gb 5070 5070ti 5080 5090"""
    for model in models.split():
        assert f"rtx{model}" in DEVICES
    assert not any(DEVICES[f"rtx{m}"].fp8 for m in ("3060", "3090")) and DEVICES["rtx4060"].fp8
    assert not DEVICES["t4"].bf16 and not DEVICES["v100s"].bf16 and DEVICES["a10"].bf16


def seen(monkeypatch, name, capability, hip=None):
    """What a machine with this card plans for itself."""
    properties = SimpleNamespace(name=name, total_memory=20 * GIB, major=capability[0], minor=capability[1])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.version, "hip", hip)
    return this_machine(torch.device("cuda"))


def test_the_card_of_this_machine_has_its_own_memory_and_the_rate_of_the_table(monkeypatch):
    pcie = seen(monkeypatch, "NVIDIA H100 PCIe", (9, 0))
    assert (pcie.sheet_tflops, pcie.gib, pcie.name) == (756, 20, "NVIDIA H100 PCIe") and pcie.fp8
    assert seen(monkeypatch, "NVIDIA L40", (8, 9)).sheet_tflops == 181
    for unknown in ("NVIDIA T400", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA GeForce RTX 3080 Laptop GPU"):
        assert seen(monkeypatch, unknown, (8, 6)).rate == 0
    assert not seen(monkeypatch, "NVIDIA T400", (7, 5)).bf16
    amd = seen(monkeypatch, "AMD Radeon Graphics", (11, 0), hip="6.2")
    assert amd.bf16 and not amd.fp8
    assert not seen(monkeypatch, "AMD Instinct MI300X", (9, 4), hip="6.2").fp8


def test_cpu_is_this_machines():
    assert named("cpu") == named("CPU") == this_machine(torch.device("cpu")) and named("cpu").kind == "cpu"


def plan_on(device, precision):
    """The plan of a small run on a device."""
    ids = np.arange(640, dtype=np.uint16) % 300
    data = Samples(ids, ids.astype(np.int32), np.arange(0, 641, 40))
    train = TrainArgs(max_steps=2, batch_size=8, micro_batch_tokens=256, recompute="none")
    config = config_for("pythia-14m")
    return make_plan(Job("lora", LoRAArgs(), config, train, ValidationArgs(), precision, None, device), (data, data))


def test_a_plan_near_the_edge_or_in_pure_fp16_says_what_that_risks():
    roomy = plan_on(named("rtx4090"), "bf16-true")
    assert not list(risks(roomy))
    for left, said in ((0.02, True), (0.04, False), (-0.01, False)):  # what does not fit is said elsewhere
        wanted = roomy.needed - roomy.memory["margin"]  # which is a part of the device's
        tight = replace(named("rtx4090"), gib=wanted / (1 - left - MARGIN) / GIB)
        plan = plan_on(tight, "bf16-true")
        assert [bool(re.search(r"^Risk: 2.0% of the memory is left", risk)) for risk in risks(plan)] == [True] * said
        assert ("\n  Risk: " in "\n".join(lines_of(plan))) is said
    assert "--precision bf16-true" in next(risks(plan_on(named("rtx4090"), "16-true")))
    assert "--precision 16-mixed" in next(risks(plan_on(named("t4"), "16-true")))
    assert not list(risks(plan_on(named("t4"), "16-mixed"))) and not list(risks(plan_on(named("cpu"), "32-true")))


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc")
def test_freed_memory_goes_back_to_the_system():
    def resident():
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    kept = [torch.ones(25_000) for _ in range(1000)]  # 100 KB each: too little for glibc to map it by itself
    before = resident()
    del kept[:-1]  # what is left lies above the others
    return_freed_memory()
    assert before - resident() > 50e6


_AGAIN = """
import resource, sys, torch
from lit_gpt.resources import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
for i in range(10):
    if i == 5:  # by then all have found their places
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    several = [torch.ones(2**22) for _ in range(8)]  # 16 MB each
    del several
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_pages_of_freed_memory_that_is_kept_are_not_asked_for_again():
    initial = {f"MALLOC_{name}_THRESHOLD_": str(2**17) for name in ("MMAP", "TRIM")}  # else glibc raises them at times
    env, run = os.environ | initial, functools.partial(subprocess.run, capture_output=True, text=True, check=True)
    given_back, kept = (int(run([sys.executable, "-c", _AGAIN, how], env=env).stdout) for how in ("given back", "kept"))
    assert given_back > 5 * 8 * 2**24 / 2**16  # pages have 4 KB, or 64
    assert kept < given_back / 20


_ROWS = """
import resource, torch
from lit_gpt.fabric import make_fabric

make_fabric("32-true")
a, b = torch.randn(1200, 64, dtype=torch.bfloat16), torch.randn(64, 64, dtype=torch.bfloat16)
for n in range(1, 1101):
    a[:n] @ b
    if n == 100:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units")
def test_matmuls_of_many_numbers_of_rows_are_not_all_kept():
    env, run = os.environ | {"OMP_NUM_THREADS": "1"}, functools.partial(subprocess.run, capture_output=True, text=True)
    own = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1024"}  # oneDNN's default, which the user asks for
    env.pop(*own, None)
    few, all_of_them = (int(run([sys.executable, "-c", _ROWS], env=e, check=True).stdout) for e in (env, env | own))
    if all_of_them < 200_000:
        pytest.skip("this processor compiles no matmuls in bf16")
    assert few < 0.8 * all_of_them  # kernels within them are kept all the same
