"""The population launcher, where Hydra looks for launchers: it takes none from elsewhere."""

from gradlab.launch.sweep import population


class PopulationLauncher(population.PopulationLauncher):
    """See :class:`gradlab.launch.sweep.population.PopulationLauncher`."""
