"""The population launcher, where Hydra looks for launchers: it takes none from elsewhere."""

from gradlab.launch import population


class PopulationLauncher(population.PopulationLauncher):
    """See :class:`gradlab.launch.population.PopulationLauncher`."""
