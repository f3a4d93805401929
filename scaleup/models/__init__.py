"""This package turns a config's model path into a loaded model: where models come from (`sources`, `builtin`), how they
are loaded (`load`, `adapted`), and what is put on, swapped in or cut out of them."""
