"""The GPUs that we know: names as nvidia-smi and rocm-smi write them, memory, and how fast they multiply.

Rates are those of dense products in 16 bits with sums in fp32, in TFLOP/s:
- data centers: NVIDIA's data sheets, in which H100 NVL, PCIe and SXM stand apart, and AMD's; half of a figure "with
  sparsity";
- workstations: four times the fp32 rate of the data sheet, as NVIDIA's white papers on Ada and Blackwell have it for
  RTX 6000 Ada (364.2) and RTX PRO 6000 (503.8);
- GeForce 30: twice the fp32 rate, as the white paper on GA102 has it, where sums in fp32 halve that of the others;
- GeForce 40 and 50, laptops too: "AI TOPS" of NVIDIA's comparison of cards, which are sparse products in 8 bits (40)
  and in 4 bits (50), and so 8 and 16 times the rate that is meant here (RTX 4090: 1321, RTX 5090: 3352).

Memory is what torch's `total_memory` was seen to say; where nobody told, OF_THE_BOX of what the box promises.
"""

from dataclasses import dataclass

GIB = 1024**3
_OF_THE_BOX = 0.967
"""Part of the gigabytes on the box that a process can have, in GiB: 15.47 of 16 on GeForce cards."""


_REACHED = 0.79
"""Share of the data sheet's rate that a large bf16 matmul reaches: 782.5 of 989 TFLOP/s measured on an H100
(benchmarks/results/gpu.txt). Other devices were not measured."""


@dataclass(frozen=True)
class Device:
    """A kind of GPU, or the CPU of this machine."""

    name: str
    gib: float
    """Memory that a process can have, as torch's `total_memory` says; less than on the box."""
    sheet_tflops: float
    """Dense products in 16 bits with sums in fp32, as the maker says; 0 if unknown."""
    bf16: bool = True
    fp8: bool = False
    """Compute capability 8.9 or more."""
    kind: str = "cuda"
    also: tuple[str, ...] = ()
    """Other names: what the driver's tools call it, and what people do."""

    @property
    def n_bytes(self) -> int:
        return int(self.gib * GIB)

    @property
    def rate(self) -> float:
        """Operations a second that a large matrix product is taken to reach; 0 if unknown."""
        return self.sheet_tflops * 1e12 * _REACHED


def _ada(name: str, gib: float, rate: float, *also: str) -> Device:
    """Returns a card that also has fp8."""
    return Device(name, gib, rate, fp8=True, also=also)


def _ampere(name: str, gib: float, rate: float, *also: str) -> Device:
    """Returns a card that has bf16 and no fp8."""
    return Device(name, gib, rate, also=also)


def _older(name: str, gib: float, rate: float, *also: str) -> Device:
    """Returns a card without bf16."""
    return Device(name, gib, rate, bf16=False, also=also)


def _geforce(ai_tops: float, per: int, gb: int, *names: str) -> Device:
    """Returns a GeForce of the 40 or 50 series; `per` is the number of AI TOPS for each of our TFLOP/s."""
    return _ada(names[0], _OF_THE_BOX * gb, ai_tops / per, *names[1:])


