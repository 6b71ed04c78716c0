"""Many jobs: the launchers, the sweeper, and what becomes of a sweep's jobs."""
