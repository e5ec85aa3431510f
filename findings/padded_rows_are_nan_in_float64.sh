#!/usr/bin/env bash
# transformers in float64, the type to check others against: a row padded on the left is NaN, and generate says 0.
#
# The eager attention, the one in which results are checked, takes the softmax in float32 whatever the model's type,
# and the mask holds the lowest number of the model's type. Float64's is -inf in float32; a position of which all
# is hidden, as padding on the left has, is then the softmax of nothing but -inf, NaN, and by the values it reaches
# each position after it. float32 and bfloat16 are right. generate draws the argmax of NaN, which is token 0, often
# the padding itself, and raises nothing. sdpa, the default where a model has it, computes in float64 and is right.
#
# Seen:
#   eager float32: NaN False, tokens as without padding True
#   eager bfloat16: NaN False, tokens as without padding True
#   eager float64: NaN True, tokens [0, 0, 0, 0]
#   sdpa float64: NaN False, tokens as without padding True
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cat > "$place/look.py" <<'PY'
import torch
from transformers import LlamaConfig, LlamaForCausalLM

for attention, dtype in (
    ("eager", torch.float32),
    ("eager", torch.bfloat16),
    ("eager", torch.float64),
    ("sdpa", torch.float64),
):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation=attention,
    )
    model = LlamaForCausalLM(config).eval().to(dtype)
    padded = torch.tensor([[0, 0, 0, 5, 6, 7]])
    mask = (padded != 0).long()

    def four(ids, mask):
        made = model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False)
        return made[0, ids.shape[1] :].tolist()

    with torch.no_grad():
        last = model(padded, attention_mask=mask).logits[0, -1]
    tokens, alone = four(padded, mask), four(padded[:, 3:], mask[:, 3:])
    said = f"as without padding {tokens == alone}" if tokens != [0] * 4 else tokens
    name = str(dtype).removeprefix("torch.")
    print(f"{attention} {name}: NaN {bool(last.isnan().any())}, tokens {said}")
PY
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.1 transformers==5.23.0
"$place/venv/bin/python" -W ignore "$place/look.py" 2> "$place/errors" | tee "$place/seen"
diff "$place/seen" - <<'SEEN'
eager float32: NaN False, tokens as without padding True
eager bfloat16: NaN False, tokens as without padding True
eager float64: NaN True, tokens [0, 0, 0, 0]
sdpa float64: NaN False, tokens as without padding True
SEEN
echo "as described"
