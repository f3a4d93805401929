"""A job goes in; its files without a scheduler come out: one script that is started on every node, with the node's
rank."""

from __future__ import annotations

from scaleup.launcher.render.job import Files, Job, exports, words

SCRIPT = "node.sh"


def torchrun_files(job: Job) -> Files:
    """Render the script and the config that it names."""
    cluster = job.cluster
    lines = [
        "#!/bin/bash",
        "# Written by `scaleup render`: on node K of all nodes, from 0, run",
        f"#   bash {words([job.folder / SCRIPT])} K",
        "node_rank=${1:?give the rank of this node, from 0}",
        f"cd {words([cluster.workdir])} || exit 1",
        *exports(cluster.environment),
        *cluster.setup,
        f'exec scaleup run {words([job.folder / job.config_name(0)])} --resume --node-rank "$node_rank"',
    ]
    return {SCRIPT: "\n".join(lines) + "\n", **job.config_files}
