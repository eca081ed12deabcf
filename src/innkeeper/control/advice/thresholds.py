"""Every number that advice goes by, in one place, with where it is from.

C6 is requirement C6, the rules of thumb of capacity planning for virtual machines: average below 38 % and
peak below 45 %: fewer vCPUs; average above 75 % and peak above 90 %: more; a peak near 1/N of N vCPUs: one
thread does the work. The two pairs fit each other: what uses 45 % of two vCPUs uses 90 % of one.
Shares are of 1, times in seconds, sizes in bytes.
"""

from __future__ import annotations

from typing import Final

from innkeeper.units import GiB, KiB, MiB

# -- what is looked at -------------------------------------------------------------------------------
WINDOW_S: Final = 86400.0  # a day: the history has 25 hours, and most loads have a daily cycle
MIN_DATA_S: Final = 1800.0  # less may be one job; of the time since the last change, so it is the cool-down
CLOSE_S: Final = 600.0  # windows up to this are read in steps of 5 s, longer ones by the minute
SAME: Final = 0.002  # two sizes are the same within this: the history keeps values to 0.04 %

# -- vCPUs -------------------------------------------------------------------------------------------
FEWER_AVERAGE: Final = 0.38  # C6
FEWER_PEAK: Final = 0.45  # C6
MORE_AVERAGE: Final = 0.75  # C6
MORE_PEAK: Final = 0.90  # C6
STEP_PART: Final = 4  # small steps (C6): a quarter of what it has, at least one
# "Near 1/N": one thread takes one CPU, the guest's kernel and its timers some per cent beside it.
ONE_CPU: Final = (0.90, 1.15)
ALONE: Final = 0.75  # of the work on the busiest vCPU: one thread stays where it is, mostly
CAPPED: Final = 0.80  # of the busy readings at one CPU's worth: a thread that moves from vCPU to vCPU
BUSY_READING: Final = 0.50  # CPUs; below that a reading says nothing about how many threads there are
BUSY_READINGS: Final = 2
# Waiting for the host's CPUs, of the time of each vCPU. VMware's guidance for %RDY is 10 % for each vCPU
# (Performance Best Practices for vSphere, "CPU Considerations"); more vCPUs then wait more.
CONTENDED: Final = 0.10
THROTTLED: Final = 0.05  # of the time held by its own CPU limit
RAISE_LIMIT: Final = 1.5
# Runnable tasks for each vCPU, as the guest counts them (proc_loadavg(5)), above which one more is of use.
QUEUED: Final = 1.2

# -- memory ------------------------------------------------------------------------------------------
FULL: Final = 0.90  # working set of what it has
ROOMY: Final = 0.50
HEADROOM: Final = 1.5  # what is left, of the largest working set seen; 1/1.5 is far below FULL
MEMORY_STEP_PART: Final = 4
# Guest pages a second that come back from its swap: 64 of 4 KiB are what one disk read of 256 KiB brings.
SWAPPING_IN_BYTES: Final = 256 * KiB
SQUEEZED: Final = 0.95  # its balloon leaves it less than this: the host is short, not its size
HOST_SWAPPED: Final = 0.05  # of its memory, swapped out by the host
HOST_MAJOR_FAULTS: Final = 10.0  # a second: each is a wait of a vCPU for a disk

# -- disks -------------------------------------------------------------------------------------------
AT_LIMIT: Final = 0.95  # of the limit: QEMU's leaky bucket never lets all of it through
THROTTLED_TIME: Final = 0.20  # of the window
RAISE_DISK: Final = 2.0

# -- pages -------------------------------------------------------------------------------------------
# Below 1 GiB the second-level TLB of any server of the last ten years reaches most of it with small pages.
LARGE_BYTES: Final = 1 * GiB
BUSY_CPUS: Final = 0.5
SMALL_PAGES: Final = 0.50  # less than this of what is resident is in huge pages

# -- NUMA --------------------------------------------------------------------------------------------
LOCAL: Final = 0.80
REMOTE_BYTES: Final = 64 * MiB  # less than that remote is QEMU itself, and libraries

# -- trials ------------------------------------------------------------------------------------------
TRIAL_S: Final = 600.0
SETTLE_S: Final = 10.0  # QEMU is asked every 10 s: rates from before the change last so long
TRIAL_DATA: Final = 0.5  # of the next window with readings: less than that cannot be judged
TRIAL_GRACE: Final = 2.0  # so many windows it is waited for readings
REMEMBERED_S: Final = 7 * 86400.0  # what a trial showed holds for a week: loads have weekly cycles, too
REFUSED_S: Final = 3600.0  # a guest that would not, or a host that could not, is asked again after that
KEPT_TRIALS: Final = 10
SATURATED: Final = 0.90  # of its vCPUs
CUT: Final = 0.10  # demand that fell by this and fills all there is was cut off
WAIT_RISE: Final = 0.10  # of each vCPU's time
QUEUE_RISE: Final = 1.3
FAULTS_RISE: Final = 50.0  # a second
PRESSURE_RISE: Final = 0.05
READS_RISE_BYTES: Final = 1 * MiB  # a second: what was cached is read anew
RISE: Final = 1.5  # beside the above: a rise counts only if it is this many times what was
LOCAL_FALL: Final = 0.05
