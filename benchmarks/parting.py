"""Measure how many responses stay the same, token for token, when the same prompts are drawn in other batches, as one
process and two do; with one or several versions of this project.

Run it from the repository's root, after `make setup`; it needs no network and no GPU:

    .venv/bin/python benchmarks/parting.py before=../before after=.

Each NAME=FOLDER is a checkout with a `.venv` of its own. The policy is a Llama of 4 million random parameters, drawn so
wide that a token's perplexity is about 100; with LoRA, which changes nothing yet, where its base is in LLM.int8. Of 128
prompts 48 tokens each are drawn, in batches of 64 and in two ranks' batches of 32. Shown are identical responses, and
the mean position at which the others part."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SHAPE = {"vocab_size": 2_000, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 256, "initializer_range": 0.15}
PROMPTS, TOKENS, BATCH = 128, 48, 64


def policy_of(kind: str) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

    from scaleup.rl.policy import Policy

    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(LlamaConfig(**SHAPE, **HEADS, pad_token_id=0, bos_token_id=1, eos_token_id=2))
    if kind == "LLM.int8":
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            quantized = BitsAndBytesConfig(load_in_8bit=True)
            model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=quantized)
        model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    return Policy(model, 1.0).eval()


def drawn(policy: Any, kind: str, shares: list[range], size: int) -> Any:
    """Return the responses of all prompts (PROMPTS, TOKENS), each share drawn in batches of `size`."""
    import torch

    from scaleup.models.rollout import Sampling, respond

    device, sampling = torch.device("cpu"), Sampling(TOKENS, None, 1.0, (1_999,), 0)
    tokens = torch.zeros(PROMPTS, TOKENS, dtype=torch.long)
    for share in shares:
        for start in range(0, len(share), size):
            rows = share[start : start + size]
            prompts = [[3 + (7 * row + place) % 1_900 for place in range(3 + row % 9)] for row in rows]
            with torch.autocast("cpu", torch.bfloat16, enabled=kind == "bf16"):
                found = respond(policy, prompts, [(1, row) for row in rows], sampling, device)
            tokens[list(rows)] = found.tokens
    return tokens


def measure() -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    results = {}
    for kind in ("float32", "bf16", "LLM.int8"):
        policy = policy_of(kind)
        one = drawn(policy, kind, [range(PROMPTS)], BATCH)
        two = drawn(policy, kind, [range(rank, PROMPTS, 2) for rank in range(2)], BATCH // 2)
        same = (one == two).long().cumprod(dim=1).sum(dim=1)
        parted = same[same < TOKENS].double()
        results[kind] = {
            "identical": int((same == TOKENS).sum()),
            "parted_at": float(parted.mean()) if len(parted) else None,
        }
    return results


def main() -> None:
    if sys.argv[1:] == ["--measure"]:
        sys.path.insert(0, str(Path.cwd()))
        print(json.dumps(measure()))
        return
    for name, _, folder in (each.partition("=") for each in sys.argv[1:]):
        tree = Path(folder).resolve()
        command = [str(tree / ".venv/bin/python"), str(Path(__file__).resolve()), "--measure"]
        done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{name} ended with {done.returncode}\n{done.stderr[-4000:]}")
        for kind, found in json.loads(done.stdout.splitlines()[-1]).items():
            at = "" if found["parted_at"] is None else f", the others part at token {found['parted_at']:.0f}"
            print(f"{name}: {kind}: {found['identical']} of {PROMPTS} responses identical{at}", flush=True)


if __name__ == "__main__":
    main()
