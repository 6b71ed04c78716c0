"""The launchers for Slurm and for processes, where Hydra looks for launchers."""

from importlib.util import find_spec

if find_spec("hydra_plugins.hydra_submitit_launcher") is not None:  # gradlab[slurm] is installed
    from gradlab.launch.sweep import queue

    class SlurmLauncher(queue.SlurmQueue):
        """See :class:`gradlab.launch.sweep.queue.SlurmQueue`."""

    class LocalLauncher(queue.LocalQueue):
        """See :class:`gradlab.launch.sweep.queue.LocalQueue`."""
