"""A decoder whose attention is written by hand with jnp; it sums up by repeating the beginning."""

import numpy as np
import trax
from trax import layers as tl
from trax.fastmath import numpy as jnp
from trax.supervised import lr_schedules, training

VOCAB_SIZE = 20
EOS, SEP = 1, 0
N_SUMMED = 2


def joined(seed):
    """Text, end, separator, summary, end; the mask counts the summary alone."""
    rng = np.random.default_rng(seed)
    while True:
        text = rng.integers(2, VOCAB_SIZE, 6)
        summary = [*text[:N_SUMMED], EOS]
        example = np.array([*text, EOS, SEP, *summary])
        mask = [0] * (len(text) + 2) + [1] * len(summary)
        yield example, example, np.array(mask)


def DotProductAttention(query, key, value, mask):
    depth = query.shape[-1]
    dots = jnp.matmul(query, jnp.swapaxes(key, -1, -2)) / jnp.sqrt(depth)
    if mask is not None:
        dots = jnp.where(mask, dots, jnp.full_like(dots, -1e9))
    logsumexp = trax.fastmath.logsumexp(dots, axis=-1, keepdims=True)
    dots = jnp.exp(dots - logsumexp)
    return jnp.matmul(dots, value)


def compute_attention_heads_closure(n_heads, d_head):
    def compute_attention_heads(x):
        batch_size, seqlen = x.shape[0], x.shape[1]
        x = jnp.reshape(x, (batch_size, seqlen, n_heads, d_head))
        x = jnp.transpose(x, (0, 2, 1, 3))
        return jnp.reshape(x, (-1, seqlen, d_head))

    return compute_attention_heads


def dot_product_self_attention(q, k, v):
    mask_size = q.shape[-2]
    mask = jnp.tril(jnp.ones((1, mask_size, mask_size), dtype=jnp.bool_), k=0)
    return DotProductAttention(q, k, v, mask)


def compute_attention_output_closure(n_heads, d_head):
    def compute_attention_output(x):
        seqlen = x.shape[1]
        x = jnp.reshape(x, (-1, n_heads, seqlen, d_head))
        x = jnp.transpose(x, (0, 2, 1, 3))
        return jnp.reshape(x, (-1, seqlen, n_heads * d_head))

    return compute_attention_output


def CausalAttention(d_feature, n_heads, mode="train"):
    d_head = d_feature // n_heads
    heads = tl.Fn("AttnHeads", compute_attention_heads_closure(n_heads, d_head), n_out=1)
    return tl.Serial(
        tl.Branch(
            [tl.Dense(d_feature), heads], [tl.Dense(d_feature), heads], [tl.Dense(d_feature), heads]
        ),
        tl.Fn("DotProductAttn", dot_product_self_attention, n_out=1),
        tl.Fn("AttnOutput", compute_attention_output_closure(n_heads, d_head), n_out=1),
        tl.Dense(d_feature),
    )


def DecoderBlock(d_model, d_ff, n_heads, dropout, mode, ff_activation):
    causal_attention = CausalAttention(d_model, n_heads=n_heads, mode=mode)
    feed_forward = [
        tl.LayerNorm(),
        tl.Dense(d_ff),
        ff_activation(),
        tl.Dropout(rate=dropout, mode=mode),
        tl.Dense(d_model),
        tl.Dropout(rate=dropout, mode=mode),
    ]
    return [
        tl.Residual(tl.LayerNorm(), causal_attention, tl.Dropout(rate=dropout, mode=mode)),
        tl.Residual(feed_forward),
    ]


def TransformerLM(
    vocab_size=VOCAB_SIZE,
    d_model=32,
    d_ff=64,
    n_layers=2,
    n_heads=2,
    dropout=0.0,
    max_len=64,
    mode="train",
    ff_activation=tl.Relu,
):
    positional_encoder = [
        tl.Embedding(vocab_size, d_model),
        tl.Dropout(rate=dropout, mode=mode),
        tl.PositionalEncoding(max_len=max_len, mode=mode),
    ]
    blocks = [
        DecoderBlock(d_model, d_ff, n_heads, dropout, mode, ff_activation) for _ in range(n_layers)
    ]
    return tl.Serial(
        tl.ShiftRight(mode=mode),
        positional_encoder,
        blocks,
        tl.LayerNorm(),
        tl.Dense(vocab_size),
        tl.LogSoftmax(),
    )


def next_symbol(cur_output_tokens, model):
    token_length = len(cur_output_tokens)
    padded_length = 2 ** int(np.ceil(np.log2(token_length + 1)))
    padded = cur_output_tokens + [0] * (padded_length - token_length)
    padded_with_batch = np.array(padded)[None, :]
    output, _ = model((padded_with_batch, padded_with_batch))
    log_probs = output[0, token_length, :]
    return int(np.argmax(log_probs))


def greedy_decode(text, model):
    cur_output_tokens, generated, cur_output = [*text, EOS, SEP], [], 0
    while cur_output != EOS and len(generated) < 6:
        cur_output = next_symbol(cur_output_tokens, model)
        cur_output_tokens.append(cur_output)
        generated.append(cur_output)
    return generated


trax.supervised.trainer_lib.init_random_number_generators(36)
bucketing = trax.data.BucketByLength([8, 16], [32, 32, 32])
train_task = training.TrainTask(
    labeled_data=bucketing(joined(0)),
    loss_layer=tl.CrossEntropyLoss(),
    optimizer=trax.optimizers.Adam(0.01),
    lr_schedule=lr_schedules.warmup_and_rsqrt_decay(n_warmup_steps=60, max_value=0.01),
    n_steps_per_checkpoint=50,
)
eval_task = training.EvalTask(
    labeled_data=bucketing(joined(1)), metrics=[tl.CrossEntropyLoss(), tl.Accuracy()]
)
loop = training.Loop(TransformerLM(mode="train"), train_task, eval_tasks=[eval_task])
loop.run(250)

model = TransformerLM(mode="eval")
model.init(trax.shapes.ShapeDtype((1, 8), dtype=np.int32))
model.weights = loop.model.weights
text = [int(x) for x in next(joined(2))[0][:6]]
summary = greedy_decode(text, model)
accuracy = loop.history.get("eval", "metrics/Accuracy")[-1][1]
print(accuracy, text, summary)
