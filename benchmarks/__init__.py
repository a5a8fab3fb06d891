"""What devices in processes of their own cost, beside what else there is: ``python -m benchmarks``.

``measure`` knows how to measure and nothing of what is measured; ``restart``, ``tube``, ``requests``,
``session``, ``idle`` and ``disk`` are a group of tables each; ``peers`` installs and starts the programs that
we stand beside; ``report`` makes the page out of the file. ``child``, ``floor`` and ``echo`` are programs
that the others start: they import next to nothing. ``board`` and ``lamp`` are what is killed and asked.

Of disks, ``disk_ring`` is a guest without a VMM, ``disk_guest`` one in QEMU, into which ``disk_tools`` and
``fio.sh`` bring fio; ``disk_board`` serves images, and ``disk_recovery`` kills who does.

Apart from these stands ``soak``, which measures growth and not speed.
"""
