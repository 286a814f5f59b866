#!/bin/sh
# Five questions, a command each: `sh answers.sh` in an empty folder. Each takes some seconds on two cores.
set -eu

# 1. My phone: is its file sound?
cat > phone.yaml <<'END'
name: phone
flash: { read_bandwidth: 3.7 GB/s, command_time: 8 us, page: 4 KiB }
dram: { capacity: 12 GB, free: 8 GB, bandwidth: 68 GB/s, flash_copies: 1 }
compute: { throughput: 2 TFLOP/s }
END
python -m dipsim check phone.yaml

# 2. My policy: how fast is it there, beside others?
cat > mine.py <<'END'
from dipsim import Group, Policy


class Mine(Policy):
    """Keep the neurons whose gate or up projection is large, and favour what is in DRAM."""

    fraction: float = 0.6

    def groups(self, shape):
        return [Group("neuron", ("down_proj",), "neuron", int(self.fraction * shape.intermediate_size))]

    def scores(self, group, acts):
        return abs(acts.gate) + abs(acts.up_proj)

    def rerank(self, scores, resident):
        return scores * (0.7 + 0.3 * resident)
END
cat > mine.yaml <<'END'
trace: phi-3-mini
device: ./phone.yaml
dram: 1.8 GB
tokens: 16
policies: [dense, dip, ./mine.py: { fraction: 0.5 }]
END
python -m dipsim run mine.yaml

# Reads of single columns cost this phone more than they save: dense wins. docs/how-to/layouts.md says what helps.

# 3. How much DRAM do 10 tokens/s take? And, where perplexity was measured, which policy stays within +0.5 of dense?
python -m dipsim solve mine.yaml --target "10 tokens/s" --for dram
python -m dipsim solve --target "60 tokens/s" --for dram --within 0.5

# 4. Which of two phones is faster, and where does the time go?
python -m dipsim compare oneplus-12 pixel-9

# 5. All of it on one page, to hand on.
python -m dipsim report results/mine
