"""A finished run in use: chat, merged models, files for llama.cpp."""
