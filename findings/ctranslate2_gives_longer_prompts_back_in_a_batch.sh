#!/usr/bin/env bash
# CTranslate2: what include_prompt_in_result=False leaves out of a batch is the length of its shortest prompt, of each row.
#
# Prompts of one length are left out. Where lengths differ, the documentation says that what is beyond the shortest is
# "generated" under a constraint; not that it is then in the result, that it is taken from max_length, and that a
# repetition penalty counts it, which does not count what is left out. So a row's result depends on which rows are beside
# it: other tokens, fewer new ones, none at all for a prompt longer by max_length; nothing marks where the new ones begin.
#
# Seen, a GPT-2 of random weights, greedy, max_length=10, prompts of 1, 4 and 15 tokens, alone and together:
#   1 tokens alone: 10 new; in the batch: 0 of the prompt, 10 new; the same new ones: True
#   4 tokens alone: 10 new; in the batch: 3 of the prompt, 7 new; the same new ones: True
#   15 tokens alone: 10 new; in the batch: 10 of the prompt, 0 new; the same new ones: True
#   with repetition_penalty=1.5, 4 tokens: the same new ones: False
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cat > "$place/look.py" <<'PY'
import os
import sys

import torch
import transformers
from ctranslate2 import Generator
from ctranslate2.converters.transformers import GPT2Loader

N_SYMBOLS, N_NEW = 60, 10
torch.set_num_threads(1)
torch.manual_seed(0)
config = transformers.GPT2Config(
    vocab_size=N_SYMBOLS, n_positions=64, n_embd=32, n_layer=2, n_head=2, initializer_range=0.4,
    bos_token_id=None, eos_token_id=None,
)
loader = GPT2Loader()
spec = loader.get_model_spec(transformers.GPT2LMHeadModel(config).eval())
loader.set_vocabulary(spec, [str(i) for i in range(N_SYMBOLS)])
spec.config.bos_token = spec.config.unk_token = "0"
spec.config.eos_token = str(N_SYMBOLS - 1)
spec.validate()
spec.optimize()
os.makedirs(sys.argv[1])
spec.save(sys.argv[1])
generator = Generator(sys.argv[1], device="cpu", compute_type="float32", intra_threads=1)


def results(prompts, **settings):
    found = generator.generate_batch(
        prompts, max_length=N_NEW, min_length=N_NEW, include_prompt_in_result=False, **settings
    )
    return [result.sequences[0] for result in found]


draws = torch.Generator().manual_seed(1)
prompts = [[str(int(t)) for t in torch.randint(1, 50, (n,), generator=draws)] for n in (1, 4, 15)]
shortest = min(map(len, prompts))
for settings in ({}, {"repetition_penalty": 1.5}):
    for prompt, row in zip(prompts, results(prompts, **settings)):
        (alone,) = results([prompt], **settings)
        rest = prompt[shortest:][: len(row)]
        assert row[: len(rest)] == rest
        new = row[len(rest) :]
        same = f"the same new ones: {new == alone[: len(new)]}"
        if not settings:
            beside = f"in the batch: {len(rest)} of the prompt, {len(new)} new"
            print(f"{len(prompt)} tokens alone: {len(alone)} new; {beside}; {same}")
        elif len(prompt) == 4:
            print(f"with repetition_penalty=1.5, {len(prompt)} tokens: {same}")
PY
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 ctranslate2==4.8.5 numpy==2.4.1
"$place/venv/bin/python" -W ignore "$place/look.py" "$place/model" 2>"$place/errors" | tee "$place/seen" || cat "$place/errors"
diff "$place/seen" - <<'SEEN'
1 tokens alone: 10 new; in the batch: 0 of the prompt, 10 new; the same new ones: True
4 tokens alone: 10 new; in the batch: 3 of the prompt, 7 new; the same new ones: True
15 tokens alone: 10 new; in the batch: 10 of the prompt, 0 new; the same new ones: True
with repetition_penalty=1.5, 4 tokens: the same new ones: False
SEEN
echo "as described"