_DATA_CENTER = (
    _ampere("a100-40gb", 39.35, 312, "a100", "A100-SXM4-40GB", "A100-PCIE-40GB", "A800-SXM4-40GB", "a100-40gb-pcie"),
    _ampere("a100-80gb", 79.15, 312, "A100-SXM4-80GB", "A100 80GB PCIe", "A800-SXM4-80GB", "A800 80GB PCIe", "a800"),
    _ada("h100-80gb", 79.10, 989, "h100", "H100 80GB HBM3", "H100 SXM5", "H100 SXM", "H800", "H100 SXM5 80GB"),
    _ada("h100-pcie", 79.10, 756, "H100 PCIe", "H800 PCIe", "h100-pcie-80gb"),
    _ada("h100-nvl", 93.09, 835, "H100 NVL", "h100-94gb", "h100-nvl-94gb"),
    _ada("gh200", 94.50, 989, "GH200 480GB", "GH200 96GB HBM3", "h100-96gb"),
    _ada("h20", _OF_THE_BOX * 96, 148, "h20-96gb"),
    _ada("h200", 139.72, 989, "h200-141gb", "H200 SXM", "H200 141GB HBM3e"),
    _ada("h200-nvl", 139.72, 835, "H200 NVL", "h200-nvl-141gb"),
    _ada("b200", 178.35, 2250, "b200-180gb", "b200-192gb", "B200 SXM"),
    _ada("gb200", 184.31, 2500, "gb200-186gb"),
    _ada("l40s", 44.40, 362, "l40s-48gb"),
    _ada("l40", 44.40, 181, "l40-48gb"),
    _ada("l4", 22.03, 121, "l4-24gb"),
    _ampere("a40", 44.40, 150, "a40-48gb"),
    _ampere("a30", 23.50, 165, "a30-24gb"),
    _ampere("a10", 22.06, 125, "a10-24gb"),
    _ampere("a10g", 22.06, 70, "a10g-24gb"),
    _older("v100-16gb", 15.77, 125, "v100", "V100-SXM2-16GB", "V100-SXM2"),
    _older("v100-16gb-pcie", 15.77, 112, "V100-PCIE-16GB", "v100-pcie"),
    _older("v100-32gb", 31.74, 125, "V100-SXM2-32GB", "V100-SXM3-32GB"),
    _older("v100-32gb-pcie", 31.74, 112, "V100-PCIE-32GB"),
    _older("v100s", 31.74, 130, "V100S-PCIE-32GB"),
    _older("t4", 14.56, 65, "t4-16gb"),
    _ampere("mi300x", 191.69, 1307, "mi300", "AMD Instinct MI300X OAM", "AMD Instinct MI300X VF", "mi300x-192gb"),
    _ampere("mi325x", 255.69, 1307, "mi325", "AMD Instinct MI325X OAM", "mi325x-256gb"),
    _ampere("mi350x", _OF_THE_BOX * 288, 2300, "mi350", "AMD Instinct MI350X OAM"),
    _ampere("mi355x", _OF_THE_BOX * 288, 2516, "mi355", "AMD Instinct MI355X OAM"),
)
_WORKSTATION = (
    _ada("rtxpro6000", 94.97, 504, "RTX PRO 6000 Blackwell Workstation Edition", "RTX PRO 6000 Blackwell"),
    _ada("rtxpro6000-server", 94.97, 480, "RTX PRO 6000 Blackwell Server Edition"),
    _ada("rtxpro6000-maxq", 94.97, 440, "RTX PRO 6000 Blackwell Max-Q Workstation Edition"),
    _ada("rtx6000ada", 47.37, 364, "RTX 6000 Ada Generation", "6000ada"),
    _ada("rtx5000ada", _OF_THE_BOX * 32, 261, "RTX 5000 Ada Generation"),
    _ada("rtx4500ada", _OF_THE_BOX * 24, 158, "RTX 4500 Ada Generation"),
    _ada("rtx4000ada", _OF_THE_BOX * 20, 107, "RTX 4000 Ada Generation"),
    _ampere("a6000", 47.43, 155, "RTX A6000"),
    _ampere("a5000", _OF_THE_BOX * 24, 111, "RTX A5000"),
    _ampere("a4000", _OF_THE_BOX * 16, 77, "RTX A4000"),
)
_GEFORCE = (
    _geforce(3352, 16, 32, "rtx5090"),
    _geforce(1801, 16, 16, "rtx5080"),
    _geforce(1406, 16, 16, "rtx5070ti"),
    _geforce(988, 16, 12, "rtx5070"),
    _geforce(759, 16, 16, "rtx5060ti-16gb", "rtx5060ti"),
    _geforce(759, 16, 8, "rtx5060ti-8gb"),
    _geforce(614, 16, 8, "rtx5060"),
    _geforce(421, 16, 8, "rtx5050"),
    _geforce(1824, 16, 24, "rtx5090-laptop"),
    _geforce(1334, 16, 16, "rtx5080-laptop"),
    _geforce(992, 16, 12, "rtx5070ti-laptop"),
    _geforce(798, 16, 8, "rtx5070-laptop"),
    _geforce(572, 16, 8, "rtx5060-laptop"),
    _geforce(440, 16, 8, "rtx5050-laptop"),
    _ada("rtx4090", 23.64, 1321 / 8),
    _geforce(836, 8, 16, "rtx4080super"),
    _geforce(780, 8, 16, "rtx4080"),
    _geforce(706, 8, 16, "rtx4070tisuper"),
    _geforce(641, 8, 12, "rtx4070ti"),
    _geforce(568, 8, 12, "rtx4070super"),
    _geforce(466, 8, 12, "rtx4070"),
    _geforce(353, 8, 16, "rtx4060ti-16gb"),
    _geforce(353, 8, 8, "rtx4060ti-8gb", "rtx4060ti"),
    _geforce(242, 8, 8, "rtx4060"),
    _geforce(686, 8, 16, "rtx4090-laptop"),
    _geforce(542, 8, 12, "rtx4080-laptop"),
    _geforce(321, 8, 8, "rtx4070-laptop"),
    _geforce(233, 8, 8, "rtx4060-laptop"),
    _geforce(194, 8, 6, "rtx4050-laptop"),
    _ampere("rtx3090ti", 23.68, 80),
    _ampere("rtx3090", 23.68, 71),
    _ampere("rtx3080ti", _OF_THE_BOX * 12, 68),
    _ampere("rtx3080-12gb", _OF_THE_BOX * 12, 61),
    _ampere("rtx3080-10gb", _OF_THE_BOX * 10, 60, "rtx3080"),
    _ampere("rtx3070ti", _OF_THE_BOX * 8, 44),
    _ampere("rtx3070", _OF_THE_BOX * 8, 41),
    _ampere("rtx3060ti", _OF_THE_BOX * 8, 32),
    _ampere("rtx3060", 11.75, 26),
    _ampere("rtx3050", _OF_THE_BOX * 8, 18),
)
DEVICES = {device.name: device for device in (*_DATA_CENTER, *_WORKSTATION, *_GEFORCE)}
"""Name -> the device."""
