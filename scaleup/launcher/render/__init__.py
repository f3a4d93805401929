"""This package renders a run's job as files that a scheduler takes, by pure functions of the config: for Slurm,
Kubernetes and no scheduler."""
