#!/usr/bin/env bash
# transformers 5.24 models whose config says return_dict=False fail where they are called.
#
# The setting is documented for the config, and as an argument of the call. In the call it works: the
# outputs are a tuple. In the config it reaches the model within, too, whose tuple the model around
# it takes for an object: an AttributeError. An older program, or a config.json that has the setting,
# does not run.
#
# Seen:
#   in the call: tuple; in the config: AttributeError, for GPT-2, Llama, Mistral and GPT-NeoX
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cat > "$place/look.py" <<'PY'
import torch
import transformers

transformers.logging.set_verbosity_error()
IDS = {"vocab_size": 16, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
BLOCK = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2}
KINDS = {
    "GPT2": {"n_layer": 1, "n_head": 2, "n_embd": 8, "n_positions": 8},
    "Llama": {**BLOCK, "intermediate_size": 16},
    "Mistral": {**BLOCK, "intermediate_size": 16, "num_key_value_heads": 2},
    "GPTNeoX": {**BLOCK, "intermediate_size": 16},
}


def outcome(kind, in_config, **in_call):
    config = getattr(transformers, kind + "Config")(**KINDS[kind], **IDS, **in_config)
    model = transformers.AutoModelForCausalLM.from_config(config)
    try:
        return type(model(torch.ones(1, 3, dtype=torch.long), **in_call)).__name__
    except AttributeError:
        return "AttributeError"


for kind in KINDS:
    call, config = outcome(kind, {}, return_dict=False), outcome(kind, {"return_dict": False})
    print(f"{kind}: in the call: {call}; in the config: {config}")
PY
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q torch==2.13.0 transformers==5.24.0 numpy==2.4.1
"$place/venv/bin/python" "$place/look.py" | tee "$place/seen"
diff "$place/seen" - <<'SEEN'
GPT2: in the call: tuple; in the config: AttributeError
Llama: in the call: tuple; in the config: AttributeError
Mistral: in the call: tuple; in the config: AttributeError
GPTNeoX: in the call: tuple; in the config: AttributeError
SEEN
echo "as described"
