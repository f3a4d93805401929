"""scaleup does distributed fine-tuning, RLHF and compression of language models. Importing it imports nothing heavy."""

__version__ = "0.1.0"
