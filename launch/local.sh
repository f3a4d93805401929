#!/bin/bash
# launch/local.sh CONFIG [KEY=VALUE]...   on this machine; goes on where the run was stopped
exec scaleup run "$@" --resume
