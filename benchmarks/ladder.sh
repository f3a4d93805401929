#!/usr/bin/env bash
# Make every variant of SmolLM2-135M that configs/card/smollm2.yaml measures, then the card. From the repository's root, after
# `make setup`; runs that are finished are not made again:
#
#   benchmarks/ladder.sh
set -euo pipefail
scaleup=.venv/bin/scaleup

make_run() { # NAME CONFIG [OVERRIDE ...]
    [ -f "runs/$1/manifest.json" ] || "$scaleup" run "configs/$2" "name=$1" "${@:3}" --resume
}

teacher=model.path=runs/reviews_text
make_run reviews_text sft/reviews_text.yaml
make_run bf16 export/smollm2-bf16.yaml "$teacher"
make_run int8 quantize/smollm2_int8.yaml "$teacher"
make_run gguf-q8_0 export/gguf.yaml "$teacher" export.gguf_type=q8_0
for cut in depth24 depth20 mlp1280; do
    make_run "$cut" "prune/smollm2_$cut.yaml" "$teacher"
    make_run "$cut-recovered" distill/recover.yaml "model.path=runs/$cut"
    make_run "$cut-control" distill/recover.yaml "model.path=runs/$cut" distill.alpha=0
done
recovered=model.path=runs/depth24-recovered
make_run depth24-recovered-bf16 export/smollm2-bf16.yaml "$recovered"
make_run depth24-recovered-q8_0 export/gguf.yaml "$recovered" export.gguf_type=q8_0
make_run card-smollm2 card/smollm2.yaml
cat runs/card-smollm2/card.md
