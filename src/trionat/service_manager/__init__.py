"""What keeps trionat up on a machine: systemd, launchd, the Windows task scheduler.

`manager` chooses one; each makes a `Plan` of what it would write and run, so that what `--dry-run` shows is what happens. `notification` is
the other way round: what a running trionat tells systemd.
"""
