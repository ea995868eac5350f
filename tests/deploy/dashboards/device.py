"""A device of files: what the sensors read of /proc and /sys, for machines that have no heat sensor and no battery."""

from __future__ import annotations

from pathlib import Path

import msgspec

# The agent as it is installed, but for where its sensors look.
PROGRAM = """
import sys
from pathlib import Path
from edgemux.edge import sensors

proc, sys_root = Path(sys.argv[1]) / "proc", Path(sys.argv[1]) / "sys"
sensors.Cpu.__init__.__defaults__ = (proc, sys_root)
sensors.Memory.__init__.__defaults__ = (proc, sys_root, sensors.Memory.__init__.__defaults__[2])
sensors.Heat.__init__.__defaults__ = sensors.Battery.__init__.__defaults__ = (sys_root,)
sys.argv = ["edgemux", *sys.argv[2:]]
from edgemux.cli.main import main
main()
"""


class Condition(msgspec.Struct, frozen=True):
    """How the device is: CPUs of its control group, degrees Celsius, shares of time that something waited."""

    cpus: float = 2.0
    celsius: float = 52.0
    throttled: bool = False
    clock: float = 1.0
    cpu_wait: float = 0.02
    memory_wait: float = 0.0
    storage_wait: float = 0.01
    battery: float = 0.9
    on_battery: bool = False


FINE = Condition()
SQUEEZED = Condition(0.02, 84.0, True, 0.6, 0.8, 0.1, 0.3, 0.55, True)


class Device:
    """The folder, brought into one condition or another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.be(FINE)

    def be(self, now: Condition) -> None:
        """Write every file that a sensor reads."""
        firmware = "devices/platform/soc/soc:firmware/get_throttled"
        clock = "devices/system/cpu/cpu0/cpufreq"
        files = {
            "proc/self/cgroup": "0::/\n",
            "proc/pressure/cpu": _pressure("some", now.cpu_wait),
            "proc/pressure/memory": _pressure("full", now.memory_wait),
            "proc/pressure/io": _pressure("some", now.storage_wait),
            "sys/fs/cgroup/cpu.max": f"{now.cpus * 100_000:.0f} 100000\n",
            "sys/class/thermal/thermal_zone0/temp": f"{now.celsius * 1000:.0f}\n",
            f"sys/{firmware}": "0x4\n" if now.throttled else "0x0\n",
            f"sys/{clock}/scaling_max_freq": f"{now.clock * 1_500_000:.0f}\n",
            f"sys/{clock}/cpuinfo_max_freq": "1500000\n",
            "sys/class/power_supply/BAT0/capacity": f"{now.battery * 100:.0f}\n",
            "sys/class/power_supply/BAT0/status": "Discharging\n" if now.on_battery else "Charging\n",
        }
        for name, text in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            # Put in place whole: a sensor never reads half a file.
            fresh = path.with_name(path.name + ".new")
            fresh.write_text(text)
            fresh.replace(path)


def _pressure(who: str, share: float) -> str:
    return f"{who} avg10={share * 100:.2f} avg60=0.00 avg300=0.00 total=0\n"
