"""From the command line to the parts of an experiment: the room that knows Hydra."""
