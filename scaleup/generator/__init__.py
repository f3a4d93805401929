"""This package draws a policy's responses by vLLM in a process of its own: the engine, which runs in an environment
that has vLLM and little else of ours, the client on the policy's side, and what goes between them."""
