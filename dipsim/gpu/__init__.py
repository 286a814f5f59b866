"""Planning on a GPU: the caches of many layers and settings step from token to token side by side (extra `cuda`)."""
