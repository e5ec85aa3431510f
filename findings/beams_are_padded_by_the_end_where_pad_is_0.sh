#!/usr/bin/env bash
# transformers 5.24's beam search pads rows that ended with the end symbol, where the padding is id 0.
#
# generate() fills what follows the end of a row with pad_token_id. With num_beams=1 that is so for any
# id. With more beams it is so for id 3, say, but id 0, which many vocabularies have for padding, is
# taken for none, and the end symbol stands there again and again. Who counts ends, or cuts at the
# padding, finds other texts with beams than without.
#
# Seen, for 40 prompts of a tiny GPT-2 with random weights, whose end symbol is 2:
#   pad 0, 1 beam: [0] follow the end; pad 0, 2 beams: [2] follow the end
#   pad 3, 1 beam: [3] follow the end; pad 3, 2 beams: [3] follow the end
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cat > "$place/look.py" <<'PY'
import torch
import transformers

transformers.logging.set_verbosity_error()
torch.manual_seed(0)
config = transformers.GPT2Config(
    vocab_size=12, n_positions=32, n_embd=16, n_layer=1, n_head=2, initializer_range=1.0,
    bos_token_id=1, eos_token_id=2, pad_token_id=0,
)
model = transformers.GPT2LMHeadModel(config).eval().double()
prompts = torch.randint(3, 12, (40, 4), generator=torch.Generator().manual_seed(0))
for pad in (0, 3):
    told = []
    for n_beams in (1, 2):
        rows = model.generate(
            prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=12,
            num_beams=n_beams, do_sample=False, pad_token_id=pad,
        )[:, 4:].tolist()
        after = {token for row in rows if 2 in row for token in row[row.index(2) + 1 :]}
        beams = f"{n_beams} beam" + "s" * (n_beams > 1)
        told.append(f"pad {pad}, {beams}: {sorted(after)} follow the end")
    print("; ".join(told))
PY
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q torch==2.13.0 transformers==5.24.0 numpy==2.4.1
"$place/venv/bin/python" "$place/look.py" | tee "$place/seen"
diff "$place/seen" - <<'SEEN'
pad 0, 1 beam: [0] follow the end; pad 0, 2 beams: [2] follow the end
pad 3, 1 beam: [3] follow the end; pad 3, 2 beams: [3] follow the end
SEEN
echo "as described"
