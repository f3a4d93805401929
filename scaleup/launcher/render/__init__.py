"""A run's job as files that a scheduler takes: pure functions of the config, for Slurm, Kubernetes and no scheduler."""
