"""Rows of data files and the examples made of them. Torch-free: the checks before launch and the training share it."""
