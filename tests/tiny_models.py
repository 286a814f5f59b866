"""Small random models of every family, saved with a tokenizer of whole words."""

import torch
import transformers

WORDS = 50
TEXT = " ".join(f"w{(7 * i * i + i) % WORDS}" for i in range(40))
IDS = [int(word[1:]) + 2 for word in TEXT.split()]
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": WORDS + 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3", "Phi3")
MIXTURES = {  # both ways to weigh experts, with and without shared experts and dense layers
    "Mixtral": {"num_local_experts": 6, "num_experts_per_tok": 2},
    "Qwen2Moe": {
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 40,
        "mlp_only_layers": [1],
    },
    "Qwen3Moe": {
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 20,
        "decoder_sparse_step": 2,
        "num_hidden_layers": 5,
        "norm_topk_prob": True,
        "head_dim": 8,
    },
    "Olmoe": {"num_experts": 10, "num_experts_per_tok": 4},
}


def make(family, **changes):
    """A small random model; biases, where it has any, are not left at zero."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SIZES | MIXTURES.get(family, {}) | changes)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def save(folder, model):
    """Save a model with a tokenizer of whole words, as a folder that from_pretrained reads."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1} | {f"w{i}": i + 2 for i in range(WORDS)}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", bos_token="<s>").save_pretrained(
        folder
    )
    model.save_pretrained(folder)
    return str(folder)
