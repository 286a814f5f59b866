"""What needs a real model: loading and recording. Wants the extra `live`; nothing outside this folder imports torch."""
